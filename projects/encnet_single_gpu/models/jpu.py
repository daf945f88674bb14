"""JPU: joint pyramid upsampling, which makes a stride-8 feature of three without a dilated backbone.

Reference: Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation",
arXiv:1903.11816, section 3.3 and figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.layers import ConvBNReLU, resize

import torch
from torch import nn

DILATIONS = (1, 2, 4, 8)


class JPU(nn.Module):
    """Brings three features to one size and looks at them with four dilations.

    Shapes: three features (B, in_i, h_i, w_i), finest first -> (B, 4 * channels, h_0, w_0).

    Args:
        in_channels: Channels of the three.
        channels: What each is reduced to, and what each dilation gives.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 512):
        super().__init__()
        self.convs = nn.ModuleList(ConvBNReLU(count, channels) for count in in_channels)
        self.branches = nn.ModuleList(_separable(3 * channels, channels, dilation) for dilation in DILATIONS)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the branches' outputs, concatenated."""
        size = features[0].shape[2:]
        features = [conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
        x = torch.cat([resize(feature, size) for feature in features], dim=1)  # (B, 3 * channels, h_0, w_0)
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _separable(in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
    """A 3x3 convolution of each channel, normalised, then a 1x1 convolution over channels, normalised, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        *ConvBNReLU(in_channels, out_channels, 1),
    )
