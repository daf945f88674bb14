"""train.py and static_train.py as a user runs them, alone and in two processes."""

import json
from types import SimpleNamespace

from common.cli import UserError, run_command
from common.runs.reading import read_run
from paddleseg_benchmark import static_train, train
from paddleseg_benchmark.checkpoint import load_network
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.eval import evaluate
from paddleseg_benchmark.training import Training
from paddleseg_benchmark.zoo import zoo

import numpy as np
import paddle
import pytest
from pdseg_runs import PROJECT, command, launch, write_data
from testkit import ENV_WITH_KIT, error_line, run_folder

SEED_COMMAND = (
    *("--cfg", "configs/hrnetw18_cityscapes_1024x512_215.yaml", "--use_gpu", "--use_mpio", "--log_steps", "10"),
    *("BATCH_SIZE", "2", "SOLVER.NUM_EPOCHS", "3", "MODEL.FP16", "True"),
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("toy") / "cityscapes")


def train_words(toy, output, *more):
    words = ("--config", "configs/fastscnn.yml", "--batch_size", 2, "--crop_size", 64, 64, "--log_iters", 2)
    return (*words, "--data", toy, "--output", output, *more)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """What four steps of Fast-SCNN with an evaluation say on standard error, and their run folder."""
    output = tmp_path_factory.mktemp("trained")
    process = command("train.py", *train_words(toy, output, "--iters", 4, "--do_eval"))
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stderr, run_folder(output)


def test_train_logs_speed_and_memory(trained):
    said, folder = trained
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{") and '"loss"' in line]
    run = read_run(folder)
    assert [row["step"] for row in run.train] == ["2", "4"]
    for row, line in zip(run.train, lines, strict=True):
        seconds, waiting = float(row["step_time_s"]), float(row["data_time_s"])
        assert 0 < waiting < seconds
        assert float(row["images_per_s"]) == pytest.approx(2 / seconds, rel=1e-2)
        assert 0.1 < float(row["peak_memory_gib"]) < 8
        numbers = ("step", "loss", "learning_rate", "step_time_s", "data_time_s", "images_per_s", "peak_memory_gib")
        assert {name: line[name] for name in numbers} == pytest.approx({name: float(row[name]) for name in numbers})
    rates = [float(row["learning_rate"]) for row in run.train]  # of the steps 2 and 4 of 4: one and three are done
    assert rates == pytest.approx([(0.05 - 1e-4) * (1 - done / 4) ** 0.9 + 1e-4 for done in (1, 3)])
    assert (run.env["scope"], run.env["dataset"], run.env["precision"]) == ("reduced", "cityscapes", "fp32")
    assert "/tmp" not in run.config_text


def test_train_evaluates_the_weights_that_it_saves(trained, toy):
    _, folder = trained
    config = data.with_data(zoo.read_config("fastscnn.yml"), str(toy))
    network = zoo.build_from_config(config)
    load_network(folder / "last.safetensors", network.network)
    result = evaluate(network, data.open_dataset(config, "val"))
    row = read_run(folder).eval[-1]
    assert (row["step"], row["images"]) == ("4", "3")
    assert float(row["miou_percent"]) == pytest.approx(100 * result.matrix.mean_iou(), abs=1e-3)
    assert float(row["loss"]) == pytest.approx(result.loss, abs=1e-5)
    assert result.matrix.matrix.sum() > 0.5 * 3 * 64 * 128


def test_the_same_seed_gives_the_same_losses(trained, toy, tmp_path):
    process = command("train.py", *train_words(toy, tmp_path, "--iters", 4))
    assert process.returncode == 0, process.stderr[-2000:]
    losses = [[row["loss"] for row in read_run(folder).train] for folder in (trained[1], run_folder(tmp_path))]
    assert losses[0] == losses[1]


def test_synthetic_needs_no_data(tmp_path):
    words = ("--config", "configs/shufflenetv2.yml", "--synthetic", "--crop_size", 32, 32, "--iters", 3)
    process = command("train.py", *words, "--output", tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    run = read_run(run_folder(tmp_path))
    assert run.env["dataset"] == "synthetic"
    assert float(run.train[-1]["data_time_s"]) < 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config", "configs/deeplabv3p.yml", "--fp16"), "--fp16 needs a GPU"),
        (("--config", "configs/unet.yml", "--data_format", "NHWC", "--synthetic"), "NHWC: UNet"),
        (("--config", "configs/deeplab.yml"), "did you mean 'deeplabv3.yml'"),
        (("--config", "configs/fastscnn.yml", "--data", "no/such/folder"), "no data set in 'no/such/folder'"),
        (("--config", "configs/fastscnn.yml", "--synthetic", "--do_eval"), "leave out --synthetic"),
    ],
)
def test_what_cannot_be_trained_says_why(words, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    with pytest.raises(UserError, match=message):
        train.main()


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        *((train, ("--learning_rate", word), "is not a finite number above 0") for word in ("nan", "inf", "0", "x")),
        *((train, ("--batch_size", word), "is not a number from 1") for word in ("0", "two", "1.5")),
        (train, ("--num_workers", "x"), "is not a number from 0"),
        (train, ("--num_workers=-1",), "is not a number from 0"),
        *((module, ("--seed=-1",), "is not a number from 0") for module in (train, static_train)),
        *((module, ("--seed", str(2**31)), "is not a number below 2^31") for module in (train, static_train)),
        (static_train, ("BATCH_SIZE", "0"), "BATCH_SIZE 0: give a number from 1"),
        (static_train, ("BATCH_SIZE", "-2"), "BATCH_SIZE -2: give a number from 1"),
        (static_train, ("SOLVER.NUM_EPOCHS", "0"), "SOLVER.NUM_EPOCHS 0: give a number from 1"),
    ],
)
def test_a_number_that_cannot_be_used_is_one_line(module, words, message, monkeypatch, capsys):
    config = ("--config", "fastscnn.yml") if module is train else ("--cfg", "deeplabv3p_resnet50_vd_cityscapes.yaml")
    monkeypatch.setattr("sys.argv", ["command", *config, *words])
    with pytest.raises(SystemExit) as ended:
        run_command(module.main)
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_loading_that_takes_much_of_the_time_is_told(capsys):
    training = Training.__new__(Training)
    training.plan, training.seconds = SimpleNamespace(num_workers=1), 10.0
    for waiting, warns in ((2.0, False), (2.1, True)):
        training.data_seconds = waiting
        training._print_waiting()
        said = capsys.readouterr().out
        assert f"took 10 s, {10 * waiting:.1f} % of it waiting for data" in said
        assert ("loading is the bottleneck: raise the number of loader processes (now 1)" in said) == warns


