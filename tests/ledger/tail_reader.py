"""A second reader of the tail and of groups, written from docs/journal-format.md alone. The tests compare the engine's bytes with it."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

BLOCK = 4096
_HEADER = struct.Struct("<IHHIIQQqII16s32s32s")
_MAGIC = int.from_bytes(b"DBG1", "little")


class Group(NamedTuple):
    """A sound group. `position`: in the ring; the file has it 4096 bytes later."""

    position: int
    first_sequence: int
    drained_sequence: int
    time_us: int
    count: int
    size: int
    directory: bytes
    previous_hash: bytes
    hash: bytes
    entries: list[bytes]

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.count - 1

    @property
    def span(self) -> int:
        return -(-(128 + self.size) // BLOCK) * BLOCK


def parse_group(raw: bytes, position: int = 0) -> Group | None:
    """A group at the start of `raw`, or None when none is sound there."""
    if len(raw) < 128:
        return None
    fields = _HEADER.unpack_from(raw)
    magic, version, flags, shard, epoch, first, drained, time_us, count, size, directory, previous, digest = fields
    if (magic, version, flags, shard) != (_MAGIC, 1, 0, 0) or epoch == 0 or count == 0 or 128 + size > len(raw):
        return None
    body = raw[128 : 128 + size]
    if hashlib.sha256(raw[:96] + body).digest() != digest:
        return None
    entries, at = [], 0
    while at < size:
        length = struct.unpack_from("<I", body, at)[0]
        entries.append(body[at : at + length])
        at += length
    assert len(entries) == count and at == size
    return Group(position, first, drained, time_us, count, size, directory, previous, digest, entries)


def ring(tail: Path) -> bytes:
    return tail.read_bytes()[BLOCK:]


def groups(tail: Path) -> list[Group]:
    """Every sound group anywhere in the ring, by sequence."""
    raw = ring(tail)
    found = (parse_group(raw[at : at + (5 << 20)], at) for at in range(0, len(raw), BLOCK) if raw[at : at + 4] == b"DBG1")
    return sorted((group for group in found if group), key=lambda group: group.first_sequence)
