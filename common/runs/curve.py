"""The curve of a run as an image."""

from __future__ import annotations

import os
from collections.abc import Sequence

from common.files import atomic_write
from common.runs.reading import Run

import numpy as np


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
