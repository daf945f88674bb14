"""ShuffleNetV2 against the same network written in torch."""

from paddleseg_benchmark.zoo.models.shufflenet_v2 import ShuffleNetV2

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def network():
    """With weights and statistics that are far from those at the start, in evaluation mode."""
    paddle.seed(0)
    network, rng = ShuffleNetV2(num_classes=19), np.random.default_rng(0)
    for name, value in network.state_dict().items():
        low, high = (0.5, 1.5) if name.endswith("_variance") else (-0.3, 0.3)
        value.set_value(rng.uniform(low, high, value.shape).astype(np.float32))
    network.eval()
    return network


class TorchTwin:
    """The network in torch, from the paper's figure 3 and the channels of PaddleSeg 2.1, on the weights of ours."""

    def __init__(self, network):
        self.weights = iter(
            [(n, torch.tensor(v.numpy())) for n, v in network.state_dict().items()]  # in the order of construction
        )
        self.loaded = {}

    def take(self, count):
        return [next(self.weights)[1] for _ in range(count)]

    def conv_bn(self, x, stride=1, groups=1, relu=True):
        weight, gamma, beta, mean, variance = self.take(5)
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        x = F.batch_norm(x, mean, variance, gamma, beta, eps=1e-5)
        return F.relu(x) if relu else x

    def separable(self, x, stride=1):
        x = self.conv_bn(x, stride, groups=x.shape[1], relu=False)
        return self.conv_bn(x)

    def unit(self, x, projects):
        if projects:
            left = self.separable(x, stride=2)
            right = self.separable(self.conv_bn(x), stride=2)
        else:
            left, right = x.chunk(2, dim=1)
            right = self.separable(self.conv_bn(right))
        batch, channels, height, width = left.shape
        shuffled = torch.cat([left, right], 1).reshape(batch, 2, channels, height, width).transpose(1, 2)
        return shuffled.reshape(batch, 2 * channels, height, width)

    def __call__(self, x):
        size = x.shape[2:]
        x = self.conv_bn(x, stride=2)
        shortcut = self.conv_bn(x)
        x = F.max_pool2d(x, 3, 2, 1)
        for count in (4, 8):
            for number in range(count):
                x = self.unit(x, projects=number == 0)
        x = F.interpolate(self.separable(x), shortcut.shape[2:], mode="bilinear", align_corners=False)
        x = self.separable(torch.cat([shortcut, x], 1))
        weight, bias = self.take(2)
        assert next(self.weights, None) is None
        return F.conv_transpose2d(x, weight, bias, stride=2)[:, :, : size[0], : size[1]]


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_logits_equal_torchs(network, size):
    x = np.random.default_rng(1).standard_normal((2, 3, *size), dtype=np.float32)
    ours = network(paddle.to_tensor(x))[0].numpy()
    with torch.no_grad():
        theirs = TorchTwin(network)(torch.tensor(x)).numpy()
    assert ours.shape == (2, 19, *size)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert ours.std() > 0.01


def test_first_weights_are_those_of_paddleseg():
    paddle.seed(0)
    network = ShuffleNetV2(num_classes=19)
    convolutions = [layer.weight.numpy() for layer in network.sublayers() if isinstance(layer, paddle.nn.Conv2D)]
    assert np.concatenate([w.ravel() for w in convolutions]).std() == pytest.approx(0.001, rel=0.02)
    assert network.deconv.weight.numpy().std() > 0.01
