import sys

from awesome_pytorch_seg import flags
from awesome_pytorch_seg.config import read_config
from awesome_pytorch_seg.flags import parse_args
from awesome_pytorch_seg.runs import find_weights, plan_run
from common.cli import UserError

import pytest
from awesome_runs import train
from testkit import run_folder, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """Plans what a command line means."""

    def plan(*words):
        words = ["--output", tmp_path / "out", *words]
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        return plan_run(parse_args("test"))

    return plan


def test_an_experiment_that_has_a_file_starts_from_it(plan, data):
    words = ("--model", "enet", "--dataset", "camvid", "--data", data, "--lr", "0.25", "--epochs", 50)
    words += ("--batch-size", 3, "--momentum", 0.5, "--workers", 2, "--amp", "fp16", "--channels-last")
    made = plan(*words, "train.channels_last=true")
    config = made.config
    assert made.config_name == "enet_camvid"
    assert (config.optimizer.learning_rate, config.optimizer.momentum) == (0.25, 0.5)
    assert (config.train.batch_size, config.train.num_workers, config.train.amp) == (3, 2, "fp16")
    assert config.train.iters == 67  # 50 epochs of 4 images, 3 at a time
    base = read_config("enet_camvid")
    assert config.schedule.warmup_iters == base.schedule.warmup_iters * 67 // base.train.iters
    assert config.train.eval_every == base.train.eval_every


def test_the_command_of_the_originals_readme(plan, data):
    """python train.py --model fcn32s --backbone vgg16 --dataset pascal_voc --lr 0.0001 --epochs 50."""
    words = ("--model", "fcn32s", "--backbone", "vgg16", "--dataset", "pascal_voc", "--lr", "0.0001", "--epochs", 50)
    made = plan(*words, "--data", data)
    config = made.config
    assert made.config_name == "fcn32s_vgg16_pascal_voc"
    assert made.folder.name.startswith("fcn32s_vgg16_pascal_voc_s0_")
    assert (config.model.name, config.model.backbone) == ("fcn32s", "vgg16")
    assert (config.data.dataset, config.data.root, config.data.train_list) == ("voc", "data/voc", "train.txt")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 1e-4, 0.9)
    assert (optimizer.weight_decay, optimizer.head_lr_factor, optimizer.decay_norm_and_bias) == (1e-4, 10, True)
    assert (config.schedule.name, config.schedule.power, config.schedule.warmup_iters) == ("poly", 0.9, 0)
    assert (config.augment.base_size, config.augment.stages[0].crop_size) == (520, (480, 480))
    assert config.augment.stages[0].scales == (0.5, 2.0)
    assert (config.train.batch_size, config.train.iters, config.train.eval_every) == (4, 50, 1)  # 4 images here
    assert (config.loss.aux_weight, config.loss.ohem_threshold) == (0.4, None)


def test_the_base_config_trains_vocs_images_60_times():
    train = read_config("default").train
    assert train.iters == 60 * 1464 // train.batch_size
    assert train.eval_every == 1464 // train.batch_size


def test_single_flags_of_the_original(plan, data):
    words = ("--model", "psp", "--backbone", "resnet50", "--dataset", "ade", "--data", data, "--aux", "--use-ohem")
    words += ("--base-size", 260, "--crop-size", 240, "--train-split", "trainval", "--warmup-iters", 7, "-j", 1)
    config = plan(*words, "--weight-decay", "0.001", "--save-dir", "elsewhere").config
    assert (config.model.name, config.data.dataset, config.data.train_list) == ("psp", "ade20k", "trainval.txt")
    assert (config.loss.aux_weight, config.loss.ohem_threshold) == (0.4, 0.7)
    assert (config.augment.base_size, config.augment.stages[0].crop_size) == (260, (240, 240))
    assert (config.schedule.warmup_iters, config.train.num_workers) == (7, 1)
    assert config.optimizer.weight_decay == 0.001
    assert plan("--model", "enet", "--data", data, "--use-ohem", "False").config.loss.ohem_threshold is None
    assert plan("--model", "enet", "--data", data, "--aux", "--aux-weight", "0.5").config.loss.aux_weight == 0.5
    assert plan("--model", "psp", "--data", data, "--aux-weight", "0").config.loss.aux_weight == 0
    assert read_config("quickstart").loss.aux_weight == 0
    assert plan("--config", "quickstart", "--data", data, "--aux").config.loss.aux_weight == 0.4
    assert plan("--dataset", "sbu", "--data", data).config.data.val_list == "test.txt"


def test_flags_of_this_project(plan, data):
    words = ("--model", "bisenet", "--data", data, "--accumulate", 2, "--compile", "--backbone-weights", "w.pth")
    config = plan(*words).config
    assert (config.train.accumulate, config.train.compile, config.model.backbone_weights) == (2, True, "w.pth")


@pytest.mark.parametrize("word", ["--local_rank=1", "--local-rank=1"])
def test_old_launchers_words_are_tolerated(plan, data, word):
    assert plan(word, "--model", "enet", "--data", data).config == plan("--model", "enet", "--data", data).config


@pytest.mark.parametrize(("has_voc", "name"), [(False, "quickstart"), (True, "fcn32s_pascal_voc")])
def test_without_a_word(plan, monkeypatch, tmp_path, has_voc, name):
    monkeypatch.setattr(flags, "find_root", lambda root: tmp_path if has_voc else None)
    assert plan().config_name == name


def test_flags_again_continue_a_run_and_others_do_not(plan, data, tmp_path):
    folder = plan("--model", "enet", "--data", data, "--lr", "0.5").folder
    train(data, tmp_path / "out", 2)
    folder = run_folder(tmp_path / "out")
    again = plan("--resume", folder, "--model", "enet", "--batch-size", 2)
    assert (again.folder, again.is_finished) == (folder, True)
    with pytest.raises(UserError, match="keeps its experiment, but train.batch_size differ"):
        plan("--resume", folder, "--model", "enet", "--batch-size", 4)
    with pytest.raises(UserError, match="from 2 to 4 iterations"):
        plan("--resume", folder, "--epochs", 2, "--data", data)


def test_weights_are_found_by_what_was_trained(data, tmp_path):
    train(data, tmp_path, 2)
    best = run_folder(tmp_path) / "best.safetensors"
    assert find_weights("enet", None, None, tmp_path) == best
    assert find_weights("enet", None, "custom", tmp_path) == best
    with pytest.raises(UserError, match="no trained run under .* of --model enet --dataset voc: name a file"):
        find_weights("enet", None, "voc", tmp_path)
    with pytest.raises(UserError, match="no trained run under .* of --model pspnet --backbone resnet50"):
        find_weights("psp", "resnet50", None, tmp_path)
    with pytest.raises(UserError, match="unknown network 'pspnt': did you mean 'pspnet'"):
        find_weights("pspnt", None, None, tmp_path)
    with pytest.raises(UserError, match="network 'pspnet' has no backbone 'resnt50': did you mean 'resnet50'"):
        find_weights("psp", "resnt50", None, tmp_path)
