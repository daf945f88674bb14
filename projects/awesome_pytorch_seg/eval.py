"""Evaluates a network under one named protocol.

    python eval.py --weights output/<run>/best.safetensors                      # the run's own data and protocol
    python eval.py --model fcn32s --backbone vgg16 --dataset pascal_voc         # the latest such run under output/
    python eval.py --weights W.safetensors --protocol ms-flip                   # also: ss flip ms slide-480
    python eval.py --weights W.safetensors --protocol centre-crop-480           # the original project's numbers
    python eval.py --weights W.safetensors --scales 0.75 1 1.25 --flip --window 713 713 --stride 475 475
    torchrun --nproc_per_node 2 eval.py --weights W.safetensors --data data/camvid --split val --output eval_out

Prints the scores and writes eval.csv and per_class.csv into --output (default: `eval_<split>_<protocol>` beside the
weights). The score of --split test goes into the run's own eval.csv: once, with the checkpoint that was best on val.
Of a checkpoint with a running mean of the weights, that mean is evaluated, as in training.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.checkpoint import load_network, read_experiment
from awesome_pytorch_seg.data.transforms import centre_crop, normalize
from awesome_pytorch_seg.losses import mean_cross_entropy
from awesome_pytorch_seg.protocol import PROTOCOLS, EvalProtocol, class_scores, smallest_scale
from awesome_pytorch_seg.runs import find_weights
from common.cli import CommandParser, UserError, run_command
from common.machine.memory import keep_freed_memory
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation, plan_scores, print_scores
from common.runs.provenance import root_of_weights
from common.samples.list_dataset import ListDataset, require_sides
from common.samples.roots import DataConfig, draw_toy_data, open_list, with_root
from common.samples.stream import require_valid_pixels
from common.samples.survey import require_image_sides

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: ListDataset, data: DataConfig, protocol: EvalProtocol, description: str = "evaluate"
) -> Evaluation:
    """Evaluates every image once, in float32, shared among the processes of a run; the model's mode is kept.

    Every process gets the result of the whole set. No image is counted twice, also where the shares differ.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    rank = processes.rank()
    matrix = ConfusionMatrix(dataset.labels.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = model.training
    model.eval()
    mine = range(rank, len(dataset), processes.world_size())
    for index in track(mine, description, "image", keep=False, silent=rank > 0):
        source, ids = dataset.load(index)
        if protocol.centre_crop is not None:
            source, ids = centre_crop(source, ids, protocol.centre_crop)
        require_sides(dataset.pairs[index].image, ids.shape, smallest_scale(ids.shape, protocol))
        image = torch.from_numpy(normalize(source, data.mean, data.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(model, image.to(device), ids.shape, protocol)
        matrix.update(ids, scores.argmax(dim=1)[0].cpu().numpy())
        label = torch.from_numpy(ids[None].astype(np.int64)).to(device)
        image_loss, image_pixels = mean_cross_entropy(scores, label)
        loss_sum, valid_pixels = loss_sum + image_loss, valid_pixels + image_pixels
    model.train(was_training)
    matrix.matrix = processes.total(matrix.matrix)
    loss_sum, valid_pixels = processes.total(np.array([loss_sum, valid_pixels], np.float64))
    require_valid_pixels(valid_pixels, [pair.label for pair in dataset.pairs])
    loss = float(loss_sum / valid_pixels)
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    keep_freed_memory()
    device = processes.join(torch.cuda.is_available() and not args.no_cuda)
    weights = args.weights or find_weights(args.model, args.backbone, args.dataset, Path("output"))
    state, config = read_experiment(weights)
    root = args.data or root_of_weights(weights, config.data.root)
    draw_toy_data(config.data, root)
    data = with_root(config.data, root)
    protocol = _protocol(args, config.eval)
    scores = plan_scores(weights, state.step, args.split, args.output, protocol.short_name)
    lists = {"train": data.train_list, "val": data.val_list}
    dataset = open_list(data, lists.get(args.split, f"{args.split}.txt"))
    processes.say(f"evaluating {dataset.path}")
    require_image_sides(dataset, lambda size: smallest_scale(size, protocol))
    model = load_network(weights, dataset.labels.class_names).to(device)
    result = evaluate(model, dataset, data, protocol)
    if processes.rank() == 0:
        print_scores(result, state.class_names, protocol, args.split)
        scores.write(protocol, result, state.class_names)
    processes.leave()


def _protocol(args: argparse.Namespace, own: EvalProtocol) -> EvalProtocol:
    """The named protocol, or the run's own, with what single options change of it."""
    protocol = PROTOCOLS[args.protocol] if args.protocol else own
    changes = {}
    if args.scales is not None:
        changes["scales"] = tuple(args.scales)
    if args.flip:
        changes["flip"] = True
    if args.stride is not None and args.window is None:
        raise UserError("--stride says how far windows are apart: give --window too")
    if args.window is not None:
        changes["window"] = tuple(args.window)
        changes["stride"] = tuple(args.stride or (max(1, side * 2 // 3) for side in args.window))
    return dataclasses.replace(protocol, **changes)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    weights_help = "checkpoint of train.py, .safetensors (default: that of the latest run that the next three name)"
    add("--weights", metavar="FILE", help=weights_help)
    add("--model", metavar="NAME", help="network of a run under output/ (default: none, --weights is given)")
    add("--backbone", metavar="NAME", help="its backbone (default: any)")
    add("--dataset", metavar="NAME", help="data set that it was trained on (default: any)")
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the run's own)")
    split_help = "train, val, or the name of another list in the root (default: val)"
    add("--split", default="val", metavar="NAME", help=split_help)
    output_help = (
        "folder for the scores (default: eval_<split>_<protocol> beside the weights; of test, the run's own files)"
    )
    add("--output", type=Path, metavar="DIR", help=output_help)
    add = parser.add_argument_group("protocol").add_argument
    protocol_help = (
        "evaluation protocol, of which the next four options change parts (default: that of the run's validation)"
    )
    add("--protocol", choices=list(PROTOCOLS), help=protocol_help)
    scales_help = "factors on the image's sides; results are averaged over them (default: the protocol's)"
    add("--scales", type=float, nargs="+", metavar="S", help=scales_help)
    add("--flip", action="store_true", help="average with the mirrored image")
    window_help = "size in pixels of the window that slides over the image (default: the protocol's)"
    add("--window", type=int, nargs=2, metavar=("H", "W"), help=window_help)
    stride_help = "distance in pixels from window to window (default: two thirds of the window)"
    add("--stride", type=int, nargs=2, metavar=("H", "W"), help=stride_help)
    add = parser.add_argument_group("speed and memory").add_argument
    add("--no-cuda", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # see flags.py
    args = parser.parse_args()
    if bool(args.weights) == bool(args.model):
        raise UserError("name what to evaluate: --weights FILE, or --model NAME with --backbone and --dataset")
    return args


if __name__ == "__main__":
    run_command(main)
