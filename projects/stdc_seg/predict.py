"""Predicts images: class ids, ids in colour, and the colours over the image.

    python predict.py --weights output/<run>/best.safetensors --input street.jpg --output out
    python predict.py --weights output/<run>/best_export/model.onnx --input folder more.png --output out
    python predict.py --weights W.safetensors --input data/cityscapes/leftImg8bit/test --output out --format cityscapes

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
--format cityscapes writes <city>_<sequence>_<frame>_pred_labelIds.png instead, alone, as the evaluation server and
cityscapesScripts take it: images must be 1024x2048 and named as in the data set.

Folders are searched with their subfolders, which --output mirrors. Runs in ONNX Runtime on a CPU where it is installed
(a checkpoint is then exported first, once, see export.py), else in Paddle.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.images.outputs import (
    CITYSCAPES_ENDING,
    by_stem,
    cityscapes_name,
    find_jobs,
    predict,
    require_cityscapes_size,
)
from common.labels import labels_of_format
from common.samples.list_dataset import require_sides
from stdc_seg.data.transforms import normalize
from stdc_seg.export import current_onnx
from stdc_seg.inference import ModelInfo, Network, OnnxNetwork, PaddleNetwork, as_model, read_checkpoint_info
from stdc_seg.protocol import EvalProtocol, class_scores, smallest_scale

import numpy as np
import paddle

FORMATS = {"cityscapes": ("cityscapes",)}
"""Label sets whose networks can write a format."""


class Predictor:
    """Images in, train ids out, as evaluation computes them.

    Args:
        network: The network in one of its runtimes.
        info: What the weight file says about its input.
        input_scale: Factor on the image's sides before the network; None takes the weight file's.

    Raises:
        UserError: An `input_scale` that is not in (0, 4].
    """

    def __init__(self, network: Network, info: ModelInfo, input_scale: float | None = None):
        self.info = info
        self._model = as_model(network)
        scale = info.input_scale if input_scale is None else input_scale
        self._protocol = EvalProtocol(scale, scales=(1.0,), flip=False)

    def require_size(self, path: Path, size: tuple[int, int]) -> None:
        """Raises UserError where an image of (height, width) is too small for the network."""
        require_sides(path, size, smallest_scale(size, self._protocol))

    @paddle.no_grad()
    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W)."""
        images = paddle.to_tensor(normalize(image, self.info.mean, self.info.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(self._model, images, image.shape[:2], self._protocol)
        return scores.argmax(axis=1)[0].numpy().astype(np.uint8)


def open_predictor(weights: str, runtime: str | None = None, input_scale: float | None = None) -> Predictor:
    """Loads weights (.safetensors or an exported .onnx) into a runtime, by default the fastest that is there.

    Raises:
        UserError: Weights missing, damaged, of another kind, or not for this runtime.
    """
    is_onnx = Path(weights).suffix == ".onnx"
    if not is_onnx:
        info = read_checkpoint_info(weights)  # refuses what is no checkpoint, before anything is exported
    runtime = runtime or _default_runtime(is_onnx)
    if runtime == "onnx":
        network = OnnxNetwork(weights if is_onnx else current_onnx(weights))
        return Predictor(network, network.info, input_scale)
    if is_onnx:
        raise UserError(f"{weights}: --runtime paddle needs the checkpoint (.safetensors), not its ONNX export")
    return Predictor(PaddleNetwork(weights), info, input_scale)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    is_cityscapes = args.format == "cityscapes"
    jobs = find_jobs(args.input, args.output, cityscapes_name if is_cityscapes else by_stem)
    predictor = open_predictor(args.weights, args.runtime, args.input_scale)
    labels = None
    if args.format != "ids":
        labels = labels_of_format(args.format, FORMATS[args.format], predictor.info.class_names)
        require_cityscapes_size(jobs)
    start = time.perf_counter()
    predict(predictor, jobs, labels, CITYSCAPES_ENDING if is_cityscapes else ".png")
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"written: {len(jobs)} predictions to {args.output} ({milliseconds:.0f} ms per image, files included)")


def _default_runtime(is_onnx: bool) -> str:
    on_cpu = paddle.device.get_device() == "cpu"
    needed = ("onnxruntime",) if is_onnx else ("onnxruntime", "paddle2onnx")
    installed = all(importlib.util.find_spec(name) for name in needed)
    return "onnx" if is_onnx or (on_cpu and installed) else "paddle"


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors, or export, .onnx")
    input_scale_help = "factor on the image's sides before the network: 0.5, 0.75, 1 (default: the run's)"
    add("--input-scale", type=float, metavar="X", help=input_scale_help)
    add = parser.add_argument_group("data and output").add_argument
    add("--input", required=True, type=Path, nargs="+", metavar="PATH", help="images, and folders of images")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    format_help = "ids writes three files per image, cityscapes one, for the evaluation server (default: ids)"
    add("--format", choices=("ids", *FORMATS), default="ids", help=format_help)
    add = parser.add_argument_group("speed and memory").add_argument
    runtime_help = "runtime of the network (default: onnx on a CPU where it is installed, else paddle)"
    add("--runtime", choices=("paddle", "onnx"), help=runtime_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
