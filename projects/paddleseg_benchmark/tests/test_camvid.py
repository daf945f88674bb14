"""CamVid through this project: lists, labels, training, and one score on val and on test."""

import shutil

from common.cli import UserError
from common.dataset_list import make_lists
from common.labels import label_set
from common.runs.reading import read_run
from common.toy_dataset import write_toy_dataset
from paddleseg_benchmark import eval as evaluation
from paddleseg_benchmark import train
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.zoo import zoo

import cv2
import numpy as np
import pytest
from testkit import run_folder


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    root = write_toy_dataset("camvid", tmp_path_factory.mktemp("camvid") / "camvid", 6, 3, (64, 96))
    make_lists("camvid", root)
    if not (root / "test.txt").is_file():
        shutil.copyfile(root / "val.txt", root / "test.txt")
    return root


def config_of(root):
    return data.with_data(zoo.read_config("fastscnn_camvid.yml"), str(root))


def test_eleven_classes_and_the_twelfth_value_ignored(camvid):
    dataset = data.open_dataset(config_of(camvid), "val")
    assert dataset.class_names == label_set("camvid").class_names and len(dataset.class_names) == 11
    sample = dataset[0]
    raw = cv2.imread(dataset.file_list[0][1], cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sample["label"][0], np.where(raw == 11, 255, raw))
    assert sample["img"].shape == (3, 64, 96)


def test_a_run_on_camvid_is_scored_on_val_and_once_on_test(camvid, tmp_path, monkeypatch, capsys):
    words = ("--config", "fastscnn_camvid", "--data", str(camvid), "--iters", "2", "--batch_size", "2", "--do_eval")
    monkeypatch.setattr("sys.argv", ["train.py", *words, "--crop_size", "64", "64", "--output", str(tmp_path)])
    train.main()
    folder = run_folder(tmp_path)
    weights = str(folder / "best.safetensors")
    monkeypatch.setattr("sys.argv", ["eval.py", "--weights", weights, "--split", "test"])
    evaluation.main()
    run = read_run(folder)
    assert [(row["split"], row["step"]) for row in run.eval] == [("val", "2"), ("test", "2")]
    assert run.eval[1]["checkpoint"] == "best.safetensors"
    assert (run.env["dataset"], run.env["scope"], run.env["data_root"]) == ("camvid", "reduced", str(camvid))
    if (camvid / "test.txt").read_bytes() == (camvid / "val.txt").read_bytes():  # the same images
        assert run.eval[0]["miou_percent"] == run.eval[1]["miou_percent"]
    with pytest.raises(UserError, match="has a test score already"):
        evaluation.main()
    assert "evaluating test of" in capsys.readouterr().out


def test_without_lists_it_says_how_to_make_them(tmp_path):
    (tmp_path / "camvid").mkdir()
    with pytest.raises(UserError, match=r"train.txt.*create_dataset_list.py"):
        data.open_dataset(config_of(tmp_path / "camvid"), "train")
