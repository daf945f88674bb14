"""Learning rate, optimizer, and updates cut into micro-batches."""

import dataclasses
import json
from types import SimpleNamespace

from semsegpaddle_glore import processes
from semsegpaddle_glore.config import LossConfig, read_config
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.lr_schedule import learning_rate
from semsegpaddle_glore.models import build_model
from semsegpaddle_glore.optimizer import build_optimizer
from semsegpaddle_glore.updates import Updater

import numpy as np
import paddle
import pytest
import torch
from glore_no_batch_norm import make_updater, updated

ORIGINAL = read_config("pspnet_res101_cityscapes").optimizer


def test_rate_of_the_original_is_poly():
    assert learning_rate(0, 29750, ORIGINAL) == 0.01
    assert learning_rate(14875, 29750, ORIGINAL) == pytest.approx(0.01 * 0.5**0.9)
    assert learning_rate(29750, 29750, ORIGINAL) == 0


def test_rate_with_warmup_rises_by_equal_factors():
    config = dataclasses.replace(ORIGINAL, warmup="exponential", warmup_iters=100, warmup_start_lr=1e-4)
    assert learning_rate(0, 300, config) == pytest.approx(1e-4)
    assert learning_rate(50, 300, config) == pytest.approx(1e-3)
    assert learning_rate(100, 300, config) == pytest.approx(1e-2)
    assert learning_rate(150, 300, config) == pytest.approx(1e-2 * 0.75**0.9)


def test_linear_warmup_is_the_originals():
    config = dataclasses.replace(ORIGINAL, warmup="linear", warmup_iters=4)
    rates = [learning_rate(step, 12, config) for step in range(12)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])  # counted from 1, as autoincreased_step_counter
    assert rates[4:6] == pytest.approx([0.01, 0.01 * (1 - 1 / 8) ** 0.9])


def test_one_cycle_goes_up_and_down_along_half_a_cosine():
    config = dataclasses.replace(
        ORIGINAL, schedule="one_cycle", learning_rate=0.1, warmup_iters=4, warmup_start_lr=0.02, warmup="exponential"
    )
    rates = [learning_rate(step, 12, config) for step in range(13)]
    assert rates[:5] == pytest.approx([0.02, 0.02 + 0.08 * 0.14644661, 0.06, 0.02 + 0.08 * 0.85355339, 0.1])
    assert rates[8] == pytest.approx(0.1 * (1 - 0.999 / 2))
    assert rates[12] == pytest.approx(1e-4)


def expected_decay(name, ndims, decay_norms, decay_classifier, decay_head_norm):
    if name.endswith("classifier.weight"):
        return 0.1 if decay_classifier else 0.0
    is_norm = ndims.get(f"{name.rpartition('.')[0]}.weight") == 1
    if is_norm and not name.startswith("backbone.") and not decay_head_norm:
        return 0.0
    return 0.1 if decay_norms or not (is_norm or name.endswith(".bias")) else 0.0


