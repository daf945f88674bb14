import csv
import math
import re
from pathlib import Path

from common.cli import UserError
from stdc_seg.models import STDCClassifier, build_model
from stdc_seg.models.layers import avg_pool_3x3_stride2, refuse_single_value_batch_norm, resize_bilinear, resize_nearest

import numpy as np
import paddle
import pytest
import torch
from torch_stdc import Backbone, OfficialSTDCSeg, our_name

OFFICIAL = Path(__file__).parent / "official"
OFFICIAL_NAME = {"stdc1": "STDCNet813", "stdc2": "STDCNet1446"}


def official_keys(kind, name):
    with open(OFFICIAL / f"{kind}_official_{OFFICIAL_NAME[name]}.csv") as stream:
        return list(csv.DictReader(stream))


def shape_of(row):
    return () if row["shape"] == "scalar" else tuple(int(side) for side in row["shape"].split("x"))


def fill_randomly(module, seed):
    """Weights and running statistics of sizes that keep activations alive through the whole network."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith(("bn.weight", "running_var", "avd_layer.1.weight", "bn_atten.weight")):
            tensor.uniform_(0.8, 1.2)
        elif tensor.dtype == torch.float32 and tensor.ndim == 1:
            tensor.normal_(0, 0.1)
        elif tensor.dtype == torch.float32:
            tensor.normal_(0, math.sqrt(2 / tensor[0].numel()))
    return module.eval()


def ours_from(official, name):
    model = build_model(name)
    tensors = {our_name(key): value.numpy() for key, value in official.state_dict().items() if our_name(key)}
    missing, unexpected = model.set_state_dict({k: paddle.to_tensor(v) for k, v in tensors.items()})
    assert missing == [] and unexpected == []
    return model


@pytest.mark.parametrize("name", ["stdc1", "stdc2"])
def test_every_used_official_tensor_maps_one_to_one(name):
    ours = {key: tuple(value.shape) for key, value in build_model(name).state_dict().items()}
    mapped = [(our_name(row["key"]), shape_of(row)) for row in official_keys("stdc_seg", name) if our_name(row["key"])]
    assert len(mapped) == len(dict(mapped)), "two official tensors fill the same one of ours"
    assert dict(mapped) == ours


@pytest.mark.parametrize(("name", "official_total"), [("stdc1", 12_048_928), ("stdc2", 16_079_392)])
def test_parameter_count_reaches_the_official_one_with_its_unused_parts(name, official_total):
    ours = sum(parameter.size for parameter in build_model(name).parameters() if not parameter.stop_gradient)
    unused = 0
    for row in official_keys("stdc_seg", name):
        is_statistic = row["key"].endswith(("running_mean", "running_var", "num_batches_tracked"))
        is_second_name = re.match(r"cp\.backbone\.x\d+\.", row["key"])
        if our_name(row["key"]) is None and not is_statistic and not is_second_name:
            unused += math.prod(shape_of(row))
    assert unused > 3_000_000
    assert ours + unused == official_total


@pytest.mark.parametrize("name", ["stdc1", "stdc2"])
def test_the_torch_twin_has_the_official_keys_and_shapes(name):
    counter = "num_batches_tracked"  # the official decoder's InPlaceABN has none
    twin = OfficialSTDCSeg(name).state_dict().items()
    keys = {row["key"]: shape_of(row) for row in official_keys("stdc_seg", name) if not row["key"].endswith(counter)}
    assert {key: tuple(value.shape) for key, value in twin if not key.endswith(counter)} == keys


def as_list(outputs):
    """The training outputs in the official network's order."""
    assert list(outputs) == ["logits", "aux", "detail"]
    return [outputs["logits"], *outputs["aux"], outputs["detail"]]


@pytest.mark.parametrize(("name", "size"), [("stdc1", (65, 97)), ("stdc2", (96, 128))])
def test_outputs_agree_with_pytorch(name, size):
    official = fill_randomly(OfficialSTDCSeg(name), seed=1)
    model = ours_from(official, name)
    images = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
    with torch.no_grad():
        expected = [output.numpy() for output in official(torch.from_numpy(images))]
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images))
        model.training = True  # of the whole only: all outputs, with the running statistics
        outputs = [output.numpy() for output in as_list(model(paddle.to_tensor(images)))]
    np.testing.assert_array_equal(outputs[0], logits.numpy())
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert (outputs[0].argmax(1) == expected[0].argmax(1)).mean() > 0.9999


def test_gradients_agree_with_pytorch():
    official = fill_randomly(OfficialSTDCSeg("stdc1"), seed=2)
    model = ours_from(official, "stdc1")
    images = np.random.default_rng(1).standard_normal((2, 3, 65, 65))  # float64: rounding must not hide a mistake
    official.double().train()
    model.to(dtype="float64")
    model.train()
    sum((output**2).mean() for output in official(torch.from_numpy(images))).backward()
    sum((output**2).mean() for output in as_list(model(paddle.to_tensor(images)))).backward()
    ours = dict(model.named_parameters())
    compared = 0
    for key, parameter in official.named_parameters():
        if our_name(key) and parameter.grad is not None:
            theirs = parameter.grad.numpy()
            error = np.abs(ours[our_name(key)].grad.numpy() - theirs).max() / np.abs(theirs).max()
            assert error < 1e-6, f"{key}: {error:.1e}"
            compared += 1
    assert compared == sum(not p.stop_gradient for p in ours.values())


