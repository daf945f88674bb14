"""The tables as Markdown: a heading says data, split and protocol; the cells hold numbers; why is a note below."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence

from results.expected_logs import FirstHour
from results.recorded_runs import RecordedRun
from results.table_rows import TableRow

HOW_TO_READ = (
    "mIoU in per cent. On val: the checkpoint with the highest score, in brackets the last one. On test: that same "
    "checkpoint, measured once. Over several seeds: the mean ± the sample standard deviation. A difference to a "
    "published number is given where split, protocol and input size are the same; a note says whose recipe ours is."
)
PROTOCOL_WORDS = "*ss* is single scale, one pass without mirror images."
NOTHING = "Nothing was measured on photographs yet.\n"
BLANK = "&nbsp;"

# Brackets of links and images, code, bold and struck out text; "_" where it stands at an end of a word.
_MARKDOWN = re.compile(r"[\\|`*~\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def cell(text: str) -> str:
    """Text that is safe in a cell: no HTML, and nothing that Markdown makes an element of."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", " ".join(str(text).split()))
    return html.escape(escaped, quote=False)


def code(text: str) -> str:
    """Text as code in a cell."""
    clean = " ".join(str(text).split()).replace("`", "'")
    clean = re.sub(r"(\\+)\|", r"\1 |", clean).replace("|", r"\|")  # else a backslash of theirs would undo ours
    return f"`{clean}`" if clean else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are safe already."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


class Notes:
    """Numbered notes under a table; the same text has the same number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """The number that stands in the cell, or "" for no text."""
        if not text:
            return ""
        if text not in self._texts:
            self._texts.append(text)
        return f"<sup>{self._texts.index(text) + 1}</sup>"

    def __str__(self) -> str:
        lines = [f"<sup>{number}</sup> {cell(text)}" for number, text in enumerate(self._texts, start=1)]
        return "\n" + "<br>\n".join(lines) + "\n" if lines else ""


def anchor(run: RecordedRun) -> str:
    """The anchor that GitHub gives a run's heading on its project's page."""
    return re.sub(r"[^a-z0-9_-]", "", run.name.lower())


def fold(summary: str, text: str) -> str:
    """Text that is shown on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n\n{text}\n</details>\n"


def overview(rows: Sequence[TableRow], with_curve: set[str], first_hours: dict[tuple[str, str], FirstHour]) -> str:
    """results/README.md; `with_curve` holds the ids of rows that have an image."""
    kinds = {
        kind: [row for row in rows if row.kind == kind] for kind in ("photographs", "toy", "superseded", "missing")
    }
    projects = sorted({row.project for row in rows})
    links = ", ".join(f"[{project}](tables/{project}.md)" for project in projects)
    hours = sum(row.gpu_hours for row in kinds["missing"])
    return f"""\
# Results

Made by `python results/make_tables.py` from the runs in `results/runs`; `--check` finds edits by hand.

- As one page with curves to explore, for a browser: [site/index.html](site/index.html)
- By project, with sources, machines and commands: {links}
- Speed: [speed.md](speed.md)

{HOW_TO_READ} {PROTOCOL_WORDS}

## Measured on photographs

{_measured(kinds["photographs"], with_curve, "") or NOTHING}
{_folded(kinds, with_curve, "")}
## Not run: {len(kinds["missing"])} recipes, about {hours:.0f} GPU hours

Commands are typed in the project's folder. `FILE`: weights of the backbone that you name; nothing is downloaded.

{_missing(kinds["missing"], first_hours, "###")}
## How these files are made

```bash
python results/record.py RUN_DIR          # checks a finished run and copies its files to results/runs
python results/make_panels.py RUN_DIR     # image, label and prediction of toy images, for the page
python results/make_tables.py             # makes all tables, curves and the page; --check finds stale ones
python results/reproduce.py ROW           # how a row is trained again; --run does it and compares every digit
```

`paper_numbers.csv` holds published numbers with their sources, `experiments.yaml` which of them stand beside which run,
`expected_logs.csv` what published training logs show in their first hour.
"""


def project_page(
    project: str, rows: Sequence[TableRow], with_curve: set[str], first_hours: dict[tuple[str, str], FirstHour]
) -> str:
    """results/tables/<project>.md."""
    kinds = {
        kind: [row for row in rows if row.kind == kind] for kind in ("photographs", "toy", "superseded", "missing")
    }
    parts = [f"# {project}\n", f"Made by `python results/make_tables.py`. {HOW_TO_READ} {PROTOCOL_WORDS}\n"]
    if kinds["photographs"]:
        parts += ["## Measured on photographs\n", _measured(kinds["photographs"], with_curve, "../", own=True)]
    parts.append(_folded(kinds, with_curve, "../", own=True))
    if kinds["missing"]:
        parts += ["## Not run\n", "Commands are typed in the project's folder.\n"]
        parts.append(_missing(kinds["missing"], first_hours, "###", own=True))
    if sources := _sources(rows):
        parts += ["## Sources of the published numbers\n", sources]
    measured = [row for row in rows if row.runs and "~" not in row.row_id]
    if measured:
        parts += ["## Runs\n", "How each was trained, and how it is trained again, from the repository's root.\n"]
        parts += [_run_section(row, run) for row in measured for run in row.runs]
    return "\n".join(part for part in parts if part)


