"""Two processes on one CPU through paddle.distributed.launch (gloo)."""

import subprocess
import sys
import time

from common.run_log import read_run

import pytest
from runs import ENV, PROJECT, command, numbers, run_folder, train_words, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=9)  # 3 in val: the shares of two processes differ


def launch(log_dir, script, *words, timeout=180):
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(log_dir)]
    return subprocess.run(
        [sys.executable, *launcher, script, *map(str, words)],
        cwd=PROJECT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """A run of two processes with 2 pictures each."""
    output = tmp_path_factory.mktemp("pair")
    words = train_words(data, output, 6, "train.eval_every=3")
    process = launch(output / "log", "train.py", *words, "train.batch_size=4")
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return run_folder(output)


def test_two_processes_train_evaluate_and_save_once(pair):
    run = read_run(pair)
    assert run.env["processes"] == 2
    assert [row["step"] for row in run.train] == [str(step) for step in range(1, 7)]
    assert [(row["step"], row["images"]) for row in run.eval] == [("3", "3"), ("6", "3")]


def test_one_process_evaluates_the_checkpoint_to_the_same_counts(pair, data, tmp_path):
    """Three pictures over two processes: no picture is counted twice, the sums are those of one process."""
    process = command("eval.py", "--weights", pair / "last.safetensors", "--data", data, "--output", tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    scores = ("miou_percent", "pixel_accuracy_percent", "kappa_percent", "loss", "images")
    one, two = numbers(tmp_path)["eval.csv"][-1], numbers(pair)["eval.csv"][-1]
    assert {name: one[name] for name in scores} == {name: two[name] for name in scores}


def test_a_dying_process_ends_the_run_with_a_message(data, tmp_path):
    script, died = tmp_path / "dies.py", tmp_path / "died"
    script.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from common.cli import UserError, run_command\n"
        "from stdc_seg import train\n"
        "if os.environ['PADDLE_TRAINER_ID'] == '1':\n"
        "    def look_at(self, label):\n"
        f"        Path({str(died)!r}).touch()\n"
        "        raise UserError('rank 1 was told to die')\n"
        "    train.ValidPixels.look_at = look_at\n"
        "run_command(train.main)\n"
    )
    process = launch(tmp_path / "log", script, *train_words(data, tmp_path, 50), "train.batch_size=4")
    assert process.returncode != 0
    assert time.time() - died.stat().st_mtime < 60
    logs = "".join(path.read_text() for path in (tmp_path / "log").glob("workerlog.*"))
    assert "error: rank 1 was told to die" in logs


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    process = launch(tmp_path / "log", "train.py", *train_words(data, tmp_path, 4), "train.batch_size=3")
    assert process.returncode != 0
    logs = "".join(path.read_text() for path in (tmp_path / "log").glob("workerlog.*"))
    assert "train.batch_size 3 cannot be shared equally by 2 processes" in logs
    assert "Traceback" not in logs
