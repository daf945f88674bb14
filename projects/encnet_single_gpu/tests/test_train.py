import json
import re
import shutil

from common.cli import UserError
from common.files import sha256_of
from common.labels import voc_colormap
from common.run_log import read_run
from encnet_single_gpu.checkpoint import read_state
from encnet_single_gpu.config import read_config
from encnet_single_gpu.eval import main as eval_main
from encnet_single_gpu.inference import load_network
from encnet_single_gpu.memory import micro_batches
from encnet_single_gpu.train import Trainer, main

import numpy as np
import pytest
import safetensors.torch
import torch
from encnet_runs import SMALL, build_tiny, numbers, run_folder, run_here, tiny_networks, train, write_data
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


def test_own_pictures_in_the_recipe_of_the_embedded_data_are_not_called_embedded(tmp_path):
    data = write_data(tmp_path / "mine")
    (data / "classes.yaml").write_text(
        "name: squares\nclasses: [{name: one, color: [9, 8, 7]}, two, three]\nids: {1: 0, 2: 1, 3: 2}\n"
    )
    train(data, tmp_path / "out", 2, "--config", "quickstart", "--dataset", "custom", "--warmup-share", 0)
    folder = run_folder(tmp_path / "out")
    assert read_run(folder).env["dataset"] == "custom"
    with tiny_networks():
        palette = load_network(folder / "last.safetensors").palette
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
    state = json.loads(safetensors.safe_open(weights, "pt").metadata()["state"])
    state["config_text"] = state["config_text"].replace("ade20k_151", "ade20k")
    header = {"format": safetensors.safe_open(weights, "pt").metadata()["format"], "state": json.dumps(state)}
    safetensors.torch.save_file(safetensors.torch.load_file(weights), weights, header)
    with tiny_networks(), pytest.raises(UserError, match="made for 151 classes.*the data has 150"):
        run_here(eval_main, "--weights", weights, "--data", data)
    with tiny_networks(), pytest.raises(UserError, match="made for 151 classes.*the data has 150"):
        run_here(main, "--resume", weights, "--data", data, "--extend", "--iters", 9)


def test_weights_in_half_precision_are_computed_in_single(reference, tmp_path):
    best, half = reference[1] / "best.safetensors", tmp_path / "half.safetensors"
    tensors = safetensors.torch.load_file(best)
    rounded = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    safetensors.torch.save_file(rounded, half, safetensors.safe_open(best, "pt").metadata())
    with tiny_networks():
        loaded, whole = (load_network(path).model.state_dict() for path in (half, best))
    for name, value in loaded.items():
        assert value.dtype == whole[name].dtype
        assert torch.equal(value, whole[name].half().to(value.dtype) if value.is_floating_point() else whole[name])


def test_micro_batches_have_the_gradient_of_the_whole_batch(data, tmp_path):
    """Without batch normalisation and dropout, however unevenly ignored pixels lie."""

    def gradients(micro_batch):
        trainer = _trainer(data, tmp_path, micro_batch)
        trainer.model.backbone[1] = nn.Identity()
        trainer.model.hidden[2] = nn.Identity()
        label = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (4, 32, 48)))
        label[1] = 255
        label[2, :, 5:] = 255
        images = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3, 32, 48), np.float32))
        counts = trainer.loss.count(label)
        total = sum(trainer._gradients(images[p], label[p], counts)[0] for p in micro_batches(4, micro_batch))
        return total, [p.grad for p in trainer.model.parameters()]

    (whole_loss, whole), (parts_loss, parts) = gradients(None), gradients(1)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _trainer(data, output, micro_batch):
    """A trainer that has not begun."""
    trainers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: trainers.append(self) or (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(data, output, 2, "--micro-batch", micro_batch or "null")
    return trainers[0]


def test_fp16_scaler_is_kept(data, tmp_path):
    train(data, tmp_path, 2, "--amp", "fp16")
    assert read_state(run_folder(tmp_path) / "last.safetensors").scaler["scale"] > 1


def test_bf16_channels_last(data, tmp_path):
    train(data, tmp_path, 2, "--amp", "bf16", "--channels-last")
    assert all(np.isfinite(float(row["loss"])) for row in read_run(run_folder(tmp_path)).train)


def test_one_picture_is_learnt(tmp_path):
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


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_pictures(data, tmp_path):
    with pytest.raises(UserError, match="stopped before the update") as error:
        train(data, tmp_path, 8, "--learning-rate", "1e30")
    assert "\n" not in str(error.value)
    (report,) = tmp_path.glob("*/nonfinite_loss_step*.json")
    assert len(json.loads(report.read_text())["images"]) == 4


def test_out_of_memory_is_one_line_and_the_checkpoint_stays(data, tmp_path, monkeypatch):
    update = Trainer._update

    def failing(self, *batch):
        if self.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        return update(self, *batch)

    monkeypatch.setattr(Trainer, "_update", failing)
    with pytest.raises(UserError, match=r"out of memory: go on with --resume \S+ and a smaller --micro-batch") as error:
        train(data, tmp_path, 8)
    assert "\n" not in str(error.value)
    assert read_state(run_folder(tmp_path) / "last.safetensors").step == 3


@pytest.mark.parametrize("batch", [("--micro-batch", 1), ("--batch-size", 3, "--micro-batch", 2), ("--batch-size", 1)])
def test_a_picture_alone_in_batch_normalisation_is_refused_before_the_start(data, tmp_path, monkeypatch, batch):
    class Pooled(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, num_classes, 1), nn.BatchNorm2d(num_classes)
            )

        def forward(self, images):
            return {"logits": self.head(images).expand(-1, -1, *images.shape[2:])}

    monkeypatch.setattr("encnet_single_gpu.train.build_model", lambda name, backbone, num_classes: Pooled(num_classes))
    with pytest.raises(UserError, match="pspnet cannot be trained on one picture at a time.*one value per") as error:
        run_here(main, "--data", data, "--output", tmp_path, *SMALL, "--iters", 2, *batch)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_global_pooling_learns_from_single_pictures(data, tmp_path):
    train(data, tmp_path, 2, "--micro-batch", 1)
    assert len(read_run(run_folder(tmp_path)).train) == 2


def test_fit_memory_sets_the_micro_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr("encnet_single_gpu.train.largest_micro_batch", lambda step, batch_size, device: 3)
    assert "3 of 4 pictures fit" in train(data, tmp_path, 2, "--fit-memory")
    assert read_config(str(run_folder(tmp_path) / "config.yaml")).train.micro_batch == 3


def test_measuring_memory_leaves_no_trace(data, tmp_path):
    trainer = _trainer(data, tmp_path, None)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._step_on_noise(2)
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
