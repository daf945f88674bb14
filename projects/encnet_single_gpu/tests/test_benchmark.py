import csv
import json

from common.cli import UserError
from encnet_single_gpu import benchmark
from encnet_single_gpu.benchmark import Setting, main, measure, size_of, speedups

import pytest
import torch
from encnet_runs import TinyNet
from testkit import run_here
from torch import nn


class Peer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 150, 3, padding=1)

    def forward(self, images):
        return self.conv(images)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(benchmark, "build", lambda name: TinyNet(150) if name in benchmark.PAIRS else Peer())


def test_speedups_are_ratios_of_medians_with_the_range_of_single_turns():
    timings = {
        Setting("unet", False): [1.0, 2.0, 4.0],
        Setting("unet", True): [0.5, 1.0, 1.0],
        Setting("smp.Unet", False): [2.0, 3.0, 2.0],
        Setting("smp.Unet", True): [1.0, 1.0, 1.0],
    }
    rows = {row["comparison"]: (row["speedup"], row["lowest"], row["highest"]) for row in speedups(timings)}
    assert rows == {
        "fp32": ("1.00", "0.50", "2.00"),
        "recommended": ("2.00", "2.00", "4.00"),
        "same": ("1.00", "1.00", "2.00"),
    }


def test_settings_take_turns_after_a_warm_up(monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark, "make_step", lambda setting, images, label: lambda: calls.append(setting.network))
    timings = measure([Setting("a", False), Setting("b", False)], torch.zeros(1), torch.zeros(1), 2)
    assert calls == ["a", "b"] * 3
    assert {len(times) for times in timings.values()} == {2}


def test_a_step_trains():
    images, label = torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
    for setting in (Setting("encnet", False), Setting("encnet", True), Setting("smp.Unet", False)):
        step = benchmark.make_step(setting, images, label)
        losses = [step() for _ in range(4)]
        assert losses[-1] < losses[0]


def test_multiplications_by_hand():
    assert size_of("smp.Unet", 10, 1000) == {"parameters": 150 * 28, "giga_multiplications": 0.04}


@pytest.mark.parametrize("words", [("--repeats", 0), ("--batch", 1), ("--size", 100, 96)])
def test_what_cannot_be_timed_is_refused(words):
    with pytest.raises(UserError, match=words[0]):
        run_here(main, *words)


def test_files(tmp_path):
    words = ("--networks", "unet", "--size", 32, 48, "--repeats", 2, "--output", tmp_path)
    printed = run_here(main, *words)
    assert "fp32: unet, fp32" in printed
    assert "smp.Unet: 0.0 M parameters, 0.01 GMAC an image" in printed  # 150 * 27 * 32 * 48
    with open(tmp_path / "timings.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["turn"] for row in rows] == ["1", "2"] * 4
    with open(tmp_path / "speedups.csv") as stream:
        assert [row["comparison"] for row in csv.DictReader(stream)] == ["fp32", "recommended", "same"]
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["size"] == [32, 48]
    assert set(env["networks"]) == {"unet", "smp.Unet"}
