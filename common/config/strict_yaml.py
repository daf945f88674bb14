"""YAML as people write it in experiments and label sets: plain values, each key once, nothing that grows or runs.

PyYAML's safe loader takes the last of two equal keys without a word, raises errors of many kinds on values with tags,
and a few lines of aliases of aliases become gigabytes. Here each of these is one line that names file and line.
"""

from __future__ import annotations

import re
from typing import Any

from common.cli import UserError

import yaml

MOST_NODES = 100_000
"""Values and keys of a file, aliases written out; an experiment has about a hundred."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_MERGE = "tag:yaml.org,2002:merge"  # of the key <<
_NAMES = (str, int)  # of keys: label files' values are numbers


def load_yaml(text: str, where: str) -> Any:
    """Reads YAML 1.1, in which 1e-3 is a number as well; `where` names it in errors.

    Raises:
        UserError: Not YAML; a doubled key; a key that is no name or number; a tag; a control character in a text; more
            than `MOST_NODES` values, aliases written out.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise UserError(f"{where}{line}: not valid YAML: {reason[:300]}") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deeply") from None
    except (ValueError, OverflowError) as error:  # of a date or number that does not exist
        raise UserError(f"{where}: not valid YAML: {str(error)[:300]}") from None


class _Loader(yaml.SafeLoader):
    """The safe loader with the checks of `load_yaml`."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._count = 0
        self._sizes: dict[yaml.Node, int] = {}  # nodes with all that is in them, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event, before = self.peek_event(), self._count
        is_alias = isinstance(event, yaml.AliasEvent)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _mistake(f"the tag '{event.tag[:100]}': values are written without tags", event)
        node = super().compose_node(parent, index)
        if is_alias and node not in self._sizes:
            raise _mistake("an alias of what it stands in", event)
        self._count += self._sizes[node] if is_alias else 1
        if self._count > MOST_NODES:
            raise _mistake(f"more than {MOST_NODES} values, aliases written out", event)
        if not is_alias:
            self._sizes[node] = self._count - before
        return node

    def construct_scalar(self, node: yaml.Node) -> str:
        value = super().construct_scalar(node)
        if _CONTROL.search(value):
            raise _mistake(f"a control character in {value[:100]!r}", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, _NAMES):
                raise _mistake(f"key {str(key)[:100]!r} is not a name", key_node)
            if key in seen:
                raise _mistake(f"key '{str(key)[:100]}' is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _mistake(problem: str, place: yaml.Node | yaml.Event) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)
