"""Backbones: `build_backbone` is the door.

All keep one contract. `backbone(images)` returns a list of features with `out_channels` channels at `strides` (tuples
of the list's length); the last feature is for the decode head, the one before it for the auxiliary head;
`output_stride` is the last feature's stride. With `num_classes` > 0 the ImageNet classifier is there too, and
`backbone.classify(images)` returns its logits (B, num_classes). State-dict names are torchvision's (ResNet, ResNeXt,
EfficientNet) or timm's (HRNet, Xception, EfficientNet-Lite), with Paddle's `_mean` and `_variance` for the running
statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import UserError, did_you_mean
from semsegpaddle_glore.models.backbones.converted import build_converted, is_converted
from semsegpaddle_glore.models.backbones.efficientnet import EFFICIENTNETS, EfficientNet
from semsegpaddle_glore.models.backbones.efficientnet_lite import EFFICIENTNET_LITES, EfficientNetLite
from semsegpaddle_glore.models.backbones.hrnet import HRNETS, HRNet
from semsegpaddle_glore.models.backbones.resnet import RESNETS, ResNet
from semsegpaddle_glore.models.backbones.xception import XCEPTIONS, Xception

from paddle import nn

__all__ = ["backbone_names", "build_backbone"]


def backbone_names() -> list[str]:
    """Every name that `build_backbone` knows."""
    return [*RESNETS, *HRNETS, *XCEPTIONS, *EFFICIENTNETS, *EFFICIENTNET_LITES]


def build_backbone(
    name: str,
    output_stride: int | None = None,
    multi_grid: Sequence[int] | None = None,
    num_classes: int = 0,
    first_block_dilated: bool = False,
) -> nn.Layer:
    """Builds a backbone with random weights drawn from Paddle's generator (`paddle.seed`).

    Args:
        name: One of `backbone_names()`, or a file of torch2paddle.py (`converted.py`).
        output_stride: 8, 16 or 32; None is the ImageNet network's own, 32 (HRNet: 4 and nothing else).
        multi_grid: Factors of the dilations in the last stage (ResNet and ResNeXt only), for instance (1, 2, 4).
        num_classes: Outputs of the ImageNet classifier; 0 leaves it out.
        first_block_dilated: Whether the first block of a dilated stage has its dilation (ResNet and ResNeXt only).

    Raises:
        UserError: Unknown name, or an output stride or multi-grid that the backbone does not have.
    """
    if is_converted(name):
        if multi_grid is not None or first_block_dilated or num_classes:
            raise UserError(f"model.multi_grid and first_block_dilated are not possible with {name}: leave them out")
        return build_converted(name, output_stride)
    if name not in backbone_names():
        raise UserError(f"unknown backbone '{name}': {did_you_mean(name, backbone_names())}")
    allowed = (4,) if name in HRNETS else (8, 16, 32)
    if output_stride not in (None, *allowed):
        raise UserError(
            f"model.output_stride {output_stride} is not possible with {name}: use {' or '.join(map(str, allowed))}"
        )
    if multi_grid is not None and name not in RESNETS:
        raise UserError(f"model.multi_grid is not possible with {name}: leave it out (ResNet and ResNeXt have it)")
    if first_block_dilated and name not in RESNETS:
        raise UserError(f"model.first_block_dilated is not possible with {name}: ResNet and ResNeXt have it")
    if name in HRNETS:
        return HRNet(name, num_classes)
    if name in RESNETS:
        return ResNet(name, output_stride or 32, multi_grid, num_classes, first_block_dilated)
    family = {**dict.fromkeys(XCEPTIONS, Xception), **dict.fromkeys(EFFICIENTNET_LITES, EfficientNetLite)}
    return family.get(name, EfficientNet)(name, output_stride or 32, num_classes)
