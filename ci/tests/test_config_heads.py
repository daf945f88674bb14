"""The head of every experiment says what to expect, for how long, on what, by which command, and what differs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("projects/*/configs/*.y*ml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_the_head_of_a_config(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    assert re.search(r"Expected: .*(%|mIoU|not known|no number)", head)
    assert re.search(r"([Hh]ours?|minutes?)\b.*(GPU|core|card|V100)|GPU hours", head)
    assert re.search(r"Command: python .*train\.py", head)
    assert re.search(r"Differs? from|Differences", head)
