"""The journal: LMDB as the append-only system of record, through liblmdb's C API, never under the GIL.

For: the drain thread's transactions, the hot thread's one read cursor, the scan at start. Not for other processes (ledger/journal.py on
py-lmdb) and not for what a record says (ledger/_engine.pyx, ledger/_core.pyx). Called by ledger/_engine.pyx alone.

Promises and choices
a) Default durability: two flushes per commit, no NOSYNC, no WRITEMAP. The drain is behind the tail, so nobody waits for it.
b) A transaction that meets a full disk or map is aborted and may be tried again whole: it rewrites every page that it needs, so pages
   lost by the failed one do not matter. A failed write of the meta page makes LMDB refuse the environment (MDB_PANIC): not full, fatal.
c) NOTLS: the reader slot belongs to the transaction object, which the starting thread makes and the hot thread uses.
d) LMDB 0.9 has no checksums and may crash on damaged pages. The scan at start therefore runs guarded: a fault inside LMDB becomes
   JOURNAL_CRASHED, and records are copied out before anything looks at them. The chain of hashes finds the rest.
"""

from libc.errno cimport EDQUOT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memset
from ledger._layout cimport GROUP_HEADER_BYTES, GroupHeader
from ledger._limits cimport GROUP_BYTES_MAX, JOURNAL_MAP_BYTES

from ledger._lmdb cimport (
    MDB_APPEND, MDB_CREATE, MDB_INTEGERKEY, MDB_LAST, MDB_MAP_FULL, MDB_NEXT, MDB_NOTFOUND, MDB_NOTLS, MDB_PREV, MDB_RDONLY, MDB_SET_RANGE,
    MDB_SUCCESS, MDB_cursor, MDB_envinfo, MDB_stat, MDB_txn, MDB_val, lmdb_file_bytes, lmdb_guarded, lmdb_open_reader, lmdb_set_assert, mdb_cursor_close,
    mdb_cursor_get, mdb_cursor_open, mdb_cursor_renew, mdb_dbi_open, mdb_env_close, mdb_env_create, mdb_env_get_fd, mdb_env_info,
    mdb_env_open, mdb_env_set_mapsize, mdb_env_set_maxdbs, mdb_env_stat, mdb_env_sync, mdb_get, mdb_put, mdb_reader_check, mdb_strerror, mdb_txn_abort,
    mdb_txn_begin, mdb_txn_commit, mdb_txn_renew, mdb_txn_reset,
)

if sizeof(Drained) != 56:
    raise ImportError(f"meta/drained has {sizeof(Drained)} bytes: the journal's format says 56")

cdef struct Scan:               # what journal_scan hands through the guard
    Journal* journal
    uint64_t next_sequence
    uint8_t* buffer
    uint64_t buffer_size
    uint64_t filled

cdef struct Looking:            # what journal_has hands through the guard
    Journal* journal
    uint64_t sequence
    const uint8_t* hash

cdef struct Opening:            # what journal_open hands through the guard
    Journal* journal
    const char* path
    bint create
    const uint8_t* directory


