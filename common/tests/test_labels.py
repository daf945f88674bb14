"""Label tables against the data sets' own definitions, and the errors of custom ones."""

from __future__ import annotations

from common.cli import UserError
from common.labels import (
    INVALID,
    PASCAL_CONTEXT_459_IDS,
    cityscapes_raw_labels,
    label_set,
    load_custom,
    names,
    pascal_context_459_to_59,
    voc_colormap,
)

import numpy as np
import pytest

CLASS_COUNTS = {
    "cityscapes": 19,
    "cityscapes_trainids": 19,
    "pascal_context": 59,
    "pascal_context60": 60,
    "ade20k": 150,
    "ade20k_151": 151,
    "voc": 21,
    "coco": 21,
    "coco80": 80,
    "coco81": 81,
    "lip": 20,
    "sbu": 2,
    "camvid": 11,
}


def _raw(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


def _write(tmp_path, text: str):
    path = tmp_path / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_lists_every_set():
    assert sorted(names()) == sorted(CLASS_COUNTS)


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_every_set_is_whole(name):
    labels = label_set(name)
    assert labels is label_set(name)
    assert labels.name == name
    assert labels.num_classes == len(labels.class_names) == CLASS_COUNTS[name]
    assert len(set(labels.class_names)) == labels.num_classes
    assert labels.palette.shape == (labels.num_classes, 3) and labels.palette.dtype == np.uint8
    # ADE20K's own palette gives road and skyscraper one colour.
    assert len(np.unique(labels.palette, axis=0)) == labels.num_classes - name.startswith("ade20k")
    assert labels.id_to_train.shape == (256,) and labels.id_to_train.dtype == np.uint8
    trains = set(labels.id_to_train.tolist()) - {INVALID, 255}
    assert trains == set(range(labels.num_classes))
    for array in (labels.palette, labels.id_to_train, labels.train_to_id):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_train_id_to_file_value_and_back_is_identity(name):
    labels = label_set(name)
    trains = np.arange(labels.num_classes, dtype=np.int64).reshape(1, -1)
    raw = labels.decode(trains)
    assert raw.dtype == np.uint8 and raw.shape == trains.shape
    np.testing.assert_array_equal(labels.encode(raw), trains)
    if name not in ("cityscapes", "coco"):  # there, several file values share a train id
        known = np.flatnonzero(labels.id_to_train < INVALID).astype(np.uint8)
        np.testing.assert_array_equal(labels.decode(labels.encode(known)), known)


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_values_that_cannot_occur_are_named(name):
    labels = label_set(name)
    good = labels.decode(np.zeros((1, 1), np.uint8))[0, 0]
    with pytest.raises(UserError, match=rf"^street.png: not label values of '{name}': 200, 254; it has [0-9., ]+$"):
        labels.encode(_raw(good, 254, 200, 200), "street.png")
    with pytest.raises(UserError, match=r"-5, 256, 70000; it has"):
        labels.encode(np.array([[good, -5, 256, 70000]], np.int32))
    with pytest.raises(UserError, match=rf"not train ids of '{name}': {labels.num_classes}, 254;"):
        labels.decode(_raw(0, labels.num_classes, 254))


def test_cityscapes_is_the_official_table():
    from cityscapesscripts.helpers.labels import labels as official

    raw = cityscapes_raw_labels()
    assert len(raw) == 35
    assert [(one.name, one.id, one.color) for one in raw] == [(one.name, one.id, one.color) for one in official]
    assert [one.train_id for one in raw] == [255 if one.trainId in (-1, 255) else one.trainId for one in official]

    labels = label_set("cityscapes")
    ids = np.array([[one.id for one in official]])
    expected = [[255 if one.ignoreInEval else one.trainId for one in official]]
    assert labels.encode(ids).tolist() == expected  # the licence plate as -1 ...
    assert labels.encode((ids % 256).astype(np.uint8)).tolist() == expected  # ... and as a file holds it
    for one in official:
        if not one.ignoreInEval:
            assert labels.class_names[one.trainId] == one.name
            assert tuple(labels.palette[one.trainId]) == one.color
            assert labels.decode(_raw(one.trainId)).tolist() == [[one.id]]


def test_cityscapes_examples():
    labels = label_set("cityscapes")
    assert labels.encode(_raw(0, 7, 11, 24, 26, 33, 255)).tolist() == [[255, 0, 2, 11, 13, 18, 255]]
    assert labels.decode(_raw(0, 18, 255)).tolist() == [[7, 33, 0]]  # ignored becomes "unlabeled"


def test_cityscapes_map_is_applied_to_no_other_set(tmp_path):
    table = label_set("cityscapes").id_to_train
    for name in names():
        if name != "cityscapes":
            assert not np.array_equal(label_set(name).id_to_train, table)
    train_ids = _raw(*range(19), 255)
    np.testing.assert_array_equal(label_set("cityscapes_trainids").encode(train_ids), train_ids)
    custom = load_custom(_write(tmp_path, "name: cityscapes\nclasses: [road, car, sky]"))
    assert custom.encode(_raw(0, 1, 2, 255)).tolist() == [[0, 1, 2, 255]]
    assert custom.id_to_train[7] == INVALID


def test_ade20k():
    labels = label_set("ade20k")
    assert labels.encode(_raw(0, 1, 150, 255)).tolist() == [[255, 0, 149, 255]]
    assert labels.decode(_raw(255, 0, 149)).tolist() == [[0, 1, 150]]
    assert [labels.class_names[k] for k in (0, 2, 12, 149)] == ["wall", "sky", "person", "flag"]
    assert labels.palette[[0, 2, 12, 149]].tolist() == [[120, 120, 120], [6, 230, 230], [150, 5, 61], [92, 0, 255]]
    with pytest.raises(UserError, match="151, 254; it has 0..150, 255"):
        labels.encode(_raw(151, 254))
    background = label_set("ade20k_151")
    assert background.encode(_raw(0, 1, 150, 255)).tolist() == [[0, 1, 150, 255]]
    assert background.class_names[:2] == ("background", "wall")
    assert background.palette[:2].tolist() == [[0, 0, 0], [120, 120, 120]]


@pytest.mark.parametrize(("name", "count"), [("ade20k", 150), ("pascal_context", 59)])
def test_one_based_files(name, count):
    every = np.arange(count + 1)
    assert label_set(name).encode(every).tolist() == [255, *range(count)]
    with_background = {"ade20k": "ade20k_151", "pascal_context": "pascal_context60"}[name]
    assert label_set(with_background).encode(every).tolist() == every.tolist()


def test_voc_palette_is_the_bit_pattern():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    expected += [[128, 128, 128], [64, 0, 0], [192, 0, 0]]
    labels = label_set("voc")
    assert labels.palette[:10].tolist() == expected
    assert labels.palette[20].tolist() == [0, 64, 128]
    assert voc_colormap()[255].tolist() == [224, 224, 192]
    assert len(np.unique(voc_colormap(), axis=0)) == 256
    assert labels.encode(_raw(0, 15, 20, 255)).tolist() == [[0, 15, 20, 255]]
    assert (labels.class_names[15], labels.class_names[20]) == ("person", "tvmonitor")


def test_voc_and_coco_names_are_torchvisions():
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Detection
    from torchvision.models.segmentation import FCN_ResNet50_Weights as Segmentation

    voc = list(Segmentation.COCO_WITH_VOC_LABELS_V1.meta["categories"])
    voc[0] = "background"
    assert list(label_set("voc").class_names) == list(label_set("coco").class_names) == voc

    by_id = Detection.COCO_V1.meta["categories"]  # the index is the category id, unused ids are "N/A"
    ids = [index for index, name in enumerate(by_id) if name not in ("N/A", "__background__")]
    assert list(label_set("coco80").class_names) == [by_id[index] for index in ids]
    assert label_set("coco80").encode(_raw(0, *ids, 255)).tolist() == [[255, *range(80), 255]]
    assert label_set("coco81").encode(_raw(0, *ids, 255)).tolist() == [[0, *range(1, 81), 255]]
    # The 21-class subset: the same object under COCO's id and VOC's name.
    same = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}
    coco = label_set("coco")
    for index in ids:
        name = same.get(by_id[index], by_id[index]).replace(" ", "")
        assert coco.class_names[coco.id_to_train[index]] == (name if name in coco.class_names else "background")
    order = [0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
    assert coco.decode(np.arange(21)).tolist() == order
    with pytest.raises(UserError, match="12, 91;"):
        coco.encode(_raw(12, 91))


def test_pascal_context():
    labels = label_set("pascal_context")
    assert labels.encode(_raw(0, 1, 59, 255)).tolist() == [[255, 0, 58, 255]]
    assert labels.decode(_raw(255, 0, 58)).tolist() == [[0, 1, 59]]
    assert [labels.class_names[k] for k in (0, 36, 57, 58)] == ["aeroplane", "person", "window", "wood"]
    background = label_set("pascal_context60")
    assert background.encode(_raw(0, 1, 59, 255)).tolist() == [[0, 1, 59, 255]]
    assert background.class_names == ("background", *labels.class_names)


def test_pascal_context_detailed_ids():
    # The detailed names are numbered alphabetically, so the ids of alphabetical classes must rise.
    class_names = label_set("pascal_context").class_names
    assert list(class_names) == sorted(class_names)
    assert list(PASCAL_CONTEXT_459_IDS) == sorted(set(PASCAL_CONTEXT_459_IDS))
    assert len(PASCAL_CONTEXT_459_IDS) == 59
    table = pascal_context_459_to_59()
    # Single entries of the release's labels.txt.
    known = {2: "aeroplane", 9: "bag", 19: "bedclothes", 65: "cat", 113: "dog", 207: "horse", 284: "person"}
    known |= {308: "pottedplant", 360: "sky", 427: "tvmonitor", 440: "wall", 458: "wood"}
    for detailed, name in known.items():
        assert class_names[table[detailed]] == name
    assert table.shape == (460,)
    assert table[[0, 1, 431, 459]].tolist() == [255] * 4  # none, accordion, unknown, wool
    assert (table != 255).sum() == 59
    label_map = np.array([[0, 2, 458, 459]])
    assert label_set("pascal_context").decode(table[label_map]).tolist() == [[0, 1, 59, 0]]


def test_lip_sbu_and_camvid():
    lip = label_set("lip")
    assert (lip.class_names[0], lip.class_names[13], lip.class_names[19]) == ("background", "face", "right-shoe")
    assert lip.encode(_raw(0, 19, 255)).tolist() == [[0, 19, 255]]
    sbu = label_set("sbu")
    assert sbu.encode(_raw(0, 255)).tolist() == [[0, 1]]
    assert sbu.decode(_raw(0, 1)).tolist() == [[0, 255]]
    with pytest.raises(UserError, match="not train ids of 'sbu': 255; it has 0..1"):
        sbu.decode(_raw(255))
    with pytest.raises(UserError, match="-1; it has 0, 255"):  # 255 is not "ignored" here, so -1 is not either
        sbu.encode(np.array([[-1]]))
    camvid = label_set("camvid")
    assert camvid.encode(_raw(0, 10, 11)).tolist() == [[0, 10, 255]]
    assert camvid.decode(_raw(0, 10, 255)).tolist() == [[0, 10, 11]]
    assert camvid.class_names[3] == "road" and camvid.palette[3].tolist() == [128, 64, 128]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4), (24,), (1, 24)])
