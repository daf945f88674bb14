"""Commands of the projects, run as a user runs them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parents[2]
# One thread: tests run two at a time on two cores, and the frameworks must not share them unevenly.
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
_PATHS = (str(REPOSITORY / "ci"), os.environ.get("PYTHONPATH", ""))
ENV_WITH_KIT = {**ENV, "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))}
"""For processes that import modules of tests."""


def run_command(
    project: str,
    script: str,
    *arguments: object,
    launcher: Sequence[str] = (),
    timeout: float = 170,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Runs a script of a project from the project's folder. Returns the finished process with its output as text.

    Args:
        project: The name of its folder in projects/.
        script: Such as "train.py".
        arguments: Of the script.
        launcher: Arguments of Python before the script, such as ("-m", "torch.distributed.run").
        timeout: Seconds after which the test fails.
        env: Variables besides `ENV`.
    """
    return subprocess.run(
        [sys.executable, *launcher, script, *map(str, arguments)],
        cwd=REPOSITORY / "projects" / project,
        env={**ENV, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_here(main: Callable[[], object], *arguments: object) -> str:
    """Calls a script's `main` in this process, which has loaded its framework already. Returns what it printed."""
    out = io.StringIO()
    with patch.object(sys, "argv", ["script", *map(str, arguments)]), contextlib.redirect_stdout(out):
        main()
    return out.getvalue()


def error_line(process: subprocess.CompletedProcess) -> str:
    """The one line with which a user's mistake ends, without "error: "; fails on a traceback or another status."""
    out, err = process.stdout, process.stderr
    assert process.returncode in (1, 2), (process.returncode, out[-1000:], err[-2000:])
    assert "Traceback" not in out + err, err[-3000:]
    if process.returncode == 2:  # argparse, which shows the usage first
        return err.strip().splitlines()[-1].partition("error: ")[2]
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")