cdef int journal_open_body(void* argument) noexcept nogil:
    cdef Opening* opening = <Opening*>argument
    cdef Journal* journal = opening.journal
    cdef MDB_txn* txn = NULL
    cdef MDB_val key, value
    cdef MDB_stat facts
    cdef MDB_envinfo info
    cdef unsigned int create = MDB_CREATE if opening.create else 0
    cdef int code, fd, dead
    code = mdb_env_create(&journal.env)
    if code != MDB_SUCCESS:
        return code
    lmdb_set_assert(journal.env)
    mdb_env_set_mapsize(journal.env, JOURNAL_MAP_BYTES)
    mdb_env_set_maxdbs(journal.env, 4)
    code = mdb_env_open(journal.env, opening.path, MDB_NOTLS, 0o640)
    if code != MDB_SUCCESS:
        return code
    mdb_reader_check(journal.env, &dead)
    if not opening.create:
        mdb_env_stat(journal.env, &facts)
        mdb_env_info(journal.env, &info)
        mdb_env_get_fd(journal.env, &fd)
        if lmdb_file_bytes(fd) < <int64_t>((info.me_last_pgno + 1) * facts.ms_psize):
            return JOURNAL_SHORT
    code = mdb_txn_begin(journal.env, NULL, 0 if opening.create else MDB_RDONLY, &txn)
    if code != MDB_SUCCESS:
        return code
    code = mdb_dbi_open(txn, "groups", create | MDB_INTEGERKEY, &journal.groups)
    if code == MDB_SUCCESS:
        code = mdb_dbi_open(txn, "meta", create, &journal.meta)
    key.mv_size = 9
    key.mv_data = <void*><const char*>b"directory"
    if code == MDB_SUCCESS and opening.create:
        value.mv_size = 16
        value.mv_data = <void*>opening.directory
        code = mdb_put(txn, journal.meta, &key, &value, 0)
    elif code == MDB_SUCCESS:
        code = mdb_get(txn, journal.meta, &key, &value)
        if code == MDB_SUCCESS and (value.mv_size != 16 or memcmp(value.mv_data, opening.directory, 16) != 0):
            code = JOURNAL_FOREIGN
    if code == MDB_NOTFOUND:
        code = JOURNAL_FOREIGN
    if code != MDB_SUCCESS:
        mdb_txn_abort(txn)
        return code
    code = mdb_txn_commit(txn)
    if code != MDB_SUCCESS:
        return code
    return lmdb_open_reader(journal.env, journal.groups, &journal.read_txn, &journal.read_cursor)


cdef int journal_open(Journal* journal, const char* path, bint create, const uint8_t* directory) noexcept nogil:
    cdef Opening opening
    cdef int code
    memset(journal, 0, sizeof(Journal))
    opening.journal = journal
    opening.path = path
    opening.create = create
    opening.directory = directory
    code = lmdb_guarded(journal_open_body, &opening)
    if code < 0 and code > -64:     # a signal; LMDB's own codes lie below -30000
        memset(journal, 0, sizeof(Journal))
        return JOURNAL_CRASHED
    if code != MDB_SUCCESS:
        journal_close(journal)
    return code


cdef void journal_close(Journal* journal) noexcept nogil:
    journal_scan_end(journal)
    if journal.read_cursor != NULL:
        mdb_cursor_close(journal.read_cursor)
    if journal.read_txn != NULL:
        mdb_txn_abort(journal.read_txn)
    if journal.env != NULL:
        mdb_env_close(journal.env)
    memset(journal, 0, sizeof(Journal))


cdef int journal_drained(Journal* journal, Drained* drained) noexcept nogil:
    cdef MDB_val key, value
    cdef MDB_txn* txn = NULL
    cdef int code = mdb_txn_begin(journal.env, NULL, MDB_RDONLY, &txn)
    memset(drained, 0, sizeof(Drained))
    if code != MDB_SUCCESS:
        return code
    key.mv_size = 7
    key.mv_data = <void*><const char*>b"drained"
    code = mdb_get(txn, journal.meta, &key, &value)
    if code == MDB_NOTFOUND:
        code = JOURNAL_OK
    elif code == MDB_SUCCESS:
        if value.mv_size == sizeof(Drained):
            memcpy(drained, value.mv_data, sizeof(Drained))
        else:
            code = JOURNAL_FOREIGN
    mdb_txn_abort(txn)
    return code


# --- the scan at start ------------------------------------------------------------------------------------------

