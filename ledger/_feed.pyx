"""Group records in order through the core's apply: place, hash and chain first, then entry by entry.

Promises: nothing of a record is believed before it has been checked; the first fault stops and says which record and entry it is;
works without the GIL. Not for finding the records (ledger/journal.py) nor for wording (ledger/verify.py). Base of the verifier
(ledger/_verifier.pyx) and of the follower (ledger/_follower.pyx).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ledger._core cimport APPLY_OK, CoreSizes, core_apply, core_close, core_open
from ledger._layout cimport ENTRY_HEADER_BYTES, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader
from ledger._limits cimport GROUP_BYTES_MAX, GROUP_ENTRIES_MAX
from ledger._tail cimport epoch_follows

cdef extern from *:
    """
    #include <openssl/sha.h>

    /* SHA-256 over a group header's first 96 bytes and its entries. The low-level calls: no context to allocate or keep. */
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    static void feed_hash(const uint8_t *record, uint32_t size, uint8_t out[32]) {
        SHA256_CTX state;
        SHA256_Init(&state);
        SHA256_Update(&state, record, 96);
        SHA256_Update(&state, record + 128, size - 128);
        SHA256_Final(out, &state);
    }
    #pragma GCC diagnostic pop
    """
    void feed_hash(const uint8_t* record, uint32_t size, uint8_t* out) noexcept nogil

FAULTS = ("none", "size", "magic", "directory", "sequence", "chain", "hash", "time", "entries", "postings", "apply", "epoch")
APPLIES = ("ok", "framing", "sequence", "member", "lots", "sum", "reservation", "digest", "program", "key", "full")


cdef class GroupFeed:
    """See _feed.pyi."""

    def __cinit__(self, bytes directory, *args, **kwargs):
        if len(directory) != 16:
            raise ValueError(f"a directory id has 16 bytes, not {len(directory)}")
        memcpy(self.directory, <const uint8_t*>directory, 16)
        memset(self.hash, 0, sizeof(self.hash))
        self.sequence = self.groups = 0
        self.time_us = 0
        self.epoch = 0
        self.capacity = 0
        self.buffers = NULL
        self.core = NULL

    def __dealloc__(self):
        core_close(self.core)
        PyMem_Free(self.buffers)

    cdef int open_core(self, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, const uint8_t* identity_key) except -1:
        cdef CoreSizes sizes
        memset(&sizes, 0, sizeof(CoreSizes))
        sizes.members_max = members_max
        sizes.ids_max = ids_max
        sizes.reservations_max = reservations_max
        core_close(self.core)
        self.core = NULL
        self.core = core_open(&sizes, identity_key)
        return 0

    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil:
        self.fault_detail = core_apply(self.core, entry, size)
        return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY

    cdef void took_group(self, const GroupHeader* header) noexcept nogil:
        pass

    def feed(self, list batch):
        """Check and apply records, a list of (key, record); the key must be the record's first sequence.

        Returns None, or the first fault: (index in the batch, name in FAULTS, sequence of the entry or of the group's first one,
        name in APPLIES). After a fault the state is spent.
        """
        cdef Py_ssize_t count = len(batch), opened = 0, i, done = 0
        cdef int fault = FAULT_NONE
        cdef uint64_t* keys
        if count == 0:
            return None
        if count > self.capacity:
            PyMem_Free(self.buffers)
            self.capacity = 0
            self.buffers = <Py_buffer*>PyMem_Malloc(count * sizeof(Py_buffer))
            if self.buffers == NULL:
                raise MemoryError()
            self.capacity = count
        keys = <uint64_t*>PyMem_Malloc(count * sizeof(uint64_t))
        if keys == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                key, record = batch[i]
                keys[i] = key
                PyObject_GetBuffer(record, &self.buffers[i], PyBUF_SIMPLE)
                opened = i + 1
            with nogil:
                for i in range(count):
                    fault = take_group(self, keys[i], <const uint8_t*>self.buffers[i].buf, <uint64_t>self.buffers[i].len)
                    if fault != FAULT_NONE:
                        done = i
                        break
        finally:
            for i in range(opened):
                PyBuffer_Release(&self.buffers[i])
            PyMem_Free(keys)
        if fault == FAULT_NONE:
            return None
        return done, FAULTS[fault], self.fault_sequence, APPLIES[self.fault_detail]

    @property
    def last_sequence(self):
        return self.sequence

    @property
    def head_hash(self):
        """Hash of the last group; zeros before the first."""
        return self.hash[:32]


cdef int take_group(GroupFeed self, uint64_t key, const uint8_t* record, uint64_t size) noexcept nogil:
    # Header, hash and place first: nothing of the entries is believed before.
    cdef const GroupHeader* header = <const GroupHeader*>record
    cdef uint8_t hash_[32]
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef uint32_t i, entry_size
    cdef int fault
    self.fault_sequence = self.sequence + 1
    self.fault_detail = APPLY_OK
    if size < GROUP_HEADER_BYTES:
        return FAULT_SIZE
    if header.magic != GROUP_MAGIC or header.version != 1 or header.flags != 0 or header.shard != 0 or header.epoch == 0:
        return FAULT_MAGIC
    if header.size > <uint32_t>GROUP_BYTES_MAX or size != <uint64_t>GROUP_HEADER_BYTES + header.size:
        return FAULT_SIZE
    if header.count < 1 or header.count > <uint32_t>GROUP_ENTRIES_MAX:
        return FAULT_SIZE
    if memcmp(header.directory, self.directory, 16) != 0:
        return FAULT_DIRECTORY
    if header.first_sequence != self.sequence + 1 or key != header.first_sequence:
        return FAULT_SEQUENCE
    feed_hash(record, <uint32_t>size, hash_)
    if memcmp(hash_, header.hash, 32) != 0:
        return FAULT_HASH
    if memcmp(header.previous_hash, self.hash, 32) != 0:
        return FAULT_CHAIN
    if header.time_us < self.time_us:
        return FAULT_TIME
    if header.size >= ENTRY_HEADER_BYTES and not epoch_follows(self.epoch, record):
        return FAULT_EPOCH
    at = record + GROUP_HEADER_BYTES
    end = record + size
    for i in range(header.count):
        self.fault_sequence = header.first_sequence + i
        if end - at < ENTRY_HEADER_BYTES:
            return FAULT_ENTRIES
        memcpy(&entry_size, at, 4)
        if entry_size < ENTRY_HEADER_BYTES or <uint64_t>(end - at) < entry_size:
            return FAULT_ENTRIES
        fault = self.take_entry(at, entry_size)
        if fault != FAULT_NONE:
            return fault
        at += entry_size
    if at != end:
        return FAULT_ENTRIES
    self.took_group(header)
    self.sequence = header.first_sequence + header.count - 1
    self.time_us = header.time_us
    self.epoch = header.epoch
    self.groups += 1
    memcpy(self.hash, header.hash, 32)
    return FAULT_NONE
