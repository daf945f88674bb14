"""From groups and rules to the text of methods: statements, names of variables, what goes in and out."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterable
from typing import Any

from common.cli import UserError
from weights_convert.graph.classes import Group
from weights_convert.graph.registry import (
    PADDLE_DTYPES,
    RULES,
    SIZE_OPERATORS,
    Call,
    NoRuleError,
    is_size,
    literal,
    operator_name,
)
from weights_convert.graph.trace import Traced

import sympy
import torch

TOKEN = re.compile("\x04(\\d+)\x05")
VARIABLES = ("x", "y", "z", "u", "v", "w")
WHERE = "weights_convert/graph/rules_*.py (README, 'A rule of your own')"


@dataclasses.dataclass
class Statement:
    """A line of a forward: values that it makes, and an expression over other values.

    Attributes:
        targets: Nodes; None where one of several results has no use.
        text: With a token for every node.
        comment: Module path and shapes.
    """

    targets: list[torch.fx.Node | None]
    text: str
    comment: str = ""


@dataclasses.dataclass
class Method:
    """The forward of one group.

    Attributes:
        inputs: Nodes from outside, in the order of their first use.
        outputs: Nodes that are used outside.
        statements: In order.
        result: What the root returns, with tokens; None elsewhere.
    """

    inputs: list[torch.fx.Node]
    outputs: list[torch.fx.Node]
    statements: list[Statement]
    result: str | None = None


def token(index: int) -> str:
    """What stands for a value until it has a name."""
    return f"\x04{index}\x05"


class Writer:
    """Writes methods, deepest first, and remembers the helpers that they ask for."""

    def __init__(self, traced: Traced):
        self.traced = traced
        self.nodes = list(traced.graph.nodes)
        self.index = {node: position for position, node in enumerate(self.nodes)}
        self.helpers: set[str] = set()
        self.methods: dict[int, Method] = {}
        self.layers: dict[str, Any] = {}
        self.super_nodes: set[torch.fx.Node] = set()
        self.paths: dict[str, str] = {}

    def write(self, group: Group, is_root: bool = False) -> Method:
        """The method of a group; those of the groups in it are written first.

        Raises:
            UserError: An operator without a rule.
        """
        for item in group.items:
            if isinstance(item, Group):
                self.write(item)
        scope = _Scope(self, group)
        statements: list[Statement] = []
        done: set[torch.fx.Node] = set()
        for item in group.items:
            if isinstance(item, Group):
                statements.append(self._call(scope, item))
            elif item not in done:
                statements.append(self._operator(scope, item, done, group))
            scope.defined.update((target, None) for target in statements[-1].targets if target is not None)
        statements = [statement for statement in statements if statement.text]
        inside = set(group.nodes())
        outputs = [node for node in group.nodes() if any(self._outside(user, inside) for user in node.users)]
        result = None
        if is_root:
            output = next(node for node in self.nodes if node.op == "output")
            texts = [
                scope.expression(value, output) if isinstance(value, torch.fx.Node) else repr(value)
                for value in output.args[0]
            ]
            tree = torch.utils._pytree.tree_unflatten(texts, self.traced.out_spec)
            result, outputs = _nested(tree), []
        inputs = self._inputs(statements, result, inside)
        method = Method(inputs, outputs, statements, result)
        self.methods[id(group)] = method
        return method

    def _outside(self, user: torch.fx.Node, inside: set[torch.fx.Node]) -> bool:
        if is_size(user):  # sizes are worked out where they are needed
            return False
        return user not in inside

    def _inputs(self, statements: list[Statement], result: str | None, inside: set) -> list[torch.fx.Node]:
        found: dict[torch.fx.Node, None] = {}
        for text in [statement.text for statement in statements] + [result or ""]:
            for match in TOKEN.finditer(text):
                node = self.nodes[int(match[1])]
                if node not in inside:
                    found[node] = None
        return list(found)

    def _call(self, scope: _Scope, group: Group) -> Statement:
        method = self.methods[id(group)]
        arguments = ", ".join(scope.expression(node, None) for node in method.inputs)
        text = f"{scope.reference(group.path)}\x06{id(group)}\x07({arguments})"
        shapes = ", ".join(self.shape(node) for node in method.outputs)
        return Statement(list(method.outputs), text, f"{group.path} -> {shapes}")

    def _operator(self, scope: _Scope, node: torch.fx.Node, done: set, group: Group) -> Statement:
        text = self.expression(scope, node)
        users = list(node.users)
        takes = [user for user in users if user.target is operator.getitem]
        if takes and len(takes) == len(users) and all(user in group.items for user in users):
            count = len(node.meta["val"])
            targets: list[torch.fx.Node | None] = [None] * count
            repeated = False
            for user in takes:
                repeated |= targets[user.args[1]] is not None
                targets[user.args[1]] = user
            if not repeated and count > 1:
                done.update(takes)
                return Statement(targets, text, ", ".join(self.shape(user) for user in takes[:1]))
        return Statement([node], text, self.shape(node))

    def expression(self, scope: _Scope, node: torch.fx.Node) -> str:
        """The Paddle expression of one operator."""
        name = operator_name(node.target)
        if node.target is operator.getitem:
            return f"{scope.expression(node.args[0], node)}[{node.args[1]}]"
        if name not in RULES:
            raise UserError(f"no rule for the operator {name}{_place(node)}: add one to {WHERE}")
        scope.current = node
        if node in self.super_nodes:
            return f"super().forward({scope.expression(node.args[0], node)})"
        try:
            return RULES[name](Call(node, scope))
        except NoRuleError as error:
            raise UserError(f"no rule for {error}{_place(node)}: extend '{name}' in {WHERE}") from None
        except KeyError as error:
            if isinstance(error.args[0], torch.dtype):
                raise UserError(
                    f"no rule for {name} of {error.args[0]}{_place(node)}: such numbers are not covered"
                ) from None
            raise

    def shape(self, node: torch.fx.Node) -> str:
        """A result's shape for a comment."""
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return f"({', '.join(self._size(size) for size in value.shape)})"
        return f"{len(value)} tensors" if isinstance(value, list | tuple) else ""

    def _size(self, size: Any) -> str:
        """B for the batch; heights and widths as they were traced."""
        if not isinstance(size, torch.SymInt):
            return str(size)
        name = self.traced.symbols.get(str(size))
        return name if name == "B" else str(size.node.hint)


