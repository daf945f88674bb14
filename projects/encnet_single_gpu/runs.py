"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path

from common.cli import UserError, did_you_mean
from common.config.typed import config_from_text, read_config_text
from common.run_log import run_id
from common.runs.environment import git_commit
from common.samples.roots import draw_toy_data, open_list, with_root
from encnet_single_gpu.checkpoint import read_state
from encnet_single_gpu.config import CONFIG_DIR, Config, options, read_config
from encnet_single_gpu.flags import override_words
from encnet_single_gpu.lr_schedule import learning_rate
from encnet_single_gpu.models import backbone_names, model_names

FREE_ON_RESUME = ("train.iters", "train.micro_batch", "train.num_workers", "train.checkpoint_every")
# Where a network's paper has another value than the recipe of PSPNet or EncNet.
OF_NETWORK = {"unetplusplus": {"loss.aux_weight": "1.0"}}
WITH_BACKGROUND = {"ade20k": "ade20k_151", "pascal_context": "pascal_context60"}


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run to be started or continued.

    Attributes:
        config: The experiment.
        config_name: Its file's name without ending.
        folder: The run folder.
        checkpoint: Where to go on from; None starts afresh.
        data_root: --data, if given.
        is_finished: The checkpoint has reached the last iteration.
        recipe_batch: The batch size of the config that was named, as it stands in its file; None for a resumed run.
    """

    config: Config
    config_name: str
    folder: Path
    checkpoint: Path | None
    data_root: str | None
    is_finished: bool = False
    recipe_batch: int | None = None


def plan_run(args: argparse.Namespace) -> RunPlan:
    """Turns the command line into a plan, saying on the way what was chosen.

    Raises:
        UserError: A config mistake, nothing to resume, or a resumed run asked to be another experiment.
    """
    if args.resume is not None:
        folder, checkpoint = _find_run(args.resume, args.output)
        if folder is not None:
            return _plan_resume(args, folder, checkpoint)
        print(f"no run under {args.output} yet: starting one", flush=True)
    name = _recipe_name(args)
    config = _config_of(args, name)
    if args.config is None:
        stem = config.model.name + ("_paper" if args.paper else "")
    else:
        stem = Path(name).name.removesuffix(".yaml")
        if config.model.name not in stem:
            stem += f"_{config.model.name}"
    if config.data.dataset in WITH_BACKGROUND.values():
        stem += "_background"
    commit, _ = git_commit(CONFIG_DIR)
    folder = _new_folder(args.output, run_id(stem, config.train.seed, commit))
    return RunPlan(config, stem, folder, None, args.data, recipe_batch=_recipe_batch(name))


def require_one_process() -> None:
    """Raises UserError where a launcher such as torchrun started several processes: all would write the same files."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UserError(
            f"WORLD_SIZE is {count}, and this project runs in one process, on one GPU: start it without torchrun; "
            f"awesome_pytorch_seg trains on several GPUs"
        )


def say_batch(plan: RunPlan) -> None:
    """Prints the images of an update, and how they differ from the recipe's."""
    other = plan.recipe_batch not in (None, plan.config.train.batch_size)
    recipe = f"; the recipe's is batch {plan.recipe_batch}" if other else ""
    rate = plan.config.optimizer.learning_rate
    print(f"batch {plan.config.train.batch_size}, learning rate {rate:g}{recipe}", flush=True)


def _recipe_batch(name: str) -> int | None:
    try:
        return read_config(name).train.batch_size
    except UserError:  # a file that words of the command complete
        return None


def _recipe_name(args: argparse.Namespace) -> str:
    """--config, or the recipe of the network: EncNet's for networks of that name, PSPNet's for all others."""
    if args.config is not None:
        if args.paper:
            raise UserError("--paper chooses a config itself: leave --config out")
        return args.config
    model = vars(args)["model.name"] or "pspnet"
    if model not in model_names():
        raise UserError(f"unknown network '{model}': {did_you_mean(model, model_names())}")
    return ("encnet" if model.startswith("encnet") else "pspnet") + ("_paper" if args.paper else "")


def _config_of(args: argparse.Namespace, name: str) -> Config:
    """The experiment `name` with the options of the command line put over it."""
    words = override_words(args)
    config = read_config(name, words)
    if vars(args)["model.name"] is not None:
        words += _words_of_network(args, config)
    if args.background:
        dataset = config.data.dataset
        if dataset not in WITH_BACKGROUND:
            raise UserError(f"--background is for {' and '.join(WITH_BACKGROUND)}, the data set is {dataset}")
        words.append(f"data.dataset={WITH_BACKGROUND[dataset]}")
    if args.epochs is not None:
        if vars(args)["train.iters"] is not None:
            raise UserError("--iters and --epochs both say how long to train: give one")
        draw_toy_data(config.data, args.data)
        images = len(open_list(with_root(config.data, args.data), config.data.train_list))
        words.append(f"train.iters={math.ceil(args.epochs * images / config.train.batch_size)}")
    return read_config(name, words)


