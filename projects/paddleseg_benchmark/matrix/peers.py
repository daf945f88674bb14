"""The same networks in PyTorch's libraries, measured in the same rounds with the same batches and threads.

mmseg        mmsegmentation 1.2 in an interpreter of its own (`--peer-python`), with mmcv-lite
smp          segmentation_models_pytorch
torchvision  its only network of the matrix is DeepLabv3
timm         HRNet-W18 with the FCN head (two 1x1 convolutions over the four joined branches), which timm itself has not

A peer trains with SGD (momentum 0.9, weight decay 4e-5, rate 0.01), with the mean cross entropy over valid pixels, in
mmseg with the losses of its config, auxiliary heads among them. Initial weights are each library's own, so losses of
different libraries start apart.

This file runs in interpreters without Paddle: it imports nothing of this project, and PyTorch only to build a network.

Reference: names and order of the calls from the sources of mmsegmentation 1.2.2 (models/segmentors and
configs/_base_/models), segmentation_models_pytorch 0.6.0, torchvision 0.29 and timm 1.0.31.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import UserError, did_you_mean
from common.labels import IGNORE

import numpy as np

NUM_CLASSES = 19
PRECISIONS = ("fp32", "o1_fp16", "bf16")
MODULES = {"smp": "segmentation_models_pytorch", "torchvision": "torchvision", "timm": "timm"}
MMSEG_PACKAGES = ("torch", "mmsegmentation", "mmengine")
MMSEG_CONFIGS = {  # network -> file of mmsegmentation's configs/_base_/models
    "deeplabv3p_resnet50": "deeplabv3plus_r50-d8",
    "deeplabv3_resnet50": "deeplabv3_r50-d8",
    "pspnet_resnet50": "pspnet_r50-d8",
    "fcn_hrnet_w18": "fcn_hr18",
    "fastscnn": "fast_scnn",
}


class PeerResult(NamedTuple):
    """What a training step gave; `scale` is the loss scale, None where nothing is scaled."""

    loss: float
    skipped: bool
    scale: float | None


def has_network(library: str, model: str) -> bool:
    """Whether a library has the network."""
    return model in _networks(library)


def unsupported(library: str, model: str, precision: str, graph: str, device: str) -> str | None:
    """Why a library cannot give a cell on a device ("cpu" or "gpu"); None if it can, or if it is mmseg."""
    if not has_network(library, model):
        return "no such network"
    if graph != "dynamic":
        return "not supported here: PyTorch is measured without compilation"
    if precision not in PRECISIONS:
        return f"not supported here: PyTorch has no {precision}"
    if precision == "o1_fp16" and device == "cpu":
        return "not supported here: of PyTorch's autocast, fp16 is measured on GPUs and bf16 on both"
    if library != "mmseg" and importlib.util.find_spec(MODULES[library]) is None:
        return "not installed here"
    return None


def mmseg_packages(python: str | None) -> dict[str, str] | None:
    """Versions of mmsegmentation and what it stands on in the interpreter `python`; None if they are not there."""
    if python is None:
        return None
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {MMSEG_PACKAGES}}}))"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        return json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError):
        return None


def open_stepper(library: str, model: str, precision: str, layout: str, graph: str) -> PeerStep:
    """Builds a peer's network, ready to train.

    Raises:
        UserError: It has no such network, or it cannot be measured here.
    """
    import torch

    if not has_network(library, model):
        raise UserError(f"{library} has no network '{model}': {did_you_mean(model, _networks(library))}")
    why = unsupported(library, model, precision, graph, "gpu" if torch.cuda.is_available() else "cpu")
    if why:
        raise UserError(f"{library} {model}: {why}")
    return PeerStep(library, model, precision, layout)


def _networks(library: str) -> list[str]:
    return list(MMSEG_CONFIGS if library == "mmseg" else BUILDERS[library])


class PeerStep:
    """Training steps of a peer's network.

    Args:
        library: "mmseg", "smp", "torchvision" or "timm".
        model: The zoo's name of the network.
        precision: "fp32", "o1_fp16" (autocast and a loss scaler) or "bf16" (autocast).
        layout: "NHWC" is PyTorch's channels_last.
    """

    def __init__(self, library: str, model: str, precision: str, layout: str):
        import torch

        torch.manual_seed(0)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
        self._dtype = {"fp32": None, "o1_fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        build = _MMSegNetwork if library == "mmseg" else _LogitsNetwork
        self._network = build(library, model, self._device, self._format)
        parameters = self._network.module.parameters
        self.parameters = sum(parameter.numel() for parameter in parameters())
        self._optimizer = torch.optim.SGD(parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)
        self._scaler = torch.amp.GradScaler(self._device, enabled=self._dtype == torch.float16)

    def run(self, images: np.ndarray, labels: np.ndarray) -> PeerResult:
        """One training step on images (B, 3, H, W) and labels (B, H, W)."""
        self._network.module.train()
        with self._autocast():
            loss = self._network.loss(self._on_device(images), self._torch_labels(labels))
        before = self._scaler.get_scale()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        value = loss.item()
        self._wait()
        scale = self._scaler.get_scale() if self._scaler.is_enabled() else None
        return PeerResult(value, scale is not None and scale < before, scale)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class ids uint8 (B, H, W), in fp32."""
        import torch

        self._network.module.eval()
        with torch.no_grad():
            pred = self._network.logits(self._on_device(images)).argmax(dim=1)  # (B, H, W)
        return pred.to(torch.uint8).cpu().numpy()

    def peak_gpu_memory_gib(self) -> float | None:
        """Most memory that PyTorch allocated on the GPU; None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if self._device == "cuda" else None

    def _on_device(self, images: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(images).to(self._device, memory_format=self._format)

    def _torch_labels(self, labels: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(labels).to(self._device)

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None)

    def _wait(self) -> None:
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()


class _LogitsNetwork:
    """A network that returns logits, or a dictionary with them under "out", at any size."""

    def __init__(self, library: str, model: str, device: str, memory_format: Any):
        self.module = BUILDERS[library][model]().to(device, memory_format=memory_format)

    def logits(self, images: Any) -> Any:
        """(B, 3, H, W) -> (B, C, H, W)."""
        from torch.nn import functional

        outputs = self.module(images)
        logits = outputs["out"] if isinstance(outputs, dict) else outputs
        if logits.shape[2:] == images.shape[2:]:
            return logits
        return functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)

    def loss(self, images: Any, labels: Any) -> Any:
        """The mean cross entropy over valid pixels, in fp32."""
        from torch.nn import functional

        return functional.cross_entropy(self.logits(images).float(), labels, ignore_index=IGNORE)


class _MMSegNetwork:
    """A network of mmsegmentation with its own losses, from the configurations that its package carries.

    Deviation: plain batch normalisation, as one process has nothing to synchronise; no pretrained weights.
    """

    def __init__(self, library: str, model: str, device: str, memory_format: Any):
        stand_in_for_compiled_ops()
        import mmseg
        from mmengine.config import Config
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

        register_all_modules()
        configs = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_" / "models"
        config = Config.fromfile(configs / f"{MMSEG_CONFIGS[model]}.py").model
        config.pretrained = None
        self.module = MODELS.build(with_plain_batch_norm(config)).to(device, memory_format=memory_format)

    def logits(self, images: Any) -> Any:
        """(B, 3, H, W) -> (B, C, H, W)."""
        import torch

        return torch.stack([sample.seg_logits.data for sample in self.module(images, mode="predict")])

    def loss(self, images: Any, labels: Any) -> Any:
        """The sum of the network's losses, as mmengine sums them."""
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
        return sum(value for name, value in self.module(images, samples, mode="loss").items() if "loss" in name)


