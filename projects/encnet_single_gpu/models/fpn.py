"""FPN: a pyramid of features with strong semantics at every stride, and the semantic head of Panoptic FPN on it.

References: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3; Kirillov et al.,
"Panoptic Feature Pyramid Networks", CVPR 2019, section 3.1 and figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.layers import resize

import torch
import torch.nn.functional as F
from torch import nn

PYRAMID_CHANNELS = 256
HEAD_CHANNELS = 128


class FPNHead(nn.Module):
    """Top-down pyramid over strides 4 to 32; each level is brought to stride 4 in steps of two, the sum is classified.

    Shapes: five features as `ResNet` gives them -> {"logits": (B, num_classes, H/4, W/4)}.

    Args:
        in_channels: Of the features.
        num_classes: Number of classes.
        align_corners: How levels are enlarged. detectron2, whose numbers are published, has False.

    Deviation: corners are aligned unless told otherwise, as in the other networks here. With equal weights it moves the
        logits by 29 % of the largest and another class wins in 13 % of the pixels.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, align_corners: bool = True):
        super().__init__()
        self.align_corners = align_corners
        self.laterals = nn.ModuleList(nn.Conv2d(count, PYRAMID_CHANNELS, 1) for count in in_channels[1:])
        self.outputs = nn.ModuleList(
            nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, padding=1) for _ in in_channels[1:]
        )
        # Level i of stride 4 * 2^i passes one block a doubling, and the first level one block without.
        self.levels = nn.ModuleList(
            nn.ModuleList(_block(PYRAMID_CHANNELS if step == 0 else HEAD_CHANNELS) for step in range(max(1, level)))
            for level in range(len(self.laterals))
        )
        self.classifier = nn.Conv2d(HEAD_CHANNELS, num_classes, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the logits at stride 4."""
        pyramid = self.pyramid(features[1:])
        sizes = [feature.shape[2:] for feature in pyramid]
        total = self.levels[0][0](pyramid[0])  # (B, 128, H/4, W/4)
        for level in range(1, len(pyramid)):
            x = pyramid[level]
            for step, block in enumerate(self.levels[level]):
                x = resize(block(x), sizes[level - 1 - step], self.align_corners)
            total = total + x
        return {"logits": self.classifier(total)}

    def pyramid(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features (B, in_i, h_i, w_i), finest first -> (B, 256, h_i, w_i)."""
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in reversed(range(len(levels) - 1)):
            levels[level] = levels[level] + F.interpolate(levels[level + 1], size=levels[level].shape[2:])
        return [output(level) for output, level in zip(self.outputs, levels, strict=True)]


def _block(in_channels: int) -> nn.Sequential:
    """3x3 convolution, group normalisation, ReLU."""
    conv = nn.Conv2d(in_channels, HEAD_CHANNELS, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(32, HEAD_CHANNELS), nn.ReLU(inplace=True))
