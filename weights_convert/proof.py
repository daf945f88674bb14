"""The proof that two networks compute the same: stage by stage on random and real images of three sizes, one odd.

A difference is max|a - b| / max|a| of an output, in evaluation mode, in float32, on the CPU. The stages are those of
the family's name map. Besides, every layer that holds a tensor must have run, and is compared on the smallest input:
where a stage departs, this names the layer in which it began.
"""

from __future__ import annotations

import dataclasses
import re

from common.cli import UserError
from weights_convert.images import normalised
from weights_convert.name_map import NameMap, Pairing
from weights_convert.networks import OUTPUT, Network, Outputs

import numpy as np

LIMIT = 1e-5
EVEN_SIZES = ((224, 224), (128, 192))
MIN_AGREEMENT_PERCENT = 99.99


@dataclasses.dataclass(frozen=True)
class ProofInput:
    """Images (B, 3, H, W), float32, normalised, and what they are called in the table."""

    name: str
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer or stage: its difference on each input, in the inputs' order."""

    name: str
    differences: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest of them."""
        return max(self.differences)

    @property
    def departs(self) -> bool:
        """Beyond the limit; NaN is."""
        return not self.largest <= LIMIT


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was compared and how it came out.

    Attributes:
        inputs: Names of the inputs of `stages`.
        stages: In the order in which the source network runs them; the last row is the whole network's output.
        layers: Every layer that holds a tensor, on the last of the inputs.
        agreement_percent: Share of images (or of pixels) with the same highest class.
    """

    inputs: tuple[str, ...]
    stages: tuple[Row, ...]
    layers: tuple[Row, ...]
    agreement_percent: float

    @property
    def largest(self) -> float:
        """The largest difference of a stage."""
        return max(row.largest for row in self.stages)

    def require(self, what: str) -> None:
        """Raises UserError, naming the first stage and the first layer that depart, unless the networks agree."""
        stage = next((row for row in self.stages if row.departs), None)
        if stage is not None:
            layer = next((row for row in self.layers if row.departs), None)
            cause = f"first in layer '{layer.name}' by {layer.largest:.1e}" if layer else "no layer with tensors alone"
            raise UserError(
                f"{what}: not the same network: stage '{stage.name}' departs by {stage.largest:.1e}, {cause} "
                f"(limit {LIMIT:g}); nothing was written"
            )
        if not self.agreement_percent >= MIN_AGREEMENT_PERCENT:
            raise UserError(
                f"{what}: the highest class agrees on {self.agreement_percent:.3f} % only "
                f"(limit {MIN_AGREEMENT_PERCENT} %); nothing was written"
            )


