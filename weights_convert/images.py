"""The real image of the proof."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.images.read import IMAGE_SUFFIXES, read_image
from common.toy_dataset import write_toy_dataset

import cv2
import numpy as np

PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "camvid" / "val"


def real_image(path: Path | None) -> tuple[np.ndarray, str]:
    """Returns an image, uint8 (H, W, 3) RGB, and what it is.

    The one in `path`; else a photograph of CamVid, where data/camvid is there; else one drawn by common.toy_dataset.

    Raises:
        UserError: `path` cannot be read.
    """
    if path is not None:
        return read_image(path), f"photograph {path.name}, given"
    photographs = sorted(path for path in PHOTOGRAPHS.glob("*") if path.suffix in IMAGE_SUFFIXES)
    if photographs:
        return read_image(photographs[0]), f"photograph {photographs[0].name} of CamVid"
    with tempfile.TemporaryDirectory() as folder:
        root = write_toy_dataset("custom", Path(folder) / "toy", num_train=1, num_val=1, size=(256, 384))
        return read_image(
            min((root / "images" / "val").iterdir())
        ), "drawn by common.toy_dataset (no photograph in data/camvid)"


def normalised(image: np.ndarray, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Returns the image at `size` as a network's input: float32 (1, 3, H, W)."""
    height, width = size
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    values = (resized.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])  # (H, W, 3) -> (1, 3, H, W)
