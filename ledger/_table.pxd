# Leaves: the tables of the core, open addressing with linear probing over memory reserved at start and touched when used.
# Not for lots (ledger/_lots.pxd). cimported by ledger/_core.pyx alone.
#
# (a) IdentifierTable: 128-bit hash -> member, with backward-shift deletion: no tombstones, so a look-up never gets longer.
# (b) KeyTable: 128-bit hash -> sequences, in generations: one fills, two are remembered, one is being cleared a little with
#     each insert, so that forgetting a generation never stalls a call. A full generation never changes: what is learnt later of
#     a key goes into the filling one, and whoever looks merges. It is dropped when a run holds its keys (ledger/_ids.pyx), or,
#     where nobody keeps runs, when its place is needed.
# (c) ReservationMap: reservation id -> pool index, with backward-shift deletion.
# Capacities are chosen for a load of at most 3/4; the range of a hash is its product with the capacity (no power of two needed).

from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from ledger._atomic cimport load_u64, store_u64
from ledger._hash cimport Hash128
from ledger._limits cimport ID_GENERATIONS

cdef extern from "_verify.h" nogil:
    void VERIFY(bint condition)

cdef extern from *:
    """
    #include <sys/mman.h>
    static inline uint64_t ledger_range(uint64_t hash, uint64_t capacity) {
        return (uint64_t)(((unsigned __int128)hash * capacity) >> 64);
    }
    /* Zeroed memory that costs nothing until touched. NULL when the address space cannot be had.
       Large tables ask for huge pages: a random access to small ones costs a page walk, which is most of a call's time. */
    static inline void *ledger_reserve(uint64_t size) {
        const uint64_t huge = 2u << 20;
        uint64_t wanted = size < 2 * huge ? size : size + huge, skip;
        uint8_t *memory = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return NULL;
        if (wanted == size) return memory;
        skip = (huge - ((uintptr_t)memory & (huge - 1))) & (huge - 1);
        if (skip) munmap(memory, skip);
        if (huge - skip) munmap(memory + skip + ((size + 4095) & ~UINT64_C(4095)), huge - skip);
        madvise(memory + skip, size, MADV_HUGEPAGE);
        return memory + skip;
    }
    /* Has the kernel find memory for the pages now, in whose turn it is to wait for it: the first touch of a large page costs ~0.3 ms,
       on virtual machines up to 1 ms. What stands in them stays. Where the kernel cannot (before 5.14), they are found at first touch. */
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    static inline void ledger_populate(void *memory, uint64_t size) {
        uintptr_t first = (uintptr_t)memory & ~(uintptr_t)4095, end = ((uintptr_t)memory + size + 4095) & ~(uintptr_t)4095;
        madvise((void *)first, end - first, MADV_POPULATE_WRITE);
    }
    static inline void ledger_unreserve(void *memory, uint64_t size) { if (memory) munmap(memory, size); }
    /* Starts a read without waiting for it: nothing depends on the word. A prefetch instruction will not do, because the processor
       drops it where the page's translation is not at hand, which in large tables is nearly always. */
    static inline void ledger_touch(const void *address) { uint64_t word; __asm__ volatile("movq (%1), %0" : "=r"(word) : "r"(address)); }
    /* Where one command wants many lines, well before it needs them: into the second-level cache, since the first has places for few reads
       on their way. 72 random lines of 512 MiB of large pages: 8 ns each to start, 14 by ledger_touch. One that is dropped is only slower. */
    #define ledger_touch_many(address) __builtin_prefetch(address, 0, 2)
    #define LEDGER_ORDER_NONE INT64_MIN
    """
    uint64_t range_of "ledger_range"(uint64_t hash, uint64_t capacity) noexcept nogil
    void* reserve_memory "ledger_reserve"(uint64_t size) noexcept nogil
    void unreserve_memory "ledger_unreserve"(void* memory, uint64_t size) noexcept nogil
    void populate_memory "ledger_populate"(void* memory, uint64_t size) noexcept nogil
    const int64_t ORDER_NONE "LEDGER_ORDER_NONE"
    void touch "ledger_touch"(const void* address) noexcept nogil
    void touch_many "ledger_touch_many"(const void* address) noexcept nogil


