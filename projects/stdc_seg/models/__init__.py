"""Networks of this project: `build_model` is the door."""

from __future__ import annotations

from common.cli import UserError, did_you_mean
from stdc_seg.models.stdc_seg import STDCSeg
from stdc_seg.models.stdcnet import STDC_LAYERS, STDCClassifier

__all__ = ["STDCClassifier", "STDCSeg", "build_model"]


def build_model(name: str, backbone: str | None = None, num_classes: int = 19) -> STDCSeg:
    """Builds STDC-Seg with random weights.

    Args:
        name: "stdc1" or "stdc2".
        backbone: None or the same as `name`: in this family the name is the backbone's.
        num_classes: Number of classes.

    Raises:
        UserError: Unknown name, or a backbone that does not belong to it.
    """
    if name not in STDC_LAYERS:
        raise UserError(f"unknown network '{name}': {did_you_mean(name, list(STDC_LAYERS))}")
    if backbone not in (None, name):
        raise UserError(f"network '{name}' has backbone '{name}', not '{backbone}': leave backbone out")
    return STDCSeg(name, num_classes)
