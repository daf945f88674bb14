"""Losses of one output's pixels, and of all outputs of a network, as its paper puts them together.

With nothing to learn (every pixel ignored) each loss is 0 with zero gradient. All are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from awesome_pytorch_seg.config import LossConfig
from common.cli import UserError
from common.labels import IGNORE

import torch
import torch.nn.functional as F
from torch import nn


def pixel_cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross entropy of every pixel, 0 where the label is ignored. (B, C, H, W), int64 (B, H, W) -> (B, H, W)."""
    return F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="none")


def mean_cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> tuple[float, int]:
    """The sum of cross entropy over valid pixels and their count, for a validation loss. Shapes as above."""
    return float(pixel_cross_entropy(logits, label).sum()), int((label != IGNORE).sum())


class WeightedCrossEntropy(nn.Module):
    """The mean of cross entropy over valid pixels, each counted with the weight of its class.

    Shapes: logits (B, C, H, W), label int64 (B, H, W) -> scalar.

    Args:
        class_weights: By train id; None counts all alike.
    """

    def __init__(self, class_weights: tuple[float, ...] | None = None):
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Returns sum(weight * loss) / sum(weight)."""
        weights = self.class_weights
        total = F.cross_entropy(logits.float(), label, weights, ignore_index=IGNORE, reduction="sum")
        valid = label[label != IGNORE]
        counted = valid.numel() if weights is None else float(weights[valid].sum())
        return total / counted if counted else total


class OhemCrossEntropy(nn.Module):
    """Cross entropy over the hard pixels: those above the threshold, or the hardest fraction if that is more.

    Shapes: logits (B, C, H, W), label int64 (B, H, W) -> scalar.

    Args:
        threshold: Pixels whose true class has less than this probability are hard.
        min_kept_fraction: Of all pixels of the batch, at least so many are kept.

    Reference: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016.
    """

    def __init__(self, threshold: float, min_kept_fraction: float):
        super().__init__()
        self.loss_threshold = -math.log(threshold)
        self.min_kept_fraction = min_kept_fraction

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the kept pixels."""
        loss = pixel_cross_entropy(logits, label).flatten()  # (B * H * W,)
        valid = int((label != IGNORE).sum())
        min_kept = min(int(label.numel() * self.min_kept_fraction), valid)
        hard = loss > self.loss_threshold
        num_hard = int(hard.sum())
        if num_hard > min_kept:
            return loss[hard].mean()
        if min_kept == 0:  # nothing valid: every entry is 0
            return loss.sum()
        return torch.topk(loss, min_kept, sorted=False).values.mean()


class DiceLoss(nn.Module):
    """1 - soft Dice of the batch, the mean over the classes that its labels hold.

    It counts every class alike, however few pixels it has, as mean IoU does.

    Shapes: logits (B, C, H, W), label int64 (B, H, W) -> scalar.

    Reference: Milletari et al., "V-Net", 3DV 2016, section 3.
    Deviation: probabilities are summed, not their squares; all images of a batch are counted together.
    """

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Returns the mean over classes of 1 - 2 overlap / total."""
        num_classes = logits.shape[1]
        valid = label != IGNORE
        probs = F.softmax(logits.float(), dim=1) * valid.unsqueeze(1)  # (B, C, H, W)
        ids = label.where(valid, 0)
        hit = probs.gather(1, ids.unsqueeze(1)).squeeze(1)  # (B, H, W): the true class's probability
        overlap = hit.new_zeros(num_classes).index_add(0, ids.flatten(), hit.flatten())
        labelled = torch.bincount(ids[valid], minlength=num_classes).to(hit.dtype)
        dice = 2 * overlap / (probs.sum((0, 2, 3)) + labelled).clamp(min=1e-6)
        present = labelled > 0
        return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


class PixelLoss(nn.Module):
    """The configured loss of one output: cross entropy, weighted or of hard pixels, and Dice if it is to count.

    Shapes: logits (B, C, H, W), label int64 (B, H, W) -> scalar.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        if config.ohem_threshold is None:
            self.cross_entropy = WeightedCrossEntropy(config.class_weights)
        else:
            self.cross_entropy = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_kept_fraction)
        self.dice = DiceLoss()
        self.dice_weight = config.dice_weight
        self.aux_weight = config.aux_weight

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Returns cross entropy + dice_weight * Dice."""
        loss = self.cross_entropy(logits, label)
        return loss + self.dice_weight * self.dice(logits, label) if self.dice_weight else loss


class OutputsLoss(nn.Module):
    """The pixel loss of the main output plus a weight times that of each auxiliary one.

    Outputs smaller than the label are enlarged to it. Its parts are "main" and "aux" (0 without auxiliary outputs).

    Args:
        pixel_loss: The loss of one output.
        aux_weight: The paper's, where the outputs belong together; None takes the experiment's.
    """

    names: tuple[str, ...] = ("main", "aux")

    def __init__(self, pixel_loss: PixelLoss, aux_weight: float | None = None):
        super().__init__()
        self.pixel_loss = pixel_loss
        self.aux_weight = pixel_loss.aux_weight if aux_weight is None else aux_weight

    def forward(self, outputs: dict[str, Any], label: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns (total, parts)."""
        every = (outputs["logits"], *outputs.get("aux", ()))
        losses = [self.pixel_loss(_at_label_size(logits, label), label) for logits in every]
        main, aux = losses[0], sum(losses[1:], torch.zeros((), device=label.device))
        return main + self.aux_weight * aux, {"main": main, "aux": aux}


