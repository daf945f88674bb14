"""Weights are not fed images of another normalisation."""

from hashlib import sha256

from common.cli import UserError
from common.weights.card import card_of, require_same_input

import pytest

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_card(folder, text):
    weights = folder / "resnet50.pdparams"
    card_of(weights).write_text(text)
    assert card_of(weights).name == "resnet50.pdparams.card.yaml"
    return weights


def test_the_same_statistics_pass_and_so_does_a_file_without_card(tmp_path):
    weights = write_card(tmp_path, f"arch: resnet50\ninput:\n  mean: {list(MEAN)}\n  std: {list(STD)}\n")
    require_same_input(weights, MEAN, STD)
    require_same_input(weights, (0.48500001, *MEAN[1:]), STD)
    require_same_input(tmp_path / "other.pdparams", (0.5,) * 3, STD)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (
            (0.5, 0.5, 0.5),
            STD,
            r"card\.yaml\): trained with mean \[0.485, 0.456, 0.406\], .*: set its data.mean to",
        ),
        (MEAN, (1.0, 1.0, 1.0), r"the experiment has \[1.0, 1.0, 1.0\]: set its data\.std to \[0.229, 0.224, 0.225\]"),
    ],
)
def test_other_statistics_stop_with_the_words_to_add(tmp_path, mean, std, message):
    weights = write_card(tmp_path, f"input: {{mean: {list(MEAN)}, std: {list(STD)}}}\n")
    with pytest.raises(UserError, match=message):
        require_same_input(weights, mean, std)


@pytest.mark.parametrize(
    "text", ["", "[]", "input: 3", "input: {mean: [a, b, c]}", "input: {mean: [1, 2, 3]}", "a: [", "a: 1\na: 2"]
)
def test_what_is_no_card_is_named(tmp_path, text):
    with pytest.raises(UserError, match="resnet50.pdparams.card.yaml"):
        require_same_input(write_card(tmp_path, text), MEAN, STD)


def test_another_file_under_the_same_name_is_refused(tmp_path):
    digest = sha256(b"weights").hexdigest()
    text = f"input: {{mean: {list(MEAN)}, std: {list(STD)}}}\nfiles: {{resnet50.pdparams: {digest}}}\n"
    weights = write_card(tmp_path, text)
    weights.write_bytes(b"weights")
    require_same_input(weights, MEAN, STD)
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match=r"not the file that resnet50\.pdparams\.card\.yaml describes"):
        require_same_input(weights, MEAN, STD)
