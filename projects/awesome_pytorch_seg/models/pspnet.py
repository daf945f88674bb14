"""PSPNet: averages over four grids of the feature map, put beside it.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017 (arXiv 1612.01105), section 3.2 and figure 3 (pyramid
pooling), section 4 (auxiliary loss); hszhao/semseg, model/pspnet.py, for the numbers of channels.
"""

from __future__ import annotations

from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, enlarging_matrix, fcn_head, pool_to_grids, resize

import torch
import torch.nn.functional as F
from torch import nn


class PSPNet(nn.Module):
    """PSPNet.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet.
        output_stride: Of the features that are pooled; 8 in the paper.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits" and "aux", a tuple of
        one of that shape, from the third stage.

    Reference: sections 3.2 to 4. With a `resnet..s` backbone the parameters are those of hszhao/semseg.
    Deviation: in the first block of a dilated stage the 3x3 convolution keeps the stage before's dilation (timm; with
        it, weights of the undilated network mean the same), where hszhao/semseg dilates it too.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 8,
        backbone_weights: str | None = None,
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights)
        *_, channels3, channels4 = self.backbone.channels
        self.decode_head = PyramidPoolingHead(channels4, num_classes)
        self.aux_head = fcn_head(channels3, channels3 // 4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, Any]:
        """Returns logits; in training a dict, see the class."""
        size = images.shape[2:]
        *_, feat3, feat4 = self.backbone(images)
        logits = resize(self.decode_head(feat4), size)
        return {"logits": logits, "aux": (resize(self.aux_head(feat3), size),)} if self.training else logits


class PyramidPoolingHead(nn.Module):
    """Pyramid pooling and the classifier over it.

    The features are averaged over 1, 4, 9 and 36 bins, each grid is reduced to a quarter of the channels and enlarged
    again, and a 3x3 convolution sees all of it beside the features. Written so, the convolution would do half of its
    work on enlarged grids of at most 36 different values; `conv_over_pyramid` does that half on the grids themselves.

    Shapes: (B, in_channels, h, w) -> (B, num_classes, h, w).
    """

    def __init__(
        self, in_channels: int, num_classes: int, bins: tuple[int, ...] = (1, 2, 3, 6), mid_channels: int = 512
    ):
        super().__init__()
        self.bins = bins
        branch_channels = in_channels // len(bins)
        self.branches = nn.ModuleList(conv_bn_relu(in_channels, branch_channels, kernel_size=1) for _ in bins)
        in_all = in_channels + branch_channels * len(bins)
        self.conv = nn.Conv2d(in_all, mid_channels, kernel_size=3, padding=1, bias=False)
        self.classifier = nn.Sequential(
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(mid_channels, num_classes, kernel_size=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits of the features' size."""
        grids = [branch(grid) for branch, grid in zip(self.branches, pool_to_grids(x, self.bins), strict=True)]
        return self.classifier(conv_over_pyramid(x, grids, self.conv.weight))


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
