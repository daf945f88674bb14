"""A PyTorch module as an exported graph, with sizes left free where they can be.

The graph is the one of evaluation mode. What evaluation mode leaves no trace of, and training needs, is marked before:
drop-path and torchvision's stochastic depth become the operator `segrepro.drop_path`, which has a rule.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from common.cli import UserError
from weights_convert.graph.registry import operator_name

import numpy as np
import torch
from torch.export import Dim
from torch.export.graph_signature import InputKind

AXES = {0: "B", 2: "H", 3: "W"}
FREEDOMS = (("B", "H", "W"), ("B",), ())
NOTHING = {  # operators that change no value: not written
    *("aten.alias.default", "aten.clone.default", "aten.contiguous.default", "aten.lift_fresh_copy.default"),
    *("aten.lift_fresh.default", "aten.resolve_conj.default"),
}
CHECKS = ("_assert", "sym_constrain_range")
MUTABLE_VIEWS = ("slice", "select", "view", "reshape", "transpose", "permute", "expand", "narrow", "unbind", "split")


@torch.library.custom_op("segrepro::drop_path", mutates_args=())
def _drop_path(x: torch.Tensor, p: float, scale: bool) -> torch.Tensor:
    return x.clone()


@_drop_path.register_fake
def _(x: torch.Tensor, p: float, scale: bool) -> torch.Tensor:
    return torch.empty_like(x)


@dataclasses.dataclass
class Traced:
    """An exported graph and what belongs to it.

    Attributes:
        module: The source, in evaluation mode.
        graph: Cleaned: no checks, no operators without effect, no dead code.
        names: Placeholder -> the tensor's name in the module.
        constants: Placeholder -> value of a constant that the code made while it was traced.
        free: Which of B, H, W may change.
        size: (height, width) of the traced images.
        guards: Conditions on the sizes, as Python code over L['...'].
        symbols: Name of a symbolic size -> B, H or W.
        out_spec: How the outputs are nested.
        remarks: What the card should say.
    """

    module: torch.nn.Module
    graph: torch.fx.Graph
    names: dict[torch.fx.Node, str]
    constants: dict[torch.fx.Node, torch.Tensor]
    free: tuple[str, ...]
    size: tuple[int, int]
    guards: tuple[str, ...]
    symbols: dict[str, str]
    out_spec: Any
    remarks: list[str]

    def allows(self, images: np.ndarray) -> bool:
        """Whether the code that follows from the graph holds for images of this shape."""
        if not self.free:
            return images.shape[2:] == self.size and len(images) == 2
        if self.free == ("B",) and images.shape[2:] != self.size:
            return False
        return all(_holds(guard, images) for guard in self.guards)


def trace(module: torch.nn.Module, channels: int, size: tuple[int, int]) -> Traced:
    """Exports a module's evaluation of a batch of two images.

    Sizes are tried free (batch, height, width), then only the batch, then none.

    Raises:
        UserError: The exporter cannot take the module; the line says where.
    """
    module.eval()
    images = torch.zeros(2, channels, *size)
    _require_runs(module, images)
    first: Exception | None = None
    for free in FREEDOMS:
        dynamic = {axis: Dim.AUTO for axis, name in AXES.items() if name in free}
        try:
            with _marked(module), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shapes = (dynamic,) if dynamic else None
                program = torch.export.export(module, (images,), strict=False, dynamic_shapes=shapes)
            return _traced(module, program, free, size)
        except UserError:
            raise
        except Exception as error:  # the exporter raises anything, of its own and of the module's
            first = first or error
    raise UserError(f"torch.export does not take this network: {_reason(first)}")


def _traced(module: torch.nn.Module, program: Any, free: tuple[str, ...], size: tuple[int, int]) -> Traced:
    mutated = [spec.target for spec in program.graph_signature.output_specs if spec.kind.name.endswith("MUTATION")]
    if any(mutated):
        raise UserError(f"the network changes its buffer '{mutated[0]}' in forward: a graph cannot, make it an output")
    _require_constant_tensors(program)
    if _writes_into_views(program.graph):
        program = program.run_decompositions({})
    graph_module = program.graph_module
    graph = graph_module.graph
    names, constants, user = {}, {}, []
    canonical = _canonical_names(module)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            names[node] = canonical.get(spec.target, spec.target)
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            constants[node] = program.constants[spec.target]
        else:
            user.append(node)
    _inline_subgraphs(graph_module)
    _clean(graph)
    outputs = [spec.kind.name for spec in program.graph_signature.output_specs]
    if any("MUTATION" in kind for kind in outputs):
        node = next(node for node in graph.nodes if node.op == "output")
        kept = [value for value, kind in zip(node.args[0], outputs, strict=True) if kind == "USER_OUTPUT"]
        node.args = (tuple(kept),)
        graph.eliminate_dead_code()
    shape = user[0].meta["val"].shape
    symbols = {str(shape[axis]): name for axis, name in AXES.items() if isinstance(shape[axis], torch.SymInt)}
    symbols = {text: name for text, name in symbols.items() if not text.isdigit()}
    really = tuple(name for name in free if name in symbols.values())
    guards = tuple(getattr(program, "_guards_code", None) or ())
    return Traced(
        *(module, graph, names, constants, really, size, guards, symbols, program.call_spec.out_spec, []),
    )


def _require_runs(module: torch.nn.Module, images: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            module(images)
    except TypeError as error:
        raise UserError(f"the network does not take one batch of images: {_first_line(error)}") from None
    except Exception as error:  # whatever the module raises
        raise UserError(
            f"the network itself fails on images {tuple(images.shape)}: {_first_line(error)}; try another --size"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _reason(error: Exception) -> str:
    text = str(error)
    place = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    place = [found for found in place if "/torch/" not in found[0]]
    where = f" (at {place[-1][0]}:{place[-1][1]}, in {place[-1][2]})" if place else _place_of(error)
    hint = ""
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(error).__name__:
        hint = ": what it does depends on the values in the image; make the choice outside of forward"
    return f"{_first_line(error)}{hint}{where}"


def _place_of(error: BaseException) -> str:
    place, step = "", error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if "/torch/" not in code.co_filename and "weights_convert" not in code.co_filename:
            place = f" (at {code.co_filename}:{step.tb_lineno}, in {code.co_name})"
        step = step.tb_next
    return place


@contextmanager
def _marked(module: torch.nn.Module) -> Iterator[None]:
    """Makes drop-path visible to the exporter."""
    marked = []
    for part in module.modules():
        name = type(part).__name__
        if name == "DropPath" and getattr(part, "drop_prob", None):
            p, scale = float(part.drop_prob), bool(getattr(part, "scale_by_keep", True))
        elif name == "StochasticDepth" and getattr(part, "p", 0) and part.mode == "row":
            p, scale = float(part.p), True
        else:
            continue
        part.forward = lambda x, p=p, scale=scale: torch.ops.segrepro.drop_path(x, p, scale)
        marked.append(part)
    try:
        yield
    finally:
        for part in marked:
            del part.forward


def _canonical_names(module: torch.nn.Module) -> dict[str, str]:
    """Every name of a tensor -> its first name."""
    first: dict[int, str] = {}
    names = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _require_constant_tensors(program: Any) -> None:
    """Raises UserError where forward writes into a parameter or a buffer."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        target = node
        while target.op == "call_function" and (_is_in_place(target) or (target is not node and _is_view(target))):
            target = target.args[0]
        if target is not node and target.op == "placeholder" and specs[target.name].kind != InputKind.USER_INPUT:
            raise UserError(
                f"the network changes its tensor '{specs[target.name].target}' in forward: make it an output"
            )


