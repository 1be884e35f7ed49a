"""The loop's steps around the core: open group, seal, hand-over to the flush, durable watermark, drain, inbox and outbox, recovery.

For: everything between "this command came" and "its group is on disk". Not for deciding (ledger/_core.pyx), not for bytes on the wire
(server/) and not for the data directory (ledger/engine.py). Called by the hot thread (server/_transport.pyx, server/_local.pyx) through
ledger/_engine.pxd, by the flush and the drain thread, and by ledger/engine.py at start and stop.

a) One ring. The tail file's ring has a twin in memory of the same size; a group lies at the same position in both. The hot thread lets the
   core write each entry of the open group straight into the twin, behind a header that is filled in at the seal; entries never move. A
   group's place becomes free when the drain thread has committed it to LMDB. Offsets count on for ever; position = offset % ring_bytes.
b) Three threads, no lock, no GIL. Hot owns the core and the open group and alone writes the ring. Flush owns a sealed group until it is
   durable. Drain reads durable groups. They meet in a few 64-bit counters, each written by one thread: sealed_groups, handed_groups (hot),
   durable_groups, durable_sequence (flush), drained_groups, drained_sequence, drained_offset (drain); and in eventfds.
c) One group in flight, so a torn write can only be the last group, and the flush needs no order inside. Whoever flushes does the same steps
   (flush_group): the flush thread, or the hot thread when nobody else waits (the hand-over costs 50 us).
d) A failed write or flush of the tail ends the process with status 70: memory is ahead of the disk. A drain that meets a full disk or map is
   tried again; meanwhile the gate refuses writes and reads go on. Any other LMDB error ends the process too.
e) Two more threads serve the keys that memory has dropped. Ids writes a full generation as a run once its last entry is durable, so no
   run ever knows of an entry that a crash could take back. Look-ups asks the runs for calls that hot has parked; they meet hot in two
   rings, one each way. Neither touches state; without them new ids are refused (IDS_BEHIND) and late calls wait, nothing else.
f) Recovery reads the tail into the ring, so that what was not drained lies where it was and draining goes on.
"""

import os
from typing import NamedTuple

from ledger import published
from ledger._snapshot import SnapshotUnusable

from libc.errno cimport EIO, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from ledger._atomic cimport exchange_u32, fence, load_u32, load_u64, store_u32, store_u64
from ledger._clock cimport Clock, boot_us, clock_hold, clock_open, clock_turn, monotonic_us, realtime_us
from ledger._core cimport (
    APPLY_DIGEST, APPLY_FRAMING, APPLY_FULL, APPLY_KEY, APPLY_LOTS, APPLY_MEMBER, APPLY_OK, APPLY_PROGRAM, APPLY_RESERVATION,
    APPLY_SEQUENCE, APPLY_SUM, Core, CoreSizes, CoreStats, KEYS_COUNT, KEYS_RECEIPT, KEYS_REQUEST, NOTICE_KINDS, REFUSALS_OF_RULES, core_apply, core_close, core_digest, core_execute, core_foresee, core_keys,
    CASE_REVIEW, Case, KeyLimit, KeySearch, core_cases, core_cases_changed, core_keys_room, core_open, core_prepare, core_program, core_reservation_due, core_set_find, core_set_full, core_set_served, core_stats, core_tick, core_versions,
    core_write_digest, core_write_part, core_write_program,
)
from ledger._hash cimport Hash128
from ledger._ids cimport (
    IDS_OK, IDS_STOPPED, Ids, IdsHead, ids_ask, ids_begin, ids_close, ids_full, ids_open, ids_pending, ids_tell, ids_text, ids_used_bytes,
    ids_write_due,
)
from ledger._journal cimport (
    Drained, JOURNAL_CRASHED, JOURNAL_END, JOURNAL_FOREIGN, JOURNAL_OK, JOURNAL_SHORT, JOURNAL_TOO_LARGE, Journal, journal_begin, journal_close,
    journal_commit, journal_copy, journal_drained, journal_error, journal_find, journal_full, journal_has, journal_open, journal_put, journal_release, journal_scan,
    journal_scan_end, journal_sync, journal_used_bytes,
)
from ledger._layout cimport (
    Command, EntryHeader, Facts, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader, KIND_DIGEST, Lookup, METHOD_KEYS_STEP, METHOD_RULES_ORDER, ORDER_LOOK, ORDER_PART,
    ORDER_PUBLISH, Outcome, RulesAnswer, RulesOrder, Slice,
)
from ledger._limits cimport (
    CAMPAIGNS_KEPT_MAX, CASES_MAX, COMMAND_ENTRY_BYTES_MAX, DIGEST_INTERVAL_S, DRAIN_BYTES, DRAIN_INTERVAL_MS, ENTRY_BYTES_MAX, FREE_BYTES_MIN, GROUP_BYTES_MAX,
    GROUP_ENTRIES_MAX, IDS_POLL_MS, IDS_RETRY_MS, ID_GENERATIONS, IMAGE_INLINE_BYTES_MAX, INBOX_BYTES, INBOX_CALLS_MAX, JOURNAL_MAP_BYTES, LIMIT_KEYS_MAX, LOOKUPS_AT_ONCE,
    LOOKUPS_MAX, OUTBOX_BYTES, PREPARE_STEP_BYTES, RULES_TOLD_MAX, RUN_PAUSE_MS, SPACE_CHECK_MS, TAIL_BLOCK_BYTES, TICK_ENTRIES_MAX, TICK_INTERVAL_US, TIME_GAP_US_MAX, WALLETS_MAX,
)
from ledger._image cimport Program2, RULE_POINTS, RULE_TIMES, SECTION2_LIMITS
from ledger._programme cimport LOADED_HASH_AT, Loaded, RuleTally, loaded_copy, loaded_free, loaded_free_all
from ledger._rules cimport Program
from ledger._snapshot cimport Snapshot
from ledger._status cimport STATUS_IDS_BEHIND, STATUS_JOURNAL_FULL
from ledger._table cimport KeySlot, KeyTable, generation_at, keys_wanted, populate_memory
from ledger._tail cimport (
    GROUP_ABSENT, GROUP_FOREIGN, GROUP_FRAMING, GROUP_HASH, GROUP_SOUND, Hasher, epoch_follows, group_check, group_entry, group_hash, group_span,
    hasher_close, hasher_open, tail_go_direct, tail_read, tail_write,
)
from ledger._thread cimport thread_short_turns, thread_step_back
from ledger._velocity cimport VelocityBest, VelocityTop

cdef extern from *:
    """
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/statvfs.h>
    #include <unistd.h>

    /* D7: memory is ahead of the disk, or the journal cannot be trusted. One line, and the end; no clean-up that could write. */
    static void engine_die(const char *what, const char *why) {
        dprintf(2, "daybook: %s: %s. The service ends here because its memory is ahead of the disk; nothing that was acknowledged is lost. "
                   "See to the disk and start it again: it recovers from what was written.\\n", what, why);
        _exit(70);
    }
    static void engine_die_errno(const char *what, int code) {
        char text[128];
        engine_die(what, strerror_r(code, text, sizeof text));
    }
    /* Free bytes for this process on the file system of path; -1 when it cannot be told. */
    static int64_t engine_free_bytes(const char *path) {
        struct statvfs facts;
        return statvfs(path, &facts) == 0 ? (int64_t)facts.f_bavail * (int64_t)facts.f_frsize : -1;
    }
    static void *engine_map(uint64_t size) {
        void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return at == MAP_FAILED ? NULL : at;
    }
    /* The ring is touched whole at start: by pages of 2 MB that takes a third of the time. Where there are none, nothing changes. */
    static void engine_map_large_pages(void *at, uint64_t size) { madvise(at, size, MADV_HUGEPAGE); }
    static void engine_unmap(void *at, uint64_t size) { if (at) munmap(at, size); }
    static const int64_t *engine_map_clock(const char *path) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
        if (fd >= 0) close(fd);
        return at == MAP_FAILED ? NULL : (const int64_t *)at;
    }
    static int engine_eventfd(int blocking) { return eventfd(0, EFD_CLOEXEC | (blocking ? 0 : EFD_NONBLOCK)); }
    static void engine_event_raise(int fd) {
        uint64_t one = 1;
        while (write(fd, &one, 8) < 0 && errno == EINTR) { }
    }
    static int engine_event_clear(int fd) {
        uint64_t count;
        ssize_t got;
        do got = read(fd, &count, 8); while (got < 0 && errno == EINTR);
        return got == 8;
    }
    static void engine_event_wait(int fd, int timeout_ms) {
        struct pollfd wanted = {fd, POLLIN, 0};
        if (poll(&wanted, 1, timeout_ms) > 0) engine_event_clear(fd);
    }
    /* Signals belong to the main thread, where Python handles them. */
    static void engine_block_signals(void) {
        sigset_t all;
        sigfillset(&all);
        sigdelset(&all, SIGSEGV); sigdelset(&all, SIGBUS); sigdelset(&all, SIGFPE); sigdelset(&all, SIGILL); sigdelset(&all, SIGABRT);
        pthread_sigmask(SIG_BLOCK, &all, NULL);
    }
    """
    void engine_die(const char* what, const char* why) noexcept nogil
    void engine_die_errno(const char* what, int code) noexcept nogil
    int64_t engine_free_bytes(const char* path) noexcept nogil
    void* engine_map(uint64_t size) noexcept nogil
    void engine_map_large_pages(void* at, uint64_t size) noexcept nogil
    void engine_unmap(void* at, uint64_t size) noexcept nogil
    const int64_t* engine_map_clock(const char* path) noexcept nogil
    int engine_eventfd(int blocking) noexcept nogil
    void engine_event_raise(int fd) noexcept nogil
    int engine_event_clear(int fd) noexcept nogil
    void engine_event_wait(int fd, int timeout_ms) noexcept nogil
    void engine_block_signals() noexcept nogil
    int fdatasync(int fd) noexcept nogil
    int close(int fd) noexcept nogil

cdef extern from "_verify.h" nogil:
    void VERIFY(bint condition)

cdef enum:
    HISTOGRAM_BUCKETS = 22      # 1, 2, 5 per decade over seven decades, and one for what lies above
    DRAIN_NICE = 10             # a drain's copying must not take the processor from hot: it has the whole ring's time
    GATE_OPEN = 0
    GATE_SPACE = 1              # free disk space below FREE_BYTES_MIN
    GATE_DRAIN = 2              # the last drain met a full disk or map

cdef struct Histogram:
    uint64_t[HISTOGRAM_BUCKETS] counts
    uint64_t sum
    uint64_t base               # upper bound of the first bucket, inclusive

cdef struct GroupRef:           # a sealed group that still lies in the ring
    uint64_t offset             # where it begins; position = offset % ring_bytes
    uint64_t first_sequence
    int64_t sealed_us           # monotonic
    uint32_t count              # entries
    uint32_t size               # bytes of all entries

cdef struct Box:                # a byte ring from one thread to one other; records are contiguous
    uint8_t* data
    uint64_t capacity           # bytes, a power of two
    uint64_t put                # bytes ever published; written by the producer
    uint64_t pending            # producer's own: what `put` becomes
    uint64_t taken              # bytes ever released; written by the consumer
    uint64_t calls_put          # records ever published
    uint64_t calls_taken

cdef struct BoxHead:
    uint32_t size               # whole record with this head, a multiple of 8
    uint32_t skip               # 1: no record, goes on at the start of the ring

cdef struct InboxHead:
    uint64_t token
    int64_t deadline_us
    uint32_t size
    uint8_t method

cdef struct OutboxHead:
    uint64_t token
    int32_t grpc_code
    uint32_t payload_size
    uint32_t message_size

cdef struct Parked:             # a call that waits for the runs
    uint64_t token              # the caller's
    int64_t parked_us           # monotonic
    Lookup lookup

