"""The data of an experiment: its root, its label set and its training batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.cli import UserError
from common.labels import LabelSet, label_set, load_custom
from common.samples.list_dataset import REPOSITORY, ListDataset, draw_toy, find_root
from common.samples.stream import BatchLoader, TrainStream
from encnet_single_gpu.config import Config, DataConfig
from encnet_single_gpu.data.transforms import augment, normalize

import numpy as np

TOY_ROOT = "data/toy_ade20k"
TOY_IMAGES = (160, 40)  # in train and val
TOY_SIZE = (128, 160)  # height, width


def with_root(data: DataConfig, root: str | None = None) -> DataConfig:
    """The config with `root` (or its own root) found on this machine; the embedded data set is drawn if it is missing.

    Raises:
        UserError: An unknown name of a data set, or there is no such folder.
    """
    if data.dataset != "custom":
        label_set(data.dataset)  # a misspelt name is answered before its folder is looked for
    wanted = root or data.root
    if wanted == TOY_ROOT:
        draw_toy("ade20k", REPOSITORY / TOY_ROOT, *TOY_IMAGES, TOY_SIZE)
    found = find_root(wanted)
    if found is None:
        raise UserError(
            f"no data set in '{wanted}' (looked here and in the repository): put it there, give its place as --data, "
            f"or train on the embedded data with --config quickstart"
        )
    return dataclasses.replace(data, root=str(found))


def labels_of(config: DataConfig) -> LabelSet:
    """The label set of a config: by name, or classes.yaml in the root for "custom".

    Raises:
        UserError: Unknown name, missing or wrong classes.yaml.
    """
    if config.dataset == "custom":
        return load_custom(Path(config.root) / "classes.yaml")
    return label_set(config.dataset)


def open_list(config: DataConfig, list_name: str) -> ListDataset:
    """The data set of one list file of the config's root.

    Raises:
        UserError: See `labels_of` and `ListDataset`.
    """
    return ListDataset(labels_of(config), config.root, list_name)


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
