"""How large the tables of whoever goes over a whole journal must be: a guess from its end, and again with more where that was too little.

Not for the service, whose sizes are given. Called by ledger/verify.py, ledger/simulate.py and ledger/backtest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from ledger import limits
from ledger.journal import ENTRY_HEADER, Damage, read_group

MEMBERS_GUESS_MIN = 65_536  # tables of the first pass have at least this room; four times as much each time it was too little
GUESS_GROUPS = 64  # the last groups of the journal name some of its newest members: twice the highest is the first guess
Made = TypeVar("Made")


class Groups(Protocol):
    """A journal or a back-up."""

    def last_records(self, count: int) -> Iterable[Any]:
        """The groups at its end."""


class TablesTooSmall(Exception):
    """There is no room for all members, or for what is counted of them."""


def guess_members(journal: Groups) -> int:
    """Room for so many members that a second pass is rarely needed, and not so many that the tables leave the processor's caches."""
    highest = 0
    for record in journal.last_records(GUESS_GROUPS):
        try:
            highest = max(highest, *(ENTRY_HEADER.unpack_from(entry)[5] for _, entry in read_group(record, "")))
        except Damage:
            continue  # the pass will say where and what
    return min(max(MEMBERS_GUESS_MIN, 2 * highest), limits.MEMBERS_MAX_LIMIT)


def with_room(journal: Groups, run: Callable[[int], Made]) -> Made:
    """What `run` makes with tables for so many members, as often as it takes. Errors: TablesTooSmall, with the largest there are."""
    members_max = guess_members(journal)
    while True:
        try:
            return run(members_max)
        except TablesTooSmall:
            if members_max >= limits.MEMBERS_MAX_LIMIT:
                raise
            members_max = min(4 * members_max, limits.MEMBERS_MAX_LIMIT)
