"""PSPNet: averages over four grids of the feature map, put beside it.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017 (arXiv 1612.01105), section 3.2 and figure 3 (pyramid
pooling), section 4 (auxiliary loss); hszhao/semseg, model/pspnet.py, for the numbers of channels.
"""

from __future__ import annotations

from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, fcn_head, resize
from awesome_pytorch_seg.models.pyramid import conv_over_pyramid, pool_to_grids

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
        variant: "encoding" or "semseg", see Deviation.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits" and "aux", a tuple of
        one of that shape, from the third stage.

    Reference: sections 3.2 to 4. With a `resnet..s` backbone the parameters are those of hszhao/semseg.
    Deviation: in the first block of a dilated stage the 3x3 convolution keeps the stage before's dilation (timm and
        PyTorch-Encoding; with it, weights of the undilated network mean the same). hszhao/semseg dilates it too, as
        variant "semseg" does: with equal weights that moves the logits by 40 % of the largest.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 8,
        backbone_weights: str | None = None,
        variant: str = "encoding",
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights, first_block_dilated=variant == "semseg")
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
    again, and a 3x3 convolution sees all of it beside the features: that is `plain`. `forward` computes the same
    without enlarging the grids (models/pyramid.py); a test compares the two.

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

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """Figure 3 of the paper, line by line."""
        grids = [F.adaptive_avg_pool2d(x, bins) for bins in self.bins]  # (B, in_channels, bins, bins)
        grids = [branch(grid) for branch, grid in zip(self.branches, grids, strict=True)]
        enlarged = [resize(grid, x.shape[2:]) for grid in grids]  # (B, in_channels / 4, h, w)
        joined = torch.cat([x, *enlarged], dim=1)  # (B, 2 * in_channels, h, w)
        return self.classifier(self.conv(joined))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits of the features' size: those of `plain`, with half of the convolution's work."""
        grids = [branch(grid) for branch, grid in zip(self.branches, pool_to_grids(x, self.bins), strict=True)]
        return self.classifier(conv_over_pyramid(x, grids, self.conv.weight))
