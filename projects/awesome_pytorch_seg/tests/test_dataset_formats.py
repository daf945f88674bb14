"""Each data set in its own file formats: drawn, listed and loaded under the name that `--dataset` takes.

The expected train ids are worked out here from each data set's own conventions, with other readers than the loader's.
"""

from pathlib import Path

from awesome_pytorch_seg.data.names import DATASETS, dataset_name
from common.cli import UserError
from common.dataset_list import make_lists
from common.labels import label_set, load_custom
from common.samples.list_dataset import ListDataset
from common.toy_dataset import write_toy_dataset

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label
from PIL import Image
from scipy.io import loadmat

SIZE = (96, 128)
# COCO categories of the classes of VOC, by VOC's ids (the list of the original's mscoco.py).
COCO_OF_VOC = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
NUM_CLASSES = {
    "pascal_voc": 21,
    "pascal_aug": 21,
    "ade20k": 150,
    "citys": 19,
    "coco": 21,
    "sbu": 2,
    "lip": 20,
    "camvid": 11,
    "custom": 6,
}
PRESENT = {
    "pascal_voc": {"background", "car"},
    "pascal_aug": {"background", "car"},
    "ade20k": {"road", "sky", "building", "car"},
    "citys": {"road", "sky", "building", "car"},
    "coco": {"background", "car"},
    "sbu": {"background", "shadow"},
    "lip": {"background", "hair", "face", "pants"},
    "camvid": {"road", "sky", "building", "car"},
    "custom": {"ground", "sky", "building", "vehicle"},
}


def table(pairs: dict[int, int]) -> np.ndarray:
    """File value -> train id; 254 for values that must not occur."""
    result = np.full(256, 254)
    result[list(pairs)] = list(pairs.values())
    return result


