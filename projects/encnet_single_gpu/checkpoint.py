"""Checkpoints: one safetensors file that holds tensors and, as JSON in its header, everything else.

Nothing in such a file can be executed. It is written to a temporary file, synced and renamed, so `last.safetensors` and
`best.safetensors` are always whole.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Any

from common.cli import UserError, few
from common.config.typed import config_from_text
from common.files import atomic_write
from common.weights.card import require_same_statistics
from common.weights.finetune import summary, tensors_to_take
from common.weights.header import checkpoint_header, header_from_json, require_classes, state_in_header
from encnet_single_gpu.config import Config
from encnet_single_gpu.models import build_model
from encnet_single_gpu.optimizer import WeightAverage

import safetensors
import safetensors.torch
import torch
from torch import nn

FORMAT = "segrepro-encnet_single_gpu-1"


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint says besides tensors.

    Attributes:
        step: Updates done so far. With the seed it gives the position in the data stream, the learning rate and the
            random numbers of the next step, so this is all the random state there is.
        best_miou: Highest validation mIoU so far as a fraction; NaN before the first evaluation.
        best_step: Its step.
        config_text: The experiment as YAML.
        class_names: By train id.
        mean: Of RGB images scaled to 0..1.
        std: Likewise.
        scaler: State of the gradient scaler of fp16 training; empty otherwise.
        palette: RGB by train id, 0..255; None in files written before it was kept.
        is_evaluated: False in what is saved before the evaluation of its step, which a resumed run then makes first.
    """

    step: int
    best_miou: float
    best_step: int
    config_text: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] | None = None
    is_evaluated: bool = True


# twin: awesome_pytorch_seg/checkpoint.py
def save_checkpoint(
    path: str | os.PathLike,
    model: nn.Module,
    state: TrainState,
    optimizer: torch.optim.Optimizer | None = None,
    average: WeightAverage | None = None,
) -> None:
    """Writes the network and `state`, and what resuming needs besides if it is given, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.model.state_dict().items()}
    if optimizer is not None:
        tensors |= {
            f"optimizer.{name}.{key}": value
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path, "wb") as stream:
        stream.write(safetensors.torch.save(tensors, metadata=checkpoint_header(FORMAT, state)))


# twin: awesome_pytorch_seg/checkpoint.py
def read_state(path: str | os.PathLike) -> TrainState:
    """Reads what a checkpoint says besides tensors.

    Raises:
        UserError: The file is missing, damaged, or no checkpoint of this project.
    """
    with _open(path) as file:
        text = state_in_header(file.metadata() or {}, FORMAT)
    if text is None:
        raise UserError(f"{path}: not a checkpoint of encnet_single_gpu: use a file that its train.py wrote")
    return header_from_json(TrainState, text, path)


def load_model(path: str | os.PathLike, model: nn.Module, class_names: tuple[str, ...]) -> TrainState:
    """Fills the network from a checkpoint, strictly: `best.safetensors` holds the weights that were evaluated.

    Raises:
        UserError: Other classes, a missing, unknown or differently shaped tensor.
    """
    state = read_state(path)
    _require_classes(path, state.class_names, class_names)
    _fill(model, _tensors(path, "model."), path)
    return state


# twin: awesome_pytorch_seg/checkpoint.py
def load_evaluated(path: str | os.PathLike, model: nn.Module, class_names: tuple[str, ...]) -> TrainState:
    """Fills the network with the weights that are evaluated: the running mean where the checkpoint has one.

    Raises:
        UserError: See `load_model`.
    """
    state = load_model(path, model, class_names)
    average = _tensors(path, "average.")
    if average:
        _fill(model, average, path)
    return state


def read_experiment(path: str | os.PathLike) -> tuple[TrainState, Config]:
    """What a checkpoint holds besides tensors, and the experiment in it.

    Raises:
        UserError: The checkpoint is missing, damaged, or none of this project.
    """
    state = read_state(path)
    return state, config_from_text(Config, state.config_text, f"config in {path}")


def load_network(path: str | os.PathLike, class_names: tuple[str, ...] | None = None) -> nn.Module:
    """The network of a checkpoint with the weights that are evaluated, in evaluation mode on the CPU.

    Args:
        path: The checkpoint.
        class_names: Those of the data that the network will meet; None takes the checkpoint's own.

    Raises:
        UserError: The checkpoint is missing, damaged, or made for other classes.
    """
    state, config = read_experiment(path)
    names = class_names or state.class_names
    model = build_model(config.model.name, config.model.backbone, len(names), config.model.variant)
    load_evaluated(path, model, names)
    return model.eval()


# twin: awesome_pytorch_seg/checkpoint.py
def load_for_finetune(
    path: str | os.PathLike,
    model: nn.Module,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> str:
    """Fills a network from the weights that are evaluated of a checkpoint of these or other classes.

    Tensors whose shapes hold another number of classes stay as they are; the optimizer begins anew.

    Returns:
        What was taken, as a line for the user.

    Raises:
        UserError: No checkpoint of this project, one of another network, or of another mean or std.
    """
    state = read_state(path)
    require_same_statistics(path, (state.mean, state.std), (mean, std))
    stored, own = _tensors(path, "average.") or _tensors(path, "model."), model.state_dict()
    stored_shapes, shapes = ({name: tuple(value.shape) for name, value in x.items()} for x in (stored, own))
    taken = tensors_to_take(path, stored_shapes, shapes, len(state.class_names), len(class_names))
    _fill(model, {**own, **{name: stored[name] for name in taken}}, path)
    return summary(path, shapes, taken)


def load_average(path: str | os.PathLike, average: WeightAverage) -> None:
    """Fills the running mean of the weights from a checkpoint.

    Raises:
        UserError: The checkpoint was saved without, or for another network.
    """
    _fill(average.model, _tensors(path, "average."), path)


# twin: awesome_pytorch_seg/checkpoint.py differs: there the encoder may be trained alone
def load_optimizer(path: str | os.PathLike, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fills the optimizer's moments from a checkpoint.

    Raises:
        UserError: The checkpoint was saved without, or for another network.
    """
    stored = _tensors(path, "optimizer.")
    parameters = dict(model.named_parameters())
    if {name.rpartition(".")[0] for name in stored} != set(parameters):
        raise UserError(f"{path}: holds no optimizer state for this network: resume from last.safetensors of its run")
    _refuse_other_moments(stored, parameters, path)
    for name, value in stored.items():
        owner, _, key = name.rpartition(".")
        parameter = parameters[owner]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)  # on the parameter's device, in its memory layout
        optimizer.state[parameter][key] = value.detach()


