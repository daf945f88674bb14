"""STDC networks: the backbones of STDC-Seg and the ImageNet classifiers that they are taken from.

Reference: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021 (arXiv 2104.13188), section
3.1 and table 2.
"""

from __future__ import annotations

from stdc_seg.models.layers import ConvBNReLU, avg_pool_3x3_stride2, batch_norm, conv2d, global_avg_pool

import paddle
import paddle.nn.functional as F
from paddle import nn

# Blocks per stage (strides 8, 16, 32); the first block of each stage halves the size. Paper, table 2.
STDC_LAYERS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}
# Channels of the features at strides 2, 4, 8, 16, 32, the same for both networks.
STDC_CHANNELS = (32, 64, 256, 512, 1024)


class STDCModule(nn.Layer):
    """Short-term dense concatenate module: four convolutions, each on the one before, all four concatenated.

    Channel shares are 1/2, 1/4, 1/8, 1/8 of `out_channels`. At stride 2 a depthwise convolution after the first
    convolution halves the size, and the first share joins through average pooling.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H/stride), ceil(W/stride)).

    Reference: section 3.1, figure 3 and equation 2 of the paper.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.conv_list = nn.LayerList(
            [
                ConvBNReLU(in_channels, half, 1, init="backbone"),
                ConvBNReLU(half, quarter, 3, init="backbone"),
                ConvBNReLU(quarter, eighth, 3, init="backbone"),
                ConvBNReLU(eighth, eighth, 3, init="backbone"),
            ]
        )
        self.avd_layer = None
        if stride == 2:
            self.avd_layer = nn.Sequential(
                conv2d(half, half, 3, stride=2, groups=half, init="backbone"), batch_norm(half)
            )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the concatenation of the four shares."""
        first = self.conv_list[0](x)
        if self.avd_layer is None:
            second = self.conv_list[1](first)
        else:
            second = self.conv_list[1](self.avd_layer(first))
            first = avg_pool_3x3_stride2(first)
        third = self.conv_list[2](second)
        fourth = self.conv_list[3](third)
        return paddle.concat([first, second, third, fourth], axis=1)  # (B, C/2 + C/4 + C/8 + C/8, h, w)


class STDCNet(nn.Layer):
    """The backbone: features at strides 2, 4, 8, 16 and 32.

    Shapes: (B, 3, H, W) -> five features with `STDC_CHANNELS` channels and sides ceil(H/stride), ceil(W/stride).

    Args:
        name: "stdc1" (STDCNet813 in the official code) or "stdc2" (STDCNet1446).
    """

    out_channels = STDC_CHANNELS
    strides = (2, 4, 8, 16, 32)

    def __init__(self, name: str):
        super().__init__()
        blocks = [ConvBNReLU(3, 32, 3, stride=2, init="backbone"), ConvBNReLU(32, 64, 3, stride=2, init="backbone")]
        in_channels = 64
        self._last_of_stage = [0, 1]  # index in `features` of the block that each stride's feature comes from
        for out_channels, count in zip(STDC_CHANNELS[2:], STDC_LAYERS[name], strict=True):
            for index in range(count):
                blocks.append(STDCModule(in_channels, out_channels, stride=2 if index == 0 else 1))
                in_channels = out_channels
            self._last_of_stage.append(len(blocks) - 1)
        self.features = nn.LayerList(blocks)

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns [feat2, feat4, feat8, feat16, feat32]."""
        outputs = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self._last_of_stage:
                outputs.append(x)
        return outputs


class STDCClassifier(nn.Layer):
    """The ImageNet classifier, whose `backbone` is what STDC-Seg starts from.

    Shapes: (B, 3, H, W) -> logits (B, num_classes).

    Reference: paper table 2; the squared features before pooling and the hidden layer without activation norm are the
    official code's (its `bn` layer is built and never applied, so it is left out here).
    """

    def __init__(self, name: str, num_classes: int = 1000, dropout: float = 0.2):
        super().__init__()
        self.backbone = STDCNet(name)
        self.conv_last = ConvBNReLU(1024, 1024, 1, init="backbone")
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, 0.001))
        self.fc = nn.Linear(1024, 1024, weight_attr=normal, bias_attr=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(1024, num_classes, weight_attr=normal, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the class logits."""
        x = self.conv_last(self.backbone(x)[-1])
        x = global_avg_pool(x * x).flatten(1)  # (B, 1024)
        return self.linear(self.dropout(F.relu(self.fc(x))))
