"""Where data sets lie, and what an experiment's `data` section means: the lists that it names, opened.

Finding data never makes data. The toy data sets are drawn by `draw_toy_data`, which the commands call before they look.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from common.cli import UserError, did_you_mean
from common.labels import LabelSet, label_set, load_custom, names
from common.samples.list_dataset import ListDataset
from common.toy_dataset import STANDARD, draw_toy

REPOSITORY = Path(__file__).resolve().parents[2]
TOY_ALIASES = {"toy_cityscapes": "toy_cityscapes_256x512", "toy_ade20k": "toy_ade20k_128x160"}
"""Names of toy data sets in experiments recorded before the size was part of the name."""


def _field(meaning: str, source: str = "ours") -> dataclasses.Field:
    return dataclasses.field(metadata={"meaning": meaning, "source": source})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set of an experiment: list files under a root folder, and the normalisation of its images."""

    dataset: str = _field("name in common/labels.py, custom (classes.yaml in the root), or toy (drawn)", "the original")
    root: str = _field("folder of the data set; data/toy_... is drawn")
    train_list: str = _field("list file of the training images, relative to the root")
    val_list: str = _field("list file of the validation images, relative to the root")
    mean: tuple[float, float, float] = _field("RGB mean of images scaled to 0..1", "ImageNet")
    std: tuple[float, float, float] = _field("RGB standard deviation of images scaled to 0..1", "ImageNet")

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise UserError("std must be positive")
        if min(self.mean) < 0 or max(self.mean + self.std) > 1:
            raise UserError("mean and std must be those of images scaled to 0..1: divide values of 0..255 by 255")


def find_root(root: str | os.PathLike) -> Path | None:
    """An existing folder `root`: as given, from the working directory, or from the repository."""
    candidates = [Path(root), REPOSITORY / root]
    return next((path for path in candidates if path.is_dir()), None)


def with_root(data: DataConfig, root: str | None = None) -> DataConfig:
    """The config with `root` (or its own root) found on this machine.

    Raises:
        UserError: There is no such folder, or no such data set.
    """
    _require_known(data.dataset)
    toy = None if root else toy_name(data)
    wanted = f"data/{toy}" if toy else root or data.root
    found = find_root(wanted)
    if found is None:
        raise UserError(
            f"no data set in '{wanted}' (looked here and in the repository): put it there, name its place with --data, "
            f"or train on the toy data with --config quickstart"
        )
    return dataclasses.replace(data, root=str(found))


def toy_name(data: DataConfig) -> str | None:
    """The name in `STANDARD` of the toy data set that a config trains on; None for other data."""
    root = Path(data.root)
    name = TOY_ALIASES.get(root.name, root.name)
    return name if root.parent == Path("data") and name in STANDARD else None


def draw_toy_data(data: DataConfig, root: str | None = None) -> None:
    """Draws the toy data set that a config trains on, unless other data are given as `root` or it lies there already.

    Every process of a run may call it: one on each machine draws, the others wait for it.
    """
    name = None if root else toy_name(data)
    if name is not None:
        standard = STANDARD[name]
        root = find_root(f"data/{name}") or REPOSITORY / "data" / name
        draw_toy(standard.layout, root, standard.num_train, standard.num_val, standard.size)


def labels_of(data: DataConfig) -> LabelSet:
    """The label set of a config: by name, or classes.yaml in the root for "custom".

    Raises:
        UserError: Unknown name, missing or wrong classes.yaml.
    """
    _require_known(data.dataset)
    if data.dataset == "custom":
        return load_custom(Path(data.root) / "classes.yaml")
    return label_set("cityscapes" if data.dataset == "toy" else data.dataset)


def open_list(data: DataConfig, list_name: str) -> ListDataset:
    """The data set of one list file: relative to the config's root, else to the working directory or the repository.

    Its lines are relative to the root in every case.

    Raises:
        UserError: See `labels_of` and `ListDataset`.
    """
    if not (Path(data.root) / list_name).is_file():
        elsewhere = next((p for p in (Path(list_name), REPOSITORY / list_name) if p.is_file()), None)
        list_name = list_name if elsewhere is None else str(elsewhere.resolve())
    return ListDataset(labels_of(data), data.root, list_name)


def _require_known(dataset: str) -> None:
    valid = [*names(), "custom", "toy"]
    if dataset not in valid:
        raise UserError(f"data.dataset: unknown data set '{dataset}': {did_you_mean(dataset, valid)}")
