"""The processes of one training: joining them, what all must agree on, and a request to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType

import numpy as np
import paddle
import paddle.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def join() -> None:
    """Joins the other processes of `paddle.distributed.launch`, if this is one of several."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        dist.init_parallel_env()


def say(message: str) -> None:
    """Prints a line, in one process of a distributed run."""
    if dist.get_rank() == 0:
        print(message, flush=True)


def agree(number: int) -> int:
    """Returns the number that process 0 has."""
    if dist.get_world_size() == 1:
        return number
    agreed = paddle.to_tensor([number])
    dist.broadcast(agreed, 0)
    return int(agreed)


def total(values: np.ndarray) -> np.ndarray:
    """Returns the sum of an array over all processes."""
    if dist.get_world_size() == 1:
        return values
    summed = paddle.to_tensor(values)
    dist.all_reduce(summed)
    return summed.numpy()


class StopRequest:
    """Notes SIGTERM and SIGUSR1, so that a training ends between two updates; a second signal ends it at once.

    Outside of the `with` block the signals do what they did before.
    """

    def __init__(self):
        self._signal = 0
        self._before = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: set outside of Python

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number

    @property
    def here(self) -> int:
        """The signal that this process got; 0 for none."""
        return self._signal

    def anywhere(self) -> int:
        """The signal that any process got, the same in all of them; 0 for none. Every process has to ask."""
        if dist.get_world_size() == 1:
            return self._signal
        highest = paddle.to_tensor([self._signal])
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return int(highest)
