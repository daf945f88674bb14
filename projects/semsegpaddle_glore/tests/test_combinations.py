"""Every decode head on a member of every backbone family: one training step, evaluation, saving, loading, exporting."""

import itertools

from common.config.typed import config_to_text
from common.samples.list_dataset import ListDataset
from common.samples.roots import labels_of
from semsegpaddle_glore.checkpoint import TrainState, build_network, load_network, save_checkpoint
from semsegpaddle_glore.config import read_config
from semsegpaddle_glore.data.dataset import train_stream
from semsegpaddle_glore.eval import evaluate
from semsegpaddle_glore.export import export
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.optimizer import build_optimizer
from semsegpaddle_glore.updates import Updater

import numpy as np
import paddle
import pytest
from glore_runs import CLASSES, write_data

HEADS = ("pspnet", "deeplabv3", "glore", "ginet")
BACKBONES = ("resnet18", "resnext50_32x4d", "hrnet_w18", "xception65", "efficientnet_b0")  # the smallest of each family
PAIRS = list(itertools.product(HEADS, BACKBONES))
QUICK = ("resnet18", "efficientnet_b0")
# By default every head on the quick backbones and every backbone under PSPNet; the slow mark has the rest.
MARKED_PAIRS = [
    pair if "pspnet" in pair or pair[1] in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=3, size=(66, 71))


def config_for(head, backbone, data, output_stride=16):
    stride = "null" if backbone.startswith("hrnet") else output_stride
    words = [f"model.name={head}", f"model.backbone={backbone}", f"model.output_stride={stride}"]
    words += [f"model.word_embeddings={data}/vectors.txt", "data.dataset=custom", f"data.root={data}"]
    return read_config(
        "quickstart", [*words, "optimizer.name=sgd", "augment.base_size=66", "augment.crop_size=[65, 69]"]
    )


@pytest.mark.parametrize("head, backbone", MARKED_PAIRS)
def test_trains_evaluates_saves_and_loads(head, backbone, data, tmp_path):
    config = config_for(head, backbone, data)
    train_set, val_set = (ListDataset(labels_of(config.data), data, name) for name in ("train.txt", "val.txt"))
    stream = train_stream(train_set, config.data, config.augment, seed=0)
    images, label = (np.stack(parts) for parts in zip(*(stream[i][:2] for i in range(2)), strict=True))
    assert images.shape == (2, 3, 65, 69)

    paddle.seed(0)
    model = build_network(config, CLASSES)
    before = {name: p.numpy().copy() for name, p in model.named_parameters() if not p.stop_gradient}
    updater = Updater(model, SegmentationLoss(config.loss), build_optimizer(model, config.optimizer), seed=0)
    model.train()
    loss, parts = updater.gradients(images, label, 0)
    assert 0.5 < loss < 20
    assert parts.keys() == ({"seg", "aux", "sc"} if head == "ginet" else {"seg", "aux"})
    updater.apply(1e-3)
    moved = [name for name, p in model.named_parameters() if name in before and (p.numpy() != before[name]).any()]
    assert len(moved) > 0.9 * len(before)  # some start behind a factor of 0

    result = evaluate(model, val_set, config.data, config.eval)
    assert result.images == 1 and result.matrix.matrix.sum() == 66 * 71
    path = tmp_path / "best.safetensors"
    state = TrainState(1, 0.5, 1, config_to_text(config), CLASSES)
    save_checkpoint(path, model, state)
    twin = load_network(path)
    path.unlink()
    again = evaluate(twin, val_set, config.data, config.eval)
    np.testing.assert_array_equal(again.matrix.matrix, result.matrix.matrix)
    assert again.loss == result.loss


@pytest.mark.slow
@pytest.mark.parametrize("head, backbone", PAIRS)
def test_exports(head, backbone, data, tmp_path):
    config = config_for(head, backbone, data)
    paddle.seed(0)
    model = build_network(config, CLASSES)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D) and float(layer.weight.abs().max()) == 0:
            layer.weight.set_value(paddle.ones_like(layer.weight))  # else a unit that starts as the identity stays one
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, model, TrainState(0, 0.5, 0, config_to_text(config), CLASSES))
    rows = export(path, tmp_path / "out", (65, 96))
    assert [(row.format, row.size) for row in rows if row.format != "dygraph"] == [
        (form, size) for size in ((65, 96), (97, 161), (128, 96)) for form in ("paddle", "onnx")
    ]
    assert max(row.max_difference for row in rows) < 1e-4
