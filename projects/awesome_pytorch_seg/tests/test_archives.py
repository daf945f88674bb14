"""Archives made to do harm, and unpacking that is interrupted."""

import io
import os
import shutil
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

from awesome_pytorch_seg.data import archives

import pytest
from awesome_remote import PLACES, SBU, assert_refused, files_below, publish, zip_of


def tar_of(*entries: tarfile.TarInfo, mode="w") -> bytes:
    """A tar of empty entries before the files that the data set wants."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"\0" * entry.size))
        for place in PLACES:
            archive.addfile(tar_entry(f"{place}/x"))
    return stream.getvalue()


def tar_entry(name, kind=tarfile.REGTYPE, target="", size=0):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, target, size
    return entry


def zip_with(name, data=b"", mode=0) -> bytes:
    """A zip with one odd entry among those that the data set wants; `mode` is its Unix file mode."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a duplicate name
        for place in PLACES:
            archive.writestr(f"{place}/x", b"good")
        entry = zipfile.ZipInfo(name)
        entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(entry, data)
    return stream.getvalue()


def zip_with_false_size(claimed) -> bytes:
    """A zip whose directory says `claimed` bytes where 4 are packed."""
    data = bytearray(zip_with("SBU-Test/odd", b"four"))
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = claimed.to_bytes(4, "little")
    return bytes(data)


def pax_bomb() -> bytes:
    """A gzipped tar whose first header asks for 100 MB of extended names."""
    head = tar_entry("pax", tarfile.XHDTYPE, size=100 * 2**20)
    return tar_of(head, mode="w:gz")


CRAFTED = {
    "zip ..": (zip_with("SBU-Test/../../evil", b"x"), "outside the target"),
    "zip absolute": (zip_with("/tmp/evil_awesome", b"x"), "outside the target"),
    "zip backslash": (zip_with("SBU-Test\\..\\..\\evil", b"x"), "outside the target"),
    "zip drive": (zip_with("C:/evil", b"x"), "outside the target"),
    "zip long name": (zip_with("SBU-Test/" + "n" * 300, b"x"), "is no name for a file"),
    "zip symlink": (zip_with("SBU-Test/link", b"/etc/passwd", stat.S_IFLNK | 0o777), "a link or a device"),
    "zip device": (zip_with("SBU-Test/null", b"", stat.S_IFCHR | 0o666), "a link or a device"),
    "zip duplicate": (zip_with("SBU-Test/x", b"other"), "'SBU-Test/x' is in it twice"),
    "zip file and folder": (zip_with("SBU-Test/x/y", b"z"), "'SBU-Test/x/y' is a file and a folder"),
    "zip bomb": (zip_with("SBU-Test/zeros", bytes(40 * 2**20)), "over 20 times its size"),
    "zip size too small": (zip_with_false_size(3), "damaged (Bad CRC-32"),
    "zip size too large": (zip_with_false_size(5), "damaged ('SBU-Test/odd' is not of the declared 5 bytes)"),
    "zip cut": (SBU[: len(SBU) // 2], "damaged (File is not a zip file)"),
    "zip of something else": (zip_of({"folder/file": b"x"}), "and no SBU-Test (it has folder): the wrong archive?"),
    "tar ..": (tar_of(tar_entry("../evil")), "outside the target"),
    "tar absolute": (tar_of(tar_entry("/tmp/evil_awesome")), "outside the target"),
    "tar symlink": (tar_of(tar_entry("SBU-Test/link", tarfile.SYMTYPE, "../..")), "a link or a device"),
    "tar hard link": (tar_of(tar_entry("SBU-Test/link", tarfile.LNKTYPE, "/etc/passwd")), "a link or a device"),
    "tar device": (tar_of(tar_entry("SBU-Test/null", tarfile.CHRTYPE)), "a link or a device"),
    "tar fifo": (tar_of(tar_entry("SBU-Test/pipe", tarfile.FIFOTYPE)), "a link or a device"),
    "tar duplicate": (tar_of(*[tar_entry("SBU-Test/y")] * 2), "'SBU-Test/y' is in it twice"),
    "tgz bomb": (tar_of(tar_entry("SBU-Test/zeros", size=40 * 2**20), mode="w:gz"), "over 20 times its size"),
    "tgz of many bombs": (
        tar_of(*[tar_entry(f"SBU-Test/{i}", size=2**20) for i in range(20)], mode="w:gz"),
        "over 20 times its size",
    ),
    "tgz header bomb": (pax_bomb(), "damaged (a header claims 104857600 bytes)"),
    "tgz cut": (tar_of(tar_entry("SBU-Test/y"), mode="w:gz")[:80], "damaged ("),
}


@pytest.mark.parametrize("kind", list(CRAFTED))
def test_crafted_archives_are_refused(get, remote, tmp_path, monkeypatch, kind):
    data, message = CRAFTED[kind]
    # The archive is served under a name without an ending, so that its content decides what it is.
    publish(monkeypatch, "sbu", file="archive")
    remote.files["archive"] = data
    assert_refused(get(), tmp_path, message)
    assert files_below(tmp_path / "root") == {"archives/archive"}
    assert not Path("/tmp/evil_awesome").exists()


def test_too_many_members(get, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    assert_refused(get(), tmp_path, "more than 3 files")


def test_a_full_disk_while_unpacking_leaves_nothing(get, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    calls = iter([shutil.disk_usage(tmp_path)])  # the first is the downloader's
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(calls, usage))
    assert_refused(get(), tmp_path, "0.0 GB below")


def test_a_kill_while_unpacking_is_mended_by_the_next_run(get, tmp_path, monkeypatch):
    rename, renamed = os.replace, []

    def dying(source, target):
        if ".unpacking" in str(source):
            renamed.append(target)
            if len(renamed) == 2:
                raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(archives.os, "replace", dying)
        assert get("sbu", "--keep-archives")[0] == 130
    root = tmp_path / "root"
    assert files_below(root) == {"SBU-Test/ShadowMasks/b.png", "archives/SBU-shadow.zip"}
    (root / ".unpacking_SBU-shadow.zip").mkdir()  # what a power cut leaves
    assert get()[0] == 0
    assert files_below(root) == {
        "SBU-Test/ShadowMasks/b.png",
        "SBUTrain4KRecoveredSmall/ShadowImages/a.jpg",
        "archives/SBU-shadow.zip",  # it was there before this run
        "download_lock.json",
    }
