"""One update of the weights from one batch: micro-batches and processes are dealt with here."""

from __future__ import annotations

import contextlib

from common.labels import IGNORE
from common.runs.plan import require_finite
from stdc_seg import processes
from stdc_seg.losses import STDCSegLoss

import numpy as np
import paddle


class Updater:
    """Computes gradients and applies them.

    Each micro-batch counts by its share of the valid pixels of the process's batch: where OHEM keeps every pixel, the
    cross entropies and their gradients are those of the batch at once, for a network without batch normalisation.

    Deviation from the batch at once: OHEM looks for the hard pixels of each micro-batch, and the detail loss is a mean
    over the images of each.

    Args:
        model: The network; turned into one with synchronised batch normalisation when several processes use GPUs.
        loss: Of its training outputs.
        optimizer: Over its parameters.
        accumulate: Into how many micro-batches a process cuts its share of a batch.
    """

    def __init__(
        self, model: paddle.nn.Layer, loss: STDCSegLoss, optimizer: paddle.optimizer.Optimizer, accumulate: int = 1
    ):
        self.loss, self.optimizer, self.accumulate = loss, optimizer, accumulate
        self.model = model
        if processes.world_size() > 1 and processes.on_gpu():
            self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self._network = paddle.DataParallel(self.model) if processes.world_size() > 1 else self.model

    def gradients(self, images: np.ndarray, label: np.ndarray, step: int) -> tuple[float, dict[str, float]]:
        """Adds the gradients of a batch to the parameters.

        Shapes: images float32 (b, 3, h, w), label int64 (b, h, w): this process's share of the batch.

        Args:
            images: Normalised.
            label: Train ids.
            step: Updates done so far; this network draws no random numbers, so nothing follows from it.

        Returns:
            The loss and its parts.

        Raises:
            NonFiniteLoss: Before the gradients of such a loss reach anything.
        """
        valid = int((label != IGNORE).sum())
        total, parts = 0.0, {}
        pieces = zip(np.array_split(images, self.accumulate), np.array_split(label, self.accumulate), strict=True)
        for number, (some_images, some_label) in enumerate(pieces, start=1):
            share = int((some_label != IGNORE).sum()) / valid if valid else 1 / self.accumulate
            with self._exchange_gradients(number == self.accumulate):
                outputs = self._network(paddle.to_tensor(some_images))
                value, loss_parts = self.loss(outputs, paddle.to_tensor(some_label))
                total += share * require_finite(float(value))
                (value * share).backward()
            parts = {name: parts.get(name, 0.0) + share * float(part) for name, part in loss_parts.items()}
        return total, parts

    # twin: semsegpaddle_glore/updates.py differs: there the loss may be scaled for float16
    def apply(self, rate: float) -> None:
        """Updates the weights with the learning rate `rate` and clears the gradients."""
        self.optimizer.set_lr(rate)
        self.optimizer.step()
        self.optimizer.clear_grad()

    # twin: semsegpaddle_glore/updates.py
    def _exchange_gradients(self, now: bool) -> contextlib.AbstractContextManager:
        """With several processes gradients are exchanged once per update, in the last micro-batch."""
        if now or processes.world_size() == 1:
            return contextlib.nullcontext()
        return self._network.no_sync()
