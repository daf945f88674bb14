"""The command line of train.py, and which keys of the experiment its options change."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from awesome_pytorch_seg.config import Config, config_names
from awesome_pytorch_seg.data.names import DATASETS, dataset_name
from awesome_pytorch_seg.models import MODELS
from common.cli import CommandParser, UserError
from common.samples.roots import draw_toy_data, find_root, open_list, with_root

BASE_CONFIG = "default"  # what --model, --backbone and --dataset start from where configs/ has no file for them
DEFAULT_MODEL, DEFAULT_DATASET = "fcn32s", "pascal_voc"  # of the original's train.py
OHEM_THRESHOLD, AUX_WEIGHT = 0.7, 0.4  # what --use-ohem and --aux mean there

FLAG_KEYS = {
    "model": "model.name",
    "backbone": "model.backbone",
    "backbone_weights": "model.backbone_weights",
    "finetune": "model.finetune",
    "lr": "optimizer.learning_rate",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
    "warmup_iters": "schedule.warmup_iters",
    "aux_weight": "loss.aux_weight",
    "base_size": "augment.base_size",
    "batch_size": "train.batch_size",
    "workers": "train.num_workers",
    "accumulate": "train.accumulate",
    "amp": "train.amp",
    "channels_last": "train.channels_last",
    "compile": "train.compile",
    "seed": "train.seed",
}
"""Flags that set one key of the experiment to what is given."""


def parse_args(description: str, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line of train.py, or `words`; `--help` says what its options mean."""
    parser = CommandParser(description)
    _add_experiment(parser.add_argument_group("experiment"))
    _add_data_and_output(parser.add_argument_group("data and output"))
    _add_length(parser.add_argument_group("length and resuming"))
    _add_speed(parser.add_argument_group("speed and memory"))
    _add_flags_of_the_original(parser.add_argument_group("flags of the original project"))
    # What old launchers pass to each process; torchrun and torch.distributed.launch say it in LOCAL_RANK as well.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args(words)
    if args.resume and "=" in args.resume and not Path(args.resume).exists():  # `--resume key=value`: no path was meant
        args.overrides.append(args.resume)
        args.resume = "latest"
    return args


