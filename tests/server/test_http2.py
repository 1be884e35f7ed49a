"""HTTP/2 on the checkout port, frame by frame: RFC 9113's errors, flow control, the tables of RFC 7541, and shares of the streams."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import hpack
import pytest
from hyperframe.frame import DataFrame, Frame, SettingsFrame

from ledger import errors, limits
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests.server.checkout import PROGRAM, Port, enroll, until
from tests.server.fuzz_frames import fuzz, run_with_asan
from tests.server.peer import PREFACE, SERVICE, Peer, Reply, balance, headers, message

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 0, 1, 3, 5, 6, 7
CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 8, 9, 11
FRAME_BYTES_MAX = 16_384
WINDOW_MAX = 2**31 - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def setting(number: int, value: int) -> bytes:
    return struct.pack(">HI", number, value)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def field(name: bytes, value: bytes) -> bytes:
    """A literal that stays out of the table."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


# As bytes and not by the peer's encoder, so that each row says itself what is wrong.
METHOD, SCHEME, PATH = b"\x83", b"\x86", field(b":path", SERVICE.encode() + b"GetBalance")
TYPE = field(b"content-type", b"application/grpc")
HEAD = METHOD + SCHEME + PATH + TYPE


def opened(stream: int, block: bytes = HEAD, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, block)


def called(stream: int, block: bytes = HEAD) -> bytes:
    return opened(stream, block) + frame(DATA, END_STREAM, stream, balance())


def answered(peer: Peer, stream: int = 1) -> None:
    """A whole call, so that its stream is closed."""
    peer.send_raw(called(stream))
    peer.replies[stream] = Reply()
    assert peer.finish(stream).code == errors.NOT_FOUND


# --- what ends the connection ---------------------------------------------------------------------------------------------

