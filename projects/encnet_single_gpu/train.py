"""Trains a segmentation network on one GPU, or on a CPU.

    python train.py                                  # PSPNet on ADE20K, the original's recipe: 384 pixels, batch 12
    python train.py --model encnet --background      # EncNet, 400 pixels, batch 8; 151 classes, the background one
    python train.py --model encnet --paper           # the paper's: 480 pixels, batch 16 through accumulation
    python train.py --model unet --crop-size 256 --fit-memory --amp bf16
    python train.py --config quickstart              # minutes on two CPU cores, with images that it draws itself
    python train.py --resume                         # resume the latest run under output/

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU). SIGTERM and SIGUSR1 end the update in
flight, save last.safetensors and exit with 128 + the signal's number.

Expected of the papers' recipes: results/README.md has their numbers, and our own runs beside them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.machine.memory import keep_freed_memory
from common.progress import Progress
from common.run_log import Evaluation, RunLog, print_scores, show_evaluation
from common.runs.environment import RunEnvironment
from common.runs.plan import NonFiniteLoss, batch_lines, end_lines, held, stop_at_nonfinite_loss
from common.runs.provenance import data_seen, refuse_other_data
from common.runs.stopping import Stopped, StopSignals
from common.samples.roots import draw_toy_data, open_list, toy_name, with_root
from common.samples.stream import ValidPixels
from common.samples.survey import require_image_sides, survey_for_training
from common.weights.card import require_same_input
from common.weights.package import weight_file
from encnet_single_gpu import processes
from encnet_single_gpu.checkpoint import (
    TrainState,
    load_average,
    load_for_finetune,
    load_model,
    load_optimizer,
    save_checkpoint,
)
from encnet_single_gpu.data.dataset import train_batches
from encnet_single_gpu.eval import evaluate
from encnet_single_gpu.flags import parse_args
from encnet_single_gpu.losses import SegmentationLoss
from encnet_single_gpu.lr_schedule import learning_rate
from encnet_single_gpu.memory import largest_micro_batch, memory_errors_explained, micro_batches
from encnet_single_gpu.models import build_model
from encnet_single_gpu.models.backbones import load_backbone
from encnet_single_gpu.models.layers import refuse_single_value_batch_norm
from encnet_single_gpu.optimizer import WeightAverage, build_optimizer
from encnet_single_gpu.protocol import EvalProtocol, smallest_scale
from encnet_single_gpu.runs import RunPlan, plan_run
from encnet_single_gpu.updates import LOSS_PARTS, Updater, memory_layout

import numpy as np
import torch
from torch import nn

TRAIN_COLUMNS = ("step", "epoch", "loss", *LOSS_PARTS, "learning_rate", "grad_norm", "step_time_s", "data_time_s")
PROTOCOL = EvalProtocol()  # of the validations in training: one scale, the whole image


class Trainer:
    """One run: network, data, optimizer, and the files that it leaves."""

    def __init__(self, plan: RunPlan, device: torch.device):
        config = plan.config
        self.plan, self.config, self.device = plan, config, device
        draw_toy_data(config.data, plan.data_root)
        self.data = with_root(config.data, plan.data_root)
        self.train_set = open_list(self.data, config.data.train_list)
        self.val_set = open_list(self.data, config.data.val_list)
        self.seen = data_seen(plan.data_root or config.data.root, self.data.root, self.train_set, self.val_set)
        require_image_sides(self.val_set, lambda size: smallest_scale(size, PROTOCOL))
        processes.say(survey_for_training(self.train_set, self.val_set))
        self.labels = self.train_set.labels
        torch.manual_seed(config.train.seed)
        model = build_model(config.model.name, config.model.backbone, self.labels.num_classes, config.model.variant)
        if config.model.backbone_weights and plan.checkpoint is None:
            if not hasattr(model, "backbone"):
                raise UserError(f"{config.model.name} has no backbone: leave --backbone-weights out")
            weights = weight_file(config.model.backbone_weights, config.model.backbone)
            require_same_input(weights, config.data.mean, config.data.std)
            load_backbone(weights, model.backbone)
        if config.model.finetune and plan.checkpoint is None:
            data, names = config.data, self.labels.class_names
            processes.say(load_for_finetune(config.model.finetune, model, names, data.mean, data.std))
        self.model = model.to(device, memory_format=memory_layout(config.train.channels_last))
        loss = SegmentationLoss(config.loss).to(device)
        optimizer = build_optimizer(self.model, config.optimizer)
        decay = config.optimizer.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.step, self.best_miou, self.best_step, self.is_evaluated = 0, math.nan, 0, True
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        state = None if plan.checkpoint is None else self._load(plan.checkpoint, optimizer)
        refuse_other_data(plan.recorded, self.seen, plan.folder)
        self.updater = Updater(self.model, loss, optimizer, self.average, config, device)
        if state is not None and state.scaler:
            self.updater.scaler.load_state_dict(state.scaler)
        self.log = RunLog(plan.folder, TRAIN_COLUMNS)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose mIoU counts."""
        return self.model if self.average is None else self.average.model

    @property
    def dataset_name(self) -> str:
        """The name for result tables: `toy_ade20k` where the toy data stand in for ADE20K."""
        data = self.config.data
        return f"toy_{data.dataset}" if toy_name(data) and not self.plan.data_root else data.dataset

    def fit_memory(self) -> None:
        """Sets the micro-batch to the largest that memory allows."""
        train = self.config.train
        size = largest_micro_batch(self.updater.step_on_noise, train.batch_size, self.device)
        self.updater.micro_batch = size
        self.config = dataclasses.replace(self.config, train=dataclasses.replace(train, micro_batch=size))
        processes.say(f"{size} of {train.batch_size} images fit into memory at once")

    def run(self, stop: StopSignals | None = None) -> None:
        """Trains from the current step to the last, evaluating and saving on the way.

        Raises:
            Stopped: A signal of `stop` arrived; what was learnt is saved.
        """
        train, stop = self.config.train, stop or StopSignals()
        self._look_at_the_cut()
        self._start_log()
        self.model.train()
        valid = ValidPixels()
        with Progress(train.iters, "train", "step", done=self.step) as bar:
            if not self.is_evaluated:  # the run ended in the evaluation of its last checkpoint's step
                self._evaluate(bar, stop)
            ready = time.perf_counter()
            for images, label, indices in train_batches(self.train_set, self.config, self.step):
                loaded = time.perf_counter()
                valid.look_at(label)
                row = self._update(images, label, indices)
                self.step += 1
                done = time.perf_counter()
                self.seconds += done - ready
                self.data_seconds += loaded - ready
                bar.show(loss=row["loss"], best_miou_percent=100 * self.best_miou)
                bar.update()
                if self.step % train.log_every == 0 or self.step == train.iters:
                    self._log_step(row, done - ready, loaded - ready)
                # A resumed run has seen only its last batches: too few to conclude that the labels are wrong.
                if self.step == train.iters and self.plan.checkpoint is None:
                    valid.at_the_end()
                self._save_and_evaluate(bar, stop)
                ready = time.perf_counter()

    def _look_at_the_cut(self) -> None:
        """Says how a batch is cut; refuses a part of one image where normalisation would see one value per channel."""
        train = self.config.train
        sizes = [part.stop - part.start for part in micro_batches(train.batch_size, train.micro_batch)]
        if min(sizes) == 1:
            advice = "give a --batch-size and --micro-batch that leave no image alone"
            with refuse_single_value_batch_norm(self.model, advice):
                self.updater.step_on_noise(1)
        if len(sizes) > 1:
            processes.say(
                f"a batch of {train.batch_size} goes through as {'/'.join(map(str, sizes))}: the gradient is the whole "
                f"batch's, but batch normalisation sees one micro-batch at a time"
            )

    def _update(self, images: np.ndarray, label: np.ndarray, indices: np.ndarray) -> dict[str, float]:
        """One update from images (B, 3, h, w), label (B, h, w) and indices (B,). Returns what is logged of it."""
        try:
            loss, parts = self.updater.gradients(images, label, self.step)
        except NonFiniteLoss as error:
            names = [self.train_set.pairs[int(index)].image for index in indices]
            stop_at_nonfinite_loss(self.plan.folder, self.step + 1, error.value, names, "--learning-rate")
            raise
        rate = learning_rate(self.step, self.config.train.iters, self.config.optimizer)
        norm = self.updater.apply(rate)
        return {"loss": loss, **parts, "learning_rate": rate, "grad_norm": norm}

    def _save_and_evaluate(self, bar: Progress, stop: StopSignals) -> None:
        """Saves before it evaluates, so that nothing trained is lost to a failing or interrupted evaluation."""
        train = self.config.train
        self.is_evaluated = self.step % train.eval_every != 0 and self.step != train.iters
        if stop.number or not self.is_evaluated or self.step % train.checkpoint_every == 0:
            self._save_last()
        if stop.number:
            raise Stopped(stop.number)
        if not self.is_evaluated:
            self._evaluate(bar, stop)

    def _evaluate(self, bar: Progress, stop: StopSignals) -> None:
        with stop.at_once():
            result = evaluate(self.evaluated, self.val_set, self.data, PROTOCOL, f"val at {self.step}")
        miou, self.is_evaluated = result.matrix.mean_iou(), True
        is_best = math.isnan(self.best_miou) or miou > self.best_miou
        if is_best:
            self.best_miou, self.best_step = miou, self.step
        self._log_eval(result)
        if is_best:
            save_checkpoint(self.plan.folder / "best.safetensors", self.evaluated, self._state())
        self._save_last()
        self._show_eval(result, bar)

    # twin: awesome_pytorch_seg/train.py
    def _save_last(self) -> None:
        path = self.plan.folder / "last.safetensors"
        save_checkpoint(path, self.model, self._state(), self.updater.optimizer, self.average)

    def _show_eval(self, result: Evaluation, bar: Progress) -> None:
        show_evaluation(bar, self.step, result, self.best_miou, self.best_step)
        if self.step == self.config.train.iters:
            bar.close()  # what is printed now stands below it
            print_scores(result, self.labels.class_names, PROTOCOL, "val")

    def _state(self) -> TrainState:
        return TrainState(
            step=self.step,
            best_miou=self.best_miou,
            best_step=self.best_step,
            config_text=config_to_text(self.config),
            class_names=self.labels.class_names,
            mean=self.config.data.mean,
            std=self.config.data.std,
            scaler=self.updater.scaler.state_dict(),
            palette=tuple(map(tuple, self.labels.palette.tolist())),
            is_evaluated=self.is_evaluated,
        )

    def _load(self, checkpoint: Path, optimizer: torch.optim.Optimizer) -> TrainState:
        state = load_model(checkpoint, self.model, self.labels.class_names)
        load_optimizer(checkpoint, self.model, optimizer)
        if self.average is not None:
            load_average(checkpoint, self.average)
        self.step, self.best_miou, self.best_step = state.step, state.best_miou, state.best_step
        self.is_evaluated = state.is_evaluated
        return state

    def _start_log(self) -> None:
        self.log.trim(self.step, None if self.is_evaluated else self.step - 1)
        model, resumed = self.config.model, self.plan.checkpoint is not None
        weights = None if resumed else weight_file(model.backbone_weights, model.backbone)
        env = RunEnvironment.here(
            ("torch", "torchvision", "timm", "numpy", "opencv-python-headless"),
            project="encnet_single_gpu",
            config=self.plan.config_name,
            seed=self.config.train.seed,
            scope=self.config.scope,
            dataset=self.dataset_name,
            train_images=len(self.train_set),
            val_images=len(self.val_set),
            class_names=self.labels.class_names,
            processes=1,
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            torch_threads=torch.get_num_threads(),
            trainable_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            **self.log.start_digests(resumed, backbone_weights=weights, finetune=model.finetune),
            **self.seen,
            resumed_at_step=self.step,
        )
        self.log.start(config_to_text(self.config), env)

    def _log_step(self, row: dict[str, float], step_time: float, data_time: float) -> None:
        values = {name: f"{value:.9g}" for name, value in row.items()}
        times = {"step_time_s": f"{step_time:.4f}", "data_time_s": f"{data_time:.4f}"}
        epoch = self.step * self.config.train.batch_size / len(self.train_set)
        self.log.log_train({"step": self.step, "epoch": f"{epoch:.3f}", **values, **times})

    def _log_eval(self, result: Evaluation) -> None:
        self.log.log_eval(self.step, "val", str(PROTOCOL), result, self.labels.class_names)
        self.log.draw_curve(f"{self.plan.config_name}, {self.dataset_name} val, {PROTOCOL}")


