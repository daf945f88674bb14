"""Turns a call of train.py or static_train.py into a plan: the experiment, the run folder, the checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import sha256_of
from common.run_log import run_id
from common.runs.environment import RunEnvironment, git_commit
from common.runs.plan import new_folder as make_folder
from common.samples.roots import find_root
from paddleseg_benchmark import processes
from paddleseg_benchmark.checkpoint import read_state
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.updates import DynamicStep, StaticStep
from paddleseg_benchmark.zoo import zoo
from paddleseg_benchmark.zoo.zoo import ZooConfig

import paddle
import paddle.distributed as dist

SAVE_INTERVAL = 1000  # as in PaddleSeg's train.py
SAME = ("optimizer", "lr_scheduler", "loss", "model")  # sections of a config that a recipe fixes
PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "numpy", "opencv-python-headless")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run to be started or resumed.

    Attributes:
        name: Of the config, for the run folder.
        config: PaddleSeg's config with its data found, its iters and its batch size (of one process).
        seed: Of weights and augmentation.
        output: Where a new run folder goes.
        layout: "NCHW" or "NHWC", inside the network.
        precision: See `updates.PRECISIONS`.
        graph: "dynamic" or "static".
        data_root: --data, if given.
        scope: "full", "reduced" or "smoke", see `scope_of`.
        log_iters: Steps between log lines.
        save_interval: Steps between checkpoints, and between evaluations.
        keep_checkpoint_max: So many checkpoints of single steps are kept; 1 keeps last.safetensors alone.
        num_workers: Loader processes.
        synthetic: Random images instead of a data set.
        do_eval: Evaluate at every checkpoint.
        folder: The run folder of a resumed run; None starts a new one.
        checkpoint: Where to resume; None where there is none yet.
    """

    name: str
    config: ZooConfig
    seed: int
    output: Path
    layout: str = "NCHW"
    precision: str = "fp32"
    graph: str = "dynamic"
    data_root: str | None = None
    scope: str = "reduced"
    log_iters: int = 10
    save_interval: int = SAVE_INTERVAL
    keep_checkpoint_max: int = 1
    num_workers: int = 0
    synthetic: bool = False
    do_eval: bool = False
    folder: Path | None = None
    checkpoint: Path | None = None

    @property
    def iters(self) -> int:
        """Updates in all."""
        return self.config.iters

    @property
    def batch_size(self) -> int:
        """Images of one process in an update."""
        return self.config.batch_size


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A run that is there: its folder, its checkpoint if it has one yet, and what it is.

    Attributes:
        folder: The run folder.
        checkpoint: Where to resume; None where the run was stopped before its first checkpoint.
        experiment: The fields of `Plan` that the run keeps.
        step: Updates done.
        is_finished: Whether nothing is left to do.
    """

    folder: Path
    checkpoint: Path | None
    experiment: dict[str, Any]
    step: int = 0
    is_finished: bool = False

    def plan(self, asked: Plan | None, **settings: Any) -> Plan:
        """The plan that resumes the run.

        Args:
            asked: What the command line asks for, where it names a config.
            settings: Fields of `Plan` that a resumed run may change.

        Raises:
            UserError: The command line asks for another experiment.
        """
        if asked is not None:
            self._refuse_other_experiment(asked)
        if not self.is_finished:
            processes.say(f"resuming {self.folder} at step {self.step} of {self.experiment['config'].iters}")
        if asked is not None and self.checkpoint is None:  # config.yaml, which is published, has no folders
            settings["config"] = asked.config
        fields = self.experiment | settings
        return Plan(**fields, output=self.folder.parent, folder=self.folder, checkpoint=self.checkpoint)

    def _refuse_other_experiment(self, asked: Plan) -> None:
        stored = self.experiment
        changed = [
            key for key in ("name", "seed", "layout", "precision", "graph") if getattr(asked, key) != stored[key]
        ]
        if self.checkpoint is not None:  # else see `plan`
            ours, theirs = stored["config"].dic, asked.config.dic
            changed += sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if changed:
            raise UserError(
                f"{self.folder}: a resumed run keeps its experiment, but {', '.join(changed)} differ: leave these "
                f"options out, or start a new run without --resume"
            )


def find_run(where: str, output: Path) -> Resumed | None:
    """The run that --resume names: "latest" in `output`, a run folder, or a checkpoint; None if there is no latest.

    Raises:
        UserError: There is no run at `where`, or its files are damaged.
    """
    path = Path(where)
    if where == "latest":
        runs = sorted((found.parent for found in output.glob("*/config.yaml")), key=lambda run: run.stat().st_mtime_ns)
        if not runs:
            return None
        path = runs[-1]
    if path.is_file():
        return _from_checkpoint(path.parent, path)
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"nothing to resume: {path} is not a run folder (PaddleSeg's iter_* folders are not read): give a run "
            f"folder, a checkpoint, or --resume alone for the latest run"
        )
    last = path / "last.safetensors"
    return _from_checkpoint(path, last) if last.is_file() else _from_run_files(path)


def _from_checkpoint(folder: Path, checkpoint: Path) -> Resumed:
    state = read_state(checkpoint)
    config = zoo.config_from_text(state.config_text, f"config in {checkpoint}")
    experiment = {
        "name": state.config_name,
        "config": config,
        **{key: getattr(state, key) for key in ("seed", "layout", "precision", "graph", "data_root", "scope")},
        **{key: getattr(state, key) for key in ("synthetic", "do_eval", "log_iters")},
        **{key: getattr(state, key) for key in ("save_interval", "keep_checkpoint_max")},
    }
    is_evaluated = not state.do_eval or state.evaluated_step >= config.iters
    return Resumed(folder, checkpoint, experiment, state.step, state.step >= config.iters and is_evaluated)


def _from_run_files(folder: Path) -> Resumed:
    """A run that was stopped before its first checkpoint."""
    path = folder / "env.json"
    try:
        env = json.loads(path.read_text(encoding="utf-8"))
        experiment = {
            "name": env["config"],
            **{key: env[key] for key in ("seed", "scope", "layout", "precision", "graph", "synthetic")},
        }
        root = env.get("data_root")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: missing or damaged ({error}): start a new run") from None
    config = zoo.read_config(folder / "config.yaml")
    if root is not None:
        config = data.with_data(config, root)
    return Resumed(folder, None, experiment | {"config": config, "data_root": root})


def planned(config: ZooConfig, iters: int | None, batch_size: int | None) -> ZooConfig:
    """The config with another length and batch size, where given."""
    config = copy.deepcopy(config)
    config.dic["iters"] = iters or config.iters
    config.dic["batch_size"] = batch_size or config.batch_size
    return config


def scope_of(config: ZooConfig, recipe: ZooConfig, total_batch: int, recipe_batch: int) -> str:
    """Whether a run follows its recipe to the end.

    Args:
        config: What is trained.
        recipe: The config file as it stands.
        total_batch: Images of an update in all processes.
        recipe_batch: The same in the recipe.

    Returns:
        "smoke" on toy data; "full" where a config of this project is trained unchanged on its own data set, to its
        end and at its batch size; else "reduced".
    """
    if data.is_toy(config):
        return "smoke"
    is_ours = Path(recipe.source).resolve().parent in (zoo.CONFIG_DIR, zoo.BENCHMARK_DIR)
    kept = [(c.dic["iters"], *(c.dic[key] for key in SAME), _data_of(c)) for c in (config, recipe)]
    return "full" if is_ours and kept[0] == kept[1] and total_batch == recipe_batch else "reduced"


def _data_of(config: ZooConfig) -> list[tuple[str, Any]]:
    return [(config.dic[name]["type"], config.dic[name]["transforms"]) for name in ("train_dataset", "val_dataset")]


def new_folder(plan: Plan) -> Path:
    """Makes the run folder: output/<run id>, or <run id>_2, _3... where that name is taken."""
    commit, _ = git_commit(Path(__file__).parent)
    name = run_id(plan.name, plan.seed, commit)
    return make_folder(plan.output, name, processes.rank(), processes.agree)


@dataclasses.dataclass(frozen=True)
class Environment:
    """The content of env.json.

    Attributes:
        values: The file's content.
        class_names: By train id.
    """

    values: dict[str, Any]
    class_names: tuple[str, ...]

    def require_same_data(self, folder: Path) -> None:
        """Compares with the env.json of a run folder that is to be resumed.

        Raises:
            UserError: Its lists, or its classes.yaml, were others.
        """
        try:
            before = dict(json.loads((folder / "env.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # a checkpoint that lies without its run's files
            return
        ours, theirs = self.values.get("data_lists") or {}, before.get("data_lists") or {}
        changed = [f"the {name} list" for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]]
        if before.get("classes_sha256") != self.values.get("classes_sha256"):
            changed.append("classes.yaml")
        if changed:
            raise UserError(
                f"{folder}: {' and '.join(changed)} of the data set changed since the run began: give the folder that "
                f"it began with (--data), or start a new run"
            )


def run_environment(
    plan: Plan,
    stepper: DynamicStep | StaticStep,
    train_set: paddle.io.Dataset | None,
    val_set: paddle.io.Dataset | None,
    step: int,
) -> Environment:
    """The environment of a run that begins, or is resumed, at `step`."""
    sets = {"train": train_set, "val": val_set}
    lists = {name: dataset.provenance for name, dataset in sets.items() if dataset is not None}
    class_names = tuple(train_set.class_names if train_set is not None else map(str, range(19)))
    root = None if plan.synthetic else find_root(plan.config.train_dataset_cfg["dataset_root"])
    classes = root / "classes.yaml" if root is not None else None
    env = RunEnvironment.here(
        PACKAGES,
        project="paddleseg_benchmark",
        config=plan.name,
        seed=plan.seed,
        scope=plan.scope,
        dataset=_dataset_name(plan),
        train_images=len(train_set) if train_set is not None else 0,
        val_images=len(val_set) if val_set is not None else 0,
        class_names=class_names,
        processes=dist.get_world_size(),
        device=paddle.device.get_device(),
        trainable_parameters=stepper.parameters,
        resumed_at_step=step,
        precision=plan.precision,
        data_root=plan.data_root,
        data_lists=lists or None,
        classes_sha256=sha256_of(classes) if classes is not None and classes.is_file() else None,
    )
    more = {"layout": plan.layout, "graph": plan.graph, "synthetic": plan.synthetic}
    return Environment(
        env.to_values() | more | {"total_batch_size": plan.batch_size * dist.get_world_size()}, class_names
    )


def _dataset_name(plan: Plan) -> str:
    if plan.synthetic:
        return "synthetic"
    return "toy" if data.is_toy(plan.config) else plan.config.train_dataset_cfg["type"].lower()
