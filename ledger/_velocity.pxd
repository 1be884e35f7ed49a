# Leaves: velocity counters, as docs/decisions/fraud.md (What is kept) has them: sums per calendar window, sums over the last minutes or hours,
# and how many different ones. Not for what is counted under which key, and not for bounds (the core). cimported by the core and _probe.
#
# Three tables of slots, open addressing with linear probing by the key alone: all counters of a key stand beside each other, and one wait for
# memory brings them all. Slots begin alike (VelocityHead), so that one search, one deletion and one sweep serve the three of them.
# - Calendar: one slot for even windows and one for odd ones, so that the window at hand and the one before are both exact. A window is dead
#   when the one behind its successor has begun. What is given back takes from the value, never below 0.
# - Sliding: a ring of 13 buckets, each a twelfth of the window. Twelve whole ones and the one being filled hold every moment of the last window.
#   Different ones in such a window are told exactly up to 13, in a slot of the same size.
# - Distinct: a sorted set of fingerprints up to 1,024 of them, then 32,768 bits that are counted linearly. The first fingerprint stands in the
#   slot, the others in a piece of an arena, whose eighth word names the slot; so a counter that has seen only one needs no piece, and 1,024
#   fingerprints need as many words as the bits.
# A dead slot is as if it were not there, for everybody, so nobody can see when it is taken out. Each new slot has the next sixteen of its table
# looked at, so nothing pauses when windows roll. Where velocity_room says no, nothing new comes in and nothing is looked at: whoever is refused
# calls velocity_sweep, or a table full of the dead would stay so.
# Whoever asks a counter and then adds to it makes its VelocityPlace once (functions that end in _at), and the slot is looked for once. Taking
# out moves slots, so what stands at a place remembered is looked at before it is believed. Whoever keeps a live slot itself (functions that end
# in _live) may add to it with the same VelocityNow as long as `moves` is what it was.
#
# The digest's sums hold a fact for each window (bucket, fingerprint) times what was added, by the day on which it dies. The calendar's sums
# follow from its slots; those of the other two do not (what has left a ring is still in its sum), so a snapshot carries them.
#
# The ledger's time (VelocityNow) must never go back. Memory is reserved at open and touched when used. One writer.

from libc.stdint cimport INT32_MAX, INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from ledger._arith cimport add_overflow, civil_from_day, day_from_civil, div_floor
from ledger._entry cimport Cursor, EntryWriter, get_bytes, get_key, get_varint, put_bytes, put_key, put_varint
from ledger._hash cimport Hash128, digest_add, digest_times, fact_hash, fold
from ledger._image cimport prefetch
from ledger._layout cimport DAY_NEVER
from ledger._lots cimport Arena, LOT_CLASS_COUNT, NO_PIECE, arena_close, arena_give, arena_open, arena_take, class_for, units_of
from ledger._table cimport cyclic_distance, range_of, reserve_memory, touch_many, unreserve_memory

cdef extern from "_verify.h" nogil:
    void VERIFY(bint condition)

cdef extern from *:
    """
    /* round(-m ln(1 - set/m)) for m = 2^15 bits of which `set` are set; all set: as if one were not. The logarithm of two is found bit by bit,
       by squaring: integers only, so every machine has the same, and there is no table to make or to keep. Never less for more bits. */
    static inline uint32_t ledger_linear(uint32_t set) {
        uint32_t left = set < 32768 ? 32768 - set : 1, whole = 31 - (uint32_t)__builtin_clz(left), i;
        uint64_t mantissa = (uint64_t)left << (63 - whole), logarithm = whole;
        unsigned __int128 square;
        for (i = 0; i < 40; i++) {
            square = (unsigned __int128)mantissa * mantissa;
            logarithm <<= 1;
            if (square >> 127) { logarithm |= 1; mantissa = (uint64_t)(square >> 64); }
            else mantissa = (uint64_t)(square >> 63);
        }
        logarithm = (UINT64_C(15) << 40) - logarithm;       /* log2(m / left), 40 bits behind the point */
        /* times ln 2 (63 bits behind the point), times m, to the nearest */
        return (uint32_t)(((unsigned __int128)logarithm * UINT64_C(6393154322601327830) + ((unsigned __int128)1 << 87)) >> 88);
    }
    static inline uint32_t ledger_bits_set(const uint32_t *words, uint32_t count) {
        uint32_t i, set = 0;
        for (i = 0; i < count; i++) set += (uint32_t)__builtin_popcount(words[i]);
        return set;
    }
    """
    uint32_t linear_count "ledger_linear"(uint32_t set) noexcept nogil
    uint32_t bits_set "ledger_bits_set"(const uint32_t* words, uint32_t count) noexcept nogil

cdef enum:                      # VelocityKind: the low 3 bits of a counter's id
    VELOCITY_DAY = 1
    VELOCITY_WEEK = 2
    VELOCITY_MONTH = 3
    VELOCITY_EVER = 4
    VELOCITY_SLIDING = 5
    VELOCITY_KIND_MASK = 7

cdef enum:                      # VelocityTableNumber
    VELOCITY_CALENDARS = 0
    VELOCITY_SLIDINGS = 1
    VELOCITY_DISTINCTS = 2
    VELOCITY_TABLES = 3

cdef enum:                      # what loading answers; full as -1
    VELOCITY_LOADED = 0
    VELOCITY_BROKEN = 1         # a record that is not whole, or that no saving writes

cdef enum:
    SLIDING_BUCKETS = 13        # twelve whole ones and the one being filled
    SWEPT_WITH_NEW = 16         # slots looked at with each new one
    DISTINCT_EXACT_MAX = 1024   # fingerprints
    DISTINCT_WORDS = 1024       # of 32 bits: the sketch
    DISTINCT_UNITS_MAX = 128    # of the arena: 1023 words and the owner
    DISTINCT_OWNER_WORD = 7     # of a piece: Lot.owner
    DISTINCT_UNITS_PLANNED = 8  # of the arena, on average: 56 fingerprints; most cards and devices have one member
    DISTINCTS_LIMIT = 200_000_000   # so that a place in the arena is 32 bits
    CACHE_LINE_BYTES = 64
    VELOCITY_DAYS = 128         # days to come that have sums; a month that has not begun dies within 93
    FACT_VELOCITY = 10
    FACT_SLIDING = 11
    FACT_DISTINCT = 12
    FACT_RECENT = 15            # 13 and 14 are those of cases and block lists

cdef struct VelocityNow:        # the ledger's time, in which windows die
    int64_t now_s               # UTC seconds since 1970
    int32_t today               # days since 1970 in the programme's zone
    int32_t windows[5]          # by VelocityKind: number of the window at hand

cdef struct VelocityHead:       # begins every slot
    uint64_t key                # 0: empty
    uint32_t id
    int32_t window              # of a sliding one: its newest bucket

cdef struct CalendarSlot:       # 24 bytes
    VelocityHead head
    int64_t value               # 0..

cdef struct SlidingSlot:        # 72 bytes
    VelocityHead head
    uint32_t bucket_s
    uint32_t values[SLIDING_BUCKETS]    # of bucket b at b % 13; of different ones who was seen last (recent_add)

cdef struct DistinctSlot:       # 32 bytes
    VelocityHead head
    uint32_t count              # fingerprints, 1..; DISTINCT_EXACT_MAX + 1: bits instead
    uint32_t piece              # of the arena, with count above 1
    uint32_t first              # the first fingerprint; of bits the last word
    uint16_t bits               # set
    uint16_t bits_begun         # that were set when the bits began: what is counted on from

cdef struct VelocityTable:
    uint8_t* slots
    uint64_t capacity
    uint64_t used               # live, and dead that are not yet taken out
    uint64_t used_max           # room is promised up to here
    uint64_t used_end           # and never taken beyond this
    uint64_t hand               # the next slot to be looked at
    uint32_t size               # of a slot

cdef struct VelocitySum:
    Hash128 sum
    int32_t day                 # on which it dies; of the last of a ring DAY_NEVER