def main() -> None:
    """The command."""
    args = parse_args(__doc__)
    with StopSignals() as stop:
        processes.join()
        with stop.at_once():
            plan = plan_run(args)
        if plan.is_finished:
            processes.say(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
            return
        keep_freed_memory()
        with held(plan.folder), stop.explained(plan.folder, processes.say):
            _train(plan, args.fit_memory, stop)


def _train(plan: RunPlan, fit_memory: bool, stop: StopSignals) -> None:
    for line in batch_lines(plan, world_size=1, micro_batches=1):
        processes.say(line)
    advice = f"resume with --resume {plan.folder} and a smaller --micro-batch, or start anew with a smaller --crop-size"
    with memory_errors_explained(advice):
        with stop.at_once():
            trainer = Trainer(plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            if fit_memory:
                trainer.fit_memory()
        trainer.run(stop)
    if trainer.device.type == "cuda":
        print(f"most GPU memory in use: {torch.cuda.max_memory_allocated(trainer.device) / 2**30:.1f} GiB")
    for line in _end(trainer):
        print(line)


def _end(trainer: Trainer) -> list[str]:
    workers = f"--num-workers (now {trainer.config.train.num_workers})"
    times = (trainer.seconds, trainer.data_seconds)
    return end_lines(trainer.plan.folder, *times, workers, trainer.best_miou, trainer.best_step)


if __name__ == "__main__":
    run_command(main)
