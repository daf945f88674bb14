"""Metadata, runtime and proof of exported networks; the exports themselves are tested in the projects."""

import dataclasses
import importlib
import json
import os
import sys

from common.cli import UserError
from common.labels import label_set
from common.weights import exported
from common.weights.exported import (
    Agreement,
    Limits,
    ModelInfo,
    OnnxNetwork,
    agreement_table,
    compare,
    draft_folder,
    palette_of,
    publish,
    require_agreement,
    run_isolated,
)

import numpy as np
import onnx
import pytest

LIMITS = Limits(max_difference=1e-4, min_agreement_percent=99.99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info(ModelInfo):
    FORMAT = "test-1"

    crop: int


INFO = Info(
    format="test-1",
    step=7,
    weights_sha256="ab",
    class_names=("road", "rest"),
    palette=((1, 2, 3), (4, 5, 6)),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    crop=65,
)

WRITTEN_BEFORE = {  # as export.py of 0.1.0 wrote it
    "stdc_seg": {"network": "stdc1", "commit": "a971ebe", "commit_changed": "false", "input_scale": "0.5"},
    "semsegpaddle_glore": {
        "decode_head": "glore",
        "backbone": "resnet50",
        "commit": "a971ebe",
        "commit_changed": "true",
        "protocol": "long_side: 192\nscales: [1.0]\nflip: false\nwindow: null\nstride_fraction: 0.6667\n",
    },
    "awesome_pytorch_seg": {
        "network": "pspnet",
        "backbone": "",
        "commit": "a971ebe",
        "commit_changed": "false",
        "fixed_size": "[65, 97]",
    },
    "encnet_single_gpu": {"network": "encnet", "dataset": "ade20k", "crop_size": "480"},
}


@pytest.mark.parametrize("project", WRITTEN_BEFORE)
def test_metadata_of_earlier_exports_is_read(project):
    texts = {
        "format": f"segrepro-{project}-export-1",
        **WRITTEN_BEFORE[project],
        "step": "7",
        "weights_sha256": "ab",
        "class_names": '["road", "rest"]',
        "palette": "[[1, 2, 3], [4, 5, 6]]",
        "channel_order": "RGB",
        "scale": "0.00392156862745098",
        "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]",
    }
    info = importlib.import_module(f"{project}.inference").ModelInfo.from_texts(texts, "model.onnx")
    assert (info.step, info.class_names, info.palette[1], info.mean[0]) == (7, ("road", "rest"), (4, 5, 6), 0.485)
    assert info.to_texts() == texts


def test_metadata_is_read_as_it_was_written_or_refused():
    texts = INFO.to_texts()
    assert Info.from_texts(texts, "model.onnx") == INFO
    for changes, message in (
        ({"format": "other"}, "holds no metadata of export.py"),
        ({"crop": "{"}, "its metadata is damaged"),
        ({"mean": "[0.5]"}, "'mean' is"),
        ({"channel_order": "BGR"}, "wants BGR x 0.00392157"),
        ({"scale": "1.0"}, "wants RGB x 1;"),
    ):
        with pytest.raises(UserError, match=f"model.onnx: .*{message}"):
            Info.from_texts({**texts, **changes}, "model.onnx")
    with pytest.raises(UserError, match="model.onnx: its metadata is damaged"):
        Info.from_texts({name: text for name, text in texts.items() if name != "crop"}, "model.onnx")


def test_palettes():
    labels = label_set("camvid")
    assert palette_of(((1, 2, 3),), labels, 1) == ((1, 2, 3),)
    assert palette_of(None, labels, 11) == tuple(map(tuple, labels.palette.tolist()))
    assert palette_of(None, None, 2) == ((128, 0, 0), (0, 128, 0))  # of VOC's map, without its black


def onnx_file(path, sides=("h", "w"), info=INFO):
    """A graph that doubles its input."""
    node = onnx.helper.make_node("Add", ["images", "images"], ["logits"])
    ends = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 3, *sides])
        for name in ("images", "logits")
    )
    graph = onnx.helper.make_graph([node], "double", *([end] for end in ends))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    if info is not None:
        onnx.helper.set_model_props(model, info.to_texts())
    onnx.save(model, path)
    return path


def test_onnx_runtime_behind_the_method(tmp_path):
    network = OnnxNetwork(onnx_file(tmp_path / "any.onnx"), Info)
    images = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(network.logits(images), 2 * images)
    assert network.info == INFO
    fixed = OnnxNetwork(onnx_file(tmp_path / "fixed.onnx", (5, 7)), Info)
    np.testing.assert_array_equal(fixed.logits(images), 2 * images)
    with pytest.raises(UserError, match="7x5 pixels, but the export takes 5x7 alone"):
        fixed.logits(images.transpose(0, 1, 3, 2))


