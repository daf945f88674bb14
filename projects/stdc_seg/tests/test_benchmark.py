"""The benchmark's worker protocol, order of turns and tables; no speed is asserted."""

import csv
import json
import os
import subprocess
import sys

from common.machine.bench import Task
from stdc_seg import benchmark
from stdc_seg.benchmark import Comparison, Setting, start_worker

import pytest

TASK = Task("train", 4, 128, 256)
OURS, THEIRS = Setting("ours", 2, True), Setting("paddleseg", 1, False)


def test_rows_hold_medians_spread_and_speedup():
    timings = {(TASK, OURS): [0.5, 0.4, 0.8], (TASK, THEIRS): [1.0, 1.2, 0.9]}
    ours, theirs = benchmark.timing_rows(timings)
    assert ours == {
        "task": "train",
        "batch": 4,
        "height_px": 128,
        "width_px": 256,
        "network": "ours",
        "threads": 2,
        "cpu_settings": "cpu.py",
        "median_ms": 500.0,
        "min_ms": 400.0,
        "max_ms": 800.0,
        "images_per_s": 8.0,
        "repeats": 3,
    }
    assert (theirs["cpu_settings"], theirs["median_ms"], theirs["images_per_s"]) == ("paddle's defaults", 1000.0, 4.0)
    wanted = [Comparison("a", OURS, THEIRS)]
    (row,) = benchmark.speedup_rows(timings, wanted)
    # Medians 1.0 / 0.5; turns 1.0 / 0.5 = 2, 1.2 / 0.4 = 3, 0.9 / 0.8 = 1.125.
    assert (row["comparison"], row["speedup"], row["speedup_min"], row["speedup_max"]) == ("a", 2.0, 1.125, 3.0)
    text = benchmark.table(timings, wanted)
    assert "500.0 ms (400.0..800.0)  8.00 images/s" in text
    assert "2 thr, cpu.py against 1 thr, paddle's defaults" in text
    assert "2.00x (1.12..3.00)" in text


def test_comparisons_ask_the_three_questions():
    found = benchmark.comparisons(threads=2, has_tuning=True)
    assert found[0] == ("a", ("ours", 2, True), ("paddleseg", 1, False))
    assert found[1:] == [
        (question, ("ours", threads, tuned), ("paddleseg", threads, tuned))
        for question, tuned in (("b", False), ("c", True))
        for threads in (1, 2)
    ]
    assert [c.question for c in benchmark.comparisons(threads=1, has_tuning=False)] == ["a", "b"]


@pytest.mark.parametrize("network", ["ours", "paddleseg"])
def test_real_worker_times_a_step(network):
    with start_worker(Setting(network, 1, False)) as worker:
        assert worker.run(Task("train", 2, 96, 192)) > 0


@pytest.mark.slow
def test_command_writes_tables_and_environment(tmp_path):
    """The real thing, small: every network trains and infers under every setting of one thread."""
    words = ["--sizes", "96x192", "--batch", "2", "--repeats", "1", "--threads", "1", "--output", tmp_path / "out"]
    code = "import sys; from stdc_seg import benchmark; benchmark.INFERENCE_SIZE = (96, 192); benchmark.main()"
    env = {**os.environ, "MKL_DEBUG_CPU_TYPE": "5"}  # so that the settings are two on any processor
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=env, capture_output=True, text=True, timeout=300, check=True
    )
    rows = list(csv.DictReader((tmp_path / "out" / "timings.csv").open()))
    assert {(row["task"], row["network"], row["threads"], row["cpu_settings"]) for row in rows} == {
        (task, network, "1", settings)
        for task in ("train", "infer")
        for network in ("ours", "paddleseg")
        for settings in ("cpu.py", "paddle's defaults")
    }
    assert all(float(row["min_ms"]) == float(row["median_ms"]) == float(row["max_ms"]) > 1 for row in rows)
    speedups = list(csv.DictReader((tmp_path / "out" / "speedups.csv").open()))
    assert [row["comparison"] for row in speedups] == ["a", "b", "c"] * 2
    record = json.loads((tmp_path / "out" / "env.json").read_text())
    assert (record["threads"], record["repeats"], record["warmup_steps"]) == (1, 1, 2)
    assert record["packages"]["paddleseg"] == "2.8.0"
    assert done.stdout.count("against") == 1 + len(speedups)


@pytest.mark.parametrize("words", [["--sizes", "64x128"], ["--sizes", "128"], ["--repeats", "0"]])
def test_wrong_arguments_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert words[1] in capsys.readouterr().err
