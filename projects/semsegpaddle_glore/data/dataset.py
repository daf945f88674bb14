"""The training stream of an experiment."""

from __future__ import annotations

from common.samples.list_dataset import ListDataset
from common.samples.roots import DataConfig
from common.samples.stream import TrainStream
from semsegpaddle_glore.config import AugmentConfig
from semsegpaddle_glore.data.transforms import augment, augment_window, normalize

import numpy as np


def train_stream(dataset: ListDataset, data: DataConfig, augment_config: AugmentConfig, seed: int) -> TrainStream:
    """The stream of augmented, normalised training samples."""
    fill = tuple(round(255 * value) for value in data.mean)

    def transform(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if augment_config.sampling == "window":
            image, label = augment_window(image, label, augment_config, fill, rng)
        else:
            image, label = augment(image, label, augment_config, rng)
        return normalize(image, data.mean, data.std), label

    return TrainStream(dataset, transform, seed)