def test_files_that_are_no_exports(tmp_path):
    with pytest.raises(UserError, match="no weight file .*gone.onnx"):
        OnnxNetwork(tmp_path / "gone.onnx", Info)
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(UserError, match="noise.onnx: not an ONNX model"):
        OnnxNetwork(tmp_path / "noise.onnx", Info)
    with pytest.raises(UserError, match="foreign.onnx: holds no metadata of export.py"):
        OnnxNetwork(onnx_file(tmp_path / "foreign.onnx", info=None), Info)


class Scaled:
    """Gives its input times a factor, with `change` added to the first class of 20 pixels."""

    def __init__(self, change=0.0, rows=None):
        self.change, self.rows = change, rows

    def logits(self, images):
        logits = 2 * images
        logits[:, 0, 0, :20] += self.change
        return logits[:, :, : self.rows]


def test_comparison_by_hand(tmp_path):
    networks = {"torch": Scaled(), "onnx": OnnxNetwork(onnx_file(tmp_path / "m.onnx"), Info), "other": Scaled(1000.0)}
    ours, same, changed = compare(networks, (2, 3, 40, 50))
    assert [row.runtime for row in (ours, same, changed)] == ["torch", "onnx", "other"]
    assert (same.size, same.max_difference, same.agreement_percent) == ((40, 50), 0.0, 100.0)
    images = np.random.default_rng(0).standard_normal((2, 3, 40, 50)).astype(np.float32)
    other_class = (images[:, :, 0, :20].argmax(1) != 0).sum()
    assert changed.max_difference == pytest.approx(1000 / np.abs(2 * images).max())
    assert changed.agreement_percent == pytest.approx(100 * (1 - other_class / 4000))
    assert min(row.latency_ms for row in (ours, same, changed)) > 0
    with pytest.raises(UserError, match=r"at 40x50 it gives logits of shape \(2, 3, 39, 50\), the network"):
        compare({"torch": Scaled(), "onnx": Scaled(rows=39)}, (2, 3, 40, 50))


def test_an_export_that_does_not_run_is_one_line(tmp_path):
    class Broken:
        def logits(self, images):
            raise RuntimeError("no such kernel\nand a long trace")

    with pytest.raises(UserError, match=r"the onnx export does not run at 8x9 \(no such kernel\): nothing is kept"):
        compare({"torch": Scaled(), "onnx": Broken()}, (1, 3, 8, 9))


@pytest.mark.parametrize("difference, agreement", [(2e-4, 100.0), (0.0, 99.9), (float("nan"), 100.0)])
def test_limits(difference, agreement):
    good = Agreement("paddle", (65, 97), 9e-5, 99.99, 1.0)
    require_agreement([good], LIMITS)
    bad = Agreement("onnx", (65, 97), difference, agreement, 1.0)
    with pytest.raises(UserError, match="the onnx export is not the network: at 65x97 .*; try --fixed"):
        require_agreement([good, bad], LIMITS, "; try --fixed")
    by_classes = dataclasses.replace(LIMITS, max_difference=float("inf"))
    assert by_classes.hold(bad) == (difference == 2e-4)


def test_table():
    lines = agreement_table([Agreement("onnx", (65, 97), 1.5e-6, 99.995, 12.34)]).splitlines()
    assert lines[1].split() == ["onnx", "65x97", "1.5e-06", "99.9950", "%", "12.3"]
    assert len(lines) == 2


def test_drafts_leave_nothing_where_the_work_fails(tmp_path):
    with draft_folder(tmp_path / "new") as folder:
        (folder / "a").write_bytes(b"whole")
        publish(folder / "a", tmp_path / "new" / "a")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
    for output in ("new", "gone"):
        with pytest.raises(UserError), draft_folder(tmp_path / output) as folder:
            (folder / "a").write_bytes(b"half")
            raise UserError("it failed")
    assert (tmp_path / "new" / "a").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, sys; print('Fatal Error: no op', file=sys.stderr, flush=True); os.abort()", "SIGABRT: Fatal Err"),
        ("raise SystemExit(-1)", "status 255: it printed nothing"),
        ("import sys; print('error: two', file=sys.stderr); sys.exit(1)", r"status 1: two \(no file was written\)"),
    ],
)
def test_a_process_that_ends_badly_is_one_line(monkeypatch, code, message):
    monkeypatch.setattr(exported, "worker_command", lambda module, stage, args: [sys.executable, "-c", code])
    with pytest.raises(UserError, match=f"export step write_onnx ended (by|with) {message}"):
        run_isolated("some.module", "write_onnx", "weights")


def test_a_function_runs_in_a_process_of_its_own(tmp_path):
    (tmp_path / "stages.py").write_text(
        "import json, os\ndef write(folder, values):\n"
        "    open(f'{folder}/out', 'w').write(json.dumps([values, os.getpid()]))\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        run_isolated("stages", "write", str(tmp_path), [1, "two"])
    values, process = json.loads((tmp_path / "out").read_text())
    assert values == [1, "two"] and process != os.getpid()
