"""`expected_logs.csv`: early losses of published training logs, a row for each recipe of ours that has such a log.

Columns: `project` and `config` name our recipe, `code` the program whose log it is. `at_100` and `at_1000` are the loss
after about so many iterations, `then` is what else the log shows early; they are blank where the log does not show it.
`differs` is what is not the same in our recipe, `source` where the log lies.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from common.cli import UserError

FILE = Path(__file__).with_name("expected_logs.csv")
COLUMNS = ("project", "config", "code", "at_100", "at_1000", "then", "differs", "source")


@dataclass(frozen=True)
class FirstHour:
    """The start of a published log."""

    project: str
    config: str
    code: str
    at_100: str
    at_1000: str
    then: str
    differs: str
    source: str

    @property
    def in_words(self) -> str:
        """For a cell."""
        parts = [f"loss {value} at {step}" for value, step in ((self.at_100, "100"), (self.at_1000, "1,000")) if value]
        return "; ".join([*parts, *([self.then] if self.then else [])])

    @property
    def where(self) -> str:
        """For a note."""
        return f"log of {self.code}: {self.source}" + (f"; there {self.differs}" if self.differs else "")


def read_expected(path: Path = FILE) -> dict[tuple[str, str], FirstHour]:
    """(project, config) -> what its log shows.

    Raises:
        UserError: The columns are not `COLUMNS`, a loss is not a number, a row has no source or is there twice.
    """
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path}: the columns must be {','.join(COLUMNS)}")
    found = {}
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row["source"] or not row["code"]:
            raise UserError(f"{path}, row {line}: a cell, the code or the source is missing")
        try:
            [float(row[key] or "nan") for key in ("at_100", "at_1000")]
        except ValueError:
            raise UserError(f"{path}, row {line}: a loss is not a number") from None
        key = row["project"], row["config"]
        if key in found:
            raise UserError(f"{path}, row {line}: {'/'.join(key)} is there twice")
        found[key] = FirstHour(**row)
    return found
