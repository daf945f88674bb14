"""The loop that train.py and static_train.py share: steps, log, evaluation, checkpoints, and the run folder."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from common.cli import UserError
from common.files import atomic_write
from common.progress import Progress
from common.run_log import Evaluation, RunLog, print_scores
from common.runs.plan import held
from common.runs.stopping import Stopped, StopSignals
from common.samples.stream import ValidPixels
from common.samples.survey import survey_for_training
from paddleseg_benchmark import processes
from paddleseg_benchmark.checkpoint import TrainState, load_stepper, read_state, save_checkpoint
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.eval import PROTOCOL, evaluate
from paddleseg_benchmark.matrix.measure import memory
from paddleseg_benchmark.runs import Plan, new_folder, run_environment
from paddleseg_benchmark.updates import DynamicStep, StaticStep, StepResult
from paddleseg_benchmark.zoo.batch_norm import share_batch_norm_statistics

import numpy as np
import paddle
import paddle.distributed as dist

COLUMNS = (
    *("step", "epoch", "loss", "learning_rate", "step_time_s", "data_time_s", "images_per_s"),
    *("peak_memory_gib", "loss_scale", "skipped_steps"),
)


class Training:
    """One run: network, data, and the files that it leaves.

    Args:
        plan: What to do.
        stepper: Network, losses and optimizer, ready to train.
        train_set: Images to train on; None for random ones.

    Raises:
        UserError: The checkpoint does not fit; the images to evaluate on, if that is planned, cannot be used; the data
            are not those that a resumed run began with.
    """

    def __init__(self, plan: Plan, stepper: DynamicStep | StaticStep, train_set: paddle.io.Dataset | None):
        self.plan, self.stepper, self.train_set = plan, stepper, train_set
        self.val_set = data.open_dataset(plan.config, "val") if plan.do_eval else None
        if self.val_set is not None:
            data.require_readable(self.val_set)
        if train_set is not None:
            self._say_what_the_data_are()
        self.step = self.evaluated_step = self.best_step = 0
        self.best_miou = math.nan
        if plan.checkpoint is not None:
            state = read_state(plan.checkpoint)
            load_stepper(plan.checkpoint, stepper, state)
            self.step, self.evaluated_step = state.step, state.evaluated_step
            self.best_miou, self.best_step = state.best_miou, state.best_step
        self.env = run_environment(plan, stepper, train_set, self.val_set, self.step)
        if plan.folder is not None:
            self.env.require_same_data(plan.folder)
        self.is_main = dist.get_rank() == 0
        self.total_batch = plan.batch_size * dist.get_world_size()
        self.seconds = self.data_seconds = 0.0  # of all steps, and of waiting for data in them

    def _say_what_the_data_are(self) -> None:
        """One line per list: images, sizes, classes in none of its labels; labels of one class alone are refused."""
        for line in survey_for_training(*map(data.LabelledPairs, (self.train_set, self.val_set or self.train_set))):
            if self.val_set is not None or line.startswith("train"):
                processes.say(line)

    def run(self) -> None:
        """Trains from the current step to the last, evaluating and saving on the way.

        Raises:
            Stopped: SIGTERM or SIGUSR1 arrived; what was learnt is saved.
            UserError: The loss or a weight is NaN or infinite, or the labels have hardly anything to learn; another
                process trains in the run's folder.
        """
        with StopSignals() as stop:
            self.folder = self.plan.folder or new_folder(self.plan)
            with held(self.folder, processes.rank()), stop.explained(self.folder, processes.say):
                self._run(stop)

    def _run(self, stop: StopSignals) -> None:
        self.log = RunLog(self.folder, COLUMNS)
        if self.is_main:
            self._start_log()
        with (
            loading.loader_failures_explained(),
            Progress(self.plan.iters, "train", "step", done=self.step, silent=not self.is_main) as bar,
        ):
            if self.step > 0:  # a resumed run may have been stopped between an update and its evaluation
                self._evaluate_if_due(stop, bar)
            self._train(stop, bar)
        if self.is_main:
            self._print_waiting()
            print(f"run: {self.folder}")

    def _train(self, stop: StopSignals, bar: Progress) -> None:
        plan, valid, window = self.plan, ValidPixels(), _Window()
        ready = time.perf_counter()
        for step, (images, labels, indices) in zip(range(self.step + 1, plan.iters + 1), self._batches(), strict=False):
            loaded = time.perf_counter()
            if not plan.synthetic and valid.labels < 200:
                valid.look_at(labels.numpy())
            rate = self.stepper.schedule()
            paddle.seed(_draw_seed(plan.seed, dist.get_rank(), step))  # of drop-out: the same in a resumed run
            result = self.stepper.run(images, labels)
            if not math.isfinite(result.loss) and not result.skipped:
                self._stop_at_nonfinite_loss(step, result.loss, indices)
            self.step = step
            done = time.perf_counter()
            window.add(done - ready, loaded - ready, result.skipped)
            self.seconds += done - ready
            self.data_seconds += loaded - ready
            bar.show(loss=result.loss)
            bar.update()
            if self.is_main and (step % plan.log_iters == 0 or step == plan.iters):
                self._log_window(step, result, rate, window, bar)
                window = _Window()
            if step == plan.iters and plan.checkpoint is None:  # a resumed run has seen only its last batches
                valid.at_the_end()
            self._save_and_evaluate(stop, bar)
            ready = time.perf_counter()

    def _save_and_evaluate(self, stop: StopSignals, bar: Progress) -> None:
        """Saves before it evaluates, so that nothing trained is lost to a failing or interrupted evaluation."""
        signal = processes.highest(stop.number)  # all processes stop after the same update
        if signal or self.step % self.plan.save_interval == 0 or self.step == self.plan.iters:
            self._save_last()
        if signal:
            raise Stopped(signal)
        self._evaluate_if_due(stop, bar)

    def _evaluate_if_due(self, stop: StopSignals, bar: Progress) -> None:
        """Evaluates the current step if it should be and is not yet."""
        plan = self.plan
        due = self.step % plan.save_interval == 0 or self.step == plan.iters
        if self.val_set is None or not due or self.evaluated_step == self.step:
            return
        share_batch_norm_statistics(self.stepper.zoo_network)
        if isinstance(self.stepper, StaticStep):
            self.stepper.update_zoo_network()
        with stop.at_once():
            result = evaluate(self.stepper.zoo_network, self.val_set)
        miou = result.matrix.mean_iou()
        self.evaluated_step, is_best = self.step, math.isnan(self.best_miou) or miou > self.best_miou
        if is_best:
            self.best_miou, self.best_step = miou, self.step
        if self.is_main:
            self._log_eval(result, bar)
            if is_best:
                save_checkpoint(self.folder / "best.safetensors", self.stepper.weights(), self._state())
        self._save_last()
        if self.is_main and self.step == plan.iters:
            bar.close()  # what is printed now stands below it
            print_scores(result, self.val_set.class_names, PROTOCOL, "val")

    def _save_last(self) -> None:
        """Saves last.safetensors, and beside it the checkpoints of the latest steps, so many as the plan keeps."""
        if not self.is_main or self.step == 0:
            return
        weights = self.stepper.weights()
        _require_finite(weights)
        last = self.folder / "last.safetensors"
        save_checkpoint(last, weights, self._state(), self.stepper.state().moments)
        if self.plan.keep_checkpoint_max > 1:
            kept = self.folder / f"iter_{self.step}.safetensors"
            save_checkpoint(kept, weights, self._state(), self.stepper.state().moments)
            for old in checkpoints_by_step(self.folder)[: -self.plan.keep_checkpoint_max]:
                old.unlink()

    def _state(self) -> TrainState:
        plan, state = self.plan, self.stepper.state()
        return TrainState(
            step=self.step,
            evaluated_step=self.evaluated_step,
            best_miou=self.best_miou,
            best_step=self.best_step,
            config_name=plan.name,
            config_text=str(plan.config),
            class_names=self.env.class_names,
            seed=plan.seed,
            data_root=plan.data_root,
            scope=plan.scope,
            layout=plan.layout,
            precision=plan.precision,
            graph=plan.graph,
            synthetic=plan.synthetic,
            do_eval=plan.do_eval,
            log_iters=plan.log_iters,
            save_interval=plan.save_interval,
            keep_checkpoint_max=plan.keep_checkpoint_max,
            schedule=state.schedule,
            loss_scale=state.loss_scale,
        )

    def _print_waiting(self) -> None:
        share = self.data_seconds / self.seconds if self.seconds else 0
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
            f"loss is {loss} at step {step}: stopped, checkpoints are untouched; the batch's images are in {path}; "
            f"lower the learning rate, or look at those images"
        )

    def _batches(self) -> Iterator[loading.Batch]:
        plan = self.plan
        if plan.synthetic:
            return loading.synthetic_batches(plan.batch_size, data.crop_size(plan.config), 19, plan.seed)
        return loading.batches(self.train_set, plan.batch_size, plan.num_workers, plan.seed, self.step)

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

    def _log_eval(self, result: Evaluation, bar: Progress) -> None:
        self.log.log_eval(self.step, "val", PROTOCOL, result, self.val_set.class_names)
        self.log.draw_curve(f"{self.plan.name}, val, {PROTOCOL}")
        miou, iters = result.matrix.mean_iou(), self.plan.iters
        bar.event(
            f"[EVAL] iter: {self.step}/{iters}, mIoU: {100 * miou:.2f} %, loss: {result.loss:.4f} "
            f"(best {100 * self.best_miou:.2f} % at {self.best_step})",
            step=self.step,
            total=iters,
            val_miou_percent=100 * miou,
            val_loss=result.loss,
            best_miou_percent=100 * self.best_miou,
            best_step=self.best_step,
        )

    def _start_log(self) -> None:
        self.log.trim(self.step, self.evaluated_step)
        config = copy.deepcopy(self.plan.config)
        for section in (config.dic["train_dataset"], config.dic["val_dataset"]):
            for key in ("dataset_root", "train_path", "val_path"):
                if os.path.isabs(section.get(key) or ""):  # run files are published, this machine's folders are not
                    section[key] = Path(section[key]).name
        self.log.start(str(config), self.env.values)


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


def checkpoints_by_step(folder: Path) -> list[Path]:
    """The checkpoints that --keep_checkpoint_max keeps in a run folder, in the order of their steps."""
    return sorted(folder.glob("iter_*.safetensors"), key=lambda path: int(path.stem.removeprefix("iter_")))


def _draw_seed(*position: int) -> int:
    """A seed below 2^63 of Paddle's generator for a position in a run."""
    return int(np.random.SeedSequence((*position, 1)).generate_state(1, np.uint64)[0] >> 1)


def _require_finite(weights: dict[str, np.ndarray]) -> None:
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"'{name}' holds NaN or infinity after the last update: it is not saved, checkpoints are untouched; "
                f"lower the learning rate"
            )
