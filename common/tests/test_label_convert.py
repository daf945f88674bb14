"""Converted labels agree with the tools that made the published ones."""

import json
from pathlib import Path

from common.cli import UserError
from common.create_dataset_list import main
from common.dataset_list import convert_labels, make_lists, read_list
from common.images.read import read_label
from common.labels import PASCAL_CONTEXT_459_IDS, cityscapes_raw_labels, load_custom
from common.lists.convert import colors_to_ids, draw_instances, draw_polygons

import cv2
import numpy as np
import pytest


def write(path: Path, array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.asarray(array, np.uint8))[1].tobytes())
    return path


def polygons(path: Path, seed=0, size=(256, 512), count=60) -> Path:
    """A polygons file with every label of Cityscapes, concave shapes, points outside, groups and deleted objects."""
    rng = np.random.default_rng(seed)
    names = [label.name for label in cityscapes_raw_labels()]
    objects = []
    for number in range(count):
        center, spread = rng.uniform(0, 1, 2) * (size[1], size[0]), rng.uniform(5, 120)
        points = (center + rng.normal(0, spread, (rng.integers(3, 12), 2))).round().astype(int)
        objects.append({"label": names[number % len(names)], "polygon": points.tolist()})
    objects += [{"label": "cargroup", "polygon": [[10, 10], [60, 12], [40, 50]]}]
    objects += [{"label": "sky", "polygon": [[0, 0], [500, 0], [500, 200]], "deleted": 1}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": objects}))
    return path


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_drawn_as_cityscapesscripts_does(tmp_path, seed):
    tool = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    path = polygons(tmp_path / "a_gtFine_polygons.json", seed)
    tool.json2labelImg(str(path), str(tmp_path / "ids.png"), "ids")
    drawn = draw_polygons(path)
    np.testing.assert_array_equal(drawn, read_label(tmp_path / "ids.png"))
    assert len(np.unique(drawn)) > 15


def cityscapes_with(root: Path, source: str) -> tuple[Path, Path]:
    """One image each of train, val, test with only labelIds or only polygons; returns a label's two names."""
    for split, city in (("train", "aachen"), ("val", "lindau"), ("test", "berlin")):
        write(root / f"leftImg8bit/{split}/{city}/{city}_000000_000000_leftImg8bit.png", np.zeros((256, 512, 3)))
        label = root / f"gtFine/{split}/{city}/{city}_000000_000000_gtFine_"
        if source == "polygons":
            polygons(Path(f"{label}polygons.json"), seed=len(split))
        else:
            write(Path(f"{label}labelIds.png"), np.arange(256 * 512).reshape(256, 512) % 34)
    stem = root / "gtFine/train/aachen/aachen_000000_000000_gtFine_"
    return Path(f"{stem}labelIds.png"), Path(f"{stem}labelTrainIds.png")


def test_label_ids_become_train_ids(tmp_path):
    ids, train_ids = cityscapes_with(tmp_path, "labelIds")
    assert main(["cityscapes", str(tmp_path), "--convert"]) == 0
    table = np.full(256, 255)
    for label in cityscapes_raw_labels():
        table[label.id % 256] = label.train_id
    np.testing.assert_array_equal(read_label(train_ids), table[read_label(ids)])
    assert len(read_list(tmp_path / "trainval.txt")) == 2
    assert read_list(tmp_path / "test.txt")[0].label.name == "berlin_000000_000000_gtFine_labelTrainIds.png"


def test_polygons_become_train_ids_and_nothing_is_overwritten(tmp_path):
    tool = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    ids, train_ids = cityscapes_with(tmp_path, "polygons")
    write(tmp_path / "gtFine/val/lindau/lindau_000000_000000_gtFine_labelTrainIds.png", np.full((256, 512), 3))
    assert convert_labels("cityscapes", tmp_path) == 2
    tool.json2labelImg(str(ids).replace("labelIds.png", "polygons.json"), str(tmp_path / "x.png"), "trainIds")
    np.testing.assert_array_equal(read_label(train_ids), read_label(tmp_path / "x.png"))
    assert read_label(tmp_path / "gtFine/val/lindau/lindau_000000_000000_gtFine_labelTrainIds.png").max() == 3
    assert convert_labels("cityscapes", tmp_path) == 0
    assert not ids.exists()
    assert convert_labels("cityscapes", tmp_path, labels="labelIds") == 3
    np.testing.assert_array_equal(read_label(ids), draw_polygons(str(ids).replace("labelIds.png", "polygons.json")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a Cityscapes polygons file"),
        (
            '{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "ufo", "polygon": [[0, 0], [1, 1], [2, 0]]}]}',
            "'ufo'",
        ),
        ('{"imgHeight": 4, "imgWidth": 4, "objects": [{"label": "car", "polygon": [[0, 0]]}]}', "not a Cityscapes"),
        ('{"imgHeight": 99999, "imgWidth": 99999, "objects": []}', "pixels"),
    ],
)
def test_a_crooked_polygons_file_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        draw_polygons(tmp_path / "a.json")
    assert str(error.value).startswith(str(tmp_path / "a.json"))


def test_a_damaged_source_stops_the_conversion_by_name(tmp_path):
    cityscapes_with(tmp_path, "labelIds")
    broken = tmp_path / "gtFine/val/lindau/lindau_000000_000000_gtFine_labelIds.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match=r"lindau_000000_000000_gtFine_labelIds\.png: truncated"):
        make_lists("cityscapes", tmp_path, convert=True)
    assert not list(tmp_path.glob("*.txt"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_pascal_context_mats_become_59_ids(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    detailed = np.array([[0, 2, 9], [458, 459, 1]], np.uint16)  # none, aeroplane, bag; wood, two that are not among 59
    for stem in ("2008_1", "2008_2"):
        write(tmp_path / f"JPEGImages/{stem}.jpg", np.zeros((2, 3, 3)))
        (tmp_path / "GroundTruth_trainval_mat").mkdir(exist_ok=True)
        scipy_io.savemat(tmp_path / f"GroundTruth_trainval_mat/{stem}.mat", {"LabelMap": detailed})
    (tmp_path / "pascal_context_train.txt").write_text("2008_1\n")
    (tmp_path / "pascal_context_val.txt").write_text("2008_2\n")
    with pytest.raises(UserError, match="add --convert"):
        make_lists("pascal_context", tmp_path)
    make_lists("pascal_context", tmp_path, convert=True)
    label = read_label(read_list(tmp_path / "train.txt")[0].label)
    np.testing.assert_array_equal(label, [[0, 1, 2], [PASCAL_CONTEXT_459_IDS.index(458) + 1, 0, 0]])


def test_a_mat_that_is_none_is_named(tmp_path):
    (tmp_path / "GroundTruth_trainval_mat").mkdir()
    (tmp_path / "GroundTruth_trainval_mat/a.mat").write_bytes(b"no mat")
    with pytest.raises(UserError, match=r"a\.mat: not the label \.mat expected"):
        convert_labels("pascal_context", tmp_path)


# -- COCO --------------------------------------------------------------------------------------------------------------


def test_instances_in_all_three_forms_first_one_wins():
    pytest.importorskip("pycocotools")
    box = [[10.0, 10.0, 30.0, 10.0, 30.0, 20.0, 10.0, 20.0]]  # x 10..30, y 10..20
    counts = [0, 40 * 5, 40 * 45]  # column-major: the first five columns
    two_parts = [[40.0, 30.0, 45.0, 30.0, 45.0, 35.0, 40.0, 35.0], [25.0, 12.0, 48.0, 12.0, 48.0, 18.0, 25.0, 18.0]]
    label = draw_instances((40, 50), [(62, box), (1, {"size": [40, 50], "counts": counts}), (18, two_parts)])
    expected = np.zeros((40, 50), np.uint8)
    expected[12:18, 25:48] = expected[30:35, 40:45] = 18
    expected[:, :5] = 1
    expected[10:20, 10:30] = 62
    np.testing.assert_array_equal(label, expected)

    from pycocotools import mask as coco_mask

    compressed = coco_mask.frPyObjects({"size": [40, 50], "counts": counts}, 40, 50)
    text = {"size": [40, 50], "counts": compressed["counts"].decode()}
    np.testing.assert_array_equal(draw_instances((40, 50), [(7, text)]), np.where(expected == 1, 7, 0))


def coco(root: Path) -> Path:
    """Three images: person under a hat-like other category, a tiny person, and nothing."""
    size = (60, 60)
    square = [[5.0, 5.0, 55.0, 5.0, 55.0, 55.0, 5.0, 55.0]]
    tiny = [[5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]]
    annotations = [(1, 27, square), (1, 1, square), (2, 1, tiny)]
    for split in ("train", "val"):
        for number in (1, 2, 3):
            write(root / f"{split}2017/{number:012d}.jpg", np.zeros((*size, 3)))
        content = {
            "images": [{"id": n, "file_name": f"{n:012d}.jpg", "height": 60, "width": 60} for n in (1, 2, 3)],
            "annotations": [{"image_id": i, "category_id": c, "segmentation": s} for i, c, s in annotations],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def test_coco_draws_the_voc_categories_and_leaves_out_small_images(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    assert main(["coco", str(coco(tmp_path))]) == 0
    pairs = read_list(tmp_path / "train.txt")
    assert [pair.image.name for pair in pairs] == ["000000000001.jpg"]
    assert np.unique(read_label(pairs[0].label)).tolist() == [0, 1]  # the backpack in front (27) is not of VOC
    assert "train: 2 images with at most 1000 labelled pixels are left out" in capsys.readouterr().out


def test_coco80_draws_everything_and_keeps_every_image(tmp_path):
    pytest.importorskip("pycocotools")
    make_lists("coco", coco(tmp_path), labels="coco80")
    pairs = read_list(tmp_path / "val.txt")
    assert [np.unique(read_label(pair.label)).tolist() for pair in pairs] == [[0, 27], [0, 1], [0]]
    assert pairs[0].label.parent.name == "segmentation80_val2017"


def test_coco_annotations_that_are_none(tmp_path):
    coco(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match=r"instances_val2017\.json: not COCO instances"):
        make_lists("coco", tmp_path)
    (tmp_path / "annotations/instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"instances_val2017\.json: cannot be read"):
        make_lists("coco", tmp_path)


# -- colour masks ------------------------------------------------------------------------------------------------------

CLASSES = "name: toy\nclasses: [{name: road, color: [128, 64, 128]}, {name: car, color: [0, 0, 142]}]\n"


def test_colour_masks_become_ids_with_a_palette(tmp_path):
    (tmp_path / "classes.yaml").write_text(CLASSES)
    write(tmp_path / "images/train/a.png", np.zeros((1, 4, 3)))
    rgb = np.array([[[128, 64, 128], [0, 0, 142], [0, 0, 0], [255, 255, 255]]])
    write(tmp_path / "labels/train/a.png", rgb[..., ::-1])
    made = make_lists("custom", tmp_path, convert=True)
    label = read_list(made.files["train"])[0].label
    assert label == tmp_path / "labels_ids/train/a.png"
    assert read_label(label).tolist() == [[0, 1, 255, 255]]
    assert main(["check", "custom", str(tmp_path)]) == 0


def test_colour_masks_give_file_values_where_the_classes_have_ids(tmp_path):
    (tmp_path / "classes.yaml").write_text(CLASSES + "ids: {7: 0, 9: 1, 3: 255}\n")
    labels = load_custom(tmp_path / "classes.yaml")
    bgr = np.array([[[128, 64, 128], [142, 0, 0], [0, 0, 0]]], np.uint8)
    assert colors_to_ids(bgr, labels, "a.png").tolist() == [[7, 9, 3]]
    with pytest.raises(UserError, match=r"a\.png: 1 colours are not in the palette of 'toy': #030201"):
        colors_to_ids(np.array([[[1, 2, 3]]], np.uint8), labels, "a.png")


def test_a_data_set_with_nothing_to_convert_says_so(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="'lip' brings its labels"):
        convert_labels("lip", tmp_path)
