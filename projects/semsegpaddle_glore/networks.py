"""The network that an experiment or a checkpoint describes."""

from __future__ import annotations

import os

from common.config.typed import config_from_text
from common.weights.header import require_classes
from semsegpaddle_glore.checkpoint import load_model, read_state, read_tensors
from semsegpaddle_glore.config import Config, word_vectors_file
from semsegpaddle_glore.models import Segmentor, build_model
from semsegpaddle_glore.word_embeddings import read_word_embeddings

import numpy as np


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


def load_network(weights: str | os.PathLike, config: Config | None = None) -> Segmentor:
    """The network that a checkpoint holds, filled and in evaluation mode; `config` is its experiment, changed or not.

    Raises:
        UserError: The checkpoint is missing, damaged, or for another network.
    """
    state = read_state(weights)
    config = config or config_from_text(Config, state.config_text, f"config in {weights}")
    model = build_network(config, state.class_names, weights)
    load_model(weights, model, state.class_names)
    model.eval()
    return model


def _word_vectors(
    config: Config, class_names: tuple[str, ...], checkpoint: str | os.PathLike | None
) -> np.ndarray | None:
    if config.model.name != "ginet":
        return None
    if checkpoint is None:
        return read_word_embeddings(word_vectors_file(config.model), class_names)
    return read_tensors(checkpoint, "model.decode_head.").get("word_embeddings")