cdef struct Told:               # what they said
    uint64_t token
    Facts facts

cdef struct Fault:              # why a start is refused
    int where                   # 1 journal, 2 tail
    int group                   # GroupFault
    int apply                   # ApplyResult
    int ids                     # IdsResult or what LMDB said while a run was written
    int chain                   # 1: not the next sequence; 2: previous_hash is not the hash of the group before
    uint64_t sequence           # of the group, or of the entry with `apply`
    uint64_t position           # tail

cdef struct Engine:
    # Set at start.
    Core* core
    const CoreStats* core_stats
    CoreSizes sizes
    Journal journal
    Hasher hasher               # of the flusher; of the starting thread before
    Clock clock
    uint8_t* ring
    uint64_t ring_bytes
    uint64_t core_bytes         # reserved by core_open
    GroupRef* refs              # of sealed groups, by group number & refs_mask
    uint64_t refs_mask
    uint8_t* found              # scratch for an entry read from LMDB
    int tail_fd
    int event_fd                # wakes hot
    int flush_fd                # wakes flush
    int drain_fd                # wakes drain
    int outbox_fd               # wakes the control port
    uint8_t[16] directory
    uint8_t[16] identity_key
    char[4096] journal_path
    uint32_t epoch              # of the groups that are written; 0 while it is not known yet
    Ids ids
    bint has_ids                # runs of dropped keys are kept
    Parked* parked              # LOOKUPS_MAX of them
    Told* told
    int ids_fd                  # wakes the ids thread
    int lookup_fd               # wakes the look-up thread
    bint accept_time            # a gap between the journal and the clock at start was accepted
    uint8_t[64] padding_0
    # Hot thread.
    uint64_t head               # offset behind the last sealed group
    uint64_t kept_groups        # groups from this number on still lie in the ring
    uint64_t open_offset        # the open group
    uint64_t open_first
    uint64_t open_size          # bytes of its entries
    uint32_t open_count
    uint32_t open_ticks         # entries of it that ticks wrote
    bint open
    bint in_flight
    uint32_t gate_now           # the gate as this turn began, so that it cannot change between room and execute
    int64_t next_tick_us        # boot clock
    int64_t next_digest_us
    uint64_t digest_sequence    # of the last DIGEST entry
    bint inbox_held             # a record was taken and not released
    uint64_t turns
    uint64_t ticks
    uint64_t digests            # DIGEST entries written
    uint64_t refused_full
    uint64_t refused_behind
    uint64_t[KEYS_COUNT] tables_prepared    # generations of each table that have their memory
    uint64_t keys_full          # generations of both tables that were full in the last turn
    uint64_t parked_put         # published by hot
    uint64_t told_taken
    uint64_t finds_ring
    uint64_t finds_journal
    Histogram group_entries
    Histogram group_bytes
    uint64_t sealed_groups      # published by hot
    uint64_t handed_groups      # published by hot
    uint32_t starved            # hot has no room and wants to hear of a drain
    uint32_t outbox_starved     # hot met a full outbox
    uint8_t[64] padding_1
    # Flusher.
    uint64_t durable_groups
    uint64_t durable_sequence
    uint8_t[32] head_hash       # of the last durable group
    uint32_t head_version       # odd while head_hash and durable_sequence change
    uint32_t drain_called
    Histogram flush_us
    uint8_t[64] padding_2
    # Drain thread.
    uint64_t drained_groups
    uint64_t drained_sequence
    uint64_t drained_offset     # behind the last drained group
    uint64_t free_bytes
    uint64_t drain_failures
    uint32_t drain_failing
    uint32_t gate               # GATE_*
    Histogram drain_us
    uint8_t[64] padding_3
    # Ids thread.
    uint64_t ids_failures
    Histogram run_us            # one pass of writing due runs, pauses included
    uint8_t[64] padding_5
    # Look-up thread.
    uint64_t parked_taken
    uint64_t told_put           # published by the look-up thread
    uint32_t lookup_asleep
    uint64_t lookups_unreadable
    Histogram lookup_us         # from parking to the answer of the runs
    uint8_t[64] padding_6
    # Anybody.
    uint32_t raised             # event_fd was raised and not cleared
    uint32_t ending             # flush and drain shall return
    uint32_t stopping           # what engine_stopping says
    uint8_t[64] padding_4
    Box inbox
    Box outbox


class OrderAnswer(NamedTuple):
    """What came of an Order; see _engine.pyi."""

    sequence: int
    time_us: int
    version: int
    before: int
    replayed: bool
    in_memory: bool


class StartRefused(Exception):
    """The ledger does not start: what is wrong, where, and what to do. Nothing was written."""


# --- small parts ------------------------------------------------------------------------------------------------

cdef inline void histogram_add(Histogram* histogram, uint64_t value) noexcept nogil:
    cdef uint64_t decade = histogram.base
    cdef uint32_t i = 0
    while i < HISTOGRAM_BUCKETS - 1:
        if value <= decade:
            break
        if value <= 2 * decade:
            i += 1
            break
        if value <= 5 * decade:
            i += 2
            break
        decade *= 10
        i += 3
    if i > HISTOGRAM_BUCKETS - 1:
        i = HISTOGRAM_BUCKETS - 1
    histogram.counts[i] += 1
    histogram.sum += value


cdef inline uint8_t* box_reserve(Box* box, uint64_t size) noexcept nogil:
    # Room for a record of `size` bytes, to be published by box_publish; NULL when the ring is full.
    cdef uint64_t need = (size + sizeof(BoxHead) + 7) & ~<uint64_t>7
    cdef uint64_t put = box.put
    cdef uint64_t left = box.capacity - (put & (box.capacity - 1))
    cdef uint64_t skip = left if need > left else 0
    cdef BoxHead* head
    if put + skip + need - load_u64(&box.taken) > box.capacity:
        return NULL
    if skip:
        head = <BoxHead*>(box.data + (put & (box.capacity - 1)))
        head.size = <uint32_t>skip
        head.skip = 1
        put += skip
    head = <BoxHead*>(box.data + (put & (box.capacity - 1)))
    head.size = <uint32_t>need
    head.skip = 0
    box.pending = put + need
    return <uint8_t*>head + sizeof(BoxHead)


cdef inline void box_publish(Box* box) noexcept nogil:
    store_u64(&box.calls_put, box.calls_put + 1)
    store_u64(&box.put, box.pending)


cdef inline uint8_t* box_peek(Box* box) noexcept nogil:
    cdef BoxHead* head
    while box.taken != load_u64(&box.put):
        head = <BoxHead*>(box.data + (box.taken & (box.capacity - 1)))
        if not head.skip:
            return <uint8_t*>head + sizeof(BoxHead)
        store_u64(&box.taken, box.taken + head.size)
    return NULL


cdef inline void box_release(Box* box) noexcept nogil:
    cdef BoxHead* head = <BoxHead*>(box.data + (box.taken & (box.capacity - 1)))
    store_u64(&box.calls_taken, box.calls_taken + 1)
    store_u64(&box.taken, box.taken + head.size)


cdef inline void raise_hot(Engine* engine) noexcept nogil:
    # What the hot thread shall see is published before. One write per wake-up, however many ask.
    if exchange_u32(&engine.raised, 1) == 0:
        engine_event_raise(engine.event_fd)


# --- the open group ---------------------------------------------------------------------------------------------

cdef inline uint8_t* at_offset(Engine* engine, uint64_t offset) noexcept nogil:
    return engine.ring + offset % engine.ring_bytes


cdef inline void group_open(Engine* engine) noexcept nogil:
    # The next group begins behind the last one, or at the ring's start when the largest group would not fit before its end.
    cdef uint64_t left = engine.ring_bytes - engine.head % engine.ring_bytes
    cdef uint64_t reach, drained
    engine.open_offset = engine.head + (left if left < group_span(GROUP_BYTES_MAX) else 0)
    engine.open_first = engine.core_stats.sequence + 1
    engine.open_size = 0
    engine.open_count = 0
    engine.open_ticks = 0
    engine.open = True
    # Drained groups stay readable until the open group may write over them.
    reach = engine.open_offset + group_span(GROUP_BYTES_MAX)
    drained = load_u64(&engine.drained_groups)
    while (engine.kept_groups < drained
           and engine.refs[engine.kept_groups & engine.refs_mask].offset + engine.ring_bytes < reach):
        engine.kept_groups += 1


cdef inline bint group_room(Engine* engine, uint64_t size) noexcept nogil:
    # Whether an entry of `size` bytes fits into the open group, its limits and the free part of the ring.
    cdef uint64_t end
    if not engine.open:
        group_open(engine)
    end = engine.open_offset + group_span(engine.open_size + size)
    return (engine.open_count < GROUP_ENTRIES_MAX and engine.open_size + size <= GROUP_BYTES_MAX
            and end <= load_u64(&engine.drained_offset) + engine.ring_bytes)


cdef inline uint8_t* group_next(Engine* engine) noexcept nogil:
    # Where the next entry goes.
    return at_offset(engine, engine.open_offset) + GROUP_HEADER_BYTES + engine.open_size


cdef inline void group_add(Engine* engine, uint32_t count, uint32_t size) noexcept nogil:
    engine.open_size += size
    engine.open_count += count


cdef void group_seal(Engine* engine) noexcept nogil:
    # Fills in the header but for the two hashes, which the flusher knows.
    cdef uint8_t* group = at_offset(engine, engine.open_offset)
    cdef GroupHeader* header = <GroupHeader*>group
    cdef uint64_t span = group_span(engine.open_size)
    cdef GroupRef* ref = &engine.refs[engine.sealed_groups & engine.refs_mask]
    header.magic = GROUP_MAGIC
    header.version = 1
    header.flags = 0
    header.shard = 0
    header.epoch = engine.epoch
    header.first_sequence = engine.open_first
    header.drained_sequence = load_u64(&engine.drained_sequence)
    header.time_us = engine.clock.last_us
    header.count = engine.open_count
    header.size = <uint32_t>engine.open_size
    memcpy(header.directory, engine.directory, 16)
    memset(group + GROUP_HEADER_BYTES + engine.open_size, 0, span - GROUP_HEADER_BYTES - engine.open_size)
    VERIFY(engine.open_first + engine.open_count == engine.core_stats.sequence + 1)
    VERIFY(engine.sealed_groups - engine.kept_groups <= engine.refs_mask)
    ref.offset = engine.open_offset
    ref.first_sequence = engine.open_first
    ref.sealed_us = monotonic_us()
    ref.count = engine.open_count
    ref.size = <uint32_t>engine.open_size
    histogram_add(&engine.group_entries, engine.open_count)
    histogram_add(&engine.group_bytes, engine.open_size)
    engine.head = engine.open_offset + span
    engine.open = False
    engine.in_flight = True
    store_u64(&engine.sealed_groups, engine.sealed_groups + 1)


cdef void flush_group(Engine* engine) noexcept nogil:
    # Makes the one sealed group durable and says so. By the flush thread, or by hot when the flush thread has nothing.
    cdef uint64_t number = engine.durable_groups
    cdef GroupRef* ref = &engine.refs[number & engine.refs_mask]
    cdef uint8_t* group = at_offset(engine, ref.offset)
    cdef GroupHeader* header = <GroupHeader*>group
    cdef int64_t begin = monotonic_us()
    cdef int code
    memcpy(header.previous_hash, engine.head_hash, 32)
    group_hash(&engine.hasher, group, header.hash)
    code = tail_write(engine.tail_fd, ref.offset % engine.ring_bytes, group, group_span(ref.size))
    if code != 0:
        engine_die_errno("writing the tail failed", code)
    histogram_add(&engine.flush_us, <uint64_t>(monotonic_us() - begin))
    store_u32(&engine.head_version, engine.head_version + 1)
    fence()
    memcpy(engine.head_hash, header.hash, 32)
    store_u64(&engine.durable_sequence, ref.first_sequence + ref.count - 1)
    store_u32(&engine.head_version, engine.head_version + 1)
    store_u64(&engine.durable_groups, number + 1)
    if (ref.offset + group_span(ref.size) - load_u64(&engine.drained_offset) >= DRAIN_BYTES
            and exchange_u32(&engine.drain_called, 1) == 0):
        engine_event_raise(engine.drain_fd)


