# The ledger's state, and the only code that decides and applies (design D3, D5, D12-D18).
#
# Not for bytes on the wire (server/_wire.pyx), disks (ledger/_tail.pyx, ledger/_journal.pyx) or threads (ledger/_engine.pyx).
# Called by ledger/_engine.pyx (live and recovery), ledger/_verifier.pyx (verify), server/_local.pyx (tests, core bench).
#
# (a) decide_* look at the state and write an entry; they change nothing. apply changes the state from an entry's bytes and
#     looks at nothing else. A live command is decide + apply, recovery is apply: the same apply.
# (b) Time, ids and rules enter as data: `now_us` is given, the programme is an image in the journal.
# (c) An expired reservation or lot never counts, whether a tick has posted it or not: a write first settles its member's due
#     reservations, a read computes without them, and lots are judged by their days.
# (d) All tables are reserved at start; nothing here allocates afterwards, except a new programme's image.

from libc.stdint cimport INT64_MAX, UINT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from ledger._atomic cimport load_u32, store_u32
from ledger._arith cimport add_overflow, day_from_civil, day_from_yyyymmdd, div_floor, max_i64, min_i64, month_days, mul_div_floor
from ledger._entry cimport (
    Context, Cursor, EntryView, EntryWriter, LineDetails, context_read, cursor_more, cursor_open, details_next, details_open, entry_begin, entry_finish, entry_view, get_byte, get_bytes,
    get_key, get_signed, get_text, get_varint, put_byte, put_bytes, put_key, put_signed, put_tag, put_tag_text, put_text, put_varint,
    section_begin, section_end, unzigzag, zigzag,
)
from ledger._evaluate cimport (
    CounterChange, DayRow, Facts2, Given, Limits2, NOTICE_UNKNOWN_CATEGORY, NOTICE_UNKNOWN_CHANNEL, NOTICE_UNKNOWN_PROMO_CODE, NOTICE_UNKNOWN_SKU,
    NOTICE_UNKNOWN_STORE, NOTICE_UNKNOWN_TENDER, Notice, REFUSED_ABSURD_AMOUNT, REFUSED_POINTS_OVERFLOW, REFUSED_TOO_MANY_AWARDS,
    REFUSED_TOO_MANY_LINES, REFUSED_TOTAL_DIFFERS, REFUSED_UNKNOWN_STORE, Result2, Scratch, evaluate, list_burn_limits, result_close,
    result_open, scratch_close, scratch_open, window_number,
)
from ledger._hash cimport Hash128, digest_add, digest_sub, fact_hash, fold, key_of_return, short_words, siphash
from ledger._identity cimport identity_hash
from ledger._image cimport (
    CAP_USES, COUNT_MEMBERS, COUNT_MONEY, COUNT_POINTS, COUNT_QUANTITY, COUNT_REGIONS, COUNT_STORES, ENTITLEMENTS_MAX, StoreClass, ImageCampaign, ImageLimit, ImageName, ImageText, ImageVelocity, LIFE2_INACTIVITY, MEASURE_RECEIPTS, MEASURE_SPENT, Program2, SECTION2_CAMPAIGNS, SECTION2_FAVOURITES, SECTION2_LIMITS, SECTION2_VELOCITY, TableRow, ZoneSpan,
    LIMIT_CHALLENGE, LIMIT_REDUCE, LIMIT_REFUSE, LIMIT_REVIEW, LIMIT_SHADOW, RUNG_BLOCKED, RUNG_EXCLUDED, RUNG_LIMITED, OF_BALANCE, OF_BURN, OF_EARN, OF_ENROLL, OF_EVENTS, OF_REFUSAL, OF_RESERVE, OF_RETURN, OF_UNKNOWN_BALANCE, SPEED_EVER, SPEED_SLIDING,
    VELOCITY_COUNTERS_MAX, VELOCITY_GIVES_BACK, VELOCITY_LIMITS_MAX, VELOCITY_VOLATILE,
    SECTION2_ROLLING, SECTION2_SEGMENTS, SECTION2_TEXTS, SECTION2_THRESHOLDS, SECTION2_TIERS, SectionPlace, WINDOW_ANNIVERSARY, WINDOW_LIFETIME, WINDOW_MONTH,
    WINDOW_ROLLING, WINDOW_YEAR, counts_different, first_bit, name_find, table_find_slice, zone_span_at,
)
from ledger._layout cimport *
from ledger._limits cimport *
from ledger._lots cimport (
    Arena, BLOCK_SHIFT, LOT_CLASS_COUNT, Lot, NO_PIECE, arena_close, arena_give, arena_has, arena_open, arena_take, class_for, lot_compare, lot_search,
    units_of,
)
from ledger._programme cimport LOADED_BYTES_MIN, LOADED_HASH_AT, Loaded, RuleTally, loaded_copy, loaded_find, loaded_free, loaded_free_all, loaded_take
from ledger._quote cimport (
    Mac, QUOTE_DISCOUNTS, QUOTE_IMAGE_BYTES, QUOTE_MAC_BYTES, QUOTE_PAID, QUOTE_PARTS, QUOTE_POINTS, QUOTE_STANDING, QUOTE_TOKEN_VERSION,
    QuoteToken, QuoteView, mac_differs, mac_of, mac_open,
)
from ledger._rules cimport Program, program_day, program_day_start_us, program_wallet, zone_span
from ledger._status cimport *
from ledger._table cimport (
    Generation, IDENTIFIER_MEMBER_MASK, IDENTIFIER_TYPE_SHIFT, IdentifierSlot, IdentifierTable, KeySlot, KeyTable, ORDER_NONE, ReservationMap,
    ReservationSlot,
    generation_at, identifiers_add, identifiers_close, identifiers_find, identifiers_open, identifiers_remove, keys_begin_at, keys_close,
    keys_count, keys_drop, keys_find, keys_insert, keys_look, keys_open, keys_put, keys_room, keys_touch, keys_turn, touch, touch_many, range_of,
    reservations_add, reservations_close, reservations_find, reservations_open, reservations_remove, reserve_memory, slot_first, slot_second,
    slot_set_first, slot_set_second, unreserve_memory,
)
from ledger._velocity cimport (
    DISTINCTS_LIMIT, velocity_may_grow, velocity_sweep_all, VELOCITY_CALENDARS, VELOCITY_DAY, VELOCITY_DISTINCTS, VELOCITY_LOADED, VELOCITY_SLIDINGS, VELOCITY_SUMS_BYTES_MAX, VELOCITY_TABLES, Velocity,
    CalendarSlot, SlidingSlot, VelocityHead, VelocityNow, VelocityPlace, VelocityTop, calendar_set, velocity_amount, velocity_dead, velocity_top, distinct_add_at, distinct_with_at, recent_add_at, recent_with_at, sliding_add_at, sliding_bucket, sliding_is_newest, sliding_live, sliding_set, sliding_sum, sliding_used_at, velocity_add, velocity_add_at, velocity_close, velocity_digest,
    velocity_find, velocity_home, velocity_key, velocity_live, velocity_load, velocity_load_sums, velocity_next, velocity_now, velocity_open, velocity_place, velocity_put, velocity_put_sums,
    velocity_record_bytes, velocity_room, velocity_sweep, velocity_lines, velocity_touch_from, velocity_used_at, velocity_window,
)

cdef extern from "_verify.h" nogil:
    void VERIFY(bint condition)

cdef enum:
    CHANGES_MAX = 16_384        # lot changes of one entry: 16 wallets * 400 lots moved, and AWARDS_MAX new ones
    NO_INDEX = 0xFFFFFFFF
    IDENTIFIER_TYPES_MAX = 32   # what IdentifierSlot has room for
    OWNER_HOLD = 0x80000000     # owner of a piece: an index of the pool, not an account number
    MICROSECONDS = 1_000_000
    FACT_ACCOUNT = 1
    FACT_LOT = 2
    FACT_RESERVATION = 3
    FACT_IDENTIFIER = 4
    TIER_NAME_BYTES = 32
    ENTITLEMENT_BYTES = 32
    TIER_COUNTERS_MAX = 8       # counters of tiers: two for each of the four windows that are not rolling
    WINDOWS_KNOWN = 16          # days; a power of two
    PLACES_KNOWN = 1024         # stores and tills; a power of two: 40 KiB
    LIMITS_FIRED_MAX = 256      # as many as a programme has
    BIRTHDAY_REST_DAYS = 365    # a birthday that was changed counts again so many days later

cdef int64_t SENT_TIME_MIN_US = 946_684_800_000_000     # 2000-01-01

cdef uint8_t[16] PUBLIC_KEY     # SipHash key of request ids and receipt keys: zeros, so that any reader can compute them
memset(PUBLIC_KEY, 0, 16)

cdef struct Account:            # 32 bytes
    uint64_t sequence           # of the last entry that changed it
    uint32_t lots               # piece of the arena; NO_PIECE: none
    uint32_t reservations       # first ACTIVE one in the pool; NO_INDEX: none
    int32_t next_expiry_day     # the soonest expiry of a lot with points that are not held; DAY_NEVER: none
    uint16_t lot_count
    uint16_t reservation_count  # ACTIVE ones
    uint8_t lot_class           # size class of `lots`
    uint8_t identifier_count
    uint16_t rung               # from 0
    uint32_t rung_until_s   # UTC seconds since 1970; 0: without end

cdef struct Reservation:        # 72 bytes
    uint64_t id                 # sequence of its RESERVE entry
    int64_t expire_time_us
    int64_t reserved_points     # held at first
    int64_t captured_points
    uint32_t member
    uint32_t holds              # piece of the arena: lots whose `points` are what this reservation holds of them
    uint32_t hold_count
    uint32_t heap_index         # place in the expiry heap while ACTIVE
    uint32_t next               # ACTIVE: next of the member; finished: next finished; free: next free
    uint32_t previous           # ACTIVE: previous of the member; NO_INDEX: first
    uint16_t wallet
    uint8_t hold_class
    uint8_t state               # ReservationState

cdef struct Change:             # what an entry does to one lot
    int64_t points
    int64_t held
    int32_t available_day
    int32_t expiry_day
    uint16_t wallet
    uint16_t funder             # and LOT_SLIDES

cdef struct Sums:               # of one wallet, at one day
    int64_t posted
    int64_t pending
    int64_t reserved

cdef struct Decision:           # scratch of the command being decided
    int64_t now_us
    int64_t business_us
    int32_t today               # programme's day of now
    int32_t business_day        # programme's day of the business time
    uint32_t member             # 0: not known (yet)
    uint32_t named              # bit per identifier (bit 0: the member) that named the account, for CONTEXT_NAMED
    uint16_t wallet
    uint8_t member_hashed       # 1: member_hash is valid
    uint8_t receipt_keyed       # 1: receipt_hash is valid
    Hash128 request
    Hash128 member_hash
    Hash128 receipt_hash
    Hash128 identifiers[IDENTIFIERS_PER_REQUEST_MAX]
    uint32_t change_count
    uint32_t award_count
    uint32_t touched            # bit per wallet
    int64_t earned[WALLETS_MAX]
    int64_t burned[WALLETS_MAX]
    int64_t expired[WALLETS_MAX]
    int64_t adjusted[WALLETS_MAX]   # below 0: taken
    const Award* awards         # award_count of them
    uint64_t sets[4]            # of SetSegments and SetAttributes: their names as bits
    const Program* program      # what decides the receipt: the programme in force, or that of its quote
    bint due                    # reservations of the member are over that nobody has posted as expired: what they hold is free
    bint quoted                 # `token` is of this receipt
    uint8_t changed             # in which parts the receipt differs from its quote
    int64_t points_max          # of what is earned, by limits; INT64_MAX: all
    bint reviewed               # what is earned is pending until somebody approves it
    bint challenge_passed       # for this command
    int64_t sale_minor          # total of the receipt that comes back
    const Context* sale         # of the receipt that is reviewed; NULL: of none
    QuoteToken token

cdef struct DayCache:           # [from, until) is `day`
    int64_t from_us
    int64_t until_us
    int32_t day

cdef struct Fired:              # a limit that an entry is above
    uint16_t limit              # from 0
    uint8_t action              # LimitAction

cdef struct Judged:             # what limits say of a command
    uint32_t fired_count
    Fired[LIMITS_FIRED_MAX] fired   # in the programme's order, without those in shadow
    int32_t refused_by          # limit; -1: none
    int64_t points_max          # of what is earned; INT64_MAX: all
    int64_t cut                 # points that were not given
    bint full                   # there is no room to count
    bint reviewed               # what is earned waits for somebody's word
    uint8_t rung                # the highest that a limit moves the member to; 0: none
    uint32_t rung_until_s   # 0: without end
    uint16_t rung_by        # limit

cdef enum:                      # KeyPart: bits of ImageVelocity.keys, by their numbers
    PART_MEMBER = 0
    PART_IDENTIFIER = 1
    PART_PAYMENT_CARD = 2
    PART_DEVICE = 3
    PART_TILL = 4
    PART_CASHIER = 5
    PART_STORE = 6
    PART_PARTNER = 7
    PART_HOUR = 8
    PART_BASKET = 9
    PART_COUNT = 10
    FAR_KEYS = 1 << PART_MEMBER | 1 << PART_IDENTIFIER | 1 << PART_PAYMENT_CARD | 1 << PART_DEVICE  # whose counters are in no cache

cdef struct Measured:           # of one entry, or of a look-up
    VelocityNow now             # the ledger's time
    int64_t spans_from_s        # the ledger's time rounded up: a rung lasts no shorter than its limit says
    int64_t time_s              # UTC, of the purchase; never after the ledger's
    int32_t offset_s            # of the store's zone
    int32_t day                 # store time
    int32_t[5] windows          # that it lies in, by VelocityKind
    uint32_t events             # bits, as ImageVelocity.of
    uint32_t known              # bit: KeyPart that is known
    uint64_t[PART_COUNT] part
    uint64_t[2] segments
    int64_t earned
    int64_t taken
    int64_t reserved
    int64_t returned            # what was earned by a receipt that comes back
    int64_t money               # minor units
    int64_t quantity            # thousandths, of the line with most
    uint32_t member_print       # fingerprints of what may be counted by kind
    uint32_t store_print
    uint32_t region_print       # 0: of none

cdef struct DayWindows:         # of one day
    int32_t[5] windows          # by VelocityKind

cdef struct KnownPlace:         # a store or till, and its hash
    uint64_t[2] text            # by short_words
    uint64_t hash
    uint32_t part               # ORIGIN_STORE or ORIGIN_TILL; 0: empty
    uint32_t size
    uint32_t version            # of the programme by which the next one is said; 0: of none yet
    uint32_t store_class        # of a store, + 1; 0: the programme does not know it

cdef struct KnownSpan:          # of a zone, the one that was asked for last
    uint32_t version            # of the programme; 0: of none yet
    uint32_t zone
    int64_t begin_us
    int64_t end_us              # INT64_MAX: the last one
    int32_t offset_s

cdef struct KeySet:             # parts of a key that counters are kept by
    uint32_t keys               # bit: KeyPart
    uint8_t[VELOCITY_TABLES] slots      # that such a key may have in each table
    uint64_t counters           # bit: a counter of entries that is kept by it

cdef struct Counting:           # what counting asks of a programme for each command, so that its image need not be read through
    uint32_t keys               # bit: KeyPart that any counter is kept by
    uint32_t gives_back         # OF_* of counters that give back
    bint quantities             # whether any limit asks for them
    uint64_t[OF_EVENTS] of      # by event; bit here and below: a counter of entries
    uint64_t calendars          # sums of calendar windows and lifetime
    uint64_t slidings           # sums of sliding ones
    uint64_t members            # different ones
    uint64_t stores
    uint64_t regions
    uint64_t segmented          # not of all members
    int64_t[VELOCITY_COUNTERS_MAX] least    # bound on a counter; INT64_MAX: none
    uint32_t lone_count
    uint8_t[VELOCITY_LIMITS_MAX] lone       # limits that are no mere bound on a counter, in order
    uint32_t set_count
    KeySet[VELOCITY_COUNTERS_MAX] sets  # every different one
    uint8_t[VELOCITY_COUNTERS_MAX] set_of       # of each counter: index
    uint8_t[VELOCITY_COUNTERS_MAX] table_of     # VelocityTableNumber

cdef enum:
    AHEAD_CALLS = 8             # that are prepared together
    AHEAD_LINES = 48            # of the counters of one of them

cdef struct Ahead:              # what the calls that were prepared will read of counters; only a hint
    uint32_t calls
    uint32_t next               # whose reads are started next
    uint32_t[AHEAD_CALLS] counts
    uintptr_t[AHEAD_CALLS][AHEAD_LINES] lines

cdef struct Counted:            # where one entry counts
    uint64_t takes              # bit: a counter that takes it
    uint64_t above              # bit: one of those that the entry brings above the least bound on it
    uint64_t moves              # of the tables, when `live` was found
    int64_t[VELOCITY_COUNTERS_MAX] amounts  # that it adds to each
    int64_t[VELOCITY_COUNTERS_MAX] used     # what each has before it; different ones with it
    VelocityPlace[VELOCITY_COUNTERS_MAX] places     # where they are looked for
    (VelocityHead*)[VELOCITY_COUNTERS_MAX] live     # where adding is all that is left to do; NULL: not there

include "_core_members.pxi"
include "_core_rules.pxi"

