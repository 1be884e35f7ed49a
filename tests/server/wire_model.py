"""What the codec must make of a request, said again in Python on google.protobuf; and requests to try it with.

Not a test itself. Used by tests/server/test_wire.py, test_bad_input.py and fuzz_wire.py.
"""

from __future__ import annotations

import random
import unicodedata
from typing import Any

from google.protobuf.message import DecodeError, Message

from ledger import errors, limits
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

METHODS: dict[int, type[Message]] = {
    1: pb.EarnPointsRequest, 2: pb.BurnPointsRequest, 3: pb.ReservePointsRequest, 4: pb.CaptureReservationRequest,
    5: pb.ReleaseReservationRequest, 6: pb.CommitReceiptRequest, 7: pb.EnrollMemberRequest, 8: pb.GetBalanceRequest,
    9: pb.GetOperationRequest, 11: admin.AdjustPointsRequest, 12: admin.LinkIdentifierRequest, 13: admin.UnlinkIdentifierRequest,
    16: pb.QuoteReceiptRequest, 17: admin.SetSegmentsRequest, 18: admin.SetAttributesRequest,
    24: admin.SetRungRequest, 25: admin.DecideReviewRequest, 26: pb.AnswerChallengeRequest,
    28: admin.ChangeBlocksRequest, 30: pb.ReturnReceiptRequest,
}
ANSWERS: dict[int, type[Message]] = {
    number: getattr(admin if kind.DESCRIPTOR.file is admin.DESCRIPTOR else pb, kind.DESCRIPTOR.name.replace("Request", "Response"))
    for number, kind in METHODS.items()
}
QUOTE, SET_SEGMENTS, SET_ATTRIBUTES, SET_RUNG, CHANGE_BLOCKS = 16, 17, 18, 24, 28
FIELD_INVALID, MESSAGE_MALFORMED = 1, 2
FIELD_NUMBERS = {field.name: field.number for field in reversed(errors.FIELDS)}

SECONDS = range(-62_135_596_800, 253_402_300_800)
NANOS = range(0, 1_000_000_000)
IDENTIFIER_BYTES = {
    "card": (1, limits.IDENTIFIER_BYTES_MAX), "phone": (1, limits.IDENTIFIER_BYTES_MAX),
    "email": (3, limits.EMAIL_BYTES_MAX), "app": (1, limits.IDENTIFIER_BYTES_MAX),
}

ORIGIN_BYTES = {"device": limits.DEVICE_BYTES_MAX, "cashier": limits.CASHIER_BYTES_MAX, "payment_card": limits.PAYMENT_CARD_BYTES_MAX,
                "partner": limits.PARTNER_BYTES_MAX, "store": limits.STORE_BYTES_MAX, "till": limits.TILL_BYTES_MAX}


class Fault(Exception):
    """A field that the codec must refuse: its name, index and value."""

    def __init__(self, field: str, value: object, index: int = -1) -> None:
        super().__init__(FIELD_INVALID, FIELD_NUMBERS[field], index, value)


def check_text(field: str, text: str, low: int, high: int, index: int = -1) -> str:
    if not low <= len(text.encode()) <= high or any(unicodedata.category(letter) == "Cc" for letter in text):
        raise Fault(field, text.encode(), index)
    return text


def check_time(field: str, stamp: Any) -> int:
    for value, good in ((stamp.seconds, SECONDS), (stamp.nanos, NANOS)):
        if value not in good:
            raise Fault(field, value)
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def check_member(member: Any, index: int = -1, prefix: str = "member") -> tuple[str, Any] | None:
    kind = member.WhichOneof("ref")
    if kind is None:
        return None
    value = getattr(member, kind)
    if kind != "member_id":
        check_text(f"{prefix}.{kind}", value, *IDENTIFIER_BYTES[kind], index)
    return kind, value


