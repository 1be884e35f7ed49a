"""HTTP/2 (RFC 9113) as a server of unary gRPC calls needs it: frames in, header blocks, windows, errors, answers out.

http2_read takes the bytes of one connection and stops at each event that the transport has to know; everything else (SETTINGS, PING,
windows, resets, errors, padding, trailers) is settled here. Answers are always the same three frames, so they are written from
constants. A header block that came before, byte for byte, and changes nothing in the decoder's table, is not decoded again.

Not for sockets, buffers, time-outs and what a call means (server/_transport, which is the only caller). Nothing is allocated here but
by nghttp2's HPACK decoder: some kilobytes per connection, and what literal fields need while they are read.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from ledger._limits cimport (
    CONTROL_FRAMES_BURST_MAX, HEADER_BYTES_MAX, REQUEST_BYTES_MAX, RESETS_BURST_MAX, STREAMS_PER_CONNECTION_MAX,
)
from ledger._status cimport STATUS_MESSAGE_COMPRESSED, STATUS_TIMEOUT_INVALID
from server._frames cimport *
from server._grpc cimport GRPC_PREFIX_BYTES, grpc_content_type, grpc_method, grpc_text_is, grpc_timeout_us
from server._hpack cimport *
from server._nghttp2 cimport *

cdef extern from *:
    """
    static const char *const HTTP2_GRPC_CODES[17] = {
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"};
    """
    const char* HTTP2_GRPC_CODES[]

cdef enum:
    CONNECTION_WINDOW_BYTES = 16_777_216    # calls are taken out at once, so the window only has to cover the way there and back
    STREAM_WINDOW_BYTES = 262_144           # above REQUEST_BYTES_MAX: an allowed request never waits for a window update (a long batch does)
    HEADER_BYTES_HARD_MAX = 65_536          # a header block above it is no mistake any more: the connection goes
    CONTINUATIONS_MAX = 8       # CONTINUATION frames of one header block
    SETTINGS_MAX = 32           # entries of one SETTINGS frame
    BYTES_PER_TOKEN = 4096      # bytes without a call that cost as much as one frame without a call

cdef enum Past:                 # how a stream ended that is not there any more
    PAST_SKIPPED = 0            # its id was passed over
    PAST_ANSWERED = 1           # or it is still open
    PAST_RESET_HERE = 2         # the peer may not know yet: what it still sends is no mistake
    PAST_RESET_THERE = 3
    PAST_LONG = 4               # it was so long ago that nobody remembers

cdef enum BlockKind:
    BLOCK_REQUEST = 1
    BLOCK_TRAILERS = 2
    BLOCK_IGNORED = 3           # of a stream that we reset: the decoder has to see it all the same
    BLOCK_CLOSED = 4            # of a stream that the peer reset: an error of that stream

cdef enum Seen:
    SEEN_METHOD = 1
    SEEN_SCHEME = 2
    SEEN_PATH = 4
    SEEN_AUTHORITY = 8
    SEEN_PSEUDO = 15
    SEEN_REGULAR = 16           # pseudo-header fields come before all others


# --- frames out ---------------------------------------------------------------------------------------------------------

cdef uint8_t* room_for(Http2* http2, uint32_t size) noexcept nogil:
    """Where the next frame of `size` bytes goes; NULL: a peer that does not read made us say too much."""
    cdef uint8_t* at
    if http2.out_offset + http2.out_size + size > HTTP2_QUEUE_BYTES:
        memmove(http2.out, http2.out + http2.out_offset, http2.out_size)
        http2.out_offset = 0
        if http2.out_size + size > HTTP2_QUEUE_BYTES:
            http2.failed = 1
            http2.lost = 1
            http2.error = HTTP2_ENHANCE_YOUR_CALM
            return NULL
    at = http2.out + http2.out_offset + http2.out_size
    http2.out_size += size
    return at


cdef void http2_fail(Http2* http2, uint32_t code) noexcept nogil:
    cdef uint8_t* at
    if http2.failed:
        return
    http2.failed = 1
    http2.error = code
    at = room_for(http2, FRAME_HEAD_BYTES + 8)
    if at != NULL:
        frame_write_goaway(at, http2.served_id, code)


cdef inline void pay_control(Http2* http2, int64_t tokens) noexcept nogil:
    http2.control_tokens -= tokens
    if http2.control_tokens < 0:
        http2_fail(http2, HTTP2_ENHANCE_YOUR_CALM)


cdef inline void pay_reset(Http2* http2) noexcept nogil:
    http2.reset_tokens -= 1
    if http2.reset_tokens < 0:
        http2_fail(http2, HTTP2_ENHANCE_YOUR_CALM)


cdef inline void pay_bytes(Http2* http2, uint32_t size) noexcept nogil:
    """Bytes that carry no call."""
    pay_control(http2, 1 if size < BYTES_PER_TOKEN else size / BYTES_PER_TOKEN)


cdef inline uint8_t* past_of(Http2* http2, uint32_t stream_id) noexcept nogil:
    return &http2.past[stream_id >> 1 & (HTTP2_PAST - 1)]


cdef void write_reset(Http2* http2, uint32_t stream_id, uint32_t code, bint metered) noexcept nogil:
    cdef uint8_t* at
    if http2.last_id - stream_id < 2 * HTTP2_PAST:
        past_of(http2, stream_id)[0] = PAST_RESET_HERE
    at = room_for(http2, FRAME_HEAD_BYTES + 4)
    if at == NULL:
        return
    frame_write_rst_stream(at, stream_id, code)
    http2.counters.resets_sent += 1
    if metered:
        pay_reset(http2)


cdef void write_window_update(Http2* http2, uint32_t stream_id, uint32_t increment) noexcept nogil:
    cdef uint8_t* at = room_for(http2, FRAME_HEAD_BYTES + 4)
    if at != NULL:
        frame_write_window_update(at, stream_id, increment)


cdef void http2_reset(Http2* http2, Http2Stream* stream, uint32_t code) noexcept nogil:
    write_reset(http2, stream.id, code, False)


cdef void http2_refuse(Http2* http2, const Http2Event* event, bint metered) noexcept nogil:
    write_reset(http2, event.id, HTTP2_REFUSED_STREAM, metered)


cdef void http2_notice(Http2* http2) noexcept nogil:
    cdef uint8_t* at
    if http2.failed:
        return
    at = room_for(http2, 2 * FRAME_HEAD_BYTES + 8 + FRAME_PING_BYTES)
    if at != NULL:
        frame_write_ping(frame_write_goaway(at, FRAME_STREAM_MAX, HTTP2_NO_ERROR), 0, <const uint8_t*>b"goodbye!")


cdef void http2_leave(Http2* http2) noexcept nogil:
    cdef uint8_t* at
    http2.leaving = 1
    if http2.failed:
        return
    at = room_for(http2, FRAME_HEAD_BYTES + 8)
    if at != NULL:
        frame_write_goaway(at, http2.served_id, HTTP2_NO_ERROR)


# --- begin and end ------------------------------------------------------------------------------------------------------

cdef bint http2_begin(Http2* http2, Http2Counters* counters, uint8_t* out) noexcept nogil:
    cdef uint8_t* at
    memset(http2, 0, sizeof(Http2))
    http2.counters = counters
    http2.out = out
    http2.window = FRAME_WINDOW_BYTES
    http2.stream_window = FRAME_WINDOW_BYTES
    http2.reset_tokens = RESETS_BURST_MAX
    http2.control_tokens = CONTROL_FRAMES_BURST_MAX
    http2.table_limit = FRAME_HEADER_TABLE_BYTES
    if nghttp2_hd_inflate_new(&http2.inflater) != 0:
        http2.inflater = NULL
        return False
    at = room_for(http2, 2 * FRAME_HEAD_BYTES + 4 * FRAME_SETTING_BYTES + 4)
    at = frame_write_head(at, 4 * FRAME_SETTING_BYTES, FRAME_SETTINGS, 0, 0)
    at = frame_write_setting(at, SETTING_MAX_CONCURRENT_STREAMS, STREAMS_PER_CONNECTION_MAX)
    at = frame_write_setting(at, SETTING_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES)
    at = frame_write_setting(at, SETTING_MAX_HEADER_LIST_SIZE, HEADER_BYTES_MAX)
    at = frame_write_setting(at, SETTING_NO_RFC7540_PRIORITIES, 1)
    frame_write_window_update(at, 0, CONNECTION_WINDOW_BYTES - FRAME_WINDOW_BYTES)
    return True


cdef void http2_close(Http2* http2) noexcept nogil:
    if http2.inflater != NULL:
        nghttp2_hd_inflate_del(http2.inflater)
        http2.inflater = NULL


# --- streams ------------------------------------------------------------------------------------------------------------

cdef inline Http2Stream* stream_find(Http2* http2, uint32_t stream_id) noexcept nogil:
    cdef Http2Stream* stream = http2.slots[stream_id >> 1 & (HTTP2_SLOTS - 1)]
    while stream != NULL and stream.id != stream_id:
        stream = stream.chain
    return stream


cdef void http2_open(Http2* http2, Http2Stream* stream, const Http2Event* event) noexcept nogil:
    cdef Http2Stream** slot = &http2.slots[event.id >> 1 & (HTTP2_SLOTS - 1)]
    stream.id = event.id
    stream.window = http2.stream_window
    stream.body_left = event.head.content_length
    stream.http_status = 200
    stream.ended = event.end
    stream.chain = slot[0]
    slot[0] = stream


cdef inline bint is_idle(Http2* http2, uint32_t stream_id) noexcept nogil:
    """Whether nobody has opened it yet. Streams with even ids are ours, and we open none."""
    return stream_id & 1 == 0 or stream_id > http2.last_id


cdef inline uint8_t how_it_ended(Http2* http2, uint32_t stream_id) noexcept nogil:
    if http2.last_id - stream_id >= 2 * HTTP2_PAST:
        return PAST_LONG
    return past_of(http2, stream_id)[0]


cdef void remember_open(Http2* http2, uint32_t stream_id) noexcept nogil:
    """A new id: the ones passed over are closed with it (RFC 9113 5.1.1)."""
    cdef uint32_t skipped
    if stream_id - http2.last_id >= 2 * HTTP2_PAST:
        memset(http2.past, PAST_SKIPPED, HTTP2_PAST)
    else:
        skipped = http2.last_id | 1
        if http2.last_id != 0:
            skipped += 2
        while skipped < stream_id:
            past_of(http2, skipped)[0] = PAST_SKIPPED
            skipped += 2
    past_of(http2, stream_id)[0] = PAST_ANSWERED
    http2.last_id = stream_id
    if not http2.leaving:
        http2.served_id = stream_id


cdef void stream_error(Http2* http2, Http2Stream* stream, uint32_t code, Http2Event* event) noexcept nogil:
    """Resets a stream for its peer's mistake."""
    write_reset(http2, stream.id, code, True)
    event.what = HTTP2_GONE
    event.stream = stream
    event.code = code


# --- header blocks ------------------------------------------------------------------------------------------------------

cdef inline bint name_is_valid(const uint8_t* name, size_t size) noexcept nogil:
    """RFC 9113 8.2.1; the colon of a pseudo-header field is cut off before."""
    cdef size_t i
    if size == 0:
        return False
    for i in range(size):
        if name[i] <= 0x20 or name[i] >= 0x7f or name[i] == c':' or c'A' <= name[i] <= c'Z':
            return False
    return True


cdef inline bint value_is_valid(const uint8_t* value, size_t size) noexcept nogil:
    cdef size_t i
    if size == 0:
        return True
    if value[0] == c' ' or value[0] == c'\t' or value[size - 1] == c' ' or value[size - 1] == c'\t':
        return False
    for i in range(size):
        if value[i] == 0 or value[i] == c'\n' or value[i] == c'\r':
            return False
    return True


cdef void take_pseudo(RequestHead* head, const uint8_t* name, size_t name_size, const uint8_t* value, size_t value_size) noexcept nogil:
    cdef uint8_t which = 0
    if grpc_text_is(name, name_size, b":path", 5):
        which = SEEN_PATH
        head.method = grpc_method(value, value_size)
        if value_size == 0 or (value[0] != c'/' and not grpc_text_is(value, value_size, b"*", 1)):
            head.malformed = 1
    elif grpc_text_is(name, name_size, b":method", 7):
        which = SEEN_METHOD
        head.is_post = grpc_text_is(value, value_size, b"POST", 4)
        head.is_connect = grpc_text_is(value, value_size, b"CONNECT", 7)
        if value_size == 0:
            head.malformed = 1
    elif grpc_text_is(name, name_size, b":scheme", 7):
        which = SEEN_SCHEME
        if value_size == 0:
            head.malformed = 1
    elif grpc_text_is(name, name_size, b":authority", 10):
        which = SEEN_AUTHORITY
    if which == 0 or head.seen & (which | SEEN_REGULAR):    # unknown, twice, or late
        head.malformed = 1
    head.seen |= which


cdef void take_length(RequestHead* head, const uint8_t* value, size_t size) noexcept nogil:
    cdef int64_t length = 0
    cdef size_t i
    for i in range(size):
        if value[i] < c'0' or value[i] > c'9' or i >= 18:
            head.malformed = 1
            return
        length = length * 10 + (value[i] - c'0')
    if size == 0 or (head.content_length >= 0 and head.content_length != length):
        head.malformed = 1
    head.content_length = length


cdef inline bint is_of_connection(const uint8_t* name, size_t size) noexcept nogil:
    """Fields of HTTP/1 that speak about the connection (RFC 9113 8.2.2)."""
    return (grpc_text_is(name, size, b"connection", 10) or grpc_text_is(name, size, b"proxy-connection", 16)
            or grpc_text_is(name, size, b"keep-alive", 10) or grpc_text_is(name, size, b"transfer-encoding", 17)
            or grpc_text_is(name, size, b"upgrade", 7))


cdef void take_regular(RequestHead* head, const uint8_t* name, size_t name_size, const uint8_t* value, size_t value_size) noexcept nogil:
    head.seen |= SEEN_REGULAR
    if not name_is_valid(name, name_size) or is_of_connection(name, name_size):
        head.malformed = 1
    elif grpc_text_is(name, name_size, b"te", 2):
        if not grpc_text_is(value, value_size, b"trailers", 8):
            head.malformed = 1
    elif grpc_text_is(name, name_size, b"content-type", 12):
        head.is_grpc = grpc_content_type(value, value_size)
    elif grpc_text_is(name, name_size, b"content-length", 14):
        take_length(head, value, value_size)
    elif grpc_text_is(name, name_size, b"grpc-timeout", 12):
        head.timeout_us = grpc_timeout_us(value, value_size)
        if head.timeout_us < 0:
            head.refusal = STATUS_TIMEOUT_INVALID
    elif grpc_text_is(name, name_size, b"grpc-encoding", 13):
        if not grpc_text_is(value, value_size, b"identity", 8):
            head.refusal = STATUS_MESSAGE_COMPRESSED


cdef void block_field(Http2* http2, const nghttp2_nv* pair) noexcept nogil:
    """One field of the block."""
    cdef RequestHead* head = &http2.head
    if head.header_bytes + pair.namelen + pair.valuelen + 32 > HEADER_BYTES_HARD_MAX:
        http2_fail(http2, HTTP2_ENHANCE_YOUR_CALM)
        return
    head.header_bytes += <uint32_t>(pair.namelen + pair.valuelen + 32)
    if http2.block_kind != BLOCK_REQUEST and http2.block_kind != BLOCK_TRAILERS:
        return
    if not value_is_valid(pair.value, pair.valuelen):
        head.malformed = 1
    if pair.namelen > 0 and pair.name[0] == c':':
        if http2.block_kind == BLOCK_TRAILERS:
            head.malformed = 1
        else:
            take_pseudo(head, pair.name, pair.namelen, pair.value, pair.valuelen)
    elif http2.block_kind == BLOCK_REQUEST:
        take_regular(head, pair.name, pair.namelen, pair.value, pair.valuelen)
    elif not name_is_valid(pair.name, pair.namelen) or is_of_connection(pair.name, pair.namelen):
        head.malformed = 1


cdef void block_inflate(Http2* http2, const uint8_t* data, size_t size, bint last) noexcept nogil:
    """Decodes a fragment of the block into http2.head."""
    cdef nghttp2_nv pair
    cdef int flags
    cdef ssize_t used
    while not http2.failed:
        flags = 0
        used = nghttp2_hd_inflate_hd2(http2.inflater, &pair, &flags, data, size, last)
        if used < 0:
            http2_fail(http2, HTTP2_COMPRESSION_ERROR)
            return
        data += used
        size -= <size_t>used
        if flags & NGHTTP2_HD_INFLATE_EMIT:
            block_field(http2, &pair)
        if flags & NGHTTP2_HD_INFLATE_FINAL:
            nghttp2_hd_inflate_end_headers(http2.inflater)
            return
        if not flags & NGHTTP2_HD_INFLATE_EMIT and size == 0:
            return


cdef void head_check(RequestHead* head) noexcept nogil:
    """What a whole request head must have (RFC 9113 8.3.1, 8.5)."""
    if head.is_connect:
        if head.seen & (SEEN_PATH | SEEN_SCHEME) or not head.seen & SEEN_AUTHORITY:
            head.malformed = 1
    elif head.seen & (SEEN_METHOD | SEEN_SCHEME | SEEN_PATH) != (SEEN_METHOD | SEEN_SCHEME | SEEN_PATH):
        head.malformed = 1


cdef const RequestHead* head_known(Http2* http2, const uint8_t* block, uint32_t size) noexcept nogil:
    """What the same bytes said before; NULL: they did not come, or the table has changed since."""
    cdef Http2Memo* memo = &http2.memos[http2.memo_newest]
    cdef uint32_t i
    if memo.size == size and size > 0 and memcmp(memo.block, block, size) == 0:
        return &memo.head
    for i in range(HTTP2_MEMOS):
        memo = &http2.memos[i]
        if memo.size == size and size > 0 and memcmp(memo.block, block, size) == 0:
            http2.memo_newest = <uint8_t>i
            return &memo.head
    return NULL


cdef void head_remember(Http2* http2, const uint8_t* block, uint32_t size) noexcept nogil:
    """Keeps what a block said that left the table alone."""
    cdef Http2Memo* memo
    http2.memo_newest = (http2.memo_newest + 1) & (HTTP2_MEMOS - 1)
    memo = &http2.memos[http2.memo_newest]
    memo.head = http2.head
    memo.size = size
    memcpy(memo.block, block, size)


cdef void heads_forget(Http2* http2) noexcept nogil:
    """The table has changed: no remembered block means what it meant."""
    cdef uint32_t i
    for i in range(HTTP2_MEMOS):
        http2.memos[i].size = 0


cdef void block_begin(Http2* http2, uint8_t kind, bint ends) noexcept nogil:
    memset(&http2.head, 0, sizeof(RequestHead))
    http2.head.timeout_us = -1
    http2.head.content_length = -1
    http2.block_kind = kind
    http2.block_ends = ends
    http2.continuations = 0


cdef void request_event(Http2* http2, uint32_t stream_id, const RequestHead* head, Http2Event* event) noexcept nogil:
    """A request's block is whole."""
    if http2.leaving:       # the final GOAWAY has told the peer that it is not served
        past_of(http2, stream_id)[0] = PAST_RESET_HERE
        pay_control(http2, 1)
    elif head.malformed or (http2.block_ends and head.content_length > 0):
        write_reset(http2, stream_id, HTTP2_PROTOCOL_ERROR, True)
    else:
        event.what = HTTP2_REQUEST
        event.id = stream_id
        event.head = head
        event.end = http2.block_ends


cdef void body_end(Http2* http2, Http2Stream* stream, Http2Event* event) noexcept nogil:
    """END_STREAM came. The event is filled in but for its data."""
    stream.ended = 1
    if stream.body_left > 0:
        stream_error(http2, stream, HTTP2_PROTOCOL_ERROR, event)
        return
    event.what = HTTP2_BODY
    event.stream = stream
    event.end = 1


cdef void block_end(Http2* http2, uint32_t stream_id, Http2Event* event) noexcept nogil:
    """The block is whole and decoded."""
    cdef Http2Stream* stream
    if http2.failed:
        return
    if http2.block_kind == BLOCK_REQUEST:
        head_check(&http2.head)
        request_event(http2, stream_id, &http2.head, event)
    elif http2.block_kind == BLOCK_CLOSED:
        write_reset(http2, stream_id, HTTP2_STREAM_CLOSED, True)
    elif http2.block_kind == BLOCK_TRAILERS:
        stream = stream_find(http2, stream_id)
        if stream == NULL:          # reset by us between two fragments
            return
        if stream.ended:
            stream_error(http2, stream, HTTP2_STREAM_CLOSED, event)
        elif http2.head.malformed or not http2.block_ends:
            stream_error(http2, stream, HTTP2_PROTOCOL_ERROR, event)
        else:
            event.data = NULL
            event.size = 0
            body_end(http2, stream, event)


cdef void read_headers(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    cdef uint32_t size = frame.size, padding = 0
    cdef uint8_t kind = BLOCK_REQUEST, ended
    cdef bint ends = frame.flags & FLAG_END_STREAM != 0
    cdef const RequestHead* head
    if frame.stream & 1 == 0:
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
        return
    if frame.flags & (FLAG_PADDED | FLAG_PRIORITY):
        if frame.flags & FLAG_PADDED:
            if size < 1:
                http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
                return
            padding = data[0]
            data += 1
            size -= 1
        if frame.flags & FLAG_PRIORITY:     # says nothing to us
            if size < 5:
                http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
                return
            data += 5
            size -= 5
        if padding > size:
            http2_fail(http2, HTTP2_PROTOCOL_ERROR)
            return
        size -= padding
    if frame.stream > http2.last_id:
        remember_open(http2, frame.stream)
    elif stream_find(http2, frame.stream) != NULL:
        kind = BLOCK_TRAILERS
    else:
        ended = how_it_ended(http2, frame.stream)
        if ended == PAST_SKIPPED:
            http2_fail(http2, HTTP2_PROTOCOL_ERROR)
            return
        if ended == PAST_ANSWERED:
            http2_fail(http2, HTTP2_STREAM_CLOSED)
            return
        kind = BLOCK_CLOSED if ended == PAST_RESET_THERE else BLOCK_IGNORED
        pay_bytes(http2, size)
    http2.block_kind = kind
    http2.block_ends = ends
    if not frame.flags & FLAG_END_HEADERS:
        heads_forget(http2)
        block_begin(http2, kind, ends)
        http2.block_id = frame.stream
        block_inflate(http2, data, size, False)
        return
    if kind == BLOCK_REQUEST:
        head = head_known(http2, data, size)
        if head != NULL:
            request_event(http2, frame.stream, head, event)
            return
    block_begin(http2, kind, ends)
    block_inflate(http2, data, size, True)
    block_end(http2, frame.stream, event)
    if not hpack_keeps_table(data, size):
        heads_forget(http2)
    elif kind == BLOCK_REQUEST and 0 < size <= HTTP2_MEMO_BYTES and not http2.failed:
        head_remember(http2, data, size)


cdef void read_continuation(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    cdef bint last = frame.flags & FLAG_END_HEADERS != 0
    if http2.block_id == 0:
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
        return
    http2.continuations += 1
    if http2.continuations > CONTINUATIONS_MAX:
        http2_fail(http2, HTTP2_ENHANCE_YOUR_CALM)
        return
    pay_control(http2, 1)
    block_inflate(http2, data, frame.size, last)
    if last:
        http2.block_id = 0
        block_end(http2, frame.stream, event)


# --- the other frames ---------------------------------------------------------------------------------------------------

cdef void read_data(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    cdef Http2Stream* stream
    cdef uint32_t size = frame.size
    cdef uint8_t ended
    cdef bint ends = frame.flags & FLAG_END_STREAM != 0
    if is_idle(http2, frame.stream):
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
        return
    # A window is opened again the moment that half of it is used, so no peer can overrun it.
    http2.unacknowledged += size
    if http2.unacknowledged >= CONNECTION_WINDOW_BYTES / 2:
        write_window_update(http2, 0, http2.unacknowledged)
        http2.unacknowledged = 0
    if frame.flags & FLAG_PADDED:
        if size < 1:
            http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
            return
        if data[0] >= size:
            http2_fail(http2, HTTP2_PROTOCOL_ERROR)
            return
        size -= 1 + <uint32_t>data[0]
        data += 1
    if size < GRPC_PREFIX_BYTES:
        pay_control(http2, 1)
    stream = stream_find(http2, frame.stream)
    if stream == NULL:
        ended = how_it_ended(http2, frame.stream)
        if ended == PAST_ANSWERED or ended == PAST_SKIPPED:
            http2_fail(http2, HTTP2_STREAM_CLOSED)
        elif ended == PAST_RESET_THERE:
            write_reset(http2, frame.stream, HTTP2_STREAM_CLOSED, True)
        else:
            pay_bytes(http2, frame.size)
        return
    if stream.ended:
        stream_error(http2, stream, HTTP2_STREAM_CLOSED, event)
        return
    stream.unacknowledged += frame.size
    if stream.unacknowledged >= STREAM_WINDOW_BYTES / 2 and not ends:
        write_window_update(http2, stream.id, stream.unacknowledged)
        stream.unacknowledged = 0
    if stream.body_left >= 0:
        stream.body_left -= size
        if stream.body_left < 0:
            stream_error(http2, stream, HTTP2_PROTOCOL_ERROR, event)
            return
    event.data = data
    event.size = size
    if ends:
        body_end(http2, stream, event)
    elif size > 0:
        event.what = HTTP2_BODY
        event.stream = stream
        event.end = 0


cdef void read_rst_stream(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    cdef Http2Stream* stream
    if frame.size != 4:
        http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
        return
    if is_idle(http2, frame.stream):
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
        return
    http2.counters.resets_received += 1
    pay_reset(http2)
    stream = stream_find(http2, frame.stream)
    if stream == NULL:
        return
    if http2.last_id - frame.stream < 2 * HTTP2_PAST:
        past_of(http2, frame.stream)[0] = PAST_RESET_THERE
    event.what = HTTP2_GONE
    event.stream = stream
    event.code = frame_read_u32(data)


cdef void set_stream_window(Http2* http2, int64_t size) noexcept nogil:
    """SETTINGS_INITIAL_WINDOW_SIZE moves the windows of all open streams too (RFC 9113 6.9.2)."""
    cdef int64_t difference = size - http2.stream_window
    cdef Http2Stream* stream
    cdef uint32_t slot
    if difference == 0:
        return
    http2.stream_window = size
    for slot in range(HTTP2_SLOTS):
        stream = http2.slots[slot]
        while stream != NULL:
            stream.window += difference
            if stream.window > FRAME_WINDOW_MAX:
                http2_fail(http2, HTTP2_FLOW_CONTROL_ERROR)
                return
            stream = stream.chain
    http2.window_opened = 1


cdef void read_settings(Http2* http2, const FrameHead* frame, const uint8_t* data) noexcept nogil:
    cdef uint32_t entry, at, value
    cdef uint16_t setting
    cdef int64_t window = http2.stream_window
    cdef uint8_t* out
    if frame.stream != 0:
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
        return
    if frame.flags & FLAG_ACK:
        if frame.size != 0:
            http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
        return
    if frame.size % FRAME_SETTING_BYTES != 0:
        http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
        return
    if frame.size > SETTINGS_MAX * FRAME_SETTING_BYTES:
        http2_fail(http2, HTTP2_ENHANCE_YOUR_CALM)
        return
    for entry in range(frame.size / FRAME_SETTING_BYTES):
        at = entry * FRAME_SETTING_BYTES
        setting = frame_read_u16(data + at)
        value = frame_read_u32(data + at + 2)
        if setting == SETTING_HEADER_TABLE_SIZE:
            # What we have put there is thrown out and told so, and put there again where it has room.
            if value > FRAME_HEADER_TABLE_BYTES:
                value = FRAME_HEADER_TABLE_BYTES
            if value < http2.table_limit:
                http2.table_reset = 1
                http2.table_limit = value
        elif setting == SETTING_ENABLE_PUSH or setting == SETTING_NO_RFC7540_PRIORITIES:
            if value > 1:
                http2_fail(http2, HTTP2_PROTOCOL_ERROR)
                return
        elif setting == SETTING_INITIAL_WINDOW_SIZE:
            if value > FRAME_WINDOW_MAX:
                http2_fail(http2, HTTP2_FLOW_CONTROL_ERROR)
                return
            window = value
        elif setting == SETTING_MAX_FRAME_SIZE:     # ours are never above what it is at least
            if value < FRAME_BYTES_MAX or value > FRAME_SIZE_MAX:
                http2_fail(http2, HTTP2_PROTOCOL_ERROR)
                return
    set_stream_window(http2, window)
    http2.greeted = 1
    if http2.failed:
        return
    out = room_for(http2, FRAME_HEAD_BYTES)
    if out != NULL:
        frame_write_head(out, 0, FRAME_SETTINGS, FLAG_ACK, 0)


cdef void read_ping(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    cdef uint8_t* out
    if frame.stream != 0:
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
    elif frame.size != FRAME_PING_BYTES:
        http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
    elif frame.flags & FLAG_ACK:
        event.what = HTTP2_PONG
    else:
        out = room_for(http2, FRAME_HEAD_BYTES + FRAME_PING_BYTES)
        if out != NULL:
            frame_write_ping(out, FLAG_ACK, data)


cdef void read_goaway(Http2* http2, const FrameHead* frame) noexcept nogil:
    if frame.stream != 0:
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
    elif frame.size < 8:
        http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
    else:
        http2.peer_leaving = 1


cdef void read_window_update(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    cdef uint32_t increment
    cdef Http2Stream* stream
    if frame.size != 4:
        http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
        return
    increment = frame_read_u32(data) & FRAME_WINDOW_MAX
    if frame.stream == 0:
        if increment == 0:
            http2_fail(http2, HTTP2_PROTOCOL_ERROR)
            return
        http2.window += increment
        if http2.window > FRAME_WINDOW_MAX:
            http2_fail(http2, HTTP2_FLOW_CONTROL_ERROR)
        elif http2.blocked.first != NULL:
            http2.window_opened = 1
        return
    if is_idle(http2, frame.stream):
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
        return
    stream = stream_find(http2, frame.stream)
    if stream == NULL:
        return
    if increment == 0:
        stream_error(http2, stream, HTTP2_PROTOCOL_ERROR, event)
        return
    stream.window += increment
    if stream.window > FRAME_WINDOW_MAX:
        stream_error(http2, stream, HTTP2_FLOW_CONTROL_ERROR, event)
    elif stream.place == HTTP2_BLOCKED and stream.window > 0 and http2.window > 0:
        http2_list_remove(&http2.blocked, stream)
        http2_answer(http2, stream)


cdef void read_priority(Http2* http2, const FrameHead* frame, Http2Event* event) noexcept nogil:
    """Says nothing to us; only its form is looked at."""
    cdef Http2Stream* stream
    if frame.stream == 0:
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
    elif frame.size != 5:
        stream = stream_find(http2, frame.stream)
        if stream != NULL:
            stream_error(http2, stream, HTTP2_FRAME_SIZE_ERROR, event)
        elif is_idle(http2, frame.stream):      # a stream that is not open cannot be reset
            http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)


cdef void read_frame(Http2* http2, const FrameHead* frame, const uint8_t* data, Http2Event* event) noexcept nogil:
    """One whole frame."""
    if frame.type == FRAME_DATA:
        read_data(http2, frame, data, event)
        return
    if frame.type == FRAME_HEADERS:
        read_headers(http2, frame, data, event)
        return
    if frame.type == FRAME_RST_STREAM:
        read_rst_stream(http2, frame, data, event)
        return
    if frame.type == FRAME_CONTINUATION:
        read_continuation(http2, frame, data, event)
        return
    pay_bytes(http2, frame.size)
    if http2.failed:
        return
    if frame.type == FRAME_SETTINGS:
        read_settings(http2, frame, data)
    elif frame.type == FRAME_PING:
        read_ping(http2, frame, data, event)
    elif frame.type == FRAME_WINDOW_UPDATE:
        read_window_update(http2, frame, data, event)
    elif frame.type == FRAME_GOAWAY:
        read_goaway(http2, frame)
    elif frame.type == FRAME_PRIORITY:
        read_priority(http2, frame, event)
    elif frame.type == FRAME_PUSH_PROMISE:      # clients promise nothing
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
    # Types that we do not know are to be ignored.


cdef bint frame_allowed(Http2* http2, const FrameHead* frame) noexcept nogil:
    """What can be said of a frame by its head alone, before its payload is there."""
    if frame.size > FRAME_BYTES_MAX:
        http2_fail(http2, HTTP2_FRAME_SIZE_ERROR)
    elif not http2.greeted and (frame.type != FRAME_SETTINGS or frame.flags & FLAG_ACK):
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
    elif http2.block_id != 0 and (frame.type != FRAME_CONTINUATION or frame.stream != http2.block_id):
        http2_fail(http2, HTTP2_PROTOCOL_ERROR)
    else:
        return True
    return False


cdef size_t read_preface(Http2* http2, const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t wanted = FRAME_PREFACE_BYTES - http2.preface
    if wanted > size:
        wanted = size
    if memcmp(FRAME_PREFACE_TEXT + http2.preface, data, wanted) != 0:
        http2.failed = 1
        http2.lost = 1      # who does not speak HTTP/2 would not understand a GOAWAY either
        http2.error = HTTP2_PROTOCOL_ERROR
        return 0
    http2.preface += <uint8_t>wanted
    return wanted


cdef size_t http2_read(Http2* http2, const uint8_t* data, size_t size, Http2Event* event) noexcept nogil:
    cdef size_t at = 0
    cdef FrameHead frame
    event.what = HTTP2_MORE
    if http2.preface < FRAME_PREFACE_BYTES and not http2.failed:
        at = read_preface(http2, data, size)
    while not http2.failed:
        if size - at < FRAME_HEAD_BYTES:
            return at
        frame_read_head(data + at, &frame)
        if not frame_allowed(http2, &frame):
            break
        if size - at < FRAME_HEAD_BYTES + frame.size:
            return at
        read_frame(http2, &frame, data + at + FRAME_HEAD_BYTES, event)
        at += FRAME_HEAD_BYTES + frame.size
        if event.what != HTTP2_MORE:
            return at       # where the connection failed with it, the next call says so
    event.what = HTTP2_FAILED
    return at


# --- answers ------------------------------------------------------------------------------------------------------------

cdef enum:
    TYPE_ENTRY_BYTES = 60       # of the decoder's table (RFC 7541 4.1): content-type: application/grpc
    STATUS_ENTRY_BYTES = 44     # grpc-status: 0
    ANSWER_ENDS_BYTES = 64      # room for all but DATA, at most: resizing, HEADERS, trailers, RST_STREAM


cdef inline uint8_t* write_table(Http2* http2, uint8_t* at) noexcept nogil:
    """At the beginning of a block: the peer's table has become smaller. It is emptied, then used again as far as it goes."""
    if http2.table_reset:
        http2.table_reset = 0
        http2.table_count = 0
        http2.type_entry = 0
        http2.status_entry = 0
        at = hpack_write_integer(at, HPACK_RESIZE, 5, 0)
        if http2.table_limit > 0:
            at = hpack_write_integer(at, HPACK_RESIZE, 5, http2.table_limit)
    return at


cdef inline uint8_t* write_entry(Http2* http2, uint8_t* at, uint8_t entry) noexcept nogil:
    """A field that we put into the peer's table; the newest has the lowest index."""
    at[0] = HPACK_INDEXED | (HPACK_STATIC + 1 + http2.table_count - entry)
    return at + 1


cdef inline uint8_t* write_type(Http2* http2, uint8_t* at) noexcept nogil:
    """content-type: application/grpc"""
    if http2.type_entry != 0:
        return write_entry(http2, at, http2.type_entry)
    if http2.table_limit < TYPE_ENTRY_BYTES + STATUS_ENTRY_BYTES:
        return hpack_write_named(at, HPACK_LITERAL, HPACK_CONTENT_TYPE, b"application/grpc", 16)
    http2.table_count += 1
    http2.type_entry = http2.table_count
    return hpack_write_named(at, HPACK_INSERTED, HPACK_CONTENT_TYPE, b"application/grpc", 16)


cdef inline uint8_t* write_status_ok(Http2* http2, uint8_t* at) noexcept nogil:
    """grpc-status: 0"""
    if http2.status_entry != 0:
        return write_entry(http2, at, http2.status_entry)
    if http2.table_limit < TYPE_ENTRY_BYTES + STATUS_ENTRY_BYTES:
        return hpack_write_field(at, HPACK_LITERAL, b"grpc-status", 11, b"0", 1)
    http2.table_count += 1
    http2.status_entry = http2.table_count
    return hpack_write_field(at, HPACK_INSERTED, b"grpc-status", 11, b"0", 1)


cdef uint8_t* write_refusal(Http2* http2, Http2Stream* stream, uint8_t* out) noexcept nogil:
    """An answer that is one HEADERS frame."""
    cdef uint8_t* at = write_table(http2, out + FRAME_HEAD_BYTES)
    cdef const char* code = HTTP2_GRPC_CODES[stream.grpc_code]
    cdef char status[3]
    if stream.http_status == 200:
        at[0] = HPACK_INDEXED | HPACK_STATUS_200
        at += 1
    else:
        status[0] = c'0' + <char>(stream.http_status / 100)
        status[1] = c'0' + <char>(stream.http_status / 10 % 10)
        status[2] = c'0' + <char>(stream.http_status % 10)
        at = hpack_write_named(at, HPACK_LITERAL, HPACK_STATUS, status, 3)
    if stream.http_status == 405:
        at = hpack_write_named(at, HPACK_LITERAL, HPACK_ALLOW, b"POST", 4)
    elif stream.http_status == 415:
        at = hpack_write_named(at, HPACK_LITERAL, HPACK_ACCEPT, b"application/grpc", 16)
    else:
        at = write_type(http2, at)
        at = hpack_write_field(at, HPACK_LITERAL, b"grpc-status", 11, code, 1 if stream.grpc_code < 10 else 2)
        if stream.text_size > 0:
            at = hpack_write_field(at, HPACK_SECRET, b"grpc-message", 12, <const char*>stream.text, stream.text_size)
        if stream.details_size > 0:
            at = hpack_write_field(at, HPACK_SECRET, b"grpc-status-details-bin", 23,
                                   <const char*>stream.details, stream.details_size)
        if stream.identity:
            at = hpack_write_field(at, HPACK_LITERAL, b"grpc-accept-encoding", 20, b"identity", 8)
    frame_write_head(out, <uint32_t>(at - out - FRAME_HEAD_BYTES), FRAME_HEADERS, FLAG_END_HEADERS | FLAG_END_STREAM, stream.id)
    return at


cdef inline uint8_t* write_opening(Http2* http2, Http2Stream* stream, uint8_t* out) noexcept nogil:
    """The HEADERS before a good answer's DATA."""
    cdef uint8_t* at = write_table(http2, out + FRAME_HEAD_BYTES)
    at[0] = HPACK_INDEXED | HPACK_STATUS_200
    at = write_type(http2, at + 1)
    frame_write_head(out, <uint32_t>(at - out - FRAME_HEAD_BYTES), FRAME_HEADERS, FLAG_END_HEADERS, stream.id)
    return at


cdef inline uint8_t* write_trailers(Http2* http2, Http2Stream* stream, uint8_t* out) noexcept nogil:
    cdef uint8_t* at = write_table(http2, out + FRAME_HEAD_BYTES)
    at = write_status_ok(http2, at)
    frame_write_head(out, <uint32_t>(at - out - FRAME_HEAD_BYTES), FRAME_HEADERS, FLAG_END_HEADERS | FLAG_END_STREAM, stream.id)
    return at


cdef void answer_block(Http2* http2, Http2Stream* stream) noexcept nogil:
    """The first of the queue waits for a window."""
    http2_list_remove(&http2.queue, stream)
    http2_list_append(&http2.blocked, stream)
    stream.place = HTTP2_BLOCKED


cdef void answers_unblock(Http2* http2) noexcept nogil:
    """A window has opened: what may go on queues up again."""
    cdef Http2Stream* stream = http2.blocked.first
    cdef Http2Stream* next
    http2.window_opened = 0
    if http2.window <= 0:
        return
    while stream != NULL:
        next = stream.next
        if stream.window > 0:
            http2_list_remove(&http2.blocked, stream)
            http2_answer(http2, stream)
        stream = next


cdef size_t http2_write(Http2* http2, uint8_t* out, size_t room, Http2Stream** done) noexcept nogil:
    cdef uint8_t* at = out
    cdef uint8_t* end = out + room
    cdef Http2Stream* stream
    cdef int64_t piece
    done[0] = NULL
    if http2.window_opened:
        answers_unblock(http2)
    while end - at >= HTTP2_OUT_BYTES_MIN:
        stream = http2.queue.first
        if stream == NULL:
            break
        if stream.grpc_code != 0 or stream.http_status != 200:
            at = write_refusal(http2, stream, at)
        else:
            if not stream.opened:
                stream.opened = 1
                at = write_opening(http2, stream, at)
            while stream.sent < stream.size:
                piece = stream.size - stream.sent
                if piece > FRAME_BYTES_MAX:
                    piece = FRAME_BYTES_MAX
                if piece > http2.window:
                    piece = http2.window
                if piece > stream.window:
                    piece = stream.window
                if piece <= 0:
                    break
                if piece > end - at - FRAME_HEAD_BYTES - ANSWER_ENDS_BYTES:
                    return <size_t>(at - out)
                at = frame_write_head(at, <uint32_t>piece, FRAME_DATA, 0, stream.id)
                memcpy(at, stream.body + stream.sent, <size_t>piece)
                at += piece
                stream.sent += <uint32_t>piece
                stream.window -= piece
                http2.window -= piece
            if stream.sent < stream.size:
                answer_block(http2, stream)
                continue
            at = write_trailers(http2, stream, at)
        if not stream.ended:    # answered early: tell the peer to stop sending (RFC 9113 8.1)
            at = frame_write_rst_stream(at, stream.id, HTTP2_NO_ERROR)
            http2.counters.resets_sent += 1
            if http2.last_id - stream.id < 2 * HTTP2_PAST:
                past_of(http2, stream.id)[0] = PAST_RESET_HERE
        http2_list_remove(&http2.queue, stream)
        stream.place = HTTP2_NOWHERE
        done[0] = stream
        break
    return <size_t>(at - out)
