"""DUNet: fine features are shrunk to the coarse ones, and the classes enlarged by a matrix learnt from labels.

Reference: Tian et al., "Decoders Matter for Semantic Segmentation: Data-Dependent Decoding Enables Flexible Feature
Aggregation", CVPR 2019 (arXiv 1903.02120), section 3. The authors published no code.
"""

from __future__ import annotations

from collections.abc import Iterable

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, resize
from common.labels import IGNORE

import torch
import torch.nn.functional as F
from torch import nn

FUSED_CHANNELS = 256
LOW_LEVEL_CHANNELS = 48


class DUNet(nn.Module):
    """DUNet.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet, or xception65.
        output_stride: Of the features that are decoded; 16 in the paper's experiments.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits".

    Reference: section 3.3 (downsampled low-level features), 3.1 and 3.2 (`DUpsampling`).
    Deviation: which low-level features are fused, and the channels in between, follow the original of this project
        (stages 2 and 3 reduced to 48 channels, two 3x3 convolutions of 256): the paper leaves them to its DeepLabv3+
        baseline. No auxiliary head, which the original adds to the paper.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 16,
        backbone_weights: str | None = None,
    ):
        super().__init__()
        self.backbone = Backbone(backbone, output_stride, backbone_weights)
        _, channels2, channels3, channels4 = self.backbone.channels
        self.low_level2 = conv_bn_relu(channels2, LOW_LEVEL_CHANNELS, kernel_size=1)
        self.low_level3 = conv_bn_relu(channels3, LOW_LEVEL_CHANNELS, kernel_size=1)
        self.decode_head = nn.Sequential(
            conv_bn_relu(channels4 + 2 * LOW_LEVEL_CHANNELS, FUSED_CHANNELS),
            conv_bn_relu(FUSED_CHANNELS, FUSED_CHANNELS),
        )
        self.upsampling = DUpsampling(FUSED_CHANNELS, num_classes, output_stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits; in training a dict, see the class."""
        _, feat2, feat3, feat4 = self.backbone(images)
        size = feat4.shape[2:]
        low = [self.low_level3(resize(feat3, size)), self.low_level2(resize(feat2, size))]
        logits = self.upsampling(self.decode_head(torch.cat([feat4, *low], dim=1)), images.shape[2:])
        return {"logits": logits} if self.training else logits


class DUpsampling(nn.Module):
    """Data-dependent upsampling: every position's vector becomes a block of `scale` x `scale` pixels' logits.

    Shapes: (B, in_channels, h, w) and a size (H, W) of at most (h * scale, w * scale) -> (B, num_classes, H, W): the
        blocks lie side by side, what reaches over the size is cut off.

    Attributes:
        weight: (num_classes * scale * scale, in_channels), the paper's W; `learn_from_labels` computes it.
        temperature: Divides the logits; learnt (section 3.2).

    Reference: section 3.1, equations 1 to 5.
    Deviation: W keeps learning with the network from where `learn_from_labels` put it.
    """

    def __init__(self, in_channels: int, num_classes: int, scale: int):
        super().__init__()
        self.num_classes, self.scale = num_classes, scale
        bound = in_channels**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes * scale**2, in_channels).uniform_(-bound, bound))
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Returns the logits."""
        blocks = F.conv2d(x, self.weight[..., None, None])  # (B, num_classes * scale * scale, h, w)
        pixels = F.pixel_shuffle(blocks, self.scale)  # (B, num_classes, h * scale, w * scale)
        return pixels[..., : size[0], : size[1]] / self.temperature

    @torch.no_grad()
    def learn_from_labels(self, labels: Iterable[torch.Tensor], max_blocks: int = 2048) -> None:
        """Sets the weight to what rebuilds blocks of labels best from `in_channels` numbers each.

        A block as a one-hot vector v is compressed to P v and rebuilt as W P v. The least sum of squared errors over
        all blocks has P = W^T and for columns of W the leading principal directions of the (uncentred) vectors.
        Directions that the blocks do not span keep their random weights.

        Args:
            labels: Int64 (H, W) each; blocks are taken from them until there are `max_blocks`.
            max_blocks: More cost memory: a block is `weight.shape[0]` float32 numbers.

        Reference: equations 1 and 2; the paper names PCA as the closed form.
        """
        blocks = _first_blocks(labels, self.scale, max_blocks).to(self.weight.device)  # (M, scale, scale)
        classes = torch.arange(self.num_classes, device=blocks.device)[:, None, None]
        vectors = (blocks[:, None] == classes).flatten(1).to(self.weight.dtype)  # (M, num_classes * scale * scale)
        # The eigenvectors of the small matrix of products give those of the large one of moments.
        squares, mixtures = torch.linalg.eigh(vectors @ vectors.T)  # ascending
        squares, mixtures = squares.flip(0), mixtures.flip(1)
        spanned = int((squares[: self.weight.shape[1]] > squares[0] * 1e-5).sum())
        directions = vectors.T @ mixtures[:, :spanned] / squares[:spanned].sqrt()
        self.weight[:, :spanned] = directions


def _first_blocks(labels: Iterable[torch.Tensor], scale: int, max_blocks: int) -> torch.Tensor:
    """Blocks of pixels from top left, padded with ignored ones. Labels of (H, W) -> (M, scale, scale)."""
    blocks, count = [], 0
    for label in labels:
        height, width = label.shape
        padded = F.pad(label, (0, -width % scale, 0, -height % scale), value=IGNORE)
        blocks.append(padded.unfold(0, scale, scale).unfold(1, scale, scale).reshape(-1, scale, scale))
        count += len(blocks[-1])
        if count >= max_blocks:
            break
    return torch.cat(blocks)[:max_blocks]
