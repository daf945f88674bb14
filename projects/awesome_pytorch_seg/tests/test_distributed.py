"""Two processes on one CPU through torchrun (gloo)."""

import socket
import subprocess
import sys
from datetime import timedelta

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.eval import main as eval_main
from common.cli import UserError
from common.runs.reading import read_run

import pytest
from awesome_runs import PROJECT, command, train_words
from testkit import ENV, numbers, run_folder, run_here, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=9)  # 3 in val: the shares of two processes differ


def launch(script, *words, launcher=("torch.distributed.run", "--standalone")):
    return command(script, *words, launcher=("-m", *launcher, "--nproc_per_node", "2"), timeout=300)


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """A run of two processes with 2 images each, in two parts."""
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
    """Three images over two processes: no image is counted twice, the sums are those of one process."""
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
    assert died.is_file()
    assert message in process.stderr


DIES = """
import os, time
from datetime import timedelta
from awesome_pytorch_seg import processes, train
from common.cli import run_command

processes.TIMEOUT = timedelta(seconds={timeout})
if os.environ["RANK"] == "1":
    def look_at(self, label, calls=[]):
        calls.append(1)
        if len(calls) == 3:
            {ends}
            os._exit(9)
    train.ValidPixels.look_at = look_at
run_command(train.main)
"""


@pytest.mark.parametrize(
    ("ends", "timeout", "reason"),
    [
        ("pass", 60, "Connection "),
        pytest.param("time.sleep(10)", 4, "Timed out waiting 4000ms", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_left_alone_says_where_it_was(ends, timeout, reason, data, tmp_path):
    """No launcher is there to end it."""
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(ends=ends, timeout=timeout))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, str(script), *map(str, train_words(data, tmp_path / "out", 50, "train.batch_size=4"))]
    together = {**ENV, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pair = [
        subprocess.Popen(words, cwd=PROJECT, env={**together, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 9]
    (line,) = [line for line in said[0].splitlines() if line.startswith("error: ")]
    assert "error: process 0 at step 3: another process ended, or has not answered for" in line
    assert reason in line
    assert "Traceback" not in said[0]


def test_processes_wait_ten_minutes_for_each_other(monkeypatch):
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *args, **more: calls.append((args, more)))
    processes.join(use_cuda=False)
    assert calls == [(("gloo",), {"timeout": timedelta(seconds=600)})]


def test_errors_of_ones_own_are_left_as_they_are():
    processes.explain_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 7)
    with pytest.raises(UserError, match=r"process 0 at step 7: .* for 10 minutes \(NCCL error\): .*--resume"):
        processes.explain_lost_peer(processes.dist.DistBackendError("NCCL error\nmore lines"), 7)


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