cdef struct Core:
    CoreStats stats
    Hash128 digest
    Account* accounts           # account of member m at [m - 1]
    uint64_t accounts_max
    uint64_t ids_max
    IdentifierTable identifiers
    Profile* profiles           # of member m at [m - 1]
    Arena counters              # of Counter
    Arena days                  # of MemberDay, two a unit, behind a unit that names the owner
    Campaign* campaigns         # sorted by key
    uint32_t campaign_count
    uint64_t unlinked_sequence  # of the last UNLINK entry: an answer that an identifier names nobody waits for it
    uint64_t rung_sequence      # of the last move on the ladder: an answer that tells a rung waits for it
    Arena arena
    KeyTable keys[KEYS_COUNT]   # request ids, receipt keys
    ReservationMap reservation_map
    Reservation* pool
    uint32_t pool_max
    uint32_t pool_used
    uint32_t pool_free          # first free
    uint32_t finished_first     # oldest finished, recycled when the pool is full
    uint32_t finished_last
    uint32_t* heap              # pool indexes by expire time
    uint32_t heap_count
    uint32_t sweep_at           # next account of the rolling sweep, from 0
    Program* program            # in force; NULL before the first PROGRAM entry
    uint32_t program_count      # versions so far
    Programmes programmes
    uint64_t digest_sequence    # of the last DIGEST entry
    uint8_t identity_key[16]
    uint8_t has_key
    uint64_t loaded_profiles
    uint64_t[KEYS_COUNT] loading_first      # first_sequence of the generation of keys that a snapshot is loading; 0: none yet
    uint64_t[KEYS_COUNT] loading_beside     # keys that stood in the filling generation before
    Hash128 begun_with          # key check of the identity key that the journal was begun with
    bint has_begun
    FindEntry find
    void* find_owner
    DayCache now_day
    DayCache other_day
    DayCache age_day
    bint full                   # the journal takes nothing now
    int64_t full_free_bytes
    int64_t full_free_bytes_min
    Decision decision
    Scratch* scratch            # of the evaluator, and what rules of version 2 made of the receipt at hand
    Result2* result
    Facts2 facts
    Limits2 limits
    uint64_t campaign_sequence  # of the last entry that changed a campaign
    Velocity velocity           # counters of limits
    Velocity looked             # those of look-ups: in no entry and no snapshot
    int64_t looked_since_s      # of the first one; 0: there was none
    int32_t looked_since_day
    DayWindows[WINDOWS_KNOWN] windows
    KnownPlace[PLACES_KNOWN] places
    KnownSpan span
    Counting counting           # of the programme in force
    Ahead ahead
    Measured measured           # of the entry at hand
    Counted counted             # of the same entry; with slots that were found when it was judged
    Context measured_context    # of the same entry
    const uint8_t* measured_entry   # whose all three are; NULL: nobody's
    Case* cases                 # CASES_MAX: what is open, by sequence
    uint32_t case_count
    uint32_t case_changes       # odd: they are being changed
    uint64_t blocks_coming      # rows that a snapshot is going to load
    ReservationMap blocks       # by hash of the row: its kind, and the size of a beginning above it
    uint32_t[8][BLOCK_PREFIX_MAX] block_sizes   # rows by kind and size; 0: whole texts
    Judged judged               # what limits say of the command at hand
    QuoteView quote             # of the command just executed
    uint8_t* quote_entry        # COMMAND_ENTRY_BYTES_MAX
    uint8_t quote_key[16]       # made from the identity key
    Mac quote_mac
    Change changes[CHANGES_MAX]


# --- opening ------------------------------------------------------------------------------------------------------

cdef Core* core_open(const CoreSizes* sizes, const uint8_t* identity_key) except NULL:
    cdef Core* core = <Core*>calloc(1, sizeof(Core))
    cdef uint64_t lots
    cdef uint32_t i
    cdef bint ok
    if core == NULL:
        raise MemoryError("the ledger's tables cannot be reserved")
    core.accounts_max = sizes.members_max
    core.ids_max = sizes.ids_max
    core.pool_max = sizes.reservations_max
    core.pool_free = NO_INDEX
    core.finished_first = NO_INDEX
    core.finished_last = NO_INDEX
    if identity_key != NULL:
        memcpy(core.identity_key, identity_key, 16)
        core.has_key = 1
    lots = <uint64_t>sizes.members_max * LOTS_PER_MEMBER_PLANNED + sizes.reservations_max + 8192
    core.accounts = <Account*>reserve_memory(core.accounts_max * sizeof(Account) + 64)
    core.pool = <Reservation*>reserve_memory(<uint64_t>core.pool_max * sizeof(Reservation) + 64)
    core.heap = <uint32_t*>reserve_memory(<uint64_t>core.pool_max * sizeof(uint32_t) + 64)
    ok = core.accounts != NULL and core.pool != NULL and core.heap != NULL
    ok = ok and identifiers_open(&core.identifiers, <uint64_t>sizes.members_max * 3)
    ok = ok and arena_open(&core.arena, lots)
    ok = ok and members_open(core, core.accounts_max)
    ok = ok and programmes_open(&core.programmes)
    ok = ok and limits_open(core) and cases_open(core) and blocks_open(core)
    core.scratch = scratch_open()
    core.result = result_open()
    core.limits.core = core
    core.limits.used = limits_used
    core.limits.campaign_used = limits_campaign_used
    core.stats.counters_room = core.counters.capacity << BLOCK_SHIFT
    for i in range(<uint32_t>VELOCITY_TABLES):
        core.stats.limit_counters_room[i] = core.velocity.tables[i].used_max
    core.stats.days_room = core.days.capacity << BLOCK_SHIFT
    ok = ok and core.scratch != NULL and core.result != NULL and quotes_open(core)
    ok = ok and keys_open(&core.keys[KEYS_REQUEST], sizes.ids_max)
    ok = ok and keys_open(&core.keys[KEYS_RECEIPT], sizes.ids_max)
    ok = ok and reservations_open(&core.reservation_map, core.pool_max)
    if not ok:
        core_close(core)
        raise MemoryError("the ledger's tables cannot be reserved: use smaller --members-max or --ids-max")
    return core


cdef void core_close(Core* core) noexcept:
    if core == NULL:
        return
    unreserve_memory(core.accounts, core.accounts_max * sizeof(Account) + 64)
    unreserve_memory(core.pool, <uint64_t>core.pool_max * sizeof(Reservation) + 64)
    unreserve_memory(core.heap, <uint64_t>core.pool_max * sizeof(uint32_t) + 64)
    identifiers_close(&core.identifiers)
    arena_close(&core.arena)
    members_close(core)
    scratch_close(core.scratch)
    result_close(core.result)
    unreserve_memory(core.quote_entry, COMMAND_ENTRY_BYTES_MAX)
    keys_close(&core.keys[KEYS_REQUEST])
    keys_close(&core.keys[KEYS_RECEIPT])
    reservations_close(&core.reservation_map)
    programmes_close(&core.programmes)
    velocity_close(&core.velocity)
    velocity_close(&core.looked)
    if core.blocks.slots != NULL:
        reservations_close(&core.blocks)
    unreserve_memory(core.cases, <uint64_t>CASES_MAX * sizeof(Case))
    free(core)


cdef void core_set_find(Core* core, FindEntry find, void* owner) noexcept nogil:
    core.find = find
    core.find_owner = owner


cdef void core_set_full(Core* core, bint full, int64_t free_bytes, int64_t free_bytes_min) noexcept nogil:
    core.full = full
    core.full_free_bytes = free_bytes
    core.full_free_bytes_min = free_bytes_min


cdef KeyTable* core_keys(Core* core, uint32_t kind) noexcept nogil:
    return &core.keys[kind]


cdef void core_set_covered(Core* core, uint64_t requests, uint64_t receipts) noexcept nogil:
    core.keys[KEYS_REQUEST].covered = requests
    core.keys[KEYS_RECEIPT].covered = receipts


cdef bint core_keys_room(Core* core) noexcept nogil:
    cdef uint64_t dropped = core.keys[KEYS_REQUEST].dropped + core.keys[KEYS_RECEIPT].dropped
    cdef bint room = keys_room(&core.keys[KEYS_REQUEST]) and keys_room(&core.keys[KEYS_RECEIPT])
    if core.keys[KEYS_REQUEST].dropped + core.keys[KEYS_RECEIPT].dropped != dropped:
        count_keys(core)
    return room


cdef inline void count_keys(Core* core) noexcept nogil:
    core.stats.request_ids = keys_count(&core.keys[KEYS_REQUEST])
    core.stats.receipt_keys = keys_count(&core.keys[KEYS_RECEIPT])
    core.stats.bytes_request_ids = core.stats.request_ids * sizeof(KeySlot)
    core.stats.bytes_receipt_keys = core.stats.receipt_keys * sizeof(KeySlot)


cdef const Program* core_program(const Core* core) noexcept nogil:
    return core.program


cdef const CoreStats* core_stats(const Core* core) noexcept nogil:
    return &core.stats


cdef const Result2* core_result(const Core* core) noexcept nogil:
    return core.result


cdef void core_list_burn_limits(Core* core) noexcept nogil:
    list_burn_limits(core.scratch)


cdef const Scratch* core_scratch(const Core* core) noexcept nogil:
    return core.scratch


cdef Hash128 core_digest(const Core* core) noexcept nogil:
    # As of the last entry.
    return digest_at(core, core.stats.time_us)


cdef Hash128 core_facts(const Core* core) noexcept nogil:
    return core.digest


cdef int32_t day_of(Core* core, DayCache* cache, int64_t time_us) noexcept nogil:
    # The programme's day, from the cache while the day lasts.
    if time_us < cache.from_us or time_us >= cache.until_us:
        cache.day = program_day(core.program, time_us)
        cache.from_us = program_day_start_us(core.program, cache.day)
        cache.until_us = program_day_start_us(core.program, cache.day + 1)
    return cache.day


# --- facts of the digest ------------------------------------------------------------------------------------------

cdef Hash128 account_fact(const Account* account, uint32_t member) noexcept nogil:
    return fact_hash(FACT_ACCOUNT, member, account.sequence, account.identifier_count, account.rung, account.rung_until_s)


cdef Hash128 lot_fact(const Lot* lot, uint32_t member) noexcept nogil:
    return fact_hash(FACT_LOT, member, lot.wallet | <uint64_t>lot.funder << 16,
                     <uint32_t>lot.available_day | <uint64_t><uint32_t>lot.expiry_day << 32,
                     <uint64_t>lot.points, <uint64_t>lot.held)


cdef Hash128 reservation_fact(const Reservation* reservation) noexcept nogil:
    return fact_hash(FACT_RESERVATION, reservation.member, reservation.id, reservation.wallet,
                     <uint64_t>reservation.reserved_points, <uint64_t>reservation.expire_time_us)


# --- the expiry heap of reservations: by expire time, then id -------------------------------------------------------

cdef bint heap_less(const Core* core, uint32_t a, uint32_t b) noexcept nogil:
    cdef const Reservation* left = &core.pool[a]
    cdef const Reservation* right = &core.pool[b]
    if left.expire_time_us != right.expire_time_us:
        return left.expire_time_us < right.expire_time_us
    return left.id < right.id


cdef void heap_set(Core* core, uint32_t at, uint32_t index) noexcept nogil:
    core.heap[at] = index
    core.pool[index].heap_index = at


cdef void heap_up(Core* core, uint32_t at) noexcept nogil:
    cdef uint32_t index = core.heap[at], parent
    while at > 0:
        parent = (at - 1) >> 1
        if not heap_less(core, index, core.heap[parent]):
            break
        heap_set(core, at, core.heap[parent])
        at = parent
    heap_set(core, at, index)


cdef void heap_down(Core* core, uint32_t at) noexcept nogil:
    cdef uint32_t index = core.heap[at], child
    while True:
        child = 2 * at + 1
        if child >= core.heap_count:
            break
        if child + 1 < core.heap_count and heap_less(core, core.heap[child + 1], core.heap[child]):
            child += 1
        if not heap_less(core, core.heap[child], index):
            break
        heap_set(core, at, core.heap[child])
        at = child
    heap_set(core, at, index)


cdef void heap_remove(Core* core, uint32_t at) noexcept nogil:
    cdef uint32_t last
    VERIFY(at < core.heap_count)
    core.heap_count -= 1
    if at == core.heap_count:
        return
    last = core.heap[core.heap_count]
    heap_set(core, at, last)
    heap_up(core, at)
    heap_down(core, core.pool[last].heap_index)


# --- balances -----------------------------------------------------------------------------------------------------

cdef void sums_add(Sums* sums, int32_t today, int32_t available_day, int32_t expiry_day, int64_t points, int64_t held) noexcept nogil:
    # What a lot (or a change of one) adds to its wallet at `today`.
    sums.reserved += held
    if expiry_day <= today:
        sums.posted += held
    else:
        sums.posted += points
        if available_day > today:
            sums.pending += points - held


cdef Sums wallet_sums(const Core* core, const Account* account, uint16_t wallet, int32_t today) noexcept nogil:
    cdef Sums sums
    cdef const Lot* lots = &core.arena.lots[account.lots]
    cdef uint32_t i
    memset(&sums, 0, sizeof(Sums))
    for i in range(account.lot_count):
        if lots[i].wallet == wallet:
            sums_add(&sums, today, lots[i].available_day, lots[i].expiry_day, lots[i].points, lots[i].held)
    return sums


cdef int64_t due_held(const Core* core, const Account* account, const Lot* lot, int64_t now_us) noexcept nogil:
    # Points of this lot that are held by reservations whose time is over but whose expiry is not posted yet.
    cdef uint32_t index = account.reservations, i
    cdef const Reservation* reservation
    cdef const Lot* hold
    cdef int64_t held = 0
    while index != NO_INDEX:
        reservation = &core.pool[index]
        if reservation.expire_time_us <= now_us:
            for i in range(reservation.hold_count):
                hold = &core.arena.lots[reservation.holds + i]
                if (hold.wallet == lot.wallet and hold.expiry_day == lot.expiry_day
                        and hold.available_day == lot.available_day and hold.funder == lot.funder):
                    held += hold.points
        index = reservation.next
    return held


cdef inline int64_t held_of(const Core* core, const Decision* d, const Account* account, const Lot* lot) noexcept nogil:
    # What reservations hold of a lot at the moment of the decision.
    return lot.held - due_held(core, account, lot, d.now_us) if d.due else lot.held


cdef bint core_reservation_due(const Core* core, int64_t now_us) noexcept nogil:
    return core.heap_count != 0 and core.pool[core.heap[0]].expire_time_us <= now_us


cdef bint reservations_due(const Core* core, const Account* account, int64_t now_us) noexcept nogil:
    return account.reservation_count != 0 and core_reservation_due(core, now_us)


cdef void read_balance(Core* core, const Command* command, int64_t now_us, Outcome* outcome) noexcept nogil:
    cdef Decision* d = &core.decision
    cdef BalanceView* balance = &outcome.balance
    cdef WalletView* view
    cdef const Account* account
    cdef const Lot* lot
    cdef Sums sums
    cdef int64_t held, free_points
    cdef int32_t today
    cdef int wallet = -1
    cdef uint32_t i, w, first = 0, last = core.program.wallet_count
    cdef bint due
    if command.hashed & HASHED_MEMBER:
        d.member_hash = command.member_hash
    elif not check_member(core, &command.member, -1, &d.member_hash, outcome):
        return
    if command.given & GIVEN_WALLET:
        if not check_text(command.wallet, 1, WALLET_NAME_BYTES_MAX, FIELD_WALLET, outcome):
            return
        wallet = program_wallet(core.program, command.wallet)
        if wallet < 0:
            refuse_text(outcome, STATUS_WALLET_NOT_FOUND, FIELD_WALLET, command.wallet)
            return
        first = <uint32_t>wallet
        last = first + 1
    d.member = find_member(core, &command.member, d.member_hash)
    if not look_up_allowed(core, command, now_us, d.member, d.member_hash):
        outcome.status = STATUS_VELOCITY_EXCEEDED
        return
    if d.member == 0:
        refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
        return
    account = &core.accounts[d.member - 1]
    today = day_of(core, &core.now_day, now_us)
    due = reservations_due(core, account, now_us)
    balance.member = d.member
    balance.sequence = account.sequence
    balance.read_time_us = now_us
    balance.rung = rung_at(account, now_us)
    balance.rung_until_s = account.rung_until_s if balance.rung != RUNG_OK else 0
    balance.wallet_count = last - first
    for w in range(first, last):
        view = &balance.wallets[w - first]
        view.wallet = <uint16_t>w
        view.expiry_count = 0
        memset(&sums, 0, sizeof(Sums))
        for i in range(account.lot_count):
            lot = &core.arena.lots[account.lots + i]
            if lot.wallet != w:
                continue
            held = lot.held - due_held(core, account, lot, now_us) if due else lot.held
            sums_add(&sums, today, lot.available_day, lot.expiry_day, lot.points, held)
            free_points = lot.points - held
            if lot.expiry_day > today and lot.expiry_day != DAY_NEVER and free_points > 0:
                # Sorted by expiry: lots of the same day follow each other.
                if view.expiry_count > 0 and view.expiry_time_us[view.expiry_count - 1] == lot.expiry_day:
                    view.expiry_points[view.expiry_count - 1] += free_points
                elif view.expiry_count < NEXT_EXPIRIES_MAX:
                    view.expiry_time_us[view.expiry_count] = lot.expiry_day
                    view.expiry_points[view.expiry_count] = free_points
                    view.expiry_count += 1
        for i in range(view.expiry_count):
            view.expiry_time_us[i] = program_day_start_us(core.program, <int32_t>view.expiry_time_us[i])
        view.posted_points = sums.posted
        view.pending_points = sums.pending
        view.reserved_points = sums.reserved
    # A refusal that moved the member on the ladder is not in its sequence.
    outcome.wait_sequence = account.sequence
    if account.rung != RUNG_OK and core.rung_sequence > account.sequence:
        outcome.wait_sequence = core.rung_sequence


# --- refusals -----------------------------------------------------------------------------------------------------

cdef void refuse(Outcome* outcome, uint16_t status, int64_t a, int64_t b) noexcept nogil:
    outcome.status = status
    outcome.a = a
    outcome.b = b


cdef void refuse_field(Outcome* outcome, uint16_t status, uint16_t field) noexcept nogil:
    outcome.status = status
    outcome.field = field


cdef void refuse_not_found(const Core* core, uint16_t status, uint16_t field, Outcome* outcome) noexcept nogil:
    # That something names nobody may be the work of an unlink that is not durable yet.
    refuse_field(outcome, status, field)
    outcome.wait_sequence = core.unlinked_sequence


cdef bint refuse_number(Outcome* outcome, uint16_t field, int64_t value) noexcept nogil:
    outcome.status = STATUS_FIELD_INVALID
    outcome.field = field
    outcome.value_kind = VALUE_NUMBER
    outcome.value = value
    return False


