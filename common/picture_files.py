"""Reading pictures and labels from files so that a damaged, oversized or palette file is noticed, not guessed at.

`cv2.imread` alone returns half a picture for a truncated JPEG, colours for a palette PNG, and believes any size that a
header claims; loaders that must not do so call `read_image` and `read_label`.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass

from common.cli import UserError

import cv2
import numpy as np

MAX_PIXELS = 2**28
"""Pictures that claim more pixels are refused before anything is decoded (16384 x 16384)."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY, _PNG_PALETTE = 0, 3
_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
# Start-of-frame markers C0..CF carry the size; C4, C8 and CC are tables and reserved.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class PictureError(UserError):
    """A picture file that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self):
        # Exceptions are rebuilt from `args`, which holds the finished message only; worker processes need both parts.
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class PictureHeader:
    """What the first bytes of a PNG or JPEG say.

    Attributes:
        kind: "png" or "jpeg".
        size: (height, width) as stored; an EXIF orientation is not applied.
        bit_depth: Bits per sample.
        palette: True for a PNG whose pixels are indices into colours.
        data_start: Offset of the first chunk (PNG) or of the compressed scan (JPEG).
    """

    kind: str
    size: tuple[int, int]
    bit_depth: int
    palette: bool
    data_start: int


def parse_header(data: bytes, path: str | os.PathLike) -> PictureHeader | None:
    """Reads the size of a PNG or JPEG from its first bytes, without decoding.

    Args:
        data: The file, or enough of its beginning.
        path: The name for errors.

    Returns:
        None for another format.

    Raises:
        PictureError: An empty file, a header that ends early, no pixels, or more than `MAX_PIXELS`.
    """
    if not data:
        raise PictureError(path, "the file is empty; copy it again")
    if data.startswith(_PNG_SIGNATURE):
        header = _parse_png(data, path)
    elif data.startswith(_JPEG_START):
        header = _parse_jpeg(data, path)
    else:
        return None
    height, width = header.size
    if height * width == 0 or height * width > MAX_PIXELS:
        raise PictureError(path, f"the header claims {height}x{width} pixels (1 to {MAX_PIXELS} are read)")
    return header


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns (height, width) of a picture; only the header of a PNG or JPEG is read, other formats are decoded.

    Raises:
        PictureError: See `parse_header` and `read_image`.
    """
    header_bytes = 2**16
    while True:
        data = _read_bytes(path, header_bytes)
        try:
            header = parse_header(data, path)
        except PictureError:
            if len(data) < header_bytes:
                raise
            header_bytes *= 16  # long EXIF or ICC segments may come before a JPEG's size
            continue
        return header.size if header else read_image(path).shape[:2]


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture as RGB, whole or not at all.

    An EXIF orientation is not applied: labels are drawn on the pixels as stored.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        PictureError: A file that is missing, truncated, too large or no picture.
    """
    return decode_image(_read_bytes(path), path)


def read_label(path: str | os.PathLike) -> np.ndarray:
    """Reads a label's values as stored; a palette PNG gives its indices.

    Returns:
        (height, width) uint8 or uint16, as the file has it; (height, width, channels) where the file has colours: the
        caller decides whether that is an error.

    Raises:
        PictureError: A file that is missing, truncated, too large or no picture.
    """
    return decode_label(_read_bytes(path), path)


def decode_image(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """Decodes the bytes of a picture to (height, width, 3) uint8, RGB; errors as `read_image`."""
    header = parse_header(data, path)
    _require_whole(data, header, path)
    return _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, path)


def decode_label(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """Decodes the bytes of a label; result and errors as `read_label`."""
    header = parse_header(data, path)
    _require_whole(data, header, path)
    if header and header.palette:
        indices = _decode(_palette_as_grey(data, path), cv2.IMREAD_UNCHANGED, path)
        # Grey samples of 1, 2 and 4 bits come back spread over 0..255.
        return indices // (255 // (2**header.bit_depth - 1))
    return _decode(data, cv2.IMREAD_UNCHANGED, path)


def _read_bytes(path: str | os.PathLike, count: int = -1) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except FileNotFoundError:
        raise PictureError(path, "there is no such file") from None
    except OSError as error:
        raise PictureError(path, f"cannot be read ({error.strerror})") from error


def _decode(data: bytes, flags: int, path: str | os.PathLike) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise PictureError(path, f"cannot be decoded ({error.err}); copy it again") from error
    if picture is None:
        raise PictureError(path, "damaged or not a picture; copy it again")
    return picture


def _require_whole(data: bytes, header: PictureHeader | None, path: str | os.PathLike) -> None:
    """Raises where the end of the compressed data is missing (OpenCV fills the rest of a JPEG with grey)."""
    if header and header.kind == "jpeg" and data.find(_JPEG_END, header.data_start) < 0:
        raise PictureError(path, "truncated: the file ends before its picture does; copy it again")
    if header and header.kind == "png" and data.rfind(b"IEND") < header.data_start:
        raise PictureError(path, "truncated: the file ends before its picture does; copy it again")


def _parse_png(data: bytes, path: str | os.PathLike) -> PictureHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise PictureError(path, "truncated inside the PNG header; copy it again")
    width, height, bit_depth, color_type = struct.unpack(">IIBB", data[16:26])
    return PictureHeader("png", (height, width), bit_depth, color_type == _PNG_PALETTE, 33)


def _parse_jpeg(data: bytes, path: str | os.PathLike) -> PictureHeader:
    size, bit_depth, position = None, 8, 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position += 2
            continue
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        if marker in _JPEG_FRAMES and position + 9 <= len(data):
            bit_depth, *size = struct.unpack(">BHH", data[position + 4 : position + 9])
        position += 2 + length
        if marker == _JPEG_SCAN:
            break
    if size is None:
        raise PictureError(path, "truncated inside the JPEG header; copy it again")
    return PictureHeader("jpeg", tuple(size), bit_depth, False, position)


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
    raise PictureError(path, "truncated: the file ends before its picture does; copy it again")
