"""Checkpoints: one safetensors file that holds tensors and, as JSON in its header, everything else.

Nothing in such a file can be executed. It is written to a temporary file, synced and renamed, so `last.safetensors` and
`best.safetensors` are always whole.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import Any

from common.cli import UserError, few
from common.config.typed import config_from_text
from common.files import atomic_write
from common.weights.card import require_same_statistics
from common.weights.finetune import summary, tensors_to_take
from common.weights.header import checkpoint_header, header_from_json, require_classes, state_in_header
from common.weights.package import package_of, read_package
from common.weights.pdparams import is_paddle_file, read_pdparams
from semsegpaddle_glore.config import Config, word_vectors_file
from semsegpaddle_glore.models import Segmentor, build_model
from semsegpaddle_glore.models.backbones.efficientnet_lite import from_torch_names
from semsegpaddle_glore.word_embeddings import read_word_embeddings

import numpy as np
import paddle
import safetensors
import safetensors.numpy
from paddle import nn

FORMAT = "segrepro-semsegpaddle_glore-1"
WORD_VECTORS = "decode_head.word_embeddings"  # of GINet


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint says besides tensors.

    Attributes:
        step: Updates done so far. With the seed it gives the position in the data stream, the learning rate, and the
            generator's seed for the step's drop-out, so this is all the random state there is.
        best_miou: Highest validation mIoU so far as a fraction; NaN before the first evaluation.
        best_step: Its step.
        config_text: The experiment as YAML; mean and std of the images are in it.
        class_names: By train id.
        scaler: State of the loss scaling; empty where there is none.
        palette: RGB by train id, 0..255; None in files written before it was kept.
        is_evaluated: False in what is saved before the evaluation of its step, which a resumed run then makes first.
    """

    step: int
    best_miou: float
    best_step: int
    config_text: str
    class_names: tuple[str, ...]
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] | None = None
    is_evaluated: bool = True


def save_checkpoint(
    path: str | os.PathLike,
    model: nn.Layer,
    state: TrainState,
    optimizer: paddle.optimizer.Optimizer | None = None,
) -> None:
    """Writes the network and `state`, and the optimizer's moments if it is given, whole or not at all.

    Weights are float32: of a model that holds float16 copies (AMP O2) the optimizer's own.
    """
    tensors = {f"model.{name}": value for name, value in float32_weights(model, optimizer).items()}
    if optimizer is not None:
        tensors |= {f"optimizer.{name}": value for name, value in _moments(model, optimizer).items()}
    with atomic_write(path, "wb") as stream:
        stream.write(safetensors.numpy.save(tensors, metadata=checkpoint_header(FORMAT, state)))


def float32_weights(model: nn.Layer, optimizer: paddle.optimizer.Optimizer | None) -> dict[str, np.ndarray]:
    """The model's tensors; where it holds a float16 copy (AMP O2), the optimizer's own float32 weight."""
    masters = {} if optimizer is None else optimizer.state_dict().get("master_weights", {})
    return {name: _float32(masters.get(value.name, value)) for name, value in model.state_dict().items()}


# twin: stdc_seg/checkpoint.py
def read_state(path: str | os.PathLike) -> TrainState:
    """Reads what a checkpoint says besides tensors.

    Raises:
        UserError: The file is missing, damaged, or no checkpoint of this project.
    """
    with _open(path) as file:
        text = state_in_header(file.metadata() or {}, FORMAT)
    if text is None:
        raise UserError(
            f"{path}: not a checkpoint of semsegpaddle_glore (plain weights? give them as model.backbone_weights)"
        )
    return header_from_json(TrainState, text, path)


