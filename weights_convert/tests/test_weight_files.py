import pickle

from common.cli import UserError
from weights_convert.weight_files import read_weights, write_weights

import numpy as np
import pytest
import safetensors.torch
import torch

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.bias": torch.tensor([1.5, -0.0]),
    "n": torch.tensor(7),
}


def write(kind, path):
    arrays = {name: value.numpy() for name, value in TENSORS.items()}
    if kind in (".pth", ".pt", ".tar"):
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind != ".tar")
    elif kind == ".safetensors":
        safetensors.torch.save_file(TENSORS, path)
    elif kind == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(pickle.dumps(arrays))
    return path


KINDS = [".pth", ".pt", ".tar", ".safetensors", ".npz", ".pdparams"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read(kind, tmp_path):
    found = read_weights(write(kind, tmp_path / f"w{kind}"))
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].tobytes() == value.numpy().tobytes() and found[name].shape == tuple(value.shape)


@pytest.mark.parametrize("kind", [".pdparams", ".safetensors", ".pth", ".pt"])
def test_what_is_written_reads_back_bit_by_bit(kind, tmp_path):
    arrays = {name: value.numpy() for name, value in TENSORS.items()} | {"t": np.arange(6.0, dtype=np.float32)[::2]}
    with open(tmp_path / f"w{kind}", "wb") as stream:
        write_weights(stream, kind, arrays)
    found = read_weights(tmp_path / f"w{kind}")
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found[name].tobytes() == value.tobytes() and found[name].dtype == value.dtype
        assert found[name].shape == value.shape  # also () of a counter


@pytest.mark.parametrize("wrap", [("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_come_off(wrap, prefix, tmp_path):
    content = {prefix + name: value for name, value in TENSORS.items()}
    for key in reversed(wrap):
        content = {key: content, "epoch": 3, "best": 0.5}
    torch.save(content, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == TENSORS.keys()


def test_compiled_parts_inside_and_doubled_names(tmp_path):
    torch.save({"backbone._orig_mod.conv.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["backbone.conv.weight"]
    torch.save({"module.a": torch.zeros(1), "a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="are both called 'a'"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.98])
def test_a_truncated_file_is_one_line(kind, kept, tmp_path):
    path = write(kind, tmp_path / f"w{kind}")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"not a whole|refused") as error:
        read_weights(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
        ({"a": torch.zeros(1), "epoch": 3}, "'epoch' is a int, not a tensor"),
        ({"a": torch.zeros(1, dtype=torch.bfloat16)}, "'a' is bfloat16"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "'a' is sparse"),
    ],
)
def test_other_content_is_named(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "w.pth")


def test_bfloat16_in_safetensors_is_named(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="convert it to float32"):
        read_weights(tmp_path / "w.safetensors")
