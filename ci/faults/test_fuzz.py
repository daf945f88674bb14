"""Fuzzers of the readers: whatever is in a file, it is read or refused with a `UserError`, and nothing else comes out.

Each tries the same inputs for a second or two, or, where `run.py --minutes N` sets $FAULTS_MINUTES, new ones for so
long. Inputs are sound files of which parts were changed, so that they come far into a reader.
"""

import importlib
import json
import os
import re
import time

from common.cli import UserError
from common.labels import load_custom
from common.lists.list_file import read_list
from common.run_log import RunLog
from common.runs.reading import read_run
from common.weights.pdparams import load_without_code
from results.make_tables import build
from results.record import record
from results.recorded_runs import read_recorded
from weights_convert.weight_files import read_weights

import numpy as np
import pytest
import torch
import yaml
from bad_input import Tensor, read_safetensors, trained, write_safetensors
from crafted_run import results_tree, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import RESUMABLE, TARGETS

SECONDS = 60 * float(os.environ.get("FAULTS_MINUTES", 0))
FEW, MANY = 60, 500  # inputs of a round; without time there is one round, always the same
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
ODD = (
    *(
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
        ",",
        '"',
        "'",
        "|",
        "\\",
        "/",
        "..",
        "../",
        ".",
        "#",
        "-",
        "?",
        ":",
        "&a",
        "*a",
        "<<",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        "!!",
        "!!python/name:os.system",
        "!!timestamp x",
        "%",
        "@",
        "`",
        "---",
        "...",
        "~",
        "null",
        "=",
        "> ",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "NaN",
        "Infinity",
        "1e999",
        "-1",
        "0",
        "1" * 400,
        "9" * 5000,
        "0x",
        "0b_",
        "1_0",
        "1:2:3.4",
        "2001-99-99",
    ),
    *(
        "\0",
        "\x1b[2J",
        "\ufeff",
        "\u2028",
        "\u202e",
        "é",
        "街道",
        "\ud83d",
        "\U0001f600",
        "true",
        "a" * 300,
        "[" * 300,
        "{" * 300,
    ),
)
TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=20))


def fuzz(inputs, look, tried, what, where):
    """Calls `look` with drawn inputs until the time is over; what it lets through fails with the smallest input."""
    end, count = time.monotonic() + SECONDS, 0

    def counted(value):
        nonlocal count
        count += 1
        look(value)

    rules = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    while count == 0 or time.monotonic() < end:
        is_short = SECONDS < 60
        choice = settings(max_examples=FEW if is_short else MANY, derandomize=SECONDS == 0, **rules)
        choice(given(inputs)(counted))()
    tried(what, where, count)


def only_user_errors(call, *words):
    try:
        call()
    except UserError as error:
        assert "\n" not in str(error), error
        assert all(str(word) in str(error) for word in words), error


def edits():
    """Changes of a text: each takes a stretch out (places are shares of its length) and puts a text in its place."""
    return st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), TEXTS), max_size=4)


def edited(text: str, changes) -> bytes:
    for place, length, new in changes:
        start = int(place * len(text))
        text = text[:start] + new + text[start + length :]
    return text.encode("utf-8", "surrogatepass")


def damaged(data: bytes, changes) -> bytes:
    """The same for bytes; more often near the beginning, where headers are."""
    for place, length, new in changes:
        start = int(place**3 * len(data))
        data = data[:start] + new + data[start + length :]
    return data


BYTES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.one_of(st.binary(max_size=12), st.sampled_from([b"\xff" * 8, b"", b"\0" * 8])),
    ),
    max_size=5,
)


def test_list_reader(tmp_path, tried):
    for name in ("a.png", "b c.png", "街道.png", "d,e.png"):
        (tmp_path / name).touch()
    lists = (
        "a.png,街道.png\na.png,b c.png\n",
        "a.png 街道.png\n",
        'a.png,"d,e.png"\n',
        "a.png\t街道.png\r\nb c.png\ta.png\r\n",
    )
    path = tmp_path / "list.txt"

    def look(drawn):
        which, changes, check_files = drawn
        path.write_bytes(edited(lists[which], changes))
        only_user_errors(lambda: read_list(path, tmp_path, check_files), path)

    fuzz(st.tuples(st.integers(0, 3), edits(), st.booleans()), look, tried, "fuzz", "list reader")


def test_config_loaders(tmp_path, tried):
    """All five projects' experiments, and label sets."""
    readers = []
    for target in TARGETS:
        name = "zoo.zoo" if target.name == "paddleseg_benchmark" else "config"
        read = importlib.import_module(f"{target.name}.{name}").read_config
        text = target.config_file.read_text(encoding="utf-8")
        text = re.sub(r"^(_base_: ['\"]?)", rf"\g<1>{target.config_file.parent}/", text, flags=re.MULTILINE)
        readers.append((lambda path, read=read: read(str(path)), text))
    labels = (
        "name: mine\nclasses: [road, {name: person, color: [220, 20, 60]}]\nignore: 255\nids: {10: 0, 20: 1, 0: 255}\n"
    )
    readers.append((load_custom, labels))
    path = tmp_path / "fuzzed.yaml"
    for read, text in readers:  # unchanged they are read, so what is refused is refused for its changes
        path.write_text(text, encoding="utf-8")
        read(path)

    def look(drawn):
        which, changes = drawn
        read, text = readers[which]
        path.write_bytes(edited(text, changes))
        only_user_errors(lambda: read(path))

    fuzz(st.tuples(st.integers(0, len(readers) - 1), edits()), look, tried, "fuzz", "config loader")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS.filter(lambda text: text.isprintable())),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)),
    max_leaves=5,
)


