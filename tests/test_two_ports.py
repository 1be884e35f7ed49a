"""Two services with the same clock, one fed through the checkout port, one through the control port: one meaning, not two.

The same requests in the same order at the same times must give the same answers, byte for byte, and the same digest.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import Any

import grpc

from ledger import journal
from tests import till
from tests.running import RunningServer

START_US = 1_790_000_000_000_000


def random_requests(seed: int, count: int, at: int) -> list[tuple[str, Any]]:
    """Right and wrong requests of every kind; reservation ids are guessed, so that all of their refusals come up."""
    chosen = random.Random(seed)
    made: list[tuple[str, Any]] = []
    for i in range(count):
        card = f"card-{chosen.randrange(8)}"
        ids = {"at": at, "request_id": f"two-ports-{seed}-{i:08d}"}
        roll = chosen.randrange(13)
        if roll < 4:
            message = till.earn(card, chosen.randrange(0, 9000), lines=chosen.randrange(1, 5), **ids)
            message.receipt.key.number = f"n{chosen.randrange(2 * count)}"
            made.append(("EarnPoints", message))
        elif roll < 5:
            made.append(("BurnPoints", till.request("BurnPoints", card=card, points=chosen.randrange(-1, 90), **ids)))
        elif roll < 7:
            message = till.request("ReservePoints", card=card, points=chosen.randrange(1, 90), **ids)
            message.ttl.seconds = chosen.choice([0, 1, 30, 900])
            made.append(("ReservePoints", message))
        elif roll < 9:
            method = "CaptureReservation" if roll < 8 else "ReleaseReservation"
            made.append((method, till.request(method, card=card, reservation_id=chosen.randrange(1, i + 2), **ids)))
        elif roll < 10:
            message = till.request("CommitReceipt", card=card, receipt=till.receipt(555, at=at, number=f"c{i}"), **ids)
            message.burn.points = chosen.randrange(1, 60)
            made.append(("CommitReceipt", message))
        elif roll < 11 and made:
            made.append(chosen.choice(made))  # a repeat
        elif roll == 12 and made:  # of a receipt of any of the calls before, right or wrong, its day as it was sent
            keys = [message.receipt.key for method, message in made if method in ("EarnPoints", "CommitReceipt")]
            key = chosen.choice(keys) if keys else till.receipt(0, at=at, number="none").key
            made.append(("ReturnReceipt", till.give_back(key, **ids)))
        else:
            message = till.request("EnrollMember", **ids)
            message.identifiers.add(card=card)
            message.identifiers.add(phone=f"+4812345{chosen.randrange(100):04d}")
            made.append(("EnrollMember", message))
    return made


def outcome(stub: Any, method: str, message: Any) -> Any:
    try:
        return getattr(stub, method)(message, timeout=60).SerializeToString(deterministic=True)
    except grpc.RpcError as error:
        status = till.status_of(error)
        return error.code(), error.details(), status and status.SerializeToString(deterministic=True)


def last_digest(server: RunningServer) -> str:
    """The DIGEST entry that a clean stop leaves as the last one."""
    last = [entry for group in journal.scan(server.data) for _, entry in group][-1]
    read = journal.read_entry(last)
    assert read["kind"] == "digest"
    return read["digest"]


def test_both_ports_give_the_same_answers_and_the_same_digest(new_server: Callable[..., RunningServer]) -> None:
    first, second = new_server(clock=START_US), new_server(clock=START_US)
    # Identifiers are hashed under each directory's own key, so both begin as copies of one seeded directory.
    first.start()
    assert first.terminate() == 0
    shutil.copytree(first.data, second.data)
    first.start()
    second.start()
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    at = START_US
    refused = 0
    for step in range(6):
        for server in (first, second):
            server.set_clock(at)
        for method, message in random_requests(seed + step, 60, at):
            through_checkout = outcome(first.stub, method, message)
            through_control = outcome(second.control_stub, method, message)
            assert through_checkout == through_control, f"{method} {message}"
            refused += isinstance(through_checkout, tuple)
        for card in range(8):
            message = till.balance_of(f"card-{card}")
            assert outcome(first.stub, "GetBalance", message) == outcome(second.control_stub, "GetBalance", message)
        at += 20_000_000
    assert 0 < refused < 6 * 60
    assert (first.terminate(), second.terminate()) == (0, 0)
    assert last_digest(first) == last_digest(second)
