"""Rules: what is computed value by value, and the types of the results."""

from __future__ import annotations

from collections.abc import Callable

from weights_convert.graph.registry import Call, Layer, layer, literal, rule

import torch

SIMPLE = {  # operator -> Paddle function of one tensor, with the same values, NaN and infinity included
    "abs": "paddle.abs",
    "ceil": "paddle.ceil",
    "cos": "paddle.cos",
    "erf": "paddle.erf",
    "exp": "paddle.exp",
    "expm1": "paddle.expm1",
    "floor": "paddle.floor",
    "log": "paddle.log",
    "log1p": "paddle.log1p",
    "log2": "paddle.log2",
    "neg": "-",
    "reciprocal": "paddle.reciprocal",
    "relu": "F.relu",
    "rsqrt": "paddle.rsqrt",
    "sigmoid": "F.sigmoid",
    "sign": "paddle.sign",
    "silu": "F.silu",
    "sin": "paddle.sin",
    "sqrt": "paddle.sqrt",
    "square": "paddle.square",
    "tanh": "paddle.tanh",
    "tan": "paddle.tan",
    "atan": "paddle.atan",
    "mish": "F.mish",
    "log_sigmoid": "F.log_sigmoid",
    "hardswish": "F.hardswish",
    "relu6": "F.relu6",
    "cosh": "paddle.cosh",
    "isnan": "paddle.isnan",
    "isinf": "paddle.isinf",
    "logical_not": "paddle.logical_not",
    "selu": "F.selu",
    "sinh": "paddle.sinh",
    "asin": "paddle.asin",
    "acos": "paddle.acos",
    "trunc": "paddle.trunc",
    "bitwise_not": "paddle.bitwise_not",
}
SIMPLE_LAYERS = {
    "relu": "nn.ReLU()",
    "sigmoid": "nn.Sigmoid()",
    "silu": "nn.Silu()",
    "tanh": "nn.Tanh()",
    "mish": "nn.Mish()",
    "hardswish": "nn.Hardswish()",
    "relu6": "nn.ReLU6()",
    "log_sigmoid": "nn.LogSigmoid()",
    "selu": "nn.SELU()",
}
FLOATING = {
    "cos",
    "sin",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "sigmoid",
    "tanh",
    "reciprocal",
    "erf",
    "log2",
    "log1p",
    "atan",
}


def _simple(name: str, function: str) -> Callable[[Call], str]:
    def write(call: Call) -> str:
        x = call.cast("self", call.out.dtype) if name in FLOATING else call.x()
        return f"-{x}" if function == "-" else f"{function}({x})"

    write.__doc__ = f"torch.{name}: the same, value by value; of integers as PyTorch does, in float32."
    return write


for _name, _function in SIMPLE.items():
    _operators = [f"aten.{_name}.default"] + [f"aten.{_name}_.default"] * hasattr(torch.ops.aten, f"{_name}_")
    rule(*_operators)(_simple(_name, _function))
    if _name in SIMPLE_LAYERS:
        layer(*_operators)(lambda call, text=SIMPLE_LAYERS[_name]: Layer(text))


