"""Training transforms on NumPy pictures: colour jitter, flip, scale, crop or pad, normalise.

Pictures are uint8 RGB (H, W, 3), labels uint8 train ids (H, W); both always go through the same geometry. Every random
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
    """Jitter, flip, scale and crop of one picture and its label. Returns both at `stage.crop_size`.

    `fill` is the colour of what is padded.
    """
    image = jitter_color(image, *rng.uniform(1 - config.color_jitter, 1 + config.color_jitter, 3))
    if rng.random() < config.flip_probability:
        image, label = image[:, ::-1], label[:, ::-1]
    low, high = stage.scales
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    height, width = label.shape
    image, label = resize_pair(image, label, (max(1, round(height * scale)), max(1, round(width * scale))))
    return random_crop(image, label, stage.crop_size, fill, rng)


def jitter_color(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Multiplies brightness, then contrast (around the mean grey), then saturation (around each pixel's grey)."""
    image = cv2.convertScaleAbs(image, alpha=brightness)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean = round(float(grey.mean()))
    values = np.arange(256, dtype=np.float32) * contrast + mean * (1.0 - contrast)
    image = cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1.0 - saturation, 0.0)


def resize_pair(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes picture and label to (height, width); the label by nearest neighbour."""
    height, width = size
    if label.shape == (height, width):
        return image, label
    interpolation = cv2.INTER_AREA if height < label.shape[0] else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
    label = cv2.resize(np.ascontiguousarray(label), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def random_crop(
    image: np.ndarray,
    label: np.ndarray,
    crop_size: tuple[int, int],
    fill: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window of `crop_size` at a random place; what is too small is put at a random place in padding."""
    crop_height, crop_width = crop_size
    height, width = label.shape
    top = int(rng.integers(abs(height - crop_height) + 1))
    left = int(rng.integers(abs(width - crop_width) + 1))
    rows = slice(top, top + crop_height) if height > crop_height else slice(None)
    columns = slice(left, left + crop_width) if width > crop_width else slice(None)
    image, label = image[rows, columns], label[rows, columns]
    height, width = label.shape
    above, before = (top if height < crop_height else 0), (left if width < crop_width else 0)
    border = (above, crop_height - height - above, before, crop_width - width - before)
    if any(border):
        image = cv2.copyMakeBorder(np.ascontiguousarray(image), *border, cv2.BORDER_CONSTANT, value=fill)
        label = cv2.copyMakeBorder(np.ascontiguousarray(label), *border, cv2.BORDER_CONSTANT, value=IGNORE)
    return image, label


def normalize(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Uint8 RGB (H, W, 3) -> float32 (3, H, W): scaled to 0..1, mean taken off, divided by std."""
    scale = 1.0 / (255.0 * np.asarray(std, dtype=np.float32))
    shift = np.asarray(mean, dtype=np.float32) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray((image * scale - shift).transpose(2, 0, 1), dtype=np.float32)
