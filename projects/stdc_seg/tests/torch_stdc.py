"""STDC-Seg in PyTorch with the official checkpoint's key names: the second framework that the tests compare with.

Written from the paper and the official key lists (official/*.csv). Like the official network it also builds the parts
that take no part in the published variant, so that its state dict has the official keys.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}


def conv_bn(in_channels, out_channels, kernel=3, stride=1):
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(),
        )
    )


class Block(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        c = out_channels
        shares = [(in_channels, c // 2, 1), (c // 2, c // 4, 3), (c // 4, c // 8, 3), (c // 8, c // 8, 3)]
        self.conv_list = nn.ModuleList(conv_bn(*share) for share in shares)
        self.stride = stride
        if stride == 2:
            self.avd_layer = nn.Sequential(
                nn.Conv2d(c // 2, c // 2, 3, 2, 1, groups=c // 2, bias=False), nn.BatchNorm2d(c // 2)
            )

    def forward(self, x):
        outputs = [self.conv_list[0](x)]
        x = outputs[0]
        if self.stride == 2:
            x = self.avd_layer(x)
            outputs[0] = nn.AvgPool2d(3, 2, 1)(outputs[0])
        for conv in self.conv_list[1:]:
            x = conv(x)
            outputs.append(x)
        return torch.cat(outputs, 1)


class Backbone(nn.Module):
    def __init__(self, name):
        super().__init__()
        blocks = [conv_bn(3, 32, 3, 2), conv_bn(32, 64, 3, 2)]
        ends, width = [1, 2], 64
        for out_channels, count in zip((256, 512, 1024), LAYERS[name], strict=True):
            for index in range(count):
                blocks.append(Block(width, out_channels, 2 if index == 0 else 1))
                width = out_channels
            ends.append(len(blocks))
        self.features = nn.Sequential(*blocks)
        self.conv_last = conv_bn(1024, 1024, 1)
        self.fc = nn.Linear(1024, 1024, bias=False)
        self.bn = nn.BatchNorm1d(1024)
        self.linear = nn.Linear(1024, 1000, bias=False)
        for stage, start, end in zip((2, 4, 8, 16, 32), [0, *ends[:-1]], ends, strict=True):
            setattr(self, f"x{stage}", nn.Sequential(self.features[start:end]))

    def forward(self, x):
        outputs = []
        for stage in (2, 4, 8, 16, 32):
            x = getattr(self, f"x{stage}")(x)
            outputs.append(x)
        return outputs

    def classify(self, x):
        x = self.conv_last(self.features(x)) ** 2
        return self.linear(F.relu(self.fc(x.mean((2, 3)))))


class Arm(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.conv = conv_bn(in_channels, 128)
        self.conv_atten = nn.Conv2d(128, 128, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(128)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(F.adaptive_avg_pool2d(x, 1))))


class ContextPath(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.backbone = Backbone(name)
        self.arm16, self.arm32 = Arm(512), Arm(1024)
        self.conv_head32, self.conv_head16 = conv_bn(128, 128), conv_bn(128, 128)
        self.conv_avg = conv_bn(1024, 128, 1)

    def forward(self, x):
        _, _, feat8, feat16, feat32 = self.backbone(x)
        average = F.interpolate(self.conv_avg(F.adaptive_avg_pool2d(feat32, 1)), feat32.shape[2:], mode="nearest")
        up32 = F.interpolate(self.arm32(feat32) + average, feat16.shape[2:], mode="nearest")
        up32 = self.conv_head32(up32)
        up16 = F.interpolate(self.arm16(feat16) + up32, feat8.shape[2:], mode="nearest")
        return feat8, self.conv_head16(up16), up32


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.convblk = conv_bn(384, 256, 1)
        self.conv1, self.conv2 = nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, detail, context):
        x = self.convblk(torch.cat([detail, context], 1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(x, 1)))))


def head(in_channels, mid_channels, out_channels):
    return nn.Sequential(
        OrderedDict(
            conv=conv_bn(in_channels, mid_channels), conv_out=nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        )
    )


class OfficialSTDCSeg(nn.Module):
    def __init__(self, name, num_classes=19):
        super().__init__()
        self.cp = ContextPath(name)
        self.ffm = Fusion()
        self.conv_out = head(256, 256, num_classes)
        self.conv_out16, self.conv_out32 = head(128, 64, num_classes), head(128, 64, num_classes)
        self.conv_out_sp16, self.conv_out_sp8 = head(512, 64, 1), head(256, 64, 1)
        self.conv_out_sp4, self.conv_out_sp2 = head(64, 64, 1), head(32, 64, 1)

    def forward(self, x):
        feat8, context8, context16 = self.cp(x)
        outputs = [self.conv_out(self.ffm(feat8, context8)), self.conv_out16(context8), self.conv_out32(context16)]
        outputs = [F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True) for y in outputs]
        return [*outputs, self.conv_out_sp8(feat8)]


# Official name -> ours, first match wins; None marks tensors that no forward pass of the published variant uses.
RENAMES = (
    ("cp.backbone.features.", "backbone.features."),
    ("cp.backbone.", None),
    ("cp.", "context_path."),
    ("ffm.", "ffm."),
    ("conv_out_sp8.", "detail_head."),
    ("conv_out_sp", None),
    ("conv_out16.", "aux_head8."),
    ("conv_out32.", "aux_head16."),
    ("conv_out.", "decode_head."),
)


def our_name(official):
    """The tensor of ours that an official key fills; None for the unused, the doubled and the batch counters."""
    if official.endswith("num_batches_tracked"):
        return None
    prefix, ours = next(pair for pair in RENAMES if official.startswith(pair[0]))
    if ours is None:
        return None
    name = ours + official.removeprefix(prefix)
    return name.replace("running_mean", "_mean").replace("running_var", "_variance")
