"""The data of an experiment: its root, its label set and its training batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.config import Config, DataConfig, StageConfig
from awesome_pytorch_seg.data.transforms import augment, normalize
from common.cli import UserError
from common.labels import LabelSet, label_set, load_custom
from common.samples.list_dataset import REPOSITORY, ListDataset, draw_toy, find_root
from common.samples.stream import BatchLoader, TrainStream

import numpy as np

TOY_TRAIN, TOY_VAL, TOY_SIZE = 200, 50, (128, 256)


def with_root(data: DataConfig, root: str | None = None) -> DataConfig:
    """The config with `root` (or its own root) found on this machine; the embedded data set is drawn when missing.

    Raises:
        UserError: There is no such folder.
    """
    wanted = root or data.root
    found = find_root(wanted)
    if data.dataset == "toy" and root is None:
        found = found or REPOSITORY / wanted
        if processes.rank() == 0:
            draw_toy("cityscapes", found, TOY_TRAIN, TOY_VAL, TOY_SIZE)
        processes.wait_for_all()
    if found is None:
        raise UserError(
            f"no data set in '{wanted}' (looked here and in the repository): give its place as --data, fetch it with "
            f"data/download.py, or train on the embedded data with --config quickstart"
        )
    return dataclasses.replace(data, root=str(found))


def labels_of(config: DataConfig) -> LabelSet:
    """The label set of a config: by name, or classes.yaml in the root for "custom".

    Raises:
        UserError: Unknown name, missing or wrong classes.yaml.
    """
    if config.dataset == "custom":
        return load_custom(Path(config.root) / "classes.yaml")
    return label_set("cityscapes" if config.dataset == "toy" else config.dataset)


def open_list(config: DataConfig, list_name: str) -> ListDataset:
    """The data set of one list file of the config's root.

    Raises:
        UserError: See `labels_of` and `ListDataset`.
    """
    return ListDataset(labels_of(config), config.root, list_name)


def train_stream(dataset: ListDataset, config: Config, stage: StageConfig) -> TrainStream:
    """The stream of training samples as `stage` augments them, normalised."""
    data = config.data
    fill = tuple(round(255 * value) for value in data.mean)

    def transform(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, label = augment(image, label, config.augment, stage, fill, rng)
        return normalize(image, data.mean, data.std), label

    return TrainStream(dataset, transform, config.train.seed)


def train_batches(
    dataset: ListDataset, config: Config, first_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """This process's share of the batches of all steps from `first_step`, stage after stage.

    Shapes: yields images float32 (B, 3, h, w), label int64 (B, h, w), pair indices int64 (B,).

    Raises:
        UserError: The processes cannot share a batch equally.
    """
    train, step = config.train, first_step
    while step < train.iters:
        stage, end = config.augment.stage_at(step, train.iters)
        stream = train_stream(dataset, config, stage)
        ours = (train.batch_size, step, end, train.num_workers, processes.rank(), processes.world_size())
        yield from BatchLoader(stream, *ours)
        step = end


def label_pieces(dataset: ListDataset, config: Config, count: int = 128, side: int = 64) -> Iterator[np.ndarray]:
    """Squares of training labels, as augmented in the last stage, of many images. Yields int64 (side, side).

    The defaults are 2048 blocks of DUNet's at stride 16.
    """
    stream = train_stream(dataset, config, config.augment.stages[-1])
    for position in range(count):
        _, label, _ = stream[position]
        yield label[:side, :side]
