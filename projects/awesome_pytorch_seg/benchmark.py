"""Times a training step and a forward of PSPNet-R50 and DeepLabv3-R50 beside those of other libraries.

    python benchmark.py                                   # training 2x3x256x512, a forward 1x3x256x512; 8 minutes
    python benchmark.py --sizes 128x256 --batch 4 --repeats 3 --inference-size 256x512 --output DIR

    family      ours         beside it
    pspnet      PSPNet       smp's PSPNet with its encoder dilated to output stride 8, and as shipped; torchvision's
                             fcn_resnet50
    deeplabv3   DeepLabV3    smp's DeepLabV3 at output stride 8, as shipped; torchvision's deeplabv3_resnet50

They are not the same networks to the last layer, so the tables have the multiply-adds of a forward of one image, and
beside each speed-up the same for each multiply-add, which is the fair one where the networks differ much. smp's have no
auxiliary head (nor has our DeepLabV3, as in its paper). smp's PSPNet fuses the pyramid by a 1x1 convolution where the
paper's has 3x3, and as shipped it has three of five encoder stages, not dilated. torchvision's FCN has no pyramid; its
DeepLabV3 has an auxiliary head and one more 3x3 convolution.

A training step is forward, cross entropy (0.4 times that of the auxiliary output where there is one), backward and SGD.
All get the same random images and labels, the GPU if there is one, and the same number of threads otherwise. Ours run
as train.py and eval.py run them: channels-last, and keeping freed memory. Comparisons:
    fp32           float32, theirs as they come
    bf16           autocast to bfloat16, theirs as they come
    settings       ours as recommended (bf16) beside theirs in float32, as they come
    same settings  bf16 and channels-last for all
Each network runs in a process of its own, kept alive while its family is timed; the steps of all processes take turns,
one at a time, so that noise meets all alike. Two steps each are warm-up. Times are medians with (min..max); a speed-up
is the ratio of the medians with the range of the ratios of single turns.

Writes timings.csv, speedups.csv and env.json into --output (default: output/benchmark_<date>_<time>).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from awesome_pytorch_seg.benchmark_worker import Answer, Network, Task, serve
from common.cli import CommandParser, UserError, positive, run_command
from common.files import write_csv
from common.machine.bench import (
    WARMUP_STEPS,
    Worker,
    measure,
    median_ms,
    new_output,
    size_argument,
    speedup_columns,
    task_columns,
    time_columns,
    write_environment,
)
from common.machine.cpu import physical_cores
from common.runs.environment import environment

import torch

FAMILIES = {
    "pspnet": ("ours", "smp", "smp_as_shipped", "torchvision_fcn"),
    "deeplabv3": ("ours", "smp", "torchvision"),
}
MODES = ("fp32", "bf16", "bf16_channels_last")
COMPARISONS = {
    "fp32": ("fp32", "fp32"),
    "bf16": ("bf16", "bf16"),
    "settings": ("bf16", "fp32"),
    "same settings": ("bf16_channels_last", "bf16_channels_last"),
}
"""Our mode and theirs; ours is channels-last in all."""


Timings = Mapping[tuple[Task, Network], Sequence[float]]  # seconds by turn
Gmacs = Mapping[tuple[Task, Network], float]


def split_answers(
    answers: Mapping[tuple[Task, Network], Sequence[Answer]],
) -> tuple[dict[tuple[Task, Network], list[float]], dict[tuple[Task, Network], float]]:
    """Seconds by turn, and 10^9 multiply-adds."""
    seconds = {key: [answer.seconds for answer in turns] for key, turns in answers.items()}
    return seconds, {key: turns[0].gmacs for key, turns in answers.items()}


def timing_rows(timings: Timings, gmacs: Gmacs) -> list[dict[str, Any]]:
    """One row per task and network."""
    return [
        {
            **network._asdict(),
            **task_columns(task),
            "mode": task.mode,
            "gmacs_per_image": round(gmacs[task, network], 2),
            **time_columns(seconds, task.batch),
        }
        for (task, network), seconds in timings.items()
    ]


def speedup_rows(timings: Timings, gmacs: Gmacs) -> list[dict[str, Any]]:
    """One row per comparison, task and other library: how many times as fast ours is, also for each multiply-add."""
    rows = []
    for (name, modes), (their_task, network) in itertools.product(COMPARISONS.items(), timings):
        if their_task.mode != modes[1] or network.library == "ours":
            continue
        ours, theirs = (their_task._replace(mode=modes[0]), Network(network.family, "ours")), (their_task, network)
        our_median, their_median = statistics.median(timings[ours]), statistics.median(timings[theirs])
        rows.append(
            {
                "comparison": name,
                "family": network.family,
                "beside": network.library,
                **task_columns(their_task),
                "ours_mode": modes[0],
                "their_mode": modes[1],
                "ours_median_ms": median_ms(timings[ours]),
                "their_median_ms": median_ms(timings[theirs]),
                **speedup_columns(timings[ours], timings[theirs]),
                "ours_gmacs_per_image": round(gmacs[ours], 2),
                "their_gmacs_per_image": round(gmacs[theirs], 2),
                "speedup_per_gmac": round(their_median / our_median * gmacs[ours] / gmacs[theirs], 3),
            }
        )
    return rows


def table(timing_rows: Sequence[Mapping[str, Any]], speedup_rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of both tables as text."""
    lines = ["median (min..max)"]
    for row in timing_rows:
        lines.append(
            f"  {_shape(row):<20} {row['family']:<10} {row['library']:<16} {row['mode']:<19}{row['median_ms']:9.1f} ms "
            f"({row['min_ms']:.1f}..{row['max_ms']:.1f})  {row['gmacs_per_image']:.1f} GMAC/image"
        )
    lines.append("ours against the others: ratio of medians (range over turns), and for each multiply-add")
    for row in speedup_rows:
        lines.append(
            f"  {row['comparison']:<14} {_shape(row):<20} {row['family']:<10} {row['beside']:<16} "
            f"{row['speedup']:.2f}x ({row['speedup_min']:.2f}..{row['speedup_max']:.2f})  "
            f"{row['speedup_per_gmac']:.2f}x per multiply-add"
        )
    return "\n".join(lines)


