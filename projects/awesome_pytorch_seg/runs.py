"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import math
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
from common.runs.environment import git_commit
from common.runs.reading import read_run


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
        processes.say(f"no run under {args.output} yet: starting one")
    name, run_name = choose_config(args)
    config = apply_flags(partial(read_config, name), args, name == BASE_CONFIG)
    if name != args.config:
        processes.say(f"config {name}" + (f" for {run_name}" if name != run_name else ""))
    commit, _ = git_commit(CONFIG_DIR)
    folder = _new_folder(args.output, run_id(run_name, config.train.seed, commit))
    return RunPlan(config, run_name, folder, None, args.data, recipe_batch=_recipe_batch(name))


def say_batch(plan: RunPlan) -> None:
    """Prints how an update is cut over processes and micro-batches, and how its batch differs from the recipe's."""
    train, rate = plan.config.train, plan.config.optimizer.learning_rate
    cuts = {"processes": processes.world_size(), "micro-batches": train.accumulate}
    images = train.batch_size // math.prod(cuts.values())
    factors = [f"{count} {name}" for name, count in cuts.items() if count > 1]
    cut = f" = {' x '.join(factors)} x {images} images" if factors else ""
    other = plan.recipe_batch not in (None, train.batch_size)
    recipe = f"; the recipe's is batch {plan.recipe_batch}" if other else ""
    processes.say(f"batch {train.batch_size}{cut}, learning rate {rate:g}{recipe}")
    if train.accumulate > 1:
        processes.say("batch normalisation: the statistics of each micro-batch, not of the batch")


def _recipe_batch(name: str) -> int | None:
    try:
        return read_config(name).train.batch_size
    except UserError:  # a file that words of the command complete
        return None


def _plan_resume(args: argparse.Namespace, folder: Path, checkpoint: Path | None) -> RunPlan:
    if checkpoint is None:  # stopped before its first checkpoint
        step, text, where = 0, read_config_text(folder / "config.yaml"), str(folder / "config.yaml")
    else:
        state = read_state(checkpoint)
        step, text, where = state.step, state.config_text, f"config in {checkpoint}"
    read_stored = partial(config_from_text, Config, text, where)
    config = read_stored()
    config_name = folder.name.rsplit(f"_s{config.train.seed}_", 1)[0]
    asked = apply_flags(partial(read_config, args.config) if args.config else read_stored, args, is_base=False)
    changes_length = args.iters is not None or args.epochs is not None
    _refuse_other_experiment(config, asked, changes_length)
    if changes_length and asked.train.iters != config.train.iters:
        config = _extend(config, asked.train.iters, step, args.extend)
    processes.say(f"resuming {folder} at step {step} of {config.train.iters}")
    return RunPlan(config, config_name, folder, checkpoint, args.data, is_finished=step >= config.train.iters)


def _refuse_other_experiment(config: Config, asked: Config, changes_length: bool) -> None:
    """A resumed run keeps its experiment: the same flags again are fine, others are not."""
    asked, stored = dataclasses.asdict(asked), dataclasses.asdict(config)
    if changes_length:  # judged by --extend
        for name in ("iters", "encoder_iters"):
            asked["train"][name] = stored["train"][name]
        asked["schedule"]["warmup_iters"] = stored["schedule"]["warmup_iters"]
    sections = [name for name, value in asked.items() if isinstance(value, dict)]
    changed = [f"{s}.{key}" for s in sections for key in asked[s] if asked[s][key] != stored[s][key]]
    changed += [name for name in asked if name not in sections and asked[name] != stored[name]]
    if changed:
        raise UserError(
            f"a resumed run keeps its experiment, but {', '.join(changed)} differ: leave them out, or start a new run"
        )


def _extend(config: Config, iters: int, step: int, allowed: bool) -> Config:
    old, new = (
        learning_rate(min(step, total), total, config.optimizer.learning_rate, config.schedule)
        for total in (config.train.iters, iters)
    )
    plan = f"from {config.train.iters} to {iters} iterations"
    change = f"{plan}: at step {step} the rate goes from {old:.3g} to {new:.3g}"
    if not allowed:
        raise UserError(f"this run was planned otherwise, --iters changes it {change}: add --extend if you mean it")
    if iters < step:
        raise UserError(f"the run is at step {step} already, --iters {iters} is less: give more")
    processes.say(f"extended {change}")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, iters=iters))


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
    number = 1
    while (_numbered(output, name, number) / "config.yaml").exists():
        number += 1
    number = processes.agree(number)  # process 0 may have begun to write when another looks
    return _numbered(output, name, number)


def _numbered(output: Path, name: str, number: int) -> Path:
    return output / (name if number == 1 else f"{name}_{number}")
