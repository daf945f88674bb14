"""The bars of speed.md: how many times as fast ours is as the other, question by question."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.sealed_png import is_sealed, seal
from results.speed_questions import Ratio

Spec = dict[str, Any]


def speed_digest(spec: Spec) -> str:
    """Of what the image shows and of the code that draws it."""
    return hashlib.sha256(Path(__file__).read_bytes() + json.dumps(spec, sort_keys=True).encode()).hexdigest()


def are_bars_up_to_date(path: Path, spec: Spec) -> bool:
    """Whether the file is the image of this, untouched."""
    return path.is_file() and is_sealed(path.read_bytes(), speed_digest(spec))


def speed_spec(ratios: Sequence[Ratio]) -> Spec:
    """The content of the image of speed.md: a bar for each ratio."""
    bars = [
        {"label": f"{ratio.question.partition(' beside ')[0]}\nbeside {ratio.beside}", "ratio": ratio.ratio}
        | {"low": ratio.low, "high": ratio.high}
        for ratio in ratios
    ]
    return {"bars": bars}


def draw_speed(spec: Spec) -> bytes:
    """The sealed PNG of the ratios: longer than 1 is faster."""
    from matplotlib.figure import Figure

    bars = spec["bars"][::-1]
    figure = Figure(figsize=(9, 0.9 + 0.46 * len(bars)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    places = range(len(bars))
    ratios = [bar["ratio"] for bar in bars]
    errors = [[bar["ratio"] - bar["low"] for bar in bars], [bar["high"] - bar["ratio"] for bar in bars]]
    colours = ["#2aa876" if ratio >= 1 else "#d9822b" for ratio in ratios]
    axes.barh(places, ratios, color=colours, height=0.62, xerr=errors, error_kw={"linewidth": 1, "ecolor": "0.35"})
    for place, bar in zip(places, bars, strict=True):
        axes.text(bar["high"] + 0.03, place, f"{bar['ratio']:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="0.2", linewidth=1)
    axes.set_yticks(places, [bar["label"].replace("$", r"\$") for bar in bars], fontsize=7)
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.set_xlim(0, 1.12 * max(bar["high"] for bar in bars))
    axes.set_xlabel("times as fast as the other (right of 1: ours is faster)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return seal(png.getvalue(), speed_digest(spec))
