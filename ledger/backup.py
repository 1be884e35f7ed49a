"""Back-ups of a journal: files of group records beside a manifest, taken while the service runs, added to by the next run, read again.

The bytes are docs/journal-format.md, "Back-up". Works in another process than the service. Not for bringing one back (ledger/restore.py),
not for judging the state that its entries lead to (ledger/verify.py), and it never touches identity.key. Called by server/cli_backup.py.

Why a scan of groups and not a copy of LMDB's file: every hash and the chain are checked on the way, each file is written once and never
changed (so that it may go to any store, and its sum stays), the next run copies only what is new, and no long read transaction pins
the pages of a running service.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ledger import limits
from ledger.journal import (
    GROUP_HEADER,
    GROUP_MAGIC,
    NO_HASH,
    Damage,
    Group,
    Journal,
    JournalError,
    NotReadable,
    Tail,
    check_link,
    read_group,
)

FORMAT = "daybook back-up 1"
MANIFEST = "MANIFEST.json"
NOTE = ("Copies of a ledger's journal. `daybook verify` checks them, `daybook restore` makes a data directory of them. "
        "The identity key is not among them: it is kept apart.")
FILE_NAME = re.compile(r"groups-\d{20}\.dbg")
READ_BYTES = 8 << 20  # files are read in pieces of this size; above GROUP_BYTES_MAX and a header
Progress = Callable[[int, int], None]
"""progress(done, total): sequences."""


@dataclass(frozen=True, slots=True)
class BackUpFile:
    """One file of the manifest: whole groups, back to back. Hashes are hex, times us since 1970."""

    name: str
    bytes: int
    sha256: str  # of the whole file, as sha256sum prints it
    groups: int
    first_sequence: int
    last_sequence: int
    last_group: int  # first sequence of the last group
    previous_hash: str  # of the group before the first; zeros before sequence 1
    last_hash: str
    first_time_us: int
    last_time_us: int


class BackUp:
    """A back-up as its manifest says; nothing is written. `sequence` and `hash` are its head.

    Errors: NotReadable, Damage (the manifest).
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.file = self.path / MANIFEST
        self.directory, self.files = _read_manifest(self.file)

    def check_files(self, until_sequence: int | None = None) -> None:
        """That every file (or those with sequences up to until_sequence) is there and has its size. Errors: Damage."""
        for row in self.files:
            if until_sequence is not None and row.first_sequence > until_sequence:
                return
            have = (self.path / row.name).stat().st_size if (self.path / row.name).exists() else -1
            if have != row.bytes:
                raise Damage(str(self.path / row.name), "the file is missing" if have < 0 else
                             f"it has {have} bytes, the manifest says {row.bytes}")

    @property
    def sequence(self) -> int:
        return self.files[-1].last_sequence

    @property
    def hash(self) -> bytes:
        return bytes.fromhex(self.files[-1].last_hash)

    @property
    def head(self) -> str:
        return f"{self.sequence}:{self.files[-1].last_hash}"

    @property
    def time_us(self) -> int:
        return self.files[-1].last_time_us

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.files)

    def batches(self) -> Iterator[tuple[str, list[tuple[int, memoryview]]]]:
        """The path of a file, and a list of (first sequence as the record says, record): all groups in order, unchecked.

        A file is done before the next one begins. Errors: Damage (a record's framing, or a file's sum when all of it was read).
        """
        for row in self.files:
            path = self.path / row.name
            whole = hashlib.sha256()
            rest, expected = b"", row.first_sequence
            with path.open("rb") as file:
                while (piece := file.read(READ_BYTES)) or rest:
                    whole.update(piece)
                    buffer = memoryview(rest + piece)
                    records, used = _split(buffer, f"{path}, group {expected}", not piece)
                    if records:
                        yield str(path), records
                        last = records[-1][1]
                        expected = int.from_bytes(last[16:24], "little") + int.from_bytes(last[40:44], "little")
                    rest = bytes(buffer[used:])
            if whole.hexdigest() != row.sha256:
                raise Damage(str(path), "its SHA-256 is not the one in the manifest")

    def groups(self) -> Iterator[Group]:
        """All groups in order, each with its hash and its place in the chain checked. Errors: Damage, which says which group."""
        last_sequence, last_hash = 0, NO_HASH
        for path, records in self.batches():
            for first, record in records:
                where = f"{path}, group {last_sequence + 1}"
                group = read_group(bytes(record), where)
                if group.directory != self.directory:
                    raise Damage(where, f"it belongs to directory {group.directory.hex()}, the manifest says {self.directory.hex()}")
                assert first == group.first_sequence
                check_link(last_sequence, last_hash, group, where)
                last_sequence, last_hash = group.last_sequence, group.hash
                yield group
        if (last_sequence, last_hash) != (self.sequence, self.hash):
            raise Damage(str(self.file), f"it says head {self.head}, the files end with {last_sequence}:{last_hash.hex()}")

    def last_records(self, count: int) -> list[bytes]:
        """The record of the last group, unchecked; `count` as Journal.last_records has it, one is enough here."""
        row = self.files[-1]
        with (self.path / row.name).open("rb") as file:
            while count and (head := file.read(GROUP_HEADER.size)):
                size = _record_bytes(head)
                if int.from_bytes(head[16:24], "little") >= row.last_group or size > GROUP_HEADER.size + limits.GROUP_BYTES_MAX:
                    return [head + file.read(size - GROUP_HEADER.size)]
                file.seek(size - GROUP_HEADER.size, os.SEEK_CUR)
        return []


