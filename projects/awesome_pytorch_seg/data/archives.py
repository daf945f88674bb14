"""Unpacking archives from elsewhere: nothing lands outside the target, and nothing half unpacked under a final name.

The whole list of contents is checked before the first byte is written: names, links, devices, number, declared sizes.
What is wanted is unpacked into a temporary folder beside its place and renamed when it is whole.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from common.cli import UserError
from common.progress import Progress

MAX_MEMBERS = 1_000_000
"""The largest supported set (COCO) has 123 000 files."""

MAX_RATIO = 20
"""Unpacked against packed bytes; images reach 1.1, polygons in JSON 5."""

FREE_BYTES = 16 * 2**20
"""Archives whose contents are smaller are not measured by `MAX_RATIO`."""

_CHUNK = 2**20
# What zipfile, tarfile and the decompressors raise for broken files.
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error),
    *(EOFError, ValueError, NotImplementedError),
)


class Member(NamedTuple):
    """A file or folder of an archive: its checked path, size in bytes, and the library's own entry."""

    path: PurePosixPath
    num_bytes: int
    is_folder: bool
    entry: zipfile.ZipInfo | tarfile.TarInfo


def unpack(
    archive: Path, folders: Mapping[str, str], root: Path, extras: Mapping[str, str] | None = None, depth: int = 0
) -> None:
    """Takes folders (or files) out of a zip, tar or tar.gz archive.

    Each is written to `root/.unpacking_<archive>` first and renamed to its place when all of them are whole and on the
    disk. A place that is taken already is left as it is.

    Args:
        archive: The file; what it is, its first bytes say.
        folders: How a path in the archive ends -> its place below `root`. Of several matches the least deep counts.
        root: Everything stays below it.
        extras: The same for what may be missing.
        depth: How many archives this one was inside of: one that holds nothing but another of its name (as some cloud
            drives pack) is unpacked through, once.

    Raises:
        UserError: A damaged archive, one without the folders, one that would write outside its target or holds links or
            devices, one larger than `MAX_MEMBERS`, `MAX_RATIO` or the free space.
    """
    temporary = root / f".unpacking_{'inner_' * depth}{archive.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _readable(archive) as (opened, members):
            inner = [member for member in members if member.path.name == archive.name and not member.is_folder]
            bases = _bases(members, folders)
            nested = len(bases) < len(folders) and len(inner) == 1 and depth == 0
            if nested:
                wanted = [(inner[0], PurePosixPath(archive.name))]
            else:
                _require_all(archive, members, folders, bases)
                targets = {**folders, **(extras or {})}
                bases |= _bases(members, extras or {})
                wanted = _placed(members, {bases[tail]: targets[tail] for tail in bases})
            _write_all(archive, opened, wanted, temporary)
        if nested:
            unpack(temporary / archive.name, folders, root, extras, depth=1)
        else:
            os.sync()  # a power cut after the renames must not leave empty files under final names
            _rename_all(temporary, {targets[tail] for tail in bases}, root)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{archive}: damaged ({error}): delete it and run the same command again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _readable(archive: Path) -> Iterator[tuple[zipfile.ZipFile | tarfile.TarFile, list[Member]]]:
    """Opens an archive and yields it with its checked members."""
    with open(archive, "rb") as stream:
        begin = stream.read(4)
        stream.seek(0)
        limit = MAX_RATIO * archive.stat().st_size + FREE_BYTES
        if begin[:2] == b"PK":
            with zipfile.ZipFile(stream) as opened:
                yield opened, _checked(archive, map(_zip_member, opened.infolist()), limit)
        else:
            plain = gzip.GzipFile(fileobj=stream) if begin[:2] == b"\x1f\x8b" else stream
            with tarfile.open(fileobj=_SmallReads(plain), mode="r:") as opened:
                yield opened, _checked(archive, map(_tar_member, opened), limit)


class _SmallReads(io.RawIOBase):
    """A stream that refuses to read much at once: only the crafted length of a tar header asks for that."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _zip_member(entry: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"'{entry.filename}' is a link or a device")
    if entry.flag_bits & 1:
        raise UserError(f"'{entry.filename}' is encrypted")
    return Member(_safe_path(entry.filename), entry.file_size, entry.filename.endswith(("/", "\\")), entry)


def _tar_member(entry: tarfile.TarInfo) -> Member:
    if not (entry.isreg() or entry.isdir()):
        raise UserError(f"'{entry.name}' is a link or a device")
    return Member(_safe_path(entry.name), entry.size, entry.isdir(), entry)


def _safe_path(name: str) -> PurePosixPath:
    """Returns a member's name as a relative path without "..", on every system."""
    path = PurePosixPath(name.replace("\\", "/"))  # Windows takes both for separators
    bad_part = any(part == ".." or ":" in part or "\0" in part or len(os.fsencode(part)) > 255 for part in path.parts)
    if path.is_absolute() or bad_part:
        raise UserError(f"'{name[:100]}' would be written outside the target, or is no name for a file")
    return path


