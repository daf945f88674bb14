from awesome_pytorch_seg.config import LossConfig
from awesome_pytorch_seg.losses import build_loss
from awesome_pytorch_seg.models import MODELS, build_model, fcn
from common.cli import UserError

import pytest
import torch

NETWORKS = [name for name in MODELS if name != "enet"]  # test_enet.py
EVERY_PAIR = [(name, backbone) for name in NETWORKS for backbone in MODELS[name].backbones]
LIGHT = {"vgg16", "resnet18", "resnet50_half", "densenet121"}
LIGHT_PAIRS = [pair for pair in EVERY_PAIR if pair[1] in LIGHT]
CLASSES = 5
LOSS = LossConfig(class_weights=None, ohem_threshold=None, ohem_min_kept_fraction=0.1, dice_weight=0.0, aux_weight=0.4)


@pytest.fixture(autouse=True)
def small_fully_connected_layers(monkeypatch):
    """FCN's 120 million parameters at full width are for the test that counts them."""
    monkeypatch.setattr(fcn, "FC_CHANNELS", 64)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def wake(model):
    """Gives values to what starts at 0 and would hold back the gradient of everything before it."""
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone") and not parameter.any() and (parameter.ndim > 1 or parameter.numel() == 1):
            torch.nn.init.normal_(parameter, std=0.1)


def learn_once(name, backbone, size):
    torch.manual_seed(0)
    model = build_model(name, backbone, CLASSES)
    wake(model)
    outputs = model(torch.randn(2, 3, *size))
    loss = build_loss(name, LOSS, CLASSES)
    total, parts = loss(outputs, torch.randint(0, CLASSES, (2, *size)))
    assert tuple(parts) == loss.names
    assert all(torch.isfinite(part) for part in parts.values())
    total.backward()
    unreached = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []
    assert [key for key, p in model.named_parameters() if not p.grad.any()] == []
    return model


@pytest.mark.parametrize(("name", "backbone"), LIGHT_PAIRS)
def test_the_loss_reaches_every_parameter_and_logits_have_the_size_of_the_image(name, backbone):
    model = learn_once(name, backbone, (65, 97)).eval()
    with torch.no_grad():
        for size in [(65, 97), (64, 48)]:
            assert model(torch.randn(1, 3, *size)).shape == (1, CLASSES, *size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backbone"), [pair for pair in EVERY_PAIR if pair not in LIGHT_PAIRS])
def test_every_other_backbone_learns(name, backbone):
    model = learn_once(name, backbone, (65, 97)).eval()
    with torch.no_grad():
        for size in [(65, 97), (64, 48)]:
            assert model(torch.randn(1, 3, *size)).shape == (1, CLASSES, *size)


@pytest.mark.slow
def test_fcn_learns_at_full_width(monkeypatch):
    monkeypatch.setattr(fcn, "FC_CHANNELS", 4096)
    learn_once("fcn8s", "vgg16", (65, 97))


@pytest.mark.parametrize("name", [name for name in NETWORKS if MODELS[name].output_strides])
def test_output_strides(name):
    backbone = "densenet121" if name == "denseaspp" else "resnet18"
    for output_stride in MODELS[name].output_strides:
        model = build_model(name, backbone, CLASSES, output_stride=output_stride).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 3, 65, 70)).shape == (1, CLASSES, 65, 70)
            assert model.backbone(torch.randn(1, 3, 64, 64))[-1].shape[2] == 64 // output_stride


