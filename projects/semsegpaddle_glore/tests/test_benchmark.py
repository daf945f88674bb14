"""The benchmark's worker protocol, order of turns and tables; no speed is asserted."""

import csv
import json
import subprocess
import sys

from common.machine.bench import Task
from semsegpaddle_glore import benchmark
from semsegpaddle_glore.benchmark import Setting, start_worker
from semsegpaddle_glore.benchmark_tasks import MEMORY_PROTOCOL, NETWORKS, build_network

import paddle
import pytest

TASK = Task("train", 4, 128, 256)
OURS, THEIRS = Setting("ours", 2), Setting("paddleseg", 2)


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
        "median_ms": 500.0,
        "min_ms": 400.0,
        "max_ms": 800.0,
        "images_per_s": 8.0,
        "repeats": 3,
    }
    assert (theirs["network"], theirs["median_ms"], theirs["images_per_s"]) == ("paddleseg", 1000.0, 4.0)
    (row,) = benchmark.speedup_rows(timings)
    # Medians 1.0 / 0.5; turns 1.0 / 0.5 = 2, 1.2 / 0.4 = 3, 0.9 / 0.8 = 1.125.
    assert (row["peer"], row["speedup"], row["speedup_min"], row["speedup_max"]) == ("paddleseg", 2.0, 1.125, 3.0)
    text = benchmark.table(timings)
    assert "500.0 ms (400.0..800.0)  8.00 images/s" in text
    assert "paddleseg, 2 threads      2.00x (1.12..3.00)" in text


def test_each_peer_is_compared_at_its_own_number_of_threads():
    one = [Setting(name, 1) for name in ("ours", "paddleseg")]
    timings = {(TASK, OURS): [1.0], (TASK, THEIRS): [3.0], (TASK, one[0]): [2.0], (TASK, one[1]): [4.0]}
    rows = benchmark.speedup_rows(timings)
    assert [(row["threads"], row["speedup"]) for row in rows] == [(2, 3.0), (1, 2.0)]


def test_real_worker_times_a_step():
    """Ours; its peers' steps, which take longer, are in the slow test of the command."""
    with start_worker(Setting("ours", 1)) as worker:
        assert worker.run(Task("train", 2, 65, 97)) > 0


def test_both_are_of_the_size_that_the_tables_say():
    def trainable(network):
        with paddle.LazyGuard():  # no weights
            parameters = build_network(network).parameters()
        return sum(p.size for p in parameters if not p.stop_gradient)

    # paddleseg's: model_facts.csv; ours: the docstring of PSPHead.
    assert [trainable(network) for network in ("ours", "paddleseg")] == [48_956_262, 67_863_942]


@pytest.mark.slow
def test_evaluating_a_large_image_stays_under_4_gib():
    """And two of the eight windows show it: two more add nothing."""
    assert benchmark.MEMORY_SIZE == (1024, 2048) and MEMORY_PROTOCOL.window == (769, 769)
    with start_worker(Setting("ours", 1)) as worker:
        assert 0.5 < (two := worker.run(Task("memory", 1, 1024, 2048))) < 4
    code = (
        "from semsegpaddle_glore.benchmark_tasks import build_network, peak_of_evaluating;"
        "print(peak_of_evaluating(build_network('ours'), (1024, 2048), windows=4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(two, rel=0.05)


@pytest.mark.slow
def test_command_writes_tables_and_environment(tmp_path):
    """The real thing, small: every network trains and infers with one thread."""
    words = ["--sizes", "65x97", "--repeats", "1", "--threads", "1", "--output", tmp_path / "out"]
    code = (
        "import sys; from semsegpaddle_glore import benchmark; benchmark.INFERENCE_SIZE = (96, 192);"
        "benchmark.MEMORY_SIZE = (128, 256); benchmark.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300, check=True
    )
    rows = list(csv.DictReader((tmp_path / "out" / "timings.csv").open()))
    assert [(row["task"], row["network"], row["threads"]) for row in rows] == [
        (task, network, "1") for task in ("train", "infer") for network in NETWORKS
    ]
    assert all(float(row["min_ms"]) == float(row["median_ms"]) == float(row["max_ms"]) > 1 for row in rows)
    speedups = list(csv.DictReader((tmp_path / "out" / "speedups.csv").open()))
    assert [row["peer"] for row in speedups] == ["paddleseg", "paddleseg_512"] * 2
    (memory,) = csv.DictReader((tmp_path / "out" / "memory.csv").open())
    assert 0.2 < float(memory["peak_rss_gib"]) < 4
    record = json.loads((tmp_path / "out" / "env.json").read_text())
    assert (record["threads"], record["repeats"], record["warmup_steps"]) == (1, 1, 2)
    assert record["packages"]["paddleseg"] == "2.8.0"
    assert "peak memory of evaluating 128x256" in done.stdout


@pytest.mark.parametrize("words", [["--sizes", "64x128"], ["--sizes", "128"], ["--repeats", "0"]])
def test_wrong_arguments_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert words[1] in capsys.readouterr().err
