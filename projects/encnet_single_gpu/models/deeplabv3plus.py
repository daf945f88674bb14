"""DeepLabv3+: DeepLabv3 at stride 16 with separable convolutions and a decoder that adds detail from stride 4.

Reference: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
section 3.1 and figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.deeplabv3 import ASPP
from encnet_single_gpu.models.layers import ConvBNReLU, resize

import torch
from torch import nn

CHANNELS = 256
LOW_LEVEL_CHANNELS = 48


class DeepLabV3PlusHead(nn.Module):
    """ASPP at dilations 6, 12 and 18, enlarged beside the stride-4 feature, two 3x3 convolutions, classifier.

    Shapes: five features as `ResNet` gives them -> {"logits": (B, num_classes, H/4, W/4)}.

    Reference: section 4.1 (48 channels from stride 4, two 3x3 convolutions of 256), section 4.3 (all separable).
    Deviation: half of the channels are dropped behind ASPP, as in PyTorch-Encoding's DeepLabv3; tensorflow/models drops
        a tenth of the values.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int):
        super().__init__()
        self.aspp = ASPP(in_channels[-1], CHANNELS, (6, 12, 18), SeparableConv)
        self.low_level = ConvBNReLU(in_channels[1], LOW_LEVEL_CHANNELS, 1)
        self.fuse = nn.Sequential(
            SeparableConv(CHANNELS + LOW_LEVEL_CHANNELS, CHANNELS), SeparableConv(CHANNELS, CHANNELS)
        )
        self.classifier = nn.Conv2d(CHANNELS, num_classes, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the logits at stride 4."""
        low_level = self.low_level(features[1])  # (B, 48, H/4, W/4)
        x = resize(self.aspp(features[-1]), low_level.shape[2:])  # (B, 256, H/4, W/4)
        return {"logits": self.classifier(self.fuse(torch.cat([x, low_level], dim=1)))}


class SeparableConv(nn.Sequential):
    """A 3x3 convolution of each channel, then a 1x1 over channels, each with normalisation and ReLU.

    Shapes: (B, in, H, W) -> (B, out, H, W).

    Reference: section 3.2, third change to Xception (normalisation and ReLU also after the 3x3).
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            *ConvBNReLU(in_channels, out_channels, 1),
        )
