"""Images with a seal: the digest of what they were drawn from, and of their own bytes.

A sealed PNG ends with a text chunk of two digests: of what it shows, and of its other bytes. So an image is drawn
again only where its content has changed, and is checked without drawing it, on whatever machine and library version.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

_KEY = b"segrepro-seal\0"
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def seal(png: bytes, source: str) -> bytes:
    """Adds the seal to a PNG that shows what has the digest `source` (64 hexadecimal digits)."""
    if not png.endswith(_END):
        raise ValueError("not a whole PNG")
    body = b"tEXt" + _KEY + source.encode() + hashlib.sha256(png).hexdigest().encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[: -len(_END)] + chunk + _END


def is_sealed(data: bytes, source: str) -> bool:
    """Whether `data` is what `seal` made for `source`, to the byte."""
    length = 12 + len(_KEY) + 128
    start = len(data) - len(_END) - length
    if start < 0 or not data.endswith(_END):
        return False
    return seal(data[:start] + _END, source) == data