def readme_table(rows: Sequence[TableRow], up: str, with_curve: set[str]) -> str:
    """The tables of a project's README; `up` leads to the repository's root."""
    kinds = {
        kind: [row for row in rows if row.kind == kind] for kind in ("photographs", "toy", "superseded", "missing")
    }
    results = f"{up}results/"
    parts = []
    if kinds["photographs"]:
        parts += [f"{HOW_TO_READ}\n", _measured(kinds["photographs"], with_curve, results, "####", own=True)]
    else:
        parts.append(NOTHING)
    parts.append(_folded(kinds, with_curve, results, own=True))
    if kinds["missing"]:
        count = len(kinds["missing"])
        parts.append(
            fold(f"Not run: {count} recipe{'s' * (count > 1)}", _missing(kinds["missing"], {}, "####", own=True))
        )
    return "\n".join(part for part in parts if part)


def hero_table(rows: Sequence[TableRow]) -> str:
    """The table on top of README.md: five columns."""
    if not rows:
        return NOTHING
    notes = Notes()
    lines = []
    for row in rows:
        ours, theirs = [], []
        for mine, number, difference in _score_lines(row, notes):
            ours.append(mine)
            theirs.append(f"{number}: {difference}" if number not in ("", BLANK) and difference != "–" else number)
        project = f"[{cell(row.project)}](projects/{row.project}/README.md)"
        runs = _run_links(row, set(), "results/")
        lines.append([cell(row.model), project, "<br>".join(ours), "<br>".join(theirs), runs])
    data = ", ".join(sorted({f"{row.data}" for row in rows}))
    header = ["network", "project", f"mIoU %, {data}" if data else "mIoU %", "published: difference", "run"]
    return table(header, lines) + str(notes)


def _folded(kinds: dict[str, list[TableRow]], with_curve: set[str], results: str, own: bool = False) -> str:
    parts = []
    if kinds["toy"]:
        count = len(kinds["toy"])
        head = (
            f"Toy data, which shows that a network learns and has no published number: {count} row{'s' * (count > 1)}"
        )
        parts.append(fold(head, _toy_table(kinds["toy"], with_curve, results, own)))
    if kinds["superseded"]:
        count = len(kinds["superseded"])
        head = f"Superseded, as code or recipe has changed since: {count} row{'s' * (count > 1)}"
        parts.append(fold(head, _measured(kinds["superseded"], with_curve, results, "####", own)))
    return "\n".join(parts)


