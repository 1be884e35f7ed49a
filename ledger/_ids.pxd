# Runs of request ids and receipt keys that memory has dropped. What they promise stands in _ids.pyx.
# cimported by ledger/_engine.pyx and server/_local.pyx; ledger/ids.py uses its classes.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ledger._core cimport Core, KEYS_COUNT
from ledger._layout cimport Facts, Lookup
from ledger._lmdb cimport MDB_cursor, MDB_dbi, MDB_env, MDB_txn
from ledger._table cimport KeySlot

cdef enum:                      # IdsResult: beside LMDB's own codes and errno
    IDS_OK = 0
    IDS_FOREIGN = 1             # a run of another directory
    IDS_SHORT = 2               # the file is shorter than its meta page says
    IDS_DAMAGED = 3             # a run's description or one of its blocks is not what was written
    IDS_GAP = 4                 # a run is missing
    IDS_CRASHED = 5             # LMDB ran into damaged pages
    IDS_STOPPED = 6             # the writer was told to stop: nothing has come of this run
    IDS_NO_MEMORY = 7
    IDS_RESULT_COUNT = 8

# Called between the steps of a long run. False: stop.
ctypedef bint (*IdsStep)(void* owner) noexcept nogil

cdef struct IdsHead:            # the journal as it was: of which history a run is
    uint64_t sequence           # the last entry of a group; 0: not known
    uint8_t hash[32]            # of that group, and so of everything before it

cdef struct RunRef:             # what a look-up must know of a run
    int64_t order_min           # sent_time (us) or business day (yyyymmdd)
    int64_t order_max
    uint64_t first_sequence     # it holds the keys of the entries first_sequence..last_sequence
    uint64_t last_sequence
    uint64_t keys
    uint32_t kind               # KeyKind
    IdsHead head                # a group at or behind last_sequence; not known: a run of version 1, or of no journal

cdef struct Ids:
    MDB_env* env
    MDB_dbi runs
    MDB_dbi slots
    uint8_t directory[16]
    RunRef* refs                # of run number i + 1 at [i]; reserved for RUNS_MAX
    # Published by the writer, in this order, once a run is on disk.
    uint64_t run_count
    uint64_t covered[KEYS_COUNT]    # the keys of every entry up to this sequence lie in runs
    uint64_t keys               # in all runs
    uint64_t fault_run          # which run a refusal of ids_open is about; 0: none
    # The writer's own.
    MDB_txn* txn
    KeySlot* window             # slots being sorted
    uint64_t window_room
    uint64_t written[KEYS_COUNT]    # generations of each table that were written, or needed no run
    bint remains                # blocks of a run that was not finished lie behind the last one
    # The reader's own.
    MDB_txn* read_txn           # reset between two readings
    MDB_cursor* read_cursor
    uint64_t read_runs          # runs that this reading sees
    uint64_t read_covered[KEYS_COUNT]

cdef int ids_open(Ids* ids, const char* path, const uint8_t* directory, bint durable) noexcept nogil
    # Opens DATA/ids, fills an empty one, and checks every run's description, first and last block. IdsResult, LMDB code or errno; on
    # failure everything is closed again. durable: False only where nothing else is durable either (server/_local.pyx).
cdef void ids_close(Ids* ids) noexcept nogil
cdef void ids_begin(Ids* ids, Core* core) noexcept nogil
    # Before anything is applied to the core: which keys it need not remember because runs hold them.
cdef void ids_tell(Ids* ids, Core* core) noexcept nogil
    # core_set_covered with what is on disk by now.
cdef int ids_write_due(Ids* ids, Core* core, const IdsHead* head, uint64_t until, IdsStep step, void* owner) noexcept nogil
    # Writes each full generation whose last sequence is at most `until` as a run, in order. Each is on disk and published, or never was.
    # head: a group that is on disk and ends at or behind `until`; NULL: there is no journal.
    # By the one writer: the ids thread, or the starting thread before there is one.
cdef bint ids_pending(Ids* ids, Core* core) noexcept nogil
    # Whether a generation is full and not written yet.
cdef bint ids_full(int code) noexcept nogil
    # Whether a failure means "no space": it may be tried again later.

# The reader: the look-up thread, or the one thread of a test.
cdef void ids_ask(Ids* ids, const Lookup** lookups, Facts** facts, uint32_t count) noexcept nogil
    # Asks the runs, newest first. A run that cannot be read makes its facts `unreadable`.
cdef uint64_t ids_used_bytes(Ids* ids) noexcept nogil
cdef object ids_text(const Ids* ids, int code)
    # What a failure of ids_open means, for people.
