"""Progress of long work: a bar with the time left on a terminal, JSON lines elsewhere.

Both go to standard error. Where that is no terminal (a pipe, a batch system, a file) it gets one JSON object per line:
at most one of progress every 30 s, so that short work is quiet, and one for every event.

    {"time": "2026-11-21T14:03:05Z", "what": "train", "done": 120, "total": 400, "eta_s": 142.8, "loss": 0.52}
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0

Item = TypeVar("Item")


class Progress:
    """How far one piece of work is.

    Args:
        total: How many units it has; None where nobody knows.
        what: Its name: "train", "predict".
        unit: Of what it counts: "step", "image"; "B" are bytes, shown in k and M.
        done: How many units were done before, by a run that goes on.
        keep: Whether the full bar stays on the terminal.
        silent: Says nothing at all: for all processes but the first.
    """

    def __init__(self, total: int | None, what: str, unit: str, done: int = 0, keep: bool = True, silent: bool = False):
        self.total, self.what, self.done = total, what, done
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            unit_scale=unit == "B",
            leave=keep,
            disable=True if silent else None,  # None: where standard error is no terminal
        )
        self._writes_lines = self._bar.disable and not silent
        self._numbers: dict[str, Any] = {}
        self._start, self._done_at_start = time.monotonic(), done
        self._last_line = self._start

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Counts units that are done."""
        self.done += count
        self._bar.update(count)
        if self._writes_lines and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._write_line({"done": self.done, "total": self.total, "eta_s": self._seconds_left(), **self._numbers})

    def show(self, **numbers: float | str) -> None:
        """Sets what stands beside the bar and in the next lines: the loss, the best score."""
        self._numbers = numbers
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in numbers.items()}
        self._bar.set_postfix(shown, refresh=False)

    def event(self, text: str, **fields: Any) -> None:
        """Says that something happened: `text` above the bar on a terminal, `fields` as a JSON line elsewhere."""
        if self._writes_lines:
            self._write_line(fields)
        elif not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def print(self, text: str) -> None:
        """Prints a line of the result to standard output, above the bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _seconds_left(self) -> float | None:
        counted = self.done - self._done_at_start
        if self.total is None or counted == 0:
            return None
        return round((time.monotonic() - self._start) / counted * (self.total - self.done), 1)

    def _write_line(self, fields: dict[str, Any]) -> None:
        self._last_line = time.monotonic()
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # JSON knows neither NaN nor infinity; a reader in another language would stop at the word.
        odd = {key for key, value in fields.items() if isinstance(value, float) and not math.isfinite(value)}
        known = fields | dict.fromkeys(odd)
        print(json.dumps({"time": stamp, "what": self.what, **known}, ensure_ascii=False), file=sys.stderr, flush=True)


def track(
    items: Iterable[Item],
    what: str,
    unit: str,
    total: int | None = None,
    keep: bool = True,
    silent: bool = False,
) -> Iterator[Item]:
    """Yields `items` and says how far that is; `total` where they have no length. See `Progress`."""
    total = len(items) if total is None else total  # type: ignore[arg-type]
    with Progress(total, what, unit, keep=keep, silent=silent) as progress:
        for item in items:
            yield item
            progress.update()
