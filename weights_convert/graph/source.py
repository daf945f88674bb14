"""The generated file: a class for each kind of module that repeats, layers, and the network."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.cli import UserError
from weights_convert.graph import helpers, rules_elementwise, rules_layers, rules_pool, rules_reduce, rules_shape
from weights_convert.graph.classes import Branch, Group, OwnTensor, build_tree, group_calls
from weights_convert.graph.emit import Method, Writer, name_values
from weights_convert.graph.registry import (
    HOLE_END,
    HOLE_MIDDLE,
    HOLE_START,
    LAYERS,
    PADDLE_DTYPES,
    Call,
    Layer,
    literal,
    operator_name,
)
from weights_convert.graph.trace import Traced

import torch

RULE_FILES = (rules_elementwise, rules_layers, rules_pool, rules_reduce, rules_shape)
HOLE = re.compile(f"{HOLE_START}([^{HOLE_MIDDLE}]*){HOLE_MIDDLE}([^{HOLE_END}]*){HOLE_END}")
CALL = re.compile("\x06(\\d+)\x07")
CONVOLUTION = re.compile(r"(nn\.Conv\dD(Transpose)?|F\.conv\dd(_transpose)?)\([^()]*\)|super\(\)\.__init__\([^()]*\)")
USUAL = re.compile(r", (stride=1|padding=0|output_padding=0|dilation=1|groups=1)(?=[,)])")
LINE_LENGTH = 120
LOOP_FROM = 3  # equal layers in a row that become a loop


@dataclasses.dataclass
class Kind:
    """A class of the generated file.

    Attributes:
        name: Its name there.
        base: What it inherits from.
        init: Lines of `__init__`.
        methods: Name, arguments, lines with comments.
        members: Its instances in the tree.
        original: The PyTorch class.
    """

    name: str
    base: str
    init: list[str]
    methods: list[tuple[str, list[str], list[tuple[str, str]]]]
    members: list[Branch]
    original: str
    arguments: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Code:
    """The generated file and what fills it.

    Attributes:
        text: Of the file, formatted.
        class_name: The network's class.
        tensors: Name -> the source's tensor of that name.
        transposed: Those that Paddle keeps transposed.
        classes: How many classes the file has.
    """

    text: str
    class_name: str
    tensors: dict[str, torch.Tensor]
    transposed: frozenset[str]
    classes: int


def generate(traced: Traced, title: str, remarks: list[str], extra: str = "") -> Code:
    """Writes the Paddle file of an exported graph.

    Args:
        traced: The graph.
        title: What it comes from, for the docstring.
        remarks: Further sentences of the docstring.
        extra: Lines of constants behind the imports.

    Raises:
        UserError: An operator without a rule.
    """
    root = group_calls(traced)
    tree = build_tree(traced, root)
    return _File(traced, root, tree).code(title, remarks, extra)


class _File:
    """Collects the classes of a file."""

    def __init__(self, traced: Traced, root: Group, tree: Branch):
        self.traced, self.tree = traced, tree
        self.writer = Writer(traced)
        self.branches = tree.all()
        self.writer.paths = {branch.path: "list" for branch in self.branches if branch.is_list}
        self.bases: dict[str, tuple[Layer, torch.fx.Node]] = {}
        for branch in self.branches:
            base = self._base_layer(branch)
            if base is not None:
                self.bases[branch.path] = base
                self.writer.super_nodes.add(base[1])
        self.writer.write(root, is_root=True)
        self.kinds: dict[Any, Kind] = {}
        self.kind_of: dict[str, Kind] = {}
        self.constructors: dict[str, str] = {}
        self.helpers: set[str] = set()
        self.transposed: set[str] = set()
        self.names: set[str] = set()
        self.calls: dict[int, str] = {}

    def code(self, title: str, remarks: list[str], extra: str) -> Code:
        """See `generate`."""
        heights: dict[str, int] = {}
        for branch in self.branches:
            heights[branch.path] = 1 + max((heights[child.path] for child in branch.children.values()), default=-1)
        for height in range(heights[self.tree.path] + 1):
            level = [branch for branch in self.branches if heights[branch.path] == height]
            for branch in level:
                self._prepare(branch)
            self._finish(level)
        root_kind = self.kind_of[""]
        self.helpers |= self.writer.helpers
        text = self._file_text(title, remarks, extra)
        tensors = {}
        for branch in self.branches:
            for own in branch.tensors:
                tensors[f"{branch.path}.{own.name}".lstrip(".")] = own.value
        return Code(text, root_kind.name, tensors, frozenset(self.transposed), len(self.kinds))

    def _prepare(self, branch: Branch) -> None:
        """Decides how a module is written: container, layer, Sequential or class."""
        path = branch.path
        if not branch.groups:
            self.constructors[path] = self._container(branch)
            return
        for group in branch.groups:
            self.calls[id(group)] = ""
        as_layer = self._as_layer(branch)
        if as_layer is not None and path:
            self._use(as_layer, path)
            self.constructors[path] = as_layer.constructor
            return
        if path and self._is_chain(branch):
            self.constructors[path] = f"nn.Sequential({self._children(branch)})"
            return
        base, init = self._init(branch)
        methods = []
        for group in branch.groups:
            named = name_values(self.writer.methods[id(group)], self.writer)
            lines = [
                (CALL.sub(lambda match: self.calls[int(match[1])], text), comment) for text, comment in named.lines
            ]
            lines = self._looped(lines, branch)
            same = [
                name
                for name, arguments, known in methods
                if (arguments, _codes(known)) == (named.arguments, _codes(lines))
            ]
            name = same[0] if same else "forward" if not methods else f"forward_{len(methods) + 1}"
            if not same:
                methods.append((name, named.arguments, lines))
            self.calls[id(group)] = "" if name == "forward" else f".{name}"
        key = (
            branch.kind,
            base,
            _blank("\n".join(init)),
            _blank(repr([(n, a, _codes(lines)) for n, a, lines in methods])),
        )
        if key not in self.kinds:
            self.kinds[key] = Kind(self._class_name(branch), base, init, methods, [], branch.kind)
        self.kinds[key].members.append(branch)
        self.kind_of[path] = self.kinds[key]
        branch.kind_init, branch.kind_methods = init, methods  # type: ignore[attr-defined]

    def _finish(self, level: list[Branch]) -> None:
        """Finds which numbers differ between the instances of a class, and makes them its arguments."""
        for kind in {id(self.kind_of[b.path]): self.kind_of[b.path] for b in level if b.path in self.kind_of}.values():
            texts = [_all_text(member) for member in kind.members]
            holes = [HOLE.findall(text) for text in texts]
            arguments: dict[tuple[str, ...], str] = {}
            replaced: list[str | None] = []
            for index in range(len(holes[0])):
                values = tuple(found[index][1] for found in holes)
                if len(set(values)) == 1:
                    replaced.append(None)
                    continue
                if values not in arguments:
                    hint, name, count = holes[0][index][0], holes[0][index][0], 2
                    while name in arguments.values():
                        name, count = f"{hint}_{count}", count + 1
                    arguments[values] = name
                replaced.append(arguments[values])
            kind.arguments = list(arguments.values())
            self._put_arguments(kind, replaced)
            for position, member in enumerate(kind.members):
                given = ", ".join(
                    f"{name}={HOLE_START}{name}{HOLE_MIDDLE}{values[position]}{HOLE_END}"
                    for values, name in arguments.items()
                )
                self.constructors[member.path] = f"{kind.name}({given})"

    def _put_arguments(self, kind: Kind, replaced: list[str | None]) -> None:
        names = iter(replaced)
        in_forward: set[str] = set()

        def put(match: re.Match, prefix: str) -> str:
            name = next(names)
            if name is None:
                return match[2]
            if prefix:
                in_forward.add(name)
            return prefix + name

        first = kind.members[0]
        kind.init = [_short(HOLE.sub(lambda m: put(m, ""), line)) for line in first.kind_init]
        kind.methods = [
            (name, arguments, [(_short(HOLE.sub(lambda m: put(m, "self._"), text)), note) for text, note in lines])
            for name, arguments, lines in first.kind_methods
        ]
        kind.init[1:1] = [f"self._{name} = {name}" for name in kind.arguments if name in in_forward]

    def _container(self, branch: Branch) -> str:
        if branch.is_list:
            return f"nn.LayerList([{self._children(branch)}])"
        if branch.tensors:
            self.helpers.add("Tensors")
            shapes = ", ".join(f"{own.name}={literal(list(own.value.shape), own.name)}" for own in branch.tensors)
            buffers = {own.name: PADDLE_DTYPES[own.value.dtype] for own in branch.tensors if not own.is_parameter}
            options = f"buffers={buffers!r}, " if buffers else ""
            if branch.children:
                options += (
                    "layers={"
                    + ", ".join(f'"{name}": {self.constructors[child.path]}' for name, child in branch.children.items())
                    + "}, "
                )
            return f"Tensors({options}{shapes})"
        inner = ", ".join(f'"{name}": {self.constructors[child.path]}' for name, child in branch.children.items())
        return f"nn.LayerDict({{{inner}}})"

    def _children(self, branch: Branch) -> str:
        """Constructors of numbered children, equal ones in a row as a loop; others with their names."""
        names = list(branch.children)
        texts = [self.constructors[child.path] for child in branch.children.values()]
        if names != [str(index) for index in range(len(names))]:
            return ", ".join(f'("{name}", {text})' for name, text in zip(names, texts, strict=True))
        parts, index = [], 0
        while index < len(texts):
            count = 1
            while index + count < len(texts) and texts[index + count] == texts[index]:
                count += 1
            if count >= LOOP_FROM:
                loop = f"{texts[index]} for _ in range({count})"
                parts.append(loop if count == len(texts) and branch.is_list else f"*[{loop}]")
            else:
                parts += texts[index : index + count]
            index += count
        return ", ".join(parts)

    def _as_layer(self, branch: Branch) -> Layer | None:
        """The layer that is the whole module, if every call of it is one operator over its own tensors."""
        found = []
        for group in branch.groups:
            if len(group.items) != 1 or isinstance(group.items[0], Group) or branch.children:
                return None
            node = group.items[0]
            found.append(self._layer_of(node, branch, {own.name for own in branch.tensors}))
            method = self.writer.methods[id(group)]
            if len(method.inputs) != 1 or method.outputs != [node]:
                return None
        if found[0] is None or any(one is None or one.constructor != found[0].constructor for one in found):
            return None
        return found[0]

    def _layer_of(self, node: torch.fx.Node, branch: Branch, wanted: set[str]) -> Layer | None:
        function = LAYERS.get(operator_name(node.target))
        if function is None:
            return None
        call = Call(node, None)
        if any(not isinstance(v, torch.fx.Node) and isinstance(v, torch.SymInt) for v in call.arguments.values()):
            return None
        found = function(call)
        if found is None or set(found.tensors.values()) != wanted:
            return None
        for argument, name in found.tensors.items():
            if not isinstance(call[argument], torch.fx.Node) or call[argument].meta.get("owner") != (branch.path, name):
                return None
        taken = [v.meta["owner"] for v in node.all_input_nodes if v.meta.get("owner") is not None]
        return found if len(taken) == len(found.tensors) else None

    def _use(self, found: Layer, path: str) -> None:
        if found.helper:
            self.helpers.add(found.helper)
        self.transposed.update(f"{path}.{name}" for name in found.transposed)

    def _is_chain(self, branch: Branch) -> bool:
        """Whether the module is nothing but its children one after the other."""
        if len(branch.groups) != 1 or branch.tensors or not branch.children:
            return False
        group = branch.groups[0]
        method = self.writer.methods[id(group)]
        if [getattr(item, "path", None) for item in group.items] != [child.path for child in branch.children.values()]:
            return False
        if len(method.inputs) != 1 or len(method.outputs) != 1 or not all(name.isdigit() for name in branch.children):
            return False
        value = method.inputs
        for item, child in zip(group.items, branch.children.values(), strict=True):
            inner = self.writer.methods[id(item)]
            if inner.inputs != value or len(inner.outputs) != 1 or len(child.groups) != 1:
                return False
            value = inner.outputs
        return value == method.outputs

    def _init(self, branch: Branch) -> tuple[str, list[str]]:
        """Base class and lines of `__init__`."""
        base = self.bases.get(branch.path)
        if base is not None:
            self._use(base[0], branch.path)
            constructor = base[0].constructor
            name, _, arguments = constructor.partition("(")
            lines = [f"super().__init__({arguments}"]
        else:
            name, lines = "nn.Layer", ["super().__init__()"]
            for own in branch.tensors:
                lines += _tensor_lines(own)
        for child_name, child in branch.children.items():
            text = self.constructors[child.path]
            lines.append(
                f"self.{child_name} = {text}"
                if child_name.isidentifier()
                else f'self.add_sublayer("{child_name}", {text})'
            )
        return name, lines

    def _base_layer(self, branch: Branch) -> tuple[Layer, torch.fx.Node] | None:
        """The one operator over all tensors of a module that does other things besides."""
        if not branch.tensors or len(branch.groups) != 1 or (len(branch.groups[0].items) == 1 and branch.path):
            return None
        wanted = {own.name for own in branch.tensors}
        for item in branch.groups[0].items:
            if isinstance(item, Group):
                continue
            found = self._layer_of(item, branch, wanted)
            if found is not None and found.tensors:
                users = [
                    n
                    for n in self.traced.graph.nodes
                    for a in n.all_input_nodes
                    if a.meta.get("owner", (None,))[0] == branch.path
                ]
                if set(users) == {item}:
                    return found, item
        return None

    def _looped(self, lines: list[tuple[str, str]], branch: Branch) -> list[tuple[str, str]]:
        """Calls of a whole list one after the other, as a loop."""
        result, index = [], 0
        pattern = re.compile(r"(\w+|return) ?=? ?self((?:\.\w+)*)\[(\d+)\]\((.*)\)$")
        while index < len(lines):
            match = pattern.fullmatch(lines[index][0])
            count = self._list_length(branch, match[2]) if match else 0
            if not match or match[3] != "0" or count < 2 or index + count > len(lines):
                result.append(lines[index])
                index += 1
                continue
            found = [pattern.fullmatch(text) for text, _ in lines[index : index + count]]
            returns = found[-1] is not None and found[-1][1] == "return"
            names = {one[1] for one in found[: count - returns] if one} or {match[1]}
            fits = (
                all(
                    one and one[2] == match[2] and one[3] == str(i) and one[4] == match[4]
                    for i, one in enumerate(found)
                )
                and len(names) == 1
                and re.match(rf"{match[1]}\b", match[4])
                and match[1] != "return"
            )
            if not fits:
                result.append(lines[index])
                index += 1
                continue
            result.append((f"for layer in self{match[2]}:", lines[index][1]))
            result.append((f"    {match[1]} = layer({match[4]})", ""))
            if returns:
                result.append((f"return {match[1]}", ""))
            index += count
        return result

    def _list_length(self, branch: Branch, below: str) -> int:
        for part in below.lstrip(".").split("."):
            if part not in branch.children:
                return 0
            branch = branch.children[part]
        return len(branch.children) if branch.is_list else 0

    def _class_name(self, branch: Branch) -> str:
        name = re.sub(r"\W", "", branch.kind.rpartition(".")[2]) or "Network"
        reserved = {n for n, v in vars(helpers).items() if inspect.isclass(v) or inspect.isfunction(v)}
        unique, count = name, 2
        while unique in self.names or unique in reserved or unique in ("F", "nn"):
            unique, count = f"{name}{count}", count + 1
        self.names.add(unique)
        return unique

    def _file_text(self, title: str, remarks: list[str], extra: str) -> str:
        parts = [self._class_text(kind) for kind in self.kinds.values()]
        wanted = _needed_helpers(self.helpers)
        copied = [inspect.getsource(getattr(helpers, name)).rstrip() for name in wanted]
        body = "\n\n\n".join([*copied, *parts])
        imports = ["import math"] if re.search(r"\bmath\.", body) else []
        imports += ["import paddle"] if re.search(r"\bpaddle\.", body) else []
        imports += ["import paddle.nn.functional as F"] if re.search(r"\bF\.", body) else []
        imports += ["from paddle import nn"]
        if imports[0] == "import math":
            imports.insert(1, "")
        head = f'"""{title}, in Paddle.\n\n' + "\n".join(_wrapped(" ".join(remarks))) + '\n"""\n\n'
        return format_code(head + "\n".join(imports) + "\n\n" + extra + "\n\n" + body + "\n")

    def _class_text(self, kind: Kind) -> str:
        paths = [member.path or "the whole network" for member in kind.members]
        shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        lines = [f"class {kind.name}({kind.base}):"]
        lines += _docstring(f"{kind.original}: {shown}.", 4)
        arguments = "".join(f", {name}" for name in kind.arguments)
        if kind.init != ["super().__init__()"]:
            lines += ["", f"    def __init__(self{arguments}):"]
            lines += [f"        {line}" for line in kind.init]
        for name, inputs, code in kind.methods:
            lines += ["", f"    def {name}(self{''.join(f', {argument}' for argument in inputs)}):"]
            lines += ['        """See the class."""']
            for text, comment in code:
                line = f"        {text}"
                with_comment = f"{line}  # {comment}"
                lines.append(with_comment if comment and len(with_comment) <= LINE_LENGTH else line)
        return "\n".join(lines)


def _short(line: str) -> str:
    """A line without the options of convolutions that have their usual values."""
    return CONVOLUTION.sub(lambda match: USUAL.sub("", match[0]), line)


def _codes(lines: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in lines]


def _blank(text: str) -> str:
    return HOLE.sub(lambda match: f"<{match[1]}>", text)


def _all_text(branch: Branch) -> str:
    lines = list(branch.kind_init)
    for _, _, code in branch.kind_methods:
        lines += _codes(code)
    return "\n".join(lines)


def _tensor_lines(own: OwnTensor) -> list[str]:
    shape = literal(list(own.value.shape), f"{own.name}_size" if own.name.isidentifier() else "size")
    set_name = f"self.{own.name} = " if own.name.isidentifier() else None
    if not own.is_parameter:
        return [f'self.register_buffer("{own.name}", paddle.zeros({shape}, dtype="{PADDLE_DTYPES[own.value.dtype]}"))']
    values = own.value.flatten()
    initial = ""
    if values.numel() and bool((values == values[0]).all()):
        initial = f", default_initializer=nn.initializer.Constant({literal(round(float(values[0]), 8), 'initial')})"
    elif own.value.dim() < 2:
        initial = ", default_initializer=nn.initializer.Normal(std=0.02)"
    made = f"self.create_parameter({shape}{initial})"
    if set_name is None:
        return [f'self.add_parameter("{own.name}", {made})']
    return [set_name + made] + ([] if own.is_trained else [f"self.{own.name}.stop_gradient = True"])


def _needed_helpers(names: set[str]) -> list[str]:
    order = [name for name in vars(helpers) if name in names]
    return sorted(order, key=lambda name: (not inspect.isclass(getattr(helpers, name)), order.index(name)))


def _docstring(text: str, indent: int) -> list[str]:
    space = " " * indent
    if len(text) + indent + 6 <= LINE_LENGTH:
        return [f'{space}"""{text}"""']
    first, _, rest = text.partition(": ")
    return [
        f'{space}"""{first}.',
        "",
        *(f"{space}{line}" for line in _wrapped(rest, LINE_LENGTH - indent)),
        f'{space}"""',
    ]


def _wrapped(text: str, width: int = LINE_LENGTH) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def format_code(text: str) -> str:
    """Formats Python as this repository is, where ruff is installed.

    Raises:
        UserError: The text is no Python: a defect of a rule.
    """
    try:
        compile(text, "generated", "exec")
    except SyntaxError as error:
        line = text.splitlines()[(error.lineno or 1) - 1].strip()
        raise UserError(
            f"the generated code is no Python ({error.msg}): {line[:200]}; report it with the network"
        ) from None
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    if not Path(ruff).exists():
        return text
    options = ["--line-length", str(LINE_LENGTH), "--isolated", "--target-version", "py311"]
    result = subprocess.run([ruff, "format", *options, "-"], input=text, capture_output=True, text=True)
    return result.stdout if result.returncode == 0 else text


__all__ = ["Code", "Method", "generate"]
