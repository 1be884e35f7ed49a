"""The checkout port: unary gRPC over HTTP/2 (server/_http2) on epoll, in one thread, without the GIL. The hot loop of the service.

One turn of the loop: wait for sockets -> read their frames -> run complete requests through `call` -> drain the inbox of
the control port -> go some steps through the open batches -> end the engine's turn -> release the answers that became durable ->
write, one send per connection. An answer leaves when the durable sequence has reached its `wait_sequence`, never before.

Not for meaning: what a request says is `server/_call` and behind it; this file knows methods by number and statuses only where the
transport itself refuses. Nothing is allocated per call: streams, buffers and connections come from pools sized at start,
in memory that is touched only when used. Everything that a peer can make grow is bounded in `ledger/limits.py`.

Called by `server/cli.py`: `run()` is the body of the hot thread, `stats()` is read by `server/metrics.py`.
TLS has its place in connection_receive and connection_send.
"""

import resource
import socket

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as posix_open
from posix.unistd cimport close

from ledger._clock cimport monotonic_us
from ledger._arith cimport min_i64
from ledger._engine cimport (
    Engine, EngineHandle, INBOX_GONE, InboxCall, engine_begin_turn, engine_durable, engine_end_turn, engine_event_fd, engine_idle,
    engine_inbox_take, engine_outbox_put, engine_room, engine_sleep_us, engine_stopping,
    engine_told, engine_told_waits,
)
from ledger._layout cimport Facts, METHOD_BATCH_GET_BALANCES, METHOD_BATCH_POST, METHOD_COUNT, METHOD_HEALTH_CHECK, METHOD_NONE
from ledger._limits cimport (
    ANSWER_BYTES_MAX, BATCHES_MAX, BATCHES_PER_CONNECTION_MAX, BATCH_ANSWER_BYTES_MAX, BATCH_COMMANDS_BESIDE, BATCH_REQUEST_BYTES_MAX,
    CALLS_PER_TURN_MAX, LATE_AFTER_S, LATE_CALLS_BESIDE,
    CONNECTIONS_MAX, CONTROL_FRAMES_BURST_MAX, CONTROL_FRAMES_PER_CALL, CONTROL_FRAMES_PER_S_MAX, DRAIN_GRACE_S, HEADER_BYTES_MAX,
    IDLE_TIMEOUT_S, INBOX_CALLS_MAX, LARGE_BUFFERS_MAX, LARGE_BUFFERS_PER_CONNECTION_MAX, REQUEST_BYTES_MAX, RESETS_BURST_MAX,
    RESETS_PER_S_MAX, SLOW_CLIENT_TIMEOUT_S, STREAMS_MAX, STREAMS_PER_CONNECTION_MAX, STREAMS_SHARE_MIN,
)
from ledger._status cimport (
    STATUS_COUNT, STATUS_DEADLINE_PASSED, STATUS_FRAMING_INVALID, STATUS_MESSAGE_COMPRESSED, STATUS_MESSAGE_TOO_LARGE,
    STATUS_METHOD_UNKNOWN, STATUS_OK, STATUS_TOO_MANY_CALLS,
)
from ledger._thread cimport thread_short_turns
from server._frames cimport FRAME_BYTES_MAX, FRAME_HEAD_BYTES, HTTP2_CANCEL, HTTP2_ENHANCE_YOUR_CALM, HTTP2_NO_ERROR
from server._call cimport (
    Answer, Batch, CALLS_AHEAD, Caller, DETAILS_BYTES_MAX, MESSAGE_BYTES_MAX, batch_begin, batch_step, batch_tell, call, call_business_us, call_park,
    call_prepare, call_read, call_refuse, call_run,
)
from server._grpc cimport (
    GRPC_CODE_COUNT, GRPC_PREFIX_BYTES, grpc_base64, grpc_health_service, grpc_percent_encode, grpc_text_is,
)
from server._http2 cimport (
    HTTP2_BODY, HTTP2_FAILED, HTTP2_GONE, HTTP2_MORE, HTTP2_OUT_BYTES_MIN, HTTP2_PONG, HTTP2_QUEUE_BYTES, HTTP2_REQUEST, Http2,
    Http2Counters, Http2Event, Http2Stream, RequestHead, http2_answer, http2_begin, http2_close, http2_fail, http2_forget, http2_leave,
    http2_notice, http2_open, http2_read, http2_refuse, http2_reset, http2_write,
)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int events_max, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_NOSIGNAL
        SHUT_WR
        SOCK_NONBLOCK
        SOCK_CLOEXEC
    int c_accept4 "accept4"(int fd, void* address, void* size, int flags)
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    int c_shutdown "shutdown"(int fd, int how)
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void* value, unsigned int size)

cdef extern from *:
    """
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/mman.h>
    #include <sys/socket.h>

    static void *transport_reserve(size_t size) {  /* zeroed, touched only when used; NULL: no memory */
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return memory == MAP_FAILED ? NULL : memory;
    }
    static void transport_socket_options(int fd) {  /* answers leave at once; a peer that vanished is noticed */
        int on = 1, idle_s = 60, interval_s = 10, count = 3;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    }
    static const int64_t TRANSPORT_BOUNDS_US[19] = {
        10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000,
        1000000, 2000000, 5000000, 10000000};
    """
    void* transport_reserve(size_t size) nogil
    void transport_socket_options(int fd) nogil
    const int64_t TRANSPORT_BOUNDS_US[]
    int munmap(void* memory, size_t size) nogil

cdef enum:
    STREAM_BYTES = 4096         # a stream's own buffer: requests have ~300 bytes, encoded refusals at most ~2.9 kB
    LARGE_BYTES = REQUEST_BYTES_MAX + 64    # what outgrows it: the largest request or answer, with its prefix
    BATCH_IN_BYTES = BATCH_REQUEST_BYTES_MAX + 64           # a batch's request with its prefix
    BATCH_OUT_BYTES = BATCH_ANSWER_BYTES_MAX + 64           # its answer with its prefix
    INPUT_BYTES = 65_536        # read at once from one socket
    CARRY_BYTES = FRAME_HEAD_BYTES + FRAME_BYTES_MAX    # of a frame that is not whole yet: it waits for the next read
    OUTPUT_BYTES = 65_536       # gathered for one send
    EVENTS_MAX = 256            # sockets looked at in one turn
    ACCEPTS_PER_TURN_MAX = 64   # new connections in one turn
    LISTENERS_MAX = 8           # addresses of one name
    ALONE_SPIN_US = 100         # how long the loop looks for a lone caller's next request before it sleeps: waking costs ~50 us
    CROWD_US = 10_000           # how long the loop remembers that somebody else waited; see server_alone
    TILLS_US = 10_000           # how long after a call for which somebody waits the late ones and the batches hold back
    LATE_SHARE = 2              # and how far: late calls get one part in so many of the time, LATE_CALLS_BESIDE at once,
    BATCH_SHARE = 6             # commands of batches one in so many, BATCH_COMMANDS_BESIDE at once
    LINGER_US = 1_000_000       # how long a closed connection may take to close from the other side
    NOTICE_MS = 1000            # how long a drain waits for the peer to have seen its notice
    MESSAGE_ROOM = 3 * MESSAGE_BYTES_MAX    # of a percent-encoded grpc-message
    BUCKETS = 20                # len(TRANSPORT_BOUNDS_US) + 1
    CONTROL_TOKENS = 1_048_576  # tokens of parked calls: below it streams, from it on calls of the control port,
    BATCH_TOKENS = 2_097_152    # from it on look-ups of batches, 64 numbers for each
    EVENT_ENGINE = 0            # values of epoll_event.data
    EVENT_LISTENER = 1          # .. + LISTENERS_MAX
    EVENT_CONNECTION = 16       # .. + CONNECTIONS_MAX

cdef enum:
    PORT_CHECKOUT = 0
    PORT_CONTROL = 1
    PORT_COUNT = 2

cdef enum StreamState:
    STREAM_RECEIVING = 1        # in server.receiving
    STREAM_READY = 2            # complete, in server.ready; a batch: in server.batches
    STREAM_HELD = 3             # decided, in server.held until durable
    STREAM_ANSWERED = 4         # may leave, in server.answered
    STREAM_QUEUED = 6           # complete, in its connection's `queued`: others of it are in server.ready
    STREAM_LATE = 7             # complete, in server.late
    STREAM_PARKED = 5           # not decided: waits for what the runs of dropped ids say; its request is still in the buffer

cdef struct Stream:             # one call
    Http2Stream wire            # first: the two are cast into each other
    Stream* previous            # in the list of its state; free ones: next alone
    Stream* next
    Stream* sibling_previous    # among the streams of its connection
    Stream* sibling_next
    Connection* connection      # NULL: the peer has gone and only the decided answer, or that of the runs, is waited for
    uint8_t* large              # NULL: everything is in `own`, or in `batch`
    OpenBatch* batch            # of a batch, from its prefix to the end of its answer
    int64_t headers_us          # monotonic us at which its HEADERS were read
    int64_t deadline_us         # monotonic us; 0: none
    int64_t answered_us         # monotonic us since which it may leave
    int64_t refusal_a           # numbers of the refusal
    int64_t refusal_b
    uint32_t received           # bytes of body, prefix included; saturates above what is allowed
    uint32_t message_size       # bytes, from the prefix
    uint16_t refusal            # STATUS_* found while receiving; 0: none
    uint8_t state               # StreamState
    uint8_t method              # Method
    uint8_t own[STREAM_BYTES]   # the request, then the answer in its place

cdef struct StreamList:
    Stream* first
    Stream* last
    uint32_t count

cdef struct Held:               # an answer waiting for the disk
    uint64_t wait_sequence
    Stream* stream

cdef struct OpenBatch:          # the buffers of a batch and how far it is
    Batch batch
    OpenBatch* previous         # in server.batches; free ones: next alone
    OpenBatch* next
    Stream* stream              # whose it is; NULL: `control`'s
    ControlAnswer* control
    int64_t deadline_us         # monotonic us; 0: none
    uint8_t* request            # BATCH_IN_BYTES: prefix and message
    uint8_t* answer             # BATCH_OUT_BYTES: prefix and message
    uint8_t begun               # looked at, some of it run
    uint8_t waiting             # in server.batches

cdef struct ControlAnswer:      # a call of the control port that was run: its answer waits for the disk or for room in the outbox;
                                # or it is parked, and the buffer holds its request
    ControlAnswer* next
    uint64_t token
    uint64_t wait_sequence
    int64_t taken_us
    int64_t deadline_us         # monotonic us; 0: none
    uint8_t* large              # NULL: in `own`, or in `batch`
    OpenBatch* batch            # of a batch
    uint32_t size
    uint32_t message_size
    uint16_t status
    uint8_t method
    uint8_t grpc_code
    uint8_t message[MESSAGE_BYTES_MAX]
    uint8_t own[STREAM_BYTES]

