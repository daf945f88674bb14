"""Training transforms on NumPy images: scale, flip, pad, crop, blur, normalise.

Images are uint8 RGB (H, W, 3), labels uint8 train ids (H, W); both always go through the same geometry. Every random
choice is drawn from the generator that is passed in.

Reference: process_image in src/datasets/baseseg.py of the original (order, ranges, padding).
Deviation: OpenCV resizes (area averaging when shrinking, bilinear when enlarging) and blurs (a Gaussian) where the
original uses Pillow's antialiased bilinear and its box approximation of a Gaussian. The blur happens: the original
asks for it with the key DATAAUG.EXTRA but reads another one (DATAAUG_EXTRA), which is always empty.
"""

from __future__ import annotations

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
