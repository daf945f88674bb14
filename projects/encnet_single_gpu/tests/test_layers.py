from common.cli import UserError
from common.weights.package import read_package, weight_file
from encnet_single_gpu.models.backbones import ResNet, load_backbone
from encnet_single_gpu.models.deeplabv3 import ASPP, DeepLabV3Head
from encnet_single_gpu.models.efficientnet_lite import EfficientNetLite
from encnet_single_gpu.models.encnet import ContextEncoding, Encoding
from encnet_single_gpu.models.fpn import FPNHead
from encnet_single_gpu.models.jpu import JPU
from encnet_single_gpu.models.layers import ConvBNReLU
from encnet_single_gpu.models.linknet import LinkNet
from encnet_single_gpu.models.pspnet import BINS, PSPHead
from encnet_single_gpu.models.pyramid import pool_cells, spread_cells
from encnet_single_gpu.models.refinenet import ChainedPooling, RefineBlock, ResidualUnit
from encnet_single_gpu.models.segnet import Pooling, SegNet, SegNetBasic, unpool
from encnet_single_gpu.models.unet import Up
from encnet_single_gpu.models.unetplusplus import UNetPlusPlus

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn


def randomise(model):
    """Gives normalisations statistics and weights that are not those of an identity."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "output_stride", "strides"),
    [("resnet18", 8, (4, 4, 8, 8, 8)), ("resnet50", 32, (4, 4, 8, 16, 32)), ("resnet50s", 16, (4, 4, 8, 16, 16))],
)
def test_resnet_is_timms(name, output_stride, strides):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = randomise(timm.create_model(name, features_only=True, output_stride=output_stride))
    ours = ResNet(name, output_stride).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 65, 79)
    with torch.no_grad():
        features, expected = ours(images), theirs(images)
    for mine, other in zip(features[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    assert [tuple(f.shape[2:]) for f in features] == [(-(-65 // s), -(-79 // s)) for s in strides]
    assert tuple(f.shape[1] for f in features) == ours.out_channels


@pytest.mark.parametrize(("output_stride", "strides"), [(32, (2, 4, 8, 16, 32)), (16, (2, 4, 8, 16, 16))])
def test_lite0_gives_timms_features_with_the_packages_weights(output_stride, strides):
    ours = EfficientNetLite("efficientnet_lite0", output_stride).eval()
    path = weight_file("package", "efficientnet_lite0")
    load_backbone(path, ours)
    theirs = timm.create_model("tf_efficientnet_lite0", output_stride=output_stride).eval()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in read_package(path).items()})
    expected = {}
    for index in (0, 1, 2, 4, 6):
        theirs.blocks[index].register_forward_hook(lambda _, __, output, index=index: expected.update({index: output}))
    images = torch.randn(1, 3, 66, 79)
    with torch.no_grad():
        features = ours(images)
        theirs(images)
    assert all(torch.equal(mine, other) for mine, other in zip(features, expected.values(), strict=True))
    assert [tuple(f.shape[2:]) for f in features] == [(-(-66 // s), -(-79 // s)) for s in strides]
    assert tuple(f.shape[1] for f in features) == ours.out_channels


def test_backbone_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    source, target = ResNet("resnet18"), ResNet("resnet18", 8)
    weights = source.state_dict()
    torch.save(weights | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "a.pth")
    load_backbone(tmp_path / "a.pth", target)
    assert all(torch.equal(value, weights[name]) for name, value in target.state_dict().items())

    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    target = ResNet("resnet18")
    load_backbone(tmp_path / "old.safetensors", target)
    assert torch.equal(target.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


WRAPPINGS = {
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda tensors: {"model": tensors},
    "model in state_dict": lambda tensors: {"state_dict": {"model": tensors}},
    "module.": lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    "_orig_mod.": lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()},
    "all of them": lambda tensors: {"model": {f"module._orig_mod.module.{k}": v for k, v in tensors.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_backbone_weights_are_taken_out_of_checkpoints_of_training(wrapping, tmp_path):
    source, target = randomise(ResNet("resnet18")), ResNet("resnet18")
    torch.save(WRAPPINGS[wrapping](source.state_dict()), tmp_path / "weights.pth")
    load_backbone(tmp_path / "weights.pth", target)
    assert torch.equal(target.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert torch.equal(target.bn1.running_var, source.bn1.running_var)


def test_backbone_weights_that_do_not_fit(tmp_path):
    backbone = ResNet("resnet18")
    with pytest.raises(UserError, match="no weight file"):
        load_backbone(tmp_path / "none.pth", backbone)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="not a file of weights"):
        load_backbone(tmp_path / "text.pth", backbone)
    weights = backbone.state_dict()
    del weights["conv1.weight"]
    torch.save(weights | {"layer1.9.conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"1 tensors missing, 1 unknown, 0 of another shape \(conv1.weight, layer1.9"):
        load_backbone(tmp_path / "other.pth", backbone)
    whole = ResNet("resnet18").state_dict()
    torch.save(whole | {"module.bn1.weight": whole["bn1.weight"]}, tmp_path / "twice.pth")
    with pytest.raises(UserError, match="holds a tensor twice"):
        load_backbone(tmp_path / "twice.pth", backbone)
    torch.save({"weights": whole}, tmp_path / "nested.pth")
    with pytest.raises(UserError, match="holds more than named tensors"):
        load_backbone(tmp_path / "nested.pth", backbone)


@pytest.mark.parametrize("size", [(7, 9), (12, 6), (1, 1), (5, 23)])
def test_pyramid_pooling_is_adaptive_pooling_and_a_convolution_of_the_enlarged_grid(size):
    torch.manual_seed(0)
    feature, kernel = torch.randn(2, 4, *size, dtype=torch.float64), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    for bins in BINS:
        cells = pool_cells(feature, bins)
        torch.testing.assert_close(cells, F.adaptive_avg_pool2d(feature, bins))
        enlarged = F.interpolate(cells, size=size, mode="bilinear", align_corners=True)
        expected = F.conv2d(enlarged, kernel, padding=1)
        torch.testing.assert_close(spread_cells(cells, kernel, size), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(9, 11), (6, 6), (4, 2)])
def test_psp_head_is_the_plain_one(size, training):
    """Values and gradients, with running statistics and with those of the batch."""
    torch.manual_seed(0)
    head = randomise(PSPHead((8, 16), 5).double()).train(training)
    head.dropout.p = 0.0
    feature = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 5, *size, dtype=torch.float64)
    plain, ours = head.plain([feature])["logits"], head([feature])["logits"]
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    leaves = (feature, *head.parameters())
    expected = torch.autograd.grad((plain * probe).sum(), leaves)
    for ours_grad, plain_grad in zip(torch.autograd.grad((ours * probe).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-4, atol=1e-4)


def encoded_by_loops(x, codewords, scale):
    batch, channels = x.shape[:2]
    result = torch.zeros(batch, len(codewords), channels, dtype=x.dtype)
    for b in range(batch):
        for vector in x[b].flatten(1).T:
            residuals = vector - codewords
            result[b] += torch.softmax(scale * (residuals**2).sum(1), dim=0).unsqueeze(1) * residuals
    return result


def test_encoding_is_the_papers_sum_of_weighted_residuals():
    torch.manual_seed(0)
    layer = Encoding(5, 3).double()
    assert (layer.scale < 0).all() and (layer.scale > -1).all()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), encoded_by_loops(x, layer.codewords, layer.scale))


def test_encoding_gradients():
    torch.manual_seed(0)
    layer = Encoding(4, 3).double()
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)

    def encode(x, codewords, scale):
        return torch.func.functional_call(layer, {"codewords": codewords, "scale": scale}, x)

    assert torch.autograd.gradcheck(encode, (x, layer.codewords, layer.scale))


def test_encoding_is_float32_under_autocast():
    torch.manual_seed(0)
    layer, x = Encoding(64, 8), torch.randn(1, 64, 4, 4) + 5  # far from the codewords: differences cancel
    with torch.autocast("cpu", torch.bfloat16):
        encoded = layer(x)
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, encoded_by_loops(x, layer.codewords, layer.scale), rtol=1e-3, atol=1e-3)


def test_context_encoding_scales_channels():
    torch.manual_seed(0)
    module = randomise(ContextEncoding(6, 4))
    x = torch.randn(2, 6, 3, 5)
    encoders = module.encoding(module.conv(x))  # (B, 32, 6)
    bn = module.bn
    scaled = (encoders - bn.running_mean[:, None]) / (bn.running_var[:, None] + bn.eps).sqrt()
    mean = (scaled * bn.weight[:, None] + bn.bias[:, None]).clamp(min=0).mean(1)
    factors = 1 / (1 + torch.exp(-(mean @ module.attention.weight.T + module.attention.bias)))
    feature, presence = module(x)
    torch.testing.assert_close(feature, (x * (1 + factors)[:, :, None, None]).clamp(min=0))
    torch.testing.assert_close(presence, mean @ module.presence.weight.T + module.presence.bias)


def test_jpu_looks_at_three_features_with_four_dilations():
    torch.manual_seed(0)
    jpu = randomise(JPU((3, 4, 5), channels=2))
    features = [torch.randn(1, 3, 9, 7), torch.randn(1, 4, 5, 4), torch.randn(1, 5, 3, 2)]
    reduced = [conv(feature) for conv, feature in zip(jpu.convs, features, strict=True)]
    x = torch.cat([F.interpolate(r, size=(9, 7), mode="bilinear", align_corners=True) for r in reduced], dim=1)
    expected = []
    for branch, dilation in zip(jpu.branches, (1, 2, 4, 8), strict=True):
        depthwise = F.conv2d(x, branch[0].weight, padding=dilation, dilation=dilation, groups=6)
        expected.append(F.relu(branch[3](F.conv2d(branch[1](depthwise), branch[2].weight))))
    torch.testing.assert_close(jpu(features), torch.cat(expected, dim=1))


def test_aspp_branches():
    head = DeepLabV3Head((64,), 3)
    assert [branch[0].dilation[0] for branch in head.aspp.branches] == [1, 12, 24, 36]
    torch.manual_seed(0)
    aspp = randomise(ASPP(4, 2, (2, 3), lambda i, o, d: ConvBNReLU(i, o, 3, d)))
    x = torch.randn(2, 4, 7, 6)
    pooled = aspp.pooled(x.flatten(2).mean(2)[:, :, None, None]) * torch.ones(1, 1, 7, 6)
    expected = aspp.project(torch.cat([*(branch(x) for branch in aspp.branches), pooled], dim=1))
    torch.testing.assert_close(aspp(x), expected)


def test_fpn_adds_enlarged_coarser_levels():
    head = FPNHead((1, 1, 1, 1, 1), 3)
    for lateral in head.laterals:
        nn.init.ones_(lateral.weight)
        nn.init.zeros_(lateral.bias)
    for output in head.outputs:
        nn.init.dirac_(output.weight)
        nn.init.zeros_(output.bias)
    sizes = ((8, 10), (4, 5), (2, 3), (1, 2))
    features = [torch.full((1, 1, *size), float(10**level)) for level, size in enumerate(sizes)]
    levels = head.pyramid(features)
    assert [level.unique().tolist() for level in levels] == [[1111], [1110], [1100], [1000]]
    assert [len(blocks) for blocks in head.levels] == [1, 1, 2, 3]  # one block for each doubling to stride 4


def test_refinenet_modules_by_hand():
    pooling = ChainedPooling(1)
    for conv in pooling.convs:
        nn.init.dirac_(conv.weight)
    x = torch.zeros(1, 1, 1, 12)
    x[..., 0] = 1
    # Each pooling carries the maximum two pixels on: five in all at pixel 0, one fewer every two pixels.
    assert pooling(x).flatten().tolist() == [5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0]
    unit = ResidualUnit(1)
    for conv in (unit.conv1, unit.conv2):
        nn.init.dirac_(conv.weight)
    nn.init.constant_(unit.conv1.bias, -1.0)
    assert unit(torch.tensor([[[[-2.0, 0.5, 3.0]]]])).flatten().tolist() == [-2, 0.5, 5]


def test_refine_block_fuses_at_the_finer_size():
    torch.manual_seed(0)
    block = RefineBlock(3, 4, 2)
    feature, coarser = torch.randn(1, 3, 7, 5), torch.randn(1, 2, 4, 3)
    enlarged = F.interpolate(block.fuse_coarse(coarser), size=(7, 5), mode="bilinear", align_corners=True)
    fused = block.fuse_fine(block.adapt(block.reduce(feature))) + enlarged
    torch.testing.assert_close(block(feature, coarser), block.output(block.pooling(fused.clamp(min=0))))


def test_unpooling_puts_values_where_the_maxima_were():
    x = torch.tensor([[[[1.0, 2, 9], [4, 3, 5], [6, 7, 8]]]])
    pooled, places = Pooling()(x)
    assert pooled[0, 0].tolist() == [[4, 9], [7, 8]]  # odd sides are rounded up
    assert places[0, 0].tolist() == [[3, 2], [7, 8]]
    assert unpool(pooled * 10, places, (3, 3))[0, 0].tolist() == [[0, 0, 90], [40, 0, 0], [0, 70, 80]]


def test_segnet_is_vgg_and_its_mirror():
    with torch.device("meta"):
        model = SegNet("vgg16_bn", 11)
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    names = [key for key in model.backbone.state_dict() if key.endswith(".running_mean")]
    assert len(convs) == 26
    assert names[-1] == "features.41.running_mean"  # as in torchvision's vgg16_bn
    decoder = [conv.out_channels for stage in reversed(model.decoders) for conv in stage if isinstance(conv, nn.Conv2d)]
    assert decoder == [512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 11]


def test_segnet_basic_passes_places_of_each_pooling_to_its_unpooling():
    torch.manual_seed(0)
    model = randomise(SegNetBasic(3))
    images = torch.randn(1, 3, 37, 45)
    x, pooled = images, []
    for encoder in model.encoders:
        x = encoder(x)
        size = x.shape[2:]
        x, places = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        pooled.append((places, size))
    for decoder, (places, (height, width)) in zip(model.decoders, reversed(pooled), strict=True):
        flat = torch.zeros(1, 64, height * width).scatter(2, places.flatten(2), x.flatten(2))
        x = decoder[1](F.conv2d(flat.reshape(1, 64, height, width), decoder[0].weight, decoder[0].bias, padding=3))
    torch.testing.assert_close(model(images), model.classifier(x))


def test_up_crops_to_odd_sizes():
    up = Up(1, 1)
    nn.init.constant_(up.weight, 2.0)
    nn.init.constant_(up.bias, 1.0)
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert up(x, (3, 4))[0, 0].tolist() == [[1, 1, 3, 3], [1, 1, 3, 3], [5, 5, 7, 7]]


def test_unetplusplus_averages_its_four_depths_in_evaluation():
    model = UNetPlusPlus(2)
    for value, classifier in zip((1.0, 2.0, 3.0, 6.0), model.classifiers, strict=True):
        nn.init.zeros_(classifier.weight)
        nn.init.constant_(classifier.bias, value)
    images = torch.randn(2, 3, 20, 17)
    outputs = model(images)
    assert outputs["logits"].unique().tolist() == [6]
    assert [aux.unique().tolist() for aux in outputs["aux"]] == [[1], [2], [3]]
    assert model.eval()(images).unique().tolist() == [3]


def test_linknet_adds_each_encoder_blocks_input():
    torch.manual_seed(0)
    model = randomise(LinkNet("resnet18", 3))
    images = torch.randn(1, 3, 45, 70)
    stem, feat4, feat8, feat16, feat32 = model.backbone(images)
    d1, d2, d3, d4 = model.decoders
    x = feat16 + d4(feat32, (3, 5))
    x = feat8 + d3(x, (6, 9))
    x = feat4 + d2(x, (12, 18))
    x = stem + d1(x, (12, 18))
    x = model.classifier(model.conv(model.up2(x, (23, 35))))
    assert x.shape == (1, 3, 46, 70)
    torch.testing.assert_close(model(images), x[:, :, :45])
