"""What may happen to a tensor's values on the way from one framework to the other, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

INPLACE_ABN_EPSILON = np.float32(1e-5)


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of a tensor.

    Attributes:
        apply: Towards Paddle.
        invert: Back; raises ValueError for a value that `apply` cannot give.
        shape: The same as `apply`, on shapes.
        is_exact: `invert(apply(x))` has the bits of x.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    invert: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    is_exact: bool = True


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _transpose(value: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return np.ascontiguousarray(value.T)


def _gain_of_inplace_abn(value: np.ndarray) -> np.ndarray:
    return np.abs(value) + INPLACE_ABN_EPSILON


def _weight_of_inplace_abn(value: np.ndarray) -> np.ndarray:
    if value.min() < INPLACE_ABN_EPSILON:
        raise ValueError(f"it holds {value.min():.3g}, and InPlaceABN's gain |weight| + 1e-5 is never below 1e-5")
    return value - INPLACE_ABN_EPSILON


TRANSFORMS = {
    "keep": Transform(_same, _same, lambda shape: shape),
    "transpose": Transform(_transpose, _transpose, lambda shape: shape[::-1]),
    "absolute_plus_1e-5": Transform(_gain_of_inplace_abn, _weight_of_inplace_abn, lambda shape: shape, is_exact=False),
}
