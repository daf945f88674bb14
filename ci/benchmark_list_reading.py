"""How fast a long list is read, its files checked, beside the reader of PaddleSeg.

    python ci/benchmark_list_reading.py --lines 100000

Both read the same file in turn; the figures are medians over the rounds, in seconds of one core. Exit status 1 where
ours is not under 2 s for 100 000 lines (RELIABILITY.md).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.lists.list_file import SEPARATORS, read_list

from paddleseg.datasets import Dataset

PROMISED_S = 2  # for 100 000 lines
FOLDER_HOLDS = 1000  # files


def main() -> int:
    """Runs the comparison; returns the exit status."""
    parser = CommandParser(__doc__)
    parser.add_argument("--lines", type=int, default=100_000, metavar="N", help="of the list (default: 100000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is measured (default: 5)")
    args = parser.parse_args()
    if args.lines < 1 or args.rounds < 1:
        raise UserError("--lines and --rounds must be at least 1")
    print(f"{args.lines} lines, {args.rounds} rounds, seconds of one core: median (smallest to largest)")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        names = write_files(path.parent, args.lines)
        for separator_name, separator in SEPARATORS.items():
            path.write_text("".join(f"image/{name}{separator}label/{name}\n" for name in names))
            seconds: dict[str, list[float]] = {"ours": [], "paddleseg": []}
            for _ in range(args.rounds):
                seconds["ours"].append(cpu_seconds(read_list, path))
                seconds["paddleseg"].append(cpu_seconds(read_as_paddleseg, path, separator))
            print(f"{separator_name:6}" + "".join(f"  {reader} {spread(times)}" for reader, times in seconds.items()))
            slowest = max(slowest, statistics.median(seconds["ours"]))
    return 0 if slowest < PROMISED_S * args.lines / 100_000 else 1


def write_files(root: Path, count: int) -> list[str]:
    """Writes empty images and labels, 1000 to a folder; returns their names below image/ and label/."""
    names = [f"{number // FOLDER_HOLDS:04d}/{number:06d}.png" for number in range(count)]
    for kind in ("image", "label"):
        for number in range(0, count, FOLDER_HOLDS):
            (root / kind / names[number]).parent.mkdir(parents=True)
        for name in names:
            (root / kind / name).touch()
    return names


def read_as_paddleseg(path: Path, separator: str) -> None:
    """PaddleSeg's reader: joins the paths with the root; it neither looks for the files nor for the separator."""
    Dataset(
        mode="train",
        dataset_root=str(path.parent),
        transforms=[],
        num_classes=2,
        train_path=str(path),
        separator=separator,
    )


def cpu_seconds(read: Callable, *arguments: object) -> float:
    """Times one call."""
    start = time.process_time()
    read(*arguments)
    return time.process_time() - start


def spread(times: list[float]) -> str:
    """Median, smallest and largest of some seconds."""
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


if __name__ == "__main__":
    run_command(main)
