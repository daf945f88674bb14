"""Trains one of the networks.

    python train.py                                             # VOC if data/voc is there, else the embedded data
    python train.py --config enet_camvid                        # configs/ holds the experiments
    python train.py --model fcn32s --backbone vgg16 --dataset pascal_voc --lr 0.0001 --epochs 50
    python train.py --config enet_camvid --data DIR --iters 2000 optimizer.weight_decay=0.01
    python train.py --resume                                    # go on with the latest run under output/
    torchrun --nproc_per_node 2 train.py --model pspnet --backbone resnet50 --dataset citys --batch-size 8

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

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
from awesome_pytorch_seg.memory import keep_freed_memory
from awesome_pytorch_seg.models.dunet import DUpsampling
from awesome_pytorch_seg.models.layers import refuse_single_value_batch_norm
from awesome_pytorch_seg.optimizer import WeightAverage, build_optimizer, set_learning_rate
from awesome_pytorch_seg.runs import RunPlan, plan_run, say_batch
from awesome_pytorch_seg.training_log import TrainingLog, describe_run
from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.files import atomic_write
from common.progress import Progress
from common.run_log import print_scores
from common.runs.reading import TABLE_HEADER, read_run, table_row
from common.samples.roots import draw_toy_data, open_list, with_root
from common.samples.stream import ValidPixels
from common.weights.card import require_same_input
from common.weights.package import weight_file

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
IMAGENET_MEAN = (0.485, 0.456, 0.406)


class Trainer:
    """One run: network, data, optimizer, and the files that it leaves."""

    def __init__(self, plan: RunPlan, device: torch.device, tensorboard: bool = False):
        config = plan.config
        self.plan, self.config, self.device = plan, config, device
        draw_toy_data(config.data, plan.data_root)
        self.data = with_root(config.data, plan.data_root)
        self.train_set = open_list(self.data, config.data.train_list)
        self.val_set = open_list(self.data, config.data.val_list)
        self.labels = self.train_set.labels
        torch.manual_seed(config.train.seed)
        self.layout = memory_layout(config.train.channels_last)
        self._check_input()
        self.model = self._build_model()
        self.loss = build_loss(config.model.name, config.loss, self.labels.num_classes).to(device)
        decay = config.optimizer.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self.step, self.best_miou, self.best_step = 0, math.nan, 0
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        if plan.checkpoint is None:
            self._begin_part()
        else:
            self._load(plan.checkpoint)
        self.log = None
        if processes.rank() == 0:
            env = describe_run(plan, self.train_set, self.val_set, self.device, parameters, self.step)
            self.log = TrainingLog(plan, self.loss.names, self.labels.class_names, self.step, env, tensorboard)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose mIoU counts."""
        return self.model if self.average is None else self.average.model

    def run(self, enough: float = math.inf) -> None:
        """Trains from the current step to the last, or to an mIoU of `enough`; evaluates and saves on the way."""
        train = self.config.train
        self.model.train()
        valid = ValidPixels()
        with Progress(train.iters, "train", "step", done=self.step, silent=self.log is None) as bar:
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
                if self.step == train.iters and self.plan.checkpoint is None:  # the last labels alone judge nothing
                    valid.at_the_end()
                self._evaluate_and_save(bar)
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
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        self.network = self.model
        if processes.world_size() > 1:
            self.network = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.forward = torch.compile(self.network) if train.compile else self.network

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
        network = network.to(self.device, memory_format=self.layout)
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
        """One optimizer step; a loss that is no number stops the run before it. Returns what is logged of it."""
        train, optimizer = self.config.train, self.config.optimizer
        start, length = train.part_at(self.step)
        rate = learning_rate(self.step - start, length, optimizer.learning_rate, self.config.schedule)
        set_learning_rate(self.optimizer, rate)
        # Dropout: the same in a resumed run, another in each process.
        torch.manual_seed(train.seed * 2**32 + processes.rank() * 2**24 + self.step)
        row = dict.fromkeys(("loss", *self.loss.names), 0.0)
        parts = _cut_into_parts(images, label, train.accumulate)
        for number, (part, part_label) in enumerate(parts):
            is_last = number == len(parts) - 1
            waits = is_last or processes.world_size() == 1  # gradients of all parts are exchanged together
            with contextlib.nullcontext() if waits else self.network.no_sync():
                for name, value in self._backward(part, part_label, indices).items():
                    row[name] += value / len(parts)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), optimizer.clip_norm or math.inf)
        self.scaler.step(self.optimizer)  # left out where fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, self.step)
        return {**row, "learning_rate": rate, "grad_norm": float(norm)}

    def _backward(self, images: np.ndarray, label: np.ndarray, indices: np.ndarray) -> dict[str, float]:
        """Adds the gradients of one part of a batch. Returns its loss and what that is the sum of."""
        train = self.config.train
        images = torch.from_numpy(images).to(self.device, memory_format=self.layout)  # (B, 3, h, w)
        with torch.autocast(self.device.type, AMP_TYPES.get(train.amp), enabled=train.amp is not None):
            outputs = self._outputs(images)
        total, parts = self.loss(outputs, torch.from_numpy(label).to(self.device))
        value = float(total.detach())
        if not math.isfinite(value):
            self._stop_at_nonfinite_loss(value, indices)
        self.scaler.scale(total / train.accumulate).backward()
        return {"loss": value, **{name: float(part.detach()) for name, part in parts.items()}}

    def _outputs(self, images: torch.Tensor) -> dict[str, Any]:
        try:
            return self.forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            advice = "use at least 2 images per process and part: raise train.batch_size or lower train.accumulate"
            with refuse_single_value_batch_norm(self.model, advice):
                self.model(images)
            raise

    def _evaluate_and_save(self, bar: Progress) -> None:
        train = self.config.train
        evaluates = self.step % train.eval_every == 0 or self.step == train.iters
        is_best = self._evaluate(bar) if evaluates else False
        if self.log is None:
            return
        if is_best:
            save_checkpoint(self.plan.folder / "best.safetensors", self.evaluated, self._state())
        if evaluates or self.step % train.checkpoint_every == 0:
            path = self.plan.folder / "last.safetensors"
            save_checkpoint(path, self.model, self._state(), self.optimizer, self.average)

    def _evaluate(self, bar: Progress) -> bool:
        """Evaluates, with all processes, and logs it. Returns whether it is the best so far."""
        train, protocol = self.config.train, self.config.eval
        processes.share_buffers(self.evaluated)
        result = evaluate(self.evaluated, self.val_set, self.data, protocol, f"val at {self.step}")
        miou = result.matrix.mean_iou()
        is_best = not miou <= self.best_miou and not self.encoder_alone  # also when there was none before
        if is_best:
            self.best_miou, self.best_step = miou, self.step
        if self.log is not None:
            if not self.encoder_alone:  # whose scores are not the network's
                self.log.evaluation(self.step, result)
            bar.event(
                f"step {self.step}/{train.iters}: val mIoU {100 * miou:.2f} %  loss {result.loss:.4f}  "
                f"(best {100 * self.best_miou:.2f} % at {self.best_step})",
                step=self.step,
                total=train.iters,
                val_miou_percent=100 * miou,
                val_loss=result.loss,
                best_miou_percent=100 * self.best_miou,
                best_step=self.best_step,
            )
            if self.step == train.iters:
                print_scores(result, self.labels.class_names, protocol, "val")
        return is_best

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
        )

    def _load(self, checkpoint: Path) -> None:
        state = load_model(checkpoint, self.model, self.labels.class_names)
        self.step, self.best_miou, self.best_step = state.step, state.best_miou, state.best_step
        self._begin_part()
        if self.step != self.config.train.encoder_iters:  # where the stored one ends with the encoder's part
            load_optimizer(checkpoint, self.model, self.optimizer)
        if self.average is not None:
            load_average(checkpoint, self.average)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def _stop_at_nonfinite_loss(self, value: float, indices: np.ndarray) -> None:
        names = [str(self.train_set.pairs[int(index)].image) for index in indices]
        path = self.plan.folder / f"nonfinite_loss_step{self.step + 1}_rank{processes.rank()}.json"
        with atomic_write(path) as stream:
            json.dump({"step": self.step + 1, "loss": str(value), "images": names}, stream, indent=2)
        raise UserError(
            f"loss is {value} at step {self.step + 1}: stopped before the update; the batch's images are in {path}; "
            f"lower optimizer.learning_rate, or look at those images; checkpoints are untouched"
        )


