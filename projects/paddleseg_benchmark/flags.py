"""The options that train.py and static_train.py share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, not_negative, positive, shown


def seed(text: str) -> int:
    """Argparse type: an integer from 0 that NumPy takes for a seed, also with the number of a process added."""
    number = not_negative(text)
    if number >= 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not a number below 2^31")
    return number


def rate(text: str) -> float:
    """Argparse type: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number above 0")
    return number


def add_output(group: argparse._ArgumentGroup) -> None:
    """Adds where run folders go."""
    help_text = "folder that gets the run folders (default: output)"
    group.add_argument(
        "--output", "--save_dir", dest="output", type=Path, default=Path("output"), metavar="DIR", help=help_text
    )


def add_log_interval(group: argparse._ArgumentGroup) -> None:
    """Adds how often a line is logged, under both of PaddleSeg's names."""
    help_text = "log a line every N updates (default: 10)"
    group.add_argument("--log_iters", "--log_steps", type=positive, metavar="N", help=help_text)


def add_protocol(parser: CommandParser) -> None:
    """Adds whether the run is evaluated."""
    add = parser.add_argument_group("protocol").add_argument
    add("--do_eval", action="store_true", help="evaluate at every checkpoint, and keep the best one")


def add_length(parser: CommandParser, iters_default: str) -> None:
    """Adds length, checkpoints and resuming."""
    add = parser.add_argument_group("length and resuming").add_argument
    add("--iters", type=positive, metavar="N", help=f"train for N updates in all (default: {iters_default})")
    save_help = "save a checkpoint every N updates (default: 1000)"
    add("--save_interval", type=positive, metavar="N", help=save_help)
    keep_help = "keep the latest N checkpoints as iter_<step>.safetensors (default: 1, last.safetensors alone)"
    add("--keep_checkpoint_max", type=positive, metavar="N", help=keep_help)
    resume_help = "resume a run: its folder, a checkpoint, or nothing for the latest (default: start a new run)"
    add("--resume", "--resume_model", dest="resume", nargs="?", const="latest", metavar="PATH", help=resume_help)


def add_refused(group: argparse._ArgumentGroup) -> None:
    """Adds options of PaddleSeg that cannot work here; `refuse` says what does instead."""
    vdl_help = "refused: VisualDL is not used here, train.csv and curve.png in the run folder have the numbers"
    group.add_argument("--use_vdl", action="store_true", help=vdl_help)
    group.add_argument("--vdl_log_dir", metavar="DIR", help="refused, as --use_vdl (default: none)")


def refuse(args: argparse.Namespace) -> None:
    """Raises UserError for the options of `add_refused`."""
    if args.use_vdl or args.vdl_log_dir is not None:
        raise UserError(
            "--use_vdl: VisualDL is not used here: leave it out; train.csv, eval.csv and curve.png in the run folder "
            "have the numbers"
        )


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `runs.Plan` that a resumed run may change, as far as they were given."""
    names = ("log_iters", "keep_checkpoint_max", "save_interval")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return settings | ({"do_eval": True} if args.do_eval else {})
