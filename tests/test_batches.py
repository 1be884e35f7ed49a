"""Batches against whole services: both ports give the same, reads are of one moment, and `kill -9` loses nothing that was told.

Bounds and turns are tests/server/test_batch.py's; the codec tests/server/test_batch_wire.py's.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.running import ROOT, RunningServer
from tests.test_kill import REMEMBERED, Told, check_journal
from tests.test_two_ports import START_US, last_digest, outcome, random_requests

NAMES = {"EarnPoints": "earn", "BurnPoints": "burn", "ReservePoints": "reserve", "CaptureReservation": "capture",
         "ReleaseReservation": "release", "CommitReceipt": "commit", "EnrollMember": "enroll", "ReturnReceipt": "return_receipt"}


def batch_of(requests: list[tuple[str, Any]]) -> pb.BatchPostRequest:
    batch = pb.BatchPostRequest()
    for method, message in requests:
        getattr(batch.commands.add(), NAMES[method]).CopyFrom(message)
    return batch


def inside(command: pb.PostCommand) -> tuple[str, Any]:
    """The call's name and its request."""
    name = command.WhichOneof("command")
    return next(method for method, field in NAMES.items() if field == name), getattr(command, name)


def test_both_ports_answer_a_batch_alike_and_as_single_calls_do(new_server: Callable[..., RunningServer]) -> None:
    servers = [new_server(clock=START_US) for _ in range(3)]
    servers[0].start()
    assert servers[0].terminate() == 0
    for server in servers[1:]:
        shutil.copytree(servers[0].data, server.data)
    for server in servers:
        server.start()
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    at, refused = START_US, 0
    for step in range(2):
        for server in servers:
            server.set_clock(at)
        requests = random_requests(seed + step, 200, at)
        batch = batch_of(requests)
        first = servers[0].stub.BatchPost(batch, timeout=60)
        assert first == servers[1].control_stub.BatchPost(batch, timeout=60)
        for (method, message), result in zip(requests, first.results, strict=True):
            alone = outcome(servers[2].stub, method, message)
            if isinstance(alone, tuple):
                assert result.error.SerializeToString(deterministic=True) == alone[2]
                refused += 1
            else:
                answer = getattr(pb, f"{method}Response").FromString(alone)
                answer.entry.ClearField("awards")
                assert (result.entry, result.replayed) == (answer.entry, answer.replayed)
                if "reservation" in answer.DESCRIPTOR.fields_by_name:
                    assert result.reservation == answer.reservation
        members = pb.BatchGetBalancesRequest(members=[pb.MemberRef(card=f"card-{card}") for card in range(12)])
        assert servers[0].stub.BatchGetBalances(members, timeout=60) == servers[1].control_stub.BatchGetBalances(members, timeout=60)
        at += 20_000_000
    assert refused > 10
    assert [server.terminate() for server in servers] == [0, 0, 0]
    assert len({last_digest(server) for server in servers}) == 1


