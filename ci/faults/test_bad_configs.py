"""Experiment files and label sets with mistakes: each is one line that names file and key, and nothing is begun."""

import copy
import importlib
import math
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.config.strict_yaml import load_yaml
from common.labels import load_custom

import pytest
import yaml
from bad_input import nothing_written, refusal, require_refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import RESUMABLE, TARGETS, call, write_data

SLOW = pytest.mark.slow
OTHER_KINDS = (
    "text",
    [],
    {},
    {"a": 1},
    [[1]],
    None,
    True,
    3.5,
    7,
    -1,
    math.nan,
    math.inf,
    10**30,
    "\0",
    "",
    "ünï",
    1e300,
)


def read(target, path: Path) -> Any:
    """The project's own reader of experiments."""
    if target.name == "paddleseg_benchmark":
        return importlib.import_module("paddleseg_benchmark.zoo.zoo").read_config(path)
    return importlib.import_module(f"{target.name}.config").read_config(str(path))


def tree_of(target) -> dict:
    if target.name == "paddleseg_benchmark":  # with all that it takes from _base_
        return copy.deepcopy(read(target, target.config_file).dic)
    return yaml.safe_load(target.config_file.read_text(encoding="utf-8"))


def places(tree: dict, prefix: tuple = ()) -> list[tuple]:
    """The path of every key."""
    found = []
    for key, value in tree.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += places(value, (*prefix, key))
    return found


def at(tree: dict, place: tuple) -> dict:
    for key in place:
        tree = tree[key]
    return tree


def text_of(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def require_refused_or_read(target, path: Path, text: str, *words: object) -> bool:
    """Reads a config; whether it was refused, with one line that names the file."""
    path.write_text(text, encoding="utf-8")
    try:
        read(target, path)
    except UserError as error:
        require_refusal(error, path, *words)
        return True
    return False


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_key_with_values_of_every_kind(target, tmp_path, tried):
    """A value is of its key's kind, or the line names file and key."""
    tree, path = tree_of(target), tmp_path / "mine.yaml"
    seen = []

    @settings(max_examples=70, derandomize=True, deadline=None, database=None)
    @given(place=st.sampled_from(places(tree)), value=st.sampled_from(OTHER_KINDS))
    def change(place, value):
        changed = copy.deepcopy(tree)
        at(changed, place[:-1])[place[-1]] = value
        is_finite = not isinstance(value, float) or math.isfinite(value)
        is_harmless = is_finite and value not in ([[1]], {"a": 1}, 10**30, "\0")
        seen.append(place)
        key = () if value == "\0" else (place[-1],)  # that one is refused as text, before it has a place
        assert require_refused_or_read(target, path, text_of(changed), *key) or is_harmless, (place, value)

    change()
    tried("a value of another kind in a config", target.name, len(seen))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_key_left_out_misspelt_and_doubled(target, tmp_path, tried):
    tree, path = tree_of(target), tmp_path / "mine.yaml"
    count = 0
    for place in places(tree):
        section, key = at(tree, place[:-1]), place[-1]
        misspelt = {f"{name}x" if name == key else name: value for name, value in section.items()}
        changed = copy.deepcopy(tree)
        at(changed, place[:-1]).clear()
        at(changed, place[:-1]).update(misspelt)
        valid = () if key == "type" else ("valid: ",)  # without the class that it names, no key has a meaning
        assert require_refused_or_read(target, path, text_of(changed), f"{key}x", *valid)
        count += 1
    lines = text_of(tree).splitlines()
    for number, line in enumerate(lines):
        if ":" in line and not line.strip().startswith("-"):
            key = line.strip().partition(":")[0]
            again = f"{line.partition(':')[0]}: 1"
            doubled = [*lines[:number], again, *lines[number:]]
            assert require_refused_or_read(target, path, "\n".join(doubled), f"'{key}' is given twice"), line
            count += 1
    tried("a key misspelt or doubled in a config", target.name, count)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k0: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}], {name}: 1}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
