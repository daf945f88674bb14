"""A recorded run, and a small repository around it, in which one text stands for every text that a run writes."""

import csv
import json
from pathlib import Path

from common.runs.tables import EVAL_COLUMNS, PER_CLASS_COLUMNS
from results.make_tables import BEGIN, END

import yaml
from targets import TARGETS


def write_run(parent, name="quickstart_s0_20261121_0123456", classes=("a", "b"), config_text=None, texts=None, **env):
    """A finished run in whose files `texts` stand for every text that a run writes."""
    folder = parent / name
    folder.mkdir(parents=True)
    word = texts or "word"
    (folder / "config.yaml").write_text(config_text or yaml.safe_dump({"model": {"name": word}, "train": {"iters": 2}}))
    values = {
        **dict.fromkeys(("started_utc", "command", "python", "system", "cpu", "threads", "dataset", "device"), word),
        **dict.fromkeys(("seed", "resumed_at_step"), 0),
        **dict.fromkeys(("train_images", "val_images", "processes", "trainable_parameters"), 1),
        "project": "stdc_seg",
        "config": "quickstart",
        "commit": word,
        "commit_changed": False,
        "scope": "smoke",
        "packages": {word: word},
        "class_names": list(classes),
    }
    (folder / "env.json").write_text(json.dumps(values | env))
    (folder / "curve.png").write_bytes(b"x")
    write_table(folder / "train.csv", ("step", "loss", "learning_rate", "step_time_s"), [(2, 1.0, 0.1, 0.1)])
    rows = [(step, word, word, 1, 50.0, *[50.0] * 5, "", 0.5, 1.0, "", "") for step in (1, 2)]
    write_table(folder / "eval.csv", EVAL_COLUMNS, rows)
    per_class = [(step, word, i, name, 50.0, 50.0, 50.0) for step in (1, 2) for i, name in enumerate(classes)]
    write_table(folder / "per_class.csv", PER_CLASS_COLUMNS, per_class)
    return folder


def write_table(path: Path, header: tuple, rows: list) -> None:
    """Writes a CSV file."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def results_tree(root: Path, texts: str) -> Path:
    """READMEs with marks, one run and one benchmark, all of whose texts are `texts`. Returns `root`."""
    for folder in ("results/runs/stdc_seg", "results/benchmarks/stdc_seg/one", "results/panels"):
        (root / folder).mkdir(parents=True)
    for name in ("", *(f"projects/{target.name}" for target in TARGETS)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "README.md").write_text(f"# T\n\n{BEGIN}{END}\n")
    classes = (texts, f"{texts} again")
    run = write_run(root / "results/runs/stdc_seg", classes=classes, texts=texts)
    env = json.loads((run / "env.json").read_text())
    benchmark = root / "results/benchmarks/stdc_seg/one"
    (benchmark / "env.json").write_text(json.dumps(env))
    write_table(benchmark / "table.csv", (texts, "b"), [(texts, 1), ("c", texts)])
    return root