cdef struct Connection:
    Http2 http2
    Server* server
    Stream* streams             # all of its open calls
    Connection* next_free
    Connection* next_dirty
    Connection* next_doomed
    uint8_t* carry              # CARRY_BYTES of its own: the beginning of a frame
    int64_t opened_us           # monotonic us
    int64_t last_call_us        # of its newest call, or opened_us
    int64_t blocked_us          # since when the socket takes nothing more; 0: it does
    int64_t closing_us          # when it lingers or got its notice
    StreamList queued           # complete calls behind those of it that stand in server.ready
    uint32_t ready_count        # of it, in server.ready
    uint32_t carry_size
    uint32_t stream_count
    uint32_t large_count
    uint32_t batch_count
    uint32_t index
    uint32_t events             # what epoll watches
    int fd
    uint8_t used                # 0: the slot is free
    uint8_t dirty               # to be written in this turn
    uint8_t doomed              # to be closed at the end of this turn
    uint8_t paused              # not read: the engine has no room and the streams run out
    uint8_t over                # it failed or was told to go: no call of it is answered any more
    uint8_t leaving             # 1: notice sent, 2: final GOAWAY sent
    uint8_t lingering           # everything is sent and our side is shut

cdef struct Counters:           # plain aligned words: written by the hot thread, read by anybody
    uint64_t calls[PORT_COUNT][METHOD_COUNT][STATUS_COUNT]
    uint64_t latency[PORT_COUNT][METHOD_COUNT][BUCKETS]
    uint64_t latency_us[PORT_COUNT][METHOD_COUNT]
    uint64_t connections_total
    uint64_t connections_refused
    uint64_t connections_abused
    uint64_t connections_broken
    uint64_t connections_timed_out
    uint64_t streams_refused
    uint64_t streams_timed_out
    uint64_t calls_cancelled
    uint64_t answers_dropped
    uint64_t http_refused
    Http2Counters http2
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t turns
    uint64_t batch_turns        # turns in which commands of batches ran
    uint64_t late_calls         # calls that were put behind those for which somebody waits

cdef struct Aside:              # a kind of work for which nobody waits; see aside_begin
    int64_t begun_us
    int64_t from_us             # while tills call: not before

cdef struct Server:
    Engine* engine
    Connection* connections     # CONNECTIONS_MAX of them
    Stream* streams             # STREAMS_MAX of them
    uint8_t* large              # LARGE_BUFFERS_MAX * LARGE_BYTES
    uint8_t* batch_bytes        # BATCHES_MAX * (BATCH_IN_BYTES + BATCH_OUT_BYTES)
    uint8_t* carry              # CONNECTIONS_MAX * CARRY_BYTES
    uint8_t* out                # CONNECTIONS_MAX * HTTP2_QUEUE_BYTES
    Held* held                  # STREAMS_MAX of them
    ControlAnswer* control      # INBOX_CALLS_MAX of them
    uint32_t connections_max
    uint32_t streams_max
    int64_t idle_us
    int64_t slow_us
    int64_t notice_us
    int64_t drain_us
    int epoll
    int spare_fd                # given up for a moment to refuse a connection when descriptors run out
    int listeners[LISTENERS_MAX]
    uint32_t listener_count

    Connection* free_connections
    uint32_t connections_used   # slots ever used
    uint32_t connection_count
    uint32_t calling_count      # connections that have streams
    uint32_t paused_count
    Stream* free_streams
    uint32_t streams_used       # ever taken from `streams`
    uint32_t stream_count       # taken, those of peers that went included
    uint8_t** free_large
    uint32_t free_large_count
    OpenBatch open_batches[BATCHES_MAX]
    OpenBatch* free_batches
    ControlAnswer* free_control
    ControlAnswer* control_first    # in order
    ControlAnswer* control_last
    uint32_t control_count
    uint32_t control_batches    # batches of the control port that have not all run

    StreamList receiving        # by time of HEADERS
    StreamList ready            # calls that wait, of every connection that has some; see ready_append
    StreamList late             # calls that wait and for which nobody waits, the oldest first; see server_run_late
    StreamList answered         # by time of the answer
    OpenBatch* first_batch      # complete requests, not yet all run, the oldest first
    OpenBatch* last_batch
    uint32_t held_count
    uint32_t parked_count       # streams and calls of the control port that wait for the runs
    Connection* dirty
    Connection* doomed

    int64_t now_us              # monotonic us, read at each socket and phase
    int64_t spin_until_us       # a lone caller was answered: until then the loop does not sleep; 0: it may
    int64_t crowd_until_us
    int64_t time_us             # server time of this turn
    int64_t tills_until_us      # until then late calls and batches hold back
    Aside late_aside
    Aside batch_aside
    int64_t next_look_us
    int64_t look_us             # between two looks at the time-outs
    int64_t stop_us             # when the stop was noticed; 0: not yet
    int stopping                # as engine_stopping said in this turn
    uint64_t released_sequence  # durable sequence of the last release
    int failed                  # errno of epoll_wait

    Counters counters
    Caller* caller
    Answer answer
    uint8_t answer_data[ANSWER_BYTES_MAX]
    uint8_t input[CARRY_BYTES + INPUT_BYTES]
    uint8_t output[OUTPUT_BYTES]
    epoll_event events[EVENTS_MAX]


# --- pools and lists ----------------------------------------------------------------------------------------------------

cdef inline void list_append(StreamList* queue, Stream* stream) noexcept nogil:
    stream.previous = queue.last
    stream.next = NULL
    if queue.last != NULL:
        queue.last.next = stream
    else:
        queue.first = stream
    queue.last = stream
    queue.count += 1


cdef inline void list_remove(StreamList* queue, Stream* stream) noexcept nogil:
    if stream.previous != NULL:
        stream.previous.next = stream.next
    else:
        queue.first = stream.next
    if stream.next != NULL:
        stream.next.previous = stream.previous
    else:
        queue.last = stream.previous
    queue.count -= 1


cdef inline uint32_t server_share(Server* server) noexcept nogil:
    """How many streams one connection may hold. When they run short, as many as every other that has some; and the last ones
    are for connections that hold few: nobody keeps the others out."""
    cdef uint32_t share = STREAMS_PER_CONNECTION_MAX
    if server.stream_count > server.streams_max / 2:
        if server.streams_max - server.stream_count <= server.streams_max / 16:
            share = 0
        elif server.calling_count > 0:
            share = server.streams_max / server.calling_count
        if share < STREAMS_SHARE_MIN:
            share = STREAMS_SHARE_MIN
    return share if share < STREAMS_PER_CONNECTION_MAX else STREAMS_PER_CONNECTION_MAX


cdef Stream* stream_take(Server* server, Connection* connection) noexcept nogil:
    """A stream from the pool, receiving; NULL: all are in use, or the connection has its share.

    The last one given back comes first: it is still in the cache."""
    cdef Stream* stream
    if server.stream_count >= server.streams_max or connection.stream_count >= server_share(server):
        return NULL
    if server.free_streams != NULL:
        stream = server.free_streams
        server.free_streams = stream.next
    else:
        stream = &server.streams[server.streams_used]
        server.streams_used += 1
    server.stream_count += 1
    memset(stream, 0, sizeof(Stream) - STREAM_BYTES)
    stream.state = STREAM_RECEIVING
    stream.headers_us = server.now_us
    stream.connection = connection
    stream.sibling_next = connection.streams
    if connection.streams != NULL:
        connection.streams.sibling_previous = stream
    else:
        server.calling_count += 1
    connection.streams = stream
    connection.stream_count += 1
    list_append(&server.receiving, stream)
    return stream


cdef void stream_give_up_large(Server* server, Stream* stream) noexcept nogil:
    if stream.large == NULL:
        return
    server.free_large[server.free_large_count] = stream.large
    server.free_large_count += 1
    stream.large = NULL
    if stream.connection != NULL:
        stream.connection.large_count -= 1


cdef void ready_append(Server* server, Stream* stream) noexcept nogil:
    """A call is complete. Connections take turns: one that sends a thousand calls at once does not keep the others waiting for them all.
    So server.ready, first come first served, has one call of each connection, and more only up to CALLS_AHEAD in all, which are read
    ahead. The others queue at their connection. Its calls keep their order, but for those for which nobody waits: server_run_late."""
    cdef Connection* connection = stream.connection
    if connection.ready_count == 0 or (connection.queued.first == NULL and server.ready.count < CALLS_AHEAD):
        stream.state = STREAM_READY
        connection.ready_count += 1
        list_append(&server.ready, stream)
    else:
        stream.state = STREAM_QUEUED
        list_append(&connection.queued, stream)


cdef void ready_remove(Server* server, Connection* connection, Stream* stream) noexcept nogil:
    """It is taken or given up; the next one of its connection comes behind all others."""
    cdef Stream* next = connection.queued.first
    list_remove(&server.ready, stream)
    connection.ready_count -= 1
    while next != NULL and (connection.ready_count == 0 or server.ready.count < CALLS_AHEAD):
        list_remove(&connection.queued, next)
        next.state = STREAM_READY
        connection.ready_count += 1
        list_append(&server.ready, next)
        next = connection.queued.first


cdef inline bint is_batch(uint8_t method) noexcept nogil:
    return method == METHOD_BATCH_POST or method == METHOD_BATCH_GET_BALANCES


cdef inline uint32_t request_bytes_max(uint8_t method) noexcept nogil:
    return BATCH_REQUEST_BYTES_MAX if is_batch(method) else REQUEST_BYTES_MAX


cdef inline uint8_t* stream_request(Stream* stream) noexcept nogil:
    """Where the request lies, with its prefix."""
    if stream.batch != NULL:
        return stream.batch.request
    return stream.large if stream.large != NULL else stream.own


cdef OpenBatch* batch_take(Server* server) noexcept nogil:
    """The buffers for a batch; NULL: all are in use."""
    cdef OpenBatch* batch = server.free_batches
    if batch != NULL:
        server.free_batches = batch.next
        batch.stream = NULL
        batch.control = NULL
        batch.deadline_us = 0
        batch.begun = 0
        batch.waiting = 0
        batch.batch.asked = 0
    return batch


cdef void batch_append(Server* server, OpenBatch* batch) noexcept nogil:
    batch.waiting = 1
    batch.previous = server.last_batch
    batch.next = NULL
    if server.last_batch != NULL:
        server.last_batch.next = batch
    else:
        server.first_batch = batch
    server.last_batch = batch


cdef void batch_remove(Server* server, OpenBatch* batch) noexcept nogil:
    batch.waiting = 0
    if batch.previous != NULL:
        batch.previous.next = batch.next
    else:
        server.first_batch = batch.next
    if batch.next != NULL:
        batch.next.previous = batch.previous
    else:
        server.last_batch = batch.previous


