"""A small repository around `results`, with made-up runs in it; shared by the tests."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

from common.run_log import run_id
from common.runs.tables import EVAL_COLUMNS, PER_CLASS_COLUMNS
from results.make_tables import BEGIN, END, ROOT

import numpy as np

CLASSES = ["road", "car", "sky", "train"]
PROTOCOL = "ss, whole image"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROJECTS = ("stdc_seg", "semsegpaddle_glore", "awesome_pytorch_seg", "encnet_single_gpu")
MARKED = f"# Title\n\n{BEGIN}{END}\n\nafter\n"


def make_tree(root):
    """An empty results folder and READMEs with marks; experiments and paper numbers are the repository's own."""
    for folder in ("results/runs", "results/benchmarks", "results/panels"):
        (root / folder).mkdir(parents=True)
    for readme in (root / "README.md", *(root / "projects" / name / "README.md" for name in PROJECTS)):
        readme.parent.mkdir(parents=True, exist_ok=True)
        readme.write_text(MARKED, encoding="utf-8")
    return root


def write_run(
    parent,
    project="stdc_seg",
    config="quickstart",
    seed=0,
    scores=(40.0, 60.0, 50.0),
    step_size=100,
    day="20261121",
    protocol=PROTOCOL,
    classes=CLASSES,
    config_text=None,
    **env,
):
    """A finished run whose mIoU are `scores` to the digit; class "train" is nowhere. Returns its folder."""
    folder = Path(parent) / run_id(config, seed, COMMIT, day)
    folder.mkdir(parents=True)
    iters = step_size * len(scores)
    text = f"scope: smoke\nmodel:\n  name: net\ndata:\n  root: data/x\ntrain:\n  iters: {iters}\n  seed: {seed}\n"
    (folder / "config.yaml").write_text(config_text or text)
    (folder / "env.json").write_text(json.dumps(make_env(project, config, seed, classes) | env))
    steps = [step_size * (number + 1) for number in range(len(scores))]
    _write(folder / "train.csv", ("step", "loss", "learning_rate", "step_time_s"), [(s, 1.5, 0.1, 0.2) for s in steps])
    write_evaluations(folder, steps, scores, protocol, classes)
    shutil.copyfile(sorted((ROOT / "results/runs").glob("*/*/curve.png"))[0], folder / "curve.png")
    return folder


def make_env(project, config, seed, classes):
    return {
        "started_utc": "2026-11-21T00:00:00Z",
        "command": f"train.py --config {config}",
        "commit": COMMIT,
        "commit_changed": False,
        "python": "3.11.7",
        "packages": {"numpy": "2.3.5"},
        "system": "Linux x86_64",
        "cpu": "a processor",
        "threads": "1",
        "project": project,
        "config": config,
        "seed": seed,
        "scope": "smoke",
        "dataset": "toy",
        "train_images": 200,
        "val_images": 50,
        "class_names": list(classes),
        "processes": 1,
        "device": "cpu",
        "trainable_parameters": 1000,
        "resumed_at_step": 0,
    }


def write_evaluations(folder, steps, scores, protocol=PROTOCOL, classes=CLASSES, split="val"):
    """The two tables of evaluations in which class IoU are mIoU + 0, 1, -1, 0, 1 ... and the last class is nowhere."""
    folder.mkdir(exist_ok=True)
    evaluations, per_class = [], []
    present = len(classes) - 1
    offsets = np.resize([0.0, 1.0, -1.0], present)
    offsets -= offsets.mean()
    for step, score in zip(steps, scores, strict=True):
        values = [step, split, protocol, 50, f"{score:.4f}", *["50.0000"] * 5, classes[-1], "0.5", "1.0", "", ""]
        evaluations.append(values)
        for index, name in enumerate(classes):
            iou = f"{score + offsets[index]:.4f}" if index < present else "nan"
            per_class.append((step, split, index, name, iou, "50.0000", "50.0000"))
    _write(folder / "eval.csv", EVAL_COLUMNS, evaluations)
    _write(folder / "per_class.csv", PER_CLASS_COLUMNS, per_class)


def add_test_score(folder, step, score, checkpoint=b"weights", protocol=PROTOCOL, classes=CLASSES):
    """A row of the test split in the run's own files, of `best.safetensors`."""
    own = {name: (folder / name).read_text() for name in ("eval.csv", "per_class.csv")}
    write_evaluations(folder, [step], [score], protocol, classes, split="test")
    digest = hashlib.sha256(checkpoint).hexdigest()
    for name, text in own.items():
        (row,) = [(folder / name).read_text().split("\n", 1)[1]]
        row = row.replace(",,\n", f",best.safetensors,{digest}\n") if name == "eval.csv" else row
        (folder / name).write_text(text + row)


def _write(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
