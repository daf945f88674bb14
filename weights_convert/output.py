"""Writing what has been proven: the weights, what they leave out, and a card that says how they came about."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import atomic_write, sha256_of
from common.run_log import git_commit
from weights_convert import proof
from weights_convert.conversion import SEED, Conversion
from weights_convert.weight_files import read_weights, write_weights

import numpy as np
import paddle
import torch
import yaml

PADDLE_SUFFIXES = (".pdparams", ".safetensors")
TORCH_OUT_SUFFIXES = (".pth", ".pt", ".safetensors")


def paddle_paths(out: Path) -> list[Path]:
    """The files that `--out` stands for: itself, or both kinds if it has no suffix.

    Raises:
        UserError: Another suffix.
    """
    if out.suffix == "":
        return [out.with_suffix(suffix) for suffix in PADDLE_SUFFIXES]
    return [require_suffix(out, PADDLE_SUFFIXES)]


def require_suffix(out: Path, suffixes: tuple[str, ...]) -> Path:
    """Returns the path; raises UserError if it has another suffix."""
    if out.suffix not in suffixes:
        raise UserError(f"--out {out}: '{out.suffix}' is not written here: use {' or '.join(suffixes)}")
    return out


def left_out_path(weights: Path) -> Path:
    """Where the tensors lie that a Paddle file has no place for."""
    return weights.with_suffix(".left_out.safetensors")


def write_proven(
    conversion: Conversion,
    paths: list[Path],
    tensors: dict[str, np.ndarray],
    left_out: dict[str, np.ndarray],
    weights: Path | None,
    licence: str | None,
) -> list[Path]:
    """Writes the tensors to each path, reads each file back, and adds the card and what was left out.

    Args:
        conversion: Proven.
        paths: Of the weights, all of one stem.
        tensors: What goes into them.
        left_out: What does not; empty writes no such file.
        weights: The file that was converted; None for random weights.
        licence: Of the weights, as the user gave it.

    Returns:
        The files written.

    Raises:
        UserError: A file does not read back as it was written, or would replace the one that it is made from.
    """
    if any(weights is not None and path.resolve() == weights.resolve() for path in paths):
        raise UserError(f"--out {paths[0]} is the file to be converted: choose another name")
    written = []
    for path in paths:
        with atomic_write(path, "wb") as stream:
            write_weights(stream, path.suffix, tensors)
            stream.flush()
            _require_same(_read_temporary(Path(stream.name), path), tensors, path)
        written.append(path)
    if left_out:
        rest = left_out_path(paths[0])
        with atomic_write(rest, "wb") as stream:
            write_weights(stream, ".safetensors", left_out)
        written.append(rest)
    card = paths[0].with_suffix(".card.yaml")
    with atomic_write(card) as stream:
        content = describe(conversion, written, weights, licence)
        yaml.safe_dump(content, stream, sort_keys=False, allow_unicode=True, width=120)
    return [*written, card]


def describe(conversion: Conversion, written: list[Path], weights: Path | None, licence: str | None) -> dict[str, Any]:
    """The card's content: plain values only."""
    proven = conversion.proof
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
            "converted": len(conversion.pairing.pairs),
            "left_out": {reason: count for reason, count in left_out.items() if count},
        },
        "proof": {
            "measure": "max|a - b| / max|a|, evaluation mode, float32, CPU",
            "limit": proof.LIMIT,
            "largest_difference": _rounded(proven.largest),
            "stages": {row.name: _rounded(row.largest) for row in proven.stages},
            "inputs": list(proven.inputs),
            "picture": conversion.picture,
            "layers_one_by_one": len(proven.layers),
            "highest_class_agrees_percent": round(proven.agreement_percent, 4),
            "onnxruntime": "not asked" if conversion.onnx is None else _rounded(conversion.onnx),
        },
        "versions": {
            "paddle": paddle.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "segrepro": commit + (" with changes" if changed else ""),
        },
    }


def _read_temporary(temporary: Path, path: Path) -> dict[str, np.ndarray]:
    """Reads a file whose temporary name hides its suffix."""
    link = temporary.with_name(f"{temporary.name}{path.suffix}")
    link.hardlink_to(temporary)
    try:
        return read_weights(link)
    finally:
        link.unlink()


def _require_same(found: dict[str, np.ndarray], tensors: dict[str, np.ndarray], path: Path) -> None:
    for name, value in tensors.items():
        if name not in found or not np.array_equal(found[name], value):
            raise UserError(f"{path}: '{name}' does not read back as it was written: is the disk sound?")


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")