def test_encode_takes_any_shape_and_width_and_changes_nothing(dtype, shape):
    raw = np.tile(np.array([7, 8, 11, 0, 33, 26], dtype), 4).reshape(shape)
    raw.flags.writeable = False
    train = label_set("cityscapes").encode(raw)
    expected = np.tile([0, 1, 2, 255, 18, 13], 4).reshape(shape)
    assert train.dtype == np.uint8
    np.testing.assert_array_equal(train, expected)
    np.testing.assert_array_equal(label_set("cityscapes").encode(raw[..., ::-2]), expected[..., ::-2])


def test_encode_edge_cases():
    labels = label_set("cityscapes")
    assert labels.encode(np.array([[-1, 7]], np.int8)).tolist() == [[255, 0]]
    assert labels.encode(np.empty((0, 5), np.uint8)).shape == (0, 5)
    with pytest.raises(UserError, match="integers are needed, not float32"):
        labels.encode(np.zeros((2, 2), np.float32))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="unknown label set 'cityscape': did you mean 'cityscapes'"):
        label_set("cityscape")


def test_custom_with_everything(tmp_path):
    text = """
        name: my_streets
        classes: [road, {name: person, color: [220, 20, 60]}, kerb]
        ignore: 99
        ids: {10: 0, 20: 1, 21: 1, 30: 2, 0: 255}
    """
    labels = load_custom(_write(tmp_path, text))
    assert labels.name == "my_streets"
    assert labels.class_names == ("road", "person", "kerb")
    assert labels.palette.tolist() == [[128, 0, 0], [220, 20, 60], [128, 128, 0]]  # VOC colours 1 and 3
    assert labels.encode(_raw(10, 20, 21, 30, 0, 99, 255)).tolist() == [[0, 1, 1, 2, 255, 255, 255]]
    assert labels.decode(_raw(0, 1, 2, 255)).tolist() == [[10, 20, 30, 0]]
    with pytest.raises(UserError, match="1, 11; it has 0, 10, 20..21, 30, 99, 255"):
        labels.encode(_raw(1, 11))


