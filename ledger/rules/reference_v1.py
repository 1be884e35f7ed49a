"""What a programme of image version 1 gives, computed slowly and obviously: the meaning that `program_evaluate` must match.

Not for the service. Read by tests and by the oracle, which lives on it.
"""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from ledger import limits
from ledger.rules import zones
from ledger.rules.model_v1 import LifeUnit, PerStep, Program

DAY_NEVER = 2_147_483_647


class Award(NamedTuple):
    """Points that a rule gave to a line (from 1; 0: the receipt as a whole). Days count from 1970 in the programme's zone."""

    line: int
    rule: int
    wallet: int
    funder: int
    points: int
    available_day: int
    expiry_day: int


class Overflow(Exception):
    """A rule gives more than POINTS_MAX points."""


def day_of(program: Program, time_us: int) -> int:
    """The day (since 1970) of a moment in the programme's zone; where clocks are set back over midnight, the new day stays."""
    zone, moment = zones.load(program.zone), zones.EPOCH + timedelta(microseconds=time_us)
    # No zone is set back by more than three hours.
    day = max(moment.astimezone(zone).date(), (moment - timedelta(hours=3)).astimezone(zone).date())
    return (day - date(1970, 1, 1)).days


@lru_cache(maxsize=4096)
def day_start_us(program: Program, day: int) -> int:
    """The first moment of a day in the programme's zone, or the first behind it where the zone skips the day."""
    low, high = (day - 2) * zones.DAY_US, (day + 2) * zones.DAY_US
    while high - low > 1:  # low is before the day, high is not
        middle = (low + high) // 2
        low, high = (middle, high) if day_of(program, middle) < day else (low, middle)
    return high


def day_number(yyyymmdd: int) -> int:
    """Days since 1970 of a date written as yyyymmdd; -1: no date of the years 2000..2199."""
    try:
        day = date(yyyymmdd // 10000, yyyymmdd // 100 % 100, yyyymmdd % 100)
    except ValueError:
        return -1
    return (day - date(1970, 1, 1)).days if 2000 <= day.year <= 2199 else -1


def expiry_day(rule: PerStep, today: int) -> int:
    """The first day on which points of `today` do not count."""
    if rule.life_unit is LifeUnit.NEVER_ENDS:
        return DAY_NEVER
    if rule.life_unit is LifeUnit.DAYS:
        return today + rule.life
    start = date(1970, 1, 1) + timedelta(days=today)
    years, month = divmod(start.month - 1 + rule.life, 12)
    year = start.year + years
    last = calendar.monthrange(year, month + 1)[1]
    return (date(year, month + 1, min(start.day, last)) - date(1970, 1, 1)).days


def spread(points: int, amounts: list[int]) -> list[int]:
    """Points shared pro rata to the amounts, in whole points by largest remainder, ties to the earlier line."""
    exact = [Fraction(points * amount, sum(amounts)) for amount in amounts]
    shares = [int(part) for part in exact]
    by_claim = sorted(range(len(amounts)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_claim[:points - sum(shares)]:
        shares[i] += 1
    return shares


def evaluate(program: Program, total: int, amounts: list[int], business_time_us: int) -> list[Award]:
    """The awards of a receipt of `total` minor units whose lines cost `amounts`. Overflow: a rule gives too much."""
    today = day_of(program, business_time_us)
    awards: list[Award] = []
    for number, rule in enumerate(program.rules, start=1):
        points = total // rule.step * rule.give
        if points > limits.POINTS_MAX:
            raise Overflow
        if points == 0:
            continue
        rules_left = len(program.rules) - number
        fits = amounts and len(awards) + len(amounts) + rules_left <= limits.AWARDS_MAX
        shares = list(enumerate(spread(points, amounts), start=1)) if fits else [(0, points)]
        awards += [Award(line, number, rule.wallet, rule.funder, share, today + rule.available_after, expiry_day(rule, today))
                   for line, share in shares if share > 0]
    return awards
