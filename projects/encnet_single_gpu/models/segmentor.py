"""A network of a backbone, a decode head and perhaps an auxiliary head."""

from __future__ import annotations

from encnet_single_gpu.models.layers import resize

import torch
from torch import nn


class Segmentor(nn.Module):
    """The decode head on all features of the backbone, the auxiliary head on the one before the last.

    Shapes: see `models.build_model`.
    """

    def __init__(
        self, backbone: nn.Module, decode_head: nn.Module, aux_head: nn.Module | None = None, align_corners: bool = True
    ):
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.aux_head = aux_head
        self.align_corners = align_corners

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """Returns logits, in training the dict of outputs."""
        size = images.shape[2:]
        features = self.backbone(images)
        outputs = self.decode_head(features)
        outputs["logits"] = resize(outputs["logits"], size, self.align_corners)  # (B, num_classes, H, W)
        if not self.training:
            return outputs["logits"]
        if self.aux_head is not None:
            outputs["aux"] = (resize(self.aux_head(features[:-1])["logits"], size),)
        return outputs
