"""The four decode heads against PyTorch, computed there step by step as the papers draw them, in float64."""

import math
import subprocess
import sys

from semsegpaddle_glore.models import build_model
from semsegpaddle_glore.models.aux_head import AuxHead
from semsegpaddle_glore.models.deeplabv3 import ASPPHead
from semsegpaddle_glore.models.ginet import GINetHead
from semsegpaddle_glore.models.glore import GloReHead, GloReUnit
from semsegpaddle_glore.models.pspnet import BINS, PSPHead
from semsegpaddle_glore.models.pyramid import pooling_weights

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F
from paddle import nn

CLASSES, IN_CHANNELS = 5, 24
WORDS = np.random.default_rng(7).standard_normal((CLASSES, 11)).astype(np.float32)
HEADS = {
    "pspnet": lambda: PSPHead(IN_CHANNELS, CLASSES, 0.1),
    "deeplabv3": lambda: ASPPHead(IN_CHANNELS, CLASSES, 0.1, output_stride=16),
    "glore": lambda: GloReHead(IN_CHANNELS, CLASSES, 0.1),
    "ginet": lambda: GINetHead(IN_CHANNELS, CLASSES, 0.1, WORDS),
}


def randomised(layer):
    """Statistics and zero-initialised parameters get values that a mistake would show in."""
    for module in layer.sublayers():
        if isinstance(module, nn.BatchNorm2D):
            module._mean.set_value(0.1 * paddle.randn(module._mean.shape))
            module._variance.set_value(paddle.rand(module._variance.shape) + 0.5)
            module.weight.set_value(paddle.rand(module.weight.shape) + 0.5)
    for parameter in layer.parameters():
        if not parameter.stop_gradient and float(parameter.abs().max()) == 0:
            parameter.set_value(0.3 * paddle.randn(parameter.shape))
    return layer


def build(name, seed=0):
    paddle.seed(seed)
    return randomised(HEADS[name]())


def double(tensor):
    return torch.from_numpy(tensor.numpy()).double()


def conv(layer, x):
    bias = None if layer.bias is None else double(layer.bias)
    return F.conv2d(x, double(layer.weight), bias, padding=layer._updated_padding, dilation=layer._dilation)


def linear(layer, x):
    return F.linear(x, double(layer.weight).T, None if layer.bias is None else double(layer.bias))


def norm(layer, x):
    return F.batch_norm(
        x,
        *map(double, (layer._mean, layer._variance, layer.weight, layer.bias)),
        training=layer.training,
        eps=layer._epsilon,
    )


def conv_norm_relu(layer, x):
    return F.relu(norm(layer.bn, conv(layer.conv, x)))


def plain_pspnet(head, x):
    size = x.shape[2:]
    maps, kernels = [x], [double(head.feature_conv.weight)]
    for grid in head.grids:
        pooled = conv_norm_relu(grid.reduce, F.adaptive_avg_pool2d(x, grid.bins))
        maps.append(F.interpolate(pooled, size, mode="bilinear", align_corners=True))
        kernels.append(double(grid.kernels.weight).reshape(512, 3, 3, 512).permute(3, 0, 1, 2))
    joined = F.conv2d(torch.cat(maps, 1), torch.cat(kernels, 1), padding=1)
    return conv(head.classifier, F.relu(norm(head.bn, joined)))


def plain_deeplabv3(head, x):
    maps = [conv_norm_relu(branch, x) for branch in head.branches]
    image = conv_norm_relu(head.image_branch, x.mean((2, 3), keepdim=True))
    maps.append(F.interpolate(image, x.shape[2:], mode="bilinear", align_corners=True))
    kernel = torch.cat([double(head.project_branches.weight), double(head.project_image.weight)], 1)
    return conv(head.classifier, F.relu(norm(head.bn, F.conv2d(torch.cat(maps, 1), kernel))))


def graph_convolution(layer, nodes):  # (B, states, nodes), the authors' layout
    h = linear(layer.edges, nodes) + nodes
    return torch.einsum("st,btn->bsn", double(layer.states.weight).T, F.relu(h))


def unit_around(projection, x, reason):
    states, assignment = conv(projection.conv_state, x).flatten(2), conv(projection.conv_assign, x).flatten(2)
    nodes = torch.einsum("bsl,bnl->bsn", states, assignment) / states.shape[2]
    back = torch.einsum("bsn,bnl->bsl", reason(nodes), assignment).unflatten(2, x.shape[2:])
    return x + norm(projection.bn, conv(projection.conv_extend, back))


