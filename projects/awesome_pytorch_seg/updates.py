"""One update of the weights from one batch: precision, micro-batches and processes are dealt with here."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.checkpoint import memory_layout
from awesome_pytorch_seg.config import Config
from awesome_pytorch_seg.models.layers import refuse_single_value_batch_norm
from awesome_pytorch_seg.optimizer import WeightAverage, set_learning_rate
from common.cli import UserError
from common.runs.plan import require_finite

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Updater:
    """Computes gradients and applies them.

    Args:
        model: The network, on its device.
        loss: Of its training outputs.
        optimizer: Over its parameters.
        average: The running mean of its weights, if there is one.
        scaler: Of the loss, for fp16.
        config: The experiment.
        device: Where the network is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        scaler: torch.amp.GradScaler,
        config: Config,
        device: torch.device,
    ):
        self.model, self.loss, self.optimizer, self.average = model, loss, optimizer, average
        self.scaler, self.config, self.device = scaler, config, device
        self._layout = memory_layout(config.train.channels_last)
        self._network = model
        if processes.world_size() > 1:
            self._network = DistributedDataParallel(model, broadcast_buffers=False)
        self._forward = torch.compile(self._network) if config.train.compile else self._network
        self._step = 0

    def gradients(self, images: np.ndarray, label: np.ndarray, step: int) -> tuple[float, dict[str, float]]:
        """Adds the gradients of a batch to the parameters.

        Shapes: images float32 (b, 3, h, w), label int64 (b, h, w): this process's share of the batch.

        Returns:
            The loss and its parts, means over the micro-batches.

        Raises:
            NonFiniteLoss: Before the gradients of such a loss reach anything.
        """
        train, self._step = self.config.train, step
        # Dropout: the same in a resumed run, another in each process.
        torch.manual_seed(train.seed * 2**32 + processes.rank() * 2**24 + step)
        sums = dict.fromkeys(("loss", *self.loss.names), 0.0)
        pieces = _cut(images, label, train.accumulate)
        for number, (some_images, some_label) in enumerate(pieces, start=1):
            with self._exchange_gradients(number == len(pieces)):
                for name, value in self._backward(some_images, some_label).items():
                    sums[name] += value / len(pieces)
        return sums.pop("loss"), sums

    # twin: encnet_single_gpu/updates.py
    def apply(self, rate: float) -> float:
        """Updates the weights with the learning rate `rate` and clears the gradients. Returns the gradients' norm."""
        set_learning_rate(self.optimizer, rate)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm or math.inf)
        self.scaler.step(self.optimizer)  # left out where fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, self._step)
        return float(norm)

    def _backward(self, images: np.ndarray, label: np.ndarray) -> dict[str, float]:
        """Adds the gradients of a micro-batch. Returns its loss and what that is the sum of."""
        train = self.config.train
        images = torch.from_numpy(images).to(self.device, memory_format=self._layout)  # (b, 3, h, w)
        with torch.autocast(self.device.type, AMP_TYPES.get(train.amp), enabled=train.amp is not None):
            outputs = self._outputs(images)
        total, parts = self.loss(outputs, torch.from_numpy(label).to(self.device))
        value = require_finite(float(total.detach()))
        self.scaler.scale(total / train.accumulate).backward()
        return {"loss": value, **{name: float(part.detach()) for name, part in parts.items()}}

    def _outputs(self, images: torch.Tensor) -> dict[str, Any]:
        """The network's training outputs of images (b, 3, h, w): `logits`, `aux` and its own."""
        try:
            return self._forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            advice = "use at least 2 images per process and part: raise train.batch_size or lower train.accumulate"
            with refuse_single_value_batch_norm(self.model, advice):
                self.model(images)
            raise

    def _exchange_gradients(self, now: bool) -> contextlib.AbstractContextManager:
        """With several processes gradients are exchanged once per update, in the last micro-batch."""
        if now or processes.world_size() == 1:
            return contextlib.nullcontext()
        return self._network.no_sync()


def _cut(images: np.ndarray, label: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A process's share of a batch in `count` equal micro-batches."""
    if len(images) % count:
        raise UserError(
            f"train.accumulate {count}: {len(images)} images of a process cannot be cut into {count} equal parts: "
            f"change train.batch_size or train.accumulate"
        )
    return list(zip(np.split(images, count), np.split(label, count), strict=True))
