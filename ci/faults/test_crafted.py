"""Files made to do harm: nothing in them runs, nothing is written outside its place, nothing becomes markup.

Each file that would execute is first shown to do so where it is opened carelessly: the canary it leaves proves that the
tests would notice.
"""

import importlib
import io
import json
import pickle
import re
import stat
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

from awesome_pytorch_seg.data.archives import unpack
from common.cli import UserError
from common.config.strict_yaml import load_yaml
from common.labels import load_custom
from common.runs.reading import read_run
from common.weights.pdparams import load_without_code
from paddleseg_benchmark.zoo.paddleseg_compat import load_as_tensors
from results.make_tables import build
from results.record import record
from results.recorded_runs import read_recorded
from weights_convert.weight_files import read_weights

import joblib
import numpy as np
import pytest
import torch
import yaml
from bad_input import nothing_written, refusal, require_refusal, trained
from crafted_run import results_tree, write_run
from markdown_it import MarkdownIt
from targets import RESUMABLE, TARGETS, call, images, write_data

# --- what runs where it is opened carelessly ------------------------------------------------------------------------


class Canary:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _torch_zip(path, canary):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": Canary(canary)}, path)


def _torch_tar(path, canary):
    torch.save({"conv1.weight": Canary(canary)}, path, _use_new_zipfile_serialization=False)


def _pickle(path, canary):
    path.write_bytes(pickle.dumps({"conv1.weight": Canary(canary)}))


def _pickle_of_paddle(path, canary):
    content = {"conv1.weight": np.zeros(1, np.float32), "StructuredToParameterName@@": Canary(canary)}
    path.write_bytes(pickle.dumps(content, protocol=4))


def _object_array(path, canary):
    with open(path, "wb") as stream:
        np.save(stream, np.array([Canary(canary)], dtype=object), allow_pickle=True)


def _object_arrays(path, canary):
    with open(path, "wb") as stream:
        np.savez(stream, **{"conv1.weight": np.array([Canary(canary)], dtype=object)})


def _joblib(path, canary):
    joblib.dump({"conv1.weight": Canary(canary)}, path)


def _joblib_packed(path, canary):
    joblib.dump({"conv1.weight": Canary(canary)}, path, compress=("zlib", 3))


CARELESS = {
    "torch zip": (_torch_zip, lambda path: torch.load(path, weights_only=False)),
    "torch tar": (_torch_tar, lambda path: torch.load(path, weights_only=False)),
    "pickle": (_pickle, lambda path: pickle.loads(path.read_bytes())),
    "paddle": (_pickle_of_paddle, lambda path: pickle.loads(path.read_bytes())),
    "numpy": (_object_array, lambda path: np.load(path, allow_pickle=True)),
    "numpy zip": (_object_arrays, lambda path: np.load(path, allow_pickle=True)["conv1.weight"]),
    "joblib": (_joblib, joblib.load),
    "joblib packed": (_joblib_packed, joblib.load),
}
"""What writes a file of the kind, and what runs it."""

SUFFIXES = (".pth", ".pt", ".tar", ".npz", ".pdparams", ".safetensors")


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.mark.parametrize("kind", list(CARELESS))
def test_every_reader_of_weights_leaves_the_canary_alone(kind, canary, tmp_path, tried):
    """Whatever kind of file, under whatever name."""
    write, careless = CARELESS[kind]
    paths = [tmp_path / f"crafted{suffix}" for suffix in SUFFIXES]
    write(paths[0], canary)
    careless(paths[0])
    assert canary.exists(), "this file would do nothing"
    canary.unlink()
    tried("a file that runs code, given as weights", "readers of weights", 2 * len(paths) + 2)
    for path in paths:
        path.write_bytes(paths[0].read_bytes())
        with pytest.raises(UserError) as error:
            read_weights(path)
        require_refusal(error.value, path)
    for reader in (load_without_code, load_as_tensors):
        with pytest.raises(UserError) as error:
            reader(paths[0])
        require_refusal(error.value, paths[0])
    for backbones in ("awesome_pytorch_seg.models.backbones", "encnet_single_gpu.models.backbones"):
        load_backbone_file(importlib.import_module(backbones), paths)
    assert not canary.exists()


