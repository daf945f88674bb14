import math

from common.cli import UserError
from semsegpaddle_glore.models.backbones import backbone_names, build_backbone
from semsegpaddle_glore.models.backbones.dilation import StagePlan, plan_stages
from semsegpaddle_glore.models.backbones.efficientnet import MBConv, drop_rows, scaled_channels
from semsegpaddle_glore.models.layers import refuse_single_value_batch_norm

import numpy as np
import paddle
import pytest
import timm
import torch
import torchvision
from paddle import nn

# Parameters with the 1000-class classifier (torchvision 0.30, timm 1.0.31).
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "hrnet_w18": 21_299_004,
    "hrnet_w48": 77_469_864,
    "xception65": 39_916_312,
    "xception71": 42_338_736,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_lite0": 4_652_008,
}
SMALLEST = ["resnet18", "resnext50_32x4d", "hrnet_w18", "xception65", "efficientnet_b0", "efficientnet_lite0"]
# Modules of the torch network whose outputs are our features.
TAPS = {
    "resn": ["layer1", "layer2", "layer3", "layer4"],
    "effi": ["features.2", "features.3", "features.5", "features.7"],
    "xception65": ["blocks.0", "blocks.1", "blocks.18", "blocks.20"],
    "xception71": ["blocks.1", "blocks.3", "blocks.20", "blocks.22"],
    "efficientnet_lite0": ["blocks.1", "blocks.2", "blocks.4", "blocks.6"],
}


def torch_network(name, output_stride=32):
    if name.startswith("hrnet"):
        network = timm.create_model(name)
        for module in network.modules():
            if type(module).__name__ == "HighResolutionModule":
                module.forward = lambda branches, module=module: fuse(module, branches)
        return network
    if name.startswith("xception"):
        return timm.create_model(name, output_stride=output_stride)
    if name == "efficientnet_lite0":
        return timm.create_model(f"tf_{name}", output_stride=output_stride)
    if name.startswith("efficientnet"):
        return getattr(torchvision.models, name)(stochastic_depth_prob=0.0)
    dilate = {32: [False, False, False], 16: [False, False, True], 8: [False, True, True]}[output_stride]
    arguments = {} if output_stride == 32 else {"replace_stride_with_dilation": dilate}
    return getattr(torchvision.models, name)(**arguments)


def fuse(module, branches):
    """timm's fusion for any size: enlarged branches are cropped (at multiples of 32 there is nothing to crop)."""
    branches = [blocks(x) for blocks, x in zip(module.branches, branches, strict=True)]
    fused = []
    for i, layers in enumerate(module.fuse_layers):
        height, width = branches[i].shape[2:]
        fused.append(sum(layers[j](x)[:, :, :height, :width] for j, x in enumerate(branches)).relu())
    return fused


def randomise(network, seed):
    torch.manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1)
        elif tensor.ndim == 1:
            tensor.uniform_(0.4, 0.8)  # BN weights: below 1, or residual sums would grow with the depth
    return network.eval()


def our_key(key):
    return key.replace("running_mean", "_mean").replace("running_var", "_variance")


def state_for(model, network):
    """The torch state dict under our names; Linear weights transposed."""
    linear = {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear)}
    state = {}
    for key, tensor in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            state[our_key(key)] = tensor.T if key in linear else tensor
    return state


def filled(name, network, output_stride=None, multi_grid=None, first_block_dilated=False):
    model = build_backbone(name, output_stride, multi_grid, 1000, first_block_dilated)
    state = {key: paddle.to_tensor(value.numpy().copy()) for key, value in state_for(model, network).items()}
    assert model.set_state_dict(state) == ([], [])
    return model.eval() or model


def torch_outputs(name, network, images):
    """(features, logits)."""
    collected = {}
    taps = ["stage3", "stage4"] if name.startswith("hrnet") else TAPS.get(name, TAPS.get(name[:4]))
    hooks = [
        network.get_submodule(tap).register_forward_hook(lambda _, __, output, tap=tap: collected.update({tap: output}))
        for tap in taps
    ]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    features = [collected[tap] for tap in taps]
    if name.startswith("hrnet"):
        resize = torch.nn.functional.interpolate
        features = [
            torch.cat([resize(x, branches[0].shape[2:], mode="bilinear", align_corners=True) for x in branches], 1)
            for branches in features
        ]
    return features, logits


