"""--finetune: a run that starts from a trained network of other classes, or of these."""

import shutil

from awesome_pytorch_seg import train as training
from awesome_pytorch_seg.data.dataset import train_batches
from awesome_pytorch_seg.train import Trainer, main
from common.cli import UserError
from common.files import sha256_of
from common.runs.reading import read_run

import pytest
import safetensors.torch
import torch
from awesome_runs import train
from testkit import run_folder, run_here, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The last checkpoint of a run of three steps on three classes, with a running mean of the weights."""
    output = tmp_path_factory.mktemp("trained")
    train(data, output, 3)
    return run_folder(output) / "last.safetensors"


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Starts a run as its command does. Returns the trainer as it stands before its first step, and what it printed."""

    def start(*words):
        begun = []
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "run", lambda self, stop: begun.append(self))
            patch.setattr(training, "_end", lambda trainer: [])
            printed = train(*words)
        (trainer,) = begun
        return trainer, printed

    return lambda data, *words: start(data, tmp_path / "out", 2, *words)


def evaluated(checkpoint):
    """The running mean in a checkpoint."""
    tensors = safetensors.torch.load_file(checkpoint)
    return {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}


def test_a_network_of_other_classes_takes_all_but_the_classifier(data, trained, begin, tmp_path):
    five = shutil.copytree(data, tmp_path / "five")
    (five / "classes.yaml").write_text("name: five\nclasses: [a, b, c, d, e]\n")
    words = ("loss.class_weights=null",)
    fresh, _ = begin(five, *words)
    trainer, printed = begin(five, *words, "--finetune", trained)
    stored, own, start = evaluated(trained), trainer.model.state_dict(), fresh.model.state_dict()
    anew = ["classifier.bias", "classifier.weight", "encoder_classifier.bias", "encoder_classifier.weight"]
    assert all(value.equal(start[name] if name in anew else stored[name]) for name, value in own.items())
    assert own["classifier.weight"].shape[1] == 5
    names = ", ".join(name for name in own if name in anew)
    line = f"{trained}: loaded {len(own) - len(anew)} of {len(own)} tensors; begin anew: {names}\n"
    assert printed.count(line) == 1
    assert trainer.step == 0
    assert not trainer.updater.optimizer.state


def test_a_network_of_the_same_classes_takes_all_and_goes_on_with_its_loss(data, trained, begin, tmp_path):
    stored = evaluated(trained)
    trainer, printed = begin(data, "--finetune", trained)
    assert f"{trained}: loaded {len(stored)} of {len(stored)} tensors\n" in printed
    assert all(value.equal(stored[name]) for name, value in trainer.model.state_dict().items())
    fresh, _ = begin(data)
    fresh.model.load_state_dict(stored)
    expected = fresh._update(*next(iter(train_batches(fresh.train_set, fresh.config, 0))))
    train(data, tmp_path / "run", 2, "--finetune", trained)
    run = read_run(run_folder(tmp_path / "run"))
    assert float(run.train[0]["loss"]) == pytest.approx(expected["loss"], rel=1e-6)
    assert run.env["finetune_sha256"] == sha256_of(trained)
    assert run.env.get("backbone_weights_sha256") is None
    assert read_run(trained.parent).env.get("finetune_sha256") is None


def test_a_finetuned_run_is_resumed_without_the_file_it_started_from(data, trained, tmp_path):
    file = shutil.copy(trained, tmp_path / "start.safetensors")
    train(data, tmp_path / "run", 2, "--finetune", file)
    folder = run_folder(tmp_path / "run")
    file.unlink()
    printed = run_here(main, "--resume", folder, "--iters", 3, "--extend", "--data", data)
    assert "tensors" not in printed
    run = read_run(folder)
    assert [row["step"] for row in run.train] == ["1", "2", "3"]
    assert run.env["finetune_sha256"] == sha256_of(trained)
    with pytest.raises(UserError, match=r"a resumed run keeps its experiment, but \S*finetune differ"):
        run_here(main, "--resume", folder, "--finetune", trained)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backbone-weights", "w.pth"), r"model.finetune must be null with backbone_weights: give one of the two"),
        (
            ("data.mean=[0.5,0.5,0.5]",),
            r"trained with mean \[0.485.*experiment has \[0.5.*set its data.mean to \[0.485,",
        ),
        (("data.std=[0.5,0.5,0.5]",), r"trained with std \[0.229.*experiment has \[0.5.*set its data.std to \[0.229,"),
    ],
)
def test_an_experiment_that_contradicts_the_file_is_refused(words, message, data, trained, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        train(data, tmp_path / "out", 2, "--finetune", trained, *words)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_a_file_of_another_network_or_project_is_refused(data, trained, tmp_path, monkeypatch):
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"model.x": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"other.safetensors: not a checkpoint of awesome_pytorch_seg: .*"):
        train(data, tmp_path / "out", 2, "--finetune", other)
    with pytest.raises(UserError, match=r"last.safetensors: of another network \(.*, \.\.\.\): start from") as error:
        train(data, tmp_path / "out", 2, "--model", "fcn32s", "--finetune", trained)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))
