"""BiSeNet: a shallow path for detail at stride 8 and a deep path for context, fused.

Reference: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV 2018 (arXiv
1808.00897), section 3 and figure 2; ycszen/TorchSeg, model/bisenet/cityscapes.bisenet.R18/network.py and
furnace/seg_opr/seg_oprs.py, for the numbers of channels.
"""

from __future__ import annotations

from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, global_average, resize

import torch
from torch import nn


class BiSeNet(nn.Module):
    """BiSeNet.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet, the context path's.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits" and "aux", those
        of the context path at strides 16 and 8, all of that shape, whose losses the paper adds with weight 1
        (equation 2).

    Reference: figure 2; with resnet18 the parameters are those of TorchSeg's R18 model.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet18", backbone_weights: str | None = None):
        super().__init__()
        self.spatial_path = nn.Sequential(
            conv_bn_relu(3, 64, kernel_size=7, stride=2),
            conv_bn_relu(64, 64, stride=2),
            conv_bn_relu(64, 64, stride=2),
            conv_bn_relu(64, 128, kernel_size=1),
        )
        self.backbone = Backbone(backbone, 32, backbone_weights)
        *_, channels16, channels32 = self.backbone.channels
        self.global_context = conv_bn_relu(channels32, 128, kernel_size=1)
        self.arm32 = AttentionRefinementModule(channels32, 128)
        self.arm16 = AttentionRefinementModule(channels16, 128)
        self.refine32 = conv_bn_relu(128, 128)
        self.refine16 = conv_bn_relu(128, 128)
        self.ffm = FeatureFusionModule(256, 256)
        self.decode_head = _head(256, 64, num_classes)
        self.aux_head16 = _head(128, 256, num_classes)
        self.aux_head8 = _head(128, 256, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, Any]:
        """Returns logits; in training a dict, see the class."""
        size = images.shape[2:]
        _, feat8, feat16, feat32 = self.backbone(images)
        # The global average is (B, 128, 1, 1): adding it broadcasts, which is what enlarging it would do.
        sum32 = self.arm32(feat32) + self.global_context(global_average(feat32))
        context16 = self.refine32(resize(sum32, feat16.shape[2:]))  # (B, 128, h16, w16)
        sum16 = self.arm16(feat16) + context16
        context8 = self.refine16(resize(sum16, feat8.shape[2:]))  # (B, 128, h8, w8)
        fused = self.ffm(torch.cat([self.spatial_path(images), context8], dim=1))
        logits = resize(self.decode_head(fused), size)
        if not self.training:
            return logits
        aux = (resize(self.aux_head16(context16), size), resize(self.aux_head8(context8), size))
        return {"logits": logits, "aux": aux}


class AttentionRefinementModule(nn.Module):
    """ARM: features weighted by a gate from their global average. (B, in, h, w) -> (B, out, h, w).

    Reference: figure 2 (b); the 3x3 convolution before it is the official code's.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = conv_bn_relu(in_channels, out_channels)
        self.gate = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False), nn.BatchNorm2d(out_channels), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the gated features."""
        feat = self.conv(x)
        return feat * self.gate(global_average(feat))


class FeatureFusionModule(nn.Module):
    """FFM: concatenated features reduced, then weighted by 1 + gate. (B, in, h, w) -> (B, out, h, w).

    Reference: figure 2 (c).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.reduce = conv_bn_relu(in_channels, out_channels, kernel_size=1)
        self.gate = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the fused features."""
        feat = self.reduce(x)
        return feat + feat * self.gate(global_average(feat))


def _head(in_channels: int, mid_channels: int, num_classes: int) -> nn.Sequential:
    """(B, in_channels, h, w) -> (B, num_classes, h, w)."""
    return nn.Sequential(conv_bn_relu(in_channels, mid_channels), nn.Conv2d(mid_channels, num_classes, kernel_size=1))
