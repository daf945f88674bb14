"""The YAML of PaddleSeg's static-graph code ("legacy", up to 2.1), translated into a config of PaddleSeg 2.8.

Its files have sections of upper-case keys, tuples as text ("(1024, 512)": width, height) and strings as u"...". The
command line changes single keys: `BATCH_SIZE 2 SOLVER.NUM_EPOCHS 3 MODEL.FP16 True`.

Reference: PaddleSeg, branch benchmark, legacy/pdseg/utils/config.py (keys and defaults), models/modeling/ (networks).
Deviation: DeepLabv3+ has paddleseg 2.8's heads, whose batch normalisation has momentum 0.9 and is decayed as all
weights are; legacy's had momentum 0.99 and no decay. Images are RGB whatever AUG.TO_RGB says (it was BGR without it),
and random colour distortion is left out, as legacy had it only within RICH_CROP. Batch normalisation is synchronised
over GPUs whatever TRAIN.SYNC_BATCH_NORM says, as paddleseg 2.8's always is. PRETRAINED_MODEL_DIR held weights of
another format and is ignored: model.backbone.pretrained in a config of train.py takes a .pdparams file of the
backbone. SOLVER.LR_WARMUP is refused where it is True: the solver of 2.1 reads it and never warms up.
"""

from __future__ import annotations

import ast
import contextlib
import copy
from pathlib import Path
from typing import Any

from common.cli import UserError, did_you_mean, shown
from common.config.strict_yaml import load_yaml
from common.config.typed import read_config_text
from paddleseg_benchmark.zoo import zoo

# Every key that is read, with its default; a value that is not one of `_ONLY` below is refused.
DEFAULTS: dict[str, Any] = {
    "BATCH_SIZE": 1,  # of all processes together
    "TRAIN_CROP_SIZE": (1024, 512),
    "DATASET.DATA_DIR": "./dataset/cityscapes/",
    "DATASET.TRAIN_FILE_LIST": "./dataset/cityscapes/train.list",
    "DATASET.VAL_FILE_LIST": "./dataset/cityscapes/val.list",
    "DATASET.SEPARATOR": " ",
    "DATASET.NUM_CLASSES": 19,
    "DATASET.IGNORE_INDEX": 255,
    "DATASET.IMAGE_TYPE": "rgb",
    "DATALOADER.NUM_WORKERS": 8,
    "AUG.AUG_METHOD": "stepscaling",
    "AUG.MIN_SCALE_FACTOR": 0.5,
    "AUG.MAX_SCALE_FACTOR": 2.0,
    "AUG.SCALE_STEP_SIZE": 0.25,
    "AUG.MIRROR": True,
    "MODEL.MODEL_NAME": "",
    "MODEL.DEFAULT_NORM_TYPE": "bn",
    "MODEL.FP16": False,
    "MODEL.SCALE_LOSS": "DYNAMIC",
    "MODEL.HRNET.STAGE2.NUM_CHANNELS": [40, 80],
    "MODEL.HRNET.STAGE3.NUM_CHANNELS": [40, 80, 160],
    "MODEL.HRNET.STAGE4.NUM_CHANNELS": [40, 80, 160, 320],
    "MODEL.HRNET.BIAS": None,
    "MODEL.DEEPLAB.BACKBONE": "resnet_vd_50",
    "MODEL.DEEPLAB.OUTPUT_STRIDE": 16,
    "MODEL.DEEPLAB.ASPP_WITH_SEP_CONV": True,
    "MODEL.DEEPLAB.DECODER_USE_SEP_CONV": True,
    "SOLVER.LR": 0.1,
    "SOLVER.LR_POLICY": "poly",
    "SOLVER.POWER": 0.9,
    "SOLVER.OPTIMIZER": "sgd",
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 4e-5,
    "SOLVER.NUM_EPOCHS": 30,
    "SOLVER.LR_WARMUP": False,
    "TRAIN.RESUME_MODEL_DIR": "",
}
# Keys of legacy configs that have no effect on a training here.
_WITHOUT_EFFECT = (
    *("EVAL_CROP_SIZE", "AUG.FIX_RESIZE_SIZE", "AUG.INF_RESIZE_VALUE", "AUG.MAX_RESIZE_VALUE", "AUG.MIN_RESIZE_VALUE"),
    *("AUG.TO_RGB", "DATASET.TEST_FILE_LIST", "FREEZE.MODEL_FILENAME", "FREEZE.PARAMS_FILENAME", "TEST.TEST_MODEL"),
    *("TRAIN.MODEL_SAVE_DIR", "TRAIN.PRETRAINED_MODEL_DIR", "TRAIN.SNAPSHOT_EPOCH", "TRAIN.SYNC_BATCH_NORM"),
    "SOLVER.LR_WARMUP_STEPS",
)
_LEAST = {
    **dict.fromkeys(("BATCH_SIZE", "TRAIN_CROP_SIZE", "DATASET.NUM_CLASSES", "SOLVER.NUM_EPOCHS"), 1),
    **dict.fromkeys(
        ("DATALOADER.NUM_WORKERS", "SOLVER.LR", "SOLVER.MOMENTUM", "SOLVER.POWER", "SOLVER.WEIGHT_DECAY"), 0
    ),
    **dict.fromkeys(("AUG.MIN_SCALE_FACTOR", "AUG.MAX_SCALE_FACTOR"), 0.01),
    "AUG.SCALE_STEP_SIZE": 0,
}
_ONLY = {
    "DATASET.IMAGE_TYPE": ("rgb",),
    "DATASET.IGNORE_INDEX": (255,),
    "AUG.AUG_METHOD": ("stepscaling",),
    "MODEL.MODEL_NAME": ("hrnet", "deeplabv3p"),
    "MODEL.DEFAULT_NORM_TYPE": ("bn",),
    "MODEL.SCALE_LOSS": ("DYNAMIC",),
    "MODEL.DEEPLAB.BACKBONE": ("resnet_vd_50", "resnet_vd_101"),
    "MODEL.DEEPLAB.OUTPUT_STRIDE": (8, 16),
    "MODEL.DEEPLAB.ASPP_WITH_SEP_CONV": (True,),
    "MODEL.DEEPLAB.DECODER_USE_SEP_CONV": (True,),
    "SOLVER.LR_POLICY": ("poly",),
    "SOLVER.OPTIMIZER": ("sgd",),
    "SOLVER.LR_WARMUP": (False,),
    "TRAIN.RESUME_MODEL_DIR": ("",),
}
_INSTEAD = {
    "SOLVER.LR_WARMUP": "PaddleSeg's solver of 2.1 never warmed up; train.py does, with lr_scheduler.warmup_iters",
    "TRAIN.RESUME_MODEL_DIR": "give --resume_model RUN_DIR",
}
"""What to do in place of a value that is not supported."""


