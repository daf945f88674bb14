import math
import re

from awesome_pytorch_seg.eval import evaluate, main
from awesome_pytorch_seg.protocol import PROTOCOLS, EvalProtocol, class_scores, smallest_scale, windows
from common.cli import UserError
from common.samples.roots import DataConfig, open_list

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from awesome_runs import train
from testkit import run_folder, run_here, write_data
from torch import nn


class Pointwise(nn.Module):
    """A network that sees one pixel at a time: windows and the whole image must agree."""

    def __init__(self, num_classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_classes, 1)

    def forward(self, images):
        return self.conv(images)


def scores(protocol, size=(40, 52), model=None):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return image, class_scores(model or Pointwise(), image, size, protocol)


def test_windows_cover_everything_and_end_with_the_image():
    seen = np.zeros((40, 52), int)
    places = list(windows((40, 52), (24, 20), (16, 16)))
    for place in places:
        seen[place] += 1
    assert seen.min() == 1
    assert [(rows.start, columns.start) for rows, columns in places] == [(r, c) for r in (0, 16) for c in (0, 16, 32)]
    assert list(windows((24, 20), (24, 20), (8, 8))) == [(slice(0, 24), slice(0, 20))]


@pytest.mark.parametrize("size", [(40, 52), (24, 20), (17, 60)])
def test_sliding_windows_give_a_pointwise_network_its_own_probabilities(size):
    image, found = scores(EvalProtocol((1.0,), False, window=(24, 20), stride=(10, 7)), size)
    with torch.no_grad():
        expected = F.softmax(Pointwise()(image), dim=1)
    torch.testing.assert_close(found.exp(), expected)


def test_a_window_sees_only_itself():
    """Each window has the mean of its own pixels as scores; overlaps hold the mean of the probabilities."""

    def model(images):
        return images.mean((2, 3), keepdim=True).expand_as(images)

    image, found = scores(EvalProtocol((1.0,), False, window=(40, 32), stride=(40, 20)), model=model)
    left, right = (F.softmax(image[..., part].mean((2, 3)), dim=1) for part in (slice(0, 32), slice(20, 52)))
    torch.testing.assert_close(found.exp()[..., 0, 0], left)
    torch.testing.assert_close(found.exp()[..., 0, 51], right)
    torch.testing.assert_close(found.exp()[..., 0, 25], (left + right) / 2)


def test_flip_averages_with_the_mirrored_image():
    def model(images):  # looks at the column to the left
        return F.pad(images, (1, 0))[..., :-1]

    image, found = scores(PROTOCOLS["flip"], model=model)
    left = F.softmax(F.pad(image, (1, 0))[..., :-1], dim=1)
    right = F.softmax(F.pad(image, (0, 1))[..., 1:], dim=1)
    torch.testing.assert_close(found.exp(), (left + right) / 2)


def test_scales_average_probabilities_at_the_labels_size():
    protocol = EvalProtocol((0.5, 1.0), False)
    image, found = scores(protocol)
    model = Pointwise()
    with torch.no_grad():
        small = model(F.interpolate(image, size=(20, 26), mode="bilinear", align_corners=False))
        small = F.interpolate(small, size=(40, 52), mode="bilinear", align_corners=False)
        expected = (F.softmax(small, dim=1) + F.softmax(model(image), dim=1)) / 2
    torch.testing.assert_close(found.exp(), expected)


def test_names_of_protocols():
    texts = {name: (protocol.short_name, str(protocol)) for name, protocol in PROTOCOLS.items()}
    assert texts["ss"] == ("ss", "ss, whole image")
    assert texts["ms-flip"] == ("ms_flip", "ms 0.5/0.75/1/1.25/1.5/1.75, flip, whole image")
    assert texts["slide-480"] == ("ss_slide480x480", "ss, slide 480x480 by 320x320")
    assert texts["centre-crop-480"][0] == "ss_centre480"
    assert "centre crop 480 of image and label (labels resized)" in texts["centre-crop-480"][1]
    assert len(set(texts.values())) == len(PROTOCOLS)


@pytest.mark.parametrize(
    "values", [{"window": (32, 32)}, {"window": (32, 32), "stride": (33, 8)}, {"centre_crop": 3}, {"scales": ()}]
)
def test_protocols_that_make_no_sense(values):
    with pytest.raises(UserError):
        EvalProtocol(**{"scales": (1.0,), "flip": False, **values})


def test_centre_crop_counts_the_pixels_of_the_square(tmp_path):
    root = write_data(tmp_path)
    data = DataConfig("custom", str(root), "train.txt", "val.txt", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    dataset = open_list(data, "val.txt")
    whole = evaluate(Pointwise(), dataset, data, PROTOCOLS["ss"])
    square = evaluate(Pointwise(), dataset, data, EvalProtocol((1.0,), False, centre_crop=32))
    assert whole.matrix.matrix.sum() == 2 * 72 * 80
    assert square.matrix.matrix.sum() == 2 * 32 * 32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--weights FILE, or --model NAME"),
        (["--weights", "nowhere.safetensors"], "no weight file nowhere.safetensors"),
        (["--weights", "w.safetensors", "--model", "enet"], "--weights FILE, or --model NAME"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UserError, match=message):
        run_here(main, *words)


def test_the_smallest_scale_by_hand():
    assert smallest_scale((24, 600), PROTOCOLS["ss"]) == 1.0
    assert smallest_scale((24, 600), PROTOCOLS["ms-flip"]) == 0.5
    assert smallest_scale((24, 600), PROTOCOLS["slide-480"]) == math.inf  # windows are filled up
    assert smallest_scale((24, 600), PROTOCOLS["centre-crop-480"]) == 20.0  # the square of 480 is 24 pixels before


def test_an_image_too_small_is_named_before_the_work(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    train(data, tmp_path / "output", 3)
    weights = run_folder(tmp_path / "output") / "last.safetensors"
    name = (data / "val.txt").read_text().splitlines()[-1].split(",")[0]
    image = cv2.imread(str(data / name))
    cv2.imwrite(str(data / name), image[:24])
    monkeypatch.setattr("awesome_pytorch_seg.eval.evaluate", None)  # is not reached
    with pytest.raises(UserError, match=rf"{re.escape(name)}: 24x\d+ pixels x 1: each side must be at least 32"):
        run_here(main, "--weights", weights, "--data", data, "--output", tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
