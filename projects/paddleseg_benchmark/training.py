"""The loop that train.py and static_train.py share: steps, log, evaluation, and the run folder."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from common.cli import UserError, not_negative
from common.files import atomic_write
from common.progress import Progress
from common.run_log import RunLog, print_scores, run_id
from common.runs.environment import environment, git_commit
from common.samples.stream import ValidPixels
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.eval import PROTOCOL, evaluate
from paddleseg_benchmark.matrix.measure import memory
from paddleseg_benchmark.updates import DynamicStep, StaticStep, StepResult
from paddleseg_benchmark.zoo.batch_norm import share_batch_norm_statistics
from paddleseg_benchmark.zoo.zoo import ZooConfig

import numpy as np
import paddle
import paddle.distributed as dist
from safetensors.numpy import save

COLUMNS = (
    *("step", "epoch", "loss", "learning_rate", "step_time_s", "data_time_s", "images_per_s"),
    *("peak_memory_gib", "loss_scale", "skipped_steps"),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        name: Of the config, for the run folder.
        config: PaddleSeg's config with its data found.
        iters: Updates.
        batch_size: Images of one process in a step.
        seed: Of weights and augmentation.
        output: Where the run folder goes.
        log_iters: Steps between log lines.
        num_workers: Loader processes.
        synthetic: Random images instead of a data set.
        do_eval: Evaluate after the last step.
        words: What else env.json says: precision, layout, graph.
    """

    name: str
    config: ZooConfig
    iters: int
    batch_size: int
    seed: int
    output: Path
    log_iters: int
    num_workers: int
    synthetic: bool
    do_eval: bool
    words: dict[str, str]


