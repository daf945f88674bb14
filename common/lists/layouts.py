"""Where each supported data set keeps its images and labels, and which lists are made of them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.cli import UserError, did_you_mean, shown
from common.files import files_below
from common.images.read import IMAGE_SUFFIXES
from common.lists.list_file import Pair

AUG_LABELS = "SegmentationClassAug"
"""Folder beside VOC's SegmentationClass for the labels made from SBD."""

CUSTOM_ID_LABELS = "labels_ids"
"""Folder of a custom data set for labels made from colour masks."""


@dataclass
class FoundPairs:
    """What `find_pairs` saw in a data set's folder.

    Attributes:
        root: The folder the lists' paths are relative to.
        lists: List name ("train") -> its pairs, sorted.
        images_without_label: Images left out of the lists.
        labels_without_image: Labels left out of the lists.
        notes: What else the user should know, one sentence each.
    """

    root: Path
    lists: dict[str, list[Pair]] = field(default_factory=dict)
    images_without_label: list[Path] = field(default_factory=list)
    labels_without_image: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A data set as the list command knows it.

    Attributes:
        label_set: The name in `common.labels` for what its files hold; None where the user brings the classes.
        folders: Where it is looked for under data/ when no root is given.
        expected: The folders it must have, for the message when they are missing.
        label_kinds: The choices of `labels`, the default first; empty where there is no choice.
        find: Fills `FoundPairs`, called with the found pairs and the kind of labels.
    """

    label_set: str | None
    folders: tuple[str, ...]
    expected: str
    find: Callable[[FoundPairs, str], None]
    label_kinds: tuple[str, ...] = ("",)


def find_pairs(
    dataset: str,
    root: str | os.PathLike | None = None,
    labels: str | None = None,
    csv_file: str | os.PathLike | None = None,
) -> FoundPairs:
    """Finds the images and labels of a data set and sorts them into lists. Nothing is written.

    Args:
        dataset: A key of `LAYOUTS`.
        root: The data set's folder; by default `data/<name>` under the working folder, then under the repository.
        labels: "trainIds" or "labelIds" for cityscapes, "coco" or "coco80" for coco.
        csv_file: For custom: a table of image,label[,split], instead of the folders.

    Raises:
        UserError: Unknown name, missing folders, no pairs, labels that have to be converted first.
    """
    layout = layout_of(dataset)
    kind = label_kind(dataset, labels)
    if csv_file is not None and dataset != "custom":
        raise UserError(f"--csv is for the data set 'custom', not '{dataset}': leave it out")
    if csv_file is not None:
        found = FoundPairs(Path(root) if root is not None else Path(csv_file).parent)
        _find_csv(found, Path(csv_file))
    else:
        found = FoundPairs(folder_of(dataset, root))
        layout.find(found, kind)
    if not any(found.lists.values()):
        raise UserError(f"no pairs of image and label under {found.root}; {dataset} has {layout.expected}")
    found.lists = {name: pairs for name, pairs in found.lists.items() if pairs}
    return found


def layout_of(dataset: str) -> Layout:
    """Returns the layout by name; UserError with the nearest name where there is none."""
    if dataset not in LAYOUTS:
        raise UserError(f"unknown data set '{dataset}': {did_you_mean(dataset, list(LAYOUTS))}")
    return LAYOUTS[dataset]


def label_kind(dataset: str, labels: str | None) -> str:
    """Returns the kind of labels to use: the given one, or the data set's default ("" where there is no choice)."""
    kinds = layout_of(dataset).label_kinds
    if labels is None:
        return kinds[0]
    if labels not in kinds:
        valid = f"valid: {', '.join(kinds)}" if kinds != ("",) else f"'{dataset}' has one kind only, leave it out"
        raise UserError(f"--labels {labels} is not a choice for '{dataset}': {valid}")
    return labels


def folder_of(dataset: str, root: str | os.PathLike | None = None) -> Path:
    """Returns the folder of a data set: the given one, or the first of its default folders that exists.

    Raises:
        UserError: No such folder, saying where it was looked for and what belongs there.
    """
    layout = layout_of(dataset)
    if root is not None:
        places = [Path(root)]
    else:
        bases = (Path(), Path(__file__).resolve().parents[2])
        places = [base / "data" / folder for base in bases for folder in layout.folders]
    for place in places:
        if place.is_dir():
            return place
    looked = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise UserError(
        f"no folder {looked}: give the folder of {dataset} as the second word (it has {layout.expected}), or draw a "
        f"small stand-in: python common/toy_dataset.py {dataset} {places[0]}"
    )


