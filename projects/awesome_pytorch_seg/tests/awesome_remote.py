"""A server on this machine that behaves as badly as real ones do, and the downloader run against it."""

import dataclasses
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from awesome_pytorch_seg.data import download
from awesome_pytorch_seg.data.sources import SOURCES
from common.cli import run_command

import numpy as np
import pytest

NOISE = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()  # does not compress


def zip_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


SBU = zip_of(
    {
        "SBU-shadow/SBUTrain4KRecoveredSmall/ShadowImages/a.jpg": NOISE,
        "SBU-shadow/SBU-Test/ShadowMasks/b.png": b"mask",
        "SBU-shadow/README": b"terms",
        "__MACOSX/SBU-Test/x": b"shadow of a name",
    }
)
PLACES = {"SBUTrain4KRecoveredSmall", "SBU-Test"}


class Remote:
    """A server on this machine. `answers` is what it does with the next requests, `log` their ranges and statuses."""

    def __init__(self):
        remote = self
        self.files: dict[str, bytes] = {}
        self.answers: list[str] = []
        self.log: list[tuple[str | None, int]] = []
        self.etag = '"1"'

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                remote.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request):
        kind, _, amount = (self.answers.pop(0) if self.answers else "whole").partition(" ")
        asked = request.headers.get("Range")
        data = self.files.get(request.path.lstrip("/"), b"")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        changed = request.headers.get("If-Range", self.etag) != self.etag
        status = 200 if not asked or changed or kind == "norange" else 206 if begin < len(data) else 416
        if kind.isdigit():
            status = int(kind)
        body = b"<!DOCTYPE html>log in" if kind == "html" else b"" if status >= 400 else data
        if status == 206:
            body = data[begin:]
        length = {"longer": len(body) + 10, "shorter": len(body) - 10}.get(kind, len(body))
        self.log.append((asked, status))
        request.send_response(status)
        request.send_header("Content-Type", "text/html" if kind == "html" else "application/octet-stream")
        request.send_header("ETag", self.etag)
        request.send_header("Connection", "close")
        if status in (206, 416):
            first = 0 if kind == "wrongrange" else begin
            span = f"{first}-{len(data) - 1}" if body else "*"
            request.send_header("Content-Range", f"bytes {span}/{len(data)}")
        if kind != "unsaid":
            request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(body[: int(amount)] if kind in ("break", "norange", "unsaid") and amount else body[:length])
        request.close_connection = True

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def runner(remote, tmp_path, capsys):
    """A function that runs `download.py DATASET --root tmp_path/root --mirror ...`: status, printed and error lines."""

    def run(dataset="sbu_shadow", *words):
        words = [dataset, "--root", str(tmp_path / "root"), "--mirror", remote.url, *words]
        with pytest.raises(SystemExit) as end:
            run_command(lambda: download.main(words))
        shown = capsys.readouterr()
        return end.value.code, shown.out.splitlines(), shown.err.splitlines()

    return run


def files_below(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {name for name in found if name != "archives/.lock"}


def publish(monkeypatch, dataset, **facts):
    """Gives the only archive of a data set another checksum or size."""
    (archive,) = SOURCES[dataset].archives
    source = dataclasses.replace(SOURCES[dataset], archives=(dataclasses.replace(archive, **facts),))
    monkeypatch.setitem(SOURCES, dataset, source)


def assert_refused(result, tmp_path, message):
    """Exit status 1, one line that says it, nothing under a final name, nothing outside of the root."""
    status, _, errors = result
    assert status == 1
    assert len(errors) == 1, errors
    assert message in errors[0]
    root = tmp_path / "root"
    assert {path.name for path in root.iterdir()} <= {"archives"}
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