# --- (a) identifiers ---------------------------------------------------------------------------------------------

cdef packed struct IdentifierSlot:      # 20 bytes
    uint64_t lo
    uint64_t hi
    uint32_t member             # account number from 1, and the identifier's type << IDENTIFIER_TYPE_SHIFT; 0: empty

cdef enum:
    IDENTIFIER_TYPE_SHIFT = 27      # account numbers are at most MEMBERS_MAX_LIMIT
    IDENTIFIER_MEMBER_MASK = 0x7FFFFFF

cdef struct IdentifierTable:
    IdentifierSlot* slots
    uint64_t capacity           # slots
    uint64_t count
    uint64_t count_max          # 3/4 of capacity


cdef inline bint identifiers_open(IdentifierTable* table, uint64_t count_max) noexcept nogil:
    table.count = 0
    table.count_max = count_max
    table.capacity = count_max + count_max // 3 + 8
    table.slots = <IdentifierSlot*>reserve_memory(table.capacity * sizeof(IdentifierSlot))
    return table.slots != NULL


cdef inline void identifiers_close(IdentifierTable* table) noexcept nogil:
    unreserve_memory(table.slots, table.capacity * sizeof(IdentifierSlot))


cdef inline uint32_t identifiers_find(const IdentifierTable* table, Hash128 key) noexcept nogil:
    cdef uint64_t at = range_of(key.lo, table.capacity)
    while table.slots[at].member != 0:
        if table.slots[at].lo == key.lo and table.slots[at].hi == key.hi:
            return table.slots[at].member & IDENTIFIER_MEMBER_MASK
        at += 1
        if at == table.capacity:
            at = 0
    return 0


cdef inline void identifiers_add(IdentifierTable* table, Hash128 key, uint32_t member, uint8_t kind) noexcept nogil:
    # The key is not in the table and count < count_max.
    cdef uint64_t at = range_of(key.lo, table.capacity)
    VERIFY(table.count < table.count_max)
    while table.slots[at].member != 0:
        at += 1
        if at == table.capacity:
            at = 0
    table.slots[at].lo = key.lo
    table.slots[at].hi = key.hi
    table.slots[at].member = member | <uint32_t>kind << IDENTIFIER_TYPE_SHIFT
    table.count += 1


cdef inline uint64_t cyclic_distance(uint64_t start, uint64_t at, uint64_t capacity) noexcept nogil:
    # Steps from `start` forward to `at`, around the end of the table.
    return at - start if at >= start else at + capacity - start


cdef inline void identifiers_remove(IdentifierTable* table, Hash128 key) noexcept nogil:
    # The key is in the table.
    cdef uint64_t hole = range_of(key.lo, table.capacity), probe, home
    while table.slots[hole].lo != key.lo or table.slots[hole].hi != key.hi or table.slots[hole].member == 0:
        VERIFY(table.slots[hole].member != 0)
        hole += 1
        if hole == table.capacity:
            hole = 0
    probe = hole
    while True:
        # Pull back every later slot of the run whose home is not behind the hole.
        probe += 1
        if probe == table.capacity:
            probe = 0
        if table.slots[probe].member == 0:
            break
        home = range_of(table.slots[probe].lo, table.capacity)
        if cyclic_distance(home, probe, table.capacity) >= cyclic_distance(hole, probe, table.capacity):
            table.slots[hole] = table.slots[probe]
            hole = probe
    memset(&table.slots[hole], 0, sizeof(IdentifierSlot))
    table.count -= 1


# --- (b) request ids and receipt keys ----------------------------------------------------------------------------

cdef enum:
    CLEAR_STEP_BYTES = 1_048_576    # zeroed at once when the place of a dropped generation is waited for

cdef packed struct KeySlot:     # 28 bytes; lo == hi == 0: empty. 48-bit sequences: a million a second for 8 years
    uint64_t lo
    uint64_t hi
    uint32_t first_low          # the write of a request id; the earn of a receipt key
    uint32_t second_low         # the burn or capture of a receipt key
    uint16_t first_high
    uint16_t second_high