@pytest.mark.parametrize(
    "decay_norms, decay_classifier, decay_head_norm", [(True, False, True), (False, True, True), (True, True, False)]
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_three_updates_equal_pytorchs(name, decay_norms, decay_classifier, decay_head_norm):
    config = dataclasses.replace(
        ORIGINAL, name=name, weight_decay=0.1, head_lr_factor=10.0, warmup_iters=100, warmup_start_lr=1e-3
    )
    config = dataclasses.replace(
        config,
        decay_norm_and_bias=decay_norms,
        decay_classifier=decay_classifier,
        decay_head_norm=decay_head_norm,
        warmup="exponential",
    )
    paddle.seed(0)
    model = build_model("ginet", "resnet18", 3)
    ndims = {key: parameter.ndim for key, parameter in model.named_parameters()}
    twins, groups = {}, []
    for key, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            twins[key] = torch.nn.Parameter(torch.from_numpy(parameter.numpy()))
            factor = 1.0 if key.startswith("backbone.") else 10.0
            decay = expected_decay(key, ndims, decay_norms, decay_classifier, decay_head_norm)
            groups.append({"params": [twins[key]], "factor": factor, "weight_decay": decay})
    sgd = name == "sgd"
    theirs = torch.optim.SGD(groups, lr=1.0, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=1.0)
    ours = build_optimizer(model, config)
    rng = np.random.default_rng(0)
    for step in (0, 50, 200):
        rate = learning_rate(step, 1000, config)
        for group in theirs.param_groups:
            group["lr"] = rate * group["factor"]
        for key, parameter in model.named_parameters():
            if key in twins:
                gradient = rng.standard_normal(parameter.shape, dtype=np.float32)
                twins[key].grad = torch.from_numpy(gradient)
                parameter.grad = paddle.to_tensor(gradient)
        theirs.step()
        ours.set_lr(rate)
        ours.step()
    for key, parameter in model.named_parameters():
        if key in twins:
            np.testing.assert_allclose(parameter.numpy(), twins[key].detach().numpy(), atol=2e-6, err_msg=key)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_add_up_to_the_one_big_batch(accumulate):
    (whole_losses, whole), (losses, weights) = updated(1), updated(accumulate)
    for (total, parts), (whole_total, whole_parts) in zip(losses, whole_losses, strict=True):
        assert total == pytest.approx(whole_total, rel=1e-6)
        assert parts == pytest.approx(whole_parts, rel=1e-6)
        assert parts.keys() == {"seg", "aux", "sc"}
    for name, value in whole.items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_batch_with_nothing_to_learn_moves_no_weight():
    updater = make_updater()
    before = {name: value.numpy().copy() for name, value in updater.model.state_dict().items()}
    images, label = np.ones((2, 3, 8, 8), np.float32), np.full((2, 8, 8), 255)
    assert updater.gradients(images, label, 0) == (0.0, {"seg": 0.0, "aux": 0.0, "sc": 0.0})
    updater.apply(0.1)
    for name, value in updater.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_the_state_of_the_loss_scaling_can_be_written_as_json():
    """As `paddle.amp.GradScaler` gives it where it is enabled, which it is on a GPU alone."""
    updater = make_updater()
    assert updater.scaler_state() == {}
    given = {"scale": np.array([1024.0], np.float32), "incr_ratio": 2.0, "incr_count": 3}
    updater.scaler = SimpleNamespace(state_dict=lambda: given)
    assert json.loads(json.dumps(updater.scaler_state())) == {"scale": [1024.0], "incr_ratio": 2.0, "incr_count": 3}


def test_evaluation_takes_the_float32_weights_that_a_checkpoint_holds(monkeypatch):
    """At O2 on a GPU, of which a CPU shows the bookkeeping: `decorate` makes weights float16 and keeps masters."""

    def decorate(model, optimizer, level):
        masters = {parameter.name: parameter.astype("float32") for parameter in model.parameters()}
        model.to(dtype="float16")
        optimizer._master_weights = masters
        return model, optimizer

    plain = make_updater()
    assert plain.float32_model() is plain.model
    monkeypatch.setattr(processes, "on_gpu", lambda: True)
    monkeypatch.setattr(paddle.amp, "decorate", decorate)
    updater = Updater(plain.model, SegmentationLoss(LossConfig(0.4, 0.2)), plain.optimizer, 0, amp="O2")
    for factor in (1.0, 3.0):  # the second time after an update
        expected = {}
        for name, parameter in updater.model.named_parameters():
            master = updater.optimizer._master_weights[parameter.name]
            master.set_value(master * factor + 1e-5)
            expected[name] = master.numpy().copy()
        copied = updater.float32_model()
        assert {value.dtype for value in updater.model.state_dict().values()} == {paddle.float16}
        for name, value in copied.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), expected[name], err_msg=name)
    outputs = copied(paddle.ones([1, 3, 8, 8]))
    assert {value.dtype for value in (outputs["logits"], *outputs["aux"], outputs["presence"])} == {paddle.float32}


def test_dropout_follows_from_seed_and_step():
    class Dropped(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.classifier = paddle.nn.Conv2D(3, 4, 1)

        def forward(self, images):
            return {"logits": self.classifier(paddle.nn.functional.dropout(images, 0.5))}

    paddle.seed(0)
    model = Dropped()
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, parameters=model.parameters())
    updaters = [Updater(model, SegmentationLoss(LossConfig(0.4, 0.2)), optimizer, seed) for seed in (0, 1)]
    images, label = np.ones((2, 3, 16, 16), np.float32), np.zeros((2, 16, 16), np.int64)
    first, again, later = (updaters[0].gradients(images, label, step)[0] for step in (5, 5, 6))
    assert first == again
    assert len({first, later, updaters[1].gradients(images, label, 5)[0]}) == 3
