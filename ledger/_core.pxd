# The ledger's state and the only code that decides and applies. What it promises stands in _core.pyx.
# cimported by ledger/_engine.pyx, ledger/_verifier.pyx, server/_local.pyx.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ledger._evaluate cimport Result2, Scratch
from ledger._hash cimport Hash128
from ledger._image cimport Program2, VELOCITY_COUNTERS_MAX, VELOCITY_LIMITS_MAX
from ledger._layout cimport ACCOUNT_COUNT, BalanceView, Command, Lookup, METHOD_COUNT, Outcome, Slice, WALLETS_MAX
from ledger._limits cimport LIMIT_KEYS_MAX
from ledger._rules cimport Program
from ledger._table cimport KeyTable
from ledger._velocity cimport VelocityBest, VelocityTop

# How the core reads an entry that it wrote earlier (for repeats). NULL when it cannot be had.
ctypedef const uint8_t* (*FindEntry)(void* owner, uint64_t sequence, uint32_t* size) noexcept nogil

cdef enum:                      # ApplyResult: why an entry of the journal cannot be applied; 0 = applied
    APPLY_OK = 0
    APPLY_FRAMING = 1           # broken framing or an unknown kind
    APPLY_SEQUENCE = 2          # not the next sequence, or time went back
    APPLY_MEMBER = 3            # names an account that does not exist, or opens one out of order
    APPLY_LOTS = 4              # takes more from a lot than it has, or the postings do not fit the lots
    APPLY_SUM = 5               # postings do not sum to zero
    APPLY_RESERVATION = 6       # a reservation that does not exist or is in another state
    APPLY_DIGEST = 7            # a DIGEST entry that differs from the state
    APPLY_PROGRAM = 8           # an image that does not load
    APPLY_KEY = 9               # the identity key is not the one that the journal was begun with
    APPLY_FULL = 10             # a table is too small: start with larger --members-max / --ids-max
    APPLY_RESULT_COUNT = 11

cdef struct CoreSizes:
    uint32_t members_max        # accounts
    uint64_t ids_max            # request ids remembered; receipt keys: the same number
    uint32_t reservations_max

cdef enum:
    REFUSALS_OF_RULES = 16
    NOTICE_KINDS = 8

cdef struct CoreStats:          # read by metrics from another thread: plain aligned words, never torn
    uint64_t sequence           # of the last entry applied
    int64_t time_us             # of the last entry applied
    uint64_t members
    uint64_t identifiers
    uint64_t lots
    uint64_t reservations_active
    uint64_t request_ids
    uint64_t receipt_keys
    uint64_t entries_expired_lots
    uint64_t entries_expired_reservations
    uint64_t bytes_accounts     # memory by table, bytes in use
    uint64_t bytes_identifiers
    uint64_t bytes_lots
    uint64_t bytes_reservations
    uint64_t bytes_request_ids
    uint64_t bytes_receipt_keys
    uint64_t counters           # of caps and tiers, all members
    uint64_t days               # of rolling windows, all members
    uint64_t campaigns
    uint64_t counters_room      # 32-byte units, as many as there is memory for
    uint64_t days_room
    uint64_t evaluated          # receipts that went through rules of version 2, quotes too
    uint64_t rules_refused[REFUSALS_OF_RULES]   # of them, refused: by Result2.refused
    uint64_t notices[NOTICE_KINDS]  # in receipts that were written: what was not known
    uint64_t by_quote           # receipts written that brought the token of a quote
    uint64_t changed_since_quote    # of them, those that came to something else
    uint64_t limit_counters[3]  # slots of limits in use: sums, sliding ones, different ones; the dead that are not yet taken out, too
    uint64_t limit_counters_room[3]
    uint64_t blocks             # rows of the block lists
    uint64_t blocks_version     # changes of them so far
    uint64_t bytes_counters
    uint64_t bytes_days
    int64_t issued_points[WALLETS_MAX]
    int64_t redeemed_points[WALLETS_MAX]
    int64_t expired_points[WALLETS_MAX]
    int64_t adjusted_points[WALLETS_MAX]
    int64_t reserved_points[WALLETS_MAX]    # held by ACTIVE reservations now
    int64_t reserved_total_points[WALLETS_MAX]  # ever reserved