cdef void batch_free(Server* server, OpenBatch* batch) noexcept nogil:
    """Gives the buffers back; what has not run never will."""
    if batch.waiting:
        batch_remove(server, batch)
    if batch.batch.asked > 0:       # the runs will tell: the buffers are free then
        batch.stream = NULL
        batch.control = NULL
        return
    batch.next = server.free_batches
    server.free_batches = batch


cdef void stream_give_up_batch(Server* server, Stream* stream) noexcept nogil:
    if stream.batch == NULL:
        return
    batch_free(server, stream.batch)
    stream.batch = NULL
    if stream.connection != NULL:
        stream.connection.batch_count -= 1


cdef bint stream_take_batch(Server* server, Stream* stream) noexcept nogil:
    """Gives the stream the buffers of a batch; False: none is left, or its connection has its share."""
    cdef OpenBatch* batch
    if stream.connection.batch_count >= BATCHES_PER_CONNECTION_MAX:
        return False
    batch = batch_take(server)
    if batch == NULL:
        return False
    stream.batch = batch
    stream.connection.batch_count += 1
    batch.stream = stream
    batch.deadline_us = stream.deadline_us
    memcpy(batch.request, stream.own, GRPC_PREFIX_BYTES)
    return True


cdef bint stream_take_large(Server* server, Stream* stream, uint32_t reserve) noexcept nogil:
    """Gives the stream a large buffer, its first bytes copied; False: none is left above `reserve`, or its connection has its share."""
    if stream.large != NULL:
        return True
    if server.free_large_count <= reserve or stream.connection == NULL:
        return False
    if stream.connection.large_count >= LARGE_BUFFERS_PER_CONNECTION_MAX:
        return False
    server.free_large_count -= 1
    stream.large = server.free_large[server.free_large_count]
    stream.connection.large_count += 1
    memcpy(stream.large, stream.own, GRPC_PREFIX_BYTES)
    return True


cdef void stream_leave(Server* server, Stream* stream) noexcept nogil:
    """Takes the stream off its connection: the peer will hear nothing more of it."""
    cdef Connection* connection = stream.connection
    stream_give_up_large(server, stream)
    stream_give_up_batch(server, stream)
    if stream.sibling_previous != NULL:
        stream.sibling_previous.sibling_next = stream.sibling_next
    else:
        connection.streams = stream.sibling_next
    if stream.sibling_next != NULL:
        stream.sibling_next.sibling_previous = stream.sibling_previous
    connection.stream_count -= 1
    if connection.streams == NULL:
        server.calling_count -= 1
    http2_forget(&connection.http2, &stream.wire)
    stream.connection = NULL


cdef void stream_free(Server* server, Stream* stream) noexcept nogil:
    stream.state = 0
    stream.next = server.free_streams
    server.free_streams = stream
    server.stream_count -= 1


cdef void stream_closed(Server* server, Stream* stream, bint well) noexcept nogil:
    """The call is over on the wire. What was not decided is never decided; what was decided stays so, and is dropped quietly."""
    cdef Connection* connection = stream.connection
    stream_leave(server, stream)
    if stream.state == STREAM_HELD:     # server.held still points to it: freed at its release
        server.counters.answers_dropped += 1
        return
    if stream.state == STREAM_PARKED:   # its token is still out: freed when it comes back
        server.counters.calls_cancelled += 1
        return
    if stream.state == STREAM_RECEIVING:
        list_remove(&server.receiving, stream)
        server.counters.calls_cancelled += 1
    elif stream.state == STREAM_READY:
        if not is_batch(stream.method):
            ready_remove(server, connection, stream)
        server.counters.calls_cancelled += 1
    elif stream.state == STREAM_QUEUED:
        list_remove(&connection.queued, stream)
        server.counters.calls_cancelled += 1
    elif stream.state == STREAM_LATE:
        list_remove(&server.late, stream)
        server.counters.calls_cancelled += 1
    else:
        list_remove(&server.answered, stream)
        if not well:
            server.counters.answers_dropped += 1
        elif stream.wire.http_status == 200:
            count_latency(server, PORT_CHECKOUT, stream.method, server.now_us - stream.headers_us)
    stream_free(server, stream)


cdef inline void count_latency(Server* server, int port, uint8_t method, int64_t took_us) noexcept nogil:
    cdef int bucket = 0
    while bucket < BUCKETS - 1 and took_us > TRANSPORT_BOUNDS_US[bucket]:
        bucket += 1
    server.counters.latency[port][method][bucket] += 1
    server.counters.latency_us[port][method] += <uint64_t>took_us


cdef inline void connection_mark(Connection* connection) noexcept nogil:
    """To be written in this turn."""
    if not connection.dirty:
        connection.dirty = 1
        connection.next_dirty = connection.server.dirty
        connection.server.dirty = connection


cdef inline void connection_doom(Connection* connection) noexcept nogil:
    """To be closed at the end of this turn: not at once, because callers up the stack still hold it."""
    if not connection.doomed:
        connection.doomed = 1
        connection.next_doomed = connection.server.doomed
        connection.server.doomed = connection


# --- answers ------------------------------------------------------------------------------------------------------------

cdef void stream_submit(Server* server, Stream* stream) noexcept nogil:
    """Lets the answer in the stream's buffer leave."""
    cdef Connection* connection = stream.connection
    stream.answered_us = server.now_us
    stream.state = STREAM_ANSWERED
    list_append(&server.answered, stream)
    stream.wire.body = stream.batch.answer if stream.batch != NULL else stream.large if stream.large != NULL else stream.own
    stream.wire.text = stream.own
    stream.wire.details = stream.own + MESSAGE_ROOM
    stream.wire.identity = stream.refusal == STATUS_MESSAGE_COMPRESSED
    http2_answer(&connection.http2, &stream.wire)
    connection_mark(connection)


cdef void stream_keep_code(Server* server, Stream* stream, int grpc_code, const char* text, uint32_t text_size) noexcept nogil:
    """Writes an answer that has a code and a text alone. Without ErrorInfo it means: unknown, ask again."""
    stream_give_up_large(server, stream)
    stream_give_up_batch(server, stream)
    stream.wire.grpc_code = <uint8_t>grpc_code
    stream.wire.text_size = grpc_percent_encode(<const uint8_t*>text, text_size, stream.own)


cdef inline uint8_t* stream_prefix_answer(Stream* stream, uint8_t* out, uint32_t size) noexcept nogil:
    """Writes the five bytes before a good answer; returns where its message goes."""
    out[0] = 0
    out[1] = <uint8_t>(size >> 24)
    out[2] = <uint8_t>(size >> 16)
    out[3] = <uint8_t>(size >> 8)
    out[4] = <uint8_t>size
    stream.wire.size = size + GRPC_PREFIX_BYTES
    return out + GRPC_PREFIX_BYTES


cdef void stream_keep(Server* server, Stream* stream, const Answer* answer) noexcept nogil:
    """Copies an answer into the stream's buffer, over the request, in the form in which it is sent."""
    cdef uint32_t size = answer.size
    server.counters.calls[PORT_CHECKOUT][stream.method][answer.status if answer.status < STATUS_COUNT else 0] += 1
    if answer.grpc_code == 0:
        if size > ANSWER_BYTES_MAX:
            stream_keep_code(server, stream, 13, b"the answer is too large", 23)
            return
        if size + GRPC_PREFIX_BYTES > STREAM_BYTES:
            if not stream_take_large(server, stream, 0):
                stream_keep_code(server, stream, 14, b"too many large answers are open: ask again with the same request_id", 67)
                return
        else:
            stream_give_up_large(server, stream)
        memcpy(stream_prefix_answer(stream, stream.large if stream.large != NULL else stream.own, size), answer.data, size)
        return
    stream_give_up_large(server, stream)
    stream_give_up_batch(server, stream)
    stream.wire.grpc_code = <uint8_t>(answer.grpc_code if 0 < answer.grpc_code < GRPC_CODE_COUNT else 2)
    stream.wire.text_size = grpc_percent_encode(
        answer.message, answer.message_size if answer.message_size < MESSAGE_BYTES_MAX else MESSAGE_BYTES_MAX, stream.own)
    if size <= DETAILS_BYTES_MAX:
        stream.wire.details_size = grpc_base64(answer.data, size, stream.own + MESSAGE_ROOM)


cdef void stream_refuse(Server* server, Stream* stream, uint16_t status, int64_t a, int64_t b) noexcept nogil:
    """Answers a call that never reaches the core. The stream is in no list any more."""
    server.answer.wait_sequence = 0
    call_refuse(server.caller, status, a, b, &server.answer)
    stream_keep(server, stream, &server.answer)
    stream_submit(server, stream)


cdef void stream_health(Server* server, Stream* stream) noexcept nogil:
    """Answers grpc.health.v1.Health/Check."""
    cdef const uint8_t* body = (stream.large if stream.large != NULL else stream.own) + GRPC_PREFIX_BYTES
    cdef const uint8_t* service
    cdef uint32_t size
    cdef Answer* answer = &server.answer
    answer.status = STATUS_OK
    answer.grpc_code = 0
    answer.message_size = 0
    if not grpc_health_service(body, stream.message_size, &service, &size):
        stream_keep_code(server, stream, 3, b"the request is not a grpc.health.v1.HealthCheckRequest", 54)
    elif size != 0 and not grpc_text_is(service, size, b"loyalty.ledger.v1.LedgerService", 31):
        stream_keep_code(server, stream, 5, b"unknown service", 15)
    else:
        answer.data[0] = 0x08                               # status = 1
        answer.data[1] = 1 if server.stopping == 0 else 2   # SERVING, NOT_SERVING
        answer.size = 2
        stream_keep(server, stream, answer)
    stream_submit(server, stream)


# --- requests -----------------------------------------------------------------------------------------------------------

cdef void connection_request(Server* server, Connection* connection, const Http2Event* event) noexcept nogil:
    """A call begins. What its headers alone decide is said when it is complete, which is what clients expect."""
    cdef const RequestHead* head = event.head
    cdef Stream* stream
    connection.last_call_us = server.now_us
    stream = stream_take(server, connection)
    if stream == NULL:
        server.counters.streams_refused += 1
        http2_refuse(&connection.http2, event, connection.stream_count >= STREAMS_PER_CONNECTION_MAX)
        return
    http2_open(&connection.http2, &stream.wire, event)
    stream.method = head.method
    stream.refusal = head.refusal
    if head.timeout_us >= 0:
        stream.deadline_us = stream.headers_us + head.timeout_us
    if head.header_bytes > HEADER_BYTES_MAX:
        stream.wire.http_status = 431
    elif not head.is_post:
        stream.wire.http_status = 405
    elif not head.is_grpc:
        stream.wire.http_status = 415
    elif head.method == METHOD_NONE:
        stream.refusal = STATUS_METHOD_UNKNOWN
    if event.end:
        stream_complete(server, stream)


