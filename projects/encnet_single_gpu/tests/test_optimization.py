import dataclasses
import os
from pathlib import Path

from common.cli import UserError
from encnet_single_gpu import memory
from encnet_single_gpu.config import read_config
from encnet_single_gpu.lr_schedule import learning_rate
from encnet_single_gpu.memory import largest_micro_batch, memory_errors_explained, micro_batches
from encnet_single_gpu.optimizer import WeightAverage, build_optimizer, set_learning_rate

import pytest
import torch
from encnet_runs import TinyNet
from torch import nn

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings(**changes):
    return dataclasses.replace(read_config("pspnet").optimizer, **changes)


def test_poly_by_hand():
    config = settings(learning_rate=0.01)
    assert learning_rate(0, 100, config) == 0.01
    assert learning_rate(50, 100, config) == pytest.approx(0.01 * 0.5**0.9)
    assert learning_rate(99, 100, config) == pytest.approx(0.01 * 0.01**0.9)


def test_one_cycle_rises_and_falls_along_half_cosines():
    config = settings(learning_rate=1.0, schedule="one_cycle", warmup_share=0.2)
    assert learning_rate(0, 100, config) == pytest.approx(0.05)
    assert learning_rate(10, 100, config) == pytest.approx(0.05 + 0.95 / 2)
    assert learning_rate(20, 100, config) == 1.0
    assert learning_rate(60, 100, config) == pytest.approx(1 - 0.999 / 2)
    assert learning_rate(100, 100, config) == pytest.approx(0.001)


def test_constant_stays_after_a_straight_warm_up():
    config = settings(learning_rate=2.0, schedule="constant", warmup_share=0.1)
    assert learning_rate(5, 100, config) == pytest.approx(2 * (0.05 + 0.95 / 2))
    assert {learning_rate(step, 100, config) for step in range(10, 100)} == {2.0}


def test_groups_of_rate_and_decay():
    model = TinyNet(5)
    optimizer = build_optimizer(model, settings(weight_decay=0.1, decay_norm_and_bias=False, head_lr_factor=10.0))
    set_learning_rate(optimizer, 0.5)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    assert found[id(model.backbone[0].weight)] == (0.5, 0.1)
    assert found[id(model.backbone[1].weight)] == (0.5, 0.0)
    assert found[id(model.decode_head.weight)] == (5.0, 0.1)
    assert found[id(model.decode_head.bias)] == (5.0, 0.0)
    everywhere = build_optimizer(model, settings(weight_decay=0.1, decay_norm_and_bias=True))
    assert {group["weight_decay"] for group in everywhere.param_groups} == {0.1}


def test_sgd_step_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    optimizer = build_optimizer(model, settings(momentum=0.9, weight_decay=0.5, learning_rate=0.1))
    weight, velocity = 2.0, 0.0
    for _ in range(3):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
        velocity = 0.9 * velocity + (1 + 0.5 * weight)
        weight -= 0.1 * velocity
    assert float(model.weight.detach()) == pytest.approx(weight)


def test_running_mean_of_weights_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9)
    expected = float(model.weight.detach())
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(average.model.weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "sizes"),
    [(12, None, [12]), (12, 12, [12]), (16, 8, [8, 8]), (16, 5, [4, 4, 4, 4]), (10, 4, [3, 3, 4]), (3, 99, [3])],
)
def test_micro_batches_cover_the_batch_in_equal_parts(batch, micro_batch, sizes):
    parts = micro_batches(batch, micro_batch)
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(batch)[part]] == list(range(batch))


class FakeGpu:
    """Memory in units of an image, as torch.cuda would report it."""

    def __init__(self, monkeypatch, free, raises=True):
        self.free, self.raises, self.tried = free, raises, []
        for name, value in {
            "mem_get_info": lambda device: (free, free),
            "memory_reserved": lambda device: 0,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda device: None,
            "max_memory_reserved": lambda device: self.tried[-1],
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def step(self, images):
        self.tried.append(images)
        if self.raises and images > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("free", "largest"), [(100, 12), (13, 6), (7, 6), (6, 4), (5, 4), (4, 3), (3, 2)])
def test_gpu_planner_finds_the_largest_part_that_leaves_a_tenth_free(monkeypatch, free, largest):
    gpu = FakeGpu(monkeypatch, free)
    assert largest_micro_batch(gpu.step, 12, GPU) == largest
    assert gpu.tried[0] == 12


def test_gpu_planner_gives_up_below_two_images(monkeypatch):
    gpu = FakeGpu(monkeypatch, 1)
    with pytest.raises(UserError, match="not even 2 images fit"):
        largest_micro_batch(gpu.step, 12, GPU)
    assert min(gpu.tried) == 2


@pytest.mark.parametrize(("available", "largest"), [(1000, 8), (90, 8), (60, 4), (40, 3), (23, 2)])
def test_cpu_planner_compares_the_smallest_part_with_the_available_ram(monkeypatch, available, largest):
    used = [100]
    monkeypatch.setattr(memory, "_peak_ram", lambda: used[0])
    monkeypatch.setattr(memory, "_available_ram", lambda: available)

    def step(images):
        used[0] += 10 * images

    assert largest_micro_batch(step, 8, CPU) == largest
    with pytest.raises(UserError, match="not even 2 images fit"):
        monkeypatch.setattr(memory, "_available_ram", lambda: 20)
        largest_micro_batch(step, 8, CPU)


def test_no_planned_part_leaves_an_image_alone(monkeypatch):
    monkeypatch.setattr(memory, "_available_ram", lambda: 10**9)
    for batch in range(2, 20):
        for most in range(3, batch + 1):
            monkeypatch.setattr(memory, "_image_ram", lambda step, images, most=most: 0.9e9 / most)
            size = largest_micro_batch(None, batch, CPU)
            assert size <= most
            assert min(part.stop - part.start for part in micro_batches(batch, size)) >= 2


def test_cpu_memory_is_read():
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # resident now
    assert memory._peak_ram() >= 0.95 * pages * os.sysconf("SC_PAGE_SIZE")  # the kernel counts in batches per thread
    assert 2**20 < memory._available_ram() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory\nmore"), "out of memory: do this"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory: do this",
        ),
    ],
)
def test_errors_of_pytorch_become_one_line(error, message):
    with pytest.raises(UserError, match=message) as caught, memory_errors_explained("do this"):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), memory_errors_explained("do this"):
        raise RuntimeError("shape mismatch")
