"""Quotes and their tokens: what a quote says beside test_core.py, and what a commit with its token makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.journal import read_entry
from ledger.rules import check
from ledger.rules.reference import Line, Receipt
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.rules import generate
from tests.rules.compiled import Compiled
from tests.rules.test_core import ADJUST, BALANCE, BY_HAND, COMMIT, DAY_US, EARN, OPERATION, QUOTE, START_US, Shop

RESERVE, UNLINK = 3, 13
MINUTE_US = 60_000_000
TTL_US = 15 * MINUTE_US
POINTS, DISCOUNTS, PAID, STANDING = 1, 2, 3, 4

SOURCE = """
programme: Small
currency: EUR
zone: Europe/Warsaw
anonymous_accounts: true
wallets: [{name: points}, {name: miles}]
tiers:
  levels:
    - name: base
    - {name: silver, reach: {receipts: 2}}
    - {name: gold, reach: {any: [{receipts: 9}, {spent: 5000.00, in: 30 days}]}}
catalogue: [{sku: milk, category: Food}, {sku: beer, category: Drinks}]
campaigns: {spring: {points: 30}}
rules:
  - {name: Base, percent: 10, caps: [{per: day, points: 300}]}
  - {name: Late, when: {hours: {from: "18:00", to: "24:00"}}, give: 7, to_wallet: miles}
  - {name: Spring, give: 20, campaign: spring}
  - {name: Card, when: {tier: silver}, discount_percent: 10, per: line}
  - {name: Delivery, when: {total: {from: 50.00}}, entitle: free_delivery}
burn:
  - {name: Half, share: 50, min: 2}
