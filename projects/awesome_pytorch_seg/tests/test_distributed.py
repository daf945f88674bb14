"""Two processes on one CPU through torchrun (gloo)."""

import subprocess
import sys
import time

from awesome_pytorch_seg.eval import main as eval_main
from common.run_log import read_run

import pytest
from awesome_runs import ENV, PROJECT, numbers, run_folder, run_here, train_words, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=9)  # 3 in val: the shares of two processes differ


def launch(script, *words, launcher=("torch.distributed.run", "--standalone")):
    module, *options = launcher
    return subprocess.run(
        [sys.executable, "-m", module, *options, "--nproc_per_node", "2", script, *map(str, words)],
        cwd=PROJECT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """A run of two processes with 2 pictures each, in two parts."""
    output = tmp_path_factory.mktemp("pair")
    words = train_words(data, output, 6, "train.eval_every=3", "--accumulate", "2")
    process = launch("train.py", *words, "train.batch_size=4")
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return run_folder(output), process


def test_two_processes_train_evaluate_and_save_once(pair):
    folder, process = pair
    run = read_run(folder)
    assert run.env["processes"] == 2
    assert [row["step"] for row in run.train] == [str(step) for step in range(1, 7)]
    assert [(row["step"], row["images"]) for row in run.eval] == [("3", "3"), ("6", "3")]
    assert process.stdout.count("best val mIoU") == 1
    assert process.stderr.count('"val_miou_percent"') == 2  # of process 0, one for each evaluation


def test_one_process_evaluates_the_checkpoint_to_the_same_counts(pair, data, tmp_path):
    """Three pictures over two processes: no picture is counted twice, the sums are those of one process."""
    words = ("--weights", pair[0] / "last.safetensors", "--data", data)
    run_here(eval_main, *words, "--output", tmp_path / "one")
    together = launch("eval.py", *words, "--output", tmp_path / "two")
    assert together.returncode == 0, together.stderr[-2000:]
    one, two, training = (numbers(folder)["eval.csv"][-1] for folder in (tmp_path / "one", tmp_path / "two", pair[0]))
    assert one == two == training
    assert one["images"] == "3"


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("raise UserError('rank 1 was told to die')", "error: rank 1 was told to die"),
        pytest.param("os.kill(os.getpid(), 9)", "Signal 9 (SIGKILL) received", marks=pytest.mark.slow),
    ],
)
def test_a_dying_process_ends_the_run_with_a_message(death, message, data, tmp_path):
    script, died = tmp_path / "dies.py", tmp_path / "died"
    script.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from awesome_pytorch_seg import train\n"
        "from common.cli import UserError, run_command\n"
        "if os.environ['RANK'] == '1':\n"
        "    def look_at(self, label):\n"
        f"        Path({str(died)!r}).touch()\n"
        f"        {death}\n"
        "    train.ValidPixels.look_at = look_at\n"
        "run_command(train.main)\n"
    )
    process = launch(script, *train_words(data, tmp_path, 5000), "train.batch_size=4")
    assert process.returncode != 0
    assert time.time() - died.stat().st_mtime < 60
    assert message in process.stderr


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    process = launch("train.py", *train_words(data, tmp_path, 4), "train.batch_size=3")
    assert process.returncode != 0
    assert "error: train.batch_size 3 cannot be shared equally by 2 processes" in process.stderr


@pytest.mark.slow
def test_the_old_launcher(data, tmp_path):
    """It passes --local-rank to each process."""
    launcher = ("torch.distributed.launch", "--master_port", "29611")
    process = launch("train.py", *train_words(data, tmp_path, 2), "train.batch_size=4", launcher=launcher)
    assert process.returncode == 0, process.stderr[-2000:]
    assert read_run(run_folder(tmp_path)).env["processes"] == 2
