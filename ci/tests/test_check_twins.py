"""Functions that must be equal in two projects, and the marks that say so."""

import check_twins
import pytest

ONE = """
# twin: paper_b/loop.py
@decorated
def step(model, rate):
    \"\"\"Of {project}.\"\"\"
    from {project} import losses
    total = losses.sum(model)
    total.backward()
    return total * rate  # a comment
"""


def problems(root, **files):
    for name, text in files.items():
        path = root / "projects" / f"{name}/loop.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    functions = check_twins.read_projects(root)
    return check_twins.problems(functions), check_twins.pairs(functions)


def text_of(project, other, mark="# twin: {other}/loop.py"):
    lines = ONE.replace("# twin: paper_b/loop.py\n", f"{mark}\n" if mark else "")
    return lines.replace("{project}", project).replace("{other}", other)


def test_twins_are_equal_but_for_their_projects_names_and_words_for_people(tmp_path):
    second = text_of("paper_b", "paper_a").replace("a comment", "another").replace("Of paper_b", "Something else")
    assert problems(tmp_path, paper_a=text_of("paper_a", "paper_b"), paper_b=second) == ([], 1)


def test_a_twin_that_drifted_is_named(tmp_path):
    second = text_of("paper_b", "paper_a").replace("total * rate", "total / rate")
    (line,), _ = problems(tmp_path, paper_a=text_of("paper_a", "paper_b"), paper_b=second)
    assert line.startswith("projects/paper_a/loop.py:4 step differs from its twin projects/paper_b/loop.py:4 step")


def test_a_difference_needs_a_reason_in_both(tmp_path):
    mark = "# twin: {other}/loop.py differs: the other divides"
    second = text_of("paper_b", "paper_a", mark).replace("total * rate", "total / rate")
    assert problems(tmp_path, paper_a=text_of("paper_a", "paper_b", mark), paper_b=second) == ([], 0)
    found, _ = problems(tmp_path, paper_a=text_of("paper_a", "paper_b"), paper_b=second)
    assert len(found) == 2
    assert all("one of the twins says that they differ" in line for line in found)
    found, _ = problems(
        tmp_path, paper_a=text_of("paper_a", "paper_b", mark), paper_b=text_of("paper_b", "paper_a", mark)
    )
    assert all("and it does not: leave 'differs' out" in line for line in found)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (text_of("paper_b", "paper_a", mark=""), "a twin of projects/paper_a/loop.py:4 step, and no mark says so"),
        (text_of("paper_b", "paper_a").replace("def step", "def update"), "its twin is missing: there is no step"),
    ],
    ids=["no mark", "another name"],
)
def test_a_mark_stands_on_both_sides(tmp_path, other, message):
    found, _ = problems(tmp_path, paper_a=text_of("paper_a", "paper_b"), paper_b=other)
    assert any(message in line for line in found)


def test_a_copy_without_a_mark_is_named_and_a_short_one_is_not(tmp_path):
    copies = {name: text_of(name, "", mark="") for name in ("paper_a", "paper_b")}
    (line,), _ = problems(tmp_path, **copies)
    assert "projects/paper_a/loop.py:3 step is projects/paper_b/loop.py:3 step word by word" in line
    short = dict.fromkeys(("paper_a", "paper_b"), "def step(x):\n    y = x + 1\n    return y\n")
    assert problems(tmp_path, **short) == ([], 0)


def test_methods_are_known_by_their_class(tmp_path):
    body = "    # twin: {}/loop.py\n    def run(self):\n        return 1\n"
    files = {
        "paper_a": "class Trainer:\n" + body.format("paper_b"),
        "paper_b": "class Trainer:\n" + body.format("paper_a"),
    }
    assert problems(tmp_path, **files) == ([], 1)


def test_the_repositorys_twins_are_equal():
    functions = check_twins.read_projects(check_twins.ROOT)
    assert check_twins.problems(functions) == []
    assert check_twins.pairs(functions) >= 40
