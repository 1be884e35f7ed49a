# Group records in order through the core's apply: what the verifier and the follower have in common.
# What it promises stands in _feed.pyx. cimported by ledger/_verifier.pyx and ledger/_follower.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ledger._core cimport Core
from ledger._layout cimport GroupHeader

cdef enum Fault:                # why a record is refused; 0 = accepted. Names: FAULTS in _feed.pyx
    FAULT_NONE = 0
    FAULT_SIZE = 1
    FAULT_MAGIC = 2
    FAULT_DIRECTORY = 3
    FAULT_SEQUENCE = 4
    FAULT_CHAIN = 5
    FAULT_HASH = 6
    FAULT_TIME = 7
    FAULT_ENTRIES = 8
    FAULT_POSTINGS = 9
    FAULT_APPLY = 10            # fault_detail: ApplyResult
    FAULT_EPOCH = 11

cdef class GroupFeed:           # its Python side: _feed.pyi
    cdef Core* core
    cdef Py_buffer* buffers     # of the batch at hand
    cdef Py_ssize_t capacity
    cdef uint64_t sequence      # last one applied
    cdef int64_t time_us        # of the last group
    cdef uint32_t epoch         # of the last group; 0: none yet, or behind a snapshot
    cdef uint64_t groups        # fed
    cdef uint64_t fault_sequence
    cdef int fault_detail
    cdef uint8_t directory[16]
    cdef uint8_t hash[32]       # of the last group

    cdef int open_core(self, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, const uint8_t* identity_key) except -1
    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil
        # Applies one entry whose framing fits its group. Fault.
    cdef void took_group(self, const GroupHeader* header) noexcept nogil
        # After the last entry of a group.