UNUSED_FC = 2048 * 1000 + 1000  # the ImageNet classifier that the original builds into each ResNet and never uses
BN = 2  # weight and bias of a normalisation, per channel
AUX = 1024 * 256 * 9 + BN * 256 + 256 * 19 + 19  # the usual auxiliary head on ResNet's third stage, 19 classes
AUX_OCNET = 1024 * 512 * 9 + BN * 512 + 512 * 19 + 19
EXTRA_DEEPLAB_CONV = 256 * 256 * 9 + BN * 256  # 3x3 before the classifier, not in the paper
SLIM_FCN_HEAD = 512 * 128 * 9 + BN * 128 + 128 * 19 + 19
FULL_FCN_HEAD = (512 * 49 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 19
FFM_GATE_OF_THE_ORIGINAL = 2 * 256 * 64 + BN * (64 + 256)
ICNET_HEAD_OF_THE_ORIGINAL = 2048 * 128 * 9 + 3 * 128 * 19
ICNET_HEAD = 2048 * 512 + BN * 512 + 512 * 128 * 9 + (512 + 1) * 19 + 2 * (128 + 1) * 19
DUNET_AUX_OF_THE_ORIGINAL = 1024 * 256 * 9 + BN * 256 + 256 * 256 + 256 + 256 * 19 * 64
ATTENTION_512 = 512 * 256 + BN * 256 + 2 * (512 + 1) * 512  # key, value, out at 512 channels
ASP_OF_THE_ORIGINAL = (
    *(2048 * 512 * 9 + 512 + BN * 512, ATTENTION_512 + 256, 512 * 512 + 512 + BN * 512),
    *(3 * (2048 * 512 * 9 + BN * 512), 2048 * 512 + BN * 512, 5 * 512 * 512 + BN * 512),
)
ASP = (
    *(2048 * 512 * 9 + BN * 512, 512 * 256 * 9 + BN * 256, 256 * 128 + BN * 128 + 2 * (256 + 1) * 256),
    *(256 * 256 + BN * 256, 3 * (512 * 256 * 9 + BN * 256), 512 * 256 + BN * 256, 5 * 256 * 512 + BN * 512),
)
# Ours at 19 classes = the known implementation's (reference: model_facts.csv), and what the two have apart.
KNOWN = {
    ("pspnet", "resnet50s"): (49_080_038,),  # hszhao/semseg; PyTorch-Encoding
    ("pspnet", "resnet101s"): (68_072_166,),  # hszhao/semseg
    ("encnet", "resnet50s"): (35_996_505,),  # PyTorch-Encoding
    ("encnet", "resnet101s"): (54_988_633,),
    ("deeplabv3", "resnet50s"): (42_126_822, -AUX, -EXTRA_DEEPLAB_CONV),  # PyTorch-Encoding
    ("deeplabv3", "resnet101s"): (63_167_950, -UNUSED_FC, -AUX, -EXTRA_DEEPLAB_CONV),  # the rest: Tramac
    ("danet", "resnet50s"): (49_635_427, -UNUSED_FC),
    ("danet", "resnet101s"): (68_627_555, -UNUSED_FC),
    # 512 channels in the auxiliary head; without the biases before normalisations
    ("ocnet_base", "resnet50s"): (38_414_030, -UNUSED_FC, AUX_OCNET - AUX, -256 - 512),
    ("ocnet_pyramid", "resnet50s"): (43_275_470, -UNUSED_FC, AUX_OCNET - AUX, -4 * 256 - 4 * 512 - 512),
    ("ocnet_asp", "resnet50s"): (69_090_766, -UNUSED_FC, AUX_OCNET - AUX, -sum(ASP_OF_THE_ORIGINAL), sum(ASP)),
    # the gate of feature fusion is not narrowed and not normalised
    ("bisenet", "resnet18"): (13_397_113, -FFM_GATE_OF_THE_ORIGINAL, 2 * 256 * 256),
    ("icnet", "resnet50s"): (28_298_376, -UNUSED_FC, -ICNET_HEAD_OF_THE_ORIGINAL, ICNET_HEAD),
    # blocks of 16x16 pixels in place of 8x8; a temperature; no auxiliary head
    ("dunet", "resnet50s"): (34_333_544, -UNUSED_FC, -DUNET_AUX_OF_THE_ORIGINAL, 256 * 19 * (256 - 64), 1),
    ("fcn32s", "vgg16"): (15_307_219, -SLIM_FCN_HEAD, FULL_FCN_HEAD),
    ("fcn16s", "vgg16"): (15_316_966, -SLIM_FCN_HEAD, FULL_FCN_HEAD),
    ("fcn8s", "vgg16"): (15_321_849, -SLIM_FCN_HEAD, FULL_FCN_HEAD),
}
DENSENET_FACTS = {"densenet121": 10_221_051, "densenet161": 32_461_211, "densenet169": 17_223_035}
DENSENET_FACTS["densenet201"] = 23_420_027


@pytest.mark.parametrize(("name", "backbone"), KNOWN)
def test_parameters_as_known_or_apart_by_what_is_named(name, backbone, monkeypatch):
    monkeypatch.setattr(fcn, "FC_CHANNELS", 4096)
    with torch.device("meta"):
        assert count(build_model(name, backbone)) == sum(KNOWN[name, backbone])


def test_fcn_is_vgg16_with_another_classifier(monkeypatch):
    monkeypatch.setattr(fcn, "FC_CHANNELS", 4096)
    imagenet_total, imagenet_classifier = 138_357_544, (4096 + 1) * 1000  # torchvision
    with torch.device("meta"):
        assert count(build_model("fcn32s")) == imagenet_total - imagenet_classifier + (4096 + 1) * 19


@pytest.mark.parametrize("backbone", DENSENET_FACTS)
def test_denseaspp_parameters(backbone):
    """The original has widths 256 and 64 for every backbone and no transition; both have 5 blocks in a dense chain."""

    def blocks(channels, inner, growth, bias, norm_inputs):
        inputs = [channels + i * growth for i in range(5)]
        convs = sum(c * inner + bias * inner + inner * growth * 9 + growth for c in inputs)
        return convs + BN * (5 * inner + sum(norm_inputs(inputs, growth))) + (channels + 5 * growth + 1) * 19

    channels = {"densenet121": 1024, "densenet161": 2208, "densenet169": 1664, "densenet201": 1920}[backbone]
    widths = {"densenet121": (128, 64), "densenet161": (512, 128), "densenet169": (336, 168)}
    theirs = blocks(channels, 256, 64, 1, lambda inputs, growth: [growth] * 5)  # normalised after each convolution
    ours = blocks(channels // 2, *widths.get(backbone, (480, 240)), 0, lambda inputs, growth: inputs[1:])
    transition = channels * (channels // 2) + BN * (channels // 2)
    imagenet_classifier = (channels + 1) * 1000
    with torch.device("meta"):
        parameters = count(build_model("denseaspp", backbone))
    assert parameters == DENSENET_FACTS[backbone] - imagenet_classifier - theirs + transition + ours


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pspnett", {}, "unknown network 'pspnett': did you mean 'pspnet'"),
        ("pspnet", {"backbone": "vgg16"}, "network 'pspnet' has no backbone 'vgg16': valid: resnet50"),
        ("deeplabv3", {"output_stride": 32}, "no output stride 32: 8 or 16"),
        ("bisenet", {"output_stride": 8}, "no output stride 8: leave it out"),
        ("enet", {"backbone_weights": "file.pth"}, "no separate backbone"),
        ("pspnet", {"backbone_weights": "no.pth"}, "no weight file no.pth: check the path"),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(UserError, match=message):
        build_model(name, **options)


@pytest.mark.parametrize(("alias", "name"), [("psp", "pspnet"), ("ocnet", "ocnet_base")])
def test_names_of_the_original(alias, name):
    with torch.device("meta"):
        ours, theirs = build_model(name, "resnet18"), build_model(alias, "resnet18")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
