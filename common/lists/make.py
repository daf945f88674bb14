"""Making the lists of a data set: its labels converted where they must be, its pairs found, its list files written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from common.cli import UserError
from common.files import atomic_write
from common.lists.convert import convert_labels, converts_always
from common.lists.layouts import FoundPairs, find_pairs
from common.lists.list_file import format_list


class MadeLists(NamedTuple):
    """What `make_lists` did.

    Attributes:
        found: The pairs behind the lists, and what was left out.
        files: List name -> the file written.
        converted: The number of label PNGs written.
    """

    found: FoundPairs
    files: dict[str, Path]
    converted: int


def make_lists(
    dataset: str,
    root: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    separator: str = ",",
    labels: str | None = None,
    convert: bool = False,
    overwrite: bool = False,
    csv_file: str | os.PathLike | None = None,
    classes: str | os.PathLike | None = None,
) -> MadeLists:
    """Finds a data set's pairs and writes its lists. All lists are ready before the first is written.

    Args:
        dataset: A key of `lists.layouts.LAYOUTS`.
        root: The data set's folder, by default data/<name>; the paths in the lists are relative to it.
        output: Where the lists go; the root by default.
        separator: One of `lists.list_file.SEPARATORS`.
        labels: "trainIds" or "labelIds" for cityscapes, "coco" or "coco80" for coco.
        convert: Write label PNGs that are missing first; voc_aug and coco always do.
        overwrite: Replace lists that are there with another content.
        csv_file: For custom: a table of image,label[,split].
        classes: For custom with `convert`: the label set YAML with the colours of the masks.

    Raises:
        UserError: See `find_pairs`, `convert_labels` and `format_list`; a list with another content that is in the way.
    """
    converted = convert_labels(dataset, root, labels, classes) if convert or converts_always(dataset) else 0
    found = find_pairs(dataset, root, labels, csv_file)
    folder = Path(output) if output is not None else found.root
    files = {name: folder / f"{name}.txt" for name in found.lists}
    texts = {name: format_list(pairs, found.root, separator) for name, pairs in found.lists.items()}
    if not overwrite:
        in_the_way = [str(path) for name, path in files.items() if _differs(path, texts[name])]
        if in_the_way:
            raise UserError(
                f"{', '.join(in_the_way)}: there already, and different; --overwrite replaces, or choose --output"
            )
    for name, path in reversed(files.items()):  # train.txt last: where it is, all are, whenever this was killed
        with atomic_write(path) as stream:
            stream.write(texts[name])
    return MadeLists(found, files, converted)


def _differs(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() != text.encode()
