"""A till that does a bit of everything against a service, by seed, for tests that need a journal with every kind of entry.

Not for what is right (tests/oracle.py): refusals are part of life here. Used by the tests of reading and of the export.
"""

from __future__ import annotations

import random
import time
from typing import Any

import grpc

from server._pb.loyalty.ledger.v1 import admin_pb2, admin_pb2_grpc, ledger_pb2
from tests import till
from tests.running import RunningServer

START_US = 1_795_000_000_000_000
HOUR_US = 3_600_000_000
PROGRAM = """
programme: Two wallets
currency: USD
zone: America/New_York
anonymous_accounts: true
max_age: 400 days
wallets:
  - name: points
  - name: stamps
funders:
  partner: 7
rules:
  - name: Base
    for_every_full: 1.00
    give: 5
    points_live: 4 days
    available_after: 1 days
  - name: At once
    for_every_full: 10.00
    give: 3
    points_live: forever
  - name: Stamps
    for_every_full: 20.00
    give: 1
    to_wallet: stamps
    points_live: 2 days
    funder: partner
earn_on_points_paid: true
burn:
  - {name: Points, one_point_pays: 0.01}
  - {name: Stamps, wallet: stamps, one_point_pays: 0.01}
"""


class Shop:
    """A till that does a bit of everything against a service, by seed, and remembers what the service said."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        print(f"seed {seed}")
        self.server = server
        self.chance = random.Random(seed)
        self.clock = START_US if server.has_clock else None
        self.cards = [f"card-{number}" for number in range(6)]
        self.requests: list[Any] = []
        self.reservations: list[tuple[str, int]] = []
        self.sold: list[Any] = []  # receipt keys, until they are returned
        self.balances: list[tuple[str, Any]] = []

    def pass_time(self, us: int) -> None:
        self.clock += us
        self.server.set_clock(self.clock)

    def step(self) -> None:
        """One call. Refusals are part of life."""
        chance, card = self.chance, self.chance.choice(self.cards)
        at = self.clock or till.now_us()
        kind = chance.choice(("EarnPoints", "EarnPoints", "BurnPoints", "ReservePoints", "CaptureReservation", "ReleaseReservation",
                              "CommitReceipt", "EnrollMember", "ReturnReceipt"))
        fields: dict[str, Any] = {}
        if kind == "EarnPoints":
            fields = {"receipt": till.receipt(chance.randrange(9000), at=at, lines=chance.randrange(4))}
        elif kind == "CommitReceipt":
            fields = {"receipt": till.receipt(chance.randrange(9000), at=at)}
            if chance.random() < 0.5:
                fields["burn"] = ledger_pb2.Burn(points=chance.randrange(1, 60), wallet=chance.choice(("", "stamps")))
        elif kind == "BurnPoints":
            fields = {"points": chance.randrange(1, 80)}
            if chance.random() < 0.5:
                fields["receipt_key"] = till.receipt(1, at=at).key
        elif kind == "ReservePoints":
            fields = {"points": chance.randrange(1, 80)}
            fields["ttl"] = {"seconds": chance.choice((5, 600, 90_000))}
        elif kind in ("CaptureReservation", "ReleaseReservation"):
            if not self.reservations:
                return
            card, number = chance.choice(self.reservations)
            fields = {"reservation_id": number}
            if kind == "CaptureReservation" and chance.random() < 0.5:
                fields["points"] = chance.randrange(1, 20)
        if kind == "ReturnReceipt":
            if not self.sold:
                return
            request = till.give_back(self.sold.pop(chance.randrange(len(self.sold))), at=at)
        elif kind == "EnrollMember":
            request = till.request(kind, at=at, identifiers=[ledger_pb2.MemberRef(card=card),
                                                             ledger_pb2.MemberRef(phone=f"+4850{chance.randrange(1000):07d}")])
        else:
            request = till.request(kind, at=at, card=card, **fields)
        self.requests.append(request)
        try:
            answer = getattr(self.server.stub, kind)(request)
        except grpc.RpcError as error:
            assert till.reason_of(error) is not None, error
            return
        if kind in ("EarnPoints", "CommitReceipt"):
            self.sold.append(request.receipt.key)
        if kind == "ReservePoints":
            self.reservations.append((card, answer.reservation.reservation_id))

    def read_balance(self, wallet: str = "") -> None:
        card = self.chance.choice(self.cards)
        request = till.balance_of(card)
        request.wallet = wallet
        try:
            self.balances.append((card, self.server.stub.GetBalance(request)))
        except grpc.RpcError as error:
            assert till.reason_of(error)[0] == "MEMBER_NOT_FOUND"

    def every_kind(self) -> None:
        """At least one entry of every kind, and a refusal; needs the clock that the test moves, and PROGRAM."""
        stub, card, at = self.server.stub, "every-kind", self.clock

        def call(kind: str, **fields: Any) -> Any:
            return getattr(stub, kind)(till.request(kind, at=at, card=card, **fields))

        stub.EnrollMember(till.request("EnrollMember", at=at, identifiers=[{"card": card}, {"app": "app-1"}]))
        call("EarnPoints", receipt=till.receipt(100_000, at=at, lines=3))
        call("BurnPoints", points=10)
        held = [call("ReservePoints", points=20, ttl={"seconds": ttl}).reservation.reservation_id for ttl in (600, 600, 5)]
        call("CaptureReservation", reservation_id=held[0], points=5)
        call("ReleaseReservation", reservation_id=held[1])
        paid = call("CommitReceipt", receipt=till.receipt(2500, at=at, number="brought-back"), burn=ledger_pb2.Burn(points=7))
        back = stub.ReturnReceipt(till.give_back(till.receipt(0, at=at, number="brought-back").key, at=at))
        assert back.earn_sequence == back.payment_sequence == paid.entry.sequence
        office = admin_pb2_grpc.AdminServiceStub(self.server.control_channel)

        def by_hand(name: str) -> dict[str, Any]:
            return {"request_id": f"by-hand-{name}-{at}", "sent_time": till.timestamp(at), "operator": "anna", "reason": "ticket 4711"}

        for points in (40, -9):
            office.AdjustPoints(admin_pb2.AdjustPointsRequest(member={"card": card}, points=points, **by_hand(f"adjust{points}")))
        email = {"email": "a@example.org"}
        office.LinkIdentifier(admin_pb2.LinkIdentifierRequest(member={"card": card}, identifier=email, **by_hand("link")))
        office.UnlinkIdentifier(admin_pb2.UnlinkIdentifierRequest(identifier={"app": "app-1"}, **by_hand("unlink")))
        try:
            call("BurnPoints", points=1_000_000)
        except grpc.RpcError as error:
            assert till.reason_of(error)[0] == "INSUFFICIENT_POINTS"
        before = self.server.metrics()
        self.pass_time(3 * 24 * HOUR_US)  # the stamps' end, and the hold's
        until = time.monotonic() + 60
        for name in ("ledger_expired_lots_entries_total", "ledger_expired_reservations_entries_total"):
            while self.server.metrics()[name] <= before[name]:
                assert time.monotonic() < until, f"{name} does not rise"
                time.sleep(0.01)

    def last(self) -> int:
        """Write one more entry and return its sequence."""
        return self.server.stub.EarnPoints(till.earn("last-card", 100, at=self.clock)).entry.sequence
