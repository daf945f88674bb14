"""What is looked at before the first step of a training, so that nothing trained is lost to it."""

from __future__ import annotations

from collections.abc import Callable

from common.images.read import read_size
from common.samples.list_dataset import ListDataset, require_sides


def require_image_sides(dataset: ListDataset, scale: Callable[[tuple[int, int]], float]) -> None:
    """Reads the header of every image that will be evaluated.

    Args:
        dataset: The validation set.
        scale: (height, width) of an image -> the smallest factor at which the network gets to see it.

    Raises:
        UserError: An image cannot be read, or is too small for a network.
    """
    for pair in dataset.pairs:
        size = read_size(pair.image)
        require_sides(pair.image, size, scale(size))
