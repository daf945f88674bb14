"""The files of a run: one format for all projects, written while training and read by `results/`.

    output/<run_id>/   run_id = <config>_s<seed>_<yyyymmdd>_<commit7>
        config.yaml    the experiment, complete
        env.json       versions, machine, commit, command, what the run needs to be told apart from others
        train.csv      one row per logged step
        eval.csv       one row per evaluation: protocol, split and scores; for the test split also the checkpoint
        per_class.csv  one row per evaluation and class
        curve.png      mIoU and loss in validation and the training loss against iterations

Rows are appended and flushed one by one, so a killed run keeps what it had; a half-written last line is no row.

The test split measures and chooses nothing: eval.py evaluates it once per finished run, with the checkpoint that was
best on val, and adds the row to the run's own eval.csv (`plan_scores`).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.config.strict_yaml import load_yaml
from common.files import atomic_write, sha256_of
from common.progress import Progress
from common.runs.curve import draw_curve
from common.runs.environment import RunEnvironment, run_id
from common.runs.reading import planned_iters, read_run
from common.runs.tables import (
    CHECKPOINT_COLUMNS,
    EVAL_COLUMNS,
    PER_CLASS_COLUMNS,
    TEST,
    Evaluation,
    Row,
    cut_half_line,
    eval_row,
    per_class_rows,
    read_csv,
)

__all__ = ["Evaluation", "RunLog", "plan_scores", "print_scores", "run_id", "show_evaluation"]

_RUN_FILES = ("config.yaml", "env.json", "eval.csv")


class RunLog:
    """Writer of one run folder.

    Args:
        folder: The run folder; made if missing. A folder that holds rows already is continued.
        train_columns: Columns of train.csv, "step" among them; none where nothing is trained.
    """

    def __init__(self, folder: str | os.PathLike, train_columns: Sequence[str] = ()):
        self.folder = Path(folder)
        self._columns = {
            "train.csv": tuple(train_columns),
            "eval.csv": EVAL_COLUMNS,
            "per_class.csv": PER_CLASS_COLUMNS,
        }

    def start_digests(self, resumed: bool, **files: str | None) -> dict[str, str | None]:
        """What the run starts from, for env.json: the SHA-256 of `finetune` as "finetune_sha256", None without a file.

        A resumed run keeps what its env.json says: the file may be gone, or another by now.
        """
        if not resumed:
            return {f"{name}_sha256": sha256_of(path) if path else None for name, path in files.items()}
        env = {}
        with contextlib.suppress(OSError, TypeError, ValueError):  # a checkpoint that lies without its run's files
            env = dict(json.loads((self.folder / "env.json").read_text(encoding="utf-8")))
        return {f"{name}_sha256": env.get(f"{name}_sha256") for name in files}

    def start(self, config_text: str, env: RunEnvironment | Mapping[str, Any]) -> None:
        """Writes config.yaml and env.json."""
        values = env.to_values() if isinstance(env, RunEnvironment) else dict(env)
        with atomic_write(self.folder / "env.json") as stream:
            json.dump(values, stream, indent=2, ensure_ascii=False)
            stream.write("\n")
        with atomic_write(self.folder / "config.yaml") as stream:  # last: a run that has it is found by --resume
            stream.write(config_text)

    def trim(self, step: int, evaluated_step: int | None = None) -> None:
        """Drops the rows after `step`, as a resumed run writes them again, and what a killed run was just writing.

        Evaluations are dropped after `evaluated_step` where that is given: a run may be stopped between an update and
        its evaluation.

        Raises:
            UserError: A table is damaged, or has columns of another program.
        """
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        tables = {name: read_csv(self.folder / name) for name in self._columns}  # all, before one is written
        for name, rows in tables.items():
            columns = self._columns[name]
            unknown = [key for key in (rows[0] if rows else ()) if key not in columns]
            needed = [key for key in columns if name != "train.csv" and key not in CHECKPOINT_COLUMNS]
            if unknown or (rows and any(key not in rows[0] for key in needed)):
                raise UserError(f"{self.folder / name}: the columns must be {','.join(columns)}: restore the file")
        for name, rows in tables.items():
            end = step if name == "train.csv" or evaluated_step is None else evaluated_step
            self._write(name, [row for row in rows if int(row["step"]) <= end])

    def log_train(self, row: Mapping[str, Any]) -> None:
        """Appends one row to train.csv."""
        self._append("train.csv", [row])

    def log_eval(
        self, step: int, split: str, protocol: str, evaluation: Evaluation, class_names: Sequence[str]
    ) -> None:
        """Appends one evaluation to eval.csv and per_class.csv. Scores are stored in per cent with 4 decimals."""
        self._append("eval.csv", [eval_row(step, split, protocol, evaluation, class_names)])
        self._append("per_class.csv", per_class_rows(step, split, evaluation.matrix, class_names))

    def log_test(
        self, step: int, protocol: str, evaluation: Evaluation, class_names: Sequence[str], checkpoint: Path
    ) -> None:
        """Adds the evaluation of the test split to a run's own files, with the checkpoint's name and SHA-256."""
        run = read_run(self.folder)
        whole = run.per_class[: len(run.eval) * len(class_names)]  # a killed call may have left rows of no evaluation
        digest = {"checkpoint": checkpoint.name, "checkpoint_sha256": sha256_of(checkpoint)}
        row = eval_row(step, TEST, protocol, evaluation, class_names) | digest
        self._write("per_class.csv", [*whole, *per_class_rows(step, TEST, evaluation.matrix, class_names)])
        self._write("eval.csv", [*run.eval, row])

    def draw_curve(self, title: str) -> None:
        """Draws curve.png from the rows so far."""
        draw_curve(read_run(self.folder), self.folder / "curve.png", title)

    def _write(self, name: str, rows: Sequence[Row]) -> None:
        with atomic_write(self.folder / name) as stream:
            writer = csv.DictWriter(stream, self._columns[name], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / name
        columns = self._columns[name]
        if name == "eval.csv" and (known := read_csv(path)) and CHECKPOINT_COLUMNS[0] not in known[0]:
            self._write(name, known)  # a file of an older version
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "a+b") as stream:
                if not cut_half_line(stream):
                    writer.writeheader()
                writer.writerows(rows)
                stream.write(text.getvalue().encode())
        except OSError as error:
            error.filename = error.filename or str(path)
            raise


@dataclass(frozen=True)
class ScoreFiles:
    """Where the scores of one evaluation go.

    Attributes:
        folder: With eval.csv and per_class.csv; made if missing.
        weights: The checkpoint that is evaluated.
        step: Its step.
        split: What it is evaluated on.
        in_run: Whether `folder` is the run's own.
    """

    folder: Path
    weights: Path
    step: int
    split: str
    in_run: bool

    def write(self, protocol: object, evaluation: Evaluation, class_names: Sequence[str]) -> None:
        """Writes the rows and prints where; `protocol` is anything that prints itself."""
        log = RunLog(self.folder)
        if self.in_run:
            log.log_test(self.step, str(protocol), evaluation, class_names, self.weights)
        else:
            log.log_eval(self.step, self.split, str(protocol), evaluation, class_names)
        print(f"written: {self.folder}/eval.csv, {self.folder}/per_class.csv")


def plan_scores(
    weights: str | os.PathLike, step: int, split: str, output: str | os.PathLike | None, protocol_name: str
) -> ScoreFiles:
    """Decides where the scores go: `output`, else the run's own files for its test score, else a folder beside.

    Args:
        weights: Checkpoint to be evaluated.
        step: Its step.
        split: What it is evaluated on.
        output: Folder that the user named, if any.
        protocol_name: Short name of the protocol, for the folder `eval_<split>_<protocol>` beside the weights.

    Raises:
        UserError: The test score would belong to the run, but was measured before, or with another checkpoint than the
            best on val, or the training has not come to its end.
    """
    weights = Path(weights)
    folder = weights.parent
    if output is None and split == TEST and all((folder / name).is_file() for name in _RUN_FILES):
        _check_test(folder, weights, step)
        return ScoreFiles(folder, weights, step, split, in_run=True)
    chosen = Path(output) if output is not None else folder / f"eval_{split}_{protocol_name}"
    return ScoreFiles(chosen, weights, step, split, in_run=False)


def _check_test(folder: Path, weights: Path, step: int) -> None:
    instead = "--output DIR measures without recording"
    run = read_run(folder)
    if len(run.validations) < len(run.eval):
        raise UserError(f"{folder}/eval.csv: has a test score already, and test is evaluated once per run: {instead}")
    best = run.best()
    if best is None:
        raise UserError(f"{folder}/eval.csv: no validation score yet, so no checkpoint was chosen: {instead}")
    planned = planned_iters(load_yaml(run.config_text, str(folder / "config.yaml")))
    last = int(run.validations[-1]["step"])
    if planned is not None and last < planned:
        raise UserError(f"{folder}: at step {last} of {planned}: finish it with train.py --resume first, or {instead}")
    if step != int(best["step"]):
        raise UserError(
            f"{weights}: of step {step}, but val was best at step {best['step']}: give that checkpoint "
            f"(best.safetensors), or {instead}"
        )


def print_scores(result: Evaluation, class_names: tuple[str, ...], protocol: object, split: str) -> None:
    """Prints an evaluation under `protocol` (anything that prints itself): its scores, a line per class that occurs."""
    matrix = result.matrix
    print(f"{split}: {result.images} images, {protocol}")
    absent = [class_names[i] for i in matrix.absent_classes()]
    for name, iou, accuracy in zip(class_names, matrix.iou(), matrix.accuracy(), strict=True):
        if name not in absent:
            print(f"  {name:<24} IoU {100 * iou:6.2f} %   accuracy {100 * accuracy:6.2f} %")
    shown = absent if len(absent) <= 8 else [*absent[:6], f"{len(absent) - 6} more"]
    over = f"{len(class_names) - len(absent)} of {len(class_names)} classes" + (
        f"; absent: {', '.join(shown)}" if absent else ""
    )
    print(
        f"mIoU {100 * matrix.mean_iou():.2f} % (over {over})  pixel accuracy {100 * matrix.pixel_accuracy():.2f} %  "
        f"loss {result.loss:.4f}  {result.seconds:.1f} s"
    )


def show_evaluation(bar: Progress, step: int, result: Evaluation, best_miou: float, best_step: int) -> None:
    """Says above a training's bar, or in a JSON line, what an evaluation gave; `best_miou` is a fraction."""
    miou_percent, best_percent = 100 * result.matrix.mean_iou(), 100 * best_miou
    bar.event(
        f"step {step}/{bar.total}: val mIoU {miou_percent:.2f} %  loss {result.loss:.4f}  "
        f"(best {best_percent:.2f} % at {best_step})",
        step=step,
        total=bar.total,
        val_miou_percent=miou_percent,
        val_loss=result.loss,
        best_miou_percent=best_percent,
        best_step=best_step,
    )