def plain_glore(head, x):
    x = conv_norm_relu(head.reduce, x)
    x = unit_around(head.unit.projection, x, lambda nodes: graph_convolution(head.unit.graph, nodes))
    return conv(head.classifier, x)


def plain_ginet(head, x, keep=None):
    unit = head.unit

    def interact(nodes):
        visual = graph_convolution(unit.visual_graph, nodes).transpose(1, 2)  # (B, N, D)
        words = double(head.word_embeddings)
        hidden = F.relu(linear(unit.word_mlp[2], F.relu(linear(unit.word_mlp[0], words))))
        semantic = graph_convolution(unit.semantic_graph, hidden.T[None])[0].T  # (M, D)
        key, query = linear(unit.visual_key, visual), linear(unit.semantic_key, semantic)
        similarity = torch.einsum("bnd,md->bnm", key, query)
        to_visual = torch.einsum("bnm,md->bnd", similarity.softmax(2), linear(unit.semantic_value, semantic))
        to_semantic = torch.einsum("bnm,bnd->bmd", similarity.softmax(1), linear(unit.visual_value, visual))
        if keep is not None:
            classes = to_semantic + double(unit.semantic_factor) * semantic
            scale, last = head.presence
            normalised = F.layer_norm(classes, [256], double(scale.weight), double(scale.bias))
            keep.append(linear(last, normalised)[..., 0])
        return (visual + double(unit.visual_factor) * to_visual).transpose(1, 2)

    x = unit_around(unit.projection, conv_norm_relu(head.reduce, x), interact)
    return conv(head.classifier, x)


PLAIN = {"pspnet": plain_pspnet, "deeplabv3": plain_deeplabv3, "glore": plain_glore, "ginet": plain_ginet}


def relative(ours, expected):
    return float(np.abs(ours.numpy() - expected.detach().numpy()).max() / expected.abs().max())


@pytest.mark.parametrize("size", [(9, 13), (12, 6), (3, 4)])  # cells do not divide it; do; are more than its pixels
@pytest.mark.parametrize("name", HEADS)
def test_head_is_the_plain_computation(name, size):
    head = build(name)
    head.eval()
    x = np.random.default_rng(1).standard_normal((2, IN_CHANNELS, *size)).astype(np.float32)
    expected = PLAIN[name](head, torch.from_numpy(x).double())
    with paddle.no_grad():
        outputs = head(paddle.to_tensor(x))
    assert list(outputs) == ["logits"]
    assert outputs["logits"].shape == [2, CLASSES, *size]
    assert relative(outputs["logits"], expected) < 1e-5


@pytest.mark.parametrize("name", HEADS)
def test_gradient_of_the_feature_is_the_plain_computations(name):
    head = build(name)
    head.eval()
    rng = np.random.default_rng(2)
    x, weight = (rng.standard_normal((2, channels, 9, 13)).astype(np.float32) for channels in (IN_CHANNELS, CLASSES))
    theirs = torch.from_numpy(x).double().requires_grad_()
    (PLAIN[name](head, theirs) * torch.from_numpy(weight)).sum().backward()
    ours = paddle.to_tensor(x, stop_gradient=False)
    (head(ours)["logits"] * paddle.to_tensor(weight)).sum().backward()
    assert relative(ours.grad, theirs.grad) < 1e-5


def test_pspnet_in_training_is_the_plain_computation_with_batch_statistics():
    paddle.seed(3)
    head = randomised(PSPHead(IN_CHANNELS, CLASSES, 0.0))
    x = np.random.default_rng(3).standard_normal((4, IN_CHANNELS, 10, 7)).astype(np.float32)
    expected = plain_pspnet(head, torch.from_numpy(x).double())
    assert relative(head(paddle.to_tensor(x))["logits"], expected) < 1e-5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(10, 7), (6, 6), (3, 4)])
def test_the_psp_head_is_its_plain_one(size, training):
    """Values and gradients, with running statistics and with those of the batch."""
    paddle.seed(3)
    head = randomised(PSPHead(IN_CHANNELS, CLASSES, 0.0, pyramid_channels=8))
    head.train() if training else head.eval()
    x = paddle.randn([4, IN_CHANNELS, *size])
    probe = paddle.randn([4, CLASSES, *size])
    found = []
    for compute in (head.plain, head):
        logits = compute(x)["logits"]
        (logits * probe).sum().backward()
        found.append([logits.numpy(), *(p.grad.numpy() for p in head.parameters() if not p.stop_gradient)])
        head.clear_gradients()
    for plain, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-4 * max(np.abs(plain).max(), 1), rtol=0)


