"""The codec of the checkout messages and of those by hand against google.protobuf, both ways."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import errors, limits
from server import _local
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.server.wire_model import FIELD_INVALID, MESSAGE_MALFORMED, METHODS, SNIPPETS, Fault, command_of, mutate, parse, request

DETAILS_BYTES_MAX, MESSAGE_BYTES_MAX = 1024, 512


def agree(method: int, data: bytes) -> str:
    """Decode with both and compare everything; returns what it came to."""
    message = parse(method, data)
    try:
        got: Any = _local.decode(method, data)
    except ValueError as refusal:
        got = refusal.args
    if message is None:
        assert isinstance(got, tuple), f"google.protobuf refuses what decodes to {got}"
        status, _, _, value = got
        if status == FIELD_INVALID:
            with pytest.raises(UnicodeDecodeError):
                value.decode()
            return "not UTF-8"
        assert status == MESSAGE_MALFORMED
        assert value is None or 0 <= value <= len(data)
        return "malformed"
    try:
        expected: Any = command_of(method, message)
    except Fault as fault:
        expected = fault.args
    assert got == expected
    return "refused" if isinstance(expected, tuple) else "decoded"


# --- requests ----------------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.sampled_from(("points", "S042", "4001234567890", "a-request-id-0123", "Zürich", "чек", "收据", "a@b")),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=70),
    st.text(st.characters(codec="ascii"), max_size=140),
    st.integers(0, 70).map(lambda size: "x" * size),
)
INTEGERS = st.one_of(st.integers(0, 5), st.integers(-(2**63), 2**63 - 1), st.integers(0, limits.POINTS_MAX))
SMALL_INTEGERS = st.one_of(st.integers(-2, 5), st.integers(-(2**31), 2**31 - 1), st.integers(0, 999_999_999))
BYTES = st.one_of(st.binary(max_size=80), st.integers(0, 80).map(bytes), st.just(bytes(limits.QUOTE_TOKEN_BYTES)))
FIELD_TYPES = {9: TEXTS, 3: INTEGERS, 5: SMALL_INTEGERS, 14: SMALL_INTEGERS, 8: st.booleans(), 12: BYTES}  # string, int64, int32, enum ...


@st.composite
def messages(draw: Any, descriptor: Any, message: Any) -> Any:
    """Any message at all of a type: each field set or not, texts and numbers good or bad."""
    for field in descriptor.fields:
        if not draw(st.integers(0, 9)):
            continue
        if field.message_type is not None and field.is_repeated:
            for _ in range(draw(st.integers(0, 3))):
                draw(messages(field.message_type, getattr(message, field.name).add()))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            draw(messages(field.message_type, inner))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(FIELD_TYPES[field.type], max_size=3)))
        elif field.name == "request_id":
            setattr(message, field.name, draw(st.one_of(st.just("a-request-id-0123"), TEXTS)))
        else:
            setattr(message, field.name, draw(FIELD_TYPES[field.type]))
    return message


@pytest.mark.parametrize("method", METHODS)
def test_every_message_decodes_as_google_protobuf_reads_it(method: int) -> None:
    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def check(data: Any) -> None:
        message = data.draw(messages(METHODS[method].DESCRIPTOR, METHODS[method]()))
        agree(method, message.SerializeToString())

    check()


@pytest.mark.parametrize("method", METHODS)
def test_a_message_given_twice_merges(method: int) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def check(data: Any) -> None:
        parts = [data.draw(messages(METHODS[method].DESCRIPTOR, METHODS[method]())).SerializeToString() for _ in range(2)]
        agree(method, b"".join(parts))

    check()


def test_a_till_s_request_decodes_whatever_its_method() -> None:
    chance = random.Random(1)
    for method in METHODS:
        for _ in range(200):
            assert agree(method, request(method, chance).SerializeToString()) == "decoded"


def test_random_bytes_are_refused_or_read_as_google_protobuf_does() -> None:
    @settings(max_examples=1000, deadline=None)
    @given(st.sampled_from(sorted(METHODS)), st.binary(max_size=80))
    def check(method: int, data: bytes) -> None:
        agree(method, data)

    check()


def test_spoilt_requests_are_refused_exactly_when_google_protobuf_refuses_them() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    seen = {"decoded": 0, "refused": 0, "malformed": 0, "not UTF-8": 0}
    for _ in range(20_000):
        method = chance.choice(list(METHODS))
        other = request(chance.choice(list(METHODS)), chance).SerializeToString()
        data = mutate(request(method, chance).SerializeToString(), other, chance)
        seen[agree(method, data)] += 1
    assert min(seen.values()) > 100, f"the mutations have lost their bite: {seen}"


def nested(depth: int) -> bytes:
    return b"\x7b" * depth + b"\x7c" * depth


def framed(tag: int, body: bytes) -> bytes:
    size = len(body)
    return bytes([tag, size]) + body if size < 128 else bytes([tag, size & 0x7F | 0x80, size >> 7]) + body


# Field 5 of a capture is points, field 2 of GetBalance is wallet, field 1 its member.
EDGES = [
    # name                              method  bytes                                           outcome
    ("tenth varint byte 1",             4, b"\x28" + b"\xff" * 9 + b"\x01",                     "refused"),
    ("tenth varint byte 127",           4, b"\x28" + b"\xff" * 9 + b"\x7f",                     "refused"),
    ("eleven varint bytes",             4, b"\x28" + b"\xff" * 10 + b"\x01",                    "malformed"),
    ("varint cut",                      4, b"\x28\x80",                                         "malformed"),
    ("tag of five bytes",               4, b"\xa8\x80\x80\x80\x00\x05",                         "refused"),
    ("tag of six bytes",                4, b"\xa8\x80\x80\x80\x80\x00\x05",                     "malformed"),
    ("tag above 32 bits",               4, b"\xa8\x80\x80\x80\x10\x05",                         "malformed"),
    ("largest field number",            4, b"\xf8\xff\xff\xff\x0f\x05",                         "refused"),
    ("field number 0",                  4, b"\x00\x05",                                         "malformed"),
    ("field number 0 in two bytes",     4, b"\x80\x00\x05",                                     "malformed"),
    ("field number 0 inside a group",   4, b"\x7b\x00\x00\x7c",                                 "refused"),
    ("length of five bytes",            8, b"\x12\x81\x80\x80\x80\x00A",                        "decoded"),
    ("length of six bytes",             8, b"\x12\x81\x80\x80\x80\x80\x00A",                    "malformed"),
    ("length above 31 bits",            8, b"\x12\x80\x80\x80\x80\x08A",                        "malformed"),
    ("length past the end",             8, b"\x12\x02A",                                        "malformed"),
    ("length past the message inside",  8, b"\x0a\x02\x12\x02AA",                               "malformed"),
    ("wire type 6",                     8, b"\x7e\x00",                                         "malformed"),
    ("wire type 7",                     8, b"\x7f\x00",                                         "malformed"),
    ("unknown fixed64",                 8, b"\x79" + bytes(8),                                  "decoded"),
    ("unknown fixed64 cut",             8, b"\x79" + bytes(7),                                  "malformed"),
    ("unknown fixed32",                 8, b"\x7d" + bytes(4),                                  "decoded"),
    ("unknown bytes that are no UTF-8", 8, b"\x7a\x01\xff",                                     "decoded"),
    ("known field of another type",     8, b"\x10\x05",                                         "decoded"),
    ("known field as a group",          8, b"\x13\x14",                                         "decoded"),
    ("group",                           8, b"\x7b\x7c",                                         "decoded"),
    ("group ended by another",          8, b"\x7b\x74",                                         "malformed"),
    ("group not ended",                 8, b"\x7b",                                             "malformed"),
    ("end of no group",                 8, b"\x7c",                                             "malformed"),
    ("end of no group inside",          8, b"\x0a\x01\x7c",                                     "malformed"),
    ("100 groups",                      8, nested(100),                                         "decoded"),
    ("101 groups",                      8, nested(101),                                         "malformed"),
    ("99 groups in a message",          8, framed(0x0A, nested(99)),                            "decoded"),
    ("100 groups in a message",         8, framed(0x0A, nested(100)),                           "malformed"),
    ("surrogate",                       8, b"\x12\x03\xed\xa0\x80",                             "not UTF-8"),
    ("over-long character",             8, b"\x12\x02\xc0\x80",                                 "not UTF-8"),
    ("above U+10FFFF",                  8, b"\x12\x04\xf4\x90\x80\x80",                         "not UTF-8"),
    ("character cut",                   8, b"\x12\x01\xc3",                                     "not UTF-8"),
    ("bad text that a later one replaces", 8, b"\x12\x01\xff\x12\x01A",                         "not UTF-8"),
    ("bad text in a oneof left behind", 8, b"\x0a\x06\x12\x01\xff\x1a\x01A",                    "not UTF-8"),
    ("U+10FFFF",                        8, b"\x12\x04\xf4\x8f\xbf\xbf",                         "decoded"),
    ("DEL",                             8, b"\x12\x01\x7f",                                     "refused"),
    ("U+0085",                          8, b"\x12\x02\xc2\x85",                                 "refused"),
    ("zero byte",                       8, b"\x12\x01\x00",                                     "refused"),
    ("nothing",                         8, b"",                                                 "decoded"),
]


@pytest.mark.parametrize(("method", "data", "outcome"), [row[1:] for row in EDGES], ids=[row[0] for row in EDGES])
def test_edges_of_the_encoding(method: int, data: bytes, outcome: str) -> None:
    assert agree(method, data) == outcome


def test_an_int32_of_ten_bytes_is_cut_to_32_bits() -> None:
    chance = random.Random(2)
    head = request(2, chance)
    head.receipt_key.store, head.receipt_key.till, head.receipt_key.number = "S", "1", "2"
    for varint, value in ((b"\xff" * 9 + b"\x01", -1), (b"\x81\x80\x80\x80\x10", 1), (b"\xff\xff\xff\xff\x7f", -1)):
        data = head.SerializeToString() + framed(0x32, b"\x18" + varint)
        assert agree(2, data) == "decoded"
        assert _local.decode(2, data)["receipt_key"][2] == value


def test_the_last_payment_wins_and_forgets_the_other() -> None:
    head = request(1, random.Random(3)).SerializeToString()     # an earn is a commit without payment
    burn, capture, empty_burn = b"\x2a\x05\x0a\x01w\x10\x05", b"\x32\x04\x08\x07\x10\x02", b"\x2a\x00"
    assert agree(6, head + burn + capture) == "decoded"
    assert agree(6, head + burn + capture + empty_burn) == "decoded"
    command = _local.decode(6, head + burn + capture + empty_burn)
    assert (command["payment"], command["points"], command["wallet"], command["reservation_id"]) == (1, 0, None, 0)
    assert _local.decode(6, head + burn + b"\x2a\x02\x10\x09")["wallet"] == "w"


@pytest.mark.parametrize("count", [limits.LINES_MAX, limits.LINES_MAX + 1, limits.LINES_MAX + 700])
def test_lines_beyond_the_limit_are_counted_and_refused(count: int) -> None:
    message = request(1, random.Random(4))
    del message.receipt.lines[:]
    for index in range(count):
        message.receipt.lines.add(sku=f"sku{index}", amount_minor=1)
    assert agree(1, message.SerializeToString()) == ("decoded" if count <= limits.LINES_MAX else "refused")


@pytest.mark.parametrize("count", [0, 1, 8, 9, 30])
def test_identifiers_beyond_the_limit_are_counted_and_refused(count: int) -> None:
    message = pb.EnrollMemberRequest(request_id="a-request-id-0123")
    for index in range(count):
        message.identifiers.add(card=f"card-{index}")
    assert agree(7, message.SerializeToString()) == ("decoded" if 1 <= count <= 8 else "refused")


@pytest.mark.parametrize("field", ["tenders", "promo_codes"])
def test_tenders_and_promo_codes_beyond_the_limit_are_counted_and_refused(field: str) -> None:
    count_max = getattr(limits, f"{field.upper()}_PER_RECEIPT_MAX")
    for count in (0, count_max, count_max + 1, 3 * count_max):
        message = request(1, random.Random(5))
        message.receipt.ClearField(field)
        for index in range(count):
            if field == "tenders":
                message.receipt.tenders.add(name=f"tender {index}", amount_minor=1)
            else:
                message.receipt.promo_codes.append(f"CODE{index}")
        assert agree(1, message.SerializeToString()) == ("decoded" if count <= count_max else "refused")


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_segments_are_changed_one_member_a_command(count: int) -> None:
    message = request(17, random.Random(6))
    first = message.changes[0]
    del message.changes[:]
    message.changes.extend([first] * count)
    assert agree(17, message.SerializeToString()) == ("decoded" if count == 1 else "refused")


@pytest.mark.parametrize("names", ["add", "remove"])
@pytest.mark.parametrize("count", [limits.SEGMENTS_MAX, limits.SEGMENTS_MAX + 1])
def test_segments_beyond_the_limit_are_counted_and_refused(names: str, count: int) -> None:
    message = request(17, random.Random(7))
    message.changes[0].ClearField(names)
    getattr(message.changes[0], names).extend(f"segment {i}" for i in range(count))
    assert agree(17, message.SerializeToString()) == ("decoded" if count <= limits.SEGMENTS_MAX else "refused")


@pytest.mark.parametrize("size", [0, 1, limits.QUOTE_TOKEN_BYTES - 1, limits.QUOTE_TOKEN_BYTES, limits.QUOTE_TOKEN_BYTES + 1])
def test_a_token_has_its_size_and_no_place_in_a_quote(size: int) -> None:
    for method in (1, 6, 16):
        message = request(method, random.Random(8))
        message.receipt.quote_token = bytes(size)
        good = size == 0 or (size == limits.QUOTE_TOKEN_BYTES and method != 16)
        assert agree(method, message.SerializeToString()) == ("decoded" if good else "refused")


def test_an_unknown_method_is_refused() -> None:
    for method in (0, 10, 14, 19, 22, 100, 255):
        with pytest.raises(ValueError) as refusal:
            _local.decode(method, b"")
        assert refusal.value.args[0] == errors.BY_NAME["METHOD_UNKNOWN"].number


# --- answers -----------------------------------------------------------------------------------------------------

WALLETS = ["points", "stamps", "żubr", "w" * 32]
EVENT = dict(earn=1, burn=2, reserve=3, capture=4, release=5, commit=6, enroll=7, adjust=10, link=11, unlink=12)
POINTS = st.one_of(st.just(0), st.integers(0, limits.POINTS_MAX), st.integers(-limits.WALLET_POINTS_MAX, limits.WALLET_POINTS_MAX))


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def signed(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "little") + body if body else b""


def entry_bytes(kind: int, time_us: int, member: int, program: int, sections: bytes, flags: int = 0, status: int = 0) -> bytes:
    """An entry as docs/journal-format.md has it."""
    head = bytes([kind, flags]) + status.to_bytes(2, "little") + time_us.to_bytes(8, "little")
    head += member.to_bytes(4, "little") + program.to_bytes(4, "little") + bytes(range(16))
    return (44 - 4 + len(sections)).to_bytes(4, "little") + head + sections


MONEY = st.integers(1, limits.AMOUNT_MINOR_MAX)
NAMES = st.sampled_from(("silver", "żółty", "x" * 32))


def text(value: str) -> bytes:
    return bytes([len(value.encode())]) + value.encode()


@st.composite
def results(draw: Any, said: Any) -> bytes:
    """Sections of what rules made of a receipt; `said` is filled with what they say."""
    said.SetInParent()
    before, after = draw(st.sampled_from([("", ""), ("base", ""), ("base", "silver"), ("x" * 32, "żółty")]))
    until = draw(st.sampled_from([2**31 - 1, 20_819]))
    sections = section(16, signed(20_717) + varint(3) + bytes([0, 1]) + varint(until) + text(before) + text(after))
    if before:
        said.standing.tier, said.standing.new_tier = before, after
        said.standing.held_until_day = 20270101 if until == 20_819 else 0
    for number, rows, total in ((23, said.discounts, "discount_minor"), (24, said.paid, "paid_minor")):
        body = b""
        for line, amount in draw(st.lists(st.tuples(st.integers(0, limits.LINES_MAX), MONEY), max_size=4)):
            body += varint(line) + varint(amount)
            rows.add(line=line, amount_minor=amount)
            setattr(said, total, getattr(said, total) + amount)
        sections += section(number, body)
    entitlements = draw(st.lists(NAMES, max_size=3))
    said.entitlements.extend(entitlements)
    sections += section(26, b"".join(map(text, entitlements)))
    notices = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 1000), st.one_of(st.just(""), NAMES)), max_size=4))
    for kind, index, what in notices:
        said.notices.add(kind=kind, index=index, text=what)
    said.notice_count = draw(st.integers(len(notices), 2040)) if notices else 0
    told = b"".join(bytes([kind]) + varint(index) + text(what) for kind, index, what in notices)
    return sections + section(27, varint(said.notice_count) + told if notices else b"")


@st.composite
def entries(draw: Any, kind: int) -> tuple[bytes, Any]:
    """An entry's bytes and a GetOperationResponse with what it says."""
    time_us = draw(st.integers(0, 4_102_444_800_000_000))
    member, program = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**31 - 1))
    sequence = draw(st.integers(1, 2**63 - 1))
    said: Any = pb.GetOperationResponse()
    said.entry.sequence, said.entry.kind, said.entry.member_id, said.entry.program_version = sequence, kind, member, program
    said.entry.create_time.FromMicroseconds(time_us)
    postings = awards = after = b""
    for account, points in draw(st.lists(st.tuples(st.integers(1, 5), POINTS), max_size=6)):
        postings += bytes([account]) + varint(draw(st.integers(0, 3))) + signed(points)
        said.entry.earned_points -= points if account == 2 else 0
        said.entry.burned_points += points if account == 3 else 0
        said.entry.expired_points += points if account == 4 else 0
        said.entry.adjusted_points -= points if account == 5 else 0
    for line, rule, points in draw(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1024), POINTS), max_size=12)):
        awards += varint(line) + varint(rule) + varint(0) + signed(points)
        said.entry.awards.add(line=line, rule=rule, points=points)
    for wallet, posted, pending, reserved in draw(st.lists(st.tuples(st.integers(0, 3), POINTS, POINTS, POINTS), max_size=4)):
        after += varint(wallet) + signed(posted) + signed(pending) + signed(reserved)
        said.wallets.add(wallet=WALLETS[wallet], posted_points=posted, pending_points=pending, reserved_points=reserved,
                         available_points=posted - pending - reserved)
    reservation = b""
    if draw(st.booleans()):
        number, state, wallet = draw(st.integers(1, 2**63 - 1)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
        held, captured, ttl = draw(POINTS), draw(POINTS), draw(st.integers(-(10**12), 1_209_600_000_000))
        reservation = varint(number) + bytes([state]) + varint(wallet) + signed(held) + signed(captured) + signed(ttl)
        said.reservation.reservation_id, said.reservation.state, said.reservation.wallet = number, state, WALLETS[wallet]
        said.reservation.reserved_points, said.reservation.captured_points = held, captured
        said.reservation.expire_time.FromMicroseconds(time_us + ttl)
    sections = section(1, b"\x01\x02") + section(2, postings) + section(5, awards) + section(6, after) + section(7, reservation)
    if kind in (1, 6) and draw(st.booleans()):
        sections += draw(results(said.result))
    return entry_bytes(kind, time_us, member, program, sections + section(99, b"from a later version")), said


ANSWERS = {1: pb.EarnPointsResponse, 2: pb.BurnPointsResponse, 3: pb.ReservePointsResponse, 4: pb.CaptureReservationResponse,
           5: pb.ReleaseReservationResponse, 6: pb.CommitReceiptResponse, 11: admin.AdjustPointsResponse}


@pytest.mark.parametrize("method", ANSWERS)
def test_an_answer_has_the_bytes_that_google_protobuf_writes(method: int) -> None:
    with_reservation = "reservation" in ANSWERS[method].DESCRIPTOR.fields_by_name

    @settings(max_examples=150, deadline=None)
    @given(entries(method), st.booleans())
    def check(pair: tuple[bytes, Any], replayed: bool) -> None:
        entry, said = pair
        expected: Any = ANSWERS[method](entry=said.entry, wallets=said.wallets, replayed=replayed)
        if said.HasField("reservation"):
            if not with_reservation:
                return
            expected.reservation.CopyFrom(said.reservation)
        if said.HasField("result"):
            expected.result.CopyFrom(said.result)
        assert _local.answer(method, WALLETS, entry, said.entry.sequence, replayed) == expected.SerializeToString(deterministic=True)

    check()


def test_get_operation_shows_the_entry() -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(EVENT.values())).flatmap(entries))
    def check(pair: tuple[bytes, Any]) -> None:
        entry, said = pair
        assert _local.answer(9, WALLETS, entry, said.entry.sequence, False) == said.SerializeToString(deterministic=True)

    check()


