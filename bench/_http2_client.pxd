# One connection of a gRPC client, as HTTP/2 frames (RFC 9113): writes requests into a buffer, reads answers out of what was received.
# Keeps the rules of both sides: windows, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, SETTINGS and PING acknowledged, GOAWAY and RST_STREAM
# told to the caller, who also owns the socket, the clock and what calls mean (bench/_load.pyx). Nothing is allocated per call.
# Not for header blocks (bench/_hpack.pxd). cimported by bench/_load.pyx.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset
from bench._hpack cimport (
    AnswerTable, CODE_NONE, Fields, HPACK_BLOCK_BYTES_MAX, HPACK_TABLE_BYTES, MESSAGE_KEPT_BYTES, RequestTable, Said, hpack_close_answers,
    hpack_open_answers, hpack_read_answer, hpack_write_request,
)
from bench._requests cimport REQUEST_ROOM
from server._frames cimport *

cdef extern from *:
    """
    static const char *const HTTP2_ERROR_NAMES[] = {
        "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
        "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
        "unknown error",
    };
    """
    const char** HTTP2_ERROR_NAMES

cdef enum:
    HTTP2_ERROR_COUNT = 15          # the codes of RFC 9113, and one for all others
    SEND_BYTES = 262144             # collected before one write
    CONTROL_BYTES = 8192            # of them, for frames that are no request: 480 PINGs of a service that does not read
    SMALL_REQUEST_BYTES = 2000      # sent at once, where the windows allow it
    REQUEST_OUT_BYTES = 4096        # room that a request needs: header block, two heads, SMALL_REQUEST_BYTES
    WINDOW_BYTES = 16777216         # receive windows: WINDOW_UPDATE frames stay rare
    STREAMS_BEFORE_SETTINGS = 100   # until the service has said what it takes; as nghttp2 does
    BLOCK_BYTES_MAX = 65536         # of an answer's header block over CONTINUATION frames
    ANSWER_KEPT_BYTES = 448         # of an answer that is wanted; the reservation is within the first ~250
    PREFIX_KEPT_BYTES = 5           # of others
    STREAM_MAP_MIN = 64
    GOAWAY_KEPT_BYTES = 64          # of the words in GOAWAY
    NOBODY = -1

cdef enum ReadEnd:                  # why http2_read came back
    READ_ALL = 0                    # what is left is not a whole frame
    READ_ANSWER = 1                 # the stream has ended
    READ_RESET = 2                  # the stream was reset; Http2.reset_code
    READ_BREACH = 3                 # the service broke a rule; Http2.breach

cdef struct Results:                # of a BatchPostResponse, counted while it comes in
    uint32_t skip                   # bytes until the next result, or of what is left of this one
    uint32_t size                   # of this one, as far as its length was read
    uint8_t shift
    uint8_t state                   # 0: a result's tag comes next; 1: its length; 2: its first byte
    uint8_t broken                  # it is no list of results
    uint32_t entries
    uint32_t errors

cdef struct Stream:
    uint32_t id                     # 0: free
    uint32_t answer_size            # received so far; only the first keep_bytes are kept
    int64_t window                  # what may be sent; below 0 after SETTINGS made it smaller
    const uint8_t* rest             # of the request, not sent yet
    uint32_t rest_size
    int32_t receive_window          # what the service may still send
    int32_t next                    # in the list of free ones, or of those with a rest; NOBODY: the last
    int16_t grpc_code               # CODE_NONE until it came
    uint16_t http_status            # 0 until it came
    uint16_t message_size
    uint16_t keep_bytes
    uint8_t has_details
    uint8_t counting                # its answer is a list of results
    Results results
    uint8_t kept[ANSWER_KEPT_BYTES]
    uint8_t message[MESSAGE_KEPT_BYTES]

