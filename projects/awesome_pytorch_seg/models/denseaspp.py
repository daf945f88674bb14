"""DenseASPP: dilated convolutions at growing rates, each seeing the outputs of all before.

Reference: Yang et al., "DenseASPP for Semantic Segmentation in Street Scenes", CVPR 2018, section 3 and figure 3;
DeepMotionAIResearch/DenseASPP, models/DenseASPP.py and cfgs/, for widths and dropout.
"""

from __future__ import annotations

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import resize

import torch
import torch.nn.functional as F
from torch import nn

RATES = (3, 6, 12, 18, 24)
# Backbone -> channels inside a block and of its output (cfgs/DenseASPP*.py).
WIDTHS = {
    "densenet121": (128, 64),
    "densenet161": (512, 128),
    "densenet169": (336, 168),
    "densenet201": (480, 240),
}


class DenseASPP(nn.Module):
    """DenseASPP.

    Args:
        num_classes: Number of classes.
        backbone: A DenseNet.
        output_stride: 8, or 16; at 16 the features are enlarged to stride 8 before the blocks, as in the official code.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits".

    Reference: section 3.2 (figure 3). As in the official code, the DenseNet is followed by one more transition, which
        halves its channels.
    Deviation: no bias in convolutions that are followed by a normalisation, where it changes nothing; normalisation
        statistics move by PyTorch's 0.1 per step (official code: 0.0003 in the blocks); PyTorch's random weights
        (there: drawn as He et al. do, uniformly).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "densenet121",
        output_stride: int = 8,
        backbone_weights: str | None = None,
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights)
        self.enlarges = output_stride > 8
        in_channels = self.backbone.channels[-1]
        # The backbone ends with normalisation and ReLU, a transition's first half; this is the second, normalised.
        channels = in_channels // 2
        self.transition = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        inner, growth = WIDTHS[backbone]
        self.blocks = nn.ModuleList(
            _dense_aspp_block(channels + i * growth, inner, growth, rate, normalise_first=i > 0)
            for i, rate in enumerate(RATES)
        )
        out_channels = channels + len(RATES) * growth
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(out_channels, num_classes, kernel_size=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits; in training a dict, see the class."""
        feat = self.transition(self.backbone(images)[-1])
        if self.enlarges:
            feat = resize(feat, (2 * feat.shape[2], 2 * feat.shape[3]))
        feat = F.relu(feat)  # once for all, as the first block's ReLU does in place in the official code
        for block in self.blocks:
            feat = torch.cat([block(feat), feat], dim=1)
        logits = resize(self.classifier(feat), images.shape[2:])
        return {"logits": logits} if self.training else logits


def _dense_aspp_block(
    in_channels: int, inner_channels: int, out_channels: int, rate: int, normalise_first: bool
) -> nn.Sequential:
    """Normalisation and ReLU (but for the first block, whose input has had both), 1x1; the same, dilated 3x3; dropout.

    Shapes: (B, in_channels, h, w) -> (B, out_channels, h, w).
    """
    first = [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)] if normalise_first else []
    return nn.Sequential(
        *first,
        nn.Conv2d(in_channels, inner_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(inner_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner_channels, out_channels, kernel_size=3, padding=rate, dilation=rate),
        nn.Dropout2d(0.1),
    )
