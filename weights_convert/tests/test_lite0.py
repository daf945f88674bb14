"""EfficientNet-Lite0 with its ImageNet weights, and PSPNet on it, are the same in both frameworks.

Classes of photographs; samples and learning rates of the two CamVid configs; loss and gradients of the first update.
"""

import dataclasses

from awesome_pytorch_seg.config import read_config as read_torch_config
from awesome_pytorch_seg.data import dataset as torch_data
from awesome_pytorch_seg.losses import build_loss
from awesome_pytorch_seg.lr_schedule import learning_rate as torch_rate
from awesome_pytorch_seg.models import build_model as build_torch
from common.dataset_list import make_lists
from common.samples.roots import open_list
from common.toy_dataset import write_toy_dataset
from common.weights.package import read_package, weight_file
from semsegpaddle_glore.checkpoint import load_backbone
from semsegpaddle_glore.config import read_config as read_paddle_config
from semsegpaddle_glore.data import dataset as paddle_data
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.lr_schedule import learning_rate as paddle_rate
from semsegpaddle_glore.models import build_model as build_paddle
from semsegpaddle_glore.models.backbones import build_backbone

import numpy as np
import paddle
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.models import EfficientNet_B0_Weights

CONFIG, CROP = "pspnet_lite0_camvid", (96, 128)
CLASSES = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
MISTAKEN_PADDING = 0.57
FIVE_BEST = {
    "china.jpg": ["palace", "bell cote", "monastery", "castle", "lakeside"],
    "flower.jpg": ["daisy", "mushroom", "bee", "sea anemone", "ant"],
}


@pytest.fixture(scope="module")
def package():
    return weight_file("package", "efficientnet_lite0")


@pytest.mark.parametrize("name", FIVE_BEST)
def test_five_best_classes_of_a_photograph(name, package):
    image = Image.fromarray(load_sample_image(name))
    side = round(0.875 * min(image.size))  # the share of the short side that timm's default config crops
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    images = ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].copy()
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in read_package(package).items()})
    backbone = build_backbone("efficientnet_lite0", num_classes=1000)
    load_backbone(package, backbone)
    backbone.eval()
    with torch.no_grad(), paddle.no_grad():
        theirs = network(torch.from_numpy(images)).numpy()[0]
        ours = backbone.classify(paddle.to_tensor(images)).numpy()[0]
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    for logits in (ours, theirs):
        assert [CLASSES[index] for index in np.argsort(-logits)[:5]] == FIVE_BEST[name]


def test_even_padding_is_another_network(package):
    """The row of the README's table of settings."""
    backbone = build_backbone("efficientnet_lite0", num_classes=1000)
    load_backbone(package, backbone)
    backbone.eval()
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32))
    with paddle.no_grad():
        expected = backbone.classify(images).numpy()
        strided = [layer for layer in backbone.sublayers() if getattr(layer, "_padding_algorithm", "") == "SAME"]
        assert len(strided) == 5
        for layer in strided:
            half = layer.weight.shape[2] // 2
            layer._padding_algorithm, layer._updated_padding = "EXPLICIT", [half, half]
        mistaken = backbone.classify(images).numpy()
    found = np.abs(mistaken - expected).max() / np.abs(expected).max()
    assert found == pytest.approx(MISTAKEN_PADDING, rel=0.02)


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """The two configs, on drawn street scenes in CamVid's layout, with smaller crops."""
    root = tmp_path_factory.mktemp("camvid")
    write_toy_dataset("camvid", root, 10, 2, (120, 160))
    make_lists("camvid", root)
    ours = read_paddle_config(CONFIG, [f"data.root={root}", f"augment.crop_size={list(CROP)}"])
    theirs = read_torch_config(CONFIG, [f"data.root={root}"])
    (stage,) = theirs.augment.stages
    stage = dataclasses.replace(stage, crop_size=CROP)
    augment = dataclasses.replace(theirs.augment, stages=(stage,), base_size=360)  # config: images of that side
    return ours, dataclasses.replace(theirs, augment=augment)


def test_both_projects_draw_the_same_samples(experiments):
    ours, theirs = experiments
    train_set = open_list(ours.data, "train.txt")
    ours = paddle_data.train_stream(train_set, ours.data, ours.augment, 0)
    train_set = open_list(theirs.data, "train.txt")
    theirs = torch_data.train_stream(train_set, theirs, theirs.augment.stages[0])
    for position in range(12):  # into the second epoch
        (image, label, index), (their_image, their_label, their_index) = ours[position], theirs[position]
        assert index == their_index
        np.testing.assert_array_equal(label, their_label)
        np.testing.assert_allclose(image, their_image, atol=1e-6)


def test_both_projects_have_the_same_rates_and_settings():
    ours, theirs = read_paddle_config(CONFIG), read_torch_config(CONFIG)
    for step in range(ours.train.iters):
        rate = torch_rate(step, theirs.train.iters, theirs.optimizer.learning_rate, theirs.schedule)
        assert paddle_rate(step, ours.train.iters, ours.optimizer) == pytest.approx(rate, rel=1e-12)
    assert ours.train.iters == theirs.train.iters
    for name in ("learning_rate", "weight_decay", "head_lr_factor", "decay_norm_and_bias"):
        assert getattr(ours.optimizer, name) == getattr(theirs.optimizer, name)
    for name in ("iters", "batch_size", "eval_every", "seed"):
        assert getattr(ours.train, name) == getattr(theirs.train, name)
    assert (ours.loss.class_weights, ours.loss.aux_weight) == (theirs.loss.class_weights, theirs.loss.aux_weight)
    assert (ours.data.mean, ours.data.std) == (theirs.data.mean, theirs.data.std)
    (stage,) = theirs.augment.stages
    assert (ours.augment.scale_min, ours.augment.scale_max) == stage.scales
    assert ours.augment.crop_size == stage.crop_size


