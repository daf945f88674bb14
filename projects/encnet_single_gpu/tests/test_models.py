import math

from common.cli import UserError
from encnet_single_gpu.models import HEADS, build_model, model_names
from encnet_single_gpu.models.encnet import Encoding
from encnet_single_gpu.models.jpu import JPU

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def built(name, backbone=None, num_classes=19):
    with torch.device("meta"):  # counts need no memory
        return build_model(name, backbone, num_classes)


def double_convs(in_channels, out_channels, extra):
    return 9 * out_channels * (in_channels + out_channels) + 2 * extra * out_channels


# The original implementations' networks, from model_facts.csv.
@pytest.mark.parametrize(
    ("name", "backbone", "count"),
    [
        ("pspnet", "resnet50s", 49_080_038),  # hszhao/semseg and zhanghang1989/PyTorch-Encoding
        ("pspnet", "resnet101s", 68_072_166),
        ("encnet", "resnet50s", 35_996_505),  # PyTorch-Encoding
        ("encnet", "resnet101s", 54_988_633),
        ("deeplabv3", "resnet50s", 42_126_822),
        ("fcn", "resnet50s", 35_444_454),
    ],
)
def test_parameters_as_in_the_original(name, backbone, count):
    assert parameters(built(name, backbone)) == count


def test_parameters_of_layers_as_in_the_original():
    assert parameters(Encoding(32, 8)) == 264  # PyTorch-Encoding
    with torch.device("meta"):
        jpu = JPU((512, 1024, 2048))
    assert parameters(jpu) == 70_864_590 - 51_129_038  # Tramac's PSPNet with JPU, less that without
    # CSAILVision's PSPNet of 150 classes: its auxiliary head has 512 channels, ours 256.
    wider_aux = 256 * (1024 * 9 + 2 + 150)
    assert parameters(built("pspnet", "resnet50s", 150)) == 51_579_116 - wider_aux


def test_parameters_differ_from_other_implementations_as_explained():
    # PaddleSeg's convolutions before a normalisation have biases, and its ResNet50_vd has a deep stem of 32 channels.
    biases = 3 * 2048 + 304 + 256 + 5 * 256 + 256 + 256 + 48
    deep_stem = 3 * 32 * 9 + 32 * 32 * 9 + 32 * 64 * 9 + 4 * 32 - 3 * 64 * 49
    assert parameters(built("deeplabv3plus")) == 26_723_395 - biases - deep_stem
    # PaddleSeg's fourth decoder stage has a third convolution.
    assert parameters(built("segnet")) == 29_601_811 - (128 * 128 * 9 + 3 * 128)
    widths = (32, 64, 128, 256, 512)
    biases = 2 * sum(width * (5 - level) for level, width in enumerate(widths))  # PaddleSeg's unetplusplus_deconv
    assert parameters(built("unetplusplus")) == 9_051_948 - biases
    # segmentation_models_pytorch 0.6.0 leaves out the 3x3 convolutions on the pyramid's levels.
    assert parameters(built("fpn")) == 26_118_355 + 4 * (256 * 256 * 9 + 256)


def test_parameters_counted_from_the_papers():
    # RefineNet, 21 classes: 118 M, as "Light-Weight RefineNet" (BMVC 2018, table 1) gives it for ResNet-101.
    unit = {width: 2 * 9 * width**2 + width for width in (256, 512)}
    conv = {width: 9 * width**2 for width in (256, 512)}
    coarsest = 9 * 2048 * 512 + 5 * unit[512] + 4 * conv[512]
    finer = [9 * count * 256 + 5 * unit[256] + 4 * conv[256] + conv[256] for count in (1024, 512, 256)]
    fusions = 9 * 512 * 256 + 2 * conv[256]
    decoder = coarsest + sum(finer) + fusions + 9 * 256 * 21 + 21
    assert parameters(built("refinenet", "resnet101", 21)) == 42_500_160 + decoder == 118_052_437
    # U-Net, figure 1, with weight and bias of a normalisation in place of each convolution's bias.
    widths = (64, 128, 256, 512, 1024)
    down = sum(double_convs(*pair, extra=2) for pair in zip((3, *widths), widths, strict=False))
    up = sum(4 * 2 * w * w + w + double_convs(2 * w, w, extra=2) for w in widths[:-1])
    assert parameters(built("unet")) == down + up + 64 * 19 + 19 == 31_038_803
    # LinkNet, table 1: (m, n) of the decoder blocks; "about 11.5 million" (section 4).
    blocks = sum(
        m * (m // 4) + 9 * (m // 4) ** 2 + (m // 4) * n + 4 * (m // 4) + 2 * n
        for m, n in ((512, 256), (256, 128), (128, 64), (64, 64))
    )
    last = 9 * 64 * 32 + 64 + 9 * 32 * 32 + 64 + 4 * 32 * 19 + 19
    assert parameters(built("linknet")) == 11_176_512 + blocks + last == 11_535_635
    # SegNet-Basic on CamVid, from the authors' prototxt.
    convs = 49 * 3 * 64 + 7 * 49 * 64 * 64 + 8 * 64
    assert parameters(built("segnet_basic", num_classes=11)) == convs + 8 * 2 * 64 + 64 * 11 + 11 == 1_416_587


@pytest.mark.parametrize("name", model_names())
def test_training_outputs_evaluation_logits_and_gradients(name):
    torch.manual_seed(0)
    model = build_model(name, "resnet18" if name in HEADS else None, num_classes=5)
    outputs = model(torch.randn(2, 3, 33, 48))
    expected = {"logits"}
    if name == "unetplusplus" or (name in HEADS and HEADS[name][2]):
        expected.add("aux")
    if name.startswith("encnet"):
        expected.add("presence")
        assert outputs["presence"].shape == (2, 5)
    assert set(outputs) == expected
    images = [outputs["logits"], *outputs.get("aux", ())]
    assert len(images) == {"unetplusplus": 4}.get(name, len(expected & {"logits", "aux"}))
    assert all(logits.shape == (2, 5, 33, 48) for logits in images)
    tensors = [*images, *([outputs["presence"]] if "presence" in outputs else [])]
    sum((tensor * torch.randn_like(tensor)).mean() for tensor in tensors).backward()
    unreached = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []
    assert [k for k, p in model.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0] == []

    model.eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 65, 97))
    assert logits.shape == (1, 5, 65, 97)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["pspnet", "segnet_basic"])
