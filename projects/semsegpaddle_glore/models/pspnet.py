"""PSPNet's decode head: pyramid pooling, computed where it is cheap.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017 (arXiv 1612.01105), section 3.2 and figure 3.
"""

from __future__ import annotations

import math

from semsegpaddle_glore.models.layers import ConvBNReLU, batch_norm, conv2d

import paddle
import paddle.nn.functional as F
from paddle import nn

BINS = (1, 2, 3, 6)
CHANNELS = 512


class PSPHead(nn.Layer):
    """Pools the feature into grids of 1, 2, 3 and 6 cells a side and joins them to it.

    The head is a 3x3 convolution over the concatenation of the feature and the four grids, each reduced to
    `pyramid_channels` (SemSegPaddle: 512; the paper: a quarter of the feature's, which is 512 with a ResNet-50) and
    enlarged bilinearly (corners aligned). That convolution is linear, so it is the sum of one over the feature and one
    per grid; and what a cell contributes to a pixel is a product of its values with a 3x3 kernel, weighted by
    how much of the cell each of the pixel's 3x3 neighbours sees. So the kernels are applied to the 50 cells instead of
    to the enlarged maps, and the weights (`spread_weights`) spread the result. Same function, borders included, and
    the same number of parameters; half of the convolution's work is gone.

    Nothing here depends on the sides being divisible by the cells' number, in training or in an exported graph: pooling
    and spreading are matrix products with weights computed from the feature's size.

    Shapes: (B, in, h, w) -> {"logits": (B, num_classes, h, w)}.

    Deviation: convolutions before a batch normalisation have no bias (SemSegPaddle's have, without effect). With
    ResNet-50 and the auxiliary head the network has 48 956 262 parameters for 19 classes: 123 776 fewer than
    hszhao/semseg's and Tramac's (model_facts.csv, less Tramac's unused `fc`), whose first layer is three 3x3
    convolutions; PaddleSeg's has 67 863 942, since its 3x3 convolution gives 1024 channels.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float, pyramid_channels: int | None = None):
        super().__init__()
        self.feature_conv = conv2d(in_channels, CHANNELS, 3)
        self.grids = nn.LayerList([PooledGrid(in_channels, bins, pyramid_channels or CHANNELS) for bins in BINS])
        self.bn = batch_norm(CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.classifier = conv2d(CHANNELS, num_classes, 1, bias=True, init="fan_in")

    def forward(self, feature: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the logits at the feature's size."""
        x = F.relu(self.bn(self.feature_conv(feature) + self.pooled_share(feature)))
        return {"logits": self.classifier(self.dropout(x))}

    def pooled_share(self, feature: paddle.Tensor) -> paddle.Tensor:
        """What the four grids add to the 3x3 convolution. (B, in, h, w) -> (B, 512, h, w)."""
        height, width = feature.shape[2:]
        cells = paddle.matmul(feature.flatten(2), pooling_weights(height, width), transpose_y=True)  # (B, in, 50)
        cells = paddle.split(cells, [bins**2 for bins in BINS], axis=2)
        shares = [grid(cells[index]) for index, grid in enumerate(self.grids)]
        share = paddle.matmul(paddle.concat(shares, axis=2), spread_weights(height, width))  # (B, 512, h * w)
        return share.reshape([-1, CHANNELS, height, width])


class PooledGrid(nn.Layer):
    """One grid's 1x1 reduction and its part of the 3x3 convolution. (B, in, bins^2) -> (B, 512, 9 * bins^2).

    The second axis of the result is the output channel, the third (row, kernel row, column, kernel column).
    """

    def __init__(self, in_channels: int, bins: int, channels: int):
        super().__init__()
        self.bins = bins
        self.reduce = ConvBNReLU(in_channels, channels, 1)
        std = math.sqrt(2.0 / (CHANNELS * 9))  # the fan-out of the 3x3 convolution
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, std))
        # Input channel to (kernel row, kernel column, output channel).
        self.kernels = nn.Linear(channels, 9 * CHANNELS, weight_attr=normal, bias_attr=False)

    def forward(self, cells: paddle.Tensor) -> paddle.Tensor:
        """Returns every cell's product with every place of the kernel."""
        bins = self.bins
        cells = self.reduce(cells.reshape([0, 0, bins, bins]))  # (B, channels, bins, bins)
        products = self.kernels(cells.transpose([0, 2, 3, 1]))  # (B, bins, bins, 9 * 512)
        products = products.reshape([-1, bins, bins, 3, 3, CHANNELS])
        return products.transpose([0, 5, 1, 3, 2, 4]).reshape([-1, CHANNELS, 9 * bins**2])


def pooling_weights(height: int, width: int) -> paddle.Tensor:
    """What every pixel contributes to the mean of every cell, for all grids: float32 (50, height * width).

    Cells as in adaptive average pooling: cell i of n reaches from floor(i * size / n) to ceil((i + 1) * size / n).
    """
    weights = []
    for bins in BINS:
        rows, columns = _cell_weights(height, bins), _cell_weights(width, bins)
        weights.append(_outer(rows, columns))
    return paddle.concat(weights)


def spread_weights(height: int, width: int) -> paddle.Tensor:
    """What every product of a cell contributes to every pixel, for all grids: float32 (450, height * width)."""
    weights = []
    for bins in BINS:
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
