"""From a weight file to two filled networks and the proof that they compute the same: what both commands share."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

from common.cli import UserError, did_you_mean, few
from weights_convert.archs import Arch, Source
from weights_convert.images import real_image
from weights_convert.name_map import NameMap, Pairing, pair_tensors, read_name_map
from weights_convert.networks import Network, TorchNetwork, randomise
from weights_convert.onnx_witness import onnx_outputs, require_same
from weights_convert.proof import Proof, ProofInput, print_table, proof_inputs, prove
from weights_convert.weight_files import read_weights

import numpy as np
import torch

SEED = 0
TRAINING_PREFIX = "model."  # of the network's tensors in a checkpoint that a project's train.py wrote


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user may say besides files; None is the published network's own.

    Attributes:
        source: Whose names the PyTorch side has; None: recognised by the names, or the first.
        image: A photograph for the proof.
        mean: Of RGB images scaled to 0..1.
        std: Likewise.
        onnx: Ask ONNX Runtime too.
        ema: Take the averaged weights of a checkpoint.
    """

    source: str | None = None
    image: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    onnx: bool = False
    ema: bool = False


@dataclasses.dataclass
class Conversion:
    """Two networks, how their tensors correspond, and on what they are compared.

    Attributes:
        arch: What is converted.
        source: Whose names the other side has.
        num_classes: Of both.
        name_map: The family's table.
        source_network: Built, with random weights until filled.
        target_network: The Paddle network, likewise.
        pairing: The name map worked out on them.
        mean: Of the images.
        std: Likewise.
        image: What the real image is.
        inputs: Of the proof.
        proof: Once it is given.
        onnx_difference: ONNX Runtime's, once measured.
        headless: The weights had no classifier; both networks have the same random one for the proof.
        notes: What else one should know of the weights, see `WeightFile`.
        started: Clock and processor time at the start, in seconds.
    """

    arch: Arch
    source: Source
    num_classes: int
    name_map: NameMap
    source_network: Network
    target_network: Network
    pairing: Pairing
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image: str
    inputs: list[ProofInput]
    proof: Proof | None = None
    onnx_difference: float | None = None
    headless: bool = False
    notes: tuple[str, ...] = ()
    started: tuple[float, float] = (0.0, 0.0)

    def head_tensors(self) -> dict[str, str]:
        """Source name -> Paddle name of the classifier's tensors, where the weights had none."""
        layer = f"{self.name_map.classifier}."
        return {p.source: p.target for p in self.pairing.pairs if self.headless and p.source.startswith(layer)}

    def prove_and_print(self, onnx: bool) -> None:
        """Compares the two networks, keeps the proof and prints its table, also where it fails.

        Raises:
            UserError: They differ; the first stage and layer to depart are named.
        """
        networks = self.source_network, self.target_network
        self.proof = prove(*networks, self.name_map, self.pairing, self.inputs)
        print_table(self.proof)
        self.proof.require(f"{self.arch.name} ({self.source.title})")
        if onnx:
            smallest = self.inputs[-1]
            third = onnx_outputs(
                self.arch.name, self.source.name, self.num_classes, self.source_network, smallest.images
            )
            self.onnx_difference = require_same(self.arch.name, third, self.target_network, smallest.images)
            print(f"third witness, ONNX Runtime ({smallest.name}): {self.onnx_difference:.1e}")

    def report_row(self) -> dict[str, Any]:
        """What was proven, how closely, how long it took, and the memory: plain values, None for what was not asked."""
        return {
            "arch": self.arch.name,
            "source": self.source.name,
            "tensors": len(self.pairing.pairs) - len(self.head_tensors()),
            "largest_difference": three_digits(self.proof.largest),
            "onnxruntime_difference": None if self.onnx_difference is None else three_digits(self.onnx_difference),
            "same_class_percent": round(self.proof.agreement_percent, 4),
            "seconds": round(time.perf_counter() - self.started[0], 1),
            "cpu_seconds": round(time.process_time() - self.started[1], 1),
            "peak_memory_mib": peak_memory_mib(),
        }

    def summary(self) -> str:
        """One line of the same."""
        return summary_line(self.report_row())


def start(arch: Arch, tensors: dict[str, np.ndarray] | None, paddle_side: bool, options: Options) -> Conversion:
    """Builds both networks for the number of classes that the weights have.

    Args:
        arch: What is converted.
        tensors: The weights that were read; None for random ones.
        paddle_side: `tensors` are the Paddle network's.
        options: See there.

    Raises:
        UserError: An unknown source, an unreadable image, or a name map that does not fit.
    """
    started = time.perf_counter(), time.process_time()
    photograph, title = real_image(options.image)
    mean, std = options.mean or arch.mean, options.std or arch.std
    source = _choose_source(arch, None if paddle_side else tensors, options.source)
    name_map = read_name_map(source.name_map)
    num_classes = arch.num_classes
    if tensors is not None:
        num_classes = _count_classes(name_map, tensors, paddle_side) or num_classes
    source_network, target_network = source.build(num_classes), arch.build(num_classes)
    return Conversion(
        arch=arch,
        source=source,
        num_classes=num_classes,
        name_map=name_map,
        source_network=source_network,
        target_network=target_network,
        pairing=pair_tensors(name_map, source_network, target_network),
        mean=mean,
        std=std,
        image=title,
        inputs=proof_inputs(photograph, name_map.odd_size, mean, std),
        started=started,
    )


