"""Start, recover, stop: the data directory around the engine.

For: creating and opening a data directory, refusing what is wrong with it in one clear sentence, running the flush and the drain
thread, and the clean end. Not for the loop's steps (ledger/_engine.pyx), sockets or flags (server/). Called by `daybook serve` and
tests; ledger/restore.py makes a directory from the same parts.

The bytes on disk are docs/journal-format.md. A start after a clean stop is the same as a start after kill -9: both recover.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ledger import ids, limits, published, snapshot
from ledger._engine import EngineHandle, StartRefused
from ledger._snapshot import SnapshotUnusable, TablesTooSmall
from ledger.rules import CompiledProgram, ProgramError, compile_file

__all__ = ["EngineHandle", "OpenLedger", "Recovered", "StartRefused", "create_tail", "open_ledger", "read_key", "sync_directory",
           "sync_way", "write_file"]

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): what is "tail" (bytes written), "snapshot" (bytes loaded) or "journal" (entries replayed)."""

FORMAT_VERSION = 1
IMAGE_VERSION = 2  # of images that decide; older ones are only read
_FORMAT = re.compile(rb"daybook (\d+)\n([0-9a-f]{32})\n")
_KEY = re.compile(rb"([0-9a-f]{32})\n?")
_BLOCK = limits.TAIL_BLOCK_BYTES
_BLOCK_0 = struct.Struct("<8sIIQ16s")
_TAIL_MAGIC, _TAIL_VERSION = b"DAYTAIL1", 1
_CHUNK_BYTES = 1 << 20  # the tail is written in steps of a megabyte, so that progress can be seen
_LOCK_TRIES, _LOCK_STEP_MS = 20, 10  # a back-up looks at the lock for some microseconds: that must not refuse a start
_FIRST_PAGES_BYTES = 8192  # LMDB's two meta pages: a data.mdb that is shorter would be taken for a new one

STATS = """Keys of EngineHandle.stats(). All numbers are plain integers; a histogram is {"bounds", "counts", "sum"} with upper bounds.

core                 counts of the state at the last applied entry; per wallet the points issued, redeemed, expired, ...
memory_bytes         bytes by table: in use for the core's tables, reserved for ring, inbox and outbox
durable_sequence     every entry up to here is on disk; drained_sequence: is in LMDB
head_sequence, head_hash    what `verify --expect-head` takes
groups               groups made durable since the start; group_entries, group_bytes: histograms
flush_us, drain_us   histograms: hash + write + flush of a group; one LMDB transaction
drain_lag_entries, drain_lag_us    durable but not in LMDB yet; age of the oldest such group
drain_failures       LMDB transactions that met a full disk or map (and were tried again)
inbox_calls, outbox_calls    calls of the control port on their way in and out
tail_used_bytes of tail_bytes, map_used_bytes of map_bytes, free_bytes against free_bytes_min
gate                 0 open, 1 closed: little free space, 2 closed: the drain meets a full disk or map; refused_full: writes refused
clock_stepped        1: realtime made a forward step that is not believed (clock_ahead_us); ticks stand still
clock_gap            1: the clock was more than 7 days ahead of the journal at start and is not believed; ticks stand still
clock_behind_us      how far realtime is behind server time
turns, ticks, digests    of the hot loop; entries written by ticks; DIGEST entries written since the start
ids                  runs of dropped keys: runs, keys, bytes, failures (no space, tried again), refused_behind; lookups, how many wait now,
                     unreadable, lookup_us and run_us (histograms)
finds_ring, finds_journal    entries read again for repeats: from memory, from LMDB
"""


class Recovered(NamedTuple):
    """What a start found."""

    created: bool  # a new data directory
    sequence: int  # last entry of journal and tail
    journal_sequence: int  # last entry that was in LMDB already
    tail_groups: int  # groups that were only in the tail
    gap_us: int  # above 0: the clock is this far ahead of the journal (more than 7 days) and not believed


