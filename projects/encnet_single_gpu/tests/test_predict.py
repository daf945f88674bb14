from common.cli import UserError
from common.config.typed import config_to_text
from common.labels import cityscapes_raw_labels, label_set
from encnet_single_gpu.checkpoint import TrainState, save_checkpoint
from encnet_single_gpu.config import read_config
from encnet_single_gpu.export import main as export_main
from encnet_single_gpu.inference import ModelInfo, OnnxNetwork
from encnet_single_gpu.predict import main

import cv2
import numpy as np
import pytest
import torch
from encnet_runs import TinyNet, tiny_networks, train, write_data
from PIL import Image
from testkit import run_folder, run_here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Data, and the weights of a short run on it."""
    data = write_data(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("output")
    train(data, output, 4)
    return data, run_folder(output) / "best.safetensors"


def predict(weights, output, *words):
    with tiny_networks():
        return run_here(main, "--weights", weights, "--output", output, "--input", *words)


def test_ids_colours_and_overlay(run, tmp_path):
    data, weights = run
    assert "written: 1 predictions" in predict(weights, tmp_path, data / "0.png")
    assert {path.name for path in tmp_path.iterdir()} == {"0_ids.png", "0_color.png", "0_overlay.jpg"}
    ids = cv2.imread(str(tmp_path / "0_ids.png"), cv2.IMREAD_UNCHANGED)
    assert ids.shape == (72, 80)
    with Image.open(tmp_path / "0_color.png") as color:
        assert color.mode == "P"
        np.testing.assert_array_equal(np.array(color), ids)
        rgb = np.array(color.convert("RGB"))
    np.testing.assert_array_equal(rgb, label_set("ade20k").palette[ids])
    overlay = cv2.imread(str(tmp_path / "0_overlay.jpg"))[..., ::-1].astype(float)
    image = cv2.imread(str(data / "0.png"))[..., ::-1].astype(float)
    assert np.abs(overlay - (image + rgb) / 2).mean() < 12  # JPEG


def test_the_values_of_the_data_sets_own_files(run, tmp_path):
    data, weights = run
    predict(weights, tmp_path / "ids", data / "0.png", data / "1.png")
    predict(weights, tmp_path / "files", data / "0.png", data / "1.png", "--format", "dataset")
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"0.png", "1.png"}
    for name in ("0", "1"):
        ids = cv2.imread(str(tmp_path / "ids" / f"{name}_ids.png"), cv2.IMREAD_UNCHANGED)
        values = cv2.imread(str(tmp_path / "files" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(values, ids + 1)


def weights_of(path, dataset, class_names):
    config = read_config("pspnet", [f"data.dataset={dataset}"])
    torch.manual_seed(0)
    network = TinyNet(len(class_names))
    save_checkpoint(
        path,
        network,
        TrainState(1, 0.5, 1, config_to_text(config), class_names, config.data.mean, config.data.std),
    )
    return path


@pytest.mark.parametrize("dataset", ["cityscapes", "cityscapes_trainids"])
def test_cityscapes_files_are_label_ids_under_the_servers_names(dataset, tmp_path):
    weights = weights_of(tmp_path / "w.safetensors", dataset, label_set("cityscapes").class_names)
    image = tmp_path / "in" / "berlin" / "berlin_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    blocks = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    cv2.imwrite(str(image), blocks.repeat(128, 0).repeat(128, 1))
    predict(weights, tmp_path / "ids", tmp_path / "in")
    predict(weights, tmp_path / "out", tmp_path / "in", "--format", "dataset")
    (written,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written.relative_to(tmp_path / "out").as_posix() == "berlin/berlin_000000_000019_pred_labelIds.png"
    ids = cv2.imread(str(tmp_path / "ids/berlin/berlin_000000_000019_leftImg8bit_ids.png"), cv2.IMREAD_UNCHANGED)
    assert len(np.unique(ids)) > 1
    evaluated = {raw.train_id: raw.id for raw in cityscapes_raw_labels() if raw.train_id < 19}
    expected = np.array([evaluated[i] for i in range(19)])[ids]
    np.testing.assert_array_equal(cv2.imread(str(written), cv2.IMREAD_UNCHANGED), expected)
    cv2.imwrite(str(image), blocks.repeat(8, 0).repeat(8, 1))
    with pytest.raises(UserError, match="leftImg8bit.png: is 64x128, .* needs 1024x2048 pixels"):
        predict(weights, tmp_path / "out", tmp_path / "in", "--format", "dataset")
    with pytest.raises(UserError, match="needs names such as berlin_000000_000019_leftImg8bit.png"):
        predict(weights, tmp_path / "out", image.rename(image.with_name("street.png")), "--format", "dataset")


def test_weights_of_other_classes_than_their_set_write_no_files_of_it(run, tmp_path):
    weights = weights_of(tmp_path / "w.safetensors", "ade20k", label_set("ade20k").class_names[::-1])
    with pytest.raises(UserError, match="of 'ade20k' but have other classes than it: use --format ids"):
        predict(weights, tmp_path / "out", run[0] / "0.png", "--format", "dataset")


def test_a_custom_sets_own_values(run, tmp_path):
    classes = "name: mine\nclasses: [road, kerb, person]\nids: {7: 0, 8: 1, 26: 2, 0: 255}\n"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "classes.yaml").write_text(classes)
    config = read_config("pspnet", ["data.dataset=custom", f"data.root={tmp_path / 'set'}"])
    torch.manual_seed(0)
    state = TrainState(1, 0.5, 1, config_to_text(config), ("road", "kerb", "person"), config.data.mean, config.data.std)
    weights, image = tmp_path / "w.safetensors", run[0] / "0.png"
    save_checkpoint(weights, TinyNet(3), state)
    predict(weights, tmp_path / "ids", image)
    predict(weights, tmp_path / "own", image, "--format", "dataset")
    ids = cv2.imread(str(tmp_path / "ids" / "0_ids.png"), cv2.IMREAD_UNCHANGED)
    assert len(np.unique(ids)) > 1
    written = cv2.imread(str(tmp_path / "own" / "0.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, np.array([7, 8, 26])[ids])

    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"no folder .*set: give the root of the data set by --data DIR"):
        predict(weights, tmp_path / "out", image, "--format", "dataset")
    predict(weights, tmp_path / "again", image, "--format", "dataset", "--data", tmp_path / "moved")
    assert (tmp_path / "again" / "0.png").read_bytes() == (tmp_path / "own" / "0.png").read_bytes()
    with tiny_networks():
        run_here(export_main, "--weights", weights, "--output", tmp_path / "export", "--size", 64, 96)
    onnx = tmp_path / "export" / "model.onnx"
    with pytest.raises(UserError, match="named in an export: give the root of the data set by --data DIR"):
        predict(onnx, tmp_path / "out", image, "--format", "dataset")
    predict(onnx, tmp_path / "onnx", image, "--format", "dataset", "--data", tmp_path / "moved")
    assert (tmp_path / "onnx" / "0.png").read_bytes() == (tmp_path / "own" / "0.png").read_bytes()
    (tmp_path / "moved" / "classes.yaml").write_text(classes.replace("kerb", "curb"))
    with pytest.raises(UserError, match="of 'custom' but have other classes"):
        predict(weights, tmp_path / "out", image, "--format", "dataset", "--data", tmp_path / "moved")


@pytest.mark.parametrize("words", [(), ("--protocol", "encoding_ss"), ("--format", "dataset")])
def test_an_export_predicts_what_its_checkpoint_does(run, tmp_path, words):
    data, weights = run
    with tiny_networks():
        run_here(export_main, "--weights", weights, "--output", tmp_path, "--size", 64, 96)
    predict(tmp_path / "model.onnx", tmp_path / "onnx", data / "0.png", *words)
    predict(weights, tmp_path / "torch", data / "0.png", *words)
    names = sorted(path.name for path in (tmp_path / "torch").iterdir())
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == names
    assert len(names) == (1 if "dataset" in words else 3)
    for name in names:
        assert (tmp_path / "onnx" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes()


def test_exports_that_cannot_be_used(run, tmp_path):
    data, weights = run
    with tiny_networks():
        run_here(export_main, "--weights", weights, "--output", tmp_path, "--size", 64, 96, "--fixed")
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match=r"0.png: 72x80 pixels, but the export takes 64x96 alone"):
        predict(path, tmp_path / "out", data / "0.png")
    info = OnnxNetwork(path).info
    texts = info.to_texts()
    assert ModelInfo.from_texts(texts, "model.onnx") == info
    for changes, message in (
        ({"format": "other"}, "holds no metadata of export.py"),
        ({"crop_size": "{"}, "its metadata is damaged"),
        ({"mean": "[0.5]"}, "'mean' is"),
        ({"channel_order": "BGR"}, "wants BGR"),
    ):
        with pytest.raises(UserError, match=message):
            ModelInfo.from_texts({**texts, **changes}, "model.onnx")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="model.onnx: not an ONNX model that ONNX Runtime can run"):
        predict(path, tmp_path / "out", data / "0.png")


def test_folders_are_mirrored(run, tmp_path):
    data, weights = run
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for place in ("in/a.png", "in/deep/b.png"):
        (tmp_path / place).write_bytes((data / "0.png").read_bytes())
    predict(weights, tmp_path / "out", tmp_path / "in", "--protocol", "encoding_ss")
    assert (tmp_path / "out/a_ids.png").is_file()
    assert (tmp_path / "out/deep/b_ids.png").is_file()


def test_mistakes_are_one_line(run, tmp_path):
    data, weights = run
    (tmp_path / "empty").mkdir()
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((16, 40, 3), np.uint8))
    for words, message in (
        ([tmp_path / "none.png"], "there is no such file"),
        ([tmp_path / "empty"], "no images in it"),
        ([tmp_path / "small.png"], "small.png: 16x40 pixels x 1: each side must be at least 32"),
        ([data / "0.png", data / "0.png"], "would both be written"),
    ):
        with pytest.raises(UserError, match=message) as error:
            predict(weights, tmp_path / "out", *words)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="lies in --input"):
        predict(weights, data / "out", data)
