"""Two processes on one CPU through paddle.distributed.launch (gloo)."""

from common.runs.reading import read_run

import pytest
from stdc_runs import command, train_words
from testkit import numbers, run_folder, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=9)  # 3 in val: the shares of two processes differ


def launch(log_dir, script, *words, timeout=180):
    launcher = ("-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(log_dir))
    return command(script, *words, launcher=launcher, timeout=timeout)


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """A run of two processes with 2 images each."""
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


SCORES = ("miou_percent", "pixel_accuracy_percent", "kappa_percent", "loss", "images")


def scores(folder):
    row = numbers(folder)["eval.csv"][-1]
    return {name: row[name] for name in SCORES}


def test_one_process_and_two_evaluate_to_the_same_counts(pair, data, tmp_path):
    """Three images over two processes: no image is counted twice, the sums are those of one process."""
    words = ["--weights", pair / "last.safetensors", "--data", data, "--output"]
    one = command("eval.py", *words, tmp_path / "one")
    assert one.returncode == 0, one.stderr[-2000:]
    two = launch(tmp_path / "log", "eval.py", *words, tmp_path / "two")
    assert two.returncode == 0, two.stdout[-2000:] + two.stderr[-2000:]
    assert scores(tmp_path / "one") == scores(tmp_path / "two") == scores(pair)
    assert numbers(tmp_path / "one")["per_class.csv"] == numbers(tmp_path / "two")["per_class.csv"]


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
    assert died.is_file()
    logs = "".join(path.read_text() for path in (tmp_path / "log").glob("workerlog.*"))
    assert "error: rank 1 was told to die" in logs


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    process = launch(tmp_path / "log", "train.py", *train_words(data, tmp_path, 4), "train.batch_size=3")
    assert process.returncode != 0
    logs = "".join(path.read_text() for path in (tmp_path / "log").glob("workerlog.*"))
    assert "train.batch_size 3 cannot be shared equally by 2 processes" in logs
    assert "Traceback" not in logs


def test_two_processes_cut_their_shares_into_micro_batches(data, tmp_path):
    """Two images of each process at a time, of eight; six cannot be cut so."""
    words = train_words(data, tmp_path, 3, "--accumulate", 2)
    process = launch(tmp_path / "log", "train.py", *words, "train.batch_size=8")
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    assert len(read_run(run_folder(tmp_path)).train) == 3
    said = (tmp_path / "log" / "workerlog.0").read_text()
    assert "batch 8 = 2 processes x 2 micro-batches x 2 images, learning rate 0.005" in said
    process = launch(tmp_path / "log6", "train.py", *words, "train.batch_size=6")
    assert process.returncode != 0
    logs = "".join(path.read_text() for path in (tmp_path / "log6").glob("workerlog.*"))
    assert "train.batch_size 6 cannot be cut into 2 micro-batches in each of 2 processes: make it a multiple of" in logs
