"""The layers that every STDC network is made of, with the settings in which Paddle and PyTorch differ fixed once.

Batch normalisation: Paddle's momentum 0.9 is PyTorch's 0.1. Average pooling: PyTorch counts the padding, Paddle does
not unless told. Bilinear resizing: `align_mode` is left at Paddle's 0, the only mode that equals PyTorch's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

from common.cli import UserError

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn


def conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, init: str = "head"
) -> nn.Conv2D:
    """A convolution without bias, padded to keep the size at stride 1.

    `init` "backbone" draws Kaiming-normal weights from the fan-out with gain sqrt(2), "head" from the fan-in with gain
    1, as the official code does for its classifier and its decoder. A depthwise convolution's fan is counted as PyTorch
    does: the fan-out is `out_channels` x kernel area whatever the groups.
    """
    area = kernel_size**2
    if init == "backbone":
        std = math.sqrt(2.0 / (out_channels * area))
    else:
        std = math.sqrt(1.0 / (in_channels // groups * area))
    weight = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, std))
    padding = kernel_size // 2
    return nn.Conv2D(
        in_channels, out_channels, kernel_size, stride, padding, groups=groups, weight_attr=weight, bias_attr=False
    )


def batch_norm(channels: int) -> nn.BatchNorm2D:
    """Batch normalisation with PyTorch's defaults: eps 1e-5 and (in PyTorch's counting) momentum 0.1."""
    return nn.BatchNorm2D(channels, momentum=0.9, epsilon=1e-5)


def avg_pool_3x3_stride2(x: paddle.Tensor) -> paddle.Tensor:
    """Average over 3x3 at stride 2, zero padding counted in the mean. (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""
    return F.avg_pool2d(x, kernel_size=3, stride=2, padding=1, exclusive=False)


def global_avg_pool(x: paddle.Tensor) -> paddle.Tensor:
    """(B, C, H, W) -> (B, C, 1, 1)."""
    return F.adaptive_avg_pool2d(x, 1)


# twin: semsegpaddle_glore/models/layers.py
def resize_bilinear(x: paddle.Tensor, size: tuple[int, int]) -> paddle.Tensor:
    """Bilinear with aligned corners, as everywhere in the official code. (B, C, h, w) -> (B, C, H, W)."""
    eager = paddle.in_dynamic_mode()  # an exported graph has no sides to compare
    if eager and tuple(x.shape[2:]) == tuple(size):
        return x
    if eager and not x.stop_gradient and x.place.is_cpu_place():
        return _resize_by_products(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _resize_by_products(x: paddle.Tensor, size: tuple[int, int]) -> paddle.Tensor:
    """The same by a matrix product per axis, for training on a CPU: forward and backward take less than half the time.

    Works channels-last, the layout in which the losses read logits next.
    """
    batch, channels, in_height, in_width = x.shape
    height, width = size
    rows = paddle.to_tensor(_bilinear_weights(in_height, height), dtype=x.dtype)  # (H, h)
    columns = paddle.to_tensor(_bilinear_weights(in_width, width), dtype=x.dtype)  # (W, w)
    x = paddle.matmul(columns, x.transpose([0, 2, 3, 1]))  # (B, h, W, C)
    x = paddle.matmul(rows, x.reshape([batch, in_height, width * channels]))  # (B, H, W * C)
    return x.reshape([batch, height, width, channels]).transpose([0, 3, 1, 2])  # (B, C, H, W)


@functools.lru_cache(maxsize=64)
def _bilinear_weights(in_size: int, out_size: int) -> np.ndarray:
    """Float32 (out_size, in_size): what each input contributes to each output along one axis, corners aligned."""
    # Positions in float32, as Paddle and PyTorch compute them.
    step = np.float32((in_size - 1) / (out_size - 1)) if out_size > 1 else np.float32(0)
    position = step * np.arange(out_size, dtype=np.float32)
    low = np.minimum(position.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    fraction = position - low.astype(np.float32)
    weights = np.zeros((out_size, in_size), np.float32)
    outputs = np.arange(out_size)
    weights[outputs, low] = 1 - fraction
    weights[outputs, high] += fraction
    return weights


def resize_nearest(x: paddle.Tensor, size: tuple[int, int]) -> paddle.Tensor:
    """(B, C, h, w) -> (B, C, H, W)."""
    return F.interpolate(x, size=size, mode="nearest")


class ConvBNReLU(nn.Layer):
    """Convolution, batch normalisation, ReLU. (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, init: str = "head"):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel_size, stride, init=init)
        self.bn = batch_norm(out_channels)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Applies the three."""
        return F.relu(self.bn(self.conv(x)))


# twin: semsegpaddle_glore/models/layers.py
@contextmanager
def refuse_single_value_batch_norm(model: nn.Layer) -> Iterator[None]:
    """Stops the first training forward in which a batch normalisation would see one value per channel.

    PyTorch raises there. Paddle hands the input through unchanged, without weight and bias: a network trained with one
    image per process would be another one, and nothing would say so.

    Raises:
        UserError: Naming the layer.
    """
    hooks = []

    def look(name: str):
        def hook(layer: nn.Layer, inputs: tuple[paddle.Tensor, ...]) -> None:
            shape = inputs[0].shape
            if layer.training and shape[0] * math.prod(shape[2:]) == 1:
                raise UserError(
                    f"batch normalisation '{name}' would see one value per channel (input {list(shape)}): "
                    f"use at least 2 images per process (train.batch_size)"
                )

        return hook

    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.BatchNorm2D | nn.SyncBatchNorm):
            hooks.append(layer.register_forward_pre_hook(look(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
