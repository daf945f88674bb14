"""ENet as its authors have it: an encoder that shrinks early, and a small decoder that unpools by remembered places.

Reference: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation",
arXiv:1606.02147: figure 2 (blocks), table 1 (the network), section 4 (dropout, PReLU, unpooling); and the authors'
code, github e-lab/ENet-training at f762144, train/models/encoder.lua and decoder.lua, which decides what the paper
leaves open.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

# Stages 2 and 3 of table 1, after the downsampling block: how each block convolves between its 1x1 convolutions.
CONTEXT_BLOCKS = ("regular", "dilated 2", "asymmetric", "dilated 4", "regular", "dilated 8", "asymmetric", "dilated 16")
BATCH_NORM_EPSILON = 1e-3
STRIDE = 8  # of the encoder's features


class ENet(nn.Module):
    """ENet, which is trained in two stages: first the encoder with a classifier of its own, then all of it.

    Args:
        num_classes: Number of classes.

    Shapes: images (B, 3, H, W) of any size from 16 -> logits (B, num_classes, H, W); in training a dict of "logits", of
        shape (B, num_classes, H/8, W/8) (sides rounded up) while the encoder is trained alone.

    Reference: table 1; encoder.lua and decoder.lua. PReLU with a slope per channel in the encoder, ReLU in the decoder;
        dropout 0.01 in the first five bottlenecks, 0.1 in the encoder's others, none in the decoder.
    Deviation: images whose sides are no multiples of 8 are padded with zeros (the authors' code takes only multiples);
        dropout is scaled in training, not in evaluation; no output for the unlabelled class, which the loss ignores.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.encoder_alone = False
        self.initial = InitialBlock(16)
        self.down1 = DownsamplingBottleneck(16, 64, dropout=0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(64, "regular", 0.01) for _ in range(4)))
        self.down2 = DownsamplingBottleneck(64, 128, dropout=0.1)
        self.stage2 = nn.Sequential(*(Bottleneck(128, kind, 0.1) for kind in CONTEXT_BLOCKS))
        self.stage3 = nn.Sequential(*(Bottleneck(128, kind, 0.1) for kind in CONTEXT_BLOCKS))
        self.encoder_classifier = nn.Conv2d(128, num_classes, kernel_size=1)
        self.up4 = UpsamplingBottleneck(128, 64)
        self.stage4 = nn.Sequential(*(DecoderBottleneck(64) for _ in range(2)))
        self.up5 = UpsamplingBottleneck(64, 16)
        self.stage5 = DecoderBottleneck(16)
        self.classifier = nn.ConvTranspose2d(16, num_classes, kernel_size=2, stride=2)
        for layer in self.modules():
            _initialise_as_torch7(layer)
        self.train_encoder_alone(False)

    def train_encoder_alone(self, alone: bool) -> None:
        """Sets what is trained and what `forward` gives: the encoder and its classifier, or encoder and decoder."""
        self.encoder_alone = alone
        decoder = (self.up4, self.stage4, self.up5, self.stage5, self.classifier)
        for part in decoder:
            part.requires_grad_(not alone)
        self.encoder_classifier.requires_grad_(alone)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits, in training a dict of them; the encoder's alone are enlarged in evaluation."""
        height, width = images.shape[2:]
        cells = (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE
        images = F.pad(images, (0, STRIDE * cells[1] - width, 0, STRIDE * cells[0] - height))
        feat2 = self.initial(images)  # (B, 16, H/2, W/2), H and W rounded up to multiples of 8 from here
        feat4, places2 = self.down1(feat2)  # (B, 64, H/4, W/4)
        feat8, places4 = self.down2(self.stage1(feat4))  # (B, 128, H/8, W/8)
        feat8 = self.stage3(self.stage2(feat8))
        if self.encoder_alone:
            logits = self.encoder_classifier(feat8)  # (B, num_classes, H/8, W/8)
            if self.training:
                return {"logits": logits}
            logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
        else:
            up4 = self.stage4(self.up4(feat8, places4))  # (B, 64, H/4, W/4)
            up2 = self.stage5(self.up5(up4, places2))  # (B, 16, H/2, W/2)
            logits = self.classifier(up2)  # (B, num_classes, H, W)
        if torch.compiler.is_compiling() or logits.shape[2:] != (height, width):  # an exported graph takes any size
            logits = logits[..., :height, :width]
        return {"logits": logits} if self.training else logits


class InitialBlock(nn.Module):
    """A 3x3 convolution at stride 2 beside 2x2 max pooling, concatenated. (B, 3, H, W) -> (B, out, H/2, W/2).

    Reference: figure 2a.
    """

    def __init__(self, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(3, out_channels - 3, kernel_size=3, stride=2, padding=1)
        self.norm = _norm(out_channels)
        self.activation = ChannelPReLU(out_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Applies both and normalises them together."""
        convolved = self.conv(images)
        pooled = F.max_pool2d(images.to(convolved.dtype), kernel_size=2)  # one type, also in bf16
        return self.activation(self.norm(torch.cat([convolved, pooled], dim=1)))


class Bottleneck(nn.Module):
    """1x1 convolution to a quarter of the channels, one of three convolutions, 1x1 back; added to the input.

    Shapes: (B, C, H, W) -> the same.

    Args:
        channels: C.
        kind: "regular" (3x3), "dilated N" (3x3 at distance N) or "asymmetric" (1x5, then 5x1, nothing between them).
        dropout: Probability of dropping a channel of the branch.

    Reference: figure 2b.
    """

    def __init__(self, channels: int, kind: str, dropout: float):
        super().__init__()
        inner = channels // 4
        if kind == "asymmetric":
            middle = [
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0)),
            ]
        else:
            dilation = 1 if kind == "regular" else int(kind.removeprefix("dilated "))
            middle = [nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation)]
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, kernel_size=1, bias=False),
            *(_norm(inner), ChannelPReLU(inner)),
            *middle,
            *(_norm(inner), ChannelPReLU(inner)),
            nn.Conv2d(inner, channels, kernel_size=1, bias=False),
            _norm(channels),
            nn.Dropout2d(dropout),
        )
        self.activation = ChannelPReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns activation(x + branch)."""
        return self.activation(x + self.branch(x))


class DownsamplingBottleneck(nn.Module):
    """A bottleneck that halves the sides: 2x2 convolution at stride 2, beside max pooling padded with zero channels.

    Shapes: (B, in, H, W) -> (B, out, H/2, W/2), and where each maximum was, int64 (B, in, H/2, W/2); H and W even.

    Reference: figure 2b with the dashed parts; section 4, "sparse upsampling".
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        inner = out_channels // 4
        self.extra_channels = out_channels - in_channels
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, inner, kernel_size=2, stride=2, bias=False),
            *(_norm(inner), ChannelPReLU(inner)),
            nn.Conv2d(inner, inner, kernel_size=3, padding=1),
            *(_norm(inner), ChannelPReLU(inner)),
            nn.Conv2d(inner, out_channels, kernel_size=1, bias=False),
            _norm(out_channels),
            nn.Dropout2d(dropout),
        )
        self.activation = ChannelPReLU(out_channels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (features, places)."""
        main, places = F.max_pool2d(x, kernel_size=2, return_indices=True)
        main = F.pad(main, (0, 0, 0, 0, 0, self.extra_channels))  # (B, out, H/2, W/2)
        return self.activation(main + self.branch(x)), places


class DecoderBottleneck(nn.Module):
    """The regular bottleneck with ReLU and without dropout. (B, C, H, W) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, kernel_size=1, bias=False),
            *(_norm(inner), nn.ReLU()),
            nn.Conv2d(inner, inner, kernel_size=3, padding=1),
            *(_norm(inner), nn.ReLU()),
            nn.Conv2d(inner, channels, kernel_size=1, bias=False),
            _norm(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns relu(x + branch)."""
        return F.relu(x + self.branch(x))


class UpsamplingBottleneck(nn.Module):
    """A bottleneck that doubles the sides: 3x3 transposed convolution, beside 1x1 convolution and unpooling.

    Shapes: x (B, in, h, w), places (B, out, h, w) of the pooling to undo -> (B, out, 2h, 2w).

    Reference: figure 2b; section 4, "sparse upsampling".
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        inner = out_channels // 4
        self.main = nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), _norm(out_channels))
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, inner, kernel_size=1, bias=False), _norm(inner), nn.ReLU())
        self.enlarge = nn.ConvTranspose2d(inner, inner, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.expand = nn.Sequential(
            *(_norm(inner), nn.ReLU()),
            nn.Conv2d(inner, out_channels, kernel_size=1, bias=False),
            _norm(out_channels),
        )

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Returns relu(unpooled + branch)."""
        main = F.max_unpool2d(self.main(x), places, kernel_size=2)  # (B, out, 2h, 2w)
        branch = self.enlarge(self.reduce(x))  # (B, inner, 2h, 2w)
        return F.relu(main + self.expand(branch))


class ChannelPReLU(nn.PReLU):
    """PReLU with a slope per channel, 0.25 at first; its gradient on a CPU is computed by faster operations.

    As `enet_davidtvs.SharedPReLU`, which has one slope.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x where it is positive and its channel's slope * x elsewhere."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _ChannelPReLUOnCPU.apply(x, self.weight)
        return super().forward(x)


class _ChannelPReLUOnCPU(torch.autograd.Function):
    """PReLU with a slope of shape (C,), of which result and gradient of `x` have the type of `x`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, slope)
        rows, slopes = _as_rows(x, slope)
        return _from_rows(torch.addcmul(rows.clamp(min=0), rows.clamp(max=0), slopes), x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, slope = ctx.saved_tensors
        rows, slopes = _as_rows(x, slope)
        grad_rows, _ = _as_rows(grad, slope)
        positive = torch.ops.aten.threshold_backward(grad_rows, rows, 0)  # grad where x > 0, else 0
        negative = grad_rows - positive
        sums = (negative * rows).sum(0, dtype=slope.dtype)
        return _from_rows(torch.addcmul(positive, negative, slopes), x), sums.reshape(-1, len(slope)).sum(0)


def _as_rows(x: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C, H, W), (C,) -> (rows, n * C), (n * C,): n places in a row, as long rows are computed faster."""
    places, channels, count = x.numel() // x.shape[1], x.shape[1], 1
    while places % (2 * count) == 0 and 2 * count * channels <= 4096:
        count *= 2
    return x.permute(0, 2, 3, 1).reshape(-1, count * channels), slope.to(x.dtype).repeat(count)


def _from_rows(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = like.shape
    return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON)


def _initialise_as_torch7(layer: nn.Module) -> None:
    """Gives what Torch 7 initialises otherwise than PyTorch its start: normalisation and transposed convolutions.

    Reference: torch/nn BatchNormalization.lua (factors uniform in [0, 1]) and SpatialFullConvolution.lua.
    """
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.uniform_(layer.weight)
    elif isinstance(layer, nn.ConvTranspose2d):
        bound = 1 / math.sqrt(layer.in_channels * math.prod(layer.kernel_size))
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(layer.bias, -bound, bound)