def load_backbone_file(module, paths):
    network = torch.nn.Conv2d(1, 1, 1)
    for path in paths:
        with pytest.raises(UserError) as error:
            if hasattr(module, "load_imagenet_weights"):
                module.load_imagenet_weights(network, str(path))
            else:
                module.load_backbone(str(path), network)
        require_refusal(error.value, path)


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_every_door_of_a_project_leaves_the_canary_alone(target, canary, tmp_path, tried):
    """eval, predict, export and --resume, with each kind of file called checkpoint and export."""
    run = trained(target)
    image, out = images(run.data)[0], tmp_path / "out"
    tried("a file that runs code, given to a command", target.name, 5 * len(CARELESS))
    for kind, (write, _) in CARELESS.items():
        weights = tmp_path / "in" / f"{kind}.safetensors"
        weights.parent.mkdir(exist_ok=True)
        write(weights, canary)
        onnx = weights.with_suffix(".onnx")
        onnx.write_bytes(weights.read_bytes())
        commands = [
            *(target.eval(weights, run.data, out), target.predict(weights, image, out), target.export(weights, out)),
            *(target.command("train", "--resume", weights), target.predict(onnx, image, out)),
        ]
        for command in commands:
            with nothing_written(out, weights.parent):
                refusal(call(command), weights.stem)
    assert not canary.exists()


def test_pickles_that_only_use_what_is_allowed_are_still_arrays_alone(canary, tmp_path, tried):
    """The names that arrays are rebuilt from, given other work: no code, no error of another kind."""
    crafted = {
        "eval by name": b"cbuiltins\neval\n(S'open(\"" + str(canary).encode() + b'", "w")\'\ntR.',
        "system": b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
        "by attribute": b"cnumpy\nndarray.__init_subclass__\n(tR.",
        "a codec": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        "a huge shape": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L9999999999999L\ntS'b'\ntR.",
        "strides": b"cnumpy\nndarray\n((I4\ntS'O'\nS'AAAAAAAA'\nI0\n(I8\nttR.",
        "outside data": pickle.dumps({"a": 1})[:-1] + b"Pid\n.",
        "a list of itself": b"(lp0\ng0\na.",
        "extension": b"\x82\x01.",
        "a stack of nothing": b"0000.",
        "a bomb of dictionaries": b"(dp0\nS'a'\ng0\ns.",
    }
    tried("a pickle of allowed names", "reader of .pdparams", len(crafted))
    for kind, content in crafted.items():
        path = tmp_path / "crafted.pdparams"
        path.write_bytes(content)
        try:
            load_without_code(path)
        except UserError as error:
            require_refusal(error, path)
        assert not canary.exists(), kind


def test_weights_that_grow_beyond_measure(tmp_path, tried):
    tried("weights that are a bomb", "weights_convert", 2)
    for name, inner in (("bomb.npz", "w.npy"), ("bomb.pth", "archive/data.pkl")):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(inner, bytes(100 * 2**20))
        with pytest.raises(UserError) as error:
            read_weights(path)
        require_refusal(error.value, path, "it would grow to")


# --- YAML ------------------------------------------------------------------------------------------------------------

TAGS = (
    "!!python/object/apply:builtins.open [{canary}, w]",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/apply:subprocess.Popen [[touch, {canary}]]",
)


@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_of_yaml_runs(tag, canary, tmp_path, tried):
    text = f"name: {tag.format(canary=str(canary))}\nclasses: [x]\n"
    yaml_would_run(TAGS[0].format(canary=str(canary)), canary)
    tried("a tag of YAML that runs code", "configs, label sets, recorded runs", 4 + len(TARGETS))
    path = tmp_path / "crafted.yaml"
    path.write_text(text)
    readers = [lambda: load_yaml(text, str(path)), lambda: load_custom(path)]
    for target in TARGETS:
        module, function = ("zoo.zoo", str) if target.name == "paddleseg_benchmark" else ("config", str)
        read = importlib.import_module(f"{target.name}.{module}").read_config
        readers.append(lambda read=read, function=function: read(function(path)))
    legacy = importlib.import_module("paddleseg_benchmark.zoo.legacy_config").read_legacy
    readers.append(lambda: legacy(path, []))
    for reader in readers:
        with pytest.raises(UserError) as error:
            reader()
        require_refusal(error.value, path, "tag")
    run = write_run(tmp_path / "runs", config_text=text)
    with pytest.raises(UserError) as error:
        read_recorded(run)
    require_refusal(error.value, run, "tag")
    assert not canary.exists()