def test_custom_with_names_alone_and_a_background(tmp_path):
    labels = load_custom(_write(tmp_path, "name: two\nclasses: [Background, cat]"))
    assert labels.palette.tolist() == [[0, 0, 0], [128, 0, 0]]
    assert labels.encode(_raw(0, 1, 255)).tolist() == [[0, 1, 255]]
    assert labels.id_to_train[2] == INVALID


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nclasses: [car, road, car]", r"classes\[2\]: the name 'car' is already that of classes\[0\]"),
        ("classes: [car]", "the key 'name' is missing"),
        ("name: a", "the key 'classes' is missing"),
        ("name: a\nclasses: [car]\nignored: 3", "unknown key 'ignored': did you mean 'ignore'"),
        ("name: a\nclasses: car", "classes must be a list of 2 to 253 classes, not str 'car'"),
        ("name: a\nclasses: []", "classes must be a list of 2 to 253 classes, not 0 of them"),
        ("name: 7\nclasses: [car]", "name must be text, not int 7"),
        ("name:\nclasses: [car]", "name must be text, not nothing"),
        ("name: a\nclasses: [car, no]", r"classes\[1\]: name must be text, not bool False; put it in quotes"),
        ("name: a\nclasses: [{color: [0, 0, 0]}]", r"classes\[0\]: name must be text, not nothing"),
        (
            "name: a\nclasses: [{name: car, colour: [0, 0, 0]}]",
            r"classes\[0\]: unknown key 'colour': did you mean 'color'",
        ),
        ("name: a\nclasses: [{name: car, color: red}]", r"classes\[0\].color: .*0..255 is needed, not 'red'"),
        ("name: a\nclasses: [{name: car, color: [0, 0, 256]}]", r"classes\[0\].color: .* not \[0, 0, 256\]"),
        ("name: a\nclasses: [car]\nignore: none", "ignore must be a whole number 0..255, not 'none'"),
        ("name: a\nclasses: [car, bus]\nignore: 1", "ignore: 1 already stands for 'bus'; see ids"),
        ("name: a\nclasses: [car]\nids: [0]", "ids must be a mapping of file value to train id, not list"),
        ("name: a\nclasses: [car]\nids: {x: 0}", "ids: a file value must be a whole number 0..255, not 'x'"),
        ("name: a\nclasses: [car]\nids: {5: 1}", r"ids\[5\] needs a train id 0..0 or 255 \(ignored\), not 1"),
        ("name: a\nclasses: [car, bus]\nids: {5: 0}", r"ids: no file value stands for 'bus' \(train id 1\)"),
        ("- car\n- bus", "a mapping with the keys name and classes is needed, not list"),
        ("", "a mapping with the keys name and classes is needed, not nothing"),
        ("name: [a\nclasses: {", "not valid YAML"),
    ],
)
def test_custom_mistakes_name_file_and_key_in_one_line(tmp_path, text, message):
    path = _write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_custom(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_custom_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: cannot be read"):
        load_custom(tmp_path / "nowhere.yaml")


def test_one_class_alone_is_refused_with_the_way_to_go(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("name: cracks\nclasses: [crack]\nids: {0: 255, 1: 0}\n")
    with pytest.raises(UserError, match=r"classes\.yaml: one class alone .* classes: \[background, crack\]"):
        load_custom(path)
