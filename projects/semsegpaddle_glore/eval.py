"""Evaluates a checkpoint under one named protocol.

    python eval.py --weights output/<run>/best.safetensors                      # the run's own data and protocol
    python eval.py --weights W.safetensors --multi_scales eval.flip=true
    python eval.py --weights W.safetensors --data data/cityscapes --split val --output DIR 'eval.window=[769, 769]'
    python eval.py --use_gpu --multi_scales --cfg ./configs/pspnet_res101_cityscapes.yaml TEST.TEST_MODEL W.safetensors
    python -m paddle.distributed.launch --nproc_per_node 2 eval.py --weights W.safetensors

Prints the scores and writes eval.csv and per_class.csv into --output (default: `eval_<split>_<protocol>` beside the
weights). The score of --split test goes into the run's own eval.csv: once, with the checkpoint that was best on val.
Data and protocol are the run's own or those of --cfg; keys of data and eval can be changed after the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.config.typed import config_from_text
from common.labels import IGNORE
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation, plan_scores, print_scores
from common.runs.provenance import root_of_weights
from common.samples.list_dataset import ListDataset, Sample, require_sides
from common.samples.roots import DataConfig, draw_toy_data, open_list, with_root
from common.samples.stream import require_valid_pixels
from common.samples.survey import require_image_sides
from common.weights.header import require_classes
from semsegpaddle_glore import processes
from semsegpaddle_glore.checkpoint import load_network, read_state
from semsegpaddle_glore.config import Config, multi_scales, options_of_file, parse_overrides, read_config, take_options
from semsegpaddle_glore.data.transforms import normalize
from semsegpaddle_glore.protocol import EvalProtocol, class_scores, smallest_scale

import numpy as np
import paddle
import paddle.distributed as dist


def evaluate(
    model: paddle.nn.Layer,
    dataset: ListDataset,
    data: DataConfig,
    protocol: EvalProtocol,
    description: str = "evaluate",
    read_ahead: bool = False,
) -> Evaluation:
    """Evaluates every image once, shared among the processes of a distributed run; the model's mode is kept.

    Labels are never resized. In a distributed run every process gets the result of the whole set. With `read_ahead`
    the next image is decoded while the network works on this one.
    """
    start = time.perf_counter()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    matrix = ConfusionMatrix(dataset.labels.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = model.training
    model.eval()
    mine = range(rank, len(dataset), world_size)
    samples = _samples(dataset, mine, read_ahead)
    tracked = track(samples, description, "image", len(mine), keep=False, silent=rank > 0)
    for index, sample in zip(mine, tracked, strict=True):
        require_sides(dataset.pairs[index].image, sample.label.shape, smallest_scale(sample.label.shape, protocol))
        image = normalize(sample.image, data.mean, data.std)[None]  # (1, 3, H, W)
        probs = class_scores(model, image, sample.label.shape, protocol)[0]
        matrix.update(sample.label, probs.argmax(axis=0))
        image_loss, image_pixels = cross_entropy_of_probabilities(probs, sample.label)
        loss_sum, valid_pixels = loss_sum + image_loss, valid_pixels + image_pixels
    if was_training:
        model.train()
    if world_size > 1:
        matrix.matrix = processes.total(matrix.matrix)
        loss_sum, valid_pixels = processes.total(np.array([loss_sum, valid_pixels], np.float64))
    require_valid_pixels(valid_pixels, [pair.label for pair in dataset.pairs])
    loss = float(loss_sum / valid_pixels)
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def cross_entropy_of_probabilities(probs: np.ndarray, label: np.ndarray) -> tuple[float, int]:
    """The sum of -log(probability of the true class) over valid pixels, and their count.

    Shapes: probs float32 (num_classes, H, W), label uint8 (H, W).
    """
    rows, columns = np.nonzero(label != IGNORE)
    true = probs[label[rows, columns], rows, columns]
    return float(-np.log(np.maximum(true, 1e-12), dtype=np.float64).sum()), len(true)


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    options, words = take_options(args.overrides)
    if args.flip:
        words = [*words, "eval.flip=true"]
    weights = args.weights or options.get("weights") or options_of_file(args.config).get("weights")
    output = args.output or options.get("output")
    if weights is None:
        raise UserError("no weights to evaluate: give --weights FILE (or TEST.TEST_MODEL FILE)")
    if args.use_gpu:
        processes.require_gpu()
    processes.join()
    state = read_state(weights)
    config = _config_of(weights, args.config, words)
    if args.multi_scales:
        protocol = dataclasses.replace(config.eval, scales=multi_scales(config.data.dataset))
        config = dataclasses.replace(config, eval=protocol)
    root = args.data or root_of_weights(weights, config.data.root)
    draw_toy_data(config.data, root)
    data = with_root(config.data, root)
    scores = plan_scores(weights, state.step, args.split, output, config.eval.short_name)
    lists = {"train": data.train_list, "val": data.val_list}
    dataset = open_list(data, lists.get(args.split, f"{args.split}.txt"))
    processes.say(f"evaluating {dataset.path}")
    require_image_sides(dataset, lambda size: smallest_scale(size, config.eval))
    class_names = dataset.labels.class_names
    require_classes(weights, state.class_names, class_names)
    model = load_network(weights, config=config)
    read_ahead = args.use_mpio or config.train.num_workers > 0
    result = evaluate(model, dataset, data, config.eval, read_ahead=read_ahead)
    if dist.get_rank() == 0:
        print_scores(result, class_names, config.eval, args.split)
        scores.write(config.eval, result, class_names)


def _config_of(weights: str, config_name: str | None, words: list[str]) -> Config:
    """The run's own experiment or that of --cfg, for the network of the weights and images as it was trained with."""
    changes = parse_overrides(words)
    sections = ("data", "eval", *(["model"] if config_name else []))  # --cfg says for which network it is
    idle = [change for change in changes if not change.startswith(tuple(f"{section}." for section in sections))]
    idle += [change for change in changes if change.startswith(("data.mean=", "data.std="))]
    if idle:
        raise UserError(f"{idle[0]}: has no effect on evaluation: only data.* and eval.* keys can be changed")
    text, where = read_state(weights).config_text, f"config in {weights}"
    if config_name is None:
        return config_from_text(Config, text, where, changes)
    stored, config = config_from_text(Config, text, where), read_config(config_name, changes)
    trained, asked = (f"{c.model.name} with {c.model.backbone}" for c in (stored, config))
    if trained != asked:
        raise UserError(f"{weights} holds {trained}, --cfg {config_name} is for {asked}: give the config of its run")
    data = dataclasses.replace(config.data, mean=stored.data.mean, std=stored.data.std)
    return dataclasses.replace(stored, data=data, eval=config.eval)


