# HPACK (RFC 7541) as a gRPC client needs it: writes a request's header block, reads an answer's.
# The first request of a connection puts its fields into the server's table; later ones are the same few bytes of indexes. An answer's
# block goes through nghttp2's inflater, and one of indexes only, equal to an earlier one while the table stood still, means the same.
# Not for frames (bench/_http2_client.pxd). cimported by bench/_http2_client.pxd and bench/_load.pyx.

from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset
from ledger._layout cimport METHOD_COUNT
from server._nghttp2 cimport *

cdef enum:
    HPACK_BLOCK_BYTES_MAX = 2048    # of a request's header block: its longest field is an authority of a host name and a port
    HPACK_CONSTANTS_MAX = 8         # fields that every request has, besides method, scheme and path
    HPACK_FIRST_DYNAMIC = 62        # the index of the youngest entry (section 2.3.3)
    HPACK_TABLE_BYTES = 4096        # until SETTINGS_HEADER_TABLE_SIZE says something else
    HPACK_METHOD_POST = 0x83        # indexed fields of the static table
    HPACK_SCHEME_HTTP = 0x86
    HPACK_TABLE_OF_ZERO = 0x20      # dynamic table size update to 0
    MESSAGE_KEPT_BYTES = 200        # of grpc-message, for people
    MEMO_BYTES = 16                 # the longest answer's block that is remembered
    MEMO_COUNT = 2                  # the block before an answer's message, and the one behind it
    CODE_NONE = -1

cdef struct Field:                  # one or more header fields, encoded
    const uint8_t* data
    uint32_t size

cdef struct Fields:                 # what a run's requests say; the same for all connections
    Field path_inserted[METHOD_COUNT]   # literals that enter the table
    Field path_plain[METHOD_COUNT]      # literals that do not
    Field constants_inserted
    Field constants_plain
    uint32_t constant_count
    uint8_t plain                   # no table at all: they would not fit

cdef struct RequestTable:           # what the server's table holds of ours
    uint32_t inserted               # entries so far; none is ever evicted
    uint8_t path_at[METHOD_COUNT]   # 1 + how many entries were there before this path's; 0: not there
    uint8_t plain                   # the server wants a smaller table: none is used any more
    uint8_t plain_unsaid            # and has still to be told

cdef struct Said:                   # what an answer's header block says
    int16_t grpc_code               # CODE_NONE: nothing
    uint16_t http_status            # 0: nothing
    uint16_t message_size
    uint8_t has_details             # google.rpc.Status came along
    uint8_t message[MESSAGE_KEPT_BYTES]

cdef struct Memo:
    uint32_t size                   # 0: empty
    uint8_t block[MEMO_BYTES]
    Said said

cdef struct AnswerTable:
    nghttp2_hd_inflater* inflater
    uint32_t next_memo
    Memo memos[MEMO_COUNT]
    Said said                       # of a block that is not remembered


# --- requests -------------------------------------------------------------------------------------------------------

cdef inline uint8_t* hpack_put(uint8_t* out, const Field* field) noexcept nogil:
    memcpy(out, field.data, field.size)
    return out + field.size


cdef inline uint8_t* hpack_write_request(RequestTable* table, const Fields* fields, uint8_t method, uint8_t* out) noexcept nogil:
    """Writes the header block of one request (at most HPACK_BLOCK_BYTES_MAX). Returns what follows."""
    cdef uint32_t i
    if table.plain_unsaid:
        table.plain_unsaid = 0
        out[0] = HPACK_TABLE_OF_ZERO
        out += 1
    out[0] = HPACK_METHOD_POST
    out[1] = HPACK_SCHEME_HTTP
    out += 2
    if table.plain or fields.plain:
        return hpack_put(hpack_put(out, &fields.path_plain[method]), &fields.constants_plain)
    if table.path_at[method]:
        out[0] = <uint8_t>(0x80 | (HPACK_FIRST_DYNAMIC + table.inserted - table.path_at[method]))
        out += 1
    else:
        out = hpack_put(out, &fields.path_inserted[method])
        table.inserted += 1
        table.path_at[method] = <uint8_t>table.inserted
        if table.inserted == 1:
            table.inserted += fields.constant_count
            return hpack_put(out, &fields.constants_inserted)
    for i in range(fields.constant_count):      # the constants are the second entry and the following ones
        out[i] = <uint8_t>(0x80 | (HPACK_FIRST_DYNAMIC + table.inserted - 2 - i))
    return out + fields.constant_count


