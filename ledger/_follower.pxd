# A core that follows the journal in another process. What it promises stands in _follower.pyx. cimported by server/_reader.pyx.

from libc.stdint cimport uint8_t, uint64_t
from ledger._feed cimport GroupFeed
from ledger._snapshot cimport SnapshotWriter

cdef class FollowerCore(GroupFeed):     # its Python side: _follower.pyi
    cdef uint8_t identity_key[16]
    cdef bint has_key
    cdef uint64_t digests       # DIGEST entries met
    cdef uint8_t* buffer        # of the snapshot being written
    cdef readonly object sizes  # (members_max, ids_max, reservations_max)

    cdef int prepare(self, SnapshotWriter* writer, int fd, uint64_t bytes_per_s) except -1
