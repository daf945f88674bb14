"""HRNet: branches at strides 4, 8, 16 and 32 side by side; state-dict names are timm's.

Reference: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020 (arXiv
1908.07919), section 3; the classifier is its section 4.1 (figure 6), the concatenated representation its "HRNetV2".
"""

from __future__ import annotations

from collections.abc import Sequence

from semsegpaddle_glore.models.backbones.resnet import BasicBlock, Bottleneck
from semsegpaddle_glore.models.layers import batch_norm, conv2d, global_avg_pool, resize_bilinear, upsample_nearest

import paddle
import paddle.nn.functional as F
from paddle import nn

# Channels of the branch at stride 4; each further branch has twice as many.
HRNETS = {"hrnet_w18": 18, "hrnet_w48": 48}
# Exchange modules in stages 2, 3 and 4, which have 2, 3 and 4 branches of 4 basic blocks.
STAGE_MODULES = (1, 4, 3)
BLOCKS_PER_BRANCH = 4
# The classifier widens the branches by one bottleneck each, of these planes, to 128, 256, 512 and 1024 channels.
CLASSIFIER_PLANES = (32, 64, 128, 256)
CLASSIFIER_CHANNELS = 2048


class HRModule(nn.Layer):
    """Four basic blocks per branch, then every branch receives the sum of all, brought to its size.

    Shapes: list of (B, channels[i], h_i, w_i), where each side is half the one before, rounded up -> the same list.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.branches = nn.LayerList(
            [nn.Sequential(*[BasicBlock(width, width) for _ in range(BLOCKS_PER_BRANCH)]) for width in channels]
        )
        self.fuse_layers = nn.LayerList(
            [nn.LayerList([_exchange(channels, j, i) for j in range(len(channels))]) for i in range(len(channels))]
        )

    def forward(self, branches: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Returns the fused branches."""
        branches = [blocks(branches[i]) for i, blocks in enumerate(self.branches)]
        fused = []
        for i, exchanges in enumerate(self.fuse_layers):
            parts = [exchange(branches[j]) for j, exchange in enumerate(exchanges)]
            for j in range(i + 1, len(parts)):
                parts[j] = upsample_nearest(parts[j], 2 ** (j - i), branches[i].shape[2:])  # (B, channels[i], h_i, w_i)
            fused.append(F.relu(sum(parts[1:], parts[0])))
        return fused


