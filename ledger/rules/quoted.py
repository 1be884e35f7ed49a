"""The rules of a programme as its file has them: name and text, from the source that stands in the journal. For people who ask why.

Not for what a programme means (`check.py`): files beside it are not needed (but for a table of stores), and nothing is judged. Used by
ledger/explain.py, ledger/export.py, ledger/simulate.py and ledger/backtest.py.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger.rules import catalogue
from ledger.rules.syntax import ProgramError, parse


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


def regions_of(source: bytes, folder: Path) -> dict[str, str] | None:
    """The region of each store that has one. None: there are no stores. folder: where a table of them would lie. Errors: ProgramError."""
    stores = _value(parse(source, "<journal>"), "stores")
    if isinstance(stores, MappingNode):
        try:
            table = catalogue.read_table(folder / _text(stores, "file"), {"store": ["store"], "region": ["region"]}, "store",
                                         catalogue.ROWS_MAX)
        except catalogue.TableError as error:
            raise ProgramError(str(error)) from None
        columns = [table.columns[key][0] if key in table.columns else [] for key in ("store", "region")]
        rows = list(zip(*columns, strict=False))
    elif isinstance(stores, SequenceNode):
        rows = [(_text(row, "store"), _text(row, "region")) for row in stores.value]
    else:
        return None
    return {code.strip(): region.strip() for code, region in rows if code.strip() and region.strip()}


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