def test_get_operation_shows_a_remembered_refusal_as_the_call_gave_it() -> None:
    for status in errors.STATUSES:
        if not status.remembered:
            continue
        entry = entry_bytes(2, 10**15, 7, 1, section(9, signed(-5) + signed(10**12)), status=status.number)
        code, details, _ = _local.refusal(status.number, 0, -1, None, -5, 10**12, False)
        answer = pb.GetOperationResponse.FromString(_local.answer(9, WALLETS, entry, 12, False))
        assert answer.WhichOneof("outcome") == "error"
        assert answer.error == status_pb2.Status.FromString(details)
        assert answer.error.code == code == status.grpc_code


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_link_and_unlink_answer_with_their_entry(linked: bool, replayed: bool) -> None:
    identifiers = section(8, b"\x02" + bytes(16)) if linked else b""
    for method, kind in ((12, 11), (13, 12)):
        entry = entry_bytes(kind, 10**15 + 1, 9, 2, section(1, b"\x01\x02") + identifiers)
        expected: Any = admin.LinkIdentifierResponse(linked=linked) if method == 12 else admin.UnlinkIdentifierResponse()
        expected.replayed = replayed
        expected.entry.sequence, expected.entry.kind, expected.entry.member_id, expected.entry.program_version = 300, kind, 9, 2
        expected.entry.create_time.FromMicroseconds(10**15 + 1)
        assert _local.answer(method, WALLETS, entry, 300, replayed) == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("replayed", [False, True])
