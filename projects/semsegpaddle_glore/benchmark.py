"""Times PSPNet with ResNet-50 beside paddleseg's, and measures the memory of evaluating one large image.

    python benchmark.py                          # steps of 4x3x128x256, all cores; minutes on two of them
    python benchmark.py --sizes 128x256 257x513 --repeats 9 --threads 1 --output DIR

A training step is forward, losses (cross entropy, 0.4 times that of the auxiliary head), backward and update at output
stride 8; inference is an eval forward in dygraph of one image of 256x512. All get the same random images and
labels, the same number of threads and the same CPU settings (common/machine/cpu.py). The networks:
    ours            as pspnet_res101_cityscapes.yaml trains it, with ResNet-50
    paddleseg       paddleseg's PSPNet with ResNet50_vd as its configs have it: 1024 channels behind the pyramid
    paddleseg_512   the same with 512 channels, as ours and as the paper: what is left is code and the first layers
Its CrossEntropyLoss is repaired where Paddle 3 refuses float32 * int64. Each network runs in a process of its own, kept
alive; the steps of all processes take turns, one at a time, so that noise meets all alike. Two steps each are warm-up.
Times are medians with (min..max); a speed-up is the ratio of the medians with the range of the ratios of single turns.

Memory is the peak resident set of a process of its own that evaluates one image of 1024x2048 with windows of 769x769.
Only the first two of the eight windows go through the network, the others take over the last result: what a window
needs is free again before the next, so the peak is that of all eight (a slow test holds two and four side by side).

Writes timings.csv, speedups.csv, memory.csv and env.json into --output.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import CommandParser, positive, run_command
from common.files import write_csv
from common.machine.bench import (
    WARMUP_STEPS,
    Task,
    Worker,
    environment_of_new_processes,
    measure,
    median_ms,
    new_output,
    serve_tasks,
    size_argument,
    speedup_columns,
    task_columns,
    time_columns,
    write_environment,
)
from common.machine.cpu import physical_cores
from common.runs.environment import environment
from semsegpaddle_glore.benchmark_tasks import MEMORY_PROTOCOL, NETWORKS, prepare
from semsegpaddle_glore.protocol import SMALLEST_INPUT

INFERENCE_SIZE = (256, 512)
MEMORY_SIZE = (1024, 2048)


class Setting(NamedTuple):
    """What is timed, and with how many threads."""

    network: str
    threads: int

    def __str__(self) -> str:
        return f"{self.network}, {self.threads} thread{'s' * (self.threads > 1)}"


Timings = Mapping[tuple[Task, Setting], Sequence[float]]  # seconds by turn


def serve(setting: Setting, pipe: Connection) -> None:
    """Runs in a worker process and answers each task with its seconds, or GiB for "memory"."""
    serve_tasks(pipe, lambda task: prepare(setting.network, task))


def start_worker(setting: Setting) -> Worker[Setting]:
    """Starts a process in which paddle finds the number of threads when it is imported."""
    with environment_of_new_processes({"OMP_NUM_THREADS": str(setting.threads)}):
        return Worker(setting, serve)


def timing_rows(timings: Timings) -> list[dict[str, Any]]:
    """One row per task and setting."""
    return [
        {
            **task_columns(task),
            **setting._asdict(),
            **time_columns(seconds, task.batch),
        }
        for (task, setting), seconds in timings.items()
    ]


def speedup_rows(timings: Timings) -> list[dict[str, Any]]:
    """One row per task, number of threads and peer: how many times as fast ours is."""
    rows = []
    for task, setting in timings:
        if setting.network == "ours":
            continue
        our_s, their_s = timings[task, setting._replace(network="ours")], timings[task, setting]
        rows.append(
            {
                **task_columns(task),
                "threads": setting.threads,
                "peer": setting.network,
                "ours_median_ms": median_ms(our_s),
                "peer_median_ms": median_ms(their_s),
                **speedup_columns(our_s, their_s),
            }
        )
    return rows


def table(timings: Timings) -> str:
    """The timings and the speed-ups as text."""
    lines = ["median (min..max)"]
    for (task, setting), row in zip(timings, timing_rows(timings), strict=True):
        lines.append(
            f"  {str(task):<19} {str(setting):<26}{row['median_ms']:9.1f} ms ({row['min_ms']:.1f}..{row['max_ms']:.1f})"
            f"  {row['images_per_s']:.2f} images/s"
        )
    lines.append("ours against its peers: ratio of medians (range over turns)")
    for row in speedup_rows(timings):
        task = Task(row["task"], row["batch"], row["height_px"], row["width_px"])
        lines.append(
            f"  {str(task):<19} {str(Setting(row['peer'], row['threads'])):<26}"
            f"{row['speedup']:.2f}x ({row['speedup_min']:.2f}..{row['speedup_max']:.2f})"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    tasks = [Task("train", 4 if min(size) < 256 else 2, *size) for size in args.sizes]
    tasks.append(Task("infer", 1, *INFERENCE_SIZE))
    env = environment(
        ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "numpy"),
        project="semsegpaddle_glore",
        threads=args.threads,
        physical_cores=physical_cores(),
        load_average_before=os.getloadavg(),
        warmup_steps=WARMUP_STEPS,
        repeats=args.repeats,
    )
    image = Task("memory", 1, *MEMORY_SIZE)
    with start_worker(Setting("ours", args.threads)) as worker:
        memory = {**task_columns(image), "protocol": str(MEMORY_PROTOCOL), "peak_rss_gib": round(worker.run(image), 3)}
    with ExitStack() as stack:
        workers = [stack.enter_context(start_worker(Setting(network, args.threads))) for network in NETWORKS]
        timings = measure(workers, tasks, args.repeats)
    output = args.output or new_output()
    write_csv(output / "timings.csv", timing_rows(timings))
    write_csv(output / "speedups.csv", speedup_rows(timings))
    write_csv(output / "memory.csv", [memory])
    write_environment(output, env)
    print(table(timings))
    print(f"peak memory of evaluating {MEMORY_SIZE[0]}x{MEMORY_SIZE[1]}: {memory['peak_rss_gib']:.2f} GiB")
    print(f"written: {output}/timings.csv, speedups.csv, memory.csv, env.json")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    sizes_help = "pixels of training images, 4 at once, from 256 on 2; of each size a row (default: 128x256)"
    size = size_argument(SMALLEST_INPUT)
    parser.add_argument("--sizes", nargs="+", type=size, default=[(128, 256)], metavar="HxW", help=sizes_help)
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="timed steps of each (default: 5)")
    threads_help = "CPU threads of every network (default: all physical cores, as train.py)"
    parser.add_argument("--threads", type=positive, default=physical_cores(), metavar="N", help=threads_help)
    output_help = "folder for the files (default: output/benchmark_<date>_<time>)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
