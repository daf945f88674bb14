"""Times training steps of EncNet-R50 and U-Net beside segmentation_models_pytorch's nearest networks.

    python benchmark.py                                  # 2x3x256x256, 5 turns: about 4 minutes of one CPU core
    python benchmark.py --size 480 480 --batch 8 --repeats 20 --output DIR   # for a GPU

A step is forward, loss, backward and SGD update on the same random images and labels of 150 classes. EncNet-R50
stands beside smp.DeepLabV3 with resnet50 at output stride 8 (smp has no EncNet; ours trains an auxiliary head and the
SE-loss besides), U-Net beside smp.Unet with vgg13_bn and four levels, whose convolutions are almost the paper's.
Parameters and multiplications of all four are printed and stand in env.json. Three comparisons:
    fp32          both in float32, as they are built
    recommended   ours in bf16 with channels last, smp as it is built
    same          both in bf16 with channels last
All settings of a pair take turns in one process, step by step, so that noise meets all alike; the first turn is
warm-up. On a CPU a time is the CPU seconds of the process, which other work on the machine hardly changes; on a GPU it
is wall time. A speed-up is the ratio of the medians, with the range of the ratios of single turns.

Writes timings.csv, speedups.csv and env.json into --output (default: output/benchmark_<date>_<time>).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.cli import CommandParser, UserError, run_command
from common.files import write_csv
from common.machine.bench import new_output, write_environment
from common.machine.memory import keep_freed_memory
from common.progress import track
from common.runs.environment import environment
from encnet_single_gpu.config import LossConfig
from encnet_single_gpu.losses import SegmentationLoss
from encnet_single_gpu.models import build_model

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

NUM_CLASSES = 150
PAIRS = {"encnet": "smp.DeepLabV3", "unet": "smp.Unet"}


class Setting(NamedTuple):
    """What is timed: a network, and whether it runs in bf16 with channels last."""

    network: str
    fast: bool

    def __str__(self) -> str:
        return f"{self.network}, {'bf16, channels last' if self.fast else 'fp32'}"


COMPARISONS = {"fp32": (False, False), "recommended": (True, False), "same": (True, True)}  # fast: ours, smp's
Timings = Mapping[Setting, Sequence[float]]  # seconds by turn


def build(name: str) -> nn.Module:
    """One of ours or of smp's, with random weights."""
    if name in PAIRS:
        return build_model(name, num_classes=NUM_CLASSES)
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise UserError("segmentation_models_pytorch is not installed: see requirements.txt") from None
    if name == "smp.DeepLabV3":
        return smp.DeepLabV3("resnet50", encoder_weights=None, encoder_output_stride=8, classes=NUM_CLASSES)
    channels = (512, 256, 128, 64)
    return smp.Unet("vgg13_bn", 4, encoder_weights=None, decoder_channels=channels, classes=NUM_CLASSES)


