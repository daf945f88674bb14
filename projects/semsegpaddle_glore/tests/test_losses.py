import dataclasses

from semsegpaddle_glore.config import LossConfig
from semsegpaddle_glore.losses import (
    SegmentationLoss,
    class_presence,
    count,
    pixel_cross_entropy,
    semantic_context_loss,
)

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F

CONFIG = LossConfig(aux_weight=0.4, sc_weight=0.2)


def random_case(seed, batch=3, classes=5, size=(12, 20), ignored=0.3):
    rng = np.random.default_rng(seed)
    outputs = {name: 3 * rng.standard_normal((batch, classes, *size), dtype=np.float32) for name in ("logits", "aux")}
    outputs["presence"] = 3 * rng.standard_normal((batch, classes), dtype=np.float32)
    label = rng.integers(0, classes - 1, (batch, *size))  # the last class is nowhere
    label[rng.random(label.shape) < ignored] = 255
    return outputs, label


def tensors(outputs):
    return {name: paddle.to_tensor(value, stop_gradient=False) for name, value in outputs.items()}


def as_given(outputs):
    """As the network gives them: "aux" is a tuple."""
    return {**outputs, "aux": (outputs["aux"],)}


def expected_parts(outputs, label):
    """By PyTorch, with presence found class by class."""
    label = torch.from_numpy(label)
    parts = {
        part: F.cross_entropy(torch.from_numpy(outputs[name]), label, ignore_index=255)
        for part, name in (("seg", "logits"), ("aux", "aux"))
    }
    some = (label != 255).flatten(1).any(1)
    present = torch.stack([(label == c).flatten(1).any(1) for c in range(outputs["presence"].shape[1])], 1).float()
    parts["sc"] = F.binary_cross_entropy_with_logits(torch.from_numpy(outputs["presence"])[some], present[some])
    return parts


def test_parts_and_total_are_pytorchs():
    outputs, label = random_case(0)
    label[1] = 255  # an image with nothing valid leaves all three
    total, parts = SegmentationLoss(CONFIG)(as_given(tensors(outputs)), paddle.to_tensor(label))
    expected = expected_parts(outputs, label)
    assert list(parts) == ["seg", "aux", "sc"]
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-5)
    weighted = expected["seg"] + 0.4 * expected["aux"] + 0.2 * expected["sc"]
    assert float(total) == pytest.approx(float(weighted), rel=1e-5)


def test_a_network_without_aux_head_and_presence_has_one_part():
    outputs, label = random_case(1)
    total, parts = SegmentationLoss(CONFIG)({"logits": paddle.to_tensor(outputs["logits"])}, paddle.to_tensor(label))
    assert list(parts) == ["seg"]
    assert float(total) == float(parts["seg"])


def test_weights_are_the_configs():
    outputs, label = random_case(2)
    config = dataclasses.replace(CONFIG, aux_weight=2.0, sc_weight=0.0)
    total, parts = SegmentationLoss(config)(as_given(tensors(outputs)), paddle.to_tensor(label))
    assert float(total) == pytest.approx(float(parts["seg"]) + 2 * float(parts["aux"]), rel=1e-6)


def test_nothing_valid_is_zero_with_zero_gradient():
    outputs, label = random_case(3)
    label[:] = 255
    outputs = tensors(outputs)
    total, parts = SegmentationLoss(CONFIG)(as_given(outputs), paddle.to_tensor(label))
    total.backward()
    assert float(total) == 0
    assert [float(value) for value in parts.values()] == [0, 0, 0]
    assert all(float(output.grad.abs().max()) == 0 for output in outputs.values())