class Training:
    """A run being done.

    Args:
        plan: What to do.
        stepper: Network, losses and optimizer, ready to train.
        train_set: Images to train on; None for random ones.

    Raises:
        UserError: The images to evaluate on, if that is planned, cannot be opened.
    """

    def __init__(self, plan: Plan, stepper: DynamicStep | StaticStep, train_set: paddle.io.Dataset | None):
        self.plan, self.stepper, self.train_set = plan, stepper, train_set
        self.val_set = data.open_dataset(plan.config, "val") if plan.do_eval else None
        commit, _ = git_commit(Path(__file__).parent)
        self.folder = _new_folder(plan.output, run_id(plan.name, plan.seed, commit))
        self.log = RunLog(self.folder, COLUMNS)
        self.is_main = dist.get_rank() == 0
        self.total_batch = plan.batch_size * dist.get_world_size()
        self.seconds = self.data_seconds = 0.0  # of all steps, and of waiting for data in them

    def run(self) -> None:
        """Trains; evaluates if asked; saves the weights.

        Raises:
            UserError: The loss or a weight is no number, or the labels have hardly anything to learn.
        """
        if self.is_main:
            self._start_log()
        with (
            loading.loader_failures_explained(),
            Progress(self.plan.iters, "train", "step", silent=not self.is_main) as bar,
        ):
            self._train(bar)
        zoo_network = self.stepper.zoo_network
        if isinstance(self.stepper, StaticStep):
            self.stepper.update_zoo_network()
        weights = {name: value.astype("float32").numpy() for name, value in zoo_network.network.state_dict().items()}
        _require_finite(weights)
        if self.plan.do_eval:
            share_batch_norm_statistics(zoo_network)
            result = evaluate(zoo_network, self.val_set)
            if self.is_main:
                self.log.log_eval(self.plan.iters, "val", PROTOCOL, result, self.val_set.class_names)
                self.log.draw_curve(f"{self.plan.name}, val, {PROTOCOL}")
                print_scores(result, self.val_set.class_names, PROTOCOL, "val")
        if self.is_main:
            self._print_waiting()
            with atomic_write(self.folder / "last.safetensors", "wb") as stream:
                stream.write(save(weights))
            print(f"run: {self.folder}")

    def _train(self, bar: Progress) -> None:
        valid, window = ValidPixels(), _Window()
        ready = time.perf_counter()
        for step, (images, labels, indices) in zip(range(1, self.plan.iters + 1), self._batches(), strict=False):
            loaded = time.perf_counter()
            if not self.plan.synthetic and valid.labels < 200:
                valid.look_at(labels.numpy())
            rate = self.stepper.schedule()
            result = self.stepper.run(images, labels)
            if not math.isfinite(result.loss) and not result.skipped:
                self._stop_at_nonfinite_loss(step, result.loss, indices)
            done = time.perf_counter()
            window.add(done - ready, loaded - ready, result.skipped)
            self.seconds += done - ready
            self.data_seconds += loaded - ready
            bar.show(loss=result.loss)
            bar.update()
            if self.is_main and (step % self.plan.log_iters == 0 or step == self.plan.iters):
                self._log_window(step, result, rate, window, bar)
                window = _Window()
            ready = time.perf_counter()
        valid.at_the_end()

    def _print_waiting(self) -> None:
        share = self.data_seconds / self.seconds
        print(f"training steps took {self.seconds:.0f} s, {100 * share:.1f} % of it waiting for data")
        if share > 0.2:
            now = f"now {self.plan.num_workers}"
            print(f"warning: loading is the bottleneck: raise the number of loader processes ({now}): see --help")

    def _stop_at_nonfinite_loss(self, step: int, loss: float, indices: list[int]) -> None:
        names = [self.train_set.file_list[index][0] for index in indices]
        path = self.folder / f"nonfinite_loss_step{step}_rank{dist.get_rank()}.json"
        with atomic_write(path) as stream:
            json.dump({"step": step, "loss": str(loss), "images": names}, stream, indent=2)
        raise UserError(
            f"loss is {loss} at step {step}: stopped, nothing is saved; the batch's images are in {path}; lower the "
            f"learning rate, or look at those images"
        )

    def _batches(self) -> Iterator[loading.Batch]:
        plan = self.plan
        if plan.synthetic:
            return loading.synthetic_batches(plan.batch_size, data.crop_size(plan.config), 19, plan.seed)
        return loading.batches(self.train_set, plan.batch_size, plan.num_workers)

    def _log_window(self, step: int, result: StepResult, rate: float, window: _Window, bar: Progress) -> None:
        """One line and one row about the steps since the last."""
        batch_cost, reader_cost = window.seconds / window.steps, window.data_seconds / window.steps
        peak, kind = memory(self.stepper)
        images = len(self.train_set) if self.train_set is not None else self.total_batch
        row = {
            "step": step,
            "epoch": f"{step * self.total_batch / images:.3f}",
            "loss": f"{result.loss:.9g}",
            "learning_rate": f"{rate:.9g}",
            "step_time_s": f"{batch_cost:.4f}",
            "data_time_s": f"{reader_cost:.4f}",
            "images_per_s": f"{self.total_batch / batch_cost:.4f}",
            "peak_memory_gib": f"{peak:.3f}",
            "loss_scale": result.scale,
            "skipped_steps": window.skipped,
        }
        self.log.log_train(row)
        bar.event(
            f"[TRAIN] iter: {step}/{self.plan.iters}, loss: {result.loss:.4f}, lr: {rate:.6f}, "
            f"batch_cost: {batch_cost:.4f}, reader_cost: {reader_cost:.5f}, "
            f"ips: {self.total_batch / batch_cost:.4f} samples/sec, peak memory: {peak:.2f} GiB ({kind})",
            step=step,
            total=self.plan.iters,
            loss=result.loss,
            learning_rate=rate,
            step_time_s=round(batch_cost, 4),
            data_time_s=round(reader_cost, 4),
            images_per_s=round(self.total_batch / batch_cost, 4),
            peak_memory_gib=round(peak, 3),
        )

    def _start_log(self) -> None:
        plan = self.plan
        made_up = plan.synthetic or data.is_embedded(plan.config)
        whole = plan.iters >= plan.config.iters
        env = environment(
            ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "numpy", "opencv-python-headless"),
            project="paddleseg_benchmark",
            config=plan.name,
            seed=plan.seed,
            scope="smoke" if made_up else "full" if whole else "reduced",
            dataset=_dataset_name(plan),
            processes=dist.get_world_size(),
            total_batch_size=self.total_batch,
            device=paddle.device.get_device(),
            trainable_parameters=self.stepper.parameters,
            **plan.words,
        )
        self.log.trim(0)
        config = copy.deepcopy(plan.config)
        for section in (config.dic["train_dataset"], config.dic["val_dataset"]):
            for key in ("dataset_root", "train_path", "val_path"):
                if os.path.isabs(section.get(key) or ""):  # run files are published, this machine's folders are not
                    section[key] = Path(section[key]).name
        self.log.start(str(config), env)


@dataclasses.dataclass
class _Window:
    """Sums over the steps since the last log line."""

    steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    skipped: int = 0

    def add(self, seconds: float, data_seconds: float, skipped: bool) -> None:
        self.steps += 1
        self.seconds += seconds
        self.data_seconds += data_seconds
        self.skipped += skipped


def seed(text: str) -> int:
    """A word of a command that NumPy takes for a seed, also with the number of a process added."""
    number = not_negative(text)
    if number >= 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not a number below 2^31")
    return number


def _require_finite(weights: dict[str, np.ndarray]) -> None:
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"'{name}' holds what is no number after the last update: nothing is saved; lower the learning rate"
            )


def _dataset_name(plan: Plan) -> str:
    if plan.synthetic:
        return "synthetic"
    return "toy" if data.is_embedded(plan.config) else plan.config.train_dataset_cfg["type"].lower()


def _new_folder(output: Path, name: str) -> Path:
    """output/name, or name_2, name_3... if a run of that name has begun already: nothing is overwritten."""
    number = 1
    while (output / (name if number == 1 else f"{name}_{number}") / "config.yaml").exists():
        number += 1
    if dist.get_world_size() > 1:  # process 0 may have begun to write when another looks
        agreed = paddle.to_tensor([number])
        dist.broadcast(agreed, 0)
        number = int(agreed)
    return output / (name if number == 1 else f"{name}_{number}")
