"""What is refused as a run."""

import json

from common.cli import UserError
from results.make_tables import ROOT
from results.recorded_runs import ENV_KEYS, RUN_FILES, read_recorded, read_runs

import pytest
from results_tree import write_evaluations, write_run


def test_scores_are_read_to_the_digit(tmp_path):
    run = read_recorded(write_run(tmp_path, scores=(40.0, 61.2345, 50.0)))
    (series,) = run.series
    assert (series.best.step, series.best.miou_percent, series.last.miou_percent) == (200, 61.2345, 50.0)
    assert series.best.class_iou_percent[:3] == (61.2345, 62.2345, 60.2345)
    assert series.best.class_iou_percent[3] != series.best.class_iou_percent[3]  # nan: nowhere
    assert run.iters == 300


def test_other_protocols_of_eval_py_are_series_of_their_own(tmp_path):
    folder = write_run(tmp_path)
    write_evaluations(folder / "eval_val_flip", [200], [62.5], "ss, flip")
    write_evaluations(folder / "eval_val_ss", [200], [60.004])  # the same again, but for the last digits
    run = read_recorded(folder)
    assert [(s.protocol, s.best.miou_percent) for s in run.series] == [("ss, whole image", 60.0), ("ss, flip", 62.5)]
    write_evaluations(folder / "eval_val_ss", [200], [61.0])
    with pytest.raises(UserError, match=r"mIoU 61.0, but 60.0 in the run"):
        read_recorded(folder)


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_missing_or_empty_file_is_named(tmp_path, name):
    folder = write_run(tmp_path)
    (folder / name).write_text("")
    with pytest.raises(UserError, match=f"{name} is missing or empty"):
        read_recorded(folder)


@pytest.mark.parametrize("key", ENV_KEYS)
def test_an_empty_field_is_named(tmp_path, key):
    folder = write_run(tmp_path)
    env = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps(env | {key: None}))
    with pytest.raises(UserError, match=f"empty or missing: {key}"):
        read_recorded(folder)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("eval.csv", "60.0000", "60.9000", "mIoU 60.9 is not the mean"),
        ("eval.csv", "60.0000", "", "row 3: miou_percent"),
        ("eval.csv", "step,split", "step,part", "the columns must be"),
        ("eval.csv", "200,val", "100,val", "per_class.csv, step 100: the rows are not those of eval.csv"),
        ("per_class.csv", "car", "cat", "the classes are not those of env.json"),
        ("per_class.csv", "60.0000", "x", "could not convert"),
        ("env.json", '"smoke"', '"enormous"', "scope is 'enormous'"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path, file, old, new, message):
    folder = write_run(tmp_path)
    change(folder / file, old, new)
    with pytest.raises(UserError, match=message):
        read_recorded(folder)


def test_every_committed_run_is_sound():
    runs = read_runs(ROOT / "results" / "runs")
    assert len(runs) >= 6
    assert all(run.folder.parent.name == run.project for run in runs)
