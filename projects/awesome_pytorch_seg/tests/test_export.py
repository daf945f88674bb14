import dataclasses
import sys

from awesome_pytorch_seg import export as exporting
from awesome_pytorch_seg.checkpoint import TrainState, save_checkpoint
from awesome_pytorch_seg.config import read_config
from awesome_pytorch_seg.demo import main as demo_main
from awesome_pytorch_seg.demo import open_predictor
from awesome_pytorch_seg.inference import OnnxNetwork, read_checkpoint_info
from awesome_pytorch_seg.models import MODELS, build_model
from awesome_pytorch_seg.overfit import SMALLEST_BACKBONES
from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.files import sha256_of
from common.labels import label_set

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

SIZE = (80, 112)
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)  # not the config's: exports must take the checkpoint's
CAMVID = label_set("camvid")


def save(path, name, backbone=None):
    """A checkpoint of random weights whose batch normalisations have statistics of their own, as after training."""
    torch.manual_seed(0)
    model = build_model(name, backbone, num_classes=CAMVID.num_classes)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # gates and scores that start at zero would hide what is behind them
                parameter.normal_(0, 0.1)
    config = read_config("enet_camvid", [f"model.name={name}", f"model.backbone={backbone or 'null'}"])
    save_checkpoint(path, model, TrainState(7, 0.5, 7, config_to_text(config), CAMVID.class_names, MEAN, STD))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint of PSPNet, whose pooling is what exporters get wrong, and its export."""
    weights = save(tmp_path_factory.mktemp("export") / "best.safetensors", "pspnet", "resnet18")
    folder = exporting.default_folder(weights)
    assert folder == weights.parent / "best_export"
    return weights, folder, exporting.export(weights, folder, SIZE)


def test_it_computes_the_same_at_three_sizes(exported):
    _, folder, comparisons = exported
    sizes = (SIZE, (97, 161), (203, 131))
    assert [(row.runtime, row.size) for row in comparisons] == [(n, size) for size in sizes for n in ("torch", "onnx")]
    assert all(row.max_difference < 1e-5 and row.agreement_percent >= 99.99 for row in comparisons)
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


def test_metadata(exported):
    weights, folder, _ = exported
    info = OnnxNetwork(folder / "model.onnx").info
    assert info == read_checkpoint_info(weights)
    assert (info.network, info.backbone, info.step, info.mean, info.std) == ("pspnet", "resnet18", 7, MEAN, STD)
    assert info.class_names == CAMVID.class_names
    assert info.weights_sha256 == sha256_of(weights)
    graph = onnx.load(folder / "model.onnx").graph
    shapes = {
        end.name: [side.dim_param or side.dim_value for side in end.type.tensor_type.shape.dim]
        for end in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 3, "height", "width"], "logits": ["batch", 11, "height", "width"]}


def test_the_demo_runs_it(exported):
    weights, folder, _ = exported
    image = np.random.default_rng(2).integers(0, 256, (91, 123, 3)).astype(np.uint8)
    ours, theirs = (open_predictor(path).ids(image) for path in (weights, folder / "model.onnx"))
    assert len(np.unique(ours)) > 1
    assert (ours == theirs).mean() > 0.9999


def test_an_export_for_one_size_refuses_others(exported, tmp_path, monkeypatch):
    model = onnx.load(exported[1] / "model.onnx")
    info = dataclasses.replace(read_checkpoint_info(exported[0]), fixed_size=(91, 123))
    onnx.helper.set_model_props(model, info.to_texts())
    onnx.save(model, tmp_path / "fixed.onnx")
    network = OnnxNetwork(tmp_path / "fixed.onnx")
    assert network.logits(np.zeros((1, 3, 91, 123), np.float32)).shape == (1, 11, 91, 123)
    cv2.imwrite(str(tmp_path / "other.png"), np.zeros((91, 124, 3), np.uint8))
    words = ("--weights", tmp_path / "fixed.onnx", "--input-pic", tmp_path / "other.png", "--outdir", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words)])
    with pytest.raises(UserError, match=r"other.png: 91x124 pixels, but the export takes 91x123 alone: export it at"):
        demo_main()


def test_a_changed_weight_is_caught_and_nothing_is_kept(exported, tmp_path, monkeypatch):
    weights, folder, _ = exported

    def tampered(weights, path, size, is_fixed):
        model = onnx.load(folder / "model.onnx")
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "decode_head.classifier.3.bias")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[3] += 0.05
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "write_onnx", tampered)
    with pytest.raises(UserError, match=r"the onnx export is not the network: at \d+x\d+ logits differ by"):
        exporting.export(weights, tmp_path / "deploy", SIZE)
    assert not (tmp_path / "deploy").exists()


class AdaptivePyramid(nn.Module):
    """A pyramid by the framework's adaptive pooling, which exporters get wrong at sizes other than the traced one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CAMVID.num_classes, 3, padding=1)

    def forward(self, images):
        x = self.conv(images)
        return x + F.interpolate(F.adaptive_avg_pool2d(x, 6), size=x.shape[2:], mode="bilinear", align_corners=False)


def test_wrong_at_another_size_leaves_no_file_and_ends_with_1(exported, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    network = AdaptivePyramid().eval()
    for module in (exporting, sys.modules["awesome_pytorch_seg.inference"]):
        monkeypatch.setattr(module, "load_network", lambda weights: network)
    words = ["--weights", exported[0], "--output", tmp_path, "--size", 96, 96]
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
    (tmp_path / "model.onnx").write_bytes(b"older")
    with pytest.raises(SystemExit) as end:
        run_command(exporting.main)
    assert end.value.code == 1
    line = capsys.readouterr().err
    assert "is not the network" in line or "does not run at" in line or "exporter failed" in line
    assert line.count("\n") == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"older")]


def test_bad_input_is_one_line(exported, tmp_path):
    weights, folder, _ = exported
    with pytest.raises(UserError, match="no weight file .*gone.safetensors"):
        exporting.export(tmp_path / "gone.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="--size 64 256: each side must be at least 65"):
        exporting.export(weights, tmp_path / "out", (64, 256))
    with pytest.raises(UserError, match="no weight file .*gone.onnx"):
        OnnxNetwork(tmp_path / "gone.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(UserError, match="noise.onnx: not an ONNX model"):
        OnnxNetwork(tmp_path / "noise.onnx")
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="foreign.onnx: holds no metadata of export.py"):
        OnnxNetwork(tmp_path / "foreign.onnx")
    texts = {**read_checkpoint_info(weights).to_texts(), "channel_order": "BGR"}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, tmp_path / "bgr.onnx")
    with pytest.raises(UserError, match="bgr.onnx: wants BGR x 0.00392157"):
        OnnxNetwork(tmp_path / "bgr.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "pspnet"])
def test_every_network_exports(name, tmp_path):
    backbone = next((backbone for backbone in SMALLEST_BACKBONES if backbone in MODELS[name].backbones), None)
    weights = save(tmp_path / "best.safetensors", name, backbone)
    comparisons = exporting.export(weights, tmp_path / "out", SIZE)
    assert all(row.max_difference < 1e-4 for row in comparisons)
    is_fixed = name == "ocnet_pyramid"
    assert OnnxNetwork(tmp_path / "out" / "model.onnx").info.fixed_size == (SIZE if is_fixed else None)
    assert {row.size for row in comparisons} == ({SIZE} if is_fixed else {SIZE, (97, 161), (203, 131)})
