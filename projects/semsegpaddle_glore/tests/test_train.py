import contextlib
import csv
import dataclasses
import json
import shutil
import subprocess
import sys

from common.cli import UserError
from common.runs.plan import batch_lines
from common.runs.reading import read_run
from common.weights.card import card_of
from semsegpaddle_glore import train as training
from semsegpaddle_glore.checkpoint import read_state
from semsegpaddle_glore.eval import main as eval_main
from semsegpaddle_glore.models.backbones import build_backbone
from semsegpaddle_glore.runs import plan_run
from semsegpaddle_glore.train import main, parse_args

import cv2
import numpy as np
import pytest
from glore_runs import CLASSES, PROJECT, command, train, train_here, train_words, write_data
from killing import whole_and_killed
from safetensors.numpy import save_file
from targets import Command
from testkit import ENV, error_line, numbers, run_folder

EVERY = ("train.eval_every=6", "train.checkpoint_every=4")
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """An undisturbed run by the command."""
    output = tmp_path_factory.mktemp("reference")
    process = train(data, output, STEPS, *EVERY)
    assert process.returncode == 0, process.stderr[-2000:]
    return process, run_folder(output)


def run(monkeypatch, function, *words):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    function()


def test_a_run_leaves_its_files(reference):
    process, folder = reference
    assert folder.name.startswith("quickstart_s0_2")
    names = {path.name for path in folder.iterdir()}
    tables = {"train.csv", "eval.csv", "per_class.csv"}
    assert names == {"config.yaml", "env.json", "curve.png", "best.safetensors", "last.safetensors", *tables}
    run = read_run(folder)
    assert [int(row["step"]) for row in run.train] == list(range(1, STEPS + 1))
    assert [(row["step"], row["images"]) for row in run.eval] == [("6", "2"), ("12", "2")]
    assert tuple(row["class_name"] for row in run.per_class[:3]) == CLASSES
    assert (run.env["scope"], run.env["precision"], run.env["processes"]) == ("smoke", "fp32", 1)
    first = run.train[0]
    assert float(first["loss"]) == pytest.approx(float(first["seg"]) + 0.4 * float(first["aux"]), rel=1e-6)
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
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


def test_the_same_seed_gives_the_same_digits_and_another_seed_others(data, reference, tmp_path):
    """In another process, whose parameters bear other names, with batches prepared by threads."""
    assert numbers(train_here(data, tmp_path / "same", STEPS, *EVERY, "--use_mpio")) == numbers(reference[1])
    assert numbers(train_here(data, tmp_path / "other", 2, "--seed", 1)) != numbers(reference[1])


def test_eval_repeats_the_number_of_training(data, reference, tmp_path, monkeypatch, capsys):
    """By the run's own experiment, and by the original's command with its names."""
    weights, last = reference[1] / "last.safetensors", numbers(reference[1])["eval.csv"][-1]
    run(monkeypatch, eval_main, "--weights", weights, "--data", data, "--output", tmp_path / "a")
    assert f"mIoU {float(last['miou_percent']):.2f} %" in capsys.readouterr().out
    assert numbers(tmp_path / "a")["eval.csv"] == [last]
    config = ["--cfg", reference[1] / "config.yaml", "--data", data, "--use_mpio"]
    run(monkeypatch, eval_main, *config, "TEST.TEST_MODEL", weights, "TEST.OUTPUT_PATH", tmp_path / "b")
    assert numbers(tmp_path / "b")["eval.csv"] == [last]


def test_eval_under_another_protocol(data, reference, tmp_path, monkeypatch):
    words = ["--weights", reference[1] / "last.safetensors", "--data", data, "--output", tmp_path]
    words += ["--multi_scales", "TEST.CROP_SIZE", 65, "eval.flip=true", "eval.stride_fraction=1"]
    run(monkeypatch, eval_main, *words, "--split", "train")
    (row,) = numbers(tmp_path)["eval.csv"]
    assert (row["split"], row["images"]) == ("train", "4")
    assert row["protocol"] == "ms 0.5/0.75/1/1.25/1.5/1.75, flip, windows 65x65 stride 1"


