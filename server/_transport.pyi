"""The checkout port. What it promises stands in _transport.pyx."""

from typing import Final, TypedDict

from ledger._engine import EngineHandle

LATENCY_BOUNDS_US: Final[tuple[int, ...]]
"""Upper bounds (inclusive, microseconds) of the latency buckets, 1-2-5 from 10 us to 10 s; one more bucket has no bound."""

class Stats(TypedDict):
    """Counters since the start, read without stopping the hot thread: each number is right, all of them together are not one moment."""

    calls: dict[tuple[str, int, int], int]
    """(port, method, status) -> answered calls. port: "checkout" or "control"; method: Method of ledger/_layout.pxd, 0 = unknown;
    status: a number of ledger/errors.py. Only what was counted at least once."""
    latency: dict[tuple[str, int], tuple[tuple[int, ...], int]]
    """(port, method) -> (calls per bucket, not cumulative, len(LATENCY_BOUNDS_US) + 1 of them; sum in microseconds).
    checkout: from the HEADERS frame to the answer handed to the socket; control: from the inbox to the outbox."""
    connections: int  # open now
    streams: int  # calls open now, waiting ones included
    held: int  # answers waiting for the disk now
    connections_total: int
    connections_refused: int  # above CONNECTIONS_MAX or out of file descriptors
    streams_refused: int  # REFUSED_STREAM, above STREAMS_MAX
    http_refused: int  # answered with HTTP 405, 415 or 431: not gRPC
    calls_cancelled: int  # given up by the peer before they were decided
    answers_dropped: int  # decided, but the peer had gone
    resets_received: int
    resets_sent: int
    connections_abused: int  # closed for a flood of frames or resets
    connections_broken: int  # closed for breaking HTTP/2, or not speaking it
    connections_timed_out: int  # idle, or slow in the middle of something
    streams_timed_out: int  # requests not completed, answers not read in time
    bytes_received: int
    bytes_sent: int
    turns: int  # of the loop
    in_batches: dict[tuple[int, int], int]
    """(method, status) -> commands of BatchPost and members of BatchGetBalances, by their own method; 0: refused before that was known."""
    late_calls: int  # calls that were put behind those for which somebody waits
    batch_turns: int  # turns of the loop in which batches went on

class CheckoutServer:
    """Serves the checkout calls on one address."""

    port: int
    """The port that is listened on (chosen by the kernel where 0 was asked)."""
    def __init__(self, handle: EngineHandle, host: str, port: int, *, idle_timeout_ms: int = ..., slow_client_timeout_ms: int = ...,
                 drain_grace_ms: int = ..., notice_ms: int = ..., connections_max: int = ..., streams_max: int = ...) -> None:
        """Binds and listens. The keywords are ledger/limits.py (notice_ms: how long a stop waits for a peer to have seen its
        notice); only tests set them.

        Errors: OSError that names the address; ValueError; MemoryError."""
    def run(self) -> None:
        """The body of the hot thread: returns when the engine was asked to stop. Never takes the GIL meanwhile.

        Errors: RuntimeError when it ran before; OSError when the kernel's event queue fails."""
    def stats(self) -> Stats:
        """A copy of all counters. May be called from any thread, at any time."""
