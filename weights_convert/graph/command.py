"""`torch2paddle.py --module`: from the name of a PyTorch network to Paddle code, weights, card and proof."""

from __future__ import annotations

import dataclasses
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.files import atomic_write, sha256_of
from common.runs.environment import git_commit
from common.weights.card import card_of
from weights_convert.conversion import check_tensors, peak_memory_mib, three_digits
from weights_convert.graph import prove
from weights_convert.graph.source import Code, generate
from weights_convert.graph.spec import Source, build_source
from weights_convert.graph.trace import Traced, divisors, trace
from weights_convert.images import real_image
from weights_convert.output import PADDLE_SUFFIXES
from weights_convert.proof import LIMIT, Proof, print_table
from weights_convert.weight_files import read_weights, write_weights

import numpy as np
import paddle
import torch
import yaml


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        module: `timm:convnext_atto` and the like.
        weights: A file of its weights; None for random ones.
        out: Name of the files without suffix; None for the proof alone.
        features: The network as a backbone.
        size: (height, width) to trace with; None is the network's own.
        image: A photograph for the proof.
        mean: Of the images; None is the network's own.
        std: Likewise.
        onnx: Ask ONNX Runtime too.
        licence: Of the weights, for the card.
        training: Prove loss and gradients too.
    """

    module: str
    weights: Path | None = None
    out: Path | None = None
    features: bool = False
    size: tuple[int, int] | None = None
    image: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    onnx: bool = False
    licence: str | None = None
    training: bool = True


@dataclasses.dataclass
class Converted:
    """What came of it."""

    wanted: Wanted
    source: Source
    traced: Traced
    code: Code
    tensors: dict[str, np.ndarray]
    proof: Proof
    training: dict[str, float]
    training_mode: str
    image: str
    onnx_difference: float | None
    started: tuple[float, float]
    left_out: dict[str, np.ndarray]

    def row(self) -> dict[str, Any]:
        """What was proven, as plain values."""
        return {
            "module": self.wanted.module,
            "tensors": len(self.tensors),
            "classes": self.code.classes,
            "lines": len(self.code.text.splitlines()),
            "free_sizes": " ".join(self.traced.free),
            "largest_difference": three_digits(self.proof.largest),
            "training_difference": three_digits(max(self.training.values())) if self.training else None,
            "training_mode": self.training_mode,
            "onnxruntime_difference": None if self.onnx_difference is None else three_digits(self.onnx_difference),
            "seconds": round(time.perf_counter() - self.started[0], 1),
            "cpu_seconds": round(time.process_time() - self.started[1], 1),
            "peak_memory_mib": peak_memory_mib(),
        }

    def summary(self) -> str:
        """One line of the same."""
        row = self.row()
        free = f"free sizes {row['free_sizes']}" if row["free_sizes"] else "no free sizes"
        third = "" if row["onnxruntime_difference"] is None else f", ONNX Runtime {row['onnxruntime_difference']:.1e}"
        trained = "" if row["training_difference"] is None else f", training {row['training_difference']:.1e}"
        return (
            f"{row['module']} proven: {row['tensors']} tensors, {row['classes']} classes, {free}, largest difference "
            f"{row['largest_difference']:.1e}{trained}{third}, {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU s, "
            f"peak {row['peak_memory_mib']} MiB"
        )


def convert_module(wanted: Wanted) -> tuple[Converted, list[Path]]:
    """Converts a PyTorch network and proves it; writes the files if `out` is given.

    Raises:
        UserError: The network cannot be converted, or the two differ; then nothing is written.
    """
    started = time.perf_counter(), time.process_time()
    if wanted.out is not None and wanted.out.suffix:
        raise UserError(f"--out {wanted.out}: with --module give a name without suffix: three files are written")
    tensors = read_weights(wanted.weights) if wanted.weights else None
    photograph, image = real_image(wanted.image)
    source = build_source(wanted.module, wanted.features, wanted.size)
    source.mean, source.std = wanted.mean or source.mean, wanted.std or source.std
    if tensors is None:
        prove.stir(source.module, source.channels, source.size)
    else:
        fill_module(source, tensors, wanted.weights)
        del tensors
    traced = trace(source.module, source.channels, source.size)
    code = generate(traced, source.title, remarks(source, traced), constants(source))
    with tempfile.TemporaryDirectory(prefix="torch2paddle_") as folder:
        path = Path(folder) / f"{(wanted.out or Path('network')).name}.py"
        path.write_text(code.text, encoding="utf-8")
        layer = prove.load_layer(path, code.class_name)
        arrays = prove.paddle_tensors(code)
        prove.fill(layer, arrays)
        inputs = prove.proof_images(source, traced, photograph)
        proof = prove.prove(source, layer, *_modules(code, traced, layer), inputs)
        print_table(proof)
        require(proof, wanted.module)
        training, mode = {}, "not asked"
        if wanted.training:
            training, mode = prove.prove_training(source, traced, layer, code, inputs[-1].images.shape[2:])
            require_training(training, wanted.module)
            print(f"training ({mode}): loss and {len(training) - 1} gradients: at most {max(training.values()):.1e}")
    third = None
    if wanted.onnx:
        from weights_convert.graph.onnx_third import onnx_difference

        third = onnx_difference(wanted.module, source, layer, inputs[-1].images)
        print(f"third witness, ONNX Runtime ({inputs[-1].name}): {third:.1e}")
    left_out = {name: v.numpy() for name, v in source.module.state_dict().items() if name not in code.tensors}
    result = Converted(
        *(wanted, source, traced, code, arrays, proof, training, mode, image, third, started, left_out),
    )
    return result, write(result) if wanted.out is not None else []


def remarks(source: Source, traced: Traced) -> list[str]:
    """Sentences of the generated file's docstring."""
    free = {"B": "the batch", "H": "the height", "W": "the width"}
    names = [free[name] for name in traced.free]
    text = f"Free sizes: {', '.join(names)}." if names else "No size is free."
    conditions = divisors(traced.guards)
    text += f" They must satisfy {' and '.join(conditions)}." if conditions else ""
    shape = f"({'B' if 'B' in traced.free else 2}, {source.channels}, {traced.size[0]}, {traced.size[1]})"
    return [
        f"Written by weights_convert/torch2paddle.py --module {source.spec}. {text}",
        f"Shapes in comments are those of images {shape}.",
        f"Images are RGB, (pixels / 255 - mean) / std with mean {list(source.mean)} and std {list(source.std)}.",
        "Tensors have PyTorch's names; the weights of nn.Linear are transposed.",
    ]


