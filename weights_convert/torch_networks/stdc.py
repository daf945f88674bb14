"""STDC networks in PyTorch, with the tensor names of the official checkpoints.

Written from the paper (Fan et al., CVPR 2021, arXiv 2104.13188) and the key lists of the official code
(MichaelFan01/STDC-Seg). Like the official network it builds parts that no published variant runs, so that a
checkpoint's names are these networks' names: `name_maps/stdc_*.yaml` list them as unused.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}  # paper, table 2
STRIDES = (2, 4, 8, 16, 32)


class InPlaceABN(nn.BatchNorm2d):
    """The official decoder's batch normalisation: its gain is |weight| + eps, and it counts no batches.

    Reference: modules/src/inplace_abn_cpu.cpp of the official code, `forward_cpu`; activation "none".
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        del self.num_batches_tracked
        self.num_batches_tracked = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same shape."""
        gain = self.weight.abs() + self.eps
        return F.batch_norm(
            x, self.running_mean, self.running_var, gain, self.bias, self.training, self.momentum, self.eps
        )


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, norm: type[nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU, under the official names.

    (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm(out_channels), relu=nn.ReLU()))


class CatBottleneck(nn.Module):
    """The STDC module. (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.conv_list = nn.ModuleList(
            [
                conv_bn_relu(in_channels, half, 1),
                conv_bn_relu(half, quarter),
                conv_bn_relu(quarter, eighth),
                conv_bn_relu(eighth, eighth),
            ]
        )
        self.stride = stride
        if stride == 2:
            depthwise = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
            self.avd_layer = nn.Sequential(depthwise, nn.BatchNorm2d(half))
            self.skip = nn.AvgPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the concatenation of the four shares."""
        first = self.conv_list[0](x)
        x = first
        if self.stride == 2:
            x, first = self.avd_layer(first), self.skip(first)
        shares = [first]
        for conv in self.conv_list[1:]:
            x = conv(x)
            shares.append(x)
        return torch.cat(shares, dim=1)


class STDCNet(nn.Module):
    """STDCNet813 ("stdc1") or STDCNet1446 ("stdc2"): backbone and ImageNet classifier in one, as published.

    The blocks carry two names, `features.N` and `x<stride>.0.N`: one storage, twice in a state dict. `bn` is never run.

    Shapes: `classify` (B, 3, H, W) -> (B, num_classes); called: five features at strides 2 to 32.
    """

    def __init__(self, name: str, num_classes: int = 1000):
        super().__init__()
        blocks = [conv_bn_relu(3, 32, 3, 2), conv_bn_relu(32, 64, 3, 2)]
        ends, in_channels = [1, 2], 64
        for out_channels, count in zip((256, 512, 1024), LAYERS[name], strict=True):
            for index in range(count):
                blocks.append(CatBottleneck(in_channels, out_channels, stride=2 if index == 0 else 1))
                in_channels = out_channels
            ends.append(len(blocks))
        self.features = nn.Sequential(*blocks)
        self.conv_last = conv_bn_relu(1024, 1024, 1)
        self.fc = nn.Linear(1024, 1024, bias=False)
        self.bn = nn.BatchNorm1d(1024)
        self.linear = nn.Linear(1024, num_classes, bias=False)
        for stride, start, end in zip(STRIDES, [0, *ends[:-1]], ends, strict=True):
            setattr(self, f"x{stride}", nn.Sequential(self.features[start:end]))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features at strides 2, 4, 8, 16, 32."""
        features = []
        for stride in STRIDES:
            x = getattr(self, f"x{stride}")(x)
            features.append(x)
        return features

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the class logits; the features are squared before they are averaged."""
        x = self.conv_last(self.features(x)) ** 2
        return self.linear(F.relu(self.fc(x.mean((2, 3)))))  # (B, 1024, h, w) -> (B, num_classes)


class AttentionRefinement(nn.Module):
    """BiSeNet's ARM. (B, in, h, w) -> (B, 128, h, w)."""

    def __init__(self, in_channels: int, norm: type[nn.Module]):
        super().__init__()
        self.conv = conv_bn_relu(in_channels, 128, norm=norm)
        self.conv_atten = nn.Conv2d(128, 128, 1, bias=False)
        self.bn_atten = norm(128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the gated features."""
        x = self.conv(x)
        gate = self.bn_atten(self.conv_atten(F.adaptive_avg_pool2d(x, 1)))  # (B, 128, 1, 1)
        return x * torch.sigmoid(gate)


class ContextPath(nn.Module):
    """Backbone, two ARMs and the global average.

    Shapes: (B, 3, H, W) -> feat8 (B, 256, H/8, W/8), context8 (B, 128, H/8, W/8), context16 (B, 128, H/16, W/16), sides
    rounded up.
    """

    def __init__(self, name: str, norm: type[nn.Module]):
        super().__init__()
        self.backbone = STDCNet(name)
        self.arm16, self.arm32 = AttentionRefinement(512, norm), AttentionRefinement(1024, norm)
        self.conv_head32, self.conv_head16 = conv_bn_relu(128, 128, norm=norm), conv_bn_relu(128, 128, norm=norm)
        self.conv_avg = conv_bn_relu(1024, 128, 1, norm=norm)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (feat8, context8, context16)."""
        _, _, feat8, feat16, feat32 = self.backbone(x)
        average = self.conv_avg(F.adaptive_avg_pool2d(feat32, 1))  # (B, 128, 1, 1)
        sum32 = self.arm32(feat32) + F.interpolate(average, feat32.shape[2:], mode="nearest")
        context16 = self.conv_head32(F.interpolate(sum32, feat16.shape[2:], mode="nearest"))
        sum16 = self.arm16(feat16) + context16
        context8 = self.conv_head16(F.interpolate(sum16, feat8.shape[2:], mode="nearest"))
        return feat8, context8, context16


class FeatureFusion(nn.Module):
    """BiSeNet's FFM. (B, 256, h, w) and (B, 128, h, w) -> (B, 256, h, w)."""

    def __init__(self, norm: type[nn.Module]):
        super().__init__()
        self.convblk = conv_bn_relu(384, 256, 1, norm=norm)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Returns the fused features."""
        x = self.convblk(torch.cat([detail, context], dim=1))
        gate = torch.sigmoid(self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(x, 1)))))  # (B, 256, 1, 1)
        return x + x * gate


def output_head(in_channels: int, mid_channels: int, num_classes: int, norm: type[nn.Module]) -> nn.Sequential:
    """3x3 conv_bn_relu, then a 1x1 convolution. (B, in, h, w) -> (B, num_classes, h, w)."""
    conv = conv_bn_relu(in_channels, mid_channels, norm=norm)
    return nn.Sequential(OrderedDict(conv=conv, conv_out=nn.Conv2d(mid_channels, num_classes, 1, bias=False)))


class STDCSeg(nn.Module):
    """The whole official network (`BiSeNet` there).

    Shapes: (B, 3, H, W) -> three logits (B, num_classes, H, W) and the detail logits (B, 1, ceil(H/8), ceil(W/8)).

    Args:
        name: "stdc1" or "stdc2".
        num_classes: Number of classes.
        norm: Batch normalisation of the decoder: `InPlaceABN` as published, or nn.BatchNorm2d, which many copies of the
            official code have because InPlaceABN does not compile with newer versions of PyTorch.
    """

    def __init__(self, name: str, num_classes: int = 19, norm: type[nn.Module] = InPlaceABN):
        super().__init__()
        self.cp = ContextPath(name, norm)
        self.ffm = FeatureFusion(norm)
        self.conv_out = output_head(256, 256, num_classes, norm)
        self.conv_out16 = output_head(128, 64, num_classes, norm)
        self.conv_out32 = output_head(128, 64, num_classes, norm)
        self.conv_out_sp16 = output_head(512, 64, 1, norm)
        self.conv_out_sp8 = output_head(256, 64, 1, norm)
        self.conv_out_sp4 = output_head(64, 64, 1, norm)
        self.conv_out_sp2 = output_head(32, 64, 1, norm)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns [logits, stride-8 logits, stride-16 logits, detail logits]."""
        feat8, context8, context16 = self.cp(x)
        logits = [self.conv_out(self.ffm(feat8, context8)), self.conv_out16(context8), self.conv_out32(context16)]
        enlarged = [F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True) for y in logits]
        return [*enlarged, self.conv_out_sp8(feat8)]
