import re

from common.cli import UserError
from semsegpaddle_glore.checkpoint import load_backbone
from semsegpaddle_glore.models.backbones import build_backbone
from stdc_seg.models import build_model
from weights_convert import images, torch2paddle
from weights_convert.archs import find_arch
from weights_convert.conversion import Options, fill_source, start
from weights_convert.images import normalised, real_image
from weights_convert.name_map import NameMap, pair_tensors
from weights_convert.networks import OUTPUT, PaddleNetwork, TorchNetwork, randomise
from weights_convert.paddle2torch import convert_back
from weights_convert.proof import Proof, Row, difference, proof_inputs, prove
from weights_convert.weight_files import read_weights

import cv2
import numpy as np
import paddle
import pytest
import torch
from convert_tiny import MAP, tiny_arch

FAMILIES = ["resnet18", "hrnet_w18", "xception65", "efficientnet_b0", "stdcnet813", "stdc1_seg", "stdc1_seg_paddleseg"]


def test_resnet18_is_proven(tmp_path):
    conversion, written = torch2paddle.convert(find_arch("resnet18"), None, tmp_path / "w.pdparams", Options())
    assert len(written) == 3 and conversion.proof.largest <= 1e-5
    assert [row.name for row in conversion.proof.stages][1:4] == ["bn1", "layer1.0", "layer1.1"]
    assert len(conversion.proof.layers) == 41
    backbone = build_backbone("resnet18")
    load_backbone(tmp_path / "w.pdparams", backbone)
    ours, theirs = backbone.state_dict()["layer4.1.bn2._variance"], conversion.source_network.tensors()
    np.testing.assert_array_equal(ours.numpy(), theirs["layer4.1.bn2.running_var"])


def test_a_checkpoint_of_paddleseg_becomes_ours(tmp_path):
    arch = find_arch("stdc1_seg_paddleseg")
    source = arch.sources[0].build(11)
    randomise(source, seed=1)
    paddle.save(source.layer.state_dict(), str(tmp_path / "model.pdparams"))
    out = tmp_path / "ours.pdparams"
    conversion, _ = torch2paddle.convert(arch, tmp_path / "model.pdparams", out, Options())
    assert conversion.num_classes == 11 and conversion.proof.largest <= 1e-6
    # Within stdc_seg's own network those weights compute something else: its pooling counts the padding.
    stock = paddle.load(str(out))
    network = build_model("stdc1", num_classes=11)
    missing, unexpected = network.set_state_dict(stock)
    assert missing == [] and {name.rpartition(".")[2] for name in unexpected} == {"bias"}
    images = conversion.inputs[-1].images
    network.eval()
    theirs = source.run(images, [])["output"][0]
    with paddle.no_grad():
        departure = np.abs(network(paddle.to_tensor(images))[0].numpy() - theirs).max() / np.abs(theirs).max()
    assert departure > 1e-2


@pytest.mark.parametrize("name", ["efficientnet_b0", "stdc1_seg"])
def test_the_source_is_recognised_by_its_names(name):
    arch = find_arch(name)
    for source in arch.sources:
        tensors = source.build(7).tensors()
        assert start(arch, tensors, paddle_side=False, options=Options()).source is source


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_proven_by_three_witnesses_and_comes_back(name, tmp_path):
    arch = find_arch(name)
    out = tmp_path / "w.safetensors"
    conversion, _ = torch2paddle.convert(arch, None, out, Options(onnx=True))
    assert conversion.proof.largest <= 1e-5 and conversion.onnx_difference <= 1e-5
    assert conversion.proof.agreement_percent == pytest.approx(100, abs=0.01)
    assert len(conversion.proof.inputs) == 6
    sizes = {tuple(map(int, name.split()[0].split("x"))) for name in conversion.proof.inputs}
    assert len(sizes) == 3 and any(height % 2 and width % 2 for height, width in sizes)
    if not name.endswith("paddleseg"):
        source = conversion.source_network.tensors()
        convert_back(arch, out, tmp_path / "b.pth", Options())
        back = read_weights(tmp_path / "b.pth")
        assert {key: value.tobytes() for key, value in back.items()} == {k: v.tobytes() for k, v in source.items()}


