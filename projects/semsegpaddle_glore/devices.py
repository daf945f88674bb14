"""On what a command runs: CPU or GPU, one process or several."""

from __future__ import annotations

import os

from common.cli import UserError

import paddle
import paddle.distributed as dist


def require_gpu() -> None:
    """For --use_gpu. Without the flag Paddle chooses: a GPU where there is one that its build can use, else the CPU.

    Raises:
        UserError: There is none.
    """
    with_cuda = paddle.is_compiled_with_cuda()
    if not with_cuda or paddle.device.cuda.device_count() == 0:
        why = "it sees none" if with_cuda else "it is the CPU build"
        raise UserError(f"--use_gpu: no GPU that this Paddle can use ({why}): leave the flag out to run on the CPU")


def join_processes() -> None:
    """Joins the other processes of `paddle.distributed.launch`, if this is one of several."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        dist.init_parallel_env()


def on_gpu() -> bool:
    """Whether tensors are made on a GPU."""
    return paddle.device.get_device().startswith("gpu")
