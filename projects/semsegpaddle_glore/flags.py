"""The command line of train.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import CommandParser, UserError, positive
from semsegpaddle_glore.config import options_of_file, take_options


def parse_args(description: str, words: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line of train.py, or `words`; `--help` says what its options mean.

    Raises:
        UserError: A key of the original that does not belong to train.py.
    """
    parser = CommandParser(description)
    add = parser.add_argument_group("experiment").add_argument
    config_help = "YAML file, or the name of one in configs/ (default: as above, by what lies in data/cityscapes)"
    add("--cfg", "--config", dest="config", metavar="FILE", help=config_help)
    seed_help = "seed of weights, order, augmentation and dropout (default: the config's)"
    add("--seed", type=int, metavar="N", help=seed_help)
    finetune_help = "start from a checkpoint of train.py, of these or other classes (default: not)"
    add("--finetune", metavar="FILE", help=finetune_help)
    overrides_help = "change single keys of the config: train.batch_size=4, or TRAIN_BATCH_SIZE 4"
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
    amp_help = "mixed precision on a GPU: float16 where safe, or float16 weights too (default: the config's)"
    add("--amp", choices=("O1", "O2"), help=amp_help)
    accumulate_help = "a batch goes through in N equal parts: less memory (default: the config's)"
    add("--accumulate", type=int, metavar="N", help=accumulate_help)
    add = parser.add_argument_group("flags of the original project").add_argument
    add("--use_gpu", action="store_true", help="insist on a GPU")
    add("--use_mpio", action="store_true", help="prepare batches in threads where the config has none")
    add("--log_steps", type=positive, metavar="N", help="the same as train.log_every=N (default: the config's)")
    add("--do_eval", action="store_true", help="no effect: every run is evaluated, see train.eval_every")
    add("--debug", action="store_true", help="no effect: the run folder has every detail")
    add("--use_vdl", action="store_true", help="no effect: train.csv, eval.csv and curve.png are always written")
    add("--vdl_log_dir", metavar="DIR", help="no effect, as --use_vdl (default: none)")
    args = parser.parse_intermixed_args(_resume_what(sys.argv[1:] if words is None else list(words)))
    options, args.overrides = take_options(args.overrides)
    if "weights" in options:
        raise UserError("TEST.TEST_MODEL is eval.py's: model.backbone_weights=FILE starts from ImageNet weights")
    options = options_of_file(args.config) | options
    if args.log_steps is not None:
        args.overrides = [f"train.log_every={args.log_steps}", *args.overrides]
    args.output, args.resume = Path(options.get("output", args.output)), options.get("resume", args.resume)
    return args


def _resume_what(words: list[str]) -> list[str]:
    """Puts "latest" behind a `--resume` that a key follows: `--resume key=value`, `--resume SOLVER.LR 0.1`."""
    complete = list(words)
    for place, word in reversed(list(enumerate(words))):
        is_key = "=" in word or word.isupper()
        if place > 0 and words[place - 1] == "--resume" and is_key and not Path(word).exists():
            complete.insert(place, "latest")
    return complete
