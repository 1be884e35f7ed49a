"""Python's side of the preloaded shim (README.md). For tests that are about the disk; not for anything that ships."""

from __future__ import annotations

import atexit
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

TAIL, JOURNAL, META, OTHER, SOCKET, NAMES = 1, 2, 4, 8, 16, 32
WRITE, FLUSH, TRUNCATE, SEND, CREATE, RENAME, UNLINK, MKDIR, RMDIR, FLUSH_NAMES, STRANGE = range(1, 12)
DSYNC = 1
_LOG_BYTES = 256 << 20  # sparse
_RECORD = struct.Struct("<QQHHiqQQIIQQII")
_OPS, _FILES, _FAIL_AT, _FAIL_ERRNO, _FAIL_COUNT, _FAILED = range(6)
_DELAY_US, _DELAYED, _FREE_SET, _FREE_BYTES, _CLOCK_STEP_US, _DROP_FLUSH, _SHORT_WRITE = range(6, 13)
_DIE_AT, _DIE_AFTER, _TICKS, _CAPTURE, _EPOLL_ERRNO = range(13, 18)


class Record(NamedTuple):
    """One operation, as shim.c logs it."""

    begin: int
    end: int
    op: int
    file: int
    fd: int
    result: int
    size: int
    offset: int
    thread: int
    time_ns: int
    content: bytes
    inode: int
    flags: int


@cache
def library() -> Path:
    """shim.c, compiled once per test run."""
    source = Path(__file__).with_name("shim.c")
    folder = tempfile.TemporaryDirectory(prefix="daybook-shim-")
    atexit.register(folder.cleanup)
    out = Path(folder.name) / "shim.so"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(out), str(source), "-ldl"], check=True)
    return out


class Shim:
    """One log and one control file; processes started with environment() obey and fill them. `disk`: see SHIM_DISK in shim.c."""

    def __init__(self, folder: Path, disk: Path | None = None) -> None:
        self._disk = disk
        self._control_path, self._log_path = folder / "shim.control", folder / "shim.log"
        self._control_path.write_bytes(bytes(512))
        with self._log_path.open("wb") as file:
            file.truncate(_LOG_BYTES)
        self._attach()
        self._set(_FILES, TAIL | JOURNAL | META)

    def _attach(self) -> None:
        self._control = self._map(self._control_path)
        self._log = self._map(self._log_path)

    @classmethod
    def attach(cls, folder: Path, disk: Path | None = None) -> Self:
        """The shim that was made in this folder."""
        self = cls.__new__(cls)
        self._control_path, self._log_path, self._disk = folder / "shim.control", folder / "shim.log", disk
        self._attach()
        return self

    @staticmethod
    def _map(path: Path) -> mmap.mmap:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    def _get(self, word: int) -> int:
        return struct.unpack_from("<Q", self._control, word * 8)[0]

    def _set(self, word: int, value: int) -> None:
        struct.pack_into("<q", self._control, word * 8, value)

    def environment(self) -> dict[str, str]:
        disk = {} if self._disk is None else {"SHIM_DISK": str(self._disk)}
        files = {"SHIM_CONTROL": str(self._control_path), "SHIM_LOG": str(self._log_path)}
        return {**os.environ, **files, **disk, "LD_PRELOAD": str(library())}

    def fail(self, number: int, code: int, *, count: int = 1, files: int = TAIL | JOURNAL | META, short: bool = False) -> None:
        """The `number`th operation from now on (from 1), and count - 1 behind it, fail with errno `code`; `short`: a half write."""
        self.heal()
        for word, value in ((_FILES, files), (_FAIL_ERRNO, code), (_FAIL_COUNT, count), (_SHORT_WRITE, int(short)), (_FAIL_AT, number)):
            self._set(word, value)

    def die(self, number: int, *, after: bool, files: int = TAIL | JOURNAL | META | OTHER | NAMES) -> None:
        """The process kills itself right before or after the `number`th operation from now on (from 1)."""
        self.heal()
        for word, value in ((_FILES, files), (_DIE_AFTER, int(after)), (_DIE_AT, number)):
            self._set(word, value)

    def heal(self) -> None:
        for word in (_FAIL_AT, _DIE_AT, _OPS, _FAILED):
            self._set(word, 0)

    def failed(self) -> int:
        return self._get(_FAILED)

    def place(self) -> int:
        """The last place given out in the order of all operations."""
        return self._get(_TICKS)

    def operations(self) -> int:
        return self._get(_OPS)

    def delay_flush(self, us: int) -> None:
        self._set(_DELAY_US, us)

    def delayed(self) -> int:
        return self._get(_DELAYED)

    def free_bytes(self, value: int | None) -> None:
        self._set(_FREE_BYTES, value or 0)
        self._set(_FREE_SET, int(value is not None))

    def step_clock(self, us: int) -> None:
        self._set(_CLOCK_STEP_US, us)

    def fail_loop(self, code: int) -> None:
        """From now on the hot thread's epoll_wait fails with errno `code`."""
        self._set(_EPOLL_ERRNO, code)

    def drop_flushes(self) -> None:
        self._set(_DROP_FLUSH, 1)

    def reset(self) -> None:
        """As it was made; the order goes on."""
        ticks = self.place()
        self._control[:] = bytes(len(self._control))
        self._set(_TICKS, ticks)
        self._set(_FILES, TAIL | JOURNAL | META)
        self.clear()

    def capture(self, on: bool) -> None:
        """Keep the content of every write on the disk."""
        self._set(_CAPTURE, int(on))

    def clear(self) -> None:
        """Forget all records. Not while a process writes some."""
        struct.pack_into("<Q", self._log, 0, 0)

    def records(self) -> Iterator[Record]:
        """All operations, in the order in which they began. Call when the process has ended or is quiet."""
        used = struct.unpack_from("<Q", self._log, 0)[0]
        assert used + 8 <= _LOG_BYTES, "the shim's log is full: make _LOG_BYTES larger"
        at = 8
        while at < used + 8:
            begin, end, op, file, fd, result, size, offset, captured, thread, time_ns, inode, flags, _ = _RECORD.unpack_from(self._log, at)
            assert op, "a process was killed while it wrote its record: kill it when it is quiet, or with die()"
            at += _RECORD.size
            kept = min(captured, max(result, 0)) if op == SEND else captured
            yield Record(begin, end, op, file, fd, result, size, offset, thread, time_ns, bytes(self._log[at : at + kept]), inode, flags)
            at += (captured + 7) & ~7
