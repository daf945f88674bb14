"""The proof that generated code computes what the PyTorch network does: evaluation, training, ONNX Runtime.

Evaluation: modules down to a depth that names the culprit, on random images and a real one of three sizes that the
network takes; every module with tensors besides, on the smallest. Training: loss and gradients with batch statistics
and dropout off. The measure is max|a - b| / max|a|.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.cli import UserError
from weights_convert.graph.source import Code
from weights_convert.graph.spec import Source
from weights_convert.graph.trace import Traced
from weights_convert.images import normalised
from weights_convert.networks import OUTPUT, _one_torch_thread
from weights_convert.proof import LIMIT, Proof, ProofInput, Row, difference

import numpy as np
import paddle
import torch

TRAINING_LIMIT = 1e-4
SIZES = ((224, 224), (128, 192), (97, 129))
EVEN_SIZES = ((224, 224), (128, 192), (96, 160), (256, 320), (64, 96), (448, 448))
MOST_STAGES = 40
FLOOR = 1e-3  # gradients below this part of the largest are measured against it
BATCH_NORMS = torch.nn.modules.batchnorm._BatchNorm


def load_layer(path: Path, class_name: str) -> paddle.nn.Layer:
    """Builds the network of a generated file."""
    spec = importlib.util.spec_from_file_location(f"segrepro_generated_{path.stem}_{abs(hash(str(path)))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, class_name)()


def paddle_tensors(code: Code) -> dict[str, np.ndarray]:
    """The tensors of the generated network, by name, as Paddle keeps them."""
    arrays = {}
    for name, value in code.tensors.items():
        array = value.detach().numpy()
        arrays[name] = np.ascontiguousarray(array.T) if name in code.transposed else array
    return arrays


def fill(layer: paddle.nn.Layer, tensors: dict[str, np.ndarray]) -> None:
    """Sets every tensor of the network.

    Raises:
        UserError: Names or shapes do not fit: a defect of the generator.
    """
    state = layer.state_dict()
    strangers = sorted(set(state) ^ set(tensors))
    if strangers:
        raise UserError(f"the generated network and its weights differ in '{strangers[0]}': report it with the network")
    for name, value in tensors.items():
        if tuple(state[name].shape) != value.shape:
            raise UserError(f"the generated '{name}' is {state[name].shape}, the weight {value.shape}: report it")
        state[name].set_value(np.ascontiguousarray(value))


def stir(module: torch.nn.Module, channels: int, size: tuple[int, int], seed: int = 0) -> None:
    """Makes random weights that keep every part of a network alive, from its own initialisation.

    What starts constant (gains, biases, layer scale) is stirred, running statistics become those of noise images of
    several contrasts: see `weights_convert.networks.randomise`, which does it for the pairs.
    """
    rng = np.random.default_rng(seed)
    norms = {id(m) for m in module.modules() if isinstance(m, BATCH_NORMS)}
    owners = {id(p): m for m in module.modules() for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for name, value in module.named_parameters():
            if not value.dtype.is_floating_point or value.numel() == 0:
                continue
            shape, first = tuple(value.shape), float(value.flatten()[0])
            if not bool((value == first).all()):
                continue
            in_norm = id(owners[id(value)]) in norms
            if first == 1:
                sign = np.where(in_norm & (rng.random(shape) < 0.1), -1, 1)
                drawn = sign * rng.uniform(0.7, 1.3, shape)
            elif first == 0 and in_norm and name.endswith("bias"):
                drawn = rng.uniform(1, 2, shape)
            elif first == 0:
                drawn = rng.normal(0, 0.1 if value.dim() < 2 else 0.02, shape)
            elif abs(first) < 0.1:
                drawn = rng.uniform(0.1, 0.3, shape)
            else:
                continue
            value.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    noise = rng.standard_normal((8, channels, *size))
    contrast, colour = rng.uniform(0.2, 2, (8, 1, 1, 1)), rng.uniform(-1.5, 1.5, (8, channels, 1, 1))
    _calibrate(module, (contrast * noise + colour).astype(np.float32))


def _calibrate(module: torch.nn.Module, images: np.ndarray) -> None:
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with contextlib.suppress(Exception), torch.no_grad(), _one_torch_thread():  # a network of fixed batch keeps its own
        module(torch.from_numpy(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def proof_images(source: Source, traced: Traced, photograph: np.ndarray) -> list[ProofInput]:
    """Random images and a real one at up to three sizes that network and code take, the smallest last."""
    sizes = [source.size]
    if {"H", "W"} & set(traced.free):
        sizes = [size for size in (*SIZES, *EVEN_SIZES, source.size) if _takes(source, traced, size)]
        odd = [size for size in sizes if size[0] % 2]
        sizes = list(dict.fromkeys(sizes))[: 2 if odd else 3] + odd[:1]
        sizes = sorted(dict.fromkeys(sizes), key=lambda size: -size[0] * size[1])
    rng = np.random.default_rng(0)
    inputs = []
    batch = 1 if "B" in traced.free else 2
    for size in sizes:
        name = f"{size[0]}x{size[1]}"
        inputs.append(ProofInput(f"{name} random", rng.standard_normal((2, source.channels, *size), dtype=np.float32)))
        if source.channels == 3:
            image = normalised(photograph, size, source.mean, source.std)
            inputs.append(ProofInput(f"{name} image", np.repeat(image, batch, axis=0)))
    return inputs


def _takes(source: Source, traced: Traced, size: tuple[int, int]) -> bool:
    images = np.zeros((2, source.channels, *size), np.float32)
    if not traced.allows(images):
        return False
    try:
        with torch.no_grad(), _one_torch_thread():
            source.module(torch.from_numpy(images))
    except Exception:  # a network says in its own way that it does not take a size
        return False
    return True


def prove(
    source: Source, layer: paddle.nn.Layer, called: Sequence[str], owners: Iterable[str], inputs: list[ProofInput]
) -> Proof:
    """Compares both networks in evaluation mode.

    Args:
        source: The PyTorch network.
        layer: The generated one, filled.
        called: Modules that run once, in the order of the tree.
        owners: Modules that hold tensors.
        inputs: The smallest last.
    """
    source.module.eval()
    layer.eval()
    known = {name for name, _ in layer.named_sublayers()}
    called = [name for name in called if name in known]
    last = inputs[-1].images
    holders = set(owners) & set(called)
    layers = tuple(
        Row(name, (value,)) for name, value in _compare(source.module, layer, holders, last).items() if name != OUTPUT
    )
    stages = _stages(called)
    columns, agreeing, counted = [], 0, 0
    for item in inputs:
        theirs, ours = run_torch(source.module, item.images, stages), run_paddle(layer, item.images, stages)
        columns.append(_differences(theirs, ours))
        a, b = theirs[OUTPUT][0], ours[OUTPUT][0]
        if a.shape == b.shape and a.ndim >= 2:
            same = a.argmax(axis=1) == b.argmax(axis=1)
            agreeing, counted = agreeing + int(same.sum()), counted + same.size
    common = [name for name in columns[0] if all(name in column for column in columns)]
    rows = tuple(Row(name, tuple(column[name] for column in columns)) for name in common)
    agreement = 100 * agreeing / counted if counted else 100.0
    return Proof(tuple(item.name for item in inputs), rows, layers or rows[-1:], agreement)


def _stages(called: Sequence[str]) -> list[str]:
    """The modules of the greatest depth of which there are not too many."""
    chosen: list[str] = []
    for depth in range(1, 8):
        deeper = [
            name
            for name in called
            if name.count(".") < depth and not any(n.startswith(f"{name}.") and n.count(".") < depth for n in called)
        ]
        if len(deeper) > MOST_STAGES and chosen:
            break
        chosen = deeper[:MOST_STAGES]
    return chosen


def _compare(
    module: torch.nn.Module, layer: paddle.nn.Layer, names: Iterable[str], images: np.ndarray
) -> dict[str, float]:
    names = list(names)
    return _differences(run_torch(module, images, names), run_paddle(layer, images, names))


def _differences(theirs: dict[str, list[np.ndarray]], ours: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Difference by name; a stage whose result the graph keeps in another form is left out, the output never is."""
    found = {}
    for name, value in theirs.items():
        other = ours.get(name)
        if name != OUTPUT and (other is None or [a.shape for a in value] != [b.shape for b in other]):
            continue
        found[name] = difference([np.asarray(b, np.float64) for b in other], [np.asarray(a, np.float64) for a in value])
    return found


