"""What is changed in paddleseg: types of operands, GSCNN's maximum, weight files, and nothing else."""

import os
import pickle

from common.cli import UserError
from paddleseg_benchmark.zoo import paddleseg_compat, zoo

import numpy as np
import paddle
import pytest
import torch
from paddleseg.cvlibs import manager
from paddleseg.models import decoupled_segnet


def test_types_mix_only_within_mixed_types():
    floats, integers = paddle.full([2], 1.5), paddle.full([2], 2, "int64")
    with paddleseg_compat.mixed_types():
        assert [(floats * integers).tolist(), (integers * floats).tolist()] == [[3.0, 3.0], [2, 2]]
        assert (floats / integers).tolist() == [0.75, 0.75]
        assert (integers - (integers > 1)).tolist() == [1, 1]
    with pytest.raises(TypeError, match="Type promotion"):
        floats * integers


def test_floats_of_two_kinds_meet_as_they_do_without_mixed_types():
    half, single = paddle.ones([2], "float16"), paddle.full([2], 1e6)
    outside = (half + single).dtype
    with paddleseg_compat.mixed_types():
        assert (half + single).dtype == outside == paddle.float32


def test_apply_twice_changes_nothing_more():
    paddleseg_compat.apply()
    loss, warping = manager.LOSSES["DualTaskLoss"], decoupled_segnet.SqueezeBodyEdge
    before = loss.compute_grad_mag, warping.flow_warp
    paddleseg_compat.apply()
    assert (loss.compute_grad_mag, warping.flow_warp) == before


def test_gscnns_maximum_has_the_gradient_of_torchs_without_paddles_own_maximum(monkeypatch):
    """Paddle 3.3's takes minutes backward for 360 000 values, so it is not to be called."""
    paddleseg_compat.apply()
    values = np.random.default_rng(0).random((2, 3, 200, 300)).astype(np.float32)
    weights = np.random.default_rng(1).random(values.shape).astype(np.float32)
    scaled = paddleseg_compat._with_gathered_maximum(lambda x: x / x.max())
    x, y = paddle.to_tensor(values, stop_gradient=False), torch.tensor(values, requires_grad=True)
    with monkeypatch.context() as patched:
        patched.setattr(paddle.Tensor, "max", lambda *_: pytest.fail("Paddle's own maximum was called"))
        (scaled(x) * paddle.to_tensor(weights)).sum().backward()
    (y / y.max() * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-3, atol=1e-6)
    assert paddle.Tensor.max is not None
    assert float(paddle.to_tensor([1.0, 3.0]).max()) == 3.0


def test_weights_of_a_backbone_are_read_from_a_file(tmp_path):
    paddle.seed(1)
    trained = zoo.build("deeplabv3p_resnet50").network.backbone
    path = tmp_path / "backbone.pdparams"
    paddle.save(trained.state_dict(), str(path))
    paddle.seed(2)
    config = zoo.read_config("deeplabv3p.yml")
    config.dic["model"]["backbone"]["pretrained"] = str(path)
    loaded = zoo.build_from_config(config).network.backbone.state_dict()
    assert all((value.numpy() == loaded[name].numpy()).all() for name, value in trained.state_dict().items())


class _Marks:
    """A pickle of this makes a folder when it is loaded by a reader that runs what it reads."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_weight_file_is_run(tmp_path):
    path, mark = tmp_path / "evil.pdparams", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"weight": _Marks(mark)}))
    config = zoo.read_config("deeplabv3p.yml")
    config.dic["model"]["backbone"]["pretrained"] = str(path)
    with pytest.raises(UserError, match="refused, nothing in it was run"):
        zoo.build_from_config(config)
    assert not mark.exists()
