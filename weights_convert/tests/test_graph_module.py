"""torch2paddle.py --module: code, weights, card and proof of a user's network; what is not covered is one line."""

import subprocess
import sys
from pathlib import Path

from common.cli import UserError
from weights_convert import torch2paddle
from weights_convert.graph import prove
from weights_convert.graph.command import Wanted, convert_module, read_size
from weights_convert.graph.coverage import cover, networks
from weights_convert.graph.spec import build_source
from weights_convert.graph.trace import trace
from weights_convert.weight_files import read_weights

import numpy as np
import paddle
import pytest
import torch
import yaml
from convert_tiny import run

NETWORKS = Path(__file__).with_name("graph_networks.py")


def wanted(name, **more):
    return Wanted(f"{NETWORKS}:{name}", size=more.pop("size", (32, 48)), **more)


@pytest.fixture(scope="module", name="converted")
def _converted(tmp_path_factory):
    """The network of all kinds of layers, converted once: result, files, the Paddle network."""
    out = tmp_path_factory.mktemp("net") / "net"
    result, files = convert_module(wanted("net", out=out))
    layer = prove.load_layer(files[0], result.code.class_name)
    prove.fill(layer, result.tensors)
    layer.eval()
    return result, files, layer


def test_files_names_and_card(converted):
    result, files, _ = converted
    assert [path.name for path in files] == [
        *("net.py", "net.pdparams", "net.safetensors", "net.left_out.safetensors", "net.card.yaml"),
    ]
    module = result.source.module
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    ours = read_weights(files[2])
    left_out = {name for name in names if name.startswith("unused.") or name.endswith("num_batches_tracked")}
    assert set(ours) == names - left_out
    assert set(read_weights(files[1])) == set(ours)
    theirs = module.state_dict()
    assert np.array_equal(ours["blocks.2.norm.running_var"], theirs["blocks.2.norm.running_var"].numpy())
    assert np.array_equal(ours["attention.qkv.weight"], theirs["attention.qkv.weight"].numpy().T)
    card = yaml.safe_load(files[4].read_text())
    assert card["proof"]["largest_difference"] <= 1e-5
    assert card["proof"]["training"]["largest_difference"] <= 1e-4
    assert card["input"]["free_sizes"] == ["B", "H", "W"]
    assert card["tensors"]["left_out"] == ["unused.bias", "unused.weight"]
    assert card["tensors"]["transposed"] == ["attention.proj.weight", "attention.qkv.weight"]


def test_code_is_what_a_person_would_write(converted, tmp_path):
    text = converted[0].code.text
    assert text.count("class Block") == 1, "one class for four blocks"
    assert "*[Block(padding=1, dilation=1) for _ in range(3)]" in text or "Block(padding=2" in text
    assert "for layer in self.blocks:" in text
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert imports == ["import paddle", "import paddle.nn.functional as F", "from paddle import nn"]
    root = Path(__file__).parents[2]
    path = tmp_path / "net.py"
    path.write_text(text)
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--config", root / "pyproject.toml", path]
    checked = subprocess.run(ruff, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    formatted = subprocess.run([ruff[0], "format", "--check", *ruff[2:]], capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stdout + formatted.stderr


def test_training_and_evaluation_differ_as_they_should(converted):
    layer = converted[2]
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 32, 48)).astype(np.float32))
    state = {name: value.numpy() for name, value in layer.state_dict().items()}
    first = layer(images)["out"].numpy()
    assert np.array_equal(first, layer(images)["out"].numpy())
    layer.train()
    paddle.seed(0)
    a, b = layer(images)["out"].numpy(), layer(images)["out"].numpy()
    assert not np.array_equal(a, b), "dropout and drop-path draw"
    mean = layer.state_dict()["blocks.0.norm.running_mean"].numpy()
    assert not np.array_equal(mean, state["blocks.0.norm.running_mean"])
    # PyTorch's momentum 0.03: 3 % of the batch's mean a step
    x = layer.stem(images)
    batch = layer.blocks[0].conv(x).mean([0, 2, 3]).numpy()
    expected = state["blocks.0.norm.running_mean"] * 0.97 + batch * 0.03
    expected = expected * 0.97 + batch * 0.03
    assert np.allclose(mean, expected, atol=1e-5)
    layer.eval()
    prove.fill(layer, state)


def test_drop_path_drops_whole_samples(converted):
    block = converted[2].blocks[0]
    x = paddle.ones([400, 8, 2, 2])
    block.train()
    block.norm.eval()
    paddle.seed(3)
    change = (block(x) - x).numpy()
    block.eval()
    whole = (block(x) - x).numpy()
    dropped = np.abs(change).max((1, 2, 3)) == 0
    assert 0.2 < dropped.mean() < 0.4, "probability 0.3"
    assert np.allclose(change[~dropped], whole[~dropped] / 0.7, atol=1e-6)


def test_export_with_free_sizes_gives_the_same(converted, tmp_path):
    layer = converted[2]
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", "images")]
    paddle.jit.save(layer, str(tmp_path / "net"), input_spec=spec)
    loaded = paddle.jit.load(str(tmp_path / "net"))
    for size in ((1, 3, 64, 40), (3, 3, 37, 51)):
        images = np.random.default_rng(1).standard_normal(size).astype(np.float32)
        theirs = converted[0].source.module(torch.from_numpy(images))["out"].detach().numpy()
        found = [value.numpy() for value in prove.flat(loaded(paddle.to_tensor(images)))]
        ours = next(value for value in found if value.shape == theirs.shape)
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5
    paddle.jit.enable_to_static(True)