class OpenLedger:
    """An open data directory with its engine. Order: start(), the hot thread runs and ends, stop()."""

    def __init__(self, data: Path, lock_fd: int, tail_fd: int, handle: EngineHandle, directory: bytes, program: CompiledProgram,
                 version: published.Version, recovered: Recovered, begun_at: int, sizes: dict[str, int]) -> None:
        self.data = data
        self.handle = handle
        self.directory = directory.hex()
        self.program = program
        self.recovered = recovered
        self.version = version  # of the programme in force
        self.begun_at = begun_at  # last entry of the snapshot that the start began with; 0: there was none, all was replayed
        self._fds = [tail_fd, lock_fd]
        self._sizes = sizes
        self._threads: list[threading.Thread] = []
        self.head = (0, "")  # after stop(): last sequence and its group's hash, for `verify --expect-head`

    def start(self) -> None:
        """Start the flush, the drain, the ids and the look-up thread. None takes the GIL again; a failure ends the process (status 70)."""
        assert not self._threads
        for name, body in (("flush", self.handle.run_flush), ("drain", self.handle.run_drain), ("ids", self.handle.run_ids),
                           ("lookups", self.handle.run_lookups)):
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, digest: bool = True) -> int:
        """End cleanly, after the hot thread has ended: last DIGEST entry, last flush, last drain, everything closed.

        Units:   returns the groups that a full disk kept out of LMDB; they lie in the tail and the next start finds them.
        """
        self.handle.end_threads()
        for thread in self._threads:
            thread.join()
        left = self.handle.finish(digest)
        self.head = self.handle.head
        self.close()
        return left

    def close(self) -> None:
        """Give everything back without a last entry; what is in memory only is lost, as with kill -9. Not while threads run."""
        self.handle.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def memory_plan(self) -> list[tuple[str, int]]:
        """Rows (what, bytes) of the memory that is reserved, largest first; most of it is touched only when used."""
        return sorted(self._sizes.items(), key=lambda row: -row[1])


def _warn(text: str) -> None:
    print(f"daybook: {text}", file=sys.stderr, flush=True)


def open_ledger(
    data: Path, program: Path, *, tail: Path | None = None, members_max: int = limits.MEMBERS_MAX_DEFAULT,
    ids_max: int = limits.IDS_MAX_DEFAULT, clock_file: Path | None = None, accept_time: bool = False,
    tail_bytes: int = limits.TAIL_BYTES_DEFAULT, progress: Progress | None = None, warn: Callable[[str], None] = _warn,
) -> OpenLedger:
    """Open a data directory, or create it, and recover its state.

    `tail`: another directory for the tail file. `tail_bytes`: its size when it is created. `clock_file`: a file of 8 bytes that holds the
    time (int64, us), for tests. `accept_time`: believe a clock more than 7 days ahead of the journal. `warn`: told why a snapshot is
    passed over.
    Errors: StartRefused, one sentence with what to do; nothing was written (an interrupted creation is begun anew by the next start).
    """
    _check_numbers(members_max, ids_max, tail_bytes)
    try:
        compiled = compile_file(program)
    except ProgramError as error:
        raise StartRefused(str(error)) from None
    data = Path(data).absolute()
    tail_path = (Path(tail).absolute() if tail is not None else data) / "tail"
    fds: list[int] = []
    try:
        _check_new(data, tail_path, tail_bytes)
        fds.append(_lock(data))
        directory, created = _identify(data, tail_path, tail_bytes, progress)
        key = read_key(data / "identity.key")
        if not (data / "journal" / "data.mdb").exists() or (data / "journal" / "data.mdb").stat().st_size < _FIRST_PAGES_BYTES:
            raise StartRefused(f"the journal {data / 'journal' / 'data.mdb'} is missing or cut off: restore the data directory from a "
                               "copy of one moment (journal and tail together)")
        try:
            ids.make(data, directory)
        except OSError as error:
            raise _refusal(error, f"{data / 'ids'} cannot be made") from None
        except ids.IdsRefused as error:
            raise StartRefused(str(error)) from None
        tail_fd, size = _open_tail(tail_path, directory)
        fds.insert(0, tail_fd)
        handle = _open_engine(data, tail_fd, size, directory, key, members_max, ids_max, clock_file, accept_time, create=False)
        try:
            begun_at = _load_snapshot(handle, data, directory, warn, progress)
            found = handle.recover(None if progress is None else lambda done, total: progress("journal", done, total))
            if not handle.versions() or _replaces(handle, compiled, program, warn):
                handle.seed(compiled.image, compiled.source)
            version = _version_in_force(handle)
        except BaseException:
            handle.close()
            raise
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    recovered = Recovered(created, found["sequence"], found["journal_sequence"], found["tail_groups"], found["gap_us"])
    sizes = dict(handle.plan())
    return OpenLedger(data, fds[1], fds[0], handle, directory, compiled, version, recovered, begun_at, sizes)


