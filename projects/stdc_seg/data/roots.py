"""Where data sets lie: `data/<name>` under the working directory, else under the repository."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
from common.cli import UserError
from stdc_seg.config import DataConfig

REPOSITORY = Path(common.__file__).resolve().parents[1]


def find_root(root: str) -> Path | None:
    """An existing folder `root`: as given, from the working directory, or from the repository."""
    candidates = [Path(root), REPOSITORY / root]
    return next((path for path in candidates if path.is_dir()), None)


def with_root(data: DataConfig, root: str | None = None) -> DataConfig:
    """The config with `root` (or its own root) found on this machine; the embedded data set is drawn when missing.

    Raises:
        UserError: There is no such folder.
    """
    wanted = root or data.root
    found = find_root(wanted)
    if data.dataset == "toy" and root is None:
        from common.dataset_list import write_dataset_lists
        from common.toy_dataset import write_toy_dataset

        found = found or REPOSITORY / wanted
        write_toy_dataset("cityscapes", found)
        if not (found / data.train_list).is_file():
            write_dataset_lists("cityscapes", found)
    if found is None:
        raise UserError(
            f"no data set in '{wanted}' (looked here and in the repository): put it there, name its place with --data, "
            f"or train on the embedded data with --config quickstart"
        )
    return dataclasses.replace(data, root=str(found))
