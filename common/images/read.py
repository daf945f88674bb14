"""Reading images and labels from files so that a damaged, oversized or palette file is noticed, not guessed at.

`cv2.imread` alone returns half an image for a truncated JPEG, colours for a palette PNG, the first frame of an
animation, and believes any size that a header claims; loaders that must not do so call `read_image` and `read_label`.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import warnings
import zlib
from typing import IO

from common.images.headers import MAX_PIXELS, ImageError, ImageHeader, parse_header

import cv2
import numpy as np
import PIL.Image

__all__ = [
    "IMAGE_SUFFIXES",
    "LABEL_SUFFIXES",
    "MAX_PIXELS",
    "ImageError",
    "decode_image",
    "decode_label",
    "read_image",
    "read_label",
    "read_size",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_PNG_GREY = 0
_JPEG_END = b"\xff\xd9"
UPRIGHT = 1  # of EXIF's and a TIFF's orientations
_EXIF_ORIENTATION = 274
SMALLEST_SIDE = 32
"""Smallest side in pixels of an image evaluated whole: the largest output stride of any network here."""


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns (height, width) of an image; only its header is read.

    Raises:
        ImageError: See `parse_header`.
    """
    header_bytes = 2**16
    while True:
        data = _read_bytes(path, header_bytes)
        try:
            return parse_header(data, path).size
        except ImageError:
            if len(data) < header_bytes:
                raise
            header_bytes *= 16  # long EXIF or ICC segments may come before a JPEG's size, pixels before a TIFF's


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image as RGB, whole or not at all.

    An EXIF orientation is not applied: labels are drawn on the pixels as stored. Of 16 bits the upper 8 count, alpha
    (PNG, WebP) does not, and of a TIFF of several pages the first does.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ImageError: A file that is missing, truncated, too large, an animation or no image.
    """
    return decode_image(_read_bytes(path), path)


def read_label(path: str | os.PathLike) -> np.ndarray:
    """Reads a label's values as stored; a palette file gives its indices, whatever colours they stand for.

    Returns:
        (height, width) of integers, as the file has them, uint8 up to 8 bits; (height, width, channels) where the file
        has colours: the caller decides whether that is an error.

    Raises:
        ImageError: A file that is missing, truncated, too large, an animation or no image, or a TIFF whose grey values
            run from white, so that a viewer shows other values than are stored.
    """
    return decode_label(_read_bytes(path), path)


def orientation(source: str | os.PathLike | IO[bytes]) -> int | None:
    """The EXIF orientation of an image (1: upright, 3: upside down, 6 and 8: on a side ...), None where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(source) as image:
                return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a damaged block of EXIF is none
        return None


def hardly_used_bits(data: bytes, path: str | os.PathLike) -> bool:
    """Whether an image of 16 bits holds values of 14 bits or less alone, such as a camera's 12: the upper 8 count."""
    header = parse_header(data, path)
    if header.bit_depth != 16:
        return False
    values = _decode(data, cv2.IMREAD_UNCHANGED, path)
    return values.dtype == np.uint16 and 255 < int(values.max()) < 2**14


