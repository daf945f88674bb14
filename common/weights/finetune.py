"""Which tensors of a trained network another one starts from: all but those that depend on the classes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from common.cli import UserError, few

Shape = tuple[int, ...]


def tensors_to_take(
    where: str | os.PathLike,
    stored: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    stored_classes: int,
    wanted_classes: int,
) -> list[str]:
    """The names of the tensors that a network of other classes takes from a checkpoint, in its own order.

    A tensor may begin anew only where its shape has the number of classes, or a multiple, and nothing else differs.

    Args:
        where: The checkpoint, for errors.
        stored: Shapes of the checkpoint's tensors by name.
        wanted: Shapes of the network's.
        stored_classes: Number of classes of the checkpoint.
        wanted_classes: Of the network.

    Raises:
        UserError: A tensor is missing, unknown, or of another shape: the checkpoint is of another network.
    """
    other = sorted(set(stored) ^ set(wanted))
    anew = [name for name in wanted if name in stored and stored[name] != wanted[name]]
    other += [
        name for name in anew if not _differ_by_classes(stored[name], wanted[name], stored_classes, wanted_classes)
    ]
    if other:
        raise UserError(
            f"{where}: of another network ({few(other)}): start from weights of the network and backbone trained"
        )
    return [name for name in wanted if name not in anew]


def summary(where: str | os.PathLike, wanted: Mapping[str, Shape], taken: list[str]) -> str:
    """What was taken, as a line for the user: "best.safetensors: loaded 222 of 224 tensors; begin anew: ..."."""
    anew = [name for name in wanted if name not in set(taken)]
    rest = f"; begin anew: {', '.join(anew)}" if anew else ""
    return f"{where}: loaded {len(taken)} of {len(wanted)} tensors{rest}"


def _differ_by_classes(stored: Shape, wanted: Shape, stored_classes: int, wanted_classes: int) -> bool:
    return len(stored) == len(wanted) and all(
        a == b or a * wanted_classes == b * stored_classes for a, b in zip(stored, wanted, strict=True)
    )
