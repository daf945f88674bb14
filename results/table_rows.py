"""Rows of the tables: runs of one experiment over its seeds, beside the published numbers; and what was not run."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from results.experiments import Experiment, Reference, references_of
from results.paper_numbers import Row as NumberRow
from results.recorded_runs import RecordedRun, Series

SEED_LINE = re.compile(r"^\s+seed: \d+\n", re.MULTILINE)
COMPARABLE = "comparable"  # what a row that was not run says of a number measured in the same way
SEED_DECIDES = 0.7  # points of mIoU between runs that differ in the seed alone (open-mmlab/mmsegmentation, issue 255)
SCOPE_ORDER = {"full": 0, "reduced": 1, "smoke": 2}


@dataclass(frozen=True)
class Spread:
    """A score over seeds: mean, sample standard deviation (None for one seed), and how many."""

    mean: float
    std: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Comparison:
    """A published number beside ours.

    Attributes:
        reference: The published number.
        delta: Ours minus theirs in points, or None where they cannot be compared or ours is not there.
        why: Why they cannot be compared, or what else differs where they can; "" where ours is yet to come.
    """

    reference: Reference
    delta: float | None
    why: str

    def __str__(self) -> str:
        if self.delta is None:
            return f"not comparable: {self.why}" if self.why else COMPARABLE
        return f"{self.delta:+.2f}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class TableRow:
    """One experiment on one split under one protocol.

    Attributes:
        row_id: What `reproduce.py` is called with: project/run of the newest run, or project/config where nothing ran.
        runs: The newest run of each seed, newest first; empty: not run.
        series: What each of them measured.
        command: What to type in the project's folder where nothing ran, in the repository's root else.
        hours: What the full run is expected to take; "" where it ran.
        needs: What it needs; "" where it ran.
    """

    row_id: str
    project: str
    config: str
    model: str
    data: str
    split: str
    protocol: str
    scope: str
    runs: tuple[RecordedRun, ...]
    series: tuple[Series, ...]
    comparisons: tuple[Comparison, ...]
    command: str
    hours: str = ""
    hours_source: str = ""
    needs: str = ""

    @property
    def best(self) -> Spread | None:
        """The mIoU of each run's best checkpoint by validation."""
        return _spread([series.best.miou_percent for series in self.series])

    @property
    def last(self) -> Spread | None:
        """The mIoU at each run's last step."""
        return _spread([series.last.miou_percent for series in self.series])

    @property
    def seeds(self) -> str:
        """In words."""
        if not self.runs:
            return ""
        numbers = sorted(run.env["seed"] for run in self.runs)
        return f"{len(numbers)} seed{'s' if len(numbers) > 1 else ''} ({', '.join(map(str, numbers))})"

    @property
    def comparison_text(self) -> tuple[str, ...]:
        """For each published number what `Comparison` says; where there is none, why."""
        if self.comparisons:
            return tuple(str(comparison) for comparison in self.comparisons)
        if self.runs:
            return ("not comparable: " + ("embedded data" if self.scope == "smoke" else "no published number"),)
        return ()

    @property
    def file_stem(self) -> str:
        """A name for files of this row, unique within the project."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.row_id.partition("/")[2])


def make_rows(
    runs: Iterable[RecordedRun],
    experiments: dict[tuple[str, str], Experiment],
    numbers: tuple[NumberRow, ...],
) -> list[TableRow]:
    """All rows: those with runs by scope, project and config, then those without, in the order of experiments.yaml."""
    rows = [_measured_row(group, experiments, numbers) for group in _groups(runs)]
    rows.sort(key=lambda row: (SCOPE_ORDER[row.scope], row.project, row.config, row.row_id))
    ran = {(row.project, row.config, row.split, row.protocol, row.scope) for row in rows}
    for experiment in experiments.values():
        place = (experiment.project, experiment.config, experiment.split, experiment.protocol)
        if (*place, experiment.scope) not in ran:
            rows.append(_missing_row(experiment, numbers))
    return rows


def headlines(rows: Iterable[TableRow]) -> list[TableRow]:
    """One row per project: that of the widest scope, among equals the highest mIoU; where nothing ran, the first."""
    by_project: dict[str, list[TableRow]] = {}
    for row in rows:
        by_project.setdefault(row.project, []).append(row)
    return [min(own, key=_headline_key) for _, own in sorted(by_project.items())]


def _headline_key(row: TableRow) -> tuple[bool, int, float]:
    """What sorts a project's headline first."""
    return (not row.runs, SCOPE_ORDER[row.scope], -row.best.mean if row.best else 0.0)


