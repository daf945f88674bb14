import csv
import json

from common.cli import UserError
from paddleseg_benchmark.matrix import report
from paddleseg_benchmark.matrix.report import COLUMNS

import cv2
import pytest

MEASURED = dict.fromkeys(COLUMNS, "") | {
    "library": "paddleseg",
    "precision": "fp32",
    "layout": "NCHW",
    "graph": "dynamic",
    "batch": "2",
    "height_px": "128",
    "width_px": "256",
    "loader": "synthetic",
    "status": "ok",
    "step_ms": "500.00",
    "step_ms_min": "480.00",
    "step_ms_max": "560.00",
    "images_per_s": "4.000",
    "loader_percent": "0.10",
    "peak_memory_gib": "1.500",
    "memory_kind": "rss",
    "parameters": "26723395",
    "reference_parameters": "26723395",
    "loss_first": "3.000000",
    "loss_last": "2.500000",
    "nan_count": "0",
    "skipped_steps": "0",
    "evaluation_miou_percent": "2.5000",
}
ENV = {
    "preset": "cpu",
    "device": "cpu",
    "cpu": "a processor",
    "started_utc": "2026-11-21T08:00:00Z",
    "commit": "0123456789",
    "threads": "2",
    "warmup_steps": 2,
    "steps": 3,
    "packages": {"numpy": "2.3.5"},
    "peer_packages": None,  # where there was no --peer-python
}


def row(model, **cells):
    return MEASURED | {"model": model} | cells


def without_number(model, status, **cells):
    return row(model, status=status, step_ms="", images_per_s="", loss_first="", loss_last="", **cells)


def write(folder, rows):
    with open(folder / "matrix.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "env.json").write_text(json.dumps(ENV))


@pytest.fixture
def rows():
    return [
        row("fastscnn"),
        row("fastscnn", batch="4", images_per_s="6.000"),
        row("fastscnn", library="smp", images_per_s="3.000", reference_parameters=""),
        row("unet", graph="static", images_per_s="9.000"),
        without_number("fastscnn", "not supported here: Paddle ignores AMP on a CPU", precision="bf16"),
        without_number("fastscnn", "not supported here: Paddle ignores AMP on a CPU", precision="o1_fp16"),
        without_number("unet", "failed: killed by SIGKILL (out of memory?)"),
    ]


def test_a_speedup_relates_to_the_same_network_at_its_smallest_batch(rows):
    assert [report.speedup(row, rows) for row in rows] == [1.0, 1.5, 0.75, None, None, None, None]


def test_the_table_has_a_line_per_number_and_a_reason_for_cells_without(rows):
    text = report.markdown(rows, ENV)
    assert "mmsegmentation 1.2.2" in report.markdown(rows, ENV | {"peer_packages": {"mmsegmentation": "1.2.2"}})
    table, without = text.split("## Without numbers")
    lines = [line for line in table.splitlines() if line.startswith(("| fastscnn", "| unet"))]
    assert len(lines) == 4
    assert lines[1].startswith(
        "| fastscnn | paddleseg | fp32 | NCHW | dynamic | 4 | synthetic | 500 (480..560) | 6.00 | 1.50x |"
    )
    assert "| 26,723,395 | 26,723,395 | 3.000000, 2.500000 | 0 | 0 |  | 2.50 |" in lines[1]
    assert "| 9.00 |  | 0.1 |" in lines[3]  # no baseline, no speed-up
    why = "not supported here: Paddle ignores AMP on a CPU"
    assert f"| paddleseg | {why} | 2 | fastscnn | bf16, o1_fp16 | NCHW | dynamic |" in without
    assert "| paddleseg | failed: killed by SIGKILL (out of memory?) | 1 | unet | fp32 | NCHW | dynamic |" in without
    assert "at commit 0123456, OMP_NUM_THREADS 2" in text


def test_a_report_is_a_page_and_two_images(tmp_path, rows):
    write(tmp_path, rows)
    report.write_report(tmp_path)
    assert (tmp_path / "report.md").read_text().count("\n| ") == 1 + 4 + 1 + 2
    for name in ("speedup.png", "memory.png"):
        image = cv2.imread(str(tmp_path / name))
        assert image.min() < 100 < 250 < image.max()  # neither blank nor black


def test_images_of_the_zoo_number_the_networks(tmp_path):
    rows = [row(f"network{i}", images_per_s=str(1 + i)) for i in range(12)]
    write(tmp_path, rows)
    report.write_report(tmp_path)
    assert cv2.imread(str(tmp_path / "memory.png")) is not None
    assert not (tmp_path / "speedup.png").exists()  # one cell per network: nothing to compare
    assert "speedup.png" not in (tmp_path / "report.md").read_text()


def test_a_folder_without_a_matrix_or_a_damaged_one_is_refused(tmp_path, rows):
    with pytest.raises(UserError, match=r"matrix\.csv is missing"):
        report.read_matrix(tmp_path)
    write(tmp_path, rows)
    (tmp_path / "matrix.csv").write_text((tmp_path / "matrix.csv").read_text() + "half,a,row\n")
    with pytest.raises(UserError, match="too few or too many cells"):
        report.read_matrix(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("images_per_s,", "ips,", r"matrix.csv: no column 'images_per_s': make it with run_matrix.py"),
        ("500.00", "fast", r"matrix.csv line 2: 'step_ms' is not a finite number"),
        ("4.000", "0", r"matrix.csv line 2: 'images_per_s' is not a finite number"),
        ("26723395", "2.5", r"matrix.csv line 2: 'parameters' is not a finite number"),
        ("paddleseg,", "keras,", r"matrix.csv line 2: 'keras' is not a known library"),
    ],
)
def test_a_matrix_of_other_columns_or_values_is_refused(tmp_path, rows, old, new, message):
    write(tmp_path, rows)
    path = tmp_path / "matrix.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        report.write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.md").exists()


def test_an_env_json_without_a_key_is_refused(tmp_path, rows):
    write(tmp_path, rows)
    (tmp_path / "env.json").write_text(json.dumps({key: value for key, value in ENV.items() if key != "threads"}))
    with pytest.raises(UserError, match=r"env.json: key 'threads' is missing"):
        report.read_matrix(tmp_path)


def test_the_newest_recorded_matrix_is_the_default(tmp_path):
    with pytest.raises(UserError, match="no matrix has been recorded"):
        report.newest(tmp_path)
    for name in ("20261120_aaaaaaa", "20261121_0000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "matrix.csv").touch()
    assert report.newest(tmp_path).name == "20261121_0000000"
