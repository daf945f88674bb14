"""Our STDC-Seg with what paddleseg's own has and the official network has not.

paddleseg 2.8.0's STDCSeg differs from the official code, and so from `stdc_seg`, in two ways that change what it
computes: every convolution of its decoder has a bias, and its average pooling leaves the padding out of the mean. Six
of those biases (before a sigmoid, a ReLU or an output) cannot be moved into a batch normalisation, so its checkpoints
fit the network below and not `stdc_seg.models.STDCSeg`.
"""

from __future__ import annotations

from stdc_seg.models import STDCSeg
from stdc_seg.models.stdcnet import STDCModule

import paddle
import paddle.nn.functional as F
from paddle import nn


class PaddlesegSTDCSeg(STDCSeg):
    """`stdc_seg.models.STDCSeg` with biases in the decoder and average pooling that ignores its padding.

    Shapes and arguments as there; tensors are named as there, plus a `bias` for each convolution of the decoder.
    """

    def __init__(self, name: str, num_classes: int):
        super().__init__(name, num_classes)
        for part, layers in self.named_children():
            if part != "backbone":
                for layer in layers.sublayers():
                    if isinstance(layer, nn.Conv2D):
                        layer.bias = layer.create_parameter([layer.weight.shape[0]], is_bias=True)
        for index, block in enumerate(self.backbone.features):
            if isinstance(block, STDCModule) and block.avd_layer is not None:
                self.backbone.features[index] = _PaddlesegSTDCModule(block)


class _PaddlesegSTDCModule(nn.Layer):
    """A STDC module at stride 2 whose average pooling takes the mean of the pixels inside the image only."""

    def __init__(self, module: STDCModule):
        super().__init__()
        self.conv_list, self.avd_layer = module.conv_list, module.avd_layer

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2))."""
        first = self.conv_list[0](x)
        second = self.conv_list[1](self.avd_layer(first))
        third = self.conv_list[2](second)
        fourth = self.conv_list[3](third)
        first = F.avg_pool2d(first, kernel_size=3, stride=2, padding=1, exclusive=True)
        return paddle.concat([first, second, third, fourth], axis=1)  # (B, C/2 + C/4 + C/8 + C/8, h, w)
