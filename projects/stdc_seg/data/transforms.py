"""Training transforms on NumPy images: colour jitter, flip, scale, crop, normalise.

Images are uint8 RGB (H, W, 3), labels uint8 train ids (H, W); both always go through the same geometry. Every random
choice is drawn from the generator that is passed in.

Reference: the official code's transform.py and cityscapes.py (order, ranges).
Deviation: OpenCV resizes (area averaging when shrinking, bilinear when enlarging) where the official code uses Pillow's
antialiased bilinear; an image smaller than the crop is enlarged until both sides fit (there, one side may not).
"""

from __future__ import annotations

from stdc_seg.config import AugmentConfig

import cv2
import numpy as np


def augment(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Jitter, flip, scale and crop of one image and its label. Returns both at `config.crop_size`."""
    image = jitter_color(image, *rng.uniform(1 - config.color_jitter, 1 + config.color_jitter, 3))
    if rng.random() < config.flip_probability:
        image, label = image[:, ::-1], label[:, ::-1]
    scale = config.scales[rng.integers(len(config.scales))]
    height, width = label.shape
    image, label = resize_pair(image, label, (max(1, int(height * scale)), max(1, int(width * scale))))
    return random_crop(image, label, config.crop_size, rng)


# twin: awesome_pytorch_seg/data/transforms.py
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
    """Resizes image and label to (height, width); the label by the nearest pixel centre.

    Both are centred: `cv2.INTER_NEAREST` would sample the label up to half an input pixel beside the image.
    """
    height, width = size
    if label.shape == (height, width):
        return image, label
    shrinks = height < label.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
    label = cv2.resize(np.ascontiguousarray(label), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def random_crop(
    image: np.ndarray, label: np.ndarray, crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window of `crop_size` at a random place, enlarging first what is too small."""
    crop_height, crop_width = crop_size
    height, width = label.shape
    if height < crop_height or width < crop_width:
        scale = max(crop_height / height, crop_width / width)
        size = (max(crop_height, round(height * scale)), max(crop_width, round(width * scale)))
        image, label = resize_pair(image, label, size)
        height, width = label.shape
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    window = np.s_[top : top + crop_height, left : left + crop_width]
    return image[window], label[window]


def normalize(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Uint8 RGB (H, W, 3) -> float32 (3, H, W): scaled to 0..1, mean taken off, divided by std."""
    scale = 1.0 / (255.0 * np.asarray(std, dtype=np.float32))
    shift = np.asarray(mean, dtype=np.float32) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray((image * scale - shift).transpose(2, 0, 1), dtype=np.float32)
