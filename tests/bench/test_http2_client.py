"""The generator's own HTTP/2: it keeps the rules, stands what a service may send, and counts what a service must not.

Against single frames of hyperframe and hpack (tests/bench/scripted.py) and against a stock grpcio server.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent import futures

import grpc
import numpy as np
import pytest

from bench import _load, measure
from tests.bench.scripted import (
    ACCEPT,
    Call,
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    Scripted,
    Session,
    SettingsFrame,
    WindowUpdateFrame,
    message,
)
from tests.bench.stand_in import NAMES, REQUESTS

LOCALHOST = "127.0.0.1"
PREFIX = "/loyalty.ledger.v1.LedgerService/"


def make_chain() -> _load.Chain:
    return _load.Chain(members=100, skew=0.9, seed=1, currency="USD", business_day=20261122)


def replay(port: int, requests: list[tuple[str, bytes]], *, connections: int = 1, in_flight: int = 1, deadline_s: float = 0.0) -> dict:
    """Send given (method, message) requests, all of them independent; the result."""
    pieces = [message(data) for _, data in requests]
    sizes = np.array([len(piece) for piece in pieces], dtype=np.uint32)
    client = _load.Client(LOCALHOST, port, connections=connections, in_flight=in_flight, deadline_s=deadline_s)
    client.replay(
        np.frombuffer(bytearray(b"".join(pieces)), dtype=np.uint8), np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64), sizes,
        np.array([_load.METHODS[method] for method, _ in requests], dtype=np.uint8), np.arange(len(requests), dtype=np.uint32),
        np.zeros(len(requests), dtype=np.uint32))
    return client.result()


def codes(result: dict) -> dict[str, int]:
    return measure.figures(result)["total"]["codes"]


def some_requests(count: int, **weights: float) -> list[tuple[str, bytes]]:
    return _load.sample_requests(make_chain(), weights or {"earn": 1}, count, seed=1)


def mix_until(client: _load.Client, service: Scripted, calls: int) -> None:
    """A mix that goes on until the service has seen so many calls, however long that takes."""
    thread = threading.Thread(target=lambda: client.mix({"balance": 1}, seconds=120.0, warmup_s=0))
    thread.start()
    until = time.monotonic() + 60
    while len(service.calls) < calls and time.monotonic() < until:
        time.sleep(0.005)
    client.stop()
    thread.join(60)
    assert not thread.is_alive() and len(service.calls) >= calls


def one_refused_then_fine(frames) -> tuple[Scripted, dict]:
    """A service that answers the first call with `frames(call)` and all later ones well; what a mix makes of it."""
    first = itertools.count()
    with Scripted(lambda call: call.send(*frames(call)) if next(first) == 0 else call.answer()) as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=1, chain=make_chain(), seed=1)
        mix_until(client, service, 20)
    return service, client.result()


# --- what it sends ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("table_bytes", [4096, 65_536, 100, 0])
@pytest.mark.parametrize("deadline_s", [0.0, 1.5])
def test_every_header_block_says_the_same_in_whatever_table(table_bytes: int, deadline_s: float):
    requests = some_requests(120, **dict.fromkeys(NAMES, 1.0))
    with Scripted(settings={SettingsFrame.HEADER_TABLE_SIZE: table_bytes}) as service:
        result = replay(service.port, requests, deadline_s=deadline_s)
    assert service.broken == [] and codes(result) == {}
    assert [(call.headers[b":path"].decode(), call.body) for call in service.calls] == [
        (PREFIX + NAMES[name], message(data)) for name, data in requests]
    for call in service.calls:
        assert {name: value for name, value in call.headers.items() if name != b":path"} == {
            b":method": b"POST", b":scheme": b"http", b":authority": f"{LOCALHOST}:{service.port}".encode(), b"te": b"trailers",
            b"content-type": b"application/grpc", b"user-agent": b"daybook-load", **({b"grpc-timeout": b"1500000u"} if deadline_s else {})}
    blocks = service.sessions[0].blocks
    if table_bytes >= 4096:
        assert sorted(blocks)[:100] == [7 + bool(deadline_s)] * 100, "known fields must be indexes of one byte"


def test_it_keeps_small_windows_and_few_streams_and_loses_nothing():
    """Windows of 100 bytes, opened by 1..90 bytes at a time; at most 3 streams; requests of 300 bytes and one of 100 kB."""
    step = itertools.cycle([1, 90, 17])

    def trickle(session: Session, stream: int, size: int, ended: bool) -> None:
        session.grant(0, size)
        if not ended and session.stream_windows[stream] <= 0:
            session.grant(stream, next(step) if len(session.open[stream][1]) < 1000 else 20_000)

    large = REQUESTS["EarnPoints"][0](request_id="x" * 100_000).SerializeToString()
    requests = [*some_requests(60), ("earn", large), *some_requests(20)]
    settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 100, SettingsFrame.MAX_CONCURRENT_STREAMS: 3}
    with Scripted(settings=settings, on_data=trickle) as service:
        result = replay(service.port, requests, connections=2, in_flight=16)
    assert service.broken == [] and codes(result) == {}
    assert sorted(call.body for call in service.calls) == sorted(message(data) for _, data in requests)


def test_a_narrow_connection_window_serves_all_its_streams():
    """The connection's window stays at what HTTP/2 begins with and is opened by one byte more than was used, late."""
    def late(session: Session, stream: int, size: int, ended: bool) -> None:
        if session.window < 1000:
            session.grant(0, 65_535 - session.window)
        if not ended:
            session.grant(stream, size)

    requests = [("earn", REQUESTS["EarnPoints"][0](request_id="y" * 40_000).SerializeToString())] * 20
    with Scripted(on_data=late) as service:
        result = replay(service.port, requests, in_flight=8)
    assert service.broken == [] and codes(result) == {}
    assert [len(call.body) for call in service.calls] == [len(message(requests[0][1]))] * 20


