"""The follower's process: a thread that follows the journal, and beside it a control port for reads and an HTTP port.

Not for following (ledger/follower.py) and not for the command line (server/cli_follow.py, its only caller). `daybook serve` starts it as
a child process; by hand it works as well, also on a directory without a service.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ledger import limits
from ledger._follower import die_with, step_back
from ledger.follower import Follower, FollowerBroken
from ledger.journal import JournalError
from server import reading
from server._reader import Reader
from server.config import METHODS, SERVICE, Address, RefusedToStart
from server.control import RECEIVE_BYTES_MAX, Answer, give, listen, too_large
from server.metrics import FollowerCollector, MetricsServer
from server.ports import cannot_listen, check_free, write_ports
from server.reading import JournalService

EXIT_BROKEN = 70  # EX_SOFTWARE of sysexits.h: the journal cannot be followed, or the thread died
LOCK_WAIT_S = 10  # for the follower of a service that was killed just now: giving its memory back takes a moment
POLL_S = limits.DRAIN_INTERVAL_MS / 4000  # how long the thread sleeps when it has caught up: a quarter of a drain

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FollowConfig:
    """One start of a follower."""

    data: Path
    control: Address
    http: Address
    members_max: int | None  # None: as the newest snapshot has it, else the default
    ids_max: int | None
    snapshot_entries: int
    snapshot_pause_s: int
    clock_file: Path | None
    ports_file: Path | None
    child_of: int | None  # the service's process id: the follower ends with it


@dataclass(frozen=True, slots=True)
class Following:
    """What the start table shows."""

    config: FollowConfig
    ports: dict[str, str]
    follower: Follower


def follow(config: FollowConfig, *, started: Callable[[Following], None], say: Say) -> int:
    """Run until a signal asks to stop; returns the exit code. Errors: RefusedToStart (nothing runs any more)."""
    if config.child_of is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's: it ends us when everything is in the journal
        try:
            die_with(config.child_of)
        except OSError:
            return 0  # it has gone already
    step_back()
    for address, flag in ((config.control, "--control"), (config.http, "--http")):
        check_free(address, flag)
    try:
        follower = Follower(config.data, members_max=config.members_max, ids_max=config.ids_max,
                            snapshot_entries=config.snapshot_entries, snapshot_pause_s=config.snapshot_pause_s,
                            lock_wait_s=0 if config.child_of is None else LOCK_WAIT_S, say=say)
    except (FollowerBroken, JournalError, MemoryError) as error:
        raise RefusedToStart(str(error)) from None
    with follower:
        return asyncio.run(_Running(config, follower, say).run(started))


class _Running:
    """The asyncio side of a follower whose state is loaded."""

    def __init__(self, config: FollowConfig, follower: Follower, say: Say) -> None:
        self.config = config
        self.follower = follower
        self.say = say
        self.stop_asked = asyncio.Event()
        self.stopping = threading.Event()
        self.broken = ""

    async def run(self, started: Callable[[Following], None]) -> int:
        config = self.config
        self.loop = asyncio.get_running_loop()
        try:
            http = MetricsServer(config.http, FollowerCollector(self.follower.stats, lambda: port.journal.stats()))
        except OSError as error:
            raise cannot_listen(config.http, "--http", error) from None
        port = ReadPort(self.follower, config.control, config.clock_file, self.say)
        await port.start()
        for number in (signal.SIGTERM, signal.SIGINT) if config.child_of is None else (signal.SIGTERM,):
            self.loop.add_signal_handler(number, self.stop_asked.set)
        thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        thread.start()
        http.start()
        ports = {"control": port.port, "http": http.port}
        started(Following(config, {name: str(Address(getattr(config, name).host, number)) for name, number in ports.items()},
                          self.follower))
        write_ports(config.ports_file, ports)

        await self.stop_asked.wait()
        http.stopping = True
        self.stopping.set()
        await port.stop()
        await self.loop.run_in_executor(None, thread.join)
        http.close()
        if self.broken:
            self.say(f"the follower ends: {self.broken}")
            return EXIT_BROKEN
        self.say(f"the follower ends at sequence {self.follower.sequence}")
        return 0

    def _follow(self) -> None:
        """The follower's thread. Its unexpected end is the end of the process."""
        try:
            while not self.stopping.is_set():
                applied = self.follower.step()
                self.follower.tend()
                if applied == 0:
                    self.stopping.wait(POLL_S)
            self.follower.finish()
        except BaseException as error:  # the thread's entry: whatever it is, a follower that stands still must not look alive
            self.broken = str(error) if isinstance(error, (FollowerBroken, JournalError)) else f"{type(error).__name__}: {error}"
            self.loop.call_soon_threadsafe(self.stop_asked.set)


class ReadPort:
    """The control port of a follower: reads of LedgerService, JournalService, health and reflection."""

    def __init__(self, follower: Follower, address: Address, clock_file: Path | None, say: Say, **journal: Any) -> None:
        self.address = address
        self.port = 0
        self._follower = follower
        self._reader = Reader(follower.core, clock_file)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=[
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a shared port
            ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000),  # a reader of the feed that is gone is noticed
            ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
            ("grpc.max_send_message_length", 4 * limits.PAGE_BYTES_MAX),
        ])
        calls = {name: grpc.unary_unary_rpc_method_handler(self._call(number)) for name, number in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, calls),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.journal = JournalService(follower.data, follower.journal, lambda: follower.sequence, self._read, say=say, **journal)
        self.journal.mount(self._server)
        self._services = [SERVICE, reading.SERVICE]
        reflection.enable_server_reflection((*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    def _read(self, method: int, request: bytes) -> Answer:
        with self._follower.lock:  # held for a few milliseconds at most
            return self._reader.read(method, request)

    def _call(self, method: int) -> Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Any]:
        async def run(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            answer = too_large(method, request)
            if answer is None and method == METHODS["GetBalance"]:
                answer = await self.journal.balance(request)  # of the past
            return await give(answer or self._read(method, request), context)

        return run

    async def start(self) -> None:
        """Listen and serve. Errors: RefusedToStart."""
        self.port = listen(self._server, self.address, "the follower's control port")
        await self._server.start()
        self.journal.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """NOT_SERVING; open calls end, streams are cut after half a second."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(0.5)
        await asyncio.get_running_loop().run_in_executor(None, self.journal.stop)
