"""255, the label of pixels that do not count, is written once: `common.labels.IGNORE`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def second_constants(root: Path) -> Iterator[str]:
    """Places outside of tests where a name or an argument with "ignore" in it is given 255."""
    for folder in ("common", "projects", "results", "weights_convert"):
        for path in sorted((root / folder).rglob("*.py")):
            if "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if any("ignore" in name.lower() for name in names_given_255(node)):
                    yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"


def names_given_255(node: ast.AST) -> list[str]:
    """The names that a node binds to 255, or passes 255 as."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and is_255(node.value):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [ast.unparse(target) for target in targets]
    if isinstance(node, ast.keyword) and node.arg and is_255(node.value):
        return [node.arg]
    if isinstance(node, ast.arguments):
        named = [*node.posonlyargs, *node.args]
        pairs = [*zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True)]
        pairs += [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        return [argument.arg for argument, default in pairs if is_255(default)]
    return []


def is_255(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == 255


def test_the_ignored_label_is_written_once():
    assert [place.partition(":")[0] for place in second_constants(ROOT)] == ["common/labels.py"]


def test_a_second_constant_is_found(tmp_path):
    (tmp_path / "common").mkdir()
    text = (
        "IGNORE_INDEX = 255\ndef f(x, ignore_index=255): return g(x, ignore_index=255)\nWHITE = 255\nx = h(top=255)\n"
    )
    (tmp_path / "common" / "a.py").write_text(text)
    assert len(list(second_constants(tmp_path))) == 3