def test_balances_are_of_one_sequence_while_writes_go_on(server: RunningServer) -> None:
    """What all members have at the told sequence is what the entries up to it gave them."""
    cards = [f"card-{number}" for number in range(60)]
    earned: list[tuple[int, int]] = []  # (sequence, points)
    stop = threading.Event()

    def write(seed: int) -> None:
        chosen = random.Random(seed)
        with grpc.insecure_channel(server.address("checkout"), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = RunningServer._stub(channel)
            while not stop.is_set():
                batch = batch_of([("EarnPoints", till.earn(chosen.choice(cards), chosen.randrange(100, 5000))) for _ in range(100)])
                earned.extend((result.entry.sequence, result.entry.earned_points) for result in stub.BatchPost(batch, timeout=60).results)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
    for writer in writers:
        writer.start()
    answers = []
    members = pb.BatchGetBalancesRequest(members=[pb.MemberRef(card=card) for card in cards])
    try:
        while len(answers) < 60 or len({answer.sequence for answer in answers}) < 10:
            answers.append((server.control_stub if len(answers) % 2 else server.stub).BatchGetBalances(members, timeout=60))
    finally:
        stop.set()
        for writer in writers:
            writer.join(60)
    for answer in answers:
        found = [result.balance for result in answer.results if result.HasField("balance")]
        assert all(balance.sequence <= answer.sequence for balance in found)
        assert sum(balance.wallets[0].posted_points for balance in found) == sum(
            points for sequence, points in earned if sequence <= answer.sequence)


@dataclass
class Batcher(threading.Thread):
    """Posts batches one after another until the service is gone."""

    server: RunningServer
    seed: int
    told: list[Told] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.random = random.Random(self.seed)
        self.port = "control" if self.seed % 2 else "checkout"

    def next_request(self) -> tuple[str, Any]:
        card = f"card-{self.random.randrange(30)}"
        roll = self.random.random()
        if roll < 0.7:
            return "EarnPoints", till.earn(card, self.random.randrange(0, 5000))
        if roll < 0.85:
            return "BurnPoints", till.request("BurnPoints", card=card, points=self.random.randrange(1, 900))
        return "ReservePoints", till.request("ReservePoints", card=card, points=self.random.randrange(1, 300))

    def run(self) -> None:
        with grpc.insecure_channel(self.server.address(self.port), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = RunningServer._stub(channel)
            alive = True
            while alive:
                told = [Told(*self.next_request()) for _ in range(self.random.choice((1, 10, 100, 300)))]
                self.told += told
                alive = post(stub, told)


def post(stub: Any, told: list[Told]) -> bool:
    """One batch; notes every outcome. False: unknown, the service is gone."""
    try:
        answer = stub.BatchPost(batch_of([(one.method, one.request) for one in told]), timeout=60)
    except grpc.RpcError as error:
        assert till.reason_of(error) is None, till.reason_of(error)
        return False
    for one, result in zip(told, answer.results, strict=True):
        if result.HasField("entry"):
            one.answer = result
        else:
            one.refusal = till.reason_of_status(result.error)
            assert one.refusal is not None, result
    return True


@pytest.mark.timeout(200)
def test_kills_under_batches_lose_nothing_and_invent_nothing(server: RunningServer) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    everything: list[Told] = []
    for _ in range(3):
        clients = [Batcher(server, chosen.getrandbits(30) * 2 + i) for i in range(3)]
        for client in clients:
            client.start()
        time.sleep(chosen.uniform(0.1, 0.4))  # the load runs; when the kill comes is the point of the test
        until = time.monotonic() + 60
        while sum(one.answer is not None for client in clients for one in client.told.copy()) < 40:  # a busy machine is slow to begin
            assert time.monotonic() < until, "no load"
            time.sleep(0.01)
        server.kill()
        for client in clients:
            client.join(60)
            assert not client.is_alive(), "a client still waits for a dead service"
        told = [one for client in clients for one in client.told]
        server.start()
        unknown = [one for one in told if one.answer is None and one.refusal is None]
        for at in range(0, len(unknown), 1000):
            assert post(server.stub, unknown[at:at + 1000]), "asking again must give a definite outcome"
        sample = chosen.sample(told, min(300, len(told)))
        again = [Told(one.method, one.request) for one in sample]
        assert post(server.control_stub, again)
        for one, second in zip(sample, again, strict=True):
            if one.answer is not None:
                assert second.answer is not None, f"acknowledged before the kill, now {second.refusal}: {one}"
                assert second.answer.replayed
                assert (second.answer.entry, second.answer.reservation) == (one.answer.entry, one.answer.reservation)
            elif one.refusal[0] in REMEMBERED:
                assert second.refusal == (one.refusal[0], one.refusal[1] | {"replayed": "true"})
        everything += told
    answers = sum(one.answer is not None for one in everything)
    print(f"{len(everything)} commands, {answers} acknowledged")
    assert answers > 100, "the load was too small to prove anything"
    assert server.terminate() == 0
    check_journal(server.data, everything)


def test_the_generator_counts_what_became_of_the_commands(server: RunningServer, tmp_path: Any) -> None:
    for currency, reason in (("USD", "OK"), ("EUR", "FIELD_INVALID")):
        done = subprocess.run(
            [sys.executable, "-m", "bench.load", "--target", server.address(), "--connections", "2", "--in-flight", "2",
             "--batch", "700", "--members", "200", "--seconds", "2", "--warmup", "0", "--currency", currency, "--no-prepare",
             "--json", str(tmp_path / "figures.json")], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads((tmp_path / "figures.json").read_text())
        commands = found["calls"]["batch"]["calls"] * 700
        assert commands > 0
        assert (found["entries"]["count"], found["entries"]["refused"]) == ((commands, 0) if reason == "OK" else (0, commands))
        # What was still open at the end of its time is not in the generator's figures.
        assert server.metrics()[f'ledger_batch_commands_total{{method="EarnPoints",outcome="{reason}"}}'] >= commands