# twin: awesome_pytorch_seg/checkpoint.py
def _refuse_other_moments(
    stored: dict[str, torch.Tensor], parameters: dict[str, torch.Tensor], path: str | os.PathLike
) -> None:
    """Raises UserError unless every parameter has as many moments, each a finite number or one for each weight."""
    for name, value in stored.items():
        shape = tuple(parameters[name.rpartition(".")[0]].shape)
        if tuple(value.shape) not in ((), (1,), shape) or not torch.isfinite(value).all():
            raise UserError(f"{path}: 'optimizer.{name}' is of another shape or not finite: resume from a whole file")
    if len(set(Counter(name.rpartition(".")[0] for name in stored).values())) > 1:
        raise UserError(f"{path}: lacks a part of the optimizer's state: resume from a whole file")


def _require_classes(path: str | os.PathLike, stored: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """`require_classes`, with the option that trains the background or leaves it out."""
    try:
        require_classes(path, stored, wanted)
    except UserError as error:
        if stored != ("background", *wanted) and wanted != ("background", *stored):
            raise
        cure = "with" if wanted[0] == "background" else "without"
        raise UserError(f"{error}, or train new ones {cure} --background (ADE20K, PASCAL-Context)") from None


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    wanted = model.state_dict()
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        raise UserError(
            f"{path}: fits another network: {len(missing)} tensors are missing ({few(missing)}), "
            f"{len(unknown)} are not known ({few(unknown)}): give its own file"
        )
    for name, value in tensors.items():
        if value.dtype == torch.float16:  # published weights are stored in half the space
            tensors[name] = value = value.float()
        if wanted[name].shape != value.shape:
            raise UserError(
                f"{path}: '{name}' is {tuple(value.shape)}, the network has {tuple(wanted[name].shape)}: give its own"
            )
        if wanted[name].dtype != value.dtype:
            raise UserError(f"{path}: '{name}' is {value.dtype}, the network has {wanted[name].dtype}: convert it")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: '{name}' holds values that are not finite: the weights are broken, take others")
    model.load_state_dict(tensors)


def _tensors(path: str | os.PathLike, prefix: str) -> dict[str, torch.Tensor]:
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


# twin: awesome_pytorch_seg/checkpoint.py
def _open(path: str | os.PathLike) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"no weight file {path}: check the path") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}): copy it again, or give one of train.py"
        ) from None
