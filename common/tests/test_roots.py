"""Where data sets lie, and which label set and lists a config means: the same for all projects that train."""

import subprocess
import sys

from common import toy_dataset
from common.cli import UserError
from common.labels import IGNORE, label_set
from common.samples import roots
from common.samples.roots import DataConfig, draw_toy_data, find_root, labels_of, open_list, toy_name, with_root
from common.toy_dataset import STANDARD, Standard, draw_toy

import pytest

STATISTICS = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def data_of(dataset, root):
    return DataConfig(dataset, str(root), "train.txt", "val.txt", *STATISTICS)


def test_roots_are_found_here_and_in_the_repository(tmp_path, monkeypatch):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_root("data/mine").resolve() == tmp_path / "data" / "mine"
    assert (find_root("common/label_sets") / "ade20k.yaml").is_file()
    assert find_root("neither") is None
    assert with_root(data_of("cityscapes", "data/mine")).root == "data/mine"
    assert with_root(data_of("toy", "data/toy_cityscapes_128x256"), "data/mine").root == "data/mine"
    with pytest.raises(UserError, match=r"no data set in 'data/nowhere'.*--data.*--config quickstart"):
        with_root(data_of("cityscapes", "data/nowhere"))


@pytest.mark.parametrize("wrong, right", [("costum", "custom"), ("citiscapes", "cityscapes"), ("ade20", "ade20k")])
def test_a_misspelt_data_set_is_answered_with_the_nearest(wrong, right, tmp_path):
    for use in (labels_of, with_root):
        with pytest.raises(UserError, match=f"unknown data set '{wrong}': did you mean '{right}'"):
            use(data_of(wrong, tmp_path))


def test_label_sets(tmp_path):
    assert labels_of(data_of("toy", tmp_path)).class_names == label_set("cityscapes").class_names
    (tmp_path / "classes.yaml").write_text("name: mine\nclasses: [a, b]\n")
    assert labels_of(data_of("custom", tmp_path)).class_names == ("a", "b")


@pytest.mark.parametrize(
    "root, name",
    [
        ("data/toy_cityscapes_256x512", "toy_cityscapes_256x512"),
        ("data/toy_cityscapes", "toy_cityscapes_256x512"),  # as runs of stdc_seg before 0.2 name it
        ("data/toy_ade20k", "toy_ade20k_128x160"),  # as runs of encnet_single_gpu before 0.2 name it
        ("data/cityscapes", None),
        ("elsewhere/toy_ade20k", None),
    ],
)
def test_toy_data_by_their_names(root, name):
    assert toy_name(data_of("toy", root)) == name


@pytest.fixture
def tiny_standard(tmp_path, monkeypatch):
    monkeypatch.setattr(roots, "REPOSITORY", tmp_path)
    monkeypatch.setitem(STANDARD, "toy_ade20k_128x160", Standard("ade20k", 2, 1, (32, 40)))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return data_of("ade20k", "data/toy_ade20k")


def test_looking_for_toy_data_draws_nothing_and_drawing_is_said(tiny_standard, tmp_path, capsys):
    with pytest.raises(UserError, match="no data set in 'data/toy_ade20k_128x160'"):
        with_root(tiny_standard)
    assert not (tmp_path / "data").exists()
    draw_toy_data(tiny_standard, root="data/other")  # the user's own data: nothing to draw
    assert not (tmp_path / "data").exists()
    draw_toy_data(tiny_standard)
    assert "drawing the toy data set: 2 + 1 images" in capsys.readouterr().out
    data = with_root(tiny_standard)
    assert data.root == str(tmp_path / "data" / "toy_ade20k_128x160")
    assert open_list(data, "val.txt").load(0).label.shape == (32, 40)
    assert open_list(data, "val.txt").load(0).label.max() in (*range(150), IGNORE)
    draw_toy_data(tiny_standard)
    assert capsys.readouterr().out == ""


def test_the_docstrings_example_does_not_stand_in_the_way_of_a_quickstart(tiny_standard, tmp_path):
    """`python common/toy_dataset.py LAYOUT data/toy_...` with its own size, then the quickstart."""
    for word in toy_dataset.__doc__.split():
        assert word.removeprefix("data/") not in STANDARD
    draw_toy("ade20k", tmp_path / "data" / "toy_ade20k", 1, 1, (64, 64))
    draw_toy_data(tiny_standard)
    assert open_list(with_root(tiny_standard), "train.txt").load(0).label.shape == (32, 40)


def test_processes_that_need_the_toy_data_together_draw_them_once(tmp_path):
    script = f"from common.toy_dataset import draw_toy; draw_toy('camvid', {str(tmp_path / 'toy')!r}, 12, 2, (64, 96))"
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert sum("drawing the toy data set" in out for out, _ in ended) == 1
    assert len(open_list(data_of("camvid", tmp_path / "toy"), "train.txt")) == 12


def test_a_list_is_looked_for_in_the_root_then_in_the_working_directory(tmp_path, monkeypatch):
    draw_toy("camvid", tmp_path / "data" / "set", 2, 1, (32, 40))
    (tmp_path / "data" / "set" / "train.txt").rename(tmp_path / "data" / "train.lst")
    monkeypatch.chdir(tmp_path)
    data = data_of("camvid", "data/set")
    assert len(open_list(data, "val.txt")) == 1
    assert len(open_list(data, "data/train.lst")) == 2  # its lines are relative to the root all the same
    with pytest.raises(UserError, match=r"train\.txt: there is no such list"):
        open_list(data, "train.txt")


@pytest.mark.parametrize("values", [{"std": (0.2, 0.0, 0.2)}, {"mean": (123.7, 116.3, 103.5)}, {"std": (58.4,) * 3}])
def test_statistics_are_those_of_images_scaled_to_one(values):
    mean, std = values.get("mean", STATISTICS[0]), values.get("std", STATISTICS[1])
    with pytest.raises(UserError, match="std must be positive|images scaled to 0..1: divide values of 0..255 by 255"):
        DataConfig("cityscapes", "data", "train.txt", "val.txt", mean, std)
