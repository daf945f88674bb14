"""Networks of this project: `build_model` is the door, `build_loss` gives the loss that a paper trains with.

Every network gives logits (B, num_classes, H, W) of its input's size in evaluation, and in training a tuple whose first
is those logits and whose others are what its loss needs. What lies under `model.backbone`, if there is one, can be
pretrained; the rest is the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from awesome_pytorch_seg.config import LossConfig
from awesome_pytorch_seg.losses import OutputsLoss, PixelLoss
from awesome_pytorch_seg.models.enet import ENet
from common.cli import UserError, did_you_mean

from torch import nn

__all__ = ["MODELS", "build_loss", "build_model"]


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """What is known of a network by name.

    Attributes:
        build: (num_classes=..., and backbone=... if there are backbones) -> network.
        backbones: Names that `backbone` may have, the default first; empty where the network is of one piece.
        loss: Gives the loss of the network's training outputs from the loss of one output's pixels.
    """

    build: Callable[..., nn.Module]
    backbones: tuple[str, ...] = ()
    loss: Callable[[PixelLoss], nn.Module] = OutputsLoss


MODELS = {
    "enet": ModelEntry(ENet),
}


def build_model(name: str, backbone: str | None = None, num_classes: int = 19) -> nn.Module:
    """Builds a network with random weights.

    Args:
        name: A key of `MODELS`.
        backbone: One of the network's backbones; None is its first.
        num_classes: Number of classes.

    Raises:
        UserError: Unknown name, or a backbone that the network cannot have.
    """
    entry = _entry(name)
    if not entry.backbones:
        if backbone is not None:
            raise UserError(f"network '{name}' is of one piece, it has no backbone '{backbone}': leave backbone out")
        return entry.build(num_classes=num_classes)
    backbone = backbone or entry.backbones[0]
    if backbone not in entry.backbones:
        raise UserError(
            f"network '{name}' has no backbone '{backbone}': {did_you_mean(backbone, list(entry.backbones))}"
        )
    return entry.build(num_classes=num_classes, backbone=backbone)


def build_loss(name: str, config: LossConfig, num_classes: int) -> nn.Module:
    """The loss of a network's training outputs.

    Its call takes (outputs, label int64 (B, H, W)) and gives (total, {name: part}); its `names` are those of the parts.

    Raises:
        UserError: Unknown name, or as many class weights as there are no classes.
    """
    if config.class_weights is not None and len(config.class_weights) != num_classes:
        raise UserError(
            f"loss.class_weights has {len(config.class_weights)} values, the data {num_classes} classes: give one each"
        )
    return _entry(name).loss(PixelLoss(config))


def _entry(name: str) -> ModelEntry:
    if name not in MODELS:
        raise UserError(f"unknown network '{name}': {did_you_mean(name, list(MODELS))}")
    return MODELS[name]
