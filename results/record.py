"""Takes a finished run into results/runs, after checking it.

    python results/record.py projects/stdc_seg/output/quickstart_s0_20261121_3c5f26a

Copies config.yaml, env.json, train.csv, eval.csv, per_class.csv, curve.png, and what eval.py left in eval_*/ below;
weights stay where they are, and of a data folder given by its absolute path the last part is kept. Refuses a run that
has an empty field, that has files which contradict each other, that has not reached its last iteration, that saw two
data sets, or whose code cannot be looked up: files that differed from the commit, or a commit that this repository does
not have. `--unknown-code` takes the last kind all the same; env.json says what is known.

The score of the test split (`eval.py --split test`) is taken along; of a run that is recorded already it is added, and
nothing else of it is changed. Refuses a test score of another checkpoint than the best on val, and a second one.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write, sha256_of
from common.run_log import run_id
from common.runs.reading import Run, planned_iters, read_run
from common.runs.tables import CHECKPOINT_COLUMNS, TEST
from results.recorded_runs import EVAL_FILES, RUN_FILES, RecordedRun, read_recorded

ROOT = Path(__file__).resolve().parents[1]
COMMIT = re.compile("[0-9a-f]{7,64}")
TRAIN_COLUMNS = ("step", "loss", "learning_rate", "step_time_s")  # those that every project has


def main() -> None:
    """Runs the command."""
    parser = CommandParser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run folder that train.py left")
    parser.add_argument("--unknown-code", action="store_true", help="take it though its code cannot be looked up")
    args = parser.parse_args()
    target = record(args.run.resolve(), ROOT, args.unknown_code)
    print(f"recorded: {target.relative_to(ROOT)}; now: python results/make_tables.py")


def record(folder: Path, root: Path, unknown_code: bool = False) -> Path:
    """Checks a run folder and copies it; returns where to.

    Raises:
        UserError: It is refused, or another run of this name is recorded already.
    """
    run = read_recorded(folder)
    if not (root / "projects" / run.project).is_dir():
        raise UserError(f"{folder}/env.json: there is no project '{run.project}'")
    _check_name(run)
    _check_training(run)
    _check_data(run)
    _check_checkpoint(run)
    if not unknown_code:
        _check_commit(run, root)
    files = [Path(name) for name in RUN_FILES]
    files += [extra.relative_to(folder) / name for extra in sorted(folder.glob("eval_*/")) for name in EVAL_FILES]
    target = root / "results" / "runs" / run.project / run.name
    if target.exists():
        if not _adds_test_score(folder, target):
            _check_same(folder, target, files)
            return target
        for name in EVAL_FILES[::-1]:  # eval.csv last: without its row the others are of no evaluation
            with atomic_write(target / name, "wb") as stream:
                stream.write((folder / name).read_bytes())
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".recording") as scratch:
        whole = Path(scratch) / run.name
        for file in files:
            (whole / file).parent.mkdir(parents=True, exist_ok=True)
            (whole / file).write_bytes(_published(folder / file))
        whole.rename(target)
    return target


def _published(path: Path) -> bytes:
    """The bytes of a file as they are recorded."""
    if path.name != "env.json":
        return path.read_bytes()
    env = json.loads(path.read_text(encoding="utf-8"))
    shortened = _without_path(env)
    if shortened == env:
        return path.read_bytes()
    return (json.dumps(shortened, indent=2, ensure_ascii=False) + "\n").encode()


def _without_path(env: dict) -> dict:
    root = env.get("data_root")
    return env | {"data_root": Path(root).name} if root and Path(root).is_absolute() else env


def _check_name(run: RecordedRun) -> None:
    env = run.env
    day = run.name.removeprefix(f"{env['config']}_s{env['seed']}_").partition("_")[0]
    expected = run_id(env["config"], env["seed"], env["commit"], day)
    number = run.name.removeprefix(expected)  # "_2" of the second run of one day
    if not run.name.startswith(expected) or (number and not number.removeprefix("_").isdigit()):
        raise UserError(
            f"{run.folder}: by its env.json this run is called {expected}: it was renamed, or the file edited"
        )


def _check_training(run: RecordedRun) -> None:
    """That train.csv is whole and the run has come to its end."""
    path = run.folder / "train.csv"
    rows = read_run(run.folder).train
    for line, row in enumerate(rows, start=2):
        empty = [key for key in TRAIN_COLUMNS if not row.get(key)]
        if empty:
            raise UserError(f"{path}, row {line}: {', '.join(empty)} is missing")
    planned = planned_iters(run.config)
    if not rows or int(rows[-1]["step"]) != planned or run.iters != planned:
        raise UserError(f"{run.folder}: at step {run.iters} of {planned}: finish it with train.py --resume first")


def _check_data(run: RecordedRun) -> None:
    """That every step and every evaluation saw the data set of env.json."""
    entries = [entry.get("entries") for entry in (run.env.get("data_lists") or {}).values()]
    for name in ("train_images", "val_images"):
        if entries and run.env[name] not in entries:
            raise UserError(
                f"{run.folder}/env.json: {name} is {run.env[name]}, but its lists have {entries} entries: "
                f"the run saw two data sets: train it again on one"
            )
    rows = read_run(run.folder).validations
    for row in rows:
        if int(row["images"]) != run.env["val_images"]:
            raise UserError(
                f"{run.folder}/eval.csv, step {row['step']}: {row['images']} images, but env.json says "
                f"{run.env['val_images']}: the run saw two data sets: train it again on one"
            )


def _check_checkpoint(run: RecordedRun) -> None:
    """That the test score is of the checkpoint that lies here, where it does."""
    for row in read_run(run.folder).eval:
        path = run.folder / Path(row.get("checkpoint") or "").name
        if row["split"] == TEST and path.is_file() and sha256_of(path) != row["checkpoint_sha256"]:
            raise UserError(f"{path}: is not the checkpoint of the test score in eval.csv (its SHA-256 is another)")


def _adds_test_score(folder: Path, target: Path) -> bool:
    """Whether the run is the recorded one with a test score that is not recorded yet."""

    def parts(run: Run) -> list:
        rows = [{k: v for k, v in row.items() if k not in CHECKPOINT_COLUMNS} for row in run.validations]
        return [
            run.config_text,
            _without_path(run.env),
            run.train,
            rows,
            [row for row in run.per_class if row["split"] != TEST],
        ]

    new, old = read_run(folder), read_run(target)
    return len(old.validations) == len(old.eval) < len(new.eval) and parts(new) == parts(old)


def _check_commit(run: RecordedRun, root: Path) -> None:
    if run.env["commit_changed"]:
        raise UserError(f"{run.folder}: its code differed from its commit: train from a commit, or give --unknown-code")
    commit = run.env["commit"]
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    if not COMMIT.fullmatch(commit) or subprocess.run(command, cwd=root, capture_output=True).returncode:
        raise UserError(f"{run.folder}: commit {commit} is not in this repository: fetch it, or give --unknown-code")


def _check_same(folder: Path, target: Path, files: list[Path]) -> None:
    there = [path.relative_to(target) for path in target.rglob("*") if path.is_file()]
    same = sorted(there) == sorted(files) and all(_published(folder / f) == (target / f).read_bytes() for f in files)
    if not same:
        raise UserError(f"{target} is recorded already and holds something else: recorded runs are never changed")


if __name__ == "__main__":
    run_command(main)
