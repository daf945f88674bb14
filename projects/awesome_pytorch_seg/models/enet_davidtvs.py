"""ENet: an encoder of bottleneck blocks that shrinks early, and a small decoder that unpools by remembered places.

Reference: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation",
arXiv:1606.02147: figure 2 (blocks), table 1 (the network), section 4 (dropout, PReLU, unpooling).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# Stages 2 and 3 of table 1, after the downsampling block: how each block convolves between its 1x1 convolutions.
CONTEXT_BLOCKS = ("regular", "dilated 2", "asymmetric", "dilated 4", "regular", "dilated 8", "asymmetric", "dilated 16")


class ENetOfDavidtvs(nn.Module):
    """ENet as davidtvs/PyTorch-ENet has it.

    Args:
        num_classes: Number of classes.

    Shapes: images (B, 3, H, W) of any size from 16 -> logits (B, num_classes, H, W); in training a dict of "logits".

    Reference: table 1; dropout 0.01 up to stage 1 and 0.1 after (section 4, regularisation).
    Deviation: one PReLU slope per layer in the encoder and ReLU in the decoder, as in davidtvs/PyTorch-ENet, whose
        parameter counts this network has (the paper learns a slope per channel); no encoder classifier, the network is
        trained as a whole (the paper trains the encoder first, then the decoder with it).
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.initial = InitialBlock(16)
        self.down1 = DownsamplingBottleneck(16, 64, dropout=0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(64, "regular", 0.01, SharedPReLU) for _ in range(4)))
        self.down2 = DownsamplingBottleneck(64, 128, dropout=0.1)
        self.stage2 = nn.Sequential(*(Bottleneck(128, kind, 0.1, SharedPReLU) for kind in CONTEXT_BLOCKS))
        self.stage3 = nn.Sequential(*(Bottleneck(128, kind, 0.1, SharedPReLU) for kind in CONTEXT_BLOCKS))
        self.up4 = UpsamplingBottleneck(128, 64, dropout=0.1)
        self.stage4 = nn.Sequential(*(Bottleneck(64, "regular", 0.1, nn.ReLU) for _ in range(2)))
        self.up5 = UpsamplingBottleneck(64, 16, dropout=0.1)
        self.stage5 = Bottleneck(16, "regular", 0.1, nn.ReLU)
        self.classifier = nn.ConvTranspose2d(16, num_classes, kernel_size=3, stride=2, padding=1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits; in training a dict, see the class."""
        feat2 = self.initial(images)  # (B, 16, H/2, W/2), sides rounded up
        feat4, places2 = self.down1(feat2)  # (B, 64, H/4, W/4)
        feat8, places4 = self.down2(self.stage1(feat4))  # (B, 128, H/8, W/8)
        feat8 = self.stage3(self.stage2(feat8))
        up4 = self.stage4(self.up4(feat8, places4, feat4.shape[2:]))  # (B, 64, H/4, W/4)
        up2 = self.stage5(self.up5(up4, places2, feat2.shape[2:]))  # (B, 16, H/2, W/2)
        logits = self.classifier(up2, output_size=images.shape[2:])  # (B, num_classes, H, W)
        return {"logits": logits} if self.training else logits


class InitialBlock(nn.Module):
    """A strided convolution beside max pooling, concatenated. (B, 3, H, W) -> (B, out, H/2, W/2).

    Reference: figure 2a.
    """

    def __init__(self, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(3, out_channels - 3, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = SharedPReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Applies both and normalises them together."""
        pooled = F.max_pool2d(images, kernel_size=3, stride=2, padding=1)
        return self.activation(self.norm(torch.cat([self.conv(images), pooled], dim=1)))


class Bottleneck(nn.Module):
    """1x1 convolution to a quarter of the channels, one of three convolutions, 1x1 back; added to the input.

    Shapes: (B, C, H, W) -> the same.

    Args:
        channels: C.
        kind: "regular" (3x3), "dilated N" (3x3 at distance N) or "asymmetric" (5x1, then 1x5).
        dropout: Probability of dropping a channel of the branch.
        activation: Class of the activations.

    Reference: figure 2b.
    """

    def __init__(self, channels: int, kind: str, dropout: float, activation: type[nn.Module]):
        super().__init__()
        inner = channels // 4
        if kind == "asymmetric":
            middle = [*_conv(inner, inner, (5, 1), activation), *_conv(inner, inner, (1, 5), activation)]
        else:
            dilation = 1 if kind == "regular" else int(kind.removeprefix("dilated "))
            middle = _conv(inner, inner, 3, activation, dilation)
        self.branch = nn.Sequential(
            *_conv(channels, inner, 1, activation),
            *middle,
            *_conv(inner, channels, 1, activation),
            nn.Dropout2d(dropout),
        )
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns activation(x + branch)."""
        return self.activation(x + self.branch(x))


class DownsamplingBottleneck(nn.Module):
    """A bottleneck that halves the sides: 2x2 convolution at stride 2, beside max pooling padded with zero channels.

    Shapes: (B, in, H, W) -> (B, out, H/2, W/2) and where each maximum was, int64 (B, in, H/2, W/2); odd sides lose a
    row or column.

    Reference: figure 2b with the dashed parts; section 4, "sparse upsampling".
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        inner = in_channels // 4
        self.extra_channels = out_channels - in_channels
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, inner, kernel_size=2, stride=2, bias=False),
            nn.BatchNorm2d(inner),
            SharedPReLU(),
            *_conv(inner, inner, 3, SharedPReLU),
            *_conv(inner, out_channels, 1, SharedPReLU),
            nn.Dropout2d(dropout),
        )
        self.activation = SharedPReLU()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (features, places)."""
        main, places = F.max_pool2d(x, kernel_size=2, return_indices=True)
        main = F.pad(main, (0, 0, 0, 0, 0, self.extra_channels))  # (B, out, H/2, W/2)
        return self.activation(main + self.branch(x)), places


class UpsamplingBottleneck(nn.Module):
    """A bottleneck that doubles the sides: 2x2 transposed convolution, beside 1x1 convolution and unpooling.

    Shapes: x (B, in, h, w), places (B, out, h, w) of the pooling to undo, size (H, W) -> (B, out, H, W).

    Reference: figure 2b; section 4, "sparse upsampling".
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        inner = in_channels // 4
        conv, norm, _ = _conv(in_channels, out_channels, 1, nn.ReLU)
        self.main = nn.Sequential(conv, norm)
        self.reduce = nn.Sequential(*_conv(in_channels, inner, 1, nn.ReLU))
        self.enlarge = nn.ConvTranspose2d(inner, inner, kernel_size=2, stride=2, bias=False)
        self.expand = nn.Sequential(
            nn.BatchNorm2d(inner), nn.ReLU(), *_conv(inner, out_channels, 1, nn.ReLU)[:2], nn.Dropout2d(dropout)
        )

    def forward(self, x: torch.Tensor, places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Returns relu(unpooled + branch)."""
        main = F.max_unpool2d(self.main(x), places, kernel_size=2, output_size=size)  # (B, out, H, W)
        branch = self.enlarge(self.reduce(x), output_size=size)  # (B, inner, H, W)
        return F.relu(main + self.expand(branch))


class SharedPReLU(nn.PReLU):
    """PReLU with one slope for all channels; its gradient on a CPU is computed by faster operations than PyTorch's.

    PyTorch 2.15 spends 40 % of an ENet training step on a CPU in the gradient of PReLU.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x where it is positive and slope * x elsewhere."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _PReLUOnCPU.apply(x, self.weight)
        return super().forward(x)


class _PReLUOnCPU(torch.autograd.Function):
    """PReLU with a slope of shape (1,), of which the gradient of `x` has the type of `x`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, float(slope))

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, slope = ctx.saved_tensors
        grad_slope = (grad * x.clamp(max=0)).sum().float()
        return torch.ops.aten.leaky_relu_backward(grad, x, float(slope), False), grad_slope.reshape(1)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    activation: type[nn.Module],
    dilation: int = 1,
) -> list[nn.Module]:
    """A convolution without bias that keeps the size, batch normalisation, activation."""
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = tuple(side // 2 * dilation for side in sides)
    conv = nn.Conv2d(in_channels, out_channels, sides, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), activation()]
