"""A disk that fills up: a small tmpfs, where the kernel itself says that there is no space.

Each command ends with one line, leaves no half file behind, and what was whole before is whole still.
"""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from common.lists.list_file import read_list
from common.toy_dataset import write_toy_dataset

import pytest
from targets import RESUMABLE, TARGETS, Command, below, call, checkpoint, finished_run_in, run, write_data
from testkit import CLASSES, error_line, numbers, run_folder

ZOO = TARGETS[-1]
# Stands for measure.py: a cell's numbers in three pages.
CELL = """
import json, sys
from common.cli import run_command
from common.files import atomic_write
def main():
    result = {"step_ms": [100.0], "load_ms": [1.0], "losses": [3.0], "loss_scales": [None], "skipped_steps": 0}
    result |= {"parameters": 7, "evaluation_ms": 1.0, "evaluation_miou_percent": 2.0, "memory_at_start_gib": 0.5}
    result |= {"peak_memory_gib": 1.0, "memory_kind": "rss", "padding": "x" * 10_000}
    with atomic_write(sys.argv[1]) as stream:
        json.dump(result, stream)
run_command(main)
"""
FULL = "no space left on the device while writing"


@contextmanager
def mounted(folder, size):
    """An empty tmpfs of so many bytes on `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"a disk can be mounted by root alone ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder, leave=0):
    """Fills a disk up to its last page, or `leave` bytes."""
    (folder / "rest").write_bytes(bytes(leave))
    with open(folder / "filler", "wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            pass
    (folder / "rest").unlink()


def assert_no_litter(folder):
    assert not [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


# --- training, evaluation --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_training(target, tmp_path, tried):
    """The second last.safetensors finds no room; with room again the run ends with the digits of an undisturbed one."""
    tried("full disk at a checkpoint: one line, the last checkpoint whole, resumed to the same digits", target.name)
    data = write_data(tmp_path / "data")
    every = (*target.key("train.eval_every", 4), *target.key("train.checkpoint_every", 1))
    whole = run(target.train(data, tmp_path / "whole", 4, *every))
    assert whole.returncode == 0, whole.stderr
    reference = run_folder(tmp_path / "whole")
    size = (reference / "last.safetensors").stat().st_size
    with mounted(tmp_path / "disk", size + size // 2) as disk:
        line = error_line(run(target.train(data, disk, 4, *every)))
        assert FULL in line and "last.safetensors" in line
        folder = run_folder(disk)
        checkpoint(folder / "last.safetensors")  # reads it whole
        assert_no_litter(disk)
        resize(disk, 6 * size)
        again = run(target.train(data, disk, 4, *every, "--resume", "latest"))
        assert again.returncode == 0, again.stderr
        assert "at step 1 of 4" in again.stdout
        assert numbers(folder) == numbers(reference)
        assert checkpoint(folder / "last.safetensors") == checkpoint(reference / "last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_evaluation_and_a_first_step_without_room(target, tmp_path, tried):
    tried("full disk: eval.py and the start of train.py end with one line", target.name, 3)
    data = write_data(tmp_path / "data")
    assert run(target.train(data, tmp_path / "out", 1)).returncode == 0
    weights = run_folder(tmp_path / "out") / "best.safetensors"
    with mounted(tmp_path / "disk", 2**20) as disk:
        fill(disk, 4096)  # a page: the first table has room, the second not
        line = error_line(run(target.eval(weights, data, disk / "eval")))
        assert FULL in line and "per_class.csv" in line
        (disk / "filler").unlink()
        again = run(target.eval(weights, data, disk / "eval"))
        assert again.returncode == 0, again.stderr
        tables = numbers(disk / "eval")
        assert [row["class_name"] for row in tables["per_class.csv"]] == list(CLASSES)
        assert tables["eval.csv"][0] == tables["eval.csv"][-1]
        fill(disk)
        assert FULL in error_line(run(target.train(data, disk / "run", 1)))
        assert_no_litter(disk)


def test_training_in_the_zoo(tmp_path, tried):
    tried("full disk at last.safetensors: one line, no half weights, the same command completes with room", ZOO.name)
    data = write_data(tmp_path / "data")
    with mounted(tmp_path / "disk", 2**20) as disk:
        command = ZOO.train(data, disk, 1)
        line = error_line(call(command))
        assert FULL in line and "last.safetensors" in line
        assert not list(disk.rglob("*.safetensors"))
        assert_no_litter(disk)
        resize(disk, 2**24)
        assert call(command).returncode == 0
        (weights,) = disk.rglob("last.safetensors")
        checkpoint(weights)  # reads it whole


@pytest.mark.parametrize("leave", [16384, 20480])
def test_matrix(leave, tmp_path, monkeypatch, tried):
    """The cell's process finds no room, or run_matrix.py itself: that is no result of the cell."""
    tried("full disk in run_matrix.py: one line, no cell fails by it, the same line completes with room", ZOO.name)
    script = tmp_path / "cell.py"
    script.write_text(CELL)
    monkeypatch.setattr(
        "paddleseg_benchmark.run_matrix.cell_command", lambda cell, out, *_: [sys.executable, str(script), str(out)]
    )
    with mounted(tmp_path / "disk", 2**20) as disk:
        fill(disk, leave)
        words = ("--preset", "zoo", "--models", "fastscnn", "shufflenetv2", "--output", str(disk / "matrix"))
        command = ZOO.command("run_matrix", *words)
        assert FULL in error_line(call(command))
        assert_no_litter(disk)
        (disk / "filler").unlink()
        assert call(command).returncode == 0
        assert (disk / "matrix" / "matrix.csv").read_text().count(",ok,1,101.00,") == 2


