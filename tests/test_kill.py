"""`kill -9` at random moments under load, with clients that note what they were told (promises P1-P6 after every restart).

A kill proves no flush (the page cache survives it): tests/test_durable.py watches the flushes. Here: what was acknowledged is there
exactly once and answers again the same; what was refused is not there as a success; what was unknown becomes known by asking again.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import journal
from server._pb.loyalty.ledger.v1 import admin_pb2_grpc
from tests import till
from tests.running import PROGRAM, ROOT, RunningServer

CLIENTS = 4
CARDS = 30
REMEMBERED = {"INSUFFICIENT_POINTS", "RESERVATION_NOT_ACTIVE", "RESERVATION_FOREIGN", "CAPTURE_ABOVE_RESERVED"}


class Stubs:
    """The calls of both services by name; those by hand go to the control port."""

    def __init__(self, channel: grpc.Channel, control: grpc.Channel) -> None:
        self.ledger, self.admin = RunningServer._stub(channel), admin_pb2_grpc.AdminServiceStub(control)

    def __getattr__(self, method: str) -> Any:
        return getattr(self.admin if method in till.BY_HAND else self.ledger, method)


@dataclass
class Told:
    """One request and what its client was told last."""

    method: str
    request: Any
    answer: Any = None  # an acknowledgement
    refusal: tuple[str, dict[str, str]] | None = None  # a definite no; neither: unknown


@dataclass
class Client(threading.Thread):
    """Calls one after another, on the checkout or the control port, until the service is gone."""

    server: RunningServer
    seed: int
    told: list[Told] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.random = random.Random(self.seed)
        self.reservations: list[tuple[str, int]] = []
        self.sold: list[Any] = []
        self.port = "control" if self.seed % 4 == 3 else "checkout"

    def next_request(self) -> tuple[str, Any]:
        roll = self.random.random()
        card = f"card-{self.random.randrange(CARDS)}"
        if self.port == "control" and roll < 0.3:
            return self.by_hand(card)
        if roll < 0.45:
            return "EarnPoints", till.earn(card, self.random.randrange(0, 5000), lines=self.random.randrange(1, 7))
        if roll < 0.50 and self.sold:
            return "ReturnReceipt", till.give_back(self.sold.pop(self.random.randrange(len(self.sold))))
        if roll < 0.60:
            return "BurnPoints", till.request("BurnPoints", card=card, points=self.random.randrange(1, 400))
        if roll < 0.75:
            return "ReservePoints", till.request("ReservePoints", card=card, points=self.random.randrange(1, 200))
        if roll < 0.97 and self.reservations:
            owner, number = self.random.choice(self.reservations)
            if roll < 0.85:
                points = self.random.randrange(0, 3)
                return "CaptureReservation", till.request("CaptureReservation", card=owner, reservation_id=number, points=points)
            if roll < 0.90:
                return "ReleaseReservation", till.request("ReleaseReservation", card=owner, reservation_id=number)
            message = till.request("CommitReceipt", card=owner, receipt=till.receipt(700))
            message.capture.reservation_id = number
            return "CommitReceipt", message
        message = till.request("EnrollMember")
        message.identifiers.add(card=f"new-{self.random.getrandbits(40)}")
        return "EnrollMember", message

    def by_hand(self, card: str) -> tuple[str, Any]:
        """Cards come and go under the tills' hands: a repeat must not mind."""
        other = f"card-{self.random.randrange(CARDS + 10)}"
        method = self.random.choice(("AdjustPoints", "AdjustPoints", "LinkIdentifier", "UnlinkIdentifier"))
        if method == "AdjustPoints":
            return method, till.by_hand(method, card=card, points=self.random.choice((-300, -7, 1, 50)))
        return method, till.by_hand(method, identifier=other, **({"card": card} if method == "LinkIdentifier" else {}))

    def run(self) -> None:
        with grpc.insecure_channel(self.server.address(self.port), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = Stubs(channel, channel)
            while True:
                method, message = self.next_request()
                told = Told(method, message)
                self.told.append(told)
                if not ask(stub, told):
                    return
                if method == "EarnPoints" and told.answer is not None:
                    self.sold.append(message.receipt.key)
                if method == "ReservePoints" and told.answer is not None:
                    self.reservations.append((message.member.card, told.answer.reservation.reservation_id))


def ask(stub: Any, told: Told) -> bool:
    """One call; notes the outcome. False: unknown, the service is gone."""
    try:
        told.answer = getattr(stub, told.method)(told.request, timeout=60)
    except grpc.RpcError as error:
        told.refusal = till.reason_of(error)
        return told.refusal is not None
    return True


def without_replayed(answer: Any) -> Any:
    copy = type(answer)()
    copy.CopyFrom(answer)
    copy.replayed = False
    return copy


def check_after_restart(server: RunningServer, told: list[Told], chosen: random.Random) -> None:
    """What was told before the kill holds after it."""
    stub = Stubs(server.channel, server.control_channel)
    for one in told:
        if one.answer is None and one.refusal is None:
            assert ask(stub, one), f"asking again must give a definite outcome: {one}"
    for one in chosen.sample(told, min(60, len(told))):
        again = Told(one.method, one.request)
        assert ask(stub, again)
        if one.answer is not None:
            assert again.answer is not None, f"acknowledged before the kill, now {again.refusal}: {one}"
            assert again.answer.replayed
            assert without_replayed(again.answer) == without_replayed(one.answer)
            operation = stub.GetOperation(till.ledger_pb2.GetOperationRequest(request_id=one.request.request_id), timeout=60)
            assert operation.entry == one.answer.entry
        elif one.refusal[0] in REMEMBERED:
            assert again.refusal is not None, f"refused before the kill, now done: {one}"
            assert again.refusal[0] == one.refusal[0]
            assert again.refusal[1].pop("replayed") == "true"
            one.refusal[1].pop("replayed", None)
            assert again.refusal[1] == one.refusal[1]
        elif again.answer is not None:  # a refusal that is not remembered, and whose reason has gone
            one.answer, one.refusal = again.answer, None


def check_journal(data: Path, told: list[Told]) -> None:
    """With the service stopped: verify, then every acknowledged write stands in the journal exactly once, at its sequence."""
    done = subprocess.run([sys.executable, "-m", "server", "verify", str(data)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: Counter[bytes] = Counter()
    success: dict[int, str] = {}
    for group in journal.scan(data):
        for sequence, entry in group:
            read = journal.read_entry(entry)
            if read["request"] != bytes(16):
                seen[read["request"]] += 1
            if read["status"] == 0:
                success[sequence] = read["kind"]
            for wallet in {posting["wallet"] for posting in read.get("postings", ())}:
                assert sum(posting["points"] for posting in read["postings"] if posting["wallet"] == wallet) == 0
    assert max(seen.values()) == 1, "a request id stands in the journal twice"
    acknowledged = [one for one in told if one.answer is not None]
    assert len({one.answer.entry.sequence for one in acknowledged}) == len(acknowledged)
    for one in acknowledged:
        kind = journal.KINDS[one.answer.entry.kind]
        assert success.get(one.answer.entry.sequence) == kind, f"acknowledged, but not in the journal: {one}"


def kill_many_times(server: RunningServer, kills: int, check: Callable[[RunningServer, list[Told]], None] | None = None) -> None:
    """`check` sees the last start of the service, with everything that was told."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    everything: list[Told] = []
    for _ in range(kills):
        clients = [Client(server, chosen.getrandbits(30) * 4 + i) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(chosen.uniform(0.05, 0.6))  # the load runs; when the kill comes is the point of the test
        until = time.monotonic() + 60
        while sum(one.answer is not None for client in clients for one in client.told.copy()) < 25:  # a busy machine is slow to begin
            assert time.monotonic() < until, "no load"
            time.sleep(0.01)
        server.kill()
        for client in clients:
            client.join(60)
            assert not client.is_alive(), "a client still waits for a dead service"
        told = [one for client in clients for one in client.told]
        server.start()
        check_after_restart(server, told, chosen)
        everything += told
    answers = sum(one.answer is not None for one in everything)
    print(f"{kills} kills, {len(everything)} requests, {answers} acknowledged")
    assert answers > kills * 20, "the load was too small to prove anything"
    if check is not None:
        check(server, everything)
    assert server.terminate() == 0
    check_journal(server.data, everything)


@pytest.mark.timeout(300)
def test_20_kills_lose_nothing_and_invent_nothing(server: RunningServer) -> None:
    kill_many_times(server, 20)


@pytest.mark.timeout(300)
def test_5_kills_with_hardly_any_memory_for_ids(new_server: Callable[..., RunningServer]) -> None:
    """Generations turn all the time, so repeats after the kill are answered from runs, and kills meet runs that are being written."""
    server = new_server(arguments=("--members-max", "20000", "--ids-max", "60"))
    server.start()
    kill_many_times(server, 5)


RESERVATIONS_MAX = 12  # of a card, ever, in the tests of limits; so small that the load reaches it


def check_counters(server: RunningServer, told: list[Told]) -> None:
    """No card of an account reserved more often than the limit lets it, and each may still reserve as often as it has not."""
    reserved = Counter((one.answer.entry.member_id, one.request.member.card) for one in told
                       if one.method == "ReservePoints" and one.answer is not None)
    assert max(reserved.values()) == RESERVATIONS_MAX, f"the load never came to the limit, or went over it: {reserved}"
    stub = Stubs(server.channel, server.control_channel)
    asked = 0
    for card in sorted({card for _, card in reserved}):
        first = Told("EarnPoints", till.earn(card, 1000_00))  # points to reserve; a card that was taken from its account gets a new one
        assert ask(stub, first) and first.answer is not None, first
        left = RESERVATIONS_MAX - reserved[first.answer.entry.member_id, card]
        for i in range(left + 1):
            again = Told("ReservePoints", till.request("ReservePoints", card=card, points=1))
            assert ask(stub, again)
            assert (again.refusal is None) == (i < left), f"{i} of {left}: {again}"
            assert i < left or again.refusal[0] == "VELOCITY_EXCEEDED", again
            asked += 1
    assert asked >= CARDS, "hardly any card was looked at"


def limited_server(tmp_path: Path, new_server: Callable[..., RunningServer]) -> RunningServer:
    """Its limits refuse reservations, count in every kind of window and give back."""
    path = tmp_path / "limited.yaml"
    path.write_text(PROGRAM.read_text() + f"""
limits:
  - {{name: Ever, of: reservations, per: identifier, window: ever, at_most: {RESERVATIONS_MAX}, then: refuse}}
  - {{name: Day, of: earns, per: till, window: day, at_most: 1000000, then: refuse}}
  - {{name: Hour, of: burns, per: member, window: 1 hour, at_most: 3, then: mark}}
  - {{name: Points, of: earns, measure: points, per: member, window: month, at_most: 100, then: mark, gives_back: true}}
  - {{name: Members, of: earns, measure: members, per: till, window: day, at_most: 5, then: shadow}}
  - {{name: Refused, of: refusals, per: member, window: 1 hour, at_most: 2, then: mark}}
""")
    server = new_server(program=path)
    server.start()
    return server


@pytest.mark.timeout(300)
def test_5_kills_keep_what_was_counted(tmp_path: Path, new_server: Callable[..., RunningServer]) -> None:
    kill_many_times(limited_server(tmp_path, new_server), 5, check_counters)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_200_kills_keep_what_was_counted(tmp_path: Path, new_server: Callable[..., RunningServer]) -> None:
    kill_many_times(limited_server(tmp_path, new_server), 200, check_counters)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_500_kills_lose_nothing_and_invent_nothing(server: RunningServer) -> None:
    kill_many_times(server, 500)
