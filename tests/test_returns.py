"""Receipts that come back: what they earned, what they paid, what they counted, and what is refused.

The core alone, each time replayed and loaded from a snapshot. That oracle and core agree on returns of every kind is
tests/test_returns_machine.py.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.rpc import error_details_pb2, status_pb2

from ledger.journal import read_entry
from ledger.rules import compile_source
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.server.wire_model import ANSWERS

SECOND, DAY = 1_000_000, 86_400_000_000
START = 1_795_000_000_000_000  # 2026-11-18
EARN, BURN, RESERVE, CAPTURE, RELEASE, COMMIT, BALANCE, OPERATION, DECIDE, RETURN = 1, 2, 3, 4, 5, 6, 8, 9, 25, 30
SOURCE = """\
programme: Returns
currency: USD
zone: America/New_York
anonymous_accounts: true
max_age: 400 days
wallets:
  - {name: points, points_live: 30 days}
  - {name: bonus, points_live: 10 days of inactivity}
  - {name: late, points_live: 30 days}
rules:
  - {name: Base, for_every_full: 1.00, give: 1, caps: [{points: 250, per: month}]}
  - {name: Bonus, for_every_full: 1.00, give: 2, to_wallet: bonus}
  - {name: Late, for_every_full: 1.00, give: 3, to_wallet: late, available_after: 5 days}
