"""Writing files so that a name either holds the old content or the whole new one, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` and renames it over `path` once the block has ended well.

    The content is on the disk (fsync) before the rename. If the block raises, the temporary file is removed and
    `path` is what it was. Text is UTF-8 with Unix line ends.

    Args:
        path: The final name. Its folder is made if missing.
        mode: "w" for text, "wb" for bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(folder: str | os.PathLike) -> Iterator[Path]:
    """The files below a folder, in the order of their paths; linked folders are followed, hidden ones are not.

    Hidden is what begins with a dot, such as `.ipynb_checkpoints` or macOS's `._a.png`, below the folder itself. A link
    to a folder that is being walked through already is not entered again.

    Raises:
        OSError: The folder itself cannot be listed.
    """
    yield from _walk(Path(folder), frozenset())


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        return
    with os.scandir(folder) as listing:
        entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        try:
            if entry.is_dir():
                yield from _walk(Path(entry.path), above | {here})
            elif entry.is_file():
                yield Path(entry.path)
        except OSError:  # a link that leads to itself
            continue
