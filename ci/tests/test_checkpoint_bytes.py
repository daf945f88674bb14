"""The same state is the same file: what a checkpoint's digest is compared by."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAVE = """
import dataclasses, sys
from {project}.checkpoint import TrainState, read_state, save_checkpoint
import {framework}
{framework}.{seed}(0)
values = dict(step=7, best_miou=0.5, best_step=5, config_text="seed: 0", class_names=("one", "two"))
values |= dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), palette=((1, 2, 3), (4, 5, 6)))
known = [field.name for field in dataclasses.fields(TrainState)]
state = TrainState(**{{name: value for name, value in values.items() if name in known}})
network = {framework}.nn.Linear(3, 2)
for number in range(8):  # entries in random order would stand otherwise in one of them
    path = f"{{sys.argv[1]}}/{{number}}.safetensors"
    save_checkpoint(path, network, state)
    assert read_state(path) == state
"""
FRAMEWORKS = {
    "stdc_seg": ("paddle", "seed"),
    "semsegpaddle_glore": ("paddle", "seed"),
    "awesome_pytorch_seg": ("torch", "manual_seed"),
    "encnet_single_gpu": ("torch", "manual_seed"),
}


@pytest.mark.parametrize("project", FRAMEWORKS)
def test_the_same_state_has_the_same_bytes_in_two_processes(project, tmp_path):
    framework, seed = FRAMEWORKS[project]
    script = SAVE.format(project=project, framework=framework, seed=seed)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    savers = [subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT) for folder in folders]
    assert [saver.wait(120) for saver in savers] == [0, 0]
    contents = {path.read_bytes() for folder in folders for path in folder.iterdir()}
    assert len(contents) == 1
