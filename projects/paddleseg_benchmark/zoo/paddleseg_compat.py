"""What it takes for the installed paddleseg 2.8.0 to train on paddle 3, for every network of the zoo.

`apply()` once, then paddleseg's components can be built, run and trained. It changes, in this process only:

- The flow warping of DecoupledSegNet and SFNet: paddle 3 refuses `float / int64`, which it relies on. While it runs,
  the right operand takes the left one's type, as up to paddle 2.5. The losses need the same: `mixed_types()`.
- Initialisation of weights: while a static Program is built, it would only add operators without effect to it, so it
  is left out there.
- The maximum in GSCNN's DualTaskLoss: paddle 3.3's gradient of `max()` over n values takes time n x n on a CPU (40 000
  values: 5 s; two images of 128x256 have 1.2 million). The value at the maximum's index has that gradient at once.
- `paddle.load`, where paddleseg reads `pretrained: FILE`: what is in the file is not run.

It also registers CamVid and the networks of `models/`, which paddleseg 2.8.0 no longer has, and makes paddleseg print
warnings and errors only. paddleseg's own `train` and `evaluate` are not mended: train.py and static_train.py do not use
them.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from common.cli import UserError
from common.weights.pdparams import read_pdparams
from paddleseg_benchmark.data.camvid import CamVid
from paddleseg_benchmark.zoo.models.shufflenet_v2 import ShuffleNetV2

import numpy as np
import paddle
import paddleseg
from paddleseg.cvlibs import manager

_OPERATORS = ("__add__", "__sub__", "__mul__", "__truediv__")
_WARNINGS_AND_ERRORS = 1


def apply() -> None:
    """Makes paddleseg's networks and losses work and registers ours; a second call does nothing.

    Raises:
        UserError: Another version of paddleseg is installed: what is changed here may not fit it.
    """
    if ShuffleNetV2.__name__ in manager.MODELS.components_dict:
        return
    if paddleseg.__version__ != "2.8.0":
        raise UserError(
            f"paddleseg {paddleseg.__version__} is installed, this is for 2.8.0: pip install --no-deps paddleseg==2.8.0"
        )
    for module, layer in (("decoupled_segnet", "SqueezeBodyEdge"), ("sfnet", "AlignedModule")):
        warping = getattr(importlib.import_module(f"paddleseg.models.{module}"), layer)
        warping.flow_warp = _with_mixed_types(warping.flow_warp)
    dual_task = manager.LOSSES["DualTaskLoss"]
    dual_task.compute_grad_mag = _with_gathered_maximum(dual_task.compute_grad_mag)
    utils = importlib.import_module("paddleseg.utils.utils")
    utils.paddle = _PaddleThatLoadsSafely()
    for module in map(importlib.import_module, ("paddleseg.cvlibs.param_init", "paddleseg.models.unet_plusplus")):
        for name in [name for name in vars(module) if name.endswith("_init")]:
            setattr(module, name, _in_dynamic_graph(getattr(module, name)))
    importlib.import_module("paddleseg.utils.logger").log_level = _WARNINGS_AND_ERRORS
    manager.MODELS.add_component(ShuffleNetV2)
    manager.DATASETS.add_component(CamVid)


def load_as_tensors(path: str | os.PathLike) -> dict[str, paddle.Tensor]:
    """`paddle.load` for weight files that refuses, unrun, whatever is more than arrays.

    Raises:
        UserError: See `common.weights.pdparams.read_pdparams`; a tensor that holds something else than finite numbers.
    """
    arrays = read_pdparams(path)
    for name, value in arrays.items():
        if value.dtype.kind not in "fiub" or not np.isfinite(value).all():
            raise UserError(f"{path}: '{name}' holds values that are not finite: the weights are broken, take others")
    return {name: paddle.to_tensor(value) for name, value in arrays.items()}


class _PaddleThatLoadsSafely:
    """Stands for the name `paddle` in a module of paddleseg: all of paddle, with another `load`."""

    load = staticmethod(load_as_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(paddle, name)


@contextmanager
def mixed_types() -> Iterator[None]:
    """Within it, `left + right` (-, *, /) of mixed types takes the left one's type, as up to paddle 2.5.

    This holds for tensors and for the values of a graph under construction. paddleseg's losses rely on it.
    """
    classes = (paddle.Tensor, paddle.pir.Value)
    originals = [(kind, name, getattr(kind, name)) for kind in classes for name in _OPERATORS]

    def both_floating(left: Any, right: Any) -> bool:  # these paddle 3 mixes, and better
        return left.is_floating_point() and right.is_floating_point()

    def converting(operate: Callable, kind: type) -> Callable:
        def operator(left: Any, right: Any) -> Any:
            if isinstance(right, kind) and left.dtype != right.dtype and not both_floating(left, right):
                right = right.astype(left.dtype)
            return operate(left, right)

        return operator

    try:
        for kind, name, operate in originals:
            setattr(kind, name, converting(operate, kind))
        yield
    finally:
        for kind, name, operate in originals:
            setattr(kind, name, operate)


def _with_mixed_types(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with mixed_types():
            return function(*args, **kwargs)

    return wrapped


def _with_gathered_maximum(function: Callable) -> Callable:
    def maximum(values: paddle.Tensor) -> paddle.Tensor:
        return paddle.gather(values.flatten(), values.argmax().reshape([1])).squeeze(0)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        original = paddle.Tensor.max
        paddle.Tensor.max = maximum
        try:
            return function(*args, **kwargs)
        finally:
            paddle.Tensor.max = original

    return wrapped


def _in_dynamic_graph(initialise: Callable) -> Callable:
    @functools.wraps(initialise)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        if paddle.in_dynamic_mode():
            initialise(*args, **kwargs)

    return wrapped
