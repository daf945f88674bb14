"""A network small enough to convert in a fraction of a second, with the layers that are easy to get wrong."""

import sys

from common.cli import run_command
from weights_convert import torch2paddle
from weights_convert.archs import Arch, Source
from weights_convert.networks import PaddleNetwork, TorchNetwork

import paddle
import torch

MAP = r"""
stages: [conv1, 'blocks\.\d', encoding, hidden, fc]
classifier: fc
layers:
  - {pattern: '^blocks', replacement: stack}
rules:
  - {layer: Encoding, paddle: Encoding, tensor: codewords, replacement: codewords, transform: keep}
"""


class SquareLinear(torch.nn.Linear):
    pass


class Encoding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.codewords = torch.nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return torch.relu(x @ self.codewords)


class TinyTorch(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = torch.nn.Sequential(*(self.block() for _ in range(2)))
        self.encoding = Encoding()
        self.hidden = SquareLinear(8, 8)
        self.fc = torch.nn.Linear(8, num_classes)

    @staticmethod
    def block():
        return torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, 1, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())

    def forward(self, x):
        x = self.blocks(self.conv1(x)).mean((2, 3))
        return self.fc(torch.relu(self.hidden(self.encoding(x))))


class EncodingPaddle(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.codewords = self.create_parameter([8, 8])

    def forward(self, x):
        return paddle.nn.functional.relu(x @ self.codewords)


EncodingPaddle.__name__ = "Encoding"


class TinyPaddle(paddle.nn.Layer):
    def __init__(self, num_classes, epsilon):
        super().__init__()
        nn = paddle.nn
        self.conv1 = nn.Conv2D(3, 8, 3, 2, 1)
        self.stack = nn.Sequential(
            *(nn.Sequential(nn.Conv2D(8, 8, 3, 1, 1), nn.BatchNorm2D(8, epsilon=epsilon), nn.ReLU()) for _ in range(2))
        )
        self.encoding = EncodingPaddle()
        self.hidden = nn.Linear(8, 8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stack(self.conv1(x)).mean((2, 3))
        return self.fc(paddle.nn.functional.relu(self.hidden(self.encoding(x))))


def tiny_arch(folder, name_map=MAP, epsilon=1e-5):
    """An `Arch` as a user would write it, its table in `folder`."""
    table = folder / "tiny.yaml"
    table.write_text(name_map)
    source = Source("here", "TinyTorch", str(table), lambda classes: TorchNetwork(TinyTorch(classes)))
    return Arch("tiny", "TinyPaddle", lambda classes: PaddleNetwork(TinyPaddle(classes, epsilon)), (source,), 5)


def tiny_weights(num_classes=5, seed=0):
    torch.manual_seed(seed)
    module = TinyTorch(num_classes)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.7, 1.3)
            torch.nn.init.uniform_(layer.bias, 1, 2)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
            layer.num_batches_tracked += 7
    return module.state_dict()


def run(monkeypatch, *words, arch=None, command=torch2paddle):
    """Calls a command as from the shell; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [command.__name__, *(str(word) for word in words)])
    if arch is not None:
        monkeypatch.setattr(command, "find_arch", lambda name: arch)
    try:
        run_command(command.main)
    except SystemExit as end:
        return end.code
