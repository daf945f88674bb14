"""The tables of README.md, made from the recorded matrices: `python report.py --readme` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.cli import UserError
from common.files import atomic_write
from paddleseg_benchmark.matrix.report import Row, read_matrix
from paddleseg_benchmark.zoo import zoo

NETWORKS = {
    "deeplabv3p_resnet50": "DeepLabv3+ R50",
    "deeplabv3_resnet50": "DeepLabv3 R50",
    "pspnet_resnet50": "PSPNet R50",
    "fcn_hrnet_w18": "FCN HRNet-W18",
    "fastscnn": "Fast-SCNN",
}
LIBRARIES = {
    "mmseg": "mmsegmentation",
    "smp": "segmentation_models_pytorch",
    "torchvision": "torchvision",
    "timm": "timm's HRNet",
}
OWN_VARIANTS = {
    "NHWC": {"layout": "NHWC"},
    "to_static": {"graph": "to_static"},
    "static": {"graph": "static"},
    "batch 4": {"batch": "4"},
}
BASE = {"library": "paddleseg", "precision": "fp32", "layout": "NCHW", "graph": "dynamic", "batch": "2"}


def write_readme(path: Path, results: Path) -> None:
    """Writes the tables between their marks in a README.

    Args:
        path: The README.
        results: Where recorded matrices are folders.

    Raises:
        UserError: A mark is missing, or no matrix of a preset is recorded.
    """
    text = with_tables(path.read_text(encoding="utf-8"), results, str(path))
    with atomic_write(path) as stream:
        stream.write(text)


def with_tables(text: str, results: Path, where: str) -> str:
    """The text of a README with its tables made anew; arguments and errors as `write_readme`."""
    tables = {"networks": ("zoo", networks_table), "speed-ups": ("cpu", speedup_table)}
    for name, (preset, make) in tables.items():
        begin, end = f"<!-- {name}: begin (made by report.py --readme) -->\n", f"<!-- {name}: end -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise UserError(f"{where}: no marks of the table '{name}': add the lines '{begin.strip()}' and '{end}'")
        folder = newest_of(results, preset)
        source = f"From [{folder.name}](../../results/benchmarks/paddleseg_benchmark/{folder.name}/report.md).\n\n"
        text = f"{head}{begin}{source}{make(read_matrix(folder)[0])}{end}{tail}"
    return text


def newest_of(results: Path, preset: str) -> Path:
    """The newest recorded matrix of a preset.

    Raises:
        UserError: There is none.
    """
    envs = sorted(results.glob("*/env.json"))
    begun = {path: json.loads(path.read_text(encoding="utf-8"))["started_utc"] for path in envs if _is_of(path, preset)}
    if not begun:
        raise UserError(f"{results}: no matrix of preset {preset}: record one with run_matrix.py")
    return max(begun, key=begun.__getitem__).parent


def _is_of(path: Path, preset: str) -> bool:
    return json.loads(path.read_text(encoding="utf-8")).get("preset") == preset


def networks_table(rows: Sequence[Row]) -> str:
    """One line per network of the zoo: its config, its parameters, and the milliseconds of a step."""
    lines = [
        "| network | backbone | config | name in the matrix | parameters | ms per step |",
        "|---|---|---|---|---|---|",
    ]
    for row in zoo.ROWS:
        cell = _cell(rows, {**BASE, "model": row.name})
        step_ms = f"{float(cell['step_ms']):.0f}" if cell else "not run"
        parameters = f"{int(cell['parameters']):,}" if cell else ""
        columns = (row.network, row.backbone, f"`{row.config}`", f"`{row.name}`", parameters, step_ms)
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def speedup_table(rows: Sequence[Row]) -> str:
    """One column per network: images/s of the baseline, then the ratio of every other cell to it."""
    bases = {model: _cell(rows, {**BASE, "model": model}) for model in NETWORKS}
    lines = [f"| | {' | '.join(NETWORKS.values())} |", f"|---|{'---|' * len(NETWORKS)}"]
    speeds = [f"{float(cell['images_per_s']):.2f}" if cell else "not run" for cell in bases.values()]
    lines.append(f"| paddleseg, fp32: images/s | {' | '.join(speeds)} |")
    for name, change in OWN_VARIANTS.items():
        ratios = [_ratio(rows, {**BASE, "model": model, **change}, base) for model, base in bases.items()]
        lines.append(f"| {name} | {' | '.join(ratio or 'not supported' for ratio in ratios)} |")
    for library, title in LIBRARIES.items():
        for precision in ("fp32", "bf16"):
            for layout in ("NCHW", "NHWC"):
                peer = {**BASE, "library": library, "precision": precision, "layout": layout}
                ratios = [_ratio(rows, {**peer, "model": model}, base) for model, base in bases.items()]
                lines.append(f"| {title}, {precision} {layout} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Row], wanted: Mapping[str, str]) -> Row | None:
    """The measured cell of synthetic images with these values; None where it has no number."""
    wanted = {**wanted, "status": "ok", "loader": "synthetic"}
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def _ratio(rows: Sequence[Row], wanted: Mapping[str, str], base: Row | None) -> str:
    cell = _cell(rows, wanted)
    return f"{float(cell['images_per_s']) / float(base['images_per_s']):.2f}x" if cell and base else ""