def build_network(
    config: Config, class_names: tuple[str, ...], checkpoint: str | os.PathLike | None = None
) -> Segmentor:
    """The network of an experiment with random weights.

    GINet's word vectors are read from their file; or taken from the `checkpoint` that will fill the network, which has
    them, so that the file is not needed again.

    Raises:
        UserError: A part of the network that does not exist; no vector for a class; a checkpoint of other classes.
    """
    if checkpoint is not None:
        require_classes(checkpoint, read_state(checkpoint).class_names, class_names)
    return build_model(
        config.model.name,
        config.model.backbone,
        len(class_names),
        output_stride=config.model.output_stride,
        multi_grid=config.model.multi_grid,
        word_embeddings=_word_vectors(config, class_names, checkpoint),
        aux=config.loss.aux_weight > 0,
        first_block_dilated=config.model.first_block_dilated,
        head_norm_momentum=config.model.head_norm_momentum,
        pyramid_channels=config.model.pyramid_channels,
    )


def load_network(
    path: str | os.PathLike, class_names: tuple[str, ...] | None = None, config: Config | None = None
) -> Segmentor:
    """The network of a checkpoint, filled and in evaluation mode.

    Args:
        path: A file of train.py.
        class_names: Those of the data that the network will meet; None takes the checkpoint's own.
        config: Its experiment, where that is changed; None takes the checkpoint's own.

    Raises:
        UserError: The checkpoint is missing, damaged, or made for other classes or another network.
    """
    state = read_state(path)
    config = config or config_from_text(Config, state.config_text, f"config in {path}")
    model = build_network(config, state.class_names, path)
    load_model(path, model, class_names or state.class_names)
    model.eval()
    return model


def load_model(path: str | os.PathLike, model: nn.Layer, class_names: tuple[str, ...]) -> TrainState:
    """Fills the model from a checkpoint, strictly.

    Raises:
        UserError: Other classes, a missing, unknown or differently shaped tensor.
    """
    state = read_state(path)
    require_classes(path, state.class_names, class_names)
    _fill(model, read_tensors(path, "model."), path)
    return state


