"""One update of the weights from one batch: precision, micro-batches and processes are dealt with here."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from common.cli import UserError
from common.runs.plan import require_finite
from semsegpaddle_glore import processes
from semsegpaddle_glore.checkpoint import float32_weights
from semsegpaddle_glore.losses import Normalisers, SegmentationLoss
from semsegpaddle_glore.models import Segmentor

import numpy as np
import paddle


class Updater:
    """Computes gradients and applies them.

    The loss of every micro-batch and process is divided by what the whole batch counts (its valid pixels), so gradients
    add up to those of the batch at once: for a network without batch normalisation and drop-out the update is the same
    however the batch is cut.

    Args:
        model: The network; turned into one with synchronised batch normalisation when several processes use GPUs.
        loss: Of its training outputs.
        optimizer: Over its parameters.
        seed: Of drop-out, with step and rank.
        accumulate: Into how many micro-batches a process cuts its share of a batch.
        amp: "O1" (float16 where it is safe) or "O2" (float16 weights with float32 masters), with loss scaling; None is
            float32. On a CPU there is none of the two.
    """

    def __init__(
        self,
        model: Segmentor,
        loss: SegmentationLoss,
        optimizer: paddle.optimizer.Optimizer,
        seed: int,
        accumulate: int = 1,
        amp: str | None = None,
    ):
        self.loss, self.optimizer = loss, optimizer
        self.seed, self.accumulate = seed, accumulate
        self.amp = amp if processes.on_gpu() else None
        self.scaler = paddle.amp.GradScaler(enable=self.amp is not None)
        self.model = model
        if processes.world_size() > 1 and processes.on_gpu():
            if getattr(model.backbone, "converted_from", None):
                raise UserError("a converted backbone's batch norms are not synchronised: train with one process")
            self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self._float32_copy = copy.deepcopy(self.model) if self.amp == "O2" else None
        if self.amp == "O2":
            self.model, _ = paddle.amp.decorate(self.model, self.optimizer, level="O2")
        self._network = paddle.DataParallel(self.model) if processes.world_size() > 1 else self.model

    def gradients(self, images: np.ndarray, label: np.ndarray, step: int) -> tuple[float, dict[str, float]]:
        """Adds the gradients of a batch to the parameters.

        Shapes: images float32 (b, 3, h, w), label int64 (b, h, w): this process's share of the batch.

        Returns:
            The loss and its parts: this process's share of the batch's, times the number of processes.

        Raises:
            NonFiniteLoss: Before the gradients of such a loss reach anything.
        """
        paddle.seed(_step_seed(self.seed, step, processes.rank()))
        counts = self._counts_of_the_batch(label)
        total, parts = 0.0, {}
        pieces = zip(np.array_split(images, self.accumulate), np.array_split(label, self.accumulate), strict=True)
        for number, (some_images, some_label) in enumerate(pieces, start=1):
            with self._exchange_gradients(number == self.accumulate):
                with self.precision():
                    outputs = self._network(paddle.to_tensor(some_images))
                outputs = {name: _as_float32(value) for name, value in outputs.items()}
                loss, loss_parts = self.loss(outputs, paddle.to_tensor(some_label), counts)
                total += require_finite(float(loss))
                self.scaler.scale(loss).backward()
            parts = {name: parts.get(name, 0.0) + float(value) for name, value in loss_parts.items()}
        return total, parts

    # twin: stdc_seg/updates.py differs: there the loss is not scaled
    def apply(self, rate: float) -> None:
        """Updates the weights with the learning rate `rate` and clears the gradients."""
        self.optimizer.set_lr(rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad()

    def float32_model(self) -> Segmentor:
        """The network that a checkpoint holds: with float32 weights also where those that are trained are float16."""
        if self._float32_copy is None:
            return self.model
        weights = float32_weights(self.model, self.optimizer)
        self._float32_copy.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
        return self._float32_copy

    def scaler_state(self) -> dict[str, Any]:
        """The loss scaling's state in plain numbers and lists; empty without AMP."""
        state = self.scaler.state_dict()
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in state.items()}

    def precision(self) -> contextlib.AbstractContextManager:
        """The context in which the network computes while it trains."""
        if self.amp is None:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.amp)

    def _counts_of_the_batch(self, label: np.ndarray) -> Normalisers:
        """Of the whole batch, over its number of processes: Paddle averages their gradients, and so adds them up."""
        counts = self.loss.count(label)
        if processes.world_size() == 1:
            return counts
        total = processes.total(np.array(counts, np.float64))
        return Normalisers(*(total / processes.world_size()).tolist())

    # twin: stdc_seg/updates.py
    def _exchange_gradients(self, now: bool) -> contextlib.AbstractContextManager:
        """With several processes gradients are exchanged once per update, in the last micro-batch."""
        if now or processes.world_size() == 1:
            return contextlib.nullcontext()
        return self._network.no_sync()


def _as_float32(output: paddle.Tensor | tuple[paddle.Tensor, ...]) -> paddle.Tensor | tuple[paddle.Tensor, ...]:
    """An output of the network, or a tuple of them, of any precision."""
    return tuple(map(_as_float32, output)) if isinstance(output, tuple) else output.astype("float32")


def _step_seed(seed: int, step: int, rank: int) -> int:
    """For Paddle's generator; unlike any other step's or process's."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
