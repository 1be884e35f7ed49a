"""Receipts that come back, densely: few members buy, pay, hold, spend and return all the time; core and oracle agree after every step.

tests/test_state_machine.py has returns among everything else; there most receipts never come back, and hardly one that was paid in part.
Here every other command is a return: of a sale in one entry or in two, of points held, spent, expired, pending or moved by inactivity.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.test_state_machine import (
    ADJUST,
    BURN,
    CAPTURE,
    CARDS,
    COMMIT,
    DAY,
    EARN,
    HAND,
    RELEASE,
    RESERVE,
    RETURN,
    SECOND,
    SEED,
    Pair,
    Refused,
    write,
)

# A payment beside an earn is an entry of its own: of the same receipt, and now and then of another member.
WAYS = ["earn", "commit", "commit and burn", "commit and capture", "burn", "capture", "burn for one before", "reserve", "reserve",
        "release", "adjust"] + ["return"] * 8
COMMANDS = st.tuples(
    st.sampled_from(WAYS), st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2]), st.sampled_from([0, 100, 250, 1000, 2000, 5000]),
    st.one_of(st.integers(1, 9), st.integers(1, 120)), st.sampled_from(["", "", "bonus", "stamps"]),
    st.sampled_from([0, 0, 0, 0, DAY, 2 * DAY, 9 * DAY, 12 * DAY]), st.integers(0, 5))


class Returning(Pair, RuleBasedStateMachine):
    """One pair whose customers change their minds."""

    @initialize(keeps=st.booleans(), runs=st.booleans(), ids_max=st.sampled_from([500, 500, 12]),
                reservations_max=st.sampled_from([100, 4]))
    def open(self, keeps: bool, runs: bool, ids_max: int, reservations_max: int) -> None:
        self.begin(keeps=keeps, runs=runs, ids_max=ids_max, reservations_max=reservations_max)
        self.keys: list[Any] = []
        self.returns: list[Any] = []
        for number in range(3):
            self.command("earn", number, 3000, 1, "", 0, 0)

    def key(self, ago: int) -> Any:
        self.receipts += 1
        day = datetime.fromtimestamp((self.now - ago) // SECOND, UTC)
        self.keys.append(pb.ReceiptKey(store="S1", till="1", business_day=int(f"{day:%Y%m%d}"), number=f"n{self.receipts}"))
        return self.keys[-1]

    def held(self, number: int, which: int) -> Any:
        """One of a member's reservations; none: a new one."""
        member = self.oracle.find(pb.MemberRef(card=CARDS[number]))
        mine = self.oracle.active(member)
        return mine[which % len(mine)].id if mine else None

    def command(self, way: str, number: int, total: int, points: int, wallet: str, ago: int, which: int) -> Any:
        member = pb.MemberRef(card=CARDS[number])
        if way == "return":
            request = pb.ReturnReceiptRequest(receipt_key=self.keys[-1 - which % len(self.keys)])
            self.returns.append(request)
            answer = self.write(RETURN, request)
            if total and len(self.keys) > 1:  # hardly anybody comes twice with a receipt, or with one that is none
                self.keys.remove(request.receipt_key)
            return answer
        if way in ("release", "capture", "commit and capture"):
            reservation = self.held(number, which)
            if reservation is None:
                way = "reserve"
            elif way == "release":
                return self.write(RELEASE, pb.ReleaseReservationRequest(member=member, reservation_id=reservation))
            elif way == "capture":
                return self.write(CAPTURE, pb.CaptureReservationRequest(
                    member=member, reservation_id=reservation, points=points if which % 2 else 0, receipt_key=self.key(0)))
        if way == "reserve":
            ttl = [5, 600, DAY // SECOND, 5 * DAY // SECOND, 14 * DAY // SECOND, 600][which]
            return self.write(RESERVE, pb.ReservePointsRequest(member=member, wallet=wallet, points=points, ttl={"seconds": ttl}))
        if way == "burn":
            return self.write(BURN, pb.BurnPointsRequest(member=member, wallet=wallet, points=points, receipt_key=self.key(0)))
        if way == "burn for one before":
            return self.write(BURN, pb.BurnPointsRequest(member=member, wallet=wallet, points=points, receipt_key=self.keys[-1]))
        if way == "adjust":
            by_hand = admin.AdjustPointsRequest(member=member, wallet=wallet, points=points if which == 5 else -points, **HAND)
            return self.write(ADJUST, by_hand)
        receipt = pb.Receipt(key=self.key(ago), currency_code="EUR", total_minor=total)
        if ago:
            receipt.purchase_time.FromMicroseconds(self.now - ago)
        if way == "earn":
            return self.write(EARN, pb.EarnPointsRequest(member=member, receipt=receipt))
        commit = pb.CommitReceiptRequest(member=member, receipt=receipt)
        if way == "commit and burn":
            commit.burn.CopyFrom(pb.Burn(wallet=wallet, points=points))
        elif way == "commit and capture":
            commit.capture.CopyFrom(pb.Capture(reservation_id=reservation, points=points if which % 2 else 0))
        return self.write(COMMIT, commit)

    def write(self, method: int, request: Any) -> Any:
        answer = write(self, method, request)
        if isinstance(answer, Refused) and answer.row.name == "IDS_BEHIND":
            self.core.write_runs()
            self.oracle.write_runs()
        return answer

    @rule(said=COMMANDS.filter(lambda said: said[0] not in ("return", "reserve", "release", "adjust")),
          later=st.sampled_from([0, DAY, 2 * DAY, 3 * DAY, 4 * DAY, 8 * DAY, 11 * DAY]), spends=st.integers(0, 60))
    def think_better_of_it(self, said: tuple[Any, ...], later: int, spends: int) -> None:
        """A sale, some days, perhaps a burn, and its return."""
        self.command(*said)
        key = self.keys[-1]
        self.now += later
        if spends:
            self.write(BURN, pb.BurnPointsRequest(member=pb.MemberRef(card=CARDS[said[1]]), wallet=said[4], points=spends))
        self.write(RETURN, pb.ReturnReceiptRequest(receipt_key=key))

    @rule(number=st.sampled_from([0, 0, 1]), wallet=st.integers(0, 2), share=st.sampled_from([0.2, 0.5, 0.5, 1]), whole=st.booleans(),
          later=st.sampled_from([0, DAY, 2 * DAY, 3 * DAY, 4 * DAY, 8 * DAY, 11 * DAY]), buys=st.booleans())
    def pay_and_give_back(self, number: int, wallet: int, share: float, whole: bool, later: int, buys: bool) -> None:
        """A payment with what there is in a wallet, some days, perhaps a receipt between, and its return."""
        member, today = self.oracle.members[self.oracle.find(pb.MemberRef(card=CARDS[number])) - 1], self.oracle.day(self.now)
        points = int(self.oracle.available(member, today, today, None)[wallet] * share)
        if not points:
            return
        name = self.oracle.program.wallets[wallet].name
        if whole:
            self.command("commit and burn", number, 5000, points, name, 0, 0)
        else:
            self.command("burn", number, 0, points, name, 0, 0)
        key = self.keys[-1]
        self.now += later
        if buys:
            self.command("earn", number, 1000, 0, "", 0, 0)
        self.check()
        self.write(RETURN, pb.ReturnReceiptRequest(receipt_key=key))

    @rule(all_said=st.lists(COMMANDS, min_size=1, max_size=6))
    def commands(self, all_said: list[tuple[Any, ...]]) -> None:
        for said in all_said:
            self.command(*said)
            self.check()

    @rule(more=st.sampled_from([1, 6 * SECOND, 3600 * SECOND, DAY, DAY, 2 * DAY, 3 * DAY, 6 * DAY, 11 * DAY, 62 * DAY]))
    def time_goes_on(self, more: int) -> None:
        self.now += more

    @rule(at=st.sampled_from([-1, 0, 0, 1]), which=st.integers(0, 3))
    def time_goes_to_an_edge(self, at: int, which: int) -> None:
        """Of a lot, or of a reservation."""
        days = {day for member in self.oracle.members for lot in member.lots for day in (lot.expiry, lot.available) if day < 10**6}
        edges = {self.oracle.midnight(day) for day in days} | {reservation.expire_us for reservation in self.oracle.reservations.values()}
        ahead = sorted(edge + at for edge in edges if edge + at > self.now)
        if ahead:
            self.now = ahead[min(which, len(ahead) - 1)]

    @precondition(lambda self: self.returns)
    @rule(which=st.integers(0, 9))
    def repeat(self, which: int) -> None:
        self.call(RETURN, self.returns[-1 - which % len(self.returns)])

    @rule(how=st.sampled_from(["replay", "snapshot", "follower", "tick", "tick", "runs"]), age=st.integers(0, 2))
    def begin_again(self, how: str, age: int) -> None:
        age = min(age, len(self.snapshots) - 1)
        if how == "replay":
            self.replay()
        elif how == "snapshot":
            self.reload(age)
        elif how == "follower":
            self.restart_follower(age)
        elif how == "tick":
            self.post_ticks()
        elif self.folder:
            self.core.write_runs()
            self.oracle.write_runs()

    @invariant()
    def all_is_the_same(self) -> None:
        self.check()

    def teardown(self) -> None:
        if hasattr(self, "core"):
            try:
                self.post_digest()
                self.replay()
                self.follow()
            finally:
                self.core.close()
                if self.folder:
                    self.folder.cleanup()


def run(examples: int, steps: int, home: Path) -> None:
    print(f"DAYBOOK_SEED={SEED}")
    Returning.home = home
    run_state_machine_as_test(seed(SEED)(Returning), settings=settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)))


def test_the_core_gives_back_what_the_oracle_says(tmp_path):
    run(examples=150, steps=30, home=tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_core_gives_back_what_the_oracle_says_for_long(tmp_path):
    run(examples=4000, steps=50, home=tmp_path)