def _check_numbers(members_max: int, ids_max: int, tail_bytes: int) -> None:
    for name, value, low, high in (
        ("--members-max", members_max, 1, limits.MEMBERS_MAX_LIMIT),
        ("--ids-max", ids_max, 1, limits.IDS_MAX_LIMIT),
        ("the tail's size", tail_bytes, limits.TAIL_BYTES_MIN, limits.TAIL_BYTES_MAX),
    ):
        if not low <= value <= high:
            raise StartRefused(f"{name} must be {low}..{high}, was {value}")
    if tail_bytes % _BLOCK:
        raise StartRefused(f"the tail's size must be a multiple of {_BLOCK}, was {tail_bytes}")


def _load_snapshot(handle: EngineHandle, data: Path, directory: bytes, warn: Callable[[str], None], progress: Progress | None) -> int:
    """Begin with the newest snapshot that can be used. Returns its last sequence; 0: there is none. Errors: StartRefused."""
    for found in snapshot.usable(data, directory, warn):
        try:
            handle.load_snapshot(found, None if progress is None else lambda done, total: progress("snapshot", done, total))
        except SnapshotUnusable as why:
            snapshot.passed_over(found.path, why, warn)
        except TablesTooSmall as error:
            raise StartRefused(str(error)) from None
        else:
            return found.sequence
    return 0


def _version_in_force(handle: EngineHandle) -> published.Version:
    versions = handle.versions()
    number = published.in_force((moment for _, moment in versions), handle.time_us)
    return published.read_version(number, versions[number - 1][0], handle.find_entry(versions[number - 1][0]))


def _replaces(handle: EngineHandle, compiled: CompiledProgram, program: Path, warn: Callable[[str], None]) -> bool:
    """Whether the file's image takes the place of the one in force: the same source compiled anew, or whatever follows an image of
    version 1, which no build runs any more. It is said. Any version that was ever published may be named: what is in force stays.

    Errors: StartRefused: it is none of these.
    """
    versions = handle.versions()
    current = published.in_force((moment for _, moment in versions), handle.time_us)
    entries = {number: handle.find_entry(sequence) for number, (sequence, _) in enumerate(versions, 1)}
    told = {number: published.read_version(number, 0, entry) for number, entry in entries.items()}
    before = f"the programme that the journal runs (version {current}, hash {told[current].hash.hex()})"
    if int.from_bytes(handle.program_image()[4:8], "little") < IMAGE_VERSION:
        _check_wallets(told[current].told.wallets, compiled, program, before)
        warn(f"{program} (hash {compiled.hash}) takes the place of {before}: an older compiler made it")
        return True
    if any(version.hash.hex() == compiled.hash for version in told.values()):
        return False
    own = current
    while told[own].again:
        own = told[own].again
    if published.source_of(entries[own]) == compiled.source:
        warn(f"{program} (hash {compiled.hash}) takes the place of {before}: it is the same source, with a newer compiler or newer zone "
             "data")
        return True
    if any(published.source_of(entry) == compiled.source for entry in entries.values()):
        return False
    raise StartRefused(
        f"{program} (hash {compiled.hash}) is another programme than {before}, and was never published: a programme is changed with "
        f"PublishRules (`daybook rules publish {program}`) while the service runs, not by a restart; start with a file that was published")


