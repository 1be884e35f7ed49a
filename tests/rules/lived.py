"""A shop that has lived under a programme of docs/rules.md: every kind of entry that rules leave behind, in a data directory of its own.

In one process, through the codec and the core; the directory is written by the second writer (tests/ledger/forging.py). Used by the tests
of what reads such journals: the export, `daybook explain`, `daybook simulate`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from google.rpc import error_details_pb2, status_pb2

from ledger.rules import check, lower2, reference
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.ledger.forging import Forge
from tests.server.wire_model import ANSWERS

START_US = 1_790_000_000_000_000  # 2026-09-21 14:13:20 UTC, a Monday
DAY_US = 86_400_000_000
EARN, BURN, RESERVE, COMMIT, ENROLL, ADJUST, SET_SEGMENTS, SET_ATTRIBUTES = 1, 2, 3, 6, 7, 11, 17, 18
BY_HAND = {"operator": "anna", "reason": "ticket 7"}

SOURCE = """
programme: Lived
currency: EUR
zone: Europe/Warsaw
total_tolerance: 0.05
no_points_on: {flag: gift_card}
wallets:
  - {name: points, worth: 0.10, points_live: 12 months to end of month}
  - {name: miles, scale: 2}
funders: {alpina: 7}
stores: [{store: "1", groups: [city], region: north}, {store: "2", region: south}]
catalogue:
  - {sku: milk, category: Food/Dairy, brand: Alpina}
  - {sku: bread, category: Food/Bakery}
  - {sku: beer, category: Drinks, flags: [alcohol]}
  - {sku: card, category: Services, flags: [gift_card]}
tenders: [cash, bank_card]
channels: [shop, app]
segments: [students, staff]
favourites: {choose_from: [Food/Dairy, Food/Bakery], at_most: 1}
tiers:
  levels:
    - name: base
    - {name: silver, reach: {any: [{receipts: 3, in: 30 days}, {spent: 500.00, in: calendar year}]}}
    - {name: gold, reach: {spent: 2000.00}}
  downgrade: one step
experiments: {spring: {variants: {control: 50, double: 50}, control: control}}
campaigns: {dairy: {points: 120, uses: 50}}
rules:
  - {name: Base, percent: 1, round: half_up}
  - {name: Silver, when: {tier: silver}, add_percent: 1, to_rules: [Base]}
  - {name: Dairy days, lines: {category: Food/Dairy}, for_every_full: 1.00, give: 3, campaign: dairy, funder: alpina}
  - {name: Welcome, when: {nth_receipt: 1}, give: 50, caps: [{uses: 1, per: ever}], points_live: 14 days}
  - {name: Students, when: {segment: students}, percent: 5, caps: [{points: 20, per: month}]}
  - {name: Favourite, lines: {favourite: true}, give: 2, per: line, available_after: 3 days}
  - {name: Spring, when: {experiment: {spring: double}}, times: 2, of_rules: [Base]}
  - {name: Code, when: {promo_code: MAY}, percent: 2, to_wallet: miles, caps: [{points: 1, per: receipt}]}
  - {name: App, when: {channel: app}, discount_percent: 3, per: line, lines: {not: {flag: alcohol}}}
  - {name: Fiver, when: {total: {from: 100.00}}, discount: 5.00}
  - {name: Delivery, when: {total: {from: 50.00}}, entitle: free_delivery}
burn:
  - {name: Half, share: 50, not_for: {flag: alcohol}, min: 5}