cdef struct Generation:
    KeySlot* slots
    uint64_t count
    uint64_t first_sequence     # it holds the keys of the entries first_sequence..last_sequence
    uint64_t last_sequence      # valid once it is full
    int64_t order_min           # the lowest sent_time (us) or business day that went in; INT64_MAX: none
    int64_t order_max           # the highest; ORDER_NONE: none
    uint32_t dirty              # 1: not all zeros

cdef struct KeyTable:
    Generation generations[ID_GENERATIONS]      # generation number n, from 0, lies at n % ID_GENERATIONS
    uint64_t full               # generations that became full, ever: number `full` fills. Published: a full one never changes again
    uint64_t dropped            # numbers below it are forgotten. Published before their place is used again
    uint64_t capacity           # slots of a generation
    uint64_t count_max          # keys of a generation
    uint64_t cleared            # bytes of the generation behind the filling one that are zeros again, while it is dirty
    uint64_t covered            # the keys of every entry up to this sequence lie in runs; UINT64_MAX: nobody keeps runs
    uint64_t keys_from          # the keys of every entry from this sequence on are in memory
    int64_t forgotten           # the highest order that may have been dropped; ORDER_NONE: nothing was


cdef inline uint64_t slot_first(const KeySlot* slot) noexcept nogil:
    return <uint64_t>slot.first_low | <uint64_t>slot.first_high << 32


cdef inline uint64_t slot_second(const KeySlot* slot) noexcept nogil:
    return <uint64_t>slot.second_low | <uint64_t>slot.second_high << 32


cdef inline void slot_set_first(KeySlot* slot, uint64_t sequence) noexcept nogil:
    slot.first_low = <uint32_t>sequence
    slot.first_high = <uint16_t>(sequence >> 32)


cdef inline void slot_set_second(KeySlot* slot, uint64_t sequence) noexcept nogil:
    slot.second_low = <uint32_t>sequence
    slot.second_high = <uint16_t>(sequence >> 32)


cdef inline bint keys_open(KeyTable* table, uint64_t remembered) noexcept nogil:
    # remembered: keys that are found at least; two full generations.
    cdef uint32_t i
    memset(table, 0, sizeof(KeyTable))
    table.count_max = remembered // 2 if remembered >= 2 else 1
    table.capacity = table.count_max + table.count_max // 3 + 8
    table.covered = UINT64_MAX
    table.keys_from = 1
    table.forgotten = ORDER_NONE
    for i in range(ID_GENERATIONS):
        table.generations[i].order_min = INT64_MAX
        table.generations[i].order_max = ORDER_NONE
        table.generations[i].slots = <KeySlot*>reserve_memory(table.capacity * sizeof(KeySlot))
        if table.generations[i].slots == NULL:
            return False
    table.generations[0].first_sequence = 1
    return True


cdef inline void keys_close(KeyTable* table) noexcept nogil:
    cdef uint32_t i
    for i in range(ID_GENERATIONS):
        unreserve_memory(table.generations[i].slots, table.capacity * sizeof(KeySlot))


cdef inline void keys_begin_at(KeyTable* table, uint64_t sequence, int64_t forgotten) noexcept nogil:
    # Of an empty table: the keys of entries before `sequence` lie in runs and are not put in; forgotten: their highest order.
    table.keys_from = sequence
    table.generations[0].first_sequence = sequence
    table.forgotten = forgotten


cdef inline Generation* generation_at(const KeyTable* table, uint64_t number) noexcept nogil:
    return <Generation*>&table.generations[number % ID_GENERATIONS]


cdef inline void keys_touch(const KeyTable* table, Hash128 key) noexcept nogil:
    cdef uint64_t at = range_of(key.lo, table.capacity), number
    for number in range(table.dropped, table.full + 1):
        touch(&generation_at(table, number).slots[at])


