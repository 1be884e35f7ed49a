"""Runs: the request ids and receipt keys that memory has dropped, sorted, in an LMDB environment of their own (DATA/ids).

For: the ids thread, which writes a full generation as a run before memory drops it; the look-up thread, which asks the runs for late
requests; the check at start; the rebuilding from the journal. Not for deciding (ledger/_core.pyx) and not for threads (ledger/_engine.pyx).
Called by ledger/_engine.pyx, server/_local.pyx and, through the classes below, by ledger/ids.py. The bytes: docs/journal-format.md.

Promises and choices
a) Append only: a run is written once and never changes. It exists when its description does, and that is written in the run's last
   transaction. A long run takes several transactions of 2 MB with pauses, so that neither the memory for dirty pages nor one long
   flush disturbs the tail's; blocks of a run that was not finished are swept before the next one is written.
b) A block fills one page: 20 bytes and 145 slots, so a key costs 28.2 bytes on disk and a look-up reads one page per run.
c) A table's slots lie nearly sorted already, because the place of a slot rises with its hash; only between two empty slots must be sorted.
d) Each block has its own check, so a look-up never believes a damaged one. A start reads the descriptions and the ends of the runs,
   not their middles: O(runs).
e) Everything here can be made again from the journal (`daybook ids DIR --rebuild`). LMDB may crash on damaged pages: guarded.
f) A run names a group of the journal at or behind its last entry, with its hash. Whoever opens the runs of a journal looks whether it
   has these groups (ledger/_engine.pyx, ledger/ids.py): the runs of another history of the same directory are never believed.
"""

from libc.errno cimport EDQUOT, EIO, ENOSPC
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset
from ledger._atomic cimport load_u64, store_u64
from ledger._core cimport APPLY_OK, Core, CoreSizes, core_close, core_keys, core_keys_room, core_open, core_remember, core_set_covered
from ledger._core cimport KEYS_COUNT, KEYS_RECEIPT, KEYS_REQUEST
from ledger._hash cimport Hash128, fold, key_of_return
from ledger._layout cimport ASK_ANY_TIME, ASK_RECEIPT, ASK_REQUEST, ASK_RETURN, EntryHeader, Facts, GROUP_HEADER_BYTES, GroupHeader, Lookup
from ledger._limits cimport JOURNAL_MAP_BYTES, RUNS_MAX, RUN_STEP_BLOCKS
from ledger._lmdb cimport (
    MDB_APPEND, MDB_CREATE, MDB_FIRST, MDB_LAST, MDB_MAP_FULL, MDB_NEXT, MDB_NORDAHEAD, MDB_NOSYNC, MDB_NOTFOUND, MDB_NOTLS, MDB_PREV, MDB_RDONLY,
    MDB_SET_RANGE, MDB_SUCCESS, MDB_cursor, MDB_dbi, MDB_envinfo, MDB_stat, MDB_txn, MDB_val, lmdb_file_bytes, lmdb_guarded, lmdb_open_reader,
    lmdb_set_assert, mdb_cursor_close, mdb_cursor_del, mdb_cursor_get, mdb_cursor_open, mdb_cursor_renew, mdb_dbi_open, mdb_env_close,
    mdb_env_create, mdb_env_get_fd, mdb_env_info, mdb_env_open, mdb_env_set_mapsize, mdb_env_set_maxdbs, mdb_env_stat, mdb_put,
    mdb_reader_check, mdb_strerror, mdb_txn_abort, mdb_txn_begin, mdb_txn_commit, mdb_txn_renew, mdb_txn_reset,
)
from ledger._table cimport (
    Generation, KeySlot, KeyTable, ORDER_NONE, generation_at, keys_begin_at, range_of, reserve_memory, slot_first, slot_second, unreserve_memory,
)

cdef extern from "_verify.h" nogil:
    void VERIFY(bint condition)

cdef extern from *:
    """
    #include <endian.h>
    static inline uint32_t ids_big32(uint32_t value) { return htobe32(value); }
    static inline uint64_t ids_big64(uint64_t value) { return htobe64(value); }
    """
    uint32_t big32 "ids_big32"(uint32_t value) noexcept nogil
    uint64_t big64 "ids_big64"(uint64_t value) noexcept nogil

cdef enum:
    RUN_VERSION = 2
    RUN_VERSION_1_BYTES = 88    # a description before it knew the journal's head
    BLOCK_SLOTS = 145
    BLOCK_HEAD_BYTES = 20
    BLOCK_BYTES = 4080          # what fits a page of LMDB: BLOCK_HEAD_BYTES + BLOCK_SLOTS * 28
    WINDOW_SLOTS = 16_384       # sorted at once to begin with
    RUNS_IN_MEMORY = 2          # of each kind that a start puts into memory again, as if it had never stopped
    EMIT_BLOCKS = 32            # blocks taken from the window at once

cdef packed struct RunRecord:   # a value of `runs`; its key is the run's number, from 1 (u32, big endian)
    uint32_t version
    uint32_t kind               # KeyKind
    uint64_t first_sequence
    uint64_t last_sequence
    int64_t order_min
    int64_t order_max
    uint64_t count              # keys
    uint64_t blocks
    uint8_t directory[16]
    uint64_t hash               # of the checks of its blocks
    IdsHead head                # from version 2 on
    uint64_t check              # of the bytes before