cdef struct VelocityStats:
    uint64_t counters           # slots, also the dead that are not yet taken out
    uint64_t slidings
    uint64_t distincts
    uint64_t refused_full       # adds that found no memory; whoever asks velocity_room counts here what was refused

cdef struct Velocity:
    VelocityTable tables[VELOCITY_TABLES]
    Arena arena                 # of the distinct ones
    VelocitySum calendar_sums[VELOCITY_DAYS + 1]    # day d at d % VELOCITY_DAYS, lifetime ones last
    VelocitySum carried_sums[VELOCITY_DAYS + 1]     # sliding and distinct: not to be had from the slots
    VelocityStats stats
    uint64_t moves              # how often a slot was taken out, so that others may stand elsewhere

cdef struct VelocityPlace:      # where a counter of a key is looked for
    uint64_t key                # as velocity_key has it
    uint64_t home               # the key's, in the counter's table
    VelocityHead* slot          # where it was found before; NULL: it was not

cdef struct VelocityBest:       # a row of velocity_top
    uint64_t key
    int64_t amount
    int32_t window              # of a sliding one 0

cdef struct VelocityTop:        # the largest of one counter
    VelocityBest* best          # the largest first
    uint32_t count
    uint32_t id
    bint recent                 # different ones of a sliding window


# --- time ---------------------------------------------------------------------------------------------------------

cdef inline int32_t velocity_window(uint8_t kind, int32_t day) noexcept nogil:
    # The number of the calendar window that a day lies in.
    cdef int32_t year, month, of_month
    if kind == VELOCITY_DAY:
        return day
    if kind == VELOCITY_WEEK:
        return <int32_t>div_floor(day + 3, 7)       # 1970-01-01 was a Thursday; weeks begin on Mondays
    if kind == VELOCITY_MONTH:
        civil_from_day(day, &year, &month, &of_month)
        return year * 12 + month - 1
    return 0


cdef inline int32_t velocity_dead_day(uint8_t kind, int32_t window) noexcept nogil:
    # The first day on which it is dead: the one behind its successor has begun. Lifetime: DAY_NEVER.
    cdef int32_t year
    if kind == VELOCITY_DAY:
        return window + 2
    if kind == VELOCITY_WEEK:
        return (window + 2) * 7 - 3
    if kind == VELOCITY_MONTH:
        year = <int32_t>div_floor(window + 2, 12)
        return day_from_civil(year, window + 2 - 12 * year + 1, 1)
    return DAY_NEVER


cdef inline void velocity_now(VelocityNow* now, int64_t now_s, int32_t today) noexcept nogil:
    cdef uint8_t kind
    now.now_s = now_s
    now.today = today
    for kind in range(5):
        now.windows[kind] = velocity_window(kind, today)


cdef inline uint32_t sliding_bucket_s(uint32_t window_s) noexcept nogil:
    # A twelfth of the window, rounded up, so that twelve are never less than it.
    return (window_s + 11) // 12 if window_s != 0 else 1


cdef inline bint velocity_dead(const VelocityHead* slot, const VelocityNow* now) noexcept nogil:
    cdef uint32_t kind = slot.id & VELOCITY_KIND_MASK
    if kind == VELOCITY_SLIDING:
        # Whether the bucket of now is at least 13 later, without a division.
        return now.now_s >= (<int64_t>slot.window + SLIDING_BUCKETS) * (<const SlidingSlot*>slot).bucket_s
    return kind != VELOCITY_EVER and now.windows[kind] >= slot.window + 2


cdef inline bint velocity_nowhere(uint32_t id, int32_t window, const VelocityNow* now) noexcept nogil:
    # Whether what comes for this calendar window counts nowhere: it is dead, or further ahead than the next one, for which no sums are there.
    cdef uint32_t kind = id & VELOCITY_KIND_MASK
    VERIFY(kind >= VELOCITY_DAY and kind <= VELOCITY_EVER)
    if kind == VELOCITY_EVER:
        return window != 0
    return now.windows[kind] >= <int64_t>window + 2 or window > <int64_t>now.windows[kind] + 1


# --- open and close -----------------------------------------------------------------------------------------------

cdef inline bint velocity_open_table(VelocityTable* table, uint64_t used_max, uint32_t size) noexcept nogil:
    table.size = size
    table.used_max = used_max
    table.capacity = used_max + used_max * 2 // 3 + 8       # used_max is 60 % of it; replay may go to 90 %
    table.used_end = table.capacity // 10 * 9 + table.capacity % 10 * 9 // 10
    table.slots = <uint8_t*>reserve_memory(table.capacity * size)
    return table.slots != NULL


cdef inline bint velocity_open(Velocity* v, uint64_t counters_max, uint64_t slidings_max, uint64_t distincts_max) noexcept nogil:
    # Room for so many of each; of different ones DISTINCT_UNITS_PLANNED on average, and for the growth of one command.
    # False: there is no address space, or too many. velocity_close in any case.
    cdef uint32_t i
    memset(v, 0, sizeof(Velocity))
    if counters_max >> 40 or slidings_max >> 40 or distincts_max > DISTINCTS_LIMIT:
        return False
    for i in range(VELOCITY_DAYS):
        v.calendar_sums[i].day = v.carried_sums[i].day = -1
    v.calendar_sums[VELOCITY_DAYS].day = v.carried_sums[VELOCITY_DAYS].day = DAY_NEVER
    return (velocity_open_table(&v.tables[VELOCITY_CALENDARS], counters_max, sizeof(CalendarSlot))
            and velocity_open_table(&v.tables[VELOCITY_SLIDINGS], slidings_max, sizeof(SlidingSlot))
            and velocity_open_table(&v.tables[VELOCITY_DISTINCTS], distincts_max, sizeof(DistinctSlot))
            and arena_open(&v.arena, v.tables[VELOCITY_DISTINCTS].used_end * DISTINCT_UNITS_PLANNED))


cdef inline void velocity_close(Velocity* v) noexcept nogil:
    cdef uint32_t i
    for i in range(VELOCITY_TABLES):
        unreserve_memory(v.tables[i].slots, v.tables[i].capacity * v.tables[i].size)
    if v.arena.lots != NULL and v.arena.before != NULL:
        arena_close(&v.arena)


cdef inline bint velocity_may_grow(const Velocity* v) noexcept nogil:
    # Whether counters of different ones may become larger: each class of pieces may ask for a block.
    return v.arena.capacity - v.arena.used + v.arena.empty >= LOT_CLASS_COUNT


cdef inline bint velocity_room(const Velocity* v, uint32_t counters, uint32_t slidings, uint32_t distincts) noexcept nogil:
    # Whether one command may add so many new slots. What counts in a slot of different ones that is there asks velocity_may_grow.
    return ((counters == 0 or v.tables[VELOCITY_CALENDARS].used + counters <= v.tables[VELOCITY_CALENDARS].used_max)
            and (slidings == 0 or v.tables[VELOCITY_SLIDINGS].used + slidings <= v.tables[VELOCITY_SLIDINGS].used_max)
            and (distincts == 0 or (v.tables[VELOCITY_DISTINCTS].used + distincts <= v.tables[VELOCITY_DISTINCTS].used_max and velocity_may_grow(v))))


# --- slots --------------------------------------------------------------------------------------------------------

cdef inline uint64_t velocity_key(uint64_t key) noexcept nogil:
    # 0 is what an empty slot has.
    return key if key != 0 else 1


cdef inline uint64_t velocity_home(const VelocityTable* table, uint64_t key) noexcept nogil:
    # By the key alone. Mixed, because nobody promises that the high bits of a key are good ones.
    return range_of(fold(key ^ <uint64_t>0xa0761d6478bd642f, <uint64_t>0xe7037ed1a0b428db), table.capacity)


cdef inline VelocityHead* velocity_slot(const VelocityTable* table, uint64_t at) noexcept nogil:
    return <VelocityHead*>(table.slots + at * table.size)


