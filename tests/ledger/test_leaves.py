"""The compiled leaves against Python's own arithmetic, calendar and published vectors."""

from __future__ import annotations

import hashlib
from calendar import monthrange
from datetime import date, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledger import _probe

EPOCH = date(1970, 1, 1)
I64 = st.integers(-(2**63), 2**63 - 1)
NATURAL = st.integers(0, 2**63 - 1)
POSITIVE = st.integers(1, 2**63 - 1)
WORD = st.integers(0, 2**64 - 1)
DAYS = st.integers(0, (date(2199, 12, 31) - EPOCH).days)


def fits(value: int) -> int | None:
    return value if -(2**63) <= value < 2**63 else None


@given(I64, POSITIVE)
def test_division_rounds_down_also_below_zero(a, b):
    assert _probe.div_floor_(a, b) == a // b


@given(I64, I64)
@example(2**63 - 1, 1)
@example(-(2**63), -1)
def test_sums_and_products_that_do_not_fit_are_seen(a, b):
    assert _probe.add_overflow_(a, b) == fits(a + b)
    assert _probe.mul_overflow_(a, b) == fits(a * b)


@given(NATURAL, NATURAL, POSITIVE)
@example(2**63 - 1, 2**63 - 1, 1)
@example(2**63 - 1, 2**63 - 1, 2**63 - 1)
def test_products_are_divided_in_128_bits(a, b, c):
    assert _probe.mul_div_floor_(a, b, c) == fits(a * b // c)


@given(NATURAL, POSITIVE, st.data())
@example(2**31, 2**31, None)
def test_shares_come_with_their_remainder(a, c, data):
    b = c if data is None else data.draw(st.integers(0, c))
    assert _probe.mul_div_rem_(a, b, c) == divmod(a * b, c)


@given(DAYS)
def test_days_are_those_of_the_calendar(days):
    day = EPOCH + timedelta(days=days)
    assert _probe.civil_from_day_(days) == (day.year, day.month, day.day)
    assert _probe.day_from_civil_(day.year, day.month, day.day) == days


@given(DAYS, st.integers(0, 600))
@example((date(2024, 1, 31) - EPOCH).days, 1)
@example((date(2024, 2, 29) - EPOCH).days, 12)
def test_months_later_is_the_same_day_or_the_last(days, months):
    start = EPOCH + timedelta(days=days)
    year, month = start.year + (start.month - 1 + months) // 12, (start.month - 1 + months) % 12 + 1
    expected = date(year, month, min(start.day, monthrange(year, month)[1]))
    assert _probe.day_add_months_(days, months) == (expected - EPOCH).days


@given(st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(19991201, 22010101), st.builds(
    lambda year, month, day: year * 10000 + month * 100 + day, st.integers(1999, 2200), st.integers(0, 13), st.integers(0, 32))))
def test_yyyymmdd_is_a_calendar_date_or_refused(value):
    try:
        day = date(value // 10000, value // 100 % 100, value % 100)
    except ValueError:
        day = None
    expected = (day - EPOCH).days if day is not None and 2000 <= day.year <= 2199 else -1
    assert _probe.day_from_yyyymmdd_(value) == expected


def test_siphash_gives_the_published_vectors():
    # https://github.com/veorq/SipHash, vectors.h, vectors_sip128: key 00..0f, message i is the bytes 00..i-1.
    first = ["a3817f04ba25a8e66df67214c7550293", "da87c1d86b99af44347659119b22fc45", "8177228da4a45dc7fca38bdef60affe4",
             "9c70b60c5267a94e5f33b6b02985ed51", "f88164c12d9c8faf7d0f6e7c7bcd5579", "1368875980776f8854527a07690e9627",
             "14eeca338b208613485ea0308fd7a15e", "a1f1ebbed8dbc153c0b84aa61ff08239"]
    found = [_probe.siphash_(bytes(range(16)), bytes(range(i))) for i in range(64)]
    assert [value.hex() for value in found[:8]] == first
    assert hashlib.sha256(b"".join(found)).hexdigest() == "ecfaa9fe47ff788fa834a9863ea2715a2880cd37d2b8c3c194402838428119b9"


def fold(a: int, b: int) -> int:
    return (a * b & (2**64 - 1)) ^ (a * b >> 64)


def rotl(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & (2**64 - 1)


@given(st.tuples(WORD, WORD, WORD, WORD, WORD, WORD))
def test_a_fact_hashes_as_the_journal_format_says(w):
    x = fold(w[0] ^ 0xA0761D6478BD642F, w[1] ^ 0xE7037ED1A0B428DB)
    y = fold(w[2] ^ 0x8EBC6AF09C88C6E3, w[3] ^ 0x589965CC75374CC3)
    z = fold(w[4] ^ 0x1D8E4E27C47D124F, w[5] ^ 0xEB44ACCAB455D165)
    low = fold(x ^ rotl(y, 23), z ^ 0x9E3779B97F4A7C15)
    high = fold(y ^ rotl(z, 41) ^ low, x ^ 0xC2B2AE3D27D4EB4F)
    assert _probe.fact_hash_(*w) == low | high << 64


@given(st.lists(st.integers(0, 2**128 - 1)), st.lists(st.integers(0, 2**128 - 1)))
def test_digests_add_and_subtract_modulo_2_to_the_128(facts, gone):
    assert _probe.digest_sum(facts, gone) == (sum(facts) - sum(gone)) % 2**128


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def signed(value: int) -> bytes:
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


FIELD = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 255)), st.tuples(st.just("varint"), WORD), st.tuples(st.just("signed"), I64),
    st.tuples(st.just("bytes"), st.binary(min_size=16, max_size=16)), st.tuples(st.just("text"), st.binary(max_size=128)),
    st.tuples(st.just("tag"), st.integers(1, 127), I64), st.tuples(st.just("tag_text"), st.integers(128, 255), st.binary(max_size=64)),
)


