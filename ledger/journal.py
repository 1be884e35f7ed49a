"""The reading side of the journal for other processes: open, scan, follow into the tail, take entries apart.

Written from docs/journal-format.md alone, in plain Python, so that it is a second reader beside the compiled one. Not for the
service itself (one process, one LMDB library: the service writes and reads through ledger/_journal.pyx) and not for
judging a whole directory (ledger/verify.py). Used by verify, back-ups, export and tests. Opens everything read-only, but for NewJournal,
which makes the LMDB file of a restored directory.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify

from ledger import limits
from ledger.published import Broken, read_part, read_published

FORMAT_LINE = "daybook 1"
GROUP_MAGIC = b"DBG1"
GROUP_VERSION = 1
TAIL_MAGIC = b"DAYTAIL1"
TAIL_VERSION = 1
TAIL_HASHED_BYTES = limits.TAIL_BLOCK_BYTES - 32
GROUP_HEADER = struct.Struct("<4sHHIIQQqII16s32s32s")
GROUP_HASHED_BYTES = 96
ENTRY_HEADER = struct.Struct("<IBBHqII16s")
DRAINED = struct.Struct("<Q32sQq")
NO_HASH = bytes(32)
REVIEW_DAYS = 0x1000000  # added to the available day of a lot whose points are under review
LOT_SLIDES = 0x8000  # beside the funder of a lot whose points live by inactivity
WALK_TRIES = 3  # a meta page half written is gone at the next look

KINDS = {1: "earn", 2: "burn", 3: "reserve", 4: "capture", 5: "release", 6: "commit", 7: "enroll", 8: "expire_lots",
         9: "expire_reservation", 10: "adjust", 11: "link", 12: "unlink", 13: "set_segments", 14: "set_attributes",
         15: "set_rung", 16: "decide_review", 17: "answer_challenge", 18: "change_blocks", 19: "return",
         20: "program", 21: "digest", 22: "restore", 23: "program_part"}
ACCOUNTS = {1: "member", 2: "issued", 3: "redeemed", 4: "expired", 5: "adjusted"}
ORIGIN_REGION = 7  # of ORIGIN: its 4 bytes are the fingerprint of the store's region
STATES = {1: "active", 2: "captured", 3: "released", 4: "expired"}
IDENTIFIERS = {2: "card", 3: "phone", 4: "email", 5: "app"}
CONTEXT = {1: "sent_time_us", 2: "business_time_us", 3: "wallet", 4: "points", 5: "ttl_us", 6: "reservation_id", 7: "business_day",
           8: "total_minor", 9: "payment", 10: "identifiers", 11: "named", 12: "identifier", 13: "expiry_day", 14: "quote",
           15: "only_as_quoted", 16: "rung", 17: "lasts", 18: "case", 19: "verdict",
           128: "store", 129: "till", 130: "number", 131: "operator", 132: "reason"}
REPEATED = {11}  # tags that may come more than once: their values are a list


class JournalError(Exception):
    """Something about a data directory that a reader cannot get past. `str()` is one clear sentence."""


class NotReadable(JournalError):
    """The directory is not a ledger of a known format, or the system refuses to read it."""


class Damage(JournalError):
    """The bytes are not what the format promises. `where` says which file and place."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