def test_windows_that_shrink_under_way_are_kept():
    """SETTINGS make the windows of open streams smaller, below zero; they go on after WINDOW_UPDATE, and not before."""
    def shrink(session: Session, stream: int, size: int, ended: bool) -> None:
        session.grant(0, size)
        if session.acks == 1 and len(session.resizes) == 0:
            session.resize(10)
        elif session.acks == 2 and not ended and session.stream_windows[stream] <= 0:
            session.grant(stream, 30_000)

    def reopen(session: Session) -> None:
        assert min(session.stream_windows.values()) < 0, "the test must meet what it is about"
        for stream in session.open:
            session.grant(stream, 30_000 - session.stream_windows[stream])

    requests = [("earn", REQUESTS["EarnPoints"][0](request_id="z" * 100_000).SerializeToString())] * 6
    with Scripted(on_data=shrink, on_resized=reopen) as service:
        result = replay(service.port, requests, in_flight=3)
    assert service.broken == [] and codes(result) == {}
    assert [len(call.body) for call in service.calls] == [len(message(requests[0][1]))] * 6


def test_larger_frames_are_used_only_where_they_are_allowed():
    requests = [("earn", REQUESTS["EarnPoints"][0](request_id="x" * 150_000).SerializeToString())]
    settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20, SettingsFrame.MAX_FRAME_SIZE: 32_768}
    with Scripted(settings=settings) as service:
        result = replay(service.port, requests)
    assert service.broken == [] and codes(result) == {} and service.calls[0].body == message(requests[0][1])


def test_pings_are_answered_while_calls_go_on():
    def ping(call: Call) -> None:
        call.send(*(PingFrame(opaque_data=call.stream.to_bytes(4, "big") + bytes([i] * 4)) for i in range(20)))
        call.answer()

    with Scripted(ping) as service:
        result = replay(service.port, some_requests(30), in_flight=4)
    assert service.broken == [] and codes(result) == {}
    expected = [call.stream.to_bytes(4, "big") + bytes([i] * 4) for call in service.calls for i in range(20)]
    answered = service.sessions[0].pings
    assert len(answered) >= 26 * 20 and answered == expected[:len(answered)], "those of the last four calls may come after the end"
    assert service.sessions[0].acks == 1