def encoded(field: tuple) -> bytes:
    """A field as docs/journal-format.md writes it."""
    value = field[-1]
    head = bytes([field[1]]) if field[0].startswith("tag") else b""
    if field[0].endswith("text"):
        return head + bytes([len(value)]) + value
    if field[0] in ("byte", "bytes"):
        return bytes([value]) if field[0] == "byte" else value
    return head + (varint(value) if field[0] == "varint" else signed(value))


@given(st.lists(FIELD, max_size=20), st.sets(st.integers(1, 13)), I64, st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16))
def test_an_entry_has_the_bytes_that_the_journal_format_says(fields, types, time_us, member, request_hash):
    sections = [(kind, fields) for kind in sorted(types)]
    entry = _probe.entry_write((3, 1, 30, time_us, member, 7, request_hash), sections)
    body = b"".join(map(encoded, fields))
    expected = b"".join(bytes([kind]) + len(body).to_bytes(3, "little") + body for kind, _ in sections)
    header = ((40 + len(expected)).to_bytes(4, "little") + bytes([3, 1]) + (30).to_bytes(2, "little")
              + time_us.to_bytes(8, "little", signed=True) + member.to_bytes(4, "little") + (7).to_bytes(4, "little") + request_hash)
    assert entry == header + expected
    assert _probe.entry_sections(entry) == {kind: body for kind, _ in sections}


@given(st.lists(FIELD, max_size=20))
def test_a_section_reads_back_what_was_written(fields):
    entry = _probe.entry_write((1, 0, 0, 0, 0, 0, bytes(16)), [(1, fields)])
    kinds, values = [], []
    for field in fields:
        if field[0].startswith("tag"):
            kinds.append("byte")
            values.append(field[1])
        kinds.append({"tag": "signed", "tag_text": "text", "bytes": 16}.get(field[0], field[0]))
        values.append(field[-1])
    assert _probe.section_read(_probe.entry_sections(entry)[1], kinds) == (values, False, False)


@settings(max_examples=500)
@given(st.binary(max_size=60), st.lists(st.sampled_from(["byte", "varint", "signed", "text", 16]), max_size=12))
def test_a_damaged_section_breaks_and_then_gives_zeros(section, kinds):
    values, broken, more = _probe.section_read(section, kinds)
    assert len(values) == len(kinds)
    assert not (broken and more)
    if broken:
        assert _probe.section_read(section, [*kinds, "varint"])[0][-1] == 0


@pytest.mark.parametrize("size", [*range(1, 40), 41, 43])
def test_an_entry_cut_short_is_refused(size):
    entry = _probe.entry_write((1, 0, 0, 0, 0, 0, bytes(16)), [(1, [("text", b"abc")])])
    assert len(entry) == 48
    assert _probe.entry_sections(entry[:size]) is None
    assert _probe.entry_sections(size.to_bytes(4, "little") + entry[4:size]) is None


def test_a_section_that_stands_twice_or_reaches_past_the_end_is_refused():
    entry = bytearray(_probe.entry_write((1, 0, 0, 0, 0, 0, bytes(16)), [(1, [("byte", 1)]), (2, [("byte", 1)])]))
    entry[45] = 1
    assert _probe.entry_sections(bytes(entry)) is None
    entry[45], entry[46] = 2, 2
    assert _probe.entry_sections(bytes(entry)) is None
    entry[45], entry[46] = 200, 1  # a type of a later version is kept and skipped
    assert _probe.entry_sections(bytes(entry)) == {1: b"\x01"}
