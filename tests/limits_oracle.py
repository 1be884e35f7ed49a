"""The slow, obvious limits: what the core must judge and count, in plain Python on the checked programme.

Written from docs/rules.md (Limits) and docs/decisions/fraud.md, not from the core. It measures from the request and from what the oracle
decided, never from an entry; keys are what they say, not hashes of it. Used by tests/oracle.py. Answers that wait for somebody
(`challenge`, `review`) are not here yet: whoever generates programmes leaves them out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import Any

from ledger.rules import tree, zones
from tests.velocity_model import VelocityModel, window_of

SECOND = 1_000_000
DIFFERENT = {"members": "member", "stores": "store", "regions": "region"}  # measures that count how many of a part there were
BY_LIMITS = ("VELOCITY_EXCEEDED", "MEMBER_LIMITED", "MEMBER_BLOCKED", "MEMBER_EXCLUDED")
RUNG_REFUSALS = {2: "MEMBER_LIMITED", 3: "MEMBER_BLOCKED", 4: "MEMBER_EXCLUDED"}


def counting_day(now_us: int) -> int:
    """The day by which windows die: of no zone, ten hours behind UTC."""
    return (now_us // SECOND - 36_000) // 86_400


@dataclass
class Event:
    """What limits see of a command, or of a look-up."""

    of: set[str]
    time_s: int  # of the purchase, never after the ledger's
    day: int  # of the purchase, store time
    parts: dict[str, Hashable]  # by key of the language; what is not known is not there
    segments: frozenset[str] = frozenset()
    points: dict[str, int] = field(default_factory=dict)  # by `of`
    money: int = 0
    quantity: int = 0

    def lacks(self, counter: tree.Counter) -> bool:
        asked = {*counter.per, *({DIFFERENT[counter.measure]} if counter.measure in DIFFERENT else ())}
        return bool(asked - set(self.parts)) or bool(counter.segments and not counter.segments & self.segments)

    def amount(self, counter: tree.Counter) -> int:
        if counter.measure == "points":
            return sum(self.points.get(word, 0) for word in counter.of)
        return {"money": self.money, "quantity": self.quantity}.get(counter.measure, 1)


@dataclass
class Judged:
    """What limits say. Limits are told by their place in the programme, from 0."""

    above: list[tuple[int, str]] = field(default_factory=list)  # limit and answer, without those in shadow
    refused: bool = False
    points_max: int | None = None  # of what is earned
    rung: int = 0
    rung_lasts_s: int = 0
    rung_by: int = 0


def place(programme: tree.Programme, store: str, till: str) -> dict[str, Hashable]:
    """A till is one of a store, and a store may be in a region."""
    region = programme.stores[store].region if store in programme.stores else None
    return {**({"store": store} if store else {}), **({"till": (store, till)} if store and till else {}),
            **({"region": region} if region else {})}


def store_offset_s(programme: tree.Programme, store: str, time_us: int) -> int:
    zone = zones.load(programme.stores[store].zone if store in programme.stores else programme.zone)
    offset = (zones.EPOCH + timedelta(microseconds=time_us)).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // timedelta(seconds=1)


def moment(programme: tree.Programme, store: str, bought_us: int, now_us: int) -> tuple[int, int, int]:
    """Seconds, day and hour of the day of a purchase, the latter two in the store's time."""
    time_s = min(bought_us, now_us) // SECOND
    local_s = time_s + store_offset_s(programme, store, bought_us)
    return time_s, local_s // 86_400, local_s % 86_400 // 3600


