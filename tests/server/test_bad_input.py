"""Every way to say a request wrong: one clear error that names the field, its value and what would be right; nothing written."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2

from ledger import errors, limits
from ledger.rules import compile_file
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.server.fuzz_wire import fuzz, run_with_asan
from tests.server.wire_model import METHODS, NOW_US

PROGRAMME = compile_file(Path(__file__).resolve().parents[2] / "programs" / "base.yaml")
DAY_S = 86_400
NOW_S = NOW_US // 1_000_000
EARN, BURN, RESERVE, CAPTURE, RELEASE, COMMIT, ENROLL, GET_BALANCE, GET_OPERATION = range(1, 10)
ADJUST, LINK, UNLINK = 11, 12, 13
QUOTE, SET_RUNG, DECIDE_REVIEW, ANSWER_CHALLENGE = 16, 24, 25, 26
CHANGE_BLOCKS, RETURN = 28, 30
CASES_DECIDED = (DECIDE_REVIEW, ANSWER_CHALLENGE)  # there is no case here: tests/test_cases.py
DECIDED = [method for method in METHODS if method != QUOTE and method not in CASES_DECIDED]  # a quote is read, and answered METHOD_UNKNOWN
INVALID_ARGUMENT = 3


def good(method: int) -> Any:
    """A request that succeeds on `ledger()`: member 1 has 50 points and reservation 4, whose number is its sequence."""
    message: Any = METHODS[method]()
    names = message.DESCRIPTOR.fields_by_name
    if "request_id" in names:
        message.request_id = "a-new-request-id-0001" if method != GET_OPERATION else "request-of-the-earn"
    if "sent_time" in names:
        message.sent_time.FromMicroseconds(NOW_US)
    if "member" in names:
        message.member.member_id = 1
    if "changes" in names:
        message.changes.add().member.member_id = 1
    if "identifiers" in names:
        message.identifiers.add(card="2900000000042")
    if "identifier" in names:
        message.identifier.card = "2900000000001" if method == UNLINK else "2900000000043"
    if "review_id" in names:
        message.review_id, message.verdict = 1, 1
    if method == CHANGE_BLOCKS:
        message.add.append("card:29009*")
    if "rung" in names:
        message.rung = 2
    if "operator" in names:
        message.operator, message.reason = "anna", "ticket 4711"
    if "receipt" in names:
        fill_receipt(message.receipt, "000002")
    if method == RETURN:
        fill_key(message.receipt_key, "000001")
    if "points" in names:
        message.points = 5
    if "reservation_id" in names:
        message.reservation_id = 3
    return message


def fill_receipt(receipt: Any, number: str) -> None:
    fill_key(receipt.key, number)
    receipt.currency_code = "USD"
    receipt.lines.add(sku="4001234567890", category="dairy", quantity_milli=1000, amount_minor=400)
    receipt.lines.add(sku="4001234567891", quantity_milli=357, amount_minor=600)
    receipt.total_minor = 1000


def fill_key(key: Any, number: str = "000002") -> None:
    key.store, key.till, key.business_day, key.number = "S042", "7", 20261122, number


@pytest.fixture
def ledger() -> LocalLedger:
    ledger = LocalLedger(PROGRAMME.image, PROGRAMME.source, NOW_US)
    earn = good(EARN)
    earn.request_id = "request-of-the-earn"
    earn.member.card = "2900000000001"
    earn.receipt.key.number = "000001"
    reserve = good(RESERVE)
    reserve.request_id = "request-of-the-reserve"
    for method, message in ((EARN, earn), (RESERVE, reserve)):
        code, payload, _ = ledger.call(method, message.SerializeToString(), NOW_US)
        assert code == 0, payload
    return ledger


def refuse(ledger: LocalLedger, method: int, request: bytes) -> tuple[int, str, error_details_pb2.ErrorInfo]:
    """Send it; it must be refused, and nothing may have changed: digest, entries, sequence. A good one must go through afterwards."""
    before = ledger.digest(), ledger.entries(), ledger.stats()
    code, payload, _ = ledger.call(method, request, NOW_US)
    assert code != 0, "the bad request was taken"
    assert (ledger.digest(), ledger.entries(), ledger.stats()) == before
    assert ledger.outcome()["written"] == 0
    status = status_pb2.Status.FromString(payload)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message, info.domain) == (code, ledger.outcome()["message"], errors.DOMAIN)
    method = EARN if method in CASES_DECIDED else method
    assert ledger.call(method, good(method).SerializeToString(), NOW_US)[0] == 0, "the ledger does not answer a good request any more"
    return code, status.message, info


def test_the_good_request_of_every_method_succeeds(ledger: LocalLedger) -> None:
    for method in DECIDED:
        fresh = LocalLedger.replay(ledger.entries())
        code, payload, _ = fresh.call(method, good(method).SerializeToString(), NOW_US)
        assert code == 0, status_pb2.Status.FromString(payload)


Spoil = Callable[[Any], object]


def tenders(*rows: tuple[str, int]) -> Spoil:
    return lambda message: message.receipt.tenders.extend(pb.Tender(name=name, amount_minor=amount) for name, amount in rows)


def promo_codes(*codes: str) -> Spoil:
    return lambda message: message.receipt.promo_codes.extend(codes)


def set_to(path: str, value: Any) -> Spoil:
    """Set the field at a path like receipt.lines[1].sku."""
    *outer, name = path.replace("[", ".").replace("]", "").split(".")

    def spoil(message: Any) -> None:
        for part in outer:
            message = message[int(part)] if part.isdigit() else getattr(message, part)
        setattr(message, name, value)

    return spoil


def clear(name: str) -> Spoil:
    return lambda message: message.ClearField(name)


def seconds(path: str, value: int, nanos: int = 0) -> Spoil:
    def spoil(message: Any) -> None:
        for part in path.split("."):
            message = getattr(message, part)
        message.seconds, message.nanos = value, nanos
        message.SetInParent()

    return spoil


def identifiers(*members: dict[str, Any]) -> Spoil:
    def spoil(message: Any) -> None:
        del message.identifiers[:]
        for member in members:
            message.identifiers.add(**member)

    return spoil


def empty_key(message: Any) -> None:
    message.ClearField("receipt_key")
    message.receipt_key.SetInParent()


def keyed(path: str, value: Any) -> Spoil:
    def spoil(message: Any) -> None:
        fill_key(message.receipt_key)
        set_to(path, value)(message)

    return spoil


def many_lines(message: Any) -> None:
    del message.receipt.lines[:]
    for _ in range(limits.LINES_MAX + 1):
        message.receipt.lines.add(sku="s", amount_minor=1)
    message.receipt.total_minor = limits.LINES_MAX + 1


def captured_by(reservation_id: int, points: int) -> Spoil:
    def spoil(message: Any) -> None:
        message.capture.reservation_id, message.capture.points = reservation_id, points

    return spoil


def taken_until(day: int) -> Spoil:
    def spoil(message: Any) -> None:
        message.points, message.expiry_day = -1, day

    return spoil


def day_of(days_from_now: int) -> int:
    day = datetime.datetime.fromtimestamp(NOW_S, datetime.UTC).date() + datetime.timedelta(days=days_from_now)
    return day.year * 10_000 + day.month * 100 + day.day


LONG = "x" * 200
HUGE = 2**63 - 1
BY_HAND = (ADJUST, LINK, UNLINK)
WRITES = (EARN, BURN, RESERVE, CAPTURE, RELEASE, COMMIT, ENROLL, RETURN, *BY_HAND)
WITH_MEMBER = (EARN, BURN, RESERVE, CAPTURE, RELEASE, COMMIT, GET_BALANCE, ADJUST, LINK)
WITH_ID = (*WRITES, GET_OPERATION)
KEYED = (BURN, CAPTURE, RETURN)
HIDDEN = "(not shown)"
WITH_ORIGIN = tuple(method for method in METHODS if "origin" in METHODS[method].DESCRIPTOR.fields_by_name)
AHEAD = "2026-11-22T05:55:56.000000Z"     # NOW_S + 301
TOO_OLD = "2025-10-17T05:50:55.000000Z"   # NOW_S - 401 days

CASES = [
    # methods               what is wrong                                            field named            value named (None: not set)
    (WITH_ID,               clear("request_id"),                                     "request_id",          ""),
    (WITH_ID,               set_to("request_id", "fifteen-letters"),                 "request_id",          "fifteen-letters"),
    (WITH_ID,               set_to("request_id", LONG),                              "request_id",          LONG[:64]),
    (WITH_ID,               set_to("request_id", "with a space-1234"),               "request_id",          "with a space-1234"),
    (WITH_ID,               set_to("request_id", "zażółć-gęślą-jaźń"),               "request_id",          "zażółć-gęślą-jaźń"),
    (WRITES,                clear("sent_time"),                                      "sent_time",           None),
    (WRITES,                seconds("sent_time", 0),                                 "sent_time",           "1970-01-01T00:00:00.000000Z"),
    (WRITES,                seconds("sent_time", NOW_S + 301),                       "sent_time",           AHEAD),
    (WITH_ID,               seconds("sent_time", HUGE),                              "sent_time",           f"{HUGE} seconds"),
    (WITH_ID,               seconds("sent_time", NOW_S, -1),                         "sent_time",           "-1 nanos"),
    (WITH_ID,               seconds("sent_time", NOW_S, 10**9),                      "sent_time",           "1000000000 nanos"),
    ((RETURN,),             clear("receipt_key"),                                    "receipt_key",         None),
    (WITH_MEMBER,           clear("member"),                                         "member",              None),
    (WITH_MEMBER,           lambda m: m.member.Clear(),                              "member",              None),
    (WITH_MEMBER,           set_to("member.member_id", 0),                           "member.member_id",    "0"),
    (WITH_MEMBER,           set_to("member.member_id", -7),                          "member.member_id",    "-7"),
    (WITH_MEMBER,           set_to("member.member_id", 2**31),                       "member.member_id",    str(2**31)),
    (WITH_MEMBER,           set_to("member.card", ""),                               "member.card",         HIDDEN),
    (WITH_MEMBER,           set_to("member.card", "x" * 65),                         "member.card",         HIDDEN),
    (WITH_MEMBER,           set_to("member.card", "29\n00"),                         "member.card",         HIDDEN),
    (WITH_MEMBER,           set_to("member.phone", "0048600100100"),                 "member.phone",        HIDDEN),
    (WITH_MEMBER,           set_to("member.phone", "+123456"),                       "member.phone",        HIDDEN),
    (WITH_MEMBER,           set_to("member.phone", "+1234567890123456"),             "member.phone",        HIDDEN),
    (WITH_MEMBER,           set_to("member.phone", "+0123456789"),                   "member.phone",        HIDDEN),
    (WITH_MEMBER,           set_to("member.phone", "+48 600 100 10x"),               "member.phone",        HIDDEN),
    (WITH_MEMBER,           set_to("member.phone", "+48" + " " * 80 + "600100100"),  "member.phone",        HIDDEN),
    (WITH_MEMBER,           set_to("member.email", "nobody"),                        "member.email",        HIDDEN),
    (WITH_MEMBER,           set_to("member.email", "a@b@c"),                         "member.email",        HIDDEN),
    (WITH_MEMBER,           set_to("member.email", "a" * 128 + "@b"),                "member.email",        HIDDEN),
    (WITH_MEMBER,           set_to("member.email", "a@"),                            "member.email",        HIDDEN),
    (WITH_MEMBER,           set_to("member.app", ""),                                "member.app",          HIDDEN),
    (WITH_MEMBER,           set_to("member.app", "x" * 65),                          "member.app",          HIDDEN),
    ((EARN, COMMIT),        clear("receipt"),                                        "receipt",             None),
    ((EARN, COMMIT),        lambda m: m.receipt.ClearField("key"),                   "receipt.key",         None),
    ((EARN, COMMIT),        set_to("receipt.key.store", ""),                         "receipt.key.store",   ""),
    ((EARN, COMMIT),        set_to("receipt.key.store", "x" * 17),                   "receipt.key.store",   "x" * 17),
    ((EARN, COMMIT),        set_to("receipt.key.store", "S\0"),                      "receipt.key.store",   "S\\x00"),
    ((EARN, COMMIT),        set_to("receipt.key.till", ""),                          "receipt.key.till",    ""),
    ((EARN, COMMIT),        set_to("receipt.key.till", "x" * 17),                    "receipt.key.till",    "x" * 17),
    ((EARN, COMMIT),        set_to("receipt.key.business_day", 0),                   "receipt.key.business_day", "0"),
    ((EARN, COMMIT),        set_to("receipt.key.business_day", -20261122),           "receipt.key.business_day", "-20261122"),
    ((EARN, COMMIT),        set_to("receipt.key.business_day", 20270229),            "receipt.key.business_day", "20270229"),
    ((EARN, COMMIT),        set_to("receipt.key.business_day", 21991231),            "receipt.key.business_day", "21991231"),
    ((EARN, COMMIT),        set_to("receipt.key.business_day", day_of(2)),           "receipt.key.business_day", "20261124"),
    ((EARN, COMMIT),        set_to("receipt.key.business_day", day_of(-403)),        "receipt.key.business_day", "20251015"),
    ((EARN, COMMIT),        set_to("receipt.key.number", ""),                        "receipt.key.number",  ""),
    ((EARN, COMMIT),        set_to("receipt.key.number", "x" * 33),                  "receipt.key.number",  "x" * 33),
    ((EARN, COMMIT),        seconds("receipt.purchase_time", NOW_S + 301),           "receipt.purchase_time", AHEAD),
    ((EARN, COMMIT),        seconds("receipt.purchase_time", NOW_S - 401 * DAY_S),   "receipt.purchase_time", TOO_OLD),
    ((EARN, COMMIT),        seconds("receipt.purchase_time", -(2**63)),              "receipt.purchase_time", f"{-(2**63)} seconds"),
    ((EARN, COMMIT),        seconds("receipt.purchase_time", NOW_S, 2**31 - 1),      "receipt.purchase_time", "2147483647 nanos"),
    ((EARN, COMMIT),        set_to("receipt.currency_code", ""),                     "receipt.currency_code", ""),
    ((EARN, COMMIT),        set_to("receipt.currency_code", "EUR"),                  "receipt.currency_code", "EUR"),
    ((EARN, COMMIT),        set_to("receipt.currency_code", LONG),                   "receipt.currency_code", LONG[:64]),
    ((EARN, COMMIT),        set_to("receipt.total_minor", -1),                       "receipt.total_minor", "-1"),
    ((EARN, COMMIT),        set_to("receipt.total_minor", 999),                      "receipt.total_minor", "999"),
    ((EARN, COMMIT),        set_to("receipt.total_minor", 10**12 + 1),               "receipt.total_minor", "1000000000001"),
    ((EARN, COMMIT),        many_lines,                                              "receipt.lines",       "1001"),
    ((EARN, COMMIT),        set_to("receipt.lines[1].sku", ""),                      "receipt.lines[1].sku", ""),
    ((EARN, COMMIT),        set_to("receipt.lines[0].sku", "x" * 33),                "receipt.lines[0].sku", "x" * 33),
    ((EARN, COMMIT),        set_to("receipt.lines[0].sku", "a\tb"),                  "receipt.lines[0].sku", "a\\x09b"),
    ((EARN, COMMIT),        set_to("receipt.lines[1].category", "é" * 17),           "receipt.lines[1].category", "é" * 17),
    ((EARN, COMMIT),        set_to("receipt.lines[0].quantity_milli", -1),           "receipt.lines[0].quantity_milli", "-1"),
    ((EARN, COMMIT),        set_to("receipt.lines[1].quantity_milli", 10**9 + 1),    "receipt.lines[1].quantity_milli", "1000000001"),
    ((EARN, COMMIT),        set_to("receipt.lines[1].amount_minor", -1),             "receipt.lines[1].amount_minor", "-1"),
    ((EARN, COMMIT),        set_to("receipt.lines[1].amount_minor", HUGE),           "receipt.lines[1].amount_minor", str(HUGE)),
    ((EARN, COMMIT),        set_to("receipt.lines[1].regular_amount_minor", -1),     "receipt.lines[1].regular_amount_minor", "-1"),
    ((EARN, COMMIT),        set_to("receipt.lines[0].regular_amount_minor", HUGE),   "receipt.lines[0].regular_amount_minor", str(HUGE)),
    ((EARN, COMMIT),        tenders(*[("cash", 1)] * 17),                            "receipt.tenders",     "17"),
    ((EARN, COMMIT),        tenders(("cash", 1), ("", 1)),                           "receipt.tenders[1].name", ""),
    ((EARN, COMMIT),        tenders(("x" * 33, 1)),                                  "receipt.tenders[0].name", "x" * 33),
    ((EARN, COMMIT),        tenders(("cash", -1)),                                   "receipt.tenders[0].amount_minor", "-1"),
    ((EARN, COMMIT),        tenders(("cash", 1), ("card", 10**12 + 1)),              "receipt.tenders[1].amount_minor", "1000000000001"),
    ((EARN, COMMIT),        set_to("receipt.channel", "x" * 33),                     "receipt.channel",     "x" * 33),
    ((EARN, COMMIT),        set_to("receipt.channel", "a\tb"),                       "receipt.channel",     "a\\x09b"),
    ((EARN, COMMIT),        promo_codes(*["X"] * 17),                                "receipt.promo_codes", "17"),
    ((EARN, COMMIT),        promo_codes("SPRING", ""),                               "receipt.promo_codes[1]", ""),
    ((EARN, COMMIT),        promo_codes("x" * 33),                                   "receipt.promo_codes[0]", "x" * 33),
    ((EARN, COMMIT),        set_to("receipt.quote_token", b"x" * 71),                "receipt.quote_token", "x" * 64),
    ((EARN, COMMIT),        set_to("receipt.quote_token", b"x" * 72),                "receipt.quote_token", "x" * 64),
    ((EARN, COMMIT),        set_to("receipt.only_as_quoted", True),                  "receipt.only_as_quoted", "1"),
    ((BURN, RESERVE, GET_BALANCE), set_to("wallet", "x" * 33),                       "wallet",              "x" * 33),
    ((BURN, RESERVE, GET_BALANCE), set_to("wallet", "po\u0085ints"),                 "wallet",              "po\\xc2\\x85ints"),
    ((BURN, RESERVE),       clear("points"),                                         "points",              "0"),
    ((BURN, RESERVE),       set_to("points", -5),                                    "points",              "-5"),
    ((BURN, RESERVE, CAPTURE), set_to("points", 10**12 + 1),                         "points",              "1000000000001"),
    ((CAPTURE,),            set_to("points", -1),                                    "points",              "-1"),
    ((RESERVE,),            seconds("ttl", 0),                                       "ttl",                 "0 us"),
    ((RESERVE,),            seconds("ttl", 0, 999_999_999),                          "ttl",                 "999999 us"),
    ((RESERVE,),            seconds("ttl", -1),                                      "ttl",                 "-1000000 us"),
    ((RESERVE,),            seconds("ttl", 14 * DAY_S, 1000),                        "ttl",                 "1209600000001 us"),
    ((RESERVE,),            seconds("ttl", HUGE),                                    "ttl",                 f"{HUGE} seconds"),
    ((RESERVE,),            seconds("ttl", 0, -1),                                   "ttl",                 "-1 nanos"),
    ((CAPTURE, RELEASE),    clear("reservation_id"),                                 "reservation_id",      "0"),
    ((CAPTURE, RELEASE),    set_to("reservation_id", -3),                            "reservation_id",      "-3"),
    ((BURN, RESERVE),       seconds("purchase_time", NOW_S + 301),                   "purchase_time",       AHEAD),
    ((BURN, RESERVE),       seconds("purchase_time", NOW_S - 401 * DAY_S),           "purchase_time",       TOO_OLD),
    (KEYED,                 empty_key,                                               "receipt_key.store",   ""),
    (KEYED,                 keyed("receipt_key.store", "x" * 17),                    "receipt_key.store",   "x" * 17),
    (KEYED,                 keyed("receipt_key.till", ""),                           "receipt_key.till",    ""),
    (KEYED,                 keyed("receipt_key.business_day", 20261131),             "receipt_key.business_day", "20261131"),
    (KEYED,                 keyed("receipt_key.business_day", day_of(2)),            "receipt_key.business_day", "20261124"),
    (KEYED,                 keyed("receipt_key.number", "x" * 33),                   "receipt_key.number",  "x" * 33),
    ((COMMIT,),             lambda m: m.burn.SetInParent(),                          "burn.points",              "0"),
    ((COMMIT,),             set_to("burn.points", -1),                               "burn.points",              "-1"),
    ((COMMIT,),             set_to("burn.wallet", "x" * 33),                         "burn.wallet",              "x" * 33),
    ((COMMIT,),             lambda m: m.capture.SetInParent(),                       "capture.reservation_id", "0"),
    ((COMMIT,),             captured_by(3, -1),                                      "capture.points",      "-1"),
    ((ENROLL,),             identifiers(),                                           "identifiers",         "0"),
    ((ENROLL,),             identifiers(*({"card": f"c{i}"} for i in range(9))),     "identifiers",         "9"),
    ((ENROLL,),             identifiers({"card": "c1"}, {"card": "c2"}, {"card": "c1"}), "identifiers[2]",  None),
    ((ENROLL,),             identifiers({"card": "c1"}, {"member_id": 1}),           "identifiers[1]",      None),
    ((ENROLL,),             identifiers({"card": "c1"}, {}),                         "identifiers[1]",      None),
    ((ENROLL,),             identifiers({"member_id": 0}),                           "identifiers[0].member_id", "0"),
    ((ENROLL,),             identifiers({"card": "c1"}, {"phone": "12"}),            "identifiers[1].phone", HIDDEN),
    ((ENROLL,),             identifiers({"card": "c1"}, {"email": ""}),              "identifiers[1].email", HIDDEN),
    ((ENROLL,),             identifiers({"app": "x" * 65}),                          "identifiers[0].app",  HIDDEN),
    ((ADJUST,),             set_to("wallet", "x" * 33),                              "wallet",              "x" * 33),
    ((ADJUST,),             clear("points"),                                         "points",              "0"),
    ((ADJUST,),             set_to("points", 10**12 + 1),                            "points",              str(10**12 + 1)),
    ((ADJUST,),             set_to("points", -(10**12) - 1),                         "points",              str(-(10**12) - 1)),
    ((ADJUST,),             set_to("points", -HUGE - 1),                             "points",              str(-HUGE - 1)),
    ((ADJUST,),             set_to("expiry_day", day_of(0)),                         "expiry_day",          "20261122"),
    ((ADJUST,),             set_to("expiry_day", 20270229),                          "expiry_day",          "20270229"),
    ((ADJUST,),             set_to("expiry_day", -1),                                "expiry_day",          "-1"),
    ((ADJUST,),             set_to("expiry_day", 22000101),                          "expiry_day",          "22000101"),
    ((ADJUST,),             taken_until(20270101),                                   "expiry_day",          "20270101"),
    ((LINK, UNLINK),        clear("identifier"),                                     "identifier",          None),
    ((LINK, UNLINK),        lambda m: m.identifier.Clear(),                          "identifier",          None),
    ((LINK, UNLINK),        set_to("identifier.member_id", 1),                       "identifier",          "1"),
    ((LINK, UNLINK),        set_to("identifier.card", ""),                           "identifier.card",     HIDDEN),
    ((LINK, UNLINK),        set_to("identifier.card", "x" * 65),                     "identifier.card",     HIDDEN),
    ((LINK, UNLINK),        set_to("identifier.phone", "12"),                        "identifier.phone",    HIDDEN),
    ((LINK, UNLINK),        set_to("identifier.phone", "+48 600 100 10x"),           "identifier.phone",    HIDDEN),
    ((LINK, UNLINK),        set_to("identifier.email", "nobody"),                    "identifier.email",    HIDDEN),
    ((LINK, UNLINK),        set_to("identifier.email", "a@b@example.org"),           "identifier.email",    HIDDEN),
    ((LINK, UNLINK),        set_to("identifier.app", "29\n00"),                      "identifier.app",      HIDDEN),
    (BY_HAND,               clear("operator"),                                       "operator",            ""),
    (BY_HAND,               set_to("operator", "x" * 65),                            "operator",            "x" * 64),
    (BY_HAND,               set_to("operator", "anna\n"),                            "operator",            "anna\\x0a"),
    (BY_HAND,               clear("reason"),                                         "reason",              ""),
    (BY_HAND,               set_to("reason", "x" * 129),                             "reason",              "x" * 64),
    (BY_HAND,               set_to("reason", "\x7f"),                                "reason",              "\\x7f"),
    ((CHANGE_BLOCKS,),      clear("add"),                                            "add",                 "0"),
    ((CHANGE_BLOCKS,),      lambda message: message.add.append("card"),              "add[1]",              HIDDEN),
    ((CHANGE_BLOCKS,),      lambda message: message.add.append("purse:1"),           "add[1]",              HIDDEN),
    ((CHANGE_BLOCKS,),      lambda message: message.add.append("phone:+48600*"),     "add[1]",              HIDDEN),
    ((CHANGE_BLOCKS,),      lambda message: message.add.append("till:S042"),         "add[1]",              HIDDEN),
    ((CHANGE_BLOCKS,),      lambda message: message.add.append("card:*"),            "add[1]",              HIDDEN),
    ((CHANGE_BLOCKS,),      lambda message: message.add.extend(["card:1"] * 128),    "add",                 "129"),
    ((CHANGE_BLOCKS,),      lambda message: message.remove.append("email:nobody"),   "remove[0]",           HIDDEN),
    ((CHANGE_BLOCKS,),      lambda message: message.remove.extend(["app:1"] * 129),  "remove",              "129"),
    ((DECIDE_REVIEW,),      set_to("review_id", 0),                                  "review_id",           "0"),
    ((DECIDE_REVIEW,),      set_to("verdict", 0),                                    "verdict",             "0"),
    ((DECIDE_REVIEW,),      set_to("verdict", 3),                                    "verdict",             "3"),
    ((ANSWER_CHALLENGE,),   set_to("challenge_id", 0),                               "challenge_id",        "0"),
    ((SET_RUNG,),       set_to("rung", 0),                                       "rung",                "0"),
    ((SET_RUNG,),       set_to("rung", 6),                                       "rung",                "6"),
    ((SET_RUNG,),       seconds("lasts", -1),                                    "lasts",               "-1000000 us"),
    ((SET_RUNG,),       seconds("lasts", limits.RUNG_S_MAX, 1000),           "lasts",               f"{limits.RUNG_S_MAX * 10**6 + 1} us"),
    (WITH_ORIGIN,           set_to("origin.device", "x" * 65),                       "origin.device",       HIDDEN),
    (WITH_ORIGIN,           set_to("origin.cashier", "x" * 33),                      "origin.cashier",      "x" * 33),
    (WITH_ORIGIN,           set_to("origin.cashier", "7\n"),                         "origin.cashier",      "7\\x0a"),
    (WITH_ORIGIN,           set_to("origin.payment_card", "5" * 65),                 "origin.payment_card", HIDDEN),
    (WITH_ORIGIN,           set_to("origin.partner", "x" * 33),                      "origin.partner",      "x" * 33),
    (WITH_ORIGIN,           set_to("origin.store", "x" * 17),                        "origin.store",        "x" * 17),
    (WITH_ORIGIN,           set_to("origin.till", "x" * 17),                         "origin.till",         "x" * 17),
    ((EARN, COMMIT, QUOTE), set_to("origin.store", "S043"),                          "origin.store",        "S043"),
    ((EARN, COMMIT, QUOTE), set_to("origin.till", "8"),                              "origin.till",         "8"),
    ((GET_BALANCE,),        seconds("as_of_time", NOW_S + 301),                      "as_of_time",          AHEAD),
    ((GET_BALANCE,),        seconds("as_of_time", -(2**63)),                         "as_of_time",          f"{-(2**63)} seconds"),
]
EACH = [(method, *case[1:]) for case in CASES for method in case[0]]


NAMES = [f"{METHODS[row[0]].DESCRIPTOR.name}-{row[2]}-{row[3]}"[:70] for row in EACH]


@pytest.mark.parametrize(("method", "spoil", "field", "value"), EACH, ids=NAMES)
def test_a_malformed_field_is_named_with_its_value_and_what_would_be_right(
    ledger: LocalLedger, method: int, spoil: Spoil, field: str, value: str | None
) -> None:
    message = good(method)
    spoil(message)
    code, text, info = refuse(ledger, method, message.SerializeToString())
    assert (code, info.reason) == (INVALID_ARGUMENT, "FIELD_INVALID")
    assert info.metadata["field"] == field
    assert info.metadata.get("value") == value if value is not None else "value" not in info.metadata
    assert info.metadata["rule"].startswith("must ")
    assert text.startswith(f"{field} {info.metadata['rule']}, was ")


BATCHES = ("commands", "members")
OF_RULES = ("changes", "changes.add", "changes.remove", "birthday", "favourites")
PUBLISHING = ("source", "version", "effective_time", "files", "rules", "to")
REPEATED = ("origin", "passed")
SEARCHING = ("limit", "keys_per_limit")
FOLLOWERS = ("page_size", "page_token", "from_sequence", "store_day.store", "store_day.business_day")


def test_every_field_that_can_be_invalid_is_tried_here() -> None:
    """`payment` cannot be sent wrong (a oneof holds one), `method`, `origin` and `receipt.lines.weighed` only in a repeat; batches:
    tests/server/test_batch_wire.py; the follower's calls: tests/server/test_reading.py; what depends on the programme:
    tests/rules/test_core.py; publishing it: tests/server/test_rules.py; searching keys of limits: tests/test_limit_keys.py."""
    tried = {re.sub(r"\[\d+\]|^burn\.|^capture\.", "", row[2]).replace("identifiers.", "member.") for row in EACH}
    elsewhere = ("", "payment", "method", "receipt.lines.weighed", *BATCHES, *FOLLOWERS, *OF_RULES, *PUBLISHING, *REPEATED, *SEARCHING)
    assert tried == {field.name for field in errors.FIELDS if field.name not in elsewhere}


NOT_UTF8 = [
    # method        bytes behind a good request (a later one wins or is added)                    field
    (EARN,          b"\x0a\x01\xff",                                                              "request_id"),
    (EARN,          b"\x1a\x03\x12\x01\xff",                                                      "member.card"),
    (GET_BALANCE,   b"\x0a\x03\x1a\x01\xff",                                                      "member.phone"),
    (GET_BALANCE,   b"\x0a\x03\x22\x01\xff",                                                      "member.email"),
    (GET_BALANCE,   b"\x0a\x03\x2a\x01\xff",                                                      "member.app"),
    (EARN,          b"\x22\x05\x0a\x03\x0a\x01\xff",                                              "receipt.key.store"),
    (EARN,          b"\x22\x05\x0a\x03\x12\x01\xff",                                              "receipt.key.till"),
    (EARN,          b"\x22\x05\x0a\x03\x22\x01\xff",                                              "receipt.key.number"),
    (EARN,          b"\x22\x03\x1a\x01\xff",                                                      "receipt.currency_code"),
    (EARN,          b"\x22\x05\x2a\x03\x0a\x01\xff",                                              "receipt.lines[2].sku"),
    (EARN,          b"\x22\x05\x32\x03\x0a\x01\xff",                                              "receipt.tenders[0].name"),
    (EARN,          b"\x22\x03\x3a\x01\xff",                                                      "receipt.channel"),
    (COMMIT,        b"\x22\x03\x42\x01\xff",                                                      "receipt.promo_codes[0]"),
    (COMMIT,        b"\x22\x05\x2a\x03\x12\x01\xff",                                              "receipt.lines[2].category"),
    (BURN,          b"\x22\x01\xff",                                                              "wallet"),
    (COMMIT,        b"\x2a\x03\x0a\x01\xff",                                                      "burn.wallet"),
    (BURN,          b"\x32\x03\x0a\x01\xff",                                                      "receipt_key.store"),
    (ENROLL,        b"\x1a\x03\x12\x01\xff",                                                      "identifiers[1].card"),
    (ADJUST,        b"\x22\x01\xff",                                                              "wallet"),
    (ADJUST,        b"\x3a\x01\xff",                                                              "operator"),
    (ADJUST,        b"\x42\x01\xff",                                                              "reason"),
    (LINK,          b"\x1a\x03\x12\x01\xff",                                                      "member.card"),
    (LINK,          b"\x22\x03\x12\x01\xff",                                                      "identifier.card"),
    (LINK,          b"\x2a\x01\xff",                                                              "operator"),
    (LINK,          b"\x32\x01\xff",                                                              "reason"),
    (UNLINK,        b"\x1a\x03\x1a\x01\xff",                                                      "identifier.phone"),
    (UNLINK,        b"\x1a\x03\x22\x01\xff",                                                      "identifier.email"),
    (UNLINK,        b"\x1a\x03\x2a\x01\xff",                                                      "identifier.app"),
    (UNLINK,        b"\x22\x01\xff",                                                              "operator"),
    (UNLINK,        b"\x2a\x01\xff",                                                              "reason"),
]


@pytest.mark.parametrize(("method", "tail", "field"), NOT_UTF8)
def test_text_that_is_not_utf8_is_refused_with_its_field(ledger: LocalLedger, method: int, tail: bytes, field: str) -> None:
    code, _, info = refuse(ledger, method, good(method).SerializeToString() + tail)
    assert (code, info.reason, info.metadata["field"]) == (INVALID_ARGUMENT, "FIELD_INVALID", field)
    assert info.metadata["value"] == (HIDDEN if field.startswith(("member", "identifier")) else "\\xff")


@pytest.mark.parametrize("method", DECIDED)
def test_bytes_that_are_no_message_are_refused_with_the_place_where_they_break(ledger: LocalLedger, method: int) -> None:
    request = good(method).SerializeToString()
    code, text, info = refuse(ledger, method, request + b"\x0f")
    assert (code, info.reason, info.metadata["offset"]) == (INVALID_ARGUMENT, "MESSAGE_MALFORMED", str(len(request)))
    assert text.endswith(f"it breaks at byte {len(request)}")


@pytest.mark.parametrize("method", [0, 10, 100, 200])
def test_an_unknown_method_is_unimplemented(ledger: LocalLedger, method: int) -> None:
    before = ledger.digest()
    code, payload, _ = ledger.call(method, b"", NOW_US)
    assert (code, ledger.digest()) == (12, before)
    assert b"METHOD_UNKNOWN" in payload


def paid_by(card: str, wallet: str = "") -> Spoil:
    def spoil(message: Any) -> None:
        message.member.card, message.burn.points, message.burn.wallet = card, 1, wallet

    return spoil


def wallet(field: str) -> dict[str, str]:
    return {"field": field, "value": "stamps"}


OTHERS = [
    # method       what is asked                                    code  reason                    metadata
    (BURN,         set_to("member.member_id", 2),                   5,    "MEMBER_NOT_FOUND",       {"field": "member.member_id"}),
    (EARN,         set_to("member.member_id", 2),                   5,    "MEMBER_NOT_FOUND",       {"field": "member.member_id"}),
    (GET_BALANCE,  set_to("member.card", "2900000000099"),          5,    "MEMBER_NOT_FOUND",       {"field": "member.card"}),
    (COMMIT,       paid_by("29"),                                   5,    "MEMBER_NOT_FOUND",       {"field": "member.card"}),
    (BURN,         set_to("wallet", "stamps"),                      5,    "WALLET_NOT_FOUND",       wallet("wallet")),
    (COMMIT,       paid_by("2900000000001", "stamps"),              5,    "WALLET_NOT_FOUND",       wallet("burn.wallet")),
    (GET_BALANCE,  set_to("wallet", "Points"),                      5,    "WALLET_NOT_FOUND",       {"field": "wallet", "value": "Points"}),
    (CAPTURE,      set_to("reservation_id", 99),                    5,    "RESERVATION_NOT_FOUND",  {"reservation_id": "99"}),
    (RELEASE,      set_to("reservation_id", HUGE),                  5,    "RESERVATION_NOT_FOUND",  {"reservation_id": str(HUGE)}),
    (EARN,         set_to("receipt.key.number", "000001"),          6,    "RECEIPT_ALREADY_POSTED", {"sequence": "2"}),
    (COMMIT,       set_to("receipt.key.number", "000001"),          6,    "RECEIPT_ALREADY_POSTED", {"sequence": "2"}),
    (EARN,         set_to("request_id", "request-of-the-earn"),     6,    "REQUEST_ID_REUSED",      {"field": "member", "sequence": "2"}),
    (BURN,         set_to("request_id", "request-of-the-earn"),     6,    "REQUEST_ID_REUSED",      {"field": "method", "sequence": "2"}),
    (RETURN,       set_to("receipt_key.number", "000009"),          5,    "RECEIPT_NOT_FOUND",      {}),
    (RETURN,       set_to("request_id", "request-of-the-earn"),     6,    "REQUEST_ID_REUSED",      {"field": "method", "sequence": "2"}),
    (GET_OPERATION, set_to("request_id", "request-of-nobody-1"),    5,    "OPERATION_NOT_FOUND",    {}),
    (ENROLL,       identifiers({"member_id": 2}, {"card": "c"}),    5,    "MEMBER_NOT_FOUND",       {"field": "identifiers[0].member_id"}),
    (ADJUST,       set_to("member.member_id", 2),                   5,    "MEMBER_NOT_FOUND",       {"field": "member.member_id"}),
    (ADJUST,       set_to("wallet", "stamps"),                      5,    "WALLET_NOT_FOUND",       wallet("wallet")),
    (LINK,         set_to("member.card", "2900000000099"),          5,    "MEMBER_NOT_FOUND",       {"field": "member.card"}),
    (UNLINK,       set_to("identifier.card", "2900000000099"),      5,    "IDENTIFIER_NOT_FOUND",   {"field": "identifier.card"}),
    (ADJUST,       set_to("request_id", "request-of-the-earn"),     6,    "REQUEST_ID_REUSED",      {"field": "method", "sequence": "2"}),
]


@pytest.mark.parametrize(("method", "spoil", "code", "reason", "metadata"), OTHERS)
def test_what_is_not_there_or_was_there_before_is_refused_and_not_remembered(
    ledger: LocalLedger, method: int, spoil: Spoil, code: int, reason: str, metadata: dict[str, str]
) -> None:
    message = good(method)
    if reason == "REQUEST_ID_REUSED" and method == EARN:
        enroll = good(ENROLL)
        enroll.request_id = "request-of-an-enroll"
        assert ledger.call(ENROLL, enroll.SerializeToString(), NOW_US)[0] == 0
        message.member.member_id = 2
    spoil(message)
    if method == GET_OPERATION:
        message.ClearField("sent_time")
    found, _, info = refuse(ledger, method, message.SerializeToString())
    assert (found, info.reason, dict(info.metadata)) == (code, reason, metadata)


def points(**numbers: int) -> dict[str, str]:
    return {f"{name}_points": str(number) for name, number in numbers.items()}


REMEMBERED = [
    # method   what is asked                              code  reason                     metadata
    (BURN,     set_to("points", 46),                      9,    "INSUFFICIENT_POINTS",     points(available=45, requested=46)),
    (RESERVE,  set_to("points", 10**12),                  9,    "INSUFFICIENT_POINTS",     points(available=45, requested=10**12)),
    (ADJUST,   set_to("points", -46),                     9,    "INSUFFICIENT_POINTS",     points(available=45, requested=46)),
    (COMMIT,   set_to("burn.points", 60),                 9,    "INSUFFICIENT_POINTS",     points(available=45, requested=60)),
    (CAPTURE,  set_to("points", 6),                       9,    "CAPTURE_ABOVE_RESERVED",  points(reserved=5, requested=6)),
    (RELEASE,  set_to("member.member_id", 2),             9,    "RESERVATION_FOREIGN",     {"reservation_id": "3"}),
]


@pytest.mark.parametrize(("method", "spoil", "code", "reason", "metadata"), REMEMBERED)
def test_a_refusal_of_state_is_remembered_word_for_word(
    ledger: LocalLedger, method: int, spoil: Spoil, code: int, reason: str, metadata: dict[str, str]
) -> None:
    enroll = good(ENROLL)
    enroll.request_id = "request-of-an-enroll"
    assert ledger.call(ENROLL, enroll.SerializeToString(), NOW_US)[0] == 0
    message = good(method)
    spoil(message)
    request, before = message.SerializeToString(), ledger.digest()
    first_code, first, sequence = ledger.call(method, request, NOW_US)
    assert ledger.digest() == before, "a refusal changed the state"
    again_code, again, again_sequence = ledger.call(method, request, NOW_US + 60_000_000)
    assert (first_code, again_code, again_sequence) == (code, code, sequence)
    info, repeat = error_info(first), error_info(again)
    assert (info.reason, dict(info.metadata)) == (reason, metadata)
    assert dict(repeat.metadata) == metadata | {"replayed": "true"}
    assert status_pb2.Status.FromString(first).message == status_pb2.Status.FromString(again).message
    question = pb.GetOperationRequest(request_id=message.request_id)
    answer = pb.GetOperationResponse.FromString(ledger.call(GET_OPERATION, question.SerializeToString(), NOW_US)[1])
    assert answer.error == status_pb2.Status.FromString(first)


def error_info(payload: bytes) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(payload).details[0].Unpack(info)
    return info


def test_a_ledger_without_a_programme_is_not_ready() -> None:
    ledger = LocalLedger(None, None, NOW_US)
    code, payload, _ = ledger.call(EARN, good(EARN).SerializeToString(), NOW_US)
    status = status_pb2.Status.FromString(payload)
    retry = error_details_pb2.RetryInfo()
    assert (code, error_info(payload).reason) == (14, "NOT_READY")
    assert status.details[1].Unpack(retry) and retry.retry_delay.ToMilliseconds() == 100


def test_an_image_that_does_not_load_is_refused() -> None:
    with pytest.raises(ValueError, match="does not load"):
        LocalLedger(PROGRAMME.image[:-1], PROGRAMME.source, NOW_US)


def test_thirty_thousand_mutated_requests_leave_the_ledger_alive() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    answers = fuzz(30_000, seed)
    assert answers[0] > 1000 and answers[INVALID_ARGUMENT] > 10_000, f"the mutations have lost their bite: {answers}"


@pytest.mark.soak
def test_a_million_mutated_requests_leave_the_ledger_alive_under_address_sanitizer() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert run_with_asan(["--count", "1000000", "--seed", str(seed)]) == 0
