"""The experiment file of this project: one dataclass per section, every key with its meaning and unit.

An experiment is one complete YAML file in `configs/`; words at the end of a command change single keys, as
`section.key=value` or `SECTION.KEY value`, with this project's names or those of the original (`original_keys.py`).
Sizes are (height, width) in pixels, budgets are iterations, `batch_size` is the total over all processes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path
from typing import Literal

from common.cli import UserError, did_you_mean
from common.config.typed import load_config
from common.samples.roots import REPOSITORY, DataConfig
from common.toy_dataset import STANDARD
from semsegpaddle_glore import original_keys
from semsegpaddle_glore.protocol import SMALLEST_INPUT, EvalProtocol

CONFIG_DIR = Path(__file__).parent / "configs"
TRAIN_IMAGES = {"cityscapes": 2975, "pascal_context": 4998, "ade20k": 20210, "camvid": 367}
TRAIN_IMAGES |= {"toy": STANDARD["toy_cityscapes_128x256"].num_train}
"""Images of the training sets, to turn epochs into iterations."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and what it starts from."""

    name: Literal["pspnet", "deeplabv3", "glore", "ginet"]  # the decode head
    backbone: str  # a name of models.backbones.backbone_names(), or FILE.py of torch2paddle.py
    backbone_weights: str | None  # ImageNet's: .safetensors, .pdparams, or "package" (of pip); null = random
    output_stride: int | None  # 8, 16 or 32: dilation in place of stride; null = the default of build_model
    multi_grid: tuple[int, int, int] | None  # dilation factors of the last ResNet stage's blocks; null = none
    word_embeddings: str | None  # of ginet: a file of word vectors in GloVe's text format, see word_vectors_file()
    first_block_dilated: bool = False  # true as the original: of a stage that has dilation in place of stride
    head_norm_momentum: float = 0.9  # 0.99 as the original: what the heads' running statistics keep of themselves
    pyramid_channels: int | None = None  # of each grid of pspnet; null = 512 as the original
    finetune: str | None = None  # a checkpoint of train.py, of these or other classes, to start from; null = not

    def __post_init__(self) -> None:
        _require(self.output_stride in (None, 4, 8, 16, 32), "output_stride", "8, 16, 32, 4 (HRNet) or null")
        _require(self.multi_grid is None or min(self.multi_grid) >= 1, "multi_grid", "three factors of 1 or more")
        _require(self.pyramid_channels is None or self.pyramid_channels >= 1, "pyramid_channels", "1 or more, or null")
        _require(0 <= self.head_norm_momentum < 1, "head_norm_momentum", "in [0, 1)")
        if self.name == "ginet" and self.word_embeddings is None:
            raise UserError("word_embeddings is missing: ginet needs word vectors, a file such as glove.6B.300d.txt")
        if self.finetune is not None and self.backbone_weights is not None:
            raise UserError("finetune and backbone_weights both say where to start: give one of the two")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training transforms, in the order in which they are applied."""

    base_size: int  # the short side becomes a whole number of pixels in base_size * [scale_min, scale_max]
    scale_min: float
    scale_max: float
    flip_probability: float
    crop_size: tuple[int, int]  # smaller images are padded: black, and ignored in the label
    blur_probability: float  # Gaussian, standard deviation U(0, 1] pixel
    sampling: Literal["whole", "window"] = "whole"  # window: as awesome_pytorch_seg samples, see data/transforms.py

    def __post_init__(self) -> None:
        _require(self.base_size >= 1, "base_size", "1 or more")
        _require(0 < self.scale_min <= self.scale_max, "scale_min", "positive and at most scale_max")
        _require(self.base_size * self.scale_min >= 1, "scale_min", "large enough for an image of one pixel")
        _require(0 <= self.flip_probability <= 1, "flip_probability", "in [0, 1]")
        _require(0 <= self.blur_probability <= 1, "blur_probability", "in [0, 1]")
        _require(min(self.crop_size) >= SMALLEST_INPUT, "crop_size", f"at least {SMALLEST_INPUT} pixels a side")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Cross entropy on the decode head (weight 1) and the auxiliary head; GINet's SC-loss."""

    aux_weight: float  # 0 = no auxiliary head is built
    sc_weight: float  # of ginet: the semantic context loss, on the presence of classes
    class_weights: tuple[float, ...] | None = None  # of the cross entropies, by train id; null = all alike

    def __post_init__(self) -> None:
        least = min(self.class_weights or (0,)) if self.class_weights != () else -1
        _require(least >= 0, "class_weights", "a weight of 0 or more for each class")
        _require(self.aux_weight >= 0, "aux_weight", "0 or more")
        _require(self.sc_weight >= 0, "sc_weight", "0 or more")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD as the original, or AdamW; warm-up, then poly or the fall of one-cycle."""

    name: Literal["sgd", "adamw"]
    learning_rate: float
    momentum: float  # of sgd; adamw has betas 0.9 and 0.999
    weight_decay: float  # sgd adds it to the gradient; adamw takes it off the weight (decoupled)
    decay_norm_and_bias: bool
    decay_classifier: bool  # the weight of the last 1x1 convolution of each head; true as the original
    head_lr_factor: float  # the rate of everything that is not the backbone over the backbone's
    warmup_iters: int  # 0 = none
    warmup_start_lr: float
    power: float
    decay_head_norm: bool = True  # false as the original: its heads' BN weights and biases do not decay
    warmup: Literal["exponential", "linear"] = "exponential"  # linear as the original: from 0, without warmup_start_lr
    schedule: Literal["poly", "one_cycle"] = "poly"  # one_cycle: up and down along half a cosine, see lr_schedule.py

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", "positive")
        _require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more")
        _require(self.head_lr_factor > 0, "head_lr_factor", "positive")
        _require(self.power > 0, "power", "positive")
        _require(self.warmup_iters >= 0, "warmup_iters", "0 or more")
        in_range = self.warmup_iters == 0 or self.warmup == "linear" or 0 < self.warmup_start_lr <= self.learning_rate
        _require(in_range, "warmup_start_lr", "in (0, learning_rate]")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, how often it looks up."""

    iters: int
    batch_size: int
    accumulate: int  # micro-batches that one update is cut into; batch_size stays the total
    num_workers: int  # threads that prepare batches ahead; 0 prepares each when it is needed
    eval_every: int
    checkpoint_every: int
    log_every: int
    seed: int
    amp: Literal["O1", "O2"] | None  # mixed precision on a GPU; null = fp32

    # twin: stdc_seg/config.py
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


