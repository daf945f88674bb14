"""A backbone that `weights_convert/torch2paddle.py --features` wrote: `model.backbone=FILE.py`.

The file is Python and is run: because its path was given as the backbone, or stands in the config of a checkpoint that
is loaded. Its channels and strides are read from its constants before.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

from common.cli import UserError

from paddle import nn

CONSTANTS = ("OUT_CHANNELS", "STRIDES")


def is_converted(name: str) -> bool:
    """Whether a backbone is a file of torch2paddle.py."""
    return name.endswith(".py")


def build_converted(path: str, output_stride: int | None) -> nn.Layer:
    """Builds the backbone of a file; `model.backbone_weights` fills it, from the file's own .safetensors or .pdparams.

    Its batch norms are not synchronised between processes on GPUs: `updates.py` refuses that.

    Raises:
        UserError: No such file, none of torch2paddle.py's, or of another output stride.
    """
    constants = _constants(Path(path))
    channels, strides = (tuple(constants[name]) for name in CONSTANTS)
    if len(channels) < 2:
        raise UserError(f"model.backbone {path}: gives one feature, two are needed (the aux head's): convert more")
    if output_stride not in (None, strides[-1]):
        raise UserError(
            f"model.output_stride {output_stride} is not that of {path} ({strides[-1]}): set it to null, or convert "
            f"the network again with --module timm:NAME:output_stride={output_stride}"
        )
    spec = importlib.util.spec_from_file_location(f"converted_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    kinds = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == spec.name]
    backbone = kinds[-1]()  # the whole network is the last class
    backbone.out_channels, backbone.strides, backbone.output_stride = channels, strides, strides[-1]
    backbone.converted_from = path
    return backbone


def _constants(path: Path) -> dict[str, list[int]]:
    if not path.is_file():
        raise UserError(f"no backbone file {path}: torch2paddle.py --module timm:NAME --features --out NAME writes one")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"model.backbone {path}: no Python file ({error}): convert the network again") from None
    found: dict[str, list[int]] = {}
    for line in tree.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) and line.targets[0].id in CONSTANTS:
            found[line.targets[0].id] = ast.literal_eval(line.value)
    if set(found) != set(CONSTANTS):
        raise UserError(
            f"model.backbone {path}: does not say OUT_CHANNELS and STRIDES, so it is no backbone of torch2paddle.py: "
            f"convert the network with --features"
        )
    return found
