"""Exports a trained network as a Paddle inference model and as ONNX, and keeps only what computes the same.

    python export.py --weights output/<run>/best.safetensors                 # into output/<run>/best_export/
    python export.py --weights W.safetensors --formats onnx --output deploy
    python export.py --weights W.safetensors --size 1024 2048                # compared and timed at this size

Writes model.json + model.pdiparams + model.yaml (Paddle) and model.onnx. Both take `images`, normalised float32
(B, 3, H, W) with any B and any H, W from 65, and give `logits` (B, num_classes, H, W); argmax is the caller's. Mean,
std, channel order, scale, class names, palette and the run's protocol are in model.yaml and in the metadata of the ONNX
file.

Each step runs in a process of its own, because exporters end by abort() and exit(-1). The results are run again and
compared with the network at --size (default: the training crop) and at two others, one of them odd, which no stride and
no pyramid grid divides; a difference leaves no file behind.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, run_command
from common.config.typed import config_from_text
from semsegpaddle_glore.checkpoint import read_state
from semsegpaddle_glore.config import Config
from semsegpaddle_glore.inference import (
    InferenceNetwork,
    Network,
    OnnxNetwork,
    PaddleNetwork,
    read_checkpoint_info,
)
from semsegpaddle_glore.networks import load_network
from semsegpaddle_glore.protocol import SMALLEST_INPUT

import numpy as np
import paddle
import yaml

FILES = {"paddle": ("model.pdiparams", "model.yaml", "model.json"), "onnx": ("model.onnx",)}
OTHER_SHAPES = ((2, 3, 97, 161), (1, 3, 128, 96))  # sides that no stride divides, and that each does; two images
MAX_DIFFERENCE, MIN_AGREEMENT_PERCENT = 1e-4, 99.99
OPSET = 13
TIMED_RUNS = 3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One format against the dygraph network, on one input.

    Attributes:
        format: "dygraph" (against itself, for its time), "paddle" or "onnx".
        size: Input (height, width).
        max_difference: Largest difference of two logits, relative to the largest absolute logit.
        agreement_percent: Share of pixels with the same argmax.
        latency_ms: Median time of an image.
    """

    format: str
    size: tuple[int, int]
    max_difference: float
    agreement_percent: float
    latency_ms: float

    @property
    def agrees(self) -> bool:
        """Within the limits; NaN is not."""
        return self.max_difference <= MAX_DIFFERENCE and self.agreement_percent >= MIN_AGREEMENT_PERCENT


def default_folder(weights: str | os.PathLike) -> Path:
    """Where exports go when nothing else is said: `<name>_export` beside the weights."""
    return Path(weights).with_name(f"{Path(weights).stem}_export")


def export(
    weights: str | os.PathLike, output: Path, formats: Sequence[str], size: tuple[int, int] | None = None
) -> list[Comparison]:
    """Exports, compares, and only then gives the files their names in `output`.

    Returns:
        The comparisons, dygraph's own time first.

    Raises:
        UserError: The checkpoint cannot be read, an exporter failed, or its result is not the network. Then `output` is
            what it was.
    """
    state = read_state(weights)
    size = size or config_from_text(Config, state.config_text, f"config in {weights}").augment.crop_size
    if min(size) < SMALLEST_INPUT:
        raise UserError(f"--size {size[0]} {size[1]}: each side must be at least {SMALLEST_INPUT}")
    weights = str(Path(weights).resolve())
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export_", dir=output) as folder:
            _run_isolated("write_paddle", weights, folder)
            if "onnx" in formats:
                _run_isolated("write_onnx", weights, folder)
            _run_isolated("write_comparison", weights, folder, list(formats), list(size))
            rows = json.loads((Path(folder) / "comparison.json").read_text())
            comparisons = [Comparison(**{**row, "size": tuple(row["size"])}) for row in rows]
            require_agreement(comparisons)
            for name in (name for form in formats for name in FILES[form]):
                _publish(Path(folder) / name, output / name)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # another process wrote into it meanwhile
                output.rmdir()
        raise
    return comparisons


