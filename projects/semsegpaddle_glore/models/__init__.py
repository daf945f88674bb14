"""Networks of this project: `build_model` is the door."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import UserError, did_you_mean
from semsegpaddle_glore.models.aux_head import AuxHead
from semsegpaddle_glore.models.backbones import build_backbone
from semsegpaddle_glore.models.backbones.converted import is_converted
from semsegpaddle_glore.models.deeplabv3 import ASPPHead
from semsegpaddle_glore.models.ginet import GINetHead
from semsegpaddle_glore.models.glore import GloReHead
from semsegpaddle_glore.models.pspnet import PSPHead
from semsegpaddle_glore.models.segmentor import Segmentor
from semsegpaddle_glore.word_embeddings import made_up_vectors

import numpy as np
from paddle import nn

__all__ = ["Segmentor", "build_model", "model_names"]

MODELS = ("pspnet", "deeplabv3", "glore", "ginet")
DEFAULT_BACKBONE = "resnet101"


def model_names() -> list[str]:
    """The decode heads that `build_model` knows."""
    return list(MODELS)


def build_model(
    name: str,
    backbone: str | None = None,
    num_classes: int = 19,
    *,
    output_stride: int | None = None,
    multi_grid: Sequence[int] | None = None,
    word_embeddings: np.ndarray | None = None,
    dropout: float = 0.1,
    aux: bool = True,
    first_block_dilated: bool = False,
    head_norm_momentum: float = 0.9,
    pyramid_channels: int | None = None,
) -> Segmentor:
    """Builds a network with random weights drawn from Paddle's generator (`paddle.seed`).

    Args:
        name: The decode head, one of `model_names()`.
        backbone: One of `backbones.backbone_names()`, or a file of torch2paddle.py; None is resnet101.
        num_classes: Number of classes.
        output_stride: 8, 16 or 32; None is 8, and 4 for HRNet, which has no other; a converted backbone has its own.
        multi_grid: Factors of the dilations in the backbone's last stage, as `build_backbone` takes them.
        word_embeddings: For ginet, (num_classes, dim): a vector per class name, see `word_embeddings.py`. None puts
            made-up 50-dimensional ones there: a network of the right shape that knows nothing of the words. The other
            decode heads have no use for them.
        dropout: Probability of a dropped value before each classifier.
        aux: Whether there is an auxiliary head.
        first_block_dilated: Of the backbone, as `build_backbone` takes it.
        head_norm_momentum: What the heads' running statistics keep of themselves at each update; 0.99 in SemSegPaddle.
        pyramid_channels: Of each grid of pspnet; None is SemSegPaddle's 512.

    Raises:
        UserError: Unknown name, an output stride or multi-grid that the backbone does not have, or word vectors that
            are not one per class.
    """
    if name not in MODELS:
        raise UserError(f"unknown network '{name}': {did_you_mean(name, model_names())}")
    backbone = backbone or DEFAULT_BACKBONE
    if output_stride is None and not backbone.startswith("hrnet") and not is_converted(backbone):
        output_stride = 8
    network = build_backbone(backbone, output_stride, multi_grid, first_block_dilated=first_block_dilated)
    in_channels = network.out_channels[-1]
    if name == "pspnet":
        head = PSPHead(in_channels, num_classes, dropout, pyramid_channels)
    elif name == "deeplabv3":
        head = ASPPHead(in_channels, num_classes, dropout, network.output_stride)
    elif name == "glore":
        head = GloReHead(in_channels, num_classes, dropout)
    else:
        head = GINetHead(in_channels, num_classes, dropout, _class_vectors(word_embeddings, num_classes))
    aux_head = AuxHead(network.out_channels[-2], num_classes, dropout) if aux else None
    model = Segmentor(network, head, aux_head, num_classes)
    for layer in (layer for head in model.head_layers() for layer in head.sublayers()):
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = head_norm_momentum
    return model


def _class_vectors(word_embeddings: np.ndarray | None, num_classes: int) -> np.ndarray:
    if word_embeddings is None:
        return made_up_vectors([f"class {index}" for index in range(num_classes)])
    if word_embeddings.ndim != 2 or len(word_embeddings) != num_classes:
        raise UserError(
            f"model.word_embeddings has shape {word_embeddings.shape}: give a vector for each of {num_classes} classes"
        )
    return word_embeddings