def test_eval_refuses_what_does_not_fit(data, reference, tmp_path, monkeypatch):
    weights = reference[1] / "last.safetensors"
    with pytest.raises(UserError, match="no weights to evaluate: give --weights"):
        run(monkeypatch, eval_main, "--data", data)
    with pytest.raises(UserError, match="holds glore with resnet18, --cfg pspnet_res101_ade is for pspnet with resnet"):
        run(monkeypatch, eval_main, "--weights", weights, "--cfg", "pspnet_res101_ade")
    for words in (["SOLVER.NUM_EPOCHS", 3], ["train.seed=1"], ["MODEL.BACKBONE_LAYERS", 50], ["data.mean=[0, 0, 0]"]):
        with pytest.raises(UserError, match="has no effect on evaluation: only data"):
            run(monkeypatch, eval_main, "--weights", weights, "--data", data, *words)
    other = write_data(tmp_path / "other")
    (other / "classes.yaml").write_text("name: x\nclasses: [two, one, three]\n")
    message = r"made for 3 classes \(one, two, three\), the data has 3 \(two, one, three\): the same names in another"
    with pytest.raises(UserError, match=message):
        run(monkeypatch, eval_main, "--weights", weights, "--data", other)


def killed_run(data, folder, kills, iters, *words):
    """The run folders of a run that was not disturbed and of one that was killed and resumed."""

    def words_in(output):
        return train_words(data, output, iters, "--resume", "latest", *EVERY, *words)

    command = Command("projects/semsegpaddle_glore/train.py", ())
    return map(run_folder, whole_and_killed(command, words_in, folder, kills))


def test_killed_it_ends_with_the_same_digits(data, reference, tmp_path):
    """Drop-out included: the network draws random numbers while it trains."""
    whole, killed = killed_run(data, tmp_path, 1, STEPS)
    assert numbers(killed) == numbers(whole) == numbers(reference[1])
    for name in ("best", "last"):
        assert (killed / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["pspnet", "deeplabv3", "glore", "ginet"])
def test_killed_at_random_moments_it_ends_with_the_same_digits(data, tmp_path, head):
    whole, killed = killed_run(data, tmp_path, 5, 40, f"model.name={head}")
    assert numbers(killed) == numbers(whole)


class Stopped(Exception):
    """What a test ends a training with."""


@pytest.mark.parametrize("head", ["pspnet", "deeplabv3", "ginet"])
def test_every_head_trains_and_resumes_to_the_same_digits(tmp_path, head, monkeypatch):
    """GINet without its file of word vectors: the checkpoint has them."""
    data = write_data(tmp_path / "data")
    words = (f"model.name={head}", "train.checkpoint_every=2", "train.eval_every=4")
    whole = train_here(data, tmp_path / "whole", 4, *words)
    assert {bool(row["sc"]) for row in read_run(whole).train} == {head == "ginet"}

    look_at = training.ValidPixels.look_at

    def look_at_two(self, label):
        if self.labels == 2 * len(label):
            raise Stopped
        look_at(self, label)

    monkeypatch.setattr(training.ValidPixels, "look_at", look_at_two)
    with pytest.raises(Stopped):
        train_here(data, tmp_path / "part", 4, *words)
    monkeypatch.undo()
    (data / "vectors.txt").unlink()
    part = run_folder(tmp_path / "part")
    training.Trainer(plan_run(parse_args("test", ["--resume", str(part), "--data", str(data)]))).run()
    assert numbers(part) == numbers(whole)
    assert (part / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()

    (data / "classes.yaml").write_text("name: squares\nclasses: [one, two, three, four]\n")
    words = ["--resume", str(part), "--data", str(data), "--iters", "6", "--extend"]
    with pytest.raises(UserError, match=r"made for 3 classes \(one, two, three\), the data has 4"):
        training.Trainer(plan_run(parse_args("test", words)))


def test_resume_of_a_finished_run_says_so(reference, monkeypatch, capsys):
    before = (reference[1] / "last.safetensors").read_bytes()
    run(monkeypatch, main, "--resume", reference[1])
    assert f"has reached its {STEPS} iterations" in capsys.readouterr().out
    assert (reference[1] / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.momentum=0.5"], "optimizer.momentum differ"),
        (["--accumulate", "2"], "train.accumulate differ"),
        (["--iters", "30"], "from 12 to 30 iterations.*--extend"),
    ],
)
def test_resume_keeps_its_experiment_unless_extended(data, reference, words, message):
    checkpoint = reference[1] / "last.safetensors"
    same = [str(w) for w in train_words(data, reference[1].parent, STEPS, *EVERY, "--resume", checkpoint)]
    assert plan_run(parse_args("test", same)).is_finished
    with pytest.raises(UserError, match=message):
        plan_run(parse_args("test", [*same, *words]))