cdef packed struct BlockHead:
    uint64_t check              # of everything behind it
    uint32_t run
    uint32_t index              # of the block in the run, from 0
    uint32_t count              # slots that follow

cdef packed struct BlockKey:    # a key of `slots`, all big endian
    uint32_t run
    uint64_t lo                 # of the block's first slot
    uint64_t hi

if sizeof(RunRecord) != 128 or sizeof(BlockHead) != BLOCK_HEAD_BYTES or sizeof(BlockKey) != 20 or sizeof(KeySlot) != 28:
    raise ImportError("the records of runs do not have the sizes that docs/journal-format.md gives")

cdef struct Opening:            # what ids_open hands through the guard
    Ids* ids
    const char* path
    bint durable

cdef struct Asking:             # what ids_ask hands through the guard
    Ids* ids
    const Lookup** lookups
    Facts** facts
    uint32_t count


# --- checks ---------------------------------------------------------------------------------------------------------

cdef uint64_t check_of(const uint8_t* data, uint64_t size) noexcept nogil:
    # For damage, not for attackers.
    cdef uint64_t sum = fold(size ^ <uint64_t>0xa0761d6478bd642f, <uint64_t>0xe7037ed1a0b428db)
    cdef uint64_t[2] words
    cdef uint64_t at = 0
    while at + 16 <= size:
        memcpy(words, data + at, 16)
        sum = fold(words[0] ^ sum, words[1] ^ <uint64_t>0x8ebc6af09c88c6e3)
        at += 16
    words[0] = 0
    words[1] = 0
    memcpy(words, data + at, size - at)
    return fold(words[0] ^ sum, words[1] ^ <uint64_t>0x589965cc75374cc3)


cdef inline uint64_t chain_check(uint64_t hash, uint64_t check) noexcept nogil:
    return fold(hash ^ <uint64_t>0xa0761d6478bd642f, check ^ <uint64_t>0xe7037ed1a0b428db)


cdef bint block_sound(const MDB_val* value, uint32_t run) noexcept nogil:
    cdef const BlockHead* head = <const BlockHead*>value.mv_data
    if value.mv_size <= BLOCK_HEAD_BYTES or value.mv_size > BLOCK_BYTES:
        return False
    return (head.run == run and value.mv_size == BLOCK_HEAD_BYTES + <size_t>head.count * sizeof(KeySlot)
            and head.check == check_of(<const uint8_t*>value.mv_data + 8, value.mv_size - 8))


cdef inline void key_make(BlockKey* key, uint64_t run, uint64_t lo, uint64_t hi) noexcept nogil:
    key.run = big32(<uint32_t>run)
    key.lo = big64(lo)
    key.hi = big64(hi)


# --- opening --------------------------------------------------------------------------------------------------------

cdef int check_end(Ids* ids, MDB_cursor* blocks, uint32_t run, uint64_t first, uint64_t wanted) noexcept nogil:
    # The first (first = 1) or the last block of a run: is it there, sound, and in its place?
    cdef BlockKey key
    cdef MDB_val at, value
    cdef int code
    key_make(&key, run if first else <uint64_t>run + 1, 0, 0)
    at.mv_size = sizeof(BlockKey)
    at.mv_data = &key
    code = mdb_cursor_get(blocks, &at, &value, MDB_SET_RANGE)
    if not first:
        code = mdb_cursor_get(blocks, &at, &value, MDB_LAST if code == MDB_NOTFOUND else MDB_PREV)
    if code == MDB_NOTFOUND:
        return IDS_DAMAGED
    if code != MDB_SUCCESS:
        return code
    if not block_sound(&value, run) or (<const BlockHead*>value.mv_data).index != wanted:
        return IDS_DAMAGED
    return IDS_OK


cdef bint record_read(const MDB_val* value, RunRecord* record) noexcept nogil:
    # A run's description, of any version; False: it is none.
    cdef uint64_t check
    memset(record, 0, sizeof(RunRecord))
    if value.mv_size == sizeof(RunRecord):
        memcpy(record, value.mv_data, sizeof(RunRecord))
        check = check_of(<const uint8_t*>record, sizeof(RunRecord) - 8)
        return record.version == RUN_VERSION and record.check == check
    if value.mv_size != RUN_VERSION_1_BYTES:
        return False
    memcpy(record, value.mv_data, RUN_VERSION_1_BYTES - 8)
    memcpy(&check, <const uint8_t*>value.mv_data + RUN_VERSION_1_BYTES - 8, 8)
    return record.version == 1 and check == check_of(<const uint8_t*>record, RUN_VERSION_1_BYTES - 8)


cdef int check_run(Ids* ids, MDB_cursor* blocks, const MDB_val* key, const MDB_val* value) noexcept nogil:
    # The next run: its description, and both ends of its blocks.
    cdef uint32_t number = <uint32_t>ids.run_count + 1
    cdef uint32_t expected
    cdef RunRecord record
    cdef int code
    ids.fault_run = number
    expected = big32(number)
    if key.mv_size != 4 or memcmp(key.mv_data, &expected, 4) != 0:
        return IDS_GAP
    if not record_read(value, &record) or record.kind >= KEYS_COUNT:
        return IDS_DAMAGED
    if memcmp(record.directory, ids.directory, 16) != 0:
        return IDS_FOREIGN
    if number >= RUNS_MAX or record.blocks == 0 or record.count == 0:
        return IDS_DAMAGED
    if record.first_sequence > ids.covered[record.kind] + 1 or record.last_sequence <= ids.covered[record.kind]:
        return IDS_GAP
    code = check_end(ids, blocks, number, 1, 0)
    if code == IDS_OK:
        code = check_end(ids, blocks, number, 0, record.blocks - 1)
    if code != IDS_OK:
        return code
    ref_fill(&ids.refs[ids.run_count], &record)
    ids.covered[record.kind] = record.last_sequence
    ids.keys += record.count
    ids.run_count += 1
    ids.fault_run = 0
    return IDS_OK


