import dataclasses

from stdc_seg.config import read_config
from stdc_seg.lr_schedule import learning_rate
from stdc_seg.models import build_model
from stdc_seg.optimizer import build_optimizer

import numpy as np
import paddle
import pytest
import torch

OFFICIAL = read_config("stdc2_seg50").optimizer


def test_rate_of_the_official_recipe():
    # exponential from 1e-5 to 1e-2 over 1000 updates, then poly 0.9 to 0 over the other 59000
    assert learning_rate(0, 60000, OFFICIAL) == pytest.approx(1e-5)
    assert learning_rate(500, 60000, OFFICIAL) == pytest.approx((1e-5 * 1e-2) ** 0.5)
    assert learning_rate(1000, 60000, OFFICIAL) == pytest.approx(1e-2)
    assert learning_rate(30500, 60000, OFFICIAL) == pytest.approx(1e-2 * 0.5**0.9)
    assert learning_rate(60000, 60000, OFFICIAL) == 0


def test_rate_without_warmup_is_poly():
    config = dataclasses.replace(OFFICIAL, warmup_iters=0)
    assert learning_rate(0, 100, config) == pytest.approx(1e-2)
    assert learning_rate(75, 100, config) == pytest.approx(1e-2 * 0.25**0.9)


def pytorchs(name, groups):
    """The same optimizer in PyTorch; its rate is set per group before each update."""
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9) if name == "sgd" else torch.optim.AdamW(groups, lr=1.0)


@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_three_updates_equal_pytorchs(name, decay_norms):
    config = dataclasses.replace(
        OFFICIAL, name=name, weight_decay=0.1, decay_norm_and_bias=decay_norms, train_backbone_norm=True
    )
    paddle.seed(0)
    model = build_model("stdc1", num_classes=3)
    heads = ("ffm.", "decode_head.", "aux_head8.", "aux_head16.", "detail_head.")
    twins, groups = {}, []
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            twins[name] = torch.nn.Parameter(torch.from_numpy(parameter.numpy()))
            factor = 10.0 if name.startswith(heads) else 1.0
            decay = 0.1 if parameter.ndim == 4 or decay_norms else 0.0
            groups.append({"params": [twins[name]], "factor": factor, "weight_decay": decay})
    theirs = pytorchs(config.name, groups)
    ours = build_optimizer(model, config)
    rng = np.random.default_rng(0)
    for step in (0, 500, 2000):
        rate = learning_rate(step, 60000, config)
        for group in theirs.param_groups:
            group["lr"] = rate * group["factor"]
        for name, parameter in model.named_parameters():
            if name in twins:
                gradient = rng.standard_normal(parameter.shape, dtype=np.float32)
                twins[name].grad = torch.from_numpy(gradient)
                parameter.grad = paddle.to_tensor(gradient)
        theirs.step()
        ours.set_lr(rate)
        ours.step()
    for name, parameter in model.named_parameters():
        if name in twins:
            np.testing.assert_allclose(parameter.numpy(), twins[name].detach().numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name, tensors, values", [("stdc1", 62, 13_248), ("stdc2", 110, 19_392)])
def test_the_official_recipe_keeps_the_norms_of_the_backbone(name, tensors, values):
    # The numbers are those of the official optimizer: what stands in none of its groups (STDC-Seg 59ff37f).
    model = build_model(name, num_classes=3)
    before = {key: value.numpy() for key, value in model.named_parameters() if not value.stop_gradient}
    optimizer = build_optimizer(model, OFFICIAL)
    outputs = model(paddle.rand([2, 3, 64, 64]))
    sum(value.mean() for value in (outputs["logits"], *outputs["aux"], outputs["detail"])).backward()
    optimizer.set_lr(0.1)
    optimizer.step()
    after = dict(model.named_parameters())
    kept = [key for key in before if after[key].stop_gradient]
    assert all(key.startswith("backbone.") for key in kept)
    unused = 2 * 2 * 1024  # two norms of the classifier, which ride along unused there and are not built here
    assert (len(kept) + 4, sum(before[key].size for key in kept) + unused) == (tensors, values)
    assert all((after[key].numpy() == before[key]).all() for key in kept)
    assert all((after[key].numpy() != before[key]).any() for key in before if key not in kept)
