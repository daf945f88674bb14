"""Checkpoints that are cut, of another network, or hold what no training leaves: refused by name through every door."""

import importlib
import json
import shutil
from pathlib import Path

from common.cli import UserError

import numpy as np
import pytest
from bad_input import MODEL, nothing_written, read_safetensors, refusal, require_refusal, trained, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import RESUMABLE, call, images, run

SLOW = pytest.mark.slow
PER_PROJECT = pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)


def open_network(target, weights: Path) -> object:
    """The project's own way from a checkpoint to a network."""
    return importlib.import_module(f"{target.name}.checkpoint").load_network(weights)


def refused(target, weights: Path, *words: object) -> None:
    with pytest.raises(UserError) as error:
        open_network(target, weights)
    require_refusal(error.value, weights, *words)


def state_key(metadata: dict[str, str]) -> str:
    """Which entry of a checkpoint's metadata holds its state as JSON."""
    return next(key for key, value in metadata.items() if value.startswith("{"))


def with_state(source: Path, path: Path, change) -> Path:
    """A copy of a checkpoint whose state `change` has gone over; it may return another text altogether."""
    metadata, tensors = read_safetensors(source)
    key = state_key(metadata)
    state = json.loads(metadata[key])
    text = change(state)
    return write_safetensors(path, {**metadata, key: json.dumps(state) if text is None else text}, tensors)


def with_values(source: Path, path: Path, name: str, value: float, everywhere: bool = False) -> Path:
    """A copy of a checkpoint with `value` in a tensor: in its last number, or in all of them."""
    metadata, tensors = read_safetensors(source)
    numbers = np.frombuffer(tensors[name].data, np.float32).copy()
    numbers[slice(None) if everywhere else slice(-1, None)] = value
    return write_safetensors(path, metadata, {**tensors, name: tensors[name]._replace(data=numbers.tobytes())})


def weights_of(path: Path) -> list[str]:
    """The names of a checkpoint's tensors of 32-bit numbers."""
    _, tensors = read_safetensors(path)
    return sorted(name for name, tensor in tensors.items() if tensor.dtype == "F32")


@PER_PROJECT
def test_cut_anywhere_it_is_refused(target, tmp_path, tried):
    whole = trained(target).best.read_bytes()
    path, seen = tmp_path / "best.safetensors", []

    @settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @given(st.one_of(st.floats(0, 0.9999), st.integers(0, 40)))
    def cut(where):
        seen.append(where)
        path.write_bytes(whole[: int(where * len(whole)) if isinstance(where, float) else where])
        refused(target, path)

    cut()
    tried("a checkpoint cut somewhere", target.name, len(seen))


@PER_PROJECT
def test_what_is_no_checkpoint_is_refused(target, tmp_path, tried):
    best = trained(target).best
    _, tensors = read_safetensors(best)
    others = [other for other in RESUMABLE if other is not target]
    kinds = {
        "an image": images(trained(target).data)[0].read_bytes(),
        "a config": (trained(target).folder / "config.yaml").read_bytes(),
        "zeros": bytes(10_000),
        "a header beyond measure": b"\xff" * 8 + b"{}",
        "a zip": b"PK\x03\x04" + bytes(1000),
        "weights alone": write_safetensors(tmp_path / "x", {}, tensors).read_bytes(),
        **{f"a checkpoint of {other.name}": trained(other).best.read_bytes() for other in others},
    }
    tried("a file that is no checkpoint", target.name, len(kinds) + 2)
    path = tmp_path / "best.safetensors"
    for content in kinds.values():
        path.write_bytes(content)
        refused(target, path)
    refused(target, tmp_path / "none.safetensors", "no weight file")
    refused(target, tmp_path)


STATE_VALUES = (None, "text", [], {}, 3, -1, 1.5, True, [1], ["a"], [[0.5]], float("nan"), float("inf"), "\0", 10**30)


@PER_PROJECT
def test_every_field_of_its_state_with_values_of_every_kind(target, tmp_path, tried):
    """A state is read as it is meant, or the file is named; never another error."""
    best, path = trained(target).best, tmp_path / "best.safetensors"
    metadata, tensors = read_safetensors(best)
    key, seen = state_key(metadata), []
    fields = sorted(json.loads(metadata[key]))
    module = importlib.import_module(f"{target.name}.checkpoint")

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(st.sampled_from([*fields, "unknown"]), st.sampled_from(STATE_VALUES))
    def change(field, value):
        state = json.loads(metadata[key])
        old, state[field] = state.get(field), value
        write_safetensors(path, {**metadata, key: json.dumps(state)}, tensors)
        seen.append(field)
        try:
            module.read_state(path)
        except UserError as error:
            require_refusal(error, path, field)
        else:
            is_number = isinstance(old, int | float) and isinstance(value, int | float)
            without = (field, value) == ("palette", None)  # as files were written before it was kept
            assert is_number or without or type(old) is type(value), (field, value)

    change()
    for text in ("", "{", "[]", "null", "3", "[" * 100_000, '{"step": 1}'):
        seen.append(text)
        refused(target, with_state(best, path, lambda state, text=text: text))
    for field in fields:
        seen.append(field)
        without = {name: value for name, value in json.loads(metadata[key]).items() if name != field}
        try:
            module.read_state(with_state(best, path, lambda state, without=without: json.dumps(without)))
        except UserError as error:
            require_refusal(error, path, field)
        else:
            assert field in ("scaler", "palette", "is_evaluated"), field  # they have a default
    tried("a checkpoint whose state was changed", target.name, len(seen))


