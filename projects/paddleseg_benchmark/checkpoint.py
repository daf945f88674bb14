"""Checkpoints: one safetensors file that holds tensors and, as JSON in its header, everything else.

Nothing in such a file can be executed. It is written to a temporary file, synced and renamed, so `last.safetensors` and
`best.safetensors` are always whole. The same state gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from common.cli import UserError
from common.files import atomic_write
from common.weights.header import header_from_json
from paddleseg_benchmark.updates import DynamicStep, StaticStep, StepState

import numpy as np
import paddle
import safetensors
import safetensors.numpy

FORMAT = "segrepro-paddleseg_benchmark-1"


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint says besides tensors.

    Attributes:
        step: Updates done so far. With the seed it gives the position in the stream of samples and what is drawn next.
        evaluated_step: The last step that was evaluated; 0 before the first evaluation.
        best_miou: Highest validation mIoU so far as a fraction; NaN before the first evaluation.
        best_step: Its step.
        config_name: Name of the experiment.
        config_text: The experiment as PaddleSeg's YAML, complete, with the data set's folder.
        class_names: By train id.
        seed: Of everything random.
        data_root: --data, if given.
        scope: See `runs.scope_of`.
        layout: "NCHW" or "NHWC", inside the network.
        precision: See `updates.PRECISIONS`.
        graph: See `updates.GRAPHS`.
        synthetic: Whether images are random ones.
        do_eval: Whether the run evaluates.
        log_iters: Updates between log lines.
        save_interval: Updates between checkpoints.
        keep_checkpoint_max: So many checkpoints of single steps are kept.
        schedule: State of the learning rate's schedule.
        loss_scale: State of the loss scaler; None without mixed precision.
        is_resumable: Whether the file holds the optimizer's moments.
    """

    step: int
    evaluated_step: int
    best_miou: float
    best_step: int
    config_name: str
    config_text: str
    class_names: tuple[str, ...]
    seed: int
    data_root: str | None
    scope: str
    layout: str
    precision: str
    graph: str
    synthetic: bool
    do_eval: bool
    log_iters: int
    save_interval: int
    keep_checkpoint_max: int
    schedule: dict[str, Any]
    loss_scale: dict[str, Any] | None
    is_resumable: bool = False


def save_checkpoint(
    path: str | os.PathLike,
    weights: Mapping[str, np.ndarray],
    state: TrainState,
    moments: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: The file.
        weights: The network's tensors by name, float32.
        state: Everything else.
        moments: The optimizer's tensors by name; None leaves them out.
    """
    tensors = {f"model.{name}": value for name, value in weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in (moments or {}).items()}
    state = dataclasses.replace(state, is_resumable=moments is not None)
    header = {FORMAT: json.dumps(dataclasses.asdict(state))}  # one entry: several are written in random order
    with atomic_write(path, "wb") as stream:
        stream.write(safetensors.numpy.save(tensors, metadata=header))


def read_state(path: str | os.PathLike) -> TrainState:
    """Reads what a checkpoint says besides tensors.

    Raises:
        UserError: The file is missing, damaged, or not a checkpoint of this project.
    """
    with _open(path) as file:
        header = file.metadata() or {}
    if FORMAT not in header:
        raise UserError(f"{path}: not a checkpoint of paddleseg_benchmark: give a file that its train.py saved")
    return header_from_json(TrainState, header[FORMAT], path)


def load_network(path: str | os.PathLike, network: paddle.nn.Layer) -> None:
    """Fills a network from a checkpoint, strictly.

    Raises:
        UserError: A missing, unknown or differently shaped tensor, or one that is not finite.
    """
    tensors, wanted = _tensors(path, "model."), network.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        raise UserError(
            f"{path}: fits another network: {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} are not known ({', '.join(unknown[:3])}): give its own file"
        )
    for name, value in tensors.items():
        if tuple(wanted[name].shape) != value.shape:
            raise UserError(
                f"{path}: '{name}' is {value.shape}, the network has {tuple(wanted[name].shape)}: give its own file"
            )
        if not np.isfinite(value).all():
            raise UserError(f"{path}: '{name}' holds NaN or infinity: the weights are broken, take others")
    network.set_state_dict({name: paddle.to_tensor(v).astype(wanted[name].dtype) for name, v in tensors.items()})


def load_stepper(path: str | os.PathLike, stepper: DynamicStep | StaticStep, state: TrainState) -> None:
    """Brings network, optimizer, schedule and loss scale to what they were when the checkpoint was saved.

    Raises:
        UserError: See `load_network`; the file was saved without the optimizer's moments, or for another optimizer.
    """
    load_network(path, stepper.zoo_network.network)
    if not state.is_resumable:
        raise UserError(f"{path}: was saved without the optimizer's state: resume from last.safetensors of its run")
    moments = _tensors(path, "optimizer.")
    shapes = stepper.parameter_shapes()
    for name, value in moments.items():
        owner = name.rpartition(".")[0]
        if owner and (owner not in shapes or value.shape not in ((), (1,), shapes[owner])):
            raise UserError(f"{path}: 'optimizer.{name}' does not fit this network: resume from its own file")
        if not np.isfinite(value).all():
            raise UserError(f"{path}: 'optimizer.{name}' holds NaN or infinity: resume from another checkpoint")
    stepper.load_state(_tensors(path, "model."), StepState(moments, state.schedule, state.loss_scale))


def _tensors(path: str | os.PathLike, prefix: str) -> dict[str, np.ndarray]:
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


# twin: semsegpaddle_glore/checkpoint.py
# twin: stdc_seg/checkpoint.py
def _open(path: str | os.PathLike) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"no weight file {path}: check the path") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}): copy it again, or give one of train.py"
        ) from None
