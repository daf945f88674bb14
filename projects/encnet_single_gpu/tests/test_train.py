import contextlib
import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

from common.cli import UserError, run_command
from common.files import sha256_of
from common.labels import voc_colormap
from common.runs.reading import read_run
from common.weights.card import card_of
from encnet_single_gpu.checkpoint import FORMAT, load_network, read_state
from encnet_single_gpu.config import read_config
from encnet_single_gpu.eval import main as eval_main
from encnet_single_gpu.inference import read_checkpoint_info
from encnet_single_gpu.runs import RunPlan
from encnet_single_gpu.train import Trainer, _end, main

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from encnet_runs import SMALL, build_tiny, tiny_networks, train, write_data
from testkit import numbers, run_folder, run_here
from torch import nn


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), values=(0, 1, 2, 3))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """An undisturbed run of 8 steps, its batches of 4 as two micro-batches, with a running mean of the weights."""
    output = tmp_path_factory.mktemp("reference")
    return train(data, output, 8, "--micro-batch", 2, "--ema-decay", 0.9), run_folder(output)


MORE = ("--micro-batch", 2, "--ema-decay", 0.9)


def test_a_run_leaves_its_files(reference):
    printed, folder = reference
    tables = {"train.csv", "eval.csv", "per_class.csv"}
    names = {"config.yaml", "env.json", "curve.png", "best.safetensors", "last.safetensors", *tables}
    assert {path.name for path in folder.iterdir()} == names
    run = read_run(folder)
    assert [int(row["step"]) for row in run.train] == list(range(1, 9))
    assert [(row["step"], row["images"], row["protocol"]) for row in run.eval] == [
        ("4", "2", "ss, whole image"),
        ("8", "2", "ss, whole image"),
    ]
    assert folder.name.startswith("pspnet_s0_")
    assert run.env["dataset"] == "ade20k"
    assert f"best val mIoU {float(run.best()['miou_percent']):.2f} %" in printed
    assert "goes through as 2/2" in printed
    assert "batch normalisation sees one micro-batch at a time" in printed
    first = {name: float(run.train[0][name]) for name in ("loss", "seg", "aux", "se")}
    assert first["loss"] == pytest.approx(first["seg"] + 0.4 * first["aux"] + 0.2 * first["se"])


def test_where_nobody_watches_an_evaluation_is_a_json_line(data, tmp_path, capsys):
    train(data, tmp_path, 2, "--eval-every", 1)
    first, last = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    rows = read_run(run_folder(tmp_path)).eval
    assert [(line["what"], line["step"], line["total"]) for line in (first, last)] == [("train", 1, 2), ("train", 2, 2)]
    for line, row in zip((first, last), rows, strict=True):
        assert line["val_miou_percent"] == pytest.approx(float(row["miou_percent"]), abs=1e-4)
        assert line["val_loss"] == pytest.approx(float(row["loss"]), abs=1e-6)
    best = max((first, last), key=lambda line: line["val_miou_percent"])
    assert (last["best_step"], last["best_miou_percent"]) == (best["step"], best["val_miou_percent"])


def test_own_images_in_the_recipe_of_the_embedded_data_are_not_called_embedded(tmp_path):
    data = write_data(tmp_path / "mine")
    (data / "classes.yaml").write_text(
        "name: squares\nclasses: [{name: one, color: [9, 8, 7]}, two, three]\nids: {1: 0, 2: 1, 3: 2}\n"
    )
    train(data, tmp_path / "out", 2, "--config", "quickstart", "--dataset", "custom", "--warmup-share", 0)
    folder = run_folder(tmp_path / "out")
    assert read_run(folder).env["dataset"] == "custom"
    palette = read_checkpoint_info(folder / "last.safetensors").palette
    assert np.array_equal(palette, [[9, 8, 7], *voc_colormap()[2:4]])  # a class without colour has its default