# --- what it reads ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stutter", [1, 7])
def test_answers_may_come_in_any_pieces(stutter: int):
    with Scripted(lambda call: call.answer(b"\x0a\x03abc"), stutter=stutter) as service:
        result = replay(service.port, some_requests(30), in_flight=4)
    assert service.broken == [] and codes(result) == {} and measure.figures(result)["total"]["calls"] == 30


def test_padding_priority_continuation_and_interim_answers_change_nothing():
    def dress(call: Call) -> None:
        interim = call.headers_frame([(b":status", b"103"), (b"link", b"x")])
        block = call.session.encoder.encode(ACCEPT)
        head = HeadersFrame(call.stream, flags=["PADDED", "PRIORITY"], pad_length=17, stream_weight=3)
        head.data = block[:1]
        middle, last = ContinuationFrame(call.stream), ContinuationFrame(call.stream, flags=["END_HEADERS"])
        middle.data, last.data = block[1:3], block[3:]
        body = message(b"0123456789")
        call.send(interim, head, middle, last,
                  DataFrame(call.stream, body[:2], flags=["PADDED"], pad_length=255), DataFrame(call.stream, b""),
                  DataFrame(call.stream, body[2:], flags=["PADDED"], pad_length=0),
                  call.headers_frame([(b"grpc-status", b"0")], "END_STREAM"))

    with Scripted(dress) as service:
        result = replay(service.port, some_requests(30), in_flight=4)
    assert service.broken == [] and codes(result) == {} and measure.figures(result)["total"]["calls"] == 30


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize("table_bytes", [4096, 130])
def test_the_same_bytes_mean_what_the_table_says_now(table_bytes: int, huffman: bool):
    """Statuses change between calls; each new one moves the others in the table, so equal blocks have other meanings."""
    names = ["OK", "UNKNOWN", "OK", "OK", "NOT_FOUND", "NOT_FOUND", "OK", "OK", "ABORTED", "INTERNAL", "OK", "INTERNAL", "OK"]
    numbers = {name: number for number, name in enumerate(_load.CODE_NAMES)}
    sent: list[tuple[str, bytes]] = []

    def answer(call: Call) -> None:
        if len(sent) == 0:
            call.session.encoder.header_table_size = table_bytes
        name = names[len(sent) % len(names)]
        call.send(call.headers_frame(ACCEPT[:1]))       # of the static table: nothing but statuses moves the other one
        if name == "OK":
            call.send(DataFrame(call.stream, message()))
        frame = call.headers_frame([(b"grpc-status", str(numbers[name]).encode())], "END_STREAM", huffman=huffman)
        sent.append((name, frame.data))
        call.send(frame)

    with Scripted(answer) as service:
        result = replay(service.port, some_requests(400), in_flight=1)
    assert codes(result) == {name: count for name, count in Counter(name for name, _ in sent).items() if name != "OK"}
    assert sum(codes(result).values()) + measure.figures(result)["total"]["calls"] == 400
    meanings: dict[bytes, set[str]] = {}
    for name, block in sent:
        meanings.setdefault(block, set()).add(name)
    assert any(len(block) == 1 and len(names) > 1 for block, names in meanings.items()), "the test must meet what it is about"


@pytest.mark.parametrize(("fields", "data", "code"), [
    ([(b":status", b"503")], b"", "UNAVAILABLE"),
    ([(b":status", b"404")], b"", "UNIMPLEMENTED"),
    ([(b":status", b"500")], b"", "UNKNOWN"),
    ([(b":status", b"200"), (b"grpc-status", b"99")], b"", "UNKNOWN"),
    ([(b":status", b"200"), (b"grpc-status", b"0")], b"", "MALFORMED"),
    ([(b":status", b"200"), (b"grpc-status", b"0")], message(b"ab")[:-1], "MALFORMED"),
    ([(b":status", b"200"), (b"grpc-status", b"0")], message(b"ab") + b"c", "MALFORMED"),
    ([(b":status", b"200"), (b"grpc-status", b"0")], message() + message(), "MALFORMED"),
    ([(b":status", b"200"), (b"grpc-status", b"0")], b"\1\0\0\0\0", "MALFORMED"),
    ([(b":status", b"200")], message(), "MALFORMED"),
], ids=str)
def test_an_answer_that_is_not_one_is_an_error(fields: list[tuple[bytes, bytes]], data: bytes, code: str):
    def frames(call: Call) -> list[object]:
        if not data:
            return [call.headers_frame(fields, "END_STREAM")]
        if len(fields) == 1:
            return [call.headers_frame(fields), DataFrame(call.stream, data, flags=["END_STREAM"])]
        return [call.headers_frame(fields[:1]), DataFrame(call.stream, data), call.headers_frame(fields[1:], "END_STREAM")]

    service, result = one_refused_then_fine(frames)
    assert service.broken == [] and codes(result) == {code: 1}
    assert measure.figures(result)["total"]["calls"] > 0


