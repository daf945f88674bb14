"""Times a training step and a forward of STDC2-Seg: this project beside paddleseg's STDCSeg.

    python benchmark.py                          # 4x3x128x256 and 4x3x256x512, one thread and all cores, 10 minutes
    python benchmark.py --sizes 128x256 --repeats 5 --threads 1 --output DIR

A training step is forward, losses, backward and update. paddleseg trains its own STDCSeg (backbone STDC2) with its
own losses (three OhemCrossEntropyLoss, DetailAggregateLoss, weights 1), made to run on paddle 3 by paddleseg_compat.py.
Both get the same random images and labels. Inference is an eval forward in dygraph of one image of 512x1024, the
input of "Seg50".

Three comparisons, since two things differ, the code and the CPU settings (common/machine/cpu.py):
    a  as people run them: ours as train.py starts, paddleseg with paddle's defaults (one thread)
    b  the same number of threads, paddle's defaults otherwise
    c  the same number of threads and the same CPU settings for both: what is left is code
Each network runs under each setting in a process of its own, kept alive; the steps of all processes take turns, one
at a time, so that noise meets all alike. Two steps each are warm-up. Times are medians with (min..max); a speed-up is
the ratio of the medians with the range of the ratios of single turns.

Writes timings.csv, speedups.csv and env.json into --output.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import CommandParser, positive, run_command
from common.files import write_csv
from common.machine.bench import (
    WARMUP_STEPS,
    Task,
    Worker,
    environment_of_new_processes,
    make_batch,
    measure,
    median_ms,
    new_output,
    seconds_of,
    serve_tasks,
    size_argument,
    speedup_columns,
    task_columns,
    time_columns,
    write_environment,
)
from common.machine.cpu import configure_cpu, physical_cores
from common.runs.environment import environment
from stdc_seg.config import read_config

NUM_CLASSES = 19
SMALLEST_SIDE = 65  # pixels of a training image
INFERENCE_SIZE = (512, 1024)
CPU_VARIABLES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")


class Setting(NamedTuple):
    """Under what a network is timed. `tuned`: with the CPU settings of common.machine.cpu besides the thread count."""

    network: str
    threads: int
    tuned: bool

    def __str__(self) -> str:
        return f"{self.network}, {self.threads} thread{'s' * (self.threads > 1)}, {self.cpu_settings}"

    @property
    def cpu_settings(self) -> str:
        """For the tables."""
        return "cpu.py" if self.tuned else "paddle's defaults"


class Comparison(NamedTuple):
    """Two settings to compare, and which of the questions a, b, c of the module they answer."""

    question: str
    ours: Setting
    paddleseg: Setting


Timings = Mapping[tuple[Task, Setting], Sequence[float]]  # seconds by turn


def serve(setting: Setting, pipe: Connection) -> None:
    """Runs in a worker process and times what comes through the pipe."""
    serve_tasks(pipe, lambda task: functools.partial(seconds_of, _make_step(setting.network, task)))


def start_worker(setting: Setting) -> Worker[Setting]:
    """Starts a process in which paddle finds this setting when it is imported."""
    variables = {"OMP_NUM_THREADS": str(setting.threads)}  # 1 is what paddle takes where nothing is set
    with environment_of_new_processes(variables | dict.fromkeys(CPU_VARIABLES[1:], "")):
        # For MKL "" is the same as none, and common/machine/cpu.py leaves what is set.
        if setting.tuned:
            del os.environ["MKL_DEBUG_CPU_TYPE"]
            configure_cpu()
        return Worker(setting, serve)


def _make_step(network: str, task: Task) -> Callable[[], float]:
    """Returns a function that does the task once and returns a number of its result, which it has waited for."""
    import paddle

    paddle.seed(0)
    images, label = (paddle.to_tensor(array) for array in make_batch(task, NUM_CLASSES))
    if task.kind == "infer":
        return _forward_step(network, images)
    return {"ours": _our_training_step, "paddleseg": _paddleseg_training_step}[network](images, label)


def _forward_step(network: str, images: Any) -> Callable[[], float]:
    import paddle

    model = _build(network)
    model.eval()

    @paddle.no_grad()
    def step() -> float:
        outputs = model(images)
        logits = outputs[0] if network == "paddleseg" else outputs
        return float(logits[0, 0, 0, 0])

    return step


def _build(network: str) -> Any:
    if network == "ours":
        from stdc_seg.models import build_model

        return build_model("stdc2", num_classes=NUM_CLASSES)
    from paddleseg.models import STDC2, STDCSeg

    return STDCSeg(NUM_CLASSES, STDC2())


def _our_training_step(images: Any, label: Any) -> Callable[[], float]:
    """As `train.Trainer` does it, with the losses and the optimizer of stdc2_seg50.yaml."""
    from stdc_seg.losses import STDCSegLoss
    from stdc_seg.models.layers import refuse_single_value_batch_norm
    from stdc_seg.optimizer import build_optimizer

    config = read_config("stdc2_seg50")
    model, loss = _build("ours"), STDCSegLoss(config.loss)
    optimizer = build_optimizer(model, config.optimizer)
    model.train()

    def step() -> float:
        with refuse_single_value_batch_norm(model):
            total, _ = loss(model(images), label)
        value = float(total)
        total.backward()
        optimizer.set_lr(1e-4)
        optimizer.step()
        optimizer.clear_grad()
        return value

    return step


def _paddleseg_training_step(images: Any, label: Any) -> Callable[[], float]:
    """As `paddleseg.core.train` does it, with the losses and the optimizer of its configs/stdcseg."""
    import importlib

    from stdc_seg import paddleseg_compat

    import paddle
    from paddleseg.models.losses import DetailAggregateLoss, OhemCrossEntropyLoss

    paddleseg_compat.apply()
    loss_computation = importlib.import_module("paddleseg.core.train").loss_computation
    losses = {"types": [*(OhemCrossEntropyLoss() for _ in range(3)), DetailAggregateLoss()], "coef": [1, 1, 1, 1]}
    model = _build("paddleseg")
    schedule = paddle.optimizer.lr.PolynomialDecay(1e-4, decay_steps=80000, end_lr=0, power=0.9)
    optimizer = paddle.optimizer.Momentum(schedule, 0.9, parameters=model.parameters(), weight_decay=4e-5)
    model.train()

    def step() -> float:
        loss = sum(loss_computation(model(images), label, None, losses))
        loss.backward()
        optimizer.step()
        schedule.step()
        model.clear_gradients()
        return float(loss)

    return step


def comparisons(threads: int, has_tuning: bool) -> list[Comparison]:
    """The comparisons for 1 and `threads` threads; without CPU settings of its own (not on AMD), c is the same as b."""
    found = [Comparison("a", Setting("ours", threads, has_tuning), Setting("paddleseg", 1, False))]
    for question, tuned in (("b", False), ("c", True))[: 1 + has_tuning]:
        for count in sorted({1, threads}):
            found.append(Comparison(question, *(Setting(network, count, tuned) for network in ("ours", "paddleseg"))))
    return found


def timing_rows(timings: Timings) -> list[dict[str, Any]]:
    """One row per task and setting."""
    return [
        {
            **task_columns(task),
            "network": setting.network,
            "threads": setting.threads,
            "cpu_settings": setting.cpu_settings,
            **time_columns(seconds, task.batch),
        }
        for (task, setting), seconds in timings.items()
    ]


def speedup_rows(timings: Timings, wanted: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row per comparison and task: how many times as fast ours is."""
    rows = []
    for task in dict.fromkeys(task for task, _ in timings):
        for question, ours, theirs in wanted:
            our_s, their_s = timings[task, ours], timings[task, theirs]
            rows.append(
                {
                    "comparison": question,
                    **task_columns(task),
                    "ours_threads": ours.threads,
                    "ours_cpu_settings": ours.cpu_settings,
                    "paddleseg_threads": theirs.threads,
                    "paddleseg_cpu_settings": theirs.cpu_settings,
                    "ours_median_ms": median_ms(our_s),
                    "paddleseg_median_ms": median_ms(their_s),
                    **speedup_columns(our_s, their_s),
                }
            )
    return rows