class _Scope:
    """What the text of one method may refer to."""

    def __init__(self, writer: Writer, group: Group):
        self.writer, self.group = writer, group
        self.defined: dict[torch.fx.Node, None] = {}
        self.current: torch.fx.Node | None = None
        inside = set(group.nodes())
        self.outer: dict[torch.fx.Node, None] = {}
        for item in group.items:
            used = item.all_input_nodes if isinstance(item, torch.fx.Node) else writer.methods[id(item)].inputs
            self.outer.update((node, None) for node in used if node not in inside and not is_size(node))

    def reference(self, path: str) -> str:
        """A module below the group's."""
        below = path[len(self.group.path) :].lstrip(".") if self.group.path else path
        text = "self"
        current = self.group.path
        for part in below.split("."):
            holder, current = current, f"{current}.{part}".lstrip(".")
            if part.isidentifier():
                text += f".{part}"
            elif self.writer.paths.get(holder) == "list":
                text += f"[{part}]"
            else:
                text = f'getattr({text}, "{part}")'
        return text

    def expression(self, value: Any, at: torch.fx.Node | None) -> str:
        """A value as the rule of `at` writes it."""
        if is_size(value):
            return self.size(value)
        owner = value.meta.get("owner")
        if owner is not None:
            path, name = owner
            prefix = self.group.path
            if not prefix or path == prefix or path.startswith(f"{prefix}."):
                holder = self.reference(path) if path != prefix else "self"
                return f"{holder}.{name}" if name.isidentifier() else f'getattr({holder}, "{name}")'
        elif value in self.writer.traced.constants:
            constant = self.writer.traced.constants[value]
            numbers = constant.tolist()
            return f'paddle.to_tensor({literal(numbers, "constant")}, dtype="{PADDLE_DTYPES[constant.dtype]}")'
        elif value in self.writer.traced.names:
            raise UserError(f"tensor '{self.writer.traced.names[value]}' is used for its size alone: not covered")
        return token(self.writer.index[value])

    def helper(self, name: str) -> str:
        """Asks for a helper."""
        self.writer.helpers.add(name)
        return name

    def size(self, node: Any) -> str:
        """A size: read from a tensor at hand if one has it, else worked out as the original did."""
        value = node.meta["val"] if isinstance(node, torch.fx.Node) else node
        if isinstance(value, bool | int | float) and not isinstance(value, torch.SymInt):
            return literal(value, "size")
        expression = value.node.expr
        if expression.is_number:
            return literal(int(expression) if expression.is_integer else float(expression), "size")
        found = self._read(expression)
        if found is not None:
            return found
        if not isinstance(node, torch.fx.Node):
            return self._worked_out(expression)
        target = node.target
        if target in SIZE_OPERATORS:
            a, b = (self.size(arg) if isinstance(arg, torch.fx.Node) else literal(arg, "size") for arg in node.args)
            return f"({a} {SIZE_OPERATORS[target]} {b})"
        name = operator_name(target)
        if name.startswith("aten.sym_size"):
            return f"{self.expression(node.args[0], node)}.shape[{node.args[1]}]"
        simple = {
            "sym_max": "larger",
            "sym_min": "smaller",
            "sym_int": "int",
            "trunc": "int",
            "neg": "-",
            "sym_float": "float",
        }
        short = name.rpartition(".")[2]
        if short in simple:
            arguments = (
                self.size(arg) if isinstance(arg, torch.fx.Node) else literal(arg, "size") for arg in node.args
            )
            if simple[short] in ("larger", "smaller"):
                self.helper(simple[short])
            return f"{simple[short]}({', '.join(arguments)})"
        if short in ("floor", "ceil"):
            return self._rounded(node.args[0], short)
        try:
            return self._worked_out(expression)
        except UserError:
            raise UserError(f"no rule for {name}, a size that is computed{_place(node)}") from None

    def _rounded(self, node: Any, way: str) -> str:
        """A quotient of sizes as a whole number, in whole numbers: a static graph has no others."""
        if isinstance(node, torch.fx.Node) and operator_name(node.target).endswith("truediv"):
            a, b = (self.size(arg) if is_size(arg) else literal(arg, "size") for arg in node.args)
            if node.args[1] == 1:
                return a
            return f"({a} // {b})" if way == "floor" else f"(({a} + {b} - 1) // {b})"
        raise UserError(f"no rule for {way} of a size{_place(self.current)}")

    size_of = size

    def _read(self, expression: Any) -> str | None:
        """`x.shape[2]` of a tensor at hand that has this size."""
        near = [
            n for n in (self.current.all_input_nodes if self.current else []) if n in self.outer or n in self.defined
        ]
        for node in [*near, *self.outer, *reversed(list(self.defined))]:
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or node.meta.get("owner") is not None:
                continue
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and size.node.expr == expression:
                    return f"{self.expression(node, None)}.shape[{axis}]"
        return None

    def _worked_out(self, expression: Any) -> str:
        """A size as arithmetic over sizes at hand."""
        if expression.is_number:
            return literal(int(expression), "size")
        found = self._read(expression)
        if found is not None:
            return found
        parts = [self._worked_out(part) for part in expression.args]
        name = type(expression).__name__
        if isinstance(expression, sympy.Add):
            return f"({' + '.join(parts)})"
        if isinstance(expression, sympy.Mul):
            return f"({' * '.join(parts)})"
        if name in ("FloorDiv", "CleanDiv"):
            return f"({parts[0]} // {parts[1]})"
        if name in ("Mod", "PythonMod"):
            return f"({parts[0]} % {parts[1]})"
        if isinstance(expression, sympy.Pow) or name == "PowByNatural":
            return f"({parts[0]} ** {parts[1]})"
        if name in ("Max", "Min") and len(parts) == 2:
            return f"{self.helper('larger' if name == 'Max' else 'smaller')}({', '.join(parts)})"
        user = next((n for n in self.writer.nodes if n.op == "placeholder" and _has_size(n, expression)), None)
        if user is not None:
            axis = [getattr(getattr(s, "node", None), "expr", s) for s in user.meta["val"].shape].index(expression)
            return f"{self.expression(user, None)}.shape[{axis}]"
        raise UserError(f"no rule for a size like {expression}{_place(self.current)}")


