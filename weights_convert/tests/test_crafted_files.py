"""A file that would run code is refused by every command of the repository that takes weights, and leaves no mark."""

import ast
import importlib
import pickle
from pathlib import Path

from common.cli import UserError
from weights_convert import paddle2torch, torch2paddle
from weights_convert.weight_files import READ_SUFFIXES, read_weights

import cv2
import numpy as np
import pytest
import torch
from convert_tiny import run, tiny_arch, tiny_weights

ROOT = Path(__file__).parents[2]
SUFFIXES = [".pth", ".tar", ".npz", ".pdparams", ".safetensors"]  # .pt is read as .pth
TRAININGS = ["awesome_pytorch_seg.train", "encnet_single_gpu.train", "semsegpaddle_glore.train", "stdc_seg.train"]


def commands(word):
    """Every script of a project whose text has this word, as "project.script"."""
    scripts = sorted(ROOT.glob("projects/*/*.py"))
    return [f"{path.parent.name}.{path.stem}" for path in scripts if word in path.read_text() and is_command(path)]


def is_command(path):
    return "run_command(main)" in path.read_text()


class Mark:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def craft(path, mark):
    """Saves a file of the path's kind that leaves a mark where it is unpickled."""
    if path.suffix in (".pth", ".bin", ".ckpt"):
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": Mark(mark)}, path)
    elif path.suffix == ".tar":
        torch.save({"state_dict": Mark(mark)}, path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".npz":
        np.savez(path, **{"conv1.weight": np.array([Mark(mark)], dtype=object)})
    else:
        path.write_bytes(pickle.dumps({"conv1.weight": Mark(mark)}))
    return path


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mark"


def require_refusal(status, capsys, mark):
    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "crafted" in error
    assert not mark.exists()


def test_each_crafted_file_would_leave_its_mark(mark, tmp_path):
    readers = {
        ".pth": lambda path: torch.load(path, weights_only=False),
        ".tar": lambda path: torch.load(path, weights_only=False),
        ".bin": lambda path: torch.load(path, weights_only=False),
        ".ckpt": lambda path: torch.load(path, weights_only=False),
        ".npz": lambda path: np.load(path, allow_pickle=True)["conv1.weight"],
        ".pdparams": lambda path: pickle.loads(path.read_bytes()),
        ".pdema": lambda path: pickle.loads(path.read_bytes()),
        ".pdiparams": lambda path: pickle.loads(path.read_bytes()),
        ".safetensors": lambda path: pickle.loads(path.read_bytes()),  # it only calls itself so
    }
    assert readers.keys() | {".pt"} == set(READ_SUFFIXES)
    for suffix, reader in readers.items():
        reader(craft(tmp_path / f"crafted{suffix}", mark))
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_reader_refuses_it_and_says_so(suffix, mark, tmp_path):
    path = craft(tmp_path / f"crafted{suffix}", mark)
    expected = "not a whole safetensors file" if suffix == ".safetensors" else "refused, nothing in it was run"
    with pytest.raises(UserError, match=expected) as error:
        read_weights(path)
    assert "\n" not in str(error.value) and not mark.exists()


def test_no_code_of_the_repository_reads_a_pickle_with_its_code():
    """Every call that could execute a file's content, outside of tests, is told not to."""
    safe = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    never = ("paddle.load", "pickle.load", "pickle.loads", "torch.jit.load", "paddle.jit.load", "joblib.load")
    calls = []
    for path in ROOT.glob("**/*.py"):
        if {"tests", "faults", ".venv", "output"} & set(path.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name not in never, f"{path}:{node.lineno}"
            if name in safe:
                assert safe[name] in ast.unparse(node), f"{path}:{node.lineno}"
                calls.append(name)
    assert set(calls) == set(safe)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_our_commands_refuse_it(suffix, mark, tmp_path, monkeypatch, capsys):
    path = craft(tmp_path / f"crafted{suffix}", mark)
    out = tmp_path / "out.pdparams"
    words = ["--arch", "resnet18", "--weights", path, "--out", out]
    require_refusal(run(monkeypatch, *words), capsys, mark)
    words = ["--arch", "stdc1_seg_paddleseg", "--weights", path, "--out", out]
    require_refusal(run(monkeypatch, *words), capsys, mark)
    words = ["--arch", "resnet18", "--weights", path, "--out", tmp_path / "out.pth"]
    require_refusal(run(monkeypatch, *words, command=paddle2torch), capsys, mark)
    assert not out.exists() and not (tmp_path / "out.pth").exists()


def test_check_and_what_was_left_out_refuse_it(mark, tmp_path, monkeypatch, capsys):
    arch = tiny_arch(tmp_path)
    torch.save(tiny_weights(), tmp_path / "w.pth")
    torch2paddle.convert(arch, tmp_path / "w.pth", tmp_path / "w.pdparams", torch2paddle.Options())
    capsys.readouterr()
    for suffix in SUFFIXES:
        path = craft(tmp_path / f"crafted{suffix}", mark)
        words = ["--arch", "tiny", "--weights", tmp_path / "w.pth", "--check", path]
        require_refusal(run(monkeypatch, *words, arch=arch), capsys, mark)
    (tmp_path / "w.left_out.safetensors").write_bytes((tmp_path / "crafted.safetensors").read_bytes())
    words = ["--arch", "tiny", "--weights", tmp_path / "w.pdparams", "--out", tmp_path / "crafted_back.pth"]
    assert run(monkeypatch, *words, arch=arch, command=paddle2torch) == 1
    assert "w.left_out.safetensors: not a whole safetensors file" in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "crafted_back.pth").exists()


@pytest.mark.parametrize("command", commands('"--weights"'))
def test_commands_of_the_projects_refuse_it(command, mark, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(command)
    text = Path(module.__file__).read_text()
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((65, 65, 3), np.uint8))
    words = []
    for flag, value in (
        ("--input", "image.png"),
        ("--input-pic", "image.png"),
        ("--output", "o"),
        ("--outdir", "o"),
    ):
        words += [flag, tmp_path / value] if f'"{flag}"' in text else []
    for suffix in SUFFIXES:
        path = craft(tmp_path / f"crafted{suffix}", mark)
        require_refusal(run(monkeypatch, "--weights", path, *words, command=module), capsys, mark)


@pytest.mark.parametrize("command", TRAININGS)
def test_resuming_from_it_is_refused(command, mark, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(command)
    for suffix in SUFFIXES:
        path = craft(tmp_path / f"crafted{suffix}", mark)
        require_refusal(run(monkeypatch, "--resume", path, command=module), capsys, mark)


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAININGS)
def test_training_from_it_is_refused(command, mark, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(command)
    words = ["--config", "quickstart", "--iters", "1", "--output", tmp_path / "o"]
    if command.startswith("awesome"):  # its quickstart's network has no backbone
        words += ["model.name=bisenet", "model.backbone=resnet18"]
    for suffix in SUFFIXES:
        path = craft(tmp_path / f"crafted{suffix}", mark)
        is_flag = command.startswith("encnet")
        weights = ["--backbone-weights", path] if is_flag else [f"model.backbone_weights={path}"]
        status = run(monkeypatch, *words, *weights, command=module)
        error = capsys.readouterr().err.splitlines()[-1]
        assert status == 1 and error.startswith("error: ") and "crafted" in error and not mark.exists()
