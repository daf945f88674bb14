import math

from encnet_single_gpu.config import LossConfig
from encnet_single_gpu.losses import (
    SegmentationLoss,
    class_presence,
    mean_cross_entropy,
    se_loss,
)

import pytest
import torch

# Two classes, one row of four pixels; the probabilities of class 1 are 1/2, 3/4, 1/4, 9/10.
PROBS = torch.tensor([0.5, 0.75, 0.25, 0.9])
LOGITS = torch.stack([torch.zeros(4), torch.log(PROBS / (1 - PROBS))]).reshape(1, 2, 1, 4)
LABEL = torch.tensor([[[1, 0, 1, 255]]])
LOSSES = (math.log(2), math.log(4), math.log(4))  # of the three valid pixels
IGNORED = torch.full((1, 1, 4), 255)


def loss(class_weights=None, aux_weight=0.4, se_weight=0.2):
    return SegmentationLoss(LossConfig(class_weights=class_weights, aux_weight=aux_weight, se_weight=se_weight))


def test_cross_entropy_by_hand():
    total, parts = loss()({"logits": LOGITS}, LABEL)
    assert float(total) == float(parts["seg"]) == pytest.approx(sum(LOSSES) / 3)
    assert set(parts) == {"seg"}
    weighted, _ = loss((2.0, 5.0))({"logits": LOGITS}, LABEL)
    assert float(weighted) == pytest.approx((5 * LOSSES[0] + 2 * LOSSES[1] + 5 * LOSSES[2]) / 12)
    total, count = mean_cross_entropy(LOGITS, LABEL)
    assert (total, count) == (pytest.approx(sum(LOSSES)), 3)


def test_divided_by_the_number_of_pixels():
    """As SegNet's Caffe divides, and as ChainerCV does."""
    config = LossConfig(class_weights=(2.0, 5.0), aux_weight=0.4, se_weight=0.2, divide_by="pixels")
    total, _ = SegmentationLoss(config)({"logits": LOGITS}, LABEL)
    assert float(total) == pytest.approx((5 * LOSSES[0] + 2 * LOSSES[1] + 5 * LOSSES[2]) / 3)


def test_parts_are_weighted_and_added():
    even = torch.zeros(1, 2, 1, 4)  # log(2) in every pixel
    presence = torch.tensor([[math.log(3), 0.0]])  # probabilities 3/4 and 1/2, both classes are present
    total, parts = loss()({"logits": LOGITS, "aux": (even, even), "presence": presence}, LABEL)
    assert float(parts["aux"]) == pytest.approx(2 * math.log(2))
    assert float(parts["se"]) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert float(total) == pytest.approx(
        sum(LOSSES) / 3 + 0.4 * 2 * math.log(2) + 0.2 * (math.log(4 / 3) + math.log(2)) / 2
    )


def test_presence_by_hand():
    label = torch.tensor([[[0, 2], [2, 255]], [[255, 255], [255, 255]]])
    assert class_presence(label, 3).tolist() == [[1, 0, 1], [0, 0, 0]]
    losses = se_loss(torch.zeros(2, 3), label)
    assert losses.tolist() == [pytest.approx(math.log(2)), 0]  # an image without valid pixel teaches nothing


@pytest.mark.parametrize("class_weights", [None, (2.0, 5.0)])
def test_nothing_to_learn_is_zero_with_zero_gradient(class_weights):
    outputs = {"logits": LOGITS.clone(), "aux": (LOGITS.clone(),), "presence": torch.randn(1, 2)}
    leaves = [outputs["logits"], outputs["aux"][0], outputs["presence"]]
    for leaf in leaves:
        leaf.requires_grad_()
    total, parts = loss(class_weights)(outputs, IGNORED)
    total.backward()
    assert float(total.detach()) == 0 and all(float(part.detach()) == 0 for part in parts.values())
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


@pytest.mark.parametrize("class_weights", [None, (0.3, 1.0, 4.0)])
def test_micro_batches_add_up_to_the_batch(class_weights):
    torch.manual_seed(0)
    label = torch.randint(0, 3, (4, 5, 6))
    label[0, 1:] = 255
    label[1] = 255  # valid pixels lie unevenly, and one image has none
    main, aux, presence = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6), torch.randn(4, 3)
    leaves = [leaf.requires_grad_() for leaf in (main, aux, presence)]
    criterion = loss(class_weights)

    def value(part):
        outputs = {"logits": main[part], "aux": (aux[part],), "presence": presence[part]}
        return criterion(outputs, label[part], normalisers)[0]

    normalisers = None
    whole = value(slice(None))
    expected = torch.autograd.grad(whole, leaves)
    normalisers = criterion.count(label)
    parts = [value(slice(0, 1)), value(slice(1, 2)), value(slice(2, 4))]
    torch.testing.assert_close(sum(parts), whole)
    for ours, theirs in zip(torch.autograd.grad(sum(parts), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    images, pixels = 3, float(normalisers.pixels)
    assert int(normalisers.images) == images
    weights = torch.ones(3) if class_weights is None else torch.tensor(class_weights)
    assert pixels == pytest.approx(float(weights[label[label != 255]].sum()), rel=1e-6)


def test_half_precision_is_counted_in_float32():
    outputs = {"logits": LOGITS.bfloat16(), "presence": torch.zeros(1, 2).bfloat16()}
    total, parts = loss()(outputs, LABEL)
    assert total.dtype == parts["se"].dtype == torch.float32
