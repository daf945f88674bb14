"""The auxiliary head: a small fully convolutional head on the feature before the last, trained beside the decode head.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 4; channels and drop-out as in
SemSegPaddle.
"""

from __future__ import annotations

from semsegpaddle_glore.models.layers import ConvBNReLU, conv2d

import paddle
from paddle import nn

AUX_CHANNELS = 256


class AuxHead(nn.Layer):
    """3x3 ConvBNReLU, drop-out, 1x1 convolution. (B, in, h, w) -> (B, num_classes, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, AUX_CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.classifier = conv2d(AUX_CHANNELS, num_classes, 1, bias=True, init="fan_in")

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the logits at the feature's size."""
        return self.classifier(self.dropout(self.conv(x)))
