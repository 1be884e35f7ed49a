"""The follower beside a real service: what it shows, how far behind it is, and that the service outlives and restarts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger.follower import Follower
from server._pb.loyalty.ledger.v1 import ledger_pb2_grpc
from tests import till
from tests.running import ROOT, RunningServer

WAIT_S = 30.0  # far beyond every delay that is waited for: only a failure takes so long


def wait_for(what: Callable[[], Any], why: str) -> Any:
    """Poll until `what()` is true; returns it."""
    until = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < until, f"{why} did not come within {WAIT_S} s"
        time.sleep(0.01)
    return found


class RunningFollower:
    """`daybook follow` in its own process."""

    def __init__(self, data: Path, directory: Path, *arguments: str) -> None:
        self.ports_file = directory / "follower.json"
        self.ports_file.unlink(missing_ok=True)
        self.log = directory / "follower.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", "follow", str(data), "--control", "127.0.0.1:0", "--http", "127.0.0.1:0",
                 "--ports-file", str(self.ports_file), *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self.ports_file.exists() or self.process.poll() is not None, "the follower's start")
        assert self.process.poll() is None, self.log.read_text()
        self.ports = json.loads(self.ports_file.read_text())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['control']}", options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = ledger_pb2_grpc.LedgerServiceStub(self.channel)

    def end(self) -> int:
        self.channel.close()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(WAIT_S)


@pytest.fixture
def followers(tmp_path: Path) -> Iterator[Callable[..., RunningFollower]]:
    made: list[RunningFollower] = []

    def make(data: Path, *arguments: str) -> RunningFollower:
        made.append(RunningFollower(data, tmp_path, *arguments))
        return made[-1]

    yield make
    for follower in made:
        follower.end()


def test_the_follower_answers_what_the_service_answers(server: RunningServer, followers: Callable[..., RunningFollower]) -> None:
    for i in range(20):
        server.stub.EarnPoints(till.earn(f"card-{i % 4}", 1000 + i))
    follower = followers(server.data)
    written = server.stub.EarnPoints(till.earn("card-0", 5000)).entry.sequence
    own = server.stub.GetBalance(till.balance_of("card-0"))

    def caught_up() -> Any:
        seen = follower.stub.GetBalance(till.balance_of("card-0"))
        return seen if seen.sequence >= written else None

    seen = wait_for(caught_up, "the last earn on the follower")
    assert seen.wallets == own.wallets and seen.sequence == own.sequence and seen.member_id == own.member_id
    with pytest.raises(grpc.RpcError) as refused:
        follower.stub.EarnPoints(till.earn("card-0", 100))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert follower.end() == 0


def test_a_directory_has_one_follower(server: RunningServer, tmp_path: Path) -> None:
    from ledger.follower import FollowerBroken

    with Follower(server.data, members_max=1000, ids_max=1000), pytest.raises(FollowerBroken, match="has a follower already"):
        Follower(server.data, members_max=1000, ids_max=1000)
