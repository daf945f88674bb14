"""paddleseg's data sets as a config names them: found, checked, with labels as train ids."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.cli import UserError
from common.files import sha256_of
from common.images.read import read_image, read_label, read_size
from common.labels import IGNORE, LabelSet, label_set, load_custom
from common.lists.list_file import Pair, read_list
from common.samples.list_dataset import require_sides
from common.samples.roots import REPOSITORY, find_root
from common.toy_dataset import STANDARD, draw_toy
from paddleseg_benchmark.zoo import zoo
from paddleseg_benchmark.zoo.zoo import ZooConfig

import cv2
import numpy as np
import paddle
from paddleseg.cvlibs import SegBuilder

TOY = STANDARD["toy_cityscapes_128x256"]
TOY_ROOT, TOY_SIZE = "data/toy_cityscapes_128x256", TOY.size
CITYSCAPES_FOLDERS = ("leftImg8bit", "gtFine")


def with_data(config: ZooConfig, root: str | None) -> ZooConfig:
    """The config with `root` as its data, or as it is; with toy data where Cityscapes is not there.

    Raises:
        UserError: There is no folder `root`, or none where the config of a data set other than Cityscapes says.
    """
    if root is not None and find_root(root) is None:
        raise UserError(f"no data set in '{root}': name its folder with --data, or leave it out")
    wanted, kind = root or config.train_dataset_cfg["dataset_root"], config.train_dataset_cfg["type"]
    toy = find_root(wanted) is None
    if toy and kind != "Cityscapes":
        raise UserError(
            f"{config.source}: 'train_dataset.dataset_root': no folder '{wanted}': correct it, or use --data"
        )
    config = as_cityscapes(config) if toy else copy.deepcopy(config)
    if root or toy:
        for name in ("train_dataset", "val_dataset"):
            config.dic[name]["dataset_root"] = TOY_ROOT if toy else root
    return config


def as_cityscapes(config: ZooConfig) -> ZooConfig:
    """The config with data in Cityscapes' layout, whatever layout it has."""
    config = copy.deepcopy(config)
    for name in ("train_dataset", "val_dataset"):
        kept = {key: config.dic[name][key] for key in ("dataset_root", "mode", "transforms")}
        config.dic[name] = {"type": "Cityscapes"} | kept
    return config


def is_toy(config: ZooConfig) -> bool:
    """Whether the config trains on toy data."""
    return config.train_dataset_cfg["dataset_root"] == TOY_ROOT


def crop_size(config: ZooConfig) -> tuple[int, int]:
    """(height, width) of the training crops. Configs of PaddleSeg have [width, height].

    Raises:
        UserError: No transform of the config crops.
    """
    width, height = _crop(config)["crop_size"]
    return height, width


def with_crop_size(config: ZooConfig, size: tuple[int, int]) -> ZooConfig:
    """The config with training crops of (height, width)."""
    config = copy.deepcopy(config)
    _crop(config)["crop_size"] = [size[1], size[0]]
    return config


