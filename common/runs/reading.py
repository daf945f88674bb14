"""A run folder read back, and its row in a table of results."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.runs.tables import TEST, Row, read_csv


@dataclass(frozen=True)
class Run:
    """A run folder, read: rows are dictionaries of strings as they stand in the files."""

    folder: Path
    config_text: str
    env: dict[str, Any]
    train: list[Row] = field(default_factory=list)
    eval: list[Row] = field(default_factory=list)
    per_class: list[Row] = field(default_factory=list)

    @property
    def validations(self) -> list[Row]:
        """The rows of eval.csv without that of the test split, which chooses nothing."""
        return [row for row in self.eval if row.get("split") != TEST]

    def best(self) -> Row | None:
        """The validation row with the highest mIoU, the earliest among equals."""
        scored = [row for row in self.validations if row.get("miou_percent") not in (None, "", "nan")]
        return max(scored, key=lambda row: float(row["miou_percent"]), default=None)


def read_run(folder: str | os.PathLike) -> Run:
    """Reads a run folder.

    Raises:
        UserError: It is no run folder, or a file in it cannot be read.
    """
    folder = Path(folder)
    try:
        config_text = (folder / "config.yaml").read_text(encoding="utf-8")
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no run folder: {Path(error.filename).name} is missing") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{folder}: config.yaml or env.json is damaged ({error}): restore it") from None
    if not isinstance(env, dict):
        raise UserError(f"{folder}/env.json: holds {type(env).__name__}, not a mapping: restore it")
    tables = [read_csv(folder / name) for name in ("train.csv", "eval.csv", "per_class.csv")]
    return Run(folder, config_text, env, *tables)


TABLE_HEADER = """\
| project | config | data, split | protocol | mIoU, best (last) | steps | seeds | scope | run |
|---|---|---|---|---|---|---|---|---|"""


def table_row(run: Run) -> str:
    """The run as a row under `TABLE_HEADER`: mIoU in per cent of the best checkpoint by validation, and of the last.

    Where classes occur in neither labels nor predictions, the row says over how many the mean is.

    Raises:
        UserError: The run has no evaluation.
    """
    best = run.best()
    if best is None:
        raise UserError(f"{run.folder}: no evaluation with a score yet")
    last = run.validations[-1]
    absent = [name for name in best["absent_classes"].split(" | ") if name]
    classes = sum(row["step"] == best["step"] and row["split"] == best["split"] for row in run.per_class)
    over = f", over {classes - len(absent)} of {classes} classes" if absent else ""
    cells = (
        *(run.env["project"], run.env["config"], f"{run.env['dataset']}, {best['split']}", best["protocol"]),
        f"{float(best['miou_percent']):.2f} ({float(last['miou_percent']):.2f}){over}",
        *(last["step"], f"1 (seed {run.env['seed']})", run.env["scope"], run.folder.name),
    )
    return f"| {' | '.join(cells)} |"


def planned_iters(config: Any) -> int | None:
    """The length that a run's config.yaml states: `train.iters`, or `iters` where it is PaddleSeg's own format."""
    if not isinstance(config, dict):
        return None
    train = config.get("train", config)
    iters = train.get("iters") if isinstance(train, dict) else None
    return iters if isinstance(iters, int) else None
