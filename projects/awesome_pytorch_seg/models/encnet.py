"""EncNet: a learnt dictionary describes the whole image, and that description weighs the channels.

Reference: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018 (arXiv 1803.08904), section 2 and
figure 2; Zhang et al., "Deep TEN: Texture Encoding Network", CVPR 2017, equation 4 (the encoding layer);
zhanghang1989/PyTorch-Encoding, encoding/models/sseg/encnet.py, for the numbers of channels.
"""

from __future__ import annotations

from typing import Any

from awesome_pytorch_seg.models.backbones import Backbone
from awesome_pytorch_seg.models.layers import conv_bn_relu, fcn_head, resize

import torch
import torch.nn.functional as F
from torch import nn

CODES = 32


class EncNet(nn.Module):
    """EncNet.

    Args:
        num_classes: Number of classes.
        backbone: A ResNet.
        output_stride: Of the features that are encoded; 8 in the paper.
        backbone_weights: A local file of ImageNet weights, or None.

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits"; "aux", a tuple of
        one of that shape; and "presence" (B, num_classes), logits of a class being in the image.

    Reference: figure 2. With a `resnet..s` backbone the parameters are those of PyTorch-Encoding's EncNet without
        lateral connections, which it uses on ADE20K.
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
        *_, channels3, channels4 = self.backbone.channels
        self.reduce = conv_bn_relu(channels4, 512)
        self.context = ContextEncodingModule(512, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(512, num_classes, kernel_size=1))
        self.aux_head = fcn_head(channels3, channels3 // 4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, Any]:
        """Returns logits; in training a dict, see the class."""
        size = images.shape[2:]
        *_, feat3, feat4 = self.backbone(images)
        feat, presence = self.context(self.reduce(feat4))
        logits = resize(self.classifier(feat), size)
        if not self.training:
            return logits
        return {"logits": logits, "aux": (resize(self.aux_head(feat3), size),), "presence": presence}


class ContextEncodingModule(nn.Module):
    """Weighs channels by what the encoding of the whole image says, and guesses from it which classes occur.

    Shapes: (B, C, h, w) -> (B, C, h, w) and logits of the classes' presence (B, num_classes).

    Reference: section 2, figure 2.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.project = conv_bn_relu(channels, channels, kernel_size=1)
        self.encoding = Encoding(channels, CODES)
        self.norm = nn.BatchNorm1d(CODES)
        self.gate = nn.Linear(channels, channels)
        self.presence = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (features, presence logits)."""
        codes = F.relu(self.norm(self.encoding(self.project(x))))  # (B, K, C)
        description = codes.mean(1)  # (B, C)
        gate = torch.sigmoid(self.gate(description))[..., None, None]  # (B, C, 1, 1)
        return F.relu(x * (1 + gate)), self.presence(description)


class Encoding(nn.Module):
    """The encoding layer: residuals from K codewords, softly assigned and summed over the image.

    With codewords d_k and smoothing factors s_k, e_k = sum_i a_ik (x_i - d_k), where a_i is the softmax over k of
    s_k |x_i - d_k|^2. Computed in float32, also under autocast: the squares are differences of large numbers.

    Shapes: (B, C, h, w) -> (B, K, C).

    Reference: Deep TEN, equation 4.
    Deviation: the factor is stored with its sign, starting in (-1, 0), as in PyTorch-Encoding; the equation has
        exp(-s_k |...|^2). The original of this project squares the factor.
    """

    def __init__(self, channels: int, num_codes: int):
        super().__init__()
        bound = (num_codes * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the codes."""
        with torch.autocast(x.device.type, enabled=False):
            pixels = x.flatten(2).transpose(1, 2).to(self.codewords.dtype)  # (B, N, C)
            squares = pixels.square().sum(2, keepdim=True) + self.codewords.square().sum(1)
            distances = squares - 2 * pixels @ self.codewords.T  # (B, N, K)
            assignment = torch.softmax(self.scale * distances, dim=2).transpose(1, 2)  # (B, K, N)
            return assignment @ pixels - assignment.sum(2, keepdim=True) * self.codewords  # (B, K, C)
