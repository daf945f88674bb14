"""Files: a name holds its old content or the whole new one, whatever happens meanwhile; folders are searched safely."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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


def files_below(folder: str | os.PathLike, broken_links: bool = False) -> Iterator[Path]:
    """The files below a folder, in the order of their paths; linked folders are followed, hidden ones are not.

    Hidden is what begins with a dot, such as `.ipynb_checkpoints` or macOS's `._a.png`, below the folder itself. A link
    to a folder that is being walked through already is not entered again. With `broken_links`, links to nothing count
    as files.

    Raises:
        OSError: The folder itself cannot be listed.
    """
    yield from _walk(Path(folder), broken_links, frozenset())


def _walk(folder: Path, broken_links: bool, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        return
    with os.scandir(folder) as listing:
        entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        try:
            if entry.is_dir():
                yield from _walk(Path(entry.path), broken_links, above | {here})
            elif entry.is_file() or (broken_links and entry.is_symlink()):
                yield Path(entry.path)
        except OSError:  # a link that leads to itself
            continue


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes at least one row, all with the keys of the first, whole or not at all."""
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
