"""SIGTERM and SIGUSR1, as batch systems send them: the update in flight ends, `last` is saved, `--resume` continues."""

import importlib
import os
import signal
import subprocess
import sys
from functools import partial

from common.cli import UserError

import pytest
import test_kill
from killing import Killer
from targets import RESUMABLE, write_data
from testkit import ENV, REPOSITORY, numbers, run_folder, run_here

EVERY = (("train.eval_every", 2), ("train.checkpoint_every", 100))
IDS = {"ids": lambda target: target.name}


def words_of(target, data, output, *more):
    every = [word for key, value in EVERY for word in target.key(key, value)]
    return target.train(data, output, 6, *every, *more).words


def stops_in(patch, owner, name, count, number):
    """Sends this process a signal at the beginning of the call number `count` of a function."""
    function, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    patch.setattr(owner, name, stopping)


@pytest.mark.parametrize("target", RESUMABLE, **IDS)
def test_a_stopped_training_is_saved_and_ends_with_the_same_bytes(target, tmp_path, monkeypatch, tried):
    tried("train.py stopped by SIGTERM and SIGUSR1, resumed: the same bits at the end", target.name, 2)
    train, updates, checkpoint = (
        importlib.import_module(f"{target.name}.{name}") for name in ("train", "updates", "checkpoint")
    )
    data = write_data(tmp_path / "data")
    run_here(train.main, *words_of(target, data, tmp_path / "whole"))
    words = words_of(target, data, tmp_path / "stopped", "--resume", "latest")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stops_in(patch, updates.Updater, "apply", 3, signal.SIGTERM)
        run_here(train.main, *words)
    folder = run_folder(tmp_path / "stopped")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert checkpoint.read_state(folder / "last.safetensors").step == 3  # the update in flight came to its end
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stops_in(patch, train, "evaluate", 1, signal.SIGUSR1)
        run_here(train.main, *words)
    assert stopped.value.code == 128 + signal.SIGUSR1
    state = checkpoint.read_state(folder / "last.safetensors")
    assert (state.step, state.best_step, state.is_evaluated) == (4, 2, False)  # saved before its evaluation
    run_here(train.main, *words)
    whole = run_folder(tmp_path / "whole")
    assert numbers(folder) == numbers(whole)
    for name in ("last.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"


@pytest.mark.parametrize("target", RESUMABLE, **IDS)
def test_a_failing_evaluation_loses_nothing(target, tmp_path, monkeypatch, tried):
    tried("train.py: an evaluation that fails after the last update, resumed: the same bits", target.name, 1)
    train = importlib.import_module(f"{target.name}.train")
    data = write_data(tmp_path / "data")

    def failing(*args, **kwargs):
        if len(calls) == 2:
            raise OSError("the drive is gone")
        calls.append(1)
        return evaluate(*args, **kwargs)

    evaluate, calls = train.evaluate, []
    words = words_of(target, data, tmp_path / "out", "--resume", "latest")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the drive is gone"):
        patch.setattr(train, "evaluate", failing)
        run_here(train.main, *words)
    folder = run_folder(tmp_path / "out")
    assert [row["step"] for row in numbers(folder)["eval.csv"]] == ["2", "4"]
    run_here(train.main, *words)  # nothing is left to train, but to evaluate
    assert [row["step"] for row in numbers(folder)["eval.csv"]] == ["2", "4", "6"]
    run_here(train.main, *words_of(target, data, tmp_path / "whole"))
    last = "last.safetensors"
    assert (folder / last).read_bytes() == (run_folder(tmp_path / "whole") / last).read_bytes()


@pytest.mark.parametrize("target", RESUMABLE, **IDS)
def test_a_run_is_resumed_and_scored_on_its_own_data(target, tmp_path, tried):
    tried("train.py --resume and eval.py without --data: the run's own folder; other lists are refused", target.name, 3)
    train, evaluation = (importlib.import_module(f"{target.name}.{name}") for name in ("train", "eval"))
    data = write_data(tmp_path / "data")
    run_here(train.main, *words_of(target, data, tmp_path / "out"))
    folder = run_folder(tmp_path / "out")
    printed = run_here(evaluation.main, "--weights", folder / "best.safetensors", "--output", tmp_path / "scores")
    assert f"evaluating {data / 'val.txt'}" in printed
    longer = ("--resume", folder, "--iters", 7, "--extend")
    run_here(train.main, *longer)
    assert [row["step"] for row in numbers(folder)["train.csv"]][-1] == "7"
    before = (folder / "last.safetensors").read_bytes()
    lines = (data / "train.txt").read_text().splitlines(keepends=True)
    (data / "train.txt").write_text("".join(lines[::-1]))  # made anew, in another order
    with pytest.raises(UserError, match=f"train.txt in {data} is not what {folder} was trained with.*--data"):
        run_here(train.main, "--resume", folder, "--iters", 8, "--extend")
    assert (folder / "last.safetensors").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("target", RESUMABLE, **IDS)
def test_a_training_stopped_at_ten_moments_ends_with_the_same_digits(target, tmp_path, tried):
    tried("train.py stopped by SIGTERM at random moments, resumed: the same bits at the end", target.name, 10)
    data, runs = write_data(tmp_path / "data"), tmp_path / "runs"
    every = (*target.key("train.eval_every", 5), *target.key("train.checkpoint_every", 3))
    names = iter(range(1000))

    def trial():
        output = runs / str(next(names))
        command = target.train(data, output, 10, *every, "--resume", "latest")
        look = partial(test_kill.look_at_checkpoints, output, [])
        return command.words, look, partial(test_kill.same_as_the_first, runs, output)

    killer = Killer(target.train(data, runs, 10), runs, number=signal.SIGTERM)
    test_kill.kill_all(killer, 10, trial, seed=3)
    killer.close()


# Runs train.py; process 1 alone gets the signal, in its third update.
ONE_RANK = """
import os, signal, sys
from common.cli import run_command
from {project} import processes, train, updates
apply, calls = updates.Updater.apply, []
def stopping(self, rate):
    calls.append(rate)
    if processes.rank() == 1 and len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return apply(self, rate)
updates.Updater.apply = stopping
run_command(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", [target for target in RESUMABLE if target.in_processes], **IDS)
def test_the_processes_of_a_run_stop_after_the_same_update(target, tmp_path, tried):
    tried("train.py in two processes, one of them stopped by SIGTERM: both save the same step", target.name, 1)
    script = tmp_path / "train_two.py"
    script.write_text(ONE_RANK.format(project=target.name))
    data = write_data(tmp_path / "data")
    words = words_of(target, data, tmp_path / "out", *target.key("train.batch_size", 4))
    launchers = {
        "torch": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633"],
        "paddle": ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")],
    }
    done = subprocess.run(
        [sys.executable, *launchers[target.framework], str(script), *words],
        cwd=REPOSITORY / "projects" / target.name,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    checkpoint = importlib.import_module(f"{target.name}.checkpoint")
    assert checkpoint.read_state(run_folder(tmp_path / "out") / "last.safetensors").step == 3