def flat(output: Any) -> list[Any]:
    """The tensors of a nest, in order."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in flat(part)]
    return [output] if isinstance(output, torch.Tensor | paddle.Tensor) else []


def run_torch(module: torch.nn.Module, images: np.ndarray, watched: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """Outputs of the watched modules in the order in which they ran, the network's last."""
    outputs: dict[str, list[np.ndarray]] = {}
    with contextlib.ExitStack() as hooks, torch.no_grad(), _one_torch_thread():
        for name in watched:

            def keep(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
                outputs[name] = [value.numpy().copy() for value in flat(output)]

            hooks.callback(module.get_submodule(name).register_forward_hook(keep).remove)
        result = module(torch.from_numpy(images.copy()))
    outputs[OUTPUT] = [value.numpy() for value in flat(result)]
    return outputs


def run_paddle(layer: paddle.nn.Layer, images: np.ndarray, watched: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """The same, of the generated network."""
    outputs: dict[str, list[np.ndarray]] = {}
    layers = dict(layer.named_sublayers())
    with contextlib.ExitStack() as hooks, paddle.no_grad():
        for name in watched:

            def keep(_layer: Any, _inputs: Any, output: Any, name: str = name) -> None:
                outputs[name] = [value.numpy() for value in flat(output)]

            hooks.callback(layers[name].register_forward_post_hook(keep).remove)
        try:
            result = layer(paddle.to_tensor(images))
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[-1]
            raise UserError(
                f"the generated network fails on {tuple(images.shape)}: {line[:300]}{_line_of(error)}"
            ) from None
    outputs[OUTPUT] = [value.numpy() for value in flat(result)]
    return outputs


def _line_of(error: BaseException) -> str:
    place, step = "", error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__", "").startswith("segrepro_generated"):
            place = f" (generated line {step.tb_lineno}, in {type(step.tb_frame.f_locals.get('self')).__name__})"
        step = step.tb_next
    return place


def prove_training(
    source: Source, traced: Traced, layer: paddle.nn.Layer, code: Code, size: tuple[int, int]
) -> tuple[dict[str, float], str]:
    """Compares loss and gradients with batch statistics, dropout off.

    In float64, where both networks can: in float32 a value within a rounding error of 0 passes a ReLU in one framework
    and not in the other, and a gradient of 50 layers below departs by per cents. Else in float32.

    Returns:
        Differences of "loss" and of the tensors' gradients by name, and what was compared.
    """
    has_norms = any(isinstance(part, BATCH_NORMS) for part in source.module.modules())
    batch = 4 if "B" in traced.free and has_norms else 2
    size = (64, 96) if _takes(source, traced, (64, 96)) else size
    images = np.random.default_rng(1).standard_normal((batch, source.channels, *size))
    first: Exception | None = None
    for dtype in ("float64", "float32"):
        try:
            with _in_type(source.module, layer, dtype):
                mode, their_loss, theirs = _torch_gradients(source.module, images.astype(dtype), code)
                our_loss, ours = _paddle_gradients(layer, images.astype(dtype), code)
        except Exception as error:  # a constant of the code in the other type: float32 it is
            first = first or error
            continue
        return _gradient_differences(theirs, ours, their_loss, our_loss), f"{mode}, {dtype}"
    line = (str(first).strip().splitlines() or [""])[-1]
    raise UserError(f"the training pass fails: {line[:300]}{_line_of(first)}")


def _gradient_differences(
    theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], their_loss: float, our_loss: float
) -> dict[str, float]:
    largest = max((float(np.abs(value).max()) for value in theirs.values() if value.size), default=1.0)
    found = {"loss": abs(our_loss - their_loss) / max(abs(their_loss), FLOOR)}
    for name, value in theirs.items():
        scale = max(float(np.abs(value).max()) if value.size else 0.0, FLOOR * largest) or 1.0
        other = ours.get(name)
        if other is None:
            found[name] = float("inf") if np.abs(value).max() > 0 else 0.0
        else:
            found[name] = float(np.abs(other - value).max()) / scale
    return found


@contextlib.contextmanager
def _in_type(module: torch.nn.Module, layer: paddle.nn.Layer, dtype: str) -> Iterator[None]:
    """Both networks in a type, afterwards in float32 again with the same values."""
    if dtype == "float32":
        yield
        return
    try:
        module.double()
        _to_type(layer, dtype)
        yield
    finally:
        module.float()
        _to_type(layer, "float32")
        module.zero_grad(set_to_none=True)
        layer.clear_gradients()


def _to_type(layer: paddle.nn.Layer, dtype: str) -> None:
    layer.to(dtype=dtype)
    paddle.set_default_dtype(dtype)


def _paddle_gradients(layer: paddle.nn.Layer, images: np.ndarray, code: Code) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the generated network: its batch norms in training, dropout off."""
    layer.eval()
    for part in layer.sublayers(include_self=True):
        part.training = hasattr(part, "running_mean")
    before = {name: value.numpy() for name, value in layer.state_dict().items() if "running_" in name}
    try:
        result = _real(layer(paddle.to_tensor(images)))
        weights = [
            paddle.to_tensor(_weights(i, tuple(value.shape)), dtype=value.dtype) for i, value in enumerate(result)
        ]
        loss = sum((value * weight).mean() for value, weight in zip(result, weights, strict=True))
        loss.backward()
        ours = {name: value.grad.numpy() for name, value in layer.named_parameters() if value.grad is not None}
    finally:
        layer.clear_gradients()
        layer.eval()
        state = layer.state_dict()
        for name, value in before.items():
            state[name].set_value(value)
    return float(loss), {name: value.T if name in code.transposed else value for name, value in ours.items()}


def _real(result: Any) -> list[Any]:
    """The floating-point tensors of a result."""
    return [value for value in flat(result) if "float" in str(value.dtype)]


def _weights(index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Of the loss: the mean of each output times these."""
    return np.random.default_rng(100 + index).standard_normal(shape).astype(np.float32)


def _torch_gradients(
    module: torch.nn.Module, images: np.ndarray, code: Code
) -> tuple[str, float, dict[str, np.ndarray]]:
    """Loss and gradients of the source in training mode; its batch norms' alone, where training changes the outputs."""
    with torch.no_grad():
        shapes = [tuple(value.shape) for value in flat(module(torch.from_numpy(images.copy())))]
    with _dropout_off(module):
        for switch in (_train, _train_norms):
            switch(module)
            with _one_torch_thread(), _kept_buffers(module):
                try:
                    result = module(torch.from_numpy(images.copy()))
                except Exception:
                    if switch is _train_norms:
                        raise
                    continue
                if switch is _train and [tuple(value.shape) for value in flat(result)] != shapes:
                    continue
                weights = [
                    torch.from_numpy(_weights(i, tuple(v.shape))).to(v.dtype) for i, v in enumerate(_real(result))
                ]
                loss = sum((v * w).mean() for v, w in zip(_real(result), weights, strict=True))
                module.zero_grad(set_to_none=True)
                loss.backward()
            break
    gradients = {
        name: value.grad.numpy().copy()
        for name, value in module.named_parameters()
        if value.grad is not None and name in code.tensors
    }
    module.zero_grad(set_to_none=True)
    module.eval()
    return "train()" if switch is _train else "batch norms in training", float(loss), gradients


def _train(module: torch.nn.Module) -> None:
    module.train()


def _train_norms(module: torch.nn.Module) -> None:
    module.eval()
    for part in module.modules():
        if isinstance(part, BATCH_NORMS):
            part.train()


@contextlib.contextmanager
def _kept_buffers(module: torch.nn.Module) -> Iterator[None]:
    before = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(before[name])


@contextlib.contextmanager
def _dropout_off(module: torch.nn.Module) -> Iterator[None]:
    """Every probability of dropout and of drop-path at 0."""
    changed: list[Callable[[], None]] = []
    names = ("p", "drop_prob", "dropout", "dropout_p", "attn_drop_p", "drop_rate", "attn_drop_rate", "drop")
    for part in module.modules():
        for name in names:
            value = part.__dict__.get(name)
            if (
                isinstance(value, float)
                and 0 < value < 1
                and ("rop" in name or "rop" in type(part).__name__ or "Depth" in type(part).__name__)
            ):
                setattr(part, name, 0.0)
                changed.append(lambda part=part, name=name, value=value: setattr(part, name, value))
    try:
        yield
    finally:
        for undo in changed:
            undo()


__all__ = ["LIMIT", "fill", "load_layer", "paddle_tensors", "proof_images", "prove", "prove_training", "stir"]
