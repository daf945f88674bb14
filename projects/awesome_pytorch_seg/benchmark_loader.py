"""Times the preparation of a training sample from Cityscapes-sized PNGs: this project beside the original's steps.

    python benchmark_loader.py                   # embedded Cityscapes at 1024x2048, drawn once below output/; 1 minute
    python benchmark_loader.py --data data/cityscapes --images 32

Both decode a 1024x2048 image and its labelIds, map the ids, mirror every other image, bring the short side to
260..1040 pixels, cut 480x480 (padding what is too small), and end at a normalised float tensor and int64 labels. Both
use one core; CPU seconds are counted, so that other work on the machine disturbs little. The ways take turns over the
same images; times are medians over the turns, a ratio has the range of the single turns' ratios.

"original" is written here from what the original's loader does, in its order, with Pillow and torchvision. Both blur
every other image; our colour jitter is off, it has none.

Writes loader.csv and env.json into --output (default: output/benchmark_loader_<date>_<time>).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awesome_pytorch_seg.config import AugmentConfig, StageConfig
from awesome_pytorch_seg.data.transforms import augment, normalize
from common.cli import CommandParser, UserError, positive, run_command
from common.dataset_list import find_pairs
from common.files import write_csv
from common.images.read import read_image, read_label
from common.labels import label_set
from common.lists.list_file import Pair
from common.machine.bench import new_output, write_environment
from common.progress import track
from common.runs.environment import environment
from common.samples.roots import REPOSITORY
from common.toy_dataset import write_toy_dataset

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional

SIZE, BASE, CROP = (1024, 2048), 520, 480
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABELS = label_set("cityscapes")
STAGE = StageConfig(share=1.0, scales=(BASE / 2 / SIZE[0], 2 * BASE / SIZE[0]), crop_size=(CROP, CROP))
AUGMENT = AugmentConfig(color_jitter=0.0, flip_probability=0.5, stages=(STAGE,), blur_probability=0.5)

Way = Callable[[Pair, np.random.Generator], Any]


def ours(pair: Pair, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A sample as train.py makes it."""
    image, label = ours_decoding(pair, rng)
    fill = tuple(round(255 * value) for value in MEAN)
    image, label = augment(image, label, AUGMENT, STAGE, fill, rng)
    return normalize(image, MEAN, STD), label.astype(np.int64)


def ours_decoding(pair: Pair, _: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Only its first part: decoding, and the ids of the whole label checked and mapped."""
    return read_image(pair.image), LABELS.encode(read_label(pair.label), pair.label)


def original(pair: Pair, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample by the original's steps.

    Reference: segbase.py and cityscapes.py of the original (order, ranges, padding with 0, mapping after the crop).
    """
    image, mask = original_decoding(pair, rng)
    if rng.random() < 0.5:
        image, mask = image.transpose(Image.FLIP_LEFT_RIGHT), mask.transpose(Image.FLIP_LEFT_RIGHT)
    width, height = image.size
    short = int(rng.integers(BASE // 2, 2 * BASE + 1))
    size = (short, int(height * short / width)) if height > width else (int(width * short / height), short)
    image, mask = image.resize(size, Image.BILINEAR), mask.resize(size, Image.NEAREST)
    if short < CROP:
        border = (0, 0, max(0, CROP - size[0]), max(0, CROP - size[1]))
        image, mask = ImageOps.expand(image, border=border, fill=0), ImageOps.expand(mask, border=border, fill=0)
    left, top = (int(rng.integers(side - CROP + 1)) for side in image.size)
    box = (left, top, left + CROP, top + CROP)
    image, mask = image.crop(box), mask.crop(box)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.random()))
    ids = np.array(mask).astype(np.int32)
    present = np.unique(ids)
    known = np.arange(-1, 34)
    if not np.isin(present, known).all():
        raise UserError(f"{pair.label}: not labelIds")
    table = np.array([LABELS.id_to_train[value % 256] for value in known])
    label = table[np.digitize(ids.ravel(), known, right=True)].reshape(ids.shape)
    return functional.normalize(functional.to_tensor(image), MEAN, STD), torch.from_numpy(label.astype(np.int64))


def original_decoding(pair: Pair, _: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Only its first part."""
    image, mask = Image.open(pair.image).convert("RGB"), Image.open(pair.label)
    mask.load()
    return image, mask


WAYS: dict[str, Way] = {
    "original": original,
    "ours": ours,
    "original, decoding only": original_decoding,
    "ours, decoding only": ours_decoding,
}


def measure(pairs: list[Pair], repeats: int) -> dict[str, list[float]]:
    """Returns way -> CPU seconds an image, turn by turn; one turn before is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in track(range(repeats + 1), "benchmark", "turn"):
        for name, way in WAYS.items():
            begin = time.process_time()
            for index, pair in enumerate(pairs):
                way(pair, np.random.default_rng([turn, index]))
            if turn:
                seconds[name].append((time.process_time() - begin) / len(pairs))
    return seconds


def rows_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Returns the table: one row a way."""
    rows = []
    for name, own in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds["original"], own, strict=True)]
        median = statistics.median(own)
        rows.append(
            {
                "way": name,
                "cpu_ms_per_image": round(1000 * median, 2),
                "images_per_cpu_s": round(1 / median, 2),
                "times_original": round(statistics.median(seconds["original"]) / median, 3),
                "times_original_min": round(min(ratios), 3),
                "times_original_max": round(max(ratios), 3),
            }
        )
    return rows


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    root = args.data
    if root is None:
        root = REPOSITORY / "output" / "toy_cityscapes_1024x2048"
        write_toy_dataset("cityscapes", root, 16, 1, SIZE)
    pairs = find_pairs("cityscapes", root, "labelIds").lists["train"][: args.images]
    env = environment(
        ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy"),
        project="awesome_pytorch_seg",
        threads=1,
        images=len(pairs),
        mean_png_bytes=round(statistics.mean(pair.image.stat().st_size for pair in pairs)),
        embedded_data=args.data is None,
        repeats=args.repeats,
        load_average_before=os.getloadavg(),
    )
    rows = rows_of(measure(pairs, args.repeats))
    output = args.output or new_output("benchmark_loader")
    write_csv(output / "loader.csv", rows)
    write_environment(output, env)
    for row in rows:
        print(
            f"{row['way']:24s} {row['cpu_ms_per_image']:7.1f} ms {row['images_per_cpu_s']:6.1f} images/CPU s "
            f"{row['times_original']:5.2f}x ({row['times_original_min']:.2f}..{row['times_original_max']:.2f})"
        )
    print(f"written: {output}/loader.csv, env.json")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    data_help = "root of Cityscapes (default: the embedded data, drawn at 1024x2048)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=data_help)
    parser.add_argument("--images", type=positive, default=16, metavar="N", help="images of a turn (default: 16)")
    parser.add_argument("--repeats", type=positive, default=7, metavar="N", help="timed turns (default: 7)")
    output_help = "folder for the files (default: output/benchmark_loader_<date>_<time>)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