def constants(source: Source) -> str:
    """Lines behind the imports: what a decode head and a reader of images ask."""
    lines = [f"MEAN, STD = {list(source.mean)}, {list(source.std)}"]
    if source.out_channels is not None:
        lines += [f"OUT_CHANNELS = {list(source.out_channels)}", f"STRIDES = {list(source.strides)}"]
    return "\n".join(lines)


def fill_module(source: Source, tensors: dict[str, np.ndarray], path: Path) -> None:
    """Loads a weight file into the PyTorch network; a backbone leaves the classifier's out.

    Raises:
        UserError: Names, shapes or types do not fit.
    """
    state = source.module.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if source.features:
        tensors = _renamed(tensors, shapes)
    optional = {name for name in shapes if name.endswith("num_batches_tracked") and name not in tensors}
    wanted = {name: shape for name, shape in shapes.items() if name not in optional}
    floats = {name: value for name, value in tensors.items() if name in wanted and state[name].dtype != torch.float32}
    check_tensors(
        {n: v for n, v in tensors.items() if n not in floats},
        {n: s for n, s in wanted.items() if n not in floats},
        path,
    )
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(torch.from_numpy(np.array(value)))


def _renamed(tensors: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a whole network under a backbone's names: timm flattens `stages.0` to `stages_0`."""
    plain = {name.replace(".", "_"): name for name in shapes}
    found = {}
    for name, value in tensors.items():
        target = plain.get(name.replace(".", "_"))
        if target is not None:
            found[target] = value
    return found


def _modules(code: Code, traced: Traced, layer: paddle.nn.Layer) -> tuple[list[str], set[str]]:
    """Modules of both networks, and those that hold tensors."""
    theirs = {name for name, _ in traced.module.named_modules(remove_duplicate=False)}
    called = [name for name, _ in layer.named_sublayers() if name in theirs]
    return called, {name.rpartition(".")[0] for name in code.tensors}


def require(proof: Proof, what: str) -> None:
    """Raises UserError, naming the first stage and layer that depart."""
    stage = next((row for row in proof.stages if row.departs), None)
    if stage is None:
        return
    first = next((row for row in proof.layers if row.departs), None)
    began = f"; the first layer that does is '{first.name}' ({first.largest:.1e})" if first else ""
    raise UserError(
        f"{what}: '{stage.name}' departs by {stage.largest:.1e} (limit {LIMIT:g}){began}; nothing was written"
    )


def require_training(training: dict[str, float], what: str) -> None:
    """Raises UserError, naming the worst gradient, unless loss and gradients agree."""
    name = max(training, key=training.__getitem__)
    if not training[name] <= prove.TRAINING_LIMIT:
        raise UserError(
            f"{what}: in training mode {'the loss' if name == 'loss' else f'the gradient of {name!r}'} departs by "
            f"{training[name]:.1e} (limit {prove.TRAINING_LIMIT:g}); nothing was written"
        )


def write(result: Converted) -> list[Path]:
    """Writes code, weights, what was left out and the card; each is whole or not there."""
    out, written = result.wanted.out, []
    with atomic_write(out.with_name(f"{out.name}.py")) as stream:
        stream.write(result.code.text)
    written.append(out.with_name(f"{out.name}.py"))
    for suffix in PADDLE_SUFFIXES:
        path = out.with_name(out.name + suffix)
        with atomic_write(path, "wb") as stream:
            write_weights(stream, suffix, result.tensors)
        written.append(path)
    rest = out.with_name(f"{out.name}.left_out.safetensors")
    rest.unlink(missing_ok=True)
    if result.left_out:
        with atomic_write(rest, "wb") as stream:
            write_weights(stream, ".safetensors", result.left_out)
        written.append(rest)
    with atomic_write(card_of(out)) as stream:
        yaml.safe_dump(describe(result, written), stream, sort_keys=False, allow_unicode=True, width=120)
    return [*written, card_of(out)]


def describe(result: Converted, written: list[Path]) -> dict[str, Any]:
    """The card's content: plain values only."""
    source, wanted, proof = result.source, result.wanted, result.proof
    commit, changed = git_commit(Path(__file__).parent)
    weights = wanted.weights
    return {
        "module": wanted.module,
        "source": {
            "network": source.title,
            "weights": weights.name if weights else "random, seed 0",
            "sha256": sha256_of(weights) if weights else None,
            "licence": wanted.licence,
        },
        "paddle_network": f"{wanted.out.name}.py:{result.code.class_name}",
        "features": None
        if source.out_channels is None
        else {"out_channels": list(source.out_channels), "strides": list(source.strides)},
        "files": {path.name: sha256_of(path) for path in written},
        "input": {
            "channel_order": "RGB",
            "scale": "0..1 (pixels / 255)",
            "mean": list(source.mean),
            "std": list(source.std),
            "layout": f"float32 (B, {source.channels}, H, W)",
            "traced_size": list(result.traced.size),
            "free_sizes": list(result.traced.free),
            "conditions": divisors(result.traced.guards),
        },
        "tensors": {
            "converted": len(result.tensors),
            "transposed": sorted(result.code.transposed),
            "left_out": sorted(name for name in result.left_out if not name.endswith("num_batches_tracked")),
            "left_out_counters": sum(name.endswith("num_batches_tracked") for name in result.left_out),
        },
        "proof": {
            "measure": "max|a - b| / max|a|, evaluation mode, float32, CPU",
            "limit": LIMIT,
            "largest_difference": three_digits(proof.largest),
            "stages": {row.name: three_digits(row.largest) for row in proof.stages},
            "inputs": list(proof.inputs),
            "sizes": "free" if {"H", "W"} & set(result.traced.free) else "the traced size only",
            "image": result.image,
            "layers_one_by_one": len(proof.layers),
            "highest_class_agrees_percent": round(proof.agreement_percent, 4),
            "training": {
                "mode": result.training_mode,
                "limit": prove.TRAINING_LIMIT,
                "largest_difference": three_digits(max(result.training.values())) if result.training else None,
                "gradients": max(len(result.training) - 1, 0),
            },
            "onnxruntime": "not asked" if result.onnx_difference is None else three_digits(result.onnx_difference),
        },
        "versions": {
            "paddle": paddle.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "segrepro": commit + (" with changes" if changed else ""),
        },
    }


def read_size(text: str) -> tuple[int, int]:
    """`128x256` as (height, width).

    Raises:
        UserError: It is something else.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or not (int(match[1]) and int(match[2])):
        raise UserError(f"--size '{text}': use HEIGHTxWIDTH, for instance 128x256")
    return int(match[1]), int(match[2])
