"""Evaluates a network under one named protocol.

    python eval.py --weights output/<run>/best.safetensors                       # ss, as in training
    python eval.py --weights W.safetensors --protocol encoding_ms_flip           # as PyTorch-Encoding reports ADE20K
    python eval.py --weights W.safetensors --data data/camvid --split val --output eval_out

    ss                 the whole image at its own size
    encoding_ss        the longer side resized to a base size (520 for a crop of 480), windows of the crop, 2/3 apart
    encoding_ms_flip   the same at 0.5, 0.75, 1, 1.25, 1.5 and 1.75 of the base size, each with its mirror image

Prints the scores and writes eval.csv and per_class.csv into --output (default: `eval_<split>_<protocol>` beside the
weights). The score of --split test goes into the run's own eval.csv: once, with the checkpoint that was best on val.
Of a run with a running mean of the weights, best.safetensors holds that mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import time
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation, plan_scores, print_scores
from common.samples.list_dataset import ListDataset, require_sides
from common.samples.stream import require_valid_pixels
from encnet_single_gpu.config import DataConfig
from encnet_single_gpu.data.dataset import open_list, with_root
from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.inference import load_network, read_experiment
from encnet_single_gpu.losses import mean_cross_entropy
from encnet_single_gpu.memory import memory_errors_explained
from encnet_single_gpu.runs import require_one_process

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ENCODING_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
ENCODING_BASE = (520, 480)  # base and crop size in PyTorch-Encoding; other crops keep the proportion
PROTOCOLS = ("ss", "encoding_ss", "encoding_ms_flip")
LARGEST_EXPONENT = 80.0  # the sum of some exp of it is still a finite float32


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How a number is measured: the same value for validation in training and for eval.py, stored with every number.

    Scores are enlarged to the label's size; labels are never resized.

    Attributes:
        base_size: Pixels of the image's longer side at scale 1; None: the image as it is, whole, once.
        crop_size: Pixels of the square windows; smaller images are padded to it with black.
        scales: Factors on `base_size`.
        flip: Whether each window is also seen mirrored.

    Reference: MultiEvalModule in encoding/models/base.py of github zhanghang1989/PyTorch-Encoding. Logits of a window
    and of its mirror image are added, exp is taken, windows are averaged where they overlap, and the results of all
    scales are resized (align_corners=True) and added.
    Deviation: exponents end at `LARGEST_EXPONENT`, so nothing overflows.
    """

    base_size: int | None = None
    crop_size: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def named(cls, name: str, crop_size: int) -> EvalProtocol:
        """One of `PROTOCOLS`, for a network trained on crops of this size."""
        if name == "ss":
            return cls()
        base_size = round(crop_size * ENCODING_BASE[0] / ENCODING_BASE[1])
        several = name == "encoding_ms_flip"
        return cls(base_size, crop_size, ENCODING_SCALES if several else (1.0,), several)

    @property
    def memory_advice(self) -> str:
        """What helps where an image does not fit into memory."""
        if self.base_size is None:
            return (
                "the network sees the whole image: give eval.py and predict.py --protocol encoding_ss, which takes "
                "windows; for training leave the image out of the list of validation images and go on with --resume"
            )
        return "windows are small, but the classes' scores of the whole image do not fit: make the image smaller"

    def __str__(self) -> str:
        if self.base_size is None:
            return "ss, whole image"
        scales = "ss" if self.scales == (1.0,) else "ms " + "/".join(f"{s:g}" for s in self.scales)
        flip = ", flip" if self.flip else ""
        return f"{scales}{flip}, long side {self.base_size}, windows {self.crop_size} (PyTorch-Encoding)"


def class_scores(
    model: nn.Module, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol, black: torch.Tensor
) -> torch.Tensor:
    """Scores whose argmax is the prediction, and whose softmax are probabilities.

    Whole image: the logits. Otherwise the logarithm of what `EvalProtocol` says is added up.

    Shapes: image (1, 3, H, W) normalised, black (3,) its value for black -> (1, num_classes, *size).

    Raises:
        UserError: Too little memory.
    """
    with memory_errors_explained(protocol.memory_advice):
        return _class_scores(model, image, size, protocol, black)


def _class_scores(
    model: nn.Module, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol, black: torch.Tensor
) -> torch.Tensor:
    if protocol.base_size is None:
        return resize(model(image).float(), size, align_corners=False)
    height, width = image.shape[2:]
    total = None
    for scale in protocol.scales:
        longer = math.ceil(protocol.base_size * scale)
        shorter = int(min(height, width) * longer / max(height, width) + 0.5)
        scaled_size = (longer, shorter) if height > width else (shorter, longer)
        scaled = resize(image, scaled_size, align_corners=True)
        scores = resize(window_scores(model, scaled, protocol, black), size, align_corners=True)
        total = scores if total is None else total + scores
    return torch.log(total.clamp(min=torch.finfo(total.dtype).tiny))


