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
import time
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation, plan_scores, print_scores
from common.runs.provenance import root_of_weights
from common.samples.list_dataset import ListDataset, require_sides
from common.samples.roots import DataConfig, draw_toy_data, open_list, with_root
from common.samples.stream import require_valid_pixels
from common.samples.survey import require_image_sides
from encnet_single_gpu import processes
from encnet_single_gpu.checkpoint import load_network, read_experiment
from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.losses import mean_cross_entropy
from encnet_single_gpu.protocol import PROTOCOLS, EvalProtocol, class_scores, smallest_scale

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: ListDataset, data: DataConfig, protocol: EvalProtocol, description: str = "evaluate"
) -> Evaluation:
    """Evaluates every image once, in float32; labels are never resized; the model's mode is kept."""
    start = time.perf_counter()
    device = next(model.parameters()).device
    matrix = ConfusionMatrix(dataset.labels.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = model.training
    model.eval()
    for index in track(range(len(dataset)), description, "image", keep=False):
        sample = dataset.load(index)
        require_sides(dataset.pairs[index].image, sample.label.shape, smallest_scale(sample.label.shape, protocol))
        image = torch.from_numpy(normalize(sample.image, data.mean, data.std)).unsqueeze(0)  # (1, 3, H, W)
        try:
            scores = class_scores(model, image.to(device), sample.label.shape, protocol)
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


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    processes.join()
    state, config = read_experiment(args.weights)
    root = args.data or root_of_weights(args.weights, config.data.root)
    draw_toy_data(config.data, root)
    data = with_root(config.data, root)
    protocol = EvalProtocol.named(args.protocol, max(config.augment.crop_size), data.mean, data.std)
    scores = plan_scores(args.weights, state.step, args.split, args.output, args.protocol)
    lists = {"train": data.train_list, "val": data.val_list}
    dataset = open_list(data, lists.get(args.split, f"{args.split}.txt"))
    processes.say(f"evaluating {dataset.path}")
    require_image_sides(dataset, lambda size: smallest_scale(size, protocol))
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
    parser.add_argument("--protocol", choices=PROTOCOLS, default="ss", help="evaluation protocol (default: ss)")
    output_help = (
        "folder for the scores (default: eval_<split>_<protocol> beside the weights; of test, the run's own files)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
