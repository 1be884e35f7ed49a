"""A disk that loses its power: from the log of what a process did to it to the states that it may be found in.

For: the model alone. Not for making logs (tests/shim/, recording.py) and not for judging states (judge.py). Called by both.

The model is a disk without barriers between files, under a file system that promises no more than POSIX does:
a) A finished fsync or fdatasync of a file makes durable what was written to this file before it began; a finished O_DSYNC write makes
   itself durable. A finished fsync of a directory makes durable the names that were changed in it before it began.
b) Of everything else that was begun, any part may be there, in any order: each 512-byte sector has its old content or that of any later
   write; a file that grew has its old size or any later one, with zeros where no data came; each change of a name is there or not.
   A sector and a change of a name (also a rename) are whole.
It is enough to look right before each moment at which something becomes durable (and at the end): what may be found at any moment before
may be found then too, and by then at least as much was acknowledged.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import NamedTuple

SECTOR = 512
ZERO = bytes(SECTOR)
ROOT = 0  # directories have numbers too: 0 the disk's own, below 0 the others; files are numbered from 1
EXHAUSTIVE_UNITS = 7  # so many operations in the air: every subset of them is a state
EXHAUSTIVE_SECTORS = 8  # so many sectors in the air: every subset of these too
TEARS_MAX = 24  # places at which one write is torn, at most
MASK = (1 << 64) - 1

WRITE, SIZE, FLUSH, NAME, FLUSH_NAMES = "write", "size", "flush", "name", "flush names"


class Op(NamedTuple):
    """One operation. `end` 0: it never returned."""

    begin: int
    end: int
    kind: str
    file: int = 0  # number of the file; FLUSH_NAMES: of the directory
    offset: int = 0  # or the new size
    data: bytes = b""
    dsync: bool = False
    names: tuple[tuple[tuple[int, str], int | None], ...] = ()  # NAME: what these (directory, name) become
    label: str = ""  # for people


def sector_hash(file: int, sector: int, content: bytes) -> int:
    """A state's hash is the sum of these, so that it can be kept up. Zeros count as nothing: a hole is the same as written zeros."""
    if content == ZERO:
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=file.to_bytes(8, "little") + sector.to_bytes(8, "little")).digest())


def rename(names: dict[tuple[int, str], int], op: Op) -> None:
    """Carries a change of names out."""
    for name, becomes in op.names:
        if becomes is None:
            names.pop(name, None)
        else:
            names[name] = becomes


def paths_of(names: Mapping[tuple[int, str], int]) -> dict[str, int]:
    """What can be reached from the root: path -> number."""
    within: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), number in names.items():
        within.setdefault(folder, []).append((name, number))
    found: dict[str, int] = {}
    open_folders = [("", ROOT)]
    while open_folders:
        above, folder = open_folders.pop()
        for name, number in within.get(folder, ()):
            found[above + name] = number
            if number < 0:
                open_folders.append((f"{above}{name}/", number))
    return found


