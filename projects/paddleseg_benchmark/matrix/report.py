"""A measured matrix as a table and two images.

    python report.py                       # the newest matrix in results/benchmarks/paddleseg_benchmark
    python report.py output/matrix_cpu
    python report.py --readme              # the tables of README.md, from the newest recorded matrices

Reads DIR/matrix.csv and DIR/env.json as run_matrix.py writes them, and writes report.md, speedup.png and memory.png
beside them.

A speed-up is images/s over those of the same network in paddleseg, fp32, NCHW, dynamic graph, synthetic images, at
the smallest batch size of the matrix. Cells without numbers are listed with their reason.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write

RESULTS = Path(__file__).resolve().parents[3] / "results" / "benchmarks" / "paddleseg_benchmark"
README = Path(__file__).resolve().parents[1] / "README.md"
COLUMNS = (
    *("library", "model", "precision", "layout", "graph", "batch", "height_px", "width_px", "loader", "status"),
    *("rounds", "step_ms", "step_ms_min", "step_ms_max", "images_per_s", "images_per_s_min", "images_per_s_max"),
    *("loader_percent", "peak_memory_gib", "memory_at_start_gib", "memory_kind", "parameters", "reference_parameters"),
    *("steps", "loss_first", "loss_last", "nan_count", "skipped_steps", "loss_scales"),
    *("evaluation_ms", "evaluation_miou_percent"),
)
HEADER = (
    *("network", "library", "precision", "layout", "graph", "batch", "input", "ms a step (min..max)", "images/s"),
    *("speed-up", "loader %", "memory GiB", "parameters", "reference", "loss first, last", "not finite", "skipped"),
    *("loss scales", "evaluation mIoU %"),
)
MARKERS = {"paddleseg": "o", "mmseg": "s", "smp": "^", "torchvision": "D", "timm": "v"}
MANY_MODELS = 10  # colours that can be told apart

# What the rows of measured cells, and env.json, must have for a report.
NUMBERS = (
    *("batch", "step_ms", "step_ms_min", "step_ms_max", "images_per_s", "loader_percent", "peak_memory_gib"),
    *("parameters", "evaluation_miou_percent"),
)
ENV_KEYS = (
    *("preset", "device", "cpu", "started_utc", "commit", "threads", "warmup_steps", "steps", "packages"),
    "peer_packages",
)

Row = Mapping[str, str]


def read_matrix(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows of matrix.csv, as strings, and env.json.

    Raises:
        UserError: A file is missing or damaged.
    """
    path = folder / "matrix.csv"
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a measured matrix: {Path(error.filename).name} is missing") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{folder}: matrix.csv or env.json is damaged ({error}): make it again") from None
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise UserError(f"{path}: no column '{missing[0]}': make it with run_matrix.py of this version")
    if not rows or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: no rows, or one with too few or too many cells")
    for number, row in enumerate(rows, start=2):
        wrong = [name for name in NUMBERS if not _fits(name, row[name])] if row["status"] == "ok" else []
        if row["library"] not in MARKERS or wrong:
            what = f"'{wrong[0]}' is not a finite number" if wrong else f"'{row['library']}' is not a known library"
            raise UserError(f"{path} line {number}: {what}: make the matrix again")
    if missing := [name for name in ENV_KEYS if not isinstance(env, dict) or name not in env]:
        raise UserError(f"{folder}/env.json: key '{missing[0]}' is missing: make the matrix again")
    return rows, env


def _fits(name: str, text: str) -> bool:
    """Whether a cell can be calculated with: a finite number, whole where things are counted, no speed of 0."""
    if name in ("batch", "parameters"):
        return text.isascii() and text.isdecimal()
    try:
        return 0 <= float(text) < math.inf and (name != "images_per_s" or float(text) > 0)
    except ValueError:
        return False


def speedup(row: Row, rows: Iterable[Row]) -> float | None:
    """How many times the images/s of the network's baseline; None where either has no number."""
    base = baseline(row["model"], rows)
    if base is None or row["status"] != "ok":
        return None
    return float(row["images_per_s"]) / float(base["images_per_s"])


