"""Exported networks: what travels with them, ONNX Runtime behind one method, and the proof that they compute the same.

A project's export.py draws the files into `draft_folder`, compares them with the network by `compare` and
`require_agreement`, and only then gives them their names by `publish`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from common.cli import UserError
from common.labels import LabelSet, voc_colormap
from common.weights.header import header_from_values

import numpy as np

TIMED_RUNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What travels with a network: in ONNX as metadata properties, beside a Paddle inference model as model.yaml.

    Each project has a subclass with its `FORMAT` and with what its predictions need besides.

    Attributes:
        format: `FORMAT`.
        step: Training step of the weights.
        weights_sha256: SHA-256 of the checkpoint file.
        class_names: Names by train id.
        palette: RGB by train id, 0..255.
        channel_order: Order of the input's channels: "RGB".
        scale: Factor on 0..255 pixel values, before mean and std.
        mean: Mean per channel of scaled values.
        std: Standard deviation per channel of scaled values.
    """

    FORMAT: ClassVar[str]

    format: str
    step: int
    weights_sha256: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channel_order: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_texts(self) -> dict[str, str]:
        """The fields as text: strings as they are, the rest as JSON."""
        fields = dataclasses.asdict(self)
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], where: str | os.PathLike) -> Self:
        """The inverse of `to_texts`.

        Raises:
            UserError: Not the metadata of an export of this project, or an input that `normalize` does not make.
        """
        if texts.get("format") != cls.FORMAT:
            raise UserError(f"{where}: holds no metadata of export.py, so mean and std are unknown: export it again")
        try:
            values = {
                field.name: texts[field.name] if field.type == "str" else json.loads(texts[field.name])
                for field in dataclasses.fields(cls)
            }
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: its metadata is damaged ({error}): export it again") from None
        info = header_from_values(cls, values, where)
        if info.channel_order != "RGB" or not math.isclose(info.scale * 255, 1):
            raise UserError(
                f"{where}: wants {info.channel_order} x {info.scale:g}; this program feeds RGB x 1/255: export it again"
            )
        return info


def palette_of(
    stored: tuple[tuple[int, int, int], ...] | None, labels: LabelSet | None, num_classes: int
) -> tuple[tuple[int, int, int], ...]:
    """The colours of a checkpoint's classes: its own; those of its data set or defaults for a file that holds none."""
    if stored is not None:
        return stored
    # As load_custom gives default colours: the first of the map is black.
    colors = labels.palette if labels is not None else voc_colormap()[1 : num_classes + 1]
    return tuple(map(tuple, colors.tolist()))


class Network(Protocol):
    """One method for all runtimes."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Float32 (B, 3, H, W), normalised -> float32 (B, num_classes, H, W)."""


Info = TypeVar("Info", bound=ModelInfo)


