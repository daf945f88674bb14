"""Evaluates a network under one named protocol.

    python eval.py --weights output/<run>/best.safetensors                      # the run's own data and protocol
    python eval.py --weights W.safetensors --scales 0.75 1 1.25 --flip          # multi-scale and flip
    python eval.py --weights W.safetensors --data data/camvid --split val --output eval_out

Prints the scores and writes eval.csv and per_class.csv into --output (default: `eval_<split>_<protocol>` beside the
weights). Of a checkpoint with a running mean of the weights, that mean is evaluated, as in training.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from awesome_pytorch_seg.checkpoint import load_evaluated, read_state
from awesome_pytorch_seg.config import Config, DataConfig, EvalProtocol
from awesome_pytorch_seg.data.dataset import open_list, with_root
from awesome_pytorch_seg.data.transforms import normalize
from awesome_pytorch_seg.losses import mean_cross_entropy
from awesome_pytorch_seg.models import build_model
from common.cli import run_command
from common.list_dataset import ListDataset
from common.metrics import ConfusionMatrix
from common.run_log import Evaluation, RunLog, print_scores
from common.typed_config import config_from_text

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm


def class_scores(model: nn.Module, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol) -> torch.Tensor:
    """Scores whose argmax is the prediction and whose softmax are the probabilities.

    One scale without flip: the logits. Otherwise: the logarithm of the mean of the probabilities.

    Shapes: image (1, 3, H, W) normalised -> (1, num_classes, *size).
    """
    height, width = image.shape[2:]
    total, count = None, 0
    for scale in protocol.scales:
        resized = _resize(image, (round(height * scale), round(width * scale)))
        for flipped in (False, True) if protocol.flip else (False,):
            logits = model(resized.flip(3) if flipped else resized).float()
            logits = _resize(logits.flip(3) if flipped else logits, size)
            if len(protocol.scales) == 1 and not protocol.flip:
                return logits
            probs = F.softmax(logits, dim=1)
            total, count = (probs if total is None else total + probs), count + 1
    return torch.log((total / count).clamp(min=1e-12))


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: ListDataset, data: DataConfig, protocol: EvalProtocol, description: str = "evaluate"
) -> Evaluation:
    """Evaluates every picture once, in float32; labels are never resized; the model's mode is kept."""
    start = time.perf_counter()
    device = next(model.parameters()).device
    matrix = ConfusionMatrix(dataset.labels.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = model.training
    model.eval()
    for index in tqdm(range(len(dataset)), desc=description, unit="image", leave=False, disable=None):
        sample = dataset.load(index)
        image = torch.from_numpy(normalize(sample.image, data.mean, data.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(model, image.to(device), sample.label.shape, protocol)
        matrix.update(sample.label, scores.argmax(dim=1)[0].cpu().numpy())
        label = torch.from_numpy(sample.label[None].astype(np.int64)).to(device)
        image_loss, image_pixels = mean_cross_entropy(scores, label)
        loss_sum, valid_pixels = loss_sum + image_loss, valid_pixels + image_pixels
    model.train(was_training)
    loss = loss_sum / valid_pixels if valid_pixels else float("nan")
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def main() -> None:
    """The command."""
    args = _parse_args()
    state = read_state(args.weights)
    config = config_from_text(Config, state.config_text, f"config in {args.weights}")
    data = with_root(config.data, args.data)
    protocol = config.eval
    if args.scales is not None:
        protocol = dataclasses.replace(protocol, scales=tuple(args.scales))
    if args.flip:
        protocol = dataclasses.replace(protocol, flip=True)
    lists = {"train": data.train_list, "val": data.val_list}
    dataset = open_list(data, lists.get(args.split, f"{args.split}.txt"))
    labels = dataset.labels
    model = build_model(config.model.name, config.model.backbone, labels.num_classes)
    load_evaluated(args.weights, model, labels.class_names)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate(model, dataset, data, protocol)
    print_scores(result, labels.class_names, protocol, args.split)
    output = args.output or Path(args.weights).parent / f"eval_{args.split}_{protocol.short_name}"
    RunLog(output).log_eval(state.step, args.split, str(protocol), result, labels.class_names)
    print(f"written: {output}/eval.csv, {output}/per_class.csv")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of train.py (.safetensors)")
    parser.add_argument("--data", metavar="DIR", help="root of the data set (default: the run's own)")
    parser.add_argument(
        "--split", default="val", help="train, val, or the name of another list in the root (default: val)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for eval.csv and per_class.csv")
    parser.add_argument("--scales", type=float, nargs="+", metavar="S", help="multi-scale factors (default: the run's)")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    return parser.parse_args()


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear. (B, C, h, w) -> (B, C, H, W)."""
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


if __name__ == "__main__":
    run_command(main)
