"""Checks configs of PaddleSeg. Each mistake is one line that names the file, the key and what is valid.

paddleseg itself hands every key on to the class that `type` names, whatever it is, and does not look at keys that it
does not know. What a class takes is read from its constructor here: names, what is required, kinds of the defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from common.cli import UserError, did_you_mean, shown
from common.labels import IGNORE

import paddle
from paddleseg.cvlibs import manager

SECTIONS = ("train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss", "model")
KEYS = ("batch_size", "iters", *SECTIONS)
SUCCESSORS = {"learning_rate": "lr_scheduler (type: PolynomialDecay, learning_rate: 0.01, end_lr: 0, power: 0.9)"}
"""Keys of PaddleSeg 2.0 that have another name since."""
UNUSED = {
    "test_config": "evaluation here is of whole images at one scale",
    "to_static_training": "run_matrix.py measures graphs",
    "distill_loss": "nothing is distilled here",
}
"""Keys of PaddleSeg that nothing here reads, and why; to ignore them would be to train something else."""
_ALWAYS_IN_A_DATASET = ("dataset_root", "mode", "transforms")
_WARM_UP = ("warmup_iters", "warmup_start_lr")  # paddleseg's own keys of every schedule
_LARGEST = 2**63

Classes = dict[str, Callable]


def check(tree: dict[str, Any], where: str) -> None:
    """Looks at every key of a config, what it takes from `_base_` included; `where` names the file.

    Raises:
        UserError: A key that is unknown or missing, a value of another kind, a `type` that paddleseg does not have.
    """
    for key in tree.keys() & UNUSED:
        raise UserError(f"{where}: '{key}' has no effect here ({UNUSED[key]}): take it out")
    for key in tree.keys() & SUCCESSORS.keys():
        raise UserError(f"{where}: '{key}' is a key of PaddleSeg 2.0: its successor is {SUCCESSORS[key]}: give that")
    _refuse_unknown(tree, KEYS, "", where)
    _require(tree, KEYS, "", where)
    for key, value in _numbers(tree):
        if not abs(value) < _LARGEST:  # also nan
            raise UserError(f"{where}: '{key}' is {shown(value)}: give a finite number of at most 64 bits")
    for key in ("batch_size", "iters"):
        _require_whole(tree[key], key, where)
    for key in SECTIONS:
        if not isinstance(tree[key], dict):
            raise UserError(f"{where}: '{key}' must be a section of keys, not {shown(tree[key])}")
    for key in ("train_dataset", "val_dataset"):
        _check_component(tree[key], key, where, manager.DATASETS.components_dict)
        _require(tree[key], _ALWAYS_IN_A_DATASET, f"{key}.", where)
    _check_component({"num_classes": 1} | tree["model"], "model", where, manager.MODELS.components_dict)
    _check_losses(tree["loss"], where)
    optimizer = {key: optimizer_type(tree["optimizer"]) if key == "type" else v for key, v in tree["optimizer"].items()}
    _check_component(optimizer, "optimizer", where, manager.OPTIMIZERS.components_dict)
    _check_schedule(tree["lr_scheduler"], where)


def optimizer_type(optimizer: dict[str, Any]) -> Any:
    """The name of an optimizer's class: in small letters too, and of SGD with momentum another, as in paddleseg."""
    kind = {"sgd": "SGD", "adam": "Adam"}.get(str(optimizer.get("type")), optimizer.get("type"))
    return "Momentum" if kind == "SGD" and "momentum" in optimizer else kind


def _schedules() -> Classes:
    found = vars(paddle.optimizer.lr).items()
    return {
        name: kind
        for name, kind in found
        if inspect.isclass(kind) and issubclass(kind, paddle.optimizer.lr.LRScheduler)
    }


def _check_losses(loss: dict[str, Any], where: str) -> None:
    _refuse_unknown(loss, ("types", "coef"), "loss.", where)
    _require(loss, ("types", "coef"), "loss.", where)
    for key in ("types", "coef"):
        if not isinstance(loss[key], list) or not loss[key]:
            raise UserError(f"{where}: 'loss.{key}' must be a list of one or more, not {shown(loss[key])}")
    for number, value in enumerate(loss["types"]):
        _check_component(value, f"loss.types[{number}]", where, manager.LOSSES.components_dict)
    for number, value in enumerate(loss["coef"]):
        _require_like(1.0, value, f"loss.coef[{number}]", where)


def _check_schedule(schedule: dict[str, Any], where: str) -> None:
    kinds = _schedules()
    known = {key: value for key, value in schedule.items() if key not in _WARM_UP}
    if schedule.get("type") == "PolynomialDecay":
        known.setdefault("decay_steps", 1)  # paddleseg's builder takes `iters`
    _check_component(known, "lr_scheduler", where, kinds, more=_WARM_UP)
    for key in schedule.keys() & set(_WARM_UP):
        _require_like(1.0, schedule[key], f"lr_scheduler.{key}", where)
    if "warmup_iters" in schedule:
        _require(schedule, ("warmup_start_lr", "learning_rate"), "lr_scheduler.", where)


