"""FCN: a fully convolutional head. It is also the auxiliary head of other networks.

Reference: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.layers import ConvBNReLU

import torch
from torch import nn


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, dropout, classifier, on the last feature.

    Shapes: features, the last (B, in, h, w) -> {"logits": (B, num_classes, h, w)}.

    Deviation: on a dilated ResNet at stride 8, as the FCN of EncNet's table 3 and of PyTorch-Encoding; the paper adds
        scores of three depths of VGG-16.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int):
        super().__init__()
        channels = in_channels[-1] // 4
        self.conv = ConvBNReLU(in_channels[-1], channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the logits at the feature's size."""
        return {"logits": self.classifier(self.dropout(self.conv(features[-1])))}
