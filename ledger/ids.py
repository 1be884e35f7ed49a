"""The directory of runs (DATA/ids) as a whole: make it, look at it, make it again from the journal.

`ledger.journal` is imported where it is used: the service calls make() and must not load a second LMDB library.
Not for what a run is (ledger/_ids.pyx) and not for writing runs while the service runs (ledger/_engine.pyx). Called by ledger/engine.py at
start and by server/cli_ids.py.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ledger import limits
from ledger._ids import IdsBuilder, IdsFile, IdsRefused

__all__ = ["Checked", "IdsRefused", "InUse", "check", "make", "rebuild"]

_FIRST_PAGES_BYTES = 8192  # LMDB's two meta pages: a data.mdb that is shorter would be taken for a new one


class InUse(Exception):
    """A service runs on the directory."""


class Checked(NamedTuple):
    """One run: its description, and what is wrong with it (None: nothing)."""

    run: dict[str, Any]
    fault: str | None


def make(data: Path, directory: bytes) -> None:
    """DATA/ids, empty, where there is none: a new directory, or one of a time before there were runs.

    It gets its name when it is complete. Errors: IdsRefused (one that is there is cut off), OSError.
    """
    ids = data / "ids"
    if not ids.exists():
        _put_in_place(data, _make_new(data, directory))
        return
    file = ids / "data.mdb"
    if not file.exists() or file.stat().st_size < _FIRST_PAGES_BYTES:
        raise IdsRefused(f"the ids of earlier requests {file} are missing or cut off: `daybook ids {data} --rebuild` makes them again from "
                         "the journal")


def check(data: Path) -> Iterator[Checked]:
    """Every run of a directory that no service runs on, read whole, and whether the journal has the group that it names.

    Errors: IdsRefused, InUse, journal.JournalError.
    """
    from ledger import journal

    directory = journal.read_format(data)
    with _locked(data):
        file = IdsFile(str(data / "ids"), directory)
        try:
            with journal.Journal(data) as opened:
                drained = opened.drained().sequence
                for run in file.runs():
                    fault = file.check(run["number"])
                    # What is beyond LMDB is in the tail alone: the next start looks there.
                    if fault is None and run["head"] is not None and run["head"][0] <= drained:
                        sequence, group_hash = run["head"]
                        group = opened.group_of(sequence)
                        if group is None or (group.last_sequence, group.hash) != (sequence, group_hash):
                            fault = (f"run {run['number']} of the ids of earlier requests (ids/data.mdb) is of another history: the "
                                     f"journal has another entry {sequence}. `daybook ids {data} --rebuild` makes all runs again from it")
                    yield Checked(run, fault)
        finally:
            file.close()


def rebuild(data: Path, *, ids_max: int = limits.IDS_MAX_DEFAULT, progress: Callable[[int, int], None] | None = None) -> int:
    """Make all runs again from the journal, and put them in place of what is there. Returns how many there are.

    ids_max: as the service has it: it gives the size of a run. progress(done, total): entries of the journal.
    Errors: IdsRefused, InUse, journal.JournalError; the old runs are then still in place.
    """
    from ledger import journal

    directory = journal.read_format(data)
    with _locked(data):
        with journal.Journal(data) as opened:
            total = opened.drained().sequence
        making = _make_new(data, directory)
        file = IdsFile(str(making), directory)
        try:
            builder = IdsBuilder(file, ids_max)
            for group in journal.scan(data):
                builder.feed(group.record)
                if progress is not None:
                    progress(builder.sequence, total)
            builder.finish()
            runs = len(file.runs())
        except ValueError as error:
            raise IdsRefused(f"the journal cannot be read on: {error}; `daybook verify {data}` tells more") from None
        finally:
            file.close()
        _put_in_place(data, making)
    return runs


def _make_new(data: Path, directory: bytes) -> Path:
    making = data / "ids.new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o750)
    IdsFile(str(making), directory).close()
    _sync(making)
    return making


def _put_in_place(data: Path, making: Path) -> None:
    ids, old = data / "ids", data / "ids.old"
    shutil.rmtree(old, ignore_errors=True)
    if ids.exists():
        ids.rename(old)
    making.rename(ids)
    _sync(data)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """The directory's lock. Errors: InUse, OSError."""
    fd = os.open(data / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUse(f"a service runs on {data}: stop it first") from None
        yield
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
