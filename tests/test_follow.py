"""The follower beside a real service: what it shows, how far behind it is, and that the service outlives and restarts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import journal, limits, snapshot
from ledger._snapshot import Snapshot
from ledger.follower import Follower
from server._pb.loyalty.ledger.v1 import ledger_pb2_grpc
from tests import till
from tests.running import ROOT, RunningServer

WAIT_S = 60.0  # far beyond every delay that is waited for: only a failure takes so long


def wait_for(what: Callable[[], Any], why: str) -> Any:
    """Poll until `what()` is true; returns it."""
    until = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < until, f"{why} did not come within {WAIT_S} s"
        time.sleep(0.01)
    return found


def balance_since(stub: Any, card: str, sequence: int) -> Any:
    """The card's balance; None: the follower is not that far, and perhaps has not seen the member yet."""
    try:
        found = stub.GetBalance(till.balance_of(card))
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE), error
        return None
    return found if found.sequence >= sequence else None


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

    seen = wait_for(lambda: balance_since(follower.stub, "card-0", written), "the last earn on the follower")
    assert seen.wallets == own.wallets and seen.sequence == own.sequence and seen.member_id == own.member_id
    with pytest.raises(grpc.RpcError) as refused:
        follower.stub.EarnPoints(till.earn("card-0", 100))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert follower.end() == 0


def test_a_directory_has_one_follower(server: RunningServer, tmp_path: Path) -> None:
    from ledger.follower import FollowerBroken

    with Follower(server.data, members_max=1000, ids_max=1000), pytest.raises(FollowerBroken, match="has a follower already"):
        Follower(server.data, members_max=1000, ids_max=1000)


def follower_of(server: RunningServer) -> dict[str, int]:
    """Ports and pid of the service's own follower, once it serves."""
    wait_for(server.follow_ports_file.exists, "the service's follower")
    return json.loads(server.follow_ports_file.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_service_starts_a_follower_and_ends_it_with_a_snapshot(new_server: Callable[..., RunningServer]) -> None:
    server = new_server(follows=True).start()
    pid = follower_of(server)["pid"]
    for i in range(50):
        server.stub.EarnPoints(till.earn(f"card-{i % 5}", 1000))
    assert wait_for(lambda: server.metrics()["ledger_follower_running"], "the follower in the metrics") == 1
    assert server.terminate() == 0, server.log()
    assert not alive(pid)
    found = snapshot.paths(server.data)
    assert len(found) == 1
    # The stop's last DIGEST entry is the last in the snapshot: the follower has met the service's digest.
    head = Snapshot(found[0]).head
    entries = [entry for group in journal.scan(server.data) for _, entry in group]
    assert head["sequence"] == len(entries) and journal.read_entry(entries[-1])["digest"] == head["digest"]
    server.start()
    assert f"a snapshot up to {head['sequence']}, 0 entries" in " ".join(server.log().split())
    assert server.stub.GetBalance(till.balance_of("card-1")).member_id == 2
    assert server.terminate() == 0


def test_a_killed_follower_is_started_again_and_the_service_goes_on(new_server: Callable[..., RunningServer]) -> None:
    server = new_server(follows=True).start()
    first = follower_of(server)["pid"]
    server.stub.EarnPoints(till.earn("card-1"))
    os.kill(first, signal.SIGKILL)
    server.stub.EarnPoints(till.earn("card-1"))
    second = wait_for(lambda: (pid := follower_of(server)["pid"]) != first and pid, "a second follower")
    assert alive(second) and "the follower ended with -9: the service goes on" in server.log()
    assert wait_for(lambda: server.metrics()["ledger_follower_restarts_total"], "the restart in the metrics") == 1


def test_the_service_takes_its_follower_with_it(new_server: Callable[..., RunningServer]) -> None:
    server = new_server(follows=True).start()
    pid = follower_of(server)["pid"]
    server.kill()
    wait_for(lambda: not alive(pid), "the follower's end")
    server.start()  # and the next one finds no lock in its way
    assert follower_of(server)["pid"] != pid


def test_reads_on_the_follower_follow_the_services_clock(new_server: Callable[..., RunningServer]) -> None:
    start = 1_774_000_000_000_000
    server = new_server(follows=True, clock=start).start()
    written = server.stub.EarnPoints(till.earn("card-1", 10_000, at=start)).entry.sequence
    ports = follower_of(server)
    with grpc.insecure_channel(f"127.0.0.1:{ports['control']}") as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)

        answer = wait_for(lambda: balance_since(stub, "card-1", written), "the earn on the follower")
        assert answer.wallets == server.stub.GetBalance(till.balance_of("card-1")).wallets
        assert answer.read_time == till.timestamp(start)
        server.set_clock(start + 1_000_000)
        wait_for(lambda: stub.GetBalance(till.balance_of("card-1")).read_time == till.timestamp(start + 1_000_000), "the clock's step")


def test_snapshots_are_written_while_entries_come_in(server: RunningServer) -> None:
    """Apart, by a child process: the follower goes on meanwhile, and each snapshot is of one moment."""
    with Follower(server.data, members_max=1000, ids_max=1000, snapshot_entries=10, snapshot_pause_s=0) as follower:
        for turn in range(4):
            for i in range(20):
                last = server.stub.EarnPoints(till.earn(f"card-{i}", 1000 + turn)).entry.sequence
            wait_for(lambda last=last: follower.step() * 0 + follower.sequence >= last, "the entries in LMDB")
            follower.tend()
            server.stub.EarnPoints(till.earn("card-0", 999))
            wait_for(lambda: (follower.step(), follower.tend(), follower.stats()["snapshot_writing"] == 0)[2], "the snapshot")
            assert follower.stats()["snapshots"] == turn + 1
            assert follower.stats()["snapshot_sequence"] <= follower.sequence
        assert len(snapshot.paths(server.data)) == limits.SNAPSHOTS_KEPT
        last = server.stub.EarnPoints(till.earn("card-0", 998)).entry.sequence
        wait_for(lambda: follower.step() * 0 + follower.sequence >= last, "the last entry in LMDB")
        path = follower.write_snapshot()
        assert path is not None and follower.write_snapshot() is None, "a second one would say the same"
        digest = follower.digest
    with Follower(server.data) as again:
        assert (again.begun_at, again.digest) == (Snapshot(path).sequence, digest)
        assert again.core.sizes[:2] == (1000, 1000), "as the snapshot has them"


def test_a_snapshot_being_written_ends_with_its_follower(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_BYTES_PER_S", 1)  # it would take minutes
    server.stub.EarnPoints(till.earn("card-1"))
    with Follower(server.data, members_max=1000, ids_max=1000, snapshot_entries=1, snapshot_pause_s=0) as follower:
        wait_for(lambda: follower.step() or follower.sequence > 1, "the entries in LMDB")
        follower.tend()
        child = follower._writing.child
        assert alive(child)
    assert not alive(child) and not list((server.data / "snapshots").iterdir())
