"""YAML text to values that still know where they stood, and the errors that say so.

Not for what a programme means (`check.py`). Numbers are read from the text itself, digit by digit: nothing passes
through binary fractions. Several problems are collected and reported together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger import limits

T = TypeVar("T")
SHOWN_BEFORE, SHOWN_MAX = 60, 100  # characters of a line, those before the place and in all


class ProgramError(Exception):
    """A programme that cannot be used. `str()` is one line per problem, in file order: FILE:LINE:COLUMN: what, and what would be right."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. Lines and columns count from 1."""

    line: int
    column: int
    text: str


@dataclass
class Problems:
    """Collects what is wrong with one file."""

    file: str
    found: list[Problem] = field(default_factory=list)

    def add(self, node: Node, text: str) -> None:
        """Note a problem at the place of `node`."""
        self.found.append(Problem(node.start_mark.line + 1, node.start_mark.column + 1, text))

    def raise_if_any(self) -> None:
        """ProgramError with all of them, in file order."""
        if self.found:
            ordered = sorted(self.found, key=lambda problem: (problem.line, problem.column))
            raise ProgramError("\n".join(f"{self.file}:{p.line}:{p.column}: {p.text}" for p in ordered))


def with_lines(error: ProgramError, file: str, source: bytes) -> str:
    """The problems of a file, each with the line that it is about below it, and a mark below its column."""
    lines = source.decode("utf-8", "replace").splitlines()
    told = []
    for problem in str(error).splitlines():
        told.append(problem)
        if (place := re.match(re.escape(file) + r":([0-9]+):([0-9]+): ", problem)) is None:
            continue
        number, column = int(place[1]), int(place[2]) - 1
        if number > len(lines):
            continue
        begin = max(0, column - SHOWN_BEFORE)
        text = lines[number - 1][begin:begin + SHOWN_MAX].replace("\t", " ")
        told += [f"{number:>6} | {text}", f"       | {' ' * (column - begin)}^"]
    return "\n".join(told)


