"""Fetching one file over HTTP so that a broken transfer goes on where it stopped, within a run and in the next one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from common.cli import UserError
from common.progress import Progress

import requests

_TIMEOUT_S = (30, 60)  # to connect (the VOC host takes its time), and between two chunks
_CHUNK = 2**14  # a break loses what of its chunk had arrived
_MAGIC = {".zip": (b"PK",), ".tgz": (b"\x1f\x8b",), ".gz": (b"\x1f\x8b",)}


class _Broken(Exception):
    """A transfer that may be tried again."""


class ResumingDownloader:
    """A downloader for pooch, which calls it with the address and the file to write.

    What arrives is collected in a `.part` file that outlives failures and is renamed only when it is whole. Another try
    asks for the rest (HTTP Range); where the server sends the whole instead, or its file has changed since (If-Range),
    it is taken from the start again.

    Args:
        part: The file to collect in; it must be on the same disk as what pooch asks for.
        num_bytes: The published size, if there is one; a server that announces another is refused before the transfer.
        attempts: So many tries in a row that bring nothing new end it.
        wait_s: Seconds before the second try; each further one waits twice as long.

    Raises:
        UserError: The server has no such file, sends a web page or another size, breaks off too often, or there is no
            room. What has arrived is kept for the next run where that makes sense.
    """

    def __init__(self, part: Path, num_bytes: int | None = None, attempts: int = 5, wait_s: float = 1.0):
        self.part = part
        self.validator = part.with_name(f"{part.name}.etag")  # which version of the remote file the part is of
        self.num_bytes = num_bytes
        self.attempts = attempts
        self.wait_s = wait_s

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        """Fetches `url` into `output_file`."""
        failures, furthest = 0, self._size()
        while True:
            try:
                self._transfer(url)
                break
            except (_Broken, requests.RequestException) as error:
                failures = 0 if self._size() > furthest else failures + 1
                furthest = max(furthest, self._size())
                if failures == self.attempts:
                    raise UserError(
                        f"{url}: gave up after {failures} tries without progress, {furthest} bytes are here "
                        f"({_short(error)}): run the same command again to go on, or name a copy with --mirror"
                    ) from error
                time.sleep(self.wait_s * 2 ** max(0, failures - 1))
        self._require_archive(url)
        self.validator.unlink(missing_ok=True)
        os.replace(self.part, output_file)

    def _transfer(self, url: str) -> None:
        """One request. Returns when the part is whole; raises `_Broken` or a `RequestException` where it is not."""
        have = self._size()
        headers = {"Accept-Encoding": "identity"}  # sizes and ranges are those of the file itself
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.validator.exists():
                headers["If-Range"] = self.validator.read_text()
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            start, total = self._read_head(url, response, have)
            if 0 < start == total:
                return
            self._require_room(start, total)
            if start == 0:
                self._remember_version(response)
            with (
                open(self.part, "ab" if start else "wb") as stream,
                Progress(total, f"download {self.part.stem}", "B", done=start) as bar,
            ):
                for chunk in response.iter_content(_CHUNK):
                    stream.write(chunk)
                    bar.update(len(chunk))
        if total is not None and self._size() != total:
            raise _Broken(f"ended at {self._size()} of {total} bytes")

    def _read_head(self, url: str, response: requests.Response, have: int) -> tuple[int, int | None]:
        """Returns where the answer begins in the file, and the file's size if the server says it."""
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise _Broken(f"the server answers {status} {response.reason}")
        begin, total = _content_range(response.headers.get("Content-Range", ""))
        if status == 416 and have and total == have:
            return have, have
        if status == 416 or (status == 206 and begin != have):
            self.part.unlink(missing_ok=True)
            raise _Broken("the server cannot go on where the transfer broke off")
        if status not in (200, 206):
            raise UserError(
                f"{url}: the server answers {status} {response.reason}: has it moved? name a copy with --mirror"
            )
        if "text/html" in response.headers.get("Content-Type", ""):
            raise UserError(f"{url}: a web page came instead of the archive: open it in a browser to see what it wants")
        begin = begin if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        if total is None and length.isdigit():
            total = begin + int(length)
        if total is not None and self.num_bytes is not None and total != self.num_bytes:
            raise UserError(f"{url}: the server announces {total} bytes, {self.num_bytes} are published: not this file")
        return begin, total

    def _remember_version(self, response: requests.Response) -> None:
        tag = response.headers.get("ETag", "")
        strong = tag if not tag.startswith("W/") else ""  # weak ones may not be used with If-Range (RFC 9110, 13.1.5)
        version = strong or response.headers.get("Last-Modified", "")
        self.validator.unlink(missing_ok=True)
        if version:
            self.validator.write_text(version)

    def _require_room(self, start: int, total: int | None) -> None:
        """Images hardly compress: the archive and what is in it take about the archive's size each."""
        if total is None:
            return
        needed, free = 2 * total - start, shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"{self.part.parent}: needs about {needed / 1e9:.1f} GB for the archive and its contents, "
                f"{free / 1e9:.1f} are free: choose another --root"
            )

    def _require_archive(self, url: str) -> None:
        """Refuses what cannot be the archive: a cut or another file under its name."""
        size = self._size()
        with open(self.part, "rb") as stream:
            begin = stream.read(4)
        kinds = _MAGIC.get(Path(self.part.stem).suffix, ())
        wrong = kinds and not begin.startswith(kinds)
        if wrong or (self.num_bytes is not None and size != self.num_bytes):
            self.part.unlink()
            self.validator.unlink(missing_ok=True)
            what = f"begins with {begin!r}" if wrong else f"{self.num_bytes} are published"
            raise UserError(f"{url}: not the archive: {size} bytes came, {what}; name a copy with --mirror")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0


def _content_range(header: str) -> tuple[int, int | None]:
    """Reads "bytes 5-9/10" as (5, 10) and "bytes */10" as (0, 10); what it does not say is 0 or None."""
    span, _, total = header.removeprefix("bytes").strip().partition("/")
    begin = span.partition("-")[0]
    return int(begin) if begin.isdigit() else 0, int(total) if total.isdigit() else None


def _short(error: Exception) -> str:
    return str(error).split("\n")[0][:200]
