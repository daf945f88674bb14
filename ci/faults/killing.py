"""Commands that are killed (`kill -9`) at random moments, many times at the price of one start.

A process of its own loads a command's modules once and does nothing with them; for every trial it forks a copy that
runs the command from its first line, and kills that copy. Half of the moments are random points in time; the others
come a random few milliseconds after a random file operation of the command (opening, renaming, removing, making a
folder), where half-written files would be found.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from common.cli import run_command

import numpy as np
from targets import Command
from testkit import ENV_WITH_KIT, REPOSITORY

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
SOON = 0.005  # seconds after a file operation in which a kill falls
HANGS_AFTER = 200.0  # seconds: a copy that runs longer does not come to an end


class Ended(NamedTuple):
    """How a copy ended: its exit status (None: killed), its seconds, its file operations, what it printed."""

    status: int | None
    seconds: float
    operations: int
    text: str


class Killer:
    """Runs copies of one command.

    Args:
        command: What is loaded; the words of each trial are its own.
        folder: Whose file operations count.
        prepare: Python that the loading process runs first; it may change the command's module or bind `main` anew.
        number: The signal; one that the command answers with an exit status of 128 + number counts as a kill as well.
    """

    def __init__(self, command: Command, folder: Path, prepare: str = "", number: int = signal.SIGKILL):
        words = [sys.executable, __file__, command.module, str(folder), prepare, str(int(number))]
        cwd = (REPOSITORY / command.script).parent
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(words, **pipes, text=True, env=ENV_WITH_KIT, cwd=cwd)

    def run(self, words: tuple[str, ...], operations: int = 0, seconds: float | None = None) -> Ended:
        """Runs the command, and kills it `seconds` after so many file operations (None: lets it end)."""
        request = {"words": words, "operations": operations, "seconds": seconds}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process that runs {words} has ended itself"
        return Ended(*json.loads(answer))

    def moments(self, whole: Ended, seed: int) -> Iterator[tuple[int, float]]:
        """Random moments within a command of which `whole` is an undisturbed trial."""
        rng = np.random.default_rng(seed)
        while True:
            yield 0, rng.uniform(0, whole.seconds)
            yield int(rng.integers(1, whole.operations, endpoint=True)), rng.uniform(0, SOON)

    def close(self) -> None:
        """Ends the loading process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)


def killed_until_done(
    killer: Killer,
    words: tuple[str, ...],
    moments: Iterator[tuple[int, float]],
    kills: int,
    look: Callable[[], None],
) -> int:
    """Runs a command again and again, killing it at each of up to `kills` moments, until it has come to its end.

    Args:
        killer: Of the command.
        words: Of every trial, such that another trial goes on where the last was killed.
        moments: Where to kill.
        kills: At most so often; then it is let run.
        look: Called after every kill; raises where something is half-written.

    Returns:
        How often it was killed.
    """
    done = 0
    while done < kills:
        ended = killer.run(words, *next(moments))
        if ended.status is not None:
            assert ended.status == 0, ended.text[-3000:]
            return done
        done += 1
        look()
    ended = killer.run(words)
    assert ended.status == 0, ended.text[-3000:]
    return done


def whole_and_killed(
    command: Command, words_in: Callable[[Path], list], folder: Path, kills: int, seed: int = 0
) -> tuple[Path, Path]:
    """The outputs of a command that ran undisturbed, and of one that was killed up to `kills` times and called again.

    Args:
        command: What is loaded; its words do not count.
        words_in: Output folder -> words, such that the same words go on where the command was killed.
        folder: Where the outputs are made.
        kills: See `killed_until_done`; no file may be empty after one.
        seed: Of the moments.
    """
    outputs = folder / "whole", folder / "killed"
    undisturbed, words = (tuple(map(str, words_in(output))) for output in outputs)

    def look() -> None:
        empty = [path for path in outputs[1].rglob("[!.]*") if path.is_file() and path.stat().st_size == 0]
        assert not [path for path in empty if path.suffix in (".safetensors", ".png", ".yaml", ".json")], empty

    killer = Killer(command, folder)
    try:
        whole = killer.run(undisturbed)
        assert whole.status == 0, whole.text[-3000:]
        killed_until_done(killer, words, killer.moments(whole, seed), kills, look)
    finally:
        killer.close()
    return outputs


def _serve(module: str, folder: str, prepare: str, number: str) -> None:
    names = {"main": importlib.import_module(module).main}
    exec(prepare, names)  # noqa: S102 - a line of the test's own
    main = names["main"]
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_one_trial(main, folder, int(number), **request)), flush=True)


def _one_trial(
    main: Callable, folder: str, number: int, words: list[str], operations: int, seconds: float | None
) -> tuple:
    text_end, text_start = os.memfd_create("printed"), time.perf_counter()
    events_end, events_start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(events_end)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(text_end, 1)
        os.dup2(text_end, 2)
        _tell_file_operations(folder, events_start)
        sys.argv = ["command", *words]
        run_command(main)
    os.close(events_start)
    count, killed = _watch(child, events_end, operations, seconds, text_start, number)
    _, status = os.waitpid(child, 0)
    took = time.perf_counter() - text_start
    os.close(events_end)
    os.lseek(text_end, 0, os.SEEK_SET)
    text = os.fdopen(text_end, "r", errors="replace").read()
    code = os.waitstatus_to_exitcode(status)
    by_us = killed and code in (-number, 128 + number)
    return None if by_us else code, took, count, text


def _watch(
    child: int, events: int, operations: int, seconds: float | None, start: float, number: int
) -> tuple[int, bool]:
    """Counts a child's file operations until it ends; sends it the signal at its moment."""
    count, sent = 0, False
    at = None if seconds is None or operations else start + seconds
    while True:
        now = time.perf_counter()
        wait = start + HANGS_AFTER - now if at is None else max(0.0, at - now)
        if select.select([events], [], [], max(0.0, wait))[0]:
            told = os.read(events, 1)
            if not told:  # the child has ended
                return count, sent
            count += 1
            if at is None and seconds is not None and count == operations:
                at = time.perf_counter() + seconds
        elif at is None or number == signal.SIGKILL or sent:
            os.kill(child, signal.SIGKILL)
            return count, at is not None and not sent
        else:
            os.kill(child, number)
            sent, at = True, start + HANGS_AFTER


def _tell_file_operations(folder: str, pipe: int) -> None:
    def hook(event: str, args: tuple) -> None:
        is_path = event in FILE_EVENTS and isinstance(args[0], str | bytes | os.PathLike)
        if is_path and os.fsdecode(args[0]).startswith(folder):
            os.write(pipe, b"x")

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
