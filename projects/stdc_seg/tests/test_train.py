import json
import shutil
import subprocess
import sys

from common.cli import UserError
from common.runs.reading import read_run
from common.weights.card import card_of
from stdc_seg.checkpoint import read_state
from stdc_seg.models import build_model
from stdc_seg.runs import plan_run
from stdc_seg.train import main, parse_args

import cv2
import numpy as np
import pytest
from killing import whole_and_killed
from safetensors.numpy import save_file
from stdc_runs import PROJECT, command, train, train_words
from targets import Command
from testkit import ENV, error_line, numbers, run_folder, write_data

EVERY = ("train.eval_every=10", "train.checkpoint_every=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """An undisturbed run of 20 steps."""
    output = tmp_path_factory.mktemp("reference")
    process = train(data, output, 20, *EVERY)
    assert process.returncode == 0, process.stderr[-2000:]
    return process, run_folder(output)


def test_a_run_leaves_its_files(reference):
    process, folder = reference
    assert folder.name.startswith("quickstart_s0_2")
    names = {path.name for path in folder.iterdir()}
    tables = {"train.csv", "eval.csv", "per_class.csv"}
    assert names == {"config.yaml", "env.json", "curve.png", "best.safetensors", "last.safetensors", *tables}
    run = read_run(folder)
    assert [int(row["step"]) for row in run.train] == list(range(1, 21))
    assert [(row["step"], row["images"]) for row in run.eval] == [("10", "2"), ("20", "2")]
    assert [row["class_name"] for row in run.per_class[:3]] == ["one", "two", "three"]
    assert run.env["scope"] == "smoke"
    assert run.env["class_names"] == ["one", "two", "three"]
    assert f"best val mIoU {float(run.best()['miou_percent']):.2f} %" in process.stdout


def test_where_nobody_watches_an_evaluation_is_a_json_line(reference):
    lines = [json.loads(line) for line in reference[0].stderr.splitlines() if line.startswith("{")]
    said = [line for line in lines if "val_miou_percent" in line]
    run = read_run(reference[1])
    assert [line["step"] for line in said] == [int(row["step"]) for row in run.eval]
    for line, row in zip(said, run.eval, strict=True):
        assert line["val_miou_percent"] == pytest.approx(float(row["miou_percent"]), abs=1e-3)
        assert line["val_loss"] == pytest.approx(float(row["loss"]), rel=1e-4)
        assert (line["what"], line["total"]) == ("train", len(run.train))
    assert said[-1]["best_step"] == int(run.best()["step"])


def test_the_loss_falls(reference):
    losses = [float(row["loss"]) for row in read_run(reference[1]).train]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_the_same_seed_gives_the_same_digits_and_another_seed_others(data, reference, tmp_path):
    assert train(data, tmp_path / "same", 20, *EVERY).returncode == 0
    assert numbers(run_folder(tmp_path / "same")) == numbers(reference[1])
    assert train(data, tmp_path / "other", 20, *EVERY, "--seed", 1).returncode == 0
    assert numbers(run_folder(tmp_path / "other")) != numbers(reference[1])


def test_loader_processes_change_no_digit(data, reference, tmp_path):
    assert train(data, tmp_path, 20, *EVERY, "train.num_workers=2").returncode == 0
    assert numbers(run_folder(tmp_path)) == numbers(reference[1])


def test_eval_repeats_the_number_of_training(data, reference, tmp_path):
    words = ["--weights", reference[1] / "last.safetensors", "--data", data, "--output", tmp_path]
    process = command("eval.py", *words)
    assert process.returncode == 0, process.stderr[-2000:]
    last = numbers(reference[1])["eval.csv"][-1]
    assert numbers(tmp_path)["eval.csv"] == [last]
    assert f"mIoU {float(last['miou_percent']):.2f} %" in process.stdout


def test_classes_in_another_order_are_refused_at_evaluation_and_resume(data, reference, tmp_path):
    other = write_data(tmp_path / "other")
    (other / "classes.yaml").write_text("name: squares\nclasses: [two, one, three]\n")
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    resumed = command("train.py", "--resume", folder, "--iters", 24, "--extend", "--data", other)
    evaluated = command("eval.py", "--weights", folder / "last.safetensors", "--data", other)
    for process in (resumed, evaluated):
        line = error_line(process)
        assert "made for 3 classes (one, two, three), the data has 3 (two, one, three): the same names in" in line


def test_killed_twice_it_ends_with_the_same_digits(data, reference, tmp_path):
    """`ci/faults/test_kill.py` kills more often, and compares checkpoints to the bit."""

    def words(output):
        return train_words(data, output, 20, "--resume", "latest", *EVERY)

    whole, killed = map(run_folder, whole_and_killed(Command("projects/stdc_seg/train.py", ()), words, tmp_path, 2))
    assert numbers(killed) == numbers(whole) == numbers(reference[1])


def test_resume_of_a_finished_run_says_so(reference):
    before = (reference[1] / "last.safetensors").read_bytes()
    process = command("train.py", "--resume", reference[1])
    assert process.returncode == 0
    assert "has reached its 20 iterations" in process.stdout
    assert (reference[1] / "last.safetensors").read_bytes() == before


def test_resume_keeps_its_experiment_unless_extended(data, reference):
    before = sorted((path.name, path.read_bytes()) for path in reference[1].iterdir())
    checkpoint = reference[1] / "last.safetensors"
    line = error_line(train(data, reference[1].parent, 20, "--resume", checkpoint, *EVERY, "optimizer.momentum=0.5"))
    assert "optimizer.momentum differ" in line
    line = error_line(command("train.py", "--resume", checkpoint, "--iters", 30))
    assert "from 20 to 30 iterations" in line
    assert "--extend" in line
    assert sorted((path.name, path.read_bytes()) for path in reference[1].iterdir()) == before


def test_extend_goes_on_and_tells_the_rate(data, reference, tmp_path):
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    process = command("train.py", "--resume", folder, "--iters", 24, "--extend", "--data", data)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "extended from 20 to 24 iterations: at step 20 the rate goes from 0 to 0.0" in process.stdout
    assert [int(row["step"]) for row in read_run(folder).train] == list(range(1, 25))


def test_a_second_run_of_the_day_gets_its_own_folder(data, tmp_path, monkeypatch):
    words = ["train.py", *map(str, train_words(data, tmp_path, 2))]
    monkeypatch.setattr(sys, "argv", words)
    first = plan_run(parse_args("test")).folder
    assert plan_run(parse_args("test")).folder == first.with_name(f"{first.name}_2")


def test_a_run_stopped_before_its_first_checkpoint_starts_again_in_its_folder(data, reference, tmp_path):
    folder = tmp_path / reference[1].name
    folder.mkdir()
    shutil.copy(reference[1] / "config.yaml", folder)
    (folder / "train.csv").write_text("step,loss\n1,9.9\n2,9")
    assert train(data, tmp_path, 20, "--resume", *EVERY).returncode == 0
    assert numbers(run_folder(tmp_path)) == numbers(reference[1])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(data, tmp_path):
    words = ("optimizer.learning_rate=1.0e+30", "optimizer.warmup_start_lr=1.0e+30")
    line = error_line(train(data, tmp_path, 20, "train.checkpoint_every=1", *words))
    assert "stopped before the update" in line
    (report,) = tmp_path.glob("*/nonfinite_loss_step*.json")
    content = json.loads(report.read_text())
    assert str(report) in line
    assert len(content["images"]) == 2
    assert all((data / name.rsplit("/", 1)[1]).exists() for name in content["images"])
    (folder,) = (path.parent for path in tmp_path.glob("*/config.yaml"))
    kept = read_run(folder).train
    assert content["step"] == len(kept) + 1


def test_a_batch_of_one_is_refused(data, tmp_path):
    line = error_line(train(data, tmp_path, 4, "train.batch_size=1"))
    assert "one value per channel" in line


def test_labels_with_nothing_to_learn_stop_the_run(data, tmp_path):
    root = write_data(tmp_path / "data")
    (root / "classes.yaml").write_text(
        "name: x\nclasses: [one, two, three]\nids: {0: 255, 1: 255, 2: 255, 7: 0, 8: 1, 9: 2}\n"
    )
    line = error_line(train(root, tmp_path / "out", 4, "train.batch_size=200"))
    assert "labels of the training list show no class at all" in line


def test_a_short_run_of_ignored_labels_stops_before_it_is_evaluated(tmp_path):
    root = write_data(tmp_path / "data")
    for line in (root / "train.txt").read_text().splitlines():
        path = str(root / line.split(",")[1])
        cv2.imwrite(path, np.full_like(cv2.imread(path, cv2.IMREAD_GRAYSCALE), 255))
    (root / "classes.yaml").write_text("name: squares\nclasses: [one, two, three]\nignore: 255\n")
    process = train(root, tmp_path / "out", 3)
    assert "the 4 labels of the training list show no class at all" in error_line(process)
    assert "mIoU" not in process.stdout


def test_the_last_labels_of_a_resumed_run_judge_nothing(tmp_path):
    """Else a run that was stopped before a batch without anything to learn could never end."""
    root = write_data(tmp_path / "data")
    assert train(root, tmp_path / "out", 3).returncode == 0
    lines = (root / "train.txt").read_text().splitlines()
    order = np.random.default_rng([0, 0, 1]).permutation(len(lines))  # of the second epoch; step 4 sees its last two
    for index in order[1:]:
        path = str(root / lines[index].split(",")[1])
        cv2.imwrite(path, np.full_like(cv2.imread(path, cv2.IMREAD_GRAYSCALE), 255))
    folder = run_folder(tmp_path / "out")
    process = command("train.py", "--resume", folder, "--iters", 4, "--extend", "--data", root)
    assert process.returncode == 0, process.stderr[-2000:]
    assert [row["step"] for row in read_run(folder).train][-1] == "4"


def test_weights_trained_on_other_input_are_refused(data, tmp_path, monkeypatch):
    weights = tmp_path / "w.safetensors"
    save_file({name: value.numpy() for name, value in build_model("stdc1").backbone.state_dict().items()}, weights)
    card_of(weights).write_text("arch: stdcnet813\ninput: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}\n")
    words = ["train.py", *map(str, train_words(data, tmp_path, 3, f"model.backbone_weights={weights}"))]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(
        UserError, match=r"w.safetensors .*: trained with mean .*: set its data.mean to \[0.5, 0.5, 0.5\]"
    ):
        main()
    monkeypatch.setattr(sys, "argv", [*words, "data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]"])
    main()
    assert len(read_run(run_folder(tmp_path)).train) == 3


def test_micro_batches_are_said_and_seen_one_at_a_time(data, tmp_path):
    process = train(data, tmp_path / "four", 3, "--accumulate", 2, "train.batch_size=8")
    assert process.returncode == 0, process.stderr[-2000:]
    lines = process.stdout.splitlines()
    start = lines.index("batch 8 = 2 micro-batches x 4 images, learning rate 0.005; the recipe's is batch 4")
    assert lines[start + 1] == "batch normalisation: the statistics of each micro-batch, not of the batch"
    words = ("train.batch_size=8", "--resume", "--accumulate", 4)
    assert "train.accumulate differ" in error_line(train(data, tmp_path / "four", 3, *words))
    assert "one value per channel" in error_line(train(data, tmp_path / "one", 3, "--accumulate", 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "quickstart", "data.mean=[123.675, 116.28, 103.53]"], "scaled to 0..1: divide values of 0..255"),
        (["--config", "quickstart", "data.std=[58.4, 57.1, 57.4]"], "scaled to 0..1: divide values of 0..255 by 255"),
        (["--config", "quickstart", "--accumulate", "3"], "accumulate must be a divisor of batch_size 4"),
        (["--config", "qickstart"], r"no config file 'qickstart'.*did you mean 'quickstart'"),
        (["--config", "quickstart", "train.itres=3"], r"unknown key 'itres': did you mean 'iters'"),
        (["--config", "quickstart", "train.iters=many"], r"'train.iters' must be int, not str"),
        (["--config", "quickstart", "trian.iters=3"], r"unknown section 'trian': did you mean 'train'"),
        (["--config", "quickstart", "loss.ohem_threshold=1.5"], r"ohem_threshold must be in \(0, 1\)"),
        (["--config", "quickstart", "--iters", "0"], r"iters must be at least 1"),
        (["--config", "stdc2_seg50", "--data", "nowhere"], r"no data set in 'nowhere'.*--config quickstart"),
        (["--resume", "nowhere"], r"nothing to resume: nowhere is no run folder"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", str(tmp_path / "out"), *words])
    with pytest.raises(UserError, match=message) as error:
        main()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_a_mistake_ends_with_one_line_and_status_1(tmp_path):
    line = error_line(command("train.py", "--output", tmp_path / "out", "--config", "quickstart", "train.iters=0"))
    assert "train.iters must be at least 1" in line


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(data, tmp_path):
    # The fourth large file to be synced finds the disk full.
    script = (
        "import errno, sys, os\n"
        "from stdc_seg import train\n"
        "from common.cli import run_command\n"
        "calls = []\n"
        "real_fsync = os.fsync\n"
        "def fsync(fd):\n"
        "    if os.fstat(fd).st_size > 10**6:\n"
        "        calls.append(fd)\n"
        "        if len(calls) > 3:\n"
        "            raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    real_fsync(fd)\n"
        "os.fsync = fsync\n"
        "run_command(train.main)\n"
    )
    words = train_words(data, tmp_path, 20, "train.checkpoint_every=2", "train.eval_every=100")
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=PROJECT,
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    line = error_line(process)
    assert "no space left on the device while writing" in line
    assert "last.safetensors" in line
    folder = run_folder(tmp_path)
    assert not list(folder.glob(".*.tmp"))
    assert read_state(folder / "last.safetensors").step == 6
