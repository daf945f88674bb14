"""Headers of weight files: what fits a dataclass is read, anything else is one line."""

import dataclasses
import json

from common.cli import UserError
from common.weights.header import header_from_json, require_classes

import pytest


@dataclasses.dataclass(frozen=True)
class Header:
    """What the cases below fill."""

    step: int
    share: float
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None = None


WHOLE = {"step": 3, "share": 0.5, "class_names": ["a", "b"], "palette": [[0, 0, 0], [255, 1, 2]]}


def test_lists_become_tuples_and_what_is_missing_its_default():
    header = header_from_json(Header, json.dumps(WHOLE), "w")
    assert header == Header(3, 0.5, ("a", "b"), ((0, 0, 0), (255, 1, 2)))
    without = {name: value for name, value in WHOLE.items() if name != "palette"}
    assert header_from_json(Header, json.dumps(without), "w").palette is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "'step' is -1"),
        ({"step": 1.0}, "'step' is 1.0"),
        ({"share": "1"}, "'share' is"),
        ({"class_names": []}, "'class_names' is"),
        ({"class_names": ["a", 2]}, "'class_names' is"),
        ({"palette": [[0, 0, 0]]}, "'palette' is not one RGB for each of 'class_names'"),
        ({"palette": [[0, 0, 0], [256, 0, 0]]}, "'palette' is not one RGB for each of 'class_names'"),
        ({"palette": [[0, 0], [1, 1]]}, "'palette' is"),
        ({"palette": [[0, 0, 0], [-1, 0, 0]]}, "'palette' is"),
        ({"more": 1}, r"holds \['more'\], which is not known"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    with pytest.raises(UserError, match=message) as error:
        header_from_json(Header, json.dumps({**WHOLE, **change}), "w.safetensors")
    assert str(error.value).startswith("w.safetensors: ")


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000, "[1]", '{"step": 3}'])
def test_what_is_no_header_is_one_line(text):
    with pytest.raises(UserError, match=r"w: its header (is damaged|holds)"):
        header_from_json(Header, text, "w")


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        ("abc", "abd", r"made for 3 classes \(a, b, c\), the data has 3 \(a, b, d\): use weights and data"),
        ("abcde", "ab", r"5 classes \(a, b, c, \.\.\.\), the data has 2 \(a, b\): use weights and data"),
        ("ab", "ba", "the same names in another order"),
        ("zab", "ab", "the checkpoint has 'z' before them"),
        ("ab", "zab", "the data has 'z' before them"),
        ("abz", "ab", "the data has 2 .*: use weights and data"),
    ],
)
def test_other_classes_are_named(stored, wanted, message):
    require_classes("w", tuple(stored), tuple(stored))
    with pytest.raises(UserError, match=message):
        require_classes("w", tuple(stored), tuple(wanted))
