"""`speed.md`: what the projects' benchmarks measured, one table per question, the ratio first; and its image."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from common.cli import UserError, shown
from results.markdown_tables import cell, code, fold, table
from results.recorded_runs import PLAIN_NAME
from results.speed_questions import Ratio, ratios_of

LONGEST = 60  # rows of a table that is not known here; longer ones are linked
IMAGE = "speed.png"
OTHERS = {
    "proofs.csv": "Do converted networks compute the same? The largest difference of any output, beside the source's",
    "memory.csv": "Memory of evaluating one image in windows",
    "timings.csv": "All times",
}
REPORTS = {
    "cpu": "PaddleSeg's networks by layout, graph, batch size and library, on a CPU",
    "zoo": "Every network of PaddleSeg's zoo: does it train, how fast, in how much memory",
}


@dataclass(frozen=True)
class Speed:
    """The page and what its image shows."""

    text: str
    ratios: list[Ratio]


def speed_page(folder: Path) -> Speed:
    """The page for every benchmark below `folder`, which holds a folder for each project.

    Raises:
        UserError: A benchmark has no env.json or no table.
    """
    sections, drawn = [], []
    for path in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        text, ratios = _benchmark(path)
        sections += text
        drawn += [ratio for ratio in ratios if ratio.fair]
    head = [
        "# Speed\n",
        "Made by `python results/make_tables.py` from `results/benchmarks`. A ratio says how many times as fast ours "
        "is: above 1 ours is faster, below 1 the other is. In brackets the lowest and the highest ratio of single "
        "turns. What stands in one table was measured on one machine, in turns. *GMAC*: billion multiply-adds of a "
        "forward of one image.\n",
    ]
    if drawn:
        head += [
            f"![times as fast as the other, settings and networks alike]({IMAGE})\n",
            "The image shows the rows in which settings and networks are alike.\n",
        ]
    return Speed("\n".join([*head, *sections]), drawn)


def _benchmark(folder: Path) -> tuple[list[str], list[Ratio]]:
    settings, env = _settings(folder)
    tables = sorted(folder.glob("*.csv"))
    if not tables:
        raise UserError(f"{folder}: a benchmark without a table")
    for path in (folder.parent, folder, *tables):
        if not PLAIN_NAME.fullmatch(path.name):
            raise UserError(f"{path}: no plain name of a benchmark or its table: rename it")
    address = f"benchmarks/{folder.parent.name}/{folder.name}"
    links = [f"[{path.name}]({address}/{path.name})" for path in tables]
    behind = fold("Settings and numbers", f"{settings}\n\nEvery number: {', '.join(links)}.\n")
    if (folder / "report.md").is_file():  # the benchmark made its own tables
        title = cell(REPORTS.get(str(env.get("preset")), f"{folder.parent.name}, {folder.name}"))
        return [f"## {title}\n", f"[Report, cell by cell]({address}/report.md)\n", behind], []
    parts, ratios = [], []
    for path, link in zip(tables, links, strict=True):
        found = ratios_of(folder.parent.name, path)
        if found is None:
            parts += _unknown(path, link, folder)
        else:
            ratios += found
            parts = [*_questions(found), *parts]
    return [*parts, behind], ratios


def _questions(ratios: list[Ratio]) -> list[str]:
    parts = []
    for question in dict.fromkeys(ratio.question for ratio in ratios):
        own = [ratio for ratio in ratios if ratio.question == question]
        fair = [ratio for ratio in own if ratio.fair] or own
        others = [ratio for ratio in own if ratio not in fair]
        parts += [f"## {cell(question)}\n", _ratio_table(fair)]
        if others:
            parts.append(fold(f"Other settings: {len(others)} rows", _ratio_table(others)))
    return parts


def _ratio_table(ratios: list[Ratio]) -> str:
    rows = [
        [
            f"**{ratio.ratio:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})",
            *map(cell, (ratio.beside, ratio.case, ratio.ours, ratio.theirs)),
        ]
        for ratio in ratios
    ]
    return table(["ratio", "beside", "settings", "ours", "theirs"], rows)


def _unknown(path: Path, link: str, folder: Path) -> list[str]:
    """A table without ratios: folded away under what it is; a very long one, and plain times, the link only."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
    except (ValueError, csv.Error) as error:  # no text, no header
        raise UserError(f"{path}: not a table ({error}): restore it") from None
    if path.name == "timings.csv":
        return []
    title = OTHERS.get(path.name, f"{folder.parent.name}: {path.name}")
    if len(rows) > LONGEST:
        return [f"## {cell(title)}\n", f"{link}: {len(rows)} rows.\n"]
    whole = table([cell(name) for name in header], [[cell(text) for text in row] for row in rows])
    return [f"## {cell(title)}\n", fold(f"{len(rows)} rows", whole)]


def _settings(folder: Path) -> tuple[str, dict]:
    try:
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        machine = f"{env['cpu']}, {env['system']}, {env['threads'] or 'all'} threads"
        when = cell(f"{env['commit'][:7]}, {env['started_utc'][:10]}")
        head = f"{code(env['command'])} in {cell(folder.parent.name)} at commit {when}; {cell(machine)}."
        changed = env["commit_changed"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}/env.json is missing or damaged ({shown(error)}): restore it") from None
    if changed:
        head += " The files differed from that commit."
    return f"{head} The docstring of that program says how it measures.", env
