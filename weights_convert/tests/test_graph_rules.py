"""Every operator's rule, alone: what PyTorch computes, the generated Paddle code computes, values and types."""

from weights_convert.graph import prove
from weights_convert.graph.registry import RULES
from weights_convert.graph.source import generate
from weights_convert.graph.trace import trace

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F

INTS = torch.tensor([[0, 2, 1], [1, 1, 0]])
WEIGHT = torch.linspace(-1, 1, 36).reshape(4, 1, 3, 3)
MATRIX = torch.linspace(-1, 1, 24).reshape(3, 8)
PER_CHANNEL = torch.tensor([0.5, -1.0, 2.0, 0.1])

# x: (2, 4, 6, 8), some of it negative, none of it 0; p: above 0.
ELEMENTWISE = {
    **{name: lambda x, p, name=name: getattr(torch, name)(x) for name in ("abs", "ceil", "cos", "erf", "exp", "floor")},
    **{name: lambda x, p, name=name: getattr(torch, name)(p) for name in ("log", "log2", "log1p", "rsqrt", "sqrt")},
    **{name: lambda x, p, name=name: getattr(torch, name)(x) for name in ("neg", "sigmoid", "sign", "sin", "tanh")},
    **{name: lambda x, p, name=name: getattr(torch, name)(x) for name in ("square", "reciprocal", "round", "atan")},
    **{name: lambda x, p, name=name: getattr(F, name)(x) for name in ("relu", "silu", "mish", "hardswish", "relu6")},
    **{name: lambda x, p, name=name: getattr(F, name)(x) for name in ("gelu", "hardsigmoid", "selu", "logsigmoid")},
    "sqrt of integers": lambda x, p: torch.sqrt(INTS),
    "relu in place": lambda x, p: F.relu(x + 1, inplace=True),
    "gelu by tanh": lambda x, p: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x, p: F.leaky_relu(x, 0.2),
    "elu": lambda x, p: F.elu(x, 0.7),
    "celu": lambda x, p: F.celu(x, 0.7),
    "softplus": lambda x, p: F.softplus(x, beta=2, threshold=3),
    "hardtanh": lambda x, p: F.hardtanh(x, -0.3, 0.4),
    "prelu": lambda x, p: F.prelu(x, PER_CHANNEL),
    "glu": lambda x, p: F.glu(x, dim=-3),
    "add, broadcast, alpha": lambda x, p: torch.add(x, PER_CHANNEL[:, None, None], alpha=0.5),
    "add, integers and a float": lambda x, p: INTS + 0.5,
    "add, integers and floats": lambda x, p: INTS + x[0, 0, :2, :3],
    "sub": lambda x, p: torch.sub(x, p, alpha=2),
    "rsub": lambda x, p: 1 - x,
    "mul": lambda x, p: x * INTS[0, 1],
    "mul of truth": lambda x, p: (x > 0) * (p > 1),
    "div of integers": lambda x, p: INTS / 2,
    "div, floor": lambda x, p: torch.div(INTS, 2, rounding_mode="floor"),
    "div, trunc": lambda x, p: torch.div(x, 0.3, rounding_mode="trunc"),
    "remainder": lambda x, p: torch.remainder(INTS - 2, 3),
    "pow": lambda x, p: p**1.5,
    "pow of tensors": lambda x, p: p**x,
    "number to a tensor": lambda x, p: torch.pow(2.0, x),
    **{name: lambda x, p, name=name: getattr(torch, name)(INTS, 1) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "gt, integers and floats": lambda x, p: x[0, 0, :2, :3] > INTS,
    "maximum": lambda x, p: torch.maximum(x, PER_CHANNEL[:, None, None]),
    "minimum": lambda x, p: torch.minimum(x, p),
    "logical": lambda x, p: torch.logical_and(x > 0, ~(p > 1)) | (x < -1),
    "clamp": lambda x, p: torch.clamp(x, -0.5, 0.25),
    "clamp from below": lambda x, p: x.clamp(min=0.1),
    "clamp_min": lambda x, p: torch.clamp_min(x, 0.1),
    "where, number": lambda x, p: torch.where(x > 0, x, 0.5),
    "masked_fill": lambda x, p: x.masked_fill(x < 0, -7.0),
    "addcmul": lambda x, p: torch.addcmul(x, x, p, value=0.5),
    "lerp": lambda x, p: torch.lerp(x, p, 0.3),
    "to int64": lambda x, p: (x * 10).to(torch.int64),
    "to bool": lambda x, p: INTS.bool(),
}

LAYERS = {
    "conv2d": lambda x, p: F.conv2d(x, WEIGHT, PER_CHANNEL, stride=(2, 1), padding=(1, 2), groups=4),
    "conv2d, dilated, same": lambda x, p: F.conv2d(x, WEIGHT, padding="same", dilation=2, groups=4),
    "conv2d, same, even kernel": lambda x, p: F.conv2d(x, WEIGHT[:, :, :2, :2], padding="same", groups=4),
    "conv2d, valid": lambda x, p: F.conv2d(x, WEIGHT, padding="valid", groups=4),
    "conv1d": lambda x, p: F.conv1d(x[:, :, 0], WEIGHT[:, :, 0], padding=1, groups=4),
    "conv3d": lambda x, p: F.conv3d(x[:, None], WEIGHT[:2, None], padding=1),
    "conv_transpose2d": lambda x, p: F.conv_transpose2d(
        x, WEIGHT, stride=2, padding=1, output_padding=1, groups=2, bias=None
    ),
    "linear": lambda x, p: F.linear(x, MATRIX, PER_CHANNEL[:3]),
    "embedding": lambda x, p: F.embedding(INTS, MATRIX),
    "batch_norm": lambda x, p: F.batch_norm(x, PER_CHANNEL, p[0, 0, 0, :4], PER_CHANNEL, None, eps=1e-3),
    "batch_norm by the batch": lambda x, p: F.batch_norm(x, None, None, PER_CHANNEL, None, training=True),
    "layer_norm of two axes": lambda x, p: F.layer_norm(x[..., :3, :8], (3, 8), MATRIX, None, 1e-6),
    "group_norm": lambda x, p: F.group_norm(x, 2, PER_CHANNEL, None, 1e-6),
    "group_norm of sequences": lambda x, p: F.group_norm(x[..., 0], 2, PER_CHANNEL, PER_CHANNEL),
    "instance_norm": lambda x, p: F.instance_norm(x, weight=PER_CHANNEL, bias=PER_CHANNEL),
    "rms_norm": lambda x, p: F.rms_norm(x, (8,), MATRIX[0]),
}

POOL = {
    "max_pool2d": lambda x, p: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d, ceil_mode": lambda x, p: F.max_pool2d(x[:, :, :5, :7], 2, 2, ceil_mode=True),
    "max_pool2d, ceil_mode, padding": lambda x, p: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "avg_pool2d, padding counts": lambda x, p: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d, padding does not": lambda x, p: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool2d, ceil_mode": lambda x, p: F.avg_pool2d(x[:, :, :5, :7], 2, 2, ceil_mode=True, count_include_pad=False),
    "avg_pool2d, ceil_mode, counting": lambda x, p: F.avg_pool2d(x[:, :, :5, :7], 2, 2, ceil_mode=True),
    "avg_pool2d, divisor": lambda x, p: F.avg_pool2d(x, 2, divisor_override=3),
    "avg_pool1d": lambda x, p: F.avg_pool1d(x[:, :, 0], 3, 2, 1),
    "adaptive_avg_pool2d": lambda x, p: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive_avg_pool2d, one": lambda x, p: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool2d, None": lambda x, p: F.adaptive_avg_pool2d(x, (None, 3)),
    "adaptive_max_pool2d": lambda x, p: F.adaptive_max_pool2d(x, 1),
    "pad": lambda x, p: F.pad(x, (1, 2, 3, 0), value=0.5),
    "pad, one axis": lambda x, p: F.pad(x, (1, 2)),
    "pad, three axes": lambda x, p: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "pad, cut": lambda x, p: F.pad(x, (-1, -2, 0, -1)),
    "pad, reflect": lambda x, p: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "pad, replicate": lambda x, p: F.pad(x, (1, 2, 2, 1), mode="replicate"),
    "bilinear": lambda x, p: F.interpolate(x, size=(9, 5), mode="bilinear"),
    "bilinear, aligned": lambda x, p: F.interpolate(x, size=(9, 5), mode="bilinear", align_corners=True),
    "bilinear by 2": lambda x, p: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear by 1.5": lambda x, p: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "nearest": lambda x, p: F.interpolate(x, size=(9, 5)),
    "nearest by 2": lambda x, p: F.interpolate(x, scale_factor=2),
    "bicubic": lambda x, p: F.interpolate(x, size=(9, 5), mode="bicubic"),
    "bilinear, antialiased": lambda x, p: F.interpolate(x, size=(3, 5), mode="bilinear", antialias=True),
    "bicubic, antialiased": lambda x, p: F.interpolate(x, size=(9, 5), mode="bicubic", antialias=True),
    "grid_sample": lambda x, p: F.grid_sample(x, p[:, :2].permute(0, 2, 3, 1) - 1, align_corners=False),
    "pixel_shuffle": lambda x, p: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x, p: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x, p: F.channel_shuffle(x, 2),
    "unfold": lambda x, p: F.unfold(x, (2, 3), padding=1, stride=(1, 2)),
    "fold": lambda x, p: F.fold(F.unfold(x, 2, stride=2), (6, 8), 2, stride=2),
}

SHAPE = {
    "reshape": lambda x, p: x.reshape(x.shape[0], 2, -1),
    "view of sizes": lambda x, p: x.view(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).transpose(1, 2),
    "reshape_as": lambda x, p: x.reshape_as(p.transpose(1, 2)),
    "flatten": lambda x, p: x.flatten(1, -2),
    "unflatten": lambda x, p: x.unflatten(1, (2, 2)),
    "permute": lambda x, p: x.permute(0, -1, 1, 2),
    "transpose": lambda x, p: x.transpose(-1, 1),
    "t": lambda x, p: MATRIX.t(),
    "mT": lambda x, p: x.mT,
    "movedim": lambda x, p: x.movedim(1, -1),
    "squeeze": lambda x, p: x[:, :1].squeeze(1),
    "squeeze of another axis": lambda x, p: x.squeeze(1),
    "unsqueeze": lambda x, p: x.unsqueeze(-1),
    "expand": lambda x, p: x[:, :1].expand(-1, 3, -1, -1),
    "expand_as": lambda x, p: PER_CHANNEL[:, None, None].expand_as(x),
    "repeat": lambda x, p: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x, p: x.repeat_interleave(2, dim=1),
    "cat, negative axis": lambda x, p: torch.cat([x, p], -1),
    "cat, types": lambda x, p: torch.cat([INTS, x[0, 0, :2, :3]], 1),
    "stack": lambda x, p: torch.stack([x, p], -1),
    "split, rest": lambda x, p: torch.split(x, 3, 1)[1],
    "split by sizes": lambda x, p: torch.split(x, [1, 3], 1)[1],
    "chunk": lambda x, p: sum(x.chunk(2, 1)),
    "unbind": lambda x, p: x.unbind(1)[2],
    "slice": lambda x, p: x[:, 1:-1, ::2],
    "slice of sizes": lambda x, p: x[:, :, : x.shape[2] // 2],
    "select": lambda x, p: x[:, -1],
    "narrow": lambda x, p: x.narrow(1, 1, 2),
    "roll": lambda x, p: x.roll((1, -2), (2, 3)),
    "flip": lambda x, p: x.flip(1, -1),
    "index": lambda x, p: x[:, INTS],
    "index of a matrix": lambda x, p: MATRIX[INTS.view(-1)].view(2, 3, -1),
    "index_select": lambda x, p: x.index_select(1, INTS[0]),
    "gather": lambda x, p: MATRIX.gather(1, INTS),
    "one_hot": lambda x, p: F.one_hot(INTS, 4),
    "meshgrid": lambda x, p: torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")),
    "meshgrid, xy": lambda x, p: torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="xy")),
    "arange": lambda x, p: torch.arange(1, 9, 3),
    "arange of a size": lambda x, p: torch.arange(x.shape[3], dtype=torch.float32) / x.shape[3],
    "linspace": lambda x, p: torch.linspace(-1, 1, 7),
    "full": lambda x, p: torch.full((2, 3), 0.5),
    "new_zeros": lambda x, p: x.new_zeros(x.shape[0], 2),
    "ones_like": lambda x, p: torch.ones_like(x),
    "tril": lambda x, p: torch.tril(x, -1),
    "unfold of an axis": lambda x, p: x.unfold(2, 3, 2),
    "diagonal": lambda x, p: torch.diagonal(x, 1, 2, 3),
    "in place in a part": lambda x, p: _written(x),
    "no gradient": lambda x, p: x.detach() * 2,
}