def test_what_was_set_of_a_member_is_answered_with_its_entry(replayed: bool) -> None:
    for method, kind, what in ((17, 13, 21), (18, 14, 22), (24, 15, 33)):
        entry = entry_bytes(kind, 10**15 + 1, 9, 2, section(1, b"\x01\x02") + section(what, bytes(4)))
        said: Any = pb.PostResult(replayed=replayed)
        said.entry.sequence, said.entry.kind, said.entry.member_id, said.entry.program_version = 300, kind, 9, 2
        said.entry.create_time.FromMicroseconds(10**15 + 1)
        expected: Any = admin.SetSegmentsResponse(results=[said])
        if method == 18:
            expected = admin.SetAttributesResponse(entry=said.entry, replayed=replayed)
        if method == 24:
            expected = admin.SetRungResponse(entry=said.entry, replayed=replayed)
        assert _local.answer(method, WALLETS, entry, 300, replayed) == expected.SerializeToString(deterministic=True)


def test_the_longest_result_has_room_behind_the_longest_list_of_awards() -> None:
    awards = b"".join(varint(i % 1001) + varint(1024) + varint(3) + signed(limits.POINTS_MAX) for i in range(limits.AWARDS_MAX))
    lines = b"".join(varint(line) + varint(limits.AMOUNT_MINOR_MAX) for line in range(1, limits.LINES_MAX + 1))
    notices = varint(2040) + b"".join(bytes([2]) + varint(1000) + text("x" * 32) for _ in range(limits.NOTICES_TOLD_MAX + 5))
    sections = section(5, awards) + section(6, (varint(3) + signed(-(10**15)) * 3) * limits.WALLETS_MAX)
    sections += section(16, signed(20_717) + varint(3) + bytes([0, 1]) + varint(20_819) + text("x" * 32) + text("y" * 32))
    sections += section(23, lines) + section(24, lines) + section(26, text("z" * 32) * 64) + section(27, notices)
    for method, kind in ((1, pb.EarnPointsResponse), (6, pb.CommitReceiptResponse)):
        answer = _local.answer(method, WALLETS, entry_bytes(method, 10**15, 2**31, 5, sections), 2**40, True)
        parsed: Any = kind.FromString(answer)
        assert (len(parsed.entry.awards), len(parsed.wallets)) == (limits.AWARDS_MAX, limits.WALLETS_MAX)
        assert (len(parsed.result.discounts), len(parsed.result.paid), len(parsed.result.notices)) == (1000, 1000, limits.NOTICES_TOLD_MAX)
        assert parsed.result.ByteSize() <= limits.RESULT_BYTES_MAX and len(answer) <= limits.ANSWER_BYTES_MAX


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("replayed", [False, True])
def test_enroll_answers_whether_the_account_is_new(opened: bool, replayed: bool) -> None:
    entry = entry_bytes(7, 10**15 + 1, 9, 2, b"", flags=int(opened))
    expected = pb.EnrollMemberResponse(replayed=replayed, opened=opened)
    expected.entry.sequence, expected.entry.kind, expected.entry.member_id, expected.entry.program_version = 300, 7, 9, 2
    expected.entry.create_time.FromMicroseconds(10**15 + 1)
    assert _local.answer(7, WALLETS, entry, 300, replayed) == expected.SerializeToString(deterministic=True)


