# Snapshots as files: written behind a chain of hashes, checked chunk by chunk while they are loaded. What it promises stands in
# _snapshot.pyx. cimported by ledger/_engine.pyx, ledger/_follower.pyx and server/_local.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ledger._core cimport Core, SnapshotHead

cdef struct SnapshotWriter:
    const Core* core            # what is written
    int fd
    uint8_t* buffer             # SNAPSHOT_CHUNK_BYTES
    uint8_t chain[32]           # hash of the last chunk, or of the head
    uint64_t bytes              # written
    uint64_t synced             # of them flushed
    int64_t begun_us
    uint64_t bytes_per_s        # at most; 0: as fast as the disk takes them

cdef int snapshot_write(SnapshotWriter* writer, const uint8_t* directory, const uint8_t* head_hash) noexcept nogil
    # The whole state into writer.fd, flushed. 0, or errno. Only reads the core; allocates nothing.

cdef class Snapshot:            # one file opened for loading; its Python side: _snapshot.pyi
    cdef Core* core             # what is loaded
    cdef int fd
    cdef uint8_t* buffer
    cdef SnapshotHead head_read
    cdef uint8_t chain[32]
    cdef uint64_t position      # bytes read
    cdef readonly str path
    cdef readonly uint64_t size # bytes of the file

    cdef int read_exactly(self, void* data, uint64_t size, str what) except -1
    cdef int raise_for(self, int result, uint64_t position) except -1
    cdef int load_into(self, Core* core, progress) except -1
        # Into a core just opened; after an exception the core is spoilt.