@dataclass
class File:
    """What is durable of a file, and what is in the air."""

    content: bytearray = field(default_factory=bytearray)
    size: int = 0
    pending: list[Op] = field(default_factory=list)

    def sector(self, number: int) -> bytes:
        return bytes(self.content[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")

    def settle(self, op: Op) -> None:
        """One of the pending operations is durable now."""
        self.pending.remove(op)
        if op.kind == SIZE:
            self.size = op.offset
            del self.content[op.offset :]
            return
        end = op.offset + len(op.data)
        if len(self.content) < end:
            self.content.extend(bytes(end - len(self.content)))
        self.content[op.offset : end] = op.data
        self.size = max(self.size, end)


class State(NamedTuple):
    """One thing that may be found: differences from what is durable at that moment."""

    sectors: tuple[tuple[int, int, bytes], ...]  # file, sector, content
    sizes: tuple[tuple[int, int], ...]  # of files whose size differs
    names: Mapping[str, int]  # all paths
    key: int  # equal for equal disks
    why: str


@dataclass
class Window:
    """A moment right before something becomes durable."""

    number: int
    place: int  # in the order of all operations
    disk: Disk
    units: list[Op]  # in the air
    versions: dict[tuple[int, int], list[tuple[int, bytes]]]  # (file, sector): what it may become, and by which unit
    sizes: dict[int, list[tuple[int, int]]]  # file: sizes that it may have, and by which unit

    def exhaustive(self) -> bool:
        """Whether states() leaves nothing out (but sizes that no data needs)."""
        return len(self.versions) + sum(unit.kind == NAME for unit in self.units) <= EXHAUSTIVE_SECTORS

    def _state(self, chosen: Mapping[tuple[int, int], bytes], sizes: Mapping[int, int], names: frozenset[int], why: str) -> State:
        disk = self.disk
        key = disk.hash
        sectors = []
        for (file, sector), content in chosen.items():
            size = sizes.get(file, disk.files[file].size)
            if sector * SECTOR >= size:
                continue
            if size < (sector + 1) * SECTOR:
                content = content[: size - sector * SECTOR].ljust(SECTOR, b"\0")
            old = disk.files[file].sector(sector)
            if content != old:
                sectors.append((file, sector, content))
                key += sector_hash(file, sector, content) - sector_hash(file, sector, old)
        changed = tuple((file, size) for file, size in sorted(sizes.items()) if size != disk.files[file].size)
        found = disk.paths_with(unit for index, unit in enumerate(self.units) if index in names)
        extra = repr((sorted((file, sizes.get(file, kept.size)) for file, kept in disk.files.items()), sorted(found.items()))).encode()
        key += int.from_bytes(hashlib.blake2b(extra, digest_size=8).digest())
        return State(tuple(sorted(sectors)), changed, found, key & MASK, why)

    def subset(self, units: frozenset[int], why: str, torn: Mapping[int, frozenset[int]] | None = None) -> State:
        """These units are there; of the torn ones only those sectors."""
        chosen, sizes = {}, {}
        for (file, sector), versions in self.versions.items():
            for unit, content in versions:
                if unit in units and (not torn or unit not in torn or sector in torn[unit]):
                    chosen[file, sector] = content
        for file, choices in self.sizes.items():
            for unit, size in choices:
                if unit in units:
                    sizes[file] = size
        return self._state(chosen, sizes, units, why)

    def _tears(self, generator: random.Random) -> Iterator[State]:
        everything = frozenset(range(len(self.units)))
        for index, unit in enumerate(self.units):
            if unit.kind != WRITE:
                continue
            sectors = sorted(sector for (file, sector), versions in self.versions.items()
                             if file == unit.file and any(by == index for by, _ in versions))
            if len(sectors) < 2:
                continue
            cuts = range(1, len(sectors))
            places = sorted(generator.sample(cuts, TEARS_MAX)) if len(cuts) > TEARS_MAX else cuts
            for others in (everything, frozenset({index}), frozenset(range(index + 1))):
                for cut in places:
                    yield self.subset(others, f"{unit.label} up to sector {cut}", {index: frozenset(sectors[:cut])})
                    yield self.subset(others, f"{unit.label} from sector {cut} on", {index: frozenset(sectors[cut:])})
                    yield self.subset(others, f"{unit.label} without sector {cut}", {index: frozenset(sectors) - {sectors[cut]}})
                    yield self.subset(others, f"{unit.label} with sector {cut} alone", {index: frozenset({sectors[cut]})})

    def _all_sectors(self) -> Iterator[State]:
        """Every combination, sector by sector."""
        places = list(self.versions)
        names = [index for index, unit in enumerate(self.units) if unit.kind == NAME]
        for picks in product(*(range(len(self.versions[place]) + 1) for place in places), *((0, 1) for _ in names)):
            chosen = {place: self.versions[place][pick - 1][1] for place, pick in zip(places, picks, strict=False) if pick}
            kept = frozenset(index for index, pick in zip(names, picks[len(places):], strict=True) if pick)
            yield self._state(chosen, self._needed(chosen), kept, "every combination")

    def _needed(self, chosen: Iterable[tuple[int, int]]) -> dict[int, int]:
        """The smallest possible sizes that hold these sectors."""
        sizes: dict[int, int] = {}
        for file, sector in chosen:
            if sector * SECTOR >= sizes.get(file, self.disk.files[file].size):
                sizes[file] = next((size for _, size in self.sizes.get(file, ()) if size > sector * SECTOR), self.disk.files[file].size)
        return sizes

    def _drawn(self, generator: random.Random) -> State:
        chance = generator.choice((0.1, 0.5, 0.9))
        chosen = {}
        for place, versions in self.versions.items():
            if generator.random() < chance:
                chosen[place] = generator.choice(versions)[1]
        sizes = self._needed(chosen)
        for file, choices in self.sizes.items():
            if generator.random() < 0.3:
                sizes[file] = generator.choice(choices)[1]
        names = frozenset(index for index, unit in enumerate(self.units) if unit.kind == NAME and generator.random() < chance)
        return self._state(chosen, sizes, names, "drawn")

    def states(self, generator: random.Random, drawn: int) -> Iterator[State]:
        """What may be found, the same state perhaps more than once: systematic ones, then so many drawn ones."""
        count = len(self.units)
        everything = frozenset(range(count))
        if count <= EXHAUSTIVE_UNITS:
            for size in range(count + 1):
                for kept in combinations(range(count), size):
                    yield self.subset(frozenset(kept), "a subset of the operations")
        else:
            for cut in range(count + 1):
                yield self.subset(frozenset(range(cut)), f"the first {cut} operations")
                yield self.subset(everything - frozenset(range(cut)), f"without the first {cut} operations")
            for index in range(count):
                yield self.subset(everything - {index}, f"without {self.units[index].label}")
                yield self.subset(frozenset({index}), f"{self.units[index].label} alone")
        if self.exhaustive():
            yield from self._all_sectors()
        else:
            yield from self._tears(generator)
            for _ in range(drawn):
                yield self._drawn(generator)


class Disk:
    """What is durable, and what is in the air, while a log is walked through."""

    def __init__(self, names: Mapping[tuple[int, str], int], files: Mapping[int, bytes]) -> None:
        self.names = dict(names)
        self.files = {file: File(bytearray(content), len(content)) for file, content in files.items()}
        self.pending_names: list[Op] = []
        self.changed: list[tuple[int, int, int]] = []  # file, offset, bytes: became durable since somebody emptied this list
        self.hash = 0
        for number, file in self.files.items():
            for sector in range(-(-file.size // SECTOR)):
                self.hash += sector_hash(number, sector, file.sector(sector))

    def file(self, number: int) -> File:
        return self.files.setdefault(number, File())

    def paths_with(self, ops: Iterable[Op]) -> dict[str, int]:
        """All paths that the durable names and these changes make."""
        names = dict(self.names)
        for op in ops:
            rename(names, op)
        return paths_of(names)

    def _settle(self, op: Op) -> None:
        file = self.files[op.file]
        end = op.offset + len(op.data)
        blank = op.data.count(0) == len(op.data) and op.offset >= len(file.content)  # zeros behind the end: nothing to count
        touched = [] if blank or op.kind == SIZE else range(op.offset // SECTOR, -(-end // SECTOR))
        for sector in touched:
            self.hash -= sector_hash(op.file, sector, file.sector(sector))
        file.settle(op)
        for sector in touched:
            self.hash += sector_hash(op.file, sector, file.sector(sector))
        self.changed.append((op.file, op.offset, len(op.data)))

    def _window(self, number: int, place: int) -> Window:
        units = sorted([op for file in self.files.values() for op in file.pending] + self.pending_names, key=lambda op: op.begin)
        versions: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        sizes: dict[int, list[tuple[int, int]]] = {}
        for index, op in enumerate(units):
            if op.kind == NAME:
                continue
            file = self.files[op.file]
            choices = sizes.setdefault(op.file, [])
            now = choices[-1][1] if choices else file.size
            if op.kind == SIZE:
                assert op.offset >= now, "the model knows no cutting of a file"
                choices.append((index, op.offset))
                continue
            end = op.offset + len(op.data)
            if end > now:
                choices.append((index, end))
            if op.data.count(0) == len(op.data) and op.offset >= len(file.content) and not any(
                    other.file == op.file and other.offset + len(other.data) > op.offset for other in units[:index] if other.kind == WRITE):
                continue
            for sector in range(op.offset // SECTOR, -(-end // SECTOR)):
                known = versions.get((op.file, sector))
                old = known[-1][1] if known else file.sector(sector)
                low, high = max(op.offset, sector * SECTOR), min(end, (sector + 1) * SECTOR)
                new = old[: low - sector * SECTOR] + op.data[low - op.offset : high - op.offset] + old[high - sector * SECTOR :]
                if new != old:
                    versions.setdefault((op.file, sector), []).append((index, new))
        return Window(number, place, self, units, versions, {file: choices for file, choices in sizes.items() if choices})

    def walk(self, ops: Iterable[Op]) -> Iterator[Window]:
        """The moments at which the power may fail. A window is good until the next one is asked for."""
        events = sorted([(op.begin, 0, op) for op in ops] + [(op.end, 1, op) for op in ops if op.end], key=lambda event: event[:2])
        number = 0
        for place, ended, op in events:
            if not ended:
                if op.kind in (WRITE, SIZE):
                    self.file(op.file).pending.append(op)
                elif op.kind == NAME:
                    self.pending_names.append(op)
                    for _, becomes in op.names:
                        if becomes is not None and becomes > 0:
                            self.file(becomes)
                continue
            if op.kind == FLUSH:
                settled = [other for other in self.file(op.file).pending if other.end and other.end <= op.begin]
            elif op.kind == FLUSH_NAMES:
                settled = [other for other in self.pending_names if other.end and other.end <= op.begin and other.names[0][0][0] == op.file]
            elif op.kind == WRITE and op.dsync:
                settled = [op]
            else:
                continue
            yield self._window(number, place)
            number += 1
            for other in settled:
                if other.kind == NAME:
                    rename(self.names, other)
                    self.pending_names.remove(other)
                else:
                    self._settle(other)
        yield self._window(number, events[-1][0] + 1 if events else 0)