def _writes_into_views(graph: torch.fx.Graph) -> bool:
    """Whether a part of a tensor is written in place, or a tensor of which a view is in use."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _is_in_place(node) or not isinstance(node.args[0], torch.fx.Node):
            continue
        target = node.args[0]
        related, front = set(), [target]
        while front:
            current = front.pop()
            if current in related:
                continue
            related.add(current)
            if current.op == "call_function" and (_is_view(current) or _is_in_place(current)):
                front.append(current.args[0])
            front += [user for user in current.users if _is_view(user) and user.args[0] is current]
        if any(position[user] > position[node] for item in related for user in item.users):
            return True
        if any(item.op == "placeholder" for item in related - {target}):
            return True
    return False


def _is_in_place(node: torch.fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = node.target._schema.arguments[:1]
    return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write


def _is_view(node: torch.fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return operator_name(node.target) == "operator.getitem"
    first = node.target._schema.arguments[:1]
    if not first or not isinstance(node.args[0] if node.args else None, torch.fx.Node):
        return False
    name = node.target._schema.name.split("::")[1]
    return (first[0].alias_info is not None and not first[0].alias_info.is_write) or name in (
        *("reshape", "flatten", "contiguous", "chunk", "split", "to"),
    )


def _inline_subgraphs(graph_module: torch.fx.GraphModule) -> None:
    """Puts what ran without gradients (`torch.no_grad` inside forward) into the graph itself."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or "wrap_with" not in operator_name(node.target):
            continue
        body_index = next(i for i, a in enumerate(node.args) if isinstance(a, torch.fx.Node) and a.op == "get_attr")
        body = getattr(graph_module, node.args[body_index].target)
        inputs = iter(node.args[body_index + 1 :])
        values: dict[torch.fx.Node, torch.fx.Node] = {}
        with graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    values[inner] = next(inputs)
                elif inner.op == "output":
                    results = torch.fx.map_arg(inner.args[0], values.__getitem__)
                else:
                    values[inner] = graph.node_copy(inner, values.__getitem__)
        for user in list(node.users):
            result = results[user.args[1]]
            if node.args[0] is False:
                with graph.inserting_before(node):
                    detached = graph.call_function(torch.ops.aten.detach.default, (result,))
                detached.meta, result = dict(result.meta), detached
            user.replace_all_uses_with(result)
            graph.erase_node(user)
        graph.erase_node(node)


