"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-excitation, with ReLU6; state-dict names are timm's.

Its published weights are TensorFlow's, and so is its padding, "SAME": at stride 2, where a side is even, one pixel more
behind than before. A network that pads evenly computes something else with them.

References: Tan and Le, "EfficientNet", ICML 2019 (arXiv 1905.11946), table 1; the Lite variants are the authors' own
(tensorflow/tpu, models/official/efficientnet/lite: no squeeze-excitation, ReLU6, stem and head not scaled).
Deviation: the running statistics keep 0.9 in training (PyTorch's momentum 0.1), as in the other backbones here and in
timm; the authors' code keeps 0.99. No stochastic depth: the authors' 0.2 is for 350 epochs of ImageNet.
"""

from __future__ import annotations

from semsegpaddle_glore.models.backbones.dilation import plan_stages
from semsegpaddle_glore.models.backbones.efficientnet import FEATURE_STAGES, STAGES, STEM_CHANNELS, Stage
from semsegpaddle_glore.models.layers import batch_norm, conv2d, global_avg_pool

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

EFFICIENTNET_LITES = ("efficientnet_lite0",)
EPSILON = 1e-3  # of the batch normalisations, TensorFlow's
HEAD_CHANNELS = 1280
DROPOUT = 0.2


class EfficientNetLite(nn.Layer):
    """The features in front of each stride and the last one, without the classifier's 1x1 convolution.

    Shapes: (B, 3, H, W) -> four features with `out_channels` channels and sides ceil(H/stride), ceil(W/stride).

    Args:
        name: One of `EFFICIENTNET_LITES`.
        output_stride: 8, 16 or 32.
        num_classes: Outputs of the ImageNet classifier; 0 leaves it out, with the 1x1 convolution in front of it.
    """

    def __init__(self, name: str, output_stride: int = 32, num_classes: int = 0):
        super().__init__()
        plans = plan_stages([stage.stride for stage in STAGES], output_stride, input_stride=2)
        self.output_stride = output_stride
        self.out_channels = tuple(STAGES[index].channels for index in FEATURE_STAGES)
        self.strides = tuple(plans[index].output_stride for index in FEATURE_STAGES)
        self.conv_stem = same_conv2d(3, STEM_CHANNELS, 3, stride=2)
        self.bn1 = batch_norm(STEM_CHANNELS, EPSILON)
        self.blocks = nn.LayerList()
        in_channels = STEM_CHANNELS
        for stage, plan in zip(STAGES, plans, strict=True):
            blocks = nn.LayerList()
            for index in range(stage.blocks):
                stride, dilation = (plan.stride, plan.dilation) if index == 0 else (1, plan.dilation_after)
                block = DepthwiseSeparable if stage.expansion == 1 else InvertedResidual
                blocks.append(block(stage, in_channels, stride, dilation))
                in_channels = stage.channels
            self.blocks.append(blocks)
        if num_classes > 0:
            self.conv_head = conv2d(in_channels, HEAD_CHANNELS, 1)
            self.bn2 = batch_norm(HEAD_CHANNELS, EPSILON)
            self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns the features of the stages named in `FEATURE_STAGES`."""
        x = F.relu6(self.bn1(self.conv_stem(images)))  # (B, 32, H/2, W/2)
        features = []
        for index, blocks in enumerate(self.blocks):
            for block in blocks:
                x = block(x)
            if index in FEATURE_STAGES:
                features.append(x)
        return features

    def classify(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns ImageNet logits (B, num_classes)."""
        x = F.relu6(self.bn2(self.conv_head(self(images)[-1])))
        x = global_avg_pool(x).flatten(1)  # (B, 1280)
        return self.classifier(F.dropout(x, DROPOUT, training=self.training))


class DepthwiseSeparable(nn.Layer):
    """The first stage's block: depthwise convolution, 1x1 projection.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, stage: Stage, in_channels: int, stride: int, dilation: int):
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == stage.channels
        self.conv_dw = same_conv2d(in_channels, in_channels, stage.kernel_size, stride, dilation, groups=in_channels)
        self.bn1 = batch_norm(in_channels, EPSILON)
        self.conv_pw = conv2d(in_channels, stage.channels, 1)
        self.bn2 = batch_norm(stage.channels, EPSILON)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the block's output; there is no activation behind the projection."""
        y = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return x + y if self.has_shortcut else y


class InvertedResidual(nn.Layer):
    """1x1 expansion, depthwise convolution, 1x1 projection.

    Shapes: (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, stage: Stage, in_channels: int, stride: int, dilation: int):
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == stage.channels
        width = in_channels * stage.expansion
        self.conv_pw = conv2d(in_channels, width, 1)
        self.bn1 = batch_norm(width, EPSILON)
        self.conv_dw = same_conv2d(width, width, stage.kernel_size, stride, dilation, groups=width)
        self.bn2 = batch_norm(width, EPSILON)
        self.conv_pwl = conv2d(width, stage.channels, 1)
        self.bn3 = batch_norm(stage.channels, EPSILON)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the block's output; there is no activation behind the projection."""
        y = F.relu6(self.bn1(self.conv_pw(x)))
        y = F.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_shortcut else y


def same_conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2D:
    """`conv2d` with TensorFlow's padding. (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).

    At stride 1 that is the usual padding; a convolution with stride has no dilation here, which Paddle's would drop.
    """
    padding = "SAME" if stride > 1 else None
    return conv2d(in_channels, out_channels, kernel_size, stride, dilation, groups, padding=padding)


def from_torch_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Timm's EfficientNet-Lite0 as a state dict of `EfficientNetLite`."""
    renamed = {}
    for name, value in tensors.items():
        layer, _, tensor = name.rpartition(".")
        if tensor == "num_batches_tracked":
            continue
        tensor = {"running_mean": "_mean", "running_var": "_variance"}.get(tensor, tensor)
        renamed[f"{layer}.{tensor}"] = value.T.copy() if name == "classifier.weight" else value
    return renamed
