"""Running the commands of this project as a user does, on a data set of a few small images."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from semsegpaddle_glore.runs import plan_run
from semsegpaddle_glore.train import Trainer, parse_args

import cv2
import numpy as np

PROJECT = Path(__file__).parents[1]
# One thread: the tests run two at a time on two cores, and paddle must not share them unevenly.
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = (
    *("model.name=glore", "model.backbone=resnet18", "model.output_stride=16", "data.dataset=custom"),
    *("augment.base_size=72", "augment.crop_size=[65, 65]"),
    *("optimizer.warmup_iters=2", "train.batch_size=2", "train.log_every=1"),
)
CLASSES = ("one", "two", "three")


def write_data(root, count=6, size=(72, 80), names=CLASSES):
    """Images of coloured squares with their labels, 2/3 in train.txt and the rest in val.txt."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    colors = rng.integers(0, 256, (len(names), 3))
    lines = []
    for i in range(count):
        blocks = rng.integers(0, len(names), (-(-size[0] // 24), -(-size[1] // 24))).astype(np.uint8)
        label = blocks.repeat(24, 0).repeat(24, 1)[: size[0], : size[1]]
        noise = rng.normal(0, 20, (*size, 3))
        cv2.imwrite(str(root / f"{i}.png"), np.clip(colors[label] + noise, 0, 255).astype(np.uint8))
        cv2.imwrite(str(root / f"{i}_label.png"), label)
        lines.append(f"{i}.png,{i}_label.png\n")
    split = count * 2 // 3
    (root / "train.txt").write_text("".join(lines[:split]))
    (root / "val.txt").write_text("".join(lines[split:]))
    (root / "classes.yaml").write_text(f"name: squares\nclasses: [{', '.join(names)}]\n")
    (root / "vectors.txt").write_text("one 1 0 0 0\ntwo 0 1 0 0\nthree 0 0 1 0.5\nfour 1 1 0 0\nfive 0 1 1 0\n")
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
    vectors = f"model.word_embeddings={data}/vectors.txt"
    return ["--config", "quickstart", "--data", data, "--output", output, "--iters", iters, vectors, *SMALL, *more]


def train(data, output, iters, *more, **kwargs):
    return command("train.py", *train_words(data, output, iters, *more), **kwargs)


def train_here(data, output, iters, *more):
    """The same in this process. Returns the run folder."""
    plan = plan_run(parse_args("test", [str(word) for word in train_words(data, output, iters, *more)]))
    Trainer(plan).run()
    return plan.folder


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
