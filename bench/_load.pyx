"""The compiled load generator: makes, sends and times gRPC calls over many connections in one thread without the GIL.

Three ways to work: *mix* (closed loop, or open loop with Poisson arrivals timed from their schedule), *prepare* (open the members)
and *replay* (given requests, one in flight per lane, the lane's order kept). A call is *refused* when the service answered with a
definite business refusal (a state code with google.rpc.Status details), an *error* when anything else went wrong.
Not for HTTP/2 (bench/_http2_client.pxd), not for talking to people or reading percentiles (bench/load.py, bench/measure.py). Used by bench/load.py, the benches, bench/demo.py.
"""

import os
import socket
import time

import numpy as np

from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport log
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strlen
from posix.unistd cimport close
from bench._histogram cimport HISTOGRAM_BUCKETS, HISTOGRAM_EXACT, Histogram, histogram_add
from bench._hpack cimport CODE_NONE, Field, Fields, HPACK_BLOCK_BYTES_MAX, HPACK_CONSTANTS_MAX, HPACK_TABLE_BYTES, MESSAGE_KEPT_BYTES
from bench._http2_client cimport (
    ANSWER_KEPT_BYTES, HTTP2_ERROR_COUNT, HTTP2_ERROR_NAMES, Http2, READ_ANSWER, READ_BREACH, READ_RESET, ReadEnd, Stream,
    http2_allocate, http2_control, http2_free, http2_may_request, http2_open, http2_read, http2_release, http2_request, http2_send_rests,
    results_begin,
)
from bench._requests cimport (
    Alias, Article, CODE_BYTES, Hold, ID_BYTES, Made, Maker, PREFIX_BYTES, Preparation, REQUEST_ROOM, SentWrite, Tables, hold_remember,
    make_batch, make_preparation, make_request, put_digits, random_below, random_next, set_day, write_remember,
)
from ledger._layout cimport METHOD_BATCH_POST, METHOD_COUNT, METHOD_GET_BALANCE, METHOD_RESERVE
from server._frames cimport FRAME_HEAD_BYTES, frame_write_goaway

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    enum:
        MSG_NOSIGNAL
        AF_INET
        AF_INET6

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event)
    enum:
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <poll.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/prctl.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    static inline int64_t load_clock(clockid_t clock) {
        struct timespec t;
        clock_gettime(clock, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline int64_t load_now(void) { return load_clock(CLOCK_MONOTONIC); }
    static inline int64_t load_wall(void) { return load_clock(CLOCK_REALTIME); }

    /* Starts a connection without waiting for it: the socket, or -1. */
    static int load_connect(int family, const uint8_t *address, uint16_t port) {
        struct sockaddr_storage to;
        socklen_t size;
        int one = 1, fd;
        memset(&to, 0, sizeof to);
        if (family == AF_INET6) {
            struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&to;
            in6->sin6_family = AF_INET6;
            in6->sin6_port = htons(port);
            memcpy(&in6->sin6_addr, address, 16);
            size = sizeof *in6;
        } else {
            struct sockaddr_in *in = (struct sockaddr_in *)&to;
            in->sin_family = AF_INET;
            in->sin_port = htons(port);
            memcpy(&in->sin_addr, address, 4);
            size = sizeof *in;
        }
        fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, (struct sockaddr *)&to, size) < 0 && errno != EINPROGRESS) {
            close(fd);
            return -1;
        }
        return fd;
    }

    /* How a connection that load_connect started came out: 0 or an errno. */
    static int load_connect_error(int fd) {
        int error = 0;
        socklen_t size = sizeof error;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
    }

    /* Waits with nanosecond resolution: epoll_wait counts in milliseconds, and a kernel before 5.11 has no epoll_pwait2, but ppoll. */
    static int load_wait(int epoll_fd, struct epoll_event *events, int count, int64_t timeout_ns) {
        static int is_old;
        struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        struct pollfd one = {epoll_fd, POLLIN, 0};
    #ifdef SYS_epoll_pwait2
        if (timeout_ns > 0 && !is_old) {
            int got = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, count, &t, NULL, 0);
            if (got >= 0 || errno != ENOSYS) return got;
            is_old = 1;
        }
    #endif
        if (timeout_ns > 0 && ppoll(&one, 1, &t, NULL) <= 0) return 0;
        return epoll_wait(epoll_fd, events, count, 0);
    }

    /* The default timer slack of 50 us would be part of every open-loop latency. */
    static void load_sharp_timers(void) { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }
    """
    int64_t now_ns "load_now"() noexcept nogil
    int64_t wall_ns "load_wall"() noexcept nogil
    int connect_to "load_connect"(int family, const uint8_t* address, uint16_t port) noexcept nogil
    int connect_error "load_connect_error"(int fd) noexcept nogil
    int wait_for "load_wait"(int epoll_fd, epoll_event* events, int count, int64_t timeout_ns) noexcept nogil
    void sharp_timers "load_sharp_timers"() noexcept nogil

cdef enum:
    SECOND_NS = 1000000000
    RECEIVE_BYTES = 262144      # one read; a closed loop of 1024 answers of ~200 bytes fits
    EVENTS_PER_TURN = 256
    LOOK_NS = 10000000          # between looks at closed connections
    WALL_NS = 10000000          # between comparisons of the two clocks
    RETRY_NS = 100000000        # between attempts to connect: a restarting service is found within 0.1 s
    RETRIES_MAX = 1000          # of a whole replay, and a tenth of its calls: a service that only refuses must not be asked for ever
    GIVE_UP_NS = 30000000000    # a replay or preparation without any connection for so long ends
    QUEUE_CALLS = 4194304       # open loop: arrivals waiting for a stream; at 13k/s a stall of five minutes
    CODE_CANCELLED = 1
    CODE_UNAVAILABLE = 14
    CODE_LOST = 17              # behind the 17 gRPC codes: connection lost or stream reset before the answer
    CODE_UNANSWERED = 18        # still open when the run ended
    CODE_MALFORMED = 19         # OK without a whole message
    CODE_COUNT = 20

cdef enum ConnectionState:
    CONNECTION_CLOSED = 0
    CONNECTION_OPENING = 1
    CONNECTION_OPEN = 2
    CONNECTION_LEAVING = 3      # GOAWAY came: open calls end, new ones wait for the next connection

cdef enum Source:
    SOURCE_MIX = 0
    SOURCE_PREPARE = 1
    SOURCE_REPLAY = 2

cdef struct Slot:               # one call in flight, on the stream of the same index
    int64_t scheduled_ns        # when it should have been (open loop) or was (closed loop) sent
    uint32_t replay_index
    uint8_t* batch              # room for a batch; NULL: none are made
    Made made

cdef struct Connection:
    Http2 http2
    Load* load
    Slot* slots                 # in_flight of them
    int64_t retry_ns
    uint32_t in_flight
    uint32_t index
    int fd
    uint8_t state               # ConnectionState
    uint8_t writing             # EPOLLOUT is asked for
    uint8_t dirty               # is in Load.dirty: something was written and not yet sent

cdef struct Counts:             # one row per Method
    Histogram latency           # served calls: OK or refused by the ledger; errors have no latency worth knowing
    uint64_t codes[CODE_COUNT]  # every end that was not OK
    uint64_t refused            # of these, definite business refusals

cdef struct Load:
    # what to do
    int family
    uint16_t port
    uint8_t address[16]
    uint32_t connection_count
    uint32_t slots_per_connection
    uint8_t source              # Source
    double rate                 # calls/s; 0: closed loop
    int64_t spin_ns             # open loop: the last stretch before an arrival is not slept
    int64_t grace_ns            # how long answers are waited for after the end; later ones count as unanswered
    double weight_below[METHOD_COUNT]   # cumulated mix
    uint32_t batch              # commands in a call; 0: the calls are single
    uint64_t todo               # calls to make; 0: until the time is over
    int64_t ahead_ns            # what the requests say is so far ahead of this machine's clock
    int64_t times_from_s        # or it is of this stretch of time
    uint32_t times_span_s       # 0: it is not
    uint32_t prepare_first
    uint32_t prepare_count      # members
    uint64_t enrolling          # so many calls open accounts, the others give points
    Preparation preparation
    # replay
    uint8_t* replay_bytes
    const int64_t* replay_offset
    const uint32_t* replay_size
    const uint8_t* replay_method
    const uint32_t* replay_lane
    const uint32_t* replay_patch
    const int64_t* replay_next
    int64_t* lane_reservation
    uint32_t* ready             # heap of request indexes whose lane is free, earliest on top
    uint32_t ready_count
    # how it goes
    Connection* connections
    Maker* maker
    Fields fields
    int epoll_fd
    uint8_t* receive_buffer
    uint32_t* dirty             # connections with something to send
    uint32_t dirty_count
    const uint8_t* request      # the one that is being made
    uint32_t request_size
    int64_t now_ns
    int64_t wall_offset_ns      # wall clock less now_ns
    int64_t wall_ns             # when they are compared again
    int64_t look_ns             # when closed connections are looked at again
    int64_t start_ns
    int64_t measure_ns          # warm-up ends
    int64_t end_ns              # no new calls; 0: when all is done
    int64_t next_arrival_ns
    int64_t last_open_ns
    int64_t* queue              # scheduled times of arrivals without a stream
    uint64_t queue_head
    uint64_t queue_tail
    uint32_t cursor             # round robin over connections
    uint64_t in_flight
    uint64_t made
    uint64_t done
    uint64_t completed          # all answers ever, for the progress line
    uint64_t connects_failed
    uint64_t retried
    uint64_t entries            # of batches: commands that became entries
    uint64_t entries_refused    # and those that did not
    uint64_t unsent             # open loop: arrivals that never got a stream
    int64_t ended_ns
    int stop_asked
    uint8_t finished
    uint8_t gave_up
    uint8_t ending
    Counts counts[METHOD_COUNT]
    Histogram queueing          # open loop: from the schedule to the hand-over to HTTP/2
    uint8_t messages[CODE_COUNT][MESSAGE_KEPT_BYTES]    # the first grpc-message of each code
    uint16_t message_sizes[CODE_COUNT]
    uint8_t message_methods[CODE_COUNT]
    # what HTTP/2 said besides answers
    uint64_t resets[HTTP2_ERROR_COUNT]      # RST_STREAM, by error code
    uint64_t goaways[HTTP2_ERROR_COUNT]     # GOAWAY, by error code
    uint64_t refused_by_goaway  # calls that the service said it would not answer
    uint64_t closed             # connections that the service closed with calls open
    uint64_t failed             # connections that failed with calls open
    uint64_t breaches           # connections ended because the service broke a rule
    int failed_errno            # of the first
    const char* breach          # of the first
    uint8_t request_room[REQUEST_ROOM]


# --- choosing and making calls --------------------------------------------------------------------------------------

cdef void ready_push(Load* load, uint32_t index) noexcept nogil:
    cdef uint32_t at = load.ready_count, parent
    load.ready_count += 1
    while at > 0:
        parent = (at - 1) / 2
        if load.ready[parent] <= index:
            break
        load.ready[at] = load.ready[parent]
        at = parent
    load.ready[at] = index


cdef uint32_t ready_pop(Load* load) noexcept nogil:
    cdef uint32_t top = load.ready[0], last, at = 0, child
    load.ready_count -= 1
    last = load.ready[load.ready_count]
    while True:
        child = 2 * at + 1
        if child >= load.ready_count:
            break
        if child + 1 < load.ready_count and load.ready[child + 1] < load.ready[child]:
            child += 1
        if last <= load.ready[child]:
            break
        load.ready[at] = load.ready[child]
        at = child
    load.ready[at] = last
    return top


cdef inline double random_unit(uint64_t* state) noexcept nogil:
    return <double>(random_next(state) >> 11) * 1.1102230246251565e-16


cdef uint8_t draw_method(Load* load) noexcept nogil:
    cdef double point = random_unit(&load.maker.random)
    cdef uint8_t method
    for method in range(METHOD_COUNT):
        if point < load.weight_below[method]:
            break
    return method


cdef void patch_reservation(uint8_t* at, int64_t reservation_id) noexcept nogil:
    # A varint of fixed width: ten bytes, padded. Every protobuf parser takes it.
    cdef uint64_t value = <uint64_t>reservation_id
    cdef int i
    for i in range(9):
        at[i] = <uint8_t>(value & 127) | 128
        value >>= 7
    at[9] = <uint8_t>value


cdef bint next_request(Load* load, Slot* slot) noexcept nogil:
    # Fills the slot with the next call and makes its request; False: there is none now.
    cdef int64_t wall, seconds, nanos
    cdef uint64_t nth
    cdef uint32_t index, left
    if load.source == SOURCE_REPLAY:
        if load.ready_count == 0:
            return False
        index = ready_pop(load)
        slot.replay_index = index
        load.request = load.replay_bytes + load.replay_offset[index]
        load.request_size = load.replay_size[index]
        slot.made.method = load.replay_method[index]
        if load.replay_patch[index]:
            patch_reservation(load.replay_bytes + load.replay_offset[index] + load.replay_patch[index],
                              load.lane_reservation[load.replay_lane[index]])
        return True
    if load.todo and load.made >= load.todo:
        return False
    if load.now_ns >= load.wall_ns:
        load.wall_offset_ns = wall_ns() - load.now_ns
        load.wall_ns = load.now_ns + WALL_NS
    wall = load.now_ns + load.wall_offset_ns + load.ahead_ns
    seconds, nanos = wall / SECOND_NS, wall % SECOND_NS
    if load.times_span_s:
        # Who prepares goes through the time in order, as a journal does; a mix is many tills, each somewhere in it.
        seconds = load.times_from_s + (<int64_t>(load.made * load.times_span_s / load.todo) if load.source == SOURCE_PREPARE
                                       else random_below(&load.maker.random, load.times_span_s))
        set_day(load.maker, seconds)
    load.request = slot.batch if load.batch else load.request_room
    if load.source == SOURCE_PREPARE:
        load.preparation.earn = load.made >= load.enrolling
        nth = load.made - load.enrolling if load.preparation.earn else load.made
        if load.batch:
            left = load.prepare_count - <uint32_t>nth * load.batch
            make_batch(load.maker, left if left < load.batch else load.batch, &load.preparation,
                       load.prepare_first + <uint32_t>nth * load.batch * load.preparation.stride, seconds, nanos, slot.batch, &slot.made)
        else:
            make_preparation(load.maker, load.prepare_first + <uint32_t>nth * load.preparation.stride, &load.preparation, seconds, nanos,
                             load.request_room, &slot.made)
    elif load.batch:
        make_batch(load.maker, load.batch, NULL, 0, seconds, nanos, slot.batch, &slot.made)
    else:
        make_request(load.maker, draw_method(load), seconds, nanos, load.request_room, &slot.made)
    load.made += 1
    load.request_size = slot.made.size
    return True


cdef bint submit(Load* load, Connection* connection, int64_t scheduled_ns) noexcept nogil:
    # Starts one call on a connection where http2_may_request. False: there is nothing to send.
    cdef uint32_t index = <uint32_t>connection.http2.free
    cdef Slot* slot = &connection.slots[index]
    if not next_request(load, slot):
        return False
    slot.scheduled_ns = scheduled_ns
    http2_request(&connection.http2, &load.fields, slot.made.method, load.request, load.request_size,
                  load.source == SOURCE_REPLAY or load.batch > 0, slot.made.method == METHOD_RESERVE)
    if load.batch:
        results_begin(&connection.http2.streams[index])
    connection.in_flight += 1
    load.in_flight += 1
    return True


# --- answers --------------------------------------------------------------------------------------------------------

cdef const uint8_t* read_varint(const uint8_t* at, const uint8_t* end, uint64_t* value) noexcept nogil:
    # NULL when it does not end before `end`.
    cdef uint32_t shift = 0
    value[0] = 0
    while at < end and shift < 64:
        value[0] |= <uint64_t>(at[0] & 127) << shift
        shift += 7
        if at[0] < 128:
            return at + 1
        at += 1
    return NULL


cdef int64_t reservation_of(const uint8_t* at, uint32_t size) noexcept nogil:
    # Field 4 (reservation), field 1 (reservation_id) of a ReservePointsResponse; 0: not there.
    cdef const uint8_t* end = at + size
    cdef uint64_t tag, value
    while at != NULL and at < end:
        at = read_varint(at, end, &tag)
        if at == NULL:
            return 0
        at = read_varint(at, end, &value)       # every field here is a varint or length-delimited
        if at == NULL:
            return 0
        if tag == 0x22:
            if value < 2 or at + 2 > end or at[0] != 0x08:
                return 0
            at = read_varint(at + 1, end, &value)
            return <int64_t>value if at != NULL else 0
        if tag & 7 == 2:
            if value > <uint64_t>(end - at):
                return 0
            at += value
    return 0


cdef bint is_refusal(int code, bint has_details) noexcept nogil:
    # NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE, said by the ledger itself.
    return has_details and (code == 5 or code == 6 or code == 8 or code == 9 or code == 11)


cdef int code_of(const Stream* stream) noexcept nogil:
    # How a call ended whose stream has ended.
    cdef const uint8_t* kept = &stream.kept[0]
    if stream.http_status != 200:
        if stream.grpc_code > 0:
            return stream.grpc_code
        # What a proxy between says: grpc/doc/http-grpc-status-mapping.md.
        if stream.http_status == 400:
            return 13
        if stream.http_status == 401:
            return 16
        if stream.http_status == 403:
            return 7
        if stream.http_status == 404:
            return 12
        if stream.http_status == 429 or 502 <= stream.http_status <= 504:
            return CODE_UNAVAILABLE
        return CODE_MALFORMED if stream.http_status == 0 else 2
    if stream.grpc_code == CODE_NONE:
        return CODE_MALFORMED
    if stream.grpc_code == 0 and (stream.answer_size < PREFIX_BYTES or kept[0] != 0 or stream.answer_size != PREFIX_BYTES + (
            (<uint32_t>kept[1] << 24) | (<uint32_t>kept[2] << 16) | (<uint32_t>kept[3] << 8) | kept[4])):
        return CODE_MALFORMED
    return stream.grpc_code


cdef void say(Stream* stream, const char* text, size_t size) noexcept nogil:
    # Adds to the message of a call for which the service had none.
    if size > <size_t>(MESSAGE_KEPT_BYTES - stream.message_size):
        size = MESSAGE_KEPT_BYTES - stream.message_size
    memcpy(stream.message + stream.message_size, text, size)
    stream.message_size += <uint16_t>size


cdef inline uint32_t error_index(uint32_t code) noexcept nogil:
    return code if code < HTTP2_ERROR_COUNT - 1 else HTTP2_ERROR_COUNT - 1


cdef void finish(Load* load, Connection* connection, uint32_t index, int code) noexcept nogil:
    # One call is over, well or not: count it, learn from it, free its stream.
    cdef Slot* slot = &connection.slots[index]
    cdef Stream* stream = &connection.http2.streams[index]
    cdef Counts* counts = &load.counts[slot.made.method]
    cdef int64_t stamp, reservation
    cdef uint32_t size
    http2_release(&connection.http2, index)     # what is read below stays until the stream's next call
    connection.in_flight -= 1
    load.in_flight -= 1
    if (load.source == SOURCE_REPLAY and not load.ending and (code == CODE_LOST or code == CODE_CANCELLED or code == CODE_UNAVAILABLE)
            and load.retried < RETRIES_MAX + load.todo / 10):
        # Nobody knows what became of it, or nothing did: the same request again, under the same id, finds out.
        load.retried += 1
        ready_push(load, slot.replay_index)
        return
    if code == 0 and load.batch and stream.counting and (
            stream.results.broken or stream.results.skip or stream.results.state or stream.results.entries + stream.results.errors != slot.made.commands):
        code = CODE_MALFORMED
    stamp = slot.scheduled_ns if load.rate > 0 else load.now_ns
    if stamp >= load.measure_ns and (load.end_ns == 0 or stamp < load.end_ns):
        if code == 0 or is_refusal(code, stream.has_details):
            histogram_add(&counts.latency, load.now_ns - slot.scheduled_ns)
        if code == 0 and stream.counting:
            load.entries += stream.results.entries
            load.entries_refused += stream.results.errors
        if code != 0:
            counts.codes[code] += 1
            if is_refusal(code, stream.has_details):
                counts.refused += 1
    load.completed += 1
    load.done += 1
    if code != 0 and load.message_sizes[code] == 0 and stream.message_size > 0:
        memcpy(load.messages[code], stream.message, stream.message_size)
        load.message_sizes[code] = stream.message_size
        load.message_methods[code] = slot.made.method
    if code == 0:
        if slot.made.method == METHOD_RESERVE:
            size = stream.answer_size if stream.answer_size < ANSWER_KEPT_BYTES else ANSWER_KEPT_BYTES
            reservation = reservation_of(stream.kept + PREFIX_BYTES, size - PREFIX_BYTES)
            if load.source == SOURCE_REPLAY:
                load.lane_reservation[load.replay_lane[slot.replay_index]] = reservation
            elif reservation > 0:
                hold_remember(load.maker, reservation, slot.made.member)
        if slot.made.method < METHOD_GET_BALANCE and load.source != SOURCE_REPLAY:
            write_remember(load.maker, &slot.made.write)
    if load.source == SOURCE_REPLAY and load.replay_next[slot.replay_index] >= 0:
        ready_push(load, <uint32_t>load.replay_next[slot.replay_index])


# --- connections ----------------------------------------------------------------------------------------------------

cdef void watch(Load* load, Connection* connection, int operation, bint writing) noexcept nogil:
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = EPOLLIN | (EPOLLOUT if writing else 0)
    event.data.u32 = connection.index
    connection.writing = writing
    epoll_ctl(load.epoll_fd, operation, connection.fd, &event)


cdef void lose(Load* load, Connection* connection, uint32_t index, const char* why) noexcept nogil:
    say(&connection.http2.streams[index], why, strlen(why))
    finish(load, connection, index, CODE_LOST)


cdef void disconnect(Load* load, Connection* connection, const char* why) noexcept nogil:
    # Ends the connection; what was open on it is lost. The next attempt follows by itself.
    cdef uint32_t i
    if connection.fd >= 0:
        close(connection.fd)
        connection.fd = -1
    connection.state = CONNECTION_CLOSED
    connection.retry_ns = load.now_ns + RETRY_NS
    load.look_ns = 0
    for i in range(load.slots_per_connection):
        if connection.http2.streams[i].id:
            lose(load, connection, i, why)
    connection.http2.out_size = 0
    connection.http2.out_sent = 0


cdef void disconnect_by(Load* load, Connection* connection, ssize_t size, int error) noexcept nogil:
    # A read or write gave 0 (the service closed) or -1.
    if size == 0:
        load.closed += connection.in_flight > 0
        disconnect(load, connection, b"the service closed the connection")
        return
    if connection.in_flight:
        load.failed += 1
        if load.failed_errno == 0:
            load.failed_errno = error
    disconnect(load, connection, b"the connection failed")


cdef void disconnect_breach(Load* load, Connection* connection) noexcept nogil:
    # The service broke a rule of HTTP/2: say so, as far as the socket takes it, and end the connection.
    cdef Http2* http2 = &connection.http2
    cdef uint8_t* out = http2_control(http2, FRAME_HEAD_BYTES + 8)
    if out != NULL:
        frame_write_goaway(out, 0, http2.breach_code)
        send(connection.fd, http2.out + http2.out_sent, http2.out_size - http2.out_sent, MSG_NOSIGNAL)
    load.breaches += 1
    if load.breach == NULL:
        load.breach = http2.breach
    disconnect(load, connection, http2.breach)


cdef void leave(Load* load, Connection* connection) noexcept nogil:
    # GOAWAY came, or the stream ids are used up: open calls get their answers, except those that the service says it will not answer.
    cdef Http2* http2 = &connection.http2
    cdef const char* name = HTTP2_ERROR_NAMES[error_index(http2.goaway_code)]
    cdef uint32_t i
    connection.state = CONNECTION_LEAVING
    for i in range(load.slots_per_connection):
        if http2.streams[i].id > http2.goaway_stream:
            load.refused_by_goaway += 1
            say(&http2.streams[i], b"GOAWAY ", 7)
            say(&http2.streams[i], name, strlen(name))
            if http2.goaway_size:
                say(&http2.streams[i], b": ", 2)
                say(&http2.streams[i], <const char*>http2.goaway_text, http2.goaway_size)
            finish(load, connection, i, CODE_LOST)


cdef void begin_connect(Load* load, Connection* connection) noexcept nogil:
    connection.fd = connect_to(load.family, load.address, load.port)
    if connection.fd < 0:
        load.connects_failed += 1
        connection.retry_ns = load.now_ns + RETRY_NS
        return
    connection.state = CONNECTION_OPENING
    watch(load, connection, EPOLL_CTL_ADD, True)


cdef void finish_connect(Load* load, Connection* connection) noexcept nogil:
    # The socket is writable: connected, or failed.
    load.now_ns = now_ns()
    if connect_error(connection.fd) != 0 or not http2_open(&connection.http2):
        load.connects_failed += 1
        disconnect(load, connection, b"")
        return
    connection.state = CONNECTION_OPEN
    watch(load, connection, EPOLL_CTL_MOD, False)
    fill(load, connection)
    pump(load, connection)


cdef bint pump(Load* load, Connection* connection) noexcept nogil:
    # Sends what HTTP/2 has to say, as much as the socket takes. False: the connection is gone.
    cdef Http2* http2 = &connection.http2
    cdef ssize_t size
    while http2.out_sent < http2.out_size:
        size = send(connection.fd, http2.out + http2.out_sent, http2.out_size - http2.out_sent, MSG_NOSIGNAL)
        if size < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                if not connection.writing:
                    watch(load, connection, EPOLL_CTL_MOD, True)
                return True
            disconnect_by(load, connection, -1, errno)
            return False
        http2.out_sent += <uint32_t>size
        if http2.out_sent == http2.out_size:
            http2.out_sent = 0
            http2.out_size = 0
            http2_send_rests(http2)
    if connection.writing:
        watch(load, connection, EPOLL_CTL_MOD, False)
    if connection.state == CONNECTION_LEAVING and connection.in_flight == 0:
        disconnect(load, connection, b"")
        connection.retry_ns = load.now_ns       # a polite good-bye needs no pause
        return False
    return True


cdef bint read_answers(Load* load, Connection* connection, uint32_t size) noexcept nogil:
    # Reads the first `size` bytes of the receive buffer; a frame without its end is kept. False: the connection is gone.
    cdef Http2* http2 = &connection.http2
    cdef const uint8_t* at = load.receive_buffer
    cdef const uint8_t* end = at + size
    cdef const char* name
    cdef uint32_t index = 0, code
    cdef ReadEnd how
    while True:
        how = http2_read(http2, &at, end, &index)
        if how == READ_ANSWER:
            finish(load, connection, index, code_of(&http2.streams[index]))
        elif how == READ_RESET:
            code = error_index(http2.reset_code)
            name = HTTP2_ERROR_NAMES[code]
            load.resets[code] += 1
            say(&http2.streams[index], b"RST_STREAM ", 11)
            lose(load, connection, index, name)
        else:
            break
    if how == READ_BREACH:
        disconnect_breach(load, connection)
        return False
    http2.kept_size = <uint32_t>(end - at)
    memcpy(http2.kept, at, http2.kept_size)
    if http2.goaway_came:
        http2.goaway_came = 0
        load.goaways[error_index(http2.goaway_code)] += 1
        leave(load, connection)
    return True


cdef void receive(Load* load, Connection* connection) noexcept nogil:
    cdef Http2* http2 = &connection.http2
    cdef uint32_t before
    cdef ssize_t size
    while True:
        before = http2.kept_size
        memcpy(load.receive_buffer, http2.kept, before)
        size = recv(connection.fd, load.receive_buffer + before, RECEIVE_BYTES - before, 0)
        if size < 0 and errno == EINTR:
            continue
        if size < 0 and errno == EAGAIN:
            break
        if size <= 0:
            disconnect_by(load, connection, size, errno)
            return
        load.now_ns = now_ns()
        if not read_answers(load, connection, before + <uint32_t>size):
            return
        if size < RECEIVE_BYTES - before:
            break
    fill(load, connection)
    pump(load, connection)


cdef void fill(Load* load, Connection* connection) noexcept nogil:
    # Starts as many calls on this connection as may be: from the queue (open loop) or at once (closed loop).
    cdef int64_t scheduled
    while connection.state == CONNECTION_OPEN and http2_may_request(&connection.http2) and not load.ending:
        if load.rate > 0:
            if load.queue_head == load.queue_tail:
                return
            scheduled = load.queue[load.queue_head % QUEUE_CALLS]
            load.queue_head += 1
            if scheduled >= load.measure_ns:
                histogram_add(&load.queueing, load.now_ns - scheduled)
            submit(load, connection, scheduled)
        elif not submit(load, connection, load.now_ns):
            return


cdef void arrive(Load* load) noexcept nogil:
    # Open loop: puts the calls whose time has come in the queue and starts those for which a stream is free.
    cdef Connection* connection
    cdef uint32_t looked
    while load.next_arrival_ns <= load.now_ns and load.next_arrival_ns < load.end_ns:
        if load.queue_tail - load.queue_head == QUEUE_CALLS:
            load.unsent += 1
        else:
            load.queue[load.queue_tail % QUEUE_CALLS] = load.next_arrival_ns
            load.queue_tail += 1
        load.next_arrival_ns += <int64_t>(-log(1.0 - random_unit(&load.maker.random)) / load.rate * 1e9)
    looked = 0
    while load.queue_head != load.queue_tail and looked < load.connection_count:
        connection = &load.connections[load.cursor]
        load.cursor = load.cursor + 1 if load.cursor + 1 < load.connection_count else 0
        looked += 1
        if connection.state == CONNECTION_OPEN and http2_may_request(&connection.http2):
            looked = 0
            if load.queue[load.queue_head % QUEUE_CALLS] >= load.measure_ns:
                histogram_add(&load.queueing, load.now_ns - load.queue[load.queue_head % QUEUE_CALLS])
            load.queue_head += 1
            submit(load, connection, load.queue[(load.queue_head - 1) % QUEUE_CALLS])
            if not connection.dirty:
                connection.dirty = 1
                load.dirty[load.dirty_count] = connection.index
                load.dirty_count += 1


# --- the loop -------------------------------------------------------------------------------------------------------

cdef void tend(Load* load) noexcept nogil:
    # What no event announces: requests to send, connections to open again.
    cdef uint32_t i
    cdef Connection* connection
    for i in range(load.dirty_count):
        connection = &load.connections[load.dirty[i]]
        connection.dirty = 0
        if connection.state != CONNECTION_CLOSED:
            pump(load, connection)
    load.dirty_count = 0
    if load.now_ns < load.look_ns:
        return
    load.look_ns = load.now_ns + LOOK_NS
    for i in range(load.connection_count):
        connection = &load.connections[i]
        if connection.state == CONNECTION_CLOSED:
            if connection.retry_ns <= load.now_ns and not load.ending:
                begin_connect(load, connection)
        else:
            if connection.state == CONNECTION_OPEN and connection.http2.leaving:
                leave(load, connection)
            if connection.state != CONNECTION_OPENING:
                load.last_open_ns = load.now_ns


cdef bint is_over(Load* load) noexcept nogil:
    if load.todo and load.done == load.todo:
        return True
    if load.end_ns and load.now_ns >= load.end_ns:
        load.ending = load.rate == 0 or load.queue_head == load.queue_tail or load.now_ns >= load.end_ns + load.grace_ns
    if load.stop_asked:
        load.ending = 1
    if load.source != SOURCE_MIX and load.now_ns - load.last_open_ns > GIVE_UP_NS:
        load.gave_up = 1
        return True
    if not load.ending:
        return False
    if load.ended_ns == 0:
        load.ended_ns = load.now_ns
    return load.in_flight == 0 or load.now_ns - load.ended_ns > load.grace_ns or load.stop_asked > 1


cdef int64_t sleep_ns(Load* load) noexcept nogil:
    cdef int64_t until = load.now_ns + RETRY_NS
    if load.rate == 0 and load.in_flight == 1 and load.connection_count * load.slots_per_connection == 1 and load.now_ns < load.end_ns:
        # One call at a time: the caller's own waking up would be a quarter of what is measured.
        return 0
    if load.end_ns and load.now_ns < load.end_ns < until:
        until = load.end_ns
    if load.rate > 0 and load.now_ns < load.end_ns:
        # A sleeping thread wakes late by tens of microseconds, and that would be measured: so the last stretch is not slept.
        if load.next_arrival_ns - load.spin_ns < until:
            until = load.next_arrival_ns - load.spin_ns
    return until - load.now_ns if until > load.now_ns else 0


cdef void run(Load* load) noexcept nogil:
    cdef epoll_event events[EVENTS_PER_TURN]
    cdef Connection* connection
    cdef int count, i
    cdef uint32_t c, s
    cdef Stream* stream
    sharp_timers()
    load.last_open_ns = load.now_ns
    while True:
        load.now_ns = now_ns()
        if load.rate > 0:
            arrive(load)
        tend(load)
        if is_over(load):
            break
        count = wait_for(load.epoll_fd, events, EVENTS_PER_TURN, sleep_ns(load))
        load.now_ns = now_ns()
        for i in range(count):
            connection = &load.connections[events[i].data.u32]
            if connection.state == CONNECTION_OPENING:
                finish_connect(load, connection)
            elif connection.state != CONNECTION_CLOSED:
                if events[i].events & EPOLLOUT:
                    if not pump(load, connection):
                        continue
                    fill(load, connection)      # it had to stop when there was no room
                    if not pump(load, connection):
                        continue
                if events[i].events & ~<uint32_t>EPOLLOUT:
                    receive(load, connection)
    # What is still open was never answered; arrivals without a stream were not even sent.
    load.ending = 1
    for c in range(load.connection_count):
        for s in range(load.slots_per_connection):
            stream = &load.connections[c].http2.streams[s]
            if stream.id and not load.stop_asked:
                load.counts[load.connections[c].slots[s].made.method].codes[CODE_UNANSWERED] += 1
                stream.id = 0
    if load.rate > 0 and not load.stop_asked:
        load.unsent += load.queue_tail - load.queue_head
    if load.ended_ns == 0:
        load.ended_ns = load.now_ns
    load.finished = 1


# --- Python's side --------------------------------------------------------------------------------------------------

METHODS = {
    "earn": 1, "burn": 2, "reserve": 3, "capture": 4, "release": 5, "commit": 6, "enroll": 7, "balance": 8, "operation": 9, "health": 10,
    "quote": 16,
}
"""The names of --mix and their numbers (ledger/_layout.pxd, Method)."""

PATHS = {
    1: b"/loyalty.ledger.v1.LedgerService/EarnPoints", 2: b"/loyalty.ledger.v1.LedgerService/BurnPoints",
    3: b"/loyalty.ledger.v1.LedgerService/ReservePoints", 4: b"/loyalty.ledger.v1.LedgerService/CaptureReservation",
    5: b"/loyalty.ledger.v1.LedgerService/ReleaseReservation", 6: b"/loyalty.ledger.v1.LedgerService/CommitReceipt",
    7: b"/loyalty.ledger.v1.LedgerService/EnrollMember", 8: b"/loyalty.ledger.v1.LedgerService/GetBalance",
    9: b"/loyalty.ledger.v1.LedgerService/GetOperation", 10: b"/grpc.health.v1.Health/Check",
    14: b"/loyalty.ledger.v1.LedgerService/BatchPost", 16: b"/loyalty.ledger.v1.LedgerService/QuoteReceipt",
}

NAMES = {**{number: name for name, number in METHODS.items()}, METHOD_BATCH_POST: "batch"}
"""The names in results."""

CODE_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    "UNAUTHENTICATED", "CONNECTION_LOST", "UNANSWERED", "MALFORMED",
)


def bucket_limits_ns():
    """The largest value of each histogram bucket, in nanoseconds (int64 array of HISTOGRAM_BUCKETS)."""
    index = np.arange(HISTOGRAM_BUCKETS, dtype=np.int64)
    power, sub = np.divmod(np.maximum(index - HISTOGRAM_EXACT, 0), 128)
    return np.where(index < HISTOGRAM_EXACT, index, ((sub + 129) << (power + 1)) - 1)


cdef void field_point(Field* field, bytes data):
    field.data = <const uint8_t*><const char*>data
    field.size = <uint32_t>len(data)


def hpack_integer(value: int, bits: int, flags: int) -> bytes:
    """RFC 7541 section 5.1: a number behind `flags` in the first byte's upper 8 - bits."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([flags | value])
    result, value = [flags | limit], value - limit
    while value >= 128:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def hpack_field(name: bytes, value: bytes, plain: bool) -> bytes:
    """A header field as a literal, not Huffman-coded; unless it is `plain` it enters the table."""
    static = {b":authority": 1, b":path": 4, b"content-type": 31, b"user-agent": 58}
    head = hpack_integer(static.get(name, 0), 4 if plain else 6, 0 if plain else 0x40)
    return head + b"".join(hpack_integer(len(text), 7, 0) + text for text in ((value,) if name in static else (name, value)))


