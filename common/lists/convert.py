"""Writing the label PNGs that a data set does not bring.

Train ids from Cityscapes' labelIds or polygons, VOC ids from SBD's .mat files, PASCAL-Context ids from its .mat files,
category ids from COCO's annotations, ids from colour masks. A label that is already there is left as it is; each file
is written atomically.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import UserError
from common.files import atomic_write
from common.images.read import MAX_PIXELS, read_label
from common.labels import (
    LabelSet,
    cityscapes_raw_labels,
    label_set,
    load_custom,
    pascal_context_459_to_59,
)
from common.lists.layouts import (
    AUG_LABELS,
    CUSTOM_ID_LABELS,
    cityscapes_images,
    cityscapes_label,
    coco_labels,
    folder_of,
    label_kind,
    list_files,
    refuse_second,
    sbd_folder,
    sbd_stems,
    voc_folder,
)
from common.machine.parallel import parallel_map

import cv2
import numpy as np

COCO_FEWEST_PIXELS = 1000
"""An image with at most so many labelled pixels of VOC's classes gets no label, as in the PyTorch original."""


class Task(NamedTuple):
    """One label to write: `make(source, detail)` gives its values for the file `target`."""

    make: Callable[[Any, Any], np.ndarray | None]
    source: Any
    detail: Any
    target: Path


def converts_always(dataset: str) -> bool:
    """Whether a data set has no label PNGs of its own, so that the list command writes them unasked."""
    return dataset in ("voc_aug", "coco")


def convert_labels(
    dataset: str,
    root: str | os.PathLike | None = None,
    labels: str | None = None,
    classes: str | os.PathLike | None = None,
) -> int:
    """Writes the missing label PNGs of a data set.

    Args:
        dataset: cityscapes, pascal_context, voc_aug, coco or custom (colour masks).
        root: The data set's folder, as in `find_pairs`.
        labels: The kind of labels, as in `find_pairs`.
        classes: For custom: the label set YAML whose colours the masks have.

    Returns:
        The number of files written.

    Raises:
        UserError: A data set with nothing to convert, or a source that cannot be read, naming it.
    """
    planners = {
        "cityscapes": _plan_cityscapes,
        "pascal_context": _plan_pascal_context,
        "voc_aug": _plan_voc_aug,
        "coco": _plan_coco,
    }
    kind, folder = label_kind(dataset, labels), folder_of(dataset, root)
    if dataset == "custom":
        tasks = _plan_custom(folder, classes)
    elif dataset in planners:
        tasks = planners[dataset](folder, kind)
    else:
        raise UserError(f"--convert: '{dataset}' brings its labels as they are needed; leave it out")
    tasks = [task for task in tasks if not task.target.exists()]
    return sum(parallel_map(_write, tasks, "converting labels"))


def draw_polygons(path: str | os.PathLike) -> np.ndarray:
    """Draws a Cityscapes polygons file as cityscapesScripts does: in order, later objects over earlier ones.

    Returns:
        (height, width) uint8 labelIds; 0 where nothing is drawn. Licence plates (id -1) are not drawn.

    Raises:
        UserError: Not a polygons file, or a label that Cityscapes does not have.
    """
    from PIL import Image, ImageDraw  # Pillow's edge pixels are those of the published labels, OpenCV's are not

    ids = {label.name: label.id for label in cityscapes_raw_labels()}
    content = read_json(path)
    try:
        size = int(content["imgHeight"]), int(content["imgWidth"])
        objects = [(item["label"], item["polygon"]) for item in content["objects"] if not item.get("deleted")]
        if not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise UserError(f"{path}: {size[0]}x{size[1]} pixels; 1 to {MAX_PIXELS} are drawn")
        canvas = Image.new("L", (size[1], size[0]), 0)
        pen = ImageDraw.Draw(canvas)
        for name, polygon in objects:
            if name not in ids:
                name = name.removesuffix("group")
            if name not in ids:
                raise UserError(f"{path}: unknown label '{name}'; convert Cityscapes' own polygon files")
            if ids[name] >= 0:
                pen.polygon([(point[0], point[1]) for point in polygon], fill=ids[name])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a Cityscapes polygons file ({type(error).__name__}: {error})") from error
    return np.array(canvas)


