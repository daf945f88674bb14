"""`--coverage`: tries every network of a list, each in a process and a time of its own; can be stopped and resumed.

The lists: the smallest network of every model module of timm (`timm_smallest.csv`, made by `smallest_of_timm`),
torchvision's classification and segmentation builders, every decoder of segmentation_models_pytorch on two encoders.
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import atomic_write
from common.progress import Progress
from common.runs.environment import environment

SECONDS = 600
COLUMNS = (
    *("module", "outcome", "free_sizes", "tensors", "classes", "lines", "largest_difference", "training_difference"),
    *("training_mode", "seconds", "cpu_seconds", "peak_memory_mib", "reason"),
)
PACKAGES = ("paddlepaddle", "torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy")
SMP_ENCODERS = ("resnet18", "mobilenet_v2")
DPT_ENCODERS = ("tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224")  # it takes no convolutional ones
LIST = Path(__file__).with_name("timm_smallest.csv")


def networks(library: str) -> list[str]:
    """The `--module` names of a list."""
    if library == "timm":
        with LIST.open(encoding="utf-8", newline="") as stream:
            rows = sorted(csv.DictReader(stream), key=lambda row: int(row["parameters"]))
        return [f"timm:{row['network']}" for row in rows]
    if library == "torchvision":
        import torchvision

        rooms = (torchvision.models, torchvision.models.segmentation)
        return [f"torchvision:{name}" for room in rooms for name in torchvision.models.list_models(room)]
    import segmentation_models_pytorch as smp

    base = smp.base.SegmentationModel
    names = [
        n for n, kind in vars(smp).items() if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    ]
    encoders = {name: DPT_ENCODERS if name == "DPT" else SMP_ENCODERS for name in sorted(names)}
    return [f"smp:{name}:{encoder}" for name, chosen in encoders.items() for encoder in chosen]


def cover(library: str, report: Path | None, seconds: int = SECONDS, first: int | None = None) -> int:
    """Tries each network that the report does not have yet; a row more after each.

    Args:
        library: timm, torchvision or smp.
        report: Folder of `coverage_<library>.csv` and env.json.
        seconds: For each network.
        first: How many at most, for tests.

    Returns:
        The exit status: 1 if fewer than 95 % of those tried are proven.
    """
    if report is None:
        raise UserError("--coverage needs --report DIR: the table grows there, and a later call goes on with it")
    table = report / f"coverage_{library}.csv"
    rows = _read(table)
    known = {row["module"] for row in rows}
    names = networks(library)[:first]
    if not (report / "env.json").is_file():
        with atomic_write(report / "env.json") as stream:
            env = environment(PACKAGES, project="weights_convert", load_average_before=os.getloadavg())
            json.dump(env, stream, indent=2)
    with Progress(len(names), "cover", "network") as bar:
        for name in names:
            if name not in known:
                rows.append(_try(name, seconds))
                bar.print(f"{name}: {rows[-1]['outcome']} {rows[-1].get('reason', '')}")
                _write(table, rows)
            bar.update()
    proven = sum(row["outcome"] == "proven" for row in rows)
    print(f"{proven} of {len(rows)} proven ({100 * proven / max(len(rows), 1):.1f} %)")
    return 0 if proven >= 0.95 * len(rows) else 1


def _try(name: str, seconds: int) -> dict[str, Any]:
    """The row of one network, tried in a new process."""
    command = [sys.executable, "-P", "-m", "weights_convert.graph.coverage", name]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"module": name, "outcome": "failed", "reason": f"not done in {seconds} s"}
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return {"module": name, "outcome": "failed", "reason": f"status {result.returncode}: {last[:300]}"}


def try_one(name: str) -> dict[str, Any]:
    """Converts one network without writing files; whatever goes wrong becomes the row's reason."""
    from weights_convert.graph.command import Wanted, convert_module

    try:
        converted, _ = convert_module(Wanted(name))
        return {"outcome": "proven", "reason": "", **converted.row()}
    except UserError as error:
        return {"module": name, "outcome": "failed", "reason": " ".join(str(error).split())[:400]}
    except Exception as error:  # a defect of ours: named as one
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"module": name, "outcome": "failed", "reason": f"defect: {text[:400]}"}


def smallest_of_timm() -> list[tuple[str, str, int]]:
    """Module, name and parameters of the smallest network of every model module of timm; takes ten minutes."""
    import timm
    import torch
    from timm.models import _registry

    rows = []
    for module in timm.list_modules():
        sizes = {}
        for name in _registry._module_to_models[module]:
            try:
                with torch.device("meta"):
                    network = timm.create_model(name)
            except Exception:  # a network that cannot be built without memory
                continue
            sizes[name] = sum(value.numel() for value in network.parameters())
        if sizes:
            name = min(sorted(sizes), key=sizes.__getitem__)
            rows.append((module, name, sizes[name]))
    return rows


def _read(table: Path) -> list[dict[str, Any]]:
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write(table: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(table) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    print(json.dumps(try_one(sys.argv[1])))
