"""How a number is measured, and the scores of one image under that protocol."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.memory import memory_errors_explained

import numpy as np
import torch
import torch.nn.functional as F

ENCODING_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
ENCODING_BASE = (520, 480)  # base and crop size in PyTorch-Encoding; other crops keep the proportion
PROTOCOLS = ("ss", "encoding_ss", "encoding_ms_flip")
LARGEST_EXPONENT = 80.0  # the sum of some exp of it is still a finite float32

Model = Callable[[torch.Tensor], torch.Tensor]
"""Images float32 (1, 3, h, w) -> logits (1, num_classes, h, w): a network in evaluation mode, or another runtime."""


@dataclasses.dataclass(frozen=True)
class EvalProtocol:
    """How a number is measured: the same value for validation in training and for eval.py, stored with every number.

    Scores are enlarged to the label's size; labels are never resized.

    Attributes:
        base_size: Pixels of the image's longer side at scale 1; None: the image as it is, whole, once.
        crop_size: Pixels of the square windows; smaller images are padded to it with black.
        scales: Factors on `base_size`.
        flip: Whether each window is also seen mirrored.
        black: What a black pixel is after normalisation, per channel: what windows are padded with.

    Reference: MultiEvalModule in encoding/models/base.py of github zhanghang1989/PyTorch-Encoding. Logits of a window
    and of its mirror image are added, exp is taken, windows are averaged where they overlap, and the results of all
    scales are resized (align_corners=True) and added.
    Deviation: exponents end at `LARGEST_EXPONENT`, so nothing overflows.
    """

    base_size: int | None = None
    crop_size: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    black: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def named(cls, name: str, crop_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> EvalProtocol:
        """One of `PROTOCOLS`, for a network trained on crops of this size of images so normalised."""
        if name == "ss":
            return cls()
        base_size = round(crop_size * ENCODING_BASE[0] / ENCODING_BASE[1])
        several = name == "encoding_ms_flip"
        black = normalize(np.zeros((1, 1, 3), np.uint8), mean, std).flatten().tolist()
        return cls(base_size, crop_size, ENCODING_SCALES if several else (1.0,), several, tuple(black))

    @property
    def memory_advice(self) -> str:
        """What helps where an image does not fit into memory."""
        if self.base_size is None:
            return (
                "the network sees the whole image: give eval.py and predict.py --protocol encoding_ss, which takes "
                "windows; for training leave the image out of the list of validation images, and resume with --resume"
            )
        return "windows are small, but the classes' scores of the whole image do not fit: make the image smaller"

    # This text is a key: recorded runs hold it, and `measured_as` in results/experiments.yaml. It must not change.
    def __str__(self) -> str:
        if self.base_size is None:
            return "ss, whole image"
        scales = "ss" if self.scales == (1.0,) else "ms " + "/".join(f"{s:g}" for s in self.scales)
        flip = ", flip" if self.flip else ""
        return f"{scales}{flip}, long side {self.base_size}, windows {self.crop_size} (PyTorch-Encoding)"


def smallest_scale(size: tuple[int, int], protocol: EvalProtocol) -> float:
    """The smallest factor by which the network sees an image of (height, width); infinite where windows pad it."""
    return 1.0 if protocol.base_size is None else math.inf


def class_scores(model: Model, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol) -> torch.Tensor:
    """Scores whose argmax is the prediction and whose softmax are the probabilities.

    Whole image: the logits. Otherwise the logarithm of what `EvalProtocol` says is added up.

    Args:
        model: The network, see `Model`.
        image: The normalised image.
        size: (height, width) of the result: the label's, or the image's own.
        protocol: Windows, scales and mirror images.

    Shapes: image float32 (1, 3, H, W) -> (1, num_classes, *size).

    Raises:
        UserError: Too little memory.
    """
    with memory_errors_explained(protocol.memory_advice):
        return _class_scores(model, image, size, protocol)


def _class_scores(model: Model, image: torch.Tensor, size: tuple[int, int], protocol: EvalProtocol) -> torch.Tensor:
    if protocol.base_size is None:
        return resize(model(image).float(), size, align_corners=False)
    height, width = image.shape[2:]
    total = None
    for scale in protocol.scales:
        longer = math.ceil(protocol.base_size * scale)
        shorter = int(min(height, width) * longer / max(height, width) + 0.5)
        scaled_size = (longer, shorter) if height > width else (shorter, longer)
        scaled = resize(image, scaled_size, align_corners=True)
        scores = resize(window_scores(model, scaled, protocol), size, align_corners=True)
        total = scores if total is None else total + scores
    return torch.log(total.clamp(min=torch.finfo(total.dtype).tiny))


def window_scores(model: Model, image: torch.Tensor, protocol: EvalProtocol) -> torch.Tensor:
    """The mean of exp(logits) over the windows that see a pixel. (1, 3, H, W) -> (1, num_classes, H, W)."""
    crop, stride = protocol.crop_size, int(protocol.crop_size * 2 / 3)
    height, width = image.shape[2:]
    full = pad_to(image, (max(height, crop), max(width, crop)), protocol.black)
    total = seen = None
    for top, left in itertools.product(*(window_starts(side, crop, stride) for side in full.shape[2:])):
        part = full[:, :, top : top + crop, left : left + crop]
        window = pad_to(part, (crop, crop), protocol.black)
        logits = model(window).float()
        if protocol.flip:
            logits = logits + model(window.flip(3)).float().flip(3)
        scores = logits.clamp(max=LARGEST_EXPONENT).exp()
        if total is None:
            total = scores.new_zeros(1, scores.shape[1], *full.shape[2:])
            seen = scores.new_zeros(1, 1, *full.shape[2:])
        rows, columns = slice(top, top + part.shape[2]), slice(left, left + part.shape[3])
        total[:, :, rows, columns] += scores[:, :, : part.shape[2], : part.shape[3]]
        seen[:, :, rows, columns] += 1
    return (total / seen)[:, :, :height, :width]


def window_starts(side: int, crop: int, stride: int) -> range:
    """Where windows begin: every `stride` pixels until one reaches the end; the last may stick out."""
    return range(0, math.ceil((side - crop) / stride) * stride + 1, stride)


def pad_to(image: torch.Tensor, size: tuple[int, int], black: tuple[float, float, float]) -> torch.Tensor:
    """Pads with the colour `black` at the bottom and on the right. (1, 3, h, w) -> (1, 3, *size)."""
    if image.shape[2:] == size:
        return image
    padded = image.new_tensor(black).view(1, 3, 1, 1).expand(1, 3, *size).clone()
    padded[:, :, : image.shape[2], : image.shape[3]] = image
    return padded


def resize(x: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Bilinear. (B, C, h, w) -> (B, C, *size)."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