cdef inline void velocity_touch_from(const VelocityTable* table, uint64_t home, uint32_t slots, bint soon) noexcept nogil:
    # Starts the reads of so many slots, without waiting for them. soon: they are needed next, and were started long ago.
    cdef uintptr_t line = <uintptr_t>velocity_slot(table, home) & ~<uintptr_t>(CACHE_LINE_BYTES - 1)
    cdef uintptr_t end = <uintptr_t>velocity_slot(table, home + slots if slots <= table.capacity - home else table.capacity)
    while line < end:
        if soon:
            prefetch(<const void*>line)
        else:
            touch_many(<const void*>line)
        line += CACHE_LINE_BYTES


cdef inline uint32_t velocity_lines(const Velocity* v, uint64_t key, const uint8_t* slots, uintptr_t* lines, uint32_t count,
                                    uint32_t most) noexcept nogil:
    # Adds the lines that velocity_touch reads, as many as there is place for. Returns how many there are then.
    cdef const VelocityTable* table
    cdef uintptr_t line, end
    cdef uint64_t home
    cdef uint32_t i
    key = velocity_key(key)
    for i in range(VELOCITY_TABLES):
        table = &v.tables[i]
        if slots[i] == 0 or table.used == 0:
            continue
        home = velocity_home(table, key)
        line = <uintptr_t>velocity_slot(table, home) & ~<uintptr_t>(CACHE_LINE_BYTES - 1)
        end = <uintptr_t>velocity_slot(table, home + slots[i] if slots[i] <= table.capacity - home else table.capacity)
        while line < end and count < most:
            lines[count] = line
            count += 1
            line += CACHE_LINE_BYTES
    return count


cdef inline void velocity_touch(const Velocity* v, uint64_t key, const uint8_t* slots) noexcept nogil:
    # The reads of all that this key has, so many slots of each table.
    cdef const VelocityTable* table
    cdef uint32_t i
    key = velocity_key(key)
    for i in range(VELOCITY_TABLES):
        table = &v.tables[i]
        if slots[i] != 0 and table.used != 0:
            velocity_touch_from(table, velocity_home(table, key), slots[i], False)


cdef inline VelocityHead* velocity_find_from(const VelocityTable* table, uint64_t home, uint64_t key, uint32_t id, int32_t window,
                                             uint32_t mask) noexcept nogil:
    cdef uint64_t at = home
    cdef VelocityHead* slot = velocity_slot(table, at)
    while slot.key != 0:
        if slot.key == key and slot.id == id and not (<uint32_t>(slot.window ^ window) & mask):
            return slot
        at += 1
        if at == table.capacity:
            at = 0
        slot = velocity_slot(table, at)
    return NULL


cdef inline VelocityHead* velocity_find(const VelocityTable* table, uint64_t key, uint32_t id, int32_t window, uint32_t mask) noexcept nogil:
    # The counter's slot for windows that are like this one in the bits of the mask, whether dead or not; NULL.
    return velocity_find_from(table, velocity_home(table, key), key, id, window, mask)


cdef inline VelocityHead* velocity_find_at(const VelocityTable* table, VelocityPlace* place, uint32_t id, int32_t window,
                                           uint32_t mask) noexcept nogil:
    # As velocity_find. Taking slots out moves others, so what stands where it was found before is looked at; who is there is there only once.
    cdef VelocityHead* slot = place.slot
    if slot == NULL or slot.key != place.key or slot.id != id or <uint32_t>(slot.window ^ window) & mask:
        place.slot = velocity_find_from(table, place.home, place.key, id, window, mask)
    return place.slot


cdef inline VelocityPlace velocity_place(const Velocity* v, uint32_t number, uint64_t key) noexcept nogil:
    cdef VelocityPlace place
    place.key = velocity_key(key)
    place.home = velocity_home(&v.tables[number], place.key)
    place.slot = NULL
    return place


cdef inline uint32_t* distinct_words(const Velocity* v, const DistinctSlot* slot) noexcept nogil:
    return <uint32_t*>&v.arena.lots[slot.piece]


cdef inline uint32_t distinct_place(uint32_t word) noexcept nogil:
    # Where a word stands in a piece: around its owner.
    return word if word < DISTINCT_OWNER_WORD else word + 1


