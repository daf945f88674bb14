"""ResNet and ResNeXt with dilation and multi-grid; state-dict names are torchvision's.

References: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), table 1; Xie et
al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv 1611.05431), table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.cli import UserError
from semsegpaddle_glore.models.backbones.dilation import StagePlan, plan_stages
from semsegpaddle_glore.models.layers import batch_norm, conv2d, global_avg_pool

import paddle
import paddle.nn.functional as F
from paddle import nn


class ResNetShape(NamedTuple):
    """Blocks per stage; whether they are bottlenecks; groups of their 3x3 convolutions and channels per group."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64  # at 64 planes; a ResNet's one group is as wide as its planes


RESNETS = {
    "resnet18": ResNetShape((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetShape((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetShape((3, 4, 6, 3)),
    "resnet101": ResNetShape((3, 4, 23, 3)),
    "resnet152": ResNetShape((3, 8, 36, 3)),
    "resnext50_32x4d": ResNetShape((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNetShape((3, 4, 23, 3), groups=32, group_width=8),
}
STAGE_PLANES = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 2, 2)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's 1x1 convolution and batch normalisation; None where the input fits as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv2d(in_channels, out_channels, 1, stride), batch_norm(out_channels))


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions beside a shortcut. (B, in, H, W) -> (B, planes, ceil(H/stride), ceil(W/stride))."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int = 1, dilation: int = 1, dilation_after: int = 1):
        super().__init__()
        self.conv1 = conv2d(in_channels, planes, 3, stride, dilation)
        self.bn1 = batch_norm(planes)
        self.conv2 = conv2d(planes, planes, 3, dilation=dilation_after)
        self.bn2 = batch_norm(planes)
        self.downsample = projection(in_channels, planes, stride)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the block's output after its last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Layer):
    """1x1, 3x3, 1x1 beside a shortcut. (B, in, H, W) -> (B, 4 * planes, ceil(H/stride), ceil(W/stride)).

    Deviation: the 3x3 convolution strides, not the first 1x1 as in the paper's table ("v1.5", as in torchvision and in
    SemSegPaddle's ResNet-101).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        group_width: int = 64,
    ):
        super().__init__()
        width = planes * group_width // 64 * groups
        self.conv1 = conv2d(in_channels, width, 1)
        self.bn1 = batch_norm(width)
        self.conv2 = conv2d(width, width, 3, stride, dilation, groups)
        self.bn2 = batch_norm(width)
        self.conv3 = conv2d(width, planes * self.expansion, 1)
        self.bn3 = batch_norm(planes * self.expansion)
        self.downsample = projection(in_channels, planes * self.expansion, stride)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the block's output after its last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Layer):
    """ResNet or ResNeXt: the four stages' features.

    Shapes: (B, 3, H, W) -> four features with `out_channels` channels and sides ceil(H/stride), ceil(W/stride).

    Args:
        name: A key of `RESNETS`.
        output_stride: 8, 16 or 32.
        multi_grid: Factors of the dilations in the last stage's blocks, one per block, such as (1, 2, 4): at output
            stride 8 they become 4, 8, 16. None: the first block keeps the dilation before it, as in torchvision.
        num_classes: Outputs of the ImageNet classifier; 0 leaves it out.
        first_block_dilated: Whether the first block of a stage that lost its stride is dilated as the others, see
            `plan_stages`.

    Raises:
        UserError: `multi_grid` has another length than the last stage.

    Reference: dilation and multi-grid as in DeepLabv3 (arXiv 1706.05587), 3.1 and 3.2.

    Deviation: the first layer is one 7x7 convolution, as in the paper, in torchvision and in SemSegPaddle's dygraph
    port; SemSegPaddle's static-graph network has three 3x3 convolutions (64, 64, 128 channels) there, for which no
    torchvision weights exist. Its dygraph port's multi-grid uses 2, 4, 8 at output stride 8, the static-graph one
    4, 8, 16 as here. The first block of stage 3 keeps dilation 1 at output stride 8, as in torchvision and the dygraph
    port, unless `first_block_dilated`, as in the static-graph network: its features differ by 0.22 (stage 3) and 0.35
    (stage 4, without multi-grid) of their largest value with equal weights.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 32,
        multi_grid: Sequence[int] | None = None,
        num_classes: int = 0,
        first_block_dilated: bool = False,
    ):
        super().__init__()
        shape = RESNETS[name]
        if multi_grid is not None and len(multi_grid) != shape.blocks[3]:
            raise UserError(
                f"model.multi_grid has {len(multi_grid)} factors and the last stage of {name} {shape.blocks[3]} "
                f"blocks: give one factor per block"
            )
        expansion = Bottleneck.expansion if shape.bottleneck else BasicBlock.expansion
        self.output_stride = output_stride
        self.out_channels = tuple(planes * expansion for planes in STAGE_PLANES)
        plans = plan_stages(STAGE_STRIDES, output_stride, 4, first_block_dilated)
        self.strides = tuple(plan.output_stride for plan in plans)
        self.conv1 = conv2d(3, 64, 7, stride=2)
        self.bn1 = batch_norm(64)
        self.layer1 = _stage(shape, 0, 64, plans[0])
        self.layer2 = _stage(shape, 1, self.out_channels[0], plans[1])
        self.layer3 = _stage(shape, 2, self.out_channels[1], plans[2])
        self.layer4 = _stage(shape, 3, self.out_channels[2], plans[3], multi_grid)
        if num_classes > 0:
            self.fc = nn.Linear(self.out_channels[-1], num_classes)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns the features of layer1 to layer4."""
        x = F.relu(self.bn1(self.conv1(images)))  # (B, 64, ceil(H/2), ceil(W/2))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)  # (B, 64, ceil(H/4), ceil(W/4))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features

    def classify(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns ImageNet logits (B, num_classes)."""
        return self.fc(global_avg_pool(self(images)[-1]).flatten(1))  # (B, C) -> (B, num_classes)


def _stage(
    shape: ResNetShape, index: int, in_channels: int, plan: StagePlan, multi_grid: Sequence[int] | None = None
) -> nn.Sequential:
    """The blocks of one stage."""
    planes, count = STAGE_PLANES[index], shape.blocks[index]
    if multi_grid is None:
        dilations = [plan.dilation] + [plan.dilation_after] * (count - 1)
    else:
        dilations = [plan.dilation_after * factor for factor in multi_grid]
    blocks = []
    for position, dilation in enumerate(dilations):
        stride = plan.stride if position == 0 else 1
        if shape.bottleneck:
            block = Bottleneck(in_channels, planes, stride, dilation, shape.groups, shape.group_width)
        else:
            after = plan.dilation_after if multi_grid is None else dilation
            block = BasicBlock(in_channels, planes, stride, dilation, after)
        blocks.append(block)
        in_channels = planes * block.expansion
    return nn.Sequential(*blocks)