def with_plain_batch_norm(config: Any) -> Any:
    """The configuration with every SyncBN replaced by BN, in place."""
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ()
    for value in values:
        with_plain_batch_norm(value)
    if isinstance(config, dict) and config.get("type") == "SyncBN":
        config["type"] = "BN"
    return config


def stand_in_for_compiled_ops() -> None:
    """Lets mmseg import mmcv-lite, which lacks mmcv's compiled operators; a call of one of them raises."""
    try:
        found = importlib.util.find_spec("mmcv._ext") is not None
    except ModuleNotFoundError:
        raise ModuleNotFoundError("mmcv is missing: pip install --no-deps mmcv-lite==2.1.0") from None
    if not found:
        sys.modules["mmcv._ext"] = _NoCompiledOps("mmcv._ext")


class _NoCompiledOps(types.ModuleType):
    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(f"mmcv-lite has no compiled operator '{name}'")

        return missing


def _smp_deeplabv3p() -> Any:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("resnet50", encoder_weights=None, encoder_output_stride=8, classes=NUM_CLASSES)


def _smp_deeplabv3() -> Any:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3("resnet50", encoder_weights=None, encoder_output_stride=8, classes=NUM_CLASSES)


def _smp_pspnet() -> Any:
    """Its PSPNet over the whole ResNet at stride 8; as shipped it stops after the third of five stages."""
    import segmentation_models_pytorch as smp

    network = smp.PSPNet("resnet50", encoder_weights=None, encoder_depth=5, upsampling=8, classes=NUM_CLASSES)
    network.encoder.make_dilated(8)
    return network


def _torchvision_deeplabv3() -> Any:
    from torchvision.models.segmentation import deeplabv3_resnet50

    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)


def _timm_fcn_hrnet_w18() -> Any:
    import timm
    import torch
    from torch import nn
    from torch.nn import functional

    class FCNHRNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model(
                "hrnet_w18", pretrained=False, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
            )
            channels = sum(self.backbone.feature_info.channels())
            self.decode_head = nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, NUM_CLASSES, 1),
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            first, *rest = self.backbone(images)
            same_size = {"size": first.shape[2:], "mode": "bilinear", "align_corners": False}
            joined = torch.cat([first, *(functional.interpolate(feat, **same_size) for feat in rest)], dim=1)
            return self.decode_head(joined)  # (B, C, H/4, W/4)

    return FCNHRNet()


BUILDERS: dict[str, dict[str, Callable[[], Any]]] = {
    "smp": {
        "deeplabv3p_resnet50": _smp_deeplabv3p,
        "deeplabv3_resnet50": _smp_deeplabv3,
        "pspnet_resnet50": _smp_pspnet,
    },
    "torchvision": {"deeplabv3_resnet50": _torchvision_deeplabv3},
    "timm": {"fcn_hrnet_w18": _timm_fcn_hrnet_w18},
}