def read_json(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON file; UserError naming the file where that is not possible."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); unpack the data set again") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); copy it again") from error


def draw_instances(size: tuple[int, int], annotations: Sequence[tuple[int, Any]]) -> np.ndarray:
    """Draws COCO instances; where two overlap the first in the file wins, as in the PyTorch original.

    Args:
        size: (height, width).
        annotations: (category id, segmentation) each: polygons, or RLE with counts as a list or as text.

    Returns:
        (height, width) uint8 category ids, 0 where there is no instance.
    """
    from pycocotools import mask as coco_mask

    height, width = size
    label = np.zeros(size, np.uint8)
    for category, segmentation in annotations:
        if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
            runs = segmentation  # compressed already
        elif isinstance(segmentation, dict):
            runs = coco_mask.frPyObjects(segmentation, height, width)
        else:
            runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        instance = coco_mask.decode(runs)  # (height, width) 0 or 1
        label[(label == 0) & (instance == 1)] = category
    return label


def colors_to_ids(mask: np.ndarray, labels: LabelSet, path: str | os.PathLike) -> np.ndarray:
    """Turns a colour mask into the file values of a label set, by exact colour.

    Args:
        mask: (height, width, 3) or (..., 4) uint8 in BGR, as OpenCV reads it; a grey one holds the values already.
        labels: Its palette gives the colours; black and white are ignored where no class has them.
        path: The name for errors.

    Raises:
        UserError: A colour that the palette does not have.
    """
    if mask.ndim == 2:
        return mask
    codes = mask[..., :3].astype(np.int32) @ np.array([1, 256, 65536])  # BGR -> 0xRRGGBB
    known = {0x000000: labels.ignore_index, 0xFFFFFF: labels.ignore_index}
    colors = labels.palette.astype(int) @ np.array([65536, 256, 1])
    known |= {code: train_id for train_id, code in enumerate(colors.tolist())}
    present, inverse = np.unique(codes, return_inverse=True)
    unknown = [f"#{code:06x}" for code in present.tolist() if code not in known]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} colours are not in the palette of '{labels.name}': {', '.join(unknown[:5])}; add "
            "them to the classes file (many odd colours: the mask was resized or saved as JPEG)"
        )
    train_ids = np.array([known[code] for code in present.tolist()], np.uint8)
    return labels.decode(train_ids)[inverse].reshape(codes.shape)


def _write(task: Task) -> bool:
    """Makes and writes one label; False where there is none to write."""
    label = task.make(task.source, task.detail)
    if label is None:
        return False
    _, png = cv2.imencode(".png", label)
    with atomic_write(task.target, "wb") as stream:
        stream.write(png.tobytes())
    return True


def _plan_cityscapes(root: Path, kind: str) -> list[Task]:
    images = [image for split in ("train", "val", "test", "train_extra") for image in cityscapes_images(root, split)]
    tasks = []
    for image in images:
        target, ids, polygons = (cityscapes_label(image, which) for which in (kind, "labelIds", "polygons"))
        if target.exists():
            continue
        if kind == "trainIds" and ids.is_file():
            tasks.append(Task(_train_ids_of_label_ids, ids, None, target))
        elif polygons.is_file():
            make = _train_ids_of_polygons if kind == "trainIds" else _label_ids_of_polygons
            tasks.append(Task(make, polygons, None, target))
    return tasks


def _train_ids_of_label_ids(path: Path, _: None) -> np.ndarray:
    return label_set("cityscapes").encode(read_label(path), path)


def _label_ids_of_polygons(path: Path, _: None) -> np.ndarray:
    return draw_polygons(path)


def _train_ids_of_polygons(path: Path, _: None) -> np.ndarray:
    return label_set("cityscapes").encode(draw_polygons(path), path)


def _plan_pascal_context(root: Path, _: str) -> list[Task]:
    mats = list_files(root / "GroundTruth_trainval_mat", suffixes=(".mat",))
    folder = root / "GroundTruth_trainval_png"
    return [Task(_pascal_context_of_mat, mat, None, folder / f"{mat.stem}.png") for mat in mats]


