"""What several networks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.cli import UserError

import torch
import torch.nn.functional as F
from torch import nn

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU. (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, dilation: int = 1):
        padding = kernel_size // 2 * dilation
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def resize(x: torch.Tensor, size: tuple[int, int], align_corners: bool = True) -> torch.Tensor:
    """Bilinear, with aligned corners unless told otherwise. (B, C, h, w) -> (B, C, H, W).

    Corners are aligned as in the code that most papers here published: hszhao/semseg, PyTorch-Encoding, FastFCN,
    DeepLab.
    """
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def global_mean(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def init_he(network: nn.Module) -> None:
    """Draws every convolution's weights from a normal distribution of variance 2 / fan-in; biases are 0.

    Reference: He et al., "Delving Deep into Rectifiers", ICCV 2015; U-Net (section 3) and SegNet (section 4) start so.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# twin: awesome_pytorch_seg/models/layers.py
@contextmanager
def refuse_single_value_batch_norm(model: nn.Module, advice: str) -> Iterator[None]:
    """Stops the first training forward in which a batch normalisation would see one value per channel.

    PyTorch raises there too, and does not say which layer it is.

    Raises:
        UserError: Naming the layer; ends in `advice`.
    """
    hooks = []

    def look(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            shape = inputs[0].shape
            if layer.training and shape[0] * math.prod(shape[2:]) == 1:
                raise UserError(
                    f"batch normalisation '{name}' would see one value per channel (input {list(shape)}): {advice}"
                )

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, NORMALISATIONS):
            hooks.append(layer.register_forward_pre_hook(look(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
