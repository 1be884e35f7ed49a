"""Limits of a checked programme to the sections VELOCITY and LIMITS of its image.

Not for what a limit may say (`velocity.py`) nor for counting (the core). The records are in `image2.py`, what they mean in
docs/decisions/fraud.md. Called by `lower2.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from ledger.rules import tree
from ledger.rules.image2 import LIMIT, VELOCITY, LimitFlag
from ledger.rules.lower_conditions import LimitExceeded


def lower_limits(programme: tree.Programme) -> tuple[np.ndarray, np.ndarray]:
    """Records of the counters and of the limits. LimitExceeded: two counters have one id."""
    index = {counter: i for i, counter in enumerate(programme.counters, start=1)}
    counters, limits = np.zeros(len(index), VELOCITY), np.zeros(len(programme.limits), LIMIT)
    for counter, row in zip(index, counters, strict=True):
        row["id"], row["window_s"] = counter_id(counter), counter.window_s
        row["flags"] = LimitFlag.VOLATILE * counter.volatile | LimitFlag.GIVES_BACK * counter.gives_back
        what_counts(programme, counter, row)
    _no_two_alike(programme)
    for limit, row in zip(programme.limits, limits, strict=True):
        what_counts(programme, limit.counts, row)
        row["name"], row["at_most"], row["mean_after"] = limit.name.encode(), limit.at_most, limit.mean_after
        places = [index[counter] for counter in limit.counters]
        if limit.mean_after:
            row["mean_sum"], row["mean_count"] = places
        elif places:
            row["counter"] = places[0]
        row["action"] = 1 + tree.ACTIONS.index(limit.then)
        row["rung"] = 0 if limit.rung is None else 1 + tree.RUNGS.index(limit.rung)
        row["rung_s"] = limit.lasts_s
    return counters, limits


def what_counts(programme: tree.Programme, counter: tree.Counter, row: np.void) -> None:
    """The fields that a counter and a limit both have."""
    row["of"], row["keys"] = _bits(tree.OF, counter.of), _bits(tree.KEYS, counter.per)
    row["measure"], row["window"] = 1 + tree.MEASURES.index(counter.measure), tree.LIMIT_WINDOWS.index(counter.window)
    segments = _bits(programme.segments, counter.segments)
    row["segments"] = segments & 2**64 - 1, segments >> 64


def counter_id(counter: tree.Counter) -> int:
    """A counter's number in the state: a hash of what it says, whose low 3 bits are its window."""
    hashed = int.from_bytes(hashlib.sha256(tree.counter_text(counter).encode()).digest()[:4], "little")
    return hashed & ~7 | tree.LIMIT_WINDOWS.index(counter.window)


def region_prints(programme: tree.Programme) -> dict[str | None, int]:
    """The fingerprint of each region; none where no limit counts regions. LimitExceeded: two are alike."""
    if all(counter.measure != "regions" for counter in programme.counters):
        return {}
    found: dict[str | None, int] = {}
    taken: dict[int, str] = {}
    for name in sorted({store.region for store in programme.stores.values() if store.region}):
        found[name] = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") or 1
        if taken.setdefault(found[name] >> 4, name) != name:  # a sliding window keeps 28 bits of it
            raise LimitExceeded(f"stores: the short hashes of the regions {taken[found[name] >> 4]!r} and {name!r} cannot be told apart, "
                                "one must have another name")
    return found


def _no_two_alike(programme: tree.Programme) -> None:
    taken: dict[int, tree.Counter] = {}
    for i, limit in enumerate(programme.limits):
        for counter in limit.counters:
            if taken.setdefault(counter_id(counter), counter) != counter:
                other = next(one.name for one in programme.limits if taken[counter_id(counter)] in one.counters)
                raise LimitExceeded(f"limits[{i}]: the short hashes of what {limit.name!r} and {other!r} count cannot be told apart, must "
                                    "count something else: another window, key or list of segments")


def _bits(names: tuple[str, ...], chosen: Iterable[str]) -> int:
    return sum(1 << names.index(name) for name in chosen)