cdef enum:                      # SnapshotSection: what a chunk of a snapshot holds; docs/journal-format.md
    SNAPSHOT_PROGRAM = 1
    SNAPSHOT_FINISHED = 2
    SNAPSHOT_ACCOUNTS = 3
    SNAPSHOT_IDENTIFIERS = 4
    SNAPSHOT_KEYS = 5
    SNAPSHOT_END = 6            # the last one
    SNAPSHOT_PROFILES = 7       # behind SNAPSHOT_ACCOUNTS
    SNAPSHOT_CAMPAIGNS = 8
    SNAPSHOT_IMAGES = 9         # 9 and 10 in the place of SNAPSHOT_PROGRAM
    SNAPSHOT_VERSIONS = 10
    SNAPSHOT_RUNGS = 11         # behind SNAPSHOT_ACCOUNTS: of members who are on one
    SNAPSHOT_VELOCITY = 12      # counters of limits, then their sums
    SNAPSHOT_VELOCITY_SUMS = 13
    SNAPSHOT_CASES = 14
    SNAPSHOT_BLOCKS = 15
    SNAPSHOT_SECTION_COUNT = 16
    SNAPSHOT_CHUNK_BYTES = 4_194_304    # at most in a chunk; every record fits one
    SNAPSHOT_KEY_TABLES = 2     # request ids, receipt keys

cdef packed struct SnapshotHead:    # what a snapshot says of itself, little endian; docs/journal-format.md
    uint8_t magic[8]
    uint32_t version
    uint32_t size               # of this struct
    uint8_t directory[16]
    uint8_t head_hash[32]       # of the group that ends with `sequence`
    uint64_t sequence
    int64_t time_us             # server time of that entry
    uint64_t digest_sequence
    Hash128 digest
    Hash128 begun_with          # key check
    uint32_t has_begun
    uint32_t program            # versions so far
    uint64_t keys_from[SNAPSHOT_KEY_TABLES]     # the keys of every entry from this one on are in it
    int64_t forgotten[SNAPSHOT_KEY_TABLES]      # the highest order of those that are not; INT64_MIN: none
    uint64_t keys[SNAPSHOT_KEY_TABLES]
    uint64_t members
    uint64_t identifiers
    uint64_t lots
    uint64_t lot_units          # arena units that the lots and holds need
    uint64_t reservations_active
    uint64_t reservations_finished
    uint64_t members_max        # sizes of the writer's tables
    uint64_t ids_max
    uint64_t reservations_max
    int64_t issued_points[WALLETS_MAX]
    int64_t redeemed_points[WALLETS_MAX]
    int64_t expired_points[WALLETS_MAX]
    int64_t adjusted_points[WALLETS_MAX]
    int64_t reserved_total_points[WALLETS_MAX]
    uint64_t profiles           # from here on since version 2
    uint64_t counters
    uint64_t counter_units      # arena units that they need
    uint64_t days
    uint64_t day_units
    uint64_t campaigns

cdef enum:
    SNAPSHOT_HEAD_1_BYTES = 888 # of the head of version 1

cdef enum:                      # LoadResult: why a snapshot's state cannot be taken; 0 = taken
    LOAD_OK = 0
    LOAD_BROKEN = 1             # records that do not fit each other or their counts
    LOAD_DIGEST = 2             # the state's digest is another than the head's
    LOAD_PROGRAM = 3            # the programme's image does not load
    LOAD_KEY = 4                # the identity key is not the one that the journal was begun with
    LOAD_MEMBERS = 5            # more members, identifiers or lots than members_max has room for
    LOAD_RESERVATIONS = 6       # more active reservations than there is room for
    LOAD_KEYS_GAP = 7           # between the runs of dropped keys and its first ones some are missing
    LOAD_KEYS = 8               # its keys do not fit the key tables

ctypedef int (*SnapshotPut)(void* owner, uint32_t section, const uint8_t* data, uint32_t size) noexcept nogil
    # Takes a chunk; anything but 0 ends the saving and is returned.

cdef enum:                      # CaseKind
    CASE_REVIEW = 1
    CASE_CHALLENGE = 2

cdef struct Case:               # 40 bytes; what waits for somebody's word
    uint64_t sequence           # of its entry
    int64_t time_us             # of its entry
    int64_t points              # under review
    uint32_t member
    uint32_t program            # version whose limit it was
    uint16_t limit              # number from 1
    uint8_t kind                # CaseKind
    uint8_t state

cdef struct KeyLimit:           # a limit of the programme in force, as a search for keys tells it
    char[64] name
    VelocityBest shown          # of the member or place that was named
    int64_t at_most
    uint32_t window_s           # of a sliding window
    uint16_t keys               # bits, as ImageVelocity.keys
    uint8_t measure             # as ImageVelocity.measure
    uint8_t window              # as ImageVelocity.window
    uint8_t action              # LimitAction
    uint8_t top                 # where its counter stands in KeySearch.tops

