"""Training steps: the same numbers in every graph, mixed precision's bookkeeping, what is refused."""

from types import SimpleNamespace

from common.cli import UserError
from paddleseg_benchmark import updates
from paddleseg_benchmark.zoo import zoo

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.amp import grad_scaler
from pdseg_runs import batch, small_network

CE = [{"type": "CrossEntropyLoss"}]


def weights_of(network):
    return {name: value.numpy().copy() for name, value in network.network.state_dict().items()}


def test_a_step_is_one_update_of_sgd_with_momentum_and_decay():
    """Twice: the rate of the config's poly schedule, weight decay in the gradient, momentum 0.9."""
    paddle.seed(0)
    network = small_network(CE, [1])
    images, labels = batch((8, 8))
    stepper = updates.DynamicStep(network, iters=10)
    weight = network.network.heads[0].weight
    velocity = 0.0
    for number in range(2):
        before = weight.numpy().copy()
        network(paddle.to_tensor(images), paddle.to_tensor(labels)).backward()
        gradient = weight.grad.numpy().copy()
        weight.clear_grad()
        network.network.heads[0].bias.clear_grad()
        stepper.run(images, labels)
        velocity = 0.9 * velocity + gradient + 4e-5 * before
        rate = 0.01 * (1 - number / 10) ** 0.9
        np.testing.assert_allclose(weight.numpy(), before - rate * velocity, atol=1e-7)
    assert stepper.schedule.last_epoch == 2


@pytest.fixture(scope="module")
def graphs():
    """Three steps of ShuffleNetV2 (it has no dropout) in every graph: losses, weights after them, predictions."""
    images, labels = batch((32, 48))

    def build():
        paddle.seed(0)
        return zoo.build("shufflenetv2")

    steppers = {graph: updates.DynamicStep(build(), graph=graph, iters=10) for graph in ("dynamic", "to_static")}
    steppers["static"] = updates.StaticStep(build, 2, (32, 48), iters=10)
    results = {}
    for graph, stepper in steppers.items():
        losses = [stepper.run(images, labels).loss for _ in range(3)]
        pred = stepper.predict(images)
        results[graph] = losses, weights_of(stepper.zoo_network), pred, stepper.parameters
    return results


@pytest.mark.parametrize("graph", ["to_static", "static"])
def test_every_graph_gives_the_losses_and_weights_of_the_dynamic_one(graphs, graph):
    losses, weights, pred, parameters = graphs[graph]
    dynamic_losses, dynamic_weights, dynamic_pred, dynamic_parameters = graphs["dynamic"]
    assert losses == pytest.approx(dynamic_losses, rel=1e-5)
    assert losses[0] != losses[2]
    assert weights.keys() == dynamic_weights.keys()
    for name, value in dynamic_weights.items():
        np.testing.assert_allclose(weights[name], value, atol=1e-4 * max(1e-2, np.abs(value).max()), err_msg=name)
    assert (pred == dynamic_pred).mean() > 0.99
    assert parameters == dynamic_parameters == 135_813


def test_paddle_is_in_the_dynamic_graph_again_after_a_static_step(graphs):
    assert paddle.in_dynamic_mode()


def test_a_careful_step_leaves_the_weights_where_the_loss_is_no_number():
    images, labels = batch((8, 8))
    infinite = images.copy()
    infinite[0, 0, 0, 0] = np.inf
    updated = []
    for careful in (True, False):
        network = small_network(CE, [1])
        before = weights_of(network)
        result = updates.DynamicStep(network, careful=careful).run(infinite, labels)
        assert not np.isfinite(result.loss) and not result.skipped
        updated.append(any((value != before[name]).any() for name, value in weights_of(network).items()))
    assert updated == [False, True]


def test_predict_is_the_class_of_the_largest_logit():
    network = small_network(CE, [1])
    images, _ = batch((8, 8))
    logits = network.network(paddle.to_tensor(images))[0].numpy()
    pred = updates.DynamicStep(network).predict(images)
    assert pred.dtype == np.uint8
    np.testing.assert_array_equal(pred, logits.argmax(1))


@pytest.fixture
def scaler_on_cpu(monkeypatch):
    """Lets Paddle's GradScaler, which switches itself off on a CPU, work there: its operators do."""
    gpu = SimpleNamespace(
        _expected_place=SimpleNamespace(
            is_gpu_place=lambda: True, is_xpu_place=lambda: False, is_custom_place=lambda: False
        )
    )
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", lambda: gpu)


@pytest.mark.filterwarnings("ignore:amp_guard can only be enabled")
def test_fp16_updates_once_with_the_unscaled_gradient(scaler_on_cpu):
    images, labels = batch((8, 8))
    weights = []
    for precision in ("fp32", "o1_fp16"):  # a CPU computes both in float32, so only scaling can differ
        paddle.seed(0)
        network = small_network(CE, [1])
        stepper = updates.DynamicStep(network, precision, iters=10)
        result = stepper.run(images, labels)
        weights.append(weights_of(network))
    assert (result.skipped, result.scale) == (False, 1024.0)
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:amp_guard can only be enabled")
def test_fp16_leaves_out_a_step_with_an_infinite_gradient_and_halves_the_scale(scaler_on_cpu):
    network = small_network(CE, [1])
    stepper = updates.DynamicStep(network, "o1_fp16", iters=10)
    images, labels = batch((8, 8))
    infinite = images.copy()
    infinite[0, 0, 0, 0] = np.inf
    before = weights_of(network)
    results = [stepper.run(infinite, labels), stepper.run(infinite, labels)]
    assert [(result.skipped, result.scale) for result in results] == [(True, 512.0), (True, 256.0)]
    assert all((value == before[name]).all() for name, value in weights_of(network).items())
    result = stepper.run(images, labels)
    assert (result.skipped, result.scale) == (False, 256.0)
    after = weights_of(network)
    assert all((value != before[name]).any() for name, value in after.items())
    assert all(np.isfinite(value).all() for value in after.values())


