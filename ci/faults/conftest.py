"""What the tests of this folder share: they say what they have tried, and `run.py` makes a table of it."""

import json
import os

import pytest

TRIED = pytest.StashKey[list]()


@pytest.fixture
def tried(request):
    """`tried(what, where, count)`: so many things of a kind were tried; a test may say so several times.

    Whether they held is whether the test passes. Say it before trying where a failure should be counted too.
    """
    rows = request.node.stash.setdefault(TRIED, [])

    def say(what: str, where: str, count: int = 1) -> None:
        rows.append({"what": what, "where": where, "count": count})

    return say


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Appends what a test has tried, and whether it held, to the file that $FAULTS_TRIED names, one JSON per line."""
    report = yield
    path = os.environ.get("FAULTS_TRIED")
    if path and (report.when == "call" or not report.passed):
        rows = item.stash.get(TRIED, []) or [{"what": item.name, "where": item.path.name, "count": 1}]
        outcome = {"outcome": report.outcome, "seconds": report.duration / len(rows), "test": item.nodeid}
        with open(path, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({**row, **outcome}) + "\n" for row in rows)
    return report
