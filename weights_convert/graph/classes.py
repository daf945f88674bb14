"""Which calls of modules an exported graph consists of, and the tree of modules that they and the tensors need.

The exporter notes for every operator the modules in whose forward it ran (`nn_module_stack`). Operators that follow
each other in one call of one module are a `Group`; groups nest as the calls did.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from weights_convert.graph.registry import is_size
from weights_convert.graph.trace import Traced

import torch

INLINE_CONSTANT = 8  # values; larger constants become buffers


@dataclasses.dataclass
class Group:
    """One call of a module.

    Attributes:
        path: The module's.
        kind: Its class, with the Python module.
        items: Operators and calls of other modules, as they ran.
    """

    path: str
    kind: str
    items: list[torch.fx.Node | Group] = dataclasses.field(default_factory=list)

    def nodes(self) -> list[torch.fx.Node]:
        """Every operator in it, those of inner calls too."""
        found = []
        for item in self.items:
            found += item.nodes() if isinstance(item, Group) else [item]
        return found


@dataclasses.dataclass
class OwnTensor:
    """A parameter or a buffer: name in its module, the value, and whether it is trained."""

    name: str
    value: torch.Tensor
    is_parameter: bool
    is_trained: bool = True


@dataclasses.dataclass
class Branch:
    """A module in the tree: called, holding tensors, or only there for those below.

    Attributes:
        path: Its name in the network.
        kind: Class of its first call; empty if it is never called.
        groups: Its calls.
        tensors: Those that the graph uses.
        children: By name, in the order of the original.
    """

    path: str
    kind: str = ""
    groups: list[Group] = dataclasses.field(default_factory=list)
    tensors: list[OwnTensor] = dataclasses.field(default_factory=list)
    children: dict[str, Branch] = dataclasses.field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        """Never called, without tensors, its children numbered from 0: a LayerList."""
        numbers = [str(index) for index in range(len(self.children))]
        return bool(self.children) and not self.groups and not self.tensors and list(self.children) == numbers

    def all(self) -> list[Branch]:
        """This one and everything below, deepest first."""
        below = [branch for child in self.children.values() for branch in child.all()]
        return [*below, self]


def group_calls(traced: Traced) -> Group:
    """The calls of modules in the graph, from the network itself down."""
    root = Group("", _class_name(type(traced.module)))
    open_keys: list[str] = []
    open_groups = [root]
    for node in traced.graph.nodes:
        if node.op != "call_function" or is_size(node):
            continue
        stack = node.meta.get("nn_module_stack")
        entries = [(key, _path(value[0]), value[1]) for key, value in (stack or {}).items() if value[0]]
        if stack is None:
            entries = None
        if entries is not None:
            keys = [key for key, _, _ in entries]
            common = 0
            while common < min(len(keys), len(open_keys)) and keys[common] == open_keys[common]:
                common += 1
            del open_keys[common:], open_groups[common + 1 :]
            for key, path, kind in entries[common:]:
                group = Group(path, kind if isinstance(kind, str) else _class_name(kind))
                open_groups[-1].items.append(group)
                open_groups.append(group)
                open_keys.append(key)
        open_groups[-1].items.append(node)
    return root


def _path(text: str) -> str:
    return re.sub(r"@\d+", "", text)


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def build_tree(traced: Traced, root: Group) -> Branch:
    """The modules that the graph calls or takes tensors from; constants of some size become tensors of the network.

    The tensors get a note where they are: `node.meta["owner"]` is path and name.
    """
    tree = Branch("")
    _add_calls(tree, root)
    tensors = dict(traced.module.named_parameters(remove_duplicate=False))
    tensors.update(traced.module.named_buffers(remove_duplicate=False))
    seen = set()
    for node, name in traced.names.items():
        if not node.users or all(is_size(user) for user in node.users):
            continue
        path, _, attribute = name.rpartition(".")
        node.meta["owner"] = (path, attribute)
        if name in seen:
            continue
        seen.add(name)
        value = tensors[name]
        is_parameter = isinstance(value, torch.nn.Parameter)
        own = OwnTensor(attribute, value.detach(), is_parameter, is_parameter and value.requires_grad)
        find_branch(tree, path).tensors.append(own)
    taken = {own.name for own in tree.tensors} | set(tree.children)
    for index, (node, value) in enumerate(traced.constants.items()):
        if node.users and value.numel() > INLINE_CONSTANT:
            name = f"constant_{index}"
            while name in taken:
                name += "_"
            node.meta["owner"] = ("", name)
            tree.tensors.append(OwnTensor(name, value, False, False))
    _order(tree, traced.module)
    return tree


def find_branch(tree: Branch, path: str) -> Branch:
    """The branch of a path; made where there is none."""
    for part in path.split(".") if path else []:
        tree = tree.children.setdefault(part, Branch(f"{tree.path}.{part}".lstrip(".")))
    return tree


def _add_calls(tree: Branch, group: Group) -> None:
    branch = find_branch(tree, group.path)
    branch.kind = branch.kind or group.kind
    branch.groups.append(group)
    for item in group.items:
        if isinstance(item, Group):
            _add_calls(tree, item)


def _order(branch: Branch, module: torch.nn.Module) -> None:
    names = [name for name, _ in module.named_children()]
    ranked = sorted(branch.children, key=lambda name: names.index(name) if name in names else len(names))
    branch.children = {name: branch.children[name] for name in ranked}
    for name, child in branch.children.items():
        inner = module._modules.get(name)
        if inner is not None:
            _order(child, inner)
