"""Measures a matrix of cells, each in a process of its own.

    python run_matrix.py --preset zoo
    python run_matrix.py --preset cpu --models fastscnn --rounds 5 --steps 10 --output output/fastscnn
    python run_matrix.py --preset cpu --peer-python PEER/bin/python     # with mmsegmentation

The presets:
    zoo   every network of the zoo once: builds, trains, evaluates; parameters beside the reference
    cpu   five networks and their peers at 128x256: layouts, graphs, batch sizes, loader; what a CPU cannot is said
    gpu   the same and more at 512x1024, with mixed precision (bash run_gpu.sh)

The cells take turns, round by round, so that a slow hour of the machine meets all alike; a cell's numbers are medians
over the rounds. A cell that crashes, is killed or takes too long becomes "failed: why", and the rest goes on. What is
finished is kept in OUTPUT/rounds: the same command goes on where it stopped. To repeat a cell, delete its files there.

Writes OUTPUT/matrix.csv and OUTPUT/env.json; `report.py OUTPUT` draws them.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, did_you_mean, positive, run_command
from common.files import atomic_write
from common.machine.cpu import physical_cores
from common.progress import Progress
from common.runs.environment import environment
from paddleseg_benchmark import doctor, peers, step, zoo
from paddleseg_benchmark.measure import LIBRARIES, WARMUP_STEPS, Cell
from paddleseg_benchmark.report import COLUMNS

PACKAGES = (
    *("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "numpy", "torch", "torchvision", "timm"),
    "segmentation_models_pytorch",
)
PEER_MODELS = ("deeplabv3p_resnet50", "deeplabv3_resnet50", "pspnet_resnet50", "fcn_hrnet_w18", "fastscnn")
ROOT = Path(__file__).resolve().parents[2]
# What has to be the same for two rounds to belong to one matrix.
IDENTITY = ("preset", "commit", "commit_changed", "packages", "peer_packages", "cpu", "device", "threads", "steps")

Result = dict[str, Any]


def run_matrix(
    cells: Sequence[Cell],
    folder: Path,
    rounds: int,
    time_limit_s: float,
    command: Callable[[Cell, Path], Sequence[str]],
    refuse: Callable[[Cell], str | None],
    finish_round: Callable[[Mapping[Cell, Sequence[Result]]], None],
) -> dict[Cell, list[Result]]:
    """Measures every cell once per round, the cells in turn; what `folder` holds already is taken from there.

    Args:
        cells: In the order of their turns.
        folder: Where each finished cell-round is a file.
        rounds: How many.
        time_limit_s: For one cell in one round.
        command: The command that measures a cell and writes its result into a file.
        refuse: Why a cell cannot be measured here; such a cell is not started. None where it can.
        finish_round: Called with the results so far after each round.

    Returns:
        The results by round of each cell; a cell that failed or was refused has that as its last one.

    Raises:
        UserError: The disk is full.
    """
    results = {cell: [] for cell in cells}
    for cell in cells:
        if why := refuse(cell):
            results[cell].append({"status": why})
    with Progress(rounds * len(cells), "matrix", "cell") as bar:
        for turn in range(1, rounds + 1):
            for cell in cells:
                bar.show(round=str(turn), cell=str(cell))
                if all(result["status"] == "ok" for result in results[cell]):
                    results[cell].append(_cell_round(cell, turn, folder, time_limit_s, command))
                bar.update()
            finish_round(results)
    return results


def _cell_round(cell: Cell, turn: int, folder: Path, time_limit_s: float, command: Callable) -> Result:
    """The result in the cell-round's file, measured now if there is none."""
    path = folder / f"{cell.key}.r{turn}.json"
    if not path.exists():
        log = path.with_suffix(".log")
        status = run_process(command(cell, path), log, time_limit_s)
        if "no space left on the device" in status:  # says nothing about the cell
            raise UserError(status.removeprefix("failed: "))
        if status == "ok" and path.exists():
            log.unlink()
        else:
            why = "failed: the process ended well but left no result" if status == "ok" else status
            with atomic_write(path) as stream:
                json.dump({"status": why}, stream)
    result = json.loads(path.read_text(encoding="utf-8"))
    return {"status": "ok"} | result


