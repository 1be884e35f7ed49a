# HPACK (RFC 7541), the small part that we do ourselves: writing header fields as plain literals, and telling whether a header
# block leaves the decoder's table as it was. Leaves without state. Decoding is nghttp2's (server/_nghttp2.pxd).
# cimported by server/_http2.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef enum:                      # first bytes of a representation (section 6)
    HPACK_INDEXED = 0x80        # + index, 7 bits
    HPACK_INSERTED = 0x40       # literal that enters the table; + index of the name, 6 bits
    HPACK_RESIZE = 0x20         # new size of the table, 5 bits
    HPACK_SECRET = 0x10         # literal that nobody may index; + index of the name, 4 bits
    HPACK_LITERAL = 0x00        # literal that stays out of the table; + index of the name, 4 bits

cdef enum:                      # static table (appendix A)
    HPACK_STATUS_200 = 8
    HPACK_STATUS = 8            # the name :status
    HPACK_ACCEPT = 19
    HPACK_ALLOW = 22
    HPACK_CONTENT_TYPE = 31
    HPACK_STATIC = 61           # entries; the newest of the dynamic table comes behind them


cdef inline uint8_t* hpack_write_integer(uint8_t* out, uint8_t first, int bits, uint32_t value) noexcept nogil:
    """An integer (section 5.1) in the low `bits` of `first`. Returns what follows, as all writers here do."""
    cdef uint32_t limit = (<uint32_t>1 << bits) - 1
    if value < limit:
        out[0] = first | <uint8_t>value
        return out + 1
    out[0] = first | <uint8_t>limit
    out += 1
    value -= limit
    while value >= 128:
        out[0] = <uint8_t>(value & 127 | 128)
        out += 1
        value >>= 7
    out[0] = <uint8_t>value
    return out + 1


cdef inline uint8_t* hpack_write_text(uint8_t* out, const char* text, uint32_t size) noexcept nogil:
    """A string (section 5.2), not Huffman coded."""
    out = hpack_write_integer(out, 0, 7, size)
    memcpy(out, text, size)
    return out + size


cdef inline uint8_t* hpack_write_field(uint8_t* out, uint8_t kind, const char* name, uint32_t name_size,
                                       const char* value, uint32_t value_size) noexcept nogil:
    """A field whose name is spelled out. kind: HPACK_INSERTED, HPACK_SECRET, HPACK_LITERAL."""
    out[0] = kind
    return hpack_write_text(hpack_write_text(out + 1, name, name_size), value, value_size)


cdef inline uint8_t* hpack_write_named(uint8_t* out, uint8_t kind, uint32_t index, const char* value, uint32_t value_size) noexcept nogil:
    """A field whose name is in the static table."""
    return hpack_write_text(hpack_write_integer(out, kind, 6 if kind == HPACK_INSERTED else 4, index), value, value_size)


cdef inline bint hpack_read_integer(const uint8_t* block, uint32_t size, uint32_t* at, int bits, uint32_t* value) noexcept nogil:
    """Reads an integer below 2^21 + 2^bits and moves `at` behind it; False: it is larger, or the block ends before it does."""
    cdef uint32_t limit = (<uint32_t>1 << bits) - 1
    cdef int shift = 0
    cdef uint8_t byte
    if at[0] >= size:
        return False
    value[0] = block[at[0]] & limit
    at[0] += 1
    if value[0] < limit:
        return True
    while shift < 21:
        if at[0] >= size:
            return False
        byte = block[at[0]]
        at[0] += 1
        value[0] += <uint32_t>(byte & 127) << shift
        shift += 7
        if byte < 128:
            return True
    return False


cdef inline bint hpack_skip_text(const uint8_t* block, uint32_t size, uint32_t* at) noexcept nogil:
    cdef uint32_t length
    if not hpack_read_integer(block, size, at, 7, &length) or length > size - at[0]:
        return False
    at[0] += length
    return True


cdef inline bint hpack_keeps_table(const uint8_t* block, uint32_t size) noexcept nogil:
    """Whether a block has nothing but indexed fields and literals that stay out of the table: then decoding it changes nothing,
    and the same bytes say the same again until another block changes the table. False where in doubt."""
    cdef uint32_t at = 0
    cdef uint32_t index
    cdef uint8_t first
    while at < size:
        first = block[at]
        if first & HPACK_INDEXED:
            if not hpack_read_integer(block, size, &at, 7, &index):
                return False
            continue
        if first & (HPACK_INSERTED | HPACK_RESIZE):
            return False
        if not hpack_read_integer(block, size, &at, 4, &index):
            return False
        if index == 0 and not hpack_skip_text(block, size, &at):
            return False
        if not hpack_skip_text(block, size, &at):
            return False
    return True