def table(timings: Timings, wanted: Sequence[Comparison]) -> str:
    """The timings and the speed-ups as text."""
    lines = ["median (min..max)"]
    for row in timing_rows(timings):
        setting = f"{row['network']}, {row['threads']} thr, {row['cpu_settings']}"
        lines.append(
            f"  {_shape(row):<19} {setting:<36}{row['median_ms']:9.1f} ms ({row['min_ms']:.1f}..{row['max_ms']:.1f})"
            f"  {row['images_per_s']:.2f} images/s"
        )
    lines.append("ours against paddleseg: ratio of medians (range over turns)")
    for row in speedup_rows(timings, wanted):
        sides = (f"{row[f'{side}_threads']} thr, {row[f'{side}_cpu_settings']}" for side in ("ours", "paddleseg"))
        lines.append(
            f"  {row['comparison']}  {_shape(row):<19} {' against '.join(sides):<60} "
            f"{row['speedup']:.2f}x ({row['speedup_min']:.2f}..{row['speedup_max']:.2f})"
        )
    return "\n".join(lines)


def _shape(row: Mapping[str, Any]) -> str:
    return str(Task(row["task"], row["batch"], row["height_px"], row["width_px"]))


def main() -> None:
    """Runs the command."""
    args = _parse_args()
    tasks = [Task("train", args.batch, *size) for size in args.sizes]
    tasks.append(Task("infer", 1, *INFERENCE_SIZE))
    tuned = {name: os.environ[name] for name in CPU_VARIABLES[1:] if name in os.environ}  # set by common/machine/cpu.py
    wanted = comparisons(args.threads, bool(tuned))
    settings = dict.fromkeys(setting for comparison in wanted for setting in comparison[1:])
    env = environment(
        ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "numpy"),
        project="stdc_seg",
        threads=args.threads,
        physical_cores=physical_cores(),
        cpu_variables_of_cpu_py=tuned,
        load_average_before=os.getloadavg(),
        warmup_steps=WARMUP_STEPS,
        repeats=args.repeats,
    )
    with ExitStack() as stack:
        workers = [stack.enter_context(start_worker(setting)) for setting in settings]
        timings = measure(workers, tasks, args.repeats)
    output = args.output or new_output()
    write_csv(output / "timings.csv", timing_rows(timings))
    write_csv(output / "speedups.csv", speedup_rows(timings, wanted))
    write_environment(output, env)
    print(table(timings, wanted))
    print(f"written: {output}/timings.csv, speedups.csv, env.json")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    sizes_help = "pixels of training images, of each size a row (default: 128x256 256x512)"
    sizes = [(128, 256), (256, 512)]
    size = size_argument(SMALLEST_SIDE)
    parser.add_argument("--sizes", nargs="+", type=size, default=sizes, metavar="HxW", help=sizes_help)
    batch_help = "images of a training step (default: 4)"
    parser.add_argument("--batch", type=positive, default=4, metavar="N", help=batch_help)
    parser.add_argument("--repeats", type=positive, default=7, metavar="N", help="timed steps of each (default: 7)")
    threads_help = "CPU threads, compared besides 1 (default: all physical cores, as train.py)"
    parser.add_argument("--threads", type=positive, default=physical_cores(), metavar="N", help=threads_help)
    output_help = "folder for the files (default: output/benchmark_<date>_<time>)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
