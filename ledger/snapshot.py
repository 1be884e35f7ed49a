"""Snapshots of a data directory: which there are, which one can be used, and how long they are kept.

A snapshot is never needed: it only spares a start the replay of what came before. So whatever is wrong with one, it is passed over with
a warning that says why. Not for a file's bytes (ledger/_snapshot.pyx). Used by ledger/engine.py, ledger/follower.py and back-ups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ledger import limits
from ledger._snapshot import Snapshot, SnapshotUnusable

FOLDER = "snapshots"
SUFFIX = ".snap"

Say = Callable[[str], None]


def paths(data: Path) -> list[Path]:
    """The snapshots of a directory, the newest first."""
    try:
        found = [path for path in (Path(data) / FOLDER).iterdir() if path.suffix == SUFFIX and path.stem.isdigit()]
    except OSError:
        return []
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def path_of(data: Path, sequence: int) -> Path:
    return Path(data) / FOLDER / f"{sequence:020d}{SUFFIX}"


def usable(data: Path, directory: bytes, warn: Say) -> Iterator[Snapshot]:
    """The snapshots that are this directory's by their heads, the newest first; the others are warned of."""
    for path in paths(data):
        try:
            snapshot = Snapshot(path)
            if snapshot.directory != directory:
                raise SnapshotUnusable(f"it belongs to data directory {snapshot.directory.hex()}, this one is {directory.hex()}")
            if snapshot.sequence != int(path.stem):
                raise SnapshotUnusable(f"it ends with entry {snapshot.sequence}, its name says {int(path.stem)}")
        except SnapshotUnusable as why:
            passed_over(path, why, warn)
        else:
            yield snapshot


def passed_over(path: Path | str, why: object, warn: Say) -> None:
    warn(f"snapshot {path} is passed over: {why}")


def new_file(data: Path) -> tuple[int, Path]:
    """An empty file for a snapshot still to be written: descriptor and temporary name. Errors: OSError."""
    folder = Path(data) / FOLDER
    if not folder.exists():
        folder.mkdir(mode=0o750)
        _sync(Path(data))
    path = folder / "new"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640), path


def finish(data: Path, new: Path, sequence: int) -> Path:
    """Give a complete, flushed file its name, and keep SNAPSHOTS_KEPT. Errors: OSError.

    Those that are ahead of it were passed over when its writer began, so they go too.
    """
    path = path_of(data, sequence)
    new.rename(path)
    _sync(path.parent)
    found = paths(data)
    for other in found:
        if other not in found[found.index(path):][:limits.SNAPSHOTS_KEPT]:
            other.unlink(missing_ok=True)
    return path


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
