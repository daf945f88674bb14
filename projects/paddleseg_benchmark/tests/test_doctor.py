import os
import subprocess
import sys
from pathlib import Path

from paddleseg_benchmark import doctor
from paddleseg_benchmark.zoo import zoo

import pytest

RIGHT = {"paddlepaddle": "3.3.1", "paddleseg": "2.8.0", "numpy": "2.3.5", "opencv-python-headless": "4.14.0.94"}


def test_the_versions_of_this_repository_have_no_problem():
    assert doctor.problems(RIGHT) == []
    assert doctor.problems(doctor.installed_versions()) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"numpy": "2.4.0"}, "numpy is 2.4.0, needed is from 2.0 to below 2.4"),
        ({"numpy": "1.26.4"}, "numpy is 1.26.4, needed is from 2.0 to below 2.4"),
        ({"paddlepaddle": "2.6.2"}, "paddlepaddle is 2.6.2, needed is from 3.3 to below 3.4"),
        ({"opencv-python-headless": "5.0.0rc1"}, "opencv-python-headless is 5.0.0rc1, needed is from 4.10 to below 5"),
        ({"paddleseg": None}, "paddleseg is not installed: requirements.txt has the version"),
    ],
)
def test_a_version_out_of_range_is_one_sentence(wrong, sentence):
    assert doctor.problems(RIGHT | wrong) == [sentence]


def test_the_command_says_what_can_be_measured_here_and_why_not_the_rest():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "FLAGS_use_onednn": "1"}
    command = [sys.executable, doctor.__file__, "--peer-python", sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    count = len(zoo.ROWS)
    assert f"{'numpy':<29}{doctor.installed_versions()['numpy']}" in lines
    assert f"{'threads':<29}1 (OMP_NUM_THREADS, by common/machine/cpu.py where you set none)" in lines
    assert any(line.startswith("device ") and " cpu; " in line for line in lines)
    assert any(line.startswith("/dev/shm ") for line in lines)
    assert "FLAGS_use_onednn is set: to_static and static crash with it" in ended.stdout
    assert f"{'dynamic':<10}{'NCHW':<6}{'fp32':<24}{count} of {count} networks" in lines
    at = lines.index(f"{'dynamic':<10}{'NHWC':<6}{'fp32':<24}2 of {count} networks")  # DeepLabv3+, both backbones
    assert lines[at + 1].strip().startswith("not supported: ") and lines[at + 1].endswith(": all others")
    mixed = f"{'NCHW':<6}{'o1_fp16 o2_fp16 bf16':<24}0 of {count} networks"
    assert sum(line[10:] == mixed for line in lines) == 3  # graphs
    assert any(line.startswith("mmsegmentation") and "not there" in line for line in lines)
    assert lines[-1] == "no problems"


def test_every_reason_stands_with_the_networks_that_it_holds_for():
    answers = {"a": None, "b": "no edges", "c": "no pads", "d": "no edges"}
    assert doctor._summary(answers) == ("1 of 4 networks", "no edges: b, d", "no pads: c")
    assert doctor._summary({"a": None, "b": "no edges"}) == ("1 of 2 networks", "no edges: all others")
    assert doctor._summary({"a": None}) == ("1 of 1 networks",)


def test_a_missing_package_ends_with_1_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    monkeypatch.setattr(doctor, "installed_versions", lambda: dict.fromkeys(RIGHT))
    monkeypatch.setattr(doctor, "PEERS", ())

    def no_paddle(name):
        raise ImportError(f"no module for {name}")

    monkeypatch.setattr(doctor.importlib, "import_module", no_paddle)
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert "problem: numpy is not installed" in said
    assert "problem: nothing can be trained: no module for paddleseg_benchmark.updates" in said


RUN_GPU = Path(doctor.__file__).with_name("run_gpu.sh")


def run_gpu(*words, python):
    environment = os.environ | {"PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(["bash", str(RUN_GPU), *words], capture_output=True, text=True, env=environment)


def test_run_gpu_says_in_one_line_that_paddle_sees_none():
    ended = run_gpu(python=sys.executable)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: Paddle sees no GPU here: ")
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""


def test_run_gpu_names_an_interpreter_that_is_not_there(tmp_path):
    ended = run_gpu(python=tmp_path / "python")
    assert ended.returncode == 1
    assert ended.stderr == f"error: no interpreter {tmp_path}/python: run ci/setup.sh, or set PYTHON\n"


def test_run_gpu_starts_the_gpu_preset_where_paddle_sees_one(tmp_path):
    python = tmp_path / "python"  # answers the question about the GPU with yes, and tells what it was asked to run
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@"\n')
    python.chmod(0o755)
    ended = run_gpu("--rounds", "5", python=python)
    assert ended.returncode == 0
    assert ended.stdout.split() == [str(RUN_GPU.with_name("run_matrix.py")), "--preset", "gpu", "--rounds", "5"]
