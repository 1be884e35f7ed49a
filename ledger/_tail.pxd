# The write-ahead tail: groups hashed, written and flushed, and checked when read back. What it promises stands in _tail.pyx.
# cimported by ledger/_engine.pyx (writes, recovers) and whoever checks groups.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from ledger._layout cimport ENTRY_HEADER_BYTES, EntryHeader, GROUP_HEADER_BYTES, GroupHeader, KIND_RESTORE
from ledger._limits cimport TAIL_BLOCK_BYTES

cdef extern from *:
    """
    #include <openssl/evp.h>
    """
    ctypedef struct EVP_MD_CTX:
        pass
    ctypedef struct EVP_MD:
        pass

cdef struct Hasher:             # SHA-256 by OpenSSL; used by one thread at a time
    EVP_MD_CTX* context
    EVP_MD* algorithm

cdef enum:                      # GroupFault: what is wrong with a group by itself; 0 = sound
    GROUP_SOUND = 0
    GROUP_ABSENT = 1            # no group begins here: no room, or other bytes
    GROUP_FOREIGN = 2           # of another version, shard or directory, or of an epoch that cannot stand here
    GROUP_FRAMING = 3           # count, size and entries do not agree
    GROUP_HASH = 4              # its bytes are not the ones that were hashed
    GROUP_FAULT_COUNT = 5

cdef int hasher_open(Hasher* hasher) except -1
cdef void hasher_close(Hasher* hasher) noexcept
cdef void group_hash(Hasher* hasher, const uint8_t* group, uint8_t* out) noexcept nogil
    # SHA-256 over bytes 0..95 of the header and all entries; out: 32 bytes.
cdef int group_check(Hasher* hasher, const uint8_t* group, uint64_t room, const uint8_t* directory) noexcept nogil
    # Whether a sound group of this directory begins here and ends within room bytes. GroupFault.
cdef int tail_write(int fd, uint64_t position, const uint8_t* group, uint64_t size) noexcept nogil
    # One pwrite at a position of the ring and one fdatasync. 0, or errno; a short write is EIO. No second try: see D7.
cdef int tail_read(int fd, uint8_t* ring, uint64_t size) noexcept nogil
    # The whole ring into memory. 0, or errno; EIO when the file is shorter.


cdef inline uint64_t group_span(uint64_t size) noexcept nogil:
    # Bytes that a group with `size` bytes of entries takes in the ring.
    return (size + GROUP_HEADER_BYTES + TAIL_BLOCK_BYTES - 1) & ~<uint64_t>(TAIL_BLOCK_BYTES - 1)


cdef inline bint epoch_follows(uint32_t before, const uint8_t* group) noexcept nogil:
    # Whether a sound group may stand behind one of epoch `before` (0: not known): the same epoch, or the next one, begun by a RESTORE.
    cdef const GroupHeader* header = <const GroupHeader*>group
    if header.first_sequence == 1:
        return header.epoch == 1
    if before == 0 or header.epoch == before:
        return True
    return header.epoch == before + 1 and (<const EntryHeader*>(group + GROUP_HEADER_BYTES)).kind == KIND_RESTORE


cdef inline const uint8_t* group_entry(const uint8_t* group, uint64_t room, uint64_t sequence, uint32_t* size) noexcept nogil:
    # The entry of that sequence in a group that was sound once; NULL when it has none. Reads nothing beyond `room` bytes, whatever
    # became of the group since.
    cdef const GroupHeader* header = <const GroupHeader*>group
    cdef uint64_t at = GROUP_HEADER_BYTES
    cdef uint64_t i
    if room < GROUP_HEADER_BYTES or sequence < header.first_sequence or sequence - header.first_sequence >= header.count:
        return NULL
    for i in range(sequence - header.first_sequence + 1):
        if at + ENTRY_HEADER_BYTES > room:
            return NULL
        size[0] = (<const EntryHeader*>(group + at)).size
        at += size[0]
    if size[0] < ENTRY_HEADER_BYTES or at > room:
        return NULL
    return group + at - size[0]
cdef void tail_go_direct(int fd) noexcept nogil
    # Writes from now on go past the page cache where the file system can; needs groups in page-aligned memory.
