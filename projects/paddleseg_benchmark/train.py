"""Trains a network of the zoo in the dynamic graph, as PaddleSeg's train.py does.

    python train.py --config configs/deeplabv3p.yml                       # data/cityscapes, else the embedded data
    python train.py --config configs/deeplabv3p.yml --fp16                # mixed precision (O1), on a GPU
    python train.py --config configs/deeplabv3p.yml --data_format NHWC --batch_size 4
    python train.py --config configs/deeplabv3p.yml --synthetic --iters 50   # random images: no loader in the way
    python -m paddle.distributed.launch train.py --config configs/fcn_hrnet_w18.yml --do_eval

--batch_size is per process. On the embedded data (128x256) crops are as large as its images, and --iters is 20 unless
given. A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, last.safetensors, and
with --do_eval eval.csv, per_class.csv and curve.png.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from pathlib import Path

from common.cli import CommandParser, UserError, not_negative, positive, run_command, shown
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.training import Plan, Training, seed
from paddleseg_benchmark.updates import DynamicStep
from paddleseg_benchmark.zoo import zoo

import numpy as np
import paddle
import paddle.distributed as dist
import paddleseg

EMBEDDED_ITERS = 20


def main() -> None:
    """The command."""
    args = _parse_args()
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        dist.init_parallel_env()
    if args.fp16 and not paddle.device.get_device().startswith("gpu"):
        raise UserError("--fp16 needs a GPU: on a CPU Paddle ignores mixed precision; leave it out")
    if args.synthetic and args.do_eval:
        raise UserError("--do_eval needs images: leave out --synthetic")
    plan = _plan(args)
    paddleseg.utils.set_seed(plan.seed)
    train_set = None if args.synthetic else data.open_dataset(plan.config, "train")
    num_classes = train_set.num_classes if train_set is not None else 19
    zoo_network = zoo.build_from_config(plan.config, num_classes, args.data_format)
    stepper = DynamicStep(zoo_network, plan.words["precision"], iters=plan.iters, careful=True)
    random.seed(plan.seed + dist.get_rank())  # processes start from the same weights and augment differently
    np.random.seed(plan.seed + dist.get_rank())
    Training(plan, stepper, train_set).run()


def _plan(args: argparse.Namespace) -> Plan:
    config = zoo.read_config(args.config)
    if args.learning_rate is not None:
        config.dic["lr_scheduler"]["learning_rate"] = args.learning_rate
    if not args.synthetic:
        config = data.with_data(config, args.data)
    embedded = data.is_embedded(config)
    size = args.crop_size or (data.TOY_SIZE if embedded else None)
    if size:
        config = data.with_crop_size(config, tuple(size))
    if embedded and dist.get_rank() == 0:
        print(f"no data set in the config's place: training on the embedded data, crops of {size[0]}x{size[1]}")
    return Plan(
        name=Path(args.config).stem,
        config=config,
        iters=args.iters or (EMBEDDED_ITERS if embedded else config.iters),
        batch_size=args.batch_size or config.batch_size,
        seed=args.seed,
        output=args.output,
        log_iters=args.log_iters,
        num_workers=loading.loader_processes(args.num_workers),
        synthetic=args.synthetic,
        do_eval=args.do_eval,
        words={"precision": "o1_fp16" if args.fp16 else "fp32", "layout": args.data_format, "graph": "dynamic"},
    )


def _rate(text: str) -> float:
    """A word of the command that has to be a finite number above 0."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number above 0")
    return rate


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    add("--config", required=True, metavar="YML", help="a config of PaddleSeg, or the name of one in configs/")
    add("--learning_rate", type=_rate, metavar="X", help="rate at the start (default: the config's)")
    add("--batch_size", type=positive, metavar="N", help="images of an update per process (default: the config's)")
    crop_help = "height and width of crops in pixels (default: the config's)"
    add("--crop_size", type=positive, nargs=2, metavar=("H", "W"), help=crop_help)
    add("--seed", type=seed, default=0, metavar="N", help="seed of weights and augmentation (default: 0)")
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the config's)")
    add("--synthetic", action="store_true", help="one random batch over and over, no data set")
    output_help = "where run folders go (default: output)"
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=output_help)
    add("--log_iters", type=positive, default=10, metavar="N", help="updates between log lines (default: 10)")
    add = parser.add_argument_group("protocol").add_argument
    add("--do_eval", action="store_true", help="evaluate after the last update")
    add = parser.add_argument_group("length and resuming").add_argument
    add("--iters", type=positive, metavar="N", help="updates in all (default: the config's)")
    add = parser.add_argument_group("speed and memory").add_argument
    add("--fp16", action="store_true", help="mixed precision, level O1, on a GPU")
    layout_help = "memory layout inside the network (default: NCHW)"
    add("--data_format", choices=("NCHW", "NHWC"), default="NCHW", help=layout_help)
    add("--num_workers", type=not_negative, default=0, metavar="N", help="loader processes (default: 0)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