def _shape(row: Mapping[str, Any]) -> str:
    return f"{row['task']} {row['batch']}x3x{row['height_px']}x{row['width_px']}"


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # workers read it when they start
    shapes = [("train", args.batch, *size) for size in args.sizes] + [("infer", 1, *args.inference_size)]
    tasks = [Task(kind, mode, *shape) for kind, *shape in shapes for mode in MODES]
    env = environment(
        ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy"),
        project="awesome_pytorch_seg",
        threads=args.threads,
        physical_cores=physical_cores(),
        device=_device_name(),
        load_average_before=os.getloadavg(),
        warmup_steps=WARMUP_STEPS,
        repeats=args.repeats,
    )
    timings, gmacs = {}, {}
    for family in args.families:
        with ExitStack() as stack:
            networks = [Network(family, library) for library in FAMILIES[family]]
            workers = [stack.enter_context(Worker(network, serve)) for network in networks]
            answers = measure(workers, tasks, args.repeats, WARMUP_STEPS, pause_s=0.0)
            for found, store in zip(split_answers(answers), (timings, gmacs), strict=True):
                store.update(found)
    output = args.output or new_output()
    times, speedups = timing_rows(timings, gmacs), speedup_rows(timings, gmacs)
    write_csv(output / "timings.csv", times)
    write_csv(output / "speedups.csv", speedups)
    write_environment(output, env)
    print(table(times, speedups))
    print(f"written: {output}/timings.csv, speedups.csv, env.json")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("what is measured").add_argument
    add("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="networks (default: both)")
    sizes_help = "pixels of training images, of each size a row (default: 256x512)"
    add("--sizes", nargs="+", type=size_argument(96, multiple=32), default=[(256, 512)], metavar="HxW", help=sizes_help)
    add("--batch", type=positive, default=2, metavar="N", help="images of a training step, from 2 (default: 2)")
    inference_help = "pixels of the image of a forward (default: 256x512)"
    add("--inference-size", type=size_argument(96, multiple=32), default=(256, 512), metavar="HxW", help=inference_help)
    add("--repeats", type=positive, default=5, metavar="N", help="timed steps of each (default: 5)")
    threads_help = "CPU threads of each process (default: all physical cores, as train.py)"
    add("--threads", type=positive, default=physical_cores(), metavar="N", help=threads_help)
    add = parser.add_argument_group("data and output").add_argument
    output_help = "folder for the files (default: output/benchmark_<date>_<time>)"
    add("--output", type=Path, metavar="DIR", help=output_help)
    args = parser.parse_args()
    if args.batch == 1:
        raise UserError("--batch 1: batch normalisation after global pooling needs at least 2 images")
    return args


if __name__ == "__main__":
    run_command(main)
