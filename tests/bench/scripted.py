"""A gRPC service made of single HTTP/2 frames: does what a test says, and notes every rule of HTTP/2 that its client breaks.

Frames and HPACK are hyperframe's and hpack's, so nothing of the generator checks itself. Not for what calls mean (tests/bench/stand_in.py).
Used by tests/bench/test_http2_client.py.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACCEPT = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def message(data: bytes = b"") -> bytes:
    """A gRPC message with its prefix."""
    return b"\0" + len(data).to_bytes(4, "big") + data


@dataclass
class Call:
    """One request of the client, whole."""

    session: Session
    stream: int
    headers: dict[bytes, bytes]
    body: bytes

    def send(self, *frames: Frame) -> None:
        for frame in frames:
            self.session.send(frame)

    def headers_frame(self, fields: Iterable[tuple[bytes, bytes]], *flags: str, huffman: bool = True) -> HeadersFrame:
        frame = HeadersFrame(self.stream, flags=["END_HEADERS", *flags])
        frame.data = self.session.encoder.encode(list(fields), huffman=huffman)
        return frame

    def answer(self, data: bytes = b"", code: int = 0, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """An answer as any service gives it; a code other than 0 comes without a message."""
        self.send(self.headers_frame(ACCEPT))
        if code == 0:
            self.send(DataFrame(self.stream, message(data)))
        self.send(self.headers_frame([(b"grpc-status", str(code).encode()), *extra], "END_STREAM"))


@dataclass
class Session:
    """One connection. `broken` holds the rules that the client broke, `blocks` the sizes of its header blocks."""

    service: Scripted
    socket: socket.socket
    encoder: Encoder = field(default_factory=Encoder)
    decoder: Decoder = field(default_factory=Decoder)
    window: int = 65_535
    stream_windows: dict[int, int] = field(default_factory=dict)
    open: dict[int, tuple[dict[bytes, bytes], bytearray]] = field(default_factory=dict)
    unanswered: set[int] = field(default_factory=set)
    last_stream: int = 0
    acks: int = 0
    resizes: list[int] = field(default_factory=list)
    resets: dict[int, int] = field(default_factory=dict)
    goaway: int | None = None
    received_updates: dict[int, int] = field(default_factory=dict)
    pings: list[bytes] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    def send(self, frame: Frame) -> None:
        """Send a frame, in pieces where the service is to stutter."""
        if isinstance(frame, HeadersFrame | DataFrame) and "END_STREAM" in frame.flags or isinstance(frame, RstStreamFrame):
            self.unanswered.discard(frame.stream_id)
        self.send_bytes(frame.serialize())

    def send_bytes(self, data: bytes) -> None:
        step = self.service.stutter or len(data)
        for at in range(0, len(data), step):
            self.socket.sendall(data[at:at + step])

    def grant(self, stream: int, size: int) -> None:
        """Let the client send more."""
        if stream:
            self.stream_windows[stream] += size
        else:
            self.window += size
        self.send(WindowUpdateFrame(stream, window_increment=size))

    def resize(self, size: int) -> None:
        """Change the windows of all streams, once; on_resized(session) is asked when the client has agreed."""
        self.resizes.append(size)
        self.send(SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: size}))

    def break_off(self, rule: str) -> None:
        self.service.broken.append(rule)

    def serve(self) -> None:
        reader = self.socket.makefile("rb")
        if reader.read(len(PREFACE)) != PREFACE:
            self.break_off("no preface")
            return
        self.send(SettingsFrame(settings=self.service.settings))
        first = True
        while len(head := reader.read(9)) == 9:
            frame, size = Frame.parse_frame_header(memoryview(head))
            if size > self.service.settings.get(SettingsFrame.MAX_FRAME_SIZE, 16_384):
                self.break_off(f"a frame of {size} bytes")
            frame.parse_body(memoryview(reader.read(size)))
            if first and not isinstance(frame, SettingsFrame):
                self.break_off("SETTINGS do not come first")
            first = False
            self.take(frame)

    def take(self, frame: Frame) -> None:
        stream = frame.stream_id
        if isinstance(frame, SettingsFrame):
            if "ACK" in frame.flags:
                self.acks += 1
                if self.acks == 2:
                    change = self.resizes[0] - self.service.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, 65_535)
                    self.stream_windows = {stream: window + change for stream, window in self.stream_windows.items()}
                    self.service.on_resized(self)
                elif SettingsFrame.HEADER_TABLE_SIZE in self.service.settings:
                    self.decoder.max_allowed_table_size = self.service.settings[SettingsFrame.HEADER_TABLE_SIZE]
            else:
                self.send(SettingsFrame(flags=["ACK"]))
        elif isinstance(frame, PingFrame):
            self.pings.append(frame.opaque_data)
        elif isinstance(frame, WindowUpdateFrame):
            self.received_updates[stream] = self.received_updates.get(stream, 0) + frame.window_increment
        elif isinstance(frame, RstStreamFrame):
            self.resets[stream] = frame.error_code
            self.open.pop(stream, None)
            self.unanswered.discard(stream)
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
        elif isinstance(frame, HeadersFrame):
            if stream % 2 == 0 or stream <= self.last_stream:
                self.break_off(f"stream {stream} after {self.last_stream}")
            self.last_stream = stream
            self.unanswered.add(stream)
            limit = self.service.settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS)
            if limit is not None and self.acks and len(self.unanswered) > limit:
                self.break_off(f"{len(self.unanswered)} streams at once")
            self.blocks.append(len(frame.data))
            self.open[stream] = (dict(self.decoder.decode(frame.data, raw=True)), bytearray())
            initial = self.service.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, 65_535)
            self.stream_windows[stream] = self.resizes[0] if self.acks == 2 else initial
        elif isinstance(frame, DataFrame):
            self.window -= frame.flow_controlled_length
            self.stream_windows[stream] -= frame.flow_controlled_length
            if self.acks and (self.window < 0 or self.stream_windows[stream] < 0):
                self.break_off(f"DATA beyond the window: {self.window}, {self.stream_windows[stream]}")
            headers, body = self.open[stream]
            body += frame.data
            if "END_STREAM" in frame.flags:
                del self.open[stream]
                call = Call(self, stream, headers, bytes(body))
                self.service.calls.append(call)
                self.service.on_call(call)
            self.service.on_data(self, stream, frame.flow_controlled_length, "END_STREAM" in frame.flags)


def refill(session: Session, stream: int, size: int, ended: bool) -> None:
    """What a service does that reads as fast as it can."""
    session.grant(0, size)
    if not ended:
        session.grant(stream, size)


class Scripted:
    """The running service: on_call(call) is asked for every whole request, on_data(session, stream, size, ended) for every piece."""

    def __init__(self, on_call: Callable[[Call], None] = Call.answer, *, settings: dict[int, int] | None = None, stutter: int = 0,
                 on_data: Callable[[Session, int, int, bool], None] = refill,
                 on_resized: Callable[[Session], None] = lambda session: None) -> None:
        self.on_call, self.on_data, self.on_resized = on_call, on_data, on_resized
        self.settings, self.stutter = settings or {}, stutter
        self.broken: list[str] = []
        self.calls: list[Call] = []
        self.sessions: list[Session] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Scripted:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for session in self.sessions:
            with suppress(OSError):     # it may be closed already
                session.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = Session(self, connection)
            self.sessions.append(session)
            self._threads.append(threading.Thread(target=self._serve, args=(session,), daemon=True))
            self._threads[-1].start()

    def _serve(self, session: Session) -> None:
        try:
            session.serve()
        except OSError:
            pass  # the client has gone, or the test is over
        except Exception as error:
            self.broken.append(f"cannot be read: {error!r}")
        finally:
            session.socket.close()


__all__ = ["ACCEPT", "Call", "ContinuationFrame", "DataFrame", "GoAwayFrame", "HeadersFrame", "PingFrame", "RstStreamFrame", "Scripted",
           "Session", "SettingsFrame", "WindowUpdateFrame", "message", "refill"]