REDUCE = {
    "mean": lambda x, p: x.mean((2, 3), keepdim=True),
    "mean, negative axis": lambda x, p: x.mean(-1),
    "mean of all": lambda x, p: x.mean(),
    "sum": lambda x, p: x.sum((-1, 1)),
    "sum of truth": lambda x, p: (x > 0).sum(1),
    "amax": lambda x, p: x.amax((2, 3)),
    "max along": lambda x, p: x.max(1)[0],
    "place of max": lambda x, p: x.max(-1, keepdim=True)[1],
    "argmax": lambda x, p: x.argmax(1),
    "topk": lambda x, p: x.topk(3, dim=1)[0],
    "any": lambda x, p: (x > 1).any(1),
    "var": lambda x, p: x.var((2, 3), keepdim=True),
    "var, biased": lambda x, p: x.var(1, unbiased=False),
    "std": lambda x, p: x.std(-1),
    "var_mean": lambda x, p: torch.stack(torch.var_mean(x, (1, 2), correction=0)),
    "cumsum": lambda x, p: (x > 0).cumsum(2),
    "norm": lambda x, p: x.norm(2, dim=1),
    "vector_norm": lambda x, p: torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True),
    "normalize": lambda x, p: F.normalize(x, dim=-1),
    "softmax": lambda x, p: x.softmax(1),
    "log_softmax": lambda x, p: x.log_softmax(-1),
    "logsumexp": lambda x, p: x.logsumexp(1),
    "matmul, broadcast": lambda x, p: x @ MATRIX.T,
    "bmm": lambda x, p: torch.bmm(x[:, 0], p[:, 0].transpose(1, 2)),
    "addmm": lambda x, p: torch.addmm(PER_CHANNEL[:3], x[0, 0], MATRIX.T, beta=0.5, alpha=2),
    "baddbmm": lambda x, p: torch.baddbmm(x[:, 0, :, :6], x[:, 0], p[:, 0].transpose(1, 2)),
    "einsum": lambda x, p: torch.einsum("bchw,kw->bckh", x, MATRIX),
    "attention": lambda x, p: F.scaled_dot_product_attention(x, p, x),
    "attention, mask": lambda x, p: F.scaled_dot_product_attention(x, p, x, attn_mask=p[:, :1, :, :6], scale=0.3),
    "attention, seen": lambda x, p: F.scaled_dot_product_attention(x, p, x, attn_mask=torch.eye(6).bool()),
    "attention, causal": lambda x, p: F.scaled_dot_product_attention(x, p, x, is_causal=True),
    "prod": lambda x, p: p.prod(1),
    "sort": lambda x, p: x.sort(1, descending=True)[0],
    "cosine_similarity": lambda x, p: F.cosine_similarity(x, p, dim=1),
}
GROUPS = {"elementwise": ELEMENTWISE, "layers": LAYERS, "pool": POOL, "shape": SHAPE, "reduce": REDUCE}