def voc_folder(root: Path, dataset: str = "voc") -> Path:
    """Returns the VOC2012 folder of a root, which may be it or up to two levels above; `dataset` is for the error."""
    return _first_with(root, ("VOCdevkit/VOC2012", "VOC2012", "."), "ImageSets/Segmentation", dataset)


def sbd_folder(root: Path) -> Path | None:
    """Returns the folder of SBD's dataset/ below a root, None where SBD is not there."""
    places = (root / top / "benchmark_RELEASE" / "dataset" for top in ("SBD", "."))
    return next((place for place in places if (place / "cls").is_dir()), None)


def sbd_stems(sbd: Path) -> list[str]:
    """Returns the names in SBD's train.txt and val.txt, sorted."""
    return sorted({stem for split in ("train", "val") for stem in read_stems(sbd / f"{split}.txt")})


def read_stems(path: Path) -> list[str]:
    """Returns the stem of the first path in each line of a data set's own list, in its order.

    Raises:
        UserError: A list that is missing or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: this list of the data set is missing; unpack the data set again") from None
    stems = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not stems:
        raise UserError(f"{path}: the list is empty; unpack the data set again")
    return stems


def list_files(folder: Path, pattern: str = "*", suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Returns the files of a folder that match, sorted by path; none where there is no such folder.

    Args:
        folder: Where to look.
        pattern: As `Path.glob` takes it; "**/*" is everything below, with linked folders (`files_below`). Nothing in a
            hidden folder is taken.
        suffixes: Which files.
    """
    wanted = {suffix.lower() for suffix in suffixes}
    if pattern == "**/*":
        paths = files_below(folder) if folder.is_dir() else ()
    else:
        paths = (p for p in folder.glob(pattern) if not any(part[0] == "." for part in p.relative_to(folder).parts))
    return sorted((path for path in paths if path.suffix.lower() in wanted), key=lambda path: path.as_posix())


def cityscapes_label(image: Path, kind: str) -> Path:
    """Returns where the label of a Cityscapes image lies.

    Args:
        image: .../leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
        kind: "trainIds", "labelIds" or "polygons".
    """
    split, city = image.parts[-3], image.parts[-2]
    quality = "gtCoarse" if split == "train_extra" else "gtFine"
    ending = {"trainIds": "labelTrainIds.png", "labelIds": "labelIds.png", "polygons": "polygons.json"}[kind]
    stem = image.name.removesuffix("_leftImg8bit.png")
    return image.parents[3] / quality / split / city / f"{stem}_{quality}_{ending}"


def cityscapes_images(root: Path, split: str) -> list[Path]:
    """Returns the images of a split, sorted."""
    return list_files(root / "leftImg8bit" / split, "*/*_leftImg8bit.png")


def coco_labels(root: Path, split: str, kind: str) -> Path:
    """Returns the folder of the label PNGs made from COCO's annotations; `kind` as in `find_pairs`."""
    return root / f"segmentation{'80' if kind == 'coco80' else ''}_{split}2017"


def _find_cityscapes(found: FoundPairs, kind: str) -> None:
    root = found.root
    _need(root, "leftImg8bit", "cityscapes")
    for split in ("train", "val", "test", "train_extra"):
        images = cityscapes_images(root, split)
        labels = [cityscapes_label(image, kind) for image in images]
        there = set(list_files(labels[0].parents[1], f"*/*_{labels[0].name.rsplit('_', 1)[1]}")) if labels else set()
        missing = [image for image, label in zip(images, labels, strict=True) if label not in there]
        if split == "test" and missing:
            found.lists[split] = [Pair(image, None) for image in images]
            continue
        _refuse_unconverted(missing, kind, split)
        found.lists[split] = [Pair(*pair) for pair in zip(images, labels, strict=True) if pair[1] in there]
        found.images_without_label += missing
        found.labels_without_image += sorted(there - set(labels))
    train, val, extra = (found.lists[split] for split in ("train", "val", "train_extra"))
    del found.lists["train_extra"]
    if train and val:
        found.lists["trainval"] = train + val
    if extra:
        found.lists |= {"train+": train + extra, "train++": train + val + extra}
    else:
        found.notes.append(
            "train+ and train++ are not made: there is no leftImg8bit/train_extra with labels in gtCoarse/train_extra"
        )


