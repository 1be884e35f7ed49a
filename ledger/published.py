"""The versions of the programme as the journal tells them: the PUBLISHED section, and which version is in force when.

For: whoever reads PROGRAM entries outside the core (the control port, the follower, exports). Not for images (ledger/rules) and not for
finding entries. The bytes are docs/journal-format.md; entries that are older than the section have an image of their own, at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ledger import limits

KIND_PROGRAM = 20
ENTRY_HEADER = struct.Struct("<IBBHqII16s")
CONTEXT, IMAGE, SOURCE, PUBLISHED, PART = 1, 10, 11, 29, 30
SENT_TIME, OPERATOR, REASON = 1, 131, 132
HASH_AT, NAME_AT, NAME_BYTES, RULES_AT, TABLE_AT = 8, 120, 40, 60, 208  # of an image; the latter two of version 2
LIMITS, LIMIT_NAME_BYTES = 44, 64  # a section of such an image, where there are limits; a name begins its record
IMAGE_BYTES_MIN = 192
WARNING_BYTES_MAX = 500


class Wallet(NamedTuple):
    """A wallet as the journal knows it: all versions together, in their order."""

    name: str
    scale: int


class Told(NamedTuple):
    """What a version says of itself, so that nobody needs its image for it."""

    wallets: tuple[Wallet, ...]
    places: tuple[int, ...]  # sequences of the entries that hold the image, in its order; none: the entry itself
    rule_count: int
    name: str
    warnings: tuple[str, ...]


class Version(NamedTuple):
    """One PROGRAM entry."""

    number: int  # from 1
    sequence: int
    time_us: int  # server time of the entry
    effective_us: int  # server time from which it is in force
    asked_us: int  # the moment that was asked for; 0: at once
    again: int  # the version whose source it is; 0: it has one of its own
    before: int  # the version in force when it was published; 0: none
    hash: bytes
    size: int  # of the image
    told: Told
    operator: str
    reason: str


class Broken(ValueError):
    """These bytes are no PROGRAM entry. `str()` says which."""


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise Broken("a section of a PROGRAM entry is cut off")
        self.at += size
        return self.data[self.at - size:self.at]

    def varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise Broken("a number of a PROGRAM entry has no end")

    def signed(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def text(self) -> str:
        return self.take(self.take(1)[0]).decode()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return bytes([len(encoded)]) + encoded


def pack(told: Told) -> bytes:
    """The end of a PUBLISHED section. Warnings that are too long or too many are cut: they are for people."""
    parts = [_varint(len(told.wallets)), *(_text(name) + bytes([scale]) for name, scale in told.wallets), _varint(len(told.places))]
    parts += [_varint(place - before) for before, place in zip((0, *told.places), told.places, strict=False)]
    warnings = [text.encode()[:WARNING_BYTES_MAX].decode(errors="ignore").encode() for text in told.warnings[:limits.RULES_WARNINGS_MAX]]
    parts += [_varint(told.rule_count), _text(told.name), _varint(len(warnings))]
    parts += [_varint(len(text)) + text for text in warnings]
    return b"".join(parts)


def _told(data: _Bytes) -> Told:
    wallets = tuple(Wallet(data.text(), data.take(1)[0]) for _ in range(data.varint()))
    places, place = [], 0
    for _ in range(data.varint()):
        place += data.varint()
        places.append(place)
    rule_count, name = data.varint(), data.text()
    return Told(wallets, tuple(places), rule_count, name, tuple(data.take(data.varint()).decode() for _ in range(data.varint())))


def read_published(section: bytes) -> dict[str, object]:
    """A PUBLISHED section as plain values. Errors: Broken."""
    data = _Bytes(section)
    value: dict[str, object] = {"asked_us": data.signed(), "again": data.varint(), "content": data.take(8), "hash": data.take(32),
                                "size": data.varint()}
    return {**value, **_told(data)._asdict()}


def read_part(section: bytes) -> dict[str, object]:
    """A PART section as plain values. Errors: Broken."""
    data = _Bytes(section)
    return {"hash": data.take(32), "size": data.varint(), "offset": data.varint(), "bytes": data.take(len(section) - data.at)}


def sections(entry: bytes) -> dict[int, bytes]:
    """An entry's sections by type. Errors: Broken."""
    found, at = {}, ENTRY_HEADER.size
    while at < len(entry):
        size = int.from_bytes(entry[at + 1:at + 4], "little")
        if len(entry) - at < 4 + size:
            raise Broken("a section runs past its entry's end")
        found[entry[at]] = entry[at + 4:at + 4 + size]
        at += 4 + size
    return found