def run_process(command: Sequence[str], log: Path, time_limit_s: float) -> str:
    """Runs a command to its end, its output into `log`, and returns "ok" or "failed: why".

    At the time limit, or when this process is stopped, it is killed with all its children.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        # close_fds=False: the process holds the folder's lock too, see `locked`.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,
        )
        try:
            code = process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            return f"failed: not finished after {time_limit_s:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code == 0:
        return "ok"
    if code < 0:
        name = signal.Signals(-code).name
        return f"failed: killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"failed: {_last_line(log) or f'exit status {code}, no message'}"


def _last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return last.removeprefix("error: ")


def zoo_cells() -> list[Cell]:
    """Every network once, and what else the zoo promises: DeepLabv3+ in NHWC, it and HRNet-W18 in static graph."""
    cells = [Cell("paddleseg", row.name) for row in zoo.ROWS]
    deeplab, hrnet = Cell("paddleseg", "deeplabv3p_resnet50"), Cell("paddleseg", "fcn_hrnet_w18")
    return [*cells, deeplab._replace(layout="NHWC"), deeplab._replace(graph="static"), hrnet._replace(graph="static")]


def matrix_cells(models: Sequence[str], size: tuple[int, int], batches: Sequence[int]) -> list[Cell]:
    """Networks x precision x layout x graph at the first batch size; further batch sizes, the loader; then the peers.

    Other batch sizes and the image files are measured in NCHW and dynamic graph, in fp32 and in O1.
    """
    cells = []
    for model in models:
        base = Cell("paddleseg", model, batch=batches[0], height=size[0], width=size[1])
        for graph, layout, precision in itertools.product(step.GRAPHS, step.LAYOUTS, step.PRECISIONS):
            cells.append(base._replace(precision=precision, layout=layout, graph=graph))
        for precision in ("fp32", "o1_fp16"):
            cells += [base._replace(precision=precision, batch=batch) for batch in batches[1:]]
            cells.append(base._replace(precision=precision, loader="toy"))
        if model in PEER_MODELS:
            cells += peer_cells(base)
    return cells


def peer_cells(base: Cell) -> list[Cell]:
    """The peers of a cell in every precision and layout; where a library lacks the network, one cell that says so."""
    cells = []
    for library in LIBRARIES[1:]:
        cell = base._replace(library=library)
        variants = itertools.product(step.LAYOUTS, peers.PRECISIONS)
        found = [cell._replace(layout=layout, precision=precision) for layout, precision in variants]
        cells += found if peers.has_network(library, base.model) else [cell]
    return cells


def preset_cells(preset: str) -> list[Cell]:
    """The cells of a preset."""
    if preset == "zoo":
        return zoo_cells()
    if preset == "cpu":
        return matrix_cells(PEER_MODELS, (128, 256), (2, 4))
    return matrix_cells((*PEER_MODELS, "bisenetv2", "ocrnet_hrnet_w18", "unet"), (512, 1024), (2, 4, 8))


def refusal(cell: Cell, device: str, has_mmseg: bool) -> str | None:
    """Why a cell cannot be measured here, in the words of matrix.csv; None where it can."""
    if cell.library == "paddleseg":
        return step.unsupported(device, cell.precision, cell.layout, cell.graph, cell.model)
    why = peers.unsupported(cell.library, cell.model, cell.precision, cell.graph, device)
    return "not installed here" if why is None and cell.library == "mmseg" and not has_mmseg else why


def cell_command(cell: Cell, out: Path, steps: int, peer_python: str | None) -> list[str]:
    """The command that measures a cell, in the interpreter of its library."""
    python = peer_python if cell.library == "mmseg" else sys.executable
    sources = f"{ROOT}{os.pathsep}{ROOT / 'projects'}"  # an interpreter of its own does not have this repository
    words = ["env", f"PYTHONPATH={sources}", python, str(Path(__file__).with_name("measure.py"))]
    for name, value in zip(Cell._fields, cell, strict=True):
        if name not in ("batch", "height", "width"):
            words += [f"--{name}", value]
    size = ["--batch-size", str(cell.batch), "--size", str(cell.height), str(cell.width)]
    return [*words, *size, "--steps", str(steps), "--out", str(out)]


def matrix_row(cell: Cell, results: Sequence[Result], reference_parameters: int | None) -> dict[str, Any]:
    """The cell as a row of matrix.csv. Only a cell whose rounds all went well has numbers.

    A step counts from asking for the batch to the finished update. Its time is the median over the rounds of each
    round's median step; minimum and maximum are over all steps. Losses, scales, skipped steps: of the first round.
    """
    keys = ("library", "model", "precision", "layout", "graph", "batch", "height_px", "width_px", "loader")
    row = dict(zip(keys, cell, strict=True)) | {"reference_parameters": reference_parameters}
    if not results:
        return row | {"status": "not run"}
    status = results[-1]["status"]
    if status != "ok":
        return row | {"status": f"{status} (round {len(results)})" if len(results) > 1 else status}
    rounds = [[a + b for a, b in zip(r["load_ms"], r["step_ms"], strict=True)] for r in results]
    steps = [value for values in rounds for value in values]
    median = statistics.median(statistics.median(values) for values in rounds)
    first = results[0]
    return row | {
        "status": "ok",
        "rounds": len(results),
        "step_ms": f"{median:.2f}",
        "step_ms_min": f"{min(steps):.2f}",
        "step_ms_max": f"{max(steps):.2f}",
        "images_per_s": f"{1000 * cell.batch / median:.3f}",
        "images_per_s_min": f"{1000 * cell.batch / max(steps):.3f}",
        "images_per_s_max": f"{1000 * cell.batch / min(steps):.3f}",
        "loader_percent": f"{100 * sum(sum(r['load_ms']) for r in results) / sum(steps):.2f}",
        "peak_memory_gib": f"{max(r['peak_memory_gib'] for r in results):.3f}",
        "memory_at_start_gib": f"{statistics.median(r['memory_at_start_gib'] for r in results):.3f}",
        "memory_kind": first["memory_kind"],
        "parameters": first["parameters"],
        "steps": len(first["losses"]),
        "loss_first": _loss(first["losses"][0]),
        "loss_last": _loss(first["losses"][-1]),
        "nan_count": first["losses"].count(None),
        "skipped_steps": first["skipped_steps"],
        "loss_scales": " ".join(
            f"{scale:g}" for scale, _ in itertools.groupby(first["loss_scales"]) if scale is not None
        ),
        "evaluation_ms": f"{statistics.median(r['evaluation_ms'] for r in results):.2f}",
        "evaluation_miou_percent": f"{first['evaluation_miou_percent']:.4f}",
    }


def _loss(value: float | None) -> str:
    return "nan" if value is None else f"{value:.6f}"


def write_matrix(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes matrix.csv."""
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def start_or_continue(folder: Path, env: Mapping[str, Any]) -> None:
    """Writes env.json into a new folder; in one that was begun, checks that the same is being measured.

    Raises:
        UserError: It was begun with another commit, machine, version or setting.
    """
    path = folder / "env.json"
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in IDENTITY if begun.get(name) != env[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{folder} was begun with {name} {begun.get(name)}, now it is {env[name]}: give another --output"
            )
        return
    with atomic_write(path) as stream:
        json.dump(env, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until nobody else measures into the folder.

    The lock is inherited by the processes that measure: where this one is killed, the cell that it leaves behind runs
    to its end, and the next start waits for it, as two cells at a time would disturb each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as stream:
        os.set_inheritable(stream.fileno(), True)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process still measures into {folder}", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main() -> None:
    """The command."""
    args = _parse_args()
    device = doctor.device_kind()
    if args.preset == "gpu" and device == "cpu":
        raise UserError("preset gpu: Paddle sees no GPU here: python doctor.py says what it sees")
    cells = preset_cells(args.preset)
    known = list(dict.fromkeys(cell.model for cell in cells))
    for name in args.models:
        if name not in known:
            raise UserError(f"--models: preset {args.preset} has no '{name}': {did_you_mean(name, known)}")
    cells = [cell for cell in cells if not args.models or cell.model in args.models]
    folder = args.output or Path("output") / f"matrix_{args.preset}"
    rounds = args.rounds or (1 if args.preset == "zoo" else 3)
    mmseg = peers.mmseg_packages(args.peer_python)
    if args.peer_python and mmseg is None:
        raise UserError(
            f"--peer-python {args.peer_python}: no mmsegmentation there: README.md says how it is installed"
        )
    env = environment(
        PACKAGES,
        project="paddleseg_benchmark",
        preset=args.preset,
        device=doctor.device_name(),
        physical_cores=physical_cores(),
        load_average_before=os.getloadavg(),
        peer_packages=mmseg,
        warmup_steps=WARMUP_STEPS,
        steps=args.steps,
        time_limit_s=args.time_limit,
    )
    references = {row.name: row.reference_params for row in zoo.ROWS}

    def write(results: Mapping[Cell, Sequence[Result]]) -> None:
        reference = {cell: references[cell.model] if cell.library == "paddleseg" else None for cell in results}
        write_matrix(folder / "matrix.csv", [matrix_row(cell, results[cell], reference[cell]) for cell in results])

    with locked(folder):
        start_or_continue(folder, env)
        results = run_matrix(
            cells,
            folder / "rounds",
            rounds,
            args.time_limit,
            command=lambda cell, out: cell_command(cell, out, args.steps, args.peer_python),
            refuse=lambda cell: refusal(cell, device, mmseg is not None),
            finish_round=write,
        )
    outcomes = Counter(result[-1]["status"].split(":")[0] for result in results.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    print(f"written: {folder}/matrix.csv, env.json; table and images: python report.py {folder}")


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("what is measured").add_argument
    add("--preset", choices=("zoo", "cpu", "gpu"), required=True, help="which cells, see above")
    add("--models", nargs="+", default=[], metavar="NAME", help="networks of the preset (default: all)")
    add("--rounds", type=positive, metavar="N", help="turns of every cell (default: 1 for zoo, else 3)")
    add("--steps", type=positive, metavar="N", default=3, help="timed updates of a cell in a round (default: 3)")
    time_help = "seconds that a cell may take in a round (default: 600)"
    add("--time-limit", type=positive, metavar="S", default=600, help=time_help)
    peer_help = "an interpreter that has mmsegmentation (default: none, its cells say so)"
    add("--peer-python", metavar="PATH", help=peer_help)
    add = parser.add_argument_group("data and output").add_argument
    output_help = "folder of the matrix, gone on with if it was begun (default: output/matrix_<preset>)"
    add("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
