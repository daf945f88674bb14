"""Exports a trained network to ONNX, runs it again in ONNX Runtime, and keeps it only if it is the same network.

    python export.py --weights output/<run>/best.safetensors                      # any image size
    python export.py --weights W.safetensors --size 512 512 --fixed --output DIR  # this size only

Compared with PyTorch at the traced size and, unless --fixed, at two others, one of them odd: exporters are known to
write graphs of pyramid pooling that are right at the traced size and wrong elsewhere. A graph that differs is not kept
and the exit status is 1. Class names, palette, mean and std stand in the file's metadata; the comparison is written
beside it as model.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import math
import os
import warnings
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.weights.exported import (
    Agreement,
    Limits,
    agreement_table,
    compare,
    default_folder,
    draft_folder,
    publish,
    require_agreement,
)
from encnet_single_gpu.inference import OnnxNetwork, TorchNetwork, read_checkpoint_info
from encnet_single_gpu.models.segnet import Pooling

import torch
from torch import nn

FILE = "model.onnx"
LIMITS = Limits(max_difference=1e-3, min_agreement_percent=99.9)
TRACED_SIZE = (128, 160)
OTHER_SIZES = ((96, 128), (129, 97))


def export(
    weights: str | os.PathLike, output: Path, size: tuple[int, int] = TRACED_SIZE, fixed: bool = False
) -> list[Agreement]:
    """Exports, compares, and only then gives the file its name in `output`, with the comparison beside it.

    Args:
        weights: A checkpoint of train.py.
        output: The folder for the files.
        size: (height, width) that is traced.
        fixed: Whether the graph is for one image of this size alone; else batch, height and width are free.

    Returns:
        The comparisons, PyTorch's own time first.

    Raises:
        UserError: The checkpoint cannot be read, the exporter failed, or its graph is not the network. Then `output` is
            what it was.
    """
    network = TorchNetwork(weights, "cpu")
    shapes = [(1, 3, *size)] if fixed else [(2, 3, *each) for each in (size, *OTHER_SIZES)]
    advice = "" if fixed else "; --fixed exports one size alone"
    with draft_folder(output) as folder:
        _write_onnx(network.model, folder / FILE, size, fixed)
        _add_metadata(folder / FILE, weights)
        networks = {"torch": network, "onnx": OnnxNetwork(folder / FILE)}
        agreements = [row for shape in shapes for row in compare(networks, shape)]
        require_agreement(agreements, limits_of(network.model), advice)
        publish(folder / FILE, output / FILE)
    with atomic_write((output / FILE).with_suffix(".txt")) as stream:
        stream.write(f"{agreement_table(agreements)}\n")
    return agreements


def limits_of(model: nn.Module) -> Limits:
    """How far the graph may be from the network.

    Where two values under a max pooling nearly tie, rounding decides to which place SegNet unpools: then logits may
    differ, and classes alone decide.
    """
    unpools = any(isinstance(layer, Pooling) for layer in model.modules())
    return dataclasses.replace(LIMITS, max_difference=math.inf) if unpools else LIMITS


def _write_onnx(model: nn.Module, path: Path, size: tuple[int, int], fixed: bool) -> None:
    images = torch.zeros(1 if fixed else 2, 3, *size)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (images,),
                str(path),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=None if fixed else (dynamic,),
            )
        except Exception as error:  # the exporter's errors are many, and long
            reason = next(line for line in str(error).splitlines() if line.strip())
            raise UserError(
                f"PyTorch cannot export this network ({reason[:200]})" + ("" if fixed else "; try --fixed")
            ) from None


def _add_metadata(path: Path, weights: str | os.PathLike) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, read_checkpoint_info(weights).to_texts())
    onnx.save(model, path)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    output = args.output or default_folder(args.weights)
    print(agreement_table(export(args.weights, output, tuple(args.size), args.fixed)))
    print(f"written: {output / FILE}")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    output_help = "folder for model.onnx (default: <name of the weights>_export beside them)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    size_help = "height and width in pixels to trace at (default: {} {})".format(*TRACED_SIZE)
    parser.add_argument("--size", type=int, nargs=2, default=TRACED_SIZE, metavar=("H", "W"), help=size_help)
    parser.add_argument("--fixed", action="store_true", help="export a graph for one image of this size only")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
