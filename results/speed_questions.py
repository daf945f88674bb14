"""Benchmarks' tables as ratios of our speed to another's, grouped into questions.

Each project's `speedups.csv` has columns of its own; here they become `Ratio`s. A benchmark that is not known here is
shown as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from common.cli import UserError, shown

CsvRow = dict[str, str]
PEERS = {
    "smp": "segmentation_models_pytorch, output stride 8",
    "smp_as_shipped": "segmentation_models_pytorch as shipped (a smaller network: three of five stages)",
    "torchvision_fcn": "torchvision's FCN (no pyramid)",
    "torchvision": "torchvision",
    "paddleseg": "paddleseg, as its configs have it (1024 channels)",
    "paddleseg_512": "paddleseg with 512 channels, as ours",
}
NETWORKS = {"pspnet": "PSPNet-R50", "deeplabv3": "DeepLabv3-R50", "encnet": "EncNet-R50", "unet": "U-Net"}
TORCH_CASES = {
    "fp32": "both float32",
    "bf16": "both bfloat16",
    "settings": "ours as recommended (bfloat16), theirs float32",
    "same settings": "both bfloat16 and channels-last",
    "recommended": "ours as recommended (bfloat16, channels-last), theirs float32",
    "same": "both bfloat16 and channels-last",
}
STDC_CASES = {
    "a": "each as people run it (ours two threads, paddleseg one)",
    "b": "the same threads, Paddle's default CPU settings",
    "c": "the same threads and CPU settings",
}
TASKS = {"train": "training step", "infer": "forward"}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ours is as another: above 1 ours is faster.

    Attributes:
        question: What is compared, in words.
        beside: What ours stands beside.
        case: Under which settings.
        ratio: Of the medians.
        low: Of single turns, the lowest.
        high: The highest.
        ours: Our time, with unit; or what was measured.
        theirs: The other's.
        fair: Whether settings and networks are alike, so that the code is what differs: these are drawn.
    """

    question: str
    beside: str
    case: str
    ratio: float
    low: float
    high: float
    ours: str
    theirs: str
    fair: bool


def ratios_of(project: str, path: Path) -> list[Ratio] | None:
    """The ratios of a table; None for one that is not known here.

    Raises:
        UserError: The table is damaged.
    """
    reader = _READERS.get((project, path.name))
    if reader is None:
        return None
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return list(reader(list(csv.DictReader(stream))))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not the table of this project's benchmark ({shown(error)}): restore it") from None


def _either(row: CsvRow, start: str) -> str:
    """The cell of a column ...image, which benchmarks of before 0.2.0 call ...picture."""
    return row[f"{start}image"] if f"{start}image" in row else row[f"{start}picture"]


def _torch_networks(rows: list[CsvRow]) -> Iterable[Ratio]:
    for row in rows:
        size = f"{row['batch']} x {row['height_px']}x{row['width_px']}"
        yield Ratio(
            f"A {TASKS[row['task']]} of {NETWORKS[row['family']]} in PyTorch ({size}) beside other libraries'",
            PEERS[row["beside"]],
            TORCH_CASES[row["comparison"]],
            float(row["speedup"]),
            float(row["speedup_min"]),
            float(row["speedup_max"]),
            f"{float(row['ours_median_ms']):,.0f} ms, {float(_either(row, 'ours_gmacs_per_')):.0f} GMAC",
            f"{float(row['their_median_ms']):,.0f} ms, {float(_either(row, 'their_gmacs_per_')):.0f} GMAC",
            row["comparison"] == "same settings" and row["beside"] != "smp_as_shipped",
        )


def _encnet(rows: list[CsvRow]) -> Iterable[Ratio]:
    for row in rows:
        network, peer = row["ours"].partition(",")[0], row["peer"].partition(",")[0]
        yield Ratio(
            f"A training step of {NETWORKS[network]} on one core beside segmentation_models_pytorch's nearest network",
            peer,
            TORCH_CASES[row["comparison"]],
            float(row["speedup"]),
            float(row["lowest"]),
            float(row["highest"]),
            f"{float(row['ours_s']):.2f} s",
            f"{float(row['peer_s']):.2f} s",
            row["comparison"] == "same",
        )


def _stdc(rows: list[CsvRow]) -> Iterable[Ratio]:
    for row in rows:
        threads = row["ours_threads"]
        case = STDC_CASES[row["comparison"]] + ("" if row["comparison"] == "a" else f", {threads} thread(s)")
        size = f"{row['batch']} x {row['height_px']}x{row['width_px']}"
        yield Ratio(
            f"A {TASKS[row['task']]} of STDC2-Seg ({size}) beside paddleseg's",
            "paddleseg's STDCSeg",
            case,
            float(row["speedup"]),
            float(row["speedup_min"]),
            float(row["speedup_max"]),
            f"{float(row['ours_median_ms']):,.0f} ms",
            f"{float(row['paddleseg_median_ms']):,.0f} ms",
            row["comparison"] == "c" and threads == "2",
        )


def _glore(rows: list[CsvRow]) -> Iterable[Ratio]:
    for row in rows:
        yield Ratio(
            f"A {TASKS[row['task']]} of PSPNet-R50 in Paddle ({row['batch']} x {row['height_px']}x{row['width_px']}) "
            "beside paddleseg's",
            PEERS[row["peer"]],
            f"the same CPU settings, {row['threads']} threads",
            float(row["speedup"]),
            float(row["speedup_min"]),
            float(row["speedup_max"]),
            f"{float(row['ours_median_ms']):,.0f} ms",
            f"{float(row['peer_median_ms']):,.0f} ms",
            row["peer"] == "paddleseg_512",
        )


def _loader(rows: list[CsvRow]) -> Iterable[Ratio]:
    by_way = {row["way"]: row for row in rows}
    ours, theirs = by_way["ours"], by_way["original"]
    yield Ratio(
        "Preparing a training sample from 1024x2048 PNGs (decode, resize, cut) beside the original project's loader",
        "the original's steps (Pillow, torchvision)",
        "one core, CPU seconds",
        float(ours["times_original"]),
        float(ours["times_original_min"]),
        float(ours["times_original_max"]),
        f"{float(_either(ours, 'cpu_ms_per_')):.0f} ms",
        f"{float(_either(theirs, 'cpu_ms_per_')):.0f} ms",
        True,
    )


_READERS: dict[tuple[str, str], Callable[[list[CsvRow]], Iterable[Ratio]]] = {
    ("awesome_pytorch_seg", "speedups.csv"): _torch_networks,
    ("awesome_pytorch_seg", "loader.csv"): _loader,
    ("encnet_single_gpu", "speedups.csv"): _encnet,
    ("stdc_seg", "speedups.csv"): _stdc,
    ("semsegpaddle_glore", "speedups.csv"): _glore,
}
