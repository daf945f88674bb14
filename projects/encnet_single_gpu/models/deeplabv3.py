"""DeepLabv3: atrous spatial pyramid pooling.

Reference: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from encnet_single_gpu.models.layers import ConvBNReLU, global_mean

import torch
from torch import nn


class ASPP(nn.Module):
    """A 1x1 convolution, 3x3 convolutions at several dilations and the image's mean, concatenated and reduced.

    Shapes: (B, in, h, w) -> (B, out, h, w).

    Args:
        in_channels: in.
        out_channels: out, and the channels of each branch.
        dilations: Of the 3x3 convolutions.
        conv: (in, out, dilation) -> a 3x3 convolution with normalisation and ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        conv: Callable[[int, int, int], nn.Module],
    ):
        super().__init__()
        self.branches = nn.ModuleList([ConvBNReLU(in_channels, out_channels, 1)])
        self.branches.extend(conv(in_channels, out_channels, dilation) for dilation in dilations)
        self.pooled = ConvBNReLU(in_channels, out_channels, 1)
        self.project = ConvBNReLU((2 + len(dilations)) * out_channels, out_channels, 1)
        self.dropout = nn.Dropout2d(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the reduced concatenation."""
        outputs = [branch(x) for branch in self.branches]
        outputs.append(self.pooled(global_mean(x)).expand_as(outputs[0]))  # (B, out, 1, 1) -> (B, out, h, w)
        return self.dropout(self.project(torch.cat(outputs, dim=1)))


class DeepLabV3Head(nn.Module):
    """ASPP at dilations 12, 24 and 36 for a backbone at stride 8, a 3x3 convolution, classifier.

    Shapes: features, the last (B, in, h, w) -> {"logits": (B, num_classes, h, w)}.

    Deviation: as in PyTorch-Encoding, the backbone has no multi-grid, a 3x3 convolution follows ASPP, and whole
        channels are dropped.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int):
        super().__init__()
        channels = in_channels[-1] // 8
        self.aspp = ASPP(in_channels[-1], channels, (12, 24, 36), _atrous)
        self.conv = ConvBNReLU(channels, channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the logits at the feature's size."""
        return {"logits": self.classifier(self.dropout(self.conv(self.aspp(features[-1]))))}


def _atrous(in_channels: int, out_channels: int, dilation: int) -> nn.Module:
    return ConvBNReLU(in_channels, out_channels, 3, dilation)
