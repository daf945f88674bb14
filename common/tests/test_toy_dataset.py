"""The toy data set: deterministic, in the true file formats, and something to learn from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from common import toy_dataset
from common.cli import UserError
from common.files import sha256_of
from common.labels import cityscapes_raw_labels, label_set, load_custom, pascal_context_459_to_59, voc_colormap
from common.toy.canvas import Concept, Thing
from common.toy.closeups import draw_person, draw_shadows
from common.toy.coco import CATEGORIES
from common.toy.formats import coco_polygons, coco_run_lengths, layered_regions
from common.toy.layouts import CITYSCAPES, LIP, Plan
from common.toy.scenes import draw_street
from common.toy_dataset import layouts, write_toy_dataset

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.io import loadmat

SIZE = (64, 128)
COUNTS = {"num_train": 4, "num_val": 2, "size": SIZE}
LAYOUTS = [
    *("cityscapes", "pascal_context", "ade20k", "voc", "voc_aug"),
    *("coco", "lip", "sbu", "camvid", "custom"),
]


def digests(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in sorted(root.rglob("*")) if path.is_file()}


def read(path: Path) -> np.ndarray:
    """Reads a label by another library than the one that wrote it; palette files give indices."""
    return np.array(Image.open(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("toy")
    return {name: write_toy_dataset(name, base / name, **COUNTS) for name in LAYOUTS}


@pytest.fixture(scope="module")
def scenes() -> list:
    plan = Plan(Path("unused"), 0, 0, (128, 256), 0)
    return [plan.draw("val", index) for index in range(20)]


def test_layouts_are_the_documented_ones():
    assert layouts() == LAYOUTS


def test_same_seed_same_bytes_in_this_and_in_another_process(written, tmp_path):
    script = (
        "import sys; from pathlib import Path; from common.toy_dataset import write_toy_dataset\n"
        f"for name in {LAYOUTS!r}: write_toy_dataset(name, Path(sys.argv[1]) / name, **{COUNTS!r})"
    )
    repository = Path(toy_dataset.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script, tmp_path / "other"], check=True, cwd=repository)
    for name, root in written.items():
        here = digests(root)
        assert digests(tmp_path / "other" / name) == here
        shutil.rmtree(tmp_path / "other" / name)
    again = write_toy_dataset("coco", tmp_path / "again", **COUNTS)
    assert digests(again) == digests(written["coco"])


@pytest.mark.parametrize("name", ["cityscapes", "lip", "sbu"])
def test_another_seed_gives_other_images(written, tmp_path, name):
    other = digests(write_toy_dataset(name, tmp_path / name, **{**COUNTS, "num_train": 2}, seed=1))
    images = [file for file in other if file.endswith((".jpg", ".png")) and ("eftImg8bit" in file or ".jpg" in file)]
    assert len(images) >= 4
    here = digests(written[name])
    assert all(other[file] != here[file] for file in images)


def test_an_image_does_not_depend_on_how_many_there_are(written, tmp_path):
    few = digests(write_toy_dataset("cityscapes", tmp_path / "few", num_train=3, num_val=1, size=SIZE))
    here = digests(written["cityscapes"])
    images = [file for file in few if file.startswith(("leftImg8bit", "gt"))]
    assert len(images) == (3 + 1 + 1 + 1) * 5
    assert all(few[file] == here[file] for file in images)


# --- structure -------------------------------------------------------------------------------------------------------


def expected_files(name: str) -> set[str]:
    """The names of all files of 4 + 2 images, spelled out from each data set's own conventions."""
    numbers = {"train": range(1, 5), "val": range(1, 3)}
    files = {"toy_dataset.json"}
    if name == "cityscapes":
        stems = [f"train/{('ashford', 'birkenau')[i % 2]}/{('ashford', 'birkenau')[i % 2]}_{i:06d}" for i in range(4)]
        stems += [f"val/cedarton/cedarton_{i:06d}" for i in range(2)]
        stems += ["test/dunfield/dunfield_000000", "train_extra/elmstadt/elmstadt_000000"]
        for stem in stems:
            kind = "gtCoarse" if stem.startswith("train_extra") else "gtFine"
            files.add(f"leftImg8bit/{stem}_000019_leftImg8bit.png")
            ends = ("labelIds.png", "labelTrainIds.png", "color.png", "polygons.json")
            files |= {f"{kind}/{stem}_000019_{kind}_{end}" for end in ends}
    elif name == "ade20k":
        for split, folder in (("train", "training"), ("val", "validation")):
            for i in numbers[split]:
                files.add(f"ADEChallengeData2016/images/{folder}/ADE_{split}_{i:08d}.jpg")
                files.add(f"ADEChallengeData2016/annotations/{folder}/ADE_{split}_{i:08d}.png")
    elif name == "pascal_context":
        files |= {"pascal_context_train.txt", "pascal_context_val.txt"}
        for stem in [f"2008_{i:06d}" for i in numbers["train"]] + [f"2010_{i:06d}" for i in numbers["val"]]:
            files |= {f"JPEGImages/{stem}.jpg", f"GroundTruth_trainval_png/{stem}.png"}
            files.add(f"GroundTruth_trainval_mat/{stem}.mat")
    elif name == "voc":
        files |= {f"VOCdevkit/VOC2012/ImageSets/Segmentation/{s}.txt" for s in ("train", "val", "trainval")}
        for stem in [f"2008_{i:06d}" for i in numbers["train"]] + [f"2010_{i:06d}" for i in numbers["val"]]:
            files.add(f"VOCdevkit/VOC2012/JPEGImages/{stem}.jpg")
            files.add(f"VOCdevkit/VOC2012/SegmentationClass/{stem}.png")
    elif name == "coco":
        files |= {f"annotations/instances_{split}2017.json" for split in numbers}
        files |= {f"train2017/{i:012d}.jpg" for i in numbers["train"]}
        files |= {f"val2017/{500_000 + i:012d}.jpg" for i in numbers["val"]}
    elif name == "lip":
        files |= {"train_id.txt", "val_id.txt"}
        for split, first in (("train", 100_000), ("val", 200_000)):
            for i in numbers[split]:
                files.add(f"TrainVal_images/{split}_images/{first + i - 1}_{i:06d}.jpg")
                files.add(f"TrainVal_parsing_annotations/{split}_segmentations/{first + i - 1}_{i:06d}.png")
    elif name == "sbu":
        for split, folder in (("train", "SBUTrain4KRecoveredSmall"), ("val", "SBU-Test")):
            files |= {f"{folder}/ShadowImages/lssd{i}.jpg" for i in numbers[split]}
            files |= {f"{folder}/ShadowMasks/lssd{i}.png" for i in numbers[split]}
    elif name == "camvid":
        for split, count in (("train", 4), ("val", 2), ("test", 1)):
            files |= {f"{split}{kind}/toy_{split}_{i:06d}.png" for i in range(count) for kind in ("", "annot")}
    elif name == "custom":
        files.add("classes.yaml")
        for split, count in (("train", 4), ("val", 2)):
            files |= {f"images/{split}/street_{i:06d}.jpg" for i in range(count)}
            files |= {f"labels/{split}/street_{i:06d}.png" for i in range(count)}
    return files


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "voc_aug"])
def test_files_are_named_as_in_the_data_set(written, name):
    assert set(digests(written[name])) == expected_files(name)


