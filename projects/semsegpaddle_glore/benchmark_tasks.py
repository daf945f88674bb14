"""What benchmark.py measures: a training step, a forward or the memory of evaluating, of our network or a peer's."""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable

from common.machine.bench import Task, make_batch, seconds_of
from common.metrics import ConfusionMatrix
from semsegpaddle_glore.config import read_config
from semsegpaddle_glore.data.transforms import normalize
from semsegpaddle_glore.eval import cross_entropy_of_probabilities
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.models import build_model
from semsegpaddle_glore.models.layers import refuse_single_value_batch_norm
from semsegpaddle_glore.optimizer import build_optimizer
from semsegpaddle_glore.protocol import EvalProtocol, class_scores
from semsegpaddle_glore.updates import Updater

import numpy as np
import paddle
from paddle import nn

NETWORKS = ("ours", "paddleseg", "paddleseg_512")
NUM_CLASSES = 19
MEMORY_PROTOCOL = EvalProtocol(None, (1.0,), False, (769, 769), 2 / 3)
MEMORY_WINDOWS = 2  # of an image that are computed; the second finds what the first left behind


def prepare(network: str, task: Task) -> Callable[[], float]:
    """Returns a function that does the task once and returns what it measured.

    "train" (a step) and "infer" (a forward) are measured in seconds, "memory" (of evaluating one image) in GiB.
    """
    paddle.seed(0)
    model = build_network(network)
    if task.kind == "memory":
        return functools.partial(peak_of_evaluating, model, (task.height, task.width))
    images, label = make_batch(task, NUM_CLASSES)
    if task.kind == "infer":
        return functools.partial(seconds_of, _forward_step(model, paddle.to_tensor(images)))
    model.train()
    training_step = _our_training_step if network == "ours" else _paddleseg_training_step
    return functools.partial(seconds_of, training_step(model, images, label))


def build_network(network: str) -> nn.Layer:
    """One of `NETWORKS`."""
    if network == "ours":
        return build_model("pspnet", "resnet50", NUM_CLASSES, output_stride=8)
    from paddleseg.models import PSPNet
    from paddleseg.models.backbones import ResNet50_vd

    channels = 512 if network == "paddleseg_512" else 1024
    return PSPNet(NUM_CLASSES, ResNet50_vd(output_stride=8), pp_out_channels=channels)


def peak_of_evaluating(model: nn.Layer, size: tuple[int, int], windows: int = MEMORY_WINDOWS) -> float:
    """The process's peak in GiB after what eval.py does with one image of `size`, of which `windows` are computed.

    The windows after them take over the last result.
    """
    computed, logits = 0, None

    def first_windows(images: paddle.Tensor) -> paddle.Tensor:
        nonlocal computed, logits
        if computed < windows:
            computed, logits = computed + 1, model(images)
        return logits

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.integers(0, NUM_CLASSES, size, dtype=np.uint8)
    model.eval()
    normalized = normalize(image, (0.5,) * 3, (0.25,) * 3)[None]
    probs = class_scores(first_windows, normalized, size, MEMORY_PROTOCOL)[0]
    ConfusionMatrix(NUM_CLASSES).update(label, probs.argmax(axis=0))
    cross_entropy_of_probabilities(probs, label)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _forward_step(model: nn.Layer, images: paddle.Tensor) -> Callable[[], float]:
    model.eval()

    @paddle.no_grad()
    def step() -> float:
        outputs = model(images)  # paddleseg's is a list
        return float((outputs[0] if isinstance(outputs, list) else outputs).flatten()[0])

    return step


def _our_training_step(model: nn.Layer, images: np.ndarray, label: np.ndarray) -> Callable[[], float]:
    """As `train.Trainer` does it, with the losses and the optimizer of pspnet_res101_cityscapes.yaml."""
    config = read_config("pspnet_res101_cityscapes")
    updater = Updater(model, SegmentationLoss(config.loss), build_optimizer(model, config.optimizer), seed=0)

    def step() -> float:
        with refuse_single_value_batch_norm(model):
            value, _ = updater.gradients(images, label, 0)
        updater.apply(1e-4)
        return value

    return step


def _paddleseg_training_step(model: nn.Layer, images: np.ndarray, label: np.ndarray) -> Callable[[], float]:
    """As `paddleseg.core.train` does it, with the losses and the optimizer of its configs/pspnet."""
    from paddleseg.models.losses import CrossEntropyLoss

    class Loss(CrossEntropyLoss):
        def _post_process_loss(self, logit, label, semantic_weights, loss):
            return super()._post_process_loss(logit, label.astype("float32"), semantic_weights, loss)

    loss = Loss()
    schedule = paddle.optimizer.lr.PolynomialDecay(1e-4, decay_steps=80000, end_lr=0, power=0.9)
    optimizer = paddle.optimizer.Momentum(schedule, 0.9, parameters=model.parameters(), weight_decay=4e-5)

    def step() -> float:
        target = paddle.to_tensor(label)
        logits, aux_logits = model(paddle.to_tensor(images))
        total = loss(logits, target) + 0.4 * loss(aux_logits, target)
        total.backward()
        optimizer.step()
        schedule.step()
        model.clear_gradients()
        return float(total)

    return step
