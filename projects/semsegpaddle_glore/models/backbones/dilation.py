"""Dilation in place of stride: how a network of output stride 32 becomes one of 16 or 8 with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StagePlan(NamedTuple):
    """What one stage (or block) does to the size.

    `dilation` is for the convolutions up to and including the one that strides, `dilation_after` for those behind it,
    `output_stride` is the stage's, counted from the image.
    """

    stride: int
    dilation: int
    dilation_after: int
    output_stride: int


def plan_stages(
    strides: Sequence[int], output_stride: int, input_stride: int, first_block_dilated: bool = False
) -> list[StagePlan]:
    """Replaces the strides that would exceed `output_stride` by dilation of everything behind them.

    Every output of the strided network is found unchanged in the dilated one's, at every second (fourth) pixel: the
    replaced convolution itself keeps the dilation before it, as in torchvision's `replace_stride_with_dilation`.

    Args:
        strides: Stride of each stage in order.
        output_stride: The largest stride, counted from the image, that a stage may reach.
        input_stride: Stride of what enters the first stage.
        first_block_dilated: Whether the convolution that lost its stride has the dilation of those behind it, as in
            hszhao/semseg and in the static-graph SemSegPaddle. The equality above is then lost.

    Reference: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587), 3.1.
    """
    plans = []
    current, dilation = input_stride, 1
    for stride in strides:
        if current * stride > output_stride:
            before, dilation = dilation, dilation * stride
            plans.append(StagePlan(1, dilation if first_block_dilated else before, dilation, current))
        else:
            current *= stride
            plans.append(StagePlan(stride, dilation, dilation, current))
    return plans
