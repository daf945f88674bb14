"""Taking a run in."""

import hashlib
import json
import subprocess

from common.cli import UserError
from results.record import record
from results.recorded_runs import RUN_FILES, read_recorded

import pytest
from results_tree import add_test_score, write_evaluations, write_run


@pytest.fixture
def repository(tree):
    """A git repository with one commit; returns its root and the commit."""
    (tree / "projects/stdc_seg/x").write_text("x")
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    subprocess.run(["git", "add", "."], cwd=tree, check=True)
    subprocess.run(["git", *identity, "commit", "-q", "-m", "x"], cwd=tree, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    return tree, commit.stdout.strip()


@pytest.fixture
def finished(repository, tmp_path):
    """A finished run of that commit, in an output folder, with weights beside it."""
    root, commit = repository
    folder = write_run(tmp_path / "output", commit=commit)
    named = folder.with_name(folder.name[:-7] + commit[:7])
    folder.rename(named)
    (named / "best.safetensors").write_text("weights")
    return root, named


def test_the_files_are_copied_without_the_weights(finished):
    root, folder = finished
    write_evaluations(folder / "eval_val_flip", [200], [62.5], "ss, flip")
    target = record(folder, root)
    assert target == root / "results/runs/stdc_seg" / folder.name
    names = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert names == sorted([*RUN_FILES, "eval_val_flip/eval.csv", "eval_val_flip/per_class.csv"])
    assert all((target / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert record(folder, root) == target  # again: nothing happens


def test_where_the_data_lay_on_the_machine_of_training_is_not_published(finished):
    root, folder = finished
    set_env(folder, data_root="/home/somebody/data/camvid")
    target = record(folder, root)
    assert json.loads((target / "env.json").read_text())["data_root"] == "camvid"
    assert json.loads((folder / "env.json").read_text())["data_root"] == "/home/somebody/data/camvid"  # to resume
    assert record(folder, root) == target
    add_test_score(folder, 200, 61.0)
    record(folder, root)
    assert json.loads((target / "env.json").read_text())["data_root"] == "camvid"


def test_a_recorded_run_is_never_changed(finished):
    root, folder = finished
    target = record(folder, root)
    before = (target / "train.csv").read_text()
    (folder / "train.csv").write_text(before.replace("1.5", "1.6"))
    with pytest.raises(UserError, match="recorded already and holds something else"):
        record(folder, root)
    assert (target / "train.csv").read_text() == before


def set_env(folder, **values):
    env = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps(env | values))


def test_changed_code_is_refused_unless_told(finished):
    root, folder = finished
    set_env(folder, commit_changed=True)
    with pytest.raises(UserError, match="differed from its commit"):
        record(folder, root)
    assert record(folder, root, unknown_code=True).is_dir()


def test_an_unknown_commit_is_refused_unless_told(finished):
    root, folder = finished
    commit = json.loads((folder / "env.json").read_text())["commit"]
    set_env(folder, commit=commit[:7] + "0" * 33)
    with pytest.raises(UserError, match="is not in this repository"):
        record(folder, root)
    assert record(folder, root, unknown_code=True).is_dir()


def test_a_run_that_has_not_come_to_its_end_is_refused(finished):
    root, folder = finished
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("iters: 300", "iters: 400"))
    with pytest.raises(UserError, match="at step 300 of 400: finish it"):
        record(folder, root)
    assert list((root / "results/runs").glob("*/*")) == []


def test_an_empty_cell_of_the_log_is_named(finished):
    root, folder = finished
    (folder / "train.csv").write_text((folder / "train.csv").read_text().replace("200,1.5", "200,"))
    with pytest.raises(UserError, match=r"train.csv, row 3: loss is missing"):
        record(folder, root)


def test_a_run_under_another_name_is_refused(finished):
    root, folder = finished
    set_env(folder, seed=1)
    with pytest.raises(UserError, match="by its env.json this run is called quickstart_s1_"):
        record(folder, root)
    set_env(folder, seed=0)
    assert record(folder.rename(folder.with_name(folder.name + "_2")), root).name.endswith("_2")


def test_an_unknown_project_is_refused(finished):
    root, folder = finished
    set_env(folder, project="nothing")
    with pytest.raises(UserError, match="there is no project 'nothing'"):
        record(folder, root)


def test_the_test_score_is_taken_along(finished):
    root, folder = finished
    add_test_score(folder, 200, 55.5)  # val: 40, 60, 50, so step 200 was best
    run = read_recorded(record(folder, root))
    assert [series.split for series in run.series] == ["val"]
    assert (run.test.split, run.test.best.step, run.test.best.miou_percent) == ("test", 200, 55.5)
    assert run.checkpoint_sha256 == hashlib.sha256(b"weights").hexdigest()


def test_a_test_score_is_added_to_a_recorded_run_and_nothing_else(finished):
    root, folder = finished
    target = record(folder, root)
    before = {name: (target / name).read_bytes() for name in ("train.csv", "env.json", "curve.png")}
    add_test_score(folder, 200, 55.5)
    assert record(folder, root) == target
    assert read_recorded(target).test.best.miou_percent == 55.5
    assert all((target / name).read_bytes() == data for name, data in before.items())
    (folder / "train.csv").write_text((folder / "train.csv").read_text().replace("1.5", "1.6"))
    with pytest.raises(UserError, match="recorded already"):
        record(folder, root)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([(100, 55.5)], "test was measured at step 100, but val was best at step 200"),
        ([(200, 55.5), (200, 55.5)], "2 test rows"),
        ([(200, 55.5), (300, 54.0)], "2 test rows"),
    ],
)
def test_a_test_score_of_another_checkpoint_and_a_second_one_are_refused(finished, scores, message):
    root, folder = finished
    for step, score in scores:
        add_test_score(folder, step, score)
    with pytest.raises(UserError, match=message):
        record(folder, root)


