import dataclasses
import pickle

from common.cli import UserError
from common.config.typed import config_from_text, config_to_text
from semsegpaddle_glore.checkpoint import (
    TrainState,
    load_backbone,
    load_model,
    load_optimizer,
    read_state,
    save_checkpoint,
)
from semsegpaddle_glore.config import Config, read_config
from semsegpaddle_glore.models import build_model
from semsegpaddle_glore.models.backbones import build_backbone
from semsegpaddle_glore.optimizer import build_optimizer

import numpy as np
import paddle
import pytest
import safetensors.numpy

CONFIG = read_config("quickstart")
SCALER = {"scale": [1024.0], "incr_count": 3, "use_dynamic_loss_scaling": True}
STATE = TrainState(7, 0.5, 5, config_to_text(CONFIG), ("a", "b", "c"), SCALER)


def make(name="sgd"):
    paddle.seed(0)
    model = build_model("glore", "resnet18", 3, output_stride=32, dropout=0.0)
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
    state = dataclasses.replace(STATE, best_miou=float("nan"))
    save_checkpoint(tmp_path / "best.safetensors", trained[0], state)
    state = read_state(tmp_path / "best.safetensors")
    assert np.isnan(state.best_miou)
    assert (state.step, state.class_names, state.scaler) == (7, ("a", "b", "c"), SCALER)
    assert config_from_text(Config, state.config_text, "stored") == CONFIG
    with pytest.raises(UserError, match="no optimizer state"):
        load_optimizer(tmp_path / "best.safetensors", trained[0], trained[1])


def test_the_same_state_gives_the_same_bytes(trained, tmp_path):
    for name in "abcd":
        save_checkpoint(tmp_path / name, trained[0], STATE, trained[1])
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1


def test_float16_weights_are_saved_and_resumed_as_their_float32_masters(tmp_path):
    """The state that `paddle.amp.decorate` at O2 leaves on a GPU, made by hand."""
    model, optimizer = train_two_steps("sgd")
    layer = model.decode_head.classifier
    masters = {p.name: p.astype("float32").numpy() for p in (layer.weight, layer.bias)}
    layer.to(dtype="float16")
    optimizer._master_weights = {name: paddle.to_tensor(value) for name, value in masters.items()}
    save_checkpoint(tmp_path / "last.safetensors", model, STATE, optimizer)

    twin, twin_optimizer = make("sgd")
    load_model(tmp_path / "last.safetensors", twin, STATE.class_names)
    twin_layer = twin.decode_head.classifier
    np.testing.assert_array_equal(twin_layer.weight.numpy(), masters[layer.weight.name])
    twin_layer.to(dtype="float16")
    load_optimizer(tmp_path / "last.safetensors", twin, twin_optimizer)
    resumed = twin_optimizer.state_dict()["master_weights"]
    assert resumed.keys() == {twin_layer.weight.name, twin_layer.bias.name}
    np.testing.assert_array_equal(resumed[twin_layer.weight.name].numpy(), masters[layer.weight.name])


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
        load_model(tmp_path / "c.safetensors", build_model("glore", "resnet34", 3), STATE.class_names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "model.extra": np.zeros(1, np.float32)}, r"1 are not known \(extra\)"),
        (
            lambda t: {k: v for k, v in t.items() if "aux_head.conv.bn.bias" not in k},
            r"missing \(aux_head.conv.bn.bias",
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
    before = trained[0].state_dict()["aux_head.conv.bn.bias"].numpy().copy()
    with pytest.raises(UserError, match=message):
        load_model(path, trained[0], STATE.class_names)
    np.testing.assert_array_equal(trained[0].state_dict()["aux_head.conv.bn.bias"].numpy(), before)


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
    backbone = build_backbone("resnet18")
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
        load_backbone(tmp_path / "model.pdiparams", build_backbone("resnet18"))


@pytest.mark.parametrize("suffix", [".pdparams", ".pdiparams", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbone_weights_load_whole_or_not_at_all(tmp_path, suffix, prefix):
    paddle.seed(1)
    source, target = build_backbone("resnet18"), build_backbone("resnet18")
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
