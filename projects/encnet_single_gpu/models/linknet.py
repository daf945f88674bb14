"""LinkNet: a ResNet whose decoder blocks add what their encoder blocks were given.

Reference: Chaurasia and Culurciello, "LinkNet: Exploiting Encoder Representations for Efficient Semantic Segmentation",
VCIP 2017 (arXiv:1707.03718), figures 1 and 2, table 1.
"""

from __future__ import annotations

from encnet_single_gpu.models.backbones import ResNet
from encnet_single_gpu.models.layers import ConvBNReLU

import torch
from torch import nn

FINAL_CHANNELS = 32


class LinkNet(nn.Module):
    """LinkNet; the paper's backbone is ResNet-18.

    Shapes: see `models.build_model`.

    Deviation: as in e-lab/pytorch-linknet, decoder block 1 does not enlarge, since encoder block 1 does not shrink.
    """

    def __init__(self, backbone: str, num_classes: int):
        super().__init__()
        self.backbone = ResNet(backbone)
        stem, *stages = self.backbone.out_channels
        outputs = (stem, *stages[:-1])
        self.decoders = nn.ModuleList(
            DecoderBlock(stages[i], outputs[i], stride=1 if i == 0 else 2) for i in range(len(stages))
        )
        self.up2 = TransposedBNReLU(stem, FINAL_CHANNELS, stride=2)
        self.conv = ConvBNReLU(FINAL_CHANNELS, FINAL_CHANNELS)
        self.classifier = nn.ConvTranspose2d(FINAL_CHANNELS, num_classes, 2, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits, in training the dict of outputs."""
        *skips, x = self.backbone(images)  # skips at strides 4, 4, 8, 16; x (B, C, H/32, W/32)
        for decoder, skip in zip(reversed(self.decoders), reversed(skips), strict=True):
            x = skip + decoder(x, skip.shape[2:])
        height, width = images.shape[2:]
        x = self.up2(x, ((height + 1) // 2, (width + 1) // 2))  # (B, 32, H/2, W/2)
        logits = self.classifier(self.conv(x))[:, :, :height, :width]  # (B, num_classes, H, W)
        return {"logits": logits} if self.training else logits


class DecoderBlock(nn.Module):
    """1x1 convolution to a quarter of the channels, 3x3 transposed convolution, 1x1 convolution.

    Shapes: (B, in, h, w), size (H, W) -> (B, out, H, W), as in `TransposedBNReLU`.

    Reference: figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        inner = in_channels // 4
        self.reduce = ConvBNReLU(in_channels, inner, 1)
        self.enlarge = TransposedBNReLU(inner, inner, stride)
        self.expand = ConvBNReLU(inner, out_channels, 1)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Returns the enlarged feature."""
        return self.expand(self.enlarge(self.reduce(x), size))


class TransposedBNReLU(nn.Module):
    """3x3 transposed convolution, cropped to a size, batch normalisation, ReLU.

    Shapes: (B, in, h, w), size (H, W) at most (stride * h, stride * w) -> (B, out, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Returns the feature at `size`."""
        # Cropped rather than asked for by output_size: ONNX has no output padding that depends on the image.
        return self.relu(self.bn(self.conv(x)[:, :, : size[0], : size[1]]))
