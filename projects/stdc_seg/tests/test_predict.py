import copy
import sys
from pathlib import Path

from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.images.read import read_image, read_label
from common.labels import label_set
from common.metrics import ConfusionMatrix
from stdc_seg import predict as predicting
from stdc_seg.checkpoint import TrainState, save_checkpoint
from stdc_seg.config import read_config
from stdc_seg.data.transforms import normalize
from stdc_seg.inference import load_network, read_checkpoint_info
from stdc_seg.models import build_model
from stdc_seg.predict import Predictor, open_predictor
from stdc_seg.protocol import EvalProtocol, class_scores

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

CITYSCAPES = label_set("cityscapes")
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def save(path: Path, class_names: tuple[str, ...]) -> str:
    paddle.seed(3)
    model = build_model("stdc1", num_classes=len(class_names))
    model(paddle.randn([2, 3, 96, 96]))  # moves the running statistics
    config = config_to_text(read_config("quickstart", ["model.name=stdc1"]))
    save_checkpoint(path, model, TrainState(7, 0.5, 7, config, class_names, MEAN, STD))
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("weights") / "best.safetensors", CITYSCAPES.class_names)


def random_image(seed: int, size: tuple[int, int] = (120, 150)) -> np.ndarray:
    """Coloured blocks with noise, RGB."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    blocks = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.add(blocks, rng.integers(0, 40, blocks.shape).astype(np.uint8))


def put(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return path


def run(monkeypatch, *words) -> int:
    """The command's exit status."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        run_command(predicting.main)
    return end.value.code


class Recorder:
    """A network that keeps what it is fed."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.images = images
        return np.zeros((1, 19, *images.shape[2:]), np.float32)


def test_red_and_blue_reach_the_network_as_documented(weights, tmp_path):
    """Channel 0 is red, 0..255 becomes 0..1, then the checkpoint's own mean and std."""
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        path = put(tmp_path / f"{name}.png", np.full((80, 90, 3), color, np.uint8))
        recorder = Recorder()
        Predictor(recorder, read_checkpoint_info(weights), 1.0).ids(read_image(path))
        assert recorder.images.shape == (1, 3, 80, 90)
        expected = [(value / 255 - mean) / std for value, mean, std in zip(color, MEAN, STD, strict=True)]
        np.testing.assert_allclose(recorder.images.mean(axis=(0, 2, 3)), expected, rtol=1e-5)
        assert recorder.images.std(axis=(0, 2, 3)).max() < 1e-5


@pytest.mark.parametrize("scale, size", [(None, (60, 75)), (0.75, (90, 112)), (1.5, (180, 225))])
def test_prediction_is_that_of_evaluation(weights, scale, size):
    image = random_image(1)
    model = load_network(weights)
    normalized = paddle.to_tensor(normalize(image, MEAN, STD)).unsqueeze(0)
    with paddle.no_grad():
        scores = class_scores(model, normalized, (120, 150), EvalProtocol(scale or 0.5, (1.0,), False))
    expected = scores.argmax(axis=1)[0].numpy()
    ids = open_predictor(weights, "paddle", scale).ids(image)
    assert ids.dtype == np.uint8 and len(np.unique(ids)) > 2
    np.testing.assert_array_equal(ids, expected)

    recorder = Recorder()
    Predictor(recorder, read_checkpoint_info(weights), scale).ids(image)
    assert recorder.images.shape[2:] == size


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_an_input_scale_without_sense_is_refused(weights, scale):
    with pytest.raises(UserError, match=r"input_scale must be in \(0, 4\]"):
        Predictor(Recorder(), read_checkpoint_info(weights), scale)


def test_three_readable_results_per_image(weights, tmp_path, monkeypatch):
    inputs, output = tmp_path / "in", tmp_path / "out"
    images = {"a": random_image(1), "sub/b": random_image(2, (131, 97))}
    for name, image in images.items():
        put(inputs / f"{name}.png", image)
    (inputs / "notes.txt").write_text("not an image")

    assert run(monkeypatch, "--weights", weights, "--runtime", "paddle", "--input", inputs, "--output", output) == 0
    endings = ("_color.png", "_ids.png", "_overlay.jpg")
    written = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert written == {name + ending for name in images for ending in endings}
    predictor = open_predictor(weights, "paddle")
    for name, image in images.items():
        expected = predictor.ids(image)
        np.testing.assert_array_equal(read_label(output / f"{name}_ids.png"), expected)
        color = Image.open(output / f"{name}_color.png")
        assert color.mode == "P"
        np.testing.assert_array_equal(np.asarray(color), expected)
        colors = CITYSCAPES.palette[expected]
        np.testing.assert_array_equal(np.asarray(color.convert("RGB")), colors)
        overlay = read_image(output / f"{name}_overlay.jpg")
        assert overlay.shape == image.shape
        mixed = (image.astype(float) + colors) / 2
        assert np.abs(overlay - mixed).mean() < 8  # JPEG