def _cut_into_parts(images: np.ndarray, label: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(images) % count:
        raise UserError(
            f"train.accumulate {count}: {len(images)} images of a process cannot be cut into {count} equal parts: "
            f"change train.batch_size or train.accumulate"
        )
    return list(zip(np.split(images, count), np.split(label, count), strict=True))


def main() -> None:
    """The command."""
    args = parse_args(__doc__)
    device = processes.join(torch.cuda.is_available() and not args.no_cuda)
    plan = plan_run(args)
    if plan.is_finished:
        processes.say(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
    else:
        keep_freed_memory()
        say_batch(plan)
        trainer = Trainer(plan, device, args.tensorboard)
        try:
            trainer.run()
        except RuntimeError as error:
            processes.explain_loss(error, trainer.step + 1)
            raise
        if processes.rank() == 0:
            _print_end(trainer)
    processes.leave()


def _print_end(trainer: Trainer) -> None:
    folder, share = trainer.plan.folder, trainer.data_seconds / trainer.seconds
    print(f"training steps took {trainer.seconds:.0f} s, {100 * share:.1f} % of it waiting for data")
    if share > 0.2:
        print(f"warning: loading is the bottleneck: raise --workers (now {trainer.config.train.num_workers})")
    print(f"best val mIoU {100 * trainer.best_miou:.2f} % at step {trainer.best_step}")
    print(f"{TABLE_HEADER}\n{table_row(read_run(folder))}")
    print(f"curve: {folder}/curve.png")


if __name__ == "__main__":
    run_command(main)