def make_step(setting: Setting, images: torch.Tensor, label: torch.Tensor) -> Callable[[], float]:
    """A function that does one training step and returns its loss.

    Shapes: images (B, 3, H, W), label int64 (B, H, W).
    """
    torch.manual_seed(0)
    layout = torch.channels_last if setting.fast else torch.contiguous_format
    device = images.device.type
    model = build(setting.network).to(device, memory_format=layout).train()
    images = images.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    own_loss = SegmentationLoss(LossConfig(class_weights=None, aux_weight=0.2, se_weight=0.2))

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=setting.fast):
            outputs = model(images)
        if isinstance(outputs, dict):
            loss, _ = own_loss(outputs, label)
        else:
            loss = F.cross_entropy(outputs.float(), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def measure(settings: Sequence[Setting], images: torch.Tensor, label: torch.Tensor, repeats: int) -> Timings:
    """Seconds of `repeats` steps of each setting, which take turns after one step each as warm-up."""
    clock = time.perf_counter if images.is_cuda else time.process_time
    steps = {setting: make_step(setting, images, label) for setting in settings}
    timings: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for turn in track(range(repeats + 1), "benchmark", "turn"):
        for setting, step in steps.items():
            start = clock()
            step()  # ends with a number on the host, so with the GPU's work done
            if turn:
                timings[setting].append(clock() - start)
    return timings


def speedups(timings: Timings) -> list[dict[str, str]]:
    """A row for each pair of networks and comparison."""
    rows = []
    for ours, peer in PAIRS.items():
        for question, fast in COMPARISONS.items():
            pair = Setting(ours, fast[0]), Setting(peer, fast[1])
            if not all(setting in timings for setting in pair):
                continue
            mine, theirs = (timings[setting] for setting in pair)
            single = [b / a for a, b in zip(mine, theirs, strict=True)]
            rows.append(
                {
                    "comparison": question,
                    "ours": str(pair[0]),
                    "peer": str(pair[1]),
                    "ours_s": f"{statistics.median(mine):.4f}",
                    "peer_s": f"{statistics.median(theirs):.4f}",
                    "speedup": f"{statistics.median(theirs) / statistics.median(mine):.2f}",
                    "lowest": f"{min(single):.2f}",
                    "highest": f"{max(single):.2f}",
                }
            )
    return rows


def size_of(name: str, height: int, width: int) -> dict[str, float]:
    """Trainable parameters in training, and multiplications of a forward of one image in evaluation."""
    model = build(name)
    trainable = sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, height, width))
    return {"parameters": trainable, "giga_multiplications": round(counter.get_total_flops() / 2e9, 2)}


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, *args.size, generator=generator).to(device)
    label = torch.randint(0, NUM_CLASSES, (args.batch, *args.size), generator=generator).to(device)
    timings: dict[Setting, Sequence[float]] = {}
    for ours in args.networks:  # one pair at a time: four networks and their moments in memory
        settings = [Setting(name, fast) for name in (ours, PAIRS[ours]) for fast in (False, True)]
        timings |= measure(settings, images, label, args.repeats)
    rows = speedups(timings)
    output = args.output or new_output()
    turns = (
        {"setting": str(setting), "turn": turn, "seconds": f"{seconds:.4f}"}
        for setting, times in timings.items()
        for turn, seconds in enumerate(times, start=1)
    )
    write_csv(output / "timings.csv", list(turns))
    write_csv(output / "speedups.csv", rows)
    networks = {name: size_of(name, *args.size) for ours in args.networks for name in (ours, PAIRS[ours])}
    env = environment(
        ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy"),
        project="encnet_single_gpu",
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        clock="wall" if device.type == "cuda" else "CPU seconds of the process",
        torch_threads=torch.get_num_threads(),
        batch=args.batch,
        size=args.size,
        networks=networks,
    )
    write_environment(output, env)
    for name, size in networks.items():
        print(f"{name}: {size['parameters'] / 1e6:.1f} M parameters, {size['giga_multiplications']} GMAC an image")
    for row in rows:
        times = f"{row['ours']} {row['ours_s']} s, {row['peer']} {row['peer_s']} s"
        print(f"{row['comparison']}: {times}: {row['speedup']}x ({row['lowest']} to {row['highest']})")
    print(f"written: {output}/timings.csv, speedups.csv, env.json")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    networks_help = "networks that are timed beside their peers (default: both)"
    parser.add_argument("--networks", nargs="+", choices=list(PAIRS), default=list(PAIRS), help=networks_help)
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="images of a step, from 2 (default: 2)")
    size_help = "height and width in pixels, multiples of 16 (default: 256 256)"
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help=size_help)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns after the warm-up (default: 5)")
    output_help = "folder for the files (default: output/benchmark_<date>_<time>)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    args = parser.parse_args()
    if args.batch < 2 or args.repeats < 1:
        raise UserError("--batch must be at least 2 and --repeats at least 1")
    if min(args.size) < 32 or any(side % 16 for side in args.size):  # smp takes no others
        raise UserError("--size {} {}: each must be a multiple of 16, from 32".format(*args.size))
    return args


if __name__ == "__main__":
    run_command(main)