@PER_PROJECT
def test_metadata_of_an_export_with_values_of_every_kind(target, tried):
    """What an .onnx file says of itself is read as it is meant, or the file is named."""
    module = importlib.import_module(f"{target.name}.inference")
    info = module.read_checkpoint_info(trained(target).best)
    texts = info.to_texts()
    assert module.ModelInfo.from_texts(texts, "model.onnx") == info
    count = 0
    for field, text in texts.items():
        is_text = isinstance(getattr(info, field), str)
        for value in ("", "{", "[" * 100_000, *map(json.dumps, STATE_VALUES)):
            count += 1
            try:
                found = module.ModelInfo.from_texts({**texts, field: value}, "model.onnx")
            except UserError as error:
                require_refusal(error, "model.onnx")
            else:
                kinds = {type(getattr(found, field)), type(getattr(info, field))}
                assert is_text or len(kinds) == 1 or kinds <= {int, float, tuple, type(None)}, (field, value, text)
        with pytest.raises(UserError, match="model.onnx"):
            module.ModelInfo.from_texts({key: value for key, value in texts.items() if key != field}, "model.onnx")
    tried("metadata of an export, changed", target.name, count + len(texts))


@PER_PROJECT
def test_other_classes_and_other_experiments(target, tmp_path, tried):
    best, path = trained(target).best, tmp_path / "best.safetensors"
    tried("a checkpoint of other classes or another experiment", target.name, 6)

    def more_classes(state):
        state["class_names"].append("four")
        state["palette"].append([1, 2, 3])

    def other_config(old, new):
        def change(state):
            assert old in state["config_text"]
            state["config_text"] = state["config_text"].replace(old, new)

        return change

    refused(target, with_state(best, path, more_classes), "the network has")
    refused(target, with_state(best, path, other_config("batch_size: 2", "batch_size: two")), "batch_size")
    refused(target, with_state(best, path, other_config("batch_size: 2", "batch_sise: 2")), "batch_sise")
    refused(target, with_state(best, path, other_config("batch_size: 2", "batch_size: !!python/name:os.system")), "tag")
    refused(target, with_state(best, path, other_config("batch_size: 2", "batch_size: [")), "not valid YAML")
    data = tmp_path / "data"
    shutil.copytree(trained(target).data, data)
    (data / "classes.yaml").write_text("name: others\nclasses: [one, two, three, four]\n")
    with nothing_written(data, tmp_path / "out"):
        refusal(call(target.eval(best, data, tmp_path / "out")), best, "made for 3 classes", "the data has 4")


@PER_PROJECT
def test_tensors_of_another_kind_are_named(target, tmp_path, tried):
    best, path = trained(target).best, tmp_path / "best.safetensors"
    metadata, tensors = read_safetensors(best)
    name = next(name for name in weights_of(best) if name.startswith(MODEL) and len(tensors[name].shape) == 4)
    one, plain = tensors[name], name.removeprefix(MODEL)
    wide = [*one.shape[:-1], 2 * one.shape[-1]]
    changes = {
        "left out": ({key: value for key, value in tensors.items() if key != name}, plain),
        "renamed": ({(f"{key}x" if key == name else key): value for key, value in tensors.items()}, plain),
        "besides": ({**tensors, f"{MODEL}more": one}, "more"),
        "turned": ({**tensors, name: one._replace(shape=one.shape[::-1])}, plain),
        "flat": ({**tensors, name: one._replace(shape=[int(np.prod(one.shape))])}, plain),
        "whole numbers": ({**tensors, name: one._replace(dtype="I32")}, plain),
        "bfloat16": ({**tensors, name: one._replace(dtype="BF16", shape=wide)}, ""),
        "float16": ({**tensors, name: one._replace(dtype="F16", shape=wide)}, plain),
        "of another length": ({**tensors, name: one._replace(shape=wide)}, ""),
        "of no known kind": ({**tensors, name: one._replace(dtype="F31")}, ""),
    }
    tried("a checkpoint with a tensor of another kind", target.name, len(changes) + 1)
    for kind, (changed, word) in changes.items():
        try:
            refused(target, write_safetensors(path, metadata, changed), word)
        except BaseException as error:
            raise AssertionError(kind) from error
    refused(target, write_safetensors(path, metadata, tensors, more=10**12))


@PER_PROJECT
def test_values_that_are_not_finite_are_named(target, tmp_path, tried):
    """One NaN or infinite number in any tensor of the network."""
    best, path = trained(target).best, tmp_path / "best.safetensors"
    names = [name for name in weights_of(best) if name.startswith(MODEL)]
    seen = []

    @settings(max_examples=15, derandomize=True, deadline=None, database=None)
    @given(st.sampled_from(names), st.sampled_from([np.nan, np.inf, -np.inf]))
    def spoil(name, value):
        seen.append(name)
        refused(target, with_values(best, path, name, value), f"'{name.removeprefix(MODEL)}'", "not finite")

    spoil()
    tried("a checkpoint with a number that is not finite", target.name, len(seen))