@pytest.mark.parametrize("name", ["stdc1", "stdc2"])
def test_classifier_agrees_with_pytorch(name):
    official = fill_randomly(Backbone(name), seed=3)
    official.linear.weight.data.normal_(0, 0.05)
    model = STDCClassifier(name)
    tensors = {}
    for key, value in official.state_dict().items():
        if key.startswith(("features.", "conv_last.", "fc.", "linear.")) and not key.endswith("num_batches_tracked"):
            array = value.numpy().T if key in ("fc.weight", "linear.weight") else value.numpy()
            renamed = key.replace("running_mean", "_mean").replace("running_var", "_variance")
            tensors[("backbone." if key.startswith("features.") else "") + renamed] = paddle.to_tensor(array.copy())
    assert model.set_state_dict(tensors) == ([], [])
    model.eval()
    images = np.random.default_rng(2).standard_normal((2, 3, 64, 96), dtype=np.float32)
    with torch.no_grad(), paddle.no_grad():
        expected = official.classify(torch.from_numpy(images)).numpy()
        ours = model(paddle.to_tensor(images)).numpy()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(65, 97), (129, 66), (64, 64)])
def test_any_size_comes_back(size):
    paddle.seed(0)
    model = build_model("stdc1", num_classes=5)
    images = paddle.randn([2, 3, *size])
    shapes = [tuple(output.shape) for output in as_list(model(images))]
    assert shapes == [(2, 5, *size)] * 3 + [(2, 1, math.ceil(size[0] / 8), math.ceil(size[1] / 8))]
    model.eval()
    assert tuple(model(images[:1]).shape) == (1, 5, *size)


def test_backbone_contract():
    backbone = build_model("stdc1").backbone
    features = backbone(paddle.zeros([1, 3, 64, 96]))
    for feature, channels, stride in zip(features, backbone.out_channels, backbone.strides, strict=True):
        assert tuple(feature.shape) == (1, channels, 64 // stride, 96 // stride)


def test_every_parameter_gets_a_gradient():
    paddle.seed(0)
    model = build_model("stdc1", num_classes=3)
    sum((output**2).sum() for output in as_list(model(paddle.randn([2, 3, 96, 96])))).backward()
    without = [n for n, p in model.named_parameters() if not p.stop_gradient and (p.grad is None or not p.grad.any())]
    assert without == []


def test_initial_weights_have_the_official_spread():
    paddle.seed(0)
    model = build_model("stdc2")
    backbone = model.backbone.features[3].conv_list[1].conv.weight  # 3x3, 128 -> 64
    assert float(backbone.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)
    head = model.decode_head.conv.conv.weight  # 3x3, 256 -> 256
    assert float(head.std()) == pytest.approx(math.sqrt(1 / (256 * 9)), rel=0.03)


def test_average_pooling_counts_the_padding():
    ones = paddle.ones([1, 1, 4, 4])
    corner = float(avg_pool_3x3_stride2(ones)[0, 0, 0, 0])
    assert corner == pytest.approx(4 / 9)


@pytest.mark.parametrize("size", [(7, 13), (16, 8), (5, 5)])
def test_resizing_agrees_with_pytorch(size):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6), dtype=np.float32)
    functional = torch.nn.functional
    bilinear = functional.interpolate(torch.from_numpy(x), size, mode="bilinear", align_corners=True).numpy()
    nearest = functional.interpolate(torch.from_numpy(x), size, mode="nearest").numpy()
    np.testing.assert_allclose(resize_bilinear(paddle.to_tensor(x), size).numpy(), bilinear, atol=1e-6)
    np.testing.assert_array_equal(resize_nearest(paddle.to_tensor(x), size).numpy(), nearest)


@pytest.mark.parametrize("size", [(7, 13), (16, 8), (5, 6), (1, 1), (40, 48)])
def test_resizing_for_training_agrees_with_pytorch_and_so_does_its_gradient(size):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6), dtype=np.float32)
    weight = np.random.default_rng(1).standard_normal((2, 3, *size), dtype=np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.interpolate(theirs, size, mode="bilinear", align_corners=True)
    (expected * torch.from_numpy(weight)).sum().backward()
    ours = paddle.to_tensor(x, stop_gradient=False)
    out = resize_bilinear(ours, size)
    (out * paddle.to_tensor(weight)).sum().backward()
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-5)


def test_a_batch_of_one_is_refused_in_training_and_fine_in_evaluation():
    model = build_model("stdc1", num_classes=3)
    image = paddle.randn([1, 3, 65, 65])
    with refuse_single_value_batch_norm(model):
        with pytest.raises(UserError, match=r"'context_path\..*one value per channel.*at least 2"):
            model(image)
        model(paddle.randn([2, 3, 65, 65]))
        model.eval()
        model(image)
    model.train()
    model(image)  # the guard is gone


def test_build_model_names_what_it_knows():
    with pytest.raises(UserError, match="unknown network 'stcd2': did you mean 'stdc2'"):
        build_model("stcd2")
    with pytest.raises(UserError, match="has backbone 'stdc2', not 'resnet50'"):
        build_model("stdc2", backbone="resnet50")
