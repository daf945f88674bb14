"""A network of either framework behind one face: its tensors, its layers, and what its layers give for an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import paddle
import torch

OUTPUT = "output"
"""The name under which `run` gives what the whole network returns."""

CALIBRATION_IMAGES, CALIBRATION_SIZE = 8, (64, 96)

Outputs = dict[str, list[np.ndarray]]


class Network(Protocol):
    """What conversion and proof ask of a network. It is in evaluation mode, on the CPU, in float32."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of every tensor in the state dict."""

    def tensors(self) -> dict[str, np.ndarray]:
        """Values by name."""

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """Fills the tensors named; names and shapes must fit."""

    def layer_types(self, layer: str) -> tuple[str, ...]:
        """Class names of a layer, its own first, then those that it inherits from."""

    def layers(self) -> list[str]:
        """Names of all layers."""

    def watch_point(self, layer: str) -> str:
        """The layer whose output is this layer's result before any activation that it applies itself."""

    def run(self, images: np.ndarray, watched: Iterable[str]) -> Outputs:
        """Outputs of the watched layers in the order in which they ran, and `OUTPUT` last, as flat lists of arrays."""

    def calibrate(self, images: np.ndarray) -> None:
        """Sets the running statistics of every batch normalisation to those of these images."""


class TorchNetwork:
    """A PyTorch module as a `Network`; `forward` is called in place of the module where another method is compared."""

    def __init__(self, module: torch.nn.Module, forward: Callable[[torch.Tensor], Any] | None = None):
        self.module = module.eval()
        self.forward = forward or module

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Network`."""
        return {name: tuple(value.shape) for name, value in self.module.state_dict().items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """See `Network`; the arrays are the module's own memory."""
        return {name: value.numpy() for name, value in self.module.state_dict().items()}

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """See `Network`."""
        state = self.module.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                state[name].copy_(torch.tensor(value))

    def layer_types(self, layer: str) -> tuple[str, ...]:
        """See `Network`."""
        return tuple(kind.__name__ for kind in type(self.module.get_submodule(layer)).__mro__)

    def layers(self) -> list[str]:
        """See `Network`."""
        return [name for name, _ in self.module.named_modules(remove_duplicate=False)]

    def watch_point(self, layer: str) -> str:
        """See `Network`; timm's BatchNormAct2d normalises, then calls its `drop`, then its `act`."""
        return f"{layer}.drop" if "BatchNormAct2d" in self.layer_types(layer) else layer

    def run(self, images: np.ndarray, watched: Iterable[str]) -> Outputs:
        """See `Network`."""
        outputs: Outputs = {}
        with ExitStack() as hooks, torch.no_grad(), _one_torch_thread():
            for name in watched:

                def keep(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
                    # Copied, because a ReLU may work in place on what this layer returned.
                    outputs[name] = [value.numpy().copy() for value in _flat(output)]

                hooks.callback(self.module.get_submodule(name).register_forward_hook(keep).remove)
            result = self.forward(torch.from_numpy(images))
        outputs[OUTPUT] = [value.numpy() for value in _flat(result)]
        return outputs

    def calibrate(self, images: np.ndarray) -> None:
        """See `Network`."""
        norms = [m for m in self.module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        with torch.no_grad(), _one_torch_thread():
            self.forward(torch.from_numpy(images))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.module.eval()


class PaddleNetwork:
    """A Paddle layer as a `Network`; `forward` as in `TorchNetwork`."""

    def __init__(self, layer: paddle.nn.Layer, forward: Callable[[paddle.Tensor], Any] | None = None):
        self.layer = layer
        layer.eval()
        self.forward = forward or layer
        self._layers = dict(layer.named_sublayers(include_self=True))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Network`."""
        return {name: tuple(value.shape) for name, value in self.layer.state_dict().items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """See `Network`."""
        return {name: value.numpy() for name, value in self.layer.state_dict().items()}

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """See `Network`."""
        state = self.layer.state_dict()
        for name, value in tensors.items():
            state[name].set_value(value)

    def layer_types(self, layer: str) -> tuple[str, ...]:
        """See `Network`."""
        return tuple(kind.__name__ for kind in type(self._layers[layer]).__mro__)

    def layers(self) -> list[str]:
        """See `Network`."""
        return list(self._layers)

    def watch_point(self, layer: str) -> str:
        """See `Network`."""
        return layer

    def run(self, images: np.ndarray, watched: Iterable[str]) -> Outputs:
        """See `Network`."""
        outputs: Outputs = {}
        with ExitStack() as hooks, paddle.no_grad():
            for name in watched:

                def keep(_layer: Any, _inputs: Any, output: Any, name: str = name) -> None:
                    outputs[name] = [value.numpy() for value in _flat(output)]

                hooks.callback(self._layers[name].register_forward_post_hook(keep).remove)
            result = self.forward(paddle.to_tensor(images))
        outputs[OUTPUT] = [value.numpy() for value in _flat(result)]
        return outputs

    def calibrate(self, images: np.ndarray) -> None:
        """See `Network`."""
        norms = [layer for layer in self._layers.values() if isinstance(layer, paddle.nn.layer.norm._BatchNormBase)]
        momenta = [norm._momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm._momentum = 0.0
        with paddle.no_grad():
            self.forward(paddle.to_tensor(images))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm._momentum = momentum
        self.layer.eval()


def randomise(network: Network, seed: int) -> None:
    """Fills a network with random weights that keep every layer alive however deep it is.

    Weights are Kaiming-normal (fan-in), a tenth of the gains is negative. Running statistics are those of noise of
    several contrasts and colours, so that activations neither vanish nor explode in evaluation mode, as in a trained
    network, also behind a global average, where only the differences between images count. Normalised values are
    shifted by 1 to 2 of their deviations: around 0 every ReLU would enlarge a rounding error (by a factor of
    pi / (pi - 1) in variance: Yang et al., "A Mean Field Theory of Batch Normalization", ICLR 2019), and 50 layers
    later nothing could be told from it.
    """
    rng = np.random.default_rng(seed)
    tensors = network.tensors()
    drawn = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        normalises = f"{layer}.running_mean" in tensors or f"{layer}._mean" in tensors
        if value.dtype != np.float32 or kind in ("running_mean", "running_var", "_mean", "_variance"):
            continue
        if normalises:
            low, high = (0.7, 1.3) if kind == "weight" else (1.0, 2.0)
            sign = np.where((kind == "weight") & (rng.random(value.shape) < 0.1), -1, 1)
            drawn[name] = (sign * rng.uniform(low, high, value.shape)).astype(np.float32)
        elif value.ndim < 2:
            drawn[name] = rng.normal(0, 0.1, value.shape).astype(np.float32)
        else:
            drawn[name] = rng.normal(0, np.sqrt(2 / value[0].size), value.shape).astype(np.float32)
    network.load(drawn)
    noise = rng.standard_normal((CALIBRATION_IMAGES, 3, *CALIBRATION_SIZE))
    contrast = rng.uniform(0.2, 2, (CALIBRATION_IMAGES, 1, 1, 1))
    colour = rng.uniform(-1.5, 1.5, (CALIBRATION_IMAGES, 3, 1, 1))
    network.calibrate((contrast * noise + colour).astype(np.float32))


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One thread for PyTorch: its waiting threads and those of Paddle's own OpenMP take the cores from each other.

    On two busy cores a HRNet-W48 took 32 s a forward pass with two threads, 1 s with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _flat(output: Any) -> list[Any]:
    """The tensors of nested dicts, lists and tuples, in order."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _flat(part)]
    return [output]
