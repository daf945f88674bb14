"""Which run a command of train.py means: a new folder whose name no other run has, or one that is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from common.cli import UserError
from common.files import atomic_write
from common.runs.environment import RunEnvironment
from common.runs.reading import TABLE_HEADER, read_run, table_row

Config = TypeVar("Config")

SLOW_LOADING = 0.2  # share of the time of training steps that is spent waiting for data


@dataclasses.dataclass(frozen=True)
class RunPlan(Generic[Config]):
    """A run to be started or resumed.

    Attributes:
        config: The experiment.
        config_name: Its file's name without ending.
        folder: The run folder.
        checkpoint: What is resumed; None starts at step 0.
        data_root: The data set's folder where it is not the config's: --data, or that of the resumed run.
        is_finished: The checkpoint has reached the last iteration.
        recipe_batch: The batch size of the config that was named, as it stands in its file; None for a resumed run.
        recorded: What env.json of a resumed run says; None for a new run, or without a readable file.
    """

    config: Config
    config_name: str
    folder: Path
    checkpoint: Path | None
    data_root: str | None
    is_finished: bool = False
    recipe_batch: int | None = None
    recorded: RunEnvironment | None = None


class NonFiniteLoss(ArithmeticError):
    """A loss is NaN or infinite; raised before anything is learnt from it.

    Args:
        value: The loss.
    """

    def __init__(self, value: float):
        super().__init__(f"loss is {value}")
        self.value = value


def require_finite(value: float) -> float:
    """Returns the loss.

    Raises:
        NonFiniteLoss: It is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NonFiniteLoss(value)
    return value


def find_run(where: str, output: Path) -> tuple[Path | None, Path | None]:
    """The run folder that --resume means, and the checkpoint in it if there is one yet.

    Args:
        where: A run folder, a checkpoint, or "latest".
        output: Where the latest is looked for; (None, None) if no run is there.

    Raises:
        UserError: There is no such run.
    """
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


def new_folder(output: Path, name: str, rank: int = 0, agree: Callable[[int], int] = int) -> Path:
    """Makes output/name, or name_2, name_3... if a run has that name: two runs never share a folder.

    The name is taken by `mkdir`, which only one of several programs can do that try at the same time.

    Args:
        output: Where run folders are.
        name: Of the run.
        rank: Of this process in its run; process 0 makes the folder.
        agree: Gives every process of the run the number that process 0 has.
    """
    number = 1
    if rank == 0:
        while not _makes_folder(numbered(output, name, number)):
            number += 1
    return numbered(output, name, agree(number))


def numbered(output: Path, name: str, number: int) -> Path:
    """The folder of the run number `number` of one name."""
    return output / (name if number == 1 else f"{name}_{number}")


def _makes_folder(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def held(folder: Path, rank: int = 0) -> Iterator[None]:
    """Keeps the run folder for this program; at the end a folder in which nothing was written is removed.

    The lock is the system's: it ends with the process, however that ends, and leaves no file. A network drive that
    knows no locks is used without.

    Raises:
        UserError: Another program trains in it, as when one run is resumed twice.
    """
    if rank != 0:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            os.close(descriptor)
            raise UserError(f"{folder}: another process trains in this folder: wait for it, or end it first") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # only an empty folder can be removed
            folder.rmdir()
        os.close(descriptor)


def config_name_of(folder: Path, seed: int) -> str:
    """The name of the experiment in a run folder's name."""
    return folder.name.rsplit(f"_s{seed}_", 1)[0]


def recipe_batch(read: Callable[[], Any]) -> int | None:
    """The batch size of the experiment that `read` gives; None for a file that options have to complete."""
    try:
        return read().train.batch_size
    except UserError:
        return None


def recorded_environment(folder: Path) -> RunEnvironment | None:
    """What env.json of a run folder says; None where it is missing, damaged or of another program."""
    try:
        return RunEnvironment.from_values(json.loads((folder / "env.json").read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, RecursionError, UserError):
        return None


def refuse_other_experiment(asked: Any, stored: Any, free: Collection[str] = ()) -> None:
    """A resumed run keeps its experiment: the same options again are fine, others are not.

    Args:
        asked: The config that the command asks for.
        stored: The run's.
        free: Keys ("section.key") that may differ.

    Raises:
        UserError: Naming the keys that differ.
    """
    values, old = dataclasses.asdict(asked), dataclasses.asdict(stored)
    sections = [name for name, value in values.items() if isinstance(value, dict)]
    changed = [f"{s}.{key}" for s in sections for key in values[s] if values[s][key] != old[s][key]]
    changed += [name for name in values if name not in sections and values[name] != old[name]]
    changed = [key for key in changed if key not in free]
    if changed:
        raise UserError(
            f"a resumed run keeps its experiment, but {', '.join(changed)} differ: leave them out, or start a new run"
        )


def extend(
    config: Config, iters: int, step: int, is_allowed: bool, rate: Callable[[int], float], say: Callable[[str], None]
) -> Config:
    """The config with another number of iterations, which changes the learning rate of all that follow.

    Args:
        config: Of the run.
        iters: The new number.
        step: Where the run is.
        is_allowed: --extend was given.
        rate: Number of iterations -> learning rate at this step.
        say: Prints a line.

    Raises:
        UserError: Not allowed, or the run is further already.
    """
    old = config.train.iters
    change = f"from {old} to {iters} iterations: at step {step} the rate goes from {rate(old):.3g} to {rate(iters):.3g}"
    if not is_allowed:
        raise UserError(f"this run was planned otherwise, --iters changes it {change}: add --extend if you mean it")
    if iters < step:
        raise UserError(f"the run is at step {step} already, --iters {iters} is less: give more")
    say(f"extended {change}")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, iters=iters))


