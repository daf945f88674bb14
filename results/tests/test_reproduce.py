"""Training a row again, and comparing."""

import json
import shutil
import subprocess
import sys

from common.cli import UserError
from results.experiments import read_superseded
from results.make_tables import ROOT
from results.recorded_runs import read_runs
from results.reproduce import compare_runs, find_row, main, other_machine, recipe

import pytest
from results_tree import make_env, write_run

TRAIN = """\
import argparse, shutil, sys
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--output", type=Path)
args = parser.parse_args()
assert args.config.name == "quickstart.yaml"
stored = Path("again")
(run,) = stored.iterdir()
assert args.config.read_text() == (run / "config.yaml").read_text()
shutil.copytree(stored, args.output)
"""


@pytest.fixture
def retrained(tree):
    """A tree with a recorded run, and a project whose train.py gives the run in `again`: (root, that run)."""
    write_run(tree / "results/runs/stdc_seg")
    (tree / "projects/stdc_seg/train.py").write_text(TRAIN)
    return tree, write_run(tree / "projects/stdc_seg/again")


def test_the_same_digits_are_agreement(retrained, capsys):
    root, _ = retrained
    assert main(["stdc_seg/quickstart", "--run"], root) == 0
    assert "every score and loss agrees to the digit" in capsys.readouterr().out


def test_one_other_digit_on_the_same_kind_of_machine_is_none(retrained, capsys):
    root, again = retrained
    (again / "train.csv").write_text((again / "train.csv").read_text().replace("300,1.5", "300,1.50000001"))
    assert main(["stdc_seg/quickstart", "--run"], root) == 1
    output = capsys.readouterr().out
    assert "1 values differ, the first: train.csv, step 300, loss: 1.5 then, 1.50000001 now" in output
    assert "best mIoU 60.0000 % then, 60.0000 % now (+0.0000)" in output


def test_on_another_kind_of_machine_the_difference_is_shown(retrained, capsys):
    root, again = retrained
    shutil.rmtree(again)
    write_run(again.parent, scores=(40.0, 60.25, 50.0), cpu="another")
    assert main(["stdc_seg/quickstart", "--run"], root) == 0
    output = capsys.readouterr().out
    assert "60.2500 % now (+0.2500)" in output
    assert "another kind of machine, so they may: cpu: a processor then, another now" in output


def test_a_failed_training_is_an_error(retrained):
    root, _ = retrained
    (root / "projects/stdc_seg/train.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match="training quickstart_s0_20261121_0123456 again failed"):
        main(["stdc_seg/quickstart", "--run"], root)


def test_with_the_code_of_the_runs_commit_though_it_has_changed_since(retrained, capsys):
    root, again = retrained
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it was"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    env = root / "results/runs/stdc_seg" / again.name / "env.json"
    env.write_text(json.dumps(json.loads(env.read_text()) | {"commit": commit}))
    (root / "projects/stdc_seg/train.py").write_text("raise SystemExit(3)")
    assert main(["stdc_seg/quickstart", "--run", "--at-commit"], root) == 0
    assert "every score and loss agrees to the digit" in capsys.readouterr().out
    worktrees = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(worktrees.splitlines()) == 1
    env.write_text(env.read_text().replace(commit, "f" * 40))
    with pytest.raises(UserError, match="commit f{40} cannot be checked out .*: fetch it"):
        main(["stdc_seg/quickstart", "--run", "--at-commit"], root)


def test_the_printed_commands_train_from_the_stored_config(retrained):
    """They are run as they are printed, by a shell."""
    root, again = retrained
    (run,) = read_runs(root / "results/runs")
    text = recipe(run)
    assert text.splitlines()[0] == "cd projects/stdc_seg"
    assert "OMP_NUM_THREADS=1 python train.py --config output/quickstart.yaml" in text
    text = text.replace("python", sys.executable) + " --output made"
    subprocess.run(["bash", "-ec", text], cwd=root, check=True)
    assert (root / "projects/stdc_seg/made" / again.name / "eval.csv").is_file()


def test_rows_are_found_by_each_of_their_names(tree):
    name = write_run(tree / "results/runs/stdc_seg").name
    for word in (f"stdc_seg/{name}", name, "stdc_seg/quickstart"):
        assert find_row(word, tree).row_id == f"stdc_seg/{name}"
    assert find_row("stdc_seg/stdc2_seg50", tree).runs == ()
    with pytest.raises(UserError, match=r"no row 'stdc_seg/quikstart': .*near it: stdc_seg/quickstart"):
        find_row("stdc_seg/quikstart", tree)
    write_run(tree / "results/runs/encnet_single_gpu", "encnet_single_gpu")
    with pytest.raises(UserError, match="names 2 rows"):
        find_row(name, tree)


def test_the_seed_that_is_named_is_trained(tree, capsys):
    for seed in (0, 1):
        name = write_run(tree / "results/runs/stdc_seg", seed=seed, started_utc=f"2026-11-2{seed}T00:00:00Z").name
        main([name], tree)
        assert name in capsys.readouterr().out
    main(["stdc_seg/quickstart"], tree)
    assert "quickstart_s1_" in capsys.readouterr().out
    main(["quickstart_s0_20261121_0123456"], tree)
    assert "quickstart_s0_" in capsys.readouterr().out


def test_a_row_that_was_not_run_prints_what_it_takes(tree, capsys):
    assert main(["stdc_seg/stdc2_seg50"], tree) == 0
    assert "40 GPU h expected" in capsys.readouterr().out
    with pytest.raises(UserError, match="never run"):
        main(["stdc_seg/stdc2_seg50", "--run"], tree)


def test_what_makes_a_run_hard_to_repeat_is_said(tree, capsys):
    started_from = {"backbone_weights_sha256": "ab" * 32, "finetune_sha256": "cd" * 32}
    write_run(tree / "results/runs/stdc_seg", command="train.py --resume --extend", **started_from)
    main(["stdc_seg/quickstart"], tree)
    output = capsys.readouterr().out
    assert "changed its length on the way" in output
    assert "backbone weights, SHA-256 abab" in output
    assert "trained network, SHA-256 cdcd" in output


def test_rows_that_are_missing_are_a_difference(tmp_path):
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", scores=(40.0, 60.0))
    assert "eval.csv: 3 rows then, 2 now" in compare_runs(one, other)


def test_time_is_no_score_and_versions_are_the_machine(tmp_path):
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (other / "eval.csv").write_text((other / "eval.csv").read_text().replace(",1.0\n", ",2.0\n"))
    assert compare_runs(one, other) == []
    env = make_env("p", "c", 0, ["a"])
    assert other_machine(env, env | {"seed": 3}) == []
    assert len(other_machine(env, env | {"packages": {"numpy": "9"}, "threads": "2"})) == 2


def test_a_recorded_smoke_run_is_trained_again_to_the_digit():
    """The quickest one; on another kind of machine it is only trained and compared."""
    superseded = read_superseded()
    runs = [run for run in read_runs(ROOT / "results/runs") if f"{run.project}/{run.name}" not in superseded]
    smoke = [run for run in runs if run.env["scope"] == "smoke"]
    quickest = min(smoke, key=lambda run: run.iters * run.env["trainable_parameters"])
    assert main([f"{quickest.project}/{quickest.name}", "--run"]) == 0
