import dataclasses
import os
import pickle
import shutil
import sys
from pathlib import Path

from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.files import sha256_of
from common.labels import label_set
from semsegpaddle_glore import export as exporting
from semsegpaddle_glore.checkpoint import TrainState, build_network, save_checkpoint
from semsegpaddle_glore.config import read_config
from semsegpaddle_glore.inference import InferenceNetwork, OnnxNetwork, PaddleNetwork, read_checkpoint_info
from semsegpaddle_glore.models import Segmentor
from semsegpaddle_glore.predict import open_predictor

import numpy as np
import onnx
import paddle
import pytest
import yaml

SIZE = (128, 160)
SHAPES = [(1, 3, *SIZE), (2, 3, 97, 161), (1, 3, 65, 65), (1, 3, 131, 254)]
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)  # not the config's: exports must take the checkpoint's
ALL_FILES = {"model.json", "model.pdiparams", "model.yaml", "model.onnx"}


@dataclasses.dataclass
class Exported:
    """A checkpoint of random weights, the network that was saved into it, and its exports."""

    model: Segmentor
    weights: Path
    folder: Path
    comparisons: list[exporting.Agreement]


CONFIG = read_config(
    "quickstart",
    [f"data.mean={list(MEAN)}", f"data.std={list(STD)}", "model.backbone=resnet18", "eval.window=[128, 128]"],
)
NAMES = label_set("cityscapes").class_names


def random_network(seed: int) -> Segmentor:
    """PSPNet whose batch normalisations have statistics of their own, as after training."""
    paddle.seed(seed)
    model = build_network(CONFIG, NAMES)
    rng = np.random.default_rng(seed)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._mean.set_value(rng.normal(0, 0.1, layer._mean.shape).astype(np.float32))
            layer._variance.set_value(rng.uniform(0.5, 1.5, layer._variance.shape).astype(np.float32))
    model.eval()
    return model


def save(path: Path, model: Segmentor) -> None:
    state = TrainState(7, 0.5, 7, config_to_text(CONFIG), NAMES)
    save_checkpoint(path, model, state)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    model, weights = random_network(0), folder / "best.safetensors"
    save(weights, model)
    output = exporting.default_folder(weights)
    assert output == folder / "best_export"
    return Exported(model, weights, output, exporting.export(weights, output, SIZE))


@pytest.mark.parametrize("shape", SHAPES)
def test_exports_compute_what_the_network_computes(exported, shape):
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    with paddle.no_grad():
        expected = exported.model(paddle.to_tensor(images)).numpy()

    assert len(np.unique(expected.argmax(1))) > 3  # there is something to get wrong
    for network in (
        PaddleNetwork(exported.weights),
        InferenceNetwork(exported.folder),
        OnnxNetwork(exported.folder / "model.onnx"),
    ):
        logits = network.logits(images)
        assert logits.shape == (shape[0], 19, *shape[2:]) and logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_comparison_covers_formats_and_three_sizes(exported):
    rows = [(row.runtime, row.size) for row in exported.comparisons]
    assert rows == [(name, size) for size in (SIZE, (97, 161), (128, 96)) for name in ("dygraph", "paddle", "onnx")]
    assert all(row.max_difference < 1e-5 and row.agreement_percent >= 99.99 for row in exported.comparisons)
    assert all(row.latency_ms > 0 for row in exported.comparisons)


def test_files_and_metadata(exported):
    assert {path.name for path in exported.folder.iterdir()} == ALL_FILES
    info = OnnxNetwork(exported.folder / "model.onnx").info
    assert info == read_checkpoint_info(exported.weights)
    assert (info.mean, info.std, info.channel_order) == (MEAN, STD, "RGB")
    assert info.scale == pytest.approx(1 / 255, rel=1e-12)
    assert (info.decode_head, info.backbone, info.step) == ("pspnet", "resnet18", 7)
    assert info.eval_protocol() == CONFIG.eval and info.eval_protocol().window == (128, 128)
    assert info.class_names == label_set("cityscapes").class_names
    np.testing.assert_array_equal(info.palette, label_set("cityscapes").palette)
    assert info.weights_sha256 == sha256_of(exported.weights)
    beside = yaml.safe_load((exported.folder / "model.yaml").read_text())
    assert beside["mean"] == list(MEAN) and beside["class_names"][13] == "car"
    assert beside["weights_sha256"] == info.weights_sha256


