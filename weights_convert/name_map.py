"""Name maps: which tensor of one network fills which of another, by layer name and layer type.

A family's table in `name_maps/` renames *layers*; `layer_types.yaml` says, for each type of layer, what becomes of
its *tensors*. Both networks are built and asked what their layers are: a transposition follows from "this is a Linear",
never from a tensor's position or its number of axes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Literal

from common.cli import UserError
from common.config.typed import load_config
from weights_convert.networks import Network
from weights_convert.transforms import TRANSFORMS

import numpy as np

FOLDER = Path(__file__).parent / "name_maps"


@dataclasses.dataclass(frozen=True)
class Rename:
    """A regular expression and what takes its place (`re.sub`) in the name of a layer."""

    pattern: str
    replacement: str


@dataclasses.dataclass(frozen=True)
class Unused:
    """Tensors (by the whole name) that no forward pass of the converted network uses, and why."""

    pattern: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """What becomes of one tensor of one type of layer.

    Attributes:
        layer: Type of layer in the source network.
        paddle: Type of layer in the Paddle network.
        tensor: The tensor's name in its layer.
        replacement: Its name in the Paddle layer; null where Paddle has none.
        transform: One of `transforms.TRANSFORMS`; null with a null replacement.
    """

    layer: str
    paddle: str
    tensor: str
    replacement: str | None
    transform: Literal["keep", "transpose", "absolute_plus_1e-5"] | None


@dataclasses.dataclass(frozen=True)
class LayerTypes:
    """`layer_types.yaml`."""

    rules: tuple[TensorRule, ...]


@dataclasses.dataclass(frozen=True)
class NameMap:
    """One family's table.

    Attributes:
        layers: Applied to a layer's name from the first row to the last, each to the result of the one before.
        unused: Tensors that are left out.
        same_as: Second names of tensors: renamed, they are the first name.
        stages: Layers whose outputs the proof compares (the whole name matches one of these).
        classifier: The layer whose weight has a row per class.
        odd_size: The odd one of the proof's sizes, where the source network cannot take the usual one.
        rules: Additions to `layer_types.yaml`, for layers of your own.
    """

    stages: tuple[str, ...]
    classifier: str
    layers: tuple[Rename, ...] = ()
    unused: tuple[Unused, ...] = ()
    same_as: tuple[Rename, ...] = ()
    odd_size: tuple[int, int] = (97, 129)
    rules: tuple[TensorRule, ...] = ()

    def rename_layer(self, name: str) -> str:
        """Returns the Paddle name of a layer."""
        return _rename(name, self.layers)

    def first_name(self, tensor: str) -> str:
        """Returns the first name of a tensor that goes by two, else its own."""
        return _rename(tensor, self.same_as)

    def unused_reason(self, tensor: str) -> str | None:
        """Why a tensor is left out; None if it is not."""
        return next((row.reason for row in self.unused if re.fullmatch(row.pattern, tensor)), None)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A tensor of the source network and the one of the Paddle network that it fills."""

    source: str
    target: str
    transform: str


