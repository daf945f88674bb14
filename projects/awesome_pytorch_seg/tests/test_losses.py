import math

from awesome_pytorch_seg.config import LossConfig
from awesome_pytorch_seg.losses import (
    DiceLoss,
    OhemCrossEntropy,
    OutputsLoss,
    PixelLoss,
    WeightedCrossEntropy,
    build_loss,
    mean_cross_entropy,
)
from common.cli import UserError

import pytest
import torch

# Two classes, one row of four pixels; the probabilities of class 1 are 1/2, 3/4, 1/4, 9/10.
PROBS = torch.tensor([0.5, 0.75, 0.25, 0.9])
LOGITS = torch.stack([torch.zeros(4), torch.log(PROBS / (1 - PROBS))]).reshape(1, 2, 1, 4)
LABEL = torch.tensor([[[1, 0, 1, 255]]])
LOSSES = (math.log(2), math.log(4), math.log(4))  # of the three valid pixels


def config(**changes):
    values = {"class_weights": None, "ohem_threshold": None, "ohem_min_kept_fraction": 0.5, "dice_weight": 0.0}
    return LossConfig(**{**values, "aux_weight": 0.4, **changes})


def test_cross_entropy_by_hand():
    assert float(WeightedCrossEntropy()(LOGITS, LABEL)) == pytest.approx(sum(LOSSES) / 3)
    weighted = (5 * LOSSES[0] + 2 * LOSSES[1] + 5 * LOSSES[2]) / 12
    assert float(WeightedCrossEntropy((2.0, 5.0))(LOGITS, LABEL)) == pytest.approx(weighted)
    total, count = mean_cross_entropy(LOGITS, LABEL)
    assert (total, count) == (pytest.approx(sum(LOSSES)), 3)


def test_ohem_by_hand():
    assert float(OhemCrossEntropy(0.4, 0.25)(LOGITS, LABEL)) == pytest.approx(math.log(4))  # the two below 0.4
    assert float(OhemCrossEntropy(0.1, 0.25)(LOGITS, LABEL)) == pytest.approx(math.log(4))  # none: the hardest one
    assert float(OhemCrossEntropy(0.1, 1.0)(LOGITS, LABEL)) == pytest.approx(sum(LOSSES) / 3)  # all that are valid


def test_dice_by_hand():
    # class 0: overlap 1/4, probabilities 1/2 + 1/4 + 3/4, one labelled pixel; class 1: 1/2 + 1/4; 3/2; two.
    expected = 1 - (2 * 0.25 / (1.5 + 1) + 2 * 0.75 / (1.5 + 2)) / 2
    assert float(DiceLoss()(LOGITS, LABEL)) == pytest.approx(expected)
    only_one = torch.tensor([[[1, 255, 1, 255]]])
    assert float(DiceLoss()(LOGITS, only_one)) == pytest.approx(1 - 2 * 0.75 / (0.75 + 2))


def test_pixel_loss_adds_dice_and_outputs_add_aux():
    parts = config(dice_weight=2.0)
    one = PixelLoss(parts)(LOGITS, LABEL)
    expected = sum(LOSSES) / 3 + 2 * float(DiceLoss()(LOGITS, LABEL))
    assert float(one) == pytest.approx(expected)
    small = torch.zeros(1, 2, 1, 2)  # enlarged to the label: log(2) in every pixel
    total, named = OutputsLoss(PixelLoss(config()))({"logits": LOGITS, "aux": (small, small)}, LABEL)
    assert float(named["aux"]) == pytest.approx(2 * math.log(2))
    assert float(total) == pytest.approx(sum(LOSSES) / 3 + 0.4 * 2 * math.log(2))


@pytest.mark.parametrize(
    "loss",
    [
        WeightedCrossEntropy(),
        WeightedCrossEntropy((1.0, 2.0)),
        OhemCrossEntropy(0.7, 0.5),
        DiceLoss(),
        PixelLoss(config(dice_weight=1.0)),
    ],
)
def test_nothing_to_learn_is_zero_with_zero_gradient(loss):
    logits = LOGITS.clone().requires_grad_()
    value = loss(logits, torch.full((1, 1, 4), 255))
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_are_counted_in_float32():
    assert PixelLoss(config(dice_weight=1.0))(LOGITS.bfloat16(), LABEL).dtype == torch.float32


def test_class_weights_must_fit():
    with pytest.raises(UserError, match="class_weights has 2 values, the data 3 classes"):
        build_loss("enet", config(class_weights=(1.0, 2.0)), 3)
