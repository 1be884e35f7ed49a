"""Compiles and compares programmes in a process of their own, whose `main` reads one job and writes its result.

A compiler takes seconds of processor and much memory; the service has neither to spare, and a mistake in it must not be the service's end.
So whoever publishes starts this for one job. Both ways are pickles between two processes of one user. Called by server/rules.py.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ledger.rules import difference, syntax
from ledger.rules.syntax import ProgramError

if TYPE_CHECKING:
    from ledger.rules.fits import Unfit

NICE = 10  # tills go first
FILE = "source"  # how mistakes call the programme


class Job(NamedTuple):
    """source: compile it, after the programme of image `before` (published as version `before_version`); empty: only compare.
    files: what it reads beside itself. old, new: sources to compare; new empty: the one that is compiled; old empty: nothing is compared.
    """

    source: bytes = b""
    files: tuple[tuple[str, bytes], ...] = ()
    before: bytes = b""
    before_version: int = 0
    old: bytes = b""
    new: bytes = b""


class Done(NamedTuple):
    """What came of it. mistakes: `source:LINE:COLUMN: what, and what would be right`; then nothing else is there."""

    image: bytes = b""
    differences: tuple[difference.Difference, ...] = ()
    warnings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()


def run(job: Job) -> Done:
    """One job, here."""
    image, mistakes = b"", []
    try:
        if job.source:
            image = _compile(job.source, job.files)
            mistakes = [_placed(job.source, one) for one in _unfit(job, image)]
        compared = difference.differences(job.old, job.new or job.source) if job.old and not mistakes else []
    except ProgramError as error:
        mistakes = str(error).split("\n")
    return Done(mistakes=tuple(mistakes)) if mistakes else Done(image, tuple(compared))


def _compile(source: bytes, files: tuple[tuple[str, bytes], ...]) -> bytes:
    _check_files(source, {name for name, _ in files})
    with tempfile.TemporaryDirectory(prefix="daybook-rules-") as folder:
        for name, content in files:
            (Path(folder) / name).write_bytes(content)
        from ledger.rules import compile_source  # and what it needs, which comparing does not

        return compile_source(source, FILE, Path(folder)).image


def _check_files(source: bytes, names: set[str]) -> None:
    """A programme that was sent reads what was sent with it, and nothing of this machine. Errors: ProgramError."""
    problems = syntax.Problems(FILE)
    for key, node in syntax.tables(syntax.parse(source, FILE)):
        if node.value not in names:
            sent = ", ".join(sorted(names)) or "none"
            problems.add(node, f"{key}: must be one of the files that were sent with it ({sent}), was {syntax.shown(node)}")
    problems.raise_if_any()


def _unfit(job: Job, image: bytes) -> list[Unfit]:
    from ledger.rules import fits

    return fits.unfit(fits.names_of(job.before), fits.names_of(image), job.before_version) if job.before else []


def _placed(source: bytes, one: Unfit) -> str:
    """Where the key of an Unfit stands."""
    for key, _ in syntax.parse(source, FILE).value:
        if key.value == one.key:
            return f"{FILE}:{key.start_mark.line + 1}:{key.start_mark.column + 1}: {one.key}: {one.text}"
    return f"{FILE}:1:1: {one.key}: {one.text}"


def main() -> None:
    """Read a job from standard input, write its result to standard output."""
    os.nice(NICE)
    sys.stdout.buffer.write(pickle.dumps(run(pickle.load(sys.stdin.buffer))))

