"""Rules: sums, means, products of matrices, attention and softmax."""

from __future__ import annotations

from weights_convert.graph.registry import Call, Layer, layer, literal, rule


def _axes(call: Call, name: str = "dim") -> list[int]:
    rank, dims = call.val().dim(), call[name]
    dims = list(range(rank)) if dims in (None, []) else dims if isinstance(dims, list | tuple) else [dims]
    return sorted(dim % max(rank, 1) for dim in dims)


def _options(call: Call, axes: list[int]) -> str:
    axis = literal(axes[0] if len(axes) == 1 else axes, "axis")
    return f"axis={axis}" + (", keepdim=True" if call.arguments.get("keepdim") else "")


@rule("aten.mean.dim", "aten.mean.default")
def mean(call: Call) -> str:
    """The mean over axes; several are taken one after the other, the last first.

    Paddle adds up a plane in float32 one value after the other: over 256x512 that is wrong by 1e-5 of the value.
    """
    x, keep = call.cast("self", call.out.dtype), ", keepdim=True" if call.arguments.get("keepdim") else ""
    axes = _axes(call) if "dim" in call.arguments else list(range(call.val().dim()))
    return x + "".join(f".mean({axis}{keep})" for axis in reversed(axes))


@rule("aten.sum.dim_IntList", "aten.sum.default")
def total(call: Call) -> str:
    """The sum over axes, of truth values and integers in int64; several axes one after the other."""
    x, keep = call.cast("self", call.out.dtype), ", keepdim=True" if call.arguments.get("keepdim") else ""
    axes = _axes(call) if "dim" in call.arguments else list(range(call.val().dim()))
    return x + "".join(f".sum({axis}{keep})" for axis in reversed(axes))


@rule("aten.amax.default", "aten.amin.default", "aten.max.default", "aten.min.default")
def extreme(call: Call) -> str:
    """The largest (smallest) value over axes; the gradient is shared among equal ones."""
    name = "max" if "max" in call.name else "min"
    if "dim" not in call.arguments:
        return f"paddle.{name}({call.x()})"
    return f"paddle.a{name}({call.x()}, {_options(call, _axes(call))})"


@rule("aten.max.dim", "aten.min.dim")
def extreme_and_place(call: Call) -> str:
    """The largest (smallest) value along an axis, and where it is first."""
    name, options = "max" if "max" in call.name else "min", _options(call, _axes(call))
    return f"[paddle.{name}({call.x()}, {options}), paddle.arg{name}({call.x()}, {options})]"


@rule("aten.argmax.default", "aten.argmin.default")
def place_of_extreme(call: Call) -> str:
    """Where the largest (smallest) value is first."""
    name = call.name.split(".")[1]
    return f"paddle.{name}({call.x()}{'' if call['dim'] is None else ', ' + _options(call, _axes(call))})"


@rule("aten.topk.default")
def topk(call: Call) -> str:
    """The k largest (smallest) along an axis, and where they are."""
    options = f"axis={call.x('dim')}, largest={bool(call['largest'])}, sorted={bool(call['sorted'])}"
    return f"paddle.topk({call.x()}, {call.x('k')}, {options})"


@rule("aten.any.dim", "aten.all.dim", "aten.any.default", "aten.all.default")
def any_or_all(call: Call) -> str:
    """Whether one (each) is true."""
    options = f", {_options(call, _axes(call))}" if "dim" in call.arguments else ""
    return f'paddle.{call.name.split(".")[1]}({call.x()}.astype("bool"){options})'


@rule(
    "aten.var.correction", "aten.var.dim", "aten.std.correction", "aten.std.dim", "aten.var.default", "aten.std.default"
)
def variance(call: Call) -> str:
    """Variance (its root) over axes, the sum of squares divided by the count less the correction (1 unless said)."""
    correction = call.arguments.get("correction", 1 if call.arguments.get("unbiased", True) else 0)
    correction = 1 if correction is None else correction
    axes = literal(_axes(call) if "dim" in call.arguments else list(range(call.val().dim())), "axis")
    keep = f", keepdim={bool(call.arguments.get('keepdim'))}"
    text = f"{call.helper('variance')}({call.x()}, {axes}, {literal(correction, 'correction')}{keep})"
    return f"paddle.sqrt({text})" if ".std." in call.name else text


@rule("aten.var_mean.correction", "aten.std_mean.correction")
def variance_and_mean(call: Call) -> str:
    """Variance (its root) and mean over axes."""
    correction = 1 if call["correction"] is None else call["correction"]
    axes, keep = literal(_axes(call), "axis"), f"keepdim={bool(call['keepdim'])}"
    text = f"{call.helper('variance')}({call.x()}, {axes}, {literal(correction, 'correction')}, {keep})"
    text = f"paddle.sqrt({text})" if "std" in call.name else text
    return f"[{text}, paddle.mean({call.x()}, {axes}, {keep})]"


