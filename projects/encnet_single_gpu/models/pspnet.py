"""PSPNet: averages over four grids of the feature map, put beside it.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.2 and figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.layers import ConvBNReLU
from encnet_single_gpu.models.pyramid import pool_cells, spread_cells

import torch
import torch.nn.functional as F
from torch import nn

BINS = (1, 2, 3, 6)


class PSPHead(nn.Module):
    """Pools the feature into grids of 1, 2, 3 and 6 cells a side and joins them to it.

    Each grid is reduced to a quarter of the channels and enlarged bilinearly (corners aligned), and a 3x3 convolution
    sees all of it beside the feature: that is `plain`. `forward` computes the same, borders included, without enlarging
    the grids (models/pyramid.py); a test compares the two.

    Shapes: features, the last (B, in, h, w) -> {"logits": (B, num_classes, h, w)}.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int):
        super().__init__()
        self.in_channels = in_channels[-1]
        self.channels = self.in_channels // 4
        self.reductions = nn.ModuleList(ConvBNReLU(self.in_channels, self.channels, 1) for _ in BINS)
        self.conv = nn.Conv2d(2 * self.in_channels, self.channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(self.channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(self.channels, num_classes, 1)

    def plain(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Figure 3 of the paper, line by line."""
        feature = features[-1]
        grids = [F.adaptive_avg_pool2d(feature, bins) for bins in BINS]  # (B, in, bins, bins)
        grids = [reduction(grid) for reduction, grid in zip(self.reductions, grids, strict=True)]
        size = feature.shape[2:]
        enlarged = [F.interpolate(grid, size, mode="bilinear", align_corners=True) for grid in grids]  # (B, C, h, w)
        x = self.conv(torch.cat([feature, *enlarged], dim=1))
        return {"logits": self.classifier(self.dropout(F.relu(self.bn(x))))}

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the logits at the feature's size: those of `plain`, with half of the convolution's work."""
        feature = features[-1]
        kernel, *grid_kernels = self.conv.weight.split([self.in_channels] + [self.channels] * len(BINS), dim=1)
        x = F.conv2d(feature, kernel, padding=1)
        for bins, reduction, grid_kernel in zip(BINS, self.reductions, grid_kernels, strict=True):
            cells = reduction(pool_cells(feature, bins))  # (B, C, bins, bins)
            x = x + spread_cells(cells, grid_kernel, x.shape[2:])
        x = F.relu(self.bn(x), inplace=True)
        return {"logits": self.classifier(self.dropout(x))}