def test_images_of_a_batch_do_not_mix_in_evaluation(name):
    torch.manual_seed(0)
    model = build_model(name, "resnet18" if name in HEADS else None, num_classes=3).eval()
    images = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(images[:1]), model(images[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_normalisation_is_the_only_running_state():
    for name in model_names():
        model = built(name, num_classes=3)
        buffers = {key.rpartition(".")[2] for key, _ in model.named_buffers()}
        assert buffers <= {"running_mean", "running_var", "num_batches_tracked"}


def test_dropout_is_the_papers():
    rates = {
        name: sorted(layer.p for layer in built(name).modules() if isinstance(layer, nn.Dropout | nn.Dropout2d))
        for name in ("encnet", "deeplabv3", "refinenet", "unet")
    }
    assert rates == {"encnet": [0.1, 0.1], "deeplabv3": [0.1, 0.1, 0.5], "refinenet": [0.5], "unet": []}


@pytest.mark.parametrize(
    ("name", "backbone", "message"),
    [
        ("encnett", None, "unknown network 'encnett': did you mean 'encnet'"),
        ("pspnet", "resnet5", "unknown backbone 'resnet5': did you mean 'resnet50'"),
        ("segnet", "resnet50", "'segnet' has no backbone 'resnet50'"),
        ("unet", "resnet50", "'unet' has no separate backbone"),
    ],
)
def test_mistakes(name, backbone, message):
    with pytest.raises(UserError, match=message):
        build_model(name, backbone)


def test_he_initialisation():
    torch.manual_seed(0)
    conv = build_model("segnet_basic", num_classes=11).encoders[1][0]
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.01)
    assert float(conv.bias.detach().abs().sum()) == 0


def test_variants_of_published_codes():
    dilations = {}
    for variant in ("encoding", "semseg"):
        backbone = build_model("pspnet", "resnet50", 2, variant).backbone
        dilations[variant] = [[b.conv2.dilation[0] for b in stage] for stage in (backbone.layer3, backbone.layer4)]
    assert dilations == {"encoding": [[1, 2, 2, 2, 2, 2], [2, 4, 4]], "semseg": [[2] * 6, [4, 4, 4]]}
    with pytest.raises(UserError, match="network 'fpn' has no variant 'detectron': did you mean 'detectron2'"):
        build_model("fpn", variant="detectron")
    with pytest.raises(UserError, match="network 'unet' has no variant 'encoding': leave it out"):
        build_model("unet", variant="encoding")
    with pytest.raises(UserError, match="'semseg' on ResNets alone, not on efficientnet_lite0"):
        build_model("pspnet", "efficientnet_lite0", variant="semseg")


def test_detectron2s_fpn_by_functions():
    """Unaligned enlarging by 2 after each block, sums at stride 4, unaligned enlarging by 4 (SemSegFPNHead)."""
    torch.manual_seed(0)
    model = build_model("fpn", "resnet18", 3, "detectron2").eval()
    images = torch.randn(1, 3, 64, 96)
    twice = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # noqa: E731
    with torch.no_grad():
        head = model.decode_head
        total = 0
        for level, feature in enumerate(head.pyramid(model.backbone(images)[1:])):
            for block in head.levels[level]:
                feature = block(feature)
                feature = twice(feature) if level else feature
            total = total + feature
        expected = F.interpolate(head.classifier(total), scale_factor=4, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images), expected)
