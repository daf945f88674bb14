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

from common.cli import UserError
from common.config.typed import config_from_text
from common.files import sha256_of
from common.labels import voc_colormap
from common.samples.roots import labels_of
from common.weights.header import header_from_values
from encnet_single_gpu.checkpoint import TrainState, load_evaluated, read_state
from encnet_single_gpu.config import Config
from encnet_single_gpu.models import build_model
from encnet_single_gpu.protocol import Model

import numpy as np
import torch
from torch import nn

FORMAT = "segrepro-encnet_single_gpu-export-1"


def read_experiment(weights: str | os.PathLike) -> tuple[TrainState, Config]:
    """What a checkpoint says besides tensors, and the experiment in it.

    Raises:
        UserError: The checkpoint is missing, damaged, or none of this project.
    """
    state = read_state(weights)
    return state, config_from_text(Config, state.config_text, f"config in {weights}")


def load_network(weights: str | os.PathLike, class_names: tuple[str, ...] | None = None) -> nn.Module:
    """The network of a checkpoint with the weights that count, in evaluation mode on the CPU.

    Args:
        weights: A file of train.py.
        class_names: Of the data that it is to meet; None: as the checkpoint says.

    Raises:
        UserError: The checkpoint is missing, damaged, or made for other classes.
    """
    state, config = read_experiment(weights)
    model = build_model(config.model.name, config.model.backbone, len(class_names or state.class_names))
    load_evaluated(weights, model, class_names or state.class_names)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What travels with a network, in ONNX as metadata properties.

    Attributes:
        format: `FORMAT`.
        network: Its name.
        step: Training step of the weights.
        weights_sha256: Of the checkpoint file.
        dataset: A name of common/labels.py, or "custom".
        crop_size: Pixels of the longer side of a training image.
        class_names: By train id.
        palette: RGB by train id, 0..255.
        channel_order: Of the input's channels: "RGB".
        scale: Factor on 0..255 pixel values, before mean and std.
        mean: Per channel, of scaled values.
        std: Likewise.
    """

    format: str
    network: str
    step: int
    weights_sha256: str
    dataset: str
    crop_size: int
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channel_order: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

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
            raise UserError("onnxruntime is not installed: pip install onnxruntime, or give a checkpoint") from None
        if not Path(path).is_file():
            raise UserError(f"no weight file {path}: check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.log_severity_level = 4  # what goes wrong is raised
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
        size, taken = list(images.shape[2:]), self._session.get_inputs()[0].shape[2:]
        if size != taken and all(isinstance(side, int) for side in taken):
            raise UserError(
                "{}x{} pixels, but the export takes {}x{} alone: export it at that size (export.py --size), or use the "
                "checkpoint".format(*size, *taken)
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
    return ModelInfo(
        format=FORMAT,
        network=config.model.name,
        step=state.step,
        weights_sha256=sha256_of(weights),
        dataset=config.data.dataset,
        crop_size=max(config.augment.crop_size),
        class_names=state.class_names,
        palette=tuple(map(tuple, _palette(config, state).tolist())),
        channel_order="RGB",
        scale=1 / 255,
        mean=state.mean,
        std=state.std,
    )


def _palette(config: Config, state: TrainState) -> np.ndarray:
    """(num_classes, 3) uint8: the checkpoint's; the data set's or default colours for a file that holds none."""
    if state.palette is not None:
        return np.array(state.palette, np.uint8)
    if config.data.dataset != "custom":
        return labels_of(config.data).palette
    return voc_colormap()[1 : len(state.class_names) + 1]  # as load_custom gives them: the first of the map is black