def assert_close(ours, theirs):
    assert tuple(ours.shape) == tuple(theirs.shape)
    theirs = theirs.detach().numpy()
    assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


def assert_same_outputs(name, model, network, size=(65, 97)):
    images = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
    with torch.no_grad(), paddle.no_grad():
        expected, expected_logits = torch_outputs(name, network, torch.from_numpy(images))
        features = model(paddle.to_tensor(images))
        logits = model.classify(paddle.to_tensor(images))
    assert tuple(feature.shape[1] for feature in features) == model.out_channels
    for ours, theirs in zip(features, expected, strict=True):
        assert_close(ours, theirs)
    assert_close(logits, expected_logits)


@pytest.mark.parametrize("name", backbone_names())
def test_names_shapes_counts_and_batch_norm_are_the_torch_networks(name):
    with paddle.LazyGuard():  # no weights
        model = build_backbone(name, num_classes=1000)
        without = build_backbone(name)
    with torch.device("meta"):
        network = torch_network(name)
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert ours == {key: tuple(value.shape) for key, value in state_for(model, network).items()}
    assert sum(parameter.size for parameter in model.parameters() if not parameter.stop_gradient) == PARAMETERS[name]
    norms = {key: module for key, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for key, layer in model.named_sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            theirs = norms.pop(key)
            assert (layer._epsilon, layer._momentum) == (theirs.eps, pytest.approx(1 - theirs.momentum)), key
    assert norms == {}
    assert without.state_dict().keys() < model.state_dict().keys()
    assert not any(isinstance(layer, nn.Linear) for layer in without.sublayers())


def test_every_backbone_is_counted():
    assert backbone_names() == list(PARAMETERS)


@pytest.mark.parametrize("name", SMALLEST)
def test_outputs_agree_with_torch(name):
    network = randomise(torch_network(name), seed=1)
    assert_same_outputs(name, filled(name, network), network)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbone_names() if name not in SMALLEST])
def test_outputs_of_the_larger_ones_agree_with_torch(name):
    network = randomise(torch_network(name), seed=1)
    assert_same_outputs(name, filled(name, network), network)


def test_hrnet_fusion_of_this_test_is_timms_at_multiples_of_32():
    network = randomise(torch_network("hrnet_w18"), seed=2)
    original = timm.create_model("hrnet_w18").eval()
    original.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(images), original(images))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("resnet50", 8),
        ("resnet50", 16),
        ("resnext50_32x4d", 8),
        ("xception65", 8),
        ("efficientnet_lite0", 8),
        ("efficientnet_lite0", 16),
        pytest.param("xception65", 16, marks=pytest.mark.slow),
    ],
)
def test_dilated_outputs_agree_with_torch(name, output_stride):
    network = randomise(torch_network(name, output_stride), seed=3)
    model = filled(name, network, output_stride)
    assert model.output_stride == model.strides[-1] == output_stride
    assert_same_outputs(name, model, network)