@dataclass(frozen=True, slots=True)
class Group:
    """One group record, its header taken apart. `entries` holds the bytes of all entries."""

    first_sequence: int
    drained_sequence: int
    time_us: int
    count: int
    shard: int
    epoch: int
    directory: bytes
    previous_hash: bytes
    hash: bytes
    entries: bytes
    record: bytes

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.count - 1

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Sequence and bytes of each entry. Errors: Damage when the sizes do not add up."""
        at = 0
        for sequence in range(self.first_sequence, self.first_sequence + self.count):
            size = int.from_bytes(self.entries[at:at + 4], "little")
            if size < ENTRY_HEADER.size or at + size > len(self.entries):
                raise Damage(f"sequence {sequence}", f"the entry says it has {size} bytes, {len(self.entries) - at} are left in its group")
            yield sequence, self.entries[at:at + size]
            at += size
        if at != len(self.entries):
            raise Damage(f"sequence {self.last_sequence}", f"{len(self.entries) - at} bytes follow the last entry of its group")


def read_group(record: bytes, where: str, *, exact: bool = True) -> Group:
    """Take a record apart and check its own hash (not its place in the chain).

    `exact`: the record ends where the buffer ends; otherwise padding may follow. Errors: Damage at `where`.
    """
    if len(record) < GROUP_HEADER.size:
        raise Damage(where, f"{len(record)} bytes are too few for a group")
    (magic, version, flags, shard, epoch, first, drained, time_us, count, size, directory, previous,
     hash_) = GROUP_HEADER.unpack_from(record)
    if magic != GROUP_MAGIC:
        raise Damage(where, f"a group begins with {GROUP_MAGIC!r}, found {magic!r}")
    if version != GROUP_VERSION or flags != 0:
        raise Damage(where, f"group version {version} with flags {flags}: this reader knows version {GROUP_VERSION} without flags")
    end = GROUP_HEADER.size + size
    if not 1 <= count <= limits.GROUP_ENTRIES_MAX or size < count * ENTRY_HEADER.size or size > limits.GROUP_BYTES_MAX:
        raise Damage(where, f"{count} entries in {size} bytes are impossible")
    if end > len(record) or (exact and end != len(record)):
        raise Damage(where, f"the group says it has {end} bytes, {len(record)} are there")
    entries = record[GROUP_HEADER.size:end]
    if hashlib.sha256(record[:GROUP_HASHED_BYTES] + entries).digest() != hash_:
        raise Damage(where, f"the hash of group {first} does not fit its bytes")
    return Group(first, drained, time_us, count, shard, epoch, directory, previous, hash_, entries, record[:end])


def read_format(data: Path) -> bytes:
    """The directory id (16 bytes) from FORMAT. Errors: NotReadable."""
    path = Path(data) / "FORMAT"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise NotReadable(f"{data} is not a ledger's data directory: it has no file FORMAT") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotReadable(f"{path} cannot be read: {error}") from None
    if not lines or lines[0] != FORMAT_LINE:
        raise NotReadable(f"{path} says {lines[0] if lines else ''!r}: this version reads {FORMAT_LINE!r}")
    try:
        directory = bytes.fromhex(lines[1])
    except (IndexError, ValueError):
        directory = b""
    if len(directory) != 16:
        raise Damage(str(path), "its second line must be the directory id, 32 hex digits")
    return directory


@dataclass(frozen=True, slots=True)
class Drained:
    """What `meta/drained` says: how far LMDB has got, and where in the tail the next group begins."""

    sequence: int
    hash: bytes
    position: int
    time_us: int


class Journal:
    """The LMDB side, opened read-only. Use as a context manager. Errors: NotReadable, Damage."""

    def __init__(self, data: Path) -> None:
        self.path = Path(data) / "journal"
        self.file = self.path / "data.mdb"
        self.directory = read_format(data)
        self.env = self._open()
        try:
            self.env.reader_check()  # slots of killed readers would pin old pages
            # Truncation first: reading a mapped page past the file's end would kill this process.
            pages = self.env.info()["last_pgno"] + 1
            need, have = pages * self.env.stat()["psize"], self.file.stat().st_size
            if have < need:
                raise Damage(str(self.file), f"the file was cut: it has {have} bytes, LMDB uses {need}")
            self.groups = self.env.open_db(b"groups", create=False, integerkey=True)
            self.meta = self.env.open_db(b"meta", create=False)
            with self.env.begin() as transaction:
                directory = transaction.get(b"directory", db=self.meta)
        except lmdb.NotFoundError:
            self.env.close()
            raise Damage(str(self.file), "the databases `groups` and `meta` are missing") from None
        except lmdb.Error as error:
            self.env.close()
            raise Damage(str(self.file), f"LMDB cannot read it: {error}") from None
        except BaseException:
            self.env.close()
            raise
        if directory != self.directory:
            self.env.close()
            raise Damage(str(self.file), f"it belongs to directory {directory.hex() if directory else 'unknown'}, "
                                         f"FORMAT says {self.directory.hex()}")

    def _open(self) -> lmdb.Environment:
        if not self.file.exists():
            raise NotReadable(f"{self.file} does not exist: the directory was never served")
        options: dict[str, Any] = {"map_size": limits.JOURNAL_MAP_BYTES, "max_dbs": 4, "readonly": True, "create": False}
        try:
            # With LMDB's own lock table where it can be written: a running service then keeps the pages we look at.
            can_lock = os.access(self.path, os.W_OK) if not (lock := self.path / "lock.mdb").exists() else os.access(lock, os.W_OK)
            return lmdb.open(str(self.path), lock=can_lock, **options)
        except lmdb.Error as error:
            if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)):
                raise Damage(str(self.file), f"LMDB cannot open it: {error}") from None
            raise NotReadable(f"{self.file} cannot be opened: {error}") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()

    @contextmanager
    def _transaction(self, database: Any) -> Iterator[lmdb.Transaction]:
        """A short read transaction whose LMDB errors are damage of the file."""
        try:
            with self.env.begin(db=database, buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise Damage(str(self.file), f"LMDB cannot read it: {error}") from None

    def walk(self) -> None:
        """Every page of the file, as LMDB's own format has it: reachable once or free, framed, in order. Not what the records say.

        A read transaction keeps the pages of the moment, also beside a running service; only the meta page may be caught half
        written, so a finding must show again. Errors: Damage.
        """
        problems: list[str] = []
        for _ in range(WALK_TRIES):
            with self._transaction(self.meta):
                try:
                    problems = lmdb.verify.verify(str(self.file))
                except lmdb.verify.VerifyError as error:
                    problems = [str(error)]
            if not problems:
                return
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise Damage(str(self.file), f"its pages are damaged: {problems[0]}{more}")

    def drained(self) -> Drained:
        """How far the drain has got, as of now; zeros before the first drain."""
        with self._transaction(self.meta) as transaction:
            value = transaction.get(b"drained")
            value = None if value is None else bytes(value)
        if value is None:
            return Drained(0, NO_HASH, 0, 0)
        if len(value) != DRAINED.size:
            raise Damage(str(self.file), f"meta/drained has {len(value)} bytes instead of {DRAINED.size}")
        return Drained(*DRAINED.unpack(value))

    def head(self) -> tuple[int, bytes]:
        """First sequence and record of the last group; (0, b"") when there is none."""
        with self._transaction(self.groups) as transaction, transaction.cursor() as cursor:
            if not cursor.last():
                return 0, b""
            return _key(cursor.key()), bytes(cursor.value())

    def group_end(self, sequence: int) -> bytes | None:
        """Hash of the group that ends with `sequence`, unchecked; None: no group ends there."""
        with self._transaction(self.groups) as transaction, transaction.cursor() as cursor:
            if not (cursor.prev() if cursor.set_range((sequence + 1).to_bytes(8, "little")) else cursor.last()):
                return None
            record = bytes(cursor.value()[:GROUP_HEADER.size])
        if len(record) < GROUP_HEADER.size:
            return None
        header = GROUP_HEADER.unpack(record)
        first, count, hash_ = header[5], header[8], header[12]
        return hash_ if first + count - 1 == sequence else None

    def last_records(self, count: int) -> list[bytes]:
        """The last groups' records, the newest first, unchecked."""
        with self._transaction(self.groups) as transaction, transaction.cursor() as cursor:
            return [bytes(value) for value, _ in zip(cursor.iterprev(keys=False), range(count), strict=False)] if cursor.last() else []

    def batches(self, after: int = 0, *, groups_max: int = 4096, bytes_max: int = 8 << 20) -> Iterator[list[tuple[int, memoryview]]]:
        """Key and record of the groups that begin behind sequence `after`, in lists, uncopied.

        The records of a list are valid until the next one is asked for: each list has its own short read transaction, so
        that a long scan never pins the pages of a running service.
        Units: at most about bytes_max bytes a list.
        """
        while True:
            with self._transaction(self.groups) as transaction, transaction.cursor() as cursor:
                if not cursor.set_range((after + 1).to_bytes(8, "little")):
                    return
                batch: list[tuple[int, memoryview]] = []
                size = 0
                for key, value in cursor.iternext():
                    batch.append((_key(key), value))
                    size += len(value)
                    if len(batch) >= groups_max or size >= bytes_max:
                        break
                after = batch[-1][0]
                yield batch

    def group_of(self, sequence: int) -> GroupHead | None:
        """The head of the group that holds this sequence, unchecked; None when LMDB does not hold it (yet)."""
        with self._transaction(self.groups) as transaction, transaction.cursor() as cursor:
            found = _seek(cursor, sequence)
            return None if found is None else found[0]

    def entries(self, places: Iterable[tuple[int, int, int]]) -> list[bytes]:
        """The entries at these places, in one read transaction.

        places: (sequence, a sequence not behind it, where that one begins in its group's record; 0, 0: not known). Close places in
        falling or rising order are cheapest. Errors: Damage when an entry is not there.
        """
        entries = []
        with self._transaction(self.groups) as transaction, transaction.cursor() as cursor:
            head: GroupHead | None = None
            record = memoryview(b"")
            for sequence, known, at in places:
                if head is None or not head.first_sequence <= sequence <= head.last_sequence:
                    found = _seek(cursor, sequence)
                    if found is None:
                        raise Damage(str(self.file), f"sequence {sequence} is missing")
                    head, record = found
                if not head.first_sequence <= known <= sequence:
                    known, at = head.first_sequence, GROUP_HEADER.size
                while True:
                    size = int.from_bytes(record[at:at + 4], "little")
                    if size < ENTRY_HEADER.size or at + size > len(record):
                        raise Damage(f"{self.file}, group {head.first_sequence}", f"the entries before sequence {sequence} are broken")
                    if known == sequence:
                        break
                    known, at = known + 1, at + size
                entries.append(bytes(record[at:at + size]))
        return entries


