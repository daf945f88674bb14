"""One function over many items, on all cores, in order, saying how far it is; and threads that may hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from common.machine.cpu import physical_cores
from common.progress import track

import cv2

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEWEST_FOR_PROCESSES = 64  # below, starting processes (about half a second) costs more than it saves


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """Yields function(item) for every item, in the order of the items.

    Args:
        function: A function of a module (it is sent to other processes by name); its first error ends the loop.
        items: What it is called with; each must pickle.
        description: What the progress is of, see `common.progress`.
    """
    workers = min(physical_cores(), len(items))
    if workers < 2 or len(items) < _FEWEST_FOR_PROCESSES:
        yield from track(map(function, items), description, "file", total=len(items))
        return
    chunk = max(1, min(32, len(items) // (4 * workers)))
    # "spawn": a forked copy of a process that already runs OpenCV's or a framework's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        results = pool.map(function, items, chunksize=chunk)
        try:
            yield from track(results, description, "file", total=len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Threads:
    """Threads that do calls one after the other; one that hangs does not keep the program from ending.

    That is what it has over `concurrent.futures.ThreadPoolExecutor`, whose threads the interpreter waits for.

    Args:
        count: How many there are.
    """

    PATIENCE = 5.0  # seconds

    def __init__(self, count: int):
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable, *args: object) -> Future:
        """Has function(*args) called when its turn comes; the future holds its result or its error."""
        future: Future = Future()
        self._calls.put((future, function, args))
        return future

    def stop(self) -> None:
        """Drops what has not begun, and waits for what has, but not for long."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)
        end = time.monotonic() + self.PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function, args = call
            try:
                future.set_result(function(*args))
            except BaseException as error:  # raised again where the result is asked for
                future.set_exception(error)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the processes already fill the cores
