"""Calls that wait for the runs of dropped ids, over real sockets: they wait alone, and nobody can make more of it.

The threads that write runs and ask them are started by the test, when it wants them: until then every late call waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import limits
from ledger.engine import open_ledger
from server._pb.loyalty.ledger.v1 import ledger_pb2
from server._transport import CheckoutServer
from tests import till
from tests.running import RunningServer
from tests.server.checkout import PROGRAM, until
from tests.server.peer import WAIT_S

IDS_MAX = 8  # a generation is full after four
DAY = 86_400_000_000


class Slow:
    """A checkout port whose ids and look-up threads start when they are told to."""

    def __init__(self, data: Path) -> None:
        self.ledger = open_ledger(data, PROGRAM, members_max=1000, ids_max=IDS_MAX, tail_bytes=limits.TAIL_BYTES_MIN)
        self.handle = self.ledger.handle
        self.server = CheckoutServer(self.handle, "127.0.0.1", 0)
        self.threads: list[threading.Thread] = []
        self.cards = 0
        self.run(self.handle.run_flush)
        self.run(self.handle.run_drain)
        self.hot = threading.Thread(target=self.server.run)
        self.hot.start()
        self.channels = [grpc.insecure_channel(f"127.0.0.1:{self.server.port}", [("grpc.use_local_subchannel_pool", 1)]) for _ in range(2)]
        self.stub, self.other = (RunningServer._stub(channel) for channel in self.channels)

    def run(self, body: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=body, daemon=True))
        self.threads[-1].start()

    def write_runs(self) -> None:
        self.run(self.handle.run_ids)

    def ask_runs(self) -> None:
        self.run(self.handle.run_lookups)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.handle.ask_stop(2)
        self.hot.join(WAIT_S)
        self.handle.end_threads()
        for thread in self.threads:
            thread.join(WAIT_S)
        self.ledger.stop()

    def send(self, method: str, request: Any) -> tuple[Any, Any]:
        """A new request that is taken, asked again while the ids are behind."""
        while True:
            try:
                return request, getattr(self.stub, method)(request, timeout=WAIT_S)
            except grpc.RpcError as error:
                assert till.reason_of(error) == ("IDS_BEHIND", {})

    def enroll(self) -> tuple[Any, Any]:
        """Has no receipt key: only its request id can be late."""
        self.cards += 1
        return self.send("EnrollMember", enroll(f"card-{self.cards}"))

    def enroll_many(self) -> None:
        """So many that memory drops what came before."""
        for _ in range(3 * IDS_MAX):
            self.enroll()

    @property
    def parked(self) -> int:
        return self.server.stats()["parked"]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    made = Slow(tmp_path / "data")
    yield made
    made.close()


def enroll(card: str, at: int | None = None) -> Any:
    return till.request("EnrollMember", at=at, identifiers=[ledger_pb2.MemberRef(card=card)])


def forget(slow: Slow) -> tuple[Any, Any]:
    """A request whose id memory has dropped, and its answer."""
    slow.write_runs()
    old = slow.enroll()
    slow.enroll_many()
    return old


def test_a_late_call_waits_and_the_others_do_not(slow: Slow) -> None:
    request, answer = forget(slow)
    late = slow.stub.EnrollMember.future(request, timeout=WAIT_S)
    until(lambda: slow.parked == 1)
    for stub in (slow.stub, slow.other):  # on the same connection and on another one
        assert stub.GetBalance(till.balance_of("card-2"), timeout=WAIT_S).member_id == 2
        assert slow.enroll()[1].entry.sequence > answer.entry.sequence
    assert not late.done() and slow.parked == 1
    slow.ask_runs()
    assert late.result(WAIT_S).replayed
    assert late.result().entry == answer.entry
    assert slow.parked == 0


def test_old_operations_are_found_with_and_without_their_time(slow: Slow) -> None:
    request, answer = forget(slow)
    slow.ask_runs()
    ask = ledger_pb2.GetOperationRequest(request_id=request.request_id)
    assert slow.stub.GetOperation(ask, timeout=WAIT_S).entry == answer.entry
    ask.sent_time.CopyFrom(request.sent_time)
    assert slow.stub.GetOperation(ask, timeout=WAIT_S).entry == answer.entry
    ask.sent_time.CopyFrom(till.timestamp(till.now_us() - 300 * DAY))  # not its time: no run reaches to it
    for not_there in (ask, ledger_pb2.GetOperationRequest(request_id="never-sent-before")):
        with pytest.raises(grpc.RpcError) as refused:
            slow.stub.GetOperation(not_there, timeout=WAIT_S)
        assert till.reason_of(refused.value) == ("OPERATION_NOT_FOUND", {})


def test_a_new_late_receipt_is_taken_exactly_once(slow: Slow) -> None:
    forget(slow)
    slow.ask_runs()
    late = till.earn("card-1", at=till.now_us() - DAY)
    _, first = slow.send("EarnPoints", late)
    assert not first.replayed
    burn = till.request("BurnPoints", card="card-1", points=1, receipt_key=late.receipt.key)
    slow.enroll_many()
    for _ in range(2 * IDS_MAX):
        slow.send("EarnPoints", till.earn("card-2"))
    assert slow.stub.EarnPoints(late, timeout=WAIT_S).replayed
    _, paid = slow.send("BurnPoints", burn)  # the other half of the receipt, when memory has dropped the first
    for _ in range(2 * IDS_MAX):
        slow.send("EarnPoints", till.earn("card-2"))
    for method, request, entry in (("EarnPoints", late, first.entry), ("BurnPoints", burn, paid.entry)):
        again = type(request)()
        again.CopyFrom(request)
        again.request_id = f"another-id-for-the-same-{method}"
        with pytest.raises(grpc.RpcError) as refused:
            getattr(slow.stub, method)(again, timeout=WAIT_S)
        assert till.reason_of(refused.value) == ("RECEIPT_ALREADY_POSTED", {"sequence": str(entry.sequence)})


def test_a_call_whose_deadline_passes_while_it_waits_is_not_decided(slow: Slow) -> None:
    forget(slow)
    late = enroll("late", till.now_us() - DAY)
    call = slow.stub.EnrollMember.future(late, timeout=2)
    until(lambda: slow.parked == 1)
    with pytest.raises(grpc.RpcError) as refused:
        call.result()
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The server's clock for the call began later than the client's, but the client gives the call up.
    until(lambda: slow.server.stats()["calls_cancelled"] == 1)
    sequence = slow.handle.sequence
    slow.ask_runs()
    until(lambda: slow.parked == 0)
    assert slow.handle.sequence == sequence
    assert not slow.send("EnrollMember", late)[1].replayed


@pytest.mark.parametrize("lines", [1, 300])  # in the stream's own buffer, and in a large one
def test_a_client_that_goes_while_its_call_waits_leaves_nothing_behind(slow: Slow, lines: int) -> None:
    forget(slow)
    gone = till.earn("late", at=till.now_us() - DAY, lines=lines)
    call = slow.stub.EarnPoints.future(gone)
    until(lambda: slow.parked == 1)
    call.cancel()
    until(lambda: slow.server.stats()["calls_cancelled"] == 1)
    sequence = slow.handle.sequence
    slow.ask_runs()
    until(lambda: slow.parked == 0 and slow.server.stats()["streams"] == 0)
    assert slow.handle.sequence == sequence
    assert not slow.send("EarnPoints", gone)[1].replayed


def test_while_the_ids_are_behind_only_new_ids_are_refused(slow: Slow) -> None:
    slow.ask_runs()
    taken = []
    with pytest.raises(grpc.RpcError) as refused:
        while True:
            request = enroll(f"card-{len(taken)}")
            taken.append((request, slow.stub.EnrollMember(request, timeout=WAIT_S)))
    assert till.reason_of(refused.value) == ("IDS_BEHIND", {})
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(taken) == 2 * IDS_MAX  # four generations of four
    sequence = slow.handle.sequence
    for old, answer in taken:  # repeats and reads go on
        again = slow.stub.EnrollMember(old, timeout=WAIT_S)
        assert again.replayed and again.entry == answer.entry
    assert slow.stub.GetBalance(till.balance_of("card-1"), timeout=WAIT_S).member_id == 2
    assert slow.handle.sequence == sequence, "what is refused is not written"
    assert slow.handle.stats()["ids"]["refused_behind"] == 1
    slow.write_runs()
    assert slow.send("EnrollMember", request)[1].entry.sequence == sequence + 1
    assert slow.handle.stats()["ids"]["runs"] >= 1


def test_many_late_calls_at_once_all_get_their_own_answer(slow: Slow) -> None:
    slow.write_runs()
    old = [slow.enroll() for _ in range(100)]
    slow.enroll_many()
    late = [slow.stub.EnrollMember.future(request, timeout=WAIT_S) for request, _ in old]
    until(lambda: slow.parked == len(old))
    slow.ask_runs()
    for call, (_, answer) in zip(late, old, strict=True):
        assert call.result(WAIT_S).replayed and call.result().entry == answer.entry
    stats = slow.handle.stats()["ids"]
    assert stats["lookups"] >= len(old) and stats["waiting"] == 0
    assert sum(stats["lookup_us"]["counts"]) == stats["lookups"]


# --- batches -----------------------------------------------------------------------------------------------------

def batch_of(requests: list[Any]) -> Any:
    return ledger_pb2.BatchPostRequest(commands=[ledger_pb2.PostCommand(enroll=request) for request in requests])


def forget_many(slow: Slow, count: int) -> list[tuple[Any, Any]]:
    slow.write_runs()
    old = [slow.enroll() for _ in range(count)]
    slow.enroll_many()
    return old


def test_a_batch_waits_for_the_runs_step_by_step_and_others_do_not(slow: Slow) -> None:
    old = forget_many(slow, 20)
    batch = batch_of([request for request, _ in old])
    batch.commands[5].enroll.identifiers[0].card = "another"
    late = slow.stub.BatchPost.future(batch, timeout=WAIT_S)
    until(lambda: slow.parked == limits.BATCH_STEP)  # one waits, and the runs are asked for those behind it too
    members = ledger_pb2.BatchGetBalancesRequest(members=[ledger_pb2.MemberRef(member_id=2)])
    assert slow.other.BatchGetBalances(members, timeout=WAIT_S).results[0].balance.member_id == 2
    fresh = slow.enroll()[0]
    assert slow.other.BatchPost(batch_of([fresh]), timeout=WAIT_S).results[0].replayed
    assert not late.done()
    slow.ask_runs()
    results = late.result(WAIT_S).results
    for index, ((_, answer), result) in enumerate(zip(old, results, strict=True)):
        if index == 5:
            reason, metadata = till.reason_of_status(result.error)
            assert (reason, metadata["sequence"]) == ("REQUEST_ID_REUSED", str(answer.entry.sequence))
        else:
            assert result.replayed and result.entry == answer.entry
    assert slow.parked == 0
    assert slow.handle.stats()["ids"]["lookups"] == len(old), "each command was asked for once"


def test_a_batch_of_late_and_new_commands_takes_each_once(slow: Slow) -> None:
    old = forget_many(slow, 6)
    slow.ask_runs()
    new = [enroll(f"new-{number}", till.now_us() - DAY * (number % 2)) for number in range(6)]
    mixed = [request for pair in zip([request for request, _ in old], new, strict=True) for request in pair] + new[:2]
    results = slow.stub.BatchPost(batch_of(mixed), timeout=WAIT_S).results
    while behind := [index for index, result in enumerate(results) if result.HasField("error")]:
        assert {till.reason_of_status(results[index].error)[0] for index in behind} == {"IDS_BEHIND"}
        again = slow.stub.BatchPost(batch_of([mixed[index] for index in behind]), timeout=WAIT_S).results
        for index, result in zip(behind, again, strict=True):
            results[index].CopyFrom(result)
    assert [result.entry for result in results[0:12:2]] == [answer.entry for _, answer in old]
    assert len({result.entry.sequence for result in results}) == 12
    assert [result.entry for result in results[12:]] == [results[1].entry, results[3].entry]


def test_a_client_that_goes_while_its_batch_waits_leaves_its_buffers_behind(slow: Slow) -> None:
    old = forget_many(slow, 20)
    calls = [slow.stub.BatchPost.future(batch_of([request for request, _ in old] + [enroll("gone")]))
             for _ in range(limits.BATCHES_PER_CONNECTION_MAX)]
    until(lambda: slow.parked == limits.BATCHES_PER_CONNECTION_MAX * limits.BATCH_STEP)
    for call in calls:
        call.cancel()
    until(lambda: slow.server.stats()["calls_cancelled"] == len(calls))
    others = [slow.other.BatchPost.future(batch_of([old[0][0]]), timeout=WAIT_S) for _ in range(limits.BATCHES_PER_CONNECTION_MAX)]
    until(lambda: slow.parked == len(calls) * limits.BATCH_STEP + len(others))
    sequence = slow.handle.sequence
    slow.ask_runs()
    for call in others:
        assert call.result(WAIT_S).results[0].entry == old[0][1].entry
    until(lambda: slow.parked == 0 and slow.server.stats()["streams"] == 0)
    assert slow.handle.sequence == sequence
    for stub in (slow.stub, slow.other):  # all of them are free again
        again = [stub.BatchPost.future(batch_of([old[0][0]]), timeout=WAIT_S) for _ in range(limits.BATCHES_PER_CONNECTION_MAX)]
        assert all(call.result(WAIT_S).results[0].replayed for call in again)


def test_a_batch_of_the_control_port_whose_caller_goes_while_it_waits_is_not_gone_on_with(slow: Slow) -> None:
    old = forget_many(slow, 20)
    batch = batch_of([request for request, _ in old] + [enroll("gone")]).SerializeToString()
    for token in range(limits.BATCHES_MAX):
        assert slow.handle.submit(token, 14, batch, 0)
    until(lambda: slow.parked == limits.BATCHES_MAX * limits.BATCH_STEP)
    for token in range(limits.BATCHES_MAX):
        assert slow.handle.give_up(token)
    until(lambda: slow.server.stats()["calls_cancelled"] == limits.BATCHES_MAX)
    sequence = slow.handle.sequence
    slow.ask_runs()
    until(lambda: slow.parked == 0)
    assert slow.handle.collect() == [] and slow.handle.sequence == sequence
    again = [slow.stub.BatchPost.future(batch_of([old[0][0]]), timeout=WAIT_S) for _ in range(limits.BATCHES_PER_CONNECTION_MAX)]
    assert all(call.result(WAIT_S).results[0].replayed for call in again), "their buffers are free again"
