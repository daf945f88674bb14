"""Predicts images: class ids, ids in colour, and the colours over the image.

    python demo.py --model fcn32s_vgg16_voc --input-pic street.jpg              # the latest such run under output/
    python demo.py --weights output/<run>/best.safetensors --input-pic folder more.png --outdir out
    python demo.py --weights output/<run>/best_export/model.onnx --input-pic folder --outdir out
    python demo.py --weights W.safetensors --input-pic data/cityscapes/leftImg8bit/test --outdir out --format cityscapes

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
For the test servers there is one file instead:
    --format cityscapes  <city>_<sequence>_<frame>_pred_labelIds.png, the data set's label ids: images must be
                         1024x2048 and named as in the data set
    --format ade         <stem>.png, 1..150, and 0 for nothing

Folders are searched with their subfolders, which --outdir mirrors. Nothing is downloaded: --model finds weights that
were trained here.
"""

from __future__ import annotations

import argparse
import time
from difflib import get_close_matches
from pathlib import Path

from awesome_pytorch_seg.data.names import DATASETS
from awesome_pytorch_seg.data.transforms import normalize
from awesome_pytorch_seg.inference import (
    ModelInfo,
    Network,
    OnnxNetwork,
    TorchNetwork,
    as_model,
    read_checkpoint_info,
)
from awesome_pytorch_seg.models import ALIASES, MODELS
from awesome_pytorch_seg.protocol import PROTOCOLS, class_scores, smallest_scale
from awesome_pytorch_seg.runs import find_weights
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

import numpy as np
import torch

FORMATS = {"cityscapes": ("cityscapes",), "ade": ("ade20k", "ade20k_151")}
"""Label sets whose networks can write a format."""


def split_name(name: str) -> tuple[str, str | None, str]:
    """Model, backbone and data set of a name such as "fcn32s_vgg16_voc" or "enet_camvid".

    Raises:
        UserError: Its parts are not a network, one of its backbones and a data set.
    """
    datasets = [spelling for dataset in DATASETS for spelling in (dataset.name, *dataset.aliases)]
    parts = {
        "_".join(filter(None, (model, backbone, dataset))): (model, backbone, dataset)
        for model in (*MODELS, *ALIASES)
        for backbone in (None, *MODELS[ALIASES.get(model, model)].backbones)
        for dataset in datasets
    }
    if name not in parts:
        nearest = get_close_matches(name, parts, n=1)
        hint = f"did you mean '{nearest[0]}'? " if nearest else ""
        raise UserError(
            f"--model {name}: is no <network>_<backbone>_<data set> such as fcn32s_vgg16_voc or enet_camvid: {hint}"
            f"networks: {', '.join(MODELS)}; data sets: {', '.join(datasets)}"
        )
    return parts[name]


class Predictor:
    """Images in, train ids out, as evaluation of the whole image at one scale computes them.

    Args:
        network: The network in one of its runtimes.
        info: What the weight file says about its input.
    """

    def __init__(self, network: Network, info: ModelInfo):
        self.info = info
        self._model = as_model(network)
        self._device = network.device if isinstance(network, TorchNetwork) else torch.device("cpu")
        self._protocol = PROTOCOLS["ss"]

    def require_size(self, path: Path, size: tuple[int, int]) -> None:
        """Raises UserError where an image of (height, width) is too small for the network."""
        require_sides(path, size, smallest_scale(size, self._protocol))

    @torch.no_grad()
    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W).

        Raises:
            UserError: An image of a size that an export does not take.
        """
        images = torch.from_numpy(normalize(image, self.info.mean, self.info.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(self._model, images.to(self._device), image.shape[:2], self._protocol)
        return scores.argmax(dim=1)[0].cpu().numpy().astype(np.uint8)


def open_predictor(weights: Path) -> Predictor:
    """Loads a checkpoint (.safetensors) into PyTorch or an exported .onnx into ONNX Runtime.

    Raises:
        UserError: Weights missing, damaged or of another kind.
    """
    if weights.suffix == ".onnx":
        network = OnnxNetwork(weights)
        return Predictor(network, network.info)
    info = read_checkpoint_info(weights)
    return Predictor(TorchNetwork(weights), info)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    is_cityscapes = args.format == "cityscapes"
    name_of = cityscapes_name if is_cityscapes else by_stem
    jobs = find_jobs(args.input_pic, args.outdir, name_of, "--input-pic", "--outdir")
    if is_cityscapes:
        require_cityscapes_size(jobs)
    weights = args.weights or find_weights(*split_name(args.model), Path("output"))
    predictor = open_predictor(weights)
    labels = None
    if args.format != "ids":
        labels = labels_of_format(args.format, FORMATS[args.format], predictor.info.class_names)
    start = time.perf_counter()
    predict(predictor, jobs, labels, CITYSCAPES_ENDING if is_cityscapes else ".png")
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"{weights}: {len(jobs)} predictions in {args.outdir} ({milliseconds:.0f} ms per image, files included)")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    weights_help = "checkpoint of train.py, .safetensors, or export, .onnx (default: that of --model)"
    which.add_argument("--weights", type=Path, metavar="FILE", help=weights_help)
    model_help = "<network>_<backbone>_<data set>: the latest such run under output/ (default: that of --weights)"
    which.add_argument("--model", metavar="NAME", help=model_help)
    images = "images, and folders of images"
    parser.add_argument("--input-pic", required=True, type=Path, nargs="+", metavar="PATH", help=images)
    outdir = "folder for the results (default: output/demo)"
    parser.add_argument("--outdir", type=Path, default=Path("output/demo"), metavar="DIR", help=outdir)
    format_help = "ids writes three files per image, cityscapes and ade one, for the test server (default: ids)"
    parser.add_argument("--format", choices=("ids", *FORMATS), default="ids", help=format_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