def label_files(name: str, root: Path) -> list[Path]:
    pattern = {
        "cityscapes": "*_labelIds.png",
        "pascal_context": "GroundTruth_trainval_png/*.png",
        "ade20k": "annotations/*/*.png",
        "voc": "SegmentationClass/*.png",
        "lip": "*_segmentations/*.png",
        "sbu": "ShadowMasks/*.png",
        "camvid": "*annot/*.png",
        "custom": "labels/*/*.png",
    }[name]
    return sorted(root.rglob(pattern))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("voc_aug", "coco")])
def test_labels_hold_legal_values_at_the_size_of_the_images(written, name):
    labels = load_custom(written[name] / "classes.yaml") if name == "custom" else label_set(name)
    found = np.zeros(256, int)
    files = label_files(name, written[name])
    assert len(files) >= 6
    for path in files:
        raw = read(path)
        assert raw.shape == SIZE and raw.dtype == np.uint8
        found += np.bincount(labels.encode(raw).ravel(), minlength=256)  # raises for an illegal value
    least = {"cityscapes": 14, "pascal_context": 14, "ade20k": 16, "voc": 5, "lip": 12, "sbu": 2, "camvid": 11}
    assert np.count_nonzero(found[: labels.num_classes]) >= least.get(name, labels.num_classes)
    # Every set that can ignore pixels does (LIP and SBU cannot).
    assert (found[255] > 0) == (name not in ("lip", "sbu"))