def load_optimizer(path: str | os.PathLike, model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
    """Fills the optimizer's moments from a checkpoint, and its float32 weights where the model's are of less precision.

    Raises:
        UserError: The checkpoint was saved without, or for another network.
    """
    stored = read_tensors(path, "optimizer.")
    parameters = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    owners = {name.rpartition(".")[0] for name in stored}
    if owners != set(parameters):
        raise UserError(f"{path}: holds no optimizer state for this network: resume from last.safetensors of its run")
    _refuse_other_moments(stored, parameters, path)
    state = {}
    for name, value in stored.items():
        owner, _, moment = name.rpartition(".")
        state[f"{parameters[owner].name}_{moment}"] = paddle.to_tensor(value)
    reduced = {name: parameter for name, parameter in parameters.items() if parameter.dtype != paddle.float32}
    if reduced:
        weights = read_tensors(path, "model.")
        state["master_weights"] = {p.name: paddle.to_tensor(weights[name]) for name, p in reduced.items()}
    optimizer.set_state_dict(state)


def load_backbone(path: str | os.PathLike, backbone: nn.Layer) -> None:
    """Fills the backbone from a weight file (.safetensors, .pdparams, a pip package's), all of it or an error.

    Keys may carry the prefix "backbone." (a whole classifier or network); other parts of the file are left out.

    Raises:
        UserError: The file cannot be read, or lacks a tensor of the backbone.
    """
    path = Path(path)
    if package_of(path) is not None:
        tensors = from_torch_names(read_package(path))
    elif is_paddle_file(path):
        tensors = read_pdparams(path)
    else:
        tensors = read_tensors(path)
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    wanted = backbone.state_dict()
    prefix = "backbone." if any(name.startswith("backbone.") for name in tensors) else ""
    _fill(backbone, {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}, path)


def load_for_finetune(
    path: str | os.PathLike,
    model: nn.Layer,
    class_names: tuple[str, ...],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> str:
    """Fills the model from a checkpoint of these or other classes; what depends on their number begins anew.

    Word vectors are of the classes: they are the network's own, never the checkpoint's.

    Args:
        path: The checkpoint.
        model: The network to be trained.
        class_names: Its classes, by train id.
        mean: Of RGB images scaled to 0..1, as the experiment has it.
        std: Likewise.

    Returns:
        What was taken, as a line for the user.

    Raises:
        UserError: No checkpoint of this project, one of another network, or of other mean and std.
    """
    state = read_state(path)
    trained = config_from_text(Config, state.config_text, f"config in {path}").data
    require_same_statistics(path, (trained.mean, trained.std), (mean, std))
    wanted = {name: _float32(value) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in wanted.items() if name != WORD_VECTORS}
    stored = read_tensors(path, "model.")
    stored_shapes = {name: value.shape for name, value in stored.items() if name != WORD_VECTORS}
    taken = tensors_to_take(path, stored_shapes, shapes, len(state.class_names), len(class_names))
    _fill(model, wanted | {name: stored[name] for name in taken}, path)
    return summary(path, shapes, taken)


def read_tensors(path: str | os.PathLike, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a safetensors file whose names begin with `prefix`, under what follows it.

    Raises:
        UserError: The file is missing or damaged.
    """
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
        try:
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except TypeError as error:  # NumPy has no bfloat16
            raise UserError(f"{path}: numbers of a type that is not read ({error}): convert them to float32") from None


# twin: stdc_seg/checkpoint.py
def _refuse_other_moments(
    stored: dict[str, np.ndarray], parameters: dict[str, paddle.Tensor], path: str | os.PathLike
) -> None:
    """Raises UserError unless every parameter has as many moments, each a finite number or one for each weight."""
    for name, value in stored.items():
        shape = tuple(parameters[name.rpartition(".")[0]].shape)
        if tuple(value.shape) not in ((), (1,), shape) or not np.isfinite(value).all():
            raise UserError(f"{path}: 'optimizer.{name}' is of another shape or not finite: resume from a whole file")
    if len(set(Counter(name.rpartition(".")[0] for name in stored).values())) > 1:
        raise UserError(f"{path}: lacks a part of the optimizer's state: resume from a whole file")


# twin: stdc_seg/checkpoint.py
def _fill(model: nn.Layer, tensors: dict[str, np.ndarray], path: str | os.PathLike) -> None:
    wanted = model.state_dict()
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        raise UserError(
            f"{path}: fits another network: {len(missing)} tensors are missing ({few(missing)}), "
            f"{len(unknown)} are not known ({few(unknown)}): give its own file"
        )
    for name, value in tensors.items():
        if tuple(wanted[name].shape) != value.shape:
            raise UserError(
                f"{path}: '{name}' is {value.shape}, the network has {tuple(wanted[name].shape)}: give its own file"
            )
        if value.dtype != np.float32:
            raise UserError(f"{path}: '{name}' is {value.dtype}: convert the weights to float32")
        if not np.isfinite(value).all():
            raise UserError(f"{path}: '{name}' holds values that are not finite: the weights are broken, take others")
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in tensors.items()})


def _word_vectors(
    config: Config, class_names: tuple[str, ...], checkpoint: str | os.PathLike | None
) -> np.ndarray | None:
    if config.model.name != "ginet":
        return None
    if checkpoint is None:
        return read_word_embeddings(word_vectors_file(config.model), class_names)
    return read_tensors(checkpoint, "model.decode_head.").get("word_embeddings")


def _moments(model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, np.ndarray]:
    """The optimizer's moments as "<the network's own parameter name>.<moment>".

    Paddle names parameters by a counter of the process ("conv2d_7.w_0"), which is not the same in the next process.
    """
    stored = optimizer.state_dict()
    tensors = {}
    for name, parameter in model.named_parameters():
        prefix = f"{parameter.name}_"
        moments = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        tensors |= {f"{name}.{moment}": _float32(value) for moment, value in moments.items()}
    return tensors


# twin: stdc_seg/checkpoint.py
# twin: paddleseg_benchmark/checkpoint.py
def _open(path: str | os.PathLike) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"no weight file {path}: check the path") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}): copy it again, or give one of train.py"
        ) from None


def _float32(tensor: paddle.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy(), np.float32)
