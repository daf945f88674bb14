"""OCNet: positions gather from positions of the same object, on the whole map, on a pyramid of regions, or beside ASPP.

Reference: Yuan and Wang, "OCNet: Object Context Network for Scene Parsing", 2018 (arXiv 1809.00916, first version),
section 3 and figure 3; openseg-group/OCNet.pytorch, oc_module/ and network/, for the numbers of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import attend, conv_bn_relu, fcn_head, resize

import torch
import torch.nn.functional as F
from torch import nn

PYRAMID_SCALES = (1, 2, 3, 6)
ASP_RATES = (12, 24, 36)


class OCNet(nn.Module):
    """OCNet.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet.
        output_stride: Of the features that attend; 8 in the paper.
        backbone_weights: A local file of ImageNet weights, or None.
        variant: "base", "pyramid" or "asp".

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits" and "aux", a tuple of
        one of that shape, from the third stage.

    Reference: section 3 (the three variants); auxiliary loss of weight 0.4 as in PSPNet.
    Deviation: ReLU after every normalisation, as in the paper; the official code has InPlaceABN's leaky ReLU (slope
        0.01), and none after the 3x3 convolution and in the auxiliary head of the pyramid. No bias in convolutions that
        are followed by a normalisation, where it changes nothing. The official code also dilates the first blocks of
        dilated stages, rounds the first pooling's sides up (another map unless a side is 8n + 1), drops single values
        (0.05), moves the keys' statistics twice a step and trains all layers at one rate with balanced classes.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet101",
        output_stride: int = 8,
        backbone_weights: str | None = None,
        variant: str = "base",
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights)
        *_, channels3, channels4 = self.backbone.channels
        context: dict[str, Callable[[int], nn.Module]] = {
            "base": BaseContext,
            "pyramid": PyramidContext,
            "asp": ASPContext,
        }
        self.decode_head = nn.Sequential(
            conv_bn_relu(channels4, 512), context[variant](512), nn.Conv2d(512, num_classes, kernel_size=1)
        )
        self.aux_head = fcn_head(channels3, 512, num_classes, dropout=0.05)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, Any]:
        """Returns logits; in training a dict, see the class."""
        size = images.shape[2:]
        *_, feat3, feat4 = self.backbone(images)
        logits = resize(self.decode_head(feat4), size)
        return {"logits": logits, "aux": (resize(self.aux_head(feat3), size),)} if self.training else logits


class BaseContext(nn.Module):
    """Base-OC: the object context of every position, beside its features. (B, C, h, w) -> the same.

    Reference: figure 3 (a).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.attention = SelfAttention(channels, key_channels=channels // 2, value_channels=channels // 2)
        self.project = nn.Sequential(*conv_bn_relu(2 * channels, channels, kernel_size=1), nn.Dropout2d(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns features fused with their context."""
        return self.project(torch.cat([self.attention(x), x], dim=1))


class PyramidContext(nn.Module):
    """Pyramid-OC: object context within the regions of 1x1, 2x2, 3x3 and 6x6 grids. (B, C, h, w) -> the same.

    Reference: figure 3 (b).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.attentions = nn.ModuleList(
            SelfAttention(channels, key_channels=channels // 2, value_channels=channels, regions=scale)
            for scale in PYRAMID_SCALES
        )
        wide = channels * len(PYRAMID_SCALES)
        self.widen = conv_bn_relu(channels, wide, kernel_size=1)
        self.project = nn.Sequential(*conv_bn_relu(2 * wide, channels, kernel_size=1), nn.Dropout2d(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns features fused with their contexts."""
        return self.project(torch.cat([self.widen(x), *(attention(x) for attention in self.attentions)], dim=1))


class ASPContext(nn.Module):
    """ASP-OC: object context in the place of ASPP's image average. (B, C, h, w) -> the same.

    The attention is computed on maxima of 2x2 positions.

    Reference: figure 3 (c).
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.context = nn.Sequential(
            conv_bn_relu(channels, inner),
            SelfAttention(inner, key_channels=inner // 2, value_channels=inner, pooling=2),
            conv_bn_relu(inner, inner, kernel_size=1),
        )
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(channels, inner, kernel_size=1),
                *(conv_bn_relu(channels, inner, dilation=rate) for rate in ASP_RATES),
            ]
        )
        self.project = nn.Sequential(*conv_bn_relu(5 * inner, channels, kernel_size=1), nn.Dropout2d(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the joined features."""
        return self.project(torch.cat([self.context(x), *(branch(x) for branch in self.branches)], dim=1))


class SelfAttention(nn.Module):
    """Every position gathers values from the positions of its region whose key is like its own.

    One transform gives both query and key. The last convolution starts at 0, and so does the context.

    Shapes: (B, channels, h, w) -> the same.

    Args:
        channels: Of input and output.
        key_channels: Of the keys.
        value_channels: Of the values.
        regions: The map is cut into regions x regions parts, the last ones taking what is left over.
        pooling: Attention is computed on maxima of pooling x pooling positions, and the context enlarged.

    Reference: section 3, object context pooling; likeness divided by the square root of `key_channels`.
    """

    def __init__(self, channels: int, key_channels: int, value_channels: int, regions: int = 1, pooling: int = 1):
        super().__init__()
        self.regions, self.pooling = regions, pooling
        self.key = conv_bn_relu(channels, key_channels, kernel_size=1)
        self.value = nn.Conv2d(channels, value_channels, kernel_size=1)
        self.out = nn.Conv2d(value_channels, channels, kernel_size=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the context."""
        size = x.shape[2:]
        if self.pooling > 1:
            x = F.max_pool2d(x, self.pooling)
        key, value = self.key(x), self.value(x)
        heights, widths = (_region_sizes(side, self.regions) for side in x.shape[2:])
        rows = []
        for key_row, value_row in zip(key.split(heights, dim=2), value.split(heights, dim=2), strict=True):
            parts = zip(key_row.split(widths, dim=3), value_row.split(widths, dim=3), strict=True)
            rows.append(torch.cat([attend(k, k, v) for k, v in parts], dim=3))
        context = self.out(torch.cat(rows, dim=2))
        return resize(context, size) if self.pooling > 1 else context


def _region_sizes(side: int, regions: int) -> list[int]:
    """How a side is cut: equal parts, the last with the rest; fewer parts where the side has not that many pixels."""
    step = side // regions
    return [step] * (regions - 1) + [side - step * (regions - 1)] if step else [side]
