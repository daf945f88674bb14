"""What the commands of each project are, for the tests of this folder: one table of five rows, `TARGETS`.

Every row trains a tiny network on tiny images in one and the same folder of data (`write_data`). Nothing else in this
folder knows a project.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple
from unittest.mock import patch

from common.cli import run_command
from common.run_log import run_id

import safetensors
import testkit
from testkit import ENV, REPOSITORY


class Command(NamedTuple):
    """A command as a user types it: a script (relative to the repository) and its words."""

    script: str
    words: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        """For another process."""
        return [sys.executable, str(REPOSITORY / self.script), *self.words]

    @property
    def module(self) -> str:
        """The script's import name."""
        return self.script.removeprefix("projects/").removesuffix(".py").replace("/", ".")


@dataclasses.dataclass(frozen=True)
class Target:
    """A project.

    Attributes:
        name: Its folder in projects/.
        framework: "torch" or "paddle".
        config: Its smallest experiment, a file in its configs/.
        small: Words of train.py that make that experiment tiny.
        key: (key of the experiment, value) -> the words of train.py that set it; keys are "section.key" of config.py.
        predict_words: (weights, image, output) -> words of its predicting script.
        predict_script: The name of that script.
        resumable: Whether train.py has --resume, and the project eval.py, export.py and a predicting script.
        in_processes: Whether train.py can be started in several processes.
    """

    name: str
    framework: str
    config: str
    small: tuple[str, ...]
    key: Callable[[str, object], tuple[str, ...]]
    predict_words: Callable[[Path, Path, Path], tuple[object, ...]] | None = None
    predict_script: str = "predict"
    resumable: bool = True
    in_processes: bool = True

    @property
    def config_file(self) -> Path:
        """Where `config` lies."""
        return REPOSITORY / "projects" / self.name / "configs" / self.config

    def command(self, script: str, *words: object) -> Command:
        """One of the project's scripts by its bare name."""
        return Command(f"projects/{self.name}/{script}.py", tuple(map(str, words)))

    def train(
        self, data: Path, output: Path, iters: int, *more: object, config: Path | None = None, small: bool = True
    ) -> Command:
        """Training of a tiny run; `config` is another experiment file, `small=False` leaves its sizes as they are."""
        words = ("--config", config or self.config_file, "--data", data, "--output", output, "--iters", iters)
        return self.command("train", *words, *(self.small if small else ()), *more)

    def eval(self, weights: Path, data: Path, output: Path, *more: object) -> Command:
        """Evaluation of a checkpoint."""
        return self.command("eval", "--weights", weights, "--data", data, "--output", output, *more)

    def predict(self, weights: Path, image: Path, output: Path) -> Command:
        """Prediction of an image, or of a folder of them."""
        return self.command(self.predict_script, *self.predict_words(weights, image, output))

    def export(self, weights: Path, output: Path, *more: object) -> Command:
        """Export of a checkpoint."""
        return self.command("export", "--weights", weights, "--output", output, *more)


def _equals(key: str, value: object) -> tuple[str, ...]:
    return (f"{key}={value}",)


def _option(key: str, value: object) -> tuple[str, ...]:
    section, _, name = key.partition(".")
    return (f"--{section if name == 'name' else name.replace('_', '-')}", str(value))


def _underscored_option(key: str, value: object) -> tuple[str, ...]:
    return (f"--{key.partition('.')[2]}", str(value))


def _input_words(weights: Path, image: Path, output: Path) -> tuple[object, ...]:
    return ("--weights", weights, "--input", image, "--output", output)


def _input_words_in_paddle(weights: Path, image: Path, output: Path) -> tuple[object, ...]:
    return (*_input_words(weights, image, output), "--runtime", "paddle")  # without an export first


def _demo_words(weights: Path, image: Path, output: Path) -> tuple[object, ...]:
    return ("--weights", weights, "--input-pic", image, "--outdir", output)


