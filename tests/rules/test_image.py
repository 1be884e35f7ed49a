"""Images of version 1, which old journals hold: they load for ever, and whatever is not one is refused. Days and zones of every image.

What images of version 2 do is in test_evaluate.py, damage to them in test_evaluate_damage.py.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger._probe import LoadedProgram

from ledger.published import told_of
from ledger.rules import compile_source, zones

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = (ROOT / "tests" / "golden" / "base-v1.image").read_bytes()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# One of each kind: no changes, usual summer time, midnight changes (Beirut, Sao Paulo, Havana), half hours (Lord Howe), changes set back
# over midnight (St John's), a skipped day (Apia), a changed base offset (Caracas), Ramadan (Casablanca), all in the south.
ZONES = ["UTC", "Europe/Warsaw", "America/New_York", "Asia/Beirut", "America/Sao_Paulo", "America/Havana", "Australia/Lord_Howe",
         "America/St_Johns", "Pacific/Apia", "America/Caracas", "Africa/Casablanca", "Pacific/Chatham"]


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@lru_cache
def loaded(zone: str) -> LoadedProgram:
    """A programme of that zone, as the service loads it."""
    source = f"programme: Days\ncurrency: USD\nzone: {zone}\nwallets: [{{name: points}}]\nrules: []\n"
    return LoadedProgram(compile_source(source.encode()).image)


MOMENTS = st.integers(us(datetime(2000, 1, 1, tzinfo=UTC)), us(datetime(2199, 12, 1, tzinfo=UTC)))


def expected_day(zone: str, moment: int) -> int:
    """The latest local date of this moment and the hours before it: where clocks are set back over midnight, the new day stays."""
    info = zones.load(zone)
    dates = [(EPOCH + timedelta(microseconds=moment) - timedelta(minutes=back)).astimezone(info).date() for back in range(0, 181, 1)]
    return (max(dates) - date(1970, 1, 1)).days


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ZONES), MOMENTS)
def test_the_day_of_a_moment_is_the_zones_own(zone, moment):
    assert loaded(zone).day(moment) == expected_day(zone, moment)


@pytest.mark.parametrize("zone", ZONES)
def test_days_hold_on_both_sides_of_every_change_of_offset(zone):
    program = loaded(zone)
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
    program = loaded(zone)
    start = program.day_start_us(day)
    assert program.day(start) >= day and program.day(start - 1) < day
    if zone not in ("Pacific/Apia",):
        assert program.day(start) == day


def test_wallets_are_found_by_their_whole_name():
    two = f"programme: Two\ncurrency: USD\nzone: UTC\nwallets: [{{name: points}}, {{name: {'w' * 32}, scale: 9}}]\nrules: []\n"
    program = LoadedProgram(compile_source(two.encode()).image)
    assert program.wallets == list(told_of(compile_source(two.encode()).image).wallets) == [("points", 0), ("w" * 32, 9)]
    assert [program.wallet(name) for name in (b"points", b"w" * 32, b"point", b"pointss", b"", b"w" * 31)] == [0, 1, -1, -1, -1, -1]


def test_an_image_of_the_first_version_loads_for_ever():
    program = LoadedProgram(GOLDEN)
    assert program.wallets == list(told_of(GOLDEN).wallets) == [("points", 0)]
    day = (date(2026, 11, 22) - date(1970, 1, 1)).days
    assert program.day(us(datetime(2026, 11, 22, 17, tzinfo=UTC))) == day
    assert program.day_start_us(day) == us(datetime(2026, 11, 22, 5, tzinfo=UTC))


def refused(image: bytes) -> bool:
    try:
        LoadedProgram(image)
    except ValueError:
        return True
    return False


def test_an_image_with_any_flipped_bit_is_refused():
    image = GOLDEN
    for at in range(0, len(image), 1):
        damaged = bytearray(image)
        damaged[at] ^= 1 << at % 8
        assert refused(bytes(damaged)), f"byte {at}"


def test_an_image_cut_short_or_longer_is_refused():
    image = GOLDEN
    for size in [*range(0, 200), *range(200, len(image), 97), len(image) - 1]:
        assert refused(image[:size])
    assert refused(image + bytes(8))


def signed_again(image: bytearray) -> bytes:
    """An image whose hash was made to fit what it says: made by somebody else's compiler, not by chance."""
    image[8:40] = hashlib.sha256(image[40:]).digest()
    return bytes(image)


def test_the_hash_alone_does_not_make_an_image_right():
    image = GOLDEN
    assert not refused(signed_again(bytearray(image)))
    wallets, rules_at, ops, zone = (int.from_bytes(image[at:at + 4], "little") for at in range(160, 192, 8))
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


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(40, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_image_with_a_right_hash_is_refused_or_read_safely(mutations):
    image = bytearray(GOLDEN)
    for at, value in mutations:
        image[at] = value
    try:
        program = LoadedProgram(signed_again(image))
    except ValueError:
        return
    assert 0 <= program.day(us(datetime(2026, 1, 1, tzinfo=UTC))) < 40_000
