"""A trained network as its checkpoint describes it: filled, in evaluation mode, with what its input needs to be."""

from __future__ import annotations

import dataclasses
import os

from common.labels import voc_colormap
from common.typed_config import config_from_text
from encnet_single_gpu.checkpoint import TrainState, load_evaluated, read_state
from encnet_single_gpu.config import Config
from encnet_single_gpu.data.dataset import labels_of
from encnet_single_gpu.models import build_model

import numpy as np
from torch import nn


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """What `load_network` gives.

    Attributes:
        model: In evaluation mode, on the CPU.
        state: Class names, mean, std and more, from the checkpoint.
        config: The experiment that made it.
        palette: (num_classes, 3) uint8 RGB.
    """

    model: nn.Module
    state: TrainState
    config: Config
    palette: np.ndarray


def read_experiment(weights: str | os.PathLike) -> tuple[TrainState, Config]:
    """What a checkpoint says besides tensors, and the experiment in it.

    Raises:
        UserError: The checkpoint is missing, damaged, or none of this project.
    """
    state = read_state(weights)
    return state, config_from_text(Config, state.config_text, f"config in {weights}")


def load_network(weights: str | os.PathLike, class_names: tuple[str, ...] | None = None) -> TrainedNetwork:
    """Builds the network of a checkpoint and fills it with the weights that count.

    Args:
        weights: A file of train.py.
        class_names: Of the data that it is to meet; None: as the checkpoint says.

    Raises:
        UserError: The checkpoint is missing, damaged, or made for other classes.
    """
    state, config = read_experiment(weights)
    model = build_model(config.model.name, config.model.backbone, len(class_names or state.class_names))
    load_evaluated(weights, model, class_names or state.class_names)
    return TrainedNetwork(model.eval(), state, config, _palette(config, state))


def _palette(config: Config, state: TrainState) -> np.ndarray:
    """(num_classes, 3) uint8: the checkpoint's; the data set's or default colours for a file that holds none."""
    if state.palette is not None:
        return np.array(state.palette, np.uint8)
    if config.data.dataset != "custom":
        return labels_of(config.data).palette
    return voc_colormap()[1 : len(state.class_names) + 1]  # as load_custom gives them: the first of the map is black
