"""Conditions on their way into an image: three-valued truth over many values at once, and jump programs.

Not for what a condition means (`reference.py`). Called by `lower2.py`, `lower_dimensions.py` and `lower_articles.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ledger.rules import tree
from ledger.rules.image2 import ATOM, OPEN_HIGH, OPEN_LOW, PROGRAM_WORDS_MAX, U32, Atom, Op

Truth = np.ndarray | bool
NUMBER_MAX = 2**32 - 1


class LimitExceeded(ValueError):
    """A checked programme that no image can hold; the text says which part, and what would be right."""


class Possible(NamedTuple):
    """What a condition may be for each of many values: Kleene's unknown is both."""

    true: Truth
    false: Truth


UNKNOWN = Possible(True, True)


def known(holds: np.ndarray) -> Possible:
    """A condition that is known for each value."""
    return Possible(holds, ~holds)


def possible(condition: object, of_atom: Callable[[object], Possible]) -> Possible:
    """A condition in Kleene's three-valued logic, for many values at once."""
    if isinstance(condition, tree.Not):
        part = possible(condition.part, of_atom)
        return Possible(part.false, part.true)
    if not isinstance(condition, (tree.All, tree.Any)):
        return of_atom(condition)
    whole, parts = isinstance(condition, tree.All), [possible(part, of_atom) for part in condition.parts]
    every: Truth = True  # All: each part may be true; Any: each may be false
    some: Truth = False
    for part in parts:
        every = every & (part.true if whole else part.false)
        some = some | (part.false if whole else part.true)
    return Possible(every, some) if whole else Possible(some, every)


def conjuncts(condition: object) -> list:
    """Parts that must all hold."""
    return [part for inner in condition.parts for part in conjuncts(inner)] if isinstance(condition, tree.All) else [condition]


def simplified(condition: object) -> object:
    """The same condition without nesting that says nothing: lists of one, lists in lists of their kind, double negations, empty lists."""
    if isinstance(condition, tree.Not):
        part = simplified(condition.part)
        if isinstance(part, tree.Not):
            return part.part
        if part in (tree.All(()), tree.Any(())):
            return tree.Any(()) if part == tree.All(()) else tree.All(())
        return tree.Not(part)
    if not isinstance(condition, (tree.All, tree.Any)):
        return condition
    kind = type(condition)
    other = tree.Any if kind is tree.All else tree.All
    parts: list = []
    for part in map(simplified, condition.parts):
        if part == other(()):
            return part
        parts += part.parts if isinstance(part, kind) else [part]
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


# --- ranges as cuts -------------------------------------------------------------------------------------------------------

def date_cuts(dates: tree.Dates) -> list[int]:
    """Windows of local minutes as sorted cuts: a moment is in one when an odd number of cuts is not behind it."""
    merged: list[list[int]] = []
    for low, high in sorted((max(0, low or 0), NUMBER_MAX + 1 if high is None else high) for low, high in dates.windows):
        if low >= high:
            continue
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    return [cut for window in merged for cut in window if cut <= NUMBER_MAX]


def hour_cuts(hours: tree.Hours) -> list[int]:
    """The same for minutes of the day."""
    if hours.low < hours.high:
        return [hours.low] if hours.high == tree.MINUTES_OF_DAY else [hours.low, hours.high]
    return [0] if hours.low == hours.high else [hours.low] if hours.high == 0 else [0, hours.high, hours.low]


def over_intervals(own: list[int], cuts: np.ndarray) -> Possible:
    """What ranges given as cuts are in each of the intervals between other cuts; the last of these has no end."""
    before = np.searchsorted(own, np.concatenate(([0], cuts)), side="right")
    behind = np.searchsorted(own, np.concatenate((cuts - 1, [NUMBER_MAX])), side="right")
    mixed = before != behind
    inside = before % 2 == 1
    return Possible(inside | mixed, ~inside | mixed)


# --- programs -------------------------------------------------------------------------------------------------------------

class Programs:
    """Programs, atoms and lists of an image; what is alike is kept once, in the order of first use."""

    def __init__(self):
        self.words: list[int] = [0]
        self.numbers: list[int] = []
        self._programs: dict[tuple[int, ...], int] = {}
        self._atoms: dict[tuple, int] = {}
        self._lists: dict[tuple[int, ...], int] = {}

    def numbered(self, numbers: Iterable[int]) -> tuple[int, int]:
        """Offset and count of a list."""
        numbers = tuple(numbers)
        if not numbers:
            return 0, 0
        if numbers not in self._lists:
            self._lists[numbers] = len(self.numbers)
            self.numbers += numbers
        return self._lists[numbers], len(numbers)

    def atom(self, code: Atom, low: int = 0, high: int = 0, numbers: Iterable[int] = ()) -> int:
        """The number of an atom."""
        return self._atoms.setdefault((low, high, *self.numbered(numbers), int(code), 0), len(self._atoms))

    def program(self, condition: object, number: Callable[[object], int], what: str) -> int:
        """The offset of a condition's program; 0: it holds always. number: of an atom. LimitExceeded: it is too large; `what` names it."""
        condition = simplified(condition)
        if condition == tree.All(()):
            return 0
        words = (*self._code(condition, number), int(Op.DONE))
        if len(words) > PROGRAM_WORDS_MAX:
            raise LimitExceeded(f"{what}: the condition is too large: it has {len(words)} steps, at most {PROGRAM_WORDS_MAX} are possible")
        if words not in self._programs:
            self._programs[words] = len(self.words)
            self.words += words
        return self._programs[words]

    def _code(self, condition: object, number: Callable[[object], int]) -> list[int]:
        if isinstance(condition, tree.Not):
            return [*self._code(condition.part, number), int(Op.NOT)]
        if condition == tree.Any(()):
            return [Op.TEST | self.atom(Atom.NTH) << 8]  # a list of none
        if not isinstance(condition, (tree.All, tree.Any)):
            return [Op.TEST | number(condition) << 8]
        jump = Op.JUMP_IF_FALSE if isinstance(condition, tree.All) else Op.JUMP_IF_TRUE
        codes = [self._code(part, number) for part in condition.parts]
        words = codes.pop()
        while codes:
            words = [*codes.pop(), jump | len(words) << 8, *words]
        return words

    def atoms(self) -> np.ndarray:
        """Section ATOMS."""
        return np.array(list(self._atoms), ATOM)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Sections PROGRAMS and NUMBERS."""
        return np.array(self.words, U32), np.array(self.numbers, U32)


RANGE_CODES = {"total": Atom.TOTAL, "eligible_total": Atom.ELIGIBLE_TOTAL, "lines_total": Atom.LINES_TOTAL,
               "lines_quantity": Atom.LINES_QUANTITY, "account_age_days": Atom.ACCOUNT_AGE_DAYS,
               "days_since_last_receipt": Atom.DAYS_SINCE_LAST_RECEIPT, "price": Atom.PRICE, "quantity": Atom.QUANTITY}
FLAG_CODES = {"weighed": Atom.WEIGHED, "discounted": Atom.DISCOUNTED, "favourite": Atom.FAVOURITE}


def bounds(low: int | None, high: int | None) -> tuple[int, int]:
    """A range with open ends as the largest integers."""
    return OPEN_LOW if low is None else low, OPEN_HIGH if high is None else high


def mask(places: Iterable[int]) -> int:
    """Bits at some places."""
    found = 0
    for place in places:
        found |= 1 << place
    return found


def signed(bits: int) -> int:
    """64 bits as an int64 has them."""
    bits &= 2**64 - 1
    return bits - 2**64 if bits >> 63 else bits
