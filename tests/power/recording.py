"""What a process did to a disk, ready to be judged: the log as operations, what was acknowledged when, and what every prefix must be.

For: between the shim's log and the model (disk.py). Not for judging (judge.py). Called by the tests; goes to the judges as a pickle.
"""

from __future__ import annotations

import pickle
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from ledger import limits
from server._local import LocalLedger
from tests.ledger import tail_reader
from tests.power.disk import FLUSH, FLUSH_NAMES, NAME, ROOT, SIZE, WRITE, Disk, Op, paths_of, rename
from tests.shim import shim as log
from tests.shim.shim import Record, Shim

LEFT_OUT = {"lock.mdb"}  # memory that processes share
ACK = b"ACK!"  # a message of this and 8 bytes, on any socket: everything up to this sequence is acknowledged
SIZES = {"members_max": 500, "ids_max": 5000}  # of every ledger that is made here


class Boundary(NamedTuple):
    """The end of a group: what a ledger that ends here must show."""

    hash: str
    digest: str


class Recording(NamedTuple):
    """Everything that judges need."""

    names: dict[tuple[int, str], int]  # before
    files: dict[int, list[tuple[int, bytes]]]  # before: (offset, block) of what is not zero
    sizes: dict[int, int]
    ops: list[Op]
    acknowledged: list[tuple[int, int]]  # place, sequence
    history: dict[int, Boundary]

    def disk(self) -> Disk:
        files = {}
        for number, blocks in self.files.items():
            content = bytearray(self.sizes[number])
            for offset, block in blocks:
                content[offset : offset + len(block)] = block
            files[number] = bytes(content)
        return Disk(self.names, files)

    def number(self, path: str) -> int:
        """Of a file or directory that was there before."""
        return paths_of(self.names)[path]

    def demand(self, place: int) -> int:
        """The highest sequence that somebody was told before this moment."""
        return max((sequence for at, sequence in self.acknowledged if at < place), default=0)

    def without(self, leave_out: Callable[[Op], bool]) -> Recording:
        """The same run on a disk to which some operations were never made."""
        return self._replace(ops=[op for op in self.ops if not leave_out(op)])

    def save(self, path: Path) -> Path:
        path.write_bytes(pickle.dumps(self))
        return path

    @staticmethod
    def load(path: Path) -> Recording:
        return pickle.loads(path.read_bytes())


def blocks_of(content: bytes) -> list[tuple[int, bytes]]:
    zero = bytes(4096)
    return [(at, content[at : at + 4096]) for at in range(0, len(content), 4096) if content[at : at + 4096] != zero[: len(content) - at]]


def tree(root: Path) -> dict[str, Path]:
    """Everything below root, by its relative path."""
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.name not in LEFT_OUT}


def place_of(names: dict[tuple[int, str], int], path: str) -> tuple[int, str]:
    """The directory's number and the name."""
    above, _, name = path.rpartition("/")
    return (paths_of(names)[above] if above else ROOT), name


