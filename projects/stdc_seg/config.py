"""The experiment file of STDC-Seg: one dataclass per section, every key with its meaning and unit.

An experiment is one complete YAML file in `configs/`; `train.py key=value` changes single keys. Sizes are
(height, width) in pixels, budgets are iterations, `batch_size` is the total over all processes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from common.cli import UserError, did_you_mean
from common.config.typed import load_config
from common.samples.roots import DataConfig
from stdc_seg.protocol import EvalProtocol

CONFIG_DIR = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and the weights that it starts from."""

    name: Literal["stdc1", "stdc2"]
    backbone_weights: (
        str | None
    )  # file with ImageNet weights of the backbone (.safetensors or .pdparams); null = random
    finetune: str | None = None  # a checkpoint of train.py, of these or other classes, to start from; null = not

    def __post_init__(self) -> None:
        if self.finetune is not None and self.backbone_weights is not None:
            raise UserError("finetune and backbone_weights both say where to start: give one of the two")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training transforms, in the order in which they are applied."""

    color_jitter: float  # brightness, contrast and saturation are each multiplied by U[1 - x, 1 + x]
    flip_probability: float
    scales: tuple[float, ...]  # one is drawn per image
    crop_size: tuple[int, int]

    def __post_init__(self) -> None:
        _require(0 <= self.color_jitter < 1, "color_jitter", "in [0, 1)")
        _require(0 <= self.flip_probability <= 1, "flip_probability", "in [0, 1]")
        _require(len(self.scales) > 0 and min(self.scales) > 0, "scales", "one or more positive factors")
        _require(min(self.crop_size) >= 65, "crop_size", "at least 65 pixels a side (2 at stride 32)")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """OHEM cross entropy on three heads, BCE and Dice on the detail head."""

    ohem_threshold: float  # pixels whose true class has less than this probability are hard
    ohem_min_kept_fraction: float  # of all pixels of the batch: at least so many are kept
    aux_weight: float
    detail_weight: float
    detail_masks_ignored: bool  # false as the official code: the border of an unlabelled area counts as detail

    def __post_init__(self) -> None:
        _require(0 < self.ohem_threshold < 1, "ohem_threshold", "in (0, 1)")
        _require(0 < self.ohem_min_kept_fraction <= 1, "ohem_min_kept_fraction", "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD as the official code, or AdamW; exponential warm-up, then poly."""

    name: Literal["sgd", "adamw"]  # sgd as the official code
    learning_rate: float
    momentum: float  # of sgd; adamw has betas 0.9 and 0.999
    weight_decay: float  # sgd adds it to the gradient; adamw takes it off the weight (decoupled)
    decay_norm_and_bias: bool  # false as the official code
    head_lr_factor: float  # the rate of FFM and of all heads over the backbone's
    warmup_iters: int
    warmup_start_lr: float
    power: float
    train_backbone_norm: bool = True  # false: the backbone's BN weights and biases stay as they were loaded

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", "positive")
        _require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more")
        _require(self.warmup_iters >= 0, "warmup_iters", "0 or more")
        _require(0 < self.warmup_start_lr <= self.learning_rate, "warmup_start_lr", "in (0, learning_rate]")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, how often it looks up."""

    iters: int
    batch_size: int
    num_workers: int  # threads that prepare batches ahead; 0 prepares each when it is needed
    eval_every: int
    checkpoint_every: int
    log_every: int
    seed: int
    accumulate: int = 1  # micro-batches that one update is cut into; batch_size stays the total

    # twin: semsegpaddle_glore/config.py
    def __post_init__(self) -> None:
        for name in ("iters", "batch_size", "accumulate", "eval_every", "checkpoint_every", "log_every"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        _require(self.batch_size % self.accumulate == 0, "accumulate", f"a divisor of batch_size {self.batch_size}")
        _require(self.num_workers >= 0, "num_workers", "0 or more")
        _require(0 <= self.seed < 2**63, "seed", "0 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    scope: Literal[
        "full", "reduced", "smoke"
    ]  # full: the paper's data and budget; reduced: less of either; smoke: embedded data
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    eval: EvalProtocol

    def __post_init__(self) -> None:
        if self.optimizer.warmup_iters >= self.train.iters:
            raise UserError("optimizer.warmup_iters must be less than train.iters")


def read_config(name: str, overrides: list[str] | None = None) -> Config:
    """Reads an experiment by path, or by the bare name of a file in `configs/`.

    Raises:
        UserError: No such file, or a mistake in it.
    """
    path = Path(name)
    if not path.is_file() and path.parent == Path("."):
        known = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
        if path.name.removesuffix(".yaml") not in known:
            raise UserError(f"no config file '{name}' and none of that name in configs/: {did_you_mean(name, known)}")
        path = CONFIG_DIR / f"{path.name.removesuffix('.yaml')}.yaml"
    return load_config(Config, path, overrides)


def _require(condition: bool, key: str, rule: str) -> None:
    if not condition:
        raise UserError(f"{key} must be {rule}")
