import json

from common.cli import UserError
from weights_convert import paddle2torch
from weights_convert.archs import find_arch
from weights_convert.conversion import Options
from weights_convert.paddle2torch import convert_back
from weights_convert.torch2paddle import convert

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from convert_tiny import TinyTorch, run, tiny_arch, tiny_weights


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a)


@pytest.mark.parametrize("through", ["tiny.pdparams", "tiny.safetensors"])
@pytest.mark.parametrize("back", ["back.pth", "back.safetensors"])
def test_torch_paddle_torch_is_bit_identical(through, back, tmp_path):
    weights, arch = tiny_weights(), tiny_arch(tmp_path)
    torch.save(weights, tmp_path / "w.pth")
    convert(arch, tmp_path / "w.pth", tmp_path / through, Options())
    _, written, absent = convert_back(arch, tmp_path / through, tmp_path / back, Options())
    assert absent == [] and [path.name for path in written] == [back, f"{back}.card.yaml"]
    load = safetensors.torch.load_file if back.endswith("safetensors") else torch.load
    found = load(tmp_path / back)
    assert same_bits(found, weights)  # the counters of batches, 7, too
    TinyTorch(5).load_state_dict(found)


def test_without_what_was_left_out_the_counters_are_zero(tmp_path, monkeypatch, capsys):
    weights, arch = tiny_weights(), tiny_arch(tmp_path)
    torch.save(weights, tmp_path / "w.pth")
    convert(arch, tmp_path / "w.pth", tmp_path / "w.pdparams", Options())
    (tmp_path / "w.left_out.safetensors").unlink()
    words = ["--arch", "tiny", "--weights", tmp_path / "w.pdparams", "--out", tmp_path / "back.pt"]
    assert run(monkeypatch, *words, arch=arch, command=paddle2torch) == 0
    found = torch.load(tmp_path / "back.pt")
    assert same_bits({**found, **{k: weights[k] for k in weights if k.endswith("tracked")}}, weights)
    assert found["blocks.0.1.num_batches_tracked"] == 0
    TinyTorch(5).load_state_dict(found)


def test_a_checkpoint_of_train_py_is_read(tmp_path):
    arch = tiny_arch(tmp_path)
    torch.save(tiny_weights(), tmp_path / "w.pth")
    convert(arch, tmp_path / "w.pth", tmp_path / "w.safetensors", Options())
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    trained = {f"model.{k}": v for k, v in tensors.items()} | {"optimizer.fc.weight.velocity_0": np.zeros(3)}
    safetensors.numpy.save_file(trained, tmp_path / "best.safetensors", metadata={"state": json.dumps({})})
    convert_back(arch, tmp_path / "best.safetensors", tmp_path / "back.pth", Options())
    np.testing.assert_array_equal(torch.load(tmp_path / "back.pth")["fc.weight"], tiny_weights()["fc.weight"])


def test_the_way_back_keeps_what_lies_beside_the_paddle_file(tmp_path):
    arch = tiny_arch(tmp_path)
    torch.save(tiny_weights(), tmp_path / "source.pth")
    _, written = convert(arch, tmp_path / "source.pth", tmp_path / "w.pdparams", Options())
    before = {path: path.read_bytes() for path in written}
    convert_back(arch, tmp_path / "w.pdparams", tmp_path / "w.pth", Options())
    assert {path: path.read_bytes() for path in written} == before
    assert same_bits(torch.load(tmp_path / "w.pth"), tiny_weights())


def test_another_network_and_a_failed_proof_leave_nothing(tmp_path):
    torch.save(tiny_weights(), tmp_path / "w.pth")
    convert(tiny_arch(tmp_path), tmp_path / "w.pth", tmp_path / "w.pdparams", Options())
    with pytest.raises(UserError, match="stage 'blocks.0' departs"):
        convert_back(tiny_arch(tmp_path, epsilon=1e-3), tmp_path / "w.pdparams", tmp_path / "b.pth", Options())
    with pytest.raises(UserError, match=r"w.pdparams: does not fit the network: .* are missing"):
        convert_back(find_arch("stdcnet813"), tmp_path / "w.pdparams", tmp_path / "b.pth", Options())
    with pytest.raises(UserError, match="use .pth or .pt or .safetensors"):
        convert_back(tiny_arch(tmp_path), tmp_path / "w.pdparams", tmp_path / "b.npz", Options())
    assert not list(tmp_path.glob("b*"))


def official_weights(plain_bn):
    """Weights of the official STDC1-Seg: 11 classes, gains of both signs, counters, the unused parts too."""
    source = find_arch("stdc1_seg").sources[int(plain_bn)]
    network = source.build(11)
    torch.manual_seed(0)
    for name, value in network.module.state_dict().items():
        if name.endswith("tracked"):
            value.fill_(5)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.uniform_(-1.3, 1.3)
        else:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return network.module.state_dict()


@pytest.mark.parametrize(
    "plain_bn", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["InPlaceABN", "BatchNorm2d"]
)
def test_the_whole_official_network_comes_back_bit_by_bit(plain_bn, tmp_path):
    weights = official_weights(plain_bn)
    arch = find_arch("stdc1_seg")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "w.tar")
    conversion, _ = convert(arch, tmp_path / "w.tar", tmp_path / "w.pdparams", Options())
    name = ["official", "plain_bn"][plain_bn]
    assert conversion.source.name == name and conversion.num_classes == 11  # recognised
    gains = safetensors.numpy.load_file(tmp_path / "w.left_out.safetensors")
    assert ("cp.arm16.conv.bn.weight" in gains) != plain_bn  # |w| + eps cannot be undone
    _, _, absent = convert_back(arch, tmp_path / "w.pdparams", tmp_path / "b.pth", Options(source=name))
    assert absent == []
    assert same_bits(torch.load(tmp_path / "b.pth"), weights)


def test_a_gain_that_inplace_abn_cannot_have_is_named(tmp_path):
    arch = find_arch("stdc1_seg")
    network = arch.build(19)
    tensors = network.tensors()
    tensors["ffm.convblk.bn.weight"][3] = -0.25
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=r"'ffm.convblk.bn.weight' cannot become 'ffm.convblk.bn.weight': it holds -0.25"
    ):
        convert_back(arch, tmp_path / "w.safetensors", tmp_path / "b.pth", Options())