def test_weights_of_a_file_are_taken_and_of_another_network_refused(tmp_path):
    module = build_source(f"{NETWORKS}:net:classes=3").module
    with torch.no_grad():
        module.head.bias.fill_(7)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    result, _ = convert_module(wanted("net:classes=3", weights=tmp_path / "net.pth", training=False))
    assert (result.tensors["head.bias"] == 7).all()
    with pytest.raises(UserError, match=r"net.pth: 'head.weight' is \(3, 8, 1, 1\), the network has \(5, 8, 1, 1\)"):
        convert_module(wanted("net", weights=tmp_path / "net.pth"))
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth: does not fit the network: .* tensors are missing"):
        convert_module(wanted("net", weights=tmp_path / "other.pth"))


BROKEN = {
    "depends_on_values": "depends on the values in the image; make the choice outside of forward",
    "loop_over_values": "depends on the values in the image",
    "no_such_operator": r"no rule for the operator aten.special_bessel_j0.default \(module '.*graph_networks.py:\d+",
    "complex_numbers": "no rule for the operator aten.fft_fft2|such numbers are not covered|no rule for",
    "two_inputs": "does not take one batch of images: TypeError: .*missing 1 required positional argument: 'y'",
    "changes_itself": "changes its tensor 'count' in forward",
    "wants_other_channels": r"the network itself fails on images \(2, 3, 32, 48\)",
    "wants_other_size": "the network itself fails on images .*try another --size",
    "no_module": "gives a int, not a torch.nn.Module",
    "raises": "it cannot be built: RuntimeError: my own fault",
    "missing": "has no 'missing'",
    "random_in_evaluation": "no rule for the operator aten.rand_like.default",
    "lstm": "no rule for the operator aten.lstm.input",
    "half": "'output' departs by .* nothing was written",
}
WORKING = (
    *("writes_input", "writes_part", "tied", "same_module_twice", "returns_none", "returns_a_number"),
    *("grouped_by_index", "without_gradient", "number_of_values", "builds_in_forward"),
)


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(name, tmp_path):
    with pytest.raises(UserError, match=BROKEN[name]) as caught:
        convert_module(wanted(name, out=tmp_path / "out"))
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WORKING)
def test_what_looks_broken_and_works_is_proven(name, tmp_path):
    result, files = convert_module(wanted(name, out=tmp_path / "out"))
    assert result.proof.largest <= 1e-5
    assert max(result.training.values()) <= 1e-4
    assert files[0].is_file()


def test_words_of_the_command(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "--module", f"{NETWORKS}:two_inputs") == 1
    assert "error: the network does not take one batch of images" in capsys.readouterr().err
    for words, message in (
        (["--module", "timm:no_such_network"], "timm has no 'no_such_network'"),
        (["--module", "torchvision:resnet5"], "did you mean 'resnet5"),
        (["--module", "smp:Unett:resnet18"], "did you mean 'Unet'"),
        (["--module", "resnet50"], "use timm:NAME"),
        (["--module", "nowhere.py:net"], "no file nowhere.py"),
        (["--module", "timm:resnet18", "--size", "12"], "use HEIGHTxWIDTH"),
        (["--module", "timm:resnet18", "--out", "a.pdparams"], "without suffix"),
        (["--module", "timm:resnet18", "--arch", "resnet18"], "--module goes with"),
        (["--module", "timm:resnet18:depth=3"], "it cannot be built"),
        (["--features"], "go with --module"),
        (["--coverage", "timm"], "needs --report"),
    ):
        assert run(monkeypatch, *words) == 1
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, error
    assert list(tmp_path.iterdir()) == []
    assert torch2paddle.main.__doc__


def test_features_have_channels_and_strides_of_timm(tmp_path):
    result, files = convert_module(
        Wanted("timm:test_resnet:out_indices=[1, 2, 3]", features=True, size=(64, 96), out=tmp_path / "back")
    )
    card = yaml.safe_load(files[-1].read_text())
    info = result.source.module.feature_info
    assert card["features"] == {"out_channels": info.channels(), "strides": info.reduction()}
    assert f"OUT_CHANNELS = {info.channels()}" in files[0].read_text()


def test_lists_of_coverage():
    assert len(networks("timm")) >= 95
    assert "torchvision:fcn_resnet50" in networks("torchvision")
    assert "smp:Unet:resnet18" in networks("smp")


def test_coverage_grows_a_table_and_goes_on(tmp_path, monkeypatch):
    from weights_convert.graph import coverage

    tried = []
    monkeypatch.setattr(
        coverage, "_try", lambda name, seconds: tried.append(name) or {"module": name, "outcome": "proven"}
    )
    assert cover("timm", tmp_path, first=2) == 0
    assert cover("timm", tmp_path, first=3) == 0
    assert tried == networks("timm")[:3]
    assert len((tmp_path / "coverage_timm.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_onnx_runtime_is_a_third_witness(tmp_path):
    result, _ = convert_module(wanted("net", onnx=True, training=False))
    assert 0 <= result.onnx_difference <= 1e-5


def test_sizes_are_read():
    assert read_size("128x256") == (128, 256)
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        read_size("0x3")


def test_a_graph_says_which_sizes_it_holds_for():
    source = build_source(f"{NETWORKS}:net", size=(32, 48))
    traced = trace(source.module, 3, source.size)
    assert traced.free == ("B", "H", "W")
    assert traced.allows(np.zeros((2, 3, 64, 96), np.float32))
