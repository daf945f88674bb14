"""Exports a trained network as a Paddle inference model and as ONNX, and keeps only what computes the same.

    python export.py --weights output/<run>/best.safetensors                 # into output/<run>/best_export/
    python export.py --weights W.safetensors --formats onnx --output deploy
    python export.py --weights W.safetensors --size 768 1536                 # compared and timed at this size

Writes model.json + model.pdiparams + model.yaml (Paddle) and model.onnx. Both take `images`, normalised float32
(B, 3, H, W) of any size, and give `logits` (B, num_classes, H, W); argmax is the caller's. Mean, std, channel order,
scale, input scale, class names and palette are in model.yaml and in the ONNX file's metadata.

Each step runs in a process of its own, because exporters end by abort() and exit(-1). The results are run again and
compared with the network at --size (default: the training crop, which is the evaluation's input size in the Cityscapes
configs) and at two others, one of them odd; a difference leaves no file behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.config.typed import config_from_text
from common.weights.exported import (
    Agreement,
    Limits,
    Network,
    agreement_table,
    compare,
    default_folder,
    draft_folder,
    publish,
    require_agreement,
    run_isolated,
)
from stdc_seg.checkpoint import read_state
from stdc_seg.config import Config
from stdc_seg.inference import (
    InferenceNetwork,
    OnnxNetwork,
    PaddleNetwork,
    load_network,
    read_checkpoint_info,
)

import paddle
import yaml

FILES = {"paddle": ("model.pdiparams", "model.yaml", "model.json"), "onnx": ("model.onnx",)}
MIN_SIDE = 65  # the network's smallest image: 3 pixels at stride 32
OTHER_SHAPES = ((2, 3, 97, 161), (1, 3, 128, 96))  # sides that no stride divides, and that each does; two images
LIMITS = Limits(max_difference=1e-4, min_agreement_percent=99.99)
OPSET = 13
MODULE = "stdc_seg.export"  # whose functions run in processes of their own


def export(
    weights: str | os.PathLike,
    output: Path,
    size: tuple[int, int] | None = None,
    formats: Sequence[str] = tuple(FILES),
) -> list[Agreement]:
    """Exports, compares, and only then gives the files their names in `output`.

    Args:
        weights: A checkpoint of train.py.
        output: The folder for the files.
        size: (height, width) that is compared and timed; None is the training crop's.
        formats: Keys of `FILES`.

    Returns:
        The comparisons, dygraph's own time first.

    Raises:
        UserError: The checkpoint cannot be read, an exporter failed, or its result is not the network. Then `output` is
            what it was.
    """
    state = read_state(weights)
    size = size or config_from_text(Config, state.config_text, f"config in {weights}").augment.crop_size
    if min(size) < MIN_SIDE:
        raise UserError(f"--size {size[0]} {size[1]}: each side must be at least {MIN_SIDE}")
    weights = str(Path(weights).resolve())
    with draft_folder(output) as folder:
        run_isolated(MODULE, "write_paddle", weights, str(folder))
        if "onnx" in formats:
            run_isolated(MODULE, "write_onnx", weights, str(folder))
        run_isolated(MODULE, "write_comparison", weights, str(folder), list(formats), list(size))
        rows = json.loads((folder / "comparison.json").read_text())
        agreements = [Agreement(**{**row, "size": tuple(row["size"])}) for row in rows]
        require_agreement(agreements, LIMITS)
        for name in (name for form in formats for name in FILES[form]):
            publish(folder / name, output / name)
    return agreements


def current_onnx(weights: str | os.PathLike) -> Path:
    """The ONNX export of a checkpoint in its default folder, made first if it is missing or of other weights.

    Raises:
        UserError: See `export`.
    """
    path = default_folder(weights) / FILES["onnx"][0]
    if path.is_file():
        try:
            stored = OnnxNetwork(path).info
        except UserError:
            stored = None  # damaged or of another version: made again
        if stored is not None and stored.weights_sha256 == read_checkpoint_info(weights).weights_sha256:
            return path
    print(f"exporting {weights} to ONNX, once: {path}", flush=True)
    export(weights, path.parent, formats=("onnx",))
    return path


# twin: semsegpaddle_glore/export.py
def write_paddle(weights: str, folder: str) -> None:
    """Worker: writes model.json, model.pdiparams and model.yaml, with free batch, height and width."""
    spec = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    network = paddle.jit.to_static(load_network(weights), input_spec=[spec], full_graph=True)
    paddle.jit.save(network, str(Path(folder) / "model"))
    info = dataclasses.asdict(read_checkpoint_info(weights))
    plain = json.loads(json.dumps(info))  # tuples become lists
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)
    (Path(folder) / "model.yaml").write_text(text, encoding="utf-8")


# twin: semsegpaddle_glore/export.py
def write_onnx(weights: str, folder: str) -> None:
    """Worker: turns the Paddle model in `folder` into model.onnx, names its ends and adds the metadata."""
    import onnx
    import paddle2onnx

    path = str(Path(folder) / "model.onnx")
    program, parameters = (str(Path(folder) / name) for name in ("model.json", "model.pdiparams"))
    # The default optimize_tool calls pip to install packages.
    paddle2onnx.export(program, parameters, path, opset_version=OPSET, optimize_tool=None)
    model = onnx.load(path)
    graph = model.graph
    (end,), (start,) = graph.output, graph.input
    for node in graph.node:
        node.output[:] = ["logits" if name == end.name else name for name in node.output]
    end.name = "logits"
    for value in (start, end):
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_param, height.dim_param, width.dim_param = "batch", "height", "width"
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.helper.set_model_props(model, read_checkpoint_info(weights).to_texts())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


# twin: semsegpaddle_glore/export.py
def write_comparison(weights: str, folder: str, formats: list[str], size: list[int]) -> None:
    """Worker: runs what was exported into `folder` beside the network, and writes comparison.json."""
    networks: dict[str, Network] = {"dygraph": PaddleNetwork(weights)}
    if "paddle" in formats:
        networks["paddle"] = InferenceNetwork(folder)
    if "onnx" in formats:
        networks["onnx"] = OnnxNetwork(Path(folder) / "model.onnx")
    shapes = [(1, 3, *size), *OTHER_SHAPES]
    rows = [dataclasses.asdict(row) for shape in shapes for row in compare(networks, shape)]
    (Path(folder) / "comparison.json").write_text(json.dumps(rows))


# twin: semsegpaddle_glore/export.py
def main() -> None:
    """Runs the command."""
    args = _parse_args()
    output = args.output or default_folder(args.weights)
    size = tuple(args.size) if args.size else None
    print(agreement_table(export(args.weights, output, size, args.formats)))
    print("written: " + ", ".join(str(output / name) for form in args.formats for name in FILES[form]))


# twin: semsegpaddle_glore/export.py
def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    output_help = "folder for the files (default: <name of the weights>_export beside them)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    formats_help = "formats to write (default: both)"
    parser.add_argument("--formats", nargs="+", choices=list(FILES), default=list(FILES), help=formats_help)
    size_help = "height and width in pixels to compare and time at (default: the training crop's)"
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
