"""This project runs in one process."""

from __future__ import annotations

import os

from common.cli import UserError


def join() -> None:
    """Refuses to be one of several processes that a launcher such as torchrun started: all would write the same files.

    Raises:
        UserError: WORLD_SIZE says so.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UserError(
            f"WORLD_SIZE is {count}, and this project runs in one process, on one GPU: start it without torchrun; "
            f"awesome_pytorch_seg trains on several GPUs"
        )


def say(message: str) -> None:
    """Prints a line."""
    print(message, flush=True)