@pytest.mark.parametrize(("stop", "resumed_at"), [(2, 0), (5, 4)])
def test_stopped_and_resumed_it_ends_with_the_same_digits(data, reference, tmp_path, stop, resumed_at, monkeypatch):
    update = Trainer._update

    def stopping(self, *batch):
        if self.step == stop:
            raise KeyboardInterrupt
        return update(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", stopping)
        train(data, tmp_path, 8, *MORE)
    assert f"at step {resumed_at} of 8" in train(data, tmp_path, 8, "--resume", *MORE, "--num-workers", 2)
    folder = run_folder(tmp_path)
    assert numbers(folder) == numbers(reference[1])
    mine, whole = (safetensors.torch.load_file(run / "last.safetensors") for run in (folder, reference[1]))
    assert mine.keys() == whole.keys()
    assert all(mine[key].equal(whole[key]) for key in mine)


def test_eval_repeats_the_number_of_training(data, reference, tmp_path):
    def evaluate(name, output, *more):
        with tiny_networks():
            return run_here(eval_main, "--weights", reference[1] / name, "--data", data, "--output", output, *more)

    evaluate("last.safetensors", tmp_path / "last")
    assert numbers(tmp_path / "last")["eval.csv"] == numbers(reference[1])["eval.csv"][-1:]
    evaluate("best.safetensors", tmp_path / "best")
    best = read_run(reference[1]).best()["miou_percent"]
    assert numbers(tmp_path / "best")["eval.csv"][0]["miou_percent"] == best
    printed = evaluate("best.safetensors", tmp_path, "--protocol", "encoding_ms_flip")
    assert "ms 0.5/0.75/1/1.25/1.5/1.75, flip, long side 52, windows 48 (PyTorch-Encoding)" in printed


def test_both_readings_of_ade20k_and_neither_loads_the_other(data, reference, tmp_path):
    train(data, tmp_path, 2, "--background")
    folder = run_folder(tmp_path)
    run = read_run(folder)
    assert folder.name.startswith("pspnet_background_s0_")
    assert run.env["dataset"] == "ade20k_151"
    assert len(run.env["class_names"]) == 151
    assert len(read_run(reference[1]).env["class_names"]) == 150
    swapped = tmp_path / "pspnet_s0_swapped"
    shutil.copytree(reference[1], swapped)
    shutil.copy(folder / "best.safetensors", swapped / "last.safetensors")
    weights = swapped / "last.safetensors"
    state = json.loads(safetensors.safe_open(weights, "pt").metadata()[FORMAT])
    state["config_text"] = state["config_text"].replace("ade20k_151", "ade20k")
    header = {"format": FORMAT, "state": json.dumps(state)}  # the two entries of before there was one
    safetensors.torch.save_file(safetensors.torch.load_file(weights), weights, header)
    with tiny_networks(), pytest.raises(UserError, match="made for 151 classes.*the data has 150"):
        run_here(eval_main, "--weights", weights, "--data", data)
    with tiny_networks(), pytest.raises(UserError, match="made for 151 classes.*the data has 150"):
        run_here(main, "--resume", weights, "--data", data, "--extend", "--iters", 9)

    with (
        tiny_networks(),
        pytest.raises(UserError, match=r"'background' before them.*or train new ones without --background"),
    ):
        run_here(eval_main, "--weights", weights, "--data", data)


def test_classes_in_another_order_are_refused(tmp_path):
    """Of equal number: the scores would be plausible, and wrong."""
    data = write_data(tmp_path / "data")
    text = "name: squares\nclasses: [{}]\nids: {{1: 0, 2: 1, 3: 2}}\n"
    (data / "classes.yaml").write_text(text.format("one, two, three"))
    words = ("--config", "quickstart", "--dataset", "custom", "--warmup-share", 0)
    train(data, tmp_path / "out", 2, *words)
    folder = run_folder(tmp_path / "out")
    (data / "classes.yaml").write_text(text.format("two, one, three"))
    message = (
        r"made for 3 classes \(one, two, three\), the data has 3 \(two, one, three\): the same names in another order"
    )
    with tiny_networks(), pytest.raises(UserError, match=message):
        run_here(eval_main, "--weights", folder / "best.safetensors", "--data", data)
    with pytest.raises(UserError, match=message):
        train(data, tmp_path / "out", 3, *words, "--resume", "--extend")


def test_a_batch_and_the_recipes_are_said(data, tmp_path):
    printed = train(data, tmp_path, 1)
    assert "batch 4, learning rate 0.05; the recipe's is batch 12\n" in printed


def test_labels_that_are_all_ignored_end_the_run(tmp_path):
    data = write_data(tmp_path / "data")
    for line in (data / "train.txt").read_text().splitlines():
        cv2.imwrite(str(data / line.split(",")[1]), np.zeros((72, 80), np.uint8))
    with pytest.raises(SystemExit) as end, contextlib.redirect_stderr(io.StringIO()) as err, tiny_networks():
        words = ["train.py", "--data", data, "--output", tmp_path / "out", *SMALL, "--iters", 2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(word) for word in words])
            run_command(main)
    assert end.value.code == 1
    (line,) = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    assert "the 4 labels of the training list show no class at all" in line
    assert not list(tmp_path.glob("out/*/*.safetensors"))


