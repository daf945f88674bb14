"""RefineNet: four cascaded blocks, each of which refines the coarser block's result with a finer feature.

Reference: Lin et al., "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation", CVPR 2017,
section 3 and figure 3 (4-cascaded RefineNet). Counts and orders where the paper leaves them open (four pooling blocks,
no bias but in the first convolution of a residual unit, dropout) are those of the authors' released network, as
DrSleep/refinenet-pytorch has them; parameter counts agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.layers import resize

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = (256, 256, 256, 512)  # of the blocks at strides 4, 8, 16, 32


class RefineNetHead(nn.Module):
    """The four blocks, coarsest first, and a 3x3 classifier.

    Shapes: five features as `ResNet` gives them -> {"logits": (B, num_classes, H/4, W/4)}.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int):
        super().__init__()
        coarser = (*CHANNELS[1:], None)
        self.blocks = nn.ModuleList(
            RefineBlock(*channels) for channels in zip(in_channels[1:], CHANNELS, coarser, strict=True)
        )
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(CHANNELS[0], num_classes, 3, padding=1)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the logits at stride 4."""
        _, feat4, feat8, feat16, feat32 = features
        x = None
        inputs = (feat4, feat8, self.dropout(feat16), self.dropout(feat32))
        for block, feature in zip(reversed(self.blocks), reversed(inputs), strict=True):
            x = block(feature, x)
        return {"logits": self.classifier(self.dropout(x))}


class RefineBlock(nn.Module):
    """Residual units on the feature, fusion with the coarser result, chained residual pooling, residual units.

    Shapes: feature (B, in, h, w), coarser (B, coarser_channels, h', w') or None -> (B, channels, h, w).

    Reference: figure 3; section 3.2. The three units at the end are the paper's one and the next block's two.
    """

    def __init__(self, in_channels: int, channels: int, coarser_channels: int | None):
        super().__init__()
        self.reduce = _conv3x3(in_channels, channels)
        self.adapt = nn.Sequential(ResidualUnit(channels), ResidualUnit(channels))
        if coarser_channels is not None:
            self.fuse_fine = _conv3x3(channels, channels)
            self.fuse_coarse = _conv3x3(coarser_channels, channels)
        self.pooling = ChainedPooling(channels)
        self.output = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))

    def forward(self, feature: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Returns the refined feature."""
        x = self.adapt(self.reduce(feature))
        if coarser is not None:
            x = self.fuse_fine(x) + resize(self.fuse_coarse(coarser), x.shape[2:])
        return self.output(self.pooling(F.relu(x)))


class ResidualUnit(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 3x3 convolution; added to the input. (B, C, H, W) -> the same.

    Reference: figure 3b.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _conv3x3(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x + branch."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class ChainedPooling(nn.Module):
    """5x5 max pooling and a 3x3 convolution, four times in a chain; every link is added. (B, C, H, W) -> the same.

    Reference: figure 3d.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(_conv3x3(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of input and links."""
        link = x
        for conv in self.convs:
            link = conv(F.max_pool2d(link, kernel_size=5, stride=1, padding=2))
            x = x + link
        return x


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