class Recorder:
    """Records what happens below `root` from its making on; finish() gives the recording."""

    def __init__(self, shim: Shim, root: Path, data: Path) -> None:
        self.shim, self.root, self.data = shim, root, data
        self.inodes: dict[int, int] = {}
        self.names: dict[tuple[int, str], int] = {}
        self.folders = 0
        self.files: dict[int, list[tuple[int, bytes]]] = {}
        self.sizes: dict[int, int] = {}
        self.before = groups_of(data) if (data / "FORMAT").exists() else []  # or what a restore begins with
        for name, path in tree(root).items():
            if path.is_dir():
                self.folders -= 1
                self.names[place_of(self.names, name)] = self.folders
                continue
            number = len(self.files) + 1
            content = path.read_bytes()
            self.names[place_of(self.names, name)], self.inodes[path.stat().st_ino] = number, number
            self.files[number], self.sizes[number] = blocks_of(content), len(content)
        shim.clear()
        shim.capture(True)

    def finish(self, answers: Callable[[list[Record]], Iterable[tuple[int, int]]] | None = None, *, compare: bool = True) -> Recording:
        """When the process has ended. `answers`: what sockets acknowledged, besides ACK messages. `compare`: does the log explain all?"""
        self.shim.capture(False)
        records = list(self.shim.records())
        ops = self._ops(records)
        acknowledged = [(record.begin, struct.unpack("<Q", record.content[4:])[0]) for record in records
                        if record.op == log.SEND and len(record.content) == 12 and record.content[:4] == ACK]
        if answers is not None:
            acknowledged += answers(records)
        made = Recording(self.names, self.files, self.sizes, ops, sorted(acknowledged), {})
        if compare:
            self._compare(made)
        return made._replace(history=history_of(self.before + groups_written(ops), self._key()))

    def _key(self) -> bytes:
        key = self.data / "identity.key"
        return bytes.fromhex(key.read_text().strip()) if key.exists() else bytes(16)

    def _ops(self, records: list[Record]) -> list[Op]:
        inodes, count, folders = dict(self.inodes), len(self.files), self.folders
        names = dict(self.names)  # as the page cache has them
        ops = []
        for record in sorted(records, key=lambda record: record.begin):
            assert record.op != log.STRANGE, f"the log cannot express this: {record.content.decode()}"
            if record.op == log.SEND or (record.end and record.result < 0):
                continue
            paths = [self._relative(path) for path in record.content.decode().split("\0")] if record.file == log.NAMES else []
            label, becomes = "", {}
            if record.op == log.WRITE:
                data = record.content if not record.end else record.content[: record.result]
                assert len(record.content) == record.size, "the log was not capturing"
                file = inodes[record.inode]
                label = f"write of {len(data)} bytes at {record.offset} of {self._name(names, file)}"
                ops.append(Op(record.begin, record.end, WRITE, file, record.offset, data, bool(record.flags & log.DSYNC), label=label))
            elif record.op == log.TRUNCATE:
                ops.append(Op(record.begin, record.end, SIZE, inodes[record.inode], record.size, label=f"size {record.size}"))
            elif record.op == log.FLUSH:
                if record.end and record.inode in inodes:
                    file = inodes[record.inode]
                    ops.append(Op(record.begin, record.end, FLUSH, file, label=f"flush of {self._name(names, file)}"))
            elif record.op == log.FLUSH_NAMES:
                if record.end:
                    folder = paths_of(names)[paths[0]] if paths[0] else ROOT
                    ops.append(Op(record.begin, record.end, FLUSH_NAMES, folder, label=f"flush of directory {paths[0]}"))
            elif record.op == log.CREATE:
                if not record.end:
                    continue  # the process ended in it: whether it is there, the next start shows by a CREATE of its own or none
                count += 1
                inodes[record.inode] = count
                becomes, label = {paths[0]: count}, f"making of {paths[0]}"
            elif record.op == log.RENAME:
                becomes, label = {paths[0]: None, paths[1]: paths_of(names)[paths[0]]}, f"renaming of {paths[0]}"
            elif record.op == log.MKDIR:
                folders -= 1
                becomes, label = {paths[0]: folders}, f"making of {paths[0]}"
            else:
                becomes, label = {paths[0]: None}, f"removing of {paths[0]}"
            if becomes:
                changes = tuple((place_of(names, path), number) for path, number in becomes.items())
                assert len({folder for (folder, _), _ in changes}) == 1, "a rename between directories"
                ops.append(Op(record.begin, record.end, NAME, names=changes, label=label))
                rename(names, ops[-1])
        return ops

    def _relative(self, path: str) -> str:
        return str(Path(path).relative_to(self.root)) if path != str(self.root) else ""

    @staticmethod
    def _name(names: dict[tuple[int, str], int], file: int) -> str:
        return next((name for name, number in paths_of(names).items() if number == file), f"file {file}")

    def _compare(self, made: Recording) -> None:
        """With all operations done the model must be what is there: otherwise the shim misses something."""
        disk = made.disk()
        for _ in disk.walk(made.ops):
            pass
        for op in [op for file in list(disk.files.values()) for op in list(file.pending)]:
            disk._settle(op)
        names = disk.paths_with(disk.pending_names)
        there = tree(self.root)
        assert sorted(names) == sorted(there), f"the log does not explain the names that are there: {sorted(names)}, {sorted(there)}"
        for name, path in there.items():
            if path.is_dir():
                assert names[name] < 0
                continue
            file = disk.files[names[name]]
            assert bytes(file.content).ljust(file.size, b"\0") == path.read_bytes(), f"the log does not explain the content of {name}"


# --- what the ledger should be ----------------------------------------------------------------------------------------

def groups_of(data: Path) -> list[tail_reader.Group]:
    """Every sound group of a directory that nobody uses, in LMDB or anywhere in the tail."""
    found = tail_reader.groups(data / "tail") if (data / "tail").exists() else []
    with lmdb.open(str(data / "journal"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=8, readonly=True, lock=False) as environment:
        groups = environment.open_db(b"groups", integerkey=True, create=False)
        with environment.begin(db=groups) as transaction:
            found += [group for _, raw in transaction.cursor() if (group := tail_reader.parse_group(bytes(raw)))]
    return found


def groups_written(ops: Iterable[Op]) -> list[tail_reader.Group]:
    return [group for op in ops if op.kind == WRITE and op.data[:4] == b"DBG1" and (group := tail_reader.parse_group(op.data))]


def history_of(groups: Iterable[tail_reader.Group], key: bytes) -> dict[int, Boundary]:
    """The chain from its beginning: at each group's end its hash and the digest of a replay."""
    follows: dict[bytes, tail_reader.Group] = {}
    for group in groups:
        other = follows.setdefault(group.previous_hash, group)
        assert other.hash == group.hash, "two groups follow the same one"
    history: dict[int, Boundary] = {}
    ledger: Any = None
    at = follows.get(bytes(32))
    while at is not None:
        if ledger is None:
            ledger = LocalLedger.replay([], identity_key=key, reservations_max=4096, **SIZES)
        for entry in at.entries:
            assert ledger.apply(entry) == 0
        digest = int.from_bytes(ledger.digest(), "little")
        history[at.last_sequence] = Boundary(at.hash.hex(), f"{digest:032x}")
        at = follows.get(at.hash)
    return history


def copy_of(directory: Path, to: Path) -> Path:
    """A directory that nobody uses, copied."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(directory, to)
    return to