def is_back_up(path: Path) -> bool:
    """Whether a directory holds a back-up rather than a ledger."""
    return (Path(path) / MANIFEST).exists()


def _record_bytes(record: bytes | memoryview) -> int:
    return GROUP_HEADER.size + int.from_bytes(record[44:48], "little")


def _split(buffer: memoryview, where: str, ended: bool) -> tuple[list[tuple[int, memoryview]], int]:
    """The whole records at the start of a buffer, and how many bytes they take. What comes before a fault is handed on first.

    `ended`: the file has no more. Errors: Damage.
    """
    records: list[tuple[int, memoryview]] = []
    at = 0
    while len(buffer) - at >= GROUP_HEADER.size:
        size = _record_bytes(buffer[at:at + GROUP_HEADER.size])
        if buffer[at:at + 4] != GROUP_MAGIC or size > GROUP_HEADER.size + limits.GROUP_BYTES_MAX:
            if records:
                return records, at
            raise Damage(where, "no group begins here: the file was changed")
        if size > len(buffer) - at:
            break
        records.append((int.from_bytes(buffer[at + 16:at + 24], "little"), buffer[at:at + size]))
        at += size
    if ended and not records:
        raise Damage(where, "the file ends within the group")
    return records, at


# --- the manifest -------------------------------------------------------------------------------------------------

def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> tuple[bytes, list[BackUpFile]]:
    """Directory id and files. Errors: NotReadable, Damage."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise NotReadable(f"{path.parent} is not a back-up: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotReadable(f"{path} cannot be read: {error}") from None
    try:
        content = json.loads(text)
        checksum = content.pop("checksum")
        if content["format"] != FORMAT:
            raise NotReadable(f"{path} says {content['format']!r}: this version reads {FORMAT!r}")
        if checksum != _checksum(content):
            raise Damage(str(path), "its checksum does not fit: it was changed")
        names = {field.name for field in fields(BackUpFile)}
        rows = [BackUpFile(**{key: value for key, value in row.items() if key in names}) for row in content["files"]]
        directory = bytes.fromhex(content["directory"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damage(str(path), "it is no manifest of a back-up: it was cut or changed") from None
    sequence, hash_ = 0, NO_HASH.hex()
    for row in rows:
        if FILE_NAME.fullmatch(row.name) is None or row.first_sequence != sequence + 1 or row.previous_hash != hash_:
            raise Damage(str(path), f"file {row.name} does not follow the one before")
        sequence, hash_ = row.last_sequence, row.last_hash
    if not rows:
        raise Damage(str(path), "it names no files")
    return directory, rows


def _write_manifest(path: Path, directory: bytes, files: list[BackUpFile]) -> None:
    """Replace the manifest: the old one or the new one is there, never half of one."""
    last = files[-1]
    content = {
        "format": FORMAT, "note": NOTE, "directory": directory.hex(), "head": f"{last.last_sequence}:{last.last_hash}",
        "time": utc_text(last.last_time_us), "entries": last.last_sequence, "groups": sum(row.groups for row in files),
        "bytes": sum(row.bytes for row in files), "files": [asdict(row) for row in files],
    }
    content["checksum"] = _checksum(content)
    new = path / f"{MANIFEST}.new"
    with new.open("w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path / MANIFEST)
    _sync_directory(path)


def utc_text(time_us: int) -> str:
    """A time as people and `--until` write it: 2026-11-22T09:30:00.000000Z."""
    seconds, us = divmod(time_us, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{us:06d}Z"


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- taking one ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Taken:
    """What a run of back_up did."""

    path: Path
    head: str
    time_us: int
    entries: int  # in all
    new_entries: int
    new_bytes: int
    files: int  # in all
    tail_groups: int  # groups that stood only in the tail; none of a running service
    running: bool  # a service ran: what it has not drained yet is for the next run


class _Pace:
    """Keeps a long copy from taking the disk from the service: small flushes, and no more bytes a second than asked."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self.bytes = 0
        self.begun_ns = time.perf_counter_ns()

    def wait(self, size: int) -> None:
        if self.bytes_per_s:
            self.bytes += size
            due_ns = self.bytes * 1_000_000_000 // self.bytes_per_s
            early_ns = due_ns - (time.perf_counter_ns() - self.begun_ns)
            if early_ns > 0:
                time.sleep(early_ns / 1_000_000_000)


