"""The real service over a watched, failing and slow disk: no answer precedes its group's flush, D7 as a caller sees it.

The engine alone, with every single operation failing once, is tests/ledger/test_disk.py.
"""

from __future__ import annotations

import errno
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import limits
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.running import RunningServer
from tests.shim.shim import FLUSH, JOURNAL, SEND, SOCKET, TAIL, WRITE, Record, Shim

NewServer = Callable[..., RunningServer]
DELAY_US = 300_000  # of a flush: some hundred times a read


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(tmp_path)


def reason_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    from google.rpc import error_details_pb2

    status = till.status_of(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None and any(detail.Unpack(info) for detail in status.details)
    return error.code(), info.reason, dict(info.metadata)


# --- no answer precedes its group's flush -------------------------------------------------------------------------

def answers(records: list[Record]) -> list[tuple[int, bytes]]:
    """The gRPC messages that the service sent: (place of the send that completed it, message). A small HTTP/2 frame reader."""
    sent: dict[int, list[Record]] = defaultdict(list)
    for record in sorted((r for r in records if r.op == SEND and r.file == SOCKET and r.result > 0), key=lambda r: r.begin):
        assert len(record.content) == record.result, "the shim captures whole sends"
        sent[record.fd].append(record)
    found = []
    for pieces in sent.values():
        stream, places = b"", []
        for piece in pieces:
            stream += piece.content
            places.append((len(stream), piece.begin))
        at, bodies = 0, defaultdict(bytes)
        while at + 9 <= len(stream):
            size = int.from_bytes(stream[at : at + 3], "big")
            kind, number = stream[at + 3], int.from_bytes(stream[at + 5 : at + 9], "big")
            if at == 0 and kind not in (4,):
                break  # not HTTP/2 from its first byte: the metrics port
            at += 9 + size
            if kind == 0 and at <= len(stream):
                bodies[number] += stream[at - size : at]
                if len(bodies[number]) >= 5 and len(bodies[number]) == 5 + struct.unpack(">I", bodies[number][1:5])[0]:
                    found.append((next(place for end, place in places if end >= at), bodies.pop(number)[5:]))
    return found


def durable_places(records: list[Record]) -> list[tuple[int, int]]:
    """(last sequence, place at which the flush of its group had returned), by sequence."""
    tail = sorted((r for r in records if r.file == TAIL and r.op in (WRITE, FLUSH)), key=lambda r: r.begin)
    made, waiting = [], None
    for record in tail:
        if record.op == WRITE and record.content[:4] == b"DBG1":
            first, = struct.unpack_from("<Q", record.content, 16)
            count, = struct.unpack_from("<I", record.content, 40)
            waiting = first + count - 1
        elif record.op == FLUSH and waiting is not None and record.result == 0:
            made.append((waiting, record.end))
            waiting = None
    return made


def answers_before_their_flush(records: list[Record], message: type) -> tuple[int, int]:
    """(answers looked at, answers that were sent before the flush of the entry that they tell about)."""
    durable = durable_places(records)
    looked = early = 0
    for place, raw in answers(records):
        answer = message.FromString(raw)
        sequence = answer.entry.sequence if message is ledger_pb2.EarnPointsResponse else answer.sequence
        looked += 1
        covered = next((end for last, end in durable if last >= sequence), None)
        early += covered is None or covered > place
    return looked, early


def many_earns(server: RunningServer, count: int) -> None:
    """Over several connections, some at a time: groups of many sizes, flushed by both flushers."""
    channels = [grpc.insecure_channel(server.address(), options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    stubs = [server._stub(channel) for channel in channels]
    for number in range(20):
        stubs[0].EarnPoints(till.earn(f"alone{number}"), timeout=60)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: stubs[number % 4].EarnPoints(till.earn(f"card{number % 50}"), timeout=60), range(count)))
    for channel in channels:
        channel.close()


def test_no_answer_precedes_its_groups_flush(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    many_earns(server, 600)
    server.kill()
    looked, early = answers_before_their_flush(list(shim.records()), ledger_pb2.EarnPointsResponse)
    assert (looked, early) == (620, 0)


def test_the_test_above_goes_red_without_the_flush(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    shim.drop_flushes()
    many_earns(server, 100)
    server.kill()
    looked, early = answers_before_their_flush(list(shim.records()), ledger_pb2.EarnPointsResponse)
    assert looked == 120 and early == 120


def test_a_read_waits_for_the_flush_of_what_it_tells(new_server: NewServer, shim: Shim) -> None:
    """While the flush of a write hangs, a read of that member waits with it and others do not.

    A service that takes the next caller for the only one flushes in its loop, and then everybody waits: such rounds are not looked at. (It
    remembers a crowd for 10 ms only, which a busy machine may take from one call to the next.)
    """
    server = new_server(environment=shim.environment()).start()
    writer, reader, other = (grpc.insecure_channel(server.address(), options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(3))
    for card in ("hot", "cold"):
        server._stub(writer).EarnPoints(till.earn(card), timeout=60)
    rounds = tries = 0
    while rounds < 3:
        tries += 1
        assert tries <= 50, "the flush thread never flushed"
        crowd(server, writer, other)
        before = shim.place()
        delayed = shim.delayed()
        shim.delay_flush(DELAY_US)
        begin = time.monotonic()
        write = server._stub(writer).EarnPoints.future(till.earn("hot"), timeout=60)
        while shim.delayed() == delayed:
            assert time.monotonic() < begin + 60
        same = server._stub(reader).GetBalance.future(till.balance_of("hot"), timeout=60)
        beside = 0
        while not write.done():
            server._stub(other).GetBalance(till.balance_of("cold"), timeout=60)
            beside += not write.done()
        assert time.monotonic() - begin >= DELAY_US / 1e6
        assert same.result().sequence == write.result().entry.sequence
        assert time.monotonic() - begin >= DELAY_US / 1e6
        records = list(shim.records())
        flush = next(record for record in sorted(records, key=lambda record: record.begin)
                     if record.begin > before and record.file == TAIL and record.op == FLUSH)
        if flush.thread in {record.thread for record in records if record.op == SEND and record.begin > before}:
            continue
        rounds += 1
        assert beside, "reads went on during the flush"
    for channel in (writer, reader, other):
        channel.close()


def crowd(server: RunningServer, *channels: grpc.Channel) -> None:
    """Two calls open at once, so that the service does not take the next caller for the only one and flush in its loop."""
    for _ in range(3):
        calls = [server._stub(channel).EarnPoints.future(till.earn("crowd"), timeout=60) for channel in channels for _ in range(4)]
        for call in calls:
            call.result()


# --- D7 -----------------------------------------------------------------------------------------------------------

def test_failed_flush_ends_the_service_and_a_restart_has_everything_acknowledged(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    acknowledged = {}
    for number in range(10):
        acknowledged[f"card{number}"] = server.stub.EarnPoints(till.earn(f"card{number}"), timeout=60).entry.sequence
    shim.fail(2, errno.EIO, files=TAIL)  # the write passes, its flush fails
    request = till.earn("late")
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.EarnPoints(request, timeout=60)
    assert till.status_of(caught.value) is None, "without our ErrorInfo: the outcome is unknown"
    assert server.wait() == 70
    assert "daybook: writing the tail failed: Input/output error" in server.log()
    shim.heal()
    server.start()
    for card, sequence in acknowledged.items():
        assert server.stub.GetBalance(till.balance_of(card), timeout=60).sequence == sequence
    again = server.stub.EarnPoints(request, timeout=60)  # the same id: done once, whatever became of the first try
    assert server.stub.EarnPoints(request, timeout=60).entry == again.entry


def test_a_hot_thread_that_dies_ends_the_service_and_a_restart_has_everything_acknowledged(new_server: NewServer, shim: Shim) -> None:
    """In the middle of calls on both ports, memory ahead of the disk: no half-alive service may stand there, and nothing is lost."""
    server = new_server(environment=shim.environment()).start()
    acknowledged: list[tuple[Any, Any]] = []  # (request, answer)
    unknown: list[Any] = []

    def write(number: int) -> None:
        with grpc.insecure_channel(server.address("control" if number == 0 else "checkout"),
                                   options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = server._stub(channel)
            while True:
                request = till.earn(f"card{number}")
                try:
                    acknowledged.append((request, stub.EarnPoints(request, timeout=60)))
                except grpc.RpcError as error:
                    assert till.status_of(error) is None, "without our ErrorInfo: the outcome is unknown"
                    unknown.append(request)
                    return

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, number) for number in range(4)]
        until = time.monotonic() + 60
        while len({request.member.card for request, _ in acknowledged.copy()}) < 4 or len(acknowledged) < 100:
            assert time.monotonic() < until
            time.sleep(0.01)
        shim.fail_loop(errno.EINVAL)
        assert server.wait() == 70
        for one in writing:
            one.result()
    assert "daybook: the hot thread ended: OSError: [Errno 22]" in server.log() and "a restart recovers" in server.log()
    shim.fail_loop(0)
    server.start()
    assert len(unknown) == 4
    for request, answer in acknowledged:
        again = server.stub.EarnPoints(request, timeout=60)
        assert again.replayed and again.entry == answer.entry
    for request in unknown:  # done once, whatever became of the first try
        assert server.stub.EarnPoints(request, timeout=60).entry == server.stub.EarnPoints(request, timeout=60).entry
    assert server.terminate() == 0


def test_nearly_full_disk_refuses_writes_and_serves_reads(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    server.stub.EarnPoints(till.earn("card"), timeout=60)
    shim.free_bytes(limits.FREE_BYTES_MIN - 4096)
    refusal = None
    until = time.monotonic() + 60
    while refusal is None and time.monotonic() < until:
        try:
            server.stub.EarnPoints(till.earn("card"), timeout=60)
        except grpc.RpcError as error:
            refusal = reason_of(error)
    assert refusal is not None
    code, reason, metadata = refusal
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "JOURNAL_FULL")
    assert int(metadata["free_bytes"]) < int(metadata["free_bytes_min"]) == limits.FREE_BYTES_MIN
    balance = server.stub.GetBalance(till.balance_of("card"), timeout=60)
    assert balance.sequence > 0

    # A start on the full disk serves reads too, and the gate opens by itself.
    server.restart(kill=True)
    assert server.stub.GetBalance(till.balance_of("card"), timeout=60).sequence == balance.sequence
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.EarnPoints(till.earn("card"), timeout=60)
    assert reason_of(caught.value)[1] == "JOURNAL_FULL"
    shim.free_bytes(None)
    until = time.monotonic() + 60
    while True:
        try:
            server.stub.EarnPoints(till.earn("card"), timeout=60)
            break
        except grpc.RpcError as error:
            assert reason_of(error)[1] == "JOURNAL_FULL" and time.monotonic() < until


def test_full_disk_under_the_journal_is_waited_out(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    card = 0
    shim.fail(1, errno.ENOSPC, count=10**9, files=JOURNAL)
    refused = False
    until = time.monotonic() + 60
    acknowledged = []
    while not refused and time.monotonic() < until:
        card += 1
        try:
            acknowledged.append((f"card{card}", server.stub.EarnPoints(till.earn(f"card{card}"), timeout=60).entry.sequence))
        except grpc.RpcError as error:
            assert reason_of(error)[1] == "JOURNAL_FULL"
            refused = True
    assert refused and acknowledged
    for name, sequence in acknowledged:
        assert server.stub.GetBalance(till.balance_of(name), timeout=60).sequence == sequence
    shim.heal()
    while True:
        try:
            server.stub.EarnPoints(till.earn("after"), timeout=60)
            break
        except grpc.RpcError as error:
            assert reason_of(error)[1] == "JOURNAL_FULL" and time.monotonic() < until
    server.restart()
    for name, sequence in acknowledged:
        assert server.stub.GetBalance(till.balance_of(name), timeout=60).sequence == sequence


def test_clock_step_is_not_believed_and_stops_the_expiries(new_server: NewServer, shim: Shim) -> None:
    """One bad clock step must not expire everybody's points, nor date entries into a future that cannot be taken back."""
    server = new_server(environment=shim.environment()).start()
    server.stub.EarnPoints(till.earn("card"), timeout=60)
    before = server.stub.GetBalance(till.balance_of("card"), timeout=60)
    shim.step_clock(3 * 365 * 86_400 * 1_000_000)
    entry = server.stub.EarnPoints(till.earn("other"), timeout=60).entry
    assert abs(entry.create_time.seconds - time.time()) < 60
    after = server.stub.GetBalance(till.balance_of("card"), timeout=60)
    assert (after.sequence, after.wallets) == (before.sequence, before.wallets)
    until = time.monotonic() + 60
    while "clock jumped" not in server.log():
        assert time.monotonic() < until, server.log()
        time.sleep(0.05)
    shim.step_clock(-7_200 * 1_000_000)  # a step back is waited out: time stands still and nobody alarms
    while "clock is right again" not in server.log():
        assert time.monotonic() < until, server.log()
        time.sleep(0.05)
    last = server.stub.EarnPoints(till.earn("other", at=till.now_us() - 7_200_000_000), timeout=60).entry
    assert last.create_time.ToNanoseconds() >= entry.create_time.ToNanoseconds()
    shim.step_clock(0)  # and the way back up is no step ahead
    again = server.stub.EarnPoints(till.earn("other"), timeout=60).entry
    assert again.create_time.ToNanoseconds() >= last.create_time.ToNanoseconds()
    assert not [name for name, value in server.metrics().items() if name.startswith("ledger_clock_alarm") and value]


def test_repeats_are_answered_from_the_ring_and_from_the_journal(new_server: NewServer) -> None:
    """The same first outcome, whether its entry lies in the open ring, or, after a start, only in LMDB (groups of many sizes)."""
    server = new_server().start()
    requests = [till.earn(f"card{number % 40}") for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda request: server.stub.EarnPoints(request, timeout=60), requests))

    def repeat() -> None:
        for request, answer in zip(requests, first, strict=True):
            again = server.stub.EarnPoints(request, timeout=60)
            assert again.replayed and not answer.replayed
            assert (again.entry, list(again.wallets)) == (answer.entry, list(answer.wallets))

    repeat()
    server.restart()
    repeat()
    server.restart(kill=True)
    repeat()
