"""The toy data set: street scenes drawn from a seed, written in the layout and file formats of any supported set.

    python common/toy_dataset.py cityscapes data/toy_streets
    python common/toy_dataset.py voc data/toy_voc --train 40 --val 10 --height 256 --width 512 --seed 3

Layouts: cityscapes, pascal_context, ade20k, voc, voc_aug, coco, lip (people seen close), sbu (shadows on the ground),
camvid and custom. The same seed gives the same bytes, and image i does not depend on how many there are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from common.cli import CommandParser, UserError, did_you_mean, run_command
from common.files import atomic_write
from common.lists.make import make_lists
from common.toy.layouts import WRITERS, Plan

import filelock


class Standard(NamedTuple):
    """A toy data set that experiments train on: its layout, images in train and val, and their (height, width)."""

    layout: str
    num_train: int
    num_val: int
    size: tuple[int, int]


STANDARD = {
    "toy_cityscapes_128x256": Standard("cityscapes", 200, 50, (128, 256)),
    "toy_cityscapes_256x512": Standard("cityscapes", 200, 50, (256, 512)),
    "toy_ade20k_128x160": Standard("ade20k", 160, 40, (128, 160)),
}
"""Folder name under data/ -> what is drawn there."""

VERSION = 1  # of the drawings: another version means other bytes
DONE = "toy_dataset.json"
BEGUN = ".toy_dataset_begun.json"
SMALLEST, LARGEST = 32, 4096


def write_toy_dataset(
    layout: str,
    root: str | os.PathLike,
    num_train: int = 200,
    num_val: int = 50,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
) -> Path:
    """Writes the toy data set, or returns at once where it already lies.

    `toy_dataset.json` with these arguments is written last; a run that was stopped is completed by the next call.

    Args:
        layout: One of `layouts()`.
        root: Folder for the data set: new, empty, or one that an earlier call with the same arguments wrote.
        num_train: Images in train (voc_aug: in VOC train + SBD without VOC val).
        num_val: Images in val. Layouts with a test split (and Cityscapes' coarse extra) have a fifth of it there.
        size: (height, width) of all images.
        seed: Not negative.

    Returns:
        The root.

    Raises:
        UserError: An argument out of range, or a folder that holds something else.
    """
    _check_arguments(layout, num_train, num_val, size, seed)
    root = Path(root)
    marker = {
        "layout": layout,
        "num_train": num_train,
        "num_val": num_val,
        "size": list(size),
        "seed": seed,
        "version": VERSION,
    }
    if _is_complete(root, marker):
        return root
    with atomic_write(root / BEGUN) as stream:
        json.dump(marker, stream)
    WRITERS[layout](Plan(root, num_train, num_val, tuple(size), seed))
    with atomic_write(root / DONE) as stream:
        json.dump(marker, stream, indent=2)
    (root / BEGUN).unlink(missing_ok=True)
    return root


def draw_toy(layout: str, root: str | os.PathLike, num_train: int, num_val: int, size: tuple[int, int]) -> None:
    """Draws a toy data set into `root`, with its lists; returns at once where it lies already.

    Processes that call it together wait for the one that draws: a lock on a file beside the folder, on each machine.

    Raises:
        UserError: The folder holds something else.
    """
    root = Path(root)
    if (root / "train.txt").is_file():  # the last that is written
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root.with_name(f".{root.name}.lock")):
        if not (root / "train.txt").is_file():
            print(f"drawing the toy data set: {num_train} + {num_val} images into {root}", flush=True)
            write_toy_dataset(layout, root, num_train, num_val, size)
            make_lists(layout, root)


def layouts() -> list[str]:
    """Returns the names of the layouts."""
    return list(WRITERS)


def _check_arguments(layout: str, num_train: int, num_val: int, size: tuple[int, int], seed: int) -> None:
    if layout not in WRITERS:
        raise UserError(f"unknown layout '{layout}': {did_you_mean(layout, layouts())}")
    for name, value in (("num_train", num_train), ("num_val", num_val)):
        if not 1 <= value <= 99_999:
            raise UserError(f"toy data set: {name} must be 1 to 99999, not {value}")
    for name, value in zip(("height", "width"), size, strict=True):
        if not SMALLEST <= value <= LARGEST:
            raise UserError(f"toy data set: {name} must be {SMALLEST} to {LARGEST} pixels, not {value}")
    if seed < 0:
        raise UserError(f"toy data set: seed must not be negative, it is {seed}")


def _is_complete(root: Path, marker: dict) -> bool:
    """Tells a finished data set (True) from an empty or half-written one (False).

    Raises:
        UserError: A folder that holds other files, or a toy data set of other arguments.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; name a folder for the toy data set")
    for name in (DONE, BEGUN):
        if (root / name).exists():
            _require_same(root / name, marker)
            return name == DONE
    if root.is_dir() and any(entry.name[0] != "." for entry in root.iterdir()):
        raise UserError(f"{root}: already holds other files; name a new or empty folder for the toy data set")
    return False


def _require_same(path: Path, marker: dict) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not readable as JSON; delete the folder or choose another")
    for key, wanted in marker.items():
        if found.get(key) != wanted:
            there = f"a toy data set with {key} {found.get(key)}, not {wanted}"
            raise UserError(f"{path.parent}: holds {there}; choose another folder or delete this one")


def main() -> None:
    """Parses the command line and writes the data set."""
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("layout", metavar="LAYOUT", help=", ".join(layouts()))
    add("root", metavar="ROOT", help="folder to write into")
    add("--train", type=int, default=200, metavar="N", help="images in train (default: 200)")
    add("--val", type=int, default=50, metavar="N", help="images in val (default: 50)")
    add("--height", type=int, default=128, metavar="PIXELS", help="of the images (default: 128)")
    add("--width", type=int, default=256, metavar="PIXELS", help="of the images (default: 256)")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same bytes (default: 0)")
    args = parser.parse_args()
    size = (args.height, args.width)
    root = write_toy_dataset(args.layout, args.root, args.train, args.val, size, args.seed)
    print(f"{root}: toy data set, layout {args.layout}, {args.train} + {args.val} images of {size[0]}x{size[1]}")


if __name__ == "__main__":
    run_command(main)
