"""A till that does a bit of everything against a service, by seed, for tests that need a journal with every kind of entry.

Not for what is right (tests/oracle.py): refusals are part of life here. Used by the tests of reading and of the export.
"""

from __future__ import annotations

import random
from typing import Any

import grpc

from server._pb.loyalty.ledger.v1 import ledger_pb2
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
        self.balances: list[tuple[str, Any]] = []

    def pass_time(self, us: int) -> None:
        self.clock += us
        self.server.set_clock(self.clock)

    def step(self) -> None:
        """One call. Refusals are part of life."""
        chance, card = self.chance, self.chance.choice(self.cards)
        at = self.clock or till.now_us()
        kind = chance.choice(("EarnPoints", "EarnPoints", "BurnPoints", "ReservePoints", "CaptureReservation", "ReleaseReservation",
                              "CommitReceipt", "EnrollMember"))
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
        if kind == "EnrollMember":
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

    def last(self) -> int:
        """Write one more entry and return its sequence."""
        return self.server.stub.EarnPoints(till.earn("last-card", 100, at=self.clock)).entry.sequence
