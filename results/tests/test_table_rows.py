"""Which runs share a row, and what may be compared."""

import dataclasses

from results.experiments import Experiment, PaperKey, ReferenceEntry
from results.paper_numbers import COLUMNS
from results.recorded_runs import read_recorded
from results.table_rows import headlines, make_rows

import pytest
from results_tree import PROTOCOL, add_test_score, write_evaluations, write_run

PAPER = dict.fromkeys(COLUMNS, "x") | {
    "model": "Net",
    "dataset": "Data",
    "split": "val",
    "metric": "mIoU",
    "value": "70.5",
    "pretrained": "none",
    "source": "the paper",
}
REFERENCE = ReferenceEntry("paper", PaperKey("Net", "Data", "val", 70.5), measured_as=PROTOCOL)
EXPERIMENT = Experiment(
    project="stdc_seg",
    config="quickstart",
    model="Net",
    data="Data",
    protocol=PROTOCOL,
    command="train",
    needs="a GPU",
    references=(REFERENCE,),
    iters=300,
    gpu_hours=2.0,
    hours_source="guess",
)


def rows_of(*folders, experiment=None, numbers=(PAPER,)):
    experiments = {(experiment.project, experiment.config): experiment} if experiment else {}
    return make_rows([read_recorded(folder) for folder in folders], experiments, numbers)


def test_seeds_share_a_row_with_mean_and_sample_deviation(tmp_path):
    runs = [write_run(tmp_path, seed=seed, scores=(10.0, score, 20.0)) for seed, score in enumerate((60, 63, 66))]
    (row,) = rows_of(*runs)
    assert (row.best.mean, row.best.std, row.best.count) == (63.0, 3.0, 3)
    assert str(row.best) == "63.00 ± 3.00"
    assert str(row.last) == "20.00 ± 0.00"
    assert row.seeds == "3 seeds (0, 1, 2)"


def test_one_seed_has_no_deviation(tmp_path):
    (row,) = rows_of(write_run(tmp_path))
    assert (str(row.best), str(row.last), row.seeds) == ("60.00", "50.00", "1 seed (0)")


def test_a_seed_that_ran_twice_is_not_counted_twice(tmp_path):
    old = write_run(tmp_path, scores=(50.0,), day="20261120", started_utc="2026-11-20T00:00:00Z")
    new = write_run(tmp_path, scores=(60.0,))
    rows = rows_of(old, new)
    assert sorted((row.best.mean, row.best.count) for row in rows) == [(50.0, 1), (60.0, 1)]
    assert len({row.row_id for row in rows}) == 2


def test_another_config_text_is_another_row(tmp_path):
    first = write_run(tmp_path, seed=0)
    second = write_run(tmp_path, seed=1)
    text = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(text.replace("name: net", "name: other"))
    assert [row.model for row in sorted(rows_of(first, second), key=lambda row: row.model)] == ["net", "other"]


def test_other_protocols_get_rows_of_their_own(tmp_path):
    folder = write_run(tmp_path)
    write_evaluations(folder / "eval_val_flip", [200], [62.5], "ss, flip")
    rows = rows_of(folder)
    assert [(row.protocol, row.best.mean) for row in rows] == [(PROTOCOL, 60.0), ("ss, flip", 62.5)]
    assert rows[1].row_id == f"stdc_seg/{folder.name}~val, ss, flip"
    assert rows[1].file_stem != rows[0].file_stem


FULL = "ours by the published recipe"


def test_a_full_run_has_a_difference(tmp_path):
    (row,) = rows_of(write_run(tmp_path, scope="full"), experiment=EXPERIMENT)
    (comparison,) = row.comparisons
    assert comparison.delta == pytest.approx(-10.5)
    assert row.comparison_text == (f"-10.50 ({FULL}; one seed of ours)",)


def test_a_small_difference_of_one_seed_is_called_none(tmp_path):
    runs = [write_run(tmp_path, seed=seed, scope="full", scores=(40.0, 70.1, 50.0)) for seed in (0, 1)]
    (text,) = rows_of(runs[0], experiment=EXPERIMENT)[0].comparison_text
    assert text.startswith(f"-0.40 ({FULL}; one seed of ours, and seeds differ")
    assert text.endswith("no difference)")
    assert rows_of(*runs, experiment=EXPERIMENT)[0].comparison_text == (f"-0.40 ({FULL})",)


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ({"scope": "reduced"}, "ours by a recipe of our own; one seed of ours"),
        (
            {"scope": "full", "scores": (60.0,)},
            "ours by the published recipe, cut to 100 of 300 steps; one seed of ours",
        ),
        (
            {"scope": "full", "finetune_sha256": "ab" * 32},
            f"{FULL}; ours starts from a trained network; one seed of ours",
        ),
    ],
)
def test_a_difference_says_whose_recipe_it_is(tmp_path, run, text):
    row = rows_of(write_run(tmp_path, **run), experiment=EXPERIMENT)[0]
    assert row.comparison_text == (f"-10.50 ({text})",)


def test_a_config_that_is_a_recipe_of_our_own_is_reduced_whatever_the_run_says(tmp_path):
    own = dataclasses.replace(EXPERIMENT, scope="reduced", iters=0)
    (row,) = rows_of(write_run(tmp_path, scope="full"), experiment=own)
    assert (row.scope, row.recipe) == ("reduced", "a recipe of our own")


