"""Trains one of the networks.

    python train.py --config enet_camvid                        # configs/ holds the experiments
    python train.py --model enet --dataset camvid --lr 0.001 --epochs 50
    python train.py --config enet_camvid --data DIR --iters 2000 optimizer.weight_decay=0.01
    python train.py --resume                                    # go on with the latest run under output/
    python train.py --resume output/<run>/last.safetensors

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

from awesome_pytorch_seg.checkpoint import TrainState, load_average, load_model, load_optimizer, save_checkpoint
from awesome_pytorch_seg.data.dataset import open_list, train_batches, with_root
from awesome_pytorch_seg.eval import evaluate
from awesome_pytorch_seg.lr_schedule import learning_rate
from awesome_pytorch_seg.memory import keep_freed_memory
from awesome_pytorch_seg.models import build_loss, build_model
from awesome_pytorch_seg.optimizer import WeightAverage, build_optimizer, set_learning_rate
from awesome_pytorch_seg.runs import RunPlan, plan_run
from common.cli import UserError, run_command
from common.files import atomic_write
from common.run_log import TABLE_HEADER, Evaluation, RunLog, environment, print_scores, read_run, table_row
from common.train_stream import ValidPixels
from common.typed_config import config_to_text

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One run: network, data, optimizer, and the files that it leaves."""

    def __init__(self, plan: RunPlan, device: torch.device):
        config = plan.config
        self.plan, self.config, self.device = plan, config, device
        self.data = with_root(config.data, plan.data_root)
        self.train_set = open_list(self.data, config.data.train_list)
        self.val_set = open_list(self.data, config.data.val_list)
        self.labels = self.train_set.labels
        torch.manual_seed(config.train.seed)
        self.layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        model = build_model(config.model.name, config.model.backbone, self.labels.num_classes)
        self.model = model.to(device, memory_format=self.layout)
        self.loss = build_loss(config.model.name, config.loss, self.labels.num_classes).to(device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        decay = config.optimizer.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self.step, self.best_miou, self.best_step = 0, math.nan, 0
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        if plan.checkpoint is not None:
            self._load(plan.checkpoint)
        columns = (
            "step",
            "epoch",
            "loss",
            *self.loss.names,
            "learning_rate",
            "grad_norm",
            "step_time_s",
            "data_time_s",
        )
        self.log = RunLog(plan.folder, columns)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose mIoU counts."""
        return self.model if self.average is None else self.average.model

    def run(self) -> None:
        """Trains from the current step to the last, evaluating and saving on the way."""
        train = self.config.train
        self._start_log()
        bar = tqdm(total=train.iters, initial=self.step, desc="train", unit="it", disable=None)
        self.model.train()
        valid = ValidPixels()
        ready = time.perf_counter()
        for images, label, indices in train_batches(self.train_set, self.config, self.step):
            loaded = time.perf_counter()
            valid.look_at(label)
            row = self._update(images, label, indices)
            self.step += 1
            done = time.perf_counter()
            self.seconds += done - ready
            self.data_seconds += loaded - ready
            bar.update()
            if self.step % train.log_every == 0 or self.step == train.iters:
                self._log_step(row, done - ready, loaded - ready, bar)
            self._evaluate_and_save(bar)
            ready = time.perf_counter()
        bar.close()

    def _update(self, images: np.ndarray, label: np.ndarray, indices: np.ndarray) -> dict[str, float]:
        """One optimizer step; a loss that is no number stops the run before it. Returns what is logged of it."""
        train, optimizer = self.config.train, self.config.optimizer
        rate = learning_rate(self.step, train.iters, optimizer.learning_rate, self.config.schedule)
        set_learning_rate(self.optimizer, rate)
        torch.manual_seed(train.seed * 2**32 + self.step)  # dropout, the same in a resumed run
        images = torch.from_numpy(images).to(self.device, memory_format=self.layout)  # (B, 3, h, w)
        with torch.autocast(self.device.type, AMP_TYPES.get(train.amp), enabled=train.amp is not None):
            outputs = self.model(images)
        total, parts = self.loss(outputs, torch.from_numpy(label).to(self.device))
        value = float(total.detach())
        if not math.isfinite(value):
            self._stop_at_nonfinite_loss(value, indices)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), optimizer.clip_norm or math.inf)
        self.scaler.step(self.optimizer)  # left out where fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, self.step)
        parts = {name: float(part.detach()) for name, part in parts.items()}
        return {"loss": value, **parts, "learning_rate": rate, "grad_norm": float(norm)}

    def _evaluate_and_save(self, bar: tqdm) -> None:
        train, last = self.config.train, self.step == self.config.train.iters
        evaluates = self.step % train.eval_every == 0 or last
        if evaluates:
            result = evaluate(self.evaluated, self.val_set, self.data, self.config.eval, f"val at {self.step}")
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
        env = environment(
            ("torch", "torchvision", "numpy", "opencv-python-headless"),
            project="awesome_pytorch_seg",
            config=self.plan.config_name,
            seed=self.config.train.seed,
            scope=self.config.scope,
            dataset=self.config.data.dataset,
            train_images=len(self.train_set),
            val_images=len(self.val_set),
            class_names=self.labels.class_names,
            processes=1,
            device=self.device.type,
            torch_threads=torch.get_num_threads(),
            trainable_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            resumed_at_step=self.step,
        )
        self.log.start(config_to_text(self.config), env)

    def _log_step(self, row: dict[str, float], step_time: float, data_time: float, bar: tqdm) -> None:
        values = {name: f"{value:.9g}" for name, value in row.items()}
        times = {"step_time_s": f"{step_time:.4f}", "data_time_s": f"{data_time:.4f}"}
        epoch = self.step * self.config.train.batch_size / len(self.train_set)
        self.log.log_train({"step": self.step, "epoch": f"{epoch:.3f}", **values, **times})
        bar.set_postfix(loss=f"{row['loss']:.3f}", best_miou=f"{100 * self.best_miou:.2f}%", refresh=False)

    def _log_eval(self, result: Evaluation, bar: tqdm) -> None:
        self.log.log_eval(self.step, "val", str(self.config.eval), result, self.labels.class_names)
        self.log.draw_curve(f"{self.plan.config_name}, {self.config.data.dataset} val, {self.config.eval}")
        bar.write(
            f"step {self.step}/{self.config.train.iters}: val mIoU {100 * result.matrix.mean_iou():.2f} %  "
            f"loss {result.loss:.4f}  (best {100 * self.best_miou:.2f} % at {self.best_step})"
        )

    def _stop_at_nonfinite_loss(self, value: float, indices: np.ndarray) -> None:
        names = [str(self.train_set.pairs[int(index)].image) for index in indices]
        path = self.plan.folder / f"nonfinite_loss_step{self.step + 1}.json"
        with atomic_write(path) as stream:
            json.dump({"step": self.step + 1, "loss": str(value), "images": names}, stream, indent=2)
        raise UserError(
            f"loss is {value} at step {self.step + 1}: stopped before the update; the batch's pictures are in {path}; "
            f"lower optimizer.learning_rate, or look at those pictures; checkpoints are untouched"
        )


def main() -> None:
    """The command."""
    args = parse_args()
    plan = plan_run(args)
    if plan.is_finished:
        print(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
        return
    keep_freed_memory()
    use_cuda = torch.cuda.is_available() and not args.no_cuda
    trainer = Trainer(plan, torch.device("cuda" if use_cuda else "cpu"))
    trainer.run()
    share = trainer.data_seconds / trainer.seconds
    print(f"training steps took {trainer.seconds:.0f} s, {100 * share:.1f} % of it waiting for data")
    print(f"best val mIoU {100 * trainer.best_miou:.2f} % at step {trainer.best_step}")
    print(f"{TABLE_HEADER}\n{table_row(read_run(plan.folder))}")
    print(f"curve: {plan.folder}/curve.png")


def parse_args() -> argparse.Namespace:
    """The words of the command line; run `--help` for their meaning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML file, or the name of one in configs/")
    add("--iters", type=int, metavar="N", help="total updates; warm-up shrinks in proportion")
    add("--output", type=Path, default=Path("output"), metavar="DIR", help="where run folders go (default: output)")
    add("--seed", type=int, metavar="N", help="seed of weights, order and augmentation (default: the config's)")
    add("--data", metavar="DIR", help="root of the data set (default: the config's)")
    resume_help = "go on with a run: its folder, a checkpoint, or nothing for the latest"
    add("--resume", nargs="?", const="latest", metavar="PATH", help=resume_help)
    add("--extend", action="store_true", help="with --resume --iters N: allow a new total")
    add("--amp", choices=sorted(AMP_TYPES), help="convolutions in this type")
    add("--channels-last", action="store_const", const="true", help="channels-last memory layout")
    add("--no-cuda", action="store_true", help="train on the CPU though there is a GPU")
    flags = parser.add_argument_group("flags of the original project, for single keys of the config")
    for flag, kind in (("model", str), ("backbone", str), ("dataset", str), ("lr", float), ("epochs", int)):
        flags.add_argument(f"--{flag}", type=kind)
    for flag, kind in (("batch-size", int), ("workers", int), ("momentum", float), ("weight-decay", float)):
        flags.add_argument(f"--{flag}", type=kind)
    flags.add_argument("--aux-weight", type=float)
    add("overrides", nargs="*", metavar="key=value", help="change single keys of the config: train.batch_size=4")
    args = parser.parse_intermixed_args()
    if args.resume and "=" in args.resume and not Path(args.resume).exists():  # `--resume key=value`: no path was meant
        args.overrides.append(args.resume)
        args.resume = "latest"
    return args


if __name__ == "__main__":
    run_command(main)
