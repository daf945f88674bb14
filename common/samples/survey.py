"""What a training says of its data before the first step: how many images of which sizes, and classes in no label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from common.cli import UserError
from common.images.read import read_size
from common.lists.scan import count_values
from common.machine.parallel import Threads
from common.progress import track
from common.samples.list_dataset import ListDataset, require_sides
from common.samples.stream import arrived

import numpy as np

SAMPLED, SAMPLED_PIXELS = 64, 2**26
"""Labels that are looked at, evenly spaced over the list: no more than have so many pixels together."""

_THREADS = 4  # reading waits for the disk more than it computes
_SHOWN = 6


class Survey(NamedTuple):
    """What a list holds.

    Attributes:
        images: How many.
        smallest: Its smallest image by area, (height, width).
        largest: Its largest.
        sampled: How many labels were looked at.
        absent: Classes in none of them.
    """

    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    sampled: int
    absent: tuple[str, ...]

    def text(self, name: str) -> str:
        """One line: "train: 367 images of 360x480; in none of 64 labels: bicyclist"."""
        sizes = "{}x{}".format(*self.smallest)
        if self.largest != self.smallest:
            sizes += " to {}x{}".format(*self.largest)
        line = f"{name}: {self.images} images of {sizes}"
        if self.absent:
            more = f" and {len(self.absent) - _SHOWN} more" if len(self.absent) > _SHOWN else ""
            line += f"; in none of {self.sampled} labels looked at: {', '.join(self.absent[:_SHOWN])}{more}"
        return line


def survey(dataset: ListDataset) -> Survey:
    """Reads the headers of all images and every n-th label of a list.

    Raises:
        UserError: A file cannot be read, or a label holds values that are no class.
    """
    sizes = list(_in_threads(read_size, [pair.image for pair in dataset.pairs], dataset))
    count, largest = len(dataset), max(height * width for height, width in sizes)
    sampled = min(count, SAMPLED, max(1, SAMPLED_PIXELS // largest))
    indices = [index * count // sampled for index in range(sampled)]
    seen: set[int] = set().union(*_in_threads(partial(_classes_in, dataset), indices, dataset))
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    names = dataset.labels.class_names
    absent = tuple(name for train_id, name in enumerate(names) if train_id not in seen)
    return Survey(count, by_area[0], by_area[-1], len(indices), absent)


def _classes_in(dataset: ListDataset, index: int) -> set[int]:
    """The train ids of classes in one label."""
    counts = count_values(dataset.label(index))
    return set(np.flatnonzero(counts[: dataset.labels.num_classes]).tolist())


def _in_threads(function: Callable, arguments: Sequence, dataset: ListDataset) -> Iterator:
    """The results in order; a call that hangs, as on a network drive that is gone, is given up as in training."""
    threads = Threads(_THREADS)
    try:
        calls = [threads.submit(function, argument) for argument in arguments]
        for argument, call in track(list(zip(arguments, calls, strict=True)), "looking at data", "file", keep=False):
            path = dataset.pairs[argument].label if isinstance(argument, int) else argument
            yield arrived(call, str(path))
    finally:
        threads.stop()


def survey_for_training(train_set: ListDataset, val_set: ListDataset) -> str:
    """What a training says at its start: a line about each of its lists.

    Raises:
        UserError: See `survey`; or all labels of the training list show one class, so that there is nothing to tell
            apart: whatever the network says is right then.
    """
    train, val = survey(train_set), survey(val_set)
    names = train_set.labels.class_names
    if len(names) - len(train.absent) <= 1:
        _require_two_classes(train_set, range(len(train_set)))
    return f"{train.text('train')}\n{val.text('val')}"


def require_image_sides(dataset: ListDataset, scale: Callable[[tuple[int, int]], float]) -> None:
    """Reads the header of every image that will be evaluated, so that nothing trained is lost to one of them.

    Args:
        dataset: The validation set.
        scale: (height, width) of an image -> the smallest factor at which the network gets to see it.

    Raises:
        UserError: An image cannot be read, or is too small for a network.
    """
    paths = [pair.image for pair in dataset.pairs]
    for path, size in zip(paths, _in_threads(read_size, paths, dataset), strict=True):
        require_sides(path, size, scale(size))


def _require_two_classes(dataset: ListDataset, indices: Iterable[int]) -> None:
    """Looks at every label until two classes were seen."""
    seen: set[int] = set()
    names = dataset.labels.class_names
    for index in track(indices, "looking for a second class", "label", keep=False):
        seen |= _classes_in(dataset, index)
        if len(seen) > 1:
            return
    alone = names[seen.pop()] if seen else None
    what = f"nothing but '{alone}'" if alone else "no class at all"
    raise UserError(
        f"the {len(dataset)} labels of the training list show {what} (of {len(names)} classes): are the values in the "
        f"files the ids of the classes? python common/create_dataset_list.py check says what they hold"
    )