def _both(call: Call, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """Two operands in the type that PyTorch promotes them to; Paddle refuses int64 with float32."""
    dtype = dtype or call.out.dtype
    a, b = call.cast("self", dtype), call.cast("other", dtype)
    return a, b


def _compared(call: Call) -> tuple[str, str]:
    a, b = call.val("self"), call.val("other")
    return _both(call, torch.result_type(a, b)) if isinstance(b, torch.Tensor | int | float) else _both(call)


def _times_alpha(call: Call, b: str) -> str:
    return b if call["alpha"] in (1, None) else f"{call.x('alpha')} * {b}"


@rule("aten.add.Tensor", "aten.add_.Tensor", "aten.add.Scalar", "aten.add_.Scalar")
def add(call: Call) -> str:
    """Self + alpha * other, broadcast, in the promoted type."""
    a, b = _both(call)
    return f"{a} + {_times_alpha(call, b)}"


@rule("aten.sub.Tensor", "aten.sub_.Tensor", "aten.sub.Scalar", "aten.sub_.Scalar")
def sub(call: Call) -> str:
    """Self - alpha * other, broadcast, in the promoted type."""
    a, b = _both(call)
    return f"{a} - {_times_alpha(call, b)}"


@rule("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(call: Call) -> str:
    """Other - alpha * self."""
    a, b = _both(call)
    return f"{b} - {_times_alpha(call, a)}"


@rule("aten.mul.Tensor", "aten.mul_.Tensor", "aten.mul.Scalar", "aten.mul_.Scalar")
def mul(call: Call) -> str:
    """Self * other, broadcast, in the promoted type."""
    a, b = _both(call)
    if call.out.dtype == torch.bool:
        return f"paddle.logical_and({a}, {b})"
    return f"{a} * {b}"


@rule("aten.div.Tensor", "aten.div_.Tensor", "aten.div.Scalar", "aten.div_.Scalar")
def div(call: Call) -> str:
    """True division: integers give float32."""
    a, b = _both(call)
    return f"{a} / {b}"


@rule("aten.div.Tensor_mode", "aten.div_.Tensor_mode", "aten.div.Scalar_mode", "aten.floor_divide.default")
def div_mode(call: Call) -> str:
    """Division rounded to the floor, or towards zero."""
    a, b = _both(call)
    mode = call.arguments.get("rounding_mode", "floor")
    if mode is None:
        return f"{a} / {b}"
    if mode == "floor":
        return f"{a} // {b}"
    if call.out.dtype.is_floating_point:
        return f"paddle.trunc({a} / {b})"
    raise call.refuse("integers divided towards zero")


@rule("aten.remainder.Scalar", "aten.remainder.Tensor", "aten.fmod.Scalar")
def remainder(call: Call) -> str:
    """Python's %: the sign of the divisor (fmod, the sign of the dividend, is covered for positive divisors only)."""
    if "fmod" in call.name:
        raise call.refuse("the sign of the dividend is not covered")
    a, b = _both(call)
    return f"{a} % {b}"


@rule(
    *("aten.pow.Tensor_Scalar", "aten.pow_.Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar", "aten.pow_.Tensor"),
)
def power(call: Call) -> str:
    """Self ** exponent, in the promoted type."""
    base, exponent = call.cast("self", call.out.dtype), call.cast("exponent", call.out.dtype)
    if call.name == "aten.pow.Scalar":
        return f"paddle.full_like({exponent}, {base}) ** {exponent}"
    return f"{base} ** {exponent}"


def _comparison(symbol: str) -> Callable[[Call], str]:
    def write(call: Call) -> str:
        a, b = _compared(call)
        return f"{a} {symbol} {b}"

    write.__doc__ = f"Self {symbol} other, broadcast, compared in the promoted type; bool."
    return write


for _name, _symbol in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    rule(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_comparison(_symbol))


@rule("aten.maximum.default", "aten.max.other", "aten.minimum.default", "aten.min.other")
def larger_or_smaller(call: Call) -> str:
    """The larger (smaller) of two, broadcast."""
    a, b = _both(call)
    return f"paddle.{'maximum' if '.max' in call.name else 'minimum'}({a}, {b})"


@rule(
    *("aten.logical_and.default", "aten.logical_or.default", "aten.logical_xor.default"),
    *("aten.bitwise_and.Tensor", "aten.bitwise_or.Tensor", "aten.bitwise_xor.Tensor"),
    *("aten.__and__.Tensor", "aten.__or__.Tensor"),
)
def logic(call: Call) -> str:
    """And, or, xor: of truth values, or bit by bit."""
    name = call.name.split(".")[1].strip("_")
    name = name if name.startswith(("logical", "bitwise")) else f"bitwise_{name}"
    return f"paddle.{name}({call.x()}, {call.x('other')})"


@rule("aten.clamp.default", "aten.clamp_.default", "aten.clamp.Tensor", "aten.clip.default")
def clamp(call: Call) -> str:
    """Values held between min and max, either of which may be missing; numbers or tensors."""
    low, high = call["min"], call["max"]
    if call.name == "aten.clamp.Tensor":
        text = call.x()
        text = text if low is None else f"paddle.maximum({text}, {call.x('min')})"
        return text if high is None else f"paddle.minimum({text}, {call.x('max')})"
    parts = [f"min={call.x('min')}"] * (low is not None) + [f"max={call.x('max')}"] * (high is not None)
    return f"paddle.clip({call.cast('self', call.out.dtype)}, {', '.join(parts)})"


@rule("aten.clamp_min.default", "aten.clamp_min_.default")
def clamp_min(call: Call) -> str:
    """Values of at least `min`."""
    return f"paddle.clip({call.x()}, min={call.x('min')})"


@rule("aten.clamp_max.default", "aten.clamp_max_.default")
def clamp_max(call: Call) -> str:
    """Values of at most `max`."""
    return f"paddle.clip({call.x()}, max={call.x('max')})"


@rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(call: Call) -> str:
    """Self where the condition holds, other elsewhere, broadcast, in the promoted type."""
    dtype, parts = call.out.dtype, []
    for name in ("self", "other"):
        text = call.cast(name, dtype)
        if not isinstance(call.val(name), torch.Tensor):
            text = f'paddle.to_tensor({text}, dtype="{call.dtype()}")'
        parts.append(text)
    return f"paddle.where({call.x('condition')}, {', '.join(parts)})"


@rule("aten.masked_fill.Scalar", "aten.masked_fill_.Scalar", "aten.masked_fill.Tensor")
def masked_fill(call: Call) -> str:
    """A number where the mask holds; the mask is broadcast."""
    return f"paddle.where({call.x('mask')}, paddle.full_like({call.x()}, {call.x('value')}), {call.x()})"


@rule("aten.gelu.default", "aten.gelu_.default")
def gelu(call: Call) -> str:
    """The product x * Phi(x), or its approximation by tanh."""
    return f"F.gelu({call.x()}{', approximate=True' if call['approximate'] == 'tanh' else ''})"


@layer("aten.gelu.default", "aten.gelu_.default")
def gelu_layer(call: Call) -> Layer:
    """nn.GELU."""
    return Layer("nn.GELU(approximate=True)" if call["approximate"] == "tanh" else "nn.GELU()")


@rule("aten.hardtanh.default", "aten.hardtanh_.default")
def hardtanh(call: Call) -> str:
    """Values held between min_val and max_val (ReLU6 is 0 and 6)."""
    if (call["min_val"], call["max_val"]) == (0, 6):
        return f"F.relu6({call.x()})"
    return f"paddle.clip({call.x()}, {call.x('min_val')}, {call.x('max_val')})"


@layer("aten.hardtanh.default", "aten.hardtanh_.default")
def hardtanh_layer(call: Call) -> Layer | None:
    """nn.ReLU6 for 0 and 6."""
    return Layer("nn.ReLU6()") if (call["min_val"], call["max_val"]) == (0, 6) else None


@rule("aten.hardsigmoid.default", "aten.hardsigmoid_.default")
def hardsigmoid(call: Call) -> str:
    """relu6(x + 3) / 6; Paddle's own slope is 0.1666667 and offset 0.5, so both are given."""
    return f"F.hardsigmoid({call.x()}, slope=1 / 6, offset=0.5)"


@layer("aten.hardsigmoid.default", "aten.hardsigmoid_.default")
def hardsigmoid_layer(call: Call) -> Layer:
    """nn.Hardsigmoid."""
    return Layer("nn.Hardsigmoid()")


@rule("aten.leaky_relu.default", "aten.leaky_relu_.default")
def leaky_relu(call: Call) -> str:
    """x, or negative_slope * x below 0."""
    return f"F.leaky_relu({call.x()}, {call.x('negative_slope')})"


@layer("aten.leaky_relu.default", "aten.leaky_relu_.default")
def leaky_relu_layer(call: Call) -> Layer:
    """nn.LeakyReLU."""
    return Layer(f"nn.LeakyReLU({literal(call['negative_slope'], 'negative_slope')})")


@rule("aten.elu.default", "aten.elu_.default")
def elu(call: Call) -> str:
    """x, or alpha * (exp(x) - 1) below 0; scale and input_scale of 1 only."""
    if (call["scale"], call["input_scale"]) != (1, 1):
        raise call.refuse("with a scale")
    return f"F.elu({call.x()}, {call.x('alpha')})"


@rule("aten.celu.default")
def celu(call: Call) -> str:
    """x, or alpha * (exp(x / alpha) - 1) below 0."""
    return f"F.celu({call.x()}, {call.x('alpha')})"


@rule("aten.softplus.default")
def softplus(call: Call) -> str:
    """log(1 + exp(beta * x)) / beta, x itself beyond the threshold."""
    return f"F.softplus({call.x()}, {call.x('beta')}, {call.x('threshold')})"


@rule("aten.prelu.default")
def prelu(call: Call) -> str:
    """x, or weight * x below 0, with one weight for all or one per channel."""
    return f"F.prelu({call.x()}, {call.x('weight')})"


@rule("aten.glu.default")
def glu(call: Call) -> str:
    """The first half of an axis times the sigmoid of the second."""
    return f"F.glu({call.x()}, {call.x('dim')})"


@rule("aten.addcmul.default")
def addcmul(call: Call) -> str:
    """Self + value * tensor1 * tensor2."""
    factor = "" if call["value"] == 1 else f"{call.x('value')} * "
    return f"{call.x()} + {factor}{call.x('tensor1')} * {call.x('tensor2')}"


@rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(call: Call) -> str:
    """Self + weight * (end - self)."""
    return f"paddle.lerp({call.x()}, {call.x('end')}, {call.x('weight')})"


@rule("aten.round.default")
def rounded(call: Call) -> str:
    """Halves to the even number, as Paddle's round does on a CPU."""
    return f"paddle.round({call.x()})"


@rule(
    *("aten.to.dtype", "aten.to.dtype_layout", "aten._to_copy.default", "aten.type_as.default", "aten.to.other"),
    *("aten.to.device", "prims.convert_element_type.default"),
)
def to_dtype(call: Call) -> str:
    """Values in another type."""
    name = "a" if "a" in call.arguments else "self"
    return f'{call.x(name)}.astype("{call.dtype()}")'


@rule("aten.detach.default", "aten.detach_.default")
def detach(call: Call) -> str:
    """The same values, through which no gradient flows."""
    return f"{call.x()}.detach()"


@rule("segrepro.drop_path.default")
def drop_path(call: Call) -> str:
    """Stochastic depth: in training whole samples become 0 with probability p, the others grow by 1 / (1 - p)."""
    if not call["scale"]:
        raise call.refuse("drop-path without scaling")
    return f"{call.helper('drop_path')}({call.x('x')}, {literal(call['p'], 'drop_path')}, self.training)"
