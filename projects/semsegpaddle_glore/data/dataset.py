"""The data of an experiment: its label set, its lists and its training stream."""

from __future__ import annotations

from pathlib import Path

from common.cli import UserError, did_you_mean
from common.labels import LabelSet, label_set, load_custom, names
from common.samples.list_dataset import ListDataset
from common.samples.stream import TrainStream
from semsegpaddle_glore.config import AugmentConfig, DataConfig
from semsegpaddle_glore.data.transforms import augment, augment_window, normalize

import numpy as np


def labels_of(config: DataConfig) -> LabelSet:
    """The label set of a config: by name, or classes.yaml in the root for "custom".

    Raises:
        UserError: Unknown name, missing or wrong classes.yaml.
    """
    if config.dataset == "custom":
        return load_custom(Path(config.root) / "classes.yaml")
    if config.dataset == "toy":
        return label_set("cityscapes")
    if config.dataset not in names():
        valid = did_you_mean(config.dataset, [*names(), "custom", "toy"])
        raise UserError(f"data.dataset: unknown data set '{config.dataset}': {valid}")
    return label_set(config.dataset)


def open_list(config: DataConfig, list_name: str) -> ListDataset:
    """The data set of one list file: relative to the config's root, or (as the original's lists) to the working folder.

    Its lines are relative to the root in both cases, and may be separated by commas, tabs, "|" or spaces.

    Raises:
        UserError: See `labels_of` and `ListDataset`.
    """
    if not (Path(config.root) / list_name).is_file() and Path(list_name).is_file():
        list_name = str(Path(list_name).resolve())
    return ListDataset(labels_of(config), config.root, list_name)


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