cdef struct Http2:
    uint8_t* out                    # SEND_BYTES, of which out_sent..out_size are to be sent
    uint32_t out_size
    uint32_t out_sent
    uint32_t stream_count
    uint32_t stream_limit           # of stream_count, those that the service takes at once
    uint32_t stream_limit_told      # MAX_CONCURRENT_STREAMS
    uint32_t open_count
    uint32_t next_id
    uint32_t frame_bytes            # MAX_FRAME_SIZE of the service
    int32_t free                    # stream, or NOBODY
    int32_t unsent_first            # streams whose request has a rest, or NOBODY
    int32_t unsent_last
    int32_t receive_window          # what the service may still send on the connection
    int64_t window                  # what may be sent on the connection
    int64_t stream_window           # what may be sent on a new stream
    Stream* streams                 # stream_count
    uint32_t* place                 # stream id / 2 -> stream; a power of two of them, so that ids hardly ever meet
    uint32_t place_mask
    uint32_t kept_size
    uint8_t* kept                   # the beginning of a frame whose end is still to come
    uint8_t* spill                  # stream_count requests whose rest must be kept
    uint8_t* block                  # BLOCK_BYTES_MAX of a header block that goes on in CONTINUATION
    uint32_t block_size
    uint32_t block_stream           # 0: none
    uint32_t reset_code
    uint32_t goaway_code
    uint32_t goaway_stream          # the last one that the service will answer
    uint32_t goaway_size
    uint32_t breach_code
    const char* breach              # what the service did
    uint8_t block_flags
    uint8_t settings_came
    uint8_t goaway_came             # since the caller looked
    uint8_t leaving                 # no new streams: GOAWAY came, or the ids are used up
    RequestTable requests
    AnswerTable answers
    uint8_t goaway_text[GOAWAY_KEPT_BYTES]


# --- setting up -----------------------------------------------------------------------------------------------------

cdef inline bint http2_allocate(Http2* h, uint32_t stream_count) noexcept nogil:
    """Once, for all connections that are made one after the other. False: no memory."""
    cdef uint32_t places = STREAM_MAP_MIN
    while places < 4 * stream_count:
        places *= 2
    h.stream_count = stream_count
    h.place_mask = places - 1
    h.out = <uint8_t*>malloc(SEND_BYTES)
    h.kept = <uint8_t*>malloc(FRAME_HEAD_BYTES + FRAME_BYTES_MAX)
    h.spill = <uint8_t*>malloc(<size_t>stream_count * REQUEST_ROOM)
    h.block = <uint8_t*>malloc(BLOCK_BYTES_MAX)
    h.streams = <Stream*>calloc(stream_count, sizeof(Stream))
    h.place = <uint32_t*>calloc(places, sizeof(uint32_t))
    return h.out != NULL and h.kept != NULL and h.spill != NULL and h.block != NULL and h.streams != NULL and h.place != NULL


cdef inline void http2_free(Http2* h) noexcept nogil:
    hpack_close_answers(&h.answers)
    free(h.out)
    free(h.kept)
    free(h.spill)
    free(h.block)
    free(h.streams)
    free(h.place)


cdef inline bint http2_open(Http2* h) noexcept nogil:
    """A new connection: preface, SETTINGS and the connection's window. All streams are free. False: no memory."""
    cdef uint8_t* out = h.out
    cdef uint32_t i
    hpack_close_answers(&h.answers)
    if not hpack_open_answers(&h.answers):
        return False
    memset(&h.requests, 0, sizeof(RequestTable))
    for i in range(h.stream_count):
        h.streams[i].id = 0
        h.streams[i].next = <int32_t>i + 1 if i + 1 < h.stream_count else NOBODY
    h.free = 0
    h.unsent_first = NOBODY
    h.unsent_last = NOBODY
    h.open_count = 0
    h.next_id = 1
    h.stream_limit_told = STREAMS_BEFORE_SETTINGS
    h.stream_limit = h.stream_count if h.stream_count < STREAMS_BEFORE_SETTINGS else STREAMS_BEFORE_SETTINGS
    h.frame_bytes = FRAME_BYTES_MAX
    h.window = FRAME_WINDOW_BYTES
    h.stream_window = FRAME_WINDOW_BYTES
    h.receive_window = WINDOW_BYTES
    h.kept_size = 0
    h.block_stream = 0
    h.settings_came = 0
    h.leaving = 0
    h.goaway_came = 0
    h.goaway_code = HTTP2_NO_ERROR
    h.goaway_stream = FRAME_STREAM_MAX
    h.goaway_size = 0
    h.breach = NULL
    memcpy(out, FRAME_PREFACE_TEXT, FRAME_PREFACE_BYTES)
    out = frame_write_head(out + FRAME_PREFACE_BYTES, 2 * FRAME_SETTING_BYTES, FRAME_SETTINGS, 0, 0)
    out = frame_write_setting(out, SETTING_ENABLE_PUSH, 0)
    out = frame_write_setting(out, SETTING_INITIAL_WINDOW_SIZE, WINDOW_BYTES)
    out = frame_write_window_update(out, 0, WINDOW_BYTES - FRAME_WINDOW_BYTES)
    h.out_sent = 0
    h.out_size = <uint32_t>(out - h.out)
    return True