cdef struct KeySearch:          # METHOD_KEYS_STEP. The control port's own, who waits for each step's answer before it reads or frees it
    char[64] wanted             # name of a limit; empty: all that have counters
    uint32_t most               # keys of each counter, 1..LIMIT_KEYS_MAX
    bint begun
    bint more                   # another step is to be asked for
    bint missed                 # no limit that is wanted has a counter
    uint32_t limit_count
    uint32_t top_count
    uint32_t table              # which is walked: 0.. of the journal's counters, then of look-ups
    uint64_t at                 # slot in it
    VelocityTop[VELOCITY_COUNTERS_MAX] tops
    KeyLimit[VELOCITY_LIMITS_MAX] limits
    VelocityBest[VELOCITY_COUNTERS_MAX * LIMIT_KEYS_MAX] best

cdef struct Core                # its fields are in _core.pyx alone

cdef Core* core_open(const CoreSizes* sizes, const uint8_t* identity_key) except NULL
    # Reserves the tables. identity_key: 16 bytes, or NULL where no identifier is looked up (verify). MemoryError.
cdef void core_close(Core* core) noexcept
cdef void core_set_find(Core* core, FindEntry find, void* owner) noexcept nogil
cdef void core_set_full(Core* core, bint full, int64_t free_bytes, int64_t free_bytes_min) noexcept nogil
    # While full, new writes are refused with JOURNAL_FULL; reads and repeats are answered.
cdef void core_describe(const Core* core, SnapshotHead* head) noexcept nogil
    # Everything of a snapshot's head but magic, directory and head_hash. Walks the accounts.
cdef int core_save(const Core* core, const SnapshotHead* head, uint8_t* buffer, SnapshotPut put, void* owner) noexcept nogil
    # The whole state in chunks, SNAPSHOT_END last. buffer: SNAPSHOT_CHUNK_BYTES. 0, or what `put` returned. Only reads the core.
cdef int core_load_begin(Core* core, const SnapshotHead* head) noexcept nogil
    # Into a core just opened. LoadResult; after anything but LOAD_OK the core is spoilt and has to be opened anew.
cdef int core_load(Core* core, const SnapshotHead* head, uint32_t section, const uint8_t* data, uint32_t size) noexcept nogil
    # One chunk, in the order of saving. LoadResult; with SNAPSHOT_END the state is complete and its digest was met.
cdef enum:                      # KeyKind: which of the two key tables
    KEYS_REQUEST = 0            # request ids by sent_time
    KEYS_RECEIPT = 1            # receipt keys by business day
    KEYS_COUNT = 2

cdef KeyTable* core_keys(Core* core, uint32_t kind) noexcept nogil
    # For whoever keeps runs or snapshots of the keys. Nobody calls it: full generations drop out of memory for good.
cdef void core_set_covered(Core* core, uint64_t requests, uint64_t receipts) noexcept nogil
    # Up to which sequences runs hold the keys of every entry; UINT64_MAX (also before the first call): nobody keeps runs.
    # With runs a generation is dropped only when they hold it, and new ids are refused with IDS_BEHIND while there is no room.
cdef bint core_keys_room(Core* core) noexcept nogil
    # Whether core_apply has room for the keys of one more entry. core_execute asks by itself.
cdef int core_remember(Core* core, const uint8_t* entry, uint32_t size) noexcept nogil
    # Counts an entry of the journal as the next sequence and remembers its keys, nothing else. ApplyResult.
cdef const Program* core_program(const Core* core) noexcept nogil
    # The programme in force; NULL before the first PROGRAM entry.
cdef const CoreStats* core_stats(const Core* core) noexcept nogil
cdef const Result2* core_result(const Core* core) noexcept nogil
    # What rules of version 2 made of the last receipt that core_execute has decided; valid until the next one.
cdef void core_list_burn_limits(Core* core) noexcept nogil
    # Adds to that result the largest burn of each wallet.
cdef const Scratch* core_scratch(const Core* core) noexcept nogil
    # Where the shares of that result stand.
cdef Hash128 core_digest(const Core* core) noexcept nogil
cdef Hash128 core_facts(const Core* core) noexcept nogil
    # That digest without the counters of limits.
cdef void core_execute(Core* core, const Command* command, int64_t now_us, uint8_t* entry, Outcome* outcome) noexcept nogil
    # Decides one command at server time now_us and applies what it writes, as sequences stats.sequence + 1 and on.
    # entry: room for COMMAND_ENTRY_BYTES_MAX bytes; afterwards it holds outcome.written entries (written_size bytes) back to back:
    # first an EXPIRE_RESERVATION for each of the member's reservations that were due, last the command's own.
    # Reads and repeats write nothing. core_program must not be NULL.
    # outcome.parked: memory does not reach back far enough; nothing was decided. Ask the runs and execute it again with the answer.
cdef bint core_foresee(const Core* core, const Command* command, Lookup* lookup) noexcept nogil
    # Whether a write that core_prepare has seen will most likely be parked, and with which question. Decides nothing: to ask too much or
    # too little costs time alone.
