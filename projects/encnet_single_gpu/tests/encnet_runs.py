"""Running the commands of this project as a user does, with a tiny network on a data set of a few small images."""

import contextlib
import csv
import io
import sys
from pathlib import Path
from unittest.mock import patch

from encnet_single_gpu.train import main as train_main

import cv2
import numpy as np
import torch.nn.functional as F
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
        patch("encnet_single_gpu.inference.build_model", build_tiny),
    ):
        yield


def write_data(root, count=6, size=(72, 80), values=(1, 2, 3)):
    """Images of coloured squares with ADE20K-like labels, 2/3 in train.txt and the rest in val.txt."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    colors = rng.integers(0, 256, (256, 3))
    lines = []
    for i in range(count):
        label = rng.choice(values, (size[0] // 8, size[1] // 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        noise = rng.normal(0, 20, (*size, 3))
        cv2.imwrite(str(root / f"{i}.png"), np.clip(colors[label] + noise, 0, 255).astype(np.uint8))
        cv2.imwrite(str(root / f"{i}_label.png"), label)
        lines.append(f"{i}.png,{i}_label.png\n")
    split = count * 2 // 3
    (root / "train.txt").write_text("".join(lines[:split]))
    (root / "val.txt").write_text("".join(lines[split:]))
    return root


def run_here(main, *words):
    """Calls a script's `main` in this process, which has PyTorch loaded already. Returns what it printed."""
    out = io.StringIO()
    with patch.object(sys, "argv", ["script", *map(str, words)]), contextlib.redirect_stdout(out):
        main()
    return out.getvalue()


def train(data, output, iters, *more):
    """A run of the PSPNet recipe, made small, with the tiny network."""
    with tiny_networks():
        return run_here(train_main, "--data", data, "--output", output, *SMALL, "--iters", iters, *more)


def run_folder(output):
    (folder,) = (path.parent for path in Path(output).glob("*/config.yaml"))
    return folder


def numbers(folder):
    """Everything in a run's tables that must not depend on time: losses, rates and scores."""
    timed = {"step_time_s", "data_time_s", "seconds"}
    tables = {}
    for path in folder.glob("*.csv"):
        with open(path) as stream:
            tables[path.name] = [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(stream)]
    return tables
