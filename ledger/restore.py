"""Brings a back-up back: a new data directory that a service starts on, whole or cut at an earlier moment.

The prefix keeps its bytes and hashes, so a head that was noted before the cut still holds; behind it a RESTORE entry begins a new epoch,
so that nothing behind it can be taken for what the directory held before. Not for taking back-ups (ledger/backup.py) and not for judging
the state (ledger/verify.py; the first start replays it). Called by server/cli_backup.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ledger import limits
from ledger._verifier import Verifier
from ledger.backup import BackUp, utc_text
from ledger.engine import StartRefused, create_tail, read_key, sync_directory, sync_way, write_file
from ledger.journal import (
    ENTRY_HEADER,
    FORMAT_LINE,
    GROUP_HEADER,
    GROUP_MAGIC,
    GROUP_VERSION,
    Damage,
    Group,
    JournalError,
    NewJournal,
    NotReadable,
)

MARK = "RESTORING"  # beside it everything in the target is this module's until FORMAT has its name
KIND_PROGRAM, KIND_RESTORE = 20, 22
Progress = Callable[[str, int, int], None]
"""progress(what, done, total): what is "restore" (entries copied) or "tail" (bytes written)."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore made. `through` is the last entry of the back-up that was taken, `head` the RESTORE entry behind it."""

    data: Path
    directory: str
    through: str  # SEQ:HASH
    through_time_us: int
    head: str  # SEQ:HASH
    epoch: int
    left: int  # entries of the back-up behind the cut


def restore(path: Path, to: Path, key_file: Path, *, tail: Path | None = None, tail_bytes: int = limits.TAIL_BYTES_DEFAULT,
            until_sequence: int | None = None, until_us: int | None = None,
            progress: Progress = lambda what, done, total: None) -> Restored:
    """Make the data directory `to` from the back-up `path`, with the identity key from `key_file`.

    The cut is the end of the last group that holds nothing behind `until_sequence`, or was sealed at `until_us` (us since 1970) or before.
    FORMAT gets its name last: a target that was left half-way is refused by a start, and begun anew by the next restore.
    Errors: NotReadable, Damage (of the back-up, with the group), StartRefused (key, target), OSError.
    """
    back_up = BackUp(path)
    key = read_key(Path(key_file))
    to = Path(to).absolute()
    tail_path = (Path(tail).absolute() if tail is not None else to) / "tail"
    if until_sequence is not None and not 1 <= until_sequence <= back_up.sequence:
        raise NotReadable(f"--until-sequence must be 1..{back_up.sequence}, what the back-up {path} holds, was {until_sequence}")
    back_up.check_files(until_sequence)
    _check_target(to, tail_path)
    lock = _begin(to)
    try:
        _remove_remains(to, tail_path)
        last = _copy(back_up, to, key, until_sequence, until_us, progress)
        mark = _restore_group(last)
        create_tail(tail_path, tail_bytes, back_up.directory, lambda what, done, total: progress(what, done, total))
        _put(tail_path, mark)
        write_file(to / "identity.key", key.hex().encode() + b"\n", 0o600)
        write_file(to / "FORMAT.restored", f"{FORMAT_LINE}\n{back_up.directory.hex()}\n".encode(), 0o640)
        sync_directory(to / "journal")
        sync_directory(to)
        (to / "FORMAT.restored").rename(to / "FORMAT")
        sync_directory(to)  # before the mark goes: with neither of them the directory would be nobody's
        (to / MARK).unlink()
        sync_directory(to)
    finally:
        os.close(lock)
    return Restored(to, back_up.directory.hex(), f"{last.last_sequence}:{last.hash.hex()}", last.time_us,
                    f"{last.last_sequence + 1}:{mark[96:128].hex()}", last.epoch + 1, back_up.sequence - last.last_sequence)


def _check_target(to: Path, tail_path: Path) -> None:
    """That the target is new, empty, or what an interrupted restore left; looks only. Errors: StartRefused."""
    if to.exists() and not to.is_dir():
        raise StartRefused(f"{to} is a file: name a new directory")
    names = {entry.name for entry in to.iterdir()} if to.exists() else set()
    ours = MARK in names and "FORMAT" not in names
    if not ours and names - {"LOCK", "lost+found"}:
        raise StartRefused(f"{to} is not empty ({', '.join(sorted(names)[:5])}): a restore never writes over anything; name a new "
                           "directory")
    if tail_path.parent != to and not tail_path.parent.is_dir():
        raise StartRefused(f"the tail's directory {tail_path.parent} does not exist: make it first")
    if not ours and tail_path.exists():
        raise StartRefused(f"the tail {tail_path} exists already: name another directory for the tail")


