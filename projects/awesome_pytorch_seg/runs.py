"""What a call of train.py means: which experiment, in which folder, from which checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from awesome_pytorch_seg.checkpoint import read_state
from awesome_pytorch_seg.config import CONFIG_DIR, Config, config_names, read_config
from awesome_pytorch_seg.data.dataset import open_list, with_root
from awesome_pytorch_seg.lr_schedule import learning_rate
from common.cli import UserError, did_you_mean
from common.run_log import git_commit, run_id
from common.typed_config import config_from_text

# Flags of the original project and the config keys that they set.
FLAG_KEYS = {
    "model": "model.name",
    "backbone": "model.backbone",
    "dataset": "data.dataset",
    "lr": "optimizer.learning_rate",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
    "aux_weight": "loss.aux_weight",
    "batch_size": "train.batch_size",
    "workers": "train.num_workers",
    "amp": "train.amp",
    "channels_last": "train.channels_last",
    "seed": "train.seed",
}


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
    """

    config: Config
    config_name: str
    folder: Path
    checkpoint: Path | None
    data_root: str | None
    is_finished: bool = False


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
    name = args.config or _config_for_flags(args)
    config = _config_of(args, name)
    config_name = Path(name).name.removesuffix(".yaml")
    commit, _ = git_commit(CONFIG_DIR)
    folder = _new_folder(args.output, run_id(config_name, config.train.seed, commit))
    return RunPlan(config, config_name, folder, None, args.data)


def _config_for_flags(args: argparse.Namespace) -> str:
    """The config of --model, --backbone and --dataset: the file named after as many of them as possible."""
    if args.model is None or args.dataset is None:
        raise UserError(
            f"name an experiment: --config NAME, or --model and --dataset; configs: {', '.join(config_names())}"
        )
    known = config_names()
    candidates = (f"{args.model}_{args.backbone}_{args.dataset}", f"{args.model}_{args.dataset}", args.dataset)
    for name in candidates:
        if name in known:
            print(f"config {name}", flush=True)
            return name
    raise UserError(f"no config for {args.model} on {args.dataset} in configs/: {did_you_mean(candidates[1], known)}")


def _config_of(args: argparse.Namespace, name: str) -> Config:
    given = {key: getattr(args, flag) for flag, key in FLAG_KEYS.items()}
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None] + args.overrides
    config = read_config(name, overrides)
    iters = _iters_asked(args, config)
    if iters is None:
        return config
    warmup = config.schedule.warmup_iters * iters // config.train.iters
    return read_config(name, [*overrides, f"train.iters={iters}", f"schedule.warmup_iters={warmup}"])


def _iters_asked(args: argparse.Namespace, config: Config) -> int | None:
    """--iters, or --epochs in iterations."""
    if args.epochs is None:
        return args.iters
    if args.iters is not None:
        raise UserError("--iters and --epochs both say how long to train: give one")
    pictures = len(open_list(with_root(config.data, args.data), config.data.train_list))
    return math.ceil(args.epochs * pictures / config.train.batch_size)


def _plan_resume(args: argparse.Namespace, folder: Path, checkpoint: Path | None) -> RunPlan:
    if checkpoint is None:  # stopped before its first checkpoint
        step, config = 0, read_config(str(folder / "config.yaml"))
    else:
        state = read_state(checkpoint)
        step, config = state.step, config_from_text(Config, state.config_text, f"config in {checkpoint}")
    config_name = folder.name.rsplit(f"_s{config.train.seed}_", 1)[0]
    _refuse_other_experiment(config, args, config_name)
    if args.iters is not None and args.iters != config.train.iters:
        config = _extend(config, args, step)
    print(f"resuming {folder} at step {step} of {config.train.iters}", flush=True)
    return RunPlan(config, config_name, folder, checkpoint, args.data, is_finished=step >= config.train.iters)


def _refuse_other_experiment(config: Config, args: argparse.Namespace, config_name: str) -> None:
    """A resumed run keeps its experiment: the same flags again are fine, others are not."""
    if not (args.config or args.overrides or args.epochs or any(getattr(args, flag) is not None for flag in FLAG_KEYS)):
        return
    asked = dataclasses.asdict(_config_of(args, args.config or config_name))
    stored = dataclasses.asdict(config)
    if args.iters is not None:  # judged by --extend
        asked["train"]["iters"] = stored["train"]["iters"]
        asked["schedule"]["warmup_iters"] = stored["schedule"]["warmup_iters"]
    sections = [name for name, value in asked.items() if isinstance(value, dict)]
    changed = [f"{s}.{key}" for s in sections for key in asked[s] if asked[s][key] != stored[s][key]]
    changed += [name for name in asked if name not in sections and asked[name] != stored[name]]
    if changed:
        raise UserError(
            f"a resumed run keeps its experiment, but {', '.join(changed)} differ: leave them out, or start a new run"
        )


def _extend(config: Config, args: argparse.Namespace, step: int) -> Config:
    old, new = (
        learning_rate(min(step, iters), iters, config.optimizer.learning_rate, config.schedule)
        for iters in (config.train.iters, args.iters)
    )
    plan = f"from {config.train.iters} to {args.iters} iterations"
    change = f"{plan}: at step {step} the rate goes from {old:.3g} to {new:.3g}"
    if not args.extend:
        raise UserError(f"this run was planned otherwise, --iters changes it {change}: add --extend if you mean it")
    if args.iters < step:
        raise UserError(f"the run is at step {step} already, --iters {args.iters} is less: give more")
    print(f"extended {change}", flush=True)
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


def _new_folder(output: Path, name: str) -> Path:
    """output/name, or name_2, name_3... if a run of that name has begun already: nothing is overwritten."""
    number = 1
    while (_numbered(output, name, number) / "config.yaml").exists():
        number += 1
    return _numbered(output, name, number)


def _numbered(output: Path, name: str, number: int) -> Path:
    return output / (name if number == 1 else f"{name}_{number}")