class Products(nn.Layer):
    """A 1x1 convolution out of products and sums, which mixed precision leaves in float32 on every device."""

    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([19, 3])

    def forward(self, x):
        return [(x.unsqueeze(1) * self.weight.reshape([1, 19, 3, 1, 1])).sum(2)]


def products_network():
    paddle.seed(0)
    network = small_network(CE, [1])
    network.network = Products()
    return network


def test_fp16_in_a_static_program_scales_and_leaves_out_infinite_gradients():
    images, labels = batch((8, 8))
    infinite = images.copy()
    infinite[0, 0, 0, 0] = np.inf
    single, half = (updates.StaticStep(products_network, 2, (8, 8), p, iters=10) for p in ("fp32", "o1_fp16"))
    expected, result = single.run(images, labels), half.run(paddle.to_tensor(images), paddle.to_tensor(labels))
    assert (result.loss, result.skipped, result.scale) == (pytest.approx(expected.loss), False, 1024.0)
    for stepper in (single, half):
        stepper.update_zoo_network()
    weights = weights_of(half.zoo_network)["weight"]
    np.testing.assert_allclose(weights, weights_of(single.zoo_network)["weight"], atol=1e-6)
    results = [half.run(infinite, labels), half.run(images, labels)]
    assert [(r.skipped, r.scale) for r in results] == [(True, 512.0), (False, 512.0)]
    half.update_zoo_network()
    assert np.isfinite(weights_of(half.zoo_network)["weight"]).all()
    assert np.isfinite(results[1].loss)


class Pooled(nn.Layer):
    """Image pooling, which normalises one value per image and channel."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2D(3, 19, 1), nn.BatchNorm2D(19)

    def forward(self, x):
        return [self.conv(x) + self.norm(self.conv(x).mean([2, 3], keepdim=True))]


def pooled_network():
    network = small_network(CE, [1])
    network.network = Pooled()
    return network


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_one_image_under_image_pooling_is_refused(graph):
    images, labels = batch((8, 8), count=1)
    with pytest.raises(UserError, match=r"'network.norm' would see one value per channel \(input \[1, 19, 1, 1\]\)"):
        if graph == "dynamic":
            updates.DynamicStep(pooled_network()).run(images, labels)
        else:
            updates.StaticStep(pooled_network, 1, (8, 8))
    assert paddle.in_dynamic_mode()


def test_two_images_under_image_pooling_train():
    images, labels = batch((8, 8), count=2)
    assert updates.DynamicStep(pooled_network()).run(images, labels).loss > 0


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (("cpu", "fp32", "NCHW", "dynamic", "fcn_hrnet_w18"), None),
        (("cpu", "fp32", "NHWC", "dynamic", "deeplabv3p_resnet101"), None),
        (("cpu", "fp32", "NCHW", "static", "fcn_hrnet_w18"), None),
        (("gpu", "o2_fp16", "NCHW", "to_static", "emanet_resnet50"), None),
        (("cpu", "bf16", "NCHW", "dynamic", "unet"), "not supported here: Paddle has no mixed precision on a CPU"),
        (("cpu", "fp32", "NHWC", "dynamic", "unet"), "in paddleseg 2.8.0 only DeepLabV3P takes data_format"),
        (("gpu", "fp32", "NCHW", "static", "gscnn_resnet50"), "Canny edges are computed by OpenCV"),
        (("gpu", "o2_fp16", "NCHW", "static", "fcn_hrnet_w18"), "not built here: O2 in a static Program"),
        (("cpu", "fp32", "NCHW", "static", "emanet_resnet101"), "registers a tensor as buffer"),
    ],
)
def test_what_cannot_run_says_why(cell, why):
    answer = updates.unsupported(*cell)
    assert answer is None if why is None else why in answer


def test_an_unknown_precision_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'o1_fp16'"):
        updates.unsupported("cpu", "o1_fp", "NCHW", "dynamic", "unet")


ROW_OF = {"GSCNN": "gscnn_resnet50", "ISANet": "isanet_resnet50", "HarDNet": "hardnet", "SFNet": "sfnet_resnet50"}
ROW_OF |= {"DecoupledSegNet": "decoupled_segnet_resnet50", "EMANet": "emanet_resnet50", "UNet3Plus": "unet_3plus"}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "graph"), list(zoo.GRAPH_OBSTACLES))
def test_what_is_said_to_have_no_graph_fails_in_it(network, graph):
    """Once this fails for a network, its obstacle can go."""
    images, labels = batch((64, 80))
    with pytest.raises(Exception):  # noqa: B017 - whatever paddle raises
        if graph == "static":
            updates.StaticStep(lambda: zoo.build(ROW_OF[network]), 2, (64, 80))
        else:
            updates.DynamicStep(zoo.build(ROW_OF[network]), graph=graph).run(images, labels)
    assert paddle.in_dynamic_mode()
