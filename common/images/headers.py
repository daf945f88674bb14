"""What the first bytes of an image file say, read without decoding: kind, size, and what makes it no single image.

PNG, JPEG, BMP, TIFF and WebP are read; OpenCV knows more kinds, whose decoders nobody here needs.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from common.cli import UserError

MAX_PIXELS = 2**28
"""Images that claim more pixels are refused before anything is decoded (16384 x 16384)."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PALETTE = 3
_JPEG_START, _JPEG_SCAN = b"\xff\xd8", 0xDA
# Start-of-frame markers C0..CF carry the size; C4, C8 and CC are tables and reserved.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BMP_CORE = 12  # bytes of the oldest header, whose sides have 16 bits
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_COLOURS = 256, 257, 258, 262
_TIFF_ORIENTATION, _TIFF_CHANNELS, _TIFF_SAMPLES = 274, 277, 339
_TIFF_WHITE_IS_ZERO, _TIFF_PALETTE, _TIFF_CMYK = 0, 3, 5
_TIFF_FLOAT = 3
_BMP_HEADER = 14  # bytes of the file header, before the one whose length it gives
_TIFF_SHORT = 3
_WEBP_ANIMATION = 2


class ImageError(UserError):
    """An image file that cannot be used; `reason` is the message without the file's name."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self):
        # Exceptions are rebuilt from `args`, which holds the finished message only; worker processes need both parts.
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image say.

    Attributes:
        kind: "png", "jpeg", "bmp", "tiff" or "webp".
        size: (height, width) as stored; an EXIF orientation is not applied.
        bit_depth: Bits per sample; of a BMP, bits per pixel; 8 for WebP.
        palette: Whether pixels are indices into colours (PNG, BMP, TIFF).
        data_start: Offset of the first chunk (PNG), of the compressed scan (JPEG), of the palette (BMP), or of a TIFF's
            orientation (0: it has none).
        is_float: A TIFF of floating-point samples.
        white_is_zero: A TIFF of grey values that run from white.
    """

    kind: str
    size: tuple[int, int]
    bit_depth: int = 8
    palette: bool = False
    data_start: int = 0
    is_float: bool = False
    white_is_zero: bool = False


def parse_header(data: bytes, path: str | os.PathLike) -> ImageHeader:
    """Reads the kind and size of an image from its first bytes, without decoding.

    Args:
        data: The file, or enough of its beginning.
        path: The name for errors.

    Raises:
        ImageError: An empty file, another kind of file, a header that ends early, an animation, a TIFF of
            more channels than RGB, no pixels, or more than `MAX_PIXELS`.
    """
    if not data:
        raise ImageError(path, "the file is empty; copy it again")
    parse, kind = _parser(data)
    if parse is None:
        raise ImageError(path, "damaged or not an image (PNG, JPEG, BMP, TIFF and WebP are read); copy it again")
    try:
        header = parse(data, path)
    except struct.error:  # fewer bytes than a field has
        header = None
    if header is None:
        raise ImageError(path, f"truncated inside the {kind} header; copy it again")
    height, width = header.size
    if height * width == 0 or height * width > MAX_PIXELS:
        raise ImageError(
            path, f"the header claims {height}x{width} pixels (1 to {MAX_PIXELS} are read); make it smaller"
        )
    return header


def _parser(data: bytes):
    """The function that reads such a file's header, and the kind's name; (None, "") for another kind."""
    if data.startswith(_PNG_SIGNATURE):
        return _parse_png, "PNG"
    if data.startswith(_JPEG_START):
        return _parse_jpeg, "JPEG"
    if data.startswith(b"BM"):
        return _parse_bmp, "BMP"
    if data[:4] in _TIFF_ORDERS:
        return _parse_tiff, "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _parse_webp, "WebP"
    return None, ""


def _parse_png(data: bytes, path: str | os.PathLike) -> ImageHeader | None:
    if len(data) < 33 or data[12:16] != b"IHDR":
        return None
    width, height, bit_depth, color_type = struct.unpack(">IIBB", data[16:26])
    position = 33
    while position + 8 <= len(data) and data[position + 4 : position + 8] != b"IDAT":
        if data[position + 4 : position + 8] == b"acTL":
            raise ImageError(path, "an animation; save one of its frames as an image")
        (length,) = struct.unpack(">I", data[position : position + 4])
        position += 12 + length
    return ImageHeader("png", (height, width), bit_depth, color_type == _PNG_PALETTE, 33)


def _parse_jpeg(data: bytes, path: str | os.PathLike) -> ImageHeader | None:
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
    return ImageHeader("jpeg", tuple(size), bit_depth, False, position) if size else None


def _parse_bmp(data: bytes, path: str | os.PathLike) -> ImageHeader:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    is_core = header_bytes == _BMP_CORE
    width, height = struct.unpack_from("<HH" if is_core else "<ii", data, 18)
    (bits,) = struct.unpack_from("<H", data, 24 if is_core else 28)
    size = abs(height), abs(width)  # a negative height: rows from top to bottom
    return ImageHeader("bmp", size, bits, palette=bits <= 8, data_start=_BMP_HEADER + header_bytes)


def _parse_tiff(data: bytes, path: str | os.PathLike) -> ImageHeader | None:
    """Of the first image of a file of several."""
    order = _TIFF_ORDERS[data[:4]]
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    values, orientation = {}, 0
    for start in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, start)
        (values[tag],) = struct.unpack_from(f"{order}{'H' if kind == _TIFF_SHORT else 'I'}", data, start + 8)
        if tag == _TIFF_ORIENTATION:
            orientation = start + 8
    if _TIFF_WIDTH not in values or _TIFF_HEIGHT not in values:
        return None
    channels = values.get(_TIFF_CHANNELS, 1)
    if channels > 3 and values.get(_TIFF_COLOURS) != _TIFF_CMYK:  # OpenCV would multiply RGB by the fourth
        raise ImageError(path, f"{channels} channels in a TIFF; networks here see RGB: save those three as an image")
    bits, colours = values.get(_TIFF_BITS, 1), values.get(_TIFF_COLOURS)
    if channels > 2:  # one number per channel, elsewhere in the file
        (bits,) = struct.unpack_from(f"{order}H", data, bits) if bits + 2 <= len(data) else (8,)
    return ImageHeader(
        "tiff",
        (values[_TIFF_HEIGHT], values[_TIFF_WIDTH]),
        bit_depth=bits,
        palette=colours == _TIFF_PALETTE,
        data_start=orientation,
        is_float=channels == 1 and values.get(_TIFF_SAMPLES) == _TIFF_FLOAT,
        white_is_zero=channels == 1 and colours == _TIFF_WHITE_IS_ZERO,
    )


def _parse_webp(data: bytes, path: str | os.PathLike) -> ImageHeader | None:
    kind = data[12:16]
    if kind == b"VP8X":
        flags, *sides = struct.unpack_from("<B3xHBHB", data, 20)  # width - 1 and height - 1 of 24 bits each
        if flags & _WEBP_ANIMATION:
            raise ImageError(path, "an animation; save one of its frames as an image")
        width, height = (low + (high << 16) + 1 for low, high in (sides[:2], sides[2:]))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return ImageHeader("webp", (height, width))
