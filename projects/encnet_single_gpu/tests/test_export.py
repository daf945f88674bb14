import json
import math

from common.cli import UserError
from common.config.typed import config_to_text
from common.labels import label_set
from encnet_single_gpu import checkpoint
from encnet_single_gpu.checkpoint import TrainState, save_checkpoint
from encnet_single_gpu.config import read_config
from encnet_single_gpu.export import LIMITS, export, limits_of, main
from encnet_single_gpu.models import build_model, model_names

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from encnet_runs import TinyNet, tiny_networks
from testkit import run_here


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of the tiny network, its normalisation statistics set apart from their start."""
    torch.manual_seed(0)
    model = TinyNet(150)
    model.backbone[1].running_mean.uniform_(-1, 1)
    model.backbone[1].running_var.uniform_(0.5, 2)
    config = read_config("pspnet")
    names = label_set("ade20k").class_names
    state = TrainState(7, 0.5, 7, config_to_text(config), names, config.data.mean, config.data.std)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_checkpoint(path, model, state)
    return path


def run_export(weights, *words):
    with tiny_networks():
        return run_here(main, "--weights", weights, *words)


def test_any_size_with_what_its_input_needs(weights):
    printed = run_export(weights, "--size", 64, 96)
    path = weights.parent / "best_export" / "model.onnx"
    assert f"written: {path}" in printed
    rows = [line.split()[:2] for line in path.with_suffix(".txt").read_text().splitlines()[1:]]
    assert rows == [[runtime, size] for size in ("64x96", "96x128", "129x97") for runtime in ("torch", "onnx")]
    with tiny_networks():
        model = checkpoint.load_network(weights)
    images = np.random.default_rng(0).standard_normal((3, 3, 70, 51), np.float32)
    (logits,) = onnxruntime.InferenceSession(str(path)).run(["logits"], {"images": images})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(torch.from_numpy(images)).numpy(), atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["class_names"])[:2] == ["wall", "building"]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert (metadata["channel_order"], json.loads(metadata["step"])) == ("RGB", 7)


class WrongElsewhere(TinyNet):
    """Exported without a factor that is 1 at a height of 64 alone, as if the exporter had taken it for a constant."""

    def forward(self, images):
        logits = super().forward(images)
        return logits if torch.compiler.is_compiling() else logits * (images.shape[2] / 64)


def test_a_graph_that_is_wrong_at_another_size_is_not_kept(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "build_model", lambda *_: WrongElsewhere(150))
    with pytest.raises(UserError, match=r"at 129x97 logits differ by .*nothing is kept.*--fixed"):
        export(weights, tmp_path / "out", (64, 96), fixed=False)
    assert list(tmp_path.iterdir()) == []
    export(weights, tmp_path / "out", (64, 96), fixed=True)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_a_network_that_cannot_be_exported_is_one_line(weights, tmp_path, monkeypatch):
    class Branching(TinyNet):
        def forward(self, images):
            return super().forward(images if float(images.sum()) > 0 else -images)

    monkeypatch.setattr(checkpoint, "build_model", lambda *_: Branching(150))
    with pytest.raises(UserError, match="PyTorch cannot export this network") as error:
        export(weights, tmp_path / "out", (64, 96), fixed=False)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_networks_that_unpool_are_judged_by_classes_alone():
    assert limits_of(build_model("segnet_basic")).max_difference == math.inf
    assert limits_of(build_model("segnet_basic")).min_agreement_percent == LIMITS.min_agreement_percent == 99.9
    assert limits_of(TinyNet(150)) == LIMITS


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_network_is_exported_for_any_size(name, tmp_path):
    backbone = "resnet18" if hasattr(build_model(name), "decode_head") else "null"
    config = read_config("pspnet", [f"model.name={name}", f"model.backbone={backbone}"])
    torch.manual_seed(0)
    model = build_model(name, config.model.backbone)
    with torch.no_grad():
        model(torch.randn(4, 3, 96, 96))  # statistics other than their start
    state = TrainState(
        1, 0.5, 1, config_to_text(config), label_set("ade20k").class_names, config.data.mean, config.data.std
    )
    save_checkpoint(tmp_path / "best.safetensors", model, state)
    comparisons = export(tmp_path / "best.safetensors", tmp_path / "out", (128, 160), fixed=False)
    assert [row.size for row in comparisons if row.runtime == "onnx"] == [(128, 160), (96, 128), (129, 97)]