def yaml_would_run(text, canary):
    yaml.load(text, Loader=yaml.UnsafeLoader)
    assert canary.exists()
    canary.unlink()


# --- archives --------------------------------------------------------------------------------------------------------


def zip_with(name, data=b"x", mode=0):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/good", b"good")
        entry = zipfile.ZipInfo(name)
        entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(entry, data)
    return stream.getvalue()


def tar_with(name, kind=tarfile.REGTYPE, target="", size=0, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("data/good"))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, target, size
        archive.addfile(entry, io.BytesIO(bytes(size)))
        after = tarfile.TarInfo("data/link/evil")
        archive.addfile(after)
    return stream.getvalue()


LINK = stat.S_IFLNK | 0o777
ARCHIVES = {
    **{
        f"zip {name}": zip_with(name)
        for name in ("../evil", "data/../../evil", "/tmp/evil_faults", "C:/evil", "..\\evil")
    },
    **{
        f"zip {name!r}": zip_with(name)
        for name in ("data/a\\..\\..\\..\\evil", "\\\\server\\evil", "data/./../../evil")
    },
    "zip link": zip_with("data/link", b"/tmp", LINK),
    "zip link up": zip_with("data/link", b"../..", LINK),
    "zip device": zip_with("data/null", b"", stat.S_IFCHR | 0o666),
    "zip bomb": zip_with("data/zeros", bytes(60 * 2**20)),
    "zip of a file below a file": zip_with("data/good/evil"),
    **{f"tar {name}": tar_with(name) for name in ("../evil", "data/../../evil", "/tmp/evil_faults", "..\\evil")},
    "tar link": tar_with("data/link", tarfile.SYMTYPE, "/tmp"),
    "tar link up": tar_with("data/link", tarfile.SYMTYPE, "../.."),
    "tar hard link": tar_with("data/link", tarfile.LNKTYPE, "/etc/passwd"),
    "tar device": tar_with("data/null", tarfile.CHRTYPE),
    "tar pipe": tar_with("data/pipe", tarfile.FIFOTYPE),
    "tgz bomb": tar_with("data/zeros", size=60 * 2**20, mode="w:gz"),
    "tgz header bomb": tar_with("data/pax", tarfile.XHDTYPE, size=60 * 2**20, mode="w:gz"),
    "tgz cut": tar_with("data/more", mode="w:gz")[:-30],
    "zip cut": zip_with("data/more")[:-30],
    "no archive": b"PK but not one",
}


@pytest.mark.parametrize("kind", list(ARCHIVES))
def test_archives_write_nothing_outside_nor_half(kind, tmp_path, tried):
    tried("a crafted archive", "awesome_pytorch_seg/data/archives.py")
    archive, root = tmp_path / "in" / "archive", tmp_path / "deep" / "root"
    archive.parent.mkdir()
    root.mkdir(parents=True)
    archive.write_bytes(ARCHIVES[kind])
    with nothing_written(tmp_path), pytest.raises(UserError) as error:
        unpack(archive, {"data": "data"}, root)
    require_refusal(error.value, archive)
    assert not Path("/tmp/evil_faults").exists() and not list(root.iterdir())


# --- the results page ------------------------------------------------------------------------------------------------

EVIL = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "' autofocus onfocus='alert(1)",
    "[click](javascript:alert(1))",
    "![image](http://example.org/x.png)",
    "a | b | c",
    "two\nlines\n\n# title\n\n- item",
    "`code` and ``more``",
    "**bold** _leaning_ ~~gone~~ __more__",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "\\| \\` \\[x\\](y)",
    "<http://example.org> <a@example.org>",
    "{{data}} {{page.js}}",
    "  - spaces and\ttabs  ",
    "\u202eturned\u2028line\u2029end",
    "[x]: http://example.org 'title'",
    "|---|",
)


