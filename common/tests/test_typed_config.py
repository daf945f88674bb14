import dataclasses
from typing import Literal

from common.cli import UserError
from common.config.typed import config_from_text, config_to_text, load_config

import pytest


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    sizes: tuple[int, int]
    scales: tuple[float, ...]
    weights: str | None = None

    def __post_init__(self):
        if self.rate <= 0:
            raise UserError("rate must be positive")


@dataclasses.dataclass(frozen=True)
class Outer:
    kind: Literal["small", "large"]
    flip: bool
    inner: Inner


GOOD = "kind: small\nflip: true\ninner:\n  rate: 1e-3\n  sizes: [3, 4]\n  scales: [1, 0.5]\n"


def read(text=GOOD, overrides=()):
    return config_from_text(Outer, text, "x.yaml", list(overrides))


def test_values_and_types():
    config = read()
    assert config == Outer("small", True, Inner(0.001, (3, 4), (1.0, 0.5), None))
    assert type(config.inner.scales[0]) is float


def test_text_round_trip():
    config = read(overrides=["inner.weights='a: b'"])
    assert read(config_to_text(config)) == config


def test_overrides_are_typed_too():
    config = read(overrides=["kind=large", "inner.sizes=[7, 8]", "inner.rate=2", "inner.weights=w.bin"])
    assert (config.kind, config.inner.sizes, config.inner.rate, config.inner.weights) == ("large", (7, 8), 2.0, "w.bin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "fliip: true\n", "x.yaml: unknown key 'fliip': did you mean 'flip'"),
        (GOOD.replace("  rate", "  raet"), "x.yaml: unknown key 'inner.raet': did you mean 'rate'"),
        (GOOD.replace("flip: true\n", ""), "x.yaml: key 'flip' is missing"),
        (GOOD.replace("true", "1"), "x.yaml: 'flip' must be bool, not int"),
        (GOOD.replace("true", "maybe"), "x.yaml: 'flip' must be bool, not str"),
        (GOOD.replace("1e-3", "fast"), "x.yaml: 'inner.rate' must be float, not str"),
        (GOOD.replace("1e-3", ".nan"), "x.yaml: 'inner.rate' is not a number"),
        (GOOD.replace("1e-3", "-1"), "x.yaml: inner.rate must be positive"),
        (GOOD.replace("[3, 4]", "[3, 4, 5]"), "x.yaml: 'inner.sizes' must be a list of 2 values"),
        (GOOD.replace("[3, 4]", "[3, 4.5]"), r"x.yaml: 'inner.sizes\[1\]' must be int, not float"),
        (GOOD.replace("small", "smal"), "x.yaml: 'kind' is 'smal': did you mean 'small'"),
        (GOOD + "kind: large\n", "x.yaml line 7: .*key 'kind' is given twice"),
        ("kind: [", "x.yaml line 1: not valid YAML"),
        ("- 1\n", "x.yaml: a config is a mapping of sections, this is list"),
        ("kind: small\nflip: true\ninner: 3\n", "x.yaml: 'inner' must be a section"),
        (
            "kind: !!python/object/apply:os.system ['true']\n",
            "x.yaml line 1: not valid YAML: the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
    ],
)
def test_each_mistake_names_file_and_key(text, message):
    with pytest.raises(UserError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("inner.rate", "overrides are written section.key=value"),
        ("iner.rate=1", "unknown section 'iner': did you mean 'inner'"),
        ("inner.rat=1", "unknown key 'rat': did you mean 'rate'"),
        ("kind.x=1", "unknown section 'kind'"),
        ("inner.rate=[", "not valid YAML"),
    ],
)
def test_each_override_mistake_names_the_word(word, message):
    with pytest.raises(UserError, match=message) as error:
        read(overrides=[word])
    assert word.split("=")[0] in str(error.value)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "stdc.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"no config file .*stcd\.yaml: did you mean '.*stdc\.yaml'"):
        load_config(Outer, tmp_path / "stcd.yaml")
    assert load_config(Outer, tmp_path / "stdc.yaml").kind == "small"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as a config"):
        load_config(Outer, tmp_path / "binary.yaml")