def _written(x):
    x = x.clone()
    x[:, 1:3, 2] = 5.0
    return x


class Cases(torch.nn.Module):
    def __init__(self, cases):
        super().__init__()
        self.cases = cases

    def forward(self, x):
        return [case(x, x.abs() + 0.5) for case in self.cases.values()]


@pytest.fixture(scope="module", params=GROUPS, name="group")
def _group(request, tmp_path_factory):
    """All cases of a group in one network: (PyTorch's value, Paddle's) by name."""
    module = Cases(GROUPS[request.param]).eval()
    traced = trace(module, 4, (6, 8))
    code = generate(traced, "cases", ["Of a test."])
    path = tmp_path_factory.mktemp("rules") / f"{request.param}.py"
    path.write_text(code.text)
    layer = prove.load_layer(path, code.class_name)
    prove.fill(layer, prove.paddle_tensors(code))
    layer.eval()
    images = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)
    theirs, ours = module(torch.from_numpy(images)), layer(paddle.to_tensor(images))
    return dict(zip(module.cases, zip(theirs, ours, strict=True), strict=True))


@pytest.mark.parametrize("group", GROUPS, indirect=True)
def test_rules_give_what_pytorch_gives(group):
    wrong = {}
    for name, (theirs, ours) in group.items():
        a, b = theirs.detach().numpy(), ours.numpy()
        if a.dtype != b.dtype or a.shape != b.shape:
            wrong[name] = (a.dtype, a.shape, b.dtype, b.shape)
        elif not np.allclose(a, b, rtol=1e-5, atol=2e-6):
            wrong[name] = float(np.abs(a - b).max())
    assert wrong == {}
    assert len(group) > 10


def test_every_rule_says_what_it_reproduces():
    silent = [name for name, function in RULES.items() if not (function.__doc__ or "").strip()]
    assert silent == []
    assert len(RULES) > 300
