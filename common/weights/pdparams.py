"""Reading Paddle's .pdparams without running what is in it.

`paddle.save` writes a pickle, and `paddle.load` executes whatever a pickle says. This reader allows the few names that
arrays are rebuilt from and refuses every other before it is imported.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from common.cli import UserError

import numpy as np

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler for dictionaries of arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which no weight file needs")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to data outside the file")


def read_pdparams(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of a .pdparams file.

    Returns:
        Name -> array; entries that are no arrays (Paddle's table of parameter names) are left out.

    Raises:
        UserError: See `load_without_code`.
    """
    return {name: value for name, value in load_without_code(path).items() if isinstance(value, np.ndarray)}


def is_paddle_file(path: str | os.PathLike) -> bool:
    """Whether a weight file is one of `paddle.save`: by its suffix .pdparams, else by its content, if it is there.

    Raises:
        UserError: The parameters of an exported model, which have the suffix .pdiparams and no names.
    """
    path = Path(path)
    if path.suffix in (".pdparams", ".safetensors") or not path.is_file():
        return path.suffix == ".pdparams"
    with open(path, "rb") as stream:
        is_pickle = stream.read(1) == b"\x80"
    if path.suffix == ".pdiparams" and not is_pickle:
        raise UserError(f"{path}: the parameters of an exported model, without names: give what paddle.save wrote")
    return is_pickle


def load_without_code(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a .pdparams or .pdopt file: arrays and plain values, nested in dictionaries and lists.

    Raises:
        UserError: The file is missing, damaged, holds no dictionary, or asks for code: it is refused, nothing ran.
    """
    try:
        with open(path, "rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"no weight file {path}: check the path") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, nothing in it was run: {error}; ask its author for safetensors") from None
    except Exception as error:  # a damaged pickle can raise anything, from EOFError to MemoryError's kin
        raise UserError(
            f"{path}: not a whole .pdparams file ({type(error).__name__}: {error}): copy it again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not a dictionary of arrays: give a state dict")
    return {str(name): value for name, value in content.items()}
