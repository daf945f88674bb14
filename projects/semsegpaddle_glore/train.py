"""Trains a decode head on a backbone.

    python train.py                           # Cityscapes in data/cityscapes if it is there, else the embedded data
    python train.py --config glore_res101_pascalcontext --data DIR --iters 2000 optimizer.learning_rate=0.002
    python train.py --resume                  # go on with the latest run under output/
    python -m paddle.distributed.launch train.py --use_gpu --use_mpio --cfg ./configs/pspnet_res101_cityscapes.yaml
                                              # the original's command; SOLVER.LR 0.02 behind it is understood too
    python train.py --cfg ginet_res101_ade --amp O1 --accumulate 4 model.word_embeddings=glove.6B.300d.txt

A run leaves output/<config>_s<seed>_<date>_<commit>/: config.yaml, env.json, train.csv, eval.csv, per_class.csv,
curve.png, last.safetensors (to resume) and best.safetensors (by validation mIoU).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

from common.cli import CommandParser, UserError, positive, run_command
from common.config.typed import config_to_text
from common.files import atomic_write
from common.progress import Progress
from common.run_log import Evaluation, RunLog, print_scores
from common.runs.environment import RunEnvironment
from common.runs.reading import TABLE_HEADER, read_run, table_row
from common.samples.roots import draw_toy_data, open_list, with_root
from common.samples.stream import BatchLoader, ValidPixels
from common.weights.card import require_same_input
from common.weights.package import weight_file
from semsegpaddle_glore.checkpoint import (
    TrainState,
    load_backbone,
    load_for_finetune,
    load_model,
    load_optimizer,
    save_checkpoint,
)
from semsegpaddle_glore.config import options_of_file, take_options
from semsegpaddle_glore.data.dataset import train_stream
from semsegpaddle_glore.devices import join_processes, on_gpu, require_gpu
from semsegpaddle_glore.eval import evaluate
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.lr_schedule import learning_rate
from semsegpaddle_glore.models.layers import refuse_single_value_batch_norm
from semsegpaddle_glore.networks import build_network
from semsegpaddle_glore.optimizer import build_optimizer
from semsegpaddle_glore.runs import RunPlan, plan_run, say, say_batch
from semsegpaddle_glore.updates import Updater

import numpy as np
import paddle
import paddle.distributed as dist

TRAIN_COLUMNS = ("step", "epoch", "loss", "seg", "aux", "sc", "learning_rate", "step_time_s", "data_time_s")


class Trainer:
    """One run: network, data, updates, and the files that it leaves."""

    def __init__(self, plan: RunPlan):
        config, train = plan.config, plan.config.train
        pieces = train.accumulate * dist.get_world_size()
        if train.batch_size % pieces:
            raise UserError(
                f"train.batch_size {train.batch_size} cannot be cut into {train.accumulate} micro-batches in each of "
                f"{dist.get_world_size()} processes: make it a multiple of {pieces}"
            )
        self.plan, self.config = plan, config
        draw_toy_data(config.data, plan.data_root)
        self.data = with_root(config.data, plan.data_root)
        self.train_set = open_list(self.data, config.data.train_list)
        self.val_set = open_list(self.data, config.data.val_list)
        self.labels = self.train_set.labels
        paddle.seed(train.seed)
        model = build_network(config, self.labels.class_names, plan.checkpoint)
        if config.model.backbone_weights and plan.checkpoint is None:
            weights = weight_file(config.model.backbone_weights, config.model.backbone)
            require_same_input(weights, self.data.mean, self.data.std)
            load_backbone(weights, model.backbone)
        if config.model.finetune and plan.checkpoint is None:
            weights, names = config.model.finetune, self.labels.class_names
            say(load_for_finetune(weights, model, names, self.data.mean, self.data.std))
        self.step, self.best_miou, self.best_step = 0, math.nan, 0
        self.seconds = self.data_seconds = 0.0  # of all steps of this process, and of waiting for data in them
        state = None
        if plan.checkpoint is not None:
            state = load_model(plan.checkpoint, model, self.labels.class_names)
            self.step, self.best_miou, self.best_step = state.step, state.best_miou, state.best_step
        optimizer = build_optimizer(model, config.optimizer)
        self.updater = Updater(model, SegmentationLoss(config.loss), optimizer, train.seed, train.accumulate, train.amp)
        self.model = self.updater.model
        if state is not None:
            load_optimizer(plan.checkpoint, self.model, optimizer)
            self.updater.scaler.load_state_dict(state.scaler)
        self.is_main = dist.get_rank() == 0
        self.log = RunLog(plan.folder, TRAIN_COLUMNS)

    def run(self) -> None:
        """Trains from the current step to the last, evaluating and saving on the way."""
        train = self.config.train
        if self.is_main:
            self._start_log()
        stream = train_stream(self.train_set, self.data, self.config.augment, train.seed)
        loader = BatchLoader(
            stream, train.batch_size, self.step, train.iters, train.num_workers, dist.get_rank(), dist.get_world_size()
        )
        self.model.train()
        valid = ValidPixels()
        with (
            refuse_single_value_batch_norm(self.model),
            Progress(train.iters, "train", "step", done=self.step, silent=not self.is_main) as bar,
        ):
            ready = time.perf_counter()
            for images, label, indices in loader:
                loaded = time.perf_counter()
                valid.look_at(label)
                rate = learning_rate(self.step, train.iters, self.config.optimizer)
                total, parts = self.updater.gradients(images, label, self.step)
                if not math.isfinite(total):
                    self._stop_at_nonfinite_loss(total, indices)
                self.updater.apply(rate)
                self.step += 1
                done = time.perf_counter()
                self.seconds += done - ready
                self.data_seconds += loaded - ready
                bar.show(loss=total, best_miou_percent=100 * self.best_miou)
                bar.update()
                if self.is_main and (self.step % train.log_every == 0 or self.step == train.iters):
                    self._log_step(total, parts, rate, done - ready, loaded - ready)
                if self.step == train.iters and self.plan.checkpoint is None:  # the last labels alone judge nothing
                    valid.at_the_end()
                self._evaluate_and_save(bar)
                ready = time.perf_counter()

    def _evaluate_and_save(self, bar: Progress) -> None:
        train, last = self.config.train, self.step == self.config.train.iters
        evaluates = self.step % train.eval_every == 0 or last
        if evaluates:
            share_batch_norm_statistics(self.model)
            model = self.updater.float32_model()
            result = evaluate(
                model, self.val_set, self.data, self.config.eval, f"val at {self.step}", train.num_workers > 0
            )
            miou = result.matrix.mean_iou()
            is_best = not miou <= self.best_miou  # also when there was none before
            if is_best:
                self.best_miou, self.best_step = miou, self.step
            if self.is_main:
                self._log_eval(result, bar)
                if is_best:
                    self._save("best.safetensors", resumable=False)
        if self.is_main and (evaluates or self.step % train.checkpoint_every == 0):
            self._save("last.safetensors")
        if last and self.is_main:
            bar.close()  # what is printed now stands below it
            print_scores(result, self.labels.class_names, self.config.eval, "val")

    def _save(self, name: str, resumable: bool = True) -> None:
        state = TrainState(
            step=self.step,
            best_miou=self.best_miou,
            best_step=self.best_step,
            config_text=config_to_text(self.config),
            class_names=self.labels.class_names,
            scaler=self.updater.scaler_state(),
            palette=tuple(map(tuple, self.labels.palette.tolist())),
        )
        save_checkpoint(self.plan.folder / name, self.model, self.updater.optimizer, state, resumable)

    def _start_log(self) -> None:
        self.log.trim(self.step)
        model, resumed = self.config.model, self.plan.checkpoint is not None
        weights = None if resumed else weight_file(model.backbone_weights, model.backbone)
        env = RunEnvironment.here(
            ("paddlepaddle", "paddlepaddle-gpu", "numpy", "opencv-python-headless"),
            project="semsegpaddle_glore",
            config=self.plan.config_name,
            seed=self.config.train.seed,
            scope=self.config.scope,
            dataset=self.config.data.dataset,
            train_images=len(self.train_set),
            val_images=len(self.val_set),
            class_names=self.labels.class_names,
            processes=dist.get_world_size(),
            device=paddle.device.get_device(),
            precision=self.updater.amp or "fp32",
            trainable_parameters=sum(p.size for p in self.model.parameters() if not p.stop_gradient),
            **self.log.start_digests(resumed, backbone_weights=weights, finetune=model.finetune),
            resumed_at_step=self.step,
        )
        self.log.start(config_to_text(self.config), env)

    def _log_step(self, total: float, parts: dict, rate: float, step_time: float, data_time: float) -> None:
        values = {name: f"{value:.9g}" for name, value in parts.items()}
        times = {"step_time_s": f"{step_time:.4f}", "data_time_s": f"{data_time:.4f}"}
        epoch = self.step * self.config.train.batch_size / len(self.train_set)
        row = {"step": self.step, "epoch": f"{epoch:.3f}", "loss": f"{total:.9g}", "learning_rate": f"{rate:.9g}"}
        self.log.log_train({**row, **values, **times})

    def _log_eval(self, result: Evaluation, bar: Progress) -> None:
        self.log.log_eval(self.step, "val", str(self.config.eval), result, self.labels.class_names)
        self.log.draw_curve(f"{self.plan.config_name}, {self.config.data.dataset} val, {self.config.eval}")
        miou, iters = result.matrix.mean_iou(), self.config.train.iters
        bar.event(
            f"step {self.step}/{iters}: val mIoU {100 * miou:.2f} %  loss {result.loss:.4f}  "
            f"(best {100 * self.best_miou:.2f} % at {self.best_step})",
            step=self.step,
            total=iters,
            val_miou_percent=100 * miou,
            val_loss=result.loss,
            best_miou_percent=100 * self.best_miou,
            best_step=self.best_step,
        )

    def _stop_at_nonfinite_loss(self, value: float, indices: np.ndarray) -> None:
        names = [str(self.train_set.pairs[index].image) for index in indices]
        path = self.plan.folder / f"nonfinite_loss_step{self.step + 1}_rank{dist.get_rank()}.json"
        with atomic_write(path) as stream:
            json.dump({"step": self.step + 1, "loss": str(value), "images": names}, stream, indent=2)
        raise UserError(
            f"loss is {value} at step {self.step + 1}: stopped before the update; the batch's images are in {path}; "
            f"lower optimizer.learning_rate, or look at those images; checkpoints are untouched"
        )


def share_batch_norm_statistics(model: paddle.nn.Layer) -> None:
    """Gives every process the running statistics of process 0, which are the ones that are saved."""
    if dist.get_world_size() > 1:
        for layer in model.sublayers():
            if isinstance(layer, paddle.nn.BatchNorm2D | paddle.nn.SyncBatchNorm):
                dist.broadcast(layer._mean, 0)
                dist.broadcast(layer._variance, 0)


def main() -> None:
    """The command."""
    args = parse_args(sys.argv[1:])
    if args.use_gpu:
        require_gpu()
    join_processes()
    plan = plan_run(args)
    if plan.is_finished:
        print(f"{plan.folder} has reached its {plan.config.train.iters} iterations: nothing left to train")
        return
    if plan.config.train.amp and not on_gpu():
        say("Paddle has no AMP on a CPU: training in fp32")
    trainer = Trainer(plan)
    say_batch(plan)
    trainer.run()
    if trainer.is_main:
        share = trainer.data_seconds / trainer.seconds
        print(f"training steps took {trainer.seconds:.0f} s, {100 * share:.1f} % of it waiting for data")
        if share > 0.2:
            print(f"warning: loading is the bottleneck: raise train.num_workers (now {plan.config.train.num_workers})")
        print(f"best val mIoU {100 * trainer.best_miou:.2f} % at step {trainer.best_step}")
        print(f"{TABLE_HEADER}\n{table_row(read_run(plan.folder))}")
        print(f"curve: {plan.folder}/curve.png")


def parse_args(words: list[str]) -> argparse.Namespace:
    """The words of the command line; run `--help` for their meaning."""
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    config_help = "YAML file, or the name of one in configs/ (default: as above, by what lies in data/cityscapes)"
    add("--cfg", "--config", dest="config", metavar="FILE", help=config_help)
    seed_help = "seed of weights, order, augmentation and dropout (default: the config's)"
    add("--seed", type=int, metavar="N", help=seed_help)
    finetune_help = "start from a checkpoint of train.py, of these or other classes (default: not)"
    add("--finetune", metavar="FILE", help=finetune_help)
    overrides_help = "change single keys of the config: train.batch_size=4, or TRAIN_BATCH_SIZE 4"
    add("overrides", nargs="*", metavar="section.key=value", help=overrides_help)
    add = parser.add_argument_group("data and output").add_argument
    add("--data", metavar="DIR", help="root of the data set (default: the config's)")
    output_help = "where run folders go (default: output)"
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=output_help)
    add = parser.add_argument_group("length and resuming").add_argument
    add("--iters", type=int, metavar="N", help="updates in all; warm-up shrinks in proportion (default: the config's)")
    resume_help = "go on with a run: its folder, a checkpoint, or nothing for the latest (default: a new run)"
    add("--resume", nargs="?", const="latest", metavar="PATH", help=resume_help)
    add("--extend", action="store_true", help="with --resume --iters N: allow a new total")
    add = parser.add_argument_group("speed and memory").add_argument
    amp_help = "mixed precision on a GPU: float16 where safe, or float16 weights too (default: the config's)"
    add("--amp", choices=("O1", "O2"), help=amp_help)
    accumulate_help = "a batch goes through in N equal parts: less memory (default: the config's)"
    add("--accumulate", type=int, metavar="N", help=accumulate_help)
    add = parser.add_argument_group("flags of the original project").add_argument
    add("--use_gpu", action="store_true", help="insist on a GPU")
    add("--use_mpio", action="store_true", help="prepare batches in threads where the config has none")
    add("--log_steps", type=positive, metavar="N", help="the same as train.log_every=N")
    add("--do_eval", action="store_true", help="no effect: every run is evaluated, see train.eval_every")
    add("--debug", action="store_true", help="no effect: the run folder has every detail")
    add("--use_vdl", action="store_true", help="no effect: train.csv, eval.csv and curve.png are always written")
    add("--vdl_log_dir", metavar="DIR", help="no effect, as --use_vdl")
    args = parser.parse_intermixed_args(_resume_what(words))
    options, args.overrides = take_options(args.overrides)
    if "weights" in options:
        raise UserError("TEST.TEST_MODEL is eval.py's: model.backbone_weights=FILE starts from ImageNet weights")
    options = options_of_file(args.config) | options
    if args.log_steps is not None:
        args.overrides = [f"train.log_every={args.log_steps}", *args.overrides]
    args.output, args.resume = Path(options.get("output", args.output)), options.get("resume", args.resume)
    return args


def _resume_what(words: list[str]) -> list[str]:
    """Says "latest" behind a `--resume` that a key follows: `--resume key=value`, `--resume SOLVER.LR 0.1`."""
    said = list(words)
    for place, word in reversed(list(enumerate(words))):
        is_key = "=" in word or word.isupper()
        if place > 0 and words[place - 1] == "--resume" and is_key and not Path(word).exists():
            said.insert(place, "latest")
    return said


if __name__ == "__main__":
    run_command(main)
