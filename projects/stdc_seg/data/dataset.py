"""Pictures and labels from list files, and the endless stream of training samples drawn from them.

Every random choice of a training sample follows from (seed, position in the stream), so a run can stop and go on at any
position, with any number of loader processes, and see the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.cli import UserError
from common.dataset_list import read_list
from common.labels import LabelSet, label_set, load_custom
from common.picture_files import read_image, read_label
from stdc_seg.config import AugmentConfig, DataConfig
from stdc_seg.data.transforms import augment, normalize

import numpy as np
import paddle


class Sample(NamedTuple):
    """One decoded picture: uint8 RGB (H, W, 3), uint8 train ids (H, W), and the label's path for messages."""

    image: np.ndarray
    label: np.ndarray
    name: str


def labels_of(config: DataConfig) -> LabelSet:
    """The label set of a config: by name, or classes.yaml in the root for "custom".

    Raises:
        UserError: Unknown name, missing or wrong classes.yaml.
    """
    if config.dataset == "custom":
        return load_custom(Path(config.root) / "classes.yaml")
    return label_set("cityscapes" if config.dataset == "toy" else config.dataset)


class ListDataset:
    """The pairs of one list file, decoded and checked one by one.

    Args:
        config: Names the data set and its root.
        list_name: The list, relative to the root.

    Raises:
        UserError: The list is missing, empty, or has entries without a label; and from `load`: a picture or label that
            cannot be read, differs from its partner in size, or holds values that are no class.
    """

    def __init__(self, config: DataConfig, list_name: str):
        self.labels = labels_of(config)
        self.pairs = read_list(Path(config.root) / list_name, config.root)
        unlabelled = [pair.image for pair in self.pairs if pair.label is None]
        if unlabelled:
            raise UserError(f"{Path(config.root) / list_name}: no label for {unlabelled[0]}: use a list with labels")

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        """Decodes and checks pair number `index`."""
        pair = self.pairs[index]
        image, raw = read_image(pair.image), read_label(pair.label)
        if raw.ndim != 2:
            raise UserError(
                f"{pair.label}: a label has one channel of ids, this has {raw.shape[2]}: convert the colours"
            )
        if image.shape[:2] != raw.shape:
            raise UserError(
                f"{pair.label}: label is {raw.shape}, picture {image.shape[:2]}: they must be the same size"
            )
        return Sample(image, self._train_ids(raw, pair.label), str(pair.label))

    def _train_ids(self, raw: np.ndarray, path: Path) -> np.ndarray:
        labels = self.labels
        if labels.name == "cityscapes" and path.name.endswith("labelTrainIds.png"):
            labels = label_set("cityscapes_trainids")  # mapped already
        return labels.encode(raw, source=path)


class TrainStream(paddle.io.Dataset):
    """Training samples by position in an endless stream: the data set in a new random order, again and again.

    Shapes: item -> image float32 (3, h, w), label int64 (h, w), pair index int64 scalar.
    """

    def __init__(self, dataset: ListDataset, data: DataConfig, augment_config: AugmentConfig, seed: int):
        super().__init__()
        self.dataset = dataset
        self.data = data
        self.augment_config = augment_config
        self.seed = seed

    def __len__(self) -> int:
        return 2**62  # endless; PositionSampler says which positions are asked for

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, np.int64]:
        index = self.pair_index(position)
        sample = self.dataset.load(index)
        rng = np.random.default_rng([self.seed, 1, position])
        image, label = augment(sample.image, sample.label, self.augment_config, rng)
        return normalize(image, self.data.mean, self.data.std), label.astype(np.int64), np.int64(index)

    def pair_index(self, position: int) -> int:
        """Which pair stands at `position`."""
        epoch, place = divmod(position, len(self.dataset))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.dataset))
        return int(order[place])


class PositionSampler(paddle.io.BatchSampler):
    """Stream positions of this process's share of the batches from `first_step` to `last_step` - 1.

    The batch of a step is the next `batch_size` positions of the stream; process `rank` of `world_size` takes every
    `world_size`-th of them.
    """

    def __init__(self, batch_size: int, first_step: int, last_step: int, rank: int = 0, world_size: int = 1):
        if batch_size % world_size:
            raise UserError(f"train.batch_size {batch_size} cannot be shared equally by {world_size} processes")
        self.batch_size = batch_size
        self.first_step, self.last_step = first_step, last_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.last_step):
            first = step * self.batch_size
            yield list(range(first + self.rank, first + self.batch_size, self.world_size))

    def __len__(self) -> int:
        return self.last_step - self.first_step
