"""Weight files of both frameworks as dictionaries of NumPy arrays; nothing in them is ever executed."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from common.cli import UserError
from common.weights.pdparams import read_pdparams

import numpy as np
import safetensors
import safetensors.numpy
import torch

TORCH_SUFFIXES = (".pth", ".pt", ".tar")
READ_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors", ".npz", ".pdparams")
WRAPPERS = ("state_dict", "model")
PDPARAMS_PROTOCOL = 4  # what paddle.save writes
MAX_RATIO = 100  # unpacked against packed bytes
FREE_BYTES = 64 * 2**20  # archives whose contents are smaller are not measured by it
# What NumPy and zipfile raise for files that are damaged, encrypted, packed in another way, or no archive.
_DAMAGED_NPZ = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, AttributeError, NotImplementedError, RuntimeError),
    *(MemoryError, SyntaxError, LookupError, TypeError),
)


def read_weights(path: str | os.PathLike, suffix: str | None = None) -> dict[str, np.ndarray]:
    """Reads a state dict: .pth, .pt, .tar, .safetensors, .npz or .pdparams.

    `suffix` says which of them it is where the file's own name does not.

    Takes the state dict out of a checkpoint that holds it as "state_dict" or "model", and the prefixes "module." and
    "_orig_mod." (of data-parallel and compiled models) off its names.

    Raises:
        UserError: The file is missing, damaged, of another kind, holds something else, or asks for code (refused).
    """
    path = Path(path)
    suffix = suffix or path.suffix
    if suffix not in READ_SUFFIXES:
        raise UserError(f"{path}: '{suffix}' is no kind of weight file that is read here: {', '.join(READ_SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"no weight file {path}: check the path")
    if suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    elif suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif suffix == ".npz":
        tensors = _read_npz(path)
    else:
        tensors = read_pdparams(path)
    return _without_prefixes(tensors, path)


def write_weights(stream: IO[bytes], suffix: str, tensors: dict[str, np.ndarray]) -> None:
    """Writes a state dict in the format of a suffix: .pdparams, .safetensors, .pth or .pt."""
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    if suffix == ".safetensors":
        stream.write(safetensors.numpy.save(tensors))
    elif suffix == ".pdparams":
        pickler = pickle.Pickler(stream, PDPARAMS_PROTOCOL)
        pickler.fast = True  # without a memo, which would keep every array's bytes until the end
        pickler.dump(tensors)
    else:
        try:
            torch.save(OrderedDict((name, torch.from_numpy(value)) for name, value in tensors.items()), stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # of the stream, hidden by torch's end of its archive
                raise error.__context__ from None
            raise


def _refuse_bomb(path: Path) -> None:
    """Raises UserError where a zip archive would grow beyond measure; weights hardly compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        num_bytes = sum(entry.file_size for entry in archive.infolist())
    if num_bytes > FREE_BYTES + MAX_RATIO * path.stat().st_size:
        raise UserError(
            f"{path}: refused: it would grow to {num_bytes} bytes, over {MAX_RATIO} times its size: ask its author "
            f"for safetensors"
        )


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        _refuse_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for '{asked[1]}', which no tensor needs" if asked else str(error).splitlines()[0]
        raise UserError(
            f"{path}: refused, nothing in it was run: {reason}; ask its author for safetensors or a plain state dict"
        ) from None
    except Exception as error:  # a damaged file can raise anything, from EOFError to RuntimeError
        reason = str(error).splitlines()[0] if str(error) else "it ends early"
        raise UserError(f"{path}: not a whole PyTorch file ({type(error).__name__}: {reason}): copy it again") from None
    tensors = {}
    for name, value in _unwrapped(content, path).items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: '{name}' is a {type(value).__name__}, not a tensor: give the state dict alone")
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: '{name}' is sparse or quantised: convert it to a plain float32 tensor first")
        try:
            tensors[str(name)] = value.detach().numpy()
        except (TypeError, RuntimeError):  # bfloat16 and others that NumPy has not; tensors without values
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{path}: '{name}' is {kind}: convert the weights to float32 first") from None
    return tensors


def _unwrapped(content: Any, path: Path) -> dict[str, Any]:
    for _ in WRAPPERS:
        inner = next((content[key] for key in WRAPPERS if isinstance(content, dict) and key in content), None)
        content = content if inner is None else inner
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict or a checkpoint with one")
    return content


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except TypeError as error:  # NumPy has no bfloat16
        raise UserError(f"{path}: holds a type of number that is not read ({error}): convert it to float32") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}): copy it again") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: refused, nothing in it was run: {error}: ask its author for safetensors") from None
    except _DAMAGED_NPZ as error:
        raise UserError(f"{path}: not a whole .npz file ({type(error).__name__}: {error}): copy it again") from None
    strangers = [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]
    if strangers:
        raise UserError(f"{path}: '{strangers[0]}' in it is no array: give an .npz file of arrays alone")
    return arrays


def _without_prefixes(tensors: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    plain = {}
    for name, value in tensors.items():
        short = name.replace("_orig_mod.", "")
        while short.startswith("module."):
            short = short.removeprefix("module.")
        if short in plain:
            raise UserError(f"{path}: '{name}' and another tensor are both called '{short}': keep one of them")
        plain[short] = value
    return plain