def test_the_longest_answer_is_whole() -> None:
    """3000 awards: the entry inside is longer than its one byte of length, so it is moved."""
    awards = b"".join(varint(i % 1001) + varint(1024) + varint(3) + signed(limits.POINTS_MAX) for i in range(limits.AWARDS_MAX))
    entry = entry_bytes(1, 10**15, 2**31, 5, section(5, awards) + section(6, (varint(3) + signed(-(10**15)) * 3) * limits.WALLETS_MAX))
    answer = _local.answer(1, WALLETS, entry, 2**40, True)
    parsed = pb.EarnPointsResponse.FromString(answer)
    assert (len(parsed.entry.awards), len(parsed.wallets), parsed.replayed) == (limits.AWARDS_MAX, limits.WALLETS_MAX, True)
    assert answer == parsed.SerializeToString(deterministic=True)
    assert len(answer) <= limits.ANSWER_BYTES_MAX


def test_awards_that_cannot_fit_are_cut_before_the_buffer_ends() -> None:
    awards = (varint(2**64 - 1) + varint(2**64 - 1) + varint(0) + signed(-(2**63))) * 9000
    answer = _local.answer(1, WALLETS, entry_bytes(1, 1, 1, 1, section(5, awards)), 1, False)
    assert len(answer) <= limits.ANSWER_BYTES_MAX
    assert len(pb.EarnPointsResponse.FromString(answer).entry.awards) > 1000