def _begin(to: Path) -> int:
    """The target with its mark, locked. Returns the lock's descriptor. Errors: StartRefused."""
    try:
        to.mkdir(mode=0o750, parents=True, exist_ok=True)
        sync_way(to)
        fd = os.open(to / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StartRefused(f"{to} cannot be written: {error.strerror}; name a directory that this user may write") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StartRefused(f"{to} is in use by another process: stop it, or name another directory") from None
    write_file(to / MARK, b"daybook restore works here; when it has ended, this file is gone\n", 0o640)
    sync_directory(to)
    return fd


def _remove_remains(to: Path, tail_path: Path) -> None:
    for path in (to / "journal" / "data.mdb", to / "journal" / "lock.mdb", tail_path, tail_path.with_name("tail.new"), to / "identity.key",
                 to / "FORMAT.restored"):
        path.unlink(missing_ok=True)


def _copy(back_up: BackUp, to: Path, key: bytes, until_sequence: int | None, until_us: int | None, progress: Progress) -> Group:
    """The groups up to the cut into a new LMDB file. Returns the last one."""
    total = until_sequence or back_up.sequence
    last: Group | None = None
    with NewJournal(to / "journal", back_up.directory) as journal:
        for group in back_up.groups():
            if last is None:
                _check_key(group, key)
            if (until_sequence is not None and group.last_sequence > until_sequence) or (until_us is not None and group.time_us > until_us):
                if last is None:
                    raise NotReadable(f"the back-up begins with entries 1..{group.last_sequence}, written together at "
                                      f"{utc_text(group.time_us)}: nothing of it lies before that")
                break
            journal.put(group)
            last = group
            progress("restore", min(group.last_sequence, total), total)
            if last.last_sequence == until_sequence:
                break  # whatever is behind need not even be sound
        assert last is not None  # a manifest has at least one file, and a file one group
        journal.finish(last)
    return last


def _check_key(first: Group, key: bytes) -> None:
    """Whether this is the key that the journal was begun with, by its first entry. Errors: StartRefused, Damage."""
    fault = Verifier(first.directory, 1, 1, 1, key).feed([(first.first_sequence, first.record)])
    if fault is not None and fault[3] == "key":
        raise StartRefused("the key is not the one that this journal was begun with (its first entry says so): name the right file "
                           "with --key")
    if fault is not None and fault[3] != "full":
        raise Damage(f"group {first.first_sequence}", f"the journal does not begin with a programme that loads ({fault[1]}, {fault[3]})")


def _restore_group(last: Group) -> bytes:
    """The group that begins the next epoch: one RESTORE entry, at the time of the group before."""
    *_, (_, entry) = last
    _, kind, _, _, _, _, program, _ = ENTRY_HEADER.unpack_from(entry)
    if kind == KIND_PROGRAM:
        program += 1  # such an entry names the programme before it
    body = ENTRY_HEADER.pack(ENTRY_HEADER.size, KIND_RESTORE, 0, 0, last.time_us, 0, program, bytes(16))
    head = GROUP_HEADER.pack(GROUP_MAGIC, GROUP_VERSION, 0, last.shard, last.epoch + 1, last.last_sequence + 1, last.last_sequence,
                             last.time_us, 1, len(body), last.directory, last.hash, bytes(32))[:96]
    return head + hashlib.sha256(head + body).digest() + body


def _put(tail_path: Path, group: bytes) -> None:
    """The group at the start of the ring, where meta/drained says that the next one stands."""
    block = limits.TAIL_BLOCK_BYTES
    fd = os.open(tail_path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        padded = group.ljust(-(-len(group) // block) * block, b"\0")
        if os.pwrite(fd, padded, block) != len(padded):
            raise OSError(f"{tail_path} cannot be written")
        os.fsync(fd)
    finally:
        os.close(fd)


def parse_time(text: str) -> int:
    """A time with its zone as us since 1970: 2026-11-22T09:30:00Z, 2026-11-22 10:30+01:00. Errors: ValueError with a clear text."""
    from datetime import UTC, datetime, timedelta

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"a time is like 2026-11-22T09:30:00Z or 2026-11-22T10:30:00+01:00, was {text!r}") from None
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} does not say its zone: add Z for UTC, or an offset such as +01:00")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


__all__ = ["JournalError", "Restored", "StartRefused", "parse_time", "restore"]
