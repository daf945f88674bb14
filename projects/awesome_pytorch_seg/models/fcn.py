"""FCN-32s, FCN-16s and FCN-8s: VGG16 with its fully connected layers turned into convolutions.

Reference: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (arXiv
1411.4038), section 4 and figure 3; shelhamer/fcn.berkeleyvision.org, voc-fcn*s/net.py.
"""

from __future__ import annotations

from awesome_pytorch_seg.models.backbones import Backbone, read_tensors
from common.cli import UserError

import torch
import torch.nn.functional as F
from torch import nn

FC_CHANNELS = 4096
STRIDE = 32  # of the coarsest scores


class FCN(nn.Module):
    """FCN.

    Args:
        num_classes: Number of classes.
        backbone: "vgg16" or "vgg16_bn".
        backbone_weights: A local file of torchvision's ImageNet weights, or None. The fully connected layers are taken
            from it too, all but the last (section 4.1).
        stride: Of the finest scores: 32, 16 (with pool4) or 8 (with pool4 and pool3).

    Shapes: images (B, 3, H, W) -> logits (B, num_classes, H, W); in training a dict of "logits".

    Reference: section 4.1 and 4.2; the scores start at 0 (section 4.3).
    Deviation: the 7x7 convolution is padded by 3 to keep its size, in place of padding the image by 100 and cropping
        the scores; sides that are no multiples of 32 are padded to the next, and the scores cropped. Enlarging is
        bilinear and fixed, as in the official code (its transposed convolutions have learning
        rate 0); the paper lets the inner ones learn. All layers are trained at once, without the official "at once"
        networks' factors 0.01 and 0.0001 on pool4 and pool3. The head, of which the two 4096-wide layers start from
        ImageNet weights too, learns at `optimizer.head_lr_factor` times the backbone's rate, 10 in configs/default.yaml
        (official code: one rate, twice as much for biases). The original of this project replaces both fully connected
        layers by one 3x3 convolution to 128 channels: 15.3 instead of 134.3 million parameters.
    """

    def __init__(
        self, num_classes: int, backbone: str = "vgg16", backbone_weights: str | None = None, stride: int = 32
    ):
        super().__init__()
        self.backbone = Backbone(backbone, 32, backbone_weights)
        _, channels8, channels16, channels32 = self.backbone.channels
        self.decode_head = nn.Sequential(
            nn.Conv2d(channels32, FC_CHANNELS, kernel_size=7, padding=3),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(FC_CHANNELS, FC_CHANNELS, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            _scores(FC_CHANNELS, num_classes),
        )
        skip_channels = [channels16, channels8][: {32: 0, 16: 1, 8: 2}[stride]]
        self.skips = nn.ModuleList(_scores(channels, num_classes) for channels in skip_channels)
        if backbone_weights is not None:
            self._load_fully_connected(backbone_weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns logits; in training a dict, see the class."""
        height, width = images.shape[2:]
        # As zeros around the image in the official code: every score then stands for 32x32 pixels of the grid.
        images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
        _, pool3, pool4, pool5 = self.backbone(images)
        scores = self.decode_head(pool5)
        for skip, feat in zip(self.skips, (pool4, pool3), strict=False):  # FCN-16s ends with pool4
            scores = _enlarged(scores, feat.shape[2:]) + skip(feat)
        logits = _enlarged(scores, images.shape[2:])[..., :height, :width]
        return {"logits": logits} if self.training else logits

    def _load_fully_connected(self, path: str) -> None:
        """A fully connected layer over 7x7 positions is a 7x7 convolution with the same numbers."""
        tensors = read_tensors(path)
        for theirs, layer in (("classifier.0", self.decode_head[0]), ("classifier.3", self.decode_head[3])):
            weight, bias = tensors.get(f"{theirs}.weight"), tensors.get(f"{theirs}.bias")
            if weight is None or bias is None or weight.numel() != layer.weight.numel():
                raise UserError(f"{path}: lacks the fully connected layer '{theirs}': give torchvision's whole file")
            layer.load_state_dict({"weight": weight.reshape(layer.weight.shape), "bias": bias})


def _scores(in_channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to the classes that starts at 0."""
    conv = nn.Conv2d(in_channels, num_classes, kernel_size=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def _enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear between pixel centres by a whole factor: the official transposed convolutions, away from borders."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
