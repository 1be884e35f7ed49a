# One call from request bytes to answer bytes: the life of a call between the transport and the core.
# cimported by server/_transport.pyx (sockets and inbox) and server/_local.pyx (tests, core bench).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ledger._engine cimport Engine
from ledger._layout cimport Command, Facts, Lookup, Outcome
from ledger._rules cimport Program

cdef enum:
    DETAILS_BYTES_MAX = 1024    # google.rpc.Status of the longest refusal
    MESSAGE_BYTES_MAX = 512     # its message, before percent-encoding
    CALLS_AHEAD = 8             # calls whose memory reads are started together; more gains nothing (`make bench`)

cdef struct Answer:
    uint8_t* data               # given by the caller: ANSWER_BYTES_MAX bytes; message (grpc_code 0) or details
    uint32_t size               # bytes of message or details in data
    uint32_t message_size       # bytes in message
    int grpc_code               # 0 OK
    uint16_t status             # STATUS_* for the metrics
    uint8_t replayed
    uint64_t wait_sequence      # may leave when engine_durable() >= this
    uint8_t message[MESSAGE_BYTES_MAX]  # grpc-message, not yet percent-encoded

cdef struct Caller:             # scratch of one thread: the calls that are run next
    Command commands[CALLS_AHEAD]
    Outcome outcomes[CALLS_AHEAD]
    bint decoded[CALLS_AHEAD]   # the command is good; else its outcome is a refusal already

cdef void call_read(Caller* caller, uint32_t place, uint8_t method, const uint8_t* request, uint32_t size) noexcept nogil
    # Decodes into a place (0..CALLS_AHEAD - 1). The request's bytes must stay until call_run.
cdef void call_prepare(Caller* caller, Engine* engine, uint32_t count) noexcept nogil
    # Starts the memory reads of the first `count` places.
cdef bint call_run(Caller* caller, Engine* engine, uint32_t place, Answer* answer) noexcept nogil
    # Executes and encodes. The caller has checked engine_room, the deadline and the size.
    # False: it must be parked (call_park), nothing was decided and answer is not touched.
cdef void call_park(Caller* caller, Engine* engine, uint32_t place, uint64_t token) noexcept nogil
    # Asks the runs; engine_told gives the token back with the facts. The request's bytes are the caller's to keep till then.
cdef void call_tell(Caller* caller, uint32_t place, const Facts* facts) noexcept nogil
    # Between call_read and call_run of a call that was parked: what the runs said. It may have to be parked again.
cdef bint call(Caller* caller, Engine* engine, uint8_t method, const uint8_t* request, uint32_t size, const Facts* facts,
               Answer* answer) noexcept nogil
    # One call alone: read, prepare and run with place 0. facts: of a call that was parked, else NULL. False as call_run.
cdef void call_refuse(Caller* caller, uint16_t status, int64_t a, int64_t b, Answer* answer) noexcept nogil
    # An answer that never reached the core: METHOD_UNKNOWN, MESSAGE_TOO_LARGE, DEADLINE_PASSED, ...
cdef void call_encode(const Program* program, uint8_t method, const Outcome* outcome, Answer* answer) noexcept nogil
    # The answer that an outcome gives; program may be NULL where there is none yet (then no outcome is OK).
