"""How a number is measured: the `EvalProtocol`, and its windows, mirror images and scales applied to one image.

Memory is the probabilities of one image at its largest scale, at the label's size, and one window's pass through the
network; nothing is kept from image to image. Sums are NumPy arrays on the CPU, where they are added in place.

Reference: eval.py of the original for the order (image resized by its long side, padded where it is smaller than the
window, windows, each with its mirror image, back to the label's size, sum over scales).
Deviation: probabilities are averaged, the original averages logits; the last window of a row or column lies flush with
the border, the original lets it stick out and pads it; the way back to the label's size aligns pixel edges as the way
there does, the original aligns corners.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from common.config.typed import require

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F

SMALLEST_INPUT = 65
"""Pixels a side, the least that a network takes: 3 at stride 32, so that BN sees more than one value per channel."""

Model = Callable[[paddle.Tensor], paddle.Tensor]
"""Images float32 (1, 3, h, w) -> logits (1, num_classes, h, w): a network in evaluation mode, or another runtime."""


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How a number is measured: the same value for validation in training and for eval.py, stored with every number.

    The image's long side becomes `long_side` (its own length where null) times each of `scales`. The network sees
    windows of it, or the whole. Class probabilities are averaged over overlapping windows, mirror images and scales, at
    the label's size; labels are never resized.
    """

    long_side: int | None  # the original's BASE_SIZE
    scales: tuple[float, ...]
    flip: bool
    window: tuple[int, int] | None  # null = the whole image at once
    stride_fraction: float  # of the window; 1/3 in the original, 2/3 in others

    def __post_init__(self) -> None:
        require(self.long_side is None or self.long_side >= SMALLEST_INPUT, "long_side", f"{SMALLEST_INPUT} or more")
        require(len(self.scales) > 0 and 0 < min(self.scales) <= max(self.scales) <= 4, "scales", "factors in (0, 4]")
        large = self.window is None or min(self.window) >= SMALLEST_INPUT
        require(large, "window", f"at least {SMALLEST_INPUT} pixels a side")
        require(0 < self.stride_fraction <= 1, "stride_fraction", "in (0, 1]")

    @property
    def short_name(self) -> str:
        """For file names: "whole", "slide769", "slide769_ms_flip", "long520_slide520"."""
        size = f"long{self.long_side}_" if self.long_side else ""
        window = "whole"
        if self.window is not None:
            square = self.window[0] == self.window[1]
            window = f"slide{self.window[0]}" if square else f"slide{self.window[0]}x{self.window[1]}"
        many, flip = "_ms" if len(self.scales) > 1 else "", "_flip" if self.flip else ""
        return f"{size}{window}{many}{flip}"

    # This text is a key: recorded runs hold it, and `measured_as` in results/experiments.yaml. It must not change.
    def __str__(self) -> str:
        scales = "ss" if self.scales == (1.0,) else "ms " + "/".join(f"{s:g}" for s in self.scales)
        size = f"long side {self.long_side}, " if self.long_side else ""
        window = "whole image"
        if self.window is not None:
            window = f"windows {self.window[0]}x{self.window[1]} stride {self.stride_fraction:.3g}"
        return f"{size}{scales}{', flip' if self.flip else ''}, {window}"


