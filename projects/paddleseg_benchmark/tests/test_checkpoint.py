"""Checkpoints: everything that a training goes on from, and nothing else is read."""

import dataclasses
import subprocess
import sys

from common.cli import UserError
from paddleseg_benchmark.checkpoint import TrainState, load_stepper, read_state, save_checkpoint
from paddleseg_benchmark.updates import DynamicStep, StaticStep

import numpy as np
import paddle
import pytest
from pdseg_runs import PROJECT, batch, small_network
from testkit import ENV_WITH_KIT

STATE = TrainState(
    step=3,
    evaluated_step=0,
    best_miou=float("nan"),
    best_step=0,
    config_name="fastscnn",
    config_text="iters: 6\n",
    class_names=("road", "kerb"),
    seed=0,
    data_root=None,
    scope="reduced",
    layout="NCHW",
    precision="fp32",
    graph="dynamic",
    synthetic=False,
    do_eval=True,
    log_iters=10,
    save_interval=1000,
    keep_checkpoint_max=1,
    schedule={},
    loss_scale=None,
)
CROSS_ENTROPY = [{"type": "CrossEntropyLoss"}]


def dynamic(seed=3):
    paddle.seed(seed)
    return DynamicStep(small_network(CROSS_ENTROPY, [1]), iters=6)


def static(seed=3):
    def build():
        paddle.seed(seed)
        return small_network(CROSS_ENTROPY, [1])

    return StaticStep(build, 2, (8, 8), iters=6)


def train(stepper, steps):
    losses = []
    for number in steps:
        losses.append(stepper.run(*batch((8, 8), seed=number)).loss)
    return losses


def saved(path, stepper, **more):
    state = stepper.state()
    state_text = dataclasses.replace(STATE, schedule=state.schedule, loss_scale=state.loss_scale, **more)
    save_checkpoint(path, stepper.weights(), state_text, state.moments)
    return path


@pytest.mark.parametrize("build", [dynamic, static])
def test_a_stepper_resumes_to_the_same_digits(build, tmp_path):
    whole, half = build(), build()
    losses = train(whole, range(6))
    assert train(half, range(3)) == losses[:3]
    path = saved(tmp_path / "last.safetensors", half)
    resumed = build(seed=9)  # other weights, all of them replaced
    load_stepper(path, resumed, read_state(path))
    assert train(resumed, range(3, 6)) == losses[3:]
    for name, value in whole.weights().items():
        np.testing.assert_array_equal(resumed.weights()[name], value)
    assert resumed.state().schedule == whole.state().schedule
    assert whole.state().moments.keys() == {"heads.0.weight.velocity_0", "heads.0.bias.velocity_0"}


def test_the_same_state_has_the_same_bytes_in_two_processes(tmp_path):
    script = "import sys, test_checkpoint as t; t.saved(sys.argv[1], t.dynamic())"
    for name in "ab":
        words = [sys.executable, "-c", script, str(tmp_path / name)]
        subprocess.run(words, env=ENV_WITH_KIT, cwd=PROJECT / "tests", check=True, capture_output=True, timeout=120)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_a_checkpoint_says_is_read_back(tmp_path):
    path = saved(tmp_path / "last.safetensors", dynamic(), best_miou=0.5, best_step=2)
    state = read_state(path)
    assert (state.best_miou, state.best_step, state.class_names, state.is_resumable) == (0.5, 2, ("road", "kerb"), True)
    assert state.schedule == {"last_epoch": 0, "last_lr": 0.01}


def test_a_file_without_the_optimizers_state_is_not_resumed_from(tmp_path):
    stepper = dynamic()
    save_checkpoint(tmp_path / "best.safetensors", stepper.weights(), STATE)
    with pytest.raises(UserError, match=r"best.safetensors: was saved without .*last.safetensors"):
        load_stepper(tmp_path / "best.safetensors", dynamic(), read_state(tmp_path / "best.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, moments: weights.pop("heads.0.bias"), "1 tensors are missing .heads.0.bias."),
        (lambda weights, moments: weights.update(more=np.zeros(2, np.float32)), "1 are not known .more."),
        (lambda weights, moments: weights.update({"heads.0.bias": np.zeros(3, np.float32)}), "'heads.0.bias' is .3,."),
        (lambda weights, moments: weights["heads.0.bias"].fill(np.nan), "'heads.0.bias' holds NaN or infinity"),
        (
            lambda weights, moments: moments.update({"x.velocity_0": np.zeros(3, np.float32)}),
            "'optimizer.x.velocity_0'",
        ),
    ],
)
def test_a_file_of_another_network_is_refused(change, message, tmp_path):
    stepper = dynamic()
    train(stepper, range(1))
    weights, moments = stepper.weights(), stepper.state().moments
    change(weights, moments)
    save_checkpoint(tmp_path / "last.safetensors", weights, STATE, moments)
    with pytest.raises(UserError, match=f"last.safetensors: .*{message}"):
        load_stepper(tmp_path / "last.safetensors", dynamic(), read_state(tmp_path / "last.safetensors"))
