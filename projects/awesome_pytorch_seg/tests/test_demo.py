import sys

from awesome_pytorch_seg.checkpoint import TrainState, build_network, load_network, save_checkpoint
from awesome_pytorch_seg.config import read_config
from awesome_pytorch_seg.data.transforms import normalize
from awesome_pytorch_seg.demo import FORMATS, main, split_name
from common.cli import UserError
from common.config.typed import config_to_text
from common.labels import cityscapes_raw_labels, label_set, labels_of_format, load_custom

import cv2
import numpy as np
import pytest
import torch
from awesome_runs import train
from PIL import Image
from testkit import run_folder, run_here, write_data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with data, and a run under output/."""
    folder = tmp_path_factory.mktemp("place")
    data = write_data(folder / "data")
    train(data, folder / "output", 12)
    return folder


def expected_ids(weights, source):
    image = cv2.cvtColor(cv2.imread(str(source)), cv2.COLOR_BGR2RGB)
    with torch.no_grad():
        logits = load_network(weights)(torch.from_numpy(normalize(image, MEAN, STD))[None])
    return image, logits.argmax(1)[0].numpy()


def test_by_the_name_of_the_original_it_finds_the_latest_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    printed = run_here(main, "--model", "enet_custom", "--input-pic", "data/0.png", "--outdir", tmp_path)
    weights = run_folder(place / "output") / "best.safetensors"
    assert f"{weights.relative_to(place)}: 1 predictions in {tmp_path}" in printed
    image, ids = expected_ids(weights, place / "data" / "0.png")
    assert len(np.unique(ids)) > 1  # there is something to get wrong
    assert {path.name for path in tmp_path.iterdir()} == {"0_ids.png", "0_color.png", "0_overlay.jpg"}
    assert np.array_equal(cv2.imread(str(tmp_path / "0_ids.png"), cv2.IMREAD_UNCHANGED), ids)
    coloured = Image.open(tmp_path / "0_color.png")
    assert coloured.mode == "P"
    assert np.array_equal(np.array(coloured), ids)
    colors = np.array(coloured.getpalette()).reshape(-1, 3)
    assert np.array_equal(colors[:3], load_custom(place / "data" / "classes.yaml").palette)
    overlay = cv2.cvtColor(cv2.imread(str(tmp_path / "0_overlay.jpg")), cv2.COLOR_BGR2RGB)
    mixed = image / 2 + colors[ids] / 2
    assert np.abs(overlay.mean((0, 1)) - mixed.mean((0, 1))).max() < 3  # JPEG blurs noise, and keeps its mean


def test_the_colours_are_the_checkpoints_own(place, tmp_path, monkeypatch):
    """Whatever lies now where the network was trained."""
    monkeypatch.chdir(place)
    own = load_custom(place / "data" / "classes.yaml").palette
    text = (place / "data" / "classes.yaml").read_text()
    (place / "data" / "classes.yaml").write_text("name: other\nclasses: [{name: sea, color: [0, 0, 200]}, sky]\n")
    try:
        run_here(main, "--model", "enet_custom", "--input-pic", "data/0.png", "--outdir", tmp_path)
    finally:
        (place / "data" / "classes.yaml").write_text(text)
    colors = np.array(Image.open(tmp_path / "0_color.png").getpalette()).reshape(-1, 3)
    assert np.array_equal(colors[: len(own)], own)


def test_folders_are_mirrored(place, tmp_path, monkeypatch):
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (images / name).write_bytes((place / "data" / "1.png").read_bytes())
    weights = run_folder(place / "output") / "last.safetensors"
    run_here(main, "--weights", weights, "--input-pic", images, "--outdir", tmp_path / "out")
    assert (tmp_path / "out" / "a_ids.png").is_file()
    assert (tmp_path / "out" / "deep" / "b_color.png").is_file()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fcn32s_vgg16_voc", ("fcn32s", "vgg16", "voc")),
        ("psp_resnet101_ade", ("psp", "resnet101", "ade")),
        ("dunet_resnet50_pascal_voc", ("dunet", "resnet50", "pascal_voc")),
        ("denseaspp_densenet161_citys", ("denseaspp", "densenet161", "citys")),
        ("ocnet_base_resnet50_citys", ("ocnet_base", "resnet50", "citys")),
        ("fcn8s_vgg16_bn_pascal_aug", ("fcn8s", "vgg16_bn", "pascal_aug")),
        ("enet_camvid", ("enet", None, "camvid")),
    ],
)
def test_names(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["fcn32s", "fcn32s_vgg16", "fcn32s_resnet50_voc", "voc", "unet_vgg16_voc"])
def test_names_that_are_none(name):
    with pytest.raises(UserError, match=f"--model {name}: is no <network>_<backbone>_<data set>"):
        split_name(name)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fcn32s_vgg16_voc'"):
        split_name("fcn32s_vg16_voc")


def weights_of(path, label_set_name):
    """A checkpoint of ENet with random weights and the classes of a label set."""
    labels = label_set(label_set_name)
    config = read_config("smoke", [f"data.dataset={label_set_name}"])
    torch.manual_seed(2)
    model = build_network(config.model, labels.num_classes)
    state = TrainState(1, 0.5, 1, config_to_text(config), labels.class_names, MEAN, STD)
    save_checkpoint(path, model, state)
    return path


@pytest.mark.parametrize(("name", "offset"), [("ade20k", 1), ("ade20k_151", 0)])
def test_for_ades_server_values_are_1_to_150_and_0_for_nothing(name, offset, place, tmp_path):
    weights, image = weights_of(tmp_path / "w.safetensors", name), place / "data" / "0.png"
    run_here(main, "--weights", weights, "--input-pic", image, "--outdir", tmp_path / "out", "--format", "ade")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]
    written = cv2.imread(str(tmp_path / "out" / "0.png"), cv2.IMREAD_UNCHANGED)
    ids = expected_ids(weights, image)[1]
    assert len(np.unique(ids)) > 1
    assert np.array_equal(written, ids + offset)


def test_for_cityscapes_server_labels_are_label_ids_under_its_names(tmp_path):
    weights = weights_of(tmp_path / "w.safetensors", "cityscapes")
    image = tmp_path / "test" / "berlin" / "berlin_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    blocks = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    cv2.imwrite(str(image), blocks.repeat(128, 0).repeat(128, 1))
    words = ("--weights", weights, "--outdir", tmp_path / "out", "--format", "cityscapes", "--input-pic")
    run_here(main, *words, tmp_path / "test")
    (written,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written.relative_to(tmp_path / "out").as_posix() == "berlin/berlin_000000_000019_pred_labelIds.png"
    ids = expected_ids(weights, image)[1]
    assert len(np.unique(ids)) > 1
    evaluated = {raw.train_id: raw.id for raw in cityscapes_raw_labels() if raw.train_id < 19}
    expected = np.array([evaluated[i] for i in range(19)])[ids]
    assert np.array_equal(cv2.imread(str(written), cv2.IMREAD_UNCHANGED), expected)
    cv2.imwrite(str(image), blocks.repeat(8, 0).repeat(8, 1))
    with pytest.raises(UserError, match="leftImg8bit.png: is 64x128, --format cityscapes needs 1024x2048 pixels"):
        run_here(main, *words, tmp_path / "test")
    with pytest.raises(UserError, match="needs names such as berlin_000000_000019_leftImg8bit.png"):
        run_here(main, *words, image.rename(image.with_name("street.png")))


@pytest.mark.parametrize(("name", "count"), [("cityscapes", 19), ("ade", 150)])
def test_networks_of_other_classes_write_no_servers_format(name, count):
    own = label_set(FORMATS[name][0]).class_names
    assert labels_of_format(name, FORMATS[name], own).class_names == own
    for others in (("one", "two", "three"), own[::-1]):
        with pytest.raises(UserError, match=rf"--format {name} needs weights with the {count} classes of") as error:
            labels_of_format(name, FORMATS[name], others)
        assert "\n" not in str(error.value)


def test_mistakes_are_one_line(place, tmp_path, monkeypatch):
    weights = run_folder(place / "output") / "last.safetensors"
    words = ("--weights", weights, "--input-pic")
    with pytest.raises(UserError, match=r"--input-pic .*gone\.jpg: there is no such file or folder"):
        run_here(main, *words, tmp_path / "gone.jpg", "--outdir", tmp_path / "out")
    with pytest.raises(UserError, match="--outdir .* lies in --input-pic .*: results would be taken for images"):
        run_here(main, *words, place / "data", "--outdir", place / "data" / "out")
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.zeros((24, 80, 3), np.uint8))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--weights", str(weights), "--input-pic", str(small)])
    with pytest.raises(UserError, match="small.png: 24x80 pixels x 1: each side must be at least 32"):
        main()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no trained run under output of --model fcn32s --backbone vgg16 --dataset voc"):
        run_here(main, "--model", "fcn32s_vgg16_voc", "--input-pic", small)
