"""Networks of a user's: typed after --module by the tests. Small, with what is easy to get wrong."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn


class Block(nn.Module):
    def __init__(self, width, dilation=1):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.03)
        self.act = nn.ReLU(inplace=True)
        self.drop_path = DropPath(0.3)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x):
        return x + self.drop_path(self.gamma * self.act(self.norm(self.conv(x))))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Net(nn.Module):
    """Blocks, attention over a pyramid of free sizes, a head at the images' size."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU())
        self.blocks = nn.ModuleList([Block(8), Block(8), Block(8), Block(8, 2)])
        self.attention = Attention(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(8, classes, 1)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 1.5, 2.0, 0.7, 0.8, 0.9, 1.1]), persistent=False)

    def forward(self, x):
        size = x.shape[-2:]
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        b, c, h, w = x.shape
        small = F.adaptive_avg_pool2d(x, (4, 4)).flatten(2).transpose(1, 2)
        small = self.attention(small).transpose(1, 2).view(b, c, 4, 4) * self.scale[:, None, None]
        x = x + F.interpolate(small, (h, w), mode="bilinear", align_corners=False)
        return {"out": F.interpolate(self.head(self.dropout(x)), size=size, mode="bilinear"), "low": x}


def net(classes=5):
    return Net(classes)


class Wrapped(nn.Module):
    """Any function of an image as a network, with a convolution before it."""

    def __init__(self, function, **parts):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, self.conv(x))


def depends_on_values():
    return Wrapped(lambda self, x: x * 2 if x.sum() > 0 else x - 1)


def number_of_values():
    return Wrapped(lambda self, x: x[x > 0])


def loop_over_values():
    def run(self, x):
        while x.abs().max() > 1e-3:
            x = x / 2
        return x

    return Wrapped(run)


def no_such_operator():
    return Wrapped(lambda self, x: torch.special.bessel_j0(x))


def complex_numbers():
    return Wrapped(lambda self, x: torch.fft.ifft2(torch.fft.fft2(x)).real)


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


def two_inputs():
    return TwoInputs()


class WritesInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x.mul_(2).sub_(0.5)
        return self.conv(x)


def writes_input():
    return WritesInput()


def writes_part():
    def run(self, x):
        x = x.clone()
        x[:, 1] = x[:, 0] * 2
        return x

    return Wrapped(run)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def tied():
    return Tied()


def same_module_twice():
    part = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return Wrapped(lambda self, x: self.part(self.part(x) + 1), part=part)


class ChangesItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return self.conv(x) + self.count


def changes_itself():
    return ChangesItself()


class BuildsInForward(nn.Module):
    def forward(self, x):
        if not hasattr(self, "conv"):
            self.conv = nn.Conv2d(3, 4, 1)
        return self.conv(x)


def builds_in_forward():
    return BuildsInForward()


def wants_other_channels():
    return nn.Conv2d(4, 4, 1)


def wants_other_size():
    return Wrapped(lambda self, x: self.fc(x.flatten(1)), fc=nn.Linear(4 * 16 * 24, 3))


def returns_a_number():
    return Wrapped(lambda self, x: (x, x.shape[2]))


def returns_none():
    return Wrapped(lambda self, x: {"a": x, "b": None})


def no_module():
    return 3


def raises():
    raise RuntimeError("my own fault")


def half():
    return Wrapped(lambda self, x: x.half().float() + 1)


def random_in_evaluation():
    return Wrapped(lambda self, x: x + torch.rand_like(x))


def grouped_by_index():
    return Wrapped(
        lambda self, x: x[:, torch.tensor([2, 0])] + self.table[torch.tensor([1, 1])].view(1, 2, 1, 1),
        table=nn.Parameter(torch.rand(3, 1)),
    )


def without_gradient():
    def run(self, x):
        with torch.no_grad():
            y = x.mean((2, 3), keepdim=True)
        return x - y

    return Wrapped(run)


def lstm():
    return Wrapped(lambda self, x: self.lstm(x.mean(3).transpose(1, 2))[0], lstm=nn.LSTM(4, 5, batch_first=True))
