"""Trains a segmentation network on one GPU, or on a CPU.

    python train.py                                  # PSPNet on ADE20K, the original's recipe: 384 pixels, batch 12
    python train.py --model encnet --background      # EncNet, 400 pixels, batch 8; 151 classes, the background one
    python train.py --model encnet --paper           # the paper's: 480 pixels, batch 16 through accumulation
    python train.py --model unet --crop-size 256 --fit-memory --amp bf16
    python train.py --config quickstart              # minutes on two CPU cores, with images that it draws itself
    python train.py --resume                         # go on with the latest run under output/

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from pathlib import Path

from common.cli import UserError, run_command
from common.config.typed import config_to_text
from common.files import atomic_write
from common.progress import Progress
from common.run_log import Evaluation, RunLog, print_scores
from common.runs.environment import RunEnvironment
from common.runs.reading import TABLE_HEADER, read_run, table_row
from common.samples.roots import draw_toy_data, open_list, toy_name, with_root
from common.samples.stream import ValidPixels
from common.weights.card import require_same_input
from common.weights.package import weight_file
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
from encnet_single_gpu.losses import Normalisers, SegmentationLoss
from encnet_single_gpu.lr_schedule import learning_rate
from encnet_single_gpu.memory import keep_freed_memory, largest_micro_batch, memory_errors_explained, micro_batches
from encnet_single_gpu.models import build_model
from encnet_single_gpu.models.backbones import load_backbone
from encnet_single_gpu.models.layers import refuse_single_value_batch_norm
from encnet_single_gpu.optimizer import WeightAverage, build_optimizer, set_learning_rate
from encnet_single_gpu.protocol import EvalProtocol
from encnet_single_gpu.runs import RunPlan, plan_run, require_one_process, say_batch

import numpy as np
import torch
from torch import nn

LOSS_PARTS = ("seg", "aux", "se")  # 0 where the network has none of it
TRAIN_COLUMNS = ("step", "epoch", "loss", *LOSS_PARTS, "learning_rate", "grad_norm", "step_time_s", "data_time_s")
AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
        self.labels = self.train_set.labels
        torch.manual_seed(config.train.seed)
        self.layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        model = build_model(config.model.name, config.model.backbone, self.labels.num_classes, config.model.variant)
        if config.model.backbone_weights and plan.checkpoint is None:
            if not hasattr(model, "backbone"):
                raise UserError(f"{config.model.name} has no backbone: leave --backbone-weights out")
            weights = weight_file(config.model.backbone_weights, config.model.backbone)
            require_same_input(weights, config.data.mean, config.data.std)
            load_backbone(model.backbone, weights)
        if config.model.finetune and plan.checkpoint is None:
            data, names = config.data, self.labels.class_names
            print(load_for_finetune(config.model.finetune, model, names, data.mean, data.std), flush=True)
        self.model = model.to(device, memory_format=self.layout)
        self.network = torch.compile(self.model) if config.train.compile else self.model
        self.loss = SegmentationLoss(config.loss).to(device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        decay = config.optimizer.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self.step, self.best_miou, self.best_step = 0, math.nan, 0
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        if plan.checkpoint is not None:
            self._load(plan.checkpoint)
        self.log = RunLog(plan.folder, TRAIN_COLUMNS)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose mIoU counts."""
        return self.model if self.average is None else self.average.model

    @property
    def dataset_name(self) -> str:
        """For tables: the embedded data is not what it is in the format of."""
        data = self.config.data
        return f"toy_{data.dataset}" if toy_name(data) and not self.plan.data_root else data.dataset

    def fit_memory(self) -> None:
        """Sets the micro-batch to the largest that memory allows."""
        train = self.config.train
        size = largest_micro_batch(self._step_on_noise, train.batch_size, self.device)
        self.config = dataclasses.replace(self.config, train=dataclasses.replace(train, micro_batch=size))
        print(f"{size} of {train.batch_size} images fit into memory at once", flush=True)

    def run(self) -> None:
        """Trains from the current step to the last, evaluating and saving on the way."""
        train = self.config.train
        parts = micro_batches(train.batch_size, train.micro_batch)
        self._probe_normalisation(parts)
        if len(parts) > 1:
            sizes = "/".join(str(part.stop - part.start) for part in parts)
            print(
                f"a batch of {train.batch_size} goes through as {sizes}: the gradient is the whole batch's, but batch "
                f"normalisation sees one micro-batch at a time",
                flush=True,
            )
        self._start_log()
        self.model.train()
        valid = ValidPixels()
        with Progress(train.iters, "train", "step", done=self.step) as bar:
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
                if self.step == train.iters and self.plan.checkpoint is None:  # the last labels alone judge nothing
                    valid.at_the_end()
                self._evaluate_and_save(bar)
                ready = time.perf_counter()

    def _update(self, images: np.ndarray, label: np.ndarray, indices: np.ndarray) -> dict[str, float]:
        """One optimizer step over all micro-batches of a batch. Returns what is logged of it."""
        train, optimizer = self.config.train, self.config.optimizer
        rate = learning_rate(self.step, train.iters, optimizer)
        set_learning_rate(self.optimizer, rate)
        torch.manual_seed(train.seed * 2**32 + self.step)  # dropout, the same in a resumed run
        label = torch.from_numpy(label).to(self.device)
        counts = self.loss.count(label)
        value, parts = 0.0, dict.fromkeys(LOSS_PARTS, 0.0)
        for part in micro_batches(train.batch_size, train.micro_batch):
            loss, loss_parts = self._gradients(torch.from_numpy(images[part]), label[part], counts)
            value += loss
            parts |= {name: parts[name] + float(x.detach()) for name, x in loss_parts.items()}
            if not math.isfinite(value):
                self._stop_at_nonfinite_loss(value, indices)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), optimizer.clip_norm or math.inf)
        self.scaler.step(self.optimizer)  # left out where fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, self.step)
        return {"loss": value, **parts, "learning_rate": rate, "grad_norm": float(norm)}

    def _gradients(self, images: torch.Tensor, label: torch.Tensor, counts: Normalisers) -> tuple[float, dict]:
        """Adds the gradients of a micro-batch to the parameters. Returns its loss and the loss's parts."""
        total, parts = self._loss_of(self.network, images, label, counts)
        self.scaler.scale(total).backward()
        return float(total.detach()), parts

    def _loss_of(
        self, network: nn.Module, images: torch.Tensor, label: torch.Tensor, counts: Normalisers | None = None
    ) -> tuple[torch.Tensor, dict]:
        amp = self.config.train.amp
        images = images.to(self.device, memory_format=self.layout)  # (b, 3, h, w)
        with torch.autocast(self.device.type, AMP_TYPES.get(amp), enabled=amp is not None):
            outputs = network(images)
        return self.loss(outputs, label, counts)

    def _step_on_noise(self, sources: int) -> None:
        """Forward and backward of random images on a copy of the network, to see whether that works."""
        model = copy.deepcopy(self.model).train()
        images = torch.randn(sources, 3, *self.config.augment.crop_size, device=self.device)
        label = torch.zeros(sources, *self.config.augment.crop_size, dtype=torch.int64, device=self.device)
        self._loss_of(model, images, label)[0].backward()

    def _probe_normalisation(self, parts: list[slice]) -> None:
        """Refuses a part of one image where normalisation after global pooling would get one value per channel."""
        if min(part.stop - part.start for part in parts) > 1:
            return
        advice = "give a --batch-size and --micro-batch that leave no image alone"
        with refuse_single_value_batch_norm(self.model, advice):
            self._step_on_noise(1)

    def _evaluate_and_save(self, bar: Progress) -> None:
        train, last = self.config.train, self.step == self.config.train.iters
        evaluates = self.step % train.eval_every == 0 or last
        if evaluates:
            result = evaluate(self.evaluated, self.val_set, self.data, PROTOCOL, f"val at {self.step}")
            miou = result.matrix.mean_iou()
            is_best = not miou <= self.best_miou  # also when there was none before
            if is_best:
                self.best_miou, self.best_step = miou, self.step
            self._log_eval(result, bar)
            if is_best:
                save_checkpoint(self.plan.folder / "best.safetensors", self.evaluated, self._state())
        if evaluates or self.step % train.checkpoint_every == 0:
            path = self.plan.folder / "last.safetensors"
            save_checkpoint(path, self.model, self._state(), self.optimizer, self.average)
        if last:
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
            scaler=self.scaler.state_dict(),
            palette=tuple(map(tuple, self.labels.palette.tolist())),
        )

    def _load(self, checkpoint: Path) -> None:
        state = load_model(checkpoint, self.model, self.labels.class_names)
        load_optimizer(checkpoint, self.model, self.optimizer)
        if self.average is not None:
            load_average(checkpoint, self.average)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.step, self.best_miou, self.best_step = state.step, state.best_miou, state.best_step

    def _start_log(self) -> None:
        self.log.trim(self.step)
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
            resumed_at_step=self.step,
        )
        self.log.start(config_to_text(self.config), env)

    def _log_step(self, row: dict[str, float], step_time: float, data_time: float) -> None:
        values = {name: f"{value:.9g}" for name, value in row.items()}
        times = {"step_time_s": f"{step_time:.4f}", "data_time_s": f"{data_time:.4f}"}
        epoch = self.step * self.config.train.batch_size / len(self.train_set)
        self.log.log_train({"step": self.step, "epoch": f"{epoch:.3f}", **values, **times})

    def _log_eval(self, result: Evaluation, bar: Progress) -> None:
        self.log.log_eval(self.step, "val", str(PROTOCOL), result, self.labels.class_names)
        self.log.draw_curve(f"{self.plan.config_name}, {self.dataset_name} val, {PROTOCOL}")
        miou_percent, iters = 100 * result.matrix.mean_iou(), self.config.train.iters
        bar.event(
            f"step {self.step}/{iters}: val mIoU {miou_percent:.2f} %  loss {result.loss:.4f}  "
            f"(best {100 * self.best_miou:.2f} % at {self.best_step})",
            step=self.step,
            total=iters,
            val_miou_percent=miou_percent,
            val_loss=result.loss,
            best_miou_percent=100 * self.best_miou,
            best_step=self.best_step,
        )

    def _stop_at_nonfinite_loss(self, value: float, indices: np.ndarray) -> None:
        names = [str(self.train_set.pairs[int(index)].image) for index in indices]
        path = self.plan.folder / f"nonfinite_loss_step{self.step + 1}.json"
        with atomic_write(path) as stream:
            json.dump({"step": self.step + 1, "loss": str(value), "images": names}, stream, indent=2)
        raise UserError(
            f"loss is {value} at step {self.step + 1}: stopped before the update; the batch's images are in {path}; "
            f"lower --learning-rate, or look at those images; checkpoints are untouched"
        )


