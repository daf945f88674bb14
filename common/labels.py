"""What the values in a data set's label files mean: class names, colours, and the table from file value to train id.

The sets that come with the repository are YAML files in `label_sets/`, in the same format that `load_custom` reads:

    name: my_streets
    classes: [road, kerb, {name: person, color: [220, 20, 60]}]   # train ids 0, 1, 2 in this order
    ignore: 255                                                   # optional: the file value that does not count
    ids: {10: 0, 20: 1, 30: 2, 31: 2, 0: 255}                     # optional: file value -> train id (255 = ignored)

Without `ids` the files hold train ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import UserError, did_you_mean, few, shown
from common.config.strict_yaml import load_yaml

import cv2
import numpy as np

IGNORE = 255
INVALID = 254
"""What `LabelSet.id_to_train` gives for a value that must not occur in a label file of the set."""

PASCAL_CONTEXT_459_IDS = (
    # The ids of the 59 classes, in the order of label_set("pascal_context"), among the 459 names of the release's
    # labels.txt (alphabetical, 1 = accordion .. 459 = wool). Source: the converters of PyTorch-Encoding and
    # mmsegmentation, which agree.
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)

_NAMES = (
    *("cityscapes", "cityscapes_trainids", "pascal_context", "pascal_context60", "ade20k", "ade20k_151"),
    *("voc", "coco", "coco80", "coco81", "lip", "sbu", "camvid"),
)
# Sets that are another set with the background (the values that the other ignores as "none of the classes") as class 0.
_WITH_BACKGROUND = {"pascal_context60": "pascal_context", "ade20k_151": "ade20k", "coco81": "coco80"}
_KEYS = ["name", "classes", "ignore", "ids"]
_BREAKS = frozenset("\n\r\t\x85\u2028\u2029")


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The classes of a data set and how its label files spell them.

    Attributes:
        name: "cityscapes".
        class_names: By train id.
        palette: (num_classes, 3) uint8 RGB, read-only.
        id_to_train: (256,) uint8, read-only: value in a label file -> train id; 255 = ignored, `INVALID` (254) = must
            not occur in such a file.
        ignore_index: The train id of pixels that do not count.
    """

    name: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    id_to_train: np.ndarray
    ignore_index: int = IGNORE

    @property
    def num_classes(self) -> int:
        """The number of classes, ignored pixels not counted."""
        return len(self.class_names)

    @cached_property
    def train_to_id(self) -> np.ndarray:
        """(256,) uint8: train id -> the lowest file value that stands for it. 0 where there is none: see `decode`."""
        table = np.zeros(256, np.uint8)
        for raw in reversed(range(256)):
            table[self.id_to_train[raw]] = raw
        table.flags.writeable = False
        return table

    def encode(self, raw: np.ndarray, source: str | os.PathLike = "label") -> np.ndarray:
        """Turns the values of a label file into train ids.

        A -1 in a signed array is read as 255 where the set ignores 255 (Cityscapes' licence plates).

        Args:
            raw: Integers of any shape and width; not changed.
            source: What an error calls the array, usually its file.

        Returns:
            uint8 train ids of the same shape.

        Raises:
            UserError: A value that the set's files cannot hold, naming the values.
        """
        raw = np.asarray(raw)
        if self.id_to_train[255] == self.ignore_index and np.issubdtype(raw.dtype, np.signedinteger):
            raw = np.where(raw == -1, np.int16(255), raw)  # int16, since int8 does not hold 255
        allowed = self.id_to_train != INVALID
        return _look_up(raw, self.id_to_train, allowed, f"{source}: not label values of '{self.name}'")

    def decode(self, train_ids: np.ndarray) -> np.ndarray:
        """Turns train ids into the values that the data set's own files and its test server use.

        Args:
            train_ids: Integers 0..num_classes-1 or 255, any shape and width; not changed.

        Returns:
            uint8 file values of the same shape. 255 becomes the lowest value that the set ignores.

        Raises:
            UserError: A train id that the set does not have; also 255 where its files have no such value (sbu).
        """
        allowed = np.isin(np.arange(256), self.id_to_train) & (np.arange(256) != INVALID)
        return _look_up(np.asarray(train_ids), self.train_to_id, allowed, f"not train ids of '{self.name}'")


def names() -> list[str]:
    """Returns the names that `label_set` knows."""
    return list(_NAMES)


@cache
def label_set(name: str) -> LabelSet:
    """Returns a label set by name.

    What the label files of a set hold:
        cityscapes: labelIds, 0..33 and 255 (licence plate), of which 19 are evaluated.
        cityscapes_trainids: the same 19 classes as labelTrainIds, 0..18 and 255.
        pascal_context: 0 = none of the 59 (ignored), 1..59. pascal_context60: the same files, background is class 0.
        ade20k: 0 = other (ignored), 1..150. ade20k_151: the same files, other is class 0.
        voc: 0..20 and 255 on borders.
        coco: COCO category ids, as the 21 classes of VOC; other categories and 0 are background.
        coco80: COCO category ids, 0 = no instance (ignored). coco81: the same files, background is class 0.
        lip: 0..19. sbu: 0 and 255 = shadow. camvid: 0..10 and 11 = unlabelled.
    Except in sbu, 255 is always allowed and ignored.

    Raises:
        UserError: An unknown name.
    """
    if name not in _NAMES:
        raise UserError(f"unknown label set '{name}': {did_you_mean(name, names())}")
    if name in _WITH_BACKGROUND:
        return _with_background(label_set(_WITH_BACKGROUND[name]), name)
    if name in ("cityscapes", "cityscapes_trainids"):
        return _cityscapes(name)
    return load_custom(_data_file(name))


