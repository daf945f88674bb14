"""The experiment file: one dataclass per section, every key with its meaning and unit.

An experiment is one complete YAML file in `configs/`; `train.py key=value` changes single keys. Sizes are
(height, width) in pixels, budgets are iterations, `batch_size` is the total over all processes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from awesome_pytorch_seg.protocol import EvalProtocol
from common.cli import UserError, did_you_mean
from common.config.typed import load_config
from common.samples.roots import DataConfig

CONFIG_DIR = Path(__file__).parent / "configs"


def _require(condition: bool, key: str, rule: str) -> None:
    if not condition:
        raise UserError(f"{key} must be {rule}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and the weights that it starts from."""

    name: str  # a key of models.MODELS
    backbone: str | None  # null: the network's default, or none where the network has no separate one
    backbone_weights: str | None = None  # ImageNet's: a local file, or "package" (of pip); null: random
    output_stride: int | None = None  # of the backbone's last features; null: the network's own
    variant: str | None = None  # which statement of the network, where there are several; null: the network's first
    finetune: str | None = None  # a checkpoint of train.py to start from, of these or other classes; null: none

    def __post_init__(self) -> None:
        one = self.finetune is None or self.backbone_weights is None
        _require(one, "finetune", "null with backbone_weights: give one of the two")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A part of the training with its own sizes: small images first are cheap."""

    share: float  # of all iterations; the shares of all stages add up to 1
    scales: tuple[float, float]  # the range of the factor on an image's sides, small ones as likely as large
    crop_size: tuple[int, int]  # smaller images are padded: with the mean colour, and with ignored pixels

    def __post_init__(self) -> None:
        _require(0 < self.share <= 1, "share", "in (0, 1]")
        _require(0 < self.scales[0] <= self.scales[1], "scales", "[low, high], positive")
        _require(min(self.crop_size) >= 16, "crop_size", "at least 16 pixels a side")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training transforms."""

    color_jitter: float  # brightness, contrast and saturation are each multiplied by U[1 - x, 1 + x]
    flip_probability: float
    stages: tuple[StageConfig, ...]
    base_size: int | None = None  # the shorter side of an image that `scales` are factors on; null: as it is
    blur_probability: float = 0.0  # of a Gaussian blur with a standard deviation of U[0, 1] pixels

    def __post_init__(self) -> None:
        _require(0 <= self.color_jitter < 1, "color_jitter", "in [0, 1)")
        _require(0 <= self.flip_probability <= 1, "flip_probability", "in [0, 1]")
        _require(0 <= self.blur_probability <= 1, "blur_probability", "in [0, 1]")
        _require(self.base_size is None or self.base_size >= 16, "base_size", "at least 16 pixels, or null")
        _require(
            abs(sum(stage.share for stage in self.stages) - 1) < 1e-6, "stages", "such that the shares add up to 1"
        )

    def stage_at(self, step: int, iters: int) -> tuple[StageConfig, int]:
        """The stage of update number `step` (from 0) of `iters`, and the first step after it."""
        end = 0.0
        for stage in self.stages[:-1]:
            end += stage.share
            if step < round(end * iters):
                return stage, round(end * iters)
        return self.stages[-1], iters


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss of one output's pixels; the network decides how its outputs' losses are put together."""

    class_weights: tuple[float, ...] | None  # by train id; null: all alike
    ohem_threshold: float | None  # null: all pixels; else those whose true class has less than this probability
    ohem_min_kept_fraction: float  # of all pixels of the batch: at least so many are kept
    dice_weight: float  # of the soft Dice loss that is added; 0: none
    aux_weight: float  # of the auxiliary outputs

    def __post_init__(self) -> None:
        least = min(self.class_weights or (0,)) if self.class_weights != () else -1
        _require(least >= 0, "class_weights", "a weight of 0 or more for each class")
        _require(self.ohem_threshold is None or 0 < self.ohem_threshold < 1, "ohem_threshold", "in (0, 1), or null")
        _require(0 < self.ohem_min_kept_fraction <= 1, "ohem_min_kept_fraction", "in (0, 1]")
        _require(self.class_weights is None or self.ohem_threshold is None, "class_weights", "null with ohem_threshold")
        _require(self.dice_weight >= 0, "dice_weight", "0 or more")
        _require(self.aux_weight >= 0, "aux_weight", "0 or more")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and what is done to gradients and weights around it."""

    name: Literal["sgd", "adam", "adamw"]
    learning_rate: float
    momentum: float  # of sgd; the others have betas 0.9 and 0.999
    weight_decay: float  # sgd and adam add it to the gradient; adamw takes it off the weight (decoupled)
    decay_norm_and_bias: bool
    head_lr_factor: float  # the rate of all but the backbone over the backbone's; no effect without a backbone
    clip_norm: float | None  # the gradient is shortened to this length; null: never
    ema_decay: float | None  # what is evaluated is this running mean of the weights; null: the weights themselves

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", "positive")
        _require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more")
        _require(self.head_lr_factor > 0, "head_lr_factor", "positive")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "positive, or null")
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "in (0, 1), or null")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How the rate rises to `optimizer.learning_rate` and falls."""

    name: Literal["poly", "one_cycle", "step"]
    warmup_iters: int
    warmup_factor: float  # the first rate over the highest
    power: float = 0.9  # of poly
    step_iters: int = 1  # step: after every so many iterations...
    step_factor: float = 0.1  # ...the rate is multiplied by this

    def __post_init__(self) -> None:
        _require(self.warmup_iters >= 0, "warmup_iters", "0 or more")
        _require(0 < self.warmup_factor <= 1, "warmup_factor", "in (0, 1]")
        _require(self.step_iters >= 1, "step_iters", "at least 1")
        _require(0 < self.step_factor <= 1, "step_factor", "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, in which arithmetic, and how often it looks up."""

    iters: int
    batch_size: int
    num_workers: int  # threads that prepare batches ahead; 0 prepares each when it is needed
    amp: Literal["bf16", "fp16"] | None  # convolutions in this type (autocast); null: all in float32
    channels_last: bool
    eval_every: int
    checkpoint_every: int
    log_every: int
    seed: int
    accumulate: int = 1  # a batch goes through in so many parts, whose gradients are averaged: less memory
    encoder_iters: int = 0  # ENet: so many of `iters` train the encoder alone; then optimizer and rate begin anew
    compile: bool = False  # torch.compile: minutes at the start, for a faster step

    def __post_init__(self) -> None:
        for name in ("iters", "batch_size", "eval_every", "checkpoint_every", "log_every", "accumulate"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        _require(self.num_workers >= 0, "num_workers", "0 or more")
        _require(0 <= self.seed < 2**31, "seed", "0 or more, below 2**31")
        _require(0 <= self.encoder_iters < self.iters, "encoder_iters", "0 or more, and less than iters")

    def part_at(self, step: int) -> tuple[int, int]:
        """First step and length of the part of the training that update number `step` (from 0) belongs to."""
        if step < self.encoder_iters:
            return 0, self.encoder_iters
        return self.encoder_iters, self.iters - self.encoder_iters


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    scope: Literal["full", "reduced", "smoke"]  # the paper's data and budget; less of either; the embedded data
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalProtocol

    def __post_init__(self) -> None:
        if self.schedule.warmup_iters >= self.train.iters:
            raise UserError("schedule.warmup_iters must be less than train.iters")


# twin: encnet_single_gpu/config.py
def read_config(name: str, overrides: list[str] | None = None) -> Config:
    """Reads an experiment by path, or by the bare name of a file in `configs/`.

    Raises:
        UserError: No such file, or a mistake in it.
    """
    path = Path(name)
    if not path.is_file() and path.parent == Path("."):
        known = config_names()
        if path.name.removesuffix(".yaml") not in known:
            raise UserError(f"no config file '{name}' and none of that name in configs/: {did_you_mean(name, known)}")
        path = CONFIG_DIR / f"{path.name.removesuffix('.yaml')}.yaml"
    return load_config(Config, path, overrides)


def config_names() -> list[str]:
    """The names of the files in `configs/`."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
