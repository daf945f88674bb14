"""The key names of the original project (SemSegPaddle) and what they are here.

Its commands end in pairs, `SOLVER.LR 0.005 TEST.CROP_SIZE 520`; each becomes one of this project's overrides,
`optimizer.learning_rate=0.005`, or an option of the command, or an error that says what to write instead.

Reference: CV/SemSegPaddle/src/utils/config.py of the PaddlePaddle/Research repository, and the names that its dygraph
port (CV/SemSegPaddleDG) adds.
"""

from __future__ import annotations

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
    "MODEL.BACKBONE": "model.backbone",
    "MODEL.BACKBONE_LAYERS": "model.backbone",
    "MODEL.BACKBONE_OUTPUT_STRIDE": "model.output_stride",
    "MODEL.BACKBONE_MULTI_GRID": "model.multi_grid",
    "MODEL.MULTI_LOSS_WEIGHT": "loss.aux_weight",
    "TRAIN.PRETRAINED_MODEL_DIR": "model.backbone_weights",
    "TRAIN.PRETRAINED_MODEL_FILE": "model.backbone_weights",
    "SOLVER.LR": "optimizer.learning_rate",
    "SOLVER.OPTIMIZER": "optimizer.name",
    "SOLVER.MOMENTUM": "optimizer.momentum",
    "SOLVER.POWER": "optimizer.power",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.LR_WARMUP_STEPS": "optimizer.warmup_iters",
    "SOLVER.NUM_EPOCHS": "train.epochs",
    "TEST.BASE_SIZE": "eval.long_side",
    "TEST.CROP_SIZE": "eval.window",
    "TEST.FLIP": "eval.flip",
}
"""Keys with another name here; `translate` also turns their values."""

INSTEAD = {
    "TRAIN_BATCH_SIZE_PER_GPU": "the batch size is the total of all processes: train.batch_size=N",
    "NUM_TRAINERS": "the launcher starts the processes: python -m paddle.distributed.launch --nproc_per_node N",
    "EVAL_BATCH_SIZE": "images are evaluated one by one",
    "DATASET.NUM_CLASSES": "the classes follow from data.dataset",
    "DATASET.IGNORE_INDEX": "ignored pixels are 255 in every data set",
    "DATASET.SEPARATOR": "the separator of a list is found out by itself",
    "DATASET.TEST_FILE_LIST": "eval.py --split NAME names another list",
    "TRAIN.SYNC_BATCH_NORM": "it is synchronised with more than one GPU, else plain",
    "TRAIN.SNAPSHOT_EPOCH": "checkpoints are counted in iterations: train.checkpoint_every=N",
    "SOLVER.LR_POLICY": "the learning rate is poly: optimizer.power=0.9",
    "SOLVER.LR_WARMUP": "optimizer.warmup_iters=N warms up, 0 does not",
    "SOLVER.LOSS": "the loss is softmax cross entropy",
    "TEST.SLIDE_WINDOW": "eval.window=[769,769] slides, eval.window=null takes the whole image",
    "TEST.MULTI_SCALE": "eval.py --multi_scales, or eval.scales=[0.5,1.0]",
    "MODEL.FP16": "train.amp=O1",
    "MODEL.PSPNET.AUXHEAD": "loss.aux_weight=0.4, or 0 for none",
    "MODEL.GLORE.AUXHEAD": "loss.aux_weight=0.4, or 0 for none",
    "MODEL.DEEPLABV3.AUXHEAD": "loss.aux_weight=0.4, or 0 for none",
}
"""Keys without counterpart: what to write, or why there is nothing to write."""

_DATASETS = {"cityscapes": "cityscapes", "pascalcontext": "pascal_context", "pascal_context": "pascal_context"}
_DATASETS |= {"ade": "ade20k", "adechallengedata2016": "ade20k"}


def known_keys() -> list[str]:
    """All key names of the original that are understood, some of them with an error that says what to write."""
    return [*RENAMED, *OPTIONS, *INSTEAD]


def translate(key: str, value: str) -> str:
    """Turns a key of the original, in capitals, and its value into "section.key=value".

    Raises:
        UserError: The key is an option of a command here, has no counterpart, or has another kind of value.
    """
    if key in OPTIONS:
        raise UserError(f"{key} is an option of train.py and eval.py, not of the config: --{OPTIONS[key]} {value}")
    if key in INSTEAD:
        raise UserError(f"{key} is not a key here: {INSTEAD[key]}")
    return f"{RENAMED[key]}={_value(key, value)}"


def _value(key: str, value: str) -> str:
    """The value as this project writes it."""
    if key == "DATASET.DATASET_NAME":
        return _DATASETS.get(value.lower(), value)
    if key == "MODEL.BACKBONE_LAYERS":
        return f"resnet{value}"
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
