"""The README's five steps, run as they are printed."""

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path

from common.cli import UserError
from weights_convert.archs import all_archs

import paddle
import pytest
import torch
import torchvision

ROOT = Path(__file__).parents[2]
README = (ROOT / "weights_convert" / "README.md").read_text()
REPORTS = sorted(
    (ROOT / "results" / "benchmarks" / "weights_convert").glob("*/env.json"),
    key=lambda path: json.loads(path.read_text())["started_utc"],
)
STEPS = README.partition("## A network of your own")[2].partition("\n## ")[0]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", STEPS, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, *_ = blocks("python")
    (table,) = blocks("yaml")
    (tmp_path / "my_mobilenet.py").write_text(network)
    (tmp_path / "mobilenet_v2.yaml").write_text(table)
    spec = importlib.util.spec_from_file_location("my_mobilenet", tmp_path / "my_mobilenet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "my_mobilenet", module)
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "mobilenet_v2.pth")
    return tmp_path


def test_the_five_steps_convert_and_prove_mobilenet_v2(folder, capsys):
    names = {}
    for code in blocks("python")[1:]:
        exec(code, names)
    assert names["conversion"].proof.largest <= 1e-5
    assert [path.name for path in names["written"]] == [
        "mobilenet_v2.pdparams",
        "mobilenet_v2.left_out.safetensors",
        "mobilenet_v2.pdparams.card.yaml",
    ]
    assert "mobilenet_v2         torchvision  proven: 262 tensors" in capsys.readouterr().out
    network = sys.modules["my_mobilenet"].MobileNetV2()
    assert network.set_state_dict(paddle.load("mobilenet_v2.pdparams")) == ([], [])


def measured_row(row):
    differences = [f"{float(row[name]):.1e}" for name in ("largest_difference", "onnxruntime_difference")]
    cells = [row["arch"], row["source"], row["tensors"], *differences, row["cpu_seconds"], row["peak_memory_mib"]]
    return f"| {' | '.join(cells)} |"


@pytest.mark.skipif(not REPORTS, reason="results/ holds no report of --all")
def test_what_was_measured_is_in_the_latest_report_that_has_it():
    rows = {}
    for report in REPORTS:
        with open(report.with_name("proofs.csv")) as stream:
            rows |= {(row["arch"], row["source"]): row for row in csv.DictReader(stream)}
    sources = [(arch.name, source.name) for arch in all_archs() for source in arch.sources]
    section = README.partition("## What was measured")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert lines == [measured_row(rows[source]) for source in sources]


def test_a_row_that_misses_is_named(folder):
    table = folder / "mobilenet_v2.yaml"
    table.write_text(table.read_text().replace("'^features'", "'^feature_'"))
    names = {}
    setup, prove, _ = blocks("python")[1:]
    exec(setup, names)
    with pytest.raises(
        UserError, match=r"'features.0.0.weight' would fill 'features.0.0.weight', which .* has not .and [0-9]+ more."
    ):
        exec(prove, names)