def _words_of_network(args: argparse.Namespace, config: Config) -> list[str]:
    """What a --model changes in the config that it is put into, unless an option says it."""
    given, model = vars(args), config.model.name
    words = [f"{key}={value}" for key, value in OF_NETWORK.get(model, {}).items() if given[key] is None]
    if given["model.backbone"] is None and config.model.backbone not in (None, *backbone_names(model)):
        words.append("model.backbone=null")
    return words


def _plan_resume(args: argparse.Namespace, folder: Path, checkpoint: Path | None) -> RunPlan:
    if checkpoint is None:  # stopped before its first checkpoint
        step, where, text = 0, str(folder / "config.yaml"), read_config_text(folder / "config.yaml")
    else:
        state = read_state(checkpoint)
        step, where, text = state.step, f"config in {checkpoint}", state.config_text
    stored = config_from_text(Config, text, where)
    free = [word for word in override_words(args) if word.split("=")[0] in FREE_ON_RESUME]
    config = config_from_text(Config, text, where, free)
    _refuse_other_experiment(args, text, stored)
    if config.train.iters != stored.train.iters:
        _require_extend(args, stored, config, step)
    print(f"resuming {folder} at step {step} of {config.train.iters}", flush=True)
    config_name = folder.name.rsplit(f"_s{config.train.seed}_", 1)[0]
    return RunPlan(config, config_name, folder, checkpoint, args.data, is_finished=step >= config.train.iters)


def _refuse_other_experiment(args: argparse.Namespace, text: str, stored: Config) -> None:
    """A resumed run keeps its experiment: the same options again are fine, others are not."""
    if args.epochs is not None:
        raise UserError("a resumed run keeps its length: leave --epochs out, or give --iters with --extend")
    if args.config is not None or args.paper:
        asked = _config_of(args, _recipe_name(args))
    else:
        words = override_words(args)
        if args.background:
            words.append(f"data.dataset={WITH_BACKGROUND.get(stored.data.dataset, stored.data.dataset)}")
        asked = config_from_text(Config, text, "this run", words)
    keys = [key for key, _ in options().values() if key not in FREE_ON_RESUME]
    changed = [key for key in keys if _value(asked, key) != _value(stored, key)]
    if changed:
        raise UserError(
            f"a resumed run keeps its experiment, but {', '.join(changed)} differ: leave them out, or start a new run"
        )


def _value(config: Config, key: str) -> object:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _require_extend(args: argparse.Namespace, old: Config, new: Config, step: int) -> None:
    """Another number of iterations changes the learning rate of all that follow, so it has to be meant."""
    iters = new.train.iters
    rates = (learning_rate(min(step, c.train.iters), c.train.iters, c.optimizer) for c in (old, new))
    before, after = (f"{rate:.3g}" for rate in rates)
    change = f"from {old.train.iters} to {iters} iterations: at step {step} the rate goes from {before} to {after}"
    if not args.extend:
        raise UserError(f"this run was planned otherwise, --iters changes it {change}: add --extend if you mean it")
    if iters < step:
        raise UserError(f"the run is at step {step} already, --iters {iters} is less: give more")
    print(f"extended {change}", flush=True)


def _find_run(where: str, output: Path) -> tuple[Path | None, Path | None]:
    """The run folder to go on with, and the checkpoint in it if there is one yet."""
    if where == "latest":
        runs = sorted((path.parent for path in output.glob("*/config.yaml")), key=lambda run: run.stat().st_mtime_ns)
        if not runs:
            return None, None
        path = runs[-1]
    else:
        path = Path(where)
    if path.is_file():
        return path.parent, path
    if not (path / "config.yaml").is_file():
        raise UserError(f"nothing to resume: {path} is no run folder: give one, a checkpoint, or --resume alone")
    checkpoint = path / "last.safetensors"
    return path, checkpoint if checkpoint.is_file() else None


def _new_folder(output: Path, name: str) -> Path:
    """output/name, or name_2, name_3... if a run of that name has begun already: nothing is overwritten."""
    folder, number = output / name, 2
    while (folder / "config.yaml").exists():
        folder, number = output / f"{name}_{number}", number + 1
    return folder
