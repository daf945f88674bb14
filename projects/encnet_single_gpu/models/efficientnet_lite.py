"""EfficientNet-Lite0 from timm as a backbone: features of five strides.

Reference: Tan and Le, "EfficientNet", ICML 2019; the Lite variants are the authors' own (no squeeze-excitation, ReLU6).
timm's network pads as TensorFlow does, which its weights were trained with.
"""

from __future__ import annotations

import timm
import torch
from torch import nn

LITES = ("efficientnet_lite0",)
FEATURE_STAGES = (0, 1, 2, 4, 6)  # the last stages at strides 2, 4, 8, 16 and 32


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its classifier, with random weights; layers are named as in timm.

    Shapes: images (B, 3, H, W) -> five features of strides 2, 4, 8, 16 and 32 (none above `output_stride`); sides are
        rounded up. `out_channels` are their channels.

    Args:
        name: One of `LITES`.
        output_stride: 8, 16 or 32: dilation in place of stride, as in `ResNet`.
    """

    out_channels = (16, 24, 40, 112, 320)

    def __init__(self, name: str, output_stride: int = 32):
        super().__init__()
        network = timm.create_model(f"tf_{name}", num_classes=0, output_stride=output_stride)
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the five features, finest first."""
        x = self.bn1(self.conv_stem(images))  # (B, 32, H/2, W/2), normalised and rectified
        features = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in FEATURE_STAGES:
                features.append(x)
        return features
