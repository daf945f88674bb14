"""Evaluates a checkpoint of train.py or static_train.py.

    python eval.py --weights output/<run>/best.safetensors                       # val, on the run's own data
    python eval.py --weights output/<run>/best.safetensors --split test          # once per run
    python eval.py --weights W.safetensors --data data/camvid --split val --output output/scores
    python -m paddle.distributed.launch --nproc_per_node 2 eval.py --weights W.safetensors

Whole images at one scale, in float32. Prints the scores and writes eval.csv and per_class.csv into --output (default:
`eval_<split>_ss` beside the weights). The score of --split test goes into the run's own eval.csv: once, with the
checkpoint that was best on val.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.labels import IGNORE
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation, plan_scores, print_scores
from common.weights.header import require_classes
from paddleseg_benchmark import processes
from paddleseg_benchmark.checkpoint import load_network, read_state
from paddleseg_benchmark.data.batches import sample_at
from paddleseg_benchmark.data.dataset import open_dataset, with_data
from paddleseg_benchmark.zoo import zoo
from paddleseg_benchmark.zoo.zoo import ZooNetwork

import numpy as np
import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddleseg.core.infer import reverse_transform

PROTOCOL = "ss, whole image"


@paddle.no_grad()
def evaluate(zoo_network: ZooNetwork, dataset: paddle.io.Dataset) -> Evaluation:
    """Evaluates every image once, in float32, shared among the processes of a distributed run; keeps the mode.

    Logits are brought back to the label's size as paddleseg does; labels are never resized. Every process gets the
    result of the whole set.

    Args:
        zoo_network: The network.
        dataset: Images of `open_dataset`: item -> img float32 (3, h, w), label uint8 (1, H, W).

    Raises:
        UserError: No pixel of any label counts.
    """
    start = time.perf_counter()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    matrix = ConfusionMatrix(dataset.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = zoo_network.training
    zoo_network.eval()
    mine = range(rank, len(dataset), world_size)
    for index in track(mine, "evaluate", "image", keep=False, silent=rank > 0):
        sample = sample_at(dataset, index, (index,))
        logits = zoo_network.predict(paddle.to_tensor(sample["img"]).unsqueeze(0))  # (1, C, h, w)
        logits = reverse_transform(logits, sample["trans_info"], mode="bilinear")  # (1, C, H, W)
        label = sample["label"][0]  # (H, W)
        matrix.update(label, logits.argmax(axis=1)[0].numpy())
        target = paddle.to_tensor(label[None].astype(np.int64))
        loss_sum += float(F.cross_entropy(logits, target, ignore_index=IGNORE, axis=1, reduction="sum"))
        valid_pixels += int((label != IGNORE).sum())
    if was_training:
        zoo_network.train()
    matrix.matrix = processes.total(matrix.matrix)
    loss_sum, valid_pixels = processes.total(np.array([loss_sum, valid_pixels], np.float64))
    if valid_pixels == 0:
        raise UserError(
            f"{dataset.file_list[0][1]}: no pixel of this label counts, nor of all {len(dataset)} of its list: are "
            f"they of another data set? python common/create_dataset_list.py check names the cause"
        )
    loss = float(loss_sum / valid_pixels)
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    processes.join()
    state = read_state(args.weights)
    config = zoo.config_from_text(state.config_text, f"config in {args.weights}")
    if args.data is not None:
        config = with_data(config, args.data)
    scores = plan_scores(args.weights, state.step, args.split, args.output, "ss")
    dataset = open_dataset(config, args.split)
    require_classes(args.weights, state.class_names, tuple(dataset.class_names))
    zoo_network = zoo.build_from_config(config, dataset.num_classes, state.layout)
    load_network(args.weights, zoo_network.network)
    processes.say(f"evaluating {args.split} of {config.val_dataset_cfg['dataset_root']}: {len(dataset)} images")
    result = evaluate(zoo_network, dataset)
    if dist.get_rank() == 0:
        scores.write(PROTOCOL, result, dataset.class_names)
        print_scores(result, dataset.class_names, PROTOCOL, args.split)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="the checkpoint to evaluate")
    add("--data", metavar="DIR", help="root folder of the data set (default: the run's own)")
    split_help = "which images to evaluate (default: val)"
    add("--split", choices=("val", "test"), default="val", help=split_help)
    output_help = "folder for the scores (default: eval_<split>_ss beside the weights; of test, the run's own files)"
    add("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