@pytest.mark.parametrize(("waiting", "warns"), [(2.0, False), (2.1, True)])
def test_waiting_for_data_is_warned_of_above_a_fifth(reference, waiting, warns):
    config = read_config(str(reference[1] / "config.yaml"))
    plan, cpu = RunPlan(config, "pspnet", reference[1], None, None), torch.device("cpu")
    times = {"seconds": 10.0, "data_seconds": waiting}
    lines = _end(SimpleNamespace(plan=plan, config=config, device=cpu, best_miou=0.5, best_step=4, **times))
    assert ("warning: loading is the bottleneck: raise --num-workers (now 0)" in lines) is warns


@pytest.mark.parametrize("command", [main, eval_main])
def test_several_processes_are_refused(command, data, reference, monkeypatch):
    """Two would write into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("--weights", reference[1] / "best.safetensors") if command is eval_main else ("--local-rank", 1)
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2.*one process.*awesome_pytorch_seg trains on several GPUs"):
        run_here(command, *words, "--data", data)


def test_one_process_of_a_launcher_trains(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(data, tmp_path, 1, "--local_rank", 0)
    assert len(read_run(run_folder(tmp_path)).train) == 1


@pytest.mark.parametrize("option", [("--mean", 123.675, 116.28, 103.53), ("--std", 58.395, 57.12, 57.375)])
def test_mean_and_std_of_0_to_255_are_refused(data, tmp_path, option):
    with pytest.raises(UserError, match=r"data.mean and std must be those of images scaled to 0..1: divide .* by 255"):
        train(data, tmp_path, 1, *option)


def test_weights_in_half_precision_are_computed_in_single(reference, tmp_path):
    best, half = reference[1] / "best.safetensors", tmp_path / "half.safetensors"
    tensors = safetensors.torch.load_file(best)
    rounded = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    safetensors.torch.save_file(rounded, half, safetensors.safe_open(best, "pt").metadata())
    with tiny_networks():
        loaded, whole = (load_network(path).state_dict() for path in (half, best))
    for name, value in loaded.items():
        assert value.dtype == whole[name].dtype
        assert torch.equal(value, whole[name].half().to(value.dtype) if value.is_floating_point() else whole[name])


def test_micro_batches_have_the_gradient_of_the_whole_batch(data, tmp_path):
    """Without batch normalisation and dropout, however unevenly ignored pixels lie."""

    def gradients(micro_batch):
        trainer = _trainer(data, tmp_path, micro_batch)
        trainer.model.backbone[1] = nn.Identity()
        trainer.model.hidden[2] = nn.Identity()
        label = np.random.default_rng(0).integers(0, 3, (4, 32, 48))
        label[1] = 255
        label[2, :, 5:] = 255
        images = np.random.default_rng(1).standard_normal((4, 3, 32, 48), np.float32)
        total, _ = trainer.updater.gradients(images, label, step=0)
        return total, [p.grad for p in trainer.model.parameters()]

    (whole_loss, whole), (parts_loss, parts) = gradients(None), gradients(1)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _trainer(data, output, micro_batch):
    """A trainer that has not begun."""
    trainers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "run", lambda self, stop: trainers.append(self) or (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            train(data, output, 2, "--micro-batch", micro_batch or "null")
    return trainers[0]


def test_fp16_scaler_is_kept(data, tmp_path):
    train(data, tmp_path, 2, "--amp", "fp16")
    assert read_state(run_folder(tmp_path) / "last.safetensors").scaler["scale"] > 1


def test_bf16_channels_last(data, tmp_path):
    train(data, tmp_path, 2, "--amp", "bf16", "--channels-last")
    assert all(np.isfinite(float(row["loss"])) for row in read_run(run_folder(tmp_path)).train)


def test_one_image_is_learnt(tmp_path):
    root = write_data(tmp_path / "data", size=(48, 64))
    line = (root / "train.txt").read_text().splitlines()[0] + "\n"
    (root / "train.txt").write_text(line)
    (root / "val.txt").write_text(line)
    still = ("--scales", 1, 1, "--rotation-degrees", 0, "--blur-probability", 0, "--flip-probability", 0)
    words = (*still, "--crop-size", 48, 64, "--optimizer", "adamw", "--batch-size", 2, "--eval-every", 60)
    train(root, tmp_path / "out", 60, *words, "--learning-rate", 0.02, "--head-lr-factor", 1)
    assert float(read_run(run_folder(tmp_path / "out")).best()["pixel_accuracy_percent"]) > 95


def test_resume_keeps_its_experiment_unless_extended(data, reference, tmp_path):
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    with pytest.raises(UserError, match="optimizer.clip_norm differ"):
        run_here(main, "--resume", folder, "--clip-norm", 0.5)
    with pytest.raises(UserError, match="data.dataset differ"):
        run_here(main, "--resume", folder, "--background")
    with pytest.raises(UserError, match="augment.crop_size, .* differ"):
        run_here(main, "--resume", folder, "--paper")
    with pytest.raises(UserError, match="from 8 to 10 iterations"):
        run_here(main, "--resume", folder, "--iters", 10)
    assert numbers(folder) == numbers(reference[1])
    with tiny_networks():
        printed = run_here(main, "--resume", folder, "--iters", 10, "--extend", "--data", data, "--micro-batch", 4)
    assert re.search(r"extended from 8 to 10 iterations: at step 8 the rate goes from 0 to 0\.\d+", printed)
    assert [int(row["step"]) for row in read_run(folder).train] == list(range(1, 11))
    assert read_config(str(folder / "config.yaml")).train.micro_batch == 4
    assert "has reached its 10 iterations" in run_here(main, "--resume", folder)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(data, tmp_path):
    with pytest.raises(UserError, match="stopped before the update") as error:
        train(data, tmp_path, 8, "--learning-rate", "1e30")
    assert "\n" not in str(error.value)
    (report,) = tmp_path.glob("*/nonfinite_loss_step*.json")
    assert len(json.loads(report.read_text())["images"]) == 4


class NoMemory(nn.Module):
    """A network in evaluation for which there is none."""

    def forward(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")


def test_out_of_memory_in_validation_names_the_image_and_what_helps(data, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluated", property(lambda self: _with_a_parameter(NoMemory())))
    whole = r"/4.png: out of memory: the network sees the whole image: .*--protocol encoding_ss.*resume with --resume"
    with pytest.raises(UserError, match=whole) as error:
        train(data, tmp_path, 4)
    assert "--micro-batch" not in str(error.value)
    assert "\n" not in str(error.value)
    trained = _with_a_parameter(NoMemory())
    monkeypatch.setattr("encnet_single_gpu.eval.load_network", lambda weights, class_names: trained)
    words = ("--weights", reference[1] / "best.safetensors", "--data", data, "--output", tmp_path)
    with pytest.raises(UserError, match=whole):
        run_here(eval_main, *words)
    with pytest.raises(UserError, match=r"/4.png: out of memory: windows are small, .*make the image smaller"):
        run_here(eval_main, *words, "--protocol", "encoding_ss")


def _with_a_parameter(network):
    network.weight = nn.Parameter(torch.zeros(1))
    return network


def test_out_of_memory_is_one_line_and_the_checkpoint_stays(data, tmp_path, monkeypatch):
    update = Trainer._update

    def failing(self, *batch):
        if self.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        return update(self, *batch)

    monkeypatch.setattr(Trainer, "_update", failing)
    with pytest.raises(
        UserError, match=r"out of memory: resume with --resume \S+ and a smaller --micro-batch"
    ) as error:
        train(data, tmp_path, 8)
    assert "\n" not in str(error.value)
    assert read_state(run_folder(tmp_path) / "last.safetensors").step == 3


@pytest.mark.parametrize("batch", [("--micro-batch", 1), ("--batch-size", 3, "--micro-batch", 2), ("--batch-size", 1)])
def test_an_image_alone_in_batch_normalisation_is_refused_before_the_start(data, tmp_path, monkeypatch, batch):
    class Pooled(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, num_classes, 1), nn.BatchNorm2d(num_classes)
            )

        def forward(self, images):
            return {"logits": self.head(images).expand(-1, -1, *images.shape[2:])}

    monkeypatch.setattr(
        "encnet_single_gpu.train.build_model", lambda name, backbone, num_classes, variant: Pooled(num_classes)
    )
    message = (
        r"batch normalisation 'head.2' would see one value per channel \(input \[1, 150, 1, 1\]\): give a --batch-size"
    )
    with pytest.raises(UserError, match=message) as error:
        run_here(main, "--data", data, "--output", tmp_path, *SMALL, "--iters", 2, *batch)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_global_pooling_learns_from_single_images(data, tmp_path):
    train(data, tmp_path, 2, "--micro-batch", 1)
    assert len(read_run(run_folder(tmp_path)).train) == 2


def test_fit_memory_sets_the_micro_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr("encnet_single_gpu.train.largest_micro_batch", lambda step, batch_size, device: 3)
    assert "3 of 4 images fit" in train(data, tmp_path, 2, "--fit-memory")
    assert read_config(str(run_folder(tmp_path) / "config.yaml")).train.micro_batch == 3


def test_measuring_memory_leaves_no_trace(data, tmp_path):
    trainer = _trainer(data, tmp_path, None)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.updater.step_on_noise(2)
    assert all(value.equal(before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.slow
def test_compiled_it_learns_the_same(data, reference, tmp_path):
    train(data, tmp_path, 8, *MORE, "--compile")
    rows = read_run(run_folder(tmp_path)).train
    losses = [float(row["loss"]) for row in rows]
    assert losses == pytest.approx([float(row["loss"]) for row in read_run(reference[1]).train], rel=1e-3)
    names = safetensors.torch.load_file(run_folder(tmp_path) / "last.safetensors").keys()
    assert names == safetensors.torch.load_file(reference[1] / "last.safetensors").keys()


def test_the_backbone_it_started_from_is_in_the_runs_environment(data, tmp_path):
    torch.manual_seed(1)
    weights = build_tiny("pspnet").backbone.state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    train(data, tmp_path, 1, "--backbone-weights", tmp_path / "backbone.pth", "--learning-rate", 1e-9)
    folder = run_folder(tmp_path)
    assert read_run(folder).env["backbone_weights_sha256"] == sha256_of(tmp_path / "backbone.pth")
    trained = safetensors.torch.load_file(folder / "best.safetensors")
    assert torch.allclose(trained["model.backbone.0.weight"], weights["0.weight"], atol=1e-7)
    card_of(tmp_path / "backbone.pth").write_text("input: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}\n")
    with pytest.raises(UserError, match=r"trained with mean \[0.5, 0.5, 0.5\].*set its data.mean to \[0.5, 0.5, 0.5\]"):
        train(data, tmp_path / "other", 1, "--backbone-weights", tmp_path / "backbone.pth")
