"""What Python sees of the engine. The hot thread's steps are C only: ledger/_engine.pxd."""

from collections.abc import Callable
from typing import Any

from ledger._snapshot import Snapshot

class StartRefused(Exception):
    """The ledger does not start: what is wrong, where, and what to do. Nothing was written."""

class EngineHandle:
    """Python's hold on an Engine. Made by ledger.engine.open_ledger; `engine` is reached by cimport only."""

    outbox_fd: int
    """An eventfd, readable when collect() has answers."""
    sequence: int
    """Last entry applied."""
    durable_sequence: int
    drained_sequence: int
    head: tuple[int, str]
    """Last durable sequence and the hash of its group in hex: what `verify --expect-head` takes."""

    def __init__(
        self, *, tail_fd: int, tail_bytes: int, directory: bytes, journal_path: str, create: bool,
        identity_key: bytes, members_max: int, ids_max: int, reservations_max: int, clock_path: str | None, accept_time: bool,
        ids_path: str | None = None,
    ) -> None: ...
    def load_snapshot(self, snapshot: Snapshot, progress: Callable[[int, int], None] | None) -> None: ...
    def recover(self, progress: Callable[[int, int], None] | None) -> dict[str, int]:
        """Replay journal and tail. Errors: StartRefused."""
    def seed(self, image: bytes, source: bytes) -> None:
        """The first PROGRAM entry of an empty journal, durable when this returns. Errors: StartRefused."""
    def program_image(self) -> bytes: ...
    def run_flush(self) -> None:
        """Body of the flush thread; returns after end_threads()."""
    def run_drain(self) -> None:
        """Body of the drain thread; returns after end_threads(), when what is durable has been drained or cannot be."""
    def run_ids(self) -> None:
        """Body of the ids thread, which writes runs of request ids and receipt keys; returns after end_threads()."""
    def run_lookups(self) -> None:
        """Body of the look-up thread; returns after end_threads()."""
    def end_threads(self) -> None: ...
    def ask_stop(self, level: int) -> None:
        """1: finish what is open, take nothing new; 2: stop now. Seen in the hot thread's next turn. From any thread."""
    def finish(self, digest: bool) -> int:
        """After the three threads ended: a last DIGEST entry (with `digest`), all flushed and drained. Returns groups left in the tail."""
    def close(self) -> None: ...
    def submit(self, token: int, method: int, request: bytes, deadline_us: int) -> bool:
        """Put a call into the inbox. deadline_us: monotonic (time.monotonic_ns() // 1000), 0: none. False: full, refuse it."""
    def give_up(self, token: int) -> bool:
        """Say that nobody waits for a call any more: a batch stops between two commands, another call ends as always. False: inbox full."""
    def collect(self) -> list[tuple[int, int, bytes, bytes]]:
        """Answers ready: (token, grpc_code, payload, message). payload: the response (grpc_code 0) or a google.rpc.Status."""
    def stats(self) -> dict[str, Any]:
        """Plain numbers for metrics; reads shared words, never waits for the hot thread. Keys: see `STATS` in ledger/engine.py."""
    def digest(self) -> str:
        """The state digest in hex. Only while no hot thread runs."""
    def plan(self) -> list[tuple[str, int]]:
        """Memory reserved: (what, bytes)."""
    def turn(self, digests: int, alone: bool) -> int:
        """One turn of the hot loop without sockets, for tests: writes that many DIGEST entries. Returns the last sequence."""
