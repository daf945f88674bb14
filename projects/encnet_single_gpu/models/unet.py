"""U-Net.

Reference: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, section 2
and figure 1.
"""

from __future__ import annotations

from encnet_single_gpu.models.layers import ConvBNReLU, init_he

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = (64, 128, 256, 512, 1024)


class UNet(nn.Module):
    """U-Net: four poolings, four transposed convolutions, two 3x3 convolutions at each level, skips concatenated.

    Shapes: see `models.build_model`.

    Deviation: convolutions are padded, so that logits have the image's size (the paper's shrink and skips are
        cropped), followed by batch normalisation, and there is no dropout at the bottom.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.encoders = nn.ModuleList(
            double_conv(count, width) for count, width in zip((3, *CHANNELS), CHANNELS, strict=False)
        )
        self.ups = nn.ModuleList(Up(wide, width) for width, wide in zip(CHANNELS, CHANNELS[1:], strict=False))
        self.decoders = nn.ModuleList(double_conv(2 * width, width) for width in CHANNELS[:-1])
        self.classifier = nn.Conv2d(CHANNELS[0], num_classes, 1)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits, in training the dict of outputs."""
        x, skips = self.encoders[0](images), []
        for encoder in self.encoders[1:]:
            skips.append(x)
            x = encoder(halve(x))
        for up, decoder, skip in zip(reversed(self.ups), reversed(self.decoders), reversed(skips), strict=True):
            x = decoder(torch.cat([skip, up(x, skip.shape[2:])], dim=1))
        logits = self.classifier(x)  # (B, num_classes, H, W)
        return {"logits": logits} if self.training else logits


class Up(nn.ConvTranspose2d):
    """2x2 transposed convolution at stride 2, cropped to a size. (B, in, h, w), size (H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Returns the doubled feature without the row or column that an odd size lacks."""
        return super().forward(x)[:, :, : size[0], : size[1]]


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions. (B, in, H, W) -> (B, out, H, W)."""
    return nn.Sequential(*ConvBNReLU(in_channels, out_channels), *ConvBNReLU(out_channels, out_channels))


def halve(x: torch.Tensor) -> torch.Tensor:
    """2x2 max pooling; odd sides are rounded up. (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.max_pool2d(x, kernel_size=2, ceil_mode=True)
