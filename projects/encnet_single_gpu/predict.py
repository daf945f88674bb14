"""Predicts images: class ids, ids in colour, and the colours over the image.

    python predict.py --weights output/<run>/best.safetensors --input street.jpg --output out
    python predict.py --weights W.safetensors --input folder more.png --output out --protocol encoding_ms_flip
    python predict.py --weights output/<run>/best_export/model.onnx --input folder --output out

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
--format dataset writes one file instead, <stem>.png, with the values of the data set's own label files (ADE20K: 1 to
150). For Cityscapes it is <city>_<sequence>_<frame>_pred_labelIds.png, as its evaluation server takes it: images must
be 1024x2048 and named as in the data set.

Folders are searched with their subfolders, which --output mirrors. A checkpoint runs in PyTorch, on the GPU if there is
one, an exported model.onnx in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
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
from common.labels import LabelSet, label_set, load_custom
from common.samples.list_dataset import require_sides
from common.samples.roots import find_root
from encnet_single_gpu.checkpoint import read_experiment
from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.inference import (
    ModelInfo,
    Network,
    OnnxNetwork,
    TorchNetwork,
    as_model,
    read_checkpoint_info,
)
from encnet_single_gpu.protocol import PROTOCOLS, EvalProtocol, class_scores, smallest_scale

import numpy as np
import torch

FORMAT = "--format dataset of Cityscapes"


class Predictor:
    """Images in, train ids out, as evaluation computes them.

    Args:
        network: The network in one of its runtimes.
        info: What the weight file says about its input.
        protocol: The name of the protocol by which scores are put together.
    """

    def __init__(self, network: Network, info: ModelInfo, protocol: str = "ss"):
        self.info = info
        self._model = as_model(network)
        self._device = network.device if isinstance(network, TorchNetwork) else torch.device("cpu")
        self._protocol = EvalProtocol.named(protocol, info.crop_size, info.mean, info.std)

    def require_size(self, path: Path, size: tuple[int, int]) -> None:
        """Raises UserError where an image of (height, width) is too small for the network."""
        require_sides(path, size, smallest_scale(size, self._protocol))

    @torch.no_grad()
    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W).

        Raises:
            UserError: An image of a size that an export does not take, or too large for the memory.
        """
        images = torch.from_numpy(normalize(image, self.info.mean, self.info.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(self._model, images.to(self._device), image.shape[:2], self._protocol)
        return scores.argmax(dim=1)[0].cpu().numpy().astype(np.uint8)


def open_predictor(weights: str, protocol: str) -> Predictor:
    """Loads a checkpoint (.safetensors) into PyTorch or an exported .onnx into ONNX Runtime.

    Raises:
        UserError: Weights missing, damaged or of another kind.
    """
    if Path(weights).suffix == ".onnx":
        network = OnnxNetwork(weights)
        return Predictor(network, network.info, protocol)
    info = read_checkpoint_info(weights)
    return Predictor(TorchNetwork(weights), info, protocol)


def labels_of_files(weights: str, info: ModelInfo, data: str | None = None) -> LabelSet:
    """The label set whose files --format dataset writes; of Cityscapes labelIds, whatever the training read.

    Args:
        weights: The checkpoint or export.
        info: What it says about its classes.
        data: Root of a custom data set, with its classes.yaml; None is the root that the checkpoint was trained on.

    Raises:
        UserError: The set of the weights has other classes, or its classes.yaml is missing or wrong.
    """
    if info.dataset != "custom":
        labels = label_set("cityscapes" if info.dataset == "cityscapes_trainids" else info.dataset)
    else:
        root = data or (None if weights.endswith(".onnx") else read_experiment(weights)[1].data.root)
        folder = None if root is None else find_root(root)
        if folder is None:
            raise UserError(
                f"--format dataset: the values of a custom set stand in its classes.yaml, and there is no folder "
                f"{root or 'named in an export'}: give the root of the data set by --data DIR"
            )
        labels = load_custom(folder / "classes.yaml")
    if info.class_names != labels.class_names:
        raise UserError(
            f"--format dataset: these weights are of '{info.dataset}' but have other classes than it: use --format ids"
        )
    return labels


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    predictor = open_predictor(args.weights, args.protocol)
    labels = labels_of_files(args.weights, predictor.info, args.data) if args.format == "dataset" else None
    is_cityscapes = labels is not None and predictor.info.dataset in ("cityscapes", "cityscapes_trainids")
    name_of = (lambda image: cityscapes_name(image, FORMAT)) if is_cityscapes else by_stem
    jobs = find_jobs(args.input, args.output, name_of)
    if is_cityscapes:
        require_cityscapes_size(jobs, FORMAT)
    start = time.perf_counter()
    predict(predictor, jobs, labels, CITYSCAPES_ENDING if is_cityscapes else ".png")
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"written: {len(jobs)} predictions to {args.output} ({milliseconds:.0f} ms per image, files included)")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    weights_help = "checkpoint of train.py, .safetensors, or export, .onnx"
    add("--weights", required=True, metavar="FILE", help=weights_help)
    protocol_help = "evaluation protocol, see eval.py --help (default: ss)"
    add("--protocol", choices=PROTOCOLS, default="ss", help=protocol_help)
    add = parser.add_argument_group("data and output").add_argument
    add("--input", required=True, type=Path, nargs="+", metavar="PATH", help="images, and folders of images")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    format_help = "ids writes three files per image, dataset one, with the data set's own values (default: ids)"
    add("--format", choices=("ids", "dataset"), default="ids", help=format_help)
    data_help = "with --format dataset, root of a custom data set (default: the root of the checkpoint's training)"
    add("--data", metavar="DIR", help=data_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
