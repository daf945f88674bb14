"""Turns PyTorch networks and weights into Paddle, and leaves a file only if both networks compute the same.

Any network, as readable code (OUT.py) with its weights:

    python weights_convert/torch2paddle.py --module timm:convnext_atto --out convnext_atto
    python weights_convert/torch2paddle.py --module torchvision:deeplabv3_resnet50 --weights FILE --out deeplabv3
    python weights_convert/torch2paddle.py --module smp:Unet:resnet34:classes=5 --out unet --onnx
    python weights_convert/torch2paddle.py --module mine.py:build_network --size 128x256 --weights FILE --out mine
    python weights_convert/torch2paddle.py --module timm:resnet26d --features --out backbone      # a list of features
    python weights_convert/torch2paddle.py --coverage timm --report DIR                           # what it reaches

Weights of this repository's own networks:

    python weights_convert/torch2paddle.py                                       # lists what can be converted
    python weights_convert/torch2paddle.py --arch resnet50 --weights resnet50.pth --out resnet50.pdparams
    python weights_convert/torch2paddle.py --arch resnet50 --weights random      # proof alone, nothing is written
    python weights_convert/torch2paddle.py --arch resnet50 --weights resnet50.pth --check ported_elsewhere.pdparams
    python weights_convert/torch2paddle.py --all --weights random --onnx         # the proof of everything in the list

Reads .pth .pt .tar .bin .ckpt .safetensors .npz (and .pdparams of paddleseg), never executing anything in them. Writes
.pdparams or .safetensors, or both if --out has no suffix; beside it a card (.card.yaml), and in .left_out.safetensors
what Paddle has no place for and paddle2torch.py puts back.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, run_command
from common.progress import Progress
from weights_convert.archs import Arch, all_archs, find_arch
from weights_convert.conversion import (
    Conversion,
    Options,
    check_tensors,
    fill_source,
    read_paddle_weights,
    start,
    summary_line,
)
from weights_convert.output import PADDLE_SUFFIXES, require_out, start_report, write_proven, write_report
from weights_convert.weight_files import read_weight_file

import numpy as np

RANDOM = "random"


def convert(
    arch: Arch, weights: Path | None, out: Path | None, options: Options, licence: str | None = None
) -> tuple[Conversion, list[Path]]:
    """Converts a weight file, or random weights, and proves it.

    Args:
        arch: What the file holds.
        weights: The file; None for random weights.
        out: Where to; None for the proof alone.
        options: See there.
        licence: Of the weights, for the card.

    Returns:
        The conversion with its proof, and the files written.

    Raises:
        UserError: The file cannot be used, or the networks differ; then nothing is written.
    """
    if out is not None:
        require_out(out, PADDLE_SUFFIXES, weights)
    file = read_weight_file(weights, options.ema) if weights else None
    tensors = file.tensors if file else None
    conversion = start(arch, tensors, paddle_side=False, options=options)
    conversion.notes = file.notes if file else ()
    present = fill_source(conversion, tensors, weights)
    if conversion.headless:
        conversion.notes += ("no classifier: the proof has a random one, which is not written",)
    for note in conversion.notes:
        print(f"{weights}: {note}")
    del file, tensors  # the source network holds them
    stored = conversion.source_network.tensors()
    converted = conversion.pairing.to_paddle(stored)
    conversion.target_network.load(converted)
    conversion.prove_and_print(options.onnx)
    if out is None:
        return conversion, []
    head = conversion.head_tensors()
    converted = {name: value for name, value in converted.items() if name not in head.values()}
    left_out = conversion.pairing.remainder({name: stored[name] for name in stored if name in present | head.keys()})
    return conversion, write_proven(conversion, out, converted, left_out, weights, licence)


def check(arch: Arch, weights: Path, paddle_file: Path, options: Options) -> Conversion:
    """Proves that a Paddle file, wherever it comes from, is these PyTorch weights.

    Raises:
        UserError: A file cannot be used, or the networks differ; the first tensor that does is named.
    """
    tensors = read_weight_file(weights, options.ema).tensors
    conversion = start(arch, tensors, paddle_side=False, options=options)
    fill_source(conversion, tensors, weights)
    ported = read_paddle_weights(paddle_file)
    check_tensors(ported, conversion.target_network.shapes(), paddle_file)
    conversion.target_network.load(ported)
    try:
        conversion.prove_and_print(options.onnx)
    except UserError as error:
        expected = conversion.pairing.to_paddle(conversion.source_network.tensors())
        wrong = [
            pair for pair in conversion.pairing.pairs if not np.array_equal(ported[pair.target], expected[pair.target])
        ]
        first = f"'{wrong[0].target}' is not '{wrong[0].source}'" if wrong else "yet every tensor is the right one"
        raise UserError(f"{paddle_file}: {error}; {len(wrong)} tensors differ: {first}") from None
    return conversion


def print_list() -> None:
    """Prints a line for each architecture and source."""
    print(f"{'--arch':<22}{'--source':<13}{'from':<50}to")
    for arch in all_archs():
        for source in arch.sources:
            print(f"{arch.name:<22}{source.name:<13}{source.title:<50}{arch.target}")


def prove_all(options: Options, report: Path | None, archs: Sequence[Arch]) -> int:
    """Proves architectures with every source and random weights, each in a process of its own.

    Args:
        options: See there; `source` is each in turn.
        report: Folder for a table of what was measured; a row more after each network.
        archs: Which.

    Returns:
        The exit status: 1 if any failed.
    """
    if report is not None:
        start_report(report)
    rows = []
    networks = [(arch, source) for arch in archs for source in arch.sources]
    with Progress(len(networks), "prove", "network") as bar:
        for arch, source in networks:
            try:
                chosen = dataclasses.replace(options, source=source.name)
                row = in_own_process(_prove_random, arch.name, chosen) | {"failure": None}
                bar.print(summary_line(row))
            except UserError as error:
                row = {"arch": arch.name, "source": source.name, "failure": str(error)}
                bar.print(f"{arch.name:<21}{source.name:<13}FAILED: {error}")
            rows.append(row)
            if report is not None:
                write_report(report, rows)
            bar.update()
    failed = sum(row["failure"] is not None for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} proven")
    return 1 if failed else 0


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """Returns the function's result, worked out in a new process, whose memory goes with it.

    Raises:
        UserError: The function's own, or the process was ended.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise UserError("its process ended before it was done: is there enough memory?") from None


