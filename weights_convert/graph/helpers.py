"""Functions and layers that generated files bring along: where a PyTorch operator has no single Paddle one.

Their source text is copied into the generated file as it stands here, so each leans on paddle alone.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn


class BatchNorm1D(nn.BatchNorm1D):
    """Paddle's batch normalisation, its running statistics under PyTorch's names."""

    def __init__(self, num_features, momentum=0.9, epsilon=1e-5):
        super().__init__(num_features, momentum=momentum, epsilon=epsilon)
        for name, theirs in (("_mean", "running_mean"), ("_variance", "running_var")):
            value = getattr(self, name)
            delattr(self, name)
            setattr(self, theirs, value)

    def forward(self, x):
        """The batch's statistics in training, the running ones in evaluation."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
        )


class BatchNorm2D(nn.BatchNorm2D):
    """Paddle's batch normalisation, its running statistics under PyTorch's names."""

    def __init__(self, num_features, momentum=0.9, epsilon=1e-5):
        super().__init__(num_features, momentum=momentum, epsilon=epsilon)
        for name, theirs in (("_mean", "running_mean"), ("_variance", "running_var")):
            value = getattr(self, name)
            delattr(self, name)
            setattr(self, theirs, value)

    def forward(self, x):
        """The batch's statistics in training, the running ones in evaluation."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
        )


class BatchNorm3D(nn.BatchNorm3D):
    """Paddle's batch normalisation, its running statistics under PyTorch's names."""

    def __init__(self, num_features, momentum=0.9, epsilon=1e-5):
        super().__init__(num_features, momentum=momentum, epsilon=epsilon)
        for name, theirs in (("_mean", "running_mean"), ("_variance", "running_var")):
            value = getattr(self, name)
            delattr(self, name)
            setattr(self, theirs, value)

    def forward(self, x):
        """The batch's statistics in training, the running ones in evaluation."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
        )


class Tensors(nn.Layer):
    """Parameters and buffers of a module that is not called itself, but whose tensors are used.

    Args:
        buffers: Type by name of those that are no parameters.
        layers: Modules below it, by name.
        shapes: Shape by name.
    """

    def __init__(self, buffers=None, layers=None, **shapes):
        super().__init__()
        for name, layer in (layers or {}).items():
            self.add_sublayer(name, layer)
        for name, shape in shapes.items():
            if name in (buffers or {}):
                self.register_buffer(name, paddle.zeros(shape, dtype=buffers[name]))
            else:
                setattr(self, name, self.create_parameter(shape))


def larger(a, b):
    """The larger of two sizes; in a static graph, where they are tensors, too."""
    return (a + b + abs(a - b)) // 2


def smaller(a, b):
    """The smaller of two sizes; in a static graph, where they are tensors, too."""
    return (a + b - abs(a - b)) // 2


def attention(query, key, value, mask=None, scale=None, is_causal=False):
    """Scaled dot-product attention, (..., N, D) each; a mask of truth values says what is seen."""
    scores = paddle.matmul(query, key, transpose_y=True) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = paddle.tril(paddle.ones([query.shape[-2], key.shape[-2]], dtype="bool"))
    if mask is not None:
        if mask.dtype == paddle.bool:
            mask = paddle.where(mask, 0.0, float("-inf"))
        scores = scores + mask
    return paddle.matmul(F.softmax(scores, axis=-1), value)


def drop_path(x, drop_prob, training):
    """Stochastic depth: in training a sample's whole branch is left out with probability `drop_prob`."""
    if not training:
        return x
    kept = (paddle.rand([x.shape[0]] + [1] * (x.ndim - 1)) >= drop_prob).astype(x.dtype)
    return x * kept / (1 - drop_prob)


def batch_statistics_norm(x, weight, bias, epsilon=1e-5):
    """Batch normalisation by the batch's own mean and biased variance, in evaluation too."""
    axes = [0, *range(2, x.ndim)]
    mean = x.mean(axes, keepdim=True)
    x = (x - mean) * paddle.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    shape = [1, -1] + [1] * (x.ndim - 2)
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def group_norm(x, num_groups, weight=None, bias=None, epsilon=1e-5):
    """Group normalisation of (B, C, ...), any number of axes."""
    groups = x.reshape([x.shape[0], num_groups, -1])
    mean = groups.mean(2, keepdim=True)
    groups = (groups - mean) * paddle.rsqrt((groups - mean).square().mean(2, keepdim=True) + epsilon)
    x, shape = groups.reshape(x.shape), [1, -1] + [1] * (x.ndim - 2)
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def rms_norm(x, weight, axes, epsilon):
    """Divided by the root of the mean square over the last `axes` axes."""
    x = x * paddle.rsqrt(x.square().mean(list(range(-axes, 0)), keepdim=True) + epsilon)
    return x if weight is None else x * weight


def variance(x, axis, correction, keepdim):
    """Sum of squared deviations over axes, divided by the count less the correction."""
    squares = (x - x.mean(axis, keepdim=True)).square()
    count = 1
    for index in axis:
        count = count * x.shape[index]
    return squares.sum(axis, keepdim=keepdim) / (count - correction)


def windows(x, axis, size, step):
    """Windows along an axis, as a new last axis."""
    axis = axis % x.ndim
    starts = paddle.arange(0, x.shape[axis] - size + 1, step)
    index = (starts.unsqueeze(1) + paddle.arange(size)).flatten()
    picked = paddle.index_select(x, index, axis=axis)
    picked = picked.reshape([*x.shape[:axis], -1, size, *x.shape[axis + 1 :]])
    order = [dim for dim in range(picked.ndim) if dim != axis + 1]
    return picked.transpose([*order, axis + 1])


def with_slice(x, where, values):
    """A copy with a part replaced."""
    x = x.clone()
    x[where] = values
    return x