# name -> (bytes of the file, what the message says)
NO_CONFIGS = {
    "empty": (b"", ""),
    "a list": (b"- 1\n- 2\n", "mapping"),
    "a word": (b"word\n", "mapping"),
    "a tab": (b"train:\n\titers: 1\n", "not valid YAML"),
    "an open bracket": (b"train: [1, 2\n", "not valid YAML"),
    "utf-16": ("train: 1\n".encode("utf-16"), "cannot be read"),
    "an image": (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read"),
    "zero characters": (b"train: a\0b\n", "not valid YAML"),
    "a control character": (b'data: {root: "\\x1b[2J"}\n', "control character"),
    "half a character": (b'data: {root: "\\ud800"}\n', "control character"),
    "two documents": (b"train: {}\n---\ntrain: {}\n", "not valid YAML"),
    "nested too deeply": (b"a: " + b"[" * 5000, "nested too deeply"),
    "a bomb of aliases": (BOMB.encode(), "aliases written out"),
    "a bomb of merges": (MERGE_BOMB.encode(), "aliases written out"),
    "an alias of itself": (b"a: &a [*a]\n", "an alias of what it stands in"),
    "an unknown alias": (b"a: *b\n", "not valid YAML"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "is not a name"),
    "a key that is nothing": (b"? \n: 1\n", "is not a name"),
    "a day that is none": (b"train: 2001-99-99\n", "not valid YAML"),
    "a number without digits": (b"train: 0b_\n", "not valid YAML"),
    "a number beyond measure": (b"train: " + b"1:" + b"59:" * 300 + b"0.5\n", "not valid YAML"),
    **{
        f"the tag {tag}": (f"train: {tag}\n".encode(), "values are written without tags")
        for tag in (
            *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/module:os"),
            *("!!python/object/new:os.system ['true']", "!!python/tuple [1]", "!!timestamp x", "!!bool maybe"),
            *("!!int ''", "!!float x", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!custom a", "!<tag:x> a"),
        )
    },
}


@pytest.mark.parametrize("kind", list(NO_CONFIGS))
def test_what_is_no_config_is_refused_by_every_project(kind, tmp_path, tried):
    data, message = NO_CONFIGS[kind]
    tried("a config that is none", "every project", len(TARGETS))
    for target in TARGETS:
        path = tmp_path / f"{target.name}.yaml"
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            read(target, path)
        require_refusal(error.value, path, message)


@pytest.mark.parametrize("kind", [kind for kind in NO_CONFIGS if kind != "empty"])
def test_what_is_no_label_set_is_refused(kind, tmp_path, tried):
    data, message = NO_CONFIGS[kind]
    tried("a label set that is none", "classes.yaml")
    path = tmp_path / "classes.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        load_custom(path)
    require_refusal(error.value, path, message.replace("cannot be read", "not YAML"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\nclasses: [x]\n", "'name' is given twice"),
        ("name: a\nclasses: [x, y]\nids: {0: 0, 1: 1, 1: 0}\n", "'1' is given twice"),
        ('name: a\nclasses: ["x\\ny"]\n', "is not one line of text"),
        ('name: a\nclasses: ["x\\u2028y"]\n', "is not one line of text"),
        ("name: a\nclasses: [x, x]\n", "already that of classes[0]"),
        ("name: a\nclasses: [yes]\n", "put it in quotes"),
        ("name: a\nclasses: {x: 1}\n", "must be a list"),
        ("name: a\nclasses: []\n", "must be a list of 2"),
        ("name: a\nclasses: [x]\nids: {300: 0}\n", "must be a whole number 0..255"),
        ("name: a\nclasses: [x]\nids: {0: 1}\n", "needs a train id"),
        ("name: a\nclasses: [x]\nclases: [y]\n", "did you mean 'classes'"),
        ("name: 3\nclasses: [x]\n", "name must be text"),
    ],
)
def test_mistakes_in_a_label_set(text, message, tmp_path, tried):
    tried("a label set with a mistake", "classes.yaml")
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_custom(path)
    require_refusal(error.value, path, message)


def test_names_in_other_languages_and_aliases_are_no_mistakes(tmp_path, tried):
    tried("an odd label set or config, read rightly", "YAML reader", 3)
    path = tmp_path / "classes.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + "name: 城市\r\nclasses: [道路, {name: 人, color: [1, 2, 3]}, a|b]\r\n".encode())
    labels = load_custom(path)
    assert (labels.name, labels.class_names) == ("城市", ("道路", "人", "a|b"))
    assert labels.palette[1].tolist() == [1, 2, 3]
    assert load_yaml("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\nc: *x\n", "f")["b"] == {"k": 1, "l": 3}
    assert load_yaml("a: 1e-3\nb: '0'\n", "f") == {"a": 0.001, "b": "0"}


# words of train.py -> what the message says, where there is a config whose keys they change
OVERRIDES = {
    ("train.batch_size", "many"): "batch_size",
    ("train.batch_size", "0"): "batch_size",
    ("optimizer.learning_rate", ".nan"): "learning_rate",
    ("optimizer.learning_rate", "!!python/name:os.system"): "tag",
    ("data.dataset", "citysacpes"): "did you mean 'cityscapes",
    ("data.train_list", "none.txt"): "none.txt",
    ("model.name", "no_such_network"): "no_such_network",
    ("data.std", "[0, 1, 1]"): "std must be positive",
}
QUICK = (("train.batch_size", "many"), ("data.dataset", "citysacpes"))


@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=() if words in QUICK else SLOW, id="=".join(words)) for words in OVERRIDES]
)
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_training_with_a_mistake_begins_nothing(target, words, tmp_path, tried):
    tried("a mistake on the command line of train.py", target.name)
    if words[0] == "data.std" and target.name == "encnet_single_gpu":
        words = (words[0], "0 1 1")
    value = words[1].split() if words[1].startswith("0 ") else [words[1]]
    setting = target.key(words[0], value[0]) + tuple(value[1:])
    data = write_data(tmp_path / "data")
    with nothing_written(data, tmp_path / "out"):
        refusal(call(target.train(data, tmp_path / "out", 1, *setting)), OVERRIDES.get(words, "std must be positive"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 8", "did you mean 'batch_size'"),
        ("optimizer: {momentun: 0.9}", "did you mean 'momentum'"),
        ("optimizer: {weight_decay: 1}", "`weight_decay` must be a float"),
        ("lr_scheduler: {learning_rate: high}", "'lr_scheduler.learning_rate' must be a number"),
        ("iters: -1", "'iters' must be a whole number from 1"),
    ],
)
def test_training_the_zoo_with_a_mistake_begins_nothing(text, message, tmp_path, tried):
    """Its train.py has no words for the keys of a config."""
    target, path = TARGETS[-1], tmp_path / "mine.yml"
    tried("a mistake in the config of train.py", target.name)
    path.write_text(f"_base_: {target.config_file}\n{text}\n")
    data = write_data(tmp_path / "data")
    with nothing_written(data, tmp_path / "out"):
        refusal(call(target.train(data, tmp_path / "out", 1, config=path)), path, message)


@pytest.mark.parametrize("kind", ["a bomb of aliases", "the tag !!python/object/apply:os.system ['true']", "utf-16"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_training_from_what_is_no_config_begins_nothing(target, kind, tmp_path, tried):
    tried("a config that is none, given to train.py", target.name)
    data = write_data(tmp_path / "data")
    (tmp_path / "mine.yaml").write_bytes(NO_CONFIGS[kind][0])
    with nothing_written(data, tmp_path / "out"):
        refusal(
            call(target.train(data, tmp_path / "out", 1, config=tmp_path / "mine.yaml", small=False)),
            tmp_path / "mine.yaml",
        )
