"""A network without batch normalisation and drop-out, trained on batches that can be cut in any way.

python glore_no_batch_norm.py FILE ACCUMULATE   # under paddle.distributed.launch or alone: weights to FILE
"""

import sys

from semsegpaddle_glore import processes
from semsegpaddle_glore.config import LossConfig
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.updates import Updater

import numpy as np
import paddle
import paddle.distributed as dist


class NoBatchNorm(paddle.nn.Layer):
    """Of the shape of ours; images do not meet in it."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 8, 3, padding=1)
        self.norm = paddle.nn.GroupNorm(2, 8)
        self.classifier = paddle.nn.Conv2D(8, 4, 1)
        self.aux_classifier = paddle.nn.Conv2D(8, 4, 1)
        self.presence = paddle.nn.Linear(8, 4)

    def forward(self, images):
        x = paddle.nn.functional.relu(self.norm(self.conv(images)))
        presence = self.presence(x.mean(axis=[2, 3]))
        return {"logits": self.classifier(x), "aux": (self.aux_classifier(x),), "presence": presence}


def make_updater(accumulate=1):
    paddle.seed(0)
    model = NoBatchNorm()
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, parameters=model.parameters())
    return Updater(model, SegmentationLoss(LossConfig(0.4, 0.2)), optimizer, seed=0, accumulate=accumulate)


def updated(accumulate, steps=3):
    """Losses and weights of updates with batches whose images have very different numbers of valid pixels."""
    updater = make_updater(accumulate)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    rng = np.random.default_rng(0)
    losses = []
    for step in range(steps):
        images = rng.standard_normal((8, 3, 12, 16), dtype=np.float32)
        label = rng.integers(0, 4, (8, 12, 16))
        label[0, :11], label[1], label[6, 3:] = 255, 255, 255
        losses.append(updater.gradients(images[rank::world_size], label[rank::world_size], step))
        updater.apply(0.1)
    return losses, {name: value.numpy() for name, value in updater.model.state_dict().items()}


if __name__ == "__main__":
    processes.join()
    weights = updated(int(sys.argv[2]))[1]
    if dist.get_rank() == dist.get_world_size() - 1:
        np.savez(sys.argv[1], **weights)
