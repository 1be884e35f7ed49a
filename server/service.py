"""One service from start to stop: opens the ledger, runs the hot thread and the ports, ends them in order.

Not for calls (the rooms it starts) and not for the command line (server/cli.py, its only caller).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger import limits
from ledger.engine import OpenLedger, StartRefused, open_ledger
from server._transport import CheckoutServer
from server.child import FollowerChild
from server.config import Address, RefusedToStart, ServeConfig
from server.control import ControlServer
from server.metrics import LedgerCollector, MetricsServer
from server.ports import cannot_listen, check_free, write_ports

EXIT_BROKEN = 70  # EX_SOFTWARE of sysexits.h: a failed flush or a dead thread; a restart recovers
WATCH_INTERVAL_S = 1.0  # how often gate and clock are looked at for the event lines
JOIN_S = limits.DRAIN_GRACE_S + 5.0  # the transport cuts what is open after DRAIN_GRACE_S by itself

Say = Callable[[str], None]  # prints one event line


@dataclass(frozen=True, slots=True)
class Started:
    """What the start table shows."""

    config: ServeConfig
    ports: dict[str, str]
    ledger: OpenLedger


def serve(config: ServeConfig, *, progress: Callable[[str, int, int], None], started: Callable[[Started], None], say: Say) -> int:
    """Run until a signal asks to stop; returns the exit code.

    progress(what, done, total): recovery, as ledger.engine has it. started: once, when every port serves.
    Errors: RefusedToStart (nothing runs any more).
    """
    # Not the follower's: one that was killed with its service may still hold them for a moment.
    for address, flag in ((config.checkout, "--checkout"), (config.control, "--control"), (config.http, "--http")):
        check_free(address, flag)
    try:
        ledger = open_ledger(config.data, config.program, tail=config.tail, members_max=config.members_max, ids_max=config.ids_max,
                             clock_file=config.clock_file, tail_bytes=config.tail_bytes, accept_time=config.accept_time,
                             progress=progress)
    except StartRefused as error:
        raise RefusedToStart(str(error)) from None
    running = _Running(config, ledger, say)
    try:
        return asyncio.run(running.run(started))
    except RefusedToStart:
        ledger.close()  # nothing was served: there is nothing to write
        raise


class _Running:
    """The asyncio side of a service that has recovered."""

    def __init__(self, config: ServeConfig, ledger: OpenLedger, say: Say) -> None:
        self.config = config
        self.ledger = ledger
        self.handle = ledger.handle
        self.say = say
        self.follower = FollowerChild(config, say)
        self.stop_asked = asyncio.Event()
        self.hot_ended = asyncio.Event()
        self.stopping = False

    async def run(self, started: Callable[[Started], None]) -> int:
        config, handle = self.config, self.handle
        self.loop = asyncio.get_running_loop()
        try:
            checkout = CheckoutServer(handle, config.checkout.host, config.checkout.port)
        except OSError as error:
            raise cannot_listen(config.checkout, "--checkout", error) from None
        control = ControlServer(handle, config.control)
        try:
            counted = LedgerCollector(handle.stats, lambda: control.with_counts(checkout.stats()), self.follower.stats)
            http = MetricsServer(config.http, counted)
        except OSError as error:
            raise cannot_listen(config.http, "--http", error) from None
        await control.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._signal, number)
        self.ledger.start()
        hot = threading.Thread(target=self._hot, args=(checkout,), name="hot", daemon=True)
        hot.start()
        http.start()
        ports = {"checkout": checkout.port, "control": control.port, "http": http.port}
        started(Started(config, {name: str(Address(getattr(config, name).host, port)) for name, port in ports.items()}, self.ledger))
        write_ports(config.ports_file, ports)
        watch = asyncio.create_task(self._watch())
        if config.follow_control is not None:
            self.follower.start()

        await self.stop_asked.wait()
        self.stopping = True
        self.follower.hold()
        http.stopping = True
        watch.cancel()
        self.say("stopping: no new calls, open ones are answered")
        await control.stop_taking(limits.DRAIN_GRACE_S)
        handle.ask_stop(1)
        try:
            await asyncio.wait_for(self.hot_ended.wait(), JOIN_S)
        except TimeoutError:
            handle.ask_stop(2)
            await self.hot_ended.wait()
        hot.join()
        await control.close()
        http.close()
        left = await self.loop.run_in_executor(None, self.ledger.stop)
        await self.follower.stop()
        sequence, hash_ = self.ledger.head
        where = ("everything is in the journal" if left == 0 else
                 f"{left} groups are in the tail only (full disk): the next start finds them")
        self.say(f"stopped: {where}, head {sequence}:{hash_}")
        return 0

    def _signal(self, number: int) -> None:
        if self.stop_asked.is_set():
            self.say(f"{signal.Signals(number).name} again: open calls are cut")
            self.handle.ask_stop(2)
            self.follower.kill()
        self.stop_asked.set()

    def _hot(self, checkout: CheckoutServer) -> None:
        """The hot thread. Its unexpected end is the end of the process: memory may be ahead of what was answered."""
        reason = "it returned without being asked to"
        try:
            checkout.run()
        except BaseException as error:  # the thread's entry: whatever it is, nothing may go on without the hot thread
            reason = f"{type(error).__name__}: {error}"
        else:
            if self.stopping:
                self.loop.call_soon_threadsafe(self.hot_ended.set)
                return
        print(f"daybook: the hot thread ended: {reason}. The process ends; a restart recovers.", file=sys.stderr, flush=True)
        os._exit(EXIT_BROKEN)

    async def _watch(self) -> None:
        """One line when the space gate or the clock alarm changes."""
        before: dict[str, Any] = {}
        while True:
            stats = self.handle.stats()
            now = {"gate": bool(stats["gate"]), "clock": bool(stats["clock_stepped"] or stats["clock_gap"])}
            if now["gate"] != before.get("gate", False):
                self.say("the disk is nearly full: writes are refused (JOURNAL_FULL), reads go on" if now["gate"]
                         else "there is room again: writes are taken")
            if now["clock"] != before.get("clock", False):
                self.say("the clock jumped ahead: expiries stand still until it is right again or a start with --accept-time"
                         if now["clock"] else "the clock is right again: expiries go on")
            before = now
            await asyncio.sleep(WATCH_INTERVAL_S)
