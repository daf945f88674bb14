"""Cells measured round by round, each in a process of its own; what is finished is kept in files."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import atomic_write
from common.progress import Progress
from paddleseg_benchmark.matrix.measure import Cell

# What has to be the same for two rounds to belong to one matrix.
IDENTITY = ("preset", "commit", "commit_changed", "packages", "peer_packages", "cpu", "device", "threads", "steps")

Result = dict[str, Any]


def run_matrix(
    cells: Sequence[Cell],
    folder: Path,
    rounds: int,
    time_limit_s: float,
    command: Callable[[Cell, Path], Sequence[str]],
    refuse: Callable[[Cell], str | None],
    finish_round: Callable[[Mapping[Cell, Sequence[Result]]], None],
) -> dict[Cell, list[Result]]:
    """Measures every cell once per round, the cells in turn; what `folder` holds already is taken from there.

    Args:
        cells: In the order of their turns.
        folder: Where each finished cell-round is a file.
        rounds: How many.
        time_limit_s: For one cell in one round.
        command: The command that measures a cell and writes its result into a file.
        refuse: Why a cell cannot be measured here; such a cell is not started. None where it can.
        finish_round: Called with the results so far after each round.

    Returns:
        The results by round of each cell; a cell that failed or was refused has that as its last one.

    Raises:
        UserError: The disk is full.
    """
    results = {cell: [] for cell in cells}
    for cell in cells:
        if why := refuse(cell):
            results[cell].append({"status": why})
    with Progress(rounds * len(cells), "matrix", "cell") as bar:
        for turn in range(1, rounds + 1):
            for cell in cells:
                bar.show(round=str(turn), cell=str(cell))
                if all(result["status"] == "ok" for result in results[cell]):
                    results[cell].append(_cell_round(cell, turn, folder, time_limit_s, command))
                bar.update()
            finish_round(results)
    return results


def _cell_round(cell: Cell, turn: int, folder: Path, time_limit_s: float, command: Callable) -> Result:
    """The result in the cell-round's file, measured now if there is none."""
    path = folder / f"{cell.key}.r{turn}.json"
    if not path.exists():
        log = path.with_suffix(".log")
        status = run_process(command(cell, path), log, time_limit_s)
        if "no space left on the device" in status:  # says nothing about the cell
            raise UserError(status.removeprefix("failed: "))
        if status == "ok" and path.exists():
            log.unlink()
        else:
            why = "failed: the process ended well but left no result" if status == "ok" else status
            with atomic_write(path) as stream:
                json.dump({"status": why}, stream)
    result = json.loads(path.read_text(encoding="utf-8"))
    return {"status": "ok"} | result


def run_process(command: Sequence[str], log: Path, time_limit_s: float) -> str:
    """Runs a command to its end, its output into `log`, and returns "ok" or "failed: why".

    At the time limit, or when this process is stopped, it is killed with all its children.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        # close_fds=False: the process holds the folder's lock too, see `locked`.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,
        )
        try:
            code = process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            return f"failed: not finished after {time_limit_s:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code == 0:
        return "ok"
    if code < 0:
        name = signal.Signals(-code).name
        return f"failed: killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"failed: {_last_line(log) or f'exit status {code}, no message'}"


def _last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return last.removeprefix("error: ")


def start_or_continue(folder: Path, env: Mapping[str, Any]) -> None:
    """Writes env.json into a new folder; in one that was begun, checks that the same is being measured.

    Raises:
        UserError: It was begun with another commit, machine, version or setting.
    """
    path = folder / "env.json"
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in IDENTITY if begun.get(name) != env[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{folder} was begun with {name} {begun.get(name)}, now it is {env[name]}: give another --output"
            )
        return
    with atomic_write(path) as stream:
        json.dump(env, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process measures into the folder.

    The lock is inherited by the processes that measure: where this one is killed, the cell that it leaves behind runs
    to its end, and the next start waits for it, as two cells at a time would disturb each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as stream:
        os.set_inheritable(stream.fileno(), True)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process still measures into {folder}", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