cdef int journal_scan_body(void* argument) noexcept nogil:
    cdef Scan* scan = <Scan*>argument
    cdef Journal* journal = scan.journal
    cdef MDB_val key, value
    cdef uint64_t start = scan.next_sequence
    cdef uint64_t sequence
    cdef uint64_t padded
    cdef int code
    if journal.scan_txn == NULL:
        code = mdb_txn_begin(journal.env, NULL, MDB_RDONLY, &journal.scan_txn)
        if code != MDB_SUCCESS:
            return code
        code = mdb_cursor_open(journal.scan_txn, journal.groups, &journal.scan_cursor)
        if code != MDB_SUCCESS:
            return code
    key.mv_size = sizeof(uint64_t)
    key.mv_data = &start
    code = mdb_cursor_get(journal.scan_cursor, &key, &value, MDB_SET_RANGE)
    while code == MDB_SUCCESS:
        if key.mv_size != sizeof(uint64_t) or value.mv_size < GROUP_HEADER_BYTES:
            return JOURNAL_FOREIGN
        if value.mv_size > GROUP_HEADER_BYTES + GROUP_BYTES_MAX:
            return JOURNAL_TOO_LARGE
        memcpy(&sequence, key.mv_data, sizeof(uint64_t))
        padded = (value.mv_size + 7) & ~<uint64_t>7
        if scan.filled + 16 + padded > scan.buffer_size:
            return JOURNAL_OK
        memcpy(scan.buffer + scan.filled, &sequence, 8)
        padded = value.mv_size
        memcpy(scan.buffer + scan.filled + 8, &padded, 8)
        memcpy(scan.buffer + scan.filled + 16, value.mv_data, value.mv_size)
        scan.filled += 16 + ((padded + 7) & ~<uint64_t>7)
        scan.next_sequence = sequence + 1
        code = mdb_cursor_get(journal.scan_cursor, &key, &value, MDB_NEXT)
    if code == MDB_NOTFOUND:
        return JOURNAL_END if scan.filled == 0 else JOURNAL_OK
    return code


cdef int journal_scan(Journal* journal, uint64_t* next_sequence, uint8_t* buffer, uint64_t buffer_size, uint64_t* filled) noexcept nogil:
    cdef Scan scan
    cdef int code
    scan.journal = journal
    scan.next_sequence = next_sequence[0]
    scan.buffer = buffer
    scan.buffer_size = buffer_size
    scan.filled = 0
    code = lmdb_guarded(journal_scan_body, &scan)
    next_sequence[0] = scan.next_sequence
    filled[0] = scan.filled
    if code < 0 and code > -64:
        # What LMDB held when it crashed cannot be put down in order: leave it, the process is about to end.
        memset(journal, 0, sizeof(Journal))
        return JOURNAL_CRASHED
    return code


cdef void journal_scan_end(Journal* journal) noexcept nogil:
    if journal.scan_cursor != NULL:
        mdb_cursor_close(journal.scan_cursor)
        journal.scan_cursor = NULL
    if journal.scan_txn != NULL:
        mdb_txn_abort(journal.scan_txn)
        journal.scan_txn = NULL


cdef int journal_has_body(void* argument) noexcept nogil:
    cdef Looking* looking = <Looking*>argument
    cdef uint64_t size = 0
    cdef int code = JOURNAL_END
    cdef const GroupHeader* header = <const GroupHeader*>journal_find(looking.journal, looking.sequence, &size)
    if header == NULL:
        return JOURNAL_END
    if (size >= GROUP_HEADER_BYTES and header.first_sequence + header.count - 1 == looking.sequence
            and memcmp(header.hash, looking.hash, 32) == 0):
        code = JOURNAL_OK
    journal_release(looking.journal)
    return code


cdef int journal_has(Journal* journal, uint64_t sequence, const uint8_t* hash) noexcept nogil:
    cdef Looking looking
    cdef int code
    looking.journal = journal
    looking.sequence = sequence
    looking.hash = hash
    code = lmdb_guarded(journal_has_body, &looking)
    if code < 0 and code > -64:
        memset(journal, 0, sizeof(Journal))     # as above
        return JOURNAL_CRASHED
    return code


cdef int journal_sync(Journal* journal) noexcept nogil:
    return mdb_env_sync(journal.env, 1)


# --- the drain thread -------------------------------------------------------------------------------------------

cdef int journal_begin(Journal* journal) noexcept nogil:
    return mdb_txn_begin(journal.env, NULL, 0, &journal.write_txn)