def _refuse_unconverted(missing: Sequence[Path], kind: str, split: str) -> None:
    for source in ("labelIds", "polygons"):
        convertible = [image for image in missing if cityscapes_label(image, source).is_file()]
        if convertible and source != kind:
            raise UserError(
                f"{len(convertible)} images of {split} have {source} but no {kind} "
                f"({cityscapes_label(convertible[0], kind)}): add --convert, which writes them"
                + (", or use --labels labelIds" if source == "labelIds" else "")
            )


def _find_ade20k(found: FoundPairs, _: str) -> None:
    root = found.root
    if not (root / "ADEChallengeData2016").is_dir() and not (root / "annotations").is_dir():
        full_release = any(root.glob("ADE20K_20*")) or any(root.glob("images/ADE/*")) or any(root.glob("**/*_seg.png"))
        if full_release:
            raise UserError(
                f"{root} holds the full ADE20K release (thousands of classes in *_seg.png); the 150 classes are in "
                "ADEChallengeData2016.zip of the scene parsing benchmark: unpack that"
            )
    base = _first_with(root, ("ADEChallengeData2016", "."), "images", "ade20k")
    for split, folder in (("train", "training"), ("val", "validation")):
        _pair_folders(found, split, base / "images" / folder, base / "annotations" / folder)


def _find_pascal_context(found: FoundPairs, _: str) -> None:
    root = found.root
    _need(root, "JPEGImages", "pascal_context")
    labels = root / "GroundTruth_trainval_png"
    if not labels.is_dir() and (root / "GroundTruth_trainval_mat").is_dir():
        raise UserError(f"{root} has .mat labels but no {labels.name}: add --convert, which writes it from them")
    for split in ("train", "val"):
        stems = read_stems(root / f"pascal_context_{split}.txt")
        _pair_stems(found, split, stems, (root / "JPEGImages",), lambda stem: labels / f"{stem}.png")
    found.lists["trainval"] = found.lists["train"] + found.lists["val"]


def _find_voc(found: FoundPairs, _: str) -> None:
    base = voc_folder(found.root)
    for split in ("train", "val", "trainval"):
        stems = read_stems(base / "ImageSets" / "Segmentation" / f"{split}.txt")
        _pair_stems(
            found, split, stems, (base / "JPEGImages",), lambda stem: base / "SegmentationClass" / f"{stem}.png"
        )


def _find_voc_aug(found: FoundPairs, _: str) -> None:
    base = voc_folder(found.root, "voc_aug")
    voc_lists = base / "ImageSets" / "Segmentation"
    voc_train, voc_val = read_stems(voc_lists / "train.txt"), read_stems(voc_lists / "val.txt")
    sbd = sbd_folder(found.root)
    if not (base / AUG_LABELS).is_dir():
        raise UserError(f"no {base / AUG_LABELS}: make it with create_dataset_list.py voc_aug, from SBD's .mat files")
    # Without SBD's own lists the folder is what someone else converted, VOC's own labels and val among them.
    extra = set(sbd_stems(sbd) if sbd else (path.stem for path in list_files(base / AUG_LABELS)))
    in_val = extra & set(voc_val)
    extra -= {*voc_train, *voc_val}

    def label_of(stem: str) -> Path:
        return base / (AUG_LABELS if stem in extra else "SegmentationClass") / f"{stem}.png"

    images = (base / "JPEGImages", *([sbd / "img"] if sbd else []))
    _pair_stems(found, "train_aug", [*voc_train, *extra], images, label_of)
    _pair_stems(found, "val", voc_val, images, label_of)
    found.notes.append(
        f"train_aug: {len(set(voc_train))} of VOC train + {len(extra)} of SBD = {len(found.lists['train_aug'])} pairs "
        f"(the full sets give 10582); {len(in_val)} of SBD are in VOC val and left out"
    )


def _find_coco(found: FoundPairs, kind: str) -> None:
    for split in ("train", "val"):
        images, labels = found.root / f"{split}2017", coco_labels(found.root, split, kind)
        if images.is_dir() and not labels.is_dir():
            raise UserError(f"no {labels}: make it with create_dataset_list.py coco, from annotations/instances_*.json")
        before = len(found.images_without_label)
        _pair_folders(found, split, images, labels)
        left_out = len(found.images_without_label) - before
        if kind == "coco" and left_out:
            del found.images_without_label[before:]
            found.notes.append(f"{split}: {left_out} images with at most 1000 labelled pixels are left out")


