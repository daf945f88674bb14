"""Trains one of the networks.

    python train.py                                             # VOC if data/voc is there, else the toy data
    python train.py --config enet_camvid                        # configs/ holds the experiments
    python train.py --model fcn32s --backbone vgg16 --dataset pascal_voc --lr 0.0001 --epochs 50
    python train.py --config enet_camvid --data DIR --iters 2000 optimizer.weight_decay=0.01
    python train.py --resume                                    # resume the latest run under output/
    torchrun --nproc_per_node 2 train.py --model pspnet --backbone resnet50 --dataset citys --batch-size 8

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU). SIGTERM and SIGUSR1 end the update in
flight, save last.safetensors and exit with 128 + the signal's number.

Expected of --config enet_camvid: results/README.md has our runs, with the papers' numbers beside them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.checkpoint import (
    TrainState,
    build_network,
    load_average,
    load_for_finetune,
    load_model,
    load_optimizer,
    memory_layout,
    save_checkpoint,
)
from awesome_pytorch_seg.data.dataset import label_pieces, train_batches
from awesome_pytorch_seg.eval import evaluate
from awesome_pytorch_seg.flags import parse_args
from awesome_pytorch_seg.losses import build_loss
from awesome_pytorch_seg.lr_schedule import learning_rate
from awesome_pytorch_seg.models.dunet import DUpsampling
from awesome_pytorch_seg.optimizer import WeightAverage, build_optimizer
from awesome_pytorch_seg.protocol import smallest_scale
from awesome_pytorch_seg.runs import RunPlan, plan_run
from awesome_pytorch_seg.training_log import TrainingLog, describe_run
from awesome_pytorch_seg.updates import Updater
from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.machine.memory import keep_freed_memory
from common.progress import Progress
from common.run_log import Evaluation, print_scores, show_evaluation
from common.runs.plan import NonFiniteLoss, batch_lines, end_lines, held, stop_at_nonfinite_loss
from common.runs.provenance import data_seen, refuse_other_data
from common.runs.stopping import Stopped, StopSignals
from common.samples.roots import draw_toy_data, open_list, with_root
from common.samples.stream import ValidPixels
from common.samples.survey import require_image_sides, survey_for_training
from common.weights.card import require_same_input
from common.weights.package import weight_file

import numpy as np
import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)


class Trainer:
    """One run: network, data, updates, and the files that it leaves."""

    def __init__(self, plan: RunPlan, device: torch.device, tensorboard: bool = False):
        config = plan.config
        self.plan, self.config, self.device = plan, config, device
        draw_toy_data(config.data, plan.data_root)
        self.data = with_root(config.data, plan.data_root)
        self.train_set = open_list(self.data, config.data.train_list)
        self.val_set = open_list(self.data, config.data.val_list)
        self.seen = data_seen(plan.data_root or config.data.root, self.data.root, self.train_set, self.val_set)
        require_image_sides(self.val_set, lambda size: smallest_scale(size, config.eval))
        processes.say(survey_for_training(self.train_set, self.val_set))
        self.labels = self.train_set.labels
        torch.manual_seed(config.train.seed)
        self._check_input()
        self.model = self._build_model()
        self.loss = build_loss(config.model.name, config.loss, self.labels.num_classes).to(device)
        decay = config.optimizer.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.step, self.best_miou, self.best_step, self.is_evaluated = 0, math.nan, 0, True
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        if plan.checkpoint is None:
            self._begin_part()
        else:
            self._load(plan.checkpoint)
        refuse_other_data(plan.recorded, self.seen, plan.folder)
        self.log = None
        if processes.rank() == 0:
            env = describe_run(plan, self.train_set, self.val_set, self.device, parameters, self.step, self.seen)
            names, at = self.labels.class_names, (self.step, self.is_evaluated)
            self.log = TrainingLog(plan, self.loss.names, names, *at, env, tensorboard)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose mIoU counts."""
        return self.model if self.average is None else self.average.model

    def run(self, stop: StopSignals | None = None, enough: float = math.inf) -> None:
        """Trains from the current step to the last, or to an mIoU of `enough`; evaluates and saves on the way.

        Raises:
            Stopped: A signal of `stop` arrived; what was learnt is saved.
        """
        train, stop = self.config.train, stop or StopSignals()
        self.model.train()
        valid = ValidPixels()
        with Progress(train.iters, "train", "step", done=self.step, silent=self.log is None) as bar:
            if not self.is_evaluated:  # the run ended in the evaluation of its last checkpoint's step
                self._evaluate(bar, stop)
            ready = time.perf_counter()
            for images, label, indices in train_batches(self.train_set, self.config, self.step):
                loaded = time.perf_counter()
                if self.step == train.encoder_iters > 0 and self.encoder_alone:
                    self._begin_part()
                valid.look_at(label)
                row = self._update(images, label, indices)
                self.step += 1
                done = time.perf_counter()
                self.seconds += done - ready
                self.data_seconds += loaded - ready
                bar.show(loss=row["loss"], best_miou_percent=100 * self.best_miou)
                bar.update()
                if self.log is not None and (self.step % train.log_every == 0 or self.step == train.iters):
                    epoch = self.step * train.batch_size / len(self.train_set)
                    self.log.step(self.step, epoch, row, done - ready, loaded - ready)
                # A resumed run has seen only its last batches: too few to conclude that the labels are wrong.
                if self.step == train.iters and self.plan.checkpoint is None:
                    valid.at_the_end()
                self._save_and_evaluate(bar, stop)
                if self.best_miou >= enough:
                    break
                ready = time.perf_counter()
        if self.log is not None:
            self.log.close()

    @property
    def encoder_alone(self) -> bool:
        """Whether the encoder is trained without the decoder now."""
        return getattr(self.model, "encoder_alone", False)

    def _begin_part(self) -> None:
        """Sets what is trained from this step on, the encoder alone or all, with a new optimizer."""
        train = self.config.train
        if train.encoder_iters:
            for network in {self.model, self.evaluated}:
                network.train_encoder_alone(self.step < train.encoder_iters)
            if self.average is not None:
                self.average.model.requires_grad_(False)
            what = "the encoder alone" if self.encoder_alone else "encoder and decoder"
            processes.say(f"from step {self.step}: {what}")
        optimizer = build_optimizer(self.model, self.config.optimizer)
        parts = (self.model, self.loss, optimizer, self.average, self.scaler)
        self.updater = Updater(*parts, self.config, self.device)

    def _check_input(self) -> None:
        """Refuses or warns of images that are normalised otherwise than those of the backbone's weights were."""
        model, data = self.config.model, self.config.data
        if model.backbone_weights is None or self.plan.checkpoint is not None:
            return
        require_same_input(weight_file(model.backbone_weights, model.backbone), data.mean, data.std)
        if model.backbone == "xception65" and data.mean == IMAGENET_MEAN:
            processes.say(
                "warning: the published weights of xception65 expect images of mean and std 0.5: for them set "
                "data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]"
            )

    def _build_model(self) -> nn.Module:
        config = self.config.model
        if self.plan.checkpoint is not None:  # which holds the backbone as well
            config = dataclasses.replace(config, backbone_weights=None)
        network = build_network(config, self.labels.num_classes)
        if self.config.train.encoder_iters and not hasattr(network, "train_encoder_alone"):
            raise UserError(
                f"train.encoder_iters: network '{config.name}', variant {config.variant}, has no encoder that is "
                f"trained alone: set it to 0, or take model.name=enet model.variant=authors"
            )
        network = network.to(self.device, memory_format=memory_layout(self.config.train.channels_last))
        if self.plan.checkpoint is None:
            for layer in network.modules():
                if isinstance(layer, DUpsampling):
                    pieces = label_pieces(self.train_set, self.config)
                    layer.learn_from_labels(torch.from_numpy(piece) for piece in pieces)
        if config.finetune and self.plan.checkpoint is None:
            data, names = self.config.data, self.labels.class_names
            processes.say(load_for_finetune(config.finetune, network, names, data.mean, data.std))
        if processes.world_size() > 1 and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return network

    def _update(self, images: np.ndarray, label: np.ndarray, indices: np.ndarray) -> dict[str, float]:
        """One update from images (b, 3, h, w), label (b, h, w) and indices (b,). Returns what is logged of it."""
        try:
            loss, parts = self.updater.gradients(images, label, self.step)
        except NonFiniteLoss as error:
            names = [self.train_set.pairs[int(index)].image for index in indices]
            option, rank = "optimizer.learning_rate", processes.rank()
            stop_at_nonfinite_loss(self.plan.folder, self.step + 1, error.value, names, option, rank)
            raise
        start, length = self.config.train.part_at(self.step)
        highest, schedule = self.config.optimizer.learning_rate, self.config.schedule
        rate = learning_rate(self.step - start, length, highest, schedule)
        norm = self.updater.apply(rate)
        return {"loss": loss, **parts, "learning_rate": rate, "grad_norm": norm}

    def _save_and_evaluate(self, bar: Progress, stop: StopSignals) -> None:
        """Saves before it evaluates, so that nothing trained is lost to a failing or interrupted evaluation."""
        train = self.config.train
        evaluates = self.step % train.eval_every == 0 or self.step == train.iters
        self.is_evaluated = not evaluates or self.encoder_alone  # whose evaluation is shown, not kept
        signal = processes.highest(stop.number)  # all processes stop after the same update
        if self.log is not None and (signal or evaluates or self.step % train.checkpoint_every == 0):
            self._save_last()
        if signal:
            raise Stopped(signal)
        if evaluates:
            self._evaluate(bar, stop)

    def _evaluate(self, bar: Progress, stop: StopSignals) -> None:
        """Evaluates, with all processes, logs and saves it."""
        processes.share_buffers(self.evaluated)
        with stop.at_once():
            result = evaluate(self.evaluated, self.val_set, self.data, self.config.eval, f"val at {self.step}")
        miou, self.is_evaluated = result.matrix.mean_iou(), True
        is_best = not self.encoder_alone and (math.isnan(self.best_miou) or miou > self.best_miou)
        if is_best:
            self.best_miou, self.best_step = miou, self.step
        if self.log is not None:
            if not self.encoder_alone:  # whose scores are not the network's
                self.log.evaluation(self.step, result)
            if is_best:
                save_checkpoint(self.plan.folder / "best.safetensors", self.evaluated, self._state())
            self._save_last()
            self._show_eval(result, bar)

    # twin: encnet_single_gpu/train.py
    def _save_last(self) -> None:
        path = self.plan.folder / "last.safetensors"
        save_checkpoint(path, self.model, self._state(), self.updater.optimizer, self.average)

    # twin: semsegpaddle_glore/train.py
    # twin: stdc_seg/train.py
    def _show_eval(self, result: Evaluation, bar: Progress) -> None:
        show_evaluation(bar, self.step, result, self.best_miou, self.best_step)
        if self.step == self.config.train.iters:
            bar.close()  # what is printed now stands below it
            print_scores(result, self.labels.class_names, self.config.eval, "val")

    def _state(self) -> TrainState:
        return TrainState(
            step=self.step,
            best_miou=self.best_miou,
            best_step=self.best_step,
            config_text=config_to_text(self.config),
            class_names=self.labels.class_names,
            mean=self.config.data.mean,
            std=self.config.data.std,
            scaler=self.scaler.state_dict(),
            palette=tuple(map(tuple, self.labels.palette.tolist())),
            is_evaluated=self.is_evaluated,
        )

    def _load(self, checkpoint: Path) -> None:
        state = load_model(checkpoint, self.model, self.labels.class_names)
        self.step, self.best_miou, self.best_step = state.step, state.best_miou, state.best_step
        self.is_evaluated = state.is_evaluated
        self._begin_part()
        if self.step != self.config.train.encoder_iters:  # where the stored one ends with the encoder's part
            load_optimizer(checkpoint, self.model, self.updater.optimizer)
        if self.average is not None:
            load_average(checkpoint, self.average)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)