cdef bint refuse_text(Outcome* outcome, uint16_t status, uint16_t field, Slice text) noexcept nogil:
    outcome.status = status
    outcome.field = field
    outcome.value_kind = VALUE_TEXT
    outcome.text = text
    return False


# --- what a request may say: checked before anything is looked up ---------------------------------------------------

cdef bint check_text(Slice text, uint32_t low, uint32_t high, uint16_t field, Outcome* outcome) noexcept nogil:
    if text.size < low or text.size > high:
        return refuse_text(outcome, STATUS_FIELD_INVALID, field, text)
    return True


cdef bint check_request_id(Slice text, Outcome* outcome) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t c
    if text.size < REQUEST_ID_BYTES_MIN or text.size > REQUEST_ID_BYTES_MAX:
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_REQUEST_ID, text)
    for i in range(text.size):
        c = text.data[i]
        if not (0x61 <= c <= 0x7A or 0x41 <= c <= 0x5A or 0x30 <= c <= 0x3A or c == 0x2E or c == 0x5F or c == 0x2D):
            return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_REQUEST_ID, text)
    return True


cdef uint16_t member_field(uint8_t kind) noexcept nogil:
    if kind == MEMBER_BY_ID:
        return FIELD_MEMBER_ID
    if kind == MEMBER_BY_CARD:
        return FIELD_MEMBER_CARD
    if kind == MEMBER_BY_PHONE:
        return FIELD_MEMBER_PHONE
    if kind == MEMBER_BY_EMAIL:
        return FIELD_MEMBER_EMAIL
    if kind == MEMBER_BY_APP:
        return FIELD_MEMBER_APP
    return FIELD_MEMBER


cdef uint16_t identifier_field(uint8_t kind) noexcept nogil:
    if kind == MEMBER_BY_CARD:
        return FIELD_IDENTIFIER_CARD
    if kind == MEMBER_BY_PHONE:
        return FIELD_IDENTIFIER_PHONE
    if kind == MEMBER_BY_EMAIL:
        return FIELD_IDENTIFIER_EMAIL
    if kind == MEMBER_BY_APP:
        return FIELD_IDENTIFIER_APP
    return FIELD_IDENTIFIER


cdef bint check_identifier(Core* core, const MemberRef* identifier, Hash128* hashed, Outcome* outcome) noexcept nogil:
    # Of LinkIdentifier and UnlinkIdentifier.
    if identifier.kind == MEMBER_BY_ID:
        return refuse_number(outcome, FIELD_IDENTIFIER, identifier.member_id)
    if identifier.kind == MEMBER_NONE:
        refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_IDENTIFIER)
        return False
    if not identity_hash(core.identity_key, identifier.kind, identifier.text, hashed):
        return refuse_text(outcome, STATUS_FIELD_INVALID, identifier_field(identifier.kind), identifier.text)
    return True


cdef bint check_by_hand(const Command* command, Outcome* outcome) noexcept nogil:
    # Who and why.
    return (check_text(command.operator_name, 1, OPERATOR_BYTES_MAX, FIELD_OPERATOR, outcome)
            and check_text(command.reason, 1, REASON_BYTES_MAX, FIELD_REASON, outcome))


cdef bint check_member(Core* core, const MemberRef* member, int32_t index, Hash128* hashed, Outcome* outcome) noexcept nogil:
    # index >= 0: an element of EnrollMember's identifiers.
    if member.kind == MEMBER_BY_ID:
        if member.member_id < 1 or member.member_id > 2147483647:
            outcome.index = index
            return refuse_number(outcome, FIELD_MEMBER_ID, member.member_id)
        return True
    if member.kind == MEMBER_NONE or not identity_hash(core.identity_key, member.kind, member.text, hashed):
        outcome.index = index
        outcome.status = STATUS_FIELD_INVALID
        outcome.field = member_field(member.kind)
        if member.kind != MEMBER_NONE:
            outcome.value_kind = VALUE_TEXT
            outcome.text = member.text
        return False
    return True


cdef bint check_quoted_key(const Command* command, Outcome* outcome) noexcept nogil:
    # As much of it as the till knows.
    if command.business_day != 0 and day_from_yyyymmdd(command.business_day) < 0:
        return refuse_number(outcome, FIELD_RECEIPT_BUSINESS_DAY, command.business_day)
    return (check_text(command.store, 0, STORE_BYTES_MAX, FIELD_RECEIPT_STORE, outcome)
            and check_text(command.till, 0, TILL_BYTES_MAX, FIELD_RECEIPT_TILL, outcome)
            and check_text(command.number, 0, RECEIPT_NUMBER_BYTES_MAX, FIELD_RECEIPT_NUMBER, outcome))


cdef bint check_receipt_key(const Command* command, bint in_receipt, Decision* d, Outcome* outcome) noexcept nogil:
    if not check_text(command.store, 1, STORE_BYTES_MAX, FIELD_RECEIPT_STORE if in_receipt else FIELD_KEY_STORE, outcome):
        return False
    if not check_text(command.till, 1, TILL_BYTES_MAX, FIELD_RECEIPT_TILL if in_receipt else FIELD_KEY_TILL, outcome):
        return False
    if day_from_yyyymmdd(command.business_day) < 0:
        return refuse_number(outcome, FIELD_RECEIPT_BUSINESS_DAY if in_receipt else FIELD_KEY_BUSINESS_DAY, command.business_day)
    if not check_text(command.number, 1, RECEIPT_NUMBER_BYTES_MAX, FIELD_RECEIPT_NUMBER if in_receipt else FIELD_KEY_NUMBER, outcome):
        return False
    if command.hashed & HASHED_RECEIPT:
        d.receipt_hash = command.receipt_hash
    else:
        d.receipt_hash = receipt_key_hash(command.business_day, command.store, command.till, command.number)
    d.receipt_keyed = 1
    return True


cdef Hash128 receipt_key_hash(int32_t business_day, Slice store, Slice till, Slice number) noexcept nogil:
    # Lengths before the texts, so that no two keys share bytes.
    cdef uint8_t buffer[STORE_BYTES_MAX + TILL_BYTES_MAX + RECEIPT_NUMBER_BYTES_MAX + 8]
    cdef uint32_t at = 4
    memcpy(buffer, &business_day, 4)
    buffer[at] = <uint8_t>store.size
    memcpy(buffer + at + 1, store.data, store.size)
    at += 1 + store.size
    buffer[at] = <uint8_t>till.size
    memcpy(buffer + at + 1, till.data, till.size)
    at += 1 + till.size
    buffer[at] = <uint8_t>number.size
    memcpy(buffer + at + 1, number.data, number.size)
    at += 1 + number.size
    return siphash(PUBLIC_KEY, buffer, at)


cdef bint check_receipt(const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # Whether the lines come to the total is the programme's to say: it has a tolerance.
    cdef const Line* line
    cdef uint32_t i
    if not command.given & GIVEN_RECEIPT:
        refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_RECEIPT)
        return False
    if command.method == METHOD_QUOTE:
        if not check_quoted_key(command, outcome):
            return False
    elif not command.given & GIVEN_RECEIPT_KEY:
        refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_RECEIPT_KEY)
        return False
    elif not check_receipt_key(command, True, d, outcome):
        return False
    if command.total_minor < 0 or command.total_minor > AMOUNT_MINOR_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_TOTAL_MINOR, command.total_minor)
    if command.line_count > LINES_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_LINES, command.line_count)
    for i in range(command.line_count):
        line = &command.lines[i]
        outcome.index = <int32_t>i
        if not check_text(line.sku, 1, SKU_BYTES_MAX, FIELD_LINE_SKU, outcome):
            return False
        if not check_text(line.category, 0, CATEGORY_BYTES_MAX, FIELD_LINE_CATEGORY, outcome):
            return False
        if line.quantity_milli < 0 or line.quantity_milli > QUANTITY_MILLI_MAX:
            return refuse_number(outcome, FIELD_LINE_QUANTITY_MILLI, line.quantity_milli)
        if line.amount_minor < 0 or line.amount_minor > AMOUNT_MINOR_MAX:
            return refuse_number(outcome, FIELD_LINE_AMOUNT_MINOR, line.amount_minor)
        if line.regular_minor < 0 or line.regular_minor > AMOUNT_MINOR_MAX:
            return refuse_number(outcome, FIELD_LINE_REGULAR_AMOUNT_MINOR, line.regular_minor)
    outcome.index = -1
    return check_receipt_end(command, outcome)


cdef bint check_receipt_end(const Command* command, Outcome* outcome) noexcept nogil:
    # Tenders, channel, promo codes, token.
    cdef uint32_t i
    if command.tender_count > TENDERS_PER_RECEIPT_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_TENDERS, command.tender_count)
    for i in range(command.tender_count):
        outcome.index = <int32_t>i
        if not check_text(command.tenders[i].name, 1, TENDER_BYTES_MAX, FIELD_RECEIPT_TENDERS_NAME, outcome):
            return False
        if command.tenders[i].amount_minor < 0 or command.tenders[i].amount_minor > AMOUNT_MINOR_MAX:
            return refuse_number(outcome, FIELD_RECEIPT_TENDERS_AMOUNT_MINOR, command.tenders[i].amount_minor)
    outcome.index = -1
    if not check_text(command.channel, 0, CHANNEL_BYTES_MAX, FIELD_RECEIPT_CHANNEL, outcome):
        return False
    if command.promo_code_count > PROMO_CODES_PER_RECEIPT_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_PROMO_CODES, command.promo_code_count)
    for i in range(command.promo_code_count):
        outcome.index = <int32_t>i
        if not check_text(command.promo_codes[i], 1, PROMO_CODE_BYTES_MAX, FIELD_RECEIPT_PROMO_CODES, outcome):
            return False
    outcome.index = -1
    if command.quote_token.size != 0 and (command.quote_token.size != QUOTE_TOKEN_BYTES or command.method == METHOD_QUOTE):
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_RECEIPT_QUOTE_TOKEN, command.quote_token)
    if command.given & GIVEN_ONLY_AS_QUOTED and command.quote_token.size == 0:
        return refuse_number(outcome, FIELD_RECEIPT_ONLY_AS_QUOTED, 1)
    return True


cdef bint check_adjustment(const Command* command, Outcome* outcome) noexcept nogil:
    if command.given & GIVEN_WALLET and not check_text(command.wallet, 1, WALLET_NAME_BYTES_MAX, FIELD_WALLET, outcome):
        return False
    if command.points == 0 or command.points < -POINTS_MAX or command.points > POINTS_MAX:
        return refuse_number(outcome, FIELD_ADJUST_POINTS, command.points)
    if command.expiry_day != 0 and (command.points < 0 or day_from_yyyymmdd(command.expiry_day) < 0):
        return refuse_number(outcome, FIELD_EXPIRY_DAY, command.expiry_day)
    return check_by_hand(command, outcome)


cdef bint check_request(const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # What names a write.
    if not check_request_id(command.request_id, outcome):
        return False
    if command.hashed & HASHED_REQUEST:
        d.request = command.request_hash
    else:
        d.request = siphash(PUBLIC_KEY, command.request_id.data, command.request_id.size)
    if not command.given & GIVEN_SENT_TIME or command.sent_time_us < SENT_TIME_MIN_US:
        if command.given & GIVEN_SENT_TIME:
            return refuse_number(outcome, FIELD_SENT_TIME, command.sent_time_us)
        refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_SENT_TIME)
        return False
    return True


cdef bint check_fields(Core* core, const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # Everything that can be told from the request alone, in the order of its fields.
    cdef uint8_t method = command.method
    cdef uint32_t i, j
    if method != METHOD_QUOTE and not check_request(command, d, outcome):
        return False
    if method == METHOD_ENROLL:
        if command.identifier_count < 1 or command.identifier_count > IDENTIFIERS_PER_REQUEST_MAX:
            return refuse_number(outcome, FIELD_IDENTIFIERS, command.identifier_count)
        for i in range(command.identifier_count):
            if not check_member(core, &command.identifiers[i], <int32_t>i, &d.identifiers[i], outcome):
                return False
            if command.identifiers[i].kind == MEMBER_BY_ID:
                if i != 0:
                    outcome.index = <int32_t>i
                    refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_IDENTIFIERS)
                    return False
                continue
            for j in range(i):
                if (command.identifiers[j].kind != MEMBER_BY_ID and d.identifiers[i].lo == d.identifiers[j].lo
                        and d.identifiers[i].hi == d.identifiers[j].hi):
                    outcome.index = <int32_t>i
                    refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_IDENTIFIERS)
                    return False
        return True
    if method == METHOD_UNLINK:
        return check_identifier(core, &command.identifiers[0], &d.identifiers[0], outcome) and check_by_hand(command, outcome)
    if decides_case(method):
        return check_case(command, outcome)
    if method == METHOD_CHANGE_BLOCKS:
        return check_blocks(core, command, outcome)
    if method == METHOD_RETURN:
        return check_return(command, d, outcome)
    if command.hashed & HASHED_MEMBER:
        d.member_hash = command.member_hash
    elif not check_member(core, &command.member, -1, &d.member_hash, outcome):
        return False
    if method == METHOD_LINK:
        return check_identifier(core, &command.identifiers[0], &d.identifiers[0], outcome) and check_by_hand(command, outcome)
    if method == METHOD_ADJUST:
        return check_adjustment(command, outcome)
    if sets_member(method):
        return check_birthday(command, outcome) and check_by_hand(command, outcome)
    if method == METHOD_SET_RUNG:
        return check_rung(command, outcome) and check_by_hand(command, outcome)
    if earns_by(method):
        if not check_receipt(command, d, outcome):
            return False
    if method == METHOD_BURN or method == METHOD_RESERVE or command.payment == PAYMENT_BURN:
        if command.given & GIVEN_WALLET and not check_text(command.wallet, 1, WALLET_NAME_BYTES_MAX, FIELD_WALLET, outcome):
            return False
        if command.points < 1 or command.points > POINTS_MAX:
            return refuse_number(outcome, FIELD_POINTS, command.points)
    if method == METHOD_RESERVE and command.given & GIVEN_TTL:
        if command.ttl_us < <int64_t>TTL_S_MIN * MICROSECONDS or command.ttl_us > <int64_t>TTL_S_MAX * MICROSECONDS:
            return refuse_number(outcome, FIELD_TTL, command.ttl_us)
    if method == METHOD_CAPTURE or method == METHOD_RELEASE or command.payment == PAYMENT_CAPTURE:
        if command.reservation_id < 1:
            return refuse_number(outcome, FIELD_RESERVATION_ID, command.reservation_id)
    if method == METHOD_CAPTURE or command.payment == PAYMENT_CAPTURE:
        if command.points < 0 or command.points > POINTS_MAX:
            return refuse_number(outcome, FIELD_CAPTURE_POINTS, command.points)
    if (method == METHOD_BURN or method == METHOD_CAPTURE) and command.given & GIVEN_RECEIPT_KEY:
        return check_receipt_key(command, False, d, outcome)
    return True


cdef bint check_world(Core* core, const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # What depends on the clock and the programme; a repeat is answered before this.
    cdef bint in_receipt = earns_by(command.method)
    cdef int64_t ahead = d.now_us + <int64_t>CLOCK_AHEAD_S_MAX * MICROSECONDS
    cdef int wallet
    cdef int32_t day
    if command.given & GIVEN_SENT_TIME and command.sent_time_us > ahead:
        return refuse_number(outcome, FIELD_SENT_TIME, command.sent_time_us)
    d.business_us = d.now_us
    if command.given & GIVEN_BUSINESS_TIME:
        d.business_us = command.business_time_us
        if d.business_us > ahead or d.business_us < d.now_us - core.program.max_age_us:
            return refuse_number(outcome, FIELD_RECEIPT_PURCHASE_TIME if in_receipt else FIELD_PURCHASE_TIME, d.business_us)
    d.business_day = day_of(core, &core.other_day, d.business_us)
    d.today = day_of(core, &core.now_day, d.now_us)
    if d.receipt_keyed:
        # A day far ahead would make every later receipt look older than memory reaches.
        day = day_from_yyyymmdd(command.business_day)
        if day > d.today + 1 or (command.method != METHOD_RETURN and day < day_of(core, &core.age_day, d.now_us - core.program.max_age_us) - 1):
            return refuse_number(outcome, FIELD_RECEIPT_BUSINESS_DAY if in_receipt else FIELD_KEY_BUSINESS_DAY, command.business_day)
    if in_receipt and (command.currency.size != 3 or memcmp(command.currency.data, core.program.currency, 3) != 0):
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_RECEIPT_CURRENCY_CODE, command.currency)
    if command.method == METHOD_ADJUST and command.expiry_day != 0 and day_from_yyyymmdd(command.expiry_day) <= d.today:
        return refuse_number(outcome, FIELD_EXPIRY_DAY, command.expiry_day)
    if command.given & GIVEN_WALLET:
        wallet = program_wallet(core.program, command.wallet)
        if wallet < 0:
            return refuse_text(outcome, STATUS_WALLET_NOT_FOUND, FIELD_WALLET, command.wallet)
        d.wallet = <uint16_t>wallet
    if sets_member(command.method):
        return check_sets(core, command, d, outcome)
    return True


cdef uint32_t find_member(const Core* core, const MemberRef* member, Hash128 hashed) noexcept nogil:
    # Account number, or 0.
    if member.kind == MEMBER_BY_ID:
        return <uint32_t>member.member_id if <uint64_t>member.member_id <= core.stats.members else 0
    return identifiers_find(&core.identifiers, hashed)


# --- repeats ------------------------------------------------------------------------------------------------------

cdef bint text_equal(Slice a, Slice b) noexcept nogil:
    return a.size == b.size and (a.size == 0 or memcmp(a.data, b.data, a.size) == 0)


