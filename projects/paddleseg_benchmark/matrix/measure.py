r"""Measures one cell of the matrix in this process: times and memory of a few training steps and one evaluation.

    python measure.py --model deeplabv3p_resnet50 --precision fp32 --layout NCHW --graph dynamic \
        --batch-size 2 --size 128 256 --steps 5 --out cell.json
    python measure.py --model fastscnn --loader toy --out cell.json           # batches read from image files
    python measure.py --library smp --model pspnet_resnet50 --out cell.json    # a peer (peers.py)

Steps are timed one by one; the first WARMUP_STEPS count in the losses, not in the times. Without --loader every step
gets the same random batch, so what is timed is the network alone. `run_matrix.py` starts this file once per cell and
round. Paddle is imported only where it is measured: the interpreter of a peer may have none.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import runpy
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.cli import CommandParser, UserError, positive, run_command
from common.files import atomic_write
from common.labels import IGNORE
from common.metrics import ConfusionMatrix

import numpy as np

NUM_CLASSES = 19
WARMUP_STEPS = 2
LOADER_THREADS = 2
SEED = 0
TOY_ROOT = Path(__file__).parents[1] / "data"
LIBRARIES = ("paddleseg", "mmseg", "smp", "torchvision", "timm")

Batch = tuple[np.ndarray, np.ndarray]  # images float32 (B, 3, H, W), labels int64 (B, H, W)


class Cell(NamedTuple):
    """A cell of the matrix. `loader`: "synthetic" (one random batch) or "toy" (files of toy data)."""

    library: str
    model: str
    precision: str = "fp32"
    layout: str = "NCHW"
    graph: str = "dynamic"
    batch: int = 2
    height: int = 128
    width: int = 256
    loader: str = "synthetic"

    def __str__(self) -> str:
        variant = f"{self.precision} {self.layout} {self.graph}"
        return f"{self.library} {self.model} {variant} {self.batch}x3x{self.height}x{self.width} {self.loader}"

    @property
    def key(self) -> str:
        """The cell as a file name."""
        return str(self).replace(" ", "-")


class Stepper(Protocol):
    """What `measure` drives: a network with its losses and optimizer, of this project or of a peer."""

    parameters: int

    def run(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """One training step, waited for; the result has `loss`, `skipped` and `scale`."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class ids uint8 (B, H, W) of images (B, 3, H, W), with the network as it stands, in evaluation mode."""

    def peak_gpu_memory_gib(self) -> float | None:
        """Most memory that was allocated on the GPU; None on a CPU."""


def measure(cell: Cell, steps: int) -> dict[str, Any]:
    """Does `WARMUP_STEPS` + `steps` training steps and one evaluation.

    Returns:
        What `run_steps` returns, and parameters, evaluation_ms, evaluation_miou_percent (of the random batch),
        memory_at_start_gib, peak_memory_gib and memory_kind: "gpu" (allocated by the framework) or "rss" (of the whole
        process; at the start it holds the libraries and the network).

    Raises:
        UserError: The network is unknown, or cannot be measured here.
    """
    stepper = open_stepper(cell)
    at_start, _ = memory(stepper)
    record = run_steps(stepper, batches(cell, WARMUP_STEPS + steps))
    peak, kind = memory(stepper)
    images, label = make_batch(cell)
    start = time.perf_counter()
    pred = stepper.predict(images)
    seconds = time.perf_counter() - start
    matrix = ConfusionMatrix(NUM_CLASSES)
    matrix.update(label, pred)
    return {
        **record,
        "parameters": stepper.parameters,
        "evaluation_ms": 1000 * seconds,
        "evaluation_miou_percent": 100 * matrix.mean_iou(),
        "memory_at_start_gib": at_start,
        "peak_memory_gib": peak,
        "memory_kind": kind,
    }


def run_steps(stepper: Stepper, stream: Iterator[Batch]) -> dict[str, Any]:
    """Trains on every batch of the stream.

    Returns:
        step_ms and load_ms (one value per timed step), losses and loss_scales (one per step, the warm-up too; None
        where a loss is not finite and where nothing is scaled), skipped_steps.
    """
    step_ms, load_ms, losses, scales, skipped = [], [], [], [], 0
    asked = time.perf_counter()
    for images, labels in stream:
        loaded = time.perf_counter()
        result = stepper.run(images, labels)
        done = time.perf_counter()
        loss = float(result.loss)
        load_ms.append(1000 * (loaded - asked))
        step_ms.append(1000 * (done - loaded))
        losses.append(loss if math.isfinite(loss) else None)
        scales.append(result.scale)
        skipped += bool(result.skipped)
        asked = time.perf_counter()
    return {
        "step_ms": step_ms[WARMUP_STEPS:],
        "load_ms": load_ms[WARMUP_STEPS:],
        "losses": losses,
        "loss_scales": scales,
        "skipped_steps": skipped,
    }


def memory(stepper: Stepper) -> tuple[float, str]:
    """Peak memory in GiB and its kind, "gpu" or "rss"."""
    on_gpu = stepper.peak_gpu_memory_gib()
    if on_gpu is not None:
        return on_gpu, "gpu"
    # Not getrusage: its ru_maxrss starts with the size of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak_kib) / 2**20, "rss"


