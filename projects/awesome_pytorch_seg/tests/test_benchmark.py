"""The benchmark's worker protocol, order of turns and tables; no speed is asserted."""

import csv
import json
import subprocess
import sys

from awesome_pytorch_seg import benchmark
from awesome_pytorch_seg.benchmark_worker import Answer, Network, Task, outputs_of

import pytest
import torch

TASK = Task("train", "fp32", 4, 128, 256)
OURS, THEIRS = Network("pspnet", "ours"), Network("pspnet", "smp")


def test_answers_are_split():
    answers = {(TASK, OURS): [Answer(1.0, 12.3), Answer(2.0, 12.3)], (TASK, THEIRS): [Answer(3.0, 4.5)]}
    seconds, gmacs = benchmark.split_answers(answers)
    assert seconds == {(TASK, OURS): [1.0, 2.0], (TASK, THEIRS): [3.0]}
    assert gmacs == {(TASK, OURS): 12.3, (TASK, THEIRS): 4.5}


def test_rows_hold_medians_spread_and_the_comparisons():
    modes = {mode: TASK._replace(mode=mode) for mode in benchmark.MODES}
    ours = {"fp32": [0.5, 0.4, 0.8], "bf16": [0.2, 0.1, 0.4], "bf16_channels_last": [0.25, 0.2, 0.4]}
    theirs = {"fp32": [1.0, 1.2, 0.9], "bf16": [0.5, 0.6, 0.45], "bf16_channels_last": [0.5, 0.5, 0.5]}
    timings = {(modes[mode], OURS): ours[mode] for mode in modes} | {
        (modes[mode], THEIRS): theirs[mode] for mode in modes
    }
    gmacs = {key: 12.346 if key[1] == OURS else 6.173 for key in timings}
    times = benchmark.timing_rows(timings, gmacs)
    assert times[0] == {
        "family": "pspnet",
        "library": "ours",
        "task": "train",
        "batch": 4,
        "height_px": 128,
        "width_px": 256,
        "mode": "fp32",
        "gmacs_per_image": 12.35,
        "median_ms": 500.0,
        "min_ms": 400.0,
        "max_ms": 800.0,
        "images_per_s": 8.0,
        "repeats": 3,
    }
    rows = benchmark.speedup_rows(timings, gmacs)
    found = [(row["comparison"], row["speedup"], row["speedup_min"], row["speedup_max"]) for row in rows]
    # Turns in fp32: 1.0 / 0.5, 1.2 / 0.4, 0.9 / 0.8; bf16: 0.5 / 0.2, 0.6 / 0.1, 0.45 / 0.4; and so on.
    assert found == [
        ("fp32", 2.0, 1.125, 3.0),
        ("bf16", 2.5, 1.125, 6.0),
        ("settings", 5.0, 2.25, 12.0),
        ("same settings", 2.0, 1.25, 2.5),
    ]
    assert [row["speedup_per_gmac"] for row in rows] == [4.0, 5.0, 10.0, 4.0]  # theirs has half of the multiply-adds
    text = benchmark.table(times, rows)
    assert "500.0 ms (400.0..800.0)  12.3 GMAC/image" in text
    assert "5.00x (2.25..12.00)  10.00x per multiply-add" in text


def test_outputs_of_all_libraries():
    main, aux = torch.zeros(1), torch.ones(1)
    assert outputs_of({"out": main, "aux": aux}) == (main, aux)
    assert outputs_of({"logits": main, "aux": (aux, aux)}) == (main, aux, aux)
    assert outputs_of((main, aux)) == (main, aux)
    assert outputs_of(main) == (main,)


@pytest.mark.slow
def test_command_writes_tables_and_environment(tmp_path):
    """The real thing, small: every network trains and infers in every mode."""
    words = ["--sizes", "96x96", "--batch", "2", "--inference-size", "96x96", "--repeats", "1", "--threads", "1"]
    code = "from awesome_pytorch_seg import benchmark; benchmark.WARMUP_STEPS = 0; benchmark.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    rows = list(csv.DictReader((tmp_path / "timings.csv").open()))
    assert {(row["family"], row["library"], row["task"], row["mode"]) for row in rows} == {
        (family, library, task, mode)
        for family, libraries in benchmark.FAMILIES.items()
        for library in libraries
        for task in ("train", "infer")
        for mode in benchmark.MODES
    }
    assert all(float(row["median_ms"]) > 1 and float(row["gmacs_per_image"]) > 0.1 for row in rows)
    speedups = list(csv.DictReader((tmp_path / "speedups.csv").open()))
    assert len(speedups) == 4 * 2 * 5  # comparisons, tasks, other networks
    record = json.loads((tmp_path / "env.json").read_text())
    assert (record["threads"], record["repeats"]) == (1, 1)
    assert done.stdout.count("x per multiply-add") == len(speedups)


@pytest.mark.parametrize(
    "words", [["--sizes", "64x128"], ["--sizes", "128x130"], ["--sizes", "128"], ["--repeats", "0"]]
)
def test_wrong_arguments_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert words[1] in capsys.readouterr().err
