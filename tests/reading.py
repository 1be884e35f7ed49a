"""A follower's read port inside the test's own process, on a data directory that a service (in another process) may be writing.

Not for the follower's process and its command line (tests/test_follow.py). Used by the tests of lists, the feed and balances of the past.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from ledger.follower import Follower
from server._pb.loyalty.ledger.v1 import journal_pb2_grpc, ledger_pb2_grpc
from server.config import Address
from server.follow import ReadPort

WAIT_S = 60.0  # far beyond every delay that is waited for: only a failure takes so long


def wait_for(what: Callable[[], Any], why: str) -> Any:
    """Poll until `what()` is true; returns it."""
    until = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < until, f"{why} did not come within {WAIT_S} s"
        time.sleep(0.005)
    return found


class Port:
    """Use as a context manager. `journal` and `ledger` are stubs; `follower` is stepped by a thread."""

    def __init__(self, data: Path, *, clock_file: Path | None = None, follow: bool = True, **settings: Any) -> None:
        self.data = data
        self.said: list[str] = []
        self._clock_file = clock_file
        self._settings = settings
        self._follow = follow
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._failed: BaseException | None = None

    def __enter__(self) -> Port:
        self.follower = Follower(self.data, members_max=20_000, ids_max=200_000)
        self._stepper = threading.Thread(target=self._step)
        self._serving = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._serving.start()
        assert self._ready.wait(WAIT_S)
        if self._follow:
            self._stepper.start()
        self.channel = self.new_channel()
        self.journal = journal_pb2_grpc.JournalServiceStub(self.channel)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self._stopping.set()
        self._serving.join()
        if self._follow:
            self._stepper.join()
        self.follower.close()
        assert self._failed is None, self._failed

    def new_channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.port.port}", options=[("grpc.use_local_subchannel_pool", 1), *options])

    async def _serve(self) -> None:
        self.port = ReadPort(self.follower, Address("127.0.0.1", 0), self._clock_file, self.said.append, **self._settings)
        await self.port.start()
        self._ready.set()
        while not self._stopping.is_set():
            await asyncio.sleep(0.01)
        await self.port.stop()

    def _step(self) -> None:
        try:
            while not self._stopping.is_set():
                if self.follower.step() == 0:
                    self._stopping.wait(0.005)
        except BaseException as error:
            self._failed = error

    def reach(self, sequence: int) -> None:
        """Wait until the follower has applied this entry."""
        wait_for(lambda: self._failed or self.follower.sequence >= sequence, f"sequence {sequence} on the follower")
        assert self._failed is None, self._failed