@pytest.mark.parametrize(
    ("run", "reference", "why"),
    [
        ({"scope": "full", "protocol": "ms"}, {}, f"measured as '{PROTOCOL}' there"),
        ({"scope": "full"}, {"measured_as": None, "why": "another crop"}, "another crop"),
        ({"scope": "smoke"}, {}, "toy data"),
    ],
)
def test_what_is_not_comparable_says_why(tmp_path, run, reference, why):
    experiment = dataclasses.replace(EXPERIMENT, references=(dataclasses.replace(REFERENCE, **reference),))
    row = rows_of(write_run(tmp_path, **run), experiment=experiment)[0]
    (comparison,) = row.comparisons
    assert comparison.delta is None
    assert row.comparison_text == (f"not comparable: {why}",)


def test_a_number_of_the_test_split_is_compared_with_the_test_score_alone(tmp_path):
    reference = dataclasses.replace(REFERENCE, find=PaperKey("Net", "Data", "test", 70.5))
    experiment = dataclasses.replace(EXPERIMENT, references=(reference,))
    folder = write_run(tmp_path, scope="full")
    (row,) = rows_of(folder, experiment=experiment, numbers=(PAPER | {"split": "test"},))
    assert row.comparison_text == ("not comparable: test split there, where ours was not measured",)
    add_test_score(folder, 200, 55.0)
    (row,) = rows_of(folder, experiment=experiment, numbers=(PAPER | {"split": "test"},))
    assert (str(row.best), str(row.test)) == ("60.00", "55.00")
    assert row.comparison_text == (f"-15.50 ({FULL}; one seed of ours)",)


def test_test_scores_of_seeds_have_mean_and_deviation_and_stand_in_the_row_of_their_protocol(tmp_path):
    runs = [write_run(tmp_path, seed=seed) for seed in range(3)]
    for folder, score in zip(runs, (50.0, 52.0, 57.0), strict=True):
        add_test_score(folder, 200, score)
    (row,) = rows_of(*runs)
    assert str(row.test) == "53.00 ± 3.61"  # by hand: deviations -3, -1, 4; sqrt(26 / 2)
    other = write_run(tmp_path, config="other")
    write_evaluations(other / "eval_val_flip", [200], [62.5], "ss, flip")
    add_test_score(other, 200, 51.0, protocol="ss, flip")
    assert {row.protocol: str(row.test) for row in rows_of(other)} == {PROTOCOL: "None", "ss, flip": "51.00"}


def test_a_superseded_run_stands_in_a_row_of_its_own(tmp_path):
    old, new = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)
    rows = make_rows([read_recorded(old), read_recorded(new)], {}, (), {f"stdc_seg/{old.name}": "a fault"})
    assert sorted((row.kind, row.superseded, row.best.count) for row in rows) == [
        ("superseded", "a fault", 1),
        ("toy", "", 1),
    ]


def test_notes_stand_beside_a_difference(tmp_path):
    paper = PAPER | {"pretrained": "ImageNet", "source": "paper (from memory, unverified)"}
    (row,) = rows_of(write_run(tmp_path, scope="full"), experiment=EXPERIMENT, numbers=(paper,))
    assert row.comparison_text == (
        f"-10.50 ({FULL}; ours without ImageNet weights; theirs from memory, unverified; one seed of ours)",
    )


def test_what_was_not_run_says_so_until_a_full_run_is_there(tmp_path):
    (row,) = rows_of(experiment=EXPERIMENT)
    assert (row.best, row.runs, row.hours, row.needs) == (None, (), "2 GPU h", "a GPU")
    smoke = write_run(tmp_path / "a")
    assert [len(row.runs) for row in rows_of(smoke, experiment=EXPERIMENT)] == [1, 0]
    cut_short = write_run(tmp_path / "b", scope="full", scores=(60.0,))
    assert [(row.scope, len(row.runs)) for row in rows_of(cut_short, experiment=EXPERIMENT)] == [
        ("reduced", 1),
        ("full", 0),
    ]
    other_protocol = write_run(tmp_path / "c", scope="full", protocol="ms")
    assert [len(row.runs) for row in rows_of(other_protocol, experiment=EXPERIMENT)] == [1, 0]
    full = write_run(tmp_path / "d", scope="full")
    assert [len(row.runs) for row in rows_of(full, experiment=EXPERIMENT)] == [1]


def test_toy_data_is_called_so(tmp_path):
    rows = rows_of(write_run(tmp_path / "a"), write_run(tmp_path / "b", config="other", dataset="ade20k"))
    assert [row.data for row in rows] == ["toy data (ade20k)", "toy data"]
    assert rows[0].comparison_text == ("not comparable: toy data",)


def test_headlines_are_measured_on_photographs_full_ones_first(tmp_path):
    smoke = write_run(tmp_path / "a", config="small", scores=(90.0,))
    low = write_run(tmp_path / "b", config="low", scope="reduced", scores=(40.0,))
    high = write_run(tmp_path / "c", config="high", scope="reduced", scores=(50.0,))
    full = write_run(tmp_path / "d", project="encnet_single_gpu", config="full", scope="full", scores=(10.0,))
    rows = rows_of(smoke, low, high, full, experiment=EXPERIMENT)
    assert [row.config for row in headlines(rows)] == ["full", "high", "low"]
    assert [row.config for row in headlines(rows, most=1)] == ["full"]
