import hashlib
import json
import subprocess
from pathlib import Path

from common.cli import UserError
from common.metrics import ConfusionMatrix
from common.run_log import Evaluation, RunLog, plan_scores, print_scores, run_id
from common.runs.environment import RunEnvironment, environment, git_commit
from common.runs.reading import TABLE_HEADER, read_run, table_row

import cv2
import numpy as np
import pytest

NAMES = ("road", "sky", "train")
COLUMNS = ("step", "loss")


def evaluation(right):
    """`right` of 4 road pixels found, 4 sky pixels all found, no train anywhere."""
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0] * 4 + [1] * 4), np.array([0] * right + [1] * (4 - right) + [1] * 4))
    return Evaluation(matrix, loss=0.5, images=2, seconds=1.25)


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path / "run", COLUMNS)
    log.start("seed: 0\n", {"commit": "abc"})
    for step in range(1, 5):
        log.log_train({"step": step, "loss": 1 / step})
    log.log_eval(2, "val", "ss", evaluation(2), NAMES)
    log.log_eval(4, "val", "ss", evaluation(4), NAMES)
    return log


def test_what_is_written_is_read(log):
    run = read_run(log.folder)
    assert run.config_text == "seed: 0\n"
    assert run.env == {"commit": "abc"}
    assert [(row["step"], float(row["loss"])) for row in run.train] == [("1", 1), ("2", 0.5), ("3", 1 / 3), ("4", 0.25)]
    # by hand: road 2 / 4, sky 4 / (4 + 2 false); train is absent and leaves the mean
    assert float(run.eval[0]["miou_percent"]) == pytest.approx(100 * (2 / 4 + 4 / 6) / 2, abs=1e-4)
    assert float(run.eval[0]["pixel_accuracy_percent"]) == 75
    assert run.eval[0]["absent_classes"] == "train"
    assert [row["iou_percent"] for row in run.per_class[:3]] == ["50.0000", "66.6667", "nan"]
    assert run.best()["step"] == "4"


def test_printed_are_the_classes_that_occur_and_the_first_of_the_others(capsys):
    print_scores(evaluation(2), NAMES, "ss", "val")
    assert capsys.readouterr().out.splitlines() == [
        "val: 2 images, ss",
        "  road                     IoU  50.00 %   accuracy  50.00 %",
        "  sky                      IoU  66.67 %   accuracy 100.00 %",
        "mIoU 58.33 % (over 2 of 3 classes; absent: train)  pixel accuracy 75.00 %  loss 0.5000  1.2 s",
    ]
    matrix = ConfusionMatrix(12)
    matrix.update(np.array([0, 1]), np.array([0, 1]))
    print_scores(Evaluation(matrix, 0.5, 1, 1.0), tuple("abcdefghijkl"), "ss", "val")
    assert "(over 2 of 12 classes; absent: c, d, e, f, g, h, 4 more)" in capsys.readouterr().out


def test_a_half_written_last_line_is_no_row(log):
    with open(log.folder / "train.csv", "a") as stream:
        stream.write("5,0.1")
    assert [row["step"] for row in read_run(log.folder).train] == ["1", "2", "3", "4"]
    RunLog(log.folder, COLUMNS).trim(5)
    RunLog(log.folder, COLUMNS).log_train({"step": 5, "loss": 0.2})
    assert read_run(log.folder).train[-1] == {"step": "5", "loss": "0.2"}


def test_trim_drops_what_a_resumed_run_writes_again(log):
    RunLog(log.folder, COLUMNS).trim(2)
    run = read_run(log.folder)
    assert [row["step"] for row in run.train] == ["1", "2"]
    assert [row["step"] for row in run.eval] == ["2"]
    assert {row["step"] for row in run.per_class} == {"2"}


def test_trim_to_nothing_leaves_the_headers(log):
    RunLog(log.folder, COLUMNS).trim(0)
    assert (log.folder / "train.csv").read_text() == "step,loss\n"


def test_the_curve_is_an_image(log):
    log.draw_curve("title")
    curve = cv2.imread(str(log.folder / "curve.png"))
    assert curve.shape[0] > 300
    assert curve.shape[1] > 600
    blue = (np.abs(curve.astype(int) - (180, 119, 31)).sum(2) < 30).sum()  # matplotlib's first colour, as BGR
    assert blue > 200  # the mIoU line


def test_table_row(log):
    env = {"project": "stdc_seg", "config": "quick", "dataset": "toy", "seed": 3, "scope": "smoke"}
    log.start("seed: 3\n", env)
    row = table_row(read_run(log.folder))
    assert (
        row
        == "| stdc_seg | quick | toy, val | ss | 100.00 (100.00), over 2 of 3 classes | 4 | 1 (seed 3) | smoke | run |"
    )
    assert row.count("|") == TABLE_HEADER.splitlines()[0].count("|")
    RunLog(log.folder, COLUMNS).trim(0)
    with pytest.raises(UserError, match="no evaluation"):
        table_row(read_run(log.folder))


