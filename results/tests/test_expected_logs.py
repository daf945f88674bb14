"""Published logs: each row names a recipe of ours, its source and numbers; several rows' curves in one image."""

from common.cli import UserError
from results.curve_drawing import curve_spec, draw_all, overlay_spec
from results.expected_logs import COLUMNS, read_expected
from results.experiments import Overlay, read_experiments
from results.recorded_runs import read_recorded
from results.table_rows import make_rows

import cv2
import numpy as np
import pytest
from results_tree import add_test_score, write_run

HEAD = ",".join(COLUMNS)


def test_every_log_is_of_a_recipe_of_ours_and_has_a_source():
    found = read_expected()
    assert found.keys() <= read_experiments().keys()
    glore = found["semsegpaddle_glore", "pspnet_res101_cityscapes"]
    assert glore.in_words.startswith("loss 0.312 at 1,000; ")
    assert "dmlc/web-data at cb075e9" in glore.where


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,b,code,0.5,,,,", "row 2: a cell, the code or the source is missing"),
        ("a,b,code,half,,,,x", "row 2: a loss is not a number"),
        ("a,b,code,0.5,,,,x\na,b,code,0.4,,,,x", "row 3: a/b is there twice"),
    ],
)
def test_a_row_that_cannot_be_right_is_refused(tmp_path, row, message):
    path = tmp_path / "logs.csv"
    path.write_text(f"{HEAD}\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_expected(path)


def test_seeds_have_thin_lines_a_mean_and_their_test_scores(tmp_path):
    folders = [write_run(tmp_path, seed=seed, scores=(40.0, 60.0 + seed)) for seed in (0, 1)]
    add_test_score(folders[0], 200, 55.0)
    (row,) = make_rows([read_recorded(folder) for folder in folders], {}, ())
    spec = curve_spec(row)
    assert [line["miou_percent"] for line in spec["lines"]] == [[40.0, 61.0], [40.0, 60.0]]
    assert [line["test"] for line in spec["lines"]] == [None, [200, 55.0]]
    assert spec["mean"]
    untested = [{**line, "test": None} for line in spec["lines"]]
    shown = draw_all([spec, {**spec, "mean": False}, {**spec, "mean": False, "lines": untested}])
    images = [cv2.imdecode(np.frombuffer(png, np.uint8), 1).astype(int) for png in shown]
    assert np.abs(images[0] - images[1]).max() > 100  # the mean is drawn
    assert np.abs(images[1] - images[2]).max() > 100  # and so is the test score


def test_rows_of_two_projects_are_drawn_together_once_both_are_there(tmp_path):
    pair = Overlay("pair", "one network", ("stdc_seg/x", "encnet_single_gpu/x"))
    first = read_recorded(write_run(tmp_path / "a", config="x", scope="reduced"))
    second = read_recorded(write_run(tmp_path / "b", "encnet_single_gpu", config="x", scope="reduced"))
    assert overlay_spec(pair, make_rows([first], {}, ())) is None
    spec = overlay_spec(pair, make_rows([first, second], {}, ()))
    assert [line["label"].partition(":")[0] for line in spec["lines"]] == [
        "stdc_seg, seed 0",
        "encnet_single_gpu, seed 0",
    ]
    assert spec["title"] == "one network"