# --- sending --------------------------------------------------------------------------------------------------------

cdef inline uint8_t* http2_control(Http2* h, uint32_t size) noexcept nogil:
    """Room for a small frame, which counts as written; NULL: the service sends, but reads nothing."""
    if h.out_size + size > SEND_BYTES and h.out_sent:
        memmove(h.out, h.out + h.out_sent, h.out_size - h.out_sent)
        h.out_size -= h.out_sent
        h.out_sent = 0
    if h.out_size + size > SEND_BYTES:
        return NULL
    h.out_size += size
    return h.out + h.out_size - size


cdef inline void http2_send_rests(Http2* h) noexcept nogil:
    """Sends of the waiting requests what windows and buffer allow, oldest first."""
    cdef int32_t index = h.unsent_first, before = NOBODY, following
    cdef Stream* stream
    cdef uint8_t* out
    cdef int64_t size
    while index != NOBODY and h.window > 0:
        stream = &h.streams[index]
        while stream.rest_size and stream.window > 0 and h.window > 0:
            size = stream.rest_size
            if size > h.frame_bytes:
                size = h.frame_bytes
            if size > stream.window:
                size = stream.window
            if size > h.window:
                size = h.window
            if h.out_size + FRAME_HEAD_BYTES + size > SEND_BYTES - CONTROL_BYTES:
                return
            out = frame_write_head(h.out + h.out_size, <uint32_t>size, FRAME_DATA, FLAG_END_STREAM if size == stream.rest_size else 0, stream.id)
            memcpy(out, stream.rest, <size_t>size)
            h.out_size += FRAME_HEAD_BYTES + <uint32_t>size
            stream.rest += size
            stream.rest_size -= <uint32_t>size
            stream.window -= size
            h.window -= size
        following = stream.next
        if stream.rest_size:
            before = index
        else:
            if before == NOBODY:
                h.unsent_first = following
            else:
                h.streams[before].next = following
            if h.unsent_last == index:
                h.unsent_last = before
        index = following


cdef inline bint http2_may_request(Http2* h) noexcept nogil:
    return (h.open_count < h.stream_limit and not h.leaving
            and h.out_size <= SEND_BYTES - CONTROL_BYTES - REQUEST_OUT_BYTES)


