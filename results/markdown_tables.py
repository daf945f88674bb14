"""The tables as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from results.table_rows import COMPARABLE, TableRow

BEST_AND_LAST = (
    "mIoU in per cent. **Ours** is the checkpoint with the highest mIoU on the validation images, and in brackets "
    "the last one; over several seeds the mean ± the sample standard deviation of these. A difference to a published "
    "number is given only for full runs on the same split under the same protocol. *From memory*: nobody has looked "
    "that number up."
)

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


def ours(row: TableRow) -> str:
    """Best (last), or "not run"."""
    return f"{row.best} ({row.last})" if row.runs else "not run"


def published(row: TableRow) -> str:
    """The numbers with their kinds, one a line."""
    numbers = [comparison.reference for comparison in row.comparisons]
    kinds = [number.kind + (", from memory" if number.from_memory else "") for number in numbers]
    return "<br>".join(f"{number.value:.2f} ({kind})" for number, kind in zip(numbers, kinds, strict=True)) or "none"


def difference(row: TableRow) -> str:
    """The differences, or why there are none, one a line."""
    return "<br>".join(cell(text) for text in row.comparison_text if text)


def overview(rows: Sequence[TableRow], with_curve: set[str]) -> str:
    """results/README.md; `with_curve` holds the ids of rows that have an image."""
    measured = [row for row in rows if row.runs]
    missing = [row for row in rows if not row.runs]
    projects = sorted({row.project for row in rows})
    links = ", ".join(f"[{project}](tables/{project}.md)" for project in projects)
    runs = sum(len(row.runs) for row in measured if "~" not in row.row_id)
    return f"""\
# Results

Made by `python results/make_tables.py` from the runs in `results/runs`; edits by hand are found and refused.

- All of it as one page, with curves to explore, to be opened in a browser: [site/index.html](site/index.html)
- By project, with sources, machines and training commands: {links}
- Speed: [speed.md](speed.md)

{BEST_AND_LAST}

## Measured: {len(measured)} rows, {runs} runs

{_measured_table(measured, with_curve, "", with_project=True)}
## Not run: {len(missing)} rows

What a full run takes. GPU hours are estimates; [the projects' tables](tables) say where from.

{_missing_table(missing, with_project=True)}
## How these files come about

```bash
python results/record.py RUN_DIR          # checks a finished run and copies its files to results/runs
python results/make_panels.py RUN_DIR     # image, label and prediction of embedded images, for the page
python results/make_tables.py             # makes all tables, curves and the page; --check finds what is stale
python results/reproduce.py ROW           # how a row is trained again; --run does it and compares every digit
```

`paper_numbers.csv` holds published numbers with their sources, `experiments.yaml` which of them stand beside which run.
"""


def project_page(project: str, rows: Sequence[TableRow], with_curve: set[str]) -> str:
    """results/tables/<project>.md."""
    measured = [row for row in rows if row.runs]
    missing = [row for row in rows if not row.runs]
    parts = [f"# {project}\n", f"Made by `python results/make_tables.py`. {BEST_AND_LAST}\n"]
    if measured:
        parts += ["## Measured\n", _measured_table(measured, with_curve, "../", with_project=False)]
        parts += ["### Runs\n", _runs_table(measured)]
    if missing:
        parts += ["## Not run\n", "Commands are typed in the project's folder.\n"]
        parts.append(_missing_table(missing, with_project=False))
    parts += ["## Sources of the published numbers\n", _sources(rows)]
    return "\n".join(parts)


def readme_table(rows: Sequence[TableRow], up: str, with_project: bool) -> str:
    """The rows for a README; `up` leads to the repository's root."""
    header = ["config", "data, split", "protocol", "published", "ours", "scope", "run"]
    return table((["project"] if with_project else []) + header, [_readme_row(row, up, with_project) for row in rows])


def _readme_row(row: TableRow, up: str, with_project: bool) -> list[str]:
    runs = "<br>".join(f"[{cell(run.name)}]({up}results/runs/{run.project}/{run.name})" for run in row.runs)
    numbers = published(row)
    if row.comparisons:
        pairs = zip(numbers.split("<br>"), row.comparison_text, strict=True)
        numbers = "<br>".join(value if text == COMPARABLE else f"{value}; {cell(text)}" for value, text in pairs)
    seeds = f", {row.seeds}" if row.runs else ""
    cells = [code(row.config), cell(f"{row.data}, {row.split}"), cell(row.protocol), numbers, ours(row) + seeds]
    return ([cell(row.project)] if with_project else []) + [*cells, row.scope if row.runs else "", runs]


def _measured_table(rows: Sequence[TableRow], with_curve: set[str], up: str, with_project: bool) -> str:
    header = ["model", "config", "data, split", "protocol", "ours", "seeds", "published", "difference", "scope", "run"]
    header = (["project"] if with_project else []) + [*header, "command"]
    lines = []
    for row in rows:
        runs = [f"[{cell(run.name)}]({up}runs/{run.project}/{run.name})" for run in row.runs]
        if row.row_id in with_curve:
            runs.append(f"[curve]({up}curves/{row.project}/{row.file_stem}.png)")
        cells = [cell(row.model), code(row.config), cell(f"{row.data}, {row.split}"), cell(row.protocol), ours(row)]
        cells += [cell(row.seeds), published(row), difference(row), row.scope, "<br>".join(runs), code(row.command)]
        lines.append(([cell(row.project)] if with_project else []) + cells)
    return table(header, lines)


def _missing_table(rows: Sequence[TableRow], with_project: bool) -> str:
    header = ["model", "config", "data, split", "protocol", "ours", "published", "difference", "scope", "expected"]
    header = (["project"] if with_project else []) + header
    header += ["needs", "command"] + ([] if with_project else ["hours from"])
    lines = []
    for row in rows:
        cells = [cell(row.model), code(row.config), cell(f"{row.data}, {row.split}"), cell(row.protocol), ours(row)]
        cells += [published(row), difference(row), row.scope, cell(row.hours), cell(row.needs), code(row.command)]
        cells += [] if with_project else [cell(row.hours_source)]
        lines.append(([cell(row.project)] if with_project else []) + cells)
    return table(header, lines)


def _runs_table(rows: Sequence[TableRow]) -> str:
    header = ["run", "seed", "protocol", "best", "at step", "last", "at step", "trained with", "machine"]
    lines = []
    for row in rows:
        for run, series in zip(row.runs, row.series, strict=True):
            machine = f"{run.env['cpu']}, {run.env['threads'] or 'all'} threads, {run.env['device']}"
            best, last = series.best, series.last
            cells = [cell(run.name), str(run.env["seed"]), cell(series.protocol), f"{best.miou_percent:.4f}"]
            cells += [str(best.step), f"{last.miou_percent:.4f}", str(last.step)]
            cells += [code(run.env["command"]), cell(machine)]
            lines.append(cells)
    return table(header, lines)


def _sources(rows: Sequence[TableRow]) -> str:
    lines = {
        f"- {cell(row.model)}, {number.value:.2f} ({number.kind}, {number.split}): {cell(number.source)}"
        for row in rows
        for number in (comparison.reference for comparison in row.comparisons)
    }
    return "\n".join(sorted(lines)) + "\n"