def read_config(name: str, overrides: list[str] | None = None, root: str | None = None) -> Config:
    """Reads an experiment by path, or by the bare name of a file in `configs/`.

    Args:
        name: "configs/quickstart.yaml", "quickstart.yaml" or "quickstart"; or a YAML file of the original project.
        overrides: The arguments that change keys, see `parse_overrides`. `train.epochs` sets `train.iters` by the
            length of the training list, or by a data set whose number of images is known where there is no list yet.
        root: Where the data lie, if not at the config's `data.root`.

    Raises:
        UserError: No such file, or a mistake in it or in the overrides.
    """
    path = _config_path(name)
    words = list(overrides or [])
    original = original_keys.read_pairs(path)
    if original is not None:
        path = _config_path(original_keys.BASE_OF_FILES)
        in_file = [word for key, value in original.items() if key not in original_keys.OPTIONS for word in (key, value)]
        words = [*in_file, *words]
    words = parse_overrides(words)
    epochs = [word.partition("=")[2] for word in words if word.startswith("train.epochs=")]
    words = [word for word in words if not word.startswith("train.epochs=")]
    config = load_config(Config, path, words)
    if epochs:
        config = load_config(Config, path, [*words, f"train.iters={_iters_of(epochs[-1], config, root)}"])
    return config


def _config_path(name: str) -> Path:
    path = Path(name)
    if not path.is_file() and path.parent in (Path("."), Path("configs")):
        known = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
        if path.name.removesuffix(".yaml") not in known:
            raise UserError(f"no config file '{name}' and none of that name in configs/: {did_you_mean(name, known)}")
        path = CONFIG_DIR / f"{path.name.removesuffix('.yaml')}.yaml"
    return path


def parse_overrides(words: list[str]) -> list[str]:
    """Turns the arguments at the end of a command into overrides "section.key=value" for `read_config`.

    Both spellings may be mixed: one argument `section.key=value`, or two arguments `SECTION.KEY value`. Case does not
    matter in a key. Keys of the original project are translated (`original_keys.py`).

    Raises:
        UserError: A key without value; an unknown key, with the nearest; a key of the original that has no counterpart.
    """
    ours = [*_config_keys(), "train.epochs"]
    overrides, together = [], {}
    rest = list(words)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not equals:
            if not rest:
                raise UserError(f"command line '{key}': no value: write {key} VALUE or {key}=VALUE")
            value = rest.pop(0)
        if key in original_keys.TOGETHER:  # before ours: MODEL.BACKBONE is a key of both
            together[key] = value
        elif key.lower() in ours:
            overrides.append(f"{key.lower()}={value}")
        elif key.upper() in original_keys.TOGETHER:
            together[key.upper()] = value
        elif key.upper() in original_keys.known_keys():
            overrides += original_keys.translate(key.upper(), value)
        else:
            raise UserError(f"command line '{key}': unknown key: {_nearest_keys(key, ours)}")
    return [*original_keys.translate_together(together), *overrides]


