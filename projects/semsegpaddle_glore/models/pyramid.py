"""A 3x3 convolution over grids enlarged to the feature's size, computed where it is cheap: on their few cells.

The convolution is linear, so over the concatenation of feature and enlarged grids it is the sum of one over the feature
and one per grid; and what a cell contributes to a pixel is a product of its values with a 3x3 kernel, weighted by how
much of the cell each of the pixel's 3x3 neighbours sees. So the kernels are applied to the 50 cells, and the weights
below spread the result. They follow from the feature's size, divisible by the number of cells or not, in training and
in an exported graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle


def pooling_weights(grids: Sequence[int], height: int, width: int) -> paddle.Tensor:
    """What every pixel contributes to the mean of every cell, for all grids: float32 (sum of bins^2, height * width).

    Cells as in adaptive average pooling: cell i of n reaches from floor(i * size / n) to ceil((i + 1) * size / n).
    """
    weights = []
    for bins in grids:
        rows, columns = _cell_weights(height, bins), _cell_weights(width, bins)
        weights.append(_outer(rows, columns))
    return paddle.concat(weights)


def spread_weights(grids: Sequence[int], height: int, width: int) -> paddle.Tensor:
    """What every product of a cell contributes to every pixel, for all grids: float32 (9 * that, height * width)."""
    weights = []
    for bins in grids:
        rows, columns = _neighbour_weights(height, bins), _neighbour_weights(width, bins)
        weights.append(_outer(rows, columns))
    return paddle.concat(weights)


def _cell_weights(size: int, bins: int) -> paddle.Tensor:
    """(bins, size): 1 / length inside a cell, 0 outside."""
    cell = paddle.arange(bins).unsqueeze(1)
    first = cell * size // bins
    end = ((cell + 1) * size + bins - 1) // bins
    pixel = paddle.arange(size).unsqueeze(0)
    inside = paddle.logical_and(pixel >= first, pixel < end)
    return inside.astype("float32") / (end - first).astype("float32")


def _neighbour_weights(size: int, bins: int) -> paddle.Tensor:
    """(3 * bins, size): how much of cell i the neighbour at -1, 0, +1 of each pixel sees; row 3 * i + 1 + offset.

    Bilinear with aligned corners: pixel p lies at p * (bins - 1) / (size - 1) in cells, and sees a cell at distance d
    with 1 - d. Outside the image is the convolution's zero padding.
    """
    neighbour = paddle.arange(size).unsqueeze(0) + paddle.arange(-1, 2).unsqueeze(1)  # (3, size)
    inside = paddle.logical_and(neighbour >= 0, neighbour < size)
    step = paddle.full([1], bins - 1, "float32") / paddle.full([1], size - 1, "float32").clip(min=1.0)
    position = neighbour.astype("float32") * step
    cell = paddle.arange(bins, dtype="float32").reshape([bins, 1, 1])
    seen = (1.0 - (position - cell).abs()).clip(min=0.0) * inside.astype("float32")  # (bins, 3, size)
    return seen.reshape([3 * bins, -1])


def _outer(rows: paddle.Tensor, columns: paddle.Tensor) -> paddle.Tensor:
    """(m, height), (n, width) -> (m * n, height * width)."""
    product = rows.unsqueeze([1, 3]) * columns.unsqueeze([0, 2])  # (m, n, height, width)
    return product.flatten(0, 1).flatten(1)
