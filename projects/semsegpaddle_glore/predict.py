"""Predicts images: class ids, ids in colour, and the colours over the image.

    python predict.py --weights output/<run>/best.safetensors --input street.jpg --output out
    python predict.py --weights output/<run>/best_export/model.onnx --input folder more.png --output out
    python predict.py --weights W.safetensors --input data/cityscapes/leftImg8bit/test --output out --format cityscapes
    python predict.py --weights W.safetensors --input data/ade20k/images/validation --output out --format ade

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
--format cityscapes writes <city>_<sequence>_<frame>_pred_labelIds.png instead, alone, as the evaluation server and
cityscapesScripts take it: images must be 1024x2048 and named as in the data set. --format ade writes <stem>.png
alone, with the values of ADE20K's own labels: 1 to 150 (0 would be nothing).

Folders are searched with their subfolders, which --output mirrors. Images are predicted as the run was evaluated: its
windows, scales and flip. A checkpoint runs in Paddle, an exported model.onnx in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common.cli import CommandParser, run_command
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
from semsegpaddle_glore.data.transforms import normalize
from semsegpaddle_glore.inference import (
    ModelInfo,
    Network,
    OnnxNetwork,
    PaddleNetwork,
    as_model,
    read_checkpoint_info,
)
from semsegpaddle_glore.processes import require_gpu
from semsegpaddle_glore.protocol import class_scores, smallest_scale

import numpy as np

FORMATS = {"cityscapes": ("cityscapes",), "ade": ("ade20k",)}
"""Label sets whose networks can write a format."""


class Predictor:
    """Images in, train ids out, as evaluation computes them.

    Args:
        network: The network in one of its runtimes.
        info: What the weight file says about its input and protocol.
    """

    def __init__(self, network: Network, info: ModelInfo):
        self.info = info
        self._model = as_model(network)
        self._protocol = info.eval_protocol()

    def require_size(self, path: Path, size: tuple[int, int]) -> None:
        """Raises UserError where an image of (height, width) is too small for the network."""
        require_sides(path, size, smallest_scale(size, self._protocol))

    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W)."""
        images = normalize(image, self.info.mean, self.info.std)[None]  # (1, 3, H, W)
        scores = class_scores(self._model, images, image.shape[:2], self._protocol)
        return scores[0].argmax(axis=0).astype(np.uint8)


def open_predictor(weights: str) -> Predictor:
    """Loads a checkpoint (.safetensors) into Paddle or an exported .onnx into ONNX Runtime.

    Raises:
        UserError: Weights missing, damaged or of another kind.
    """
    if Path(weights).suffix == ".onnx":
        network = OnnxNetwork(weights)
        return Predictor(network, network.info)
    info = read_checkpoint_info(weights)
    return Predictor(PaddleNetwork(weights), info)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    is_cityscapes = args.format == "cityscapes"
    if args.use_gpu:
        require_gpu()
    jobs = find_jobs(args.input, args.output, cityscapes_name if is_cityscapes else by_stem)
    predictor = open_predictor(args.weights)
    labels = None
    if args.format != "ids":
        labels = labels_of_format(args.format, FORMATS[args.format], predictor.info.class_names)
    if is_cityscapes:
        require_cityscapes_size(jobs)
    start = time.perf_counter()
    predict(predictor, jobs, labels, CITYSCAPES_ENDING if is_cityscapes else ".png")
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"written: {len(jobs)} predictions to {args.output} ({milliseconds:.0f} ms per image, files included)")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors, or export, .onnx")
    add("--input", required=True, type=Path, nargs="+", metavar="PATH", help="images, and folders of images")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    format_help = "ids writes three files per image, cityscapes and ade one, for the evaluation server (default: ids)"
    add("--format", choices=("ids", *FORMATS), default="ids", help=format_help)
    add("--use_gpu", action="store_true", help="stop unless a checkpoint can run on a GPU")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
