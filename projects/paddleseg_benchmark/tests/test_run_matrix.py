import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.cli import UserError
from paddleseg_benchmark import run_matrix, updates
from paddleseg_benchmark.matrix.measure import Cell
from paddleseg_benchmark.matrix.report import COLUMNS
from paddleseg_benchmark.matrix.rounds import IDENTITY, locked, run_process, start_or_continue
from paddleseg_benchmark.matrix.rows import matrix_row, write_matrix
from paddleseg_benchmark.zoo import zoo

import pytest

# Stands for measure.py: what it does is the network's name; what it did is a line in a log.
STAND_IN = """
import json, os, signal, sys, time
behaviour, out, log = sys.argv[1:]
with open(log, "a") as stream:
    stream.write(f"{behaviour}\\n")
if behaviour == "crash":
    raise RuntimeError("no kernel for this")
if behaviour == "hang":
    time.sleep(60)
if behaviour == "slow":
    time.sleep(2)
if behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour != "silent":
    with open(out + ".tmp", "w") as stream:
        json.dump({"seconds": 1}, stream)
    os.rename(out + ".tmp", out)
"""


class StandIn:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.script, self.log = self.folder / "stand_in.py", self.folder / "log.txt"
        self.script.write_text(STAND_IN)

    def command(self, cell, out):
        return [sys.executable, "-S", str(self.script), cell.model, str(out), str(self.log)]

    def started(self):
        return self.log.read_text().split()

    def run(self, models, rounds=1, time_limit_s=20, refuse=lambda cell: None, finish_round=lambda results: None):
        cells = [Cell("paddleseg", model) for model in models]
        rounds_folder = self.folder / "rounds"
        results = run_matrix.run_matrix(cells, rounds_folder, rounds, time_limit_s, self.command, refuse, finish_round)
        return [[result["status"] for result in results[cell]] for cell in cells]


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


def test_cells_take_turns_round_by_round(stand_in):
    calls = []
    statuses = stand_in.run(["a", "b", "c"], rounds=3, finish_round=lambda results: calls.append(len(calls)))
    assert stand_in.started() == ["a", "b", "c"] * 3
    assert statuses == [["ok"] * 3] * 3
    assert len(calls) == 3


def test_a_cell_that_fails_is_named_and_the_rest_goes_on(stand_in):
    statuses = stand_in.run(["crash", "killed", "hang", "silent", "good"], rounds=2, time_limit_s=3)
    assert statuses == [
        ["failed: RuntimeError: no kernel for this"],
        ["failed: killed by SIGKILL (out of memory?)"],
        ["failed: not finished after 3 s"],
        ["failed: the process ended well but left no result"],
        ["ok", "ok"],
    ]
    assert stand_in.started() == ["crash", "killed", "hang", "silent", "good", "good"]  # none is tried twice
    assert "Traceback" in (stand_in.folder / "rounds" / f"{Cell('paddleseg', 'crash').key}.r1.log").read_text()


def test_what_is_refused_is_not_started(stand_in):
    refuse = {"a": None, "b": "not supported here: no"}
    statuses = stand_in.run(["a", "b"], refuse=lambda cell: refuse[cell.model])
    assert statuses == [["ok"], ["not supported here: no"]]
    assert stand_in.started() == ["a"]


def test_a_hanging_cell_takes_its_children_with_it(tmp_path):
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    log = tmp_path / "log"
    assert run_process([sys.executable, "-S", "-c", code], log, 3) == "failed: not finished after 3 s"
    child = Path("/proc", log.read_text().strip(), "stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_second_start_goes_on_and_waits_for_the_cell_that_kill_9_left_behind(stand_in):
    driver = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from paddleseg_benchmark.matrix import rounds; import test_run_matrix as t; folder = Path(sys.argv[1])\n"
        "with rounds.locked(folder): t.StandIn(folder).run(['first', 'slow', 'last'])"
    )
    here = str(Path(__file__).parent)
    parent = subprocess.Popen([sys.executable, "-c", driver, str(stand_in.folder), here], stderr=subprocess.DEVNULL)
    while not stand_in.log.exists() or "slow" not in stand_in.started():
        assert parent.poll() is None
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    with locked(stand_in.folder):
        assert stand_in.run(["first", "slow", "last"]) == [["ok"]] * 3
    assert stand_in.started() == ["first", "slow", "last"]  # each was measured once


def test_another_commit_or_machine_does_not_join_a_matrix(tmp_path):
    env = dict.fromkeys(IDENTITY, "as before")
    start_or_continue(tmp_path, env | {"load_average_before": 1})
    start_or_continue(tmp_path, env | {"load_average_before": 2})
    assert json.loads((tmp_path / "env.json").read_text())["load_average_before"] == 1
    with pytest.raises(UserError, match="begun with commit as before, now it is another"):
        start_or_continue(tmp_path, env | {"commit": "another"})


def measured(step_ms, load_ms, **more):
    return {
        "status": "ok",
        "step_ms": step_ms,
        "load_ms": load_ms,
        "losses": [3.0, 2.75, 2.5, 2.25, 2.0],
        "loss_scales": [None] * 5,
        "skipped_steps": 0,
        "parameters": 7,
        "evaluation_ms": 10.0,
        "evaluation_miou_percent": 2.5,
        "memory_at_start_gib": 0.5,
        "peak_memory_gib": 1.0,
        "memory_kind": "rss",
        **more,
    }


