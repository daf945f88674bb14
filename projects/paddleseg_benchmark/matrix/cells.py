"""The cells of each preset, why one cannot be measured here, and the command that measures one."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from paddleseg_benchmark import updates
from paddleseg_benchmark.matrix import peers
from paddleseg_benchmark.matrix.measure import LIBRARIES, Cell
from paddleseg_benchmark.zoo import zoo

PEER_MODELS = ("deeplabv3p_resnet50", "deeplabv3_resnet50", "pspnet_resnet50", "fcn_hrnet_w18", "fastscnn")
ROOT = Path(__file__).resolve().parents[3]


def zoo_cells() -> list[Cell]:
    """Every network once, and what else the zoo promises: DeepLabv3+ in NHWC, it and HRNet-W18 in static graph."""
    cells = [Cell("paddleseg", row.name) for row in zoo.ROWS]
    deeplab, hrnet = Cell("paddleseg", "deeplabv3p_resnet50"), Cell("paddleseg", "fcn_hrnet_w18")
    return [*cells, deeplab._replace(layout="NHWC"), deeplab._replace(graph="static"), hrnet._replace(graph="static")]


def matrix_cells(models: Sequence[str], size: tuple[int, int], batches: Sequence[int]) -> list[Cell]:
    """Networks x precision x layout x graph at the first batch size; further batch sizes, the loader; then the peers.

    Other batch sizes and the image files are measured in NCHW and dynamic graph, in fp32 and in O1.
    """
    cells = []
    for model in models:
        base = Cell("paddleseg", model, batch=batches[0], height=size[0], width=size[1])
        for graph, layout, precision in itertools.product(updates.GRAPHS, updates.LAYOUTS, updates.PRECISIONS):
            cells.append(base._replace(precision=precision, layout=layout, graph=graph))
        for precision in ("fp32", "o1_fp16"):
            cells += [base._replace(precision=precision, batch=batch) for batch in batches[1:]]
            cells.append(base._replace(precision=precision, loader="toy"))
        if model in PEER_MODELS:
            cells += peer_cells(base)
    return cells


def peer_cells(base: Cell) -> list[Cell]:
    """The peers of a cell in every precision and layout; where a library lacks the network, one cell that says so."""
    cells = []
    for library in LIBRARIES[1:]:
        cell = base._replace(library=library)
        variants = itertools.product(updates.LAYOUTS, peers.PRECISIONS)
        found = [cell._replace(layout=layout, precision=precision) for layout, precision in variants]
        cells += found if peers.has_network(library, base.model) else [cell]
    return cells


def preset_cells(preset: str) -> list[Cell]:
    """The cells of a preset."""
    if preset == "zoo":
        return zoo_cells()
    if preset == "cpu":
        return matrix_cells(PEER_MODELS, (128, 256), (2, 4))
    return matrix_cells((*PEER_MODELS, "bisenetv2", "ocrnet_hrnet_w18", "unet"), (512, 1024), (2, 4, 8))


def refusal(cell: Cell, device: str, has_mmseg: bool) -> str | None:
    """Why a cell cannot be measured here, as matrix.csv states it; None where it can."""
    if cell.library == "paddleseg":
        return updates.unsupported(device, cell.precision, cell.layout, cell.graph, cell.model)
    why = peers.unsupported(cell.library, cell.model, cell.precision, cell.graph, device)
    return "not installed here" if why is None and cell.library == "mmseg" and not has_mmseg else why


def cell_command(cell: Cell, out: Path, steps: int, peer_python: str | None) -> list[str]:
    """The command that measures a cell, in the interpreter of its library."""
    python = peer_python if cell.library == "mmseg" else sys.executable
    sources = f"{ROOT}{os.pathsep}{ROOT / 'projects'}"  # an interpreter of its own does not have this repository
    command = ["env", f"PYTHONPATH={sources}", python, str(Path(__file__).with_name("measure.py"))]
    for name, value in zip(Cell._fields, cell, strict=True):
        if name not in ("batch", "height", "width"):
            command += [f"--{name}", value]
    size = ["--batch-size", str(cell.batch), "--size", str(cell.height), str(cell.width)]
    return [*command, *size, "--steps", str(steps), "--out", str(out)]
