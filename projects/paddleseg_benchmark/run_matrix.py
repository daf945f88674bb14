"""Measures a matrix of cells, each in a process of its own.

    python run_matrix.py --preset zoo
    python run_matrix.py --preset cpu --models fastscnn --rounds 5 --steps 10 --output output/fastscnn
    python run_matrix.py --preset cpu --peer-python PEER/bin/python     # with mmsegmentation

The presets:
    zoo   every network of the zoo once: builds, trains, evaluates; parameters beside the reference
    cpu   five networks and their peers at 128x256: layouts, graphs, batch sizes, loader; each cell that cannot run: why
    gpu   the same and more at 512x1024, with mixed precision (bash run_gpu.sh)

The cells take turns, round by round, so that a slow hour of the machine affects all of them; a cell's numbers are
medians over the rounds. A cell that crashes, is killed or takes too long becomes "failed: why", and the others are
still measured. Finished cells are kept in OUTPUT/rounds: the same command resumes where it stopped. To repeat a cell,
delete its files there.

Writes OUTPUT/matrix.csv and OUTPUT/env.json; `report.py OUTPUT` draws them.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.cli import CommandParser, UserError, did_you_mean, positive, run_command
from common.machine.cpu import physical_cores
from common.runs.environment import environment
from paddleseg_benchmark import doctor
from paddleseg_benchmark.matrix import peers
from paddleseg_benchmark.matrix.cells import cell_command, preset_cells, refusal
from paddleseg_benchmark.matrix.measure import WARMUP_STEPS, Cell
from paddleseg_benchmark.matrix.rounds import Result, locked, run_matrix, start_or_continue
from paddleseg_benchmark.matrix.rows import matrix_row, write_matrix
from paddleseg_benchmark.zoo import zoo

PACKAGES = (
    *("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "numpy", "torch", "torchvision", "timm"),
    "segmentation_models_pytorch",
)


def main() -> None:
    """Runs the command."""
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
    output_help = "folder of the matrix, resumed if it was begun (default: output/matrix_<preset>)"
    add("--output", type=Path, metavar="DIR", help=output_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
