"""Rows of the tables: runs of one experiment over its seeds, beside the published numbers; and what was not run."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.runs.tables import TEST
from results.experiments import Experiment, Reference, references_of
from results.paper_numbers import Row as NumberRow
from results.recorded_runs import RecordedRun, Series

SEED_LINE = re.compile(r"^\s+seed: \d+\n", re.MULTILINE)
COMPARABLE = "comparable"  # a number beside a row that was not run, to be measured in the same way
SEED_DECIDES = 0.7  # points of mIoU between runs that differ in the seed alone (open-mmlab/mmsegmentation, issue 255)
DISPLAY_NAMES = {
    "encnet_jpu": "EncNet with JPU",
    "enet": "ENet",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabv3",
    "deeplabv3plus": "DeepLabv3+",
    "encnet": "EncNet",
    "glore": "GloRe",
    "ginet": "GINet",
    "fcn": "FCN",
    "fpn": "FPN",
    "linknet": "LinkNet",
    "segnet": "SegNet",
    "segnet_basic": "SegNet-Basic",
    "unet": "U-Net",
    "unetplusplus": "U-Net++",
    "refinenet": "RefineNet",
    "stdc1": "STDC1-Seg",
    "stdc2": "STDC2-Seg",
    "bisenet": "BiSeNet",
    "danet": "DANet",
    "icnet": "ICNet",
    "ocnet": "OCNet",
    "dunet": "DUNet",
    "denseaspp": "DenseASPP",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
"""Names of configs as papers write them."""
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
        why: Why they cannot be compared; with a difference, whose recipe ours is and what else differs; "" where ours
            is yet to come.
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
    """One experiment, validated under one protocol, with its test score where there is one.

    Attributes:
        row_id: What `reproduce.py` is called with: project/run of the newest run, or project/config where nothing ran.
        split: That the checkpoint is chosen on.
        scope: "full", "reduced" or "smoke"; of a run that was cut short "reduced".
        runs: The newest run of each seed, newest first; empty: not run.
        series: What each of them measured in validation.
        tests: The test score of each, or None.
        command: What to type in the project's folder where nothing ran, in the repository's root else.
        hours: What the full run is expected to take; "" where it ran.
        needs: What it needs; "" where it ran.
        recipe: Whose recipe the runs follow, in words.
        superseded: What has changed since in code or recipe; "" for rows that stand.
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
    tests: tuple[Series | None, ...]
    comparisons: tuple[Comparison, ...]
    command: str
    hours: str = ""
    hours_source: str = ""
    gpu_hours: float = 0.0
    needs: str = ""
    recipe: str = ""
    superseded: str = ""

    @property
    def kind(self) -> str:
        """Which table the row stands in: photographs, toy, superseded or missing."""
        if not self.runs:
            return "missing"
        if self.superseded:
            return "superseded"
        return "toy" if self.scope == "smoke" else "photographs"

    @property
    def best(self) -> Spread | None:
        """The mIoU of each run's best checkpoint by validation."""
        return _spread([series.best.miou_percent for series in self.series])

    @property
    def last(self) -> Spread | None:
        """The mIoU at each run's last step."""
        return _spread([series.last.miou_percent for series in self.series])

    @property
    def test(self) -> Spread | None:
        """The mIoU on the test split of those runs that were measured there, with the best checkpoint by validation."""
        return _spread([test.best.miou_percent for test in self.tests if test is not None])

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
            return ("not comparable: " + ("toy data" if self.scope == "smoke" else "no published number"),)
        return ()

    @property
    def file_stem(self) -> str:
        """A name for files of this row, unique within the project."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.row_id.partition("/")[2])


def make_rows(
    runs: Iterable[RecordedRun],
    experiments: dict[tuple[str, str], Experiment],
    numbers: tuple[NumberRow, ...],
    superseded: Mapping[str, str] | None = None,
) -> list[TableRow]:
    """All rows: those with runs by scope, project and config, then those without, in the order of experiments.yaml.

    `superseded`: project/run -> what has changed since. Such runs stand in rows of their own.
    """
    superseded = superseded or {}
    rows = [_measured_row(group, experiments, numbers, superseded) for group in _groups(runs, superseded)]
    rows.sort(key=lambda row: (SCOPE_ORDER[row.scope], row.project, row.config, row.row_id))
    ran = {(row.project, row.config, row.split, row.protocol, row.scope) for row in rows if not row.superseded}
    for experiment in experiments.values():
        place = (experiment.project, experiment.config, experiment.split, experiment.protocol)
        if (*place, experiment.scope) not in ran:
            rows.append(_missing_row(experiment, numbers))
    return rows


def headlines(rows: Iterable[TableRow], most: int = 8) -> list[TableRow]:
    """The rows that a reader sees first: measured on photographs, full ones before others, then by mIoU."""
    found = [row for row in rows if row.kind == "photographs"]
    return sorted(found, key=lambda row: (SCOPE_ORDER[row.scope], -row.best.mean, row.row_id))[:most]


def _groups(runs: Iterable[RecordedRun], superseded: Mapping[str, str]) -> list[list[tuple[RecordedRun, Series]]]:
    """What stands in one row: the same experiment on the same split under the same protocol, one run for each seed.

    A second run of a seed opens a row of its own, so nothing is counted twice and nothing is left out.
    """
    groups: dict[tuple, list[list[tuple[RecordedRun, Series]]]] = {}
    for run in sorted(runs, key=lambda run: (run.env["started_utc"], run.name), reverse=True):
        experiment = SEED_LINE.sub("", run.config_text)
        old = f"{run.project}/{run.name}" in superseded
        for series in run.series:
            key = (run.project, run.env["config"], experiment, series.split, series.protocol, old)
            rows = groups.setdefault(key, [])
            seed = run.env["seed"]
            row = next((row for row in rows if all(other.env["seed"] != seed for other, _ in row)), None)
            if row is None:
                rows.append([(run, series)])
            else:
                row.append((run, series))
    return [row for rows in groups.values() for row in rows]


def _test_of(run: RecordedRun, series: Series) -> Series | None:
    """The run's test score, in the row of its protocol; in the first row where no validation has that protocol."""
    if run.test is None:
        return None
    same = next((entry for entry in run.series if entry.protocol == run.test.protocol), run.series[0])
    return run.test if same is series else None


