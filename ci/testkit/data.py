"""Small data sets to train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("one", "two", "three")


def write_data(
    root: Path,
    count: int = 6,
    size: tuple[int, int] = (72, 80),
    names: Sequence[str] = ("one", "{name: two, color: [9, 8, 7]}", "three"),
    values: Sequence[int] | None = None,
    block: int = 8,
    cityscapes: bool = False,
) -> Path:
    """Images of coloured squares with their labels, 2/3 in train.txt and the rest in val.txt.

    Args:
        root: Folder for the images, their labels, the lists and classes.yaml; made if missing.
        count: Images in all.
        size: Their (height, width).
        names: The classes as they stand in classes.yaml; by default `CLASSES`, one with a colour of its own.
        values: What the label files hold for each class, for a data set that has its own table: no classes.yaml then.
        block: Side of the squares in pixels.
        cityscapes: Whether the files lie in the folders of Cityscapes, as paddleseg wants them, instead of as N.png
            and N_label.png.

    Returns:
        The root.
    """
    rng = np.random.default_rng(0)
    classes, split = len(names if values is None else values), count * 2 // 3
    colors = rng.integers(0, 256, (classes, 3))
    lists = {"train": "", "val": ""}
    for i in range(count):
        blocks = rng.integers(0, classes, (-(-size[0] // block), -(-size[1] // block))).astype(np.uint8)
        label = blocks.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]
        image = np.clip(colors[label] + rng.normal(0, 20, (*size, 3)), 0, 255).astype(np.uint8)
        stored = label if values is None else np.array(values, np.uint8)[label]
        name = "train" if i < split else "val"
        pair = (f"{i}.png", f"{i}_label.png")
        if cityscapes:
            pair = (f"leftImg8bit/{name}/town/{i}_leftImg8bit.png", f"gtFine/{name}/town/{i}_gtFine_labelTrainIds.png")
        for path, pixels in zip(pair, (image, stored), strict=True):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / path), pixels)
        lists[name] += ",".join(pair) + "\n"
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text(lines)
    if values is None:
        (root / "classes.yaml").write_text(f"name: squares\nclasses: [{', '.join(names)}]\n")
    return root