def test_a_test_score_of_other_weights_than_these_is_refused(finished):
    root, folder = finished
    add_test_score(folder, 200, 55.5, checkpoint=b"other weights")
    with pytest.raises(UserError, match=r"best\.safetensors: is not the checkpoint of the test score"):
        record(folder, root)


def test_a_test_score_without_its_checkpoint_or_in_a_folder_of_its_own_is_refused(finished):
    root, folder = finished
    write_evaluations(folder / "eval_test_ss", [200], [55.5], split="test")
    with pytest.raises(UserError, match="eval_test_ss.*own eval.csv"):
        record(folder, root)
    for name in ("eval.csv", "per_class.csv"):
        rows = (folder / "eval_test_ss" / name).read_text().split("\n", 1)[1]
        (folder / name).write_text((folder / name).read_text() + rows)
    with pytest.raises(UserError, match="does not say its checkpoint"):
        read_recorded(folder)


def test_a_run_that_saw_two_data_sets_is_refused(finished):
    root, folder = finished
    text = (folder / "eval.csv").read_text()
    (folder / "eval.csv").write_text(text.replace('300,val,"ss, whole image",50,', '300,val,"ss, whole image",49,'))
    assert text != (folder / "eval.csv").read_text()
    with pytest.raises(UserError, match="step 300: 49 images, but env.json says 50: the run saw two data sets"):
        record(folder, root)


def test_lists_of_other_lengths_than_the_images_are_two_data_sets(finished):
    root, folder = finished
    lists = {"train.txt": {"entries": 200, "sha256": "ab"}, "val.txt": {"entries": 49, "sha256": "cd"}}
    set_env(folder, data_lists=lists)
    with pytest.raises(UserError, match=r"val_images is 50, but its lists have \[200, 49\] entries.*two data sets"):
        record(folder, root)
    lists["val.txt"]["entries"] = 50
    set_env(folder, data_lists=lists)
    assert record(folder, root).is_dir()
