"""Checks that functions which must be equal in several projects are equal.

    python ci/check_twins.py

What needs a framework cannot live in `common`. Where such a function must be the same in two projects, a comment above
it (and above its decorators) says which file holds the other; there are two lines for two others:

    # twin: encnet_single_gpu/checkpoint.py
    # twin: stdc_seg/checkpoint.py differs: PaddlePaddle names parameters otherwise
    def load_optimizer(path, model, optimizer): ...

Two twins are compared as syntax trees, without docstrings and comments, with the projects' names taken out. The mark
stands in both files. One that says why they differ is not compared, and is wrong where they are equal. A function of
four statements or more that stands in two projects without a mark belongs into `common`, or is marked.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"#\s*twin:\s*(\S+)(?:\s+differs:\s*(.+))?")
FEWEST_STATEMENTS = 4  # below, two functions may be the same by chance


@dataclass(frozen=True, eq=False)
class Function:
    """A function or method of a project.

    Attributes:
        file: "<project>/<path>".
        name: With its class: "Trainer._save".
        line: Of its `def`.
        tree: Its syntax tree as text, docstrings left out and the project's name masked.
        statements: How many it has, docstring left out.
        twins: What its marks say: file -> why it differs, "" for one that is equal.
    """

    file: str
    name: str
    line: int
    tree: str
    statements: int
    twins: dict[str, str]

    @property
    def project(self) -> str:
        """The first part of the file's name."""
        return self.file.partition("/")[0]

    def __str__(self) -> str:
        return f"projects/{self.file}:{self.line} {self.name}"


def functions_of(path: Path, file: str) -> Iterator[Function]:
    """Every function of a file, methods among them, functions inside of functions not."""
    text = path.read_text(encoding="utf-8")
    lines, project = text.splitlines(), file.partition("/")[0]
    module = ast.parse(text, str(path))
    places = [("", node) for node in module.body]
    places += [(f"{c.name}.", node) for c in module.body if isinstance(c, ast.ClassDef) for node in c.body]
    for prefix, node in places:
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            twins = _marks(lines, first)
            _drop_docstrings(node)
            tree = ast.dump(node).replace(project, "PROJECT")
            count = sum(isinstance(child, ast.stmt) for child in ast.walk(node)) - 1
            yield Function(file, prefix + node.name, node.lineno, tree, count, twins)


def problems(functions: list[Function]) -> list[str]:
    """One line for every mark that is not true, and for every pair without a mark."""
    return [*wrong_marks(functions), *unmarked(functions)]


def pairs(functions: list[Function]) -> int:
    """How many pairs of twins are compared."""
    marked = [(f, file) for f in functions for file, why in f.twins.items() if not why]
    return sum(1 for f, file in marked if f.file < file)


def unmarked(functions: list[Function]) -> list[str]:
    """Functions of some length that stand in two projects, and say nothing of it."""
    by_tree = defaultdict(list)
    for function in functions:
        if function.statements >= FEWEST_STATEMENTS:
            by_tree[function.tree].append(function)
    found = []
    for same in by_tree.values():
        for one, other in itertools.combinations(same, 2):
            if one.project != other.project and other.file not in one.twins and not _linked(one, other, same):
                found.append(f"{one} is {other} word by word: move it to common, or mark both with # twin: FILE")
    return found


def _linked(one: Function, other: Function, same: list[Function]) -> bool:
    """Whether marks lead from one to the other over further ones of the same text."""
    files, ahead = {one.file}, [one]
    while ahead:
        function = ahead.pop()
        news = [f for f in same if f.file not in files and (f.file in function.twins or function.file in f.twins)]
        files |= {f.file for f in news}
        ahead += news
    return other.file in files


def wrong_marks(functions: list[Function]) -> Iterator[str]:
    """One line for every mark that is not true."""
    by_place = {(f.file, f.name): f for f in functions}
    for function in functions:
        for file, why in function.twins.items():
            other = by_place.get((file, function.name))
            if other is None:
                yield f"{function}: its twin is missing: there is no {function.name} in projects/{file}"
            elif function.file not in other.twins:
                yield f"{other}: a twin of {function}, and no mark says so: add # twin: {function.file}"
            elif bool(why) != bool(other.twins[function.file]):
                yield f"{function}: one of the twins says that they differ: say it in {other}, too, or in neither"
            elif why and function.tree == other.tree:
                yield f"{function}: its mark says that it differs from {other}, and it does not: leave 'differs' out"
            elif not why and function.tree != other.tree and function.file < file:
                yield f"{function} differs from its twin {other}: change both, or say why with 'differs: ...'"


def _marks(lines: list[str], first: int) -> dict[str, str]:
    """The marks in the comment that ends above line `first` (from 1)."""
    twins = {}
    for line in reversed(lines[: first - 1]):
        if not line.strip().startswith("#"):
            break
        if found := MARK.match(line.strip()):
            twins[found[1]] = found[2] or ""
    return twins


def _drop_docstrings(node: ast.AST) -> None:
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(child, clean=False) is not None:
            child.body = child.body[1:]


def read_projects(root: Path) -> list[Function]:
    """The functions of all projects below `root`, tests left out."""
    functions = []
    for path in sorted((root / "projects").glob("*/**/*.py")):
        file = path.relative_to(root / "projects")
        if "tests" not in file.parts:
            functions += functions_of(path, file.as_posix())
    return functions


def main() -> int:
    """The command."""
    functions = read_projects(ROOT)
    lines = problems(functions)
    print("\n".join(lines) if lines else f"twins: {pairs(functions)} pairs compared and equal")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