def open_dataset(config: ZooConfig, split: str) -> paddle.io.Dataset:
    """The data set of paddleseg for "train", "val" or "test", with its transforms; toy data is drawn when missing.

    Its attributes `class_names` and `provenance` are added, and a list is read as those of the other projects are.

    Raises:
        UserError: It cannot be opened, has images without labels, or another number of classes than its classes.yaml.
    """
    section = copy.deepcopy(config.dic["train_dataset" if split == "train" else "val_dataset"])
    mode = "test" if split == "test" else section["mode"].lower()  # test is evaluated as val is
    if split == "test" and section["type"] == "Cityscapes":
        section["mode"] = "test"  # the folder that paddleseg looks into
    elif split == "test" and "val_path" in section:
        section["val_path"] = str(Path(section["val_path"]).with_name("test.txt"))
    where = f"{config.source}: '{split}_dataset'"
    root = find_root(section["dataset_root"])
    if is_toy(config):
        root = REPOSITORY / TOY_ROOT
        draw_toy(TOY.layout, root, TOY.num_train, TOY.num_val, TOY.size)  # one process draws, the others wait
    if root is None:
        raise UserError(f"{where}: no folder '{section['dataset_root']}': correct dataset_root")
    pairs, list_path, in_its_place = None, None, {}
    if section["type"] == "Dataset":
        list_path = _list_path(section, root, where)
        pairs, in_its_place = _listed(list_path, root), {f"{section['mode'].lower()}_path": os.devnull}
    elif section["type"] == "CamVid":
        list_path = root / f"{mode}.txt"
        pairs = _listed(list_path, root)
    try:
        dataset = SegBuilder(config).build_component(section | {"dataset_root": str(root)} | in_its_place)
    except RuntimeError as error:
        if section["type"] == "Cityscapes" and not all((root / name).is_dir() for name in CITYSCAPES_FOLDERS):
            raise UserError(
                f"{root}: no folders {' and '.join(CITYSCAPES_FOLDERS)} in it, as Cityscapes has ({split}): give its "
                f"folder; for other layouts, python common/create_dataset_list.py --help writes the lists"
            ) from None
        raise UserError(f"{where}: {section['type']} in {root}: {zoo.reason_of(error)}: correct it") from error
    dataset.file_list = pairs or dataset.file_list
    if section["type"] == "Cityscapes":
        _require_pairs(dataset, root, split)
        dataset.mode = "train" if split == "train" else "val"
    dataset.provenance = _provenance(dataset, root, list_path)
    labels = _labels(dataset, section["type"], root)
    dataset.class_names = labels.class_names if labels else tuple(map(str, range(dataset.num_classes)))
    dataset.transforms = _ReadWhole(dataset.transforms, dataset.num_classes, labels)
    return dataset


def _list_path(section: dict, root: Path, where: str) -> Path:
    """The list file of a `Dataset`: as given from the working directory, the repository or the data set's folder."""
    key = f"{section['mode'].lower()}_path"
    if section.get(key) is None:
        raise UserError(f"{where}: key '{key}' is missing: give the list file of mode {section['mode']}")
    places = (Path(section[key]), REPOSITORY / section[key], root / section[key])
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"{where}: no list '{section[key]}' of the images in {root}: correct {key}, or write it with "
            f"python common/create_dataset_list.py custom {root}"
        )
    return path


def _listed(path: Path, root: Path) -> list[list[str]]:
    """The pairs of a list, read by `common.lists.list_file`; its `separator` is found by the lines themselves."""
    pairs = read_list(path, root)
    if without := [pair.image for pair in pairs if pair.label is None]:
        raise UserError(f"{path}: no label for {without[0]}: use a list with labels")
    return [[str(pair.image), str(pair.label)] for pair in pairs]


