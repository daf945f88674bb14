import csv
import dataclasses
import json
import os
import pickle

from common.cli import UserError
from common.files import sha256_of
from common.weights.card import require_same_input
from weights_convert import torch2paddle

import numpy as np
import paddle
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from convert_tiny import MAP, TinyPaddle, run, tiny_arch, tiny_weights


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny.pth"
    torch.save(tiny_weights(), path)
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "tiny.pdparams"


def test_without_arguments_it_lists_everything(monkeypatch, capsys):
    assert run(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.rindex("  ") for line in lines}) == 1  # the last column stands apart
    names = [line.split()[0] for line in lines[1:]]
    wanted = "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d hrnet_w18 hrnet_w48 "
    wanted += "xception65 xception71 stdcnet813 stdcnet1446 stdc1_seg stdc2_seg stdc1_seg_paddleseg stdc2_seg_paddleseg"
    assert set(wanted.split()) | {f"efficientnet_b{size}" for size in range(8)} | {"efficientnet_lite0"} == set(names)
    assert any("torchvision.models.resnet50 " in line and "build_backbone('resnet50')" in line for line in lines)


def test_a_file_is_converted_with_its_card(checkpoint, out, tmp_path, monkeypatch, capsys):
    arch = tiny_arch(tmp_path)
    words = ["--arch", "tiny", "--weights", checkpoint, "--out", out, "--licence", "BSD-3-Clause"]
    assert run(monkeypatch, *words, arch=arch) == 0
    table = capsys.readouterr().out
    assert "blocks.1" in table and "highest class the same: 100.000 %" in table
    assert left_behind(out.parent) == ["tiny.left_out.safetensors", "tiny.pdparams", "tiny.pdparams.card.yaml"]
    card = yaml.safe_load(out.with_name("tiny.pdparams.card.yaml").read_text())
    assert card["source"]["sha256"] == sha256_of(checkpoint)
    assert card["source"]["licence"] == "BSD-3-Clause"
    assert card["files"]["tiny.pdparams"] == sha256_of(out)
    assert card["input"]["mean"] == [0.485, 0.456, 0.406]
    assert 0 < card["proof"]["largest_difference"] <= 1e-5
    assert list(card["proof"]["stages"]) == ["conv1", "blocks.0", "blocks.1", "encoding", "hidden", "fc", "output"]
    assert card["tensors"] == {"converted": 19, "left_out": {"Paddle has no such counter": 2}}
    assert card["versions"]["paddle"] == paddle.__version__
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    require_same_input(out, mean, std)
    with pytest.raises(UserError, match=r"set its data\.mean to \[0\.485, 0\.456, 0\.406\]"):
        require_same_input(out, (0.5, 0.5, 0.5), std)


def test_paddle_reads_the_file_and_gets_the_same_tensors(checkpoint, out, tmp_path):
    torch2paddle.convert(tiny_arch(tmp_path), checkpoint, out, torch2paddle.Options())
    network, weights = TinyPaddle(5, 1e-5), tiny_weights()
    assert network.set_state_dict(paddle.load(str(out))) == ([], [])
    ours = {name: value.numpy() for name, value in network.state_dict().items()}
    np.testing.assert_array_equal(ours["stack.1.0.weight"], weights["blocks.1.0.weight"])
    np.testing.assert_array_equal(ours["stack.0.1._variance"], weights["blocks.0.1.running_var"])
    np.testing.assert_array_equal(ours["hidden.weight"], weights["hidden.weight"].T)
    np.testing.assert_array_equal(ours["encoding.codewords"], weights["encoding.codewords"])  # 2-D and not transposed


def test_a_name_without_suffix_gives_both_kinds(checkpoint, out, tmp_path):
    _, written = torch2paddle.convert(tiny_arch(tmp_path), checkpoint, out.with_suffix(""), torch2paddle.Options())
    assert [path.name for path in written] == [
        "tiny.pdparams",
        "tiny.safetensors",
        "tiny.left_out.safetensors",
        "tiny.card.yaml",
    ]
    pickled, safe = pickle.loads(out.read_bytes()), safetensors.numpy.load_file(out.with_suffix(".safetensors"))
    assert pickled.keys() == safe.keys()
    for name, value in safe.items():
        np.testing.assert_array_equal(pickled[name], value)
    for path in written[:2]:
        with pytest.raises(
            UserError, match=r"\(tiny\.card\.yaml\): trained with mean .* the experiment has \[0\.5, 0\.5, 0\.5\]"
        ):
            require_same_input(path, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))


