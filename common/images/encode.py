"""Images and labels as the bytes of PNG and JPEG files; the same array always gives the same bytes."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np


def png_bytes(image: np.ndarray) -> bytes:
    """Returns a PNG of (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA uint8 data."""
    order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[image.ndim if image.ndim == 2 else image.shape[2]]
    image = image if order is None else cv2.cvtColor(image, order)
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def jpeg_bytes(image: np.ndarray) -> bytes:
    """Returns a JPEG of an (H, W, 3) uint8 RGB image."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def palette_png_bytes(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Returns a PNG whose pixels are indices into a palette (mode P), which OpenCV cannot write.

    Args:
        indices: (H, W) uint8.
        palette: (256, 3) uint8 RGB.
    """
    height, width = indices.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter, 0 = none
    rows[:, 1:] = indices
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
