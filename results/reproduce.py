"""How a row of the tables is trained again.

    python results/reproduce.py stdc_seg/quickstart_s0_20261121_3c5f26a         # prints the command
    python results/reproduce.py stdc_seg/quickstart_s0_20261121_3c5f26a --run   # runs it, compares every digit
    python results/reproduce.py stdc_seg/quickstart_s0_20261121_3c5f26a --run --at-commit   # with the run's own code

A row is named project/run, or by the run alone, or project/config. The command trains from the run's stored config, so
it holds whatever the config files say today. With --run the scores of every evaluation and the logged losses are
compared with the stored ones. On the same kind of machine (processor, device, threads, versions of the packages) they
must agree to the digit, else the exit status is 1; on another kind the difference is shown. Where the code has changed
its digits on purpose since (CHANGELOG.md), --at-commit trains with the code of the run's commit, checked out apart.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.runs.reading import read_run
from common.runs.tables import CHECKPOINT_COLUMNS, TEST
from results.experiments import read_experiments, read_superseded
from results.paper_numbers import read_numbers
from results.recorded_runs import RecordedRun, read_recorded, read_runs
from results.table_rows import TableRow, make_rows

ROOT = Path(__file__).resolve().parents[1]
MACHINE_KEYS = ("system", "cpu", "device", "threads", "processes", "python", "packages")
NOT_SCORES = ("seconds", *CHECKPOINT_COLUMNS)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command; returns the exit status."""
    parser = CommandParser(__doc__)
    parser.add_argument("row", metavar="ROW", help="project/run, run, or project/config")
    parser.add_argument("--run", action="store_true", help="train and compare, do not only print the command")
    parser.add_argument("--at-commit", action="store_true", help="with --run: use the code of the run's commit")
    args = parser.parse_args(arguments)
    if args.at_commit and not args.run:
        parser.error("--at-commit goes with --run")
    row = find_row(args.row, root)
    if not row.runs:
        print(f"not run: {row.hours or 'no hours known'} expected; needs {row.needs}")
        print(f"cd projects/{row.project}\n{row.command}")
        if args.run:
            raise UserError(f"{row.row_id} was never run: there is nothing to compare with: train it, then record it")
        return 0
    named = [run for run in row.runs if args.row in (run.name, f"{run.project}/{run.name}")]
    run = named[0] if named else row.runs[0]
    for line in _remarks(run):
        print(f"note: {line}")
    if not args.run:
        print(recipe(run))
        return 0
    if not args.at_commit:
        return _run_and_compare(run, root)
    with checked_out(run.env["commit"], root) as code:
        return _run_and_compare(run, code)


@contextlib.contextmanager
def checked_out(commit: str, root: Path) -> Iterator[Path]:
    """A folder with the repository at a commit, and its data; it is gone afterwards.

    Raises:
        UserError: The repository does not have the commit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch) / "code"
        git = ["git", "-C", str(root), "worktree"]
        done = subprocess.run([*git, "add", "--detach", str(code), commit], capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            raise UserError(f"commit {commit} cannot be checked out ({reason}): fetch it")
        try:
            if (root / "data").is_dir() and not (code / "data").exists():
                (code / "data").symlink_to((root / "data").resolve())
            yield code
        finally:
            subprocess.run([*git, "remove", "--force", str(code)], capture_output=True, check=False)


def find_row(name: str, root: Path) -> TableRow:
    """The row of a name.

    Raises:
        UserError: None does, or several.
    """
    rows = make_rows(read_runs(root / "results" / "runs"), read_experiments(), read_numbers(), read_superseded())
    plain = [
        row for row in rows if "~" not in row.row_id
    ]  # an evaluation under another protocol is not a run of its own
    names = {row.row_id: {row.row_id, f"{row.project}/{row.config}"} for row in plain}
    for row in plain:
        for run in row.runs:
            names[row.row_id] |= {f"{run.project}/{run.name}", run.name}
    found = [row for row in plain if name in names[row.row_id]]
    if not found:
        near = difflib.get_close_matches(name, sorted(set().union(*names.values())), n=3, cutoff=0.4)
        raise UserError(f"no row '{name}': results/README.md has them all; near it: {', '.join(near) or 'none'}")
    if len(found) > 1:
        raise UserError(f"'{name}' names {len(found)} rows: give one of {', '.join(row.row_id for row in found)}")
    return found[0]


def recipe(run: RecordedRun) -> str:
    """The commands that train a run again, from the repository's root."""
    copy = f"output/{run.env['config']}.yaml"  # a run is named after its config file
    stored = f"../../results/runs/{run.project}/{run.name}/config.yaml"
    threads = f"OMP_NUM_THREADS={run.env['threads']} " if run.env["threads"] else ""
    return "\n".join(
        [
            f"cd projects/{run.project}",
            f"mkdir -p output && cp {shlex.quote(stored)} {shlex.quote(copy)}",
            f"{threads}python train.py --config {shlex.quote(copy)}",
        ]
    )


