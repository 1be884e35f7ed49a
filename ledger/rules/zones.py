"""Time zones from the pinned PyPI `tzdata`, never from the machine: the same programme has the same days everywhere.

Not for clocks. Read by `check.py` (names) and `lower.py` (spans of constant offset); the compiled twin that walks the
spans is `program_day` in `ledger/_rules.pxd`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple
from zoneinfo import ZoneInfo

import tzdata

FIRST, LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000


class Span(NamedTuple):
    """A span of constant offset, up to the next one's start. The first one also covers everything before it."""

    start_us: int  # us since 1970, UTC
    offset_s: int  # local time - UTC
    first_day: int  # no moment of the span belongs to an earlier day


def release() -> str:
    """The release of the zone data, such as 2026a."""
    return tzdata.IANA_VERSION


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """All zone names."""
    return frozenset(files("tzdata").joinpath("zones").read_text().split())


@lru_cache(maxsize=64)
def load(name: str) -> ZoneInfo:
    """The zone from `tzdata`. KeyError: no such zone."""
    if name not in names():
        raise KeyError(name)
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


@lru_cache(maxsize=64)
def spans(name: str) -> tuple[Span, ...]:
    """The spans from 1990 to 2200. Since 1990 no two changes of a zone are less than a day apart, so days are probed."""
    zone = load(name)

    def offset(moment: datetime) -> int:
        return round(moment.astimezone(zone).utcoffset() / timedelta(seconds=1))

    found = [Span(_us(FIRST), offset(FIRST), 0)]
    before = FIRST
    while before < LAST:
        after = before + timedelta(days=1)
        if offset(after) != found[-1].offset_s:
            low, high = before, after  # the change is in (low, high]
            while high - low > timedelta(seconds=1):
                middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
                low, high = (middle, high) if offset(middle) == found[-1].offset_s else (low, middle)
            start_us = _us(high)
            last_day = (start_us - 1 + found[-1].offset_s * 1_000_000) // DAY_US
            first_day = max(last_day, (start_us + offset(high) * 1_000_000) // DAY_US)
            found.append(Span(start_us, offset(high), first_day))
        before = after
    return tuple(found)


def _us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)