def labels_of_format(name: str, sets: Sequence[str], class_names: tuple[str, ...]) -> LabelSet:
    """The label set, one of `sets`, in whose values `--format NAME` is written.

    Raises:
        UserError: The network has other classes.
    """
    for labels in map(label_set, sets):
        if labels.class_names == class_names:
            return labels
    needed = label_set(sets[0])
    raise UserError(
        f"--format {name} needs weights with the {needed.num_classes} classes of {needed.name}; these have "
        f"{len(class_names)} ({few(class_names)}): use --format ids"
    )


class RawLabel(NamedTuple):
    """One of the 35 labels of Cityscapes: `id` is -1 for the licence plate, `train_id` 255 where not evaluated."""

    name: str
    id: int
    train_id: int
    color: tuple[int, int, int]


@cache
def cityscapes_raw_labels() -> tuple[RawLabel, ...]:
    """Returns all 35 Cityscapes labels by the names that the polygon files use, the licence plate last."""
    rows = load_yaml(_data_file("cityscapes_raw").read_text(encoding="utf-8"), "cityscapes_raw.yaml")
    return tuple(RawLabel(row["name"], row["id"], row["train_id"], tuple(row["color"])) for row in rows)


@cache
def pascal_context_459_to_59() -> np.ndarray:
    """Returns the table from the detailed ids of PASCAL-Context's .mat files to train ids of "pascal_context".

    Returns:
        (460,) uint8, read-only: 255 for the 400 names that are not among the 59, and for 0. The file values 0..59 are
        `label_set("pascal_context").decode(table[label_map])`.
    """
    table = np.full(460, IGNORE, np.uint8)
    table[list(PASCAL_CONTEXT_459_IDS)] = np.arange(59)
    table.flags.writeable = False
    return table


def voc_colormap(count: int = 256) -> np.ndarray:
    """Returns the first colours of the VOC bit pattern: the bits of an index, three at a time, from the top bit down.

    Args:
        count: Up to 256.

    Returns:
        (count, 3) uint8 RGB, all different.
    """
    index = np.arange(count)
    colors = np.zeros((count, 3), np.int64)
    for bit in range(8):
        triple = (index[:, None] >> (3 * bit + np.arange(3))) & 1  # (count, 3): the bits for red, green, blue
        colors |= triple << (7 - bit)
    return colors.astype(np.uint8)


def load_custom(path: str | os.PathLike) -> LabelSet:
    """Reads a label set from a small YAML file; the format is in the module's docstring.

    Colours that are not given come from the VOC bit pattern, black being kept for a first class named "background".

    Raises:
        UserError: A file that cannot be read or is not as described, naming file and key.
    """
    content = _read_mapping(path)
    class_names, colors = _classes(content, path)
    ids = _ids(content, class_names, path)
    if len(class_names) == 1:  # whatever a network says is right then: a loss of 0, an mIoU of 100 %
        alone = f"classes: [background, {class_names[0]}]"
        raise UserError(f"{path}: one class alone cannot be learnt: name what is not it as well, {alone}")
    return _build(content["name"], class_names, colors, ids)


def _data_file(name: str) -> Path:
    return Path(__file__).with_name("label_sets") / f"{name}.yaml"


def _build(name: str, class_names: tuple[str, ...], colors: np.ndarray, ids: Mapping[int, int]) -> LabelSet:
    id_to_train = np.full(256, INVALID, np.uint8)
    id_to_train[list(ids)] = list(ids.values())
    palette = colors.astype(np.uint8)
    id_to_train.flags.writeable = palette.flags.writeable = False
    return LabelSet(name, class_names, palette, id_to_train)


def _cityscapes(name: str) -> LabelSet:
    raw = cityscapes_raw_labels()
    evaluated = sorted((label for label in raw if label.train_id != IGNORE), key=lambda label: label.train_id)
    if name == "cityscapes":
        ids = {label.id % 256: label.train_id for label in raw}  # -1 is 255 in an eight-bit file
    else:
        ids = {train_id: train_id for train_id in (*range(len(evaluated)), IGNORE)}
    colors = np.array([label.color for label in evaluated])
    return _build(name, tuple(label.name for label in evaluated), colors, ids)


def _with_background(base: LabelSet, name: str) -> LabelSet:
    ids = {raw: int(train) + 1 for raw, train in enumerate(base.id_to_train) if train < base.num_classes}
    ids |= {0: 0, IGNORE: IGNORE}
    return _build(name, ("background", *base.class_names), np.vstack([[0, 0, 0], base.palette]), ids)


