"""Images and labels from list files, decoded and checked one by one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from common.cli import UserError
from common.images.read import SMALLEST_SIDE, read_image, read_label
from common.labels import LabelSet
from common.lists.list_file import read_list
from common.lists.scan import label_set_of_file

import numpy as np


class Sample(NamedTuple):
    """One decoded image, uint8 RGB (H, W, 3), and its label, uint8 train ids (H, W)."""

    image: np.ndarray
    label: np.ndarray


class ListDataset:
    """The pairs of one list file.

    Args:
        labels: What the values in the label files mean. Cityscapes' labelTrainIds files are recognised by name.
        root: What the list's paths are relative to.
        list_name: The list, relative to the root.

    Raises:
        UserError: The list is missing, empty, or has entries without a label; and from `load`: an image or label that
            cannot be read, differs from its partner in size, or holds values that are no class.
    """

    def __init__(self, labels: LabelSet, root: str | os.PathLike, list_name: str):
        self.labels = labels
        self.path = path = Path(root) / list_name
        self.pairs = read_list(path, root)
        unlabelled = [pair.image for pair in self.pairs if pair.label is None]
        if unlabelled:
            raise UserError(f"{path}: no label for {unlabelled[0]}: use a list with labels")

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
            raise UserError(f"{pair.label}: label is {raw.shape}, image {image.shape[:2]}: they must be the same size")
        return Sample(image, self._train_ids(raw, pair.label))

    def label(self, index: int) -> np.ndarray:
        """The label of pair number `index` alone: uint8 train ids (H, W)."""
        path = self.pairs[index].label
        return self._train_ids(read_label(path), path)

    def _train_ids(self, raw: np.ndarray, path: Path) -> np.ndarray:
        if raw.ndim != 2:
            raise UserError(f"{path}: a label has one channel of ids, this has {raw.shape[2]}: convert the colours")
        return label_set_of_file(path, self.labels).encode(raw, source=path)


def require_sides(path: str | os.PathLike, size: tuple[int, int], scale: float) -> None:
    """Raises UserError where an image of (height, width), resized by `scale`, is too small for a network."""
    if min(size) * scale < SMALLEST_SIDE:
        raise UserError(
            f"{path}: {size[0]}x{size[1]} pixels x {scale:g}: each side must be at least {SMALLEST_SIDE}: leave it "
            f"out, or choose a larger scale"
        )