cdef inline uint8_t distinct_class(uint32_t count) noexcept nogil:
    # Of the piece for a counter with so many fingerprints, above 1; the bits' is that of the most.
    return class_for((count - 1 if count <= DISTINCT_EXACT_MAX else DISTINCT_EXACT_MAX - 1) // 8 + 1)


cdef inline void distinct_give(Velocity* v, uint32_t piece, uint8_t cls) noexcept nogil:
    # Gives a piece up, and tells the slot whose piece took its place.
    cdef uint32_t owner = arena_give(&v.arena, piece, cls)
    if owner != 0:
        (<DistinctSlot*>velocity_slot(&v.tables[VELOCITY_DISTINCTS], owner - 1)).piece = piece


cdef inline void velocity_remove(Velocity* v, uint32_t number, uint64_t hole) noexcept nogil:
    # Takes a slot out. The one behind it may have come into its place.
    cdef VelocityTable* table = &v.tables[number]
    cdef uint64_t probe = hole, home
    cdef DistinctSlot* distinct = <DistinctSlot*>velocity_slot(table, hole)
    if number == VELOCITY_DISTINCTS and distinct.count > 1:
        distinct_give(v, distinct.piece, distinct_class(distinct.count))
    while True:
        # Pull back every later slot of the run whose home is not behind the hole.
        probe += 1
        if probe == table.capacity:
            probe = 0
        if velocity_slot(table, probe).key == 0:
            break
        home = velocity_home(table, velocity_slot(table, probe).key)
        if cyclic_distance(home, probe, table.capacity) >= cyclic_distance(hole, probe, table.capacity):
            memcpy(velocity_slot(table, hole), velocity_slot(table, probe), table.size)
            distinct = <DistinctSlot*>velocity_slot(table, hole)
            if number == VELOCITY_DISTINCTS and distinct.count > 1:
                v.arena.lots[distinct.piece].owner = <uint32_t>hole + 1
            hole = probe
    memset(velocity_slot(table, hole), 0, table.size)
    table.used -= 1
    v.moves += 1


cdef inline void velocity_count(Velocity* v) noexcept nogil:
    v.stats.counters = v.tables[VELOCITY_CALENDARS].used
    v.stats.slidings = v.tables[VELOCITY_SLIDINGS].used
    v.stats.distincts = v.tables[VELOCITY_DISTINCTS].used


cdef inline void velocity_sweep_table(Velocity* v, uint32_t number, const VelocityNow* now, uint64_t slots) noexcept nogil:
    # Looks at the next slots and takes the dead out. Who came into the place of one that went is looked at next.
    cdef VelocityTable* table = &v.tables[number]
    cdef VelocityHead* slot
    while slots != 0 and table.used != 0:
        slots -= 1
        slot = velocity_slot(table, table.hand)
        if slot.key != 0 and velocity_dead(slot, now):
            velocity_remove(v, number, table.hand)
        else:
            table.hand += 1
            if table.hand == table.capacity:
                table.hand = 0


cdef inline void velocity_sweep(Velocity* v, const VelocityNow* now, uint64_t slots) noexcept nogil:
    # For whoever was refused for want of room, and for quiet moments: looks at so many slots of each table.
    cdef uint32_t i
    for i in range(VELOCITY_TABLES):
        velocity_sweep_table(v, i, now, slots)
    velocity_count(v)


cdef inline void velocity_sweep_all(Velocity* v, const VelocityNow* now) noexcept nogil:
    # Takes all the dead out: when nothing else is left to do. Each removal looks at its place once more.
    cdef uint32_t i
    for i in range(VELOCITY_TABLES):
        velocity_sweep_table(v, i, now, 2 * v.tables[i].capacity)
    velocity_count(v)


cdef inline VelocityHead* velocity_insert(Velocity* v, uint32_t number, uint64_t key, uint32_t id, int32_t window,
                                          const VelocityNow* now) noexcept nogil:
    # A new slot, zeros behind its head. NULL: no memory left at all. now: NULL while loading, when nothing is dead.
    cdef VelocityTable* table = &v.tables[number]
    cdef VelocityHead* slot
    cdef uint64_t at
    if now != NULL:
        velocity_sweep_table(v, number, now, SWEPT_WITH_NEW)        # before the place is looked for: it moves slots
    if table.used >= table.used_end:
        v.stats.refused_full += 1
        return NULL
    at = velocity_home(table, key)
    slot = velocity_slot(table, at)
    while slot.key != 0:
        at += 1
        if at == table.capacity:
            at = 0
        slot = velocity_slot(table, at)
    slot.key = key
    slot.id = id
    slot.window = window
    table.used += 1
    velocity_count(v)
    return slot


# --- the digest's sums --------------------------------------------------------------------------------------------

cdef inline void velocity_sum(VelocitySum* ring, int32_t day, Hash128 fact, int64_t times) noexcept nogil:
    # Into the sum of what dies on that day. The sum that had its place is of a day long gone.
    cdef VelocitySum* place = &ring[VELOCITY_DAYS] if day == DAY_NEVER else &ring[<uint32_t>day % VELOCITY_DAYS]
    if place.day < day:
        place.day = day
        place.sum.lo = place.sum.hi = 0
    if place.day == day:
        digest_times(&place.sum, fact, times)


cdef inline Hash128 calendar_fact(const VelocityHead* slot) noexcept nogil:
    return fact_hash(FACT_VELOCITY, slot.key, slot.id | <uint64_t><uint32_t>slot.window << 32, 0, 0, 0)


cdef inline Hash128 sliding_fact(const VelocityHead* slot, int32_t bucket) noexcept nogil:
    return fact_hash(FACT_SLIDING, slot.key, slot.id | <uint64_t><uint32_t>bucket << 32, 0, 0, 0)


cdef inline Hash128 recent_fact(const VelocityHead* slot, int32_t bucket, uint32_t fingerprint) noexcept nogil:
    return fact_hash(FACT_RECENT, slot.key, slot.id | <uint64_t><uint32_t>bucket << 32, fingerprint >> 4, 0, 0)


cdef inline uint32_t recent_oldest(const SlidingSlot* slot, uint32_t seen) noexcept nogil:
    # Which of them, all in use, makes room for another one: who was seen longest ago, of several the smallest. SLIDING_BUCKETS: the other itself.
    cdef uint32_t i, place = SLIDING_BUCKETS, oldest = seen
    for i in range(<uint32_t>SLIDING_BUCKETS):
        if slot.values[i] & 15 > oldest & 15 or (slot.values[i] & 15 == oldest & 15 and slot.values[i] < oldest):
            oldest = slot.values[i]
            place = i
    return place


cdef inline Hash128 distinct_fact(const VelocityHead* slot, uint32_t what, uint32_t is_bit) noexcept nogil:
    return fact_hash(FACT_DISTINCT, slot.key, slot.id | <uint64_t><uint32_t>slot.window << 32, what | <uint64_t>is_bit << 32, 0, 0)


cdef inline int32_t sliding_dead_day(int64_t bucket, uint32_t bucket_s) noexcept nogil:
    # Its slot is dead 13 buckets behind its end at the latest. Two days later than that moment's in UTC, because the programme's zone may be
    # a day ahead: what lives is in the digest.
    return <int32_t>div_floor((bucket + 1 + SLIDING_BUCKETS) * bucket_s, 86_400) + 2


cdef inline Hash128 velocity_digest(Velocity* v, int32_t today) noexcept nogil:
    # What dies later than today, and what never does.
    cdef Hash128 digest
    cdef uint32_t i
    digest.lo = digest.hi = 0
    for i in range(VELOCITY_DAYS + 1):
        if v.calendar_sums[i].day > today:
            digest_add(&digest, v.calendar_sums[i].sum)
        if v.carried_sums[i].day > today:
            digest_add(&digest, v.carried_sums[i].sum)
    return digest


# --- calendar windows and lifetime --------------------------------------------------------------------------------

cdef inline CalendarSlot* velocity_live(const Velocity* v, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now) noexcept nogil:
    # The counter's slot of this window; NULL: there is none, or it is dead.
    cdef VelocityHead* slot = velocity_find_at(&v.tables[VELOCITY_CALENDARS], place, id, window, 1)
    if slot == NULL or slot.window != window or velocity_dead(slot, now):
        return NULL
    return <CalendarSlot*>slot


cdef inline int64_t velocity_used_at(const Velocity* v, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now) noexcept nogil:
    cdef const CalendarSlot* slot = velocity_live(v, place, id, window, now)
    return slot.value if slot != NULL else 0


cdef inline int64_t velocity_used(const Velocity* v, uint64_t key, uint32_t id, int32_t window, const VelocityNow* now) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_CALENDARS, key)
    return velocity_used_at(v, &place, id, window, now)


cdef inline bint velocity_takes(const Velocity* v, uint32_t number, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now,
                                bint* live) noexcept nogil:
    # Whether something of a calendar window counts at all; then place.slot is its slot, if there is one, and live: it holds what counts.
    if velocity_nowhere(id, window, now):
        return False
    velocity_find_at(&v.tables[number], place, id, window, 1)
    live[0] = place.slot != NULL and not velocity_dead(place.slot, now)
    return not (live[0] and place.slot.window > window)


cdef inline void calendar_set(Velocity* v, CalendarSlot* row, int64_t amount) noexcept nogil:
    # Adds to what a live slot has. More than fits is INT64_MAX, less than none is 0.
    cdef int64_t value
    if add_overflow(row.value, amount, &value):
        value = INT64_MAX
    elif value < 0:
        value = 0
    if value != row.value:
        velocity_sum(v.calendar_sums, velocity_dead_day(row.head.id & VELOCITY_KIND_MASK, row.head.window), calendar_fact(&row.head), value - row.value)
        row.value = value


cdef inline int calendar_begin(Velocity* v, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now, int64_t amount) noexcept nogil:
    # velocity_add_at where no live slot of this window is there; what would only be 0 needs none.
    cdef VelocityHead* slot
    cdef bint live = False
    if not velocity_takes(v, VELOCITY_CALENDARS, place, id, window, now, &live):
        return 1
    if amount <= 0:
        return 0
    slot = place.slot
    if slot == NULL:
        slot = velocity_insert(v, VELOCITY_CALENDARS, place.key, id, window, now)
        if slot == NULL:
            return -1
    if slot.window != window and live:      # for a window that has not begun: the sum of the dead one is no longer counted, this one's is
        velocity_sum(v.calendar_sums, velocity_dead_day(id & VELOCITY_KIND_MASK, slot.window), calendar_fact(slot), -(<CalendarSlot*>slot).value)
    slot.window = window
    (<CalendarSlot*>slot).value = 0
    calendar_set(v, <CalendarSlot*>slot, amount)
    return 0


cdef inline int velocity_add_at(Velocity* v, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now,
                                int64_t amount) noexcept nogil:
    # 0; -1: no memory left at all; 1: the window is dead, too far ahead, or older than the one held: counted nowhere.
    cdef CalendarSlot* slot = velocity_live(v, place, id, window, now)
    if slot == NULL:
        return calendar_begin(v, place, id, window, now, amount)
    calendar_set(v, slot, amount)
    return 0


cdef inline int velocity_add(Velocity* v, uint64_t key, uint32_t id, int32_t window, const VelocityNow* now, int64_t amount) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_CALENDARS, key)
    return velocity_add_at(v, &place, id, window, now, amount)


# --- the last minutes or hours ------------------------------------------------------------------------------------

