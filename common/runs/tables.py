"""The tables of a run: their columns, the rows of an evaluation, and reading them back."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.cli import UserError, shown
from common.metrics import ConfusionMatrix

EVAL_COLUMNS = (
    *("step", "split", "protocol", "images", "miou_percent", "pixel_accuracy_percent", "mean_accuracy_percent"),
    *("fwiou_percent", "mean_dice_percent", "kappa_percent", "absent_classes", "loss", "seconds"),
    *("checkpoint", "checkpoint_sha256"),
)
CHECKPOINT_COLUMNS = EVAL_COLUMNS[-2:]  # filled in rows of the test split; files of older versions lack them
TEST = "test"  # the split that is evaluated once per finished run, with the checkpoint that was best on val
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


def eval_row(step: int, split: str, protocol: str, evaluation: Evaluation, class_names: Sequence[str]) -> Row:
    """The row of eval.csv: scores in per cent with 4 decimals."""
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


def per_class_rows(step: int, split: str, matrix: ConfusionMatrix, class_names: Sequence[str]) -> list[Row]:
    """The rows of per_class.csv, one for each class."""
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


def read_csv(path: Path) -> list[Row]:
    """The rows of a table as they stand there; none where there is no file. A last line without its end is no row.

    Raises:
        UserError: The file is damaged.
    """
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


def cut_half_line(stream: IO[bytes]) -> bool:
    """Removes what a kill or a full disk left of a last line. Returns whether the file holds anything then."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - 1))
    if stream.read(1) not in (b"", b"\n"):
        stream.seek(0)
        end = stream.read().rfind(b"\n") + 1
        stream.truncate(end)
    return end > 0


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4f}"


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