def parse(source: bytes, file: str, begins: str = "programme: NAME") -> MappingNode:
    """The file's top mapping. begins: what stands at its head. ProgramError: not UTF-8, not YAML, or something else than one mapping."""
    problems = Problems(file)
    try:
        text = source.decode("utf-8")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        column = error.start - (source.rfind(b"\n", 0, error.start) + 1) + 1
        raise ProgramError(f"{file}:{line}:{column}: byte 0x{source[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    try:
        top = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ProgramError(f"{file}:{place}: not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ProgramError(f"{file}:1:1: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(top, MappingNode):
        if top is None:
            raise ProgramError(f"{file}:1:1: the file is empty, must be a mapping that begins with `{begins}`")
        problems.add(top, f"the file must be a mapping of keys to values, was {shown(top)}")
        problems.raise_if_any()
    return top


TABLES = ("stores", "catalogue")  # keys whose rows may stand in a file beside the programme: {file: NAME}
NAMED = ("limits",)  # keys whose value may be the name of such a file


def tables(top: MappingNode) -> list[tuple[str, Node]]:
    """The files that a programme names: path of the name, and its node."""
    found = []
    for key, node in top.value:
        if key.value in TABLES and isinstance(node, MappingNode):
            found += [(f"{key.value}.file", name) for below, name in node.value if below.value == "file"]
        elif key.value in NAMED and isinstance(node, ScalarNode) and node.value:
            found.append((key.value, node))
    return found


DEPTH_MAX = 16
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")}  # what plain values get


def parse_strict(source: bytes, file: str, begins: str = "programme: NAME") -> MappingNode:
    """As `parse`, and: no anchors, no aliases, no tags of one's own, at most DEPTH_MAX levels. ProgramError."""
    if len(source) > limits.SOURCE_BYTES_MAX:
        raise ProgramError(f"{file}:1:1: the file must have at most {limits.SOURCE_BYTES_MAX} bytes, has {len(source)}")
    top = parse(source, file, begins)
    problems = Problems(file)
    seen: set[int] = set()
    waiting: list[tuple[Node, int]] = [(top, 1)]
    while waiting:
        node, depth = waiting.pop()
        if node.anchor is not None or id(node) in seen:
            problems.add(node, "anchors and aliases (&, *) must not be used: write the values out")
            continue
        seen.add(id(node))
        if node.tag and str(node.tag) not in TAGS:
            problems.add(node, f"tags ({node.tag}) must not be used")
        if depth > DEPTH_MAX:
            problems.add(node, f"must nest at most {DEPTH_MAX} deep")
        elif isinstance(node, MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]
    problems.raise_if_any()
    return top


def shown(node: Node) -> str:
    """A value as a message shows it."""
    if isinstance(node, ScalarNode):
        if node.value == "" and node.style is None:
            return "nothing"
        return repr(node.value if len(node.value) <= 60 else node.value[:57] + "...")
    return "a list" if isinstance(node, SequenceNode) else "a mapping"


def suggestion(word: str, known: Iterable[str]) -> str:
    """"; did you mean ...?", or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Mapping:
    """The keys of a mapping, taken one by one; what is left over, doubled or missing is a problem."""

    def __init__(self, node: Node, path: str, problems: Problems, required: tuple[str, ...], optional: tuple[str, ...]):
        self.node, self.path, self.problems = node, path, problems
        self.values: dict[str, Node] = {}
        self.keys: dict[str, Node] = {}
        allowed = required + optional
        if not isinstance(node, MappingNode):
            problems.add(node, f"{path}: must be a mapping with the keys {', '.join(allowed)}, was {shown(node)}")
            return
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else shown(key)
            if name in self.values:
                problems.add(key, f"{self.at(name)}: stands twice, must stand once")
            elif name not in allowed:
                problems.add(key, f"{self.at(name)}: unknown key{suggestion(name, allowed)}; known are {', '.join(allowed)}")
            else:
                self.values[name], self.keys[name] = value, key
        for name in required:
            if name not in self.values:
                problems.add(node, f"{self.at(name)}: is missing, must be set")

    def at(self, key: str) -> str:
        """The path of a key, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def read(self, key: str, reader: Callable[[str], T | None], right: str, default: T, hint: Callable[[str], str] | None = None) -> T:
        """The scalar of a key through `reader`, which gives None for a wrong text; `default` when it is absent or wrong."""
        node = self.values.get(key)
        if node is None:
            return default
        value = reader(node.value) if isinstance(node, ScalarNode) and node.value else None
        if value is None:
            more = hint(node.value) if hint is not None and isinstance(node, ScalarNode) else ""
            place = self.keys[key] if shown(node) == "nothing" else node  # what is not there stands nowhere
            self.problems.add(place, f"{self.at(key)}: must be {right}, was {shown(node)}{more}")
            return default
        return value

    def items(self, key: str, right: str, low: int, high: int) -> list[Node]:
        """The elements of a list; its length is within low..high, else a problem (and no more than `high` come back)."""
        node = self.values.get(key)
        if node is None:
            return []
        if not isinstance(node, SequenceNode):
            self.problems.add(node, f"{self.at(key)}: must be a list of {right}, was {shown(node)}")
            return []
        if not low <= len(node.value) <= high:
            self.problems.add(node, f"{self.at(key)}: must have {low}..{high} {right}, has {len(node.value)}")
        return node.value[:high]

    def problem(self, key: str, text: str) -> None:
        """Note a problem at the value of `key` (at the mapping when it is absent)."""
        self.problems.add(self.values.get(key, self.node), f"{self.at(key)}: {text}")


# Readers: the text of a scalar to a value, None when it is not one.

def read_boolean(text: str) -> bool | None:
    """true or false, as YAML 1.2 writes them."""
    return {"true": True, "false": False}.get(text)


def read_whole(low: int, high: int) -> Callable[[str], int | None]:
    """A reader of whole numbers of low..high."""
    def reader(text: str) -> int | None:
        value = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
        return value if value is not None and low <= value <= high else None
    return reader


def read_decimal(digits: int, low: int, high: int) -> Callable[[str], int | None]:
    """A reader of decimal numbers with at most `digits` decimals, in units of the last one: "1.5" with 2 is 150."""
    def reader(text: str) -> int | None:
        match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]+))?", text)
        if match is None or len(match[2] or "") > digits:
            return None
        value = int(match[1] + (match[2] or "").ljust(digits, "0"))
        return value if low <= value <= high else None
    return reader


def read_text(bytes_max: int) -> Callable[[str], str | None]:
    """A reader of names: no control characters, no space at the ends, at most bytes_max bytes of UTF-8."""
    def reader(text: str) -> str | None:
        fits = text.isprintable() and text == text.strip() and len(text.encode()) <= bytes_max
        return text if fits else None
    return reader


def read_span(units: dict[str, int]) -> Callable[[str], tuple[int, str] | None]:
    """A reader of "90 days", "1 month": number and unit. units: plural -> largest number."""
    def reader(text: str) -> tuple[int, str] | None:
        match = re.fullmatch(r"([0-9]{1,9}) +([a-z]+)", text)
        if match is None:
            return None
        unit = match[2] if match[2].endswith("s") else match[2] + "s"
        number = int(match[1])
        return (number, unit) if unit in units and number <= units[unit] else None
    return reader