def check_key(prefix: str, key: Any, low: int = 1) -> tuple[str, str, int, str]:
    check_text(f"{prefix}.store", key.store, low, limits.STORE_BYTES_MAX)
    check_text(f"{prefix}.till", key.till, low, limits.TILL_BYTES_MAX)
    check_text(f"{prefix}.number", key.number, low, limits.RECEIPT_NUMBER_BYTES_MAX)
    return key.store, key.till, key.business_day, key.number


def check_names(field: str, names: Any, count_max: int, bytes_max: int) -> list[str]:
    if len(names) > count_max:
        raise Fault(field, len(names))
    return [check_text(field, name, 1, bytes_max, index) for index, name in enumerate(names)]


def check_receipt(receipt: Any, found: dict[str, Any]) -> None:
    quoted = found["method"] == QUOTE
    found.update(receipt=True, currency=receipt.currency_code, total_minor=receipt.total_minor)
    if receipt.HasField("key"):
        found["receipt_key"] = check_key("receipt.key", receipt.key, 0 if quoted else 1)
    if receipt.HasField("purchase_time"):
        found["business_time_us"] = check_time("receipt.purchase_time", receipt.purchase_time)
    if len(receipt.lines) > limits.LINES_MAX:
        raise Fault("receipt.lines", len(receipt.lines))
    for index, line in enumerate(receipt.lines):
        check_text("receipt.lines.sku", line.sku, 1, limits.SKU_BYTES_MAX, index)
        check_text("receipt.lines.category", line.category, 0, limits.CATEGORY_BYTES_MAX, index)
    found["lines"] = [(line.sku, line.category, line.quantity_milli, line.amount_minor, line.regular_amount_minor, line.weighed)
                      for line in receipt.lines]
    if len(receipt.tenders) > limits.TENDERS_PER_RECEIPT_MAX:
        raise Fault("receipt.tenders", len(receipt.tenders))
    for index, tender in enumerate(receipt.tenders):
        check_text("receipt.tenders.name", tender.name, 1, limits.TENDER_BYTES_MAX, index)
    found["tenders"] = [(tender.name, tender.amount_minor) for tender in receipt.tenders]
    found["channel"] = check_text("receipt.channel", receipt.channel, 0, limits.CHANNEL_BYTES_MAX)
    found["promo_codes"] = check_names("receipt.promo_codes", receipt.promo_codes, limits.PROMO_CODES_PER_RECEIPT_MAX,
                                       limits.PROMO_CODE_BYTES_MAX)
    found.update(quote_token=receipt.quote_token, only_as_quoted=receipt.only_as_quoted)
    if receipt.quote_token and (quoted or len(receipt.quote_token) != limits.QUOTE_TOKEN_BYTES):
        raise Fault("receipt.quote_token", receipt.quote_token)