def test_a_damaged_entry_gives_no_answer() -> None:
    good = entry_bytes(1, 1, 1, 1, section(6, b"\x00\x02\x00\x00"))
    assert _local.answer(1, WALLETS, good[:-1], 1, False) == b""
    assert _local.answer(1, WALLETS, good[:30], 1, False) == b""


def test_a_balance_has_the_bytes_that_google_protobuf_writes() -> None:
    times = st.integers(0, 4_102_444_800_000_000)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(1, 2**31 - 1), st.integers(1, 2**63 - 1), times, st.integers(0, 4),
           st.sampled_from((0, 1, 1_795_435_200, 2**32 - 1)),
           st.lists(st.tuples(st.integers(0, 3), POINTS, POINTS, POINTS, st.lists(st.tuples(times, POINTS), max_size=3)), max_size=16))
    def check(member: int, sequence: int, read_time_us: int, rung: int, until_s: int, views: list[Any]) -> None:
        expected: Any = pb.GetBalanceResponse(member_id=member, sequence=sequence)
        expected.read_time.FromMicroseconds(read_time_us)
        for wallet, posted, pending, reserved, expiries in views:
            balance = expected.wallets.add(wallet=WALLETS[wallet], posted_points=posted, pending_points=pending, reserved_points=reserved,
                                           available_points=posted - pending - reserved)
            for time_us, points in expiries:
                balance.next_expiries.add(points=points).expire_time.FromMicroseconds(time_us)
        if rung:
            expected.rung = rung + 1
            if until_s:
                expected.rung_end_time.FromSeconds(until_s)
        made = _local.balance_answer(WALLETS, member, sequence, read_time_us, views, rung, until_s)
        assert made == expected.SerializeToString(deterministic=True)

    check()


