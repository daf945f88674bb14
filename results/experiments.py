"""The experiments whose numbers can stand beside published ones: `experiments.yaml`, read strictly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from common.cli import UserError
from common.config.typed import config_from_text
from results.paper_numbers import Row, is_from_memory, read_numbers

import yaml

FILE = Path(__file__).with_name("experiments.yaml")


@dataclasses.dataclass(frozen=True)
class PaperKey:
    """Which row of paper_numbers.csv is meant: every cell given here must be equal, and only one row may fit."""

    model: str
    dataset: str
    split: str
    value: float
    metric: str = "mIoU"

    def row(self, numbers: tuple[Row, ...]) -> Row:
        """The row.

        Raises:
            UserError: None fits, or several.
        """
        texts = {"model": self.model, "dataset": self.dataset, "split": self.split, "metric": self.metric}
        rows = [
            row
            for row in numbers
            if float(row["value"]) == self.value and all(row[key] == text for key, text in texts.items())
        ]
        if len(rows) != 1:
            raise UserError(f"find: {len(rows)} rows of paper_numbers.csv fit {self}: exactly one must")
        return rows[0]


@dataclasses.dataclass(frozen=True)
class ReferenceEntry:
    """A published number as experiments.yaml names it; the keys are explained there."""

    kind: Literal["paper", "original", "re-run"]
    find: PaperKey | None = None
    value: float | None = None
    split: str | None = None
    source: str | None = None
    measured_as: str | None = None
    why: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        own = [self.value, self.split, self.source]
        if (self.find is None) == (None in own) or (self.find is not None and own != [None] * 3):
            raise UserError("a reference has either 'find' or all of 'value', 'split' and 'source'")
        if self.measured_as is not None and self.why is not None:
            raise UserError("a reference has 'measured_as' or 'why', not both")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A published number.

    Attributes:
        kind: Of the paper (or its authors' code), of the project that ours is modelled on, or of somebody's re-run.
        value: mIoU in per cent.
        split: What it was measured on.
        source: Where it stands.
        from_memory: Nobody has looked it up.
        pretrained: "ImageNet", "none"..., or "" where the number is not in paper_numbers.csv.
        measured_as: The protocol of ours that is the same, or None.
        why: Why none is.
        note: What else differs.
    """

    kind: str
    value: float
    split: str
    source: str
    from_memory: bool
    pretrained: str
    measured_as: str | None
    why: str | None
    note: str | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment; the keys are explained in experiments.yaml."""

    project: str
    config: str
    model: str
    data: str
    protocol: str
    command: str
    needs: str
    references: tuple[ReferenceEntry, ...]
    split: str = "val"
    scope: Literal["full", "reduced"] = "full"
    iters: int = 0
    gpu_hours: float | None = None
    cpu_core_hours: float | None = None
    hours_source: str | None = None

    def __post_init__(self) -> None:
        if self.scope == "full" and not (self.iters and self.hours_source and (self.gpu_hours or self.cpu_core_hours)):
            raise UserError(f"{self.project}/{self.config}: a full experiment states iters, hours and hours_source")

    @property
    def hours(self) -> str:
        """The expected hours in words, or ""."""
        if self.gpu_hours is not None:
            return f"{self.gpu_hours:g} GPU h"
        return "" if self.cpu_core_hours is None else f"{self.cpu_core_hours:g} CPU core h"


@dataclasses.dataclass(frozen=True)
class Superseded:
    """A recorded run whose code or recipe has changed since: folded away in the tables, its weights are not kept."""

    run: str
    why: str


@dataclasses.dataclass(frozen=True)
class Overlay:
    """Rows whose curves are drawn into one image, as one network in two frameworks.

    Attributes:
        name: Of the image in results/curves/together/.
        title: Above the curves.
        rows: project/config of each row that is drawn.
    """

    name: str
    title: str
    rows: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _File:
    experiments: tuple[Experiment, ...]
    superseded: tuple[Superseded, ...] = ()
    overlays: tuple[Overlay, ...] = ()


def read_experiments(path: Path = FILE) -> dict[tuple[str, str], Experiment]:
    """(project, config) -> experiment, in the order of the file.

    Raises:
        UserError: A mistake in the file, or an experiment that is there twice.
    """
    file = _read(path)
    experiments = {(entry.project, entry.config): entry for entry in file.experiments}
    if len(experiments) < len(file.experiments):
        raise UserError(f"{path}: an experiment is there twice")
    return experiments


def read_superseded(path: Path = FILE) -> dict[str, str]:
    """project/run -> what has changed since.

    Raises:
        UserError: A mistake in the file.
    """
    return {entry.run: entry.why for entry in _read(path).superseded}


def read_overlays(path: Path = FILE) -> tuple[Overlay, ...]:
    """The images that show several rows.

    Raises:
        UserError: A mistake in the file.
    """
    return _read(path).overlays


def _read(path: Path) -> _File:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))  # resolves the file's anchors and merges
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return config_from_text(_File, yaml.safe_dump(tree, sort_keys=False), str(path))


def references_of(experiment: Experiment, numbers: tuple[Row, ...] | None = None) -> tuple[Reference, ...]:
    """The published numbers of an experiment.

    Raises:
        UserError: A number is not in paper_numbers.csv, or neither measured_as nor why is given.
    """
    numbers = read_numbers() if numbers is None else numbers
    return tuple(_resolved(entry, experiment, numbers) for entry in experiment.references)


def _resolved(entry: ReferenceEntry, experiment: Experiment, numbers: tuple[Row, ...]) -> Reference:
    if entry.find is None:
        source, from_memory, pretrained = entry.source, False, ""
        value, split = entry.value, entry.split
    else:
        row = entry.find.row(numbers)
        source, from_memory, pretrained = row["source"], is_from_memory(row), row["pretrained"]
        value, split = float(row["value"]), row["split"]
    if entry.measured_as is None and entry.why is None:
        where = f"{experiment.project}/{experiment.config}, {entry.kind} {value}"
        raise UserError(f"{FILE.name}: {where}: say 'measured_as', or 'why' it is not comparable")
    return Reference(
        kind=entry.kind,
        value=value,
        split=split,
        source=source,
        from_memory=from_memory,
        pretrained=pretrained,
        measured_as=entry.measured_as,
        why=entry.why,
        note=entry.note,
    )
