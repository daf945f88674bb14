"""ICNet: a deep network sees a small image, shallow ones the larger ones, joined from small to large.

Reference: Zhao et al., "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", ECCV 2018 (arXiv
1704.08545), section 3, figures 2 and 3; hszhao/ICNet, evaluation/prototxt/icnet_cityscapes_bnnomerge.prototxt.
"""

from __future__ import annotations

from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, resize
from awesome_pytorch_seg.models.pyramid import enlarging_matrix, pool_to_grids

import torch
import torch.nn.functional as F
from torch import nn

BINS = (1, 2, 3, 6)
FUSED_CHANNELS = 128


class ICNet(nn.Module):
    """ICNet.

    The image at half size runs through the first stage and a half of a dilated ResNet; what comes out is halved again
    and runs through the rest, so that the three branches work at strides 32, 16 and 8 of the image.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet of bottleneck blocks; the paper's compressed network has half of its channels.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits" at stride 4 and "aux",
        those of the second and of the first fusion's input, at strides 8 and 16, which `losses.ICNetLoss` takes.

    Reference: figure 2; section 3.4 (cascade label guidance on the enlarged input of each fusion).
    Deviation: trained at its width from the start; the paper trains at full width and halves the kernels afterwards.
        The prototxt has stage 2's stride in its 1x1 convolution, dilates the first blocks of dilated stages, and its
        pyramid's windows overlap and are those of 33x65 cells; here they are bins. All of it moves the logits by 5.7 %
        of the largest, the windows alone by 2.4 %.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet50_half", backbone_weights: str | None = None):
        super().__init__()
        self.backbone = Backbone(backbone, 8, backbone_weights)
        channels2, channels4 = self.backbone.channels[1], self.backbone.channels[3]
        self.reduce = conv_bn_relu(channels4, channels4 // 4, kernel_size=1)
        self.shallow = nn.Sequential(
            conv_bn_relu(3, 32, stride=2), conv_bn_relu(32, 32, stride=2), conv_bn_relu(32, 64, stride=2)
        )
        self.fusion16 = CascadeFeatureFusion(channels4 // 4, channels2, FUSED_CHANNELS, num_classes)
        self.fusion8 = CascadeFeatureFusion(FUSED_CHANNELS, 64, FUSED_CHANNELS, num_classes)
        self.classifier = nn.Conv2d(FUSED_CHANNELS, num_classes, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, Any]:
        """Returns logits; in training a dict, see the class."""
        height, width = images.shape[2:]
        feat16, feat32 = self._branches(images)
        fused16, logits16 = self.fusion16(feat32, feat16)
        fused8, logits8 = self.fusion8(fused16, self.shallow(images))
        feat4 = resize(fused8, ((height + 3) // 4, (width + 3) // 4))
        logits4 = self.classifier(feat4)
        if self.training:
            return {"logits": logits4, "aux": (logits8, logits16)}
        return resize(logits4, (height, width))

    def _branches(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the half image (B, channels2, h16, w16) and of its half (B, channels4 / 4, h32, w32)."""
        first, second, third, fourth = self.backbone.stages
        head, *rest = second
        feat16 = head(first(self.backbone.stem(_halved(images))))
        x = _halved(feat16)
        for block in rest:
            x = block(x)
        return feat16, self.reduce(add_pyramid(fourth(third(x))))


class CascadeFeatureFusion(nn.Module):
    """CFF: a small map is enlarged and summed with the map of the next branch.

    Shapes: low (B, low_channels, h, w), high (B, high_channels, H, W) -> fused (B, out_channels, H, W), and logits of
        the enlarged small map (B, num_classes, H, W).

    Reference: section 3.3, figure 3.
    """

    def __init__(self, low_channels: int, high_channels: int, out_channels: int, num_classes: int):
        super().__init__()
        self.low = nn.Sequential(*conv_bn_relu(low_channels, out_channels, dilation=2)[:2])
        self.high = nn.Sequential(*conv_bn_relu(high_channels, out_channels, kernel_size=1)[:2])
        self.guide = nn.Conv2d(low_channels, num_classes, kernel_size=1)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (fused, logits); the logits are None in evaluation, where they are not used."""
        low = resize(low, high.shape[2:])
        fused = F.relu(self.low(low) + self.high(high))
        return fused, self.guide(low) if self.training else None


def add_pyramid(x: torch.Tensor) -> torch.Tensor:
    """Adds to the features their averages over 1, 4, 9 and 36 bins, each grid enlarged again. (B, C, h, w) -> the same.

    Reference: the sum `conv5_3_sum` of the prototxt, in the place of PSPNet's concatenation.
    """
    height, width = x.shape[2:]
    for grid in pool_to_grids(x, BINS):
        bins = grid.shape[-1]
        x = x + enlarging_matrix(bins, height, x) @ grid @ enlarging_matrix(bins, width, x).T
    return x


def _halved(x: torch.Tensor) -> torch.Tensor:
    return resize(x, ((x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2))
