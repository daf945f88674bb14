from awesome_pytorch_seg.models import build_model, fcn
from awesome_pytorch_seg.models.backbones import BACKBONES, Backbone
from common.cli import UserError
from common.weights.package import weight_file

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import vgg


def shaken(module, seed=0):
    """Random statistics and gains, so that no layer is the identity."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.7, 1.3)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_(0, 0.2)
    return module.eval()


def library_network(name):
    if name.startswith(("resnet", "xception")):
        return timm.create_model(name, num_classes=7)
    if name == "efficientnet_lite0":
        return timm.create_model(f"tf_{name}", num_classes=7)
    if name == "vgg16_bn":  # without the 120 million numbers of its fully connected layers
        return nn.ModuleDict({"features": vgg.make_layers(vgg.cfgs["D"], batch_norm=True)})
    return torchvision.models.get_model(name, weights=None, num_classes=7)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50s", "densenet121", "vgg16_bn", "xception65", "efficientnet_lite0"]
)
def test_a_librarys_file_gives_the_librarys_features(name, tmp_path):
    library = shaken(library_network(name))
    torch.save(library.state_dict(), tmp_path / "weights.pth")
    safetensors.torch.save_file(library.state_dict(), tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        if name.startswith(("resnet", "xception")):
            expected = library.forward_features(images)
        elif name == "efficientnet_lite0":
            expected = library.blocks(library.bn1(library.conv_stem(images)))
        else:
            expected = library.features(images)
            expected = F.relu(expected) if name.startswith("densenet") else expected
        for file in ("weights.pth", "weights.safetensors"):
            ours = Backbone(name, weights=str(tmp_path / file)).eval()
            assert torch.equal(ours(images)[-1], expected)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", BACKBONES)
def test_channels_and_strides_are_those_of_the_features(name, output_stride):
    with torch.device("meta"):
        backbone = Backbone(name, output_stride).eval()
        features = backbone(torch.empty(1, 3, 64, 96))
    assert backbone.strides == tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
    expected = [
        (1, c, 64 // stride, 96 // stride) for c, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "xception65"])
def test_dilated_features_are_the_undilated_ones_and_those_between(name):
    plain = shaken(Backbone(name, 32))
    images = torch.randn(1, 3, 129, 97)
    with torch.no_grad():
        expected = plain(images)
        for output_stride in (8, 16):
            dilated = Backbone(name, output_stride).eval()
            dilated.load_state_dict(plain.state_dict())
            for ours, theirs, stride in zip(dilated(images), expected, plain.strides, strict=True):
                step = max(1, stride // output_stride)
                assert (ours[..., ::step, ::step] - theirs).abs().max() < 1e-5 * theirs.abs().max()


def dilations(stage):
    return {conv.dilation[0] for conv in stage.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)}


@pytest.mark.parametrize(
    ("name", "output_stride", "expected"),
    [
        *(("densenet121", 32, [1, 1, 1, 1]), ("densenet121", 16, [1, 1, 1, 2]), ("densenet121", 8, [1, 1, 2, 4])),
        *(("vgg16", 32, [1, 1, 1, 1]), ("vgg16", 16, [1, 1, 1, 1]), ("vgg16", 8, [1, 1, 1, 2])),
    ],
)
def test_what_follows_a_removed_pooling_is_dilated(name, output_stride, expected):
    """DenseNet pools before a stage, VGG at its end."""
    assert [dilations(stage) for stage in Backbone(name, output_stride).stages] == [{d} for d in expected]


def test_names_of_old_densenet_files(tmp_path):
    library = torchvision.models.densenet121(num_classes=7)
    old = {name.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for name, v in library.state_dict().items()}
    old = {name: value for name, value in old.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    ours = Backbone("densenet121", weights=str(tmp_path / "old.pth"))
    assert torch.equal(
        ours.stages[0][0].denselayer1.conv2.weight, library.features.denseblock1.denselayer1.conv2.weight
    )
    assert torch.equal(ours.stages[3][2].weight, library.features.norm5.weight)


WRAPPINGS = {
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda tensors: {"model": tensors},
    "model in state_dict": lambda tensors: {"state_dict": {"model": tensors}},
    "module.": lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    "_orig_mod.": lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()},
    "all of them": lambda tensors: {"model": {f"module._orig_mod.module.{k}": v for k, v in tensors.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_taken_out_of_checkpoints_of_training(wrapping, tmp_path):
    library = shaken(timm.create_model("resnet18"))
    torch.save(WRAPPINGS[wrapping](library.state_dict()), tmp_path / "weights.pth")
    ours = Backbone("resnet18", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(ours.stages[3][1].conv2.weight, library.layer4[1].conv2.weight)
    assert torch.equal(ours.stem[1].running_var, library.bn1.running_var)


def test_prefixes_in_safetensors(tmp_path):
    library = shaken(timm.create_model("resnet18"))
    safetensors.torch.save_file(WRAPPINGS["module."](library.state_dict()), tmp_path / "weights.safetensors")
    ours = Backbone("resnet18", weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(ours.stem[1].running_var, library.bn1.running_var)


class Runs:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"layer1.0.conv1.weight": torch.zeros(3)},
            "in another shape 1 tensors, .*layer1.0.conv1.weight",
        ),
        (lambda t: {k: v for k, v in t.items() if k != "layer4.1.bn2.bias"}, "lacks 1 tensors, first 'layer4.1.bn2.b"),
        (lambda t: t | {"layer5.weight": torch.zeros(3)}, "has besides 1 tensors, first 'layer5.weight'"),
        (lambda t: {"weights": t}, "holds more than named tensors"),
        (lambda t: {"state_dict": None}, "holds more than named tensors"),
        (lambda t: t | {"module.bn1.weight": t["bn1.weight"]}, "holds a tensor twice"),
        (lambda t: {"weights": Runs()}, "holds more than tensors"),
    ],
)
def test_files_that_do_not_fit(change, message, tmp_path, capsys):
    torch.save(change(timm.create_model("resnet18").state_dict()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        Backbone("resnet18", weights=str(tmp_path / "weights.pth"))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_that_are_not_whole(ending, tmp_path):
    path = tmp_path / f"weights.{ending}"
    tensors = timm.create_model("resnet18").state_dict()
    torch.save(tensors, path) if ending == "pth" else safetensors.torch.save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a whole weight file"):
        Backbone("resnet18", weights=str(path))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=str(path)):
        Backbone("resnet18", weights=str(path))


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [("xception", 32, "unknown backbone 'xception': did you mean 'xception65'"), ("vgg16", 4, "use 8, 16 or 32")],
)
def test_mistakes(name, output_stride, message):
    with pytest.raises(UserError, match=message):
        Backbone(name, output_stride)


def test_fcn_takes_the_fully_connected_layers_as_convolutions(tmp_path, monkeypatch):
    monkeypatch.setattr(fcn, "FC_CHANNELS", 8)
    features = {f"features.{name}": value for name, value in vgg.make_layers(vgg.cfgs["D"]).state_dict().items()}
    linear = nn.Linear(512 * 49, 8)
    second = nn.Linear(8, 8)
    tensors = features | {f"classifier.0.{k}": v for k, v in linear.state_dict().items()}
    torch.save(tensors, tmp_path / "half.pth")
    with pytest.raises(UserError, match="lacks the fully connected layer 'classifier.3'"):
        build_model("fcn32s", backbone_weights=str(tmp_path / "half.pth"))
    tensors |= {f"classifier.3.{k}": v for k, v in second.state_dict().items()}
    torch.save(tensors, tmp_path / "whole.pth")
    head = build_model("fcn32s", backbone_weights=str(tmp_path / "whole.pth")).decode_head
    pooled = torch.randn(2, 512, 7, 7)
    expected = second(F.relu(linear(pooled.flatten(1))))  # (2, 8)
    with torch.no_grad():
        ours = head[3](F.relu(head[0](pooled)))[:, :, 3, 3]  # where the 7x7 window covers it all
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_lite0_starts_from_the_weights_of_its_package():
    backbone = Backbone("efficientnet_lite0", 16, "package")
    stored = torch.load(weight_file("package", "efficientnet_lite0"), weights_only=True)
    assert torch.equal(backbone.stem[0].weight, stored["_conv_stem.weight"])
    assert torch.equal(backbone.stages[3][1][0].conv_pwl.weight, stored["_blocks.15._project_conv.weight"])
    with pytest.raises(UserError, match="no package has weights for 'resnet18'"):
        Backbone("resnet18", 16, "package")