def command_of(method: int, message: Any) -> dict[str, Any]:
    """The Command of a parsed request, as server._local.decode shows it. Fault: the first field that is wrong."""
    found: dict[str, Any] = {
        "method": method, "payment": 0, "request_id": "", "sent_time_us": None, "business_time_us": None, "ttl_us": None,
        "wallet": None, "receipt": False, "receipt_key": None, "member": None, "points": 0, "reservation_id": 0,
        "currency": "", "total_minor": 0, "identifiers": [], "lines": [], "expiry_day": 0, "operator": "", "reason": "",
        "tenders": [], "channel": "", "promo_codes": [], "quote_token": b"", "only_as_quoted": False, "explain": False,
        "adds": [], "removes": [], "birthday": None, "favourites": False, "origin": {},
        "rung": 0, "case_id": 0, "verdict": 0,
    }
    names = message.DESCRIPTOR.fields_by_name
    if "as_of_time" in names and message.HasField("as_of_time"):
        raise Fault("as_of_time", check_time("as_of_time", message.as_of_time))
    if "request_id" in names:
        text = message.request_id
        found["request_id"] = text
        allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
        if not limits.REQUEST_ID_BYTES_MIN <= len(text.encode()) <= limits.REQUEST_ID_BYTES_MAX or set(text) - set(allowed):
            raise Fault("request_id", text.encode())
    if "sent_time" in names and message.HasField("sent_time"):
        found["sent_time_us"] = check_time("sent_time", message.sent_time)
    if "changes" in names:
        if len(message.changes) != 1:
            raise Fault("changes", len(message.changes))
        found["member"] = check_member(message.changes[0].member)
        found["adds"] = check_names("changes.add", message.changes[0].add, limits.SEGMENTS_MAX, limits.SEGMENT_BYTES_MAX)
        found["removes"] = check_names("changes.remove", message.changes[0].remove, limits.SEGMENTS_MAX, limits.SEGMENT_BYTES_MAX)
    if "member" in names:
        found["member"] = check_member(message.member)
    if method == CHANGE_BLOCKS:
        found["adds"] = check_names("add", message.add, limits.SEGMENTS_MAX, limits.BLOCK_BYTES_MAX)
        found["removes"] = check_names("remove", message.remove, limits.SEGMENTS_MAX, limits.BLOCK_BYTES_MAX)
    if "birthday" in names and message.HasField("birthday"):
        found["birthday"] = (message.birthday.month, message.birthday.day)
    if "favourites" in names and message.HasField("favourites"):
        found["favourites"] = True
        found["adds"] = check_names("favourites", message.favourites.categories, limits.FAVOURITES_MAX, limits.CATEGORY_PATH_BYTES_MAX)
    if "identifiers" in names:
        if not 1 <= len(message.identifiers) <= limits.IDENTIFIERS_PER_REQUEST_MAX:
            raise Fault("identifiers", len(message.identifiers))
        found["identifiers"] = [check_member(member, index) for index, member in enumerate(message.identifiers)]
    if "identifier" in names:
        found["identifiers"] = [check_member(message.identifier, prefix="identifier")]
    if "wallet" in names and message.wallet:
        found["wallet"] = check_text("wallet", message.wallet, 1, limits.WALLET_NAME_BYTES_MAX)
    if "receipt_key" in names and message.HasField("receipt_key"):
        found["receipt_key"] = check_key("receipt_key", message.receipt_key)
    for name in ("ttl", "lasts"):
        if name in names and message.HasField(name):
            found["ttl_us"] = check_time(name, getattr(message, name))
    if "purchase_time" in names and message.HasField("purchase_time"):
        found["business_time_us"] = check_time("purchase_time", message.purchase_time)
    if "receipt" in names and message.HasField("receipt"):
        check_receipt(message.receipt, found)
    if "operator" in names:
        check_text("operator", message.operator, 1, limits.OPERATOR_BYTES_MAX)
        check_text("reason", message.reason, 1, limits.REASON_BYTES_MAX)
    for name in ("points", "reservation_id", "expiry_day", "operator", "reason", "explain", "rung"):
        if name in names:
            found[name] = getattr(message, name)
    for key in ("review_id", "challenge_id"):
        if key in names:
            found["case_id"] = getattr(message, key)
    if "verdict" in names:
        found["verdict"] = message.verdict
    if "passed" in names:
        found["verdict"] = 1 if message.passed else 2
    if method in (6, QUOTE) and message.WhichOneof("payment") == "burn":
        found.update(payment=1, points=message.burn.points)
        if message.burn.wallet:
            found["wallet"] = check_text("wallet", message.burn.wallet, 1, limits.WALLET_NAME_BYTES_MAX)
    if method in (6, QUOTE) and message.WhichOneof("payment") == "capture":
        found.update(payment=2, points=message.capture.points, reservation_id=message.capture.reservation_id)
    if "origin" in names:
        found["origin"] = {}
        for part, (name, bytes_max) in enumerate(ORIGIN_BYTES.items(), start=1):
            if text := check_text(f"origin.{name}", getattr(message.origin, name), 0, bytes_max):
                found["origin"][part] = text
    return found