def _clean(graph: torch.fx.Graph) -> None:
    """Removes checks, operators without effect and dead code."""
    for node in list(graph.nodes):
        name = operator_name(node.target)
        if node.op == "call_function" and any(word in name for word in CHECKS):
            graph.erase_node(node)
        elif node.op == "call_function" and _changes_nothing(node, name):
            source = node.args[0] if node.args else node.kwargs["self"]
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def _changes_nothing(node: torch.fx.Node, name: str) -> bool:
    if name in NOTHING:
        return True
    if name in ("aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default"):
        return node.args[1] == 0
    if name in ("aten.slice.Tensor", "aten.expand.default", "aten.view.default", "aten.reshape.default"):
        before, after = node.args[0].meta["val"], node.meta["val"]
        return before.dim() == after.dim() and all(_equal(a, b) for a, b in zip(before.shape, after.shape, strict=True))
    if name.startswith(("aten.to.", "aten._to_copy", "aten.type_as")):
        return node.args[0].meta["val"].dtype == node.meta["val"].dtype
    if name.startswith("aten.squeeze."):
        return node.args[0].meta["val"].dim() == node.meta["val"].dim()
    if name.startswith("aten.copy_."):
        return False
    return False


def _equal(a: Any, b: Any) -> bool:
    """Whether two sizes are the same expression; asks no new question of the tracer."""
    a = a.node.expr if isinstance(a, torch.SymInt) else a
    b = b.node.expr if isinstance(b, torch.SymInt) else b
    return bool(a == b)


def _holds(guard: str, images: np.ndarray) -> bool:
    """Whether a condition of the exporter holds for these images."""
    values = torch.from_numpy(images)

    class Inputs(dict):
        """The one input, under whatever name."""

        def __missing__(self, key: str) -> torch.Tensor:
            return values

    try:
        return bool(eval(guard, {"torch": torch, "L": Inputs(), "math": __import__("math")}))  # noqa: S307
    except Exception:  # a form of condition that is not known: the comparison of outputs decides
        return True


def divisors(guards: Sequence[str]) -> list[str]:
    """Conditions on height and width that a reader understands, from the exporter's."""
    found = []
    for guard in guards:
        match = re.fullmatch(r"\(?L\['\w+'\]\.size\(\)\[(\d)\] % (\d+)\)? == 0", guard)
        if match and int(match[1]) in AXES:
            found.append(f"{AXES[int(match[1])]} % {match[2]} == 0")
    return found
