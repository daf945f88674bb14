"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.checkpoint import read_experiment, read_state
from awesome_pytorch_seg.config import CONFIG_DIR, Config, read_config
from awesome_pytorch_seg.data.names import dataset_name
from awesome_pytorch_seg.flags import BASE_CONFIG, apply_flags, choose_config
from awesome_pytorch_seg.lr_schedule import learning_rate
from awesome_pytorch_seg.models import ALIASES, choose_backbone
from common.cli import UserError
from common.config.typed import config_from_text, read_config_text
from common.run_log import run_id
from common.runs import plan
from common.runs.environment import git_commit
from common.runs.provenance import root_of_run
from common.runs.reading import read_run

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
    name, run_name = choose_config(args)
    config = apply_flags(partial(read_config, name), args, name == BASE_CONFIG)
    if name != args.config:
        processes.say(f"config {name}" + (f" for {run_name}" if name != run_name else ""))
    commit, _ = git_commit(CONFIG_DIR)
    batch = plan.recipe_batch(lambda: read_config(name))
    run = run_id(run_name, config.train.seed, commit)
    folder = plan.new_folder(args.output, run, processes.rank(), processes.agree)
    return RunPlan(config, run_name, folder, None, args.data, recipe_batch=batch)


def _plan_resume(args: argparse.Namespace, folder: Path, checkpoint: Path | None) -> RunPlan:
    if checkpoint is None:  # stopped before its first checkpoint
        step, is_evaluated = 0, True
        text, where = read_config_text(folder / "config.yaml"), str(folder / "config.yaml")
    else:
        state = read_state(checkpoint)
        step, is_evaluated = state.step, state.is_evaluated
        text, where = state.config_text, f"config in {checkpoint}"
    read_stored = partial(config_from_text, Config, text, where)
    config = read_stored()
    config_name = plan.config_name_of(folder, config.train.seed)
    recorded = plan.recorded_environment(folder)
    args.data = args.data or root_of_run(recorded, config.data.root)
    asked = apply_flags(partial(read_config, args.config) if args.config else read_stored, args, is_base=False)
    changes_length = args.iters is not None or args.epochs is not None
    lengths = ("train.iters", "train.encoder_iters", "schedule.warmup_iters")  # judged by --extend
    plan.refuse_other_experiment(asked, config, lengths if changes_length else ())
    if changes_length and asked.train.iters != config.train.iters:

        def rate(iters: int) -> float:
            return learning_rate(min(step, iters), iters, config.optimizer.learning_rate, config.schedule)

        config = plan.extend(config, asked.train.iters, step, args.extend, rate, processes.say)
    processes.say(f"resuming {folder} at step {step} of {config.train.iters}")
    is_finished = step >= config.train.iters and is_evaluated
    return RunPlan(config, config_name, folder, checkpoint, args.data, is_finished, recorded=recorded)


def find_weights(model: str, backbone: str | None, dataset: str | None, output: Path) -> Path:
    """The best checkpoint of the latest run under `output` of a network on a data set; None is any.

    Raises:
        UserError: An unknown name, or there is no such run.
    """
    model = ALIASES.get(model, model)
    choose_backbone(model, backbone)  # refuses an unknown one
    default_backbone = choose_backbone(model, None)
    labels = None if dataset is None else dataset_name(dataset).label_set or "custom"
    for path in sorted(output.glob("*/best.safetensors"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if read_run(path.parent).env.get("project") != "awesome_pytorch_seg":
            continue
        config = read_experiment(path)[1]
        has_model = ALIASES.get(config.model.name, config.model.name) == model
        has_backbone = backbone in (None, config.model.backbone or default_backbone)
        if has_model and has_backbone and labels in (None, config.data.dataset):
            return path
    given = {"--model": model, "--backbone": backbone, "--dataset": dataset}
    words = " ".join(f"{flag} {value}" for flag, value in given.items() if value)
    raise UserError(f"no trained run under {output} of {words}: name a file with --weights, or run train.py {words}")