def decode_image(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """Decodes the bytes of an image to (height, width, 3) uint8, RGB; errors as `read_image`."""
    header = parse_header(data, path)
    _require_whole(data, header, path)
    if header.is_float or header.bit_depth > 32 or (header.kind == "tiff" and header.bit_depth > 16):
        kind = "floating-point" if header.is_float else f"{header.bit_depth}-bit"
        raise ImageError(path, f"{kind} samples; networks here see 8 bits: scale them and save 8 or 16 bits")
    return _decode(_not_turned(data, header), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, path)


def decode_label(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """Decodes the bytes of a label; result and errors as `read_label`."""
    header = parse_header(data, path)
    _require_whole(data, header, path)
    if header.white_is_zero:
        raise ImageError(path, "a TIFF whose values run from white (WhiteIsZero); save it as PNG")
    if header.kind in ("bmp", "tiff") and (header.palette or header.bit_depth < 8):
        return _indices(data, header, path)
    data = _palette_as_grey(data, path) if header.palette else _not_turned(data, header)
    return _unspread(_decode(data, cv2.IMREAD_UNCHANGED, path), header)


def _unspread(label: np.ndarray, header: ImageHeader) -> np.ndarray:
    """Undoes that decoders spread grey samples of 1, 2 and 4 bits over 0..255."""
    return label // np.uint8(255 // (2**header.bit_depth - 1)) if header.bit_depth < 8 else label


def _indices(data: bytes, header: ImageHeader, path: str | os.PathLike) -> np.ndarray:
    """The stored values of a BMP or TIFF with a palette or of less than 8 bits, which OpenCV turns into colours."""
    if header.kind == "bmp":  # Pillow takes a palette of greys for values: it gets one that is none
        (pixels,) = struct.unpack_from("<I", data, 10)
        length = max(0, min(pixels - header.data_start, 4 * 2**header.bit_depth))
        colors = (bytes([1, 2, 3, 0]) * (length // 4 + 1))[:length]  # of 3 bytes each in the oldest files: no greys too
        data = data[: header.data_start] + colors + data[header.data_start + length :]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = PIL.Image.open(io.BytesIO(_not_turned(data, header)), formats=(header.kind,))
            values = np.asarray(image)
    except Exception as error:  # damaged files fail in many ways
        reason = " ".join(str(error).split())[:80]
        raise ImageError(path, f"damaged or not an image ({reason}); copy it again") from None
    if values.dtype == bool:
        return values.astype(np.uint8)
    return values.copy() if header.palette else _unspread(values, header)


def _read_bytes(path: str | os.PathLike, count: int = -1) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except FileNotFoundError:
        raise ImageError(path, "there is no such file") from None
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})") from error


def _decode(data: bytes, flags: int, path: str | os.PathLike) -> np.ndarray:
    _quieten_opencv()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(path, f"cannot be decoded ({error.err}); copy it again") from error
    if image is None:
        raise ImageError(path, "damaged or not an image; copy it again")
    return image


@functools.cache
def _quieten_opencv() -> None:
    """What OpenCV would log about a damaged file is said by the error here, with the file's name."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _require_whole(data: bytes, header: ImageHeader, path: str | os.PathLike) -> None:
    """Raises where the end of the compressed data is missing (OpenCV fills the rest of a JPEG with grey)."""
    is_cut = False
    if header.kind == "jpeg":
        is_cut = data.find(_JPEG_END, header.data_start) < 0
    elif header.kind == "png":
        is_cut = data.rfind(b"IEND") < header.data_start
    elif header.kind == "webp":
        is_cut = len(data) < 8 + struct.unpack("<I", data[4:8])[0]
    if is_cut:
        raise ImageError(path, "truncated: the file ends before its image does; copy it again")


def _not_turned(data: bytes, header: ImageHeader) -> bytes:
    """Returns the same image without a TIFF's orientation, which OpenCV applies whatever its flags say."""
    if header.kind != "tiff" or not header.data_start:
        return data
    upright = struct.pack("<H" if data.startswith(b"II") else ">H", UPRIGHT)
    return data[: header.data_start] + upright + data[header.data_start + len(upright) :]


def _palette_as_grey(data: bytes, path: str | os.PathLike) -> bytes:
    """Returns the same PNG as grey: the pixels are then the indices, which OpenCV would turn into colours."""
    header = bytearray(data[12:29])
    header[13] = _PNG_GREY
    parts = [data[:12], bytes(header), struct.pack(">I", zlib.crc32(header))]
    position = 33
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind = data[position + 4 : position + 8]
        if kind in (b"IDAT", b"IEND"):  # PLTE and tRNS have no meaning in a grey PNG
            parts.append(data[position : position + 12 + length])
        if kind == b"IEND":
            return b"".join(parts)
        position += 12 + length
    raise ImageError(path, "truncated: the file ends before its image does; copy it again")
