"""One update of the weights from one batch: precision and micro-batches are dealt with here."""

from __future__ import annotations

import copy
import math

from common.runs.plan import require_finite
from encnet_single_gpu.config import Config
from encnet_single_gpu.losses import Normalisers, SegmentationLoss
from encnet_single_gpu.memory import micro_batches
from encnet_single_gpu.optimizer import WeightAverage, set_learning_rate

import numpy as np
import torch
from torch import nn

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_PARTS = ("seg", "aux", "se")  # 0 where the network has none of it


def memory_layout(channels_last: bool) -> torch.memory_format:
    """PyTorch's name for a layout of images and of convolutions' weights."""
    return torch.channels_last if channels_last else torch.contiguous_format


class Updater:
    """Computes gradients and applies them.

    The loss of every micro-batch is divided by what the whole batch counts, so gradients add up to those of the batch
    at once: for a network without batch normalisation and drop-out the update is the same however the batch is cut.

    Args:
        model: The network, on its device.
        loss: Of its training outputs.
        optimizer: Over its parameters.
        average: The running mean of its weights, if there is one.
        config: The experiment.
        device: Where the network is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: SegmentationLoss,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        config: Config,
        device: torch.device,
    ):
        self.model, self.loss, self.optimizer, self.average = model, loss, optimizer, average
        self.config, self.device, self.micro_batch = config, device, config.train.micro_batch
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self._layout = memory_layout(config.train.channels_last)
        self._network = torch.compile(model) if config.train.compile else model
        self._step = 0

    def gradients(self, images: np.ndarray, label: np.ndarray, step: int) -> tuple[float, dict[str, float]]:
        """Adds the gradients of a batch to the parameters.

        Shapes: images float32 (B, 3, h, w), label int64 (B, h, w).

        Returns:
            The loss and its parts.

        Raises:
            NonFiniteLoss: Before the gradients of such a loss reach anything.
        """
        self._step = step
        torch.manual_seed(self.config.train.seed * 2**32 + step)  # dropout, the same in a resumed run
        label = torch.from_numpy(label).to(self.device)
        counts = self.loss.count(label)
        total, parts = 0.0, dict.fromkeys(LOSS_PARTS, 0.0)
        for piece in micro_batches(len(images), self.micro_batch):
            loss, loss_parts = self._loss_of(self._network, torch.from_numpy(images[piece]), label[piece], counts)
            total = require_finite(total + float(loss.detach()))
            self.scaler.scale(loss).backward()
            parts |= {name: parts[name] + float(value.detach()) for name, value in loss_parts.items()}
        return total, parts

    # twin: awesome_pytorch_seg/updates.py
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

    def step_on_noise(self, images: int) -> None:
        """Forward and backward of random images on a copy of the network, to see whether that works."""
        model, size = copy.deepcopy(self.model).train(), self.config.augment.crop_size
        noise = torch.randn(images, 3, *size, device=self.device)
        label = torch.zeros(images, *size, dtype=torch.int64, device=self.device)
        self._loss_of(model, noise, label)[0].backward()

    def _loss_of(
        self, network: nn.Module, images: torch.Tensor, label: torch.Tensor, counts: Normalisers | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of images (b, 3, h, w) and their label (b, h, w), which is on the network's device."""
        amp = self.config.train.amp
        images = images.to(self.device, memory_format=self._layout)
        with torch.autocast(self.device.type, AMP_TYPES.get(amp), enabled=amp is not None):
            outputs = network(images)
        return self.loss(outputs, label, counts)
