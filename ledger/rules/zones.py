"""Time zones from the pinned PyPI `tzdata`, never from the machine: the same programme has the same days everywhere.

Not for clocks. Read by `check.py` (names) and `lower2.py` (spans of constant offset); the compiled twin that walks the
spans is `program_day` in `ledger/_rules.pxd`.
"""

from __future__ import annotations

import io
import struct
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
    return ZoneInfo.from_file(io.BytesIO(_file(name)), key=name)


def _file(name: str) -> bytes:
    if name not in names():
        raise KeyError(name)
    return files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()


@lru_cache(maxsize=64)
def spans(name: str) -> tuple[Span, ...]:
    """The spans from 1990 to 2200."""
    zone = load(name)

    def offset(second: int) -> int:
        return round((EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset() / timedelta(seconds=1))

    first, last = _s(FIRST), _s(LAST)
    written = [first, *(change for change in _changes(_file(name)) if first < change < last)]
    # Behind the last change that is written out a rule repeats itself, at most twice a year: it is probed.
    changes, before = written[1:], written[-1]
    while before < last:
        after = min(before + _PROBE_S, last)
        was = offset(before)
        if offset(after) != was:
            low, high = before, after  # the change is in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == was else (low, middle)
            changes.append(high)
        before = after
    found = [Span(first * 1_000_000, offset(first), 0)]
    for change in changes:
        now = offset(change)
        if now != found[-1].offset_s:
            last_day = (change * 1_000_000 - 1 + found[-1].offset_s * 1_000_000) // DAY_US
            found.append(Span(change * 1_000_000, now, max(last_day, (change + now) * 1_000_000 // DAY_US)))
    return tuple(found)


_PROBE_S = 21 * 86_400  # no rule that repeats itself changes twice within three weeks
_HEADER = struct.Struct(">4sc15x6I")


def _changes(data: bytes) -> tuple[int, ...]:
    """The moments (seconds since 1970) that a TZif file (RFC 9636) writes out: the second part, of 64 bits."""
    _, version, utc, wall, leap, times, kinds, letters = _HEADER.unpack_from(data)
    assert version >= b"2", "pinned zone data is of version 2 or later"
    at = _HEADER.size + times * 5 + kinds * 6 + letters + leap * 8 + wall + utc
    times = _HEADER.unpack_from(data, at)[5]
    return struct.unpack_from(f">{times}q", data, at + _HEADER.size)


def _s(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(seconds=1)
