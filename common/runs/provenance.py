"""Which data a run saw: the folder, and the digests of its lists and of its classes; a resumed run sees the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from common.cli import UserError
from common.files import sha256_of
from common.runs.environment import RunEnvironment
from common.runs.plan import recorded_environment


class Listed(Protocol):
    """What a list file names, such as `common.samples.list_dataset.ListDataset`."""

    path: Path

    def __len__(self) -> int:
        """The number of its entries."""


def data_seen(given: str | os.PathLike, root: str | os.PathLike, *datasets: Listed) -> dict[str, Any]:
    """What env.json says of the data: see `data_root`, `data_lists` and `classes_sha256` of `RunEnvironment`.

    Args:
        given: The folder as it stands in the command or in the config.
        root: Where that was found.
        datasets: Of its lists.
    """
    lists = {_name(dataset, root): {"entries": len(dataset), "sha256": sha256_of(dataset.path)} for dataset in datasets}
    classes = Path(root) / "classes.yaml"
    return {
        "data_root": os.fspath(given),
        "data_lists": lists,
        "classes_sha256": sha256_of(classes) if classes.is_file() else None,
    }


def refuse_other_data(recorded: RunEnvironment | None, seen: dict[str, Any], folder: Path) -> None:
    """A resumed run keeps its data; a run of before such things were recorded is not judged.

    Args:
        recorded: What the run's env.json says.
        seen: `data_seen` of what lies there now.
        folder: The run folder.

    Raises:
        UserError: A list, or classes.yaml, is another one.
    """
    if recorded is None or recorded.data_lists is None:
        return
    old, new = recorded.data_lists, seen["data_lists"]
    changed = [name for name in new if name in old and new[name]["sha256"] != old[name].get("sha256")]
    if recorded.classes_sha256 not in (None, seen["classes_sha256"]):
        changed.append("classes.yaml")
    if not changed:
        return
    first, detail = changed[0], ""
    if first in new:
        detail = f" ({first} had {old[first].get('entries')} entries, has {new[first]['entries']})"
    raise UserError(
        f"{', '.join(changed)} in {seen['data_root']} is not what {folder} was trained with{detail}: "
        f"name the folder of its data with --data, or start a new run"
    )


def root_of_run(recorded: RunEnvironment | None, config_root: str) -> str | None:
    """The data set's folder of a run, if it was not the one of its config."""
    root = None if recorded is None else recorded.data_root
    return None if root == config_root else root


def root_of_weights(weights: str | os.PathLike, config_root: str) -> str | None:
    """The same for a checkpoint beside its run's files; None for one that lies elsewhere."""
    return root_of_run(recorded_environment(Path(weights).parent), config_root)


def _name(dataset: Listed, root: str | os.PathLike) -> str:
    """A list's path in the root, or its name where it is elsewhere."""
    path = dataset.path
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