def test_onnx_ends_are_named_and_free(exported):
    graph = onnx.load(exported.folder / "model.onnx").graph
    shapes = {
        end.name: [side.dim_param or side.dim_value for side in end.type.tensor_type.shape.dim]
        for end in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 3, "height", "width"], "logits": ["batch", 19, "height", "width"]}


def test_predictions_are_the_same_in_both_runtimes(exported):
    image = np.random.default_rng(2).integers(0, 256, (151, 203, 3)).astype(np.uint8)
    by_paddle = open_predictor(str(exported.weights)).ids(image)
    by_onnx = open_predictor(str(exported.folder / "model.onnx")).ids(image)
    assert len(np.unique(by_paddle)) > 2
    assert (by_paddle == by_onnx).mean() > 0.9999


def test_wrong_onnx_is_caught_and_nothing_is_kept(exported, tmp_path, monkeypatch):
    """One class of the last layer is changed between the exporter and the comparison."""
    run_isolated = exporting.run_isolated

    def tampered(module: str, stage: str, weights: str, folder: str, *args) -> None:
        if stage == "write_comparison":
            return run_isolated(module, stage, weights, folder, *args)
        shutil.copytree(exported.folder, folder, dirs_exist_ok=True)
        model = onnx.load(Path(folder) / "model.onnx")
        constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
        (tensor,) = (constant for constant in constants if list(constant.dims) == [19, 512, 1, 1])
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[3] += 0.01
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, Path(folder) / "model.onnx")
        return None

    monkeypatch.setattr(exporting, "run_isolated", tampered)
    output = tmp_path / "deploy"
    with pytest.raises(UserError, match=r"the onnx export is not the network: at (128x160|97x161) logits differ by"):
        exporting.export(exported.weights, output, SIZE, ("onnx",))
    assert not output.exists()


def test_an_aborting_exporter_is_one_line_and_keeps_older_exports(exported, tmp_path, monkeypatch, capsys):
    code = "import os, sys; print('Fatal Error: unsupported op', file=sys.stderr, flush=True); os.abort()"
    monkeypatch.setattr(
        "common.weights.exported.worker_command", lambda module, stage, args: [sys.executable, "-c", code]
    )
    (tmp_path / "model.onnx").write_bytes(b"older")
    monkeypatch.setattr(sys, "argv", ["export.py", "--weights", str(exported.weights), "--output", str(tmp_path)])

    with pytest.raises(SystemExit) as end:
        run_command(exporting.main)
    assert end.value.code == 1
    line = capsys.readouterr().err
    expected = "export step write_paddle ended by SIGABRT: Fatal Error: unsupported op (no file was written)"
    assert line == f"error: {expected}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"older"


class Planted:
    """A pickle of this makes a folder where it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["evil.safetensors", "evil.pdparams", "evil.onnx"])
def test_a_crafted_pickle_is_refused_and_not_run(tmp_path, name):
    path, mark = tmp_path / name, tmp_path / "was_run"
    path.write_bytes(pickle.dumps({"weight": Planted(mark)}))
    for refuse in (open_predictor, lambda weights: exporting.export(weights, tmp_path / "out", formats=("onnx",))):
        with pytest.raises(UserError, match=name):
            refuse(str(path))
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_bad_input_is_one_line(exported, tmp_path):
    with pytest.raises(UserError, match="no weight file .*gone.safetensors"):
        exporting.export(tmp_path / "gone.safetensors", tmp_path / "out", formats=("onnx",))
    with pytest.raises(UserError, match="--size 64 256: each side must be at least 65"):
        exporting.export(exported.weights, tmp_path / "out", (64, 256))
    with pytest.raises(UserError, match="no weight file .*gone.onnx"):
        OnnxNetwork(tmp_path / "gone.onnx")
    model = onnx.load(exported.folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="foreign.onnx: holds no metadata of export.py"):
        OnnxNetwork(tmp_path / "foreign.onnx")
    onnx.helper.set_model_props(model, {**read_checkpoint_info(exported.weights).to_texts(), "channel_order": "BGR"})
    onnx.save(model, tmp_path / "bgr.onnx")
    with pytest.raises(UserError, match="bgr.onnx: wants BGR x 0.00392157"):
        OnnxNetwork(tmp_path / "bgr.onnx")