@pytest.mark.parametrize("size", [(64, 98), (66, 71)])
def test_lite0_pads_even_sides_as_tensorflow(size):
    network = randomise(torch_network("efficientnet_lite0"), seed=3)
    assert_same_outputs("efficientnet_lite0", filled("efficientnet_lite0", network), network, size)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_efficientnet_agrees_with_timm(output_stride):
    torch.manual_seed(4)
    network = timm.create_model("efficientnet_b0", output_stride=output_stride, num_classes=0, global_pool="")
    network = randomise(network, seed=4)
    model = filled("efficientnet_b0", torch_network("efficientnet_b0"), output_stride)
    # timm's names differ, its order does not.
    theirs = [tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")]
    ours = [key for key in state_for(model, torch_network("efficientnet_b0")) if not key.startswith("classifier")]
    state = {key: paddle.to_tensor(tensor.numpy().copy()) for key, tensor in zip(ours, theirs, strict=True)}
    model.set_state_dict(state)
    images = np.random.default_rng(0).standard_normal((2, 3, 65, 97), dtype=np.float32)
    blocks = {}
    for index in (1, 2, 4, 6):
        hook = lambda _, __, output, index=index: blocks.update({index: output})  # noqa: E731
        network.blocks[index].register_forward_hook(hook)
    with torch.no_grad(), paddle.no_grad():
        network(torch.from_numpy(images))
        features = model(paddle.to_tensor(images))
    for ours, theirs in zip(features, blocks.values(), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_dilated_network_holds_every_value_of_the_strided_one(name):
    strided = build_backbone(name)
    dilated = build_backbone(name, output_stride=8)
    dilated.set_state_dict(strided.state_dict())
    strided.eval()
    dilated.eval()
    images = paddle.to_tensor(np.random.default_rng(5).standard_normal((1, 3, 97, 130), dtype=np.float32))
    with paddle.no_grad():
        few, many = strided(images), dilated(images)
    assert dilated.strides == (4, 8, 8, 8)
    for sparse, dense, step in zip(few, many, (1, 1, 2, 4), strict=True):
        dense = dense[:, :, ::step, ::step].numpy()
        assert np.abs(sparse.numpy() - dense).max() <= 1e-5 * np.abs(dense).max()


def test_multi_grid_multiplies_the_last_stages_dilations():
    network = randomise(torch_network("resnet50", 8), seed=6)
    for block, dilation in zip(network.layer4, (4, 8, 16), strict=True):
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    assert_same_outputs("resnet50", filled("resnet50", network, 8, (1, 2, 4)), network)
    basic = build_backbone("resnet34", 16, (1, 2, 4))
    assert [(block.conv1._dilation, block.conv2._dilation) for block in basic.layer4] == [
        ([2, 2], [2, 2]),
        ([4, 4], [4, 4]),
        ([8, 8], [8, 8]),
    ]


def test_the_first_block_of_a_dilated_stage_as_semseg_has_it():
    network = randomise(torch_network("resnet50", 8), seed=7)
    for stage, dilation in ((network.layer3, 2), (network.layer4, 4)):  # hszhao/semseg: every conv2 of the stage
        for block in stage:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    assert_same_outputs("resnet50", filled("resnet50", network, 8, first_block_dilated=True), network)
    with pytest.raises(UserError, match="first_block_dilated is not possible with efficientnet_b0"):
        build_backbone("efficientnet_b0", 8, first_block_dilated=True)


def test_stage_plans_by_hand():
    assert plan_stages((1, 2, 2, 2), 8, input_stride=4) == [
        StagePlan(1, 1, 1, 4),
        StagePlan(2, 1, 1, 8),
        StagePlan(1, 1, 2, 8),
        StagePlan(1, 2, 4, 8),
    ]


@pytest.mark.parametrize(
    "name", ["resnet50", "hrnet_w18", "efficientnet_b0", pytest.param("xception65", marks=pytest.mark.slow)]
)
def test_gradients_agree_with_torch(name):
    network = randomise(torch_network(name), seed=7)
    model = filled(name, network)
    network.double().train()  # rounding must not hide a mistake
    model.to(dtype="float64")
    model.train()
    for layer in model.sublayers():
        if isinstance(layer, MBConv):
            layer.drop_rate = 0.0
    images = np.random.default_rng(8).standard_normal((2, 3, 65, 65))
    features, _ = torch_outputs(name, network, torch.from_numpy(images))
    sum((feature**2).mean() for feature in features).backward()
    sum((feature**2).mean() for feature in model(paddle.to_tensor(images))).backward()
    ours = dict(model.named_parameters())
    compared = 0
    for key, parameter in network.named_parameters():
        if parameter.grad is not None:
            theirs = parameter.grad.numpy()
            error = np.abs(ours[key].grad.numpy() - theirs).max()
            # Biases that a later normalisation takes out again have gradient 0 up to rounding: hence the 1e-12.
            assert error <= 1e-5 * np.abs(theirs).max() + 1e-12, f"{key}: {error:.1e}"
            compared += 1
    assert compared == sum(parameter.grad is not None for parameter in ours.values()) > 60


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("hrnet_w18", 4), *[(name, stride) for name in SMALLEST if name != "hrnet_w18" for stride in (8, 32)]],
)
def test_two_images_of_65_pixels_train_every_parameter(name, output_stride):
    paddle.seed(9)
    model = build_backbone(name, output_stride)
    model.train()
    images = paddle.randn([2, 3, 65, 65])
    with refuse_single_value_batch_norm(model):
        features = model(images)
    for feature, channels, stride in zip(features, model.out_channels, model.strides, strict=True):
        assert feature.shape == [2, channels, math.ceil(65 / stride), math.ceil(65 / stride)]
    sum((feature**2).mean() for feature in features).backward()
    for key, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            assert parameter.grad is not None, key
            assert parameter.ndim == 1 or float(parameter.grad.abs().max()) > 0, key


