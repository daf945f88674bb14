"""Batch normalisation: a batch that it cannot normalise is refused; processes evaluate with the same statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from common.cli import UserError

import paddle
import paddle.distributed as dist
from paddle import nn

KINDS = nn.BatchNorm | nn.BatchNorm2D | nn.SyncBatchNorm


@contextmanager
def refuse_single_value_batch_norm(network: nn.Layer) -> Iterator[None]:
    """Within it, a training forward in which a batch normalisation sees one value per channel is refused.

    PyTorch raises there. Paddle hands the input through unchanged, and nothing says so.

    Raises:
        UserError: Naming the layer.
    """

    def look(name: str):
        def hook(layer: nn.Layer, inputs: tuple[paddle.Tensor, ...]) -> None:
            shape, channels = inputs[0].shape, layer.weight.shape[0]
            if layer.training and math.prod(shape) == channels:
                raise UserError(
                    f"batch normalisation '{name}' would see one value per channel (input {list(shape)}): "
                    f"use at least 2 images per process"
                )

        return hook

    layers = [(name, layer) for name, layer in network.named_sublayers() if isinstance(layer, KINDS)]
    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def share_batch_norm_statistics(network: nn.Layer) -> None:
    """Gives every process the running statistics of process 0, which are the ones that are saved."""
    if dist.get_world_size() > 1:
        for layer in network.sublayers():
            if isinstance(layer, KINDS):
                dist.broadcast(layer._mean, 0)
                dist.broadcast(layer._variance, 0)