def summary_line(row: dict[str, Any]) -> str:
    """One line of a `Conversion.report_row`."""
    third, peak = row["onnxruntime_difference"], row["peak_memory_mib"]
    third_text = "" if third is None else f", ONNX Runtime {third:.1e}"
    memory = "memory not measured" if peak is None else f"peak {peak} MiB"
    return (
        f"{row['arch']:<21}{row['source']:<13}proven: {row['tensors']} tensors, largest difference "
        f"{row['largest_difference']:.1e}{third_text}, {row['seconds']:.1f} s ({row['cpu_seconds']:.1f} CPU s), "
        f"{memory}"
    )


def fill_source(conversion: Conversion, tensors: dict[str, np.ndarray] | None, weights: Path | None) -> set[str]:
    """Fills the source network with what was read from `weights`, or randomly if that is None.

    Returns:
        The names of the tensors that there were.

    Raises:
        UserError: The other framework's file, or a tensor is missing, unknown, or of another shape or type.
    """
    network = conversion.source_network
    if tensors is None:
        randomise(network, SEED)
        return set(network.shapes())
    if weights.suffix == ".pdparams" and isinstance(network, TorchNetwork):
        raise UserError(
            f"{weights}: a Paddle file, and {conversion.arch.name} is read from PyTorch: paddle2torch.py converts it; "
            f"for paddleseg's STDC-Seg there are --arch stdc1_seg_paddleseg and stdc2_seg_paddleseg"
        )
    pairing, shapes = conversion.pairing, network.shapes()
    optional = {*pairing.left_out, *pairing.copies}
    head = {name for name in shapes if name.startswith(f"{conversion.name_map.classifier}.")}
    if conversion.arch.head_optional and not head & set(tensors):
        conversion.headless = True
        optional |= head
    check_tensors(tensors, {name: s for name, s in shapes.items() if name not in optional or name in tensors}, weights)
    for second, first in pairing.copies.items():
        if second in tensors and not np.array_equal(tensors[second], tensors[first]):
            raise UserError(f"{weights}: '{second}' is a second name of '{first}' and holds other values")
    network.load(tensors)
    return set(tensors)


def check_tensors(tensors: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], where: Path) -> None:
    """Raises UserError unless the tensors are exactly those wanted, in float32 and finite."""
    missing, extra = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing or extra:
        raise UserError(
            f"{where}: does not fit the network: {len(missing)} of {len(shapes)} tensors are missing "
            f"({few(missing)}), {len(extra)} are not known ({few(extra)})"
        )
    for name, shape in shapes.items():
        value = tensors[name]
        if value.shape != shape:
            raise UserError(f"{where}: '{name}' is {value.shape}, the network has {shape}")
        if name.endswith("num_batches_tracked"):
            continue
        if value.dtype != np.float32:
            raise UserError(f"{where}: '{name}' is {value.dtype}: convert the weights to float32 first")
        if not np.isfinite(value).all():
            raise UserError(f"{where}: '{name}' holds values that are not finite: the weights are broken")


def read_paddle_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads a Paddle network's weights: a plain state dict, or the network out of a checkpoint of a project's train.py.

    Raises:
        UserError: See `read_weights`.
    """
    tensors = read_weights(path)
    trained = {name.removeprefix(TRAINING_PREFIX): v for name, v in tensors.items() if name.startswith(TRAINING_PREFIX)}
    return trained or tensors


def peak_memory_mib() -> int | None:
    """The largest resident size of this process so far, None where the system does not say.

    Unlike the one of `resource`, a child does not inherit it from its parent.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def three_digits(value: float) -> float:
    """Returns a value as reports give it."""
    return float(f"{value:.2e}")


def _choose_source(arch: Arch, tensors: dict[str, np.ndarray] | None, name: str | None) -> Source:
    names = [source.name for source in arch.sources]
    if name is not None and name not in names:
        raise UserError(f"--source '{name}' is none of {arch.name}'s: {did_you_mean(name, names)}")
    if name is not None:
        return arch.sources[names.index(name)]
    if tensors is None or len(names) == 1:
        return arch.sources[0]

    def strangers(source: Source) -> int:
        with torch.device("meta"):  # names only, no memory
            return len(set(source.build(arch.num_classes).shapes()) ^ set(tensors))

    return min(arch.sources, key=strangers)


def _count_classes(name_map: NameMap, tensors: dict[str, np.ndarray], paddle_side: bool) -> int | None:
    """Rows of the classifier's weight; None where there is none, which the check of names reports."""
    layer = name_map.rename_layer(name_map.classifier) if paddle_side else name_map.classifier
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.ndim not in (2, 4):
        return None
    is_paddle_linear = paddle_side and weight.ndim == 2
    return weight.shape[1] if is_paddle_linear else weight.shape[0]