CONNECTION_ERRORS: list[tuple[str, bytes, int]] = [
    ("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    ("DATA on an idle stream", frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    ("DATA on an even stream", frame(DATA, 0, 2, b"x"), PROTOCOL_ERROR),
    ("DATA with more padding than payload", opened(1) + frame(DATA, PADDED, 1, b"\x05abcd"), PROTOCOL_ERROR),
    ("DATA that says padded and is empty", opened(1) + frame(DATA, PADDED, 1), FRAME_SIZE_ERROR),
    ("DATA of a stream that was passed over", opened(5) + frame(DATA, 0, 3, b"x"), STREAM_CLOSED),
    ("HEADERS on stream 0", opened(0), PROTOCOL_ERROR),
    ("HEADERS on an even stream", opened(2), PROTOCOL_ERROR),
    ("HEADERS on a lower stream than the last", opened(5) + opened(3), PROTOCOL_ERROR),
    ("HEADERS far below the last", opened(1) + opened(2001) + opened(5), PROTOCOL_ERROR),
    ("HEADERS with more padding than payload", frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09" + HEAD[:8]), PROTOCOL_ERROR),
    ("HEADERS that say padded and are empty", frame(HEADERS, END_HEADERS | PADDED, 1), FRAME_SIZE_ERROR),
    ("HEADERS too short for their priority", frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, b"\0\0\0\0"), FRAME_SIZE_ERROR),
    ("HEADERS followed by something else", opened(1, flags=0) + frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    ("HEADERS followed by HEADERS", opened(1, flags=0) + opened(3), PROTOCOL_ERROR),
    ("HEADERS followed by an unknown frame", opened(1, flags=0) + frame(0xEE, 0, 1), PROTOCOL_ERROR),
    ("CONTINUATION of another stream", opened(1, flags=0) + frame(CONTINUATION, END_HEADERS, 3), PROTOCOL_ERROR),
    ("CONTINUATION of nothing", opened(1) + frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
    ("CONTINUATION without end", opened(1, flags=0) + 9 * frame(CONTINUATION, 0, 1), ENHANCE_YOUR_CALM),
    ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    ("PRIORITY of four bytes on an idle stream", frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, number(CANCEL)), PROTOCOL_ERROR),
    ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, number(CANCEL)), PROTOCOL_ERROR),
    ("RST_STREAM of three bytes", opened(1) + frame(RST_STREAM, 0, 1, b"\0\0\0"), FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    ("SETTINGS of seven bytes", frame(SETTINGS, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    ("SETTINGS acknowledged with a payload", frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
    ("SETTINGS with a push of 2", frame(SETTINGS, 0, 0, setting(2, 2)), PROTOCOL_ERROR),
    ("SETTINGS with a window above the highest", frame(SETTINGS, 0, 0, setting(4, 2**31)), FLOW_CONTROL_ERROR),
    ("SETTINGS with frames too small", frame(SETTINGS, 0, 0, setting(5, FRAME_BYTES_MAX - 1)), PROTOCOL_ERROR),
    ("SETTINGS with frames too large", frame(SETTINGS, 0, 0, setting(5, 2**24)), PROTOCOL_ERROR),
    ("SETTINGS with a priority of 2", frame(SETTINGS, 0, 0, setting(9, 2)), PROTOCOL_ERROR),
    ("SETTINGS of 33 entries", frame(SETTINGS, 0, 0, 33 * setting(3, 1)), ENHANCE_YOUR_CALM),
    ("SETTINGS that raise an open window above the highest",
     opened(1) + frame(WINDOW_UPDATE, 0, 1, number(WINDOW_MAX - 65_535)) + frame(SETTINGS, 0, 0, setting(4, 65_536)), FLOW_CONTROL_ERROR),
    ("PUSH_PROMISE", opened(1) + frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + HEAD), PROTOCOL_ERROR),
    ("PING on a stream", frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    ("PING of seven bytes", frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    ("GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    ("GOAWAY of seven bytes", frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE of nothing", frame(WINDOW_UPDATE, 0, 0, number(0)), PROTOCOL_ERROR),
    ("WINDOW_UPDATE above the highest", frame(WINDOW_UPDATE, 0, 0, number(WINDOW_MAX)), FLOW_CONTROL_ERROR),
    ("WINDOW_UPDATE of five bytes", frame(WINDOW_UPDATE, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, number(1)), PROTOCOL_ERROR),
    ("a frame above the size", frame(DATA, 0, 1, bytes(FRAME_BYTES_MAX + 1)), FRAME_SIZE_ERROR),
    ("the head of a frame above the size", b"\xff\xff\xff" + frame(0xEE, 0, 0)[3:], FRAME_SIZE_ERROR),
    ("a header field of index 0", opened(1, b"\x80"), COMPRESSION_ERROR),
    ("a header field that is in no table", opened(1, HEAD + b"\xff\x20"), COMPRESSION_ERROR),
    ("a header field that is in no table any more", opened(1, HEAD + b"\xbe"), COMPRESSION_ERROR),
    ("a header block cut off", opened(1, HEAD[:-3]), COMPRESSION_ERROR),
    ("a table above its limit", opened(1, b"\x3f\xe2\x1f" + HEAD), COMPRESSION_ERROR),
    ("a table resized in the middle", opened(1, HEAD + b"\x20"), COMPRESSION_ERROR),
    ("Huffman code with an end", opened(1, HEAD + b"\x00\x01x\x84\xff\xff\xff\xff"), COMPRESSION_ERROR),
]


@pytest.mark.parametrize(("sent", "code"), [row[1:] for row in CONNECTION_ERRORS], ids=[row[0] for row in CONNECTION_ERRORS])
def test_a_connection_error_is_named_and_ends_the_connection_alone(port: Port, sent: bytes, code: int) -> None:
    with Peer(port.number) as peer:
        peer.send_raw(sent)
        peer.read_close()
        assert [one for _, one in peer.goaways] == [code]
    port.assert_alive()
    until(lambda: port.stat("streams") == 0)


@pytest.mark.parametrize("sent", [frame(PING, 0, 0, bytes(8)), frame(SETTINGS, ACK, 0), opened(1)], ids=["ping", "acknowledgement", "call"])
def test_settings_come_first(port: Port, sent: bytes) -> None:
    with Peer(port.number, greet=False) as peer:
        peer.send_raw(PREFACE + sent)
        peer.read_close()
        assert [code for _, code in peer.goaways] == [PROTOCOL_ERROR]


@pytest.mark.parametrize("sent", [frame(DATA, 0, 1, b"x"), opened(1), opened(1, flags=0) + frame(CONTINUATION, END_HEADERS, 1)])
def test_a_frame_behind_the_end_of_an_answered_call_ends_the_connection(port: Port, sent: bytes) -> None:
    with Peer(port.number) as peer:
        answered(peer)
        peer.send_raw(sent)
        peer.read_close()
        assert peer.goaways == [(1, STREAM_CLOSED)]


# --- what ends the stream -------------------------------------------------------------------------------------------------

def length(value: bytes) -> bytes:
    return field(b"content-length", value)


STREAM_ERRORS: list[tuple[str, bytes, int]] = [
    ("no method", called(1, SCHEME + PATH + TYPE), PROTOCOL_ERROR),
    ("no scheme", called(1, METHOD + PATH + TYPE), PROTOCOL_ERROR),
    ("no path", called(1, METHOD + SCHEME + TYPE), PROTOCOL_ERROR),
    ("nothing", called(1, b""), PROTOCOL_ERROR),
    ("an empty path", called(1, METHOD + SCHEME + field(b":path", b"") + TYPE), PROTOCOL_ERROR),
    ("a path without a slash", called(1, METHOD + SCHEME + field(b":path", b"EarnPoints") + TYPE), PROTOCOL_ERROR),
    ("an empty method", called(1, field(b":method", b"") + SCHEME + PATH + TYPE), PROTOCOL_ERROR),
    ("an empty scheme", called(1, METHOD + field(b":scheme", b"") + PATH + TYPE), PROTOCOL_ERROR),
    ("CONNECT with a path", called(1, field(b":method", b"CONNECT") + PATH + field(b":authority", b"till") + TYPE), PROTOCOL_ERROR),
    ("two methods", called(1, METHOD + METHOD + SCHEME + PATH + TYPE), PROTOCOL_ERROR),
    ("two paths", called(1, HEAD[:-len(TYPE)] + PATH + TYPE), PROTOCOL_ERROR),
    ("two schemes", called(1, METHOD + SCHEME + SCHEME + PATH + TYPE), PROTOCOL_ERROR),
    ("two authorities", called(1, METHOD + SCHEME + PATH + 2 * field(b":authority", b"till") + TYPE), PROTOCOL_ERROR),
    ("a pseudo-header behind the others", called(1, METHOD + SCHEME + TYPE + PATH), PROTOCOL_ERROR),
    ("a pseudo-header of answers", called(1, METHOD + SCHEME + PATH + b"\x88" + TYPE), PROTOCOL_ERROR),
    ("a pseudo-header of nobody", called(1, METHOD + SCHEME + PATH + field(b":protocol", b"x") + TYPE), PROTOCOL_ERROR),
    ("an upper-case name", called(1, HEAD + field(b"X-Till", b"7")), PROTOCOL_ERROR),
    ("a name with a blank", called(1, HEAD + field(b"x till", b"7")), PROTOCOL_ERROR),
    ("a name with a colon", called(1, HEAD + field(b"x:till", b"7")), PROTOCOL_ERROR),
    ("an empty name", called(1, HEAD + field(b"", b"7")), PROTOCOL_ERROR),
    ("a name beyond ASCII", called(1, HEAD + field("ż".encode(), b"7")), PROTOCOL_ERROR),
    ("a value with a line end", called(1, HEAD + field(b"x-till", b"7\n8")), PROTOCOL_ERROR),
    ("a value with a return", called(1, HEAD + field(b"x-till", b"7\r8")), PROTOCOL_ERROR),
    ("a value with a zero", called(1, HEAD + field(b"x-till", b"7\x008")), PROTOCOL_ERROR),
    ("a value that begins with a blank", called(1, HEAD + field(b"x-till", b" 7")), PROTOCOL_ERROR),
    ("a value that ends with a tab", called(1, HEAD + field(b"x-till", b"7\t")), PROTOCOL_ERROR),
    ("connection", called(1, HEAD + field(b"connection", b"close")), PROTOCOL_ERROR),
    ("proxy-connection", called(1, HEAD + field(b"proxy-connection", b"close")), PROTOCOL_ERROR),
    ("keep-alive", called(1, HEAD + field(b"keep-alive", b"5")), PROTOCOL_ERROR),
    ("transfer-encoding", called(1, HEAD + field(b"transfer-encoding", b"chunked")), PROTOCOL_ERROR),
    ("upgrade", called(1, HEAD + field(b"upgrade", b"h2c")), PROTOCOL_ERROR),
    ("te gzip", called(1, HEAD + field(b"te", b"gzip")), PROTOCOL_ERROR),
    ("a length above the body", called(1, HEAD + length(b"99")), PROTOCOL_ERROR),
    ("a length below the body", called(1, HEAD + length(b"3")), PROTOCOL_ERROR),
    ("a length and no body", opened(1, HEAD + length(b"3"), END_HEADERS | END_STREAM), PROTOCOL_ERROR),
    ("a length and trailers", opened(1, HEAD + length(b"3")) + opened(1, b"", END_HEADERS | END_STREAM), PROTOCOL_ERROR),
    ("a length that is no number", called(1, HEAD + length(b"3a")), PROTOCOL_ERROR),
    ("a length below zero", called(1, HEAD + length(b"-3")), PROTOCOL_ERROR),
    ("an empty length", called(1, HEAD + length(b"")), PROTOCOL_ERROR),
    ("a length of 19 digits", called(1, HEAD + length(b"9" * 19)), PROTOCOL_ERROR),
    ("two lengths", called(1, HEAD + length(b"9") + length(b"8")), PROTOCOL_ERROR),
    ("trailers that are not the end", opened(1) + opened(1, field(b"x-till", b"7")), PROTOCOL_ERROR),
    ("trailers with a pseudo-header", opened(1) + opened(1, METHOD, END_HEADERS | END_STREAM), PROTOCOL_ERROR),
    ("trailers with an upper-case name", opened(1) + opened(1, field(b"X", b"7"), END_HEADERS | END_STREAM), PROTOCOL_ERROR),
    ("a window of nothing", opened(1) + frame(WINDOW_UPDATE, 0, 1, number(0)), PROTOCOL_ERROR),
    ("a window above the highest", opened(1) + frame(WINDOW_UPDATE, 0, 1, number(WINDOW_MAX)), FLOW_CONTROL_ERROR),
    ("PRIORITY of four bytes", opened(1) + frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    ("DATA behind a reset", opened(1) + frame(RST_STREAM, 0, 1, number(CANCEL)) + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
    ("HEADERS behind a reset", opened(1) + frame(RST_STREAM, 0, 1, number(CANCEL)) + opened(1), STREAM_CLOSED),
]


@pytest.mark.parametrize(("sent", "code"), [row[1:] for row in STREAM_ERRORS], ids=[row[0] for row in STREAM_ERRORS])
def test_a_stream_error_is_named_and_the_connection_goes_on(port: Port, sent: bytes, code: int) -> None:
    with Peer(port.number) as peer:
        peer.replies[1] = Reply()
        peer.send_raw(sent)
        assert peer.finish(1).reset == code
        assert peer.replies[1].headers == {}
        answered(peer, 3)
        assert peer.goaways == []
        assert port.stat("streams") == 0
    port.assert_alive()


@pytest.mark.parametrize("sent", [frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1), opened(1, b"", END_HEADERS | END_STREAM)])
def test_a_frame_behind_the_end_of_a_call_that_is_not_answered_yet_is_an_error_of_its_stream(port: Port, sent: bytes) -> None:
    with Peer(port.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as peer:
        request = message(enroll(f"behind-{sent.hex()}").SerializeToString())
        stream = peer.start(headers("EnrollMember"), request)
        peer.read_until(lambda: peer.replies[stream].headers)
        peer.send_raw(sent)
        assert peer.finish(stream).reset == STREAM_CLOSED
        peer.window(0, 1)
        answered(peer, 3)


# --- what is no error -----------------------------------------------------------------------------------------------------

IGNORED: list[tuple[str, bytes]] = [
    ("an unknown frame", frame(0xEE, 0xFF, 0, b"anything") + frame(0xEE, 0xFF, 77, b"anything") + called(1)),
    ("unknown flags", frame(PING, 0xFE, 0, bytes(8)) + opened(1, flags=0x52 | END_HEADERS) + frame(DATA, 0xF6 | END_STREAM, 1, balance())),
    ("an unknown setting", frame(SETTINGS, 0, 0, setting(0xF00D, 2**32 - 1) + setting(8, 1)) + called(1)),
    ("PRIORITY on an idle stream", frame(PRIORITY, 0, 7, bytes(5)) + called(1)),
    ("PRIORITY of a stream on itself", opened(1) + frame(PRIORITY, 0, 1, number(1) + b"\x10") + frame(DATA, END_STREAM, 1, balance())),
    ("a priority in HEADERS", frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, bytes(5) + HEAD) + frame(DATA, END_STREAM, 1, balance())),
    ("padding everywhere", frame(HEADERS, END_HEADERS | HAS_PRIORITY | PADDED, 1, b"\x03" + bytes(5) + HEAD + bytes(3))
     + frame(DATA, PADDED, 1, b"\x07" + balance()[:6] + bytes(7)) + frame(DATA, PADDED | END_STREAM, 1, b"\x00" + balance()[6:])),
    ("padding alone", opened(1) + frame(DATA, PADDED, 1, b"\x03" + bytes(3)) + frame(DATA, END_STREAM, 1, balance())),
    ("the reserved bit", called(1)[:5] + b"\x80" + called(1)[6:]),
    ("an acknowledgement too many", 3 * frame(SETTINGS, ACK, 0) + called(1)),
    ("an answer to no PING", frame(PING, ACK, 0, bytes(8)) + called(1)),
    ("a header block in pieces", frame(HEADERS, 0, 1, HEAD[:1]) + frame(CONTINUATION, 0, 1) + frame(CONTINUATION, 0, 1, HEAD[1:50])
     + frame(CONTINUATION, END_HEADERS, 1, HEAD[50:]) + frame(DATA, END_STREAM, 1, balance())),
    ("trailers in pieces", opened(1) + frame(DATA, 0, 1, balance()) + frame(HEADERS, END_STREAM, 1, field(b"x", b"y"))
     + frame(CONTINUATION, END_HEADERS, 1, field(b"z", b""))),
    ("a table resized at the beginning", called(1, b"\x20\x3f\xe1\x1f" + HEAD)),
    ("the right length", called(1, HEAD + length(str(len(balance())).encode()))),
    ("the right length twice", called(1, HEAD + 2 * length(str(len(balance())).encode()))),
    ("te trailers", called(1, HEAD + field(b"te", b"trailers"))),
    ("ids passed over", called(1) + opened(4001) + frame(RST_STREAM, 0, 4001, number(CANCEL))),
    ("a window of a closed stream", called(1) + called(3) + frame(WINDOW_UPDATE, 0, 1, number(1))),
    ("the highest window", frame(WINDOW_UPDATE, 0, 0, number(WINDOW_MAX - 65_535)) + called(1)),
    ("GOAWAY with an open call", opened(1) + frame(GOAWAY, 0, 0, bytes(8) + b"bye") + frame(DATA, END_STREAM, 1, balance())),
]


@pytest.mark.parametrize("sent", [row[1] for row in IGNORED], ids=[row[0] for row in IGNORED])
def test_what_is_odd_but_allowed_changes_nothing(port: Port, sent: bytes) -> None:
    with Peer(port.number) as peer:
        peer.replies[1] = Reply()
        peer.send_raw(sent)
        assert peer.finish(1).code == errors.NOT_FOUND
        assert peer.goaways == []


def test_a_connection_whose_peer_said_goodbye_is_closed_after_its_last_answer(port: Port) -> None:
    with Peer(port.number) as peer:
        peer.send_raw(called(1) + frame(GOAWAY, 0, 0, bytes(8)))
        peer.read_close()
        assert peer.replies[1].code == errors.NOT_FOUND


def test_what_still_comes_for_a_stream_that_we_reset_is_no_mistake(port: Port) -> None:
    with Peer(port.number) as peer:
        reply = peer.call(headers(), struct.pack(">BI", 0, limits.REQUEST_BYTES_MAX + 1) + bytes(10), end=False)
        peer.read_until(lambda: reply.reset is not None)
        peer.send_raw(frame(DATA, 0, 1, bytes(9000)) + frame(WINDOW_UPDATE, 0, 1, number(9)) + frame(DATA, END_STREAM, 1, bytes(3)))
        peer.send(peer.headers_frame(1, [("x-new-in-the-table", "1")], end=True))  # the decoder must have seen it:
        assert peer.call(headers(x_new_in_the_table="1"), balance()).code == errors.NOT_FOUND
        assert peer.goaways == []


def test_streams_above_the_announced_number_are_refused_and_the_others_served(port: Port) -> None:
    with Peer(port.number) as peer:
        streams = [peer.start(headers(), balance()[:7], end=False) for _ in range(limits.STREAMS_PER_CONNECTION_MAX + 3)]
        for stream in streams[limits.STREAMS_PER_CONNECTION_MAX:]:
            assert peer.finish(stream).reset == REFUSED_STREAM
        peer.send(*[peer.data_frame(stream, balance()[7:]) for stream in streams])  # the refused ones too: not heard of it yet
        for stream in streams[:limits.STREAMS_PER_CONNECTION_MAX]:
            assert peer.finish(stream).code == errors.NOT_FOUND
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND


def test_connections_that_hold_many_streams_leave_some_for_the_others(new_port: Callable[..., Port]) -> None:
    one = new_port(streams_max=160)
    with Peer(one.number) as first, Peer(one.number) as second, Peer(one.number) as till:
        for peer in (first, second):
            for _ in range(200):
                peer.start(headers(), balance()[:7], end=False)
            peer.ping()
        held = [sum(reply.reset is None for reply in peer.replies.values()) for peer in (first, second)]
        assert held[0] == 150, "alone it may have nearly all"
        assert held[1] == limits.STREAMS_SHARE_MIN, "they run short"
        assert {reply.reset for peer in (first, second) for reply in peer.replies.values()} == {None, REFUSED_STREAM}
        assert till.call(headers(), balance()).code == errors.NOT_FOUND
        assert one.stat("streams_refused") == 400 - sum(held)


def test_when_streams_run_short_each_connection_may_hold_its_share(new_port: Callable[..., Port]) -> None:
    one = new_port(streams_max=160)
    with Peer(one.number) as first, Peer(one.number) as second:
        for _ in range(30):
            second.start(headers(), balance()[:7], end=False)
        second.ping()
        for _ in range(200):
            first.start(headers(), balance()[:7], end=False)
        first.ping()
        assert sum(reply.reset is None for reply in first.replies.values()) == 80


# --- the tables of RFC 7541 -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [0, 1, 59, 60, 103, 104, 105, 4096, 2**32 - 1])
def test_answers_keep_to_the_table_that_the_peer_has(port: Port, size: int) -> None:
    with Peer(port.number, settings={SettingsFrame.HEADER_TABLE_SIZE: size}) as peer:
        peer.decoder.max_allowed_table_size = min(size, 2**31)
        for turn in range(3):
            assert peer.call(headers("EnrollMember"), message(enroll(f"table-{size}-{turn}").SerializeToString())).code == 0
            assert peer.call(headers(), balance()).code == errors.NOT_FOUND
            assert peer.decoder.header_table.maxsize <= max(size, 0) or size > 4096
        inside = [name for name, _ in peer.decoder.header_table.dynamic_entries]
        assert sorted(inside) == ([b"content-type", b"grpc-status"] if size >= 104 else [])


def test_a_table_may_be_made_smaller_and_larger_while_answers_go_on(port: Port) -> None:
    with Peer(port.number) as peer:
        peer.ping()
        for turn, sizes in enumerate([(4096,), (0,), (4096,), (200, 50, 4096), (70,), (104,)]):
            acknowledged = peer.acknowledged + 1
            peer.send_raw(frame(SETTINGS, 0, 0, b"".join(setting(1, size) for size in sizes)))
            peer.read_until(lambda wanted=acknowledged: peer.acknowledged == wanted)
            peer.decoder.max_allowed_table_size = min(sizes)
            for half in "ab":
                assert peer.call(headers("EnrollMember"), message(enroll(f"resize-{turn}-{half}").SerializeToString())).code == 0
            assert peer.call(headers(), balance()).code == errors.NOT_FOUND
            assert peer.decoder.header_table.maxsize <= min(sizes)


def test_a_table_that_shrinks_in_the_middle_of_an_answer_is_emptied_before_its_trailers(port: Port) -> None:
    with Peer(port.number) as peer:
        assert peer.call(headers("EnrollMember"), message(enroll("middle-1").SerializeToString())).code == 0
        peer.send_raw(frame(SETTINGS, 0, 0, setting(4, 0)))
        stream = peer.start(headers("EnrollMember"), message(enroll("middle-2").SerializeToString()))
        peer.read_until(lambda: peer.replies[stream].headers)
        acknowledged = peer.acknowledged + 1
        peer.send_raw(frame(SETTINGS, 0, 0, setting(1, 0)))
        peer.read_until(lambda: peer.acknowledged == acknowledged)
        peer.decoder.max_allowed_table_size = 0
        peer.window(stream, 1000)
        assert peer.finish(stream).code == 0
        assert peer.decoder.header_table.dynamic_entries == type(peer.decoder.header_table.dynamic_entries)()


def _raw_call(peer: Peer, stream: int, block: bytes) -> Reply:
    peer.replies[stream] = Reply()
    peer.send_raw(called(stream, block))
    peer.read_until(lambda: peer.replies[stream].ended or peer.replies[stream].reset is not None)
    return peer.replies[stream]


@pytest.mark.parametrize(("change", "why"), [
    (b"\x20\x3f\xe1\x1f", "the table was emptied"),
    (b"\x20\x3f\x09", "the table was made smaller"),
    (b"\x40\x01x\x7f\xd0\x1e" + b"y" * 4015, "another field threw it out"),
    (b"\x40\x05:path\x02/x", "another field stands at its index"),
], ids=["emptied", "smaller", "evicted", "moved"])
def test_a_header_block_that_came_before_is_decoded_again_once_the_table_has_changed(port: Port, change: bytes, why: str) -> None:
    """The path is put into the table, and then asked for by its index: the same bytes twice, then after a change."""
    with Peer(port.number) as peer:
        put = METHOD + SCHEME + b"\x40\x05:path" + bytes([len(SERVICE) + 10]) + SERVICE.encode() + b"GetBalance" + TYPE
        same = METHOD + SCHEME + b"\xbe" + TYPE
        assert _raw_call(peer, 1, put).code == errors.NOT_FOUND
        assert _raw_call(peer, 3, same).code == errors.NOT_FOUND
        assert _raw_call(peer, 5, same).code == errors.NOT_FOUND
        resize = change[0] & 0xE0 == 0x20
        _raw_call(peer, 7, change + HEAD if resize else METHOD + SCHEME + field(b":path", b"/y") + change)
        last = _raw_call(peer, 9, same)
        if why.startswith("another field stands"):
            assert last.code == errors.UNIMPLEMENTED
        elif peer.closed:
            assert peer.goaways[-1][1] == COMPRESSION_ERROR
        else:
            assert last.code is None, why
            assert last.reset == PROTOCOL_ERROR


def test_remembered_header_blocks_keep_their_methods_apart(port: Port) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    kinds = {"GetBalance": errors.NOT_FOUND, "Nothing": errors.UNIMPLEMENTED, "EnrollMember": errors.INVALID_ARGUMENT}
    with Peer(port.number) as peer:
        for _ in range(500):
            method = chance.choice(sorted(kinds))
            more = {f"x_{chance.randrange(6)}": "1"}
            late = chance.random() < 0.2
            if late:
                more["grpc_timeout"] = "0n"
            wanted = errors.DEADLINE_EXCEEDED if late and method != "Nothing" else kinds[method]
            assert peer.call(headers(method, **more), balance()).code == wanted


def test_a_remembered_deadline_counts_from_its_own_headers(port: Port) -> None:
    with Peer(port.number) as peer:
        block = HEAD + field(b"grpc-timeout", b"1S")
        for stream in range(1, 7, 2):
            begun = _raw_call(peer, stream, block)
            assert begun.code == errors.NOT_FOUND
            waiting = os.times().elapsed
            until(lambda since=waiting: os.times().elapsed > since + 0.6)


# --- flow control ---------------------------------------------------------------------------------------------------------

def test_a_window_that_settings_make_negative_holds_until_it_is_above_nothing_again(port: Port) -> None:
    with Peer(port.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 20}) as peer:
        stream = peer.start(headers("EnrollMember"), message(enroll("negative-1").SerializeToString()))
        reply = peer.replies[stream]
        peer.read_until(lambda: len(reply.data) == 20)
        peer.send_raw(frame(SETTINGS, 0, 0, setting(4, 5)))    # -15
        peer.window(stream, 15)                                # 0
        peer.ping()
        assert len(reply.data) == 20
        peer.window(stream, 1)
        peer.read_until(lambda: len(reply.data) == 21)
        peer.send_raw(frame(SETTINGS, 0, 0, setting(4, 0)))    # -5
        peer.ping()
        peer.send_raw(frame(SETTINGS, 0, 0, setting(4, 7)))    # 2
        peer.read_until(lambda: len(reply.data) == 23)
        peer.ping()
        assert len(reply.data) == 23
        peer.send_raw(frame(SETTINGS, 0, 0, setting(4, WINDOW_MAX - 100)))
        assert peer.finish(stream).code == 0
        assert ledger_pb2.EnrollMemberResponse.FromString(reply.body).opened


def test_the_window_of_the_connection_is_kept_to_the_byte_and_answers_go_on_in_order(port: Port) -> None:
    with Peer(port.number) as peer:
        request = message(enroll("connection-window").SerializeToString())
        size = len(peer.call(headers("EnrollMember"), request).data)
        streams: list[int] = []
        while sum(len(reply.data) for reply in peer.replies.values()) < 65_535:
            some = [peer.start(headers("EnrollMember"), request) for _ in range(100)]
            peer.ping()
            streams += some
        assert sum(len(reply.data) for reply in peer.replies.values()) == 65_535, "not one byte more"
        waiting = [stream for stream in streams if not peer.replies[stream].ended]
        refused = peer.call(headers(), balance())
        assert refused.code == errors.NOT_FOUND, "what has no DATA waits for no window"
        done: list[int] = []
        for _ in range(len(waiting)):
            before = sum(len(reply.data) for reply in peer.replies.values())
            peer.window(0, size)
            peer.read_until(lambda before=before: sum(len(reply.data) for reply in peer.replies.values()) == before + size)
            done += [stream for stream in waiting if peer.replies[stream].ended and stream not in done]
            if len(done) > 20:
                break
        assert done == waiting[:len(done)], "first come, first served"
        peer.window(0, 1_000_000)
        for stream in waiting:
            assert peer.finish(stream).code == 0
            assert ledger_pb2.EnrollMemberResponse.FromString(peer.replies[stream].body).replayed


def test_a_closed_window_of_one_stream_holds_nobody_else(port: Port) -> None:
    with Peer(port.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as peer:
        request = message(enroll("one-window").SerializeToString())
        shut = [peer.start(headers("EnrollMember"), request) for _ in range(5)]
        peer.ping()
        for _ in range(3):
            stream = peer.start(headers("EnrollMember"), request)
            peer.window(stream, 1000)
            assert peer.finish(stream).code == 0
        peer.window(shut[3], 1000)
        assert peer.finish(shut[3]).code == 0
        peer.send_raw(frame(RST_STREAM, 0, shut[0], number(CANCEL)))
        peer.send_raw(frame(SETTINGS, 0, 0, setting(4, 1000)))
        for stream in (shut[1], shut[2], shut[4]):
            assert peer.finish(stream).code == 0
    until(lambda: port.stat("streams") == 0)


def _large(tmp_path: Path, new_port: Callable[..., Port]) -> tuple[Port, bytes]:
    """A port whose programme gives three times for every line, and an earn whose answer outgrows one frame and one send."""
    program = tmp_path / "three.yaml"
    text = PROGRAM.read_text()
    rule = text[text.index("  - name: Base points"):text.index("\nburn:")]
    program.write_text(text.replace(rule, "".join(rule.replace("Base points", name) for name in ("First", "Second", "Third"))))
    request = ledger_pb2.EarnPointsRequest(request_id="large-answer-0001", member=ledger_pb2.MemberRef(card="2900000000001"))
    request.sent_time.GetCurrentTime()
    key = request.receipt.key
    key.store, key.till, key.number = "S1", "1", "1"
    key.business_day = int(request.sent_time.ToDatetime().strftime("%Y%m%d"))
    request.receipt.currency_code = "USD"
    for index in range(limits.LINES_MAX):
        request.receipt.lines.add(sku=f"sku-{index}", quantity_milli=1000, amount_minor=100_000)
    request.receipt.total_minor = 100_000 * limits.LINES_MAX
    return new_port(program=program), message(request.SerializeToString())


@pytest.mark.parametrize("window", [WINDOW_MAX, 65_535, 1000])
def test_a_large_answer_is_cut_into_frames_that_every_peer_takes(tmp_path: Path, new_port: Callable[..., Port], window: int) -> None:
    one, request = _large(tmp_path, new_port)
    frames: list[Frame] = []
    with Peer(one.number, settings={SettingsFrame.INITIAL_WINDOW_SIZE: window, SettingsFrame.MAX_FRAME_SIZE: 2**24 - 1}) as peer:
        handle = peer._handle

        def look(frame_read: Frame) -> None:
            frames.append(frame_read)
            handle(frame_read)

        peer._handle = look  # type: ignore[method-assign]
        for _ in range(5 if window > 1000 else 1):
            stream = peer.start(headers("EarnPoints"), request)
            reply = peer.replies[stream]
            while not reply.ended:
                size = len(reply.data)
                peer.read_until(lambda size=size, reply=reply: len(reply.data) > size or reply.ended)
                peer.window(stream, max(1, len(reply.data) - size))
                peer.window(0, max(1, len(reply.data) - size))
            assert reply.code == 0
            assert len(ledger_pb2.EarnPointsResponse.FromString(reply.body).entry.awards) == 3 * limits.LINES_MAX
    sizes = [len(one_frame.data) for one_frame in frames if isinstance(one_frame, DataFrame)]
    assert max(sizes) == min(window, FRAME_BYTES_MAX)
    assert sum(sizes) > FRAME_BYTES_MAX


def test_windows_are_opened_again_while_much_is_sent(port: Port) -> None:
    """More than the connection's first window, and on one stream more than its window: thrown away, but acknowledged."""
    with Peer(port.number) as peer:
        piece = message(b"\xff" * 100_000)
        for _ in range(200):
            assert peer.call(headers(), piece).code == errors.INVALID_ARGUMENT
        assert peer.call(headers(), balance()).code == errors.NOT_FOUND


# --- the same bytes, cut anywhere -----------------------------------------------------------------------------------------

def _conversation(chance: random.Random, tag: str) -> tuple[bytes, list[int]]:
    """Calls, errors of streams, settings, padding: what comes back does not depend on when it is read. And their streams."""
    encoder = hpack.Encoder()
    sent = PREFACE + frame(SETTINGS, 0, 0)
    streams = list(range(1, 2 * chance.randrange(5, 30), 2))
    for stream in streams:
        kind = chance.randrange(8)
        block = encoder.encode(headers(chance.choice(("GetBalance", "EnrollMember", "Nothing"))))
        body = message(enroll(f"{tag}-{stream}").SerializeToString()) if chance.random() < 0.5 else balance()
        if kind == 0:
            body = chance.randbytes(chance.choice((0, 3, 50, 20_000)))
        if kind == 1:
            sent += frame(SETTINGS, 0, 0, setting(chance.choice((1, 3, 6, 77)), chance.choice((0, 50, 4096))))
        if kind == 2:
            block += encoder.encode([("X-Upper", "case")])
        if kind == 3:
            cut = chance.randrange(len(block) + 1)
            sent += frame(HEADERS, 0, stream, block[:cut]) + frame(CONTINUATION, END_HEADERS, stream, block[cut:])
        else:
            sent += frame(HEADERS, END_HEADERS, stream, block)
        pieces = [body[at:at + 16_000] for at in range(0, len(body), 16_000)] or [b""]
        for index, piece in enumerate(pieces):
            pad = chance.choice((0, 0, 9))
            payload = bytes([pad]) + piece + bytes(pad) if pad else piece
            sent += frame(DATA, (PADDED if pad else 0) | (END_STREAM if index == len(pieces) - 1 else 0), stream, payload)
        if kind == 4:
            sent += frame(PING, 0, 0, b"12345678")
    return sent, streams


def _answers(port: Port, sent: bytes, streams: list[int], cuts: list[int]) -> dict[int, tuple[object, ...]]:
    with Peer(port.number, greet=False) as peer:
        before = port.stat("bytes_received")
        for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            peer.send_raw(sent[begin:end])
            until(lambda end=end: port.stat("bytes_received") == before + end)  # each piece is read by itself
        for stream in streams:
            peer.replies.setdefault(stream, Reply())
            peer.finish(stream)
        assert peer.goaways == []
        return {stream: (reply.headers.get(":status"), reply.code, reply.text, reply.reset,
                         ledger_pb2.EnrollMemberResponse.FromString(reply.body).entry.sequence if reply.code == 0 else None)
                for stream, reply in sorted(peer.replies.items())}


def test_the_same_bytes_cut_anywhere_get_the_same_answers(new_port: Callable[..., Port]) -> None:
    seed = int(os.environ.get("TRANSPORT_SEED", random.randrange(2**32)))
    print("seed", seed)
    chance = random.Random(seed)
    one = new_port()
    for turn in range(20):
        sent, streams = _conversation(chance, f"cut-{turn:04d}")
        whole = _answers(one, sent, streams, [])
        assert len(whole) > 3
        for count in (3, 40):
            cuts = sorted(chance.randrange(1, len(sent)) for _ in range(count))
            assert _answers(one, sent, streams, cuts) == whole
    cuts = list(range(1, 300))
    assert _answers(one, sent, streams, cuts) == whole, "byte by byte"


# --- whatever comes -------------------------------------------------------------------------------------------------------

def test_thousands_of_mutated_conversations_leave_the_service_alive() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    ends = fuzz(3000, seed)
    assert ends["answered"] > 300, f"the conversations have lost their calls: {ends}"
    assert ends["goaway"] > 300, f"the mutations have lost their bite: {ends}"


@pytest.mark.soak
def test_a_quarter_million_mutated_conversations_leave_the_service_alive_under_address_sanitizer() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert run_with_asan(["--count", "250000", "--seed", str(seed)]) == 0
