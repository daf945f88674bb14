import math

from common.cli import UserError
from semsegpaddle_glore.models.layers import (
    ConvBNReLU,
    batch_norm,
    bilinear_weights,
    conv2d,
    global_avg_pool,
    refuse_single_value_batch_norm,
    resize_bilinear,
    upsample_nearest,
)

import numpy as np
import paddle
import pytest
import torch
from paddle import nn


@pytest.mark.parametrize("size", [(17, 33), (5, 6), (9, 14), (2, 40)])
def test_bilinear_resizing_agrees_with_torch(size):
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 13), dtype=np.float32)
    gradient = np.random.default_rng(1).standard_normal((2, 3, *size), dtype=np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.interpolate(theirs, size=size, mode="bilinear", align_corners=True)
    expected.backward(torch.from_numpy(gradient))
    trained = paddle.to_tensor(x, stop_gradient=False)
    output = resize_bilinear(trained, size)  # by matrix products
    output.backward(paddle.to_tensor(gradient))
    for ours in (output, resize_bilinear(paddle.to_tensor(x), size)):
        np.testing.assert_allclose(ours.numpy(), expected.detach().numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(trained.grad.numpy(), theirs.grad.numpy(), rtol=0, atol=1e-5)


def test_bilinear_weights_by_hand():
    np.testing.assert_allclose(bilinear_weights(2, 3), [[1, 0], [0.5, 0.5], [0, 1]])


def test_nearest_upsampling_repeats_and_crops():
    x = paddle.arange(4, dtype="float32").reshape([1, 1, 2, 2])
    np.testing.assert_array_equal(
        upsample_nearest(x, 2, (3, 4))[0, 0].numpy(), [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    )


def test_nearest_upsampling_exports_with_free_sizes(tmp_path):
    class Upsample(nn.Layer):
        def forward(self, small, large):
            return upsample_nearest(small, 2, large.shape[2:]) + large

    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", name) for name in ("small", "large")]
    paddle.jit.save(paddle.jit.to_static(Upsample(), input_spec=spec, full_graph=True), str(tmp_path / "model"))
    loaded = paddle.jit.load(str(tmp_path / "model"))
    for size in ((9, 14), (5, 3)):
        small = paddle.randn([2, 3, math.ceil(size[0] / 2), math.ceil(size[1] / 2)])
        large = paddle.randn([2, 3, *size])
        np.testing.assert_array_equal(loaded(small, large).numpy(), Upsample()(small, large).numpy())


def test_convolutions_start_with_the_stated_spread_and_settings():
    paddle.seed(0)
    conv = conv2d(64, 128, 3, stride=2, dilation=2)
    assert conv.bias is None and conv(paddle.zeros([1, 64, 9, 10])).shape == [1, 128, 5, 5]
    assert float(conv.weight.std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    classifier = conv2d(512, 19, 1, bias=True, init="fan_in")
    assert float(classifier.weight.std()) == pytest.approx(math.sqrt(1 / 512), rel=0.05)
    assert float(classifier.bias.abs().max()) == 0
    depthwise = conv2d(256, 256, 3, groups=256)
    assert float(depthwise.weight.std()) == pytest.approx(math.sqrt(2 / 9), rel=0.1)
    block = ConvBNReLU(3, 8, 3, stride=2)
    assert float(block(paddle.randn([2, 3, 7, 7])).min()) == 0
    assert sorted(block.state_dict()) == ["bn._mean", "bn._variance", "bn.bias", "bn.weight", "conv.weight"]
    np.testing.assert_allclose(global_avg_pool(paddle.arange(6.0).reshape([1, 1, 2, 3])).numpy(), [[[[2.5]]]])


def test_a_large_plane_is_averaged_to_single_precision():
    x = np.random.default_rng(0).uniform(0, 2, (1, 8, 256, 512)).astype(np.float32)
    exact = x.mean((2, 3), dtype=np.float64, keepdims=True)
    ours = global_avg_pool(paddle.to_tensor(x)).numpy()
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x), 1).numpy()
    assert np.abs(ours - exact).max() < 1e-6 and np.abs(ours - theirs).max() < 1e-6


def test_batch_norm_moves_its_statistics_as_torchs_does():
    ours, theirs = batch_norm(3), torch.nn.BatchNorm2d(3)
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 6), dtype=np.float32)
    np.testing.assert_allclose(
        ours(paddle.to_tensor(x)).numpy(), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-6
    )
    np.testing.assert_allclose(ours._mean.numpy(), theirs.running_mean.numpy(), atol=1e-6)


def test_one_value_per_channel_is_refused_once():
    model = nn.Sequential(ConvBNReLU(3, 4), nn.AdaptiveAvgPool2D(1), ConvBNReLU(4, 4, 1))
    with (
        pytest.raises(UserError, match="'2.bn' would see one value per channel"),
        refuse_single_value_batch_norm(model),
    ):
        model(paddle.randn([1, 3, 8, 8]))
    with refuse_single_value_batch_norm(model):
        assert model(paddle.randn([2, 3, 8, 8])).shape == [2, 4, 1, 1]
        model.eval()
        model(paddle.randn([1, 3, 8, 8]))
    model.train()
    assert model(paddle.randn([1, 3, 8, 8])).shape == [1, 4, 1, 1]  # the hooks are gone
