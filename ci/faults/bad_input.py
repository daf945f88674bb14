"""What the tests of bad and crafted input share: a tiny trained run of each project, and what a refusal looks like."""

import atexit
import contextlib
import functools
import json
import re
import shutil
import struct
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

from targets import Target, call, unchanged, write_data
from testkit import error_line, run_folder

# A refusal says what to do, or what alone is right.
CURE = re.compile(
    r"\b(copy|convert|save|must|make|use|give|check|rename|renamed|restore|resume|take|ask|needed|needs|correct|written|"
    r"quote|choose|valid|known|lower|put|export|delete|trust|train)\b|"
    r"not valid YAML|is missing|given twice|it has|is already|a mapping of sections|a mapping with the keys|relative to"
)
MODEL = "model."  # before the names of a network's tensors in a checkpoint


class Run(NamedTuple):
    """A tiny run: its data, its folder, its best and its last checkpoint."""

    data: Path
    folder: Path

    @property
    def best(self) -> Path:
        """The best checkpoint."""
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.folder / "last.safetensors"


@functools.cache
def scratch() -> Path:
    """A folder that goes when the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def trained(target: Target) -> Run:
    """Two steps of a project's tiny network; made once, not to be changed."""
    data, output = scratch() / target.name / "data", scratch() / target.name / "output"
    outcome = call(target.train(write_data(data), output, 2))
    assert outcome.returncode == 0, outcome.stderr
    return Run(data, run_folder(output))


def refusal(outcome: CompletedProcess, *words: object) -> str:
    """The line of a command that refused: one, with `words` (names of files, keys) and what to do in it."""
    line = error_line(outcome)
    require_refusal(line, *words)
    return line


def require_refusal(message: object, *words: object) -> None:
    """Fails unless a message is one line that holds `words` and says what to do."""
    text = str(message)
    assert "\n" not in text, text
    for word in words:
        assert str(word) in text, f"no {word} in: {text}"
    assert CURE.search(text), f"no cure in: {text}"


@contextlib.contextmanager
def nothing_written(*folders: Path):
    """Fails if a file below the folders has come, gone or changed; a folder may be missing before and after."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(unchanged(folder))
        yield


class Tensor(NamedTuple):
    """A tensor as it lies in a safetensors file."""

    dtype: str
    shape: list[int]
    data: bytes


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors, by the format's own description."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__", {})
    return metadata, {
        name: Tensor(entry["dtype"], entry["shape"], values[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def write_safetensors(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor], more: int = 0) -> Path:
    """The inverse, whatever the tensors say of themselves; the last ends `more` bytes later than it does."""
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        start, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    if more:
        header[name]["data_offsets"][1] += more
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values()))
    return path
