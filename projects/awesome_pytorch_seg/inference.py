"""Networks ready to run, in PyTorch and in ONNX Runtime behind one method, and what must be known to feed them.

    network, info = TorchNetwork("best.safetensors"), read_checkpoint_info("best.safetensors")
    network = OnnxNetwork("model.onnx")   # info = network.info
    logits = network.logits(images)       # float32 (B, 3, H, W) normalised -> float32 (B, num_classes, H, W)

Mean, std, channel order, scale, class names and palette come from the weight file; nothing here has values of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from awesome_pytorch_seg.checkpoint import TrainState, load_network, read_experiment
from awesome_pytorch_seg.config import Config
from awesome_pytorch_seg.protocol import Model
from common.cli import UserError
from common.files import sha256_of
from common.labels import voc_colormap
from common.runs.environment import git_commit
from common.samples.roots import labels_of
from common.weights.header import header_from_values

import numpy as np
import torch

FORMAT = "segrepro-awesome_pytorch_seg-export-1"
MIN_SIDE = 65  # pixels of the smallest image: three at stride 32


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What travels with a network, in ONNX as metadata properties.

    Attributes:
        format: `FORMAT`.
        network: A key of `models.MODELS`.
        backbone: One of the network's, "" for its default or where it has none.
        step: Training step of the weights.
        commit: Commit of the code that read them.
        commit_changed: Tracked files differed from that commit.
        weights_sha256: Of the checkpoint file.
        class_names: By train id.
        palette: RGB by train id, 0..255.
        channel_order: Of the input's channels: "RGB".
        scale: Factor on 0..255 pixel values, before mean and std.
        mean: Per channel, of scaled values.
        std: Likewise.
        fixed_size: The only (height, width) of images that it takes; None is any.
    """

    format: str
    network: str
    backbone: str
    step: int
    commit: str
    commit_changed: bool
    weights_sha256: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channel_order: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fixed_size: tuple[int, int] | None

    def to_texts(self) -> dict[str, str]:
        """The fields as text: strings as they are, the rest as JSON."""
        fields = dataclasses.asdict(self)
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], where: str | os.PathLike) -> ModelInfo:
        """The inverse of `to_texts`.

        Raises:
            UserError: Not the metadata of an export of this project, or an input that `normalize` does not make.
        """
        if texts.get("format") != FORMAT:
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


class Network(Protocol):
    """One method for both runtimes."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Float32 (B, 3, H, W), normalised -> float32 (B, num_classes, H, W)."""


class TorchNetwork:
    """The network itself, filled from a checkpoint, on the GPU if there is one.

    Raises:
        UserError: The checkpoint is missing, damaged, or for another network.
    """

    def __init__(self, weights: str | os.PathLike):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_network(weights).to(self.device)

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        return self.model(torch.from_numpy(images).to(self.device)).cpu().numpy()


class OnnxNetwork:
    """An exported model.onnx in ONNX Runtime, on the CPU with `OMP_NUM_THREADS` threads.

    Raises:
        UserError: ONNX Runtime is not installed; the file is missing, no ONNX model, or none of export.py.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            import onnxruntime
        except ImportError:
            raise UserError("onnxruntime is not installed: pip install onnxruntime") from None
        if not Path(path).is_file():
            raise UserError(f"no weight file {path}: check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{path}: not an ONNX model that ONNX Runtime can run ({reason}): export it again"
            ) from None
        self.info = ModelInfo.from_texts(self._session.get_modelmeta().custom_metadata_map, path)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Network`.

        Raises:
            UserError: Images of a size that the export does not take.
        """
        size, fixed_size = images.shape[2:], self.info.fixed_size
        if fixed_size not in (None, size):
            raise UserError(
                "{}x{} pixels, but the export takes {}x{} alone: export it at that size (export.py --size), or use the "
                "checkpoint".format(*size, *fixed_size)
            )
        return self._session.run(["logits"], {"images": images})[0]


def as_model(network: Network) -> Model:
    """What `class_scores` calls: PyTorch's own network as it is, which leaves tensors on its device, others wrapped."""
    if isinstance(network, TorchNetwork):
        return network.model
    return lambda images: torch.from_numpy(network.logits(images.numpy()))


def read_checkpoint_info(weights: str | os.PathLike) -> ModelInfo:
    """What a checkpoint says about its network's input and output.

    Raises:
        UserError: The checkpoint is missing, damaged, or none of this project.
    """
    state, config = read_experiment(weights)
    commit, changed = git_commit(Path(__file__).parent)
    return ModelInfo(
        format=FORMAT,
        network=config.model.name,
        backbone=config.model.backbone or "",
        step=state.step,
        commit=commit,
        commit_changed=changed,
        weights_sha256=sha256_of(weights),
        class_names=state.class_names,
        palette=_tuples(_palette(config, state).tolist()),
        channel_order="RGB",
        scale=1 / 255,
        mean=state.mean,
        std=state.std,
        fixed_size=None,
    )


def _palette(config: Config, state: TrainState) -> np.ndarray:
    """(num_classes, 3) uint8: the checkpoint's; the data set's or default colours for a file that holds none."""
    if state.palette is not None:
        return np.array(state.palette, np.uint8)
    if config.data.dataset != "custom":
        return labels_of(config.data).palette
    return voc_colormap()[1 : len(state.class_names) + 1]  # as load_custom gives them: the first of the map is black


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
