"""`train.py --finetune`: a run that starts from a trained network of these or other classes."""

import shutil
from pathlib import Path

from common.cli import UserError
from common.files import sha256_of
from common.runs.reading import read_run
from semsegpaddle_glore.checkpoint import load_model
from semsegpaddle_glore.runs import plan_run
from semsegpaddle_glore.train import Trainer, parse_args

import numpy as np
import pytest
from glore_runs import CLASSES, train_words, write_data
from safetensors.numpy import load_file, save_file


def trainer(*words):
    """The trainer of a command, before its first step."""
    return Trainer(plan_run(parse_args("test", [str(word) for word in train_words(*words)])))


def tensors(path):
    return {name.removeprefix("model."): v for name, v in load_file(path).items() if name.startswith("model.")}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Images of three classes, and the checkpoint of a run of three steps on them."""
    data = write_data(tmp_path_factory.mktemp("three"))
    run = trainer(data, tmp_path_factory.mktemp("trained"), 3)
    run.run()
    return data, run.plan.folder / "last.safetensors"


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("five"), names=(*CLASSES, "four", "five"))


def test_other_classes_begin_anew_and_all_else_is_the_checkpoints(three, five, tmp_path, capsys):
    weights = three[1]
    run = trainer(five, tmp_path, 1, "--finetune", weights)
    stored, own = tensors(weights), {name: value.numpy() for name, value in run.model.state_dict().items()}
    anew = [name for name, value in own.items() if value.shape != stored[name].shape]
    assert anew and all(name.startswith(("decode_head.", "aux_head")) for name in anew)
    assert all(own[name].shape[0] == 5 for name in anew)
    taken = [name for name in own if name not in anew]
    assert any(name.endswith("_variance") for name in taken)
    for name in taken:
        np.testing.assert_array_equal(own[name], stored[name], err_msg=name)
    line = f"{weights}: loaded {len(taken)} of {len(own)} tensors; begin anew: {', '.join(anew)}"
    assert capsys.readouterr().out.splitlines().count(line) == 1
    assert run.step == 0
    run.run()
    env = read_run(run.plan.folder).env
    assert (env["finetune_sha256"], env["backbone_weights_sha256"]) == (sha256_of(weights), None)


def test_of_the_same_classes_the_first_loss_is_that_of_the_trained_network(three, tmp_path):
    data, weights = three
    tuned, trained = trainer(data, tmp_path / "a", 1, "--finetune", weights), trainer(data, tmp_path / "b", 1)
    load_model(weights, trained.model, trained.labels.class_names)
    losses = []
    for run in (tuned, trained):
        run.run()
        losses.append(read_run(run.plan.folder).train[0]["loss"])
    assert losses[0] == losses[1]
    assert read_run(trained.plan.folder).env["finetune_sha256"] is None


def test_word_vectors_are_of_the_new_classes(three, tmp_path):
    ginet = "model.name=ginet"
    first = trainer(three[0], tmp_path / "a", 1, ginet)
    first.run()
    weights = first.plan.folder / "last.safetensors"
    others = write_data(tmp_path / "others", names=("three", "four", "five"))
    run = trainer(others, tmp_path / "b", 1, ginet, "--finetune", weights)
    stored = tensors(weights)
    for name, value in run.model.state_dict().items():
        if name == "decode_head.word_embeddings":
            np.testing.assert_array_equal(value.numpy(), [[0, 0, 1, 0.5], [1, 1, 0, 0], [0, 1, 1, 0]])
        else:
            np.testing.assert_array_equal(value.numpy(), stored[name], err_msg=name)


def test_a_finetuned_run_is_resumed_without_the_file_it_started_from(three, tmp_path):
    data, weights = three
    file = Path(shutil.copy(weights, tmp_path / "start.safetensors"))
    run = trainer(data, tmp_path / "run", 2, "--finetune", file)
    run.run()
    file.unlink()
    words = ["--resume", run.plan.folder, "--iters", 3, "--extend", "--data", data]
    Trainer(plan_run(parse_args("test", list(map(str, words))))).run()
    again = read_run(run.plan.folder)
    assert [row["step"] for row in again.train] == ["1", "2", "3"]
    assert again.env["finetune_sha256"] == sha256_of(weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.backbone=resnet34"], "last.safetensors: of another network"),
        (["model.backbone_weights=w.safetensors"], "give one of the two"),
        (["data.mean=[0.5,0.5,0.5]"], r"trained with mean \[0.485, .*: set its data.mean to \[0.485, 0.456, 0.406\]"),
        (["data.std=[0.5,0.5,0.5]"], r"trained with std \[0.229, .*: set its data.std to \[0.229, 0.224, 0.225\]"),
        (["--resume"], "--finetune starts a run and --resume"),
    ],
)
def test_what_it_cannot_start_from_is_one_line(three, tmp_path, words, message):
    data, weights = three
    with pytest.raises(UserError, match=message) as error:
        trainer(data, tmp_path, 3, "--finetune", weights, *words)
    assert "\n" not in str(error.value)


def test_plain_weights_are_no_checkpoint(three, tmp_path):
    data, weights = three
    save_file(tensors(weights), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="plain.safetensors: not a checkpoint of semsegpaddle_glore"):
        trainer(data, tmp_path, 3, "--finetune", tmp_path / "plain.safetensors")