def _check_wallets(kept: tuple[published.Wallet, ...], compiled: CompiledProgram, program: Path, before: str) -> None:
    wallets = tuple(published.Wallet(wallet.name, wallet.scale) for wallet in compiled.program.wallets)
    if wallets[:len(kept)] != kept:
        was, must = (", ".join(f"{name} (scale {scale})" for name, scale in names) for names in (wallets, kept))
        raise StartRefused(f"{program} cannot take the place of {before}: its wallets must begin with {must}, as there, but are {was}; "
                           "wallets keep order and scale for ever, new ones go last")


# --- the directory ----------------------------------------------------------------------------------------------

def _refusal(error: OSError, what: str) -> StartRefused:
    """A system error as a refusal: what was to be done, with which file, why not."""
    hints = {
        errno.EACCES: "give this user the right to read and write it", errno.EPERM: "give this user the right to read and write it",
        errno.EROFS: "the file system is read-only: mount it writable or name another directory",
        errno.ENOSPC: "free some space or name another directory", errno.ENOTDIR: "name a directory",
    }
    hint = hints.get(error.errno or 0)
    return StartRefused(f"{what}: {os.strerror(error.errno or 0)}" + (f"; {hint}" if hint else ""))


def _lock(data: Path) -> int:
    """Make the directory if need be and take its lock. Returns the descriptor that holds it."""
    try:
        data.mkdir(mode=0o750, parents=True, exist_ok=True)
    except FileExistsError:
        raise StartRefused(f"the data directory {data} is a file: name a directory") from None
    except OSError as error:
        raise _refusal(error, f"the data directory {data} cannot be made") from None
    try:
        fd = os.open(data / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise _refusal(error, f"the data directory {data} cannot be written") from None
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_LOCK_STEP_MS / 1000)
        else:
            return fd
    os.close(fd)
    raise StartRefused(f"the data directory {data} is in use by another process: stop it first, or name another directory")


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_way(path: Path) -> None:
    """The names that lead to a directory, up to its file system's root: it may have been made just now, by this start or one before."""
    device = path.stat().st_dev
    for above in path.parents:
        try:
            if above.stat().st_dev != device:
                return
            sync_directory(above)
        except PermissionError:
            continue  # a directory that this user may pass but not read: its names are not of our making


def write_file(path: Path, content: bytes, mode: int) -> None:
    """A small file, on disk under its name when this returns (the directory's own sync is the caller's)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def _identify(data: Path, tail_path: Path, tail_bytes: int, progress: Progress | None) -> tuple[bytes, bool]:
    """The directory's id, and whether the directory was created just now."""
    try:
        directory = _read_format(data / "FORMAT")
        sync_directory(data)  # a start that was killed may have given FORMAT its name without making that durable
        return directory, False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _refusal(error, f"{data / 'FORMAT'} cannot be read") from None
    try:
        if (data / "FORMAT.new").exists():
            _remove_remains(data, tail_path)
        _check_new(data, tail_path, tail_bytes)
        return _create(data, tail_path, tail_bytes, progress), True
    except OSError as error:
        raise _refusal(error, f"the data directory {data} cannot be created ({error.filename or tail_path})") from None


def _read_format(path: Path) -> bytes:
    content = path.read_bytes()
    found = _FORMAT.fullmatch(content)
    if found is None:
        raise StartRefused(f"{path} is not a format file of daybook (it should say 'daybook {FORMAT_VERSION}' and 32 hex digits): "
                           "name a data directory of daybook, or restore this file from a copy")
    if int(found[1]) != FORMAT_VERSION:
        raise StartRefused(f"{path} says format {int(found[1])}, this program reads format {FORMAT_VERSION}: "
                           "start the version that wrote it")
    return bytes.fromhex(found[2].decode())


