"""Indexes of the journal by member, receipt, request id, and store and day: derived, rebuilt from the journal at any time.

An index is a few *segments*, each of consecutive groups. A segment holds per index the sorted rows `key << 32 | sequence - first`
(ledger/_index.pyx); keys of more than 32 bits are hashed, so every hit is confirmed against the entry. Small segments live in
memory, larger ones in files of DATA/index, which are written once, renamed into place and merged when there are several of one size. Each
page of a file has a checksum that is looked at when the page is used. One process writes: the follower or `daybook index` (FOLLOW.LOCK).
Not for what the entries say and not for ports. Used by server/reading.py and server/cli_index.py; the file's bytes: docs/journal-format.md.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ledger import limits
from ledger._index import Collector, Merge, names_of, page_sum, page_sums, receipt_key, request_hash
from ledger.journal import Journal

INDEXES = ("member", "receipt", "request", "store_day")
MEMBER, RECEIPT, REQUEST, STORE_DAY = range(4)

MAGIC = b"DAYINDX1"
VERSION = 1
HEADER = struct.Struct("<8sII16sQQ32sqQQ")  # magic, version, 0, directory, first, last, hash, time, programmes, file's size
PLACES = struct.Struct("<10Q")  # per section: where it begins, how many elements
BLOCK = 4096
HASH_AT = BLOCK - 32
ROW, OFFSET = np.dtype("<u8"), np.dtype("<u4")
PAGE_OFFSETS = BLOCK // 4
STEP_BYTES = 4 << 20  # of groups that one step reads
BUFFER_PAGES = 256
MERGE_MAX = 64  # of ledger/_index.pyx
BACKGROUND_ENTRIES = 2_097_152  # a merge of more waits for the merging thread; a smaller one does not, so that memory stays small
PIECE_BYTES = 4 << 20  # written and flushed at a time beside a service: a flush of gigabytes would hold up its tail
PIECES_PER_S = 16  # of them at most

Say = Callable[[str], None]


class IndexProblem(Exception):
    """The index cannot answer or be written. `str()` is one clear sentence."""


class NotReady(IndexProblem):
    """A part of the index is being built again; ask later."""


class SegmentDamaged(Exception):
    """A file of the index is not what it should be."""


# --- segments ---------------------------------------------------------------------------------------------------------

class MemoryRows:
    """The sorted rows of one index of one segment, in memory."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def position(self, value: int) -> int:
        """How many rows are smaller."""
        return int(np.searchsorted(self.rows, np.uint64(value)))

    def part(self, end: int) -> tuple[int, Any]:
        """Some rows up to `end` (not included, at least 1), and the position of the first of them."""
        start = max(0, end - limits.INDEX_PAGE_ROWS)
        return start, self.rows[start:end]


class FileRows:
    """The same in a file. `fences` is the first row of each page, `checksums` each page's."""

    def __init__(self, path: Path, data: mmap.mmap, at: int, count: int, fences: Any, checksums: Any) -> None:
        self.path, self.data, self.at, self.count, self.fences, self.checksums = path, data, at, count, fences, checksums

    def __len__(self) -> int:
        return self.count

    def page(self, number: int) -> Any:
        """The rows of one page. Errors: SegmentDamaged."""
        start = self.at + number * BLOCK
        size = min(BLOCK, (self.count - number * limits.INDEX_PAGE_ROWS) * 8)
        data = self.data[start:start + size]
        if page_sum(data) != self.checksums[number]:
            raise SegmentDamaged(f"{self.path}: page {start // BLOCK} does not fit its checksum")
        return np.frombuffer(data, ROW)

    def position(self, value: int) -> int:
        page = int(np.searchsorted(self.fences, np.uint64(value), side="right")) - 1
        if page < 0:
            return 0
        return page * limits.INDEX_PAGE_ROWS + int(np.searchsorted(self.page(page), np.uint64(value)))

    def part(self, end: int) -> tuple[int, Any]:
        page = (end - 1) // limits.INDEX_PAGE_ROWS
        start = page * limits.INDEX_PAGE_ROWS
        return start, self.page(page)[:end - start]


