"""Benchmarks' worker protocol, order of turns and columns; no speed is asserted."""

import argparse
import os
from typing import NamedTuple

from common.cli import UserError
from common.machine.bench import (
    Task,
    Worker,
    environment_of_new_processes,
    make_batch,
    measure,
    seconds_of,
    size_argument,
    speedup_columns,
    task_columns,
    time_columns,
)

import numpy as np
import pytest

TASK = Task("train", 4, 128, 256)


class Setting(NamedTuple):
    network: str
    threads: int

    def __str__(self) -> str:
        return f"{self.network}, {self.threads} threads"


OURS, THEIRS = Setting("ours", 2), Setting("theirs", 1)


class FakeWorker:
    """Answers with the seconds it is given and notes whose turn it was."""

    def __init__(self, setting, seconds, log):
        self.setting, self.seconds, self.log = setting, iter(seconds), log

    def run(self, task):
        self.log.append((task, self.setting.network))
        return next(self.seconds)


def test_steps_take_turns_and_warm_up_is_dropped():
    log = []
    workers = [FakeWorker(OURS, [9, 9, 1, 2, 3], log), FakeWorker(THEIRS, [8, 8, 4, 5, 6], log)]
    timings = measure(workers, [TASK], repeats=3, pause_s=0)
    assert timings == {(TASK, OURS): [1, 2, 3], (TASK, THEIRS): [4, 5, 6]}
    forth = [(TASK, "ours"), (TASK, "theirs")]
    assert log == forth + forth[::-1] + forth + forth[::-1] + forth


def test_columns_hold_medians_spread_and_speedup():
    assert task_columns(TASK) == {"task": "train", "batch": 4, "height_px": 128, "width_px": 256}
    assert time_columns([0.5, 0.4, 0.8], batch=4) == {
        "median_ms": 500.0,
        "min_ms": 400.0,
        "max_ms": 800.0,
        "images_per_s": 8.0,
        "repeats": 3,
    }
    # Medians 1.0 / 0.5; turns 1.0 / 0.5 = 2, 1.2 / 0.4 = 3, 0.9 / 0.8 = 1.125.
    found = speedup_columns([0.5, 0.4, 0.8], [1.0, 1.2, 0.9])
    assert found == {"speedup": 2.0, "speedup_min": 1.125, "speedup_max": 3.0}


def test_batch_has_blocks_of_labels_and_some_ignored():
    images, label = make_batch(Task("train", 2, 100, 200), 19)
    assert (images.shape, images.dtype) == ((2, 3, 100, 200), "float32")
    assert (label.shape, label.dtype) == ((2, 100, 200), "int64")
    assert (label[:, :16, :16] == label[:, :1, :1]).all()
    assert set(np.unique(label)) <= {*range(19), 255}
    assert 0 < (label == 255).mean() < 0.2


def test_a_result_that_is_no_finite_number_is_no_time():
    assert seconds_of(lambda: 1.0) >= 0
    with pytest.raises(FloatingPointError, match="the result is nan"):
        seconds_of(lambda: float("nan"))


ANSWER_HEIGHT = """
import os
from common.machine.bench import serve_tasks

def serve(setting, pipe):
    "A worker that times nothing: fails at 1, dies at 2, answers its threads at 3, else how often it was prepared."
    prepared = 0

    def prepare(task):
        nonlocal prepared
        prepared += 1
        if task.height == 1:
            raise ValueError("too low")
        if task.height == 2:
            os._exit(7)
        return lambda: os.environ["OMP_NUM_THREADS"].encode() if task.height == 3 else (task.height, prepared)

    serve_tasks(pipe, prepare)
"""


class TestWorker:
    @pytest.fixture
    def worker(self, monkeypatch, tmp_path):
        (tmp_path / "answer_height.py").write_text(ANSWER_HEIGHT)  # a fresh interpreter finds it by its name
        monkeypatch.syspath_prepend(str(tmp_path))
        import answer_height

        before = os.environ.get("OMP_NUM_THREADS")
        with environment_of_new_processes({"OMP_NUM_THREADS": "3"}):
            worker = Worker(OURS, answer_height.serve)
        assert os.environ.get("OMP_NUM_THREADS") == before
        with worker:
            yield worker

    def test_answers_task_by_task_and_prepares_each_once(self, worker):
        heights = (128, 128, 96, 128, 3)
        answers = [worker.run(TASK._replace(height=height)) for height in heights]
        assert answers == [(128, 1), (128, 1), (96, 2), (128, 3), b"3"]

    def test_failure_in_the_process_is_one_line(self, worker):
        with pytest.raises(UserError, match=r"ours, 2 threads: 'train 4x3x1x256' failed: ValueError: too low"):
            worker.run(TASK._replace(height=1))
        assert worker.run(TASK) == (128, 2)

    def test_death_of_the_process_is_one_line(self, worker):
        with pytest.raises(UserError, match=r"the process died in 'train 4x3x2x256' \(exit 7\)"):
            worker.run(TASK._replace(height=2))


def test_sizes():
    assert size_argument(65)("65x97") == (65, 97)
    for smallest, multiple, text in ((65, 1, "64x97"), (65, 1, "128"), (65, 1, "-65x97"), (96, 32, "96x100")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not HEIGHTxWIDTH of"):
            size_argument(smallest, multiple)(text)
