"""PSPNet's decode head: averages over four grids of the feature map, put beside it.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017 (arXiv 1612.01105), section 3.2 and figure 3.
"""

from __future__ import annotations

import math

from semsegpaddle_glore.models.layers import ConvBNReLU, batch_norm, conv2d, resize_bilinear
from semsegpaddle_glore.models.pyramid import pooling_weights, spread_weights

import paddle
import paddle.nn.functional as F
from paddle import nn

BINS = (1, 2, 3, 6)
CHANNELS = 512


class PSPHead(nn.Layer):
    """Pools the feature into grids of 1, 2, 3 and 6 cells a side and joins them to it.

    Each grid is reduced to `pyramid_channels` (SemSegPaddle: 512; the paper: a quarter of the feature's, which is 512
    with a ResNet-50) and enlarged bilinearly (corners aligned), and a 3x3 convolution sees all of it beside the
    feature: that is `plain`. `forward` computes the same, borders included, without enlarging the grids
    (models/pyramid.py); a test compares the two.

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

    def plain(self, feature: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Figure 3 of the paper, line by line."""
        grids = [grid.reduce(F.adaptive_avg_pool2d(feature, grid.bins)) for grid in self.grids]
        enlarged = [resize_bilinear(grid, feature.shape[2:]) for grid in grids]  # (B, pyramid_channels, h, w)
        kernel = paddle.concat([self.feature_conv.weight, *(grid.kernel() for grid in self.grids)], axis=1)
        x = F.conv2d(paddle.concat([feature, *enlarged], axis=1), kernel, padding=1)  # (B, 512, h, w)
        return {"logits": self.classifier(self.dropout(F.relu(self.bn(x))))}

    def forward(self, feature: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the logits at the feature's size: those of `plain`, with half of the convolution's work."""
        x = F.relu(self.bn(self.feature_conv(feature) + self.pooled_share(feature)))
        return {"logits": self.classifier(self.dropout(x))}

    def pooled_share(self, feature: paddle.Tensor) -> paddle.Tensor:
        """What the four grids add to the 3x3 convolution. (B, in, h, w) -> (B, 512, h, w)."""
        height, width = feature.shape[2:]
        cells = paddle.matmul(feature.flatten(2), pooling_weights(BINS, height, width), transpose_y=True)  # (B, in, 50)
        cells = paddle.split(cells, [bins**2 for bins in BINS], axis=2)
        shares = [grid(cells[index]) for index, grid in enumerate(self.grids)]
        share = paddle.matmul(paddle.concat(shares, axis=2), spread_weights(BINS, height, width))  # (B, 512, h * w)
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

    def kernel(self) -> paddle.Tensor:
        """The grid's part of the 3x3 convolution's kernel: (512, channels, 3, 3)."""
        return self.kernels.weight.reshape([-1, 3, 3, CHANNELS]).transpose([3, 0, 1, 2])

    def forward(self, cells: paddle.Tensor) -> paddle.Tensor:
        """Returns every cell's product with every place of the kernel."""
        bins = self.bins
        cells = self.reduce(cells.reshape([0, 0, bins, bins]))  # (B, channels, bins, bins)
        products = self.kernels(cells.transpose([0, 2, 3, 1]))  # (B, bins, bins, 9 * 512)
        products = products.reshape([-1, bins, bins, 3, 3, CHANNELS])
        return products.transpose([0, 5, 1, 3, 2, 4]).reshape([-1, CHANNELS, 9 * bins**2])
