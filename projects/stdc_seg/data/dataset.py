"""Pictures and labels from list files, and the endless stream of training samples drawn from them.

Every random choice of a training sample follows from (seed, position in the stream), so a run can stop and go on at any
position, with any number of loader threads and of processes, and see the same samples.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


class TrainStream:
    """Training samples by position in an endless stream: the data set in a new random order, again and again.

    Shapes: item -> image float32 (3, h, w), label int64 (h, w), pair index int64 scalar.
    """

    def __init__(self, dataset: ListDataset, data: DataConfig, augment_config: AugmentConfig, seed: int):
        self.dataset = dataset
        self.data = data
        self.augment_config = augment_config
        self.seed = seed

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, np.int64]:
        index = self.pair_index(position)
        sample = self.dataset.load(index)
        rng = np.random.default_rng([self.seed, 1, position])
        image, label = augment(sample.image, sample.label, self.augment_config, rng)
        return normalize(image, self.data.mean, self.data.std), label.astype(np.int64), np.int64(index)

    def pair_index(self, position: int) -> int:
        """Which pair stands at `position`."""
        epoch, place = divmod(position, len(self.dataset))
        return int(self._order(epoch)[place])

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a stream lives as long as its run
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.dataset))


class BatchLoader:
    """Batches of a stream for the steps from `first_step` to `last_step` - 1, prepared ahead by threads.

    The batch of a step is the next `batch_size` positions of the stream; process `rank` of `world_size` takes every
    `world_size`-th of them. Decoding and resizing happen in OpenCV, outside Python's lock, so threads do what processes
    would, without shared memory to run out of; an error in a picture arrives here as it was raised.

    Shapes: yields images float32 (b, 3, h, w), label int64 (b, h, w), pair indices int64 (b,) with
    b = batch_size / world_size.

    Raises:
        UserError: The batch cannot be shared equally; from iteration: see `ListDataset.load`.
    """

    AHEAD = 2  # batches in preparation

    def __init__(
        self,
        stream: TrainStream,
        batch_size: int,
        first_step: int,
        last_step: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise UserError(f"train.batch_size {batch_size} cannot be shared equally by {world_size} processes")
        self.stream = stream
        self.batch_size = batch_size
        self.steps = range(first_step, last_step)
        self.num_workers = num_workers
        self.rank, self.world_size = rank, world_size

    def positions(self, step: int) -> range:
        """Stream positions of this process's share of a step's batch."""
        first = step * self.batch_size
        return range(first + self.rank, first + self.batch_size, self.world_size)

    def __iter__(self) -> Iterator[tuple[paddle.Tensor, paddle.Tensor, np.ndarray]]:
        if self.num_workers == 0:
            for step in self.steps:
                yield _collate([self.stream[position] for position in self.positions(step)])
            return
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            pending = deque()
            for step in self.steps:
                pending.append([pool.submit(self.stream.__getitem__, p) for p in self.positions(step)])
                if len(pending) > self.AHEAD:
                    yield _collate([future.result() for future in pending.popleft()])
            while pending:
                yield _collate([future.result() for future in pending.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _collate(
    samples: list[tuple[np.ndarray, np.ndarray, np.int64]],
) -> tuple[paddle.Tensor, paddle.Tensor, np.ndarray]:
    images, labels, indices = (np.stack(parts) for parts in zip(*samples, strict=True))
    return paddle.to_tensor(images), paddle.to_tensor(labels), indices
