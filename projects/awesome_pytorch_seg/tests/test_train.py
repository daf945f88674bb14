import json
import re
import shutil
import sys
from types import SimpleNamespace

from awesome_pytorch_seg import train as training
from awesome_pytorch_seg.checkpoint import FORMAT, read_state
from awesome_pytorch_seg.config import Config
from awesome_pytorch_seg.eval import main as eval_main
from awesome_pytorch_seg.models import build_model
from awesome_pytorch_seg.runs import RunPlan
from awesome_pytorch_seg.train import Trainer, main
from common.cli import UserError
from common.config.typed import config_from_text
from common.runs.reading import read_run
from common.weights.card import card_of

import cv2
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from awesome_runs import STAGES, command, train, train_words, without_new_keys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from testkit import error_line, numbers, run_folder, run_here, write_data
from torch import nn

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
    assert run.env["trainable_parameters"] == 364_376 - 17 * (16 * 4 + 1)
    assert f"best val mIoU {float(run.best()['miou_percent']):.2f} %" in printed


def test_where_nobody_watches_an_evaluation_is_a_json_line(data, tmp_path, capsys):
    train(data, tmp_path, 2, "train.eval_every=1", "train.checkpoint_every=2")
    first, last = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    rows = read_run(run_folder(tmp_path)).eval
    assert [(line["what"], line["step"], line["total"]) for line in (first, last)] == [("train", 1, 2), ("train", 2, 2)]
    for line, row in zip((first, last), rows, strict=True):
        assert line["val_miou_percent"] == pytest.approx(float(row["miou_percent"]), abs=1e-4)
        assert line["val_loss"] == pytest.approx(float(row["loss"]), abs=1e-6)
    best = max((first, last), key=lambda line: line["val_miou_percent"])
    assert (last["best_step"], last["best_miou_percent"]) == (best["step"], best["val_miou_percent"])


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


def test_one_image_is_learnt(tmp_path):
    root = write_data(tmp_path / "data", size=(48, 64))
    line = (root / "train.txt").read_text().splitlines()[0] + "\n"
    (root / "train.txt").write_text(line)
    (root / "val.txt").write_text(line)
    stage = "augment.stages=[{share: 1.0, scales: [1.0, 1.0], crop_size: [48, 64]}]"
    words = (stage, "augment.flip_probability=0.0", "augment.color_jitter=0.0", "train.amp=null")
    train(root, tmp_path / "out", 250, *words)
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


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(data, tmp_path):
    words = ("optimizer.learning_rate=1.0e+30", "schedule.warmup_factor=1.0", "optimizer.clip_norm=null")
    line = error_line(command("train.py", *train_words(data, tmp_path, 8, *words)))
    assert "stopped before the update" in line
    (report,) = tmp_path.glob("*/nonfinite_loss_step*.json")
    assert len(json.loads(report.read_text())["images"]) == 2


def test_a_checkpoint_of_the_first_version_is_read_and_trained_on(data, reference, tmp_path):
    """The keys that came later have defaults."""
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    for name in ("last.safetensors", "best.safetensors"):
        with safetensors.safe_open(folder / name, framework="pt") as file:
            header = file.metadata()
        state = json.loads(header[FORMAT])
        state["config_text"] = without_new_keys(state["config_text"])
        assert "accumulate" not in state["config_text"]
        assert config_from_text(Config, state["config_text"], "old") == config_from_text(
            Config, read_state(folder / name).config_text, "new"
        )
        tensors = safetensors.torch.load_file(folder / name)
        safetensors.torch.save_file(tensors, folder / name, {"format": FORMAT, "state": json.dumps(state)})
    run_here(eval_main, "--weights", folder / "last.safetensors", "--data", data, "--output", tmp_path / "eval")
    assert numbers(tmp_path / "eval")["eval.csv"] == numbers(reference[1])["eval.csv"][-1:]
    run_here(main, "--resume", folder, "--iters", 9, "--extend", "--data", data)
    assert [int(row["step"]) for row in read_run(folder).train] == list(range(1, 10))


class Convolutions(nn.Module):
    """A network without batch normalisation."""

    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, num_classes, 3, padding=1))

    def forward(self, images):
        logits = self.layers(images)
        return {"logits": logits} if self.training else logits


