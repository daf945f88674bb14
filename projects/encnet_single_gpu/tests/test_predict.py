from common.cli import UserError
from common.labels import label_set
from encnet_single_gpu.predict import main

import cv2
import numpy as np
import pytest
from encnet_runs import run_folder, run_here, tiny_networks, train, write_data
from PIL import Image


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
    picture = cv2.imread(str(data / "0.png"))[..., ::-1].astype(float)
    assert np.abs(overlay - (picture + rgb) / 2).mean() < 12  # JPEG


def test_the_values_of_the_data_sets_own_files(run, tmp_path):
    data, weights = run
    predict(weights, tmp_path / "ids", data / "0.png", data / "1.png")
    predict(weights, tmp_path / "files", data / "0.png", data / "1.png", "--format", "dataset")
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"0.png", "1.png"}
    for name in ("0", "1"):
        ids = cv2.imread(str(tmp_path / "ids" / f"{name}_ids.png"), cv2.IMREAD_UNCHANGED)
        values = cv2.imread(str(tmp_path / "files" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(values, ids + 1)


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
        ([tmp_path / "empty"], "no pictures in it"),
        ([tmp_path / "small.png"], "small.png: 16x40 pixels: each side must have at least 32"),
        ([data / "0.png", data / "0.png"], "would both be written"),
    ):
        with pytest.raises(UserError, match=message) as error:
            predict(weights, tmp_path / "out", *words)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="lies in --input"):
        predict(weights, data / "out", data)