def make_batch(cell: Cell) -> Batch:
    """Random images, and labels of blocks of 16x16, a twentieth of them ignored; always the same."""
    rng = np.random.default_rng(SEED)
    images = rng.standard_normal((cell.batch, 3, cell.height, cell.width), dtype=np.float32)
    blocks = rng.integers(0, NUM_CLASSES, (cell.batch, -(-cell.height // 16), -(-cell.width // 16)))
    blocks[rng.random(blocks.shape) < 0.05] = IGNORE
    labels = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, : cell.height, : cell.width]  # (B, H, W)
    return images, labels.astype(np.int64)


def batches(cell: Cell, count: int) -> Iterator[Batch]:
    """As many batches as steps, of the cell's loader."""
    if cell.loader == "synthetic":
        return itertools.repeat(make_batch(cell), count)
    return _toy_batches(cell, count)


def _toy_batches(cell: Cell, count: int) -> Iterator[Batch]:
    """Crops of images of twice the size, read, cropped, flipped and normalised by threads while a step runs."""
    from common.labels import label_set
    from common.samples.list_dataset import ListDataset
    from common.samples.stream import BatchLoader, TrainStream
    from common.toy_dataset import draw_toy

    size = (2 * cell.height, 2 * cell.width)
    root = TOY_ROOT / f"toy_{size[0]}x{size[1]}"
    draw_toy("cityscapes", root, num_train=16, num_val=2, size=size)

    def transform(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Batch:
        top, left = rng.integers(0, cell.height + 1), rng.integers(0, cell.width + 1)
        window = (slice(top, top + cell.height), slice(left, left + cell.width))
        image, label = image[window], label[window]
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        pixels = (image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)  # (3, H, W)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(label)

    stream = TrainStream(ListDataset(label_set("cityscapes"), root, "train.txt"), transform, SEED)
    for images, labels, _ in BatchLoader(stream, cell.batch, 0, count, LOADER_THREADS):
        yield images, labels


def open_stepper(cell: Cell) -> Stepper:
    """Builds the cell's network, ready to train.

    Raises:
        UserError: The network is unknown, or cannot be measured here.
    """
    if cell.library != "paddleseg":
        # Run as a file: imported as a part of the package, it would bring Paddle with it.
        return runpy.run_path(str(Path(__file__).with_name("peers.py")))["open_stepper"](*cell[:5])
    from paddleseg_benchmark import doctor, updates
    from paddleseg_benchmark.zoo import zoo

    import paddle

    why = updates.unsupported(doctor.device_kind(), cell.precision, cell.layout, cell.graph, cell.model)
    if why:
        raise UserError(f"{cell.model}: {why}")
    paddle.seed(SEED)
    build = functools.partial(zoo.build, cell.model, NUM_CLASSES, cell.layout)
    if cell.graph == "static":
        return updates.StaticStep(build, cell.batch, (cell.height, cell.width), cell.precision)
    return updates.DynamicStep(build(), cell.precision, cell.graph)


def one_line(error: BaseException) -> str:
    """An error in one line, short enough for a table: of Paddle's the summary, of long ones beginning and end."""
    summary = str(error).rpartition("Error Message Summary:")[2].strip(" -\n")
    line = f"{type(error).__name__}: {' '.join(summary.split())}"
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-195:]}"


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    cell = Cell(
        args.library, args.model, args.precision, args.layout, args.graph, args.batch_size, *args.size, args.loader
    )
    try:
        result = measure(cell, args.steps)
    except UserError:
        raise
    except Exception as error:  # whatever a framework raises is what there is to say about the cell
        traceback.print_exc()
        raise UserError(one_line(error)) from error
    with atomic_write(args.out) as stream:
        json.dump(result, stream, allow_nan=False)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--library",
        choices=LIBRARIES,
        default="paddleseg",
        help="library of the network (default: paddleseg)",
    )
    add("--model", required=True, metavar="NAME", help="name of the network in the zoo, for a peer's network too")
    add("--precision", default="fp32", metavar="NAME", help="precision: fp32, o1_fp16, o2_fp16 or bf16 (default: fp32)")
    layout_help = "memory layout inside the network (default: NCHW)"
    add("--layout", choices=("NCHW", "NHWC"), default="NCHW", help=layout_help)
    add("--graph", default="dynamic", metavar="NAME", help="graph: dynamic, to_static or static (default: dynamic)")
    add("--batch-size", type=positive, default=2, metavar="N", help="images per update (default: 2)")
    size_help = "height and width of the images in pixels (default: 128 256)"
    add("--size", type=positive, nargs=2, default=(128, 256), metavar=("H", "W"), help=size_help)
    loader_help = "take one random batch, or read files of toy data (default: synthetic)"
    add("--loader", choices=("synthetic", "toy"), default="synthetic", help=loader_help)
    add("--steps", type=positive, default=3, metavar="N", help="number of timed updates (default: 3)")
    add = parser.add_argument_group("data and output").add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="JSON file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
