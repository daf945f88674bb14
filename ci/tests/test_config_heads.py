"""The head of every experiment says what to expect, for how long, on what, by which command, and what differs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("stdc_seg", "semsegpaddle_glore")
CONFIGS = sorted(path for name in FOLDERS for path in (ROOT / "projects" / name / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_the_head_of_a_config(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    assert re.search(r"Expected: .*(%|not known|no number)", head)
    assert re.search(r"(hours?|minutes?)\b.*(GPU|core|card|V100)|GPU hours", head)
    assert re.search(rf"Command: python train\.py --(cfg|config) {path.stem}\b", head)
    assert "Differs from" in head
