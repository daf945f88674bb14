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
import csv
import itertools
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.machine.cpu import physical_cores
from common.progress import Progress
from common.runs.environment import environment
from semsegpaddle_glore.benchmark_tasks import MEMORY_PROTOCOL, NETWORKS, Task, prepare

WARMUP_STEPS = 2
# After a step the threads of Intel's OpenMP keep their cores busy for 0.2 s, waiting for more.
PAUSE_S = 0.3
INFERENCE_SIZE = (256, 512)
MEMORY_SIZE = (1024, 2048)


class Setting(NamedTuple):
    """What is timed, and with how many threads."""

    network: str
    threads: int

    def __str__(self) -> str:
        return f"{self.network}, {self.threads} thread{'s' * (self.threads > 1)}"


Timings = Mapping[tuple[Task, Setting], Sequence[float]]  # seconds by turn


class Worker:
    """A process that does tasks under one setting, one at a time.

    Args:
        setting: What it times.
        serve: What runs in the process: answers each task that comes through the pipe with a number, or with the text
            of an error, until the pipe is closed.
    """

    def __init__(self, setting: Setting, serve: Callable[[Setting, Connection], None]):
        self.setting = setting
        context = multiprocessing.get_context("spawn")  # a fresh interpreter: paddle reads its settings when imported
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(setting, theirs), daemon=True)
        with threads_of_new_processes(setting.threads):
            self._process.start()
        theirs.close()

    def run(self, task: Task) -> float:
        """Does the task once and returns what the process answers.

        Raises:
            UserError: The process failed or died.
        """
        try:
            self._pipe.send(task)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise UserError(f"{self.setting}: the process died in '{task}' (exit {self._process.exitcode})") from None
        if isinstance(answer, str):
            raise UserError(f"{self.setting}: '{task}' failed: {answer}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which ends the process
        self._process.join()


def serve(setting: Setting, pipe: Connection) -> None:
    """Runs in a worker process and answers each task with its seconds, or GiB for "memory"."""
    for stream in (1, 2):  # paddle's advice would tear the progress bar; errors go through the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    current = measure_once = None
    with suppress(EOFError):  # the parent has closed the pipe
        while True:
            task = pipe.recv()
            try:
                if task != current:
                    current, measure_once = task, prepare(setting.network, task)
                pipe.send(measure_once())
            except Exception as error:  # whatever it is, the parent says it in one line
                pipe.send(f"{type(error).__name__}: {error}")


@contextmanager
def threads_of_new_processes(threads: int) -> Iterator[None]:
    """Sets what paddle reads when a new process imports it."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def measure(
    workers: Iterable[Worker], tasks: Sequence[Task], repeats: int, pause_s: float = PAUSE_S
) -> dict[tuple[Task, Setting], list[float]]:
    """Times every task in every worker: one step of each worker, then one of each in reverse order, and so on."""
    workers = list(workers)
    timings = {(task, worker.setting): [] for task in tasks for worker in workers}
    with Progress(len(timings) * (WARMUP_STEPS + repeats), "benchmark", "step") as bar:
        for task, turn in itertools.product(tasks, range(-WARMUP_STEPS, repeats)):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                seconds = worker.run(task)
                if turn >= 0:
                    timings[task, worker.setting].append(seconds)
                time.sleep(pause_s)
                bar.update()
    return timings


def timing_rows(timings: Timings) -> list[dict[str, Any]]:
    """One row per task and setting."""
    return [
        {
            **_columns(task),
            **setting._asdict(),
            "median_ms": round(1000 * statistics.median(seconds), 2),
            "min_ms": round(1000 * min(seconds), 2),
            "max_ms": round(1000 * max(seconds), 2),
            "images_per_s": round(task.batch / statistics.median(seconds), 3),
            "repeats": len(seconds),
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
        turns = [theirs / ours for ours, theirs in zip(our_s, their_s, strict=True)]
        rows.append(
            {
                **_columns(task),
                "threads": setting.threads,
                "peer": setting.network,
                "ours_median_ms": round(1000 * statistics.median(our_s), 2),
                "peer_median_ms": round(1000 * statistics.median(their_s), 2),
                "speedup": round(statistics.median(their_s) / statistics.median(our_s), 3),
                "speedup_min": round(min(turns), 3),
                "speedup_max": round(max(turns), 3),
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


def _columns(task: Task) -> dict[str, Any]:
    return {"task": task.kind, "batch": task.batch, "height_px": task.height, "width_px": task.width}


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """The command."""
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
    with Worker(Setting("ours", args.threads), serve) as worker:
        memory = {**_columns(image), "protocol": str(MEMORY_PROTOCOL), "peak_rss_gib": round(worker.run(image), 3)}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(Setting(network, args.threads), serve)) for network in NETWORKS]
        timings = measure(workers, tasks, args.repeats)
    output = args.output or Path("output") / datetime.now(UTC).strftime("benchmark_%Y%m%d_%H%M%S")
    _write_csv(output / "timings.csv", timing_rows(timings))
    _write_csv(output / "speedups.csv", speedup_rows(timings))
    _write_csv(output / "memory.csv", [memory])
    with atomic_write(output / "env.json") as stream:
        json.dump(env, stream, indent=2)
    print(table(timings))
    print(f"peak memory of evaluating {MEMORY_SIZE[0]}x{MEMORY_SIZE[1]}: {memory['peak_rss_gib']:.2f} GiB")
    print(f"written: {output}/timings.csv, speedups.csv, memory.csv, env.json")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    sizes_help = "pixels of training images, 4 at once, from 256 on 2; of each size a row (default: 128x256)"
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(128, 256)], metavar="HxW", help=sizes_help)
    parser.add_argument("--repeats", type=_positive, default=5, metavar="N", help="timed steps of each (default: 5)")
    threads_help = "CPU threads of every network (default: all physical cores, as train.py)"
    parser.add_argument("--threads", type=_positive, default=physical_cores(), metavar="N", help=threads_help)
    output_help = "folder for the files (default: output/benchmark_<date>_<time>)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(map(int, found.groups())) < 65:
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH with at least 65 pixels a side")
    return int(found[1]), int(found[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


if __name__ == "__main__":
    run_command(main)
