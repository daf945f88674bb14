"""Where and from what a run was made: env.json, its schema, and the run's name."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import subprocess
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common.cli import UserError, shown
from common.weights.header import fits, tuples


@dataclass(frozen=True, kw_only=True)
class RunEnvironment:
    """What env.json holds: the schema of the file, for writing and for reading it.

    A field with a default may be missing in a file, as it is in those of before there was such a field.

    Attributes:
        started_utc: When the training began, or went on.
        command: As it was typed, absolute paths shortened to their last part.
        commit: Of the code; "unknown" outside git.
        commit_changed: Whether tracked files differed from it.
        python: Version.
        packages: Versions of the packages that count; None for one that is not installed.
        system: Operating system and processor family.
        cpu: Model of the processor.
        threads: OMP_NUM_THREADS.
        project: Folder under projects/.
        config: Name of the experiment.
        seed: Of everything random.
        scope: "full", "reduced" or "smoke".
        dataset: Its name in tables.
        train_images: Entries of the training list.
        val_images: Entries of the validation list.
        class_names: By train id.
        processes: That train together.
        device: Where the network was.
        trainable_parameters: Numbers that are learnt.
        resumed_at_step: Where the training went on; 0 for a new run.
        torch_threads: Of PyTorch, where it is used.
        precision: "fp32", or the kind of mixed precision, where a project has a choice.
        backbone_weights_sha256: Of the file that the backbone started from.
        finetune_sha256: Of the checkpoint that the network started from.
        data_root: The data set's folder, as it was given.
        data_lists: For each list its number of entries and the SHA-256 of the file: {"entries": 367, "sha256": "..."}.
        classes_sha256: Of classes.yaml, where the data set has one.
    """

    started_utc: str
    command: str
    commit: str
    commit_changed: bool
    python: str
    packages: dict[str, str | None]
    system: str
    cpu: str
    threads: str | None = None
    project: str
    config: str
    seed: int
    scope: str
    dataset: str
    train_images: int
    val_images: int
    class_names: tuple[str, ...]
    processes: int
    device: str
    trainable_parameters: int
    resumed_at_step: int
    torch_threads: int | None = None
    precision: str | None = None
    backbone_weights_sha256: str | None = None
    finetune_sha256: str | None = None
    data_root: str | None = None
    data_lists: dict[str, dict[str, Any]] | None = None
    classes_sha256: str | None = None

    @classmethod
    def here(cls, packages: Sequence[str], **fields: Any) -> RunEnvironment:
        """This process's: time, command, commit, machine and versions of `packages`; `fields` are all others."""
        return cls(**environment(packages), **fields)

    @classmethod
    def from_values(cls, values: Any, where: str | os.PathLike) -> RunEnvironment:
        """Reads what `to_values` gave; keys that this version does not know are left out.

        Raises:
            UserError: A field is missing or not of its type; `where` names the file.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where}: holds {type(values).__name__}, not a mapping: restore it")
        kinds = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name not in values and field.default is dataclasses.MISSING:
                raise UserError(f"{where}: '{field.name}' is missing: restore the file")
            if field.name in values and not fits(values[field.name], kinds[field.name]):
                raise UserError(f"{where}: '{field.name}' is {shown(values[field.name])}: restore the file")
        return cls(**{name: tuples(value) for name, value in values.items() if name in kinds})

    def to_values(self) -> dict[str, Any]:
        """The fields as JSON has them; None where a run has nothing of the kind."""
        return dataclasses.asdict(self)

    @classmethod
    def needed(cls) -> dict[str, type]:
        """The keys that every env.json has, with what JSON gives for them: str, int, bool, dict or list."""
        kinds = typing.get_type_hints(cls)
        plain = {f.name: kinds[f.name] for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        origins = {name: typing.get_origin(kind) or kind for name, kind in plain.items()}
        return {name: list if kind is tuple else kind for name, kind in origins.items()}


def run_id(config_name: str, seed: int, commit: str, day: str | None = None) -> str:
    """<config>_s<seed>_<yyyymmdd>_<commit7>; today (UTC) if no day is given."""
    day = day or datetime.now(UTC).strftime("%Y%m%d")
    return f"{config_name}_s{seed}_{day}_{commit[:7]}"


def git_commit(folder: str | os.PathLike) -> tuple[str, bool]:
    """The commit of the code in `folder`, and whether tracked files differ from it; ("unknown", False) outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
    return head.stdout.strip(), bool(status.stdout.strip())


def environment(packages: Sequence[str], **more: Any) -> dict[str, Any]:
    """When, by what and where a command runs: time, command, commit, machine, versions of `packages`, and `more`."""
    commit, changed = git_commit(Path(__file__).parent)
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        # Words that are no text (a folder's name in another encoding) come as lone surrogates, which no file can hold.
        "command": shlex.join(map(_without_folders, sys.argv)).encode("utf-8", "backslashreplace").decode(),
        "commit": commit,
        "commit_changed": changed,
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **more,
    }


def _without_folders(word: str) -> str:
    """An absolute path shortened to its last part: run files are published, this machine's folders are not."""
    return Path(word).name if os.path.isabs(word) else word


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
