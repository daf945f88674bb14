"""How a number is measured, and the scores of one image under that protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from common.config.typed import require
from stdc_seg.models.layers import resize_bilinear

import paddle
import paddle.nn.functional as F

Model = Callable[[paddle.Tensor], paddle.Tensor]
"""Images float32 (1, 3, h, w) -> logits (1, num_classes, h, w): a network in evaluation mode, or another runtime."""


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How a number is measured: the same value for validation in training and for eval.py, stored with every number.

    The image is resized by `input_scale` (0.5 gives "Seg50", 0.75 "Seg75"), and by each of `scales` on top; logits
    are enlarged to the label's size, class probabilities are averaged over scales and flips; labels are never resized.
    """

    input_scale: float
    scales: tuple[float, ...]
    flip: bool

    def __post_init__(self) -> None:
        require(0 < self.input_scale <= 4, "input_scale", "in (0, 4]")
        require(len(self.scales) > 0 and 0 < min(self.scales) <= max(self.scales) <= 4, "scales", "factors in (0, 4]")

    @property
    def short_name(self) -> str:
        """For file names: "x0.5", "x0.5_ms_flip"."""
        many, flip = "_ms" if len(self.scales) > 1 else "", "_flip" if self.flip else ""
        return f"x{self.input_scale:g}{many}{flip}"

    # This text is a key: recorded runs hold it, and `measured_as` in results/experiments.yaml. It must not change.
    def __str__(self) -> str:
        scales = "ss" if self.scales == (1.0,) else "ms " + "/".join(f"{s:g}" for s in self.scales)
        return f"input x{self.input_scale:g}, {scales}{', flip' if self.flip else ''}, whole image"


def smallest_scale(size: tuple[int, int], protocol: EvalProtocol) -> float:
    """The smallest factor by which the network sees an image of (height, width) resized."""
    return protocol.input_scale * min(protocol.scales)


def class_scores(model: Model, image: paddle.Tensor, size: tuple[int, int], protocol: EvalProtocol) -> paddle.Tensor:
    """Scores whose argmax is the prediction and whose softmax are the probabilities.

    One scale without flip: the logits. Otherwise: the logarithm of the mean of the probabilities.

    Args:
        model: The network, see `Model`.
        image: The normalised image.
        size: (height, width) of the result: the label's, or the image's own.
        protocol: Scales and flips.

    Shapes: image float32 (1, 3, H, W) -> (1, num_classes, *size).

    Reference: evaluation.py of the official code for the order: image resized, logits brought to the resized
    image's size by the network and then to the label's size, both bilinear with aligned corners.
    """
    height, width = image.shape[2:]
    total, count = None, 0
    for scale in protocol.scales:
        factor = protocol.input_scale * scale
        resized = resize_bilinear(image, (int(height * factor), int(width * factor)))
        for flipped in (False, True) if protocol.flip else (False,):
            logits = model(resized.flip(3) if flipped else resized)
            logits = resize_bilinear(logits.flip(3) if flipped else logits, size)
            if len(protocol.scales) == 1 and not protocol.flip:
                return logits
            probs = F.softmax(logits, axis=1)
            total, count = (probs if total is None else total + probs), count + 1
    return paddle.log((total / count).clip(min=1e-12))
