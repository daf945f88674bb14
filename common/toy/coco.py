"""The instances file of the toy data set in COCO's layout."""

from __future__ import annotations

from common.labels import label_set
from common.toy.canvas import Concept, Scene
from common.toy.formats import coco_polygons, coco_run_lengths, fill_holes

import numpy as np

CATEGORIES = {
    Concept.PERSON: "person",
    Concept.RIDER: "person",
    Concept.CAR: "car",
    Concept.TRUCK: "truck",
    Concept.BUS: "bus",
    Concept.MOTORCYCLE: "motorcycle",
    Concept.BICYCLE: "bicycle",
    Concept.TRAFFIC_LIGHT: "traffic light",
    Concept.STOP_SIGN: "stop sign",
    Concept.BENCH: "bench",
    Concept.DOG: "dog",
    Concept.FLOWER_POT: "potted plant",
}
# COCO's categories come in blocks of ids; a block ends with the id given.
_BLOCKS = (
    (1, "person"), (9, "vehicle"), (15, "outdoor"), (25, "animal"), (33, "accessory"), (43, "sports"), (51, "kitchen"),
    (61, "food"), (71, "furniture"), (77, "electronic"), (83, "appliance"), (90, "indoor"),
)  # fmt: skip
SMALLEST = 4  # pixels; what shows less of itself is not annotated


def annotate(image_id: int, scene: Scene, first_id: int) -> list[dict]:
    """Returns the annotations of one image.

    Single objects are polygons with their holes filled, groups (iscrowd = 1) are run lengths, as in COCO. They are
    ordered from far to near: painted in this order they give the visible objects.

    Args:
        image_id: The image's id.
        scene: The image.
        first_id: The id of its first annotation.
    """
    ids = _category_ids()
    rows = []
    for number, thing in enumerate(scene.things, start=1):
        mask = scene.instances == number
        if thing.concept in CATEGORIES and mask.sum() >= SMALLEST:
            row = {"id": first_id + len(rows), "image_id": image_id, "category_id": ids[CATEGORIES[thing.concept]]}
            rows.append(row | _shape(mask, thing.crowd))
    return rows


def instances_file(sizes: dict[int, tuple[int, int]], annotations: list[dict]) -> dict:
    """Returns the content of an instances file.

    Args:
        sizes: Image id -> (height, width).
        annotations: Of all images, from `annotate`.
    """
    images = [
        {"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": height, "width": width, "license": 1}
        for image_id, (height, width) in sizes.items()
    ]
    categories = [
        {"supercategory": _block(number), "id": number, "name": name} for name, number in _category_ids().items()
    ]
    return {
        "info": {"description": "SegRepro toy data set", "version": "1.0", "year": 2017},
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _shape(mask: np.ndarray, crowd: bool) -> dict:
    mask = mask if crowd else fill_holes(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "segmentation": coco_run_lengths(mask) if crowd else coco_polygons(mask),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in box],
        "iscrowd": int(crowd),
    }


def _category_ids() -> dict[str, int]:
    """Returns the 80 category names with their ids 1..90."""
    labels = label_set("coco80")
    return dict(zip(labels.class_names, labels.decode(np.arange(labels.num_classes)).tolist(), strict=True))


def _block(number: int) -> str:
    return next(name for last, name in _BLOCKS if number <= last)
