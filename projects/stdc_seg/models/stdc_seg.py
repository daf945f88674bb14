"""STDC-Seg: a STDC backbone, BiSeNet's attention and fusion, three segmentation heads and the detail head.

Reference: Fan et al., CVPR 2021 (arXiv 2104.13188), section 3.2 and figure 4; ARM and FFM come from Yu et al.,
"BiSeNet", ECCV 2018 (arXiv 1808.00897), section 3.2 and figure 2.
"""

from __future__ import annotations

from typing import Any

from stdc_seg.models.layers import (
    ConvBNReLU,
    batch_norm,
    conv2d,
    global_avg_pool,
    resize_bilinear,
    resize_nearest,
)
from stdc_seg.models.stdcnet import STDC_CHANNELS, STDCNet

import paddle
import paddle.nn.functional as F
from paddle import nn


class SegHead(nn.Layer):
    """3x3 ConvBNReLU, then a 1x1 convolution without bias. (B, in, h, w) -> (B, num_classes, h, w)."""

    def __init__(self, in_channels: int, mid_channels: int, num_classes: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, mid_channels)
        self.conv_out = conv2d(mid_channels, num_classes, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the logits at the feature's size."""
        return self.conv_out(self.conv(x))


class AttentionRefinementModule(nn.Layer):
    """BiSeNet's ARM: features weighted by a gate from their global average. (B, in, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels)
        self.conv_atten = conv2d(out_channels, out_channels, 1)
        self.bn_atten = batch_norm(out_channels)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Returns the gated features."""
        feat = self.conv(x)
        gate = F.sigmoid(self.bn_atten(self.conv_atten(global_avg_pool(feat))))  # (B, out, 1, 1)
        return feat * gate


class FeatureFusionModule(nn.Layer):
    """BiSeNet's FFM: detail and context features joined, then `feat * (1 + gate)`.

    Shapes: (B, detail, h, w) and (B, context, h, w) -> (B, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convblk = ConvBNReLU(in_channels, out_channels, 1)
        self.conv1 = conv2d(out_channels, out_channels // 4, 1)
        self.conv2 = conv2d(out_channels // 4, out_channels, 1)

    def forward(self, detail: paddle.Tensor, context: paddle.Tensor) -> paddle.Tensor:
        """Returns the fused features."""
        feat = self.convblk(paddle.concat([detail, context], axis=1))
        gate = F.sigmoid(self.conv2(F.relu(self.conv1(global_avg_pool(feat)))))  # (B, out, 1, 1)
        return feat * gate + feat


class ContextPath(nn.Layer):
    """Context from strides 32 and 16, refined and brought up to strides 16 and 8.

    Shapes: feat16 (B, 512, h16, w16), feat32 (B, 1024, h32, w32), size8 -> context8 (B, 128, h8, w8),
    context16 (B, 128, h16, w16).
    """

    def __init__(self):
        super().__init__()
        _, _, _, channels16, channels32 = STDC_CHANNELS
        self.arm16 = AttentionRefinementModule(channels16, 128)
        self.arm32 = AttentionRefinementModule(channels32, 128)
        self.conv_head32 = ConvBNReLU(128, 128)
        self.conv_head16 = ConvBNReLU(128, 128)
        self.conv_avg = ConvBNReLU(channels32, 128, 1)

    def forward(
        self, feat16: paddle.Tensor, feat32: paddle.Tensor, size8: tuple[int, int]
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Returns (context8, context16)."""
        # The global average is (B, 128, 1, 1): adding it broadcasts, which is what resizing it would do.
        sum32 = self.arm32(feat32) + self.conv_avg(global_avg_pool(feat32))
        context16 = self.conv_head32(resize_nearest(sum32, feat16.shape[2:]))
        sum16 = self.arm16(feat16) + context16
        context8 = self.conv_head16(resize_nearest(sum16, size8))
        return context8, context16


class STDCSeg(nn.Layer):
    """STDC-Seg with the detail head on the stride-8 features (the published variant).

    Shapes: images (B, 3, H, W), any H, W >= 65 ->
        In evaluation: logits (B, num_classes, H, W).
        In training: a dict of "logits" (B, num_classes, H, W); "aux", a tuple of two of that shape, from strides 8 and
        16; and "detail" (B, 1, ceil(H/8), ceil(W/8)), which the detail loss enlarges itself.

    Args:
        name: Backbone, "stdc1" or "stdc2".
        num_classes: Number of classes.

    Deviation from the official code: the unused parts of the official network are not built (classifier layers, detail
        heads at strides 2, 4 and 16; they never meet a loss), and its InPlaceABN (gain |weight| + eps, no activation)
        is plain batch normalisation.
    """

    def __init__(self, name: str, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        channels8 = STDC_CHANNELS[2]
        self.backbone = STDCNet(name)
        self.context_path = ContextPath()
        self.ffm = FeatureFusionModule(channels8 + 128, 256)
        self.decode_head = SegHead(256, 256, num_classes)
        self.aux_head8 = SegHead(128, 64, num_classes)
        self.aux_head16 = SegHead(128, 64, num_classes)
        self.detail_head = SegHead(channels8, 64, 1)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor | dict[str, Any]:
        """Returns logits in evaluation and a dict in training, with the shapes of the class's docstring."""
        size = images.shape[2:]
        _, _, feat8, feat16, feat32 = self.backbone(images)
        context8, context16 = self.context_path(feat16, feat32, feat8.shape[2:])
        logits = resize_bilinear(self.decode_head(self.ffm(feat8, context8)), size)
        if not self.training:
            return logits
        aux8 = resize_bilinear(self.aux_head8(context8), size)
        aux16 = resize_bilinear(self.aux_head16(context16), size)
        return {"logits": logits, "aux": (aux8, aux16), "detail": self.detail_head(feat8)}

    def head_layers(self) -> list[nn.Layer]:
        """The layers that learn at ten times the rate in the official code: FFM and every head."""
        return [self.ffm, self.decode_head, self.aux_head8, self.aux_head16, self.detail_head]