def parse(method: int, data: bytes) -> Any:
    """The message as google.protobuf reads it, or None where it cannot."""
    try:
        return METHODS[method].FromString(data)
    except DecodeError:
        return None


# --- valid requests ----------------------------------------------------------------------------------------------

NOW_US = 1_795_326_655_000_000  # 2026-11-22


def request(method: int, chance: random.Random) -> Any:
    """A request that the codec takes, of the sort that a till sends; ids, members and receipts repeat now and then."""
    number = chance.randrange(300)
    message: Any = METHODS[method]()
    names = message.DESCRIPTOR.fields_by_name
    if "request_id" in names:
        message.request_id = f"till-07-request-{chance.randrange(2000):05d}"
    if "sent_time" in names:
        message.sent_time.FromMicroseconds(NOW_US - chance.choice((0, 0, 1, 5_000_000)))
    if "member" in names:
        fill_member(message.member, chance)
    if "identifiers" in names:
        for _ in range(chance.randrange(1, 4)):
            fill_member(message.identifiers.add(), chance)
    if "receipt" in names:
        fill_key(message.receipt.key, number)
        message.receipt.currency_code = "USD"
        for i in range(chance.choice((0, 1, 6, 6, 20))):
            message.receipt.lines.add(sku=f"4001234{i:06d}", category="dairy" * (i % 2), quantity_milli=1000 * i, amount_minor=19 + 40 * i,
                                      regular_amount_minor=100 * (i % 3), weighed=i % 4 == 1)
        message.receipt.total_minor = sum(line.amount_minor for line in message.receipt.lines) or 1234
        if chance.random() < 0.2:
            message.receipt.purchase_time.FromMicroseconds(NOW_US - 1)
        if chance.random() < 0.3:
            message.receipt.tenders.add(name="cash", amount_minor=10)
            message.receipt.tenders.add(name="żółta karta", amount_minor=message.receipt.total_minor)
            message.receipt.channel = chance.choice(("", "app"))
            message.receipt.promo_codes.extend(chance.sample(("SPRING", "LATO2026", "x"), chance.randrange(3)))
            message.receipt.only_as_quoted = chance.random() < 0.3
        if method != QUOTE and chance.random() < 0.1:
            message.receipt.quote_token = chance.randbytes(limits.QUOTE_TOKEN_BYTES)
    if "changes" in names:
        change = message.changes.add(add=chance.sample(("students", "staff", "vip"), chance.randrange(3)))
        change.remove.extend(["lost"] * chance.randrange(2))
        fill_member(change.member, chance)
    if "birthday" in names and chance.random() < 0.7:
        message.birthday.month, message.birthday.day = chance.choice(((0, 0), (2, 29), (12, 31)))
    if "favourites" in names and chance.random() < 0.7:
        message.favourites.categories.extend(chance.sample(("Food/Dairy", "Food/Coffee"), chance.randrange(3)))
    if "explain" in names:
        message.explain = chance.random() < 0.5
    if "receipt_key" in names and chance.random() < 0.5:
        fill_key(message.receipt_key, number)
    if "wallet" in names and chance.random() < 0.3:
        message.wallet = "points"
    if "points" in names:
        message.points = chance.choice((1, 5, 20, 100_000)) * (chance.choice((1, -1)) if method == 11 else 1)
    if "expiry_day" in names and message.points > 0 and chance.random() < 0.5:
        message.expiry_day = chance.choice((20261123, 20270101))
    if "identifier" in names:
        while message.identifier.WhichOneof("ref") in (None, "member_id"):
            fill_member(message.identifier, chance)
    if "operator" in names:
        message.operator, message.reason = chance.choice(("anna", "Żaneta")), f"ticket {number}"
    if "reservation_id" in names:
        message.reservation_id = chance.randrange(1, 400)
    if "rung" in names:
        message.rung = chance.randrange(1, 6)
        if message.rung != 1 and chance.random() < 0.5:
            message.lasts.FromSeconds(chance.choice((1, 86_400)))
    if "verdict" in names:
        message.review_id, message.verdict = chance.randrange(1, 400), chance.randrange(1, 3)
    if "passed" in names:
        message.challenge_id, message.passed = chance.randrange(1, 400), chance.random() < 0.5
    if method == CHANGE_BLOCKS:
        message.add.extend(chance.sample(("card:29001*", "device:d-1", "till:S042/7"), chance.randrange(1, 4)))
        message.remove.extend(["phone:+48600100100"] * chance.randrange(2))
    if "ttl" in names and chance.random() < 0.5:
        message.ttl.FromSeconds(chance.choice((1, 60, 900)))
    if "origin" in names and chance.random() < 0.4:
        for name in chance.sample(["device", "cashier", "payment_card", "partner"], chance.randrange(5)):
            setattr(message.origin, name, f"{name}-é-{number % 7}")
        if "receipt" not in names and "receipt_key" not in names:
            message.origin.store, message.origin.till = chance.choice((("0017", "till-3"), ("0017", ""), ("", "")))
    if method in (6, QUOTE) and chance.random() < 0.4:
        message.burn.points = chance.choice((1, 10))
    elif method in (6, QUOTE) and chance.random() < 0.4:
        message.capture.reservation_id = chance.randrange(1, 400)
    return message