def _checked(archive: Path, members: Iterator[Member], limit: int) -> list[Member]:
    """Returns all members, once their names, number and declared sizes are found harmless."""
    found, files, total = [], set(), 0
    try:
        for member in members:
            total += member.num_bytes
            if len(found) >= MAX_MEMBERS:
                raise UserError(f"more than {MAX_MEMBERS} files")
            if total > limit:
                raise UserError(f"it would grow to more than {limit} bytes, over {MAX_RATIO} times its size")
            if not member.is_folder:
                if member.path in files:
                    raise UserError(f"'{member.path}' is in it twice")
                files.add(member.path)
            found.append(member)
        for member in found:
            if not files.isdisjoint(member.path.parents) or (member.is_folder and member.path in files):
                raise UserError(f"'{member.path}' is a file and a folder")
    except UserError as error:
        raise UserError(f"{archive}: not unpacked: {error}; do not trust where it comes from") from error
    return found


def _bases(members: list[Member], tails: Mapping[str, str]) -> dict[str, PurePosixPath]:
    """Finds where each tail lies in the archive: the least deep path that ends so."""
    bases: dict[str, PurePosixPath] = {}
    wanted = {tail: PurePosixPath(tail).parts for tail in tails}
    for member in members:
        parts = member.path.parts
        if parts[:1] == ("__MACOSX",):  # shadows of the real names, from the Mac's archiver
            continue
        for tail, end in wanted.items():
            for start in range(len(parts) - len(end) + 1):
                if parts[start : start + len(end)] == end:
                    base = PurePosixPath(*parts[: start + len(end)])
                    if tail not in bases or len(base.parts) < len(bases[tail].parts):
                        bases[tail] = base
                    break
    return bases


def _require_all(archive: Path, members: list[Member], folders: Mapping[str, str], bases: Mapping) -> None:
    missing = [tail for tail in folders if tail not in bases]
    if missing:
        top = sorted({member.path.parts[0] for member in members if member.path.parts})
        shown = ", ".join(top[:5]) + (" ..." if len(top) > 5 else "")
        raise UserError(
            f"{archive}: has no {' and no '.join(missing)} (it has {shown or 'nothing'}): the wrong archive?"
        )


def _placed(members: list[Member], places: Mapping[PurePosixPath, str]) -> list[tuple[Member, PurePosixPath]]:
    """Returns the members below the places' paths, each with where it goes."""
    placed = []
    for member in members:
        for above in (member.path, *member.path.parents):
            if above in places:
                placed.append((member, PurePosixPath(places[above]) / member.path.relative_to(above)))
                break
    return placed


def _write_all(
    archive: Path,
    opened: zipfile.ZipFile | tarfile.TarFile,
    wanted: list[tuple[Member, PurePosixPath]],
    temporary: Path,
) -> None:
    """Writes members below the temporary folder; none may differ from its declared size."""
    num_bytes = sum(member.num_bytes for member, _ in wanted)
    temporary.mkdir(parents=True)
    free = shutil.disk_usage(temporary).free
    if num_bytes > free:
        raise UserError(
            f"{archive}: needs {num_bytes / 1e9:.1f} GB below {temporary.parent}, {free / 1e9:.1f} are free"
        )
    with Progress(num_bytes, f"unpack {archive.name}", "B") as bar:
        for member, place in wanted:
            target = temporary / place
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            is_zip = isinstance(opened, zipfile.ZipFile)
            source = opened.open(member.entry) if is_zip else opened.extractfile(member.entry)
            written = 0
            with source, open(target, "xb") as stream:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > member.num_bytes:
                        break
                    stream.write(chunk)
                    bar.update(len(chunk))
            if written != member.num_bytes:
                raise EOFError(f"'{member.path}' is not of the declared {member.num_bytes} bytes")


def _rename_all(temporary: Path, places: set[str], root: Path) -> None:
    for place in sorted(places):
        if not (root / place).exists():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / place, root / place)