class OnnxNetwork(Generic[Info]):
    """An exported model.onnx in ONNX Runtime, on the CPU with `OMP_NUM_THREADS` threads.

    Args:
        path: The file.
        info_class: What its metadata are.

    Raises:
        UserError: ONNX Runtime is not installed; the file is missing, no ONNX model, or none of export.py.
    """

    def __init__(self, path: str | os.PathLike, info_class: type[Info]):
        try:
            import onnxruntime
        except ImportError:
            raise UserError("onnxruntime is not installed: pip install onnxruntime, or give a checkpoint") from None
        if not Path(path).is_file():
            raise UserError(f"no weight file {path}: check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise UserError(
                f"{path}: not an ONNX model that ONNX Runtime can run ({_first_line(error)}): export it again"
            ) from None
        self.info = info_class.from_texts(self._session.get_modelmeta().custom_metadata_map, path)
        sides = self._session.get_inputs()[0].shape[2:]
        self.fixed_size = tuple(sides) if all(isinstance(side, int) for side in sides) else None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Network`.

        Raises:
            UserError: Images of a size that the export does not take.
        """
        size = images.shape[2:]
        if self.fixed_size not in (None, size):
            raise UserError(
                "{}x{} pixels, but the export takes {}x{} alone: export it at that size (export.py --size), or use the "
                "checkpoint".format(*size, *self.fixed_size)
            )
        return self._session.run(["logits"], {"images": images})[0]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One runtime beside the network itself, on one input.

    Attributes:
        runtime: Name of the runtime; that of the network itself is here for its time.
        size: Input (height, width).
        max_difference: Largest difference of two logits, relative to the network's largest absolute logit.
        agreement_percent: Share of pixels with the same argmax.
        latency_ms: Median time per image.
    """

    runtime: str
    size: tuple[int, int]
    max_difference: float
    agreement_percent: float
    latency_ms: float


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far an export may be from its network.

    Attributes:
        max_difference: Limit of `Agreement.max_difference`; infinite where classes alone decide.
        min_agreement_percent: Limit of `Agreement.agreement_percent`.
    """

    max_difference: float
    min_agreement_percent: float

    def hold(self, row: Agreement) -> bool:
        """Whether a row is within the limits; NaN is not."""
        differs = row.max_difference > self.max_difference or math.isnan(row.max_difference)
        return not differs and row.agreement_percent >= self.min_agreement_percent


def compare(networks: Mapping[str, Network], shape: tuple[int, int, int, int]) -> list[Agreement]:
    """Runs all networks in turn on one random input of `shape`, and compares them with the first.

    Raises:
        UserError: One cannot run it, or gives logits of another shape.
    """
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    logits = {}
    for _ in range(1 + TIMED_RUNS):
        for name, network in networks.items():
            start = time.perf_counter()
            logits[name] = _run(name, network, images)
            seconds[name].append(time.perf_counter() - start)
    reference = next(iter(logits.values()))
    largest = float(np.abs(reference).max()) or 1.0  # a network whose scores start at 0 gives zeros alone
    rows = []
    for name, values in logits.items():
        if values.shape != reference.shape:
            raise UserError(
                f"the {name} export is not the network: at {shape[2]}x{shape[3]} it gives logits of shape "
                f"{values.shape}, the network {reference.shape}: nothing is kept"
            )
        difference = float(np.abs(values - reference).max()) / largest
        agreement = 100 * float((values.argmax(axis=1) == reference.argmax(axis=1)).mean())
        latency = 1000 * float(np.median(seconds[name][1:])) / shape[0]  # the first run builds caches
        rows.append(Agreement(name, shape[2:], difference, agreement, latency))
    return rows


def require_agreement(rows: Sequence[Agreement], limits: Limits, advice: str = "") -> None:
    """Raises UserError naming the worst of the rows that are not within the limits; `advice` ends it."""
    wrong = [row for row in rows if not limits.hold(row)]
    if wrong:
        row = max(wrong, key=lambda row: np.nan_to_num(row.max_difference, nan=np.inf))
        raise UserError(
            f"the {row.runtime} export is not the network: at {row.size[0]}x{row.size[1]} logits differ by "
            f"{row.max_difference:.2g} of their range (limit {limits.max_difference:g}), argmax agrees on "
            f"{row.agreement_percent:.3f} % (limit {limits.min_agreement_percent} %): nothing is kept; are "
            f"the installed versions those of requirements.txt?{advice}"
        )


def agreement_table(rows: Sequence[Agreement]) -> str:
    """A line per runtime and size."""
    lines = [f"{'runtime':<8} {'size':>10} {'max diff':>9} {'argmax same':>12} {'ms/image':>11}"]
    for row in rows:
        size = f"{row.size[0]}x{row.size[1]}"
        scores = f"{row.max_difference:9.1e} {row.agreement_percent:10.4f} %"
        lines.append(f"{row.runtime:<8} {size:>10} {scores} {row.latency_ms:11.1f}")
    return "\n".join(lines)


def default_folder(weights: str | os.PathLike) -> Path:
    """Where exports go unless --output names a folder: `<name>_export` beside the weights."""
    return Path(weights).with_name(f"{Path(weights).stem}_export")


@contextlib.contextmanager
def draft_folder(output: Path) -> Iterator[Path]:
    """A temporary folder in `output`, which is made if missing and removed again if the block raises."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export_", dir=output) as folder:
            yield Path(folder)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # another process wrote into it meanwhile
                output.rmdir()
        raise


def publish(draft: Path, path: Path) -> None:
    """Gives a finished file its name, with its content on the disk."""
    with open(draft, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(draft, path)


def run_isolated(module: str, stage: str, *args: Any) -> None:
    """Calls a function of a module in a new process, as exporters end by abort() and exit(-1).

    Args:
        module: Its full name.
        stage: The function's name.
        args: Plain values.

    Raises:
        UserError: The process did not end well.
    """
    result = subprocess.run(worker_command(module, stage, args), capture_output=True, text=True, errors="replace")
    if result.returncode == 0:
        return
    code = result.returncode
    end = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line] or lines or ["it printed nothing"]
    last = telling[-1].removeprefix("error: ")
    raise UserError(f"export step {stage} {end}: {last[:300]} (no file was written)")


def worker_command(module: str, stage: str, args: Sequence[Any]) -> list[str]:
    """The command of `run_isolated`."""
    code = (
        "import importlib, json, sys; from common.cli import run_command; "
        "run_command(lambda: getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*json.loads(sys.argv[3])))"
    )
    return [sys.executable, "-P", "-c", code, module, stage, json.dumps(args)]


def _run(name: str, network: Network, images: np.ndarray) -> np.ndarray:
    try:
        return network.logits(images)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        size = "x".join(map(str, images.shape[2:]))
        raise UserError(
            f"the {name} export does not run at {size} ({_first_line(error)[:300]}): nothing is kept"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