def test_extend_goes_on_and_tells_the_rate(data, reference, tmp_path, monkeypatch, capsys):
    folder = tmp_path / reference[1].name
    shutil.copytree(reference[1], folder)
    run(monkeypatch, main, "--resume", folder, "--iters", 14, "--extend", "--data", data)
    assert "extended from 12 to 14 iterations: at step 12 the rate goes from 0 to 0.000" in capsys.readouterr().out
    assert [int(row["step"]) for row in read_run(folder).train] == list(range(1, 15))


def test_a_second_run_of_the_day_gets_its_own_folder(data, tmp_path):
    words = list(map(str, train_words(data, tmp_path, 2)))
    first = plan_run(parse_args("test", words)).folder
    assert plan_run(parse_args("test", words)).folder == first.with_name(f"{first.name}_2")


def test_the_originals_words_and_ours_mean_the_same(data, tmp_path):
    ours = ["--config", "pspnet_res101_cityscapes", "--output", str(tmp_path), "--seed", "3"]
    ours += ["optimizer.learning_rate=0.02", "train.batch_size=16", "train.amp=O1", "train.accumulate=4"]
    theirs = ["--use_mpio", "--cfg", "./configs/pspnet_res101_cityscapes.yaml", "--amp", "O1", "--accumulate", "4"]
    theirs += ["SOLVER.LR", "0.02", "train_batch_size", "16", "train.seed=3", "TRAIN.MODEL_SAVE_DIR", str(tmp_path)]
    first, second = (plan_run(parse_args("test", words)) for words in (ours, theirs))
    assert second.folder == first.folder.with_name(f"{first.folder.name}_2")  # two runs, two folders
    assert dataclasses.replace(second, folder=first.folder) == first
    assert (first.config.optimizer.learning_rate, first.config.train.batch_size) == (0.02, 16)
    assert first.config_name == "pspnet_res101_cityscapes"


def test_flags_and_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = plan_run(parse_args("test", ["--config", "quickstart", "--iters", "30", "--use_mpio"])).config
    assert (quick.train.num_workers, quick.train.iters) == (4, 30)
    default = plan_run(parse_args("test", ["--data", "data/cityscapes"]))
    assert default.config_name == "pspnet_res101_cityscapes"
    assert parse_args("test", ["--resume", "SOLVER.LR", "0.1"]).resume == "latest"
    assert parse_args("test", ["--resume", "SOLVER.LR", "0.1"]).overrides == ["SOLVER.LR", "0.1"]
    assert parse_args("test", ["--resume", "train.iters=4", "--seed", "1"]).resume == "latest"
    assert parse_args("test", ["--resume", "output/run", "--seed", "1"]).resume == "output/run"
    monkeypatch.setattr("semsegpaddle_glore.runs.find_root", lambda root: None)
    assert plan_run(parse_args("test", [])).config_name == "quickstart"
    assert "no data/cityscapes here: training on the toy data" in capsys.readouterr().out


def test_amp_on_a_cpu_says_so_and_changes_no_digit(data, tmp_path, monkeypatch, capsys):
    plain = train_here(data, tmp_path / "plain", 2)
    run(monkeypatch, main, *train_words(data, tmp_path / "amp", 2, "--amp", "O2"))
    assert "Paddle has no AMP on a CPU: training in fp32\n" in capsys.readouterr().out
    assert numbers(run_folder(tmp_path / "amp")) == numbers(plain)
    assert read_run(run_folder(tmp_path / "amp")).env["precision"] == "fp32"