cdef void durable_head(const Engine* engine, IdsHead* head) noexcept nogil:
    # The last durable group. From any thread.
    cdef uint32_t version
    while True:
        version = load_u32(&engine.head_version)
        head.sequence = load_u64(&engine.durable_sequence)
        memcpy(head.hash, engine.head_hash, 32)
        fence()
        if version % 2 == 0 and version == load_u32(&engine.head_version):
            return


# --- the hot thread's steps -------------------------------------------------------------------------------------

cdef inline bint ticks_may_run(Engine* engine) noexcept nogil:
    return (engine.gate_now == GATE_OPEN and not engine.clock.stepped and not engine.clock.gap
            and load_u32(&engine.stopping) == 0)


cdef void run_ticks(Engine* engine) noexcept nogil:
    cdef uint32_t size
    engine.next_tick_us = engine.clock.boot_us + TICK_INTERVAL_US
    while engine.open_ticks < TICK_ENTRIES_MAX and group_room(engine, COMMAND_ENTRY_BYTES_MAX):
        size = core_tick(engine.core, engine.clock.last_us, group_next(engine))
        if size == 0:
            return
        group_add(engine, 1, size)
        engine.open_ticks += 1
        engine.ticks += 1


cdef int64_t engine_begin_turn(Engine* engine) noexcept nogil:
    # The flag is lowered only with the event in hand: whoever raised it in between has published before, and is seen in this turn.
    if load_u32(&engine.raised) and engine_event_clear(engine.event_fd):
        exchange_u32(&engine.raised, 0)
    engine.gate_now = load_u32(&engine.gate)
    engine.turns += 1
    clock_turn(&engine.clock)
    # Reservations end when their time is over, before the commands of a later time, whenever in the turn those come.
    if core_reservation_due(engine.core, engine.clock.last_us) and ticks_may_run(engine):
        run_ticks(engine)
    return engine.clock.last_us


cdef bint engine_room(Engine* engine) noexcept nogil:
    if engine.gate_now != GATE_OPEN:
        return True             # writes are refused, so nothing needs room; reads go on
    if group_room(engine, COMMAND_ENTRY_BYTES_MAX):
        return True
    store_u32(&engine.starved, 1)
    fence()                     # the drain thread stores, fences and looks at the flag in the other order
    return group_room(engine, COMMAND_ENTRY_BYTES_MAX)


cdef void engine_prepare(Engine* engine, Command** commands, uint32_t count) noexcept nogil:
    core_prepare(engine.core, commands, count)


cdef void engine_execute(Engine* engine, const Command* command, Outcome* outcome) noexcept nogil:
    if engine.has_ids:
        ids_tell(&engine.ids, engine.core)
    # The gate is the core's to check: a repeat of a write that is in the journal is answered all the same.
    core_set_full(engine.core, engine.gate_now != GATE_OPEN, <int64_t>load_u64(&engine.free_bytes), FREE_BYTES_MIN)
    if not engine.open and engine.gate_now == GATE_OPEN:
        group_open(engine)
    # While the gate is closed nothing is written, so there need not be a group to write to.
    core_execute(engine.core, command, engine.clock.last_us, group_next(engine) if engine.open else engine.found, outcome)
    if outcome.status == STATUS_JOURNAL_FULL:
        engine.refused_full += 1
    elif outcome.status == STATUS_IDS_BEHIND:
        engine.refused_behind += 1
    if outcome.written:
        group_add(engine, outcome.written, outcome.written_size)


cdef void engine_park(Engine* engine, uint64_t token, const Lookup* lookup) noexcept nogil:
    cdef Parked* parked = &engine.parked[engine.parked_put & (LOOKUPS_MAX - 1)]
    VERIFY(engine.has_ids and engine.parked_put - engine.told_taken < LOOKUPS_MAX)
    parked.token = token
    parked.parked_us = monotonic_us()
    parked.lookup = lookup[0]
    store_u64(&engine.parked_put, engine.parked_put + 1)
    fence()
    if exchange_u32(&engine.lookup_asleep, 0):
        engine_event_raise(engine.lookup_fd)


cdef bint engine_foresee(Engine* engine, const Command* command, Lookup* lookup) noexcept nogil:
    return core_foresee(engine.core, command, lookup)


cdef bint engine_told_waits(const Engine* engine) noexcept nogil:
    return engine.told_taken != load_u64(&engine.told_put)


cdef bint engine_told(Engine* engine, uint64_t* token, Facts* facts) noexcept nogil:
    cdef const Told* told
    if engine.told_taken == load_u64(&engine.told_put):
        return False
    told = &engine.told[engine.told_taken & (LOOKUPS_MAX - 1)]
    token[0] = told.token
    facts[0] = told.facts
    engine.told_taken += 1
    return True


cdef inline void call_ids_thread(Engine* engine) noexcept nogil:
    # When a generation has become full in this turn.
    cdef uint64_t full = core_keys(engine.core, KEYS_REQUEST).full + core_keys(engine.core, KEYS_RECEIPT).full
    if full != engine.keys_full:
        engine.keys_full = full
        engine_event_raise(engine.ids_fd)


cdef void write_digest(Engine* engine) noexcept nogil:
    cdef uint32_t size
    if group_room(engine, COMMAND_ENTRY_BYTES_MAX):
        size = core_write_digest(engine.core, engine.clock.last_us, group_next(engine))
        group_add(engine, 1, size)
        engine.digest_sequence = engine.core_stats.sequence
        engine.digests += 1


cdef inline void take_in_flush(Engine* engine) noexcept nogil:
    if engine.in_flight and load_u64(&engine.durable_groups) == engine.sealed_groups:
        engine.in_flight = False


cdef void engine_end_turn(Engine* engine, bint alone) noexcept nogil:
    take_in_flush(engine)
    if engine.has_ids:
        call_ids_thread(engine)
    if ticks_may_run(engine):
        if engine.clock.boot_us >= engine.next_tick_us:
            run_ticks(engine)
        if engine.clock.boot_us >= engine.next_digest_us:
            engine.next_digest_us = engine.clock.boot_us + <int64_t>DIGEST_INTERVAL_S * 1000000
            if engine.digest_sequence != engine.core_stats.sequence:
                write_digest(engine)
    if engine.in_flight or not engine.open or engine.open_count == 0:
        return
    group_seal(engine)
    if alone:
        flush_group(engine)
        engine.in_flight = False
    else:
        store_u64(&engine.handed_groups, engine.sealed_groups)
        engine_event_raise(engine.flush_fd)


cdef uint64_t engine_durable(const Engine* engine) noexcept nogil:
    return load_u64(&engine.durable_sequence)


cdef int engine_event_fd(const Engine* engine) noexcept nogil:
    return engine.event_fd


cdef int64_t engine_sleep_us(const Engine* engine) noexcept nogil:
    cdef int64_t left
    if not ticks_may_run(<Engine*>engine):
        return SPACE_CHECK_MS * 1000
    left = engine.next_tick_us - boot_us()
    return left if left > 0 else 0


cdef int engine_stopping(const Engine* engine) noexcept nogil:
    return <int>load_u32(&engine.stopping)


cdef bint engine_idle(const Engine* engine) noexcept nogil:
    return not (engine.open and engine.open_count != 0) and load_u64(&engine.durable_groups) == engine.sealed_groups


cdef const Program* engine_program(const Engine* engine) noexcept nogil:
    return core_program(engine.core)


cdef Core* engine_reading(Engine* engine, int64_t* now_us) noexcept nogil:
    now_us[0] = engine.clock.last_us
    return engine.core


cdef bint engine_inbox_take(Engine* engine, InboxCall* call) noexcept nogil:
    cdef InboxHead* head
    if engine.inbox_held:
        box_release(&engine.inbox)
        engine.inbox_held = False
    head = <InboxHead*>box_peek(&engine.inbox)
    if head == NULL:
        return False
    engine.inbox_held = True
    call.token = head.token
    call.deadline_us = head.deadline_us
    call.size = head.size
    call.method = head.method
    call.data = <uint8_t*>head + sizeof(InboxHead)
    return True


cdef bint engine_outbox_put(Engine* engine, uint64_t token, int grpc_code, const uint8_t* data, uint32_t size,
                            const uint8_t* details, uint32_t details_size, const uint8_t* message, uint32_t message_size) noexcept nogil:
    cdef const uint8_t* payload = data if grpc_code == 0 else details
    cdef uint32_t payload_size = size if grpc_code == 0 else details_size
    cdef uint64_t wanted = sizeof(OutboxHead) + payload_size + message_size
    cdef uint8_t* at = box_reserve(&engine.outbox, wanted)
    cdef OutboxHead* head
    if at == NULL:
        store_u32(&engine.outbox_starved, 1)
        fence()
        at = box_reserve(&engine.outbox, wanted)
        if at == NULL:
            return False
    head = <OutboxHead*>at
    head.token = token
    head.grpc_code = grpc_code
    head.payload_size = payload_size
    head.message_size = message_size
    memcpy(at + sizeof(OutboxHead), payload, payload_size)
    memcpy(at + sizeof(OutboxHead) + payload_size, message, message_size)
    box_publish(&engine.outbox)
    engine_event_raise(engine.outbox_fd)
    return True


cdef const uint8_t* read_entry(Engine* engine, uint64_t sequence, uint32_t* size, uint64_t** counter) noexcept nogil:
    # Any entry. What still lies in the ring is read there, the rest in LMDB. counter: of the finds there; NULL: in the open group.
    cdef uint64_t low = engine.kept_groups
    cdef uint64_t high = engine.sealed_groups
    cdef uint64_t middle, room
    cdef uint32_t i
    cdef GroupRef* ref
    cdef const uint8_t* at
    cdef const uint8_t* group
    counter[0] = NULL
    if engine.open and sequence >= engine.open_first:
        if sequence - engine.open_first >= engine.open_count:
            return NULL
        at = at_offset(engine, engine.open_offset) + GROUP_HEADER_BYTES
        for i in range(<uint32_t>(sequence - engine.open_first)):
            at += (<const EntryHeader*>at).size
        size[0] = (<const EntryHeader*>at).size
        return at
    if low < high and sequence >= engine.refs[low & engine.refs_mask].first_sequence:
        counter[0] = &engine.finds_ring
        while high - low > 1:       # the last group that begins at or before the sequence
            middle = low + (high - low) // 2
            if engine.refs[middle & engine.refs_mask].first_sequence <= sequence:
                low = middle
            else:
                high = middle
        ref = &engine.refs[low & engine.refs_mask]
        return group_entry(at_offset(engine, ref.offset), GROUP_HEADER_BYTES + ref.size, sequence, size)
    counter[0] = &engine.finds_journal
    group = journal_find(&engine.journal, sequence, &room)
    if group == NULL:
        return NULL
    at = group_entry(group, room, sequence, size)
    if at != NULL and size[0] <= ENTRY_BYTES_MAX:
        memcpy(engine.found, at, size[0])
        at = engine.found
    else:
        at = NULL
    journal_release(&engine.journal)
    return at


cdef const uint8_t* find_entry(void* owner, uint64_t sequence, uint32_t* size) noexcept nogil:
    # How the core reads an entry that a repeat asks for.
    cdef uint64_t* counter = NULL
    cdef const uint8_t* entry = read_entry(<Engine*>owner, sequence, size, &counter)
    if counter != NULL:
        counter[0] += 1
    return entry


