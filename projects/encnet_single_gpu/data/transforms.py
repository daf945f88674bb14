"""Training transforms on NumPy images: colour jitter, flip, scale, rotation, blur, crop or pad, normalise.

Images are uint8 RGB (H, W, 3), labels uint8 train ids (H, W); both always go through the same geometry. Every random
choice is drawn from the generator that is passed in.
"""

from __future__ import annotations

from common.labels import IGNORE
from encnet_single_gpu.config import AugmentConfig

import cv2
import numpy as np


def augment(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, fill: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All training transforms of one image and its label. Returns both at `config.crop_size`.

    `fill` is the colour of what is padded or rotated in; its label is ignored.
    """
    if config.transforms == "semseg":
        return augment_as_semseg(image, label, config, fill, rng)
    image = jitter_color(image, *rng.uniform(1 - config.color_jitter, 1 + config.color_jitter, 3))
    if rng.random() < config.flip_probability:
        image, label = image[:, ::-1], label[:, ::-1]
    image, label = random_scale(image, label, config, rng)
    angle = rng.uniform(-config.rotation_degrees, config.rotation_degrees)
    image, label = rotate(image, label, angle, fill)
    if rng.random() < config.blur_probability:
        image = blur(image, rng.random())
    return random_crop(image, label, config.crop_size, fill, rng)


def augment_as_semseg(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, fill: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`augment` with the steps of PSPNet's author: scale, rotation of every second image, 5x5 blur, flip, crop.

    Reference: github hszhao/semseg, util/transform.py and tool/train.py.
    Deviation: labels are resized by the nearest pixel centre, where its OpenCV call picks the pixel above and left.
    """
    image = jitter_color(image, *rng.uniform(1 - config.color_jitter, 1 + config.color_jitter, 3))
    image, label = random_scale(image, label, config, rng, cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        angle = rng.uniform(-config.rotation_degrees, config.rotation_degrees)
        image, label = rotate(image, label, angle, fill)
    if rng.random() < config.blur_probability:
        image = cv2.GaussianBlur(image, (5, 5), 0)  # a standard deviation of 1.1 pixels
    if rng.random() < config.flip_probability:
        image, label = image[:, ::-1], label[:, ::-1]
    image, label = pad_both_sides(image, label, config.crop_size, fill)
    return random_crop(image, label, config.crop_size, fill, rng)


def pad_both_sides(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], fill: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts what is smaller than `size` in the middle of padding, the odd pixel below or to the right."""
    lacking = [max(wanted - length, 0) for wanted, length in zip(size, label.shape, strict=True)]
    border = [part for both in lacking for part in (both // 2, both - both // 2)]
    if any(border):
        image = cv2.copyMakeBorder(np.ascontiguousarray(image), *border, cv2.BORDER_CONSTANT, value=fill)
        label = cv2.copyMakeBorder(np.ascontiguousarray(label), *border, cv2.BORDER_CONSTANT, value=IGNORE)
    return image, label


def jitter_color(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Multiplies brightness, then contrast (around the mean grey), then saturation (around each pixel's grey)."""
    image = cv2.convertScaleAbs(image, alpha=brightness)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    values = np.arange(256, dtype=np.float32) * contrast + round(float(grey.mean())) * (1.0 - contrast)
    image = cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1.0 - saturation, 0.0)


def random_scale(
    image: np.ndarray,
    label: np.ndarray,
    config: AugmentConfig,
    rng: np.random.Generator,
    shrinking: int = cv2.INTER_AREA,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes so that the longer side is U[`scales`] times `base_size`, or times its own length."""
    height, width = label.shape
    scale = rng.uniform(*config.scales)
    if config.base_size is not None:
        scale *= config.base_size / max(height, width)
    return resize_pair(image, label, (max(1, round(height * scale)), max(1, round(width * scale))), shrinking)


def resize_pair(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], shrinking: int = cv2.INTER_AREA
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes image and label to (height, width); the label by nearest neighbour."""
    height, width = size
    if label.shape == (height, width):
        return image, label
    interpolation = shrinking if height < label.shape[0] else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
    label = cv2.resize(np.ascontiguousarray(label), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def rotate(
    image: np.ndarray, label: np.ndarray, degrees: float, fill: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Turns both around their centre, keeping their size; anticlockwise where `degrees` is positive."""
    if degrees == 0:
        return image, label
    height, width = label.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    image = cv2.warpAffine(
        np.ascontiguousarray(image), matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill
    )
    label = cv2.warpAffine(
        np.ascontiguousarray(label), matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE
    )
    return image, label


def blur(image: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian blur whose standard deviation is `radius` pixels."""
    return cv2.GaussianBlur(image, (0, 0), max(radius, 1e-3))


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
