"""The rows of the READMEs are those of the recorded runs, to the digit."""

from pathlib import Path

from common.run_log import TABLE_HEADER, read_run, table_row

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = sorted(path.parent for path in (ROOT / "results" / "runs").glob("*/*/config.yaml"))


def rows_under_header(path):
    text = path.read_text(encoding="utf-8")
    _, header, rest = text.partition(TABLE_HEADER + "\n")
    assert header, f"{path} has no table of runs"
    return [line for line in rest.split("\n\n")[0].splitlines() if line.startswith("|")]


def test_the_readme_has_a_row_for_every_run():
    assert rows_under_header(ROOT / "README.md") == [table_row(read_run(run)) for run in RUNS]


@pytest.mark.parametrize("project", sorted({run.parent.name for run in RUNS}))
def test_a_projects_readme_has_a_row_for_each_of_its_runs(project):
    rows = rows_under_header(ROOT / "projects" / project / "README.md")
    assert rows == [table_row(read_run(run)) for run in RUNS if run.parent.name == project]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_runs_are_complete_and_from_a_known_commit(run):
    files = {path.name for path in run.iterdir()}
    assert files == {"config.yaml", "env.json", "train.csv", "eval.csv", "per_class.csv", "curve.png"}
    env = read_run(run).env
    assert env["commit"] != "unknown"
    assert not env["commit_changed"]
    assert env["project"] == run.parent.name