cdef uint8_t kind_of(uint8_t method) noexcept nogil:
    # The first seven writes have the numbers of their kinds.
    if method == METHOD_ADJUST:
        return KIND_ADJUST
    if method == METHOD_LINK:
        return KIND_LINK
    if method == METHOD_UNLINK:
        return KIND_UNLINK
    if method == METHOD_SET_SEGMENTS:
        return KIND_SET_SEGMENTS
    if method == METHOD_SET_ATTRIBUTES:
        return KIND_SET_ATTRIBUTES
    if method == METHOD_RULES_ORDER:
        return KIND_PROGRAM
    if method == METHOD_SET_RUNG:
        return KIND_SET_RUNG
    if method == METHOD_DECIDE_REVIEW:
        return KIND_DECIDE_REVIEW
    if method == METHOD_ANSWER_CHALLENGE:
        return KIND_ANSWER_CHALLENGE
    if method == METHOD_CHANGE_BLOCKS:
        return KIND_CHANGE_BLOCKS
    if method == METHOD_RETURN:
        return KIND_RETURN
    return method


cdef bint sets_member(uint8_t method) noexcept nogil:
    return method == METHOD_SET_SEGMENTS or method == METHOD_SET_ATTRIBUTES


cdef bint by_hand(uint8_t method) noexcept nogil:
    return METHOD_ADJUST <= method <= METHOD_UNLINK or sets_member(method) or method == METHOD_SET_RUNG or method == METHOD_DECIDE_REVIEW or method == METHOD_CHANGE_BLOCKS


cdef bint is_write(uint8_t method) noexcept nogil:
    return METHOD_EARN <= method <= METHOD_ENROLL or by_hand(method) or method == METHOD_ANSWER_CHALLENGE or method == METHOD_RETURN


cdef inline bint decides_case(uint8_t method) noexcept nogil:
    return method == METHOD_DECIDE_REVIEW or method == METHOD_ANSWER_CHALLENGE


cdef inline bint names_member(uint8_t method) noexcept nogil:
    # Whether a write says `member`.
    return not (method == METHOD_ENROLL or method == METHOD_UNLINK or method == METHOD_CHANGE_BLOCKS or method == METHOD_RETURN or decides_case(method))


cdef uint16_t differing_receipt_key(const Command* command, const Context* context, bint in_receipt) noexcept nogil:
    # In which field the receipt keys differ; 0: in none.
    cdef bint keyed = command.given & GIVEN_RECEIPT_KEY and command.method != METHOD_RESERVE and command.method != METHOD_RELEASE
    if not keyed and context.store.data == NULL:
        return 0
    if not keyed or not text_equal(context.store, command.store):
        return FIELD_RECEIPT_STORE if in_receipt else FIELD_KEY_STORE
    if not text_equal(context.till, command.till):
        return FIELD_RECEIPT_TILL if in_receipt else FIELD_KEY_TILL
    if context.values[CONTEXT_BUSINESS_DAY] != command.business_day:
        return FIELD_RECEIPT_BUSINESS_DAY if in_receipt else FIELD_KEY_BUSINESS_DAY
    if not text_equal(context.number, command.number):
        return FIELD_RECEIPT_NUMBER if in_receipt else FIELD_KEY_NUMBER
    return 0


cdef bint differs_in_time(const Command* command, const Context* context, int64_t entry_us) noexcept nogil:
    # Whether the business times differ.
    cdef bint given = command.given & GIVEN_BUSINESS_TIME != 0
    if given != (context.given >> CONTEXT_BUSINESS_TIME & 1):
        return True
    return given and context.values[CONTEXT_BUSINESS_TIME] != command.business_time_us - entry_us


cdef uint16_t differing_receipt_end(const Command* command, const Slice* section) noexcept nogil:
    # In which of tenders, channel and promo codes the receipts differ; 0: in none.
    cdef Cursor cursor
    cdef Slice text, channel
    cdef uint64_t amount
    cdef uint8_t tag
    cdef uint32_t tenders = 0, codes = 0
    cdef bint same_tenders = True, same_codes = True
    channel.data = NULL
    channel.size = 0
    cursor_open(&cursor, section)
    while section.data != NULL and cursor_more(&cursor):
        tag = get_byte(&cursor)
        text = get_text(&cursor)
        if tag == RECEIPT_CHANNEL:
            channel = text
        elif tag == RECEIPT_TENDER:
            amount = get_varint(&cursor)
            same_tenders = (same_tenders and tenders < command.tender_count and text_equal(text, command.tenders[tenders].name)
                            and <int64_t>amount == command.tenders[tenders].amount_minor)
            tenders += 1
        else:
            same_codes = same_codes and codes < command.promo_code_count and text_equal(text, command.promo_codes[codes])
            codes += 1
    if not same_tenders or tenders != command.tender_count:
        return FIELD_RECEIPT_TENDERS
    if not text_equal(channel, command.channel):
        return FIELD_RECEIPT_CHANNEL
    return 0 if same_codes and codes == command.promo_code_count else FIELD_RECEIPT_PROMO_CODES


cdef uint16_t differing_line(const Command* command, const Slice* section, const Slice* details, int32_t* index) noexcept nogil:
    # In which field of which line the receipts differ; 0: in none.
    cdef Cursor cursor
    cdef LineDetails more
    cdef const Line* line
    cdef Slice sku, category
    cdef uint64_t quantity
    cdef int64_t amount
    cdef uint32_t i
    cursor_open(&cursor, section)
    details_open(&more, details)
    for i in range(command.line_count):
        if section.data == NULL or not cursor_more(&cursor):
            return FIELD_RECEIPT_LINES
        details_next(&more, i + 1)
        line = &command.lines[i]
        sku = get_text(&cursor)
        category = get_text(&cursor)
        quantity = get_varint(&cursor)
        amount = get_signed(&cursor)
        index[0] = <int32_t>i
        if not text_equal(sku, line.sku):
            return FIELD_LINE_SKU
        if not text_equal(category, line.category):
            return FIELD_LINE_CATEGORY
        if <int64_t>quantity != line.quantity_milli:
            return FIELD_LINE_QUANTITY_MILLI
        if amount != line.amount_minor:
            return FIELD_LINE_AMOUNT_MINOR
        if more.regular_minor != line.regular_minor:
            return FIELD_LINE_REGULAR_AMOUNT_MINOR
        if (more.flags & LINE_WEIGHED) != line.weighed:
            return FIELD_LINE_WEIGHED
        index[0] = -1
    return FIELD_RECEIPT_LINES if section.data != NULL and cursor_more(&cursor) else 0


cdef uint16_t differing_payment(Core* core, const Command* command, const Context* context) noexcept nogil:
    # In which field what is burned, held, captured or released differs; 0: in none.
    cdef uint8_t method = command.method
    cdef int wallet = 0
    if method == METHOD_BURN or method == METHOD_RESERVE or method == METHOD_ADJUST or command.payment == PAYMENT_BURN:
        if command.given & GIVEN_WALLET:
            wallet = program_wallet(core.program, command.wallet)
        if context.values[CONTEXT_WALLET] != wallet:
            return FIELD_WALLET
    if method == METHOD_CAPTURE or method == METHOD_RELEASE or command.payment == PAYMENT_CAPTURE:
        if context.values[CONTEXT_RESERVATION] != command.reservation_id:
            return FIELD_RESERVATION_ID
    if method == METHOD_ADJUST and context.values[CONTEXT_POINTS] != command.points:
        return FIELD_ADJUST_POINTS
    if method != METHOD_RELEASE and context.values[CONTEXT_POINTS] != command.points:
        return FIELD_CAPTURE_POINTS if method == METHOD_CAPTURE or command.payment == PAYMENT_CAPTURE else FIELD_POINTS
    if method == METHOD_RESERVE:
        if context.values[CONTEXT_TTL] != (command.ttl_us if command.given & GIVEN_TTL else <int64_t>TTL_S_DEFAULT * MICROSECONDS):
            return FIELD_TTL
    return 0


cdef bint names_account(Core* core, const MemberRef* member, Hash128 hashed, const EntryView* view, const Context* context) noexcept nogil:
    # Whether this names the entry's account: by whatever is linked to it now, or by what named it then and may be unlinked since.
    # Of an entry without an account: the identifier that was refused.
    cdef uint32_t i
    if view.header.member != 0 and find_member(core, member, hashed) == view.header.member:
        return True
    if member.kind == MEMBER_BY_ID:
        return False
    for i in range(context.named_count):
        if context.named[i] == <uint32_t>hashed.lo:
            return True
    # The identifier in a LINK entry is not who was named.
    return view.header.kind != KIND_LINK and names_identifier(view, member.kind, hashed)


cdef uint16_t differing_by_hand(Core* core, const Command* command, const Decision* d, const EntryView* view,
                                const Context* context) noexcept nogil:
    # Behind the member: what AdminService writes.
    cdef uint16_t field
    if sets_member(command.method):
        field = differing_sets(core, command, view)
        if field != 0:
            return field
    elif command.method == METHOD_CHANGE_BLOCKS:
        field = differing_blocks(core, command, view)
        if field != 0:
            return field
    elif command.method == METHOD_DECIDE_REVIEW:
        pass
    elif command.method == METHOD_SET_RUNG:
        if context.values[CONTEXT_RUNG] != command.rung - 1:
            return FIELD_RUNG
        if context.values[CONTEXT_LASTS] != (command.ttl_us if command.given & GIVEN_TTL else 0):
            return FIELD_LASTS
    elif command.method == METHOD_ADJUST:
        field = differing_payment(core, command, context)
        if field != 0:
            return field
        if context.values[CONTEXT_EXPIRY_DAY] != command.expiry_day:
            return FIELD_EXPIRY_DAY
    elif context.values[CONTEXT_IDENTIFIER] != <int64_t>d.identifiers[0].lo:
        return FIELD_IDENTIFIER
    if not text_equal(context.operator_name, command.operator_name):
        return FIELD_OPERATOR
    return 0 if text_equal(context.reason, command.reason) else FIELD_REASON


cdef uint16_t differing_field(Core* core, const Command* command, const Decision* d, const EntryView* view, int32_t* index) noexcept nogil:
    # The first field in which the command differs from the entry's, in the order of the request's fields; 0: none.
    # index: of a repeated field, else -1.
    cdef Context context
    cdef const EntryHeader* header = view.header
    cdef uint8_t method = command.method
    cdef uint16_t field
    cdef uint32_t i
    index[0] = -1
    context_read(view, &context)
    if header.kind != kind_of(method):
        return FIELD_METHOD
    if context.values[CONTEXT_SENT_TIME] != command.sent_time_us - header.time_us:
        return FIELD_SENT_TIME
    if method == METHOD_RULES_ORDER:
        return differing_order(command, view, &context)
    if method == METHOD_ENROLL:
        if context.values[CONTEXT_IDENTIFIERS] != command.identifier_count:
            return FIELD_IDENTIFIERS
        for i in range(command.identifier_count):
            if not names_account(core, &command.identifiers[i], d.identifiers[i], view, &context):
                return FIELD_IDENTIFIERS
        return FIELD_ORIGIN if differs_in_origin(core, command, view) else 0
    if names_member(method) and not names_account(core, &command.member, d.member_hash, view, &context):
        return FIELD_MEMBER
    if decides_case(method):
        field = differing_case(command, &context)
        if field != 0 or not by_hand(method):
            return field
    if by_hand(method):
        return differing_by_hand(core, command, d, view, &context)
    if method != METHOD_EARN and method != METHOD_COMMIT:
        field = differing_payment(core, command, &context)
        if field == 0:
            field = differing_receipt_key(command, &context, False)
        if field == 0 and (method == METHOD_BURN or method == METHOD_RESERVE) and differs_in_time(command, &context, header.time_us):
            field = FIELD_PURCHASE_TIME
        if field == 0 and differs_in_origin(core, command, view):
            field = FIELD_ORIGIN
        return FIELD_CHALLENGE_ID if field == 0 and context.values[CONTEXT_CASE] != command.case_id else field
    field = differing_receipt_key(command, &context, True)
    if field != 0:
        return field
    if differs_in_time(command, &context, header.time_us):
        return FIELD_RECEIPT_PURCHASE_TIME
    if command.currency.size != 3 or memcmp(command.currency.data, core.program.currency, 3) != 0:
        return FIELD_RECEIPT_CURRENCY_CODE
    if context.values[CONTEXT_TOTAL] != command.total_minor:
        return FIELD_RECEIPT_TOTAL_MINOR
    field = differing_line(command, &view.sections[SECTION_LINES], &view.sections[SECTION_LINE_DETAILS], index)
    if field == 0:
        field = differing_receipt_end(command, &view.sections[SECTION_RECEIPT])
    if field != 0:
        return field
    if context.values[CONTEXT_QUOTE] != mark_of(command):
        return FIELD_RECEIPT_QUOTE_TOKEN
    if (context.values[CONTEXT_ONLY_AS_QUOTED] != 0) != (command.given & GIVEN_ONLY_AS_QUOTED != 0):
        return FIELD_RECEIPT_ONLY_AS_QUOTED
    if context.values[CONTEXT_PAYMENT] != command.payment:
        return FIELD_PAYMENT
    if command.payment != PAYMENT_NONE:
        field = differing_payment(core, command, &context)
    if field == 0 and differs_in_origin(core, command, view):
        field = FIELD_ORIGIN
    return FIELD_CHALLENGE_ID if field == 0 and context.values[CONTEXT_CASE] != command.case_id else field


include "_core_limits.pxi"
include "_core_cases.pxi"
include "_core_blocks.pxi"
include "_core_keys.pxi"
include "_core_decide.pxi"
include "_core_returns.pxi"
include "_core_quote.pxi"


cdef bint names_identifier(const EntryView* view, uint8_t kind, Hash128 hashed) noexcept nogil:
    # Whether the entry's IDENTIFIERS hold this one.
    cdef Cursor cursor
    cdef const uint8_t* data
    cdef uint8_t found
    if view.sections[SECTION_IDENTIFIERS].data == NULL:
        return False
    cursor_open(&cursor, &view.sections[SECTION_IDENTIFIERS])
    while cursor_more(&cursor):
        found = get_byte(&cursor)
        data = get_bytes(&cursor, 16)
        if data != NULL and found == kind and memcmp(data, &hashed, 16) == 0:
            return True
    return False


cdef void answer_from_entry(const EntryView* view, Outcome* outcome) noexcept nogil:
    # Status, a and b of an outcome are a function of its entry.
    cdef Cursor cursor
    outcome.entry = <const uint8_t*>view.header
    outcome.entry_size = view.header.size
    outcome.status = view.header.status
    if view.sections[SECTION_REFUSAL].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_REFUSAL])
        outcome.a = get_signed(&cursor)
        outcome.b = get_signed(&cursor)


# --- keys that memory has dropped -----------------------------------------------------------------------------------

cdef inline bint runs_kept(const KeyTable* table) noexcept nogil:
    return table.covered != UINT64_MAX


cdef inline bint runs_told(const Command* command, const KeyTable* table, uint64_t until) noexcept nogil:
    # Whether the runs were asked, all of them that memory does not hold by now: a generation may have been dropped meanwhile.
    return command.hashed & LOOKED_UP and not command.found.unreadable and until >= table.keys_from - 1


cdef void ask_runs(const Core* core, const Command* command, const Decision* d, uint32_t ask, Outcome* outcome) noexcept nogil:
    # Parks the command: whatever memory cannot answer is asked at once.
    if command.hashed & LOOKED_UP and command.found.unreadable:
        refuse(outcome, STATUS_IDS_UNREADABLE, 0, 0)
        return
    outcome.parked = 1
    outcome.lookup.ask = ask
    outcome.lookup.request = d.request
    outcome.lookup.sent_time_us = command.sent_time_us
    if d.receipt_keyed and command.business_day <= core.keys[KEYS_RECEIPT].forgotten:
        outcome.lookup.ask |= ASK_RECEIPT
        outcome.lookup.receipt = d.receipt_hash
        outcome.lookup.business_day = command.business_day
        if command.method == METHOD_RETURN:
            outcome.lookup.ask |= ASK_RETURN


cdef bint entry_of_request(const Core* core, uint64_t sequence, Hash128 request, bint by_run, EntryView* view, Outcome* outcome) noexcept nogil:
    # The entry that a request id stands for. False: a run has led to an entry of another request, so it is not of this journal.
    cdef uint32_t size = 0
    cdef const uint8_t* entry = core.find(core.find_owner, sequence, &size) if core.find != NULL else NULL
    cdef bint good = entry != NULL and entry_view(entry, size, view) and memcmp(view.header.request, &request, 16) == 0
    # An id in memory whose entry cannot be read means that the journal is damaged under us.
    VERIFY(good or by_run)
    if not good:
        refuse(outcome, STATUS_IDS_UNREADABLE, 0, 0)
    return good


cdef void answer_repeat(Core* core, const Command* command, const Decision* d, uint64_t sequence, bint by_run, Outcome* outcome) noexcept nogil:
    cdef EntryView view
    cdef uint16_t field
    if not entry_of_request(core, sequence, d.request, by_run, &view, outcome):
        return
    outcome.sequence = sequence
    outcome.wait_sequence = sequence
    field = differing_field(core, command, d, &view, &outcome.index)
    if field != 0:
        refuse_field(outcome, STATUS_REQUEST_ID_REUSED, field)
        outcome.a = <int64_t>sequence
        outcome.wait_sequence = max_i64(<int64_t>sequence, <int64_t>core.unlinked_sequence)
        return
    outcome.replayed = 1
    answer_from_entry(&view, outcome)


