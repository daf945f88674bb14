import dataclasses
import pickle

from common.cli import UserError
from common.config.typed import config_to_text
from stdc_seg.checkpoint import TrainState, load_backbone, load_model, load_optimizer, read_state, save_checkpoint
from stdc_seg.config import read_config
from stdc_seg.models import build_model
from stdc_seg.optimizer import build_optimizer

import numpy as np
import paddle
import pytest
import safetensors.numpy

CONFIG = read_config("quickstart")
STATE = TrainState(7, 0.5, 5, config_to_text(CONFIG), ("a", "b", "c"), CONFIG.data.mean, CONFIG.data.std)


def make(name="sgd"):
    paddle.seed(0)
    model = build_model("stdc1", num_classes=3)
    return model, build_optimizer(model, dataclasses.replace(CONFIG.optimizer, name=name))


def tensors_of(outputs):
    """The training outputs of a network, those of its auxiliary heads among them."""
    return [x for output in outputs.values() for x in (output if isinstance(output, tuple) else (output,))]


def train_two_steps(name):
    model, optimizer = make(name)
    for _ in range(2):
        sum((output**2).mean() for output in tensors_of(model(paddle.randn([2, 3, 65, 65])))).backward()
        optimizer.step()
        optimizer.clear_grad()
    return model, optimizer


@pytest.fixture(scope="module")
def trained():
    """A small network after two updates, with its optimizer."""
    return train_two_steps("sgd")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_everything_comes_back_bit_by_bit(name, tmp_path):
    model, optimizer = train_two_steps(name)
    save_checkpoint(tmp_path / "last.safetensors", model, STATE, optimizer)
    twin, twin_optimizer = make(name)
    assert load_model(tmp_path / "last.safetensors", twin, STATE.class_names) == STATE
    load_optimizer(tmp_path / "last.safetensors", twin, twin_optimizer)
    images = paddle.randn([2, 3, 65, 65])
    for network, optim in ((model, optimizer), (twin, twin_optimizer)):
        sum((output**2).mean() for output in tensors_of(network(images))).backward()
        optim.step()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), twin.state_dict()[key].numpy(), err_msg=key)


def test_state_reads_back_without_the_network(trained, tmp_path):
    save_checkpoint(tmp_path / "best.safetensors", trained[0], dataclasses.replace(STATE, best_miou=float("nan")))
    state = read_state(tmp_path / "best.safetensors")
    assert np.isnan(state.best_miou)
    assert (state.step, state.class_names, state.mean) == (7, ("a", "b", "c"), CONFIG.data.mean)
    with pytest.raises(UserError, match="no optimizer state"):
        load_optimizer(tmp_path / "best.safetensors", trained[0], trained[1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "y"), r"made for 3 classes \(a, b, c\), the data has 2 \(x, y\): use weights and data of the same"),
        (("a", "c", "b"), r"the data has 3 \(a, c, b\): the same names in another order"),
        (("x", "y", "z"), r"the data has 3 \(x, y, z\): use weights and data of the same classes"),
    ],
)
def test_other_classes_are_named(trained, tmp_path, names, message):
    save_checkpoint(tmp_path / "c.safetensors", trained[0], STATE)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "c.safetensors", trained[0], names)


def test_another_network_is_refused(trained, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", trained[0], STATE)
    with pytest.raises(UserError, match="fits another network: [1-9][0-9]* tensors are missing"):
        load_model(tmp_path / "c.safetensors", build_model("stdc2", num_classes=3), STATE.class_names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "model.extra": np.zeros(1, np.float32)}, r"1 are not known \(extra\)"),
        (
            lambda t: {k: v for k, v in t.items() if "conv_avg.bn.bias" not in k},
            r"missing \(context_path.conv_avg.bn.bias",
        ),
        (lambda t: {k: v.astype(np.float16) for k, v in t.items()}, "float16: convert"),
        (lambda t: {k: v.reshape(1, *v.shape) for k, v in t.items()}, "the network has"),
        (lambda t: {k: v * np.nan for k, v in t.items()}, "not finite"),
    ],
)
def test_each_wrong_tensor_is_named(trained, tmp_path, change, message):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, trained[0], STATE)
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.numpy.save_file(change(tensors), path, metadata=header)
    before = trained[0].state_dict()["context_path.conv_avg.bn.bias"].numpy().copy()
    with pytest.raises(UserError, match=message):
        load_model(path, trained[0], STATE.class_names)
    np.testing.assert_array_equal(trained[0].state_dict()["context_path.conv_avg.bn.bias"].numpy(), before)


def test_damaged_and_foreign_files_are_refused(trained, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", trained[0], STATE)
    data = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    for name, message in [
        ("half", "not a whole"),
        ("empty", "not a whole"),
        ("other", "not a checkpoint"),
        ("none", "no weight file"),
    ]:
        with pytest.raises(UserError, match=message):
            read_state(tmp_path / f"{name}.safetensors")


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_crafted_pickle_leaves_no_mark(tmp_path):
    mark = tmp_path / "mark"
    for name in ("w.pdparams", "w.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": Bomb(mark)}))
    backbone = build_model("stdc1").backbone
    with pytest.raises(UserError, match="refused, nothing in it was run"):
        load_backbone(tmp_path / "w.pdparams", backbone)
    for call in (lambda p: load_backbone(p, backbone), read_state):
        with pytest.raises(UserError, match="not a whole safetensors file"):
            call(tmp_path / "w.safetensors")
    assert not mark.exists()
    with open(tmp_path / "w.pdparams", "rb") as stream:  # the bomb is real: Python's own loader sets it off
        pickle.load(stream)["a"].close()
    assert mark.exists()


def test_the_parameters_of_an_exported_model_are_named(tmp_path):
    (tmp_path / "model.pdiparams").write_bytes(bytes(64))
    with pytest.raises(UserError, match=r"model\.pdiparams: the parameters of an exported model, without names"):
        load_backbone(tmp_path / "model.pdiparams", build_model("stdc1").backbone)


@pytest.mark.parametrize("suffix", [".pdparams", ".pdiparams", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbone_weights_load_whole_or_not_at_all(tmp_path, suffix, prefix):
    paddle.seed(1)
    source, target = build_model("stdc1").backbone, build_model("stdc1").backbone
    path = tmp_path / f"w{suffix}"

    def write(tensors):
        if suffix != ".safetensors":
            paddle.save({prefix + k: v for k, v in tensors.items()}, str(path))
        else:
            safetensors.numpy.save_file({prefix + k: v.numpy() for k, v in tensors.items()}, path)

    tensors = source.state_dict()
    write({**tensors, "linear.weight": paddle.zeros([2, 2])})
    load_backbone(path, target)
    for name, value in tensors.items():
        np.testing.assert_array_equal(target.state_dict()[name].numpy(), value.numpy())
    dropped = next(iter(tensors))
    write({k: v for k, v in tensors.items() if k != dropped})
    with pytest.raises(UserError, match=rf"1 tensors are missing \({dropped}\)"):
        load_backbone(path, target)
