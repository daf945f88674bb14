"""Where a checkpoint of training keeps its weights: the wrappers and name prefixes of known trainers.

Layouts that are known: timm's (`state_dict`, `state_dict_ema`), torchvision's references (`model`, `model_ema`),
mmengine's (`state_dict`, `ema_state_dict`), detectron2's and its descendants' (`model`, `ema_state`), PaddleClas's
(`model`, `ema`), and the state of `torch.optim.swa_utils.AveragedModel` (`n_averaged` beside names with "module.").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from common.cli import UserError

WEIGHTS = ("state_dict", "model", "module", "network", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_state", "ema_model", "ema", "averaged_model")
_COUNTERS = ("n_averaged", "steps", "num_updates")  # beside averaged weights, not part of the network


class Unwrapped(NamedTuple):
    """A state dict out of a checkpoint.

    Attributes:
        tensors: Name -> tensor, as they lie in the file.
        note: What to tell the user about the choice between raw and averaged weights; None where there was none.
    """

    tensors: dict[str, Any]
    note: str | None


def unwrap(content: Any, path: object, ema: bool = False) -> Unwrapped:
    """Takes the state dict out of the content of a weight file.

    Args:
        content: What the file held: a state dict, or a checkpoint around one.
        path: The file, for messages.
        ema: Take the averaged weights.

    Raises:
        UserError: There is no state dict, or no averaged weights though asked for.
    """
    note = None
    while isinstance(content, dict):
        averaged = next((key for key in AVERAGED if _holds_weights(content.get(key))), None)
        plain = next((key for key in WEIGHTS if _holds_weights(content.get(key))), None)
        if averaged is not None and (ema or plain is None):
            note = f"the averaged weights '{averaged}'" + ("" if ema else ", as there are no others")
            content, ema = content[averaged], False
        elif plain is not None:
            if averaged is not None:
                note = f"'{plain}', not the averaged weights '{averaged}' beside it"
            content = content[plain]
        else:
            break
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict or a checkpoint with one")
    if ema and not any(counter in content for counter in _COUNTERS):
        raise UserError(f"{path}: holds no averaged weights ({', '.join(AVERAGED)}): leave --ema out")
    return Unwrapped({name: value for name, value in content.items() if name not in _COUNTERS}, note)


def _holds_weights(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def plain_names(names: Iterable[str], path: object) -> dict[str, str]:
    """Name in the file -> name of the network: without the prefixes of data-parallel, compiled and averaged models.

    Raises:
        UserError: Two tensors would have one name.
    """
    plain: dict[str, str] = {}
    for name in names:
        short = name.replace("_orig_mod.", "")
        while short.startswith("module."):
            short = short.removeprefix("module.")
        plain[name] = short
    seen: dict[str, str] = {}
    for name, short in plain.items():
        if short in seen:
            raise UserError(
                f"{path}: holds a tensor twice: '{seen[short]}' and '{name}' are both called '{short}': keep one"
            )
        seen[short] = name
    return plain