# --- the flush and the drain thread -----------------------------------------------------------------------------

cdef void flush_loop(Engine* engine) noexcept nogil:
    engine_block_signals()
    thread_short_turns()
    while True:
        while engine.durable_groups < load_u64(&engine.handed_groups):
            flush_group(engine)
            raise_hot(engine)
        if load_u32(&engine.ending):
            return
        engine_event_clear(engine.flush_fd)     # blocks


cdef void check_space(Engine* engine) noexcept nogil:
    # The tail is written ahead and needs no more space; the journal grows. So the journal's file system counts.
    cdef int64_t bytes = engine_free_bytes(engine.journal_path)
    cdef uint32_t gate = GATE_OPEN
    if bytes < 0:
        bytes = 0
    store_u64(&engine.free_bytes, <uint64_t>bytes)
    if bytes < FREE_BYTES_MIN:
        gate = GATE_SPACE
    elif engine.drain_failing:
        gate = GATE_DRAIN
    if gate != engine.gate:
        store_u32(&engine.gate, gate)
        raise_hot(engine)


cdef int drain_once(Engine* engine) noexcept nogil:
    # Moves durable groups, up to DRAIN_BYTES (at least one), into LMDB in one transaction and frees their place. 0, or 1 when there is no
    # space: nothing has changed, try again later. Anything else ends the process.
    cdef uint64_t first = engine.drained_groups
    cdef uint64_t last = load_u64(&engine.durable_groups)
    cdef uint64_t number = first
    cdef uint64_t bytes = 0
    cdef int64_t begin = monotonic_us()
    cdef GroupRef* ref = NULL
    cdef const uint8_t* group = NULL
    cdef Drained drained
    cdef int code = journal_begin(&engine.journal)
    while code == 0 and number < last and bytes < DRAIN_BYTES:
        ref = &engine.refs[number & engine.refs_mask]
        group = at_offset(engine, ref.offset)
        code = journal_put(&engine.journal, ref.first_sequence, group, GROUP_HEADER_BYTES + ref.size)
        bytes += group_span(ref.size)
        number += 1
    if code == 0:
        drained.sequence = ref.first_sequence + ref.count - 1
        memcpy(drained.hash, (<const GroupHeader*>group).hash, 32)
        drained.position = (ref.offset + group_span(ref.size)) % engine.ring_bytes
        drained.time_us = realtime_us()
        code = journal_commit(&engine.journal, &drained)
    if code != 0:
        # LMDB reports a write cut short by a full disk as EIO.
        if journal_full(code) or (code == EIO and engine_free_bytes(engine.journal_path) < FREE_BYTES_MIN):
            engine.drain_failures += 1
            engine.drain_failing = 1
            return 1
        engine_die("writing the journal failed", journal_error(code))
    engine.drain_failing = 0
    histogram_add(&engine.drain_us, <uint64_t>(monotonic_us() - begin))
    store_u64(&engine.drained_sequence, drained.sequence)
    store_u64(&engine.drained_offset, ref.offset + group_span(ref.size))
    store_u64(&engine.drained_groups, number)
    fence()
    if exchange_u32(&engine.starved, 0):
        raise_hot(engine)
    return 0


cdef void drain_loop(Engine* engine) noexcept nogil:
    cdef int64_t next_space = 0
    cdef int64_t next_drain = 0
    cdef int64_t now, wait
    cdef uint64_t durable, undrained
    cdef GroupRef* ref
    cdef bint ending
    engine_block_signals()
    thread_step_back(DRAIN_NICE)
    while True:
        ending = load_u32(&engine.ending) != 0
        exchange_u32(&engine.drain_called, 0)
        durable = load_u64(&engine.durable_groups)
        undrained = 0
        if durable > engine.drained_groups:
            ref = &engine.refs[(durable - 1) & engine.refs_mask]
            undrained = ref.offset + group_span(ref.size) - engine.drained_offset
        now = monotonic_us()
        if undrained != 0 and (now >= next_drain or ending or (undrained >= DRAIN_BYTES and not engine.drain_failing)):
            next_drain = now + <int64_t>DRAIN_INTERVAL_MS * 1000
            if drain_once(engine) != 0:
                next_space = 0
                if ending:
                    return      # it stays in the tail, where the next start finds it
            elif engine.gate == GATE_DRAIN:
                next_space = 0
        elif undrained == 0 and ending:
            return
        if now >= next_space:
            next_space = now + <int64_t>SPACE_CHECK_MS * 1000
            check_space(engine)
        wait = (next_space if next_space < next_drain else next_drain) if undrained != 0 else next_space
        wait = (wait - monotonic_us() + 999) // 1000
        if wait > 0 and not ending:
            engine_event_wait(engine.drain_fd, <int>wait)


# --- the ids and the look-up thread -----------------------------------------------------------------------------

cdef inline bint memory_waits(const KeyTable* table) noexcept nogil:
    # Whether the next generation to fill needs a place that is not free. A glance at hot's own words: at worst a pause too many.
    return table.full - table.dropped > ID_GENERATIONS - 2


cdef bint ids_step(void* owner) noexcept nogil:
    # Between two steps of a run: leave the disk to the flush, unless memory waits already.
    cdef Engine* engine = <Engine*>owner
    if load_u32(&engine.ending):
        return False
    if not memory_waits(core_keys(engine.core, KEYS_REQUEST)) and not memory_waits(core_keys(engine.core, KEYS_RECEIPT)):
        engine_event_wait(engine.ids_fd, RUN_PAUSE_MS)
    return True


cdef void prepare_tables(Engine* engine) noexcept nogil:
    # Memory for the generations that fill next, so that the hot thread never waits for it. Places that were filled once keep theirs.
    cdef const KeyTable* table
    cdef uint64_t at, size, step
    cdef uint32_t kind
    for kind in range(KEYS_COUNT):
        table = core_keys(engine.core, kind)
        size = table.capacity * sizeof(KeySlot)
        while engine.tables_prepared[kind] < keys_wanted(table):
            at = 0
            while at < size and load_u32(&engine.ending) == 0:
                step = size - at if size - at < PREPARE_STEP_BYTES else PREPARE_STEP_BYTES
                populate_memory(<uint8_t*>generation_at(table, engine.tables_prepared[kind]).slots + at, step)
                at += step
            engine.tables_prepared[kind] += 1


cdef void ids_loop(Engine* engine) noexcept nogil:
    cdef IdsHead head
    cdef int64_t begin
    cdef uint64_t runs
    cdef int wait_ms, code
    engine_block_signals()
    thread_step_back(DRAIN_NICE)
    while load_u32(&engine.ending) == 0:
        prepare_tables(engine)
        wait_ms = SPACE_CHECK_MS
        # The last free space is the journal's.
        if ids_pending(&engine.ids, engine.core) and load_u32(&engine.gate) == GATE_OPEN:
            wait_ms = IDS_POLL_MS
            begin = monotonic_us()
            runs = engine.ids.run_count
            durable_head(engine, &head)
            code = ids_write_due(&engine.ids, engine.core, &head, head.sequence, ids_step, engine)
            if engine.ids.run_count != runs:
                histogram_add(&engine.run_us, <uint64_t>(monotonic_us() - begin))
            if ids_full(code) or (code == EIO and engine_free_bytes(engine.journal_path) < FREE_BYTES_MIN):
                store_u64(&engine.ids_failures, engine.ids_failures + 1)
                wait_ms = IDS_RETRY_MS
            elif code != IDS_OK and code != IDS_STOPPED:
                engine_die("writing the ids of earlier requests failed", journal_error(code))
        engine_event_wait(engine.ids_fd, wait_ms)


cdef void lookup_loop(Engine* engine) noexcept nogil:
    cdef const Lookup* lookups[LOOKUPS_AT_ONCE]
    cdef Facts* facts[LOOKUPS_AT_ONCE]
    cdef const Parked* parked
    cdef uint64_t taken, count
    cdef int64_t now
    cdef uint32_t i
    engine_block_signals()
    while True:
        taken = engine.parked_taken
        count = load_u64(&engine.parked_put) - taken
        if count == 0:
            if load_u32(&engine.ending):
                return
            store_u32(&engine.lookup_asleep, 1)
            fence()
            if load_u64(&engine.parked_put) == taken:
                engine_event_clear(engine.lookup_fd)    # blocks
            continue
        if count > LOOKUPS_AT_ONCE:
            count = LOOKUPS_AT_ONCE
        for i in range(<uint32_t>count):
            parked = &engine.parked[(taken + i) & (LOOKUPS_MAX - 1)]
            lookups[i] = &parked.lookup
            facts[i] = &engine.told[(taken + i) & (LOOKUPS_MAX - 1)].facts
            engine.told[(taken + i) & (LOOKUPS_MAX - 1)].token = parked.token
        ids_ask(&engine.ids, lookups, facts, <uint32_t>count)
        now = monotonic_us()
        for i in range(<uint32_t>count):
            histogram_add(&engine.lookup_us, <uint64_t>(now - engine.parked[(taken + i) & (LOOKUPS_MAX - 1)].parked_us))
            engine.lookups_unreadable += facts[i].unreadable
        engine.parked_taken = taken + count
        store_u64(&engine.told_put, taken + count)
        raise_hot(engine)


# --- recovery ---------------------------------------------------------------------------------------------------

cdef bint no_pause(void* owner) noexcept nogil:
    return True


cdef int make_room(Engine* engine, const GroupHeader* header, Fault* fault) noexcept nogil:
    # In the middle of this group: writes the runs that are due, so that memory may drop what they hold. What they name must be on disk itself.
    cdef IdsHead head
    head.sequence = header.first_sequence + header.count - 1
    memcpy(head.hash, header.hash, 32)
    while not core_keys_room(engine.core):
        if fault.where == 2 and fdatasync(engine.tail_fd) != 0:
            fault.ids = EIO
            return -1
        fault.ids = ids_write_due(&engine.ids, engine.core, &head, engine.core_stats.sequence, no_pause, NULL)
        if fault.ids != IDS_OK:
            return -1
        ids_tell(&engine.ids, engine.core)
    return 0


cdef int replay_group(Engine* engine, const uint8_t* group, uint64_t room, Fault* fault) noexcept nogil:
    # Checks one group as the next of the chain and applies its entries. 0, or -1 with the fault filled in.
    cdef const GroupHeader* header = <const GroupHeader*>group
    cdef const uint8_t* at = group + GROUP_HEADER_BYTES
    cdef uint32_t i, size
    fault.sequence = engine.core_stats.sequence + 1
    fault.group = group_check(&engine.hasher, group, room, engine.directory)
    if fault.group != GROUP_SOUND:
        return -1
    if header.first_sequence != engine.core_stats.sequence + 1:
        fault.chain = 1
        return -1
    if memcmp(header.previous_hash, engine.head_hash, 32) != 0:
        fault.chain = 2
        return -1
    if not epoch_follows(engine.epoch, group):
        fault.group = GROUP_FOREIGN
        return -1
    engine.epoch = header.epoch
    for i in range(header.count):
        size = (<const EntryHeader*>at).size
        if engine.has_ids and not core_keys_room(engine.core) and make_room(engine, header, fault) != 0:
            fault.sequence = header.first_sequence + i
            return -1
        fault.apply = core_apply(engine.core, at, size)
        if fault.apply != APPLY_OK:
            fault.sequence = header.first_sequence + i
            return -1
        if (<const EntryHeader*>at).kind == KIND_DIGEST:
            engine.digest_sequence = header.first_sequence + i
        at += size
    memcpy(engine.head_hash, header.hash, 32)
    return 0