def proof_inputs(
    image: np.ndarray, odd_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> list[ProofInput]:
    """Returns a pair of random images and the image at each of `EVEN_SIZES` and at `odd_size`, the smallest last.

    Args:
        image: uint8 (H, W, 3), RGB.
        odd_size: (height, width), both odd; the smallest of the sizes.
        mean: Of RGB images scaled to 0..1.
        std: Likewise.
    """
    rng = np.random.default_rng(0)
    inputs = []
    for size in (*EVEN_SIZES, odd_size):
        name = f"{size[0]}x{size[1]}"
        inputs.append(ProofInput(f"{name} random", rng.standard_normal((2, 3, *size), dtype=np.float32)))
        inputs.append(ProofInput(f"{name} image", normalised(image, size, mean, std)))
    return inputs


def prove(source: Network, target: Network, name_map: NameMap, pairing: Pairing, inputs: list[ProofInput]) -> Proof:
    """Compares two networks that were given the same weights.

    Raises:
        UserError: A stage or a layer that only one of the networks has or runs.
    """
    layers = _compare(source, target, _layers_with_tensors(source, name_map, pairing), inputs[-1].images)
    stages, known = {}, set(target.layers())
    for name in source.layers():
        if any(re.fullmatch(pattern, name) for pattern in name_map.stages):
            stages[name] = (name, name_map.rename_layer(name))
            if stages[name][1] not in known:
                raise UserError(f"stage '{name}' would be '{stages[name][1]}', which is no layer of the Paddle network")
    columns, agreeing, counted = [], 0, 0
    for item in inputs:
        theirs, ours = _run_both(source, target, stages, item.images)
        columns.append({name: difference(ours[name], theirs[name]) for name in theirs})
        same = theirs[OUTPUT][0].argmax(axis=1) == ours[OUTPUT][0].argmax(axis=1)  # (B,) or (B, H, W)
        agreeing, counted = agreeing + int(same.sum()), counted + same.size
    rows = tuple(Row(name, tuple(column[name] for column in columns)) for name in columns[0])
    agreement = 100 * agreeing / counted
    return Proof(tuple(item.name for item in inputs), rows, layers, agreement)


def print_table(proof: Proof) -> None:
    """Prints a line per stage, with its difference on each input."""
    width = max(len(row.name) for row in proof.stages) + 2
    sizes, kinds = zip(*(name.split() for name in proof.inputs), strict=True)
    print(" " * width + "".join(f"{size:>10}" for size in sizes))
    print(f"{'stage':<{width}}" + "".join(f"{kind:>10}" for kind in kinds))
    for row in proof.stages:
        cells = "".join(f"{value:>10.1e}" for value in row.differences)
        print(f"{row.name:<{width}}{cells}{'  departs' if row.departs else ''}")
    worst = max(proof.layers, key=lambda row: row.largest)
    print(f"{len(proof.layers)} layers one by one ({proof.inputs[-1]}): at most {worst.largest:.1e} ({worst.name})")
    print(f"highest class the same: {proof.agreement_percent:.3f} %")


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest max|a - b| / max|a| over a layer's outputs; infinite where shapes differ or values are not finite.

    Args:
        ours: Outputs of the Paddle network, flat.
        theirs: Of the other, the scale; the same number and shapes.
    """
    if len(ours) != len(theirs):
        return float("inf")
    largest = 0.0
    for a, b in zip(theirs, ours, strict=True):
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        departure, scale = float(np.abs(a - b).max()), float(np.abs(a).max())
        if departure > 0:
            largest = max(largest, departure / scale if scale > 0 else float("inf"))
    return largest


def _compare(
    source: Network, target: Network, layers: dict[str, tuple[str, str]], images: np.ndarray
) -> tuple[Row, ...]:
    theirs, ours = _run_both(source, target, layers, images)
    return tuple(Row(name, (difference(ours[name], theirs[name]),)) for name in theirs if name != OUTPUT)


def _run_both(
    source: Network, target: Network, layers: dict[str, tuple[str, str]], images: np.ndarray
) -> tuple[Outputs, Outputs]:
    """Outputs of both networks by the source's names, in the source's order.

    Raises:
        UserError: A layer that only one of the networks runs.
    """
    found = source.run(images, [there for there, _ in layers.values()])
    names = {there: name for name, (there, _) in layers.items()} | {OUTPUT: OUTPUT}
    theirs = {names[there]: value for there, value in found.items()}
    ours = target.run(images, [here for _, here in layers.values()])
    ours = {name: ours[here] for name, (_, here) in layers.items() if here in ours} | {OUTPUT: ours[OUTPUT]}
    lonely = sorted(set(theirs) ^ set(ours))
    idle = sorted(set(layers) - set(theirs))
    if lonely or idle:
        raise UserError(
            f"layer '{(lonely or idle)[0]}' is run by {'one of the networks only' if lonely else 'neither network'}: "
            f"its tensors cannot be proven; list it in the name map's `unused`, or compare another output"
        )
    return theirs, ours


def _layers_with_tensors(source: Network, name_map: NameMap, pairing: Pairing) -> dict[str, tuple[str, str]]:
    """Name -> where to watch it in the source and in the Paddle network."""
    layers = {}
    for pair in pairing.pairs:
        name = pair.source.rpartition(".")[0]
        layers[name] = (source.watch_point(name), pair.target.rpartition(".")[0])
    return layers
