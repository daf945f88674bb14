import csv
import sys

from awesome_pytorch_seg import overfit
from awesome_pytorch_seg.models import MODELS

import cv2
import numpy as np
import pytest


def test_the_image_has_four_large_areas(tmp_path):
    overfit.write_image(tmp_path)
    label = cv2.imread(str(tmp_path / "label.png"), cv2.IMREAD_UNCHANGED)
    assert label.shape == overfit.SIZE == (128, 192)
    assert np.bincount(label.ravel()).tolist() == [64 * 160 - 32 * 64, 64 * 160 - 32 * 64, 64 * 64, 128 * 32]


def test_the_command_prints_and_writes_its_table_and_says_who_failed(tmp_path, monkeypatch, capsys):
    words = ["--models", "enet", "--iters", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["overfit.py", *words])
    assert overfit.main() == 1  # two updates are too few
    with open(tmp_path / "overfit.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["model"], row["backbone"], row["iters"]) == ("enet", "", "2")
    assert f"| enet | none | {float(row['miou_percent']):.2f} | 2 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["overfit.py", "--models", "enet", "unet"])
    with pytest.raises(SystemExit) as ended:  # before the first is trained
        overfit.main()
    assert ended.value.code == 2
    assert "'unet': did you mean 'dunet'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS))
def test_every_network_learns_one_image(model):
    result = overfit.overfit(model, 300)
    assert result.miou_percent >= 95, result
