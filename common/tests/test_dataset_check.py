"""`check` names each mistake by its cause; `stats` counts what a reference counts."""

import csv
import os
import re
import shutil
from pathlib import Path

from common.cli import UserError
from common.create_dataset_list import main
from common.dataset_list import make_lists, read_list
from common.labels import label_set, load_custom
from common.lists.check import CheckReport, check_lists
from common.lists.list_file import Pair
from common.lists.scan import count_values, label_stats, scan_label
from common.machine.parallel import parallel_map

import cv2
import numpy as np
import pytest
from PIL import Image

SIZE = (32, 40)


def write(path: Path, array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.asarray(array))[1].tobytes())
    return path


def noise(seed: int, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def ids(seed: int, values, size=SIZE) -> np.ndarray:
    """A label that holds all of `values`."""
    label = np.random.default_rng(seed).choice(np.array(values, np.uint8), size)
    label.flat[: len(values)] = values
    return label


def custom(root: Path, classes=3, train=3, val=2, values=None) -> Path:
    """A faultless custom data set, its lists written."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            seed = number if split == "train" else 100 + number
            write(root / f"images/{split}/{number}.jpg", noise(seed))
            write(root / f"labels/{split}/{number}.png", ids(seed, range(classes) if values is None else values))
    (root / "classes.yaml").write_text(f"name: mine\nclasses: [{', '.join(f'class{n}' for n in range(classes))}]\n")
    make_lists("custom", root)
    return root


def check(root: Path, fast=False) -> CheckReport:
    lists = {path.stem: read_list(path, check_files=False) for path in sorted(root.glob("*.txt"))}
    return check_lists(lists, load_custom(root / "classes.yaml"), root, fast=fast)


def besides(report: CheckReport) -> dict[str, list[str]]:
    """What was found besides classes that occur nowhere."""
    return {problem: files for problem, files in report.found.items() if problem != "class nowhere"}


def test_a_good_data_set_has_no_problems(tmp_path, capsys):
    custom(tmp_path)
    assert main(["check", "custom", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "checked 5 images and 5 labels in: train 3, val 2" in said
    assert "no problems" in said


# -- the four classic mistakes, and their relatives --------------------------------------------------------------------


def said_of_check(words, capsys) -> str:
    assert main(["check", *map(str, words)]) == 1
    return capsys.readouterr().out


def test_label_ids_for_train_ids(tmp_path, capsys):
    for split, seed in (("train", 1), ("val", 2)):
        write(tmp_path / f"leftImg8bit/{split}/x/x_{seed}_leftImg8bit.png", noise(seed))
        write(tmp_path / f"gtFine/{split}/x/x_{seed}_gtFine_labelTrainIds.png", ids(seed, range(34)))
    make_lists("cityscapes", tmp_path)
    said = said_of_check(["cityscapes", tmp_path], capsys)
    assert "looks like Cityscapes labelIds" in said
    assert "x_1_gtFine_labelTrainIds.png (values 19, 20, 21, 22, 23, 24 ...)" in said


def test_cityscapes_label_ids_under_their_own_name_are_right(tmp_path):
    for split, seed in (("train", 1), ("val", 2)):
        write(tmp_path / f"leftImg8bit/{split}/x/x_{seed}_leftImg8bit.png", noise(seed))
        write(tmp_path / f"gtFine/{split}/x/x_{seed}_gtFine_labelIds.png", ids(seed, [*range(34), 255]))
    make_lists("cityscapes", tmp_path, labels="labelIds")
    assert main(["check", "cityscapes", str(tmp_path)]) == 0


def test_label_ids_in_a_custom_set_are_told_by_their_values(tmp_path):
    report = check(custom(tmp_path, classes=19, values=[0, 1, 3, 7, 8, 11, 17, 21, 23, 26, 33]))
    assert list(besides(report)) == ["cityscapes labelIds"]


def test_binary_masks(tmp_path, capsys):
    custom(tmp_path, classes=2, values=[0, 255])
    said = said_of_check(["custom", tmp_path], capsys)
    assert "binary mask saved as 0/255" in said
    (tmp_path / "classes.yaml").write_text("name: mine\nclasses: [a, b]\nids: {0: 0, 255: 1}\n")
    assert main(["check", "custom", str(tmp_path)]) == 0  # the advice that was given


def test_0_255_is_right_for_sbu(tmp_path):
    for folder, seed in (("SBUTrain4KRecoveredSmall", 1), ("SBU-Test", 2)):
        write(tmp_path / folder / "ShadowImages/a.jpg", noise(seed))
        write(tmp_path / folder / "ShadowMasks/a.png", ids(seed, [0, 255]))
    assert main(["check", "sbu", str(tmp_path)]) == 0


def test_colour_masks(tmp_path, capsys):
    custom(tmp_path)
    write(tmp_path / "labels/train/1.png", noise(5))
    said = said_of_check(["custom", tmp_path], capsys)
    assert "colour mask, give a palette" in said
    assert "labels/train/1.png" in said
    assert "labels/train/0.png" not in said


def test_one_based_ids(tmp_path, capsys):
    custom(tmp_path, values=[1, 2, 3])
    assert "1-based ids" in said_of_check(["custom", tmp_path], capsys)
    (tmp_path / "classes.yaml").write_text("name: mine\nclasses: [a, b, c]\nids: {1: 0, 2: 1, 3: 2}\n")
    assert main(["check", "custom", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (np.dstack([ids(1, range(3))] * 3), "grey as colour"),
        (np.full(SIZE, 300, np.uint16), "16-bit label"),
        (ids(1, [0, 1, 2, 77]), "value not allowed"),
        (ids(1, [0, 1, 2, 3]), "0 = other, then 1-based"),
    ],
)
def test_other_label_mistakes(tmp_path, label, problem):
    custom(tmp_path)
    write(tmp_path / "labels/train/1.png", label)
    report = check(tmp_path)
    assert list(besides(report)) == [problem]
    assert report.found[problem][0].startswith("labels/train/1.png")
    assert len(report.found[problem]) == 1
    assert not report.ok


def test_labels_saved_as_jpeg(tmp_path):
    custom(tmp_path)
    (tmp_path / "labels/train/1.png").unlink()
    write(tmp_path / "labels/train/1.jpg", ids(1, range(3)))
    make_lists("custom", tmp_path, overwrite=True)
    assert check(tmp_path).found["label saved as JPEG"] == ["labels/train/1.jpg"]


def test_the_full_ade20k_release_is_recognised(tmp_path):
    for split, seed in (("training", 1), ("validation", 2)):
        write(tmp_path / f"images/{split}/{seed}.jpg", noise(seed))
        write(tmp_path / f"annotations/{split}/{seed}.png", ids(seed, [0, 1, 150]))
    make_lists("ade20k", tmp_path)
    assert main(["check", "ade20k", str(tmp_path)]) == 0
    pairs = read_list(tmp_path / "train.txt")
    write(pairs[0].label, ids(1, [0, 150, 151, 200]))
    assert list(besides(check_lists({"train": pairs}, label_set("ade20k"), tmp_path))) == ["full ADE20K release"]
    seg = write(tmp_path / "annotations/training/1_seg.png", noise(3))
    report = check_lists({"train": [Pair(pairs[0].image, seg)]}, label_set("ade20k"), tmp_path)
    assert list(besides(report)) == ["full ADE20K release"]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
def test_damaged_files_and_sizes(tmp_path, fast, capfd):
    custom(tmp_path, train=6)
    image, label = tmp_path / "images/train/0.jpg", tmp_path / "labels/train/1.png"
    image.write_bytes(image.read_bytes()[:-200])
    label.write_bytes(label.read_bytes()[:-20])
    (tmp_path / "images/train/2.jpg").write_bytes(b"")
    (tmp_path / "labels/train/3.png").unlink()
    write(tmp_path / "labels/train/4.png", ids(4, range(3), size=(32, 24)))
    report = check(tmp_path, fast)
    unreadable = ["images/train/2.jpg (the file is empty; copy it again)"]
    if not fast:
        unreadable.insert(0, "images/train/0.jpg (truncated: the file ends before its image does; copy it again)")
    assert besides(report) == {
        "image unreadable": unreadable,
        "label unreadable": [
            "labels/train/1.png (truncated: the file ends before its image does; copy it again)",
            "labels/train/3.png (there is no such file)",
        ],
        "sizes differ": ["images/train/4.jpg and its label (32x40 and 32x24)"],
    }
    assert capfd.readouterr().err == ""  # the decoders' own complaints do not reach the terminal


def test_a_repaired_jpeg_is_a_warning(tmp_path, capfd):
    custom(tmp_path)
    image = write(tmp_path / "images/train/0.jpg", noise(0, (200, 200)))
    write(tmp_path / "labels/train/0.png", ids(0, range(3), (200, 200)))
    data = image.read_bytes()
    middle = len(data) // 2
    image.write_bytes(data[:middle] + bytes(300) + data[middle + 300 :])
    report = check(tmp_path)
    assert list(besides(report)) == ["image damaged"]
    assert "images/train/0.jpg (Corrupt JPEG data" in report.found["image damaged"][0]
    assert report.ok
    assert "image damaged (a warning): " in report.table()
    assert capfd.readouterr().err == ""


def test_partners_that_are_missing_are_both_listed(tmp_path, capsys):
    custom(tmp_path)
    write(tmp_path / "images/train/lonely.jpg", noise(50))
    write(tmp_path / "labels/val/orphan.png", ids(0, range(3)))
    said = said_of_check(["custom", tmp_path], capsys)
    assert re.search(r"image without label +1  images/train/lonely\.jpg\n", said)
    assert re.search(r"label without image +1  labels/val/orphan\.png\n", said)


@pytest.mark.parametrize("fast", [False, True])
def test_an_image_in_train_and_val(tmp_path, fast):
    custom(tmp_path)  # 0.jpg and 1.jpg are in both splits with different content: no problem
    assert check(tmp_path, fast).ok
    shutil.copy(tmp_path / "images/train/1.jpg", tmp_path / "images/val/1.jpg")
    found = besides(check(tmp_path, fast))
    assert found == {"in two splits": ["images/val/1.jpg (val) = images/train/1.jpg (train)"]}


def test_the_same_image_under_another_name_and_the_same_line(tmp_path):
    custom(tmp_path)
    shutil.copy(tmp_path / "images/train/2.jpg", tmp_path / "images/val/0.jpg")
    assert list(besides(check(tmp_path))) == ["in two splits"]
    custom(tmp_path)
    train, val = (tmp_path / "train.txt"), (tmp_path / "val.txt")
    train.write_text(train.read_text() + train.read_text().splitlines()[0] + "\n" + val.read_text())
    assert besides(check(tmp_path)) == {
        "listed twice": ["images/train/0.jpg in train"],
        "in two splits": [f"images/val/{n}.jpg (val) = images/val/{n}.jpg (train)" for n in (0, 1)],
    }


def test_union_lists_may_hold_both(tmp_path):
    custom(tmp_path)
    (tmp_path / "trainval.txt").write_text((tmp_path / "train.txt").read_text() + (tmp_path / "val.txt").read_text())
    report = check(tmp_path)
    assert report.ok
    assert report.num_images == 5  # opened once


def test_nothing_learnable(tmp_path):
    custom(tmp_path, values=[255])
    report = check(tmp_path)
    assert report.found["nothing learnable"] == ["list train (100.0 % ignored)", "list val (100.0 % ignored)"]
    assert not report.ok
    custom(tmp_path)
    write(tmp_path / "labels/train/1.png", np.full(SIZE, 255, np.uint8))
    report = check(tmp_path)
    assert besides(report) == {"label nearly all ignored": ["labels/train/1.png"]}
    assert report.ok


def test_many_files_are_checked_in_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("common.machine.parallel.physical_cores", lambda: 2)
    custom(tmp_path, train=70, val=2)
    broken = tmp_path / "labels/train/40.png"
    broken.write_bytes(broken.read_bytes()[:30])
    report = check(tmp_path)
    assert report.num_labels == 72
    assert list(besides(report)) == ["label unreadable"]
    assert len(set(parallel_map(process_of, range(70), "test")) - {os.getpid()}) >= 1


def process_of(_: int) -> int:
    return os.getpid()


def test_an_error_in_a_process_arrives_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("common.machine.parallel.physical_cores", lambda: 2)
    with pytest.raises(UserError, match="number 65"):
        list(parallel_map(fail_at_65, range(70), "test"))


def fail_at_65(number: int) -> int:
    if number == 65:
        raise UserError("number 65")
    return number


# -- the command's words -----------------------------------------------------------------------------------------------


def test_list_files_with_root_and_classes(tmp_path, capsys):
    root = custom(tmp_path / "data")
    shutil.move(root / "train.txt", tmp_path / "a.txt")
    shutil.move(root / "classes.yaml", tmp_path / "c.yaml")
    words = [tmp_path / "a.txt", root / "val.txt", "--root", root]
    with pytest.raises(UserError, match=r"give --classes FILE .* or --type NAME"):
        main(["check", *map(str, words)])
    assert main(["check", *map(str, words), "--classes", str(tmp_path / "c.yaml")]) == 0
    assert "in: a 3, val 2" in capsys.readouterr().out
    assert main(["check", *map(str, words), "--type", "lip", "--fast"]) == 0
    for target, message in (
        ("custum", "did you mean 'custom'"),
        (str(root), "is a folder: put the data set's name before"),
        ("gone.txt", "there is no such list"),
    ):
        with pytest.raises(UserError, match=message):
            main(["check", target])


def test_without_lists_the_folders_are_checked(tmp_path, capsys):
    custom(tmp_path)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert main(["check", "custom", str(tmp_path)]) == 0
    assert "note: no lists in" in capsys.readouterr().out


# -- counting ----------------------------------------------------------------------------------------------------------


def test_counting_is_exact_above_what_float32_holds():
    label = np.zeros((4200, 4200), np.uint8)  # 17.6 million zeros, 2**24 is 16.8 million
    label[0, :3] = 1, 2, 255
    counts = count_values(label)
    assert (counts[0], counts[1], counts[2], counts[255], counts.sum()) == (4200**2 - 3, 1, 1, 1, 4200**2)


def test_scanning_counts_what_numpy_counts(tmp_path):
    label = ids(3, range(256), size=(40, 50))
    facts = scan_label(write(tmp_path / "a.png", label))
    np.testing.assert_array_equal(facts.counts, np.bincount(label.ravel(), minlength=256))
    assert (facts.size, facts.kind) == ((40, 50), "ids")


def test_shares_and_weights_by_hand(tmp_path, capsys):
    custom(tmp_path, classes=4)
    labels = [[[0, 0, 0, 1], [0, 0, 255, 255]], [[1, 1, 1, 2], [2, 2, 2, 2]]]  # class 3 is absent
    pairs = [Pair(tmp_path / "x", write(tmp_path / f"l{n}.png", np.uint8(label))) for n, label in enumerate(labels)]
    stats = label_stats(pairs, load_custom(tmp_path / "classes.yaml"))
    assert stats.pixels.tolist() == [5, 4, 5, 0]
    assert stats.files.tolist() == [1, 2, 1, 0]
    assert stats.ignored_share == 2 / 16
    assert stats.absent == ["class3"]
    np.testing.assert_allclose(stats.share, np.array([5, 4, 5, 0]) / 14)
    np.testing.assert_allclose(stats.enet_weights, 1 / np.log(1.02 + np.array([5, 4, 5, 0]) / 14))
    # frequencies 5/6, 4/14, 5/8; median 5/8
    np.testing.assert_allclose(stats.median_frequency_weights, [6 / 8, 5 / 8 * 14 / 4, 1, np.nan])


def test_stats_prints_and_writes_a_table(tmp_path, capsys):
    custom(tmp_path, classes=2, values=[0, 0, 1, 255])
    assert main(["stats", "custom", str(tmp_path), "--output", str(tmp_path / "out/classes.csv")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 labels of train, ")
    assert "absent classes: none" in said
    rows = list(csv.DictReader((tmp_path / "out/classes.csv").read_text().splitlines()))
    total = sum(int(row["pixels"]) for row in rows)
    assert [row["name"] for row in rows] == ["class0", "class1"]
    for row in rows:
        share = int(row["pixels"]) / total
        assert float(row["share_percent"]) == pytest.approx(100 * share, abs=1e-4)
        assert float(row["enet_weight"]) == pytest.approx(1 / np.log(1.02 + share), abs=1e-4)
    assert main(["stats", "custom", str(tmp_path), "--split", "val"]) == 0
    assert "2 labels of val" in capsys.readouterr().out
    with pytest.raises(UserError, match="no list 'vall': did you mean 'val'"):
        main(["stats", "custom", str(tmp_path), "--split", "vall"])


def test_stats_refuses_what_it_cannot_count(tmp_path):
    custom(tmp_path)
    write(tmp_path / "labels/train/1.png", ids(1, [0, 9]))
    with pytest.raises(UserError, match=r"1\.png: values \[9\] are not of 'mine'; create_dataset_list.py check says"):
        main(["stats", "custom", str(tmp_path)])
    write(tmp_path / "labels/train/1.png", noise(1))
    with pytest.raises(UserError, match=r"1\.png: a colour image"):
        main(["stats", "custom", str(tmp_path)])
    with pytest.raises(UserError, match="names no labels"):
        label_stats([Pair(tmp_path / "a.png", None)], label_set("lip"))


# -- what check finds of images and classes ----------------------------------------------------------------------------


def exif_image(path, turn):
    exif = Image.Exif()
    exif[0x112] = turn
    Image.fromarray(noise(0)).save(path, exif=exif)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_an_image_that_viewers_turn_is_a_warning(turn, fast, tmp_path):
    custom(tmp_path)
    exif_image(tmp_path / "images/train/0.jpg", turn)
    report = check(tmp_path, fast)
    assert report.found == ({} if turn == 1 else {"turned by EXIF": ["images/train/0.jpg"]})
    assert report.ok


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("factor, warned", [(16, True), (257, False)])
def test_twelve_bits_in_sixteen_are_a_warning(factor, warned, suffix, tmp_path):
    custom(tmp_path)
    (tmp_path / "images/train/0.jpg").unlink()
    write(tmp_path / f"images/train/0{suffix}", noise(0).astype(np.uint16) * factor)
    make_lists("custom", tmp_path, overwrite=True)
    expected = {"16 bits, hardly used": [f"images/train/0{suffix}"]} if warned else {}
    assert check(tmp_path).found == expected


def test_an_image_smaller_than_networks_take_is_a_warning(tmp_path):
    custom(tmp_path)
    write(tmp_path / "images/val/1.jpg", noise(0, (31, 600)))
    write(tmp_path / "labels/val/1.png", ids(0, range(3), (31, 600)))
    assert check(tmp_path).found == {"small image": ["images/val/1.jpg (31x600)"]}


def test_classes_in_no_label_of_a_list_are_named(tmp_path):
    custom(tmp_path, classes=9, values=[0, 8])
    write(tmp_path / "labels/val/0.png", ids(0, range(9)))
    assert check(tmp_path).found == {
        "class nowhere": ["list train: class1, class2, class3, class4, class5, class6 and 1 more"]
    }


def test_a_link_whose_partner_is_none_is_a_warning(tmp_path):
    custom(tmp_path)
    elsewhere = tmp_path / "elsewhere.jpg"
    shutil.move(tmp_path / "images/train/0.jpg", elsewhere)
    (tmp_path / "images/train/0.jpg").symlink_to(elsewhere)
    assert check(tmp_path).found == {"linked alone": ["images/train/0.jpg"]}


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_wide_labels_with_narrow_values_are_no_mistake(dtype, tmp_path):
    custom(tmp_path)
    label = ids(0, range(3)).astype(dtype)
    (tmp_path / "labels/train/0.png").unlink()
    Image.fromarray(label).save(tmp_path / "labels/train/0.tif")
    make_lists("custom", tmp_path, overwrite=True)
    assert check(tmp_path).found == {}
    assert scan_label(tmp_path / "labels/train/0.tif").counts.sum() == label.size
    Image.fromarray(label + dtype(300)).save(tmp_path / "labels/train/0.tif")
    assert "16-bit label" in check(tmp_path).found


@pytest.mark.parametrize("size", [(1024, 2048), (1023, 2048), (1024, 2047), (5, 7), (4100, 4100)])
def test_values_are_counted_exactly_whatever_the_size(size):
    """Pairs of pixels where there are many and the width is even, single ones elsewhere; more than float32 counts."""
    label = np.random.default_rng(0).choice(np.array([0, 0, 0, 7, 255], np.uint8), size)
    expected = [int((label == value).sum()) for value in range(256)]
    assert count_values(label).tolist() == expected
    assert count_values(np.asfortranarray(label)).tolist() == expected
    assert count_values(np.full(size, 3, np.uint8))[3] == size[0] * size[1]