def test_the_number_of_classes_is_the_weights(out, tmp_path):
    torch.save(tiny_weights(num_classes=11), tmp_path / "own.pt")
    conversion, _ = torch2paddle.convert(tiny_arch(tmp_path), tmp_path / "own.pt", out, torch2paddle.Options())
    assert conversion.num_classes == 11
    assert paddle.load(str(out))["fc.weight"].shape == [8, 11]


def test_averaged_half_precision_weights_without_a_classifier(out, tmp_path, monkeypatch, capsys):
    """As a backbone for segmentation comes out of somebody's training: timm's layout, half precision, no head."""
    raw, averaged = (
        {name: value.half() if value.is_floating_point() else value for name, value in tiny_weights(seed=seed).items()}
        for seed in (0, 1)
    )
    headless = {name: value for name, value in averaged.items() if not name.startswith("fc.")}
    path = tmp_path / "tiny.pth"
    torch.save({"state_dict": raw, "state_dict_ema": headless, "epoch": 3}, path)
    arch = dataclasses.replace(tiny_arch(tmp_path), head_optional=True)
    assert run(monkeypatch, "--arch", "tiny", "--weights", path, "--out", out, "--ema", arch=arch) == 0
    printed = capsys.readouterr().out
    notes = yaml.safe_load(out.with_name("tiny.pdparams.card.yaml").read_text())["source"]["notes"]
    assert len(notes) == 3 and all(f"{path}: {note}" in printed for note in notes)
    assert notes[0] == "the averaged weights 'state_dict_ema'"
    assert notes[1].endswith("tensors of float16 became float32") and notes[2].startswith("no classifier")
    written = paddle.load(str(out))
    assert not any(name.startswith("fc.") for name in written)
    np.testing.assert_array_equal(written["conv1.weight"].numpy(), averaged["conv1.weight"].float().numpy())
    out.unlink()
    strict = tiny_arch(tmp_path)
    assert run(monkeypatch, "--arch", "tiny", "--weights", path, "--out", out, "--ema", arch=strict) == 1
    assert "tensors are missing (fc.bias, fc.weight)" in capsys.readouterr().err
    assert not out.exists()


def test_random_weights_are_the_same_every_time(out, tmp_path, monkeypatch):
    arch = tiny_arch(tmp_path)
    assert run(monkeypatch, "--arch", "tiny", "--weights", "random", "--out", out, arch=arch) == 0
    first = out.read_bytes()
    assert run(monkeypatch, "--arch", "tiny", "--weights", "random", "--out", out, arch=arch) == 0
    assert out.read_bytes() == first


def test_a_proof_alone_writes_nothing(tmp_path, monkeypatch, capsys):
    before = left_behind(tmp_path)
    assert run(monkeypatch, "--arch", "tiny", "--weights", "random", arch=tiny_arch(tmp_path)) == 0
    assert left_behind(tmp_path) == sorted([*before, "tiny.yaml"])  # the table that tiny_arch writes
    assert "proven: 19 tensors" in capsys.readouterr().out.splitlines()[-1]


def break_file(kind, path):
    """Saves broken weights; returns the path."""
    weights = tiny_weights()
    if kind == "missing":
        del weights["blocks.1.1.running_var"]
    elif kind == "extra":
        weights["blocks.2.0.weight"] = torch.zeros(3)
    elif kind == "float8":
        weights["blocks.0.0.weight"] = weights["blocks.0.0.weight"].to(torch.float8_e5m2)
    elif kind == "shape":
        weights["conv1.weight"] = weights["conv1.weight"][:, :1]
    elif kind == "nan":
        weights["conv1.bias"][3] = float("nan")
    torch.save(weights, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"1 of 21 tensors are missing (blocks.1.1.running_var), 0 are not known"),
        ("extra", r"0 of 21 tensors are missing (none), 1 are not known (blocks.2.0.weight)"),
        ("float8", "'blocks.0.0.weight' is float8_e5m2: convert the weights to float32"),
        ("shape", "'conv1.weight' is (8, 1, 3, 3), the network has (8, 3, 3, 3)"),
        ("nan", "'conv1.bias' holds values that are not finite"),
        ("truncated", "broken.pth: not a whole PyTorch file"),
    ],
)
def test_broken_weights_are_refused_by_name(kind, message, out, tmp_path, monkeypatch, capsys):
    path = break_file(kind, tmp_path / "broken.pth")
    words = ["--arch", "tiny", "--weights", path, "--out", out]
    assert run(monkeypatch, *words, arch=tiny_arch(tmp_path)) == 1
    assert message in capsys.readouterr().err
    assert left_behind(out.parent) == []