def _samples(dataset: ListDataset, indices: Sequence[int], read_ahead: bool) -> Iterator[Sample]:
    if not read_ahead:
        yield from map(dataset.load, indices)
        return
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(dataset.load, index) for index in indices[:1]]
        for index in indices[1:]:
            coming.append(pool.submit(dataset.load, index))
            yield coming.pop(0).result()
        yield from (future.result() for future in coming)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    weights_help = "checkpoint of train.py, .safetensors (default: that of TEST.TEST_MODEL)"
    add("--weights", metavar="FILE", help=weights_help)
    config_help = "YAML file, or the name of one in configs/: data and protocol (default: the run's own)"
    add("--cfg", "--config", dest="config", metavar="FILE", help=config_help)
    overrides_help = "change single keys of data and eval: eval.flip=true, or TEST.FLIP true"
    add("overrides", nargs="*", metavar="section.key=value", help=overrides_help)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the run's own, or that of --cfg)")
    split_help = "train, val, or the name of another list in the root (default: val)"
    add("--split", default="val", metavar="NAME", help=split_help)
    output_help = (
        "folder for the scores (default: eval_<split>_<protocol> beside the weights; of test, the run's own files)"
    )
    add("--output", type=Path, metavar="DIR", help=output_help)
    add = parser.add_argument_group("protocol").add_argument
    scales_help = "average over scales from 0.5 in steps of 0.25, to 2.25 on Cityscapes and 1.75 elsewhere"
    add("--multi_scales", action="store_true", help=scales_help)
    add("--flip", action="store_true", help="average with the mirrored image, the same as eval.flip=true")
    add = parser.add_argument_group("flags of the original project").add_argument
    add("--use_gpu", action="store_true", help="stop unless there is a GPU")
    add("--use_mpio", action="store_true", help="decode the next image while the network works on this one")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_command(main)
