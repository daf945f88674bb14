"""Where data sets lie: `data/<name>` under the working directory, else under the repository."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
from common.cli import UserError
from common.dataset_list import make_lists
from common.toy_dataset import write_toy_dataset
from stdc_seg.config import DataConfig

import paddle.distributed as dist

REPOSITORY = Path(common.__file__).resolve().parents[1]
TOY_TRAIN, TOY_VAL, TOY_SIZE = 200, 50, (256, 512)


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
        found = found or REPOSITORY / wanted
        _draw_toy_dataset(found)
    if found is None:
        raise UserError(
            f"no data set in '{wanted}' (looked here and in the repository): put it there, name its place with --data, "
            f"or train on the embedded data with --config quickstart"
        )
    return dataclasses.replace(data, root=str(found))


def _draw_toy_dataset(root: Path) -> None:
    if not (root / "train.txt").is_file():
        if dist.get_rank() == 0:
            print(f"drawing the embedded data set: {TOY_TRAIN} + {TOY_VAL} street scenes into {root}", flush=True)
            write_toy_dataset("cityscapes", root, TOY_TRAIN, TOY_VAL, TOY_SIZE)
            make_lists("cityscapes", root)
        if dist.get_world_size() > 1:
            dist.barrier()
