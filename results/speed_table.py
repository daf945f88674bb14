"""`speed.md`: what the projects' benchmarks measured, each with its machine and command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from common.cli import UserError, shown
from results.markdown_tables import cell, code, table
from results.recorded_runs import PLAIN_NAME

LONGEST = 60  # rows of a table; longer ones are linked


def speed_page(folder: Path) -> str:
    """The page for every benchmark below `folder`, which holds a folder for each project.

    Raises:
        UserError: A benchmark has no env.json or no table.
    """
    parts = [
        "# Speed\n",
        "Made by `python results/make_tables.py` from `results/benchmarks`. How each was measured says the docstring "
        "of the benchmark that the command names; what one table compares was measured on one machine.\n",
    ]
    for path in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        parts += _benchmark(path)
    return "\n".join(parts)


def _benchmark(folder: Path) -> list[str]:
    try:
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        machine = f"{env['cpu']}, {env['system']}, {env['threads'] or 'all'} threads"
        when = cell(f"{env['commit'][:7]}, {env['started_utc'][:10]}")
        head = f"{code(env['command'])} at commit {when}, {cell(machine)}."
        changed = env["commit_changed"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}/env.json is missing or damaged ({shown(error)}): restore it") from None
    if changed:
        head += " The files differed from that commit."
    tables = sorted(folder.glob("*.csv"))
    if not tables:
        raise UserError(f"{folder}: a benchmark without a table")
    for path in (folder.parent, folder, *tables):
        if not PLAIN_NAME.fullmatch(path.name):
            raise UserError(f"{path}: no plain name of a benchmark or its table: rename it")
    address = f"benchmarks/{folder.parent.name}/{folder.name}"
    parts = [f"## {cell(folder.parent.name)}, {cell(folder.name)}\n", head + "\n"]
    if (folder / "report.md").is_file():  # the benchmark made its own tables
        links = [f"[{path.name}]({address}/{path.name})" for path in (folder / "report.md", *tables)]
        return [*parts, ", ".join(links) + "\n"]
    for path in tables:
        parts += _table(path, f"[{path.name}]({address}/{path.name})", alone=len(tables) == 1)
    return parts


def _table(path: Path, link: str, alone: bool) -> list[str]:
    """The table with its link; of timings beside a table of what they mean, and of very long ones, the link only."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
    except (ValueError, csv.Error) as error:  # no text, no header
        raise UserError(f"{path}: not a table ({error}): restore it") from None
    if len(rows) > LONGEST or (path.name == "timings.csv" and not alone):
        return [f"{link}: {len(rows)} rows.\n"]
    return [f"{link}:\n", table([cell(name) for name in header], [[cell(text) for text in row] for row in rows])]
