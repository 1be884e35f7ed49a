# Memory for nghttp2: it asks for some hundred bytes per stream and frame, many times a call. Freed pieces wait in a list of their size
# and are given out again, so that a call in steady state allocates nothing; a burst costs what its peak needs, once.
# Not for several threads, and not for our own buffers (server/_transport has pools of fixed structs). cimported by server/_transport.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

cdef enum:
    POOL_STEP = 16              # sizes are multiples of it, as is the alignment
    POOL_HEAD = 16              # before each piece: its class
    POOL_CLASSES = 129          # class c holds pieces of c * POOL_STEP bytes, up to 2 kB; above it the C library is asked
    POOL_LARGE = 0              # class of a piece from the C library
    POOL_CHUNK = 262_144        # bytes taken from the C library at once

cdef struct PoolPiece:          # a free piece
    PoolPiece* next

cdef struct PoolChunk:
    PoolChunk* next
    uint64_t padding            # keeps what follows aligned

cdef struct Pool:
    PoolPiece* free[POOL_CLASSES]
    PoolChunk* chunks
    uint8_t* rest               # of the newest chunk
    size_t rest_size
    uint64_t bytes              # taken from the C library for chunks


cdef inline void* pool_take(Pool* pool, size_t size) noexcept nogil:
    """`size` bytes, aligned to 16; NULL: no memory."""
    cdef size_t piece_class = (size + POOL_STEP - 1) / POOL_STEP
    cdef size_t need
    cdef PoolPiece* piece
    cdef uint8_t* at
    cdef PoolChunk* chunk
    if piece_class == 0:
        piece_class = 1
    if piece_class >= POOL_CLASSES:
        if size > <size_t>-1 - POOL_HEAD:
            return NULL
        at = <uint8_t*>malloc(size + POOL_HEAD)
        if at == NULL:
            return NULL
        (<uint32_t*>at)[0] = POOL_LARGE
        return at + POOL_HEAD
    piece = pool.free[piece_class]
    if piece != NULL:
        pool.free[piece_class] = piece.next
        return piece
    need = piece_class * POOL_STEP + POOL_HEAD
    if pool.rest_size < need:
        chunk = <PoolChunk*>malloc(POOL_CHUNK)
        if chunk == NULL:
            return NULL
        chunk.next = pool.chunks
        pool.chunks = chunk
        pool.rest = <uint8_t*>chunk + sizeof(PoolChunk)
        pool.rest_size = POOL_CHUNK - sizeof(PoolChunk)
        pool.bytes += POOL_CHUNK
    at = pool.rest
    pool.rest += need
    pool.rest_size -= need
    (<uint32_t*>at)[0] = <uint32_t>piece_class
    return at + POOL_HEAD


cdef inline void pool_give(Pool* pool, void* memory) noexcept nogil:
    """Takes back what pool_take gave; NULL is nothing."""
    cdef uint32_t piece_class
    if memory == NULL:
        return
    piece_class = (<uint32_t*>(<uint8_t*>memory - POOL_HEAD))[0]
    if piece_class == POOL_LARGE:
        free(<uint8_t*>memory - POOL_HEAD)
        return
    (<PoolPiece*>memory).next = pool.free[piece_class]
    pool.free[piece_class] = <PoolPiece*>memory


cdef inline void* pool_change(Pool* pool, void* memory, size_t size) noexcept nogil:
    """As realloc."""
    cdef uint32_t piece_class
    cdef size_t old
    cdef void* moved
    if memory == NULL:
        return pool_take(pool, size)
    piece_class = (<uint32_t*>(<uint8_t*>memory - POOL_HEAD))[0]
    if piece_class == POOL_LARGE:
        if size > <size_t>-1 - POOL_HEAD:
            return NULL
        moved = realloc(<uint8_t*>memory - POOL_HEAD, size + POOL_HEAD)
        return NULL if moved == NULL else <uint8_t*>moved + POOL_HEAD
    old = <size_t>piece_class * POOL_STEP
    if size <= old:
        return memory
    moved = pool_take(pool, size)
    if moved != NULL:
        memcpy(moved, memory, old)
        pool_give(pool, memory)
    return moved


cdef inline void pool_close(Pool* pool) noexcept nogil:
    """Gives all chunks back to the C library. Nothing of the pool may be in use."""
    cdef PoolChunk* chunk
    while pool.chunks != NULL:
        chunk = pool.chunks
        pool.chunks = chunk.next
        free(chunk)
    memset(pool, 0, sizeof(Pool))
