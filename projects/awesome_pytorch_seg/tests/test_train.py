import json
import shutil
import sys

from awesome_pytorch_seg.checkpoint import read_state
from awesome_pytorch_seg.config import read_config
from awesome_pytorch_seg.eval import main as eval_main
from awesome_pytorch_seg.runs import plan_run
from awesome_pytorch_seg.train import Trainer, main, parse_args
from common.cli import UserError
from common.run_log import read_run

import pytest
import safetensors.torch
from awesome_runs import STAGES, command, error_line, numbers, run_folder, run_here, train, train_words, write_data

EVERY = ("train.eval_every=4", "train.checkpoint_every=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """An undisturbed run of 8 steps over two stages."""
    output = tmp_path_factory.mktemp("reference")
    printed = train(data, output, 8, *EVERY)
    return printed, run_folder(output)


def test_a_run_leaves_its_files(reference):
    printed, folder = reference
    names = {path.name for path in folder.iterdir()}
    tables = {"train.csv", "eval.csv", "per_class.csv"}
    assert names == {"config.yaml", "env.json", "curve.png", "best.safetensors", "last.safetensors", *tables}
    run = read_run(folder)
    assert [int(row["step"]) for row in run.train] == list(range(1, 9))
    assert [(row["step"], row["images"]) for row in run.eval] == [("4", "2"), ("8", "2")]
    assert run.env["trainable_parameters"] == 350_652 - 16 * 9 * 9
    assert f"best val mIoU {float(run.best()['miou_percent']):.2f} %" in printed


@pytest.mark.parametrize(("stop", "resumed_at"), [(2, 0), (5, 4)])
def test_stopped_and_resumed_it_ends_with_the_same_digits(data, reference, tmp_path, stop, resumed_at, monkeypatch):
    update = Trainer._update

    def stopping(self, *batch):
        if self.step == stop:
            raise KeyboardInterrupt
        return update(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", stopping)
        train(data, tmp_path, 8, *EVERY)
    assert f"at step {resumed_at} of 8" in train(data, tmp_path, 8, "--resume", *EVERY)
    folder = run_folder(tmp_path)
    assert numbers(folder) == numbers(reference[1])
    for name in ("best.safetensors", "last.safetensors"):
        assert read_state(folder / name) == read_state(reference[1] / name)
        mine, whole = (safetensors.torch.load_file(run / name) for run in (folder, reference[1]))
        assert mine.keys() == whole.keys()
        assert all(mine[key].equal(whole[key]) for key in mine)


def test_loader_threads_change_no_digit(data, reference, tmp_path):
    train(data, tmp_path, 8, *EVERY, "train.num_workers=2")
    assert numbers(run_folder(tmp_path)) == numbers(reference[1])


def test_eval_repeats_the_number_of_training(data, reference, tmp_path):
    def evaluate(name, output, *more):
        return run_here(eval_main, "--weights", reference[1] / name, "--data", data, "--output", output, *more)

    evaluate("last.safetensors", tmp_path / "last")
    assert numbers(tmp_path / "last")["eval.csv"] == numbers(reference[1])["eval.csv"][-1:]
    evaluate("best.safetensors", tmp_path / "best")
    best = read_run(reference[1]).best()["miou_percent"]
    assert numbers(tmp_path / "best")["eval.csv"][0]["miou_percent"] == best
    assert "ms 0.5/1, flip, whole image" in evaluate("best.safetensors", tmp_path, "--scales", "0.5", "1", "--flip")


def test_best_holds_the_running_mean(reference):
    folder = reference[1]
    last = safetensors.torch.load_file(folder / "last.safetensors")
    best = safetensors.torch.load_file(folder / "best.safetensors")
    assert {name.partition(".")[0] for name in last} == {"model", "average", "optimizer"}
    if read_state(folder / "best.safetensors").step == 8:
        assert all(last[name.replace("model.", "average.", 1)].equal(value) for name, value in best.items())
    assert set(best) == {name for name in last if name.startswith("model.")}


def test_fp16_scaler_is_kept(data, tmp_path):
    train(data, tmp_path, 2, "--amp", "fp16")
    assert read_state(run_folder(tmp_path) / "last.safetensors").scaler["scale"] > 1


def test_one_picture_is_learnt(tmp_path):
    root = write_data(tmp_path / "data", size=(48, 64))
    line = (root / "train.txt").read_text().splitlines()[0] + "\n"
    (root / "train.txt").write_text(line)
    (root / "val.txt").write_text(line)
    stage = "augment.stages=[{share: 1.0, scales: [1.0, 1.0], crop_size: [48, 64]}]"
    words = (stage, "augment.flip_probability=0.0", "augment.color_jitter=0.0", "train.amp=null")
    train(root, tmp_path / "out", 100, *words)
    assert float(read_run(run_folder(tmp_path / "out")).best()["miou_percent"]) > 95


def test_resume_keeps_its_experiment_unless_extended(data, reference, tmp_path):
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    with pytest.raises(UserError, match="optimizer.clip_norm differ"):
        train(data, tmp_path, 8, "--resume", folder / "last.safetensors", *EVERY, "optimizer.clip_norm=0.5")
    with pytest.raises(UserError, match="from 8 to 10 iterations"):
        run_here(main, "--resume", folder, "--iters", 10)
    assert numbers(folder) == numbers(reference[1])
    printed = run_here(main, "--resume", folder, "--iters", 10, "--extend", "--data", data)
    assert "extended from 8 to 10 iterations: at step 8 the rate goes from" in printed
    assert [int(row["step"]) for row in read_run(folder).train] == list(range(1, 11))
    assert "has reached its 10 iterations" in run_here(main, "--resume", folder, "--data", data)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_pictures(data, tmp_path):
    words = ("optimizer.learning_rate=1.0e+30", "schedule.warmup_factor=1.0", "optimizer.clip_norm=null")
    line = error_line(command("train.py", *train_words(data, tmp_path, 8, *words)))
    assert "stopped before the update" in line
    (report,) = tmp_path.glob("*/nonfinite_loss_step*.json")
    assert len(json.loads(report.read_text())["images"]) == 2


def test_flags_of_the_original(data, tmp_path, monkeypatch):
    words = ("--model", "enet", "--dataset", "camvid", "--data", data, "--output", tmp_path, "--lr", "0.25")
    words += ("--epochs", 50, "--batch-size", 3, "--momentum", 0.5, "--workers", 2, "--amp", "fp16", "--channels-last")
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words), "train.channels_last=true"])
    plan = plan_run(parse_args())
    config = plan.config
    assert plan.config_name == "enet_camvid"
    assert (config.optimizer.learning_rate, config.optimizer.momentum) == (0.25, 0.5)
    assert (config.train.batch_size, config.train.num_workers, config.train.amp) == (3, 2, "fp16")
    assert config.train.iters == 67  # 50 epochs of 4 pictures, 3 at a time
    base = read_config("enet_camvid")
    assert config.schedule.warmup_iters == base.schedule.warmup_iters * 67 // base.train.iters


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "enet_camvd"], r"no config file 'enet_camvd'.*did you mean 'enet_camvid'"),
        (["--config", "enet_camvid", "train.itres=3"], r"unknown key 'itres': did you mean 'iters'"),
        (["--config", "enet_camvid", "--iters", "0"], r"iters must be at least 1"),
        (["--config", "enet_camvid", "--data", "nowhere"], r"no data set in 'nowhere'"),
        (["--config", "enet_camvid", "--iters", "5", "--epochs", "5", "--data", "."], r"give one"),
        (["--model", "enet"], r"name an experiment"),
        (["--model", "enet", "--dataset", "mars"], r"no config for enet on mars.*enet_camvid"),
        (["--config", "enet_camvid", "--model", "penet", "--data", "DATA"], r"unknown network 'penet'"),
        (["--config", "enet_camvid", "--backbone", "vgg16", "--data", "DATA"], r"of one piece"),
        (["--resume", "nowhere"], r"nothing to resume: nowhere is no run folder"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, message, data, tmp_path, monkeypatch):
    words = [str(data) if word == "DATA" else word for word in words]
    words = ["train.py", "--output", str(tmp_path / "out"), *words, "data.dataset=custom", STAGES]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UserError, match=message) as error:
        main()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
