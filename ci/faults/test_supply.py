"""What the repository takes from elsewhere: pinned packages, and at run time nothing at all."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata

import pytest
from targets import RESUMABLE, TARGETS, Command, images, run, run_script, write_data
from testkit import ENV, REPOSITORY, run_folder

PIN = re.compile(r"[A-Za-z0-9_.\-]+==[0-9][A-Za-z0-9.]*")
REQUIREMENTS = ("requirements.txt", "requirements-nodeps.txt")


def pins():
    lines = [line.strip() for name in REQUIREMENTS for line in (REPOSITORY / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_pinned_and_is_what_is_installed(tried):
    tried("requirements pinned with ==, and installed so", ", ".join(REQUIREMENTS), len(pins()))
    assert all(PIN.fullmatch(pin) for pin in pins()), [pin for pin in pins() if not PIN.fullmatch(pin)]
    for pin in pins():
        name, _, version = pin.partition("==")
        assert metadata.version(name).partition("+")[0] == version, name
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert not project.get("dependencies") and not project.get("optional-dependencies")


@pytest.fixture
def closed(tmp_path):
    """Environment variables under which no process reaches the network, and the file that names who tried."""
    log = tmp_path / "network_tried.txt"
    log.touch()
    return {"PYTHONPATH": str(REPOSITORY / "ci" / "closed_network"), "NETWORK_TRIED": str(log)}, log


@pytest.mark.parametrize("address", ["192.0.2.1", "example.org", "2001:db8::1"])
def test_the_block_blocks(address, closed):
    env, log = closed
    outcome = run_script(f"import socket\nsocket.create_connection(('{address}', 80), 1)", [], env=env)
    assert "the network is closed" in outcome.stderr
    assert address in log.read_text()


def test_the_block_lets_a_machine_talk_to_itself(closed):
    """By its name, and by each address that it has, as the launchers of several processes do."""
    env, log = closed
    script = """
import contextlib, socket
addresses = ["127.0.0.1", "127.0.1.1", "localhost"]
with contextlib.suppress(socket.gaierror):  # a machine may not know its own name
    addresses.append(socket.gethostbyname(socket.gethostname()))
for address in addresses:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        socket.create_connection((address, server.getsockname()[1]), 5).close()
with contextlib.suppress(socket.gaierror):
    socket.getaddrinfo(socket.getfqdn(), 80)
print("talked")
"""
    assert run_script(script, [], env=env).stdout == "talked\n"
    assert log.read_text() == ""


IMPORT_ALL = """
import importlib, pathlib, sys
count = 0
for place, name in (("common", "common"), *((f"projects/{p.parent.name}", p.parent.name) for p in
                    sorted(pathlib.Path("projects").glob("*/__init__.py"))), ("results", "results"),
                    ("weights_convert", "weights_convert")):
    for path in sorted(pathlib.Path(place).rglob("*.py")):
        parts = path.relative_to(place).with_suffix("").parts
        if "tests" not in parts:
            importlib.import_module(".".join((name, *parts)).removesuffix(".__init__"))
            count += 1
print(count)
"""


def test_imports_reach_for_nothing(closed, tried):
    env, log = closed
    outcome = _in_repository(IMPORT_ALL, env)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert log.read_text() == ""
    count = int(outcome.stdout.split()[-1])
    assert count > 150
    tried("modules imported with the network closed: none reaches for it", "the repository", count)


def test_making_the_tables_reaches_for_nothing(closed, tried):
    tried("commands with the network closed: none reaches for it", "results/make_tables.py --check")
    env, log = closed
    outcome = run(Command("results/make_tables.py", ("--check",)), env=env)
    assert outcome.returncode in (0, 1) and "Traceback" not in outcome.stderr, outcome.stderr[-2000:]
    assert log.read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_training_evaluation_prediction_and_export_reach_for_nothing(target, closed, tmp_path, tried):
    env, log = closed
    data, output = write_data(tmp_path / "data"), tmp_path / "out"
    commands = [target.train(data, output, 2)]
    if target in RESUMABLE:
        weights = output / "*" / "best.safetensors"
        commands += [
            target.eval(weights, data, tmp_path / "eval"),
            target.predict(weights, images(data, "val")[0], tmp_path / "predicted"),
            target.export(weights, tmp_path / "exported"),
        ]
    tried("commands with the network closed: none reaches for it", target.name, len(commands))
    for command in commands:
        words = command.words
        if any("*" in word for word in words):
            words = tuple(word.replace(str(output / "*"), str(run_folder(output))) for word in words)
        outcome = run(Command(command.script, words), timeout=230, env=env)
        assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert log.read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_training_without_any_network(target, tmp_path, tried):
    """Not Python alone: the kernel gives the process a network without a single interface."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("a process can be cut from the network by root alone")
    tried("training in a process without a network", target.name)
    command = target.train(write_data(tmp_path / "data"), tmp_path / "out", 2)
    words = ["unshare", "-n", *command.argv]
    outcome = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 0, outcome.stderr[-3000:]


def _in_repository(script, env):
    words = [Command("", ()).argv[0], "-c", script]
    words_env = {**ENV, **env}
    return subprocess.run(words, cwd=REPOSITORY, env=words_env, capture_output=True, text=True, check=False)