cdef void stream_answer_early(Server* server, Stream* stream) noexcept nogil:
    """Says what is wrong with a request, complete or not."""
    list_remove(&server.receiving, stream)
    if stream.wire.http_status == 200:
        stream_refuse(server, stream, stream.refusal, stream.refusal_a, stream.refusal_b)
        return
    server.counters.http_refused += 1
    if stream.wire.http_status == 431:
        stream_keep_code(server, stream, 8, b"the header block has more than 8192 bytes", 41)
    else:
        stream_give_up_large(server, stream)
    stream_submit(server, stream)


cdef void stream_complete(Server* server, Stream* stream) noexcept nogil:
    """The peer has sent everything."""
    cdef Http2* http2
    if stream.state != STREAM_RECEIVING:
        return
    http2 = &stream.connection.http2
    http2.control_tokens += CONTROL_FRAMES_PER_CALL
    if http2.control_tokens > CONTROL_FRAMES_BURST_MAX:
        http2.control_tokens = CONTROL_FRAMES_BURST_MAX
    if stream.wire.http_status == 200 and stream.refusal == 0 and (
            stream.received < GRPC_PREFIX_BYTES or stream.received != stream.message_size + GRPC_PREFIX_BYTES):
        stream.refusal = STATUS_FRAMING_INVALID
        stream.refusal_a = stream.received
    if stream.wire.http_status != 200 or stream.refusal != 0:
        stream_answer_early(server, stream)
        return
    list_remove(&server.receiving, stream)
    if stream.method == METHOD_HEALTH_CHECK:
        stream_health(server, stream)
        return
    if stream.batch != NULL:
        stream.state = STREAM_READY
        batch_append(server, stream.batch)
    else:
        ready_append(server, stream)


cdef void stream_prefix(Server* server, Stream* stream) noexcept nogil:
    """The five bytes before the message are there."""
    cdef const uint8_t* own = stream.own
    cdef uint32_t bytes_max = request_bytes_max(stream.method)
    stream.message_size = <uint32_t>own[1] << 24 | <uint32_t>own[2] << 16 | <uint32_t>own[3] << 8 | own[4]
    if stream.refusal != 0 or stream.wire.http_status != 200:
        return
    if own[0] == 1:
        stream.refusal = STATUS_MESSAGE_COMPRESSED
    elif own[0] != 0:
        stream.refusal = STATUS_FRAMING_INVALID
        stream.refusal_a = stream.received
    elif stream.message_size > bytes_max:
        stream.refusal = STATUS_MESSAGE_TOO_LARGE
        stream.refusal_a = stream.message_size
        stream.refusal_b = bytes_max
        stream_answer_early(server, stream)
    elif is_batch(stream.method):
        if not stream_take_batch(server, stream):
            stream.refusal = STATUS_TOO_MANY_CALLS
            stream_answer_early(server, stream)
    elif stream.message_size + GRPC_PREFIX_BYTES > STREAM_BYTES and not stream_take_large(server, stream, LARGE_BUFFERS_MAX / 8):
        stream.refusal = STATUS_TOO_MANY_CALLS
        stream_answer_early(server, stream)


cdef void stream_body(Server* server, Stream* stream, const uint8_t* data, uint32_t size) noexcept nogil:
    """The next bytes of a request."""
    cdef uint32_t take
    cdef uint32_t wanted = request_bytes_max(stream.method) + GRPC_PREFIX_BYTES
    if stream.state != STREAM_RECEIVING:
        return
    if stream.received < GRPC_PREFIX_BYTES:
        take = GRPC_PREFIX_BYTES - stream.received
        if take > size:
            take = size
        memcpy(stream.own + stream.received, data, take)
        stream.received += take
        data += take
        size -= take
        if stream.received < GRPC_PREFIX_BYTES:
            return
        stream_prefix(server, stream)
        if stream.state != STREAM_RECEIVING:
            return
    if size == 0:
        return
    if stream.refusal == 0 and stream.wire.http_status == 200:
        if size <= stream.message_size + GRPC_PREFIX_BYTES - stream.received:
            memcpy(stream_request(stream) + stream.received, data, size)
            stream.received += size
            return
        stream.refusal = STATUS_FRAMING_INVALID     # a second message, or bytes behind the first
        stream.refusal_a = <int64_t>stream.received + <int64_t>size
    # Refused already: what still comes is thrown away, as long as it could have been a request.
    if size > wanted - stream.received if stream.received <= wanted else True:
        stream_answer_early(server, stream)
        return
    stream.received += size
    if stream.refusal == STATUS_FRAMING_INVALID:
        stream.refusal_a = stream.received


# --- connections --------------------------------------------------------------------------------------------------------

cdef inline ssize_t connection_receive(Connection* connection, uint8_t* data, size_t size) noexcept nogil:
    """Reads bytes off the wire; TLS decrypts here. As recv(2)."""
    return c_recv(connection.fd, data, size, 0)