def test_random_weights_keep_every_stage_alive():
    conversion = start(find_arch("resnet18"), None, paddle_side=False, options=Options())
    fill_source(conversion, None, None)
    network = conversion.source_network
    outputs = network.run(conversion.inputs[0].images, [f"layer{i}.1" for i in range(1, 5)])
    spreads = [float(value.std()) for (value,) in outputs.values()]
    assert all(0.1 < spread < 30 for spread in spreads), spreads
    logits = outputs[OUTPUT][0]
    assert np.abs(logits[0] - logits[1]).max() > 0.1  # images are told apart
    first = network.tensors()["layer1.0.conv1.weight"].copy()
    randomise(network, seed=0)
    np.testing.assert_array_equal(network.tensors()["layer1.0.conv1.weight"], first)


class RareLayersTorch(torch.nn.Module):
    """The types of layer in layer_types.yaml that no network of the list has."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.group_norm = torch.nn.GroupNorm(2, 8)
        self.prelu = torch.nn.PReLU(8)
        self.up = torch.nn.ConvTranspose2d(8, 6, 3, 2, 1)
        self.layer_norm = torch.nn.LayerNorm(6)
        self.embedding = torch.nn.Embedding(6, 6)

    def forward(self, x):
        x = self.up(self.prelu(self.group_norm(self.conv(x)))).mean((2, 3))
        return self.layer_norm(x) @ self.embedding(torch.arange(6))


class RareLayersPaddle(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 8, 3, 2, 1)
        self.group_norm = paddle.nn.GroupNorm(2, 8)
        self.prelu = paddle.nn.PReLU(8)
        self.up = paddle.nn.Conv2DTranspose(8, 6, 3, 2, 1)
        self.layer_norm = paddle.nn.LayerNorm(6)
        self.embedding = paddle.nn.Embedding(6, 6)

    def forward(self, x):
        x = self.up(self.prelu(self.group_norm(self.conv(x)))).mean((2, 3))
        return self.layer_norm(x) @ self.embedding(paddle.arange(6))


def test_layers_that_only_networks_of_one_s_own_have_are_proven_too():
    name_map = NameMap(stages=("conv", "group_norm", "prelu", "up", "layer_norm", "embedding"), classifier="")
    source, target = TorchNetwork(RareLayersTorch()), PaddleNetwork(RareLayersPaddle())
    randomise(source, seed=0)
    pairing = pair_tensors(name_map, source, target)
    target.load(pairing.to_paddle(source.tensors()))
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    proof = prove(source, target, name_map, pairing, proof_inputs(image, (97, 129), (0.5,) * 3, (0.5,) * 3))
    proof.require("rare layers")
    assert [row.name for row in proof.stages] == [*name_map.stages, OUTPUT] and len(pairing.pairs) == 10


def proof_of(tmp_path, change=lambda network: None, table=MAP):
    conversion = start(tiny_arch(tmp_path, table), None, paddle_side=False, options=Options())
    fill_source(conversion, None, None)
    conversion.target_network.load(conversion.pairing.to_paddle(conversion.source_network.tensors()))
    change(conversion.target_network)
    return prove(
        conversion.source_network, conversion.target_network, conversion.name_map, conversion.pairing, conversion.inputs
    )


def test_a_difference_without_tensors_is_named_too(tmp_path):
    def leak(network):  # a leaky ReLU where a ReLU should be
        network.layer.stack[0][2] = paddle.nn.LeakyReLU(0.1)
        network._layers.update(network.layer.named_sublayers())

    with pytest.raises(UserError, match="stage 'blocks.0' departs by .*, first in layer 'blocks.1.0'"):
        proof_of(tmp_path, leak).require("tiny")


def test_what_is_not_finite_departs(tmp_path):
    proof = proof_of(tmp_path, lambda network: network.load({"fc.bias": np.full(5, np.nan, np.float32)}))
    assert [row.name for row in proof.stages if row.departs] == ["fc", OUTPUT]
    assert proof.stages[-1].largest == float("inf")


def test_differences_of_several_outputs_by_hand():
    one, two = np.array([4.0, -8.0]), np.array([[0.0, 1.0]])
    assert difference([one, two], [one, two]) == 0
    assert difference([one + 2, two], [one, two]) == 2 / 8
    assert difference([one, two * 1.5], [one, two]) == 0.5
    for broken in ([one], [one, two.T], [one, two * np.nan], [one, two + np.inf]):
        assert difference(broken, [one, two]) == float("inf")
    assert difference([one], [one * 0]) == float("inf")


def test_a_layer_that_never_runs_is_named(tmp_path):
    def bypass(network):
        network.layer.encoding.forward = lambda x: x
        network.layer.hidden.__class__ = type("Idle", (paddle.nn.Linear,), {"__call__": lambda self, x: x})

    with pytest.raises(UserError, match="layer 'hidden' is run by one of the networks only"):
        proof_of(tmp_path, bypass)


def test_a_stage_that_the_other_network_has_not_is_named(tmp_path):
    rows = [f"  - {{pattern: '^blocks.{i}.(\\d)', replacement: 'stack.{i}.\\1'}}" for i in (0, 1)]
    table = MAP.replace("  - {pattern: '^blocks', replacement: stack}", "\n".join(rows))
    with pytest.raises(UserError, match="stage 'blocks.0' would be 'blocks.0', which is no layer of the Paddle"):
        proof_of(tmp_path, table=table)


def test_agreement_of_the_highest_class_is_required():
    agreeing = (Row("fc", (1e-6,)),)
    Proof(("a",), agreeing, agreeing, 99.995).require("x")
    with pytest.raises(UserError, match="the highest class agrees on 99.980 % only"):
        Proof(("a",), agreeing, agreeing, 99.98).require("x")
    with pytest.raises(UserError, match="stage 'fc' departs by 1.1e-05, no layer with tensors alone"):
        Proof(("a",), (Row("fc", (1e-6, 1.1e-5)),), agreeing, 100.0).require("x")
    assert Row("fc", (float("nan"),)).departs


def test_the_real_image_is_a_photograph_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PHOTOGRAPHS", tmp_path / "nothing")
    drawn, title = real_image(None)
    assert drawn.shape == (256, 384, 3) and title.startswith("drawn")
    photographs = tmp_path / "val"
    photographs.mkdir()
    monkeypatch.setattr(images, "PHOTOGRAPHS", photographs)
    assert real_image(None)[1].startswith("drawn")
    cv2.imwrite(str(photographs / "b.png"), np.full((4, 6, 3), 7, np.uint8))
    cv2.imwrite(str(photographs / "a.png"), np.full((4, 6, 3), (30, 20, 10), np.uint8))
    image, title = real_image(None)
    assert title == "photograph a.png of CamVid" and tuple(image[0, 0]) == (10, 20, 30)
    assert real_image(photographs / "b.png")[1] == "photograph b.png, given"


def test_images_are_normalised_rgb():
    image = np.zeros((10, 20, 3), np.uint8)
    image[..., 0] = 255
    values = normalised(image, (5, 8), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    assert values.shape == (1, 3, 5, 8) and values.dtype == np.float32
    np.testing.assert_allclose(values[0, :, 2, 3], [1, -1, 0])
    names = [item.name for item in proof_inputs(image, (97, 129), (0.5,) * 3, (0.5,) * 3)]
    assert names[-1] == "97x129 image" and all(re.fullmatch(r"\d+x\d+ (random|image)", name) for name in names)