class Counters(VelocityModel):
    """Counters by what they count, and keys by what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[Hashable, int] = {}  # of counters, stores and members

    def number(self, what: Hashable) -> int:
        return self.numbers.setdefault(what, len(self.numbers) + 1)

    def give(self, day: int, times: int, *words: Any) -> None:
        """No digest: that of the core is over hashed keys."""

    def spot(self, counter: tree.Counter, event: Event) -> tuple[Any, int, int]:
        """Key, id, and the number of the calendar window."""
        kind = tree.LIMIT_WINDOWS.index(counter.window)
        key = tuple((part, event.parts[part]) for part in counter.per)
        return key, self.number(counter) * 8 + kind, window_of(kind, event.day) if counter.window != "sliding" else 0

    def one_of(self, counter: tree.Counter, event: Event) -> int:
        return self.number((counter.measure, event.parts[DIFFERENT[counter.measure]]))

    def with_this(self, counter: tree.Counter, event: Event, amount: int) -> int:
        """What a counter would come to."""
        key, id, window = self.spot(counter, event)
        if counter.measure in DIFFERENT:
            if counter.window == "sliding":
                return self.recent_with(key, id, event.time_s, counter.window_s, self.one_of(counter, event) << 4)
            return self.distinct_with(key, id, window, self.one_of(counter, event))
        if counter.window == "sliding":
            return amount + self.sliding_used(key, id, event.time_s, counter.window_s)
        return amount + self.used(key, id, window)

    def count(self, counter: tree.Counter, event: Event) -> None:
        if not set(counter.of) & event.of or event.lacks(counter):
            return
        key, id, window = self.spot(counter, event)
        if counter.measure in DIFFERENT and counter.window == "sliding":
            self.recent_add(key, id, event.time_s, counter.window_s, self.one_of(counter, event) << 4)
        elif counter.measure in DIFFERENT:
            self.distinct_add(key, id, window, self.one_of(counter, event))
        elif counter.window == "sliding":
            self.sliding_add(key, id, event.time_s, counter.window_s, event.amount(counter))
        else:
            self.add(key, id, window, event.amount(counter))


class Limits:
    """Counters of a ledger, and of the look-ups since its start."""

    def __init__(self) -> None:
        self.kept = Counters()
        self.forget_look_ups()

    def forget_look_ups(self) -> None:
        """The service started anew."""
        self.looked = Counters()
        self.looked_since: tuple[int, int] | None = None  # seconds and store day of the first one

    def judge(self, programme: tree.Programme, event: Event, now_us: int) -> Judged:
        self.kept.now(now_us // SECOND, counting_day(now_us))
        judged = Judged()
        for place_of, limit in enumerate(programme.limits):
            counter = limit.counts
            if not set(counter.of) & event.of or event.lacks(counter):
                continue
            amount = event.amount(counter)
            total = amount if counter.window == "receipt" else self.kept.with_this(counter, event, amount)
            bound: Fraction | int = limit.at_most
            if limit.mean_after:
                money, receipts = (self.kept.with_this(one, event, 0) for one in limit.counters)
                if receipts < limit.mean_after:
                    continue
                bound = Fraction(money * limit.at_most, 1000 * receipts)
            if total <= bound or limit.then == "shadow":
                continue
            judged.above.append((place_of, limit.then))
            judged.refused |= limit.then == "refuse"
            if limit.then == "reduce":
                left = max(0, limit.at_most - (total - amount)) if counter.measure == "points" else 0
                judged.points_max = left if judged.points_max is None else min(left, judged.points_max)
            rung = 0 if limit.rung is None else 1 + tree.RUNGS.index(limit.rung)
            if rung > judged.rung:
                judged.rung, judged.rung_lasts_s, judged.rung_by = rung, limit.lasts_s, place_of
        return judged

    def count(self, programme: tree.Programme, event: Event, now_us: int) -> None:
        self.kept.now(now_us // SECOND, counting_day(now_us))
        for counter in programme.counters:
            if not counter.volatile:
                self.kept.count(counter, event)

    def give_back(self, programme: tree.Programme, event: Event, now_us: int) -> None:
        """Takes an event from the counters that give back, as far as they still have it."""
        self.kept.now(now_us // SECOND, counting_day(now_us))
        for counter in programme.counters:
            if counter.gives_back and set(counter.of) & event.of and not event.lacks(counter):
                key, id, window = self.kept.spot(counter, event)
                self.kept.add(key, id, window, -event.amount(counter))

    def look_up(self, programme: tree.Programme, event: Event, now_us: int) -> bool:
        """Counts a look-up. Whether it is answered."""
        if not programme.limits:
            return True
        now_s = now_us // SECOND
        self.looked.now(now_s, counting_day(now_us))
        since_s, since_day = self.looked_since = self.looked_since or (now_s, event.day)
        answered = True
        for limit in programme.limits:
            counter = limit.counts
            if not set(counter.of) & event.of or event.lacks(counter):
                continue
            total, kind = self.looked.with_this(counter, event, 1), tree.LIMIT_WINDOWS.index(counter.window)
            if counter.window == "sliding":
                begins = now_s - since_s < counter.window_s
            else:
                begins = window_of(kind, since_day) == window_of(kind, event.day)
            if begins:  # nobody knows what was before
                total += limit.at_most // 2
            answered &= not (total > limit.at_most and limit.then == "refuse")
        for counter in programme.counters:
            if counter.volatile:
                self.looked.count(counter, event)
        return answered
