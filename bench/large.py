"""A data directory of many members, made through a real service by batches; copies of it, and the services that run on them.

Making takes minutes at ten million members, so a directory may be kept and used again (`beside.json` in it says what it is), and whoever
measures works on a copy of it. Not for measuring. Used by bench/beside.py.
"""

from __future__ import annotations

import datetime
import json
import mmap
import os
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import _load
from bench.load import drive
from bench.measure import figures
from bench.rows import settle_disk
from bench.service import ANY_PORTS, Follower, Service, ServiceFailed
from ledger import limits
from ledger.journal import Journal

BATCH_CONNECTIONS = 8
DAY_S = 86_400
YEAR_BACK_DAYS = 300  # the oldest lot: it must not expire while somebody measures
START_S_MAX = 1800  # a replay of everything, on a slow disk
CLOCK_STEP_S = 0.005


class Clock:
    """The time of a service that does not live now, moving on as the machine's does; a file that the service maps. `set` moves it on."""

    def __init__(self, path: Path, now_us: int) -> None:
        self.path = path
        self._ahead_us = now_us - time.time_ns() // 1000
        path.write_bytes(struct.pack("<q", now_us))
        with path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), 8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    @property
    def ahead_s(self) -> float:
        """How far it is ahead of the machine's clock."""
        return self._ahead_us / 1e6

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self._ahead_us

    def set(self, now_us: int) -> None:
        self._ahead_us = now_us - time.time_ns() // 1000

    def _run(self) -> None:
        while not self._ended.wait(CLOCK_STEP_S):
            struct.pack_into("=q", self._file, 0, self.now_us())  # one aligned word

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._file.close()


