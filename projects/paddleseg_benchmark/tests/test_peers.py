import sys
import types

from paddleseg_benchmark.matrix import peers
from paddleseg_benchmark.matrix.measure import Cell, make_batch

import numpy as np
import pytest
import torch
from torch import nn


def batch(height=64, width=96):
    return make_batch(Cell("timm", "fcn_hrnet_w18", height=height, width=width))


def cross_entropy(logits, labels):
    """Mean over pixels that are not 255, of -log softmax at the label."""
    logits = logits.astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=1))  # (B, H, W)
    at_label = np.take_along_axis(logits, np.where(labels == 255, 0, labels)[:, None], axis=1)[:, 0]
    return (log_sum - at_label)[labels != 255].mean()


def test_a_step_is_the_cross_entropy_of_valid_pixels_and_one_update():
    images, labels = batch()
    step = peers.open_stepper("timm", "fcn_hrnet_w18", "fp32", "NCHW", "dynamic")
    assert step.parameters == 9_641_119  # as paddleseg's FCN with HRNet_W18 and 19 classes
    module = step._network.module
    with torch.no_grad():
        module.train()
        logits = step._network.logits(torch.from_numpy(images)).numpy()
    before = module.decode_head[3].weight.detach().clone()
    result = step.run(images, labels)
    assert logits.shape == (2, 19, 64, 96)
    assert result.loss == pytest.approx(cross_entropy(logits, labels), abs=1e-5)
    assert (result.skipped, result.scale) == (False, None)
    weight = module.decode_head[3].weight
    expected = before - 0.01 * (weight.grad + 4e-5 * before)  # SGD; momentum has no past yet
    assert torch.allclose(weight, expected, atol=1e-7)
    pred = step.predict(images)
    assert (pred.shape, pred.dtype) == ((2, 64, 96), np.uint8)
    assert pred.max() < 19


def test_pspnet_is_dilated_over_the_whole_resnet():
    network = peers.BUILDERS["smp"]["pspnet_resnet50"]()
    assert network.encoder(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2048, 8, 8)  # stride 8
    network.eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 19, 64, 64)


def test_sync_bn_is_replaced_at_every_depth():
    config = {
        "norm_cfg": {"type": "SyncBN", "momentum": 0.01},
        "heads": [{"norm_cfg": {"type": "SyncBN"}, "type": "Head"}],
    }
    assert peers.with_plain_batch_norm(config) == {
        "norm_cfg": {"type": "BN", "momentum": 0.01},
        "heads": [{"norm_cfg": {"type": "BN"}, "type": "Head"}],
    }


def test_versions_of_mmsegmentation_come_from_its_own_interpreter(tmp_path):
    assert peers.mmseg_packages(None) is None
    assert peers.mmseg_packages(str(tmp_path / "python")) is None
    other = tmp_path / "other"
    other.write_text('#!/bin/sh\necho \'{"torch": "2.15.0", "mmsegmentation": "1.2.2"}\'\n')
    other.chmod(0o755)
    assert peers.mmseg_packages(str(other)) == {"torch": "2.15.0", "mmsegmentation": "1.2.2"}


def test_mmcv_lite_gets_a_stand_in_for_its_compiled_operators(tmp_path, monkeypatch):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mmcv", "mmcv._ext"):
        monkeypatch.setitem(sys.modules, name, None)  # to be removed again after the test
        del sys.modules[name]
    peers.stand_in_for_compiled_ops()
    ext = sys.modules["mmcv._ext"]
    assert hasattr(ext, "nms") and not hasattr(ext, "__wrapped__")
    with pytest.raises(NotImplementedError, match="mmcv-lite has no compiled operator 'nms'"):
        ext.nms(1)


class Segmentor(nn.Module):
    """Answers as mmsegmentation's EncoderDecoder: a dictionary in mode "loss", samples in mode "predict"."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(3, 19, 1)

    def forward(self, images, samples=None, mode="tensor"):
        logits = self.conv(images)
        if mode == "predict":
            return [types.SimpleNamespace(seg_logits=types.SimpleNamespace(data=each)) for each in logits]
        assert mode == "loss"
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])  # (B, H, W)
        loss = nn.functional.cross_entropy(logits, labels, ignore_index=255)
        return {"decode.loss_ce": loss, "decode.acc_seg": torch.tensor([50.0]), "aux.loss_ce": 0.4 * loss}


def stand_in_modules(tmp_path):
    class Config(dict):
        __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

        @classmethod
        def fromfile(cls, path):
            assert path.relative_to(tmp_path).as_posix() == ".mim/configs/_base_/models/fast_scnn.py"
            return cls(model=cls(type="EncoderDecoder", pretrained="somewhere", norm_cfg={"type": "SyncBN"}))

    called = []
    return called, {
        "mmcv": types.ModuleType("mmcv"),
        "mmcv._ext": types.SimpleNamespace(__spec__=types.SimpleNamespace()),
        "mmseg": types.SimpleNamespace(__file__=str(tmp_path / "__init__.py")),
        "mmseg.registry": types.SimpleNamespace(MODELS=types.SimpleNamespace(build=Segmentor)),
        "mmseg.utils": types.SimpleNamespace(register_all_modules=lambda: called.append("registered")),
        "mmseg.structures": types.SimpleNamespace(SegDataSample=types.SimpleNamespace),
        "mmengine": types.SimpleNamespace(),
        "mmengine.config": types.SimpleNamespace(Config=Config),
        "mmengine.structures": types.SimpleNamespace(PixelData=types.SimpleNamespace),
    }


def test_mmsegmentation_is_asked_for_losses_and_predictions(tmp_path, monkeypatch):
    called, modules = stand_in_modules(tmp_path)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    step = peers.open_stepper("mmseg", "fastscnn", "fp32", "NHWC", "dynamic")
    module = step._network.module
    assert called == ["registered"]
    assert module.config == {"type": "EncoderDecoder", "pretrained": None, "norm_cfg": {"type": "BN"}}
    images, labels = batch()
    with torch.no_grad():
        logits = module.conv(torch.from_numpy(images)).numpy()
    assert step.run(images, labels).loss == pytest.approx(1.4 * cross_entropy(logits, labels), abs=1e-5)
    with torch.no_grad():
        expected = module.conv(torch.from_numpy(images)).argmax(dim=1).numpy()
    assert np.array_equal(step.predict(images), expected)