cdef int replay_records(Engine* engine, const uint8_t* buffer, uint64_t filled, Fault* fault) noexcept nogil:
    cdef uint64_t at = 0
    cdef uint64_t sequence, size
    fault.where = 1
    while at < filled:
        memcpy(&sequence, buffer + at, 8)
        memcpy(&size, buffer + at + 8, 8)
        if sequence != engine.core_stats.sequence + 1:
            fault.chain = 1
            fault.sequence = engine.core_stats.sequence + 1
            return -1
        if replay_group(engine, buffer + at + 16, size, fault) != 0:
            return -1
        if (<const GroupHeader*>(buffer + at + 16)).size != size - GROUP_HEADER_BYTES:
            fault.group = GROUP_FRAMING
            return -1
        at += 16 + ((size + 7) & ~<uint64_t>7)
    return 0


cdef uint32_t last_epoch(Engine* engine, uint64_t sequence) noexcept nogil:
    # The epoch of the journal's last group; 1 for an empty journal.
    cdef uint64_t size
    cdef uint32_t epoch = 1
    cdef const uint8_t* group
    if sequence != 0:
        group = journal_find(&engine.journal, sequence, &size)
        if group != NULL:
            if size >= GROUP_HEADER_BYTES:
                epoch = (<const GroupHeader*>group).epoch
            journal_release(&engine.journal)
    return epoch


cdef bint tail_has(const Engine* engine, const IdsHead* head) noexcept nogil:
    # Whether a group read from the tail ends with this sequence and has this hash.
    cdef const GroupRef* ref
    cdef uint64_t number
    for number in range(engine.sealed_groups):
        ref = &engine.refs[number & engine.refs_mask]
        if ref.first_sequence + ref.count - 1 == head.sequence:
            return memcmp((<const GroupHeader*>at_offset(<Engine*>engine, ref.offset)).hash, head.hash, 32) == 0
    return False


cdef int check_runs(Engine* engine, uint64_t drained, bint tail, uint64_t* foreign) noexcept nogil:
    # Whether the runs are of this journal's history: those that name a group in LMDB, or with `tail` those that name one behind it.
    # JOURNAL_OK, or what is wrong with the journal. foreign: the number of the first run that is not; 0: none.
    cdef uint64_t i
    cdef const IdsHead* head
    cdef int code
    foreign[0] = 0
    for i in range(engine.ids.run_count):
        head = &engine.ids.refs[i].head
        if head.sequence == 0 or (head.sequence > drained) != tail:
            continue
        code = (JOURNAL_OK if tail_has(engine, head) else JOURNAL_END) if tail else journal_has(&engine.journal, head.sequence, head.hash)
        if code == JOURNAL_END:
            foreign[0] = i + 1
            return JOURNAL_OK
        if code != JOURNAL_OK:
            return code
    return JOURNAL_OK


cdef object foreign_text(const Engine* engine, uint64_t run):
    return (f"the ids of earlier requests (ids/data.mdb) are of another history: run {run} was written behind an entry "
            f"{engine.ids.refs[run - 1].head.sequence} that this journal does not have (it was restored, or the ids are of another time). "
            "`daybook ids DIR --rebuild` makes all runs again from the journal")


cdef inline bint group_follows(Engine* engine, uint64_t position) noexcept nogil:
    # Whether the next group of the chain lies here. Chain first: of a ring full of old groups only one is worth hashing.
    cdef const GroupHeader* header = <const GroupHeader*>(engine.ring + position)
    return (engine.ring_bytes - position >= GROUP_HEADER_BYTES and header.magic == GROUP_MAGIC
            and header.first_sequence == engine.core_stats.sequence + 1
            and memcmp(header.previous_hash, engine.head_hash, 32) == 0
            and group_check(&engine.hasher, engine.ring + position, engine.ring_bytes - position, engine.directory) == GROUP_SOUND)


cdef int replay_tail(Engine* engine, Fault* fault) noexcept nogil:
    # Walks the tail from engine.head on. The first place where the next group is not found ends it.
    cdef uint64_t position
    cdef const GroupHeader* header
    cdef GroupRef* ref
    fault.where = 2
    while True:
        position = engine.head % engine.ring_bytes
        if not group_follows(engine, position):
            if position == 0 or not group_follows(engine, 0):
                return 0
            engine.head += engine.ring_bytes - position
            position = 0
        fault.position = position
        if replay_group(engine, engine.ring + position, engine.ring_bytes - position, fault) != 0:
            return -1
        header = <const GroupHeader*>(engine.ring + position)
        ref = &engine.refs[engine.sealed_groups & engine.refs_mask]
        ref.offset = engine.head
        ref.first_sequence = header.first_sequence
        ref.sealed_us = monotonic_us()
        ref.count = header.count
        ref.size = header.size
        engine.head += group_span(header.size)
        engine.sealed_groups += 1


cdef void survey_tail(Engine* engine, uint64_t* last_sequence, uint64_t* last_position, uint64_t* drained_sequence) noexcept nogil:
    # Looks at every sound group of the ring, wherever it lies: the highest sequence, where, and the highest drained_sequence.
    cdef uint64_t position = 0
    cdef const GroupHeader* header
    last_sequence[0] = 0
    last_position[0] = 0
    drained_sequence[0] = 0
    while position < engine.ring_bytes:
        header = <const GroupHeader*>(engine.ring + position)
        if group_check(&engine.hasher, engine.ring + position, engine.ring_bytes - position, engine.directory) == GROUP_SOUND:
            if header.first_sequence + header.count - 1 > last_sequence[0]:
                last_sequence[0] = header.first_sequence + header.count - 1
                last_position[0] = position
            if header.drained_sequence > drained_sequence[0]:
                drained_sequence[0] = header.drained_sequence
        position += TAIL_BLOCK_BYTES


_RESTORE = "Restore the data directory from a copy of one moment (journal and tail together); `daybook verify DIR` tells more"
_APPLY_TEXTS = {
    APPLY_FRAMING: "is broken in itself or of an unknown kind",
    APPLY_SEQUENCE: "is not the next in sequence or time",
    APPLY_MEMBER: "names a member that does not exist",
    APPLY_LOTS: "takes more points from a lot than it holds",
    APPLY_SUM: "has postings that do not sum to zero",
    APPLY_RESERVATION: "names a reservation that does not exist or is in another state",
    APPLY_DIGEST: "holds a state digest that the entries before it do not give",
    APPLY_PROGRAM: "holds a programme image that does not load",
}
_GROUP_TEXTS = {
    GROUP_ABSENT: "is not a group",
    GROUP_FOREIGN: "belongs to another directory, shard, version or epoch",
    GROUP_FRAMING: "does not agree with its own sizes",
    GROUP_HASH: "does not have the hash that it was written with",
}


cdef object fault_text(const Fault* fault):
    """What a fault met at recovery means, for people."""
    place = "the journal (journal/data.mdb)" if fault.where == 1 else f"the tail (position {fault.position})"
    if fault.ids != IDS_OK:
        return (f"the ids of earlier requests (ids/data.mdb) cannot be written: {journal_error(fault.ids).decode()}; see to the disk and "
                "start again")
    if fault.apply == APPLY_KEY:
        return "identity.key is not the key that this journal was begun with: put the right file in its place; nothing was changed"
    if fault.apply == APPLY_FULL:
        return (f"a table is too small for {place}: it is full at entry {fault.sequence}. "
                "Start with a larger --members-max (members, lots, reservations) or --ids-max (request ids)")
    if fault.apply != APPLY_OK:
        text = _APPLY_TEXTS.get(fault.apply, f"cannot be applied ({fault.apply})")
        return f"{place} is damaged: entry {fault.sequence} {text}. {_RESTORE}"
    if fault.group != GROUP_SOUND:
        return f"{place} is damaged: the group that begins with entry {fault.sequence} {_GROUP_TEXTS[fault.group]}. {_RESTORE}"
    if fault.chain == 1:
        return f"{place} is damaged: the group that begins with entry {fault.sequence} is missing. {_RESTORE}"
    return f"{place} is damaged: the group that begins with entry {fault.sequence} does not continue the chain of hashes. {_RESTORE}"


cdef object journal_text(int code):
    if code == JOURNAL_FOREIGN:
        return f"the journal (journal/data.mdb) is not the one of this data directory, or is damaged. {_RESTORE}"
    if code == JOURNAL_SHORT:
        return f"the journal (journal/data.mdb) is shorter than it was: its end is missing. {_RESTORE}"
    if code == JOURNAL_TOO_LARGE:
        return f"the journal (journal/data.mdb) is damaged: a record is longer than any group. {_RESTORE}"
    if code == JOURNAL_CRASHED:
        return f"the journal (journal/data.mdb) is damaged: LMDB cannot read its pages. {_RESTORE}"
    return f"the journal (journal/data.mdb) cannot be read: {journal_error(code).decode()}. {_RESTORE}"


# --- Python's hold ----------------------------------------------------------------------------------------------

cdef object histogram_python(const Histogram* histogram):
    """{"bounds": upper bounds (inclusive) of all buckets but the last, "counts": per bucket, "sum": of all values}."""
    cdef uint64_t decade = histogram.base
    bounds = []
    while len(bounds) < HISTOGRAM_BUCKETS - 1:
        bounds += [decade, 2 * decade, 5 * decade]
        decade *= 10
    return {"bounds": bounds, "counts": [histogram.counts[i] for i in range(HISTOGRAM_BUCKETS)], "sum": histogram.sum}


def _mapped_bytes():
    """Address space of this process; reserved memory counts whether it was touched or not."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


cdef class RulesImage:
    """An image in memory, checked. See _engine.pyi."""

    cdef Loaded* loaded         # NULL: the core's by now
    cdef readonly bytes hash
    cdef readonly uint32_t size

    def __init__(self, bytes image not None):
        cdef const uint8_t* at = image
        cdef uint32_t size = <uint32_t>len(image)
        with nogil:
            self.loaded = loaded_copy(at, size)
        if self.loaded == NULL or self.loaded.program.rules == NULL:
            raise ValueError("the image does not load: it is damaged or of another version")
        self.hash = (<const uint8_t*>self.loaded.image + LOADED_HASH_AT)[:32]
        self.size = size

    def __dealloc__(self):
        loaded_free(self.loaded)


cdef class Order:
    """What is asked of the core about rules. See _engine.pyi."""

    cdef RulesOrder order
    cdef RulesImage image
    cdef tuple kept

    def __init__(self, *, str kind, bytes hash=bytes(32), RulesImage image=None, bytes request_id=b"", int64_t sent_time_us=0,
                 int64_t effective_us=0, uint64_t again=0, bytes content=bytes(8), uint32_t offset=0, bint whole=False, bytes source=b"",
                 bytes told=b"", bytes operator=b"", bytes reason=b""):
        cdef RulesOrder* order = &self.order
        self.image = image
        self.kept = (source, told, operator, reason)
        if len(request_id) > sizeof(order.request_id) or len(content) != 8 or len(hash) != 32:
            raise ValueError("a request id, a content or a hash has another size")
        if kind != "look" and (image is None or image.loaded == NULL) and (kind == "part" or whole):
            raise ValueError("the image is not here")
        memset(order, 0, sizeof(RulesOrder))
        order.kind = {"look": ORDER_LOOK, "part": ORDER_PART, "publish": ORDER_PUBLISH}[kind]
        order.request_size = <uint8_t>len(request_id)
        memcpy(order.request_id, <const char*>request_id, len(request_id))
        order.sent_time_us = sent_time_us
        order.effective_us = effective_us
        order.again = again
        memcpy(order.content, <const uint8_t*>content, 8)
        memcpy(order.hash, <const uint8_t*>(hash if image is None else image.hash), 32)
        order.loaded = image.loaded if image is not None else NULL
        order.offset = offset
        order.whole = whole
        order.source = slice_of(source)
        order.told = slice_of(told)
        order.operator_name = slice_of(operator)
        order.reason = slice_of(reason)


    def give_up(self):
        """Nobody knows what became of it: the image may be the core's."""
        if self.image is not None:
            self.image.loaded = NULL


