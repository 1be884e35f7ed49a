"""Kinds of values that a programme is made of: each reads itself from YAML, says what is right, and describes itself as JSON Schema.

Not for which keys a programme has (`check.py`) nor for text (`syntax.py`). One description for both, so that the editor's schema
and the checker cannot differ. A kind's `read` gives the value, or None when it is wrong; the problem is then noted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger.rules import tree
from ledger.rules.syntax import Problems, read_boolean, read_decimal, read_span, read_text, shown, suggestion

EPOCH = date(1970, 1, 1)
LIFE_MAX = {"days": 18_250, "months": 600}
NUMBER = {"type": ["number", "string"]}
NAME = {"type": ["string", "number"]}


@dataclass
class Reading:
    """One file while it is read. `known`: kind of name -> the names that there are; None: any."""

    problems: Problems
    digits: int = 2
    currency: str = ""
    known: dict[str, Iterable[str] | None] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)

    def wrong(self, node: Node, path: str, text: str) -> None:
        """Note a problem. What is not there is shown at its key's place by the caller."""
        self.problems.add(node, f"{path}: {text}" if path else text)


class Kind:
    """A scalar: `right` says what it must be, `parse` reads its text (None: wrong)."""

    right = ""
    json: dict = {"type": "string"}

    def parse(self, r: Reading, text: str) -> Any:
        raise NotImplementedError

    def says(self, r: Reading) -> str:
        """What would be right."""
        return self.right

    def read(self, r: Reading, node: Node, path: str) -> Any:
        value = self.parse(r, node.value) if isinstance(node, ScalarNode) and node.value else None
        if value is None:
            r.wrong(node, path, f"must be {self.says(r)}, was {shown(node)}{self.hint(r, node)}")
        return value

    def hint(self, r: Reading, node: Node) -> str:
        return ""

    def schema(self) -> dict:
        return dict(self.json)


class Text(Kind):
    """A name."""

    json = NAME

    def __init__(self, bytes_max: int):
        self.parse_text, self.right = read_text(bytes_max), f"a name of 1..{bytes_max} bytes without space at its ends"

    def parse(self, r, text):
        return self.parse_text(text)


class Path(Text):
    """A category: steps between slashes."""

    def __init__(self):
        super().__init__(128)
        self.right = "a category such as Food/Dairy, of at most 128 bytes"

    def parse(self, r, text):
        return text if self.parse_text(text) and all(step and step == step.strip() for step in text.split("/")) else None


class Whole(Kind):
    """A whole number."""

    def __init__(self, low: int, high: int):
        self.low, self.high, self.right = low, high, f"a whole number, {low}..{high}"
        self.json = {"type": ["integer", "string"]}

    def parse(self, r, text):
        value = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
        return value if value is not None and self.low <= value <= self.high else None


class Flag(Kind):
    """true or false."""

    right, json = "true or false", {"type": "boolean"}

    def parse(self, r, text):
        return read_boolean(text)


class Choice(Kind):
    """One of a few words."""

    def __init__(self, *words: str):
        self.words, self.right, self.json = words, f"one of {', '.join(words)}", {"enum": list(words)}

    def parse(self, r, text):
        return text if text in self.words else None

    def hint(self, r, node):
        return suggestion(node.value, self.words) if isinstance(node, ScalarNode) else ""


class Number(Kind):
    """A decimal number in units of its last decimal."""

    json = NUMBER

    def __init__(self, digits: int, low: int, high: int, what: str = "a number"):
        self.digits, self.low, self.high, self.what = digits, low, high, what

    def decimals(self, r: Reading) -> int:
        return self.digits

    def parse(self, r, text):
        return read_decimal(self.decimals(r), self.low, self.high)(text)

    def says(self, r):
        digits = self.decimals(r)
        return f"{self.what} from {tree.decimal(self.low, digits)} to {tree.decimal(self.high, digits)} with at most {digits} decimals"


class Money(Number):
    """An amount of the programme's currency."""

    def __init__(self, low: int, high: int):
        super().__init__(2, low, high, "an amount")

    def decimals(self, r):
        return r.digits


class Raw(Kind):
    """A decimal number whose decimals are known later; its text."""

    right, json = "a number", NUMBER

    def parse(self, r, text):
        return text if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text) else None


class Span(Kind):
    """`12 months`: number and unit."""

    def __init__(self, units: dict[str, int], low: int = 0):
        self.units, self.low = units, low
        self.right = " or ".join(f"{low}..{high} {unit}" for unit, high in units.items()) + ", such as `30 days`"
        self.json = {"type": "string", "pattern": "^[0-9]+ +(" + "|".join(f"{unit[:-1]}s?" for unit in units) + ")$"}

    def parse(self, r, text):
        span = read_span(self.units)(text)
        return span if span is not None and span[0] >= self.low else None


