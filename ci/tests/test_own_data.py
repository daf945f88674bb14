"""The README's way to one's own data, as it stands there, in every project."""

import json
import re
import subprocess
import sys
from pathlib import Path

from common.runs.reading import read_run

import cv2
import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own data\n")[2].partition("\n## ")[0]
YAMLS = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = re.findall(r"^python .*?(?= +#|$)", SECTION, re.MULTILINE)
TRAININGS = dict(re.findall(r"^\| projects/(\w+) \| `(.*)` \|$", SECTION, re.MULTILINE))
# What makes each training a matter of seconds, in the words of its own command.
SMALL = {
    "stdc_seg": "--iters 2 train.batch_size=2 augment.crop_size=[65,65] optimizer.warmup_iters=1",
    "semsegpaddle_glore": "--iters 2 train.batch_size=2 augment.crop_size=[65,65] model.backbone=resnet18",
    "awesome_pytorch_seg": "--iters 2 --batch-size 2 --crop-size 64 --base-size 72 --backbone resnet18",
    "encnet_single_gpu": "--iters 2 --batch-size 2 --crop-size 64 64 --backbone resnet18 --num-workers 0",
    "paddleseg_benchmark": "--iters 2 --batch_size 2 --crop_size 64 64",
}


def write_images(root, values):
    """Images whose label files hold `values`, in the folders that the README names."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            label = rng.choice(values, (8, 12)).astype(np.uint8).repeat(12, 0).repeat(12, 1)
            image = np.stack([label] * 3, -1) * 3 + rng.integers(0, 20, (*label.shape, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), image)
            cv2.imwrite(str(root / "labels" / split / f"{i}.png"), label)


def run(command, data, folder, more=()):
    """Runs a command of the README on `data`; returns what it printed."""
    words = re.sub(r"(\.\./\.\./)?data/mine", str(data), command).split()
    assert words[0] == "python"
    process = subprocess.run(
        [sys.executable, *words[1:], *map(str, more)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return process.stdout


@pytest.mark.parametrize("project", sorted(path.parent.name for path in (ROOT / "projects").glob("*/train.py")))
def test_three_commands_train_on_ones_own_images(project, tmp_path):
    classes, paddleseg = YAMLS
    data = tmp_path / "mine"
    write_images(data, (10, 20, 30, 255))
    (data / "classes.yaml").write_text(classes)
    configs = ROOT / "projects/paddleseg_benchmark/configs"
    text = paddleseg.replace("../../projects/paddleseg_benchmark/configs", str(configs))
    (data / "paddleseg.yml").write_text(text.replace("../../data/mine", str(data)))

    lists, check = COMMANDS
    assert "train.txt: 4 lines" in run(lists, data, ROOT)
    assert "train 4, val 2\nno problems" in run(check, data, ROOT)
    output = tmp_path / "output"
    more = (*SMALL[project].split(), "--output", output)
    run(TRAININGS[project], data, ROOT / "projects" / project, more)

    (folder,) = output.iterdir()
    per_class = [row for row in read_run(folder).per_class if row["split"] == "val"]
    assert [row["class_name"] for row in per_class] == ["road", "kerb", "person"]
    assert all(0 <= float(row["iou_percent"]) <= 100 for row in per_class)
    if project != "paddleseg_benchmark":  # it predicts nothing; elsewhere predictions have the colours of classes.yaml
        with safe_open(folder / "best.safetensors", "np") as file:
            (palette,) = re.findall(r'"palette": (\[\[.*?\]\])', " ".join(file.metadata().values()))
        assert json.loads(palette)[2] == [220, 20, 60]