def doors(target, weights: Path, out: Path) -> dict:
    """Every command of a project that opens weights."""
    return {
        "eval": target.eval(weights, trained(target).data, out),
        "predict": target.predict(weights, images(trained(target).data)[0], out),
        "export": target.export(weights, out, "--size", 65, 97),
    }


@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=SLOW)])
@PER_PROJECT
def test_eval_predict_and_export_of_it_end_with_the_tensor_named(target, value, tmp_path, tried):
    """export of the Paddle projects opens the weights in another process, which is left to the slow tests."""
    best = trained(target).best
    name = next(name for name in weights_of(best) if name.startswith(MODEL) and name.endswith("weight"))
    weights = with_values(best, tmp_path / "in" / "best.safetensors", name, value, everywhere=True)
    commands = doors(target, weights, tmp_path / "out")
    if target.framework == "paddle" and not np.isinf(value):
        del commands["export"]
        if target.name == "stdc_seg":  # on a CPU it exports what it predicts with
            commands["predict"] = target.command("predict", *commands["predict"].words, "--runtime", "paddle")
    tried("a checkpoint with numbers that are not finite", target.name, len(commands))
    for command in commands.values():
        with nothing_written(tmp_path / "out", weights.parent):
            refusal(call(command), f"'{name.removeprefix(MODEL)}'", "not finite")


@PER_PROJECT
def test_eval_predict_export_and_resume_refuse_what_is_cut(target, tmp_path, tried):
    whole = trained(target).last.read_bytes()
    weights = tmp_path / "run" / "last.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(whole[: len(whole) // 2])
    (weights.parent / "config.yaml").write_bytes((trained(target).folder / "config.yaml").read_bytes())
    commands = [*doors(target, weights, tmp_path / "out").values()]
    commands += [target.command("train", "--resume", path) for path in (weights, weights.parent)]
    tried("a cut checkpoint", target.name, len(commands))
    for command in commands:
        with nothing_written(tmp_path / "out", weights.parent):
            refusal(call(command), weights)


@PER_PROJECT
def test_resuming_from_a_state_of_the_optimizer_that_is_broken(target, tmp_path, tried):
    """Not a number in it, a part of it missing or of another shape: no step is done, no file changed."""
    run_ = trained(target)
    metadata, tensors = read_safetensors(run_.last)
    moments = [name for name in weights_of(run_.last) if name.startswith("optimizer.") and tensors[name].shape]
    name = max(moments, key=lambda name: len(tensors[name].data))
    flat = tensors[name]._replace(shape=[int(np.prod(tensors[name].shape))])
    folder = tmp_path / "run"
    path = folder / "last.safetensors"
    kinds = {
        "nan": lambda: with_values(run_.last, path, name, np.nan),
        "missing": lambda: write_safetensors(path, metadata, {k: v for k, v in tensors.items() if k != name}),
        "flat": lambda: write_safetensors(path, metadata, {**tensors, name: flat}),
        "none": lambda: write_safetensors(
            path, metadata, {k: v for k, v in tensors.items() if not k.startswith("optimizer.")}
        ),
    }
    tried("an optimizer's state that is broken", target.name, len(kinds))
    for make in kinds.values():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run_.folder, folder)
        make()
        words = ("--resume", folder, "--data", run_.data, "--iters", 4, "--extend")
        with nothing_written(folder):
            refusal(call(target.command("train", *words)), path)


@PER_PROJECT
def test_resuming_a_run_whose_tables_or_config_are_damaged(target, tmp_path, tried):
    run_, folder = trained(target), tmp_path / "run"
    kinds = {
        "train.csv": b"step,loss\nx,1\n",
        "eval.csv": b"step,split\n1,val,3\n",
        "per_class.csv": b"\xff\xfe\0",
        "config.yaml": b"\xff\xfe\0",
    }
    tried("a damaged file in a run to go on with", target.name, len(kinds))
    for name, content in kinds.items():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run_.folder, folder)
        (folder / name).write_bytes(content)
        if name == "config.yaml":
            (folder / "last.safetensors").unlink()  # with it the experiment is read from the checkpoint
        words = ("--resume", folder, "--data", run_.data, "--iters", 4, "--extend")
        with nothing_written(folder):
            refusal(call(target.command("train", *words)), folder / name)


@SLOW
@PER_PROJECT
def test_in_a_process_of_its_own_the_line_is_the_last(target, tmp_path, tried):
    tried("a cut checkpoint, in a process of its own", target.name)
    weights = tmp_path / "best.safetensors"
    weights.write_bytes(trained(target).best.read_bytes()[:5000])
    outcome = run(target.eval(weights, trained(target).data, tmp_path / "out"), timeout=230)
    line = refusal(outcome, weights)
    assert outcome.stderr.strip().splitlines()[-1] == f"error: {line}"
