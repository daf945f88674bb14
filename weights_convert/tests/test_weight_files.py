import pickle

from common.cli import UserError
from weights_convert.weight_files import read_weight_file, read_weights, write_weights

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
        ({"a": torch.zeros(1, dtype=torch.float8_e5m2)}, "'a' is float8_e5m2"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "'a' is sparse"),
    ],
)
def test_other_content_is_named(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", [".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(kind, dtype, tmp_path):
    path = tmp_path / f"w{kind}"
    content = {"a": torch.tensor([1.5, -0.25], dtype=dtype), "b": torch.tensor([3.0]), "n": torch.tensor(7)}
    safetensors.torch.save_file(content, path) if kind == ".safetensors" else torch.save(content, path)
    file = read_weight_file(path)
    assert (file.tensors["a"].dtype, file.tensors["a"].tolist()) == (np.float32, [1.5, -0.25])
    assert file.tensors["n"].dtype == np.int64
    assert file.notes == (f"1 tensors of {str(dtype).removeprefix('torch.')} became float32",)


def test_what_paddle_saved_is_read_by_its_content(tmp_path):
    """The STDC seed names pretrained/STDCNet1446_76.47.pdiparams, which `paddle.save` wrote."""
    arrays = {name: value.numpy() for name, value in TENSORS.items()}
    path = tmp_path / "w.pdiparams"
    path.write_bytes(pickle.dumps(arrays))
    assert read_weights(path).keys() == arrays.keys()
    path.write_bytes(b"\0\0\0\0 the combined parameters of an exported model")
    with pytest.raises(UserError, match=r"w.pdiparams: the parameters of an exported model, without names"):
        read_weights(path)
    path = tmp_path / "w.pdparams"
    path.write_bytes(
        pickle.dumps({"model": arrays, "ema": {name: np.asarray(value + 1) for name, value in arrays.items()}})
    )
    assert read_weight_file(path).tensors["n"] == 7
    assert read_weight_file(path, ema=True).tensors["n"] == 8


def test_averaged_weights_on_request(tmp_path):
    averaged = {f"module.{name}": value + 1 for name, value in TENSORS.items()} | {"n_averaged": torch.tensor(4)}
    torch.save({"model": TENSORS, "model_ema": averaged, "epoch": 3}, tmp_path / "w.pth")
    plain, ema = read_weight_file(tmp_path / "w.pth"), read_weight_file(tmp_path / "w.pth", ema=True)
    assert plain.tensors["a.bias"].tolist() == [1.5, 0.0] and ema.tensors["a.bias"].tolist() == [2.5, 1.0]
    assert plain.notes == ("'model', not the averaged weights 'model_ema' beside it",)
    assert ema.notes == ("the averaged weights 'model_ema'",)