def _pascal_context_of_mat(path: Path, _: None) -> np.ndarray:
    detailed = _read_mat(path, lambda content: content["LabelMap"])
    table = pascal_context_459_to_59()
    if detailed.min() < 0 or detailed.max() >= len(table):
        raise UserError(f"{path}: ids {detailed.min()}..{detailed.max()}, PASCAL-Context has 0..{len(table) - 1}")
    return label_set("pascal_context").decode(table[detailed])


def _plan_voc_aug(root: Path, _: str) -> list[Task]:
    sbd = sbd_folder(root)
    if sbd is None:
        return []
    folder = voc_folder(root, "voc_aug") / AUG_LABELS
    return [Task(_voc_of_mat, sbd / "cls" / f"{stem}.mat", None, folder / f"{stem}.png") for stem in sbd_stems(sbd)]


def _voc_of_mat(path: Path, _: None) -> np.ndarray:
    label = _read_mat(path, lambda content: content["GTcls"]["Segmentation"][0, 0])
    label_set("voc").encode(label, path)  # refuses what is not a VOC id
    return label.astype(np.uint8)


def _read_mat(path: Path, pick: Callable[[dict], np.ndarray]) -> np.ndarray:
    from scipy.io import loadmat

    try:
        return np.asarray(pick(loadmat(path)))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; unpack the data set again") from None
    except Exception as error:  # scipy raises many kinds for damaged files (zlib, struct, its own)
        raise UserError(f"{path}: not the label .mat expected ({type(error).__name__}); copy it again") from error


def _plan_coco(root: Path, kind: str) -> list[Task]:
    table = label_set(kind).id_to_train
    # "coco": only VOC's categories are drawn, so that others do not hide them; "coco80": all.
    drawn = {category for category in range(1, 91) if table[category] < label_set(kind).num_classes}
    if kind == "coco":
        drawn = {category for category in drawn if table[category] > 0}
    tasks = []
    for split in ("train", "val"):
        if not (root / f"{split}2017").is_dir():
            continue
        path = root / "annotations" / f"instances_{split}2017.json"
        try:
            images, instances = _read_coco(read_json(path), drawn)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not COCO instances ({type(error).__name__}: {error}); copy it again") from error
        folder, fewest = coco_labels(root, split, kind), COCO_FEWEST_PIXELS if kind == "coco" else -1
        folder.mkdir(exist_ok=True)
        for number, (name, size) in images.items():
            source = (size, instances[number], f"{path}, image {name}")
            tasks.append(Task(_category_ids, source, fewest, folder / f"{Path(name).stem}.png"))
    return tasks


def _read_coco(content: dict, drawn: set[int]) -> tuple[dict[int, tuple[str, tuple[int, int]]], dict[int, list]]:
    """Returns image id -> (file name, size) and image id -> the (category, segmentation) of its drawn instances."""
    images = {item["id"]: (item["file_name"], (item["height"], item["width"])) for item in content["images"]}
    instances = defaultdict(list)
    for item in content["annotations"]:
        if item["category_id"] in drawn:
            instances[item["image_id"]].append((item["category_id"], item["segmentation"]))
    return images, instances


def _category_ids(source: tuple, fewest: int) -> np.ndarray | None:
    size, annotations, name = source
    try:
        label = draw_instances(size, annotations)
    except Exception as error:  # pycocotools raises bare exceptions for crooked segmentations
        raise UserError(f"{name}: its segmentation cannot be drawn ({type(error).__name__}: {error})") from error
    return label if np.count_nonzero(label) > fewest else None


def _plan_custom(root: Path, classes: str | os.PathLike | None) -> list[Task]:
    classes = classes or root / "classes.yaml"
    labels = load_custom(classes)
    files = list_files(root / "labels", "**/*")
    targets = [(root / CUSTOM_ID_LABELS / path.relative_to(root / "labels")).with_suffix(".png") for path in files]
    first: dict[Path, Path] = {}
    for path, target in zip(files, targets, strict=True):
        refuse_second(first.setdefault(target, path), path)
    return [Task(_ids_of_colors, path, labels, target) for path, target in zip(files, targets, strict=True)]


def _ids_of_colors(path: Path, labels: LabelSet) -> np.ndarray:
    return colors_to_ids(read_label(path), labels, path)
