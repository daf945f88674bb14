"""What long work says: JSON lines where nobody watches, a bar on a terminal."""

import io
import json
import sys

from common import progress
from common.progress import Progress, track

import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns: `clock(seconds)` lets time go by."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self):
        return True


def lines(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_short_work_is_quiet_where_nobody_watches(clock, capsys):
    assert list(track([3, 4], "predict", "image")) == [3, 4]
    clock(29)
    assert lines(capsys) == []


def test_a_line_every_thirty_seconds_with_the_time_left(clock, capsys):
    with Progress(total=40, what="train", unit="step", done=10) as bar:
        bar.show(loss=0.25, best_miou_percent=float("nan"))
        for _ in range(10):
            clock(7)
            bar.update()
    first, second = lines(capsys)  # at 35 s and 70 s
    del first["time"], second["time"]
    # 5 steps took 35 s and 25 are left; the 10 of the run before are not counted as if they had taken no time.
    numbers = {"loss": 0.25, "best_miou_percent": None}
    assert first == {"what": "train", "done": 15, "total": 40, "eta_s": 175.0, **numbers}
    assert second == {"what": "train", "done": 20, "total": 40, "eta_s": 140.0, **numbers}


def test_an_event_is_a_line_at_once(clock, capsys):
    with Progress(total=None, what="train", unit="step") as bar:
        bar.event("step 5: val mIoU 40.00 %", step=5, val_miou_percent=40.0)
        clock(31)
        bar.update()
    event, later = lines(capsys)
    assert event["step"] == 5 and event["val_miou_percent"] == 40.0 and event["time"].endswith("Z")
    assert later["done"] == 1 and later["eta_s"] is None  # nobody knows the total


def test_a_terminal_gets_the_bar_and_the_text(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=4, what="train", unit="step") as bar:
        bar.show(loss=0.25)
        bar.event("step 1: val mIoU 40.00 %", step=1)
        bar.update(4)
    written = terminal.getvalue()
    assert "step 1: val mIoU 40.00 %\n" in written and "{" not in written
    assert "train: 100%" in written and "4/4" in written and "loss=0.25" in written


def test_a_line_of_the_result_goes_to_standard_output(capsys):
    with Progress(total=2, what="prove", unit="network") as bar:
        bar.print("resnet18 proven")
    assert capsys.readouterr() == ("resnet18 proven\n", "")


def test_the_other_processes_say_nothing(clock, monkeypatch, capsys):
    with Progress(total=4, what="train", unit="step", silent=True) as bar:
        bar.event("step 1", step=1)
        clock(40)
        bar.update()
    assert lines(capsys) == []
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(total=4, what="train", unit="step", silent=True) as bar:
        bar.event("step 1", step=1)
        bar.update()
    assert sys.stderr.getvalue() == ""
