import math

from awesome_pytorch_seg.config import OptimizerConfig, ScheduleConfig, read_config
from awesome_pytorch_seg.lr_schedule import learning_rate
from awesome_pytorch_seg.optimizer import WeightAverage, build_optimizer, set_learning_rate

import numpy as np
import pytest
import torch
from torch import nn


def schedule(name, **more):
    return ScheduleConfig(name, **{"warmup_iters": 10, "warmup_factor": 0.1, **more})


def test_rates_by_hand():
    poly = schedule("poly")
    assert learning_rate(0, 110, 2.0, poly) == pytest.approx(0.2)
    assert learning_rate(5, 110, 2.0, poly) == pytest.approx(0.2 + 1.8 / 2)
    assert learning_rate(10, 110, 2.0, poly) == 2.0
    assert learning_rate(60, 110, 2.0, poly) == pytest.approx(2.0 * 0.5**0.9)
    assert learning_rate(110, 110, 2.0, poly) == 0.0
    cycle = schedule("one_cycle")
    rates = [learning_rate(step, 110, 2.0, cycle) for step in (0, 5, 10, 60, 110)]
    assert rates == pytest.approx([0.2, 1.1, 2.0, 2.0 * 0.5005, 0.002])
    steps = schedule("step", warmup_iters=0, step_iters=40, step_factor=0.5)
    assert [learning_rate(step, 110, 2.0, steps) for step in (0, 39, 40, 80)] == [2.0, 2.0, 1.0, 0.5]


def optimizer_config(**changes):
    values = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.5, "decay_norm_and_bias": False}
    return OptimizerConfig(**{**values, "head_lr_factor": 10.0, "clip_norm": None, "ema_decay": None, **changes})


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(1, 1), nn.Linear(1, 1)
        for p in self.parameters():
            nn.init.ones_(p)


def test_heads_learn_faster_and_biases_do_not_decay():
    model = Small()
    optimizer = build_optimizer(model, optimizer_config())
    set_learning_rate(optimizer, 0.01)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert float(model.backbone.weight.detach()) == pytest.approx(1 - 0.01 * 1.5)
    assert float(model.backbone.bias.detach()) == pytest.approx(1 - 0.01)
    assert float(model.head.weight.detach()) == pytest.approx(1 - 0.1 * 1.5)
    assert float(model.head.bias.detach()) == pytest.approx(1 - 0.1)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers_by_name(name, kind):
    assert type(build_optimizer(Small(), optimizer_config(name=name))) is kind


def test_average_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.zeros_(model[0].weight)
    average = WeightAverage(model, 0.5)
    nn.init.ones_(model[0].weight)
    model[1].num_batches_tracked += 3
    average.update(model, 0)  # decay 1/10
    assert float(average.model[0].weight) == pytest.approx(0.9)
    average.update(model, 1000)  # decay 0.5
    assert float(average.model[0].weight) == pytest.approx(0.95)
    assert int(average.model[1].num_batches_tracked) == 3
    assert float(model[0].weight.detach()) == 1.0


def test_camvid_class_weights_are_the_papers_formula():
    shares = np.array(
        [0.17538, 0.24215, 0.01023, 0.3296, 0.04671, 0.10124, 0.01221, 0.01173, 0.06107, 0.00666, 0.00304]
    )
    weights = read_config("enet_camvid").loss.class_weights
    np.testing.assert_allclose(weights, [1 / math.log(1.1 + p) for p in shares], atol=0.006)
