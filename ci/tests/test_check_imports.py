import subprocess
import sys
from pathlib import Path

from check_imports import violations

ROOT = Path(__file__).resolve().parents[2]


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def check(root: Path) -> list[str]:
    return violations(root)


def test_the_repository_keeps_its_arrows():
    assert check(ROOT) == []


def test_each_forbidden_arrow_is_named_with_file_and_line(tmp_path):
    write(tmp_path, "projects/a_seg/__init__.py", "")
    write(tmp_path, "projects/b_seg/__init__.py", "")
    write(
        tmp_path,
        "projects/a_seg/train.py",
        "import numpy\nimport common.metrics\nimport a_seg.models\nfrom b_seg.models import x\n",
    )
    write(tmp_path, "projects/b_seg/eval.py", "def f():\n    import weights_convert\n")
    write(tmp_path, "projects/b_seg/tests/test_x.py", "import a_seg\n")
    write(tmp_path, "common/metrics.py", "import os, paddle.nn\nfrom a_seg import y\n")
    write(tmp_path, "weights_convert/go.py", "import a_seg, torch, paddle\n")
    write(tmp_path, "results/table.py", "import common\nimport torch\n")
    found = [line.split(": ")[0] + " " + line.split("imports ")[1].split(":")[0] for line in check(tmp_path)]
    assert found == [
        "common/metrics.py:1 paddle",
        "common/metrics.py:2 a_seg",
        "projects/a_seg/train.py:4 b_seg",
        "projects/b_seg/eval.py:2 weights_convert",
        "results/table.py:2 torch",
    ]


def test_common_imports_with_neither_framework():
    paths = [p for p in sorted((ROOT / "common").rglob("*.py")) if "tests" not in p.parts and p.stem != "__init__"]
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
    script = f"""
import sys, importlib
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "paddle", "paddleseg"):
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
print(len({modules!r}))
"""
    result = run(script)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(modules) > 30