cdef int journal_put(Journal* journal, uint64_t first_sequence, const uint8_t* group, uint64_t size) noexcept nogil:
    cdef MDB_val key, value
    cdef int code
    key.mv_size = sizeof(uint64_t)
    key.mv_data = &first_sequence
    value.mv_size = size
    value.mv_data = <void*>group
    code = mdb_put(journal.write_txn, journal.groups, &key, &value, MDB_APPEND)
    if code != MDB_SUCCESS:
        mdb_txn_abort(journal.write_txn)
        journal.write_txn = NULL
    return code


cdef int journal_commit(Journal* journal, const Drained* drained) noexcept nogil:
    cdef MDB_val key, value
    cdef MDB_txn* txn = journal.write_txn
    cdef int code
    key.mv_size = 7
    key.mv_data = <void*><const char*>b"drained"
    value.mv_size = sizeof(Drained)
    value.mv_data = <void*>drained
    journal.write_txn = NULL
    code = mdb_put(txn, journal.meta, &key, &value, 0)
    if code != MDB_SUCCESS:
        mdb_txn_abort(txn)
        return code
    return mdb_txn_commit(txn)


cdef bint journal_full(int code) noexcept nogil:
    return code == MDB_MAP_FULL or code == ENOSPC or code == EDQUOT


# --- the hot thread ---------------------------------------------------------------------------------------------

cdef const uint8_t* journal_find(Journal* journal, uint64_t sequence, uint64_t* size) noexcept nogil:
    cdef MDB_val key, value
    cdef uint64_t wanted = sequence
    cdef uint64_t found
    cdef int code
    if mdb_txn_renew(journal.read_txn) != MDB_SUCCESS:
        return NULL
    key.mv_size = sizeof(uint64_t)
    key.mv_data = &wanted
    code = mdb_cursor_renew(journal.read_txn, journal.read_cursor)
    if code == MDB_SUCCESS:
        code = mdb_cursor_get(journal.read_cursor, &key, &value, MDB_SET_RANGE)
    # SET_RANGE finds the first group that begins at or behind the sequence; unless it begins right there, the one before holds it.
    if code == MDB_NOTFOUND:
        code = mdb_cursor_get(journal.read_cursor, &key, &value, MDB_LAST)
    elif code == MDB_SUCCESS:
        memcpy(&found, key.mv_data, sizeof(uint64_t))
        if found != sequence:
            code = mdb_cursor_get(journal.read_cursor, &key, &value, MDB_PREV)
    if code != MDB_SUCCESS:
        mdb_txn_reset(journal.read_txn)
        return NULL
    size[0] = value.mv_size
    return <const uint8_t*>value.mv_data


cdef void journal_release(Journal* journal) noexcept nogil:
    mdb_txn_reset(journal.read_txn)


cdef uint8_t* journal_copy(Journal* journal, uint64_t sequence, uint64_t* size) noexcept nogil:
    cdef Journal apart = journal[0]
    cdef const uint8_t* group
    cdef uint8_t* copy = NULL
    apart.read_txn = NULL
    apart.read_cursor = NULL
    if lmdb_open_reader(apart.env, apart.groups, &apart.read_txn, &apart.read_cursor) == MDB_SUCCESS:
        group = journal_find(&apart, sequence, size)
        if group != NULL:
            copy = <uint8_t*>malloc(size[0])
            if copy != NULL:
                memcpy(copy, group, size[0])
            journal_release(&apart)
    if apart.read_cursor != NULL:
        mdb_cursor_close(apart.read_cursor)
    if apart.read_txn != NULL:
        mdb_txn_abort(apart.read_txn)
    return copy


cdef uint64_t journal_used_bytes(Journal* journal) noexcept nogil:
    # Pages in use up to the last one: what the file would shrink to at most. LMDB never gives pages back.
    cdef MDB_stat facts
    cdef MDB_envinfo info
    if journal.env == NULL or mdb_env_stat(journal.env, &facts) != MDB_SUCCESS or mdb_env_info(journal.env, &info) != MDB_SUCCESS:
        return 0
    return (info.me_last_pgno + 1) * facts.ms_psize


cdef const char* journal_error(int code) noexcept nogil:
    return mdb_strerror(code)