# --- refusals ----------------------------------------------------------------------------------------------------

def status_of(status: errors.Status, message: str, metadata: dict[str, str]) -> bytes:
    """The google.rpc.Status as google.protobuf writes it."""
    expected = status_pb2.Status(code=status.grpc_code, message=message)
    info = error_details_pb2.ErrorInfo(reason=status.name, domain=errors.DOMAIN, metadata=metadata)
    expected.details.add().Pack(info, deterministic=True)
    if status.retryable:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(100)
        expected.details.add().Pack(retry)
    return expected.SerializeToString(deterministic=True)


def unpacked(details: bytes) -> tuple[int, str, list[Any]]:
    status = status_pb2.Status.FromString(details)
    inside = []
    for packed, kind in zip(status.details, (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo), strict=False):
        inside.append(kind())
        assert packed.Unpack(inside[-1])
    assert len(inside) == len(status.details)
    return status.code, status.message, inside


@pytest.mark.parametrize("status", [row for row in errors.STATUSES if row.number], ids=lambda row: row.name)
@pytest.mark.parametrize("replayed", [False, True])
def test_every_refusal_is_a_google_rpc_status_with_its_error_info(status: errors.Status, replayed: bool) -> None:
    code, details, message = _local.refusal(status.number, 1, -1, b"value", 12, -34, replayed)
    metadata = {"replayed": "true"} if replayed else {}
    metadata |= {name: text for name, text in ((status.a, "12"), (status.b, "-34")) if name}
    rule = errors.FIELD_BY_NUMBER[1].rule
    if not status.remembered:
        metadata |= {"field": "request_id", "value": "value"}
    if status.name == "FIELD_INVALID":
        metadata["rule"] = rule
    text = status.message.format(field="request_id", value='"value"', rule=rule, a=12, b=-34)
    assert (code, message) == (status.grpc_code, text)
    expected = status_of(status, text, metadata)
    assert unpacked(details) == unpacked(expected)
    if not status.b.startswith(status.a or "-"):
        # upb sorts a key behind the longer ones that begin with it; otherwise the bytes are the same.
        assert details == expected