cdef class Search:
    """A search for the largest keys of limits. See _engine.pyi."""

    cdef KeySearch* search
    cdef bytes request          # where the search stands, and the question

    def __cinit__(self, *, bytes limit=b"", uint32_t most=1, bytes question=b""):
        if len(limit) > sizeof(self.search.wanted) or not 1 <= most <= LIMIT_KEYS_MAX:
            raise ValueError("a limit's name is too long, or there are too many keys")
        self.search = <KeySearch*>calloc(1, sizeof(KeySearch))
        if self.search == NULL:
            raise MemoryError("no memory for a search")
        memcpy(self.search.wanted, <const char*>limit, len(limit))
        self.search.most = most
        self.request = (<const uint8_t*>&self.search)[:sizeof(void*)] + question

    def __dealloc__(self):
        free(self.search)

    @property
    def more(self):
        return self.search.more

    @property
    def missed(self):
        return self.search.missed

    def found(self):
        cdef const KeyLimit* limit
        cdef const VelocityTop* top
        cdef uint32_t i, j
        rows = []
        for i in range(self.search.limit_count):
            limit = &self.search.limits[i]
            if limit.shown.key != 0:
                keys = [told_key(&limit.shown)]
            else:
                top = &self.search.tops[limit.top]
                keys = [told_key(&top.best[j]) for j in range(top.count)]
            rows.append(SearchedLimit((<const char*>limit.name)[:64].rstrip(b"\0").decode(), limit.at_most, limit.keys, limit.measure, limit.window,
                                      limit.window_s, limit.action, keys))
        return rows


class SearchedLimit(NamedTuple):
    name: str
    at_most: int
    per: int
    measure: int
    window: int
    window_s: int
    action: int
    keys: list


cdef tuple told_key(const VelocityBest* row):
    return row.key, row.window, row.amount


cdef Slice slice_of(bytes text):
    # As long as the text lives.
    cdef Slice slice
    slice.data = text
    slice.size = <uint32_t>len(text)
    return slice


cdef dict told_rules(const Program* program):
    # The programme in force, and what its first rules have given since its image was loaded; the rest in one row without a name.
    cdef const Program2* rules = <const Program2*>program.rules
    cdef const RuleTally* tallies = (<const Loaded*>program).tallies
    cdef uint64_t receipts = 0
    cdef int64_t points = 0, discounts = 0
    cdef uint32_t i
    cdef uint8_t kind
    told = {"version": program.version, "rule_count": program.rule_count, "image_bytes": program.image_size, "name": "", "hash": "",
            "rules": [], "others": None, "limits": []}
    if rules == NULL or tallies == NULL:
        return told
    told["name"] = rules.header.name[:40].rstrip(b"\0").decode()
    told["hash"] = (<const char*>rules.header.hash)[:8].hex()
    for i in range(rules.rule_count):
        kind = rules.rules[i].kind
        if i < RULES_TOLD_MAX:
            told["rules"].append({
                "name": rules.rule_names[64 * i:64 * i + 64].rstrip(b"\0").decode(), "receipts": tallies[i].receipts,
                "wallet": program.wallets[rules.rules[i].wallet].name[:program.wallets[rules.rules[i].wallet].name_size].decode()
                if RULE_POINTS <= kind <= RULE_TIMES else "", "points": tallies[i].given if RULE_POINTS <= kind <= RULE_TIMES else 0,
                "discounts": tallies[i].given if kind < RULE_POINTS else 0})
            continue
        receipts += tallies[i].receipts
        if kind < RULE_POINTS:
            discounts += tallies[i].given
        elif kind <= RULE_TIMES:
            points += tallies[i].given
    for i in range(rules.counts[SECTION2_LIMITS]):
        told["limits"].append({"name": rules.limits[i].name[:64].rstrip(b"\0").decode(), "answer": rules.limits[i].action,
                               "above": (<const Loaded*>program).limit_tallies[i]})
    if rules.rule_count > RULES_TOLD_MAX:
        told["others"] = {"receipts": receipts, "points": points, "discounts": discounts}
    return told


