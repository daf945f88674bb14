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
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from common.cli import UserError, shown
from common.files import atomic_write, sha256_of
from common.metrics import ConfusionMatrix

import numpy as np

EVAL_COLUMNS = (
    *("step", "split", "protocol", "images", "miou_percent", "pixel_accuracy_percent", "mean_accuracy_percent"),
    *("fwiou_percent", "mean_dice_percent", "kappa_percent", "absent_classes", "loss", "seconds"),
)
_NUMBERS = ("loss", "miou_percent")  # columns that are read as numbers here, where a table has them
PER_CLASS_COLUMNS = ("step", "split", "class_id", "class_name", "iou_percent", "accuracy_percent", "dice_percent")

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation counted, over all processes.

    Attributes:
        matrix: Confusion matrix at label size.
        loss: Mean cross entropy over valid pixels.
        images: How many images.
        seconds: Wall time.
    """

    matrix: ConfusionMatrix
    loss: float
    images: int
    seconds: float


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

    def start(self, config_text: str, env: Mapping[str, Any]) -> None:
        """Writes config.yaml and env.json."""
        with atomic_write(self.folder / "config.yaml") as stream:
            stream.write(config_text)
        with atomic_write(self.folder / "env.json") as stream:
            json.dump(env, stream, indent=2, ensure_ascii=False)
            stream.write("\n")

    def trim(self, step: int) -> None:
        """Drops the rows after `step`, as a resumed run writes them again, and what a killed run was just writing.

        Raises:
            UserError: A table is damaged, or has columns of another program.
        """
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        tables = {name: _read_csv(self.folder / name) for name in self._columns}  # all, before one is written
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
        self._append("eval.csv", [_eval_row(step, split, protocol, evaluation, class_names)])
        self._append("per_class.csv", _per_class_rows(step, split, evaluation.matrix, class_names))

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
                if not _cut_half_line(stream):
                    writer.writeheader()
                writer.writerows(rows)
                stream.write(text.getvalue().encode())
        except OSError as error:
            error.filename = error.filename or str(path)
            raise


@dataclass(frozen=True)
class Run:
    """A run folder, read: rows are dictionaries of strings as they stand in the files."""

    folder: Path
    config_text: str
    env: dict[str, Any]
    train: list[Row] = field(default_factory=list)
    eval: list[Row] = field(default_factory=list)
    per_class: list[Row] = field(default_factory=list)

    def best(self) -> Row | None:
        """The evaluation row with the highest mIoU, the earliest among equals."""
        scored = [row for row in self.eval if row.get("miou_percent") not in (None, "", "nan")]
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
    tables = [_read_csv(folder / name) for name in ("train.csv", "eval.csv", "per_class.csv")]
    return Run(folder, config_text, env, *tables)


TABLE_HEADER = """\
| project | config | data, split | protocol | mIoU, best (last) | steps | seeds | scope | run |
|---|---|---|---|---|---|---|---|---|"""


def table_row(run: Run) -> str:
    """The run as a row under `TABLE_HEADER`: mIoU in per cent of the best checkpoint by validation, and of the last.

    Raises:
        UserError: The run has no evaluation.
    """
    best = run.best()
    if best is None:
        raise UserError(f"{run.folder}: no evaluation with a score yet")
    cells = (
        *(run.env["project"], run.env["config"], f"{run.env['dataset']}, {best['split']}", best["protocol"]),
        f"{float(best['miou_percent']):.2f} ({float(run.eval[-1]['miou_percent']):.2f})",
        *(run.eval[-1]["step"], f"1 (seed {run.env['seed']})", run.env["scope"], run.folder.name),
    )
    return f"| {' | '.join(cells)} |"


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


def run_id(config_name: str, seed: int, commit: str, day: str | None = None) -> str:
    """<config>_s<seed>_<yyyymmdd>_<commit7>; today (UTC) if no day is given."""
    day = day or datetime.now(UTC).strftime("%Y%m%d")
    return f"{config_name}_s{seed}_{day}_{commit[:7]}"


def git_commit(folder: str | os.PathLike) -> tuple[str, bool]:
    """The commit of the code in `folder`, and whether tracked files differ from it; ("unknown", False) outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
    return head.stdout.strip(), bool(status.stdout.strip())


def environment(packages: Sequence[str], **more: Any) -> dict[str, Any]:
    """What env.json holds: time, command, commit, machine, versions of `packages`, and what the project adds."""
    commit, changed = git_commit(Path(__file__).parent)
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        # Words that are no text (a folder's name in another encoding) come as lone surrogates, which no file can hold.
        "command": shlex.join(map(_without_folders, sys.argv)).encode("utf-8", "backslashreplace").decode(),
        "commit": commit,
        "commit_changed": changed,
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **more,
    }


