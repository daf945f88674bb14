"""The command line of train.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import CommandParser


def parse_args(description: str, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line of train.py, or `words`; `--help` says what its options mean."""
    parser = CommandParser(description)
    add = parser.add_argument_group("experiment").add_argument
    config_help = "YAML file, or the name of one in configs/ (default: as above, by what lies in data/cityscapes)"
    add("--config", metavar="FILE", help=config_help)
    add("--seed", type=int, metavar="N", help="seed of weights, order and augmentation (default: the config's)")
    finetune_help = "start from a checkpoint of train.py, of these or other classes (default: not)"
    add("--finetune", metavar="FILE", help=finetune_help)
    overrides_help = "change single keys of the config: train.batch_size=4"
    add("overrides", nargs="*", metavar="section.key=value", help=overrides_help)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the config's; the run's with --resume)")
    output_help = "where run folders go (default: output)"
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=output_help)
    add = parser.add_argument_group("length and resuming").add_argument
    add("--iters", type=int, metavar="N", help="updates in all; warm-up shrinks in proportion (default: the config's)")
    resume_help = "resume a run: its folder, a checkpoint, or nothing for the latest (default: a new run)"
    add("--resume", nargs="?", const="latest", metavar="PATH", help=resume_help)
    add("--extend", action="store_true", help="with --resume --iters N: allow a new total")
    add = parser.add_argument_group("speed and memory").add_argument
    accumulate_help = "a batch goes through in N equal parts: less memory (default: the config's)"
    add("--accumulate", type=int, metavar="N", help=accumulate_help)
    args = parser.parse_intermixed_args(words)
    if args.resume and "=" in args.resume and not Path(args.resume).exists():  # `--resume key=value`: no path was meant
        args.overrides.append(args.resume)
        args.resume = "latest"
    return args
