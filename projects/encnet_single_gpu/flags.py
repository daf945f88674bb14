"""The words of train.py's command line: an option for every key of the config, and a few besides."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from common.cli import CommandParser
from encnet_single_gpu.config import CONFIG_DIR, config_names, options
from encnet_single_gpu.models import model_names

import yaml

RECIPES = ("pspnet", "encnet", "pspnet_paper", "encnet_paper")  # configs that --help shows as defaults
EXPERIMENT, DATA, LENGTH, SPEED = "experiment", "data and output", "length and resuming", "speed and memory"
# Groups of keys in --help; what is not named is of the experiment.
GROUPS = {
    DATA: ("data.dataset", "data.train_list", "data.val_list", "data.mean", "data.std"),
    LENGTH: ("train.iters", "train.eval_every", "train.checkpoint_every", "train.log_every"),
    SPEED: ("train.micro_batch", "train.num_workers", "train.amp", "train.channels_last", "train.compile"),
}


def parse_args(description: str) -> argparse.Namespace:
    """Reads the command line of train.py; `--help` prints `description` and what each word means."""
    return command_parser(description).parse_args()


def command_parser(description: str) -> CommandParser:
    """The parser of train.py."""
    parser = CommandParser(description, allow_abbrev=False)
    defaults = (
        "Defaults are configs/pspnet.yaml for all networks but EncNet, which has encnet.yaml, and with --paper the\n"
        "files named *_paper; --config NAME takes another file."
    )
    groups = {EXPERIMENT: parser.add_argument_group(EXPERIMENT, defaults)}
    groups |= {title: parser.add_argument_group(title) for title in GROUPS}
    add = groups[EXPERIMENT].add_argument
    config_help = f"YAML file, or one of configs/ (default: the recipe of --model): {', '.join(config_names())}"
    add("--config", metavar="FILE", help=config_help)
    add("--paper", action="store_true", help="the paper's recipe, its batch through gradient accumulation")
    add("--background", action="store_true", help="ADE20K with its label 0 as class 0 of 151, not ignored")
    add = groups[DATA].add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the config's; the run's with --resume)")
    output_help = "where run folders go (default: output)"
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=output_help)
    add = groups[LENGTH].add_argument
    add("--epochs", type=int, metavar="N", help="length in passes over the training images (default: --iters)")
    resume_help = "resume a run: its folder, a checkpoint, or nothing for the latest (default: a new run)"
    add("--resume", nargs="?", const="latest", metavar="PATH", help=resume_help)
    add("--extend", action="store_true", help="with --resume --iters N: allow a new total")
    add = groups[SPEED].add_argument
    add("--fit-memory", action="store_true", help="measure how many images fit at once and set --micro-batch so")
    _add_keys(groups)
    # What old launchers pass; how many processes they started stands in WORLD_SIZE.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def override_words(args: argparse.Namespace) -> list[str]:
    """The options that were given, as "key=value" with the value in YAML."""
    given = {key: vars(args)[key] for key, _ in options().values()}
    if given["augment.crop_size"] and len(given["augment.crop_size"]) == 1:
        given["augment.crop_size"] *= 2  # square
    return [f"{key}={_yaml_of(value)}" for key, value in given.items() if value is not None]


def _add_keys(groups: dict[str, argparse._ArgumentGroup]) -> None:
    """Adds an option for every key of the config, its help made from the key's meaning and the recipes' values."""
    recipes = {name: yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text(encoding="utf-8")) for name in RECIPES}
    for option, (key, field) in options().items():
        default = "default: pspnet" if key == "model.name" else _defaults(key, recipes)
        text = f"{field.metadata['meaning']} ({default}; source: {field.metadata['source']})"
        if key == "model.name":
            text += f": {', '.join(model_names())}"
        words = {"nargs": "?", "const": "true"} if field.type == "bool" else {}
        if "tuple" in field.type:
            words = {"nargs": "+"}
        title = next((title for title, keys in GROUPS.items() if key in keys), EXPERIMENT)
        groups[title].add_argument(f"--{option}", dest=key, metavar=_metavar(key, field.type), help=text, **words)


def _yaml_of(value: str | list[str]) -> str:
    if isinstance(value, str) or value == ["null"]:
        return "".join(value)
    return f"[{', '.join(value)}]"


def _defaults(key: str, recipes: dict[str, dict]) -> str:
    """The values of a key in the recipes, once if they agree."""
    values = {}
    for name, tree in recipes.items():
        for part in key.split("."):
            tree = tree[part]
        values[name] = "null" if tree is None else str(tree).lower() if isinstance(tree, bool) else str(tree)
    if len(set(values.values())) == 1:
        return f"default: {values[RECIPES[0]]}"
    return "default: " + ", ".join(f"{name} {value}" for name, value in values.items())


def _metavar(key: str, annotation: str) -> str:
    """How a value of a key of this type is written, for --help."""
    choices = re.findall(r"'(\w+)'", annotation)  # of a Literal
    if choices:
        return "|".join([*choices, "null"] if "None" in annotation else choices)
    words = {"bool": "true|false", "int": "N", "float": "X"}
    text = "FILE" if key.endswith(("_weights", "_list", ".finetune")) else "NAME"
    return next((word for kind, word in words.items() if kind in annotation), text)
