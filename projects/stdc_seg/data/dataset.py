"""The training stream of an experiment."""

from __future__ import annotations

from common.samples.list_dataset import ListDataset
from common.samples.roots import DataConfig
from common.samples.stream import TrainStream
from stdc_seg.config import AugmentConfig
from stdc_seg.data.transforms import augment, normalize

import numpy as np


def train_stream(dataset: ListDataset, data: DataConfig, augment_config: AugmentConfig, seed: int) -> TrainStream:
    """The stream of augmented, normalised training samples."""

    def transform(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, label = augment(image, label, augment_config, rng)
        return normalize(image, data.mean, data.std), label

    return TrainStream(dataset, transform, seed)
