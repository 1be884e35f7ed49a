# Leaves: the lots of an account and the memory they live in.
# Not for deciding which lot to take (ledger/_core.pyx). cimported by ledger/_core.pyx alone.
# Lots stand in one piece of an arena, sorted by wallet, expiry, availability, funder, so that a burn walks them in order.
# Pieces have 1, 2, 4, ... lots; a piece that is given up goes to the free list of its size. Nothing is allocated.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from ledger._table cimport reserve_memory, unreserve_memory

cdef struct Lot:                # 32 bytes
    int64_t points              # 1.. (0 only while all of the rest is held, never in between two entries with held 0)
    int64_t held                # 0..points, by ACTIVE reservations
    int32_t available_day       # days since 1970 in the programme's zone
    int32_t expiry_day          # first day on which it does not count
    uint16_t wallet             # index
    uint16_t funder
    uint32_t next_free          # arena bookkeeping; 0 in a lot

cdef enum:
    LOT_CLASS_COUNT = 14        # pieces of 1..8192 lots; 16 wallets * 400 lots fit
    NO_PIECE = 0xFFFFFFFF

cdef struct Arena:
    Lot* lots
    uint64_t capacity           # lots
    uint64_t used               # lots handed out at least once
    uint32_t free[LOT_CLASS_COUNT]  # first free piece of each class; NO_PIECE: none
    uint64_t live               # lots in pieces that are in use


cdef inline bint arena_open(Arena* arena, uint64_t capacity) noexcept nogil:
    cdef uint32_t i
    arena.capacity = capacity
    arena.used = 0
    arena.live = 0
    for i in range(LOT_CLASS_COUNT):
        arena.free[i] = NO_PIECE
    arena.lots = <Lot*>reserve_memory(capacity * sizeof(Lot))
    return arena.lots != NULL


cdef inline void arena_close(Arena* arena) noexcept nogil:
    unreserve_memory(arena.lots, arena.capacity * sizeof(Lot))


cdef inline uint8_t class_for(uint32_t count) noexcept nogil:
    # The smallest class that holds `count` lots (count >= 1).
    cdef uint8_t cls = 0
    while (<uint32_t>1 << cls) < count:
        cls += 1
    return cls


cdef inline uint32_t units_of(uint8_t cls) noexcept nogil:
    # Lots that a piece of this class has room for.
    return <uint32_t>1 << cls


cdef inline uint64_t arena_units(const Arena* arena) noexcept nogil:
    return arena.capacity


cdef inline bint arena_has(const Arena* arena, uint8_t cls) noexcept nogil:
    return cls < LOT_CLASS_COUNT and (arena.free[cls] != NO_PIECE or arena.used + (<uint64_t>1 << cls) <= arena.capacity)


cdef inline uint32_t arena_take(Arena* arena, uint8_t cls) noexcept nogil:
    # NO_PIECE when full.
    cdef uint32_t piece
    if cls >= LOT_CLASS_COUNT:
        return NO_PIECE
    piece = arena.free[cls]
    if piece != NO_PIECE:
        arena.free[cls] = arena.lots[piece].next_free
    else:
        if arena.used + (<uint64_t>1 << cls) > arena.capacity:
            return NO_PIECE
        piece = <uint32_t>arena.used
        arena.used += <uint64_t>1 << cls
    arena.live += <uint64_t>1 << cls
    return piece


cdef inline void arena_give(Arena* arena, uint32_t piece, uint8_t cls) noexcept nogil:
    arena.lots[piece].next_free = arena.free[cls]
    arena.free[cls] = piece
    arena.live -= <uint64_t>1 << cls


cdef inline int lot_compare(const Lot* lot, uint16_t wallet, int32_t expiry_day, int32_t available_day, uint16_t funder) noexcept nogil:
    if lot.wallet != wallet:
        return -1 if lot.wallet < wallet else 1
    if lot.expiry_day != expiry_day:
        return -1 if lot.expiry_day < expiry_day else 1
    if lot.available_day != available_day:
        return -1 if lot.available_day < available_day else 1
    if lot.funder != funder:
        return -1 if lot.funder < funder else 1
    return 0


cdef inline uint32_t lot_search(const Lot* lots, uint32_t count, uint16_t wallet, int32_t expiry_day, int32_t available_day,
                                uint16_t funder, bint* found) noexcept nogil:
    # The place of this lot, or where it would go.
    cdef uint32_t low = 0, high = count, middle
    cdef int order
    found[0] = False
    while low < high:
        middle = (low + high) >> 1
        order = lot_compare(&lots[middle], wallet, expiry_day, available_day, funder)
        if order == 0:
            found[0] = True
            return middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return low
