"""The card beside a converted weight file (`torch2paddle.py` writes it): what input the weights were trained with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common.cli import UserError
from common.config.strict_yaml import load_yaml
from common.files import sha256_of
from common.weights.package import package_of

CLOSE = 1e-4  # 0.485 and 0.4850 are one mean; 0.485 and 0.5 are not


def card_of(weights: str | os.PathLike) -> Path:
    """Where the card of a weight file lies: `resnet50.pdparams.card.yaml` beside `resnet50.pdparams`."""
    return Path(weights).with_name(f"{Path(weights).name}.card.yaml")


def require_same_input(weights: str | os.PathLike, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Stops a training whose images are normalised otherwise than its weights expect, as far as a card says so.

    A file whose bytes are not those that the card describes is refused as well.

    Args:
        weights: The file of backbone weights.
        mean: Of RGB images scaled to 0..1, as the experiment has it.
        std: Likewise.

    Raises:
        UserError: The card names another mean, std or sha256, or cannot be read.
    """
    package = package_of(weights)
    if package is not None:
        require_same_statistics(package.requirement, (package.mean, package.std), (mean, std))
        return
    both_kinds = Path(weights).with_suffix("")  # `--out resnet50` writes two weight files and one card
    card = next((card for card in map(card_of, (weights, both_kinds)) if card.is_file()), None)
    if card is None:
        return
    *inputs, sha256 = _read(card, Path(weights).name)
    if Path(weights).is_file() and sha256 not in (None, sha256_of(weights)):
        raise UserError(f"{weights}: not the file that {card.name} describes (sha256): copy or convert it again")
    require_same_statistics(f"{weights} ({card.name})", inputs, (mean, std))


def require_same_statistics(
    where: str | os.PathLike, trained: Sequence[Sequence[float]], given: Sequence[Sequence[float]]
) -> None:
    """Raises UserError unless weights were trained with the mean and std that an experiment has, up to rounding.

    Args:
        where: The weights, for the error.
        trained: Their mean and std.
        given: The experiment's.
    """
    for name, ours, theirs in zip(("mean", "std"), given, trained, strict=True):
        if len(ours) != len(theirs) or any(abs(a - b) > CLOSE for a, b in zip(ours, theirs, strict=True)):
            raise UserError(
                f"{where}: trained with {name} {list(theirs)}, the experiment has {list(ours)}: "
                f"set its data.{name} to {list(theirs)}"
            )


def _read(card: Path, weights: str) -> tuple[tuple[float, ...], tuple[float, ...], str | None]:
    """Mean, std and the sha256 of the weight file, if the card has it."""
    try:
        content = load_yaml(card.read_text(encoding="utf-8"), str(card))
        found = content["input"]
        mean, std = tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
        return mean, std, dict(content.get("files", {})).get(weights)
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{card}: not a card of torch2paddle.py ({error}): convert the weights again or remove it"
        ) from None
