"""Pooling to grids, enlarging them and convolving over the result, written as matrix products.

Average pooling to a fixed number of bins and bilinear enlarging are linear maps along the rows and along the columns.
As matrices they keep their meaning in an exported graph at every image size, and their order with other linear maps
may be chosen: a 3x3 convolution over enlarged grids of at most 36 different values is cheaper on the grids themselves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def enlarging_matrix(in_size: int, out_size: int, like: torch.Tensor) -> torch.Tensor:
    """What each of `in_size` inputs contributes to each of `out_size` outputs of `resize` along one axis.

    Returns:
        (out_size, in_size), of the type and on the device of `like`.
    """
    outputs = torch.arange(out_size, device=like.device, dtype=torch.float32).unsqueeze(1)  # (out_size, 1)
    inputs = torch.arange(in_size, device=like.device, dtype=torch.float32)
    step = (in_size - 1) / max(out_size - 1, 1)
    return (1 - (outputs * step - inputs).abs()).clamp(min=0).to(like.dtype)


def pool_to_grids(x: torch.Tensor, bins: tuple[int, ...]) -> list[torch.Tensor]:
    """Adaptive average pooling to grids of n x n bins, for each n. (B, C, H, W) -> tensors (B, C, n, n)."""
    rows, columns = ([_bin_members(side, n, x) for n in bins] for side in x.shape[2:])
    members = torch.cat(columns)  # (sum of bins, W)
    narrow = (x @ members.T) / members.sum(1)  # (B, C, H, sum of bins)
    parts = zip(rows, narrow.split(bins, dim=3), strict=True)
    return [(members @ part) / members.sum(1, keepdim=True) for members, part in parts]


def conv_over_pyramid(x: torch.Tensor, grids: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """A 3x3 convolution with zero padding over `x` and the grids enlarged to its size, without enlarging them.

    Enlarging is a matrix U along the rows and one along the columns. The tap (dy, dx) of the convolution reads the
    enlarged grid one row and column off, which is U with its rows moved and a row of zeros where the padding is read.
    So the taps are applied to the grid as 1x1 convolutions, and the moved matrices, side by side, spread and sum them.

    Args:
        x: (B, C, h, w).
        grids: Of (B, c_i, n_i, n_i).
        weight: (out, C + sum of c_i, 3, 3), input channels in the order of `x` and `grids`.

    Returns:
        (B, out, h, w).
    """
    batch, channels, height, width = x.shape
    out_channels = weight.shape[0]
    own_weight, *grid_weights = weight.split([channels, *(grid.shape[1] for grid in grids)], dim=1)
    rows, columns = [], []
    for grid, taps in zip(grids, grid_weights, strict=True):
        bins = grid.shape[-1]
        one_by_one = taps.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]  # (3 * 3 * out, c_i, 1, 1)
        moved = F.conv2d(grid, one_by_one).view(batch, 3, 3, out_channels, bins, bins)
        moved = moved.permute(0, 3, 1, 4, 2, 5).reshape(batch, out_channels, 3 * bins, 3 * bins)  # (dy, row), (dx, col)
        rows.append(_with_moved(enlarging_matrix(bins, height, grid)) @ moved)  # (B, out, h, 3 * n_i)
        columns.append(_with_moved(enlarging_matrix(bins, width, grid)))  # (w, 3 * n_i)
    spread = torch.cat(rows, dim=-1) @ torch.cat(columns, dim=-1).T  # (B, out, h, w)
    return F.conv2d(x, own_weight, padding=1) + spread


def _with_moved(matrix: torch.Tensor) -> torch.Tensor:
    """Beside each other: the matrix read one row above, in place, and one row below. (n, m) -> (n, 3 * m)."""
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.cat([padded[:-2], matrix, padded[2:]], dim=1)


def _bin_members(size: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """Which of `size` inputs each bin averages: floor(i * size / bins) up to ceil((i + 1) * size / bins), excluded.

    Returns:
        0 and 1, (bins, size), of the type and on the device of `like`.
    """
    bin_ids = torch.arange(bins, device=like.device).unsqueeze(1)  # (bins, 1)
    places = torch.arange(size, device=like.device)
    inside = (places >= bin_ids * size // bins) & (places < ((bin_ids + 1) * size + bins - 1) // bins)
    return inside.to(like.dtype)
