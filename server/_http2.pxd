# HTTP/2 (RFC 9113) as a server of unary gRPC calls needs it: bytes of one connection to requests, answers to bytes.
# Not for sockets, buffers of requests, time-outs and what a call means: those are server/_transport's, which cimports this.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from server._nghttp2 cimport nghttp2_hd_inflater

cdef enum:
    HTTP2_SLOTS = 256           # of the table from ids to streams; streams of one slot are chained
    HTTP2_PAST = 1024           # of so many ids it is known how their streams ended
    HTTP2_MEMOS = 8             # header blocks remembered: a till sends a few different ones
    HTTP2_MEMO_BYTES = 120      # of each; usual ones have 10 to 60
    HTTP2_QUEUE_BYTES = 131_072 # frames that wait for the socket
    HTTP2_OUT_BYTES_MIN = 4096  # room that http2_write needs: the longest refusal has ~3.1 kB

cdef struct RequestHead:        # what a request's header block says to us
    int64_t timeout_us          # grpc-timeout; -1: none
    int64_t content_length      # bytes; -1: not said
    uint32_t header_bytes       # counted as RFC 9113 6.5.2 does
    uint16_t refusal            # STATUS_*; 0: none
    uint8_t method              # Method
    uint8_t is_post
    uint8_t is_connect
    uint8_t is_grpc
    uint8_t seen                # pseudo-header fields and others that may come once
    uint8_t malformed           # RFC 9113 8.1.1

cdef struct Http2Memo:
    RequestHead head
    uint32_t size               # 0: free
    uint8_t block[HTTP2_MEMO_BYTES]

cdef struct Http2Stream:        # the first field of the transport's stream. What the transport fills in stands behind `ended`
    Http2Stream* chain          # the next in its slot
    Http2Stream* previous       # in `queue` or `blocked`
    Http2Stream* next
    int64_t window              # bytes of DATA that may be sent; SETTINGS can make it negative
    int64_t body_left           # bytes of DATA that content-length still announces; -1: not said
    uint32_t id
    uint32_t unacknowledged     # bytes of DATA since the last WINDOW_UPDATE
    uint8_t place               # Http2Place
    uint8_t opened              # the HEADERS of the answer are out
    uint8_t ended               # the peer has sent END_STREAM
    uint8_t grpc_code
    uint8_t identity            # a refusal says which encoding is accepted
    uint16_t http_status        # 200, or what plain HTTP says to it
    uint32_t size               # bytes of body
    uint32_t sent               # bytes of body
    uint32_t text_size          # bytes
    uint32_t details_size       # bytes
    const uint8_t* body         # of a good answer, prefix included
    const uint8_t* text         # grpc-message, percent-encoded
    const uint8_t* details      # grpc-status-details-bin, base64

cdef enum Http2Place:
    HTTP2_NOWHERE = 0
    HTTP2_QUEUED = 1
    HTTP2_BLOCKED = 2

cdef struct Http2List:
    Http2Stream* first
    Http2Stream* last

cdef struct Http2Counters:      # of all connections
    uint64_t resets_received
    uint64_t resets_sent

cdef struct Http2:              # one connection; zeroed and set up by http2_begin
    nghttp2_hd_inflater* inflater
    Http2Counters* counters
    uint8_t* out                # HTTP2_QUEUE_BYTES: frames, whole or what the socket left of them
    uint32_t out_offset
    uint32_t out_size
    Http2List queue             # answers that may be written, first come first served
    Http2List blocked           # answers that wait for a window
    int64_t window              # bytes of DATA that may be sent on the connection
    int64_t stream_window       # that the peer gives to new streams
    int64_t reset_tokens        # meters: below 0 the peer is sent away. The transport gives tokens back
    int64_t control_tokens
    uint32_t unacknowledged     # bytes of DATA since the last WINDOW_UPDATE of the connection
    uint32_t last_id            # the highest stream that was opened
    uint32_t served_id          # the highest that is served: below last_id when leaving
    uint32_t error              # of the GOAWAY, when failed
    uint8_t preface             # bytes of it that came
    uint8_t greeted             # its first SETTINGS came
    uint8_t failed              # a connection error: nothing is read any more, and nothing said behind the GOAWAY
    uint8_t lost                # not even that can be said
    uint8_t leaving             # the final GOAWAY is out: new streams are ignored
    uint8_t peer_leaving        # GOAWAY came
    uint8_t window_opened       # blocked answers may go on

    uint32_t table_limit        # the peer's decoder table: what it said it may have
    uint8_t table_reset         # it was said to be smaller: empty it first
    uint8_t table_count         # entries that we put there
    uint8_t type_entry          # which of them is our content-type; 0: not there
    uint8_t status_entry        # which is our grpc-status 0

    uint32_t block_id           # stream of a header block that goes on in CONTINUATION; 0: none
    uint8_t block_kind
    uint8_t block_ends          # its END_STREAM
    uint8_t continuations
    uint8_t memo_newest
    RequestHead head            # of the block
    Http2Memo memos[HTTP2_MEMOS]
    uint8_t past[HTTP2_PAST]    # by id / 2: how its stream ended
    Http2Stream* slots[HTTP2_SLOTS]

