"""Which folder and which data a run has, and how it ends by a signal."""

import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from common.cli import UserError
from common.labels import load_custom
from common.runs import plan
from common.runs.environment import RunEnvironment
from common.runs.provenance import data_seen, refuse_other_data, root_of_run, root_of_weights
from common.runs.stopping import Stopped, StopSignals
from common.samples.list_dataset import ListDataset
from common.samples.survey import require_image_sides

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Section:
    iters: int = 10
    batch_size: int = 8
    learning_rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    scope: str = "smoke"
    train: Section = Section()
    optimizer: Section = Section()


# Each waits for one line, so that all take a name at the same moment.
TAKE = """
import sys
from pathlib import Path
from common.runs.plan import new_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(new_folder(Path(sys.argv[1]), "run").name, flush=True)
"""


def test_trainers_that_start_together_get_a_folder_each(tmp_path):
    """Four processes take twenty names each at the same time, in a folder that is not there yet."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(tmp_path / "output")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate(timeout=60)[0].split()]
    assert sorted(names) == sorted(["run", *(f"run_{number}" for number in range(2, 81))])


def test_the_processes_of_a_run_agree_on_its_folder(tmp_path):
    (tmp_path / "run").mkdir()
    first = plan.new_folder(tmp_path, "run", rank=0, agree=lambda number: number)
    second = plan.new_folder(tmp_path, "run", rank=1, agree=lambda number: 2)  # process 0 took number 2
    assert first == second == tmp_path / "run_2"


def test_a_run_folder_is_held_by_one_program_and_removed_if_nothing_was_written(tmp_path):
    folder = plan.new_folder(tmp_path, "run")
    with plan.held(folder):
        held = subprocess.run(
            [sys.executable, "-c", f"from common.runs.plan import held\nwith held({str(folder)!r}): pass"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert f"UserError: {folder}: another process trains in this folder" in held.stderr
        with plan.held(folder, rank=1):  # of the same run
            pass
    assert not folder.exists()
    folder.mkdir()
    with plan.held(folder):
        (folder / "config.yaml").touch()
    assert (folder / "config.yaml").exists()


def test_a_drive_without_locks_is_used_without(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with plan.held(tmp_path):
        (tmp_path / "train.csv").touch()


def test_latest_is_the_run_that_was_changed_last(tmp_path):
    assert plan.find_run("latest", tmp_path) == (None, None)
    for number, name in enumerate(("a", "b", "empty")):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name, (number, number))
    assert plan.find_run("latest", tmp_path) == (tmp_path / "b", None)
    (tmp_path / "a/last.safetensors").touch()
    assert plan.find_run(str(tmp_path / "a"), tmp_path) == (tmp_path / "a", tmp_path / "a/last.safetensors")
    checkpoint = tmp_path / "a/last.safetensors"
    assert plan.find_run(str(checkpoint), tmp_path) == (tmp_path / "a", checkpoint)
    with pytest.raises(UserError, match="empty is no run folder"):
        plan.find_run(str(tmp_path / "empty"), tmp_path)


def test_a_resumed_run_keeps_its_experiment():
    stored = Config()
    plan.refuse_other_experiment(Config(), stored)
    other = Config("full", Section(iters=20), Section(learning_rate=0.2))
    with pytest.raises(UserError, match=r"but train.iters, optimizer.learning_rate, scope differ"):
        plan.refuse_other_experiment(other, stored)
    with pytest.raises(UserError, match=r"but optimizer.learning_rate, scope differ"):
        plan.refuse_other_experiment(other, stored, free=("train.iters",))


def test_another_length_has_to_be_meant_and_tells_the_rate():
    said = []

    def rate(iters):
        return 1 - 5 / iters

    with pytest.raises(UserError, match=r"at step 5 the rate goes from 0.5 to 0.75.*--extend"):
        plan.extend(Config(), 20, 5, False, rate, said.append)
    with pytest.raises(UserError, match="at step 5 already, --iters 4"):
        plan.extend(Config(), 4, 5, True, rate, said.append)
    assert plan.extend(Config(), 20, 5, True, rate, said.append).train.iters == 20
    assert said == ["extended from 10 to 20 iterations: at step 5 the rate goes from 0.5 to 0.75"]


def test_how_a_batch_is_cut_is_said():
    run = plan.RunPlan(Config(), "c", Path("run"), None, None, recipe_batch=16)
    assert plan.batch_lines(run, world_size=2, micro_batches=2) == [
        "batch 8 = 2 processes x 2 micro-batches x 2 images, learning rate 0.1; the recipe's is batch 16",
        "batch normalisation: the statistics of each micro-batch, not of the batch",
    ]
    resumed = dataclasses.replace(run, recipe_batch=None)
    assert plan.batch_lines(resumed, world_size=1, micro_batches=1) == ["batch 8, learning rate 0.1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_images(tmp_path, value):
    with pytest.raises(plan.NonFiniteLoss):
        plan.require_finite(value)
    assert plan.require_finite(0.5) == 0.5
    with pytest.raises(UserError, match=f"loss is {value} at step 7.*lower --lr"):
        plan.stop_at_nonfinite_loss(tmp_path, 7, value, [Path("a.png")], "--lr", rank=1)
    report = json.loads((tmp_path / "nonfinite_loss_step7_rank1.json").read_text())
    assert report == {"step": 7, "loss": str(value), "images": ["a.png"]}


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for name, size in (("a", (40, 48)), ("b", (64, 48))):
        cv2.imwrite(str(root / f"{name}.png"), np.zeros((*size, 3), np.uint8))
        cv2.imwrite(str(root / f"{name}_label.png"), np.zeros(size, np.uint8))
    (root / "train.txt").write_text("a.png,a_label.png\nb.png,b_label.png\n")
    (root / "val.txt").write_text("b.png,b_label.png\n")
    (root / "classes.yaml").write_text("name: x\nclasses: [one, two]\n")
    return root


def seen(root, given="data/set"):
    labels = load_custom(root / "classes.yaml")
    return data_seen(given, root, *(ListDataset(labels, root, name) for name in ("train.txt", "val.txt")))


def environment(**fields):
    numbers = {"seed": 0, "train_images": 2, "val_images": 1, "processes": 1, "trainable_parameters": 7}
    texts = {"project": "p", "config": "c", "scope": "smoke", "dataset": "custom", "device": "cpu"}
    return RunEnvironment.here((), **numbers, **texts, class_names=("one", "two"), resumed_at_step=0, **fields)


def test_what_a_run_saw_is_its_folder_and_the_digests_of_its_lists(root):
    val = hashlib.sha256(b"b.png,b_label.png\n").hexdigest()
    found = seen(root)
    assert found["data_root"] == "data/set"
    assert found["data_lists"]["val.txt"] == {"entries": 1, "sha256": val}
    assert found["data_lists"]["train.txt"]["entries"] == 2
    assert found["classes_sha256"] == hashlib.sha256((root / "classes.yaml").read_bytes()).hexdigest()
    assert json.loads(json.dumps(environment(**found).to_values()))["data_lists"] == found["data_lists"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.txt", "a.png,a_label.png\n", r"train.txt in data/set .*\(train.txt had 2 entries, has 1\).*--data"),
        ("train.txt", "b.png,b_label.png\na.png,a_label.png\n", r"train.txt in data/set is not what run.*--data"),
        ("val.txt", "a.png,a_label.png\n", r"val.txt in data/set is not what run.*--data"),
        (
            "classes.yaml",
            "name: x\nclasses: [one, two]\nids: {0: 1, 1: 0}\n",
            r"classes.yaml in data/set is not.*--data",
        ),
    ],
    ids=["an image less", "another order", "another val", "other ids"],
)
def test_a_resumed_run_on_other_data_is_refused(root, file, text, message):
    recorded = environment(**seen(root))
    refuse_other_data(recorded, seen(root, "elsewhere"), Path("run"))  # the folder moved, the lists are the same
    (root / file).write_text(text)
    with pytest.raises(UserError, match=message):
        refuse_other_data(recorded, seen(root), Path("run"))
    refuse_other_data(environment(), seen(root), Path("run"))  # recorded before there were digests
    refuse_other_data(None, seen(root), Path("run"))


def test_the_folder_of_a_run_is_found_again(root, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert root_of_weights(folder / "best.safetensors", "data/custom") is None  # weights without their run's files
    (folder / "env.json").write_text("[1]")
    assert root_of_weights(folder / "best.safetensors", "data/custom") is None
    (folder / "env.json").write_text(json.dumps(environment(**seen(root)).to_values()))
    assert root_of_weights(folder / "best.safetensors", "data/custom") == "data/set"
    assert root_of_run(plan.recorded_environment(folder), "data/set") is None  # the config says it


def test_images_that_no_network_takes_are_found_in_their_headers(root):
    dataset = ListDataset(load_custom(root / "classes.yaml"), root, "train.txt")
    require_image_sides(dataset, lambda size: 1.0)
    with pytest.raises(UserError, match=r"a.png: 40x48 pixels x 0.75"):
        require_image_sides(dataset, lambda size: 0.75)
    (root / "b.png").write_bytes(b"text")
    with pytest.raises(UserError, match="b.png"):
        require_image_sides(dataset, lambda size: 1.0)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_where_nothing_is_lost_ends_at_once(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), number)
        assert stop.number == number
        with pytest.raises(Stopped) as stopped, stop.at_once():
            pytest.fail("a signal that has arrived ends such a block before it begins")
        assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_within_such_a_block_ends_it_and_says_what_is_saved(tmp_path):
    said, after = [], []
    with pytest.raises(Stopped), StopSignals() as stop, stop.explained(tmp_path, said.append), stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        after.append(signal.sigtimedwait([signal.SIGTERM], 0))
    assert after == []
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(Stopped), StopSignals() as stop, stop.explained(tmp_path, said.append):
        raise Stopped(signal.SIGUSR1)
    assert said == [
        "stopped by SIGTERM: nothing is trained yet: run the same command again",
        f"stopped by SIGUSR1: {tmp_path}/last.safetensors is saved: train.py --resume {tmp_path} continues there",
    ]


def test_a_second_signal_ends_the_program():
    script = (
        "import os, signal\nfrom common.runs.stopping import StopSignals\n"
        "with StopSignals():\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted\n")