def _check_new(data: Path, tail_path: Path, tail_bytes: int) -> None:
    """Whether a directory without FORMAT may be made ours; looks only. FORMAT.new: a creation was interrupted, its remains are ours."""
    try:
        names = {entry.name for entry in data.iterdir()} if data.is_dir() else set()
    except OSError as error:
        raise _refusal(error, f"the data directory {data} cannot be read") from None
    if "FORMAT" in names:
        return
    if "FORMAT.new" not in names:
        strangers = sorted(names - {"LOCK", "lost+found"})
        if strangers:
            raise StartRefused(f"the data directory {data} has no FORMAT file but is not empty ({', '.join(strangers[:5])}): "
                               "name an empty directory, or restore FORMAT from a copy")
        if tail_path.exists():
            raise StartRefused(f"the tail {tail_path} exists already, but the data directory {data} is new: "
                               "name another directory for the tail, or the data directory that the tail belongs to")
    if tail_path.parent != data:
        if not tail_path.parent.is_dir():
            raise StartRefused(f"the tail's directory {tail_path.parent} does not exist: make it first")
        if not os.access(tail_path.parent, os.W_OK | os.X_OK):
            raise StartRefused(f"the tail's directory {tail_path.parent} cannot be written: give this user the right to")
    home = tail_path.parent
    while not home.exists():
        home = home.parent
    space = os.statvfs(home)
    if space.f_bavail * space.f_frsize < tail_bytes:
        raise StartRefused(f"the tail needs {tail_bytes} bytes in {tail_path.parent}, {space.f_bavail * space.f_frsize} are free: "
                           "free some space or name another directory with --tail")


def _remove_remains(data: Path, tail_path: Path) -> None:
    """What an interrupted creation left. Nothing was ever acknowledged from it: FORMAT gets its name last."""
    ours = [tail_path.with_name("tail.new"), data / "journal" / "data.mdb", data / "journal" / "lock.mdb", data / "identity.key"]
    try:
        directory = _read_format(data / "FORMAT.new")
    except StartRefused:
        directory = None  # not even this file was complete
    if directory is not None and _tail_directory(tail_path) == directory:
        ours.append(tail_path)
    for path in ours:
        path.unlink(missing_ok=True)
    if (data / "journal").exists():
        (data / "journal").rmdir()
    # FORMAT.new says whose the remains are: it is the last to go.
    sync_directory(data)
    sync_directory(tail_path.parent)
    (data / "FORMAT.new").unlink()


