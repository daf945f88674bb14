"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from common.cli import UserError, did_you_mean
from common.config.typed import config_from_text, read_config_text
from common.run_log import run_id
from common.runs import plan
from common.runs.environment import git_commit
from common.runs.provenance import root_of_run
from common.samples.roots import draw_toy_data, open_list, with_root
from encnet_single_gpu import processes
from encnet_single_gpu.checkpoint import read_state
from encnet_single_gpu.config import CONFIG_DIR, Config, read_config
from encnet_single_gpu.flags import override_words
from encnet_single_gpu.lr_schedule import learning_rate
from encnet_single_gpu.models import backbone_names, model_names

FREE_ON_RESUME = ("train.iters", "train.micro_batch", "train.num_workers", "train.checkpoint_every")
# Where a network's paper has another value than the recipe of PSPNet or EncNet.
OF_NETWORK = {"unetplusplus": {"loss.aux_weight": "1.0"}}
WITH_BACKGROUND = {"ade20k": "ade20k_151", "pascal_context": "pascal_context60"}


RunPlan = plan.RunPlan[Config]


def plan_run(args: argparse.Namespace) -> RunPlan:
    """Turns the command line into a plan, saying on the way what was chosen.

    Raises:
        UserError: A config mistake, nothing to resume, or a resumed run asked to be another experiment.
    """
    if args.resume is not None:
        folder, checkpoint = plan.find_run(args.resume, args.output)
        if folder is not None:
            return _plan_resume(args, folder, checkpoint)
        processes.say(f"no run under {args.output} yet: starting one")
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
    folder = plan.new_folder(args.output, run_id(stem, config.train.seed, commit))
    batch = plan.recipe_batch(lambda: read_config(name))
    return RunPlan(config, stem, folder, None, args.data, recipe_batch=batch)


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
        step, is_evaluated = 0, True
        text, where = read_config_text(folder / "config.yaml"), str(folder / "config.yaml")
    else:
        state = read_state(checkpoint)
        step, is_evaluated = state.step, state.is_evaluated
        text, where = state.config_text, f"config in {checkpoint}"
    stored = config_from_text(Config, text, where)
    free = [word for word in override_words(args) if word.split("=")[0] in FREE_ON_RESUME]
    config = config_from_text(Config, text, where, free)
    plan.refuse_other_experiment(_asked(args, text, stored), stored, FREE_ON_RESUME)
    if config.train.iters != stored.train.iters:

        def rate(iters: int) -> float:
            return learning_rate(min(step, iters), iters, config.optimizer)

        plan.extend(stored, config.train.iters, step, args.extend, rate, processes.say)
    processes.say(f"resuming {folder} at step {step} of {config.train.iters}")
    config_name = plan.config_name_of(folder, config.train.seed)
    recorded = plan.recorded_environment(folder)
    root = args.data or root_of_run(recorded, config.data.root)
    is_finished = step >= config.train.iters and is_evaluated
    return RunPlan(config, config_name, folder, checkpoint, root, is_finished, recorded=recorded)


def _asked(args: argparse.Namespace, text: str, stored: Config) -> Config:
    """The experiment that the options of a resumed run describe."""
    if args.epochs is not None:
        raise UserError("a resumed run keeps its length: leave --epochs out, or give --iters with --extend")
    if args.config is not None or args.paper:
        return _config_of(args, _recipe_name(args))
    words = override_words(args)
    if args.background:
        words.append(f"data.dataset={WITH_BACKGROUND.get(stored.data.dataset, stored.data.dataset)}")
    return config_from_text(Config, text, "this run", words)
