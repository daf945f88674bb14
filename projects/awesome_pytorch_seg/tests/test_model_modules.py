import itertools
import math

from awesome_pytorch_seg.models import build_model
from awesome_pytorch_seg.models.bisenet import AttentionRefinementModule, FeatureFusionModule
from awesome_pytorch_seg.models.danet import ChannelAttention, PositionAttention
from awesome_pytorch_seg.models.deeplabv3 import AtrousSpatialPyramidPooling
from awesome_pytorch_seg.models.denseaspp import DenseASPP
from awesome_pytorch_seg.models.dunet import DUpsampling
from awesome_pytorch_seg.models.encnet import ContextEncodingModule, Encoding
from awesome_pytorch_seg.models.fcn import FCN
from awesome_pytorch_seg.models.icnet import CascadeFeatureFusion, ICNet, add_pyramid
from awesome_pytorch_seg.models.layers import resize
from awesome_pytorch_seg.models.ocnet import SelfAttention
from awesome_pytorch_seg.models.pspnet import PyramidPoolingHead
from awesome_pytorch_seg.models.pyramid import conv_over_pyramid, enlarging_matrix, pool_to_grids
from common.cli import UserError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(60, 60), (13, 7), (5, 4), (65, 129), (1, 2)])
def test_grids_are_adaptive_average_pooling(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for bins, grid in zip((1, 2, 3, 6), pool_to_grids(x, (1, 2, 3, 6)), strict=True):
        torch.testing.assert_close(grid, F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize(("old", "new"), [(6, 60), (3, 17), (2, 9), (1, 5), (6, 1), (33, 129), (6, 4)])
def test_enlarging_matrix_is_bilinear_resizing(old, new):
    x = torch.randn(2, 3, old, old)
    matrix = enlarging_matrix(old, new, x)
    torch.testing.assert_close(matrix @ x @ matrix.T, resize(x, (new, new)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(12, 20), (9, 13), (6, 5), (3, 2), (1, 1)])
def test_convolution_over_the_pyramid_is_that_over_enlarged_grids(size):
    """Same values and gradients as the plain way, at borders too."""
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    grids = [
        torch.randn(2, c, n, n, dtype=torch.float64, requires_grad=True) for c, n in ((3, 1), (2, 2), (4, 3), (1, 6))
    ]
    weight = torch.randn(7, 5 + 3 + 2 + 4 + 1, 3, 3, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 7, *size, dtype=torch.float64)
    plain = F.conv2d(torch.cat([x, *(resize(grid, size) for grid in grids)], dim=1), weight, padding=1)
    ours = conv_over_pyramid(x, grids, weight)
    # The interpolation weights are computed in float32, as PyTorch computes them.
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    leaves = (x, *grids, weight)
    expected = torch.autograd.grad((plain * probe).sum(), leaves)
    for ours_grad, plain_grad in zip(torch.autograd.grad((ours * probe).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(11, 14), (6, 6), (5, 3)])
def test_the_pyramid_head_is_the_plain_one(size, training):
    """Values and gradients, with running statistics and with those of the batch."""
    head = PyramidPoolingHead(16, 4, mid_channels=8).train(training)
    head.classifier[2].p = 0.0
    x = torch.randn(2, 16, *size, requires_grad=True)
    probe = torch.randn(2, 4, *size)
    leaves = (x, *head.parameters())
    plain, ours = head.plain(x), head(x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=2e-5)
    expected = torch.autograd.grad((plain * probe).sum(), leaves)
    for ours_grad, plain_grad in zip(torch.autograd.grad((ours * probe).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-3, atol=1e-3)


def test_aspp_is_the_convolution_over_all_branches():
    aspp = AtrousSpatialPyramidPooling(6, 4, (2, 3)).eval()
    x = torch.randn(2, 6, 9, 8)
    image = aspp.image_branch(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, 9, 8)
    features = torch.cat([*(branch(x) for branch in aspp.branches), image], dim=1)
    torch.testing.assert_close(aspp(x), F.relu(aspp.norm(aspp.project(features))), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("output_stride", "rates", "stage"), [(8, [12, 24, 36], 4), (16, [6, 12, 18], 2)])
def test_deeplab_rates_and_multi_grid(output_stride, rates, stage):
    with torch.device("meta"):
        model = build_model("deeplabv3", "resnet50", output_stride=output_stride)
    assert [branch[0].dilation[0] for branch in model.decode_head[0].branches] == [1, *rates]
    assert [block.conv2.dilation[0] for block in model.backbone.stages[3]] == [stage, 2 * stage, 4 * stage]


def test_position_attention_by_loops():
    module = PositionAttention(8)
    torch.nn.init.constant_(module.weight, 0.7)
    x = torch.randn(2, 8, 3, 4)
    query, key, value = (conv(x).flatten(2) for conv in (module.query, module.key, module.value))
    expected = x.clone().flatten(2)
    for b in range(2):
        for j in range(12):
            likeness = torch.stack([query[b, :, j] @ key[b, :, i] for i in range(12)])
            share = likeness.exp() / likeness.exp().sum()
            expected[b, :, j] += 0.7 * sum(share[i] * value[b, :, i] for i in range(12))
    torch.testing.assert_close(module(x), expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_channel_attention_by_loops():
    module = ChannelAttention()
    torch.nn.init.constant_(module.weight, 0.3)
    x = torch.randn(1, 4, 2, 3)
    rows = x[0].flatten(1)
    expected = x.clone().flatten(2)
    for j in range(4):
        product = torch.stack([rows[j] @ rows[i] for i in range(4)])
        unlikeness = product.max() - product
        share = unlikeness.exp() / unlikeness.exp().sum()
        expected[0, j] += 0.3 * sum(share[i] * rows[i] for i in range(4))
    torch.testing.assert_close(module(x), expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


def attention_by_loops(module, x):
    """Over the regions of the grid, from their borders in rows and columns."""
    key, value = module.key(x), module.value(x)
    context = torch.zeros_like(value)
    height, width = x.shape[2:]
    edges = []
    for side in (height, width):
        step = side // module.regions
        edges.append([*(i * step for i in range(module.regions)), side])
    for top, bottom in itertools.pairwise(edges[0]):
        for left, right in itertools.pairwise(edges[1]):
            places = [(r, c) for r in range(top, bottom) for c in range(left, right)]
            for r, c in places:
                likeness = torch.stack([(key[0, :, r, c] @ key[0, :, i, j]) for i, j in places])
                share = torch.softmax(likeness / math.sqrt(key.shape[1]), dim=0)
                context[0, :, r, c] = sum(s * value[0, :, i, j] for s, (i, j) in zip(share, places, strict=True))
    return module.out(context)


@pytest.mark.parametrize(("size", "regions"), [((4, 5), 1), ((5, 7), 2), ((7, 6), 3)])
def test_object_context_by_loops(size, regions):
    module = SelfAttention(6, key_channels=4, value_channels=3, regions=regions).eval()
    torch.nn.init.normal_(module.out.weight)
    x = torch.randn(1, 6, *size)
    torch.testing.assert_close(module(x), attention_by_loops(module, x), rtol=1e-4, atol=1e-5)


def test_object_context_of_pooled_positions_and_of_a_map_smaller_than_the_grid():
    pooled = SelfAttention(6, 4, 3, pooling=2).eval()
    torch.nn.init.normal_(pooled.out.weight)
    x = torch.randn(1, 6, 9, 8)
    expected = resize(attention_by_loops(pooled, F.max_pool2d(x, 2)), (9, 8))
    torch.testing.assert_close(pooled(x), expected, rtol=1e-4, atol=1e-5)
    fine = SelfAttention(6, 4, 3, regions=6).eval()
    assert fine(torch.randn(1, 6, 4, 9)).shape == (1, 6, 4, 9)


def test_context_starts_at_zero():
    assert not SelfAttention(6, 4, 3)(torch.randn(2, 6, 4, 4)).any()


def test_encoding_by_loops_and_its_gradient():
    layer = Encoding(3, 4).double()
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected = torch.zeros(2, 4, 3, dtype=torch.float64)
        for b in range(2):
            for r in range(2):
                for c in range(3):
                    residuals = x[b, :, r, c] - layer.codewords
                    share = torch.softmax(layer.scale * (residuals**2).sum(1), dim=0)
                    expected[b] += share[:, None] * residuals
    torch.testing.assert_close(layer(x), expected)
    parameters = (layer.codewords, layer.scale)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters))


def test_encoding_stays_in_float32_under_autocast():
    layer = Encoding(64, 8)
    x = (torch.randn(1, 64, 8, 8) + 10).bfloat16()
    expected = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)


def test_context_encoding_weighs_channels_by_its_gate():
    module = ContextEncodingModule(8, 5).eval()
    x = torch.randn(2, 8, 4, 4)
    codes = F.relu(module.norm(module.encoding(module.project(x)))).mean(1)
    gate = 1 / (1 + torch.exp(-module.gate(codes)))
    feat, presence = module(x)
    torch.testing.assert_close(feat, (x + x * gate[:, :, None, None]).clamp(min=0))
    torch.testing.assert_close(presence, module.presence(codes))


def test_attention_refinement_and_feature_fusion_by_formula():
    x = torch.randn(2, 6, 5, 4)
    arm = AttentionRefinementModule(6, 3).eval()
    feat = arm.conv(x)
    mean = feat.sum((2, 3)) / 20
    logits = (mean @ arm.gate[0].weight.flatten(1).T) / math.sqrt(1 + 1e-5)  # normalisation as it starts
    torch.testing.assert_close(arm(x), feat * torch.sigmoid(logits)[:, :, None, None])
    ffm = FeatureFusionModule(6, 4).eval()
    feat = ffm.reduce(x)
    hidden = (feat.sum((2, 3)) / 20 @ ffm.gate[0].weight.flatten(1).T).clamp(min=0)
    gate = torch.sigmoid(hidden @ ffm.gate[2].weight.flatten(1).T)
    torch.testing.assert_close(ffm(x), feat * (1 + gate[:, :, None, None]))


def test_icnet_pyramid_is_the_sum_of_enlarged_averages():
    x = torch.randn(2, 3, 9, 17)
    expected = x + sum(resize(F.adaptive_avg_pool2d(x, bins), (9, 17)) for bins in (1, 2, 3, 6))
    torch.testing.assert_close(add_pyramid(x), expected, rtol=0, atol=1e-5)


def test_cascade_fusion_by_formula():
    fusion = CascadeFeatureFusion(4, 6, 5, num_classes=3)
    low, high = torch.randn(2, 4, 3, 4), torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        large = F.interpolate(low, size=(5, 7), mode="bilinear", align_corners=True)
        summed = fusion.low(large) + fusion.high(high)
        fused, logits = fusion(low, high)
        torch.testing.assert_close(fused, summed.clamp(min=0))
        torch.testing.assert_close(logits, F.conv2d(large, fusion.guide.weight, fusion.guide.bias))
        assert fusion.low[0].dilation == (2, 2)


def test_icnet_branches_share_the_backbone_and_halve_twice():
    model = ICNet(5).eval()
    images = torch.randn(1, 3, 128, 96)
    stages = model.backbone.stages
    with torch.no_grad():
        half = F.interpolate(images, size=(64, 48), mode="bilinear", align_corners=True)
        feat = stages[1][0](stages[0](model.backbone.stem(half)))
        assert feat.shape == (1, 256, 8, 6)
        quarter = F.interpolate(feat, size=(4, 3), mode="bilinear", align_corners=True)
        deep = stages[3](stages[2](stages[1][1:](quarter)))
        feat16, feat32 = model._branches(images)
        torch.testing.assert_close(feat16, feat)
        torch.testing.assert_close(feat32, model.reduce(add_pyramid(deep)))
        fused, _ = model.fusion16(feat32, feat16)
        fused, _ = model.fusion8(fused, model.shallow(images))
        logits = model.classifier(resize(fused, (32, 24)))
        torch.testing.assert_close(model(images), resize(logits, (128, 96)))


def test_dupsampling_lays_blocks_side_by_side():
    layer = DUpsampling(1, num_classes=2, scale=2)
    torch.nn.init.constant_(layer.temperature, 2)
    layer.weight.data = torch.arange(8.0)[:, None]  # class, row, column
    x = torch.tensor([[[[1.0, 10.0]]]])
    logits = layer(x, (2, 3))
    assert logits[0, 0].tolist() == [[0, 0.5, 0], [1, 1.5, 10]]
    assert logits[0, 1].tolist() == [[2, 2.5, 20], [3, 3.5, 30]]


def test_dupsampling_learns_the_best_linear_code_of_label_blocks():
    rng = np.random.default_rng(0)
    labels = []
    for _ in range(6):  # two regions with a slanted border, and some ignored pixels
        label = np.where(np.arange(26)[:, None] * rng.uniform(0.3, 1.5) + np.arange(22) < rng.integers(10, 40), 0, 1)
        label[rng.integers(0, 22) :, :3] = 2
        label[:2, -4:] = 255
        labels.append(torch.from_numpy(label).long())
    layer = DUpsampling(5, num_classes=3, scale=8)
    layer.learn_from_labels(labels)
    blocks = [
        F.pad(label, (0, 2, 0, 6), value=255)[r : r + 8, c : c + 8]
        for label in labels
        for r in (0, 8, 16, 24)
        for c in (0, 8, 16)
    ]
    vectors = np.stack([np.stack([block == k for k in range(3)]).astype(float).ravel() for block in blocks])
    weight = layer.weight.detach().double().numpy()
    error = ((vectors - vectors @ weight @ weight.T) ** 2).sum()
    singular = np.linalg.svd(vectors, compute_uv=False)
    assert error == pytest.approx((singular[5:] ** 2).sum(), rel=1e-4)  # what no five directions can do better
    np.testing.assert_allclose(weight.T @ weight, np.eye(5), atol=1e-4)


def test_dupsampling_keeps_random_directions_where_labels_span_none():
    layer = DUpsampling(4, num_classes=2, scale=2)
    before = layer.weight.detach().clone()
    layer.learn_from_labels([torch.zeros(4, 4, dtype=torch.long)])  # one kind of block: class 0 everywhere
    torch.testing.assert_close(layer.weight[:, 0].abs(), torch.tensor([0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]))
    assert torch.equal(layer.weight[:, 1:], before[:, 1:])


def test_fcn8s_sums_scores_from_coarse_to_fine(monkeypatch):
    monkeypatch.setattr("awesome_pytorch_seg.models.fcn.FC_CHANNELS", 8)
    model = FCN(3, stride=8).eval()
    assert not model(torch.randn(1, 3, 64, 64)).any()  # scores start at 0
    for conv in (model.decode_head[-1], *model.skips):
        torch.nn.init.normal_(conv.weight)
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        _, pool3, pool4, pool5 = model.backbone(images)
        assert [tuple(p.shape[1:]) for p in (pool3, pool4, pool5)] == [(256, 12, 8), (512, 6, 4), (512, 3, 2)]
        twice = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # noqa: E731
        scores = twice(twice(model.decode_head(pool5)) + model.skips[0](pool4)) + model.skips[1](pool3)
        expected = F.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_fcns_grid_is_of_32_pixels_at_every_size(monkeypatch, stride):
    """Scores that grow by 1 a cell give logits that grow by 1/32 a pixel, also where the image ends within a cell."""
    monkeypatch.setattr("awesome_pytorch_seg.models.fcn.FC_CHANNELS", 8)
    model = FCN(1, stride=stride).eval()
    ramp = torch.arange(4.0).repeat(1, 1, 2, 1)  # 2 x 4 cells
    monkeypatch.setattr(model, "decode_head", RampOf(ramp))
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 45, 100))
    assert logits.shape == (1, 1, 45, 100)
    expected = ((torch.arange(100) + 0.5) / 32 - 0.5).clamp(0, 3)
    inner = slice(32, 100)  # at the left border several steps hold the first value longer than one
    torch.testing.assert_close(logits[0, 0, 20, inner], expected[inner], rtol=0, atol=1e-5)