def baseline(model: str, rows: Iterable[Row]) -> Row | None:
    """The network's row that speed-ups relate to; None if it was not measured."""
    wanted = {"library": "paddleseg", "model": model, "precision": "fp32", "layout": "NCHW", "graph": "dynamic"}
    wanted |= {"loader": "synthetic", "status": "ok"}
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return min(found, key=lambda row: int(row["batch"]), default=None)


def variant(row: Row) -> str:
    """Everything of a cell except its network, as text."""
    parts = [row["library"], row["precision"], row["layout"], row["graph"], f"batch {row['batch']}"]
    return " ".join(parts + ["from files"] * (row["loader"] != "synthetic"))


def markdown(rows: Sequence[Row], env: Mapping[str, Any]) -> str:
    """The report: how it was measured, the cells with numbers, the cells without."""
    sizes = ", ".join(sorted({f"{row['height_px']}x{row['width_px']}" for row in rows}))
    packages = env["packages"] | (env["peer_packages"] or {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    where = env["cpu"] if env["device"] == "cpu" else env["device"]
    on_gpu = any(row["memory_kind"] == "gpu" for row in rows)
    memory = "was allocated on the GPU" if on_gpu else "the process held, libraries included"
    return f"""\
# The matrix `{env["preset"]}` on {where}

Measured {env["started_utc"][:10]} at commit {env["commit"][:7]}, OMP_NUM_THREADS {env["threads"]}, images of {sizes}.
{versions}.

A cell is a process of its own. Per round: {env["warmup_steps"]} steps to warm up, {env["steps"]} timed, one evaluation;
the cells take turns. Milliseconds are the median over the rounds of each round's median step, with the fastest and the
slowest of all. Memory is the most that {memory}.
Losses are those of the first and of the last of {env["warmup_steps"] + env["steps"]} equal steps; they compare within a
library, as initial weights differ between libraries. A speed-up is images/s over those of paddleseg fp32 NCHW dynamic
with synthetic images at the smallest batch.

| {" | ".join(HEADER)} |
|{"---|" * len(HEADER)}
{_lines(f"| {' | '.join(_cells(row, rows))} |" for row in rows if row["status"] == "ok")}
{_lines(_without_numbers(rows))}"""


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    ratio = speedup(row, rows)
    return [
        *(row[name] for name in ("model", "library", "precision", "layout", "graph", "batch", "loader")),
        f"{float(row['step_ms']):.0f} ({float(row['step_ms_min']):.0f}..{float(row['step_ms_max']):.0f})",
        f"{float(row['images_per_s']):.2f}",
        "" if ratio is None else f"{ratio:.2f}x",
        f"{float(row['loader_percent']):.1f}",
        f"{float(row['peak_memory_gib']):.2f}",
        f"{int(row['parameters']):,}",
        f"{int(row['reference_parameters']):,}" if row["reference_parameters"] else "",
        f"{row['loss_first']}, {row['loss_last']}",
        row["nan_count"],
        row["skipped_steps"],
        row["loss_scales"],
        f"{float(row['evaluation_miou_percent']):.2f}",
    ]


def _without_numbers(rows: Sequence[Row]) -> list[str]:
    """One line per library and reason."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["status"] != "ok":
            groups.setdefault((row["library"], row["status"]), []).append(row)
    if not groups:
        return []
    lines = [
        "## Without numbers",
        "",
        "| library | why | cells | networks | precision | layout | graph |",
        "|---|---|---|---|---|---|---|",
    ]
    for (library, why), group in groups.items():
        names = ("model", "precision", "layout", "graph")
        values = (", ".join(dict.fromkeys(row[name] for row in group)) for name in names)
        lines.append(f"| {library} | {why.replace('|', '/')} | {len(group)} | {' | '.join(values)} |")
    return lines


def comparisons(rows: Sequence[Row]) -> dict[str, list[tuple[Row, float]]]:
    """Per network its cells with their speed-ups; a network with only one such cell has nothing to compare."""
    found: dict[str, list[tuple[Row, float]]] = {}
    for row in rows:
        if (ratio := speedup(row, rows)) is not None:
            found.setdefault(row["model"], []).append((row, ratio))
    return {model: cells for model, cells in found.items() if len(cells) > 1}


def draw_speedups(panels: Mapping[str, Sequence[tuple[Row, float]]], path: Path) -> None:
    """A panel per network, a bar per cell: paddleseg's blue, peers' orange."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    lengths = [len(bars) for bars in panels.values()]
    tallest = [max(lengths[start : start + columns]) for start in range(0, len(lengths), columns)]  # by line of panels
    height = sum(0.7 + 0.24 * bars for bars in tallest) + 0.5
    figure = Figure(figsize=(7.5 * columns, height), dpi=110, layout="constrained")
    figure.suptitle("images/s over those of paddleseg fp32 NCHW dynamic at the smallest batch")
    grid = figure.add_gridspec(len(tallest), columns, height_ratios=tallest)
    widest = max(ratio for bars in panels.values() for _, ratio in bars)
    for place, (model, bars) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        ratios = [ratio for _, ratio in bars]
        colors = ["tab:blue" if row["library"] == "paddleseg" else "tab:orange" for row, _ in bars]
        drawn = axes.barh([variant(row) for row, _ in bars], ratios, color=colors)
        axes.bar_label(drawn, [f"{ratio:.2f}x" for ratio in ratios], padding=3, fontsize=8)
        axes.axvline(1, color="0.3", linewidth=1, zorder=0)
        axes.set(title=model, xlim=(0, 1.15 * widest), ylim=(tallest[place // columns] - 0.4, -0.6))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png")


def draw_memory(rows: Sequence[Row], path: Path) -> None:
    """Peak memory against images/s, a point per cell; colours are networks, or numbers where they are many."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    measured = [row for row in rows if row["status"] == "ok"]
    models = list(dict.fromkeys(row["model"] for row in measured))
    many = len(models) > MANY_MODELS
    figure = Figure(figsize=(9, max(5.5, 0.19 * len(models))), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for row in measured:
        number = models.index(row["model"])
        point = (float(row["images_per_s"]), float(row["peak_memory_gib"]))
        axes.scatter(*point, marker=MARKERS[row["library"]], color="0.6" if many else f"C{number}", alpha=0.8)
        if many:
            axes.annotate(str(number + 1), point, textcoords="offset points", xytext=(4, 3), fontsize=7)
    colored = [Line2D([], [], marker="o", linestyle="", color=f"C{i}", label=name) for i, name in enumerate(models)]
    numbered = [Line2D([], [], linestyle="", label=f"{i} {name}") for i, name in enumerate(models, start=1)]
    libraries = [
        Line2D([], [], marker=MARKERS[name], linestyle="", color="0.3", label=name)
        for name in dict.fromkeys(row["library"] for row in measured)
    ]
    handles = numbered if many else colored
    figure.legend(handles=handles + libraries, loc="outside right upper", fontsize=7, frameon=False)
    axes.set(xlabel="images/s", ylabel="peak memory (GiB)", title="memory against speed", xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png")


def write_report(folder: Path) -> None:
    """Writes report.md, memory.png and, where there is something to compare, speedup.png into the matrix's folder.

    Raises:
        UserError: See `read_matrix`.
    """
    rows, env = read_matrix(folder)
    text = markdown(rows, env)
    if panels := comparisons(rows):
        draw_speedups(panels, folder / "speedup.png")
        text += "\n![speed-up by network](speedup.png)\n"
    draw_memory(rows, folder / "memory.png")
    with atomic_write(folder / "report.md") as stream:
        stream.write(text + "\n![memory against speed](memory.png)\n")


def newest(folder: Path) -> Path:
    """The newest matrix in `folder`: its subfolders begin with the date.

    Raises:
        UserError: There is none.
    """
    found = sorted(path.parent for path in folder.glob("*/matrix.csv"))
    if not found:
        raise UserError("no matrix has been recorded yet: python report.py DIR for one that run_matrix.py has written")
    return found[-1]


def main() -> None:
    """Runs the command."""
    parser = CommandParser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="folder of a matrix (default: the newest)")
    parser.add_argument(
        "--readme", action="store_true", help="write the tables of README.md instead, from what is recorded"
    )
    args = parser.parse_args()
    if args.readme:
        readme = importlib.import_module("paddleseg_benchmark.matrix.readme")  # which imports this file
        readme.write_readme(README, RESULTS)
        print(f"written: {README}")
        return
    folder = args.folder or newest(RESULTS)
    write_report(folder)
    print(f"written: {folder}/report.md and its images")


if __name__ == "__main__":
    run_command(main)