@dataclass(eq=False)
class Segment:
    """Consecutive groups, indexed. `offsets`: where each entry whose sequence is a multiple of INDEX_OFFSET_STEP begins in its record."""

    first_sequence: int
    last_sequence: int
    hash: bytes  # of its last group
    time_us: int  # of its last group
    rows: list[Any]  # MemoryRows or FileRows by index
    offsets: Any
    programs: list[int]  # sequences of PROGRAM entries
    path: Path | None = None
    size: int = 0  # bytes, in the file or in memory
    offset_checksums: Any = None
    checked: set[int] = field(default_factory=set)  # pages of the offsets that were looked at

    @property
    def count(self) -> int:
        return self.last_sequence - self.first_sequence + 1

    @property
    def level(self) -> int:
        """Segments of one level are of about the same size: a fourth of the next level's."""
        return (self.count.bit_length() - 1) // (limits.INDEX_FANOUT.bit_length() - 1)

    def descend(self, index: int, key: int, before: int) -> Iterator[int]:
        """Sequences with this key and below `before`, falling. Errors: SegmentDamaged."""
        rows = self.rows[index]
        low = key << 32
        if before <= self.first_sequence or not len(rows):
            return
        end = rows.position(low + min(before - self.first_sequence, 1 << 32))
        while end > 0:
            start, part = rows.part(end)
            floor = int(np.searchsorted(part, np.uint64(low)))
            for row in part[floor:][::-1].tolist():
                yield self.first_sequence + (row & 0xFFFF_FFFF)
            if floor > 0:
                return
            end = start

    def place(self, sequence: int) -> tuple[int, int, int]:
        """For Journal.entries: the sequence, the nearest one before it whose place is known, and that place."""
        step = limits.INDEX_OFFSET_STEP
        known = sequence - sequence % step
        number = known // step - -(-self.first_sequence // step)
        if number < 0:
            return sequence, 0, 0
        if self.path is not None and (page := number // PAGE_OFFSETS) not in self.checked:
            data = self.offsets[page * PAGE_OFFSETS:(page + 1) * PAGE_OFFSETS].tobytes()
            if page_sum(data) != self.offset_checksums[page]:
                raise SegmentDamaged(f"{self.path}: the offsets of page {page} do not fit their checksum")
            self.checked.add(page)
        return sequence, known, int(self.offsets[number])


def take(collector: Collector) -> Segment:
    """What was collected, as a segment in memory."""
    first, last = collector.first_sequence, collector.last_sequence
    *counts, offsets_count, programs_count = collector.counts()
    rows = [np.empty(count, ROW) for count in counts]
    offsets, programs = np.empty(offsets_count, OFFSET), np.empty(programs_count, ROW)
    collector.take(rows, offsets, programs)
    for column in rows:
        column.sort()
    return Segment(first, last, collector.head_hash, collector.time_us, [MemoryRows(column) for column in rows], offsets,
                   programs.tolist(), size=sum(column.nbytes for column in rows) + offsets.nbytes)


def merge_in_memory(parts: list[Segment]) -> Segment:
    """Adjacent segments as one, in memory."""
    rows = []
    for index in range(len(INDEXES)):
        out = np.empty(sum(len(part.rows[index]) for part in parts), ROW)
        merged = _merge(parts, index)
        at = 0
        while at < len(out):
            at += merged.read(out[at:])
        rows.append(MemoryRows(out))
    offsets = np.concatenate([part.offsets for part in parts])
    last = parts[-1]
    return Segment(parts[0].first_sequence, last.last_sequence, last.hash, last.time_us, rows, offsets,
                   [sequence for part in parts for sequence in part.programs],
                   size=sum(len(column) * 8 for column in rows) + offsets.nbytes)


def _merge(parts: list[Segment], index: int) -> Merge:
    """Rows of files are read through a mapping of their own, for reading ahead."""
    sources = []
    for part in parts:
        rows = part.rows[index]
        sources.append(rows.rows if isinstance(rows, MemoryRows) else np.frombuffer(_map(part.path, mmap.MADV_SEQUENTIAL), ROW,
                                                                                  count=rows.count, offset=rows.at))
    return Merge(sources, [part.first_sequence - parts[0].first_sequence for part in parts])


def _map(path: Path, advice: int) -> mmap.mmap:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data.madvise(advice)
    return data


def _sums(data: Any) -> Any:
    """The checksums of an array's pages."""
    sums = np.empty(-(-data.nbytes // BLOCK), OFFSET)
    page_sums(data, BLOCK, sums)
    return sums


def check_pages(segment: Segment) -> None:
    """Every page of a file against its checksum. Errors: SegmentDamaged."""
    if segment.path is None:
        return
    data = _map(segment.path, mmap.MADV_SEQUENTIAL)
    for name, rows in zip(INDEXES, segment.rows, strict=True):
        if not np.array_equal(_sums(np.frombuffer(data, ROW, count=rows.count, offset=rows.at)), rows.checksums):
            raise SegmentDamaged(f"{segment.path}: pages of the index by {name} do not fit their checksums")
    if not np.array_equal(_sums(segment.offsets), segment.offset_checksums):
        raise SegmentDamaged(f"{segment.path}: pages of the offsets do not fit their checksums")


def write_file(folder: Path, directory: bytes, parts: list[Segment], *, gently: bool = False) -> Path:
    """Adjacent segments as one file, in place when this returns. gently: piece by piece, for the service on the same disk.

    Errors: OSError, SegmentDamaged.
    """
    for part in parts:
        check_pages(part)
    first, last = parts[0].first_sequence, parts[-1].last_sequence
    path = folder / f"{first:016d}-{last:016d}.index"
    new = path.with_suffix(".new")  # a name of its own: the merging thread may write another range at the same moment
    programs = np.array([sequence for part in parts for sequence in part.programs], ROW)
    places: list[int] = []
    fences, checksums = [], []
    with new.open("wb") as file:
        file.seek(BLOCK)
        for index in range(len(INDEXES)):
            count = sum(len(part.rows[index]) for part in parts)
            places += [file.tell(), count]
            section = _write_rows(file, _merge(parts, index), gently)
            fences.append(section[0])
            checksums.append(section[1])
        offsets = np.concatenate([part.offsets for part in parts]) if len(parts) > 1 else parts[0].offsets
        places += [file.tell(), len(offsets)]
        checksums.append(_sums(offsets))
        file.write(offsets)
        file.write(bytes(-file.tell() % BLOCK))
        tail = b"".join([*(part.tobytes() for part in fences), *(part.tobytes() for part in checksums), programs.tobytes()])
        file.write(tail)
        head = HEADER.pack(MAGIC, VERSION, 0, directory, first, last, parts[-1].hash, parts[-1].time_us, len(programs), file.tell())
        head = (head + PLACES.pack(*places)).ljust(HASH_AT, b"\0")
        file.seek(0)
        file.write(head + hashlib.sha256(head + tail).digest())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync_folder(folder)
    return path


def _write_rows(file: Any, merged: Merge, gently: bool) -> tuple[Any, Any]:
    """Rows in pages, the last one filled up with zeros; returns fences and checksums."""
    buffer = np.empty(BUFFER_PAGES * limits.INDEX_PAGE_ROWS, ROW)
    fences, checksums = [], []
    done = unflushed = 0
    while (count := merged.read(buffer[done:])) or done:
        done += count
        if count and done < len(buffer):
            continue
        fences.append(buffer[:done:limits.INDEX_PAGE_ROWS].copy())
        checksums.append(_sums(buffer[:done]))
        file.write(buffer[:done])
        unflushed += done * 8
        if gently and unflushed >= PIECE_BYTES:
            file.flush()
            os.fdatasync(file.fileno())
            time.sleep(1 / PIECES_PER_S)
            unflushed = 0
        done = 0
    file.write(bytes(-file.tell() % BLOCK))
    if not fences:
        return np.empty(0, ROW), np.empty(0, OFFSET)
    return np.concatenate(fences), np.concatenate(checksums)


def read_file(path: Path, directory: bytes) -> Segment:
    """A segment whose rows stay in the file. Errors: SegmentDamaged, OSError."""
    if path.stat().st_size < BLOCK:
        raise SegmentDamaged(f"{path}: it was cut")
    data = _map(path, mmap.MADV_RANDOM)
    head = data[:HASH_AT]
    magic, version, _, owner, first, last, hash_, time_us, programs_count, size = HEADER.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise SegmentDamaged(f"{path}: it begins with {magic!r} version {version}")
    if owner != directory:
        raise SegmentDamaged(f"{path}: it belongs to directory {owner.hex()}")
    if size != len(data):
        raise SegmentDamaged(f"{path}: it has {len(data)} bytes, {size} were written")
    places = PLACES.unpack_from(head, HEADER.size)
    pages = [-(-count // limits.INDEX_PAGE_ROWS) for count in places[1:8:2]]
    tail_at = size - (sum(pages) * 12 + -(-places[9] // PAGE_OFFSETS) * 4 + programs_count * 8)
    if not tail_at >= BLOCK or hashlib.sha256(head + data[tail_at:]).digest() != data[HASH_AT:BLOCK]:
        raise SegmentDamaged(f"{path}: its first block and its end do not fit their checksum")
    at = tail_at
    fences, checksums = [], []
    for count in pages:
        fences.append(np.frombuffer(data[at:at + count * 8], ROW))
        at += count * 8
    for count in (*pages, -(-places[9] // PAGE_OFFSETS)):
        checksums.append(np.frombuffer(data[at:at + count * 4], OFFSET))
        at += count * 4
    rows = [FileRows(path, data, places[2 * index], places[2 * index + 1], fences[index], checksums[index])
            for index in range(len(INDEXES))]
    return Segment(first, last, hash_, time_us, rows, np.frombuffer(data, OFFSET, count=places[9], offset=places[8]),
                   np.frombuffer(data[at:], ROW).tolist(), path, size, checksums[-1])


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- filters ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Filter:
    """What a list is of. index None: the whole journal. Use the functions below."""

    index: int | None
    key: int
    exact: Any  # compared with the entry's own names

    def holds(self, entry: bytes) -> bool:
        """Whether the entry is meant: a key of 32 bits may hit others."""
        if self.index is None:
            return True
        member, request, receipt = names_of(entry)
        if self.index == MEMBER:
            return member == self.exact
        if self.index == REQUEST:
            return request == self.exact
        return receipt is not None and (receipt if self.index == RECEIPT else (receipt[0], receipt[2])) == self.exact


EVERYTHING = Filter(None, 0, None)


def by_member(member: int) -> Filter:
    return Filter(MEMBER, member, member)


def by_request(request_id: bytes) -> Filter:
    hashed = request_hash(request_id)
    return Filter(REQUEST, int.from_bytes(hashed[:4], "little"), hashed)


def by_receipt(store: bytes, till: bytes, business_day: int, number: bytes) -> Filter:
    """Texts within the ledger's limits. Errors: ValueError."""
    return Filter(RECEIPT, receipt_key(business_day, store, till, number), (store, till, business_day, number))


def by_store_day(store: bytes, business_day: int) -> Filter:
    """Errors: ValueError."""
    return Filter(STORE_DAY, receipt_key(business_day, store), (store, business_day))


# --- the index --------------------------------------------------------------------------------------------------------

class Index:
    """The index of one data directory. One thread steps; any thread asks.

    say(text): one line for people, when a file is passed over. background: large merges go to a thread of their own.
    Errors: OSError, JournalError.
    """

    def __init__(self, data: Path, journal: Journal, *, say: Say = lambda text: None, background: bool = False,
                 segment_entries: int = limits.INDEX_SEGMENT_ENTRIES) -> None:
        self.folder = Path(data) / "index"
        self.journal = journal
        self.damaged = 0  # files passed over so far
        self._say = say
        self._background = background
        self._segment_entries = segment_entries
        self._lock = threading.Lock()
        self._merging: list[Segment] = []
        self._merger: threading.Thread | None = None
        self._broken: Exception | None = None
        self._segments: tuple[Segment, ...] = ()
        self.folder.mkdir(exist_ok=True)
        self._open()

    def _open(self) -> None:
        """The files that fit the journal; the rest is removed and will be read again."""
        for path in self.folder.glob("*.new"):
            path.unlink()  # half written
        kept: list[Segment] = []
        for path in sorted(self.folder.glob("*.index"), key=lambda path: (path.name[:16], -int(path.stem[17:] or 0))):
            try:
                segment = read_file(path, self.journal.directory)
                self._check_place(segment)
            except (SegmentDamaged, OSError, ValueError) as error:
                self._pass_over(path, str(error))
                continue
            if kept and segment.first_sequence <= kept[-1].last_sequence:
                path.unlink()  # it was merged into the one before; that was in place, so nothing is lost
                continue
            kept.append(segment)
        self._segments = tuple(kept)

    def _check_place(self, segment: Segment) -> None:
        """That its last group is in this journal: not another history, as after a restore."""
        head = self.journal.group_of(segment.last_sequence)
        if head is None or head.last_sequence != segment.last_sequence or head.hash != segment.hash:
            raise SegmentDamaged(f"{segment.path}: the journal has another history at sequence {segment.last_sequence}")

    def _pass_over(self, path: Path, why: str) -> None:
        self.damaged += 1
        self._say(f"a file of the index is passed over and its part read again from the journal: {why}")
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for a merge that runs."""
        if self._merger is not None:
            self._merger.join()

    # --- building -----------------------------------------------------------------------------------------------

    @property
    def last_sequence(self) -> int:
        """Everything up to here can be found."""
        return _hole(self._segments)[0] - 1

    def step(self, until: int | None = None) -> int:
        """Read the next groups of the journal, up to about STEP_BYTES; returns the entries. 0: nothing is missing up to `until`.

        until: the end of a group, such as the follower's sequence; default: the journal's last. Errors: JournalError, ValueError for
        bytes that are no group of the journal, OSError.
        """
        broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
        first, last = _hole(self._segments)
        collector = Collector(self.journal.directory, first - 1)
        for batch in self.journal.batches(first - 1, bytes_max=STEP_BYTES):
            for key, record in batch:
                if (until is not None and key > until) or (last is not None and key > last):
                    break
                collector.add(record)
            break  # one list at a time: its records are valid until the next is asked for
        count = collector.last_sequence - first + 1
        if count == 0:
            if last is not None and (until is None or first <= until):
                raise IndexProblem(f"{self.journal.file}: sequence {first} is missing")
            return 0
        segment = take(collector)
        if count >= self._segment_entries:
            segment = read_file(write_file(self.folder, self.journal.directory, [segment], gently=self._background), self.journal.directory)
        self._replace([], [segment])
        while self._tidy():
            pass
        return count

    def _replace(self, old: list[Segment], new: list[Segment]) -> None:
        with self._lock:
            kept = [segment for segment in self._segments if segment not in old]
            self._segments = tuple(sorted([*kept, *new], key=lambda segment: segment.first_sequence))

    def _run_to_merge(self) -> list[Segment] | None:
        """Adjacent segments of which there are enough of about one size, the small ones first."""
        merging = self._merging  # before the segments: the merging thread replaces what it merged, then forgets it
        segments = [segment for segment in self._segments if segment not in merging]
        for level in sorted({segment.level for segment in segments}):
            for run in _runs(segments, level):
                counts = [segment.count for segment in run]
                if len(run) >= limits.INDEX_FANOUT and sum(counts) >= (limits.INDEX_FANOUT - 1) * max(counts):
                    return run
        return None

    def _tidy(self) -> bool:
        """Merge one run of segments; False: there is none, or it goes on in the background."""
        run = self._run_to_merge()
        if run is None:
            return False
        count = sum(segment.count for segment in run)
        busy = self._merger is not None and self._merger.is_alive()
        if self._background and busy and count > BACKGROUND_ENTRIES:
            return False
        if self._background and not busy and count >= self._segment_entries:
            self._merging = run
            self._merger = threading.Thread(target=self._merge_behind, args=(run,), name="index-merge")
            self._merger.start()
            return True
        self._merge_run(run)
        return True

    def _merge_behind(self, run: list[Segment]) -> None:
        try:
            self._merge_run(run)
        except Exception as error:  # the thread's entry: the stepping thread raises it
            self._broken = error
        finally:
            self._merging = []

    def _merge_run(self, run: list[Segment]) -> None:
        if sum(segment.count for segment in run) < self._segment_entries:
            self._replace(run, [merge_in_memory(run)])
            return
        try:
            path = write_file(self.folder, self.journal.directory, run, gently=self._background)
        except SegmentDamaged:
            self._drop_damaged(run)
            return
        self._replace(run, [read_file(path, self.journal.directory)])
        for segment in run:
            if segment.path is not None and segment.path != path:
                segment.path.unlink(missing_ok=True)

    def _drop_damaged(self, segments: list[Segment] | tuple[Segment, ...]) -> None:
        """Give up the files that fail their checksums; `step` reads their parts again."""
        for segment in segments:
            try:
                check_pages(segment)
            except SegmentDamaged as error:
                with self._lock:
                    there = segment in self._segments
                    self._segments = tuple(kept for kept in self._segments if kept is not segment)
                if there and segment.path is not None:
                    self._pass_over(segment.path, str(error))

    def check(self) -> None:
        """Look at every page of every file; what is damaged is given up, and `step` reads it again."""
        self._drop_damaged(self._segments)

    # --- asking -------------------------------------------------------------------------------------------------

    def find(self, what: Filter, before: int, count: int, *, reach: int = 0, size_max: int = 1 << 62) -> list[tuple[int, bytes]]:
        """At most `count` entries below sequence `before` that `what` holds for, the newest first, with their sequences.

        reach: how far the index must have read. size_max: bytes of entries after which no further one is added.
        Errors: NotReady, JournalError.
        """
        segments = self._whole(reach)
        found: list[tuple[int, bytes]] = []
        size = 0
        try:
            candidates = self._candidates(segments, what, before)
            while len(found) < count and size < size_max:
                places = list(itertools.islice(candidates, min(count - len(found), 256)))
                if not places:
                    break
                for place, entry in zip(places, self.journal.entries(places), strict=True):
                    if what.holds(entry) and size < size_max:
                        found.append((place[0], entry))
                        size += len(entry)
        except SegmentDamaged:
            self._drop_damaged(segments)
            raise NotReady("a file of the index was damaged: its part is read again from the journal") from None
        return found

    def walk(self, what: Filter, before: int, *, reach: int) -> Iterator[tuple[int, bytes]]:
        """All entries below sequence `before` that `what` holds for, the oldest first, with their sequences. Errors: as `find`."""
        segments = self._whole(reach)
        try:
            places = np.fromiter((part for place in self._candidates(segments, what, before) for part in place), np.int64)
        except SegmentDamaged:
            self._drop_damaged(segments)
            raise NotReady("a file of the index was damaged: its part is read again from the journal") from None
        places = places.reshape(-1, 3)[::-1]
        for at in range(0, len(places), 1024):
            part = [tuple(place) for place in places[at:at + 1024].tolist()]
            for place, entry in zip(part, self.journal.entries(part), strict=True):
                if what.holds(entry):
                    yield place[0], entry

    def _whole(self, reach: int) -> tuple[Segment, ...]:
        """The segments, when nothing is missing up to `reach`. Errors: NotReady."""
        segments = self._segments
        missing, behind = _hole(segments)
        if behind is not None or missing <= reach:
            raise NotReady(f"the index has read up to sequence {missing - 1}")
        return segments

    @staticmethod
    def _candidates(segments: tuple[Segment, ...], what: Filter, before: int) -> Iterator[tuple[int, int, int]]:
        for segment in reversed(segments):
            if what.index is None:
                for sequence in range(min(segment.last_sequence, before - 1), segment.first_sequence - 1, -1):
                    yield segment.place(sequence)
            else:
                for sequence in segment.descend(what.index, what.key, before):
                    yield segment.place(sequence)

    def programs(self) -> list[int]:
        """Sequences of all PROGRAM entries, rising."""
        return [sequence for segment in self._segments for sequence in segment.programs]

    def stats(self) -> dict[str, int]:
        """Plain numbers for metrics."""
        segments = self._segments
        files = [segment for segment in segments if segment.path is not None]
        return {"sequence": self.last_sequence, "segments": len(segments), "files": len(files), "damaged": self.damaged,
                "file_bytes": sum(segment.size for segment in files),
                "memory_bytes": sum(segment.size for segment in segments if segment.path is None)}


def _hole(segments: tuple[Segment, ...]) -> tuple[int, int | None]:
    """The first sequences that no segment covers: first, and last or None where nothing follows."""
    expected = 1
    for segment in segments:
        if segment.first_sequence > expected:
            return expected, segment.first_sequence - 1
        expected = segment.last_sequence + 1
    return expected, None


def _runs(segments: list[Segment], level: int) -> Iterator[list[Segment]]:
    """Adjacent segments of at most this level, in runs that can be merged at once."""
    run: list[Segment] = []
    for segment in segments:
        if segment.level > level:
            yield run
            run = []
            continue
        if run and (segment.first_sequence != run[-1].last_sequence + 1 or len(run) == MERGE_MAX
                    or segment.last_sequence - run[0].first_sequence >= 1 << 32):
            yield run
            run = []
        run.append(segment)
    yield run


def remove(data: Path) -> None:
    """All files of the index: the next start reads the journal from the beginning."""
    folder = Path(data) / "index"
    if folder.is_dir():
        for path in folder.iterdir():
            if path.suffix in {".index", ".new"}:
                path.unlink()
