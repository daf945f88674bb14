"""Shows what this machine can measure, and why it cannot measure the rest.

    python doctor.py
    python doctor.py --peer-python PEER/bin/python     # looks for mmsegmentation there

Prints versions beside the supported ones, device, threads, shared memory, oneDNN and peers, and for every precision,
layout and graph the number of networks of the zoo that can run here, with the reason for the others. Exit status 1 if
nothing can be trained.
"""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import shutil
from importlib import metadata

from common.cli import CommandParser, UserError, run_command
from common.machine.cpu import configure_cpu, physical_cores

# Package -> the first version that works and the first above that does not; see the repository's CONTRIBUTING.md.
RANGES = {
    "paddleseg": ("2.8.0", "2.8.1"),
    "numpy": ("2.0", "2.4"),
    "opencv-python-headless": ("4.10", "5"),
}
PADDLE_RANGE = ("3.3", "3.4")
PEERS = ("torch", "segmentation-models-pytorch", "torchvision", "timm")
SMALL_SHM_GIB = 1


def device_kind() -> str:
    """What Paddle runs on: "gpu" where it was built for one and sees one, else "cpu"."""
    import paddle

    return "gpu" if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0 else "cpu"


def device_name() -> str:
    """The GPU's name, or "cpu"."""
    import paddle

    return paddle.device.cuda.get_device_name(0) if device_kind() == "gpu" else "cpu"


def problems(versions: dict[str, str | None]) -> list[str]:
    """What of the versions keeps anything from being trained: one sentence each."""
    found = []
    for name, (first, beyond) in (RANGES | {"paddlepaddle": PADDLE_RANGE}).items():
        version = versions.get(name)
        if version is None:
            found.append(f"{name} is not installed: requirements.txt has the version")
        elif not _numbers(first) <= _numbers(version) < _numbers(beyond):
            found.append(f"{name} is {version}, needed is from {first} to below {beyond}")
    return found


def installed_versions() -> dict[str, str | None]:
    """Versions of the packages used here; None for a missing one. A GPU build of Paddle counts as paddlepaddle."""
    versions = {name: _version(name) for name in ("paddlepaddle", *RANGES, *PEERS)}
    versions["paddlepaddle"] = versions["paddlepaddle"] or _version("paddlepaddle-gpu")
    return versions


def shared_memory_gib() -> float | None:
    """The size of /dev/shm, which Paddle's loader processes need; None where there is none, as outside Linux."""
    if platform.system() != "Linux" or not os.path.isdir("/dev/shm"):
        return None
    return shutil.disk_usage("/dev/shm").total / 2**30


def machine_lines() -> list[str]:
    """Processor, threads and shared memory."""
    threads, gib = os.environ.get("OMP_NUM_THREADS"), shared_memory_gib()
    shared = "none" if gib is None else f"{gib:.2f} GiB"
    if gib is None or gib < SMALL_SHM_GIB:
        shared += f": train.py goes without loader processes, which need {SMALL_SHM_GIB} GiB"
    return [
        _line("processor", f"{platform.machine()}, {physical_cores()} physical cores for this process"),
        _line("threads", f"{threads} (OMP_NUM_THREADS, by common/machine/cpu.py where you set none)"),
        _line("/dev/shm", shared),
    ]


def paddle_lines() -> list[str]:
    """The device, and how Paddle was built."""
    import paddle

    if device_kind() == "gpu":
        major, minor = paddle.device.cuda.get_device_capability(0)
        count, cuda = paddle.device.cuda.device_count(), paddle.version.cuda()
        device = f"{count} x {device_name()}, compute capability {major}.{minor}, CUDA {cuda}"
    elif paddle.is_compiled_with_cuda():
        device = "cpu; Paddle was built for GPUs and sees none: nvidia-smi, CUDA_VISIBLE_DEVICES?"
    else:
        device = "cpu; Paddle was built without GPUs: for one, paddlepaddle-gpu from Paddle's own index"
    onednn = "built in" if paddle.base.core.is_compiled_with_onednn() else "not built in"
    use = "not used in training"
    for flag in ("FLAGS_use_mkldnn", "FLAGS_use_onednn"):
        if os.environ.get(flag, "0") not in ("0", "False"):
            use = f"{flag} is set: to_static and static crash with it on Paddle 3.3, unset it"
    cinn = "built in" if paddle.is_compiled_with_cinn() else "not built in"
    return [_line("device", device), _line("oneDNN", f"{onednn}; {use}"), _line("CINN", cinn)]