def test_a_run_stopped_before_its_first_checkpoint_starts_again_in_its_folder(data, reference, tmp_path):
    folder = tmp_path / reference[1].name
    folder.mkdir()
    shutil.copy(reference[1] / "config.yaml", folder)
    (folder / "train.csv").write_text("step,loss\n1,9.9\n2,9")
    assert train_here(data, tmp_path, STEPS, "--resume", *EVERY) == folder
    assert numbers(folder) == numbers(reference[1])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(data, tmp_path):
    words = ("optimizer.learning_rate=1.0e+30", "optimizer.warmup_start_lr=1.0e+30", "train.checkpoint_every=1")
    with pytest.raises(UserError, match="stopped before the update") as error:
        train_here(data, tmp_path, 20, *words)
    (report,) = tmp_path.glob("*/nonfinite_loss_step*.json")
    content = json.loads(report.read_text())
    assert str(report) in str(error.value)
    assert len(content["images"]) == 2
    assert all((data / name.rsplit("/", 1)[1]).exists() for name in content["images"])
    assert content["step"] == len(read_run(run_folder(tmp_path)).train) + 1
    assert read_state(run_folder(tmp_path) / "last.safetensors").step == content["step"] - 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.name=pspnet", "train.batch_size=1"], "would see one value per channel"),
        (["train.batch_size=3", "train.accumulate=2"], "accumulate must be a divisor of batch_size 3"),
        (["model.name=ginet", "model.word_embeddings=nowhere.txt"], "no word vectors nowhere.txt"),
        (["model.backbone=resnet19"], "unknown backbone 'resnet19': did you mean 'resnet18'"),
        (["model.backbone_weights=nowhere.safetensors"], "no weight file nowhere.safetensors"),
    ],
)
def test_what_cannot_be_trained_is_one_line(data, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as error:
        train_here(data, tmp_path, 4, *words)
    assert "\n" not in str(error.value)


def test_labels_with_nothing_to_learn_stop_the_run(tmp_path):
    root = write_data(tmp_path / "data")
    (root / "classes.yaml").write_text(
        "name: x\nclasses: [one, two, three]\nids: {0: 255, 1: 255, 2: 255, 7: 0, 8: 1, 9: 2}\n"
    )
    with pytest.raises(UserError, match="labels of the training list show no class at all"):
        train_here(root, tmp_path / "out", 4, "train.batch_size=200")


def test_labels_that_are_all_ignored_end_the_run(tmp_path, capsys):
    root = write_data(tmp_path / "data")
    for line in (root / "train.txt").read_text().splitlines():
        path = str(root / line.split(",")[1])
        cv2.imwrite(path, np.full_like(cv2.imread(path, cv2.IMREAD_GRAYSCALE), 255))
    (root / "classes.yaml").write_text("name: squares\nclasses: [one, two, three]\nignore: 255\n")
    with pytest.raises(UserError, match="the 4 labels of the training list show no class at all"):
        train_here(root, tmp_path / "out", 3)
    assert "mIoU" not in capsys.readouterr().out


def test_weights_trained_on_other_input_are_refused(data, tmp_path):
    weights = tmp_path / "w.safetensors"
    save_file({name: value.numpy() for name, value in build_backbone("resnet18").state_dict().items()}, weights)
    card_of(weights).write_text("arch: resnet18\ninput: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}\n")
    words = [f"model.backbone_weights={weights}"]
    with pytest.raises(
        UserError, match=r"w.safetensors .*: trained with mean .*: set its data.mean to \[0.5, 0.5, 0.5\]"
    ):
        train_here(data, tmp_path, 3, *words)
    folder = train_here(data, tmp_path, 3, *words, "data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]")
    assert len(read_run(folder).train) == 3


def test_how_the_batch_is_cut_is_said_once_at_the_start(data, tmp_path, monkeypatch, capsys):
    run(monkeypatch, main, *train_words(data, tmp_path, 3, "--accumulate", 2, "TRAIN_BATCH_SIZE", 8))
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("batch 8 = 2 micro-batches x 4 images, learning rate 0.003; the recipe's is batch 4")
    assert lines[start + 1] == "batch normalisation: the statistics of each micro-batch, not of the batch"
    assert sum(line.startswith("batch ") for line in lines) == 2
    plan = plan_run(parse_args("test", ["--config", "quickstart", "--output", str(tmp_path)]))
    assert batch_lines(plan, world_size=1, micro_batches=1) == ["batch 4, learning rate 0.003"]


def test_mixed_precision_is_of_training_alone(data, tmp_path, monkeypatch):
    """Validation in training computes in float32 as eval.py does."""
    mixed, seen = [], []

    @contextlib.contextmanager
    def precision(self):
        mixed.append(True)
        yield
        mixed.pop()

    def evaluate(*args):
        seen.append(list(mixed))
        return evaluated(*args)

    evaluated = training.evaluate
    monkeypatch.setattr(training.Updater, "precision", precision)
    monkeypatch.setattr(training, "evaluate", evaluate)
    train_here(data, tmp_path, 3)
    assert seen == [[]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "qickstart"], r"no config file 'qickstart'.*did you mean 'quickstart'"),
        (["--config", "quickstart", "train.itres=3"], r"unknown key: did you mean 'train.iters'"),
        (["--config", "quickstart", "SOLVER.RL", "3"], r"unknown key: did you mean 'SOLVER.LR'"),
        (["--config", "quickstart", "train.iters=many"], r"'train.iters' must be int, not str"),
        (["--config", "quickstart", "loss.aux_weight=-1"], r"aux_weight must be 0 or more"),
        (["--config", "quickstart", "--iters", "0"], r"iters must be at least 1"),
        (["--config", "pspnet_res101_cityscapes", "--data", "nowhere"], r"no data set in 'nowhere'.*quickstart"),
        (["--resume", "nowhere"], r"nothing to resume: nowhere is no run folder"),
        (["--config", "quickstart", "TEST.TEST_MODEL", "x"], r"TEST.TEST_MODEL is eval.py's"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, message, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message) as error:
        run(monkeypatch, main, "--output", tmp_path / "out", *words)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_use_gpu_without_a_gpu_is_one_line(script, reference):
    words = ["--use_gpu", "--use_mpio", "--cfg", "./configs/pspnet_res101_cityscapes.yaml"]
    if script == "eval.py":
        words += ["TEST.TEST_MODEL", reference[1] / "last.safetensors"]
    line = error_line(command(script, *words, env={"CUDA_VISIBLE_DEVICES": ""}))
    assert "--use_gpu: no GPU that this Paddle can use" in line


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(data, tmp_path):
    # The fourth large file to be synced finds the disk full.
    script = (
        "import errno, sys, os\n"
        "from semsegpaddle_glore import train\n"
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


def test_the_originals_flags_and_yaml_file_train_and_evaluate(data, tmp_path, monkeypatch, capsys):
    """A small file in the original's format, with the flags that its users type."""
    original = tmp_path / "small.yaml"
    original.write_text(
        "DATAAUG: {BASE_SIZE: 72, CROP_SIZE: 65, EXTRA: False, RAND_SCALE_MIN: 1.0, RAND_SCALE_MAX: 1.0}\n"
        "TRAIN_BATCH_SIZE_PER_GPU: 2\nNUM_TRAINERS: 1\nEVAL_BATCH_SIZE: 1\n"
        f"DATASET: {{DATASET_NAME: custom, DATA_DIR: {data}, TRAIN_FILE_LIST: train.txt, VAL_FILE_LIST: val.txt}}\n"
        "MODEL: {MODEL_NAME: pspnet, BACKBONE: resnet, BACKBONE_LAYERS: 18, BACKBONE_OUTPUT_STRIDE: 16}\n"
        f"TRAIN: {{MODEL_SAVE_DIR: {tmp_path}/snapshots, SNAPSHOT_EPOCH: 1}}\n"
        "TEST: {BASE_SIZE: 80, CROP_SIZE: 65, SLIDE_WINDOW: True}\n"
        "SOLVER: {LR: 0.01, LR_POLICY: poly, OPTIMIZER: sgd, NUM_EPOCHS: 1}\n"
    )
    flags = ("--log_steps", 1, "--do_eval", "--debug", "--use_vdl", "--vdl_log_dir", tmp_path / "vdl")
    run(monkeypatch, main, "--cfg", original, *flags)
    folder = run_folder(tmp_path / "snapshots")
    assert [row["step"] for row in read_run(folder).train] == ["1", "2"]  # one epoch of 4 images, 2 at once
    capsys.readouterr()
    weights = folder / "last.safetensors"
    words = ("--cfg", original, "--weights", weights, "--flip", "--output", tmp_path / "scores")
    run(monkeypatch, eval_main, *words)
    with open(tmp_path / "scores" / "eval.csv") as stream:
        (row,) = csv.DictReader(stream)
    assert row["protocol"] == "long side 80, ss, flip, windows 65x65 stride 0.333"
