"""The names of the data sets: what `--dataset` and the downloader accept, and what they stand for in `common`."""

from __future__ import annotations

from dataclasses import dataclass

from common.cli import UserError, did_you_mean


@dataclass(frozen=True)
class DatasetName:
    """A data set under the name that the original project's users know.

    Attributes:
        name: What `--dataset` is called with.
        aliases: Other spellings: of the original's demo names ("ade"), of the downloader, of `common`.
        layout: The name in `common.lists.layouts` and `common.toy_dataset`.
        label_set: The name in `common.labels`; None where classes.yaml in the root says what the labels hold.
        folder: Where it lies by default, below data/.
        train_list, val_list: The list files, relative to the root.
    """

    name: str
    aliases: tuple[str, ...]
    layout: str
    label_set: str | None
    folder: str
    train_list: str = "train.txt"
    val_list: str = "val.txt"


DATASETS = (
    DatasetName("pascal_voc", ("voc",), "voc", "voc", "voc"),
    # The same folder as pascal_voc: SBD adds to VOC2012, nobody has to fetch that twice.
    DatasetName("pascal_aug", ("voc_aug",), "voc_aug", "voc", "voc", train_list="train_aug.txt"),
    DatasetName("ade20k", ("ade",), "ade20k", "ade20k", "ade20k"),
    DatasetName("citys", ("cityscapes",), "cityscapes", "cityscapes", "cityscapes"),
    DatasetName("coco", (), "coco", "coco", "coco"),
    # SBU has no val split: the original evaluates on its test split.
    DatasetName("sbu", ("sbu_shadow",), "sbu", "sbu", "sbu", val_list="test.txt"),
    DatasetName("lip", (), "lip", "lip", "lip"),
    DatasetName("camvid", (), "camvid", "camvid", "camvid"),
    DatasetName("custom", (), "custom", None, "custom"),
)
"""Every data set of the project, in the order of its documentation."""


def dataset_name(name: str) -> DatasetName:
    """Finds a data set by its name or an alias.

    Raises:
        UserError: An unknown name, with the nearest valid one.
    """
    for dataset in DATASETS:
        if name in (dataset.name, *dataset.aliases):
            return dataset
    valid = [spelling for dataset in DATASETS for spelling in (dataset.name, *dataset.aliases)]
    raise UserError(f"unknown data set '{name}': {did_you_mean(name, valid)}")
