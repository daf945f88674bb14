import copy
import sys
from pathlib import Path

from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.images.read import read_image, read_label
from common.labels import label_set
from common.metrics import ConfusionMatrix
from semsegpaddle_glore import predict as predicting
from semsegpaddle_glore.checkpoint import TrainState, build_network, load_network, save_checkpoint
from semsegpaddle_glore.config import read_config
from semsegpaddle_glore.data.transforms import normalize
from semsegpaddle_glore.inference import read_checkpoint_info
from semsegpaddle_glore.predict import Predictor, open_predictor
from semsegpaddle_glore.protocol import EvalProtocol, class_scores

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

CITYSCAPES = label_set("cityscapes")
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def save(path: Path, class_names: tuple[str, ...], *overrides: str) -> str:
    """GloRe with random weights, for images whose long side becomes 192 pixels."""
    words = ["model.name=glore", "model.backbone=resnet18", "eval.long_side=192", *overrides]
    config = read_config("quickstart", [f"data.mean={list(MEAN)}", f"data.std={list(STD)}", *words])
    paddle.seed(3)
    model = build_network(config, class_names)
    model(paddle.randn([2, 3, 96, 96]))  # moves the running statistics
    state = TrainState(7, 0.5, 7, config_to_text(config), class_names)
    save_checkpoint(path, model, state)
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
        path = put(tmp_path / f"{name}.png", np.full((96, 192, 3), color, np.uint8))
        recorder = Recorder()
        Predictor(recorder, read_checkpoint_info(weights)).ids(read_image(path))
        assert recorder.images.shape == (1, 3, 96, 192)
        expected = [(value / 255 - mean) / std for value, mean, std in zip(color, MEAN, STD, strict=True)]
        np.testing.assert_allclose(recorder.images.mean(axis=(0, 2, 3)), expected, rtol=1e-5)
        assert recorder.images.std(axis=(0, 2, 3)).max() < 1e-5


@pytest.mark.parametrize(
    "words, protocol",
    [
        ((), EvalProtocol(192, (1.0,), False, None, 0.6667)),
        (("eval.window=[65, 97]", "eval.flip=true"), EvalProtocol(192, (1.0,), True, (65, 97), 0.6667)),
    ],
)
def test_prediction_is_that_of_evaluation(tmp_path, words, protocol):
    weights = save(tmp_path / "w.safetensors", CITYSCAPES.class_names, *words)
    image = random_image(1)
    (probs,) = class_scores(load_network(weights), normalize(image, MEAN, STD)[None], (120, 150), protocol)
    ids = open_predictor(weights).ids(image)
    assert ids.dtype == np.uint8 and len(np.unique(ids)) > 2
    np.testing.assert_array_equal(ids, probs.argmax(axis=0))


def test_three_readable_results_per_image(weights, tmp_path, monkeypatch):
    inputs, output = tmp_path / "in", tmp_path / "out"
    images = {"a": random_image(1), "sub/b": random_image(2, (131, 97))}
    for name, image in images.items():
        put(inputs / f"{name}.png", image)
    (inputs / "notes.txt").write_text("not an image")

    assert run(monkeypatch, "--weights", weights, "--input", inputs, "--output", output) == 0
    endings = ("_color.png", "_ids.png", "_overlay.jpg")
    written = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert written == {name + ending for name in images for ending in endings}
    predictor = open_predictor(weights)
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
    words = ["--weights", weights, "--format", "cityscapes"]
    assert run(monkeypatch, *words, "--input", tmp_path / "val", "--output", tmp_path / "results") == 0

    written = sorted(path.name for path in (tmp_path / "results").rglob("*.*"))
    assert written == [f"{stem}_pred_labelIds.png" for stem in stems]
    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(tmp_path / "results"), None
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    predictor, confusion = open_predictor(weights), ConfusionMatrix(19)
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
    words = ["--format", "cityscapes", "--output", tmp_path / "out"]
    assert run(monkeypatch, "--weights", weights, *words, "--input", good) == 1
    assert "is 120x150, --format cityscapes needs 1024x2048" in capsys.readouterr().err
    assert run(monkeypatch, "--weights", weights, *words, "--input", street) == 1
    assert f"{street}: --format cityscapes needs names" in capsys.readouterr().err
    others = save(tmp_path / "others.safetensors", ("road", "rest"))
    assert run(monkeypatch, "--weights", others, *words, "--input", good) == 1
    assert "needs weights with the 19 classes of cityscapes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ade_format_holds_the_values_of_the_data_sets_own_labels(weights, tmp_path, monkeypatch, capsys):
    ade = label_set("ade20k")
    given = put(tmp_path / "in" / "sub" / "ADE_test_00000001.jpg", random_image(1))
    words = ["--format", "ade", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    assert run(monkeypatch, "--weights", weights, *words) == 1
    assert "--format ade needs weights with the 150 classes of ade20k; these have 19 (road, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    others = save(tmp_path / "ade.safetensors", ade.class_names)
    assert run(monkeypatch, "--weights", others, *words) == 0
    (written,) = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written.relative_to(tmp_path / "out") == Path("sub/ADE_test_00000001.png")
    ids = open_predictor(others).ids(read_image(given))
    np.testing.assert_array_equal(read_label(written), ids + 1)
    assert len(np.unique(ids)) > 2


def test_a_damaged_image_stops_with_one_line_and_whole_results_before_it(weights, tmp_path, monkeypatch, capsys):
    for name in "abc":
        put(tmp_path / "in" / f"{name}.jpg", random_image(1))
    damaged = tmp_path / "in" / "b.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    output = tmp_path / "out"
    words = ["--weights", weights, "--input", tmp_path / "in", "--output", output]
    assert run(monkeypatch, *words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert lines == [f"error: {damaged}: truncated: the file ends before its image does; copy it again"]
    assert sorted(path.name for path in output.iterdir()) == ["a_color.png", "a_ids.png", "a_overlay.jpg"]


@pytest.mark.parametrize(("words", "status"), [((), 1), (("eval.window=[65, 97]",), 0)])
def test_an_image_too_small_is_named_before_the_work_unless_windows_pad_it(
    tmp_path, monkeypatch, capsys, words, status
):
    weights = save(tmp_path / "w.safetensors", CITYSCAPES.class_names, "eval.long_side=null", *words)
    put(tmp_path / "in" / "a.png", random_image(1, (65, 97)))
    small = put(tmp_path / "in" / "b.png", random_image(1, (31, 200)))
    assert run(monkeypatch, "--weights", weights, "--input", tmp_path / "in", "--output", tmp_path / "out") == status
    assert (f"{small}: 31x200 pixels x 1: each side must be at least 32" in capsys.readouterr().err) == bool(status)
    assert (tmp_path / "out").exists() != bool(status)


def test_weights_that_do_not_fit(tmp_path, weights):
    for name in ("gone.safetensors", "gone.onnx"):
        with pytest.raises(UserError, match=f"no weight file .*{name}"):
            open_predictor(str(tmp_path / name))
    (tmp_path / "half.safetensors").write_bytes(Path(weights).read_bytes()[:1000])
    with pytest.raises(UserError, match="half.safetensors: not a whole safetensors file"):
        open_predictor(str(tmp_path / "half.safetensors"))