@pytest.mark.parametrize("cuts", [[1, 2], [1, 1, 1]])
def test_micro_batches_add_up_to_the_batch(cuts):
    outputs, label = random_case(4)
    label[0] = 255  # ignored pixels lie unevenly
    label[1, :9] = 255
    loss = SegmentationLoss(CONFIG)
    whole = tensors(outputs)
    total, _ = loss(as_given(whole), paddle.to_tensor(label))
    total.backward()
    pieces, first = [], 0
    for size in cuts:
        part = tensors({name: value[first : first + size] for name, value in outputs.items()})
        piece, _ = loss(as_given(part), paddle.to_tensor(label[first : first + size]), count(label))
        piece.backward()
        pieces.append((piece, part))
        first += size
    assert sum(float(piece) for piece, _ in pieces) == pytest.approx(float(total), rel=1e-6)
    for name, output in whole.items():
        gradient = np.concatenate([part[name].grad.numpy() for _, part in pieces])
        np.testing.assert_allclose(gradient, output.grad.numpy(), atol=1e-8)
    own = [
        loss(as_given(part), paddle.to_tensor(label[i : i + 1]))[0]
        for i, (_, part) in enumerate(pieces)
        if len(cuts) == 3
    ]
    assert not own or abs(sum(map(float, own)) / 3 - float(total)) > 0.1  # the mean of means is something else


@pytest.mark.parametrize("kind", [np.asarray, paddle.to_tensor])
def test_count_by_hand(kind):
    label = np.full((3, 2, 4), 255)
    label[0, 0] = [0, 1, 2, 255]
    label[2, 1, 3] = 0
    assert count(kind(label)) == (4, 2)


def test_presence_by_hand():
    label = np.full((3, 2, 2), 255)
    label[0] = [[0, 3], [3, 255]]
    label[2] = 1
    present = class_presence(paddle.to_tensor(label), 4)
    np.testing.assert_array_equal(present.numpy(), [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    logits = paddle.to_tensor([[0.0] * 4, [5.0] * 4, [-2.0, 2.0, -2.0, -2.0]])
    loss = semantic_context_loss(logits, paddle.to_tensor(label))
    np.testing.assert_allclose(loss.numpy(), [np.log(2), 0, np.log1p(np.exp(-2))], rtol=1e-6)


def test_cross_entropy_of_a_pixel_is_pytorchs_and_0_where_ignored():
    outputs, label = random_case(5)
    per_pixel = pixel_cross_entropy(paddle.to_tensor(outputs["logits"]), paddle.to_tensor(label)).numpy()
    expected = F.cross_entropy(
        torch.from_numpy(outputs["logits"]), torch.from_numpy(label), ignore_index=255, reduction="none"
    )
    np.testing.assert_allclose(per_pixel, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (per_pixel[label == 255] == 0).all()


def test_class_weights_count_a_pixel_with_its_class():
    outputs, label = random_case(7)
    weights = (0.5, 2.0, 0.0, 3.0, 1.0)
    config = dataclasses.replace(CONFIG, class_weights=weights)
    total, parts = SegmentationLoss(config)(as_given(tensors(outputs)), paddle.to_tensor(label))
    for part, name in (("seg", "logits"), ("aux", "aux")):
        logits, target = torch.from_numpy(outputs[name]), torch.from_numpy(label)
        expected = F.cross_entropy(logits, target, torch.tensor(weights), ignore_index=255)  # sum(w * loss) / sum(w)
        assert float(parts[part]) == pytest.approx(float(expected), rel=1e-5)
    normalisers = SegmentationLoss(config).count(label)
    assert normalisers.pixels == pytest.approx(sum(w * (label == c).sum() for c, w in enumerate(weights)))
    nothing, _ = SegmentationLoss(config)(as_given(tensors(outputs)), paddle.full_like(paddle.to_tensor(label), 255))
    assert float(nothing) == 0


def test_class_weights_in_micro_batches_add_up():
    outputs, label = random_case(8, batch=4)
    loss = SegmentationLoss(dataclasses.replace(CONFIG, sc_weight=0.0, class_weights=(1.0, 2.0, 3.0, 4.0, 5.0)))
    outputs = {name: outputs[name] for name in ("logits", "aux")}
    whole, _ = loss(as_given(tensors(outputs)), paddle.to_tensor(label))
    counts = loss.count(label)
    halves = [
        loss(as_given(tensors({n: v[part] for n, v in outputs.items()})), paddle.to_tensor(label[part]), counts)[0]
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert float(halves[0] + halves[1]) == pytest.approx(float(whole), rel=1e-6)