def _grouped(rows: Sequence[TableRow], key: Callable[[TableRow], str]) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _without_project(header: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    place = header.index("project")
    return header[:place] + header[place + 1 :], [line[:place] + line[place + 1 :] for line in lines]


def _measured(
    rows: Sequence[TableRow], with_curve: set[str], results: str, level: str = "###", own: bool = False
) -> str:
    """One table for each data set and protocol; `results` leads to the folder of results.

    With `own` all rows are of one project, whose name is left out.
    """
    parts = []
    for heading, group in _grouped(rows, _heading).items():
        notes = Notes()
        lines = []
        for row in sorted(group, key=lambda row: (row.scope != "full", -row.best.mean)):
            scores = list(zip(*_score_lines(row, notes), strict=True))
            replaced = notes.mark(f"superseded: {row.superseded}") if row.superseded else ""
            cells = [f"{cell(row.model)} {code(row.config)}{replaced}", cell(row.project)]
            cells += ["<br>".join(column) for column in scores]
            lines.append([*cells, _steps(row), _run_links(row, with_curve, results)])
        header = ["network", "project", "ours", "published", "difference", "steps, seeds", "run"]
        if own:
            header, lines = _without_project(header, lines)
        parts += [f"{level} {heading}\n", table(header, lines) + str(notes)]
    return "\n".join(parts)


def _heading(row: TableRow) -> str:
    splits = [row.split, *(["test"] if any(entry.reference.split == "test" for entry in row.comparisons) else [])]
    splits += ["test"] if row.test is not None and "test" not in splits else []
    return f"{cell(row.data)}, {' and '.join(splits)}; {cell(row.protocol)}"


def _score_lines(row: TableRow, notes: Notes) -> list[tuple[str, str, str]]:
    """Ours, published, difference, line by line: the number of a split beside the split."""
    lines = []
    for split in dict.fromkeys((row.split, "test", *(entry.reference.split for entry in row.comparisons))):
        found = [entry for entry in row.comparisons if entry.reference.split == split]
        if split == row.split:
            mine = f"{cell(split)} {row.best} ({row.last})"
        elif split == "test" and row.test is not None:
            mine = f"test {row.test}"
        elif found:
            mine = f"{cell(split)} not measured"
        else:
            continue
        for entry in found or [None]:
            lines.append((mine, *_published(entry, notes)))
            mine = BLANK
    return lines


def _published(entry, notes: Notes) -> tuple[str, str]:
    if entry is None:
        return BLANK, "–"
    number = f"{entry.reference.value:.2f} ({cell(entry.reference.kind)})"
    if entry.delta is None:
        return number + notes.mark(f"not comparable: {entry.why}" if entry.why else ""), "–"
    return number, f"{entry.delta:+.2f}" + notes.mark(entry.why)


def _steps(row: TableRow) -> str:
    steps = sorted({run.iters for run in row.runs})
    seeds = f"{len(row.runs)} seeds" if len(row.runs) > 1 else f"seed {row.runs[0].env['seed']}"
    return f"{' to '.join(f'{count:,}' for count in (steps[0], steps[-1])[: len(steps)])}; {seeds}"


def _run_links(row: TableRow, with_curve: set[str], results: str) -> str:
    """The runs by their commits; curve and command behind them."""
    parts = []
    for run in row.runs:
        seed = f"seed {run.env['seed']}: " if len(row.runs) > 1 else ""
        repeat = f"[repeat]({results}tables/{run.project}.md#{anchor(run)})"
        address = f"{results}runs/{run.project}/{run.name}"
        parts.append(f"{seed}[{cell(run.env['commit'][:7])}]({address}), {repeat}")
    if row.row_id in with_curve:
        parts[-1] += f", [curve]({results}curves/{row.project}/{row.file_stem}.png)"
    return "<br>".join(parts)


def _toy_table(rows: Sequence[TableRow], with_curve: set[str], results: str, own: bool) -> str:
    header = ["network", "project", "data; protocol", "val", "steps, seeds", "run"]
    lines = []
    for row in rows:
        cells = [f"{cell(row.model)} {code(row.config)}", cell(row.project), cell(f"{row.data}; {row.protocol}")]
        lines.append([*cells, f"{row.best} ({row.last})", _steps(row), _run_links(row, with_curve, results)])
    return table(*_without_project(header, lines)) if own else table(header, lines)


def _missing(
    rows: Sequence[TableRow], first_hours: dict[tuple[str, str], FirstHour], level: str, own: bool = False
) -> str:
    """One table for each data set."""
    parts = []
    for data, group in _grouped(rows, lambda row: row.data).items():
        notes = Notes()
        hours = sum(row.gpu_hours for row in group)
        lines = []
        for row in group:
            published = "<br>".join(_missing_number(entry, row, notes) for entry in row.comparisons)
            cells = [f"{cell(row.model)} {code(row.config)}", cell(row.project), published or "none found"]
            cells += [cell(row.hours) + notes.mark(f"hours: {row.hours_source}" if row.hours_source else "")]
            first = first_hours.get((row.project, row.config))
            cells += [cell(row.needs), first.in_words + notes.mark(first.where) if first else BLANK, code(row.command)]
            lines.append(cells)
        header = ["network", "project", "published", "hours", "needs", "first hour", "command"]
        if not any(first_hours.get((row.project, row.config)) for row in group):
            header.remove("first hour")
            lines = [[*line[:5], line[6]] for line in lines]
        if own:
            header, lines = _without_project(header, lines)
        head = f"{level} {cell(data)}" + (f", about {hours:.0f} GPU hours" if hours else "")
        parts += [head + "\n", table(header, lines) + str(notes)]
    return "\n".join(parts)


def _missing_number(entry, row: TableRow, notes: Notes) -> str:
    number = f"{entry.reference.value:.2f} ({cell(entry.reference.kind)}, {cell(entry.reference.split)})"
    why = f"not comparable: {entry.why}" if entry.why else f"measured as ours will be: {row.protocol}"
    return number + notes.mark(why)


def _run_section(row: TableRow, run: RecordedRun) -> str:
    series = row.series[row.runs.index(run)]
    best, last = series.best, series.last
    score = f"val {best.miou_percent:.4f} at step {best.step}, last {last.miou_percent:.4f} at step {last.step}"
    if run.test is not None:
        digest = run.checkpoint_sha256[:12]
        score += (
            f"; test {run.test.best.miou_percent:.4f} with the checkpoint of step {best.step} (SHA-256 {digest}...)"
        )
    machine = f"{run.env['cpu']}, {run.env['threads'] or 'all'} threads, {run.env['device']}"
    when = f"commit {run.env['commit'][:7]}, {run.env['started_utc'][:10]}, seed {run.env['seed']}"
    again = code(f"python results/reproduce.py {run.project}/{run.name} --run")
    facts = [
        cell(score),
        f"on {cell(machine)}; {cell(when)}",
        f"trained with {code(run.env['command'])}",
        f"again: {again}",
    ]
    return f"### {run.name}\n\n" + "".join(f"- {fact}\n" for fact in facts)


def _sources(rows: Sequence[TableRow]) -> str:
    lines = {
        f"- {cell(row.model)}, {number.value:.2f} ({number.kind}, {number.split}): {cell(number.source)}"
        for row in rows
        for number in (comparison.reference for comparison in row.comparisons)
    }
    return "\n".join(sorted(lines)) + "\n" if lines else ""