cdef inline int64_t sliding_bucket(const SlidingSlot* slot, int64_t time_s, uint32_t bucket_s) noexcept nogil:
    # The bucket of a time: nearly always the newest of the slot, without a division. slot: NULL, or any of such buckets.
    if slot != NULL and 0 <= time_s - slot.head.window * <int64_t>bucket_s < <int64_t>bucket_s:
        return slot.head.window
    return div_floor(time_s, bucket_s)


cdef inline int64_t sliding_sum(const SlidingSlot* slot, int64_t newest) noexcept nogil:
    # Of the 13 buckets up to the newest, which may be newer than any in the ring.
    cdef int64_t bucket = slot.head.window, sum = 0
    cdef uint32_t at
    if newest <= bucket and bucket >= SLIDING_BUCKETS:      # nothing has left the ring
        for at in range(SLIDING_BUCKETS):
            sum += slot.values[at]
        return sum
    at = <uint32_t>slot.head.window % SLIDING_BUCKETS
    if newest < bucket:
        newest = bucket
    while bucket >= 0 and newest - bucket < SLIDING_BUCKETS:
        if slot.head.window - bucket >= SLIDING_BUCKETS:
            break
        sum += slot.values[at]
        at = at - 1 if at != 0 else SLIDING_BUCKETS - 1
        bucket -= 1
    return sum


cdef inline SlidingSlot* sliding_live(const Velocity* v, VelocityPlace* place, uint32_t id, uint32_t window_s, const VelocityNow* now) noexcept nogil:
    # The counter's slot; NULL: there is none, it is dead, or of another length.
    cdef SlidingSlot* slot = <SlidingSlot*>velocity_find_at(&v.tables[VELOCITY_SLIDINGS], place, id, 0, 0)
    if slot == NULL or slot.bucket_s != sliding_bucket_s(window_s) or velocity_dead(&slot.head, now):
        return NULL
    return slot


cdef inline bint sliding_is_newest(const SlidingSlot* slot, int64_t time_s) noexcept nogil:
    # Whether a time lies in the newest bucket.
    return 0 <= time_s - slot.head.window * <int64_t>slot.bucket_s < <int64_t>slot.bucket_s


cdef inline int64_t sliding_used_at(const Velocity* v, VelocityPlace* place, uint32_t id, int64_t time_s, uint32_t window_s,
                                    const VelocityNow* now) noexcept nogil:
    # The whole ring as it would be with something of that time in it.
    cdef const SlidingSlot* slot = sliding_live(v, place, id, window_s, now)
    return sliding_sum(slot, sliding_bucket(slot, time_s, slot.bucket_s)) if slot != NULL else 0


cdef inline int64_t sliding_used(const Velocity* v, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s,
                                 const VelocityNow* now) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_SLIDINGS, key)
    return sliding_used_at(v, &place, id, time_s, window_s, now)


cdef inline void sliding_set(Velocity* v, SlidingSlot* slot, int32_t bucket, int64_t amount) noexcept nogil:
    # Adds to a bucket of a live ring that holds it. More than fits is UINT32_MAX; below 0 is as 0.
    cdef uint32_t* value = &slot.values[<uint32_t>bucket % SLIDING_BUCKETS]
    cdef int64_t before = value[0], after
    after = <int64_t>UINT32_MAX if amount > <int64_t>UINT32_MAX - before else before + amount
    if after > before:
        value[0] = <uint32_t>after
        velocity_sum(v.carried_sums, sliding_dead_day(bucket, slot.bucket_s), sliding_fact(&slot.head, bucket), after - before)


cdef inline int sliding_turn(Velocity* v, VelocityPlace* place, uint32_t id, int64_t time_s, uint32_t bucket_s, const VelocityNow* now,
                             int64_t amount) noexcept nogil:
    # sliding_add_at in any other bucket than the newest of a live slot.
    cdef VelocityHead* head = place.slot
    cdef SlidingSlot* slot = <SlidingSlot*>head
    cdef int64_t bucket = div_floor(time_s, bucket_s)
    cdef bint live
    if time_s < 0 or bucket > INT32_MAX - 2 * SLIDING_BUCKETS:
        return 1
    live = slot != NULL and slot.bucket_s == bucket_s and not velocity_dead(head, now)
    if bucket < (<int64_t>head.window if live else div_floor(now.now_s, bucket_s)) - (SLIDING_BUCKETS - 1):
        return 1
    if amount <= 0:
        return 0
    if head == NULL:
        head = velocity_insert(v, VELOCITY_SLIDINGS, place.key, id, <int32_t>bucket, now)
        if head == NULL:
            return -1
        slot = <SlidingSlot*>head
    if not live:
        head.window = <int32_t>bucket
        slot.bucket_s = bucket_s
        memset(slot.values, 0, sizeof(slot.values))
    elif bucket - head.window >= SLIDING_BUCKETS:
        head.window = <int32_t>bucket
        memset(slot.values, 0, sizeof(slot.values))
    while head.window < bucket:
        head.window += 1
        slot.values[<uint32_t>head.window % SLIDING_BUCKETS] = 0
    sliding_set(v, slot, <int32_t>bucket, amount)
    return 0


cdef inline int sliding_add_at(Velocity* v, VelocityPlace* place, uint32_t id, int64_t time_s, uint32_t window_s, const VelocityNow* now,
                               int64_t amount) noexcept nogil:
    # As velocity_add; 1: older than the ring. A time that is later than now is for the caller to bring back; an amount below 0 is as 0.
    cdef SlidingSlot* slot = sliding_live(v, place, id, window_s, now)
    VERIFY((id & VELOCITY_KIND_MASK) == VELOCITY_SLIDING)
    if slot == NULL or not sliding_is_newest(slot, time_s):
        return sliding_turn(v, place, id, time_s, sliding_bucket_s(window_s), now, amount)
    sliding_set(v, slot, slot.head.window, amount)
    return 0


cdef inline int sliding_add(Velocity* v, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s, const VelocityNow* now,
                            int64_t amount) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_SLIDINGS, key)
    return sliding_add_at(v, &place, id, time_s, window_s, now, amount)


# --- different ones of the last minutes or hours --------------------------------------------------------------------
# In a sliding slot: 28 bits of each fingerprint, and how many buckets before the newest it was last seen, plus 1 (0: nothing is there). The 13
# that were seen last are kept, so up to 13 are told exactly: whoever was put out was seen no later than those who stayed.

cdef inline void recent_advance(SlidingSlot* slot, int64_t newest) noexcept nogil:
    # Makes it the newest bucket; what is too old by then goes.
    cdef int64_t age
    cdef uint32_t i
    for i in range(<uint32_t>SLIDING_BUCKETS):
        if slot.values[i] == 0:
            continue
        age = (slot.values[i] & 15) + newest - slot.head.window
        slot.values[i] = (slot.values[i] & ~<uint32_t>15) | <uint32_t>age if age <= SLIDING_BUCKETS else 0
    slot.head.window = <int32_t>newest


cdef inline int64_t recent_with_at(const Velocity* v, VelocityPlace* place, uint32_t id, int64_t time_s, uint32_t window_s, const VelocityNow* now,
                                   uint32_t fingerprint) noexcept nogil:
    # How many different ones there are with this one at that time; above 13 it says 14.
    cdef const SlidingSlot* slot = <const SlidingSlot*>velocity_find_at(&v.tables[VELOCITY_SLIDINGS], place, id, 0, 0)
    cdef uint32_t bucket_s = sliding_bucket_s(window_s), i
    cdef int64_t newest, others = 0
    if slot == NULL or slot.bucket_s != bucket_s or velocity_dead(&slot.head, now):
        return 1
    newest = sliding_bucket(slot, time_s, bucket_s)
    if newest < slot.head.window:
        newest = slot.head.window
    for i in range(<uint32_t>SLIDING_BUCKETS):
        if slot.values[i] != 0 and slot.values[i] >> 4 != fingerprint >> 4 and newest - slot.head.window + (slot.values[i] & 15) <= SLIDING_BUCKETS:
            others += 1
    return others + 1


