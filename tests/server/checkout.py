"""A checkout port for tests: a real engine behind real sockets, its hot thread in this process.

Not for the whole service as a process of its own (tests/running.py). Used by the tests of server/_transport and server/_http2.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ledger import errors, limits
from ledger.engine import open_ledger
from server._pb.loyalty.ledger.v1 import ledger_pb2
from server._transport import CheckoutServer
from tests.server.peer import WAIT_S, Peer, balance, headers

PROGRAM = Path(__file__).resolve().parents[2] / "programs" / "base.yaml"


class Port:
    """A ledger and its checkout port; the hot thread runs in this process."""

    def __init__(self, directory: Path, host: str = "127.0.0.1", *, program: Path = PROGRAM, **bounds: int) -> None:
        self.ledger = open_ledger(directory / "data", program, members_max=5000, ids_max=50_000, tail_bytes=limits.TAIL_BYTES_MIN)
        self.server = CheckoutServer(self.ledger.handle, host, 0, **bounds)
        self.number = self.server.port
        self.ledger.start()
        self.thread = threading.Thread(target=self.server.run, name="hot")
        self.thread.start()

    def stop(self, level: int = 1) -> None:
        if self.thread.is_alive() or level == 2:
            self.ledger.handle.ask_stop(level)
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the hot thread did not end"

    def close(self) -> None:
        self.stop()
        self.ledger.stop()

    def stat(self, name: str) -> int:
        return self.server.stats()[name]

    def written(self) -> int:
        """The last sequence, without the DIGEST entries that are written once a minute, whatever else happens."""
        while True:
            digests = self.ledger.handle.stats()["digests"]
            sequence = self.ledger.handle.sequence
            if digests == self.ledger.handle.stats()["digests"]:
                return sequence - digests

    def calls(self, method: int, status: str) -> int:
        return self.server.stats()["calls"].get(("checkout", method, errors.BY_NAME[status].number), 0)

    def assert_alive(self) -> None:
        """A new connection gets a right answer."""
        with Peer(self.number) as peer:
            assert peer.call(headers(), balance()).code == errors.NOT_FOUND


def until(condition: Callable[[], object]) -> None:
    """Polls."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


def enroll(card: str, request_id: str | None = None) -> ledger_pb2.EnrollMemberRequest:
    request = ledger_pb2.EnrollMemberRequest(request_id=request_id or f"transport-{card:>010}".replace(" ", "0"),
                                             identifiers=[ledger_pb2.MemberRef(card=card)])
    request.sent_time.GetCurrentTime()
    return request
