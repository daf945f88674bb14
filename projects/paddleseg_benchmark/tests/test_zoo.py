"""The zoo: rows and their parameters, losses, edge labels, layouts, what is refused."""

from common.cli import UserError
from paddleseg_benchmark import updates
from paddleseg_benchmark.zoo import zoo

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddleseg.models import backbones
from paddleseg.transforms import functional as paddleseg_transforms
from pdseg_runs import batch, small_network

SMALL_ROWS = (
    "bisenetv2",
    "fastscnn",
    "hardnet",
    "shufflenetv2",
    "fcn_hrnet_w18",
    "deeplabv3p_resnet50",
    "unet_plusplus",
)
BOTH_RESNETS = ("ANN", "DANet", "Deeplabv3", "Deeplabv3P", "GCNet", "GSCNN", "PSPNet", "DecoupledSegNet")
BOTH_RESNETS += ("EMANet", "ISANet", "DNLNet")
ALONE = ("BiSeNetv2", "Fast-SCNN", "HarDNet", "U-Net", "U2-Net", "Att U-Net", "U-Net++", "U-Net3+", "ShuffleNetV2")


def fields(tensor):
    return tensor.numpy().astype(np.float64)


def test_rows_are_those_of_the_original_table():
    ticked = {(name, backbone) for name in BOTH_RESNETS for backbone in ("ResNet50_vd", "ResNet101_vd")}
    ticked |= {(name, "-") for name in ALONE} | {("SFNet", "ResNet50_vd")}
    ticked |= {(name, f"HRNet_W{width}") for name in ("FCN", "OCRNet") for width in (18, 48)}
    assert {(row.network, row.backbone) for row in zoo.ROWS} == ticked
    assert len(zoo.ROWS) == len(ticked) == len({row.name for row in zoo.ROWS}) == 36


@pytest.mark.parametrize("row", zoo.ROWS, ids=lambda row: row.name)
def test_every_config_has_a_loss_per_coefficient_and_its_backbone(row):
    config = zoo.read_config(zoo.CONFIG_DIR / row.config)
    assert len(config.loss_cfg["types"]) == len(config.loss_cfg["coef"])
    assert (config.model_cfg.get("backbone") or {"type": "-"})["type"] == row.backbone
    assert config.optimizer_cfg["momentum"] == 0.9


def test_a_config_is_found_by_its_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = str(zoo.read_config(zoo.CONFIG_DIR / "fastscnn.yml"))
    assert {str(zoo.read_config(name)) for name in ("fastscnn", "fastscnn.yml", "configs/fastscnn.yml")} == {wanted}
    with pytest.raises(UserError, match="no config file fastscn: did you mean 'fastscnn.yml'"):
        zoo.read_config("fastscn")


def count_matches(row, network):
    """Whether the parameters are the reference's, without those that only the reference of ShuffleNetV2 has."""
    unused = 95_040 if row.name == "shufflenetv2" else 0
    return network.trainable_parameters() == row.reference_params - unused


@pytest.mark.parametrize("name", SMALL_ROWS)
def test_parameters_equal_the_reference(name):
    assert count_matches(zoo.row(name), zoo.build(name))


@pytest.mark.slow
@pytest.mark.parametrize("row", zoo.ROWS, ids=lambda row: row.name)
def test_every_row_trains_one_step_and_predicts(row):
    paddle.seed(0)
    network = zoo.build(row.name)
    assert count_matches(row, network)
    images, labels = batch((64, 80))
    stepper = updates.DynamicStep(network, iters=10)
    before = {name: p.numpy() for name, p in network.network.named_parameters() if not p.stop_gradient}
    assert 1 < stepper.run(images, labels).loss < 60
    moved = [
        name for name, p in network.network.named_parameters() if name in before and (p.numpy() != before[name]).any()
    ]
    assert len(moved) > 0.9 * len(before)
    pred = stepper.predict(images)
    assert pred.shape == labels.shape
    assert pred.max() < 19


def test_resnet101_has_as_many_parameters_more_as_the_rows_say():
    counts = [
        sum(p.size for p in build(output_stride=8).parameters() if not p.stop_gradient)
        for build in (backbones.ResNet50_vd, backbones.ResNet101_vd)
    ]
    assert counts[1] - counts[0] == 18_992_128
    counted = [zoo.row("deeplabv3p_resnet101").reference_params, zoo.row("deeplabv3p_resnet50").reference_params]
    assert counted[0] - counted[1] == 18_992_128


def test_loss_is_the_weighted_sum_of_each_outputs_cross_entropy():
    paddle.seed(0)
    network = small_network([{"type": "CrossEntropyLoss"}] * 2, [1, 0.4], classes=5, outputs=2)
    images, labels = batch((9, 11), classes=5)
    valid, expected = labels != 255, 0.0
    for coefficient, output in zip((1, 0.4), network.network(paddle.to_tensor(images)), strict=True):
        logits = fields(output)
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        picked = np.take_along_axis(log_probs, np.where(valid, labels, 0)[:, None], 1)[:, 0]
        expected -= coefficient * picked[valid].mean()
    loss = network(paddle.to_tensor(images), paddle.to_tensor(labels))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss", ["CrossEntropyLoss", "OhemCrossEntropyLoss", "RelaxBoundaryLoss", "BootstrappedCrossEntropyLoss"]
)
def test_a_batch_without_valid_pixels_teaches_nothing(loss):
    more = {"min_K": 64, "loss_th": 0.3} if loss == "BootstrappedCrossEntropyLoss" else {}
    network = small_network([{"type": loss, **more}], [1])
    images, labels = batch((16, 16))
    value = network(paddle.to_tensor(images), paddle.full_like(paddle.to_tensor(labels), 255))
    value.backward()
    assert float(value) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in network.network.parameters())


