"""Networks of this project: `build_model` is the door."""

from __future__ import annotations

import functools

from common.cli import UserError, did_you_mean
from encnet_single_gpu.models.backbones import RESNETS, ResNet
from encnet_single_gpu.models.deeplabv3 import DeepLabV3Head
from encnet_single_gpu.models.deeplabv3plus import DeepLabV3PlusHead
from encnet_single_gpu.models.efficientnet_lite import LITES, EfficientNetLite
from encnet_single_gpu.models.encnet import EncHead
from encnet_single_gpu.models.fcn import FCNHead
from encnet_single_gpu.models.fpn import FPNHead
from encnet_single_gpu.models.linknet import LinkNet
from encnet_single_gpu.models.pspnet import PSPHead
from encnet_single_gpu.models.refinenet import RefineNetHead
from encnet_single_gpu.models.segmentor import Segmentor
from encnet_single_gpu.models.segnet import SegNet, SegNetBasic
from encnet_single_gpu.models.unet import UNet
from encnet_single_gpu.models.unetplusplus import UNetPlusPlus

from torch import nn

__all__ = ["backbone_names", "build_model", "model_names"]

# Decode head on a ResNet, the ResNet's output stride, whether an auxiliary head is trained beside it.
HEADS = {
    "pspnet": (PSPHead, 8, True),
    "encnet": (EncHead, 8, True),
    "encnet_jpu": (functools.partial(EncHead, jpu=True), 32, True),
    "deeplabv3": (DeepLabV3Head, 8, True),
    "deeplabv3plus": (DeepLabV3PlusHead, 16, False),
    "refinenet": (RefineNetHead, 32, False),
    "fpn": (FPNHead, 32, False),
    "fcn": (FCNHead, 8, True),
}
# Networks whose decoder mirrors their backbone, with the backbones that each can have, its paper's first.
MIRRORED = {
    "linknet": (LinkNet, tuple(RESNETS)),
    "segnet": (SegNet, ("vgg16_bn",)),
}
# Networks without a separate backbone.
WHOLE = {
    "segnet_basic": SegNetBasic,
    "unet": UNet,
    "unetplusplus": UNetPlusPlus,
}


# Networks that two published codes build differently: the default first, then what the other needs (see README).
VARIANTS = {
    "pspnet": {"encoding": {}, "semseg": {"first_block_dilated": True}},
    "fpn": {"aligned": {}, "detectron2": {"align_corners": False}},
}


def model_names() -> list[str]:
    """The networks that `build_model` knows."""
    return [*HEADS, *MIRRORED, *WHOLE]


def backbone_names(name: str) -> tuple[str, ...]:
    """The backbones that a network can have; none if it has no separate one."""
    if name in MIRRORED:
        return MIRRORED[name][1]
    return () if name in WHOLE else (*RESNETS, *LITES)


def build_model(
    name: str, backbone: str | None = None, num_classes: int = 150, variant: str | None = None
) -> nn.Module:
    """Builds a network with random weights. What lies under its `backbone`, if it has one, can be pretrained.

    Shapes: images (B, 3, H, W), any H, W >= 65 ->
        In evaluation: logits (B, num_classes, H, W).
        In training: a dict of "logits", the same; "aux", a tuple of such, where the network is trained on more than
        its main output; "presence" (B, num_classes), logits of a class being in the image, for EncNet.

    Args:
        name: One of `model_names()`.
        backbone: None is the network's own: resnet50 for decode heads, resnet18 for linknet, vgg16_bn for segnet.
        num_classes: Number of classes.
        variant: One of the network's `VARIANTS`; None is its first.

    Raises:
        UserError: Unknown name, or a backbone or variant that the network cannot have.
    """
    changes = _changes(name, backbone, variant)
    if name in HEADS:
        head, output_stride, aux = HEADS[name]
        backbone = backbone or "resnet50"
        if backbone in LITES:
            network = EfficientNetLite(backbone, output_stride)
        else:
            network = ResNet(backbone, output_stride, changes.pop("first_block_dilated", False))
        aux_head = FCNHead(network.out_channels[:-1], num_classes) if aux else None
        decode_head = head(network.out_channels, num_classes, **changes)
        return Segmentor(network, decode_head, aux_head, **changes)
    if name in MIRRORED:
        build, backbones = MIRRORED[name]
        backbone = backbone or backbones[0]
        if backbone not in backbones:
            raise UserError(f"network '{name}' has no backbone '{backbone}': {did_you_mean(backbone, list(backbones))}")
        return build(backbone, num_classes)
    if name in WHOLE:
        if backbone is not None:
            raise UserError(f"network '{name}' has no separate backbone, so no '{backbone}': leave backbone out")
        return WHOLE[name](num_classes)
    raise UserError(f"unknown network '{name}': {did_you_mean(name, model_names())}")


def _changes(name: str, backbone: str | None, variant: str | None) -> dict[str, bool]:
    """What a network's variant is built with.

    Raises:
        UserError: A variant that the network does not have, or not with this backbone.
    """
    if variant is None:
        return {}
    variants = VARIANTS.get(name, {})
    if variant not in variants:
        valid = did_you_mean(variant, list(variants)) if variants else "leave it out, there is only one"
        raise UserError(f"network '{name}' has no variant '{variant}': {valid}")
    if "first_block_dilated" in variants[variant] and backbone in LITES:
        raise UserError(
            f"network '{name}' has its variant '{variant}' on ResNets alone, not on {backbone}: leave it out"
        )
    return dict(variants[variant])