@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_checkpoint_readers(target, tmp_path, tried):
    """Bytes changed anywhere; fields of the state changed; a text of the experiment in it changed; tensors changed."""
    whole = trained(target).best.read_bytes()
    metadata, tensors = read_safetensors(trained(target).best)
    key = next(key for key, value in metadata.items() if value.startswith("{"))
    state, names = json.loads(metadata[key]), sorted(tensors)
    path = tmp_path / "fuzzed.safetensors"
    read_state = importlib.import_module(f"{target.name}.checkpoint").read_state
    load_network = importlib.import_module(f"{target.name}.checkpoint").load_network

    def look(drawn):
        kind, changes, fields, texts, (name, dtype, shape) = drawn
        if kind == 0:
            path.write_bytes(damaged(whole, changes))
            only_user_errors(lambda: load_network(path), path)
        elif kind == 1:
            changed = {**state, **fields}
            write_safetensors(path, {**metadata, key: json.dumps(changed)}, {})
            only_user_errors(lambda: read_state(path), path)
        elif kind == 2:
            text = edited(state["config_text"], texts).decode("utf-8", "replace")
            write_safetensors(path, {**metadata, key: json.dumps({**state, "config_text": text})}, tensors)
            only_user_errors(lambda: load_network(path))
        else:
            changed = {**tensors, name: Tensor(dtype, shape, tensors[name].data)}
            write_safetensors(path, metadata, changed)
            only_user_errors(lambda: load_network(path), path)

    tensor = st.tuples(
        st.sampled_from(names),
        st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "x"]),
        st.lists(st.integers(0, 10), max_size=5),
    )
    fields = st.dictionaries(st.sampled_from(sorted(state)), JSON, max_size=2)
    fuzz(st.tuples(st.integers(0, 3), BYTES, fields, edits(), tensor), look, tried, "fuzz", "checkpoint reader")


def test_weight_readers(tmp_path, tried):
    """PyTorch's, Paddle's, NumPy's and safetensors' files with changed bytes, under their own and other names."""
    values = {"conv1.weight": torch.arange(12.0).reshape(3, 4), "bn.num_batches_tracked": torch.tensor(3)}
    arrays = {name: value.numpy() for name, value in values.items()}
    torch.save(values, tmp_path / "a.pth")
    torch.save(values, tmp_path / "a.tar", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    importlib.import_module("paddle").save(arrays, str(tmp_path / "a.pdparams"))
    write_safetensors(tmp_path / "a.safetensors", {}, {"w": Tensor("F32", [2], bytes(8))})
    wholes = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    suffixes = (".pth", ".tar", ".npz", ".pdparams", ".safetensors")

    def look(drawn):
        which, suffix, changes = drawn
        path = tmp_path / f"fuzzed{suffix}"
        path.write_bytes(damaged(wholes[which], changes))
        only_user_errors(lambda: read_weights(path), path)
        if suffix == ".pdparams":
            only_user_errors(lambda: load_without_code(path), path)

    inputs = st.tuples(st.integers(0, len(wholes) - 1), st.sampled_from(suffixes), BYTES)
    fuzz(inputs, look, tried, "fuzz", "checkpoint reader")


def test_results_readers(tmp_path, tried):
    """A recorded run of which one file's text was changed, or fields of env.json: read, recorded, made tables of."""
    root = results_tree(tmp_path / "root", "word")
    folder = next((root / "results/runs/stdc_seg").iterdir())
    finished = write_run(tmp_path / "finished")
    names = ("config.yaml", "env.json", "train.csv", "eval.csv", "per_class.csv")
    wholes = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    env = json.loads(wholes["env.json"])

    def look(drawn):
        name, changes, fields, door = drawn
        content = edited(wholes[name], changes)
        if name == "env.json" and fields:
            content = json.dumps({**env, **fields}).encode()
        place = finished if door in (2, 3) else folder
        (place / name).write_bytes(content)
        try:
            if door == 0:
                only_user_errors(lambda: build(root))
            elif door == 1:
                only_user_errors(lambda: read_run(folder).best(), folder)
            elif door == 2:
                only_user_errors(lambda: record(finished, root, unknown_code=True))
            else:
                only_user_errors(lambda: read_recorded(finished), finished)
        finally:
            (place / name).write_text(wholes[name], encoding="utf-8")

    fields = st.dictionaries(st.sampled_from(sorted(env)), JSON, max_size=2)
    inputs = st.tuples(st.sampled_from(names), edits(), fields, st.sampled_from([0, 1, 2, 3, 3]))
    fuzz(inputs, look, tried, "fuzz", "results reader")


def test_tables_of_a_run_to_go_on_with(tmp_path, tried):
    text = "step,epoch,loss\n1,0.5,1.25\n2,1.0,1.125\n"
    log = RunLog(tmp_path, ("step", "epoch", "loss"))

    def look(changes):
        (tmp_path / "train.csv").write_bytes(edited(text, changes))
        only_user_errors(lambda: log.trim(1), tmp_path)

    fuzz(edits(), look, tried, "fuzz", "results reader")


def test_the_unchanged_files_are_read(tmp_path):
    """What the fuzzers change is sound before."""
    assert yaml.safe_load((write_run(tmp_path) / "config.yaml").read_text())["train"] == {"iters": 2}
    assert read_recorded(tmp_path / "quickstart_s0_20261121_0123456").project == "stdc_seg"
