"""Batches on the checkout port: bounds, turns, cancelling, deadlines, and what is refused whole. Real sockets, a real engine.

What a batch means is tests/server/test_batch_wire.py's and tests/test_batches.py's. Where the order matters, everything is in the
sockets before the hot thread begins; where a batch must stand still in its middle, nothing is flushed until the open group is full.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from hyperframe.frame import RstStreamFrame, SettingsFrame

from ledger import errors, limits
from ledger.engine import open_ledger
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from server._transport import CheckoutServer
from tests import till
from tests.server.checkout import PROGRAM, Port, until
from tests.server.peer import WAIT_S, Peer, headers, message

NOW_S = till.now_us() // 1_000_000
CALLS_AHEAD = 8  # of server/_call.pxd: so many calls are read ahead
_numbers = itertools.count(1)


def enroll(number: int | None = None) -> pb.EnrollMemberRequest:
    """A short write: 40 bytes."""
    number = next(_numbers) if number is None else number
    request = pb.EnrollMemberRequest(request_id=f"batch-{number:010}", identifiers=[pb.MemberRef(card=f"{number:x}")])
    request.sent_time.seconds = NOW_S
    return request


def enrolls(count: int) -> pb.BatchPostRequest:
    return pb.BatchPostRequest(commands=[pb.PostCommand(enroll=enroll()) for _ in range(count)])


def reason_of(status: bytes | status_pb2.Status) -> tuple[str, dict[str, str]]:
    parsed = status_pb2.Status.FromString(status) if isinstance(status, bytes) else status
    info = error_details_pb2.ErrorInfo()
    assert parsed.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


def post(peer: Peer, batch: Any, **fields: str) -> int:
    return peer.start(headers("BatchPost", **fields), message(batch.SerializeToString()))


def results(peer: Peer, stream: int) -> list[Any]:
    reply = peer.finish(stream)
    assert reply.code == 0, (reply.code, reply.text, reply.reset)
    return list(pb.BatchPostResponse.FromString(reply.body).results)


def sequences(peer: Peer, stream: int) -> list[int]:
    return [result.entry.sequence for result in results(peer, stream)]


class LatePort:
    """A port whose hot, flush and drain threads begin when a test says so."""

    def __init__(self, directory: Path) -> None:
        self.ledger = open_ledger(directory / "data", PROGRAM, members_max=50_000, ids_max=100_000, tail_bytes=limits.TAIL_BYTES_MIN)
        self.server = CheckoutServer(self.ledger.handle, "127.0.0.1", 0)
        self.number = self.server.port
        self.hot = threading.Thread(target=self.server.run, name="hot")
        self.started = False

    def stat(self, name: str) -> Any:
        return self.server.stats()[name]

    def commands_run(self) -> int:
        return sum(self.stat("in_batches").values())

    def start(self) -> None:
        """The flush and the drain thread."""
        if not self.started:
            self.started = True
            self.ledger.start()

    def close(self) -> None:
        self.start()
        if not self.hot.is_alive():
            self.hot.start()
        self.ledger.handle.ask_stop(1)
        self.hot.join(WAIT_S)
        assert not self.hot.is_alive(), "the hot thread did not end"
        assert self.ledger.stop() == 0


@pytest.fixture
def late(tmp_path: Path) -> Iterator[LatePort]:
    port = LatePort(tmp_path)
    yield port
    port.close()


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(port: Any, **settings: Any) -> Peer:
        made.append(Peer(port.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**30}, **settings))
        made[-1].window(0, 2**30)   # the answers of these tests never wait for a window
        return made[-1]

    yield make
    for peer in made:
        peer.socket.close()


# --- one batch ---------------------------------------------------------------------------------------------------

def test_the_results_stand_in_the_order_of_the_commands(port: Port, peers: Callable[..., Peer]) -> None:
    batch = enrolls(1000)
    batch.commands[500].enroll.request_id = "short"
    batch.commands[501].CopyFrom(batch.commands[7])
    batch.commands[502].CopyFrom(batch.commands[7])
    batch.commands[502].enroll.identifiers[0].card = "another"
    peer = peers(port)
    got = results(peer, post(peer, batch))
    first = got[0].entry.sequence
    assert [result.entry.sequence - first for result in got[:500]] == list(range(500))
    assert reason_of(got[500].error)[0] == "FIELD_INVALID"
    assert got[501] == pb.PostResult(entry=got[7].entry, replayed=True)
    reason, metadata = reason_of(got[502].error)
    assert (reason, metadata["field"], metadata["sequence"]) == ("REQUEST_ID_REUSED", "identifiers", str(got[7].entry.sequence))
    assert [result.entry.sequence - first for result in got[503:]] == list(range(500, 997))
    assert results(peer, post(peer, batch))[999] == pb.PostResult(entry=got[999].entry, replayed=True)


@pytest.mark.parametrize(("body", "reason"), [
    (b"", "FIELD_INVALID"), (b"\x0a\x00", "FIELD_INVALID"), (b"\x0a\x05\x3a", "MESSAGE_MALFORMED"),
    (b"\x0a\x02\x3a\x7f", "MESSAGE_MALFORMED"),
    (b"\x0a\x02\x3a\x00" * 1001, "FIELD_INVALID"),
])
def test_a_batch_that_is_none_is_refused_whole(port: Port, peers: Callable[..., Peer], body: bytes, reason: str) -> None:
    good = enrolls(1).SerializeToString()
    before = port.written()
    reply = peers(port).call(headers("BatchPost"), message(good + body if body else b""))
    assert reply.code == errors.INVALID_ARGUMENT
    assert reason_of(reply.details)[0] == reason
    assert port.written() == before


def test_the_longest_batch_is_taken_and_a_longer_one_is_refused(port: Port, peers: Callable[..., Peer]) -> None:
    peer = peers(port)
    batch = enrolls(1000)
    room = limits.BATCH_REQUEST_BYTES_MAX - batch.ByteSize()
    long = pb.CommitReceiptRequest(request_id="x" * (room // 1000 // 10 * 10))
    for command in batch.commands[:900]:
        command.commit.CopyFrom(long)
    size = limits.BATCH_REQUEST_BYTES_MAX
    filled = batch.SerializeToString()
    padding = size - len(filled)
    filled += b"\x7a" + bytes([(padding - 4) & 127 | 128, (padding - 4) >> 7 & 127 | 128, (padding - 4) >> 14]) + bytes(padding - 4)
    assert len(filled) == size
    reply = peer.call(headers("BatchPost"), message(filled))
    assert reply.code == 0
    got = pb.BatchPostResponse.FromString(reply.body).results
    assert len(got) == 1000
    assert {reason_of(result.error)[0] for result in got[:900]} == {"FIELD_INVALID"}
    assert all(result.entry.sequence for result in got[900:])
    reply = peer.call(headers("BatchPost"), message(filled + b"\x00"))
    assert reply.code == errors.RESOURCE_EXHAUSTED
    assert reason_of(reply.details) == ("MESSAGE_TOO_LARGE", {"bytes": str(size + 1), "bytes_max": str(size)})


def test_balances_are_read_together(port: Port, peers: Callable[..., Peer]) -> None:
    peer = peers(port)
    posted = [result.entry for result in results(peer, post(peer, enrolls(20)))]
    batch = pb.BatchGetBalancesRequest(members=[pb.MemberRef(member_id=entry.member_id) for entry in posted])
    batch.members.add(card="nobody's")
    batch.members.add()
    digests = port.ledger.handle.stats()["digests"]
    reply = peer.call(headers("BatchGetBalances"), message(batch.SerializeToString()))
    answer = pb.BatchGetBalancesResponse.FromString(reply.body)
    assert 0 <= answer.sequence - posted[-1].sequence <= port.ledger.handle.stats()["digests"] - digests + 1  # the one of this minute
    for result, entry in zip(answer.results[:20], posted, strict=True):
        assert (result.balance.member_id, result.balance.sequence) == (entry.member_id, entry.sequence)
        assert result.balance.wallets[0].posted_points == 0
    assert [reason_of(result.error)[0] for result in answer.results[20:]] == ["MEMBER_NOT_FOUND", "FIELD_INVALID"]
    batch.wallet = "nothing of this name"
    reply = peer.call(headers("BatchGetBalances"), message(batch.SerializeToString()))
    assert (reply.code, reason_of(reply.details)[0]) == (errors.NOT_FOUND, "WALLET_NOT_FOUND")


def test_commands_of_batches_are_counted_by_what_they_came_to(new_port: Callable[..., Port], peers: Callable[..., Peer]) -> None:
    port = new_port()
    peer = peers(port)
    batch = enrolls(10)
    batch.commands[3].enroll.ClearField("identifiers")
    results(peer, post(peer, batch))
    assert port.stat("in_batches") == {(7, 0): 9, (7, errors.BY_NAME["FIELD_INVALID"].number): 1}
    assert port.calls(14, "OK") == 1


# --- turns -------------------------------------------------------------------------------------------------------

def earns(count: int, *, age_s: int) -> list[pb.EarnPointsRequest]:
    made = [till.earn(f"late-{next(_numbers):x}", 100) for _ in range(count)]
    for request in made:
        request.receipt.purchase_time.seconds = NOW_S - age_s
    return made


def send_all(peer: Peer, method: str, requests: list[Any]) -> list[int]:
    """Whole in the socket at once. Shape: their streams."""
    fields, calls, data = headers(method), [], b""
    for request in requests:
        calls.append(peer.new_stream())
        data += peer.headers_frame(calls[-1], fields).serialize()
        data += peer.data_frame(calls[-1], message(request.SerializeToString())).serialize()
    assert len(data) < 60_000, "more than one read takes from a socket"
    peer.send_raw(data)
    return calls


@pytest.mark.parametrize("together", [True, False], ids=["one connection", "two connections"])
def test_calls_for_which_nobody_waits_come_behind_the_others(late: LatePort, peers: Callable[..., Peer], together: bool) -> None:
    """A store that was offline sends yesterday's receipts, perhaps through the gateway that today's come through."""
    old_peer = peers(late)
    new_peer = old_peer if together else peers(late)
    older, enough = earns(120, age_s=2 * limits.LATE_AFTER_S), earns(20, age_s=limits.LATE_AFTER_S // 2)
    if together:
        calls = send_all(old_peer, "EarnPoints", older + enough)
        old, new = calls[:120], calls[120:]
    else:
        old, new = send_all(old_peer, "EarnPoints", older), send_all(new_peer, "EarnPoints", enough)
    late.start()
    late.hot.start()
    old_ones, new_ones = ([pb.EarnPointsResponse.FromString(peer.finish(call).body).entry.sequence for call in calls]
                          for peer, calls in ((old_peer, old), (new_peer, new)))
    assert max(new_ones) < min(old_ones)
    assert old_ones == sorted(old_ones) and len(set(old_ones)) == 120
    assert late.stat("late_calls") == 120


def test_late_calls_whose_caller_goes_are_forgotten(late: LatePort, peers: Callable[..., Peer]) -> None:
    """While tills call, late calls wait; those that are given up meanwhile leave no trace, the others are run."""
    gone, stays, tills = peers(late), peers(late), peers(late)
    late.start()
    late.hot.start()
    staying = []
    for _ in range(20):
        calls = send_all(gone, "EarnPoints", earns(100, age_s=2 * limits.LATE_AFTER_S))
        staying += send_all(stays, "EarnPoints", earns(20, age_s=2 * limits.LATE_AFTER_S))
        send_all(tills, "EarnPoints", earns(5, age_s=0))
        gone.send_raw(b"".join(RstStreamFrame(call, error_code=8).serialize() for call in calls))
    sequences = {pb.EarnPointsResponse.FromString(stays.finish(call).body).entry.sequence for call in staying}
    assert len(sequences) == len(staying)
    until(lambda: late.stat("streams") == 0)
    assert late.stat("calls_cancelled") + late.stat("answers_dropped") <= 2000


def test_single_calls_run_between_the_parts_of_a_batch(late: LatePort, peers: Callable[..., Peer]) -> None:
    """Both are whole in the sockets when the hot thread begins: 600 single calls and a batch of 1000."""
    batching, single = peers(late), peers(late)
    stream = post(batching, enrolls(1000))
    fields, calls = headers("EnrollMember"), []
    data = b""
    for _ in range(600):
        calls.append(single.new_stream())
        data += single.headers_frame(calls[-1], fields).serialize()
        data += single.data_frame(calls[-1], message(enroll().SerializeToString())).serialize()
    assert len(data) < 60_000, "more than one read takes from a socket"
    single.send_raw(data)
    late.start()
    late.hot.start()
    in_batch = set(sequences(batching, stream))
    alone = {pb.EnrollMemberResponse.FromString(single.finish(call).body).entry.sequence for call in calls}
    assert max(alone) < max(in_batch), "all single calls were answered while the batch was still running"
    longest = max(sum(1 for _ in run) for mine, run in itertools.groupby(
        sequence in in_batch for sequence in range(min(in_batch), max(alone) + 1)) if mine)
    assert longest <= limits.BATCH_COMMANDS_BESIDE
    assert late.stat("batch_turns") >= 1000 // limits.CALLS_PER_TURN_MAX


def test_a_connection_with_many_calls_keeps_nobody_waiting(late: LatePort, peers: Callable[..., Peer]) -> None:
    """A thousand calls of one connection and ten of another are in the sockets, in this order, when the hot thread begins."""
    crowd, till_ = peers(late), peers(late)
    fields = headers("EnrollMember")
    many, few = [], []
    for peer, calls, count in ((crowd, many, 1000), (till_, few, 10)):
        data = b""
        for _ in range(count):
            calls.append(peer.new_stream())
            data += peer.headers_frame(calls[-1], fields).serialize()
            data += peer.data_frame(calls[-1], message(enroll().SerializeToString())).serialize()
        peer.send_raw(data)
    late.start()
    late.hot.start()
    sequences_few, sequences_many = (
        [pb.EnrollMemberResponse.FromString(peer.finish(call).body).entry.sequence for call in calls]
        for peer, calls in ((till_, few), (crowd, many)))
    assert sequences_few == sorted(sequences_few) and sequences_many == sorted(sequences_many), "a connection's calls keep their order"
    before = sum(1 for sequence in sequences_many if sequence < sequences_few[-1])
    assert before <= CALLS_AHEAD * (len(few) + 1), "the ten waited for a few of the thousand, not for all"
    assert sorted(sequences_few + sequences_many) == list(range(2, 1012))


def test_a_batch_ends_though_tills_call_all_the_time(port: Port, peers: Callable[..., Peer]) -> None:
    batching, single = peers(port), peers(port)
    stream = post(batching, enrolls(1000))
    ended = threading.Event()
    took: list[int] = []

    def wait() -> None:
        took.extend(sequences(batching, stream))
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    calls = 0
    while not ended.is_set():
        assert single.call(headers("EnrollMember"), message(enroll().SerializeToString())).code == 0
        calls += 1
        assert waiting.is_alive() or ended.is_set()
    waiting.join()
    assert len(took) == 1000


def test_open_batches_run_one_after_another(late: LatePort, peers: Callable[..., Peer]) -> None:
    senders = [peers(late) for _ in range(4)]
    streams = [post(peer, enrolls(1000)) for peer in senders]
    late.start()
    late.hot.start()
    got = [sequences(peer, stream) for peer, stream in zip(senders, streams, strict=True)]
    assert all(mine == list(range(mine[0], mine[0] + 1000)) for mine in got)
    assert sorted(itertools.chain(*got)) == list(range(2, 4002))


# --- a batch that stands still in its middle ------------------------------------------------------------------------

ROOM = 400  # commands that the open group still takes


def stall(late: LatePort, peers: Callable[..., Peer], **fields: str) -> tuple[Peer, list[int], Peer, list[int]]:
    """Two connections with eight batches each. One group is in flight and nobody flushes it; the open one takes ROOM entries more: no batch
    comes to its end."""
    late.ledger.handle.turn(1, False)
    late.ledger.handle.turn(limits.GROUP_ENTRIES_MAX - ROOM, False)
    late.hot.start()
    first, second = peers(late), peers(late)
    streams = [[post(peer, enrolls(1000), **fields) for _ in range(limits.BATCHES_PER_CONNECTION_MAX)] for peer in (first, second)]
    until(lambda: late.stat("streams") == limits.BATCHES_MAX)
    for peer in (first, second):
        peer.ping()     # everything before it was read
    until(lambda: late.commands_run() >= ROOM)
    return first, streams[0], second, streams[1]


def entries(late: LatePort) -> int:
    """Entries of batches."""
    return late.ledger.handle.sequence - 1 - 1 - (limits.GROUP_ENTRIES_MAX - ROOM)


def test_a_cancelled_batch_stops_where_it_is(late: LatePort, peers: Callable[..., Peer]) -> None:
    first, cancelled, second, others = stall(late, peers)
    assert late.commands_run() == entries(late) == ROOM
    first.send(*[RstStreamFrame(stream, error_code=8) for stream in cancelled])
    until(lambda: late.stat("calls_cancelled") == limits.BATCHES_PER_CONNECTION_MAX)
    late.start()
    for stream in others:
        assert len(sequences(second, stream)) == 1000
    stream = post(first, enrolls(1000))     # its buffers are free again
    assert len(sequences(first, stream)) == 1000
    assert 9000 <= late.commands_run() <= 9000 + ROOM
    assert entries(late) == late.commands_run()


def test_a_batch_of_the_control_port_whose_caller_goes_stops_where_it_is(late: LatePort) -> None:
    handle = late.ledger.handle
    handle.turn(1, False)
    handle.turn(limits.GROUP_ENTRIES_MAX - ROOM, False)
    late.hot.start()
    first, second = (enrolls(1000).SerializeToString() for _ in range(2))
    assert handle.submit(1, 14, first, 0)
    until(lambda: late.commands_run() >= ROOM)
    assert handle.give_up(1) and handle.submit(2, 14, second, 0)
    late.start()
    answers: list[Any] = []
    until(lambda: answers.extend(handle.collect()) or answers)
    (token, code, payload, _), = answers
    assert (token, code, len(pb.BatchPostResponse.FromString(payload).results)) == (2, 0, 1000)
    assert late.stat("calls_cancelled") == 1
    assert entries(late) == late.commands_run() == ROOM + 1000, "the room came when the inbox was looked at, so nothing more of it ran"
    assert handle.give_up(2) and handle.give_up(7), "one that has ended, and one that never was"
    for token in range(10, 10 + limits.BATCHES_MAX):    # all buffers are free again
        assert handle.submit(token, 14, enrolls(10).SerializeToString(), 0)
    until(lambda: answers.extend(handle.collect()) or len(answers) == 1 + limits.BATCHES_MAX)
    assert all(code == 0 for _, code, _, _ in answers)
    assert late.stat("calls_cancelled") == 1


def test_too_many_batches_are_turned_away(late: LatePort, peers: Callable[..., Peer]) -> None:
    first, streams, second, others = stall(late, peers)
    for peer in (first, peers(late)):       # a ninth of one connection, a seventeenth of all
        reply = peer.finish(post(peer, enrolls(1)))
        assert (reply.code, reason_of(reply.details)[0]) == (errors.UNAVAILABLE, "TOO_MANY_CALLS")
    late.start()
    for peer, stream in [(first, stream) for stream in streams] + [(second, stream) for stream in others]:
        assert len(sequences(peer, stream)) == 1000
    assert entries(late) == limits.BATCHES_MAX * 1000


def test_a_lost_connection_gives_its_batches_back(late: LatePort, peers: Callable[..., Peer]) -> None:
    first, _, second, others = stall(late, peers)
    first.socket.close()
    until(lambda: late.stat("calls_cancelled") == limits.BATCHES_PER_CONNECTION_MAX)
    late.start()
    for stream in others:
        assert len(sequences(second, stream)) == 1000
    for stream in [post(second, enrolls(10)) for _ in range(limits.BATCHES_PER_CONNECTION_MAX)]:
        assert len(sequences(second, stream)) == 10


def test_a_deadline_in_the_middle_refuses_the_rest(tmp_path: Path, peers: Callable[..., Peer]) -> None:
    """What ran before it is answered, durable; what did not is told so and never run. (A machine so slow that the deadline comes before the
    batch begins tries again with a longer one.)"""
    late_status = errors.BY_NAME["DEADLINE_PASSED"].number
    for timeout in ("500m", "5S", "50S"):
        late = LatePort(tmp_path / timeout)
        try:
            late.ledger.handle.turn(1, False)
            late.ledger.handle.turn(limits.GROUP_ENTRIES_MAX - ROOM, False)
            late.hot.start()
            peer = peers(late)
            stream = post(peer, enrolls(1000), grpc_timeout=timeout)
            until(lambda port=late: port.stat("in_batches").get((0, late_status)) == 1000 - ROOM
                  or ("checkout", 14, late_status) in port.stat("calls"))
            assert not peer.replies[stream].ended
            late.start()
            reply = peer.finish(stream)
            if reply.code != 0:
                continue
            got = pb.BatchPostResponse.FromString(reply.body).results
            assert [result.WhichOneof("outcome") for result in got] == ["entry"] * ROOM + ["error"] * (1000 - ROOM)
            assert {reason_of(result.error)[0] for result in got[ROOM:]} == {"DEADLINE_PASSED"}
            assert entries(late) == ROOM
            return
        finally:
            late.close()
    raise AssertionError("no deadline came in the middle of a batch")


def test_a_batch_whose_deadline_passed_before_is_refused_whole(late: LatePort, peers: Callable[..., Peer]) -> None:
    peer = peers(late)
    stream = post(peer, enrolls(5), grpc_timeout="1n")
    late.start()
    late.hot.start()
    reply = peer.finish(stream)
    assert (reply.code, reason_of(reply.details)[0]) == (errors.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
    assert late.commands_run() == 0