cdef void ref_fill(RunRef* ref, const RunRecord* record) noexcept nogil:
    ref.order_min = record.order_min
    ref.order_max = record.order_max
    ref.first_sequence = record.first_sequence
    ref.last_sequence = record.last_sequence
    ref.keys = record.count
    ref.kind = record.kind
    ref.head = record.head


cdef int ids_open_body(void* argument) noexcept nogil:
    cdef Opening* opening = <Opening*>argument
    cdef Ids* ids = opening.ids
    cdef MDB_txn* txn = NULL
    cdef MDB_cursor* runs = NULL
    cdef MDB_cursor* blocks = NULL
    cdef MDB_val key, value
    cdef MDB_stat facts
    cdef MDB_envinfo info
    cdef int code, fd, dead
    code = mdb_env_create(&ids.env)
    if code != MDB_SUCCESS:
        return code
    lmdb_set_assert(ids.env)
    mdb_env_set_mapsize(ids.env, JOURNAL_MAP_BYTES)
    mdb_env_set_maxdbs(ids.env, 4)
    code = mdb_env_open(ids.env, opening.path, MDB_NOTLS | MDB_NORDAHEAD | (0 if opening.durable else MDB_NOSYNC), 0o640)
    if code != MDB_SUCCESS:
        return code
    mdb_reader_check(ids.env, &dead)
    mdb_env_stat(ids.env, &facts)
    mdb_env_info(ids.env, &info)
    mdb_env_get_fd(ids.env, &fd)
    if lmdb_file_bytes(fd) < <int64_t>((info.me_last_pgno + 1) * facts.ms_psize):
        return IDS_SHORT
    code = mdb_txn_begin(ids.env, NULL, 0, &txn)
    if code != MDB_SUCCESS:
        return code
    code = mdb_dbi_open(txn, "runs", MDB_CREATE, &ids.runs)
    if code == MDB_SUCCESS:
        code = mdb_dbi_open(txn, "slots", MDB_CREATE, &ids.slots)
    if code == MDB_SUCCESS:
        code = mdb_cursor_open(txn, ids.runs, &runs)
    if code == MDB_SUCCESS:
        code = mdb_cursor_open(txn, ids.slots, &blocks)
    if code == MDB_SUCCESS:
        code = mdb_cursor_get(runs, &key, &value, MDB_FIRST)
        while code == MDB_SUCCESS:
            code = check_run(ids, blocks, &key, &value)
            if code == IDS_OK:
                code = mdb_cursor_get(runs, &key, &value, MDB_NEXT)
        if code == MDB_NOTFOUND:
            code = mdb_cursor_get(blocks, &key, &value, MDB_LAST)
            if code == MDB_SUCCESS:
                ids.remains = key.mv_size != sizeof(BlockKey) or (<const BlockKey*>key.mv_data).run != big32(<uint32_t>ids.run_count)
            elif code == MDB_NOTFOUND:
                code = MDB_SUCCESS
    if runs != NULL:
        mdb_cursor_close(runs)
    if blocks != NULL:
        mdb_cursor_close(blocks)
    if code != MDB_SUCCESS:
        mdb_txn_abort(txn)
        return code
    code = mdb_txn_commit(txn)
    if code != MDB_SUCCESS:
        return code
    return lmdb_open_reader(ids.env, ids.slots, &ids.read_txn, &ids.read_cursor)


cdef int ids_open(Ids* ids, const char* path, const uint8_t* directory, bint durable) noexcept nogil:
    cdef Opening opening
    cdef uint64_t fault
    cdef int code
    memset(ids, 0, sizeof(Ids))
    memcpy(ids.directory, directory, 16)
    ids.refs = <RunRef*>reserve_memory(RUNS_MAX * sizeof(RunRef))
    ids.window = <KeySlot*>malloc(WINDOW_SLOTS * sizeof(KeySlot))
    ids.window_room = WINDOW_SLOTS
    if ids.refs == NULL or ids.window == NULL:
        ids_close(ids)
        return IDS_NO_MEMORY
    opening.ids = ids
    opening.path = path
    opening.durable = durable
    code = lmdb_guarded(ids_open_body, &opening)
    if code < 0 and code > -64:     # a signal; LMDB's own codes lie below -30000
        # What LMDB held when it crashed cannot be put down in order: leave it.
        ids.env = NULL
        ids.read_txn = NULL
        ids.read_cursor = NULL
        code = IDS_CRASHED
    if code != MDB_SUCCESS:
        fault = ids.fault_run
        ids_close(ids)
        ids.fault_run = fault
    return code


cdef void ids_close(Ids* ids) noexcept nogil:
    if ids.read_cursor != NULL:
        mdb_cursor_close(ids.read_cursor)
    if ids.read_txn != NULL:
        mdb_txn_abort(ids.read_txn)
    if ids.env != NULL:
        mdb_env_close(ids.env)
    unreserve_memory(ids.refs, RUNS_MAX * sizeof(RunRef))
    free(ids.window)
    memset(ids, 0, sizeof(Ids))