# --- lists, records, conversions -------------------------------------------------------------------------------------


def test_lists(tmp_path, tried):
    """List and labels are there already; their new versions find no room, the old ones stay."""
    tried("full disk: lists end with one line, older lists stay", "common/create_dataset_list.py")
    with mounted(tmp_path / "disk", 2**20) as disk:
        root = write_toy_dataset("cityscapes", disk / "data", 3, 2, (64, 128))
        command = Command("common/create_dataset_list.py", ("cityscapes", str(root)))
        assert call(command).returncode == 0
        before = below(root)
        fill(disk)
        more = Command(command.script, (*command.words, "--separator", "tab", "--overwrite"))
        line = error_line(call(more))
        assert FULL in line and "train++.txt" in line  # the first that is written
        assert below(root) == before
        assert_no_litter(disk)
        (disk / "filler").unlink()
        assert call(more).returncode == 0
        assert len(read_list(root / "train.txt")) == 3


def test_drawing_and_label_conversion(tmp_path, tried):
    tried("full disk: drawn data and converted labels end with one line, go on with room", "common/", 2)
    with mounted(tmp_path / "disk", 2**20) as disk:
        fill(disk, 65536)
        words = (str(disk / "data"), "--train", "6", "--val", "3", "--height", "64", "--width", "128")
        command = Command("common/toy_dataset.py", ("cityscapes", *words))
        assert FULL in error_line(call(command))
        assert_no_litter(disk)
        (disk / "filler").unlink()
        assert call(command).returncode == 0
        for path in (disk / "data").rglob("*_labelTrainIds.png"):
            path.unlink()
        fill(disk)
        convert = Command("common/create_dataset_list.py", ("cityscapes", str(disk / "data"), "--convert"))
        assert FULL in error_line(call(convert))
        assert not list((disk / "data").rglob("*_labelTrainIds.png"))
        (disk / "filler").unlink()
        assert call(convert).returncode == 0


def test_record(tmp_path, monkeypatch, tried):
    tried("full disk: record ends with one line, nothing recorded", "results/record.py")
    folder = finished_run_in(tmp_path)
    with mounted(tmp_path / "disk", 2**20) as disk:
        (disk / "projects/stdc_seg").mkdir(parents=True)
        monkeypatch.setattr("results.record.ROOT", disk)
        fill(disk, 8192)
        command = Command("results/record.py", (str(folder), "--unknown-code"))
        assert FULL in error_line(call(command))
        assert below(disk / "results") == {}
        (disk / "filler").unlink()
        assert call(command).returncode == 0
        assert below(disk / "results/runs/stdc_seg" / folder.name) == below(folder)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors", ""])
def test_conversion_to_paddle(suffix, tmp_path, tried):
    tried("full disk: a conversion ends with one line, older weights stay", "weights_convert/torch2paddle.py")
    words = ("--arch", "resnet18", "--weights", "random", "--out")
    with mounted(tmp_path / "disk", 2**20) as disk:
        old = disk / f"w{suffix or '.pdparams'}"
        old.write_bytes(b"older weights")
        line = error_line(run(Command("weights_convert/torch2paddle.py", (*words, str(disk / f"w{suffix}")))))
        assert FULL in line and old.name in line
        assert below(disk) == {old.name: b"older weights"}
        assert_no_litter(disk)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_conversion_to_torch(suffix, tmp_path, tried):
    tried("full disk: a conversion ends with one line, older weights stay", "weights_convert/paddle2torch.py")
    words = ("--arch", "resnet18", "--weights")
    paddle = tmp_path / "w.pdparams"
    assert run(Command("weights_convert/torch2paddle.py", (*words, "random", "--out", str(paddle)))).returncode == 0
    with mounted(tmp_path / "disk", 2**20) as disk:
        out = disk / f"w{suffix}"
        line = error_line(run(Command("weights_convert/paddle2torch.py", (*words, str(paddle), "--out", str(out)))))
        assert FULL in line and out.name in line
        assert below(Path(disk)) == {}
        assert_no_litter(disk)
