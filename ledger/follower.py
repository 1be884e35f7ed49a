"""The follower: another process that replays the journal as it grows, to be read, to write snapshots and to feed indexes.

Reads LMDB only, never the tail: what it shows is durable and ordered, and at most one drain (DRAIN_INTERVAL_MS and a commit) behind the
service. It applies with the service's own compiled apply, so a DIGEST entry that differs is found here too. Not for ports and processes
(server/follow.py) and not for judging a whole directory (ledger/verify.py). A follower that ends, lags or is wrong never harms the service.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ledger import limits, snapshot
from ledger._follower import FollowerCore
from ledger._snapshot import SnapshotUnusable, TablesTooSmall
from ledger.journal import Journal
from ledger.verify import APPLIES, FAULTS

Observer = Callable[[int, bytes], None]
"""observe(first_sequence, record): one group, after it was applied, in order, on the thread that steps."""
Say = Callable[[str], None]

LOCK_POLL_S = 1 / 20
STEP_BYTES = 1 << 20  # applied under the lock at a time: a reader waits for a few milliseconds


class FollowerBroken(Exception):
    """The follower cannot go on: the journal is damaged, or a table is too small. `str()` is one clear sentence."""


class Lag(NamedTuple):
    """How far behind the journal in LMDB."""

    entries: int  # in LMDB and not applied
    us: int  # between the last drain that is applied whole and the last drain


class Follower:
    """One follower of one data directory, on one thread. `close` gives everything back.

    `lock`: held while the state changes; whoever reads `core` from another thread takes it.
    Errors: FollowerBroken, ledger.journal.JournalError (not a directory, damage), MemoryError.
    """

    def __init__(self, data: Path, *, members_max: int | None = None, ids_max: int | None = None,
                 snapshot_entries: int = limits.SNAPSHOT_ENTRIES, snapshot_interval_s: int = limits.SNAPSHOT_INTERVAL_S,
                 snapshot_pause_s: int = limits.SNAPSHOT_PAUSE_S, lock_wait_s: int = 0, say: Say = lambda text: None) -> None:
        """members_max, ids_max: None: as the newest snapshot has them, else the defaults. lock_wait_s: for a former follower that ends."""
        self.data = Path(data).absolute()
        self.lock = threading.Lock()
        self.observers: list[Observer] = []
        self._say = say
        self._snapshot_entries = snapshot_entries
        self._snapshot_interval_us = snapshot_interval_s * 1_000_000
        self._snapshot_pause_us = snapshot_pause_s * 1_000_000
        self._seen_us = 0  # time of the last drain that was applied whole
        self._lock_fd = take_lock(self.data, lock_wait_s)
        try:
            self.journal = Journal(self.data)
            try:
                self.core = self._begin(members_max, ids_max)
            except BaseException:
                self.journal.env.close()
                raise
        except BaseException:
            os.close(self._lock_fd)
            raise
        self.begun_at = self.core.last_sequence
        self._snapshot_sequence = self.begun_at  # of the newest snapshot
        self._snapshot_us = _watch_us()  # when it was begun, or this follower
        self._writing: _Writing | None = None
        self._written = {"snapshots": 0, "snapshot_failures": 0, "snapshot_bytes": 0, "snapshot_us": 0}

    def _begin(self, members_max: int | None, ids_max: int | None) -> FollowerCore:
        """The state of the newest snapshot that can be used, or the empty one."""
        for found in snapshot.usable(self.data, self.journal.directory, self._say):
            head = found.head
            core = self._open(members_max or head["members_max"], ids_max or head["ids_max"])
            if self.journal.group_end(found.sequence) != found.head_hash:
                snapshot.passed_over(found.path, f"the journal has no such group that ends with entry {found.sequence}", self._say)
                continue
            try:
                core.load(found)
            except SnapshotUnusable as why:
                snapshot.passed_over(found.path, why, self._say)
            except TablesTooSmall as error:
                raise FollowerBroken(str(error)) from None
            else:
                return core
        return self._open(members_max or limits.MEMBERS_MAX_DEFAULT, ids_max or limits.IDS_MAX_DEFAULT)

    def _open(self, members_max: int, ids_max: int) -> FollowerCore:
        reservations_max = min(limits.RESERVATIONS_MAX, max(limits.RESERVATIONS_MAX_LEAST, members_max))
        return FollowerCore(self.journal.directory, _read_key(self.data), members_max, ids_max, reservations_max)

    def close(self) -> None:
        """Give everything back; a snapshot that is being written is given up."""
        self._give_up()
        self.journal.env.close()
        os.close(self._lock_fd)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- following ----------------------------------------------------------------------------------------------

    def observe(self, observer: Observer) -> None:
        """From now on tell `observer` of every group. What was applied before (see `sequence`) it reads from `journal` itself."""
        self.observers.append(observer)

    def step(self) -> int:
        """Apply what is new in LMDB, up to about STEP_BYTES; returns the entries. 0: caught up."""
        before = self.core.last_sequence
        drained = self.journal.drained()
        if drained.sequence <= before:
            if drained.sequence == before:
                self._seen_us = drained.time_us
            return 0
        for batch in self.journal.batches(before, bytes_max=STEP_BYTES):
            self._feed(batch)
            for observer in self.observers:
                for key, record in batch:
                    observer(key, bytes(record))
            break  # one list at a time: its records are valid until the next is asked for
        after = self.core.last_sequence
        if after == before:
            raise FollowerBroken(f"{self.journal.file}: meta/drained says sequence {drained.sequence}, the groups end with {before}")
        if after >= drained.sequence:
            self._seen_us = drained.time_us
        return after - before

    def _feed(self, batch: list[tuple[int, Any]]) -> None:
        with self.lock:
            fault = self.core.feed(batch)
        if fault is None:
            return
        index, name, sequence, apply_name = fault
        place = f"{self.journal.file}, group {batch[index][0]}"
        if apply_name == "full":
            members, ids, _ = self.core.sizes
            raise FollowerBroken(f"{place}, entry {sequence}: a table is too small for the journal (room for {members} members, {ids} "
                                 "request ids): follow with a larger --members-max or --ids-max")
        if name == "apply":
            raise FollowerBroken(f"{place}, entry {sequence}: the entry cannot be applied: {APPLIES[apply_name]}")
        raise FollowerBroken(f"{place}: {FAULTS[name]}")

    # --- snapshots ----------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Begin a snapshot when one is due, and take in one that was written apart. Between steps, on their thread."""
        if self._writing is not None:
            self._take_in(FollowerCore.saved(self._writing.child))
            return
        new = self.core.last_sequence - self._snapshot_sequence
        age_us = _watch_us() - self._snapshot_us
        if new > 0 and (age_us >= self._snapshot_interval_us
                        or (new >= self._snapshot_entries and age_us >= self._snapshot_pause_us)):
            self._write_apart()

    def write_snapshot(self) -> Path | None:
        """Write a snapshot of what is applied, now and at full speed; None: the newest one says the same. Errors: OSError."""
        self._give_up()
        if self.core.last_sequence == self._snapshot_sequence:
            return None
        begun_us = _watch_us()
        fd, new = snapshot.new_file(self.data)
        try:
            size = self.core.save(fd)
            path = snapshot.finish(self.data, new, self.core.last_sequence)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        self._count(begun_us, self.core.last_sequence, size)
        return path

    def finish(self) -> None:
        """Before a stop: apply what is in LMDB by now, and write a last snapshot where that is worth its time."""
        end = self.journal.drained().sequence
        while self.core.last_sequence < end and self.step():
            pass
        # Writing a member takes about as long as replaying an entry.
        if (self.core.last_sequence - self._snapshot_sequence) * limits.SNAPSHOT_STOP_SHARE > self.core.stats()["members"]:
            try:
                self.write_snapshot()
            except OSError as error:
                self._failed(error.errno or 0)

    def _write_apart(self) -> None:
        self._snapshot_us = _watch_us()
        try:
            fd, new = snapshot.new_file(self.data)
        except OSError as error:
            self._failed(error.errno or 0)
            return
        try:
            child = self.core.save_apart(fd, limits.SNAPSHOT_BYTES_PER_S, self._lock_fd)
        except OSError as error:
            new.unlink(missing_ok=True)
            self._failed(error.errno or 0)
        else:
            self._writing = _Writing(child, new, self.core.last_sequence)
        finally:
            os.close(fd)

    def _take_in(self, code: int | None) -> None:
        """A child that has ended, if it has."""
        writing = self._writing
        if code is None or writing is None:
            return
        self._writing = None
        if code == 0:
            try:
                size = writing.new.stat().st_size
                snapshot.finish(self.data, writing.new, writing.sequence)
            except OSError as error:
                code = error.errno or 0
            else:
                self._count(self._snapshot_us, writing.sequence, size)
                return
        writing.new.unlink(missing_ok=True)
        self._failed(code)

    def _give_up(self) -> None:
        """End a child that writes; its file goes."""
        if self._writing is not None:
            os.kill(self._writing.child, signal.SIGKILL)
            FollowerCore.saved(self._writing.child, True)
            self._writing.new.unlink(missing_ok=True)
            self._writing = None

    def _count(self, begun_us: int, sequence: int, size: int) -> None:
        self._snapshot_sequence = sequence
        self._snapshot_us = begun_us
        self._written["snapshots"] += 1
        self._written["snapshot_bytes"] = size
        self._written["snapshot_us"] = _watch_us() - begun_us

    def _failed(self, code: int) -> None:
        self._written["snapshot_failures"] += 1
        self._say(f"a snapshot could not be written: {os.strerror(code)}; it is tried again later, starts replay more until then")

    # --- what it says -------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """Last entry applied."""
        return self.core.last_sequence

    @property
    def digest(self) -> bytes:
        """16 bytes, as in a DIGEST entry."""
        return self.core.digest

    def lag(self) -> Lag:
        """How far behind LMDB, now. From any thread."""
        drained = self.journal.drained()
        entries = max(0, drained.sequence - self.core.last_sequence)
        return Lag(entries, max(0, drained.time_us - self._seen_us) if entries else 0)

    def stats(self) -> dict[str, int]:
        """Plain numbers for metrics. From any thread."""
        lag = self.lag()
        return {**self.core.stats(), "lag_entries": lag.entries, "lag_us": lag.us, **self._written,
                "snapshot_sequence": self._snapshot_sequence, "snapshot_writing": int(self._writing is not None)}


class _Writing(NamedTuple):
    """A snapshot that a child process writes."""

    child: int
    new: Path
    sequence: int


def _watch_us() -> int:
    return time.perf_counter_ns() // 1000


def take_lock(data: Path, wait_s: int) -> int:
    """One follower a directory. Errors: FollowerBroken."""
    try:
        fd = os.open(data / "FOLLOW.LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise FollowerBroken(f"{data / 'FOLLOW.LOCK'} cannot be opened: {error.strerror}") from None
    until = _watch_us() + wait_s * 1_000_000
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError:
            if _watch_us() >= until:
                os.close(fd)
                raise FollowerBroken(f"{data} has a follower already: `daybook serve` starts one unless it is told --no-follow") from None
            time.sleep(LOCK_POLL_S)


def _read_key(data: Path) -> bytes | None:
    """The identity key, if this user may read it; without it members are found by their number alone."""
    try:
        key = bytes.fromhex((data / "identity.key").read_text().strip())
    except (OSError, ValueError):
        return None
    return key if len(key) == 16 else None
