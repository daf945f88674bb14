"""Fetches a data set and unpacks it to where the list command finds it.

    python data/download.py pascal_voc        # also: pascal_aug ade20k coco sbu camvid
    python data/download.py citys             # says what to run with your account; lip: what to fetch with a browser
    python data/download.py coco --root /big/disk/coco
    python data/download.py pascal_voc --mirror http://files.example.org/voc     # the same archives from another place

A second call goes on where the first was stopped, and does nothing when all is there. Archives are removed once they
are unpacked (--keep-archives keeps them); archives that you put into ROOT/archives yourself are used and kept.

An archive is compared with the checksum that is published for it (`sources.py`). Where none is published, its sha256 is
printed and kept in ROOT/download_lock.json once it could be unpacked, and a later download must have the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from awesome_pytorch_seg.data.archives import unpack
from awesome_pytorch_seg.data.names import DATASETS, dataset_name
from awesome_pytorch_seg.data.sources import SOURCES, Archive, Source
from awesome_pytorch_seg.data.transfer import ResumingDownloader
from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write, sha256_of
from common.samples.roots import REPOSITORY

import pooch
from filelock import FileLock, Timeout

LOCK_FILE = "download_lock.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parse_args(argv)
    dataset = dataset_name(args.dataset)
    if dataset.name not in SOURCES:
        raise UserError(f"'{args.dataset}' is your own data, nothing to download; known are {', '.join(SOURCES)}")
    source = SOURCES[dataset.name]
    root = Path(args.root) if args.root else REPOSITORY / "data" / dataset.folder
    missing = [archive for archive in source.archives if not _is_there(archive, root)]
    if missing:
        print(f"{dataset.name}: by using it you agree to its terms: {source.terms}", flush=True)
        with _alone(root):
            for archive in missing:
                _fetch_and_unpack(archive, source, root, args.mirror, args.keep_archives)
    command = REPOSITORY / "common" / "create_dataset_list.py"
    print(f"{root}: complete. Next: python {_shown(command)} {dataset.layout} {_shown(root)}")
    return 0


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(__doc__, prog="download.py")
    names = ", ".join("/".join((dataset.name, *dataset.aliases)) for dataset in DATASETS if dataset.name in SOURCES)
    parser.add_argument("dataset", help=names)
    root_help = "root of the data set (default: its folder below data/ of the repository)"
    parser.add_argument("--root", "--download-dir", metavar="DIR", help=root_help)
    mirror_help = "take the archives from below this address (default: the makers')"
    parser.add_argument("--mirror", metavar="URL", help=mirror_help)
    parser.add_argument("--keep-archives", action="store_true", help="do not remove archives after unpacking")
    args = parser.parse_args(argv)
    if args.mirror and not args.mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror {args.mirror}: an address that begins with http:// or https:// is needed")
    return args


def _fetch_and_unpack(archive: Archive, source: Source, root: Path, mirror: str | None, keep: bool) -> None:
    path = root / "archives" / archive.file
    brought = path.exists()
    locked = _read_lock(root).get(archive.file)
    checksum = archive.checksum or (f"sha256:{locked}" if locked else None)
    addresses = (f"{mirror.rstrip('/')}/{archive.file}",) if mirror else archive.addresses
    if addresses:
        _retrieve(archive, addresses, checksum, path, root)
    elif not brought:
        absent = [other.file for other in source.archives if not (path.parent / other.file).exists()]
        raise UserError(source.by_hand.format(files=" ".join(absent), folder=path.parent))
    elif checksum and not pooch.hashes.hash_matches(path, checksum):
        raise UserError(f"{path}: not whole or not the published file ({checksum}): fetch it again or to its end")
    sha256 = None
    if checksum is None:
        sha256 = sha256_of(path)
        print(f"{archive.file}: nobody publishes a checksum; {path.stat().st_size} bytes, sha256 {sha256}", flush=True)
    unpack(path, archive.folders, root, archive.extras)
    if sha256:
        _write_lock(root, archive.file, sha256)
    if not brought and not keep:
        path.unlink()


def _retrieve(archive: Archive, addresses: Sequence[str], checksum: str | None, path: Path, root: Path) -> None:
    """Fetches an archive from the first of its addresses that has it."""
    pooch.get_logger().setLevel(logging.WARNING)  # what it would say is said here
    downloader = ResumingDownloader(path.with_name(f"{path.name}.part"), archive.num_bytes)
    for address in addresses:
        try:
            pooch.retrieve(address, checksum, path.name, path.parent, downloader=downloader)
            return
        except ValueError as error:  # a UserError of the downloader, or pooch's own: another checksum, file deleted
            if address != addresses[-1]:
                continue
            if isinstance(error, UserError):
                raise
            origin = "the published one" if archive.checksum else f"that of the first download in {root / LOCK_FILE}"
            raise UserError(
                f"{address}: not the right file, its checksum is not {checksum} ({origin}): it is deleted; run the "
                f"same command again, or name a copy with --mirror"
            ) from error


def _is_there(archive: Archive, root: Path) -> bool:
    return all((root / place).exists() for place in archive.folders.values())


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps a second download out of the same folder."""
    (root / "archives").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / "archives" / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{root}: another download is writing here: wait for it or name another --root") from None


def _read_lock(root: Path) -> dict[str, str]:
    path = root / LOCK_FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): delete it") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f"{path}: not archive names with checksums: delete it")
    return content


def _write_lock(root: Path, file: str, sha256: str) -> None:
    with atomic_write(root / LOCK_FILE) as stream:
        json.dump({**_read_lock(root), file: sha256}, stream, indent=2)


def _shown(path: Path) -> str:
    """Returns a path as one would type it here."""
    return min(str(path), os.path.relpath(path), key=len)


if __name__ == "__main__":
    run_command(main)