def test_resets_are_errors_with_their_reasons():
    service, result = one_refused_then_fine(lambda call: [RstStreamFrame(call.stream, error_code=7)])
    assert codes(result) == {"CONNECTION_LOST": 1} and measure.figures(result)["total"]["calls"] > 0
    assert result["reasons"] == {"RST_STREAM REFUSED_STREAM": 1}
    assert measure.figures(result)["first_messages"]["CONNECTION_LOST"] == "balance: RST_STREAM REFUSED_STREAM"


def test_goaway_ends_what_the_service_leaves_out_and_waits_for_the_rest():
    """The second of four calls is the last that is answered, and only after GOAWAY; the others are lost at once."""
    waiting: list[Call] = []

    def answer(call: Call) -> None:
        if len(call.session.service.sessions) > 1:
            call.answer()
            return
        waiting.append(call)
        if len(waiting) == 4:
            call.send(GoAwayFrame(0, last_stream_id=waiting[1].stream, error_code=11, additional_data=b"too_many_pings"))
            for early in waiting[:2]:
                early.answer()

    with Scripted(answer) as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=4, chain=make_chain(), seed=1)
        mix_until(client, service, 20)
    result = client.result()
    assert codes(result) == {"CONNECTION_LOST": 2}
    assert result["reasons"] == {"GOAWAY ENHANCE_YOUR_CALM": 1, "calls that a GOAWAY left out": 2}
    assert measure.figures(result)["first_messages"]["CONNECTION_LOST"] == "balance: GOAWAY ENHANCE_YOUR_CALM: too_many_pings"
    assert len(service.sessions) == 2 and len(service.calls) > 6, "it must go on over a new connection"