cdef inline void http2_request(Http2* h, const Fields* fields, uint8_t method, const uint8_t* request, uint32_t size, bint lasting,
                               bint keep) noexcept nogil:
    """Starts the call on stream h.free, which is there when http2_may_request.

    request: message with its prefix; it is copied, where it cannot be sent at once, unless it is `lasting`; one that is not has at most
    REQUEST_ROOM bytes. keep: the answer is wanted, not only its size.
    """
    cdef int32_t index = h.free
    cdef Stream* stream = &h.streams[index]
    cdef uint8_t* out = h.out + h.out_size
    cdef uint8_t* begin = out + FRAME_HEAD_BYTES
    cdef uint32_t id = h.next_id
    cdef uint32_t* place = &h.place[(id >> 1) & h.place_mask]
    while h.streams[place[0]].id and (h.streams[place[0]].id >> 1) & h.place_mask == (id >> 1) & h.place_mask:
        id += 2         # its place is taken by a call that has been open for long
        place = &h.place[(id >> 1) & h.place_mask]
    place[0] = <uint32_t>index
    h.next_id = id + 2
    if h.next_id > FRAME_STREAM_MAX - 4 * (h.place_mask + 1):
        h.leaving = 1
    h.free = stream.next
    h.open_count += 1
    stream.id = id
    stream.answer_size = 0
    stream.window = h.stream_window
    stream.rest_size = 0
    stream.receive_window = WINDOW_BYTES
    stream.grpc_code = CODE_NONE
    stream.http_status = 0
    stream.message_size = 0
    stream.keep_bytes = ANSWER_KEPT_BYTES if keep else PREFIX_KEPT_BYTES
    stream.has_details = 0
    stream.counting = 0
    out = hpack_write_request(&h.requests, fields, method, begin)
    frame_write_head(begin - FRAME_HEAD_BYTES, <uint32_t>(out - begin), FRAME_HEADERS, FLAG_END_HEADERS, id)
    if h.unsent_first == NOBODY and size <= h.window and size <= stream.window and size <= SMALL_REQUEST_BYTES:
        out = frame_write_head(out, size, FRAME_DATA, FLAG_END_STREAM, id)
        memcpy(out, request, size)
        h.out_size = <uint32_t>(out + size - h.out)
        h.window -= size
        stream.window -= size
        return
    h.out_size = <uint32_t>(out - h.out)
    stream.rest = request
    stream.rest_size = size
    if not lasting:
        stream.rest = h.spill + <size_t>index * REQUEST_ROOM
        memcpy(h.spill + <size_t>index * REQUEST_ROOM, request, size)
    stream.next = NOBODY
    if h.unsent_last == NOBODY:
        h.unsent_first = index
    else:
        h.streams[h.unsent_last].next = index
    h.unsent_last = index
    http2_send_rests(h)


cdef inline void http2_release(Http2* h, uint32_t index) noexcept nogil:
    """The call is over: its stream is free again. Where the request was not sent to its end, the service is told that it will not be."""
    cdef Stream* stream = &h.streams[index]
    cdef int32_t at = h.unsent_first, before = NOBODY
    cdef uint8_t* out
    if stream.rest_size:
        while at != <int32_t>index:
            before = at
            at = h.streams[at].next
        if before == NOBODY:
            h.unsent_first = stream.next
        else:
            h.streams[before].next = stream.next
        if h.unsent_last == at:
            h.unsent_last = before
        stream.rest_size = 0
        out = http2_control(h, FRAME_HEAD_BYTES + 4)
        if out != NULL:
            frame_write_rst_stream(out, stream.id, HTTP2_CANCEL)
    stream.id = 0
    stream.next = h.free
    h.free = <int32_t>index
    h.open_count -= 1


# --- reading --------------------------------------------------------------------------------------------------------

cdef inline ReadEnd http2_breach(Http2* h, uint32_t code, const char* what) noexcept nogil:
    h.breach_code = code
    h.breach = what
    return READ_BREACH


cdef inline ReadEnd http2_deaf(Http2* h) noexcept nogil:
    return http2_breach(h, HTTP2_ENHANCE_YOUR_CALM, b"frames that need an answer, while it reads none")


cdef inline Stream* http2_stream(Http2* h, uint32_t id) noexcept nogil:
    # NULL: not open.
    cdef Stream* stream = &h.streams[h.place[(id >> 1) & h.place_mask]]
    return stream if stream.id == id else NULL


cdef inline bint http2_is_idle(const Http2* h, uint32_t id) noexcept nogil:
    # The stream was never opened; one that was and is closed may still get what was under way.
    return id & 1 == 0 or id >= h.next_id


cdef inline bint http2_ack(Http2* h, uint8_t type, const uint8_t* payload, uint32_t size) noexcept nogil:
    cdef uint8_t* out = http2_control(h, FRAME_HEAD_BYTES + size)
    if out == NULL:
        return False
    out = frame_write_head(out, size, type, FLAG_ACK, 0)
    memcpy(out, payload, size)
    return True


cdef inline bint http2_open_window(Http2* h, uint32_t id, uint32_t increment) noexcept nogil:
    cdef uint8_t* out = http2_control(h, FRAME_HEAD_BYTES + 4)
    if out == NULL:
        return False
    frame_write_window_update(out, id, increment)
    return True


cdef inline bint http2_strip(const FrameHead* head, const uint8_t** data, uint32_t* size) noexcept nogil:
    # Takes padding and priority off a payload. False: there is more of them than payload.
    cdef uint32_t padding = 0, before = 0
    if head.flags & FLAG_PADDED:
        if size[0] < 1:
            return False
        padding = data[0][0]
        before = 1
    if head.type == FRAME_HEADERS and head.flags & FLAG_PRIORITY:
        before += 5
    if before + padding > size[0]:
        return False
    data[0] += before
    size[0] -= before + padding
    return True


