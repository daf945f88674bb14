from awesome_pytorch_seg.models import build_model
from awesome_pytorch_seg.models.enet import DownsamplingBottleneck, SharedPReLU
from common.cli import UserError

import pytest
import torch
import torch.nn.functional as F
from torch import nn


@pytest.mark.parametrize(("num_classes", "parameters"), [(12, 350_652), (19, 351_660), (11, 350_652 - 16 * 9)])
def test_parameters_as_in_the_known_implementation(num_classes, parameters):
    assert sum(p.numel() for p in build_model("enet", num_classes=num_classes).parameters()) == parameters


@pytest.mark.parametrize("size", [(64, 96), (45, 61), (17, 30)])
def test_logits_have_the_size_of_the_image(size):
    torch.manual_seed(0)
    model = build_model("enet", num_classes=5)
    images = torch.randn(2, 3, *size)
    logits = model(images)["logits"]
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
    assert model.eval()(images).shape == (2, 5, *size)


def test_shared_prelu_is_pytorchs_with_its_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    ours, theirs = SharedPReLU().double(), nn.PReLU().double()
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (y * torch.arange(y.numel()).reshape(y.shape)).sum().backward()
        results.append((y.detach(), leaf.grad, layer.weight.grad.double()))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


def test_pooling_places_and_zero_channels():
    block = DownsamplingBottleneck(4, 6, dropout=0.0).eval()
    for p in block.branch.parameters():
        nn.init.zeros_(p)  # what is left is the pooled image
    x = torch.arange(4 * 16.0).reshape(1, 4, 4, 4)
    y, places = block(x)
    assert torch.equal(y[:, :4], F.max_pool2d(x, 2))
    assert y[:, 4:].abs().sum() == 0
    assert places[0, 0].tolist() == [[5, 7], [13, 15]]


def test_macs_are_those_of_the_known_implementation():
    macs = 0

    def count(layer, inputs, output):
        nonlocal macs
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        macs += layer.weight.numel() * pixels[0, 0].numel()

    model = build_model("enet", num_classes=12).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 256, 512))
    assert macs == 976_322_560


@pytest.mark.parametrize(
    ("name", "backbone", "message"),
    [("enett", None, "unknown network 'enett': did you mean 'enet'"), ("enet", "resnet50", "no separate backbone")],
)
def test_mistakes(name, backbone, message):
    with pytest.raises(UserError, match=message):
        build_model(name, backbone)