def _eval_row(step: int, split: str, protocol: str, evaluation: Evaluation, class_names: Sequence[str]) -> Row:
    matrix = evaluation.matrix
    scores = {
        "miou_percent": matrix.mean_iou(),
        "pixel_accuracy_percent": matrix.pixel_accuracy(),
        "mean_accuracy_percent": matrix.mean_accuracy(),
        "fwiou_percent": matrix.frequency_weighted_iou(),
        "mean_dice_percent": matrix.mean_dice(),
        "kappa_percent": matrix.kappa(),
    }
    return {
        "step": step,
        "split": split,
        "protocol": protocol,
        "images": evaluation.images,
        **{name: _percent(value) for name, value in scores.items()},
        "absent_classes": " | ".join(class_names[i] for i in matrix.absent_classes()),
        "loss": f"{evaluation.loss:.6f}",
        "seconds": f"{evaluation.seconds:.1f}",
    }


def _per_class_rows(step: int, split: str, matrix: ConfusionMatrix, class_names: Sequence[str]) -> list[Row]:
    columns = zip(class_names, matrix.iou(), matrix.accuracy(), matrix.dice(), strict=True)
    return [
        {
            "step": step,
            "split": split,
            "class_id": index,
            "class_name": name,
            "iou_percent": _percent(iou),
            "accuracy_percent": _percent(accuracy),
            "dice_percent": _percent(dice),
        }
        for index, (name, iou, accuracy, dice) in enumerate(columns)
    ]


def draw_curve(run: Run, path: str | os.PathLike, title: str) -> None:
    """Draws mIoU (left axis), training loss (right axis, smoothed) and validation loss against iterations as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    left = figure.add_subplot()
    steps = [int(row["step"]) for row in run.train]
    losses = [float(row["loss"]) for row in run.train]
    if steps:
        right = left.twinx()
        right.plot(steps, _smooth(losses), color="0.65", linewidth=1.2, label="training loss")
        for split in sorted({row["split"] for row in run.eval}):
            points = [(int(row["step"]), float(row["loss"])) for row in run.eval if row["split"] == split]
            right.plot(*zip(*points, strict=True), color="0.45", linestyle=":", marker=".", label=f"{split} loss")
        right.set_ylabel("loss", color="0.45")
        right.set_ylim(bottom=0)
        left.set_zorder(right.get_zorder() + 1)
        left.patch.set_visible(False)
    for split in sorted({row["split"] for row in run.eval}):
        rows = [row for row in run.eval if row["split"] == split]
        points = [(int(row["step"]), float(row["miou_percent"])) for row in rows]
        left.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=2, label=f"{split} mIoU")
    best = run.best()
    if best:
        x, y = int(best["step"]), float(best["miou_percent"])
        left.annotate(f"{y:.2f} %", (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontweight="bold")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    left.set(xlabel="iterations", ylabel="mean IoU (%)", title=title, ylim=(0, 100))
    left.grid(alpha=0.25)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png")


def _smooth(values: Sequence[float]) -> np.ndarray:
    """A running mean over about a fiftieth of the curve."""
    window = max(1, len(values) // 50)
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, dtype=np.float64)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _without_folders(word: str) -> str:
    """An absolute path shortened to its last part: run files are published, this machine's folders are not."""
    return Path(word).name if os.path.isabs(word) else word


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4f}"


def _read_csv(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill can leave a last line without its end
        rows = list(csv.DictReader(io.StringIO(whole)))
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise UserError(f"{path}: not a table of a run ({error}): the file is damaged, restore it") from None
    for row in rows:
        if None in row or None in row.values():
            raise UserError(f"{path}: a row has not as many cells as the header; the file is damaged, restore it")
        step = row.get("step", "")
        if not step.isdecimal() or len(step) > 15 or not all(_is_number(row.get(name, "nan")) for name in _NUMBERS):
            raise UserError(
                f"{path}: the row of step {shown(step)} has no number there or in {' or '.join(_NUMBERS)}; "
                f"the file is damaged, restore it"
            )
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _cut_half_line(stream: IO[bytes]) -> bool:
    """Removes what a kill or a full disk left of a last line. Returns whether the file holds anything then."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - 1))
    if stream.read(1) not in (b"", b"\n"):
        stream.seek(0)
        end = stream.read().rfind(b"\n") + 1
        stream.truncate(end)
    return end > 0


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