cdef int alias_build(Alias* alias, const double[::1] weights) except -1:
    # Vose's method: every cell gets at most one other index.
    cdef uint32_t count = <uint32_t>weights.shape[0], i, small_count = 0, large_count = 0, small, large
    cdef double[::1] share = np.asarray(weights) * (count / np.sum(weights))
    cdef uint32_t[::1] stack = np.empty(count, dtype=np.uint32)     # small ones from the left, large ones from the right
    alias.threshold = <uint32_t*>malloc(count * sizeof(uint32_t))
    alias.other = <uint32_t*>malloc(count * sizeof(uint32_t))
    alias.count = count
    if alias.threshold == NULL or alias.other == NULL:
        raise MemoryError()
    for i in range(count):
        alias.threshold[i] = 0xFFFFFFFF
        alias.other[i] = i
        if share[i] < 1.0:
            stack[small_count] = i
            small_count += 1
        else:
            large_count += 1
            stack[count - large_count] = i
    while small_count and large_count:
        small_count -= 1
        small = stack[small_count]
        large = stack[count - large_count]
        alias.threshold[small] = <uint32_t>(share[small] * 4294967295.0)
        alias.other[small] = large
        share[large] -= 1.0 - share[small]
        if share[large] < 1.0:
            large_count -= 1
            stack[small_count] = large
            small_count += 1
    return 0