cdef inline KeySlot* keys_look(const KeyTable* table, const Generation* generation, Hash128 key) noexcept nogil:
    # NULL when the key is not in this generation.
    cdef KeySlot* slots = generation.slots
    cdef uint64_t at = range_of(key.lo, table.capacity)
    while slots[at].lo != 0 or slots[at].hi != 0:
        if slots[at].lo == key.lo and slots[at].hi == key.hi:
            return &slots[at]
        at += 1
        if at == table.capacity:
            at = 0
    return NULL


cdef inline bint keys_find(const KeyTable* table, Hash128 key, uint64_t* first, uint64_t* second) noexcept nogil:
    # What memory says of a key, newest generation first: a slot may know only one of the two sequences. False: nothing.
    cdef uint64_t number = table.full + 1
    cdef const KeySlot* slot
    cdef bint found = False
    first[0] = 0
    second[0] = 0
    while number > table.dropped:
        number -= 1
        slot = keys_look(table, generation_at(table, number), key)
        if slot != NULL:
            found = True
            if first[0] == 0:
                first[0] = slot_first(slot)
            if second[0] == 0:
                second[0] = slot_second(slot)
    return found


cdef inline void keys_clear_some(KeyTable* table, uint64_t bytes) noexcept nogil:
    # Zeroed in place: giving the pages back would cost a fault each when they fill again.
    cdef Generation* next = generation_at(table, table.full + 1)
    cdef uint64_t left = table.capacity * sizeof(KeySlot) - table.cleared
    if bytes > left:
        bytes = left
    memset(<uint8_t*>next.slots + table.cleared, 0, bytes)
    table.cleared += bytes
    if bytes == left:
        next.dirty = 0


cdef inline bint keys_drop(KeyTable* table) noexcept nogil:
    # Forgets the oldest generation, if the next one to fill needs its place and a run holds its keys. False: the run is not there yet.
    cdef Generation* oldest
    if table.full - table.dropped <= ID_GENERATIONS - 2:
        return True
    oldest = generation_at(table, table.dropped)
    if oldest.last_sequence > table.covered:
        return False
    if oldest.order_max > table.forgotten:
        table.forgotten = oldest.order_max
    table.keys_from = oldest.last_sequence + 1
    oldest.count = 0
    table.cleared = 0
    store_u64(&table.dropped, table.dropped + 1)
    return True


cdef inline bint keys_room(KeyTable* table) noexcept nogil:
    # Whether a new key has room. Where the run of the oldest generation came late, its place is cleared here, a step with each question.
    if not generation_at(table, table.full + 1).dirty:
        return True
    if generation_at(table, table.full).count < table.count_max:
        return True
    if not keys_drop(table):
        return False
    keys_clear_some(table, CLEAR_STEP_BYTES)
    return not generation_at(table, table.full + 1).dirty


cdef inline void keys_turn(KeyTable* table, uint64_t sequence) noexcept nogil:
    # The filling generation is full and never changes again; the next one takes the keys of `sequence` and later entries.
    cdef Generation* next = generation_at(table, table.full + 1)
    cdef bint dropped = keys_drop(table)
    VERIFY(dropped)
    if next.dirty:
        keys_clear_some(table, table.capacity * sizeof(KeySlot))
    generation_at(table, table.full).last_sequence = sequence - 1
    next.first_sequence = sequence
    next.order_min = INT64_MAX
    next.order_max = ORDER_NONE
    next.dirty = 1
    store_u64(&table.full, table.full + 1)
    keys_drop(table)


