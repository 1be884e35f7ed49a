"""The slow, obvious velocity counters: what the tables must say, in plain Python.

Written from docs/decisions/fraud.md (What is kept), not from the leaf: dicts, no slots, nothing is ever taken out. Different ones are
a set, so above EXACT_MAX the leaf is compared within its error. Used by tests/ledger/test_velocity.py and by whoever needs an oracle
with limits in it.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta

from ledger._probe import fact_hash_

DAY, WEEK, MONTH, EVER, SLIDING = 1, 2, 3, 4, 5
KINDS = (DAY, WEEK, MONTH, EVER)
BUCKETS = 13
EXACT_MAX, BITS = 1024, 32768
VALUE_MAX, BUCKET_MAX = 2**63 - 1, 2**32 - 1
EPOCH = date(1970, 1, 1)
DAY_NEVER = 2**31 - 1
WORD = 2**64 - 1

Place = tuple[int, int, int]  # key, id, window & 1


def window_of(kind: int, day: int) -> int:
    """The number of the calendar window that a day (days since 1970) lies in."""
    at = EPOCH + timedelta(days=day)
    if kind == DAY:
        return day
    if kind == WEEK:
        return ((at - timedelta(days=at.weekday())) - (EPOCH - timedelta(days=3))).days // 7
    return at.year * 12 + at.month - 1 if kind == MONTH else 0


def first_day(kind: int, window: int) -> int:
    """The first day of a calendar window."""
    if kind == DAY:
        return window
    return window * 7 - 3 if kind == WEEK else (date(window // 12, window % 12 + 1, 1) - EPOCH).days


def dead_day(kind: int, window: int) -> int:
    """The first day on which a window is dead."""
    return DAY_NEVER if kind == EVER else first_day(kind, window + 2)


def folded(a: int, b: int) -> int:
    return (a * b & WORD) ^ (a * b >> 64)


def bit_of(fingerprint: int) -> int:
    """Which of the bits stands for a fingerprint."""
    return folded(fingerprint ^ 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3) >> 49


class VelocityModel:
    """Counters under the ledger's time. Every add answers as the leaf's: 0, or 1 when it counted nowhere; a model is never full."""

    def __init__(self) -> None:
        self.now_s = self.today = 0
        self.values: dict[Place, tuple[int, int]] = {}  # window, value
        self.rings: dict[tuple[int, int], tuple[int, int, dict[int, int]]] = {}  # newest bucket, its seconds, values by bucket
        self.recents: dict[tuple[int, int], tuple[int, int, dict[int, int]]] = {}  # newest bucket, its seconds, who was last seen in which
        self.sets: dict[Place, tuple[int, set[int], set[int]]] = {}  # window, fingerprints, their bits
        self.sums: dict[int, int] = defaultdict(int)  # what dies on a day

    def now(self, now_s: int, today: int) -> None:
        """The ledger's time from now on: UTC seconds, and the day in the programme's zone."""
        self.now_s, self.today = now_s, today

    def dead(self, id: int, window: int) -> bool:
        return id & 7 != EVER and window_of(id & 7, self.today) >= window + 2

    def nowhere(self, id: int, window: int, held: int | None) -> bool:
        """Whether what comes for a calendar window counts nowhere, beside the live one that is held."""
        ahead = window != 0 if id & 7 == EVER else window > window_of(id & 7, self.today) + 1
        return self.dead(id, window) or ahead or (held is not None and held > window)

    def give(self, day: int, times: int, *words: int) -> None:
        self.sums[day] = (self.sums[day] + fact_hash_(*words, *[0] * (6 - len(words))) * times) % 2**128

    def value_of(self, key: int, id: int, window: int) -> tuple[int, int] | None:
        """Window and value of the live one that has this one's place."""
        row = self.values.get((key or 1, id, window & 1))
        return None if row is None or self.dead(id, row[0]) else row

    def used(self, key: int, id: int, window: int) -> int:
        row = self.value_of(key, id, window)
        return row[1] if row and row[0] == window else 0

    def add(self, key: int, id: int, window: int, amount: int) -> int:
        row = self.value_of(key, id, window)
        if self.nowhere(id, window, row[0] if row else None):
            return 1
        before = self.used(key, id, window)
        after = max(0, min(VALUE_MAX, before + amount))
        if amount > 0 or (row and row[0] == window):
            if row and row[0] != window:
                self.give(dead_day(id & 7, row[0]), -row[1], 10, key or 1, id | row[0] << 32)
            self.values[key or 1, id, window & 1] = window, after
            self.give(dead_day(id & 7, window), after - before, 10, key or 1, id | window << 32)
        return 0

    def ring_of(self, key: int, id: int) -> tuple[int, int, dict[int, int]] | None:
        ring = self.rings.get((key or 1, id))
        return None if ring is None or self.now_s // ring[1] > ring[0] + BUCKETS - 1 else ring

    def sliding_used(self, key: int, id: int, time_s: int, window_s: int) -> int:
        ring = self.ring_of(key, id)
        if ring is None:
            return 0
        newest = max(ring[0], time_s // ring[1])
        return sum(value for bucket, value in ring[2].items() if bucket > newest - BUCKETS)

    def sliding_add(self, key: int, id: int, time_s: int, window_s: int, amount: int) -> int:
        seconds = window_s // 12
        bucket = time_s // seconds
        ring = self.ring_of(key, id)
        if bucket <= (ring[0] if ring else self.now_s // seconds) - BUCKETS:
            return 1
        if amount > 0:
            values = ring[2] if ring else {}
            before = values.get(bucket, 0)
            newest = max(ring[0], bucket) if ring else bucket
            values[bucket] = min(BUCKET_MAX, before + amount)
            self.rings[key or 1, id] = newest, seconds, {at: value for at, value in values.items() if at > newest - BUCKETS}
            gone_s = (bucket + 1 + BUCKETS) * seconds
            self.give(gone_s // 86_400 + 2, values[bucket] - before, 11, key or 1, id | bucket << 32)
        return 0

    def recent_of(self, key: int, id: int) -> tuple[int, int, dict[int, int]] | None:
        row = self.recents.get((key or 1, id))
        return None if row is None or self.now_s // row[1] > row[0] + BUCKETS - 1 else row

    def recent_with(self, key: int, id: int, time_s: int, window_s: int, fingerprint: int) -> int:
        """How many different ones with this one; above 13 it is 14."""
        row = self.recent_of(key, id)
        if row is None:
            return 1
        newest = max(row[0], time_s // row[1])
        return len({who for who, bucket in row[2].items() if bucket > newest - BUCKETS} | {fingerprint >> 4})

    def recent_add(self, key: int, id: int, time_s: int, window_s: int, fingerprint: int) -> int:
        seconds, who = window_s // 12, fingerprint >> 4
        bucket = time_s // seconds
        row = self.recent_of(key, id)
        if bucket <= (row[0] if row else self.now_s // seconds) - BUCKETS:
            return 1
        newest = max(row[0], bucket) if row else bucket
        seen = {one: at for one, at in (row[2] if row else {}).items() if at > newest - BUCKETS}
        before = seen.get(who)
        if before is None or before < bucket:
            seen[who] = bucket
            seen = dict(sorted(seen.items(), key=lambda one: (one[1], one[0]))[-BUCKETS:])  # the latest; of those seen together the largest
            if who in seen:
                self.give((bucket + 1 + BUCKETS) * seconds // 86_400 + 2, 1, 15, key or 1, id | bucket << 32, who)
        self.recents[key or 1, id] = newest, seconds, seen
        return 0

    def set_of(self, key: int, id: int, window: int) -> tuple[int, set[int], set[int]] | None:
        row = self.sets.get((key or 1, id, window & 1))
        return None if row is None or self.dead(id, row[0]) else row

    def distinct_with(self, key: int, id: int, window: int, fingerprint: int) -> int:
        row = self.set_of(key, id, window)
        return len(row[1] | {fingerprint}) if row and row[0] == window else 1

    def distinct_add(self, key: int, id: int, window: int, fingerprint: int) -> int:
        row = self.set_of(key, id, window)
        if self.nowhere(id, window, row[0] if row else None):
            return 1
        if row is None or row[0] != window:
            row = window, set(), set()
        bit, exact = bit_of(fingerprint), len(row[1]) <= EXACT_MAX
        if exact and fingerprint not in row[1]:
            self.give(dead_day(id & 7, window), 1, 12, key or 1, id | window << 32, fingerprint)
        elif not exact and bit not in row[2]:
            self.give(dead_day(id & 7, window), 1, 12, key or 1, id | window << 32, bit | 1 << 32)
        row[1].add(fingerprint)
        row[2].add(bit)
        self.sets[key or 1, id, window & 1] = row
        return 0

    def digest(self, today: int) -> int:
        """The sum of all that dies later than today, and of what never does."""
        return sum(value for day, value in self.sums.items() if day > today) % 2**128