class Elements(HTMLParser):
    """Every element of a page with its attributes, in their order, and the text of the scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(attrs)))

    def handle_comment(self, data):
        self.found.append(("comment", data))


def made(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): text for path, text in build(root).texts.items()}


def elements(name: str, text: str) -> list:
    """What a browser, or a reader of Markdown, makes of a file."""
    if name.endswith(".md"):
        text = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)
    return Elements(text).found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made(results_tree(tmp_path_factory.mktemp("plain"), "word"))


@pytest.mark.parametrize("number", range(len(EVIL)))
def test_no_text_of_a_run_becomes_markup(number, plain, tmp_path, tried):
    """The page and every table have the elements and attributes that they have with a harmless word."""
    texts = EVIL[number]
    tried("markup in the texts of a run", "results page, tables", 1)
    crafted = made(results_tree(tmp_path, texts))
    assert crafted.keys() == plain.keys()
    for name, text in crafted.items():
        assert elements(name, text) == elements(name, plain[name]), name
    page = crafted["results/site/index.html"]
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    shown = [row for row in data["rows"] if row["runs"]]
    assert shown[0]["runs"][0]["command"] == texts  # it is in the page, as text
    assert data["classes"][shown[0]["classes"]][0] == texts


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("<img src=x>_s0_20261121_0123456", {}),
        ("x](javascript:alert(1))[y", {}),
        ("a b", {}),
        ("-rf", {}),
        ("quickstart_s0_20261121_0123456", {"project": "../../evil"}),
        ("quickstart_s0_20261121_0123456", {"project": "/tmp"}),
        ("quickstart_s0_20261121_0123456", {"project": "stdc_seg/../../.."}),
        ("quickstart_s0_20261121_0123456", {"project": "<b>"}),
        ("quickstart_s0_20261121_0123456", {"config": "../evil"}),
        ("quickstart_s0_20261121_0123456", {"config": "<script>"}),
        ("quickstart_s0_20261121_0123456", {"config": "`x`|y"}),
        ("quickstart_s0_20261121_0123456", {"seed": "<img src=x>"}),
        ("quickstart_s0_20261121_0123456", {"seed": float("nan")}),
        ("quickstart_s0_20261121_0123456", {"scope": "<b>full"}),
        ("quickstart_s0_20261121_0123456", {"class_names": ["a", {"b": 1}]}),
        ("quickstart_s0_20261121_0123456", {"cpu": "half \ud800"}),
        ("quickstart_s0_20261121_0123456", {"threads": {"a": 1}}),
    ],
)
def test_names_and_kinds_that_no_run_has_are_refused(name, env, tmp_path, tried):
    tried("a name or value that no run has", "results", 2)
    folder = write_run(tmp_path / "in", name=name, **env)
    root = tmp_path / "root"
    (root / "projects" / "stdc_seg").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        read_recorded(folder)
    require_refusal(error.value, folder)
    with nothing_written(tmp_path), pytest.raises(UserError):
        record(folder, root, unknown_code=True)


def test_a_commit_is_no_word_of_a_command(tmp_path, tried):
    tried("a commit that is an option of git", "results/record.py", 3)
    for number, commit in enumerate(("--help", "-e; touch x", "HEAD")):
        name = f"quickstart_s0_20261121_{commit[:7]}"
        folder = write_run(tmp_path / str(number), name=name, commit=commit)
        with pytest.raises(UserError):
            record(folder, Path(__file__).parents[2])


def test_a_run_reads_as_it_was_written(tmp_path):
    """What the tests above change is a sound run before."""
    assert read_recorded(write_run(tmp_path)).series[0].best.miou_percent == 50.0
    assert len(read_run(tmp_path / "quickstart_s0_20261121_0123456").eval) == 2


def test_a_list_of_another_set_reaches_no_file_outside(tmp_path, tried):
    """A project's list that leads to a file that is there, outside of the root."""
    tried("a list entry that leaves the root", "every project", len(RESUMABLE))
    (tmp_path / "secret.png").write_bytes(b"secret")
    data = write_data(tmp_path / "data")
    (data / "val.txt").write_text("../secret.png,../secret.png\n")
    for target in RESUMABLE:
        line = refusal(call(target.eval(trained(target).best, data, tmp_path / "out")), data / "val.txt", "leaves")
        assert "secret bytes" not in line