def _who_and_why(context: bytes) -> tuple[str, str]:
    data, texts = _Bytes(context), {OPERATOR: "", REASON: ""}
    while data.at < len(context):
        tag = data.take(1)[0]
        if tag < 128:
            data.varint()
        else:
            texts[tag] = data.text()
    return texts[OPERATOR], texts[REASON]


def told_of(image: bytes) -> Told:
    """What an image says of itself. Errors: Broken."""
    if len(image) < IMAGE_BYTES_MIN:
        raise Broken("an image is cut off")
    name = image[NAME_AT:NAME_AT + NAME_BYTES].rstrip(b"\0").decode()
    if image[4:8] == b"\1\0\0\0":
        at, count, _, rule_count = struct.unpack_from("<IIII", image, 160)
        record = 40
    else:
        rule_count, table = (int.from_bytes(image[at:at + 4], "little") for at in (RULES_AT, TABLE_AT))
        if table + 16 > len(image):
            raise Broken("an image is cut off")
        _, record, at, count = struct.unpack_from("<IIII", image, table)  # wallets are the first section
    if count > limits.WALLETS_MAX:
        raise Broken(f"an image has {count} wallets")
    rows = (image[at + record * i:at + record * (i + 1)] for i in range(count))
    wallets = tuple(Wallet(row[:32].rstrip(b"\0").decode(), int.from_bytes(row[32:36], "little")) for row in rows)
    return Told(wallets, (), rule_count, name, ())


def limit_names(image: bytes) -> list[str]:
    """Names of an image's limits, in their order: limit 1 is the first. Errors: Broken."""
    if image[4:8] == b"\1\0\0\0":
        return []
    if len(image) < TABLE_AT + 8:
        raise Broken("an image is cut off")
    table, sections_ = struct.unpack_from("<II", image, TABLE_AT)
    if table + 16 * sections_ > len(image):
        raise Broken("an image is cut off")
    for kind, record, at, count in struct.iter_unpack("<IIII", image[table:table + 16 * sections_]):
        if kind == LIMITS:
            if at + record * count > len(image):
                raise Broken("an image is cut off")
            return [image[at + record * i:at + record * i + LIMIT_NAME_BYTES].rstrip(b"\0").decode(errors="replace") for i in range(count)]
    return []


def read_version(number: int, sequence: int, entry: bytes) -> Version:
    """What a PROGRAM entry says of its version. Errors: Broken."""
    if len(entry) < ENTRY_HEADER.size:
        raise Broken(f"entry {sequence} is cut off")
    _, kind, _, _, time_us, _, before, _ = ENTRY_HEADER.unpack_from(entry)
    if kind != KIND_PROGRAM:
        raise Broken(f"entry {sequence} is no PROGRAM entry")
    parts = sections(entry)
    image = parts.get(IMAGE, b"")
    operator, reason = _who_and_why(parts.get(CONTEXT, b""))
    if PUBLISHED not in parts:
        return Version(number, sequence, time_us, time_us, 0, 0, before, image[HASH_AT:HASH_AT + 32], len(image), told_of(image), operator,
                       reason)
    data = _Bytes(parts[PUBLISHED])
    asked_us, again = data.signed(), data.varint()
    data.take(8)
    hash_, size = data.take(32), data.varint()
    return Version(number, sequence, time_us, max(asked_us, time_us), asked_us, again, before, hash_, size, _told(data), operator, reason)


def source_of(entry: bytes) -> bytes:
    """The YAML in a PROGRAM entry; empty where the version is an earlier one's again. Errors: Broken."""
    return sections(entry).get(SOURCE, b"")


def image_of(entry: bytes, read: Callable[[Sequence[int]], Iterable[bytes]]) -> bytes:
    """The image of a PROGRAM entry. read: entries by their sequences, in their order. Errors: Broken, and what `read` raises."""
    parts = sections(entry)
    if IMAGE in parts:
        return parts[IMAGE]
    if PUBLISHED not in parts:
        raise Broken("a PROGRAM entry has no image")
    told = read_published(parts[PUBLISHED])
    image = b""
    for place in read(told["places"]):  # type: ignore[arg-type]
        held = sections(place)
        image += held[IMAGE] if IMAGE in held else read_part(held.get(PART, b""))["bytes"]  # type: ignore[operator]
    if len(image) != told["size"] or image[HASH_AT:HASH_AT + 32] != told["hash"]:
        raise Broken("the parts of an image do not fit each other")
    return image


def in_force(effective_us: Iterable[int], at_us: int) -> int:
    """The version in force at a server time, from 1; 0: none yet. effective_us: of all versions, in their order. The latest moment that has
    come counts, of equal ones the later version."""
    best, best_us = 0, 0
    for number, moment in enumerate(effective_us, 1):
        if best_us <= moment <= at_us:
            best, best_us = number, moment
    return best
