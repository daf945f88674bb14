import sys

from common.cli import UserError
from common.config.typed import config_to_text
from encnet_single_gpu.config import CONFIG_DIR, Config, config_names, options, read_config
from encnet_single_gpu.flags import command_parser, parse_args
from encnet_single_gpu.models import build_model, model_names
from encnet_single_gpu.runs import plan_run
from encnet_single_gpu.train import main

import pytest
import torch
import yaml
from encnet_runs import write_data


def plan(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    return plan_run(parse_args("description"))


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_complete_and_its_network_exists(name):
    config = read_config(name)
    tree = yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text())
    keys = {"scope"} | {f"{section}.{key}" for section in tree if section != "scope" for key in tree[section]}
    assert keys == {key for key, _ in options().values()} | {"data.root"}
    assert config.model.name in model_names()
    assert config.scope in ("full", "reduced", "smoke")


def test_the_recipes_are_those_of_the_original_and_of_the_papers(monkeypatch):
    """Sizes, batches and epochs as the original's README has them: (here) / (paper)."""
    rows = {
        (): ("pspnet", 384, 12, None, 30),
        ("--model", "encnet"): ("encnet", 400, 8, None, 30),
        ("--paper",): ("pspnet", 473, 16, 8, 120),
        ("--model", "encnet", "--paper"): ("encnet", 480, 16, 4, 120),
        ("--model", "encnet_jpu"): ("encnet_jpu", 400, 8, None, 30),
        ("--model", "unet"): ("unet", 384, 12, None, 30),
    }
    for words, (model, crop, batch, micro_batch, epochs) in rows.items():
        planned = plan(monkeypatch, *words)
        config, train = planned.config, planned.config.train
        assert config.model.name == model
        assert config.augment.crop_size == (crop, crop)
        assert (train.batch_size, train.micro_batch) == (batch, micro_batch)
        assert train.iters == -(-epochs * 20210 // batch)
        assert (config.optimizer.name, config.optimizer.schedule, config.optimizer.power) == ("sgd", "poly", 0.9)
        assert config.optimizer.learning_rate == pytest.approx(0.01 * batch / 16)
        name = model + ("_paper" if "--paper" in words else "")
        assert planned.config_name == name
        assert planned.folder.name.startswith(f"{name}_s0_")


def test_a_run_is_named_after_what_it_trains(monkeypatch):
    quickstart = ("--config", "quickstart")
    assert plan(monkeypatch, *quickstart).config_name == "quickstart_encnet"
    assert plan(monkeypatch, *quickstart, "--background").config_name == "quickstart_encnet_background"
    assert plan(monkeypatch, *quickstart, "--model", "unet").config_name == "quickstart_unet"
    assert plan(monkeypatch, "--dataset", "ade20k_151").config_name == "pspnet_background"
    assert plan(monkeypatch, "--config", "linknet_camvid").config_name == "linknet_camvid"


@pytest.mark.parametrize("name", model_names())
def test_quickstart_takes_every_network(monkeypatch, name):
    """Its small backbone where the network can have it, the network's own otherwise."""
    model = plan(monkeypatch, "--config", "quickstart", "--model", name).config.model
    own = ("segnet", "segnet_basic", "unet", "unetplusplus")
    assert (model.name, model.backbone) == (name, None if name in own else "resnet18")
    with torch.device("meta"):
        build_model(model.name, model.backbone)


def test_depths_of_unetplusplus_count_alike_unless_an_option_says_otherwise(monkeypatch):
    model = ("--model", "unetplusplus")
    for words in (model, (*model, "--paper"), (*model, "--config", "quickstart")):
        assert plan(monkeypatch, *words).config.loss.aux_weight == 1.0
    assert plan(monkeypatch, *model, "--aux-weight", 0.3).config.loss.aux_weight == 0.3
    assert plan(monkeypatch, "--model", "deeplabv3").config.loss.aux_weight == 0.4


def test_the_same_words_resume_a_run(monkeypatch, tmp_path):
    words = ("--config", "quickstart", "--model", "unetplusplus", "--background")
    begun = plan(monkeypatch, *words)
    folder = tmp_path / begun.folder.name
    folder.mkdir()
    (folder / "config.yaml").write_text(config_to_text(begun.config))
    for again in (words, ("--background",), ()):
        resumed = plan(monkeypatch, *again, "--resume", folder)
        assert (resumed.config, resumed.config_name) == (begun.config, "quickstart_unetplusplus_background")
    with pytest.raises(UserError, match="data.dataset differ"):
        plan(monkeypatch, *words[:-1], "--resume", folder)


def test_options_are_keys_with_their_values(monkeypatch, tmp_path):
    data = write_data(tmp_path)
    words = ("--data", data, "--epochs", 50, "--batch-size", 3, "--crop-size", 65, "--scales", 0.5, 1, "--compile")
    words += ("--class-weights", "null", "--channels-last", "--amp", "bf16", "--backbone", "resnet18", "--seed", 7)
    config = plan(monkeypatch, *words, "--decay-norm-and-bias", "false", "--background").config
    assert config.train.iters == 67  # 50 epochs of 4 images, 3 at a time
    assert config.augment.crop_size == (65, 65)
    assert config.augment.scales == (0.5, 1.0)
    assert (config.train.compile, config.train.channels_last, config.train.amp) == (True, True, "bf16")
    assert (config.loss.class_weights, config.model.backbone, config.train.seed) == (None, "resnet18", 7)
    assert not config.optimizer.decay_norm_and_bias
    assert config.data.dataset == "ade20k_151"


def test_help_says_of_every_option_what_it_is_and_its_default():
    parser = command_parser("description")
    assert "--crop-size N [N ...]" in parser.format_help()
    keys = {key for key, _ in options().values()}
    helps = {action.option_strings[0]: action.help for action in parser._actions if action.dest in keys}
    assert len(helps) == len(keys)
    for option, (_, field) in options().items():
        assert field.metadata["meaning"] in helps[f"--{option}"]
        assert "(default: " in helps[f"--{option}"]
        assert f"; source: {field.metadata['source']})" in helps[f"--{option}"]
    crop = "default: pspnet [384, 384], encnet [400, 400], pspnet_paper [473, 473], encnet_paper [480, 480]"
    assert crop in helps["--crop-size"]
    assert "source: the original" in helps["--crop-size"]
    assert "default: 0.9" in helps["--power"]
    values = {action.option_strings[0]: action.metavar for action in parser._actions}
    assert values["--amp"] == "bf16|fp16|null"
    assert values["--scope"] == "full|reduced|smoke"
    assert (values["--compile"], values["--crop-size"], values["--power"]) == ("true|false", "N", "X")
    assert (values["--model"], values["--train-list"], values["--backbone-weights"]) == ("NAME", "FILE", "FILE")
    assert values["--finetune"] == "FILE"


def test_options_are_unique():
    keys = [key for key, _ in options().values()]
    assert len(keys) == len(set(keys))
    assert {key.split(".")[0] for key in keys} == set(Config.__annotations__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "quikstart"], r"no config file 'quikstart'.*did you mean 'quickstart'"),
        (["--iters", "0"], r"iters must be at least 1"),
        (["--warmup-share", "1"], r"warmup_share must be in \[0, 1\)"),
        (["--data", "nowhere"], r"no data set in 'nowhere'.*--config quickstart"),
        (["--dataset", "ade20"], r"'ade20': did you mean 'ade20k'"),
        (["--iters", "5", "--epochs", "5", "--data", "."], r"give one"),
        (["--model", "penet"], r"unknown network 'penet'"),
        (["--config", "quickstart", "--paper"], r"leave --config out"),
        (["--config", "linknet_camvid", "--background"], r"--background is for ade20k"),
        (["--resume", "nowhere"], r"nothing to resume: nowhere is no run folder"),
        (["--crop-size", "1", "2", "3"], r"must be a list of 2 values"),
        (["--amp", "fp8"], r"'train.amp' is 'fp8'"),
        (["--model", "unet", "--backbone-weights", "w.pth", "--data", "DATA"], r"unet has no backbone"),
        (["--model", "pspnet", "--backbone", "resnet5", "--data", "DATA"], r"did you mean 'resnet50'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, message, tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    words = [str(data) if word == "DATA" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", str(tmp_path / "out"), *words])
    with pytest.raises(UserError, match=message) as error:
        main()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))
