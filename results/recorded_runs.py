"""Run folders, read and checked: `results/runs/<project>/<run>/` as `common.run_log` wrote them.

A run may hold folders `eval_*/` beside its files: what eval.py measured with the run's weights under other protocols.
Its own eval.csv may hold one row of the test split, measured with the checkpoint that was best on val.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.cli import UserError, shown
from common.config.strict_yaml import load_yaml
from common.runs.environment import RunEnvironment
from common.runs.reading import read_run
from common.runs.tables import CHECKPOINT_COLUMNS, EVAL_COLUMNS, PER_CLASS_COLUMNS, TEST

RUN_FILES = ("config.yaml", "env.json", "train.csv", "eval.csv", "per_class.csv", "curve.png")
EVAL_FILES = ("eval.csv", "per_class.csv")
ENV_KEYS = RunEnvironment.needed()
"""Keys of env.json that may not be empty, and what they hold."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
"""Names of projects, configs and runs: they are folders, addresses and arguments of commands."""
SHA256 = re.compile("[0-9a-f]{64}")
SAME_PERCENT = 0.01  # mIoU of one checkpoint measured twice
SCOPES = ("full", "reduced", "smoke")

CsvRow = dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: mIoU and IoU of each class in per cent, NaN for a class that is nowhere."""

    step: int
    miou_percent: float
    class_iou_percent: tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """The evaluations of a run on one split under one protocol, in the order of their steps."""

    split: str
    protocol: str
    evaluations: tuple[Evaluation, ...]

    @property
    def best(self) -> Evaluation:
        """The highest mIoU, the earliest among equals."""
        return max(self.evaluations, key=lambda evaluation: evaluation.miou_percent)

    @property
    def last(self) -> Evaluation:
        """The last in training."""
        return self.evaluations[-1]


@dataclass(frozen=True)
class RecordedRun:
    """A run folder that has passed all checks.

    Attributes:
        folder: Its folder.
        config_text: config.yaml.
        env: env.json.
        series: Of validation: that of the training first, then those of eval_*/.
        test: Of the test split: one evaluation, with the checkpoint that was best in the first series; or None.
        checkpoint_sha256: Of that checkpoint; "" without a test score.
    """

    folder: Path
    config_text: str
    env: dict[str, Any]
    series: tuple[Series, ...]
    test: Series | None = None
    checkpoint_sha256: str = ""

    @property
    def project(self) -> str:
        """The project's name."""
        return self.env["project"]

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml."""
        return load_yaml(self.config_text, str(self.folder / "config.yaml"))

    @property
    def has_backbone_weights(self) -> bool:
        """Whether training began from a file of backbone weights."""
        model = self.config.get("model", {})
        return bool(self.env.get("backbone_weights_sha256") or model.get("backbone_weights"))

    @property
    def is_finetuned(self) -> bool:
        """Whether training began from a trained network."""
        return bool(self.env.get("finetune_sha256") or self.config.get("model", {}).get("finetune"))

    @property
    def iters(self) -> int:
        """The last step that was evaluated in training."""
        return self.series[0].last.step


def read_runs(folder: Path) -> list[RecordedRun]:
    """Reads every run below `folder`, which holds a folder for each project.

    Raises:
        UserError: A folder does not hold a sound run.
    """
    found = sorted(path for path in folder.glob("*/*") if path.is_dir() and not path.name.startswith("."))
    return [read_recorded(path) for path in found]


def read_recorded(folder: Path) -> RecordedRun:
    """Reads and checks a run folder.

    Raises:
        UserError: A file or a field is missing or empty, or the files contradict each other.
    """
    for name in RUN_FILES:
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            raise UserError(f"{folder}: {name} is missing or empty")
    run = read_run(folder)
    _check_env(folder, run.env)
    classes = run.env["class_names"]
    tests = sum(1 for row in run.eval if row.get("split") == TEST)
    if tests > 1:
        raise UserError(f"{folder}/eval.csv: {tests} test rows: test is evaluated once per run: restore the file")
    series = list(_series_of(folder, run.eval, run.per_class, classes))
    test = next((entry for entry in series if entry.split == TEST), None)
    digest = _check_test(folder, run.eval, series)
    series = [entry for entry in series if entry.split != TEST]
    for extra in sorted(folder.glob("eval_*/")):
        tables = [_read_csv(extra / name) for name in EVAL_FILES]
        for entry in _series_of(extra, *tables, classes):
            if entry.split == TEST:
                raise UserError(f"{extra}: a test score belongs into the run's own eval.csv, once: remove the folder")
            known = next((s for s in series if (s.split, s.protocol) == (entry.split, entry.protocol)), None)
            if known is None:
                series.append(entry)
            else:
                _check_agreement(extra, entry, known)
    recorded = RecordedRun(folder, run.config_text, run.env, tuple(series), test, digest)
    _check_config(folder, recorded.config)
    return recorded


def _check_test(folder: Path, rows: list[CsvRow], series: list[Series]) -> str:
    """That there is at most one test row, of the checkpoint that was best on val; returns that checkpoint's SHA-256."""
    where = f"{folder}/eval.csv"
    tests = [row for row in rows if row["split"] == TEST]
    if not series or series[0].split == TEST:
        raise UserError(f"{where}: begins with the test split: the checkpoint is chosen on val")
    if not tests:
        return ""
    (row,) = tests
    if not row.get("checkpoint") or not SHA256.fullmatch(row.get("checkpoint_sha256") or ""):
        raise UserError(f"{where}: the test row does not say its checkpoint and its SHA-256: measure it with eval.py")
    best = series[0].best.step
    if int(row["step"]) != best:
        raise UserError(f"{where}: test was measured at step {row['step']}, but val was best at step {best}")
    return row["checkpoint_sha256"]