def _check_component(value: Any, key: str, where: str, classes: Classes, more: tuple[str, ...] = ()) -> None:
    """A section that names a class by its `type`; its other keys are that class's arguments, or `more`."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: '{key}' must be a section with a type, not {shown(value)}")
    if "type" not in value:
        raise UserError(f"{where}: key '{key}.type' is missing among {', '.join(map(str, value)) or 'none'}")
    if not isinstance(value["type"], str) or value["type"] not in classes:
        valid = did_you_mean(str(value["type"]), sorted(classes))
        raise UserError(f"{where}: '{key}.type' is {shown(value['type'])}: {valid}")
    parameters = inspect.signature(classes[value["type"]]).parameters
    arguments = {name: argument for name, argument in value.items() if name != "type"}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        _refuse_unknown(arguments, (*parameters, *more), f"{key}.", where)
        needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        _require(arguments, needed, f"{key}.", where)
    for name, argument in arguments.items():
        default = parameters[name].default if name in parameters else None
        _check_argument(name, argument, default, f"{key}.{name}", where)


def _check_argument(name: str, value: Any, default: Any, key: str, where: str) -> None:
    """One argument of a component: by its name where `_CHECKS` has it, else by the kind of its default."""
    _CHECKS.get(name, _check_by_default)(value, default, key, where)


def _check_backbone(value: Any, default: Any, key: str, where: str) -> None:
    _check_component(value, key, where, manager.BACKBONES.components_dict)


def _check_transforms(value: Any, default: Any, key: str, where: str) -> None:
    _check_list(value, key, where, manager.TRANSFORMS.components_dict)


def _check_mixed_losses(value: Any, default: Any, key: str, where: str) -> None:
    if default is inspect.Parameter.empty:  # MixedLoss's; elsewhere `losses` is something else
        _check_list(value, key, where, manager.LOSSES.components_dict)
    else:
        _check_by_default(value, default, key, where)


def _check_list(value: Any, key: str, where: str, classes: Classes) -> None:
    if not isinstance(value, list):
        raise UserError(f"{where}: '{key}' must be a list of sections with a type, not {shown(value)}")
    for number, item in enumerate(value):
        _check_component(item, f"{key}[{number}]", where, classes)


def _check_crop_size(value: Any, default: Any, key: str, where: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{where}: '{key}' must be a list of width and height, not {shown(value)}")
    for side in value:
        _require_whole(side, key, where)


def _check_count(value: Any, default: Any, key: str, where: str) -> None:
    _require_whole(value, key, where)


def _check_ignore_index(value: Any, default: Any, key: str, where: str) -> None:
    if value != IGNORE:
        raise UserError(f"{where}: '{key}' is {shown(value)}: labels are ignored where they are {IGNORE}: give that")


def _check_rate(value: Any, default: Any, key: str, where: str) -> None:
    _require_like(1.0, value, key, where)
    if value <= 0:
        raise UserError(f"{where}: '{key}' is {shown(value)}: give a number above 0")


def _check_text(value: Any, default: Any, key: str, where: str) -> None:
    _require_like("", value, key, where)


def _check_optional_text(value: Any, default: Any, key: str, where: str) -> None:
    if value is None:
        _check_by_default(value, default, key, where)
    else:
        _check_text(value, default, key, where)


def _check_optional_number(value: Any, default: Any, key: str, where: str) -> None:
    if value is None:
        _check_by_default(value, default, key, where)
    else:
        _require_like(1.0, value, key, where)


def _check_by_default(value: Any, default: Any, key: str, where: str) -> None:
    if default is not inspect.Parameter.empty and default is not None:
        _require_like(default, value, key, where)


_CHECKS: dict[str, Callable[[Any, Any, str, str], None]] = {
    "backbone": _check_backbone,
    "transforms": _check_transforms,
    "losses": _check_mixed_losses,
    "crop_size": _check_crop_size,
    "num_classes": _check_count,
    "ignore_index": _check_ignore_index,
    "learning_rate": _check_rate,
    "mode": _check_text,
    "dataset_root": _check_text,
    "train_path": _check_optional_text,
    "val_path": _check_optional_text,
    "pretrained": _check_optional_text,
    "weight_decay": _check_optional_number,
}
"""Argument of a component -> how its value is checked: (value, the constructor's default, key, file)."""


def _require_like(default: Any, value: Any, key: str, where: str) -> None:
    """A value of a default's kind; numbers may be whole or not."""
    if isinstance(default, tuple | list):
        if not isinstance(value, list):
            raise UserError(f"{where}: '{key}' must be a list, not {shown(value)}")
        for item in value if default else ():
            _require_like(default[0], item, key, where)
        return
    kinds = ((bool, bool, "true or false"), (int | float, int | float, "a number"), (str, str, "text"))
    for of_default, of_value, name in kinds:
        if isinstance(default, of_default):
            if not isinstance(value, of_value) or isinstance(value, bool) > isinstance(default, bool):
                raise UserError(f"{where}: '{key}' must be {name}, not {shown(value)}")
            return


def _require_whole(value: Any, key: str, where: str) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: '{key}' must be a whole number from 1, not {shown(value)}")


def _refuse_unknown(tree: dict[str, Any], known: tuple[str, ...], prefix: str, where: str) -> None:
    for key in tree:
        if key not in known:
            raise UserError(f"{where}: unknown key '{prefix}{key}': {did_you_mean(str(key), list(known))}")


def _require(tree: dict[str, Any], keys: tuple[str, ...] | list[str], prefix: str, where: str) -> None:
    for key in keys:
        if key not in tree:
            raise UserError(f"{where}: key '{prefix}{key}' is missing")


def _numbers(tree: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a config with its key."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            name = f"{prefix}.{key}".lstrip(".") if isinstance(tree, dict) else f"{prefix}[{key}]"
            yield from _numbers(value, name)
    elif isinstance(tree, int | float):
        yield prefix, tree