earn_on_points_paid: true
burn: [{name: All, one_point_pays: 0.01}]
"""


class Shop:
    """A core with a programme; receipts are numbered from 1."""

    def __init__(self, source: str = SOURCE, **more: Any) -> None:
        self.program = compile_source(source.encode())
        self.now, self.requests, self.receipts = START, 0, 0
        self.core = LocalLedger(self.program.image, self.program.source, START, members_max=20, **more)

    def send(self, method: int, request: Any) -> Any:
        """The answer, or the reason of a refusal and its metadata."""
        code, data, _ = self.core.call(method, request.SerializeToString(), self.now)
        if code == 0:
            return ANSWERS[method].FromString(data)
        info = error_details_pb2.ErrorInfo()
        assert status_pb2.Status.FromString(data).details[0].Unpack(info)
        return info.reason, dict(info.metadata)

    def call(self, method: int, request: Any) -> Any:
        self.requests += 1
        request.request_id = f"request-{self.requests:08d}"
        request.sent_time.FromMicroseconds(self.now)
        return self.send(method, request)

    def key(self, number: int, day: int = 20261118) -> Any:
        return pb.ReceiptKey(store="1", till="1", business_day=day, number=str(number))

    def sell(self, total: int, card: str = "ann", pay: int = 0, origin: Any = None) -> Any:
        """A receipt of so many dollars, the next number."""
        self.receipts += 1
        request = pb.CommitReceiptRequest(member=pb.MemberRef(card=card), origin=origin, receipt=pb.Receipt(
            key=self.key(self.receipts), currency_code="USD", total_minor=100 * total))
        if pay:
            request.burn.points = pay
        return self.call(COMMIT, request)

    def spend(self, points: int, card: str = "ann") -> Any:
        """A burn for a receipt that earns nothing, the next number."""
        self.receipts += 1
        return self.call(BURN, pb.BurnPointsRequest(member=pb.MemberRef(card=card), points=points, receipt_key=self.key(self.receipts)))

    def bring_back(self, number: int, **origin: str) -> Any:
        return self.call(RETURN, pb.ReturnReceiptRequest(receipt_key=self.key(number), origin=pb.Origin(**origin) if origin else None))

    def balance(self, card: str = "ann") -> dict[str, tuple[int, int]]:
        """Posted and available points by wallet."""
        answer = self.send(BALANCE, pb.GetBalanceRequest(member=pb.MemberRef(card=card)))
        return {wallet.wallet: (wallet.posted_points, wallet.available_points) for wallet in answer.wallets}

    def entry(self, answer: Any) -> dict[str, Any]:
        return self.read(answer.entry.sequence)

    def read(self, sequence: int) -> dict[str, Any]:
        return read_entry(list(self.core.entries())[sequence - 1])

    def check(self, folder: Path) -> None:
        """Replay and snapshot are the same ledger."""
        self.core.write_digest(self.now)
        assert LocalLedger.replay(self.core.entries(), members_max=20).digest() == self.core.digest()
        self.core.save(folder / "snapshot")
        assert LocalLedger.load(folder / "snapshot", None, members_max=20).digest() == self.core.digest()


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    opened = Shop()
    yield opened
    opened.check(tmp_path)


def test_what_was_earned_is_taken_again_and_the_caps_are_free(shop: Shop) -> None:
    shop.sell(200)
    assert shop.balance() == {"points": (200, 200), "bonus": (400, 400), "late": (600, 0)}
    answer = shop.bring_back(1)
    assert (answer.entry.kind, answer.entry.earned_points, answer.entry.burned_points) == (pb.Entry.KIND_RETURN, -1200, 0)
    assert (answer.earn_sequence, answer.payment_sequence, answer.missing_points) == (2, 0, 0)
    assert {wallet.wallet: wallet.posted_points for wallet in answer.wallets} == {"points": 0, "bonus": 0, "late": 0}
    assert shop.balance() == {"points": (0, 0), "bonus": (0, 0), "late": (0, 0)}
    shop.sell(300)  # the month's cap of 250 is whole again
    assert shop.balance()["points"] == (250, 250)


def test_what_was_paid_goes_back_into_its_lots_and_expires_with_them(shop: Shop) -> None:
    shop.sell(100)
    shop.now += 20 * DAY
    shop.sell(10, pay=60)  # late: 60 points of the first receipt's 100
    assert shop.balance()["points"] == (50, 50)
    answer = shop.bring_back(2)
    assert (answer.entry.earned_points, answer.entry.burned_points, answer.entry.expired_points) == (-60, -60, 0)
    assert (answer.earn_sequence, answer.payment_sequence) == (3, 3)
    assert shop.balance()["points"] == (100, 100)
    soonest = shop.send(BALANCE, pb.GetBalanceRequest(member=pb.MemberRef(card="ann"), wallet="points")).wallets[0].next_expiries
    assert [(row.points, (row.expire_time.ToMicroseconds() - START) // DAY) for row in soonest] == [(100, 29)]
    shop.sell(10, pay=60)
    shop.now += 11 * DAY  # the first receipt's points are gone
    answer = shop.bring_back(3)
    assert (answer.entry.burned_points, answer.entry.expired_points) == (-60, 60)
    assert shop.balance()["points"] == (0, 0)


def test_what_is_spent_is_taken_from_the_rest_and_what_is_missing_is_told(shop: Shop) -> None:
    shop.sell(10)
    shop.now += DAY
    shop.sell(5)
    shop.spend(12)  # the ten of the first receipt, and two of the second
    answer = shop.bring_back(1)
    assert shop.balance()["points"] == (0, 0)
    assert answer.missing_points == 7  # 10 were earned; 3 of the second receipt were left
    assert answer.entry.earned_points == -(3 + 20 + 30)
    assert shop.entry(answer)["returned"] == {"earned_by": 2, "paid_by": 0, "missing": [{"wallet": 0, "points": 7}]}
    assert shop.bring_back(3).entry.burned_points == -12  # one debt is no other's: what it paid is there again
    assert shop.balance()["points"] == (12, 12)


def test_a_receipt_pays_for_itself_with_what_it_gives_back(shop: Shop) -> None:
    shop.sell(20)
    shop.sell(15, pay=20)
    shop.spend(15)
    answer = shop.bring_back(2)  # its 15 are spent, but 20 come back
    assert answer.missing_points == 0
    assert shop.balance()["points"] == (5, 5)


def test_what_is_held_is_not_taken(shop: Shop) -> None:
    shop.sell(10)
    held = shop.call(RESERVE, pb.ReservePointsRequest(member=pb.MemberRef(card="ann"), points=8))
    answer = shop.bring_back(1)
    assert answer.missing_points == 8
    assert shop.balance()["points"] == (8, 0)
    shop.call(CAPTURE, pb.CaptureReservationRequest(member=pb.MemberRef(card="ann"), reservation_id=held.reservation.reservation_id))
    assert shop.balance()["points"] == (0, 0)


def test_a_reservation_that_is_over_is_settled_first(shop: Shop) -> None:
    shop.sell(10)
    shop.call(RESERVE, pb.ReservePointsRequest(member=pb.MemberRef(card="ann"), points=8, ttl={"seconds": 5}))
    shop.now += 6 * SECOND
    assert shop.bring_back(1).missing_points == 0
    assert shop.balance()["points"] == (0, 0)


def test_what_expired_is_not_owed(shop: Shop) -> None:
    shop.sell(10)
    shop.now += 29 * DAY
    shop.sell(5)
    shop.now += 2 * DAY
    answer = shop.bring_back(1)
    # Of the bonus nobody can tell whether it died or was kept alive and spent: it is owed, and the second receipt's 10 are taken.
    assert (answer.entry.earned_points, answer.missing_points) == (-10, 10)
    assert shop.balance() == {"points": (5, 5), "bonus": (0, 0), "late": (15, 0)}


def test_points_that_live_by_inactivity_come_back_alive(shop: Shop) -> None:
    shop.sell(100)
    shop.call(BURN, pb.BurnPointsRequest(member=pb.MemberRef(card="ann"), wallet="bonus", points=150, receipt_key=shop.key(77)))
    shop.now += 9 * DAY
    answer = shop.bring_back(77)
    assert (answer.earn_sequence, answer.payment_sequence, answer.entry.burned_points) == (0, 3, -150)
    assert shop.balance()["bonus"] == (200, 200)
    shop.now += 5 * DAY  # the rest is past its ten days; a return is activity for what comes back only
    assert shop.balance()["bonus"] == (150, 150)
    answer = shop.bring_back(1)
    assert (answer.entry.earned_points, answer.missing_points) == (-(100 + 150 + 300), 50)


@pytest.mark.parametrize("kind", ["burn", "capture"])
def test_an_earn_and_a_payment_of_one_receipt_come_back_together(shop: Shop, kind: str) -> None:
    shop.sell(100)
    ann, key = pb.MemberRef(card="ann"), shop.key(9)
    shop.call(EARN, pb.EarnPointsRequest(member=ann, receipt=pb.Receipt(key=key, currency_code="USD", total_minor=3000)))
    if kind == "burn":
        shop.call(BURN, pb.BurnPointsRequest(member=ann, points=50, receipt_key=key))
    else:
        held = shop.call(RESERVE, pb.ReservePointsRequest(member=ann, points=80)).reservation.reservation_id
        shop.call(CAPTURE, pb.CaptureReservationRequest(member=ann, reservation_id=held, points=50, receipt_key=key))
    assert shop.balance()["points"] == (80, 80)
    answer = shop.bring_back(9)
    assert answer.earn_sequence == 3 and answer.payment_sequence > 3
    assert (answer.entry.earned_points, answer.entry.burned_points) == (-180, -50)
    assert shop.balance()["points"] == (100, 100)


def test_a_receipt_comes_back_once_and_a_repeat_is_known(shop: Shop) -> None:
    shop.sell(10)
    first = shop.bring_back(1)
    assert shop.bring_back(1) == ("RECEIPT_ALREADY_RETURNED", {"sequence": str(first.entry.sequence)})
    assert shop.bring_back(2)[0] == "RECEIPT_NOT_FOUND"
    assert shop.sell(10).entry.sequence and shop.balance()["points"] == (10, 10)
    again = pb.ReturnReceiptRequest(request_id="return-of-receipt-2", receipt_key=shop.key(2))
    again.sent_time.FromMicroseconds(shop.now)
    first = shop.send(RETURN, again)
    shop.now += SECOND
    repeated = shop.send(RETURN, again)
    assert repeated.replayed and repeated.entry == first.entry and repeated.missing_points == first.missing_points
    for field, change in (("receipt_key.number", {"receipt_key": shop.key(1)}), ("origin", {"origin": pb.Origin(device="d")}),
                          ("sent_time", {"sent_time": {"seconds": shop.now // SECOND}})):
        other = pb.ReturnReceiptRequest(**{"request_id": again.request_id, "sent_time": again.sent_time, "receipt_key": again.receipt_key,
                                           **change})
        assert shop.send(RETURN, other) == ("REQUEST_ID_REUSED", {"sequence": str(first.entry.sequence), "field": field}), field
    operation = shop.send(OPERATION, pb.GetOperationRequest(request_id=again.request_id, sent_time=again.sent_time))
    assert operation.entry == first.entry
    # The key stays taken.
    taken = pb.EarnPointsRequest(member=pb.MemberRef(card="ann"), receipt=pb.Receipt(key=shop.key(2), currency_code="USD", total_minor=1))
    assert shop.call(EARN, taken)[0] == "RECEIPT_ALREADY_POSTED"


def test_a_receipt_of_two_members_is_for_people(shop: Shop) -> None:
    shop.sell(10, card="ann")
    shop.sell(10, card="bob")
    ann = shop.sell(10, card="ann")
    shop.call(BURN, pb.BurnPointsRequest(member=pb.MemberRef(card="bob"), points=5, receipt_key=shop.key(3)))
    assert ann.entry.member_id == 1
    assert shop.bring_back(3) == ("RECEIPT_OF_TWO_MEMBERS", {"earner_id": "1", "payer_id": "2"})
    assert shop.core.outcome()["wait_sequence"] == 5, "a crash must not take back the burn that somebody was told of"


def test_bad_input(shop: Shop) -> None:
    assert shop.call(RETURN, pb.ReturnReceiptRequest())[1]["field"] == "receipt_key"
    for field, key in (("store", {"store": ""}), ("till", {"till": "x" * 17}), ("number", {"number": ""}),
                       ("business_day", {"business_day": 20261399}), ("business_day", {"business_day": 20261120})):
        wrong = pb.ReceiptKey(**{"store": "1", "till": "1", "business_day": 20261118, "number": "1", **key})
        reason, told = shop.call(RETURN, pb.ReturnReceiptRequest(receipt_key=wrong))
        assert (reason, told["field"]) == ("FIELD_INVALID", f"receipt_key.{field}"), told


def test_long_after_when_memory_has_dropped_the_keys(tmp_path: Path) -> None:
    shop = Shop(ids=tmp_path, ids_max=40)
    for day in range(1, 60):
        shop.receipts = 0
        shop.now += DAY
        business_day = day_of(shop.now)
        shop.call(EARN, pb.EarnPointsRequest(member=pb.MemberRef(card=f"c{day % 7}"), receipt=pb.Receipt(
            key=shop.key(1, business_day), currency_code="USD", total_minor=1000)))
        shop.core.write_runs()
    old = pb.ReturnReceiptRequest(receipt_key=shop.key(1, day_of(START + DAY)))
    answer = shop.call(RETURN, old)
    assert answer.entry.kind == pb.Entry.KIND_RETURN and answer.entry.member_id == 1
    assert shop.call(RETURN, old) == ("RECEIPT_ALREADY_RETURNED", {"sequence": str(answer.entry.sequence)})
    for _ in range(60):  # until the return itself lies in a run
        shop.now += DAY
        shop.call(EARN, pb.EarnPointsRequest(member=pb.MemberRef(card="x"), receipt=pb.Receipt(
            key=shop.key(1, day_of(shop.now)), currency_code="USD", total_minor=1000)))
        shop.core.write_runs()
    assert shop.call(RETURN, old) == ("RECEIPT_ALREADY_RETURNED", {"sequence": str(answer.entry.sequence)})
    assert shop.call(RETURN, pb.ReturnReceiptRequest(receipt_key=shop.key(2, day_of(START + DAY))))[0] == "RECEIPT_NOT_FOUND"
    shop.core.close()


def day_of(time_us: int) -> int:
    return int(datetime.fromtimestamp(time_us / 1e6, ZoneInfo("America/New_York")).strftime("%Y%m%d"))


REVIEWED = SOURCE + """limits:
  - {name: Large, of: earns, measure: money, per: member, window: receipt, at_most: 100.00, then: review}