def _add_experiment(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    config_help = "YAML file, or the name of one in configs/ (default: the one of --model, --backbone and --dataset)"
    add("--config", metavar="FILE", help=config_help)
    add("--model", metavar="NAME", help=f"network (default: {DEFAULT_MODEL}): {', '.join(MODELS)}")
    add("--backbone", metavar="NAME", help="its backbone (default: the network's first)")
    weights_help = "local ImageNet weights of the backbone, .safetensors or .pth (default: random weights)"
    add("--backbone-weights", metavar="FILE", help=weights_help)
    finetune_help = "start from a checkpoint of train.py, of these or other classes (default: not)"
    add("--finetune", metavar="FILE", help=finetune_help)
    add(
        "--seed", type=int, metavar="N", help="seed of weights, order, augmentation and dropout (default: the config's)"
    )
    overrides_help = "change single keys of the config: train.batch_size=4"
    add("overrides", nargs="*", metavar="section.key=value", help=overrides_help)


def _add_data_and_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    names = ", ".join(dataset.name for dataset in DATASETS)
    add("--dataset", metavar="NAME", help=f"data set (default: {DEFAULT_DATASET}): {names}")
    add("--data", metavar="DIR", help="root of the data set (default: the config's; the run's with --resume)")
    add("--train-split", metavar="NAME", help="list to train on: train, trainval ... (default: the config's)")
    output_help = "where run folders go (default: output)"
    add("--output", "--save-dir", type=Path, default=Path("output"), metavar="DIR", help=output_help)
    add("--tensorboard", action="store_true", help="write the curves for TensorBoard too, into the run folder")


def _add_length(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--iters", type=int, metavar="N", help="updates in all; warm-up shrinks in proportion (default: the config's)")
    add("--epochs", type=int, metavar="N", help="length in passes over the training images (default: --iters)")
    resume_help = "resume a run: its folder, a checkpoint, or nothing for the latest (default: a new run)"
    add("--resume", nargs="?", const="latest", metavar="PATH", help=resume_help)
    add("--extend", action="store_true", help="with --resume --iters N: allow a new total")


def _add_speed(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    amp_help = "arithmetic of convolutions (default: the config's; null there is float32)"
    add("--amp", choices=["bf16", "fp16"], help=amp_help)
    add("--channels-last", action="store_const", const="true", help="channels-last memory layout")
    add("--compile", action="store_const", const="true", help="torch.compile: minutes at the start, faster steps")
    accumulate_help = "a batch goes through in N equal parts: less memory (default: the config's)"
    add("--accumulate", type=int, metavar="N", help=accumulate_help)
    workers_help = "threads that prepare batches ahead; 0 prepares each when it is needed (default: the config's)"
    add("--workers", "-j", type=int, metavar="N", help=workers_help)
    add("--no-cuda", action="store_true", help="use the CPU though there is a GPU")


def _add_flags_of_the_original(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    batch_help = "images of an update, of all processes together (default: the config's)"
    add("--batch-size", type=int, metavar="N", help=batch_help)
    base_help = "pixels of an image's shorter side before random scaling (default: the config's)"
    add("--base-size", type=int, metavar="N", help=base_help)
    add("--crop-size", type=int, metavar="N", help="pixels of a crop's sides (default: the config's)")
    lr_help = "highest learning rate; of the backbone, where there is one (default: the config's)"
    add("--lr", type=float, metavar="X", help=lr_help)
    add("--momentum", type=float, metavar="X", help="of SGD (default: the config's)")
    add("--weight-decay", type=float, metavar="X", help="per update (default: the config's)")
    warmup_help = "updates in which the rate rises (default: the config's)"
    add("--warmup-iters", type=int, metavar="N", help=warmup_help)
    add("--aux", action="store_true", help=f"auxiliary loss with weight {AUX_WEIGHT}")
    add("--aux-weight", type=float, metavar="X", help="of the auxiliary loss; 0: none (default: the config's)")
    ohem_help = f"cross entropy over hard pixels, of probability below {OHEM_THRESHOLD} (default: the config's)"
    add("--use-ohem", nargs="?", const="True", choices=["True", "False"], help=ohem_help)


def choose_config(args: argparse.Namespace) -> tuple[str, str]:
    """The config file to start from, and the name of the run.

    That is --config; else the file in configs/ that is named after --model, --backbone and --dataset; else the base
    config. Without a word about any of it: the original's default, or the embedded data where its data is missing.
    """
    if args.config:
        return args.config, Path(args.config).name.removesuffix(".yaml")
    dataset = dataset_name(args.dataset or DEFAULT_DATASET)
    silent = not any((args.model, args.backbone, args.dataset, args.data))
    if silent and find_root(f"data/{dataset.folder}") is None:
        return "quickstart", "quickstart"
    parts = [args.model or DEFAULT_MODEL, *([args.backbone] if args.backbone else [])]
    known = config_names()
    for spelling in (dataset.name, *dataset.aliases):
        name = "_".join([*parts, spelling])
        if name in known:
            return name, name
    return BASE_CONFIG, "_".join([*parts, dataset.name])


def apply_flags(read: Callable[[list[str]], Config], args: argparse.Namespace, is_base: bool) -> Config:
    """The experiment that `read` gives for a list of "key=value", with the flags' changes.

    The base config is evaluated once an epoch where --epochs is given, as the original does.

    Raises:
        UserError: A mistake in a value, or two flags that contradict each other.
    """
    given = {key: getattr(args, flag) for flag, key in FLAG_KEYS.items()}
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    words += _words_of_other_flags(args) + args.overrides
    config = _with_crop(read(words), args.crop_size)
    if args.iters is None and args.epochs is None:
        return config
    if args.iters is not None and args.epochs is not None:
        raise UserError("--iters and --epochs both say how long to train: give one")
    iters = args.iters
    if iters is None:
        draw_toy_data(config.data, args.data)
        images = len(open_list(with_root(config.data, args.data), config.data.train_list))
        iters = math.ceil(args.epochs * images / config.train.batch_size)
        if is_base:
            words.insert(0, f"train.eval_every={math.ceil(images / config.train.batch_size)}")
    words.append(f"train.iters={iters}")
    if config.train.encoder_iters and not any(word.startswith("train.encoder_iters=") for word in args.overrides):
        words.append(f"train.encoder_iters={config.train.encoder_iters * iters // config.train.iters}")
    if args.warmup_iters is None:
        words.append(f"schedule.warmup_iters={config.schedule.warmup_iters * iters // config.train.iters}")
    return _with_crop(read(words), args.crop_size)


def _words_of_other_flags(args: argparse.Namespace) -> list[str]:
    words = []
    if args.dataset is not None:
        dataset = dataset_name(args.dataset)
        words += [f"data.dataset={dataset.label_set or 'custom'}", f"data.root=data/{dataset.folder}"]
        words += [f"data.train_list={dataset.train_list}", f"data.val_list={dataset.val_list}"]
    if args.train_split is not None:
        words.append(f"data.train_list={args.train_split}.txt")
    if args.aux and args.aux_weight is None:
        words.append(f"loss.aux_weight={AUX_WEIGHT}")
    if args.use_ohem is not None:
        words.append(f"loss.ohem_threshold={OHEM_THRESHOLD if args.use_ohem == 'True' else 'null'}")
    return words


def _with_crop(config: Config, side: int | None) -> Config:
    if side is None:
        return config
    stages = tuple(dataclasses.replace(stage, crop_size=(side, side)) for stage in config.augment.stages)
    return dataclasses.replace(config, augment=dataclasses.replace(config.augment, stages=stages))