def options_of_file(name: str | None) -> dict[str, str]:
    """What a YAML file of the original says of the command's options, see `take_options`; nothing for other files."""
    pairs = original_keys.read_pairs(_config_path(name)) if name else None
    known = original_keys.OPTIONS
    return {known[key]: value for key, value in (pairs or {}).items() if key in known and value}


def take_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes the original's keys that are options here (TEST.TEST_MODEL, TRAIN.MODEL_SAVE_DIR ...) from the arguments.

    Returns:
        Option name ("weights", "output", "resume") -> value, and the other words in their order.
    """
    options, others = {}, []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not equals and rest:
            value = rest.pop(0)
        if key.upper() in original_keys.OPTIONS and value:
            options[original_keys.OPTIONS[key.upper()]] = value
        else:
            others += [word] if equals or not value else [word, value]
    return options, others


def multi_scales(dataset: str) -> tuple[float, ...]:
    """The factors of multi-scale evaluation (`eval.py --multi_scales`) for a data set.

    Reference: eval.py of the original: 0.5 to 2.25 for Cityscapes, 0.5 to 1.75 elsewhere, in steps of 0.25.
    """
    last = 2.25 if dataset in ("cityscapes", "toy") else 1.75
    return tuple(0.25 * step for step in range(2, round(last / 0.25) + 1))


def word_vectors_file(model: ModelConfig) -> Path:
    """The file of `model.word_embeddings`: from the working directory, from the repository, or beside the configs.

    Raises:
        UserError: There is no such file.
    """
    places = [base / model.word_embeddings for base in (Path(), REPOSITORY, CONFIG_DIR)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"no word vectors {model.word_embeddings} (model.word_embeddings): give a file in GloVe's text format; "
            "glove.6B.300d.txt is in glove.6B.zip of the GloVe project"
        )
    return found


def _config_keys() -> list[str]:
    """All keys of the schema with their section: "optimizer.learning_rate"."""
    sections = typing.get_type_hints(Config)
    keys = []
    for section in dataclasses.fields(Config):
        kind = sections[section.name]
        if dataclasses.is_dataclass(kind):
            keys += [f"{section.name}.{field.name}" for field in dataclasses.fields(kind)]
        else:
            keys.append(section.name)
    return keys


def _nearest_keys(key: str, ours: list[str]) -> str:
    """The sentence of `did_you_mean` for the keys of the same section; the sections where there is none of its name."""
    lower = key[:1].islower()
    keys = ours if lower else original_keys.known_keys()
    section = (key.lower() if lower else key.upper()).rpartition(".")[0]
    in_section = [known for known in keys if known.rpartition(".")[0] == section]
    if in_section:
        return did_you_mean(key, in_section)
    nearest = did_you_mean(key, keys).split("valid:")[0]
    sections = sorted({known.partition(".")[0] for known in ours if "." in known})
    return f"{nearest}keys are written section.key=value with the sections {', '.join(sections)}"


def _iters_of(epochs: str, config: Config, root: str | None) -> int:
    """The iterations of so many passes over the training set."""
    if not epochs.isdigit() or int(epochs) < 1:
        raise UserError(f"train.epochs must be a whole number of 1 or more, not '{epochs}'")
    data = config.data
    places = [base / (root or data.root) / data.train_list for base in (Path(), REPOSITORY)]
    train_list = next((place for place in places if place.is_file()), None)
    if train_list is not None:
        text = train_list.read_text(encoding="utf-8", errors="replace")
        images = sum(1 for line in text.splitlines() if line.strip())  # as the original counts
    elif data.dataset in TRAIN_IMAGES and Path(data.train_list).stem == "train":
        images = TRAIN_IMAGES[data.dataset]
    else:
        raise UserError(
            f"epochs: {data.train_list} is not under {root or data.root}, so its length is not known: make the list, "
            f"or give train.iters=N, which is epochs x images / batch_size"
        )
    return math.ceil(int(epochs) * images / config.train.batch_size)


def _require(condition: bool, key: str, rule: str) -> None:
    if not condition:
        raise UserError(f"{key} must be {rule}")