cdef inline void results_begin(Stream* stream) noexcept nogil:
    """Behind http2_request: count the results of the answer."""
    memset(&stream.results, 0, sizeof(Results))
    stream.results.skip = PREFIX_KEPT_BYTES
    stream.counting = 1


cdef inline void results_read(Results* results, const uint8_t* data, uint32_t size) noexcept nogil:
    """The next bytes of an answer, wherever it was cut: field 1 again and again, its first byte telling an entry from an error."""
    cdef uint32_t at = 0, piece
    cdef uint8_t byte
    while at < size:
        if results.skip:
            piece = size - at if size - at < results.skip else results.skip
            at += piece
            results.skip -= piece
            continue
        byte = data[at]
        at += 1
        if results.state == 0:
            results.broken |= byte != 0x0A
            results.size = 0
            results.shift = 0
            results.state = 1
        elif results.state == 1:
            results.size |= <uint32_t>(byte & 127) << results.shift
            results.shift += 7
            if byte < 128:
                results.state = 2
            results.broken |= results.shift > 28
        else:
            results.entries += byte == 0x0A
            results.errors += byte == 0x12
            results.skip = results.size - 1
            results.state = 0
        if results.broken:
            return


cdef inline ReadEnd http2_read_data(Http2* h, const FrameHead* head, const uint8_t* data, uint32_t* index) noexcept nogil:
    cdef Stream* stream = http2_stream(h, head.stream)
    cdef uint32_t size = head.size, room
    if stream == NULL and http2_is_idle(h, head.stream):
        return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"DATA on a stream that was never opened")
    if head.flags & FLAG_PADDED and not http2_strip(head, &data, &size):
        return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"DATA with more padding than payload")
    h.receive_window -= <int32_t>head.size
    if h.receive_window < WINDOW_BYTES / 2:
        if h.receive_window < 0:
            return http2_breach(h, HTTP2_FLOW_CONTROL_ERROR, b"DATA beyond the connection's window")
        if not http2_open_window(h, 0, WINDOW_BYTES - h.receive_window):
            return http2_deaf(h)
        h.receive_window = WINDOW_BYTES
    if stream == NULL:
        return READ_ALL
    if stream.answer_size < stream.keep_bytes:
        room = stream.keep_bytes - stream.answer_size
        memcpy(stream.kept + stream.answer_size, data, size if size < room else room)
    if stream.counting and not stream.results.broken:
        results_read(&stream.results, data, size)
    stream.answer_size += size
    stream.receive_window -= <int32_t>head.size
    if stream.receive_window < 0:
        return http2_breach(h, HTTP2_FLOW_CONTROL_ERROR, b"DATA beyond the stream's window")
    if head.flags & FLAG_END_STREAM:
        index[0] = <uint32_t>(stream - h.streams)
        return READ_ANSWER
    if stream.receive_window < WINDOW_BYTES / 2:
        if not http2_open_window(h, head.stream, WINDOW_BYTES - stream.receive_window):
            return http2_deaf(h)
        stream.receive_window = WINDOW_BYTES
    return READ_ALL


cdef inline ReadEnd http2_read_block(Http2* h, uint32_t id, uint8_t flags, const uint8_t* data, uint32_t size,
                                     uint32_t* index) noexcept nogil:
    # A whole header block; it is read for the table's sake even when nobody waits for it any more.
    cdef Stream* stream = http2_stream(h, id)
    cdef const Said* said = hpack_read_answer(&h.answers, data, size)
    if said == NULL:
        return http2_breach(h, HTTP2_COMPRESSION_ERROR, b"a header block that is not HPACK")
    if stream == NULL:
        return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"HEADERS on a stream that was never opened") if http2_is_idle(h, id) else READ_ALL
    if said.http_status:
        stream.http_status = said.http_status
    if said.grpc_code != CODE_NONE:
        stream.grpc_code = said.grpc_code
    if said.has_details:
        stream.has_details = 1
    if said.message_size:
        stream.message_size = said.message_size
        memcpy(stream.message, said.message, said.message_size)
    if flags & FLAG_END_STREAM:
        index[0] = <uint32_t>(stream - h.streams)
        return READ_ANSWER
    return READ_ALL


