"""Training transforms on NumPy images: scale, flip, pad, crop, blur, normalise.

Images are uint8 RGB (H, W, 3), labels uint8 train ids (H, W); both always go through the same geometry. Every random
choice is drawn from the generator that is passed in.

Reference: process_image in src/datasets/baseseg.py of the original (order, ranges, padding).
Deviation: OpenCV resizes (area averaging when shrinking, bilinear when enlarging) and blurs (a Gaussian) where the
original uses Pillow's antialiased bilinear and its box approximation of a Gaussian. The blur happens: the original
asks for it with the key DATAAUG.EXTRA but reads another one (DATAAUG_EXTRA), which is always empty.
"""

from __future__ import annotations

import math

from common.labels import IGNORE
from semsegpaddle_glore.config import AugmentConfig

import cv2
import numpy as np


def augment(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, flip, pad, crop and blur of one image and its label. Returns both at `config.crop_size`."""
    smallest, largest = int(config.base_size * config.scale_min), int(config.base_size * config.scale_max)
    short_side = int(rng.integers(smallest, largest + 1))
    image, label = resize_pair(image, label, size_for_short_side(label.shape, short_side))
    if rng.random() < config.flip_probability:
        image, label = image[:, ::-1], label[:, ::-1]
    image, label = pad_pair(image, label, config.crop_size)
    image, label = random_crop(image, label, config.crop_size, rng)
    if rng.random() < config.blur_probability:
        image = gaussian_blur(image, 1 - rng.random())
    return image, label


def augment_window(
    image: np.ndarray,
    label: np.ndarray,
    config: AugmentConfig,
    fill: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The same by awesome_pytorch_seg's rules, so that both projects learn from the same samples.

    The factor is drawn with its logarithm uniform; a window is cut first and only it is resized, flipped and blurred;
    what is missing is padded with the colour `fill` at a random place. A test of weights_convert compares the two.
    """
    scale = math.exp(rng.uniform(math.log(config.scale_min), math.log(config.scale_max)))
    scale *= config.base_size / min(label.shape)
    image, label = cut_and_resize(image, label, scale, config.crop_size, rng)
    if rng.random() < config.flip_probability:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    if rng.random() < config.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), max(rng.random(), 1e-3))
    border = []
    for length, crop in zip(label.shape, config.crop_size, strict=True):
        before = int(rng.integers(crop - length + 1))
        border += [before, crop - length - before]
    if any(border):
        image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=fill)
        label = cv2.copyMakeBorder(label, *border, cv2.BORDER_CONSTANT, value=IGNORE)
    return image, label


def cut_and_resize(
    image: np.ndarray, label: np.ndarray, scale: float, crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window at a random place that becomes `crop_size` when resized by `scale`, and resizes it.

    Where the image ends before the window does, the result is smaller than `crop_size`. An image is halved by means of
    2x2 while it is twice as large or more, then resized bilinearly.
    """
    parts, size = [], []
    for length, crop in zip(label.shape, crop_size, strict=True):
        window = min(length, max(1, round(crop / scale)))
        start = int(rng.integers(length - window + 1))
        parts.append(slice(start, start + window))
        size.append(crop if window < length else min(crop, max(1, round(length * scale))))
    image, label = image[tuple(parts)], label[tuple(parts)]
    height, width = size
    if label.shape == (height, width):
        return image, label
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def size_for_short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(height, width) with the short side as given and the other in proportion, rounded down."""
    height, width = size
    if height > width:
        return int(height / width * short_side), short_side
    return short_side, int(width / height * short_side)


def resize_pair(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes image and label to (height, width); the label by the nearest pixel centre.

    Both are centred: `cv2.INTER_NEAREST` would sample the label up to half an input pixel beside the image.
    """
    height, width = size
    if label.shape == (height, width):
        return image, label
    interpolation = cv2.INTER_AREA if height < label.shape[0] else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=interpolation)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def pad_pair(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Enlarges what is smaller than (height, width) on all sides: black in the image, ignored in the label."""
    missing = [max(0, wanted - there) for wanted, there in zip(size, label.shape, strict=True)]
    if not any(missing):
        return image, label
    (top, bottom), (left, right) = [(count // 2, count - count // 2) for count in missing]
    image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    label = cv2.copyMakeBorder(label, top, bottom, left, right, cv2.BORDER_CONSTANT, value=IGNORE)
    return image, label


def random_crop(
    image: np.ndarray, label: np.ndarray, crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window of `crop_size` at a random place."""
    top, left = (int(rng.integers(there - crop + 1)) for there, crop in zip(label.shape, crop_size, strict=True))
    window = np.s_[top : top + crop_size[0], left : left + crop_size[1]]
    return image[window], label[window]


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs with a Gaussian of standard deviation `sigma` in (0, 1] pixel."""
    return cv2.GaussianBlur(image, (7, 7), sigma)  # 7 pixels reach three standard deviations


def normalize(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Uint8 RGB (H, W, 3) -> float32 (3, H, W): scaled to 0..1, mean taken off, divided by std."""
    scale = 1.0 / (255.0 * np.asarray(std, dtype=np.float32))
    shift = np.asarray(mean, dtype=np.float32) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray((image * scale - shift).transpose(2, 0, 1), dtype=np.float32)