@rule("aten.cumsum.default")
def cumsum(call: Call) -> str:
    """Running sums along an axis; of truth values in int64."""
    return f"paddle.cumsum({call.cast('self', call.out.dtype)}, axis={call.x('dim')})"


@rule("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.norm.Scalar")
def vector_norm(call: Call) -> str:
    """(sum |x|^p)^(1/p) over axes."""
    order = call.arguments.get("ord", call.arguments.get("p"))
    order = 2 if order is None else order
    axes = _axes(call) if "dim" in call.arguments else list(range(call.val().dim()))
    keep = f", keepdim={bool(call.arguments.get('keepdim'))}"
    if order == 2:
        return f"paddle.sqrt(paddle.sum(paddle.square({call.x()}), axis={literal(axes, 'axis')}{keep}))"
    if order == 1:
        return f"paddle.sum(paddle.abs({call.x()}), axis={literal(axes, 'axis')}{keep})"
    raise call.refuse(f"of order {order}")


@rule("aten.softmax.int", "aten._softmax.default")
def softmax(call: Call) -> str:
    """exp(x) / sum exp(x) along an axis."""
    return f"F.softmax({call.cast('self', call.out.dtype)}, axis={call.x('dim')})"


@layer("aten.softmax.int")
def softmax_layer(call: Call) -> Layer:
    """nn.Softmax."""
    return Layer(f"nn.Softmax({literal(call['dim'], 'axis')})")


@rule("aten.log_softmax.int")
def log_softmax(call: Call) -> str:
    """The difference x - log(sum exp(x)) along an axis."""
    return f"F.log_softmax({call.x()}, axis={call.x('dim')})"


@rule("aten.logsumexp.default")
def logsumexp(call: Call) -> str:
    """log(sum exp(x)) over axes."""
    return f"paddle.logsumexp({call.x()}, {_options(call, _axes(call))})"


@rule("aten.matmul.default", "aten.bmm.default", "aten.mm.default", "aten.mv.default", "aten.dot.default")
def matmul(call: Call) -> str:
    """Products of matrices, stacks of them broadcast; a vector is a row on the left, a column on the right."""
    other = next(name for name in ("other", "mat2", "vec", "tensor") if name in call.arguments)
    return f"paddle.matmul({call.x()}, {call.x(other)})"


@rule("aten.baddbmm.default", "aten.addmm.default", "aten.addbmm.default")
def addmm(call: Call) -> str:
    """The sum beta * self + alpha * a @ b."""
    if "addbmm" in call.name and "badd" not in call.name:
        raise call.refuse("a sum over the batch")
    a, b = ("batch1", "batch2") if "batch1" in call.arguments else ("mat1", "mat2")
    product = f"paddle.matmul({call.x(a)}, {call.x(b)})"
    product = product if call["alpha"] == 1 else f"{call.x('alpha')} * {product}"
    start = call.x() if call["beta"] == 1 else f"{call.x('beta')} * {call.x()}"
    return product if call["beta"] == 0 else f"{start} + {product}"


@rule("aten.einsum.default")
def einsum(call: Call) -> str:
    """Einstein's sums, as they are written."""
    return f'paddle.einsum("{call["equation"]}", {", ".join(call.xs("tensors"))})'


@rule("aten.scaled_dot_product_attention.default")
def attention(call: Call) -> str:
    """softmax(q k^T * scale + mask) v, scale 1 / sqrt(d) unless said; a mask of truth values says what is seen."""
    if call["enable_gqa"] or call["dropout_p"]:
        raise call.refuse("with grouped queries or dropout")
    names = ("query", "key", "value")
    parts = [call.x(name) for name in names]
    parts += [f"mask={call.x('attn_mask')}"] if call["attn_mask"] is not None else []
    parts += [f"scale={call.x('scale')}"] if call["scale"] is not None else []
    parts += ["is_causal=True"] if call["is_causal"] else []
    return f"{call.helper('attention')}({', '.join(parts)})"


@rule("aten.prod.dim_int", "aten.prod.default")
def product(call: Call) -> str:
    """The product along an axis."""
    options = f", {_options(call, _axes(call))}" if "dim" in call.arguments else ""
    return f"paddle.prod({call.x()}{options})"


@rule("aten.sort.default", "aten.sort.stable")
def sort(call: Call) -> str:
    """Sorted along an axis, and where each value was."""
    options = f"axis={call.x('dim')}, descending={bool(call['descending'])}"
    return f"[paddle.sort({call.x()}, {options}), paddle.argsort({call.x()}, {options}, stable=True)]"


@rule("aten.cosine_similarity.default")
def cosine_similarity(call: Call) -> str:
    """x1 . x2 over the product of their lengths, each at least eps."""
    return f"F.cosine_similarity({call.x('x1')}, {call.x('x2')}, axis={call.x('dim')}, eps={call.x('eps')})"