def main() -> None:
    """The command."""
    args = parse_args(__doc__)
    require_one_process()
    plan = plan_run(args)
    if plan.is_finished:
        print(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
        return
    keep_freed_memory()
    say_batch(plan)
    advice = f"go on with --resume {plan.folder} and a smaller --micro-batch, or start anew with a smaller --crop-size"
    with memory_errors_explained(advice):
        trainer = Trainer(plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if args.fit_memory:
            trainer.fit_memory()
        trainer.run()
    _print_end(trainer)


def _print_end(trainer: Trainer) -> None:
    folder, share = trainer.plan.folder, trainer.data_seconds / trainer.seconds
    print(f"training steps took {trainer.seconds:.0f} s, {100 * share:.1f} % of it waiting for data")
    if share > 0.2:
        print(f"warning: loading is the bottleneck: raise --num-workers (now {trainer.config.train.num_workers})")
    if trainer.device.type == "cuda":
        print(f"most GPU memory in use: {torch.cuda.max_memory_allocated(trainer.device) / 2**30:.1f} GiB")
    print(f"best val mIoU {100 * trainer.best_miou:.2f} % at step {trainer.best_step}")
    print(f"{TABLE_HEADER}\n{table_row(read_run(folder))}")
    print(f"curve: {folder}/curve.png")


if __name__ == "__main__":
    run_command(main)
