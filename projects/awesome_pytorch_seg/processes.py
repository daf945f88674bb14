"""The processes of a run that torchrun started, and what they tell each other; without it there is one."""

from __future__ import annotations

import os
from datetime import timedelta

from common.cli import UserError

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

TIMEOUT = timedelta(minutes=10)  # how long a process waits for the others before it gives up


def join(use_cuda: bool) -> torch.device:
    """Meets the other processes that torchrun started, if any. Returns the device of this one.

    They talk through NCCL on GPUs, one process each, and through gloo on a CPU.
    """
    if use_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=TIMEOUT)
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def explain_lost_peer(error: RuntimeError, step: int) -> None:
    """Turns the error of a process that lost another one into a `UserError` that names this rank and step.

    Raises:
        UserError: It is such an error; others are left to the caller.
    """
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        reason = str(error).splitlines()[0].rpartition("] ")[2][:100]
        raise UserError(
            f"process {rank()} at step {step}: another process ended, or has not answered for "
            f"{TIMEOUT.total_seconds() / 60:g} minutes ({reason}): see what it said, then go on with --resume"
        ) from None


def leave() -> None:
    """Ends what `join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def say(message: str) -> None:
    """Prints in process 0."""
    if rank() == 0:
        print(message, flush=True)


def agree(value: int) -> int:
    """The value of process 0."""
    if world_size() == 1:
        return value
    shared = torch.tensor([value], device=_device())
    dist.broadcast(shared, 0)
    return int(shared)


def highest(value: int) -> int:
    """The largest of the processes' values."""
    if world_size() == 1:
        return value
    shared = torch.tensor([value], device=_device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def total(values: np.ndarray) -> np.ndarray:
    """The elementwise sum of the processes' arrays."""
    if world_size() == 1:
        return values
    shared = torch.from_numpy(values).to(_device())
    dist.all_reduce(shared)
    return shared.cpu().numpy()


def share_buffers(model: nn.Module) -> None:
    """Gives every process the normalisation statistics of process 0, which are the ones that are saved."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _device() -> str:
    """Where the processes' way of talking takes tensors from."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
