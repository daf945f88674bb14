import math

from common.cli import UserError
from semsegpaddle_glore.config import LossConfig
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.models import build_model, model_names
from semsegpaddle_glore.models.layers import refuse_single_value_batch_norm

import numpy as np
import paddle
import pytest

CLASSES = 4


@pytest.fixture(scope="module")
def small():
    """Each decode head on ResNet-18 at output stride 8, built once."""
    paddle.seed(0)
    return {name: build_model(name, "resnet18", CLASSES) for name in model_names()}


@pytest.mark.parametrize("name", model_names())
def test_outputs_have_the_inputs_size(small, name):
    model = small[name]
    images = paddle.randn([2, 3, 65, 97])
    model.train()
    outputs = model(images)
    assert set(outputs) == {"logits", "aux"} | ({"presence"} if name == "ginet" else set())
    assert outputs["logits"].shape == outputs["aux"][0].shape == [2, CLASSES, 65, 97]
    if name == "ginet":
        assert outputs["presence"].shape == [2, CLASSES]
    model.eval()
    with paddle.no_grad():
        logits = model(images)
        alone = model(images[:1])  # one image is enough in evaluation
        again = model(images)
    assert logits.shape == [2, CLASSES, 65, 97]
    np.testing.assert_array_equal(logits.numpy(), again.numpy())
    np.testing.assert_allclose(alone.numpy(), logits.numpy()[:1], atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize("name", model_names())
def test_a_step_moves_both_heads_and_the_backbone(name):
    paddle.seed(1)
    model = build_model(name, "resnet18", CLASSES, output_stride=16)
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    before = {key: value.numpy().copy() for key, value in model.named_parameters()}
    loss = SegmentationLoss(LossConfig(aux_weight=0.4, sc_weight=0.2))
    images, label = paddle.randn([2, 3, 65, 65]), paddle.randint(0, CLASSES, [2, 65, 65])
    with refuse_single_value_batch_norm(model):  # two images are enough, also after global pooling
        for _ in range(3):
            loss(model(images), label)[0].backward()
            optimizer.step()
            optimizer.clear_grad()
    assert not [key for key, value in model.named_parameters() if np.array_equal(value.numpy(), before[key])]
    assert all(math.isfinite(float(value.sum())) for value in model.parameters())


@pytest.mark.parametrize("name", model_names())
def test_heads_fit_resnet50(name):
    model = build_model(name, "resnet50", CLASSES, output_stride=16)
    model.eval()
    with paddle.no_grad():
        assert model(paddle.randn([1, 3, 65, 66])).shape == [1, CLASSES, 65, 66]


def test_drop_out_follows_from_the_seed(small):
    model = small["glore"]
    model.train()
    images = paddle.randn([2, 3, 65, 65])
    runs = []
    for seed in (3, 3, 4):
        paddle.seed(seed)
        runs.append(model(images)["logits"].numpy())
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3


def test_output_stride_is_eight_unless_told(small):
    assert small["pspnet"].backbone.output_stride == 8
    assert build_model("glore", "resnet18", CLASSES, output_stride=32).backbone.output_stride == 32
    assert build_model("glore", "hrnet_w18", CLASSES).backbone.output_stride == 4


def test_without_auxiliary_head():
    model = build_model("glore", "resnet18", CLASSES, aux=False)
    assert list(model(paddle.randn([2, 3, 65, 65]))) == ["logits"]
    assert model.head_layers() == [model.decode_head]


def test_head_layers_are_what_is_not_backbone(small):
    for model in small.values():
        heads = {id(p) for layer in model.head_layers() for p in layer.parameters()}
        backbone = {id(p) for p in model.backbone.parameters()}
        assert heads.isdisjoint(backbone)
        assert heads | backbone == {id(p) for p in model.parameters()}
        assert all(head.classifier.weight.shape[0] == CLASSES for head in model.head_layers())


def test_a_checkpoint_of_ginet_is_complete_without_its_word_vectors():
    vectors = np.random.default_rng(0).standard_normal((CLASSES, 7)).astype(np.float32)
    paddle.seed(2)
    model = build_model("ginet", "resnet18", CLASSES, word_embeddings=vectors)
    state = model.state_dict()
    np.testing.assert_array_equal(state["decode_head.word_embeddings"].numpy(), vectors)
    other = build_model("ginet", "resnet18", CLASSES, word_embeddings=np.zeros((CLASSES, 7)))
    other.set_state_dict(state)
    images = paddle.randn([1, 3, 65, 65])
    model.eval()
    other.eval()
    with paddle.no_grad():
        np.testing.assert_array_equal(model(images).numpy(), other(images).numpy())


def test_mistakes_are_named():
    with pytest.raises(UserError, match="unknown network 'gloer': did you mean 'glore'"):
        build_model("gloer")
    with pytest.raises(UserError, match=r"word_embeddings has shape \(3, 7\): give a vector for each of 4 classes"):
        build_model("ginet", "resnet18", CLASSES, word_embeddings=np.zeros((3, 7)))
