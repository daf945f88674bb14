"""Where data sets lie: `data/<name>` under the working directory, else under the repository."""

from __future__ import annotations

import dataclasses

from common.cli import UserError
from common.samples.list_dataset import REPOSITORY, draw_toy, find_root
from semsegpaddle_glore.config import TRAIN_IMAGES, DataConfig

import paddle.distributed as dist

TOY_VAL, TOY_SIZE = 50, (128, 256)


def with_root(data: DataConfig, root: str | None = None) -> DataConfig:
    """The config with `root` (or its own root) found on this machine; the embedded data set is drawn when missing.

    Raises:
        UserError: There is no such folder.
    """
    wanted = root or data.root
    found = find_root(wanted)
    if data.dataset == "toy" and root is None:
        found = found or REPOSITORY / wanted
        if dist.get_rank() == 0:
            draw_toy("cityscapes", found, TRAIN_IMAGES["toy"], TOY_VAL, TOY_SIZE)
        if dist.get_world_size() > 1:
            dist.barrier()
    if found is None:
        raise UserError(
            f"no data set in '{wanted}' (looked here and in the repository): put it there, name its place with --data, "
            f"or train on the embedded data with --config quickstart"
        )
    return dataclasses.replace(data, root=str(found))
