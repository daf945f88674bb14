"""DANet: attention between positions and attention between channels, summed.

Reference: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019 (arXiv 1809.02983), section 3 and
figures 2 and 3; junfu1115/DANet, encoding/nn/attention.py and encoding/models/sseg/danet.py.
"""

from __future__ import annotations

from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import attend, conv_bn_relu, resize
from common.cli import UserError

import torch
from torch import nn

MULTI_DILATION = (4, 8, 16)


class DANet(nn.Module):
    """DANet.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet.
        output_stride: Of the features that attend; 8 in the paper.
        backbone_weights: A local file of ImageNet weights, or None.
        variant: "plain", or "multi_grid": the last stage's blocks at dilations 4, 8 and 16, as the published networks
            have it (`--multi-grid --multi-dilation 4 8 16`); at output stride 8.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits" and "aux", those of
        the position and of the channel branch, whose losses the official code adds with weight 1.

    Reference: figure 2. With a `resnet..s` backbone the parameters are those of the official code; the published
        networks have multi-grid and, with the 7x7 stem, `resnet101`.

    Raises:
        UserError: Multi-grid at another output stride, or on a backbone whose last stage has not three blocks.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 8,
        backbone_weights: str | None = None,
        variant: str = "plain",
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights)
        if variant == "multi_grid":
            _dilate_last_stage(self.backbone.stages[-1], output_stride)
        in_channels = self.backbone.channels[-1]
        channels = in_channels // 4
        self.position_branch = nn.Sequential(
            conv_bn_relu(in_channels, channels), PositionAttention(channels), conv_bn_relu(channels, channels)
        )
        self.channel_branch = nn.Sequential(
            conv_bn_relu(in_channels, channels), ChannelAttention(), conv_bn_relu(channels, channels)
        )
        self.decode_head = _classifier(channels, num_classes)
        self.position_head = _classifier(channels, num_classes)
        self.channel_head = _classifier(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, Any]:
        """Returns logits; in training a dict, see the class."""
        size = images.shape[2:]
        feat = self.backbone(images)[-1]
        position, channel = self.position_branch(feat), self.channel_branch(feat)
        logits = resize(self.decode_head(position + channel), size)
        if not self.training:
            return logits
        aux = (resize(self.position_head(position), size), resize(self.channel_head(channel), size))
        return {"logits": logits, "aux": aux}


def _dilate_last_stage(stage: nn.Sequential, output_stride: int) -> None:
    if output_stride != 8 or len(stage) != len(MULTI_DILATION):
        raise UserError("variant 'multi_grid' of danet is one of ResNet-50 and deeper at output stride 8: take these")
    for block, dilation in zip(stage, MULTI_DILATION, strict=True):
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


class PositionAttention(nn.Module):
    """Every position gathers from all positions, by likeness; added with a learnt weight that starts at 0.

    Shapes: (B, C, h, w) -> the same.

    Reference: section 3.2, equations 1 and 2. The likeness is not divided by anything.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.key = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns weight * gathered + x."""
        return self.weight * attend(self.query(x), self.key(x), self.value(x), scale=1.0) + x


class ChannelAttention(nn.Module):
    """Every channel gathers from all channels, most from those unlike it; added with a learnt weight that starts at 0.

    Shapes: (B, C, h, w) -> the same.

    Reference: section 3.3, equations 3 and 4.
    Deviation from the paper, as in the official code: the softmax is over (row maximum - product), where the paper's
        equation has the product itself. Computed in float32, also under autocast: the products are sums over the image.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns weight * gathered + x."""
        with torch.autocast(x.device.type, enabled=False):
            channels = x.flatten(2).to(self.weight.dtype)  # (B, C, h * w)
            product = channels @ channels.transpose(1, 2)  # (B, C, C)
            # softmax(maximum - product) is softmax(-product): what is equal in a row does not count.
            gathered = torch.softmax(-product, dim=-1) @ channels
            return self.weight * gathered.reshape(x.shape) + x


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    """(B, channels, h, w) -> (B, num_classes, h, w)."""
    return nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, kernel_size=1))