def main() -> None:
    """The command."""
    args = parse_args(__doc__)
    with StopSignals() as stop:
        device = processes.join(torch.cuda.is_available() and not args.no_cuda)
        with stop.at_once():
            plan = plan_run(args)
        if plan.is_finished:
            processes.say(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
        else:
            keep_freed_memory()
            with held(plan.folder, processes.rank()), stop.explained(plan.folder, processes.say):
                _train(plan, device, args.tensorboard, stop)
        processes.leave()


def _train(plan: RunPlan, device: torch.device, tensorboard: bool, stop: StopSignals) -> None:
    for line in batch_lines(plan, processes.world_size(), plan.config.train.accumulate):
        processes.say(line)
    with stop.at_once():
        trainer = Trainer(plan, device, tensorboard)
    try:
        trainer.run(stop)
    except RuntimeError as error:
        processes.explain_lost_peer(error, trainer.step + 1)
        raise
    for line in _end(trainer) if processes.rank() == 0 else ():
        print(line)


def _end(trainer: Trainer) -> list[str]:
    workers = f"--workers (now {trainer.config.train.num_workers})"
    times = (trainer.seconds, trainer.data_seconds)
    return end_lines(trainer.plan.folder, *times, workers, trainer.best_miou, trainer.best_step)


if __name__ == "__main__":
    run_command(main)