def test_images_have_three_channels_and_the_size(written):
    for name, root in written.items():
        images = [p for p in root.rglob("*") if p.suffix == ".jpg" or p.name.endswith("_leftImg8bit.png")]
        images += list((root / "train").glob("*.png")) if name == "camvid" else []
        assert len(images) >= 4
        for path in images:
            with Image.open(path) as image:
                assert (image.mode, image.size) == ("RGB", SIZE[::-1])


# --- cityscapes ------------------------------------------------------------------------------------------------------


def test_cityscapes_files_of_an_image_agree(written):
    raw = {label.id: label for label in cityscapes_raw_labels()}
    for path in label_files("cityscapes", written["cityscapes"]):
        ids = read(path)
        train_ids = read(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
        colors = read(path.with_name(path.name.replace("labelIds", "color")))
        assert colors.shape == (*SIZE, 4)
        for value in np.unique(ids):
            assert np.all(train_ids[ids == value] == raw[value].train_id)
            assert np.all(colors[ids == value] == (*raw[value].color, 255))


def test_cityscapes_polygons_give_the_label_ids_back(written):
    """With the data set's own tool, which fills polygons by Pillow, while ours come from OpenCV."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    names = set()
    files = label_files("cityscapes", written["cityscapes"])
    assert len(files) == 8
    for path in files:
        polygons = path.with_name(path.name.replace("labelIds.png", "polygons.json"))
        content = json.loads(polygons.read_text())
        assert (content["imgHeight"], content["imgWidth"]) == SIZE
        names |= {row["label"] for row in content["objects"]}
        annotation = Annotation()
        annotation.fromJsonFile(str(polygons))
        assert np.array_equal(np.array(createLabelImage(annotation, "ids")), read(path))
    assert {"license plate", "ego vehicle", "car", "road", "unlabeled"} <= names


def test_cityscapes_test_labels_are_empty_and_coarse_ones_have_gaps(written):
    root = written["cityscapes"]
    test = read(next(root.glob("gtFine/test/*/*_labelIds.png")))
    assert set(np.unique(test)) <= {0, 1, 2}
    coarse = read(next(root.glob("gtCoarse/train_extra/*/*_labelIds.png")))
    scene = Plan(root, 0, 0, SIZE, 0).draw("train_extra", 0)
    names = {label.id: label.name for label in cityscapes_raw_labels()}
    fine = np.vectorize(lambda concept: CITYSCAPES[Concept(concept)])(scene.concepts)
    kept = coarse > 0
    assert 0.3 < kept.mean() < 0.95
    assert all(names[a] == b for a, b in zip(coarse[kept], fine[kept], strict=True))


# --- the other formats -----------------------------------------------------------------------------------------------


def test_pascal_context_mat_holds_the_detailed_ids(written):
    root = written["pascal_context"]
    for path in sorted((root / "GroundTruth_trainval_mat").glob("*.mat")):
        detailed = loadmat(path)["LabelMap"]
        label = read(root / "GroundTruth_trainval_png" / f"{path.stem}.png")
        assert detailed.shape == SIZE and detailed.max() <= 459
        train = label_set("pascal_context").encode(label)
        assert np.array_equal(pascal_context_459_to_59()[detailed], train)


def test_voc_labels_are_palette_files_with_borders_around_objects(written):
    for path in label_files("voc", written["voc"]):
        with Image.open(path) as image:
            assert image.mode == "P"
            assert np.array_equal(np.array(image.getpalette()).reshape(256, 3), voc_colormap())
            label = np.array(image)
        # Between the inside of an object and the background there is always a border.
        inside = (label > 0) & (label < 255)
        beside = ndimage.binary_dilation(inside, structure=np.ones((3, 3)))
        assert inside.any() and not np.any(beside & (label == 0))


def test_voc_aug_overlaps_as_in_reality(written):
    root = written["voc_aug"]
    voc, sbd = root / "VOCdevkit/VOC2012", root / "SBD/benchmark_RELEASE/dataset"
    lists = {name: set((voc / f"ImageSets/Segmentation/{name}.txt").read_text().split()) for name in ("train", "val")}
    boundaries = {name: set((sbd / f"{name}.txt").read_text().split()) for name in ("train", "val")}
    everything = boundaries["train"] | boundaries["val"]
    assert not lists["train"] & lists["val"] and not boundaries["train"] & boundaries["val"]
    assert everything & lists["train"] == {"2008_000001"}
    assert everything & lists["val"] == {"2010_000001"}
    assert len((lists["train"] | everything) - lists["val"]) == COUNTS["num_train"]
    for stem in everything:
        cls = loadmat(sbd / f"cls/{stem}.mat")["GTcls"][0, 0]
        label = cls["Segmentation"]
        assert label.shape == SIZE and label.dtype == np.uint8 and label.max() <= 20
        assert np.array_equal(np.unique(label[label > 0]), np.sort(cls["CategoriesPresent"].ravel()))
        assert (sbd / f"img/{stem}.jpg").exists()
        with_border = voc / f"SegmentationClass/{stem}.png"
        if with_border.exists():
            border = read(with_border)
            assert np.array_equal(border[border < 255], label[border < 255])
    assert {p.stem for p in (sbd / "cls").glob("*.mat")} == everything
    assert {p.stem for p in (voc / "SegmentationClass").glob("*.png")} == lists["train"] | lists["val"]


def fill_each_part(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return np.any([ndimage.binary_fill_holes(parts == i + 1) for i in range(count)], axis=0)


def test_coco_annotations_decode_to_the_drawn_instances(written, tmp_path, capsys):
    from pycocotools.coco import COCO

    # At 128x256 and with groups of people, which the smaller fixture may lack.
    root = write_toy_dataset("coco", tmp_path / "coco", num_train=1, num_val=10)
    coco = COCO(str(root / "annotations/instances_val2017.json"))
    assert [(c["id"], c["name"]) for c in coco.loadCats([1, 13, 64, 90])] == [
        *((1, "person"), (13, "stop sign"), (64, "potted plant"), (90, "toothbrush")),
    ]
    assert len(coco.getCatIds()) == 80
    crowds = 0
    for index, image_id in enumerate(sorted(coco.getImgIds())):
        scene = Plan(root, 0, 0, (128, 256), 0).draw("val", index)
        masks = {i + 1: scene.instances == i + 1 for i in range(len(scene.things))}
        wanted = [i for i, mask in masks.items() if scene.things[i - 1].concept in CATEGORIES and mask.sum() >= 4]
        rows = coco.loadAnns(sorted(coco.getAnnIds(imgIds=[image_id])))
        assert len(rows) == len(wanted)
        for number, row in zip(wanted, rows, strict=True):
            thing: Thing = scene.things[number - 1]
            mask = coco.annToMask(row).astype(bool)
            assert coco.loadCats([row["category_id"]])[0]["name"] == CATEGORIES[thing.concept]
            assert row["iscrowd"] == thing.crowd
            assert np.array_equal(mask, masks[number] if thing.crowd else fill_each_part(masks[number]))
            y, x = np.nonzero(mask)
            assert row["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert row["area"] == mask.sum()
            crowds += row["iscrowd"]
    assert crowds > 0
    capsys.readouterr()  # pycocotools prints


def test_run_lengths_of_a_mask_worked_out_by_hand():
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    # Down the columns: 0 0 | 1 1 | 1 0
    assert coco_run_lengths(mask) == {"counts": [2, 3, 1], "size": [2, 3]}
    assert coco_run_lengths(~mask) == {"counts": [0, 2, 3, 1], "size": [2, 3]}
    assert coco_run_lengths(np.zeros((2, 2), bool))["counts"] == [4]
    assert coco_run_lengths(np.ones((2, 2), bool))["counts"] == [0, 4]


def test_polygon_of_a_mask_worked_out_by_hand():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    mask[1, 3] = False  # an L lying down
    assert coco_polygons(mask) == [[1, 1, 3, 1, 3, 2, 4, 2, 4, 3, 1, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_regions_give_back_any_map(seed):
    rng = np.random.default_rng(seed)
    values = cv2.resize(rng.integers(0, 5, (9, 13)).astype(np.uint8), (39, 27), interpolation=cv2.INTER_NEAREST)
    noise = rng.random(values.shape) < 0.2  # single pixels, holes and corners that only touch
    values = np.where(noise, rng.integers(0, 5, values.shape), values)
    by_opencv = np.full(values.shape, 9, np.uint8)
    by_pillow = Image.new("L", values.shape[::-1], 9)
    for region in layered_regions(values):
        cv2.fillPoly(by_opencv, [np.array(region.outline, np.int32)], region.value)
        ImageDraw.Draw(by_pillow).polygon([tuple(point) for point in region.outline], fill=region.value)
    assert np.array_equal(by_opencv, values)
    assert np.array_equal(np.array(by_pillow), values)


# --- what there is to learn ------------------------------------------------------------------------------------------


def test_each_street_class_has_its_share(scenes):
    train = {label.name: label.train_id for label in cityscapes_raw_labels()}
    counts = np.zeros(256, int)
    for scene in scenes:
        per_concept = np.bincount(scene.concepts.ravel(), minlength=256)
        for concept, name in CITYSCAPES.items():
            counts[train[name]] += per_concept[concept]
    assert counts.sum() == 20 * 128 * 256  # no pixel without a concept
    percent = 100 * counts / counts[:19].sum()
    names = label_set("cityscapes").class_names
    shares = dict(zip(names, percent[:19], strict=True))
    assert shares.pop("train") == 0  # one class is absent on purpose
    assert min(shares.values()) > 0.4, shares
    assert max(shares.values()) < 35, shares
    assert 1 < percent[255] < 8


def test_a_class_is_not_one_colour_and_two_classes_share_colours(scenes):
    """Learnable is not trivial: cars differ from each other more than road and pavement differ on the mean."""
    means: dict[Concept, list[np.ndarray]] = {}
    for scene in scenes:
        for number, thing in enumerate(scene.things, start=1):
            mask = scene.instances == number
            if mask.sum() > 50:
                means.setdefault(thing.concept, []).append(scene.image[mask].mean(axis=0))
    assert np.std(means[Concept.CAR], axis=0).mean() > 15
    ground = [
        np.mean([s.image[s.concepts == c].mean(axis=0) for s in scenes], axis=0)
        for c in (Concept.ROAD, Concept.SIDEWALK)
    ]
    assert 5 < np.abs(ground[0] - ground[1]).mean() < 80


def test_nearer_things_hide_farther_ones(scenes):
    """The last drawn thing is never hidden, earlier ones sometimes are."""
    hidden = 0
    for scene in scenes:
        visible = [np.count_nonzero(scene.instances == i + 1) for i in range(len(scene.things))]
        assert scene.instances.max() <= len(scene.things)
        hidden += visible.count(0)
        labelled = scene.instances > 0
        concepts = np.array([0, *(thing.concept for thing in scene.things)])[scene.instances]
        plate = scene.concepts == Concept.LICENCE_PLATE
        assert np.all((concepts == scene.concepts)[labelled & ~plate])
        assert np.all(concepts[plate] == Concept.CAR)
    assert hidden > 0


def test_people_seen_close_have_all_parts():
    counts = np.zeros(256, int)
    for index in range(40):
        scene = Plan(Path("unused"), 0, 0, SIZE, 0).draw("train", index, draw_person)
        counts += np.bincount(scene.concepts.ravel(), minlength=256)
    assert np.count_nonzero(counts) == 20
    assert all(counts[concept] > 40 for concept in LIP)


def test_shadows_are_darker_than_the_ground_beside_them():
    for index in range(10):
        scene = Plan(Path("unused"), 0, 0, (128, 256), 0).draw("val", index, draw_shadows)
        shadow = scene.concepts == Concept.SHADOW
        assert 0.002 < shadow.mean() < 0.7
        around = ndimage.binary_dilation(shadow, iterations=6) & ~ndimage.binary_dilation(shadow, iterations=3)
        core = ndimage.binary_erosion(shadow)
        assert np.median(scene.image[core]) < 0.85 * np.median(scene.image[around])


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (95, 61), (48, 200), (513, 97)])
@pytest.mark.parametrize("painter", [draw_street, draw_person, draw_shadows])
def test_any_size_can_be_drawn(size, painter):
    scene = Plan(Path("unused"), 0, 0, size, 0).draw("train", 0, painter)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.concepts.shape == scene.instances.shape == size
    assert scene.image.std() > 8


# --- writing into folders --------------------------------------------------------------------------------------------


def small(root: Path, **changes) -> Path:
    return write_toy_dataset(
        **{"layout": "custom", "root": root, "num_train": 1, "num_val": 1, "size": (32, 32), **changes}
    )


def test_a_complete_data_set_is_left_alone(tmp_path):
    root = small(tmp_path / "toy")
    assert json.loads((root / "toy_dataset.json").read_text())["layout"] == "custom"
    (root / "labels/train/street_000000.png").write_bytes(b"not touched again")
    (root / "train.txt").write_text("a list made later does not disturb")
    assert small(root) == root
    assert (root / "labels/train/street_000000.png").read_bytes() == b"not touched again"


def test_a_half_written_data_set_is_completed(tmp_path):
    whole = digests(small(tmp_path / "whole"))
    root = small(tmp_path / "half")
    # What a kill leaves behind: no end marker, the begin marker, a file missing and one cut short.
    (root / "toy_dataset.json").rename(root / ".toy_dataset_begun.json")
    (root / "images/val/street_000000.jpg").unlink()
    (root / "labels/train/street_000000.png").write_bytes(b"\x89PNG")
    assert digests(small(root)) == whole


def test_half_written_with_other_arguments_is_refused(tmp_path):
    root = small(tmp_path / "half")
    (root / "toy_dataset.json").rename(root / ".toy_dataset_begun.json")
    with pytest.raises(UserError, match="seed 0, not 5"):
        small(root, seed=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "sbu"}, "layout custom, not sbu"),
        ({"num_train": 2}, "num_train 1, not 2"),
        ({"size": (32, 48)}, r"size \[32, 32\], not \[32, 48\]"),
        ({"seed": 3}, "seed 0, not 3"),
    ],
)
def test_another_toy_data_set_is_not_overwritten(tmp_path, changes, message):
    before = digests(small(tmp_path / "toy"))
    with pytest.raises(UserError, match=f"{message}; choose another folder or delete"):
        small(tmp_path / "toy", **changes)
    assert digests(tmp_path / "toy") == before


def test_someone_elses_files_are_not_overwritten(tmp_path):
    (tmp_path / "classes.yaml").write_text("mine")
    with pytest.raises(UserError, match="already holds other files"):
        small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classes.yaml"]
    with pytest.raises(UserError, match="is a file"):
        small(tmp_path / "classes.yaml")


def test_an_empty_folder_is_used_and_a_spoiled_marker_is_named(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/.gitkeep").touch()
    root = small(tmp_path / "toy")
    (root / "toy_dataset.json").write_text("{half")
    with pytest.raises(UserError, match=r"toy_dataset\.json: not readable as JSON"):
        small(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "cityscape"}, "unknown layout 'cityscape': did you mean 'cityscapes'"),
        ({"num_train": 0}, "num_train must be 1 to 99999, not 0"),
        ({"num_val": -1}, "num_val must be 1 to"),
        ({"size": (16, 64)}, "height must be 32 to 4096 pixels, not 16"),
        ({"size": (64, 5000)}, "width must be 32 to 4096 pixels, not 5000"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        small(tmp_path / "toy", **changes)
    assert not (tmp_path / "toy").exists()


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "common.toy_dataset", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(toy_dataset.__file__).parents[1])


def test_command(tmp_path):
    done = run("sbu", str(tmp_path / "toy"), "--train", "2", "--val", "1", "--height", "32", "--width", "48")
    assert done.returncode == 0 and "2 + 1 images of 32x48" in done.stdout
    assert len(list((tmp_path / "toy").rglob("ShadowMasks/*.png"))) == 3
    failed = run("sbuu", str(tmp_path / "other"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: unknown layout 'sbuu'") and failed.stderr.count("\n") == 1