def _find_lip(found: FoundPairs, _: str) -> None:
    root = found.root
    for split in ("train", "val"):
        images = root / "TrainVal_images" / f"{split}_images"
        labels = root / "TrainVal_parsing_annotations" / f"{split}_segmentations"
        _need(root, images.relative_to(root), "lip")
        stems = read_stems(root / f"{split}_id.txt")
        _pair_stems(found, split, stems, (images,), lambda stem, labels=labels: labels / f"{stem}.png")


def _find_sbu(found: FoundPairs, _: str) -> None:
    for split, folder in (("train", "SBUTrain4KRecoveredSmall"), ("test", "SBU-Test")):
        _pair_folders(found, split, found.root / folder / "ShadowImages", found.root / folder / "ShadowMasks")


def _find_camvid(found: FoundPairs, _: str) -> None:
    for split in ("train", "val", "test"):
        _pair_folders(found, split, found.root / split, found.root / f"{split}annot")
    if found.lists["train"] and found.lists["val"]:
        found.lists["trainval"] = found.lists["train"] + found.lists["val"]


def _find_custom(found: FoundPairs, _: str) -> None:
    root = found.root
    _need(root, "images", "custom")
    converted = (root / CUSTOM_ID_LABELS).is_dir()
    labels = root / (CUSTOM_ID_LABELS if converted else "labels")
    if converted:
        found.notes.append(f"labels are taken from {CUSTOM_ID_LABELS}, made from the colour masks in labels")
    splits = [split for split in ("train", "val", "test") if (root / "images" / split).is_dir()]
    for split in splits:
        _pair_folders(found, split, root / "images" / split, labels / split, pattern="**/*")
    if not splits:
        _pair_folders(found, "train", root / "images", labels, pattern="**/*")
        found.notes.append("images has no folders train and val: all pairs are in train.txt; make them for a val.txt")


def _find_csv(found: FoundPairs, table: Path) -> None:
    """Reads rows of image,label or, with a header, also split; without a split the list has the CSV's name.

    Excel's and pandas' tables are read as they are: UTF-8 with or without a mark, UTF-16, separated by commas,
    semicolons or tabs, with columns besides.
    """
    rows = _csv_rows(table)
    columns = ["image", "label"]
    if rows and {"image", "label"} <= {name.strip().lower() for name in rows[0][1]}:
        columns = [name.strip().lower() for name in rows.pop(0)[1]]
    for number, row in rows:
        if len(row) != len(columns):
            raise UserError(f"{table}, line {number}: {len(row)} columns where {','.join(columns)} are expected")
        cell = {name: text.strip() for name, text in zip(columns, row, strict=True)}
        empty = next((name for name in ("image", "label") if not cell[name]), None)
        if empty is not None:
            raise UserError(f"{table}, line {number}: no {empty}: fill the cell or take the line out")
        paths = [found.root / cell[name].replace("\\", "/") for name in ("image", "label")]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            raise UserError(f"{table}, line {number}: {missing} is not there; paths are relative to {found.root}")
        split = _split_name(cell["split"], f"{table}, line {number}") if cell.get("split") else table.stem
        found.lists.setdefault(split, []).append(Pair(*paths))
    for pairs in found.lists.values():
        pairs.sort(key=lambda pair: pair.image.as_posix())


