"""A network of other classes takes what does not depend on them, and nothing of another network."""

from common.cli import UserError
from common.weights.finetune import summary, tensors_to_take

import pytest

STORED = {"backbone.weight": (8, 3, 3, 3), "steps": (), "head.weight": (19, 8, 1, 1), "head.bias": (19,)}
WANTED = {"backbone.weight": (8, 3, 3, 3), "steps": (), "head.weight": (3, 8, 1, 1), "head.bias": (3,)}


def test_what_has_the_number_of_classes_in_its_shape_begins_anew():
    taken = tensors_to_take("w", STORED, WANTED, 19, 3)
    assert taken == ["backbone.weight", "steps"]
    assert summary("w", WANTED, taken) == "w: loaded 2 of 4 tensors; begin anew: head.weight, head.bias"


def test_a_multiple_of_the_number_of_classes_is_one_too():
    """DUpsampling gives each class scale x scale values."""
    stored, wanted = {"up.weight": (19 * 16, 64)}, {"up.weight": (3 * 16, 64)}
    assert tensors_to_take("w", stored | STORED, wanted | WANTED, 19, 3) == ["backbone.weight", "steps"]


def test_of_the_same_number_of_classes_all_is_taken():
    taken = tensors_to_take("w", STORED, STORED, 19, 19)
    assert taken == list(STORED)
    assert summary("w", STORED, taken) == "w: loaded 4 of 4 tensors"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"backbone.weight": (16, 3, 3, 3)}, "backbone.weight"),  # a wider backbone
        ({"head.weight": (3, 16, 1, 1)}, "head.weight"),  # the classes, and something else
        ({"head.weight": (4, 8, 1, 1)}, "head.weight"),
        ({"head.weight": (3, 8)}, "head.weight"),
        ({"head.weight": None}, "head.weight"),
        ({"aux.weight": (3, 8, 1, 1)}, "aux.weight"),
    ],
)
def test_another_network_is_named(change, named):
    wanted = {name: shape for name, shape in (WANTED | change).items() if shape is not None}
    with pytest.raises(UserError, match=rf"w: of another network \({named}"):
        tensors_to_take("w", STORED, wanted, 19, 3)
