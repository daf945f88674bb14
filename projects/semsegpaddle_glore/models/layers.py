"""The layers that every network here is made of, with the settings in which Paddle and PyTorch differ fixed once.

Batch normalisation: Paddle's momentum 0.9 is PyTorch's 0.1. Bilinear resizing: `align_mode` is left at Paddle's 0, the
only mode that equals PyTorch's.
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
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    init: str = "fan_out",
    padding: str | None = None,
) -> nn.Conv2D:
    """A convolution padded to keep the size at stride 1. (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)).

    `init` "fan_out" draws Kaiming-normal weights with gain sqrt(2), for what a ReLU follows; "fan_in" draws them from
    the fan-in with gain 1, for classifiers, whose few outputs would make the fan-out a poor guide. A bias starts at 0.
    `padding` "SAME" is TensorFlow's, which differs at stride 2; Paddle's drops the dilation then.

    Deviation: fans are counted per group (timm's way); torchvision's count all groups together. A batch normalisation
    follows every grouped convolution, so the scale does not change what the network computes at the start.
    """
    area = kernel_size**2
    if init == "fan_out":
        std = math.sqrt(2.0 / (out_channels // groups * area))
    else:
        std = math.sqrt(1.0 / (in_channels // groups * area))
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=padding or dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        weight_attr=paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, std)),
        bias_attr=None if bias else False,
    )


def batch_norm(channels: int, epsilon: float = 1e-5, momentum: float = 0.9) -> nn.BatchNorm2D:
    """Batch normalisation. `momentum` is the share that the running statistics keep (1 - PyTorch's momentum)."""
    return nn.BatchNorm2D(channels, momentum=momentum, epsilon=epsilon)


class ConvBNReLU(nn.Layer):
    """Convolution, batch normalisation, ReLU. (B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel_size, stride, dilation, groups)
        self.bn = batch_norm(out_channels)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Applies the three."""
        return F.relu(self.bn(self.conv(x)))


def global_avg_pool(x: paddle.Tensor) -> paddle.Tensor:
    """(B, C, H, W) -> (B, C, 1, 1).

    By one axis after the other: Paddle adds float32 values up one by one on a CPU, and over a whole plane at once the
    sum of 256x512 values would be wrong by 1e-5 of itself, where PyTorch's is by 1e-7.
    """
    return x.mean(3, keepdim=True).mean(2, keepdim=True)  # (B, C, H, 1), (B, C, 1, 1)


# twin: stdc_seg/models/layers.py
def resize_bilinear(x: paddle.Tensor, size: tuple[int, int]) -> paddle.Tensor:
    """Bilinear with aligned corners, as in SemSegPaddle. (B, C, h, w) -> (B, C, H, W)."""
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
    rows = paddle.to_tensor(bilinear_weights(in_height, height), dtype=x.dtype)  # (H, h)
    columns = paddle.to_tensor(bilinear_weights(in_width, width), dtype=x.dtype)  # (W, w)
    x = paddle.matmul(columns, x.transpose([0, 2, 3, 1]))  # (B, h, W, C)
    x = paddle.matmul(rows, x.reshape([batch, in_height, width * channels]))  # (B, H, W * C)
    return x.reshape([batch, height, width, channels]).transpose([0, 3, 1, 2])  # (B, C, H, W)


@functools.lru_cache(maxsize=128)
def bilinear_weights(in_size: int, out_size: int) -> np.ndarray:
    """Float32 (out_size, in_size), read-only: what each input contributes to each output along one axis."""
    # Positions in float32, as Paddle and PyTorch compute them.
    outputs = np.arange(out_size)
    step = np.float32((in_size - 1) / (out_size - 1)) if out_size > 1 else np.float32(0)
    position = step * outputs.astype(np.float32)
    low = np.minimum(position.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    fraction = position - low.astype(np.float32)
    weights = np.zeros((out_size, in_size), np.float32)
    weights[outputs, low] = 1 - fraction
    weights[outputs, high] += fraction
    weights.flags.writeable = False
    return weights


def upsample_nearest(x: paddle.Tensor, factor: int, size: tuple[int, int]) -> paddle.Tensor:
    """Repeats each value `factor` times along both axes and crops to `size`. (B, C, h, w) -> (B, C, H, W).

    Broadcasting takes a third of the time of Paddle's interpolation on a CPU, forward and backward.
    """
    batch, channels, in_height, in_width = x.shape
    height, width = size
    x = x.reshape([batch, channels, in_height, 1, in_width, 1])
    x = x.expand([batch, channels, in_height, factor, in_width, factor])  # (B, C, h, factor, w, factor)
    x = x.reshape([batch, channels, in_height * factor, in_width * factor])  # (B, C, h * factor, w * factor)
    return x[:, :, :height, :width]


# twin: stdc_seg/models/layers.py
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