cdef class EngineHandle:
    """Python's hold on an Engine; see _engine.pyi."""

    def __cinit__(self):
        self.engine = <Engine*>calloc(1, sizeof(Engine))
        if self.engine == NULL:
            raise MemoryError("no memory for the engine")
        self.engine.tail_fd = self.engine.event_fd = self.engine.flush_fd = self.engine.drain_fd = self.engine.outbox_fd = -1
        self.engine.ids_fd = self.engine.lookup_fd = -1

    def __dealloc__(self):
        self.close()
        free(self.engine)

    def __init__(self, *, int tail_fd, uint64_t tail_bytes, bytes directory, str journal_path, bint create,
                 bytes identity_key, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, clock_path, bint accept_time,
                 ids_path=None):
        cdef Engine* engine = self.engine
        cdef const char* ids_at
        cdef const int64_t* clock_at = NULL
        cdef uint64_t refs = 64
        cdef int code
        if engine.core != NULL:
            raise RuntimeError("an EngineHandle is opened once")
        path = journal_path.encode()
        if len(directory) != 16 or len(identity_key) != 16 or len(path) >= 4096:
            raise ValueError("directory and identity_key have 16 bytes, a path less than 4096")
        engine.tail_fd = tail_fd
        engine.ring_bytes = tail_bytes - TAIL_BLOCK_BYTES
        memcpy(engine.directory, <const uint8_t*>directory, 16)
        memcpy(engine.identity_key, <const uint8_t*>identity_key, 16)
        memcpy(engine.journal_path, <const char*>path, len(path) + 1)
        while refs < engine.ring_bytes // TAIL_BLOCK_BYTES + 2:
            refs *= 2
        engine.refs_mask = refs - 1
        engine.refs = <GroupRef*>engine_map(refs * sizeof(GroupRef))
        engine.ring = <uint8_t*>engine_map(engine.ring_bytes)
        engine.found = <uint8_t*>engine_map(ENTRY_BYTES_MAX)
        engine.inbox.capacity = INBOX_BYTES
        engine.inbox.data = <uint8_t*>engine_map(INBOX_BYTES)
        engine.outbox.capacity = OUTBOX_BYTES
        engine.outbox.data = <uint8_t*>engine_map(OUTBOX_BYTES)
        engine.parked = <Parked*>engine_map(LOOKUPS_MAX * sizeof(Parked))
        engine.told = <Told*>engine_map(LOOKUPS_MAX * sizeof(Told))
        if engine.parked == NULL or engine.told == NULL:
            raise MemoryError("no memory for the rings of look-ups")
        if engine.refs == NULL or engine.ring == NULL or engine.found == NULL or engine.inbox.data == NULL or engine.outbox.data == NULL:
            raise MemoryError(f"no memory for the ring of {engine.ring_bytes} bytes")
        engine_map_large_pages(engine.ring, engine.ring_bytes)
        engine.event_fd = engine_eventfd(0)
        engine.flush_fd = engine_eventfd(1)
        engine.drain_fd = engine_eventfd(0)
        engine.outbox_fd = engine_eventfd(0)
        engine.ids_fd = engine_eventfd(0)
        engine.lookup_fd = engine_eventfd(1)
        if min(engine.event_fd, engine.flush_fd, engine.drain_fd, engine.outbox_fd, engine.ids_fd, engine.lookup_fd) < 0:
            raise OSError("no file descriptors left for the engine's events")
        engine.flush_us.base = engine.drain_us.base = engine.lookup_us.base = engine.run_us.base = 10
        engine.group_entries.base = 1
        engine.group_bytes.base = 100
        hasher_open(&engine.hasher)
        if clock_path is not None:
            clock_bytes = clock_path.encode()
            clock_at = engine_map_clock(clock_bytes)
            if clock_at == NULL:
                raise StartRefused(f"the clock file {clock_path} cannot be read: it must hold 8 bytes")
        clock_open(&engine.clock, clock_at)
        engine.accept_time = accept_time
        memset(&engine.sizes, 0, sizeof(CoreSizes))
        engine.sizes.members_max = members_max
        engine.sizes.ids_max = ids_max
        engine.sizes.reservations_max = reservations_max
        self.open_core()
        with nogil:
            code = journal_open(&engine.journal, engine.journal_path, create, engine.directory)
        if code != 0:
            raise StartRefused(journal_text(code))
        if ids_path is None:
            return
        ids_bytes = ids_path.encode()
        ids_at = ids_bytes
        with nogil:
            code = ids_open(&engine.ids, ids_at, engine.directory, True)
        if code != 0:
            raise StartRefused(ids_text(&engine.ids, code))
        engine.has_ids = True
        ids_begin(&engine.ids, engine.core)

    cdef int open_core(self) except -1:
        # Empty tables, in place of those that may be there.
        cdef Engine* engine = self.engine
        if engine.core != NULL:
            core_close(engine.core)
            engine.core = NULL
            engine.core_stats = NULL
        before = _mapped_bytes()
        engine.core = core_open(&engine.sizes, engine.identity_key)
        engine.core_bytes = max(0, _mapped_bytes() - before)
        engine.core_stats = core_stats(engine.core)
        if engine.has_ids:
            ids_begin(&engine.ids, engine.core)
        return 0

    def close(self):
        """Give everything back. Called once both threads have ended; again does nothing."""
        cdef Engine* engine = self.engine
        journal_close(&engine.journal)
        if engine.has_ids:
            ids_close(&engine.ids)
            engine.has_ids = False
        if engine.core != NULL:
            core_close(engine.core)
            engine.core = NULL
            engine.core_stats = NULL
        if engine.hasher.context != NULL:
            hasher_close(&engine.hasher)
        engine_unmap(engine.refs, (engine.refs_mask + 1) * sizeof(GroupRef))
        engine_unmap(engine.ring, engine.ring_bytes)
        engine_unmap(engine.found, ENTRY_BYTES_MAX)
        engine_unmap(engine.parked, LOOKUPS_MAX * sizeof(Parked))
        engine_unmap(engine.told, LOOKUPS_MAX * sizeof(Told))
        engine.parked = NULL
        engine.told = NULL
        engine_unmap(engine.inbox.data, engine.inbox.capacity)
        engine_unmap(engine.outbox.data, engine.outbox.capacity)
        engine.refs = NULL
        engine.ring = engine.found = engine.inbox.data = engine.outbox.data = NULL
        for fd in (engine.event_fd, engine.flush_fd, engine.drain_fd, engine.outbox_fd, engine.ids_fd, engine.lookup_fd):
            if fd >= 0:
                close(fd)
        engine.event_fd = engine.flush_fd = engine.drain_fd = engine.outbox_fd = engine.ids_fd = engine.lookup_fd = -1

    # --- start ---

    def load_snapshot(self, Snapshot snapshot not None, progress):
        """The snapshot becomes the state behind which `recover` goes on. Before `recover`.

        Shape:   progress(done, total) in bytes; None: nobody looks.
        Errors:  SnapshotUnusable, TablesTooSmall (the state is empty again).
        """
        cdef Engine* engine = self.engine
        cdef const GroupHeader* header
        cdef uint64_t room = 0
        cdef bint fits = False
        cdef uint64_t sequence = snapshot.head_read.sequence
        # What is beyond LMDB may be in the tail, but a snapshot is only written of what is in LMDB.
        header = <const GroupHeader*>journal_find(&engine.journal, sequence, &room)
        if header != NULL:
            fits = (room >= GROUP_HEADER_BYTES and header.first_sequence + header.count - 1 == sequence
                    and memcmp(header.hash, snapshot.head_read.head_hash, 32) == 0)
            journal_release(&engine.journal)
        if not fits:
            raise SnapshotUnusable(f"the journal has no such group that ends with entry {sequence}")
        try:
            snapshot.load_into(engine.core, progress)
        except BaseException:
            self.open_core()
            raise
        memcpy(engine.head_hash, snapshot.head_read.head_hash, 32)
        engine.digest_sequence = snapshot.head_read.digest_sequence

    def recover(self, progress):
        """Replay journal (behind a snapshot, if one was loaded) and tail into the core, check the chain, and set the ring so that draining goes on.

        Shape:   progress(done, total) in sequences of the journal, about every 8 MB; None: nobody looks.
        Errors:  StartRefused; nothing was written.
        Source:  docs/journal-format.md, sections LMDB and The tail.
        """
        cdef Engine* engine = self.engine
        cdef Drained drained
        cdef Fault fault
        cdef uint64_t next_sequence = engine.core_stats.sequence + 1
        cdef uint64_t filled = 0
        cdef uint64_t buffer_size = DRAIN_BYTES + GROUP_BYTES_MAX + 65536
        cdef uint64_t last_sequence, last_position, noted, foreign
        cdef uint8_t* buffer
        cdef int code
        memset(&fault, 0, sizeof(Fault))
        with nogil:
            code = tail_read(engine.tail_fd, engine.ring, engine.ring_bytes)
        if code != 0:
            raise StartRefused(f"the tail cannot be read: {os.strerror(code)}. {_RESTORE}")
        code = journal_drained(&engine.journal, &drained)
        if code != 0:
            raise StartRefused(journal_text(code))
        if engine.has_ids:          # before anything is added to them
            with nogil:
                code = check_runs(engine, drained.sequence, False, &foreign)
            if code != JOURNAL_OK:
                raise StartRefused(journal_text(code))
            if foreign != 0:
                raise StartRefused(foreign_text(engine, foreign))
        buffer = <uint8_t*>malloc(buffer_size)
        if buffer == NULL:
            raise MemoryError("no memory to read the journal")
        try:
            while True:
                with nogil:
                    code = journal_scan(&engine.journal, &next_sequence, buffer, buffer_size, &filled)
                    if code == JOURNAL_OK and replay_records(engine, buffer, filled, &fault) != 0:
                        code = -1
                if code == -1:
                    raise StartRefused(fault_text(&fault))
                if code == JOURNAL_END:
                    break
                if code != JOURNAL_OK:
                    raise StartRefused(journal_text(code))
                if progress is not None:
                    progress(engine.core_stats.sequence, drained.sequence)
        finally:
            free(buffer)
            journal_scan_end(&engine.journal)
        if drained.sequence != engine.core_stats.sequence or memcmp(drained.hash, engine.head_hash, 32) != 0:
            raise StartRefused(f"the journal (journal/data.mdb) is damaged: it says that it ends with entry {drained.sequence}, "
                               f"but it ends with {engine.core_stats.sequence}. {_RESTORE}")
        if drained.position >= engine.ring_bytes or drained.position % TAIL_BLOCK_BYTES != 0:
            raise StartRefused(f"the journal (journal/data.mdb) names position {drained.position} of a tail that has "
                               f"{engine.ring_bytes} bytes: the tail is another one. {_RESTORE}")
        if engine.epoch == 0:       # nothing of the journal was replayed
            engine.epoch = last_epoch(engine, drained.sequence)
        engine.drained_sequence = drained.sequence
        engine.drained_offset = drained.position
        engine.head = drained.position
        with nogil:
            code = replay_tail(engine, &fault)
        if code != 0:
            raise StartRefused(fault_text(&fault))
        with nogil:
            survey_tail(engine, &last_sequence, &last_position, &noted)
        if noted > drained.sequence:
            raise StartRefused(f"the journal was set back: the tail says that entries up to {noted} were in it, but it ends with "
                               f"{drained.sequence}. {_RESTORE}")
        if last_sequence > engine.core_stats.sequence:
            raise StartRefused(f"the tail is damaged: it should go on with entry {engine.core_stats.sequence + 1} at position "
                               f"{engine.head % engine.ring_bytes} and does not, but a later group (up to entry {last_sequence}) lies "
                               f"at position {last_position}. {_RESTORE}")
        if last_sequence == drained.sequence and last_sequence != 0 and memcmp(
                (<const GroupHeader*>(engine.ring + last_position)).hash, drained.hash, 32) != 0:
            raise StartRefused(f"the tail and the journal are of two histories: both end with entry {last_sequence}, with different hashes. "
                               f"{_RESTORE}")
        if last_sequence < drained.sequence:
            raise StartRefused(f"the tail was set back or replaced: the journal ends with entry {drained.sequence}, but the newest group in "
                               f"the tail ends with {last_sequence}, so later writes may be missing. {_RESTORE}")
        for kind, what in ((KEYS_REQUEST, "request ids"), (KEYS_RECEIPT, "receipt keys")):
            if engine.has_ids and engine.ids.covered[kind] > engine.core_stats.sequence:
                raise StartRefused(f"the {what} on disk (ids/data.mdb) reach to entry {engine.ids.covered[kind]}, but the journal ends with "
                                   f"{engine.core_stats.sequence}: they are of another time. `daybook ids DIR --rebuild` makes them again")
        if engine.has_ids:
            check_runs(engine, drained.sequence, True, &foreign)
            if foreign != 0:
                raise StartRefused(foreign_text(engine, foreign))
        if engine.sealed_groups and fdatasync(engine.tail_fd) != 0:
            # The groups may have been read from memory that never reached the disk.
            raise StartRefused("the tail cannot be flushed: see to its disk")
        with nogil:
            # The same for the journal: the place of its groups in the tail is free from now on, and new groups say that they are in it.
            code = journal_sync(&engine.journal)
        if code != 0:
            raise StartRefused(f"the journal (journal/data.mdb) cannot be flushed: {journal_error(code).decode()}. See to its disk")
        tail_go_direct(engine.tail_fd)
        if engine.has_ids:
            ids_write_due(&engine.ids, engine.core, NULL, 0, no_pause, NULL)  # writes nothing: counts what lies in runs already
            engine.keys_full = core_keys(engine.core, KEYS_REQUEST).full + core_keys(engine.core, KEYS_RECEIPT).full
        engine.durable_groups = engine.handed_groups = engine.sealed_groups
        engine.durable_sequence = engine.core_stats.sequence
        core_set_find(engine.core, find_entry, engine)
        core_set_served(engine.core)
        gap_us = 0
        if engine.core_stats.sequence and engine.clock.file == NULL:
            gap_us = realtime_us() - engine.core_stats.time_us
        engine.clock.last_us = engine.core_stats.time_us
        if gap_us > TIME_GAP_US_MAX and not engine.accept_time:
            clock_hold(&engine.clock)
        clock_turn(&engine.clock)
        engine.next_tick_us = engine.clock.boot_us
        engine.next_digest_us = engine.clock.boot_us + <int64_t>DIGEST_INTERVAL_S * 1000000
        with nogil:
            check_space(engine)
        engine.gate_now = engine.gate
        return {
            "sequence": engine.core_stats.sequence, "journal_sequence": drained.sequence, "tail_groups": engine.sealed_groups,
            "gap_us": gap_us if engine.clock.gap else 0,
        }

    def seed(self, bytes image, bytes source):
        """A PROGRAM entry, the first one of an empty journal too; durable when this returns. Before the threads are started."""
        cdef Engine* engine = self.engine
        cdef const uint8_t* image_at = image
        cdef const uint8_t* source_at = source
        cdef uint32_t size, offset = 0, image_size = <uint32_t>len(image)
        cdef Slice told
        cdef int64_t now_us
        cdef bint first = core_program(engine.core) == NULL
        places = []
        while image_size > IMAGE_INLINE_BYTES_MAX and offset < image_size:
            size = min(image_size - offset, IMAGE_INLINE_BYTES_MAX)
            now_us = self.seed_time()       # which opens the group that group_next looks at
            self.seed_group(core_write_part(engine.core, now_us, image_at, image_size, offset, size, group_next(engine)))
            places.append(engine.core_stats.sequence)
            offset += size
        text = published.pack(published.told_of(image)._replace(places=tuple(places))) if places or not first else b""
        told.data = text
        told.size = <uint32_t>len(text)
        now_us = self.seed_time()
        self.seed_group(core_write_program(engine.core, now_us, image_at, image_size, source_at, <uint32_t>len(source), &told, first,
                                           group_next(engine)))

    cdef int64_t seed_time(self) noexcept:
        # Of the entry that is written next, into a group of its own.
        clock_turn(&self.engine.clock)
        group_open(self.engine)
        return self.engine.clock.last_us

    cdef int seed_group(self, uint32_t size) except -1:
        # The entry just written becomes durable.
        cdef Engine* engine = self.engine
        if size == 0:
            raise StartRefused("the compiled programme does not load: this is a fault of the compiler, not of the file")
        group_add(engine, 1, size)
        group_seal(engine)
        flush_group(engine)
        engine.in_flight = False
        return 0

    def program_image(self):
        """The image in force. Errors: RuntimeError before the first PROGRAM entry."""
        cdef const Program* program = core_program(self.engine.core)
        if program == NULL:
            raise RuntimeError("no programme is in force")
        return program.image[:program.image_size]

    # --- rules ---

    def submit_order(self, uint64_t token, Order order not None):
        """Put an order into the inbox; it must live until its answer, which `take_answer` reads. False: the inbox is full."""
        return self.put(token, METHOD_RULES_ORDER, <const uint8_t*>&order.order, sizeof(RulesOrder), 0)

    def submit_search(self, uint64_t token, Search search not None):
        """Put the next step of a search into the inbox; it must live until its answer. False: the inbox is full."""
        return self.put(token, METHOD_KEYS_STEP, search.request, <uint32_t>len(search.request), 0)

    def take_answer(self, Order order not None, bytes payload not None):
        """What came of an order; once for each answer."""
        cdef RulesAnswer answer
        if len(payload) != sizeof(RulesAnswer):
            raise ValueError("this is no answer to an order")
        memcpy(&answer, <const uint8_t*>payload, sizeof(RulesAnswer))
        if answer.taken:
            order.image.loaded = NULL
        with nogil:
            loaded_free_all(<Loaded*><uintptr_t>answer.retired)
        return OrderAnswer(answer.sequence, answer.time_us, answer.version, answer.before, answer.replayed != 0, answer.in_memory != 0)

    def versions(self, uint32_t from_version=1):
        """The versions of the programme from this one on: [(sequence of its entry, server time us from which it is in force)]."""
        cdef uint64_t sequence
        cdef int64_t effective_us
        found = []
        while core_versions(self.engine.core, from_version + <uint32_t>len(found), &sequence, &effective_us, 1) == 1:
            found.append((sequence, effective_us))
        return found

    def reviews(self):
        """Receipts whose points are under review, oldest first: [(sequence, server time us, member, points, version, limit from 1)]. From any thread."""
        cdef Case* rows = <Case*>malloc(<size_t>CASES_MAX * sizeof(Case))
        cdef uint32_t changes = 0, count, i
        if rows == NULL:
            raise MemoryError
        try:
            while True:
                count = core_cases(self.engine.core, rows, CASES_MAX, &changes)
                if not core_cases_changed(self.engine.core, changes):
                    break
            return [(rows[i].sequence, rows[i].time_us, rows[i].member, rows[i].points, rows[i].program, rows[i].limit)
                    for i in range(count) if rows[i].kind == CASE_REVIEW]
        finally:
            free(rows)

    def limit_names(self):
        """(version in force, names of its limits). From any thread that holds the GIL while nobody publishes: the control port."""
        cdef const Program* program = core_program(self.engine.core)
        cdef const Program2* rules
        cdef uint32_t i
        if program == NULL or program.rules == NULL:
            return 0, []
        rules = <const Program2*>program.rules
        return program.version, [rules.limits[i].name[:64].rstrip(b"\0").decode() for i in range(rules.counts[SECTION2_LIMITS])]

    @property
    def time_us(self):
        """Server time of the hot thread's last turn."""
        return self.engine.clock.last_us

    def read_entry(self, uint64_t sequence):
        """An entry that is in LMDB (drained), or before the threads are started any entry; b"": it is not there."""
        cdef uint64_t room = 0
        cdef uint32_t size = 0
        cdef uint8_t* group
        cdef const uint8_t* entry
        if load_u64(&self.engine.drained_sequence) < sequence:
            return b""
        with nogil:
            group = journal_copy(&self.engine.journal, sequence, &room)
        if group == NULL:
            return b""
        try:
            entry = group_entry(group, room, sequence, &size)
            return b"" if entry == NULL else (<const uint8_t*>entry)[:size]
        finally:
            free(group)

    def find_entry(self, uint64_t sequence):
        """Any entry. Only before the threads are started. b"": it is not there. No repeat, so it is not counted."""
        cdef uint32_t size = 0
        cdef uint64_t* counter = NULL
        cdef const uint8_t* entry = read_entry(self.engine, sequence, &size, &counter)
        return b"" if entry == NULL else (<const uint8_t*>entry)[:size]

    # --- threads and stop ---

    def run_flush(self):
        with nogil:
            flush_loop(self.engine)

    def run_drain(self):
        with nogil:
            drain_loop(self.engine)

    def run_ids(self):
        if self.engine.has_ids:
            with nogil:
                ids_loop(self.engine)

    def run_lookups(self):
        if self.engine.has_ids:
            with nogil:
                lookup_loop(self.engine)

    def end_threads(self):
        store_u32(&self.engine.ending, 1)
        engine_event_raise(self.engine.ids_fd)
        engine_event_raise(self.engine.lookup_fd)
        engine_event_raise(self.engine.flush_fd)
        engine_event_raise(self.engine.drain_fd)

    def ask_stop(self, uint32_t level):
        store_u32(&self.engine.stopping, level)
        raise_hot(self.engine)

    def finish(self, bint digest):
        """What is open is flushed, with `digest` behind a last DIGEST entry, and drained. Hot, flush and drain thread have ended.

        Units:   returns the groups that could not be drained (a full disk); they stay in the tail.
        """
        cdef Engine* engine = self.engine
        with nogil:
            take_in_flush(engine)
            if engine.in_flight:
                flush_group(engine)
                engine.in_flight = False
            clock_turn(&engine.clock)
            if digest and engine.digest_sequence != engine.core_stats.sequence:
                write_digest(engine)
            if engine.open and engine.open_count != 0:
                group_seal(engine)
                flush_group(engine)
                engine.in_flight = False
            while engine.drained_groups < engine.durable_groups:
                if drain_once(engine) != 0:
                    break
        return engine.durable_groups - engine.drained_groups

    def turn(self, uint32_t digests, bint alone):
        cdef Engine* engine = self.engine
        cdef uint32_t i
        with nogil:
            engine_begin_turn(engine)
            for i in range(digests):
                if engine_room(engine):
                    write_digest(engine)
            engine_end_turn(engine, alone)
        return engine.core_stats.sequence

    # --- the control port ---

    @property
    def outbox_fd(self):
        return self.engine.outbox_fd

    def submit(self, uint64_t token, uint8_t method, bytes request, int64_t deadline_us):
        """Put a call into the inbox. False: the inbox is full, nothing was taken."""
        if method == METHOD_RULES_ORDER or method == METHOD_KEYS_STEP:
            raise ValueError("an order is no request")      # its bytes are believed
        return self.put(token, method, request, <uint32_t>len(request), deadline_us)

    cdef bint put(self, uint64_t token, uint8_t method, const uint8_t* request, uint32_t size, int64_t deadline_us) noexcept:
        cdef Engine* engine = self.engine
        cdef uint8_t* at = NULL
        cdef InboxHead* head
        if engine.inbox.calls_put - load_u64(&engine.inbox.calls_taken) < INBOX_CALLS_MAX:
            at = box_reserve(&engine.inbox, sizeof(InboxHead) + size)
        if at == NULL:
            return False
        head = <InboxHead*>at
        head.token = token
        head.deadline_us = deadline_us
        head.size = size
        head.method = method
        memcpy(at + sizeof(InboxHead), request, size)
        box_publish(&engine.inbox)
        raise_hot(engine)
        return True

    def give_up(self, uint64_t token):
        """Say that nobody waits for this call any more. False: the inbox is full, nothing was said."""
        return self.submit(token, INBOX_GONE, b"", 0)

    def collect(self):
        """The answers that are ready: [(token, grpc_code, payload, message)]."""
        cdef Engine* engine = self.engine
        cdef OutboxHead* head
        cdef const uint8_t* payload
        answers = []
        engine_event_clear(engine.outbox_fd)
        while True:
            head = <OutboxHead*>box_peek(&engine.outbox)
            if head == NULL:
                break
            payload = <const uint8_t*>head + sizeof(OutboxHead)
            answers.append((head.token, head.grpc_code, payload[:head.payload_size],
                            payload[head.payload_size:head.payload_size + head.message_size]))
            box_release(&engine.outbox)
        fence()
        if exchange_u32(&engine.outbox_starved, 0):
            raise_hot(engine)
        return answers

    # --- what can be seen ---

    def plan(self):
        """Memory reserved: [(what, bytes)]."""
        cdef Engine* engine = self.engine
        return [("core tables", engine.core_bytes), ("ring", engine.ring_bytes), ("group index", (engine.refs_mask + 1) * sizeof(GroupRef)),
                ("inbox", engine.inbox.capacity), ("outbox", engine.outbox.capacity), ("look-ups", LOOKUPS_MAX * (sizeof(Parked) + sizeof(Told)))]

    @property
    def sequence(self):
        return self.engine.core_stats.sequence

    @property
    def durable_sequence(self):
        return load_u64(&self.engine.durable_sequence)

    @property
    def drained_sequence(self):
        return load_u64(&self.engine.drained_sequence)

    @property
    def head(self):
        cdef IdsHead head
        durable_head(self.engine, &head)
        return head.sequence, (<const uint8_t*>head.hash)[:32].hex()

    def digest(self):
        """The state digest in hex. Only while no hot thread runs: it is not published."""
        cdef Hash128 digest = core_digest(self.engine.core)
        return f"{digest.hi:016x}{digest.lo:016x}"

    def stats(self):
        """See STATS in ledger/engine.py."""
        cdef Engine* engine = self.engine
        cdef const CoreStats* core = engine.core_stats
        cdef uint64_t durable = load_u64(&engine.durable_groups)
        cdef uint64_t drained = load_u64(&engine.drained_groups)
        cdef uint64_t durable_sequence = load_u64(&engine.durable_sequence)
        cdef uint64_t drained_sequence = load_u64(&engine.drained_sequence)
        cdef uint64_t drained_offset = load_u64(&engine.drained_offset)
        cdef uint64_t head = engine.head
        cdef int64_t lag_us = 0
        cdef const Program* program = core_program(engine.core)
        if durable > drained:
            lag_us = monotonic_us() - engine.refs[drained & engine.refs_mask].sealed_us
        head_sequence, head_hash = self.head
        wallets = range(min(<uint32_t>WALLETS_MAX, program.wallet_count) if program != NULL else 0)
        return {
            "core": {
                "sequence": core.sequence, "time_us": core.time_us, "members": core.members, "identifiers": core.identifiers,
                "lots": core.lots, "reservations_active": core.reservations_active, "request_ids": core.request_ids,
                "receipt_keys": core.receipt_keys, "entries_expired_lots": core.entries_expired_lots,
                "entries_expired_reservations": core.entries_expired_reservations,
                "counters": core.counters, "counters_room": core.counters_room, "days": core.days, "days_room": core.days_room,
                "blocks": core.blocks, "blocks_version": core.blocks_version,
                "limit_counters": [core.limit_counters[i] for i in range(3)], "limit_counters_room": [core.limit_counters_room[i] for i in range(3)],
                "campaigns": core.campaigns, "campaigns_max": CAMPAIGNS_KEPT_MAX, "evaluated": core.evaluated,
                "rules_refused": [core.rules_refused[i] for i in range(<int>REFUSALS_OF_RULES)],
                "notices": [core.notices[i] for i in range(<int>NOTICE_KINDS)],
                "by_quote": core.by_quote, "changed_since_quote": core.changed_since_quote,
                "wallets": [
                    {
                        "name": program.wallets[i].name[:program.wallets[i].name_size].decode(),
                        "issued_points": core.issued_points[i], "redeemed_points": core.redeemed_points[i],
                        "expired_points": core.expired_points[i], "adjusted_points": core.adjusted_points[i],
                        "reserved_points": core.reserved_points[i], "reserved_total_points": core.reserved_total_points[i],
                    }
                    for i in wallets
                ],
            },
            "program": told_rules(program) if program != NULL else None,
            "memory_bytes": {
                "counters": core.bytes_counters, "days": core.bytes_days,
                "accounts": core.bytes_accounts, "identifiers": core.bytes_identifiers, "lots": core.bytes_lots,
                "reservations": core.bytes_reservations, "request_ids": core.bytes_request_ids, "receipt_keys": core.bytes_receipt_keys,
                "ring": engine.ring_bytes, "inbox": engine.inbox.capacity, "outbox": engine.outbox.capacity,
            },
            "durable_sequence": durable_sequence,
            "drained_sequence": drained_sequence,
            "head_sequence": head_sequence,
            "head_hash": head_hash,
            "groups": durable,
            "group_entries": histogram_python(&engine.group_entries),
            "group_bytes": histogram_python(&engine.group_bytes),
            "flush_us": histogram_python(&engine.flush_us),
            "drain_us": histogram_python(&engine.drain_us),
            "drain_lag_entries": durable_sequence - drained_sequence if durable_sequence > drained_sequence else 0,
            "drain_lag_us": lag_us if lag_us > 0 else 0,
            "drain_failures": engine.drain_failures,
            "inbox_calls": load_u64(&engine.inbox.calls_put) - load_u64(&engine.inbox.calls_taken),
            "outbox_calls": load_u64(&engine.outbox.calls_put) - load_u64(&engine.outbox.calls_taken),
            "tail_used_bytes": head - drained_offset if head > drained_offset else 0,
            "tail_bytes": engine.ring_bytes,
            "map_used_bytes": journal_used_bytes(&engine.journal),
            "map_bytes": JOURNAL_MAP_BYTES,
            "free_bytes": load_u64(&engine.free_bytes),
            "free_bytes_min": FREE_BYTES_MIN,
            "gate": load_u32(&engine.gate),
            "refused_full": engine.refused_full,
            "clock_stepped": bool(engine.clock.stepped),
            "clock_gap": bool(engine.clock.gap),
            "clock_ahead_us": engine.clock.ahead_us,
            "clock_behind_us": engine.clock.behind_us,
            "ids": {
                "runs": load_u64(&engine.ids.run_count), "keys": load_u64(&engine.ids.keys), "bytes": ids_used_bytes(&engine.ids),
                "failures": load_u64(&engine.ids_failures), "refused_behind": engine.refused_behind,
                "lookups": load_u64(&engine.told_put), "waiting": load_u64(&engine.parked_put) - load_u64(&engine.told_put),
                "unreadable": engine.lookups_unreadable, "lookup_us": histogram_python(&engine.lookup_us),
                "run_us": histogram_python(&engine.run_us),
            },
            "turns": engine.turns,
            "ticks": engine.ticks,
            "digests": engine.digests,
            "finds_ring": engine.finds_ring,
            "finds_journal": engine.finds_journal,
        }
