"""ShuffleNetV2 for segmentation, as PaddleSeg 2.1 had it; later versions replaced it."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddleseg.models.layers import SyncBatchNorm


class ShuffleNetV2(nn.Layer):
    """Encoder of shuffle units at strides 8 and 16, a shortcut from stride 2, and a decoder ending in a deconvolution.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.

    Shapes: (B, in_channels, H, W) -> [logits (B, num_classes, H, W)].

    Reference: PaddleSeg v2.1.0, paddleseg/models/shufflenet_slim.py, for channels, order and initialisation: every
        convolution N(0, 0.001), the deconvolution Xavier-uniform and without weight decay. The unit is that of
        Ma et al., "ShuffleNet V2", section 3.2, figure 3 c and d.
    Deviation: Units of stride 1 have no projecting branch; PaddleSeg built one in each and never used it. Logits are
        brought to the image's size where the deconvolution exceeds it by a row or column (odd sides).
    """

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.stem = _conv_bn_relu(in_channels, 36, 3, stride=2)
        self.shortcut = _conv_bn_relu(36, 18, 1)
        self.stage1 = nn.Sequential(ProjectingUnit(36, 72), *(ShuffleUnit(72) for _ in range(3)))
        self.stage2 = nn.Sequential(ProjectingUnit(72, 144), *(ShuffleUnit(144) for _ in range(7)))
        self.reduce = _separable_conv(144, 64)
        self.fuse = _separable_conv(64 + 18, 64)
        deconv_weight = paddle.ParamAttr(
            initializer=nn.initializer.XavierUniform(), regularizer=paddle.regularizer.L2Decay(0.0)
        )
        self.deconv = nn.Conv2DTranspose(64, num_classes, 2, stride=2, weight_attr=deconv_weight)

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Logits at the image's size."""
        height, width = x.shape[2:]
        x = self.stem(x)  # (B, 36, H/2, W/2)
        shortcut = self.shortcut(x)  # (B, 18, H/2, W/2)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)  # (B, 36, H/4, W/4)
        x = self.reduce(self.stage2(self.stage1(x)))  # (B, 64, H/16, W/16)
        x = F.interpolate(x, shortcut.shape[2:], mode="bilinear", align_corners=False)  # (B, 64, H/2, W/2)
        x = self.fuse(paddle.concat([shortcut, x], axis=1))  # (B, 82, H/2, W/2) -> (B, 64, H/2, W/2)
        return [self.deconv(x)[:, :, :height, :width]]  # (B, num_classes, H, W)


class ShuffleUnit(nn.Layer):
    """Half of the channels pass, half go through 1x1, depthwise 3x3 and 1x1; then both are interleaved."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(_conv_bn_relu(half, half, 1), _separable_conv(half, half))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        passed, changed = paddle.split(x, 2, axis=1)
        return _interleave(passed, self.branch(changed))


class ProjectingUnit(nn.Layer):
    """The unit that halves the sides: all channels go through both branches, each of stride 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.project = _separable_conv(in_channels, half, stride=2)
        self.branch = nn.Sequential(_conv_bn_relu(in_channels, half, 1), _separable_conv(half, half, stride=2))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h/2, w/2)."""
        return _interleave(self.project(x), self.branch(x))


def _interleave(left: paddle.Tensor, right: paddle.Tensor) -> paddle.Tensor:
    """Channels of two (B, C, h, w) in turn -> (B, 2 C, h, w)."""
    return paddle.stack([left, right], axis=2).flatten(1, 2)  # (B, C, 2, h, w) -> (B, 2 C, h, w)


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    weight = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, 0.001))
    conv = nn.Conv2D(
        *(in_channels, out_channels, kernel_size, stride),
        padding=kernel_size // 2,
        groups=groups,
        weight_attr=weight,
        bias_attr=False,
    )
    return nn.Sequential(conv, SyncBatchNorm(out_channels))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv_bn(in_channels, out_channels, kernel_size, stride), nn.ReLU())


def _separable_conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Depthwise 3x3 without activation, then 1x1 with ReLU."""
    return nn.Sequential(
        _conv_bn(in_channels, in_channels, 3, stride, groups=in_channels), _conv_bn_relu(in_channels, out_channels, 1)
    )
