"""A 3x3 convolution over grids enlarged to the feature's size, computed where it is cheap: on their few cells.

The convolution is linear, so over the concatenation of feature and enlarged grids it is the sum of one over the feature
and one per grid. A grid's is computed on its cells: each cell's product with every place of the kernel, spread over the
pixels by how much of the cell each of a pixel's 3x3 neighbours sees. Pooling and spreading are matrix products whose
weights follow from the feature's size, so an exported graph is right at every size.
"""

from __future__ import annotations

import torch


def pool_cells(x: torch.Tensor, bins: int) -> torch.Tensor:
    """The mean of each cell. (B, C, h, w) -> (B, C, bins, bins).

    Cell i of n reaches from floor(i * size / n) to ceil((i + 1) * size / n), as in adaptive average pooling.
    """
    rows, columns = (_cell_weights(size, bins, x) for size in x.shape[2:])
    return rows @ x @ columns.T  # (bins, h) @ (B, C, h, w) @ (w, bins)


def spread_cells(cells: torch.Tensor, kernel: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What a 3x3 convolution with zero padding gives for the cells enlarged to `size`, bilinearly with aligned corners.

    Shapes: cells (B, C, bins, bins), kernel (out, C, 3, 3) -> (B, out, h, w).
    """
    products = torch.einsum("bcij,ockl->boikjl", cells, kernel)  # (B, out, bins, 3, bins, 3)
    products = products.flatten(4, 5).flatten(2, 3)  # (B, out, 3 * bins, 3 * bins)
    rows, columns = (_neighbour_weights(side, cells.shape[2], products) for side in size)
    return rows.T @ products @ columns  # (h, 3 * bins) @ ... @ (3 * bins, w)


def _cell_weights(size: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """(bins, size): 1 / length inside a cell, 0 outside."""
    cell = torch.arange(bins, device=like.device).unsqueeze(1)
    first = cell * size // bins
    end = ((cell + 1) * size + bins - 1) // bins
    pixel = torch.arange(size, device=like.device)
    return ((pixel >= first) & (pixel < end)).to(like.dtype) / (end - first)


def _neighbour_weights(size: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """(3 * bins, size): how much of cell i the neighbour at -1, 0, +1 of each pixel sees; row 3 * i + 1 + offset.

    With aligned corners pixel p lies at p * (bins - 1) / (size - 1) in cells and sees a cell at distance d with 1 - d.
    Outside the image is the convolution's zero padding.
    """
    pixel = torch.arange(size, device=like.device)
    neighbour = pixel + torch.arange(-1, 2, device=like.device).unsqueeze(1)  # (3, size)
    inside = (neighbour >= 0) & (neighbour < size)
    position = neighbour * (bins - 1) / pixel[-1:].clamp(min=1)
    cell = torch.arange(bins, device=like.device).reshape(bins, 1, 1)
    seen = (1 - (position - cell).abs()).clamp(min=0) * inside  # (bins, 3, size)
    return seen.flatten(0, 1).to(like.dtype)
