"""Points that live by inactivity: receipts and burns move their expiry day, and nothing else does (docs/rules.md 3.1).

Through the real codec and core; plain Python, a replay and a snapshot come to the same digest. The same among everything else, against the
oracle: tests/test_state_machine.py.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from ledger.journal import read_entry
from ledger.rules import check, reference
from ledger.rules.reference import Receipt
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.rules.compiled import Compiled
from tests.rules.test_core import ADJUST, BALANCE, BY_HAND, COMMIT, DAY_US, EARN, RESERVE, START_US, Shop

BURN, CAPTURE, RELEASE = 2, 4, 5
DAY_0 = date(2026, 9, 21)  # of START_US
REF = pb.MemberRef(card="card-1")

SOURCE = """
programme: Sliding
currency: EUR
zone: Europe/Warsaw
anonymous_accounts: true
max_age: 60 days
funders: {alpina: 7}
wallets:
  - {name: points, points_live: 30 days of inactivity}
  - {name: money, scale: 2, points_live: 90 days of inactivity, available_after: 2 days}
rules:
  - {name: Base, percent: 10}
  - {name: Gift, when: {promo_code: GIFT}, give: 50, points_live: 20 days, funder: alpina}
  - {name: Partner, when: {promo_code: ALPINA}, give: 40, funder: alpina}
  - {name: Money, when: {promo_code: CASH}, give: 5.00, to_wallet: money}
burn:
  - {name: All, share: 100}