class LifeKind(Kind):
    """How long points count."""

    def __init__(self, inactivity: bool):
        self.inactivity = inactivity
        self.right = "forever, `90 days`, `12 months`, `end of month` (quarter, year), `12 months to end of month` or `until 2027-02-01`"
        if inactivity:
            self.right += " or `180 days of inactivity`"

    def parse(self, r, text):
        if text == "forever":
            return tree.Life("forever")
        if match := re.fullmatch(r"end of (month|quarter|year)", text):
            return tree.Life("days", 1, match[1])
        if match := re.fullmatch(r"until ([0-9]{4}-[0-9]{2}-[0-9]{2})", text):
            day = read_day(match[1])
            return None if day is None else tree.Life("until", day)
        match = re.fullmatch(r"([0-9]{1,9} +[a-z]+)( to end of (?:month|quarter|year)| of inactivity)?", text)
        span = read_span(LIFE_MAX)(match[1]) if match else None
        if span is None or span[0] < 1:
            return None
        if match[2] == " of inactivity":
            return tree.Life("inactivity", span[0]) if self.inactivity and span[1] == "days" else None
        return tree.Life(span[1], span[0], match[2].split()[-1] if match[2] else "")


def read_day(text: str) -> int | None:
    """`2026-03-01` as days since 1970, of the years 2000..2199."""
    try:
        day = date.fromisoformat(text) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else None
    except ValueError:
        return None
    return (day - EPOCH).days if day is not None and 2000 <= day.year <= 2199 else None


def read_clock(text: str, last: int) -> int | None:
    """`17:30` as minutes of the day, at most `last`."""
    match = re.fullmatch(r"([0-9]{2}):([0-9]{2})", text)
    minutes = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else None
    return minutes if minutes is not None and minutes <= last else None


class Moment(Kind):
    """A date, or date and time, of a wall clock: minutes since 1970."""

    right = "a date such as 2026-03-01 or 2026-03-01 10:30"

    def parse(self, r, text):
        day_text, _, clock_text = text.partition(" ")
        day, minutes = read_day(day_text), read_clock(clock_text, tree.MINUTES_OF_DAY - 1) if clock_text else 0
        return None if day is None or minutes is None else day * tree.MINUTES_OF_DAY + minutes


class Clock(Kind):
    """A time of the day in minutes."""

    right = 'a time such as "17:00", "00:00" to "24:00"'

    def parse(self, r, text):
        return read_clock(text, tree.MINUTES_OF_DAY)


class Name(Kind):
    """A name that the programme must know. `kind`: key of Reading.known."""

    json = NAME

    def __init__(self, kind: str, word: str = ""):
        self.kind, self.word = kind, word or kind.replace("_", " ")

    def parse(self, r, text):
        known = r.known.get(self.kind, ())
        return text if known is None or text in known else None

    def read(self, r, node, path):
        if not isinstance(node, ScalarNode) or not node.value:
            r.wrong(node, path, f"must be a {self.word} of this programme, was {shown(node)}")
            return None
        value = self.parse(r, node.value)
        if value is None:
            known = sorted(r.known.get(self.kind) or ())
            right = f", must be one of {', '.join(known)}" if 0 < len(known) <= 12 else ("" if known else f", which has no {self.word}")
            r.wrong(node, path, f"{node.value!r} is no {self.word} of this programme{right}{suggestion(node.value, known)}")
        return value


class OneOrMore(Kind):
    """A value or a list of values, no two alike: a tuple."""

    def __init__(self, kind: Kind, high: int = 10_000):
        self.kind, self.high = kind, high

    def read(self, r, node, path):
        if not isinstance(node, SequenceNode):
            value = self.kind.read(r, node, path)
            return None if value is None else (value,)
        found: list = []
        if not 1 <= len(node.value) <= self.high:
            r.wrong(node, path, f"must have 1..{self.high} values, has {len(node.value)}")
            return None
        good = True
        for item in node.value:
            value = self.kind.read(r, item, path)
            if value is None:
                good = False
            elif value in found:
                r.wrong(item, path, f"{shown(item)} stands twice, must stand once")
            else:
                found.append(value)
        return tuple(found) if good else None

    def schema(self):
        one = self.kind.schema()
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


class ListOf(Kind):
    """A list: [(value, node)], wrong ones left out."""

    def __init__(self, kind: Kind, low: int, high: int, what: str):
        self.kind, self.low, self.high, self.what = kind, low, high, what

    def read(self, r, node, path):
        if not isinstance(node, SequenceNode):
            r.wrong(node, path, f"must be a list of {self.what}, was {shown(node)}")
            return None
        if not self.low <= len(node.value) <= self.high:
            r.wrong(node, path, f"must have {self.low}..{self.high} {self.what}, has {len(node.value)}")
        read = ((self.kind.read(r, item, f"{path}[{i}]"), item) for i, item in enumerate(node.value[: self.high]))
        return [(value, item) for value, item in read if value is not None]

    def schema(self):
        return {"type": "array", "items": self.kind.schema(), "minItems": self.low, "maxItems": self.high}


