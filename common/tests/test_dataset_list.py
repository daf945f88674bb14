"""List files and layouts: what is found, how it is written, and that every reader's trap is closed."""

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

from common.cli import UserError
from common.create_dataset_list import main
from common.dataset_list import make_lists, read_list, write_list
from common.images.read import read_label
from common.lists.layouts import LAYOUTS, find_pairs
from common.lists.list_file import Pair, format_list

import cv2
import numpy as np
import pytest
from PIL import Image

NAMES = ["a b.png", "a,b.png", "weed (272).png", "街道 图.png", "plain.png", 'q"uote.png']


def png(path: Path, values=0, size=(4, 6)) -> Path:
    """Writes a one-channel PNG of `size` holding `values` (a number or an array)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(size, np.uint8) + np.asarray(values, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())
    return path


def random_image(path: Path, seed=0, size=(4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())
    return path


def odd_names(root: Path, names=NAMES) -> list[Pair]:
    return [Pair(random_image(root / "images" / name), png(root / "labels" / name)) for name in sorted(names)]


def cityscapes(root: Path, kind="labelTrainIds", extra=False) -> Path:
    for split, city, count in (("train", "aachen", 3), ("val", "lindau", 2), ("test", "berlin", 2)):
        for number in range(count):
            stem = f"{city}_000000_{number:06d}"
            random_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", seed=number)
            png(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", 7 if kind == "labelIds" else 0)
    if extra:
        random_image(root / "leftImg8bit/train_extra/nice/nice_000000_000001_leftImg8bit.png")
        png(root / f"gtCoarse/train_extra/nice/nice_000000_000001_gtCoarse_{kind}.png")
    return root


# -- the line format ---------------------------------------------------------------------------------------------------


def test_a_line_is_image_comma_label_relative_to_the_root(tmp_path):
    pair = Pair(tmp_path / "leftImg8bit/test/m.png", tmp_path / "gtFine/test/m.png")
    assert format_list([pair], tmp_path) == "leftImg8bit/test/m.png,gtFine/test/m.png\n"
    assert format_list([Pair(pair.image, None)], tmp_path) == "leftImg8bit/test/m.png\n"


@pytest.mark.parametrize(
    ("separator", "names"),
    [
        (",", NAMES),
        ("comma", NAMES),
        ("tab", NAMES),
        ("\\t", NAMES),
        ("|", NAMES),
        (" ", ["weed(272).png", "街道.png", "a,b.png"]),
    ],
)
def test_odd_names_come_back_through_every_separator(tmp_path, separator, names):
    pairs = odd_names(tmp_path, names)
    write_list(tmp_path / "train.txt", pairs, tmp_path, separator)
    assert read_list(tmp_path / "train.txt") == pairs
    for pair in pairs:  # the first line decides on the separator, so each name must be able to stand first
        write_list(tmp_path / "one.txt", [pair, *pairs], tmp_path, separator)
        assert read_list(tmp_path / "one.txt") == [pair, *pairs]


@pytest.mark.parametrize("separator", [",", "tab", "|"])
def test_odd_names_come_back_without_a_look_at_the_files(tmp_path, separator):
    pairs = odd_names(tmp_path)
    write_list(tmp_path / "train.txt", pairs, tmp_path, separator)
    for pair in pairs:
        pair.image.unlink()
        pair.label.unlink()
    assert read_list(tmp_path / "train.txt", check_files=False) == pairs


@pytest.mark.parametrize(("separator", "name"), [(" ", "a b.png"), ("|", "a|b.png"), ("tab", "a\tb.png")])
def test_a_separator_inside_a_name_is_refused(tmp_path, separator, name):
    with pytest.raises(UserError, match="holds the separator"):
        format_list([Pair(tmp_path / name, None)], tmp_path, separator)


@pytest.mark.parametrize("name", ["a\\b.png", "a\nb.png", " a.png", "a.png ", "\udcff.png"])
def test_a_name_that_no_list_can_hold_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="rename the file"):
        format_list([Pair(tmp_path / name, None)], tmp_path)


def test_pairs_outside_of_the_root_and_no_pairs_are_refused(tmp_path):
    with pytest.raises(UserError, match="not under"):
        format_list([Pair(Path("/elsewhere/a.png"), None)], tmp_path)
    with pytest.raises(UserError, match="leads out of"):
        format_list([Pair(tmp_path / "../a.png", None)], tmp_path)
    with pytest.raises(UserError, match="no pairs"):
        format_list([], tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("between", [",", "\t", "|", " ", ", ", "  "])
def test_a_list_made_on_windows_reads_here(tmp_path, end, mark, between):
    pairs = odd_names(tmp_path, ["x 1.png", "y.png"] if between != "," else ["x.png", "y.png"])
    lines = [f"images\\{pair.image.name}{between}labels\\{pair.label.name}" for pair in pairs]
    (tmp_path / "train.txt").write_bytes((mark + end.join(lines) + end + end).encode())
    assert read_list(tmp_path / "train.txt") == pairs


def test_a_space_counts_only_where_it_parts_two_existing_files(tmp_path):
    for name in ("a", "a b", "b c", "c"):
        (tmp_path / name).write_text("x")
    (tmp_path / "train.txt").write_text("a b c\n")  # "a" + "b c", or "a b" + "c"
    with pytest.raises(UserError, match=r"line 1: 2 places where a space parts two files"):
        read_list(tmp_path / "train.txt")
    (tmp_path / "a b").unlink()
    assert read_list(tmp_path / "train.txt") == [Pair(tmp_path / "a", tmp_path / "b c")]
    (tmp_path / "train.txt").write_text("a c\nc nothing\n")
    with pytest.raises(UserError, match=r"line 2: no place"):
        read_list(tmp_path / "train.txt")


def test_a_list_of_images_alone(tmp_path):
    pairs = [Pair(pair.image, None) for pair in odd_names(tmp_path)]
    write_list(tmp_path / "test.txt", pairs, tmp_path)
    assert read_list(tmp_path / "test.txt") == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("\n  \r\n", "the list is empty"),
        ("/etc/passwd,labels/plain.png\n", r"line 1: '/etc/passwd' leaves"),
        ("images/plain.png,../plain.png\n", r"line 1: '\.\./plain\.png' leaves"),
        ("C:\\images\\plain.png,labels\\plain.png\n", "leaves the data set's folder"),
        (
            "images/plain.png,labels/plain.png\nimages/plain.png\n",
            r"line 2: .* is not an image and its label, unlike line 1",
        ),
        ("images/plain.png\nimages/plain.png,labels/plain.png\n", r"line 2: .* is not one image, unlike line 1"),
        ("images/plain.png,labels/plain.png,3\n", r"line 1: .* is not one image; all lines"),
        ("images/plain.png,\n", r"line 1: 'images/plain.png,' ends with a separator"),
        ("images/plain.png,labels/plain.png\na,b,c\n", r"line 2: 'a,b,c' is not an image"),
    ],
)
def test_a_crooked_list_is_one_clear_line(tmp_path, text, message):
    odd_names(tmp_path)
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_list(tmp_path / "train.txt")
    assert "\n" not in str(error.value)
    assert "train.txt" in str(error.value)


def test_missing_files_are_named_with_the_suffix_that_exists(tmp_path):
    odd_names(tmp_path, ["a.png", "b.png"])
    lines = [f"images/{stem}.jpg,labels/{stem}.png" for stem in "ab"] + [f"gone/{n}.png,labels/a.png" for n in range(5)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"7 of 14 files are not under") as error:
        read_list(tmp_path / "train.txt")
    assert "images/a.jpg, images/b.jpg, gone/0.png and 4 more" in str(error.value)
    assert "with the suffix .png they are there" in str(error.value)
    assert len(read_list(tmp_path / "train.txt", check_files=False)) == 7
    with pytest.raises(UserError, match="there is no such list, did you mean 'train.txt'?"):
        read_list(tmp_path / "trian.txt")
    with pytest.raises(UserError, match="there is no such list; make it"):
        read_list(tmp_path / "images" / "train.txt")


def test_a_long_list_is_checked_by_listing_each_folder_once(tmp_path, monkeypatch):
    """No question to the disk per line: that is what makes 100 000 lines fast (`ci/benchmark_list_reading.py`)."""
    pairs = [Pair(tmp_path / f"images/{n}.png", tmp_path / f"labels/{n}.png") for n in range(500)]
    for path in (path for pair in pairs for path in pair):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    write_list(tmp_path / "train.txt", pairs * 20, tmp_path)
    asked, list_folder = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: asked.append(path) or list_folder(path))
    for question in ("stat", "lstat", "scandir"):
        monkeypatch.setattr(os, question, lambda path, *_, **__: asked.append(path))
    read = read_list(tmp_path / "train.txt")
    monkeypatch.undo()
    assert read == pairs * 20
    assert {tmp_path / "images", tmp_path / "labels"} <= set(asked)
    assert len(asked) == len(set(asked)) <= 4  # the other two: where the first line's separator is found out


def test_the_garbage_collector_is_left_as_it_was(tmp_path):
    odd_names(tmp_path, ["a.png"])
    (tmp_path / "train.txt").write_text("images/a.png,labels/a.png\n")
    (tmp_path / "gone.txt").write_text("images/b.png,labels/b.png\n")
    for switch, enabled in ((gc.disable, False), (gc.enable, True)):
        switch()
        try:
            read_list(tmp_path / "train.txt")
            with pytest.raises(UserError, match="2 of 2 files are not under"):
                read_list(tmp_path / "gone.txt")
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_paddleseg_reads_the_written_list(tmp_path):
    paddleseg_dataset = pytest.importorskip("paddleseg.datasets.dataset")
    pairs = odd_names(tmp_path, ["a.png", "街道.png"])
    write_list(tmp_path / "train.txt", pairs, tmp_path, ",")
    dataset = paddleseg_dataset.Dataset(
        mode="train",
        dataset_root=str(tmp_path),
        transforms=[],
        num_classes=2,
        train_path=str(tmp_path / "train.txt"),
        separator=",",
    )
    assert dataset.file_list == [[str(pair.image), str(pair.label)] for pair in pairs]


# -- data sets -----------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_cityscapes_lists(tmp_path, capsys):
    root = cityscapes(tmp_path / "c")
    assert main(["cityscapes", str(root)]) == 0
    image, label = "leftImg8bit/{0}_leftImg8bit.png", "gtFine/{0}_gtFine_labelTrainIds.png"
    train = [f"train/aachen/aachen_000000_{n:06d}" for n in range(3)]
    val = [f"val/lindau/lindau_000000_{n:06d}" for n in range(2)]
    assert lines_of(root / "train.txt") == [f"{image},{label}".format(stem) for stem in train]
    assert lines_of(root / "trainval.txt") == [f"{image},{label}".format(stem) for stem in train + val]
    assert len(lines_of(root / "test.txt")) == 2
    assert not (root / "train+.txt").exists()
    assert "there is no leftImg8bit/train_extra" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in root.glob("*.txt")}
    assert main(["cityscapes", str(root)]) == 0  # the same again
    assert {path.name: path.read_bytes() for path in root.glob("*.txt")} == before


def test_cityscapes_extra_lists(tmp_path):
    root = cityscapes(tmp_path, extra=True)
    files = make_lists("cityscapes", root).files
    assert list(files) == ["train", "val", "test", "trainval", "train+", "train++"]
    nice = (
        "leftImg8bit/train_extra/nice/nice_000000_000001_leftImg8bit.png,"
        "gtCoarse/train_extra/nice/nice_000000_000001_gtCoarse_labelTrainIds.png"
    )
    assert lines_of(root / "train+.txt") == [*lines_of(root / "train.txt"), nice]
    assert lines_of(root / "train++.txt") == [*lines_of(root / "train.txt"), *lines_of(root / "val.txt"), nice]


def test_paddleseg_spelling_and_output_folder(tmp_path):
    root = cityscapes(tmp_path / "c")
    words = [f"{root}/", "--type", "cityscapes", "--separator", "|", "--output", str(tmp_path / "lists")]
    assert main(words) == 0
    assert not list(root.glob("*.txt"))
    assert lines_of(tmp_path / "lists/val.txt")[0].count("|") == 1
    assert len(read_list(tmp_path / "lists/val.txt", root)) == 2


def test_without_a_folder_data_cityscapes_is_used(tmp_path, monkeypatch):
    root = cityscapes(tmp_path / "data/cityscapes")
    monkeypatch.chdir(tmp_path)
    assert main(["cityscapes"]) == 0
    assert len(read_list(root / "train.txt")) == 3


def test_the_command_as_users_type_it(tmp_path):
    cityscapes(tmp_path / "data/cityscapes")
    script = Path(sys.modules["common.create_dataset_list"].__file__)
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    run = subprocess.run(
        [sys.executable, script, "cityscapes"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "train.txt: 3 lines" in run.stdout
    run = subprocess.run(
        [sys.executable, script, "citiscapes"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: unknown data set 'citiscapes': did you mean 'cityscapes'?")
    assert run.stderr.count("\n") == 1


def test_a_missing_folder_says_what_belongs_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"leftImg8bit/\{train,val,test\}.*python common/toy_dataset\.py cityscapes"):
        find_pairs("cityscapes")
    for dataset in LAYOUTS:
        with pytest.raises(UserError, match=re.escape(f"no folder {tmp_path / 'nowhere'}")):
            find_pairs(dataset, tmp_path / "nowhere")
        with pytest.raises(UserError, match=re.escape(LAYOUTS[dataset].expected)):
            find_pairs(dataset, tmp_path)


def test_cityscapes_test_images_without_labels_are_listed_alone(tmp_path):
    root = cityscapes(tmp_path)
    for label in (root / "gtFine/test").rglob("*.png"):
        label.unlink()
    make_lists("cityscapes", root)
    assert read_list(root / "test.txt") == [
        Pair(root / f"leftImg8bit/test/berlin/berlin_000000_{n:06d}_leftImg8bit.png", None) for n in range(2)
    ]


def test_label_ids_alone_ask_for_conversion_or_can_be_listed(tmp_path):
    root = cityscapes(tmp_path, kind="labelIds")
    with pytest.raises(UserError, match=r"3 images of train have labelIds but no trainIds.*--convert"):
        make_lists("cityscapes", root)
    assert not list(root.glob("*.txt"))
    files = make_lists("cityscapes", root, labels="labelIds").files
    assert lines_of(files["val"])[0].endswith("_gtFine_labelIds.png")
    with pytest.raises(UserError, match="--labels colours is not a choice"):
        make_lists("cityscapes", root, labels="colours")


def test_lists_with_another_content_are_not_overwritten_unasked(tmp_path):
    root = cityscapes(tmp_path)
    (root / "val.txt").write_text("made by hand")
    with pytest.raises(UserError, match=r"val\.txt: there already, and different; --overwrite"):
        make_lists("cityscapes", root)
    assert [path.name for path in root.glob("*.txt")] == ["val.txt"]  # nothing is written before all is well
    make_lists("cityscapes", root, overwrite=True)
    assert len(lines_of(root / "val.txt")) == 2


def test_ade20k_from_either_folder_and_the_full_release(tmp_path):
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        random_image(tmp_path / "ADEChallengeData2016/images" / split / f"{stem}.jpg")
        png(tmp_path / "ADEChallengeData2016/annotations" / split / f"{stem}.png")
    make_lists("ade20k", tmp_path)
    assert lines_of(tmp_path / "train.txt") == [
        "ADEChallengeData2016/images/training/ADE_train_00000001.jpg,"
        "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    ]
    make_lists("ade20k", tmp_path / "ADEChallengeData2016")
    assert lines_of(tmp_path / "ADEChallengeData2016/val.txt") == [
        "images/validation/ADE_val_00000001.jpg,annotations/validation/ADE_val_00000001.png"
    ]
    full = tmp_path / "full"
    random_image(full / "ADE20K_2016_07_26/images/training/a/abbey/ADE_train_00000001_seg.png")
    with pytest.raises(UserError, match=r"full ADE20K release.*ADEChallengeData2016\.zip"):
        find_pairs("ade20k", full)


def test_pascal_context_reads_stems_and_lines(tmp_path):
    for stem in ("2008_000002", "2008_000003", "2008_000007"):
        random_image(tmp_path / f"JPEGImages/{stem}.jpg")
        png(tmp_path / f"GroundTruth_trainval_png/{stem}.png")
    (tmp_path / "pascal_context_train.txt").write_text("2008_000003\n2008_000002\n")
    (tmp_path / "pascal_context_val.txt").write_text(
        "JPEGImages/2008_000007.jpg GroundTruth_trainval_png/2008_000007.png\n"
    )
    lists = find_pairs("pascal_context", tmp_path).lists
    assert {name: [pair.image.stem for pair in pairs] for name, pairs in lists.items()} == {
        "train": ["2008_000002", "2008_000003"],
        "val": ["2008_000007"],
        "trainval": ["2008_000002", "2008_000003", "2008_000007"],
    }


def voc(root: Path, train=("2007_1", "2007_2"), val=("2007_3",), extra=("2008_1", "2008_2")) -> Path:
    base = root / "VOCdevkit/VOC2012"
    for stem in (*train, *val, *extra):
        random_image(base / f"JPEGImages/{stem}.jpg", size=(8, 8))
    for stem in (*train, *val):
        png(base / f"SegmentationClass/{stem}.png", 1, size=(8, 8))
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    for name, stems in (("train", train), ("val", val), ("trainval", (*train, *val))):
        (base / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(stems) + "\n")
    return base


@pytest.mark.parametrize("level", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_from_any_of_its_three_levels(tmp_path, level):
    base = voc(tmp_path)
    found = find_pairs("voc", tmp_path / level)
    assert [pair.image.name for pair in found.lists["train"]] == ["2007_1.jpg", "2007_2.jpg"]
    assert found.lists["val"] == [Pair(base / "JPEGImages/2007_3.jpg", base / "SegmentationClass/2007_3.png")]
    assert len(found.lists["trainval"]) == 3


@pytest.mark.parametrize("sbd", ["SBD/benchmark_RELEASE/dataset", "benchmark_RELEASE/dataset"])
def test_voc_aug_adds_sbd_without_val(tmp_path, sbd, capsys):
    base = voc(tmp_path)
    # SBD: one image of VOC train, one of VOC val, two new ones.
    for stem, value in (("2007_1", 9), ("2007_3", 9), ("2008_1", 5), ("2008_2", 20)):
        write_sbd(tmp_path / sbd / f"cls/{stem}.mat", np.full((8, 8), value, np.uint8))
    (tmp_path / sbd / "train.txt").write_text("2007_1\n2008_1\n")
    (tmp_path / sbd / "val.txt").write_text("2007_3\n2008_2\n")
    assert main(["voc_aug", str(tmp_path)]) == 0
    pairs = read_list(tmp_path / "train_aug.txt")
    assert [pair.image.stem for pair in pairs] == ["2007_1", "2007_2", "2008_1", "2008_2"]
    assert [int(read_label(pair.label).max()) for pair in pairs] == [1, 1, 5, 20]  # VOC's own labels come first
    assert pairs[2].label == base / "SegmentationClassAug/2008_1.png"
    assert not {pair.image for pair in pairs} & {pair.image for pair in read_list(tmp_path / "val.txt")}
    said = capsys.readouterr().out
    assert "train_aug: 2 of VOC train + 2 of SBD = 4 pairs (the full sets give 10582); 1 of SBD are in VOC val" in said


def write_sbd(path: Path, label: np.ndarray) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, {"GTcls": {"Segmentation": label, "Boundaries": 0}}, do_compression=True)


def test_voc_aug_with_labels_someone_else_converted(tmp_path):
    base = voc(tmp_path)
    with pytest.raises(UserError, match=r"no .*SegmentationClassAug"):
        make_lists("voc_aug", tmp_path)
    for stem in ("2007_1", "2007_3", "2008_1"):
        png(base / f"SegmentationClassAug/{stem}.png", 3, size=(8, 8))
    make_lists("voc_aug", tmp_path)
    assert [pair.image.stem for pair in read_list(tmp_path / "train_aug.txt")] == ["2007_1", "2007_2", "2008_1"]


def test_lip_sbu_and_camvid(tmp_path):
    lip, sbu, camvid = tmp_path / "lip", tmp_path / "sbu", tmp_path / "camvid"
    for split in ("train", "val"):
        random_image(lip / f"TrainVal_images/{split}_images/{split}_1.jpg")
        png(lip / f"TrainVal_parsing_annotations/{split}_segmentations/{split}_1.png")
        (lip / f"{split}_id.txt").write_text(f"{split}_1\n")
    for folder in ("SBUTrain4KRecoveredSmall", "SBU-Test"):
        random_image(sbu / folder / "ShadowImages/a.jpg")
        png(sbu / folder / "ShadowMasks/a.png")
    for split in ("train", "val", "test"):
        random_image(camvid / split / "x.jpg")
        png(camvid / f"{split}annot/x.png")
    assert {name: len(pairs) for name, pairs in find_pairs("lip", lip).lists.items()} == {"train": 1, "val": 1}
    assert {name: len(pairs) for name, pairs in find_pairs("sbu", sbu).lists.items()} == {"train": 1, "test": 1}
    lists = find_pairs("camvid", camvid).lists
    assert {name: len(pairs) for name, pairs in lists.items()} == {"train": 1, "val": 1, "test": 1, "trainval": 2}
    make_lists("sbu", sbu)
    assert lines_of(sbu / "test.txt") == ["SBU-Test/ShadowImages/a.jpg,SBU-Test/ShadowMasks/a.png"]


def test_custom_folders_list_partners_and_name_what_has_none(tmp_path, capsys):
    for name in ("b", "a", "sub/c", "no label"):
        random_image(tmp_path / f"images/train/{name}.jpg")
    for name in ("a", "b", "sub/c", "no image"):
        png(tmp_path / f"labels/train/{name}.png")
    assert main(["custom", str(tmp_path)]) == 0
    assert lines_of(tmp_path / "train.txt") == [
        f"images/train/{name}.jpg,labels/train/{name}.png" for name in ("a", "b", "sub/c")
    ]
    said = capsys.readouterr().err
    assert "1 images without label, left out: " in said
    assert "no label.jpg" in said
    assert "1 labels without image, left out: " in said
    assert "no image.png" in said


def test_custom_without_splits_is_one_list(tmp_path):
    random_image(tmp_path / "images/a.jpg")
    png(tmp_path / "labels/a.png")
    made = make_lists("custom", tmp_path)
    assert list(made.files) == ["train"]
    assert "no folders train and val" in made.found.notes[0]


def test_custom_from_a_csv(tmp_path):
    odd_names(tmp_path, ["a,1.png", "b.png", "c.png"])
    table = tmp_path / "pairs.csv"
    table.write_text(
        'split,image,label\nval,images/b.png,labels\\b.png\ntrain,"images/a,1.png","labels/a,1.png"\n', "utf-8-sig"
    )
    assert main(["custom", str(tmp_path), "--csv", str(table)]) == 0
    assert lines_of(tmp_path / "train.txt") == ['"images/a,1.png","labels/a,1.png"']
    assert lines_of(tmp_path / "val.txt") == ["images/b.png,labels/b.png"]
    (tmp_path / "all.csv").write_text("images/c.png,labels/c.png\nimages/b.png,labels/b.png\n")
    assert main(["custom", "--csv", str(tmp_path / "all.csv")]) == 0  # no header, no root
    assert lines_of(tmp_path / "all.txt") == ["images/b.png,labels/b.png", "images/c.png,labels/c.png"]
    for content, message in (
        ("image,label\nimages/z.png,labels/b.png\n", r"line 2: .*z\.png is not there"),
        ("images/b.png\n", r"line 1: 1 columns where image,label are expected"),
        ("", "no pairs of image and label"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=message):
            find_pairs("custom", tmp_path, csv_file=table)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_toy_layout_is_listed_and_passes_the_check(tmp_path, layout):
    toy = pytest.importorskip("common.toy_dataset")
    toy.write_toy_dataset(layout, tmp_path, num_train=4, num_val=2, size=(96, 128))
    made = make_lists(layout, tmp_path)
    assert {name.removesuffix("_aug") for name in made.files} >= {"train", "test" if layout == "sbu" else "val"}
    assert main(["check", layout, str(tmp_path)]) == 0
    assert main(["stats", layout, str(tmp_path)]) == 0


# -- what file systems and tables of users hold ------------------------------------------------------------------------


def small_custom(root, names=("a", "b")):
    for name in names:
        for folder in ("images", "labels"):
            path = root / folder / "train" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    (root / "classes.yaml").write_text("name: mine\nclasses: [one, two]\n")
    return root


def test_hidden_files_and_folders_are_no_pairs(tmp_path):
    small_custom(tmp_path, ("a", "sub/b", ".ipynb_checkpoints/a", "sub/.cache/c", "._a"))
    found = find_pairs("custom", tmp_path)
    images = [pair.image.relative_to(tmp_path).as_posix() for pair in found.lists["train"]]
    assert images == ["images/train/a.png", "images/train/sub/b.png"]
    hidden = tmp_path / ".hidden_root"  # of the root itself a dot says nothing
    assert len(find_pairs("custom", small_custom(hidden)).lists["train"]) == 2


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    small_custom(tmp_path / "elsewhere", ("c", "d"))
    root = small_custom(tmp_path / "set")
    for folder in ("images", "labels"):
        (root / folder / "train/more").symlink_to(tmp_path / "elsewhere" / folder / "train")
        (root / folder / "train/loop").symlink_to(root / folder)
        (root / folder / "train/itself").symlink_to(root / folder / "train/itself")
    found = find_pairs("custom", root)
    images = [pair.image.relative_to(root).as_posix() for pair in found.lists["train"]]
    assert images == ["images/train/a.png", "images/train/b.png", "images/train/more/c.png", "images/train/more/d.png"]


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_files_of_one_name_are_refused(folder, tmp_path):
    small_custom(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "train/a.tif")
    with pytest.raises(UserError, match=rf"{folder}/train/a\.png and a\.tif have one name: .* remove one"):
        find_pairs("custom", tmp_path)


TABLES = {
    "plain": ("image,label,split\nimages/train/a.png,labels/train/a.png,{}\n", "utf-8"),
    "excel": ("image;label;split\r\nimages\\train\\a.png;labels\\train\\a.png;{}\r\n", "utf-8-sig"),
    "excel sep": ("sep=;\r\nimage;label;split\r\nimages/train/a.png;labels/train/a.png;{}\r\n", "utf-8-sig"),
    "excel unicode": ("image\tlabel\tsplit\r\nimages/train/a.png\tlabels/train/a.png\t{}\r\n", "utf-16"),
    "pandas": (",image,label,width,split\n0,images/train/a.png,labels/train/a.png,8,{}\n", "utf-8"),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    "written, name",
    [
        ("train", "train"),
        ("Train", "train"),
        ("validation", "val"),
        ("VALID", "val"),
        ("testing", "test"),
        ("fold_1", "fold_1"),
    ],
)
def test_tables_of_excel_and_pandas(kind, written, name, tmp_path):
    small_custom(tmp_path)
    text, encoding = TABLES[kind]
    (tmp_path / "pairs.csv").write_bytes(text.format(written).encode(encoding))
    found = find_pairs("custom", tmp_path, csv_file=tmp_path / "pairs.csv")
    assert {split: len(pairs) for split, pairs in found.lists.items()} == {name: 1}


@pytest.mark.parametrize("split", ["../../evil", "/tmp/evil", "a/b", "..", "tr ain"])
def test_a_split_that_is_a_path_is_refused(split, tmp_path):
    small_custom(tmp_path)
    (tmp_path / "pairs.csv").write_text(f"image,label,split\nimages/train/a.png,labels/train/a.png,{split}\n")
    with pytest.raises(UserError, match=r"pairs\.csv, line 2: split .* is not a plain name: use train, val, test"):
        make_lists("custom", tmp_path, csv_file=tmp_path / "pairs.csv")
    assert not list(tmp_path.parent.glob("evil*"))


def test_an_empty_cell_of_a_table_is_named(tmp_path):
    small_custom(tmp_path)
    (tmp_path / "pairs.csv").write_text("image,label,split\nimages/train/a.png,,train\n")
    with pytest.raises(UserError, match=r"pairs\.csv, line 2: no label: fill the cell"):
        find_pairs("custom", tmp_path, csv_file=tmp_path / "pairs.csv")


@pytest.mark.parametrize("separator", [",", "|", "\t"])
@pytest.mark.parametrize("line", [1, 2])
def test_a_separator_at_the_end_of_a_line_is_named(separator, line, tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"")
    lines = [f"a.png{separator}b.png", f"c.png{separator}d.png"]
    lines[line - 1] += separator
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"train\.txt, line {line}: .*ends with a separator.*take it away"):
        read_list(tmp_path / "train.txt")
