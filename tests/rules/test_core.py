"""The core runs programmes of version 2 as the reference interpreter does: answers, entries, and what is kept of members.

Generated programmes and receipts go through the real codec and the core on the one side, through `evaluate` and `apply` on the other. What
the entries changed is also kept by plain Python (tests/ledger/rules_state.py), and by a replay and a snapshot: all must have one digest.
Every receipt is quoted first: the quote says what the commit then does, or is refused as it is, and changes nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.journal import read_entry
from ledger.rules import check, reference, tree
from ledger.rules.reference import Member, Receipt, Result, Shared
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.ledger.test_second_reader import State
from tests.rules import generate
from tests.rules.compiled import Compiled
from tests.rules.quoted import check_quote, day_of, result_of, without_places
from tests.server.wire_model import ANSWERS

START_US = 1_790_000_000_000_000
DAY_US = 86_400_000_000
EARN, COMMIT, ENROLL, BALANCE, OPERATION, SET_SEGMENTS, SET_ATTRIBUTES = 1, 6, 7, 8, 9, 17, 18
RESERVE, ADJUST, QUOTE = 3, 11, 16
REFUSALS = {"absurd_amount": {"FIELD_INVALID"}, "total_differs": {"FIELD_INVALID"}, "unknown_store": {"STORE_NOT_FOUND"},
            "points_overflow": {"POINTS_OVERFLOW"}}
BY_HAND = {"operator": "anna", "reason": "ticket 7"}
NOBODY = Shared()

often = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


class Shop:
    """A core and the reference, side by side."""

    def __init__(self, programme: tree.Programme, now_us: int, **sizes: Any) -> None:
        self.compiled, self.programme, self.now = Compiled(programme), programme, now_us
        self.sizes = {"members_max": 50, "ids_max": 1000, **sizes}
        self.core = LocalLedger(self.compiled.image, b"", now_us, **self.sizes)
        self.members: dict[int, Member] = {}
        self.shared = NOBODY
        self.requests = 0

    def call(self, method: int, request: Any) -> tuple[str, Any]:
        """Reason of the refusal, or "" and the answer."""
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            self.requests += 1
            request.request_id = f"request-{self.requests:08d}"
            request.sent_time.FromMicroseconds(self.now)
        return self.send(method, request)

    def send(self, method: int, request: Any) -> tuple[str, Any]:
        code, data, _ = self.core.call(method, request.SerializeToString(), self.now)
        if code != 0:
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(data).details[0].Unpack(info)
            return info.reason, info
        return "", ANSWERS[method].FromString(data)

    def enroll(self, number: int) -> None:
        reason, answer = self.call(ENROLL, pb.EnrollMemberRequest(identifiers=[pb.MemberRef(card=f"card-{number}")]))
        assert (reason, answer.entry.member_id) == ("", number)
        self.members[number] = Member(number, reference.programme_day(self.programme, self.now))

    def endow(self, number: int, points: int) -> None:
        """Something to pay with, in every wallet."""
        for wallet in self.programme.wallets:
            ref = pb.MemberRef(card=f"card-{number}")
            assert self.call(ADJUST, admin.AdjustPointsRequest(member=ref, wallet=wallet.name, points=points, **BY_HAND))[0] == ""

    def set(self, number: int, known: Member) -> None:
        """Segments, chosen categories and birthday, by calls."""
        member, ref = self.members[number], pb.MemberRef(card=f"card-{number}")
        segments = known.segments & set(self.programme.segments)
        change = admin.SegmentChange(member=ref, add=sorted(segments), remove=sorted(set(self.programme.segments) - segments))
        reason, answer = self.call(SET_SEGMENTS, admin.SetSegmentsRequest(changes=[change], **BY_HAND))
        assert reason == "" and answer.results[0].entry.kind == 13
        chosen = sorted(known.chosen & set(self.programme.favourites))[:self.programme.favourites_at_most]
        request = admin.SetAttributesRequest(member=ref, favourites=admin.Favourites(categories=chosen), **BY_HAND)
        counts_from = member.birthday_from
        if known.birthday is not None:
            request.birthday.month, request.birthday.day = known.birthday
            if member.birthday not in (None, known.birthday):
                counts_from = reference.programme_day(self.programme, self.now) + 365
        reason, answer = self.call(SET_ATTRIBUTES, request)
        assert reason == "" and answer.entry.kind == 14
        assert self.send(SET_ATTRIBUTES, request)[1].replayed
        self.members[number] = replace(member, segments=segments, chosen=frozenset(chosen), birthday=known.birthday or member.birthday,
                                       birthday_from=counts_from)

    def available(self, number: int) -> tuple[int, ...]:
        answer = self.call(BALANCE, pb.GetBalanceRequest(member=pb.MemberRef(member_id=number)))[1]
        return tuple(wallet.available_points for wallet in answer.wallets)

    def hold(self, number: int, receipt: Receipt) -> int:
        """A reservation that the receipt may be paid from; 0: none."""
        points = receipt.burn + self.requests % 3
        request = pb.ReservePointsRequest(member=pb.MemberRef(member_id=number), points=points,
                                          wallet=self.programme.wallets[receipt.burn_wallet].name)
        request.ttl.FromSeconds(60)
        reason, answer = self.call(RESERVE, request)
        assert reason in ("", "INSUFFICIENT_POINTS", "RESERVATIONS_LIMIT")
        return answer.reservation.reservation_id if reason == "" else 0

    def sell(self, number: int, receipt: Receipt, time_us: int, reserves: bool = False) -> Result:
        """reserves: what pays is held first, and captured."""
        today = reference.programme_day(self.programme, time_us) == reference.programme_day(self.programme, self.now)
        if not today:
            receipt = replace(receipt, burn=0)  # what is available on another day is not told
        receipt = replace(receipt, store=receipt.store or "99")
        member = replace(self.members[number], available=self.available(number))
        result = reference.evaluate(self.programme, member, receipt, time_us, self.shared)
        held = self.hold(number, receipt) if reserves and receipt.burn else 0
        request = self.request(number, receipt, time_us)
        if held:
            request.capture.reservation_id, request.capture.points = held, receipt.burn
        quoted = self.quote(request)
        reason, answer = self.call(COMMIT if receipt.burn else EARN, request)
        assert quoted[0] == reason and (reason == "" or quoted[1].metadata == answer.metadata)
        if receipt.burn > member.available[receipt.burn_wallet]:
            assert reason in ("INSUFFICIENT_POINTS", *REFUSALS.get(result.refused or "", ()))
            return result
        if result.refused is not None:
            assert reason in REFUSALS.get(result.refused, {"BURN_NOT_ALLOWED"})
            return result
        assert reason == "", answer
        check_quote(self.compiled, receipt, result, quoted[1], today=today)
        self.compare(receipt, result, answer)
        assert (quoted[1].member_id, quoted[1].program_version) == (answer.entry.member_id, answer.entry.program_version)
        assert quoted[1].awards == answer.entry.awards
        self.members[number], self.shared = reference.apply(self.programme, self.members[number], self.shared, result)
        return result

    def quote(self, request: Any) -> tuple[str, Any]:
        """The quote of an earn or commit, with everything explained."""
        asked = pb.QuoteReceiptRequest(member=request.member, receipt=request.receipt, explain=True)
        if isinstance(request, pb.CommitReceiptRequest) and request.WhichOneof("payment"):
            payment = request.WhichOneof("payment")
            getattr(asked, payment).CopyFrom(getattr(request, payment))
        before = self.core.digest(), self.core.stats()
        reason, answer = self.call(QUOTE, asked)
        assert (self.core.digest(), self.core.stats()) == before
        return reason, answer

    def request(self, number: int, receipt: Receipt, time_us: int) -> Any:
        day = reference.programme_day(self.programme, self.now)
        made = pb.Receipt(currency_code=self.programme.currency, total_minor=receipt.total, channel=receipt.channel)
        made.promo_codes.extend(receipt.promo_codes)
        made.key.store, made.key.till, made.key.number = receipt.store, "1", f"n{self.requests}"
        made.key.business_day = int(f"{day_of(day):%Y%m%d}")
        made.purchase_time.FromMicroseconds(time_us)
        for line in receipt.lines:
            made.lines.add(sku=line.sku, category=line.category, quantity_milli=line.quantity, amount_minor=line.amount,
                           regular_amount_minor=line.before or 0, weighed=line.weighed)
        for name, amount in receipt.tenders:
            made.tenders.add(name=name, amount_minor=amount)
        ref = pb.MemberRef(card=f"card-{number}")
        if not receipt.burn:
            return pb.EarnPointsRequest(member=ref, receipt=made)
        burn = pb.Burn(wallet=self.programme.wallets[receipt.burn_wallet].name, points=receipt.burn)
        return pb.CommitReceiptRequest(member=ref, receipt=made, burn=burn)

    def compare(self, receipt: Receipt, result: Result, answer: Any) -> None:
        nameless = not receipt.lines
        awards = [(row[0], row[1], row[4]) for row in self.compiled.awards(result.given, nameless)]
        assert [(award.line, award.rule, award.points) for award in answer.entry.awards] == awards
        assert answer.entry.earned_points == sum(result.points)
        assert without_places(answer.result) == result_of(self.programme, receipt, result)

    def one_digest(self) -> State:
        """By every way. Returns what plain Python made of the journal."""
        state = State()
        for sequence, entry in enumerate(self.core.entries(), start=1):
            state.apply(sequence, read_entry(entry))
        assert state.digest() == self.core.digest()
        replayed = LocalLedger.replay(self.core.entries(), **self.sizes)
        assert replayed.digest() == self.core.digest()
        with tempfile.TemporaryDirectory() as folder:
            self.core.save(Path(folder) / "snap")
            loaded = LocalLedger.load(Path(folder) / "snap", self.core.entries(), **self.sizes)
        assert loaded.digest() == self.core.digest()
        return state

    def check(self) -> None:
        """What is kept of members and campaigns is what the reference keeps."""
        state = self.one_digest()
        for number, member in self.members.items():
            known = state.rules.profiles[number]
            assert (known.receipts, known.tier if known.receipts else 0) == (member.receipts, member.tier)
            assert sorted(known.days.items()) == [(day, [receipts, spent]) for day, receipts, spent in member.days]
            counters = {self.compiled.counters[key]: dict(rows) for key, rows in member.counters.items()}
            for name, (_, kept) in known.counters.items():
                if name >= 256:  # what is not kept ended long ago
                    assert kept.items() <= counters[name].items() and max(counters[name]) in kept
        assert {self.compiled.campaigns[name]: list(taken) for name, taken in self.shared.campaigns.items()} == state.rules.campaigns


@st.composite
def cases(draw: Any) -> Any:
    """A programme, members, and receipts in any order of time."""
    return (draw(generate.programmes()), draw(st.lists(generate.members(), min_size=1, max_size=3)),
            draw(st.lists(st.tuples(st.integers(0, 2), generate.receipts(), generate.times_us(), st.booleans()), min_size=1, max_size=12)))


@often
@given(cases())
def test_generated_programmes_do_what_the_reference_says(case: Any) -> None:
    programme, members, receipts = case
    shop = Shop(programme, min(time_us for _, _, time_us, _ in receipts))
    for number, known in enumerate(members, start=1):
        shop.enroll(number)
        shop.set(number, known)
        shop.endow(number, 200 + max(known.available))
    for who, receipt, time_us, reserves in receipts:
        shop.now = max(shop.now, time_us)
        if time_us >= shop.now - programme.max_age_days * DAY_US:
            shop.sell(who % len(members) + 1, receipt, time_us, reserves)
    shop.check()


SOURCE = """
programme: Small
currency: EUR
zone: Europe/Warsaw
anonymous_accounts: true
wallets: [{name: points}]
segments: [students, staff]
favourites: {choose_from: [Food, Drinks], at_most: 1}
catalogue: [{sku: milk, category: Food}, {sku: beer, category: Drinks}]
tiers:
  levels:
    - name: base
    - {name: silver, reach: {receipts: 2}}