def paddle_state(network):
    """The PyTorch PSPNet's state under the Paddle PSPNet's names.

    Its one 3x3 convolution over feature and grids is there one over the feature and a matrix per grid.
    """
    state = {}
    for name, value in network.state_dict().items():
        layer, _, tensor = name.rpartition(".")
        tensor = {"running_mean": "_mean", "running_var": "_variance"}.get(tensor, tensor)
        if tensor != "num_batches_tracked":
            state[f"{layer}.{tensor}"] = value.detach().numpy()
    return renamed(state)


def renamed(state):
    """Tensors, or gradients, from the PyTorch PSPNet's names (with Paddle's of statistics) to the Paddle one's."""
    result = {}
    for name, value in state.items():
        if name.startswith("backbone."):
            result[backbone_name(name)] = value
        elif name == "decode_head.conv.weight":  # (512, 320 + 4 * 80, 3, 3)
            result["decode_head.feature_conv.weight"] = value[:, :320]
            for grid in range(4):
                part = value[:, 320 + 80 * grid : 400 + 80 * grid]  # (512, 80, 3, 3)
                matrix = part.transpose(1, 2, 3, 0).reshape(80, -1)  # (80, kernel row, kernel column, 512)
                result[f"decode_head.grids.{grid}.kernels.weight"] = matrix
        elif name.startswith("decode_head.branches."):
            _, _, grid, layer, tensor = name.split(".")
            result[f"decode_head.grids.{grid}.reduce.{('conv', 'bn')[int(layer)]}.{tensor}"] = value
        elif name.startswith("decode_head.classifier."):
            _, _, layer, tensor = name.split(".")
            result[f"decode_head.{'bn' if layer == '0' else 'classifier'}.{tensor}"] = value
    return {name: np.ascontiguousarray(value) for name, value in result.items()}


def backbone_name(name):
    """backbone.stem.0, .stem.1 and .stages.i.j are timm's conv_stem, bn1 and blocks.j."""
    parts = name.split(".")
    if parts[1] == "stem":
        return ".".join(["backbone", ("conv_stem", "bn1")[int(parts[2])], *parts[3:]])
    return ".".join(["backbone", "blocks", *parts[3:]])


def prepared(network, normalises_by_batch):
    """The network in training mode without dropout; normalisation by the batch or by stored statistics."""
    network.train()
    for layer in network.modules() if isinstance(network, torch.nn.Module) else network.sublayers():
        if type(layer).__name__ == "Dropout":
            layer.p = 0.0
        if isinstance(layer, torch.nn.BatchNorm2d | paddle.nn.BatchNorm2D) and not normalises_by_batch:
            layer.eval()
    return network


def torch_gradients(network, config, images, label, dtype):
    network = network.to(dtype)
    network.zero_grad()
    total, _ = build_loss("pspnet", config, 11)(network(torch.from_numpy(images).to(dtype)), torch.from_numpy(label))
    total.backward()
    gradients = {
        name: value.grad.double().numpy() for name, value in network.named_parameters() if value.grad is not None
    }
    return float(total.detach()), renamed(gradients)


def distance(some, others):
    """||a - b|| / ||b|| over all tensors together."""
    missing = sum(((some[name] - value) ** 2).sum() for name, value in others.items())
    return (missing / sum((value**2).sum() for value in others.values())) ** 0.5


@pytest.mark.parametrize("normalises_by_batch", [True, False])
def test_loss_and_gradients_of_the_first_update_agree(normalises_by_batch, experiments, package):
    ours, theirs = experiments
    stream = paddle_data.train_stream(open_list(ours.data, "train.txt"), ours.data, ours.augment, 0)
    images, label = (np.stack([stream[position][part] for position in range(4)]) for part in (0, 1))
    torch.manual_seed(0)
    network = build_torch("pspnet", "efficientnet_lite0", 11, output_stride=16, backbone_weights=package)
    model = build_paddle("pspnet", "efficientnet_lite0", 11, output_stride=16, aux=False, pyramid_channels=80)
    state = paddle_state(network)
    assert set(state) == set(model.state_dict())
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.items()})
    prepared(network, normalises_by_batch)
    prepared(model, normalises_by_batch)
    total, _ = SegmentationLoss(ours.loss)(model(paddle.to_tensor(images)), paddle.to_tensor(label))
    total.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if not p.stop_gradient}
    expected_total, expected = torch_gradients(network, theirs.loss, images, label, torch.float32)
    assert float(total) == pytest.approx(expected_total, rel=1e-5)
    assert set(gradients) == set(expected)
    if normalises_by_batch:  # the gradients' rounding is then far over 1e-4, in PyTorch alone as well
        _, exact = torch_gradients(network, theirs.loss, images, label, torch.float64)
        assert distance(gradients, exact) <= 3 * distance(expected, exact)
    else:
        assert distance(gradients, expected) <= 5e-4
        heads = [name for name in expected if name.startswith("decode_head.")]
        assert len(heads) == 21
        for name in heads:
            assert distance({name: gradients[name]}, {name: expected[name]}) <= 1e-4