cdef bint was_asked(Core* core, const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # Whether the request d.request is answered already: it was seen before, or nobody can tell, or the runs must tell first.
    cdef const KeyTable* requests = &core.keys[KEYS_REQUEST]
    cdef uint64_t first, second
    if keys_find(requests, d.request, &first, &second):
        answer_repeat(core, command, d, first, False, outcome)
        return True
    if command.sent_time_us > requests.forgotten:
        return False
    if not runs_kept(requests):
        refuse(outcome, STATUS_SENT_TIME_TOO_OLD, requests.forgotten + 1, 0)
        return True
    if not runs_told(command, requests, command.found.requests_until):
        ask_runs(core, command, d, ASK_REQUEST, outcome)
        return True
    if command.found.request != 0:
        answer_repeat(core, command, d, command.found.request, True, outcome)
        return True
    return False


cdef void read_operation(Core* core, const Command* command, Outcome* outcome) noexcept nogil:
    cdef Decision* d = &core.decision
    cdef const KeyTable* table = &core.keys[KEYS_REQUEST]
    cdef EntryView view
    cdef uint64_t sequence, unused
    cdef bint timed = command.given & GIVEN_SENT_TIME != 0
    cdef bint by_run = False
    if not check_request_id(command.request_id, outcome):
        return
    d.request = siphash(PUBLIC_KEY, command.request_id.data, command.request_id.size)
    d.receipt_keyed = 0
    if not keys_find(table, d.request, &sequence, &unused):
        if table.forgotten == ORDER_NONE or (timed and command.sent_time_us > table.forgotten) or (not timed and not runs_kept(table)):
            refuse(outcome, STATUS_OPERATION_NOT_FOUND, 0, 0)
            return
        if not runs_kept(table):
            refuse(outcome, STATUS_SENT_TIME_TOO_OLD, table.forgotten + 1, 0)
            return
        if not runs_told(command, table, command.found.requests_until):
            ask_runs(core, command, d, ASK_REQUEST if timed else ASK_REQUEST | ASK_ANY_TIME, outcome)
            return
        sequence = command.found.request
        by_run = True
        if sequence == 0:
            refuse(outcome, STATUS_OPERATION_NOT_FOUND, 0, 0)
            return
    if not entry_of_request(core, sequence, d.request, by_run, &view, outcome):
        return
    outcome.sequence = sequence
    answer_from_entry(&view, outcome)
    outcome.status = STATUS_OK      # the operation was found; the codec shows its refusal inside the answer
    outcome.wait_sequence = outcome.sequence


# --- deciding -----------------------------------------------------------------------------------------------------

cdef Change* add_change(Core* core, Decision* d, const Lot* lot, int64_t points, int64_t held) noexcept nogil:
    cdef Change* change = &core.changes[d.change_count]
    VERIFY(d.change_count < CHANGES_MAX)
    change.points = points
    change.held = held
    change.available_day = lot.available_day
    change.expiry_day = lot.expiry_day
    change.wallet = lot.wallet
    change.funder = lot.funder
    d.change_count += 1
    d.touched |= <uint32_t>1 << lot.wallet
    return change


cdef int64_t take_available(Core* core, Decision* d, const Account* account, int64_t points, bint hold) noexcept nogil:
    # Takes (or holds) available points, soonest expiry first; returns how many were available when they do not suffice, else -1.
    # A lot must count both at the business time and today: offline receipts cannot revive what has expired meanwhile.
    cdef const Lot* lot
    cdef int32_t earlier = d.business_day if d.business_day < d.today else d.today
    cdef int32_t later = d.business_day if d.business_day > d.today else d.today
    cdef int64_t left = points, free_points, taken
    cdef uint32_t i, start = d.change_count
    for i in range(account.lot_count):
        lot = &core.arena.lots[account.lots + i]
        if lot.wallet != d.wallet or lot.expiry_day <= later or lot.available_day > earlier:
            continue
        free_points = lot.points - held_of(core, d, account, lot)
        if free_points <= 0:
            continue
        taken = min_i64(free_points, left)
        if hold:
            add_change(core, d, lot, 0, taken)
        else:
            add_change(core, d, lot, -taken, 0)
        left -= taken
        if left == 0:
            return -1
    d.change_count = start
    return points - left


cdef void give_back(Core* core, Decision* d, const Reservation* reservation, int64_t captured) noexcept nogil:
    # Ends a reservation: takes `captured` of its points in order, gives the rest back; what goes back into an expired lot expires.
    cdef const Lot* hold
    cdef int64_t taken, rest
    cdef uint32_t i
    for i in range(reservation.hold_count):
        hold = &core.arena.lots[reservation.holds + i]
        taken = min_i64(captured, hold.points)
        captured -= taken
        rest = hold.points - taken
        if rest > 0 and hold.expiry_day <= d.today:
            d.expired[reservation.wallet] += rest
            taken += rest
        add_change(core, d, hold, -taken, -hold.points)


cdef inline bint lot_counts(const Core* core, const Decision* d, const Account* account, const Lot* lot) noexcept nogil:
    # An expired lot does not count, ticked or not, but for what is held of it.
    return lot.expiry_day > d.today or held_of(core, d, account, lot) > 0


cdef uint16_t add_awards(Core* core, const Command* command, Decision* d, const Account* account, Outcome* outcome) noexcept nogil:
    # Turns the awards of decide_rules into lot changes. Returns a status; on POINTS_OVERFLOW and LOTS_LIMIT a and b are set.
    cdef const Award* award
    cdef Change* change
    cdef Lot key
    cdef uint32_t i, j, first = d.change_count
    d.awards = core.result.awards
    d.award_count = core.result.award_count
    memset(&key, 0, sizeof(Lot))
    for i in range(d.award_count):
        award = &d.awards[i]
        j = first
        while j < d.change_count:
            change = &core.changes[j]
            if (change.wallet == award.wallet and change.expiry_day == award.expiry_day
                    and change.available_day == award.available_day and change.funder == award.funder):
                break
            j += 1
        if j == d.change_count:
            key.wallet = award.wallet
            key.expiry_day = award.expiry_day
            key.available_day = award.available_day
            key.funder = award.funder
            add_change(core, d, &key, 0, 0)
        if add_overflow(core.changes[j].points, award.points, &core.changes[j].points):
            outcome.a = 0
            return STATUS_POINTS_OVERFLOW
        if add_overflow(d.earned[award.wallet], award.points, &d.earned[award.wallet]):
            outcome.a = 0
            return STATUS_POINTS_OVERFLOW
    return check_room(core, d, account, first, d.earned, core.stats.issued_points, outcome)


cdef uint16_t check_room(Core* core, const Decision* d, const Account* account, uint32_t first, const int64_t* given, const int64_t* total,
                         Outcome* outcome) noexcept nogil:
    # Whether what is given may go into the lots of the changes from `first` on. given, total: per wallet, of this command and of the
    # programme so far. Returns a status; on POINTS_OVERFLOW and LOTS_LIMIT a and b are set.
    cdef const Change* change
    cdef const Lot* lot
    cdef int64_t sum, posted
    cdef uint32_t i, j, w, at, lots, fresh = 0
    cdef bint found
    for w in range(core.program.wallet_count):
        if given[w] == 0:
            continue
        posted = 0
        lots = 0
        if account != NULL:
            for i in range(account.lot_count):
                lot = &core.arena.lots[account.lots + i]
                if lot.wallet != w or not lot_counts(core, d, account, lot):
                    continue
                posted += lot.points if lot.expiry_day > d.today else held_of(core, d, account, lot)
                lots += 1
        if given[w] > WALLET_POINTS_MAX - posted or add_overflow(total[w], given[w], &sum):
            outcome.a = posted
            return STATUS_POINTS_OVERFLOW
        j = lots
        for i in range(first, d.change_count):
            if core.changes[i].wallet != w:
                continue
            found = False
            if account != NULL:
                change = &core.changes[i]
                at = lot_search(&core.arena.lots[account.lots], account.lot_count, change.wallet, change.expiry_day,
                                change.available_day, change.funder, &found)
                if found and lot_counts(core, d, account, &core.arena.lots[account.lots + at]):
                    continue
            j += 1
            if not found:
                fresh += 1
        if j > LOTS_PER_WALLET_MAX:
            outcome.a = lots
            outcome.b = LOTS_PER_WALLET_MAX
            return STATUS_LOTS_LIMIT
    if fresh != 0:
        lots = fresh + (account.lot_count if account != NULL else 0)
        if (account == NULL or account.lots == NO_PIECE or lots > units_of(account.lot_class)) and not arena_has(&core.arena):
            return STATUS_TABLE_FULL
    return STATUS_OK


cdef uint16_t decide_adjustment(Core* core, const Command* command, Decision* d, const Account* account, Outcome* outcome) noexcept nogil:
    # Points above 0 make one lot that is available today; points below 0 take available ones. Returns a status.
    cdef Lot key
    cdef int64_t available
    cdef uint32_t first = d.change_count
    d.touched |= <uint32_t>1 << d.wallet
    d.adjusted[d.wallet] = command.points
    if command.points > 0:
        memset(&key, 0, sizeof(Lot))
        key.wallet = d.wallet
        key.available_day = d.today
        key.expiry_day = day_from_yyyymmdd(command.expiry_day) if command.expiry_day != 0 else DAY_NEVER
        add_change(core, d, &key, command.points, 0)
        return check_room(core, d, account, first, d.adjusted, core.stats.adjusted_points, outcome)
    available = take_available(core, d, account, -command.points, False)
    if available >= 0:
        outcome.a = available
        outcome.b = -command.points
        return STATUS_INSUFFICIENT_POINTS
    return STATUS_OK


cdef void write_context(EntryWriter* writer, const Command* command, const Decision* d) noexcept nogil:
    cdef uint8_t method = command.method
    cdef uint32_t i
    section_begin(writer, SECTION_CONTEXT)
    put_tag(writer, CONTEXT_SENT_TIME, command.sent_time_us - d.now_us)
    if command.given & GIVEN_BUSINESS_TIME and method != METHOD_CAPTURE and method != METHOD_RELEASE:
        put_tag(writer, CONTEXT_BUSINESS_TIME, command.business_time_us - d.now_us)
    if method == METHOD_BURN or method == METHOD_RESERVE or method == METHOD_ADJUST or command.payment == PAYMENT_BURN:
        put_tag(writer, CONTEXT_WALLET, d.wallet)
    if method != METHOD_EARN and method != METHOD_RELEASE and method != METHOD_ENROLL and command.points != 0:
        put_tag(writer, CONTEXT_POINTS, command.points)
    if method == METHOD_RESERVE:
        put_tag(writer, CONTEXT_TTL, command.ttl_us if command.given & GIVEN_TTL else <int64_t>TTL_S_DEFAULT * MICROSECONDS)
    if method == METHOD_CAPTURE or method == METHOD_RELEASE or command.payment == PAYMENT_CAPTURE:
        put_tag(writer, CONTEXT_RESERVATION, command.reservation_id)
    if d.receipt_keyed:
        put_tag(writer, CONTEXT_BUSINESS_DAY, command.business_day)
    elif d.sale != NULL:
        put_tag(writer, CONTEXT_BUSINESS_DAY, d.sale.values[CONTEXT_BUSINESS_DAY])
    if earns_by(method) or method == METHOD_RETURN:
        put_tag(writer, CONTEXT_TOTAL, d.sale_minor if method == METHOD_RETURN else command.total_minor)
    if command.payment != PAYMENT_NONE:
        put_tag(writer, CONTEXT_PAYMENT, command.payment)
    if method == METHOD_ENROLL:
        put_tag(writer, CONTEXT_IDENTIFIERS, command.identifier_count)
        for i in range(command.identifier_count):
            if d.named >> i & 1:
                put_tag(writer, CONTEXT_NAMED, <uint32_t>d.identifiers[i].lo)
    elif d.named != 0:
        put_tag(writer, CONTEXT_NAMED, <uint32_t>d.member_hash.lo)
    if method == METHOD_LINK or method == METHOD_UNLINK:
        put_tag(writer, CONTEXT_IDENTIFIER, <int64_t>d.identifiers[0].lo)
    if method == METHOD_ADJUST and command.expiry_day != 0:
        put_tag(writer, CONTEXT_EXPIRY_DAY, command.expiry_day)
    if command.case_id != 0:
        put_tag(writer, CONTEXT_CASE, command.case_id)
    if decides_case(method):
        put_tag(writer, CONTEXT_VERDICT, command.verdict)
    if method == METHOD_SET_RUNG:
        put_tag(writer, CONTEXT_RUNG, command.rung - 1)
        if command.given & GIVEN_TTL:
            put_tag(writer, CONTEXT_LASTS, command.ttl_us)
    if command.quote_token.size != 0:
        put_tag(writer, CONTEXT_QUOTE, mark_of(command))
    if command.given & GIVEN_ONLY_AS_QUOTED:
        put_tag(writer, CONTEXT_ONLY_AS_QUOTED, 1)
    if d.receipt_keyed:
        put_tag_text(writer, CONTEXT_STORE, command.store)
        put_tag_text(writer, CONTEXT_TILL, command.till)
        put_tag_text(writer, CONTEXT_NUMBER, command.number)
    elif d.sale != NULL:
        put_tag_text(writer, CONTEXT_STORE, d.sale.store)
        put_tag_text(writer, CONTEXT_TILL, d.sale.till)
        put_tag_text(writer, CONTEXT_NUMBER, d.sale.number)
    if by_hand(method):
        put_tag_text(writer, CONTEXT_OPERATOR, command.operator_name)
        put_tag_text(writer, CONTEXT_REASON, command.reason)
    section_end(writer)


cdef void write_pair(EntryWriter* writer, uint8_t account, uint16_t wallet, int64_t member_points) noexcept nogil:
    put_byte(writer, ACCOUNT_MEMBER)
    put_varint(writer, wallet)
    put_signed(writer, member_points)
    put_byte(writer, account)
    put_varint(writer, wallet)
    put_signed(writer, -member_points)


cdef void write_postings(EntryWriter* writer, const Decision* d) noexcept nogil:
    cdef uint16_t w
    cdef bint any_points = False
    for w in range(WALLETS_MAX):
        if d.touched >> w & 1 and (d.burned[w] != 0 or d.expired[w] != 0 or d.earned[w] != 0 or d.adjusted[w] != 0):
            if not any_points:
                section_begin(writer, SECTION_POSTINGS)
                any_points = True
            if d.burned[w] != 0:
                write_pair(writer, ACCOUNT_REDEEMED, w, -d.burned[w])
            if d.expired[w] != 0:
                write_pair(writer, ACCOUNT_EXPIRED, w, -d.expired[w])
            if d.earned[w] != 0:
                write_pair(writer, ACCOUNT_ISSUED, w, d.earned[w])
            if d.adjusted[w] != 0:
                write_pair(writer, ACCOUNT_ADJUSTED, w, d.adjusted[w])
    if any_points:
        section_end(writer)


cdef void write_lots(EntryWriter* writer, const Core* core, const Decision* d) noexcept nogil:
    cdef const Change* change
    cdef uint32_t i
    if d.change_count == 0:
        return
    section_begin(writer, SECTION_LOTS)
    for i in range(d.change_count):
        change = &core.changes[i]
        put_varint(writer, change.wallet)
        put_varint(writer, <uint32_t>change.available_day)
        put_varint(writer, <uint32_t>change.expiry_day)
        put_varint(writer, change.funder)
        put_signed(writer, change.points)
        put_signed(writer, change.held)
    section_end(writer)


cdef void write_lines(EntryWriter* writer, const Command* command) noexcept nogil:
    cdef const Line* line
    cdef uint32_t i
    if command.line_count == 0:
        return
    section_begin(writer, SECTION_LINES)
    for i in range(command.line_count):
        line = &command.lines[i]
        put_text(writer, line.sku)
        put_text(writer, line.category)
        put_varint(writer, <uint64_t>line.quantity_milli)
        put_signed(writer, line.amount_minor)
    section_end(writer)


cdef void write_receipt_end(EntryWriter* writer, const Command* command) noexcept nogil:
    # RECEIPT and LINE_DETAILS, where the till said more than most do.
    cdef const Line* line
    cdef uint32_t i
    cdef bint begun = False
    if command.channel.size != 0 or command.tender_count != 0 or command.promo_code_count != 0:
        section_begin(writer, SECTION_RECEIPT)
        if command.channel.size != 0:
            put_tag_text(writer, RECEIPT_CHANNEL, command.channel)
        for i in range(command.tender_count):
            put_tag_text(writer, RECEIPT_TENDER, command.tenders[i].name)
            put_varint(writer, <uint64_t>command.tenders[i].amount_minor)
        for i in range(command.promo_code_count):
            put_tag_text(writer, RECEIPT_PROMO_CODE, command.promo_codes[i])
        section_end(writer)
    for i in range(command.line_count):
        line = &command.lines[i]
        if line.regular_minor == 0 and not line.weighed:
            continue
        if not begun:
            section_begin(writer, SECTION_LINE_DETAILS)
            begun = True
        put_varint(writer, i + 1)
        put_varint(writer, <uint64_t>line.regular_minor)
        put_byte(writer, LINE_WEIGHED if line.weighed else 0)
    if begun:
        section_end(writer)


cdef void write_awards(EntryWriter* writer, const Core* core, const Decision* d) noexcept nogil:
    cdef const Award* award
    cdef uint32_t i
    if d.award_count == 0:
        return
    section_begin(writer, SECTION_AWARDS)
    for i in range(d.award_count):
        award = &d.awards[i]
        put_varint(writer, award.line)
        put_varint(writer, award.rule)
        put_varint(writer, award.wallet)
        put_signed(writer, award.points)
    section_end(writer)


cdef void write_after(EntryWriter* writer, const Core* core, const Decision* d, const Account* account) noexcept nogil:
    # The touched wallets as the entry leaves them: what is there now plus the entry's changes.
    cdef const Change* change
    cdef Sums sums
    cdef uint32_t i
    cdef uint16_t w
    if d.touched == 0:
        return
    section_begin(writer, SECTION_AFTER)
    for w in range(WALLETS_MAX):
        if not d.touched >> w & 1:
            continue
        if account != NULL:
            sums = wallet_sums(core, account, w, d.today)
        else:
            memset(&sums, 0, sizeof(Sums))
        for i in range(d.change_count):
            change = &core.changes[i]
            if change.wallet == w:
                sums_add(&sums, d.today, change.available_day, change.expiry_day, change.points, change.held)
        put_varint(writer, w)
        put_signed(writer, sums.posted)
        put_signed(writer, sums.pending)
        put_signed(writer, sums.reserved)
    section_end(writer)


cdef void write_reservation(EntryWriter* writer, uint64_t id, uint8_t state, uint16_t wallet, int64_t reserved, int64_t captured,
                            int64_t expire_after_us) noexcept nogil:
    section_begin(writer, SECTION_RESERVATION)
    put_varint(writer, id)
    put_byte(writer, state)
    put_varint(writer, wallet)
    put_signed(writer, reserved)
    put_signed(writer, captured)
    put_signed(writer, expire_after_us)
    section_end(writer)


cdef void fill_header(Core* core, EntryHeader* header, uint8_t kind, const Decision* d) noexcept nogil:
    header.kind = kind
    header.flags = 0
    header.status = STATUS_OK
    header.time_us = d.now_us
    header.member = d.member
    header.program = core.program.version
    memcpy(header.request, &d.request, 16)


cdef void open_decision(Core* core, Decision* d, int64_t now_us) noexcept nogil:
    # Before anything is known.
    d.now_us = max_i64(now_us, core.stats.time_us)
    d.program = core.program
    d.member = 0
    d.wallet = 0
    d.named = 0
    d.receipt_keyed = 0
    d.due = False
    d.quoted = False
    d.changed = 0
    d.points_max = INT64_MAX
    d.reviewed = False
    d.challenge_passed = False
    d.sale_minor = 0
    d.sale = NULL


cdef void begin_decision(Core* core, Decision* d, int64_t now_us) noexcept nogil:
    d.change_count = 0
    d.award_count = 0
    d.touched = 0
    memset(d.earned, 0, sizeof(d.earned))
    memset(d.burned, 0, sizeof(d.burned))
    memset(d.expired, 0, sizeof(d.expired))
    memset(d.adjusted, 0, sizeof(d.adjusted))


cdef void post(Core* core, const uint8_t* entry, uint32_t size, Outcome* outcome) noexcept nogil:
    # Applies the entry just written and notes it in the outcome.
    cdef int result = core_apply(core, entry, size)
    VERIFY(result == APPLY_OK)
    core.measured_entry = NULL
    outcome.written += 1
    outcome.written_size += size


cdef void refuse_remembered(Core* core, const Command* command, Decision* d, uint16_t status, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # A refusal that a repeat must get again: an entry that changes nothing but the ids. outcome.a and b are set.
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry + outcome.written_size)
    cdef uint32_t size, i
    core.measured_entry = NULL      # what would have been written stood in the same place
    fill_header(core, header, kind_of(command.method), d)
    header.status = status
    write_context(&writer, command, d)
    if command.method == METHOD_EARN or command.method == METHOD_COMMIT:
        write_lines(&writer, command)
    if command.method == METHOD_ENROLL:
        section_begin(&writer, SECTION_IDENTIFIERS)
        for i in range(command.identifier_count):
            if command.identifiers[i].kind != MEMBER_BY_ID:
                put_byte(&writer, command.identifiers[i].kind)
                put_bytes(&writer, <const uint8_t*>&d.identifiers[i], 16)
        section_end(&writer)
    elif d.member == 0:
        # Nobody's account: the identifier itself tells a repeat from another customer's request.
        section_begin(&writer, SECTION_IDENTIFIERS)
        put_byte(&writer, command.member.kind)
        put_bytes(&writer, <const uint8_t*>&d.member_hash, 16)
        section_end(&writer)
    section_begin(&writer, SECTION_REFUSAL)
    put_signed(&writer, outcome.a)
    put_signed(&writer, outcome.b)
    section_end(&writer)
    if command.method == METHOD_EARN or command.method == METHOD_COMMIT:
        write_receipt_end(&writer, command)
    write_origin(&writer, core, command, d)
    size = entry_finish(&writer)
    if limits_hold(core):
        if status != STATUS_VELOCITY_EXCEEDED and status != STATUS_CHALLENGE_NEEDED and not may_be_refused(core, writer.start, size):
            outcome.status = STATUS_TABLE_FULL
            return
        write_limits(&writer, core, d.member)
        size = entry_finish(&writer)
    post(core, writer.start, size, outcome)
    outcome.status = status
    outcome.entry = writer.start
    outcome.entry_size = size
    outcome.sequence = core.stats.sequence
    outcome.wait_sequence = core.stats.sequence


cdef uint32_t write_end_of_reservation(Core* core, Decision* d, const Reservation* reservation, uint8_t kind, uint8_t* entry) noexcept nogil:
    # EXPIRE_RESERVATION: everything goes back. Returns the entry's size; not applied yet.
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    begin_decision(core, d, d.now_us)
    give_back(core, d, reservation, 0)
    fill_header(core, header, kind, d)
    header.member = reservation.member
    memset(header.request, 0, 16)
    write_postings(&writer, d)
    write_lots(&writer, core, d)
    write_after(&writer, core, d, &core.accounts[reservation.member - 1])
    write_reservation(&writer, reservation.id, RESERVATION_EXPIRED, reservation.wallet, reservation.reserved_points, 0,
                      reservation.expire_time_us - d.now_us)
    write_reserve_back(&writer, core, d, reservation)
    return entry_finish(&writer)


cdef void settle_member(Core* core, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # Posts the expiry of this member's due reservations, so that the command sees them gone.
    cdef Account* account = &core.accounts[d.member - 1]
    cdef uint32_t index = account.reservations, next, size
    while index != NO_INDEX:
        next = core.pool[index].next
        if core.pool[index].expire_time_us <= d.now_us:
            size = write_end_of_reservation(core, d, &core.pool[index], KIND_EXPIRE_RESERVATION, entry + outcome.written_size)
            post(core, entry + outcome.written_size, size, outcome)
        index = next
    begin_decision(core, d, d.now_us)


cdef uint16_t decide_take(Core* core, const Command* command, Decision* d, Account* account, const Reservation** captured,
                          int64_t* captured_points, Outcome* outcome) noexcept nogil:
    # The burn or capture of BurnPoints, CaptureReservation, ReleaseReservation and CommitReceipt. Returns a status.
    cdef const Reservation* reservation
    cdef int64_t available, index
    captured[0] = NULL
    if command.method == METHOD_BURN or command.payment == PAYMENT_BURN:
        d.touched |= <uint32_t>1 << d.wallet
        available = take_available(core, d, account, command.points, False)
        if available >= 0:
            outcome.a = available
            outcome.b = command.points
            return STATUS_INSUFFICIENT_POINTS
        d.burned[d.wallet] = command.points
        return STATUS_OK
    index = reservations_find(&core.reservation_map, <uint64_t>command.reservation_id)
    outcome.a = command.reservation_id
    outcome.b = 0
    if index < 0:
        return STATUS_RESERVATION_NOT_FOUND
    reservation = &core.pool[index]
    if reservation.member != d.member:
        return STATUS_RESERVATION_FOREIGN
    if reservation.state != RESERVATION_ACTIVE or (d.due and reservation.expire_time_us <= d.now_us):
        outcome.b = reservation.state if reservation.state != RESERVATION_ACTIVE else RESERVATION_EXPIRED
        return STATUS_RESERVATION_NOT_ACTIVE
    captured_points[0] = 0
    if command.method != METHOD_RELEASE:
        captured_points[0] = command.points if command.points != 0 else reservation.reserved_points
        if captured_points[0] > reservation.reserved_points:
            outcome.a = reservation.reserved_points
            outcome.b = captured_points[0]
            return STATUS_CAPTURE_ABOVE_RESERVED
    d.touched |= <uint32_t>1 << reservation.wallet
    give_back(core, d, reservation, captured_points[0])
    d.burned[reservation.wallet] = captured_points[0]
    captured[0] = reservation
    return STATUS_OK


cdef inline bint may_open(const Core* core, const Command* command) noexcept nogil:
    # Whether a receipt of somebody unknown opens an account.
    return core.program.opens_anonymous and command.payment == PAYMENT_NONE and command.member.kind != MEMBER_BY_ID


cdef uint16_t decide_receipt(Core* core, const Command* command, Decision* d, Account* account, const Reservation** captured,
                             int64_t* captured_points, Outcome* outcome) noexcept nogil:
    # Payment, rules and room of EarnPoints, CommitReceipt and QuoteReceipt. Returns a status.
    cdef uint16_t status = STATUS_OK
    if command.payment != PAYMENT_NONE:
        status = decide_take(core, command, d, account, captured, captured_points, outcome)
    if status == STATUS_OK:
        status = decide_rules(core, command, d, account, captured[0], captured_points[0], outcome)
    if status == STATUS_OK:
        if d.points_max != INT64_MAX:
            cut_awards(core, d.points_max)
        date_awards(core, d, account)
        status = add_awards(core, command, d, account, outcome)
    if status == STATUS_OK and account == NULL and (
            core.stats.members >= core.accounts_max or core.identifiers.count >= core.identifiers.count_max):
        outcome.a = <int64_t>core.accounts_max
        status = STATUS_MEMBERS_LIMIT
    return status


cdef void execute_enroll(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    cdef EntryWriter writer
    cdef EntryHeader* header
    cdef uint32_t i, member, fresh = 0, size
    cdef uint16_t status
    cdef bint opening
    d.member = 0
    for i in range(command.identifier_count):
        member = find_member(core, &command.identifiers[i], d.identifiers[i])
        if member == 0:
            if command.identifiers[i].kind == MEMBER_BY_ID:
                outcome.index = <int32_t>i
                refuse_field(outcome, STATUS_MEMBER_NOT_FOUND, FIELD_MEMBER_ID)
                return
            fresh += 1
        elif d.member == 0:
            d.member = member
        elif d.member != member:
            outcome.index = <int32_t>i
            refuse_field(outcome, STATUS_IDENTIFIER_TAKEN, FIELD_IDENTIFIERS)
            outcome.wait_sequence = max_i64(core.accounts[member - 1].sequence, core.accounts[d.member - 1].sequence)
            return
    opening = d.member == 0
    if not opening:
        status = rung_allows(core, command, &core.accounts[d.member - 1], d, outcome)
        if status != STATUS_OK:
            refuse_remembered(core, command, d, status, entry, outcome)
            return
    if not opening and core.accounts[d.member - 1].identifier_count + fresh > IDENTIFIERS_PER_MEMBER_MAX:
        outcome.a = core.accounts[d.member - 1].identifier_count + fresh
        outcome.b = IDENTIFIERS_PER_MEMBER_MAX
        refuse_remembered(core, command, d, STATUS_IDENTIFIERS_LIMIT, entry, outcome)
        return
    if (opening and core.stats.members >= core.accounts_max) or core.identifiers.count + fresh > core.identifiers.count_max:
        refuse(outcome, STATUS_MEMBERS_LIMIT, <int64_t>core.accounts_max, 0)
        return
    # After this point the command succeeds.
    if opening:
        d.member = <uint32_t>core.stats.members + 1
    else:
        for i in range(command.identifier_count):
            if command.identifiers[i].kind != MEMBER_BY_ID and identifiers_find(&core.identifiers, d.identifiers[i]) != 0:
                d.named |= <uint32_t>1 << i
    header = entry_begin(&writer, entry)
    fill_header(core, header, KIND_ENROLL, d)
    if opening:
        header.flags = FLAG_OPENED
    write_context(&writer, command, d)
    if fresh != 0:
        section_begin(&writer, SECTION_IDENTIFIERS)
        for i in range(command.identifier_count):
            if command.identifiers[i].kind != MEMBER_BY_ID and identifiers_find(&core.identifiers, d.identifiers[i]) == 0:
                put_byte(&writer, command.identifiers[i].kind)
                put_bytes(&writer, <const uint8_t*>&d.identifiers[i], 16)
        section_end(&writer)
    if opening:
        write_opened(&writer, core, d)
    write_origin(&writer, core, command, d)
    size = entry_finish(&writer)
    if limits_hold(core):
        status = obey_limits(core, entry, size, d, True, outcome)
        if status != STATUS_OK:
            if opening:
                d.member = 0
            if STATUS_ROWS[status].remembered:
                refuse_remembered(core, command, d, status, entry, outcome)
            else:
                outcome.status = status
            return
        write_limits(&writer, core, d.member)
        size = entry_finish(&writer)
    finish_write(core, entry, size, outcome)


cdef void execute_link(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # LinkIdentifier; d.member: the member named, or 0.
    cdef const Account* account
    cdef uint32_t owner
    if d.member == 0:
        refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
        return
    account = &core.accounts[d.member - 1]
    outcome.wait_sequence = account.sequence
    owner = identifiers_find(&core.identifiers, d.identifiers[0])
    if owner != 0 and owner != d.member:
        refuse_field(outcome, STATUS_IDENTIFIER_TAKEN, identifier_field(command.identifiers[0].kind))
        outcome.wait_sequence = max_i64(core.accounts[owner - 1].sequence, account.sequence)
        return
    if owner == 0:
        if account.identifier_count >= IDENTIFIERS_PER_MEMBER_MAX:
            outcome.a = account.identifier_count + 1
            outcome.b = IDENTIFIERS_PER_MEMBER_MAX
            refuse_remembered(core, command, d, STATUS_IDENTIFIERS_LIMIT, entry, outcome)
            return
        if core.identifiers.count >= core.identifiers.count_max:
            refuse(outcome, STATUS_MEMBERS_LIMIT, <int64_t>core.accounts_max, 0)
            return
    write_by_hand(core, command, d, owner == 0, entry, outcome)


cdef void execute_unlink(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    d.member = identifiers_find(&core.identifiers, d.identifiers[0])
    if d.member == 0:
        refuse_not_found(core, STATUS_IDENTIFIER_NOT_FOUND, identifier_field(command.identifiers[0].kind), outcome)
        return
    write_by_hand(core, command, d, True, entry, outcome)


cdef void write_by_hand(Core* core, const Command* command, Decision* d, bint changes, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # The entry of a link or unlink. changes: its identifier is linked or unlinked by it.
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    fill_header(core, header, kind_of(command.method), d)
    write_context(&writer, command, d)
    if changes:
        section_begin(&writer, SECTION_IDENTIFIERS)
        put_byte(&writer, command.identifiers[0].kind)
        put_bytes(&writer, <const uint8_t*>&d.identifiers[0], 16)
        section_end(&writer)
    finish_write(core, entry, entry_finish(&writer), outcome)


cdef void finish_write(Core* core, uint8_t* entry, uint32_t size, Outcome* outcome) noexcept nogil:
    post(core, entry, size, outcome)
    outcome.entry = entry
    outcome.entry_size = size
    outcome.sequence = core.stats.sequence
    outcome.wait_sequence = core.stats.sequence


cdef uint16_t decide_write(Core* core, const Command* command, Decision* d, Account* account, const Reservation** captured,
                           int64_t* captured_points, Outcome* outcome) noexcept nogil:
    # Burn, capture, release or reserve; then earn. Returns a status.
    cdef uint8_t method = command.method
    cdef uint16_t status = STATUS_OK
    cdef int64_t available
    cdef bint earns = method == METHOD_EARN or method == METHOD_COMMIT
    if method == METHOD_RESERVE:
        d.touched |= <uint32_t>1 << d.wallet
        if account.reservation_count >= RESERVATIONS_PER_MEMBER_MAX:
            outcome.a = account.reservation_count
            outcome.b = RESERVATIONS_PER_MEMBER_MAX
            status = STATUS_RESERVATIONS_LIMIT
        else:
            available = take_available(core, d, account, command.points, True)
            if available >= 0:
                outcome.a = available
                outcome.b = command.points
                status = STATUS_INSUFFICIENT_POINTS
            elif ((core.pool_used == core.pool_max and core.pool_free == NO_INDEX and core.finished_first == NO_INDEX)
                    or not arena_has(&core.arena)):
                status = STATUS_TABLE_FULL
    elif method == METHOD_ADJUST:
        status = decide_adjustment(core, command, d, account, outcome)
    elif earns:
        status = decide_receipt(core, command, d, account, captured, captured_points, outcome)
        if status == STATUS_OK and d.quoted:
            d.changed = differs_from_quote(core, d)
    else:
        status = decide_take(core, command, d, account, captured, captured_points, outcome)
    if status == STATUS_OK and account != NULL and (earns or method == METHOD_BURN or method == METHOD_CAPTURE):
        status = slide_lots(core, d, account)
    return status


cdef uint32_t write_command(Core* core, const Command* command, Decision* d, const Account* account, const Reservation* captured, int64_t captured_points,
                            uint8_t* entry, EntryWriter* writer) noexcept nogil:
    # The entry of what was decided; it is not applied. Returns its size; more sections may follow.
    cdef EntryHeader* header = entry_begin(writer, entry)
    cdef uint8_t method = command.method
    cdef bint earns = earns_by(method)
    if account == NULL:
        d.member = <uint32_t>core.stats.members + 1
    fill_header(core, header, KIND_COMMIT if method == METHOD_QUOTE else kind_of(method), d)
    if account == NULL:
        header.flags = FLAG_OPENED
        d.member = 0
    write_context(writer, command, d)
    write_postings(writer, d)
    write_lots(writer, core, d)
    if earns:
        write_lines(writer, command)
        write_awards(writer, core, d)
    write_after(writer, core, d, account)
    if method == METHOD_RESERVE:
        write_reservation(writer, core.stats.sequence + 1, RESERVATION_ACTIVE, d.wallet, command.points, 0,
                          command.ttl_us if command.given & GIVEN_TTL else <int64_t>TTL_S_DEFAULT * MICROSECONDS)
    elif captured != NULL:
        write_reservation(writer, captured.id, RESERVATION_RELEASED if method == METHOD_RELEASE else RESERVATION_CAPTURED,
                          captured.wallet, captured.reserved_points, captured_points, captured.expire_time_us - d.now_us)
    if account == NULL:
        section_begin(writer, SECTION_IDENTIFIERS)
        put_byte(writer, command.member.kind)
        put_bytes(writer, <const uint8_t*>&d.member_hash, 16)
        section_end(writer)
    if earns:
        write_receipt_end(writer, command)
        write_rules(writer, core, d, command, account == NULL)
        if d.quoted:
            write_quote(writer, d)
    write_origin(writer, core, command, d)
    return entry_finish(writer)


cdef bint execute_of_members(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # Writes that neither earn nor take: who a member is, what they may, what was decided about them, what is undone. False: it is none of them.
    cdef uint8_t method = command.method
    if method == METHOD_ENROLL:
        execute_enroll(core, command, d, entry, outcome)
    elif method == METHOD_LINK:
        execute_link(core, command, d, entry, outcome)
    elif method == METHOD_UNLINK:
        execute_unlink(core, command, d, entry, outcome)
    elif sets_member(method):
        execute_set(core, command, d, entry, outcome)
    elif method == METHOD_SET_RUNG:
        execute_rung(core, command, d, entry, outcome)
    elif method == METHOD_DECIDE_REVIEW:
        execute_verdict(core, command, d, entry, outcome)
    elif method == METHOD_ANSWER_CHALLENGE:
        execute_answer(core, command, d, entry, outcome)
    elif method == METHOD_CHANGE_BLOCKS:
        execute_blocks(core, command, d, entry, outcome)
    elif method == METHOD_RETURN:
        execute_return(core, command, d, entry, outcome)
    else:
        return False
    return True


cdef void execute_write(Core* core, const Command* command, int64_t now_us, uint8_t* entry, Outcome* outcome) noexcept nogil:
    cdef Decision* d = &core.decision
    cdef EntryWriter writer
    cdef Account* account = NULL
    cdef const KeyTable* receipts = &core.keys[KEYS_RECEIPT]
    cdef const Reservation* captured = NULL
    cdef int64_t captured_points = 0
    cdef uint64_t first, second, posted_by = 0
    cdef uint8_t method = command.method
    cdef uint16_t status = STATUS_OK
    cdef uint32_t size
    cdef bint earns = method == METHOD_EARN or method == METHOD_COMMIT
    cdef bint pays = method == METHOD_BURN or method == METHOD_CAPTURE or command.payment != PAYMENT_NONE
    open_decision(core, d, now_us)
    core.measured_entry = NULL
    if not check_fields(core, command, d, outcome) or (command.origins != 0 and not check_origin(command, outcome)):
        return
    if names_member(method):
        d.member = find_member(core, &command.member, d.member_hash)
        d.named = d.member != 0 and command.member.kind != MEMBER_BY_ID
    if was_asked(core, command, d, outcome):
        return
    if core.full:
        refuse(outcome, STATUS_JOURNAL_FULL, core.full_free_bytes, core.full_free_bytes_min)
        return
    if not core_keys_room(core):
        refuse(outcome, STATUS_IDS_BEHIND, 0, 0)
        return
    if not check_world(core, command, d, outcome):
        return
    begin_decision(core, d, d.now_us)
    if method <= METHOD_ENROLL and method != METHOD_RELEASE and comes_blocked(core, command, d):
        refuse_remembered(core, command, d, STATUS_BLOCKED, entry, outcome)
        return
    if execute_of_members(core, command, d, entry, outcome):
        return

    # Whose is it?
    if d.member == 0:
        if not (earns and may_open(core, command)):
            refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
            return
    else:
        account = &core.accounts[d.member - 1]
        outcome.wait_sequence = account.sequence

    # Was this receipt seen before?
    if d.receipt_keyed:
        keys_find(receipts, d.receipt_hash, &first, &second)
        if command.business_day <= receipts.forgotten and ((earns and first == 0) or (pays and second == 0)):
            if not runs_kept(receipts):
                refuse(outcome, STATUS_RECEIPT_TOO_OLD, receipts.forgotten, 0)
                return
            if not runs_told(command, receipts, command.found.receipts_until):
                ask_runs(core, command, d, 0, outcome)
                return
            first = first if first != 0 else command.found.first
            second = second if second != 0 else command.found.second
        posted_by = first if earns else 0
        if posted_by == 0 and pays:
            posted_by = second
        if posted_by != 0:
            refuse(outcome, STATUS_RECEIPT_ALREADY_POSTED, <int64_t>posted_by, 0)
            outcome.wait_sequence = max_i64(<int64_t>posted_by, <int64_t>outcome.wait_sequence)
            return

    if command.quote_token.size != 0 and not take_token(core, command, d, outcome):
        return
    if not take_challenge(core, command, d, outcome):
        return
    status = rung_allows(core, command, account, d, outcome)
    if status != STATUS_OK:
        refuse_remembered(core, command, d, status, entry, outcome)
        return
    if account != NULL and reservations_due(core, account, d.now_us):
        settle_member(core, d, entry, outcome)
        outcome.wait_sequence = account.sequence

    status = decide_write(core, command, d, account, &captured, &captured_points, outcome)
    if status == STATUS_OK:
        size = write_command(core, command, d, account, captured, captured_points, entry + outcome.written_size, &writer)
        if limits_hold(core):
            status = obey_limits(core, writer.start, size, d, True, outcome)
        if status == STATUS_OK and (d.points_max != INT64_MAX or d.reviewed):
            # Decided again, with less to earn, or later.
            begin_decision(core, d, d.now_us)
            core.measured_entry = NULL
            status = decide_write(core, command, d, account, &captured, &captured_points, outcome)
            write_command(core, command, d, account, captured, captured_points, entry + outcome.written_size, &writer)
    if status == STATUS_OK and d.changed != 0 and command.given & GIVEN_ONLY_AS_QUOTED:
        status = STATUS_QUOTE_CHANGED       # only now: what limits cut was cut in the quote
        outcome.a = d.changed
        outcome.b = 0
    if status != STATUS_OK:
        if STATUS_ROWS[status].remembered:
            refuse_remembered(core, command, d, status, entry, outcome)
        else:
            outcome.status = status
        return

    # After this point the command succeeds.
    if earns:
        count_rules(core, d)
    if limits_hold(core):
        write_limits(&writer, core, d.member if account != NULL else <uint32_t>core.stats.members + 1)
    if method == METHOD_RELEASE:
        write_reserve_back(&writer, core, d, captured)
    size = entry_finish(&writer)
    finish_write(core, writer.start, size, outcome)


cdef void prepare_hashes(Core* core, Command* command) noexcept nogil:
    # Only of what is well formed; the rest is refused by check_fields, which does not need them.
    if REQUEST_ID_BYTES_MIN <= command.request_id.size <= REQUEST_ID_BYTES_MAX:
        command.request_hash = siphash(PUBLIC_KEY, command.request_id.data, command.request_id.size)
        command.hashed |= HASHED_REQUEST
    if (command.member.kind >= MEMBER_BY_CARD
            and identity_hash(core.identity_key, command.member.kind, command.member.text, &command.member_hash)):
        command.hashed |= HASHED_MEMBER
    if (command.given & GIVEN_RECEIPT_KEY and command.method != METHOD_QUOTE and command.store.size <= STORE_BYTES_MAX and command.till.size <= TILL_BYTES_MAX
            and command.number.size <= RECEIPT_NUMBER_BYTES_MAX):
        command.receipt_hash = receipt_key_hash(command.business_day, command.store, command.till, command.number)
        command.hashed |= HASHED_RECEIPT


cdef void touch_tables(const Core* core, const Command* command) noexcept nogil:
    if command.hashed & HASHED_REQUEST:
        keys_touch(&core.keys[KEYS_REQUEST], command.request_hash)
    if command.hashed & HASHED_RECEIPT:
        keys_touch(&core.keys[KEYS_RECEIPT], command.receipt_hash)
    if command.hashed & HASHED_MEMBER:
        touch(&core.identifiers.slots[range_of(command.member_hash.lo, core.identifiers.capacity)])


cdef uint32_t prepared_member(const Core* core, const Command* command) noexcept nogil:
    # Account number, or 0.
    if command.hashed & HASHED_MEMBER:
        return identifiers_find(&core.identifiers, command.member_hash)
    if command.member.kind == MEMBER_BY_ID and 1 <= command.member.member_id <= <int64_t>core.stats.members:
        return <uint32_t>command.member.member_id
    return 0


cdef bint core_foresee(const Core* core, const Command* command, Lookup* lookup) noexcept nogil:
    cdef const KeyTable* requests = &core.keys[KEYS_REQUEST]
    cdef const KeyTable* receipts = &core.keys[KEYS_RECEIPT]
    lookup.ask = 0
    if command.hashed & LOOKED_UP or not runs_kept(requests):
        return False
    if command.hashed & HASHED_REQUEST and command.given & GIVEN_SENT_TIME and command.sent_time_us <= requests.forgotten:
        lookup.ask |= ASK_REQUEST
        lookup.request = command.request_hash
        lookup.sent_time_us = command.sent_time_us
    if command.hashed & HASHED_RECEIPT and command.business_day <= receipts.forgotten:
        lookup.ask |= ASK_RECEIPT
        lookup.receipt = command.receipt_hash
        lookup.business_day = command.business_day
        if command.method == METHOD_RETURN:
            lookup.ask |= ASK_RETURN
    return lookup.ask != 0


cdef void core_prepare(Core* core, Command** commands, uint32_t count) noexcept nogil:
    # In rounds, each of which needs what the round before has asked for: tables, accounts, lots. The hashes are a round of
    # their own, so that the reads of all commands stand close together and overlap.
    cdef uint32_t i, member
    cdef const Account* account
    for i in range(count):
        prepare_hashes(core, commands[i])
    for i in range(count):
        touch_tables(core, commands[i])
    for i in range(count):
        member = prepared_member(core, commands[i])
        if member != 0:
            touch(&core.accounts[member - 1])
    for i in range(count):
        member = prepared_member(core, commands[i])
        if member != 0:
            account = &core.accounts[member - 1]
            if account.lots != NO_PIECE:
                touch(&core.arena.lots[account.lots])
            touch(&core.profiles[member - 1])
    core.ahead.calls = 0
    if core.counting.set_count != 0:
        foresee_counters(core, commands, count)


cdef void core_execute(Core* core, const Command* command, int64_t now_us, uint8_t* entry, Outcome* outcome) noexcept nogil:
    touch_next(core)
    outcome.status = STATUS_OK
    outcome.field = 0
    outcome.index = -1
    outcome.value_kind = VALUE_NONE
    outcome.replayed = 0
    outcome.written = 0
    outcome.opened = 0
    outcome.parked = 0
    outcome.a = 0
    outcome.b = 0
    outcome.wait_sequence = 0
    outcome.sequence = 0
    outcome.entry = NULL
    outcome.entry_size = 0
    outcome.written_size = 0
    programme_of(core, max_i64(now_us, core.stats.time_us))
    if command.method == METHOD_GET_BALANCE:
        read_balance(core, command, max_i64(now_us, core.stats.time_us), outcome)
    elif command.method == METHOD_GET_OPERATION:
        read_operation(core, command, outcome)
    elif command.method == METHOD_RULES_ORDER:
        execute_order(core, command, now_us, entry, outcome)
    elif core.program.rules == NULL:
        refuse(outcome, STATUS_METHOD_UNKNOWN, 0, 0)
    elif command.method == METHOD_QUOTE:
        read_quote(core, command, now_us, outcome)
    elif command.method == METHOD_KEYS_STEP:
        execute_keys(core, command, max_i64(now_us, core.stats.time_us), outcome)
    elif is_write(command.method):
        execute_write(core, command, now_us, entry, outcome)
    else:
        refuse(outcome, STATUS_METHOD_UNKNOWN, 0, 0)


# --- ticks --------------------------------------------------------------------------------------------------------

cdef uint32_t write_expired_lots(Core* core, Decision* d, uint32_t member, uint8_t* entry) noexcept nogil:
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    cdef const Account* account = &core.accounts[member - 1]
    cdef const Lot* lot
    cdef uint32_t i
    begin_decision(core, d, d.now_us)
    d.member = member
    for i in range(account.lot_count):
        lot = &core.arena.lots[account.lots + i]
        if lot.expiry_day <= d.today and lot.points > lot.held:
            add_change(core, d, lot, lot.held - lot.points, 0)
            d.expired[lot.wallet] += lot.points - lot.held
    fill_header(core, header, KIND_EXPIRE_LOTS, d)
    memset(header.request, 0, 16)
    write_postings(&writer, d)
    write_lots(&writer, core, d)
    write_after(&writer, core, d, account)
    return entry_finish(&writer)


cdef uint32_t core_tick(Core* core, int64_t now_us, uint8_t* entry) noexcept nogil:
    cdef Decision* d = &core.decision
    cdef uint32_t size, looked = 0, member
    if core.program == NULL:
        return 0
    d.now_us = max_i64(now_us, core.stats.time_us)
    programme_of(core, d.now_us)
    d.today = day_of(core, &core.now_day, d.now_us)
    d.member = 0
    if core_reservation_due(core, d.now_us):
        size = write_end_of_reservation(core, d, &core.pool[core.heap[0]], KIND_EXPIRE_RESERVATION, entry)
        VERIFY(core_apply(core, entry, size) == APPLY_OK)
        core.stats.entries_expired_reservations += 1
        return size
    while looked < TICK_ACCOUNTS_MAX and looked < core.stats.members:
        looked += 1
        if core.sweep_at >= core.stats.members:
            core.sweep_at = 0
        core.sweep_at += 1
        member = core.sweep_at
        if core.accounts[member - 1].next_expiry_day <= d.today:
            size = write_expired_lots(core, d, member, entry)
            VERIFY(core_apply(core, entry, size) == APPLY_OK)
            core.stats.entries_expired_lots += 1
            return size
    return 0


cdef uint32_t core_write_digest(Core* core, int64_t now_us, uint8_t* entry) noexcept nogil:
    cdef Decision* d = &core.decision
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, entry)
    cdef Hash128 digest
    cdef uint32_t size
    d.now_us = max_i64(now_us, core.stats.time_us)
    programme_of(core, d.now_us)
    d.member = 0
    fill_header(core, header, KIND_DIGEST, d)
    memset(header.request, 0, 16)
    section_begin(&writer, SECTION_DIGEST)
    digest = digest_at(core, d.now_us)
    put_bytes(&writer, <const uint8_t*>&digest, 16)
    section_end(&writer)
    size = entry_finish(&writer)
    VERIFY(core_apply(core, entry, size) == APPLY_OK)
    return size


# --- applying -----------------------------------------------------------------------------------------------------

cdef int apply_identifiers(Core* core, const Slice* section, uint32_t member) noexcept nogil:
    cdef Account* account = &core.accounts[member - 1]
    cdef Cursor cursor
    cdef Hash128 key
    cdef const uint8_t* data
    cdef uint8_t kind
    cursor_open(&cursor, section)
    while cursor_more(&cursor):
        kind = get_byte(&cursor)
        data = get_bytes(&cursor, 16)
        if data == NULL or kind >= IDENTIFIER_TYPES_MAX:
            return APPLY_FRAMING
        memcpy(&key, data, 16)
        if identifiers_find(&core.identifiers, key) != 0:
            return APPLY_MEMBER
        if core.identifiers.count >= core.identifiers.count_max:
            return APPLY_FULL
        identifiers_add(&core.identifiers, key, member, kind)
        account.identifier_count += 1
        core.stats.identifiers += 1
        core.stats.bytes_identifiers += sizeof(IdentifierSlot)
        digest_add(&core.digest, fact_hash(FACT_IDENTIFIER, member, kind, key.lo, key.hi, 0))
    return APPLY_OK


cdef int apply_unlink(Core* core, const Slice* section, uint32_t member) noexcept nogil:
    cdef Account* account = &core.accounts[member - 1]
    cdef Cursor cursor
    cdef Hash128 key
    cdef const uint8_t* data
    cdef uint8_t kind
    cursor_open(&cursor, section)
    while cursor_more(&cursor):
        kind = get_byte(&cursor)
        data = get_bytes(&cursor, 16)
        if data == NULL:
            return APPLY_FRAMING
        memcpy(&key, data, 16)
        if identifiers_find(&core.identifiers, key) != member or account.identifier_count == 0:
            return APPLY_MEMBER
        identifiers_remove(&core.identifiers, key)
        account.identifier_count -= 1
        core.stats.identifiers -= 1
        core.stats.bytes_identifiers -= sizeof(IdentifierSlot)
        digest_sub(&core.digest, fact_hash(FACT_IDENTIFIER, member, kind, key.lo, key.hi, 0))
    core.unlinked_sequence = core.stats.sequence + 1
    return APPLY_OK


cdef inline void give_piece(Core* core, uint32_t piece, uint8_t cls) noexcept nogil:
    # Gives a piece up, and tells the owner of the one that took its place.
    cdef uint32_t owner = arena_give(&core.arena, piece, cls)
    if owner & OWNER_HOLD:
        core.pool[owner & ~<uint32_t>OWNER_HOLD].holds = piece
    elif owner != 0:
        core.accounts[owner - 1].lots = piece


cdef inline void move_lots(Core* core, Account* account, uint32_t member, uint32_t piece, uint8_t cls) noexcept nogil:
    # The account's lots into a piece just taken.
    if account.lots != NO_PIECE:
        memcpy(&core.arena.lots[piece], &core.arena.lots[account.lots], account.lot_count * sizeof(Lot))
        give_piece(core, account.lots, account.lot_class)
    account.lots = piece
    account.lot_class = cls
    core.arena.lots[piece].owner = member


cdef int apply_change(Core* core, Account* account, uint32_t member, const Change* change) noexcept nogil:
    # One lot: add, make or end it.
    cdef bint found
    cdef Lot* lots
    cdef Lot* lot
    cdef uint32_t place, piece, i
    cdef uint8_t cls
    place = 0
    found = False
    if account.lots != NO_PIECE:
        place = lot_search(&core.arena.lots[account.lots], account.lot_count, change.wallet, change.expiry_day,
                           change.available_day, change.funder, &found)
    if found:
        lot = &core.arena.lots[account.lots + place]
        digest_sub(&core.digest, lot_fact(lot, member))
        if add_overflow(lot.points, change.points, &lot.points) or add_overflow(lot.held, change.held, &lot.held):
            return APPLY_LOTS
        if lot.held < 0 or lot.points < lot.held:
            return APPLY_LOTS
        if lot.points != 0:
            digest_add(&core.digest, lot_fact(lot, member))
            return APPLY_OK
        account.lot_count -= 1
        core.stats.lots -= 1
        for i in range(place, account.lot_count):
            core.arena.lots[account.lots + i] = core.arena.lots[account.lots + i + 1]
        if account.lot_count == 0:
            give_piece(core, account.lots, account.lot_class)
            account.lots = NO_PIECE
            return APPLY_OK
        core.arena.lots[account.lots].owner = member
        if 2 * <uint32_t>account.lot_count <= units_of(account.lot_class):
            # Half of it is empty: a smaller piece will do. Without room for one it stays as it is.
            cls = class_for(account.lot_count)
            piece = arena_take(&core.arena, cls, member)
            if piece != NO_PIECE:
                move_lots(core, account, member, piece, cls)
        return APPLY_OK
    if change.points <= 0 or change.held != 0:
        return APPLY_LOTS
    if account.lots == NO_PIECE or account.lot_count == units_of(account.lot_class):
        cls = class_for(<uint32_t>account.lot_count + 1)
        piece = arena_take(&core.arena, cls, member)
        if piece == NO_PIECE:
            return APPLY_FULL
        move_lots(core, account, member, piece, cls)
    lots = &core.arena.lots[account.lots]
    i = account.lot_count
    while i > place:
        lots[i] = lots[i - 1]
        i -= 1
    lot = &lots[place]
    lot.points = change.points
    lot.held = 0
    lot.available_day = change.available_day
    lot.expiry_day = change.expiry_day
    lot.wallet = change.wallet
    lot.funder = change.funder
    lots[0].owner = member
    account.lot_count += 1
    core.stats.lots += 1
    digest_add(&core.digest, lot_fact(lot, member))
    return APPLY_OK


cdef void account_next_expiry(Core* core, Account* account) noexcept nogil:
    cdef const Lot* lot
    cdef int32_t soonest = DAY_NEVER
    cdef uint32_t i
    for i in range(account.lot_count):
        lot = &core.arena.lots[account.lots + i]
        if lot.expiry_day < soonest and lot.points > lot.held:
            soonest = lot.expiry_day
    account.next_expiry_day = soonest


cdef uint32_t pool_take(Core* core) noexcept nogil:
    # A free reservation; recycles the oldest finished one when there is none. NO_INDEX: all are ACTIVE.
    cdef uint32_t index = core.pool_free
    if index != NO_INDEX:
        core.pool_free = core.pool[index].next
        return index
    if core.pool_used < core.pool_max:
        core.pool_used += 1
        return core.pool_used - 1
    index = core.finished_first
    if index == NO_INDEX:
        return NO_INDEX
    core.finished_first = core.pool[index].next
    if core.finished_first == NO_INDEX:
        core.finished_last = NO_INDEX
    reservations_remove(&core.reservation_map, core.pool[index].id)
    return index


cdef int apply_reserve(Core* core, uint32_t member, uint64_t id, uint16_t wallet, int64_t reserved, int64_t expire_time_us,
                       uint32_t change_count) noexcept nogil:
    # The entry's changes hold lots: they become the reservation's.
    cdef Account* account = &core.accounts[member - 1]
    cdef Reservation* reservation
    cdef Lot* hold
    cdef int64_t total = 0
    cdef uint32_t i, index
    cdef uint8_t cls
    if id != core.stats.sequence + 1 or change_count == 0 or reserved <= 0:
        return APPLY_RESERVATION
    for i in range(change_count):
        if core.changes[i].held <= 0 or core.changes[i].points != 0 or core.changes[i].wallet != wallet:
            return APPLY_RESERVATION
        total += core.changes[i].held
    if total != reserved:
        return APPLY_RESERVATION
    cls = class_for(change_count)
    if not arena_has(&core.arena):
        return APPLY_FULL
    index = pool_take(core)
    if index == NO_INDEX:
        return APPLY_FULL
    reservation = &core.pool[index]
    reservation.holds = arena_take(&core.arena, cls, index | OWNER_HOLD)
    reservation.hold_class = cls
    reservation.hold_count = change_count
    for i in range(change_count):
        hold = &core.arena.lots[reservation.holds + i]
        hold.points = core.changes[i].held
        hold.held = 0
        hold.available_day = core.changes[i].available_day
        hold.expiry_day = core.changes[i].expiry_day
        hold.wallet = core.changes[i].wallet
        hold.funder = core.changes[i].funder
    reservation.id = id
    reservation.expire_time_us = expire_time_us
    reservation.reserved_points = reserved
    reservation.captured_points = 0
    reservation.member = member
    reservation.wallet = wallet
    reservation.state = RESERVATION_ACTIVE
    reservation.previous = NO_INDEX
    reservation.next = account.reservations
    if account.reservations != NO_INDEX:
        core.pool[account.reservations].previous = index
    account.reservations = index
    account.reservation_count += 1
    reservations_add(&core.reservation_map, id, index)
    core.heap[core.heap_count] = index
    reservation.heap_index = core.heap_count
    core.heap_count += 1
    heap_up(core, core.heap_count - 1)
    digest_add(&core.digest, reservation_fact(reservation))
    core.stats.reservations_active += 1
    core.stats.reserved_points[wallet] += reserved
    core.stats.reserved_total_points[wallet] += reserved
    return APPLY_OK


cdef int apply_end_of_reservation(Core* core, uint32_t member, uint64_t id, uint8_t state, int64_t captured) noexcept nogil:
    cdef Account* account = &core.accounts[member - 1]
    cdef int64_t index = reservations_find(&core.reservation_map, id)
    cdef Reservation* reservation
    if index < 0 or state < RESERVATION_CAPTURED or state > RESERVATION_EXPIRED:
        return APPLY_RESERVATION
    reservation = &core.pool[index]
    if reservation.state != RESERVATION_ACTIVE or reservation.member != member or captured < 0 or captured > reservation.reserved_points:
        return APPLY_RESERVATION
    digest_sub(&core.digest, reservation_fact(reservation))
    heap_remove(core, reservation.heap_index)
    if reservation.previous != NO_INDEX:
        core.pool[reservation.previous].next = reservation.next
    else:
        account.reservations = reservation.next
    if reservation.next != NO_INDEX:
        core.pool[reservation.next].previous = reservation.previous
    account.reservation_count -= 1
    give_piece(core, reservation.holds, reservation.hold_class)
    reservation.hold_count = 0
    reservation.state = state
    reservation.captured_points = captured
    reservation.next = NO_INDEX
    if core.finished_last != NO_INDEX:
        core.pool[core.finished_last].next = <uint32_t>index
    else:
        core.finished_first = <uint32_t>index
    core.finished_last = <uint32_t>index
    core.stats.reservations_active -= 1
    core.stats.reserved_points[reservation.wallet] -= reservation.reserved_points
    return APPLY_OK


cdef int apply_postings(Core* core, const Slice* section, int64_t* member_points) noexcept nogil:
    # Adds the postings to the programme's totals; member_points: what each wallet of the member must change by.
    cdef int64_t sums[WALLETS_MAX]
    cdef Cursor cursor
    cdef uint64_t wallet
    cdef uint8_t account
    cdef int64_t points
    cdef uint32_t w
    memset(sums, 0, sizeof(sums))
    cursor_open(&cursor, section)
    while cursor_more(&cursor):
        account = get_byte(&cursor)
        wallet = get_varint(&cursor)
        points = get_signed(&cursor)
        if cursor.broken or wallet >= WALLETS_MAX:
            return APPLY_FRAMING
        if add_overflow(sums[wallet], points, &sums[wallet]):
            return APPLY_SUM
        if account == ACCOUNT_MEMBER:
            if add_overflow(member_points[wallet], points, &member_points[wallet]):
                return APPLY_SUM
        elif account == ACCOUNT_ISSUED:
            core.stats.issued_points[wallet] -= points
        elif account == ACCOUNT_REDEEMED:
            core.stats.redeemed_points[wallet] += points
        elif account == ACCOUNT_EXPIRED:
            core.stats.expired_points[wallet] += points
        elif account == ACCOUNT_ADJUSTED:
            core.stats.adjusted_points[wallet] -= points
        else:
            return APPLY_FRAMING
    for w in range(WALLETS_MAX):
        if sums[w] != 0:
            return APPLY_SUM
    return APPLY_OK


cdef int apply_lots(Core* core, const EntryView* view, uint32_t member, uint32_t* change_count) noexcept nogil:
    # POSTINGS and LOTS: the member's postings are the sums of the lots' changes.
    cdef Account* account = &core.accounts[member - 1]
    cdef int64_t member_points[WALLETS_MAX]
    cdef Cursor cursor
    cdef Change* change
    cdef uint64_t wallet, available_day, expiry_day, funder
    cdef uint32_t count = 0, w
    cdef int result
    memset(member_points, 0, sizeof(member_points))
    if view.sections[SECTION_POSTINGS].data != NULL:
        result = apply_postings(core, &view.sections[SECTION_POSTINGS], member_points)
        if result != APPLY_OK:
            return result
    if view.sections[SECTION_LOTS].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_LOTS])
        while cursor_more(&cursor):
            if count == CHANGES_MAX:
                return APPLY_FRAMING
            change = &core.changes[count]
            wallet = get_varint(&cursor)
            available_day = get_varint(&cursor)
            expiry_day = get_varint(&cursor)
            funder = get_varint(&cursor)
            change.points = get_signed(&cursor)
            change.held = get_signed(&cursor)
            if cursor.broken or wallet >= WALLETS_MAX or available_day > DAY_NEVER or expiry_day > DAY_NEVER or funder > LOT_SLIDES + FUNDERS_MAX:
                return APPLY_FRAMING
            change.wallet = <uint16_t>wallet
            change.available_day = <int32_t>available_day
            change.expiry_day = <int32_t>expiry_day
            change.funder = <uint16_t>funder
            if add_overflow(member_points[wallet], -change.points, &member_points[wallet]):
                return APPLY_LOTS
            result = apply_change(core, account, member, change)
            if result != APPLY_OK:
                return result
            count += 1
    for w in range(WALLETS_MAX):
        if member_points[w] != 0:
            return APPLY_LOTS
    if count != 0:
        account_next_expiry(core, account)
    change_count[0] = count
    return APPLY_OK


cdef int apply_reservation(Core* core, const EntryView* view, uint32_t change_count) noexcept nogil:
    cdef Cursor cursor
    cdef uint64_t id, wallet
    cdef uint8_t state
    cdef int64_t reserved, captured, expire_after
    cursor_open(&cursor, &view.sections[SECTION_RESERVATION])
    id = get_varint(&cursor)
    state = get_byte(&cursor)
    wallet = get_varint(&cursor)
    reserved = get_signed(&cursor)
    captured = get_signed(&cursor)
    expire_after = get_signed(&cursor)
    if cursor.broken or wallet >= WALLETS_MAX:
        return APPLY_FRAMING
    if state == RESERVATION_ACTIVE:
        return apply_reserve(core, view.header.member, id, <uint16_t>wallet, reserved, view.header.time_us + expire_after, change_count)
    return apply_end_of_reservation(core, view.header.member, id, state, captured)


cdef void remember_keys(Core* core, const EntryView* view) noexcept nogil:
    # The request id, and for a success the receipt key. What is older than keys_from lies in runs.
    cdef const EntryHeader* header = view.header
    cdef KeyTable* requests = &core.keys[KEYS_REQUEST]
    cdef KeyTable* receipts = &core.keys[KEYS_RECEIPT]
    cdef const Context* context = &core.measured_context
    cdef Context unread
    cdef Hash128 key
    cdef KeySlot* slot
    cdef uint64_t sequence = core.stats.sequence + 1
    cdef bint earns, pays
    if sequence < requests.keys_from and sequence < receipts.keys_from:
        return
    if core.measured_entry != <const uint8_t*>header:
        context_read(view, &unread)
        context = &unread
    memcpy(&key, header.request, 16)
    if (key.lo != 0 or key.hi != 0) and sequence >= requests.keys_from:
        slot = keys_put(requests, key, header.time_us + context.values[CONTEXT_SENT_TIME], sequence)
        slot_set_first(slot, sequence)
    if sequence < receipts.keys_from:
        return
    if header.status != STATUS_OK or context.store.data == NULL or context.till.data == NULL or context.number.data == NULL:
        return
    if context.store.size > STORE_BYTES_MAX or context.till.size > TILL_BYTES_MAX or context.number.size > RECEIPT_NUMBER_BYTES_MAX:
        return
    key = receipt_key_hash(<int32_t>context.values[CONTEXT_BUSINESS_DAY], context.store, context.till, context.number)
    if header.kind == KIND_RETURN or header.kind == KIND_DECIDE_REVIEW:
        if header.kind == KIND_RETURN:
            slot_set_first(keys_put(receipts, key_of_return(key), context.values[CONTEXT_BUSINESS_DAY], sequence), sequence)
        elif context.values[CONTEXT_VERDICT] == 2:
            slot_set_second(keys_put(receipts, key_of_return(key), context.values[CONTEXT_BUSINESS_DAY], sequence), sequence)
        return
    slot = keys_put(receipts, key, context.values[CONTEXT_BUSINESS_DAY], sequence)
    earns = header.kind == KIND_EARN or header.kind == KIND_COMMIT
    pays = header.kind == KIND_BURN or header.kind == KIND_CAPTURE or context.values[CONTEXT_PAYMENT] != PAYMENT_NONE
    if earns:
        slot_set_first(slot, sequence)
    if pays:
        slot_set_second(slot, sequence)


cdef int apply_member(Core* core, const EntryView* view) noexcept nogil:
    # An entry that changes one account.
    cdef const EntryHeader* header = view.header
    cdef Account* account
    cdef uint32_t change_count = 0
    cdef int result
    if header.flags & FLAG_OPENED:
        if header.member != core.stats.members + 1:
            return APPLY_MEMBER
        if core.stats.members >= core.accounts_max:
            return APPLY_FULL
        account = &core.accounts[header.member - 1]
        memset(account, 0, sizeof(Account))
        memset(&core.profiles[header.member - 1], 0, sizeof(Profile))
        account.lots = NO_PIECE
        account.reservations = NO_INDEX
        account.next_expiry_day = DAY_NEVER
        core.stats.members += 1
        core.stats.bytes_accounts += sizeof(Account)
    else:
        if header.member == 0 or header.member > core.stats.members:
            return APPLY_MEMBER
        account = &core.accounts[header.member - 1]
        digest_sub(&core.digest, account_fact(account, header.member))
    if view.sections[SECTION_IDENTIFIERS].data != NULL:
        if header.kind == KIND_UNLINK:
            result = apply_unlink(core, &view.sections[SECTION_IDENTIFIERS], header.member)
        else:
            result = apply_identifiers(core, &view.sections[SECTION_IDENTIFIERS], header.member)
        if result != APPLY_OK:
            return result
    result = apply_lots(core, view, header.member, &change_count)
    if result != APPLY_OK:
        return result
    if view.sections[SECTION_RESERVATION].data != NULL:
        result = apply_reservation(core, view, change_count)
        if result != APPLY_OK:
            return result
        if header.kind != KIND_RESERVE:
            account_next_expiry(core, account)
    if entry_has_rules(view):
        result = apply_rules(core, view)
        if result != APPLY_OK:
            return result
    account.sequence = core.stats.sequence + 1
    digest_add(&core.digest, account_fact(account, header.member))
    return APPLY_OK


cdef int core_apply(Core* core, const uint8_t* entry, uint32_t size) noexcept nogil:
    cdef EntryView view
    cdef const EntryHeader* header
    cdef Hash128 digest
    cdef int result = APPLY_OK
    if not entry_view(entry, size, &view):
        return APPLY_FRAMING
    header = view.header
    if header.time_us < core.stats.time_us:
        return APPLY_SEQUENCE
    programme_of(core, header.time_us)
    if header.kind == KIND_PROGRAM:
        result = apply_program(core, &view)
        if result == APPLY_OK:
            remember_keys(core, &view)
    elif header.kind == KIND_PROGRAM_PART:
        result = apply_part(core, &view.sections[SECTION_PART])
    elif header.kind == KIND_RESTORE and core.program != NULL:
        pass                    # a mark: what went before it is the state
    elif core.program == NULL or header.program != core.program.version:
        return APPLY_PROGRAM
    elif header.kind == KIND_DIGEST:
        digest = digest_at(core, header.time_us)
        if (view.sections[SECTION_DIGEST].size != 16 or view.sections[SECTION_DIGEST].data == NULL
                or memcmp(view.sections[SECTION_DIGEST].data, &digest, 16) != 0):
            return APPLY_DIGEST
        core.digest_sequence = core.stats.sequence + 1
    elif header.kind == KIND_CHANGE_BLOCKS:
        result = apply_blocks(core, &view.sections[SECTION_BLOCKS])
        if result == APPLY_OK:
            remember_keys(core, &view)
    elif KIND_EARN <= header.kind <= KIND_RETURN:
        # Limits are judged, and counted, by what was before the entry.
        if header.kind <= KIND_ENROLL or header.kind == KIND_RETURN or header.kind == KIND_EXPIRE_RESERVATION:
            result = apply_velocity(core, &view)
        if result == APPLY_OK and header.status == STATUS_OK:
            result = apply_member(core, &view)
        if result == APPLY_OK:
            result = apply_cases(core, &view)
        if result == APPLY_OK and view.sections[SECTION_RUNG].data != NULL:
            result = apply_rung(core, &view)
        if result == APPLY_OK:
            remember_keys(core, &view)
    else:
        return APPLY_FRAMING
    if result != APPLY_OK:
        return result
    core.stats.sequence += 1
    core.stats.time_us = header.time_us
    count_bytes(core)
    return APPLY_OK


cdef inline void count_bytes(Core* core) noexcept nogil:
    cdef uint32_t i
    for i in range(<uint32_t>VELOCITY_TABLES):
        core.stats.limit_counters[i] = core.velocity.tables[i].used
    count_keys(core)
    core.stats.bytes_lots = core.arena.live * sizeof(Lot)
    core.stats.bytes_reservations = <uint64_t>core.pool_used * sizeof(Reservation)
    core.stats.bytes_counters = core.counters.live * sizeof(Counter)
    core.stats.bytes_days = core.days.live * sizeof(Counter)


include "_core_snapshot.pxi"


cdef int core_remember(Core* core, const uint8_t* entry, uint32_t size) noexcept nogil:
    cdef EntryView view
    if not entry_view(entry, size, &view):
        return APPLY_FRAMING
    remember_keys(core, &view)
    core.stats.sequence += 1
    return APPLY_OK


if sizeof(EntryHeader) != ENTRY_HEADER_BYTES or sizeof(GroupHeader) != GROUP_HEADER_BYTES or sizeof(Account) != 32 or sizeof(Profile) != 64 or sizeof(Counter) != sizeof(Lot):
    raise ImportError("ledger._core was built with another layout: run `make build`")