SWAPPED = MAP.replace(
    "layers:\n",
    """layers:
  - {pattern: '^blocks\\.0\\.0$', replacement: blocks.one}
  - {pattern: '^blocks\\.1\\.0$', replacement: blocks.0.0}
  - {pattern: '^blocks\\.one$', replacement: blocks.1.0}
""",
)
UNTRANSPOSED = (
    MAP
    + """  - {layer: SquareLinear, paddle: Linear, tensor: weight, replacement: weight, transform: keep}
  - {layer: SquareLinear, paddle: Linear, tensor: bias, replacement: bias, transform: keep}
"""
)
TRANSPOSED_CODEWORDS = MAP.replace(
    "replacement: codewords, transform: keep", "replacement: codewords, transform: transpose"
)


@pytest.mark.parametrize(
    ("table", "epsilon", "stage", "layer"),
    [
        (SWAPPED, 1e-5, "blocks.0", "blocks.0.0"),
        (UNTRANSPOSED, 1e-5, "hidden", "hidden"),
        (TRANSPOSED_CODEWORDS, 1e-5, "encoding", "encoding"),
        (MAP, 1e-3, "blocks.0", "blocks.0.1"),
    ],
    ids=["swapped pair of equal shape", "untransposed square Linear", "transposed codewords", "wrong BN epsilon"],
)
def test_what_fits_by_shape_and_is_wrong_is_caught(table, epsilon, stage, layer, out, tmp_path, monkeypatch, capsys):
    arch = tiny_arch(tmp_path, table, epsilon)
    torch.save(tiny_weights(), tmp_path / "tiny.pth")
    assert run(monkeypatch, "--arch", "tiny", "--weights", tmp_path / "tiny.pth", "--out", out, arch=arch) == 1
    printed = capsys.readouterr()
    assert f"stage '{stage}' departs" in printed.err and f"first in layer '{layer}'" in printed.err
    departing = [line.split()[0] for line in printed.out.splitlines() if line.endswith("departs")]
    assert departing[0] == stage
    assert left_behind(out.parent) == []


def test_a_failure_keeps_the_file_that_was_there(out, tmp_path, monkeypatch):
    out.write_bytes(b"an older one")
    arch = tiny_arch(tmp_path, epsilon=1e-3)
    assert run(monkeypatch, "--arch", "tiny", "--weights", "random", "--out", out, arch=arch) == 1
    assert out.read_bytes() == b"an older one"


