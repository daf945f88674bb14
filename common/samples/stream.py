"""The endless stream of training samples drawn from a data set, and batches of it prepared ahead.

Every random choice of a training sample follows from (seed, position in the stream), so a run can stop and go on at any
position, with any number of loader threads and of processes, and see the same samples.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from common.cli import UserError
from common.labels import IGNORE
from common.machine.parallel import Threads
from common.samples.list_dataset import ListDataset

import numpy as np

Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class TrainStream:
    """Training samples by position in an endless stream: the data set in a new random order, again and again.

    Args:
        dataset: Where samples come from.
        transform: (uint8 RGB (H, W, 3), uint8 train ids (H, W), generator) -> (float32 (3, h, w), integers (h, w)).
        seed: Of order and transforms.

    Shapes: item -> image float32 (3, h, w), label int64 (h, w), pair index int64 scalar.
    """

    def __init__(self, dataset: ListDataset, transform: Transform, seed: int):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, np.int64]:
        index = self.pair_index(position)
        sample = self.dataset.load(index)
        rng = np.random.default_rng([self.seed, 1, position])
        image, label = self.transform(sample.image, sample.label, rng)
        return image, label.astype(np.int64), np.int64(index)

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
    would, without shared memory to run out of; an error in an image arrives here as it was raised. Without loader
    threads (0) each batch is prepared when it is asked for.

    Shapes: yields images float32 (b, 3, h, w), label int64 (b, h, w), pair indices int64 (b,) with
    b = batch_size / world_size.

    Raises:
        UserError: The batch cannot be shared equally; from iteration: see `ListDataset.load`, and a pair that has not
            arrived after `HANGS_AFTER` seconds (a disk or network drive that hangs).
    """

    AHEAD = 2  # batches in preparation
    HANGS_AFTER = 300.0  # seconds

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

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        threads, ahead = Threads(max(1, self.num_workers)), self.AHEAD if self.num_workers else 0
        try:
            pending = deque()
            for step in self.steps:
                pending.append([(p, threads.submit(self.stream.__getitem__, p)) for p in self.positions(step)])
                if len(pending) > ahead:
                    yield self._finished(pending.popleft())
            while pending:
                yield self._finished(pending.popleft())
        finally:
            threads.stop()

    def _finished(self, batch: list[tuple[int, Future]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs, samples = self.stream.dataset.pairs, []
        for position, future in batch:
            samples.append(arrived(future, f"{pairs[self.stream.pair_index(position)].image} or its label"))
        return _stack(samples)


def arrived(future: Future, what: str) -> Any:
    """The result of reading a file in a thread.

    Raises:
        UserError: It has not come after `BatchLoader.HANGS_AFTER` seconds; and what the reading raised.
    """
    try:
        return future.result(BatchLoader.HANGS_AFTER)
    except TimeoutError:
        if future.done():  # the error is the reading's own
            raise
        raise UserError(
            f"{what}: not read in {BatchLoader.HANGS_AFTER:g} seconds: is the disk or network drive still there? see "
            f"to it, then go on with --resume"
        ) from None


class ValidPixels:
    """Stops a run with next to nothing to learn, as a wrong label mapping leaves it.

    That is over 99 % ignored in the first 200 labels, or everything where a run ends before.
    """

    def __init__(self):
        self.labels = self.valid = self.pixels = 0

    def look_at(self, label: np.ndarray) -> None:
        """Counts a batch of labels (B, H, W).

        Raises:
            UserError: 200 labels have been seen, and hardly a pixel counts.
        """
        if self.labels >= 200:
            return
        self.labels += label.shape[0]
        self.valid += int((label != IGNORE).sum())
        self.pixels += label.size
        if self.labels >= 200:
            self._require(0.01)

    def at_the_end(self) -> None:
        """Judges a training that saw fewer labels, from its first step.

        Raises:
            UserError: Every pixel of every label was ignored.
        """
        if self.labels:
            self._require(1 / self.pixels)

    def _require(self, share: float) -> None:
        if self.valid < share * self.pixels:
            raise UserError(
                f"{100 - 100 * self.valid / self.pixels:.1f} % of the pixels of the first {self.labels} labels are "
                "ignored: is the data set named right for these labels? common/create_dataset_list.py check says why"
            )


def require_valid_pixels(count: int, labels: Sequence[object]) -> None:
    """Raises UserError where no pixel of the labels of an evaluation counts: there is no score then.

    Args:
        count: Valid pixels in all of them.
        labels: Their names.
    """
    if count == 0:
        raise UserError(
            f"{labels[0]}: no pixel of this label counts, nor of all {len(labels)} of its list: is the data set "
            "named right for these labels? common/create_dataset_list.py check says why"
        )


def _stack(samples: list[tuple[np.ndarray, np.ndarray, np.int64]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, labels, indices = (np.stack(parts) for parts in zip(*samples, strict=True))
    return images, labels, indices