cdef inline uint64_t keys_wanted(const KeyTable* table) noexcept nogil:
    # How many generations, from number 0, should have their memory: the filling one, and the next when it is half full. From any thread.
    cdef uint64_t full = load_u64(&table.full)
    cdef uint64_t wanted = full + 1 + (load_u64(&generation_at(table, full).count) >= table.count_max // 2)
    return wanted if wanted < ID_GENERATIONS else ID_GENERATIONS


cdef inline void keys_clear_with(KeyTable* table, const Generation* filling) noexcept nogil:
    # So much with each new key that the place is clear before the filling generation is full.
    cdef uint64_t left = table.capacity * sizeof(KeySlot) - table.cleared
    cdef uint64_t room = table.count_max - filling.count
    cdef uint64_t step = 8 * sizeof(KeySlot)
    keys_clear_some(table, step if left <= room * step else left // room + 1)


cdef inline KeySlot* keys_insert(const KeyTable* table, Generation* generation, Hash128 key) noexcept nogil:
    # A new slot, both sequences 0. The key is not in this generation, and there is room.
    cdef uint64_t at = range_of(key.lo, table.capacity)
    while generation.slots[at].lo != 0 or generation.slots[at].hi != 0:
        at += 1
        if at == table.capacity:
            at = 0
    generation.slots[at].lo = key.lo
    generation.slots[at].hi = key.hi
    generation.dirty = 1
    generation.count += 1
    return &generation.slots[at]


cdef inline KeySlot* keys_put(KeyTable* table, Hash128 key, int64_t order, uint64_t sequence) noexcept nogil:
    # The key's slot in the filling generation, for an entry with this sequence; a new slot has both sequences 0. There must be room.
    cdef Generation* filling = generation_at(table, table.full)
    cdef KeySlot* slot = keys_look(table, filling, key)
    if slot != NULL:
        return slot
    if filling.count >= table.count_max:
        keys_turn(table, sequence)
        filling = generation_at(table, table.full)
    elif generation_at(table, table.full + 1).dirty and keys_drop(table):
        keys_clear_with(table, filling)
    if order > filling.order_max:
        filling.order_max = order
    if order < filling.order_min:
        filling.order_min = order
    return keys_insert(table, filling, key)


cdef inline uint64_t keys_count(const KeyTable* table) noexcept nogil:
    cdef uint64_t count = 0, number
    for number in range(table.dropped, table.full + 1):
        count += generation_at(table, number).count
    return count


# --- (c) reservations --------------------------------------------------------------------------------------------

cdef struct ReservationSlot:
    uint64_t id                 # from 1; 0: empty
    uint32_t index              # in the pool

cdef struct ReservationMap:
    ReservationSlot* slots
    uint64_t mask               # capacity - 1


cdef inline uint64_t reservation_home(const ReservationMap* table, uint64_t id) noexcept nogil:
    return ((id * <uint64_t>0x9e3779b97f4a7c15) >> 20) & table.mask


cdef inline bint reservations_open(ReservationMap* table, uint64_t count_max) noexcept nogil:
    cdef uint64_t capacity = 16
    while capacity < 2 * count_max:
        capacity *= 2
    table.mask = capacity - 1
    table.slots = <ReservationSlot*>reserve_memory(capacity * sizeof(ReservationSlot))
    return table.slots != NULL


cdef inline void reservations_close(ReservationMap* table) noexcept nogil:
    unreserve_memory(table.slots, (table.mask + 1) * sizeof(ReservationSlot))


cdef inline int64_t reservations_find(const ReservationMap* table, uint64_t id) noexcept nogil:
    # Pool index, or -1.
    cdef uint64_t at = reservation_home(table, id)
    while table.slots[at].id != 0:
        if table.slots[at].id == id:
            return table.slots[at].index
        at = (at + 1) & table.mask
    return -1


cdef inline void reservations_add(ReservationMap* table, uint64_t id, uint32_t index) noexcept nogil:
    cdef uint64_t at = reservation_home(table, id)
    while table.slots[at].id != 0:
        at = (at + 1) & table.mask
    table.slots[at].id = id
    table.slots[at].index = index


cdef inline void reservations_remove(ReservationMap* table, uint64_t id) noexcept nogil:
    cdef uint64_t at = reservation_home(table, id), probe
    while table.slots[at].id != id:
        VERIFY(table.slots[at].id != 0)
        at = (at + 1) & table.mask
    probe = at
    while True:
        # Pull back every later slot of the run whose home is not behind the hole.
        probe = (probe + 1) & table.mask
        if table.slots[probe].id == 0:
            break
        if ((probe - reservation_home(table, table.slots[probe].id)) & table.mask) >= ((probe - at) & table.mask):
            table.slots[at] = table.slots[probe]
            at = probe
    table.slots[at].id = 0