TARGETS = (
    Target(
        "awesome_pytorch_seg",
        "torch",
        "quickstart.yaml",
        (
            *("data.dataset=custom", "augment.stages=[{share: 1.0, scales: [0.75, 1.25], crop_size: [32, 48]}]"),
            *("schedule.warmup_iters=1", "train.batch_size=2", "train.log_every=1"),
        ),
        _equals,
        _demo_words,
        "demo",
    ),
    Target(
        "encnet_single_gpu",
        "torch",
        "quickstart.yaml",
        (
            *("--model", "segnet_basic", "--backbone", "null", "--dataset", "custom", "--crop-size", "32", "48"),
            *("--batch-size", "2", "--num-workers", "0", "--log-every", "1"),
        ),
        _option,
        _input_words,
        in_processes=False,
    ),
    Target(
        "stdc_seg",
        "paddle",
        "quickstart.yaml",
        (
            *("model.name=stdc1", "data.dataset=custom", "augment.crop_size=[65, 65]", "augment.scales=[0.75, 1.0]"),
            *("optimizer.warmup_iters=1", "train.batch_size=2", "train.log_every=1", "eval.input_scale=1.0"),
        ),
        _equals,
        _input_words_in_paddle,
    ),
    Target(
        "semsegpaddle_glore",
        "paddle",
        "quickstart.yaml",
        (
            *("model.name=glore", "model.backbone=resnet18", "data.dataset=custom", "augment.base_size=72"),
            *("augment.crop_size=[65, 65]", "optimizer.warmup_iters=1", "train.batch_size=2", "train.log_every=1"),
        ),
        _equals,
        _input_words,
    ),
    Target(
        "paddleseg_benchmark",
        "paddle",
        "fastscnn.yml",
        ("--batch_size", "2", "--crop_size", "64", "64", "--log_iters", "1"),
        _underscored_option,
        resumable=False,
    ),
)
RESUMABLE = tuple(target for target in TARGETS if target.resumable)
"""Those that can do everything; `paddleseg_benchmark` measures training alone and has train.py."""


def write_data(root: Path, count: int = 6, size: tuple[int, int] = (72, 80)) -> Path:
    """Images of coloured squares with their labels, which every project reads. Returns `root`.

    They lie as in Cityscapes (leftImg8bit/ and gtFine/, for paddleseg), with lists (train.txt: two thirds; val.txt) and
    classes.yaml for the others. Labels hold 0, 1 and 2.
    """
    return testkit.write_data(root, count, size, block=24, cityscapes=True)


def images(root: Path, split: str = "train") -> list[Path]:
    """The images of a list that `write_data` wrote, in its order."""
    return [root / line.partition(",")[0] for line in (root / f"{split}.txt").read_text().splitlines()]


def run(
    command: Command, timeout: float = 120, env: dict[str, str] | None = None, cwd: Path | None = None
) -> CompletedProcess:
    """Runs a command in a process of its own, as a user does; a `timeout` of seconds that passes is an error."""
    return _end_of(command.argv, timeout, env, cwd or (REPOSITORY / command.script).parent)


def run_script(
    text: str, words: Sequence[object], timeout: float = 120, env: dict[str, str] | None = None
) -> CompletedProcess:
    """Runs Python code in a process of its own, such as a command with something of it broken on purpose."""
    return _end_of([sys.executable, "-c", text, *map(str, words)], timeout, env)


def launch(target: Target, script: Path, words: Sequence[object], logs: Path, timeout: float = 120) -> CompletedProcess:
    """Runs a file of Python in two processes, as the launcher of the project's framework does."""
    module, *options = {
        "torch": ("torch.distributed.run", "--standalone"),
        "paddle": ("paddle.distributed.launch", "--log_dir", str(logs)),
    }[target.framework]
    argv = [sys.executable, "-m", module, *options, "--nproc_per_node", "2", str(script), *map(str, words)]
    return _end_of(argv, timeout)


def _end_of(
    argv: list[str], timeout: float, env: dict[str, str] | None = None, cwd: Path | None = None
) -> CompletedProcess:
    return subprocess.run(
        argv, cwd=cwd, env={**ENV, **(env or {})}, capture_output=True, text=True, timeout=timeout, check=False
    )


def call(command: Command) -> CompletedProcess:
    """Runs a command in this process, which has loaded its framework already, and ends it as `run` does."""
    main = importlib.import_module(command.module).main
    out, err, status = io.StringIO(), io.StringIO(), None
    argv = [command.script, *command.words]
    with patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(main)
        except SystemExit as end:
            status = end.code
        except Exception:  # as the interpreter ends on what nobody catches
            traceback.print_exc()
            status = 1
    return CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def checkpoint(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Everything in a checkpoint to the bit; the order of a file's metadata is a matter of chance (safetensors)."""
    with safetensors.safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return file.metadata(), {name: (str(v.dtype), v.shape, v.tobytes()) for name, v in tensors.items()}


def finished_run_in(parent: Path) -> Path:
    """A run folder that record.py takes: a recorded run of this repository, under another name and its own commit."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    commit = git.stdout.strip()
    folder = parent / run_id("quickstart", 0, commit, "20260101")
    folder.mkdir()
    recorded = sorted((REPOSITORY / "results/runs/stdc_seg").glob("quickstart_*/env.json"))[0].parent
    for path in recorded.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    values = {"commit": commit, "commit_changed": False, "config": "quickstart", "seed": 0}
    (folder / "env.json").write_text(json.dumps(env | values), encoding="utf-8")
    return folder


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Fails if a file below `folder` has come, gone or changed during the block."""
    before = below(folder)
    yield
    after = below(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"came, went or changed in {folder}: {', '.join(changed)}"


def below(folder: Path) -> dict[str, bytes]:
    """What is in the files below a folder, by name, without what hides behind a dot."""
    files = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