def _check_agreement(folder: Path, again: Series, known: Series) -> None:
    """Two measurements of one checkpoint must agree but for the last digits, which depend on the machine."""
    scores = {evaluation.step: evaluation.miou_percent for evaluation in known.evaluations}
    for evaluation in again.evaluations:
        if abs(scores.get(evaluation.step, math.inf) - evaluation.miou_percent) > SAME_PERCENT:
            where = f"{folder}: step {evaluation.step}, '{again.protocol}'"
            raise UserError(f"{where}: mIoU {evaluation.miou_percent}, but {scores.get(evaluation.step)} in the run")


def _check_env(folder: Path, env: dict[str, Any]) -> None:
    empty = [key for key in ENV_KEYS if env.get(key) in (None, "", [], {})]
    if empty:
        raise UserError(f"{folder}/env.json: empty or missing: {', '.join(empty)}")
    RunEnvironment.from_values(env, f"{folder}/env.json")
    if re.search("[\ud800-\udfff]", json.dumps(env, ensure_ascii=False)):
        raise UserError(f"{folder}/env.json: a text in it is half a character (a surrogate): restore the file")
    for name in (folder.name, env["project"], env["config"]):
        if not PLAIN_NAME.fullmatch(name):
            raise UserError(f"{folder}: {shown(name)} cannot name a project, config or run: it was renamed or edited")
    if env["scope"] not in SCOPES:
        raise UserError(f"{folder}/env.json: scope is {shown(env['scope'])}: {', '.join(SCOPES)} are known")


def _check_config(folder: Path, config: Any) -> None:
    """That the sections that are read here are there."""
    sections = [config.get(name, {}) for name in ("model", "data", "train")] if isinstance(config, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{folder}/config.yaml: no mapping of sections, or model, data or train is none: restore it")


def _read_csv(path: Path) -> list[CsvRow]:
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}): restore it") from None


def _series_of(
    folder: Path, evaluations: list[CsvRow], per_class: list[CsvRow], classes: list[str]
) -> Iterator[Series]:
    """Checks the rows against each other and sorts them by split and protocol."""
    old = tuple(key for key in EVAL_COLUMNS if key not in CHECKPOINT_COLUMNS)
    columns = old if evaluations and tuple(evaluations[0]) == old else EVAL_COLUMNS
    _check_columns(folder / "eval.csv", evaluations, columns, may_be_empty=("absent_classes", *CHECKPOINT_COLUMNS))
    _check_columns(folder / "per_class.csv", per_class, PER_CLASS_COLUMNS)
    if len(per_class) != len(evaluations) * len(classes):
        raise UserError(f"{folder}/per_class.csv: {len(per_class)} rows are not {len(classes)} for each evaluation")
    series: dict[tuple[str, str], list[Evaluation]] = {}
    for number, row in enumerate(evaluations):
        block = per_class[number * len(classes) : (number + 1) * len(classes)]
        evaluation = _evaluation(folder, row, block, classes)
        series.setdefault((row["split"], row["protocol"]), []).append(evaluation)
    for (split, protocol), rows in series.items():
        steps = [row.step for row in rows]
        if steps != sorted(set(steps)):
            raise UserError(f"{folder}/eval.csv: the steps of '{protocol}' do not rise")
        yield Series(split, protocol, tuple(rows))


def _check_columns(
    path: Path, rows: list[CsvRow], columns: tuple[str, ...], may_be_empty: tuple[str, ...] = ()
) -> None:
    if not rows:
        raise UserError(f"{path}: no evaluation yet")
    if tuple(rows[0]) != columns:
        raise UserError(f"{path}: the columns must be {','.join(columns)}")
    for line, row in enumerate(rows, start=2):
        empty = [key for key in columns if not row[key] and key not in may_be_empty]
        if empty or None in row:
            raise UserError(f"{path}, row {line}: {', '.join(empty) or 'too many cells'}: a cell is empty or too many")


def _evaluation(folder: Path, row: CsvRow, block: list[CsvRow], classes: list[str]) -> Evaluation:
    where = f"{folder}/per_class.csv, step {row['step']}"
    if [entry["class_name"] for entry in block] != classes:
        raise UserError(f"{where}: the classes are not those of env.json")
    if any(entry["step"] != row["step"] or entry["split"] != row["split"] for entry in block):
        raise UserError(f"{where}: the rows are not those of eval.csv")
    try:
        step, miou = int(row["step"]), float(row["miou_percent"])
        ious = tuple(float(entry["iou_percent"]) for entry in block)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    present = [iou for iou in ious if not math.isnan(iou)]
    if not all(0 <= iou <= 100 for iou in present):
        raise UserError(f"{where}: an IoU is less than 0 or more than 100 per cent")
    if not 0 <= miou <= 100 or not present or abs(sum(present) / len(present) - miou) > 1e-3:
        raise UserError(f"{folder}/eval.csv, step {step}: mIoU {miou} is not the mean of per_class.csv's IoU")
    return Evaluation(step, miou, ious)