def fill_member(member: Any, chance: random.Random) -> None:
    kind = chance.choice(("member_id", "card", "card", "phone", "email", "app"))
    number = chance.randrange(1, 40)
    value = {"member_id": number, "card": f"29000000000{number:02d}", "phone": f"+48 600 100 1{number:02d}",
             "email": f"person{number}@example.org", "app": f"app-é-{number}"}[kind]
    setattr(member, kind, value)


def fill_key(key: Any, number: int) -> None:
    key.store, key.till, key.business_day, key.number = "S042", "7", 20261122, f"{number:06d}"


# --- spoilt ones -------------------------------------------------------------------------------------------------

def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One to four changes, such as a broken or hostile sender makes. `other`: another request, to splice in."""
    spoilt = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(spoilt) + 1)
        what = chance.randrange(9)
        if what == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << chance.randrange(8)
        elif what == 1 and at < len(spoilt):
            spoilt[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif what == 2:
            del spoilt[at:at + chance.randrange(1, 9)]
        elif what == 3:
            spoilt[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif what == 4:
            del spoilt[at:]
        elif what == 5:
            spoilt[at:at] = spoilt[at:at + chance.randrange(1, 60)]
        elif what == 6:
            start = chance.randrange(len(other) + 1)
            spoilt[at:at] = other[start:start + chance.randrange(1, 200)]
        elif what == 7:
            spoilt += other
        else:
            spoilt[at:at] = chance.choice(SNIPPETS)
    return bytes(spoilt)


SNIPPETS = (
    b"\x3b" * 99 + b"\x3c" * 99, b"\x3b" * 101 + b"\x3c" * 101, b"\x3b\x3c", b"\x3c", b"\x00\x00", b"\x3b\x00\x00\x3c",
    b"\xff" * 9 + b"\x01", b"\xff" * 10 + b"\x01", b"\x80" * 4 + b"\x00", b"\xa8\x80\x80\x80\x00\x05", b"\xa8\x80\x80\x80\x10\x05",
    b"\x12\x81\x80\x80\x80\x00A", b"\x12\x80\x80\x80\x80\x08A", b"\x0a\x02\xed\xa0", b"\x12\x02\xc2\x85", b"\x12\x01\x7f", b"\x7a\x01\xff",
    b"\x39" + bytes(8), b"\x3d" + bytes(4), b"\x3e", b"\x3f", b"\x0a\x00", b"\x12\x00", b"\x1a\x00", b"\x22\x00", b"\x2a\x00", b"\x32\x00",
    b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01", b"\x12\x06\x10\x80\x94\xeb\xdc\x03", b"\x1a\x02\x12\x00",
)