"""


class Lived:
    """The shop. `now`: server time; `answers` of calls are those of the service."""

    def __init__(self, source: str = SOURCE) -> None:
        self.source = source.encode()
        self.programme = check.check_source(self.source)
        self.now = START_US
        self.core = LocalLedger(lower2.lower_programme(self.programme), self.source, self.now, members_max=100, ids_max=10_000)
        self.requests = 0

    def call(self, method: int, request: Any) -> Any:
        """The answer; a refusal gives its reason as a text."""
        self.requests += 1
        request.request_id = f"request-{self.requests:08d}"
        request.sent_time.FromMicroseconds(self.now)
        code, data, _ = self.core.call(method, request.SerializeToString(), self.now)
        if code == 0:
            return ANSWERS[method].FromString(data)
        info = error_details_pb2.ErrorInfo()
        status_pb2.Status.FromString(data).details[0].Unpack(info)
        return info.reason

    def enroll(self, number: int) -> None:
        assert self.call(ENROLL, pb.EnrollMemberRequest(identifiers=[pb.MemberRef(card=f"card-{number}")])).entry.member_id == number

    def receipt(self, lines: list[tuple[Any, ...]], *, store: str = "1", total: int | None = None, channel: str = "",
                tenders: dict[str, int] | None = None, codes: tuple[str, ...] = (), ago_us: int = 0) -> pb.Receipt:
        """lines: sku, minor units, then if needed thousandths, minor units before the till's own reduction, whether it was weighed."""
        day = reference.EPOCH.fromordinal(reference.EPOCH.toordinal() + reference.programme_day(self.programme, self.now - ago_us))
        made = pb.Receipt(currency_code="EUR", total_minor=sum(line[1] for line in lines) if total is None else total, channel=channel)
        made.promo_codes.extend(codes)
        made.key.store, made.key.till, made.key.number, made.key.business_day = store, "3", f"n{self.requests + 1}", int(f"{day:%Y%m%d}")
        if ago_us:
            made.purchase_time.FromMicroseconds(self.now - ago_us)
        for sku, amount, *more in lines:
            quantity, before, weighed = [*more, *(0, 0, False)[len(more):]]
            made.lines.add(sku=sku, amount_minor=amount, quantity_milli=quantity, regular_amount_minor=before, weighed=weighed,
                           category="" if sku != "mystery" else "MYST")
        for name, amount in (tenders or {}).items():
            made.tenders.add(name=name, amount_minor=amount)
        return made

    def sell(self, number: int, lines: list[tuple[Any, ...]], *, burn: int = 0, **said: Any) -> Any:
        member, receipt = pb.MemberRef(member_id=number), self.receipt(lines, **said)
        if burn:
            return self.call(COMMIT, pb.CommitReceiptRequest(member=member, receipt=receipt, burn=pb.Burn(wallet="points", points=burn)))
        return self.call(EARN, pb.EarnPointsRequest(member=member, receipt=receipt))

    def everything(self) -> None:
        """One of each."""
        for number in range(1, 5):
            self.enroll(number)
        ref = pb.MemberRef(member_id=1)
        self.call(SET_SEGMENTS, admin.SetSegmentsRequest(
            changes=[admin.SegmentChange(member=ref, add=["students", "staff"])], **BY_HAND))
        self.call(SET_SEGMENTS, admin.SetSegmentsRequest(changes=[admin.SegmentChange(member=ref, remove=["staff"])], **BY_HAND))
        self.call(SET_ATTRIBUTES, admin.SetAttributesRequest(member=ref, birthday={"month": 2, "day": 29},
                                                             favourites={"categories": ["Food/Dairy"]}, **BY_HAND))
        self.call(SET_ATTRIBUTES, admin.SetAttributesRequest(member=pb.MemberRef(member_id=2), favourites={}, **BY_HAND))
        self.call(ADJUST, admin.AdjustPointsRequest(member=ref, wallet="points", points=100, **BY_HAND))
        self.sell(1, [("milk", 1290, 2000, 1390), ("bread", 349), ("beer", 799, 456, 0, True)], channel="app", codes=("MAY", "JUNE"),
                  tenders={"cash": 1000, "bank_card": 1438})
        self.sell(1, [("milk", 9000), ("bread", 3000), ("card", 5000)], burn=100, tenders={"crypto": 1})
        self.sell(1, [("mystery", 60_000)], total=60_001, store="9", channel="web")
        self.sell(2, [], total=9999)
        assert self.sell(2, [("bread", 1000)], burn=99_999) in ("INSUFFICIENT_POINTS", "BURN_NOT_ALLOWED")
        self.call(BURN, pb.BurnPointsRequest(member=ref, wallet="points", points=7))
        held = self.call(RESERVE, pb.ReservePointsRequest(member=ref, wallet="points", points=20)).reservation
        receipt = self.receipt([("bread", 2000), ("milk", 1000)])
        self.call(COMMIT, pb.CommitReceiptRequest(member=ref, receipt=receipt,
                                                  capture=pb.Capture(reservation_id=held.reservation_id, points=15)))

    def days(self, count: int, seed: int) -> None:
        """Some days of usual receipts of four members."""
        dice = random.Random(seed)
        for _ in range(count):
            for _ in range(5):
                number = dice.randrange(1, 5)
                skus = dice.choices(("milk", "bread", "beer", "card", "mystery"), (8, 8, 3, 1, 1), k=dice.randrange(1, 7))
                lines = [(sku, dice.randrange(50, 4000), dice.choice((0, 1000, 2000))) for sku in skus]
                burn = dice.choice((0, 0, 5, 20))
                self.sell(number, lines, burn=burn, store=dice.choice("12"), channel=dice.choice(("", "shop", "app")),
                          codes=dice.choice(((), (), ("MAY",))), ago_us=dice.choice((0, 0, 3_600_000_000, DAY_US)))
                self.now += 1_800_000_000
            self.now += DAY_US - 5 * 1_800_000_000
            self.core.tick(self.now)

    def write(self, folder: Path, *, group_entries: int = 5) -> Path:
        """The data directory."""
        forge = Forge()
        entries = self.core.entries()
        for at in range(0, len(entries), group_entries):
            group = entries[at:at + group_entries]
            forge.add(*group, time_us=int.from_bytes(group[-1][8:16], "little"))
        return forge.write(folder)