def _groups(runs: Iterable[RecordedRun]) -> list[list[tuple[RecordedRun, Series]]]:
    """What stands in one row: the same experiment on the same split under the same protocol, one run for each seed.

    A second run of a seed opens a row of its own, so nothing is counted twice and nothing is left out.
    """
    groups: dict[tuple, list[list[tuple[RecordedRun, Series]]]] = {}
    for run in sorted(runs, key=lambda run: (run.env["started_utc"], run.name), reverse=True):
        experiment = SEED_LINE.sub("", run.config_text)
        for series in run.series:
            key = (run.project, run.env["config"], experiment, series.split, series.protocol)
            rows = groups.setdefault(key, [])
            seed = run.env["seed"]
            row = next((row for row in rows if all(other.env["seed"] != seed for other, _ in row)), None)
            if row is None:
                rows.append([(run, series)])
            else:
                row.append((run, series))
    return [row for rows in groups.values() for row in rows]


def _measured_row(
    group: list[tuple[RecordedRun, Series]],
    experiments: dict[tuple[str, str], Experiment],
    numbers: tuple[NumberRow, ...],
) -> TableRow:
    runs, all_series = zip(*group, strict=True)
    run, series = group[0]
    experiment = experiments.get((run.project, run.env["config"]))
    row_id = f"{run.project}/{run.name}"
    if series is not run.series[0]:
        row_id += f"~{series.split}, {series.protocol}"
    row = TableRow(
        row_id=row_id,
        project=run.project,
        config=run.env["config"],
        model=experiment.model if experiment else _model_of(run),
        data=experiment.data if experiment else _data_of(run),
        split=series.split,
        protocol=series.protocol,
        scope=_scope_of(runs, experiment),
        runs=runs,
        series=all_series,
        comparisons=(),
        command=f"python results/reproduce.py {run.project}/{run.name}",
    )
    if experiment is None:
        return row
    comparisons = tuple(_compare(row, reference) for reference in references_of(experiment, numbers))
    return dataclasses.replace(row, comparisons=comparisons)


def _missing_row(experiment: Experiment, numbers: tuple[NumberRow, ...]) -> TableRow:
    row = TableRow(
        row_id=f"{experiment.project}/{experiment.config}",
        project=experiment.project,
        config=experiment.config,
        model=experiment.model,
        data=experiment.data,
        split=experiment.split,
        protocol=experiment.protocol,
        scope=experiment.scope,
        runs=(),
        series=(),
        comparisons=(),
        command=experiment.command,
        hours=experiment.hours,
        hours_source=experiment.hours_source or "",
        needs=experiment.needs,
    )
    comparisons = tuple(_compare(row, reference) for reference in references_of(experiment, numbers))
    return dataclasses.replace(row, comparisons=comparisons)


def _scope_of(runs: tuple[RecordedRun, ...], experiment: Experiment | None) -> str:
    """What the runs say of themselves; one that was cut short is a reduced one, whatever its config says."""
    scope = max((run.env["scope"] for run in runs), key=SCOPE_ORDER.__getitem__)
    cut_short = experiment is not None and min(run.iters for run in runs) < experiment.iters
    return "reduced" if scope == "full" and cut_short else scope


def _compare(row: TableRow, reference: Reference) -> Comparison:
    reasons = []
    if row.runs and row.scope != "full":
        reasons.append(f"{row.scope} run")
    if any(run.is_finetuned for run in row.runs):
        reasons.append("ours starts from a trained network")
    if reference.split != row.split:
        reasons.append(f"{reference.split} split there, {row.split} here")
    if reference.why:
        reasons.append(reference.why)
    elif reference.measured_as is not None and reference.measured_as != row.protocol:
        reasons.append(f"measured as '{reference.measured_as}' there")
    if reasons or not row.runs:
        return Comparison(reference, None, "; ".join(reasons))
    notes = [reference.note] if reference.note else []
    if reference.pretrained.startswith("ImageNet") and not any(run.has_backbone_weights for run in row.runs):
        notes.append("ours without ImageNet weights")
    if reference.from_memory:
        notes.append("theirs from memory, unverified")
    delta = row.best.mean - reference.value
    if len(row.series) == 1 and abs(delta) < SEED_DECIDES:
        notes.append("one seed: no difference")
    return Comparison(reference, delta, "; ".join(notes))


def _model_of(run: RecordedRun) -> str:
    model = run.config.get("model", {})
    return ", ".join(str(model[key]) for key in ("name", "backbone") if model.get(key))


def _data_of(run: RecordedRun) -> str:
    name = run.env["dataset"]
    if run.env["scope"] != "smoke":
        return name
    return "embedded data" if name == "toy" else f"embedded data ({name})"


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))
