"""Times a training step and a forward of PSPNet-R50 and DeepLabv3-R50 beside those of other libraries.

    python benchmark.py                                   # training 4x3x256x512, a forward 1x3x512x1024; 20 minutes
    python benchmark.py --sizes 128x256 --batch 2 --repeats 3 --inference-size 256x512 --output DIR

    family      ours         beside it
    pspnet      PSPNet       smp's PSPNet with its encoder dilated to output stride 8; torchvision's fcn_resnet50
    deeplabv3   DeepLabV3    smp's DeepLabV3 at output stride 8; torchvision's deeplabv3_resnet50

They are not the same networks to the last layer, so the table has the multiply-adds of a forward. smp's have no
auxiliary head (nor has our DeepLabV3, as in its paper), and its PSPNet fuses the pyramid by a 1x1 convolution where the
paper's has 3x3; as shipped (three of five encoder stages, not dilated) it would be another network altogether.
torchvision's FCN has no pyramid; its DeepLabV3 has an auxiliary head and one more 3x3 convolution.

A training step is forward, cross entropy (0.4 times that of the auxiliary output where there is one), backward and SGD.
All get the same random pictures and labels, the GPU if there is one, and the same number of threads otherwise. Three
comparisons:
    fp32      all in float32
    bf16      all under autocast to bfloat16
    settings  ours as recommended (bf16, channels-last) beside the others in float32, as they come
Each network runs in a process of its own, kept alive while its family is timed; the steps of all processes take turns,
one at a time, so that noise meets all alike. Two steps each are warm-up. Times are medians with (min..max); a speed-up
is the ratio of the medians with the range of the ratios of single turns.

Writes timings.csv, speedups.csv and env.json into --output (default: output/benchmark_<date>_<time>).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import UserError, run_command
from common.cpu import physical_cores
from common.files import atomic_write
from common.run_log import environment

import numpy as np
from tqdm import tqdm

NUM_CLASSES, AUX_WEIGHT = 19, 0.4
WARMUP_STEPS = 2
FAMILIES = {"pspnet": ("ours", "smp", "torchvision_fcn"), "deeplabv3": ("ours", "smp", "torchvision")}
MODES = ("fp32", "bf16", "bf16_channels_last")
COMPARISONS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "settings": ("bf16_channels_last", "fp32")}


class Network(NamedTuple):
    """One of the networks that are timed."""

    family: str
    library: str

    def __str__(self) -> str:
        return f"{self.family} {self.library}"


class Task(NamedTuple):
    """What is timed: "train" (a step) or "infer" (a forward) in a mode, with this batch size, height and width."""

    kind: str
    mode: str
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind} {self.batch}x3x{self.height}x{self.width} {self.mode}"


class Answer(NamedTuple):
    """What a worker says of a task done once."""

    seconds: float
    gmacs: float


Timings = Mapping[tuple[Task, Network], Sequence[float]]  # seconds by turn


class Worker:
    """A process that times tasks of one network, one at a time.

    Args:
        network: What it times.
        serve: What runs in the process: answers each task that comes through the pipe with an `Answer`, or with the
            text of an error, until the pipe is closed.
    """

    def __init__(self, network: Network, serve: Callable[[Network, Connection], None]):
        self.network = network
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(network, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, task: Task) -> Answer:
        """Does the task once.

        Raises:
            UserError: The process failed or died.
        """
        try:
            self._pipe.send(task)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise UserError(f"{self.network}: the process died in '{task}' (exit {self._process.exitcode})") from None
        if isinstance(answer, str):
            raise UserError(f"{self.network}: '{task}' failed: {answer}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which ends the process
        self._process.join()


def serve(network: Network, pipe: Connection) -> None:
    """Runs in a worker process and times what comes through the pipe."""
    for stream in (1, 2):  # what libraries print would tear the progress bar; errors go through the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    current = step = gmacs = None
    with suppress(EOFError):  # the parent has closed the pipe
        while True:
            task = pipe.recv()
            try:
                if task != current:
                    step = None  # frees the memory of the last one first
                    current, (step, gmacs) = task, make_step(network, task)
                start = time.perf_counter()
                result = step()
                seconds = time.perf_counter() - start
                pipe.send(Answer(seconds, gmacs) if np.isfinite(result) else f"the result is {result}")
            except Exception as error:  # whatever it is, the parent says it in one line
                pipe.send(f"{type(error).__name__}: {error}")


def make_batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures float32 (B, 3, H, W), labels int64 (B, H, W) of blocks of 16x16, a twentieth of them ignored."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((task.batch, 3, task.height, task.width), dtype=np.float32)
    blocks = rng.integers(0, NUM_CLASSES, (task.batch, -(-task.height // 16), -(-task.width // 16)))
    blocks[rng.random(blocks.shape) < 0.05] = 255
    return images, blocks.repeat(16, axis=1).repeat(16, axis=2)[:, : task.height, : task.width].astype(np.int64)


def make_step(network: Network, task: Task) -> tuple[Callable[[], float], float]:
    """Builds the network and the batch.

    Returns:
        A function that does the task once and returns a number of its result, which it has waited for; and 10^9
        multiply-adds of a forward of one picture.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if task.mode == "bf16_channels_last" else torch.contiguous_format
    model = build(network).to(device, memory_format=layout).train(task.kind == "train")
    images, label = (torch.from_numpy(array).to(device) for array in make_batch(task))
    images = images.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=1e-4)
    autocast = torch.autocast(device, torch.bfloat16, enabled=task.mode != "fp32")

    def train() -> float:
        with autocast:
            outputs = outputs_of(model(images))
        loss = sum(
            weight * torch.nn.functional.cross_entropy(logits.float(), label, ignore_index=255)
            for weight, logits in zip((1.0, AUX_WEIGHT), outputs, strict=False)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def infer() -> float:
        with autocast:
            logits = outputs_of(model(images))[0]
        return float(logits[0, 0, 0, 0])

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return (train if task.kind == "train" else infer), counter.get_total_flops() / 2e9 / task.batch


def build(network: Network) -> Any:
    """The network with random weights, ResNet-50 and output stride 8."""
    if network.library == "ours":
        from awesome_pytorch_seg.models import build_model

        return build_model(network.family, "resnet50", NUM_CLASSES)
    if network.library == "smp":
        import segmentation_models_pytorch as smp

        if network.family == "deeplabv3":
            return smp.DeepLabV3("resnet50", encoder_weights=None, encoder_output_stride=8, classes=NUM_CLASSES)
        model = smp.PSPNet("resnet50", encoder_weights=None, encoder_depth=5, upsampling=8, classes=NUM_CLASSES)
        model.encoder.make_dilated(output_stride=8)
        return model
    from torchvision.models import segmentation

    door = segmentation.deeplabv3_resnet50 if network.library == "torchvision" else segmentation.fcn_resnet50
    return door(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)


def outputs_of(result: Any) -> tuple[Any, ...]:
    """Main logits, and auxiliary ones where there are any, of whatever form a library gives them in."""
    if isinstance(result, Mapping):
        return tuple(result.values())
    return result if isinstance(result, tuple) else (result,)


def measure(
    workers: Iterable[Worker], tasks: Sequence[Task], repeats: int
) -> tuple[dict[tuple[Task, Network], list[float]], dict[tuple[Task, Network], float]]:
    """Times every task in every worker: one step of each worker, then one of each in reverse order, and so on.

    Returns:
        Seconds by turn, and 10^9 multiply-adds.
    """
    workers = list(workers)
    seconds = {(task, worker.network): [] for task in tasks for worker in workers}
    gmacs = {}
    with tqdm(total=len(seconds) * (WARMUP_STEPS + repeats), desc="benchmark", unit="step", disable=None) as bar:
        for task, turn in itertools.product(tasks, range(-WARMUP_STEPS, repeats)):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                answer = worker.run(task)
                gmacs[task, worker.network] = answer.gmacs
                if turn >= 0:
                    seconds[task, worker.network].append(answer.seconds)
                bar.update()
    return seconds, gmacs


def timing_rows(timings: Timings, gmacs: Mapping[tuple[Task, Network], float]) -> list[dict[str, Any]]:
    """One row per task and network."""
    return [
        {
            **network._asdict(),
            **_task_columns(task),
            "mode": task.mode,
            "gmacs_per_picture": round(gmacs[task, network], 2),
            "median_ms": round(1000 * statistics.median(seconds), 2),
            "min_ms": round(1000 * min(seconds), 2),
            "max_ms": round(1000 * max(seconds), 2),
            "images_per_s": round(task.batch / statistics.median(seconds), 3),
            "repeats": len(seconds),
        }
        for (task, network), seconds in timings.items()
    ]


def speedup_rows(timings: Timings) -> list[dict[str, Any]]:
    """One row per comparison, task and other library: how many times as fast ours is."""
    rows = []
    for (name, modes), (task, network) in itertools.product(COMPARISONS.items(), timings):
        if task.mode != modes[1] or network.library == "ours":
            continue
        our_s = timings[task._replace(mode=modes[0]), Network(network.family, "ours")]
        their_s = timings[task, network]
        turns = [theirs / ours for ours, theirs in zip(our_s, their_s, strict=True)]
        rows.append(
            {
                "comparison": name,
                "family": network.family,
                "beside": network.library,
                **_task_columns(task),
                "ours_mode": modes[0],
                "their_mode": modes[1],
                "ours_median_ms": round(1000 * statistics.median(our_s), 2),
                "their_median_ms": round(1000 * statistics.median(their_s), 2),
                "speedup": round(statistics.median(their_s) / statistics.median(our_s), 3),
                "speedup_min": round(min(turns), 3),
                "speedup_max": round(max(turns), 3),
            }
        )
    return rows


def table(timings: Timings, gmacs: Mapping[tuple[Task, Network], float]) -> str:
    """The timings and the speed-ups as text."""
    lines = ["median (min..max)"]
    for row in timing_rows(timings, gmacs):
        lines.append(
            f"  {_shape(row):<22} {row['family']:<10} {row['library']:<16} {row['mode']:<19}{row['median_ms']:9.1f} ms "
            f"({row['min_ms']:.1f}..{row['max_ms']:.1f})  {row['gmacs_per_picture']:.1f} GMAC/picture"
        )
    lines.append("ours against the others: ratio of medians (range over turns)")
    for row in speedup_rows(timings):
        modes = f"{row['ours_mode']} against {row['their_mode']}"
        lines.append(
            f"  {row['comparison']:<9} {_shape(row):<22} {row['family']:<10} {row['beside']:<16} {modes:<32} "
            f"{row['speedup']:.2f}x ({row['speedup_min']:.2f}..{row['speedup_max']:.2f})"
        )
    return "\n".join(lines)


def _task_columns(task: Task) -> dict[str, Any]:
    return {"task": task.kind, "batch": task.batch, "height_px": task.height, "width_px": task.width}


def _shape(row: Mapping[str, Any]) -> str:
    return f"{row['task']} {row['batch']}x3x{row['height_px']}x{row['width_px']}"


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """The command."""
    args = _parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # workers read it when they start
    shapes = [("train", args.batch, *size) for size in args.sizes] + [("infer", 1, *args.inference_size)]
    tasks = [Task(kind, mode, *shape) for kind, *shape in shapes for mode in MODES]
    env = environment(
        ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy"),
        project="awesome_pytorch_seg",
        threads=args.threads,
        physical_cores=physical_cores(),
        device=_device_name(),
        load_average_before=os.getloadavg(),
        warmup_steps=WARMUP_STEPS,
        repeats=args.repeats,
    )
    timings, gmacs = {}, {}
    for family in args.families:
        with ExitStack() as stack:
            networks = [Network(family, library) for library in FAMILIES[family]]
            workers = [stack.enter_context(Worker(network, serve)) for network in networks]
            for found, store in zip(measure(workers, tasks, args.repeats), (timings, gmacs), strict=True):
                store.update(found)
    output = args.output or Path("output") / datetime.now(UTC).strftime("benchmark_%Y%m%d_%H%M%S")
    _write_csv(output / "timings.csv", timing_rows(timings, gmacs))
    _write_csv(output / "speedups.csv", speedup_rows(timings))
    with atomic_write(output / "env.json") as stream:
        json.dump(env, stream, indent=2)
    print(table(timings, gmacs))
    print(f"written: {output}/timings.csv, speedups.csv, env.json")


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="default: both")
    add("--sizes", nargs="+", type=_size, default=[(256, 512)], metavar="HxW", help="of training pictures")
    add("--batch", type=_positive, default=4, metavar="N", help="pictures a training step, from 2 (default 4)")
    add("--inference-size", type=_size, default=(512, 1024), metavar="HxW", help="of the picture of a forward")
    add("--repeats", type=_positive, default=5, metavar="N", help="timed steps (default 5)")
    threads_help = "CPU threads of each (default: all physical cores, as train.py)"
    add("--threads", type=_positive, default=physical_cores(), metavar="N", help=threads_help)
    add("--output", type=Path, metavar="DIR", help="default: output/benchmark_<date>_<time>")
    args = parser.parse_args()
    if args.batch == 1:
        raise UserError("--batch 1: batch normalisation after global pooling needs at least 2 pictures")
    return args


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(map(int, found.groups())) < 65:
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH with at least 65 pixels a side")
    return int(found[1]), int(found[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


if __name__ == "__main__":
    run_command(main)
