"""Networks ready to run, in PyTorch and in ONNX Runtime behind one method, and what must be known to feed them.

    network, info = TorchNetwork("best.safetensors"), read_checkpoint_info("best.safetensors")
    network = OnnxNetwork("model.onnx")   # info = network.info
    logits = network.logits(images)       # float32 (B, 3, H, W) normalised -> float32 (B, num_classes, H, W)

Mean, std, channel order, scale, class names and palette come from the weight file; nothing here has values of its own.
"""

from __future__ import annotations

import dataclasses
import os

from common.files import sha256_of
from common.samples.roots import labels_of
from common.weights import exported
from common.weights.exported import Network, palette_of
from encnet_single_gpu.checkpoint import load_network, read_experiment
from encnet_single_gpu.protocol import Model

import numpy as np
import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo(exported.ModelInfo):
    """What travels with a network of this project, besides what all have.

    Attributes:
        network: Its name.
        dataset: A name of common/labels.py, or "custom".
        crop_size: Pixels of the longer side of a training image.
    """

    FORMAT = "segrepro-encnet_single_gpu-export-1"

    network: str
    dataset: str
    crop_size: int


class TorchNetwork:
    """The network itself, filled from a checkpoint, on `device` or else on the GPU if there is one.

    Raises:
        UserError: The checkpoint is missing, damaged, or for another network.
    """

    def __init__(self, weights: str | os.PathLike, device: str | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load_network(weights).to(self.device)

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `common.weights.exported.Network`."""
        return self.model(torch.from_numpy(images).to(self.device)).cpu().numpy()


class OnnxNetwork(exported.OnnxNetwork[ModelInfo]):
    """An exported model.onnx of this project in ONNX Runtime, see `common.weights.exported.OnnxNetwork`."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, ModelInfo)


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
    labels = None if config.data.dataset == "custom" or state.palette is not None else labels_of(config.data)
    return ModelInfo(
        format=ModelInfo.FORMAT,
        network=config.model.name,
        step=state.step,
        weights_sha256=sha256_of(weights),
        dataset=config.data.dataset,
        crop_size=max(config.augment.crop_size),
        class_names=state.class_names,
        palette=palette_of(state.palette, labels, len(state.class_names)),
        mean=state.mean,
        std=state.std,
    )
