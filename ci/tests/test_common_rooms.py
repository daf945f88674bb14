"""`common` is laid out as its design says: doors on top, rooms behind them, and arrows that only go down."""

import ast
from collections.abc import Iterator
from pathlib import Path

COMMON = Path(__file__).resolve().parents[2] / "common"
# What people type or import, and the voices of every command; everything else has a room.
DOORS = {"metrics", "labels", "dataset_list", "create_dataset_list", "toy_dataset", "run_log"}
VOICES = {"cli", "progress", "files"}
ROOMS = {"lists", "toy", "images", "samples", "config", "weights", "runs", "machine"}


def boxes_imported(path: Path) -> Iterator[str]:
    """The parts of `common` that a file imports, by their first name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"common.{alias.name}" for alias in node.names]
            modules = names if node.module == "common" else [node.module or ""]
        yield from (module.split(".")[1] for module in modules if module.startswith("common."))


def arrows() -> dict[str, set[str]]:
    """Box -> the boxes that it imports."""
    found: dict[str, set[str]] = {}
    for path in COMMON.rglob("*.py"):
        parts = path.relative_to(COMMON).with_suffix("").parts
        if parts[0] not in ("tests", "__init__"):
            found.setdefault(parts[0], set()).update(set(boxes_imported(path)) - {parts[0]})
    return found


def module_arrows() -> dict[str, set[str]]:
    """Module of `common` -> the modules of `common` that it imports anywhere, also inside a function."""
    modules = {".".join(p.relative_to(COMMON.parent).with_suffix("").parts): p for p in COMMON.rglob("*.py")}
    found = {}
    for name, path in modules.items():
        if "tests" in path.parts:
            continue
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                wanted |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = {module for module in wanted & modules.keys() if not module.endswith("__init__")} - {name}
    return found


def floors(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The boxes by height: those that import none first; fails where they form a circle."""
    left, done, result = dict(arrows), set(), []
    while left:
        floor = {box for box, below in left.items() if below <= done}
        assert floor, f"a circle among {sorted(left)}"
        result.append(floor)
        done |= floor
        left = {box: below for box, below in left.items() if box not in floor}
    return result


def test_the_top_of_common_holds_doors_and_voices_alone():
    assert {path.stem for path in COMMON.glob("*.py")} - {"__init__"} == DOORS | VOICES
    assert {path.parent.name for path in COMMON.glob("*/__init__.py")} == ROOMS
    assert {path.name for path in COMMON.iterdir() if path.is_dir()} - {"__pycache__"} == ROOMS | {
        "label_sets",
        "tests",
    }
    assert set(arrows()) == DOORS | VOICES | ROOMS  # 17 boxes


def test_no_modules_of_common_form_a_circle():
    floors(module_arrows())


def test_boxes_stand_on_floors():
    found = floors(arrows())
    assert found[0] | found[1] >= VOICES
    assert len(found) <= 6, found


def test_floors_are_counted_and_a_circle_is_found():
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [{"c"}, {"b"}, {"a"}]
    try:
        floors({"a": {"b"}, "b": {"a"}, "c": set()})
    except AssertionError as error:
        assert "a circle among ['a', 'b']" in str(error)
    else:
        raise AssertionError("not found")
