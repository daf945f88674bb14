import csv
import json
import sys

from awesome_pytorch_seg import benchmark_loader
from common.dataset_list import find_pairs
from common.toy_dataset import write_toy_dataset

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_toy_dataset("cityscapes", tmp_path_factory.mktemp("toy") / "city", 2, 1, (96, 160))


def test_both_ways_start_from_the_same_pixels_and_end_at_the_same_form(root):
    for pair in find_pairs("cityscapes", root, "labelIds").lists["train"]:
        image, label = benchmark_loader.ours_decoding(pair, None)
        their_image, their_ids = benchmark_loader.original_decoding(pair, None)
        np.testing.assert_array_equal(image, np.array(their_image))
        np.testing.assert_array_equal(label, benchmark_loader.LABELS.encode(np.array(their_ids)))
        for seed in range(4):
            ours, our_label = benchmark_loader.ours(pair, np.random.default_rng(seed))
            theirs, their_label = benchmark_loader.original(pair, np.random.default_rng(seed))
            assert ours.shape == theirs.shape == (3, 480, 480)
            assert (ours.dtype, theirs.dtype) == (np.float32, torch.float32)
            assert our_label.shape == their_label.shape == (480, 480)
            assert (our_label.dtype, their_label.dtype) == (np.int64, torch.int64)
            assert set(np.unique(their_label)) <= set(np.unique(label)) | {255}


def test_ratios():
    rows = benchmark_loader.rows_of({"original": [0.4, 0.2, 0.3], "ours": [0.1, 0.1, 0.2]})
    assert rows[0]["times_original"] == 1.0
    assert rows[1] == {
        "way": "ours",
        "cpu_ms_per_image": 100.0,
        "images_per_cpu_s": 10.0,
        "times_original": 3.0,
        "times_original_min": 1.5,
        "times_original_max": 4.0,
    }


def test_the_command_writes_its_table(root, tmp_path, monkeypatch, capsys):
    words = ["--data", str(root), "--images", "1", "--repeats", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark_loader.py", *words])
    benchmark_loader.main()
    with open(tmp_path / "loader.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["way"] for row in rows] == list(benchmark_loader.WAYS)
    assert float(rows[0]["times_original"]) == 1.0
    assert json.loads((tmp_path / "env.json").read_text())["images"] == 1
    assert "images/CPU s" in capsys.readouterr().out
