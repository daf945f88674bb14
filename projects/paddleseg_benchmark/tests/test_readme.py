"""README.md's tables are made from the recorded matrices."""

from common.cli import UserError
from paddleseg_benchmark.matrix import readme, report

import pytest


def cell(model, images_per_s, **more):
    values = {**readme.BASE, "model": model, "status": "ok", "loader": "synthetic", "parameters": "1420342"}
    return values | {"step_ms": "217.4", "images_per_s": str(images_per_s)} | more


def test_the_readme_has_the_tables_of_the_recorded_matrices():
    text = report.README.read_text(encoding="utf-8")
    assert readme.with_tables(text, report.RESULTS, "README.md") == text, "run python report.py --readme"


def test_speed_ups_relate_to_the_networks_own_baseline():
    rows = [
        cell("fastscnn", 12.0),
        cell("fastscnn", 9.0, layout="NHWC"),
        cell("fastscnn", 18.0, library="mmseg", precision="bf16"),
        cell("fastscnn", 30.0, library="mmseg", status="failed: x"),
        cell("unet", 100.0),
    ]
    lines = readme.speedup_table(rows).splitlines()
    assert lines[2] == "| paddleseg, fp32: images/s | not run | not run | not run | not run | 12.00 |"
    assert "| NHWC | not supported | not supported | not supported | not supported | 0.75x |" in lines
    assert "| mmsegmentation, bf16 NCHW |  |  |  |  | 1.50x |" in lines
    assert "| mmsegmentation, fp32 NCHW |  |  |  |  |  |" in lines


def test_a_network_has_its_parameters_and_time_or_was_not_run():
    lines = readme.networks_table([cell("fastscnn", 12.0)]).splitlines()
    assert "| Fast-SCNN | - | `fastscnn.yml` | `fastscnn` | 1,420,342 | 217 |" in lines
    assert "| U-Net | - | `unet.yml` | `unet` |  | not run |" in lines
    assert len(lines) == 2 + 36


def test_a_readme_without_marks_is_refused():
    with pytest.raises(UserError, match="networks.*add the lines"):
        readme.with_tables("no marks", report.RESULTS, "README.md")
