"""The README's tables are those of the recorded matrices."""

import csv
from pathlib import Path

from paddleseg_benchmark import report, zoo

import pytest

README = Path(zoo.__file__).with_name("README.md").read_text(encoding="utf-8")
LIBRARIES = {
    "mmseg": "mmsegmentation",
    "smp": "segmentation_models_pytorch",
    "torchvision": "torchvision",
    "timm": "timm's HRNet",
}


def measured(folder):
    """The cells with numbers of a recorded matrix in the dynamic graph, at batch 2, with random images."""
    with open(report.RESULTS / folder / "matrix.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    wanted = {"status": "ok", "graph": "dynamic", "batch": "2", "loader": "synthetic"}
    return {
        (row["library"], row["model"], row["precision"], row["layout"]): row
        for row in rows
        if all(row[name] == value for name, value in wanted.items())
    }


@pytest.mark.parametrize("row", zoo.ROWS, ids=lambda row: row.name)
def test_the_table_of_networks_has_the_zoos_rows_and_the_recorded_numbers(row):
    cell = measured("20261121_2932593")[("paddleseg", row.name, "fp32", "NCHW")]
    words = (row.network, row.backbone, f"`{row.config}`", f"`{row.name}`", f"{int(cell['parameters']):,}")
    assert f"| {' | '.join(words)} | {float(cell['step_ms']):.0f} |\n" in README


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_table_of_peers_has_the_recorded_speed_ups(library, layout, precision):
    cells = measured("20261121_bb0bf50")
    models = list(dict.fromkeys(model for _, model, *_ in cells))
    speeds = []
    for model in models:
        cell, base = (
            cells.get(key) for key in ((library, model, precision, layout), ("paddleseg", model, "fp32", "NCHW"))
        )
        speeds.append(f"{float(cell['images_per_s']) / float(base['images_per_s']):.2f}x" if cell else "")
    assert len(models) == 5
    assert f"| {LIBRARIES[library]}, {precision} {layout} | {' | '.join(speeds)} |\n" in README


def test_losses_rise_where_the_readme_says():
    with open(report.RESULTS / "20261121_2932593" / "matrix.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rising = [row for row in rows if float(row["loss_last"]) >= float(row["loss_first"])]
    assert (len(rows), [row["model"] for row in rising]) == (39, ["decoupled_segnet_resnet50"])
    first, last = (f"{float(rising[0][name]):.2f}" for name in ("loss_first", "loss_last"))
    assert f"({first}, then {last})" in README
