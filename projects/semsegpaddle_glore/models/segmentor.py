"""A segmentation network: backbone, decode head, auxiliary head."""

from __future__ import annotations

from typing import Any

from semsegpaddle_glore.models.layers import resize_bilinear

import paddle
from paddle import nn


class Segmentor(nn.Layer):
    """The decode head on the backbone's last feature, the auxiliary head on the one before.

    Shapes: images (B, 3, H, W), any H, W >= 65 ->
        In evaluation: logits (B, num_classes, H, W).
        In training: a dict of "logits" (B, num_classes, H, W); "aux", a tuple of one of the same shape if there is
        an auxiliary head; and with GINet "presence" (B, num_classes).

    Logits are enlarged bilinearly with aligned corners, as in SemSegPaddle.

    Drop-out (in EfficientNet also stochastic depth) draws from Paddle's generator in every training forward, and from
    nothing else does the network draw. A training that calls `paddle.seed` with a number made from its seed, the step
    and the rank before each forward therefore has no random state to save, and resumes to the same digits.
    """

    def __init__(self, backbone: nn.Layer, decode_head: nn.Layer, aux_head: nn.Layer | None, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.decode_head = decode_head
        self.aux_head = aux_head

    def forward(self, images: paddle.Tensor) -> paddle.Tensor | dict[str, Any]:
        """Returns logits in evaluation and a dict in training, with the shapes of the class's docstring."""
        size = images.shape[2:]
        features = self.backbone(images)
        outputs = self.decode_head(features[-1])
        outputs["logits"] = resize_bilinear(outputs["logits"], size)
        if not self.training:
            return outputs["logits"]
        if self.aux_head is not None:
            outputs["aux"] = (resize_bilinear(self.aux_head(features[-2]), size),)
        return outputs

    def head_layers(self) -> list[nn.Layer]:
        """What is not backbone and therefore starts from random weights."""
        return [head for head in (self.decode_head, self.aux_head) if head is not None]
