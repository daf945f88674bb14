"""Losses of STDC-Seg: OHEM cross entropy for the segmentation heads, BCE + Dice on a detail target for the detail head.

With nothing to learn (every pixel ignored) each loss is 0 with zero gradient.

Reference: Fan et al., CVPR 2021, section 3.2 (detail guidance, equations 3 to 5); Shrivastava et al., CVPR 2016
(OHEM); the official code's loss/loss.py and loss/detail_loss.py for the constants.
"""

from __future__ import annotations

import math
from typing import Any

from common.labels import IGNORE
from stdc_seg.config import LossConfig
from stdc_seg.models.layers import resize_bilinear, resize_nearest

import paddle
import paddle.nn.functional as F
from paddle import nn

LOG_NAMES = ("seg", "aux8", "aux16", "detail_bce", "detail_dice", "detail_share")


def pixel_cross_entropy(logits: paddle.Tensor, label: paddle.Tensor) -> paddle.Tensor:
    """Cross entropy of every pixel, 0 where the label is ignored. (B, C, H, W), int64 (B, H, W) -> (B, H, W)."""
    channels_last = logits.transpose([0, 2, 3, 1])  # (B, H, W, C): Paddle's softmax is fastest over the last axis
    return F.cross_entropy(channels_last, label, ignore_index=IGNORE, reduction="none").squeeze(-1)


def mean_cross_entropy(logits: paddle.Tensor, label: paddle.Tensor) -> tuple[float, int]:
    """The sum of cross entropy over valid pixels and their count, for a validation loss. Shapes as above."""
    return float(pixel_cross_entropy(logits, label).sum()), int((label != IGNORE).sum())


class OhemCrossEntropy(nn.Layer):
    """Cross entropy over the hard pixels: those above the threshold, or the hardest fraction if that is more.

    Shapes: logits (B, C, H, W), label int64 (B, H, W) -> scalar.

    Deviation from the official code: where fewer pixels are valid than must be kept, it averages the zeros of ignored
    pixels in; here the mean is over valid pixels.
    """

    def __init__(self, threshold: float, min_kept_fraction: float):
        super().__init__()
        self.loss_threshold = -math.log(threshold)
        self.min_kept_fraction = min_kept_fraction

    def forward(self, logits: paddle.Tensor, label: paddle.Tensor) -> paddle.Tensor:
        """Returns the mean over the kept pixels."""
        loss = pixel_cross_entropy(logits, label).flatten()
        valid = int((label != IGNORE).sum())
        min_kept = min(int(label.size * self.min_kept_fraction), valid)
        hard = (loss.detach() > self.loss_threshold).astype(loss.dtype)
        num_hard = int(hard.sum())
        if num_hard > min_kept:
            return (loss * hard).sum() / num_hard
        if min_kept == 0:  # nothing valid: every entry is 0
            return loss.sum()
        return paddle.topk(loss, min_kept, sorted=False)[0].mean()


def detail_target(label: paddle.Tensor) -> paddle.Tensor:
    """Where the label map changes, at three scales: int64 (B, H, W) -> float32 0/1 (B, 1, H, W).

    A Laplacian (8 in the centre, -1 around, zeros outside the image) of the train ids is taken at strides 1, 2 and 4;
    positive responses are edges; each is brought back to full size by nearest neighbour and the three are summed with
    weights 0.6, 0.3, 0.1; more than 0.1 is detail. Stride 4 alone sums to exactly 0.1 and is therefore dropped, as in
    the official code (float32 there and here).
    """
    ids = label.unsqueeze(1).astype("float32")  # (B, 1, H, W)
    kernel = paddle.full([1, 1, 3, 3], -1.0)
    kernel[0, 0, 1, 1] = 8.0
    edges = (F.conv2d(ids, kernel, padding=1) > 0.1).astype("float32")
    size = edges.shape[2:]
    # A strided convolution is the dense one, subsampled.
    edges2 = resize_nearest(edges[:, :, ::2, ::2], size)
    edges4 = resize_nearest(edges[:, :, ::4, ::4], size)
    return (0.6 * edges + 0.3 * edges2 + 0.1 * edges4 > 0.1).astype("float32")


class DetailLoss(nn.Layer):
    """Binary cross entropy and Dice between the detail head and `detail_target`.

    Shapes: detail logits (B, 1, h, w), label int64 (B, H, W) -> three scalars (bce, dice, share of detail pixels).

    Args:
        mask_ignored: Leave out the pixels within one pixel of an ignored one. The official code does not: the border
            of an unlabelled area is an edge there.

    Deviation from the official code: the fuse kernel is a constant (there a parameter without gradient that weight
    decay shrinks); images without any valid pixel are left out.
    """

    def __init__(self, mask_ignored: bool = False):
        super().__init__()
        self.mask_ignored = mask_ignored

    def forward(
        self, logits: paddle.Tensor, label: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Returns (bce, dice, share)."""
        target = detail_target(label)
        logits = resize_bilinear(logits, target.shape[2:])
        weight = self._weight(label)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        bce = (bce * weight).sum() / weight.sum().clip(min=1.0)
        probs, target = F.sigmoid(logits) * weight, target * weight
        overlap = (probs * target).sum(axis=[1, 2, 3])
        total = probs.sum(axis=[1, 2, 3]) + target.sum(axis=[1, 2, 3])
        dice = 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)  # (B,); 0 for an image of weight 0
        images = (weight.sum(axis=[1, 2, 3]) > 0).astype("float32").sum()
        return bce, dice.sum() / images.clip(min=1.0), target.mean()

    def _weight(self, label: paddle.Tensor) -> paddle.Tensor:
        """Float32 (B, 1, H, W), 1 where the loss counts."""
        ignored = (label == IGNORE).astype("float32").unsqueeze(1)  # (B, 1, H, W)
        if self.mask_ignored:
            return 1.0 - F.max_pool2d(ignored, kernel_size=3, stride=1, padding=1)
        some_valid = 1.0 - ignored.min(axis=[1, 2, 3], keepdim=True)  # (B, 1, 1, 1)
        return some_valid.expand_as(ignored)


class STDCSegLoss(nn.Layer):
    """The sum that is trained: OHEM on three heads plus detail BCE and Dice.

    Takes the network's training outputs and the label int64 (B, H, W); gives the total and, for the log, its parts
    before weighting under the names of `LOG_NAMES`, with the share of detail pixels in the target (0: nothing guides
    the details).
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.ohem = OhemCrossEntropy(config.ohem_threshold, config.ohem_min_kept_fraction)
        self.detail = DetailLoss(config.detail_masks_ignored)
        self.aux_weight = config.aux_weight
        self.detail_weight = config.detail_weight

    def forward(self, outputs: dict[str, Any], label: paddle.Tensor) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        """Returns (total, parts)."""
        seg, aux8, aux16 = (self.ohem(logits, label) for logits in (outputs["logits"], *outputs["aux"]))
        bce, dice, share = self.detail(outputs["detail"], label)
        total = seg + self.aux_weight * (aux8 + aux16) + self.detail_weight * (bce + dice)
        return total, dict(zip(LOG_NAMES, (seg, aux8, aux16, bce, dice, share), strict=True))
