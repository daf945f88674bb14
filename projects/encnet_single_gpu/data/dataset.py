"""The training batches of an experiment."""

from __future__ import annotations

from common.cli import UserError
from common.samples.list_dataset import ListDataset
from common.samples.stream import BatchLoader, TrainStream
from encnet_single_gpu.config import Config
from encnet_single_gpu.data.transforms import augment, normalize

import numpy as np


def train_batches(dataset: ListDataset, config: Config, first_step: int) -> BatchLoader:
    """The batches of all steps from `first_step`, augmented and normalised.

    Shapes: yields images float32 (B, 3, h, w), label int64 (B, h, w), pair indices int64 (B,).

    Raises:
        UserError: The loss weighs another number of classes.
    """
    _refuse_other_weights(dataset, config)
    data, train = config.data, config.train
    fill = tuple(round(255 * value) for value in data.mean)

    def transform(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, label = augment(image, label, config.augment, fill, rng)
        return normalize(image, data.mean, data.std), label

    stream = TrainStream(dataset, transform, train.seed)
    return BatchLoader(stream, train.batch_size, first_step, train.iters, train.num_workers)


def _refuse_other_weights(dataset: ListDataset, config: Config) -> None:
    weights, labels = config.loss.class_weights, dataset.labels
    if weights is not None and len(weights) != labels.num_classes:
        raise UserError(
            f"loss.class_weights has {len(weights)} weights, the labels of '{labels.name}' have {labels.num_classes} "
            f"classes: give one for each"
        )
