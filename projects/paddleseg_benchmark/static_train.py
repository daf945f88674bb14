r"""Trains HRNet or DeepLabv3+ in the static graph, as PaddleSeg's legacy/pdseg/train.py did.

    python static_train.py --cfg configs/hrnetw18_cityscapes_1024x512_215.yaml --use_gpu --use_mpio --log_steps 10 \
        BATCH_SIZE 2 SOLVER.NUM_EPOCHS 3 MODEL.FP16 True
    python static_train.py --cfg configs/deeplabv3p_resnet50_vd_cityscapes.yaml BATCH_SIZE 2     # on a CPU
    fleetrun static_train.py --cfg configs/hrnetw18_cityscapes_1024x512_215.yaml BATCH_SIZE 4

BATCH_SIZE is that of all processes together. Without the config's data set it trains on the embedded data (128x256),
with crops as large as its images. The run folder is that of train.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, positive, run_command
from common.machine.cpu import physical_cores
from common.samples.roots import find_root
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.training import Plan, Training, seed
from paddleseg_benchmark.updates import StaticStep
from paddleseg_benchmark.zoo import zoo
from paddleseg_benchmark.zoo.legacy_config import read_legacy, to_paddleseg
from paddleseg_benchmark.zoo.zoo import ZooNetwork

import numpy as np
import paddle
import paddle.distributed as dist
import paddleseg


def main() -> None:
    """The command."""
    args = _parse_args()
    legacy = read_legacy(args.cfg, args.opts)
    _set_device(args.use_gpu, legacy["MODEL.FP16"])
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        dist.init_parallel_env()
    plan = _plan(args, legacy)
    train_set = data.open_dataset(plan.config, "train")
    plan.config.dic["iters"] = legacy["SOLVER.NUM_EPOCHS"] * (len(train_set) // legacy["BATCH_SIZE"])
    if plan.config.iters == 0:
        raise UserError(f"{len(train_set)} training images are less than one batch: lower BATCH_SIZE")
    plan = dataclasses.replace(plan, iters=args.iters or plan.config.iters)
    paddleseg.utils.set_seed(plan.seed)

    def build() -> ZooNetwork:
        return zoo.build_from_config(plan.config, train_set.num_classes)

    size, precision = data.crop_size(plan.config), plan.words["precision"]
    stepper = StaticStep(build, plan.batch_size, size, precision, plan.iters)
    random.seed(plan.seed + dist.get_rank())  # processes start from the same weights and augment differently
    np.random.seed(plan.seed + dist.get_rank())
    Training(plan, stepper, train_set).run()


def _set_device(use_gpu: bool, fp16: bool) -> None:
    if use_gpu and not (paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        raise UserError("--use_gpu: Paddle finds no GPU here: leave out --use_gpu and MODEL.FP16 to train on the CPU")
    if fp16 and not use_gpu:
        raise UserError("MODEL.FP16 True needs --use_gpu: on a CPU Paddle ignores mixed precision")
    if not use_gpu:
        paddle.set_device("cpu")


def _plan(args: argparse.Namespace, legacy: dict[str, Any]) -> Plan:
    """The run without its number of steps, which depends on how many images there are."""
    batch_size, remainder = divmod(legacy["BATCH_SIZE"], dist.get_world_size())
    if remainder:
        raise UserError(
            f"BATCH_SIZE {legacy['BATCH_SIZE']} cannot be shared equally by {dist.get_world_size()} processes"
        )
    config = to_paddleseg(legacy)
    if args.data or find_root(legacy["DATASET.DATA_DIR"]) is None:  # the lists of the config belong to its own folder
        config = data.as_cityscapes(config)
    config = data.with_data(config, args.data)
    if data.is_embedded(config):
        config = data.with_crop_size(config, data.TOY_SIZE)
        if dist.get_rank() == 0:
            height, width = data.TOY_SIZE
            print(f"no data set in the config's place: training on the embedded data, crops of {height}x{width}")
    return Plan(
        name=Path(args.cfg).stem,
        config=config,
        iters=0,
        batch_size=batch_size,
        seed=args.seed,
        output=args.output,
        log_iters=args.log_steps,
        num_workers=loading.loader_processes(min(legacy["DATALOADER.NUM_WORKERS"], physical_cores()) * args.use_mpio),
        synthetic=False,
        do_eval=args.do_eval,
        words={"precision": "o1_fp16" if legacy["MODEL.FP16"] else "fp32", "layout": "NCHW", "graph": "static"},
    )


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    add("--cfg", required=True, metavar="YAML", help="a config of the legacy code, or the name of one in configs/")
    add("--seed", type=seed, default=0, metavar="N", help="seed of weights and augmentation (default: 0)")
    add("opts", nargs="*", metavar="KEY VALUE", help="change the config: BATCH_SIZE 2 MODEL.FP16 True")
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: DATASET.DATA_DIR)")
    output_help = "where run folders go (default: output)"
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=output_help)
    add = parser.add_argument_group("protocol").add_argument
    add("--do_eval", action="store_true", help="evaluate after the last update")
    add = parser.add_argument_group("length and resuming").add_argument
    add("--iters", type=positive, metavar="N", help="updates in all (default: SOLVER.NUM_EPOCHS over the data)")
    add = parser.add_argument_group("flags of the original project").add_argument
    add("--use_gpu", action="store_true", help="train on the GPU")
    add("--use_mpio", action="store_true", help="load images in processes of their own")
    add("--log_steps", type=positive, default=10, metavar="N", help="updates between log lines (default: 10)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