class _Writer:
    """Writes groups into new files of a back-up; each gets its name and its row in the manifest when it is complete."""

    def __init__(self, path: Path, directory: bytes, files: list[BackUpFile], file_bytes: int, pace: _Pace) -> None:
        self.path, self.directory, self.files, self.file_bytes, self.pace = path, directory, files, file_bytes, pace
        self.sequence = files[-1].last_sequence if files else 0
        self.hash = bytes.fromhex(files[-1].last_hash) if files else NO_HASH
        self.bytes = 0  # written by this run
        self._fd = -1

    def add(self, group: Group, where: str) -> None:
        """The next group of the chain. Errors: Damage at `where`."""
        if group.directory != self.directory:
            raise Damage(where, f"it belongs to directory {group.directory.hex()}, FORMAT says {self.directory.hex()}")
        check_link(self.sequence, self.hash, group, where)
        if self._fd < 0:
            self._begin(group)
        view = memoryview(group.record)
        while view:
            view = view[os.write(self._fd, view):]
        self._sum.update(group.record)
        self._size += len(group.record)
        self.bytes += len(group.record)
        self._groups += 1
        self._last = group
        self.sequence, self.hash = group.last_sequence, group.hash
        if self._size - self._flushed >= limits.BACKUP_FLUSH_BYTES:
            self._flush()
        if self._size >= self.file_bytes:
            self.finish()

    def _begin(self, group: Group) -> None:
        self._name = f"groups-{group.first_sequence:020d}.dbg"
        self._fd = os.open(self.path / f"{self._name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self._sum = hashlib.sha256()
        self._size = self._flushed = self._groups = 0
        self._first, self._before = group, self.hash

    def _flush(self) -> None:
        """Little by little: a large flush at the end would stand before the service's own for its whole length."""
        os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED)
        self.pace.wait(self._size - self._flushed)
        self._flushed = self._size

    def finish(self) -> None:
        """The open file, if there is one, becomes part of the back-up."""
        if self._fd < 0:
            return
        self._flush()
        os.fsync(self._fd)
        self.close()
        (self.path / f"{self._name}.new").rename(self.path / self._name)
        _sync_directory(self.path)
        self.files.append(BackUpFile(
            self._name, self._size, self._sum.hexdigest(), self._groups, self._first.first_sequence, self._last.last_sequence,
            self._last.first_sequence, self._before.hex(), self._last.hash.hex(), self._first.time_us, self._last.time_us))
        _write_manifest(self.path, self.directory, self.files)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def back_up(data: Path, to: Path, *, tail: Path | None = None, bytes_per_s: int = limits.BACKUP_BYTES_PER_S,
            file_bytes: int = limits.BACKUP_FILE_BYTES, progress: Progress = lambda done, total: None) -> Taken:
    """Copy the groups of `data` into `to`: all of them, or those behind what a back-up there has already.

    A run that is cut short leaves a back-up of what its finished files hold; the next one goes on from there. Beside a running service
    the copy ends with what was in LMDB when it began; of a stopped one also the tail's groups are taken.
    Units: bytes_per_s: at most, 0: no bound. Errors: NotReadable, Damage (of the journal, with the group), OSError (of the target).
    """
    data, to = Path(data), Path(to)
    with Journal(data) as journal:
        had = _check_target(to, journal)
        with _locked(to):
            files = _clean(to, had)
            writer = _Writer(to, journal.directory, files, file_bytes, _Pace(bytes_per_s))
            begun = writer.sequence
            try:
                _copy(journal, writer, progress)
                from_tail, running = _copy_tail(journal, writer, data, Path(tail or data), progress)
                if writer.sequence == 0:
                    raise NotReadable(f"{data} holds no entries yet: there is nothing to back up")
                writer.finish()
            finally:
                writer.close()
    last = files[-1]
    return Taken(to, f"{last.last_sequence}:{last.last_hash}", last.last_time_us, last.last_sequence, last.last_sequence - begun,
                 writer.bytes, len(files), from_tail, running)