"""


def test_what_is_under_review_comes_back_and_needs_no_word_any_more(tmp_path: Path) -> None:
    shop = Shop(REVIEWED)
    shop.sell(200)
    shop.sell(200)
    assert shop.bring_back(1).entry.earned_points == -1200
    assert shop.balance()["bonus"] == (400, 0)
    decided = [shop.call(DECIDE, admin.DecideReviewRequest(review_id=number, verdict=1, operator="anna", reason="seen"))
               for number in (2, 3)]
    assert decided[0] == ("REVIEW_NOT_FOUND", {"review_id": "2"}) and decided[1].entry.sequence
    assert shop.balance()["bonus"] == (400, 400)
    shop.check(tmp_path)


@pytest.mark.parametrize("verdict", [1, 2])
def test_what_a_review_took_is_not_taken_twice(tmp_path: Path, verdict: int) -> None:
    shop = Shop(REVIEWED)
    shop.sell(200)
    shop.sell(50)
    assert shop.call(DECIDE, admin.DecideReviewRequest(review_id=2, verdict=verdict, operator="anna", reason="seen")).entry.sequence
    answer = shop.bring_back(1)
    assert answer.entry.earned_points == (-1200 if verdict == 1 else 0) and answer.missing_points == 0
    assert shop.balance() == {"points": (50, 50), "bonus": (100, 100), "late": (150, 0)}
    shop.check(tmp_path)


def test_what_was_let_through_is_taken_from_where_it_went(tmp_path: Path) -> None:
    shop = Shop(REVIEWED)
    shop.sell(50)  # its points expire sooner
    shop.now += DAY
    shop.sell(200)
    shop.call(DECIDE, admin.DecideReviewRequest(review_id=3, verdict=1, operator="anna", reason="seen"))
    assert (shop.bring_back(2).missing_points, shop.balance()["points"]) == (0, (50, 50))
    first, back = ({row["available_day"] for row in shop.read(entry)["lots"] if row["wallet"] == 0} for entry in (2, 5))
    assert not first & back, "a day's receipt is not paid for with another day's points"
    shop.check(tmp_path)


# --- limits -----------------------------------------------------------------------------------------------------------

LIMITED = SOURCE + """limits:
  - {name: Brought back, of: returns, per: cashier, window: day, at_most: 1, then: refuse}
  - {name: Much, of: returns, measure: money, per: till, window: day, at_most: 50.00, then: mark}
  - {name: Points back, of: returns, measure: points, per: member, window: day, at_most: 500, then: mark, rung: warned}
  - {name: Receipts, of: earns, per: member, window: day, at_most: 2, gives_back: true, then: refuse}
  - {name: Every receipt, of: earns, per: member, window: day, at_most: 4, then: refuse}
  - {name: Spent, of: [burns, reservations], measure: points, per: [member, till], window: day, at_most: 100, gives_back: true,
     then: refuse}
