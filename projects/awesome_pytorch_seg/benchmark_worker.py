"""What runs in a worker process of benchmark.py: the networks of all libraries, built and run by one pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from awesome_pytorch_seg.checkpoint import memory_layout
from awesome_pytorch_seg.models import build_model
from common.labels import IGNORE
from common.machine.bench import make_batch, seconds_of, serve_tasks
from common.machine.memory import keep_freed_memory

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

NUM_CLASSES, AUX_WEIGHT = 19, 0.4


class Network(NamedTuple):
    """One of the networks that are timed."""

    family: str
    library: str

    def __str__(self) -> str:
        return f"{self.family} {self.library}"


class Task(NamedTuple):
    """What is timed: "train" (a step) or "infer" (a forward) in a mode, with this batch size, height and width."""

    kind: str
    mode: str
    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind} {self.batch}x3x{self.height}x{self.width} {self.mode}"


class Answer(NamedTuple):
    """What a worker says of a task done once."""

    seconds: float
    gmacs: float


def serve(network: Network, pipe: Connection) -> None:
    """Runs in a worker process and times what comes through the pipe."""

    def prepare(task: Task) -> Callable[[], Answer]:
        step, gmacs = make_step(network, task)
        return lambda: Answer(seconds_of(step), gmacs)

    serve_tasks(pipe, prepare)


def make_step(network: Network, task: Task) -> tuple[Callable[[], float], float]:
    """Builds the network and the batch.

    Returns:
        A function that does the task once and returns a number of its result, which it has waited for; and 10^9
        multiply-adds of a forward of one image.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_ours = network.library == "ours"
    if is_ours:
        keep_freed_memory()
    layout = memory_layout(is_ours or task.mode == "bf16_channels_last")
    model = build(network).to(device, memory_format=layout).train(task.kind == "train")
    images, label = (torch.from_numpy(array).to(device) for array in make_batch(task, NUM_CLASSES))
    images = images.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=1e-4)
    autocast = torch.autocast(device, torch.bfloat16, enabled=task.mode != "fp32")

    def train() -> float:
        with autocast:
            outputs = outputs_of(model(images))
        loss = sum(
            weight * F.cross_entropy(logits.float(), label, ignore_index=IGNORE)
            for weight, logits in zip((1.0, AUX_WEIGHT), outputs, strict=False)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def infer() -> float:
        with autocast:
            logits = outputs_of(model(images))[0]
        return float(logits[0, 0, 0, 0])

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return (train if task.kind == "train" else infer), counter.get_total_flops() / 2e9 / task.batch


def build(network: Network) -> nn.Module:
    """The network with random weights, ResNet-50 and output stride 8."""
    if network.library == "ours":
        return build_model(network.family, "resnet50", NUM_CLASSES)
    if network.library.startswith("smp"):
        import segmentation_models_pytorch as smp

        if network.library == "smp_as_shipped":
            return smp.PSPNet("resnet50", encoder_weights=None, classes=NUM_CLASSES)
        if network.family == "deeplabv3":
            return smp.DeepLabV3("resnet50", encoder_weights=None, encoder_output_stride=8, classes=NUM_CLASSES)
        model = smp.PSPNet("resnet50", encoder_weights=None, encoder_depth=5, upsampling=8, classes=NUM_CLASSES)
        model.encoder.make_dilated(output_stride=8)
        return model
    from torchvision.models import segmentation

    door = segmentation.deeplabv3_resnet50 if network.library == "torchvision" else segmentation.fcn_resnet50
    return door(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)


def outputs_of(result: Any) -> tuple[Any, ...]:
    """Main logits, and auxiliary ones where there are any, of whatever form a library gives them in."""
    if isinstance(result, Mapping):
        result = tuple(result.values())
    return sum(map(outputs_of, result), ()) if isinstance(result, tuple) else (result,)
