"""A training that is stopped, by a signal or otherwise, and resumed: the same digits as without."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

from common import run_log
from common.cli import UserError
from common.runs.plan import held
from common.runs.reading import read_run
from paddleseg_benchmark import eval as evaluation
from paddleseg_benchmark import runs, static_train, train, training, updates
from paddleseg_benchmark.checkpoint import read_state
from paddleseg_benchmark.zoo import zoo
from results.record import record

import numpy as np
import pytest
from pdseg_runs import PROJECT, write_data
from testkit import ENV, run_folder

TIMED = {"step_time_s", "data_time_s", "seconds", "images_per_s", "peak_memory_gib"}
WORDS = ("--config", "fastscnn.yml", "--batch_size", "2", "--crop_size", "64", "64", "--log_iters", "1", "--iters", "4")
EVAL_WORDS = ("--do_eval", "--save_interval", "2")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("toy") / "cityscapes")


def call(monkeypatch, *words, module=train):
    """Runs the command in this process; returns its exit status."""
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, words)])
    try:
        return module.main() or 0
    except SystemExit as ended:
        return ended.code


def words(toy, output, *more):
    return (*WORDS, *EVAL_WORDS, "--data", toy, "--output", output, *more)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The folder of a run of four steps with two evaluations that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, *words(toy, output)) == 0
    return run_folder(output)


def numbers(folder):
    """Everything in a run's tables that depends on neither time nor machine."""
    run = read_run(folder)
    tables = (run.train, run.eval, run.per_class)
    return [[{key: value for key, value in row.items() if key not in TIMED} for row in rows] for rows in tables]


def assert_same(folder, whole):
    assert numbers(folder) == numbers(whole)
    for name in ("last.safetensors", "best.safetensors"):
        one, other = read_state(folder / name), read_state(whole / name)
        assert (one.step, one.best_step, one.best_miou) == (other.step, other.best_step, other.best_miou)
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(folder.glob(".*.tmp"))


