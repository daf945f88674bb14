"""Networks of this project: `build_model` is the door.

In evaluation a network gives logits (B, num_classes, H, W) of its input's size. In training it gives a dict: "logits";
"aux", a tuple of further ones where its paper trains such; and what else the loss of its paper needs. What lies under
`model.backbone`, if there is one, can be pretrained; the rest is the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from awesome_pytorch_seg.models.backbones import DENSENETS, LITES, RESNETS, VGGS
from awesome_pytorch_seg.models.bisenet import BiSeNet
from awesome_pytorch_seg.models.danet import DANet
from awesome_pytorch_seg.models.deeplabv3 import DeepLabV3
from awesome_pytorch_seg.models.denseaspp import DenseASPP
from awesome_pytorch_seg.models.dunet import DUNet
from awesome_pytorch_seg.models.encnet import EncNet
from awesome_pytorch_seg.models.enet import ENet
from awesome_pytorch_seg.models.enet_davidtvs import ENetOfDavidtvs
from awesome_pytorch_seg.models.fcn import FCN
from awesome_pytorch_seg.models.icnet import ICNet
from awesome_pytorch_seg.models.ocnet import OCNet
from awesome_pytorch_seg.models.pspnet import PSPNet
from common.cli import UserError, did_you_mean

from torch import nn

__all__ = ["ALIASES", "MODELS", "build_model", "choose_backbone"]


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """What is known of a network by name.

    Attributes:
        build: (num_classes=...; backbone=..., backbone_weights=... if there are backbones; output_stride=... if there
            are output strides; variant=... if there are variants) -> network.
        backbones: Names that `backbone` may have, the default first; empty where the network has no separate backbone.
        output_strides: What the backbone's output stride may be, the default first; empty where it is fixed.
        variants: Names of the statements of the network, the default first; empty where there is one.
    """

    build: Callable[..., nn.Module]
    backbones: tuple[str, ...] = ()
    output_strides: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()


BOTTLENECK_RESNETS = tuple(name for name in RESNETS if name != "resnet18")
DILATED_RESNETS = ("resnet50", *(name for name in RESNETS if name != "resnet50"))
ENETS = {"authors": ENet, "davidtvs": ENetOfDavidtvs}

MODELS = {
    "fcn32s": ModelEntry(partial(FCN, stride=32), VGGS),
    "fcn16s": ModelEntry(partial(FCN, stride=16), VGGS),
    "fcn8s": ModelEntry(partial(FCN, stride=8), VGGS),
    "enet": ModelEntry(lambda variant, **options: ENETS[variant](**options), variants=tuple(ENETS)),
    "pspnet": ModelEntry(PSPNet, (*DILATED_RESNETS, *LITES), (8, 16, 32), ("encoding", "semseg")),
    "icnet": ModelEntry(ICNet, ("resnet50_half", *BOTTLENECK_RESNETS)),
    "deeplabv3": ModelEntry(DeepLabV3, (*DILATED_RESNETS, "xception65", *LITES), (8, 16)),
    "denseaspp": ModelEntry(DenseASPP, DENSENETS, (8, 16)),
    "encnet": ModelEntry(EncNet, DILATED_RESNETS, (8, 16, 32)),
    "bisenet": ModelEntry(BiSeNet, ("resnet18", "resnet50", "resnet101")),
    "danet": ModelEntry(DANet, DILATED_RESNETS, (8, 16, 32), ("plain", "multi_grid")),
    "ocnet_base": ModelEntry(partial(OCNet, variant="base"), DILATED_RESNETS, (8, 16, 32)),
    "ocnet_pyramid": ModelEntry(partial(OCNet, variant="pyramid"), DILATED_RESNETS, (8, 16, 32)),
    "ocnet_asp": ModelEntry(partial(OCNet, variant="asp"), DILATED_RESNETS, (8, 16, 32)),
    "dunet": ModelEntry(DUNet, (*DILATED_RESNETS, "xception65"), (16, 8, 32)),
}
ALIASES = {"psp": "pspnet", "ocnet": "ocnet_base"}
"""Names of the original project."""


def build_model(
    name: str,
    backbone: str | None = None,
    num_classes: int = 19,
    *,
    output_stride: int | None = None,
    backbone_weights: str | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Builds a network with random weights, or with those of a file in its backbone.

    Args:
        name: A key of `MODELS` or `ALIASES`.
        backbone: One of the network's backbones; None is its first.
        num_classes: Number of classes.
        output_stride: Of the backbone's last features; None is the network's own.
        backbone_weights: A local file of the backbone's ImageNet weights.
        variant: One of the network's variants; None is its first.

    Raises:
        UserError: Unknown name; a backbone, variant or output stride that the network cannot have; a file that does
            not fit.
    """
    entry = _entry(name)
    options = {"num_classes": num_classes}
    chosen = choose_backbone(name, backbone)
    if chosen is not None:
        options |= {"backbone": chosen, "backbone_weights": backbone_weights}
    elif backbone_weights is not None:
        raise UserError(f"network '{name}' has no separate backbone that could take {backbone_weights}: leave it out")
    if output_stride is not None:
        if output_stride not in entry.output_strides:
            valid = " or ".join(map(str, entry.output_strides)) or "leave it out, this network has its own"
            raise UserError(f"network '{name}' has no output stride {output_stride}: {valid}")
        options["output_stride"] = output_stride
    if variant is not None and variant not in entry.variants:
        valid = did_you_mean(variant, list(entry.variants)) if entry.variants else "leave it out, there is only one"
        raise UserError(f"network '{name}' has no variant '{variant}': {valid}")
    if entry.variants:
        options["variant"] = variant or entry.variants[0]
    return entry.build(**options)


def choose_backbone(name: str, backbone: str | None) -> str | None:
    """A network's backbone of that name, or its first; None where the network has none.

    Raises:
        UserError: An unknown network, or a backbone that it cannot have.
    """
    backbones = _entry(name).backbones
    if backbone is None:
        return backbones[0] if backbones else None
    if not backbones:
        raise UserError(f"network '{name}' has no separate backbone, so no '{backbone}': leave backbone out")
    if backbone not in backbones:
        raise UserError(f"network '{name}' has no backbone '{backbone}': {did_you_mean(backbone, list(backbones))}")
    return backbone


def _entry(name: str) -> ModelEntry:
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise UserError(f"unknown network '{name}': {did_you_mean(name, list(MODELS))}")
    return MODELS[name]
