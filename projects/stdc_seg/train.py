"""Trains STDC-Seg.

    python train.py                           # Cityscapes in data/cityscapes if it is there, else the toy data
    python train.py --config stdc2_seg50      # the official recipe; configs/ holds the others
    python train.py --config camvid --data DIR --iters 2000 optimizer.learning_rate=0.02
    python train.py --resume                  # resume the latest run under output/
    python -m paddle.distributed.launch --nproc_per_node 2 train.py --config stdc2_seg50

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU). SIGTERM and SIGUSR1 end the update in
flight, save last.safetensors and exit with 128 + the signal's number.

Expected of --config stdc2_seg50: 74.24 % mIoU on Cityscapes val (the paper's); results/README.md has our own runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.progress import Progress
from common.run_log import Evaluation, RunLog, print_scores, show_evaluation
from common.runs.environment import RunEnvironment
from common.runs.plan import NonFiniteLoss, batch_lines, end_lines, held, stop_at_nonfinite_loss
from common.runs.provenance import data_seen, refuse_other_data
from common.runs.stopping import Stopped, StopSignals
from common.samples.roots import draw_toy_data, open_list, with_root
from common.samples.stream import BatchLoader, ValidPixels
from common.samples.survey import require_image_sides, survey_for_training
from common.weights.card import require_same_input
from stdc_seg import processes
from stdc_seg.checkpoint import (
    TrainState,
    load_backbone,
    load_for_finetune,
    load_model,
    load_optimizer,
    save_checkpoint,
)
from stdc_seg.data.dataset import train_stream
from stdc_seg.eval import evaluate
from stdc_seg.flags import parse_args
from stdc_seg.losses import LOG_NAMES, STDCSegLoss
from stdc_seg.lr_schedule import learning_rate
from stdc_seg.models import build_model
from stdc_seg.models.layers import refuse_single_value_batch_norm
from stdc_seg.optimizer import build_optimizer
from stdc_seg.protocol import smallest_scale
from stdc_seg.runs import RunPlan, plan_run
from stdc_seg.updates import Updater

import numpy as np
import paddle

TRAIN_COLUMNS = ("step", "epoch", "loss", *LOG_NAMES, "learning_rate", "step_time_s", "data_time_s")


class Trainer:
    """One run: network, data, updates, and the files that it leaves."""

    def __init__(self, plan: RunPlan):
        config, train = plan.config, plan.config.train
        pieces = train.accumulate * processes.world_size()
        if train.accumulate > 1 and train.batch_size % pieces:
            raise UserError(
                f"train.batch_size {train.batch_size} cannot be cut into {train.accumulate} micro-batches in each of "
                f"{processes.world_size()} processes: make it a multiple of {pieces}"
            )
        self.plan, self.config = plan, config
        draw_toy_data(config.data, plan.data_root)
        self.data = with_root(config.data, plan.data_root)
        self.train_set = open_list(self.data, config.data.train_list)
        self.val_set = open_list(self.data, config.data.val_list)
        self.seen = data_seen(plan.data_root or config.data.root, self.data.root, self.train_set, self.val_set)
        require_image_sides(self.val_set, lambda size: smallest_scale(size, config.eval))
        processes.say(survey_for_training(self.train_set, self.val_set))
        self.labels = self.train_set.labels
        paddle.seed(train.seed)
        model = build_model(config.model.name, num_classes=self.labels.num_classes)
        if config.model.backbone_weights and plan.checkpoint is None:
            require_same_input(config.model.backbone_weights, self.data.mean, self.data.std)
            load_backbone(config.model.backbone_weights, model.backbone)
        if config.model.finetune and plan.checkpoint is None:
            weights, names = config.model.finetune, self.labels.class_names
            processes.say(load_for_finetune(weights, model, names, self.data.mean, self.data.std))
        optimizer = build_optimizer(model, config.optimizer)
        self.step, self.best_miou, self.best_step, self.is_evaluated = 0, math.nan, 0, True
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        if plan.checkpoint is not None:
            state = load_model(plan.checkpoint, model, self.labels.class_names)
            load_optimizer(plan.checkpoint, model, optimizer)
            self.step, self.best_miou, self.best_step = state.step, state.best_miou, state.best_step
            self.is_evaluated = state.is_evaluated
        refuse_other_data(plan.recorded, self.seen, plan.folder)
        self.updater = Updater(model, STDCSegLoss(config.loss), optimizer, train.accumulate)
        self.model = self.updater.model
        self.is_main = processes.rank() == 0
        self.log = RunLog(plan.folder, TRAIN_COLUMNS)

    # twin: semsegpaddle_glore/train.py
    def run(self, stop: StopSignals | None = None) -> None:
        """Trains from the current step to the last, evaluating and saving on the way.

        Raises:
            Stopped: A signal of `stop` arrived; what was learnt is saved.
        """
        train, stop = self.config.train, stop or StopSignals()
        if self.is_main:
            self._start_log()
        self.model.train()
        valid = ValidPixels()
        with (
            refuse_single_value_batch_norm(self.model),
            Progress(train.iters, "train", "step", done=self.step, silent=not self.is_main) as bar,
        ):
            if not self.is_evaluated:  # the run ended in the evaluation of its last checkpoint's step
                self._evaluate(bar, stop)
            ready = time.perf_counter()
            for images, label, indices in self._batches():
                loaded = time.perf_counter()
                valid.look_at(label)
                rate = learning_rate(self.step, train.iters, self.config.optimizer)
                total, parts = self._gradients(images, label, indices)
                self.updater.apply(rate)
                self.step += 1
                done = time.perf_counter()
                self.seconds += done - ready
                self.data_seconds += loaded - ready
                bar.show(loss=total, best_miou_percent=100 * self.best_miou)
                bar.update()
                if self.is_main and (self.step % train.log_every == 0 or self.step == train.iters):
                    self._log_step(total, parts, rate, done - ready, loaded - ready)
                # A resumed run has seen only its last batches: too few to conclude that the labels are wrong.
                if self.step == train.iters and self.plan.checkpoint is None:
                    valid.at_the_end()
                self._save_and_evaluate(bar, stop)
                ready = time.perf_counter()

    # twin: semsegpaddle_glore/train.py
    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(b, 3, h, w) float32, (b, h, w) int64 and indices (b,) int64: this process's share of each step's batch."""
        train = self.config.train
        stream = train_stream(self.train_set, self.data, self.config.augment, train.seed)
        ours = (train.num_workers, processes.rank(), processes.world_size())
        return iter(BatchLoader(stream, train.batch_size, self.step, train.iters, *ours))

    # twin: semsegpaddle_glore/train.py
    def _gradients(self, images: np.ndarray, label: np.ndarray, indices: np.ndarray) -> tuple[float, dict[str, float]]:
        try:
            return self.updater.gradients(images, label, self.step)
        except NonFiniteLoss as error:
            names = [self.train_set.pairs[index].image for index in indices]
            option, rank = "optimizer.learning_rate", processes.rank()
            stop_at_nonfinite_loss(self.plan.folder, self.step + 1, error.value, names, option, rank)
            raise

    # twin: semsegpaddle_glore/train.py
    def _save_and_evaluate(self, bar: Progress, stop: StopSignals) -> None:
        """Saves before it evaluates, so that nothing trained is lost to a failing or interrupted evaluation."""
        train = self.config.train
        self.is_evaluated = self.step % train.eval_every != 0 and self.step != train.iters
        signal = processes.highest(stop.number)  # all processes stop after the same update
        if self.is_main and (signal or not self.is_evaluated or self.step % train.checkpoint_every == 0):
            self._save("last.safetensors")
        if signal:
            raise Stopped(signal)
        if not self.is_evaluated:
            self._evaluate(bar, stop)

    def _evaluate(self, bar: Progress, stop: StopSignals) -> None:
        processes.share_buffers(self.model)
        with stop.at_once():
            result = evaluate(self.model, self.val_set, self.data, self.config.eval, f"val at {self.step}")
        miou, self.is_evaluated = result.matrix.mean_iou(), True
        is_best = math.isnan(self.best_miou) or miou > self.best_miou
        if is_best:
            self.best_miou, self.best_step = miou, self.step
        if self.is_main:
            self._log_eval(result)
            if is_best:
                self._save("best.safetensors", is_resumable=False)
            self._save("last.safetensors")
            self._show_eval(result, bar)

    def _save(self, name: str, is_resumable: bool = True) -> None:
        state = TrainState(
            step=self.step,
            best_miou=self.best_miou,
            best_step=self.best_step,
            config_text=config_to_text(self.config),
            class_names=self.labels.class_names,
            mean=self.config.data.mean,
            std=self.config.data.std,
            palette=tuple(map(tuple, self.labels.palette.tolist())),
            is_evaluated=self.is_evaluated,
        )
        save_checkpoint(self.plan.folder / name, self.model, state, self.updater.optimizer if is_resumable else None)

    def _start_log(self) -> None:
        self.log.trim(self.step, None if self.is_evaluated else self.step - 1)
        model, resumed = self.config.model, self.plan.checkpoint is not None
        env = RunEnvironment.here(
            ("paddlepaddle", "paddlepaddle-gpu", "numpy", "opencv-python-headless"),
            project="stdc_seg",
            config=self.plan.config_name,
            seed=self.config.train.seed,
            scope=self.config.scope,
            dataset=self.config.data.dataset,
            train_images=len(self.train_set),
            val_images=len(self.val_set),
            class_names=self.labels.class_names,
            processes=processes.world_size(),
            device=paddle.device.get_device(),
            trainable_parameters=sum(p.size for p in self.model.parameters() if not p.stop_gradient),
            **self.log.start_digests(resumed, backbone_weights=model.backbone_weights, finetune=model.finetune),
            **self.seen,
            resumed_at_step=self.step,
        )
        self.log.start(config_to_text(self.config), env)

    # twin: semsegpaddle_glore/train.py
    def _log_step(self, total: float, parts: dict, rate: float, step_time: float, data_time: float) -> None:
        values = {name: f"{value:.9g}" for name, value in parts.items()}
        times = {"step_time_s": f"{step_time:.4f}", "data_time_s": f"{data_time:.4f}"}
        epoch = self.step * self.config.train.batch_size / len(self.train_set)
        row = {"step": self.step, "epoch": f"{epoch:.3f}", "loss": f"{total:.9g}", "learning_rate": f"{rate:.9g}"}
        self.log.log_train({**row, **values, **times})

    # twin: semsegpaddle_glore/train.py
    def _log_eval(self, result: Evaluation) -> None:
        self.log.log_eval(self.step, "val", str(self.config.eval), result, self.labels.class_names)
        self.log.draw_curve(f"{self.plan.config_name}, {self.config.data.dataset} val, {self.config.eval}")

    # twin: semsegpaddle_glore/train.py
    # twin: awesome_pytorch_seg/train.py
    def _show_eval(self, result: Evaluation, bar: Progress) -> None:
        show_evaluation(bar, self.step, result, self.best_miou, self.best_step)
        if self.step == self.config.train.iters:
            bar.close()  # what is printed now stands below it
            print_scores(result, self.labels.class_names, self.config.eval, "val")


def main() -> None:
    """The command."""
    args = parse_args(__doc__)
    with StopSignals() as stop:
        processes.join()
        plan = plan_run(args)
        if plan.is_finished:
            processes.say(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
            return
        with held(plan.folder, processes.rank()), stop.explained(plan.folder, processes.say):
            with stop.at_once():
                trainer = Trainer(plan)
            for line in batch_lines(plan, processes.world_size(), plan.config.train.accumulate):
                processes.say(line)
            trainer.run(stop)
            for line in _end(trainer) if trainer.is_main else ():
                print(line)


# twin: semsegpaddle_glore/train.py
def _end(trainer: Trainer) -> list[str]:
    workers = f"train.num_workers (now {trainer.config.train.num_workers})"
    times = (trainer.seconds, trainer.data_seconds)
    return end_lines(trainer.plan.folder, *times, workers, trainer.best_miou, trainer.best_step)


if __name__ == "__main__":
    run_command(main)