@dataclass(frozen=True, slots=True)
class GroupHead:
    """What the first bytes of a group record say, unchecked."""

    first_sequence: int
    last_sequence: int
    time_us: int
    hash: bytes


def _seek(cursor: lmdb.Cursor, sequence: int) -> tuple[GroupHead, memoryview] | None:
    """The group that holds this sequence, its record uncopied; None when there is none."""
    behind = cursor.set_range(sequence.to_bytes(8, "little"))
    if not (behind and _key(cursor.key()) == sequence) and not (cursor.prev() if behind else cursor.last()):
        return None
    record = cursor.value()
    if len(record) < GROUP_HEADER.size:
        return None
    first, time_us, count, hash_ = (GROUP_HEADER.unpack_from(record)[i] for i in (5, 7, 8, 12))
    if not first <= sequence < first + count:
        return None
    return GroupHead(first, first + count - 1, time_us, hash_), record


class NewJournal:
    """Makes the LMDB file of a new data directory, for a restore: put groups in rising order, then finish. A context manager.

    Errors: OSError (a full disk, or whatever the system says).
    """

    def __init__(self, folder: Path, directory: bytes) -> None:
        self.path = Path(folder)
        self.path.mkdir(mode=0o750, exist_ok=True)
        with self._system_errors():
            # Flushed once, at the end: until FORMAT has its name, nobody believes this file.
            self.env = lmdb.open(str(self.path), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4, sync=False, mode=0o640)
            self.groups = self.env.open_db(b"groups", integerkey=True)
            self.meta = self.env.open_db(b"meta")
            with self.env.begin(write=True) as transaction:
                transaction.put(b"directory", directory, db=self.meta)
        self._waiting: list[Group] = []
        self._bytes = 0

    @contextmanager
    def _system_errors(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise OSError(f"{self.path / 'data.mdb'} cannot be written: {error}") from None

    def __enter__(self) -> NewJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()
        (self.path / "lock.mdb").unlink(missing_ok=True)

    def put(self, group: Group) -> None:
        self._waiting.append(group)
        self._bytes += len(group.record)
        if self._bytes >= limits.RESTORE_COMMIT_BYTES:
            self._commit()

    def _commit(self) -> None:
        with self._system_errors(), self.env.begin(write=True) as transaction:
            for group in self._waiting:
                transaction.put(group.first_sequence.to_bytes(8, "little"), group.record, db=self.groups, append=True)
        self._waiting.clear()
        self._bytes = 0

    def finish(self, last: Group) -> None:
        """Everything on disk, with `last` as what was drained; the next group stands at the tail's position 0."""
        self._commit()
        with self._system_errors():
            with self.env.begin(write=True) as transaction:
                transaction.put(b"drained", DRAINED.pack(last.last_sequence, last.hash, 0, last.time_us), db=self.meta)
            self.env.sync(True)


def _key(key: bytes) -> int:
    return int.from_bytes(key, "little")


def scan(data: Path, *, after: int = 0) -> Iterator[Group]:
    """The groups in LMDB that begin behind sequence `after`, each with its own hash checked, in order.

    Errors: NotReadable, Damage (a record that is broken, out of place or breaks the chain).
    """
    with Journal(data) as journal:
        previous: Group | None = None
        for batch in journal.batches(after):
            for key, value in batch:
                group = read_group(bytes(value), f"{journal.file}, group {key}")
                if previous is not None:
                    check_link(previous.last_sequence, previous.hash, group, f"{journal.file}, group {key}")
                elif after == 0:
                    check_link(0, NO_HASH, group, f"{journal.file}, group {key}")
                yield group
                previous = group


def check_link(last_sequence: int, last_hash: bytes, group: Group, where: str) -> None:
    """That `group` is the next one behind (last_sequence, last_hash). Errors: Damage."""
    if group.first_sequence != last_sequence + 1:
        raise Damage(where, f"the group begins with sequence {group.first_sequence}, expected {last_sequence + 1}")
    if group.previous_hash != last_hash:
        raise Damage(where, f"the chain is broken between sequence {last_sequence} and {group.first_sequence}")


class Tail:
    """The write-ahead tail, opened read-only; a running service may write to it meanwhile.

    Errors: NotReadable, Damage (its first block).
    """

    def __init__(self, folder: Path, directory: bytes) -> None:
        self.path = Path(folder) / "tail"
        self.directory = directory
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotReadable(f"{self.path} does not exist: say where the tail is with --tail DIR") from None
        except OSError as error:
            raise NotReadable(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            self._check_first_block()
        except BaseException:
            self.close()
            raise
        self.ring_bytes = os.fstat(self._fd).st_size - limits.TAIL_BLOCK_BYTES

    def _check_first_block(self) -> None:
        block = os.pread(self._fd, limits.TAIL_BLOCK_BYTES, 0)
        where = f"{self.path}, first block"
        if len(block) < limits.TAIL_BLOCK_BYTES or hashlib.sha256(block[:TAIL_HASHED_BYTES]).digest() != block[TAIL_HASHED_BYTES:]:
            raise Damage(where, "its checksum does not fit")
        magic, version, block_bytes, file_bytes, directory = struct.unpack_from("<8sIIQ16s", block)
        if magic != TAIL_MAGIC or version != TAIL_VERSION or block_bytes != limits.TAIL_BLOCK_BYTES:
            raise Damage(where, f"found {magic!r} version {version} with blocks of {block_bytes} bytes")
        if directory != self.directory:
            raise Damage(where, f"it belongs to directory {directory.hex()}, FORMAT says {self.directory.hex()}")
        have = os.fstat(self._fd).st_size
        if have != file_bytes:
            raise Damage(where, f"the file has {have} bytes, it was made with {file_bytes}")

    def flush(self) -> None:
        """What was written before a crash may still be in memory only. Not for beside a running service, whose flushes it would delay."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_at(self, position: int) -> Group | None:
        """The valid group of this directory that begins at `position` of the ring, or None."""
        if not 0 <= position < self.ring_bytes:
            return None
        head = os.pread(self._fd, limits.TAIL_BLOCK_BYTES, limits.TAIL_BLOCK_BYTES + position)
        if len(head) < GROUP_HEADER.size or head[:4] != GROUP_MAGIC or head[48:64] != self.directory:
            return None
        size = GROUP_HEADER.size + int.from_bytes(head[44:48], "little")
        if size > len(head):
            if size > limits.GROUP_BYTES_MAX + GROUP_HEADER.size or position + size > self.ring_bytes:
                return None
            head = os.pread(self._fd, size, limits.TAIL_BLOCK_BYTES + position)
        try:
            return read_group(head, "", exact=False)
        except Damage:
            return None

    def follow(self, sequence: int, hash_: bytes, position: int) -> Iterator[Group]:
        """The groups behind (sequence, hash_), from `position` on, until the chain ends.

        Source: docs/journal-format.md, "The tail": the next group stands at the position, failing that at the ring's start.
        """
        while True:
            for at in (position, 0) if position else (0,):
                group = self.read_at(at)
                if group is not None and group.first_sequence == sequence + 1 and group.previous_hash == hash_:
                    break
            else:
                return
            yield group
            sequence, hash_ = group.last_sequence, group.hash
            position = at + -(-len(group.record) // limits.TAIL_BLOCK_BYTES) * limits.TAIL_BLOCK_BYTES

    def all_groups(self) -> Iterator[tuple[int, Group]]:
        """Every valid group of this directory in the ring with its position, old turns of the ring included."""
        blocks = 256  # read a megabyte at a time and look at each block's first bytes
        for start in range(0, self.ring_bytes, blocks * limits.TAIL_BLOCK_BYTES):
            chunk = os.pread(self._fd, blocks * limits.TAIL_BLOCK_BYTES, limits.TAIL_BLOCK_BYTES + start)
            for at in range(0, len(chunk), limits.TAIL_BLOCK_BYTES):
                if chunk[at:at + 4] == GROUP_MAGIC:
                    group = self.read_at(start + at)
                    if group is not None:
                        yield start + at, group


def tail_groups(data: Path, *, tail: Path | None = None) -> list[Group]:
    """The groups that stand only in the tail, as of now: those behind `meta/drained`. Errors: NotReadable, Damage."""
    with Journal(data) as journal, Tail(tail or data, journal.directory) as ring:
        drained = journal.drained()
        return list(ring.follow(drained.sequence, drained.hash, drained.position))


# --- entries ------------------------------------------------------------------------------------------------------

class _Cursor:
    """Reads the values of a section one after another. Errors: Damage when they run past its end."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def more(self) -> bool:
        return self.at < len(self.data)

    def take(self, size: int) -> bytes:
        value = self.data[self.at:self.at + size]
        if len(value) != size:
            raise Damage(self.where, f"a value of {size} bytes runs past the section's end")
        self.at += size
        return value

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF
        raise Damage(self.where, "a varint has more than 10 bytes")

    def signed(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def key(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def text(self) -> str:
        data = self.take(self.byte())
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise Damage(self.where, f"a text is not UTF-8: {data!r}") from None


def _context(cursor: _Cursor) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while cursor.more():
        tag = cursor.byte()
        name, value = CONTEXT.get(tag, f"tag_{tag}"), cursor.signed() if tag < 128 else cursor.text()
        if tag in REPEATED:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return values


def _rows(cursor: _Cursor, **columns: str) -> list[dict[str, Any]]:
    rows = []
    while cursor.more():
        rows.append({name: getattr(cursor, kind)() for name, kind in columns.items()})
    return rows


def _postings(cursor: _Cursor) -> list[dict[str, Any]]:
    rows = _rows(cursor, account="byte", wallet="varint", points="signed")
    return [{**row, "account": ACCOUNTS.get(row["account"], row["account"])} for row in rows]


def _lots(cursor: _Cursor) -> list[dict[str, Any]]:
    rows = _rows(cursor, wallet="varint", available_day="varint", expiry_day="varint", funder="varint", points="signed", held="signed")
    return [{**row, "funder": row["funder"] & ~LOT_SLIDES, "by_inactivity": bool(row["funder"] & LOT_SLIDES),
             "available_day": row["available_day"] - REVIEW_DAYS * (row["available_day"] >= REVIEW_DAYS),
             "under_review": row["available_day"] >= REVIEW_DAYS} for row in rows]


def _origin(cursor: _Cursor) -> dict[str, Any]:
    offset_s = cursor.signed()
    parts: dict[int, bytes] = {}
    while cursor.more():
        part = cursor.byte()
        parts[part] = cursor.take(4 if part == ORIGIN_REGION else 8)
    return {"offset_s": offset_s, "region": parts.pop(ORIGIN_REGION, None), "parts": parts}


def _given_back(cursor: _Cursor) -> list[dict[str, Any]]:
    rows = []
    while cursor.more():
        row = {"of": cursor.varint(), "time_s": cursor.signed(), "offset_s": cursor.signed(), "earned_points": cursor.varint(),
               "burned_points": cursor.varint(), "reserved_points": cursor.varint(), "total_minor": cursor.varint()}
        parts = cursor.varint()
        rows.append({**row, "parts": {part: cursor.take(8) for part in range(parts.bit_length()) if parts >> part & 1}})
    return rows


def _reservation(cursor: _Cursor) -> dict[str, Any]:
    value = {"id": cursor.varint(), "state": cursor.byte(), "wallet": cursor.varint(), "reserved_points": cursor.signed(),
             "captured_points": cursor.signed(), "expire_time_us": cursor.signed()}
    return {**value, "state": STATES.get(value["state"], value["state"])}


def _identifiers(cursor: _Cursor) -> list[dict[str, Any]]:
    rows = []
    while cursor.more():
        kind = cursor.byte()
        rows.append({"type": IDENTIFIERS.get(kind, kind), "hash": cursor.take(16)})
    return rows


def _receipt(cursor: _Cursor) -> dict[str, Any]:
    value: dict[str, Any] = {"channel": "", "tenders": [], "promo_codes": []}
    while cursor.more():
        tag, text = cursor.byte(), cursor.text()
        if tag == 1:
            value["channel"] = text
        elif tag == 2:
            value["tenders"].append({"name": text, "amount_minor": cursor.varint()})
        elif tag == 3:
            value["promo_codes"].append(text)
        else:
            raise Damage(cursor.where, f"{tag} is no tag of a receipt")
    return value


def _attributes(cursor: _Cursor) -> dict[str, Any]:
    value: dict[str, Any] = {}
    while cursor.more():
        tag = cursor.byte()
        if tag == 1:
            value["birthday"], value["birthday_from"] = cursor.varint(), cursor.signed()
        elif tag == 2:
            value["chosen"] = cursor.varint()
        else:
            raise Damage(cursor.where, f"{tag} is no tag of an attribute")
    return value


SECTIONS: dict[int, tuple[str, Any]] = {
    1: ("context", _context),
    2: ("postings", _postings),
    3: ("lots", _lots),
    4: ("lines", lambda c: _rows(c, sku="text", category="text", quantity_milli="varint", amount_minor="signed")),
    5: ("awards", lambda c: _rows(c, line="varint", rule="varint", wallet="varint", points="signed")),
    6: ("after", lambda c: _rows(c, wallet="varint", posted_points="signed", pending_points="signed", reserved_points="signed")),
    7: ("reservation", _reservation),
    8: ("identifiers", _identifiers),
    9: ("refusal", lambda c: {"a": c.signed(), "b": c.signed()}),
    10: ("image", lambda c: c.take(len(c.data))),
    11: ("source", lambda c: c.take(len(c.data)).decode()),
    12: ("key_check", lambda c: c.take(16)),
    13: ("digest", lambda c: c.take(16)),
    14: ("receipt", _receipt),
    15: ("line_details", lambda c: _rows(c, line="varint", regular_amount_minor="varint", flags="byte")),
    16: ("rules_state", lambda c: {"day": c.signed(), "receipt": c.varint(), "tier_before": c.byte(), "tier": c.byte(),
                                   "tier_until": c.varint(), "tier_before_name": c.text(), "tier_name": c.text()}),
    17: ("opened_day", lambda c: c.signed()),
    18: ("counters", lambda c: {"drop_before": c.signed(),
                                "rows": _rows(c, counter="key", per="byte", window="signed", increment="signed")}),
    19: ("campaigns", lambda c: _rows(c, campaign="key", points="signed", uses="signed")),
    20: ("days", lambda c: {"keep": c.varint(), "rows": _rows(c, day="signed", receipts="signed", spent="signed")}),
    21: ("segments", lambda c: {"add": [c.varint(), c.varint()], "remove": [c.varint(), c.varint()]}),
    22: ("attributes", _attributes),
    23: ("discounts", lambda c: _rows(c, line="varint", amount_minor="varint")),
    24: ("paid", lambda c: _rows(c, line="varint", amount_minor="varint")),
    25: ("variants", lambda c: list(c.take(len(c.data)))),
    26: ("entitlements", lambda c: [row["name"] for row in _rows(c, name="text")]),
    29: ("published", lambda c: read_published(c.take(len(c.data)))),
    30: ("part", lambda c: read_part(c.take(len(c.data)))),
    27: ("notices", lambda c: {"count": c.varint(), "rows": _rows(c, kind="byte", index="varint", text="text")}),
    31: ("origin", _origin),
    32: ("limits", lambda c: {"cut": c.varint(), "above": _rows(c, limit="varint", answer="byte")}),
    34: ("blocks", lambda c: {"version": c.varint(), "rows": [(c.byte(), c.byte(), c.byte(), c.take(8)) for _ in iter(c.more, False)]}),
    33: ("rung", lambda c: {"before": c.byte(), "after": c.byte(), "until_s": c.varint(), "limit": c.varint()}),
    35: ("returned", lambda c: {"earned_by": c.varint(), "paid_by": c.varint(), "missing": _rows(c, wallet="varint", points="varint")}),
    36: ("given_back", _given_back),
    28: ("quote", lambda c: {"program": c.varint(), "business_time_us": c.signed(), "changed": c.byte()}),
}


def read_entry(entry: bytes, *, where: str = "entry") -> dict[str, Any]:
    """Take an entry apart into plain values; only the sections that it has, unknown ones as `section_<type>` bytes.

    Units: as docs/journal-format.md; times of CONTEXT, RESERVATION and QUOTE are made absolute (us since 1970).
    Errors: Damage at `where`.
    """
    if len(entry) < ENTRY_HEADER.size:
        raise Damage(where, f"{len(entry)} bytes are too few for an entry")
    size, kind, flags, status, time_us, member, program, request = ENTRY_HEADER.unpack_from(entry)
    if size != len(entry):
        raise Damage(where, f"the entry says it has {size} bytes, {len(entry)} are there")
    value: dict[str, Any] = {"kind": KINDS.get(kind, kind), "opened": bool(flags & 1), "status": status, "time_us": time_us,
                             "member": member, "program": program, "request": request}
    at, last = ENTRY_HEADER.size, 0
    while at < size:
        if size - at < 4:
            raise Damage(where, "the head of a section is cut")
        number, length = entry[at], int.from_bytes(entry[at + 1:at + 4], "little")
        if number <= last or length > size - at - 4:
            raise Damage(where, f"section {number} with {length} bytes is out of order or runs past the entry's end")
        name, read = SECTIONS.get(number, (f"section_{number}", lambda c: c.take(len(c.data))))
        cursor = _Cursor(entry[at + 4:at + 4 + length], f"{where}, section {name}")
        try:
            value[name] = read(cursor)
        except Broken as error:
            raise Damage(cursor.where, str(error)) from None
        if cursor.more():
            raise Damage(cursor.where, f"{length - cursor.at} bytes are left over")
        at, last = at + 4 + length, number
    for name in ("sent_time_us", "business_time_us"):
        if name in value.get("context", {}):
            value["context"][name] += time_us
    if "reservation" in value:
        value["reservation"]["expire_time_us"] += time_us
    if "quote" in value:
        value["quote"]["business_time_us"] += time_us
    return value
