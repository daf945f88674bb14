"""SegNet and SegNet-Basic: the decoder unpools by the places that the encoder's pooling remembered.

Reference: Badrinarayanan et al., "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017, section 3 and figure 2; layers as in the authors' SegNet-Tutorial prototxt files.

Where two values of a pooling window nearly tie, runtimes that round differently remember different places, and logits
differ there by more than rounding; so an exported graph agrees in nearly all pixels, not in all.
"""

from __future__ import annotations

from collections.abc import Sequence

from encnet_single_gpu.models.layers import init_he

import torch
import torch.nn.functional as F
from torch import nn

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
BASIC_CHANNELS = 64


class SegNet(nn.Module):
    """SegNet: VGG-16's convolutions, and their mirror image.

    Shapes: see `models.build_model`.

    The last convolution classifies; it has neither normalisation nor ReLU.
    """

    def __init__(self, backbone: str, num_classes: int):
        super().__init__()
        self.backbone = VGG16Encoder()
        channels = [64, *(stage[-1] for stage in VGG16_STAGES)]
        stages = []
        for stage, out_channels in zip(VGG16_STAGES, channels, strict=False):
            widths = (*stage[1:], out_channels)
            stages.append(nn.Sequential(*_convs(stage[-1], widths, kernel_size=3)))
        self.decoders = nn.ModuleList(stages)
        self.decoders[0] = nn.Sequential(*self.decoders[0][:3], nn.Conv2d(64, num_classes, 3, padding=1))
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits, in training the dict of outputs."""
        x, pooled = self.backbone(images)
        for decoder, (places, size) in zip(reversed(self.decoders), reversed(pooled), strict=True):
            x = decoder(unpool(x, places, size))
        return {"logits": x} if self.training else x


class VGG16Encoder(nn.Module):
    """The convolutions of VGG-16 with batch normalisation; torchvision's vgg16_bn weights fit.

    Shapes: images (B, 3, H, W) -> (B, 512, H/32, W/32), and for each of the five poolings where the maxima were and the
    size before it.
    """

    def __init__(self):
        super().__init__()
        layers, in_channels = [], 3
        for stage in VGG16_STAGES:
            layers += [*_convs(in_channels, stage, kernel_size=3), Pooling()]
            in_channels = stage[-1]
        self.features = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Size]]]:
        """Returns (feature, [(places, size before), ...])."""
        x, pooled = images, []
        for layer in self.features:
            if isinstance(layer, Pooling):
                size = x.shape[2:]
                x, places = layer(x)
                pooled.append((places, size))
            else:
                x = layer(x)
        return x, pooled


class SegNetBasic(nn.Module):
    """SegNet-Basic: four 7x7 convolutions with pooling, and four with unpooling.

    Shapes: see `models.build_model`.

    Reference: section 3.2; 64 channels everywhere and no ReLU in the decoder.
    Deviation: no local response normalisation of the input, which the authors' network has for images of values 0 to
        255; on normalised images it changes nothing (factors above 0.999).
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(*_convs(count, (BASIC_CHANNELS,), kernel_size=7))
            for count in (3, BASIC_CHANNELS, BASIC_CHANNELS, BASIC_CHANNELS)
        )
        self.pooling = Pooling()
        self.decoders = nn.ModuleList(
            nn.Sequential(*_convs(BASIC_CHANNELS, (BASIC_CHANNELS,), kernel_size=7)[:2]) for _ in range(4)
        )
        self.classifier = nn.Conv2d(BASIC_CHANNELS, num_classes, 1)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits, in training the dict of outputs."""
        x, pooled = images, []
        for encoder in self.encoders:
            x = encoder(x)
            size = x.shape[2:]
            x, places = self.pooling(x)
            pooled.append((places, size))
        for decoder, (places, size) in zip(self.decoders, reversed(pooled), strict=True):
            x = decoder(unpool(x, places, size))
        logits = self.classifier(x)  # (B, num_classes, H, W)
        return {"logits": logits} if self.training else logits


class Pooling(nn.MaxPool2d):
    """2x2 max pooling that remembers places; odd sides are rounded up, as in Caffe.

    Shapes: (B, C, H, W) -> (B, C, H/2, W/2), and of each maximum its index in the flattened image, int64.
    """

    def __init__(self):
        super().__init__(kernel_size=2, ceil_mode=True, return_indices=True)


def unpool(x: torch.Tensor, places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Puts values where the maxima were, and 0 elsewhere. (B, C, h, w), places (B, C, h, w) -> (B, C, H, W)."""
    return F.max_unpool2d(x, places, kernel_size=2, output_size=size)


def _convs(in_channels: int, widths: Sequence[int], kernel_size: int) -> list[nn.Module]:
    """Convolutions with bias, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.Conv2d(in_channels, width, kernel_size, padding=kernel_size // 2),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        in_channels = width
    return layers