def test_edges_are_those_of_paddlesegs_loader():
    _, labels = batch((40, 56), count=3, seed=4)
    labels[0] = 7  # nothing but the border
    labels[1, 10:30, 10:30] = 255
    expected = [paddleseg_transforms.mask_to_binary_edge(label, radius=2, num_classes=19)[0] for label in labels]
    found = zoo.edges(paddle.to_tensor(labels)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert 0 < found[0].mean() < 0.5


def test_edge_losses_learn_from_the_derived_edges():
    network = small_network([{"type": "BCELoss", "edge_label": True}], [2], classes=1)
    images, labels = batch((16, 24))
    images, labels = paddle.to_tensor(images), paddle.to_tensor(labels)
    logits = fields(network.network(images)[0])
    target = fields(zoo.edges(labels))[:, None]
    expected = 2 * (np.log1p(np.exp(logits)) - logits * target).mean()
    assert float(network(images, labels)) == pytest.approx(expected, rel=1e-5)


def without_dropout(layout):
    """DeepLabv3+ in training mode, always with the same weights."""
    paddle.seed(0)
    network = zoo.build("deeplabv3p_resnet50", data_format=layout)
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.Dropout):
            layer.p = 0.0
    network.train()
    return network


def test_nhwc_loss_equals_nchw():
    images, labels = map(paddle.to_tensor, batch((33, 49)))
    nchw, nhwc = (float(without_dropout(layout)(images, labels)) for layout in ("NCHW", "NHWC"))
    assert nhwc == pytest.approx(nchw, rel=1e-4)


def test_nhwc_gradients_equal_nchw():
    """In float64: image pooling normalises over two values, which makes much of float32's rounding in the gradients."""
    images, labels = batch((33, 49))
    gradients = []
    for layout in ("NCHW", "NHWC"):
        network = without_dropout(layout)
        network.network.to(dtype="float64")
        logits = network.predict(paddle.to_tensor(images.astype(np.float64)))  # (B, C, H, W) in both layouts
        F.cross_entropy(logits, paddle.to_tensor(labels), ignore_index=255, axis=1).backward()
        weights = network.network.named_parameters()
        gradients.append({name: p.grad.numpy() for name, p in weights if p.ndim == 4 and p.grad is not None})
    nchw, nhwc = gradients
    assert len(nchw) > 60
    for name, value in nchw.items():
        np.testing.assert_allclose(nhwc[name], value, atol=1e-6 * np.abs(value).max(), err_msg=name)


def test_nhwc_is_refused_where_the_network_has_none():
    with pytest.raises(UserError, match="NHWC: FCN: in paddleseg 2.8.0 only DeepLabV3P takes data_format"):
        zoo.build("fcn_hrnet_w18", data_format="NHWC")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'deeplabv3p_resnet50'"):
        zoo.row("deeplabv3_p_resnet50")


def test_an_unknown_config_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fastscnn.yml'"):
        zoo.read_config("configs/fastscn.yml")


@pytest.mark.parametrize(
    ("name", "network", "backbone", "params_less"),
    [("deeplabv3p.yml", "DeepLabV3P", "ResNet50_vd", 0), ("hrnet.yml", "FCN", "HRNet_W18", 270 + 19)],
)
def test_the_configs_of_the_original_benchmark_have_their_names_and_values(name, network, backbone, params_less):
    config = zoo.read_config(f"benchmark/{name}")
    sections = {"type": "RandomDistort"}, {"type": "SGD", "momentum": 0.9}
    assert config.train_dataset_cfg["transforms"][3] == sections[0]
    assert sections[1].items() <= config.optimizer_cfg.items()
    assert (config.model_cfg["type"], config.model_cfg["backbone"]["type"]) == (network, backbone)
    row = {"DeepLabV3P": "deeplabv3p_resnet50", "FCN": "fcn_hrnet_w18"}[network]
    assert zoo.build_from_config(config).trainable_parameters() == zoo.row(row).reference_params - params_less
    assert (config.iters, config.batch_size) == (80000, 2)


def test_both_benchmark_configs_of_hrnet_pad_both_sides_and_have_no_bias():
    for name in ("hrnet.yml", "hrnet48.yml"):
        model = zoo.read_config(f"benchmark/{name}").model_cfg
        assert (model["bias"], model["backbone"]["padding_same"]) == (False, False)


def test_every_config_says_what_to_expect_and_how_it_is_run():
    paths = [*zoo.CONFIG_DIR.glob("*.y*ml"), *zoo.BENCHMARK_DIR.glob("*.yml")]
    assert len(paths) == 36 + 1 + 2 + 3
    for path in paths:
        head = path.read_text(encoding="utf-8").split("\n\n")[0]
        for word in ("# Expected: ", "# Hours: ", "Hardware: ", "# Command: python ", path.name):
            assert word in head, f"{path}: its head has no '{word}'"
