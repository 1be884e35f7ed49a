"""Compiled programmes as files: an image named by its content hash, its YAML source beside it.

Not for compiling (`ledger/rules/`) nor for the journal, which carries image and source in its own entries.
`wallets_of` reads images of any version, also those of old journals. The images themselves are out of git.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Protocol

HASHED_FROM = 40
MAGIC = b"RULE"


class Compiled(Protocol):
    """What is written: `ledger.rules.CompiledProgram`."""

    image: bytes
    source: bytes
    hash: str


class ImageError(Exception):
    """A file that is no whole image."""


def write_image(folder: Path, compiled: Compiled) -> Path:
    """Write HASH.image and HASH.yaml into `folder` (made when missing); the image's path. What is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, data in ((".yaml", compiled.source), (".image", compiled.image)):
        path = folder / (compiled.hash + suffix)
        if not path.exists():
            part = path.with_suffix(suffix + ".part")
            part.write_bytes(data)
            part.replace(path)
    return folder / (compiled.hash + ".image")


def read_image(path: Path) -> bytes:
    """The image in a file, its hash checked. ImageError: another file, or damage. OSError."""
    image = path.read_bytes()
    if len(image) < HASHED_FROM or image[:4] != MAGIC:
        raise ImageError(f"{path} is not a compiled programme: it must begin with {MAGIC!r}, begins with {image[:4]!r}")
    found = hashlib.sha256(image[HASHED_FROM:]).digest()
    if found != image[8:40]:
        raise ImageError(f"{path} is damaged: its content hashes to {found.hex()}, must be {image[8:40].hex()}; compile it again")
    return image


def wallets_of(image: bytes) -> list[tuple[str, int]]:
    """Names and scales of an image's wallets, in order. image: of any version, checked."""
    version = int.from_bytes(image[4:8], "little")
    offset, count = struct.unpack_from("<II", image, 160 if version == 1 else 256 + 8)
    record = 40 if version == 1 else 48
    rows = [struct.unpack_from("<32sI", image, offset + record * i) for i in range(count)]
    return [(name.rstrip(b"\0").decode(), scale) for name, scale in rows]
