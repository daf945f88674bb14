"""Losses that are no numbers, images that never arrive, loaders and ranks that die: each ends with a message."""

import json
import os
import re
import time

from common.runs.reading import read_run

import numpy as np
import pytest
from safetensors.numpy import load_file
from targets import RESUMABLE, TARGETS, call, images, launch, run_script, write_data
from testkit import error_line, run_folder

SECONDS = 90  # in which each of these ends, start of the program included; most of it is the import of a framework


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(target, tmp_path, tried):
    tried("loss NaN: stopped before the update, the batch's images named in a file", target.name)
    data = write_data(tmp_path / "data")
    words = target.key("optimizer.learning_rate", 1.0e30)
    line = error_line(call(target.train(data, tmp_path / "out", 20, *words)))
    assert line.startswith(("loss is nan at step", "loss is inf at step"))
    (report,) = (tmp_path / "out").glob("*/nonfinite_loss_step*.json")
    assert str(report) in line
    content, folder = json.loads(report.read_text()), run_folder(tmp_path / "out")
    known = {str(path) for path in images(data)}
    assert len(content["images"]) == 2 and set(content["images"]) <= known
    assert content["step"] == len(read_run(folder).train) + 1 > 1
    for path in folder.glob("*.safetensors"):
        assert all(np.isfinite(value).all() for value in load_file(path).values())


def test_weights_that_are_no_numbers_are_not_saved_by_the_zoo(tmp_path, tried):
    """The loss before the only update is finite; the other projects save after an evaluation, whose loss tells."""
    tried("weights NaN after the last update: nothing saved", TARGETS[-1].name)
    words = TARGETS[-1].key("optimizer.learning_rate", 1.0e300)
    line = error_line(call(TARGETS[-1].train(write_data(tmp_path / "data"), tmp_path / "out", 1, *words)))
    assert "holds NaN or infinity after the last update: it is not saved" in line
    assert len(read_run(run_folder(tmp_path / "out")).train) == 1
    assert not list((tmp_path / "out").rglob("*.safetensors"))


# --- loaders ---------------------------------------------------------------------------------------------------------

# One image is never read. A wait without end stands for a network drive that does not answer.
HANG = """
import sys, threading
import common.samples.list_dataset as lists
from common.cli import run_command
from common.samples.stream import BatchLoader
BatchLoader.HANGS_AFTER = 1.0
real, hanging = lists.read_image, sys.argv.pop(1)
lists.read_image = lambda path: threading.Event().wait() if str(path) == hanging else real(path)
from {module} import main
run_command(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_an_image_that_never_arrives(target, workers, tmp_path, tried):
    tried("an image that never arrives: named, the run ended", target.name)
    data = write_data(tmp_path / "data")
    command = target.train(data, tmp_path / "out", 20, *target.key("train.num_workers", workers))
    hanging = images(data)[0]
    outcome = run_script(HANG.format(module=command.module), [hanging, *command.words], SECONDS)
    assert f"{hanging} or its label: not read in 1 seconds" in error_line(outcome)


HANG_PADDLESEG = """
import sys, threading
from common.cli import run_command
from paddleseg_benchmark.data import batches
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.train import main
batches.HANGS_AFTER = 3.0
real, hanging = data.read_image, sys.argv.pop(1)
data.read_image = lambda path: threading.Event().wait() if str(path) == hanging else real(path)
run_command(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_never_arrives_in_the_zoo(workers, tmp_path, tried):
    tried("an image that never arrives: named, the run ended", TARGETS[-1].name)
    data = write_data(tmp_path / "data")
    command = TARGETS[-1].train(data, tmp_path / "out", 20, "--num_workers", workers)
    hanging = images(data)[0]
    line = error_line(run_script(HANG_PADDLESEG, [hanging, *command.words], SECONDS))
    assert str(hanging) in line and "not read in 3 seconds" in line


# One loader process kills itself, as the kernel does where memory runs out.
LOST = """
import multiprocessing, os, sys
from common.cli import run_command
from paddleseg_benchmark.data import batches
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.train import main
batches.HANGS_AFTER = 30.0
real, deadly = data.read_image, sys.argv.pop(1)
def read(path):
    if str(path) == deadly and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), 9)
    return real(path)
data.read_image = read
run_command(main)
"""


@pytest.mark.slow
def test_a_loader_process_that_is_killed(tmp_path, tried):
    """Only `paddleseg_benchmark` has loader processes, those of paddle; the others load in threads."""
    tried("a loader process killed: a message, the run ended", TARGETS[-1].name)
    data = write_data(tmp_path / "data")
    command = TARGETS[-1].train(data, tmp_path / "out", 20, "--num_workers", 2)
    outcome = run_script(LOST, [images(data)[1], *command.words], SECONDS)
    assert outcome.returncode == 1
    assert outcome.stderr.strip().splitlines()[-1].startswith("error: ")


# --- two processes ---------------------------------------------------------------------------------------------------

# Rank 1 is killed in its third step; every rank writes its process number.
DIES = """
import os, sys
from pathlib import Path
import common.samples.stream
from common.cli import run_command
from {module} import main
rank = os.environ.get("PADDLE_TRAINER_ID") or os.environ["RANK"]
Path(sys.argv.pop(1), rank).write_text(str(os.getpid()))
seen = []
def look_at(self, label):
    seen.append(1)
    if rank == "1" and len(seen) == 3:
        os.kill(os.getpid(), 9)
common.samples.stream.ValidPixels.look_at = look_at
run_command(main)
"""


# With paddle the other rank may abort (gloo: its peer is gone) before the launcher looks; it names whom it sees first.
SAID = {"torch": r"Signal 9 \(SIGKILL\) received", "paddle": r"Container rank [01] status failed"}


@pytest.mark.slow
@pytest.mark.parametrize("target", [t for t in TARGETS if t.in_processes], ids=lambda target: target.name)
def test_a_rank_that_is_killed(target, tmp_path, tried):
    tried("one of two processes killed: both ended, with a message", target.name)
    data, script, pids = write_data(tmp_path / "data", count=9), tmp_path / "dies.py", tmp_path / "pids"
    pids.mkdir()
    command = target.train(data, tmp_path / "out", 5000)
    script.write_text(DIES.format(module=command.module))
    batch = () if target is TARGETS[-1] else target.key("train.batch_size", 4)
    outcome = launch(target, script, [pids, *command.words, *batch], tmp_path / "log", SECONDS)
    assert outcome.returncode != 0
    assert re.search(SAID[target.framework], outcome.stdout + outcome.stderr)
    assert sorted(path.name for path in pids.iterdir()) == ["0", "1"]
    for path in pids.iterdir():
        assert is_gone(int(path.read_text())), f"rank {path.name} still runs"


def is_gone(pid):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