def _csv_rows(table: Path) -> list[tuple[int, list[str]]]:
    """The rows that hold anything, each with its line number."""
    try:
        data = table.read_bytes()
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from error
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
        lines = text.splitlines()
        named = lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5  # Excel's own line
        first = next((line for line in lines if line.strip()), "")
        separator = lines[0][4] if named else max(",;\t", key=first.count)
        rest = text.partition("\n")[2] if named else text
        reader = csv.reader(io.StringIO(rest, newline=""), delimiter=separator)
        return [(reader.line_num + bool(named), row) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a UTF-8 CSV table ({error}): save it as CSV in UTF-8") from error


_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLITS |= {"test": "test", "testing": "test", "trainval": "trainval"}


def _split_name(text: str, where: str) -> str:
    """The list's name for a cell of the column "split": its usual spellings, or a plain name of one's own."""
    if text.lower() in _SPLITS:
        return _SPLITS[text.lower()]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", text):
        raise UserError(f"{where}: split {shown(text)} is not a plain name: use train, val, test or another word")
    return text


def _pair_folders(found: FoundPairs, split: str, images: Path, labels: Path, pattern: str = "*") -> None:
    """Pairs the files of two folders by their path without suffix."""

    def by_name(folder: Path) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for path in list_files(folder, pattern):
            name = path.relative_to(folder).with_suffix("").as_posix()
            refuse_second(files.setdefault(name, path), path)
        return files

    image_files, label_files = by_name(images), by_name(labels)
    found.lists[split] = [Pair(path, label_files[name]) for name, path in image_files.items() if name in label_files]
    found.images_without_label += [path for name, path in image_files.items() if name not in label_files]
    found.labels_without_image += [path for name, path in label_files.items() if name not in image_files]


def _pair_stems(
    found: FoundPairs, split: str, stems: Iterable[str], folders: Iterable[Path], label_of: Callable
) -> None:
    """Pairs the names of a data set's own list; an image is taken from the first of the folders that has it."""
    stems, image_of = set(stems), {}
    for folder in folders:
        here: dict[str, Path] = {}
        for path in list_files(folder):
            first = here.setdefault(path.stem, path)
            if path.stem in stems:
                refuse_second(first, path)
        image_of = here | image_of
    pairs, alone, orphans = [], [], []
    for stem in sorted(stems):
        image, label = image_of.get(stem), label_of(stem)
        if image is None:
            orphans.append(label)
        elif not label.is_file():
            alone.append(image)
        else:
            pairs.append(Pair(image, label))
    found.lists[split] = pairs
    found.images_without_label += [path for path in alone if path not in found.images_without_label]
    found.labels_without_image += [path for path in orphans if path not in found.labels_without_image]


def refuse_second(first: Path, path: Path) -> None:
    """Raises UserError where two files have the name of one image or one label, which tells them apart by nothing."""
    if first != path:
        raise UserError(
            f"{first} and {path.name} have one name: which of them is meant is not clear; remove one of them"
        )


def _need(root: Path, folder: str | Path, dataset: str) -> None:
    if not (root / folder).is_dir():
        raise UserError(f"{root} has no folder {folder}; {dataset} has {LAYOUTS[dataset].expected}")


def _first_with(root: Path, places: Iterable[str], folder: str, dataset: str) -> Path:
    for place in places:
        if (root / place / folder).is_dir():
            return root / place
    raise UserError(f"{root} has no folder {folder}; {dataset} has {LAYOUTS[dataset].expected}")


_VOC = "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}"
LAYOUTS: dict[str, Layout] = {
    "cityscapes": Layout(
        "cityscapes",
        ("cityscapes",),
        "leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png and gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png",
        _find_cityscapes,
        ("trainIds", "labelIds"),
    ),
    "pascal_context": Layout(
        "pascal_context",
        ("pascal_context",),
        "JPEGImages, GroundTruth_trainval_png (or _mat), pascal_context_train.txt and pascal_context_val.txt",
        _find_pascal_context,
    ),
    "ade20k": Layout(
        "ade20k",
        ("ade20k", "ADEChallengeData2016"),
        "ADEChallengeData2016/{images,annotations}/{training,validation}",
        _find_ade20k,
    ),
    "voc": Layout("voc", ("voc",), _VOC, _find_voc),
    "voc_aug": Layout(
        "voc", ("voc_aug", "voc"), f"{_VOC} and SBD/benchmark_RELEASE/dataset/{{cls,train.txt,val.txt}}", _find_voc_aug
    ),
    "coco": Layout(
        "coco",
        ("coco",),
        "{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json",
        _find_coco,
        ("coco", "coco80"),
    ),
    "lip": Layout(
        "lip",
        ("lip",),
        "TrainVal_{images/{train,val}_images,parsing_annotations/{train,val}_segmentations} and {train,val}_id.txt",
        _find_lip,
    ),
    "sbu": Layout("sbu", ("sbu",), "{SBUTrain4KRecoveredSmall,SBU-Test}/{ShadowImages,ShadowMasks}", _find_sbu),
    "camvid": Layout("camvid", ("camvid",), "{train,val,test} and {train,val,test}annot", _find_camvid),
    "custom": Layout(
        None, ("custom",), "images/{train,val} and labels/{train,val} with the same names, or --csv FILE", _find_custom
    ),
}
