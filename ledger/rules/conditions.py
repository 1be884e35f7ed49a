"""Conditions of rules and thresholds of tiers: YAML to the tree. docs/rules.md sections 4 and 10.

Not for what they mean to a receipt (`reference.py`) nor whether they can ever hold (`firing.py`). Called by `check.py`.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger import limits
from ledger.rules import tree
from ledger.rules.shape import (
    Choice,
    Clock,
    Flag,
    Got,
    HourRange,
    Key,
    Kind,
    ListOf,
    MapOf,
    Moment,
    Money,
    Name,
    Number,
    OneOrMore,
    Range,
    Reading,
    Record,
    Text,
    Whole,
)
from ledger.rules.syntax import shown

DEPTH_MAX = 8
ATOMS_MAX = 64
DAYS_MAX = 36_600

_MONEY = Range(Money(0, limits.AMOUNT_MINOR_MAX))
_QUANTITY = Range(Number(3, 0, limits.QUANTITY_MILLI_MAX * limits.LINES_MAX, "a quantity"))
_DAYS = Range(Whole(0, DAYS_MAX))
_DATES = Range(Moment())
_BIRTHDAY = Record(
    {
        "days_before": Key(Whole(0, 30), "so many days before it", default=0),
        "days_after": Key(Whole(0, 30), "so many days after it", default=0),
    }
)

LINE_KEYS = {
    "sku": Key(OneOrMore(Name("sku", "article")), "its article is one of these"),
    "category": Key(OneOrMore(Name("category")), "its category is one of these or under one of them"),
    "brand": Key(OneOrMore(Name("brand")), "its article's brand is one of these"),
    "flag": Key(OneOrMore(Name("flag")), "its article has one of these flags"),
    "price": Key(_MONEY, "amount / quantity is in the range"),
    "quantity": Key(_QUANTITY, "its quantity is in the range"),
    "weighed": Key(Flag(), "it was weighed"),
    "discounted": Key(Flag(), "the till's own reduction made it cheaper"),
    "favourite": Key(Flag(), "its category is one that the member has chosen"),
}
OTHER_KEYS = {
    "total": Key(_MONEY, "the receipt's total is in the range"),
    "eligible_total": Key(_MONEY, "the sum of lines not under no_points_on is in the range"),
    "nth_receipt": Key(OneOrMore(Whole(1, 1_000_000)), "it is the member's 1st, 2nd, ... receipt"),
    "every_nth_receipt": Key(Whole(2, 1000), "the number of the member's receipts is a multiple of it"),
    "tender": Key(OneOrMore(Name("tender")), "more than 0 was paid with one of these"),
    "channel": Key(OneOrMore(Name("channel")), "it came by one of these"),
    "promo_code": Key(OneOrMore(Text(32)), "one of these codes was presented"),
    "tier": Key(OneOrMore(Name("tier")), "the member's tier before this receipt"),
    "segment": Key(OneOrMore(Name("segment")), "the member is in one of these"),
    "account_age_days": Key(_DAYS, "days since the account was opened"),
    "birthday": Key(_BIRTHDAY, "the store's date is so near a birthday"),
    "days_since_last_receipt": Key(_DAYS, "days since the last receipt"),
    "store": Key(OneOrMore(Name("store")), "the store is one of these"),
    "store_group": Key(OneOrMore(Name("store_group")), "the store is in one of these groups"),
    "region": Key(OneOrMore(Name("region")), "the store is in one of these regions"),
    "partner": Key(OneOrMore(Name("partner")), "the store is one of these partners'"),
    "weekday": Key(OneOrMore(Choice(*tree.WEEKDAYS)), "it is that day of the week"),
    "hours": Key(HourRange(Clock()), "the store's clock is in the range"),
}
OWN_LINES_KEYS = {
    "lines_total": Key(_MONEY, "the sum of the rule's own lines is in the range"),
    "lines_quantity": Key(_QUANTITY, "the sum of their quantities is in the range"),
}
RESERVED = ("coupon", "stamp", "plan", "action")


class _DatesKind(Kind):
    """One window or a list of them."""

    def read(self, r, node, path):
        if isinstance(node, MappingNode):
            window = _DATES.read(r, node, path)
            return None if window is None else (window,)
        found = ListOf(_DATES, 1, 100, "windows `{from, to}`").read(r, node, path)
        return tuple(window for window, _ in found) if found else None

    def schema(self):
        return {"anyOf": [_DATES.schema(), {"type": "array", "items": _DATES.schema()}]}


class _ExperimentKind(Kind):
    """{experiment: variants}."""

    kind = MapOf(Name("experiment"), OneOrMore(Text(32)), 16, "experiments")

    def read(self, r, node, path):
        found = self.kind.read(r, node, path)
        if found is None:
            return None
        parts = []
        for name, (variants, place) in found.items():
            experiment = r.known["experiment"][name]
            for variant in variants:
                if variant == experiment.control:
                    r.wrong(place, f"{path}.{name}", f"{variant!r} is the control variant, which gets nothing, must not be named")
                elif variant not in dict(experiment.variants):
                    r.wrong(
                        place,
                        f"{path}.{name}",
                        f"{variant!r} is no variant, must be one of "
                        f"{', '.join(v for v, _ in experiment.variants if v != experiment.control)}",
                    )
            parts.append(tree.InVariant(name, frozenset(variants)))
        return tuple(parts)

    def schema(self):
        return self.kind.schema()


class ConditionKind(Kind):
    """A condition. where: when (receipt, member, the rule's own lines), lines (also mixed), burn (receipt, member), goods (lines only)."""

    def __init__(self, where: str):
        self.where = where

    @property
    def keys(self) -> dict[str, Key]:
        nested = _Nested(self)
        keys = dict(LINE_KEYS) if self.where in ("lines", "goods") else {}
        if self.where != "goods":
            keys |= OTHER_KEYS | {
                "dates": Key(_DatesKind(), "the store's date and time are in the window"),
                "experiment": Key(_ExperimentKind(), "the member's variant is one of these"),
            }
        if self.where == "when":
            keys |= OWN_LINES_KEYS
        return keys | {
            "all": Key(_NestedList(nested), "each must hold"),
            "any": Key(_NestedList(nested), "one must hold"),
            "not": Key(nested, "must not hold as a whole"),
        }

    def read(self, r: Reading, node: Node, path: str) -> Any:
        before = len(r.problems.found)
        condition = self.nested(r, node, path, 1)
        if condition is None or len(r.problems.found) > before:
            return None
        if (count := len(tree.atoms(condition))) > ATOMS_MAX:
            r.wrong(node, path, f"must have at most {ATOMS_MAX} conditions, has {count}")
            return None
        if self.where == "lines":
            self.refuse_receipt_parts(r, node, path)
        return condition

    def nested(self, r: Reading, node: Node, path: str, depth: int) -> Any:
        if depth > DEPTH_MAX:
            r.wrong(node, path, f"must nest at most {DEPTH_MAX} deep")
            return None
        record = Record(self.keys, RESERVED)
        got = record.begin(r, node, path)
        if got is None:
            return None
        if not got.nodes and not node.value:
            r.wrong(node, path, "must have a condition, is empty")
            return None
        r.near["depth"] = str(depth)
        parts: list = []
        for key in got.nodes:  # in the order of the file
            r.near["depth"] = str(depth)
            record.finish(r, got, (key,))
            if got[key] is not None:
                parts += self.parts(key, got[key])
        return parts[0] if len(parts) == 1 else tree.All(tuple(parts))

    def parts(self, key: str, value: Any) -> list:
        if key in ("all", "any"):
            return [(tree.All if key == "all" else tree.Any)(value)]
        if key == "not":
            return [tree.Not(value)]
        if key in tree.LINE_FLAGS:
            return [tree.Is(key, value)]
        if key in (*tree.LINE_RANGES, *tree.RECEIPT_RANGES):
            return [tree.InRange(key, *value)]
        if key == "dates":
            return [tree.Dates(value)]
        if key == "hours":
            return [tree.Hours(*value)]
        if key == "birthday":
            return [tree.Birthday(value["days_before"], value["days_after"])]
        if key == "nth_receipt":
            return [tree.Nth(frozenset(value))]
        if key == "every_nth_receipt":
            return [tree.EveryNth(value)]
        if key == "experiment":
            return list(value)
        return [tree.InSet(key, frozenset(value))]

    def refuse_receipt_parts(self, r: Reading, node: Node, path: str) -> None:
        """What is not about lines and must hold anyway belongs into `when`."""
        for key_node, value_node in node.value:
            key = key_node.value
            if key == "all":
                for i, item in enumerate(value_node.value):
                    self.refuse_receipt_parts(r, item, f"{path}.all[{i}]")
            elif not _names_line_keys(key_node, value_node):
                r.wrong(key_node, f"{path}.{key}", "is not about one line and belongs into `when`")

    def schema(self):
        return {"$ref": f"#/$defs/{self.where}"}

    def definition(self) -> dict:
        """The schema that others refer to."""
        return {**Record(self.keys).schema(), "minProperties": 1}


def _names_line_keys(key_node: Node, value_node: Node) -> bool:
    if isinstance(key_node, ScalarNode) and key_node.value in LINE_KEYS:
        return True
    if key_node.value not in ("all", "any", "not"):
        return False
    inside = [value_node] if isinstance(value_node, MappingNode) else value_node.value
    return any(_names_line_keys(key, value) for item in inside for key, value in item.value)


class _Nested(Kind):
    def __init__(self, condition: ConditionKind):
        self.condition = condition

    def read(self, r, node, path):
        return self.condition.nested(r, node, path, int(r.near["depth"]) + 1)

    def schema(self):
        return self.condition.schema()


class _NestedList(Kind):
    def __init__(self, nested: _Nested):
        self.nested = nested

    def read(self, r, node, path):
        depth = r.near["depth"]
        if not isinstance(node, SequenceNode):
            r.wrong(node, path, f"must be a list of mappings, was {shown(node)}")
            return None
        if not 1 <= len(node.value) <= ATOMS_MAX:
            r.wrong(node, path, f"must have 1..{ATOMS_MAX} conditions, has {len(node.value)}")
            return None
        found = []
        for i, item in enumerate(node.value):
            r.near["depth"] = depth
            found.append(self.nested.read(r, item, f"{path}[{i}]"))
        return None if None in found else tuple(found)

    def schema(self):
        return {"type": "array", "items": self.nested.schema(), "minItems": 1}


# --- tiers --------------------------------------------------------------------------------------------------------------

WINDOWS = {
    "lifetime": tree.Window("lifetime"),
    "calendar month": tree.Window("month"),
    "calendar year": tree.Window("year"),
    "anniversary year": tree.Window("anniversary"),
}
ROLLING_DAYS_MAX = 400


class WindowKind(Kind):
    """In which window a threshold counts."""

    right = f"one of {', '.join(WINDOWS)} or 1..{ROLLING_DAYS_MAX} days such as `365 days`"

    def parse(self, r, text):
        if text in WINDOWS:
            return WINDOWS[text]
        number, _, unit = text.partition(" ")
        good = unit in ("day", "days") and number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= ROLLING_DAYS_MAX
        return tree.Window("rolling", int(number)) if good else None


class ReachKind(Kind):
    """When a tier is reached."""

    def record(self) -> Record:
        return Record(
            {
                "receipts": Key(Whole(1, 1_000_000), "at least so many receipts"),
                "spent": Key(Money(1, limits.AMOUNT_MINOR_MAX), "at least so much money"),
                "in": Key(WindowKind(), "in which window both count", default=WINDOWS["lifetime"]),
                "any": Key(ListOf(self, 1, 16, "ways to reach it"), "one must hold"),
                "all": Key(ListOf(self, 1, 16, "ways to reach it"), "each must hold"),
            }
        )

    def read(self, r, node, path):
        if path.count(".any") + path.count(".all") > 4:
            r.wrong(node, path, "must nest at most 4 deep")
            return None
        before = len(r.problems.found)
        got: Got | None = self.record().read(r, node, path)
        if got is None or len(r.problems.found) > before:
            return None
        parts: list = [tree.Threshold(key, got[key], got["in"]) for key in ("receipts", "spent") if key in got]
        parts += [tree.Any(tuple(value for value, _ in got["any"]))] if "any" in got else []
        parts += [tree.All(tuple(value for value, _ in got["all"]))] if "all" in got else []
        if not parts:
            r.wrong(node, path, "must have `receipts`, `spent`, `any` or `all`")
            return None
        return parts[0] if len(parts) == 1 else tree.All(tuple(parts))

    def schema(self):
        return {"$ref": "#/$defs/reach"}

    def definition(self) -> dict:
        """The schema that others refer to."""
        return {**self.record().schema(), "minProperties": 1}