FIELD_NAMES = [
    # field                    index  name
    ("request_id",             -1,    "request_id"),
    ("member.card",            -1,    "member.card"),
    ("member.card",            0,     "identifiers[0].card"),
    ("member.member_id",       7,     "identifiers[7].member_id"),
    ("member",                 3,     "identifiers[3]"),
    ("identifiers",            -1,    "identifiers"),
    ("identifiers",            2,     "identifiers[2]"),
    ("identifier",             -1,    "identifier"),
    ("identifier.phone",       -1,    "identifier.phone"),
    ("receipt.lines",          -1,    "receipt.lines"),
    ("receipt.lines.sku",      0,     "receipt.lines[0].sku"),
    ("receipt.lines.amount_minor", 999, "receipt.lines[999].amount_minor"),
    ("receipt.lines.regular_amount_minor", 1, "receipt.lines[1].regular_amount_minor"),
    ("receipt.lines.weighed",  0,     "receipt.lines[0].weighed"),
    ("receipt.tenders",        -1,    "receipt.tenders"),
    ("receipt.tenders.name",   2,     "receipt.tenders[2].name"),
    ("receipt.promo_codes",    3,     "receipt.promo_codes[3]"),
    ("changes.add",            0,     "changes.add[0]"),
]


@pytest.mark.parametrize(("field", "index", "name"), FIELD_NAMES)
def test_a_field_is_named_as_the_caller_wrote_it(field: str, index: int, name: str) -> None:
    number = next(row.number for row in errors.FIELDS if row.name == field)
    _, details, message = _local.refusal(FIELD_INVALID, number, index, 5, 0, 0, False)
    assert message.startswith(f"{name} must ")
    assert error_info(details).metadata["field"] == name