def test_check_proves_a_file_from_elsewhere(checkpoint, out, tmp_path, monkeypatch, capsys):
    arch = tiny_arch(tmp_path)
    torch2paddle.convert(arch, checkpoint, out, torch2paddle.Options())
    words = ["--arch", "tiny", "--weights", checkpoint, "--check", out]
    assert run(monkeypatch, *words, arch=arch) == 0
    capsys.readouterr()
    ported = {name: value.numpy() for name, value in paddle.load(str(out)).items()}

    def broken(**changes):
        with open(out, "wb") as stream:
            pickle.dump({**ported, **changes}, stream)
        assert run(monkeypatch, *words, arch=arch) == 1
        return capsys.readouterr().err

    swapped = {"stack.0.1.bias": ported["stack.0.1._mean"], "stack.0.1._mean": ported["stack.0.1.bias"]}
    message = broken(**swapped)
    assert "layer 'blocks.0.1'" in message and "2 tensors differ: 'stack.0.1.bias' is not 'blocks.0.1.bias'" in message
    message = broken(**{"hidden.weight": ported["hidden.weight"].T.copy()})
    assert "stage 'hidden'" in message and "'hidden.weight' is not 'hidden.weight'" in message
    assert "1 are not known (fc.scale)" in broken(**{"fc.scale": np.zeros(1, np.float32)})
    rounded = broken(**{"fc.bias": ported["fc.bias"].astype(np.float16)})
    assert "in layer 'fc'" in rounded and "1 tensors differ: 'fc.bias'" in rounded
    assert "'fc.bias' is (4,), the network has (5,)" in broken(**{"fc.bias": ported["fc.bias"][:4]})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch", "resnet51", "--weights", "random"], "did you mean 'resnet50'"),
        (["--arch", "resnet18"], "needs --weights FILE, or --weights random"),
        (["--arch", "resnet18", "--weights", "none.pth"], "no weight file none.pth"),
        (["--arch", "resnet18", "--weights", "w.h5"], "'.h5' files are not read here"),
        (["--arch", "resnet18", "--weights", "random", "--out", "w.onnx"], "use .pdparams or .safetensors"),
        (["--arch", "resnet18", "--weights", "random", "--source", "timm"], "valid: torchvision"),
        (["--arch", "resnet18", "--weights", "random", "--image", "none.jpg"], "none.jpg: there is no such file"),
        (["--arch", "resnet18", "--weights", "random", "--check", "w.pdparams"], "--check compares two files"),
        (["--all"], "--all goes with --weights random"),
        (["--all", "--weights", "random", "--out", "w"], "--all goes with --weights random"),
        (["--weights", "random"], "say what the weights are of: --arch NAME"),
        (["--arch", "resnet18", "--weights", "random", "--report", "r"], "--report is the table of --all"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert left_behind(tmp_path) == []


def test_a_paddle_file_is_told_where_it_belongs(checkpoint, out, tmp_path, monkeypatch, capsys):
    arch = tiny_arch(tmp_path)
    torch2paddle.convert(arch, checkpoint, out, torch2paddle.Options())
    assert run(monkeypatch, "--arch", "tiny", "--weights", out, arch=arch) == 1
    assert "paddle2torch.py converts it" in capsys.readouterr().err


def test_the_input_is_never_replaced(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(tiny_weights(), path)
    before = path.read_bytes()
    words = ["--arch", "tiny", "--weights", path, "--out", path]
    assert run(monkeypatch, *words, arch=tiny_arch(tmp_path)) == 1
    assert "is the file to be converted" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_an_earlier_conversion_left_out_does_not_stay(checkpoint, out, tmp_path):
    arch, weights = tiny_arch(tmp_path), tiny_weights()
    torch2paddle.convert(arch, checkpoint, out, torch2paddle.Options())
    without_counters = {name: value for name, value in weights.items() if not name.endswith("tracked")}
    safetensors.torch.save_file(without_counters, tmp_path / "w.safetensors")
    _, written = torch2paddle.convert(arch, tmp_path / "w.safetensors", out, torch2paddle.Options())
    assert left_behind(out.parent) == ["tiny.pdparams", "tiny.pdparams.card.yaml"] == [path.name for path in written]


@pytest.mark.slow
def test_all_reports_each_and_fails_if_one_does(tmp_path, monkeypatch, capsys):
    arch, report = torch2paddle.find_arch("stdcnet813"), tmp_path / "report"
    monkeypatch.setattr(torch2paddle, "all_archs", lambda: [arch, tiny_arch(tmp_path)])  # "tiny": not in the list
    assert run(monkeypatch, "--all", "--weights", "random", "--onnx", "--report", report) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stdcnet813") and "proven: 152 tensors" in lines[0]
    assert lines[1].startswith("tiny") and "FAILED: unknown --arch 'tiny'" in lines[1]
    assert lines[2] == "1 of 2 proven"
    with open(report / "proofs.csv") as stream:
        proven, failed = csv.DictReader(stream)
    assert proven["arch"] == "stdcnet813" and proven["tensors"] == "152" and proven["failure"] == ""
    assert 0 < float(proven["largest_difference"]) <= 1e-5 and 0 < float(proven["onnxruntime_difference"]) <= 1e-5
    assert int(proven["peak_memory_mib"]) > 100 and float(proven["cpu_seconds"]) > 0
    assert failed["source"] == "here" and failed["failure"].startswith("unknown --arch 'tiny'")
    env = json.loads((report / "env.json").read_text())
    assert env["project"] == "weights_convert" and env["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_a_process_that_is_killed_is_told():
    with pytest.raises(UserError, match="its process ended before it was done"):
        torch2paddle.in_own_process(os._exit, 9)
    assert torch2paddle.in_own_process(divmod, 7, 3) == (2, 1)