cdef inline ssize_t connection_send(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Puts bytes on the wire; TLS encrypts here. As send(2)."""
    return c_send(connection.fd, data, size, MSG_NOSIGNAL)


cdef void connection_watch(Connection* connection, uint32_t events) noexcept nogil:
    cdef epoll_event event
    if connection.events == events:
        return
    connection.events = events
    event.events = events
    event.data.u64 = EVENT_CONNECTION + connection.index
    if epoll_ctl(connection.server.epoll, EPOLL_CTL_MOD, connection.fd, &event) != 0:
        connection_doom(connection)


cdef void connection_open(Server* server, int fd) noexcept nogil:
    """Takes an accepted socket into service; closes it where that is not possible."""
    cdef Connection* connection
    cdef epoll_event event
    cdef uint32_t index
    if server.connection_count >= server.connections_max:
        server.counters.connections_refused += 1
        close(fd)
        return
    if server.free_connections != NULL:
        connection = server.free_connections
        server.free_connections = connection.next_free
    else:
        connection = &server.connections[server.connections_used]
        server.connections_used += 1
    index = <uint32_t>(connection - server.connections)
    memset(connection, 0, sizeof(Connection))
    connection.server = server
    connection.index = index
    connection.fd = fd
    connection.used = 1
    connection.carry = server.carry + <size_t>index * CARRY_BYTES
    connection.opened_us = server.now_us
    connection.last_call_us = server.now_us
    connection.events = EPOLLIN
    server.connection_count += 1
    server.counters.connections_total += 1
    transport_socket_options(fd)
    event.events = EPOLLIN
    event.data.u64 = EVENT_CONNECTION + index
    if (not http2_begin(&connection.http2, &server.counters.http2, server.out + <size_t>index * HTTP2_QUEUE_BYTES)
            or epoll_ctl(server.epoll, EPOLL_CTL_ADD, fd, &event) != 0):
        connection_doom(connection)
        return
    connection_mark(connection)


cdef void connection_close(Server* server, Connection* connection) noexcept nogil:
    """Frees everything; calls that were not decided never will be."""
    while connection.streams != NULL:
        stream_closed(server, connection.streams, False)
    http2_close(&connection.http2)
    connection.used = 0
    close(connection.fd)    # epoll forgets it with its last descriptor
    if connection.paused:
        server.paused_count -= 1
    connection.next_free = server.free_connections
    server.free_connections = connection
    server.connection_count -= 1


cdef void connection_leave(Connection* connection) noexcept nogil:
    """The final GOAWAY: names the last call that is served. The connection ends when the open ones are answered."""
    connection.leaving = 2
    http2_leave(&connection.http2)
    connection_mark(connection)


cdef void connection_notice(Server* server, Connection* connection) noexcept nogil:
    """Begins to drain a connection (RFC 9113 6.8): a GOAWAY that still allows calls under way, and a PING that tells when it was seen."""
    connection.leaving = 1
    connection.closing_us = server.now_us
    if not connection.http2.greeted:    # nobody speaks there who could answer the PING, and nothing was asked
        connection_doom(connection)
        return
    http2_notice(&connection.http2)
    connection_mark(connection)


cdef void connection_failed(Server* server, Connection* connection) noexcept nogil:
    """After a connection error: counts it, and gives up what is open."""
    if not connection.over:
        connection.over = 1
        if connection.http2.error == HTTP2_ENHANCE_YOUR_CALM:
            server.counters.connections_abused += 1
        else:
            server.counters.connections_broken += 1
    while connection.streams != NULL:
        stream_closed(server, connection.streams, False)
    if connection.http2.lost:
        connection_doom(connection)


cdef size_t connection_take(Server* server, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Reads frames and acts on them; returns the bytes used."""
    cdef Http2* http2 = &connection.http2
    cdef Http2Event event
    cdef size_t used = 0
    while used < size:
        used += http2_read(http2, data + used, size - used, &event)
        if event.what == HTTP2_BODY:
            if event.size > 0:
                stream_body(server, <Stream*>event.stream, event.data, event.size)
            if event.end:
                stream_complete(server, <Stream*>event.stream)
        elif event.what == HTTP2_REQUEST:
            connection_request(server, connection, &event)
        elif event.what == HTTP2_GONE:
            stream_closed(server, <Stream*>event.stream, event.code == HTTP2_NO_ERROR)
        elif event.what == HTTP2_PONG:
            if connection.leaving == 1:
                connection_leave(connection)
        else:
            break
    return used


cdef void connection_read(Server* server, Connection* connection) noexcept nogil:
    cdef uint8_t* data = server.input + CARRY_BYTES
    cdef size_t size, used
    cdef ssize_t received = connection_receive(connection, data, INPUT_BYTES)
    if received <= 0:
        if received == 0 or (errno != EAGAIN and errno != EINTR):
            connection_doom(connection)
        return
    server.counters.bytes_received += <uint64_t>received
    if connection.lingering or connection.over:
        return
    server.now_us = monotonic_us()
    size = <size_t>received
    if connection.carry_size > 0:
        data -= connection.carry_size
        size += connection.carry_size
        memcpy(data, connection.carry, connection.carry_size)
    used = connection_take(server, connection, data, size)
    connection_mark(connection)
    if connection.http2.failed:
        connection_failed(server, connection)
        return
    connection.carry_size = <uint32_t>(size - used)
    if used < size:
        memcpy(connection.carry, data + used, size - used)


cdef bint connection_push(Server* server, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Sends; what the socket does not take is kept and waited for. False: it is kept, or the connection is lost."""
    cdef Http2* http2 = &connection.http2
    cdef ssize_t sent = connection_send(connection, data, size)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            connection_doom(connection)
            return False
        sent = 0
    server.counters.bytes_sent += <uint64_t>sent
    if data == http2.out + http2.out_offset:
        http2.out_offset += <uint32_t>sent
        http2.out_size -= <uint32_t>sent
    elif <size_t>sent < size:       # gathered in server.output, `out` is empty
        http2.out_offset = 0
        http2.out_size = <uint32_t>(size - <size_t>sent)
        memcpy(http2.out, data + sent, size - <size_t>sent)
    if <size_t>sent < size:
        if connection.blocked_us == 0:
            connection.blocked_us = server.now_us
        connection_watch(connection, connection.events | EPOLLOUT)
        return False
    if connection.blocked_us != 0:
        connection.blocked_us = 0
        connection_watch(connection, connection.events & ~<uint32_t>EPOLLOUT)
    return True


cdef void connection_flush(Server* server, Connection* connection) noexcept nogil:
    """Writes what there is to say: everything in one send, as long as it fits."""
    cdef Http2* http2 = &connection.http2
    cdef Http2Stream* done
    cdef size_t size = 0
    if connection.lingering:
        return
    server.now_us = monotonic_us()
    if http2.failed:
        connection_failed(server, connection)
        if connection.doomed:
            return
    if connection.blocked_us != 0 or http2.out_size > HTTP2_OUT_BYTES_MIN:
        if http2.out_size > 0 and not connection_push(server, connection, http2.out + http2.out_offset, http2.out_size):
            return
    else:
        size = http2.out_size
        memcpy(server.output, http2.out + http2.out_offset, size)
    http2.out_size = 0
    http2.out_offset = 0
    if not http2.failed:
        while True:
            size += http2_write(http2, server.output + size, OUTPUT_BYTES - size, &done)
            if done == NULL:
                break
            stream_closed(server, <Stream*>done, True)
    if size > 0 and not connection_push(server, connection, server.output, size):
        return
    if http2.queue.first != NULL:
        connection_mark(connection)     # there is more: next turn, after the others
    elif http2.failed or (connection.stream_count == 0 and (connection.leaving == 2 or http2.peer_leaving)):
        # All is said. Closing now could throw away what the peer has not read yet, so shut our side and wait for theirs.
        connection.lingering = 1
        connection.closing_us = server.now_us
        c_shutdown(connection.fd, SHUT_WR)


# --- the turn -----------------------------------------------------------------------------------------------------------

cdef void server_accept(Server* server, int listener) noexcept nogil:
    cdef int fd
    cdef int i
    for i in range(ACCEPTS_PER_TURN_MAX):
        fd = c_accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            connection_open(server, fd)
        elif errno == EMFILE or errno == ENFILE:
            # Out of descriptors: without this the peer would hang and epoll would report the listener for ever.
            server.counters.connections_refused += 1
            close(server.spare_fd)
            fd = c_accept4(listener, NULL, NULL, SOCK_CLOEXEC)
            if fd >= 0:
                close(fd)
            server.spare_fd = posix_open(b"/dev/null", O_RDONLY | O_CLOEXEC)
            return
        elif errno != EINTR and errno != ECONNABORTED:
            return


cdef inline bint server_must_pause(Server* server) noexcept nogil:
    """Whether calls wait (for room in the engine, or as late ones behind the tills) and one more read of a socket could use up the streams."""
    return server.ready.count + server.late.count > 0 and server.streams_max - server.stream_count < STREAMS_PER_CONNECTION_MAX


cdef void server_resume(Server* server) noexcept nogil:
    cdef uint32_t i
    for i in range(server.connections_used):
        if server.connections[i].used and server.connections[i].paused and not server.connections[i].doomed:
            server.connections[i].paused = 0
            server.paused_count -= 1
            connection_watch(&server.connections[i], server.connections[i].events | EPOLLIN)


cdef void server_event(Server* server, epoll_event* event) noexcept nogil:
    cdef uint64_t what = event.data.u64
    cdef Connection* connection
    if what == EVENT_ENGINE:
        return      # engine_begin_turn reads it
    if what < EVENT_CONNECTION:
        if what - EVENT_LISTENER < server.listener_count:
            server_accept(server, server.listeners[what - EVENT_LISTENER])
        return
    connection = &server.connections[what - EVENT_CONNECTION]
    if not connection.used or connection.doomed:
        return
    if event.events & EPOLLOUT:
        connection_mark(connection)
    if event.events & EPOLLIN:
        if not server_must_pause(server):
            connection_read(server, connection)
        elif not connection.paused:
            connection.paused = 1
            server.paused_count += 1
            connection_watch(connection, connection.events & ~<uint32_t>EPOLLIN)
    elif event.events & (EPOLLERR | EPOLLHUP):
        connection_doom(connection)


cdef uint32_t server_read_calls(Server* server, Stream* stream) noexcept nogil:
    """Decodes the next few calls of a queue, so that their memory reads start together; returns how many. They stay where they are."""
    cdef uint32_t count = 0
    while stream != NULL and count < CALLS_AHEAD:
        call_read(server.caller, count, stream.method,
                  (stream.large if stream.large != NULL else stream.own) + GRPC_PREFIX_BYTES, stream.message_size)
        count += 1
        stream = stream.next
    call_prepare(server.caller, server.engine, count)
    return count


cdef inline void stream_hold(Server* server, Stream* stream, uint64_t wait_sequence) noexcept nogil:
    """Lets an answer leave, now or when the disk has what it tells."""
    if wait_sequence <= engine_durable(server.engine):
        stream_submit(server, stream)
        return
    stream.state = STREAM_HELD
    server.held[server.held_count].wait_sequence = wait_sequence
    server.held[server.held_count].stream = stream
    server.held_count += 1


cdef void stream_decided(Server* server, Stream* stream, const Answer* answer) noexcept nogil:
    """The answer leaves now or when it is durable."""
    stream_keep(server, stream, answer)
    stream_hold(server, stream, answer.wait_sequence)


cdef inline void call_take(Server* server, Stream* stream) noexcept nogil:
    """Out of the queue in which it waits."""
    if stream.state == STREAM_LATE:
        list_remove(&server.late, stream)
    else:
        ready_remove(server, stream.connection, stream)


cdef bint server_run_call(Server* server, Stream* stream, uint32_t place) noexcept nogil:
    """Runs the first of its queue, which was read into `place`; False: the engine has no room."""
    cdef Answer* answer = &server.answer
    if stream.deadline_us != 0:
        server.now_us = monotonic_us()
        if server.now_us >= stream.deadline_us:
            call_take(server, stream)
            stream_refuse(server, stream, STATUS_DEADLINE_PASSED, 0, 0)
            return True
    if not engine_room(server.engine):
        return False
    call_take(server, stream)
    answer.wait_sequence = 0
    if call_run(server.caller, server.engine, place, answer):
        stream_decided(server, stream, answer)
    else:
        stream.state = STREAM_PARKED
        server.parked_count += 1
        call_park(server.caller, server.engine, place, <uint64_t>(stream - server.streams))
    return True


cdef void server_run_ready(Server* server) noexcept nogil:
    """Runs the calls that wait, the connections in turn, until the engine has no room or it is the sockets' turn again. Those that are late
    make way for the others: they go into a queue of their own."""
    cdef uint32_t done = 0, place, count
    cdef int64_t late_before_us = server.time_us - <int64_t>LATE_AFTER_S * 1_000_000
    cdef Stream* stream
    while done < CALLS_PER_TURN_MAX and server.ready.first != NULL and engine_room(server.engine):
        count = server_read_calls(server, server.ready.first)
        for place in range(count):
            stream = server.ready.first
            if call_business_us(server.caller, place) < late_before_us:
                ready_remove(server, stream.connection, stream)
                stream.state = STREAM_LATE
                list_append(&server.late, stream)
                server.counters.late_calls += 1
                continue
            server.tills_until_us = server.now_us + TILLS_US
            if not server_run_call(server, stream, place):
                return
        done += count


cdef inline uint32_t aside_begin(Server* server, Aside* aside, uint32_t beside) noexcept nogil:
    """How many commands may run now for which nobody waits: while tills call `beside` at once, and then none for a while; 0: none now."""
    if server.now_us >= server.tills_until_us:
        aside.begun_us = server.now_us
        return CALLS_PER_TURN_MAX
    aside.begun_us = monotonic_us()
    return beside if aside.begun_us >= aside.from_us else 0


cdef inline void aside_end(Aside* aside, uint32_t share) noexcept nogil:
    """They have run. share: the part of the time that they get beside tills, one in so many."""
    aside.from_us = aside.begun_us + share * (monotonic_us() - aside.begun_us)


cdef void server_run_late(Server* server) noexcept nogil:
    """Goes on with the late calls: a store was offline and sends what it did yesterday. First those that had to wait for the runs of old
    ids. No customer waits for any, so while tills call they take a part of the time and leave the rest, as batches do. When the streams
    run short they do not hold back: the calls that come would have no place."""
    cdef uint32_t count
    if server.late.first == NULL and not server_told_waits(server):
        return
    count = aside_begin(server, &server.late_aside, LATE_CALLS_BESIDE)
    if server.stream_count > server.streams_max / 2:
        count = CALLS_PER_TURN_MAX
    if count > 0:
        server_step_late(server, count - server_run_told(server, count))
        aside_end(&server.late_aside, LATE_SHARE)


cdef void server_step_late(Server* server, uint32_t count_max) noexcept nogil:
    cdef uint32_t done = 0, place, count
    while done < count_max and server.late.first != NULL and engine_room(server.engine):
        count = server_read_calls(server, server.late.first)
        for place in range(count):
            if not server_run_call(server, server.late.first, place):
                return
        done += count


cdef void server_release(Server* server) noexcept nogil:
    """Submits the held answers that became durable; the others keep their order."""
    cdef uint64_t durable = engine_durable(server.engine)
    cdef uint32_t i, kept = 0
    cdef Stream* stream
    if durable == server.released_sequence or server.held_count == 0:
        return
    server.released_sequence = durable
    for i in range(server.held_count):
        if server.held[i].wait_sequence > durable:
            server.held[kept] = server.held[i]
            kept += 1
            continue
        stream = server.held[i].stream
        if stream.connection != NULL:
            stream_submit(server, stream)
        else:
            stream_free(server, stream)
    server.held_count = kept


cdef bint control_put(Server* server, ControlAnswer* waiting) noexcept nogil:
    """Hands an answer to the control port and counts it; False: the outbox is full."""
    cdef uint8_t* data = waiting.large if waiting.large != NULL else waiting.own
    if waiting.batch != NULL:
        data = waiting.batch.answer + GRPC_PREFIX_BYTES
    cdef bint well = waiting.grpc_code == 0
    if not engine_outbox_put(server.engine, waiting.token, waiting.grpc_code, data if well else NULL, waiting.size if well else 0,
                             NULL if well else data, 0 if well else waiting.size, waiting.message, waiting.message_size):
        return False
    count_latency(server, PORT_CONTROL, waiting.method, server.now_us - waiting.taken_us)
    if waiting.large != NULL:
        server.free_large[server.free_large_count] = waiting.large
        server.free_large_count += 1
    if waiting.batch != NULL:
        batch_free(server, waiting.batch)
    waiting.next = server.free_control
    server.free_control = waiting
    return True


cdef inline bint control_expired(Server* server, int64_t deadline_us) noexcept nogil:
    server.now_us = monotonic_us()
    return deadline_us != 0 and server.now_us >= deadline_us


cdef void control_queue(Server* server, ControlAnswer* waiting) noexcept nogil:
    """Behind the answers that wait for the disk or the outbox."""
    waiting.next = NULL
    if server.control_last != NULL:
        server.control_last.next = waiting
    else:
        server.control_first = waiting
    server.control_last = waiting
    server.control_count += 1


cdef void control_decided(Server* server, ControlAnswer* waiting, const Answer* answer) noexcept nogil:
    """Keeps the answer, at the end of the queue. There is a large buffer, if it needs one."""
    server.counters.calls[PORT_CONTROL][waiting.method][answer.status if answer.status < STATUS_COUNT else 0] += 1
    waiting.wait_sequence = answer.wait_sequence
    waiting.status = answer.status
    waiting.grpc_code = <uint8_t>(answer.grpc_code if 0 <= answer.grpc_code < GRPC_CODE_COUNT else 2)
    waiting.size = answer.size if answer.size <= ANSWER_BYTES_MAX else 0
    waiting.message_size = answer.message_size if answer.message_size <= MESSAGE_BYTES_MAX else 0
    if waiting.size > STREAM_BYTES and waiting.large == NULL:
        server.free_large_count -= 1
        waiting.large = server.free_large[server.free_large_count]
    memcpy(waiting.large if waiting.large != NULL else waiting.own, answer.data, waiting.size)
    if waiting.message_size > 0:
        memcpy(waiting.message, answer.message, waiting.message_size)
    control_queue(server, waiting)


cdef void control_park(Server* server, ControlAnswer* waiting, const InboxCall* taken) noexcept nogil:
    """Keeps the request until the runs have told what they know of it."""
    waiting.size = taken.size
    if taken.size > STREAM_BYTES:
        server.free_large_count -= 1
        waiting.large = server.free_large[server.free_large_count]
    memcpy(waiting.large if waiting.large != NULL else waiting.own, taken.data, taken.size)
    server.parked_count += 1
    call_park(server.caller, server.engine, 0, CONTROL_TOKENS + <uint64_t>(waiting - server.control))


cdef bint control_begin_batch(Server* server, ControlAnswer* waiting, const InboxCall* taken) noexcept nogil:
    """Copies a batch from the inbox and lets it wait for its turns; False: no buffers are left."""
    cdef OpenBatch* batch = batch_take(server)
    if batch == NULL:
        return False
    batch.control = waiting
    batch.deadline_us = taken.deadline_us
    batch.batch.size = taken.size
    memcpy(batch.request + GRPC_PREFIX_BYTES, taken.data, taken.size)
    waiting.taken_us = server.now_us
    waiting.batch = batch
    server.control_batches += 1
    batch_append(server, batch)
    return True


cdef void control_gone(Server* server, uint64_t token) noexcept nogil:
    """Nobody waits for this call any more. If it is a batch that has not all run, it ends here: what ran stays, nothing is answered."""
    cdef OpenBatch* batch
    cdef ControlAnswer* waiting
    cdef uint32_t i
    for i in range(BATCHES_MAX):
        batch = &server.open_batches[i]
        waiting = batch.control
        if waiting != NULL and waiting.batch == batch and waiting.token == token and (batch.waiting or batch.batch.asked > 0):
            server.counters.calls_cancelled += 1
            batch_free(server, batch)
            server.control_batches -= 1
            waiting.batch = NULL
            waiting.next = server.free_control
            server.free_control = waiting
            return


cdef uint32_t server_run_inbox(Server* server) noexcept nogil:
    """Runs the calls of the control port, as many as of the sockets; returns how many."""
    cdef InboxCall taken
    cdef ControlAnswer* waiting
    cdef Answer* answer = &server.answer
    cdef uint32_t count = 0
    while (count < CALLS_PER_TURN_MAX and server.free_control != NULL and server.free_large_count > 0 and engine_room(server.engine)
            and engine_inbox_take(server.engine, &taken)):
        count += 1
        if taken.method == INBOX_GONE:
            control_gone(server, taken.token)
            continue
        answer.wait_sequence = 0
        waiting = server.free_control
        server.free_control = waiting.next
        waiting.token = taken.token
        waiting.deadline_us = taken.deadline_us
        waiting.method = taken.method
        waiting.large = NULL
        waiting.batch = NULL
        if taken.method == METHOD_NONE or taken.method == METHOD_HEALTH_CHECK or taken.method >= METHOD_COUNT:
            waiting.method = METHOD_NONE
            call_refuse(server.caller, STATUS_METHOD_UNKNOWN, 0, 0, answer)
        elif control_expired(server, taken.deadline_us):
            call_refuse(server.caller, STATUS_DEADLINE_PASSED, 0, 0, answer)
        elif taken.size > request_bytes_max(taken.method):
            call_refuse(server.caller, STATUS_MESSAGE_TOO_LARGE, taken.size, request_bytes_max(taken.method), answer)
        elif is_batch(taken.method):
            if control_begin_batch(server, waiting, &taken):
                continue
            call_refuse(server.caller, STATUS_TOO_MANY_CALLS, 0, 0, answer)
        elif not call(server.caller, server.engine, taken.method, taken.data, taken.size, NULL, answer):
            waiting.taken_us = server.now_us
            control_park(server, waiting, &taken)
            continue
        waiting.taken_us = server.now_us
        control_decided(server, waiting, answer)
    return count


cdef void stream_told(Server* server, uint64_t place, const Facts* facts) noexcept nogil:
    """Runs a parked call again, now that the runs were asked. It may be parked once more, if memory has dropped ids meanwhile."""
    cdef Stream* stream = &server.streams[place]
    cdef Answer* answer = &server.answer
    if stream.connection == NULL:
        server.parked_count -= 1
        stream_free(server, stream)
        return
    server.now_us = monotonic_us()
    if stream.deadline_us != 0 and server.now_us >= stream.deadline_us:
        server.parked_count -= 1
        stream_refuse(server, stream, STATUS_DEADLINE_PASSED, 0, 0)
        return
    answer.wait_sequence = 0
    if call(server.caller, server.engine, stream.method, (stream.large if stream.large != NULL else stream.own) + GRPC_PREFIX_BYTES,
            stream.message_size, facts, answer):
        server.parked_count -= 1
        stream_decided(server, stream, answer)
    else:
        call_park(server.caller, server.engine, 0, place)


cdef void control_told(Server* server, uint64_t place, const Facts* facts) noexcept nogil:
    """As stream_told, for a call of the control port."""
    cdef ControlAnswer* waiting = &server.control[place]
    cdef Answer* answer = &server.answer
    answer.wait_sequence = 0
    if control_expired(server, waiting.deadline_us):
        call_refuse(server.caller, STATUS_DEADLINE_PASSED, 0, 0, answer)
    elif not call(server.caller, server.engine, waiting.method, waiting.large if waiting.large != NULL else waiting.own, waiting.size,
                  facts, answer):
        call_park(server.caller, server.engine, 0, CONTROL_TOKENS + place)
        return
    server.parked_count -= 1
    control_decided(server, waiting, answer)


cdef void batch_refuse(Server* server, OpenBatch* batch) noexcept nogil:
    """Ends a batch with the refusal in server.answer; its buffers are given back."""
    cdef ControlAnswer* waiting = batch.control
    cdef Stream* stream = batch.stream
    server.answer.wait_sequence = 0
    if stream != NULL:
        stream_keep(server, stream, &server.answer)
        stream_submit(server, stream)
        return
    waiting.batch = NULL
    batch_free(server, batch)
    server.control_batches -= 1
    control_decided(server, waiting, &server.answer)


cdef void batch_finish(Server* server, OpenBatch* batch) noexcept nogil:
    """All of it has run: its answer waits for the disk."""
    cdef ControlAnswer* waiting = batch.control
    cdef Stream* stream = batch.stream
    cdef uint64_t wait_sequence = batch.batch.wait_sequence
    batch_remove(server, batch)
    if stream != NULL:
        server.counters.calls[PORT_CHECKOUT][stream.method][STATUS_OK] += 1
        stream_prefix_answer(stream, batch.answer, batch.batch.answer_size)
        stream_hold(server, stream, wait_sequence)
        return
    server.control_batches -= 1
    server.counters.calls[PORT_CONTROL][waiting.method][STATUS_OK] += 1
    waiting.wait_sequence = wait_sequence
    waiting.status = STATUS_OK
    waiting.grpc_code = 0
    waiting.size = batch.batch.answer_size
    waiting.message_size = 0
    control_queue(server, waiting)


cdef bint server_begin_batch(Server* server, OpenBatch* batch) noexcept nogil:
    """The first look at a batch; False: it is refused whole, and said so."""
    batch.begun = 1
    if batch.deadline_us != 0 and server.now_us >= batch.deadline_us:
        call_refuse(server.caller, STATUS_DEADLINE_PASSED, 0, 0, &server.answer)
        batch_refuse(server, batch)
        return False
    batch.batch.request = batch.request + GRPC_PREFIX_BYTES
    batch.batch.answer = batch.answer + GRPC_PREFIX_BYTES
    if batch.stream != NULL:
        batch.batch.size = batch.stream.message_size
        batch.batch.method = batch.stream.method
    else:
        batch.batch.method = batch.control.method
    batch.batch.token = BATCH_TOKENS + 64 * <uint64_t>(batch - server.open_batches)
    if not batch_begin(server.caller, &batch.batch, &server.answer):
        batch_refuse(server, batch)
        return False
    return True


cdef void server_run_batches(Server* server) noexcept nogil:
    """Goes on with the oldest open batch, and with the next when it ends, until the engine has no room or it is the sockets' turn
    again. (In turns, all batches would end at about the same time, and then nobody would have anything to do.) Customers wait at the
    tills and nobody waits for a batch: while tills call, batches take a part of the time and leave the rest, also if it is unused."""
    cdef uint32_t count
    if server.first_batch == NULL:
        return
    count = aside_begin(server, &server.batch_aside, BATCH_COMMANDS_BESIDE)
    if count > 0:
        server_step_batches(server, count)
        aside_end(&server.batch_aside, BATCH_SHARE)


cdef void server_step_batches(Server* server, uint32_t count) noexcept nogil:
    """Steps of open batches, about `count` commands."""
    cdef OpenBatch* batch
    cdef uint32_t done = 0, ran
    cdef bint late
    server.counters.batch_turns += 1
    while done < count and server.first_batch != NULL:
        batch = server.first_batch
        if batch.deadline_us != 0:
            server.now_us = monotonic_us()
        if not batch.begun and not server_begin_batch(server, batch):
            done += 1
            continue
        late = batch.deadline_us != 0 and server.now_us >= batch.deadline_us
        ran = batch_step(server.caller, server.engine, &batch.batch, late, &server.answer)
        if server.answer.status != STATUS_OK:
            batch_refuse(server, batch)
            done += 1
            continue
        done += ran
        if batch.batch.asked > 0:
            batch_remove(server, batch)     # until the runs have told
            server.parked_count += batch.batch.asked
            continue
        if ran == 0:
            return
        if batch.batch.done == batch.batch.count:
            batch_finish(server, batch)


cdef void batch_told(Server* server, uint64_t place, const Facts* facts) noexcept nogil:
    """What the runs say to one command of a batch. With the last one that was asked the batch goes on."""
    cdef OpenBatch* batch = &server.open_batches[place / 64]
    server.parked_count -= 1
    batch_tell(&batch.batch, place % 64, facts)
    if batch.batch.asked > 0:
        return
    if batch.stream == NULL and batch.control == NULL:  # it was given up meanwhile
        batch.next = server.free_batches
        server.free_batches = batch
    else:
        batch_append(server, batch)


cdef inline bint server_told_waits(Server* server) noexcept nogil:
    return server.free_large_count > 0 and engine_told_waits(server.engine)


cdef uint32_t server_run_told(Server* server, uint32_t count_max) noexcept nogil:
    """Runs calls again that waited for the runs; returns how many."""
    cdef uint64_t token
    cdef Facts facts
    cdef uint32_t count = 0
    while count < count_max and server.free_large_count > 0 and engine_room(server.engine) and engine_told(server.engine, &token, &facts):
        count += 1
        if token >= BATCH_TOKENS:
            batch_told(server, token - BATCH_TOKENS, &facts)
        elif token >= CONTROL_TOKENS:
            control_told(server, token - CONTROL_TOKENS, &facts)
        else:
            stream_told(server, token, &facts)
    return count


cdef void server_release_control(Server* server) noexcept nogil:
    """Puts what became durable into the outbox; what is not, or finds no room, keeps its place."""
    cdef uint64_t durable = engine_durable(server.engine)
    cdef ControlAnswer* waiting = server.control_first
    cdef ControlAnswer* next
    cdef ControlAnswer* last = NULL
    cdef bint room = True
    while waiting != NULL and room:
        next = waiting.next
        if waiting.wait_sequence > durable:
            last = waiting
        elif control_put(server, waiting):
            server.control_count -= 1
            if last != NULL:
                last.next = next
            else:
                server.control_first = next
            if next == NULL:
                server.control_last = last
        else:
            room = False
        waiting = next


cdef bint server_alone(Server* server, uint32_t inbox_calls) noexcept nogil:
    """Whether nobody else is waiting, so that the flush is done right here and saves the hand-over (50 us).

    Two open calls, or one of the control port, are a crowd; a crowd is remembered for CROWD_US. A crowd that only forms during an
    inline flush is found by server_probe."""
    if (server.stream_count > 1 or inbox_calls > 0 or server.control_count > 0 or server.ready.count > 0
            or server.late.count > 0 or server.first_batch != NULL):
        server.crowd_until_us = server.now_us + CROWD_US
        server.spin_until_us = 0
        return False
    return server.now_us >= server.crowd_until_us


cdef void server_probe(Server* server) noexcept nogil:
    """After an inline flush, before its answers leave: whoever is readable now did not wait for them, so the flush kept him waiting."""
    cdef int i
    cdef int count = epoll_wait(server.epoll, server.events, EVENTS_MAX, 0)
    for i in range(count):
        if server.events[i].data.u64 >= EVENT_CONNECTION and server.events[i].events & EPOLLIN:
            server.crowd_until_us = monotonic_us() + CROWD_US
            return


cdef void server_write(Server* server) noexcept nogil:
    cdef Connection* connection = server.dirty
    cdef Connection* next
    server.dirty = NULL
    while connection != NULL:
        next = connection.next_dirty
        connection.dirty = 0
        if not connection.doomed:
            connection_flush(server, connection)
        connection = next


cdef void server_reap(Server* server) noexcept nogil:
    """Closes the doomed. None of them is on the dirty list of the next turn: the flush passes them by, and here they are taken off."""
    cdef Connection* connection
    cdef Connection** link = &server.dirty
    if server.doomed == NULL:
        return
    while link[0] != NULL:
        if link[0].doomed:
            link[0] = link[0].next_dirty
        else:
            link = &link[0].next_dirty
    while server.doomed != NULL:
        connection = server.doomed
        server.doomed = connection.next_doomed
        connection_close(server, connection)


cdef void server_expire(Server* server, Stream* stream) noexcept nogil:
    """Resets a stream whose peer is too slow."""
    server.counters.streams_timed_out += 1
    http2_reset(&stream.connection.http2, &stream.wire, HTTP2_CANCEL)
    connection_mark(stream.connection)
    stream_closed(server, stream, False)


cdef void connection_look(Server* server, Connection* connection, int64_t elapsed_us) noexcept nogil:
    cdef int64_t now = server.now_us
    cdef Http2* http2 = &connection.http2
    http2.reset_tokens += RESETS_PER_S_MAX * elapsed_us / 1_000_000
    if http2.reset_tokens > RESETS_BURST_MAX:
        http2.reset_tokens = RESETS_BURST_MAX
    http2.control_tokens += CONTROL_FRAMES_PER_S_MAX * elapsed_us / 1_000_000
    if http2.control_tokens > CONTROL_FRAMES_BURST_MAX:
        http2.control_tokens = CONTROL_FRAMES_BURST_MAX
    if connection.lingering:
        if now - connection.closing_us > LINGER_US:
            connection_doom(connection)
    elif connection.blocked_us != 0 and now - connection.blocked_us > server.slow_us:
        server.counters.connections_timed_out += 1
        connection_doom(connection)
    elif not http2.greeted:
        if now - connection.opened_us > server.slow_us:
            server.counters.connections_timed_out += 1
            connection_doom(connection)
    elif connection.leaving == 1 and now - connection.closing_us > server.notice_us:
        connection_leave(connection)
    elif connection.stream_count == 0 and now - connection.last_call_us > server.idle_us and not connection.over:
        server.counters.connections_timed_out += 1
        connection.over = 1
        http2_fail(http2, HTTP2_NO_ERROR)
        connection_mark(connection)


cdef void server_look(Server* server, int64_t elapsed_us) noexcept nogil:
    """About once a second: time-outs, and tokens for the meters of server/_http2."""
    cdef uint32_t i
    while server.receiving.first != NULL and server.now_us - server.receiving.first.headers_us > server.slow_us:
        server_expire(server, server.receiving.first)
    while server.answered.first != NULL and server.now_us - server.answered.first.answered_us > server.slow_us:
        server_expire(server, server.answered.first)
    for i in range(server.connections_used):
        if server.connections[i].used and not server.connections[i].doomed:
            connection_look(server, &server.connections[i], elapsed_us)


cdef void server_begin_stop(Server* server) noexcept nogil:
    """Takes no new connections and gives every peer notice; their open calls are finished."""
    cdef uint32_t i
    server.stop_us = server.now_us
    for i in range(server.listener_count):
        epoll_ctl(server.epoll, EPOLL_CTL_DEL, server.listeners[i], NULL)
        close(server.listeners[i])
    server.listener_count = 0
    for i in range(server.connections_used):
        if server.connections[i].used and not server.connections[i].doomed and not server.connections[i].lingering:
            connection_notice(server, &server.connections[i])


cdef bint server_finished(Server* server) noexcept nogil:
    """Whether the loop may end: everything is said and done, or the patience is over."""
    if server.stopping >= 2:
        return True
    if server.stopping == 0:
        return False
    if server.now_us - server.stop_us > server.drain_us:
        return True
    return (server.connection_count == 0 and server.stream_count == 0 and server.control_count == 0 and server.control_batches == 0
            and server.parked_count == 0 and engine_idle(server.engine))


cdef int server_timeout_ms(Server* server) noexcept nogil:
    """How long epoll may wait: not at all with work at hand, else until the ticks or the time-outs are due."""
    cdef int64_t now_us, sleep_us, held_us = 0
    cdef bint late
    if server.dirty != NULL or server.doomed != NULL:
        return 0
    late = server.late.first != NULL or server_told_waits(server)
    if (server.first_batch != NULL or late) and engine_room(server.engine):
        now_us = monotonic_us()
        if now_us < server.tills_until_us:
            held_us = server.tills_until_us
            if server.first_batch != NULL:
                held_us = min_i64(held_us, server.batch_aside.from_us)
            if late:
                held_us = min_i64(held_us, server.late_aside.from_us)
            held_us -= now_us
        if held_us <= 0:
            return 0
    if server.ready.first != NULL and engine_room(server.engine):
        return 0
    if server.spin_until_us != 0:
        if monotonic_us() < server.spin_until_us:
            return 0
        server.spin_until_us = 0
    sleep_us = engine_sleep_us(server.engine)
    if sleep_us <= 0:
        return 0
    if sleep_us > server.look_us:
        sleep_us = server.look_us
    if 0 < held_us < sleep_us:
        sleep_us = held_us
    return <int>((sleep_us + 999) / 1000)


cdef void server_turn(Server* server) noexcept nogil:
    cdef int i, count
    cdef bint alone
    cdef uint64_t durable
    cdef uint32_t inbox_calls
    count = epoll_wait(server.epoll, server.events, EVENTS_MAX, server_timeout_ms(server))
    if count < 0:
        if errno != EINTR:
            server.failed = errno
            return
        count = 0
    server.counters.turns += 1
    server.time_us = engine_begin_turn(server.engine)
    server.now_us = monotonic_us()
    server.stopping = engine_stopping(server.engine)
    if engine_durable(server.engine) != server.released_sequence and (server.held_count > 0 or server.control_count > 0):
        # A flush ended: the disk gets what was decided meanwhile, and its answers leave, before anything else is read.
        engine_end_turn(server.engine, False)
        server_release(server)
        server_release_control(server)
        server_write(server)
    for i in range(count):
        server_event(server, &server.events[i])
    if server.stopping != 0 and server.stop_us == 0:
        server_begin_stop(server)
    server_run_ready(server)
    server_run_late(server)
    inbox_calls = server_run_inbox(server)
    server_run_batches(server)
    server_release_control(server)
    alone = server_alone(server, inbox_calls)
    durable = engine_durable(server.engine)
    engine_end_turn(server.engine, alone)
    if alone and engine_durable(server.engine) != durable:
        server_probe(server)
        server.spin_until_us = monotonic_us() + ALONE_SPIN_US
    server_release(server)
    server_release_control(server)
    if server.now_us >= server.next_look_us:
        server_look(server, server.look_us + server.now_us - server.next_look_us)
        server.next_look_us = server.now_us + server.look_us
    server_write(server)
    server_reap(server)
    if server.paused_count > 0 and not server_must_pause(server):
        server_resume(server)


cdef void server_loop(Server* server) noexcept nogil:
    server.now_us = monotonic_us()
    server.next_look_us = server.now_us + server.look_us
    while server.failed == 0 and not server_finished(server):
        server_turn(server)


# --- start and stop -----------------------------------------------------------------------------------------------------

cdef void server_close(Server* server) noexcept:
    """Closes every socket and frees all memory."""
    cdef uint32_t i
    for i in range(server.connections_used):
        if server.connections[i].used:
            connection_close(server, &server.connections[i])
    for i in range(server.listener_count):
        close(server.listeners[i])
    if server.epoll >= 0:
        close(server.epoll)
    if server.spare_fd >= 0:
        close(server.spare_fd)
    _unmap(server.connections, CONNECTIONS_MAX * sizeof(Connection))
    _unmap(server.streams, STREAMS_MAX * sizeof(Stream))
    _unmap(server.large, <size_t>LARGE_BUFFERS_MAX * LARGE_BYTES)
    _unmap(server.batch_bytes, <size_t>BATCHES_MAX * (BATCH_IN_BYTES + BATCH_OUT_BYTES))
    _unmap(server.carry, <size_t>CONNECTIONS_MAX * CARRY_BYTES)
    _unmap(server.out, <size_t>CONNECTIONS_MAX * HTTP2_QUEUE_BYTES)
    _unmap(server.held, STREAMS_MAX * sizeof(Held))
    _unmap(server.control, INBOX_CALLS_MAX * sizeof(ControlAnswer))
    free(server.free_large)
    free(server.caller)
    free(server)


cdef void _unmap(void* memory, size_t size) noexcept:
    if memory != NULL:
        munmap(memory, size)


cdef int server_reserve(Server* server) except -1:
    """All memory of the server. Errors: MemoryError (what was reserved goes with server_close)."""
    cdef uint32_t i
    server.connections = <Connection*>transport_reserve(CONNECTIONS_MAX * sizeof(Connection))
    server.streams = <Stream*>transport_reserve(STREAMS_MAX * sizeof(Stream))
    server.large = <uint8_t*>transport_reserve(<size_t>LARGE_BUFFERS_MAX * LARGE_BYTES)
    server.batch_bytes = <uint8_t*>transport_reserve(<size_t>BATCHES_MAX * (BATCH_IN_BYTES + BATCH_OUT_BYTES))
    server.carry = <uint8_t*>transport_reserve(<size_t>CONNECTIONS_MAX * CARRY_BYTES)
    server.out = <uint8_t*>transport_reserve(<size_t>CONNECTIONS_MAX * HTTP2_QUEUE_BYTES)
    server.held = <Held*>transport_reserve(STREAMS_MAX * sizeof(Held))
    server.control = <ControlAnswer*>transport_reserve(INBOX_CALLS_MAX * sizeof(ControlAnswer))
    server.free_large = <uint8_t**>calloc(LARGE_BUFFERS_MAX, sizeof(uint8_t*))
    server.caller = <Caller*>calloc(1, sizeof(Caller))
    if (server.connections == NULL or server.streams == NULL or server.large == NULL or server.batch_bytes == NULL
            or server.carry == NULL or server.out == NULL or server.held == NULL or server.control == NULL or server.free_large == NULL
            or server.caller == NULL):
        raise MemoryError("the checkout port finds no memory for its buffers")
    for i in range(LARGE_BUFFERS_MAX):
        server.free_large[i] = server.large + <size_t>i * LARGE_BYTES
    server.free_large_count = LARGE_BUFFERS_MAX
    for i in range(BATCHES_MAX):
        server.open_batches[i].request = server.batch_bytes + <size_t>i * (BATCH_IN_BYTES + BATCH_OUT_BYTES)
        server.open_batches[i].answer = server.open_batches[i].request + BATCH_IN_BYTES
        server.open_batches[i].next = server.free_batches
        server.free_batches = &server.open_batches[i]
    for i in range(INBOX_CALLS_MAX):
        server.control[INBOX_CALLS_MAX - 1 - i].next = server.free_control
        server.free_control = &server.control[INBOX_CALLS_MAX - 1 - i]
    server.answer.data = server.answer_data
    return 0


def _listen(host: str, port: int) -> list:
    """Sockets that listen on every address of `host`, all on one port. Errors: OSError that names the address."""
    sockets = []
    try:
        addresses = dict.fromkeys((family, address) for family, _, _, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE) if family in (socket.AF_INET, socket.AF_INET6))
        both = len({family for family, _ in addresses}) > 1
        for family, address in list(addresses)[:LISTENERS_MAX]:
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, both)  # "::" alone takes IPv4 too
            listener.bind((address[0], port, *address[2:]))
            listener.listen(1024)
            port = listener.getsockname()[1]
    except OSError as error:
        for listener in sockets:
            listener.close()
        raise OSError(error.errno, f"cannot listen on {host or '*'}:{port}: {error.strerror}") from None
    return sockets


def _raise_descriptor_limit() -> None:
    """Lets the process have as many sockets as CONNECTIONS_MAX needs, where the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if allowed > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


cdef class CheckoutServer:
    """Serves the checkout calls on one address.

    Units: the time-outs are milliseconds; they and the maxima are set lower only by tests.
    Errors: OSError that names the address; ValueError; MemoryError.
    """

    cdef Server* server
    cdef EngineHandle handle
    cdef bint started
    cdef readonly int port

    def __cinit__(self):
        self.server = <Server*>calloc(1, sizeof(Server))
        if self.server == NULL:
            raise MemoryError("the checkout port finds no memory")
        self.server.epoll = -1
        self.server.spare_fd = -1

    def __init__(self, EngineHandle handle not None, host: str, port: int, *, idle_timeout_ms: int = IDLE_TIMEOUT_S * 1000,
                 slow_client_timeout_ms: int = SLOW_CLIENT_TIMEOUT_S * 1000, drain_grace_ms: int = DRAIN_GRACE_S * 1000,
                 notice_ms: int = NOTICE_MS, connections_max: int = CONNECTIONS_MAX, streams_max: int = STREAMS_MAX):
        cdef Server* server = self.server
        cdef epoll_event event
        if server.epoll >= 0:
            raise RuntimeError("this server was set up before")
        if not 1 <= connections_max <= CONNECTIONS_MAX:
            raise ValueError(f"connections_max must be 1..{CONNECTIONS_MAX}, was {connections_max}")
        if not 1 <= streams_max <= STREAMS_MAX:
            raise ValueError(f"streams_max must be 1..{STREAMS_MAX}, was {streams_max}")
        self.handle = handle
        server.engine = handle.engine
        server.connections_max = connections_max
        server.streams_max = streams_max
        server.idle_us = idle_timeout_ms * 1000
        server.slow_us = slow_client_timeout_ms * 1000
        server.drain_us = drain_grace_ms * 1000
        server.notice_us = notice_ms * 1000
        server.look_us = max(10_000, min(1_000_000, server.slow_us // 4, server.idle_us // 4))
        sockets = _listen(host, port)
        for listener in sockets:
            server.listeners[server.listener_count] = listener.detach()
            server.listener_count += 1
            if server.listener_count == 1:
                name = socket.socket(fileno=server.listeners[0])
                self.port = name.getsockname()[1]
                name.detach()
        server_reserve(server)
        _raise_descriptor_limit()
        server.epoll = epoll_create1(EPOLL_CLOEXEC)
        server.spare_fd = posix_open(b"/dev/null", O_RDONLY | O_CLOEXEC)
        if server.epoll < 0 or server.spare_fd < 0:
            raise OSError(errno, "cannot open an event queue for the checkout port")
        event.events = EPOLLIN
        event.data.u64 = EVENT_ENGINE
        if epoll_ctl(server.epoll, EPOLL_CTL_ADD, engine_event_fd(server.engine), &event) != 0:
            raise OSError(errno, "cannot watch the engine")
        for index in range(server.listener_count):
            event.data.u64 = EVENT_LISTENER + <uint64_t>index
            if epoll_ctl(server.epoll, EPOLL_CTL_ADD, server.listeners[index], &event) != 0:
                raise OSError(errno, "cannot watch the listening socket")

    def __dealloc__(self):
        if self.server != NULL:
            server_close(self.server)

    def run(self) -> None:
        """The body of the hot thread: returns when the engine was asked to stop. Never takes the GIL meanwhile."""
        cdef Server* server = self.server
        if server.epoll < 0 or self.started:
            raise RuntimeError("the checkout server runs once")
        self.started = True
        with nogil:
            thread_short_turns()
            server_loop(server)
            server_hang_up(server)
        if server.failed != 0:
            raise OSError(server.failed, "the event queue of the checkout port failed")

    def stats(self) -> dict:
        """A copy of all counters; see Stats in _transport.pyi."""
        cdef Server* server = self.server
        cdef Counters* counters = &server.counters
        cdef int port, method, status, bucket
        calls = {}
        latency = {}
        for port in range(PORT_COUNT):
            name = "checkout" if port == PORT_CHECKOUT else "control"
            for method in range(METHOD_COUNT):
                for status in range(STATUS_COUNT):
                    if counters.calls[port][method][status] != 0:
                        calls[name, method, status] = counters.calls[port][method][status]
                buckets = tuple([counters.latency[port][method][bucket] for bucket in range(BUCKETS)])
                if any(buckets):
                    latency[name, method] = (buckets, counters.latency_us[port][method])
        in_batches = {
            (method, status): server.caller.in_batches[method][status]
            for method in range(METHOD_COUNT) for status in range(STATUS_COUNT) if server.caller.in_batches[method][status] != 0
        }
        return {
            "calls": calls,
            "in_batches": in_batches,
            "latency": latency,
            "connections": server.connection_count,
            "streams": server.stream_count,
            "held": server.held_count,
            "parked": server.parked_count,
            "connections_total": counters.connections_total,
            "connections_refused": counters.connections_refused,
            "streams_refused": counters.streams_refused,
            "http_refused": counters.http_refused,
            "calls_cancelled": counters.calls_cancelled,
            "answers_dropped": counters.answers_dropped,
            "resets_received": counters.http2.resets_received,
            "resets_sent": counters.http2.resets_sent,
            "connections_abused": counters.connections_abused,
            "connections_broken": counters.connections_broken,
            "connections_timed_out": counters.connections_timed_out,
            "streams_timed_out": counters.streams_timed_out,
            "bytes_received": counters.bytes_received,
            "bytes_sent": counters.bytes_sent,
            "turns": counters.turns,
            "batch_turns": counters.batch_turns,
            "late_calls": counters.late_calls,
        }


cdef void server_hang_up(Server* server) noexcept nogil:
    """After the loop: closes every socket, so that peers know at once."""
    cdef uint32_t i
    for i in range(server.listener_count):
        close(server.listeners[i])
    server.listener_count = 0
    for i in range(server.connections_used):
        if server.connections[i].used:
            connection_close(server, &server.connections[i])


LATENCY_BOUNDS_US = tuple([TRANSPORT_BOUNDS_US[_index] for _index in range(BUCKETS - 1)])