def matrix_lines() -> list[str]:
    """For every graph, layout and precision: how many networks of the zoo run here, and why which others do not."""
    from paddleseg_benchmark import updates
    from paddleseg_benchmark.zoo import zoo

    lines, device = [], device_kind()
    for graph, layout in itertools.product(updates.GRAPHS, updates.LAYOUTS):
        found: dict[tuple[str, ...], list[str]] = {}  # what there is to say -> the precisions of which it is true
        for precision in updates.PRECISIONS:
            answers = {row.name: updates.unsupported(device, precision, layout, graph, row.name) for row in zoo.ROWS}
            found.setdefault(_summary(answers), []).append(precision)
        for (text, *reasons), names in found.items():
            lines += [
                f"{graph:<10}{layout:<6}{' '.join(names):<24}{text}",
                *(f"{'':<16}{reason}" for reason in reasons),
            ]
    return lines


def _summary(answers: dict[str, str | None]) -> tuple[str, ...]:
    """How many networks can, and a line for each reason with the networks that cannot for it."""
    networks: dict[str, list[str]] = {}  # reason -> names
    for name, answer in answers.items():
        if answer:
            networks.setdefault(answer, []).append(name)
    able = len(answers) - sum(map(len, networks.values()))
    others = "all" if able == 0 else "all others"
    lines = [f"{why}: {others if len(networks) == 1 else ', '.join(names)}" for why, names in networks.items()]
    return f"{able} of {len(answers)} networks", *lines


def peer_lines(versions: dict[str, str | None], peer_python: str | None) -> list[str]:
    """The installed peers."""
    from paddleseg_benchmark.matrix import peers

    lines = [_line(name, versions[name] or "not installed here") for name in PEERS]
    if peer_python is None:
        return [*lines, _line("mmsegmentation", "not looked for: --peer-python names its interpreter")]
    found = peers.mmseg_packages(peer_python)
    text = ", ".join(f"{name} {version}" for name, version in found.items()) if found else "not there"
    return [*lines, _line("mmsegmentation", f"{text} ({peer_python})")]


def main() -> int:
    """Runs the command."""
    parser = CommandParser(__doc__)
    peer_help = "look for mmsegmentation in this interpreter (default: do not look)"
    parser.add_argument("--peer-python", metavar="PATH", help=peer_help)
    args = parser.parse_args()
    configure_cpu()
    versions = installed_versions()
    wrong = problems(versions)
    print(_line("python", platform.python_version()))
    print(*(_line(name, versions[name] or "missing") for name in ("paddlepaddle", *RANGES)), sep="\n")
    print(*machine_lines(), sep="\n")
    try:
        importlib.import_module("paddleseg_benchmark.updates")  # which imports Paddle quietly, and paddleseg
        print(*paddle_lines(), "", "what of the matrix can be measured here:", *matrix_lines(), sep="\n")
    except (ImportError, UserError) as error:
        wrong.append(f"nothing can be trained: {error}")
    else:
        print("", "peers:", *peer_lines(versions, args.peer_python), sep="\n")
    print("", *(f"problem: {sentence}" for sentence in wrong), *([] if wrong else ["no problems"]), sep="\n")
    return 1 if wrong else 0


def _line(name: str, text: str) -> str:
    return f"{name:<29}{text}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Version "3.3.1" -> (3, 3, 1); what follows the numbers is left out."""
    parts = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)


if __name__ == "__main__":
    run_command(main)