cdef inline int64_t recent_with(const Velocity* v, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s, const VelocityNow* now,
                                uint32_t fingerprint) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_SLIDINGS, key)
    return recent_with_at(v, &place, id, time_s, window_s, now, fingerprint)


cdef inline int64_t recent_count(const SlidingSlot* slot, int64_t newest) noexcept nogil:
    # How many there are in the 13 buckets up to the newest.
    cdef int64_t count = 0
    cdef uint32_t i
    for i in range(<uint32_t>SLIDING_BUCKETS):
        count += slot.values[i] != 0 and newest - slot.head.window + (slot.values[i] & 15) <= SLIDING_BUCKETS
    return count


cdef inline int recent_add_at(Velocity* v, VelocityPlace* place, uint32_t id, int64_t time_s, uint32_t window_s, const VelocityNow* now,
                              uint32_t fingerprint) noexcept nogil:
    # As sliding_add.
    cdef uint32_t bucket_s = sliding_bucket_s(window_s), seen, at = SLIDING_BUCKETS, i
    cdef VelocityHead* head = velocity_find_at(&v.tables[VELOCITY_SLIDINGS], place, id, 0, 0)
    cdef SlidingSlot* slot = <SlidingSlot*>head
    cdef int64_t bucket = sliding_bucket(slot, time_s, bucket_s)
    cdef bint live
    VERIFY((id & VELOCITY_KIND_MASK) == VELOCITY_SLIDING)
    if time_s < 0 or bucket > INT32_MAX - 2 * SLIDING_BUCKETS:
        return 1
    live = slot != NULL and slot.bucket_s == bucket_s and not velocity_dead(head, now)
    if bucket < (<int64_t>head.window if live else div_floor(now.now_s, bucket_s)) - (SLIDING_BUCKETS - 1):
        return 1
    if head == NULL:
        head = velocity_insert(v, VELOCITY_SLIDINGS, place.key, id, <int32_t>bucket, now)
        if head == NULL:
            return -1
        slot = <SlidingSlot*>head
    if not live:
        head.window = <int32_t>bucket
        slot.bucket_s = bucket_s
        memset(slot.values, 0, sizeof(slot.values))
    elif bucket > head.window:
        recent_advance(slot, bucket)
    seen = (fingerprint & ~<uint32_t>15) | <uint32_t>(head.window - bucket + 1)
    for i in range(<uint32_t>SLIDING_BUCKETS):
        if slot.values[i] >> 4 == fingerprint >> 4 and slot.values[i] != 0:
            if slot.values[i] & 15 <= seen & 15:
                return 0            # seen as late as this, or later
            at = i
            break
        if slot.values[i] == 0 and at == SLIDING_BUCKETS:
            at = i
    else:
        if at == SLIDING_BUCKETS:
            at = recent_oldest(slot, seen)
    if at == SLIDING_BUCKETS:
        return 0                    # all that are here were seen later
    slot.values[at] = seen
    velocity_sum(v.carried_sums, sliding_dead_day(bucket, bucket_s), recent_fact(head, <int32_t>bucket, fingerprint), 1)
    return 0


cdef inline int recent_add(Velocity* v, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s, const VelocityNow* now,
                           uint32_t fingerprint) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_SLIDINGS, key)
    return recent_add_at(v, &place, id, time_s, window_s, now, fingerprint)


# --- how many different ones --------------------------------------------------------------------------------------

cdef inline uint32_t distinct_bit(uint32_t fingerprint) noexcept nogil:
    return <uint32_t>(fold(fingerprint ^ <uint64_t>0x8ebc6af09c88c6e3, <uint64_t>0x589965cc75374cc3) >> 49)


cdef inline uint32_t* distinct_word(const Velocity* v, DistinctSlot* slot, uint32_t word) noexcept nogil:
    # A word of the bits: the last one stands in the slot.
    return &slot.first if word == DISTINCT_WORDS - 1 else &distinct_words(v, slot)[distinct_place(word)]


cdef inline bint distinct_find(const Velocity* v, const DistinctSlot* slot, uint32_t fingerprint, uint32_t* place) noexcept nogil:
    # Whether it is one of the exact set; its word, or the one where it would go.
    cdef const uint32_t* words = distinct_words(v, slot)
    cdef uint32_t low = 0, high = slot.count - 1, middle, found
    place[0] = 0
    if slot.first == fingerprint:
        return True
    while low < high:
        middle = (low + high) >> 1
        found = words[distinct_place(middle)]
        if found == fingerprint:
            return True
        if found < fingerprint:
            low = middle + 1
        else:
            high = middle
    place[0] = low
    return False


cdef inline int64_t distinct_count(const DistinctSlot* slot, uint32_t more_bits) noexcept nogil:
    # Counted on from the exact number where the bits began; so nothing is lost there, and one more is never less.
    if slot.count <= DISTINCT_EXACT_MAX:
        return slot.count
    return <int64_t>slot.count + linear_count(slot.bits + more_bits) - linear_count(slot.bits_begun)


cdef inline int64_t distinct_with_at(const Velocity* v, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now,
                                     uint32_t fingerprint) noexcept nogil:
    # How many different ones there are with this one.
    cdef VelocityHead* head = velocity_find_at(&v.tables[VELOCITY_DISTINCTS], place, id, window, 1)
    cdef DistinctSlot* slot = <DistinctSlot*>head
    cdef uint32_t word, bit
    if head == NULL or head.window != window or velocity_dead(head, now):
        return 1
    if slot.count <= DISTINCT_EXACT_MAX:
        return slot.count + <int64_t>(not distinct_find(v, slot, fingerprint, &word))
    bit = distinct_bit(fingerprint)
    return distinct_count(slot, not (distinct_word(v, slot, bit >> 5)[0] >> (bit & 31) & 1))


cdef inline int64_t distinct_with(const Velocity* v, uint64_t key, uint32_t id, int32_t window, const VelocityNow* now,
                                  uint32_t fingerprint) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_DISTINCTS, key)
    return distinct_with_at(v, &place, id, window, now, fingerprint)


cdef inline void distinct_begin_bits(Velocity* v, DistinctSlot* slot, uint32_t fingerprint) noexcept nogil:
    # From the full set and one more to bits, in the same piece.
    cdef uint32_t bits[DISTINCT_WORDS]
    cdef uint32_t i, bit
    cdef uint32_t* words = distinct_words(v, slot)
    memset(bits, 0, sizeof(bits))
    for i in range(DISTINCT_EXACT_MAX + 1):
        if i == DISTINCT_EXACT_MAX:
            bit = distinct_bit(fingerprint)
        elif i == DISTINCT_EXACT_MAX - 1:
            bit = distinct_bit(slot.first)
        else:
            bit = distinct_bit(words[distinct_place(i)])
        bits[bit >> 5] |= <uint32_t>1 << (bit & 31)
    for i in range(DISTINCT_WORDS):
        distinct_word(v, slot, i)[0] = bits[i]
    slot.count = DISTINCT_EXACT_MAX + 1
    slot.bits = slot.bits_begun = <uint16_t>bits_set(bits, DISTINCT_WORDS)


cdef inline bint distinct_grow(Velocity* v, DistinctSlot* slot, uint32_t count) noexcept nogil:
    # A piece for so many fingerprints, with what is in the one it has. False: no memory left.
    cdef uint64_t at = (<uint64_t>(<uint8_t*>slot - v.tables[VELOCITY_DISTINCTS].slots)) // sizeof(DistinctSlot)
    cdef uint8_t cls = distinct_class(count), before = 0
    cdef uint32_t piece, old = slot.piece
    if slot.count > 1:
        before = distinct_class(slot.count)
        if before == cls:
            return True
    piece = arena_take(&v.arena, cls, <uint32_t>at + 1)
    if piece == NO_PIECE:
        v.stats.refused_full += 1
        return False
    slot.piece = piece
    if slot.count > 1:
        memcpy(&v.arena.lots[piece], &v.arena.lots[old], units_of(before) * sizeof(v.arena.lots[0]))
        distinct_give(v, old, before)
    return True


