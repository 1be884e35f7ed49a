"""The compiled image against the reference interpreter, the calendar of `zoneinfo`, damage, and time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger._probe import LoadedProgram

from ledger import limits
from ledger.rules import compile_file, lower, zones
from ledger.rules import reference_v1 as reference
from ledger.rules.model_v1 import LifeUnit, PerStep, Program, Wallet

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "base-v1.image"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# One of each kind: no changes, usual summer time, midnight changes (Beirut, Sao Paulo, Havana), half hours (Lord Howe), changes set back
# over midnight (St John's), a skipped day (Apia), a changed base offset (Caracas), Ramadan (Casablanca), all in the south.
ZONES = ["UTC", "Europe/Warsaw", "America/New_York", "Asia/Beirut", "America/Sao_Paulo", "America/Havana", "Australia/Lord_Howe",
         "America/St_Johns", "Pacific/Apia", "America/Caracas", "Africa/Casablanca", "Pacific/Chatham"]


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def programme(zone: str = "UTC", rules: tuple[PerStep, ...] = (), wallets: int = 1) -> Program:
    return Program(name="Test", currency="USD", currency_digits=2, zone=zone, anonymous_accounts=True, max_age_days=30,
                   wallets=tuple(Wallet(f"w{i}", i % 10) for i in range(wallets)), funders=(), rules=rules)


@lru_cache
def loaded(program: Program) -> LoadedProgram:
    return LoadedProgram(lower.lower_program(program))


@st.composite
def rules(draw) -> PerStep:
    unit = draw(st.sampled_from(LifeUnit))
    life = 0 if unit is LifeUnit.NEVER_ENDS else draw(st.integers(1, 600))
    amount = st.one_of(st.integers(1, 1000), st.integers(1, limits.AMOUNT_MINOR_MAX))
    give = st.one_of(st.integers(1, 50), st.integers(1, limits.POINTS_PER_STEP_MAX))
    return PerStep("rule", step=draw(amount), give=draw(give), wallet=draw(st.integers(0, 2)), funder=draw(st.integers(0, 65535)),
                   life_unit=unit, life=life, available_after=draw(st.integers(0, 400)))


AMOUNTS = st.lists(st.one_of(st.sampled_from([0, 1, 99, 100]), st.integers(0, 100_000), st.integers(0, 10**9)), max_size=40)
MOMENTS = st.integers(us(datetime(2000, 1, 1, tzinfo=UTC)), us(datetime(2199, 12, 1, tzinfo=UTC)))


@settings(max_examples=300, deadline=None)
@given(st.lists(rules(), max_size=4), AMOUNTS, MOMENTS, st.sampled_from(ZONES), st.integers(0, limits.AMOUNT_MINOR_MAX))
def test_the_compiled_programme_gives_what_the_reference_gives(some_rules, amounts, moment, zone, lineless_total):
    program = programme(zone, tuple(some_rules), wallets=3)
    total = sum(amounts) if amounts else lineless_total
    try:
        expected = [tuple(award) for award in reference.evaluate(program, total, amounts, moment)]
    except reference.Overflow:
        expected = None
    assert loaded(program).evaluate(total, amounts, moment) == expected


def per_step(step: int, give: int) -> PerStep:
    return PerStep("rule", step=step, give=give, wallet=0, funder=0, life_unit=LifeUnit.MONTHS, life=12, available_after=0)


@pytest.mark.parametrize(("total", "points"), [(0, 0), (99, 0), (100, 5), (199, 5), (200, 10), (limits.AMOUNT_MINOR_MAX, 50_000_000_000)])
def test_only_full_steps_count(total, points):
    awards = loaded(programme(rules=(per_step(100, 5),))).evaluate(total, [], us(datetime(2026, 1, 31, 12, tzinfo=UTC)))
    day = (date(2026, 1, 31) - date(1970, 1, 1)).days
    assert awards == ([(0, 1, 0, 0, points, day, day + 365)] if points else [])


@pytest.mark.parametrize(("amounts", "shares"), [
    ([100, 100, 100], {1: 2, 2: 2, 3: 1}),       # 5 points: two ties go to the earlier lines
    ([0, 300, 0], {2: 5}),                       # lines without a price get nothing
    ([1, 299], {2: 5}),                          # 0.017 loses against 0.983
    ([30, 120, 150], {1: 1, 2: 2, 3: 2}),        # 0.5, 2.0, 2.5: the tie goes to the earlier line
])
def test_points_are_shared_by_largest_remainder(amounts, shares):
    awards = loaded(programme(rules=(per_step(300, 5),))).evaluate(300, amounts, 0)
    assert {line: points for line, _, _, _, points, _, _ in awards} == shares


def test_the_largest_receipt_is_shared_exactly():
    amounts = [(i * 7919) % 1000 for i in range(limits.LINES_MAX)]
    program = programme(rules=tuple(per_step(1, give) for give in (1, 3, 7)))
    awards = loaded(program).evaluate(sum(amounts), amounts, 0)
    assert awards == [tuple(award) for award in reference.evaluate(program, sum(amounts), amounts, 0)]


def test_awards_that_would_not_fit_go_to_the_receipt_as_a_whole():
    amounts = [100] * limits.LINES_MAX
    program = programme(rules=tuple(per_step(100, 1) for _ in range(10)))
    awards = loaded(program).evaluate(sum(amounts), amounts, 0)
    assert awards == [tuple(award) for award in reference.evaluate(program, sum(amounts), amounts, 0)]
    assert len(awards) <= limits.AWARDS_MAX
    assert sum(award[4] for award in awards) == 10 * limits.LINES_MAX
    assert {award[0] for award in awards if award[1] == 10} == {0}


def test_more_than_the_largest_number_of_points_is_an_overflow():
    program = programme(rules=(per_step(1, limits.POINTS_PER_STEP_MAX),))
    assert loaded(program).evaluate(1_000_000, [], 0)[0][4] == limits.POINTS_MAX
    assert loaded(program).evaluate(1_000_001, [], 0) is None


def expected_day(zone: str, moment: int) -> int:
    """The latest local date of this moment and the hours before it: where clocks are set back over midnight, the new day stays."""
    info = zones.load(zone)
    dates = [(EPOCH + timedelta(microseconds=moment) - timedelta(minutes=back)).astimezone(info).date() for back in range(0, 181, 1)]
    return (max(dates) - date(1970, 1, 1)).days


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ZONES), MOMENTS)
def test_the_day_of_a_moment_is_the_zones_own(zone, moment):
    day = loaded(programme(zone)).day(moment)
    assert day == expected_day(zone, moment) == reference.day_of(programme(zone), moment)


@pytest.mark.parametrize("zone", ZONES)
def test_days_hold_on_both_sides_of_every_change_of_offset(zone):
    program = loaded(programme(zone))
    spans = [span for span in zones.spans(zone)[1:] if span.start_us < us(datetime(2040, 1, 1, tzinfo=UTC))]
    for span in spans:
        for seconds in (-86400, -3600, -60, -1, 0, 1, 60, 1800, 3600, 86400):
            moment = span.start_us + seconds * 1_000_000
            assert program.day(moment) == expected_day(zone, moment)
        assert program.day(span.start_us - 1) <= program.day(span.start_us)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ZONES), st.integers(7306, 84000))
@example("Pacific/Apia", (date(2011, 12, 30) - date(1970, 1, 1)).days)  # the day that Samoa left out
@example("America/Sao_Paulo", (date(2018, 11, 4) - date(1970, 1, 1)).days)  # has no midnight
@example("Asia/Beirut", (date(2022, 3, 27) - date(1970, 1, 1)).days)  # has no midnight
@example("America/St_Johns", (date(2008, 11, 2) - date(1970, 1, 1)).days)  # has two
def test_a_day_starts_at_its_first_moment(zone, day):
    program = loaded(programme(zone))
    start = program.day_start_us(day)
    assert program.day(start) >= day and program.day(start - 1) < day
    if zone not in ("Pacific/Apia",):
        assert program.day(start) == day


def test_wallets_are_found_by_their_whole_name():
    two = replace(programme(), wallets=(Wallet("points", 0), Wallet("w" * 32, 9)))
    program = LoadedProgram(lower.lower_program(two))
    assert program.wallets == [("points", 0), ("w" * 32, 9)]
    assert [program.wallet(name) for name in (b"points", b"w" * 32, b"point", b"pointss", b"", b"w" * 31)] == [0, 1, -1, -1, -1, -1]


def base() -> bytes:
    return compile_file(ROOT / "programs" / "base.yaml").image


def test_an_image_of_the_first_version_loads_for_ever():
    program = LoadedProgram(GOLDEN.read_bytes())
    assert program.wallets == [("points", 0)]
    day = (date(2026, 11, 22) - date(1970, 1, 1)).days
    noon = us(datetime(2026, 11, 22, 17, tzinfo=UTC))
    assert program.evaluate(1234, [1000, 234], noon) == [(1, 1, 0, 0, 49, day, day + 365), (2, 1, 0, 0, 11, day, day + 365)]
    assert program.day_start_us(day) == us(datetime(2026, 11, 22, 5, tzinfo=UTC))


def refused(image: bytes) -> bool:
    try:
        LoadedProgram(image)
    except ValueError:
        return True
    return False


def test_an_image_with_any_flipped_bit_is_refused():
    image = base()
    for at in range(0, len(image), 1):
        damaged = bytearray(image)
        damaged[at] ^= 1 << at % 8
        assert refused(bytes(damaged)), f"byte {at}"


def test_an_image_cut_short_or_longer_is_refused():
    image = base()
    for size in [*range(0, 200), *range(200, len(image), 97), len(image) - 1]:
        assert refused(image[:size])
    assert refused(image + bytes(8))


def signed_again(image: bytearray) -> bytes:
    """An image whose hash was made to fit what it says: made by somebody else's compiler, not by chance."""
    image[8:40] = hashlib.sha256(image[40:]).digest()
    return bytes(image)


