import importlib.util
import sys
from pathlib import Path

from common.cli import UserError

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "faults"


@pytest.fixture(scope="module")
def fault_run():
    """ci/faults/run.py as a module; ci/ is no package."""
    spec = importlib.util.spec_from_file_location("fault_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(what, count, outcome, test="f.py::test_a", seconds=1.0):
    return {"what": what, "where": "x", "count": count, "outcome": outcome, "seconds": seconds, "test": test}


def test_the_table_adds_up_what_held_and_names_what_did_not(fault_run):
    rows = [
        row("kills", 2, "passed"),
        row("disks", 1, "skipped"),
        row("kills", 12, "passed", seconds=2.6),
        row("loads", 3, "passed"),
        row("loads", 4, "failed", "f.py::test_b[x]"),
    ]
    assert fault_run.summary(rows) == [
        ("kills", "x", "14", "yes", "4"),
        ("disks", "x", "0", "not tried: skipped", "1"),
        ("loads", "x", "7", "NO: test_b[x]", "2"),
    ]


def test_an_unknown_name_is_one_line(fault_run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "kil"])
    with pytest.raises(UserError, match="no fault tests 'kil': did you mean 'kill'"):
        fault_run.main()
