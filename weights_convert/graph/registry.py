"""The table of operators: what each ATen operator becomes in Paddle.

A rule is a short function that takes a `Call` and returns the Paddle expression that computes the same. It is
registered under the operator's full names and lives in one of the `rules_*.py`. Rules of layers say besides how the
operator is written as a `paddle.nn` layer, where it is the whole of a module.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

HOLE_START, HOLE_MIDDLE, HOLE_END = "\x01", "\x02", "\x03"
PADDLE_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
RULES: dict[str, Callable[[Call], str]] = {}
LAYERS: dict[str, Callable[[Call], Layer | None]] = {}


class NoRuleError(Exception):
    """An operator, or a use of one, that no rule covers; the text says what about it."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """An operator as a `paddle.nn` layer.

    Attributes:
        constructor: `nn.Conv2D(3, 64, 7)`, numbers as `literal`.
        tensors: Argument of the operator -> name of the layer's tensor.
        transposed: Names of its tensors that Paddle keeps transposed.
        helper: A class of `helpers` that the constructor names.
    """

    constructor: str
    tensors: dict[str, str] = dataclasses.field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    helper: str | None = None


def rule(*operators: str) -> Callable[[Callable[[Call], str]], Callable[[Call], str]]:
    """Registers a function as the rule of operators, named as `aten.relu.default`."""

    def register(function: Callable[[Call], str]) -> Callable[[Call], str]:
        for name in operators:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


def layer(*operators: str) -> Callable[[Callable[[Call], Layer | None]], Callable[[Call], Layer | None]]:
    """Registers how operators are written as a layer; the function returns None where the use has no such form."""

    def register(function: Callable[[Call], Layer | None]) -> Callable[[Call], Layer | None]:
        LAYERS.update(dict.fromkeys(operators, function))
        return function

    return register


def operator_name(target: Any) -> str:
    """`aten.relu.default`, or the name of a Python function in the graph."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    return f"{module.removeprefix('_')}.{getattr(target, '__name__', target)}"


def literal(value: Any, hint: str = "value") -> str:
    """A constant in generated code that may differ between the instances of a class; `hint` names the argument then.

    Lists are written element by element.
    """
    if isinstance(value, list | tuple):
        inner = ", ".join(literal(item, hint) for item in value)
        return f"[{inner}]"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        text = f'float("{value}")'
    else:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    return f"{HOLE_START}{hint}{HOLE_MIDDLE}{text}{HOLE_END}"


class Call:
    """One call of an operator, as a rule sees it.

    Attributes:
        node: Of the exported graph.
        arguments: By the names in the operator's schema, defaults filled in.
    """

    def __init__(self, node: torch.fx.Node, scope: Any):
        self.node = node
        self.name = operator_name(node.target)
        self._scope = scope
        self.arguments: dict[str, Any] = {}
        if isinstance(node.target, torch._ops.OpOverload):
            for index, argument in enumerate(node.target._schema.arguments):
                if index < len(node.args) and not argument.kwarg_only:
                    self.arguments[argument.name] = node.args[index]
                elif argument.name in node.kwargs:
                    self.arguments[argument.name] = node.kwargs[argument.name]
                else:
                    self.arguments[argument.name] = argument.default_value if argument.has_default_value() else None

    def __getitem__(self, name: str) -> Any:
        """The argument's value: a number, a list, None, or a node."""
        return self.arguments[name]

    def x(self, name: str = "self") -> str:
        """The expression of a tensor argument; numbers and sizes come as they are written."""
        return self.show(self.arguments[name], name)

    def xs(self, name: str) -> list[str]:
        """The expressions of a list of tensors."""
        return [self.show(item, name) for item in self.arguments[name]]

    def show(self, value: Any, hint: str = "value") -> str:
        """A node's expression, or a constant."""
        if isinstance(value, torch.fx.Node):
            return self._scope.expression(value, self.node)
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self.show(item, hint) for item in value) + "]"
        return literal(value, hint)

    def val(self, name: str = "self") -> Any:
        """What the tracer knows of an argument: a fake tensor, or the constant itself."""
        return value_of(self.arguments[name])

    def size_of(self, size: Any) -> str:
        """A size of some tensor: a number, or arithmetic over sizes at hand."""
        return self._scope.size(size)

    @property
    def out(self) -> Any:
        """What the tracer knows of the result: a fake tensor, or several."""
        return self.node.meta["val"]

    def dtype(self) -> str:
        """The result's type, in Paddle's words."""
        return PADDLE_DTYPES[self.out.dtype]

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """A tensor argument in a type that it may not have; numbers stay numbers."""
        value, text = self.val(name), self.x(name)
        if not isinstance(value, torch.Tensor) or value.dtype == dtype:
            return text
        return f'{text}.astype("{PADDLE_DTYPES[dtype]}")'

    def helper(self, name: str) -> str:
        """Asks for a function of `helpers` in the generated file, and returns its name."""
        return self._scope.helper(name)

    def pair(self, name: str, length: int, default: Any = None) -> list[Any]:
        """A list argument as `length` numbers: one stands for all; empty is the default."""
        value = self.arguments[name]
        value = list(value) if isinstance(value, list | tuple) else [value]
        if not value or value == [None]:
            return list(default)
        return value * length if len(value) == 1 else value

    def refuse(self, why: str) -> NoRuleError:
        """What a rule raises for a use of the operator that it does not cover."""
        return NoRuleError(f"{self.name}: {why}")


def value_of(argument: Any) -> Any:
    """What the tracer knows of a node; anything else is itself."""
    return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument


def one_or_list(values: Sequence[Any], hint: str) -> str:
    """`3` for equal numbers, `[3, 5]` for others."""
    return literal(values[0], hint) if len(set(values)) == 1 else literal(list(values), hint)


def is_size(node: Any) -> bool:
    """Whether a node is a size or a number made of sizes, not a tensor."""
    return isinstance(node, torch.fx.Node) and isinstance(
        node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool
    )


SIZE_OPERATORS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
}
