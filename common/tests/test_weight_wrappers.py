from common.cli import UserError
from common.weights.wrappers import plain_names, unwrap

import pytest

RAW, AVERAGED = {"conv.weight": 1.0, "bn.bias": 2.0}, {"conv.weight": 10.0, "bn.bias": 20.0}
LAYOUTS = {
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGED, "epoch": 3, "arch": "x"},
    "torchvision": {"model": RAW, "model_ema": {"n_averaged": 7, **AVERAGED}, "optimizer": {"state": {}}},
    "mmengine": {"state_dict": RAW, "ema_state_dict": {"steps": 7, **AVERAGED}, "meta": {"epoch": 1}},
    "detectron2": {"model": RAW, "ema_state": AVERAGED, "iteration": 7},
    "paddleclas": {"model": RAW, "ema": AVERAGED},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_and_averaged_weights_are_told_apart(layout):
    tensors, note = unwrap(LAYOUTS[layout], "w.pth")
    assert tensors == RAW
    assert "not the averaged weights" in note
    tensors, note = unwrap(LAYOUTS[layout], "w.pth", ema=True)
    assert tensors == AVERAGED
    assert note.startswith("the averaged weights")


def test_averaged_weights_alone_are_taken_and_said():
    tensors, note = unwrap({"ema": AVERAGED, "epoch": 1}, "w.pth")
    assert tensors == AVERAGED
    assert note == "the averaged weights 'ema', as there are no others"


def test_an_averaged_models_own_state():
    content = {"n_averaged": 5, "module.conv.weight": 10.0}
    assert unwrap(content, "w.pth").tensors == {"module.conv.weight": 10.0}
    assert unwrap(content, "w.pth", ema=True).tensors == {"module.conv.weight": 10.0}


@pytest.mark.parametrize("content", [RAW, {"state_dict": RAW}, {"model": {"state_dict": RAW}}, {"network": RAW}])
def test_without_averaged_weights_there_is_nothing_to_say(content):
    assert unwrap(content, "w.pth") == (RAW, None)
    with pytest.raises(UserError, match=r"w.pth: holds no averaged weights .* leave --ema out"):
        unwrap(content, "w.pth", ema=True)


def test_what_is_no_state_dict_is_refused():
    with pytest.raises(UserError, match="w.pth: holds a list, not a state dict"):
        unwrap([1], "w.pth")


def test_prefixes_come_off():
    names = ["module._orig_mod.conv.weight", "_orig_mod.module.bn.bias", "backbone._orig_mod.conv.weight"]
    assert list(plain_names(names, "w").values()) == ["conv.weight", "bn.bias", "backbone.conv.weight"]
    with pytest.raises(UserError, match="holds a tensor twice: 'a' and 'module.a'"):
        plain_names(["a", "module.a"], "w")
