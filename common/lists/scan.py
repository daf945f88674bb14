"""What is in label files: size, kind and value counts, and the class shares and loss weights that follow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.cli import UserError
from common.images.read import ImageError, read_label
from common.labels import IGNORE, INVALID, LabelSet, label_set
from common.lists.list_file import Pair
from common.machine.parallel import parallel_map

import cv2
import numpy as np

_MANY = 2**18  # pixels from which counting pairs of them is faster
_EXACT_COUNTS = 2**24  # calcHist counts in float32, which is exact up to here


class LabelFacts(NamedTuple):
    """One label file.

    Attributes:
        size: (height, width); None where the file cannot be read.
        kind: "ids" for one channel of values 0..255; "16-bit" (others), "colour" or "grey as colour" where
            it is something else; "unreadable".
        counts: (256,) int64, pixels per value; None unless the kind is "ids".
        reason: Why the file is unreadable.
    """

    size: tuple[int, int] | None
    kind: str
    counts: np.ndarray | None
    reason: str = ""


def scan_label(path: Path) -> LabelFacts:
    """Reads one label file and counts its values. Damage is told in the result, not raised."""
    try:
        label = read_label(path)
    except ImageError as error:
        return LabelFacts(None, "unreadable", None, error.reason)
    size = label.shape[:2]
    if label.ndim == 3:
        equal = all(np.array_equal(label[..., 0], label[..., channel]) for channel in (1, 2))
        return LabelFacts(size, "grey as colour" if equal else "colour", None)
    if label.dtype != np.uint8:  # wider integers are read rightly as long as their values are those of 8 bits
        if not np.issubdtype(label.dtype, np.integer) or label.min() < 0 or label.max() > 255:
            return LabelFacts(size, "16-bit", None)
        label = label.astype(np.uint8)
    return LabelFacts(size, "ids", count_values(label))


def count_values(label: np.ndarray) -> np.ndarray:
    """Counts the values of a (height, width) uint8 array: (256,) int64."""
    counts = np.zeros(256, np.int64)
    rows = max(1, _EXACT_COUNTS // label.shape[1])
    for top in range(0, label.shape[0], rows):
        part = label[top : top + rows]
        if part.size > _MANY and part.shape[1] % 2 == 0 and part.flags.c_contiguous:
            # Two pixels at a time: equal neighbours, which labels consist of, make a processor wait for its own sums.
            pairs = _histogram(part.view(np.uint16), 2**16).reshape(256, 256)
            counts += pairs.sum(0) + pairs.sum(1)
        else:
            counts += _histogram(part, 256)
    return counts


def _histogram(values: np.ndarray, count: int) -> np.ndarray:
    """How often each of 0..count-1 occurs: (count,) int64."""
    return cv2.calcHist([values], [0], None, [count], [0, count]).ravel().astype(np.int64)


def label_set_of_file(path: str | os.PathLike, labels: LabelSet) -> LabelSet:
    """Returns the set that a file's values follow: Cityscapes has two kinds of files, told apart by their names."""
    if labels.name == "cityscapes" and str(path).endswith("labelTrainIds.png"):
        return label_set("cityscapes_trainids")
    return labels


@dataclass(frozen=True)
class LabelStats:
    """How often each class occurs in a list.

    Attributes:
        labels: The classes.
        pixels: (num_classes,) int64, pixels per class.
        files: (num_classes,) int64, label files in which a class occurs.
        pixels_beside: (num_classes,) int64, labelled pixels of any class in those files.
        ignored_pixels: Pixels that do not count.
        num_files: Label files read.
    """

    labels: LabelSet
    pixels: np.ndarray
    files: np.ndarray
    pixels_beside: np.ndarray
    ignored_pixels: int
    num_files: int

    @property
    def share(self) -> np.ndarray:
        """(num_classes,) share of each class in the labelled pixels; 0 everywhere if there are none."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def ignored_share(self) -> float:
        """Share of ignored pixels in all pixels."""
        return self.ignored_pixels / max(1, self.ignored_pixels + int(self.pixels.sum()))

    @property
    def absent(self) -> list[str]:
        """The names of the classes that no label shows."""
        return [name for name, count in zip(self.labels.class_names, self.pixels, strict=True) if count == 0]

    @property
    def enet_weights(self) -> np.ndarray:
        """(num_classes,) loss weights 1 / ln(1.02 + share). Reference: ENet (Paszke et al. 2016), section 5.2."""
        return 1 / np.log(1.02 + self.share)

    @property
    def median_frequency_weights(self) -> np.ndarray:
        """(num_classes,) loss weights median(frequency) / frequency; NaN for a class that does not occur.

        The frequency of a class is its share in the labelled pixels of the files in which it occurs; the median is
        over the classes that occur. Reference: Eigen and Fergus 2015, section 6.3.2; used by SegNet.
        """
        frequency = np.full(len(self.pixels), np.nan)
        np.divide(self.pixels, self.pixels_beside, out=frequency, where=self.pixels > 0)
        return np.nanmedian(frequency) / frequency if self.pixels.any() else frequency


def label_stats(pairs: Sequence[Pair], labels: LabelSet) -> LabelStats:
    """Counts the classes in the labels of a list, on all cores.

    Raises:
        UserError: No labels; a label that cannot be read, is not one 8-bit channel, or has a value that must not occur.
    """
    paths = [pair.label for pair in pairs if pair.label is not None]
    if not paths:
        raise UserError("the list names no labels: choose one that does")
    pixels, files, beside = np.zeros((3, labels.num_classes), np.int64)
    ignored = 0
    for path, facts in zip(paths, parallel_map(scan_label, paths, "reading labels"), strict=True):
        counts = class_counts(path, facts, labels)
        present = counts[: labels.num_classes]
        pixels += present
        files += present > 0
        beside[present > 0] += present.sum()
        ignored += int(counts[IGNORE])
    return LabelStats(labels, pixels, files, beside, ignored, len(paths))


def class_counts(path: Path, facts: LabelFacts, labels: LabelSet) -> np.ndarray:
    """Turns the value counts of one file into pixels per train id: (256,) int64.

    Raises:
        UserError: The file is no id label, or holds a value that must not occur.
    """
    advice = "create_dataset_list.py check says more"
    if facts.counts is None:
        raise UserError(f"{path}: {facts.reason or f'a {facts.kind} image, not one channel of 8-bit ids'}; {advice}")
    table = label_set_of_file(path, labels).id_to_train
    bad = np.flatnonzero((facts.counts > 0) & (table == INVALID))
    if len(bad):
        raise UserError(f"{path}: values {bad[:10].tolist()} are not of '{labels.name}'; {advice}")
    counts = np.zeros(256, np.int64)
    np.add.at(counts, table, facts.counts)
    return counts
