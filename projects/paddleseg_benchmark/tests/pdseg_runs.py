"""What the tests of the zoo share: a network of one convolution, batches, and the commands run as a user does."""

from functools import partial

from common.toy_dataset import write_toy_dataset
from paddleseg_benchmark.zoo import zoo

import numpy as np
import paddle
from testkit import REPOSITORY, run_command

PROJECT = REPOSITORY / "projects" / "paddleseg_benchmark"


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


command = partial(run_command, "paddleseg_benchmark")


def launch(log_dir, script, *words, **options):
    """The same in two processes."""
    launcher = ("-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(log_dir))
    return command(script, *words, launcher=launcher, **options)
