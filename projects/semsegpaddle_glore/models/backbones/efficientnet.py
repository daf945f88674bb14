"""EfficientNet-B0 to B7; state-dict names are torchvision's.

Reference: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019 (arXiv
1905.11946), table 1; widths, depths and drop-out of B1 to B7 from the authors' code, as torchvision has them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from semsegpaddle_glore.models.backbones.dilation import StagePlan, plan_stages
from semsegpaddle_glore.models.layers import batch_norm, conv2d, global_avg_pool

import paddle
import paddle.nn.functional as F
from paddle import nn


class Scaling(NamedTuple):
    """Factors on channels and blocks, drop-out before the classifier, settings of batch normalisation."""

    width: float
    depth: float
    dropout: float
    epsilon: float = 1e-5
    momentum: float = 0.9


EFFICIENTNETS = {
    "efficientnet_b0": Scaling(1.0, 1.0, 0.2),
    "efficientnet_b1": Scaling(1.0, 1.1, 0.2),
    "efficientnet_b2": Scaling(1.1, 1.2, 0.3),
    "efficientnet_b3": Scaling(1.2, 1.4, 0.3),
    "efficientnet_b4": Scaling(1.4, 1.8, 0.4),
    "efficientnet_b5": Scaling(1.6, 2.2, 0.4, 1e-3, 0.99),
    "efficientnet_b6": Scaling(1.8, 2.6, 0.5, 1e-3, 0.99),
    "efficientnet_b7": Scaling(2.0, 3.1, 0.5, 1e-3, 0.99),
}


class Stage(NamedTuple):
    """A row of the paper's table 1 (stages 2 to 8)."""

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    blocks: int


STEM_CHANNELS = 32
STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
FEATURE_STAGES = (1, 2, 4, 6)  # the last stages at strides 4, 8, 16 and 32
STOCHASTIC_DEPTH = 0.2  # of the last block; in front of it, in proportion to the depth


def scaled_channels(channels: int, width: float) -> int:
    """The multiple of 8 nearest to channels x width, the next one up if that is more than 10 % less."""
    scaled = channels * width
    nearest = max(8, int(scaled + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * scaled else nearest


def drop_rows(x: paddle.Tensor, rate: float) -> paddle.Tensor:
    """Stochastic depth: each image's share is 0 with probability `rate`, otherwise divided by 1 - `rate`.

    Draws from Paddle's generator. Shapes: (B, C, H, W) -> the same.
    """
    keep = paddle.bernoulli(paddle.full([x.shape[0], 1, 1, 1], 1 - rate, dtype=x.dtype))
    return x * (keep / (1 - rate))


class SqueezeExcitation(nn.Layer):
    """Weights each channel by what all channels' means say. (B, C, H, W) -> the same."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = conv2d(channels, squeezed, 1, bias=True)
        self.fc2 = conv2d(squeezed, channels, 1, bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the weighted channels."""
        return x * F.sigmoid(self.fc2(F.silu(self.fc1(global_avg_pool(x)))))  # weights (B, C, 1, 1)


class MBConv(nn.Layer):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, squeeze-excitation, 1x1 projection.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(
        self,
        stage: Stage,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        drop_rate: float,
        scaling: Scaling,
    ):
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.drop_rate = drop_rate
        width = in_channels * stage.expansion
        layers = []
        if stage.expansion > 1:
            layers.append(_conv_bn_silu(in_channels, width, 1, scaling))
        depthwise = conv2d(width, width, stage.kernel_size, stride, dilation, groups=width)
        layers += [
            nn.Sequential(depthwise, _norm(width, scaling), nn.Silu()),
            SqueezeExcitation(width, max(1, in_channels // 4)),
            nn.Sequential(conv2d(width, out_channels, 1), _norm(out_channels, scaling)),
        ]
        self.block = nn.Sequential(*layers)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the block's output; there is no activation behind the projection."""
        y = self.block(x)
        if not self.has_shortcut:
            return y
        if self.training and self.drop_rate > 0:
            y = drop_rows(y, self.drop_rate)
        return y + x


class EfficientNet(nn.Layer):
    """EfficientNet: the features in front of each stride and the last one, without the classifier's 1x1 convolution.

    Shapes: (B, 3, H, W) -> four features with `out_channels` channels and sides ceil(H/stride), ceil(W/stride).

    In training, stochastic depth draws from Paddle's generator: `paddle.seed` before the forward pass decides it.

    Args:
        name: A key of `EFFICIENTNETS`.
        output_stride: 8, 16 or 32.
        num_classes: Outputs of the ImageNet classifier; 0 leaves it out, with the 1x1 convolution in front of it.
    """

    def __init__(self, name: str, output_stride: int = 32, num_classes: int = 0):
        super().__init__()
        scaling = EFFICIENTNETS[name]
        plans = plan_stages([stage.stride for stage in STAGES], output_stride, input_stride=2)
        channels = [scaled_channels(stage.channels, scaling.width) for stage in STAGES]
        self.output_stride = output_stride
        self.out_channels = tuple(channels[index] for index in FEATURE_STAGES)
        self.strides = tuple(plans[index].output_stride for index in FEATURE_STAGES)
        counts = [math.ceil(stage.blocks * scaling.depth) for stage in STAGES]
        in_channels = scaled_channels(STEM_CHANNELS, scaling.width)
        layers = [_conv_bn_silu(3, in_channels, 3, scaling, stride=2)]
        for index, (stage, plan) in enumerate(zip(STAGES, plans, strict=True)):
            rates = [STOCHASTIC_DEPTH * (sum(counts[:index]) + i) / sum(counts) for i in range(counts[index])]
            layers.append(_stage(stage, plan, in_channels, channels[index], rates, scaling))
            in_channels = channels[index]
        if num_classes > 0:
            layers.append(_conv_bn_silu(in_channels, 4 * in_channels, 1, scaling))
            self.classifier = nn.Sequential(nn.Dropout(scaling.dropout), nn.Linear(4 * in_channels, num_classes))
        self.features = nn.Sequential(*layers)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns the features of the stages named in `FEATURE_STAGES`."""
        x = self.features[0](images)
        features = []
        for index in range(len(STAGES)):
            x = self.features[index + 1](x)
            if index in FEATURE_STAGES:
                features.append(x)
        return features

    def classify(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns ImageNet logits (B, num_classes)."""
        return self.classifier(global_avg_pool(self.features(images)).flatten(1))  # (B, C) -> (B, num_classes)


def _norm(channels: int, scaling: Scaling) -> nn.BatchNorm2D:
    return batch_norm(channels, scaling.epsilon, scaling.momentum)


def _conv_bn_silu(
    in_channels: int, out_channels: int, kernel_size: int, scaling: Scaling, stride: int = 1
) -> nn.Sequential:
    conv = conv2d(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(conv, _norm(out_channels, scaling), nn.Silu())


def _stage(
    stage: Stage, plan: StagePlan, in_channels: int, out_channels: int, drop_rates: list[float], scaling: Scaling
) -> nn.Sequential:
    """As many blocks as `drop_rates` has entries; the first one strides."""
    blocks = []
    for index, rate in enumerate(drop_rates):
        stride, dilation = (plan.stride, plan.dilation) if index == 0 else (1, plan.dilation_after)
        blocks.append(MBConv(stage, in_channels, out_channels, stride, dilation, rate, scaling))
        in_channels = out_channels
    return nn.Sequential(*blocks)
