"""List files as people and programs leave them: read rightly where they are meant well, refused by name where not."""

import csv
import shutil
from pathlib import Path

from common import create_dataset_list
from common.cli import UserError
from common.lists.list_file import read_list

import pytest
from bad_input import nothing_written, refusal, require_refusal, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import RESUMABLE, TARGETS, call, write_data

SLOW = pytest.mark.slow
# What stands in file names: Latin, Chinese, Cyrillic, blanks inside, and what lists part paths with.
LETTERS = st.sampled_from("abcXYZ019 -_.()街道图像标签дорога,|'&%#")
NAMES = st.text(LETTERS, min_size=1, max_size=12).filter(lambda name: name == name.strip() and name.strip("."))
SEPARATORS = {"comma": ",", "tab": "\t", "pipe": "|", "comma and blank": ", "}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a_label.png").write_bytes(b"x")
    (tmp_path / "街道").mkdir()
    (tmp_path / "街道" / "图 像.png").write_bytes(b"x")
    (tmp_path / "街道" / "标签.png").write_bytes(b"x")
    return tmp_path


def written(pairs, separator, bom, line_end, backslashes, blank_lines) -> bytes:
    lines = []
    for pair in pairs:
        fields = [name.replace("/", "\\") if backslashes else name for name in pair]
        if separator.startswith(","):
            fields = [f'"{field}"' if "," in field else field for field in fields]
        lines.append(separator.join(fields))
        if blank_lines:
            lines.append("")
    return (b"\xef\xbb\xbf" if bom else b"") + (line_end.join(lines) + line_end).encode()


def test_lists_that_are_meant_well_are_read_rightly(tmp_path, tried):
    """BOM, CRLF, every separator, backslashes, blank lines, Chinese names: the very files come out."""
    seen = []

    @settings(max_examples=80, derandomize=True, deadline=None, database=None)
    @given(
        names=st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=4, unique_by=lambda three: three[1]),
        separator=st.sampled_from(list(SEPARATORS)),
        bom=st.booleans(),
        line_end=st.sampled_from(["\n", "\r\n", "\r"]),
        backslashes=st.booleans(),
        blank_lines=st.booleans(),
    )
    def read(names, separator, bom, line_end, backslashes, blank_lines):
        character = SEPARATORS[separator]
        pairs = [(f"{folder}/{a}.png", f"{folder}/{b}_label.png") for folder, a, b in names]
        if character in "\t|":
            pairs = [pair for pair in pairs if character not in "".join(pair)] or [("a/a.png", "a/b.png")]
        seen.append(separator)
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        for name in (name for pair in pairs for name in pair):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).touch()
        path = tmp_path / "list.txt"
        path.write_bytes(written(pairs, character, bom, line_end, backslashes, blank_lines))
        found = read_list(path, tmp_path / "data")
        expected = [tuple(tmp_path / "data" / name for name in pair) for pair in pairs]
        assert [tuple(pair) for pair in found] == expected

    read()
    tried("a list in another spelling, read rightly", "list reader", len(seen))


def test_blanks_in_names_and_between_them(root, tried):
    tried("a list with blanks, read rightly", "list reader", 2)
    (root / "list.txt").write_text("街道/图 像.png 街道/标签.png\na.png a_label.png\n")
    assert [pair.label.name for pair in read_list(root / "list.txt")] == ["标签.png", "a_label.png"]
    (root / "list.txt").write_text("  街道/图 像.png ,  a_label.png  \n")
    assert read_list(root / "list.txt")[0].image == root / "街道" / "图 像.png"


