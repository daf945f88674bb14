"""ResNets whose last stages can keep their resolution, and the reading of ImageNet weights from a file.

Layers are named as in torchvision, so its weight files fit; those of the s-variants fit PyTorch-Encoding's.

References: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Yu and Koltun, "Multi-Scale Context
Aggregation by Dilated Convolutions", ICLR 2016.
"""

from __future__ import annotations

import os

from common.cli import UserError, did_you_mean
from common.weights.package import with_timm_names
from common.weights.wrappers import plain_names, unwrap

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (64, 128, 256, 512)
CLASSIFIERS = ("fc.", "classifier.", "conv_head.", "bn2.")  # the last two in front of EfficientNet's


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity. (B, in, H, W) -> (B, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, next_dilation: int):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, next_dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns relu(shortcut + branch)."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside the identity. (B, in, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, next_dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns relu(shortcut + branch)."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = F.relu(self.bn2(self.conv2(branch)), inplace=True)
        branch = self.bn3(self.conv3(branch))
        return F.relu(branch + self.downsample(x), inplace=True)


# Block, blocks of each stage, whether three 3x3 convolutions (64, 64, 128 channels) replace the 7x7 at the start.
RESNETS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), False),
    "resnet34": (BasicBlock, (3, 4, 6, 3), False),
    "resnet50": (Bottleneck, (3, 4, 6, 3), False),
    "resnet101": (Bottleneck, (3, 4, 23, 3), False),
    "resnet152": (Bottleneck, (3, 8, 36, 3), False),
    "resnet50s": (Bottleneck, (3, 4, 6, 3), True),
    "resnet101s": (Bottleneck, (3, 4, 23, 3), True),
}


class ResNet(nn.Module):
    """A ResNet without its classifier, with random weights.

    Where a stage's stride would exceed `output_stride`, the stage keeps its resolution and its 3x3 convolutions, from
    its second block on, look twice as far; its first block still looks as far as the stage before, unless
    `first_block_dilated`.

    Shapes: images (B, 3, H, W) -> five features: after the first pooling at stride 4, and after each stage at strides
    4, 8, 16 and 32 (none above `output_stride`); sides are rounded up. `out_channels` are their channels.

    Args:
        name: A key of `RESNETS`.
        output_stride: 8, 16 or 32.
        first_block_dilated: Whether the first block of a dilated stage looks as far as the others.

    Raises:
        UserError: Unknown name.

    Reference: dilations as in torchvision and PyTorch-Encoding; hszhao/semseg dilates the first blocks too.
    """

    def __init__(self, name: str, output_stride: int = 32, first_block_dilated: bool = False):
        super().__init__()
        if name not in RESNETS:
            raise UserError(f"unknown backbone '{name}': {did_you_mean(name, list(RESNETS))}")
        block, depths, deep_stem = RESNETS[name]
        channels = 128 if deep_stem else 64
        self.conv1 = _deep_stem() if deep_stem else nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.out_channels = (channels, *(width * block.expansion for width in WIDTHS))
        stride, dilation = 4, 1
        for index, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            step, first_dilation = 1 if index == 0 else 2, dilation
            if stride * step > output_stride:
                step, dilation = 1, dilation * 2
                first_dilation = dilation if first_block_dilated else first_dilation
            stride *= step
            blocks = [block(self.out_channels[index], width, step, first_dilation, dilation)]
            blocks += [block(width * block.expansion, width, 1, dilation, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the five features, finest first."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)  # (B, C, H/2, W/2)
        features = [F.max_pool2d(x, kernel_size=3, stride=2, padding=1)]  # (B, C, H/4, W/4)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(stage(features[-1]))
        return features


def load_backbone(path: str | os.PathLike, backbone: nn.Module) -> None:
    """Fills a backbone from a local weight file, of PyTorch or safetensors; the file's classifier is left aside.

    Raises:
        UserError: No such file, a file that is not one of tensors, or one of another backbone.
    """
    tensors = _read_tensors(path)
    wanted = backbone.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # old files have none
    tensors = {name: value for name, value in tensors.items() if not name.startswith(CLASSIFIERS)}
    missing, unknown = sorted(set(wanted) - set(tensors) - counters), sorted(set(tensors) - set(wanted))
    shapes = [name for name in sorted(set(tensors) & set(wanted)) if tensors[name].shape != wanted[name].shape]
    if missing or unknown or shapes:
        raise UserError(
            f"{path}: weights of another backbone: {len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(shapes)} of another shape ({', '.join((missing + unknown + shapes)[:3])}, ...): check model.backbone"
        )
    broken = sorted(name for name, value in tensors.items() if not torch.isfinite(value.float()).all())
    if broken:
        raise UserError(f"{path}: '{broken[0]}' holds values that are not finite: the weights are broken, take others")
    backbone.load_state_dict(wanted | tensors)


def _read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a weight file.

    Those of a checkpoint of training are taken out of it and the prefixes of wrapped models off their names, see
    `common.weights.wrappers`. Beside averaged weights the others are taken, and it is said.
    """
    try:
        if str(path).endswith(".safetensors"):
            tensors = safetensors.torch.load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no weight file {path}: check the path") from None
    except Exception as error:  # damaged files fail in many ways
        raise UserError(
            f"{path}: not a file of weights ({' '.join(str(error).split())[:80]}): give a whole state dict"
        ) from None
    tensors, note = unwrap(tensors, path)
    if note is not None:
        print(f"{path}: {note}")
    is_plain = all(isinstance(name, str) for name in tensors)
    if not is_plain or not all(_is_plain_tensor(value) for value in tensors.values()):
        raise UserError(f"{path}: holds more than named tensors: give a file of weights alone")
    names = plain_names(tensors, path)
    return with_timm_names({names[name]: value for name, value in tensors.items()})


def _is_plain_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _deep_stem() -> nn.Sequential:
    """The three convolutions that PyTorch-Encoding's resnet50s has in place of the 7x7."""
    return nn.Sequential(
        _conv3x3(3, 64, 2, 1), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        _conv3x3(64, 64, 1, 1), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        _conv3x3(64, 128, 1, 1),
    )  # fmt: skip