def _check_target(to: Path, journal: Journal) -> BackUp | None:
    """The back-up that is there already, or None for a new place; looks only. Errors: NotReadable, Damage."""
    if not is_back_up(to):
        strangers = [] if not to.exists() else sorted(
            path.name for path in to.iterdir() if path.name not in ("LOCK", "lost+found") and not _ours(path.name))
        if strangers:
            raise NotReadable(f"{to} is not empty and no back-up ({', '.join(strangers[:5])}): name a new directory, or one of an earlier "
                              "run")
        return None
    had = BackUp(to)
    had.check_files()
    if had.directory != journal.directory:
        raise NotReadable(f"{to} is a back-up of directory {had.directory.hex()}, this one is {journal.directory.hex()}: name another "
                          "place")
    group = next((bytes(batch[0][1]) for batch in journal.batches(had.files[-1].last_group - 1, groups_max=1)
                  if batch[0][0] == had.files[-1].last_group), b"")
    if group[96:128] != had.hash:
        ends = journal.drained().sequence
        why = (f"it ends with entry {ends}, the back-up with {had.sequence}: the directory was set back or restored to an earlier moment"
               if ends < had.sequence else
               f"entry {had.sequence} has another hash there: the directory has another history since (it was restored to an earlier "
               "moment)")
        raise NotReadable(f"{to} cannot be gone on with: {why}. Keep this back-up, and begin a new one in another place")
    return had


def _ours(name: str) -> bool:
    return FILE_NAME.fullmatch(name.removesuffix(".new")) is not None or name == f"{MANIFEST}.new"


@contextmanager
def _locked(to: Path) -> Iterator[None]:
    """The target, made if need be, for this run alone. Errors: NotReadable."""
    try:
        to.mkdir(mode=0o750, parents=True, exist_ok=True)
        _sync_directory(to.absolute().parent)
        fd = os.open(to / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise NotReadable(f"{to} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise NotReadable(f"{to} is in use by another back-up: wait for it, or name another place") from None
    finally:
        os.close(fd)


def _clean(to: Path, had: BackUp | None) -> list[BackUpFile]:
    """Remove what an interrupted run left beside the manifest; returns the manifest's files."""
    files = list(had.files) if had is not None else []
    known = {row.name for row in files}
    for path in to.iterdir():
        if _ours(path.name) and path.name not in known:
            path.unlink()
    return files


def _copy(journal: Journal, writer: _Writer, progress: Progress) -> None:
    """What is in LMDB now, not what a running service adds meanwhile, or the copy might never end."""
    target = journal.drained().sequence
    for batch in journal.batches(writer.sequence, groups_max=1024, bytes_max=limits.BACKUP_FLUSH_BYTES):
        for key, value in batch:
            if key > target:
                return
            where = f"{journal.file}, group {key}"
            writer.add(read_group(bytes(value), where), where)
        progress(writer.sequence, max(target, writer.sequence))
    if writer.sequence < target:
        raise Damage(str(journal.file), f"meta/drained says sequence {target}, the groups end with {writer.sequence}")


def _copy_tail(journal: Journal, writer: _Writer, data: Path, tail: Path, progress: Progress) -> tuple[int, bool]:
    """The groups that stand only in the tail, when no service runs. Returns how many, and whether one runs.

    A running service's last groups may be in the tail and not on the disk yet: they could vanish and come again as others. Once the
    service has ended and the tail was flushed here, they are what the next start finds. The lock is only looked at, not kept: a back-up
    never stands in the way of a start.
    """
    if _is_running(data):
        return 0, True
    _copy(journal, writer, progress)  # it may have drained more and ended since
    drained = journal.drained()
    with Tail(tail, journal.directory) as ring:
        groups = list(ring.follow(drained.sequence, drained.hash, drained.position))
        end = groups[-1].last_sequence if groups else drained.sequence
        beyond = next((found for found in ring.all_groups() if found[1].first_sequence > end), None)
        if _is_running(data):
            return 0, True
        if beyond is not None:
            raise Damage(str(ring.path), f"the chain ends with sequence {end}, but a valid group {beyond[1].first_sequence} stands at "
                                         f"position {beyond[0]}: acknowledged groups between them are damaged")
        ring.flush()
    for group in groups:
        writer.add(group, f"{tail / 'tail'}, group {group.first_sequence}")
    return len(groups), False


def _is_running(data: Path) -> bool:
    """Whether a service holds the directory's lock, or this cannot be told."""
    try:
        lock = os.open(data / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


__all__ = ["BackUp", "BackUpFile", "JournalError", "Taken", "back_up", "is_back_up", "utc_text"]