def test_the_hash_alone_does_not_make_an_image_right():
    image = base()
    assert not refused(signed_again(bytearray(image)))
    header = np.frombuffer(image, lower.HEADER, 1)[0]
    wallets, rules_at, ops, zone = (int(section["offset"]) for section in header["sections"])
    wrong = {
        "size": (48, 0xFFFFFFFF, 4), "flags": (52, 2, 4), "max_age": (40, 2**64 - 1, 8), "currency": (56, 0x30, 1), "reserved": (60, 1, 4),
        "currency end": (59, 0x41, 1), "zone name": (64, 0, 1), "tzdata": (104, 7, 1), "name padding": (159, 0x41, 1),
        "wallets offset": (160, 200, 4), "wallets none": (164, 0, 4), "wallets 17": (164, 17, 4), "rules 2^31": (172, 2**31, 4),
        "ops offset": (176, 8, 4), "zone count": (188, 2**32 - 1, 4), "zone none": (188, 0, 4),
        "wallet name": (wallets, 0, 1), "wallet scale": (wallets + 32, 10, 4), "wallet reserved": (wallets + 36, 1, 4),
        "rule name": (rules_at, 0, 1), "step 0": (ops, 0, 8), "step negative": (ops, 2**64 - 1, 8), "step large": (ops, 10**12 + 1, 8),
        "give 0": (ops + 8, 0, 8), "give large": (ops + 8, 10**6 + 1, 8),
        "op reserved": (ops + 16, 1, 8), "op reserved 2": (ops + 24, 1, 8),
        "rule 0": (ops + 32, 0, 4), "rule 2": (ops + 32, 2, 4), "code 0": (ops + 36, 0, 2), "code 2": (ops + 36, 2, 2),
        "wallet 1": (ops + 38, 1, 2), "delay": (ops + 42, 18251, 2), "life 0": (ops + 44, 0, 2), "life large": (ops + 44, 18251, 2),
        "unit 3": (ops + 46, 3, 1), "unit never, life 12": (ops + 46, 0, 1), "scope line": (ops + 47, 2, 1),
        "zone start": (zone + 16, 2**64 - 1, 8), "zone order": (zone + 16, 0, 8), "zone far": (zone + 16, 2**62, 8),
        "offset": (zone + 8, 86401, 4), "offset negative": (zone + 8, 2**32 - 86401, 4), "first day": (zone + 12, 2**31, 4),
        "first day order": (zone + 12, 50000, 4),
    }
    accepted = []
    for what, (at, value, size) in wrong.items():
        damaged = bytearray(image)
        damaged[at:at + size] = value.to_bytes(size, "little")
        assert damaged != image, what
        if not refused(signed_again(damaged)):
            accepted.append(what)
    assert accepted == []


def test_two_wallets_of_one_name_are_refused():
    program = programme(wallets=2)
    image = bytearray(lower.lower_program(program))
    image[192 + 40:192 + 72] = image[192:192 + 32]
    assert refused(signed_again(image))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(40, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_image_with_a_right_hash_is_refused_or_runs_safely(mutations):
    image = bytearray(base_once())
    for at, value in mutations:
        image[at] = value
    try:
        program = LoadedProgram(signed_again(image))
    except ValueError:
        return
    awards = program.evaluate(123_456, [100_000, 23_456], us(datetime(2026, 1, 1, tzinfo=UTC)))
    assert awards is None or all(award[4] > 0 for award in awards)


@lru_cache
def base_once() -> bytes:
    return base()