def read_legacy(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """All keys of `DEFAULTS` with the values of a legacy config, changed by overrides KEY VALUE KEY VALUE.

    Raises:
        UserError: No such file, no YAML, an unknown key, a key without value, or a value that is not supported.
    """
    path = zoo.find_config(path, ".yaml")
    tree = load_yaml(read_config_text(path), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a legacy config is a mapping of sections")
    values = copy.deepcopy(DEFAULTS)
    for key, value in _flat(tree):
        _set(values, key, value, str(path))
    if len(overrides) % 2:
        raise UserError(f"command line: '{overrides[-1]}' has no value: write KEY VALUE, as in BATCH_SIZE 2")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _set(values, key, value, "command line")
    for key, allowed in _ONLY.items():
        if values[key] not in allowed:
            hint = _INSTEAD.get(key, f"give {' or '.join(map(repr, allowed))}")
            raise UserError(f"{path}: {key} {shown(values[key])} is not supported: {hint}")
    return values


def to_paddleseg(legacy: dict[str, Any]) -> zoo.ZooConfig:
    """The same experiment as a config of PaddleSeg 2.8; its `iters` are to be set once the data are counted."""
    base = zoo.read_config(zoo.CONFIG_DIR / "deeplabv3p.yml")
    base.source = "legacy config"
    build_model = {"hrnet": _hrnet, "deeplabv3p": _deeplab}[legacy["MODEL.MODEL_NAME"]]
    flip = [{"type": "RandomHorizontalFlip"}] if legacy["AUG.MIRROR"] else []
    transforms = [
        {
            "type": "ResizeStepScaling",
            "min_scale_factor": legacy["AUG.MIN_SCALE_FACTOR"],
            "max_scale_factor": legacy["AUG.MAX_SCALE_FACTOR"],
            "scale_step_size": legacy["AUG.SCALE_STEP_SIZE"],
        },
        {"type": "RandomPaddingCrop", "crop_size": list(legacy["TRAIN_CROP_SIZE"])},
        *flip,
        {"type": "Normalize"},
    ]
    dataset = {
        "type": "Dataset",
        "dataset_root": legacy["DATASET.DATA_DIR"],
        "num_classes": legacy["DATASET.NUM_CLASSES"],
        "separator": legacy["DATASET.SEPARATOR"],
    }
    base.dic |= {
        "batch_size": legacy["BATCH_SIZE"],
        "train_dataset": dataset
        | {"mode": "train", "train_path": legacy["DATASET.TRAIN_FILE_LIST"], "transforms": transforms},
        "val_dataset": dataset
        | {"mode": "val", "val_path": legacy["DATASET.VAL_FILE_LIST"], "transforms": [{"type": "Normalize"}]},
        "optimizer": {
            "type": "SGD",
            "momentum": legacy["SOLVER.MOMENTUM"],
            "weight_decay": legacy["SOLVER.WEIGHT_DECAY"],
        },
        "lr_scheduler": {
            "type": "PolynomialDecay",
            "learning_rate": legacy["SOLVER.LR"],
            "end_lr": 0,
            "power": legacy["SOLVER.POWER"],
        },
        "model": build_model(legacy) | {"num_classes": legacy["DATASET.NUM_CLASSES"]},
    }
    return base


def _hrnet(legacy: dict[str, Any]) -> dict[str, Any]:
    stages = [legacy[f"MODEL.HRNET.STAGE{number}.NUM_CHANNELS"] for number in (2, 3, 4)]
    width = stages[0][0]
    if stages != [[width * 2**branch for branch in range(count)] for count in (2, 3, 4)]:
        raise UserError(f"MODEL.HRNET: channels {stages}: each branch must have twice those of the one before")
    bias = legacy["MODEL.HRNET.BIAS"]  # legacy's None is a bias
    backbone = {"type": f"HRNet_W{width}", "align_corners": False, "padding_same": False}  # padded on both sides
    return {"type": "FCN", "backbone": backbone, "backbone_indices": [-1], "bias": bias is None or bias}


def _deeplab(legacy: dict[str, Any]) -> dict[str, Any]:
    stride, layers = legacy["MODEL.DEEPLAB.OUTPUT_STRIDE"], legacy["MODEL.DEEPLAB.BACKBONE"].rsplit("_", 1)[1]
    return {
        "type": "DeepLabV3P",
        "backbone": {"type": f"ResNet{layers}_vd", "output_stride": stride, "multi_grid": [1, 2, 4]},
        "backbone_indices": [0, 3],
        "aspp_ratios": [1, 12, 24, 36] if stride == 8 else [1, 6, 12, 18],
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested sections as ("SECTION.KEY", value)."""
    pairs = []
    for key, value in tree.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _set(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    if key in _WITHOUT_EFFECT:
        return
    if key not in values:
        raise UserError(f"{where}: unknown key '{key}': {did_you_mean(key, list(DEFAULTS))}")
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError):  # a name such as hrnet, or a path, stays text
            value = ast.literal_eval(value)
    if not _is_like(DEFAULTS[key], value):
        raise UserError(f"{where}: {key} must be {type(DEFAULTS[key]).__name__}, not {shown(value)}")
    numbers = value if key == "TRAIN_CROP_SIZE" else [value]
    if key in _LEAST and not all(number >= _LEAST[key] for number in numbers):
        raise UserError(f"{where}: {key} {shown(value)}: give a number from {_LEAST[key]}")
    if key == "SOLVER.LR" and value == 0:
        raise UserError(f"{where}: {key} {shown(value)}: give a number above 0")
    values[key] = float(value) if isinstance(DEFAULTS[key], float) else value


def _is_like(default: Any, value: Any) -> bool:
    """Whether a value is of a default's kind; numbers are finite, and whole where the default is."""
    if default is None:
        return value is None or isinstance(value, bool)  # MODEL.HRNET.BIAS
    if isinstance(default, tuple | list):
        of_a_kind = isinstance(value, type(default)) and len(value) == len(default)
        return of_a_kind and all(_is_like(default[0], item) for item in value)
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 1e18  # also no nan
    return type(value) is type(default) and (type(value) is not int or abs(value) < 2**31)
