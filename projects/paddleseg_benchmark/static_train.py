r"""Trains HRNet or DeepLabv3+ in the static graph, as PaddleSeg's legacy/pdseg/train.py did.

    python pdseg/train.py --cfg configs/hrnetw18_cityscapes_1024x512_215.yaml --use_gpu --use_mpio --log_steps 10 \
        BATCH_SIZE 2 SOLVER.NUM_EPOCHS 3 MODEL.FP16 True
    python static_train.py --cfg configs/deeplabv3p_resnet50_vd_cityscapes.yaml BATCH_SIZE 2     # on a CPU
    python static_train.py --resume                                                # the latest run under output/
    fleetrun pdseg/train.py --cfg configs/hrnetw18_cityscapes_1024x512_215.yaml BATCH_SIZE 4

`pdseg/train.py` and `static_train.py` are the same command. BATCH_SIZE is that of all processes together. Without the
config's data set it trains on toy data (128x256), with crops as large as its images. The run folder is that of
train.py, and so is the answer to SIGTERM and SIGUSR1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, run_command
from common.machine.cpu import physical_cores
from common.samples.roots import find_root
from paddleseg_benchmark import flags, processes
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.runs import Plan, find_run, planned, scope_of
from paddleseg_benchmark.training import Training
from paddleseg_benchmark.updates import StaticStep
from paddleseg_benchmark.zoo import zoo
from paddleseg_benchmark.zoo.legacy_config import read_legacy, to_paddleseg
from paddleseg_benchmark.zoo.zoo import ZooNetwork

import paddle
import paddle.distributed as dist
import paddleseg


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    flags.refuse(args)
    legacy = read_legacy(args.cfg, args.opts) if args.cfg is not None else None
    _set_device(args.use_gpu, legacy is not None and legacy["MODEL.FP16"])
    processes.join()
    found = find_run(args.resume, args.output) if args.resume is not None else None
    if found is None and legacy is None:
        where = f"no run under {args.output} to resume" if args.resume is not None else "which network"
        raise UserError(f"--cfg: {where}: name a config, such as configs/deeplabv3p_resnet50_vd_cityscapes.yaml")
    plan = _plan(args, legacy) if legacy is not None else None
    if found is not None:
        if found.experiment["graph"] != "static":
            raise UserError(f"{found.folder}: a run of train.py: resume it with that command")
        plan = found.plan(plan, num_workers=_workers(args, legacy), **flags.run_settings(args))
        if found.is_finished:
            processes.say(f"{found.folder} has reached its {found.step} iterations: nothing is left to train")
            return
    train_set = data.open_dataset(plan.config, "train")
    paddleseg.utils.set_seed(plan.seed)

    def build() -> ZooNetwork:
        return zoo.build_from_config(plan.config, train_set.num_classes)

    stepper = StaticStep(build, plan.batch_size, data.crop_size(plan.config), plan.precision, plan.iters)
    Training(plan, stepper, train_set).run()


def _set_device(use_gpu: bool, fp16: bool) -> None:
    if use_gpu and not (paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        raise UserError("--use_gpu: Paddle finds no GPU here: leave out --use_gpu and MODEL.FP16 to train on the CPU")
    if fp16 and not use_gpu:
        raise UserError("MODEL.FP16 True needs --use_gpu: on a CPU Paddle ignores mixed precision")
    if not use_gpu:
        paddle.set_device("cpu")


def _plan(args: argparse.Namespace, legacy: dict[str, Any]) -> Plan:
    total_batch = legacy["BATCH_SIZE"]
    batch_size, remainder = divmod(total_batch, dist.get_world_size())
    if remainder:
        raise UserError(f"BATCH_SIZE {total_batch} cannot be shared equally by {dist.get_world_size()} processes")
    recipe, config = to_paddleseg(read_legacy(args.cfg, [])), to_paddleseg(legacy)
    recipe.source = str(zoo.find_config(args.cfg, ".yaml"))
    if args.data or find_root(legacy["DATASET.DATA_DIR"]) is None:  # the lists of the config belong to its own folder
        config = data.as_cityscapes(config)
    config = data.with_data(config, args.data)
    if data.is_toy(config):
        height, width = data.TOY_SIZE
        config = data.with_crop_size(config, data.TOY_SIZE)
        processes.say(f"no data set in the config's place: training on toy data, crops of {height}x{width}")
    images = len(data.open_dataset(config, "train"))
    if images < total_batch:
        raise UserError(f"{images} training images are less than one batch: lower BATCH_SIZE")
    epochs = read_legacy(args.cfg, [])
    recipe = planned(recipe, epochs["SOLVER.NUM_EPOCHS"] * (images // epochs["BATCH_SIZE"]) or 1, None)
    config = planned(config, args.iters or legacy["SOLVER.NUM_EPOCHS"] * (images // total_batch), batch_size)
    return Plan(
        name=Path(args.cfg).stem,
        config=config,
        seed=args.seed,
        output=args.output,
        precision="o1_fp16" if legacy["MODEL.FP16"] else "fp32",
        graph="static",
        data_root=args.data,
        scope=scope_of(config, recipe, total_batch, epochs["BATCH_SIZE"]),
        num_workers=_workers(args, legacy),
        **flags.run_settings(args),
    )


def _workers(args: argparse.Namespace, legacy: dict[str, Any] | None) -> int:
    wanted = legacy["DATALOADER.NUM_WORKERS"] if legacy is not None else physical_cores()
    return loading.loader_processes(min(wanted, physical_cores()) * args.use_mpio)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__, usage="static_train.py --cfg YAML [options] [KEY VALUE ...]")
    add = parser.add_argument_group("experiment").add_argument
    cfg_help = "config of the legacy code, or the name of one in configs/ (default: that of the run of --resume)"
    add("--cfg", metavar="YAML", help=cfg_help)
    add("--seed", type=flags.seed, default=0, metavar="N", help="seed of weights and augmentation (default: 0)")
    add("opts", nargs="*", metavar="KEY VALUE", help="change keys of the config: BATCH_SIZE 2 MODEL.FP16 True")
    group = parser.add_argument_group("data and output")
    group.add_argument("--data", metavar="DIR", help="root folder of the data set (default: DATASET.DATA_DIR)")
    flags.add_output(group)
    flags.add_log_interval(group)
    flags.add_refused(group)
    flags.add_protocol(parser)
    flags.add_length(parser, "SOLVER.NUM_EPOCHS over the data")
    add = parser.add_argument_group("flags of the original project").add_argument
    add("--use_gpu", action="store_true", help="train on the GPU")
    add("--use_mpio", action="store_true", help="load images in processes of their own")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_command(main)
