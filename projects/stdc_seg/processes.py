"""The processes of a run that `paddle.distributed.launch` started, and what they tell each other."""

from __future__ import annotations

import os

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn


# twin: semsegpaddle_glore/processes.py
def on_gpu() -> bool:
    """Whether tensors are made on a GPU."""
    return paddle.device.get_device().startswith("gpu")


# twin: semsegpaddle_glore/processes.py
def join() -> None:
    """Joins the other processes of `paddle.distributed.launch`, if this is one of several."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        dist.init_parallel_env()


# twin: semsegpaddle_glore/processes.py
def rank() -> int:
    """This process's number; 0 writes and prints."""
    return dist.get_rank()


# twin: semsegpaddle_glore/processes.py
def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size()


# twin: semsegpaddle_glore/processes.py
def say(message: str) -> None:
    """Prints in process 0."""
    if rank() == 0:
        print(message, flush=True)


# twin: semsegpaddle_glore/processes.py
# twin: paddleseg_benchmark/processes.py
def agree(value: int) -> int:
    """The value of process 0."""
    if world_size() == 1:
        return value
    shared = paddle.to_tensor([value])
    dist.broadcast(shared, 0)
    return int(shared)


# twin: semsegpaddle_glore/processes.py
# twin: paddleseg_benchmark/processes.py
def highest(value: int) -> int:
    """The largest of the processes' values."""
    if world_size() == 1:
        return value
    shared = paddle.to_tensor([value])
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


# twin: semsegpaddle_glore/processes.py
# twin: paddleseg_benchmark/processes.py
def total(values: np.ndarray) -> np.ndarray:
    """The elementwise sum of the processes' arrays."""
    if world_size() == 1:
        return values
    shared = paddle.to_tensor(values)
    dist.all_reduce(shared)
    return shared.numpy()


# twin: semsegpaddle_glore/processes.py
def share_buffers(model: nn.Layer) -> None:
    """Gives every process the normalisation statistics of process 0, which are the ones that are saved."""
    if world_size() > 1:
        for layer in model.sublayers():
            if isinstance(layer, nn.BatchNorm2D | nn.SyncBatchNorm):
                dist.broadcast(layer._mean, 0)
                dist.broadcast(layer._variance, 0)