def _tail_directory(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return _BLOCK_0.unpack_from(file.read(_BLOCK))[4]
    except (OSError, struct.error):
        return None


def _create(data: Path, tail_path: Path, tail_bytes: int, progress: Progress | None) -> bytes:
    """Make everything of a new directory; FORMAT gets its name last, so that a directory with FORMAT is complete.

    Disks and file systems keep no order of their own: what must be there before something else is synced before it is begun.
    """
    directory = secrets.token_bytes(16)
    sync_way(data)
    write_file(data / "FORMAT.new", b"daybook %d\n%s\n" % (FORMAT_VERSION, directory.hex().encode()), 0o640)
    sync_directory(data)
    write_file(data / "identity.key", secrets.token_hex(16).encode() + b"\n", 0o600)
    create_tail(tail_path, tail_bytes, directory, progress)
    (data / "journal").mkdir(mode=0o750)
    fd = os.open(tail_path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _open_engine(data, fd, limits.TAIL_BYTES_MIN, directory, bytes(16), 1, 1, None, False, create=True).close()
    finally:
        os.close(fd)
    sync_directory(data / "journal")
    sync_directory(data)  # identity.key and journal have their names
    (data / "FORMAT.new").rename(data / "FORMAT")
    sync_directory(data)
    return directory


def create_tail(path: Path, size: int, directory: bytes, progress: Progress | None) -> None:
    """Write the tail once with zeros (not a hole, not an unwritten extent: those make each flush write metadata too) and its block 0."""
    making = path.with_name("tail.new")
    fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        zeros = bytes(_CHUNK_BYTES)
        for done in range(0, size, _CHUNK_BYTES):
            _write_all(fd, zeros[: min(_CHUNK_BYTES, size - done)], done)
            if progress is not None:
                progress("tail", min(done + _CHUNK_BYTES, size), size)
        block = _BLOCK_0.pack(_TAIL_MAGIC, _TAIL_VERSION, _BLOCK, size, directory).ljust(_BLOCK - 32, b"\0")
        _write_all(fd, block + hashlib.sha256(block).digest(), 0)
        os.fsync(fd)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    making.rename(path)
    sync_directory(path.parent)


def _write_all(fd: int, content: bytes, offset: int) -> None:
    if os.pwrite(fd, content, offset) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_key(path: Path) -> bytes:
    """The identity key. It is a secret: a file that others can read is refused."""
    try:
        mode = path.stat().st_mode & 0o777
        found = _KEY.fullmatch(path.read_bytes())
    except FileNotFoundError:
        raise StartRefused(f"the identity key {path} is missing: put it back from its own copy (without it no card, phone or e-mail "
                           "of this journal can be found; a new key would not match)") from None
    except OSError as error:
        raise _refusal(error, f"the identity key {path} cannot be read") from None
    if mode & 0o077:
        raise StartRefused(f"the identity key {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    if found is None:
        raise StartRefused(f"the identity key {path} must hold 32 hex digits: put the right file back")
    return bytes.fromhex(found[1].decode())


def _open_tail(path: Path, directory: bytes) -> tuple[int, int]:
    """Open the tail and check its block 0. Returns the descriptor and the size."""
    restore = "restore it from the moment of the journal, or, if it was moved, name its directory with --tail"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StartRefused(f"the tail {path} is missing, and with it perhaps the last acknowledged writes: {restore}") from None
    except OSError as error:
        raise _refusal(error, f"the tail {path} cannot be opened") from None
    try:
        block = os.pread(fd, _BLOCK, 0)
        actual = os.fstat(fd).st_size
        if len(block) < _BLOCK or hashlib.sha256(block[:-32]).digest() != block[-32:] or not block.startswith(_TAIL_MAGIC):
            raise StartRefused(f"the tail {path} is damaged in its first block (or is no tail of daybook): {restore}")
        _, version, block_bytes, size, owner = _BLOCK_0.unpack_from(block)
        if (version, block_bytes) != (_TAIL_VERSION, _BLOCK):
            raise StartRefused(f"the tail {path} has version {version} and blocks of {block_bytes} bytes, this program reads version "
                               f"{_TAIL_VERSION} with {_BLOCK}: start the version that wrote it")
        if owner != directory:
            raise StartRefused(f"the tail {path} belongs to data directory {owner.hex()}, not to this one ({directory.hex()}): {restore}")
        if size != actual or size < limits.TAIL_BYTES_MIN or size % _BLOCK:
            raise StartRefused(f"the tail {path} has {actual} bytes, its first block says {size}: it was cut off or changed; {restore}")
    except OSError as error:
        os.close(fd)
        raise _refusal(error, f"the tail {path} cannot be read") from None
    except BaseException:
        os.close(fd)
        raise
    return fd, size


def _open_engine(data: Path, tail_fd: int, tail_bytes: int, directory: bytes, key: bytes, members_max: int, ids_max: int,
                 clock_file: Path | None, accept_time: bool, *, create: bool) -> EngineHandle:
    reservations_max = min(limits.RESERVATIONS_MAX, max(limits.RESERVATIONS_MAX_LEAST, members_max))
    try:
        return EngineHandle(
            tail_fd=tail_fd, tail_bytes=tail_bytes, directory=directory, journal_path=str(data / "journal"), create=create,
            identity_key=key, members_max=members_max, ids_max=ids_max, reservations_max=reservations_max,
            clock_path=None if clock_file is None else str(clock_file), accept_time=accept_time,
            ids_path=None if create else str(data / "ids"))
    except MemoryError as error:
        raise StartRefused(f"the tables do not fit into memory ({error}): lower --members-max ({members_max}) "
                           f"or --ids-max ({ids_max})") from None
