"""The checkout port over real sockets, with a real engine behind it: what clients may rely on, and what nobody can do to it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from ledger import errors, limits
from server._pb.loyalty.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from server._transport import LATENCY_BOUNDS_US, CheckoutServer
from tests.server.checkout import Port, enroll, until
from tests.server.peer import PREFACE, SERVICE, WAIT_S, Peer, balance, headers, message

ENHANCE_YOUR_CALM, CANCEL, REFUSED_STREAM, NO_ERROR = 11, 8, 7, 0
GET_BALANCE, HEALTH_CHECK = 8, 10  # Method of ledger/_layout.pxd


def reason(details: bytes) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == errors.DOMAIN
    return info


# --- stock clients ------------------------------------------------------------------------------------------------------

def test_stock_client_reads_writes_and_gets_rich_errors(port: Port) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port.number}") as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        request = enroll("stock-1")
        opened = stub.EnrollMember(request, timeout=WAIT_S)
        assert (opened.opened, opened.replayed) == (True, False)
        again = stub.EnrollMember(request, timeout=WAIT_S)
        assert (again.entry, again.replayed) == (opened.entry, True)
        read = stub.GetBalance(ledger_pb2.GetBalanceRequest(member=ledger_pb2.MemberRef(card="stock-1")), timeout=WAIT_S)
        assert read.member_id == opened.entry.member_id
        assert read.sequence == opened.entry.sequence
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetBalance(ledger_pb2.GetBalanceRequest(member=ledger_pb2.MemberRef(card="nobody")), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        details = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
        assert reason(details).reason == "MEMBER_NOT_FOUND"
        assert status_pb2.Status.FromString(details).message == refused.value.details()


def test_stock_aio_client_with_many_calls_in_flight(port: Port) -> None:
    async def run() -> list[int]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port.number}") as channel:
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            answers = await asyncio.gather(*[stub.EnrollMember(enroll(f"aio-{number}"), timeout=WAIT_S) for number in range(500)])
            return [answer.entry.sequence for answer in answers]

    sequences = asyncio.run(run())
    assert len(set(sequences)) == 500
    assert port.ledger.handle.durable_sequence >= max(sequences)


@pytest.mark.parametrize("arguments", [("-c8", "-m1"), ("-c4", "-m32")])
def test_h2load_gets_only_good_answers(port: Port, tmp_path: Path, arguments: tuple[str, str]) -> None:
    assert shutil.which("h2load"), "h2load is missing: apt install nghttp2-client"
    body = tmp_path / "body"
    body.write_bytes(balance())
    done = subprocess.run(
        ["h2load", *arguments, "-t1", "-n4000", f"-d{body}", "-Hcontent-type: application/grpc", "-Hte: trailers",
         f"http://127.0.0.1:{port.number}{SERVICE}GetBalance"], capture_output=True, text=True, timeout=60, check=True)
    assert "4000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    assert "4000 2xx" in done.stdout


def test_answers_over_ipv6(new_port: Callable[..., Port]) -> None:
    one = new_port("::1")
    with Peer(one.number, host="::1") as peer:
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND


def test_a_taken_port_is_one_clear_error(port: Port, new_port: Callable[..., Port]) -> None:
    one = new_port()
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port.number}: Address already in use"):
        CheckoutServer(one.ledger.handle, "127.0.0.1", port.number)


# --- what a request must look like ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("fields", "body", "reason_name", "text"), [
    (headers("Nothing"), balance(), "METHOD_UNKNOWN", "unknown method"),
    (headers(path="/other.Service/GetBalance"), balance(), "METHOD_UNKNOWN", "unknown method"),
    (headers(path="/grpc.health.v1.Health/Watch"), message(b""), "METHOD_UNKNOWN", "unknown method"),
    (headers(path="/"), balance(), "METHOD_UNKNOWN", "unknown method"),
    (headers(grpc_encoding="gzip"), balance(), "MESSAGE_COMPRESSED", "send grpc-encoding identity"),
    (headers(), message(b"\x1f\x8b", compressed=1), "MESSAGE_COMPRESSED", "send grpc-encoding identity"),
    (headers(), b"\x02" + balance()[1:], "FRAMING_INVALID", "one gRPC message"),
    (headers(), balance() + balance(), "FRAMING_INVALID", f"{2 * len(balance())} bytes came"),
    (headers(), balance() + b"\0", "FRAMING_INVALID", f"{len(balance()) + 1} bytes came"),
    (headers(), balance()[:-1], "FRAMING_INVALID", f"{len(balance()) - 1} bytes came"),
    (headers(), b"\0\0\0", "FRAMING_INVALID", "3 bytes came"),
    (headers(), b"", "FRAMING_INVALID", "0 bytes came"),
    (headers(grpc_timeout="soon"), balance(), "TIMEOUT_INVALID", "1..8 digits"),
    (headers(grpc_timeout="123456789S"), balance(), "TIMEOUT_INVALID", "1..8 digits"),
    (headers(grpc_timeout="5"), balance(), "TIMEOUT_INVALID", "1..8 digits"),
    (headers(grpc_timeout="5x"), balance(), "TIMEOUT_INVALID", "1..8 digits"),
    (headers(), message(bytes(limits.REQUEST_BYTES_MAX + 1)), "MESSAGE_TOO_LARGE", f"{limits.REQUEST_BYTES_MAX + 1} bytes"),
    (headers(), struct.pack(">BI", 0, 2**32 - 1), "MESSAGE_TOO_LARGE", f"{2**32 - 1} bytes"),
    (headers(), message(b"\xff" * limits.REQUEST_BYTES_MAX), "MESSAGE_MALFORMED", "not a valid protobuf message"),
    (headers(), message(b"\xff" * 4092), "MESSAGE_MALFORMED", "not a valid protobuf message"),  # around a stream's own buffer
    (headers(), message(b"\xff" * 4091), "MESSAGE_MALFORMED", "not a valid protobuf message"),
], ids=lambda value: value if isinstance(value, str) and value.isupper() else "")
def test_a_broken_request_gets_one_clear_error(port: Port, fields: list[tuple[str, str]], body: bytes, reason_name: str, text: str) -> None:
    with Peer(port.number) as peer:
        reply = peer.call(fields, body)
        assert reply.headers[":status"] == "200"
        assert reply.headers["content-type"] == "application/grpc"
        assert reply.code == errors.BY_NAME[reason_name].grpc_code
        assert text in reply.text
        assert reason(reply.details).reason == reason_name
        assert reply.data == b""
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND, "the connection goes on"


def test_a_compressed_request_is_told_what_is_accepted(port: Port) -> None:
    with Peer(port.number) as peer:
        assert peer.call(headers(grpc_encoding="gzip"), balance()).headers["grpc-accept-encoding"] == "identity"


@pytest.mark.parametrize(("fields", "status"), [
    (headers(verb="GET"), "405"),
    (headers(verb="PUT"), "405"),
    (headers(content_type="application/json"), "415"),
    (headers(content_type="application/grpc-web"), "415"),
    (headers(content_type="application/grpc+json"), "415"),
    (headers(content_type=None), "415"),
])
def test_what_is_not_grpc_gets_a_plain_http_answer(port: Port, fields: list[tuple[str, str]], status: str) -> None:
    with Peer(port.number) as peer:
        reply = peer.call(fields, balance())
        assert reply.headers[":status"] == status
        assert reply.code is None


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"])
def test_every_way_to_say_grpc_with_protobuf_is_taken(port: Port, content_type: str) -> None:
    with Peer(port.number) as peer:
        assert peer.call(headers(content_type=content_type), balance()).code == errors.NOT_FOUND


def test_a_header_block_above_the_limit_is_refused_and_one_far_above_ends_the_connection(port: Port) -> None:
    with Peer(port.number) as peer:
        reply = peer.call(headers(x_long="a" * limits.HEADER_BYTES_MAX), balance())
        assert (reply.headers[":status"], reply.code) == ("431", errors.RESOURCE_EXHAUSTED)
        assert str(limits.HEADER_BYTES_MAX) in reply.text
        abused = port.stat("connections_abused")
        fields = headers() + [("x-long", "a" * 1000)] * 80  # indexed after the first: few bytes on the wire
        peer.start(fields, balance())
        peer.read_close()
        assert (peer.goaways[-1][1]) == ENHANCE_YOUR_CALM
        assert port.stat("connections_abused") == abused + 1
    port.assert_alive()


def test_a_message_that_is_too_large_is_refused_before_it_is_sent(port: Port) -> None:
    with Peer(port.number) as peer:
        reply = peer.call(headers(), struct.pack(">BI", 0, limits.REQUEST_BYTES_MAX + 1) + bytes(10), end=False)
        assert reply.code == errors.RESOURCE_EXHAUSTED
        peer.read_until(lambda: reply.reset is not None)
        assert reply.reset == NO_ERROR, "the client is told to stop sending (RFC 9113 8.1)"


def test_many_messages_too_large_at_once_do_not_end_the_connection(port: Port) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port.number}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        connections = port.stat("connections_total")
        call = channel.unary_unary(SERVICE + "GetBalance")
        futures = [call.future(bytes(1_000_000), timeout=WAIT_S) for _ in range(20)]
        assert {future.code() for future in futures} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert port.stat("connections_total") == connections + 1


def test_a_request_in_single_bytes_arrives_whole(port: Port) -> None:
    with Peer(port.number) as peer:
        stream = peer.new_stream()
        peer.send(peer.headers_frame(stream, headers()))
        for byte in balance():
            peer.send(peer.data_frame(stream, bytes([byte]), end=False))
        peer.send(peer.data_frame(stream, b""))
        assert peer.finish(stream).code == errors.NOT_FOUND


def test_a_request_may_end_with_trailers(port: Port) -> None:
    with Peer(port.number) as peer:
        stream = peer.start(headers(), balance(), end=False)
        peer.send(peer.headers_frame(stream, [("x-trailer", "1")], end=True))
        assert peer.finish(stream).code == errors.NOT_FOUND


def test_a_largest_request_and_many_at_once(port: Port) -> None:
    """More large requests than one connection may have buffers for: some are refused as too many, none is lost."""
    with Peer(port.number) as peer:
        half = message(b"\xff" * limits.REQUEST_BYTES_MAX)[:8000]
        streams = [peer.start(headers(), half, end=False) for _ in range(limits.LARGE_BUFFERS_PER_CONNECTION_MAX + 5)]
        refused = streams[limits.LARGE_BUFFERS_PER_CONNECTION_MAX:]
        for stream in refused:
            assert peer.finish(stream).code == errors.UNAVAILABLE
            assert reason(peer.replies[stream].details).reason == "TOO_MANY_CALLS"
        peer.send(*[RstStreamFrame(stream, error_code=CANCEL) for stream in streams])
        assert peer.call(headers(), message(b"\xff" * 8000)).code == errors.INVALID_ARGUMENT, "the buffers were given back"


def test_a_message_is_percent_encoded(port: Port) -> None:
    with Peer(port.number) as peer:
        card = "50% größer\x7f\n"
        request = ledger_pb2.GetBalanceRequest(member=ledger_pb2.MemberRef(card=card))
        reply = peer.call(headers(), message(request.SerializeToString()))
        assert reply.code == errors.INVALID_ARGUMENT
        assert status_pb2.Status.FromString(reply.details).message == reply.text
        assert all(" " <= letter <= "~" for letter in reply.headers["grpc-message"])


# --- deadlines and cancellation ------------------------------------------------------------------------------------------

def test_a_deadline_counts_from_the_headers_and_a_late_call_is_not_decided(port: Port) -> None:
    with Peer(port.number) as peer:
        written = port.written()
        body = message(enroll("late-1").SerializeToString())
        stream = peer.start(headers("EnrollMember", grpc_timeout="30m"), body[:10], end=False)
        peer.ping()
        sent = time.monotonic()
        until(lambda: time.monotonic() > sent + 0.035)
        peer.send(peer.data_frame(stream, body[10:]))
        reply = peer.finish(stream)
        assert reply.code == errors.DEADLINE_EXCEEDED
        assert reason(reply.details).reason == "DEADLINE_PASSED"
        assert peer.call(headers("EnrollMember", grpc_timeout="0n"), body).code == errors.DEADLINE_EXCEEDED
        assert port.written() == written, "nothing was written"
        assert peer.call(headers("EnrollMember", grpc_timeout="99999999H"), body).code == 0


def test_a_call_cancelled_before_it_is_decided_is_not_decided(port: Port) -> None:
    with Peer(port.number) as peer:
        written, cancelled = port.written(), port.stat("calls_cancelled")
        body = message(enroll("cancelled-1").SerializeToString())
        stream = peer.start(headers("EnrollMember"), body[:10], end=False)
        peer.send(RstStreamFrame(stream, error_code=CANCEL))
        whole = peer.new_stream()
        peer.send(peer.headers_frame(whole, headers("EnrollMember")), peer.data_frame(whole, body),
                  RstStreamFrame(whole, error_code=CANCEL))  # read in one piece: complete, but given up when its turn comes
        peer.ping()
        assert port.stat("calls_cancelled") == cancelled + 2
        assert port.written() == written
        assert port.stat("streams") == 0


def test_a_call_cancelled_after_it_was_decided_stays_decided(port: Port) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    with Peer(port.number) as peer:
        before = {name: port.stat(name) for name in ("calls_cancelled", "answers_dropped")}
        good = port.server.stats()["calls"].get(("checkout", 7, 0), 0)
        written = port.written()
        for number in range(300):
            now = port.written()
            stream = peer.start(headers("EnrollMember"), message(enroll(f"gone-{number}").SerializeToString()))
            if number % 30 == 0:
                until(lambda now=now: port.written() > now)  # decided for sure, however the threads are scheduled
            until_ns = time.perf_counter_ns() + chance.randrange(300_000)
            while time.perf_counter_ns() < until_ns:
                pass
            peer.send(RstStreamFrame(stream, error_code=CANCEL))
        peer.ping()
        until(lambda: port.stat("streams") == 0)
        undecided = port.stat("calls_cancelled") - before["calls_cancelled"]
        decided = port.server.stats()["calls"].get(("checkout", 7, 0), 0) - good
        assert undecided + decided == 300
        assert decided >= 10
        assert port.written() == written + decided


def test_a_connection_that_vanishes_with_open_calls_leaves_nothing_behind(port: Port) -> None:
    for _ in range(20):
        with Peer(port.number) as peer:
            for number in range(50):
                peer.start(headers("EnrollMember"), message(enroll(f"vanish-{number}").SerializeToString()), end=number % 2 == 0)
    until(lambda: port.stat("streams") == 0 and port.stat("connections") == 0 and port.stat("held") == 0)
    port.assert_alive()


def test_no_answer_is_read_before_its_entry_is_durable(port: Port) -> None:
    """Two connections, so that the flush thread works beside the loop; the watermark is looked at the moment an answer was read."""
    with Peer(port.number) as peer, Peer(port.number) as other:
        durable = []
        peer.after_read = lambda: durable.append(port.ledger.handle.durable_sequence)
        for number in range(300):
            beside = other.start(headers("EnrollMember"), message(enroll(f"beside-{number}").SerializeToString()))
            stream = peer.start(headers("EnrollMember"), message(enroll(f"durable-{number}").SerializeToString()))
            reply = peer.finish(stream)
            assert ledger_pb2.EnrollMemberResponse.FromString(reply.body).entry.sequence <= durable[-1]
            assert other.finish(beside).code == 0


# --- flow control, keepalive ---------------------------------------------------------------------------------------------

def test_an_answer_fits_through_a_window_of_one_byte(port: Port) -> None:
    with Peer(port.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1}) as peer:
        stream = peer.start(headers("EnrollMember"), message(enroll("window-1").SerializeToString()))
        reply = peer.replies[stream]
        while not reply.ended:
            size = len(reply.data)
            peer.read_until(lambda size=size: len(reply.data) > size or reply.ended)
            assert len(reply.data) <= size + 1
            if not reply.ended:
                peer.window(stream, 1)
        assert reply.code == 0
        assert ledger_pb2.EnrollMemberResponse.FromString(reply.body).opened


def test_a_window_of_nothing_holds_the_answer_until_it_opens(port: Port) -> None:
    with Peer(port.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as peer:
        stream = peer.start(headers("EnrollMember"), message(enroll("window-2").SerializeToString()))
        peer.read_until(lambda: peer.replies[stream].headers)
        peer.ping()
        assert peer.replies[stream].data == b""
        peer.window(stream, 100_000)
        assert peer.finish(stream).code == 0


def test_a_ping_comes_back_and_the_settings_say_the_limits(port: Port) -> None:
    with Peer(port.number) as peer:
        peer.ping()
        assert peer.pongs == [b"daybook!"]
        assert peer.acknowledged == 1
        assert peer.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == limits.STREAMS_PER_CONNECTION_MAX
        assert peer.settings[SettingsFrame.MAX_HEADER_LIST_SIZE] == limits.HEADER_BYTES_MAX
        assert peer.settings[SettingsFrame.INITIAL_WINDOW_SIZE] > limits.REQUEST_BYTES_MAX


# --- health and stopping -------------------------------------------------------------------------------------------------

def test_health(port: Port) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port.number}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "loyalty.ledger.v1.LedgerService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            health.Check(health_pb2.HealthCheckRequest(service="loyalty.ledger.v1.Other"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    with Peer(port.number) as peer:
        for broken in (b"\x0a\x05ab", b"\xff" * 12, b"\x0b", b"\x00\x00"):
            assert peer.call(headers(path="/grpc.health.v1.Health/Check"), message(broken)).code == errors.INVALID_ARGUMENT
        # unknown fields are skipped; the last service counts
        odd = b"\x10\x01\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x1a\x01x" + b"\x0a\x01y\x0a\x00"
        assert peer.call(headers(path="/grpc.health.v1.Health/Check"), message(odd)).body == b"\x08\x01"


def test_a_stop_finishes_open_calls_then_says_goodbye(new_port: Callable[..., Port]) -> None:
    one = new_port(notice_ms=60_000)
    with Peer(one.number) as peer:
        body = message(enroll("drain-1").SerializeToString())
        peer.answer_pings = False
        stream = peer.start(headers("EnrollMember"), body[:20], end=False)
        peer.ping()
        one.ledger.handle.ask_stop(1)
        peer.read_until(lambda: peer.goaways)
        assert peer.goaways == [(2**31 - 1, NO_ERROR)], "a notice first: calls under way are still taken"
        check = peer.call(headers(path="/grpc.health.v1.Health/Check"), message(b""))
        assert check.body == b"\x08\x02", "NOT_SERVING"
        with pytest.raises(ConnectionRefusedError):
            Peer(one.number)
        peer.send(peer.data_frame(stream, body[20:]))
        reply = peer.finish(stream)
        assert reply.code in (0, errors.UNAVAILABLE)
        peer.send(PingFrame(0, peer.pings[-1], flags=["ACK"]))  # the notice was seen
        peer.read_close()
        assert peer.goaways[-1] == (3, NO_ERROR), "the last call that was served"
    one.stop()


def test_a_stop_waits_no_longer_than_the_grace_for_open_calls(new_port: Callable[..., Port]) -> None:
    one = new_port(drain_grace_ms=200)
    with Peer(one.number) as peer:
        peer.start(headers(), balance()[:3], end=False)
        peer.ping()
        one.stop(1)
        peer.read_close()


def test_a_stop_at_once_cuts_everything(new_port: Callable[..., Port]) -> None:
    one = new_port()
    with Peer(one.number) as peer:
        peer.start(headers(), balance()[:3], end=False)
        peer.ping()
        one.stop(2)
        peer.read_close()


def test_an_idle_stop_is_quick_and_clients_see_a_clean_end(new_port: Callable[..., Port]) -> None:
    one = new_port()
    with Peer(one.number) as peer:
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND
        one.ledger.handle.ask_stop(1)
        peer.read_close()
        assert [code for _, code in peer.goaways] == [NO_ERROR, NO_ERROR]
        peer.socket.close()
        begun = time.monotonic()
        one.stop()
        assert time.monotonic() - begun < limits.DRAIN_GRACE_S


def test_the_server_runs_once(port: Port) -> None:
    with pytest.raises(RuntimeError, match="runs once"):
        port.server.run()


# --- limits --------------------------------------------------------------------------------------------------------------

def test_a_connection_too_many_is_closed_and_a_place_that_becomes_free_is_given_again(new_port: Callable[..., Port]) -> None:
    one = new_port(connections_max=3)
    peers = [Peer(one.number) for _ in range(3)]
    for peer in peers:
        peer.ping()
    with Peer(one.number, greet=False) as refused:
        refused.read_close()
    assert one.stat("connections_refused") == 1
    peers[0].socket.close()
    until(lambda: one.stat("connections") == 2)
    one.assert_alive()
    for peer in peers:
        peer.socket.close()


def test_streams_too_many_in_all_are_refused_unprocessed(new_port: Callable[..., Port]) -> None:
    one = new_port(streams_max=4)
    with Peer(one.number) as peer, Peer(one.number) as other:
        streams = [peer.start(headers(), balance()[:7], end=False) for _ in range(4)]
        peer.ping()
        refused = other.call(headers(), balance())
        assert refused.reset == REFUSED_STREAM, "clients may send it again: nothing was done"
        assert one.stat("streams_refused") == 1
        peer.send(*[peer.data_frame(stream, balance()[7:]) for stream in streams])
        for stream in streams:
            assert peer.finish(stream).code == errors.NOT_FOUND
        assert other.call(headers(), balance()).code == errors.NOT_FOUND


def test_streams_too_many_on_one_connection_end_it(port: Port) -> None:
    with Peer(port.number) as peer:
        peer.ping()
        frames: list[Frame] = []
        for _ in range(limits.STREAMS_PER_CONNECTION_MAX + 1):
            frames.append(peer.headers_frame(peer.new_stream(), headers()))
        peer.send(*frames)
        peer.read_until(lambda: peer.closed or any(reply.reset is not None for reply in peer.replies.values()))
    until(lambda: port.stat("streams") == 0)
    port.assert_alive()


def test_an_idle_connection_gets_a_goodbye(new_port: Callable[..., Port]) -> None:
    one = new_port(idle_timeout_ms=1000)
    with Peer(one.number) as peer:
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND
        peer.read_close()
        assert peer.goaways[-1] == (1, NO_ERROR)
    assert one.stat("connections_timed_out") == 1


def test_an_open_call_is_not_idle(new_port: Callable[..., Port]) -> None:
    one = new_port(idle_timeout_ms=500)
    with Peer(one.number) as peer:
        stream = peer.start(headers(), balance()[:7], end=False)
        peer.ping()
        begun = time.monotonic()
        until(lambda: time.monotonic() > begun + 1.1)
        peer.send(peer.data_frame(stream, balance()[7:]))
        assert peer.finish(stream).code == errors.NOT_FOUND


def test_a_request_that_never_ends_is_reset_and_its_neighbours_live(new_port: Callable[..., Port]) -> None:
    one = new_port(slow_client_timeout_ms=1000)
    with Peer(one.number) as peer:
        slow = peer.start(headers(), balance()[:7], end=False)
        reply = peer.finish(slow)
        assert reply.reset == CANCEL
        assert one.stat("streams_timed_out") == 1
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND


def test_an_answer_that_nobody_reads_is_dropped(new_port: Callable[..., Port]) -> None:
    one = new_port(slow_client_timeout_ms=1000)
    with Peer(one.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as peer:
        reply = peer.call(headers("EnrollMember"), message(enroll("unread-1").SerializeToString()))
        assert reply.reset == CANCEL
    until(lambda: one.stat("streams") == 0)
    assert one.ledger.handle.durable_sequence == one.ledger.handle.sequence


@pytest.mark.parametrize("beginning", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half a preface", "no settings"])
def test_a_connection_that_does_not_introduce_itself_is_closed(new_port: Callable[..., Port], beginning: bytes) -> None:
    one = new_port(slow_client_timeout_ms=150)
    with Peer(one.number, greet=False) as peer:
        peer.send_raw(beginning)
        peer.read_close()
    assert one.stat("connections_timed_out") == 1


def test_a_peer_that_reads_nothing_is_closed_and_bounded(new_port: Callable[..., Port]) -> None:
    """It sends calls and never reads: its answers fill the socket, then one buffer, then it is cut; others go on meanwhile."""
    one = new_port(slow_client_timeout_ms=1000)
    with Peer(one.number, receive_buffer=4096) as peer, Peer(one.number) as other:
        frames = b"".join(frame.serialize() for _ in range(500) for stream in [peer.new_stream()] for frame in (
            peer.headers_frame(stream, headers()), peer.data_frame(stream, balance())))
        try:
            peer.send_raw(frames)
            while True:
                stream = peer.new_stream()
                peer.send(peer.headers_frame(stream, headers()), peer.data_frame(stream, balance()))
        except OSError:
            pass
        assert other.call(headers(), balance()).code == errors.NOT_FOUND
        until(lambda: one.stat("connections") == 1)
        assert one.stat("connections_timed_out") + one.stat("connections_broken") + one.stat("connections_abused") >= 1


# --- abuse ---------------------------------------------------------------------------------------------------------------

def _resets(peer: Peer) -> list[Frame]:
    frames: list[Frame] = []
    for _ in range(limits.RESETS_BURST_MAX + 2000):
        stream = peer.new_stream()
        frames += [peer.headers_frame(stream, headers()), RstStreamFrame(stream, error_code=CANCEL)]
    return frames


def _provoked_resets(peer: Peer) -> list[Frame]:
    """Each stream makes the server reset it: a window above 2^31-1 is an error of the stream."""
    frames: list[Frame] = []
    for _ in range(limits.RESETS_BURST_MAX + 2000):
        stream = peer.new_stream()
        frames += [peer.headers_frame(stream, headers()), WindowUpdateFrame(stream, window_increment=2**31 - 1)]
    return frames


def _pings(peer: Peer) -> list[Frame]:
    return [PingFrame(0, bytes(8))] * (limits.CONTROL_FRAMES_BURST_MAX + 4000)


def _settings(peer: Peer) -> list[Frame]:
    return [SettingsFrame(0)] * (limits.CONTROL_FRAMES_BURST_MAX + 4000)


def _window_updates(peer: Peer) -> list[Frame]:
    return [WindowUpdateFrame(0, window_increment=1)] * (limits.CONTROL_FRAMES_BURST_MAX + 4000)


def _empty_data(peer: Peer) -> list[Frame]:
    stream = peer.new_stream()
    return [peer.headers_frame(stream, headers())] + [peer.data_frame(stream, b"", end=False)] * (limits.CONTROL_FRAMES_BURST_MAX + 4000)


def _continuations(peer: Peer) -> list[Frame]:
    stream = peer.new_stream()
    return [HeadersFrame(stream, peer.encoder.encode(headers()))] + [ContinuationFrame(stream, b"")] * 1000


def _unknown(peer: Peer) -> list[Frame]:
    class Unknown(Frame):
        type = 0xBB
        stream_association = None

        def serialize_body(self) -> bytes:
            return bytes(4000)

    return [Unknown(0)] * (limits.CONTROL_FRAMES_BURST_MAX + 4000)  # to be ignored, but not for ever


@pytest.mark.parametrize("flood", [_resets, _provoked_resets, _pings, _settings, _window_updates, _empty_data, _continuations, _unknown])
def test_a_flood_ends_the_connection_and_nobody_else_notices(port: Port, flood: Callable[[Peer], list[Frame]]) -> None:
    abused = port.stat("connections_abused")
    with Peer(port.number) as peer, Peer(port.number) as other:
        try:
            while port.stat("connections_abused") == abused:  # so much a second is allowed for ever: a slow machine needs longer
                frames = [frame.serialize() for frame in flood(peer)]
                for at in range(0, len(frames), 500):
                    peer.send_raw(b"".join(frames[at:at + 500]))
                    assert other.call(headers(), balance()).code == errors.NOT_FOUND
        except OSError:
            pass  # closed in our face: so much the better
        peer.read_close()
        assert port.stat("connections_abused") == abused + 1
        assert all(code == ENHANCE_YOUR_CALM for _, code in peer.goaways)
        assert other.call(headers(), balance()).code == errors.NOT_FOUND
    until(lambda: port.stat("streams") == 0)


def test_calls_given_up_all_at_once_are_no_flood(port: Port) -> None:
    with Peer(port.number) as peer:
        for _ in range(3):
            streams = [peer.start(headers(), balance()[:7], end=False) for _ in range(1000)]
            peer.send(*[RstStreamFrame(stream, error_code=CANCEL) for stream in streams])
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND


@pytest.mark.parametrize("garbage", [
    b"GET / HTTP/1.1\r\nHost: till\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", bytes(100), b"\xff" * 100_000,
    PREFACE + b"\xff" * 100, PREFACE + SettingsFrame().serialize() + b"\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00",
], ids=["http1", "tls", "zeros", "ones", "preface and ones", "data on stream 0"])
def test_garbage_ends_the_connection_alone(port: Port, garbage: bytes) -> None:
    with Peer(port.number, greet=False) as peer:
        peer.send_raw(garbage)
        peer.read_close()
    port.assert_alive()


def test_mutated_connections_leave_the_service_alive(port: Port) -> None:
    seed = int(os.environ.get("TRANSPORT_SEED", random.randrange(2**32)))
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(int(os.environ.get("TRANSPORT_MUTATIONS", 400))):
        with Peer(port.number, greet=False) as peer:
            frames: list[Frame] = [SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: chance.choice((0, 1, 65535))})]
            for _ in range(chance.randrange(1, 6)):
                stream = peer.new_stream()
                frames += [peer.headers_frame(stream, headers(grpc_timeout=f"{chance.randrange(100)}m")),
                           peer.data_frame(stream, message(chance.randbytes(chance.choice((0, 3, 300, 5000)))))]
                if chance.random() < 0.3:
                    frames.append(RstStreamFrame(stream, error_code=CANCEL))
            stream_of_bytes = bytearray(PREFACE + b"".join(frame.serialize() for frame in frames))
            for _ in range(chance.randrange(1, 8)):
                at = chance.randrange(len(stream_of_bytes))
                kind = chance.randrange(3)
                if kind == 0:
                    stream_of_bytes[at] = chance.randrange(256)
                elif kind == 1:
                    del stream_of_bytes[at:at + chance.randrange(1, 20)]
                else:
                    stream_of_bytes[at:at] = chance.randbytes(chance.randrange(1, 20))
            try:
                peer.send_raw(bytes(stream_of_bytes))
                if chance.random() < 0.5:
                    peer.socket.shutdown(socket.SHUT_WR)
                    peer.read_close()
            except OSError:
                pass
            except Exception:  # an answer that our own decoder, confused by what we sent, cannot read
                pass
    until(lambda: port.stat("connections") == 0 and port.stat("streams") == 0)
    port.assert_alive()


# --- figures -------------------------------------------------------------------------------------------------------------

def test_figures_count_calls_bytes_and_latency(new_port: Callable[..., Port]) -> None:
    one = new_port()
    with Peer(one.number) as peer:
        for _ in range(10):
            peer.call(headers(), balance())
        peer.call(headers(path="/grpc.health.v1.Health/Check"), message(b""))
        peer.call(headers("Nothing"), balance())
        stats = one.server.stats()
        assert stats["calls"] == {("checkout", GET_BALANCE, 10): 10, ("checkout", HEALTH_CHECK, 0): 1, ("checkout", 0, 5): 1}
        counts, total_us = stats["latency"]["checkout", GET_BALANCE]
        assert len(counts) == len(LATENCY_BOUNDS_US) + 1
        assert sum(counts) == 10
        assert total_us < 10 * WAIT_S * 1_000_000
        assert stats["connections"] == stats["connections_total"] == 1
        assert stats["bytes_received"] > 10 * 30
        assert stats["bytes_sent"] > 10 * 30
        assert list(LATENCY_BOUNDS_US) == sorted(LATENCY_BOUNDS_US)
