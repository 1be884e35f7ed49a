"""The rule compiler: a programme in YAML to a checked, content-hashed image for the core.

Not for running rules (the core does, `ledger/_evaluate.pxd`) nor for keeping images (`ledger/rules_compiled/`). Called by
`daybook serve` and `daybook compile`. Way of a file: `syntax` -> `check` -> `tree` -> `lower2`; `reference` says what it means.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ledger import limits
from ledger.rules import words
from ledger.rules.check import check_source
from ledger.rules.image2 import image_hash
from ledger.rules.lower2 import lower_programme
from ledger.rules.syntax import ProgramError, with_lines
from ledger.rules.tree import Programme

__all__ = ["CompiledProgram", "ProgramError", "Programme", "compile_file", "compile_source", "describe", "with_lines"]


class CompiledProgram(NamedTuple):
    """A programme in all its forms. `hash`: the image's content hash, 64 hex digits. `program`: the checked tree."""

    image: bytes
    source: bytes
    hash: str
    program: Programme


def compile_file(path: Path) -> CompiledProgram:
    """Compile a YAML file; its tables are beside it. ProgramError: it cannot be read, or what is wrong with it, one line per problem."""
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ProgramError(f"{path}: cannot be read: {error.strerror}") from None
    return compile_source(source, str(path), path.parent)


def compile_source(source: bytes, file: str = "<programme>", folder: Path | None = None) -> CompiledProgram:
    """Compile YAML text. `file`: its name in messages; `folder`: where its tables are. ProgramError: what is wrong, a line per problem."""
    if len(source) > limits.SOURCE_BYTES_MAX:
        raise ProgramError(f"{file}:1:1: the file must have at most {limits.SOURCE_BYTES_MAX} bytes, has {len(source)}")
    with uncollected():
        programme = check_source(source, file, folder)
        try:
            image = lower_programme(programme)
        except ValueError as error:
            raise ProgramError(f"{file}:1:1: {error}") from None
    return CompiledProgram(image, source, image_hash(image), programme)


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection of cyclic garbage meanwhile: a compiler makes millions of objects, no cycles; walking them took a third of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def describe(compiled: CompiledProgram) -> list[tuple[str, str]]:
    """What a programme says, in words: rows of (title, text) for people."""
    return [*words.describe(compiled.program), ("image", f"{len(compiled.image)} bytes"), ("hash", compiled.hash)]