@dataclasses.dataclass(frozen=True)
class Pairing:
    """A name map worked out on two networks: every tensor of either is accounted for, once.

    Attributes:
        pairs: In the source's order.
        left_out: Source tensors that the Paddle network has no place for -> reason.
        copies: Second names in the source -> first names.
    """

    pairs: tuple[Pair, ...]
    left_out: dict[str, str]
    copies: dict[str, str]

    def to_paddle(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the Paddle network's tensors."""
        return {pair.target: TRANSFORMS[pair.transform].apply(tensors[pair.source]) for pair in self.pairs}

    def remainder(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what is needed besides the Paddle tensors to get every bit of the source back.

        These are the tensors that were left out, and the originals of those whose transform rounds.
        """
        rest = {name: tensors[name] for name in self.left_out if name in tensors}
        for pair in self.pairs:
            transform, value = TRANSFORMS[pair.transform], tensors[pair.source]
            if not transform.is_exact and not _same_bits(transform.invert(transform.apply(value)), value):
                rest[pair.source] = value
        return rest

    def to_source(self, tensors: dict[str, np.ndarray], remainder: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the source network's tensors; those left out are there if `remainder` has them.

        Raises:
            UserError: A value that the source's layer cannot have, with the tensor's name.
        """
        restored = {name: remainder[name] for name in self.left_out if name in remainder}
        for pair in self.pairs:
            transform, value = TRANSFORMS[pair.transform], tensors[pair.target]
            original = remainder.get(pair.source)
            if original is not None and _same_bits(transform.apply(original), value):
                restored[pair.source] = original
                continue
            try:
                restored[pair.source] = transform.invert(value)
            except ValueError as error:
                raise UserError(f"'{pair.target}' cannot become '{pair.source}': {error}") from None
        for second, first in self.copies.items():
            if first in restored:
                restored[second] = restored[first]
        return restored


def read_name_map(name: str | os.PathLike) -> NameMap:
    """Reads a table: a name from `name_maps/`, or the path of a file of your own.

    Raises:
        UserError: See `common.config.typed.load_config`.
    """
    path = Path(name)
    return load_config(NameMap, path if path.suffix == ".yaml" else FOLDER / f"{name}.yaml")


def pair_tensors(name_map: NameMap, source: Network, target: Network) -> Pairing:
    """Works a name map out on two networks.

    Raises:
        UserError: A tensor of either network that is not used exactly once, a layer of a type that the table does not
            have or that the Paddle network has of another type, or a shape that does not fit: named, with their number.
    """
    shapes, target_shapes = source.shapes(), target.shapes()
    pairs, left_out, copies, problems = [], {}, {}, []
    for name, shape in shapes.items():
        first = name_map.first_name(name)
        if first != name:
            copies[name] = first
            continue
        reason = name_map.unused_reason(name)
        if reason is not None:
            left_out[name] = reason
            continue
        try:
            pair = _pair(name, shape, name_map, source, target, target_shapes)
        except UserError as error:
            problems.append(str(error))
            continue
        if pair is None:
            left_out[name] = "Paddle has no such counter"
        else:
            pairs.append(pair)
    problems += _not_once(pairs, copies, shapes, target_shapes)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"the name map does not fit the two networks: {problems[0]}{more}")
    return Pairing(tuple(pairs), left_out, copies)


def _pair(
    name: str,
    shape: tuple[int, ...],
    name_map: NameMap,
    source: Network,
    target: Network,
    target_shapes: dict[str, tuple[int, ...]],
) -> Pair | None:
    layer, _, tensor = name.rpartition(".")
    rules = [*name_map.rules, *_layer_types().rules]
    type_name = _known_type(source.layer_types(layer), {rule.layer for rule in rules}, f"'{name}'")
    rule = next((rule for rule in rules if (rule.layer, rule.tensor) == (type_name, tensor)), None)
    if rule is None:
        raise UserError(f"'{name}': {type_name} has no tensor '{tensor}' in the table of layer types")
    if rule.replacement is None:
        return None
    new_layer = name_map.rename_layer(layer)
    new_name = f"{new_layer}.{rule.replacement}" if new_layer else rule.replacement
    if new_name not in target_shapes:
        raise UserError(f"'{name}' would fill '{new_name}', which the Paddle network has not")
    if rule.paddle not in target.layer_types(new_layer):
        found = target.layer_types(new_layer)[0]
        raise UserError(f"'{name}' of a {type_name} would fill '{new_name}' of a {found}, not of a {rule.paddle}")
    new_shape = TRANSFORMS[rule.transform].shape(shape)
    if new_shape != target_shapes[new_name]:
        raise UserError(f"'{name}' {new_shape} would fill '{new_name}', which is {target_shapes[new_name]}")
    return Pair(name, new_name, rule.transform)


def _known_type(types: tuple[str, ...], known: set[str], where: str) -> str:
    """The nearest class of a layer that the table knows."""
    for name in types:
        if name in known:
            return name
    raise UserError(f"{where} belongs to a {types[0]}, a type of layer that the table does not have: add its rules")


def _not_once(
    pairs: list[Pair],
    copies: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
    target_shapes: dict[str, tuple[int, ...]],
) -> list[str]:
    problems, filled = [], {}
    for pair in pairs:
        if pair.target in filled:
            problems.append(f"'{pair.source}' and '{filled[pair.target]}' would both fill '{pair.target}'")
        filled[pair.target] = pair.source
    problems += [f"nothing fills '{name}'" for name in target_shapes if name not in filled]
    for second, first in copies.items():
        if shapes.get(first) != shapes[second]:
            problems.append(f"'{second}' is called a second name of '{first}', which is no such tensor")
    return problems


def _rename(name: str, rows: tuple[Rename, ...]) -> str:
    for row in rows:
        name = re.sub(row.pattern, row.replacement, name)
    return name


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@functools.cache
def _layer_types() -> LayerTypes:
    return load_config(LayerTypes, FOLDER / "layer_types.yaml")
