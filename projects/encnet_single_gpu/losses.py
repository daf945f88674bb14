"""The loss of a training step: cross entropy on the main and the auxiliary logits, and EncNet's SE-loss.

With nothing to learn (every pixel ignored) each part is 0 with zero gradient. All are computed in float32.

References: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.3 (auxiliary loss, weight 0.4); Zhang et
al., "Context Encoding for Semantic Segmentation", CVPR 2018, section 3.1 (SE-loss, weight 0.2).
"""

from __future__ import annotations

from typing import NamedTuple

from common.labels import IGNORE
from encnet_single_gpu.config import LossConfig

import torch
import torch.nn.functional as F
from torch import nn

LABEL_VALUES = 256


class Normalisers(NamedTuple):
    """What sums are divided by, both scalars: the weight of all valid pixels, and the images that have any."""

    pixels: torch.Tensor
    images: torch.Tensor


def mean_cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> tuple[float, int]:
    """The sum of cross entropy over valid pixels and their count, for a validation loss.

    Shapes: logits (B, C, H, W), label int64 (B, H, W).
    """
    total = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="sum")
    return float(total), int((label != IGNORE).sum())


def class_presence(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """1 where a class has a pixel in an image. int64 (B, H, W) -> float32 (B, num_classes)."""
    present = torch.zeros(len(label), LABEL_VALUES, device=label.device)
    return present.scatter_(1, label.flatten(1), 1.0)[:, :num_classes]


def se_loss(presence: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of each image's presence logits, mean over classes; 0 for an image without valid pixel.

    Shapes: presence (B, C), label int64 (B, H, W) -> (B,).
    """
    target = class_presence(label, presence.shape[1])
    loss = F.binary_cross_entropy_with_logits(presence.float(), target, reduction="none").mean(1)
    return loss * (target.amax(1) > 0)


class SegmentationLoss(nn.Module):
    """The sum that is trained: cross entropy + aux_weight * (that of each auxiliary output) + se_weight * SE-loss.

    Cross entropies are sums over valid pixels of weight times loss, divided by the sum of those weights, or by the
    number of those pixels (`divide_by`); the SE-loss is a mean over classes and over images with a valid pixel.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.aux_weight = config.aux_weight
        self.se_weight = config.se_weight
        self.divide_by = config.divide_by
        weights = None if config.class_weights is None else torch.tensor(config.class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def count(self, label: torch.Tensor) -> Normalisers:
        """Counts the normalisers of labels int64 (B, H, W).

        Where one update is cut into micro-batches, count over the whole batch and hand the result to each call: the
        gradients then add up to those of the one big batch, however unevenly the ignored pixels lie.
        """
        valid = label != IGNORE
        if self.class_weights is None or self.divide_by == "pixels":
            pixels = valid.sum()
        else:
            pixels = (self.class_weights.to(label.device)[label.where(valid, 0)] * valid).sum()
        return Normalisers(pixels, valid.flatten(1).any(1).sum())

    def forward(
        self,
        outputs: dict[str, torch.Tensor | tuple[torch.Tensor, ...]],
        label: torch.Tensor,
        normalisers: Normalisers | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns (total, parts): the parts before weighting, "seg", "aux" and "se", as far as the network has them.

        Args:
            outputs: What a network of `models` gives in training.
            label: int64 (B, H, W), train ids.
            normalisers: Those of a larger batch that this is a part of; None counts this one's.
        """
        normalisers = normalisers or self.count(label)
        parts = {"seg": self._cross_entropy(outputs["logits"], label, normalisers)}
        total = parts["seg"]
        if "aux" in outputs:
            parts["aux"] = sum(self._cross_entropy(logits, label, normalisers) for logits in outputs["aux"])
            total = total + self.aux_weight * parts["aux"]
        if "presence" in outputs:
            parts["se"] = _mean(se_loss(outputs["presence"], label).sum(), normalisers.images)
            total = total + self.se_weight * parts["se"]
        return total, parts

    def _cross_entropy(self, logits: torch.Tensor, label: torch.Tensor, normalisers: Normalisers) -> torch.Tensor:
        loss = F.cross_entropy(logits.float(), label, self.class_weights, ignore_index=IGNORE, reduction="sum")
        return _mean(loss, normalisers.pixels)


def _mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """A sum over `count`; the sum of nothing is 0."""
    return total / torch.where(count > 0, count, 1)