class RampOf(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, features):
        assert features.shape[2:] == self.values.shape[2:]
        return self.values


def test_denseaspp_shares_a_rectified_feature():
    """As the official in-place ReLU: every block and the classifier see relu(transition), by hand for two blocks."""
    torch.manual_seed(0)
    model = DenseASPP(2, "densenet121").eval()
    seen = {}
    model.classifier.register_forward_pre_hook(lambda _layer, inputs: seen.update(feat=inputs[0]))
    with torch.no_grad():
        images = torch.randn(1, 3, 32, 32)
        model(images)
        shared = F.relu(model.transition(model.backbone(images)[-1]))
        assert float(model.transition(model.backbone(images)[-1]).min()) < 0
        channels = shared.shape[1]
        torch.testing.assert_close(seen["feat"][:, -channels:], shared)
        conv, norm, _, dilated, _ = model.blocks[0]
        growth = dilated(F.relu(norm(conv(shared))))
        torch.testing.assert_close(seen["feat"][:, -channels - growth.shape[1] : -channels], growth)


def dilations(stage):
    return [block.conv2.dilation[0] for block in stage]


@pytest.mark.parametrize(
    ("name", "variant", "third", "fourth"),
    [
        ("pspnet", "encoding", [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("pspnet", "semseg", [2] * 6, [4, 4, 4]),
        ("danet", "plain", [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("danet", "multi_grid", [1, 2, 2, 2, 2, 2], [4, 8, 16]),
    ],
)
def test_dilations_are_those_of_the_published_codes(name, variant, third, fourth):
    stages = build_model(name, "resnet50", 2, variant=variant).backbone.stages
    assert (dilations(stages[2]), dilations(stages[3])) == (third, fourth)
    assert all(block.conv2.padding == block.conv2.dilation for stage in stages for block in stage)


def test_variants_that_a_backbone_cannot_have_are_refused():
    with pytest.raises(UserError, match="backbone 'efficientnet_lite0' has no first blocks to dilate"):
        build_model("pspnet", "efficientnet_lite0", 2, variant="semseg")
    with pytest.raises(UserError, match="'multi_grid' of danet is one of ResNet-50 and deeper at output stride 8"):
        build_model("danet", "resnet50", 2, output_stride=16, variant="multi_grid")


def test_fcn_enlarging_is_the_papers_transposed_convolution_inside():
    """A kernel of 2 * factor with bilinear weights, as the official code fills it."""
    factor = 4
    ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    kernel = (ramp[:, None] * ramp)[None, None]
    x = torch.randn(1, 1, 6, 5)
    transposed = F.conv_transpose2d(x, kernel, stride=factor, padding=factor // 2)
    bilinear = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(bilinear[inside], transposed[inside])
