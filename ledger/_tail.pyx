"""The write-ahead tail: one write and one flush per group, into a file that was written with zeros before.

For: the bytes of a group on their way to disk and back. Not for creating the file and its block 0 (ledger/engine.py), not for
where the next group goes and what a damaged ring means (ledger/_engine.pyx). Called by the flush thread, or by the hot thread when
nobody else waits; by the starting thread at recovery. Nothing here takes the GIL.

Promises: a group is one pwrite of whole blocks that hold nothing else, so no acknowledged block is ever rewritten; tail_write returns 0
only after fdatasync returned 0. After a failed flush the kernel may have dropped the pages and a second one would succeed over
the hole, so nothing here tries twice: the caller ends the process.
"""

from libc.errno cimport EIO, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp
from ledger._layout cimport ENTRY_HEADER_BYTES, EntryHeader, GROUP_HASHED_BYTES, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader

cdef extern from "openssl/evp.h" nogil:
    EVP_MD* EVP_MD_fetch(void* context, const char* algorithm, const char* properties)
    void EVP_MD_free(EVP_MD* algorithm)
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX* context)
    int EVP_DigestInit_ex2(EVP_MD_CTX* context, const EVP_MD* algorithm, const void* parameters)
    int EVP_DigestUpdate(EVP_MD_CTX* context, const void* data, size_t size)
    int EVP_DigestFinal_ex(EVP_MD_CTX* context, unsigned char* out, unsigned int* size)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #ifndef O_DIRECT
    #define O_DIRECT 040000
    #endif
    """
    int F_GETFL
    int F_SETFL
    int O_DIRECT
    int fcntl(int fd, int command, ...) nogil

cdef extern from "unistd.h" nogil:
    ssize_t pwrite(int fd, const void* data, size_t size, int64_t offset)
    ssize_t pread(int fd, void* data, size_t size, int64_t offset)
    int fdatasync(int fd)

cdef extern from "_verify.h" nogil:
    void VERIFY(bint condition)

if sizeof(GroupHeader) != GROUP_HEADER_BYTES or sizeof(EntryHeader) != ENTRY_HEADER_BYTES:
    raise ImportError(f"group header has {sizeof(GroupHeader)} bytes, entry header {sizeof(EntryHeader)}: the journal's format says 128 and 40")


cdef int hasher_open(Hasher* hasher) except -1:
    hasher.algorithm = EVP_MD_fetch(NULL, "SHA256", NULL)
    hasher.context = EVP_MD_CTX_new()
    if hasher.algorithm == NULL or hasher.context == NULL:
        raise MemoryError("OpenSSL gives no SHA-256")
    return 0


cdef void hasher_close(Hasher* hasher) noexcept:
    EVP_MD_CTX_free(hasher.context)
    EVP_MD_free(hasher.algorithm)
    hasher.context = NULL
    hasher.algorithm = NULL


cdef void group_hash(Hasher* hasher, const uint8_t* group, uint8_t* out) noexcept nogil:
    cdef int done = EVP_DigestInit_ex2(hasher.context, hasher.algorithm, NULL)
    done &= EVP_DigestUpdate(hasher.context, group, GROUP_HASHED_BYTES)
    done &= EVP_DigestUpdate(hasher.context, group + GROUP_HEADER_BYTES, (<const GroupHeader*>group).size)
    done &= EVP_DigestFinal_ex(hasher.context, out, NULL)
    VERIFY(done == 1)


cdef int group_check(Hasher* hasher, const uint8_t* group, uint64_t room, const uint8_t* directory) noexcept nogil:
    cdef const GroupHeader* header = <const GroupHeader*>group
    cdef const uint8_t* at = group + GROUP_HEADER_BYTES
    cdef uint64_t left
    cdef uint32_t i, size
    cdef uint8_t[32] hash
    if room < GROUP_HEADER_BYTES or header.magic != GROUP_MAGIC:
        return GROUP_ABSENT
    if (header.version != 1 or header.flags != 0 or header.shard != 0 or header.epoch == 0
            or memcmp(header.directory, directory, 16) != 0):
        return GROUP_FOREIGN
    if header.size > room - GROUP_HEADER_BYTES or header.count == 0 or header.first_sequence == 0:
        return GROUP_FRAMING
    # The hash comes before the walk over the entries: what was not hashed as it stands is not worth reading.
    group_hash(hasher, group, hash)
    if memcmp(hash, header.hash, 32) != 0:
        return GROUP_HASH
    left = header.size
    for i in range(header.count):
        if left < ENTRY_HEADER_BYTES:
            return GROUP_FRAMING
        size = (<const EntryHeader*>at).size
        if size < ENTRY_HEADER_BYTES or size > left:
            return GROUP_FRAMING
        at += size
        left -= size
    return GROUP_SOUND if left == 0 else GROUP_FRAMING


cdef int tail_write(int fd, uint64_t position, const uint8_t* group, uint64_t size) noexcept nogil:
    cdef ssize_t written = pwrite(fd, group, size, <int64_t>(position + TAIL_BLOCK_BYTES))
    if written < 0:
        return errno
    if <uint64_t>written != size:
        return EIO
    if fdatasync(fd) != 0:
        return errno
    return 0


cdef void tail_go_direct(int fd) noexcept nogil:
    # From here on writes go past the page cache: a third less time and processor a flush, and no throttling behind the journal's
    # dirty pages. A file system that cannot (tmpfs) keeps the ordinary way; the promise is fdatasync's either way.
    cdef int flags = fcntl(fd, F_GETFL)
    if flags >= 0:
        fcntl(fd, F_SETFL, flags | O_DIRECT)


cdef int tail_read(int fd, uint8_t* ring, uint64_t size) noexcept nogil:
    cdef uint64_t done = 0
    cdef ssize_t got
    while done < size:
        got = pread(fd, ring + done, size - done, <int64_t>(done + TAIL_BLOCK_BYTES))
        if got < 0 and errno == EINTR:
            continue
        if got < 0:
            return errno
        if got == 0:
            return EIO
        done += <uint64_t>got
    return 0
