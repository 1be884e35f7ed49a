"""Writes data directories in plain Python from docs/journal-format.md, sound ones and damaged ones, for the tests of verify.

Not for the service's own writing and never imported by it: this is the second writer beside the compiled one.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path

import lmdb

from ledger import limits
from ledger.rules import compile_file

ROOT = Path(__file__).resolve().parents[2]
BLOCK = limits.TAIL_BLOCK_BYTES
DIRECTORY = bytes(range(16))
TIME_US = 1_790_000_000_000_000
DAY = 20_700


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def signed(value: int) -> bytes:
    return varint((value << 1 ^ value >> 63) & 0xFFFF_FFFF_FFFF_FFFF)


def text(value: str) -> bytes:
    return bytes([len(value.encode())]) + value.encode()


def section(number: int, data: bytes) -> bytes:
    return bytes([number]) + len(data).to_bytes(3, "little") + data


def entry(kind: int, *sections: bytes, time_us: int = TIME_US, member: int = 0, opened: bool = False, program: int = 1,
          request: bytes = bytes(16), status: int = 0) -> bytes:
    body = b"".join(sections)
    return struct.pack("<IBBHqII16s", 40 + len(body), kind, opened, status, time_us, member, program, request) + body


def program_entry() -> bytes:
    compiled = compile_file(ROOT / "programs" / "base.yaml")
    return entry(20, section(10, compiled.image), section(11, compiled.source), section(12, bytes(16)), program=0)


def request_of(number: int) -> bytes:
    return hashlib.md5(number.to_bytes(8, "little")).digest()


def earn(member: int, points: int, *, opened: bool = False, member_side: int | None = None, request: int = 0,
         time_us: int = TIME_US) -> bytes:
    """An earn into one lot. member_side: another number in the member's posting, to break the sum."""
    side = points if member_side is None else member_side
    lines = b"".join(text(f"40063813{i:05d}") + text("dairy") + varint(1000) + signed(points * 20 // 6) for i in range(6))
    return entry(
        1, section(1, bytes([1]) + signed(-1000) + bytes([7]) + signed(20260921) + bytes([8]) + signed(points * 20) + b"\x80" + text("0417")
                   + b"\x81" + text("3") + b"\x82" + text(f"n{request}")),
        section(2, bytes([1]) + varint(0) + signed(side) + bytes([2]) + varint(0) + signed(-points)),
        section(3, varint(0) + varint(DAY) + varint(DAY + 365) + varint(0) + signed(points) + signed(0)),
        section(4, lines), section(5, varint(0) + varint(1) + varint(0) + signed(points)),
        section(6, varint(0) + signed(points) + signed(0) + signed(0)),
        *([section(8, bytes([2]) + request_of(member))] if opened else []),
        member=member, opened=opened, request=request_of(request), time_us=time_us)


def burn(member: int, points: int, *, request: int = 0) -> bytes:
    return entry(
        2, section(1, bytes([1]) + signed(0) + bytes([3]) + signed(0) + bytes([4]) + signed(points)),
        section(2, bytes([1]) + varint(0) + signed(-points) + bytes([3]) + varint(0) + signed(points)),
        section(3, varint(0) + varint(DAY) + varint(DAY + 365) + varint(0) + signed(-points) + signed(0)),
        member=member, request=request_of(request))


@dataclass
class Forge:
    """A journal in the making: add groups, then write a directory."""

    groups: list[bytes] = field(default_factory=list)
    sequence: int = 0
    hash: bytes = bytes(32)

    def add(self, *entries: bytes, drained: int = 0, time_us: int = TIME_US, directory: bytes = DIRECTORY, epoch: int = 1) -> bytes:
        """The next group of the chain."""
        body = b"".join(entries)
        head = struct.pack("<4sHHIIQQqII16s32s", b"DBG1", 1, 0, 0, epoch, self.sequence + 1, drained, time_us, len(entries), len(body),
                           directory, self.hash)
        self.hash = hashlib.sha256(head + body).digest()
        self.sequence += len(entries)
        self.groups.append(head + self.hash + body)
        return self.groups[-1]

    def write(self, data: Path, *, drained_groups: int | None = None, tail_bytes: int = limits.TAIL_BYTES_MIN) -> Path:
        """All groups in the tail's ring, as a service leaves it; the first drained_groups (default: all) in LMDB."""
        count = len(self.groups) if drained_groups is None else drained_groups
        (data / "journal").mkdir(parents=True)
        (data / "FORMAT").write_text(f"daybook 1\n{DIRECTORY.hex()}\n")
        (data / "LOCK").touch()
        position, drained_position = 0, 0
        with (data / "tail").open("wb") as file:
            file.write(tail_head(tail_bytes))
            for index, group in enumerate(self.groups):
                drained_position = position if index <= count - 1 else drained_position
                file.seek(BLOCK + position)
                file.write(group)
                position += -(-len(group) // BLOCK) * BLOCK
                if index == count - 1:
                    drained_position = position
            file.truncate(tail_bytes)
        with lmdb.open(str(data / "journal"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4, sync=False) as env:
            groups, meta = env.open_db(b"groups", integerkey=True), env.open_db(b"meta")
            with env.begin(write=True) as transaction:
                for group in self.groups[:count]:
                    transaction.put(group[16:24], group, db=groups, append=True)
                transaction.put(b"directory", DIRECTORY, db=meta)
                if count:
                    last = self.groups[count - 1]
                    sequence = int.from_bytes(last[16:24], "little") + int.from_bytes(last[40:44], "little") - 1
                    transaction.put(b"drained", struct.pack("<Q32sQq", sequence, last[96:128], drained_position, TIME_US), db=meta)
        return data


def tail_head(tail_bytes: int) -> bytes:
    head = struct.pack("<8sIIQ16s", b"DAYTAIL1", 1, BLOCK, tail_bytes, DIRECTORY).ljust(BLOCK - 32, b"\0")
    return head + hashlib.sha256(head).digest()


def position_of(data: Path, first_sequence: int) -> int:
    """Where the group that begins with this sequence stands in the tail file."""
    blob = (data / "tail").read_bytes()
    for at in range(BLOCK, len(blob), BLOCK):
        if blob[at:at + 4] == b"DBG1" and int.from_bytes(blob[at + 16:at + 24], "little") == first_sequence:
            return at
    raise LookupError(first_sequence)
