import dataclasses
import math

from common.metrics import ConfusionMatrix
from common.samples.roots import open_list
from encnet_single_gpu.config import read_config
from encnet_single_gpu.eval import evaluate
from encnet_single_gpu.protocol import EvalProtocol, class_scores, smallest_scale, window_starts

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encnet_runs import TinyNet, write_data
from torch import nn

BLACK = torch.tensor([-1.0, -2.0, -3.0])


class Pointwise(nn.Module):
    """Each pixel for itself, after a number that is the same for the whole image."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.mix(x)


class MeanOf(nn.Module):
    """Logits that are the mean of the input: they tell what the network was given."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])


def random_image(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


STATISTICS = ((0.5, 0.25, 0.1), (0.5, 0.5, 0.1))


def test_names():
    assert EvalProtocol.named("ss", 480, *STATISTICS) == EvalProtocol()
    assert EvalProtocol.named("encoding_ss", 480, *STATISTICS) == EvalProtocol(
        520, 480, (1.0,), False, (-1.0, -0.5, -1.0)
    )
    several = EvalProtocol.named("encoding_ms_flip", 384, *STATISTICS)
    assert (several.base_size, several.crop_size, several.flip) == (416, 384, True)
    assert several.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert str(EvalProtocol()) == "ss, whole image"
    assert (
        str(EvalProtocol.named("encoding_ss", 480, *STATISTICS)) == "ss, long side 520, windows 480 (PyTorch-Encoding)"
    )


def test_the_smallest_scale_by_hand():
    assert smallest_scale((24, 600), EvalProtocol()) == 1.0
    for name in ("encoding_ss", "encoding_ms_flip"):  # windows are filled up
        assert smallest_scale((24, 600), EvalProtocol.named(name, 480, *STATISTICS)) == math.inf


def test_whole_image_gives_the_logits_at_label_size():
    torch.manual_seed(0)
    model = Pointwise()
    image = random_image(20, 30)
    scores = class_scores(model, image, (20, 30), EvalProtocol())
    torch.testing.assert_close(scores, model(image))
    assert class_scores(model, image, (40, 60), EvalProtocol()).shape == (1, 4, 40, 60)


@pytest.mark.parametrize(
    ("side", "starts"), [(48, [0]), (49, [0, 32]), (80, [0, 32]), (81, [0, 32, 64]), (112, [0, 32, 64])]
)
def test_windows_cover_every_pixel(side, starts):
    assert list(window_starts(side, 48, 32)) == starts
    assert starts[-1] + 48 >= side


def reference(model, image, base, crop, scales, flip, black):
    """PyTorch-Encoding's way in NumPy loops, for one image."""
    _, _, height, width = image.shape
    total = 0
    for scale in scales:
        longer = int(np.ceil(base * scale))
        if height > width:
            new_height, new_width = longer, int(width * longer / height + 0.5)
        else:
            new_height, new_width = int(height * longer / width + 0.5), longer
        scaled = F.interpolate(image, (new_height, new_width), mode="bilinear", align_corners=True)
        full_height, full_width = max(new_height, crop), max(new_width, crop)
        full = black.view(1, 3, 1, 1).repeat(1, 1, full_height + crop, full_width + crop)
        full[:, :, :new_height, :new_width] = scaled
        sums = torch.zeros(1, 4, full_height + crop, full_width + crop)
        counts = torch.zeros(full_height + crop, full_width + crop)
        top = 0
        while True:
            left = 0
            while True:
                window = full[:, :, top : top + crop, left : left + crop]
                logits = model(window)
                if flip:
                    logits = logits + model(window.flip(3)).flip(3)
                sums[:, :, top : top + crop, left : left + crop] += logits.exp()
                counts[top : top + crop, left : left + crop] += 1
                if left + crop >= full_width:
                    break
                left += int(crop * 2 / 3)
            if top + crop >= full_height:
                break
            top += int(crop * 2 / 3)
        scores = (sums / counts)[:, :, :new_height, :new_width]
        total = total + F.interpolate(scores, (height, width), mode="bilinear", align_corners=True)
    return total


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (64, 64), (20, 100)])
@pytest.mark.parametrize("flip", [False, True])
def test_scores_are_pytorch_encodings(size, flip):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2)).eval()
    protocol = EvalProtocol(52, 48, (0.5, 1.0, 1.75), flip, tuple(BLACK.tolist()))
    with torch.no_grad():
        scores = class_scores(model, random_image(*size), size, protocol)
        expected = reference(model, random_image(*size), 52, 48, protocol.scales, flip, BLACK)
    torch.testing.assert_close(scores.exp(), expected, rtol=1e-4, atol=1e-5)


def test_small_images_are_padded_with_black():
    """An image of 26 x 26 in a window of 48: the mean is that of image and black."""
    image = torch.ones(1, 3, 26, 26)
    protocol = EvalProtocol(52, 48, (0.5,), black=tuple(BLACK.tolist()))
    scores = class_scores(MeanOf(), image, (26, 26), protocol)
    share = 26**2 / 48**2
    expected = share + (1 - share) * BLACK
    torch.testing.assert_close(scores[0, :, 0, 0], expected)


def test_large_logits_do_not_overflow():
    scores = class_scores(MeanOf(), torch.full((1, 3, 64, 64), 200.0), (64, 64), EvalProtocol(52, 48))
    assert torch.isfinite(scores).all()


def test_evaluation_counts_every_label_pixel_and_keeps_the_mode(tmp_path):
    root = str(write_data(tmp_path, values=(0, 1, 2)))
    data = dataclasses.replace(read_config("pspnet").data, root=root)
    dataset = open_list(data, "val.txt")
    torch.manual_seed(0)
    model = TinyNet(150).train()
    result = evaluate(model, dataset, data, EvalProtocol())
    assert model.training
    matrix, losses = ConfusionMatrix(150), []
    model.eval()
    for index in range(len(dataset)):
        sample = dataset.load(index)
        pixels = (sample.image / 255 - np.array(data.mean)) / np.array(data.std)
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())
        matrix.update(sample.label, logits.argmax(1)[0].numpy())
        valid = sample.label != 255
        log_probs = F.log_softmax(logits, 1)[0].permute(1, 2, 0)[torch.from_numpy(valid)]
        losses.append(-log_probs[torch.arange(valid.sum()), torch.from_numpy(sample.label[valid]).long()])
    np.testing.assert_array_equal(result.matrix.matrix, matrix.matrix)
    assert result.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