def test_parts_of_a_batch_give_the_gradient_of_the_whole(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "build_network", lambda config, num_classes: Convolutions(num_classes))
    stage = "augment.stages=[{share: 1.0, scales: [1.0, 1.0], crop_size: [64, 64]}]"  # no padding: all pixels count
    words = (stage, "train.batch_size=4", "train.amp=null", "loss.class_weights=null", "loss.dice_weight=0.0")
    trained = []
    for parts in (1, 2, 4):
        train(data, tmp_path / str(parts), 3, *words, "--accumulate", parts)
        folder = run_folder(tmp_path / str(parts))
        trained.append((read_run(folder).train, safetensors.torch.load_file(folder / "last.safetensors")))
    whole_rows, whole = trained[0]
    for rows, tensors in trained[1:]:
        for row, whole_row in zip(rows, whole_rows, strict=True):
            assert float(row["loss"]) == pytest.approx(float(whole_row["loss"]), rel=1e-5)
            assert float(row["grad_norm"]) == pytest.approx(float(whole_row["grad_norm"]), rel=1e-5)
        assert all(torch.allclose(tensors[name], whole[name], rtol=1e-4, atol=1e-6) for name in whole)


def test_a_batch_that_cannot_be_cut_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="train.accumulate 2: 3 images of a process cannot be cut into 2 equal"):
        train(data, tmp_path, 2, "--accumulate", 2, "train.batch_size=3")


def test_one_value_per_channel_is_refused(data, tmp_path):
    words = ("--model", "bisenet", "train.batch_size=1", "train.amp=null", "optimizer.ema_decay=null")
    message = r"batch normalisation '(\S+)' would see one value per channel \(input \[1, \d+, 1, 1\]\): use at least 2"
    with pytest.raises(UserError, match=message) as error:
        train(data, tmp_path, 2, *words)
    name = re.search(message, str(error.value))[1]
    pooled = []
    model = build_model("bisenet", None, 3)
    for (
        layer_name,
        layer,
    ) in model.named_modules():  # the first that the forward comes to, in another way: PyTorch's own
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda layer, inputs, name=layer_name: pooled.append(name))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, 64, 64))
    assert name == pooled[-1]


def test_classes_in_another_order_are_refused(data, reference, tmp_path):
    """Of equal number: the scores would be plausible, and wrong."""
    other = tmp_path / "data"
    shutil.copytree(data, other)
    text = (
        (other / "classes.yaml").read_text().replace("[one, {name: two, color: [9, 8, 7]}, three]", "[two, one, three]")
    )
    (other / "classes.yaml").write_text(text)
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    message = (
        r"made for 3 classes \(one, two, three\), the data has 3 \(two, one, three\): the same names in another order"
    )
    with pytest.raises(UserError, match=message):
        run_here(eval_main, "--weights", folder / "best.safetensors", "--data", other, "--output", tmp_path / "eval")
    with pytest.raises(UserError, match=message):
        run_here(main, "--resume", folder, "--iters", 9, "--extend", "--data", other)
    assert numbers(folder) == numbers(reference[1])


def test_a_batch_and_its_cut_are_said_once(data, tmp_path):
    """SMALL has 2 images; enet_camvid, which it changes, has 10."""
    printed = train(data, tmp_path, 2, "train.batch_size=4", "--accumulate", 2)
    assert "batch 4 = 2 micro-batches x 2 images, learning rate 0.003; the recipe's is batch 10\n" in printed
    assert printed.count("batch normalisation: the statistics of each micro-batch, not of the batch") == 1


