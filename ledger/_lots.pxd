# Leaves: the lots of an account and the memory they live in.
# Not for deciding which lot to take (ledger/_core.pyx). cimported by ledger/_core.pyx alone.
#
# Lots stand in one piece of an arena, sorted by wallet, expiry, availability, funder, so that a burn walks them in order. Pieces have 1, 2, 3,
# 4, 6, 8, 12, ... lots; the arena is cut into blocks, each of which holds pieces of one size. The pieces of a size are kept dense: the last
# one moves into the place of one that is given up, and an empty block is there for pieces of any size. So members that grow through
# the sizes one after another leave no holes behind, and memory is what the lots need. Nothing is allocated.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from ledger._table cimport reserve_memory, unreserve_memory

cdef struct Lot:                # 32 bytes
    int64_t points              # 1.. (0 only while all of the rest is held, never in between two entries with held 0)
    int64_t held                # 0..points, by ACTIVE reservations
    int32_t available_day       # days since 1970 in the programme's zone
    int32_t expiry_day          # first day on which it does not count
    uint16_t wallet             # index
    uint16_t funder             # and LOT_SLIDES
    uint32_t owner              # in the first lot of a piece: whose it is, for moves; without meaning in the others

cdef enum:
    LOT_CLASS_COUNT = 26        # pieces of 1..8192 lots; 16 wallets * 400 lots fit
    NO_PIECE = 0xFFFFFFFF
    NO_BLOCK = 0xFFFFFFFF
    BLOCK_SHIFT = 13            # a block holds 8192 lots: 256 KB
    BLOCKS_SPARE = 4            # one command takes at most so many: the piece it outgrows, its next size, a hold, one more

cdef struct LotClass:           # the pieces of one size
    uint32_t block              # the last one; NO_BLOCK: none
    uint32_t filled             # pieces in it, from 1

cdef struct Arena:
    Lot* lots
    uint32_t* before            # per block: the block before it of its class, or the next empty one
    uint64_t capacity           # blocks
    uint64_t used               # blocks taken at least once
    uint64_t empty              # of them in no class now
    uint32_t first_empty        # NO_BLOCK: none
    LotClass classes[LOT_CLASS_COUNT]
    uint64_t live               # lots in pieces that are in use


cdef inline uint32_t units_of(uint8_t cls) noexcept nogil:
    # Lots that a piece of this class has room for: 1, 2, 3, 4, 6, 8, 12, 16, ...
    if cls == 0:
        return 1
    return <uint32_t>1 << ((cls + 1) >> 1) if cls & 1 else <uint32_t>3 << ((cls >> 1) - 1)


cdef inline uint8_t class_for(uint32_t count) noexcept nogil:
    # The smallest class that holds `count` lots (count >= 1).
    cdef uint8_t cls = 0
    while units_of(cls) < count:
        cls += 1
    return cls


cdef inline bint arena_open(Arena* arena, uint64_t lots) noexcept nogil:
    # Room for so many lots in pieces, whatever their sizes.
    cdef uint32_t i
    memset(arena, 0, sizeof(Arena))
    arena.capacity = (lots >> BLOCK_SHIFT) + 1 + LOT_CLASS_COUNT + BLOCKS_SPARE
    arena.first_empty = NO_BLOCK
    for i in range(LOT_CLASS_COUNT):
        arena.classes[i].block = NO_BLOCK
    arena.lots = <Lot*>reserve_memory((arena.capacity << BLOCK_SHIFT) * sizeof(Lot))
    arena.before = <uint32_t*>reserve_memory(arena.capacity * sizeof(uint32_t))
    return arena.lots != NULL and arena.before != NULL


cdef inline void arena_close(Arena* arena) noexcept nogil:
    unreserve_memory(arena.lots, (arena.capacity << BLOCK_SHIFT) * sizeof(Lot))
    unreserve_memory(arena.before, arena.capacity * sizeof(uint32_t))


cdef inline bint arena_has(const Arena* arena) noexcept nogil:
    # Whether there is room for all that one more command may take.
    return arena.capacity - arena.used + arena.empty >= BLOCKS_SPARE


cdef inline uint32_t arena_take(Arena* arena, uint8_t cls, uint32_t owner) noexcept nogil:
    # NO_PIECE when full.
    cdef LotClass* pieces
    cdef uint32_t block, units, piece
    if cls >= LOT_CLASS_COUNT:
        return NO_PIECE
    pieces = &arena.classes[cls]
    units = units_of(cls)
    if pieces.block == NO_BLOCK or (pieces.filled + 1) * units > <uint32_t>1 << BLOCK_SHIFT:
        block = arena.first_empty
        if block != NO_BLOCK:
            arena.first_empty = arena.before[block]
            arena.empty -= 1
        elif arena.used < arena.capacity:
            block = <uint32_t>arena.used
            arena.used += 1
        else:
            return NO_PIECE
        arena.before[block] = pieces.block
        pieces.block = block
        pieces.filled = 0
    piece = (pieces.block << BLOCK_SHIFT) + pieces.filled * units
    pieces.filled += 1
    arena.live += units
    arena.lots[piece].owner = owner
    return piece


cdef inline uint32_t arena_give(Arena* arena, uint32_t piece, uint8_t cls) noexcept nogil:
    # The last piece of the class moves to `piece`: returns its owner, who has to be told; 0: nobody moved.
    cdef LotClass* pieces = &arena.classes[cls]
    cdef uint32_t units = units_of(cls)
    cdef uint32_t block = pieces.block, last, owner = 0
    pieces.filled -= 1
    last = (block << BLOCK_SHIFT) + pieces.filled * units
    if last != piece:
        memcpy(&arena.lots[piece], &arena.lots[last], units * sizeof(Lot))
        owner = arena.lots[piece].owner
    if pieces.filled == 0:
        pieces.block = arena.before[block]
        pieces.filled = (<uint32_t>1 << BLOCK_SHIFT) // units
        arena.before[block] = arena.first_empty
        arena.first_empty = block
        arena.empty += 1
    arena.live -= units
    return owner


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
