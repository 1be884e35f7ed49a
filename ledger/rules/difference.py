"""What differs between two programmes, place by place: rules, wallets and the like by their names, not by their lines.

From the two sources, which both passed the check. Where both can be checked again (no tables beside them), what reads differently
and means the same, such as a default that was written out, is no difference. Called by the control port's helper process.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger.rules import syntax, tree
from ledger.rules.check import check_source
from ledger.rules.syntax import ProgramError

NAMED_BY = {"rules": "name", "burn": "name", "wallets": "name", "levels": "name", "stores": "store", "catalogue": "sku", "limits": "name"}
TREE_NAMES = {"programme": "name", "max_age": "max_age_days"}  # keys whose value in the tree has another name
IN_LISTS = ("rules", "burn", "wallets", "limits")
_PLAIN = re.compile(r"[\w./+:%-][\w ./+:%-]*")
_DIFFERENCES_MAX = 10_000


class Difference(NamedTuple):
    """One place. before, after: as YAML on one line; empty: not there."""

    path: str
    before: str
    after: str


class Named(dict[str, Any]):
    """A list whose parts have names."""


def differences(before: bytes, after: bytes) -> list[Difference]:
    """In the order of the newer one, then what only the older one has. Errors: ProgramError (one of them is no programme)."""
    old, new = (_value(syntax.parse(source, "source"), "") for source in (before, after))
    same = _same_meaning(_tree(before), _tree(after))
    return list(_compare("", old, new, same))[:_DIFFERENCES_MAX]


def _tree(source: bytes) -> tree.Programme | None:
    try:
        return check_source(source, "source")
    except ProgramError:
        return None


def _same_meaning(old: tree.Programme | None, new: tree.Programme | None) -> set[str]:
    """Paths at which both trees are one."""
    if old is None or new is None:
        return set()
    same = set()
    for field in dataclasses.fields(tree.Programme):
        if getattr(old, field.name) == getattr(new, field.name):
            same |= {field.name, *(key for key, name in TREE_NAMES.items() if name == field.name)}
    for key in IN_LISTS:
        rows = [{part.name: _anywhere(part) for part in getattr(one, key)} for one in (old, new)]
        same |= {f"{key}[{name}]" for name, part in rows[1].items() if rows[0].get(name) == part}
    return same


def _anywhere(part: Any) -> Any:
    """A rule without its place in the file."""
    return dataclasses.replace(part, index=0) if isinstance(part, tree.Rule) else part


def _value(node: Node, key: str) -> Any:
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, MappingNode):
        return {str(name.value): _value(value, str(name.value)) for name, value in node.value}
    assert isinstance(node, SequenceNode)
    parts = [_value(part, "") for part in node.value]
    by = NAMED_BY.get(key)
    if by and all(isinstance(part, dict) and by in part for part in parts):
        named = Named((str(part[by]), {name: value for name, value in part.items() if name != by}) for part in parts)
        if len(named) == len(parts):
            return named
    return parts


def _compare(path: str, old: Any, new: Any, same: set[str]) -> Iterator[Difference]:
    if old == new and not (isinstance(new, Named) and list(old) != list(new)):
        return
    if path in same and not isinstance(new, Named):
        return
    if not isinstance(old, dict) or not isinstance(new, dict) or isinstance(old, Named) != isinstance(new, Named):
        yield Difference(path or "programme", one_line(old), one_line(new))
        return
    for key, value in new.items():
        below = _below(path, key, new)
        if key in old:
            yield from _compare(below, old[key], value, same)
        elif below not in same:
            yield Difference(below, "", one_line(value))
    for key, value in old.items():
        if key not in new and _below(path, key, old) not in same:
            yield Difference(_below(path, key, old), one_line(value), "")
    kept = [[key for key in one if key in other] for one, other in ((old, new), (new, old))]
    if isinstance(new, Named) and kept[0] != kept[1]:
        yield Difference(f"{path} (order)", one_line(list(old)), one_line(list(new)))


def _below(path: str, key: str, parent: dict[str, Any]) -> str:
    if isinstance(parent, Named):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def one_line(value: Any) -> str:
    """As YAML on one line."""
    if isinstance(value, Named):
        return "[" + ", ".join(one_line({"name": name, **part}) for name, part in value.items()) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{one_line(key)}: {one_line(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(one_line, value)) + "]"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and ": " not in text and not text.endswith((":", " ")) else "'" + text.replace("'", "''") + "'"
