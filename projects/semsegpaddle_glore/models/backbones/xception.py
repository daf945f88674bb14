"""Aligned Xception-65 and -71, the Xceptions of DeepLabv3+; state-dict names are timm's.

References: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018
(arXiv 1802.02611), section 3.2 and figure 4 (Xception-65; Xception-71 is defined by the authors' code, as timm has it);
Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017 (arXiv 1610.02357).
"""

from __future__ import annotations

from typing import NamedTuple

from semsegpaddle_glore.models.backbones.dilation import plan_stages
from semsegpaddle_glore.models.layers import batch_norm, conv2d, global_avg_pool

import paddle
import paddle.nn.functional as F
from paddle import nn

EPSILON = 1e-3  # of every batch normalisation


class BlockShape(NamedTuple):
    """Output channels of a block's three separable convolutions, and the stride of the third."""

    channels: tuple[int, int, int]
    stride: int = 1


def _entry(channels: int, stride: int) -> BlockShape:
    return BlockShape((channels, channels, channels), stride)


MIDDLE_FLOW = (_entry(728, 1),) * 16
EXIT_FLOW = (BlockShape((728, 1024, 1024), 2), BlockShape((1536, 1536, 2048)))
XCEPTIONS = {
    "xception65": (_entry(128, 2), _entry(256, 2), _entry(728, 2), *MIDDLE_FLOW, *EXIT_FLOW),
    "xception71": (
        _entry(128, 2),
        _entry(256, 1),
        _entry(256, 2),
        _entry(728, 1),
        _entry(728, 2),
        *MIDDLE_FLOW,
        *EXIT_FLOW,
    ),
}


class ConvBN(nn.Layer):
    """Convolution and batch normalisation. (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel_size, stride)
        self.bn = batch_norm(out_channels, EPSILON)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Applies both."""
        return self.bn(self.conv(x))


class SeparableConv(nn.Layer):
    """Depthwise 3x3 and 1x1 convolution, each normalised; one ReLU in front, or (`relu_inside`) one behind each.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, relu_inside: bool):
        super().__init__()
        self.relu_inside = relu_inside
        self.conv_dw = conv2d(in_channels, in_channels, 3, stride, dilation, groups=in_channels)
        self.bn_dw = batch_norm(in_channels, EPSILON)
        self.conv_pw = conv2d(in_channels, out_channels, 1)
        self.bn_pw = batch_norm(out_channels, EPSILON)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Applies both convolutions."""
        if self.relu_inside:
            x = F.relu(self.bn_dw(self.conv_dw(x)))
            return F.relu(self.bn_pw(self.conv_pw(x)))
        x = self.bn_dw(self.conv_dw(F.relu(x)))
        return self.bn_pw(self.conv_pw(x))


class XceptionBlock(nn.Layer):
    """Three separable convolutions, beside a shortcut except in the network's last block.

    Shapes: (B, in, H, W) -> (B, channels[2], ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, channels: tuple[int, int, int], stride: int, dilation: int, last: bool):
        super().__init__()
        self.last = last
        self.shortcut = None
        if not last and (stride != 1 or in_channels != channels[2]):
            self.shortcut = ConvBN(in_channels, channels[2], 1, stride)
        self.stack = nn.Sequential(
            ("conv1", SeparableConv(in_channels, channels[0], 1, dilation, relu_inside=last)),
            ("conv2", SeparableConv(channels[0], channels[1], 1, dilation, relu_inside=last)),
            ("conv3", SeparableConv(channels[1], channels[2], stride, dilation, relu_inside=last)),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the sum with the shortcut, before any ReLU; the last block's output is behind one."""
        y = self.stack(x)
        if self.last:
            return y
        return y + (x if self.shortcut is None else self.shortcut(x))


class Xception(nn.Layer):
    """Aligned Xception: the features in front of each stride and the last one.

    Shapes: (B, 3, H, W) -> four features with `out_channels` channels and sides ceil(H/stride), ceil(W/stride).

    Args:
        name: A key of `XCEPTIONS`.
        output_stride: 8, 16 or 32.
        num_classes: Outputs of the ImageNet classifier; 0 leaves it out.

    Deviation: none from timm. The authors' TensorFlow code pads strided convolutions explicitly to the same effect, and
    offers multi-grid in the exit flow, which is not here.
    """

    def __init__(self, name: str, output_stride: int = 32, num_classes: int = 0):
        super().__init__()
        shapes = XCEPTIONS[name]
        plans = plan_stages([shape.stride for shape in shapes], output_stride, input_stride=2)
        before_stride = [index for index in range(1, len(shapes) - 1) if shapes[index].stride == 2]
        self._feature_blocks = [*[index - 1 for index in before_stride], len(shapes) - 1]
        self.output_stride = output_stride
        self.out_channels = tuple(shapes[index].channels[2] for index in self._feature_blocks)
        self.strides = tuple(plans[index].output_stride for index in self._feature_blocks)
        self.stem = nn.Sequential(ConvBN(3, 32, 3, stride=2), ConvBN(32, 64, 3))
        blocks = []
        in_channels = 64
        for index, (shape, plan) in enumerate(zip(shapes, plans, strict=True)):
            last = index == len(shapes) - 1
            blocks.append(XceptionBlock(in_channels, shape.channels, plan.stride, plan.dilation, last))
            in_channels = shape.channels[2]
        self.blocks = nn.LayerList(blocks)
        if num_classes > 0:
            self.head = nn.Sequential(("fc", nn.Linear(in_channels, num_classes)))

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns the features at strides 4, 8, 16 and 32, or what `output_stride` makes of them."""
        x = F.relu(self.stem[0](images))  # (B, 32, ceil(H/2), ceil(W/2))
        x = F.relu(self.stem[1](x))
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._feature_blocks:
                features.append(x)
        return features

    def classify(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns ImageNet logits (B, num_classes)."""
        return self.head(global_avg_pool(self(images)[-1]).flatten(1))  # (B, 2048) -> (B, num_classes)
