"""Results of cells as rows of matrix.csv."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_write
from paddleseg_benchmark.matrix.measure import Cell
from paddleseg_benchmark.matrix.report import COLUMNS
from paddleseg_benchmark.matrix.rounds import Result


def matrix_row(cell: Cell, results: Sequence[Result], reference_parameters: int | None) -> dict[str, Any]:
    """The cell as a row of matrix.csv. Only a cell whose rounds all went well has numbers.

    A step counts from asking for the batch to the finished update. Its time is the median over the rounds of each
    round's median step; minimum and maximum are over all steps. Losses, scales, skipped steps: of the first round.
    """
    keys = ("library", "model", "precision", "layout", "graph", "batch", "height_px", "width_px", "loader")
    row = dict(zip(keys, cell, strict=True)) | {"reference_parameters": reference_parameters}
    if not results:
        return row | {"status": "not run"}
    status = results[-1]["status"]
    if status != "ok":
        return row | {"status": f"{status} (round {len(results)})" if len(results) > 1 else status}
    rounds = [[a + b for a, b in zip(r["load_ms"], r["step_ms"], strict=True)] for r in results]
    steps = [value for values in rounds for value in values]
    median = statistics.median(statistics.median(values) for values in rounds)
    first = results[0]
    return row | {
        "status": "ok",
        "rounds": len(results),
        "step_ms": f"{median:.2f}",
        "step_ms_min": f"{min(steps):.2f}",
        "step_ms_max": f"{max(steps):.2f}",
        "images_per_s": f"{1000 * cell.batch / median:.3f}",
        "images_per_s_min": f"{1000 * cell.batch / max(steps):.3f}",
        "images_per_s_max": f"{1000 * cell.batch / min(steps):.3f}",
        "loader_percent": f"{100 * sum(sum(r['load_ms']) for r in results) / sum(steps):.2f}",
        "peak_memory_gib": f"{max(r['peak_memory_gib'] for r in results):.3f}",
        "memory_at_start_gib": f"{statistics.median(r['memory_at_start_gib'] for r in results):.3f}",
        "memory_kind": first["memory_kind"],
        "parameters": first["parameters"],
        "steps": len(first["losses"]),
        "loss_first": _loss(first["losses"][0]),
        "loss_last": _loss(first["losses"][-1]),
        "nan_count": first["losses"].count(None),
        "skipped_steps": first["skipped_steps"],
        "loss_scales": " ".join(
            f"{scale:g}" for scale, _ in itertools.groupby(first["loss_scales"]) if scale is not None
        ),
        "evaluation_ms": f"{statistics.median(r['evaluation_ms'] for r in results):.2f}",
        "evaluation_miou_percent": f"{first['evaluation_miou_percent']:.4f}",
    }


def _loss(value: float | None) -> str:
    return "nan" if value is None else f"{value:.6f}"


def write_matrix(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes matrix.csv."""
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