cdef inline int distinct_add_at(Velocity* v, VelocityPlace* place, uint32_t id, int32_t window, const VelocityNow* now,
                                uint32_t fingerprint) noexcept nogil:
    # As velocity_add.
    cdef VelocityHead* head
    cdef DistinctSlot* slot
    cdef uint32_t at, bit, i
    cdef uint32_t* words
    cdef uint32_t* word
    cdef Hash128 fact
    cdef bint live = False
    if not velocity_takes(v, VELOCITY_DISTINCTS, place, id, window, now, &live):
        return 1
    head = place.slot
    if head == NULL:
        head = velocity_insert(v, VELOCITY_DISTINCTS, place.key, id, window, now)
        if head == NULL:
            return -1
    slot = <DistinctSlot*>head
    if head.window != window and slot.count > 1:
        distinct_give(v, slot.piece, distinct_class(slot.count))
    if head.window != window or slot.count == 0:
        head.window = window
        slot.count = 1
        slot.piece = 0
        slot.first = fingerprint
        slot.bits = slot.bits_begun = 0
        fact = distinct_fact(head, fingerprint, 0)
    elif slot.count <= DISTINCT_EXACT_MAX:
        if distinct_find(v, slot, fingerprint, &at):
            return 0
        fact = distinct_fact(head, fingerprint, 0)
        if slot.count == DISTINCT_EXACT_MAX:
            distinct_begin_bits(v, slot, fingerprint)
        else:
            if not distinct_grow(v, slot, slot.count + 1):
                return -1
            words = distinct_words(v, slot)
            i = slot.count - 1
            while i > at:
                words[distinct_place(i)] = words[distinct_place(i - 1)]
                i -= 1
            words[distinct_place(at)] = fingerprint
            slot.count += 1
    else:
        bit = distinct_bit(fingerprint)
        word = distinct_word(v, slot, bit >> 5)
        if word[0] >> (bit & 31) & 1:
            return 0
        word[0] |= <uint32_t>1 << (bit & 31)
        slot.bits += 1
        fact = distinct_fact(head, bit, 1)
    velocity_sum(v.carried_sums, velocity_dead_day(id & VELOCITY_KIND_MASK, window), fact, 1)
    return 0


cdef inline int distinct_add(Velocity* v, uint64_t key, uint32_t id, int32_t window, const VelocityNow* now, uint32_t fingerprint) noexcept nogil:
    cdef VelocityPlace place = velocity_place(v, VELOCITY_DISTINCTS, key)
    return distinct_add_at(v, &place, id, window, now, fingerprint)


# --- snapshots ----------------------------------------------------------------------------------------------------
# Live slots only, in the table's order, so that the way back is nearly sequential; then the sums that do not follow from slots. Whoever saves
# and whoever loads has the same VelocityNow: that of the snapshot's moment. Into tables just opened, of any capacity that is enough.

cdef enum:
    VELOCITY_SUMS_BYTES_MAX = 4096      # of velocity_put_sums


cdef inline const VelocityHead* velocity_next(const Velocity* v, uint32_t number, uint64_t* at, const VelocityNow* now) noexcept nogil:
    # The next live slot from `at` on, which goes behind it; NULL: there is none.
    cdef const VelocityTable* table = &v.tables[number]
    cdef const VelocityHead* slot
    while at[0] < table.capacity:
        slot = velocity_slot(table, at[0])
        at[0] += 1
        if slot.key != 0 and not velocity_dead(slot, now):
            return slot
    return NULL


cdef inline uint32_t velocity_record_bytes(uint32_t number, const VelocityHead* slot) noexcept nogil:
    # At most, of velocity_put.
    cdef uint32_t count
    if number != VELOCITY_DISTINCTS:
        return 32 if number == VELOCITY_CALENDARS else 96
    count = (<const DistinctSlot*>slot).count
    return 32 + 4 * (count if count <= DISTINCT_EXACT_MAX else DISTINCT_WORDS)


cdef inline void velocity_put(const Velocity* v, uint32_t number, const VelocityHead* slot, EntryWriter* writer) noexcept nogil:
    cdef const SlidingSlot* sliding = <const SlidingSlot*>slot
    cdef DistinctSlot* distinct = <DistinctSlot*>slot
    cdef uint32_t i
    put_bytes(writer, <const uint8_t*>&slot.key, 8)
    put_key(writer, slot.id)
    put_varint(writer, <uint64_t>slot.window)
    if number == VELOCITY_CALENDARS:
        put_varint(writer, <uint64_t>(<const CalendarSlot*>slot).value)
        return
    if number == VELOCITY_SLIDINGS:
        put_varint(writer, sliding.bucket_s)
        for i in range(SLIDING_BUCKETS):
            put_varint(writer, sliding.values[i])
        return
    put_varint(writer, distinct.count)
    if distinct.count <= DISTINCT_EXACT_MAX:
        put_key(writer, distinct.first)
        for i in range(distinct.count - 1):
            put_key(writer, distinct_words(v, distinct)[distinct_place(i)])
        return
    put_varint(writer, distinct.bits)
    put_varint(writer, distinct.bits_begun)
    for i in range(DISTINCT_WORDS):
        put_key(writer, distinct_word(v, distinct, i)[0])


cdef inline int calendar_load(Velocity* v, Cursor* cursor, uint64_t key, uint32_t id, int32_t window) noexcept nogil:
    cdef uint64_t value = get_varint(cursor)
    cdef CalendarSlot* slot
    if cursor.broken or value > <uint64_t>INT64_MAX:
        return VELOCITY_BROKEN
    slot = <CalendarSlot*>velocity_insert(v, VELOCITY_CALENDARS, key, id, window, NULL)
    if slot == NULL:
        return -1
    slot.value = <int64_t>value
    velocity_sum(v.calendar_sums, velocity_dead_day(id & VELOCITY_KIND_MASK, window), calendar_fact(&slot.head), slot.value)
    return VELOCITY_LOADED


cdef inline int sliding_load(Velocity* v, Cursor* cursor, uint64_t key, uint32_t id, int32_t window, const VelocityNow* now) noexcept nogil:
    cdef SlidingSlot row
    cdef SlidingSlot* slot
    cdef uint64_t value = get_varint(cursor)
    cdef uint32_t i
    if cursor.broken or value == 0 or value > UINT32_MAX:
        return VELOCITY_BROKEN
    row.head.key = key
    row.head.id = id
    row.head.window = window
    row.bucket_s = <uint32_t>value
    for i in range(SLIDING_BUCKETS):
        value = get_varint(cursor)
        if value > UINT32_MAX:
            return VELOCITY_BROKEN
        row.values[i] = <uint32_t>value
    if cursor.broken or window > INT32_MAX - 2 * SLIDING_BUCKETS or velocity_dead(&row.head, now):
        return VELOCITY_BROKEN
    slot = <SlidingSlot*>velocity_insert(v, VELOCITY_SLIDINGS, key, id, window, NULL)
    if slot == NULL:
        return -1
    slot[0] = row
    return VELOCITY_LOADED