def test_the_numbers_of_a_cell_by_hand():
    rounds = [
        measured([90, 100, 200], [10, 20, 0]),  # steps of 100, 120, 200: median 120
        measured([80, 80, 80], [0, 0, 0], peak_memory_gib=1.25, losses=[9.0] * 5),  # median 80
        measured([400, 100, 130], [0, 0, 0], evaluation_ms=30.0),  # median 130
    ]
    row = matrix_row(Cell("paddleseg", "unet", batch=4), rounds, 8)
    assert (row["status"], row["rounds"]) == ("ok", 3)
    assert (row["step_ms"], row["step_ms_min"], row["step_ms_max"]) == ("120.00", "80.00", "400.00")
    assert (row["images_per_s"], row["images_per_s_min"], row["images_per_s_max"]) == ("33.333", "10.000", "50.000")
    assert row["loader_percent"] == "2.33"  # 30 of 1290 ms
    assert (row["peak_memory_gib"], row["memory_at_start_gib"]) == ("1.250", "0.500")
    assert (row["loss_first"], row["loss_last"], row["steps"], row["nan_count"]) == ("3.000000", "2.000000", 5, 0)
    assert (row["parameters"], row["reference_parameters"], row["evaluation_ms"]) == (7, 8, "10.00")


def test_scales_skipped_steps_and_losses_that_are_no_numbers_are_told():
    scales = [1024.0, 1024.0, 512.0, 512.0, 1024.0]
    losses = [None, 2.0, None, 1.5, None]
    row = matrix_row(
        Cell("paddleseg", "unet"), [measured([1.0], [0.0], loss_scales=scales, losses=losses, skipped_steps=2)], None
    )
    assert row["loss_scales"] == "1024 512 1024"
    assert (row["nan_count"], row["skipped_steps"], row["loss_first"], row["loss_last"]) == (3, 2, "nan", "nan")


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([], "not run"),
        (
            [{"status": "not supported here: Paddle ignores AMP on a CPU"}],
            "not supported here: Paddle ignores AMP on a CPU",
        ),
        ([measured([1.0], [0.0]), {"status": "failed: killed by SIGSEGV"}], "failed: killed by SIGSEGV (round 2)"),
    ],
)
def test_a_cell_that_was_not_measured_to_the_end_has_no_number(tmp_path, results, status):
    write_matrix(tmp_path / "matrix.csv", [matrix_row(Cell("paddleseg", "unet"), results, 8)])
    with open(tmp_path / "matrix.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["status"] == status
    numbers = set(COLUMNS[COLUMNS.index("rounds") :]) - {"reference_parameters"}
    assert {row[name] for name in numbers} == {""}


def test_the_zoo_preset_has_every_network_and_the_promised_layouts_and_graphs():
    cells = run_matrix.preset_cells("zoo")
    assert [cell.model for cell in cells[: len(zoo.ROWS)]] == [row.name for row in zoo.ROWS]
    assert {(cell.precision, cell.loader, cell.height, cell.width) for cell in cells} == {
        ("fp32", "synthetic", 128, 256)
    }
    assert [(cell.model, cell.layout, cell.graph) for cell in cells[len(zoo.ROWS) :]] == [
        ("deeplabv3p_resnet50", "NHWC", "dynamic"),
        ("deeplabv3p_resnet50", "NCHW", "static"),
        ("fcn_hrnet_w18", "NCHW", "static"),
    ]


@pytest.mark.parametrize("preset", ["zoo", "cpu", "gpu"])
def test_no_cell_of_a_preset_stands_twice_and_all_networks_exist(preset):
    cells = run_matrix.preset_cells(preset)
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.model for cell in cells} <= {row.name for row in zoo.ROWS}


def test_on_a_cpu_no_mixed_precision_of_paddle_is_measured():
    cells = [cell for cell in run_matrix.preset_cells("cpu") if cell.library == "paddleseg"]
    for precision in updates.PRECISIONS:
        refusals = [run_matrix.refusal(cell, "cpu", False) for cell in cells if cell.precision == precision]
        if precision == "fp32":
            assert None in refusals
        else:
            assert all(why.startswith("not supported here: ") for why in refusals)


def test_a_peer_that_is_absent_or_lacks_a_network_says_so():
    def why(library, model, **more):
        return run_matrix.refusal(Cell(library, model, **more), "cpu", has_mmseg=False)

    assert why("mmseg", "fastscnn") == "not installed here"
    assert run_matrix.refusal(Cell("mmseg", "fastscnn"), "cpu", has_mmseg=True) is None
    assert why("smp", "fastscnn") == "no such network"
    assert why("torchvision", "deeplabv3_resnet50", precision="bf16") is None
    assert why("smp", "pspnet_resnet50", precision="o2_fp16") == "not supported here: PyTorch has no o2_fp16"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "gpu"], "preset gpu: Paddle sees no GPU here: python doctor.py"),
        (["--preset", "cpu", "--models", "fastscn"], "preset cpu has no 'fastscn': did you mean 'fastscnn'?"),
        (["--preset", "cpu", "--peer-python", "nothing"], "--peer-python nothing: no mmsegmentation there"),
    ],
)
def test_a_command_that_cannot_start_says_why(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_matrix.py", *words])
    monkeypatch.setattr(run_matrix.doctor, "device_kind", lambda: "cpu")
    with pytest.raises(UserError, match=re.escape(message)):
        run_matrix.main()


def test_a_cells_process_finds_this_repository_in_an_interpreter_that_does_not_have_it(tmp_path):
    cell = Cell("mmseg", "fastscnn")
    env, path, python, *_ = run_matrix.cell_command(cell, tmp_path / "a.json", 2, sys.executable)
    code = "from importlib.util import find_spec as f; print(f('common').origin, f('paddleseg_benchmark').origin)"
    done = subprocess.run([env, path, python, "-S", "-c", code], capture_output=True, text=True, check=True)
    project = Path(run_matrix.__file__).parent
    assert done.stdout.split() == [str(project.parents[1] / "common/__init__.py"), str(project / "__init__.py")]
