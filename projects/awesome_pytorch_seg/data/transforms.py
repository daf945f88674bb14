"""Training transforms on NumPy images: scale, cut, flip, colour jitter, blur, pad, normalise.

Images are uint8 RGB (H, W, 3), labels uint8 train ids (H, W); both always go through the same geometry. Every random
choice is drawn from the generator that is passed in.
"""

from __future__ import annotations

import math

from awesome_pytorch_seg.config import AugmentConfig, StageConfig
from common.labels import IGNORE

import cv2
import numpy as np


def augment(
    image: np.ndarray,
    label: np.ndarray,
    config: AugmentConfig,
    stage: StageConfig,
    fill: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its label, augmented. Returns both at `stage.crop_size`; `fill` is the colour of what is padded.

    The window is cut first and only it is resized, flipped and coloured: the same geometry for a fraction of the work.
    """
    low, high = stage.scales
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    if config.base_size is not None:
        scale *= config.base_size / min(label.shape)
    image, label = cut_and_resize(image, label, scale, stage.crop_size, rng)
    if rng.random() < config.flip_probability:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    if config.color_jitter > 0:
        image = jitter_color(image, *rng.uniform(1 - config.color_jitter, 1 + config.color_jitter, 3))
    if rng.random() < config.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), max(rng.random(), 1e-3))
    return pad(image, label, stage.crop_size, fill, rng)


def cut_and_resize(
    image: np.ndarray, label: np.ndarray, scale: float, crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window at a random place that becomes `crop_size` when resized by `scale`, and resizes it.

    Where the image ends before the window does, the result is smaller than `crop_size`.
    """
    parts, size = [], []
    for length, crop in zip(label.shape, crop_size, strict=True):
        window = min(length, max(1, round(crop / scale)))
        start = int(rng.integers(length - window + 1))
        parts.append(slice(start, start + window))
        size.append(crop if window < length else min(crop, max(1, round(length * scale))))
    return resize_pair(image[tuple(parts)], label[tuple(parts)], tuple(size))


def resize_pair(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes image and label to (height, width); the label by nearest neighbour.

    An image is halved by exact 2x2 means while it is twice as large or more, then resized bilinearly: close to area
    averaging, and several times as fast.
    """
    height, width = size
    if label.shape == (height, width):
        return image, label
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


# twin: stdc_seg/data/transforms.py
def jitter_color(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Multiplies brightness, then contrast (around the mean grey), then saturation (around each pixel's grey)."""
    image = cv2.convertScaleAbs(image, alpha=brightness)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean = round(float(grey.mean()))
    values = np.arange(256, dtype=np.float32) * contrast + mean * (1.0 - contrast)
    image = cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1.0 - saturation, 0.0)


def pad(
    image: np.ndarray,
    label: np.ndarray,
    crop_size: tuple[int, int],
    fill: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts what is smaller than `crop_size` at a random place in `fill` and ignored pixels."""
    border = []
    for length, crop in zip(label.shape, crop_size, strict=True):
        before = int(rng.integers(crop - length + 1))
        border += [before, crop - length - before]
    if any(border):
        image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=fill)
        label = cv2.copyMakeBorder(label, *border, cv2.BORDER_CONSTANT, value=IGNORE)
    return image, label


def centre_crop(image: np.ndarray, label: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Resizes image and label so that the shorter side is `side`, and cuts the square in the middle out of both.

    Reference: validation of the original (core/data/dataloader/segbase.py): sides rounded down, bilinear and nearest,
        the cut's corner rounded to even.
    """
    height, width = label.shape
    if width > height:
        size = (side, int(width * side / height))
    else:
        size = (int(height * side / width), side)
    image, label = resize_pair(image, label, size)
    top, left = (round((length - side) / 2) for length in size)
    window = slice(top, top + side), slice(left, left + side)
    return image[window], label[window]


def normalize(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Uint8 RGB (H, W, 3) -> float32 (3, H, W): scaled to 0..1, mean taken off, divided by std.

    Each channel has only 256 values, so they are looked up.
    """
    table = ((np.arange(256)[:, None] / 255.0 - np.asarray(mean)) / np.asarray(std)).astype(np.float32)  # (256, 3)
    result = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):
        cv2.LUT(cv2.extractChannel(image, channel), table[:, channel], result[channel])
    return result