cdef uint64_t ids_used_bytes(Ids* ids) noexcept nogil:
    cdef MDB_stat facts
    cdef MDB_envinfo info
    if ids.env == NULL or mdb_env_stat(ids.env, &facts) != MDB_SUCCESS or mdb_env_info(ids.env, &info) != MDB_SUCCESS:
        return 0
    return (info.me_last_pgno + 1) * facts.ms_psize


cdef void ids_begin(Ids* ids, Core* core) noexcept nogil:
    cdef uint64_t at, sequence
    cdef int64_t forgotten
    cdef uint32_t kind, kept
    cdef const RunRef* ref
    for kind in range(KEYS_COUNT):
        sequence = ids.covered[kind] + 1
        forgotten = ORDER_NONE
        kept = 0
        at = ids.run_count
        while at > 0:
            at -= 1
            ref = &ids.refs[at]
            if ref.kind != kind:
                continue
            if kept < RUNS_IN_MEMORY:
                kept += 1
                if ref.first_sequence < sequence:
                    sequence = ref.first_sequence
            elif ref.order_max > forgotten:
                forgotten = ref.order_max
        keys_begin_at(core_keys(core, kind), sequence, forgotten)
        ids.written[kind] = 0
    ids_tell(ids, core)


cdef void ids_tell(Ids* ids, Core* core) noexcept nogil:
    core_set_covered(core, load_u64(&ids.covered[KEYS_REQUEST]), load_u64(&ids.covered[KEYS_RECEIPT]))


# --- writing --------------------------------------------------------------------------------------------------------

cdef void writer_abort(Ids* ids) noexcept nogil:
    if ids.txn != NULL:
        mdb_txn_abort(ids.txn)
        ids.txn = NULL
    ids.remains = True          # perhaps: the sweep looks


cdef int writer_commit(Ids* ids) noexcept nogil:
    cdef MDB_txn* txn = ids.txn
    ids.txn = NULL
    return mdb_txn_commit(txn)


cdef int sweep(Ids* ids, IdsStep step, void* owner) noexcept nogil:
    # Takes away the blocks of a run that was not finished.
    cdef MDB_cursor* blocks
    cdef MDB_val key, value
    cdef uint32_t last = <uint32_t>ids.run_count, done
    cdef int code = MDB_SUCCESS
    while code == MDB_SUCCESS:
        if not step(owner):
            return IDS_STOPPED
        code = mdb_txn_begin(ids.env, NULL, 0, &ids.txn)
        if code != MDB_SUCCESS:
            return code
        code = mdb_cursor_open(ids.txn, ids.slots, &blocks)
        if code != MDB_SUCCESS:
            writer_abort(ids)
            return code
        done = 0
        while code == MDB_SUCCESS and done < RUN_STEP_BLOCKS:
            code = mdb_cursor_get(blocks, &key, &value, MDB_LAST)
            if code != MDB_SUCCESS:
                break
            if key.mv_size == sizeof(BlockKey) and big32((<const BlockKey*>key.mv_data).run) <= last:
                code = MDB_NOTFOUND
                break
            code = mdb_cursor_del(blocks, 0)
            done += 1
        mdb_cursor_close(blocks)
        if code != MDB_SUCCESS and code != MDB_NOTFOUND:
            writer_abort(ids)
            return code
        if writer_commit(ids) != MDB_SUCCESS:
            return EIO
    ids.remains = False
    return MDB_SUCCESS


cdef int put_block(Ids* ids, RunRecord* record, uint32_t run, const KeySlot* slots, uint32_t count) noexcept nogil:
    cdef uint8_t[BLOCK_BYTES] block
    cdef BlockHead* head = <BlockHead*>block
    cdef BlockKey at
    cdef MDB_val key, value
    value.mv_size = BLOCK_HEAD_BYTES + <size_t>count * sizeof(KeySlot)
    value.mv_data = block
    head.run = run
    head.index = <uint32_t>record.blocks
    head.count = count
    memcpy(<uint8_t*>block + BLOCK_HEAD_BYTES, slots, <size_t>count * sizeof(KeySlot))
    head.check = check_of(<uint8_t*>block + 8, value.mv_size - 8)
    key_make(&at, run, slots[0].lo, slots[0].hi)
    key.mv_size = sizeof(BlockKey)
    key.mv_data = &at
    record.blocks += 1
    record.count += count
    record.hash = chain_check(record.hash, head.check)
    return mdb_put(ids.txn, ids.slots, &key, &value, MDB_APPEND)


cdef int put_blocks(Ids* ids, RunRecord* record, uint32_t run, uint64_t* taken, uint64_t sorted_count, bint all_of_it, IdsStep step, void* owner) noexcept nogil:
    # Whole blocks from the front of the window's sorted part; with all_of_it the rest too. taken: slots that were used up.
    cdef uint64_t left = sorted_count
    cdef uint32_t count
    cdef int code
    taken[0] = 0
    while left >= BLOCK_SLOTS or (all_of_it and left > 0):
        count = BLOCK_SLOTS if left >= BLOCK_SLOTS else <uint32_t>left
        if record.blocks != 0 and record.blocks & (RUN_STEP_BLOCKS - 1) == 0:
            code = writer_commit(ids)
            if code != MDB_SUCCESS:
                return code
            if not step(owner):
                return IDS_STOPPED
            code = mdb_txn_begin(ids.env, NULL, 0, &ids.txn)
            if code != MDB_SUCCESS:
                return code
        code = put_block(ids, record, run, &ids.window[taken[0]], count)
        if code != MDB_SUCCESS:
            return code
        taken[0] += count
        left -= count
    return MDB_SUCCESS


