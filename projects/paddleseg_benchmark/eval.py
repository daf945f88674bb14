"""Evaluation of a network of the zoo on paddleseg's validation images, counted by common.metrics."""

from __future__ import annotations

import time

from common.cli import UserError
from common.metrics import ConfusionMatrix
from common.progress import track
from common.run_log import Evaluation
from paddleseg_benchmark.zoo.zoo import ZooNetwork

import numpy as np
import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddleseg.core.infer import reverse_transform

PROTOCOL = "ss, whole image"


@paddle.no_grad()
def evaluate(zoo_network: ZooNetwork, dataset: paddle.io.Dataset) -> Evaluation:
    """Evaluates every image once, in float32, shared among the processes of a distributed run; keeps the mode.

    Logits are brought back to the label's size as paddleseg does; labels are never resized. Every process gets the
    result of the whole set.
    """
    start = time.perf_counter()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    matrix = ConfusionMatrix(dataset.num_classes)
    loss_sum, valid_pixels = 0.0, 0
    was_training = zoo_network.training
    zoo_network.eval()
    mine = range(rank, len(dataset), world_size)
    for index in track(mine, "evaluate", "image", keep=False, silent=rank > 0):
        sample = dataset[index]
        logits = zoo_network.predict(paddle.to_tensor(sample["img"]).unsqueeze(0))  # (1, C, h, w)
        logits = reverse_transform(logits, sample["trans_info"], mode="bilinear")  # (1, C, H, W)
        label = sample["label"][0]  # (H, W)
        matrix.update(label, logits.argmax(axis=1)[0].numpy())
        target = paddle.to_tensor(label[None].astype(np.int64))
        loss_sum += float(F.cross_entropy(logits, target, ignore_index=255, axis=1, reduction="sum"))
        valid_pixels += int((label != 255).sum())
    if was_training:
        zoo_network.train()
    if world_size > 1:
        matrix.matrix = _sum_over_processes(matrix.matrix)
        loss_sum, valid_pixels = _sum_over_processes(np.array([loss_sum, valid_pixels], np.float64))
    if valid_pixels == 0:
        raise UserError(
            f"{dataset.file_list[0][1]}: no pixel of this label counts, nor of all {len(dataset)} of its list: are "
            f"they of another data set? python common/create_dataset_list.py check names the cause"
        )
    loss = float(loss_sum / valid_pixels)
    return Evaluation(matrix, loss, len(dataset), time.perf_counter() - start)


def _sum_over_processes(values: np.ndarray) -> np.ndarray:
    total = paddle.to_tensor(values)
    dist.all_reduce(total)
    return total.numpy()
