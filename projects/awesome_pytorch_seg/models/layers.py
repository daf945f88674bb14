"""Small parts that several networks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.cli import UserError

import torch
import torch.nn.functional as F
from torch import nn

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution without bias that keeps the size at stride 1, batch normalisation, ReLU.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """
    padding = kernel_size // 2 * dilation
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def fcn_head(in_channels: int, mid_channels: int, num_classes: int, dropout: float = 0.1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU, dropout of pixels' values, 1x1 convolution to the classes.

    The auxiliary head of most papers here. Shapes: (B, in_channels, h, w) -> (B, num_classes, h, w).
    """
    return nn.Sequential(
        *conv_bn_relu(in_channels, mid_channels), nn.Dropout(dropout), nn.Conv2d(mid_channels, num_classes, 1)
    )


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with aligned corners, as in the code of most of these papers. (B, C, h, w) -> (B, C, H, W)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def global_average(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Every position gathers values from all positions, shared out by softmax(scale * query . key).

    Shapes: query and key (B, K, h, w), value (B, V, h, w) -> (B, V, h, w). Without a scale it is 1 / sqrt(K).
    """
    # One head: (B, 1, h * w, channels)
    queries, keys, values = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (query, key, value))
    gathered = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return gathered.squeeze(1).transpose(1, 2).reshape(value.shape)


# twin: encnet_single_gpu/models/layers.py
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