def zipf_weights(count, skew):
    """The weight of each rank 1..count: rank ** -skew (skew 0: all alike)."""
    return np.arange(1, count + 1, dtype=np.float64) ** -float(skew)


cdef class Chain:
    """What the made-up chain looks like: members, articles, stores, and how popular each is. Shared by the runs of one process.

    Units: members from 1; skew is the exponent of Zipf's law over members; prices in minor units of `currency`.
    """

    cdef Tables tables
    cdef readonly object members

    def __cinit__(self):
        memset(&self.tables, 0, sizeof(self.tables))

    def __init__(self, *, members: int, skew: float, seed: int, currency: str, business_day: int,
                 articles: int = 20_000, stores: int = 400, tills_per_store: int = 12):
        cdef Article* article
        cdef uint8_t* at
        cdef Py_ssize_t i
        random = np.random.default_rng(seed)
        self.members = members
        # Popular members are spread over the card numbers, as in life: they are not neighbours in the ledger's memory.
        weights = zipf_weights(members, skew)
        random.shuffle(weights)
        alias_build(&self.tables.members, weights)
        alias_build(&self.tables.articles, random.permutation(zipf_weights(articles, 0.8)))
        alias_build(&self.tables.stores, random.permutation(zipf_weights(stores, 0.5)))
        prices = np.clip(np.round(np.exp(random.normal(5.6, 0.7, articles))), 19, 9999).astype(np.uint32)   # median 2.70
        self.tables.article = <Article*>calloc(articles, sizeof(Article))
        if self.tables.article == NULL:
            raise MemoryError()
        for i in range(articles):
            article = &self.tables.article[i]
            at = article.code
            at[0] = 0x0A
            at[1] = 13
            at = put_digits(at + 2, <uint64_t>4000000000000 + <uint64_t>i * 7919, 13)
            at[0] = 0x12
            at[1] = 4
            at[2] = 67      # 'C'
            at = put_digits(at + 3, <uint64_t>(i * 300 // articles), 3)
            article.code_size = <uint32_t>(at - article.code)
            article.price_minor = prices[i]
        self.tables.tills_per_store = tills_per_store
        self.tables.business_day = business_day
        code = currency.encode()
        if len(code) != 3:
            raise ValueError(f"currency must be an ISO 4217 code of 3 letters, was {currency!r}")
        memcpy(self.tables.currency, <const char*>code, 3)

    def __dealloc__(self):
        free(self.tables.members.threshold)
        free(self.tables.members.other)
        free(self.tables.articles.threshold)
        free(self.tables.articles.other)
        free(self.tables.stores.threshold)
        free(self.tables.stores.other)
        free(self.tables.article)


cdef class Client:
    """One run of calls against one address: set up, one of `mix`, `prepare` and `replay` (each blocks without the GIL), read.

    `snapshot` and `stop` may be called from other threads while it runs. One Client makes one run.
    Units: in_flight per connection; deadline_s 0: none.
    """

    cdef Load* load
    cdef Chain chain
    cdef list keep      # bytes and arrays that the run points into
    cdef object started

    def __cinit__(self):
        self.load = NULL

    def __init__(self, host: str, port: int, *, connections: int, in_flight: int, chain: Chain | None = None, seed: int = 0,
                 deadline_s: float = 0.0):
        cdef Load* load
        cdef uint32_t i
        cdef Connection* connection
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        packed = socket.inet_pton(family, address[0])
        self.keep = []
        self.started = False
        self.chain = chain
        load = <Load*>calloc(1, sizeof(Load))
        if load == NULL:
            raise MemoryError()
        self.load = load
        load.epoll_fd = -1
        load.family = family
        load.port = port
        memcpy(load.address, <const char*>packed, len(packed))
        load.connection_count = connections
        load.slots_per_connection = in_flight
        load.receive_buffer = <uint8_t*>malloc(RECEIVE_BYTES)
        load.connections = <Connection*>calloc(connections, sizeof(Connection))
        load.dirty = <uint32_t*>malloc(connections * sizeof(uint32_t))
        load.maker = <Maker*>calloc(1, sizeof(Maker))
        if load.receive_buffer == NULL or load.connections == NULL or load.dirty == NULL or load.maker == NULL:
            raise MemoryError()
        for i in range(load.connection_count):
            connection = &load.connections[i]
            connection.fd = -1
            connection.index = i
            connection.load = load
        for i in range(load.connection_count):
            connection = &load.connections[i]
            connection.slots = <Slot*>calloc(in_flight, sizeof(Slot))
            if connection.slots == NULL or not http2_allocate(&connection.http2, in_flight):
                raise MemoryError()
        load.epoll_fd = epoll_create1(0)
        if load.epoll_fd < 0:
            raise OSError(errno, "epoll_create1")
        authority = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        constants = [(b":authority", authority), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
                     (b"user-agent", b"daybook-load")]
        if deadline_s:
            constants.append((b"grpc-timeout", f"{max(1, round(deadline_s * 1e6))}u".encode()))
        self.write_fields(constants)
        if chain is not None:
            maker_open(load.maker, chain, seed)

    def __dealloc__(self):
        cdef uint32_t i
        cdef Load* load = self.load
        if load == NULL:
            return
        if load.connections != NULL:
            for i in range(load.connection_count):
                if load.connections[i].fd >= 0:
                    close(load.connections[i].fd)
                for slot in range(load.slots_per_connection if load.connections[i].slots != NULL else 0):
                    free(load.connections[i].slots[slot].batch)
                free(load.connections[i].slots)
                http2_free(&load.connections[i].http2)
        if load.epoll_fd >= 0:
            close(load.epoll_fd)
        free(load.connections)
        free(load.maker)
        free(load.receive_buffer)
        free(load.dirty)
        free(load.queue)
        free(load.ready)
        free(load.lane_reservation)
        free(load)

    cdef write_fields(self, list constants):
        # Encodes what requests say; `constants` are the fields that all of them have.
        cdef Fields* fields = &self.load.fields
        cdef int method
        assert len(constants) <= HPACK_CONSTANTS_MAX

        def keep(data: bytes) -> bytes:
            self.keep.append(data)
            return data

        for plain in (False, True):
            data = keep(b"".join(hpack_field(name, value, plain) for name, value in constants))
            field_point(&fields.constants_plain if plain else &fields.constants_inserted, data)
            for method, path in PATHS.items():
                field_point(&fields.path_plain[method] if plain else &fields.path_inserted[method], keep(hpack_field(b":path", path, plain)))
                assert len(data) + len(path) + 64 < HPACK_BLOCK_BYTES_MAX, "a host name has at most 253 bytes"
        fields.constant_count = len(constants)
        # Nothing may ever be evicted from the server's table, or all indexes would mean something else.
        entries = [*constants, *((b":path", path) for path in PATHS.values())]
        fields.plain = sum(len(name) + len(value) + 32 for name, value in entries) > HPACK_TABLE_BYTES

    cdef run_once(self):
        if self.started:
            raise RuntimeError("a Client makes one run: make another Client")
        self.started = True
        self.load.start_ns = now_ns()
        if self.load.grace_ns == 0:
            self.load.grace_ns = 10 * <int64_t>SECOND_NS
        self.load.now_ns = self.load.start_ns
        with nogil:
            run(self.load)

    cdef plan_batches(self, uint32_t batch):
        cdef Load* load = self.load
        load.batch = batch
        for number in range(<int>load.connection_count if batch else 0):
            for slot in range(load.slots_per_connection):
                load.connections[number].slots[slot].batch = <uint8_t*>malloc(PREFIX_BYTES + <size_t>batch * REQUEST_ROOM)
                if load.connections[number].slots[slot].batch == NULL:
                    raise MemoryError()

    cdef plan_times(self, times, double ahead_s):
        self.load.ahead_ns = <int64_t>(ahead_s * 1e9)
        if times is not None:
            begin, end = times
            if not 0 < begin < end:
                raise ValueError(f"times must be a stretch (from, to) of seconds since 1970; was {times}")
            self.load.times_from_s = begin
            self.load.times_span_s = end - begin

    def mix(self, weights: dict[str, float], *, seconds: float, warmup_s: float, rate: float = 0.0, spin_us: int = 100,
            grace_s: float = 10.0, uint32_t batch = 0, uint64_t calls = 0, times: tuple[int, int] | None = None, double ahead_s = 0.0):
        """Make calls by `weights` (names of METHODS) for warmup_s + seconds; what ends in the warm-up is not counted.

        rate > 0: open loop, Poisson arrivals of so many calls/s, each timed from its scheduled arrival. rate 0: closed loop.
        grace_s: how long answers are waited for at the end; later ones count as UNANSWERED.
        batch: each call is a BatchPost of so many earns, and the weights do not count; 0: single calls.
        calls: make so many and end, however long it takes (`seconds` does not count then); 0: until the time is over.
        times: (from, to): the requests are of random moments of this time (seconds since 1970, whole), as of tills that were offline.
        ahead_s: the service's clock is so far ahead of this machine's.
        Errors: ValueError for an unknown name or weights that are all zero.
        """
        cdef Load* load = self.load
        cdef double below = 0.0
        cdef int number
        assert self.chain is not None, "a mix needs a Chain"
        unknown = set(weights) - set(METHODS)
        total = sum(weights.values())
        if unknown or total <= 0 or min(weights.values()) < 0:
            raise ValueError(f"weights must be positive and for some of {', '.join(METHODS)}; were {weights}")
        for number in range(METHOD_COUNT):
            below += sum(weight for name, weight in weights.items() if METHODS[name] == number) / total
            load.weight_below[number] = below
        for number in range(max(METHODS[name] for name, weight in weights.items() if weight > 0), METHOD_COUNT):
            load.weight_below[number] = 2.0     # whatever rounding left of 1
        load.source = SOURCE_MIX
        load.todo = calls
        self.plan_batches(batch)
        self.plan_times(times, ahead_s)
        load.rate = rate
        load.spin_ns = spin_us * 1000
        load.grace_ns = <int64_t>(grace_s * 1e9)
        if rate > 0:
            load.queue = <int64_t*>malloc(QUEUE_CALLS * sizeof(int64_t))
            if load.queue == NULL:
                raise MemoryError()
        load.measure_ns = now_ns() + <int64_t>(warmup_s * 1e9)
        load.end_ns = 0 if calls else load.measure_ns + <int64_t>(seconds * 1e9)
        load.next_arrival_ns = now_ns()
        self.run_once()

    def prepare(self, first: int, count: int, *, earn: bool, enroll: bool = True, identifiers: int = 1, stride: int = 1,
                uint32_t batch = 0, times: tuple[int, int] | None = None, double ahead_s = 0.0):
        """Open the accounts of `count` members from `first` on, every `stride`th; with `earn`, then give each of them points.

        identifiers: 1: a card; 2: and a phone. batch: as in `mix`. times: (from, to): the requests go in order through this time, and their
        receipts say so. ahead_s: as in `mix`.
        """
        cdef Load* load = self.load
        assert self.chain is not None, "a preparation needs a Chain"
        assert enroll or earn, "there is nothing to do"
        if not 1 <= identifiers <= 2:
            raise ValueError(f"identifiers must be 1 or 2; was {identifiers}")
        each = -(-count // batch) if batch else count
        load.source = SOURCE_PREPARE
        load.prepare_first = first
        load.prepare_count = count
        load.enrolling = each if enroll else 0
        load.preparation.phone = identifiers == 2
        load.preparation.timed = times is not None
        load.preparation.stride = stride
        load.todo = each * (enroll + earn)
        self.plan_batches(batch)
        self.plan_times(times, ahead_s)
        if count:
            self.run_once()

    def replay(self, uint8_t[::1] data not None, const int64_t[::1] offsets not None, const uint32_t[::1] sizes not None,
               const uint8_t[::1] methods not None, const uint32_t[::1] lanes not None, const uint32_t[::1] patches not None):
        """Send given requests: earliest first, at most one in flight per lane, each lane in its order.

        Shape: request i is data[offsets[i]:][:sizes[i]], gRPC prefix included, and calls methods[i] (METHODS). Where patches[i] > 0, the
        ten bytes at that place of the request become the reservation id of the lane's last answered ReservePoints.
        A request that was lost with its connection, or answered UNAVAILABLE or CANCELLED, is sent again as it is: its id makes that safe.
        `data` is written to.
        """
        cdef Load* load = self.load
        cdef Py_ssize_t count = offsets.shape[0], i
        if not (sizes.shape[0] == methods.shape[0] == lanes.shape[0] == patches.shape[0] == count):
            raise ValueError("offsets, sizes, methods, lanes and patches must have one element per request")
        if count == 0:
            return
        ends = np.asarray(offsets) + np.asarray(sizes)
        if np.min(offsets) < 0 or np.max(ends) > data.shape[0]:
            raise ValueError(f"a request lies outside data (of {data.shape[0]} bytes)")
        if np.any((np.asarray(patches) > 0) & (np.asarray(patches).astype(np.int64) + 10 > np.asarray(sizes))):
            raise ValueError("a patch of 10 bytes lies outside its request")
        if not set(np.unique(methods)) <= set(PATHS):
            raise ValueError(f"methods must be among {sorted(PATHS)}")
        order = np.argsort(lanes, kind="stable")
        sorted_lanes = np.asarray(lanes)[order]
        same = sorted_lanes[1:] == sorted_lanes[:count - 1]
        following = np.full(count, -1, dtype=np.int64)
        following[order[:count - 1][same]] = order[1:][same]
        firsts = np.sort(order[np.concatenate(([True], ~same))]).astype(np.uint32)
        cdef const int64_t[::1] following_view = following
        cdef const uint32_t[::1] firsts_view = firsts
        self.keep += [following, data, offsets, sizes, methods, lanes, patches]
        load.source = SOURCE_REPLAY
        load.todo = count
        load.replay_bytes = &data[0]
        load.replay_offset = &offsets[0]
        load.replay_size = &sizes[0]
        load.replay_method = &methods[0]
        load.replay_lane = &lanes[0]
        load.replay_patch = &patches[0]
        load.replay_next = &following_view[0]
        load.ready = <uint32_t*>malloc(len(firsts) * sizeof(uint32_t))
        load.lane_reservation = <int64_t*>calloc(int(np.max(lanes)) + 1, sizeof(int64_t))
        if load.ready == NULL or load.lane_reservation == NULL:
            raise MemoryError()
        for i in range(firsts_view.shape[0]):
            load.ready[i] = firsts_view[i]      # sorted, so already a heap
        load.ready_count = <uint32_t>firsts_view.shape[0]
        self.run_once()

    def stop(self):
        """Ask the run to end: no new calls, open ones get their answers; a second call does not wait for them."""
        self.load.stop_asked += 1

    def set_day(self, business_day: int):
        """From now on the receipts are of this business day (yyyymmdd), as after a till's day is closed; also while it runs."""
        self.load.maker.business_day = business_day

    def progress(self) -> dict:
        """Where the run is: calls `completed` since the start, `in_flight`, `queued` (open loop), `connected` connections, `finished`."""
        cdef uint32_t i
        cdef uint32_t connected = 0
        for i in range(self.load.connection_count):
            connected += self.load.connections[i].state == CONNECTION_OPEN
        return {
            "completed": self.load.completed,
            "todo": self.load.todo,
            "in_flight": self.load.in_flight,
            "queued": self.load.queue_tail - self.load.queue_head,
            "connected": connected,
            "connects_failed": self.load.connects_failed,
            "finished": bool(self.load.finished),
        }

    def histogram(self, method: int | None = None):
        """Counts per bucket (uint64 array) of one method, or of all."""
        cdef uint64_t[::1] view
        cdef int number
        result = np.zeros(HISTOGRAM_BUCKETS, dtype=np.uint64)
        for number in range(METHOD_COUNT):
            if method is None or method == number:
                view = <uint64_t[:HISTOGRAM_BUCKETS]>self.load.counts[number].latency.counts
                result += np.asarray(view)
        return result

    def result(self) -> dict:
        """What was counted, by name of METHODS: `count`, `sum_ns`, `max_ns`, `histogram`, `codes` by name, `refused`; and the run as a whole.

        Units: `measured_s` is the time that was counted, `messages` the first grpc-message of each code.
        """
        cdef Load* load = self.load
        cdef Counts* counts
        cdef uint64_t[::1] view
        calls = {}
        for number, name in NAMES.items():
            counts = &load.counts[<int>number]
            codes = {CODE_NAMES[i]: counts.codes[i] for i in range(1, CODE_COUNT) if counts.codes[i]}
            if counts.latency.count or codes:
                calls[name] = {
                    "count": counts.latency.count, "sum_ns": counts.latency.sum_ns, "max_ns": counts.latency.max_ns,
                    "histogram": self.histogram(number), "codes": codes, "refused": counts.refused,
                }
        messages = {}
        for i in range(CODE_COUNT):
            if load.message_sizes[i]:
                text = bytes(load.messages[i][:load.message_sizes[i]])
                messages[CODE_NAMES[i]] = (NAMES[load.message_methods[i]], text.decode("utf-8", "replace"))
        view = <uint64_t[:HISTOGRAM_BUCKETS]>load.queueing.counts
        end_ns = min(load.ended_ns, load.end_ns) if load.end_ns else load.ended_ns
        begin_ns = load.measure_ns if load.measure_ns else load.start_ns
        return {
            "calls": calls,
            "messages": messages,
            "measured_s": max(0.0, (end_ns - begin_ns) / 1e9),
            "queueing": {"count": load.queueing.count, "max_ns": load.queueing.max_ns, "histogram": np.array(view)},
            "connects_failed": load.connects_failed,
            "retried": load.retried,
            "unsent": load.unsent,
            "entries": load.entries,
            "entries_refused": load.entries_refused,
            "completed": load.completed,
            "gave_up": bool(load.gave_up),
            "reasons": self.reasons(),
        }

    def reasons(self) -> dict:
        """What HTTP/2 said besides answers, for people: text -> how often. GOAWAY NO_ERROR is a polite good-bye, all others are not."""
        cdef Load* load = self.load
        counted = {}
        for i in range(HTTP2_ERROR_COUNT):
            name = (<bytes>HTTP2_ERROR_NAMES[i]).decode()
            counted[f"RST_STREAM {name}"] = load.resets[i]
            counted[f"GOAWAY {name}"] = load.goaways[i]
        counted["calls that a GOAWAY left out"] = load.refused_by_goaway
        counted["connections closed with calls open"] = load.closed
        if load.failed:
            counted[f"connections failed with calls open ({os.strerror(load.failed_errno)})"] = load.failed
        if load.breaches:
            counted[f"connections ended for a breach of HTTP/2 ({(<bytes>load.breach).decode()})"] = load.breaches
        return {text: count for text, count in counted.items() if count}


cdef maker_open(Maker* maker, Chain chain, seed):
    maker.tables = &chain.tables
    maker.business_day = chain.tables.business_day
    maker.day = -1
    maker.random = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF
    # Contents follow the seed, but ids never repeat: the same run against the same ledger is new writes, not repeats.
    maker.run = int.from_bytes(os.urandom(8), "little")
    maker.run_number = int(time.time() * 1000) % 86_400_000


def sample_requests(chain: Chain, weights: dict[str, float], count: int, *, seed: int, reservations=(), prepare: bool = False):
    """Make `count` requests and give them as (name, message bytes): what a run would send. For tests and the core's bench.

    reservations: (reservation_id, member) pairs for capture, release and commit to use. prepare: instead, per member an enrolment and an
    earn of 10,000.00.
    """
    cdef Maker* maker = <Maker*>calloc(1, sizeof(Maker))
    cdef Made made
    cdef Preparation how
    cdef uint8_t out[REQUEST_ROOM]
    cdef int64_t wall
    if maker == NULL:
        raise MemoryError()
    memset(&how, 0, sizeof(how))
    names = {number: name for name, number in METHODS.items()}
    result = []
    try:
        maker_open(maker, chain, seed)
        for reservation_id, member in reservations:
            hold_remember(maker, reservation_id, member)
        draw = np.random.default_rng(seed)
        total = sum(weights.values())
        chosen = draw.choice([METHODS[name] for name in weights], size=count, p=[weight / total for weight in weights.values()])
        for i in range(count):
            wall = wall_ns()
            if prepare:
                how.earn = i % 2
                make_preparation(maker, i // 2, &how, wall / SECOND_NS, wall % SECOND_NS, out, &made)
            else:
                make_request(maker, chosen[i], wall / SECOND_NS, wall % SECOND_NS, out, &made)
            result.append((names[made.method], bytes(out[PREFIX_BYTES:made.size])))
            if made.method < METHOD_GET_BALANCE:
                write_remember(maker, &made.write)
    finally:
        free(maker)
    return result


def patched(reservation_id: int) -> bytes:
    """The ten bytes that stand for a reservation id in a replayed request. For tests."""
    cdef uint8_t out[10]
    patch_reservation(out, reservation_id)
    return bytes(out[:10])


def business_day_of(seconds: int) -> int:
    """The business day that receipts of that time have, yyyymmdd. For tests."""
    cdef Maker* maker = <Maker*>calloc(1, sizeof(Maker))
    if maker == NULL:
        raise MemoryError()
    maker.day = -1
    set_day(maker, seconds)
    day = maker.business_day
    free(maker)
    return day


def bucket_of(value_ns: int) -> int:
    """The histogram bucket of a latency. For tests."""
    cdef Histogram* histogram = <Histogram*>calloc(1, sizeof(Histogram))
    if histogram == NULL:
        raise MemoryError()
    histogram_add(histogram, value_ns)
    for i in range(HISTOGRAM_BUCKETS):
        if histogram.counts[i]:
            free(histogram)
            return i
    raise AssertionError("no bucket")
