"""Rules: what has weights (convolutions, linear maps, normalisations, embeddings), and dropout."""

from __future__ import annotations

from weights_convert.graph.registry import Call, Layer, layer, literal, one_or_list, rule

import torch

CONVOLUTIONS = {f"aten.conv{n}d.{kind}": n for n in (1, 2, 3) for kind in ("default", "padding")}
TRANSPOSED = {"aten.conv_transpose1d.default": 1, "aten.conv_transpose2d.input": 2, "aten.conv_transpose3d.input": 3}


def _same_padding(call: Call, rank: int) -> tuple[list[int], list[int]]:
    """What is padded before and behind each axis."""
    padding = call["padding"]
    if padding == "valid":
        return [0] * rank, [0] * rank
    if padding == "same":
        kernel = call.val("weight").shape[2:]
        total = [d * (int(k) - 1) for d, k in zip(call.pair("dilation", rank), kernel, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    return call.pair("padding", rank), call.pair("padding", rank)


def _conv_options(call: Call, rank: int) -> list[tuple[str, str]]:
    stride, dilation = call.pair("stride", rank), call.pair("dilation", rank)
    before, behind = _same_padding(call, rank)
    options = [("stride", one_or_list(stride, "stride"))]
    options += [("padding", one_or_list(before, "padding"))] if before == behind else []
    options += [("dilation", one_or_list(dilation, "dilation"))]
    return [*options, ("groups", literal(call["groups"], "groups"))]  # what is usual, `source.py` leaves out


def _written(options: list[tuple[str, str]]) -> str:
    return "".join(f", {name}={value}" for name, value in options)


@rule(*CONVOLUTIONS)
def conv(call: Call) -> str:
    """Cross-correlation; "same" pads the odd row behind, with any dilation (Paddle's "SAME" forgets the dilation)."""
    rank = CONVOLUTIONS[call.name]
    before, behind = _same_padding(call, rank)
    x = call.x("input")
    if before != behind:
        pads = [value for pair in reversed(list(zip(before, behind, strict=True))) for value in pair]
        x = f"F.pad({x}, {literal(pads, 'padding')})"
    bias = "" if call["bias"] is None else f", {call.x('bias')}"
    return f"F.conv{rank}d({x}, {call.x('weight')}{bias}{_written(_conv_options(call, rank))})"


@layer(*CONVOLUTIONS)
def conv_layer(call: Call) -> Layer | None:
    """nn.Conv1D, 2D, 3D: weights (out, in / groups, ...), as PyTorch's."""
    rank = CONVOLUTIONS[call.name]
    before, behind = _same_padding(call, rank)
    if before != behind:
        return None
    weight = call.val("weight").shape
    sizes = f"{literal(int(weight[1]) * call['groups'], 'in_channels')}, {literal(int(weight[0]), 'out_channels')}"
    kernel = one_or_list([int(size) for size in weight[2:]], "kernel_size")
    options = _conv_options(call, rank)
    options += [] if call["bias"] is not None else [("bias_attr", "False")]
    tensors = {"weight": "weight"} | ({"bias": "bias"} if call["bias"] is not None else {})
    return Layer(f"nn.Conv{rank}D({sizes}, {kernel}{_written(options)})", tensors)


def _transposed_options(call: Call, rank: int) -> list[tuple[str, str]]:
    options = []
    for name in ("stride", "padding", "output_padding", "dilation"):
        options.append((name, one_or_list(call.pair(name, rank), name)))
    return [*options, ("groups", literal(call["groups"], "groups"))]


@rule(*TRANSPOSED)
def conv_transpose(call: Call) -> str:
    """The gradient of a convolution; weights (in, out / groups, ...)."""
    rank = TRANSPOSED[call.name]
    bias = "" if call["bias"] is None else f", {call.x('bias')}"
    options = _written(_transposed_options(call, rank))
    return f"F.conv{rank}d_transpose({call.x('input')}, {call.x('weight')}{bias}{options})"


@layer(*TRANSPOSED)
def conv_transpose_layer(call: Call) -> Layer:
    """nn.Conv2DTranspose and its kin."""
    rank, weight = TRANSPOSED[call.name], call.val("weight").shape
    sizes = f"{literal(int(weight[0]), 'in_channels')}, {literal(int(weight[1]) * call['groups'], 'out_channels')}"
    kernel = one_or_list([int(size) for size in weight[2:]], "kernel_size")
    options = _transposed_options(call, rank) + ([] if call["bias"] is not None else [("bias_attr", "False")])
    tensors = {"weight": "weight"} | ({"bias": "bias"} if call["bias"] is not None else {})
    return Layer(f"nn.Conv{rank}DTranspose({sizes}, {kernel}{_written(options)})", tensors)


@rule("aten.linear.default")
def linear(call: Call) -> str:
    """Input @ weight.T + bias."""
    weight = call.val("weight")
    if weight.dim() != 2:
        raise call.refuse("with a weight that is no matrix")
    bias = "" if call["bias"] is None else f", {call.x('bias')}"
    return f"F.linear({call.x('input')}, {call.x('weight')}.T{bias})"


@layer("aten.linear.default")
def linear_layer(call: Call) -> Layer:
    """nn.Linear keeps its weight as (in, out): PyTorch's is (out, in)."""
    width, depth = call.val("weight").shape
    bias = "" if call["bias"] is not None else ", bias_attr=False"
    tensors = {"weight": "weight"} | ({"bias": "bias"} if call["bias"] is not None else {})
    sizes = f"{literal(int(depth), 'in_features')}, {literal(int(width), 'out_features')}"
    return Layer(f"nn.Linear({sizes}{bias})", tensors, ("weight",))


@rule("aten.embedding.default")
def embedding(call: Call) -> str:
    """Rows of the weight, by index."""
    return f"F.embedding({call.x('indices')}, {call.x('weight')})"


@layer("aten.embedding.default")
def embedding_layer(call: Call) -> Layer:
    """nn.Embedding."""
    count, width = (int(size) for size in call.val("weight").shape)
    sizes = f"{literal(count, 'num_embeddings')}, {literal(width, 'embedding_dim')}"
    return Layer(f"nn.Embedding({sizes})", {"weight": "weight"})


@rule("aten.batch_norm.default")
def batch_norm(call: Call) -> str:
    """With running statistics in evaluation and the batch's own in training; without any, always the batch's own.

    PyTorch's momentum m is Paddle's 1 - m. Its running variance is the unbiased one, Paddle's the biased.
    """
    if call["training"] or call["running_mean"] is None:
        given = [call.show(call[name]) if call[name] is not None else "None" for name in ("weight", "bias")]
        return f"{call.helper('batch_statistics_norm')}({call.x('input')}, {', '.join(given)}, {call.x('eps')})"
    tensors = [call.x("running_mean"), call.x("running_var")]
    tensors += [call.x(name) if call[name] is not None else "None" for name in ("weight", "bias")]
    momentum = literal(_kept(call["momentum"]), "momentum")
    options = f"training=self.training, momentum={momentum}, epsilon={call.x('eps')}"
    return f"F.batch_norm({call.x('input')}, {', '.join(tensors)}, {options})"


def _kept(momentum: float) -> float:
    return round(1 - momentum, 12)


@layer("aten.batch_norm.default")
def batch_norm_layer(call: Call) -> Layer | None:
    """nn.BatchNorm1D, 2D, 3D, its running statistics called running_mean and running_var as in PyTorch."""
    if call["training"] or call["running_mean"] is None or call["weight"] is None or call["bias"] is None:
        return None
    rank = {2: 1, 3: 1, 4: 2, 5: 3}[call.val("input").dim()]
    momentum, epsilon = literal(_kept(call["momentum"]), "momentum"), literal(call["eps"], "epsilon")
    channels = literal(int(call.val("running_mean").shape[0]), "num_features")
    tensors = {name: name for name in ("weight", "bias", "running_mean", "running_var")}
    name = f"BatchNorm{rank}D"
    return Layer(f"{name}({channels}, momentum={momentum}, epsilon={epsilon})", tensors, helper=name)


@rule("aten.layer_norm.default")
def layer_norm(call: Call) -> str:
    """Normalised over the last axes, with the biased variance."""
    flat = "" if len(call["normalized_shape"]) == 1 else ".flatten()"
    given = [f"{name}={call.x(name)}{flat}" for name in ("weight", "bias") if call[name] is not None]
    options = "".join(f", {text}" for text in given)
    shape = literal([int(size) for size in call["normalized_shape"]], "normalized_shape")
    return f"F.layer_norm({call.x('input')}, {shape}{options}, epsilon={literal(call['eps'], 'epsilon')})"


@layer("aten.layer_norm.default")
def layer_norm_layer(call: Call) -> Layer | None:
    """nn.LayerNorm, of one axis; of several, Paddle's weight would be flat."""
    shape = [int(size) for size in call["normalized_shape"]]
    if len(shape) != 1:
        return None
    sizes = literal(shape[0], "normalized_shape")
    attrs = "".join(f", {name}_attr=False" for name in ("weight", "bias") if call[name] is None)
    tensors = {name: name for name in ("weight", "bias") if call[name] is not None}
    return Layer(f"nn.LayerNorm({sizes}, epsilon={literal(call['eps'], 'epsilon')}{attrs})", tensors)


@rule("aten.group_norm.default")
def group_norm(call: Call) -> str:
    """Normalised over groups of channels and all positions, with the biased variance."""
    given = [f"{name}={call.x(name)}" for name in ("weight", "bias") if call[name] is not None]
    options = "".join(f", {text}" for text in given)
    groups, epsilon = literal(call["num_groups"], "num_groups"), literal(call["eps"], "epsilon")
    if call.val("input").dim() not in (3, 4, 5) or call.val("input").dim() == 3:
        return f"{call.helper('group_norm')}({call.x('input')}, {groups}{options}, epsilon={epsilon})"
    return f"F.group_norm({call.x('input')}, {groups}, epsilon={epsilon}{options})"


@layer("aten.group_norm.default")
def group_norm_layer(call: Call) -> Layer | None:
    """nn.GroupNorm, of images."""
    if call.val("input").dim() != 4 or call["weight"] is None or call["bias"] is None:
        return None
    groups, channels = literal(call["num_groups"], "num_groups"), literal(int(call.val("weight").shape[0]), "channels")
    tensors = {"weight": "weight", "bias": "bias"}
    return Layer(f"nn.GroupNorm({groups}, {channels}, epsilon={literal(call['eps'], 'epsilon')})", tensors)


@rule("aten.instance_norm.default")
def instance_norm(call: Call) -> str:
    """Each plane by its own mean and biased variance; not by running statistics."""
    if not call["use_input_stats"]:
        raise call.refuse("with running statistics")
    given = "".join(f", {name}={call.x(name)}" for name in ("weight", "bias") if call[name] is not None)
    return f"F.instance_norm({call.x('input')}{given}, eps={literal(call['eps'], 'epsilon')})"


@rule("aten.rms_norm.default")
def rms_norm(call: Call) -> str:
    """Divided by the root of the mean square over the last axes; eps None is the type's."""
    epsilon = call["eps"] if call["eps"] is not None else torch.finfo(call.out.dtype).eps
    weight = "None" if call["weight"] is None else call.x("weight")
    count = literal(len(call["normalized_shape"]), "axes")
    return f"{call.helper('rms_norm')}({call.x('input')}, {weight}, {count}, {literal(epsilon, 'epsilon')})"


@rule("aten.dropout.default", "aten.dropout_.default")
def dropout(call: Call) -> str:
    """In training values become 0 with probability p, the others grow by 1 / (1 - p)."""
    return f"F.dropout({call.x('input')}, {literal(call['p'], 'dropout')}, training=self.training)"


@layer("aten.dropout.default", "aten.dropout_.default")
def dropout_layer(call: Call) -> Layer:
    """nn.Dropout."""
    return Layer(f"nn.Dropout({literal(call['p'], 'dropout')})")


@rule("aten.feature_dropout.default")
def feature_dropout(call: Call) -> str:
    """Dropout of whole planes."""
    if call.val("input").dim() != 4:
        raise call.refuse("of other than images")
    return f"F.dropout2d({call.x('input')}, {literal(call['p'], 'dropout')}, training=self.training)"


@layer("aten.feature_dropout.default")
def feature_dropout_layer(call: Call) -> Layer | None:
    """nn.Dropout2D."""
    return Layer(f"nn.Dropout2D({literal(call['p'], 'dropout')})") if call.val("input").dim() == 4 else None
