"""Tries what RELIABILITY.md promises, and prints what was tried and what held.

    python ci/faults/run.py                          # everything: about forty minutes of one core
    python ci/faults/run.py kill disk_full           # test_kill.py and test_disk_full.py
    python ci/faults/run.py --quick                  # the part that the default tests run too: about a minute
    python ci/faults/run.py fuzz --minutes 10        # each reader fuzzed for so long
    python ci/faults/run.py --out faults.md          # the table as a file too

Exit status 1 when something did not hold. Disks that fill up and processes without a network need root; without it
those tests are skipped, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common.cli import CommandParser, UserError, did_you_mean, run_command
from common.files import atomic_write

FOLDER = Path(__file__).resolve().parent
HEADER = "| what was tried | where | how many | held | seconds |\n|---|---|---:|---|---:|\n"


def main() -> int:
    """The command; returns the exit status."""
    args = _parse_args()
    files = [_file_of(name) for name in args.tests] or sorted(FOLDER.glob("test_*.py"))
    with tempfile.TemporaryDirectory() as scratch:
        tried = Path(scratch) / "tried.jsonl"
        tried.touch()
        env = {**os.environ, "FAULTS_TRIED": str(tried), "FAULTS_MINUTES": str(args.minutes)}
        marks = "not slow" if args.quick else ""
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, *map(str, files)]
        status = subprocess.run(words, cwd=FOLDER.parents[1], env=env, check=False).returncode
        rows = [json.loads(line) for line in tried.read_text(encoding="utf-8").splitlines()]
    table = HEADER + "".join(f"| {' | '.join(cells)} |\n" for cells in summary(rows))
    print(f"\n{table}")
    if args.out:
        with atomic_write(args.out) as stream:
            stream.write(table)
    return 1 if status else 0


def summary(rows: list[dict]) -> list[tuple[str, ...]]:
    """One row of text per thing tried and place, in the order of their first trial.

    Args:
        rows: What conftest.py writes: "what", "where", "count", "outcome", "seconds" and "test" of each trial.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["where"]), []).append(row)
    lines = []
    for (what, where), trials in groups.items():
        failed = sorted({row["test"].rpartition("::")[2] for row in trials if row["outcome"] == "failed"})
        done = [row for row in trials if row["outcome"] != "skipped"]
        held = f"NO: {', '.join(failed)}" if failed else "yes" if done else "not tried: skipped"
        count, seconds = sum(row["count"] for row in done), sum(row["seconds"] for row in trials)
        lines.append((what, where, str(count), held, f"{seconds:.0f}"))
    return lines


def _file_of(name: str) -> Path:
    path = FOLDER / f"test_{name.removeprefix('test_').removesuffix('.py')}.py"
    if not path.exists():
        known = [path.stem.removeprefix("test_") for path in sorted(FOLDER.glob("test_*.py"))]
        raise UserError(f"no fault tests '{name}': {did_you_mean(name, known)}")
    return path


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument("tests", nargs="*", metavar="NAME", help="kill, disk_full, numbers ... (default: all)")
    parser.add_argument("--quick", action="store_true", help="leave out what is marked slow")
    parser.add_argument("--minutes", type=float, default=0.2, metavar="N", help="of each fuzz test (default: 0.2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there too (default: printed only)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
