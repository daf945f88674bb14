"""The training batches of an experiment."""

from __future__ import annotations

from collections.abc import Iterator

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.config import Config, StageConfig
from awesome_pytorch_seg.data.transforms import augment, normalize
from common.samples.list_dataset import ListDataset
from common.samples.stream import BatchLoader, TrainStream

import numpy as np


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