def compare_runs(stored: Path, again: Path) -> list[str]:
    """A line for every score and logged loss of two run folders that is not the same to the digit."""
    old, new = read_run(stored), read_run(again)
    keys = [key for key in old.eval[0] if key not in NOT_SCORES]
    lines = _differences("eval.csv", old.validations, new.validations, keys)
    classes = [[row for row in run.per_class if row["split"] != TEST] for run in (old, new)]
    lines += _differences("per_class.csv", *classes, list(old.per_class[0]))
    return lines + _differences("train.csv", old.train, new.train, ["step", "loss"])


def other_machine(stored: dict, again: dict) -> list[str]:
    """The differences between two machines, a line for each."""
    return [f"{key}: {stored[key]} then, {again[key]} now" for key in MACHINE_KEYS if stored[key] != again[key]]


def _remarks(run: RecordedRun) -> list[str]:
    lines = []
    if "--extend" in run.env["command"]:
        lines.append("the run changed its length on the way; trained from its last config it goes another way")
    if run.env["commit_changed"]:
        lines.append("the code of the run differed from its commit")
    if run.has_backbone_weights:
        digest = run.env.get("backbone_weights_sha256", "not recorded")
        lines.append(f"it started from backbone weights, SHA-256 {digest}: model.backbone_weights names the file")
    if run.is_finetuned:
        digest = run.env.get("finetune_sha256", "not recorded")
        lines.append(f"it started from a trained network, SHA-256 {digest}: model.finetune names the file")
    return lines


def _run_and_compare(run: RecordedRun, root: Path) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / f"{run.env['config']}.yaml"
        shutil.copyfile(run.folder / "config.yaml", config)
        command = [sys.executable, "train.py", "--config", str(config), "--output", str(Path(scratch) / "output")]
        print(f"cd projects/{run.project}\n{shlex.join(command)}", flush=True)
        # The code in `root`, also where another checkout is the one that is installed.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "projects")])}
        environment.pop("OMP_NUM_THREADS", None)
        if run.env["threads"]:
            environment["OMP_NUM_THREADS"] = run.env["threads"]
        if subprocess.run(command, cwd=root / "projects" / run.project, env=environment).returncode:
            raise UserError(f"training {run.name} again failed: see above")
        (again,) = (Path(scratch) / "output").iterdir()
        return _judge(run, read_recorded(again))


def _judge(run: RecordedRun, again: RecordedRun) -> int:
    lines = compare_runs(run.folder, again.folder)
    other = other_machine(run.env, again.env)
    then, now = run.series[0].best.miou_percent, again.series[0].best.miou_percent
    print(f"best mIoU {then:.4f} % then, {now:.4f} % now ({now - then:+.4f})")
    if not lines:
        print("every score and loss agrees to the digit")
        return 0
    print(f"{len(lines)} values differ, the first: {lines[0]}")
    if other:
        print(f"another kind of machine, so they may: {'; '.join(other)}")
        return 0
    print("the same kind of machine: they must not")
    return 1


def _differences(name: str, old: list[dict], new: list[dict], columns: list[str]) -> list[str]:
    lines = [f"{name}: {len(old)} rows then, {len(new)} now"] if len(old) != len(new) else []
    for before, after in zip(old, new, strict=False):
        lines += [
            f"{name}, step {before['step']}, {key}: {before[key]} then, {after.get(key)} now"
            for key in columns
            if before[key] != after.get(key)
        ]
    return lines


if __name__ == "__main__":
    run_command(main)
