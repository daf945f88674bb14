"""DeepLabv3: dilated convolutions at several rates and the image's average, side by side.

Reference: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (arXiv 1706.05587),
sections 3.2.1 (multi-grid) and 3.3 with figure 5 (ASPP); tensorflow/models, research/deeplab, for the dropout.
"""

from __future__ import annotations

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, global_average, resize

import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck
from torch import nn

MULTI_GRID = (1, 2, 4)  # table 5: the best with ASPP
RATES = (6, 12, 18)  # at output stride 16; twice as much at 8 (section 3.3)


class DeepLabV3(nn.Module):
    """DeepLabv3.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet, or xception65.
        output_stride: 8 or 16. The weights fit both: the paper trains at 16 and evaluates at 8.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits".

    Reference: section 3.3, with multi-grid (1, 2, 4) in the last stage of ResNets of bottleneck blocks.
    Deviation: dropout of 0.1 before the classifier, from the published code; normalisation statistics move by 0.1 a
        step (paper: 0.0003); the first block of the last stages keeps the dilation of the stage before (see
        `Backbone`); trained at stride 8 by default (paper: at 16, then at 8 with normalisation frozen). torchvision,
        PyTorch-Encoding and the original of this project put one more 3x3 convolution before the classifier (590 336
        parameters with its normalisation) and train with an auxiliary head.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 8,
        backbone_weights: str | None = None,
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights)
        _apply_multi_grid(self.backbone.stages[-1])
        self.decode_head = nn.Sequential(
            AtrousSpatialPyramidPooling(
                self.backbone.channels[-1], 256, tuple(rate * 16 // output_stride for rate in RATES)
            ),
            nn.Dropout(0.1),
            nn.Conv2d(256, num_classes, kernel_size=1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits; in training a dict, see the class."""
        logits = resize(self.decode_head(self.backbone(images)[-1]), images.shape[2:])
        return {"logits": logits} if self.training else logits


class AtrousSpatialPyramidPooling(nn.Module):
    """ASPP: a 1x1 convolution, three dilated 3x3 ones and the image's average, joined by a 1x1 convolution.

    Shapes: (B, in_channels, h, w) -> (B, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, rates: tuple[int, ...]):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(in_channels, out_channels, kernel_size=1),
                *(conv_bn_relu(in_channels, out_channels, dilation=rate) for rate in rates),
            ]
        )
        self.image_branch = conv_bn_relu(in_channels, out_channels, kernel_size=1)
        self.project = nn.Conv2d((len(rates) + 2) * out_channels, out_channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the joined features."""
        local = torch.cat([branch(x) for branch in self.branches], dim=1)  # (B, 4 * out_channels, h, w)
        image = self.image_branch(global_average(x))  # (B, out_channels, 1, 1)
        # The image's part of the 1x1 convolution is the same at every pixel: computed once, added everywhere.
        local_weight, image_weight = self.project.weight.split([local.shape[1], image.shape[1]], dim=1)
        return F.relu(self.norm(F.conv2d(local, local_weight) + F.conv2d(image, image_weight)))


def _apply_multi_grid(stage: nn.Sequential) -> None:
    """Multiplies the dilation of the three bottleneck blocks of a ResNet's last stage by `MULTI_GRID`.

    The dilation that is multiplied is that of the stage, also in its first block. Other stages stay as they are.
    """
    if not isinstance(stage[0], Bottleneck):
        return
    rate = stage[-1].conv2.dilation[0]
    for block, factor in zip(stage, MULTI_GRID, strict=True):
        block.conv2.dilation = block.conv2.padding = (rate * factor, rate * factor)