def _provenance(dataset: paddle.io.Dataset, root: Path, list_path: Path | None) -> dict[str, Any]:
    """Number of pairs and SHA-256 of the list; where paddleseg finds the pairs itself, of their names as a list."""
    if list_path is not None:
        return {"entries": len(dataset), "sha256": sha256_of(list_path)}
    lines = [",".join(os.path.relpath(name, root) for name in pair) + "\n" for pair in dataset.file_list]
    return {"entries": len(dataset), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


class LabelledPairs:
    """The pairs of a data set of `open_dataset`, as `common.samples.survey` looks at them.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: paddle.io.Dataset):
        self.pairs = [Pair(Path(image), Path(label)) for image, label in dataset.file_list]
        self.labels = SimpleNamespace(class_names=dataset.class_names, num_classes=dataset.num_classes)
        self._train_ids = dataset.transforms.train_ids

    def __len__(self) -> int:
        return len(self.pairs)

    def label(self, index: int) -> np.ndarray:
        """Train ids uint8 (H, W) of pair number `index`."""
        return self._train_ids(str(self.pairs[index].label))


def require_readable(dataset: paddle.io.Dataset) -> None:
    """Looks at the headers of all images and labels, so that a bad one is found before a training and not in it.

    Raises:
        UserError: One cannot be read, is of another size than its partner, or has a side that no network takes.
    """
    for image, label in dataset.file_list:
        size = read_size(image)
        if read_size(label) != size:
            raise UserError(f"{label}: label is {read_size(label)}, image {size}: they must be of the same size")
        require_sides(image, size, 1)


def _require_pairs(dataset: paddle.io.Dataset, root: Path, split: str) -> None:
    """Checks what paddleseg does not: it pairs all images and all labels in their order, whatever their names."""
    images = sorted(root.glob(f"leftImg8bit/{dataset.mode}/[!.]*/[!.]*_leftImg8bit.png"))
    labelled = {Path(label).name.rsplit("_", 2)[0] for _, label in dataset.file_list}
    without = [path for path in images if path.name.rsplit("_", 1)[0] not in labelled]
    if without or not images or len(labelled) != len(images):
        what = (
            f"{without[0]} has no *_labelTrainIds.png" if without else f"no images with *_labelTrainIds.png in {root}"
        )
        raise UserError(
            f"{what} ({split}): write these files with python common/create_dataset_list.py cityscapes {root} --convert"
        )


def _labels(dataset: paddle.io.Dataset, kind: str, root: Path) -> LabelSet | None:
    """The meaning of the values in label files: by the data set's own type, else by its classes.yaml."""
    count, path = dataset.num_classes, root / "classes.yaml"
    if kind in ("Cityscapes", "CamVid"):
        return label_set({"Cityscapes": "cityscapes_trainids", "CamVid": "camvid"}[kind])
    if path.is_file():
        labels = load_custom(path)
        if labels.num_classes != count:
            raise UserError(
                f"{path}: has {labels.num_classes} classes, the config's num_classes is {count}: correct one"
            )
        return labels
    is_cityscapes = count == 19 and all((root / name).is_dir() for name in CITYSCAPES_FOLDERS)
    return label_set("cityscapes_trainids") if is_cityscapes else None


class _ReadWhole:
    """The transforms of a paddleseg data set, given images and labels that were read whole and checked.

    paddleseg takes half an image for a whole one and any value for a class.

    Args:
        compose: The transforms.
        num_classes: Of the data set.
        labels: What the label files hold; None for train ids.
    """

    def __init__(self, compose: Callable[[dict], dict], num_classes: int, labels: LabelSet | None):
        self._compose, self._labels = compose, labels
        self._is_class = np.isin(np.arange(256), [*range(num_classes), IGNORE]).astype(np.uint8)
        compose.to_rgb = False  # it is RGB already

    def __call__(self, data: dict) -> dict:
        """Transforms {"img": file, "label": file, ...}; labels that the data set has read itself are left alone."""
        image, label = read_image(data["img"]), data.get("label")
        if isinstance(label, str):
            data["label"] = self.train_ids(label, image.shape[:2])
        data["img"] = image.astype(np.float32)
        return self._compose(data)

    def train_ids(self, path: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """The train ids uint8 (H, W) of a label file, whose image has the size (height, width) if that is given."""
        ids = read_label(path)
        if ids.ndim != 2 or (size is not None and ids.shape != size):
            raise UserError(f"{path}: {ids.shape}, its image {size or ids.shape[:2]}: one channel of ids is needed")
        if self._labels is not None:
            return self._labels.encode(ids, path)
        if ids.dtype != np.uint8 or not cv2.LUT(ids, self._is_class).all():
            count = int(self._is_class.sum()) - 1
            raise UserError(f"{path}: holds values that are not classes: 0..{count - 1} and {IGNORE} are: convert it")
        return ids


def _crop(config: ZooConfig) -> dict:
    for transform in config.train_dataset_cfg["transforms"]:
        if "crop_size" in transform:
            return transform
    raise UserError("train_dataset.transforms: none has a crop_size (RandomPaddingCrop): add one")
