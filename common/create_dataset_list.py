"""Makes the image/label lists of a data set; checks them; counts their classes.

    python common/create_dataset_list.py cityscapes                 # data/cityscapes -> train.txt val.txt test.txt ...
    python common/create_dataset_list.py cityscapes DIR --convert   # writes missing labelTrainIds first
    python common/create_dataset_list.py ./data/cityscapes/ --type cityscapes --separator ","     # PaddleSeg's spelling
    python common/create_dataset_list.py custom DIR                 # DIR/images/{train,val}, DIR/labels/{train,val}
    python common/create_dataset_list.py custom DIR --csv pairs.csv # columns image,label and, if you like, split
    python common/create_dataset_list.py check cityscapes [DIR]     # every file opened; exit status 1 on a problem
    python common/create_dataset_list.py check custom DIR --classes classes.yaml
    python common/create_dataset_list.py check my_train.txt my_val.txt --root DIR --classes classes.yaml
    python common/create_dataset_list.py stats cityscapes [DIR] --output classes.csv

A list holds an image and its label per line, as paths from the data set's folder; every project reads it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from common.cli import CommandParser, UserError, did_you_mean, few, run_command
from common.files import atomic_write
from common.labels import LabelSet, label_set, load_custom, names
from common.lists.check import check_lists
from common.lists.layouts import LAYOUTS, FoundPairs, find_pairs, layout_of
from common.lists.list_file import SEPARATORS, Pair, read_list
from common.lists.make import make_lists
from common.lists.scan import LabelStats, label_stats

import numpy as np

_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"check": _check, "stats": _stats}
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    if words and words[0] not in LAYOUTS and get_close_matches(words[0], commands, cutoff=0.6):
        raise UserError(f"unknown command '{words[0]}': {did_you_mean(words[0], [*commands, *LAYOUTS])}")
    return _create(words)


def _create(words: list[str]) -> int:
    parser = CommandParser(__doc__, prog="create_dataset_list.py")
    data = parser.add_argument_group("data set")
    data.add_argument("dataset", help=f"{', '.join(LAYOUTS)}; or the folder, with --type")
    data.add_argument("root", nargs="?", help="the data set's folder (default: data/<data set>)")
    type_help = "the data set, when the first word is its folder (default: the first word)"
    data.add_argument("--type", metavar="NAME", help=type_help)
    csv_help = "custom: a table of image,label[,split] (default: folders images/ and labels/)"
    data.add_argument("--csv", metavar="FILE", help=csv_help)
    labels = parser.add_argument_group("labels")
    kind_help = "cityscapes: trainIds or labelIds; coco: coco or coco80 (default: the first of them)"
    labels.add_argument("--labels", metavar="KIND", help=kind_help)
    labels.add_argument("--convert", action="store_true", help="write missing label PNGs first (voc_aug, coco: always)")
    classes_help = "custom --convert: label set with the masks' colours (default: classes.yaml in the folder)"
    labels.add_argument("--classes", metavar="FILE", help=classes_help)
    output = parser.add_argument_group("list files")
    separator_help = f"{', '.join(SEPARATORS)} or the character itself (default: comma)"
    output.add_argument("--separator", default=",", metavar="NAME", help=separator_help)
    output.add_argument("--output", metavar="DIR", help="where the lists go (default: the data set's folder)")
    output.add_argument("--overwrite", action="store_true", help="replace lists that are there and differ")
    args = parser.parse_args(words)
    dataset, root = (args.type, args.dataset) if args.type else (args.dataset, args.root)
    if args.type and args.root:
        raise UserError(f"--type takes one folder, two words were given: leave out '{args.root}'")
    made = make_lists(
        dataset,
        root,
        output=args.output,
        separator=args.separator,
        labels=args.labels,
        convert=args.convert,
        overwrite=args.overwrite,
        csv_file=args.csv,
        classes=args.classes,
    )
    if made.converted:
        print(f"{made.converted} label files written")
    for name, path in made.files.items():
        print(f"{path}: {len(made.found.lists[name])} lines")
    if args.separator in (",", "comma") and any('"' in path.read_text("utf-8") for path in made.files.values()):
        print("note: paths with a comma are quoted; PaddleSeg cannot read those lines, --separator tab is for it")
    _print_left_out(made.found)
    return 0


def _print_left_out(found: FoundPairs) -> None:
    for note in found.notes:
        print(f"note: {note}")
    for what, paths in (
        ("images without label", found.images_without_label),
        ("labels without image", found.labels_without_image),
    ):
        if paths:
            print(f"warning: {len(paths)} {what}, left out: {few(paths, _SHOWN)}", file=sys.stderr)


class Target(NamedTuple):
    """What `check` and `stats` look at: the lists by name, what their labels hold, and what is in no list."""

    lists: dict[str, list[Pair]]
    labels: LabelSet
    found: FoundPairs


def _check(words: list[str]) -> int:
    parser, options = _target_parser("check", "Opens every image and label; exit status 1 if anything is wrong.")
    options.add_argument("--fast", action="store_true", help="read only the headers of images (labels are read whole)")
    args = parser.parse_args(words)
    target = _target(args)
    report = check_lists(
        target.lists,
        target.labels,
        target.found.root,
        fast=args.fast,
        images_without_label=target.found.images_without_label,
        labels_without_image=target.found.labels_without_image,
    )
    for note in target.found.notes:
        print(f"note: {note}")
    print(report.table())
    return 0 if report.ok else 1


def _stats(words: list[str]) -> int:
    parser, options = _target_parser(
        "stats", "Pixel share, ENet and median-frequency weight of each class, over one list."
    )
    options.add_argument("--split", metavar="NAME", help="which list (default: the first whose name begins with train)")
    output_help = "also write the table there, as CSV (default: printed only)"
    options.add_argument("--output", metavar="FILE", help=output_help)
    args = parser.parse_args(words)
    target = _target(args)
    name = args.split or next((name for name in target.lists if name.startswith("train")), next(iter(target.lists)))
    if name not in target.lists:
        raise UserError(f"no list '{name}': {did_you_mean(name, list(target.lists))}")
    stats = label_stats(target.lists[name], target.labels)
    rows = _stats_rows(stats)
    print(f"{stats.num_files} labels of {name}, {100 * stats.ignored_share:.2f} % of the pixels ignored")
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"absent classes: {', '.join(stats.absent) or 'none'}")
    if args.output:
        with atomic_write(args.output) as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
    return 0


def _stats_rows(stats: LabelStats) -> list[list[object]]:
    """Returns a header and one row for each class; a weight that is not defined is empty."""
    header = ["id", "name", "pixels", "share_percent", "files", "enet_weight", "median_frequency_weight"]
    columns = zip(
        stats.labels.class_names,
        stats.pixels.tolist(),
        100 * stats.share,
        stats.files.tolist(),
        stats.enet_weights,
        stats.median_frequency_weights,
        strict=True,
    )
    return [
        header,
        *(
            [index, name, pixels, f"{share:.4f}", files, f"{enet:.4f}", "" if np.isnan(median) else f"{median:.4f}"]
            for index, (name, pixels, share, files, enet, median) in enumerate(columns)
        ),
    ]


def _target(args: argparse.Namespace) -> Target:
    """Turns the words after `check` or `stats` into lists."""
    first = args.target[0]
    if first in LAYOUTS:
        if len(args.target) > 2:
            raise UserError(f"{first} takes one folder: leave out '{args.target[2]}'")
        root = args.target[1] if len(args.target) == 2 else args.root
        found = _found(first, root, args.labels)
        labels = _label_set(args, layout_of(first).label_set, found.root)
        files = {name: found.root / f"{name}.txt" for name in found.lists}
        lists = {name: read_list(path, check_files=False) for name, path in files.items() if path.exists()}
        if not lists:
            found.notes.append(f"no lists in {found.root}: the pairs are those that create_dataset_list.py would list")
        return Target(lists or found.lists, labels, found)
    paths = [Path(word) for word in args.target]
    if paths[0].is_dir():
        raise UserError(f"{first} is a folder: put the data set's name before it, such as: cityscapes {first}")
    if not paths[0].exists() and not paths[0].suffix:
        raise UserError(f"'{first}' is no list file and no data set: {did_you_mean(first, list(LAYOUTS))}")
    root = Path(args.root) if args.root else paths[0].parent
    lists = {path.stem: read_list(path, root, check_files=False) for path in paths}
    return Target(lists, _label_set(args, None, root), FoundPairs(root))


def _found(dataset: str, root: str | None, labels: str | None) -> FoundPairs:
    """Finds the pairs with the first kind of labels that is there."""
    kinds = [labels] if labels else layout_of(dataset).label_kinds
    for kind in kinds[:-1]:
        try:
            return find_pairs(dataset, root, kind)
        except UserError:
            continue
    return find_pairs(dataset, root, kinds[-1])


def _label_set(args: argparse.Namespace, of_dataset: str | None, root: Path) -> LabelSet:
    if args.type:
        return label_set(args.type)
    if args.classes:
        return load_custom(args.classes)
    if of_dataset:
        return label_set(of_dataset)
    if (root / "classes.yaml").is_file():
        return load_custom(root / "classes.yaml")
    raise UserError(
        f"what the labels hold is not known: give --classes FILE (there is no {root / 'classes.yaml'}) or --type NAME, "
        f"one of {', '.join(names())}"
    )


def _target_parser(command: str, description: str) -> tuple[CommandParser, argparse._ArgumentGroup]:
    """The parser of `check` or `stats`, and the group that takes the options of one of them."""
    parser = CommandParser(f"{description}\n\n{__doc__}", prog=f"create_dataset_list.py {command}")
    lists = parser.add_argument_group("lists")
    lists.add_argument("target", nargs="+", help="a data set, with its folder if you like; or list files")
    root_help = "what the paths in list files are relative to (default: their folder)"
    lists.add_argument("--root", metavar="DIR", help=root_help)
    labels = parser.add_argument_group("labels")
    labels.add_argument("--classes", metavar="FILE", help="label set YAML (default: ROOT/classes.yaml)")
    type_help = f"label set (default: the data set's): {', '.join(names())}"
    labels.add_argument("--type", metavar="NAME", help=type_help)
    kind_help = "cityscapes: trainIds or labelIds; coco: coco or coco80 (default: the first that is there)"
    labels.add_argument("--labels", metavar="KIND", help=kind_help)
    return parser, parser.add_argument_group("what is done")


if __name__ == "__main__":
    run_command(main)
