"""The gradients of one batch, which may be cut into micro-batches."""

from __future__ import annotations

import contextlib

from stdc_seg.losses import IGNORE_INDEX, STDCSegLoss

import numpy as np
import paddle


def add_gradients(
    network: paddle.nn.Layer, loss: STDCSegLoss, images: np.ndarray, label: np.ndarray, accumulate: int = 1
) -> tuple[float, dict[str, float]]:
    """Adds the gradients of a batch to the parameters.

    Each micro-batch counts by its share of the batch's valid pixels: where OHEM keeps every pixel, the cross entropies
    and their gradients are those of the batch at once, for a network without batch normalisation.

    Deviation from the batch at once: OHEM looks for the hard pixels of each micro-batch, and the detail loss is a mean
    over the images of each.

    Args:
        network: In training mode; under `paddle.DataParallel` in a run of several processes.
        loss: Of its outputs.
        images: Float32 (b, 3, h, w), this process's share of the batch.
        label: Int64 (b, h, w).
        accumulate: Into how many micro-batches they are cut.

    Returns:
        The loss and its parts.
    """
    valid = int((label != IGNORE_INDEX).sum())
    total, parts = 0.0, {}
    pieces = zip(np.array_split(images, accumulate), np.array_split(label, accumulate), strict=True)
    for number, (some_images, some_label) in enumerate(pieces, start=1):
        share = int((some_label != IGNORE_INDEX).sum()) / valid if valid else 1 / accumulate
        waits = number < accumulate and isinstance(network, paddle.DataParallel)
        with network.no_sync() if waits else contextlib.nullcontext():  # gradients are exchanged once per update
            value, loss_parts = loss(network(paddle.to_tensor(some_images)), paddle.to_tensor(some_label))
            (value * share).backward()
        total += share * float(value)
        parts = {name: parts.get(name, 0.0) + share * float(part) for name, part in loss_parts.items()}
    return total, parts