cdef inline int distinct_load(Velocity* v, Cursor* cursor, uint64_t key, uint32_t id, int32_t window) noexcept nogil:
    cdef uint64_t count = get_varint(cursor), bits = 0, begun = 0
    cdef uint32_t words[DISTINCT_WORDS]
    cdef uint32_t i, in_piece
    cdef const uint8_t* data
    cdef DistinctSlot* slot
    if cursor.broken or count == 0 or count > DISTINCT_EXACT_MAX + 1:
        return VELOCITY_BROKEN
    if count > DISTINCT_EXACT_MAX:
        bits = get_varint(cursor)
        begun = get_varint(cursor)
    i = <uint32_t>count if count <= DISTINCT_EXACT_MAX else DISTINCT_WORDS
    data = get_bytes(cursor, 4 * i)
    if data == NULL:
        return VELOCITY_BROKEN
    memcpy(words, data, 4 * i)
    if count > DISTINCT_EXACT_MAX:
        if bits != bits_set(words, DISTINCT_WORDS) or begun == 0 or begun > bits or begun > DISTINCT_EXACT_MAX + 1:
            return VELOCITY_BROKEN
    else:
        for i in range(1, <uint32_t>count):
            if words[i] == words[0] or (i > 1 and words[i] <= words[i - 1]):
                return VELOCITY_BROKEN
    slot = <DistinctSlot*>velocity_insert(v, VELOCITY_DISTINCTS, key, id, window, NULL)
    if slot == NULL:
        return -1
    slot.count = 1              # as long as it has no piece
    if count > 1 and not distinct_grow(v, slot, <uint32_t>count):
        return -1
    slot.count = <uint32_t>count
    slot.bits = <uint16_t>bits
    slot.bits_begun = <uint16_t>begun
    if count > DISTINCT_EXACT_MAX:
        for i in range(DISTINCT_WORDS):
            distinct_word(v, slot, i)[0] = words[i]
    else:
        slot.first = words[0]
        in_piece = <uint32_t>count - 1
        for i in range(in_piece):
            distinct_words(v, slot)[distinct_place(i)] = words[i + 1]
    return VELOCITY_LOADED


cdef inline int velocity_load(Velocity* v, uint32_t number, Cursor* cursor, const VelocityNow* now) noexcept nogil:
    # One record of velocity_put. VELOCITY_LOADED, VELOCITY_BROKEN, or -1: there is no room for it.
    cdef const uint8_t* data = get_bytes(cursor, 8)
    cdef uint32_t id = get_key(cursor), kind = id & VELOCITY_KIND_MASK
    cdef uint64_t window = get_varint(cursor), key
    if cursor.broken or window > INT32_MAX:
        return VELOCITY_BROKEN
    memcpy(&key, data, 8)
    if key == 0:
        return VELOCITY_BROKEN
    if number == VELOCITY_SLIDINGS:
        if kind != VELOCITY_SLIDING or velocity_find(&v.tables[number], key, id, 0, 0) != NULL:
            return VELOCITY_BROKEN
        return sliding_load(v, cursor, key, id, <int32_t>window, now)
    if (kind < VELOCITY_DAY or kind > VELOCITY_EVER or velocity_nowhere(id, <int32_t>window, now)
            or velocity_find(&v.tables[number], key, id, <int32_t>window, 1) != NULL):
        return VELOCITY_BROKEN
    if number == VELOCITY_CALENDARS:
        return calendar_load(v, cursor, key, id, <int32_t>window)
    return distinct_load(v, cursor, key, id, <int32_t>window)


cdef inline void velocity_put_sums(const Velocity* v, int32_t today, EntryWriter* writer) noexcept nogil:
    # The carried sums: how many days, each day's behind today in order, then the lifetime one.
    cdef const VelocitySum* place
    cdef int32_t day
    cdef uint32_t count = 0
    for day in range(today + 1, today + 1 + VELOCITY_DAYS):
        count += v.carried_sums[<uint32_t>day % VELOCITY_DAYS].day == day
    put_varint(writer, count)
    for day in range(today + 1, today + 1 + VELOCITY_DAYS):
        place = &v.carried_sums[<uint32_t>day % VELOCITY_DAYS]
        if place.day == day:
            put_varint(writer, <uint64_t>day)
            put_bytes(writer, <const uint8_t*>&place.sum, sizeof(Hash128))
    put_bytes(writer, <const uint8_t*>&v.carried_sums[VELOCITY_DAYS].sum, sizeof(Hash128))


cdef inline int velocity_load_sums(Velocity* v, int32_t today, Cursor* cursor) noexcept nogil:
    # As velocity_put_sums, into tables whose sums are still empty. VELOCITY_LOADED or VELOCITY_BROKEN.
    cdef uint64_t count = get_varint(cursor), day
    cdef int64_t before = today
    cdef const uint8_t* data
    cdef VelocitySum* place
    cdef uint32_t i
    if cursor.broken or count > VELOCITY_DAYS:
        return VELOCITY_BROKEN
    for i in range(<uint32_t>count):
        day = get_varint(cursor)
        data = get_bytes(cursor, sizeof(Hash128))
        if cursor.broken or day > INT32_MAX or <int64_t>day <= before or <int64_t>day > <int64_t>today + VELOCITY_DAYS:
            return VELOCITY_BROKEN
        before = <int64_t>day
        place = &v.carried_sums[day % VELOCITY_DAYS]
        place.day = <int32_t>day
        memcpy(&place.sum, data, sizeof(Hash128))
    data = get_bytes(cursor, sizeof(Hash128))
    if data == NULL:
        return VELOCITY_BROKEN
    memcpy(&v.carried_sums[VELOCITY_DAYS].sum, data, sizeof(Hash128))
    return VELOCITY_LOADED


# --- the largest --------------------------------------------------------------------------------------------------

cdef inline int64_t velocity_amount(uint32_t number, bint recent, const VelocityHead* slot, const VelocityNow* now) noexcept nogil:
    # What a live slot says now. recent: it is of different ones of a sliding window.
    if number == VELOCITY_CALENDARS:
        return (<const CalendarSlot*>slot).value
    if recent:
        return recent_count(<const SlidingSlot*>slot, div_floor(now.now_s, (<const SlidingSlot*>slot).bucket_s))
    if number == VELOCITY_SLIDINGS:
        return sliding_sum(<const SlidingSlot*>slot, div_floor(now.now_s, (<const SlidingSlot*>slot).bucket_s))
    return distinct_count(<const DistinctSlot*>slot, 0)


cdef inline bint velocity_before(const VelocityBest* a, const VelocityBest* b) noexcept nogil:
    # The larger first; equal ones by their key and window.
    if a.amount != b.amount:
        return a.amount > b.amount
    return a.key < b.key or (a.key == b.key and a.window < b.window)


cdef inline void velocity_rank(VelocityBest* best, uint32_t* count, uint32_t most, const VelocityBest* row) noexcept nogil:
    # Into its place among the largest. A row that is there already is replaced.
    cdef uint32_t i, j
    for i in range(count[0]):
        if best[i].key == row.key and best[i].window == row.window:
            count[0] -= 1
            for j in range(i, count[0]):
                best[j] = best[j + 1]
            break
    i = count[0]
    while i != 0 and velocity_before(row, &best[i - 1]):
        i -= 1
    if i == most:
        return
    if count[0] < most:
        count[0] += 1
    j = count[0] - 1
    while j > i:
        best[j] = best[j - 1]
        j -= 1
    best[i] = row[0]


cdef inline bint velocity_top(const Velocity* v, uint32_t number, VelocityTop* tops, uint32_t top_count, const VelocityNow* now, uint64_t* at,
                              uint64_t slots, uint32_t most) noexcept nogil:
    # The `most` largest live slots of some counters, over as many calls as it takes: each looks at so many slots from `at` on.
    # True: there are more. What moves in between (deletion shifts slots back) may be missed; for people to look at, not for deciding.
    cdef const VelocityTable* table = &v.tables[number]
    cdef const VelocityHead* slot
    cdef VelocityTop* top
    cdef VelocityBest row
    cdef uint32_t i
    while slots != 0 and at[0] < table.capacity:
        slots -= 1
        slot = velocity_slot(table, at[0])
        at[0] += 1
        if slot.key == 0:
            continue
        i = 0
        while i < top_count and tops[i].id != slot.id:
            i += 1
        if i == top_count or velocity_dead(slot, now):
            continue
        top = &tops[i]
        row.key = slot.key
        row.amount = velocity_amount(number, top.recent, slot, now)
        row.window = slot.window if number != VELOCITY_SLIDINGS else 0
        # Nearly all of a large table end here, also where nearly all have counted the same.
        if row.amount != 0 and (top.count < most or velocity_before(&row, &top.best[most - 1])):
            velocity_rank(top.best, &top.count, most, &row)
    return at[0] < table.capacity