def test_damaged_runs_are_named(log, tmp_path):
    with pytest.raises(UserError, match="nowhere is no run folder: config.yaml is missing"):
        read_run(tmp_path / "nowhere")
    (log.folder / "train.csv").write_text("step,loss\n1,2,3\n")
    with pytest.raises(UserError, match=r"train\.csv: a row has not as many cells"):
        read_run(log.folder)
    (log.folder / "env.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_run(log.folder)


def test_run_id():
    assert run_id("stdc2_seg50", 3, "0123456789", day="20261121") == "stdc2_seg50_s3_20261121_0123456"


def test_commit_and_whether_files_changed(tmp_path):
    assert git_commit(tmp_path) == ("unknown", False)

    def git(*words):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    commit, changed = git_commit(tmp_path)
    assert len(commit) == 40
    assert not changed
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == (commit, True)


def test_environment_says_what_ran_where(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/someone/train.py", "--data", "/mnt/private/camvid", "--config", "a/b.yaml"])
    env = environment(("numpy", "no-such-package"), project="p", seed=1)
    assert env["packages"] == {"numpy": np.__version__, "no-such-package": None}
    assert (env["project"], env["seed"]) == ("p", 1)
    assert env["command"] == "train.py --data camvid --config a/b.yaml"
    assert json.loads(json.dumps(env)) == env


RUNS = sorted((Path(__file__).resolve().parents[2] / "results/runs").glob("*/*/env.json"))


@pytest.mark.parametrize("path", RUNS, ids=[path.parent.name for path in RUNS])
def test_every_recorded_environment_is_read_and_written_as_it_stands(path):
    values = json.loads(path.read_text())
    written = json.loads(json.dumps(RunEnvironment.from_values(values, path).to_values()))
    empty = dict.fromkeys(written.keys() - values.keys())  # fields that came later
    assert written == values | empty


def whole_environment(**fields):
    numbers = {"seed": 3, "train_images": 8, "val_images": 2, "processes": 1, "trainable_parameters": 7}
    texts = {"project": "p", "config": "c", "scope": "smoke", "dataset": "toy", "device": "cpu"}
    more = {"class_names": NAMES, "resumed_at_step": 0, **numbers, **texts, **fields}
    return RunEnvironment.here(("numpy",), **more)


def test_the_environment_is_written_and_read_by_one_schema(tmp_path):
    seen = {"train.txt": {"entries": 8, "sha256": "ab"}, "val.txt": {"entries": 2, "sha256": "cd"}}
    env = whole_environment(data_root="data/camvid", data_lists=seen, classes_sha256="ef")
    RunLog(tmp_path).start("", env)
    values = json.loads((tmp_path / "env.json").read_text())
    assert values["data_lists"]["train.txt"] == {"entries": 8, "sha256": "ab"}
    assert values["class_names"] == list(NAMES)
    assert values["precision"] is None  # this project has no choice of it
    assert RunEnvironment.from_values(values | {"of a later version": 1}, "env.json") == env


@pytest.mark.parametrize(("key", "value"), [("seed", "3"), ("class_names", "road"), ("data_lists", [1]), ("cpu", None)])
def test_a_field_of_another_type_is_named(key, value):
    values = json.loads(json.dumps(whole_environment().to_values()))
    with pytest.raises(UserError, match=f"env.json: '{key}' is"):
        RunEnvironment.from_values(values | {key: value}, "env.json")
    values.pop("seed")
    with pytest.raises(UserError, match="'seed' is missing"):
        RunEnvironment.from_values(values, "env.json")


@pytest.mark.parametrize("left", ["", "st", "step,loss\n1,0.5\n2,0."])
def test_a_row_after_a_half_written_one_stands_in_a_line_of_its_own(left, tmp_path):
    """As a full disk or a kill leaves a table, to which eval.py then adds."""
    log = RunLog(tmp_path, ("step", "loss"))
    (tmp_path / "train.csv").write_text(left)
    log.log_train({"step": 7, "loss": 0.25})
    before = ["1,0.5"] if "1,0.5" in left else []
    assert (tmp_path / "train.csv").read_text().splitlines() == ["step,loss", *before, "7,0.25"]


def test_a_run_keeps_the_digests_of_what_it_started_from(tmp_path):
    log, weights = RunLog(tmp_path / "run"), tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    digests = log.start_digests(False, backbone_weights=None, finetune=str(weights))
    assert digests == {"backbone_weights_sha256": None, "finetune_sha256": digest}
    log.start("", digests)
    weights.unlink()
    assert RunLog(tmp_path / "run").start_digests(True, backbone_weights=None, finetune=str(weights)) == digests
    assert RunLog(tmp_path / "other").start_digests(True, finetune="w") == {"finetune_sha256": None}
    (tmp_path / "run" / "env.json").write_text("[1]")
    assert RunLog(tmp_path / "run").start_digests(True, finetune="w") == {"finetune_sha256": None}


@pytest.fixture
def finished(log):
    """A run of 4 steps that has come to its end, best at step 4, with that checkpoint."""
    (log.folder / "config.yaml").write_text("train: {iters: 4}\n")
    (log.folder / "best.safetensors").write_bytes(b"weights")
    return log.folder


def test_the_test_score_joins_the_run_with_its_checkpoint(finished, capsys):
    before = read_run(finished)
    scores = plan_scores(finished / "best.safetensors", 4, "test", None, "ss")
    scores.write("ss", evaluation(3), NAMES)
    run = read_run(finished)
    assert f"written: {finished}/eval.csv" in capsys.readouterr().out
    assert run.validations == before.eval
    (row,) = run.eval[2:]
    assert (row["split"], row["step"], row["checkpoint"]) == ("test", "4", "best.safetensors")
    assert row["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert float(row["miou_percent"]) == pytest.approx(100 * (3 / 4 + 4 / 5) / 2, abs=1e-4)
    assert [(r["split"], r["class_name"]) for r in run.per_class[6:]] == [("test", name) for name in NAMES]
    assert run.best()["step"] == "4"  # though 77.5 % is more than nothing: test chooses nothing
    with pytest.raises(UserError, match="eval.csv.*test score already.*--output"):
        plan_scores(finished / "best.safetensors", 4, "test", None, "ss")


def test_a_test_score_never_makes_a_checkpoint_the_best(finished):
    RunLog(finished).log_eval(6, "val", "ss", evaluation(1), NAMES)  # step 4 has 100 %
    RunLog(finished).log_test(2, "ss", evaluation(4), NAMES, finished / "best.safetensors")
    run = read_run(finished)
    assert run.best()["step"] == "4"
    run.env.update(dict.fromkeys(("project", "config", "dataset", "seed", "scope"), "x"))
    last = run.validations[-1]
    assert (last["step"], last["split"]) == ("6", "val")
    assert f"x, val | ss | 100.00 ({float(last['miou_percent']):.2f}), over 2 of 3 classes | 6 |" in table_row(run)


@pytest.mark.parametrize(
    ("step", "text", "message"),
    [(2, "train: {iters: 4}", "best.safetensors: of step 2.*step 4"), (4, "train: {iters: 9}", "at step 4 of 9")],
)
def test_test_is_not_measured_with_another_checkpoint_or_before_the_end(finished, step, text, message):
    (finished / "config.yaml").write_text(text)
    before = (finished / "eval.csv").read_bytes()
    with pytest.raises(UserError, match=message):
        plan_scores(finished / "best.safetensors", step, "test", None, "ss")
    assert (finished / "eval.csv").read_bytes() == before
    elsewhere = plan_scores(finished / "best.safetensors", step, "test", finished / "out", "ss")
    assert (elsewhere.folder, elsewhere.in_run) == (finished / "out", False)


def test_other_splits_and_weights_without_a_run_are_scored_beside(finished, tmp_path):
    assert plan_scores(finished / "best.safetensors", 2, "val", None, "flip").folder == finished / "eval_val_flip"
    assert plan_scores(tmp_path / "w.safetensors", 2, "test", None, "ss").folder == tmp_path / "eval_test_ss"


def old_tables(folder):
    """eval.csv as versions before the test split wrote it."""
    path = folder / "eval.csv"
    lines = path.read_text().splitlines()
    path.write_text(
        "".join(line.removesuffix(",checkpoint,checkpoint_sha256").removesuffix(",,") + "\n" for line in lines)
    )
    assert "checkpoint" not in path.read_text()


def test_files_of_older_versions_are_continued(finished):
    old_tables(finished)
    RunLog(finished, COLUMNS).trim(2)
    assert [row["step"] for row in read_run(finished).eval] == ["2"]
    old_tables(finished)
    RunLog(finished, COLUMNS).log_eval(4, "val", "ss", evaluation(4), NAMES)
    run = read_run(finished)
    assert [(row["step"], row["checkpoint"]) for row in run.eval] == [("2", ""), ("4", "")]
    old_tables(finished)
    plan_scores(finished / "best.safetensors", 4, "test", None, "ss").write("ss", evaluation(3), NAMES)
    assert [row["checkpoint"] for row in read_run(finished).eval] == ["", "", "best.safetensors"]


def test_what_a_killed_call_left_of_a_test_score_is_dropped(finished):
    with open(finished / "per_class.csv", "a") as stream:
        stream.write("4,test,0,road,1.0,1.0,1.0\n")
    plan_scores(finished / "best.safetensors", 4, "test", None, "ss").write("ss", evaluation(3), NAMES)
    rows = read_run(finished).per_class
    assert [row["split"] for row in rows] == ["val"] * 6 + ["test"] * 3
    assert rows[6]["iou_percent"] == "75.0000"
