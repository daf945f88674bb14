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
import os
import tempfile
import warnings
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from encnet_single_gpu.inference import load_network, read_checkpoint_info
from encnet_single_gpu.models.segnet import Pooling

import numpy as np
import torch
from torch import nn

MAX_DIFFERENCE = 1e-3  # of logits, over their largest value
MIN_AGREEMENT_PERCENT = 99.9  # of pixels with the same class
TRACED_SIZE = (128, 160)
OTHER_SIZES = ((96, 128), (129, 97))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """ONNX Runtime beside PyTorch on one random input.

    Attributes:
        size: (height, width) in pixels.
        max_difference: Of logits, over the largest of PyTorch's.
        agreement_percent: Pixels with the same class.
        by_classes_alone: Whether logits may differ: where two values under a max pooling all but tie, rounding decides
            to which place SegNet unpools.
    """

    size: tuple[int, int]
    max_difference: float
    agreement_percent: float
    by_classes_alone: bool

    @property
    def agrees(self) -> bool:
        """Whether the two are one network."""
        logits_agree = self.by_classes_alone or self.max_difference <= MAX_DIFFERENCE
        return logits_agree and self.agreement_percent >= MIN_AGREEMENT_PERCENT

    def __str__(self) -> str:
        return (
            f"{self.size[0]}x{self.size[1]}: logits differ by {self.max_difference:.1e} of their largest, "
            f"{self.agreement_percent:.3f} % of classes agree"
        )


def export(weights: str | os.PathLike, path: Path, size: tuple[int, int], fixed: bool) -> list[Comparison]:
    """Writes `path`, or nothing if what ONNX Runtime makes of it is not the network.

    Args:
        weights: A checkpoint of train.py.
        path: Of the ONNX file.
        size: (height, width) that is traced.
        fixed: Whether the graph is for this size alone; else batch, height and width are free.

    Raises:
        UserError: The checkpoint cannot be read, the exporter failed, or its graph is not the network.
    """
    model = load_network(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=path.parent) as folder:
        draft = Path(folder) / "model.onnx"
        _write_onnx(model, draft, size, fixed)
        _add_metadata(draft, weights)
        comparisons = [compare(model, draft, each) for each in ((size,) if fixed else (size, *OTHER_SIZES))]
        wrong = [str(comparison) for comparison in comparisons if not comparison.agrees]
        if wrong:
            raise UserError(
                f"the ONNX graph is not the network, nothing is kept: at {wrong[0]}; --fixed exports one size alone"
            )
        with atomic_write(path, "wb") as stream:
            stream.write(draft.read_bytes())
    with atomic_write(path.with_suffix(".txt")) as stream:
        stream.writelines(f"{comparison}\n" for comparison in comparisons)
    return comparisons


def compare(model: nn.Module, path: Path, size: tuple[int, int]) -> Comparison:
    """Runs two random images of `size` (one, if the graph takes only one) through both.

    Raises:
        UserError: ONNX Runtime cannot run the graph at this size, or gives another shape.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    generator = np.random.default_rng(0)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        batch = 1 if entry.shape[0] == 1 else 2
        images = generator.standard_normal((batch, 3, *size)).astype(np.float32)
        (ours,) = session.run(None, {entry.name: images})
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"ONNX Runtime cannot run the graph at {size[0]}x{size[1]}, nothing is kept: {reason}"
        ) from None
    with torch.no_grad():
        theirs = model(torch.from_numpy(images)).numpy()
    if ours.shape != theirs.shape:
        raise UserError(f"the ONNX graph gives {ours.shape} at {size[0]}x{size[1]}, PyTorch {theirs.shape}: not kept")
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    agreement = 100 * float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    unpools = any(isinstance(layer, Pooling) for layer in model.modules())
    return Comparison(size, difference, agreement, by_classes_alone=unpools)


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
    """The command."""
    args = _parse_args()
    weights = Path(args.weights)
    folder = args.output or weights.parent / f"{weights.stem}_export"
    path = folder / "model.onnx"
    for comparison in export(weights, path, tuple(args.size), args.fixed):
        print(comparison)
    print(f"written: {path}")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    output_help = "folder for model.onnx (default: <name of the weights>_export beside them)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    size_help = "height and width in pixels that are traced (default: {} {})".format(*TRACED_SIZE)
    parser.add_argument("--size", type=int, nargs=2, default=TRACED_SIZE, metavar=("H", "W"), help=size_help)
    parser.add_argument("--fixed", action="store_true", help="a graph for one image of this size alone")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
