"""One function over many items, on all cores, in order, with a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from common.cpu import physical_cores

import cv2
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEWEST_FOR_PROCESSES = 64  # below, starting processes (about half a second) costs more than it saves


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """Yields function(item) for every item, in the order of the items.

    Args:
        function: A function of a module (it is sent to other processes by name); its first error ends the loop.
        items: What it is called with; each must pickle.
        description: Stands before the progress bar, which is drawn only on a terminal.
    """
    workers = min(physical_cores(), len(items))
    if workers < 2 or len(items) < _FEWEST_FOR_PROCESSES:
        yield from _progress(map(function, items), len(items), description)
        return
    chunk = max(1, min(32, len(items) // (4 * workers)))
    # "spawn": a forked copy of a process that already runs OpenCV's or a framework's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        results = pool.map(function, items, chunksize=chunk)
        try:
            yield from _progress(results, len(items), description)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the processes already fill the cores


def _progress(results: Iterable[Result], total: int, description: str) -> Iterable[Result]:
    return tqdm(results, total=total, desc=description, unit="file", disable=None)