def stops_at(monkeypatch, owner, name, count, number=signal.SIGTERM):
    """Sends this process a signal at the call number `count` of a function."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def stopping(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize(
    ("owner", "name", "count", "number", "step"),
    [
        (updates.DynamicStep, "run", 3, signal.SIGTERM, 3),  # in an update
        (updates.DynamicStep, "run", 1, signal.SIGUSR1, 1),
        (evaluation, "sample_at", 2, signal.SIGTERM, 2),  # in the evaluation after step 2
        (evaluation, "sample_at", 5, signal.SIGTERM, 4),  # in the last evaluation
        (training, "save_checkpoint", 2, signal.SIGTERM, 3),  # while best.safetensors is saved: one more update
    ],
)
def test_a_stopped_run_ends_with_128_and_the_signal_and_resumes(
    owner, name, count, number, step, whole, toy, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        stops_at(patched, owner, name, count, number)
        assert call(patched, *words(toy, tmp_path)) == 128 + number
    said = capsys.readouterr().out
    folder = run_folder(tmp_path)
    assert f"stopped by {number.name}: {folder}/last.safetensors is saved: train.py --resume {folder}" in said
    assert read_state(folder / "last.safetensors").step == step
    assert call(monkeypatch, "--resume", "--output", tmp_path) == 0
    assert_same(folder, whole)
    assert read_run(folder).env["resumed_at_step"] == step
    assert call(monkeypatch, "--resume_model", folder) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_run_stopped_in_its_last_evaluation_twice_is_still_evaluated(whole, toy, tmp_path, monkeypatch):
    for more in (words(toy, tmp_path), ("--resume", "--output", tmp_path)):
        with monkeypatch.context() as patched:
            stops_at(patched, evaluation, "sample_at", 5 if "--config" in more else 2)
            assert call(patched, *more) == 143
    assert call(monkeypatch, "--resume", "--output", tmp_path) == 0
    assert_same(run_folder(tmp_path), whole)


def test_a_run_is_not_resumed_twice_at_the_same_time(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stops_at(patched, updates.DynamicStep, "run", 1)
        assert call(patched, *words(toy, tmp_path)) == 143
    with held(run_folder(tmp_path)), pytest.raises(UserError, match="another process trains in this folder"):
        call(monkeypatch, "--resume", "--output", tmp_path)


@pytest.mark.slow
def test_a_run_stopped_at_ten_moments_ends_with_the_same_digits(whole, toy, tmp_path, monkeypatch):
    """SIGTERM at ten random moments, the starts of the command included, each followed by the same line again."""
    start = time.perf_counter()
    assert call(monkeypatch, *words(toy, tmp_path / "timed")) == 0
    seconds, rng, stopped = time.perf_counter() - start, np.random.default_rng(0), 0
    for trial in range(40):
        if stopped >= 10:
            break
        output, status = tmp_path / str(trial), None
        while status != 0:
            with ended_by_sigterm(rng.uniform(0.1, seconds) if stopped < 10 else None) as ended:
                status = call(monkeypatch, *words(toy, output, "--resume", "latest"))
            status = ended.get("status", status)
            assert status in (0, 143)
            stopped += status == 143
            for path in output.glob("*/[!.]*.safetensors"):
                read_state(path)
        assert_same(run_folder(output), whole)
    assert stopped >= 10


@contextmanager
def ended_by_sigterm(seconds):
    """Sends SIGTERM after so many seconds (None: never); where the command lets it through, it ends there with 143."""

    class Ended(BaseException):
        pass

    def end(*_):
        raise Ended

    before, result = signal.signal(signal.SIGTERM, end), {}
    timer = threading.Timer(seconds or 1000, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield result
    except Ended:
        result["status"] = 143
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def test_a_killed_run_without_a_checkpoint_begins_again_in_its_folder(whole, toy, tmp_path, monkeypatch):
    assert call(monkeypatch, *words(toy, tmp_path)) == 0
    folder = run_folder(tmp_path)
    for name in ("last.safetensors", "best.safetensors"):
        (folder / name).unlink()
    assert call(monkeypatch, *words(toy, tmp_path, "--resume", "latest")) == 0
    assert_same(folder, whole)


def test_a_run_resumes_with_loader_processes_as_without(whole, toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stops_at(patched, updates.DynamicStep, "run", 3)
        assert call(patched, *words(toy, tmp_path)) == 143
    monkeypatch.setattr("paddleseg_benchmark.doctor.shared_memory_gib", lambda: 2.0)
    assert call(monkeypatch, "--resume", "--output", tmp_path, "--num_workers", 2) == 0
    assert_same(run_folder(tmp_path), whole)


STATIC_WORDS = (
    *("--cfg", "deeplabv3p_resnet50_vd_cityscapes.yaml", "--log_steps", "1", "BATCH_SIZE", "2", "TRAIN_CROP_SIZE"),
    *("(64,64)", "SOLVER.NUM_EPOCHS", "1", "DATALOADER.NUM_WORKERS", "0"),
)


@pytest.mark.slow
def test_a_static_run_resumes_to_the_same_digits(toy, tmp_path, monkeypatch):
    options = ("--data", toy, "--iters", "4", *STATIC_WORDS)
    assert call(monkeypatch, *options, "--output", tmp_path / "whole", module=static_train) == 0
    with monkeypatch.context() as patched:
        stops_at(patched, updates.StaticStep, "run", 2)
        assert call(patched, *options, "--output", tmp_path / "cut", module=static_train) == 143
    folder = run_folder(tmp_path / "cut")
    assert read_state(folder / "last.safetensors").step == 2
    assert call(monkeypatch, "--resume_model", folder, "--log_steps", "1", module=static_train) == 0
    one, other = numbers(folder), numbers(run_folder(tmp_path / "whole"))
    assert one == other and len(one[0]) == 4
    names = [tmp_path / "whole", tmp_path / "cut"]
    assert len({(run_folder(name) / "last.safetensors").read_bytes() for name in names}) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "1"), "a resumed run keeps its experiment, but seed differ"),
        (("--iters", "6"), "iters differ"),
        (("--learning_rate", "0.1"), "lr_scheduler differ"),
        (("--config", "bisenetv2.yml"), "name, .*model"),
    ],
)
def test_a_resumed_run_keeps_its_experiment(more, message, whole, toy, monkeypatch):
    with pytest.raises(UserError, match=message):
        call(monkeypatch, *words(toy, whole.parent, "--resume", whole, *more))


def test_a_resumed_run_sees_the_data_that_it_began_with(whole, toy, tmp_path, monkeypatch):
    """The folder given with --data is kept; other lists are refused."""
    output, root = tmp_path / "out", shutil.copytree(toy, tmp_path / "data")
    with monkeypatch.context() as patched:
        stops_at(patched, updates.DynamicStep, "run", 1)
        assert call(patched, *words(root, output)) == 143
    for path in (root / "leftImg8bit/train").glob("*/*_leftImg8bit.png"):
        path.unlink()
        label = str(path).replace("leftImg8bit", "gtFine", 1).replace("leftImg8bit", "gtFine_labelTrainIds")
        os.unlink(label)
        break
    with pytest.raises(UserError, match="the train list of the data set changed since the run began.*--data"):
        call(monkeypatch, "--resume", "--output", output)
    assert read_run(run_folder(output)).env["data_root"] == str(root)


def test_nothing_to_resume_says_what_to_give(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nothing to resume: .*no_run is not a run folder"):
        call(monkeypatch, "--resume", tmp_path / "no_run", "--output", tmp_path)
    with pytest.raises(UserError, match="no run under .* to resume: name a config"):
        call(monkeypatch, "--resume", "--output", tmp_path)


def test_two_runs_that_start_together_get_two_folders(tmp_path):
    plan = runs.Plan("fastscnn", zoo.read_config("fastscnn.yml"), 0, tmp_path)
    threads = [threading.Thread(target=runs.new_folder, args=(plan,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.removeprefix(names[0]) for name in names] == ["", "_2", "_3", "_4"]


def test_the_latest_checkpoints_are_kept(whole, toy, tmp_path, monkeypatch):
    assert call(monkeypatch, *WORDS, "--data", toy, "--save_dir", tmp_path, "--save_interval", 1,
                "--keep_checkpoint_max", 2) == 0  # fmt: skip
    folder = run_folder(tmp_path)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        *("iter_3.safetensors", "iter_4.safetensors", "last.safetensors")
    ]
    assert (folder / "iter_4.safetensors").read_bytes() == (folder / "last.safetensors").read_bytes()
    assert read_state(folder / "iter_3.safetensors").step == 3


def test_eval_gives_the_scores_of_the_training(whole, tmp_path, monkeypatch):
    weights = whole / "best.safetensors"
    monkeypatch.setattr("sys.argv", ["eval.py", "--weights", str(weights), "--output", str(tmp_path / "scores")])
    evaluation.main()
    with open(tmp_path / "scores" / "eval.csv", newline="") as stream:
        (again,) = csv.DictReader(stream)
    before = next(row for row in read_run(whole).eval if row["step"] == again["step"])
    assert {**again, "seconds": ""} == {**before, "seconds": ""}


def test_a_smoke_run_is_recorded_as_those_of_the_other_projects(whole, tmp_path):
    (tmp_path / "projects/paddleseg_benchmark").mkdir(parents=True)
    target = record(whole, tmp_path, unknown_code=True)
    assert target == tmp_path / "results/runs/paddleseg_benchmark" / whole.name
    env = json.loads((target / "env.json").read_text())
    assert (env["train_images"], env["val_images"], len(env["class_names"])) == (8, 3, 19)
    assert env["data_lists"]["train"]["entries"] == 8 and len(env["data_lists"]["train"]["sha256"]) == 64
    assert env["scope"] == "reduced"


def test_a_run_stopped_before_its_end_is_not_recorded(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stops_at(patched, updates.DynamicStep, "run", 3)
        assert call(patched, *words(toy, tmp_path / "out")) == 143
    (tmp_path / "projects/paddleseg_benchmark").mkdir(parents=True)
    with pytest.raises(UserError, match="at step 2 of 4: finish it"):
        record(run_folder(tmp_path / "out"), tmp_path, unknown_code=True)


def test_an_image_that_no_network_takes_is_found_before_the_first_step(toy, tmp_path, monkeypatch):
    import cv2

    root = shutil.copytree(toy, tmp_path / "data")
    image = sorted(root.glob("leftImg8bit/val/*/*.png"))[-1]
    label = str(image).replace("leftImg8bit", "gtFine", 1).replace("leftImg8bit", "gtFine_labelTrainIds")
    cv2.imwrite(str(image), np.zeros((24, 600, 3), np.uint8))
    cv2.imwrite(label, np.zeros((24, 600), np.uint8))
    with pytest.raises(UserError, match=f"{image}: 24x600 pixels"):
        call(monkeypatch, *words(root, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_of_the_original_has_its_door():
    ended = subprocess.run(
        [sys.executable, "pdseg/train.py", "--cfg", "configs/hrnetw18_cityscapes_1024x512_215.yaml", "--use_vdl"],
        cwd=PROJECT, env=ENV, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: --use_vdl: VisualDL is not used here: leave it out; train.csv")


def test_what_resume_finds_has_its_environment(toy, tmp_path, monkeypatch):
    """Stopped between the two files of the start: config.yaml, by which a run is found, is written last."""

    def stopped(path, *args):
        if path.name == "config.yaml":
            raise KeyboardInterrupt
        return original(path, *args)

    original = run_log.atomic_write
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_log, "atomic_write", stopped)
        call(patched, *words(toy, tmp_path))
    assert [path.name for path in tmp_path.glob("*/env.json")] == ["env.json"]
    assert runs.find_run("latest", tmp_path) is None