cdef void core_prepare(Core* core, Command** commands, uint32_t count) noexcept nogil
    # Starts the memory reads of commands that will be executed next, all at once instead of one after another. Changes nothing
    # but the commands' hashes; a command may also be executed without it.
cdef int core_apply(Core* core, const uint8_t* entry, uint32_t size) noexcept nogil
    # Applies an entry of the journal as the next sequence. ApplyResult. After anything but APPLY_OK the state is spoilt.
cdef uint32_t core_tick(Core* core, int64_t now_us, uint8_t* entry) noexcept nogil
    # Posts the next thing that is due at now_us (an expired reservation, a member's expired lots): writes the entry, applies it,
    # returns its size; 0: nothing is due for now. Looks at no more than TICK_ACCOUNTS_MAX accounts a call.
cdef bint core_reservation_due(const Core* core, int64_t now_us) noexcept nogil
    # Whether core_tick would post an expired reservation now.
cdef uint32_t core_write_digest(Core* core, int64_t now_us, uint8_t* entry) noexcept nogil
    # Writes and applies a DIGEST entry; returns its size.
cdef uint32_t core_write_part(Core* core, int64_t now_us, const uint8_t* image, uint32_t image_size, uint32_t offset, uint32_t count,
                              uint8_t* entry) noexcept nogil
    # Writes and applies a part of an image that is larger than IMAGE_INLINE_BYTES_MAX; for an empty journal. 0: it is no image.
cdef uint32_t core_write_program(Core* core, int64_t now_us, const uint8_t* image, uint32_t image_size, const uint8_t* source,
                                 uint32_t source_size, const Slice* told, bint first, uint8_t* entry) noexcept nogil
    # Writes and applies a PROGRAM entry (room for ENTRY_BYTES_MAX), at once; first: with the key check. A larger image was written in parts.
    # told: the end of its PUBLISHED section, where the parts are; size 0: none. 0: the image does not load.
cdef const Program* core_program_by_hash(const Core* core, const uint8_t* hash, uint32_t size) noexcept nogil
    # The programme whose image's hash begins with these bytes, in force or not; NULL: it is not in memory (any more). It stays at least 15
    # minutes behind its time. Of version 2 when its `rules` is not NULL.
cdef void core_set_served(Core* core) noexcept nogil
    # From now on images that nothing leads to are given to whoever publishes (RulesAnswer.retired); else they are freed at once.
cdef uint32_t core_versions(const Core* core, uint32_t from_version, uint64_t* sequences, int64_t* effective_us, uint32_t count) noexcept nogil
    # The versions from this one on (from 1): sequences of their entries and server times from which they are in force. Returns how many. From
    # any thread.
cdef uint32_t core_cases(const Core* core, Case* rows, uint32_t rows_max, uint32_t* changes) noexcept nogil
    # Reviews and challenges that are open, in the order of their entries; from any thread, then core_cases_changed says whether they were
    # changed meanwhile: then they are worth nothing. Returns how many.
cdef bint core_cases_changed(const Core* core, uint32_t changes) noexcept nogil

cdef struct Past                # limits that were not in force when a journal was written, and counters of their own

cdef struct PastEntry:          # what they would have said of one entry
    bint looked_at              # whether limits look at such entries at all; if not, the rest is 0
    bint was_stopped            # limits of then refused it: judged as the command that it was, its points unknown (0)
    int32_t day                 # of the purchase, store time
    uint32_t member             # 0: none
    uint32_t events             # bits, as ImageVelocity.of
    uint32_t answers            # bits by LimitAction, of all limits that it is above
    int64_t earned              # before any cut
    int64_t taken
    int64_t reserved
    int64_t cut                 # of what was earned, by `reduce`
    uint8_t[VELOCITY_LIMITS_MAX] counts     # 1: the entry is one that the limit counts
    uint8_t[VELOCITY_LIMITS_MAX] above      # 1: it is above the limit, also one in shadow

cdef Past* core_past_open(const uint8_t* image, uint32_t size, uint32_t members_max) noexcept nogil
    # Of an image's limits; the rest of it is not asked. NULL: it does not load, or there is no memory.
cdef void core_past_close(Past* past) noexcept nogil
cdef const Program2* core_past_rules(const Past* past) noexcept nogil
cdef int core_judge_past(Core* core, Past* past, const uint8_t* entry, uint32_t size, PastEntry* found) noexcept nogil
    # Judges an entry of a journal as if those limits held, and counts it in their counters unless one refuses it; core is the state before
    # the entry and goes on being the journal's own: core_apply the entry next. Challenges count as passed, rungs are not moved, and look-ups
    # are in no journal. ApplyResult; APPLY_FULL: open it anew with larger members_max.
