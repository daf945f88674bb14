"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path

from common.cli import UserError
from common.config.typed import config_from_text
from common.run_log import run_id
from common.runs.environment import git_commit
from common.samples.roots import find_root
from stdc_seg.checkpoint import read_state
from stdc_seg.config import CONFIG_DIR, Config, read_config
from stdc_seg.lr_schedule import learning_rate

import paddle
import paddle.distributed as dist

CITYSCAPES_CONFIG = "stdc2_seg50_80k_bs36"  # what the original project's train.py ran


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
        recipe_batch: The batch size of the config that was named, as it stands in its file; None where none was named.
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
        if args.finetune is not None:
            raise UserError("--finetune starts a run and --resume goes on with one: give one of the two")
        folder, checkpoint = _find_run(args.resume, args.output)
        if folder is not None:
            return _plan_resume(args, folder, checkpoint)
        say(f"no run under {args.output} yet: starting one")
    name = args.config or _default_config(args.data)
    config = _config_of(args, name)
    config_name = Path(name).name.removesuffix(".yaml")
    commit, _ = git_commit(CONFIG_DIR)
    folder = _new_folder(args.output, run_id(config_name, config.train.seed, commit))
    return RunPlan(config, config_name, folder, None, args.data, recipe_batch=_recipe_batch(name))


def join_processes() -> None:
    """Joins the other processes of `paddle.distributed.launch`, if this is one of several."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        dist.init_parallel_env()


def say(message: str) -> None:
    """Prints a line, in one process of a distributed run."""
    if dist.get_rank() == 0:
        print(message, flush=True)


def say_batch(plan: RunPlan) -> None:
    """Prints how an update is cut over processes and micro-batches, and how its batch differs from the recipe's."""
    train, rate = plan.config.train, plan.config.optimizer.learning_rate
    cuts = {"processes": dist.get_world_size(), "micro-batches": train.accumulate}
    images = train.batch_size // math.prod(cuts.values())
    factors = [f"{count} {name}" for name, count in cuts.items() if count > 1]
    cut = f" = {' x '.join(factors)} x {images} images" if factors else ""
    other = plan.recipe_batch not in (None, train.batch_size)
    recipe = f"; the recipe's is batch {plan.recipe_batch}" if other else ""
    say(f"batch {train.batch_size}{cut}, learning rate {rate:g}{recipe}")
    if train.accumulate > 1:
        say("batch normalisation: the statistics of each micro-batch, not of the batch")


def _config_of(args: argparse.Namespace, name: str) -> Config:
    overrides = list(args.overrides)
    for key in ("seed", "accumulate"):
        if getattr(args, key) is not None:
            overrides.append(f"train.{key}={getattr(args, key)}")
    if args.finetune is not None:
        overrides.append(f"model.finetune={args.finetune}")
    config = read_config(name, overrides)
    if args.iters is None:
        return config
    warmup = config.optimizer.warmup_iters * args.iters // config.train.iters
    return read_config(name, [*overrides, f"train.iters={args.iters}", f"optimizer.warmup_iters={warmup}"])


def _recipe_batch(name: str) -> int | None:
    try:
        return read_config(name).train.batch_size
    except UserError:  # a file that words of the command complete
        return None


def _plan_resume(args: argparse.Namespace, folder: Path, checkpoint: Path | None) -> RunPlan:
    if checkpoint is None:  # stopped before its first checkpoint
        step, config = 0, read_config(str(folder / "config.yaml"))
    else:
        state = read_state(checkpoint)
        step, config = state.step, config_from_text(Config, state.config_text, f"config in {checkpoint}")
    config_name = folder.name.rsplit(f"_s{config.train.seed}_", 1)[0]
    if any((args.config, args.overrides, args.seed is not None, args.accumulate is not None)):
        _refuse_other_experiment(config, args, config_name)
    if args.iters is not None and args.iters != config.train.iters:
        config = _extend(config, args, step)
    say(f"resuming {folder} at step {step} of {config.train.iters}")
    return RunPlan(config, config_name, folder, checkpoint, args.data, is_finished=step >= config.train.iters)


def _refuse_other_experiment(config: Config, args: argparse.Namespace, config_name: str) -> None:
    """A resumed run keeps its experiment: the same flags again are fine, others are not."""
    asked = dataclasses.asdict(_config_of(args, args.config or config_name))
    stored = dataclasses.asdict(config)
    if args.iters is not None:  # judged by --extend
        asked["train"]["iters"] = stored["train"]["iters"]
        asked["optimizer"]["warmup_iters"] = stored["optimizer"]["warmup_iters"]
    sections = [name for name, value in asked.items() if isinstance(value, dict)]
    changed = [f"{s}.{key}" for s in sections for key in asked[s] if asked[s][key] != stored[s][key]]
    changed += [name for name in asked if name not in sections and asked[name] != stored[name]]
    if changed:
        raise UserError(
            f"a resumed run keeps its experiment, but {', '.join(changed)} differ: leave them out, or start a new run"
        )


def _extend(config: Config, args: argparse.Namespace, step: int) -> Config:
    old = learning_rate(min(step, config.train.iters), config.train.iters, config.optimizer)
    new = learning_rate(min(step, args.iters), args.iters, config.optimizer)
    plan = f"from {config.train.iters} to {args.iters} iterations"
    change = f"{plan}: at step {step} the rate goes from {old:.3g} to {new:.3g}"
    if not args.extend:
        raise UserError(f"this run was planned otherwise, --iters changes it {change}: add --extend if you mean it")
    if args.iters < step:
        raise UserError(f"the run is at step {step} already, --iters {args.iters} is less: give more")
    say(f"extended {change}")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, iters=args.iters))


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


def _default_config(data_root: str | None) -> str:
    """The config that train.py runs when none is named."""
    root = find_root(data_root or "data/cityscapes")
    if data_root is not None or root is not None:
        say(f"taking {root or data_root} for Cityscapes: config {CITYSCAPES_CONFIG}")
        return CITYSCAPES_CONFIG
    say("no data/cityscapes here: training on the embedded data, config quickstart")
    return "quickstart"


def _new_folder(output: Path, name: str) -> Path:
    """output/name, or name_2, name_3... if a run of that name has begun already: nothing is overwritten."""
    number = 1
    while (_numbered(output, name, number) / "config.yaml").exists():
        number += 1
    if dist.get_world_size() > 1:  # process 0 may have begun to write when another looks
        agreed = paddle.to_tensor([number])
        dist.broadcast(agreed, 0)
        number = int(agreed)
    return _numbered(output, name, number)


def _numbered(output: Path, name: str, number: int) -> Path:
    return output / (name if number == 1 else f"{name}_{number}")