VALUES = [
    # field            value                              in the message                            in the metadata
    ("points",         -5,                                "-5",                                     "-5"),
    ("points",         -(2**63),                          "-9223372036854775808",                   "-9223372036854775808"),
    ("request_id",     None,                              "not set",                                None),
    ("request_id",     b"",                               '""',                                     ""),
    ("wallet",         "zł".encode(),                     '"zł"',                                   "zł"),
    ("wallet",         b'a"b\\c',                         '"a\\"b\\\\c"',                           'a\\"b\\\\c'),
    ("wallet",         b"tab\tdel\x7f",                   '"tab\\x09del\\x7f"',                     "tab\\x09del\\x7f"),
    ("wallet",         "\x85".encode(),                   '"\\xc2\\x85"',                           "\\xc2\\x85"),
    ("wallet",         b"\xffA\xc3",                      '"\\xffA\\xc3"',                          "\\xffA\\xc3"),
    ("wallet",         b"x" * 64,                         '"' + "x" * 64 + '"',                     "x" * 64),
    ("wallet",         b"x" * 65,                         '"' + "x" * 64 + '"... (65 bytes)',       "x" * 64),
    ("wallet",         b"x" + "é".encode() * 40,          '"x' + "é" * 31 + '"... (81 bytes)',      "x" + "é" * 31),
    ("wallet",         b"\0" * 20,                        '"' + "\\x00" * 16 + '"... (20 bytes)',   "\\x00" * 16),
    ("sent_time",      1_795_326_655_000_042,             "2026-11-22T05:50:55.000042Z",            "2026-11-22T05:50:55.000042Z"),
    ("receipt.purchase_time", -1,                         "-1 seconds since 1970",                  "-1 seconds since 1970"),
    ("purchase_time",  253_402_300_799_000_000,           "253402300799 seconds since 1970",        "253402300799 seconds since 1970"),
    ("ttl",            999_999,                           "999999 us",                              "999999 us"),
]


@pytest.mark.parametrize(("field", "value", "shown", "meta"), VALUES)
def test_a_value_is_shown_so_that_people_can_read_it(field: str, value: Any, shown: str, meta: str | None) -> None:
    number = next(row.number for row in errors.FIELDS if row.name == field)
    _, details, message = _local.refusal(FIELD_INVALID, number, -1, value, 0, 0, False)
    assert message.endswith(f", was {shown}")
    assert error_info(details).metadata.get("value") == meta or ("value" not in error_info(details).metadata and meta is None)


@pytest.mark.parametrize("field", ["member", "member.card", "member.phone", "member.email", "member.app", "identifiers",
                                   "identifier", "identifier.card", "identifier.phone", "identifier.email", "identifier.app"])
@pytest.mark.parametrize("index", [-1, 0])
@pytest.mark.parametrize("status", ["FIELD_INVALID", "MEMBER_NOT_FOUND", "IDENTIFIER_NOT_FOUND", "IDENTIFIER_TAKEN", "REQUEST_ID_REUSED"])
def test_personal_data_is_never_shown(field: str, index: int, status: str) -> None:
    number = next(row.number for row in errors.FIELDS if row.name == field)
    _, details, message = _local.refusal(errors.BY_NAME[status].number, number, index, b"jan@example.org", 0, 0, False)
    assert b"jan" not in details and "jan" not in message
    assert error_info(details).metadata["value"] == "(not shown)"


def test_a_wrong_currency_is_told_the_right_one() -> None:
    number = next(row.number for row in errors.FIELDS if row.name == "receipt.currency_code")
    _, details, message = _local.refusal(FIELD_INVALID, number, -1, b"CHF", 0, 0, False)
    assert message == 'receipt.currency_code must be the programme\'s currency, EUR, was "CHF"'
    assert error_info(details).metadata["rule"] == "must be the programme's currency, EUR"


def test_the_longest_refusals_fit_their_room() -> None:
    longest = 0
    for status in errors.STATUSES[1:]:
        for field in errors.FIELDS:
            for value in (b"\xff" * 1000, b"x" * 100_000, "𝄞".encode() * 50, -(2**63), None):
                _, details, message = _local.refusal(status.number, field.number, limits.LINES_MAX, value, -(2**63), -(2**63), True)
                info = error_info(details)
                assert info.reason == status.name and info.metadata["replayed"] == "true"
                assert "{" not in message and len(message.encode()) < MESSAGE_BYTES_MAX
                longest = max(longest, len(details))
                if field.rule and status.name == "FIELD_INVALID":
                    assert field.rule in message, "the rule was cut"
    assert 400 < longest <= DETAILS_BYTES_MAX


NO_ROW = [next(number for number in range(256) if number not in errors.BY_NUMBER), max(errors.BY_NUMBER) + 1, 60_000]


@pytest.mark.parametrize("number", NO_ROW)
def test_a_status_without_a_row_is_internal_and_claims_nothing(number: int) -> None:
    code, details, message = _local.refusal(number, 0, -1, None, 0, 0, False)
    assert (code, details) == (13, b"")
    assert message


def error_info(details: bytes) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    packed: any_pb2.Any = status_pb2.Status.FromString(details).details[0]
    assert packed.Unpack(info)
    return info


def test_the_snippets_of_the_fuzzer_do_not_crash_alone() -> None:
    for method in METHODS:
        for snippet in SNIPPETS:
            agree(method, snippet)