@pytest.mark.parametrize(("name", "frame", "code"), [
    ("PUSH_PROMISE", b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02", 1),
    ("a frame of more than 16384 bytes", b"\0\x40\x01\0\0\0\0\0\x01", 6),
    ("a frame of more than 16384 bytes", b"HTTP/1.1 400 Bad Request\r\n\r\n", 6),
    ("not HPACK", b"\0\0\x01\x01\x05\0\0\0\x01\xff", 9),
    ("not HPACK", b"\0\0\x01\x01\x05\0\0\0\x01\xfe", 9),
    ("never opened", b"\0\0\0\0\0\0\0\0\x63", 1),
    ("never opened", b"\0\0\0\0\0\0\0\0\0", 1),
    ("never opened", b"\0\0\x01\x01\x05\0\0\0\x02\x88", 1),
    ("not continued", b"\0\0\x01\x01\x00\0\0\0\x01\x88\0\0\0\0\0\0\0\0\x01", 1),
    ("CONTINUATION of no", b"\0\0\x01\x09\x04\0\0\0\x01\x88", 1),
    ("more padding than payload", b"\0\0\x02\0\x08\0\0\0\x01\x02a", 1),
    ("WINDOW_UPDATE by 0", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0", 1),
    ("WINDOW_UPDATE beyond", b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff", 3),
    ("multiple of 6", b"\0\0\x05\x04\0\0\0\0\0abcde", 6),
    ("window of more than", b"\0\0\x06\x04\0\0\0\0\0\0\x04\xff\xff\xff\xff", 3),
    ("frame size outside", b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x3f\xff", 1),
    ("PING of another size", b"\0\0\x07\x06\0\0\0\0\x00abcdefg", 6),
    ("RST_STREAM of another size", b"\0\0\x03\x03\0\0\0\0\x01abc", 6),
    ("GOAWAY of less", b"\0\0\x07\x07\0\0\0\0\x00abcdefg", 6),
    ("on a stream", b"\0\0\x08\x06\0\0\0\0\x01abcdefgh", 1),
])
def test_a_breach_ends_the_connection_and_is_named(name: str, frame: bytes, code: int):
    first = itertools.count()

    def answer(call: Call) -> None:
        if next(first) == 0:
            call.session.send_bytes(frame)
        else:
            call.answer()

    with Scripted(answer) as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=1, chain=make_chain(), seed=1)
        mix_until(client, service, 20)
    result = client.result()
    assert codes(result) == {"CONNECTION_LOST": 1} and measure.figures(result)["total"]["calls"] > 0
    (reason, count), = result["reasons"].items()
    assert count == 1 and "breach of HTTP/2" in reason and name in reason
    assert service.sessions[0].goaway == code


def test_frames_that_may_be_ignored_are():
    def answer(call: Call) -> None:
        call.session.send_bytes(b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\x10")      # PRIORITY
        call.session.send_bytes(b"\0\0\x03\xee\xff\0\0\0\x01abc")             # a type that nobody knows
        call.answer()
        call.send(RstStreamFrame(call.stream, error_code=0), WindowUpdateFrame(call.stream, window_increment=5))
        call.send(DataFrame(call.stream, b"late"))

    with Scripted(answer) as service:
        result = replay(service.port, some_requests(20), in_flight=3)
    assert service.broken == [] and codes(result) == {} and result["reasons"] == {}


def test_an_answer_before_the_request_is_whole_ends_the_call_and_its_sending():
    """The service refuses what is too large before it has read it: the client must not go on, nor lose count."""
    def refuse(session: Session, stream: int, size: int, ended: bool) -> None:
        session.grant(0, size)
        if not ended and stream in session.open and len(session.open[stream][1]) > 50_000:
            Call(session, stream, {}, b"").answer(code=8)

    requests = [("earn", REQUESTS["EarnPoints"][0](request_id="x" * 300_000).SerializeToString()), *some_requests(10)]
    with Scripted(on_data=refuse) as service:
        result = replay(service.port, requests, in_flight=2)
    assert service.broken == [] and codes(result) == {"RESOURCE_EXHAUSTED": 1}
    assert service.sessions[0].resets == {1: 8}
    assert len(service.calls) == 10


# --- a stock server --------------------------------------------------------------------------------------------------

def test_a_stock_server_with_errors_and_large_messages():
    """grpcio's own threads: answers up to 20 MB (beyond every window), requests of 1 MB, refusals with long words, in any order."""
    sizes = [0, 10, 70_000, 5_000_000, 20_000_000]
    seen: list[int] = []

    def serve(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(len(request))
        if request.startswith(b"fail"):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % of it: ä\n" * 20)
        return b"a" * int(request[4:12] or 0)

    handlers = {name: grpc.unary_unary_rpc_method_handler(serve) for name in NAMES.values()}
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("loyalty.ledger.v1.LedgerService", handlers),))
    port = server.add_insecure_port(f"{LOCALHOST}:0")
    server.start()
    requests = [("earn", b"size%08d" % size) for size in sizes * 2]
    requests += [("burn", b"fail" + b"x" * 1_000_000), ("burn", b"fail"), ("balance", b"size00000000" + b"y" * 1_000_000)]
    requests += [(name, b"size00000050") for name in ("earn", "balance", "commit")] * 20
    try:
        result = replay(port, requests, connections=2, in_flight=8)
    finally:
        server.stop(None)
    assert codes(result) == {"FAILED_PRECONDITION": 2} and result["reasons"] == {}
    assert measure.figures(result)["total"]["calls"] == len(requests) - 2
    assert sorted(seen) == sorted(len(data) for _, data in requests)
    assert measure.figures(result)["first_messages"]["FAILED_PRECONDITION"].startswith("burn: 100 %25 of it: %C3%A4%0A100")
