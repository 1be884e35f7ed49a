"""Snapshots as files: the core's chunks behind a head, each under a hash that goes on from the one before.

Promises: a file that was cut, changed, spliced or written for another directory is refused with its reason before its bytes reach the
core; writing allocates nothing and takes no lock, so it also works in a forked child; what is written is flushed in small steps and
at a given pace, so that the service's flushes are not held up. Not for what a chunk says (ledger/_core_snapshot.pxi) nor for
choosing, naming and keeping files (ledger/snapshot.py). The bytes: docs/journal-format.md.
"""

import os

from libc.errno cimport EIO, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from ledger._clock cimport monotonic_us
from ledger._core cimport (
    Core, LOAD_DIGEST, LOAD_KEY, LOAD_KEYS, LOAD_KEYS_GAP, LOAD_MEMBERS, LOAD_OK, LOAD_PROGRAM, LOAD_RESERVATIONS, SNAPSHOT_ACCOUNTS, SNAPSHOT_IMAGES, SNAPSHOT_PROGRAM,
    SNAPSHOT_CHUNK_BYTES, SNAPSHOT_END, SNAPSHOT_HEAD_1_BYTES, SNAPSHOT_PROFILES, SNAPSHOT_RUNGS, SNAPSHOT_SECTION_COUNT, SnapshotHead, core_describe, core_load, core_load_begin, core_save,
)
from ledger._limits cimport COUNTERS_PER_MEMBER_PLANNED, DAY_UNITS_PER_MEMBER_PLANNED, LOTS_PER_MEMBER_PLANNED, SNAPSHOT_SYNC_BYTES

cdef extern from *:
    """
    #include <fcntl.h>
    #include <openssl/sha.h>
    #include <stdint.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    /* SHA-256 over up to three pieces. The low-level calls: no context to allocate. */
    static void snapshot_hash(const void *a, uint64_t a_size, const void *b, uint64_t b_size, const void *c, uint64_t c_size, uint8_t out[32]) {
        SHA256_CTX state;
        SHA256_Init(&state);
        SHA256_Update(&state, a, a_size);
        if (b_size) SHA256_Update(&state, b, b_size);
        if (c_size) SHA256_Update(&state, c, c_size);
        SHA256_Final(out, &state);
    }
    #pragma GCC diagnostic pop
    static int snapshot_write_all(int fd, const void *data, uint64_t size) {
        const uint8_t *at = data;
        while (size) {
            ssize_t done = write(fd, at, size);
            if (done < 0 && errno == EINTR) continue;
            if (done <= 0) return done < 0 ? errno : EIO;
            at += done; size -= (uint64_t)done;
        }
        return 0;
    }
    static int64_t snapshot_read_some(int fd, void *data, uint64_t size) {
        uint8_t *at = data;
        uint64_t left = size;
        while (left) {
            ssize_t done = read(fd, at, left);
            if (done < 0 && errno == EINTR) continue;
            if (done < 0) return -errno;
            if (done == 0) break;
            at += done; left -= (uint64_t)done;
        }
        return (int64_t)(size - left);
    }
    static void snapshot_sleep_us(int64_t us) {
        struct timespec wanted = {us / 1000000, us % 1000000 * 1000};
        while (nanosleep(&wanted, &wanted) < 0 && errno == EINTR) { }
    }
    static void snapshot_start_writeback(int fd, uint64_t from, uint64_t size) {
        sync_file_range(fd, (off_t)from, (off_t)size, SYNC_FILE_RANGE_WRITE);
    }
    static void snapshot_read_ahead(int fd, uint64_t from, uint64_t size) { posix_fadvise(fd, (off_t)from, (off_t)size, POSIX_FADV_WILLNEED); }
    """
    void snapshot_hash(const void* a, uint64_t a_size, const void* b, uint64_t b_size, const void* c, uint64_t c_size, uint8_t* out) noexcept nogil
    int snapshot_write_all(int fd, const void* data, uint64_t size) noexcept nogil
    int64_t snapshot_read_some(int fd, void* data, uint64_t size) noexcept nogil
    void snapshot_sleep_us(int64_t us) noexcept nogil
    void snapshot_start_writeback(int fd, uint64_t position, uint64_t size) noexcept nogil
    void snapshot_read_ahead(int fd, uint64_t position, uint64_t size) noexcept nogil
    int fdatasync(int fd) noexcept nogil
    int close(int fd) noexcept nogil

cdef enum:
    VERSION = 4                 # versions 1 and 2 have one programme, version 1 lacks the end of the head, profiles and campaigns. They are
                                # read for ever
    HEAD_BEGIN_BYTES = 16       # magic, version and size of the head
    HASH_BYTES = 32
    READ_AHEAD_BYTES = 33_554_432   # asked for before it is needed: a cold disk then reads without a pause

cdef packed struct ChunkHead:
    uint32_t section            # SnapshotSection
    uint32_t size               # of what follows, without the hash behind it

cdef const char* MAGIC = "DAYSNAP1"


class SnapshotUnusable(Exception):
    """This snapshot cannot be taken; `str()` says why. Another one, or the journal alone, may do."""