@paddle.no_grad()
def class_scores(model: Model, image: np.ndarray, size: tuple[int, int], protocol: EvalProtocol) -> np.ndarray:
    """Scores whose argmax is the prediction: here the probabilities of the classes.

    Args:
        model: See `Model`; its logits have the size of what it is given.
        image: The normalised image.
        size: (height, width) of the result: the label's, or the image's own.
        protocol: Scales, mirror images and windows.

    Shapes: image float32 (1, 3, H, W) -> float32 (1, num_classes, *size), summing to 1 over the classes.
    """
    total = None
    for scale in protocol.scales:
        resized = _resize_image(image[0], _network_size(image.shape[2:], protocol.long_side, scale))
        total = _add(total, _at_size(model, resized, protocol), size)
    total /= np.float32(len(protocol.scales))
    return total[None]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along one axis begin: every `stride` pixels, the last one flush with the end.

    Together they cover all of 0..length - 1. `length` is at least `window`.
    """
    return [*range(0, length - window, stride), length - window]


def smallest_scale(size: tuple[int, int], protocol: EvalProtocol) -> float:
    """The smallest factor by which the network sees an image of (height, width); infinite where windows pad it."""
    if protocol.window is not None:
        return math.inf
    return min(protocol.scales) * (protocol.long_side or max(size)) / max(size)


def _network_size(size: tuple[int, int], long_side: int | None, scale: float) -> tuple[int, int]:
    """(height, width) of the image that the network sees windows of: the long side as wanted, the other rounded."""
    longest = max(size)
    wanted = round((long_side or longest) * scale)
    height, width = (max(1, int(side * wanted / longest + 0.5)) for side in size)
    return height, width


def _at_size(model: Model, image: np.ndarray, protocol: EvalProtocol) -> np.ndarray:
    """Float32 (3, H, W) -> probabilities (num_classes, H, W), averaged over windows and mirror images."""
    height, width = image.shape[1:]
    image = _pad(image, protocol.window or (0, 0))
    window = protocol.window or image.shape[1:]
    strides = [max(1, round(side * protocol.stride_fraction)) for side in window]
    tops, lefts = map(window_starts, image.shape[1:], window, strides)
    total = None
    for top in tops:
        for left in lefts:
            place = np.s_[:, top : top + window[0], left : left + window[1]]
            for probs in _passes(model, image[place], protocol.flip):
                if total is None:
                    total = np.zeros((len(probs), *image.shape[1:]), np.float32)
                total[place] += probs
    rows = _coverage(tops, window[0], image.shape[1])[:, None]  # (H, 1)
    columns = _coverage(lefts, window[1], image.shape[2])  # (W,)
    total /= rows * columns * np.float32(2 if protocol.flip else 1)
    return total[:, :height, :width]


def _add(total: np.ndarray | None, probs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Adds the probabilities (num_classes, H, W) of one scale, resized to `size`, to those of the scales before it."""
    if total is None:
        return probs if probs.shape[1:] == tuple(size) else np.stack([_resize(plane, size) for plane in probs])
    for plane, added in zip(total, probs, strict=True):  # by planes: no second array of (num_classes, *size)
        plane += _resize(added, size)
    return total


def _passes(model: Model, image: np.ndarray, flip: bool) -> Iterator[np.ndarray]:
    """The probabilities (num_classes, h, w) of one window, then those of its mirror image turned back."""
    images = paddle.to_tensor(np.ascontiguousarray(image[None]))  # (1, 3, h, w)
    yield _softmax(model(images))
    if flip:
        yield _softmax(model(images.flip(3)))[:, :, ::-1]


def _softmax(logits: paddle.Tensor) -> np.ndarray:
    """(1, num_classes, h, w) of any precision -> float32 (num_classes, h, w), computed where the logits are."""
    return F.softmax(logits.astype("float32"), axis=1)[0].numpy()


def _coverage(starts: list[int], window: int, length: int) -> np.ndarray:
    """Float32 (length,): how many windows hold each pixel of an axis."""
    count = np.zeros(length, np.float32)
    for start in starts:
        count[start : start + window] += 1
    return count


def _pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges (3, H, W) below and on the right to at least `size` with 0, the mean colour of normalised images."""
    missing = [max(0, wanted - there) for wanted, there in zip(size, image.shape[1:], strict=True)]
    return np.pad(image, ((0, 0), (0, missing[0]), (0, missing[1]))) if any(missing) else image


def _resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) -> (3, *size)."""
    if image.shape[1:] == size:
        return image
    return np.stack([_resize(plane, size) for plane in image])


def _resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Float32 (H, W) -> (*size), bilinear between pixel centres."""
    if plane.shape == tuple(size):
        return plane
    return cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
