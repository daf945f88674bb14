"""The card beside a converted weight file (`torch2paddle.py` writes it): what input the weights were trained with."""

from __future__ import annotations

import os
from pathlib import Path

from common.cli import UserError
from common.strict_yaml import load_yaml

CLOSE = 1e-4  # 0.485 and 0.4850 are one mean; 0.485 and 0.5 are not


def card_of(weights: str | os.PathLike) -> Path:
    """Where the card of a weight file lies: `resnet50.pdparams.card.yaml` beside `resnet50.pdparams`."""
    return Path(weights).with_name(f"{Path(weights).name}.card.yaml")


def require_same_input(weights: str | os.PathLike, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Stops a training whose pictures are normalised otherwise than its weights expect, as far as a card says so.

    Args:
        weights: The file of backbone weights.
        mean: Of RGB pictures scaled to 0..1, as the experiment has it.
        std: Likewise.

    Raises:
        UserError: The card names another mean or std, or cannot be read.
    """
    card = card_of(weights)
    if not card.is_file():
        return
    for name, given, expected in zip(("mean", "std"), (mean, std), _read_input(card), strict=True):
        if len(given) != len(expected) or any(abs(a - b) > CLOSE for a, b in zip(given, expected, strict=True)):
            raise UserError(
                f"{weights}: trained with {name} {list(expected)} ({card.name}), the experiment has {list(given)}: "
                f"set data.{name}={str(list(expected)).replace(' ', '')}"
            )


def _read_input(card: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        found = load_yaml(card.read_text(encoding="utf-8"), str(card))["input"]
        return tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{card}: not a card of torch2paddle.py ({error}): convert the weights again or remove it"
        ) from None