def write_paddle(weights: str, folder: str) -> None:
    """Worker: writes model.json, model.pdiparams and model.yaml, with free batch, height and width."""
    spec = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    network = paddle.jit.to_static(load_network(weights), input_spec=[spec], full_graph=True)
    paddle.jit.save(network, str(Path(folder) / "model"))
    info = dataclasses.asdict(read_checkpoint_info(weights))
    plain = json.loads(json.dumps(info))  # tuples become lists
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)
    (Path(folder) / "model.yaml").write_text(text, encoding="utf-8")


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


def compare(networks: dict[str, Network], shape: tuple[int, int, int, int]) -> list[Comparison]:
    """Runs all networks in turn on one random input of `shape`, and compares them with the first."""
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    logits = {}
    for _ in range(1 + TIMED_RUNS):
        for name, network in networks.items():
            start = time.perf_counter()
            logits[name] = network.logits(images)
            seconds[name].append(time.perf_counter() - start)
    reference = next(iter(logits.values()))
    rows = []
    for name, values in logits.items():
        if values.shape != reference.shape:
            raise UserError(f"{name} gives logits of shape {values.shape}, the network {reference.shape}")
        difference = float(np.abs(values - reference).max() / np.abs(reference).max())
        agreement = 100 * float((values.argmax(axis=1) == reference.argmax(axis=1)).mean())
        latency = 1000 * float(np.median(seconds[name][1:])) / shape[0]  # the first run builds caches
        rows.append(Comparison(name, shape[2:], difference, agreement, latency))
    return rows


def require_agreement(comparisons: list[Comparison]) -> None:
    """Raises UserError naming the worst of the comparisons that do not agree."""
    wrong = [row for row in comparisons if not row.agrees]
    if wrong:
        row = max(wrong, key=lambda row: np.nan_to_num(row.max_difference, nan=np.inf))
        raise UserError(
            f"the {row.format} export is not the network: at {row.size[0]}x{row.size[1]} logits differ by "
            f"{row.max_difference:.2g} of their range (limit {MAX_DIFFERENCE:g}), argmax agrees on "
            f"{row.agreement_percent:.3f} % (limit {MIN_AGREEMENT_PERCENT} %): nothing is kept; are "
            f"the installed versions those of requirements.txt?"
        )


def print_table(comparisons: list[Comparison]) -> None:
    """Prints a line per format and size."""
    print(f"{'format':<8} {'size':>10} {'max diff':>9} {'argmax same':>12} {'ms/image':>11}")
    for row in comparisons:
        size = f"{row.size[0]}x{row.size[1]}"
        scores = f"{row.max_difference:9.1e} {row.agreement_percent:10.4f} %"
        print(f"{row.format:<8} {size:>10} {scores} {row.latency_ms:11.1f}")


def _run_isolated(stage: str, *args: Any) -> None:
    """Calls one of the workers above in a new process; raises UserError if that does not end well."""
    result = subprocess.run(_worker_command(stage, args), capture_output=True, text=True, errors="replace")
    if result.returncode == 0:
        return
    code = result.returncode
    end = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line] or lines or ["it said nothing"]
    last = telling[-1].removeprefix("error: ")
    raise UserError(f"export step {stage} {end}: {last[:300]} (no file was written)")


def _worker_command(stage: str, args: Sequence[Any]) -> list[str]:
    code = (
        "import json, sys; from common.cli import run_command; from semsegpaddle_glore import export; "
        "run_command(lambda: getattr(export, sys.argv[1])(*json.loads(sys.argv[2])))"
    )
    return [sys.executable, "-P", "-c", code, stage, json.dumps(args)]


def _publish(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def main() -> None:
    """The command."""
    args = _parse_args()
    output = args.output or default_folder(args.weights)
    size = tuple(args.size) if args.size else None
    comparisons = export(args.weights, output, args.formats, size)
    print_table(comparisons)
    print("written: " + ", ".join(str(output / name) for form in args.formats for name in FILES[form]))


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    output_help = "folder for the files (default: <name of the weights>_export beside them)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    formats_help = "what is written (default: both)"
    parser.add_argument("--formats", nargs="+", choices=list(FILES), default=list(FILES), help=formats_help)
    size_help = "height and width in pixels that are compared and timed (default: the training crop's)"
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
