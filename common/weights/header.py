"""Metadata in a weight file's header: JSON, validated field by field against a dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from typing import Any, TypeVar

from common.cli import UserError, few, shown

Header = TypeVar("Header")


def header_from_json(header_class: type[Header], text: str | None, where: str | os.PathLike) -> Header:
    """Reads the JSON of one dataclass; `where` names the file in errors.

    Raises:
        UserError: No JSON, or see `header_from_values`.
    """
    try:
        values = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:  # TypeError: there is no text
        raise UserError(f"{where}: its header is damaged ({error}): take another copy of the file") from None
    return header_from_values(header_class, values, where)


def header_from_values(header_class: type[Header], values: Any, where: str | os.PathLike) -> Header:
    """The same from plain values: lists become tuples.

    Raises:
        UserError: A field without default is missing, one is not known, or one is not of its type. Whole numbers may
            not be negative, tuples not be empty and numbers in them not infinite; a palette has one colour per class.
    """
    kinds = typing.get_type_hints(header_class)
    if not isinstance(values, dict) or not values.keys() <= kinds.keys():
        unknown = sorted(values.keys() - kinds.keys()) if isinstance(values, dict) else values
        raise UserError(
            f"{where}: its header holds {shown(unknown)}, which is not known: was it written by this version?"
        )
    for field in dataclasses.fields(header_class):
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name in values and not fits(values[field.name], kinds[field.name]):
            value = shown(values[field.name])
            raise UserError(f"{where}: its header is damaged: '{field.name}' is {value}: take another copy of the file")
        if field.name not in values and is_needed:
            raise UserError(f"{where}: its header is damaged: no '{field.name}': take another copy of the file")
    palette = values.get("palette")
    if palette is not None and (len(palette) != len(values["class_names"]) or max(map(max, palette)) > 255):
        raise UserError(
            f"{where}: its header is damaged: 'palette' is not one RGB for each of 'class_names': take another copy"
        )
    return header_class(**{name: tuples(value) for name, value in values.items()})


def checkpoint_header(name: str, state: object) -> dict[str, str]:
    """The metadata of a checkpoint of the format `name`: its state, a dataclass, as JSON.

    It is one entry: safetensors writes several in random order, and the same state would give other bytes each time.
    """
    return {name: json.dumps(dataclasses.asdict(state))}


def state_in_header(header: dict[str, str], name: str) -> str | None:
    """The JSON in the metadata of a checkpoint of the format `name`; None for another file.

    Files of before there was one entry have two, "format" and "state"; one without "state" gives "".
    """
    if header.get("format") == name:
        return header.get("state", "")
    return header.get(name)


def require_classes(where: str | os.PathLike, stored: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Raises UserError unless a checkpoint's classes are those of the data, by name and in the same order."""
    if stored == wanted:
        return
    hint = "use weights and data of the same classes"
    if stored[1:] == wanted or stored == wanted[1:]:
        more, names = ("the checkpoint", stored) if len(stored) > len(wanted) else ("the data", wanted)
        hint = f"{more} has '{names[0]}' before them: {hint}"
    elif sorted(stored) == sorted(wanted):
        hint = "the same names in another order: give the data the order of the checkpoint"
    raise UserError(
        f"{where}: made for {len(stored)} classes ({few(stored)}), the data has {len(wanted)} ({few(wanted)}): {hint}"
    )


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of an annotated type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        finite = all(math.isfinite(item) for item in value if isinstance(item, float))
        return finite and len(kinds) == len(value) > 0 and all(map(fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if kind is Any:
        return True
    if type(value) is int:
        return kind is float or (kind is int and value >= 0)
    return type(value) is kind


def tuples(value: Any) -> Any:
    """A value of JSON with its lists as tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