class LargeLedger:
    """The directory. Make it with `make` or find it with `open`; measure on what `copied` gives.

    recent: (from, to), seconds since 1970: when the last receipts were bought that every member has; one to two days before it was made.
    """

    def __init__(self, folder: Path, members: int, lots: int, recent: tuple[int, int]) -> None:
        self.folder, self.members, self.lots, self.recent = folder, members, lots, recent
        self.data = folder / "data"
        self.ids_max = min(limits.IDS_MAX_DEFAULT, max(1_000_000, 2 * members))
        self._chain: tuple[int, _load.Chain] | None = None

    # --- making it --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path) -> LargeLedger | None:
        """The one that was kept there; None: there is none."""
        try:
            about = json.loads((folder / "beside.json").read_text())
        except FileNotFoundError:
            return None
        return cls(folder, about["members"], about["lots"], tuple(about["recent"]))

    @classmethod
    def make(cls, folder: Path, members: int, lots: int, console: Console) -> LargeLedger:
        """Each member with a card, a phone and `lots` lots; with a snapshot and an index. Errors: ServiceFailed."""
        now = int(time.time())
        ledger = cls(folder, members, lots, (now - 2 * DAY_S, now - DAY_S))
        folder.mkdir(parents=True, exist_ok=True)
        apart = YEAR_BACK_DAYS // lots
        with ledger.service() as service:
            for number in range(lots + 1):
                back = (lots - max(1, number)) * apart * DAY_S + (0 if number else DAY_S)
                times = tuple(moment - back for moment in ledger.recent)
                ledger.post(service, console, "enrolling" if number == 0 else f"earning, lot {number} of {lots}", enroll=number == 0,
                            earn=number > 0, identifiers=2, times=times)
            found = service.metrics()
        ledger.settle(console)
        about = {"members": members, "lots": lots, "recent": ledger.recent,
                 "found": {name: found[f"ledger_{name}"] for name in ("members", "identifiers", "lots", "journal_sequence")}}
        (folder / "beside.json").write_text(json.dumps(about) + "\n")
        return ledger

    def post(self, service: Service, console: Console, what: str, *, ahead_s: float = 0.0, count: int | None = None, **how: Any) -> None:
        """Prepare members in batches, as `how` says (`_load.Client.prepare`). Errors: ServiceFailed when one command is refused."""
        count = self.members if count is None else count
        batch = min(limits.BATCH_COMMANDS_MAX, count)
        client = _load.Client("127.0.0.1", service.ports["checkout"], connections=BATCH_CONNECTIONS, in_flight=1,
                              chain=self.chain(service.now_s), seed=1)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(what, total=count)
            drive(client, lambda: client.prepare(0, count, batch=batch, ahead_s=ahead_s, **how),
                  lambda: progress.update(task, completed=min(count, client.progress()["completed"] * batch)))
        found = figures(client.result())
        done = found["entries"] or {"count": 0, "refused": 0, "per_second": 0.0}
        if client.progress()["completed"] < client.progress()["todo"] and not found["total"]["errors"]:
            raise KeyboardInterrupt
        if done["count"] != count or done["refused"] or found["total"]["errors"]:
            raise ServiceFailed(f"{what}: {done['count']:,} of {count:,} done, {done['refused']:,} refused; {found['total']['codes']} "
                                f"{found['first_messages']}")
        console.print(f"[dim]{what}: {count:,} in {found['measured_s']:.1f} s ({done['per_second']:,.0f}/s)[/]")

    def settle(self, console: Console) -> None:
        """Let a follower read everything and write its snapshot, without the service. Errors: ServiceFailed."""
        begun, end = time.monotonic(), self.head()
        with self.follower() as follower:
            while (found := follower.metrics())["ledger_index_sequence"] < end or found["ledger_follower_sequence"] < end:
                if follower.process.poll() is not None:
                    raise ServiceFailed(f"the follower ended:\n{follower.log.read_text().strip()}")
                time.sleep(0.1)
        console.print(f"[dim]followed, indexed, snapshot written in {time.monotonic() - begun:.1f} s[/]")

    @contextmanager
    def copied(self, folder: Path, console: Console) -> Iterator[LargeLedger]:
        """A copy to work on, so that every row begins with the same ledger; removed at the end. Files that never change are linked."""
        copy = LargeLedger(folder, self.members, self.lots, self.recent)
        begun = time.monotonic()
        try:
            shutil.copytree(self.data, copy.data, copy_function=link_or_copy)
            os.sync()  # or the disk would be busy with it for half a minute to come
            copied_s = time.monotonic() - begun
            console.print(f"[dim]copied in {copied_s:.1f} s, written by the disk {settle_disk(copy.data.parent):.1f} s later[/]")
            yield copy
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()  # the same: disks are told of freed blocks, too

    # --- running on it ----------------------------------------------------------------------------------------------

    def head(self) -> int:
        """Last sequence in LMDB. Errors: ledger.journal.JournalError."""
        journal = Journal(self.data)
        try:
            return journal.drained().sequence
        finally:
            journal.env.close()

    def chain(self, now_s: float) -> _load.Chain:
        """The made-up chain on the business day of that time."""
        today = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
        day = today.year * 10_000 + today.month * 100 + today.day
        if self._chain is None or self._chain[0] != day:
            self._chain = day, _load.Chain(members=self.members, skew=0.9, seed=1, currency="USD", business_day=day)
        return self._chain[1]

    @contextmanager
    def service(self, *, ids_max: int | None = None, moving: bool = False) -> Iterator[LargeService]:
        """A service on it. moving: with a clock that can be moved on. Errors: ServiceFailed."""
        clock = Clock(self.folder / "clock", time.time_ns() // 1000) if moving else None
        arguments = ["--members-max", str(self.members + max(1000, self.members // 10)), "--ids-max", str(ids_max or self.ids_max),
                     "--accept-time"]
        if clock is not None:
            arguments += ["--clock-file", str(clock.path)]
        try:
            service = LargeService(self.data, ANY_PORTS, *arguments, start_s=START_S_MAX)
            service.clock = clock
            try:
                service.wait()
                yield service
            finally:
                status = service.stop()
        finally:
            if clock is not None:
                clock.close()
        if status:
            raise ServiceFailed(f"the service ended with status {status}:\n{service.log.read_text()[-2000:]}")

    @contextmanager
    def follower(self, *arguments: str) -> Iterator[Follower]:
        """A follower on it, beside a service or alone. Errors: ServiceFailed."""
        follower = Follower(self.data, "--members-max", str(self.members + max(1000, self.members // 10)), "--ids-max", str(self.ids_max),
                            *arguments, start_s=START_S_MAX)
        try:
            follower.wait()
            yield follower
        finally:
            status = follower.stop()
        if status:
            raise ServiceFailed(f"the follower ended with status {status}:\n{follower.log.read_text()[-2000:]}")


def link_or_copy(source: str, target: str) -> str:
    """For copytree: snapshots and index files are written once and then only read or removed."""
    if Path(source).parent.name in ("snapshots", "index"):
        try:
            os.link(source, target)
            return target
        except OSError:
            pass  # another file system
    return shutil.copy2(source, target)


class LargeService(Service):
    """A service with, perhaps, a clock of its own."""

    clock: Clock | None = None

    @property
    def ahead_s(self) -> float:
        """How far its time is ahead of the machine's clock."""
        return 0.0 if self.clock is None else self.clock.ahead_s

    @property
    def now_s(self) -> float:
        return time.time() + self.ahead_s