GOOD = "a.png,a_label.png\n"
# name -> (bytes of the list, what the message says)
BAD = {
    "empty": (b"", "the list is empty"),
    "blank lines alone": (b"\n\r\n  \n", "the list is empty"),
    "a mark alone": (b"\xef\xbb\xbf", "the list is empty"),
    "utf-16": (GOOD.encode("utf-16"), "not UTF-8 text"),
    "gbk": ("街道/图像.png,街道/标签.png\n".encode("gbk"), "not UTF-8 text"),
    "an image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8 text"),
    "zero characters": (b"a.png,a_\0label.png\n", "line 1: '\\x00'"),
    "a terminal's commands": (b"a.png,\x1b[2Ja_label.png\n", "line 1: '\\x1b'"),
    "a line without end": (b"a" * 20_000 + b",b\n", "20002 characters"),
    "another file's line": (GOOD.encode() + b"a.png,nothing.png\n", "nothing.png"),
    "no separator": (b"a.png;a_label.png\n", "a.png;a_label.png"),
    "three columns": (b"a.png,a_label.png,3\n", "line 1"),
    "one column after two": (GOOD.encode() + b"a.png\n", "line 2"),
    "mixed separators": (GOOD.encode() + b"a.png\ta_label.png\n", "line 2"),
    "a comma at the end": (GOOD.encode() + b"a.png,\n", "line 2"),
    "commas alone": (b",\n", "line 1"),
    "an open quote": (b'"a.png,a_label.png\n', "list.txt"),
    "a wide open quote": (GOOD.encode() + b'a.png,"a_label.png\n"x\n', "line"),
    "absolute": (b"/etc/passwd,/etc/hostname\n", "leaves the data set's folder"),
    "absolute label": (b"a.png,/etc/passwd\n", "leaves the data set's folder"),
    "up": (b"../a.png,a_label.png\n", "leaves the data set's folder"),
    "up inside": ("街道/../../a.png,a_label.png\n".encode(), "leaves the data set's folder"),
    "up with backslashes": (b"..\\a.png,a_label.png\n", "leaves the data set's folder"),
    "drive": (b"C:\\data\\a.png,a_label.png\n", "leaves the data set's folder"),
    "network": (b"\\\\server\\a.png,a_label.png\n", "leaves the data set's folder"),
    "an address": (b"http://example.org/a.png,a_label.png\n", "http://example.org/a.png"),
    "home": (b"~/a.png,a_label.png\n", "~/a.png"),
    "another suffix": (b"a.jpg,a_label.png\n", "with the suffix .png"),
    "a folder's name": ("街道/,a_label.png\n".encode(), "街道/"),
    "other case": (b"A.PNG,a_label.png\n", "A.PNG"),
    "a wildcard": (b"*.png,a_label.png\n", "*.png"),
    "two blanks that could part": (b"a.png a.png a.png\n", "line 1"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_a_bad_list_is_refused_by_name_and_line(kind, root, tried):
    data, message = BAD[kind]
    tried("a bad list", "list reader")
    path = root / "list.txt"
    path.write_bytes(data)
    with nothing_written(root), pytest.raises(UserError) as error:
        read_list(path, root)
    require_refusal(error.value, path, message)


def test_lists_that_leave_the_root_are_refused_whatever_is_before_it(root, tried):
    """Also where the file is there, and with `check_files` off, as the list command's check reads."""
    (root.parent / "secret.png").write_bytes(b"x")
    (root / "sub").mkdir()
    ways = ("../secret.png", "sub/../../secret.png", str(root.parent / "secret.png"), "./../secret.png", "sub//../../x")
    tried("a list entry that leaves the root", "list reader", 2 * len(ways))
    for way in ways:
        (root / "list.txt").write_text(f"a.png,{way}\n")
        for check_files in (True, False):
            with pytest.raises(UserError, match="line 1: .*leaves the data set's folder"):
                read_list(root / "list.txt", root, check_files)


def test_no_list_and_a_folder_for_one(root, tried):
    tried("a bad list", "list reader", 2)
    for name, message in (("none.txt", "there is no such list"), ("街道", "cannot be read")):
        with pytest.raises(UserError) as error:
            read_list(root / name, root)
        require_refusal(error.value, root / name, message)


@pytest.mark.parametrize("kind", ["empty", "utf-16", "up", "another file's line", "three columns"])
def test_the_list_command_refuses_it(kind, root, tried, monkeypatch, capsys):
    tried("a bad list", "common/create_dataset_list.py")
    path = root / "list.txt"
    path.write_bytes(BAD[kind][0])
    (root / "classes.yaml").write_text("name: squares\nclasses: [one, two]\n")
    with nothing_written(root):
        try:
            status = create_dataset_list.main(["check", str(path)])
        except UserError as error:
            require_refusal(error, path)
        else:
            assert status == 1, capsys.readouterr().out  # a file that is missing: its table says so


DOORS = ("gbk", "up", "another file's line")


@pytest.mark.parametrize("kind", [DOORS[1], *(pytest.param(kind, marks=SLOW) for kind in DOORS if kind != DOORS[1])])
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_a_project_refuses_it_in_training_and_evaluation(target, kind, tmp_path, tried):
    tried("a bad list", target.name, 2)
    data = write_data(tmp_path / "data")
    for split, command in (
        ("train", target.train(data, tmp_path / "out", 1)),
        ("val", target.eval(trained(target).best, data, tmp_path / "out")),
    ):
        path = data / f"{split}.txt"
        before = path.read_bytes()
        path.write_bytes(before + BAD[kind][0])
        with nothing_written(data, tmp_path / "out"):
            refusal(call(command), path)
        path.write_bytes(before)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", [*DOORS, "no separator", "three columns", "is not there"])
def test_the_zoo_refuses_it_before_it_trains(kind, split, tmp_path, tried):
    tried("a bad list", TARGETS[-1].name)
    data = write_data(tmp_path / "data")
    config, path = write_own_config(tmp_path / "mine.yml", data), data / f"{split}.txt"
    if kind == "is not there":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + BAD[kind][0] if kind in DOORS else BAD[kind][0])
    command = TARGETS[-1].train(data, tmp_path / "out", 1, "--do_eval", config=config)
    with nothing_written(data, tmp_path / "out"):
        line = refusal(call(command), path)
    assert kind != "is not there" or f"create_dataset_list.py custom {data}" in line


def write_own_config(path: Path, data: Path) -> Path:
    """An experiment of the zoo on the three classes and the lists of `write_data`."""
    own = f"type: Dataset, dataset_root: '{data}', num_classes: 3"
    sections = [f"{split}_dataset: {{{own}, {split}_path: '{data / split}.txt'}}" for split in ("train", "val")]
    path.write_text("\n".join([f"_base_: {TARGETS[-1].config_file}", *sections, "model: {num_classes: 3}\n"]))
    return path


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_a_project_reads_a_list_from_windows_as_the_plain_one(target, tmp_path, tried):
    """Chinese folders, BOM, CRLF and backslashes: the same scores as with the plain list."""
    tried("a list in another spelling, read rightly", target.name)
    run = trained(target)
    data = tmp_path / "数据 集"
    shutil.copytree(run.data, data)
    (data / "gtFine").rename(data / "标签")
    lines = [
        line.replace("gtFine/", "标签/").replace("/", "\\") for line in (data / "val.txt").read_text().splitlines()
    ]
    (data / "val.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = []
    for root in (run.data, data):
        outcome = call(target.eval(run.best, root, tmp_path / root.name))
        assert outcome.returncode == 0, outcome.stderr
        rows.append(scores(tmp_path / root.name / "eval.csv"))
    assert rows[0] == rows[1]


def scores(path: Path) -> dict[str, str]:
    """The first row of eval.csv without its time."""
    with open(path, encoding="utf-8", newline="") as stream:
        row = next(csv.DictReader(stream))
    return {name: value for name, value in row.items() if name != "seconds"}
