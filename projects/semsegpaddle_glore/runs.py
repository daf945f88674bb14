"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import UserError
from common.config.typed import config_from_text
from common.run_log import run_id
from common.runs import plan
from common.runs.environment import git_commit
from common.runs.provenance import root_of_run
from common.samples.roots import find_root
from semsegpaddle_glore import processes
from semsegpaddle_glore.checkpoint import read_state
from semsegpaddle_glore.config import CONFIG_DIR, Config, read_config
from semsegpaddle_glore.lr_schedule import learning_rate

CITYSCAPES_CONFIG = "pspnet_res101_cityscapes"  # the original's first example
LOADER_THREADS = 4  # of --use_mpio, where the config has none

RunPlan = plan.RunPlan[Config]


# twin: stdc_seg/runs.py
def plan_run(args: argparse.Namespace) -> RunPlan:
    """Turns the command line into a plan, saying on the way what was chosen.

    Raises:
        UserError: A config mistake, nothing to resume, or a resumed run asked to be another experiment.
    """
    if args.resume is not None:
        if args.finetune is not None:
            raise UserError("--finetune starts a run and --resume continues one: give one of the two")
        folder, checkpoint = plan.find_run(args.resume, args.output)
        if folder is not None:
            return _plan_resume(args, folder, checkpoint)
        processes.say(f"no run under {args.output} yet: starting one")
    name = args.config or _default_config(args.data)
    config = _config_of(args, name)
    config_name = Path(name).name.removesuffix(".yaml")
    commit, _ = git_commit(CONFIG_DIR)
    batch = plan.recipe_batch(lambda: read_config(name))
    run = run_id(config_name, config.train.seed, commit)
    folder = plan.new_folder(args.output, run, processes.rank(), processes.agree)
    return RunPlan(config, config_name, folder, None, args.data, recipe_batch=batch)


def _config_of(args: argparse.Namespace, name: str) -> Config:
    overrides = list(args.overrides)
    for key in ("seed", "amp", "accumulate"):
        if getattr(args, key) is not None:
            overrides.append(f"train.{key}={getattr(args, key)}")
    if args.finetune is not None:
        overrides.append(f"model.finetune={args.finetune}")
    config = read_config(name, overrides, args.data)
    if args.use_mpio and config.train.num_workers == 0:
        overrides.append(f"train.num_workers={LOADER_THREADS}")
    if args.iters is not None:
        warmup = config.optimizer.warmup_iters * args.iters // config.train.iters
        overrides += [f"train.iters={args.iters}", f"optimizer.warmup_iters={warmup}"]
    return read_config(name, overrides, args.data)


def _plan_resume(args: argparse.Namespace, folder: Path, checkpoint: Path | None) -> RunPlan:
    if checkpoint is None:  # stopped before its first checkpoint
        step, is_evaluated, config = 0, True, read_config(str(folder / "config.yaml"))
    else:
        state = read_state(checkpoint)
        step, is_evaluated = state.step, state.is_evaluated
        config = config_from_text(Config, state.config_text, f"config in {checkpoint}")
    config_name = plan.config_name_of(folder, config.train.seed)
    if any((args.config, args.overrides, args.seed is not None, args.amp, args.accumulate is not None)):
        free = () if args.iters is None else ("train.iters", "optimizer.warmup_iters")  # judged by --extend
        plan.refuse_other_experiment(_config_of(args, args.config or config_name), config, free)
    if args.iters is not None and args.iters != config.train.iters:

        def rate(iters: int) -> float:
            return learning_rate(min(step, iters), iters, config.optimizer)

        config = plan.extend(config, args.iters, step, args.extend, rate, processes.say)
    processes.say(f"resuming {folder} at step {step} of {config.train.iters}")
    recorded = plan.recorded_environment(folder)
    root = args.data or root_of_run(recorded, config.data.root)
    is_finished = step >= config.train.iters and is_evaluated
    return RunPlan(config, config_name, folder, checkpoint, root, is_finished, recorded=recorded)


# twin: stdc_seg/runs.py
def _default_config(data_root: str | None) -> str:
    """The config that train.py runs when none is named."""
    root = find_root(data_root or "data/cityscapes")
    if data_root is not None or root is not None:
        processes.say(f"taking {root or data_root} for Cityscapes: config {CITYSCAPES_CONFIG}")
        return CITYSCAPES_CONFIG
    processes.say("no data/cityscapes here: training on the toy data, config quickstart")
    return "quickstart"