cdef inline bint slot_less(const KeySlot* a, const KeySlot* b) noexcept nogil:
    return a.lo < b.lo or (a.lo == b.lo and a.hi < b.hi)


cdef int window_add(Ids* ids, uint64_t* count, uint64_t sorted_count, const KeySlot* slot) noexcept nogil:
    # Puts a slot in its place behind the sorted part.
    cdef KeySlot* grown
    cdef uint64_t at
    if count[0] == ids.window_room:
        grown = <KeySlot*>realloc(ids.window, 2 * ids.window_room * sizeof(KeySlot))
        if grown == NULL:
            return IDS_NO_MEMORY
        ids.window = grown
        ids.window_room *= 2
    at = count[0]
    while at > sorted_count and slot_less(slot, &ids.window[at - 1]):
        ids.window[at] = ids.window[at - 1]
        at -= 1
    ids.window[at] = slot[0]
    count[0] += 1
    return MDB_SUCCESS


cdef int write_slots(Ids* ids, RunRecord* record, uint32_t run, const KeyTable* table, const Generation* generation, IdsStep step, void* owner) noexcept nogil:
    # Streams the table's slots through the window into blocks. Slots between two empty ones are sorted among themselves; those that went
    # around the table's end lie at its beginning and come last.
    cdef const KeySlot* slot
    cdef uint64_t count = 0, sorted_count = 0, taken, at = 0, place
    cdef bint around = False
    cdef int code = MDB_SUCCESS
    while True:
        place = at
        if at >= table.capacity:
            place = at - table.capacity
            around = True
        slot = &generation.slots[place]
        if slot.lo == 0 and slot.hi == 0:
            sorted_count = count
            if around:
                break
        elif (range_of(slot.lo, table.capacity) > place) == around:
            code = window_add(ids, &count, sorted_count, slot)
            if code != MDB_SUCCESS:
                return code
        at += 1
        if sorted_count >= EMIT_BLOCKS * BLOCK_SLOTS:
            code = put_blocks(ids, record, run, &taken, sorted_count, False, step, owner)
            if code != MDB_SUCCESS:
                return code
            memmove(ids.window, &ids.window[taken], (count - taken) * sizeof(KeySlot))
            count -= taken
            sorted_count -= taken
    return put_blocks(ids, record, run, &taken, count, True, step, owner)


cdef int ids_write(Ids* ids, const KeyTable* table, uint64_t number, uint32_t kind, const IdsHead* head, IdsStep step, void* owner) noexcept nogil:
    cdef const Generation* generation = generation_at(table, number)
    cdef uint32_t run
    cdef RunRecord record
    cdef MDB_val key, value
    cdef uint32_t at
    cdef int code
    VERIFY(generation.first_sequence <= ids.covered[kind] + 1 and generation.last_sequence > ids.covered[kind])
    VERIFY(head == NULL or head.sequence >= generation.last_sequence)
    if ids.remains:
        code = sweep(ids, step, owner)
        if code != MDB_SUCCESS:
            return code
    if ids.run_count + 1 >= RUNS_MAX:
        return MDB_MAP_FULL
    run = <uint32_t>ids.run_count + 1
    memset(&record, 0, sizeof(RunRecord))
    record.version = RUN_VERSION
    record.kind = kind
    record.first_sequence = generation.first_sequence
    record.last_sequence = generation.last_sequence
    record.order_min = generation.order_min
    record.order_max = generation.order_max
    memcpy(record.directory, ids.directory, 16)
    if head != NULL:
        record.head = head[0]
    code = mdb_txn_begin(ids.env, NULL, 0, &ids.txn)
    if code == MDB_SUCCESS:
        code = write_slots(ids, &record, run, table, generation, step, owner)
    if code == MDB_SUCCESS:
        record.check = check_of(<const uint8_t*>&record, sizeof(RunRecord) - 8)
        at = big32(run)
        key.mv_size = 4
        key.mv_data = &at
        value.mv_size = sizeof(RunRecord)
        value.mv_data = &record
        code = mdb_put(ids.txn, ids.runs, &key, &value, MDB_APPEND)
    if code == MDB_SUCCESS:
        code = writer_commit(ids)
    if code != MDB_SUCCESS:
        writer_abort(ids)
        return code
    ref_fill(&ids.refs[run - 1], &record)
    store_u64(&ids.keys, ids.keys + record.count)
    store_u64(&ids.run_count, run)
    store_u64(&ids.covered[kind], record.last_sequence)
    return IDS_OK


