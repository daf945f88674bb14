"""The batches of a training: in paddleseg's order, each sample's random transforms drawn from its place in the stream.

So there is no random state to save, and a training can be resumed at any step, with any number of loader processes.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from common.cli import UserError
from common.machine.parallel import Threads
from paddleseg_benchmark import doctor

import numpy as np
import paddle
import paddle.distributed as dist

AHEAD = 2  # batches in preparation
HANGS_AFTER = 300.0  # seconds
Batch = tuple[paddle.Tensor, paddle.Tensor, list[int]]

_DRAWING = threading.Lock()  # paddleseg's transforms draw from the random states of the whole process


def batches(
    dataset: paddle.io.Dataset, batch_size: int, num_workers: int, seed: int = 0, first_step: int = 0
) -> Iterator[Batch]:
    """Batches of this process without end: images float32 (B, 3, H, W), labels int64 (B, H, W), and which pairs.

    The order is paddleseg's: its sampler shuffles by the number of the epoch, and drops what is less than a batch. The
    batch of a step is the same however many steps were done before in this process (`first_step`: so many are done).
    Without loader processes a thread prepares batches ahead: paddle's own would wait for ever after an error in an
    image.

    Raises:
        UserError: There are fewer images than one batch of all processes takes; from iteration: an image or label
            that cannot be used, a loader process that has ended, or a batch that has not come after `HANGS_AFTER` s.
    """
    sampler = paddle.io.DistributedBatchSampler(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    if len(sampler) == 0:
        raise UserError(f"{len(dataset)} training images are less than one batch: lower the batch size")
    placed = _Placed(dataset, seed, dist.get_rank())
    first_epoch, done = divmod(first_step, len(sampler))
    threads = Threads(1)
    try:
        for epoch in itertools.count(first_epoch):
            sampler.set_epoch(epoch)
            steps = range(epoch * len(sampler), (epoch + 1) * len(sampler))
            order = [
                [(step, place, index) for place, index in enumerate(indices)]
                for step, indices in zip(steps, sampler, strict=True)
            ][done if epoch == first_epoch else 0 :]
            prepared = map(partial(_load, placed), order)
            if num_workers:
                loader = paddle.io.DataLoader(placed, batch_sampler=order, num_workers=num_workers)
                prepared = _from_processes(iter(loader), len(order))
            yield from _in_time(threads, prepared, order, dataset)
    finally:
        threads.stop()


def sample_at(dataset: paddle.io.Dataset, index: int, position: tuple[int, ...]) -> dict[str, np.ndarray]:
    """dataset[index], its random transforms drawn from `position` alone: numbers from 0."""
    with _DRAWING:
        first, second = np.random.SeedSequence(position).generate_state(2)
        random.seed(int(first))
        np.random.seed(second)
        return dataset[index]


class _Placed(paddle.io.Dataset):
    """Training samples by (step, place in the batch, index of the pair).

    Args:
        dataset: Where samples come from.
        seed: Of the run.
        rank: Of the process.
    """

    def __init__(self, dataset: paddle.io.Dataset, seed: int, rank: int):
        self._dataset, self._seed, self._rank = dataset, seed, rank

    def __getitem__(self, at: tuple[int, int, int]) -> dict[str, np.ndarray]:
        step, place, index = at
        return sample_at(self._dataset, index, (self._seed, 0, self._rank, step, place))

    def __len__(self) -> int:
        return len(self._dataset)


def _load(placed: _Placed, at: list[tuple[int, int, int]]) -> dict[str, np.ndarray]:
    samples = [placed[one] for one in at]
    return {name: np.stack([sample[name] for sample in samples]) for name in ("img", "label")}


def _from_processes(loaded: Iterator[dict], count: int) -> Iterator[dict]:
    for _ in range(count):
        try:
            yield next(loaded)
        except (RuntimeError, SystemError, StopIteration) as error:
            raise _loader_failure(error) from None


@contextmanager
def loader_failures_explained() -> Iterator[None]:
    """Where the batches are used: paddle raises there, from a signal handler, when a loader process dies.

    Raises:
        UserError: It has.
    """
    try:
        yield
    except SystemError as error:
        if "DataLoader" not in str(error):
            raise
        raise _loader_failure(error) from None


def _loader_failure(error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"a loader process has ended ({reason}): is there enough memory? --num_workers 0 does without")


def _in_time(
    threads: Threads, prepared: Iterator[dict], order: list[list[tuple[int, int, int]]], dataset: paddle.io.Dataset
) -> Iterator[Batch]:
    """The batches of an epoch, which the thread takes from `prepared`, up to two ahead."""
    pending = deque(threads.submit(next, prepared) for _ in order[:AHEAD])
    for number, at in enumerate(order):
        indices = [index for _, _, index in at]
        if number + AHEAD < len(order):
            pending.append(threads.submit(next, prepared))
        future = pending.popleft()
        try:
            batch = future.result(HANGS_AFTER)
        except TimeoutError:
            if future.done():  # the error is the batch's own
                raise
            names = ", ".join(dataset.file_list[index][0] for index in indices)
            raise UserError(
                f"{names}: not read in {HANGS_AFTER:g} seconds: is the disk or network drive still there?"
            ) from None
        yield paddle.to_tensor(batch["img"]), paddle.to_tensor(batch["label"]).astype("int64"), indices


def synthetic_batches(batch_size: int, size: tuple[int, int], num_classes: int, seed: int) -> Iterator[Batch]:
    """One random batch over and over, without any loader; shapes as of `batches`, and no pairs."""
    rng = np.random.default_rng(seed)
    images = paddle.to_tensor(rng.standard_normal((batch_size, 3, *size), dtype=np.float32))
    labels = paddle.to_tensor(rng.integers(0, num_classes, (batch_size, *size)))
    while True:
        yield images, labels, []


def loader_processes(wanted: int) -> int:
    """`wanted`, or 0 where loader processes would die: Paddle's need Linux and much of its shared memory."""
    gib = doctor.shared_memory_gib()
    if wanted == 0 or (gib is not None and gib >= doctor.SMALL_SHM_GIB):
        return wanted
    have = "none" if gib is None else f"{gib:.2f} GiB"
    why = f"loader processes need {doctor.SMALL_SHM_GIB} GiB of shared memory, /dev/shm has {have}"
    print(f"warning: {why}: images are loaded without such processes", file=sys.stderr, flush=True)
    return 0