def test_ginets_presence_is_the_plain_computation():
    head = build("ginet")
    head.reduce.eval()
    head.unit.projection.eval()
    x = np.random.default_rng(4).standard_normal((2, IN_CHANNELS, 9, 13)).astype(np.float32)
    expected = []
    plain_ginet(head, torch.from_numpy(x).double(), keep=expected)
    presence = head(paddle.to_tensor(x))["presence"]
    assert presence.shape == [2, CLASSES]
    assert relative(presence, expected[0]) < 1e-5


@pytest.mark.parametrize("size", [(6, 12), (7, 5)])
def test_pooling_weights_are_means_of_cells(size):
    weights = pooling_weights(BINS, *size).numpy()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    x = np.random.default_rng(5).standard_normal((1, 3, *size)).astype(np.float32)
    expected = torch.cat([F.adaptive_avg_pool2d(torch.from_numpy(x), bins).flatten(2) for bins in BINS], 2)
    np.testing.assert_allclose(x.reshape(1, 3, -1) @ weights.T, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_rates_of_deeplabv3_follow_the_output_stride(output_stride, rates):
    head = ASPPHead(4, CLASSES, 0.1, output_stride)
    assert [branch.conv._dilation[0] for branch in head.branches[1:]] == rates


def test_words_decide_what_ginet_sees():
    head = build("ginet")
    head.eval()
    x = paddle.randn([1, IN_CHANNELS, 6, 6])
    with paddle.no_grad():
        before = head(x)["logits"]
        head.word_embeddings.set_value(paddle.to_tensor(WORDS[::-1].copy()))
        after = head(x)["logits"]
    assert float((before - after).abs().max()) > 1e-4
    assert "word_embeddings" in head.state_dict()
    assert all(parameter is not head.word_embeddings for parameter in head.parameters())


def test_units_start_as_the_identity():
    x = paddle.randn([2, 512, 5, 7])
    np.testing.assert_array_equal(HEADS["glore"]().unit(x).numpy(), x.numpy())
    np.testing.assert_array_equal(HEADS["ginet"]().unit(x, paddle.to_tensor(WORDS))[0].numpy(), x.numpy())


def test_presence_is_bounded_however_large_the_nodes_grow():
    """Nothing holds their scale: on the way to the pixels a batch normalisation takes it off again."""
    head = build("ginet")
    for parameter in (head.unit.projection.conv_state.weight, head.unit.visual_value.weight):
        parameter.set_value(1000 * parameter)
    presence = head(paddle.randn([2, IN_CHANNELS, 9, 13]))["presence"]
    norm, linear = head.presence
    largest = float((norm.weight * linear.weight[:, 0]).norm()) * math.sqrt(256)
    shift = float((norm.bias * linear.weight[:, 0]).sum() + linear.bias)
    assert float((presence - shift).abs().max()) <= 1.0001 * largest


@pytest.mark.parametrize("name", [*HEADS, "aux"])
def test_training_moves_every_parameter(name):
    paddle.seed(6)
    head = AuxHead(IN_CHANNELS, CLASSES, 0.1) if name == "aux" else HEADS[name]()
    before = {key: value.numpy().copy() for key, value in head.named_parameters()}  # with running statistics
    optimizer = paddle.optimizer.SGD(0.1, parameters=head.parameters())
    x = paddle.randn([2, IN_CHANNELS, 7, 9])
    for _ in range(3):  # what starts behind a factor of 0, and that behind another one, moves in the third step
        outputs = head(x)
        outputs = outputs if name != "aux" else {"logits": outputs}
        sum((output * paddle.randn(output.shape)).sum() for output in outputs.values()).backward()
        optimizer.step()
        optimizer.clear_grad()
    still = [key for key, value in head.named_parameters() if np.array_equal(value.numpy(), before[key])]
    assert still == []


def trainable(layer):
    return sum(math.prod(parameter.shape) for parameter in layer.parameters() if not parameter.stop_gradient)


RESNET50 = 23_508_032  # torchvision's 25 557 032 without its classifier (2 048 000 + 1 000)
VD_LAYERS = 19_232  # first convolutions of ResNet50_vd (3-32-32-64) less those of ResNet50 (7x7)
DEEP_STEM = 123_776  # first convolutions of semseg's ResNet50 (3-64-64-128) less 7x7, and 128 channels into layer1


@pytest.mark.parametrize(
    ("head", "aux", "facts", "difference"),
    [
        (lambda: PSPHead(2048, 19, 0.1), True, 49_080_038, DEEP_STEM),  # hszhao/semseg pspnet_zoom8 resnet50
        (lambda: ASPPHead(2048, 19, 0.1, 8), False, 39_068_531, VD_LAYERS + 1280),  # paddleseg deeplabv3 ResNet50_vd
        (lambda: GloReHead(2048, 19, 0.1), True, 27_137_158, VD_LAYERS + 256 - 8 * 2048 * 512),  # paddleseg glore
        (  # paddleseg ginet ResNet50_vd, trainable: a JPU, two batch normalisations; no presence
            lambda: GINetHead(2048, 19, 0.1, np.zeros((19, 300))),
            *(True, 55_790_369, VD_LAYERS + 19_735_552 + 768 - 769),
        ),
    ],
)
def test_parameters_are_those_of_model_facts_but_for_the_explained(head, aux, facts, difference):
    ours = RESNET50 + trainable(head()) + (trainable(AuxHead(1024, 19, 0.1)) if aux else 0)
    assert ours + difference == facts


def test_parameters_of_the_glore_unit_are_the_authors():
    assert trainable(GloReUnit(512, 128, 64)) == 185_600  # GloRe_Unit_2D, 512 in, 64 mid


CONVERT = (
    "import sys, paddle2onnx\n"
    "for folder in sys.argv[1:]:\n"
    "    paddle2onnx.export(f'{folder}/m.json', f'{folder}/m.pdiparams', f'{folder}/m.onnx', opset_version=13,\n"
    "                       optimize_tool=None)\n"
)


def test_exported_heads_take_any_size(tmp_path):
    import onnxruntime

    spec = paddle.static.InputSpec([None, IN_CHANNELS, None, None], "float32", "feature")
    inputs = [np.random.default_rng(8).standard_normal((2, IN_CHANNELS, *s)).astype("f4") for s in ((9, 13), (16, 6))]
    expected = {}
    for name in HEADS:
        head = build(name)
        head.eval()
        with paddle.no_grad():
            expected[name] = [head(paddle.to_tensor(x))["logits"].numpy() for x in inputs]
        paddle.jit.save(paddle.jit.to_static(head, input_spec=[spec], full_graph=True), str(tmp_path / name / "m"))
    # In a process of its own: a failing conversion may abort.
    folders = [str(tmp_path / name) for name in HEADS]
    subprocess.run([sys.executable, "-c", CONVERT, *folders], check=True, capture_output=True, timeout=120)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, references in expected.items():
        session = onnxruntime.InferenceSession(tmp_path / name / "m.onnx", options, ["CPUExecutionProvider"])
        inference = paddle.jit.load(str(tmp_path / name / "m"))
        for x, reference in zip(inputs, references, strict=True):
            limit = 1e-5 * np.abs(reference).max()
            np.testing.assert_allclose(session.run(None, {"feature": x})[0], reference, atol=limit, rtol=0)
            outputs = inference(paddle.to_tensor(x))
            outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
            np.testing.assert_allclose(outputs.numpy(), reference, atol=limit, rtol=0)


def test_the_heads_statistics_keep_what_they_are_told_to():
    """SemSegPaddle's config has BN_MOMENTUM 0.99 for its heads; its backbones have 0.9."""
    paddle.seed(0)
    model = build_model("glore", "resnet18", 3, head_norm_momentum=0.99)
    model.train()
    before = {key: value.numpy() for key, value in model.state_dict().items() if key.endswith("_mean")}
    seen = {}
    layer = next(layer for layer in model.aux_head.sublayers() if isinstance(layer, nn.BatchNorm2D))
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(mean=inputs[0].mean(axis=[0, 2, 3]).numpy()))
    model(paddle.rand([2, 3, 65, 65]))
    np.testing.assert_allclose(layer._mean.numpy(), 0.01 * seen["mean"], rtol=1e-4, atol=1e-7)
    assert all(not value.any() for value in before.values())
    momenta = {name: layer._momentum for name, layer in model.named_sublayers() if isinstance(layer, nn.BatchNorm2D)}
    assert {value for name, value in momenta.items() if name.startswith("backbone")} == {0.9}
    assert {value for name, value in momenta.items() if not name.startswith("backbone")} == {0.99}
