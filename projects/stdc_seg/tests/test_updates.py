"""A batch cut into micro-batches."""

from stdc_seg.config import LossConfig
from stdc_seg.losses import STDCSegLoss
from stdc_seg.updates import Updater

import numpy as np
import paddle
import pytest


class NoBatchNorm(paddle.nn.Layer):
    """Of the shape of ours; images do not meet in it."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 8, 3, padding=1)
        self.heads = paddle.nn.LayerList([paddle.nn.Conv2D(8, channels, 1) for channels in (4, 4, 4, 1)])

    def forward(self, images):
        x = paddle.tanh(self.conv(images))
        logits, aux8, aux16, detail = (head(x) for head in self.heads)
        return {"logits": logits, "aux": (aux8, aux16), "detail": detail}


def loss_of(kept=1.0, detail_weight=0.0):
    return STDCSegLoss(LossConfig(0.7, kept, 0.5, detail_weight, detail_masks_ignored=False))


def batch():
    """Images with very different numbers of valid pixels; one micro-batch of four has none."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (8, 12, 16))
    label[0, :11], label[2:4], label[6, 3:] = 255, 255, 255
    return rng.standard_normal((8, 3, 12, 16), dtype=np.float32), label


def add_gradients(model, loss, images, label, accumulate=1):
    return Updater(model, loss, None, accumulate).gradients(images, label, step=0)


def gradients(model):
    found = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    model.clear_gradients()
    return found


@pytest.fixture
def model():
    paddle.seed(0)
    return NoBatchNorm()


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_give_the_cross_entropies_and_gradients_of_the_batch(model, accumulate):
    images, label = batch()
    whole_total, whole_parts = add_gradients(model, loss_of(), images, label)
    whole = gradients(model)
    total, parts = add_gradients(model, loss_of(), images, label, accumulate)
    assert total == pytest.approx(whole_total, rel=1e-6)
    for name in ("seg", "aux8", "aux16"):
        assert parts[name] == pytest.approx(whole_parts[name], rel=1e-6)
    for name, value in gradients(model).items():
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=1e-6, err_msg=name)
    assert max(np.abs(value).max() for value in whole.values()) > 0.01


def test_one_piece_is_the_loss_and_the_gradient_bit_by_bit(model):
    images, label = batch()
    expected, _ = loss_of(0.1, 1.0)(model(paddle.to_tensor(images)), paddle.to_tensor(label))
    expected.backward()
    whole = gradients(model)
    assert add_gradients(model, loss_of(0.1, 1.0), images, label)[0] == float(expected)
    for name, value in gradients(model).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_a_batch_with_nothing_to_learn_is_zero(model):
    images, label = np.ones((4, 3, 8, 8), np.float32), np.full((4, 8, 8), 255)
    total, parts = add_gradients(model, loss_of(0.1, 1.0), images, label, 2)
    assert total == 0.0 and set(parts.values()) == {0.0}
    assert all((value == 0).all() for value in gradients(model).values())
