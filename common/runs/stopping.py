"""Preemption: SIGTERM and SIGUSR1 ask a run to save and end, as batch systems send them before they end it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """Ends the program with 128 + the signal's number.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    @property
    def signal_name(self) -> str:
        """Of the signal: "SIGTERM"."""
        return signal.Signals(self.number).name


class StopSignals:
    """While it is entered, the first SIGTERM or SIGUSR1 is noted, and a second one ends the program at once.

    Where nothing is lost, in a block of `at_once`, the first one raises `Stopped`. One that is not entered, or not in
    the main thread, notes nothing.

    Attributes:
        number: Of the signal that arrived; 0 before.
    """

    def __init__(self):
        self.number = 0
        self._ends_at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def explained(self, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
        """Says of a run that ends by a signal what is saved and how to resume it."""
        try:
            yield
        except Stopped as stopped:
            checkpoint = folder / "last.safetensors"
            saved = f"{checkpoint} is saved: train.py --resume {folder} continues there"
            anew = "nothing is trained yet: run the same command again"
            say(f"stopped by {stopped.signal_name}: {saved if checkpoint.is_file() else anew}")
            raise

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block a signal, or one that has arrived before, raises `Stopped`."""
        self._ends_at_once = True
        try:
            if self.number:
                raise Stopped(self.number)
            yield
        finally:
            self._ends_at_once = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        if self._ends_at_once:
            raise Stopped(number)