def _look_up(values: np.ndarray, table: np.ndarray, allowed: np.ndarray, complaint: str) -> np.ndarray:
    """Returns table[values] as uint8; `allowed` (256,) bool says which values may occur."""
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{complaint}: integers are needed, not {values.dtype}")
    if values.size == 0:
        return np.zeros(values.shape, np.uint8)
    if values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            allowed_wide = (values >= 0) & (values <= 255) & allowed[np.clip(values, 0, 255)]
            raise UserError(_value_error(complaint, values[~allowed_wide], allowed))
        values = values.astype(np.uint8)
    flat = np.ascontiguousarray(values).reshape(1, -1)
    if not cv2.LUT(flat, allowed.astype(np.uint8)).all():
        raise UserError(_value_error(complaint, values[~allowed[values]], allowed))
    return cv2.LUT(flat, table).reshape(values.shape)


def _value_error(complaint: str, bad: np.ndarray, allowed: np.ndarray) -> str:
    found = np.unique(bad).tolist()
    shown = ", ".join(map(str, found[:10])) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    return f"{complaint}: {shown}; it has {_ranges(np.flatnonzero(allowed).tolist())}"


def _ranges(values: list[int]) -> str:
    """Formats sorted integers as ranges: [0, 1, 2, 255] -> "0..2, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _read_mapping(path: str | os.PathLike) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a label set YAML") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: {error}; save it as UTF-8") from error
    content = load_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping with the keys name and classes is needed, not {_kind(content)}")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key '{key}': {did_you_mean(str(key), _KEYS)}")
    for key in ("name", "classes"):
        if key not in content:
            raise UserError(f"{path}: the key '{key}' is missing")
    if not isinstance(content["name"], str) or not content["name"]:
        raise UserError(f"{path}: name must be text, not {_kind(content['name'])}")
    return content


def _classes(content: dict[str, Any], path: str | os.PathLike) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the class names and their colours (num_classes, 3)."""
    entries = content["classes"]
    if not isinstance(entries, list) or not 1 <= len(entries) < INVALID:
        kind = f"{len(entries)} of them" if isinstance(entries, list) else _kind(entries)
        raise UserError(f"{path}: classes must be a list of 2 to {INVALID - 1} classes, not {kind}")
    entries = [entry if isinstance(entry, dict) else {"name": entry} for entry in entries]
    class_names: list[str] = []
    for index, entry in enumerate(entries):
        where = f"{path}: classes[{index}]"
        for key in entry:
            if key not in ("name", "color"):
                raise UserError(f"{where}: unknown key '{key}': {did_you_mean(str(key), ['name', 'color'])}")
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: name must be text, not {_kind(name)}; put it in quotes")
        if set(name) & _BREAKS:
            raise UserError(f"{where}: name {shown(name)} is not one line of text: take the line breaks and tabs out")
        if name in class_names:
            raise UserError(f"{where}: the name '{name}' is already that of classes[{class_names.index(name)}]")
        class_names.append(name)
    first = 0 if class_names[0].lower() == "background" else 1  # black is kept for the background
    colors = voc_colormap()[first : first + len(class_names)]
    for index, entry in enumerate(entries):
        if "color" in entry:
            colors[index] = _color(entry["color"], f"{path}: classes[{index}].color")
    return tuple(class_names), colors


def _color(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or len(value) != 3 or not all(_is_byte(part) for part in value):
        raise UserError(f"{where}: [red, green, blue] with whole numbers 0..255 is needed, not {shown(value)}")
    return value


def _ids(content: dict[str, Any], class_names: tuple[str, ...], path: str | os.PathLike) -> dict[int, int]:
    """Returns file value -> train id."""
    count = len(class_names)
    ids = content.get("ids", {train: train for train in range(count)})
    if not isinstance(ids, dict):
        raise UserError(f"{path}: ids must be a mapping of file value to train id, not {_kind(ids)}")
    for raw, train in ids.items():
        if not _is_byte(raw):
            raise UserError(f"{path}: ids: a file value must be a whole number 0..255, not {shown(raw)}")
        if not _is_byte(train) or (train >= count and train != IGNORE):
            raise UserError(
                f"{path}: ids[{raw}] needs a train id 0..{count - 1} or {IGNORE} (ignored), not {shown(train)}"
            )
    for train in range(count):
        if train not in ids.values():
            raise UserError(f"{path}: ids: no file value stands for '{class_names[train]}' (train id {train})")
    if "ignore" in content:
        ignore = content["ignore"]
        if not _is_byte(ignore):
            raise UserError(f"{path}: ignore must be a whole number 0..255, not {shown(ignore)}")
        if ids.get(ignore, IGNORE) != IGNORE:
            raise UserError(f"{path}: ignore: {ignore} already stands for '{class_names[ids[ignore]]}'; see ids")
        ids = {**ids, ignore: IGNORE}
    return {IGNORE: IGNORE, **ids}


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {shown(value)}"