def batch_lines(plan: RunPlan, world_size: int, micro_batches: int) -> list[str]:
    """How an update is cut over processes and micro-batches, and how its batch differs from the recipe's."""
    train, rate = plan.config.train, plan.config.optimizer.learning_rate
    cuts = {"processes": world_size, "micro-batches": micro_batches}
    images = train.batch_size // math.prod(cuts.values())
    factors = [f"{count} {name}" for name, count in cuts.items() if count > 1]
    cut = f" = {' x '.join(factors)} x {images} images" if factors else ""
    other = plan.recipe_batch not in (None, train.batch_size)
    recipe = f"; the recipe's is batch {plan.recipe_batch}" if other else ""
    lines = [f"batch {train.batch_size}{cut}, learning rate {rate:g}{recipe}"]
    if micro_batches > 1:
        lines.append("batch normalisation: the statistics of each micro-batch, not of the batch")
    return lines


def end_lines(
    folder: Path, seconds: float, data_seconds: float, workers: str, best_miou: float, best_step: int
) -> list[str]:
    """What train.py prints at the end of a run.

    Args:
        folder: The run folder.
        seconds: Wall time of all steps of this process.
        data_seconds: Of waiting for data in them.
        workers: The option that makes loading faster, and its value: "train.num_workers (now 2)".
        best_miou: Highest validation mIoU as a fraction.
        best_step: Its step.
    """
    share = data_seconds / seconds if seconds else 0.0
    lines = [f"training steps took {seconds:.0f} s, {100 * share:.1f} % of it waiting for data"]
    if share > SLOW_LOADING:
        lines.append(f"warning: loading is the bottleneck: raise {workers}")
    lines.append(f"best val mIoU {100 * best_miou:.2f} % at step {best_step}")
    return [*lines, f"{TABLE_HEADER}\n{table_row(read_run(folder))}", f"curve: {folder}/curve.png"]


def stop_at_nonfinite_loss(
    folder: Path, step: int, value: float, images: Sequence[object], option: str, rank: int | None = None
) -> None:
    """Ends a run whose loss is NaN or infinite, with a file that names the images of the batch.

    Args:
        folder: The run folder.
        step: Number of the update that was not made, from 1.
        value: The loss.
        images: Paths of the batch's images.
        option: What sets the learning rate: "optimizer.learning_rate".
        rank: Of the process, where a run has several.

    Raises:
        UserError: Always.
    """
    path = folder / f"nonfinite_loss_step{step}{'' if rank is None else f'_rank{rank}'}.json"
    with atomic_write(path) as stream:
        json.dump({"step": step, "loss": str(value), "images": list(map(str, images))}, stream, indent=2)
    raise UserError(
        f"loss is {value} at step {step}: stopped before the update; the batch's images are in {path}; "
        f"lower {option}, or look at those images; checkpoints are untouched"
    )
