"""Run folders, read back by tests."""

from __future__ import annotations

import csv
from pathlib import Path

TIMED = frozenset({"step_time_s", "data_time_s", "seconds", "images_per_s", "peak_memory_gib"})
"""Columns of a run's tables that depend on time or machine."""


def run_folder(output: str | Path) -> Path:
    """The one run folder under `output`."""
    (folder,) = (path.parent for path in Path(output).glob("*/config.yaml"))
    return folder


def numbers(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Everything in a run's tables that must not depend on time or machine: losses, rates and scores."""
    tables = {}
    for path in sorted(folder.glob("*.csv")):
        with open(path, encoding="utf-8") as stream:
            tables[path.name] = [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(stream)]
    return tables