def _prove_random(name: str, options: Options) -> dict[str, Any]:
    """The row of one network; whatever goes wrong is a UserError, so that the next one has its turn."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            conversion, _ = convert(find_arch(name), None, None, options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    return conversion.report_row()


def main() -> int:
    """The command."""
    args = _parse_args()
    if not any(vars(args).values()):
        print_list()
        return 0
    if args.module or args.coverage:
        return _module(args)
    if args.features or args.size:
        raise UserError("--features and --size go with --module")
    if args.all:
        if args.source or args.mean or args.std or args.weights != RANDOM or args.out or args.check:
            raise UserError(
                "--all goes with --weights random, and besides with --arch, --onnx, --image and --report alone"
            )
        archs = all_archs() if args.arch is None else [find_arch(args.arch)]
        return prove_all(Options(image=args.image, onnx=args.onnx), args.report, archs)
    if args.report:
        raise UserError("--report is the table of --all or of --coverage: --all --weights random --report DIR")
    if args.arch is None:
        raise UserError("say what the weights are of: --arch NAME (without any word, the command lists the names)")
    if args.weights is None:
        raise UserError(f"--arch {args.arch} needs --weights FILE, or --weights random")
    arch = find_arch(args.arch)
    options = Options(args.source, args.image, _triple(args.mean), _triple(args.std), args.onnx, args.ema)
    weights = None if args.weights == RANDOM else Path(args.weights)
    if args.check:
        if weights is None or args.out:
            raise UserError("--check compares two files: give --weights FILE, and no --out")
        print(check(arch, weights, args.check, options).summary())
        return 0
    conversion, written = convert(arch, weights, args.out, options, args.licence)
    if written:
        print("written: " + ", ".join(str(path) for path in written))
    print(conversion.summary())
    return 0


def _module(args: argparse.Namespace) -> int:
    """--module and --coverage."""
    from weights_convert.graph.command import Wanted, convert_module, read_size

    if args.arch or args.source or args.all or args.check or args.ema or (args.module and args.report):
        raise UserError(
            "--module goes with --weights, --out, --features, --size, --onnx, --image, --mean, --std, --licence"
        )
    if args.coverage:
        from weights_convert.graph.coverage import cover

        if args.module or args.weights or args.out or args.features or args.size or args.onnx:
            raise UserError("--coverage goes with --report alone")
        return cover(args.coverage, args.report)
    wanted = Wanted(
        module=args.module,
        weights=None if args.weights in (None, RANDOM) else Path(args.weights),
        out=args.out,
        features=args.features,
        size=read_size(args.size) if args.size else None,
        image=args.image,
        mean=_triple(args.mean),
        std=_triple(args.std),
        onnx=args.onnx,
        licence=args.licence,
    )
    converted, written = convert_module(wanted)
    if written:
        print("written: " + ", ".join(str(path) for path in written))
    print(converted.summary())
    return 0


def _triple(values: list[float] | None) -> tuple[float, ...] | None:
    return tuple(values) if values else None


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    network = parser.add_argument_group("any network")
    network.add_argument("--module", metavar="NETWORK", help="timm:NAME, torchvision:NAME, smp:... (default: none)")
    network.add_argument("--features", action="store_true", help="as a backbone: a list of features")
    network.add_argument("--size", metavar="HxW", help="images to trace with (default: the network's own size)")
    lists = ("timm", "torchvision", "smp")
    network.add_argument("--coverage", choices=lists, help="try a whole library (default: one network)")
    weights = parser.add_argument_group("weights")
    weights.add_argument("--arch", metavar="NAME", help="what the weights are of (default: none, prints the list)")
    weights.add_argument(
        "--weights",
        metavar="FILE",
        help="PyTorch weights, or the word random (no default with --arch; random with --module)",
    )
    weights.add_argument("--source", metavar="NAME", help="whose names the weights have (default: recognised)")
    ema_help = "take the averaged weights of a checkpoint that has both (default: the others)"
    weights.add_argument("--ema", action="store_true", help=ema_help)
    for name in ("mean", "std"):
        text = f"{name} of the weights' images, scaled to 0..1 (default: the published weights')"
        weights.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=text)
    proof = parser.add_argument_group("proof")
    proof.add_argument("--all", action="store_true", help="prove everything in the list, or every source of --arch")
    proof.add_argument("--onnx", action="store_true", help="ask ONNX Runtime as a third witness")
    proof.add_argument("--image", type=Path, metavar="FILE", help="its real image (default: one of data/camvid)")
    proof.add_argument("--check", type=Path, metavar="FILE", help="a Paddle file to prove (default: one is written)")
    output = parser.add_argument_group("output")
    suffixes = ".pdparams, .safetensors, or a name for both (default: no file, the proof alone)"
    output.add_argument("--out", type=Path, metavar="FILE", help=suffixes)
    report = "with --all, --coverage: table and env.json go there (default: printed only)"
    output.add_argument("--report", type=Path, metavar="DIR", help=report)
    output.add_argument("--licence", metavar="TEXT", help="of the weights, for the card (default: not known)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