def _has_size(node: torch.fx.Node, expression: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and any(
        isinstance(size, torch.SymInt) and size.node.expr == expression for size in value.shape
    )


def _place(node: torch.fx.Node | None) -> str:
    """The module and the line of the user's code that an operator comes from."""
    if node is None:
        return ""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack and stack[-1][0] else "the network itself"
    places = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    outer = [place for place in places if "/torch/" not in place[0]] or places
    where = f", {outer[-1][0]}:{outer[-1][1]} in {outer[-1][2]}" if outer else ""
    return f" (module '{path}'{where})"


def _nested(value: Any) -> str:
    """A nest of texts as Python writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {_nested(item)}' for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_nested(item) for item in value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, list):
        return "[" + ", ".join(_nested(item) for item in value) + "]"
    if isinstance(value, str):
        return value
    raise UserError(f"the network returns a {type(value).__name__}: return tensors in tuples, lists or dicts")


@dataclasses.dataclass
class Named:
    """A method with names: `forward(self, x, y)` and its lines; a comment beside each."""

    arguments: list[str]
    lines: list[tuple[str, str]]


def name_values(method: Method, writer: Writer) -> Named:
    """Gives values names: the one of an input that has no use after, else a free one."""
    references = [[int(match[1]) for match in TOKEN.finditer(s.text)] for s in method.statements]
    result = method.result
    if result is None:
        result = ", ".join(token(writer.index[node]) for node in method.outputs)
    references.append([int(match[1]) for match in TOKEN.finditer(result)])
    last = {index: position for position, found in enumerate(references) for index in found}
    names: dict[int, str] = {}
    live: dict[str, int] = {}
    for node in method.inputs:
        _assign(writer.index[node], names, live)
    arguments = [names[writer.index[node]] for node in method.inputs]
    lines = []
    for position, statement in enumerate(method.statements):
        text = _named(statement.text, names)
        for name in [name for name, index in live.items() if last.get(index, -1) <= position]:
            del live[name]
        ended = [names[index] for index in references[position] if last[index] == position]
        targets = []
        for target in statement.targets:
            if target is None:
                targets.append("_")
                continue
            targets.append(_assign(writer.index[target], names, live, ended))
        lines.append((f"{', '.join(targets)} = {text}", statement.comment))
    text = _named(result, names)
    if lines and lines[-1][0].startswith(f"{text} = "):
        code, comment = lines.pop()
        lines.append((f"return {code.removeprefix(f'{text} = ')}", comment))
    else:
        lines.append((f"return {text}", ""))
    return Named(arguments, lines)


def _assign(index: int, names: dict[int, str], live: dict[str, int], ended: Iterable[str] = ()) -> str:
    free = [name for name in ended if name not in live]
    name = free[0] if free else next(name for name in _pool() if name not in live)
    names[index], live[name] = name, index
    return name


def _pool() -> Iterable[str]:
    yield from VARIABLES
    count = 1
    while True:
        yield from (f"{name}{count}" for name in VARIABLES[:1])
        count += 1


def _named(text: str, names: dict[int, str]) -> str:
    return TOKEN.sub(lambda match: names[int(match[1])], text)
