"""What Python sees of the engine. The hot thread's steps are C only: ledger/_engine.pxd."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ledger._snapshot import Snapshot

class StartRefused(Exception):
    """The ledger does not start: what is wrong, where, and what to do. Nothing was written."""

class RulesImage:
    """An image of a programme in memory, checked, for an Order. It may be made by any thread. Errors: ValueError (it does not load)."""

    hash: bytes
    size: int

    def __init__(self, image: bytes) -> None: ...

class Order:
    """What is asked of the core to publish rules: one step. Its texts must be right: the core checks request id and time alone.

    kind: "look" (was this request seen? is the image of `hash` in memory?), "part" (PROGRAM_PART_BYTES of the image from `offset` on into
    the journal), "publish" (the PROGRAM entry; whole: with the image in it, else its parts were written, or it is in memory).
    effective_us: the moment asked for, 0: at once. content: 8 bytes, the same for a repeat. told: ledger.published.pack().
    """

    def __init__(self, *, kind: str, hash: bytes = ..., image: RulesImage | None = None, request_id: bytes = b"", sent_time_us: int = 0,
                 effective_us: int = 0, again: int = 0, content: bytes = ..., offset: int = 0, whole: bool = False, source: bytes = b"",
                 told: bytes = b"", operator: bytes = b"", reason: bytes = b"") -> None: ...

    def give_up(self) -> None:
        """Instead of take_answer, where no definite answer came: what the core may have taken is left to it."""

class OrderAnswer(NamedTuple):
    """What came of an Order."""

    sequence: int  # of its entry; 0: none
    time_us: int  # server time of that entry
    version: int
    before: int  # the version in force when it was published
    replayed: bool
    in_memory: bool  # the image

class SearchedLimit(NamedTuple):
    """A limit of the programme in force that keeps a counter, and keys of it. Numbers as in docs/decisions/fraud.md, section 2."""

    name: str
    at_most: int
    per: int  # bits
    measure: int
    window: int
    window_s: int  # of a sliding one
    action: int
    keys: list[tuple[int, int, int]]  # key, number of the window, amount; the largest first

class Search:
    """The largest keys of limits, searched by the hot thread in steps; or those of one member or place, found by the first step.

    limit: name of one, empty: all. most: keys of each, 1..LIMIT_KEYS_MAX. question: member and origin, as the bytes of a GetBalanceRequest.
    `more`: another step is needed. `missed`: there is no such limit. The three are to be read between steps alone.
    """

    more: bool
    missed: bool

    def __init__(self, *, limit: bytes = b"", most: int = 1, question: bytes = b"") -> None: ...
    def found(self) -> list[SearchedLimit]: ...

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
        """A PROGRAM entry, in force at once, durable when this returns. Before the threads start. Errors: StartRefused."""
    def program_image(self) -> bytes: ...
    def submit_order(self, token: int, order: Order) -> bool:
        """Put an order into the inbox; it must live until its answer is collected. False: full."""
    def submit_search(self, token: int, search: Search) -> bool:
        """Put the next step of a search into the inbox; it must live until its answer is collected. False: full."""
    def take_answer(self, order: Order, payload: bytes) -> OrderAnswer: ...
    def versions(self, from_version: int = 1) -> list[tuple[int, int]]:
        """Versions of the programme, from 1: (sequence of the entry, server time us from which it is in force). From any thread."""
    def reviews(self) -> list[tuple[int, int, int, int, int, int]]:
        """Receipts under review, oldest first: (sequence, server time us, member, points, version, limit from 1). From any thread."""
    def limit_names(self) -> tuple[int, list[str]]:
        """The version in force and the names of its limits."""
    time_us: int
    """Server time of the hot thread's last turn."""
    def read_entry(self, sequence: int) -> bytes:
        """An entry that was drained, read beside the hot thread; b"": it is not there (yet)."""
    def find_entry(self, sequence: int) -> bytes:
        """Any entry. Only before the threads are started."""
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
