"""Evaluates STDC-Seg under one named protocol.

    python eval.py --weights output/<run>/best.safetensors                      # the run's own data and protocol
    python eval.py --weights W.safetensors --input-scale 0.75                   # "Seg75": images at 0.75
    python eval.py --weights W.safetensors --input-scale 1                      # full size
    python eval.py --weights W.safetensors --scales 0.75 1 1.25 --flip          # multi-scale and flip
    python eval.py --weights W.safetensors --data data/cityscapes --split val --output eval_out
    python -m paddle.distributed.launch --nproc_per_node 2 eval.py --weights W.safetensors

Prints the scores and writes eval.csv and per_class.csv into --output (default: `eval_<split>_<protocol>` beside the
weights). The score of --split test goes into the run's own eval.csv: once, with the checkpoint that was best on val.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from common.cli import CommandParser, run_command
from common.config.typed import config_from_text
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation, plan_scores, print_scores
from common.runs.provenance import root_of_weights
from common.samples.list_dataset import ListDataset, require_sides
from common.samples.roots import DataConfig, draw_toy_data, open_list, with_root
from common.samples.stream import require_valid_pixels
from common.samples.survey import require_image_sides
from stdc_seg import processes
from stdc_seg.checkpoint import load_model, read_state
from stdc_seg.config import Config
from stdc_seg.data.transforms import normalize
from stdc_seg.losses import mean_cross_entropy
from stdc_seg.models import build_model
from stdc_seg.protocol import EvalProtocol, class_scores, smallest_scale

import numpy as np
import paddle
import paddle.distributed as dist


@paddle.no_grad()
def evaluate(
    model: paddle.nn.Layer,
    dataset: ListDataset,
    data: DataConfig,
    protocol: EvalProtocol,
    description: str = "evaluate",
) -> Evaluation:
    """Evaluates every image once, shared among the processes of a distributed run; the model's mode is kept.

    Labels are never resized. In a distributed run every process gets the result of the whole set.

    Raises:
        UserError: An image or label cannot be used, or no pixel of any label counts.
    """
    start = time.perf_counter()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    matrix = ConfusionMatrix(dataset.labels.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = model.training
    model.eval()
    mine = range(rank, len(dataset), world_size)
    for index in track(mine, description, "image", keep=False, silent=rank > 0):
        sample = dataset.load(index)
        require_sides(dataset.pairs[index].image, sample.label.shape, smallest_scale(sample.label.shape, protocol))
        image = paddle.to_tensor(normalize(sample.image, data.mean, data.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(model, image, sample.label.shape, protocol)
        matrix.update(sample.label, scores.argmax(axis=1)[0].numpy())
        label = paddle.to_tensor(sample.label[None].astype(np.int64))
        image_loss, image_pixels = mean_cross_entropy(scores, label)
        loss_sum, valid_pixels = loss_sum + image_loss, valid_pixels + image_pixels
    if was_training:
        model.train()
    if world_size > 1:
        matrix.matrix = processes.total(matrix.matrix)
        loss_sum, valid_pixels = processes.total(np.array([loss_sum, valid_pixels], np.float64))
    require_valid_pixels(valid_pixels, [pair.label for pair in dataset.pairs])
    loss = float(loss_sum / valid_pixels)
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    processes.join()
    state = read_state(args.weights)
    config = config_from_text(Config, state.config_text, f"config in {args.weights}")
    root = args.data or root_of_weights(args.weights, config.data.root)
    draw_toy_data(config.data, root)
    data = with_root(config.data, root)
    protocol = config.eval
    if args.input_scale is not None:
        protocol = dataclasses.replace(protocol, input_scale=args.input_scale)
    if args.scales is not None:
        protocol = dataclasses.replace(protocol, scales=tuple(args.scales))
    if args.flip:
        protocol = dataclasses.replace(protocol, flip=True)
    scores = plan_scores(args.weights, state.step, args.split, args.output, protocol.short_name)
    lists = {"train": data.train_list, "val": data.val_list}
    dataset = open_list(data, lists.get(args.split, f"{args.split}.txt"))
    processes.say(f"evaluating {dataset.path}")
    require_image_sides(dataset, lambda size: smallest_scale(size, protocol))
    labels = dataset.labels
    model = build_model(config.model.name, num_classes=labels.num_classes)
    load_model(args.weights, model, labels.class_names)
    result = evaluate(model, dataset, data, protocol)
    if dist.get_rank() == 0:
        print_scores(result, labels.class_names, protocol, args.split)
        scores.write(protocol, result, labels.class_names)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors")
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the run's own)")
    split_help = "train, val, or the name of another list in the root (default: val)"
    add("--split", default="val", metavar="NAME", help=split_help)
    output_help = (
        "folder for the scores (default: eval_<split>_<protocol> beside the weights; of test, the run's own files)"
    )
    add("--output", type=Path, metavar="DIR", help=output_help)
    add = parser.add_argument_group("protocol").add_argument
    input_scale_help = "factor on the image's sides before the network: 0.5, 0.75, 1 (default: the run's)"
    add("--input-scale", type=float, metavar="X", help=input_scale_help)
    scales_help = "further factors; results are averaged over them (default: the run's)"
    add("--scales", type=float, nargs="+", metavar="S", help=scales_help)
    add("--flip", action="store_true", help="average with the mirrored image")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
