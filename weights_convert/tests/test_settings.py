"""What each setting does that differs between the frameworks: the README's table, measured."""

from pathlib import Path

from semsegpaddle_glore.models.layers import batch_norm, global_avg_pool, resize_bilinear
from stdc_seg.models.layers import avg_pool_3x3_stride2

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
X = np.random.default_rng(0).standard_normal((2, 4, 9, 14)).astype(np.float32)
SIZE = (33, 50)


def departure(ours, theirs):
    theirs = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def torch_norm(epsilon=1e-5):
    norm = torch.nn.BatchNorm2d(4, eps=epsilon)
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    norm.running_var.copy_(torch.tensor([0.01, 0.5, 1.0, 2.0]))
    return norm


def paddle_norm(like, norm):
    norm._mean.set_value(like.running_mean.numpy())
    norm._variance.set_value(like.running_var.numpy())
    return norm


def wrong_epsilon():
    theirs = torch_norm(1e-3).eval()
    ours = paddle_norm(theirs, paddle.nn.BatchNorm2D(4))
    ours.eval()
    return departure(ours(paddle.to_tensor(X)), theirs(torch.from_numpy(X)))


def after_a_step(momentum):
    """(mean, variance) of both frameworks' running statistics after one training step, from the same start."""
    theirs, ours = torch.nn.BatchNorm2d(4, momentum=0.1), paddle.nn.BatchNorm2D(4, momentum=momentum)
    shifted = X[:, :, :2, :2] + 1  # 8 values per channel
    theirs(torch.from_numpy(shifted))
    ours(paddle.to_tensor(shifted))
    return (ours._mean, theirs.running_mean), (ours._variance, theirs.running_var)


def momentum_as_it_is():
    (ours, theirs), _ = after_a_step(0.1)
    return float((ours.numpy() / theirs.numpy()).mean())


def biased_variance():
    _, (ours, theirs) = after_a_step(0.9)
    return departure(ours, theirs)


def padding_left_out():
    ours = F.avg_pool2d(paddle.to_tensor(X), 3, 2, 1)
    return departure(ours, torch.nn.functional.avg_pool2d(torch.from_numpy(X), 3, 2, 1))


def resized(**settings):
    ours = F.interpolate(paddle.to_tensor(X), size=SIZE, mode="bilinear", **settings)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(X), SIZE, mode="bilinear", align_corners=False)
    return departure(ours, theirs)


def untransposed():
    weight, bias = np.random.default_rng(1).standard_normal((14, 14)).astype(np.float32), X[0, 0, 0]
    theirs = torch.nn.functional.linear(torch.from_numpy(X), torch.from_numpy(weight), torch.from_numpy(bias))
    ours = F.linear(paddle.to_tensor(X), paddle.to_tensor(weight), paddle.to_tensor(bias))
    return departure(ours, theirs)


MISTAKES = {
    "BN epsilon 1e-5 for 1e-3": wrong_epsilon,
    "BN momentum 0.1 copied as it is": momentum_as_it_is,
    "running variance (no setting changes it)": biased_variance,
    "average pooling 3/2/1 with `exclusive=True`": padding_left_out,
    "bilinear, `align_mode=1`": lambda: resized(align_corners=False, align_mode=1),
    "bilinear, `align_corners=True` for False": lambda: resized(align_corners=True),
    "square Linear not transposed": untransposed,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_readme_has_the_measured_effect(mistake):
    measured = MISTAKES[mistake]()
    row = next((line for line in README.splitlines() if line.startswith(f"| {mistake}")), None)
    assert row is not None and row.endswith(f" {measured:.2g} |"), f"| {mistake} | ... | {measured:.2g} |"


def test_a_global_average_in_one_go_rounds_ten_times_as_much_as_ours():
    x = np.random.default_rng(0).uniform(0, 2, (1, 64, 256, 512)).astype(np.float32)
    exact, tensor = x.mean((2, 3), dtype=np.float64), paddle.to_tensor(x)

    def error(average):
        return np.abs(average.numpy().reshape(exact.shape) - exact).max() / exact.max()

    at_once, ours = error(F.adaptive_avg_pool2d(tensor, 1)), error(global_avg_pool(tensor))
    assert ours < 1e-6 and error(torch.from_numpy(x).mean((2, 3))) < 1e-6
    assert 5 * ours < at_once < 5e-5


def test_set_rightly_they_are_equal():
    x, tensor = paddle.to_tensor(X), torch.from_numpy(X)
    interpolate = torch.nn.functional.interpolate
    for epsilon in (1e-5, 1e-3):
        theirs = torch_norm(epsilon).eval()
        ours = paddle_norm(theirs, batch_norm(4, epsilon))
        ours.eval()
        assert departure(ours(x), theirs(tensor)) < 1e-6
    (ours, theirs), _ = after_a_step(batch_norm(4)._momentum)
    assert departure(ours, theirs) < 1e-6
    assert departure(avg_pool_3x3_stride2(x), torch.nn.functional.avg_pool2d(tensor, 3, 2, 1)) < 1e-6
    aligned = interpolate(tensor, SIZE, mode="bilinear", align_corners=True)
    assert departure(resize_bilinear(x, SIZE), aligned) < 2e-6
    assert departure(F.interpolate(x, SIZE, mode="nearest"), interpolate(tensor, SIZE, mode="nearest")) == 0
    others = interpolate(tensor, SIZE, mode="bilinear", align_corners=False)
    assert departure(F.interpolate(x, SIZE, mode="bilinear", align_corners=False, align_mode=0), others) < 2e-6