rules:
  - {name: Base, percent: 10}
  - {name: Students, when: {segment: students}, give: 5}
  - {name: Card, when: {tier: silver}, discount_percent: 10, per: line}
burn:
  - {name: Half, share: 50}
"""


@pytest.fixture
def shop() -> Shop:
    made = Shop(check.check_source(SOURCE.encode()), START_US)
    made.enroll(1)
    return made


def test_an_anonymous_earn_opens_an_account_that_rules_know(shop: Shop) -> None:
    request = shop.request(2, Receipt(1000, store="1"), START_US)
    reason, answer = shop.call(EARN, request)
    assert (reason, answer.entry.member_id, answer.entry.earned_points) == ("", 2, 1)
    shop.members[2] = replace(Member(2, reference.programme_day(shop.programme, START_US)), receipts=1)
    shop.check()


def test_a_level_is_announced_and_counts_from_the_next_receipt(shop: Shop) -> None:
    standings = []
    for _ in range(3):
        reason, answer = shop.call(EARN, shop.request(1, Receipt(1000, store="1"), START_US))
        standings.append((answer.result.standing.tier, answer.result.standing.new_tier, answer.result.discount_minor))
    assert standings == [("base", "", 0), ("base", "silver", 0), ("silver", "", 100)]


def test_a_repeat_and_get_operation_tell_the_first_result(shop: Shop) -> None:
    request = shop.request(1, Receipt(1000, (reference.Line("wine", 1000),), store="1"), START_US)
    reason, first = shop.call(EARN, request)
    assert [(notice.kind, notice.index, notice.text) for notice in first.result.notices] == [(2, 1, "wine")]
    again = shop.send(EARN, request)[1]
    assert again.replayed and again.result == first.result
    told = shop.send(OPERATION, pb.GetOperationRequest(request_id=request.request_id))[1]
    assert told.result == first.result and told.entry == first.entry


def test_a_burn_above_the_largest_is_refused_with_the_largest(shop: Shop) -> None:
    shop.call(EARN, shop.request(1, Receipt(100_000, store="1"), START_US))
    reason, info = shop.call(COMMIT, shop.request(1, Receipt(1000, store="1", burn=6), START_US))
    assert (reason, dict(info.metadata)) == ("BURN_NOT_ALLOWED", {"largest_points": "5", "requested_points": "6"})
    reason, answer = shop.call(COMMIT, shop.request(1, Receipt(1000, store="1", burn=5), START_US))
    assert (reason, answer.result.paid_minor, answer.entry.burned_points) == ("", 500, 5)


def test_segments_and_attributes_are_those_of_the_programme(shop: Shop) -> None:
    ref = pb.MemberRef(card="card-1")

    def set_segments(add: list[str], remove: list[str]) -> tuple[str, Any]:
        change = admin.SegmentChange(member=ref, add=add, remove=remove)
        return shop.call(SET_SEGMENTS, admin.SetSegmentsRequest(changes=[change], **BY_HAND))

    for add, remove, field in ((["student"], [], "changes.add[0]"), (["staff"], ["staff", "x"], "changes.remove[1]")):
        reason, info = set_segments(add, remove)
        assert (reason, info.metadata["field"]) == ("FIELD_INVALID", field)
    assert set_segments(["students", "staff"], ["staff"])[0] == ""
    assert shop.call(EARN, shop.request(1, Receipt(1000, store="1"), START_US))[1].entry.earned_points == 6

    def set_attributes(**fields: Any) -> tuple[str, Any]:
        return shop.call(SET_ATTRIBUTES, admin.SetAttributesRequest(member=ref, **fields, **BY_HAND))

    for fields, field in (({"favourites": {"categories": ["Food/Dairy"]}}, "favourites[0]"),
                          ({"favourites": {"categories": ["Food", "Drinks"]}}, "favourites"),
                          ({"birthday": {"month": 2, "day": 30}}, "birthday"), ({"birthday": {"month": 0, "day": 1}}, "birthday"),
                          ({"birthday": {"month": 13, "day": 1}}, "birthday")):
        reason, info = set_attributes(**fields)
        assert (reason, info.metadata["field"]) == ("FIELD_INVALID", field)
    today = reference.programme_day(shop.programme, START_US)
    for month, counts_from in ((2, 0), (2, 0), (3, today + 365), (0, today + 365), (4, today + 365)):
        assert set_attributes(birthday={"month": month, "day": min(month, 1)})[0] == ""
        assert read_entry(shop.core.entries()[-1])["attributes"] == {"birthday": month * 32 + min(month, 1), "birthday_from": counts_from}
    assert shop.call(SET_ATTRIBUTES, admin.SetAttributesRequest(member=pb.MemberRef(card="nobody"), **BY_HAND))[0] == "MEMBER_NOT_FOUND"


def test_a_repeat_of_what_was_set_must_say_the_same(shop: Shop) -> None:
    ref = pb.MemberRef(card="card-1")
    segments = admin.SetSegmentsRequest(changes=[admin.SegmentChange(member=ref, add=["staff"])], **BY_HAND)
    attributes = admin.SetAttributesRequest(member=ref, birthday={"month": 2, "day": 29}, favourites={"categories": ["Food"]}, **BY_HAND)
    for method, request, changes in ((SET_SEGMENTS, segments, {"changes.add": lambda m: m.changes[0].add.append("students"),
                                                               "changes.remove": lambda m: m.changes[0].remove.append("students")}),
                                     (SET_ATTRIBUTES, attributes, {"birthday": lambda m: m.ClearField("birthday"),
                                                                   "favourites": lambda m: m.favourites.categories.append("Drinks"),
                                                                   "operator": lambda m: setattr(m, "operator", "ben")})):
        assert shop.call(method, request)[0] == ""
        assert shop.send(method, request)[0] == ""
        for field, change in changes.items():
            other = type(request)()
            other.CopyFrom(request)
            change(other)
            reason, info = shop.send(method, other)
            assert (reason, info.metadata["field"]) == ("REQUEST_ID_REUSED", field)
    shop.check()
