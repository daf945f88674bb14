"""Benchmarks: what is timed, processes that take turns, and the columns of the tables.

Each setting runs in a process of its own, kept alive; the steps of all processes take turns, one at a time, so that
noise meets all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from common.cli import UserError
from common.files import atomic_write
from common.progress import Progress

import numpy as np

WARMUP_STEPS = 2
PAUSE_S = 0.3
"""After a step the threads of Intel's OpenMP keep their cores busy for 0.2 s, waiting for more."""


class Task(NamedTuple):
    """What is measured, "train" (a step) or "infer" (a forward), with images of this batch size, height and width."""

    kind: str
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind} {self.batch}x3x{self.height}x{self.width}"


class SizedTask(Protocol):
    """`Task`, or a tuple of a project that has its fields."""

    kind: str
    batch: int
    height: int
    width: int


TaskType = TypeVar("TaskType", bound=SizedTask)
Setting = TypeVar("Setting")
Answer = TypeVar("Answer")


class Worker(Generic[Setting]):
    """A process that does tasks under one setting, one at a time.

    Args:
        setting: What it measures; `str` of it names it in errors.
        serve: What runs in the process, called with the setting and a pipe, see `serve_tasks`.
    """

    def __init__(self, setting: Setting, serve: Callable[[Setting, Connection], None]):
        self.setting = setting
        context = multiprocessing.get_context("spawn")  # a fresh interpreter: settings are read when it imports
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(setting, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, task: SizedTask) -> Any:
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


def serve_tasks(pipe: Connection, prepare: Callable[[TaskType], Callable[[], Answer]]) -> None:
    """Runs in a worker process: answers each task that comes through the pipe, or with the text of an error.

    Args:
        pipe: Of the worker; its end ends this.
        prepare: Gives for a task a function that does it once. Called when another task comes than the last.
    """
    for stream in (1, 2):  # what libraries print would tear the progress bar; errors go through the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    current = step = None
    with suppress(EOFError):  # the parent has closed the pipe
        while True:
            task = pipe.recv()
            try:
                if task != current:
                    step = None  # frees the memory of the last one first
                    current, step = task, prepare(task)
                pipe.send(step())
            except Exception as error:  # whatever it is, the parent reports it in one line
                pipe.send(f"{type(error).__name__}: {error}")


def seconds_of(step: Callable[[], float]) -> float:
    """Times a step, which returns a number of its result and has therefore waited for it.

    Raises:
        FloatingPointError: That number is NaN or infinite.
    """
    start = time.perf_counter()
    result = step()
    seconds = time.perf_counter() - start
    if not math.isfinite(result):
        raise FloatingPointError(f"the result is {result}")
    return seconds


@contextmanager
def environment_of_new_processes(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def measure(
    workers: Iterable[Worker[Setting]],
    tasks: Sequence[TaskType],
    repeats: int,
    warmup_steps: int = WARMUP_STEPS,
    pause_s: float = PAUSE_S,
) -> dict[tuple[TaskType, Setting], list[Any]]:
    """Does every task in every worker: one step of each worker, then one of each in reverse order, and so on.

    Returns:
        The answers by turn, without those of the warm-up.
    """
    workers = list(workers)
    answers = {(task, worker.setting): [] for task in tasks for worker in workers}
    with Progress(len(answers) * (warmup_steps + repeats), "benchmark", "step") as bar:
        for task, turn in itertools.product(tasks, range(-warmup_steps, repeats)):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                answer = worker.run(task)
                if turn >= 0:
                    answers[task, worker.setting].append(answer)
                time.sleep(pause_s)
                bar.update()
    return answers


def make_batch(task: SizedTask, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images float32 (B, 3, H, W), labels int64 (B, H, W) of blocks of 16x16, a twentieth of them ignored."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((task.batch, 3, task.height, task.width), dtype=np.float32)
    blocks = rng.integers(0, num_classes, (task.batch, -(-task.height // 16), -(-task.width // 16)))
    blocks[rng.random(blocks.shape) < 0.05] = 255
    return images, blocks.repeat(16, axis=1).repeat(16, axis=2)[:, : task.height, : task.width].astype(np.int64)


def task_columns(task: SizedTask) -> dict[str, Any]:
    """The columns that name a task."""
    return {"task": task.kind, "batch": task.batch, "height_px": task.height, "width_px": task.width}


def time_columns(seconds: Sequence[float], batch: int) -> dict[str, Any]:
    """The columns of the times of a task."""
    return {
        "median_ms": round(1000 * statistics.median(seconds), 2),
        "min_ms": round(1000 * min(seconds), 2),
        "max_ms": round(1000 * max(seconds), 2),
        "images_per_s": round(batch / statistics.median(seconds), 3),
        "repeats": len(seconds),
    }


def speedup_columns(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How many times as fast ours is: the ratio of the medians, and the range of the ratios of single turns."""
    turns = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "speedup": round(statistics.median(theirs) / statistics.median(ours), 3),
        "speedup_min": round(min(turns), 3),
        "speedup_max": round(max(turns), 3),
    }


def median_ms(seconds: Sequence[float]) -> float:
    """The median in milliseconds, for a table."""
    return round(1000 * statistics.median(seconds), 2)


def new_output(name: str = "benchmark") -> Path:
    """Where a benchmark writes unless --output names a folder: output/<name>_<date>_<time>."""
    return Path("output") / datetime.now(UTC).strftime(f"{name}_%Y%m%d_%H%M%S")


def write_environment(output: Path, env: Mapping[str, Any]) -> None:
    """Writes env.json."""
    with atomic_write(output / "env.json") as stream:
        json.dump(env, stream, indent=2)
        stream.write("\n")


def size_argument(smallest: int, multiple: int = 1) -> Callable[[str], tuple[int, int]]:
    """Argparse type: HEIGHTxWIDTH in pixels, each at least `smallest` and a multiple."""

    def read(text: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII)
        if not found or any(int(side) < smallest or int(side) % multiple for side in found.groups()):
            kind = f"multiples of {multiple} from {smallest}" if multiple > 1 else f"at least {smallest} pixels a side"
            raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH of {kind}")
        return int(found[1]), int(found[2])

    return read
