"""How a number is measured, and the scores of one image under that protocol."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from common.config.typed import require

import torch
import torch.nn.functional as F

Model = Callable[[torch.Tensor], torch.Tensor]
"""Images float32 (1, 3, h, w) -> logits (1, num_classes, h, w): a network in evaluation mode, or another runtime."""


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How a number is measured: the same value for validation in training and for eval.py, stored with every number.

    Each of `scales` resizes the image; logits are enlarged to the label's size, class probabilities are averaged over
    scales, flips and windows. Labels are never resized but by `centre_crop`, which is there because the original
    project's table was measured so.
    """

    scales: tuple[float, ...]
    flip: bool
    window: tuple[int, int] | None = None  # the network sees windows of this size; null: the whole image at once
    stride: tuple[int, int] | None = None  # from window to window; less than the window where they overlap
    centre_crop: int | None = None  # first the square in the middle of image AND label, at this shorter side

    def __post_init__(self) -> None:
        require(len(self.scales) > 0 and 0 < min(self.scales) <= max(self.scales) <= 4, "scales", "factors in (0, 4]")
        require((self.window is None) == (self.stride is None), "window", "given together with stride")
        if self.window is not None:
            require(min(self.window) >= 16, "window", "at least 16 pixels a side")
            fits = all(0 < step <= side for step, side in zip(self.stride, self.window, strict=True))
            require(fits, "stride", "positive and at most the window")
        require(self.centre_crop is None or self.centre_crop >= 16, "centre_crop", "at least 16 pixels, or null")

    @property
    def averages(self) -> bool:
        """Whether a pixel's scores come from more than one forward."""
        return len(self.scales) > 1 or self.flip or self.window is not None

    @property
    def short_name(self) -> str:
        """For file names: "ss", "ms_flip", "ss_slide480x480", "ss_centre480"."""
        parts = ["ss" if self.scales == (1.0,) else "ms"]
        if self.flip:
            parts.append("flip")
        if self.window is not None:
            parts.append("slide{}x{}".format(*self.window))
        if self.centre_crop is not None:
            parts.append(f"centre{self.centre_crop}")
        return "_".join(parts)

    # This text is a key: recorded runs hold it, and `measured_as` in results/experiments.yaml. It must not change.
    def __str__(self) -> str:
        parts = ["ss" if self.scales == (1.0,) else "ms " + "/".join(f"{scale:g}" for scale in self.scales)]
        if self.flip:
            parts.append("flip")
        parts.append(
            "whole image" if self.window is None else "slide {}x{} by {}x{}".format(*self.window, *self.stride)
        )
        if self.centre_crop is not None:
            parts.append(f"centre crop {self.centre_crop} of image and label (labels resized)")
        return ", ".join(parts)


PROTOCOLS = {
    "ss": EvalProtocol((1.0,), flip=False),
    "flip": EvalProtocol((1.0,), flip=True),
    "ms": EvalProtocol((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=False),
    "ms-flip": EvalProtocol((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True),
    "slide-480": EvalProtocol((1.0,), flip=False, window=(480, 480), stride=(320, 320)),
    "centre-crop-480": EvalProtocol((1.0,), flip=False, centre_crop=480),
}
"""Protocols by name: `eval.py --protocol NAME`. The last one is the original project's."""


def smallest_scale(size: tuple[int, int], protocol: EvalProtocol) -> float:
    """The smallest factor by which the network sees an image of (height, width); infinite where windows pad it."""
    if protocol.window is not None:
        return math.inf
    return min(protocol.scales) * (1.0 if protocol.centre_crop is None else protocol.centre_crop / min(size))


def class_scores(model: Model, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol) -> torch.Tensor:
    """Scores whose argmax is the prediction and whose softmax are the probabilities.

    One scale, not mirrored, the whole image: the logits. Otherwise: the logarithm of the mean of the probabilities.

    Args:
        model: The network, see `Model`.
        image: The normalised image.
        size: (height, width) of the result: the label's, or the image's own.
        protocol: Scales, mirror images and windows; a centre crop is the caller's.

    Shapes: image float32 (1, 3, H, W) -> (1, num_classes, *size).
    """
    if not protocol.averages:
        (scale,) = protocol.scales
        return _resize(model(_scaled(image, scale)).float(), size)
    total, count = None, 0
    for scale in protocol.scales:
        resized = _scaled(image, scale)
        for flipped in (False, True) if protocol.flip else (False,):
            probs = _probabilities(model, resized.flip(3) if flipped else resized, size, protocol)
            probs = probs.flip(3) if flipped else probs
            total, count = (probs if total is None else total + probs), count + 1
    return torch.log((total / count).clamp(min=1e-12))


def _probabilities(model: Model, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol) -> torch.Tensor:
    """(1, 3, H, W) -> (1, num_classes, *size), the mean over windows where there are any."""
    if protocol.window is None:
        return F.softmax(_resize(model(image).float(), size), dim=1)
    height, width = image.shape[2:]
    window_height, window_width = protocol.window
    # What is smaller than a window is filled up with the mean colour.
    image = F.pad(image, (0, max(0, window_width - width), 0, max(0, window_height - height)))
    total, times = None, image.new_zeros(image.shape[2:])
    for window in windows(image.shape[2:], protocol.window, protocol.stride):
        probs = F.softmax(model(image[(..., *window)]).float(), dim=1)  # (1, C, window height, window width)
        if total is None:
            total = probs.new_zeros(1, probs.shape[1], *image.shape[2:])
        total[(..., *window)] += probs
        times[window] += 1
    return _resize((total / times)[..., :height, :width], size)


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Windows that cover an image of `size`, the last ones moved back so that they end where it ends."""
    starts = []
    for length, side, step in zip(size, window, stride, strict=True):
        last = length - side
        starts.append([*range(0, last, step), last])
    for top in starts[0]:
        for left in starts[1]:
            yield slice(top, top + window[0]), slice(left, left + window[1])


def _scaled(image: torch.Tensor, scale: float) -> torch.Tensor:
    height, width = image.shape[2:]
    return _resize(image, (round(height * scale), round(width * scale)))


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear. (B, C, h, w) -> (B, C, H, W)."""
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
