"""Trains a network of the zoo in the dynamic graph, as PaddleSeg's train.py does.

    python train.py --config configs/deeplabv3p.yml                       # data/cityscapes, else toy data
    python train.py --config benchmark/deeplabv3p.yml --fp16              # mixed precision (O1), on a GPU
    python train.py --config configs/fastscnn_camvid.yml --do_eval --save_interval 500
    python train.py --config configs/deeplabv3p.yml --data_format NHWC --batch_size 4
    python train.py --config configs/deeplabv3p.yml --synthetic --iters 50   # random images, without a loader
    python train.py --resume                                              # the latest run under output/
    python -m paddle.distributed.launch train.py --config configs/fcn_hrnet_w18.yml --do_eval

--batch_size is per process. On toy data (128x256) crops are as large as its images, and --iters is 20 unless given. A
run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, last.safetensors (to resume), and
with --do_eval eval.csv, per_class.csv, curve.png and best.safetensors (by validation mIoU). On SIGTERM or SIGUSR1 the
update in progress ends and last.safetensors is saved; the exit status is 128 + signal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import CommandParser, UserError, not_negative, positive, run_command
from paddleseg_benchmark import flags, processes
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.runs import Plan, find_run, planned, scope_of
from paddleseg_benchmark.training import Training
from paddleseg_benchmark.updates import DynamicStep
from paddleseg_benchmark.zoo import zoo

import paddle
import paddle.distributed as dist
import paddleseg

TOY_ITERS = 20
RECIPE_PROCESSES = 4  # PaddleSeg's published numbers are of four GPUs, each with the config's batch size


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    flags.refuse(args)
    processes.join()
    if args.fp16 and not paddle.device.get_device().startswith("gpu"):
        raise UserError("--fp16 needs a GPU: on a CPU Paddle ignores mixed precision; leave it out")
    if args.synthetic and args.do_eval:
        raise UserError("--do_eval needs images: leave out --synthetic")
    found = find_run(args.resume, args.output) if args.resume is not None else None
    if found is None and args.config is None:
        where = f"no run under {args.output} to resume" if args.resume is not None else "which network"
        raise UserError(f"--config: {where}: name a config, such as configs/fastscnn.yml")
    plan = _plan(args) if args.config is not None else None
    if found is not None:
        workers = loading.loader_processes(args.num_workers)
        plan = found.plan(plan, num_workers=workers, **flags.run_settings(args))
        if found.is_finished:
            processes.say(f"{found.folder} has reached its {found.step} iterations: nothing is left to train")
            return
    paddleseg.utils.set_seed(plan.seed)
    train_set = None if plan.synthetic else data.open_dataset(plan.config, "train")
    num_classes = train_set.num_classes if train_set is not None else 19
    zoo_network = zoo.build_from_config(plan.config, num_classes, plan.layout)
    stepper = DynamicStep(zoo_network, plan.precision, iters=plan.iters, careful=True)
    Training(plan, stepper, train_set).run()


def _plan(args: argparse.Namespace) -> Plan:
    recipe = config = zoo.read_config(args.config)
    if not args.synthetic:
        config = data.with_data(config, args.data)
    toy = data.is_toy(config)
    config = planned(config, args.iters or (TOY_ITERS if toy else None), args.batch_size)
    if args.learning_rate is not None:
        config.dic["lr_scheduler"]["learning_rate"] = args.learning_rate
    size = args.crop_size or (data.TOY_SIZE if toy else None)
    if size:
        config = data.with_crop_size(config, tuple(size))
    if toy:
        processes.say(f"no data set in the config's place: training on toy data, crops of {size[0]}x{size[1]}")
    total_batch = config.batch_size * dist.get_world_size()
    scope = scope_of(config, recipe, total_batch, recipe.batch_size * RECIPE_PROCESSES)
    return Plan(
        name=Path(args.config).stem,
        config=config,
        seed=args.seed,
        output=args.output,
        layout=args.data_format,
        precision="o1_fp16" if args.fp16 else "fp32",
        data_root=args.data,
        scope="smoke" if args.synthetic else scope,
        num_workers=loading.loader_processes(args.num_workers),
        synthetic=args.synthetic,
        **flags.run_settings(args),
    )


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__, usage="train.py --config YML [options]")
    group = parser.add_argument_group("experiment")
    add = group.add_argument
    config_help = "config of PaddleSeg, or the name of one in configs/ (default: that of the run that --resume names)"
    add("--config", metavar="YML", help=config_help)
    add("--learning_rate", type=flags.rate, metavar="X", help="rate at the first update (default: the config's)")
    add("--batch_size", type=positive, metavar="N", help="images per update and process (default: the config's)")
    crop_help = "height and width of crops in pixels (default: the config's)"
    add("--crop_size", type=positive, nargs=2, metavar=("H", "W"), help=crop_help)
    add("--seed", type=flags.seed, default=0, metavar="N", help="seed of weights and augmentation (default: 0)")
    group = parser.add_argument_group("data and output")
    add = group.add_argument
    add("--data", metavar="DIR", help="root folder of the data set (default: the config's)")
    add("--synthetic", action="store_true", help="train on one random batch over and over, without a data set")
    flags.add_output(group)
    flags.add_log_interval(group)
    flags.add_refused(group)
    flags.add_protocol(parser)
    flags.add_length(parser, "the config's")
    add = parser.add_argument_group("speed and memory").add_argument
    add("--fp16", action="store_true", help="train in mixed precision, level O1; this needs a GPU")
    layout_help = "memory layout inside the network (default: NCHW)"
    add("--data_format", choices=("NCHW", "NHWC"), default="NCHW", help=layout_help)
    workers_help = "load images in N processes (default: 0, in a thread)"
    add("--num_workers", type=not_negative, default=0, metavar="N", help=workers_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