cdef int ids_write_due(Ids* ids, Core* core, const IdsHead* head, uint64_t until, IdsStep step, void* owner) noexcept nogil:
    cdef const KeyTable* table
    cdef uint64_t last
    cdef uint32_t kind
    cdef int code
    for kind in range(KEYS_COUNT):
        table = core_keys(core, kind)
        while ids.written[kind] < load_u64(&table.full):
            # Behind a start, generations lie in older runs already; memory drops those whenever it likes, also right now. So a
            # generation is believed only if it was not dropped after it was looked at.
            last = load_u64(&generation_at(table, ids.written[kind]).last_sequence)
            if ids.written[kind] >= load_u64(&table.dropped) and last > ids.covered[kind]:
                if last > until:
                    break
                code = ids_write(ids, table, ids.written[kind], kind, head, step, owner)
                if code != IDS_OK:
                    return code
            ids.written[kind] += 1
    return IDS_OK


cdef bint ids_pending(Ids* ids, Core* core) noexcept nogil:
    return (ids.written[KEYS_REQUEST] < load_u64(&core_keys(core, KEYS_REQUEST).full)
            or ids.written[KEYS_RECEIPT] < load_u64(&core_keys(core, KEYS_RECEIPT).full))


cdef bint ids_full(int code) noexcept nogil:
    return code == MDB_MAP_FULL or code == ENOSPC or code == EDQUOT


# --- asking ---------------------------------------------------------------------------------------------------------

cdef const KeySlot* block_find(const MDB_val* value, Hash128 wanted) noexcept nogil:
    # NULL: not in this block.
    cdef const KeySlot* slots = <const KeySlot*>(<const uint8_t*>value.mv_data + BLOCK_HEAD_BYTES)
    cdef uint32_t low = 0, high = (<const BlockHead*>value.mv_data).count, middle
    while low < high:
        middle = (low + high) >> 1
        if slots[middle].lo < wanted.lo or (slots[middle].lo == wanted.lo and slots[middle].hi < wanted.hi):
            low = middle + 1
        else:
            high = middle
    if low < (<const BlockHead*>value.mv_data).count and slots[low].lo == wanted.lo and slots[low].hi == wanted.hi:
        return &slots[low]
    return NULL


cdef bint run_find(Ids* ids, uint32_t run, Hash128 wanted, const KeySlot** found) noexcept nogil:
    # False: the run cannot be read. found: NULL where it does not hold the key.
    cdef BlockKey at
    cdef MDB_val key, value
    cdef int code
    found[0] = NULL
    key_make(&at, run, wanted.lo, wanted.hi)
    key.mv_size = sizeof(BlockKey)
    key.mv_data = &at
    code = mdb_cursor_get(ids.read_cursor, &key, &value, MDB_SET_RANGE)
    # Unless a block begins with the key itself, it is in the block before, if anywhere.
    if code == MDB_NOTFOUND:
        code = mdb_cursor_get(ids.read_cursor, &key, &value, MDB_LAST)
    elif code == MDB_SUCCESS and (key.mv_size != sizeof(BlockKey) or memcmp(key.mv_data, &at, sizeof(BlockKey)) != 0):
        code = mdb_cursor_get(ids.read_cursor, &key, &value, MDB_PREV)
        if code == MDB_NOTFOUND:
            return True
    if code != MDB_SUCCESS or key.mv_size != sizeof(BlockKey):
        return False
    if memcmp(key.mv_data, &at, 4) != 0:
        return True             # smaller than the run's first key
    if not block_sound(&value, run):
        return False
    found[0] = block_find(&value, wanted)
    return True


cdef bint ask_request(Ids* ids, const Lookup* lookup, Facts* facts) noexcept nogil:
    cdef uint64_t at = ids.read_runs
    cdef const RunRef* ref
    cdef const KeySlot* slot
    while at > 0:
        at -= 1
        ref = &ids.refs[at]
        if ref.kind != KEYS_REQUEST:
            continue
        if not lookup.ask & ASK_ANY_TIME and (lookup.sent_time_us < ref.order_min or lookup.sent_time_us > ref.order_max):
            continue
        if not run_find(ids, <uint32_t>at + 1, lookup.request, &slot):
            return False
        if slot != NULL:
            facts.request = slot_first(slot)
            return True
    return True


cdef bint ask_receipt(Ids* ids, const Lookup* lookup, Facts* facts) noexcept nogil:
    # A run may know only one of a receipt's entries.
    cdef uint64_t at = ids.read_runs
    cdef Hash128 returned = key_of_return(lookup.receipt)
    cdef bint asks_return = lookup.ask & ASK_RETURN != 0
    cdef const RunRef* ref
    cdef const KeySlot* slot
    while at > 0 and (facts.first == 0 or facts.second == 0 or (asks_return and (facts.returned == 0 or facts.denied == 0))):
        at -= 1
        ref = &ids.refs[at]
        if ref.kind != KEYS_RECEIPT or lookup.business_day < ref.order_min or lookup.business_day > ref.order_max:
            continue
        if not run_find(ids, <uint32_t>at + 1, lookup.receipt, &slot):
            return False
        if slot != NULL:
            facts.first = facts.first if facts.first != 0 else slot_first(slot)
            facts.second = facts.second if facts.second != 0 else slot_second(slot)
        if asks_return:
            if not run_find(ids, <uint32_t>at + 1, returned, &slot):
                return False
            if slot != NULL:
                facts.returned = facts.returned if facts.returned != 0 else slot_first(slot)
                facts.denied = facts.denied if facts.denied != 0 else slot_second(slot)
    return True


