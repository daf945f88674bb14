import math

from stdc_seg.config import read_config
from stdc_seg.losses import (
    LOG_NAMES,
    DetailLoss,
    OhemCrossEntropy,
    STDCSegLoss,
    detail_target,
    mean_cross_entropy,
    pixel_cross_entropy,
)

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F


def random_case(seed, size=(2, 5, 24, 40), ignored=0.2):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal(size, dtype=np.float32)
    label = rng.integers(0, size[1], (size[0], *size[2:]))
    label[rng.random(label.shape) < ignored] = 255
    return logits, label


def blocks(seed, size=(2, 32, 48), cell=8, classes=4):
    """Label maps of square areas: edges, like a real label."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (size[0], size[1] // cell, size[2] // cell))
    return coarse.repeat(cell, 1).repeat(cell, 2)


def grad_of(loss_of, array):
    tensor = paddle.to_tensor(array, stop_gradient=False)
    loss = loss_of(tensor)
    loss.backward()
    return float(loss), tensor.grad.numpy()


def official_ohem(logits, label, threshold, min_kept):
    """By sorting, as the official code: the mean of all above the threshold, or of the `min_kept` largest."""
    loss = F.cross_entropy(logits, label, ignore_index=255, reduction="none").flatten()
    loss = loss.sort(descending=True).values
    hard = loss > -math.log(threshold)
    return loss[hard].mean() if loss[min_kept] > -math.log(threshold) else loss[:min_kept].mean()


@pytest.mark.parametrize("spread", [3.0, 0.05])  # many hard pixels; hardly any
@pytest.mark.parametrize("fraction", [1 / 16, 1 / 2])
def test_ohem_is_the_official_one_with_its_gradient(spread, fraction):
    logits, label = random_case(0, ignored=0.1)
    logits *= spread / 3
    if spread < 1:  # confident and right: nothing is above the threshold
        logits += 6 * (np.arange(5)[None, :, None, None] == np.where(label == 255, 0, label)[:, None])
    theirs = torch.from_numpy(logits).requires_grad_()
    expected = official_ohem(theirs, torch.from_numpy(label), 0.7, int(label.size * fraction))
    expected.backward()
    ours, grad = grad_of(lambda x: OhemCrossEntropy(0.7, fraction)(x, paddle.to_tensor(label)), logits)
    assert ours == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(grad, theirs.grad.numpy(), atol=1e-7)


def test_ohem_by_hand():
    # Four pixels, two classes; losses are log(1 + exp(-margin)) for margins 2, 1, 0, -1.
    margins = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    logits = paddle.to_tensor(np.stack([margins, np.zeros(4, np.float32)])[None, :, None])  # (1, 2, 1, 4)
    label = paddle.zeros([1, 1, 4], dtype="int64")
    losses = np.log1p(np.exp(-margins))
    # Threshold 0.6: the last two have a lower probability; half of four is not fewer, so the two hardest are kept.
    assert float(OhemCrossEntropy(0.6, 0.5)(logits, label)) == pytest.approx(losses[2:].mean(), rel=1e-6)
    assert float(OhemCrossEntropy(0.6, 0.75)(logits, label)) == pytest.approx(losses[1:].mean(), rel=1e-6)
    assert float(OhemCrossEntropy(0.99, 0.25)(logits, label)) == pytest.approx(losses.mean(), rel=1e-6)


def test_ohem_with_fewer_valid_pixels_than_must_be_kept_is_their_mean():
    logits, label = random_case(1)
    label[:] = 255
    label[0, 0, :3] = [0, 1, 2]
    expected = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(label), ignore_index=255)
    ours = OhemCrossEntropy(0.7, 0.5)(paddle.to_tensor(logits), paddle.to_tensor(label))
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


def test_mean_cross_entropy_is_pytorchs():
    logits, label = random_case(2)
    total, count = mean_cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(label))
    expected = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(label), ignore_index=255)
    assert count == (label != 255).sum()
    assert total / count == pytest.approx(float(expected), rel=1e-5)
    per_pixel = pixel_cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(label)).numpy()
    assert per_pixel.shape == label.shape
    assert (per_pixel[label == 255] == 0).all()


def official_detail_target(label):
    """Three strided Laplacians, nearest upsampling, 1x1 fusion: step by step in PyTorch."""
    kernel = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])[None, None]
    ids = torch.from_numpy(label)[:, None].float()
    maps = []
    for stride in (1, 2, 4):
        edges = F.conv2d(ids, kernel, stride=stride, padding=1).clamp(min=0)
        maps.append((F.interpolate(edges, ids.shape[2:], mode="nearest") > 0.1).float())
    fuse = torch.tensor([0.6, 0.3, 0.1]).reshape(1, 3, 1, 1)
    return (F.conv2d(torch.cat(maps, 1), fuse) > 0.1).float().numpy()


@pytest.mark.parametrize("size", [(2, 32, 48), (1, 40, 24)])
def test_detail_target_is_the_official_one(size):
    label = blocks(3, size)
    label[0, :10, :10] = 255
    np.testing.assert_array_equal(detail_target(paddle.to_tensor(label)).numpy(), official_detail_target(label))


def test_detail_target_at_sides_that_no_stride_divides():
    label = blocks(4, (1, 40, 48))[:, :37, :45].copy()
    np.testing.assert_array_equal(detail_target(paddle.to_tensor(label)).numpy(), official_detail_target(label))


def test_detail_target_of_one_edge_by_hand():
    label = np.zeros((1, 8, 8), np.int64)
    label[:, :, 4:] = 1
    target = detail_target(paddle.to_tensor(label)).numpy()[0, 0]
    # The Laplacian is positive on the side of the larger id, and along the image's border, where zeros surround it.
    assert (target[1:7, 4] == 1).all()
    assert target[1:7, :4].sum() == 0
    assert target.mean() > 0


def test_stride_four_alone_is_no_detail():
    # Weights are compared in float32: 0.1 is not above 0.1, so only the dense and the stride-2 map count.
    label = np.zeros((1, 16, 16), np.int64)
    label[0, 8, 8] = 1  # seen by all three strides, each at (8, 8)
    target = detail_target(paddle.to_tensor(label)).numpy()[0, 0]
    expected = np.zeros((16, 16))
    expected[8:10, 8:10] = 1  # stride 2 covers 2x2 pixels; stride 4 would cover 4x4
    np.testing.assert_array_equal(target, expected)


def test_detail_loss_is_bce_and_dice():
    label = blocks(5)
    logits = np.random.default_rng(5).standard_normal((2, 1, 4, 6), dtype=np.float32)
    bce, dice, share = DetailLoss()(paddle.to_tensor(logits), paddle.to_tensor(label))
    target = torch.from_numpy(official_detail_target(label))
    up = F.interpolate(torch.from_numpy(logits), label.shape[1:], mode="bilinear", align_corners=True)
    probs, flat = torch.sigmoid(up).flatten(1), target.flatten(1)
    expected_dice = 1 - (2 * (probs * flat).sum(1) + 1) / (probs.sum(1) + flat.sum(1) + 1)
    assert float(bce) == pytest.approx(float(F.binary_cross_entropy_with_logits(up, target)), rel=1e-5)
    assert float(dice) == pytest.approx(float(expected_dice.mean()), rel=1e-5)
    assert float(share) == pytest.approx(float(target.mean()), rel=1e-6)
    assert 0.05 < float(share) < 0.5


def test_ignored_areas_make_edges_only_where_the_official_code_is_followed():
    label = np.zeros((1, 16, 16), np.int64)
    label[0, 4:12, 4:12] = 255
    logits = paddle.zeros([1, 1, 2, 2])
    official = DetailLoss(mask_ignored=False)(logits, paddle.to_tensor(label))
    masked = DetailLoss(mask_ignored=True)(logits, paddle.to_tensor(label))
    assert float(official[2]) > 0  # the border of the unlabelled square counts as detail
    assert float(masked[2]) == 0


def test_images_without_valid_pixels_leave_the_detail_loss():
    label = blocks(6)
    logits = np.random.default_rng(6).standard_normal((2, 1, 4, 6), dtype=np.float32)
    alone = DetailLoss()(paddle.to_tensor(logits[:1]), paddle.to_tensor(label[:1]))
    label[1] = 255
    both = DetailLoss()(paddle.to_tensor(logits), paddle.to_tensor(label))
    np.testing.assert_allclose([float(x) for x in both[:2]], [float(x) for x in alone[:2]], rtol=1e-6)


def as_dict(outputs):
    """Of four tensors, what the network gives in training."""
    logits, aux8, aux16, detail = outputs
    return {"logits": logits, "aux": (aux8, aux16), "detail": detail}


@pytest.mark.parametrize("masks", [False, True])
def test_all_ignored_is_zero_with_zero_gradient(masks):
    config = read_config("quickstart", [f"loss.detail_masks_ignored={str(masks).lower()}"]).loss
    label = paddle.full([2, 16, 24], 255, dtype="int64")
    shapes = [(2, 4, 16, 24)] * 3 + [(2, 1, 2, 3)]
    outputs = [paddle.randn(shape) for shape in shapes]
    for output in outputs:
        output.stop_gradient = False
    total, parts = STDCSegLoss(config)(as_dict(outputs), label)
    total.backward()
    assert float(total) == 0
    assert all(float(part) == 0 for part in parts.values())
    assert all((output.grad is None) or not output.grad.numpy().any() for output in outputs)


def test_the_total_is_the_weighted_sum_of_its_parts():
    overrides = ["loss.aux_weight=0.5", "loss.detail_weight=2.0"]
    logits, label = random_case(7, (2, 4, 16, 24))
    outputs = [paddle.to_tensor(logits * factor) for factor in (1.0, 0.5, 0.2)] + [paddle.randn([2, 1, 2, 3])]
    total, parts = STDCSegLoss(read_config("quickstart", overrides).loss)(as_dict(outputs), paddle.to_tensor(label))
    assert tuple(parts) == LOG_NAMES
    p = {name: float(value) for name, value in parts.items()}
    expected = p["seg"] + 0.5 * (p["aux8"] + p["aux16"]) + 2.0 * (p["detail_bce"] + p["detail_dice"])
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert len({p["seg"], p["aux8"], p["aux16"]}) == 3