class MapOf(Kind):
    """Names to values: {name: (value, node)}."""

    def __init__(self, key: Kind, value: Kind, high: int, what: str):
        self.key, self.value, self.high, self.what = key, value, high, what

    def read(self, r, node, path):
        if not isinstance(node, MappingNode):
            r.wrong(node, path, f"must be a mapping of {self.what}, was {shown(node)}")
            return None
        if len(node.value) > self.high:
            r.wrong(node, path, f"must have at most {self.high} {self.what}, has {len(node.value)}")
        found: dict = {}
        for key_node, value_node in node.value[: self.high]:
            key = self.key.read(r, key_node, path)
            if key is None:
                continue
            value = self.value.read(r, value_node, f"{path}.{key}")
            if key in found:
                r.wrong(key_node, f"{path}.{key}", "stands twice, must stand once")
            elif value is not None:
                found[key] = (value, value_node)
        return found

    def schema(self):
        return {"type": "object", "additionalProperties": self.value.schema(), "maxProperties": self.high}


@dataclass(frozen=True)
class Key:
    """A key of a mapping."""

    kind: Kind
    says: str
    must: bool = False
    default: Any = None


class Got:
    """The values of a mapping that was read; absent and wrong ones are their key's default."""

    def __init__(self, node: Node, path: str, values: dict[str, Any], nodes: dict[str, Node]):
        self.node, self.path, self.values, self.nodes = node, path, values, nodes
        self.key_nodes: dict[str, Node] = {}
        self.unknown = False  # whether keys stand there that nobody knows

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def __contains__(self, key: str) -> bool:
        return key in self.nodes

    def at(self, key: str) -> str:
        """The path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, r: Reading, key: str, text: str) -> None:
        """Note a problem at a key's value (at the mapping when it is absent)."""
        r.wrong(self.nodes.get(key, self.node), self.at(key) if key else self.path, text)


class Record(Kind):
    """A mapping of known keys. reserved: keys that are kept free. also: keys that somebody else reads."""

    def __init__(self, keys: Callable[[], dict[str, Key]] | dict[str, Key], reserved: tuple[str, ...] = (), title: str = ""):
        self._keys, self.reserved, self.title = keys, reserved, title

    @property
    def keys(self) -> dict[str, Key]:
        return self._keys() if callable(self._keys) else self._keys

    def read(self, r, node, path):
        got = self.begin(r, node, path)
        return self.finish(r, got) if got is not None else None

    def begin(self, r: Reading, node: Node, path: str) -> Got | None:
        """Which keys are there; nothing is read yet."""
        keys = self.keys
        if not isinstance(node, MappingNode):
            r.wrong(node, path, f"must be a mapping with the keys {', '.join(keys)}, was {shown(node)}")
            return None
        got = Got(node, path, {}, {})
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, ScalarNode) else shown(key_node)
            if name in got.nodes:
                r.wrong(key_node, got.at(name), "stands twice, must stand once")
            elif name in self.reserved:
                r.wrong(key_node, got.at(name), "is kept free for a later version, must not be used yet")
            elif name not in keys:
                got.unknown = True
                known = f"; known are {', '.join(keys)}" if not (near := suggestion(name, keys)) else ""
                r.wrong(key_node, got.at(name), f"unknown key{near}{known}")
            else:
                got.nodes[name], got.key_nodes[name] = value_node, key_node
        for name, key in keys.items():
            if key.must and name not in got.nodes:
                r.wrong(node, got.at(name), "is missing, must be set")
        return got

    def finish(self, r: Reading, got: Got, only: Iterable[str] | None = None) -> Got:
        """Read the keys (or only some of them, in the order given)."""
        keys = self.keys
        for name in keys if only is None else only:
            node = got.nodes.get(name)
            value = None
            if node is not None:
                place = got.key_nodes[name] if isinstance(node, ScalarNode) and node.value == "" and node.style is None else node
                if place is not node:
                    r.wrong(place, got.at(name), f"must be {keys[name].kind.says(r) or 'set'}, was nothing")
                else:
                    value = keys[name].kind.read(r, node, got.at(name))
            got.values[name] = keys[name].default if value is None else value
        return got

    def schema(self):
        keys = self.keys
        out: dict = {"type": "object", "additionalProperties": False, "properties": {}}
        for name, key in keys.items():
            out["properties"][name] = {"description": key.says, **key.kind.schema()}
        if must := [name for name, key in keys.items() if key.must]:
            out["required"] = must
        return out


class Range(Kind):
    """`{from: A, to: B}`: (low, high), one of them may be None."""

    def __init__(self, kind: Kind):
        self.record = Record({"from": Key(kind, "included"), "to": Key(kind, "not included")})

    def read(self, r, node, path):
        before = len(r.problems.found)
        got = self.record.read(r, node, path)
        if got is None or len(r.problems.found) > before:
            return None
        low, high = got["from"], got["to"]
        if low is None and high is None:
            r.wrong(node, path, "must have `from`, `to` or both")
            return None
        if self.empty(low, high):
            r.wrong(node, path, "is empty and can never hold: `to` is not included and must be above `from`")
            return None
        return low, high

    def empty(self, low, high):
        return high == 0 if low is None else high is not None and low >= high

    def schema(self):
        return {**self.record.schema(), "minProperties": 1}


class HourRange(Range):
    """A range of hours, which may go over midnight."""

    def empty(self, low, high):
        return low is None or high is None or low == high or low == tree.MINUTES_OF_DAY