def _measured_row(
    group: list[tuple[RecordedRun, Series]],
    experiments: dict[tuple[str, str], Experiment],
    numbers: tuple[NumberRow, ...],
    superseded: Mapping[str, str],
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
        tests=tuple(_test_of(*pair) for pair in group),
        comparisons=(),
        command=f"python results/reproduce.py {run.project}/{run.name}",
        recipe=_recipe_of(runs, experiment),
        superseded=superseded.get(f"{run.project}/{run.name}", ""),
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
        tests=(),
        comparisons=(),
        command=experiment.command,
        hours=experiment.hours,
        gpu_hours=experiment.gpu_hours or 0.0,
        hours_source=experiment.hours_source or "",
        needs=experiment.needs,
    )
    comparisons = tuple(_compare(row, reference) for reference in references_of(experiment, numbers))
    return dataclasses.replace(row, comparisons=comparisons)


def _is_cut_short(runs: tuple[RecordedRun, ...], experiment: Experiment | None) -> bool:
    return experiment is not None and min(run.iters for run in runs) < experiment.iters


def _scope_of(runs: tuple[RecordedRun, ...], experiment: Experiment | None) -> str:
    """The narrowest of what the runs and experiments.yaml say; a full run that was cut short is a reduced one."""
    scopes = [run.env["scope"] for run in runs]
    scope = max(scopes, key=SCOPE_ORDER.__getitem__)
    if scope == "full" and experiment is not None:
        return "reduced" if _is_cut_short(runs, experiment) else experiment.scope
    return scope


def _recipe_of(runs: tuple[RecordedRun, ...], experiment: Experiment | None) -> str:
    scope = _scope_of(runs, experiment)
    if scope == "full":
        return "the published recipe"
    if experiment is not None and experiment.scope == "full" and _is_cut_short(runs, experiment):
        return f"the published recipe, cut to {min(run.iters for run in runs)} of {experiment.iters} steps"
    return "a recipe of our own"


def _compare(row: TableRow, reference: Reference) -> Comparison:
    ours = row.best if reference.split == row.split else row.test if reference.split == TEST else None
    reasons = []
    if row.runs and row.scope == "smoke":
        reasons.append("toy data")
    if row.runs and ours is None:
        missing = ", where ours was not measured" if reference.split == TEST else f", {row.split} here"
        reasons.append(f"{reference.split} split there{missing}")
    if reference.why:
        reasons.append(reference.why)
    elif reference.measured_as not in _protocols(row, reference.split):
        reasons.append(f"measured as '{reference.measured_as}' there")
    if reasons or not row.runs:
        return Comparison(reference, None, "; ".join(reasons))
    delta = ours.mean - reference.value
    return Comparison(reference, delta, "; ".join(_remarks(row, reference, delta, ours.count)))


def _protocols(row: TableRow, split: str) -> set[str]:
    """Under which ours was, or will be, measured on a split."""
    tests = {test.protocol for test in row.tests if test is not None}
    return tests if split == TEST and tests else {row.protocol}


def _remarks(row: TableRow, reference: Reference, delta: float, seeds: int) -> list[str]:
    """What stands beside a difference."""
    notes = [f"ours by {row.recipe}"]
    if any(run.is_finetuned for run in row.runs):
        notes.append("ours starts from a trained network")
    if reference.note:
        notes.append(reference.note)
    if reference.pretrained.startswith("ImageNet") and not any(run.has_backbone_weights for run in row.runs):
        notes.append("ours without ImageNet weights")
    if reference.from_memory:
        notes.append("theirs from memory, unverified")
    if seeds == 1:
        small = f"one seed of ours, and seeds differ by about {SEED_DECIDES} points: no difference"
        notes.append(small if abs(delta) < SEED_DECIDES else "one seed of ours")
    return notes


def _model_of(run: RecordedRun) -> str:
    model = run.config.get("model", {})
    words = [str(model[key]) for key in ("name", "backbone") if model.get(key)]
    return ", ".join(DISPLAY_NAMES.get(word, word) for word in words)


def _data_of(run: RecordedRun) -> str:
    name = run.env["dataset"]
    if run.env["scope"] != "smoke":
        return name
    return "toy data" if name == "toy" else f"toy data ({name})"


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))