# --- answers --------------------------------------------------------------------------------------------------------

cdef inline bint hpack_open_answers(AnswerTable* table) noexcept nogil:
    """False: no memory."""
    memset(table, 0, sizeof(AnswerTable))
    return nghttp2_hd_inflate_new(&table.inflater) == 0


cdef inline void hpack_close_answers(AnswerTable* table) noexcept nogil:
    if table.inflater != NULL:
        nghttp2_hd_inflate_del(table.inflater)
        table.inflater = NULL


cdef inline int hpack_number(const uint8_t* text, size_t size, int limit) noexcept nogil:
    """A decimal number up to `limit`; -1: it is none, or a greater one."""
    cdef size_t i
    cdef int value = 0
    for i in range(size):
        if text[i] < 48 or text[i] > 57:
            return -1
        value = value * 10 + text[i] - 48
        if value > limit:
            return -1
    return value if size else -1


cdef inline void hpack_note(Said* said, const nghttp2_nv* field) noexcept nogil:
    cdef int value
    if field.namelen == 7 and memcmp(field.name, b":status", 7) == 0:
        value = hpack_number(field.value, field.valuelen, 999)
        said.http_status = <uint16_t>(value if value > 0 else 999)
    elif field.namelen == 11 and memcmp(field.name, b"grpc-status", 11) == 0:
        value = hpack_number(field.value, field.valuelen, 16)
        said.grpc_code = <int16_t>(value if value >= 0 else 2)      # unknown codes are UNKNOWN, says gRPC
    elif field.namelen == 12 and memcmp(field.name, b"grpc-message", 12) == 0:
        said.message_size = <uint16_t>(field.valuelen if field.valuelen < MESSAGE_KEPT_BYTES else MESSAGE_KEPT_BYTES)
        memcpy(said.message, field.value, said.message_size)
    elif field.namelen == 23 and memcmp(field.name, b"grpc-status-details-bin", 23) == 0:
        said.has_details = 1


cdef inline bint hpack_inflate(AnswerTable* table, const uint8_t* data, size_t size, Said* said) noexcept nogil:
    cdef nghttp2_nv field
    cdef int flags
    cdef ssize_t used
    said.grpc_code = CODE_NONE
    said.http_status = 0
    said.message_size = 0
    said.has_details = 0
    while True:
        flags = 0
        used = nghttp2_hd_inflate_hd2(table.inflater, &field, &flags, data, size, 1)
        if used < 0:
            return False
        data += used
        size -= <size_t>used
        if flags & NGHTTP2_HD_INFLATE_EMIT:
            hpack_note(said, &field)
        if flags & NGHTTP2_HD_INFLATE_FINAL:
            nghttp2_hd_inflate_end_headers(table.inflater)
            return True
        if not flags & NGHTTP2_HD_INFLATE_EMIT and size == 0:
            return False


cdef inline const Said* hpack_read_answer(AnswerTable* table, const uint8_t* data, uint32_t size) noexcept nogil:
    """What a whole header block says, valid until the next one is read; NULL: it cannot be read, and no later one can."""
    cdef uint32_t i
    cdef Memo* memo
    for i in range(MEMO_COUNT):
        memo = &table.memos[i]
        if memo.size == size and size and memcmp(memo.block, data, size) == 0:
            return &memo.said
    i = 0
    while i < size and data[i] > 0x80 and data[i] < 0xFF:       # an index of one byte: reads the table, leaves it as it is
        i += 1
    if i == size and 0 < size <= MEMO_BYTES:
        memo = &table.memos[table.next_memo]
        table.next_memo = (table.next_memo + 1) % MEMO_COUNT
        memo.size = 0
        if not hpack_inflate(table, data, size, &memo.said):
            return NULL
        memcpy(memo.block, data, size)
        memo.size = size
        return &memo.said
    for i in range(MEMO_COUNT):     # the table may change: what indexes mean, too
        table.memos[i].size = 0
    return &table.said if hpack_inflate(table, data, size, &table.said) else NULL
