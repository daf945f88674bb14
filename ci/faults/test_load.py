"""Long runs in flat memory, and long lists."""

import json

from common.lists.list_file import read_list

import numpy as np
import pytest
from targets import TARGETS, run, run_script, write_data
from testkit import run_folder

STEPS, IMAGES = 1000, 2000
WARM_UP = 300  # steps or images after which memory no longer grows: allocators and caches are filled
SLOPE_MB = 1.0  # per 100 steps or images
SECONDS = 500  # a limit, not a promise

# Notes the resident memory at every step (a row of train.csv) or image (an update of the confusion matrix).
MEASURED = """
import json, os, sys
from pathlib import Path
from common import metrics, run_log
from common.cli import run_command
from {module} import main
output, resident = Path(sys.argv.pop(1)), []

def note():
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

def noting(method):
    def noted(*args, **kwargs):
        result = method(*args, **kwargs)
        note()
        return result
    return noted

if {of_steps}:
    run_log.RunLog.log_train = noting(run_log.RunLog.log_train)
else:
    metrics.ConfusionMatrix.update = noting(metrics.ConfusionMatrix.update)
try:
    run_command(main)
finally:
    output.write_text(json.dumps(resident))
"""


def resident_memory(command, of_steps, tmp_path):
    """Bytes at each step or image of a command."""
    output = tmp_path / "resident.json"
    script = MEASURED.format(module=command.module, of_steps=of_steps)
    outcome = run_script(script, (output, *command.words), SECONDS)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return json.loads(output.read_text())


def slope_mb(resident):
    """Least squares after the warm-up, in MB per 100."""
    later = np.array(resident[WARM_UP:], np.float64) / 1e6
    return 100 * np.polyfit(np.arange(len(later)), later, 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_training_in_flat_memory(target, tmp_path, tried):
    tried(f"{STEPS} training steps in flat memory", target.name, STEPS)
    data = write_data(tmp_path / "data")
    once = (*target.key("train.eval_every", STEPS), *target.key("train.checkpoint_every", STEPS))
    command = target.train(data, tmp_path / "out", STEPS, *(once if target.resumable else ()))
    resident = resident_memory(command, True, tmp_path)
    assert len(resident) == STEPS
    slope = slope_mb(resident)
    print(f"{target.name}: {slope:+.3f} MB per 100 steps, {resident[-1] / 1e6:.0f} MB in the end")
    assert slope < SLOPE_MB


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_evaluation_in_flat_memory(target, tmp_path, tried):
    tried(f"{IMAGES} images evaluated in flat memory", target.name, IMAGES)
    data = write_data(tmp_path / "data")
    repeat_val(data)
    if target.resumable:
        assert run(target.train(write_data(tmp_path / "few"), tmp_path / "out", 1)).returncode == 0
        weights = run_folder(tmp_path / "out") / "best.safetensors"
        command = target.eval(weights, data, tmp_path / "eval")
    else:
        command = target.train(data, tmp_path / "out", 1, "--do_eval")
    resident = resident_memory(command, False, tmp_path)
    assert len(resident) == IMAGES
    slope = slope_mb(resident)
    print(f"{target.name}: {slope:+.3f} MB per 100 images, {resident[-1] / 1e6:.0f} MB in the end")
    assert slope < SLOPE_MB


def repeat_val(data):
    """Makes the few validation images IMAGES of other names."""
    lines = (data / "val.txt").read_text().split()
    more = []
    for number in range(IMAGES - len(lines)):
        pair = lines[number % len(lines)].split(",")
        names = [name.replace("town/", f"town/{number}_again_") for name in pair]
        for old, new in zip(pair, names, strict=True):
            (data / new).hardlink_to(data / old)
        more.append(",".join(names))
    (data / "val.txt").write_text("\n".join([*lines, *more]) + "\n")


LINES = 100_000
SLOW = pytest.mark.slow


@pytest.mark.parametrize("separator", [",", " ", pytest.param("\t", marks=SLOW), pytest.param("|", marks=SLOW)])
def test_a_list_of_100_000_lines(separator, tmp_path, tried):
    """Whole and in order; how long it takes is measured by `ci/benchmark_list_reading.py`."""
    tried(f"lists of {LINES} lines read with a check of their files", "common/lists/list_file.py")
    names = [f"{kind}/{i}.png" for kind in ("image", "label") for i in range(1000)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = (f"image/{i % 1000}.png{separator}label/{i % 1000}.png\n" for i in range(LINES))
    (tmp_path / "train.txt").write_text("".join(lines))
    pairs = read_list(tmp_path / "train.txt")
    every = [(tmp_path / f"image/{i}.png", tmp_path / f"label/{i}.png") for i in range(1000)]
    assert len(pairs) == LINES
    assert all(pairs[start : start + 1000] == every for start in range(0, LINES, 1000))