cdef int ids_ask_body(void* argument) noexcept nogil:
    cdef Asking* asking = <Asking*>argument
    cdef Ids* ids = asking.ids
    cdef const Lookup* lookup
    cdef Facts* facts
    cdef uint32_t i
    cdef bint good
    # Covered first, then the runs, then the transaction: each sees at least what the one before promised.
    ids.read_covered[KEYS_REQUEST] = load_u64(&ids.covered[KEYS_REQUEST])
    ids.read_covered[KEYS_RECEIPT] = load_u64(&ids.covered[KEYS_RECEIPT])
    ids.read_runs = load_u64(&ids.run_count)
    if mdb_txn_renew(ids.read_txn) != MDB_SUCCESS:
        return EIO
    if mdb_cursor_renew(ids.read_txn, ids.read_cursor) != MDB_SUCCESS:
        mdb_txn_reset(ids.read_txn)
        return EIO
    for i in range(asking.count):
        lookup = asking.lookups[i]
        facts = asking.facts[i]
        good = True
        if lookup.ask & ASK_REQUEST:
            good = ask_request(ids, lookup, facts)
            facts.requests_until = ids.read_covered[KEYS_REQUEST]
        if good and lookup.ask & ASK_RECEIPT and facts.request == 0:
            good = ask_receipt(ids, lookup, facts)
            facts.receipts_until = ids.read_covered[KEYS_RECEIPT]
        facts.unreadable = not good
    mdb_txn_reset(ids.read_txn)
    return MDB_SUCCESS


cdef void ids_ask(Ids* ids, const Lookup** lookups, Facts** facts, uint32_t count) noexcept nogil:
    cdef Asking asking
    cdef uint32_t i
    cdef int code = EIO
    for i in range(count):
        memset(facts[i], 0, sizeof(Facts))
    asking.ids = ids
    asking.lookups = lookups
    asking.facts = facts
    asking.count = count
    if ids.read_txn != NULL:
        code = lmdb_guarded(ids_ask_body, &asking)
        if code < 0 and code > -64:
            # LMDB crashed with the transaction in its hands: nothing is read from here any more.
            ids.read_txn = NULL
            ids.read_cursor = NULL
    if code != MDB_SUCCESS:
        for i in range(count):
            memset(facts[i], 0, sizeof(Facts))
            facts[i].unreadable = 1


# --- for Python -----------------------------------------------------------------------------------------------------

_HINT = "`daybook ids DIR --rebuild` makes all runs again from the journal"
_TEXTS = {
    IDS_FOREIGN: "belongs to another data directory",
    IDS_DAMAGED: "is not what was written: it is damaged or cut off",
    IDS_GAP: "is not the next one: a run before it is missing",
}


cdef object ids_text(const Ids* ids, int code):
    what = "the ids of earlier requests (ids/data.mdb)"
    if code in _TEXTS:
        return f"{what} cannot be used: run {ids.fault_run} {_TEXTS[code]}. {_HINT}"
    if code == IDS_SHORT:
        return f"{what} cannot be used: the file is shorter than it was, its end is missing. {_HINT}"
    if code == IDS_CRASHED:
        return f"{what} cannot be used: LMDB cannot read its pages. {_HINT}"
    if code == IDS_NO_MEMORY:
        return f"{what} cannot be opened: no memory"
    return f"{what} cannot be used: {mdb_strerror(code).decode()}. {_HINT}"


class IdsRefused(Exception):
    """The runs of a directory cannot be used; the text says why and what to do."""


cdef bint no_pause(void* owner) noexcept nogil:
    return True


cdef class IdsFile:
    """The runs of one data directory, opened by a process that holds its lock: to make them, to look at them, to check them.

    Errors: IdsRefused.
    """
    cdef Ids ids

    def __cinit__(self, str path not None, bytes directory not None):
        cdef bytes encoded = path.encode()
        cdef const char* at = encoded
        cdef const uint8_t* owner = directory
        cdef int code
        if len(directory) != 16:
            raise ValueError(f"a directory id has 16 bytes, not {len(directory)}")
        with nogil:
            code = ids_open(&self.ids, at, owner, True)
        if code != 0:
            raise IdsRefused(ids_text(&self.ids, code))

    def __dealloc__(self):
        ids_close(&self.ids)

    def close(self):
        ids_close(&self.ids)

    def runs(self):
        """Every run: dicts with number, kind ("request ids" or "receipt keys"), first_sequence, last_sequence, order_min, order_max, keys, and
        head: (sequence, hash) of the group of the journal that it names, None in version 1."""
        cdef uint64_t i
        cdef RunRef* ref
        found = []
        for i in range(self.ids.run_count):
            ref = &self.ids.refs[i]
            found.append({
                "number": i + 1, "kind": KIND_NAMES[ref.kind], "first_sequence": ref.first_sequence, "last_sequence": ref.last_sequence,
                "order_min": ref.order_min, "order_max": ref.order_max, "keys": ref.keys,
                "head": (ref.head.sequence, (<const uint8_t*>ref.head.hash)[:32]) if ref.head.sequence else None})
        return found

    @property
    def used_bytes(self):
        return ids_used_bytes(&self.ids)

    def check(self, uint64_t number):
        """Read a whole run: every block's check, order, counts and the run's hash. None, or what is wrong."""
        cdef Checking checking
        cdef int code
        checking.ids = &self.ids
        checking.run = <uint32_t>number
        with nogil:
            code = lmdb_guarded(check_whole, &checking)
        if code == MDB_SUCCESS:
            return None
        self.ids.fault_run = number
        if code < 0 and code > -64:
            code = IDS_CRASHED
        return ids_text(&self.ids, code)


