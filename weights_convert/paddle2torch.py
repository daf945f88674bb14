"""Turns Paddle weights back into PyTorch weights, with the same proof.

    python weights_convert/paddle2torch.py --arch resnet50 --weights resnet50.pdparams --out resnet50.pth
    python weights_convert/paddle2torch.py --arch stdc2_seg --weights best.safetensors --out stdc2.pth --source plain_bn

--weights is .pdparams, .safetensors, or a checkpoint (.safetensors) of a project's train.py. What torch2paddle.py left
out is put back from the .left_out.safetensors beside it: torch -> paddle -> torch gives every bit back. Without that
file the counters of batches are 0, and tensors that the network never uses are missing (load with strict=False).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from weights_convert.archs import Arch, find_arch
from weights_convert.conversion import Conversion, Options, check_tensors, read_paddle_weights, start
from weights_convert.output import TORCH_OUT_SUFFIXES, left_out_path, require_out, write_proven
from weights_convert.weight_files import read_as_stored

import numpy as np

COUNTER = "num_batches_tracked"


def convert_back(
    arch: Arch, weights: Path, out: Path, options: Options, licence: str | None = None
) -> tuple[Conversion, list[Path], list[str]]:
    """Converts a Paddle weight file and proves it; arguments as `torch2paddle.convert`.

    Returns:
        The conversion with its proof, the files written, and the names of tensors that could not be put back.

    Raises:
        UserError: A file cannot be used, or the networks differ; then nothing is written.
    """
    require_out(out, TORCH_OUT_SUFFIXES, weights)
    tensors = read_paddle_weights(weights)
    conversion = start(arch, tensors, paddle_side=True, options=options)
    check_tensors(tensors, conversion.target_network.shapes(), weights)
    conversion.target_network.load(tensors)
    restored = conversion.pairing.to_source(tensors, _left_out(conversion, left_out_path(weights)))
    shapes = conversion.source_network.shapes()
    for name in shapes:
        if name.endswith(COUNTER) and name not in restored:
            restored[name] = np.zeros((), np.int64)
    conversion.source_network.load(restored)
    conversion.prove_and_print(options.onnx)
    ordered = {name: restored[name] for name in shapes if name in restored}
    absent = [name for name in shapes if name not in restored]
    return conversion, write_proven(conversion, out, ordered, None, weights, licence), absent


def _left_out(conversion: Conversion, path: Path) -> dict[str, np.ndarray]:
    """What torch2paddle.py put aside for these networks; nothing if the file is not there."""
    if not path.is_file():
        return {}
    tensors = read_as_stored(path)
    shapes = conversion.source_network.shapes()
    for name, value in tensors.items():
        if shapes.get(name) != value.shape:
            raise UserError(
                f"{path}: '{name}' {value.shape} is no tensor of {conversion.source.title}: "
                f"choose another --source, or remove the file"
            )
    return tensors


def main() -> None:
    """The command."""
    args = _parse_args()
    options = Options(args.source, args.image, None, None, args.onnx)
    conversion, written, absent = convert_back(find_arch(args.arch), args.weights, args.out, options, args.licence)
    print("written: " + ", ".join(str(path) for path in written))
    if absent:
        print(f"not in it: {len(absent)} tensors that the network never uses ({absent[0]}): load with strict=False")
    print(conversion.summary())


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    weights = parser.add_argument_group("weights")
    weights.add_argument("--arch", required=True, metavar="NAME", help="what the weights are of (see torch2paddle.py)")
    weights.add_argument("--weights", required=True, type=Path, metavar="FILE", help="Paddle weights")
    weights.add_argument("--source", metavar="NAME", help="whose names the result has (default: the list's first)")
    proof = parser.add_argument_group("proof")
    proof.add_argument("--onnx", action="store_true", help="ask ONNX Runtime as a third witness")
    proof.add_argument("--image", type=Path, metavar="FILE", help="its real image (default: one of data/camvid)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, metavar="FILE", help=", ".join(TORCH_OUT_SUFFIXES))
    output.add_argument("--licence", metavar="TEXT", help="of the weights, for the card (default: not known)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
