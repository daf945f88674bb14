"""EncNet: channels are re-weighted by what the whole image shows, and EncNet + JPU.

Reference: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, section 3 and figure 2; the encoding
layer is from Zhang et al., "Deep TEN: Texture Encoding Network", CVPR 2017, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.jpu import JPU
from encnet_single_gpu.models.layers import ConvBNReLU

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = 512
CODEWORDS = 32


class Encoding(nn.Module):
    """Describes a set of vectors by their residuals to learned codewords.

    Each of the N = H * W vectors x_i is assigned softly to the K codewords d_k, and their residuals are summed:

        r_ik = x_i - d_k
        a_ik = softmax over k of s_k * |r_ik|^2
        e_k  = sum over i of a_ik * r_ik

    Shapes: (B, D, H, W) -> (B, K, D). `codewords` are (K, D), `scale` is (K,).

    No residual is formed: |x - d|^2 = |x|^2 - 2 x.d + |d|^2 and sum a (x - d) = sum a x - (sum a) d are matrix
    products, in float32 under autocast, since the differences cancel.

    Args:
        channels: D.
        codewords: K.

    Reference: section 3.1, equations 1 and 2; initial ranges as in PyTorch-Encoding.
    Deviation: s_k stands for the paper's -s_k, and starts in (-1, 0), as in PyTorch-Encoding, whose weights fit.
    """

    def __init__(self, channels: int, codewords: int):
        super().__init__()
        self.codewords = nn.Parameter(torch.empty(codewords, channels))
        self.scale = nn.Parameter(torch.empty(codewords))
        bound = (codewords * channels) ** -0.5
        nn.init.uniform_(self.codewords, -bound, bound)
        nn.init.uniform_(self.scale, -1, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the encoders e_k."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.flatten(2).to(self.codewords.dtype)  # (B, D, N)
            products = self.codewords @ x  # (B, K, N)
            squares = x.square().sum(1, keepdim=True)  # (B, 1, N)
            distances = squares - 2 * products + self.codewords.square().sum(1, keepdim=True)  # (B, K, N)
            weights = F.softmax(self.scale.unsqueeze(1) * distances, dim=1)
            sums = weights @ x.transpose(1, 2)  # (B, K, D)
            return sums - weights.sum(2, keepdim=True) * self.codewords


class ContextEncoding(nn.Module):
    """Scales each channel by a factor predicted from the image's encoding, and says which classes are present.

    Shapes: (B, C, H, W) -> (B, C, H, W) and presence logits (B, num_classes).

    Reference: section 3.1, "featuremap attention" and "semantic encoding loss".
    Deviation: as in PyTorch-Encoding, the encoders' mean is taken, not their sum, and the scaled feature is added to
        the feature.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.conv = ConvBNReLU(channels, channels, 1)
        self.encoding = Encoding(channels, CODEWORDS)
        self.bn = nn.BatchNorm1d(CODEWORDS)
        self.attention = nn.Linear(channels, channels)
        self.presence = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (feature, presence logits)."""
        encoded = F.relu(self.bn(self.encoding(self.conv(x)))).mean(1)  # (B, K, D) -> (B, D)
        factors = torch.sigmoid(self.attention(encoded))[:, :, None, None]  # (B, C, 1, 1)
        return F.relu(x + x * factors), self.presence(encoded)


class EncHead(nn.Module):
    """Context encoding on the last feature reduced to 512 channels, or on JPU's.

    Shapes: features, the last (B, in, h, w) -> {"logits": (B, num_classes, h, w), "presence": (B, num_classes)}; with
    `jpu`, (h, w) is that of the third last feature.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, jpu: bool = False):
        super().__init__()
        self.jpu = JPU(in_channels[-3:], CHANNELS) if jpu else None
        self.conv = ConvBNReLU(4 * CHANNELS, CHANNELS, 1) if jpu else ConvBNReLU(in_channels[-1], CHANNELS)
        self.context = ContextEncoding(CHANNELS, num_classes)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(CHANNELS, num_classes, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns logits at the feature's size and presence logits."""
        feature = features[-1] if self.jpu is None else self.jpu(features[-3:])
        feature, presence = self.context(self.conv(feature))
        return {"logits": self.classifier(self.dropout(feature)), "presence": presence}
