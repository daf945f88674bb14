"""Trainings of this project that are small, with a tiny network, on labels as ADE20K has them."""

import contextlib
from unittest.mock import patch

from encnet_single_gpu.train import main as train_main

import testkit
import torch.nn.functional as F
from testkit import run_here
from torch import nn

SMALL = (
    *("--crop-size", 32, 48, "--base-size", "null", "--batch-size", 4, "--log-every", 1, "--num-workers", 0),
    *("--eval-every", 4, "--checkpoint-every", 3, "--learning-rate", 0.05),
)


class TinyNet(nn.Module):
    """A network with everything that a trainer meets: batch normalisation, dropout, three outputs; 1/4 resolution."""

    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.hidden = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Dropout2d(0.1))
        self.decode_head, self.aux_head = nn.Conv2d(8, num_classes, 1), nn.Conv2d(8, num_classes, 1)
        self.presence = nn.Linear(8, num_classes)

    def forward(self, images):
        early = self.backbone(images)
        late = self.hidden(early)
        logits, aux = (
            F.interpolate(head(x), size=images.shape[2:], mode="bilinear")
            for head, x in ((self.decode_head, late), (self.aux_head, early))
        )
        return (
            {"logits": logits, "aux": (aux,), "presence": self.presence(late.mean((2, 3)))} if self.training else logits
        )


def build_tiny(name, backbone=None, num_classes=150, variant=None):
    return TinyNet(num_classes)


@contextlib.contextmanager
def tiny_networks():
    """All commands build `TinyNet`, whatever the config says."""
    with (
        patch("encnet_single_gpu.train.build_model", build_tiny),
        patch("encnet_single_gpu.checkpoint.build_model", build_tiny),
    ):
        yield


def write_data(root, count=6, size=(72, 80), values=(1, 2, 3)):
    """The data of all projects, with label values as ADE20K has them."""
    return testkit.write_data(root, count, size, values=values)


def train(data, output, iters, *more):
    """A run of the PSPNet recipe, made small, with the tiny network."""
    with tiny_networks():
        return run_here(train_main, "--data", data, "--output", output, *SMALL, "--iters", iters, *more)
