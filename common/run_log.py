"""The files of a run: one format for all projects, written while training and read by `results/`.

    output/<run_id>/   run_id = <config>_s<seed>_<yyyymmdd>_<commit7>
        config.yaml    the experiment, complete
        env.json       versions, machine, commit, command, what the run needs to be told apart from others
        train.csv      one row per logged step
        eval.csv       one row per evaluation: protocol, split and scores
        per_class.csv  one row per evaluation and class
        curve.png      mIoU and loss in validation and the training loss against iterations

Rows are appended and flushed one by one, so a killed run keeps what it had; a half-written last line is no row.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import atomic_write, sha256_of
from common.runs.curve import draw_curve
from common.runs.environment import RunEnvironment, run_id
from common.runs.reading import read_run
from common.runs.tables import (
    EVAL_COLUMNS,
    PER_CLASS_COLUMNS,
    Evaluation,
    cut_half_line,
    eval_row,
    per_class_rows,
    read_csv,
)

__all__ = ["Evaluation", "RunLog", "print_scores", "run_id"]


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
        with atomic_write(self.folder / "config.yaml") as stream:
            stream.write(config_text)
        with atomic_write(self.folder / "env.json") as stream:
            json.dump(values, stream, indent=2, ensure_ascii=False)
            stream.write("\n")

    def trim(self, step: int) -> None:
        """Drops the rows after `step`, as a resumed run writes them again, and what a killed run was just writing.

        Raises:
            UserError: A table is damaged, or has columns of another program.
        """
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        tables = {name: read_csv(self.folder / name) for name in self._columns}  # all, before one is written
        for name, rows in tables.items():
            columns = self._columns[name]
            unknown = [key for key in (rows[0] if rows else ()) if key not in columns]
            if unknown or (rows and name != "train.csv" and len(rows[0]) < len(columns)):
                raise UserError(f"{self.folder / name}: the columns must be {','.join(columns)}: restore the file")
        for name, rows in tables.items():
            with atomic_write(self.folder / name) as stream:
                writer = csv.DictWriter(stream, self._columns[name], lineterminator="\n")
                writer.writeheader()
                writer.writerows(row for row in rows if int(row["step"]) <= step)

    def log_train(self, row: Mapping[str, Any]) -> None:
        """Appends one row to train.csv."""
        self._append("train.csv", [row])

    def log_eval(
        self, step: int, split: str, protocol: str, evaluation: Evaluation, class_names: Sequence[str]
    ) -> None:
        """Appends one evaluation to eval.csv and per_class.csv. Scores are stored in per cent with 4 decimals."""
        self._append("eval.csv", [eval_row(step, split, protocol, evaluation, class_names)])
        self._append("per_class.csv", per_class_rows(step, split, evaluation.matrix, class_names))

    def draw_curve(self, title: str) -> None:
        """Draws curve.png from the rows so far."""
        draw_curve(read_run(self.folder), self.folder / "curve.png", title)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / name
        columns = self._columns[name]
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
