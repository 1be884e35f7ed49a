"""The rules of a programme as its file has them: name and text, from the source that stands in the journal. For people who ask why.

Not for what a programme means (`check.py`): files beside it are not needed, and nothing is judged. Used by ledger/explain.py,
ledger/simulate.py and ledger/backtest.py.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger.rules.syntax import parse


class QuotedRule(NamedTuple):
    """One rule. `wallet`, `funder`: as written; empty: the first wallet, the chain itself. `line`: where it begins, from 1."""

    name: str
    wallet: str
    funder: str
    line: int
    text: str


def programme_name(source: bytes) -> str:
    """Errors: ProgramError."""
    return _text(parse(source, "<journal>"), "programme")


def text_of(source: bytes, key: str) -> str:
    """A text under a key, such as `currency`; empty where there is none. Errors: ProgramError."""
    return _text(parse(source, "<journal>"), key)


def names_of(source: bytes, key: str) -> list[str]:
    """The names of a list of mappings, such as `wallets`. Errors: ProgramError."""
    found = _value(parse(source, "<journal>"), key)
    return [_text(row, "name") for row in found.value] if isinstance(found, SequenceNode) else []


def list_of(source: bytes, *keys: str) -> list[str]:
    """The texts of a list under a key of a key. Errors: ProgramError."""
    found: Node | None = parse(source, "<journal>")
    for key in keys:
        found = _value(found, key) if found is not None else None
    return [row.value for row in found.value if isinstance(row, ScalarNode)] if isinstance(found, SequenceNode) else []


def rules_of(source: bytes) -> list[QuotedRule]:
    """In the file's order. Errors: ProgramError where the source is no YAML."""
    top = parse(source, "<journal>")
    text = source.decode()
    rules = _value(top, "rules")
    found = []
    for rule in rules.value if isinstance(rules, SequenceNode) else ():
        first, last = rule.start_mark.index, rule.end_mark.index
        column = rule.start_mark.column
        quoted = textwrap.dedent(" " * column + text[first:last]).rstrip()
        found.append(QuotedRule(_text(rule, "name"), _text(rule, "to_wallet"), _text(rule, "funder"), rule.start_mark.line + 1, quoted))
    return found


def _value(node: Node, key: str) -> Node | None:
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.value == key:
                return value
    return None


def _text(node: Node, key: str) -> str:
    value = _value(node, key)
    return value.value if isinstance(value, ScalarNode) else ""