VOC_TABLE = table({**{k: k for k in range(21)}, 255: 255})
TABLES = {
    "pascal_voc": VOC_TABLE,
    "pascal_aug": VOC_TABLE,
    "ade20k": table({0: 255, **{k: k - 1 for k in range(1, 151)}}),
    "citys": table({**{k: k for k in range(19)}, 255: 255}),  # the list names labelTrainIds
    "coco": table({**dict.fromkeys(range(91), 0), **{cat: voc for voc, cat in enumerate(COCO_OF_VOC)}}),
    "sbu": table({0: 0, 255: 1}),
    "lip": table({k: k for k in range(20)}),
    "camvid": table({**{k: k for k in range(11)}, 11: 255}),
    "custom": table({**{k: k for k in range(6)}, 255: 255}),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Every data set, drawn and listed."""
    base = tmp_path_factory.mktemp("sets")
    for dataset in DATASETS:
        write_toy_dataset(dataset.layout, base / dataset.name, 6, 2, SIZE)
        make_lists(dataset.layout, base / dataset.name)
    return base


def labels_of(name: str, root: Path):
    dataset = dataset_name(name)
    return label_set(dataset.label_set) if dataset.label_set else load_custom(root / "classes.yaml")


@pytest.mark.parametrize("name", list(NUM_CLASSES))
def test_every_pair_is_loaded_as_its_format_says(roots, name):
    dataset, root = dataset_name(name), roots / name
    labels = labels_of(name, root)
    assert labels.num_classes == NUM_CLASSES[name]
    present = set()
    for list_name, count in ((dataset.train_list, 6), (dataset.val_list, 2)):
        loaded = ListDataset(labels, root, list_name)
        assert 0 < len(loaded) <= count
        assert len(loaded) == count or name == "coco"  # COCO leaves out images with hardly any object
        for index, (image_path, label_path) in enumerate(loaded.pairs):
            sample = loaded.load(index)
            assert (sample.image.shape, sample.image.dtype) == ((*SIZE, 3), np.uint8)
            assert (sample.label.shape, sample.label.dtype) == (SIZE, np.uint8)
            image = np.array(Image.open(image_path).convert("RGB")).astype(int)
            tolerance = 0 if image_path.suffix == ".png" else 4  # JPEG decoders round differently
            assert np.abs(image - sample.image).max() <= tolerance
            np.testing.assert_array_equal(sample.label, TABLES[name][np.array(Image.open(label_path))])
            present |= set(np.unique(sample.label).tolist())
    assert 254 not in present
    assert PRESENT[name] <= {labels.class_names[train_id] for train_id in present - {255}}
    assert (255 in present) == (name not in ("coco", "sbu", "lip"))


def test_images_and_labels_are_partners(roots):
    for dataset in DATASETS:
        root = roots / dataset.name
        for image, label in ListDataset(labels_of(dataset.name, root), root, dataset.train_list).pairs:
            stem = image.stem.removesuffix("_leftImg8bit")
            assert label.stem.removesuffix("_gtFine_labelTrainIds") == stem


def test_sbd_labels_are_those_of_its_mat_files(roots):
    root = roots / "pascal_aug"
    dataset = ListDataset(label_set("voc"), root, "train_aug.txt")
    mats = root / "SBD/benchmark_RELEASE/dataset/cls"
    of_sbd = [index for index, pair in enumerate(dataset.pairs) if pair.label.parent.name == "SegmentationClassAug"]
    assert len(of_sbd) == 4  # images 0 and 4 of 6 are of VOC's train
    for index in of_sbd:
        content = loadmat(mats / f"{dataset.pairs[index].label.stem}.mat")
        expected = content["GTcls"]["Segmentation"][0, 0]
        np.testing.assert_array_equal(dataset.load(index).label, expected)
    val = {pair.image.stem for pair in ListDataset(label_set("voc"), root, "val.txt").pairs}
    assert val.isdisjoint(pair.image.stem for pair in dataset.pairs)


def test_cityscapes_label_ids_give_the_same_train_ids(roots, tmp_path):
    root = roots / "citys"
    make_lists("cityscapes", root, output=tmp_path, labels="labelIds")
    by_ids = ListDataset(label_set("cityscapes"), root, tmp_path / "train.txt")
    by_train_ids = ListDataset(label_set("cityscapes"), root, "train.txt")
    official = table({identity % 256: label.trainId % 256 for identity, label in id2label.items()})
    for index, pair in enumerate(by_ids.pairs):
        assert pair.label.name.endswith("labelIds.png")
        expected = official[np.array(Image.open(pair.label))]
        np.testing.assert_array_equal(by_ids.load(index).label, expected)
        np.testing.assert_array_equal(by_train_ids.load(index).label, expected)


def test_a_custom_list_file_with_ids_of_ones_own(tmp_path):
    raw = np.array([[10, 10, 20], [30, 31, 0]], np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(raw).save(tmp_path / "my label, 1.png")
    Image.fromarray(np.zeros((*raw.shape, 3), np.uint8)).save(tmp_path / "my image (1).png")
    (tmp_path / "classes.yaml").write_text(
        "name: mine\nclasses: [road, kerb, person]\nids: {10: 0, 20: 1, 30: 2, 31: 2, 0: 255}\n"
    )
    (tmp_path / "mine.txt").write_text("my image (1).png\tmy label, 1.png\r\n")
    loaded = ListDataset(load_custom(tmp_path / "classes.yaml"), tmp_path, "mine.txt")
    assert loaded.labels.class_names == ("road", "kerb", "person")
    expected = np.array([[0, 0, 1], [2, 2, 255]]).repeat(16, 0).repeat(16, 1)
    np.testing.assert_array_equal(loaded.load(0).label, expected)


def test_names_and_aliases():
    original = {
        "pascal_voc": ("voc", "voc", "train.txt", "val.txt"),
        "pascal_aug": ("voc_aug", "voc", "train_aug.txt", "val.txt"),
        "ade20k": ("ade20k", "ade20k", "train.txt", "val.txt"),
        "citys": ("cityscapes", "cityscapes", "train.txt", "val.txt"),
        "coco": ("coco", "coco", "train.txt", "val.txt"),
        "sbu": ("sbu", "sbu", "train.txt", "test.txt"),
        "lip": ("lip", "lip", "train.txt", "val.txt"),
    }
    for name, facts in original.items():
        found = dataset_name(name)
        assert (found.layout, found.label_set, found.train_list, found.val_list) == facts
    spellings = [spelling for dataset in DATASETS for spelling in (dataset.name, *dataset.aliases)]
    assert len(set(spellings)) == len(spellings)
    assert dataset_name("cityscapes") is dataset_name("citys")
    assert dataset_name("sbu_shadow").name == "sbu"
    with pytest.raises(UserError, match="unknown data set 'citis': did you mean 'citys'"):
        dataset_name("citis")
