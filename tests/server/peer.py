"""An HTTP/2 client that says exactly what a test wants, also what no client should: frames and headers by hand.

Not for tests of what calls mean (they use grpcio). Used by tests/server/test_transport.py.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote_to_bytes

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from server._pb.loyalty.ledger.v1 import ledger_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/loyalty.ledger.v1.LedgerService/"
WAIT_S = 60.0  # a server that says nothing for so long hangs


def message(body: bytes, compressed: int = 0) -> bytes:
    """A gRPC message: prefix and body."""
    return struct.pack(">BI", compressed, len(body)) + body


def balance(member_id: int = 4999) -> bytes:
    """A GetBalance request, framed; nobody has this number unless a test says so."""
    return message(ledger_pb2.GetBalanceRequest(member=ledger_pb2.MemberRef(member_id=member_id)).SerializeToString())


def headers(method: str = "GetBalance", **changed: str | None) -> list[tuple[str, str]]:
    """A call's headers. Keywords change or add them (_ for -, leading : for `path` and `method_`), None leaves one out."""
    fields: dict[str, str | None] = {
        ":method": "POST", ":scheme": "http", ":path": SERVICE + method, ":authority": "till", "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changed.items():
        fields[{"path": ":path", "verb": ":method"}.get(name, name.replace("_", "-"))] = value
    return [(name, value) for name, value in fields.items() if value is not None]


@dataclass
class Reply:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)  # trailers included
    data: bytes = b""
    ended: bool = False
    reset: int | None = None  # error code of RST_STREAM

    @property
    def code(self) -> int | None:
        """The gRPC code."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None

    @property
    def text(self) -> str:
        """The decoded grpc-message."""
        return unquote_to_bytes(self.headers.get("grpc-message", "")).decode()

    @property
    def details(self) -> bytes:
        """The decoded grpc-status-details-bin."""
        raw = self.headers["grpc-status-details-bin"]
        return base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True)

    @property
    def body(self) -> bytes:
        """The one message of a good answer."""
        compressed, size = struct.unpack(">BI", self.data[:5])
        assert (compressed, size) == (0, len(self.data) - 5)
        return self.data[5:]


class Peer:
    """One connection. `settings` are sent with the preface; `replies` fills while frames are read."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", settings: dict[int, int] | None = None, greet: bool = True,
                 receive_buffer: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(WAIT_S)
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.replies: dict[int, Reply] = {}
        self.goaways: list[tuple[int, int]] = []  # (last stream, error code)
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []  # of the server
        self.settings: dict[int, int] = {}
        self.acknowledged = 0  # SETTINGS of ours that the server acknowledged
        self.closed = False
        self.answer_pings = True
        self.greeted = greet
        self.after_read: Callable[[], None] = lambda: None  # called the moment after bytes came, before they are looked at
        self._input = b""
        self._next = 1
        if greet:
            self.send_raw(PREFACE + SettingsFrame(settings=settings or {}).serialize())

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    # --- out --------------------------------------------------------------------------------------------------------
    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, *frames: Frame) -> None:
        self.send_raw(b"".join(frame.serialize() for frame in frames))

    def new_stream(self) -> int:
        stream = self._next
        self._next += 2
        self.replies[stream] = Reply()
        return stream

    def headers_frame(self, stream: int, fields: list[tuple[str, str]], *, end: bool = False) -> HeadersFrame:
        frame = HeadersFrame(stream, self.encoder.encode(fields), flags=["END_HEADERS"])
        if end:
            frame.flags.add("END_STREAM")
        return frame

    @staticmethod
    def data_frame(stream: int, data: bytes, *, end: bool = True) -> DataFrame:
        return DataFrame(stream, data, flags=["END_STREAM"] if end else [])

    def start(self, fields: list[tuple[str, str]], body: bytes = b"", *, end: bool = True) -> int:
        """Sends a call, or its beginning, in one piece; returns the stream."""
        stream = self.new_stream()
        frames: list[Frame] = [self.headers_frame(stream, fields)]
        frames += [self.data_frame(stream, body[at:at + 16384], end=False) for at in range(0, len(body), 16384)]
        if end:
            frames.append(self.data_frame(stream, b""))
        self.send(*frames)
        return stream

    def call(self, fields: list[tuple[str, str]], body: bytes = b"", *, end: bool = True) -> Reply:
        """Sends a call and reads until its end."""
        return self.finish(self.start(fields, body, end=end))

    # --- in ---------------------------------------------------------------------------------------------------------
    def finish(self, stream: int) -> Reply:
        reply = self.replies[stream]
        self.read_until(lambda: reply.ended or reply.reset is not None)
        return reply

    def read_until(self, done: Callable[[], object]) -> None:
        """Reads frames until done() or the server closes. Errors: AssertionError when neither happens for long."""
        deadline = time.monotonic() + WAIT_S
        while not done() and not self.closed:
            assert time.monotonic() < deadline, "the server never said what was waited for"
            self.read_once()

    def read_close(self) -> None:
        """Reads until the server closes."""
        self.read_until(lambda: False)

    def read_once(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self.after_read()
        if not data:
            self.closed = True
            return
        self._input += data
        while len(self._input) >= 9:
            frame, size = Frame.parse_frame_header(memoryview(self._input[:9]))
            if len(self._input) < 9 + size:
                return
            frame.parse_body(memoryview(self._input[9:9 + size]))
            self._input = self._input[9 + size:]
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        reply = self.replies.setdefault(frame.stream_id, Reply()) if frame.stream_id else Reply()
        if isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags
            reply.headers.update((str(name), str(value)) for name, value in self.decoder.decode(frame.data))
            reply.ended = "END_STREAM" in frame.flags
        elif isinstance(frame, DataFrame):
            reply.data += frame.data
            reply.ended = "END_STREAM" in frame.flags
        elif isinstance(frame, RstStreamFrame):
            reply.reset = frame.error_code
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.last_stream_id, frame.error_code))
        elif isinstance(frame, PingFrame):
            if "ACK" in frame.flags:
                self.pongs.append(frame.opaque_data)
                return
            self.pings.append(frame.opaque_data)
            if self.answer_pings:
                self._acknowledge(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, SettingsFrame):
            if "ACK" in frame.flags:
                self.acknowledged += 1
            else:
                self.settings.update(frame.settings)
                self._acknowledge(SettingsFrame(0, flags=["ACK"]))

    def _acknowledge(self, frame: Frame) -> None:
        if self.greeted:
            with contextlib.suppress(ConnectionError):  # the server may be gone; what it said is still to be read
                self.send(frame)

    def ping(self) -> None:
        """One PING there and back: everything sent before was read by the server."""
        count = len(self.pongs)
        self.send(PingFrame(0, b"daybook!"))
        self.read_until(lambda: len(self.pongs) > count)
        assert not self.closed, "the server closed the connection"

    def window(self, stream: int, increment: int) -> None:
        self.send(WindowUpdateFrame(stream, window_increment=increment))
