"""Memory: how many images fit at once, and what is said when they do not."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from common.cli import UserError

import torch

USABLE = 0.9  # of the memory that is free: evaluation, moments and fragments want some too
FEWEST = 2  # images: batch normalisation after global pooling needs them


def micro_batches(batch_size: int, micro_batch: int | None) -> list[slice]:
    """Cuts a batch into the fewest parts of at most `micro_batch` images, as equal as possible."""
    count = math.ceil(batch_size / (micro_batch or batch_size))
    ends = [batch_size * number // count for number in range(count + 1)]
    return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]


def largest_micro_batch(step: Callable[[int], None], batch_size: int, device: torch.device) -> int:
    """Finds by measuring how many images of the batch can be trained at once.

    The whole batch comes first, then its half, its third and so on, down to two or three images. On a GPU each is
    tried, and the first is taken that trains in `USABLE` of the memory that is free. On a CPU the smallest is trained,
    and the first is taken that by its measure would need at most `USABLE` of the RAM that is available.

    Args:
        step: Trains on so many random images, without a trace but the memory that it takes.
        batch_size: Images of one update.
        device: Where `step` runs.

    Raises:
        UserError: Not even the smallest part fits.
    """
    most_parts = max(1, batch_size // FEWEST)
    sizes = sorted({math.ceil(batch_size / parts) for parts in range(1, most_parts + 1)}, reverse=True)
    if device.type == "cuda":
        found = next((size for size in sizes if _fits_gpu(step, size, device)), None)
    else:
        available, image = _available_ram(), _image_ram(step, sizes[-1])
        found = next((size for size in sizes if size * image <= USABLE * available), None)
    if found is None:
        raise UserError(f"not even {sizes[-1]} images fit into memory: make --crop-size smaller")
    return found


def _fits_gpu(step: Callable[[int], None], images: int, device: torch.device) -> bool:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step(images)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_reserved(device) - before <= USABLE * free


def _image_ram(step: Callable[[int], None], images: int) -> float:
    """Bytes that training takes for each of so many images."""
    before = _peak_ram()
    step(images)
    return max(1, _peak_ram() - before) / images


def _peak_ram() -> int:
    """The most bytes that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _available_ram() -> int:
    """Bytes that this process may still take: of the machine, and of its control group."""
    fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(words[1]) * 1024 for words in fields if words[0] == "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    return available


@contextlib.contextmanager
def memory_errors_explained(advice: str) -> Iterator[None]:
    """Turns running out of memory into one line that ends in `advice`.

    Raises:
        UserError: In place of PyTorch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"out of memory: {advice}") from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):  # on a CPU
            raise UserError(f"out of memory: {advice}") from None
        raise