KIND_NAMES = ("request ids", "receipt keys")

cdef struct Checking:
    Ids* ids
    uint32_t run


cdef int check_whole(void* argument) noexcept nogil:
    cdef Checking* checking = <Checking*>argument
    cdef Ids* ids = checking.ids
    cdef MDB_txn* txn = NULL
    cdef MDB_cursor* cursor = NULL
    cdef MDB_val key, value
    cdef BlockKey at
    cdef RunRecord record
    cdef KeySlot last
    cdef const KeySlot* slots
    cdef uint64_t blocks = 0, keys = 0, hash = 0
    cdef uint32_t number = big32(checking.run), i
    cdef int code = mdb_txn_begin(ids.env, NULL, MDB_RDONLY, &txn)
    if code != MDB_SUCCESS:
        return code
    memset(&last, 0, sizeof(KeySlot))
    memset(&record, 0, sizeof(RunRecord))
    code = mdb_cursor_open(txn, ids.runs, &cursor)
    if code == MDB_SUCCESS:
        key.mv_size = 4
        key.mv_data = &number
        code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE)
        if code == MDB_SUCCESS and not record_read(&value, &record):
            code = IDS_DAMAGED
        mdb_cursor_close(cursor)
        code = mdb_cursor_open(txn, ids.slots, &cursor)
    if code != MDB_SUCCESS:
        mdb_txn_abort(txn)
        return code
    key_make(&at, checking.run, 0, 0)
    key.mv_size = sizeof(BlockKey)
    key.mv_data = &at
    code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE)
    while code == MDB_SUCCESS and key.mv_size == sizeof(BlockKey) and memcmp(key.mv_data, &number, 4) == 0:
        slots = <const KeySlot*>(<const uint8_t*>value.mv_data + BLOCK_HEAD_BYTES)
        if not block_sound(&value, checking.run) or (<const BlockHead*>value.mv_data).index != blocks:
            code = IDS_DAMAGED
            break
        for i in range((<const BlockHead*>value.mv_data).count):
            if not slot_less(&last, &slots[i]) and keys + i != 0:
                code = IDS_DAMAGED
            last = slots[i]
        keys += (<const BlockHead*>value.mv_data).count
        hash = chain_check(hash, (<const BlockHead*>value.mv_data).check)
        blocks += 1
        if code == MDB_SUCCESS:
            code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)
    if code == MDB_NOTFOUND:
        code = MDB_SUCCESS
    if code == MDB_SUCCESS and (blocks != record.blocks or keys != record.count or hash != record.hash):
        code = IDS_DAMAGED
    mdb_cursor_close(cursor)
    mdb_txn_abort(txn)
    return code


cdef class IdsBuilder:
    """Makes the runs of a directory from its journal: entries in, in order; runs out. Nothing else of them is looked at.

    ids_max: as the service has it, so that the runs have its generations' size.
    Errors: IdsRefused; ValueError where an entry is broken.
    """
    cdef IdsFile file
    cdef Core* core
    cdef IdsHead head           # of the last group fed
    cdef readonly uint64_t sequence

    def __cinit__(self, IdsFile file not None, uint64_t ids_max):
        cdef CoreSizes sizes
        sizes.members_max = 1
        sizes.ids_max = ids_max
        sizes.reservations_max = 1
        self.file = file
        self.sequence = 0
        if file.ids.run_count != 0:
            raise ValueError("runs are made in an empty file only")
        self.core = core_open(&sizes, NULL)
        ids_begin(&file.ids, self.core)

    def __dealloc__(self):
        core_close(self.core)

    def feed(self, bytes record not None):
        """One group record of the journal, the next one."""
        cdef const uint8_t* group = record
        cdef const GroupHeader* header = <const GroupHeader*>group
        cdef const uint8_t* at = group + GROUP_HEADER_BYTES
        cdef const uint8_t* end = group + len(record)
        cdef uint32_t i
        cdef int code = 0
        if len(record) < GROUP_HEADER_BYTES or header.first_sequence != self.sequence + 1:
            raise ValueError(f"the group that begins with entry {self.sequence + 1} is missing")
        self.head.sequence = header.first_sequence + header.count - 1
        memcpy(self.head.hash, header.hash, 32)
        with nogil:
            for i in range(header.count):
                while not core_keys_room(self.core):
                    code = ids_write_due(&self.file.ids, self.core, &self.head, UINT64_MAX, no_pause, NULL)
                    ids_tell(&self.file.ids, self.core)
                    if code != 0:
                        break
                if code != 0:
                    break
                if end - at < sizeof(EntryHeader) or (<const EntryHeader*>at).size > end - at:
                    code = -1
                    break
                if core_remember(self.core, at, (<const EntryHeader*>at).size) != APPLY_OK:
                    code = -1
                    break
                at += (<const EntryHeader*>at).size
                self.sequence += 1
        if code == -1:
            raise ValueError(f"entry {self.sequence + 1} is broken")
        if code != 0:
            raise IdsRefused(ids_text(&self.file.ids, code))

    def finish(self):
        """Write what is full. The rest stays in the service's memory at its next start."""
        cdef int code
        with nogil:
            code = ids_write_due(&self.file.ids, self.core, &self.head, UINT64_MAX, no_pause, NULL)
        if code != 0:
            raise IdsRefused(ids_text(&self.file.ids, code))
