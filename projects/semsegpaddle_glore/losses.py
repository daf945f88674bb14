"""The loss of a training step: cross entropy on the decode head and the auxiliary head, and GINet's SC-loss.

With nothing to learn (every pixel ignored) each part is 0 with zero gradient.

References: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 4 (auxiliary loss, weight 0.4); Wu et
al., "GINet", ECCV 2020 (semantic context loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from common.labels import IGNORE
from semsegpaddle_glore.config import LossConfig

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

LABEL_VALUES = 256


class Normalisers(NamedTuple):
    """What sums are divided by: the valid pixels, each with its class's weight, and the images that have any."""

    pixels: float
    images: float


def count(label: paddle.Tensor | np.ndarray, class_weights: Sequence[float] | None = None) -> Normalisers:
    """Counts the normalisers of a batch of labels (B, H, W).

    Where one update is cut into micro-batches, count over the whole batch and hand the result to every
    `SegmentationLoss` call: the gradients then add up to those of the one big batch, however unevenly the ignored
    pixels lie. Over several processes whose gradients are averaged, give each the total divided by their number.
    """
    valid = label != IGNORE
    images = int(valid.reshape([len(label), -1]).any(axis=1).sum())
    if class_weights is None:
        return Normalisers(int(valid.sum()), images)
    pixels = np.bincount(np.asarray(label).ravel(), minlength=LABEL_VALUES)[: len(class_weights)]
    return Normalisers(float(pixels @ np.asarray(class_weights)), images)


def pixel_cross_entropy(
    logits: paddle.Tensor, label: paddle.Tensor, class_weights: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Cross entropy of every pixel times its class's weight, 0 where the label is ignored.

    Shapes: (B, C, H, W), int64 (B, H, W), class weights (`LABEL_VALUES`,) by label -> (B, H, W).
    """
    channels_last = logits.transpose([0, 2, 3, 1])  # (B, H, W, C): Paddle's softmax is fastest over the last axis
    loss = F.cross_entropy(channels_last, label, ignore_index=IGNORE, reduction="none").squeeze(-1)
    return loss if class_weights is None else loss * class_weights[label]


def class_presence(label: paddle.Tensor, num_classes: int) -> paddle.Tensor:
    """1 where a class has a pixel in an image. int64 (B, H, W) -> float32 (B, num_classes)."""
    batch = label.shape[0]
    image = paddle.arange(batch, dtype=label.dtype).reshape([batch, 1, 1])
    counts = paddle.bincount((label + LABEL_VALUES * image).flatten(), minlength=batch * LABEL_VALUES)
    return (counts.reshape([batch, LABEL_VALUES])[:, :num_classes] > 0).astype("float32")


def semantic_context_loss(presence: paddle.Tensor, label: paddle.Tensor) -> paddle.Tensor:
    """Binary cross entropy of each image's presence logits, mean over classes; 0 for an image without valid pixel.

    Shapes: presence (B, C), label int64 (B, H, W) -> (B,).
    """
    target = class_presence(label, presence.shape[1])
    loss = F.binary_cross_entropy_with_logits(presence, target, reduction="none").mean(axis=1)
    return loss * (target.max(axis=1) > 0).astype(loss.dtype)


class SegmentationLoss(nn.Layer):
    """The sum that is trained.

    Takes the network's training outputs and the label int64 (B, H, W); gives the total and, for the log, its parts
    before weighting: "seg", "aux" and "sc", as far as the network has them. Cross entropies are means over valid
    pixels, each counted with the weight of its class; the SC-loss is a mean over classes and over images with a valid
    pixel.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.aux_weight = config.aux_weight
        self.sc_weight = config.sc_weight
        self.class_weights = config.class_weights
        self.weight_of_label = None
        if config.class_weights is not None:
            by_label = np.zeros(LABEL_VALUES, np.float32)  # an ignored pixel counts 0
            by_label[: len(config.class_weights)] = config.class_weights
            self.weight_of_label = paddle.to_tensor(by_label)

    def count(self, label: paddle.Tensor | np.ndarray) -> Normalisers:
        """`count` with this loss's class weights."""
        return count(label, self.class_weights)

    def forward(
        self, outputs: dict[str, Any], label: paddle.Tensor, normalisers: Normalisers | None = None
    ) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        """Returns (total, parts). `normalisers` are those of a larger batch that this is a part of; see `count`."""
        normalisers = normalisers or self.count(label)
        pixels, images = normalisers.pixels or 1, normalisers.images or 1  # sums of nothing are 0
        parts = {"seg": pixel_cross_entropy(outputs["logits"], label, self.weight_of_label).sum() / pixels}
        total = parts["seg"]
        if "aux" in outputs:
            (aux_logits,) = outputs["aux"]
            parts["aux"] = pixel_cross_entropy(aux_logits, label, self.weight_of_label).sum() / pixels
            total = total + self.aux_weight * parts["aux"]
        if "presence" in outputs:
            parts["sc"] = semantic_context_loss(outputs["presence"], label).sum() / images
            total = total + self.sc_weight * parts["sc"]
        return total, parts