cdef inline ReadEnd http2_read_headers(Http2* h, const FrameHead* head, const uint8_t* data, uint32_t* index) noexcept nogil:
    # HEADERS and CONTINUATION.
    cdef uint32_t size = head.size, id
    if head.type == FRAME_HEADERS:
        if head.flags & (FLAG_PADDED | FLAG_PRIORITY) and not http2_strip(head, &data, &size):
            return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"HEADERS with more padding than payload")
        if head.flags & FLAG_END_HEADERS:
            return http2_read_block(h, head.stream, head.flags, data, size, index)
        h.block_stream = head.stream
        h.block_flags = head.flags
        h.block_size = 0
    if h.block_size + size > BLOCK_BYTES_MAX:
        return http2_breach(h, HTTP2_ENHANCE_YOUR_CALM, b"a header block of more than 65536 bytes")
    memcpy(h.block + h.block_size, data, size)
    h.block_size += size
    if not head.flags & FLAG_END_HEADERS:
        return READ_ALL
    id = h.block_stream
    h.block_stream = 0
    return http2_read_block(h, id, h.block_flags, h.block, h.block_size, index)


cdef inline ReadEnd http2_read_settings(Http2* h, const FrameHead* head, const uint8_t* data) noexcept nogil:
    cdef uint32_t at = 0, value, i
    cdef uint16_t setting
    cdef int64_t change
    if head.flags & FLAG_ACK:
        return READ_ALL if head.size == 0 else http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"an acknowledgement of SETTINGS with a payload")
    if head.size % FRAME_SETTING_BYTES:
        return http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"SETTINGS of a size that is no multiple of 6")
    if not h.settings_came:
        h.settings_came = 1
        h.stream_limit_told = FRAME_STREAM_MAX
    while at < head.size:
        setting = frame_read_u16(data + at)
        value = frame_read_u32(data + at + 2)
        at += FRAME_SETTING_BYTES
        if setting == SETTING_HEADER_TABLE_SIZE:
            if value < HPACK_TABLE_BYTES and not h.requests.plain:
                h.requests.plain = 1
                h.requests.plain_unsaid = 1
        elif setting == SETTING_MAX_CONCURRENT_STREAMS:
            h.stream_limit_told = value
        elif setting == SETTING_INITIAL_WINDOW_SIZE:
            if value > FRAME_WINDOW_MAX:
                return http2_breach(h, HTTP2_FLOW_CONTROL_ERROR, b"SETTINGS with a window of more than 2^31-1 bytes")
            change = <int64_t>value - h.stream_window
            h.stream_window = value
            for i in range(h.stream_count):
                if h.streams[i].id:
                    h.streams[i].window += change
        elif setting == SETTING_MAX_FRAME_SIZE:
            if value < FRAME_BYTES_MAX or value > FRAME_SIZE_MAX:
                return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"SETTINGS with a frame size outside 2^14..2^24-1 bytes")
            h.frame_bytes = value if value < SEND_BYTES / 4 else SEND_BYTES / 4
    h.stream_limit = h.stream_count if h.stream_count < h.stream_limit_told else h.stream_limit_told
    if not http2_ack(h, FRAME_SETTINGS, data, 0):
        return http2_deaf(h)
    http2_send_rests(h)
    return READ_ALL


cdef inline ReadEnd http2_read_window_update(Http2* h, const FrameHead* head, const uint8_t* data) noexcept nogil:
    cdef Stream* stream
    cdef uint32_t increment
    if head.size != 4:
        return http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"WINDOW_UPDATE of another size than 4")
    increment = frame_read_u32(data) & FRAME_WINDOW_MAX
    if increment == 0:
        return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"WINDOW_UPDATE by 0")
    if head.stream == 0:
        h.window += increment
        if h.window > FRAME_WINDOW_MAX:
            return http2_breach(h, HTTP2_FLOW_CONTROL_ERROR, b"WINDOW_UPDATE beyond 2^31-1")
    else:
        stream = http2_stream(h, head.stream)
        if stream == NULL:
            return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"WINDOW_UPDATE on a stream that was never opened") if http2_is_idle(
                h, head.stream) else READ_ALL
        stream.window += increment
        if stream.window > FRAME_WINDOW_MAX:
            return http2_breach(h, HTTP2_FLOW_CONTROL_ERROR, b"WINDOW_UPDATE beyond 2^31-1")
    if h.unsent_first != NOBODY:
        http2_send_rests(h)
    return READ_ALL


