"""Experiment files: YAML read into dataclasses, strictly.

Every key must be known, present, given once and of its field's type. Each mistake is one line that names the file,
the key and the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from common.cli import UserError, did_you_mean, shown
from common.config.strict_yaml import load_yaml

import yaml

Config = TypeVar("Config")


def load_config(config_class: type[Config], path: str | os.PathLike, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file into `config_class`, a (nested) dataclass.

    Args:
        config_class: Dataclass whose field annotations are the schema: bool, int, float, str, tuples and lists of
            these, `X | None`, `Literal[...]`, and dataclasses. All fields without default are required.
        path: The YAML file.
        overrides: Command-line words "section.key=value"; values are YAML.

    Raises:
        UserError: File missing or no YAML; key unknown, missing or doubled; value of another type.
    """
    return config_from_text(config_class, read_config_text(path), str(path), overrides)


def read_config_text(path: str | os.PathLike) -> str:
    """The text of a YAML file.

    Raises:
        UserError: The file is missing, or no text.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml"))
        raise UserError(
            f"no config file {path}: {did_you_mean(str(path), near) if near else 'check the path'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a config ({error}): save it as UTF-8 text") from None


def config_from_text(config_class: type[Config], text: str, where: str, overrides: list[str] | None = None) -> Config:
    """The same from YAML text; `where` names it in errors."""
    tree = load_yaml(text, where)
    if not isinstance(tree, dict):
        raise UserError(f"{where}: a config is a mapping of sections, this is {type(tree).__name__}")
    for word in overrides or []:
        _apply_override(config_class, tree, word)
    return _build(config_class, tree, where, prefix="")


def config_to_text(config: Any) -> str:
    """The YAML text from which `config_from_text` gives an equal config."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Mappings in block style, lists in one line."""


def _represent_list(dumper: yaml.SafeDumper, value: list) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(list, _represent_list)


def _apply_override(config_class: type, tree: dict, word: str) -> None:
    key, equals, value = word.partition("=")
    where = f"command line '{word}'"
    if not equals:
        raise UserError(f"{where}: overrides are written section.key=value")
    *sections, name = key.split(".")
    node, schema = tree, config_class
    for section in sections:
        fields = _field_types(schema)
        if section not in fields or not dataclasses.is_dataclass(fields[section]):
            valid = [n for n, t in fields.items() if dataclasses.is_dataclass(t)]
            raise UserError(f"{where}: unknown section '{section}': {did_you_mean(section, valid)}")
        schema = fields[section]
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise UserError(f"{where}: '{section}' is not a section in the file")
    if name not in _field_types(schema):
        raise UserError(f"{where}: unknown key '{name}': {did_you_mean(name, list(_field_types(schema)))}")
    node[name] = load_yaml(value, where)


def _field_types(config_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _build(config_class: type[Config], tree: Any, where: str, prefix: str) -> Config:
    if not isinstance(tree, dict):
        raise UserError(f"{where}: '{prefix.rstrip('.')}' must be a section of keys, not {shown(tree)}")
    types_by_name = _field_types(config_class)
    for key in tree:
        if key not in types_by_name:
            raise UserError(f"{where}: unknown key '{prefix}{key}': {did_you_mean(str(key), list(types_by_name))}")
    values = {}
    for field in dataclasses.fields(config_class):
        if field.name in tree:
            values[field.name] = _convert(types_by_name[field.name], tree[field.name], where, prefix + field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: key '{prefix}{field.name}' is missing")
    try:
        return config_class(**values)
    except UserError as error:  # a dataclass's own __post_init__ checks know the values, not the file
        raise UserError(f"{where}: {prefix}{error}") from None


def _convert(expected: Any, value: Any, where: str, key: str) -> Any:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, where, prefix=f"{key}.")
    if origin in (types.UnionType, typing.Union):  # X | None
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where, key)
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise UserError(f"{where}: '{key}' is {shown(value)}: {did_you_mean(str(value), [str(a) for a in arguments])}")
    if origin in (tuple, list):
        return _convert_sequence(origin, arguments, value, where, key)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{where}: '{key}' is {shown(value)}: more than a number of 64 bits holds: give a smaller one")
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise UserError(f"{where}: '{key}' must be {expected.__name__}, not {type(value).__name__} ({shown(value)})")
    if expected is float and not math.isfinite(value):
        raise UserError(f"{where}: '{key}' is not a number that can be used ({value}): give a finite one")
    return value


def _convert_sequence(origin: type, arguments: tuple, value: Any, where: str, key: str) -> Any:
    fixed = origin is tuple and Ellipsis not in arguments
    if not isinstance(value, list) or (fixed and len(value) != len(arguments)):
        count = f"{len(arguments)} values" if fixed else "values"
        raise UserError(f"{where}: '{key}' must be a list of {count}, not {shown(value)}")
    element_types = arguments if fixed else [arguments[0]] * len(value)
    return origin(
        _convert(t, v, where, f"{key}[{i}]") for i, (t, v) in enumerate(zip(element_types, value, strict=True))
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def require(condition: bool, key: str, rule: str) -> None:
    """Raises UserError "KEY must be RULE" unless a value of an experiment is allowed; for `__post_init__`."""
    if not condition:
        raise UserError(f"{key} must be {rule}")
