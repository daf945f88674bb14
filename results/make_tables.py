"""Makes every table, curve and page from the recorded runs, or finds those that are stale.

    python results/make_tables.py             # writes what has changed
    python results/make_tables.py --check     # writes nothing; exit status 1 and a line for every file that is not
                                              # what it would write: older than the runs, edited by hand, or without run

From results/runs, results/benchmarks, results/panels, experiments.yaml and paper_numbers.csv come results/README.md,
tables/, curves/, speed.md, speed.png, site/index.html, and the tables between the marks in the READMEs:

    <!-- results: begin (made by results/make_tables.py) -->
    <!-- results: end -->
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.machine.parallel import parallel_map
from results.curve_drawing import Spec, curve_spec, draw_all, is_up_to_date, overlay_spec
from results.expected_logs import read_expected
from results.experiments import read_experiments, read_overlays, read_superseded
from results.markdown_tables import hero_table, overview, project_page, readme_table
from results.page import build_page
from results.paper_numbers import read_numbers
from results.recorded_runs import RecordedRun, read_runs
from results.speed_drawing import are_bars_up_to_date, draw_speed, speed_spec
from results.speed_table import IMAGE, speed_page
from results.table_rows import headlines, make_rows

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- results: begin (made by results/make_tables.py) -->\n"
END = "<!-- results: end -->"
AT_ONCE = 4  # curves that a process draws before it hands them over


@dataclass(frozen=True)
class Products:
    """The generated files: texts and images by path, and READMEs that lack the marks."""

    texts: dict[Path, str]
    curves: dict[Path, Spec]
    bars: dict[Path, Spec]
    unmarked: list[Path]


def build(root: Path) -> Products:
    """Makes everything but the images, which are described.

    Raises:
        UserError: A run, a benchmark or a reference is not sound.
    """
    results = root / "results"
    runs = read_runs(results / "runs")
    _check_panels(results / "panels", runs)
    superseded = read_superseded()
    _check_weights(results / "weights", superseded)
    rows = make_rows(runs, read_experiments(), read_numbers(), superseded)
    expected = read_expected()
    specs = {row.row_id: spec for row in rows if (spec := curve_spec(row))}
    curves = {
        results / "curves" / row.project / f"{row.file_stem}.png": specs[row.row_id]
        for row in rows
        if row.row_id in specs
    }
    for overlay in read_overlays():
        if spec := overlay_spec(overlay, rows):
            curves[results / "curves" / "together" / f"{overlay.name}.png"] = spec
    speed = speed_page(results / "benchmarks")
    bars = {results / IMAGE: speed_spec(speed.ratios)} if speed.ratios else {}
    page = results / "site" / "index.html"
    previous = page.read_text(encoding="utf-8") if page.is_file() else ""
    texts = {
        results / "README.md": overview(rows, set(specs), expected),
        results / "speed.md": speed.text,
        page: build_page(rows, results / "panels", previous),
    }
    readmes = {root / "README.md": hero_table(headlines(rows))}
    for project in sorted({row.project for row in rows}):
        own = [row for row in rows if row.project == project]
        texts[results / "tables" / f"{project}.md"] = project_page(project, own, set(specs), expected)
        readmes[root / "projects" / project / "README.md"] = readme_table(own, "../../", set(specs))
    filled = {path: _filled(path, table) for path, table in readmes.items()}
    texts |= {path: text for path, text in filled.items() if text is not None}
    return Products(texts, curves, bars, [path for path, text in filled.items() if text is None])


def stale_files(root: Path, products: Products) -> list[str]:
    """A line for every file that is not as it would be made."""
    lines = [f"{path.relative_to(root)}: without the marks for its table" for path in products.unmarked]
    for path, text in products.texts.items():
        if not path.is_file() or path.read_bytes() != text.encode():
            lines.append(f"{path.relative_to(root)}: stale, or edited by hand")
    images = {path: is_up_to_date(path, spec) for path, spec in products.curves.items()}
    images |= {path: are_bars_up_to_date(path, spec) for path, spec in products.bars.items()}
    lines += [f"{path.relative_to(root)}: stale, or edited by hand" for path, fresh in images.items() if not fresh]
    lines += [f"{path.relative_to(root)}: belongs to no run" for path in _strays(root, products)]
    return sorted(lines)


def write(root: Path, products: Products) -> list[Path]:
    """Writes what has changed and removes what belongs to no run; returns the paths.

    Raises:
        UserError: A README has no marks.
    """
    if products.unmarked:
        names = ", ".join(str(path.relative_to(root)) for path in products.unmarked)
        raise UserError(f"{names}: no marks for the table: put the two lines there ({Path(__file__).name} --help)")
    changed = []
    for path, text in products.texts.items():
        if not path.is_file() or path.read_bytes() != text.encode():
            with atomic_write(path) as stream:
                stream.write(text)
            changed.append(path)
    wanted = [path for path, spec in products.curves.items() if not is_up_to_date(path, spec)]
    groups = [wanted[start : start + AT_ONCE] for start in range(0, len(wanted), AT_ONCE)]
    drawn = parallel_map(draw_all, [[products.curves[path] for path in group] for group in groups], "curves")
    for group, images in zip(groups, drawn, strict=True):
        for path, png in zip(group, images, strict=True):
            with atomic_write(path, "wb") as stream:
                stream.write(png)
    for path, spec in products.bars.items():
        if not are_bars_up_to_date(path, spec):
            with atomic_write(path, "wb") as stream:
                stream.write(draw_speed(spec))
            wanted.append(path)
    strays = _strays(root, products)
    for path in strays:
        path.unlink()
    return changed + wanted + strays


def _strays(root: Path, products: Products) -> list[Path]:
    """Files in the folders of generated files that nothing generates."""
    results = root / "results"
    found = [*(results / "tables").glob("*"), *(results / "curves").glob("*/*"), *results.glob(IMAGE)]
    made = products.texts.keys() | products.curves.keys() | products.bars.keys()
    return sorted(path for path in found if path not in made)


def _filled(readme: Path, table: str) -> str | None:
    """The README with the table between its marks; None if it has none."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{begin}\n{table}\n{end}{tail}" if begin and end else None


def _check_panels(folder: Path, runs: Sequence[RecordedRun]) -> None:
    known = {(run.project, run.name) for run in runs}
    for path in folder.glob("*/*"):
        if (path.parent.name, path.name) not in known:
            raise UserError(f"{path}: images of a run that is not recorded: remove the folder, or record the run")


def _check_weights(folder: Path, superseded: Mapping[str, str]) -> None:
    for run in superseded:
        for path in folder.glob(f"{run}.*"):
            raise UserError(f"{path}: weights of a superseded run (experiments.yaml): remove the file")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command; returns the exit status."""
    parser = CommandParser(__doc__)
    parser.add_argument("--check", action="store_true", help="find stale files, write nothing")
    args = parser.parse_args(arguments)
    products = build(root)
    if args.check:
        lines = stale_files(root, products)
        print("\n".join([*lines, "run python results/make_tables.py"]) if lines else "results: all files are as made")
        return 1 if lines else 0
    changed = write(root, products)
    print("\n".join(f"written: {path.relative_to(root)}" for path in changed) or "nothing has changed")
    return 0


if __name__ == "__main__":
    run_command(main)
