"""Running the commands of this project as a user does, on a data set of a few small images."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

PROJECT = Path(__file__).parents[1]
# One thread: the tests run two at a time on two cores, and paddle must not share them unevenly.
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
NAMES = ("one", "two", "three", "four", "five")
SMALL = (
    *("model.name=stdc1", "data.dataset=custom", "augment.crop_size=[65, 65]", "augment.scales=[0.75, 1.0]"),
    *("optimizer.warmup_iters=2", "train.batch_size=2", "train.log_every=1", "eval.input_scale=1.0"),
)


def write_data(root, count=6, size=(72, 80), classes=3):
    """Images of coloured squares with their labels, 2/3 in train.txt and the rest in val.txt."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    colors = rng.integers(0, 256, (classes, 3))
    lines = []
    for i in range(count):
        label = rng.integers(0, classes, (size[0] // 8, size[1] // 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        noise = rng.normal(0, 20, (*size, 3))
        cv2.imwrite(str(root / f"{i}.png"), np.clip(colors[label] + noise, 0, 255).astype(np.uint8))
        cv2.imwrite(str(root / f"{i}_label.png"), label)
        lines.append(f"{i}.png,{i}_label.png\n")
    split = count * 2 // 3
    (root / "train.txt").write_text("".join(lines[:split]))
    (root / "val.txt").write_text("".join(lines[split:]))
    (root / "classes.yaml").write_text(f"name: squares\nclasses: [{', '.join(NAMES[:classes])}]\n")
    return root


def command(script, *words, timeout=120, env=None):
    """Runs one of the project's scripts from its folder. Returns the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, script, *map(str, words)],
        cwd=PROJECT,
        env={**ENV, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train_words(data, output, iters, *more):
    return ["--config", "quickstart", "--data", data, "--output", output, "--iters", iters, *SMALL, *more]


def train(data, output, iters, *more, **kwargs):
    return command("train.py", *train_words(data, output, iters, *more), **kwargs)


def run_folder(output):
    (folder,) = (path.parent for path in Path(output).glob("*/config.yaml"))
    return folder


def numbers(folder):
    """Everything in a run's tables that must not depend on time: losses, rates and scores."""
    timed = {"step_time_s", "data_time_s", "seconds"}
    tables = {}
    for path in folder.glob("*.csv"):
        with open(path) as stream:
            tables[path.name] = [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(stream)]
    return tables


def error_line(process):
    """The one line with which a user error ends; fails on a traceback or another status."""
    assert process.returncode == 1, process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]
    (line,) = [text for text in process.stderr.splitlines() if text.startswith("error: ")]
    return line