cdef enum Http2What:
    HTTP2_MORE = 0              # what is left is no whole frame
    HTTP2_REQUEST = 1           # a new stream: http2_open or http2_refuse it now. `id`, `head`, `end`
    HTTP2_BODY = 2              # `stream`, `data`, `size`, `end`
    HTTP2_GONE = 3              # `stream` was reset, by either side, with `code`: free it now
    HTTP2_PONG = 4              # a PING of ours came back
    HTTP2_FAILED = 5            # see Http2.failed

cdef struct Http2Event:
    Http2What what
    Http2Stream* stream
    const RequestHead* head
    const uint8_t* data
    uint32_t size
    uint32_t id
    uint32_t code
    uint8_t end                 # the peer has sent everything

cdef bint http2_begin(Http2* http2, Http2Counters* counters, uint8_t* out) noexcept nogil
    # Sets up a connection and puts our SETTINGS into `out`; False: no memory.
cdef void http2_close(Http2* http2) noexcept nogil
cdef size_t http2_read(Http2* http2, const uint8_t* data, size_t size, Http2Event* event) noexcept nogil
    # Reads frames up to the next event. Returns the bytes used; the rest, less than a frame when the event is HTTP2_MORE, comes again.
cdef void http2_open(Http2* http2, Http2Stream* stream, const Http2Event* event) noexcept nogil
    # Takes a zeroed stream for a request into service.
cdef void http2_refuse(Http2* http2, const Http2Event* event, bint metered) noexcept nogil
    # Resets it as not processed; metered: it is the peer's fault.
cdef void http2_reset(Http2* http2, Http2Stream* stream, uint32_t code) noexcept nogil
    # Resets a stream by our own wish. It stays known until http2_forget.
cdef void http2_fail(Http2* http2, uint32_t code) noexcept nogil
    # A connection error: GOAWAY, then nothing.
cdef void http2_notice(Http2* http2) noexcept nogil
    # Begins to leave: a GOAWAY that allows everything, and a PING that tells when it was seen.
cdef void http2_leave(Http2* http2) noexcept nogil
    # The final GOAWAY: names the last stream that is served.
cdef size_t http2_write(Http2* http2, uint8_t* out, size_t room, Http2Stream** done) noexcept nogil
    # Writes answers, as far as windows and room (HTTP2_OUT_BYTES_MIN at least, or nothing is written) allow. Returns the bytes; stops
    # behind an answer that is complete: it is `done`, to be forgotten and freed, and the caller asks again. Else `done` is NULL.


cdef inline void http2_list_append(Http2List* queue, Http2Stream* stream) noexcept nogil:
    stream.previous = queue.last
    stream.next = NULL
    if queue.last != NULL:
        queue.last.next = stream
    else:
        queue.first = stream
    queue.last = stream


cdef inline void http2_list_remove(Http2List* queue, Http2Stream* stream) noexcept nogil:
    if stream.previous != NULL:
        stream.previous.next = stream.next
    else:
        queue.first = stream.next
    if stream.next != NULL:
        stream.next.previous = stream.previous
    else:
        queue.last = stream.previous


cdef inline void http2_answer(Http2* http2, Http2Stream* stream) noexcept nogil:
    """Queues the answer that the transport filled in."""
    stream.place = HTTP2_QUEUED
    http2_list_append(&http2.queue, stream)


cdef inline void http2_forget(Http2* http2, Http2Stream* stream) noexcept nogil:
    """Takes a stream out of the connection."""
    cdef Http2Stream** link = &http2.slots[stream.id >> 1 & (HTTP2_SLOTS - 1)]
    while link[0] != NULL:
        if link[0] == stream:
            link[0] = stream.chain
            break
        link = &link[0].chain
    if stream.place != HTTP2_NOWHERE:
        http2_list_remove(&http2.queue if stream.place == HTTP2_QUEUED else &http2.blocked, stream)
        stream.place = HTTP2_NOWHERE