def window_scores(model: nn.Module, image: torch.Tensor, protocol: EvalProtocol, black: torch.Tensor) -> torch.Tensor:
    """The mean of exp(logits) over the windows that see a pixel. (1, 3, H, W) -> (1, num_classes, H, W)."""
    crop, stride = protocol.crop_size, int(protocol.crop_size * 2 / 3)
    height, width = image.shape[2:]
    full = pad_to(image, (max(height, crop), max(width, crop)), black)
    total = seen = None
    for top, left in itertools.product(*(window_starts(side, crop, stride) for side in full.shape[2:])):
        part = full[:, :, top : top + crop, left : left + crop]
        window = pad_to(part, (crop, crop), black)
        logits = model(window).float()
        if protocol.flip:
            logits = logits + model(window.flip(3)).float().flip(3)
        scores = logits.clamp(max=LARGEST_EXPONENT).exp()
        if total is None:
            total = scores.new_zeros(1, scores.shape[1], *full.shape[2:])
            seen = scores.new_zeros(1, 1, *full.shape[2:])
        rows, columns = slice(top, top + part.shape[2]), slice(left, left + part.shape[3])
        total[:, :, rows, columns] += scores[:, :, : part.shape[2], : part.shape[3]]
        seen[:, :, rows, columns] += 1
    return (total / seen)[:, :, :height, :width]


def window_starts(side: int, crop: int, stride: int) -> range:
    """Where windows begin: every `stride` pixels until one reaches the end; the last may stick out."""
    return range(0, math.ceil((side - crop) / stride) * stride + 1, stride)


def pad_to(image: torch.Tensor, size: tuple[int, int], black: torch.Tensor) -> torch.Tensor:
    """Pads at the bottom and on the right. (1, 3, h, w) -> (1, 3, *size)."""
    if image.shape[2:] == size:
        return image
    padded = black.view(1, 3, 1, 1).expand(1, 3, *size).clone()
    padded[:, :, : image.shape[2], : image.shape[3]] = image
    return padded


def resize(x: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Bilinear. (B, C, h, w) -> (B, C, *size)."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: ListDataset, data: DataConfig, protocol: EvalProtocol, description: str = "evaluate"
) -> Evaluation:
    """Evaluates every image once, in float32; labels are never resized; the model's mode is kept."""
    start = time.perf_counter()
    device = next(model.parameters()).device
    matrix = ConfusionMatrix(dataset.labels.num_classes)
    black = black_of(data.mean, data.std, device)
    loss_sum, valid_pixels = 0.0, 0
    was_training = model.training
    model.eval()
    for index in track(range(len(dataset)), description, "image", keep=False):
        sample = dataset.load(index)
        if protocol.base_size is None:
            require_sides(dataset.pairs[index].image, sample.label.shape, 1.0)
        image = torch.from_numpy(normalize(sample.image, data.mean, data.std)).unsqueeze(0)  # (1, 3, H, W)
        try:
            scores = class_scores(model, image.to(device), sample.label.shape, protocol, black)
        except UserError as error:
            raise UserError(f"{dataset.pairs[index].image}: {error}") from None
        matrix.update(sample.label, scores.argmax(dim=1)[0].cpu().numpy())
        label = torch.from_numpy(sample.label[None].astype(np.int64)).to(device)
        image_loss, image_pixels = mean_cross_entropy(scores, label)
        loss_sum, valid_pixels = loss_sum + image_loss, valid_pixels + image_pixels
    model.train(was_training)
    require_valid_pixels(valid_pixels, [pair.label for pair in dataset.pairs])
    loss = loss_sum / valid_pixels
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def black_of(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """What a black pixel is after normalisation. Shape (3,)."""
    return torch.from_numpy(normalize(np.zeros((1, 1, 3), np.uint8), mean, std).reshape(3)).to(device)


def main() -> None:
    """The command."""
    args = _parse_args()
    require_one_process()
    state, config = read_experiment(args.weights)
    data = with_root(config.data, args.data)
    protocol = EvalProtocol.named(args.protocol, max(config.augment.crop_size))
    scores = plan_scores(args.weights, state.step, args.split, args.output, args.protocol)
    lists = {"train": data.train_list, "val": data.val_list}
    dataset = open_list(data, lists.get(args.split, f"{args.split}.txt"))
    labels = dataset.labels
    model = load_network(args.weights, labels.class_names)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate(model, dataset, data, protocol)
    print_scores(result, labels.class_names, protocol, args.split)
    scores.write(protocol, result, labels.class_names)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    parser.add_argument("--data", metavar="DIR", help="root of the data set (default: the run's own)")
    split_help = "train, val, or the name of another list in the root (default: val)"
    parser.add_argument("--split", default="val", metavar="NAME", help=split_help)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="ss", help="how it is measured (default: ss)")
    output_help = (
        "folder for the scores (default: eval_<split>_<protocol> beside the weights; of test, the run's own files)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
