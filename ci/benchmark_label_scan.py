"""How fast label files are scanned beside `cv2.imread` alone, on all cores.

    python ci/benchmark_label_scan.py --files 400

Both run in the same warm processes on the same files, in turn; the figures are medians over the rounds. Exit status 1
where the scan (what `create_dataset_list.py stats` and `check` do with a label) is slower than 80 % of reading alone.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.lists.scan import scan_label
from common.machine.cpu import physical_cores

import cv2
import numpy as np

SIZE = (1024, 2048)
REQUIRED_PERCENT = 80


def main() -> int:
    """Runs the comparison; returns the exit status."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "--files", type=int, default=200, metavar="N", help="how many labels of 1024x2048 pixels (default: 200)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is measured (default: 5)")
    args = parser.parse_args()
    if args.files < 1 or args.rounds < 1:
        raise UserError("--files and --rounds must be at least 1")
    workers = physical_cores()
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool,
    ):
        paths = [Path(folder) / f"{number:05d}_gtFine_labelIds.png" for number in range(args.files)]
        list(pool.map(write_label, paths, range(args.files)))
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        rates: dict[str, list[float]] = {"read": [], "scan": []}
        for _ in range(args.rounds):
            for name, function in (("read", read_label_alone), ("scan", scan_label)):
                rates[name].append(files_per_second(pool, function, paths))
    read, scan = statistics.median(rates["read"]), statistics.median(rates["scan"])
    # Round by round, so that other work on the machine slows down both sides of each ratio.
    percent = statistics.median(100 * scan / read for read, scan in zip(rates["read"], rates["scan"], strict=True))
    size = "{}x{}".format(*SIZE)
    print(f"{args.files} labels of {size}, {kilobytes:.0f} kB each, {workers} processes, {args.rounds} rounds")
    print(f"cv2.imread alone  {read:8.1f} files/s")
    print(f"label scan        {scan:8.1f} files/s   {percent:.1f} % (at least {REQUIRED_PERCENT} %)")
    return 0 if percent >= REQUIRED_PERCENT else 1


def files_per_second(pool: ProcessPoolExecutor, function: Callable, paths: list[Path]) -> float:
    """Times one pass over the files."""
    start = time.perf_counter()
    list(pool.map(function, paths, chunksize=8))
    return len(paths) / (time.perf_counter() - start)


def read_label_alone(path: Path) -> tuple[int, ...]:
    """Reads a file as the comparison does; the shape stands for having it."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape


def write_label(path: Path, seed: int) -> None:
    """Writes a street-like label: large areas first, then many small outlined objects."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    label = np.full(SIZE, 23, np.uint8)
    label[height // 2 :] = 7
    for number in range(250):
        extent = 400 / (1 + number / 10)
        center = rng.uniform((0, height * 0.2), (width, height * 0.9))
        outline = (center + rng.normal(0, extent, (8, 2))).astype(np.int32)
        cv2.fillPoly(label, [cv2.convexHull(outline)], int(rng.integers(0, 34)))
    cv2.imwrite(str(path), label)


if __name__ == "__main__":
    run_command(main)
