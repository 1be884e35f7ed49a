"""The follower: another process that replays the journal as it grows, to be read, to write snapshots and to feed indexes.

Reads LMDB only, never the tail: what it shows is durable and ordered, and at most one drain (DRAIN_INTERVAL_MS and a commit) behind the
service. It applies with the service's own compiled apply, so a DIGEST entry that differs is found here too. Not for ports and processes
(server/follow.py) and not for judging a whole directory (ledger/verify.py). A follower that ends, lags or is wrong never harms the service.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ledger import limits
from ledger._follower import FollowerCore
from ledger.journal import Journal
from ledger.verify import APPLIES, FAULTS

Observer = Callable[[int, bytes], None]
"""observe(first_sequence, record): one group, after it was applied, in order, on the thread that steps."""
Say = Callable[[str], None]

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

    def __init__(self, data: Path, *, members_max: int | None = None, ids_max: int | None = None, say: Say = lambda text: None) -> None:
        self.data = Path(data).absolute()
        self.lock = threading.Lock()
        self.observers: list[Observer] = []
        self._say = say
        self._lock_fd = _take_lock(self.data)
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
        self._seen_us = 0  # time of the last drain that was applied whole

    def _begin(self, members_max: int | None, ids_max: int | None) -> FollowerCore:
        members = members_max or limits.MEMBERS_MAX_DEFAULT
        ids = ids_max or limits.IDS_MAX_DEFAULT
        reservations = min(limits.RESERVATIONS_MAX, max(4096, members))
        return FollowerCore(self.journal.directory, _read_key(self.data), members, ids, reservations)

    def close(self) -> None:
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
        return {**self.core.stats(), "lag_entries": lag.entries, "lag_us": lag.us}


def _take_lock(data: Path) -> int:
    """One follower a directory. Errors: FollowerBroken."""
    try:
        fd = os.open(data / "FOLLOW.LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise FollowerBroken(f"{data / 'FOLLOW.LOCK'} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise FollowerBroken(f"{data} has a follower already: `daybook serve` starts one unless it is told --no-follow") from None
    return fd


def _read_key(data: Path) -> bytes | None:
    """The identity key, if this user may read it; without it members are found by their number alone."""
    try:
        key = bytes.fromhex((data / "identity.key").read_text().strip())
    except (OSError, ValueError):
        return None
    return key if len(key) == 16 else None
