"""The key names of the original project (SemSegPaddle) and what they are here.

Its commands end in pairs, `SOLVER.LR 0.005 TEST.CROP_SIZE 520`; each becomes one of this project's overrides,
`optimizer.learning_rate=0.005`, or an option of the command, or an error that says what to write instead. Its YAML
files hold the same keys, nested.

Reference: CV/SemSegPaddle/src/utils/config.py of the PaddlePaddle/Research repository, and the names that its dygraph
port (CV/SemSegPaddleDG) adds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.config.strict_yaml import load_yaml

OPTIONS = {
    "TEST.TEST_MODEL": "weights",
    "TEST.TEST_MODEL_FILE": "weights",
    "TRAIN.MODEL_SAVE_DIR": "output",
    "TEST.OUTPUT_PATH": "output",
    "TRAIN.RESUME_MODEL_DIR": "resume",
}
"""Keys that are options of the commands here: `--weights`, `--output`, `--resume`."""

RENAMED = {
    "TRAIN_BATCH_SIZE": "train.batch_size",
    "MEAN": "data.mean",
    "STD": "data.std",
    "DATALOADER.NUM_WORKERS": "train.num_workers",
    "DATASET.DATASET_NAME": "data.dataset",
    "DATASET.DATA_DIR": "data.root",
    "DATASET.DATA_ROOT": "data.root",
    "DATASET.TRAIN_FILE_LIST": "data.train_list",
    "DATASET.VAL_FILE_LIST": "data.val_list",
    "DATAAUG.BASE_SIZE": "augment.base_size",
    "DATAAUG.CROP_SIZE": "augment.crop_size",
    "DATAAUG.RAND_SCALE_MIN": "augment.scale_min",
    "DATAAUG.RAND_SCALE_MAX": "augment.scale_max",
    "DATAAUG.EXTRA": "augment.blur_probability",
    "MODEL.MODEL_NAME": "model.name",
    "MODEL.BACKBONE_OUTPUT_STRIDE": "model.output_stride",
    "MODEL.BACKBONE_MULTI_GRID": "model.multi_grid",
    "MODEL.BN_MOMENTUM": "model.head_norm_momentum",
    "MODEL.MULTI_LOSS_WEIGHT": "loss.aux_weight",
    "TRAIN.PRETRAINED_MODEL_DIR": "model.backbone_weights",
    "TRAIN.PRETRAINED_MODEL_FILE": "model.backbone_weights",
    "SOLVER.LR": "optimizer.learning_rate",
    "SOLVER.OPTIMIZER": "optimizer.name",
    "SOLVER.MOMENTUM": "optimizer.momentum",
    "SOLVER.POWER": "optimizer.power",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.NUM_EPOCHS": "train.epochs",
    "TEST.BASE_SIZE": "eval.long_side",
    "TEST.CROP_SIZE": "eval.window",
    "TEST.FLIP": "eval.flip",
}
"""Keys with another name here; `translate` also turns their values."""

TOGETHER = (
    *("MODEL.BACKBONE", "MODEL.BACKBONE_LAYERS", "SOLVER.LR_WARMUP", "SOLVER.LR_WARMUP_STEPS"),
    *("TRAIN_BATCH_SIZE_PER_GPU", "NUM_TRAINERS"),
)
"""Keys that mean something only together, in any order; `translate_together` turns them."""

INSTEAD = {
    "EVAL_BATCH_SIZE": (None, "images are evaluated one by one"),
    "DATASET.NUM_CLASSES": (None, "the classes follow from data.dataset"),
    "DATASET.IGNORE_INDEX": (("255", "-1"), "ignored pixels are 255 in every data set"),
    "DATASET.SEPARATOR": (None, "the separator of a list is found by itself"),
    "DATASET.TEST_FILE_LIST": (None, "eval.py --split NAME names another list"),
    "DATASET.IMAGE_TYPE": (("rgb",), "images are RGB"),
    "DATASET.DATA_DIM": (("3",), "images have three channels"),
    "DATALOADER.BUF_SIZE": (None, "batches are prepared ahead: train.num_workers=N"),
    "TRAIN.SYNC_BATCH_NORM": (("true",), "it is synchronised with more than one GPU, else plain"),
    "TRAIN.SNAPSHOT_EPOCH": (None, "checkpoints are counted in iterations: train.checkpoint_every=N"),
    "SOLVER.LR_POLICY": (("poly",), "the learning rate is poly: optimizer.power=0.9"),
    "SOLVER.LOSS": (("softmax_loss", "['softmax_loss']"), "the loss is softmax cross entropy"),
    "SOLVER.MOMENTUM2": (None, "AdamW has betas 0.9 and 0.999: optimizer.name=adamw"),
    "TEST.SLIDE_WINDOW": (("true",), "eval.window=[769,769] slides, eval.window=null takes the whole image"),
    "TEST.MULTI_SCALE": (("false",), "eval.py --multi_scales, or eval.scales=[0.5,1.0]"),
    "MODEL.FP16": (("false",), "train.amp=O1"),
    "MODEL.DEFAULT_NORM_TYPE": (("bn",), "the networks have batch normalisation"),
    "MODEL.PSPNET.DEPTH_MULTIPLIER": (("1", "1.0"), "the backbones have their published widths"),
    "MODEL.GLORE.DEPTH_MULTIPLIER": (("1", "1.0"), "the backbones have their published widths"),
    "MODEL.DEEPLABV3.DEPTH_MULTIPLIER": (("1", "1.0"), "the backbones have their published widths"),
    "MODEL.DEEPLABV3.ASPP_WITH_SEP_CONV": (None, "the ASPP has plain convolutions, as the original's code builds it"),
    "MODEL.PSPNET.AUXHEAD": (("true",), "loss.aux_weight=0.4, or 0 for none"),
    "MODEL.GLORE.AUXHEAD": (("true",), "loss.aux_weight=0.4, or 0 for none"),
    "MODEL.DEEPLABV3.AUXHEAD": (("true",), "loss.aux_weight=0.4, or 0 for none"),
}
"""Keys without counterpart: the values that change nothing here (None: every value), and what to write otherwise."""

BASE_OF_FILES = "pspnet_res101_cityscapes"
"""The experiment that a YAML file of the original changes; its defaults come first (`_DEFAULTS`)."""

# src/utils/config.py of the original, where it differs from the experiment above; the files set the rest.
_DEFAULTS = {"DATAAUG.RAND_SCALE_MIN": "0.75", "SOLVER.LR": "0.001", "SOLVER.NUM_EPOCHS": "30"}
_DEFAULTS |= {"MODEL.BACKBONE_MULTI_GRID": "False", "MODEL.BACKBONE": "resnet", "MODEL.BACKBONE_LAYERS": "101"}
_BACKBONES = {"hrnet": "hrnet_w48", "xception_65": "xception65"}

_DATASETS = {"cityscapes": "cityscapes", "pascalcontext": "pascal_context", "pascal_context": "pascal_context"}
_DATASETS |= {"ade": "ade20k", "adechallengedata2016": "ade20k"}


def known_keys() -> list[str]:
    """All key names of the original that are understood, some of them with an error that says what to write."""
    return [*RENAMED, *OPTIONS, *TOGETHER, *INSTEAD]


def read_pairs(path: Path) -> dict[str, str] | None:
    """The keys and values of a YAML file of the original, defaults first; None where the file is not one of those.

    Raises:
        UserError: A key that the original does not have, or a damaged file.
    """
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        return None
    if not isinstance(tree, dict) or not tree or not all(str(key).isupper() for key in tree):
        return None
    pairs = dict(_DEFAULTS)
    for key, value in _flat(tree):
        if key not in known_keys():
            raise UserError(
                f"{path}: '{key}' is not a key of SemSegPaddle: take it out, or write it as a key of configs/"
            )
        pairs[key] = value
    folder = pairs.get("TRAIN.PRETRAINED_MODEL_DIR")
    if folder and not Path(folder).exists():
        print(f"{path}: no {folder}: the backbone starts from random weights, as in the original", file=sys.stderr)
        del pairs["TRAIN.PRETRAINED_MODEL_DIR"]
    return pairs


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    pairs = []
    for key, value in tree.items():
        name = f"{above}{key}".upper()
        pairs += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, str(value))]
    return pairs


def translate_together(pairs: dict[str, str]) -> list[str]:
    """Turns those of the keys `TOGETHER` that are given into overrides.

    Reference: model_builder.py of the original for the backbone, src/utils/solver.py for the warm-up: its steps count
        only with SOLVER.LR_WARMUP True, and are 2000 unless given.
    """
    overrides = []
    backbone, layers = pairs.get("MODEL.BACKBONE"), pairs.get("MODEL.BACKBONE_LAYERS")
    if backbone in (None, "resnet") and (backbone or layers):
        overrides.append(f"model.backbone=resnet{layers or 101}")
    elif backbone:
        overrides += [f"model.backbone={_BACKBONES.get(backbone, backbone)}", "model.first_block_dilated=false"]
        overrides += ["model.output_stride=null"] if backbone == "hrnet" else []
    warmup, steps = pairs.get("SOLVER.LR_WARMUP"), pairs.get("SOLVER.LR_WARMUP_STEPS")
    if warmup is not None and _yes("SOLVER.LR_WARMUP", warmup):
        overrides += ["optimizer.warmup=linear", f"optimizer.warmup_iters={steps or 2000}"]
    elif warmup is not None:
        overrides.append("optimizer.warmup_iters=0")
    elif steps is not None:
        message = "SOLVER.LR_WARMUP_STEPS has no effect without SOLVER.LR_WARMUP True, as in the original"
        print(message, file=sys.stderr)
    per_gpu, trainers = pairs.get("TRAIN_BATCH_SIZE_PER_GPU"), pairs.get("NUM_TRAINERS", "1")
    if per_gpu is not None:
        if not (per_gpu.isdigit() and trainers.isdigit()):
            raise UserError(f"TRAIN_BATCH_SIZE_PER_GPU {per_gpu} and NUM_TRAINERS {trainers} must be whole numbers")
        overrides.append(f"train.batch_size={int(per_gpu) * int(trainers)}")
    return overrides


def translate(key: str, value: str) -> list[str]:
    """Turns a key of the original, in capitals, and its value into "section.key=value"; nothing for idle values.

    Raises:
        UserError: The key is an option of a command here, has no counterpart, or has another kind of value.
    """
    if key in OPTIONS:
        raise UserError(f"{key} is an option of train.py and eval.py, not of the config: --{OPTIONS[key]} {value}")
    if key in INSTEAD:
        idle, instead = INSTEAD[key]
        if idle is None or value.lower() in idle:
            return []
        raise UserError(f"{key} {value} is not known here: {instead}")
    return [f"{RENAMED[key]}={_value(key, value)}"]


def _value(key: str, value: str) -> str:
    """The value as this project writes it."""
    if key == "DATASET.DATASET_NAME":
        return _DATASETS.get(value.lower(), value)
    if key in ("DATAAUG.CROP_SIZE", "TEST.CROP_SIZE") and value.isdigit():
        return f"[{value}, {value}]"
    if key == "DATAAUG.EXTRA":
        return "0.3" if _yes(key, value) else "0.0"
    if key == "MODEL.BACKBONE_MULTI_GRID":
        return "[1, 2, 4]" if _yes(key, value) else "null"
    if key == "MODEL.MULTI_LOSS_WEIGHT":
        return _aux_weight(value)
    return value


def _yes(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"{key} is True or False, not {value}")
    return value.lower() == "true"


def _aux_weight(value: str) -> str:
    """The second of the weights, "[1.0, 0.4]" -> "0.4", or "0.0" without one: the main loss has weight 1 here."""
    try:
        weights = load_yaml(value, "MODEL.MULTI_LOSS_WEIGHT")
    except UserError:
        weights = None
    is_list = isinstance(weights, list) and all(isinstance(weight, int | float) for weight in weights)
    if not is_list or len(weights) not in (1, 2) or weights[0] != 1:
        raise UserError(f"MODEL.MULTI_LOSS_WEIGHT is [1.0] or [1.0, AUX], not {value}: the main loss counts once")
    return str(float(weights[1])) if len(weights) == 2 else "0.0"
