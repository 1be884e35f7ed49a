"""Lets the real recovery look at crash states and says what is wrong with what it finds. One process; several share a recording.

`python -m tests.power.judge`, with the shim preloaded on the working directory: the shim tells what a recovery wrote, so that the next
state costs only its differences. A Spec a line on stdin, a Verdict a line on stdout, both JSON. Started by tests/power/conftest.py.

A state is good when the ledger starts, ends with a whole group, has everything that was acknowledged before the moment, shows the chain's
hash and the digest that a replay of these entries gives, takes new writes, and recovers to the same once more. What an interrupted restore
left is refused by a start, and good when another restore makes it whole.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ledger import engine, ids, limits
from ledger.engine import OpenLedger, StartRefused
from ledger.journal import JournalError
from ledger.restore import restore
from ledger.verify import verify
from tests.power.disk import Disk, State, Window
from tests.power.driver import open_here, tail_of
from tests.power.recording import Recording
from tests.shim import shim as log
from tests.shim.shim import Shim

engine.compile_file = functools.cache(engine.compile_file)  # the same programme for every state
FAULTS_MAX = 3
ZEROS = memoryview(bytes(1 << 16))


class Spec(NamedTuple):
    """What a judge shall do."""

    recordings: list[tuple[str, int]]  # each with the place from which on its windows are looked at
    work: str  # an empty directory below the shim's disk
    log: str  # the shim's folder
    data: str  # of the ledger, relative to the disk's root
    seed: int
    index: int  # of `of` judges
    of: int
    drawn: int  # states per window besides the systematic ones
    share: int  # one in so many states is looked at; 1: all
    again: int  # one in so many recoveries is followed by a second one
    copy: str  # the back-up that is being restored; "": none
    key: str  # its key
    ids: bool  # every run of ids must be sound


class Verdict(NamedTuple):
    """What a judge found."""

    states: int  # different ones
    recoveries: int
    windows: int
    exhaustive: int  # windows of which every combination was among the states
    faults: list[str]
    cpu_ms: int  # of processor


class Wrong(Exception):
    """A state was not recovered as it must be."""


class Work:
    """The working directory: shows one state after the other."""

    def __init__(self, root: Path, shim: Shim, disk: Disk) -> None:
        self.root, self.shim, self.disk = root, shim, disk
        self.names: dict[str, int] | None = None
        self.handles: dict[int, int] = {}
        self.inodes: dict[int, int] = {}
        self.broken = True

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)
        self.handles, self.inodes = {}, {}

    def _build(self, names: dict[str, int]) -> None:
        self.close()
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path, number in sorted(names.items()):
            if number < 0:
                (self.root / path).mkdir()
                continue
            handle = self.handles[number] = os.open(self.root / path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.inodes[os.fstat(handle).st_ino] = number
            file = self.disk.files[number]
            view = memoryview(file.content)
            for at in range(0, len(view), len(ZEROS)):
                piece = view[at : at + len(ZEROS)]
                if piece != ZEROS[: len(piece)]:
                    os.pwrite(handle, piece, at)
            del view
            os.ftruncate(handle, file.size)
        self.names, self.broken = dict(names), False
        self.disk.changed.clear()

    def _restore(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        for number, offset, size in ranges:
            if number in self.handles:
                content = self.disk.files[number].content
                os.pwrite(self.handles[number], bytes(content[offset : offset + size]).ljust(size, b"\0"), offset)
        for number, handle in self.handles.items():
            if os.fstat(handle).st_size != self.disk.files[number].size:
                os.ftruncate(handle, self.disk.files[number].size)

    def show(self, state: State) -> None:
        if self.broken or state.names != self.names:
            self._build(dict(state.names))
        elif self.disk.changed:
            self._restore(self.disk.changed)
            self.disk.changed.clear()
        for number, size in state.sizes:
            if number in self.handles:
                os.ftruncate(self.handles[number], size)
        sizes = dict(state.sizes)
        for number, sector, content in state.sectors:
            if number in self.handles:
                room = sizes.get(number, self.disk.files[number].size) - sector * 512
                os.pwrite(self.handles[number], content[:room], sector * 512)
        self.shim.clear()

    def undo(self, state: State) -> None:
        """Back to what is durable."""
        ranges = [(number, sector * 512, 512) for number, sector, _ in state.sectors]
        for record in self.shim.records():
            if record.result < 0:
                continue
            if record.op in (log.CREATE, log.RENAME, log.UNLINK, log.MKDIR, log.RMDIR, log.STRANGE):
                self.broken = True
            elif record.op == log.WRITE and record.inode in self.inodes:
                ranges.append((self.inodes[record.inode], record.offset, record.size))
        if not self.broken:
            self._restore(ranges)


class Judge:
    """Walks through a recording."""

    def __init__(self, spec: Spec, recording: str, after: int) -> None:
        self.spec, self.after = spec, after
        self.recording = Recording.load(Path(recording))
        self.shim = Shim.attach(Path(spec.log))
        self.disk = self.recording.disk()
        self.work = Work(Path(spec.work), self.shim, self.disk)
        self.data = Path(spec.work) / spec.data
        self.found: dict[int, int] = {}  # state: the sequence it recovered to
        self.windows = self.exhaustive = self.recoveries = 0
        self.faults: list[str] = []

    def run(self) -> Verdict:
        begin = time.process_time_ns()
        for window in self.disk.walk(self.recording.ops):
            if window.place <= self.after:
                continue
            self.windows += 1
            self.exhaustive += window.exhaustive()
            self._window(window)
            if len(self.faults) >= FAULTS_MAX:
                break
        self.work.close()
        cpu_ms = (time.process_time_ns() - begin) // 1_000_000
        return Verdict(len(self.found), self.recoveries, self.windows, self.exhaustive, self.faults, cpu_ms)

    def _window(self, window: Window) -> None:
        demand = self.recording.demand(window.place)
        for state in window.states(random.Random(self.spec.seed * 1_000_003 + window.number), self.spec.drawn):
            mine = state.key >> 8
            if mine % self.spec.of != self.spec.index or mine // self.spec.of % self.spec.share:
                continue
            if self.found.get(state.key, -1) >= demand:
                continue
            try:
                self.work.show(state)
                self.found[state.key] = self._recover(demand, state.key)
            except Wrong as wrong:
                self.faults.append(f"seed {self.spec.seed}, window {window.number}, place {window.place}, {state.why}, acknowledged up to "
                                   f"{demand}: {wrong}; in the air: {'; '.join(unit.label for unit in window.units)}")
                self.work.broken = True
                if len(self.faults) >= FAULTS_MAX:
                    return
            else:
                self.work.undo(state)

    def _open(self) -> OpenLedger:
        try:
            return open_here(self.data)
        except StartRefused as error:
            raise Wrong(f"the start is refused: {error}") from None

    def _restored(self, demand: int) -> int:
        """The state of a restore: whole, or refused and made whole by another one. Returns what must be there then."""
        if not (self.data / "FORMAT").exists():
            if demand:
                raise Wrong("the restore had ended, and the directory is none")
            if self.data.is_dir() and {path.name for path in self.data.iterdir()} - {"LOCK"}:
                try:
                    open_here(self.data).close()
                except StartRefused:
                    pass
                else:
                    raise Wrong("a start takes what an interrupted restore left for a ledger")
            try:
                restore(Path(self.spec.copy), self.data, Path(self.spec.key), tail_bytes=limits.TAIL_BYTES_MIN)
            except (StartRefused, JournalError, OSError) as error:
                raise Wrong(f"another restore does not go on from here: {error}") from None
        return max(self.recording.history)

    def _recover(self, demand: int, chance: int) -> int:
        self.recoveries += 1
        if self.spec.copy:
            demand = self._restored(demand)
        ledger = self._open()
        try:
            found = ledger.recovered.sequence
            if found < demand:
                raise Wrong(f"entries up to {demand} were acknowledged, the recovered ledger ends with {found}")
            handle = ledger.handle
            if found:
                known = self.recording.history.get(found)
                if known is None:
                    raise Wrong(f"the ledger ends with entry {found}, where no group ends")
                if handle.head != (found, known.hash):
                    raise Wrong(f"the chain's head is {handle.head}, must be {known.hash}")
                if handle.digest() != known.digest:
                    raise Wrong(f"the digest at entry {found} is {handle.digest()}, must be {known.digest}")
            handle.turn(1 + chance % 5, True)
            if chance % 3 == 0 and handle.finish(False):
                raise Wrong("the new group could not be drained")
            expected = handle.sequence, handle.digest(), handle.head
        finally:
            ledger.close()
        if chance // 15 % self.spec.again == 0:
            ledger = self._open()
            try:
                handle = ledger.handle
                if (handle.sequence, handle.digest(), handle.head) != expected:
                    raise Wrong(f"recovered to {expected}, and once more to {(handle.sequence, handle.digest(), handle.head)}")
            finally:
                ledger.close()
        if self.spec.ids:
            faults = [checked.fault for checked in ids.check(self.data) if checked.fault]
            if faults:
                raise Wrong(faults[0])
        if chance // 15 % 64 == 0:
            report = verify(self.data, tail=tail_of(self.data))
            if report.head != f"{expected[2][0]}:{expected[2][1]}":
                raise Wrong(f"verify ends with {report.head}, the ledger with {expected[2]}")
        return found


def main() -> None:
    for line in sys.stdin:
        spec = Spec(**json.loads(line))
        verdicts = [Judge(spec, recording, after).run() for recording, after in spec.recordings]
        print(json.dumps(total(verdicts)._asdict()), flush=True)


def total(verdicts: Iterable[Verdict]) -> Verdict:
    """The sum of what was found one after the other."""
    return Verdict(*(sum(values, start=[] if isinstance(values[0], list) else 0) for values in zip(*verdicts, strict=True)))


if __name__ == "__main__":
    main()