def test_labels_that_are_all_ignored_end_the_run(data, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(data, other)
    for line in (other / "train.txt").read_text().splitlines():
        cv2.imwrite(str(other / line.split(",")[1]), np.full((72, 80), 255, np.uint8))
    line = error_line(command("train.py", *train_words(other, tmp_path / "out", 2)))
    assert "the 4 labels of the training list show no class at all" in line
    assert not list(tmp_path.glob("out/*/*.safetensors"))


@pytest.mark.parametrize(("waiting", "warns"), [(2.0, False), (2.1, True)])
def test_waiting_for_data_is_warned_of_above_a_fifth(reference, waiting, warns):
    config = config_from_text(Config, read_state(reference[1] / "last.safetensors").config_text, "run")
    plan = RunPlan(config, "enet_camvid", reference[1], None, None)
    lines = training._end(
        SimpleNamespace(plan=plan, config=config, seconds=10.0, data_seconds=waiting, best_miou=0.5, best_step=4)
    )
    assert ("warning: loading is the bottleneck: raise --workers (now 0)" in lines) is warns


def test_images_are_normalised_as_the_backbones_weights_expect(data, tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    monkeypatch.setattr(training, "build_network", lambda config, num_classes: Convolutions(num_classes))
    words = ("--model", "deeplabv3", "--backbone", "xception65", "optimizer.ema_decay=null", "train.amp=null")
    warning = "warning: the published weights of xception65 expect images of mean and std 0.5: for them set data.mean="
    assert warning in train(data, tmp_path / "a", 2, *words, "--backbone-weights", file)
    assert warning not in train(data, tmp_path / "b", 2, *words)  # random weights
    halves = ("data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]")
    assert warning not in train(data, tmp_path / "c", 2, *words, "--backbone-weights", file, *halves)
    card_of(file).write_text("input: {mean: [0.1, 0.2, 0.3], std: [0.5, 0.5, 0.5]}\n")
    with pytest.raises(UserError, match=r"trained with mean \[0.1, 0.2, 0.3\].*set its data.mean to \[0.1, 0.2, 0.3\]"):
        train(data, tmp_path / "d", 2, *words, "--backbone-weights", file, *halves)


@pytest.mark.parametrize(
    "words",
    [("data.mean=[123.675,116.28,103.53]",), ("data.std=[58.395,57.12,57.375]",), ("data.mean=[-0.1,0.4,0.4]",)],
)
def test_mean_and_std_of_0_to_255_are_refused(data, tmp_path, words):
    with pytest.raises(UserError, match=r"data.mean and std must be those of images scaled to 0..1: divide .* by 255"):
        train(data, tmp_path, 1, *words)


def test_tensorboard_has_the_rows_of_the_tables(data, tmp_path):
    train(data, tmp_path, 3, "--tensorboard", *EVERY)
    folder = run_folder(tmp_path)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([float(row["loss"]) for row in read_run(folder).train])
    (miou,) = events.Scalars("val/miou_percent")
    assert miou.value == pytest.approx(float(read_run(folder).eval[0]["miou_percent"]), abs=1e-4)


def test_the_backbone_starts_from_its_file(data, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(7)
    file = tmp_path / "resnet18.safetensors"
    stored = timm.create_model("resnet18").state_dict()
    safetensors.torch.save_file(stored, file)
    begun = []
    monkeypatch.setattr(Trainer, "run", lambda self, stop: begun.append(self))
    monkeypatch.setattr(training, "_end", lambda trainer: [])
    train(data, tmp_path / "out", 2, "--model", "bisenet", "--backbone-weights", file)
    filled = begun[0].model.backbone.state_dict()
    conv = next(name for name, value in filled.items() if value.shape == (64, 3, 7, 7))
    assert filled[conv].equal(stored["conv1.weight"])
    env = json.loads((run_folder(tmp_path / "out") / "env.json").read_text())
    assert len(env["backbone_weights_sha256"]) == 64


def test_dunets_upsampling_starts_from_the_labels(data, tmp_path, monkeypatch):
    """Its columns are orthonormal where the labels decide them; random ones would not be."""
    begun = []
    monkeypatch.setattr(Trainer, "run", lambda self, stop: begun.append(self))
    monkeypatch.setattr(training, "_end", lambda trainer: [])
    train(data, tmp_path, 2, "--model", "dunet", "--backbone", "resnet18", "optimizer.ema_decay=null")
    columns = begun[0].model.upsampling.weight.detach()[:, :8]
    assert torch.allclose(columns.T @ columns, torch.eye(8), atol=1e-3)


@pytest.mark.slow
def test_compiled_it_learns_the_same(data, tmp_path):
    for name, words in (("eager", ()), ("compiled", ("--compile",))):
        train(data, tmp_path / name, 2, "train.amp=null", *words)
    eager, compiled = (read_run(run_folder(tmp_path / name)).train for name in ("eager", "compiled"))
    for one, other in zip(eager, compiled, strict=True):
        # Dropout draws other numbers in a compiled network, so only about the same.
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "enet_camvd"], r"no config file 'enet_camvd'.*did you mean 'enet_camvid'"),
        (["--config", "enet_camvid", "train.itres=3"], r"unknown key 'itres': did you mean 'iters'"),
        (["--config", "enet_camvid", "--iters", "0"], r"iters must be at least 1"),
        (["--config", "enet_camvid", "--data", "nowhere"], r"no data set in 'nowhere'"),
        (["--config", "enet_camvid", "--iters", "5", "--epochs", "5", "--data", "."], r"give one"),
        (["--model", "enet", "--data", "nowhere"], r"no data set in 'nowhere'"),
        (["--model", "enet", "--dataset", "camvit"], r"unknown data set 'camvit': did you mean 'camvid'"),
        (["--config", "enet_camvid", "--use-ohem", "--data", "DATA"], r"class_weights must be null with ohem"),
        (["--config", "enet_camvid", "--model", "penet", "--data", "DATA"], r"unknown network 'penet'"),
        (["--config", "enet_camvid", "--backbone", "vgg16", "--data", "DATA"], r"no separate backbone"),
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
    assert not list(tmp_path.glob("out/*"))
