"""The experiment: one dataclass per section, every key with its meaning, unit and source.

An experiment is one complete YAML file in `configs/`, and every key is an option of train.py: `augment.crop_size` is
`--crop-size`, and a section's `name` goes by the section's own name (`--model`, `--optimizer`). Sizes are (height,
width) in pixels, budgets are iterations, `batch_size` is the images of one update.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

from common.cli import UserError, did_you_mean
from common.config.typed import load_config
from common.samples.roots import DataConfig

CONFIG_DIR = Path(__file__).parent / "configs"


def key(meaning: str, source: str = "ours", default: Any = dataclasses.MISSING) -> Any:
    """A field: what it means and its unit, where the recipes' values come from, and what files without it mean."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "source": source})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and the weights that it starts from."""

    name: str = key("network", "the original")
    backbone: str | None = key("its backbone; null: the network's own default", "papers")
    backbone_weights: str | None = key(
        "ImageNet weights of the backbone: a file (.safetensors, .pth), or package (of pip); null: random weights"
    )
    variant: str | None = key("which published code, where they differ; null: the network's first", default=None)
    finetune: str | None = key(
        "start from a checkpoint of train.py, of these or other classes; null: not", default=None
    )

    def __post_init__(self) -> None:
        one = self.finetune is None or self.backbone_weights is None
        _require(one, "finetune", "null with backbone_weights: give one of the two")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training transforms, in the order in which they are applied."""

    color_jitter: float = key("brightness, contrast and saturation are each multiplied by U[1 - x, 1 + x]")
    flip_probability: float = key("of mirroring left and right", "papers")
    base_size: int | None = key(
        "pixels of the longer side before scaling; null: as the image is", "EncNet's code: 520 for a crop of 480"
    )
    scales: tuple[float, float] = key("range of the random factor on both sides", "papers")
    rotation_degrees: float = key("random rotation by up to so many degrees, either way", "papers")
    blur_probability: float = key("of a Gaussian blur, see transforms", "PyTorch-Encoding, hszhao")
    crop_size: tuple[int, int] = key(
        "pixels of a training image; what is smaller is padded and ignored", "the original"
    )
    transforms: Literal["encoding", "semseg"] = key(
        "encoding: flip first, each image rotated, blur of radius U[0, 1], padding at a random side, areas; "
        "semseg: flip after the blur, every second image rotated, blur of 5x5, padding on both sides, bilinear",
        "PyTorch-Encoding, hszhao",
        default="encoding",
    )

    def __post_init__(self) -> None:
        _require(0 <= self.color_jitter < 1, "color_jitter", "in [0, 1)")
        _require(0 <= self.flip_probability <= 1, "flip_probability", "in [0, 1]")
        _require(0 <= self.blur_probability <= 1, "blur_probability", "in [0, 1]")
        _require(self.base_size is None or self.base_size >= 16, "base_size", "at least 16 pixels, or null")
        _require(0 < self.scales[0] <= self.scales[1], "scales", "[low, high], positive")
        _require(0 <= self.rotation_degrees <= 180, "rotation_degrees", "in [0, 180]")
        _require(min(self.crop_size) >= 16, "crop_size", "at least 16 pixels a side")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Cross entropy of the main and the auxiliary logits, and EncNet's loss on which classes are present."""

    class_weights: tuple[float, ...] | None = key("of the cross entropy, by train id; null: all alike", "SegNet")
    aux_weight: float = key(
        "of each auxiliary output's loss, where the network has any; unetplusplus: 1 in every recipe",
        "hszhao 0.4, EncNet's code 0.2, U-Net++ counts its depths alike",
    )
    se_weight: float = key("of the SE-loss, where the network has it", "EncNet's code")
    divide_by: Literal["weights", "pixels"] = key(
        "with class weights: the weight of all labelled pixels, or their number",
        "SegNet's Caffe: pixels",
        default="weights",
    )

    def __post_init__(self) -> None:
        least = min(self.class_weights or (0,)) if self.class_weights != () else -1
        _require(least >= 0, "class_weights", "a weight of 0 or more for each class")
        _require(self.aux_weight >= 0, "aux_weight", "0 or more")
        _require(self.se_weight >= 0, "se_weight", "0 or more")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its learning rate over the run, and what is done to gradients and weights around it."""

    name: Literal["sgd", "adamw"] = key(
        "sgd (weight decay added to the gradient) or adamw (taken off the weight)", "papers"
    )
    learning_rate: float = key(
        "highest rate; of the backbone, where there is one", "papers' 0.01 for 16 images, in proportion"
    )
    schedule: Literal["poly", "one_cycle", "constant"] = key(
        "poly: (1 - done) ** power; one_cycle: half a cosine to a thousandth; constant", "the original: poly"
    )
    power: float = key("of poly", "papers")
    warmup_share: float = key("of all updates, in which the rate rises from a twentieth to its highest", "papers: none")
    momentum: float = key("of sgd; adamw has betas 0.9 and 0.999", "papers")
    weight_decay: float = key("per update", "papers")
    decay_norm_and_bias: bool = key("whether biases and normalisation decay too", "PyTorch-Encoding, hszhao")
    head_lr_factor: float = key("rate of all but the backbone, over the backbone's", "PyTorch-Encoding, hszhao")
    clip_norm: float | None = key("gradients longer than this are shortened to it; null: never")
    ema_decay: float | None = key("of the running mean of the weights that counts; null: the weights count")

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", "positive")
        _require(0 <= self.warmup_share < 1, "warmup_share", "in [0, 1)")
        _require(self.power > 0, "power", "positive")
        _require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more")
        _require(self.head_lr_factor > 0, "head_lr_factor", "positive")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "positive, or null")
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "in (0, 1), or null")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, in which arithmetic, and how often it looks up."""

    iters: int = key("updates in all", "the original: 30 epochs of ADE20K's 20210 images; papers: 120")
    batch_size: int = key("images of one update", "the original; papers: 16")
    micro_batch: int | None = key(
        "at most so many images at once, gradients added up; null: all of the batch", "ours, by a card's memory"
    )
    num_workers: int = key("threads that prepare batches ahead; 0 prepares each when it is needed")
    amp: Literal["bf16", "fp16"] | None = key("arithmetic of convolutions (autocast); null: float32")
    channels_last: bool = key("memory layout with the channels last, which bf16 and fp16 convolutions like")
    compile: bool = key("torch.compile: minutes to start, worth it for long runs on a GPU")
    eval_every: int = key("updates between two validations")
    checkpoint_every: int = key("updates between two checkpoints")
    log_every: int = key("updates between two rows of train.csv")
    seed: int = key("seed of weights, order, augmentation and dropout")

    def __post_init__(self) -> None:
        for name in ("iters", "batch_size", "eval_every", "checkpoint_every", "log_every"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        _require(self.micro_batch is None or self.micro_batch >= 1, "micro_batch", "at least 1, or null")
        _require(self.num_workers >= 0, "num_workers", "0 or more")
        _require(0 <= self.seed < 2**31, "seed", "0 or more, below 2**31")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    scope: Literal["full", "reduced", "smoke"] = key("the paper's data and budget; less of either; the embedded data")
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    train: TrainConfig


def options() -> dict[str, tuple[str, dataclasses.Field]]:
    """The options of train.py by name, without dashes in front: the key that each sets, and its field.

    `data.root` is not among them: it is of the machine, not of the experiment, and has `--data`.
    """
    found, types = {}, typing.get_type_hints(Config)
    for section in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(types[section.name]):
            found[section.name] = (section.name, section)
            continue
        for field in dataclasses.fields(types[section.name]):
            option = section.name if field.name == "name" else field.name.replace("_", "-")
            found[option] = (f"{section.name}.{field.name}", field)
    del found["root"]
    return found


# twin: awesome_pytorch_seg/config.py
def read_config(name: str, overrides: list[str] | None = None) -> Config:
    """Reads an experiment by path, or by the bare name of a file in `configs/`.

    Args:
        name: Path or name.
        overrides: Words "section.key=value" that change single keys; values are YAML.

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


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise UserError(f"{name} must be {rule}")
