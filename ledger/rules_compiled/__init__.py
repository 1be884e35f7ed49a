"""Compiled programmes as files: an image named by its content hash, its YAML source beside it.

Not for compiling (`ledger/rules/`) nor for the journal, which carries image and source in its own entries.
The images themselves are out of git.
"""

from __future__ import annotations

import hashlib
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
