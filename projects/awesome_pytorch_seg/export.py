"""Exports a trained network as ONNX, for images of any size, and keeps only what computes the same.

    python export.py --weights output/<run>/best.safetensors                 # into output/<run>/best_export/model.onnx
    python export.py --weights W.safetensors --output deploy --size 512 1024 # traced, compared and timed at this size

The graph takes `images`, normalised float32 (B, 3, H, W), and gives `logits` (B, num_classes, H, W); argmax is the
caller's. Mean, std, channel order, scale, class names and palette are in the file's metadata.

Exporters of pyramid pooling are known to write graphs that are right at the traced size and silently wrong at others.
So the file is run again in ONNX Runtime and compared with the network at the traced size and at two others, both odd
and one with another batch size; a difference at any of them leaves no file behind, and the command ends with 1.

OCNet's pyramid is cut into regions, with which torch's exporter does not come to an end where sizes are free: its file
takes images of the traced size alone, and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import warnings
from pathlib import Path

from awesome_pytorch_seg.checkpoint import load_network, read_experiment
from awesome_pytorch_seg.inference import MIN_SIDE, OnnxNetwork, TorchNetwork, read_checkpoint_info
from common.cli import CommandParser, UserError, run_command
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

import torch
import torch.nn.functional as F
from torch import nn

FILE = "model.onnx"
OTHER_SHAPES = ((2, 3, 97, 161), (1, 3, 203, 131))  # no side is a multiple of any stride
FIXED_SIZE_NETWORKS = ("ocnet_pyramid",)
LIMITS = Limits(max_difference=1e-3, min_agreement_percent=99.9)


def export(weights: str | os.PathLike, output: Path, size: tuple[int, int] | None = None) -> list[Agreement]:
    """Exports, compares, and only then gives the file its name in `output`.

    Returns:
        The comparisons, PyTorch's own time first.

    Raises:
        UserError: The checkpoint cannot be read, the exporter failed, or its result is not the network. Then `output`
            is what it was.
    """
    config = read_experiment(weights)[1]
    size = size or tuple(max(side, MIN_SIDE) for side in config.augment.stages[-1].crop_size)
    is_fixed = config.model.name in FIXED_SIZE_NETWORKS
    if min(size) < MIN_SIDE:
        raise UserError(f"--size {size[0]} {size[1]}: each side must be at least {MIN_SIDE}")
    with draft_folder(output) as folder:
        write_onnx(weights, folder / FILE, size, is_fixed)
        networks = {"torch": TorchNetwork(weights, "cpu"), "onnx": OnnxNetwork(folder / FILE)}
        shapes = ((1, 3, *size), *(((2, 3, *size),) if is_fixed else OTHER_SHAPES))
        agreements = [row for shape in shapes for row in compare(networks, shape)]
        require_agreement(agreements, LIMITS)
        publish(folder / FILE, output / FILE)
    return agreements


def write_onnx(weights: str | os.PathLike, path: Path, size: tuple[int, int], is_fixed: bool) -> None:
    """Writes the graph of a checkpoint's network, traced at `size`, with free batch, height and width.

    With `is_fixed` only the batch is free.

    Raises:
        UserError: The exporter failed.
    """
    import onnx

    images = torch.zeros(2, 3, *size)  # two images: one would be taken for a constant
    free = torch.export.Dim.DYNAMIC
    dynamic = {0: free} if is_fixed else {0: free, 2: free, 3: free}
    # The exporter's advice goes to the log, to standard output and to warnings.
    for name in ("torch.onnx", "onnx_ir", "torch.fx.experimental.symbolic_shapes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                with_fixed_padding(load_network(weights)),
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
        except Exception as error:  # whatever it is, the user hears it in one line
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{weights}: torch's exporter failed ({type(error).__name__}: {reason[:300]})") from error
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_param = "batch"
        if not is_fixed:
            height.dim_param, width.dim_param = "height", "width"
    info = dataclasses.replace(read_checkpoint_info(weights), fixed_size=size if is_fixed else None)
    onnx.helper.set_model_props(model, info.to_texts())
    onnx.checker.check_model(model)
    onnx.save(model, path)


class CroppedConvTranspose2d(nn.Module):
    """A transposed convolution whose output size is chosen by cutting.

    ONNX's has a fixed output padding. With the largest there is, the output begins with that of every smaller one.
    """

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self.own_padding = layer.output_padding
        layer.output_padding = tuple(step - 1 for step in layer.stride)
        self.layer = layer

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        """(B, C, h, w) -> (B, D, *output_size), or of the layer's own size where none is asked for."""
        layer = self.layer
        if output_size is None:
            sizes = (layer.stride, layer.padding, self.own_padding)
            return F.conv_transpose2d(x, layer.weight, layer.bias, *sizes, layer.groups, layer.dilation)
        height, width = output_size
        return layer(x)[..., :height, :width]


def with_fixed_padding(model: nn.Module) -> nn.Module:
    """The network with its transposed convolutions replaced by `CroppedConvTranspose2d`, computing the same."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.ConvTranspose2d):
                setattr(owner, name, CroppedConvTranspose2d(child))
    return model


def main() -> None:
    """Runs the command."""
    parser = CommandParser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    output_help = "folder for model.onnx (default: <name of the weights>_export beside them)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    size_help = "height and width in pixels to trace and time at (default: the last training crop's, at least 65)"
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size_help)
    args = parser.parse_args()
    output = args.output or default_folder(args.weights)
    print(agreement_table(export(args.weights, output, tuple(args.size) if args.size else None)))
    fixed_size = OnnxNetwork(output / FILE).info.fixed_size
    sizes = "any size" if fixed_size is None else "{}x{} alone: torch's exporter knows no other way".format(*fixed_size)
    print(f"written: {output / FILE}, for images of {sizes}")


if __name__ == "__main__":
    run_command(main)