"""


class Sliding(Shop):
    """A shop whose days go by."""

    def __init__(self) -> None:
        super().__init__(check.check_source(SOURCE.encode()), START_US)
        self.enroll(1)

    def on(self, day: int) -> None:
        """Midday of so many days behind the first one; what is due is posted."""
        self.now = START_US + day * DAY_US
        self.core.tick(self.now)

    def earn(self, total: int, bought: int | None = None, codes: tuple[str, ...] = ()) -> Any:
        """A receipt, of today or of an earlier day."""
        receipt = Receipt(total, store="1", promo_codes=codes)
        time_us = self.now if bought is None else START_US + bought * DAY_US
        return self.good(EARN, self.request(1, receipt, time_us))

    def good(self, method: int, request: Any) -> Any:
        reason, answer = self.call(method, request)
        assert reason == "", (reason, answer)
        return answer

    def burn(self, points: int) -> None:
        self.good(BURN, pb.BurnPointsRequest(member=REF, wallet="points", points=points))

    def lots(self, wallet: int = 0) -> list[tuple[int, int, int, int]]:
        """Expiry and available day behind the first day, funder, points; in the order of burning."""
        first = (DAY_0 - date(1970, 1, 1)).days
        found: dict[tuple[int, int, int], int] = {}
        for entry in map(read_entry, self.core.entries()):
            for change in entry.get("lots", ()):
                if change["wallet"] == wallet:
                    key = change["expiry_day"] - first, change["available_day"] - first, change["funder"]
                    found[key] = found.get(key, 0) + change["points"]
        return [(*key, points) for key, points in sorted(found.items()) if points]

    def expiries(self) -> list[tuple[int, int]]:
        """What GetBalance tells of the first wallet: days behind the first one, points."""
        answer = self.good(BALANCE, pb.GetBalanceRequest(member=REF))
        day = reference.programme_day(self.programme, START_US)
        return [(reference.programme_day(self.programme, expiry.expire_time.ToMicroseconds()) - day, expiry.points)
                for expiry in answer.wallets[0].next_expiries]


@pytest.fixture
def shop() -> Sliding:
    return Sliding()


def test_each_receipt_and_each_burn_moves_the_day(shop: Sliding) -> None:
    shop.earn(10_000)
    assert shop.expiries() == [(30, 10)]
    shop.on(20)
    shop.earn(5_000)
    assert (shop.lots(), shop.expiries()) == ([(50, 0, 0, 10), (50, 20, 0, 5)], [(50, 15)])
    shop.on(45)
    shop.burn(12)
    assert (shop.lots(), shop.expiries()) == ([(75, 0, 0, 3)], [(75, 3)])
    shop.on(74)
    assert shop.available(1)[0] == 3
    shop.on(75)
    assert shop.available(1)[0] == 0 and shop.lots() == []
    shop.one_digest()


def test_many_receipts_leave_one_lot(shop: Sliding) -> None:
    for day in range(25):
        shop.on(day)
        shop.earn(1_000)
    assert shop.lots() == [(54, 0, 0, 24), (54, 24, 0, 1)]
    shop.one_digest()


def test_a_late_receipt_joins_the_latest_day_and_moves_nothing_back(shop: Sliding) -> None:
    shop.on(20)
    shop.earn(1_000)
    shop.earn(2_000, bought=3)
    assert shop.lots() == [(50, 3, 0, 2), (50, 20, 0, 1)]
    assert shop.expiries() == [(50, 3)]


def test_what_has_expired_stays_so_ticked_or_not(shop: Sliding) -> None:
    shop.earn(1_000)
    shop.now = START_US + 31 * DAY_US
    shop.earn(2_000, bought=29)  # bought a day before the end, heard of a day behind it
    assert shop.available(1)[0] == 2
    shop.on(31)
    assert shop.lots() == [(59, 29, 0, 2)]
    shop.one_digest()


def test_points_of_another_life_and_of_another_funder_stay_apart(shop: Sliding) -> None:
    shop.earn(1_000, codes=("GIFT", "ALPINA"))
    shop.good(ADJUST, admin.AdjustPointsRequest(member=REF, wallet="points", points=7, **BY_HAND))
    never = 2_147_483_647 - (DAY_0 - date(1970, 1, 1)).days
    assert shop.lots() == [(20, 0, 7, 50), (30, 0, 0, 1), (30, 0, 7, 40), (never, 0, 0, 7)]
    shop.on(10)
    shop.earn(1_000)
    assert shop.lots() == [(20, 0, 7, 50), (40, 0, 0, 1), (40, 0, 7, 40), (40, 10, 0, 1), (never, 0, 0, 7)]
    shop.one_digest()


def test_a_burn_of_one_wallet_moves_all(shop: Sliding) -> None:
    shop.earn(1_000, codes=("CASH",))
    assert shop.lots(1) == [(90, 2, 0, 500)]
    shop.on(1)
    shop.burn(1)
    assert shop.lots(1) == [(91, 2, 0, 500)]  # not available yet, and its own lot
    shop.on(5)
    shop.earn(1_000)
    assert shop.lots(1) == [(95, 2, 0, 500)]


def test_what_is_held_moves_once_it_is_back(shop: Sliding) -> None:
    shop.earn(10_000)
    request = pb.ReservePointsRequest(member=REF, wallet="points", points=6)
    request.ttl.FromSeconds(86_400)
    held = shop.good(RESERVE, request).reservation.reservation_id
    assert shop.lots() == [(30, 0, 0, 10)]  # a reservation is no activity
    shop.now += DAY_US // 4
    shop.earn(1_000)
    shop.now = START_US + DAY_US - 1
    shop.earn(1_000)
    assert sum(points for *_, points in shop.lots()) == 12
    assert (30, 0, 0, 6) in shop.lots()
    shop.good(RELEASE, pb.ReleaseReservationRequest(member=REF, reservation_id=held))
    assert (30, 0, 0, 6) in shop.lots()  # given back where it was
    shop.on(2)
    shop.earn(1_000)
    assert shop.lots() == [(32, 0, 0, 12), (32, 2, 0, 1)]
    shop.one_digest()


def test_a_capture_moves_what_it_leaves(shop: Sliding) -> None:
    shop.earn(10_000)
    request = pb.ReservePointsRequest(member=REF, wallet="points", points=6)
    request.ttl.FromSeconds(604_800)
    held = shop.good(RESERVE, request).reservation.reservation_id
    shop.on(5)
    shop.good(CAPTURE, pb.CaptureReservationRequest(member=REF, reservation_id=held, points=2))
    assert shop.lots() == [(35, 0, 0, 8)]
    shop.one_digest()


def test_a_commit_pays_with_what_it_moves(shop: Sliding) -> None:
    shop.earn(10_000)
    shop.on(29)
    shop.good(COMMIT, shop.request(1, Receipt(2_000, store="1", burn=4), shop.now))
    assert [row for row in shop.lots() if row[1] == 0] == [(59, 0, 0, 6)]
    shop.one_digest()


def test_a_new_programme_keeps_the_days_that_were_told(shop: Sliding) -> None:
    shop.earn(10_000)
    shorter = Compiled(check.check_source(SOURCE.replace("30 days of inactivity", "3 days of inactivity").encode()))
    shop.on(1)
    shop.core.publish(shorter.image, b"", shop.now)
    shop.earn(1_000)
    assert shop.expiries() == [(30, 11)]
    shop.on(29)
    shop.earn(1_000)
    assert shop.expiries() == [(32, 12)]