"""
TILL = {"store": "1", "till": "1"}


def test_returns_are_counted_and_bounded(tmp_path: Path) -> None:
    shop = Shop(LIMITED)
    for _ in range(2):
        shop.sell(60)
    shop.sell(50, card="bob")
    eve = {"cashier": "eve", "store": "2", "till": "1"}
    first = shop.bring_back(1, **eve)
    assert [row["limit"] for row in shop.entry(first)["limits"]["above"]] == [2]  # 60.00 at that till
    assert shop.bring_back(2, **eve) == ("VELOCITY_EXCEEDED", {})
    assert shop.bring_back(2, cashier="bob").entry.sequence  # where nothing is said it is the till of the sale
    marked = shop.entry(shop.bring_back(3, store="2", till="2"))
    assert "limits" not in marked
    shop.check(tmp_path)


def test_points_that_come_back_are_counted(tmp_path: Path) -> None:
    shop = Shop(LIMITED)
    for _ in range(2):
        shop.sell(50)
    assert "limits" not in shop.entry(shop.bring_back(1, store="8", till="8", cashier="a"))
    marked = shop.entry(shop.bring_back(2, store="9", till="9", cashier="b"))  # 300 and 300
    assert [row["limit"] for row in marked["limits"]["above"]] == [3] and marked["rung"]["after"] == 1
    shop.check(tmp_path)


def test_counters_give_back_what_returns_and_releases_undo(tmp_path: Path) -> None:
    shop = Shop(LIMITED)
    for _ in range(2):
        assert shop.sell(10).entry.sequence
    assert shop.sell(10) == ("VELOCITY_EXCEEDED", {})
    row, = shop.entry(shop.bring_back(1, **TILL))["given_back"]
    assert (row["of"], row["earned_points"], row["total_minor"]) == (1, 60, 1000)
    assert shop.sell(10).entry.sequence
    assert shop.sell(10) == ("VELOCITY_EXCEEDED", {})
    shop.bring_back(2, cashier="b", **TILL)
    assert shop.sell(100).entry.sequence
    assert shop.sell(10) == ("VELOCITY_EXCEEDED", {})  # the other one counts on
    shop.check(tmp_path)


@pytest.mark.parametrize("how", ["release", "expiry", "settled"])
def test_a_reservation_that_comes_to_nothing_is_given_back(tmp_path: Path, how: str) -> None:
    shop, ann = Shop(LIMITED), pb.MemberRef(card="ann")

    def hold(points: int) -> Any:
        return shop.call(RESERVE, pb.ReservePointsRequest(member=ann, points=points, ttl={"seconds": 60}, origin=pb.Origin(**TILL)))

    shop.sell(200)
    held = hold(90)
    assert hold(20) == ("VELOCITY_EXCEEDED", {})
    if how == "release":
        shop.call(RELEASE, pb.ReleaseReservationRequest(member=ann, reservation_id=held.reservation.reservation_id))
    else:
        shop.now += 61 * SECOND
        if how == "expiry":
            shop.core.tick(shop.now)
    assert hold(100).entry.sequence
    assert hold(1) == ("VELOCITY_EXCEEDED", {})
    shop.check(tmp_path)


def test_what_was_counted_on_another_day_is_given_back_there(tmp_path: Path) -> None:
    shop = Shop(LIMITED)
    for _ in range(2):
        shop.sell(10)
    shop.now += DAY
    for _ in range(2):
        shop.sell(10)
    shop.bring_back(1, **TILL)
    assert shop.sell(10) == ("VELOCITY_EXCEEDED", {})  # yesterday's went from yesterday
    shop.bring_back(3, cashier="b", **TILL)
    assert shop.sell(10).entry.sequence
    shop.check(tmp_path)