"""
NOON_US = START_US - START_US % DAY_US + 10 * 3_600_000_000  # 12:00 in Warsaw


@pytest.fixture
def shop() -> Shop:
    made = Shop(check.check_source(SOURCE.encode()), NOON_US)
    made.enroll(1)
    return made


def receipt_of(shop: Shop, number: int, amount: int, **fields: Any) -> Any:
    return shop.request(number, Receipt(amount, (Line("milk", amount),), store="1", **fields), shop.now)


def commit_of(request: Any, token: bytes = b"", *, only: bool = False, burn: int = 0) -> Any:
    made = pb.CommitReceiptRequest(member=request.member, receipt=request.receipt)
    made.receipt.quote_token, made.receipt.only_as_quoted = token, only
    if burn:
        made.burn.points = burn
    return made


def written(shop: Shop) -> int:
    return len(shop.core.entries())


# --- the quote --------------------------------------------------------------------------------------------------------


def test_somebody_new_is_quoted_and_not_enrolled(shop: Shop) -> None:
    request = receipt_of(shop, 2, 1000)
    reason, quote = shop.quote(request)
    assert (reason, quote.member_id, quote.sequence, [row.points for row in quote.points]) == ("", 0, 0, [21])
    assert shop.call(BALANCE, pb.GetBalanceRequest(member=request.member))[0] == "MEMBER_NOT_FOUND"
    for member in (pb.MemberRef(member_id=9), pb.MemberRef(card="card-2")):
        asked = pb.QuoteReceiptRequest(member=member, receipt=request.receipt, burn=pb.Burn(points=2) if member.card else None)
        assert shop.call(QUOTE, asked)[0] == "MEMBER_NOT_FOUND", "neither a number nor whoever wants to pay"


def test_a_key_may_be_known_in_part_or_not_at_all(shop: Shop) -> None:
    whole = receipt_of(shop, 1, 6000)
    answers = []
    for fields in ((), ("till",), ("till", "number", "business_day")):
        asked = pb.QuoteReceiptRequest(member=whole.member, receipt=whole.receipt)
        for field in fields:
            asked.receipt.key.ClearField(field)
        answers.append(shop.call(QUOTE, asked)[1])
    asked.receipt.ClearField("key")
    reason, without = shop.call(QUOTE, asked)
    assert reason == "" and without.points == answers[0].points
    assert len({answer.SerializeToString() for answer in answers}) == 1, "not even the token differs"
    asked.receipt.key.business_day = 20261301
    assert dict(shop.call(QUOTE, asked)[1].metadata)["field"] == "receipt.key.business_day"
    asked.receipt.ClearField("key")
    asked.receipt.currency_code = "PLN"
    assert dict(shop.call(QUOTE, asked)[1].metadata)["field"] == "receipt.currency_code"
    assert dict(shop.call(QUOTE, pb.QuoteReceiptRequest(member=whole.member))[1].metadata)["field"] == "receipt"


def test_the_largest_burn_is_told_with_what_allows_no_more(shop: Shop) -> None:
    request = receipt_of(shop, 1, 1000)

    def limit() -> Any:
        (row,) = shop.quote(request)[1].burn_limits
        return row.wallet, row.points, row.rule, list(row.bounds)

    assert limit() == ("points", 0, "Half", [pb.BurnLimit.BOUND_BALANCE])
    shop.call(ADJUST, admin.AdjustPointsRequest(member=request.member, points=5, **BY_HAND))
    assert limit() == ("points", 5, "Half", [pb.BurnLimit.BOUND_BALANCE, pb.BurnLimit.BOUND_SHARE])
    shop.call(ADJUST, admin.AdjustPointsRequest(member=request.member, points=5, **BY_HAND))
    assert limit() == ("points", 5, "Half", [pb.BurnLimit.BOUND_SHARE])
    reason, info = shop.quote(commit_of(request, burn=6))
    assert (reason, dict(info.metadata)) == ("BURN_NOT_ALLOWED", {"largest_points": "5", "requested_points": "6"})
    reason, quote = shop.quote(commit_of(request, burn=5))
    assert (reason, quote.result.paid_minor) == ("", 500)


def test_what_is_missing_to_the_next_level(shop: Shop) -> None:
    request = receipt_of(shop, 1, 1000)
    told = [[(row.tier, row.receipts, row.spent_minor, row.window) for row in shop.quote(request)[1].result.standing.missing]]
    shop.call(EARN, request)
    told.append([(row.tier, row.receipts, row.spent_minor, row.window) for row in shop.quote(request)[1].result.standing.missing])
    assert told == [[("silver", 1, 0, "lifetime")], [("gold", 7, 0, "lifetime"), ("gold", 0, 498_000, "30 days")]]


def test_a_reservation_that_is_over_is_free_for_a_quote_as_for_its_commit(shop: Shop) -> None:
    request = receipt_of(shop, 1, 1000)
    shop.call(ADJUST, admin.AdjustPointsRequest(member=request.member, points=10, **BY_HAND))
    hold = pb.ReservePointsRequest(member=request.member, points=10)
    hold.ttl.FromSeconds(60)
    reserved = shop.call(RESERVE, hold)[1].reservation.reservation_id
    capture = pb.CommitReceiptRequest(member=request.member, receipt=request.receipt, capture=pb.Capture(reservation_id=reserved, points=5))
    assert shop.quote(commit_of(request, burn=5))[0] == "INSUFFICIENT_POINTS"
    assert shop.quote(capture)[0] == ""
    shop.now += 60_000_000
    reason, info = shop.quote(capture)
    assert (reason, info.metadata["state"]) == ("RESERVATION_NOT_ACTIVE", "4")
    reason, quote = shop.quote(commit_of(request, burn=5))
    assert (reason, quote.burn_limits[0].points) == ("", 5)
    reason, answer = shop.call(COMMIT, commit_of(request, quote.token, burn=5))
    assert (reason, answer.entry.burned_points, list(answer.result.changed)) == ("", 5, [])
    shop.one_digest()


def test_a_quote_waits_for_what_it_tells(shop: Shop) -> None:
    """The last entries of the member, of campaigns, and of the rules; where it names nobody, of unlinks."""
    shop.call(EARN, receipt_of(shop, 1, 1000))
    taken = written(shop)
    shop.enroll(2)
    for number in (1, 2):
        shop.quote(receipt_of(shop, number, 1000))
        assert shop.core.outcome()["wait_sequence"] == (taken if number == 1 else taken + 1)
    shop.call(EARN, receipt_of(shop, 1, 1000))
    shop.quote(receipt_of(shop, 2, 1000))
    assert shop.core.outcome()["wait_sequence"] == taken + 2
    unlink = admin.UnlinkIdentifierRequest(identifier=pb.MemberRef(card="card-2"), **BY_HAND)
    assert shop.call(UNLINK, unlink)[0] == ""
    shop.quote(receipt_of(shop, 2, 1000))
    assert shop.core.outcome()["wait_sequence"] == taken + 3
    shop.core.publish(shop.compiled.image, b"", shop.now)
    shop.quote(receipt_of(shop, 1, 1000))
    assert shop.core.outcome()["wait_sequence"] == taken + 4


# --- the token --------------------------------------------------------------------------------------------------------


def test_a_commit_comes_to_what_was_quoted(shop: Shop) -> None:
    request = receipt_of(shop, 1, 6000)
    quote = shop.quote(request)[1]
    assert len(quote.token) == 72
    assert quote.token_expire_time.ToMicroseconds() == shop.now + TTL_US
    shop.now += 9 * MINUTE_US
    reason, answer = shop.call(COMMIT, commit_of(request, quote.token, only=True))
    assert (reason, answer.entry.awards, list(answer.result.changed)) == ("", quote.awards, [])
    answer.result.standing.ClearField("missing")
    told = quote.result
    told.standing.ClearField("missing")
    assert answer.result == told
    assert read_entry(shop.core.entries()[-1])["quote"] == {
        "program": 1, "business_time_us": quote.purchase_time.ToMicroseconds(), "changed": 0}
    shop.one_digest()


def test_the_time_of_the_quote_decides(shop: Shop) -> None:
    """Five to six in the evening, and five past."""
    shop.now = NOON_US + 5 * 3_600_000_000 + 55 * MINUTE_US
    request = receipt_of(shop, 1, 1000)
    request.receipt.ClearField("purchase_time")
    quote = shop.quote(request)[1]
    shop.now += 10 * MINUTE_US
    assert {row.wallet for row in quote.points} == {"points"}
    assert {row.wallet for row in shop.quote(request)[1].points} == {"points", "miles"}
    request.receipt.purchase_time.FromMicroseconds(shop.now)  # the till's own time changes nothing
    reason, answer = shop.call(COMMIT, commit_of(request, quote.token))
    assert (reason, answer.entry.awards) == ("", quote.awards)


def test_a_token_is_good_for_fifteen_minutes(shop: Shop) -> None:
    request = receipt_of(shop, 1, 1000)
    quote = shop.quote(request)[1]
    shop.now += TTL_US
    before = written(shop)
    reason, info = shop.call(COMMIT, commit_of(request, quote.token))
    assert (reason, info.metadata["expire_time_us"], written(shop)) == ("QUOTE_EXPIRED", str(shop.now), before)
    shop.now -= 1
    assert shop.call(COMMIT, commit_of(request, quote.token))[0] == ""


@pytest.mark.parametrize("change", ["member", "store", "total", "line", "sku", "quantity", "weighed", "regular", "channel", "tender",
                                    "promo_code"])
def test_a_token_is_of_its_receipt_and_member(shop: Shop, change: str) -> None:
    shop.enroll(2)
    request = receipt_of(shop, 1, 1000)
    token = shop.quote(request)[1].token
    made = commit_of(request, token)
    receipt, line = made.receipt, made.receipt.lines[0]
    changes: dict[str, Any] = {
        "member": lambda: setattr(made.member, "card", "card-2"), "store": lambda: setattr(receipt.key, "store", "2"),
        "total": lambda: (setattr(receipt, "total_minor", 1001), setattr(line, "amount_minor", 1001)),
        "line": lambda: (receipt.lines.add(sku="milk")), "sku": lambda: setattr(line, "sku", "beer"),
        "quantity": lambda: setattr(line, "quantity_milli", 2000), "weighed": lambda: setattr(line, "weighed", True),
        "regular": lambda: setattr(line, "regular_amount_minor", 1100), "channel": lambda: setattr(receipt, "channel", "app"),
        "tender": lambda: receipt.tenders.add(name="cash", amount_minor=1), "promo_code": lambda: receipt.promo_codes.append("X"),
    }
    changes[change]()
    before = written(shop)
    reason, info = shop.call(COMMIT, made)
    assert (reason, info.metadata["member_id"], written(shop)) == ("QUOTE_FOREIGN", "1", before)
    made.receipt.quote_token = b""
    assert shop.send(COMMIT, made)[0] == "", "nothing is remembered of the refusal"


def test_a_token_of_somebody_new_is_of_nobody_else(shop: Shop) -> None:
    token = shop.quote(receipt_of(shop, 2, 1000))[1].token
    assert shop.call(EARN, commit_to_earn(receipt_of(shop, 3, 1000), token))[0] == "QUOTE_FOREIGN"
    reason, answer = shop.call(EARN, commit_to_earn(receipt_of(shop, 2, 1000), token))
    assert (reason, answer.entry.member_id) == ("", 2)
    assert shop.call(EARN, commit_to_earn(receipt_of(shop, 2, 1000), token))[0] == "QUOTE_FOREIGN", "the account is not new any more"


def commit_to_earn(request: Any, token: bytes) -> Any:
    made = pb.EarnPointsRequest(member=request.member, receipt=request.receipt)
    made.receipt.quote_token = token
    return made


def test_no_byte_of_a_token_can_be_changed(shop: Shop) -> None:
    request = receipt_of(shop, 1, 1000)
    token = shop.quote(request)[1].token
    other = Shop(shop.programme, shop.now, identity_key=bytes(range(16)))
    other.enroll(1)
    assert shop.call(COMMIT, commit_of(request, other.quote(request)[1].token))[0] == "FIELD_INVALID", "another ledger's"
    for bad in [token[:at] + bytes([token[at] ^ 1]) + token[at + 1:] for at in range(len(token))] + [token[:-1], token + b"0", bytes(72)]:
        reason, info = shop.call(COMMIT, commit_of(request, bad))
        assert (reason, info.metadata["field"]) == ("FIELD_INVALID", "receipt.quote_token")
    asked = pb.QuoteReceiptRequest(member=request.member, receipt=request.receipt)
    asked.receipt.quote_token = token
    assert dict(shop.call(QUOTE, asked)[1].metadata)["field"] == "receipt.quote_token"
    asked.receipt.quote_token, asked.receipt.only_as_quoted = b"", True
    assert dict(shop.call(QUOTE, asked)[1].metadata)["field"] == "receipt.only_as_quoted"
    assert dict(shop.call(COMMIT, commit_of(request, only=True))[1].metadata)["field"] == "receipt.only_as_quoted"


def test_what_changed_is_told_or_refused(shop: Shop) -> None:
    """Two receipts of a member are quoted, then both are committed: the second one meets another level and an emptier budget."""
    first, second, third = (receipt_of(shop, 1, 1000) for _ in range(3))
    for number, request in enumerate((first, second, third)):
        request.receipt.key.number = f"each-{number}"
    shop.call(EARN, receipt_of(shop, 1, 1000))
    quotes = [shop.quote(request)[1] for request in (first, second, third)]
    assert [sum(row.points for row in quote.points) for quote in quotes] == [11, 11, 11], "one and what the budget has left"
    assert list(shop.call(COMMIT, commit_of(first, quotes[0].token))[1].result.changed) == []
    made = commit_of(second, quotes[1].token, only=True)
    reason, info = shop.call(COMMIT, made)
    assert (reason, dict(info.metadata)) == ("QUOTE_CHANGED", {"changed": "11"})
    refused = written(shop)
    reason, info = shop.send(COMMIT, made)
    assert (reason, dict(info.metadata), written(shop)) == ("QUOTE_CHANGED", {"changed": "11", "replayed": "true"}, refused)
    made = commit_of(second, quotes[1].token)
    reason, answer = shop.call(COMMIT, made)
    assert (reason, list(answer.result.changed), answer.result.discount_minor) == ("", [POINTS, DISCOUNTS, STANDING], 100)
    again = shop.send(COMMIT, made)[1]
    assert again.replayed and again.result == answer.result
    told = shop.send(OPERATION, pb.GetOperationRequest(request_id=made.request_id))[1]
    assert told.result == answer.result
    assert read_entry(shop.core.entries()[-1])["quote"]["changed"] == 11
    shop.one_digest()


def test_another_payment_than_the_quoted_one_is_a_change(shop: Shop) -> None:
    request = receipt_of(shop, 1, 1000)
    shop.call(ADJUST, admin.AdjustPointsRequest(member=request.member, points=10, **BY_HAND))
    token = shop.quote(request)[1].token
    reason, info = shop.call(COMMIT, commit_of(request, token, only=True, burn=5))
    assert (reason, int(info.metadata["changed"]) & 4) == ("QUOTE_CHANGED", 4)
    token = shop.quote(commit_of(request, burn=5))[1].token
    hold = shop.call(RESERVE, pb.ReservePointsRequest(member=request.member, points=8))[1].reservation.reservation_id
    made = commit_of(request, token, only=True)
    made.capture.reservation_id, made.capture.points = hold, 5
    assert shop.call(COMMIT, made)[0] == "", "where the same points come from is no change"
    shop.one_digest()


@pytest.mark.parametrize("field", ["quote_token", "only_as_quoted"])
def test_a_repeat_has_the_same_token(shop: Shop, field: str) -> None:
    request = receipt_of(shop, 1, 1000)
    token = shop.quote(request)[1].token
    made = commit_of(request, token, only=True)
    assert shop.call(COMMIT, made)[0] == ""
    shop.now += TTL_US
    assert shop.send(COMMIT, made)[1].replayed, "a repeat asks nothing of its token"
    if field == "quote_token":
        made.receipt.quote_token = token[:-1] + bytes([token[-1] ^ 1])
    else:
        made.receipt.only_as_quoted = False
    reason, info = shop.send(COMMIT, made)
    assert (reason, info.metadata["field"]) == ("REQUEST_ID_REUSED", f"receipt.{field}")


def test_the_rules_of_a_quote_decide_for_a_quarter_of_an_hour(shop: Shop) -> None:
    """Other rules come into force between quote and commit; then the old ones once more."""
    first, second, third = receipt_of(shop, 1, 1000), receipt_of(shop, 1, 2000), receipt_of(shop, 1, 1000)
    first.receipt.key.number, second.receipt.key.number, third.receipt.key.number = "first", "second", "third"
    quotes = [shop.quote(request)[1] for request in (first, second)]
    other = Compiled(check.check_source(SOURCE.replace("percent: 10", "percent: 50").replace("Small", "Other").encode()))
    shop.core.publish(other.image, b"", shop.now)
    now = shop.quote(third)[1]
    assert (now.program_version, now.points != quotes[0].points) == (2, True)
    shop.now += TTL_US - 1
    reason, answer = shop.call(COMMIT, commit_of(first, quotes[0].token, only=True))
    assert (reason, answer.entry.awards, answer.entry.program_version) == ("", quotes[0].awards, 1)
    entry = read_entry(shop.core.entries()[-1])
    assert (entry["program"], entry["quote"]["program"]) == (2, 1)
    shop.now += 1
    assert shop.call(COMMIT, commit_of(second, quotes[1].token))[0] == "QUOTE_EXPIRED"
    assert shop.call(COMMIT, commit_of(third, now.token))[0] == "QUOTE_EXPIRED"
    shop.core.publish(shop.compiled.image, b"", shop.now)
    assert shop.quote(second)[1].program_version == 3
    shop.one_digest()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(generate.programmes(), generate.receipts(), generate.receipts(), generate.times_us(), st.booleans())
def test_what_is_not_told_to_have_changed_is_as_quoted(
    programme: Any, ours: Receipt, other: Receipt, time_us: int, between: bool
) -> None:
    shop = Shop(programme, time_us)
    shop.enroll(1)
    shop.endow(1, 500)
    request = shop.request(1, somewhere(ours), time_us)
    request.receipt.key.number = "ours"
    reason, quote = shop.quote(request)
    if reason:
        return
    if between:
        shop.call(EARN, shop.request(1, replace(somewhere(other), burn=0), time_us))
    shop.now += MINUTE_US
    made = commit_of(request, quote.token)
    if ours.burn:
        made.burn.CopyFrom(request.burn)
    reason, answer = shop.call(COMMIT, made)
    assert not reason or (between and reason in ("INSUFFICIENT_POINTS", "BURN_NOT_ALLOWED", "POINTS_OVERFLOW"))
    if reason:
        return
    changed = set(answer.result.changed)
    now, then = answer.result, quote.result
    now.standing.ClearField("missing")
    then.standing.ClearField("missing")
    assert between or not changed
    assert (POINTS in changed) == (answer.entry.awards != quote.awards)
    assert (DISCOUNTS in changed) == (now.discounts != then.discounts)
    assert (PAID in changed) == (now.paid != then.paid)
    assert (STANDING in changed) == ((now.standing, now.entitlements) != (then.standing, then.entitlements))
    assert now.notices == then.notices
    shop.one_digest()


def somewhere(receipt: Receipt) -> Receipt:
    return receipt if receipt.store else replace(receipt, store="99")