@pytest.mark.parametrize("name", ["resnet18", "hrnet_w18", "efficientnet_b0"])
@pytest.mark.parametrize("size", [(66, 71), (67, 128), (90, 65)])
def test_any_size_works(name, size):
    model = build_backbone(name)
    model.eval()
    with paddle.no_grad():
        features = model(paddle.zeros([1, 3, *size]))
    expected = [
        [1, c, math.ceil(size[0] / s), math.ceil(size[1] / s)]
        for c, s in zip(model.out_channels, model.strides, strict=True)
    ]
    assert [feature.shape for feature in features] == expected


def test_weights_follow_from_the_seed():
    def weights(seed):
        paddle.seed(seed)
        return build_backbone("efficientnet_b0").features[3][0].block[0][0].weight.numpy()

    np.testing.assert_array_equal(weights(1), weights(1))
    assert np.abs(weights(1) - weights(2)).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet51",), "resnet50"),
        (("resnet50", 4), "8 or 16 or 32"),
        (("hrnet_w18", 8), "use 4"),
        (("resnet18", 8, (1, 2, 4)), "3 factors and the last stage of resnet18 2 blocks"),
        (("xception65", 8, (1, 2, 4)), "multi_grid is not possible with xception65"),
    ],
)
def test_what_a_backbone_does_not_have_is_one_line(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        build_backbone(*arguments)
    assert "\n" not in str(caught.value)


def test_stochastic_depth_drops_whole_images_and_follows_from_the_seed():
    x = paddle.ones([2000, 2, 1, 3])
    paddle.seed(3)
    first = drop_rows(x, 0.2).numpy()
    paddle.seed(3)
    np.testing.assert_array_equal(drop_rows(x, 0.2).numpy(), first)
    assert set(np.unique(first)) == {0.0, 1.25}
    assert (first == first[:, :1, :, :1]).all()
    assert abs((first[:, 0, 0, 0] > 0).mean() - 0.8) < 0.04  # 4 standard deviations

    blocks = [layer for layer in build_backbone("efficientnet_b0").sublayers() if isinstance(layer, MBConv)]
    assert [block.drop_rate for block in blocks] == pytest.approx([0.2 * i / 16 for i in range(16)])
    block, images = blocks[-2], paddle.randn([8, 192, 3, 3])
    block.drop_rate = 0.5
    block.eval()
    np.testing.assert_array_equal(block(images).numpy(), block(images).numpy())
    block.train()
    kept = [bool((block(images) != images)[i].any()) for i in range(8)]
    assert 0 < sum(kept) < 8


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(320, 1.1, 352), (40, 1.2, 48), (16, 1.4, 24), (24, 1.1, 24)]
)
def test_scaled_channels_by_hand(channels, width, expected):
    assert scaled_channels(channels, width) == expected  # the tables of EfficientNet-B2, B3, B4, B2