class EncNetLoss(OutputsLoss):
    """EncNet's: main and auxiliary loss, and 0.2 times the semantic encoding loss, "presence".

    That one is binary cross entropy between the presence logits and which classes occur in the image's label;
    images without a valid pixel are left out.

    Shapes: outputs "logits", "aux" and "presence" (B, num_classes), logits; label int64 (B, H, W).

    Reference: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018, section 2 (SE-loss) and
        implementation details (weight 0.2).
    """

    names = ("main", "aux", "presence")
    presence_weight = 0.2

    def forward(self, outputs: dict[str, Any], label: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns (total, parts)."""
        total, parts = super().forward(outputs, label)
        presence_logits = outputs["presence"]
        present = classes_present(label, presence_logits.shape[1])
        learnable = present.any(1)
        loss = F.binary_cross_entropy_with_logits(presence_logits.float(), present.float(), reduction="none").mean(1)
        presence = (loss * learnable).sum() / learnable.sum().clamp(min=1)
        return total + self.presence_weight * presence, {**parts, "presence": presence}


class ENetLoss(OutputsLoss):
    """ENet's: the pixel loss of the logits; those of the encoder alone meet every eighth pixel of the label.

    Reference: e-lab/ENet-training, train/data/loadCamVid.lua (labels are picked, of 8x8 pixels the first).
    """

    stride = 8

    def forward(self, outputs: dict[str, Any], label: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns (total, parts)."""
        if outputs["logits"].shape[2:] != label.shape[1:]:
            label = label[:, :: self.stride, :: self.stride]
        return super().forward(outputs, label)


class ICNetLoss(nn.Module):
    """ICNet's cascade label guidance: pixel losses at strides 4, 8 and 16, each with the label at that size.

    Labels are made smaller by picking pixels, never mixing them. The parts are "main", "guide8" and "guide16".

    Shapes: outputs "logits" at stride 4 and "aux" at strides 8 and 16; label int64 (B, H, W).

    Reference: Zhao et al., "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", ECCV 2018, section
        3.4; weights 1, 0.4 and 0.16 in its implementation details.
    """

    names = ("main", "guide8", "guide16")
    weights = (1.0, 0.4, 0.16)

    def __init__(self, pixel_loss: PixelLoss):
        super().__init__()
        self.pixel_loss = pixel_loss

    def forward(self, outputs: dict[str, Any], label: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns (total, parts)."""
        every = (outputs["logits"], *outputs["aux"])
        losses = [self.pixel_loss(logits, shrink_label(label, logits.shape[2:])) for logits in every]
        total = sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))
        return total, dict(zip(self.names, losses, strict=True))


LOSSES: dict[str, Callable[[PixelLoss], nn.Module]] = {
    "enet": ENetLoss,
    "icnet": ICNetLoss,
    "encnet": EncNetLoss,
    "bisenet": partial(OutputsLoss, aux_weight=1.0),
    "danet": partial(OutputsLoss, aux_weight=1.0),
}
"""Networks whose papers train with another sum than the experiment's weight times the auxiliary losses."""


def build_loss(name: str, config: LossConfig, num_classes: int) -> nn.Module:
    """The loss of a network's training outputs, as its paper has it.

    Its call takes (outputs, label int64 (B, H, W)) and gives (total, {name: part}); its `names` are those of the parts.

    Raises:
        UserError: The number of class weights is not the number of classes.
    """
    if config.class_weights is not None and len(config.class_weights) != num_classes:
        raise UserError(
            f"loss.class_weights has {len(config.class_weights)} values, the data {num_classes} classes: give one each"
        )
    return LOSSES.get(name, OutputsLoss)(PixelLoss(config))


def classes_present(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Which classes occur in each label. Int64 (B, H, W) -> bool (B, num_classes)."""
    ids = label.where(label != IGNORE, num_classes).flatten(1)  # ignored pixels count for one class more
    present = torch.zeros(len(label), num_classes + 1, dtype=torch.bool, device=label.device)
    return present.scatter(1, ids, True)[:, :num_classes]


def shrink_label(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Picks the pixels nearest to those of a smaller map whose corners lie on the label's. (B, H, W) -> (B, h, w)."""
    rows, columns = (
        torch.linspace(0, old - 1, new, device=label.device).round().long()
        for old, new in zip(label.shape[1:], size, strict=True)
    )
    return label[:, rows[:, None], columns]


def _at_label_size(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    if logits.shape[2:] == label.shape[1:]:
        return logits
    return F.interpolate(logits, size=label.shape[1:], mode="bilinear", align_corners=False)
