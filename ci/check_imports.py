"""Checks who imports whom (CONTRIBUTING.md, "Who may import whom").

    python ci/check_imports.py

    common            the standard library, NumPy, OpenCV and small helpers; no torch, no paddle, no project
    projects/<name>   itself, common, installed packages; never another project, weights_convert or results
    weights_convert   common and the projects whose networks it fills
    results           common; it reads the files that runs leave behind

Tests may import anything but another project's tests. Every import counts, also one inside a function.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = {"torch", "torchvision", "timm", "paddle", "paddleseg"}


def violations(root: Path) -> list[str]:
    """Returns one line per forbidden import below `root`: "file:line: what: why"."""
    projects = {folder.name for folder in (root / "projects").glob("*/") if (folder / "__init__.py").exists()}
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        room = parts[1] if parts[0] == "projects" else parts[0]
        if parts[0] not in ("common", "projects", "weights_convert", "results") or "tests" in parts:
            continue
        forbidden = _forbidden(room, projects)
        for line, module in imported_modules(path):
            if module in forbidden:
                found.append(f"{path.relative_to(root)}:{line}: imports {module}: {room} may not ({forbidden[module]})")
    return found


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, top-level module) for every absolute import in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").partition(".")[0]


def _forbidden(room: str, projects: set[str]) -> dict[str, str]:
    """Module -> reason, for one room."""
    independent = dict.fromkeys(projects - {room}, "projects are independent of each other")
    upper = dict.fromkeys(("weights_convert", "results"), "it stands above")
    if room in projects:
        return independent | upper
    if room == "weights_convert":
        return {"results": "it stands above"}
    neither = dict.fromkeys(FRAMEWORKS, "it works without either framework")
    if room == "common":
        return dict.fromkeys(projects, "common imports nobody") | upper | neither
    return (
        dict.fromkeys(projects, "results reads files only") | {"weights_convert": "results reads files only"} | neither
    )


if __name__ == "__main__":
    lines = violations(ROOT)
    print("\n".join(lines) if lines else "imports: every arrow points the right way")
    sys.exit(1 if lines else 0)
