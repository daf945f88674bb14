"""Running the commands of this project as a user does, on a data set of a few small images."""

import contextlib
import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from awesome_pytorch_seg.train import main as train_main

import cv2
import numpy as np
import yaml

PROJECT = Path(__file__).parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
STAGES = (
    "augment.stages=[{share: 0.4, scales: [0.5, 0.8], crop_size: [32, 48]}, "
    "{share: 0.6, scales: [0.75, 1.25], crop_size: [64, 64]}]"
)
SMALL = (
    *("data.dataset=custom", STAGES, "loss.class_weights=[1.0, 2.0, 3.0]", "schedule.warmup_iters=1"),
    *("train.batch_size=2", "train.log_every=1", "train.num_workers=0", "optimizer.ema_decay=0.9"),
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
    (root / "classes.yaml").write_text("name: squares\nclasses: [one, {name: two, color: [9, 8, 7]}, three]\n")
    return root


def command(script, *words):
    """Runs one of the project's scripts from its folder. Returns the finished process with its output as text."""
    words = [sys.executable, script, *map(str, words)]
    return subprocess.run(words, cwd=PROJECT, env=ENV, capture_output=True, text=True, timeout=120, check=False)


def run_here(main, *words):
    """Calls a script's `main` in this process, which has PyTorch loaded already. Returns what it printed."""
    out = io.StringIO()
    with patch.object(sys, "argv", ["script", *map(str, words)]), contextlib.redirect_stdout(out):
        main()
    return out.getvalue()


def train_words(data, output, iters, *more):
    words = [f"train.iters={iters}", *SMALL, *more]
    return ["--config", "enet_camvid", "--data", data, "--output", output, *words]


def train(data, output, iters, *more):
    return run_here(train_main, *train_words(data, output, iters, *more))


def without_new_keys(config_text):
    """A config as the first version wrote it."""
    config = yaml.safe_load(config_text)
    new = {
        "model": ("backbone_weights", "output_stride", "variant", "finetune"),
        "augment": ("base_size", "blur_probability"),
        "train": ("accumulate", "encoder_iters", "compile"),
        "eval": ("window", "stride", "centre_crop"),
    }
    for section, keys in new.items():
        for key in keys:
            del config[section][key]
    return yaml.safe_dump(config, sort_keys=False)


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
