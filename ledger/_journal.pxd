# The journal: LMDB through its C API, without the GIL. What it promises stands in _journal.pyx.
# cimported by ledger/_engine.pyx alone; other processes read with ledger/journal.py.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ledger._lmdb cimport MDB_cursor, MDB_dbi, MDB_env, MDB_txn

cdef enum:                      # JournalResult: beside LMDB's own codes and errno
    JOURNAL_OK = 0
    JOURNAL_END = 1             # the scan is over
    JOURNAL_FOREIGN = 2         # the environment is not one of ours, or of another directory
    JOURNAL_SHORT = 3           # the file is shorter than its meta page says
    JOURNAL_TOO_LARGE = 4       # a record longer than any group
    JOURNAL_CRASHED = 5         # LMDB ran into damaged pages

cdef packed struct Drained:     # meta/drained, 56 bytes; docs/journal-format.md
    uint64_t sequence           # last in `groups`
    uint8_t hash[32]            # of that group
    uint64_t position           # in the tail's ring, behind that group
    int64_t time_us             # of the drain

cdef struct Journal:
    MDB_env* env
    MDB_dbi groups
    MDB_dbi meta
    MDB_txn* write_txn          # drain thread
    MDB_txn* read_txn           # hot thread: reset between lookups
    MDB_cursor* read_cursor
    MDB_txn* scan_txn           # starting thread
    MDB_cursor* scan_cursor

cdef int journal_open(Journal* journal, const char* path, bint create, const uint8_t* directory) noexcept nogil
    # Opens journal/, with `create` a new one. JournalResult, LMDB code or errno; on failure everything is closed again.
cdef void journal_close(Journal* journal) noexcept nogil
cdef int journal_drained(Journal* journal, Drained* drained) noexcept nogil
    # meta/drained; all zeros when nothing was drained yet.
cdef int journal_scan(Journal* journal, uint64_t* next_sequence, uint8_t* buffer, uint64_t buffer_size, uint64_t* filled) noexcept nogil
    # Copies records from key >= next_sequence on into buffer, each behind its key and its size (8 bytes each) and padded to 8 bytes,
    # and moves next_sequence behind the last key copied. JOURNAL_OK, JOURNAL_END when none was left, or what is wrong. Survives damaged pages.
cdef void journal_scan_end(Journal* journal) noexcept nogil
cdef int journal_has(Journal* journal, uint64_t sequence, const uint8_t* hash) noexcept nogil
    # JOURNAL_OK: a group ends with this sequence and has this hash; JOURNAL_END: none has; else what is wrong. Survives damaged pages.
cdef int journal_sync(Journal* journal) noexcept nogil
    # What was read is on disk when this returns 0: a process that was killed in a commit may have left it in memory alone.

# The drain thread: begin, put in rising order, commit. Any failure leaves the journal as it was and the transaction aborted.
cdef int journal_begin(Journal* journal) noexcept nogil
cdef int journal_put(Journal* journal, uint64_t first_sequence, const uint8_t* group, uint64_t size) noexcept nogil
cdef int journal_commit(Journal* journal, const Drained* drained) noexcept nogil
cdef bint journal_full(int code) noexcept nogil
    # Whether a failure means "no space": the transaction may be tried again later. Everything else must end the process.

cdef const uint8_t* journal_find(Journal* journal, uint64_t sequence, uint64_t* size) noexcept nogil
    # The group that holds the sequence; valid until journal_release. NULL: not there, or LMDB failed. Hot thread only.
cdef uint8_t* journal_copy(Journal* journal, uint64_t sequence, uint64_t* size) noexcept nogil
    # The group that holds this sequence, copied by malloc, beside the hot thread; NULL: it cannot be read, or is not there yet.
cdef void journal_release(Journal* journal) noexcept nogil
cdef uint64_t journal_used_bytes(Journal* journal) noexcept nogil
cdef const char* journal_error(int code) noexcept nogil
