"""What the tests of the zoo share: a network of one convolution, batches, and the commands run as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from common.toy_dataset import write_toy_dataset
from paddleseg_benchmark.zoo import zoo

import numpy as np
import paddle

PROJECT = Path(__file__).parents[1]
# One thread: the tests run two at a time on two cores, and paddle must not share them unevenly.
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


class Logits(paddle.nn.Layer):
    """A 1x1 convolution to so many outputs of `classes` channels each."""

    def __init__(self, classes=19, outputs=1):
        super().__init__()
        self.heads = paddle.nn.LayerList([paddle.nn.Conv2D(3, classes, 1) for _ in range(outputs)])

    def forward(self, x):
        return [head(x) for head in self.heads]


def small_network(losses, coef, classes=19, outputs=1, config="deeplabv3p.yml"):
    """A ZooNetwork of `Logits` with losses of paddleseg."""
    config = zoo.read_config(zoo.CONFIG_DIR / config)
    builder = zoo.SegBuilder(config)
    types = [builder.build_component({"ignore_index": 255, **loss}) for loss in losses]
    return zoo.ZooNetwork(Logits(classes, outputs), {"types": types, "coef": coef}, config)


def batch(size, count=2, classes=19, seed=0):
    """Random images, and labels of blocks of 8x8, some of them ignored."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, 3, *size), dtype=np.float32)
    blocks = rng.integers(0, classes, (count, -(-size[0] // 8), -(-size[1] // 8)))
    blocks[rng.random(blocks.shape) < 0.1] = 255
    return images, blocks.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]].astype(np.int64)


def write_data(root, size=(64, 128)):
    """Eight training and three validation images in Cityscapes' layout."""
    return write_toy_dataset("cityscapes", root, 8, 3, size)


def command(script, *words, launcher=(), timeout=170):
    """Runs one of the project's scripts from its folder. Returns the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, *launcher, script, *map(str, words)],
        cwd=PROJECT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def launch(log_dir, script, *words):
    """The same in two processes."""
    launcher = ("-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(log_dir))
    return command(script, *words, launcher=launcher)


def run_folder(output):
    (folder,) = (path.parent for path in Path(output).glob("*/config.yaml"))
    return folder


def error_line(process):
    """The one line with which a user error ends; fails on a traceback or another status."""
    assert process.returncode == 1, process.stdout[-1000:] + process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]
    (line,) = [text for text in process.stderr.splitlines() if text.startswith("error: ")]
    return line