def test_the_original_static_command_says_on_a_cpu_what_to_leave_out():
    if paddle.device.is_compiled_with_cuda():
        pytest.skip("this Paddle may have a GPU")
    message = error_line(command("static_train.py", *SEED_COMMAND))
    assert message == ("--use_gpu: Paddle finds no GPU here: leave out --use_gpu and MODEL.FP16 to train on the CPU")


def static_words(toy, output, *more):
    config = ("--cfg", "configs/deeplabv3p_resnet50_vd_cityscapes.yaml", "--log_steps", 1)
    return (*config, "--data", toy, "--output", output, *more, "TRAIN_CROP_SIZE", "(64,64)", "SOLVER.NUM_EPOCHS", 1)


@pytest.mark.slow
def test_static_train_counts_epochs_by_the_total_batch(toy, tmp_path):
    process = command("static_train.py", *static_words(toy, tmp_path, "--do_eval", "--use_mpio", "BATCH_SIZE", 4))
    assert process.returncode == 0, process.stderr[-2000:]
    run = read_run(run_folder(tmp_path))
    assert [row["step"] for row in run.train] == ["1", "2"]  # 8 images
    assert (run.env["graph"], run.env["total_batch_size"], run.env["scope"]) == ("static", 4, "reduced")
    assert [row["images"] for row in run.eval] == ["3"]
    assert all(2 < float(row["loss"]) < 5 for row in run.train)


@pytest.mark.slow
def test_two_processes_train_in_the_dynamic_graph(toy, tmp_path):
    process = launch(tmp_path / "log", "train.py", *train_words(toy, tmp_path / "out", "--iters", 3, "--do_eval"))
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    run = read_run(run_folder(tmp_path / "out"))
    assert (run.env["processes"], run.env["total_batch_size"]) == (2, 4)
    assert [(row["step"], row["images"]) for row in run.eval] == [("3", "3")]


TWO_STATIC = """
import json, os, sys
import numpy as np
import paddle.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pdseg_runs import small_network, batch
from paddleseg_benchmark.updates import StaticStep
import paddle
if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
    dist.init_parallel_env()
rank, world = dist.get_rank(), dist.get_world_size()
images, labels = batch((8, 8), count=4)
labels[labels == 255] = 0  # the mean over processes is the mean over the batch only if both count as many pixels
def build():
    paddle.seed(3)
    return small_network([{"type": "CrossEntropyLoss"}], [1])
stepper = StaticStep(build, 4 // world, (8, 8), iters=5)
for _ in range(3):
    stepper.run(images[rank::world], labels[rank::world])
stepper.update_zoo_network()
weights = {name: value.numpy().ravel().tolist() for name, value in stepper.zoo_network.network.state_dict().items()}
Path(sys.argv[2], f"{world}_{rank}.json").write_text(json.dumps(weights))
"""


def test_two_static_processes_learn_what_one_learns_from_the_whole_batch(tmp_path):
    script = tmp_path / "two_static.py"
    script.write_text(TWO_STATIC)
    here = PROJECT / "tests"
    kit = {"env": ENV_WITH_KIT}
    for process in (command(script, here, tmp_path, **kit), launch(tmp_path / "log", script, here, tmp_path, **kit)):
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1"))
    for name, value in one.items():
        np.testing.assert_allclose(first[name], value, atol=1e-6)
        np.testing.assert_array_equal(first[name], second[name])
