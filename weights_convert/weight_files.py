"""Weight files of both frameworks as dictionaries of NumPy arrays; nothing in them is ever executed."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from common.cli import UserError
from common.weights.pdparams import is_paddle_file, load_without_code
from common.weights.wrappers import plain_names, unwrap

import numpy as np
import safetensors
import safetensors.numpy
import torch

TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
PADDLE_SUFFIXES = (".pdparams", ".pdiparams", ".pdema")
READ_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors", ".npz", *PADDLE_SUFFIXES)
PDPARAMS_PROTOCOL = 4  # what paddle.save writes
_NAME_TABLE = "StructuredToParameterName@@"
MAX_RATIO = 100  # unpacked against packed bytes
FREE_BYTES = 64 * 2**20  # archives whose contents are smaller are not measured by it
# What NumPy and zipfile raise for files that are damaged, encrypted, packed in another way, or no archive.
_DAMAGED_NPZ = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, AttributeError, NotImplementedError, RuntimeError),
    *(MemoryError, SyntaxError, LookupError, TypeError),
)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a weight file holds.

    Attributes:
        tensors: Name -> array, without the wrappers and prefixes of training; floating-point numbers as float32.
        notes: What was done to get there that one should know: averaged weights, numbers of another precision.
    """

    tensors: dict[str, np.ndarray]
    notes: tuple[str, ...]


def read_as_stored(path: str | os.PathLike, suffix: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file that this package wrote: names and types as they lie there.

    Raises:
        UserError: As `read_weight_file`.
    """
    return _arrays(_content(Path(path), suffix), Path(path))


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of `read_weight_file`."""
    return read_weight_file(path).tensors


def read_weight_file(path: str | os.PathLike, ema: bool = False) -> WeightFile:
    """Reads a state dict: .pth, .pt, .tar, .bin, .ckpt, .safetensors, .npz, .pdparams, .pdema or .pdiparams.

    The state dict is taken out of the checkpoint around it, see `common.weights.wrappers`. Half, bfloat16 and double
    become float32.

    Args:
        path: The file.
        ema: Take the averaged weights of a checkpoint that has both.

    Raises:
        UserError: The file is missing, damaged, of another kind, holds something else, or asks for code (refused).
    """
    path = Path(path)
    unwrapped = unwrap(_content(path), path, ema)
    names = plain_names(unwrapped.tensors, path)
    tensors = {names[name]: value for name, value in _arrays(unwrapped.tensors, path).items()}
    notes = [] if unwrapped.note is None else [unwrapped.note]
    for kind in ("float16", "bfloat16", "float64"):
        count = sum(str(value.dtype).removeprefix("torch.") == kind for value in unwrapped.tensors.values())
        notes += [f"{count} tensors of {kind} became float32"] if count else []
    return WeightFile(tensors, tuple(notes))


def _content(path: Path, suffix: str | None = None) -> Any:
    """What a file holds; `suffix` says which kind it is where the file's own name does not."""
    suffix = suffix or path.suffix
    if suffix not in READ_SUFFIXES:
        raise UserError(f"{path}: '{suffix}' files are not read here: give one of {', '.join(READ_SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"no weight file {path}: check the path")
    if suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    if suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_npz(path) if suffix == ".npz" else _read_paddle(path)


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


def _read_torch(path: Path) -> Any:
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
    return content


def _arrays(tensors: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Tensors of either library as NumPy arrays, floating-point ones in float32."""
    arrays = {}
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            arrays[str(name)] = value.astype(np.float32) if value.dtype in (np.float16, np.float64) else value
            continue
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: '{name}' is a {type(value).__name__}, not a tensor: give the state dict alone")
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: '{name}' is sparse or quantised: convert it to a plain float32 tensor first")
        if value.dtype in (torch.float16, torch.bfloat16, torch.float64):
            value = value.float()
        try:
            arrays[str(name)] = value.detach().numpy()
        except (TypeError, RuntimeError):  # float8 and others that NumPy has not; tensors without values
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{path}: '{name}' is {kind}: convert the weights to float32 first") from None
    return arrays


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}): copy it again") from None


def _read_paddle(path: Path) -> dict[str, Any]:
    """A dictionary that `paddle.save` wrote; the parameters of an exported model have the same suffix .pdiparams."""
    is_paddle_file(path)  # refuses the parameters of an exported model
    content = load_without_code(path)
    is_wrapped = any(isinstance(value, dict) for name, value in content.items() if name != _NAME_TABLE)
    # Entries that are no arrays, Paddle's table of parameter names, are left out.
    return content if is_wrapped else {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


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