class HRNet(nn.Layer):
    """HRNet; its features are the concatenated branches behind stage 3 and behind stage 4, both at stride 4.

    The branches are brought to stride 4 bilinearly with aligned corners, as in SemSegPaddle.

    Shapes: (B, 3, H, W) -> two features with `out_channels` channels and sides ceil(H/4), ceil(W/4).

    Args:
        name: A key of `HRNETS`.
        num_classes: Outputs of the ImageNet classifier; 0 leaves it out.

    Deviation: inside the network, branches are enlarged to the nearest, as in the ImageNet network (timm and the
    authors' classification code), whose weights one starts from; the authors' segmentation code and SemSegPaddle do it
    bilinearly there. Where a side is odd, the enlarged branch is cropped to fit; timm's network takes multiples of 32.
    """

    output_stride = 4
    strides = (4, 4)

    def __init__(self, name: str, num_classes: int = 0):
        super().__init__()
        widths = [HRNETS[name] * 2**branch for branch in range(4)]
        self.out_channels = (sum(widths[:3]), sum(widths))
        self.conv1 = conv2d(3, 64, 3, stride=2)
        self.bn1 = batch_norm(64)
        self.conv2 = conv2d(64, 64, 3, stride=2)
        self.bn2 = batch_norm(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *[Bottleneck(256, 64) for _ in range(3)])
        self.transition1 = _transition([256], widths[:2])
        self.stage2 = _stage(STAGE_MODULES[0], widths[:2])
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = _stage(STAGE_MODULES[1], widths[:3])
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = _stage(STAGE_MODULES[2], widths)
        if num_classes > 0:
            self._add_classifier(widths, num_classes)

    def _add_classifier(self, widths: Sequence[int], num_classes: int) -> None:
        channels = [planes * Bottleneck.expansion for planes in CLASSIFIER_PLANES]
        self.incre_modules = nn.LayerList(
            [nn.Sequential(Bottleneck(width, planes)) for width, planes in zip(widths, CLASSIFIER_PLANES, strict=True)]
        )
        self.downsamp_modules = nn.LayerList(
            [_conv_bn_relu(channels[i], channels[i + 1], 3, stride=2, bias=True) for i in range(3)]
        )
        self.final_layer = _conv_bn_relu(channels[3], CLASSIFIER_CHANNELS, 1, bias=True)
        self.classifier = nn.Linear(CLASSIFIER_CHANNELS, num_classes)

    def _branches(self, images: paddle.Tensor) -> tuple[list[paddle.Tensor], list[paddle.Tensor]]:
        """Returns the three branches behind stage 3 and the four behind stage 4."""
        x = F.relu(self.bn1(self.conv1(images)))  # (B, 64, ceil(H/2), ceil(W/2))
        x = F.relu(self.bn2(self.conv2(x)))  # (B, 64, ceil(H/4), ceil(W/4))
        stage1 = [self.layer1(x)]
        stage2 = self.stage2(_apply_transition(self.transition1, stage1))
        stage3 = self.stage3(_apply_transition(self.transition2, stage2))
        return stage3, self.stage4(_apply_transition(self.transition3, stage3))

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Returns the representations behind stages 3 and 4."""
        return [_concatenate(branches) for branches in self._branches(images)]

    def classify(self, images: paddle.Tensor) -> paddle.Tensor:
        """Returns ImageNet logits (B, num_classes)."""
        _, branches = self._branches(images)
        x = self.incre_modules[0](branches[0])
        for i, downsample in enumerate(self.downsamp_modules):
            x = self.incre_modules[i + 1](branches[i + 1]) + downsample(x)  # (B, twice the channels, half the sides)
        return self.classifier(global_avg_pool(self.final_layer(x)).flatten(1))  # (B, 2048) -> (B, num_classes)


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv2d(in_channels, out_channels, kernel_size, stride), batch_norm(out_channels))


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    conv = conv2d(in_channels, out_channels, kernel_size, stride, bias=bias)
    return nn.Sequential(conv, batch_norm(out_channels), nn.ReLU())


def _exchange(channels: Sequence[int], source: int, target: int) -> nn.Layer:
    """Brings branch `source` to the channels of branch `target`, and to its size where that is the smaller one."""
    if source == target:
        return nn.Identity()
    if source > target:
        return _conv_bn(channels[source], channels[target], 1)
    halvings = [_conv_bn_relu(channels[source], channels[source], 3, stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, _conv_bn(channels[source], channels[target], 3, stride=2))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.LayerList:
    """What leads into a stage's branches: the branches there are, and one new one, made from the smallest."""
    layers = [
        nn.Identity() if before[i] == after[i] else _conv_bn_relu(before[i], after[i], 3) for i in range(len(before))
    ]
    layers.append(nn.Sequential(_conv_bn_relu(before[-1], after[-1], 3, stride=2)))
    return nn.LayerList(layers)


def _apply_transition(transition: nn.LayerList, branches: list[paddle.Tensor]) -> list[paddle.Tensor]:
    branches = [*branches, branches[-1]]
    return [layer(branches[i]) for i, layer in enumerate(transition)]


def _stage(modules: int, channels: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*[HRModule(channels) for _ in range(modules)])


def _concatenate(branches: list[paddle.Tensor]) -> paddle.Tensor:
    """List of (B, C_i, h_i, w_i) -> (B, sum of C_i, h_0, w_0)."""
    size = branches[0].shape[2:]
    return paddle.concat([branches[0], *[resize_bilinear(branch, size) for branch in branches[1:]]], axis=1)
