"""`site/index.html`: every row, curve and image in one page that loads nothing from elsewhere.

The chart library, Plotly, is in the page, compressed; the page unpacks it once the table is on the screen.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.table_rows import TableRow

from plotly.offline import get_plotlyjs

SITE = Path(__file__).with_name("site")
MOST_POINTS = 120  # of a curve
PANEL_KINDS = {"image": "jpg", "label": "png", "prediction": "png"}
_LIBRARY = re.compile(r'<script type="text/plain" id="plotly" data-sha256="([0-9a-f]{64})">([A-Za-z0-9+/=]+)</script>')


def build_page(rows: Sequence[TableRow], panels: Path, previous: str = "") -> str:
    """The page.

    Args:
        rows: The table's rows.
        panels: Folder with <project>/<run>/<name>_{image,label,prediction}.
        previous: The page as it is. Its compressed library is kept if it unpacks to the same one: another version of
            zlib writes other bytes.
    """
    digest, library = _library(previous)
    counts = {kind: sum(1 for row in rows if row.kind == kind) for kind in ("photographs", "toy", "missing")}
    parts = {
        "page.css": (SITE / "page.css").read_text(encoding="utf-8").rstrip(),
        "page.js": (SITE / "page.js").read_text(encoding="utf-8").rstrip(),
        "summary": f"{counts['photographs']} rows measured on photographs, {counts['missing']} recipes not run yet, "
        f"{counts['toy']} rows of toy data",
        "data": _script_json(page_data(rows, panels)),
        "plotly.sha256": digest,
        "plotly": library,
    }
    template = (SITE / "template.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{([a-z0-9.]+)\}\}", lambda match: parts[match[1]], template)


def page_data(rows: Sequence[TableRow], panels: Path) -> dict[str, Any]:
    """The data of the page's script; images and lists of classes that several rows share are in it once."""
    classes: dict[tuple[str, ...], int] = {}
    images: dict[str, int] = {}
    entries = []
    for row in rows:
        names = tuple(row.runs[0].env["class_names"]) if row.runs else ()
        entries.append(
            {
                **_row_data(row),
                "classes": classes.setdefault(names, len(classes)),
                "ious": _class_means(row),
                "panels": _panels(row, panels, images),
            }
        )
    return {"rows": entries, "classes": list(classes), "images": list(images)}


def _row_data(row: TableRow) -> dict[str, Any]:
    return {
        "id": row.row_id,
        **{name: getattr(row, name) for name in ("project", "config", "model", "data", "split", "protocol", "scope")},
        **{name: getattr(row, name) for name in ("seeds", "command", "hours", "hours_source", "needs", "kind")},
        **{name: getattr(row, name) for name in ("recipe", "superseded")},
        "best": round(row.best.mean, 4) if row.best else None,
        "std": round(row.best.std, 4) if row.best and row.best.std is not None else None,
        "last": round(row.last.mean, 4) if row.last else None,
        "test": round(row.test.mean, 4) if row.test else None,
        "test_std": round(row.test.std, 4) if row.test and row.test.std is not None else None,
        "iters": max((run.iters for run in row.runs), default=None),
        "references": [
            {
                "kind": comparison.reference.kind,
                "split": comparison.reference.split,
                "value": comparison.reference.value,
                "source": comparison.reference.source,
                "from_memory": comparison.reference.from_memory,
                "delta": None if comparison.delta is None else round(comparison.delta, 4),
                "why": comparison.why,
            }
            for comparison in row.comparisons
        ],
        "runs": [_run_data(run, series) for run, series in zip(row.runs, row.series, strict=True)],
    }


def _run_data(run, series) -> dict[str, Any]:
    points = _thinned(series)
    env = run.env
    return {
        "name": run.name,
        "seed": env["seed"],
        "command": env["command"],
        "machine": f"{env['cpu']}, {env['threads'] or 'all'} threads, {env['device']}; commit {env['commit'][:7]}; "
        f"{env['started_utc']}",
        "best": series.best.miou_percent,
        "best_step": series.best.step,
        "last": series.last.miou_percent,
        "last_step": series.last.step,
        "test": run.test.best.miou_percent if run.test else None,
        "steps": [evaluation.step for evaluation in points],
        "miou": [round(evaluation.miou_percent, 2) for evaluation in points],
    }


def _thinned(series) -> list:
    """The evaluations, evenly fewer where there are very many; the best and the last stay."""
    stride = math.ceil(len(series.evaluations) / MOST_POINTS)
    kept = {series.best.step, series.last.step, *(entry.step for entry in series.evaluations[::stride])}
    return [entry for entry in series.evaluations if entry.step in kept]


def _class_means(row: TableRow) -> list[float | None]:
    """IoU of each class at the best checkpoint, mean over seeds; None for a class that is nowhere."""
    means = []
    for values in zip(*(series.best.class_iou_percent for series in row.series), strict=True):
        present = [value for value in values if not math.isnan(value)]
        means.append(round(sum(present) / len(present), 2) if present else None)
    return means


def _panels(row: TableRow, folder: Path, images: dict[str, int]) -> list[dict[str, Any]]:
    """The images of the row's newest run, as indices into the page's list of them."""
    if not row.runs or "~" in row.row_id:
        return []
    found = []
    for path in sorted((folder / row.project / row.runs[0].name).glob("*_image.jpg")):
        name = path.name.removesuffix("_image.jpg")
        panel: dict[str, Any] = {"name": name}
        for kind, suffix in PANEL_KINDS.items():
            data = base64.b64encode(path.with_name(f"{name}_{kind}.{suffix}").read_bytes()).decode()
            address = f"data:image/{'jpeg' if suffix == 'jpg' else suffix};base64,{data}"
            panel[kind] = images.setdefault(address, len(images))
        found.append(panel)
    return found


def _script_json(value: Any) -> str:
    """JSON that ends no script element, whatever the strings hold."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _library(previous: str) -> tuple[str, str]:
    source = get_plotlyjs().encode()
    digest = hashlib.sha256(source).hexdigest()
    match = _LIBRARY.search(previous)
    if match and match[1] == digest and _unpacked(match[2]) == source:
        return digest, match[2]
    return digest, base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()


def _unpacked(text: str) -> bytes | None:
    try:
        return gzip.decompress(base64.b64decode(text))
    except (ValueError, OSError, EOFError, zlib.error):
        return None
