"""DeepLabv3's decode head: atrous spatial pyramid pooling with the image's mean.

Reference: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587), section
3.3 and figure 5.
"""

from __future__ import annotations

from semsegpaddle_glore.models.layers import ConvBNReLU, batch_norm, conv2d, global_avg_pool

import paddle
import paddle.nn.functional as F
from paddle import nn

CHANNELS = 256
RATES = (6, 12, 18)
"""At output stride 16; twice as much at 8."""


class ASPPHead(nn.Layer):
    """A 1x1 convolution, three dilated 3x3 ones and the image's mean, joined by a 1x1 convolution.

    The joining convolution over the concatenation of all five is the sum of one over the four maps and one over the
    mean, which is the same at every pixel: it is computed once and added.

    Shapes: (B, in, h, w) -> {"logits": (B, num_classes, h, w)}.

    Deviation: SemSegPaddle joins to 512 channels, torchvision, PyTorch-Encoding and Tramac add a 3x3 convolution; here
    256 channels and a 1x1 classifier, as in the paper. With ResNet-50, 19 classes and no auxiliary head the network has
    39 048 019 parameters, PaddleSeg's (model_facts.csv) 20 512 more: 19 232 in the first layers of its ResNet50_vd and
    1 280 biases before batch normalisations.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float, output_stride: int):
        super().__init__()
        rates = [rate * 16 // output_stride for rate in RATES]
        self.branches = nn.LayerList(
            [ConvBNReLU(in_channels, CHANNELS, 1)]
            + [ConvBNReLU(in_channels, CHANNELS, 3, dilation=rate) for rate in rates]
        )
        self.image_branch = ConvBNReLU(in_channels, CHANNELS, 1)
        self.project_branches = conv2d(CHANNELS * len(self.branches), CHANNELS, 1)
        self.project_image = conv2d(CHANNELS, CHANNELS, 1)
        self.bn = batch_norm(CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.classifier = conv2d(CHANNELS, num_classes, 1, bias=True, init="fan_in")

    def forward(self, feature: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """Returns the logits at the feature's size."""
        branches = paddle.concat([branch(feature) for branch in self.branches], axis=1)  # (B, 1024, h, w)
        image = self.image_branch(global_avg_pool(feature))  # (B, 256, 1, 1)
        x = F.relu(self.bn(self.project_branches(branches) + self.project_image(image)))
        return {"logits": self.classifier(self.dropout(x))}
