"""Writing what has been proven: the weights, what they leave out, a card that says how they came about, a report."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import atomic_write, sha256_of
from common.runs.environment import environment, git_commit
from common.weights.card import card_of
from weights_convert import proof
from weights_convert.conversion import SEED, Conversion, three_digits
from weights_convert.weight_files import read_as_stored, write_weights

import numpy as np
import paddle
import torch
import yaml

PADDLE_SUFFIXES = (".pdparams", ".safetensors")
TORCH_OUT_SUFFIXES = (".pth", ".pt", ".safetensors")
REPORT_COLUMNS = (
    *("arch", "source", "tensors", "largest_difference", "onnxruntime_difference", "same_class_percent"),
    *("seconds", "cpu_seconds", "peak_memory_mib", "failure"),
)
REPORT_PACKAGES = ("paddlepaddle", "torch", "torchvision", "timm", "paddleseg", "onnxruntime", "paddle2onnx", "numpy")


def require_out(out: Path, suffixes: tuple[str, ...], weights: Path | None) -> None:
    """Raises UserError if `--out` has none of the suffixes, or is the file to be converted."""
    paths = weight_paths(out)
    if any(path.suffix not in suffixes for path in paths):
        raise UserError(f"--out {out}: '{out.suffix}' is not written here: use {' or '.join(suffixes)}")
    if weights is not None and weights.resolve() in [path.resolve() for path in paths]:
        raise UserError(f"--out {out} is the file to be converted: choose another name")


def weight_paths(out: Path) -> list[Path]:
    """The files that `--out` stands for: itself, or both kinds of Paddle file if it has no suffix."""
    return [out] if out.suffix else [out.with_suffix(suffix) for suffix in PADDLE_SUFFIXES]


def left_out_path(weights: Path) -> Path:
    """Where the tensors lie that a Paddle file has no place for."""
    return weights.with_suffix(".left_out.safetensors")


def write_proven(
    conversion: Conversion,
    out: Path,
    tensors: dict[str, np.ndarray],
    left_out: dict[str, np.ndarray] | None,
    weights: Path | None,
    licence: str | None,
) -> list[Path]:
    """Writes the tensors, reads each file back, and adds the card (`<out>.card.yaml`) and what was left out.

    Args:
        conversion: Proven.
        out: What the user called the weights, see `weight_paths`.
        tensors: What goes into them.
        left_out: What does not; None where the other direction needs nothing beside the weights.
        weights: The file that was converted; None for random weights.
        licence: Of the weights, as the user gave it.

    Returns:
        The files written.

    Raises:
        UserError: A file does not read back as it was written.
    """
    written = []
    for path in weight_paths(out):
        with atomic_write(path, "wb") as stream:
            write_weights(stream, path.suffix, tensors)
            stream.flush()
            _require_same(read_as_stored(stream.name, path.suffix), tensors, path)
        written.append(path)
    rest = left_out_path(out)
    if left_out is not None:
        rest.unlink(missing_ok=True)  # of an earlier conversion under this name
    if left_out:
        with atomic_write(rest, "wb") as stream:
            write_weights(stream, ".safetensors", left_out)
        written.append(rest)
    card = card_of(out)
    with atomic_write(card) as stream:
        content = describe(conversion, written, weights, licence)
        yaml.safe_dump(content, stream, sort_keys=False, allow_unicode=True, width=120)
    return [*written, card]


def start_report(folder: Path) -> None:
    """Writes env.json and a table without rows; an older report in the folder is replaced."""
    env = environment(REPORT_PACKAGES, project="weights_convert", load_average_before=os.getloadavg())
    with atomic_write(folder / "env.json") as stream:
        json.dump(env, stream, indent=2)
    write_report(folder, [])


def write_report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes proofs.csv: rows of `Conversion.report_row`, or of "arch", "source" and "failure" where one failed."""
    with atomic_write(folder / "proofs.csv") as stream:
        writer = csv.DictWriter(stream, REPORT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def describe(conversion: Conversion, written: list[Path], weights: Path | None, licence: str | None) -> dict[str, Any]:
    """The card's content: plain values only."""
    proven, third = conversion.proof, conversion.onnx_difference
    left_out = Counter(conversion.pairing.left_out.values())
    left_out["second name of a tensor that is there"] = len(conversion.pairing.copies)
    commit, changed = git_commit(Path(__file__).parent)
    return {
        "arch": conversion.arch.name,
        "source": {
            "network": conversion.source.title,
            "weights": weights.name if weights else f"random, seed {SEED}",
            "sha256": sha256_of(weights) if weights else None,
            "licence": licence,
            **({"notes": list(conversion.notes)} if conversion.notes else {}),
        },
        "paddle_network": conversion.arch.target,
        "num_classes": conversion.num_classes,
        "files": {path.name: sha256_of(path) for path in written},
        "input": {
            "channel_order": "RGB",
            "scale": "0..1 (pixels / 255)",
            "mean": list(conversion.mean),
            "std": list(conversion.std),
            "layout": "float32 (B, 3, H, W)",
        },
        "tensors": {
            "converted": len(conversion.pairing.pairs) - len(conversion.head_tensors()),
            "left_out": {reason: count for reason, count in left_out.items() if count},
        },
        "proof": {
            "measure": "max|a - b| / max|a|, evaluation mode, float32, CPU",
            "limit": proof.LIMIT,
            "largest_difference": three_digits(proven.largest),
            "stages": {row.name: three_digits(row.largest) for row in proven.stages},
            "inputs": list(proven.inputs),
            "image": conversion.image,
            "layers_one_by_one": len(proven.layers),
            "highest_class_agrees_percent": round(proven.agreement_percent, 4),
            "onnxruntime": "not asked" if third is None else three_digits(third),
        },
        "versions": {
            "paddle": paddle.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "segrepro": commit + (" with changes" if changed else ""),
        },
    }


def _require_same(found: dict[str, np.ndarray], tensors: dict[str, np.ndarray], path: Path) -> None:
    for name, value in tensors.items():
        if name not in found or not np.array_equal(found[name], value):
            raise UserError(f"{path}: '{name}' does not read back as it was written: is the disk sound?")