def test_cityscapes_scripts_score_our_files_as_we_do(weights, tmp_path, monkeypatch):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    stems = ["aachen_000000_000019", "ulm_000001_000020"]
    images = [random_image(seed, (1024, 2048)) for seed in (4, 5)]
    for stem, image in zip(stems, images, strict=True):
        put(tmp_path / "val" / stem.split("_")[0] / f"{stem}_leftImg8bit.png", image)
    words = ["--weights", weights, "--runtime", "paddle", "--input-scale", "0.125", "--format", "cityscapes"]
    assert run(monkeypatch, *words, "--input", tmp_path / "val", "--output", tmp_path / "results") == 0

    written = sorted(path.name for path in (tmp_path / "results").rglob("*.*"))
    assert written == [f"{stem}_pred_labelIds.png" for stem in stems]
    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(tmp_path / "results"), None
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    predictor, confusion = open_predictor(weights, "paddle", 0.125), ConfusionMatrix(19)
    rng, labels, found = np.random.default_rng(6), [], []
    for stem, image in zip(stems, images, strict=True):
        ids = predictor.ids(image)
        # The truth: partly what was predicted, partly blocks of any labelId, void ones too.
        blocks = rng.integers(0, 34, (8, 16)).astype(np.uint8)
        blocks = cv2.resize(blocks, (2048, 1024), interpolation=cv2.INTER_NEAREST)
        raw = np.where(rng.random((1024, 2048)) < 0.6, CITYSCAPES.decode(ids), blocks)
        confusion.update(CITYSCAPES.encode(raw), ids)
        labels.append(str(tmp_path / f"{stem}_gtFine_labelIds.png"))
        cv2.imwrite(labels[-1], raw)
        found.append(official.getPrediction(args, labels[-1]))
        values = np.unique(read_label(found[-1]))
        assert len(values) > 2 and (CITYSCAPES.id_to_train[values] < 19).all()
    result = official.evaluateImgLists(found, labels, args)
    assert 0.005 < confusion.mean_iou() < 0.9
    assert confusion.mean_iou() == pytest.approx(result["averageScoreClasses"], abs=1e-4)


def test_cityscapes_format_refuses_other_images_and_classes(weights, tmp_path, monkeypatch, capsys):
    good = put(tmp_path / "ulm_000001_000020_leftImg8bit.png", random_image(1))
    street = put(tmp_path / "street.png", random_image(1))
    words = ["--runtime", "paddle", "--format", "cityscapes", "--output", tmp_path / "out"]
    assert run(monkeypatch, "--weights", weights, *words, "--input", good) == 1
    assert "is 120x150, --format cityscapes needs 1024x2048" in capsys.readouterr().err
    assert run(monkeypatch, "--weights", weights, *words, "--input", street) == 1
    assert f"{street}: --format cityscapes needs names" in capsys.readouterr().err
    others = save(tmp_path / "others.safetensors", ("road", "rest"))
    assert run(monkeypatch, "--weights", others, *words, "--input", good) == 1
    assert "needs weights with the 19 classes of cityscapes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_stops_with_one_line_and_whole_results_before_it(weights, tmp_path, monkeypatch, capsys):
    for name in "abc":
        put(tmp_path / "in" / f"{name}.jpg", random_image(1))
    damaged = tmp_path / "in" / "b.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    output = tmp_path / "out"
    words = ["--weights", weights, "--runtime", "paddle", "--input", tmp_path / "in", "--output", output]
    assert run(monkeypatch, *words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert lines == [f"error: {damaged}: truncated: the file ends before its image does; copy it again"]
    assert sorted(path.name for path in output.iterdir()) == ["a_color.png", "a_ids.png", "a_overlay.jpg"]


def test_weights_and_runtime_that_do_not_fit(weights, tmp_path):
    with pytest.raises(UserError, match="no weight file .*gone.safetensors"):
        open_predictor(str(tmp_path / "gone.safetensors"))
    with pytest.raises(UserError, match="--runtime paddle needs the checkpoint"):
        open_predictor(str(tmp_path / "model.onnx"), "paddle")


def test_an_image_too_small_is_named_before_the_work(weights, tmp_path, monkeypatch, capsys):
    put(tmp_path / "in" / "a.png", random_image(1))
    small = put(tmp_path / "in" / "b.png", random_image(1, (40, 200)))
    words = ["--weights", weights, "--runtime", "paddle", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    assert run(monkeypatch, *words) == 1
    assert f"{small}: 40x200 pixels x 0.5: each side must be at least 32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, *words, "--input-scale", "0.8") == 0  # 32 pixels
