"""mIoU against iterations, the published number beside it: one PNG for each row that has a curve.

Each seed is a thin line; several seeds have their mean as a thick one. The test score stands where its checkpoint does.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.experiments import Overlay
from results.sealed_png import is_sealed, seal
from results.table_rows import TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Spec = dict[str, Any]


def curve_spec(row: TableRow) -> Spec | None:
    """The content of a row's image as plain values; None for a row without a curve."""
    if not any(len(series.evaluations) > 1 for series in row.series):
        return None
    lines = lines_of(row)
    references = [
        {
            "label": f"{comparison.reference.kind}, {comparison.reference.split} {comparison.reference.value:.2f}"
            + ("" if comparison.delta is not None else " (not comparable)"),
            "value": comparison.reference.value,
            "comparable": comparison.delta is not None,
        }
        for comparison in row.comparisons
    ]
    title = f"{row.project} {row.config}: {row.data}, {row.split}, {row.protocol}"
    return {"title": title, "lines": lines, "references": references, "mean": len(lines) > 1}


def lines_of(row: TableRow, before: str = "") -> list[dict[str, Any]]:
    """The curve of each seed, its name behind `before`."""
    return [
        {
            "label": f"{before}seed {run.env['seed']}: best val {series.best.miou_percent:.2f}",
            "steps": [evaluation.step for evaluation in series.evaluations],
            "miou_percent": [evaluation.miou_percent for evaluation in series.evaluations],
            "test": [test.best.step, test.best.miou_percent] if test is not None else None,
        }
        for run, series, test in zip(row.runs, row.series, row.tests, strict=True)
    ]


def overlay_spec(overlay: Overlay, rows: Sequence[TableRow]) -> Spec | None:
    """The content of an image of several rows; None unless each of them has a curve."""
    by_name: dict[str, TableRow] = {}
    for row in rows:
        if row.kind == "photographs" and "~" not in row.row_id:
            by_name.setdefault(f"{row.project}/{row.config}", row)
    if not all(name in by_name for name in overlay.rows):
        return None
    lines = [line for name in overlay.rows for line in lines_of(by_name[name], f"{name.partition('/')[0]}, ")]
    return {"title": overlay.title, "lines": lines, "references": [], "mean": False}


def spec_digest(spec: Spec) -> str:
    """Of what an image shows and of the code that draws it."""
    text = json.dumps(spec, sort_keys=True).encode()
    return hashlib.sha256(Path(__file__).read_bytes() + text).hexdigest()


def is_up_to_date(path: Path, spec: Spec) -> bool:
    """Whether the file is the image of this, untouched."""
    return path.is_file() and is_sealed(path.read_bytes(), spec_digest(spec))


def draw_all(specs: Sequence[Spec]) -> list[bytes]:
    """The sealed PNGs, drawn one after the other into one figure: making axes costs more than a curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=100)
    axes = figure.add_axes((0.09, 0.14, 0.88, 0.76))
    axes.set_xlabel("iterations", fontsize=9)
    axes.set_ylabel("mean IoU (%)", fontsize=9)
    axes.xaxis.set_label_coords(0.5, -0.1)  # given, or every drawing searches for the places of labels and title
    axes.yaxis.set_label_coords(-0.065, 0.5)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=6)
    axes.grid(alpha=0.25)
    images = []
    for spec in specs:
        _draw(axes, spec)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        images.append(seal(png.getvalue(), spec_digest(spec)))
        for line in list(axes.lines):
            line.remove()
    return images


def _draw(axes: Axes, spec: Spec) -> None:
    thin = len(spec["lines"]) > 1
    for number, line in enumerate(spec["lines"]):
        colour = f"C{number % 10}"
        look = {"color": colour, "marker": "o", "markersize": 2 if thin else 3, "linewidth": 0.9 if thin else 1.6}
        axes.plot(line["steps"], line["miou_percent"], label=_plain(line["label"]), **look)
        if line.get("test"):
            step, score = line["test"]
            axes.plot([step], [score], color=colour, marker="D", markersize=6, linestyle="", label=f"test {score:.2f}")
    if spec.get("mean") and len({tuple(line["steps"]) for line in spec["lines"]}) == 1:
        means = [sum(values) / len(values) for values in zip(*(x["miou_percent"] for x in spec["lines"]), strict=True)]
        axes.plot(spec["lines"][0]["steps"], means, color="0.15", linewidth=2.2, label="mean of the seeds")
    for reference in spec["references"]:
        style = "--" if reference["comparable"] else ":"
        axes.axhline(reference["value"], color="0.35", linestyle=style, linewidth=1.2, label=_plain(reference["label"]))
    top = max([*(max(line["miou_percent"]) for line in spec["lines"]), *(r["value"] for r in spec["references"])])
    axes.set_xlim(0, 1.04 * max(line["steps"][-1] for line in spec["lines"]))
    axes.set_ylim(0, min(100, 1.15 * top + 1))
    title = spec["title"]
    axes.set_title(_plain(title if len(title) < 90 else title[:87] + "..."), fontsize=9, y=1.02)
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else Matplotlib reads formulas
