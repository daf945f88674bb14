"""Each project needs its own framework alone, and no compiler; no name is used that newer versions have dropped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHERS = {
    "stdc_seg": ("torch", "torchvision", "timm", "mmcv", "mmseg"),
    "semsegpaddle_glore": ("torch", "torchvision", "timm", "paddleseg", "mmcv", "mmseg"),
    "paddleseg_benchmark": ("torch", "torchvision", "timm", "mmcv", "mmseg"),
    "awesome_pytorch_seg": ("paddle", "paddleseg", "mmcv", "mmseg"),
    "encnet_single_gpu": ("paddle", "paddleseg", "mmcv", "mmseg"),
    "common": ("torch", "torchvision", "paddle", "paddleseg"),
}
IMPORT_ALL = """
import importlib, pathlib, sys
name, folder, *others = sys.argv[1:]

class Refuse:
    def find_spec(self, full_name, path=None, target=None):
        if full_name in others:
            raise ImportError(f"{full_name} is not there")

sys.meta_path.insert(0, Refuse())
for path in sorted(pathlib.Path(folder).rglob("*.py")):
    parts = path.relative_to(folder).with_suffix("").parts
    if "tests" not in parts:
        importlib.import_module(".".join((name, *parts)).removesuffix(".__init__"))
"""
# What the versions in use no longer have, by its place in Paddle or NumPy.
DROPPED = re.compile(r"\bpaddle\.fluid\b|\bnp\.(int|bool|float|object|long)\b(?!_)")


@pytest.mark.parametrize("name", OTHERS)
def test_every_module_is_imported_without_the_other_framework_and_without_a_compiler(name):
    folder = ROOT / "common" if name == "common" else ROOT / "projects" / name
    assert name == "common" or (folder / "train.py").is_file()
    words = [sys.executable, "-c", IMPORT_ALL, name, str(folder), *OTHERS[name]]
    env = {**os.environ, "PATH": ""}  # no compiler, nor anything else
    process = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]


def test_every_project_is_among_them():
    assert {path.parent.name for path in (ROOT / "projects").glob("*/train.py")} | {"common"} == set(OTHERS)


def test_no_name_that_was_dropped():
    rooms = ("ci", "common", "projects", "results", "weights_convert")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py") if path != Path(__file__)]
    assert len(files) > 300
    found = [f"{path}: {hit[0]}" for path in files for hit in DROPPED.finditer(path.read_text(encoding="utf-8"))]
    assert not found
    assert all(DROPPED.search(line) for line in ("x = paddle.fluid.x", "a.astype(np.bool)"))
    assert not any(DROPPED.search(line) for line in ("np.bool_", "np.int64", "np.float32"))