class TablesTooSmall(Exception):
    """The snapshot is sound, but the tables are too small for it; `str()` names the flag and the number that is needed."""


# --- writing --------------------------------------------------------------------------------------------------------

cdef int put_chunk(void* owner, uint32_t section, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef SnapshotWriter* writer = <SnapshotWriter*>owner
    cdef ChunkHead head
    cdef int code
    cdef int64_t ahead
    head.section = section
    head.size = size
    snapshot_hash(writer.chain, HASH_BYTES, &head, sizeof(ChunkHead), data, size, writer.chain)
    code = snapshot_write_all(writer.fd, &head, sizeof(ChunkHead))
    if code == 0:
        code = snapshot_write_all(writer.fd, data, size)
    if code == 0:
        code = snapshot_write_all(writer.fd, writer.chain, HASH_BYTES)
    if code != 0:
        return code
    snapshot_start_writeback(writer.fd, writer.bytes, sizeof(ChunkHead) + <uint64_t>size + HASH_BYTES)
    writer.bytes += sizeof(ChunkHead) + <uint64_t>size + HASH_BYTES
    if writer.bytes - writer.synced >= SNAPSHOT_SYNC_BYTES:
        if fdatasync(writer.fd) != 0:
            return errno
        writer.synced = writer.bytes
    if writer.bytes_per_s != 0:
        ahead = writer.begun_us + <int64_t>(writer.bytes * 1000000 // writer.bytes_per_s) - monotonic_us()
        if ahead > 0:
            snapshot_sleep_us(ahead)
    return 0


cdef int snapshot_write(SnapshotWriter* writer, const uint8_t* directory, const uint8_t* head_hash) noexcept nogil:
    cdef SnapshotHead head
    cdef int code
    core_describe(writer.core, &head)
    memcpy(head.magic, MAGIC, 8)
    head.version = VERSION
    head.size = sizeof(SnapshotHead)
    memcpy(head.directory, directory, 16)
    memcpy(head.head_hash, head_hash, 32)
    snapshot_hash(&head, sizeof(SnapshotHead), NULL, 0, NULL, 0, writer.chain)
    writer.begun_us = monotonic_us()
    writer.synced = 0
    writer.bytes = sizeof(SnapshotHead) + HASH_BYTES
    code = snapshot_write_all(writer.fd, &head, sizeof(SnapshotHead))
    if code == 0:
        code = snapshot_write_all(writer.fd, writer.chain, HASH_BYTES)
    if code == 0:
        code = core_save(writer.core, &head, writer.buffer, put_chunk, writer)
    if code == 0 and fdatasync(writer.fd) != 0:
        code = errno
    return code


# --- loading --------------------------------------------------------------------------------------------------------

cdef uint32_t place_of(uint32_t section) noexcept nogil:
    # Sections stand in the order of these; their numbers are older.
    if section <= SNAPSHOT_PROGRAM:
        return section
    if section >= SNAPSHOT_RUNGS:
        return SNAPSHOT_SECTION_COUNT + SNAPSHOT_ACCOUNTS + section - SNAPSHOT_RUNGS + 3
    if section >= SNAPSHOT_IMAGES:
        return SNAPSHOT_PROGRAM + section - SNAPSHOT_IMAGES + 1
    if section <= SNAPSHOT_ACCOUNTS:
        return section + SNAPSHOT_SECTION_COUNT
    if section >= SNAPSHOT_PROFILES:
        return SNAPSHOT_SECTION_COUNT + SNAPSHOT_ACCOUNTS + section - SNAPSHOT_PROFILES + 1
    return section + 2 * SNAPSHOT_SECTION_COUNT


cdef class Snapshot:
    """See _snapshot.pyi."""

    def __cinit__(self, path):
        self.fd = -1
        self.buffer = NULL
        self.core = NULL

    def __init__(self, path):
        cdef uint8_t found[HASH_BYTES]
        cdef SnapshotHead* head = &self.head_read
        self.path = str(path)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self.fd).st_size
        except OSError as error:
            raise SnapshotUnusable(f"it cannot be read: {error.strerror}") from None
        self.buffer = <uint8_t*>malloc(SNAPSHOT_CHUNK_BYTES + HASH_BYTES)
        if self.buffer == NULL:
            raise MemoryError("no memory to read a snapshot")
        memset(head, 0, sizeof(SnapshotHead))
        self.read_exactly(head, HEAD_BEGIN_BYTES, "its head")
        if memcmp(head.magic, MAGIC, 8) != 0:
            raise SnapshotUnusable("it is no snapshot of daybook")
        if head.version < 1 or head.version > VERSION or head.size != (SNAPSHOT_HEAD_1_BYTES if head.version == 1 else sizeof(SnapshotHead)):
            raise SnapshotUnusable(f"it has version {head.version}, this program reads versions up to {VERSION}")
        self.read_exactly(<uint8_t*>head + HEAD_BEGIN_BYTES, head.size - HEAD_BEGIN_BYTES, "its head")
        self.read_exactly(found, HASH_BYTES, "its head")
        snapshot_hash(head, head.size, NULL, 0, NULL, 0, self.chain)
        if memcmp(found, self.chain, HASH_BYTES) != 0:
            raise SnapshotUnusable("its head was changed: the hash does not fit")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        free(self.buffer)

    cdef int read_exactly(self, void* data, uint64_t size, str what) except -1:
        cdef int64_t got
        with nogil:
            got = snapshot_read_some(self.fd, data, size)
        if got < 0:
            raise SnapshotUnusable(f"it cannot be read: {os.strerror(-got)}")
        if <uint64_t>got != size:
            raise SnapshotUnusable(f"it was cut off after {self.position + got} bytes, in {what}")
        self.position += size
        return 0

    @property
    def sequence(self):
        return self.head_read.sequence

    @property
    def head_hash(self):
        return self.head_read.head_hash[:32]

    @property
    def directory(self):
        return self.head_read.directory[:16]

    @property
    def head(self):
        """The head's plain numbers by name."""
        cdef SnapshotHead* head = &self.head_read
        return {
            "sequence": head.sequence, "time_us": head.time_us, "keys_from": max(head.keys_from[0], head.keys_from[1]), "members": head.members,
            "identifiers": head.identifiers, "lots": head.lots, "lot_units": head.lot_units,
            "reservations_active": head.reservations_active, "reservations_finished": head.reservations_finished,
            "request_ids": head.keys[0], "receipt_keys": head.keys[1], "members_max": head.members_max, "ids_max": head.ids_max,
            "reservations_max": head.reservations_max, "program": head.program,
            "digest": head.digest.lo.to_bytes(8, "little") + head.digest.hi.to_bytes(8, "little"),
        }

    cdef int load_into(self, Core* core, progress) except -1:
        cdef ChunkHead chunk
        cdef int result
        cdef uint32_t last = 0
        self.core = core
        self.raise_for(core_load_begin(core, &self.head_read), 0)
        while last != SNAPSHOT_END:
            self.read_exactly(&chunk, sizeof(ChunkHead), "the head of a chunk")
            if (chunk.section == 0 or chunk.section >= SNAPSHOT_SECTION_COUNT or place_of(chunk.section) < place_of(last)
                    or chunk.size > SNAPSHOT_CHUNK_BYTES):
                raise SnapshotUnusable(f"it was changed: no chunk begins at byte {self.position - sizeof(ChunkHead)}")
            last = chunk.section
            self.read_exactly(self.buffer, <uint64_t>chunk.size + HASH_BYTES, "a chunk")
            with nogil:
                snapshot_read_ahead(self.fd, self.position, READ_AHEAD_BYTES)
                snapshot_hash(self.chain, HASH_BYTES, &chunk, sizeof(ChunkHead), self.buffer, chunk.size, self.chain)
                result = memcmp(self.chain, self.buffer + chunk.size, HASH_BYTES)
            if result != 0:
                raise SnapshotUnusable(f"it was changed: the hash of the chunk that ends at byte {self.position} does not fit")
            with nogil:
                result = core_load(self.core, &self.head_read, chunk.section, self.buffer, chunk.size)
            self.raise_for(result, self.position)
            if progress is not None:
                progress(self.position, self.size)
        if self.position != self.size:
            raise SnapshotUnusable(f"it was changed: {self.size - self.position} bytes follow its end")
        return 0

    cdef int raise_for(self, int result, uint64_t position) except -1:
        cdef SnapshotHead* head = &self.head_read
        if result == LOAD_OK:
            return 0
        if result == LOAD_MEMBERS:
            by_lots = (head.lot_units + LOTS_PER_MEMBER_PLANNED - 1) // LOTS_PER_MEMBER_PLANNED
            by_rules = max(head.counter_units // COUNTERS_PER_MEMBER_PLANNED, head.day_units // DAY_UNITS_PER_MEMBER_PLANNED)
            raise TablesTooSmall(
                f"--members-max must be at least {max(head.members, (head.identifiers + 2) // 3, by_lots, by_rules)}: the ledger has {head.members} "
                f"members with {head.identifiers} identifiers and {head.lots} lots")
        if result == LOAD_RESERVATIONS:
            raise TablesTooSmall(f"--members-max must be at least {head.reservations_active}: so many reservations are active")
        if result == LOAD_KEY:
            raise SnapshotUnusable("it was written under another identity key")
        if result == LOAD_DIGEST:
            raise SnapshotUnusable("its state has another digest than it was written with")
        if result == LOAD_KEYS_GAP:
            raise SnapshotUnusable(f"its request ids and receipt keys begin with entries {head.keys_from[0]} and {head.keys_from[1]}, and the "
                                   "runs in ids/ do not reach so far")
        if result == LOAD_KEYS:
            raise SnapshotUnusable(f"its request ids and receipt keys do not fit tables of another size: it was written with --ids-max "
                                   f"{head.ids_max}")
        if result == LOAD_PROGRAM:
            raise SnapshotUnusable("its programme does not load")
        raise SnapshotUnusable(f"the records before byte {position} do not fit each other" if position else "its head does not fit itself")