cdef inline ReadEnd http2_read_reset(Http2* h, const FrameHead* head, const uint8_t* data, uint32_t* index) noexcept nogil:
    cdef Stream* stream = http2_stream(h, head.stream)
    if head.size != 4:
        return http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"RST_STREAM of another size than 4")
    if stream == NULL:
        return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"RST_STREAM on a stream that was never opened") if http2_is_idle(
            h, head.stream) else READ_ALL
    h.reset_code = frame_read_u32(data)
    index[0] = <uint32_t>(stream - h.streams)
    return READ_RESET


cdef inline ReadEnd http2_read_goaway(Http2* h, const FrameHead* head, const uint8_t* data) noexcept nogil:
    cdef uint32_t last
    if head.size < 8:
        return http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"GOAWAY of less than 8 bytes")
    last = frame_read_u32(data) & FRAME_STREAM_MAX
    if last < h.goaway_stream:
        h.goaway_stream = last
    h.goaway_code = frame_read_u32(data + 4)
    h.goaway_size = head.size - 8 if head.size - 8 < GOAWAY_KEPT_BYTES else GOAWAY_KEPT_BYTES
    memcpy(h.goaway_text, data + 8, h.goaway_size)
    h.leaving = 1
    h.goaway_came = 1
    return READ_ALL


cdef inline ReadEnd http2_read(Http2* h, const uint8_t** at, const uint8_t* end, uint32_t* index) noexcept nogil:
    """Reads frames from *at until one ends a call, and moves *at behind it; call it again until READ_ALL or READ_BREACH."""
    cdef FrameHead head
    cdef const uint8_t* data
    cdef ReadEnd how
    while end - at[0] >= FRAME_HEAD_BYTES:
        frame_read_head(at[0], &head)
        if head.size > FRAME_BYTES_MAX:
            return http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"a frame of more than 16384 bytes (or it does not speak HTTP/2)")
        data = at[0] + FRAME_HEAD_BYTES
        if end - data < head.size:
            return READ_ALL
        at[0] = data + head.size
        if h.block_stream and (head.type != FRAME_CONTINUATION or head.stream != h.block_stream):
            return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"a header block that is not continued")
        how = READ_ALL
        if head.type == FRAME_DATA:
            how = http2_read_data(h, &head, data, index)
        elif head.type == FRAME_HEADERS:
            how = http2_read_headers(h, &head, data, index)
        elif head.type == FRAME_WINDOW_UPDATE:
            how = http2_read_window_update(h, &head, data)
        elif head.type == FRAME_RST_STREAM:
            how = http2_read_reset(h, &head, data, index)
        elif head.type == FRAME_CONTINUATION:
            if not h.block_stream:
                return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"CONTINUATION of no header block")
            how = http2_read_headers(h, &head, data, index)
        elif head.type == FRAME_PUSH_PROMISE:
            return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"PUSH_PROMISE, which was not allowed")
        elif head.type == FRAME_SETTINGS or head.type == FRAME_PING or head.type == FRAME_GOAWAY:
            if head.stream:
                return http2_breach(h, HTTP2_PROTOCOL_ERROR, b"a frame of the connection on a stream")
            if head.type == FRAME_SETTINGS:
                how = http2_read_settings(h, &head, data)
            elif head.type == FRAME_GOAWAY:
                how = http2_read_goaway(h, &head, data)
            elif head.size != FRAME_PING_BYTES:
                return http2_breach(h, HTTP2_FRAME_SIZE_ERROR, b"PING of another size than 8")
            elif not head.flags & FLAG_ACK and not http2_ack(h, FRAME_PING, data, FRAME_PING_BYTES):
                return http2_deaf(h)
        if how != READ_ALL:
            return how
    return READ_ALL
